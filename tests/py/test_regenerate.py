"""An upgrade may change the signatures of generated functions: all of them are made anew, and none is left behind."""

from __future__ import annotations

import psycopg
import pytest

from support import race
from support.race import deferred, drain, expire, fill, lease, number, put, sweep

pytestmark = pytest.mark.matrix
database, queue = race.database, race.queue

GENERATED = "proname ~ '^_[a-z_]+_[0-9]+(_[0-9]+)?$' and pronamespace = 'mq'::regnamespace"


def signatures(conn: psycopg.Connection) -> list[str]:
    """What each generated function is: name, arguments, result."""
    return [
        row[0]
        for row in conn.execute(
            "select concat_ws(' ', proname, pg_get_function_arguments(oid), pg_get_function_result(oid), proacl)"
            f" from pg_proc where {GENERATED} order by proname"
        ).fetchall()
    ]


def oids(conn: psycopg.Connection) -> dict[str, int]:
    return dict(
        conn.execute(f"select proname, oid from pg_proc where {GENERATED}").fetchall(),
    )


def change(conn: psycopg.Connection, name: str, arguments: str, result: str) -> None:
    """A function is as another version made it."""
    signature = race.value(
        conn, "select oid::regprocedure::text from pg_proc where proname = %s", name
    )
    conn.execute(f"drop function {signature}")
    overload(conn, name, arguments, result)


def overload(conn: psycopg.Connection, name: str, arguments: str, result: str) -> None:
    """Another function of the name, as another version made it."""
    conn.execute(
        f"create function mq.{name}({arguments}) returns {result} language plpgsql"
        " as $$ begin raise exception 'of another version'; end $$;"
        f"revoke all on function mq.{name} ({arguments}) from public"
        if "default" not in arguments
        else f"create function mq.{name}({arguments}) returns {result} language plpgsql"
        " as $$ begin raise exception 'of another version'; end $$"
    )


def everything_works(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    put(conn, "later", delay="1 hour")
    lease(conn)
    expire(conn)
    assert sweep(conn) == 1
    assert sorted(drain(conn)) == [1, 2, 3]
    assert deferred(conn) > 0
    assert race.value(conn, "select mq.next_due('q') > now()")


# Of queue 1: {q}, of its slot 1: {q}_1, of its set 0: {q}_0, of all: 0.
CHANGED = {
    "slot, other columns": (
        "_stale_{q}_1",
        "p_sub smallint, p_lane smallint, p_most int, out block_no bigint, out slice int",
        "setof record",
    ),
    "slot, other result": ("_look_{q}_1", "smallint, pg_snapshot, pg_snapshot", "int"),
    "slot, other names": ("_ack_{q}_1", "receipt text[]", "int"),
    "deferral set": ("_next_due_{q}_0", "", "text"),
    "deferral": ("_is_due_{q}", "p_most int", "text"),
    "dispatcher": ("_take_one_0", "p_key bigint, p_ack text, p_vt interval", "text"),
}
OVERLOADED = {
    "slot": ("_take_{q}_1", "int", "int"),
    "slot, as good": ("_ack_{q}_1", "p text", "int"),
    "deferral set": ("_is_due_{q}_0", "", "boolean"),
    "deferral": ("_is_due_{q}", "", "boolean"),
    "dispatcher": ("_append_0", "text, jsonb, jsonb, text default null", "bigint"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_function_that_cannot_be_replaced_is_made_anew(
    conn: psycopg.Connection, case: str
) -> None:
    before = signatures(conn)
    name, arguments, result = CHANGED[case]
    change(conn, name.format(q=number(conn)), arguments, result)
    conn.execute("select mq._regenerate()")
    assert signatures(conn) == before
    everything_works(conn)


@pytest.mark.parametrize("case", OVERLOADED)
def test_of_two_functions_of_a_name_the_new_one_stays(conn: psycopg.Connection, case: str) -> None:
    before = signatures(conn)
    name, arguments, result = OVERLOADED[case]
    overload(conn, name.format(q=number(conn)), arguments, result)
    conn.execute("select mq._regenerate()")
    assert signatures(conn) == before
    everything_works(conn)


def test_all_that_changed_at_once_is_made_anew(conn: psycopg.Connection) -> None:
    before = signatures(conn)
    for name, arguments, result in CHANGED.values():
        change(conn, name.format(q=number(conn)), arguments, result)
    overload(conn, f"_take_{number(conn)}_1", "int", "int")
    overload(conn, f"_append_batch_{number(conn)}_1", "", "int")
    conn.execute("select mq._regenerate()")
    assert signatures(conn) == before
    everything_works(conn)


def test_what_can_be_replaced_stays_what_it_is(conn: psycopg.Connection) -> None:
    conn.execute("select mq.create_queue('other')")
    before = oids(conn)
    conn.execute("select mq._regenerate()")
    assert oids(conn) == before
    # Where one function cannot be, those of the other slots and queues stay.
    q = number(conn)
    name, arguments, result = CHANGED["slot, other columns"]
    change(conn, name.format(q=q), arguments, result)
    conn.execute("select mq._regenerate()")
    after = oids(conn)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert f"_stale_{q}_1" in changed
    assert {name[name.index(f"_{q}_") :] for name in changed} == {f"_{q}_1"}
    assert not any(name.startswith(("_is_due_", "_promote_", "_next_due_")) for name in changed)


def test_a_view_of_a_user_on_a_generated_function_stops_the_upgrade(
    conn: psycopg.Connection,
) -> None:
    q = number(conn)
    change(conn, f"_next_due_{q}_0", "", "text")
    conn.execute(f"create view public.mine as select mq._next_due_{q}_0() as due")
    try:
        with pytest.raises(psycopg.errors.DependentObjectsStillExist):
            conn.execute("select mq._regenerate()")
    finally:
        conn.execute("drop view public.mine")
    conn.execute("select mq._regenerate()")
    everything_works(conn)
