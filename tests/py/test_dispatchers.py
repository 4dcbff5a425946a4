"""What _append_0 knows of a queue stands nowhere else on the way of a message, so it must never be out of date."""

from __future__ import annotations

import psycopg
import pytest

from mqctl import migrate
from support import attack, race, wait
from support.race import (
    Background,
    Connect,
    advisory_locks,
    drain,
    in_another_cluster,
    maintain,
    number,
    put,
    rotate,
    rows_from_elsewhere,
    take,
    value,
)
from support.server import Server
from support.server import database as temporary_database

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


def goes_the_short_way(conn: psycopg.Connection, queue: str = "q") -> bool:
    """Whether _append_0 knows what to do with a message: a 1. The session knows where it is."""
    conn.execute("select set_config('mq.system', split_part(mq._home(), '.', 2), false)")
    return value(conn, "select mq._append_0(%s, '1', null)", queue) is not None


def tells_of(conn: psycopg.Connection, messages: int) -> int:
    """How many notifications come of so many messages, one after the other."""
    conn.execute("listen mq_q")
    for _ in range(messages):
        put(conn, "x")
    told = len([*conn.notifies(timeout=0.2, stop_after=messages)])
    conn.execute("unlisten *")
    return told


def test_how_it_notifies_holds_from_the_next_call_on(conn: psycopg.Connection) -> None:
    for notify, expected in (("always", 3), ("never", 0), ("always", 3)):
        conn.execute("select mq.alter_queue('q', notify => %s)", (notify,))
        assert goes_the_short_way(conn)
        assert tells_of(conn, 3) == expected
    with conn.transaction(force_rollback=True):
        conn.execute("select mq.alter_queue('q', notify => 'never')")
    assert tells_of(conn, 3) == 3


ALTER = "select mq.alter_queue('q', notify => '{}')"


@pytest.mark.parametrize(
    ("was", "first", "second"),
    [
        # It would make _append_0 from the row as it was before, if it did not wait.
        ("auto", ALTER.format("always"), "select mq.create_queue('other')"),
        # It changes nothing that it could see.
        ("always", ALTER.format("never"), ALTER.format("always")),
    ],
)
def test_of_two_who_make_it_the_later_one_sees_what_the_first_one_changed(
    conn: psycopg.Connection,
    session: Connect,
    background: Background,
    was: str,
    first: str,
    second: str,
) -> None:
    changing, waiting = session(), session(autocommit=True)
    conn.execute(ALTER.format(was))
    changing.execute(first)
    made = background(waiting.execute, second)
    wait.until_blocked(conn, wait.backend_pid(waiting), by=wait.backend_pid(changing))
    changing.commit()
    made.result(wait.SECONDS)
    assert tells_of(conn, 3) == 3


