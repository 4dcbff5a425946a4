"""Priorities: what a dequeue owes to which lane, whatever others are doing; and nothing is lost in any of them."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from support import conserve, holders, measure, race, wait
from support.race import (
    Background,
    Connect,
    ack,
    expire,
    from_elsewhere,
    in_another_cluster,
    lease,
    maintain,
    number,
    outlive,
    rotate,
    slot,
    sweep,
    take,
    take_rows,
    unsettled,
    value,
)
from support.server import Server

database, queue, session = race.database, race.queue, race.session


def put(
    conn: psycopg.Connection, what: str, priority: int | None = None, delay: str | None = None
) -> int:
    """One message; its msg_id."""
    return int(
        value(
            conn,
            "select mq.enqueue('q', to_jsonb(%s::text), priority => %s, delay => %s)",
            what,
            priority,
            delay,
        )
    )


def drain(conn: psycopg.Connection, n: int = 100) -> list[Any]:
    """Takes and acknowledges until nothing comes twice: the first may have waited for a timer."""
    return race.drain(conn, n) + race.drain(conn, n)


def priority_of(conn: psycopg.Connection, msg_id: int) -> int:
    return int(value(conn, "select (mq.message_status('q', %s)).priority", msg_id))


def make_due(conn: psycopg.Connection) -> None:
    """What is deferred becomes due, with or without a timer; the promoter's cursors were moved by nothing yet."""
    queue_id = number(conn)
    for g in (0, 1):
        conn.execute(f"update mq.timer_{queue_id}_{g} set due_at = due_at - interval '1 day'")
        conn.execute(f"update mq.deferred_{queue_id}_{g} set due_at = due_at - interval '1 day'")


def forget_lanes(conn: psycopg.Connection) -> None:
    """As in a copy that came without its sequences."""
    queue_id = number(conn)
    conn.execute(f"select setval('mq.lanes_{queue_id}', 1, false)")
    conn.execute(
        "select mq._write_register(%s, %s, 1::bigint << 31, 0)",
        (queue_id, f"mq.register_{queue_id}"),
    )


# -- the first use of a priority --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback", "savepoint"])
def test_the_first_use_of_a_priority(conn: psycopg.Connection, session: Connect, end: str) -> None:
    """Consumers look into its lane from then on, whatever becomes of it; nothing of it before it is committed."""
    producer = session()
    put(conn, "plain 1")
    put(conn, "plain 2")
    put(conn, "plain 3")
    producer.execute("savepoint a")
    put(producer, "first", 8)
    assert take(conn) == ["plain 1"]
    if end == "savepoint":
        producer.execute("rollback to savepoint a")
        producer.commit()
    else:
        getattr(producer, end)()
    assert take(conn) == (["first"] if end == "commit" else ["plain 2"])
    put(conn, "second", 8)
    assert take(conn) == ["second"]
    assert take(conn)[0].startswith("plain")


def test_a_producer_whose_snapshot_is_old_uses_a_new_priority(
    conn: psycopg.Connection, session: Connect
) -> None:
    producer = session()
    producer.execute("set transaction isolation level repeatable read")
    producer.execute("select count(*) from mq.queue")
    put(conn, "another", 3)
    put(producer, "old", 9)
    producer.commit()
    assert take(conn) == ["old"]
    assert take(conn) == ["another"]


def test_a_consumer_in_a_transaction_that_is_older_sees_a_new_priority(
    conn: psycopg.Connection, session: Connect
) -> None:
    """Its transaction began, wrote and dequeued before there were any."""
    consumer = session()
    put(conn, "a")
    put(conn, "b")
    assert take(consumer) == ["a"]
    put(conn, "first", 9)
    put(conn, "second", 1)
    assert take(consumer) == ["first"]
    assert take(consumer) == ["b"]
    assert take(consumer) == ["second"]
    consumer.rollback()
    assert take(conn) == ["first"]
    assert drain(conn) == ["a", "b", "second"]


