"""What an adversarial review found about registers that are ahead of the catalogue, and about copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from support import race, wait
from support.race import (
    Background,
    Connect,
    ack,
    expire,
    fill,
    from_elsewhere,
    in_another_cluster,
    lease,
    maintain,
    number,
    outlive,
    put,
    rotate,
    sweep,
    take,
    take_rows,
    unsettled,
    value,
)
from support.server import Server
from support.server import database as server_database

pytestmark = pytest.mark.matrix
database, session = race.database, race.session


@pytest.fixture(autouse=True)
def queue(database: str) -> str:
    # A test that failed may leave it broken.
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("update mq.queue set home = mq._home()")
    race.fresh(database, "q")
    return "q"


def rotation_rolled_back(connect: Connect) -> None:
    with connect(autocommit=False) as failing:
        rotate(failing)
        failing.rollback()


def make_due(conn: psycopg.Connection) -> None:
    """What is deferred is due; none of it may have a timer yet."""
    queue_id = number(conn)
    for generation in (0, 1):
        assert value(conn, f"select count(*) from mq.timer_{queue_id}_{generation}") == 0
        conn.execute(
            f"update mq.deferred_{queue_id}_{generation} set due_at = now() - interval '1 hour'"
        )


def drain(conn: psycopg.Connection, n: int = 100) -> list[int]:
    """Takes and acknowledges all that plain dequeues give; the ids."""
    got = []
    while rows := conn.execute("select msg_id, receipt from mq.dequeue('q', %s)", (n,)).fetchall():
        got += [row[0] for row in rows]
        assert ack(conn, rows[0][1]) == len(rows)
    return got


# -- a rotation that was rolled back ----------------------------------------------------------------


def test_leases_run_out_in_a_segment_whose_rotation_was_rolled_back(
    conn: psycopg.Connection, connect: Connect
) -> None:
    rotation_rolled_back(connect)
    fill(conn, 3)
    assert unsettled(conn) == (3, 0, 0)
    lease(conn, 2)
    assert unsettled(conn) == (1, 0, 2)
    expire(conn)
    assert sweep(conn) == 2
    assert unsettled(conn) == (3, 0, 0)
    assert sorted(drain(conn)) == [1, 2, 3]


def test_an_empty_poll_sweeps_a_segment_whose_rotation_was_rolled_back(
    conn: psycopg.Connection, connect: Connect
) -> None:
    rotation_rolled_back(connect)
    put(conn, "a")
    lease(conn)
    expire(conn)
    assert take(conn) == ["a"]


def test_upkeep_mends_a_rotation_that_was_rolled_back(
    conn: psycopg.Connection, connect: Connect
) -> None:
    put(conn, "before")
    before = lease(conn)
    rotation_rolled_back(connect)
    fill(conn, 3)
    receipt = lease(conn, 2)
    counted = unsettled(conn)
    assert counted == (1, 0, 3)
    maintain(conn)
    assert value(
        conn,
        "select s.slot = pg_sequence_last_value(q.register) & 65535"
        " from mq.segment as s join mq.queue as q using (queue_id) where s.closed_at is null",
    )
    assert unsettled(conn) == counted
    assert ack(conn, receipt) == 2
    assert ack(conn, before) == 1
    assert drain(conn) == [4]
    wait.until(lambda: race.segments(conn) == 1 or (maintain(conn) and None))


@pytest.mark.parametrize("first", ["maintain", "dequeue", "queue_stats"])
def test_a_repair_keeps_what_a_rotation_that_was_rolled_back_received(
    conn: psycopg.Connection, connect: Connect, first: str
) -> None:
    put(conn, "before")
    lease(conn)
    rotation_rolled_back(connect)
    fill(conn, 10)
    assert ack(conn, lease(conn, 2)) == 2
    lease(conn, 3)
    put(conn, "deferred", delay="1 hour")
    from_elsewhere(conn)
    if first == "maintain":
        assert maintain(conn) == ["prepared"]  # no slot is free
    conn.execute(f"select * from mq.{first}('q')")  # of what it appends it sees nothing itself
    assert sorted(drain(conn)) == [1, *range(4, 12)]
    assert unsettled(conn) == (0, 1, 0)


# -- repairs ----------------------------------------------------------------------------------------


def test_a_repair_of_a_big_backlog_loses_nothing(conn: psycopg.Connection) -> None:
    kilobyte = "jsonb_build_object('i', i, 'x', repeat('x', 1000))"

    def enqueue(count: int, delay: str | None = None) -> set[int]:
        row = conn.execute(
            "select array_agg(m) from mq.enqueue_batch('q',"
            f" (select array_agg({kilobyte}) from generate_series(1, %s) as i), delay => %s::interval) as m",
            (count, delay),
        ).fetchone()
        assert row is not None
        return set(row[0])

    def leased(n: int) -> str:
        return str(value(conn, "select max(receipt) from mq.dequeue('q', %s)", n))

    survivors = enqueue(100)
    surviving = leased(100)
    outlive(conn)
    older = enqueue(10_000) | enqueue(10_000)
    acked = leased(1000)
    assert ack(conn, acked) == 1000
    held = leased(2000)
    rotate(conn)
    newer = enqueue(10_000) | enqueue(10_000)
    again = leased(500)
    assert value(conn, "select mq.nack('q', %s, delay => '1 hour')", again) == 500
    deferred = enqueue(5000, "1 hour") | enqueue(5000, "2 hours")
    everything = survivors | older | newer | deferred
    assert len(everything) == 50_100
    assert sum(unsettled(conn)) == 49_100
    from_elsewhere(conn)
    assert unsettled(conn) == (38_600, 10_500, 0)
    for void in (surviving, held, again, acked):
        assert ack(conn, void) == 0
    got = drain(conn, 10_000)
    assert len(got) == len(set(got)) == 38_600
    make_due_with_timers(conn)
    got += drain(conn, 10_000)
    assert len(got) == len(set(got)) == 49_100
    assert set(got) < everything
    assert unsettled(conn) == (0, 0, 0)
    assert put(conn, "next") > max(everything)
    assert take(conn) == ["next"]


def make_due_with_timers(conn: psycopg.Connection) -> None:
    """What is deferred is due; the promoter's cursor has not moved yet."""
    queue_id = number(conn)
    conn.execute(
        f"update mq.timer_{queue_id}_0 set due_at = due_at - interval '1 day';"
        f"update mq.deferred_{queue_id}_0 set due_at = due_at - interval '1 day'"
    )


