"""The demo: hash every file of a folder through a queue, with retries, dead letters and a worker that is killed.

It uses nothing but the public SQL functions. Each file is one message. Its result goes into a table in the transaction
that acks it strictly, so it is there exactly once, whatever happens to workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import secrets
import signal
import stat
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from psycopg import sql
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mqctl.base import call, explain, note, value
from mqctl.errors import MqctlError
from mqctl.output import console, plural, size
from mqctl.session import Connection, connect

_LEASE_SECONDS = 4.0
_PER_LEASE = 8
_BATCH = 1_000
_MAX_ATTEMPTS = 3
_STALLED_SECONDS = 60.0
_LEASE_LOST = "MQ003"
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold at the end, and what was found."""

    name: str
    good: bool
    found: str


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo did. ``rate`` is messages a second until only those were left that had to be waited for."""

    folder: str
    files: int
    bytes: int
    attempts: int
    failed_attempts: int
    dead_letters: int
    redriven: int
    taken_over: int
    seconds: float
    rate: float
    checks: tuple[Check, ...]
    kept: str

    @property
    def good(self) -> bool:
        """Whether every check holds."""
        return all(check.good for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one run of the demo lives in the database."""

    queue: str
    schema: str

    def query(self, text: str) -> sql.Composed:
        """``text`` with ``{schema}`` filled in."""
        return sql.SQL(text).format(schema=sql.Identifier(self.schema))


class _Board:
    """Numbers in memory shared with the workers; no locks, so a killed worker cannot keep one.

    Each worker counts on its own. The first one, the victim, stands still with the messages it takes once ``half`` of them
    all are done, or at once when it is told to, and says how many it holds.
    """

    def __init__(self, context: Any, workers: int, half: int) -> None:
        self.half = half
        self.done = context.RawArray("q", workers)
        self.lost = context.RawArray("q", workers)
        self.pieces = context.RawArray("q", workers)
        self.ready = context.RawArray("b", workers)
        self.stop = context.RawValue("b", 0)
        self.go = context.RawValue("b", 0)
        self.stand_still = context.RawValue("b", 0)
        self.still = context.RawValue("b", 0)
        self.held = context.RawValue("q", 0)


