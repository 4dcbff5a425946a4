"""What a second review of the engine found: each test lost before the commit that mended it."""

from __future__ import annotations

import re
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from support import measure, race, wait
from support.race import (
    Background,
    Connect,
    ack,
    advisory_locks,
    drain,
    expire,
    fill,
    lease,
    maintain,
    number,
    put,
    rotate,
    sweep,
    take,
    take_rows,
    value,
)
from support.server import Server

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


def registers(conn: psycopg.Connection) -> int:
    """How many registers there are, those of dropped queues too."""
    return int(
        value(
            conn,
            "select count(*) from pg_class where relname ~ '^register_[0-9]+$'"
            " and relnamespace = 'mq'::regnamespace",
        )
    )


def dropped_registers(conn: psycopg.Connection) -> list[str]:
    return [
        row[0]
        for row in conn.execute(
            "select c.relname from pg_class as c join pg_description as d on d.objoid = c.oid"
            " where c.relnamespace = 'mq'::regnamespace and d.description ~ '^dropped ' order by c.oid"
        ).fetchall()
    ]


def bury_registers(conn: psycopg.Connection) -> None:
    """What was dropped, was dropped two days ago."""
    then = value(conn, "select extract(epoch from now() - interval '2 days')::numeric::text")
    for name in dropped_registers(conn):
        conn.execute(f"comment on sequence mq.{name} is 'dropped {then}'")


def said(result: Future[Any]) -> str:
    """What a call ended with: "" or its SQLSTATE."""
    try:
        result.result(30)
    except psycopg.Error as error:
        return str(error.sqlstate)
    return ""


# -- big messages: 64 MB are taken back at a time ----------------------------------------------------

BIG = 3
LENGTH = 34_000_000


def lease_big(conn: psycopg.Connection) -> str:
    """One lease of three messages of 34 MB, as much on disk."""
    for table in (f"log_{number(conn)}_1", f"deferred_{number(conn)}_0"):
        conn.execute(f"alter table mq.{table} alter payload set storage external")
    for _ in range(BIG):
        conn.execute("select mq.enqueue('q', to_jsonb(repeat('x', %s)))", (LENGTH - 2,))
    row = conn.execute("select count(*), max(receipt) from mq.dequeue('q', 3)").fetchone()
    assert row is not None
    assert row[0] == BIG
    return str(row[1])


def take_big(conn: psycopg.Connection) -> list[tuple[int, int, int]]:
    """msg_id, attempt, length of all that is there; acknowledged."""
    got = []
    while rows := conn.execute(
        "select msg_id, attempt, octet_length(payload::text), receipt from mq.dequeue('q')"
    ).fetchall():
        got += [(row[0], row[1], row[2]) for row in rows]
        assert ack(conn, rows[0][3]) == len(rows)
    return sorted(got)


ALL_BIG = [(i, 2, LENGTH) for i in range(1, BIG + 1)]


@pytest.mark.slow
def test_a_lease_of_big_messages_is_swept_in_parts(conn: psycopg.Connection) -> None:
    receipt = lease_big(conn)
    expire(conn)
    swept = []
    while taken := sweep(conn):
        swept.append(taken)
        # Lost as a whole, though a part of it was not taken back yet.
        assert ack(conn, receipt) == 0
        assert value(conn, "select mq.extend('q', %s)", receipt) is None
        with pytest.raises(psycopg.DatabaseError, match="lost"):
            conn.execute("select mq.ack('q', %s, strict => true)", (receipt,))
    assert swept == [2, 1]
    assert take_big(conn) == ALL_BIG


@pytest.mark.slow
def test_a_lease_of_big_messages_is_given_back_at_once(conn: psycopg.Connection) -> None:
    receipt = lease_big(conn)
    assert value(conn, "select mq.nack('q', %s, delay => '0')", receipt) == BIG
    assert value(conn, "select mq.nack('q', %s)", receipt) == 0
    assert ack(conn, receipt) == 0
    assert take_big(conn) == ALL_BIG


