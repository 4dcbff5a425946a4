"""The command line: every command against a real server, and every kind of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from mqctl import __version__, source
from mqctl.base import Root, _attach_folder
from mqctl.output import RawJson, duration, size, to_json
from mqctl.params import check_json
from mqctl.program import program as main
from support.server import Server
from support.server import database as temporary_database

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Said:
    """What a run of mqctl said, and its exit status."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Said]


def run(
    *words: object, dsn: str | None = None, stdin: str | bytes | None = None, **env: str
) -> Said:
    """mqctl with these words, in this process."""
    args = [str(word) for word in words]
    if dsn is not None:
        args = ["--dsn", dsn, *args]
    result = CliRunner().invoke(main, args, input=stdin, env={"COLUMNS": "200", **env})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return Said(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def cli(database: str) -> Cli:
    """mqctl on a database with mq, as its owner: cli("peek", "q")."""

    def call(*words: object, stdin: str | bytes | None = None) -> Said:
        return run(*words, dsn=database, stdin=stdin)

    return call


@pytest.fixture
def ok(cli: Cli) -> Cli:
    """The same, and it must succeed."""

    def call(*words: object, stdin: str | bytes | None = None) -> Said:
        said = cli(*words, stdin=stdin)
        assert said.code == 0, said
        return said

    return call


@pytest.fixture(scope="module")
def shared(server: Server, mq_template: str) -> Iterator[str]:
    """A database with a queue q, for tests that change nothing."""
    with temporary_database(server, "cli_shared", mq_template) as dsn:
        assert run("queue", "create", "q", dsn=dsn).code == 0
        yield dsn


@pytest.fixture
def empty(server: Server) -> Iterator[str]:
    with temporary_database(server, "cli_empty") as dsn:
        yield dsn


def commands(
    group: click.Group = main, *path: str
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


ALL = {" ".join(path): command for path, command in commands()}


def test_the_commands_are_those_that_were_promised() -> None:
    assert set(ALL) == {
        *("install", "upgrade", "uninstall", "check", "sql", "version", "demo"),
        *(
            "queue",
            "dead",
            "schedule",
            "enqueue",
            "cancel",
            "dequeue",
            "ack",
            "nack",
            "peek",
            "wait",
            "rewind",
            "history",
            "stats",
            "status",
            "maintain",
        ),
        *(
            f"queue {name}"
            for name in ["create", "alter", "list", "show", "drop", "purge", "pause", "resume"]
        ),
        *(f"dead {name}" for name in ["list", "redrive", "purge"]),
        *(f"schedule {name}" for name in ["set", "list", "drop", "run", "next"]),
    }


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_has_examples_of_itself_in_its_help(name: str) -> None:
    said = run(*name.split(), "--help")
    assert said.code == 0
    examples = said.out.partition("Examples:")[2].partition("Options:")[0]
    assert f"mqctl {name}" in examples or f"{name} " in examples or name == "demo", said.out
    assert isinstance(main, Root)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["queue"],
        ["queue", "create"],
        ["enqueue"],
        ["enqueue", "q", "{"],
        ["enqueue", "q", "NaN"],
        ["enqueue", "q", "[" * 500],
        ["enqueue", "q", "1", "--file", "-"],
        ["enqueue", "q", "1", "--headers", "{"],
        ["enqueue", "q", "1", "--delay", "30"],
        ["enqueue", "q", "1", "--delay", ""],
        ["enqueue", "q", "--file", "/nowhere/at/all"],
        ["dequeue", "q", "-n", "many"],
        ["queue", "alter", "q"],
        ["queue", "create", "q", "--notify", "sometimes"],
        ["queue", "create", "q", "--max-attempts", "many"],
        ["ack", "q"],
        ["ack", "q", "receipt", "one"],
        ["stats", "--watch", "--every", "0s"],
        ["stats", "--watch", "--every", "soon"],
        ["demo", "/nowhere/at/all"],
        ["demo", "--workers", "1"],
    ],
)
def test_wrong_usage_ends_with_2_before_any_server_is_asked(words: list[str]) -> None:
    said = run(*words, dsn="host=/nowhere")
    assert said.code == 2, said
    assert "Usage:" in said.err