def run(
    conn: Connection,
    dsn: str,
    *,
    folder: Path | None = None,
    workers: int = 3,
    failing: int = 5,
    keep: bool = False,
    quiet: bool = False,
) -> Result:
    """Run the demo on ``folder`` (default: the standard library) and clean up after it unless ``keep``.

    Raises: MqctlError where there is nothing to hash or the workers fail; ``psycopg.Error``.
    """
    out = Console(quiet=True) if quiet else console()
    root, paths = _scan(folder, out)
    failing = min(failing, max(1, len(paths) // 4))
    name = f"demo_{secrets.token_hex(3)}"
    place = _Place(queue=name, schema=f"mq_{name}")
    with _signal(signal.SIGTERM, _leave):
        try:
            _set_up(conn, place)
            return _play(conn, dsn, place, root, paths, workers, failing, keep, out)
        finally:
            if not keep:
                _clean_up(conn, place)


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM: end in good order, with what was made removed."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signal(
    number: signal.Signals, handler: Callable[..., None] | signal.Handlers
) -> Iterator[None]:
    """Another handler for a while; only the main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _scan(folder: Path | None, out: Console) -> tuple[Path, list[str]]:
    """The folder, and the paths of its readable regular files below it."""
    root = (folder or Path(sysconfig.get_paths()["stdlib"])).resolve()
    skip = _NOT_STDLIB if folder is None else frozenset()
    found: list[str] = []
    skipped = 0
    for parent, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in skip)
        for name in sorted(files):
            path = os.path.join(parent, name)
            try:
                regular = stat.S_ISREG(os.lstat(path).st_mode)
                path.encode()
            except (OSError, UnicodeEncodeError):
                skipped += 1
                continue
            if not regular:
                continue
            if not os.access(path, os.R_OK):
                skipped += 1
                continue
            found.append(os.path.relpath(path, root))
    if skipped:
        out.print(f"[dim]{plural(skipped, 'file')} left out: cannot be read, or named[/dim]")
    if not found:
        raise MqctlError(
            f"there are no files to hash in {root}", hint="Give another folder: mqctl demo FOLDER"
        )
    return root, found


def _set_up(conn: Connection, place: _Place) -> None:
    call(
        conn,
        "create_queue",
        queue=place.queue,
        visibility_timeout=f"{_LEASE_SECONDS} seconds",
        max_attempts=_MAX_ATTEMPTS,
        retry_backoff="200 milliseconds",
        retry_backoff_max="1 second",
    )
    with conn.transaction():
        conn.execute(place.query("create schema {schema}"))
        conn.execute(
            place.query(
                """create table {schema}.result (
                       path text not null primary key, sha256 text not null, bytes bigint not null,
                       worker int not null, attempt int not null)"""
            )
        )
        conn.execute(
            place.query(
                """create table {schema}.failure (
                       id bigint generated always as identity primary key,
                       path text not null, worker int not null, attempt int not null)"""
            )
        )
        # As long as a path is in here, workers fail on it.
        conn.execute(place.query("create table {schema}.faulty (path text not null primary key)"))


def _clean_up(conn: Connection, place: _Place) -> None:
    try:
        conn.execute("set client_min_messages = warning")
        conn.execute(place.query("drop schema if exists {schema} cascade"))
        if any(row["name"] == place.queue for row in call(conn, "queues")):
            call(conn, "drop_queue", queue=place.queue)
    except psycopg.Error as error:
        note(
            f'queue "{place.queue}" or schema "{place.schema}" was left behind: {explain(error)[0]}'
        )


def _play(
    conn: Connection,
    dsn: str,
    place: _Place,
    root: Path,
    paths: list[str],
    workers: int,
    failing: int,
    keep: bool,
    out: Console,
) -> Result:
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[remark]}"),
    )
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        faulty = [paths[i * len(paths) // failing] for i in range(failing)]
        conn.cursor().executemany(
            place.query("insert into {schema}.faulty values (%s)"), [(p,) for p in faulty]
        )
        _enqueue(conn, place, paths, progress)
        progress.console.print(
            f"{plural(len(paths), 'file')} of {root} enqueued, one message a file; {failing} will fail on purpose"
        )
        task = progress.add_task("hash", total=len(paths), remark="")
        run = _Run(
            conn,
            dsn,
            place,
            root,
            len(paths),
            workers,
            failing,
            lambda n, r: progress.update(task, completed=n, remark=r),
            progress.console,
        )
        with run:
            run.watch()
        task = progress.add_task("check", total=len(paths), remark="hashing the tree directly")
        hashes, total = {}, 0
        for path in paths:
            with contextlib.suppress(OSError):
                hashes[path], count = hash_file(root / path)
                total += count
            progress.advance(task)
    return _judge(conn, place, run, root, paths, hashes, total, keep)


def _enqueue(conn: Connection, place: _Place, paths: Sequence[str], progress: Progress) -> None:
    task = progress.add_task("enqueue", total=len(paths), remark="")
    for start in range(0, len(paths), _BATCH):
        batch = [json.dumps({"path": path}) for path in paths[start : start + _BATCH]]
        call(conn, "enqueue_batch", queue=place.queue, payloads=batch)
        progress.advance(task, len(batch))


class _Run:
    """The workers, and what happens to them: from the first message to the last."""

    def __init__(
        self,
        conn: Connection,
        dsn: str,
        place: _Place,
        root: Path,
        total: int,
        workers: int,
        failing: int,
        advance: Callable[[int, str], None],
        out: Console,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._conn, self._place, self._total, self.failing = conn, place, total, failing
        self._advance, self._out = advance, out
        self._board = _Board(context, workers, total // 2)
        self._errors = context.SimpleQueue()
        self._processes: list[BaseProcess] = [
            context.Process(
                target=_worker,
                args=(os.getpid(), dsn, place, str(root), number, self._board, self._errors),
                name=f"mq-demo-{number}",
                daemon=True,
            )
            for number in range(workers)
        ]
        self.killed = False
        self.held = 0
        self.dead = 0
        self.redriven = 0
        self.seconds = 0.0
        self.rate = 0.0

    @property
    def done(self) -> int:
        return sum(self._board.done)

    @property
    def lost(self) -> int:
        return sum(self._board.lost)

    def __enter__(self) -> _Run:
        # Ctrl-C goes to the whole process group; the workers, which inherit this, leave it to us.
        with _signal(signal.SIGINT, signal.SIG_IGN):
            for process in self._processes:
                process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._board.stop.value = 1
        patience = 10.0 if exception[0] is None else 0.5
        for process in self._processes:
            process.join(patience)
            if process.is_alive():
                process.kill()
                process.join()

    def watch(self) -> None:
        """Until every file has its result: shows how far it is, kills the victim half way, cures and redrives."""
        started = moved = time.monotonic()
        while not all(self._board.ready) and time.monotonic() - started < _STALLED_SECONDS:
            self._check_workers()
            time.sleep(0.01)
        self._board.go.value = 1
        started = moved = time.monotonic()
        upkeep, before = 0.0, (-1, 0)
        while (done := self.done) < self._total:
            now = time.monotonic()
            self._check_workers()
            if (sign := (done, sum(self._board.pieces))) != before:
                before, moved = sign, now
            elif now - moved > _STALLED_SECONDS:
                raise MqctlError(f"the workers stalled at {done} of {self._total} files")
            if now - upkeep >= 0.5:
                call(self._conn, "maintain", queue=self._place.queue)
                if not self.redriven:
                    letters = call(
                        self._conn, "dead_letters", queue=self._place.queue, n=self.failing + 1
                    )
                    self.dead = len(letters)
                upkeep = now
            if not self.rate and done >= self._total - self.failing - self._board.held.value:
                self.rate = done / max(now - started, 1e-9)
            self._kill_victim(done)
            self._cure(done)
            self._advance(done, plural(self.dead, "dead letter") if self.dead else "")
            time.sleep(0.02)
        self.seconds = time.monotonic() - started
        self._advance(self._total, f"{plural(self.dead, 'dead letter')}, redriven")
        self.rate = self.rate or self._total / max(self.seconds, 1e-9)

    def _kill_victim(self, done: int) -> None:
        """SIGKILL for the first worker half way, as soon as it holds messages."""
        if self.killed or done < self._board.half:
            return
        if done >= self._total - self.failing:
            self._board.stand_still.value = 1  # too late for a victim with messages in its hands
        if not self._board.still.value:
            return
        victim = self._processes[0]
        victim.kill()
        victim.join()
        self.killed = True
        self.held = self._board.held.value
        self._out.print(
            f"worker 0 (pid {victim.pid}) killed by SIGKILL while it held {plural(self.held, 'message')}"
        )

    def _cure(self, done: int) -> None:
        """Once all that must fail is dead and all else is done: take the fault away and send the dead letters again."""
        if self.redriven or self.dead < self.failing or done < self._total - self.dead:
            return
        self._conn.execute(self._place.query("delete from {schema}.faulty"))
        self.redriven = value(self._conn, "redrive", queue=self._place.queue)
        self._out.print(
            f"{plural(self.dead, 'dead letter')} after {_MAX_ATTEMPTS} attempts each; cured, and {self.redriven} redriven"
        )

    def _check_workers(self) -> None:
        while not self._errors.empty():
            raise MqctlError("a worker of the demo failed", detail=str(self._errors.get()))
        for process in self._processes[1 if self.killed else 0 :]:
            if process.exitcode is not None:
                raise MqctlError(
                    f"a worker of the demo ended early, with status {process.exitcode}"
                )


def _worker(
    parent: int, dsn: str, place: _Place, root: str, number: int, board: _Board, errors: Any
) -> None:
    """A worker process: takes messages, a few a lease, until told to stop. Never prints a traceback."""
    try:
        with connect(dsn) as conn:
            board.ready[number] = 1
            while not board.go.value and not board.stop.value and os.getppid() == parent:
                time.sleep(0.005)
            while not board.stop.value and os.getppid() == parent:
                rows = call(
                    conn, "dequeue", queue=place.queue, n=_PER_LEASE, wait="200 milliseconds"
                )
                if number == 0 and (
                    board.stand_still.value or (rows and sum(board.done) >= board.half)
                ):
                    board.held.value = len(rows)
                    board.still.value = 1
                    while os.getppid() == parent:
                        time.sleep(0.02)  # the SIGKILL comes here
                    return
                if rows:
                    try:
                        board.done[number] += _handle(conn, place, Path(root), number, board, rows)
                    except psycopg.Error as error:
                        if error.sqlstate != _LEASE_LOST:
                            raise
                        board.lost[number] += (
                            1  # all of it was rolled back, and somebody else has it
                        )
    except Exception as error:
        message, detail, hint = explain(error)
        errors.put(" ".join(part for part in (message, detail, hint) if part))


def _handle(
    conn: Connection,
    place: _Place,
    root: Path,
    number: int,
    board: _Board,
    rows: Sequence[dict[str, Any]],
) -> int:
    """Hashes the files of one lease; results and acks in one transaction. How many succeeded."""
    receipt = rows[0]["receipt"]
    lease = _Lease(conn, place.queue, receipt)

    def between() -> None:
        board.pieces[number] += 1
        lease.keep()

    paths = {row["msg_id"]: str(json.loads(row["payload"])["path"]) for row in rows}
    query = place.query("select path from {schema}.faulty where path = any (%s)")
    faulty = {row["path"] for row in conn.execute(query, [list(paths.values())])}
    good: dict[int, tuple[object, ...]] = {}
    bad: dict[int, tuple[str, int]] = {}
    for row in rows:
        msg_id, path = row["msg_id"], paths[row["msg_id"]]
        if path in faulty:
            bad[msg_id] = ("failed on purpose", row["attempt"])
            continue
        try:
            digest, count = hash_file(root / path, between)
        except OSError as error:
            bad[msg_id] = (f"cannot read it: {error.strerror}", row["attempt"])
        else:
            good[msg_id] = (path, digest, count, number, row["attempt"])
    with conn.transaction():
        if good:
            insert = place.query(
                "insert into {schema}.result (path, sha256, bytes, worker, attempt) values (%s, %s, %s, %s, %s)"
            )
            conn.cursor().executemany(insert, list(good.values()))
            call(conn, "ack", queue=place.queue, receipt=receipt, msg_ids=list(good), strict=True)
        for msg_id, (reason, attempt) in bad.items():
            insert = place.query(
                "insert into {schema}.failure (path, worker, attempt) values (%s, %s, %s)"
            )
            if value(
                conn, "nack", queue=place.queue, receipt=receipt, msg_ids=[msg_id], reason=reason
            ):
                conn.execute(insert, (paths[msg_id], number, attempt))
    return len(good)


class _Lease:
    """Extends a lease while a big file is read."""

    def __init__(self, conn: Connection, queue: str, receipt: str) -> None:
        self._conn, self._queue, self._receipt = conn, queue, receipt
        self._renewed = time.monotonic()

    def keep(self) -> None:
        if time.monotonic() - self._renewed > _LEASE_SECONDS / 3:
            value(self._conn, "extend", queue=self._queue, receipt=self._receipt)
            self._renewed = time.monotonic()


def hash_file(path: Path, between: Callable[[], None] = lambda: None) -> tuple[str, int]:
    """sha256 of a file, in hex, and its length in bytes; ``between`` is called after each piece. Raises OSError."""
    total, count = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            total.update(piece)
            count += len(piece)
            between()
    return total.hexdigest(), count


def _judge(
    conn: Connection,
    place: _Place,
    run: _Run,
    root: Path,
    paths: Sequence[str],
    hashes: dict[str, str],
    total: int,
    keep: bool,
) -> Result:
    """Compares what the workers wrote with what was hashed directly."""
    results = {
        row["path"]: row
        for row in conn.execute(place.query("select path, sha256, attempt from {schema}.result"))
    }
    failures = [
        row["path"] for row in conn.execute(place.query("select path from {schema}.failure"))
    ]
    wrong = [
        path for path in paths if path not in results or results[path]["sha256"] != hashes.get(path)
    ]
    failed = set(failures)
    taken_over = sum(row["attempt"] > 1 for path, row in results.items() if path not in failed)
    # Attempts at files meant to fail that ended with the killed worker, or a lost lease, instead of with a failure.
    unseen = run.dead * _MAX_ATTEMPTS - len(failures)
    left = call(conn, "queue_stats", queue=place.queue)[0]
    rest = {state: int(left[state] or 0) for state in ("ready", "deferred", "leased", "dead")}
    checks = (
        Check(
            "every file has the hash that it has on disk",
            not wrong and len(results) == len(paths),
            f"{len(paths) - len(wrong):,} of {len(paths):,}",
        ),
        Check(
            f"what fails is tried {_MAX_ATTEMPTS} times, then a dead letter",
            run.dead == run.failing and 0 <= unseen <= run.held + run.lost * _PER_LEASE,
            f"{plural(run.dead, 'dead letter')}, {plural(len(failures), 'failed attempt')}",
        ),
        Check(
            "every dead letter was redriven and succeeded",
            run.redriven == run.dead and failed <= set(results),
            f"{run.redriven} of {run.dead}",
        ),
        Check(
            "what the killed worker held was done by others",
            run.killed and taken_over + unseen >= run.held,
            f"{taken_over + unseen} of {run.held}",
        ),
        Check(
            "the queue is empty",
            not any(rest.values()),
            ", ".join(f"{count} {state}" for state, count in rest.items() if count)
            or "nothing left",
        ),
    )
    return Result(
        folder=str(root),
        files=len(paths),
        bytes=total,
        attempts=len(results) + len(failures) + run.held,
        failed_attempts=len(failures),
        dead_letters=run.dead,
        redriven=run.redriven,
        taken_over=taken_over,
        seconds=round(run.seconds, 3),
        rate=round(run.rate, 1),
        checks=checks,
        kept=f'queue "{place.queue}", schema "{place.schema}"' if keep else "",
    )


def show(result: Result) -> None:
    """Prints the two tables that the demo ends with."""
    out = console()
    figures = Table(box=SIMPLE_HEAD, show_header=False)
    figures.add_column(style="bold")
    figures.add_column(justify="right")
    for name, figure in _figures(result):
        figures.add_row(name, figure)
    checks = Table(box=SIMPLE_HEAD)
    checks.add_column("")
    checks.add_column("check")
    checks.add_column("found", justify="right")
    for check in result.checks:
        mark = Text("✓", style="green") if check.good else Text("✗", style="bold red")
        checks.add_row(mark, check.name, check.found)
    out.print(figures)
    out.print(checks)
    if result.kept:
        out.print(Text(f"Kept: {result.kept}"))


def _figures(result: Result) -> Iterator[tuple[str, str]]:
    yield "files", f"{result.files:,} ({size(result.bytes)})"
    yield "attempts", f"{result.attempts:,}"
    yield "failed on purpose", f"{result.failed_attempts:,}"
    yield "dead letters", f"{result.dead_letters:,} ({result.redriven:,} redriven)"
    yield "taken over from the killed worker", f"{result.taken_over:,}"
    yield "messages/s", f"{result.rate:,.0f}"
    yield "seconds, waiting for the dead worker's lease included", f"{result.seconds:.1f}"