def test_what_comes_between_a_look_and_a_claim_waits_for_the_next_call(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    """It looked at 9 and found nothing; while it is at 2, something comes for 9."""
    name = f"{number(conn)}_{slot(conn, 'open')}"
    put(conn, "nine", 9)
    assert race.drain(conn) == ["nine"]
    put(conn, "two", 2)
    signature = "p_sub int2, p_lane int2, p_n int, p_fresh boolean, p_due boolean, p_given mq._taken[], p_ahead boolean"
    conn.execute(f"alter function mq._open_{name} rename to _open_was_{name}")
    conn.execute(
        f"create function mq._open_{name} ({signature}) returns boolean language plpgsql as $$ begin"
        " perform pg_advisory_xact_lock_shared(4711);"
        f" return mq._open_was_{name}(p_sub, p_lane, p_n, p_fresh, p_due, p_given, p_ahead); end $$"
    )
    consumer, holder = session(autocommit=True), session()
    holder.execute("select pg_advisory_xact_lock(4711)")
    taking = background(take, consumer)
    wait.until_blocked(conn, wait.backend_pid(consumer), by=wait.backend_pid(holder))
    put(conn, "nine again", 9)
    holder.commit()
    assert taking.result(30) == ["two"]
    assert take(consumer) == ["nine again"]


def test_a_lane_that_another_is_opening_holds_up_nothing_lower(
    conn: psycopg.Connection, session: Connect
) -> None:
    """What another session is claiming at that moment is its own; the rest goes on."""
    put(conn, "high 1", 9)
    put(conn, "high 2", 9)
    put(conn, "low", 1)
    first = session()
    assert take(first) == ["high 1"]  # it opened the block: nobody else sees that yet
    assert take(conn) == ["low"]
    first.commit()
    assert take(conn) == ["high 2"]


# -- segments, holes, leases ------------------------------------------------------------------------


def test_several_segments_with_several_lanes(conn: psycopg.Connection) -> None:
    """By priority first, the oldest segment first within it."""
    for segment in (1, 2, 3):
        for priority in (0, 4, 9):
            for i in (1, 2):
                put(conn, f"{priority} {segment} {i}", priority)
        if segment < 3:
            rotate(conn)
    assert race.segments(conn) == 3
    want = [f"{p} {s} {i}" for p in (9, 4, 0) for s in (1, 2, 3) for i in (1, 2)]
    assert [message for _ in range(18) for message in take(conn)] == want
    assert take(conn) == []


def test_a_segment_of_low_priority_only_is_kept(conn: psycopg.Connection) -> None:
    put(conn, "low", 0)
    rotate(conn)
    for i in range(5):
        put(conn, f"high {i}", 9)
    assert take(conn) == ["high 0"]
    for _ in range(4):
        assert not {"exhausted", "drained", "dropped"} & set(maintain(conn))
    assert take(conn, 10) == [f"high {i}" for i in range(1, 5)]
    rows = take_rows(conn)
    assert rows[0][5] == "low"
    wait.until(lambda: "exhausted" in maintain(conn))
    for _ in range(4):  # it is still leased
        assert not {"drained", "dropped"} & set(maintain(conn))
    assert ack(conn, rows[0][1]) == 1
    wait.until(lambda: "dropped" in maintain(conn))


def test_a_rollback_leaves_a_hole_in_a_lane(conn: psycopg.Connection, session: Connect) -> None:
    """In an older block than the newest, in an open and in a closed segment."""
    for i in range(4):
        put(conn, f"a{i}", 7)
    failing = session()
    assert take(conn) == ["a0"]  # the block is there for everybody
    assert take(failing) == ["a1"]
    assert take(conn, 10) == ["a2", "a3"]
    put(conn, "b", 7)
    assert take(conn) == ["b"]  # of the next block
    failing.rollback()
    assert take(conn) == ["a1"]

    for i in range(3):
        put(conn, f"c{i}", 7)
    assert take(conn) == ["c0"]
    assert take(failing) == ["c1"]
    assert take(conn) == ["c2"]
    put(conn, "d", 7)
    assert take(conn) == ["d"]
    rotate(conn)
    failing.rollback()
    assert take(conn) == ["c1"]


@pytest.mark.parametrize("by", ["sweep", "dequeue", "maintain"])
@pytest.mark.parametrize("closed", [False, True])
def test_what_ran_out_keeps_its_priority(conn: psycopg.Connection, by: str, closed: bool) -> None:
    msg_id = put(conn, "seven", 7)
    lease(conn)
    if closed:
        rotate(conn)
        wait.until(lambda: "exhausted" in maintain(conn))
    expire(conn)
    if by == "sweep":
        assert sweep(conn) == 1
    elif by == "maintain":
        assert "swept" in maintain(conn)
    if by != "dequeue":
        put(conn, "six", 6)
        put(conn, "eight", 8)
        assert take(conn) == ["eight"]
    assert priority_of(conn, msg_id) == 7
    assert take(conn) == ["seven"]
    assert priority_of(conn, msg_id) == 7
    assert unsettled(conn)[2] == (1 if by == "dequeue" else 2)


def test_what_ran_out_in_two_lanes_comes_back_to_each(conn: psycopg.Connection) -> None:
    ids = {what: put(conn, what, p) for what, p in (("low", 1), ("plain", None), ("high", 9))}
    assert len([row for _ in range(3) for row in take_rows(conn)]) == 3
    expire(conn)
    assert [message for _ in range(3) for message in take(conn)] == ["high", "plain", "low"]
    assert [priority_of(conn, ids[what]) for what in ("low", "plain", "high")] == [1, 4, 9]


def test_a_lease_that_outlives_its_segment_keeps_its_priority(conn: psycopg.Connection) -> None:
    kept, lost = put(conn, "kept", 7), put(conn, "lost", 7)
    receipt = lease(conn)
    lease(conn)
    outlive(conn)
    assert value(conn, "select count(*) from mq.survivor") == 2
    assert priority_of(conn, kept) == priority_of(conn, lost) == 7
    assert ack(conn, receipt) == 1
    expire(conn)
    put(conn, "six", 6)
    assert "swept" in maintain(conn)
    put(conn, "eight", 8)
    assert [message for _ in range(3) for message in take(conn)] == ["eight", "lost", "six"]


def test_a_dead_letter_comes_back_to_its_priority_in_another_queue(
    conn: psycopg.Connection,
) -> None:
    """That has never had a priority."""
    conn.execute("select mq.create_queue('other', visibility_timeout => '1 hour')")
    put(conn, "seven", 7)
    conn.execute("select mq.nack('q', %s, dead => true)", (lease(conn),))
    race.put(conn, "plain", "other")
    assert value(conn, "select mq.redrive('q', to_queue => 'other')") == 1
    assert take(conn, queue="other") == ["seven"]
    assert take(conn, queue="other") == ["plain"]
    conn.execute("select mq.drop_queue('other')")


# -- deferral, copies, the end of a queue -----------------------------------------------------------


def test_a_deferral_set_is_emptied_lane_by_lane(conn: psycopg.Connection) -> None:
    """With and without timers, of lanes with cursors and of one without."""
    register = f"mq.register_{number(conn)}"
    want = []
    for round_ in ("timer", "none"):
        for priority in (None, 0, 3, 9):
            for i in range(3):
                want.append(f"{4 if priority is None else priority} {round_} {i}")
                put(conn, want[-1], priority, "1 hour")
        if round_ == "timer":
            maintain(conn)  # gives them timers
    put(conn, "due", 3, "1 microsecond")  # moves the cursor of its lane
    assert take(conn) == ["due"]
    conn.execute(
        "select mq._write_register(%s, %s, 3::bigint << 32,"
        " (~pg_sequence_last_value(%s) & (1::bigint << 32)) | (1::bigint << 33))",
        (number(conn), register, register),
    )  # as _rotate_deferral changes over
    put(conn, "9 new 0", 9, "1 hour")
    want.append("9 new 0")
    done: list[str] = []

    def emptied() -> bool:
        assert unsettled(conn) == (0, len(want), 1)
        rows = conn.execute("select detail from mq.maintain('q') where action = 'deferral'")
        done.extend(row[0] for row in rows.fetchall())
        return "the old set is empty" in done

    wait.until(emptied)
    assert len([step for step in done if step.startswith("moved")]) == 4  # one a lane
    assert value(conn, f"select count(*) from mq.deferred_{number(conn)}_0") == 0
    make_due(conn)
    got = drain(conn)
    assert sorted(got) == sorted(want)
    assert [message[0] for message in got] == sorted((m[0] for m in want), reverse=True)


def test_what_is_due_before_the_cursor_of_its_lane(
    conn: psycopg.Connection, session: Connect
) -> None:
    """Its transaction took long to commit."""
    producer = session()
    put(producer, "late", 3, "1 microsecond")
    put(conn, "early", 3, "1 microsecond")
    assert take(conn) == ["early"]
    producer.commit()
    assert take(conn) == ["late"]


@pytest.mark.parametrize("lanes", ["copied", "forgotten"])
@pytest.mark.parametrize("move", [from_elsewhere, in_another_cluster])
def test_a_copy_keeps_priorities(conn: psycopg.Connection, move: Any, lanes: str) -> None:
    """Of what is ready, leased, deferred, a survivor, or dead; also where no sequence says that there are any."""
    put(conn, "survivor", 1)
    lease(conn)
    outlive(conn)
    put(conn, "old", 2)
    rotate(conn)
    put(conn, "leased", 8)
    void = lease(conn)
    put(conn, "dead", 0)
    conn.execute("select mq.pause_queue('q')")
    put(conn, "ready", 3)
    put(conn, "plain")
    put(conn, "later", 9, "1 hour")
    conn.execute("select mq.resume_queue('q')")
    dead = put(conn, "buried", 6)
    conn.execute("select mq.nack('q', %s, dead => true)", (lease(conn),))
    assert priority_of(conn, dead) == 6
    if lanes == "forgotten":
        forget_lanes(conn)
    move(conn)
    assert ack(conn, void) == 0
    got = drain(conn, 1)
    assert got == ["leased", "plain", "ready", "old", "survivor", "dead"]
    assert unsettled(conn) == (0, 1, 0)
    make_due(conn)
    put(conn, "plain again")
    assert take(conn) == ["later"]
    assert value(conn, "select mq.redrive('q')") == 1
    assert drain(conn) == ["buried", "plain again"]


def test_a_copy_without_sequences_knows_of_ttl_and_cancel(conn: psycopg.Connection) -> None:
    conn.execute("select mq.enqueue('q', '\"expired\"', ttl => '1 ms', priority => 7)")
    cancelled = put(conn, "cancelled", 5, "1 hour")
    put(conn, "later", 5, "1 hour")
    assert value(conn, "select mq.cancel('q', %s)", cancelled)
    conn.execute("select pg_sleep(0.002)")
    forget_lanes(conn)
    from_elsewhere(conn)
    drain(conn)
    make_due(conn)
    assert drain(conn) == ["later"]
    assert value(conn, "select reason from mq.dead_letters('q')") == "expired"


def test_what_one_lane_settled(conn: psycopg.Connection) -> None:
    """Is not settled in another, where it has the same place."""
    put(conn, "high", 9)
    put(conn, "low", 0)
    receipt = lease(conn)
    lease(conn)
    assert ack(conn, receipt) == 1
    rows = conn.execute("select payload, state, priority from mq.peek('q')").fetchall()
    assert rows == [("low", "leased", 0)]


def test_purge_and_drop_with_priorities(conn: psycopg.Connection) -> None:
    for priority in (0, 9, None):
        put(conn, "ready", priority)
        put(conn, "later", priority, "1 hour")
    lease(conn)
    maintain(conn)
    assert value(conn, "select mq.purge_queue('q')") == 6
    assert unsettled(conn) == (0, 0, 0)
    assert take(conn) == []
    put(conn, "low", 0)
    put(conn, "high", 9)
    put(conn, "later", 5, "1 microsecond")
    assert [message for _ in range(3) for message in take(conn)] == ["high", "later", "low"]
    queue_id = number(conn)
    conn.execute("select mq.drop_queue('q')")
    assert value(conn, "select to_regclass(%s)", f"mq.lanes_{queue_id}") is None


# -- all of it together -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_the_highest_priority_that_is_ready(
    conn: psycopg.Connection, session: Connect, seed: int
) -> None:
    """Random steps against a model: each dequeue gives the highest priority, within it new ones in order."""
    chance = random.Random(seed)
    other = session()
    ready: dict[int, list[int]] = defaultdict(list)
    leases: list[tuple[str, int, list[int]]] = []
    last: dict[int, int] = defaultdict(int)
    of_which: dict[int, int] = {}
    conn.execute("select mq.alter_queue('q', max_attempts => 100, retry_backoff => '0')")
    for _ in range(250):
        step = chance.random()
        if step < 0.35:
            priority = chance.choice([0, 3, 4, 9])
            producer, end = chance.choice(
                [(conn, "commit"), (other, "commit"), (other, "rollback")]
            )
            ids = [
                put(producer, "x", priority, chance.choice([None, None, "0"]))
                for _ in range(chance.choice([1, 1, 3, 20]))
            ]
            getattr(producer, end)()
            if end == "commit":
                ready[priority] += ids
                of_which |= dict.fromkeys(ids, priority)
        elif step < 0.75:
            rows = take_rows(conn, chance.choice([1, 1, 2, 7]))
            highest = max((p for p in ready if ready[p]), default=None)
            assert {of_which[row[0]] for row in rows} == (
                {highest} if highest is not None else set()
            )
            if highest is None:
                continue
            for row in rows:
                ready[highest].remove(row[0])
            fresh = [row[0] for row in rows if row[2] == 1]
            assert fresh == sorted(fresh)
            assert not fresh or fresh[0] > last[highest]
            last[highest] = fresh[-1] if fresh else last[highest]
            leases.append((rows[0][1], highest, [row[0] for row in rows]))
        elif step < 0.9 and leases:
            receipt, priority, ids = leases.pop(chance.randrange(len(leases)))
            if chance.random() < 0.5:
                assert ack(conn, receipt) == len(ids)
            else:
                assert value(conn, "select mq.nack('q', %s, delay => '0')", receipt) == len(ids)
                ready[priority] += ids
        elif step < 0.95:
            maintain(conn)
        else:
            wait.until(lambda: "prepared" not in maintain(conn))
            rotate(conn)
    assert unsettled(conn)[0] == sum(map(len, ready.values()))
    assert unsettled(conn)[2] == sum(len(ids) for _, _, ids in leases)