def test_dsn_and_embedded_together_are_wrong_usage(tmp_path: Path) -> None:
    said = run("--embedded", f"{tmp_path}/pg", "stats", dsn="host=/nowhere")
    assert said.code == 2, said


def test_an_unreachable_server_is_explained() -> None:
    said = run("status", dsn="host=/nowhere")
    assert said.code == 1
    assert "cannot connect" in said.err
    assert "HINT" in said.err


def test_a_connection_string_that_is_none_is_explained() -> None:
    said = run("status", dsn="nonsense")
    assert said.code == 1
    assert "connection string looks like" in said.err


def test_a_missing_role_and_a_missing_database_are_explained(server: Server) -> None:
    for dsn in (server.dsn(user="nobody_here"), server.dsn("nothing_here")):
        said = run("status", dsn=dsn)
        assert said.code == 1
        assert "does not exist" in said.err
        assert "HINT" in said.err


def test_without_mq_every_command_says_how_to_install_it(empty: str) -> None:
    for words in (["stats"], ["status"], ["check"], ["upgrade"], ["enqueue", "q", "1"], ["demo"]):
        said = run(*words, dsn=empty)
        assert said.code == 1, said
        assert "mqctl install" in said.err, said


def test_somebody_without_rights_is_told_which_role_is_wanted(
    server: Server, database: str
) -> None:
    with server.connect() as admin:
        admin.execute("create role cli_stranger login")
    try:
        said = run("stats", dsn=make_conninfo(database, user="cli_stranger"))
        assert said.code == 1
        assert "mq_consumer" in said.err
        assert run("check", dsn=make_conninfo(database, user="cli_stranger")).code == 1
    finally:
        with server.connect() as admin:
            admin.execute("drop role cli_stranger")


