"""What _append_0 knows of a queue stands nowhere else on the way of a message, so it must never be out of date."""

from __future__ import annotations

import psycopg
import pytest

from support import race, wait
from support.race import Background, Connect, in_another_cluster, number, put, value

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


def goes_the_short_way(conn: psycopg.Connection) -> bool:
    """Whether _append_0 knows what to do with a message."""
    return value(conn, "select mq._append_0('q', '1', null)") is not None


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


def test_who_makes_a_queue_meanwhile_does_not_bring_back_what_was(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    """It would make _append_0 from the row as it was before, if it did not wait."""
    altering, creating = session(), session(autocommit=True)
    altering.execute("select mq.alter_queue('q', notify => 'always')")
    created = background(creating.execute, "select mq.create_queue('other')")
    wait.until_blocked(conn, wait.backend_pid(creating), by=wait.backend_pid(altering))
    altering.commit()
    created.result(wait.SECONDS)
    assert tells_of(conn, 3) == 3


def test_the_later_of_two_changes_holds(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    """The second one changes nothing that it could see."""
    first, second = session(), session(autocommit=True)
    conn.execute("select mq.alter_queue('q', notify => 'always')")
    first.execute("select mq.alter_queue('q', notify => 'never')")
    altered = background(second.execute, "select mq.alter_queue('q', notify => 'always')")
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    altered.result(wait.SECONDS)
    assert tells_of(conn, 3) == 3


def test_a_copy_goes_the_short_way_again_once_it_was_repaired(conn: psycopg.Connection) -> None:
    in_another_cluster(conn)
    assert not goes_the_short_way(conn)
    put(conn, "repairs")
    put(conn, "asks where this is, once a session")
    assert goes_the_short_way(conn)


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