# One value has room for a gigabyte, and each of these takes 30 MB where it is not compressed.
@pytest.mark.parametrize("delay", [None, "1 hour"])
def test_a_repair_does_not_gather_a_backlog_in_one_value(
    conn: psycopg.Connection, delay: str | None
) -> None:
    conn.execute(
        "select mq.enqueue('q', to_jsonb(repeat('x', 30000000)), delay => %s::interval)", (delay,)
    )
    queue_id = number(conn)
    table, due = (
        (f"log_{queue_id}_1", "") if delay is None else (f"deferred_{queue_id}_0", ", due_at")
    )
    conn.execute(
        f"insert into mq.{table} (msg_id, payload{due}) select nextval(q.msg_ids), l.payload{due}"
        f" from mq.{table} as l, mq.queue as q, generate_series(1, 39)"
    )
    from_elsewhere(conn)
    conn.execute("select * from mq.maintain('q')")
    make_due(conn)
    assert sorted(drain(conn, 50)) == list(range(1, 41))


# -- logical copies ---------------------------------------------------------------------------------


@pytest.fixture
def replica(server: Server, database: str) -> Iterator[psycopg.Connection]:
    """The schema in another database; no rows, and sequences at their start."""
    if not (server.installation.bin / "pg_dump").exists():
        pytest.skip("this server has no pg_dump")
    with (
        server_database(server, "races_review_replica") as target,
        psycopg.connect(target, autocommit=True) as conn,
    ):
        yield conn


def copy_schema(server: Server, database: str, replica: psycopg.Connection) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    dump = server.run("pg_dump", "--schema-only", "--dbname", str(name)).stdout
    statements = [line for line in dump.splitlines() if not line.startswith("\\")]
    replica.execute("\n".join(statements).encode())
    replica.execute("reset all")


def copy_rows(conn: psycopg.Connection, replica: psycopg.Connection, order: str) -> None:
    """As the worker of a subscription does it: triggers fire that are enabled ALWAYS."""
    tables = conn.execute(
        "select relname from pg_class where relnamespace = 'mq'::regnamespace and relkind = 'r'"
        f" and relpersistence = 'p' order by relname = 'queue' {order}, relname"
    ).fetchall()
    replica.execute("set session_replication_role = replica")
    for (table,) in tables:
        identifier = sql.Identifier("mq", table)
        replica.execute(sql.SQL("truncate {}").format(identifier))
        with (
            conn.cursor().copy(sql.SQL("copy {} to stdout").format(identifier)) as source,
            replica.cursor().copy(sql.SQL("copy {} from stdin").format(identifier)) as sink,
        ):
            for data in source:
                sink.write(data)
    replica.execute("reset session_replication_role")