def test_the_usual_variables_say_where_the_server_is(server: Server, database: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    environment = {k: v for k, v in server.env(str(name)).items() if k.startswith("PG")}
    assert run("queue", "list", "--json", **environment).json == []


def test_the_connection_options_may_stand_behind_the_command(database: str) -> None:
    assert run("queue", "list", "--json", "--dsn", database).json == []


def test_install_check_upgrade_uninstall(empty: str) -> None:
    first = run("install", dsn=empty)
    assert (first.code, "installed" in first.out) == (0, True), first
    again = run("install", dsn=empty)
    assert (again.code, "nothing was changed" in again.out) == (0, True), again
    assert run("upgrade", dsn=empty).code == 0
    checked = run("check", dsn=empty)
    assert (checked.code, "as shipped" in checked.out) == (0, True), checked
    assert run("queue", "create", "q", dsn=empty).code == 0
    assert run("enqueue", "q", "1", dsn=empty).code == 0
    refused = run("uninstall", "--yes", dsn=empty)
    assert (refused.code, "q (1)" in refused.err) == (1, True), refused
    assert run("uninstall", dsn=empty, stdin="n\n").code == 1
    assert run("uninstall", "--yes", "--force", dsn=empty).code == 0
    assert run("uninstall", "--yes", dsn=empty).code == 1


def test_check_shows_drift_and_ends_with_1(cli: Cli, conn: Connection) -> None:
    conn.execute("alter function mq.version() security invoker")
    conn.execute("grant select on mq.queue to mq_producer")
    said = cli("check")
    assert said.code == 1
    assert "version()" in said.out
    assert "SECURITY DEFINER" in said.out
    assert "relation queue" in said.out
    found = cli("check", "--json")
    assert found.code == 1
    assert {f["kind"] for f in found.json["findings"]} == {"function", "grant"}


def test_sql_prints_the_script(tmp_path: Path) -> None:
    assert run("sql").out == source.load().script()
    assert run("sql", "--output", tmp_path / "mq.sql").code == 0
    assert (tmp_path / "mq.sql").read_text() == source.load().script()
    assert run("sql", "--from", __version__).out == source.load().script(__version__)
    assert run("sql", "--from", "9.9.9").code == 1
    assert run("sql", "--output", tmp_path / "nowhere" / "mq.sql").code == 1


def test_version() -> None:
    assert run("version").out.startswith(f"mqctl {__version__}\n")
    assert run("version", "--json").json["source_fingerprint"] == source.load().fingerprint()
    assert run("--version").out == f"mqctl {__version__}\n"


def test_queues_are_made_listed_changed_and_dropped(ok: Cli, cli: Cli) -> None:
    assert "no queues" in ok("queue", "list").out
    ok("queue", "create", "mail", "--max-attempts", "3", "--visibility-timeout", "5m")
    assert cli("queue", "create", "mail").code == 1
    ok("queue", "create", "mail", "--if-not-exists")
    listed = ok("queue", "list").out
    assert "mail" in listed
    assert "00:05:00" in listed
    ok("queue", "alter", "mail", "--max-attempts", "7")
    shown = ok("queue", "show", "mail", "--json").json
    assert shown["name"] == "mail"
    assert shown["settings"]["max_attempts"] == 7
    assert shown["stats"]["ready"] == 0
    assert "visibility timeout" in ok("queue", "show", "mail").out
    assert cli("queue", "show", "nowhere").code == 1
    ok("queue", "pause", "mail")
    assert ok("queue", "list", "--json").json[0]["paused"] is True
    ok("queue", "resume", "mail")
    ok("enqueue", "mail", "1")
    assert cli("queue", "purge", "mail", stdin="n\n").code == 1
    assert ok("queue", "purge", "mail", "--yes").out.startswith("1 ")
    assert cli("queue", "drop", "mail", stdin="n\n").code == 1
    ok("queue", "drop", "mail", "--yes")
    assert ok("queue", "list", "--json").json == []


def test_a_message_is_taken_back(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "q")
    ok("enqueue", "q", "1", "--ttl", "1h")
    ok("enqueue", "q", "2", "--delay", "1h")
    assert ok("cancel", "q", "1").out == "message 1 cancelled\n"
    assert ok("cancel", "q", "2", "--json").json == {"cancelled": True}
    again = cli("cancel", "q", "1")
    assert again.code == 1
    assert "does not wait" in again.err
    assert ok("peek", "q", "--json").json == []


def test_a_message_goes_in_and_out(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "q")
    assert ok("enqueue", "q", '{"x": 1.10}', "--headers", '{"h": 1}').out == "1\n"
    assert ok("enqueue", "q", "--text", "it's").out == "2\n"
    peeked = ok("peek", "q", "--json").json
    assert [row["state"] for row in peeked] == ["ready", "ready"]
    assert "it's" in ok("peek", "q").out
    taken = ok("dequeue", "q", "-n", "10", "--json")
    assert '"payload": {"x": 1.10}' in taken.out  # digits as they were
    rows = taken.json
    assert [row["payload"] for row in rows] == [{"x": 1.10}, "it's"]
    assert rows[0]["headers"] == {"h": 1}
    receipt = rows[0]["receipt"]
    assert ok("ack", "q", receipt, "1").out == "1 message acknowledged\n"
    assert ok("ack", "q", receipt, "--json").json == {"settled": 1}
    late = cli("ack", "q", receipt)
    assert (late.code, "Nothing was settled" in late.err) == (1, True)
    strict = cli("ack", "q", receipt, "--strict")
    assert (strict.code, strict.err.startswith("error:")) == (1, True), strict
    assert "Nothing can be delivered" in ok("dequeue", "q").out
    assert ok("dequeue", "q", "--json").json == []


def test_dequeue_prints_a_receipt_that_ack_takes(ok: Cli) -> None:
    ok("queue", "create", "q")
    ok("enqueue", "q", "1")
    receipt = ok("dequeue", "q", "--wait", "1s").out.rpartition("receipt ")[2].strip()
    ok("enqueue", "q", "2")
    following = ok("dequeue", "q", "--ack", receipt, "--visibility-timeout", "1m", "--json").json
    assert [row["payload"] for row in following] == [2]


def test_dequeue_in_mode_transaction_consumes_what_it_printed(ok: Cli) -> None:
    ok("queue", "create", "q", "--mode", "transaction")
    ok("enqueue", "q", "1")
    (row,) = ok("dequeue", "q", "--json").json
    assert (row["payload"], row["attempt"]) == (1, 1)
    assert "Nothing can be delivered" in ok("dequeue", "q").out
    ok("enqueue", "q", "2")
    assert "receipt" not in ok("dequeue", "q").out


def test_nack_delays_or_buries(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "q")
    ok("enqueue", "q", "1")
    receipt = ok("dequeue", "q", "--json").json[0]["receipt"]
    assert (
        ok("nack", "q", receipt, "--delay", "1h", "--reason", "later").out
        == "1 message given back\n"
    )
    assert ok("peek", "q", "--json").json[0]["state"] == "deferred"
    ok("enqueue", "q", "2")
    receipt = ok("dequeue", "q", "--json").json[0]["receipt"]
    assert ok("nack", "q", receipt, "2", "--dead", "--reason", "broken", "--json").json == {
        "settled": 1
    }
    assert cli("nack", "q", receipt).code == 1


def test_dead_letters_are_listed_redriven_and_purged(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "q")
    ok("queue", "create", "other")
    assert "no dead letters" in ok("dead", "list", "q").out
    for _ in range(3):
        ok("enqueue", "q", "{}")
    receipt = ok("dequeue", "q", "-n", "3", "--json").json[0]["receipt"]
    ok("nack", "q", receipt, "--dead", "--reason", "no such mailbox")
    assert "no such mailbox" in ok("dead", "list", "q").out
    assert len(ok("dead", "list", "q", "--json").json) == 3
    assert ok("dead", "redrive", "q", "1").out == "1 dead letter redriven\n"
    assert ok("dead", "redrive", "q", "--to", "other", "--max", "1", "--json").json == {
        "redriven": 1
    }
    assert len(ok("peek", "other", "--json").json) == 1
    assert ok("dead", "purge", "q", "--older-than", "1h", "--yes").out == "0 dead letters removed\n"
    assert cli("dead", "purge", "q", stdin="n\n").code == 1
    assert ok("dead", "purge", "q", "--yes", "--json").json == {"purged": 1}


def test_what_is_kept_is_listed_and_rewound(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "q", "--retention", "7d")
    assert "nothing is kept" in ok("history", "q").out
    for i in range(2):
        ok("enqueue", "q", f'{{"n": {i}}}')
    receipt = ok("dequeue", "q", "-n", "2", "--json").json[0]["receipt"]
    ok("ack", "q", receipt)
    assert "acked" in ok("history", "q").out
    first, second = ok("history", "q", "--json").json
    assert (first["msg_id"], first["attempts"], second["payload"]) == (1, 1, {"n": 1})
    assert ok("history", "q", "--to", second["enqueued_at"], "-n", "5", "--json").json == [first]
    assert ok("history", "q", "--from", second["enqueued_at"], "--json").json == [second]
    assert ok("rewind", "q", "--to", second["enqueued_at"]).out == "1 message rewound\n"
    assert ok("rewind", "q", "--msg-id", "1", "--json").json == {"rewound": 1}
    for both in [], ["--to", "today", "--msg-id", "1"]:
        assert cli("rewind", "q", *both).code == 2
    ok("queue", "alter", "q", "--retention", "0")
    refused = cli("rewind", "q", "--msg-id", "1")
    assert refused.code == 1
    assert "keeps nothing" in refused.err
    assert "retention => '7 days'" in refused.err


def test_what_is_scheduled_is_listed_run_and_dropped(ok: Cli) -> None:
    ok("queue", "create", "q")
    assert "no schedules" in ok("schedule", "list").out
    said = ok("schedule", "set", "s", "0 9 * * *", "q", '{"n": 1}', "--timezone", "Europe/Berlin")
    assert said.out.startswith('Schedule "s" is due next at 20')
    (row,) = ok("schedule", "list", "--json").json
    assert (row["name"], row["queue"], row["timezone"]) == ("s", "q", "Europe/Berlin")
    assert (row["payload"], row["headers"], row["catch_up"]) == ({"n": 1}, None, "one")
    said = ok("schedule", "next", "0 9 * * *", "--timezone", "Europe/Berlin", "-n", "2", "--json")
    assert said.json[0] == row["next_at"] < said.json[1]
    more = ("--headers", '{"h": 1}', "--catch-up", "all", "--json")
    said = ok("schedule", "set", "s", "every 90 seconds", "q", "1", *more)
    (row,) = ok("schedule", "list", "--json").json
    assert said.json == {"name": "s", "next_at": row["next_at"]}
    assert (row["headers"], row["catch_up"]) == ({"h": 1}, "all")
    assert "every 90 seconds" in ok("schedule", "list").out
    assert int(ok("schedule", "run", "s").out) == ok("peek", "q", "--json").json[-1]["msg_id"]
    assert "msg_id" in ok("schedule", "run", "s", "--json").json
    assert ok("schedule", "drop", "s").out == 'Schedule "s" dropped\n'
    assert ok("schedule", "drop", "s", "--json").json == {"name": "s", "dropped": False}
    assert "no schedule" in ok("schedule", "drop", "s").out


def test_lines_are_enqueued_in_bulk_from_a_file_and_from_standard_input(
    ok: Cli, tmp_path: Path
) -> None:
    ok("queue", "create", "q")
    lines = tmp_path / "lines"
    lines.write_text("".join(f'{{"n": {n}}}\n\n' for n in range(2_500)))
    said = ok("enqueue", "q", "--file", lines, "--json").json
    assert said == {"queue": "q", "enqueued": 2500, "first_msg_id": 1, "last_msg_id": 2500}
    assert "2 messages" in ok("enqueue", "q", stdin="1\n2\n").out
    assert "1 message " in ok("enqueue", "q", "--file", "-", "--text", stdin="plain text").out
    assert "nothing was enqueued" in ok("enqueue", "q", stdin="\n\n").out
    assert ok("stats", "q", "--json").json[0]["ready"] == 2503


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        ("1\n" * 1500 + "{\n", "line 1501"),
        (b"1\n\xff\n", "line 2: not UTF-8"),
        ('1\n"\\u0000"\n', "error:"),
    ],
)
def test_one_bad_line_and_nothing_is_enqueued(
    ok: Cli, cli: Cli, stdin: str | bytes, says: str
) -> None:
    ok("queue", "create", "q")
    said = cli("enqueue", "q", stdin=stdin)
    assert said.code == 1
    assert says in said.err
    assert ok("peek", "q", "--json").json == []