@pytest.mark.parametrize("n", [1, 2])
def test_a_lost_ack_takes_no_message(conn: psycopg.Connection, n: int) -> None:
    fill(conn, 20)
    receipt = lease(conn, n)
    expire(conn)
    assert sweep(conn) == n
    for _ in range(5):
        with pytest.raises(psycopg.DatabaseError, match="lost"):
            take(conn, n, ack=receipt)
    got = [payload for _ in range(20 // n - 1) for payload in take(conn, n)]
    assert got == list(range(n + 1, 21))


@pytest.mark.parametrize("rest", ["a", "0.750.a", "0.750." + "a" * 40])
def test_a_receipt_that_looks_like_one_is_malformed(conn: psycopg.Connection, rest: str) -> None:
    fill(conn, 2)
    start = ".".join(lease(conn).split(".")[:6])
    with pytest.raises(psycopg.DatabaseError) as error:
        take(conn, ack=f"{start}.{rest}")
    assert error.value.sqlstate == "MQ004"


def test_creating_what_is_there_waits_for_nobody(
    conn: psycopg.Connection, session: Connect
) -> None:
    idle = session()
    idle.execute("select mq.create_queue('new')")
    conn.execute("select mq.create_queue('q', if_not_exists => true)")
    idle.rollback()


# -- empty polls -----------------------------------------------------------------------------------


def make_due(conn: psycopg.Connection, payload: str) -> None:
    """A delayed message is due, and always was."""
    changed = conn.execute(
        f"update mq.deferred_{number(conn)}_0 set due_at = '2001-01-01' where payload = to_jsonb(%s::text)",
        (payload,),
    )
    assert changed.rowcount == 1


@pytest.mark.parametrize(
    "delayed",
    [
        300,
        20_000,
    ],
)
def test_an_empty_poll_keeps_no_promotion(
    conn: psycopg.Connection, session: Connect, delayed: int
) -> None:
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[%s]), delay => '1 hour')",
        (delayed,),
    )
    put(conn, "due", delay="1 hour")
    polling = session()
    for _ in range(50):
        assert take(polling) == []
    assert advisory_locks(polling, conn) == 0
    make_due(conn, "due")
    # Behind many that upkeep has not sorted yet, now and then is looked.
    wait.until(lambda: take(conn) == ["due"], "it to be found")
    polling.commit()


def test_an_empty_poll_keeps_no_sweep(conn: psycopg.Connection, session: Connect) -> None:
    conn.execute("select mq.alter_queue('q', max_attempts => 1)")
    put(conn, "dead")
    lease(conn)
    expire(conn)
    polling = session()
    assert take(polling) == []
    assert value(polling, "select count(*) from mq.dead_letters('q')") == 1  # not committed
    conn.execute("select mq.alter_queue('q', max_attempts => 5)")
    for how in ("dequeue", "sweep_stale", "maintain"):
        put(conn, how)
        assert take(conn) == [how]
        expire(conn)
        if how == "sweep_stale":
            assert sweep(conn) == 1
        elif how == "maintain":
            assert "swept" in maintain(conn)
        rows = take_rows(conn)
        assert [(row[5], row[2]) for row in rows] == [(how, 2)]
        assert ack(conn, rows[0][1]) == 1
    polling.commit()
    assert value(conn, "select count(*) from mq.dead_letters('q')") == 1