def test_two_who_change_different_settings_keep_both(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    changing, waiting = session(), session(autocommit=True)
    changing.execute("select mq.alter_queue('q', max_attempts => 7)")
    second = background(waiting.execute, "select mq.alter_queue('q', retry_jitter => 0.25)")
    wait.until_blocked(conn, wait.backend_pid(waiting), by=wait.backend_pid(changing))
    changing.commit()
    second.result(wait.SECONDS)
    row = "select (max_attempts, retry_jitter::text)::text from mq.queue where name = 'q'"
    assert value(conn, row) == "(7,0.25)"


def test_upkeep_leads_copies_that_were_repaired_the_short_way_again(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute("select mq.create_queue('q.2')")
    in_another_cluster(conn)
    repairing = session()
    put(repairing, "repairs")
    conn.execute("select mq.create_queue('other')")  # nobody has to wait for who repairs
    repairing.commit()
    in_another_cluster(conn, "q", "q.2")
    for queue in ("q", "q.2"):
        put(conn, "repairs", queue)
    assert not goes_the_short_way(conn)
    conn.execute("select * from mq.maintain()")
    # Not in the same call: the register is not undone by a rollback.
    assert not goes_the_short_way(conn)
    conn.execute("select * from mq.maintain()")
    assert goes_the_short_way(conn)
    assert goes_the_short_way(conn, "q.2")
    before = made(conn)
    conn.execute("select * from mq.maintain()")
    assert made(conn) == before


def test_a_new_queue_needs_no_upkeep(conn: psycopg.Connection) -> None:
    assert goes_the_short_way(conn)
    assert conn.execute("select * from mq.maintain()").fetchall() == []


def made(conn: psycopg.Connection) -> object:
    """Who made _append_0."""
    return value(conn, "select xmin from pg_proc where proname = '_append_0'")


def test_a_copy_of_the_rows_alone_is_noticed(conn: psycopg.Connection) -> None:
    put(conn, "there before")
    rows_from_elsewhere(conn)
    assert not goes_the_short_way(conn)
    put(conn, "repairs")
    assert value(conn, "select home = mq._home() from mq.queue")
    assert take(conn, 10) == ["there before", "repairs"]


@pytest.mark.parametrize("undo", ["rollback", "rollback to savepoint a"])
def test_a_repair_that_was_rolled_back_hides_no_copy(
    conn: psycopg.Connection, session: Connect, undo: str
) -> None:
    rows_from_elsewhere(conn)
    repairing = session()
    repairing.execute("savepoint a")
    put(repairing, "never")
    repairing.execute(undo)
    repairing.commit()
    assert not goes_the_short_way(conn)
    put(conn, "repairs")
    assert take(conn, 10) == ["repairs"]


def test_registers_without_the_home_are_mended(conn: psycopg.Connection) -> None:
    assert put(conn, "x")
    conn.execute("select setval(register, pg_sequence_last_value(register) & 65537) from mq.queue")
    assert not goes_the_short_way(conn)
    maintain(conn)
    assert goes_the_short_way(conn)


def test_a_row_that_is_being_brought_is_not_trusted(
    conn: psycopg.Connection, session: Connect
) -> None:
    bringing = session()
    value(bringing, "select 1")
    rows_from_elsewhere(bringing)
    assert not goes_the_short_way(conn)
    assert "repaired" not in maintain(conn)
    bringing.commit()
    assert not goes_the_short_way(conn)
    put(conn, "repairs")
    assert take(conn, 10) == ["repairs"]


def test_data_that_goes_back_is_noticed(conn: psycopg.Connection, session: Connect) -> None:
    """Home again, what enqueue knows is right, and the register comes last: it must not say that all is."""
    in_another_cluster(conn)
    put(conn, "repairs")  # nor did upkeep run there
    back = session(autocommit=True)
    back.execute("set mq.system = '1'")  # this is where it came from
    assert value(back, "select mq._append_0('q', '1', null)") is None
    assert take(conn, 10) == ["repairs"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_what_enqueue_knows_of_other_queues_is_not_used(
    conn: psycopg.Connection, session: Connect, end: str
) -> None:
    """Rows of elsewhere, in which two queues have each other's names; they were here once, and say so."""
    conn.execute("select mq.create_queue('q.2')")
    with conn.transaction():
        conn.execute("set local session_replication_role = replica")
        conn.execute("update mq.queue set home = '1.1', name = '-' || name")
        conn.execute("update mq.queue set name = case name when '-q' then 'q.2' else 'q' end")
    expected: list[int] = []

    def put_both() -> None:
        expected.append(len(expected))
        for queue in ("q", "q.2"):
            put(conn, f"{queue} {expected[-1]}", queue)

    put_both()
    maintaining = session()
    maintaining.execute("select * from mq.maintain()")
    conn.execute("set lock_timeout = '5s'")  # it takes a fence away
    assert not goes_the_short_way(conn)
    getattr(maintaining, end)()
    assert not goes_the_short_way(conn)
    put_both()
    for _ in range(2):
        conn.execute("select * from mq.maintain()")
        put_both()
    for queue in ("q", "q.2"):
        assert goes_the_short_way(conn, queue)
        assert take(conn, 10, queue)[: len(expected)] == [f"{queue} {i}" for i in expected]


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("go", ["delete from mq.queue where name = 'q'", "truncate mq.queue"])
def test_a_queue_whose_row_is_gone_takes_no_messages(
    conn: psycopg.Connection, go: str, role: str
) -> None:
    put(conn, "x")
    with conn.transaction(force_rollback=True):
        conn.execute(f"set local session_replication_role = {role}")
        conn.execute(go.encode())
        with conn.transaction(force_rollback=True):
            no_such_queue(conn)
        assert not goes_the_short_way(conn)
    put(conn, "y")
    maintain(conn)
    assert goes_the_short_way(conn)
    assert take(conn, 10)[:2] == ["x", "y"]


def test_a_drop_that_was_rolled_back_costs_the_long_way_until_upkeep(
    conn: psycopg.Connection,
) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute("select mq.drop_queue('q')")
    put(conn, "x")
    assert maintain(conn) == ["prepared"]
    assert goes_the_short_way(conn)
    assert take(conn, 10) == ["x", 1]


SWAP = "name = case name when '-q' then 'q.2' else 'q' end"

BY_HAND = {
    "put back from a backup of this very place, in which they had each other's names": f"""
        create temporary table was on commit drop as select * from mq.queue;
        update was set name = '-' || name;
        update was set {SWAP};
        delete from mq.queue;
        insert into mq.queue overriding system value select * from was""",
    "named anew": f"update mq.queue set name = '-' || name; update mq.queue set {SWAP}",
    "named anew, and said to be well": f"""
        update mq.queue set name = '-' || name, append_home = home;
        update mq.queue set {SWAP}, append_home = home""",
    "brought on top of what is there": f"""
        create temporary table was on commit drop as select * from mq.queue;
        update mq.queue set name = '-' || name;
        update was set name = '-' || name;
        update was set {SWAP};
        insert into mq.queue overriding system value select * from was
        on conflict (queue_id) do update set name = excluded.name""",
}


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("change", BY_HAND.values(), ids=BY_HAND)
def test_rows_that_are_changed_by_hand_are_not_trusted(
    conn: psycopg.Connection, change: str, role: str
) -> None:
    conn.execute("select mq.create_queue('q.2')")
    with conn.transaction():
        conn.execute(f"set local session_replication_role = {role}")
        conn.execute(change.encode())
    expected: list[str] = []

    def put_both() -> None:
        expected.append(str(len(expected)))
        for queue in ("q", "q.2"):
            put(conn, expected[-1] + queue, queue)

    put_both()
    assert not goes_the_short_way(conn)
    while "prepared" in {row[1] for row in conn.execute("select * from mq.maintain()")}:
        put_both()
    put_both()
    for queue in ("q", "q.2"):
        assert goes_the_short_way(conn, queue)
        assert take(conn, 10, queue) == [*(i + queue for i in expected), 1]


def test_a_row_that_comes_after_its_register_is_not_trusted(conn: psycopg.Connection) -> None:
    q = number(conn)
    with conn.transaction(force_rollback=True):
        conn.execute("create temporary table was on commit drop as select * from mq.queue")
        conn.execute("delete from mq.queue")
        conn.execute(f"select mq._set_home_bits({q}, mq._home_bits(mq._home()))")
        assert goes_the_short_way(conn)
        conn.execute("insert into mq.queue overriding system value select * from was")
        assert not goes_the_short_way(conn)


def test_a_restore_without_triggers_is_over_with_an_upgrade(conn: psycopg.Connection) -> None:
    """pg_restore --data-only --disable-triggers: no trigger sees the rows, nor is always on afterwards."""
    conn.execute("select mq.create_queue('q.2')")
    with conn.transaction():
        conn.execute("alter table mq.queue disable trigger all")
        conn.execute("update mq.queue set name = '-' || name")
        conn.execute(f"update mq.queue set {SWAP}")
        conn.execute("alter table mq.queue enable trigger all")
    migrate.upgrade(conn, accept_drift=True)
    enabled = "select array_agg(distinct tgenabled::text) from pg_trigger where tgrelid = 'mq.queue'::regclass"
    assert value(conn, enabled) == ["A"]
    for queue in ("q", "q.2"):
        assert goes_the_short_way(conn, queue)
        put(conn, queue, queue)
        assert take(conn, 10, queue) == [1, queue]


def test_a_row_that_is_not_brought_in_the_end_costs_nothing(conn: psycopg.Connection) -> None:
    conn.execute(
        "insert into mq.queue overriding system value select * from mq.queue on conflict do nothing"
    )
    assert goes_the_short_way(conn)


def test_a_row_that_changes_while_upkeep_looks_at_it_is_not_trusted(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    changing, upkeep = session(), session(autocommit=True)
    changing.execute(f"alter sequence mq.register_{number(conn)} no cycle")
    mended = background(value, upkeep, f"select mq._mend_home_bits({number(conn)})")
    wait.until_blocked(conn, wait.backend_pid(upkeep), by=wait.backend_pid(changing))
    changing.execute("update mq.queue set name = 'q.2'")
    changing.commit()
    assert mended.result(wait.SECONDS) is False
    assert not goes_the_short_way(conn, "q")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_old_snapshot_truncates_no_queues(
    conn: psycopg.Connection, session: Connect, level: str
) -> None:
    """It would not see those of since."""
    old = session()
    old.execute(f"set transaction isolation level {level}")
    value(old, "select count(*) from mq.slot")
    conn.execute("select mq.create_queue('younger')")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="READ COMMITTED"):
        old.execute("truncate mq.queue")
    old.rollback()
    value(old, "select count(*) from mq.slot")
    conn.execute("select mq.create_queue('youngest')")
    old.execute("truncate mq.queue")
    for queue in ("q", "younger", "youngest"):
        assert not goes_the_short_way(old, queue)
    old.rollback()


def test_what_was_dropped_stays_so_when_its_row_comes_back(conn: psycopg.Connection) -> None:
    register = f"mq.register_{number(conn)}"
    conn.execute("create temporary table row as select * from mq.queue")
    conn.execute("select mq.drop_queue('q')")
    with conn.transaction(force_rollback=True):
        conn.execute("insert into mq.queue overriding system value select * from row")
        conn.execute("update mq.queue set home = '1.1'")
        conn.execute("delete from mq.queue")
    assert value(conn, "select pg_sequence_last_value(%s)", register) is None


MOVES = {
    "rotate": "select mq.rotate_segment('q')",
    "advance": "select mq._advance_head(queue_id, register) from mq.queue",
    "change over": "select mq._rotate_deferral(queue_id, register) from mq.queue",
}


@pytest.mark.parametrize("first", ["bring", "move"])
@pytest.mark.parametrize("what", MOVES)
def test_who_brings_a_row_and_who_moves_its_register_do_not_undo_each_other(
    conn: psycopg.Connection, session: Connect, background: Background, what: str, first: str
) -> None:
    """Both read it before they write it; who brings a row cannot wait for upkeep, which comes before the row."""
    q = number(conn)
    put(conn, "x", delay="1 microsecond")
    wait.until(lambda: take(conn) == ["x"])
    # As if the clock had been wrong, which makes upkeep change the set.
    conn.execute(f"update mq.promotion_{q}_0 set due_at = '2100-01-01'")
    if what == "advance":
        rotate(conn)
        maintain(conn)
        conn.execute("update mq.segment set exhausted_at = '2000-01-01' where segment = 1")
    key = f"(mq._lock_class(), mq._lock_key({q}, -8))"
    register = f"select pg_sequence_last_value('mq.register_{q}') & 17179869183"
    before = value(conn, register)
    one, other = session(autocommit=True), session(autocommit=True)
    does = {"bring": rows_from_elsewhere, "move": lambda by: by.execute(MOVES[what])}
    second = next(name for name in does if name != first)
    conn.execute(f"select pg_advisory_lock{key}")
    try:
        done = [background(does[first], one)]
        wait.until_blocked(conn, wait.backend_pid(one), by=wait.backend_pid(conn))
        done.append(background(does[second], other))
        wait.until_blocked(conn, wait.backend_pid(other))
    finally:
        conn.execute(f"select pg_advisory_unlock{key}")
    for each in done:
        each.result(wait.SECONDS)
    assert value(conn, register) != before
    assert not goes_the_short_way(conn)
    assert advisory_locks(one, conn) == advisory_locks(other, conn) == 0
    put(conn, "repairs")
    assert sorted(take(conn, 10)) == ["repairs", "x"]


def test_a_register_that_is_written_is_locked_for_that_only(
    conn: psycopg.Connection, session: Connect
) -> None:
    bringing, other = session(), session(autocommit=True)
    value(bringing, "select 1")
    rows_from_elsewhere(bringing)
    free = f"select pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key({number(conn)}, -8))"
    assert value(other, free)
    bringing.rollback()


def test_rows_may_be_brought_by_who_may_not_write_registers(conn: psycopg.Connection) -> None:
    """And with the number that the register has elsewhere, as a binary replication does."""
    with conn.transaction(force_rollback=True):
        conn.execute("create role bringer")
        conn.execute("grant usage on schema mq to bringer")
        conn.execute("grant select, update, delete, truncate on mq.queue to bringer")
        conn.execute("set local role bringer")
        for change in (
            "update mq.queue set home = '1.1', register = 1",
            "delete from mq.queue",
            "truncate mq.queue",
        ):
            with conn.transaction(force_rollback=True):
                conn.execute(change.encode())
                conn.execute("set local role none")
                assert not goes_the_short_way(conn)
            conn.execute("set local role none")
            assert value(conn, "select mq._mend_home_bits(queue_id) from mq.queue")
            assert goes_the_short_way(conn)
            conn.execute("set local role bringer")


def test_a_row_without_a_register_can_be_brought(conn: psycopg.Connection) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute("create temporary table row as select * from mq.queue")
        conn.execute("update row set queue_id = 1000000, name = 'other', home = '1.1'")
        conn.execute("insert into mq.queue overriding system value select * from row")
        conn.execute("delete from mq.queue where name = 'other'")
        assert goes_the_short_way(conn)


@pytest.mark.parametrize("queue_is_named", [True, False])
def test_upkeep_goes_on_where_what_enqueue_knows_cannot_be_made(
    conn: psycopg.Connection, queue_is_named: bool
) -> None:
    """It puts another function in the place of what cannot be replaced, but for what somebody built on that."""
    arguments = "(p_queue text, p_payload jsonb, p_headers jsonb)"
    put(conn, "x")
    rotate(conn)
    drain(conn)
    conn.execute("update mq.queue set append_home = ''")
    conn.execute("drop function mq._append_0")
    conn.execute(f"create function mq._append_0{arguments} returns int language sql as 'select 1'")
    conn.execute("create view public.built as select mq._append_0('', '1', null)")
    try:
        done = conn.execute(
            "select queue, action, detail from mq.maintain(%s)", ("q" if queue_is_named else None,)
        ).fetchall()
        assert done[-1][:2] == (None, "failed")
        assert "depend" in done[-1][2]
        assert "sealed" in {action for _, action, _ in done}
    finally:
        conn.execute("drop view public.built")
    assert value(conn, "select append_home = '' from mq.queue")
    assert maintain(conn)[-1] == "prepared"
    assert value(conn, "select append_home = home from mq.queue")
    assert goes_the_short_way(conn)


def test_upkeep_says_so_while_another_makes_what_enqueue_knows(
    conn: psycopg.Connection, session: Connect
) -> None:
    creating = session()
    creating.execute("select mq.create_queue('other')")
    conn.execute("update mq.queue set name = 'q.2'")
    assert maintain(conn, "q.2") == ["busy"]
    creating.rollback()
    assert [maintain(conn, "q.2") for _ in range(3)] == [["prepared"], ["prepared"], []]
    assert goes_the_short_way(conn, "q.2")


def test_what_moves_a_register_keeps_the_home(conn: psycopg.Connection) -> None:
    q = number(conn)
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[20]), delay => '1 microsecond')"
    )
    seen = set()
    for _ in range(12):
        put(conn, "x")
        rotate(conn)
        assert goes_the_short_way(conn)
        drain(conn)
        # As if the clock had been wrong, which makes upkeep change the set.
        for generation in (0, 1):
            conn.execute(f"update mq.promotion_{q}_{generation} set due_at = '2100-01-01'")
        maintain(conn)
        assert goes_the_short_way(conn)
        seen.add(value(conn, f"select pg_sequence_last_value('mq.register_{q}') & 17179869183"))
    assert len({old & 65535 for old in seen}) > 1
    assert len({old >> 16 & 65535 for old in seen}) > 1
    assert len({old >> 32 for old in seen}) > 1