@pytest.mark.parametrize("queue_comes", ["first", "last"])
def test_a_logical_copy_is_delivered_once(
    server: Server,
    conn: psycopg.Connection,
    database: str,
    replica: psycopg.Connection,
    queue_comes: str,
) -> None:
    put(conn, "long lease")
    lease(conn)
    outlive(conn)
    fill(conn, 10)
    assert ack(conn, lease(conn)) == 1
    old = lease(conn, 2)
    rotate(conn)
    assert "sealed" in maintain(conn)  # a fenced log that holds messages
    fill(conn, 5)
    lease(conn, 7)
    put(conn, "deferred", delay="1 hour")
    conn.execute("select mq.enqueue('q', '\"urgent\"', priority => 9)")
    copy_schema(server, database, replica)
    copy_rows(conn, replica, "desc" if queue_comes == "first" else "asc")
    last = value(conn, "select enqueued_total from mq.queue_stats('q')")
    assert sum(unsettled(conn)) == 1 + 9 + 5 + 1 + 1

    assert unsettled(replica) == (16, 1, 0)
    assert ack(replica, old) == 0
    assert ack(replica, lease(replica)) == 1
    rows = take_rows(replica, 100)
    assert sorted(str(row[5]) for row in rows) == sorted(
        ["long lease", *map(str, range(2, 11)), *map(str, range(1, 6))]
    )
    assert ack(replica, rows[0][1]) == 15
    make_due_with_timers(replica)
    assert take(replica) == ["deferred"]
    assert take(replica) == []
    assert put(replica, "next") > last
    assert take(replica) == ["next"]
    rotate(replica)
    maintain(replica)
    assert ack(conn, old) == 2  # the original goes on


# -- a copy in another cluster, where mq.queue has the same oid -------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "select mq.enqueue('q', '1')",
        "select mq.enqueue_batch('q', array['1'::jsonb])",
        "copy mq.inbox (queue, payload) from stdin",
        "select mq.dequeue('q')",
        "select mq.ack('q', {receipt})",
        "select mq.nack('q', {receipt})",
        "select mq.extend('q', {receipt})",
        "select mq.dequeue('q', ack => {receipt})",
        "select mq.redrive('q')",
        "select mq.purge_queue('q')",
        "select mq.rotate_segment('q')",
    ],
)
def test_whatever_is_called_first_notices(
    conn: psycopg.Connection, connect: Connect, call: str
) -> None:
    # Transaction ids of here would fall between those that are stored: what is enqueued would be in the middle of a slice.
    fill(conn, 3)
    receipt = lease(conn)
    in_another_cluster(conn)
    with connect() as caller, contextlib.suppress(psycopg.DatabaseError):
        if call.startswith("copy"):
            with caller.cursor().copy(call) as copy:
                copy.write("q\t1\n")
        else:
            caller.execute(call.format(receipt=sql.Literal(receipt).as_string()))
    if "ack => " in call or "dequeue('q')" in call or "extend" in call:
        conn.execute("select mq.enqueue('q', '4')")  # what failed, or gave nothing, was undone
    assert value(conn, "select home = mq._home() from mq.queue")


