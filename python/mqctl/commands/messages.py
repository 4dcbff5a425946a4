"""enqueue, cancel, dequeue, ack, nack, peek, wait."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mqctl.base import Group, call, json_option, note, pass_session, refuse, value
from mqctl.errors import MqctlError
from mqctl.output import Row, console, plural, print_json, show
from mqctl.params import DURATION, JSON, check_json
from mqctl.session import Connection, Session

_BATCH_MESSAGES = 1_000
_BATCH_BYTES = 8 * 1024 * 1024


def register(root: Group) -> None:
    """Adds the commands of this module."""
    for command in (enqueue, cancel, dequeue, ack, nack, peek, wait):
        root.add_command(command)


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.argument("payload", required=False)
@click.option(
    "--file",
    "-f",
    type=click.File("rb"),
    help="JSON lines, one message a line; - is standard input.",
)
@click.option(
    "--text",
    is_flag=True,
    help="PAYLOAD, or each line, is plain text rather than JSON. Blank lines are left out.",
)
@click.option("--headers", type=JSON, help="Headers as JSON, for every message.")
@click.option("--delay", type=DURATION, help="Deliver after this time.")
@click.option(
    "--deliver-at", metavar="TIMESTAMP", help="Deliver at this time, as in 2030-01-31 08:00+01."
)
@click.option("--priority", type=int, help="0 to 9, 9 first; default 4.")
@click.option("--ordering-key", help="Messages of one key are delivered one after the other.")
@click.option("--dedup-key", help="While a message has it, no other is enqueued with it.")
@click.option(
    "--on-duplicate",
    type=click.Choice(["keep", "replace", "reject"]),
    help="What to do where a message has it; default: keep that one.",
)
@click.option("--ttl", type=DURATION, help="Not delivered after this time.")
@json_option
@pass_session
def enqueue(
    session: Session,
    /,
    queue: str,
    payload: str | None,
    file: BinaryIO | None,
    text: bool,
    headers: str | None,
    as_json: bool,
    **options: object,
) -> None:
    """Enqueue PAYLOAD (JSON), or a message for every line of a file or of standard input, and print the ids.

    All the lines go in one transaction, a thousand at a time: either every message is enqueued or none. Blank lines are
    left out, also with --text; a message of nothing but blanks goes as PAYLOAD.

    \b
    Examples:
      mqctl enqueue mail '{"to": "ann@example.org"}'
      mqctl enqueue mail --text 'hello' --delay 5m
      mqctl enqueue mail --file messages.jsonl
      generate | mqctl enqueue mail
    """
    if payload is not None and file is not None:
        raise click.UsageError("Give PAYLOAD or --file, not both.")
    if payload is None:
        if options["dedup_key"] is not None:
            raise click.UsageError("--dedup-key is for one message: give PAYLOAD.")
        if file is None and sys.stdin.isatty():
            raise click.UsageError("Give PAYLOAD, or JSON lines with --file or on standard input.")
        source = file or sys.stdin.buffer
        with session.connect() as conn:
            count, first, last = _enqueue_lines(conn, queue, source, text, headers, options)
        if as_json:
            print_json(
                {"queue": queue, "enqueued": count, "first_msg_id": first, "last_msg_id": last}
            )
        elif count:
            click.echo(f'{plural(count, "message")} enqueued in "{queue}" (ids {first} to {last})')
        else:
            click.echo("The input is empty: nothing was enqueued.")
        return
    try:
        body = json.dumps(payload) if text else check_json(payload)
    except ValueError as error:
        raise click.BadParameter(
            f"{error} (for plain text: --text)", param_hint="PAYLOAD"
        ) from None
    with session.connect() as conn:
        msg_id = value(conn, "enqueue", queue=queue, payload=body, headers=headers, **options)
    if as_json:
        print_json({"queue": queue, "msg_id": msg_id})
    else:
        click.echo(msg_id)


def _enqueue_lines(
    conn: Connection,
    queue: str,
    source: BinaryIO,
    text: bool,
    headers: str | None,
    options: dict[str, object],
) -> tuple[int, int | None, int | None]:
    """Enqueues every line in one transaction; how many, the first and the last id."""
    count, first, last = 0, None, None
    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=out, disable=not out.is_terminal) as progress,
        conn.transaction(),
    ):
        task = progress.add_task(f"enqueue {queue}", total=_size(source))
        for batch, taken in _batches(source, text):
            rows = call(
                conn,
                "enqueue_batch",
                queue=queue,
                payloads=batch,
                headers=None if headers is None else [headers] * len(batch),
                **options,
            )
            ids = [int(next(iter(row.values()))) for row in rows]
            first = ids[0] if first is None else first
            last = ids[-1]
            count += len(ids)
            progress.update(task, advance=taken, description=f"{count:,} messages")
    return count, first, last


def _size(source: BinaryIO) -> int | None:
    """Bytes to read, where that can be known."""
    try:
        return os.fstat(source.fileno()).st_size or None
    except (OSError, ValueError):
        return None


def _batches(source: BinaryIO, text: bool) -> Iterator[tuple[list[str], int]]:
    """Payloads as JSON text in handy portions, and the bytes read for each. Raises MqctlError with the line's number."""
    batch: list[str] = []
    taken = 0
    for number, raw in enumerate(source, start=1):
        taken += len(raw)
        try:
            line = raw.decode().rstrip("\r\n")
            if not line.strip():
                continue
            batch.append(json.dumps(line) if text else check_json(line))
        except ValueError as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise MqctlError(
                f"line {number}: {reason}",
                hint="Nothing was enqueued. For lines of plain text: --text",
            ) from None
        if len(batch) >= _BATCH_MESSAGES or taken >= _BATCH_BYTES:
            yield batch, taken
            batch, taken = [], 0
    if batch:
        yield batch, taken


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.option("-n", "count", type=int, default=1, show_default=True, help="Messages at most.")
@click.option(
    "--visibility-timeout", type=DURATION, help="How long the lease lasts; default: the queue's."
)
@click.option("--wait", type=DURATION, help="Wait for messages this long, at most 20s.")
@click.option("--ack", metavar="RECEIPT", help="Settle an earlier lease first.")
@click.option("--subscription", help="Whose messages; default: the queue's own.")
@json_option
@pass_session
def dequeue(session: Session, /, queue: str, count: int, as_json: bool, **options: object) -> None:
    """Take messages under a lease and print them with their receipt.

    Settle them with mqctl ack or mqctl nack before the lease ends, else they are delivered again. In a queue of mode
    transaction there is no lease: they are consumed once they are printed.

    \b
    Examples:
      mqctl dequeue mail
      mqctl dequeue mail -n 10 --visibility-timeout 5m --wait 10s
      mqctl dequeue mail --json | jq -r '.[].payload'
    """
    with session.connect() as conn:
        if _is_transactional(conn, queue):
            with conn.transaction():  # only what was printed is consumed
                _print(call(conn, "dequeue", queue=queue, n=count, **options), queue, as_json)
            return
        rows = call(conn, "dequeue", queue=queue, n=count, **options)
    try:
        _print(rows, queue, as_json)
        if rows and not as_json:
            click.echo(f"receipt {rows[0]['receipt']}")
    except OSError:
        if rows:  # they are leased all the same
            note(f"receipt {rows[0]['receipt']}")
        raise


