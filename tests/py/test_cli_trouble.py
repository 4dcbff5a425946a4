"""mqctl where things are not as they should be: never a traceback, and nothing lost on the way out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from mqctl import base, migrate, source
from mqctl.commands import watching
from mqctl.errors import MqctlError
from mqctl.session import Session
from support import wait
from support.server import Server
from support.server import database as temporary_database

Connection = psycopg.Connection[Any]
Background = Callable[..., Any]
PYTHON = str(Path(source.__file__).parents[1])
DIGITS = "9" * 5000
DEEP = "[" * 3000 + "]" * 3000


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    """One for all tests here that do not remove it."""
    with temporary_database(server, "cli_trouble", mq_template) as dsn:
        yield dsn


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


@pytest.fixture
def queue(conn: Connection, request: pytest.FixtureRequest) -> str:
    name = f"q{abs(hash(request.node.name))}"
    conn.execute("select mq.create_queue(%s)", (name,))
    return name


def environment(**env: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PYTHON, "COLUMNS": "200", **env}


def mqctl(
    *words: str | bytes, dsn: str | None = None, shell: str = "", stdin: Any = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """mqctl in a process of its own; `shell` are redirections."""
    args: list[str | bytes] = [sys.executable, "-m", "mqctl"]
    args += ["--dsn", dsn] if dsn is not None else []
    args += words
    if shell:
        args = ["bash", "-c", f'"$@" {shell}', "bash", *args]
    done = subprocess.run(
        args, input=stdin, capture_output=True, env=environment(**env), timeout=60, check=False
    )
    for said in (done.stdout, done.stderr):
        assert b"Traceback" not in said, done
        assert b"Exception ignored" not in said, done
        assert b"defect" not in said, done
    return done


# What goes in


@pytest.mark.parametrize("payload", [DIGITS, DEEP, f'{{"a": {DIGITS}.5e3}}'])
def test_what_the_server_accepts_is_enqueued_as_it_is(
    conn: Connection, database: str, queue: str, payload: str
) -> None:
    assert mqctl("enqueue", queue, payload, dsn=database).returncode == 0
    assert mqctl("enqueue", queue, dsn=database, stdin=payload.encode()).returncode == 0
    rows = conn.execute("select payload = %s::jsonb from mq.peek(%s)", (payload, queue)).fetchall()
    assert rows == [(True,), (True,)]
    out = mqctl("dequeue", queue, "--json", "-n", "2", dsn=database).stdout
    assert payload[:100].encode() in out


def test_what_the_server_refuses_is_explained(database: str, queue: str) -> None:
    done = mqctl("enqueue", queue, "[" * 10_000 + "]" * 9_999, dsn=database)
    assert done.returncode in (1, 2)
    assert b"error" in done.stderr.lower()


@pytest.mark.parametrize(
    "words", [("enqueue", "{q}", b'"\xff"'), ("peek", b"\xff"), ("queue", "create", b"\xff")]
)
def test_arguments_that_are_no_text_are_wrong_usage(
    database: str, queue: str, words: tuple[str | bytes, ...]
) -> None:
    given = [w.format(q=queue) if isinstance(w, str) else w for w in words]
    done = mqctl(*given, dsn=database)
    assert done.returncode == 2, done
    assert b"\\udcff" in done.stderr


@pytest.mark.parametrize("every", ["9" * 400 + "s", "99999999999s", "400d"])
def test_a_time_without_end_is_wrong_usage(database: str, every: str) -> None:
    done = mqctl("stats", "--watch", "--every", every, dsn=database)
    assert done.returncode == 2, done


def test_a_huge_duration_is_refused_by_the_server(database: str, queue: str) -> None:
    done = mqctl("enqueue", queue, "1", "--delay", "9" * 30 + "d", dsn=database)
    assert (done.returncode, done.stderr.startswith(b"error: ")) == (1, True), done


# What surrounds it


def test_standard_input_that_is_closed_is_empty(database: str, queue: str) -> None:
    done = mqctl("enqueue", queue, dsn=database, shell="<&-")
    assert (done.returncode, b"nothing was enqueued" in done.stdout) == (0, True), done
    assert mqctl("queue", "drop", queue, dsn=database, shell="<&-").returncode == 1


@pytest.mark.parametrize("words", [["--help"], ["version"], ["queue", "list", "--json"], ["-x"]])
@pytest.mark.parametrize("shell", [">/dev/full", ">/dev/full 2>&1", ">&-", ">&- 2>&-"])
def test_output_that_goes_nowhere(database: str, words: list[str], shell: str) -> None:
    done = mqctl(*words, dsn=database, shell=shell)
    failed = words == ["-x"] or "full" in shell
    assert (done.returncode != 0) is failed, done
    if shell == ">/dev/full" and words != ["-x"]:
        assert done.stderr.count(b"No space left") == 1, done


def test_the_receipt_of_what_could_not_be_printed(
    conn: Connection, database: str, queue: str
) -> None:
    conn.execute("select mq.enqueue(%s, '1')", (queue,))
    done = mqctl("dequeue", queue, dsn=database, shell=">/dev/full")
    assert done.returncode == 1
    receipt = done.stderr.split(b"receipt ")[1].split()[0].decode()
    assert conn.execute("select mq.ack(%s, %s)", (queue, receipt)).fetchone() == (1,)


def test_what_could_not_be_printed_is_not_consumed(conn: Connection, database: str) -> None:
    conn.execute("select mq.create_queue('transactional', mode => 'transaction')")
    conn.execute("select mq.enqueue('transactional', '1')")
    assert mqctl("dequeue", "transactional", dsn=database, shell=">/dev/full").returncode == 1
    again = conn.execute("select attempt, payload from mq.dequeue('transactional')").fetchall()
    assert again == [(2, 1)]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_receipt_is_not_lost_for_want_of_letters(
    conn: Connection, database: str, queue: str, encoding: str
) -> None:
    text = "é漢😀"
    conn.execute("select mq.enqueue(%s, to_jsonb(%s::text))", (queue, text))
    conn.execute("select mq.enqueue(%s, to_jsonb(%s::text))", (queue, text))
    as_table = mqctl("dequeue", queue, dsn=database, PYTHONIOENCODING=encoding)
    assert (as_table.returncode, b"receipt " in as_table.stdout) == (0, True), as_table
    as_json = mqctl("dequeue", queue, "--json", dsn=database, PYTHONIOENCODING=encoding)
    said = as_json.stdout.decode("utf-8" if encoding == "ascii" else encoding)  # click has its ways
    assert json.loads(said)[0]["payload"] == text


def interruptible() -> None:
    """What a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_while_it_imports_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text(
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(30)\n"
    )
    began = tmp_path / "began"
    with subprocess.Popen(
        [sys.executable, "-c", "from mqctl.cli import main; main()", str(began)],
        env=environment(PYTHONPATH=f"{tmp_path}:{PYTHON}"),
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
    ) as process:
        wait.until(began.exists, "it to import")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (-signal.SIGINT, b"")