def test_a_session_that_lives_through_a_restore_in_place_notices(conn: psycopg.Connection) -> None:
    """mq.queue has another oid then; what enqueue knows is not to be what it knew."""
    put(conn, "a")
    assert goes_the_short_way(conn)
    conn.execute("alter table mq.queue rename to was")
    try:
        conn.execute("create table mq.queue (like mq.was including all)")
        conn.execute("insert into mq.queue overriding system value select * from mq.was")
        assert not goes_the_short_way(conn)
    finally:
        conn.execute("drop table mq.queue")
        conn.execute("alter table mq.was rename to queue")


# -- snapshots that are older than the lock -----------------------------------------------------------


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize(
    "call", ["create_queue('other')", "drop_queue('q')", "alter_queue('q', notify => 'never')"]
)
def test_an_old_snapshot_makes_nothing(conn: psycopg.Connection, level: str, call: str) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute(f"set transaction isolation level {level}")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="READ COMMITTED"):
            conn.execute(f"select mq.{call}")


def test_who_repairs_with_an_old_snapshot_leaves_the_rest_to_upkeep(
    conn: psycopg.Connection, session: Connect
) -> None:
    """It needs a slot, for which there are no statements then."""
    slots = f"select count(*) from mq.slot where queue_id = {number(conn)}"
    put(conn, "a")
    rotate(conn)
    conn.execute(
        "select mq._drop_slot(s.queue_id, s.slot) from mq.slot as s where not exists"
        " (select from mq.segment as g where g.queue_id = s.queue_id and g.slot = s.slot)"
    )
    before = value(conn, slots)
    in_another_cluster(conn)
    old = session()
    old.execute("set transaction isolation level repeatable read")
    value(old, "select 1")
    conn.execute("select mq.create_queue('other')")
    assert put(conn, "there before the repair", "other")
    put(old, "repairs")
    old.commit()
    assert value(conn, slots) == before + 1
    assert goes_the_short_way(conn, "other")
    conn.execute("select mq.alter_queue('q', notify => 'never')")  # makes only what enqueue needs
    for _ in range(2):
        maintain(conn)
    assert goes_the_short_way(conn)
    slot = value(
        conn, "select pg_sequence_last_value(register) & 65535 from mq.queue where name = 'q'"
    )
    source = value(conn, "select prosrc from pg_proc where proname = '_take_one_0'")
    assert f"mq.lease_{number(conn)}_{slot} " in source