def _is_transactional(conn: Connection, queue: str) -> bool:
    return any(
        row["name"] == queue and json.loads(row["settings"])["mode"] == "transaction"
        for row in call(conn, "queues")
    )


def _print(rows: Sequence[Row], queue: str, as_json: bool) -> None:
    show(
        rows,
        as_json=as_json,
        empty=f'Nothing can be delivered from "{queue}" now.',
        columns=("msg_id", "attempt", "enqueued_at", "leased_until", "payload", "headers"),
    )
    sys.stdout.flush()


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.argument("receipt")
@click.argument("msg_ids", type=int, nargs=-1)
@click.option("--strict", is_flag=True, help="An error of the server if the lease was lost.")
@click.option("--result", type=JSON, help="A result to keep for mqctl wait, as JSON.")
@json_option
@pass_session
def ack(
    session: Session,
    queue: str,
    receipt: str,
    msg_ids: tuple[int, ...],
    strict: bool,
    result: str | None,
    as_json: bool,
) -> None:
    """Settle the messages of a lease: all of them, or only MSG_IDS. Ends with 1 if none was.

    \b
    Examples:
      mqctl ack mail RECEIPT
      mqctl ack mail RECEIPT 17 18 --strict
      mqctl ack mail RECEIPT 17 --result '{"sent": true}'
    """
    with session.connect() as conn:
        count = value(
            conn,
            "ack",
            queue=queue,
            receipt=receipt,
            msg_ids=list(msg_ids) or None,
            strict=strict or None,
            result=result,
        )
    _settled(count, "acknowledged", as_json)


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.argument("receipt")
@click.argument("msg_ids", type=int, nargs=-1)
@click.option(
    "--delay", type=DURATION, help="Deliver again after this time; default: the queue's backoff."
)
@click.option("--reason", help="Why, for the history.")
@click.option("--dead", is_flag=True, help="Straight to the dead letters.")
@json_option
@pass_session
def nack(
    session: Session,
    queue: str,
    receipt: str,
    msg_ids: tuple[int, ...],
    delay: str | None,
    reason: str | None,
    dead: bool,
    as_json: bool,
) -> None:
    """Give the messages of a lease back: all of them, or only MSG_IDS. Ends with 1 if none was.

    \b
    Examples:
      mqctl nack mail RECEIPT --reason 'mailbox full' --delay 1h
      mqctl nack mail RECEIPT 17 --dead
    """
    with session.connect() as conn:
        count = value(
            conn,
            "nack",
            queue=queue,
            receipt=receipt,
            msg_ids=list(msg_ids) or None,
            delay=delay,
            reason=reason,
            dead=dead or None,
        )
    _settled(count, "given back", as_json)