def test_a_sweep_that_can_deliver_nothing_is_undone(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    lease(conn)
    expire(conn)
    put(conn, "b")
    opener, polling = session(), session()
    assert take(opener) == ["b"]  # keeps the lane
    assert take(polling) == []
    assert advisory_locks(polling, conn) == 0
    # As if the opener had come just after the look whether the lane is free, a moment too short to meet.
    look = value(conn, "select pg_get_functiondef('mq._is_lane_free'::regproc)")
    conn.execute(
        re.sub(r"\$function\$.*\$function\$", "$$ begin return true; end $$", look, flags=re.DOTALL)
    )
    try:
        assert take(polling) == []
        assert advisory_locks(polling, conn) == 0
        polling.commit()
    finally:
        conn.execute(look)
    assert sweep(conn) == 1
    opener.rollback()
    assert sorted(drain(conn)) == ["a", "b"]


# -- registers of queues that are gone --------------------------------------------------------------


def drop_three(conn: psycopg.Connection) -> None:
    for name in ("x", "y", "z"):
        conn.execute("select mq.create_queue(%s)", (name,))
    for name in ("x", "y", "z"):
        conn.execute("select mq.drop_queue(%s)", (name,))


def test_two_maintain_at_once_remove_old_registers(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    drop_three(conn)
    bury_registers(conn)
    first, second = session(), session(autocommit=True)
    first.execute("select mq.maintain()")
    second.execute("select mq.maintain()")
    waiting = background(second.execute, "select mq.maintain()")
    first.commit()
    assert said(waiting) == ""
    conn.execute("select mq.maintain()")
    assert registers(conn) == 1
    put(conn, "a")
    assert take(conn) == ["a"]


def test_a_register_in_use_keeps_no_other_from_being_removed(
    conn: psycopg.Connection, session: Connect
) -> None:
    drop_three(conn)
    bury_registers(conn)
    reading = session()
    reading.execute(f"select last_value from mq.{dropped_registers(conn)[-2]}")
    conn.execute("select mq.maintain()")
    assert registers(conn) == 2
    reading.rollback()
    conn.execute("select mq.maintain()")
    assert registers(conn) == 1


def test_a_register_goes_a_day_after_its_queue(conn: psycopg.Connection) -> None:
    bury_registers(conn)
    conn.execute("select mq.maintain()")
    assert registers(conn) == 1
    drop_three(conn)
    conn.execute("select mq.maintain()")
    assert registers(conn) == 4
    bury_registers(conn)
    conn.execute("select mq.maintain()")
    assert registers(conn) == 1
    assert put(conn, "a") == 1
    assert take(conn) == ["a"]


def test_upkeep_between_a_restored_schema_and_its_rows_removes_nothing(
    conn: psycopg.Connection,
) -> None:
    """As pg_restore would have it: all objects are there, and no queue yet."""
    put(conn, "a")
    conn.execute("create temporary table kept as select * from mq.queue")
    conn.execute("delete from mq.queue")
    before = registers(conn)
    for _ in range(3):
        conn.execute("select mq.maintain()")
    assert registers(conn) == before
    conn.execute("insert into mq.queue overriding system value select * from kept")
    conn.execute("drop table kept")
    put(conn, "b")
    assert drain(conn) == ["a", "b"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize(
    "call",
    [
        "mq.enqueue('q', '1')",
        "mq.enqueue('q', '1', delay => '1 hour')",
        "mq.enqueue_batch('q', array['1'::jsonb])",
        "mq.ack('q', %(receipt)s)",
        "mq.nack('q', %(receipt)s)",
        "mq.extend('q', %(receipt)s)",
        "mq.listen('q')",
    ],
)
def test_an_old_snapshot_is_told_that_a_queue_is_gone(
    conn: psycopg.Connection, session: Connect, level: str, call: str
) -> None:
    put(conn, "a")
    receipt = lease(conn)
    old = session()
    old.execute(f"set transaction isolation level {level}")
    old.execute("select 1")
    conn.execute("select mq.drop_queue('q')")
    conn.execute("select mq.maintain()")
    with pytest.raises(psycopg.errors.DatabaseError) as error:
        old.execute(f"select {call}", {"receipt": receipt})
    assert error.value.sqlstate == "MQ001"


# -- drops -----------------------------------------------------------------------------------------


def drop_that_waits(
    conn: psycopg.Connection, producer: psycopg.Connection, background: Background, session: Connect
) -> tuple[Future[Any], psycopg.Connection]:
    """A drop_queue that waits for a transaction of a producer."""
    put(producer, "a")
    dropping = session(autocommit=True)
    dropped = background(dropping.execute, "select mq.drop_queue('q')")
    wait.until_blocked(conn, wait.backend_pid(dropping), by=wait.backend_pid(producer))
    return dropped, dropping


@pytest.mark.parametrize(
    "call",
    [
        "mq.drop_queue('q')",
        "mq.pause_queue('q')",
        "mq.resume_queue('q')",
        "mq.alter_queue('q', max_attempts => 3)",
        "mq.purge_queue('q')",
        "mq.rotate_segment('q')",
    ],
)
def test_who_waits_for_a_drop_is_told_that_the_queue_is_gone(
    conn: psycopg.Connection, session: Connect, background: Background, call: str
) -> None:
    if "resume" in call:
        conn.execute("select mq.pause_queue('q')")
    producer = session()
    dropped, dropping = drop_that_waits(conn, producer, background, session)
    other = session(autocommit=True)
    result = background(other.execute, f"select {call}")
    wait.until_blocked(conn, wait.backend_pid(other), by=wait.backend_pid(dropping))
    producer.commit()
    assert said(dropped) == ""
    assert said(result) == "MQ001"


def test_upkeep_leaves_a_queue_that_is_being_dropped(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    conn.execute("select mq.create_queue('other')")
    put(conn, "x", "other")
    lease(conn, queue="other")
    expire(conn, "other")
    producer = session()
    dropped, _ = drop_that_waits(conn, producer, background, session)
    assert maintain(conn) == ["busy"]
    done = conn.execute("select queue, action from mq.maintain()").fetchall()
    assert ("q", "busy") in done
    assert ("other", "swept") in done
    producer.rollback()
    assert said(dropped) == ""
    with pytest.raises(psycopg.errors.DatabaseError, match="does not exist"):
        maintain(conn)


def test_one_of_many_drops_at_once_wins(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    sessions = [session(autocommit=True) for _ in range(3)]
    for _ in range(5):
        results = [background(one.execute, "select mq.drop_queue('q')") for one in sessions]
        assert sorted(said(result) for result in results) == ["", "MQ001", "MQ001"]
        conn.execute("select mq.create_queue('q')")


@pytest.mark.parametrize("options", ["", ", if_not_exists => true"])
def test_a_queue_that_is_being_dropped_is_created_anew(
    conn: psycopg.Connection, session: Connect, background: Background, options: str
) -> None:
    put(conn, "old")
    dropping, creating = session(), session(autocommit=True)
    dropping.execute("select mq.drop_queue('q')")
    created = background(creating.execute, f"select mq.create_queue('q'{options})")
    wait.until_blocked(conn, wait.backend_pid(creating), by=wait.backend_pid(dropping))
    dropping.commit()
    assert said(created) == ""
    assert put(conn, "new") == 1
    assert drain(conn) == ["new"]


# -- generated functions ---------------------------------------------------------------------------


def test_regenerate_makes_the_dispatchers_anew(conn: psycopg.Connection) -> None:
    conn.execute(
        "create or replace function mq._append_0(p_queue text, p_payload jsonb, p_headers jsonb)"
        " returns bigint language plpgsql as $$ begin return -1; end $$;"
        "create or replace function mq._take_one_0(p_key bigint, p_ack text, p_vt interval)"
        " returns mq.delivery language plpgsql as $$ begin return null; end $$;"
    )
    assert put(conn, "nowhere") == -1
    conn.execute("select mq._regenerate()")
    assert put(conn, "a") == 1
    put(conn, "b")
    assert take(conn) == ["a"]
    assert take(conn) == ["b"]
    assert (
        value(
            conn,
            "select count(*) from pg_proc where proname in ('_append_0', '_take_one_0')"
            " and position(%s in prosrc) > 0",
            f"mq.log_{number(conn)}_1",
        )
        == 2
    )


# -- leases ----------------------------------------------------------------------------------------


def test_an_expired_lease_behind_thousands_of_live_ones_is_found(conn: psycopg.Connection) -> None:
    for _ in range(70):  # more blocks with live leases than there may be laggards
        put(conn, "x")
        lease(conn, visibility_timeout="1 hour")
    # Blocks of 256 slices, all but the first of which go to one lease each: as many rows as leases of one message.
    for _ in range(24):
        fill(conn, 256)
        assert len(take_rows(conn, 1, visibility_timeout="1 hour")) == 1
        while take_rows(conn, 300, visibility_timeout="1 hour"):
            pass
    rows = value(conn, f"select count(*) from mq.lease_{number(conn)}_1")
    assert rows >= 6000
    put(conn, "late")
    receipt = lease(conn)
    conn.execute(
        f"update mq.lease_{number(conn)}_1 set leased_until = now() - interval '1 ms' where token = %s::bigint",
        (receipt.rpartition(".")[2],),
    )
    polls = (payload for _ in range(100) for payload in take(conn))
    assert next(polls) == "late"


def test_a_receipt_names_the_head_of_a_lease(conn: psycopg.Connection) -> None:
    put(conn, "opener")
    fill(conn, 4)
    first = lease(conn)  # opens a block of slices of one message
    receipt = lease(conn, 3)  # gathers three of them
    parts = receipt.split(".")
    for further in (1, 2, 3):
        for position in (5, 6):  # slice, part
            forged = ".".join(
                [*parts[:position], str(int(parts[position]) + further), *parts[position + 1 :]]
            )
            assert ack(conn, forged) == 0
            assert ack(conn, forged, [2, 3, 4]) == 0
            assert value(conn, "select mq.nack('q', %s)", forged) == 0
            assert value(conn, "select mq.extend('q', %s)", forged) is None
            with pytest.raises(psycopg.errors.DatabaseError) as error:
                conn.execute("select mq.dequeue('q', ack => %s)", (forged,))
            assert error.value.sqlstate == "MQ003"
    assert ack(conn, receipt) == 3
    assert ack(conn, receipt) == 0
    assert ack(conn, first) == 1
    settled = value(conn, "select settled_total from mq.queue_stats('q')")
    assert settled == 4


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_receipt_of_a_transaction_to_come_is_lost(
    conn: psycopg.Connection, session: Connect, level: str
) -> None:
    put(conn, "a")
    parts = lease(conn).split(".")
    parts[7] = "9" * 17
    parts[8] = "1000000000000000000"
    receipt = ".".join(parts)
    old = session()
    old.execute(f"set transaction isolation level {level}")
    for _ in range(2):
        assert value(old, "select mq.ack('q', %s)", receipt) == 0
        assert value(old, "select mq.nack('q', %s)", receipt) == 0
        assert value(old, "select mq.extend('q', %s)", receipt) is None
    assert ack(conn, receipt) == 0


# -- listening -------------------------------------------------------------------------------------


def test_a_registered_listener_that_enqueues_stays_registered(
    conn: psycopg.Connection, session: Connect
) -> None:
    listening, producing = session(autocommit=True), session(autocommit=True)
    listening.execute("select mq.listen('q')")
    put(listening, "by itself")
    assert value(conn, f"select last_value from mq.waiting_{number(conn)}") == 2
    heard: list[object] = []
    listening.add_notify_handler(heard.append)
    listening.execute("select 1")
    heard.clear()
    for _ in range(5):  # each of them, though they follow at once
        put(producing, "by others")
        listening.execute("select 1")
    wait.until(lambda: listening.execute("select 1").rowcount and len(heard) == 5)
    listening.execute("select mq.unlisten('q')")
    put(producing, "for nobody")
    assert value(conn, f"select last_value from mq.waiting_{number(conn)}") == 1


# -- copies ----------------------------------------------------------------------------------------


def test_copy_delivers_whatever_the_replication_role(conn: psycopg.Connection) -> None:
    conn.execute("set session_replication_role = replica")
    with conn.cursor().copy("copy mq.inbox (queue, payload) from stdin") as copy:
        copy.write_row(("q", "1"))
        copy.write_row(("q", "2"))
    with (
        pytest.raises(psycopg.errors.DatabaseError, match="does not exist"),
        conn.cursor().copy("copy mq.inbox (queue, payload) from stdin") as copy,
    ):
        copy.write_row(("no such queue", "1"))
    conn.execute("reset session_replication_role")
    maintain(conn)
    assert drain(conn) == [1, 2]


def test_upkeep_repairs_a_copy_whose_catalogue_has_the_same_oid(conn: psycopg.Connection) -> None:
    put(conn, "a")
    put(conn, "b")
    receipt = lease(conn)
    # A logical copy: rows, and sequences as they were made.
    for sequence in (f"register_{number(conn)}", f"msg_id_{number(conn)}"):
        conn.execute(f"alter sequence mq.{sequence} restart")
    race.in_another_cluster(conn)
    assert maintain(conn) == ["repaired"]
    assert ack(conn, receipt) == 0
    assert put(conn, "c") == 3
    assert drain(conn) == ["a", "b", "c"]
    assert maintain(conn).count("repaired") == 0


# -- what others set, and hold ---------------------------------------------------------------------


def test_defaults_of_the_caller_for_tables_are_ignored(
    server: Server, conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute("create access method other type table handler heap_tableam_handler")
    if server.major >= 15:
        conn.execute("set allow_in_place_tablespaces = on")
        conn.execute("create tablespace elsewhere location ''")
    caller = session(autocommit=True)
    try:
        caller.execute("set default_table_access_method = other")
        if server.major >= 15:
            caller.execute("set default_tablespace = elsewhere")
        caller.execute("select mq.create_queue('new')")
        for name in ("q", "new"):
            for _ in range(3):
                put(caller, "a", name)
                rotate(caller, name)
                maintain(caller, name)
        race.in_another_cluster(conn, "q")
        assert maintain(caller) == ["repaired"]
        assert value(conn, "select count(*) from mq.slot") >= 6
        found = conn.execute(
            "select c.relname from pg_class as c left join pg_am as a on a.oid = c.relam"
            " where c.relnamespace = 'mq'::regnamespace and (c.reltablespace <> 0 or a.amname = 'other')"
        ).fetchall()
        assert found == []
    finally:
        race.fresh(conn.info.dsn)
        conn.execute("drop access method other")
        if server.major >= 15:
            conn.execute("drop tablespace elsewhere")


def test_an_idle_create_queue_keeps_others_for_ten_seconds_at_most(
    conn: psycopg.Connection, session: Connect
) -> None:
    (setting,) = (
        one
        for one in value(
            conn, "select proconfig from pg_proc where oid = to_regproc('mq.create_queue')"
        )
        if one.startswith("lock_timeout")
    )
    assert setting == "lock_timeout=10s"
    idle = session()
    idle.execute("select mq.create_queue('idle')")
    signature = value(
        conn,
        "select oid::regprocedure::text from pg_proc where oid = to_regproc('mq.create_queue')",
    )
    conn.execute(f"alter function {signature} set lock_timeout = '100ms'")  # nobody waits here
    try:
        with pytest.raises(psycopg.errors.LockNotAvailable):
            conn.execute("select mq.create_queue('new')")
    finally:
        conn.execute(f"alter function {signature} set lock_timeout = '10s'")
    idle.commit()
    conn.execute("select mq.create_queue('new')")


def test_an_idle_create_queue_keeps_nobody_from_rotating(
    conn: psycopg.Connection, session: Connect
) -> None:
    idle, rotating = session(), session(autocommit=True)
    put(conn, "a")
    idle.execute("select mq.create_queue('idle')")
    rotating.execute("set statement_timeout = '3s'")
    rotate(rotating)
    assert race.segments(conn) == 2
    put(rotating, "b")
    done = {action for _ in range(3) for action in maintain(rotating)}
    assert "sealed" in done
    idle.commit()
    assert drain(conn) == ["a", "b"]


# -- upkeep ----------------------------------------------------------------------------------------


def test_marks_look_for_a_newer_block_with_the_lane_locked(conn: psycopg.Connection) -> None:
    # Nobody can be stopped between a snapshot and a lock that is only tried, so this looks at the statements.
    receipts = []
    for _ in range(6):
        put(conn, "x")
        receipts.append(lease(conn))
    for receipt in receipts:
        assert ack(conn, receipt) == 1
    block = f"mq.block_{number(conn)}_1"
    before = value(conn, f"select max(block_no) from {block}")
    try:
        statements = [statement for statement, _ in measure.plans(conn, lambda: maintain(conn))]
    except psycopg.errors.UndefinedFile:
        pytest.skip("this server has no auto_explain")
    assert value(conn, f"select max(block_no) from {block}") == before + 1
    looks = [one for one in statements if "exists" in one and "x.block_no > b.block_no" in one]
    assert looks
    assert not any("pg_try_advisory" in look for look in looks), "a snapshot older than the lock"


def test_the_head_does_not_pass_a_segment_that_upkeep_found_used_up_in_vain(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "x")
    assert drain(conn) == ["x"]
    rotate(conn)
    upkeep = session()
    assert {"sealed", "exhausted"} <= set(maintain(upkeep))
    upkeep.rollback()
    # A producer that read the register before the rotation: no fence is up.
    conn.execute(
        f"insert into mq.log_{number(conn)}_1 (msg_id, payload) select nextval(msg_ids), '\"late\"' from mq.queue"
    )
    put(conn, "new")
    assert drain(conn, 1) == ["late", "new"]
    wait.until(lambda: race.segments(conn) == 1 or (maintain(conn) and None))


@pytest.mark.parametrize(
    "broken",
    [
        "_sweep_{q}_1",
        "_promote_{q}_0",
        "_is_settled_{q}_1",
        "_mark_{q}_2",
    ],
)
def test_a_broken_queue_does_not_stop_the_upkeep_of_the_others(
    conn: psycopg.Connection, broken: str
) -> None:
    # The broken one comes first: its number is lower.
    conn.execute("select mq.create_queue('other')")
    for name in ("q", "other"):
        put(conn, "x", name)
        assert drain_of(conn, name) == ["x"]
        rotate(conn, name)
    for name in ("q", "other"):
        put(conn, "y", name)
        lease(conn, queue=name)
        expire(conn, name)
    conn.execute(f"drop function mq.{broken.format(q=number(conn))}")
    done = [
        row
        for _ in range(3)
        for row in conn.execute("select queue, action, detail from mq.maintain()").fetchall()
    ]
    failed = [detail for name, action, detail in done if (name, action) == ("q", "failed")]
    assert failed
    assert all(broken.format(q=number(conn)) in detail for detail in failed)
    assert {"swept", "sealed", "exhausted", "drained", "dropped"} <= {
        action for name, action, _ in done if name == "other"
    }
    with pytest.raises(psycopg.errors.UndefinedFunction):
        conn.execute("select mq.maintain('q') from generate_series(1, 3)")


def drain_of(conn: psycopg.Connection, queue: str) -> list[Any]:
    rows = take_rows(conn, 100, queue)
    value(conn, "select mq.ack(%s, %s)", queue, rows[0][1])
    return [row[5] for row in rows]