def test_a_session_that_is_at_home_notices_too(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    assert take(conn) == [1]
    in_another_cluster(conn)
    put(conn, "new")
    assert value(conn, "select home = mq._home() from mq.queue")
    assert sorted(map(str, drain(conn))) == ["1", "2", "3", "4"]


def test_a_session_that_outlives_the_restore_notices_too(conn: psycopg.Connection) -> None:
    # A dump of the same database, restored in place: mq.queue has another oid, and the queues say the old one.
    fill(conn, 3)
    receipt = lease(conn)
    conn.execute("alter table mq.queue rename to was")
    conn.execute("create table mq.queue (like mq.was including all)")
    try:
        conn.execute("insert into mq.queue overriding system value select * from mq.was")
        # The dump brings the functions again that take a row of it.
        for (definition,) in conn.execute(
            "select pg_get_functiondef(oid) from pg_proc "
            "where 'mq.was'::regtype::oid = any (proargtypes::oid[])"
        ).fetchall():
            conn.execute(definition.replace("mq.was", "mq.queue"))
        assert ack(conn, receipt) == 0
        assert value(conn, "select home = mq._home() from mq.queue")
        assert sorted(map(str, drain(conn))) == ["1", "2", "3"]
    finally:
        conn.execute("drop table mq.queue cascade")
        conn.execute("alter table mq.was rename to queue")


def test_what_was_taken_stays_so_though_its_transaction_ids_are_those_of_who_repairs(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[20]), delay => '1 microsecond')"
    )
    assert len(drain(conn)) == 20
    in_another_cluster(conn)
    caller = session()
    queue_id = number(conn)
    for change in ("deferred_{}_{} set xid", "timer_{}_{} set xid", "promotion_{}_{} set due_xid"):
        for generation in (0, 1):
            caller.execute(
                f"update mq.{change.format(queue_id, generation)} = pg_current_xact_id()"
            )
    put(caller, "new")
    caller.commit()
    assert take(conn, 100) == ["new"]
    maintain(conn)
    assert take(conn, 100) == []


def test_repairs_that_were_rolled_back_hide_nothing(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    in_another_cluster(conn)
    put(conn, "first")
    in_another_cluster(conn)
    failing = session()
    put(failing, "never")
    failing.rollback()
    conn.execute("update mq.queue set home = mq._home()")  # so that nothing is repaired now
    assert take(conn, 10) == [1, 2, 3, "first"]


def test_an_idle_slot_with_messages_is_not_dropped(conn: psycopg.Connection) -> None:
    queue_id = number(conn)
    for _ in range(2):
        rotate(conn)
        maintain(conn)
    conn.execute("update mq.slot set freed_at = '2000-01-01'")
    free = value(
        conn,
        "select max(slot) from mq.slot as s where not exists (select from mq.segment as g where g.slot = s.slot)",
    )
    log = f"mq.log_{queue_id}_{free}"
    conn.execute(f"alter table {log} disable trigger sealed")
    conn.execute(f"insert into {log} (msg_id, payload) values (1, '1')")
    conn.execute(f"alter table {log} enable always trigger sealed")
    for _ in range(3):
        maintain(conn)
    assert value(conn, "select count(*) from mq.slot where slot = %s", free) == 1


def test_a_copy_that_cannot_be_repaired_can_be_dropped(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    from_elsewhere(conn)
    conn.execute(f"drop table mq.timer_{number(conn)}_1")
    with pytest.raises(psycopg.DatabaseError):
        put(conn, "new")
    conn.execute("select mq.drop_queue('q')")
    assert value(conn, "select count(*) from mq.queue") == 0


def test_who_waits_is_told_of_a_repair(conn: psycopg.Connection, connect: Connect) -> None:
    fill(conn, 1)
    lease(conn)
    waiting = connect()
    waiting.execute("select mq.listen('q')")
    from_elsewhere(conn)
    assert maintain(conn) == ["repaired"]
    assert len(list(waiting.notifies(timeout=wait.SECONDS, stop_after=1))) == 1


def test_ids_of_promotions_that_ran_backwards_are_noticed(conn: psycopg.Connection) -> None:
    put(conn, "due", delay="1 microsecond")
    assert len(drain(conn)) == 1
    put(conn, "later", delay="1 hour")
    assert conn.execute(
        f"update mq.promotion_{number(conn)}_0 set prev = '4000000000:4000000000:'"
    ).rowcount
    assert maintain(conn) == ["repaired"]
    assert unsettled(conn) == (0, 1, 0)


def test_who_creates_a_queue_does_not_wait_for_a_repair_that_waits_for_it(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 3)
    conn.execute("select mq._drop_slot(%s, mq._empty_slot(%s))", [number(conn)] * 2)  # none is free
    from_elsewhere(conn)
    creating, producer = session(), session(autocommit=True)
    creating.execute("select mq._lock_generated('test')")
    creating.execute("set local statement_timeout = '2s'")
    called = background(put, producer, "new")
    wait.until(lambda: race.advisory_locks(producer, conn), "the repair")
    with pytest.raises(psycopg.DatabaseError) as error:
        creating.execute("select mq.create_queue('q')")
    assert error.value.sqlstate == "MQ002"
    creating.rollback()
    assert called.result(wait.SECONDS) > 0
    assert drain(conn) == [1, 2, 3, 4]