SEND = """
with message as materialized (
    select t, mq.enqueue('q', jsonb_build_object('tag', t), priority => %(priority)s, delay => %(delay)s)
    from unnest(%(tags)s::bigint[]) as t
)
insert into sent select t, 'q' from message
"""


def produce(conn: psycopg.Connection, first: int, rounds: int) -> None:
    chance = random.Random(first)
    for i in range(rounds):
        with conn.transaction() as sending:
            tags = list(range(first + i * 10, first + i * 10 + chance.choice([1, 3, 10])))
            conn.execute(
                SEND,
                {
                    "tags": tags,
                    "priority": chance.choice([None, 1, 9]),
                    "delay": "1 ms" if chance.random() < 0.1 else None,
                },
            )
            if chance.random() < 0.1:
                raise psycopg.Rollback(sending)


def consume(conn: psycopg.Connection, seed: int, rounds: int) -> int:
    """Takes, and does with it whatever a consumer may do; how much it acknowledged."""
    chance = random.Random(seed)
    count = 0
    for _ in range(rounds):
        n, fate = chance.choice([1, 1, 5]), chance.random()
        with conn.transaction() as taking:
            rows = conserve.receive(conn, n, timeout="1 ms" if fate < 0.1 else None)
            if fate > 0.9:
                raise psycopg.Rollback(taking)
        if rows and fate < 0.2:
            pass  # it runs out, now or later
        elif rows and fate < 0.35:
            conn.execute("select mq.nack('q', %s, delay => '1 ms')", (rows[0].receipt,))
        elif rows:
            count += len(rows) * conserve.settle(conn, rows)
    return count