def _settled(count: int, what: str, as_json: bool) -> None:
    if as_json:
        print_json({"settled": count})
    if count == 0:
        raise refuse("Nothing was settled: the lease was lost, or settled before.")
    if not as_json:
        click.echo(f"{plural(count, 'message')} {what}")


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.argument("msg_id", type=int)
@json_option
@pass_session
def cancel(session: Session, queue: str, msg_id: int, as_json: bool) -> None:
    """Take back a message that nobody has yet.

    \b
    Examples:
      mqctl cancel mail 17
    """
    with session.connect() as conn:
        cancelled = value(conn, "cancel", queue=queue, msg_id=msg_id)
    if as_json:
        print_json({"cancelled": cancelled})
    if not cancelled:
        raise refuse(f"Message {msg_id} does not wait: it is leased, done, dead, or not there.")
    if not as_json:
        click.echo(f"message {msg_id} cancelled")


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.option("-n", "count", type=int, default=10, show_default=True, help="Messages at most.")
@json_option
@pass_session
def peek(session: Session, queue: str, count: int, as_json: bool) -> None:
    """Look at messages without taking them.

    \b
    Examples:
      mqctl peek mail
      mqctl peek mail -n 100 --json
    """
    with session.connect() as conn:
        rows = call(conn, "peek", queue=queue, n=count)
    show(rows, as_json=as_json, empty=f'"{queue}" is empty.')


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.argument("msg_id", type=int)
@click.option("--timeout", type=DURATION, help="Wait this long, at most 20s; default: 20s.")
@json_option
@pass_session
def wait(session: Session, queue: str, msg_id: int, timeout: str | None, as_json: bool) -> None:
    """Wait until the message MSG_ID is done and print its result as JSON. Ends with 1 if it is not done in time, or dead.

    \b
    Examples:
      mqctl wait mail 17
      mqctl wait mail 17 --timeout 5s
    """
    with session.connect() as conn:
        result = value(conn, "wait_for", queue=queue, msg_id=msg_id, timeout=timeout)
    if as_json:
        print_json({"done": result is not None, "result": result})
    if result is None:
        raise refuse(f"Message {msg_id} is not done yet.")
    if not as_json:
        click.echo(str(result))