def test_an_upgrade_waits_for_nobody_who_has_changed_a_queue(
    conn: psycopg.Connection, session: Connect
) -> None:
    """It would take a lock that they hold, or that who makes a queue asks for with the other one in hand."""
    paused = session()
    paused.execute("select mq.pause_queue('q')")
    attack.upgrade(conn)
    put(conn, "x")
    paused.rollback()


# -- where there is no queue --------------------------------------------------------------------------


def no_such_queue(conn: psycopg.Connection, queue: str = "q") -> None:
    with pytest.raises(psycopg.Error) as error:
        put(conn, "x", queue)
    assert error.value.sqlstate == "MQ001"


def test_where_no_queue_ever_was_there_is_none(server: Server) -> None:
    with (
        temporary_database(server, "dispatchers_none") as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        migrate.install(conn)
        no_such_queue(conn)
        conn.execute("drop function mq._append_0")
        conn.execute("create function mq._append_0(bigint) returns int language sql as 'select 1'")
        conn.execute("select mq._regenerate()")
        no_such_queue(conn)


def test_the_last_queue_leaves_nothing_behind(conn: psycopg.Connection) -> None:
    """Not even when upkeep has removed its register, a day later."""
    for _ in range(3):
        put(conn, "x")
    register = f"mq.register_{number(conn)}"
    conn.execute("select mq.drop_queue('q')")
    no_such_queue(conn)
    conn.execute(f"comment on sequence {register} is 'dropped 0'")
    conn.execute("select * from mq.maintain()")
    assert value(conn, "select to_regclass(%s)", register) is None
    no_such_queue(conn)


# -- names and slots ----------------------------------------------------------------------------------


def test_messages_go_where_they_belong_however_names_sort(conn: psycopg.Connection) -> None:
    names = ["a", "B", "A", "b", "a.b", "a-b", "_", "A_", "0", "q.", "-"]
    for name in names:
        conn.execute("select mq.create_queue(%s)", (name,))
    for name in [*names, "q"]:
        put(conn, name, name)
        assert goes_the_short_way(conn, name)
    for name in [*names, "q"]:
        assert take(conn, 10, name) == [name, 1]


def test_a_slot_without_a_branch_is_written_to_all_the_same(conn: psycopg.Connection) -> None:
    """There are 64 branches, and slots may be more."""
    slots = f"delete from mq.slot where queue_id = {number(conn)} returning slot"
    with conn.transaction(force_rollback=True):
        conn.execute("select mq.create_queue('other')")
        conn.execute(slots.encode())
        conn.execute("select mq._create_dispatchers()")
        assert not goes_the_short_way(conn)
        assert put(conn, "x") == 1
        assert value(conn, f"select count(*) from mq.log_{number(conn)}_1") == 1


def test_the_oldest_segments_come_before_spare_slots(conn: psycopg.Connection) -> None:
    """Of many slots a backlog's has its branch, of whatever queue it is."""
    conn.execute("select mq.create_queue('other')")
    put(conn, "x", "other")
    conn.execute("select mq.rotate_segment('other')")
    spare = "insert into mq.slot (queue_id, slot) select %s, i from generate_series(100, 199) as i"
    with conn.transaction(force_rollback=True):
        conn.execute(spare, (number(conn),))
        branches = conn.execute("select queue_id, slot from mq._dispatched()").fetchall()
        live = conn.execute("select queue_id, slot from mq.segment").fetchall()
    assert len(live) == 3
    assert set(live) < set(branches)
    assert len(branches) == 64