@pytest.mark.parametrize(
    "words",
    [
        ["enqueue", "nowhere", "1"],
        ["enqueue", "q", "1", "--delay", "-1s"],
        ["enqueue", "q", "1", "--delay", "soon"],
        ["enqueue", "q", "1", "--deliver-at", "someday"],
        ["enqueue", "q", '"\\u0000"'],
        ["dequeue", "nowhere"],
        ["dequeue", "q", "-n", "0"],
        ["dequeue", "q", "-n", "1000000000"],
        ["dequeue", "q", "--wait", "1h"],
        ["dequeue", "q", "--visibility-timeout", "-5s"],
        ["ack", "q", "not-a-receipt"],
        ["nack", "q", "not-a-receipt"],
        ["queue", "create", "a b"],
        ["queue", "create", ""],
        ["queue", "create", "new", "--max-attempts", "0"],
        ["queue", "create", "new", "--retry-backoff", "-1s"],
        ["queue", "alter", "nowhere", "--max-attempts", "3"],
        ["queue", "drop", "nowhere", "--yes"],
        ["queue", "purge", "nowhere", "--yes"],
        ["queue", "pause", "nowhere"],
        ["peek", "nowhere"],
        ["peek", "q", "-n", "-1"],
        ["stats", "nowhere"],
        ["maintain", "nowhere"],
        ["dead", "list", "nowhere"],
        ["dead", "redrive", "q", "--to", "nowhere"],
        ["dead", "purge", "nowhere", "--yes"],
        ["schedule", "set", "s", "@daily", "nowhere", "1"],
        ["schedule", "set", "s", "61 * * * *", "q", "1"],
        ["schedule", "set", "s", "@daily", "q", "1", "--timezone", "Europe/Nowhere"],
        ["schedule", "run", "nowhere"],
        ["schedule", "next", "61 * * * *"],
        ["schedule", "next", "@daily", "--after", "someday"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_what_the_server_refuses_ends_with_1_and_its_message(shared: str, words: list[str]) -> None:
    said = run(*words, dsn=shared)
    assert said.code == 1, said
    assert said.err.startswith("error: "), said


def test_detail_and_hint_of_the_server_are_shown(cli: Cli) -> None:
    assert "HINT: " in cli("enqueue", "nowhere", "1").err


def test_stats_and_status(ok: Cli) -> None:
    assert "no queues" in ok("stats").out
    ok("queue", "create", "q")
    ok("enqueue", "q", "1")
    assert ok("stats", "--json").json[0]["ready"] == 1
    assert "q" in ok("stats").out
    seen = ok("status").out
    for word in ("PostgreSQL", "mq_admin", "as shipped", "1 queue, 1 ready", "oldest ready "):
        assert word in seen, seen
    facts = ok("status", "--json").json
    assert facts["mq"]
    assert facts["queues"][0]["queue"] == "q"


def test_maintain(ok: Cli) -> None:
    ok("queue", "create", "q")
    ok("queue", "create", "other")
    for queue in ("q", "other"):
        ok("enqueue", queue, "1")
        ok("dequeue", queue, "--visibility-timeout", "10ms")
    time.sleep(0.02)
    swept = {"queue": "q", "action": "swept", "detail": "1 messages"}
    done = ok("maintain", "q", "--json").json
    assert swept in done
    assert {row["queue"] for row in done} == {"q"}
    assert ok("peek", "q", "--json").json[0]["state"] == "ready"
    assert {**swept, "queue": "other"} in ok("maintain", "--json").json
    ok("enqueue", "q", "2")
    ok("dequeue", "q", "-n", "2", "--visibility-timeout", "10ms")
    time.sleep(0.02)
    assert "2 messages" in ok("maintain", "q").out


def program(*words: str, dsn: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mqctl", "--dsn", dsn, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(source.__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
        },
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stats_watch_goes_on_until_a_signal(ok: Cli, database: str, number: signal.Signals) -> None:
    ok("queue", "create", "q")
    with program("stats", "--watch", "--every", "100ms", "--json", dsn=database) as watching:
        assert watching.stdout is not None
        for _ in range(3):
            assert json.loads(watching.stdout.readline())[0]["queue"] == "q"
        watching.send_signal(number)
        _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (0, "")


def test_maintain_loop_survives_a_lost_connection_and_ends_on_sigterm(
    ok: Cli, database: str, conn: Connection
) -> None:
    ok("queue", "create", "q")

    def backend() -> int | None:
        query = """select pid from pg_stat_activity
                   where query like '%mq.maintain%' and datname = current_database()
                     and pid <> pg_backend_pid()"""
        row = conn.execute(query).fetchone()
        return row[0] if row else None

    def other_backend(than: int | None) -> int:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pid = backend()
            if pid is not None and pid != than:
                return pid
            time.sleep(0.02)
        raise AssertionError("mqctl did not connect")

    with program("maintain", "--loop", "--every", "100ms", dsn=database) as looping:
        first = other_backend(None)
        conn.execute("select pg_terminate_backend(%s)", [first])
        other_backend(first)
        looping.send_signal(signal.SIGTERM)
        _, err = looping.communicate(timeout=20)
    assert looping.returncode == 0
    assert "next try" in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error_to_shout_about(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mqctl sql | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(source.__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("-- mq")
    assert "Traceback" not in done.stderr


def test_a_defect_is_reported_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("oops")

    monkeypatch.setattr(source, "load", broken)
    monkeypatch.delenv("MQCTL_DEBUG", raising=False)
    said = run("version")
    assert said.code == 1
    assert "ValueError: oops" in said.err


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (["--embedded", "stats"], ["--embedded=", "stats"]),
        (["--embedded", "{new}/pg", "stats"], ["--embedded={new}/pg", "stats"]),
        (["--embedded={new}/pg", "stats"], ["--embedded={new}/pg", "stats"]),
        (["demo", "--embedded", "{full}"], ["demo", "--embedded=", "{full}"]),
        (["stats", "--embedded"], ["stats", "--embedded="]),
        (["enqueue", "q", "--", "--embedded"], ["enqueue", "q", "--", "--embedded"]),
    ],
)
def test_embedded_takes_a_folder_only_where_one_is_meant(
    tmp_path: Path, given: list[str], becomes: list[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()

    def fill(words: list[str]) -> list[str]:
        return [word.format(new=tmp_path / "new", full=tmp_path / "full") for word in words]

    assert _attach_folder(fill(given)) == fill(becomes)


def test_values_as_people_and_programs_read_them() -> None:
    from datetime import timedelta

    assert duration(timedelta(seconds=5.25)) == "5.25s"
    assert duration(timedelta(days=1, hours=2, minutes=3)) == "1d 2h"
    assert size(1536) == "1.5 kB"
    assert size(12) == "12 B"
    row = {"a": RawJson('{"n": 1.10}'), "b": timedelta(seconds=2), "c": None, "d": [1, "é"]}
    assert to_json(row) == '{"a": {"n": 1.10}, "b": 2.0, "c": null, "d": [1, "é"]}'
    with pytest.raises(ValueError, match="Infinity"):
        check_json("[Infinity]")


def test_dedup_keys(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "once", "--dedup-window", "1h")
    one = ok("enqueue", "once", "1", "--dedup-key", "k").out
    assert ok("enqueue", "once", "2", "--dedup-key", "k").out == one
    said = cli("enqueue", "once", "3", "--dedup-key", "k", "--on-duplicate", "reject")
    assert said.code == 1
    assert "msg_id 1" in said.err
    ok("enqueue", "once", "4", "--dedup-key", "k", "--on-duplicate", "replace")
    assert [row["payload"] for row in ok("peek", "once", "--json").json] == [4]
    assert cli("enqueue", "once", "--file", "-", "--dedup-key", "k").code == 2
    ok("queue", "alter", "once", "--dedup-window", "0")
    shown = ok("queue", "show", "once", "--json").json
    assert shown.get("settings", shown)["dedup_window"] == "00:00:00"


def test_retry_policies(ok: Cli, cli: Cli) -> None:
    delays = ["--retry-delay", "10s", "--retry-delay", "1.5h"]
    ok("queue", "create", "hooks", "--retry-policy", "list", *delays, "--retry-jitter", "0")
    shown = ok("queue", "show", "hooks", "--json").json
    settings = shown.get("settings", shown)
    assert settings["retry_delays"] == ["00:00:10", "01:30:00"]
    assert settings["retry_policy"] == "list"
    ok("queue", "alter", "hooks", "--retry-policy", "linear")
    said = cli("queue", "alter", "hooks", *delays)
    assert said.code == 1
    assert "retry_policy" in said.err
    assert cli("queue", "alter", "hooks", "--retry-jitter", "2").code == 2


def test_priorities(ok: Cli, cli: Cli) -> None:
    def ageing() -> object:
        shown = ok("queue", "show", "urgent", "--json").json
        return shown.get("settings", shown)["priority_ageing"]

    ok("queue", "create", "urgent", "--priority-ageing", "1h")
    assert ageing() == "01:00:00"
    ok("queue", "alter", "urgent", "--priority-ageing", "0")
    assert ageing() is None
    ok("enqueue", "urgent", "1", "--priority", "0")
    ok("enqueue", "urgent", "2", "--priority", "9")
    assert [row["priority"] for row in ok("peek", "urgent", "--json").json] == [0, 9]
    assert "priority" in ok("peek", "urgent").out
    assert ok("dequeue", "urgent", "-n", "2", "--json").json[0]["payload"] == 2
    refused = cli("enqueue", "urgent", "3", "--priority", "10")
    assert refused.code == 1
    assert "priority" in refused.err
    assert "9 first" in ok("enqueue", "--help").out


def test_wait_prints_a_result(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "q", "--result-retention", "2h")
    assert ok("queue", "show", "q", "--json").json["settings"]["result_retention"] == "02:00:00"
    ok("enqueue", "q", "1")
    ok("enqueue", "q", "2")
    early = cli("wait", "q", "1", "--timeout", "10ms")
    assert (early.code, early.err) == (1, "Message 1 is not done yet.\n")
    assert cli("wait", "q", "1", "--timeout", "0s", "--json").json == {
        "done": False,
        "result": None,
    }
    rows = ok("dequeue", "q", "-n", "2", "--json").json
    ok("ack", "q", rows[0]["receipt"], "1", "--result", '{"n": 1.10}')
    assert ok("wait", "q", "1").out == '{"n": 1.10}\n'  # digits as they were
    assert ok("wait", "q", "1", "--json").out == '{"done": true, "result": {"n": 1.10}}\n'
    ok("nack", "q", rows[0]["receipt"], "--dead", "--reason", "bad")
    dead = cli("wait", "q", "2")
    assert dead.code == 1
    assert "bad" in dead.err
    assert cli("wait", "q", "3").code == 1


def test_limits(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "few", "--max-in-flight", "2", "--rate-limit", "5", "--rate-period", "1m")
    ok("queue", "alter", "few", "--max-in-flight", "1")
    (shown,) = [one for one in ok("queue", "list", "--json").json if one["name"] == "few"]
    limits = ("max_in_flight", "rate_limit", "rate_period")
    assert [shown["settings"][one] for one in limits] == [1, 5, "00:01:00"]
    for _ in range(2):
        ok("enqueue", "few", "1")
    assert len(ok("dequeue", "few", "-n", "2", "--json").json) == 1
    ok("queue", "alter", "few", "--max-in-flight", "0", "--rate-limit", "0")
    (shown,) = [one for one in ok("queue", "list", "--json").json if one["name"] == "few"]
    assert [shown["settings"][one] for one in limits] == [None, None, None]
    assert len(ok("dequeue", "few", "-n", "2", "--json").json) == 1
    assert cli("queue", "alter", "few", "--max-in-flight", "-1").code == 2
    said = cli("queue", "alter", "few", "--rate-limit", "5")
    assert said.code == 1
    assert "Give rate_period, too." in said.err


def test_max_depth(ok: Cli, cli: Cli) -> None:
    ok("queue", "create", "short", "--max-depth", "1", "--overflow", "drop_oldest")
    ok("queue", "alter", "short", "--overflow", "reject")
    (shown,) = [one for one in ok("queue", "list", "--json").json if one["name"] == "short"]
    assert (shown["settings"]["max_depth"], shown["settings"]["overflow"]) == (1, "reject")
    assert "max depth" in ok("queue", "list").out
    ok("enqueue", "short", "1")
    said = cli("enqueue", "short", "2")
    assert said.code == 1
    assert "is full" in said.err
    ok("queue", "alter", "short", "--max-depth", "0")
    ok("enqueue", "short", "2")
    assert cli("queue", "alter", "short", "--max-depth", "-1").code == 2
    assert cli("queue", "alter", "short", "--overflow", "drop_oldest").code == 1