def maintain_often(conn: psycopg.Connection, rounds: int) -> None:
    for i in range(rounds):
        conn.execute("select mq.maintain('q')")
        if i % 5 == 4:
            with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                rotate(conn)  # or there is no spare slot yet


def test_conservation_with_eight_consumers_and_three_priorities(
    conn: psycopg.Connection, connect: Connect, background: Background, database: str
) -> None:
    conn.execute("drop table if exists sent, done")
    conn.execute(conserve.LEDGERS)
    conn.execute("select mq.alter_queue('q', max_attempts => 1000, retry_backoff => '1 ms')")
    done = [background(produce, connect(), 1 + 100_000 * i, 60) for i in range(2)]
    done += [background(consume, connect(), seed, 120) for seed in range(8)]
    done.append(background(maintain_often, connect(), 30))
    for future in done:
        future.result(120)
    assert sum(future.result() for future in done[2:10]) > 100
    conserve.check(database, least=200)
    conn.execute("drop table sent, done")


# -- what it costs ----------------------------------------------------------------------------------

PAIRS = """
do $$
declare
    v_receipt text;
begin
    for i in 1 .. {pairs} loop
        perform mq.enqueue('q', '{{"a": 1}}', priority => i % 3 * 4);
        commit;
        select max(receipt) into v_receipt from mq.dequeue('q', 1);
        commit;
        perform mq.ack('q', v_receipt);
        commit;
    end loop;
end $$
"""