def test_an_import_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError('no libpq here')\n")
    done = mqctl("version", PYTHONPATH=f"{tmp_path}:{PYTHON}")
    assert done.returncode == 1
    assert b"no libpq here" in done.stderr


def test_an_interrupt_while_it_works_ends_it_quietly(
    conn: Connection, database: str, queue: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mqctl", "--dsn", database, "dequeue", queue, "--wait", "20s"],
        env=environment(),
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
    ) as process:
        wait.until(
            lambda: (
                conn.execute(
                    "select from pg_stat_activity where application_name = 'mqctl'"
                    " and query like '%mq.dequeue%' and state = 'active'"
                ).rowcount
            ),
            "it to wait",
        )
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"Aborted" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PGPORT": "abc"}, "PGPORT"),
        ({"PGPORT": "99999999"}, "PGPORT"),
        ({"PGHOST": "127.0.0.1", "PGPORT": "0"}, "PGPORT"),
        ({"PGCONNECT_TIMEOUT": "soon"}, "PGCONNECT_TIMEOUT"),
        ({"PGSSLMODE": "maybe"}, "PGSSLMODE"),
        ({"PGSERVICE": "nowhere"}, "PGSERVICE"),
        ({"PGHOST": "no.such.host.invalid"}, "PGHOST"),
    ],
)
def test_a_wrong_variable_is_named(env: dict[str, str], says: str) -> None:
    done = mqctl("stats", dsn=None, **env)
    assert done.returncode == 1
    hint = done.stderr.decode().partition("HINT: ")[2]
    assert hint.startswith("Check "), done
    assert says in hint, done


# Hints that can be typed