def window(conn: psycopg.Connection) -> measure.Cost:
    """A consumer's cost of so many messages, one in for each one out."""
    calls = []
    for i in range(240):
        conn.execute("select mq.enqueue('q', '{\"a\": 1}', priority => %s)", (i % 3 * 4,))
        calls.append(
            measure.call(
                conn, "select set_config('cost.receipt', max(receipt), false) from mq.dequeue('q')"
            )
        )
        conn.execute("select mq.ack('q', current_setting('cost.receipt'))")
    return measure.cost(calls)


@pytest.mark.slow
def test_a_held_horizon(
    server: Server, database: str, conn: psycopg.Connection, connect: Connect
) -> None:
    consumer = connect()
    dbname = str(conninfo.conninfo_to_dict(database)["dbname"])
    with holders.everything(server, dbname):
        # The lowest never ends; the others have one message now and then.
        conn.execute(
            "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[2000]), priority => 0)"
        )
        consumer.execute(PAIRS.format(pairs=300))
        start = window(consumer)
        consumer.execute(PAIRS.format(pairs=3000))
        end = window(consumer)
    print(f"\n{start}, then {end}")
    assert end.within(1.3, start)


def test_a_dequeue_does_not_depend_on_the_backlog_of_ten_lanes(
    conn: psycopg.Connection, connect: Connect
) -> None:
    def backlog(count: int) -> measure.Cost:
        for priority in range(10):
            conn.execute(
                "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[%s]), priority => %s)",
                (count, priority),
            )
        consumer = connect()
        cost = measure.dequeues(consumer, times=200)
        consumer.close()
        return cost

    few, many = backlog(1000), backlog(5000)
    print(f"\n{few}, then {many}")
    assert many.within(1.5, few)
    # All but the lowest lane are empty.
    for _ in range(8):
        while take_rows(conn, 10_000):
            pass
    put(conn, "last", 0)
    lowest = measure.call(conn, measure.LEASE.format(queue="q", n=1))
    assert lowest.rows == 1
    assert lowest.buffers < 1500, lowest