def test_a_hint_repeats_the_options_but_no_password(server: Server) -> None:
    with temporary_database(server, "cli_bare") as dsn:
        done = mqctl("stats", dsn=dsn)
        assert f"mqctl install {Session(dsn=dsn).spelled()}".encode() in done.stderr, done
        done = mqctl("demo", dsn=dsn)
        assert b", or mqctl demo --dsn" in done.stderr, done
    assert Session(dsn="password=geheim").spelled() == "--dsn ..."
    assert Session(dsn="postgresql://me:geheim@host/app").spelled() == "--dsn ..."
    assert Session(dsn="dbname=my app").spelled() == "--dsn ..."
    assert Session(use_embedded=True, folder=Path("a b")).spelled() == "--embedded='a b'"
    assert Session(use_embedded=True).spelled() == "--embedded"
    assert Session().spelled() == ""


# Sessions


def test_another_default_of_isolation_does_not_matter(database: str, queue: str) -> None:
    dsn = make_conninfo(database, options="-c default_transaction_isolation=serializable")
    for words in (["dequeue", queue], ["maintain", queue]):
        assert mqctl(*words, dsn=dsn).returncode == 0


def test_upkeep_and_figures_go_queue_by_queue(
    conn: Connection, database: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"{queue}.other"
    conn.execute("select mq.create_queue(%s)", (other,))
    called: list[Any] = []

    def drop_on_the_way(conn_: Any, function: str, **given: Any) -> Any:
        called.append((function, given.get("queue")))
        if function == "queues":
            return [{"name": queue}, {"name": other}, {"name": "dropped"}]
        return real(conn_, function, **given)

    real = base.call
    monkeypatch.setattr(watching, "call", drop_on_the_way)
    with Session(dsn=database).connect() as session:
        rows = watching.per_queue(session, "queue_stats", None)
    assert [row["queue"] for row in rows] == [queue, other]
    assert called[1:] == [("queue_stats", name) for name in (queue, other, "dropped")]


def test_the_loop_reconnects_now_and_then(
    database: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_SESSION_SECONDS", 0.05)
    stopped = threading.Event()
    pids: list[int] = []

    def look(conn_: Any, function: str, queue_: str | None) -> list[Any]:
        pids.append(conn_.info.backend_pid)
        if len(set(pids)) == 3:
            stopped.set()
        return []

    monkeypatch.setattr(watching, "per_queue", look)
    watching._maintain_until(Session(dsn=database), queue, 0.02, stopped, False)
    assert len(pids) > 3


# Removal


def test_uninstall_counts_what_open_transactions_still_bring(
    server: Server, mq_template: str, background: Background
) -> None:
    with (
        temporary_database(server, "cli_uninstall", mq_template) as dsn,
        psycopg.connect(dsn, autocommit=True) as owner,
        psycopg.connect(dsn, autocommit=True) as admin,
        psycopg.connect(dsn) as producer,
    ):
        admin.execute("select mq.create_queue('q')")
        producer.execute("set session authorization mq_producer")
        producer.execute("select mq.enqueue('q', '1')")
        removal = background(migrate.uninstall, owner)
        wait.until_blocked(admin, owner.info.backend_pid, by=producer.info.backend_pid)
        with psycopg.connect(dsn) as late:
            late.execute("set session authorization mq_producer")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                late.execute("select mq.enqueue('q', '2')")
        producer.commit()
        with pytest.raises(MqctlError, match="messages left in 1 queue"):
            removal.result(timeout=60)
        producer.execute("select mq.enqueue('q', '3')")  # it may again
        producer.commit()
        assert owner.execute("select ready from mq.queue_stats('q')").fetchone() == (2,)


# The embedded server


def test_sigterm_stops_the_embedded_server(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    folder = tmp_path / "pg"
    script = textwrap.dedent(
        """
        import sys, time
        import mqctl.commands.installation as installation
        def slow(*_, **__):
            print("begun", flush=True)
            time.sleep(30)
        installation.apply = slow
        from mqctl.cli import main
        main()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "--embedded", f"{folder}", "install"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        assert (folder / "postmaster.pid").exists()
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert not (folder / "postmaster.pid").exists()


def test_a_signal_waits_until_the_server_is_there_to_be_stopped() -> None:
    from mqctl.session import _Ends

    ends = _Ends()
    ends(signal.SIGTERM, None)
    with pytest.raises(SystemExit):
        ends.let_go()
    ends(signal.SIGTERM, None)  # ignored: it is on its way out
