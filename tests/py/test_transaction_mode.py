"""Queues of mode transaction: begin, dequeue, work, commit. Who gets what, what a rollback leaves, how a poison ends."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

import mq
from support import measure, race, wait
from support.race import (
    Background,
    Connect,
    fill,
    maintain,
    number,
    put,
    rotate,
    sweep,
    take,
    take_rows,
    value,
)

database, session = race.database, race.session


@pytest.fixture(autouse=True)
def queue(database: str) -> str:
    race.fresh(database)
    make(database)
    return "q"


def make(dsn: str, max_attempts: int = 3) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select mq.drop_queue(q.name) from mq.queues() as q")
        conn.execute(
            "select mq.create_queue('q', mode => 'transaction', max_attempts => %s, retry_backoff => '0')",
            (max_attempts,),
        )


def dead(conn: psycopg.Connection) -> list[tuple[str, int, str]]:
    return conn.execute(
        "select payload #>> '{}', attempts, reason from mq.dead_letters('q', 10000) order by msg_id"
    ).fetchall()


def rounds(conn: psycopg.Connection, n: int, poisons: set[str], most: int) -> dict[str, list[int]]:
    """Consumes until there is nothing left; a transaction that meets a poison rolls back. The attempts seen, by payload."""
    seen: dict[str, list[int]] = {}
    for _ in range(most):
        rows = take_rows(conn, n)
        for row in rows:
            seen.setdefault(str(row[5]), []).append(row[2])
        if any(row[5] in poisons for row in rows):
            conn.rollback()
        else:
            conn.commit()
            if not rows:
                return seen
    raise AssertionError(f"not done after {most} rounds")


# -- who gets what ----------------------------------------------------------------------------------


def test_consumers_take_different_messages_and_a_rollback_gives_them_back_at_once(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 6)
    a, b = session(), session()
    assert take(a, 2) == [1, 2]
    assert take(b, 2) == [3, 4]
    a.rollback()
    assert take(conn, 1) == [1]  # suspects come one by one
    assert take(conn, 1) == [2]
    assert take(conn, 5) == [5, 6]
    b.commit()
    assert take(conn, 5) == []
    assert value(conn, "select settled_total from mq.queue_stats('q')") == 6


def test_a_lost_connection_gives_them_back(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 2)
    a = session()
    assert take(a, 2) == [1, 2]
    pid = wait.backend_pid(a)
    conn.execute("select pg_terminate_backend(%s)", (pid,))
    wait.until_gone(conn, pid)
    assert [(r[5], r[2]) for r in take_rows(conn, 1)] == [(1, 2)]
    assert [(r[5], r[2]) for r in take_rows(conn, 1)] == [(2, 2)]


def test_a_mark_of_one_who_sees_only_what_is_held_out_forgets_nothing(
    conn: psycopg.Connection, session: Connect
) -> None:
    """He looks at no more than he passed; what is behind those that others have is there still."""
    fill(conn, 20)
    holder = session()
    assert take(holder, 10) == list(range(1, 11))
    assert take(conn, 1) == [11]
    mark = f"select mq._mark_{number(conn)}_1(1::smallint, 0::smallint, %s)"
    conn.execute(mark, (4096,))  # holds out ten, and goes on behind the eleventh
    holder.rollback()
    assert take(conn, 1) == [1]
    conn.execute(mark, (3,))
    assert take(conn, 9) == [2]  # suspects come one by one
    while rows := take(conn, 20):
        assert rows[-1] <= 20
    assert value(conn, "select settled_total from mq.queue_stats('q')") == 20


def test_a_savepoint_gives_back_what_came_after_it(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    a = session()
    assert take(a) == [1]
    a.execute("savepoint s")
    assert take(a) == [2]
    a.execute("rollback to s")
    assert [(r[5], r[2]) for r in take_rows(conn, 1)] == [(2, 2)]
    assert take(a) == [3]
    a.commit()
    assert take(conn) == []


def test_a_transaction_takes_again_what_its_savepoint_gave_back(session: Connect) -> None:
    a = session(autocommit=True)
    fill(a, 1)
    a.execute("begin")
    for attempt in (1, 2, 3):
        a.execute("savepoint s")
        assert [r[2] for r in take_rows(a)] == [attempt]
        a.execute("rollback to s")
    assert take(a) == []
    a.execute("commit")
    assert dead(a) == [("1", 3, "rolled back")]


def test_two_suspects_in_one_transaction_keep_their_counts(session: Connect) -> None:
    a = session(autocommit=True)
    fill(a, 2)
    a.execute("begin")
    assert take(a, 2) == [1, 2]
    a.execute("rollback")
    for attempt in (2, 3):
        a.execute("begin")
        assert [(r[5], r[2]) for r in take_rows(a, 2)] == [(1, attempt)]
        assert [(r[5], r[2]) for r in take_rows(a, 2)] == [(2, attempt)]
        a.execute("rollback")
    assert take(a, 2) == []
    assert dead(a) == [("1", 3, "rolled back"), ("2", 3, "rolled back")]


def test_stragglers_and_own_messages(conn: psycopg.Connection, session: Connect) -> None:
    old = [session() for _ in range(3)]
    for i, straggler in enumerate(old):
        put(straggler, f"old {i}")
        put(conn, f"young {i}")
    assert take(conn, 10) == ["young 0", "young 1", "young 2"]
    for _ in range(3):
        maintain(conn)  # marks
    old[1].commit()
    old[0].rollback()
    both = session()
    put(both, "own")
    assert take(both, 10) == ["old 1"]
    assert take(both, 10) == []
    both.commit()
    assert take(conn, 10) == ["own"]
    old[2].commit()
    assert take(conn, 10) == ["old 2"]
    assert take(conn, 10) == []


@pytest.mark.parametrize("n", [1, 2])
def test_what_was_consumed_between_the_look_and_the_lock_is_not_delivered_again(
    conn: psycopg.Connection, session: Connect, background: Background, n: int
) -> None:
    """The second of two looks while the first has the message, and gets its lock when that has committed."""
    fill(conn, 8)
    first, second, index = session(), session(autocommit=True), session()
    for _ in range(2):  # plans are made: from here on an index is opened behind the snapshot
        assert len(take_rows(second, n)) == n
    left = list(range(2 * n + 1, 9))
    queue_id = number(conn)
    row = conn.execute(
        f"select xid::text from mq.log_{queue_id}_1 where msg_id = %s", (left[0],)
    ).fetchone()
    assert row is not None
    # What its dequeue would do, but without the index of the log.
    assert value(
        first,
        "select pg_try_advisory_xact_lock(mq._message_class(), mq._message_key(%s, %s))",
        queue_id,
        left[0],
    )
    first.execute(
        f"insert into mq.taken_{queue_id}_1 (xid, msg_id, lane, attempt) values (%s::xid8, %s, 0, 1)",
        (row[0], left[0]),
    )
    index.execute(f"reindex index mq.log_{queue_id}_1_order")
    got = background(take, second, n)
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(index))
    query = value(
        conn, "select query from pg_stat_activity where pid = %s", wait.backend_pid(second)
    )
    assert "mq.dequeue" in query
    first.commit()
    index.rollback()
    assert got.result() == left[1 : 1 + n]
    rest = [payload for _ in range(8) for payload in take(second, n)]
    assert sorted([*got.result(), *rest]) == left[1:]


# -- poisons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 10])
@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_a_poison_ends_in_the_dead_letters(
    database: str, session: Connect, n: int, max_attempts: int
) -> None:
    make(database, max_attempts)
    conn = session()
    for i in range(10):
        put(conn, f"good {i}" if i != 4 else "poison")
    conn.commit()
    seen = rounds(conn, n, {"poison"}, 200)
    assert seen["poison"] == list(range(1, max_attempts + 1))
    if max_attempts > 1:
        assert dead(conn) == [("poison", max_attempts, "rolled back")]
    else:  # as in lease mode, a lost batch counts for all of it
        assert ("poison", 1, "rolled back") in dead(conn)
    assert len(seen) == 10
    assert all(a[-1] <= max_attempts for a in seen.values())


def test_many_poisons_among_others(database: str, session: Connect) -> None:
    conn = session()
    poisons = {f"poison {i}" for i in range(50)}
    for i in range(50):
        put(conn, f"poison {i}")
        put(conn, f"good {i}")
    conn.commit()
    seen = rounds(conn, 20, poisons, 2000)
    for name, attempts in seen.items():
        assert attempts == sorted(attempts)
        assert max(attempts) <= 3
        if name in poisons:
            assert attempts == [1, 2, 3]
    assert {d[0] for d in dead(conn)} == poisons


def test_more_suspects_than_registers_wait_for_their_turn(database: str, session: Connect) -> None:
    conn = session()
    fill(conn, 40)
    conn.commit()
    assert len(take_rows(conn, 40)) == 40
    conn.rollback()
    holders = [session() for _ in range(20)]
    got = [take_rows(holder) for holder in holders]
    assert [len(rows) for rows in got] == [1] * 16 + [0] * 4
    put(conn, "new")
    conn.commit()
    assert take(holders[18], 10) == ["new"]  # which none of them is in the way of
    for holder in holders:
        holder.commit()
    assert len(rounds(conn, 10, set(), 100)) == 24


def test_upkeep_buries_what_only_rolls_back(database: str, session: Connect) -> None:
    conn, observer = session(), session(autocommit=True)
    put(conn, "poison")
    conn.commit()
    for _ in range(5):
        take(conn)
        conn.rollback()
    assert dead(observer) == []
    assert sweep(observer) == 1
    assert dead(observer) == [("poison", 3, "rolled back")]


def test_sixty_four_poisons_and_eight_consumers_that_only_roll_back(
    database: str, connect: Connect
) -> None:
    with connect(autocommit=True) as conn:
        for i in range(64):
            put(conn, f"poison {i}")
    lock, done = threading.Lock(), threading.Event()
    seen: dict[str, list[int]] = {}

    def work(seed: int) -> None:
        choose = random.Random(seed)
        with connect(autocommit=False) as mine:
            while not done.is_set():
                rows = take_rows(mine, choose.choice([1, 3, 10]))
                with lock:
                    for row in rows:
                        seen.setdefault(row[5], []).append(row[2])
                mine.rollback()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    with connect(autocommit=True) as conn:
        try:
            wait.until(lambda: sweep(conn) is not None and len(dead(conn)) == 64, seconds=100)
        finally:
            done.set()
            for t in threads:
                t.join(60)
        assert {len(v) for v in seen.values()} == {3}
        assert all(sorted(v) == [1, 2, 3] for v in seen.values())
        assert len(dead(conn)) == len(seen) == 64


# -- conservation -----------------------------------------------------------------------------------


def test_sixteen_consumers_and_what_they_write(database: str, connect: Connect) -> None:
    """Transactions of random length, that roll back, use savepoints or lose their connection; rotations meanwhile. What
    the committed ones wrote is each message once."""
    messages = 2000
    with connect(autocommit=True) as conn:
        conn.execute("drop table if exists effect")
        conn.execute("create table effect (msg_id bigint)")
        conn.execute("select mq.alter_queue('q', max_attempts => 32000)")
    stop = threading.Event()
    errors: list[BaseException] = []

    def produce() -> None:
        choose = random.Random(0)
        with connect(autocommit=False) as mine:
            for i in range(messages):
                conn_put(mine, i, choose)
                if choose.random() < 0.5:
                    mine.commit()
                if choose.random() < 0.05:
                    mine.commit()
                    conn_put(mine, -1, choose)
                    mine.rollback()
            mine.commit()

    def conn_put(mine: psycopg.Connection, i: int, choose: random.Random) -> None:
        mine.execute(
            "select mq.enqueue('q', to_jsonb(%s::int), priority => %s, delay => %s)",
            (i, choose.choice([None, None, 1, 9]), choose.choice([None, None, None, "5 ms"])),
        )

    def work(seed: int) -> None:
        choose = random.Random(seed)
        mine = connect(autocommit=False)
        try:
            while not stop.is_set():
                for _ in range(choose.randint(1, 3)):
                    rows = take_rows(mine, choose.choice([1, 1, 5, 30]))
                    for row in rows:
                        mine.execute("insert into effect values (%s)", (row[5],))
                    if rows and choose.random() < 0.1:
                        ids = [row[0] for row in rows if choose.random() < 0.5]
                        n = value(
                            mine, "select mq.nack('q', %s, %s, delay => '0')", rows[0][1], ids
                        )
                        assert n == len(ids)
                        back = [row[5] for row in rows if row[0] in ids]
                        mine.execute(
                            "delete from effect where ctid in (select e.ctid from effect as e where msg_id = any (%s))",
                            (back,),
                        )
                    if choose.random() < 0.2:
                        mine.execute("savepoint s")
                        for row in take_rows(mine, 3):
                            mine.execute("insert into effect values (%s)", (row[5],))
                        mine.execute("rollback to s")
                    if choose.random() < 0.3:
                        mine.execute("select pg_sleep(random() * 0.01)")
                what = choose.random()
                if what < 0.2:
                    mine.rollback()
                elif what < 0.23:
                    mine.close()
                    mine = connect(autocommit=False)
                else:
                    mine.commit()
        except BaseException as error:
            errors.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    producer = threading.Thread(target=produce)
    producer.start()
    with connect(autocommit=True) as conn:
        i = 0

        def done() -> bool:
            nonlocal i
            i += 1
            if i % 20 == 0:
                conn.execute("select mq.rotate_segment('q')") if race.segments(conn) < 5 else None
            maintain(conn)
            count = value(conn, "select count(*) from effect")
            return bool(errors) or (not producer.is_alive() and count >= messages)

        try:
            wait.until(done, seconds=150)
        finally:
            stop.set()
            for t in threads:
                t.join(60)
        assert errors == []
        assert conn.execute(
            "select count(*), count(distinct msg_id), min(msg_id), max(msg_id) from effect"
        ).fetchone() == (messages, messages, 0, messages - 1)
        assert race.unsettled(conn) == (0, 0, 0)
        assert dead(conn) == []
        rotate(conn)
        wait.until(lambda: maintain(conn) is not None and race.segments(conn) == 1)


# -- cost -------------------------------------------------------------------------------------------


def test_who_sits_in_front_slows_nobody(database: str, session: Connect) -> None:
    """A long transaction has the first messages, an old snapshot is held, and thousands are consumed behind it."""
    conn, long, reader = session(autocommit=True), session(), session()
    fill(conn, 6000)
    reader.execute("set transaction isolation level repeatable read")
    reader.execute("select 1")
    assert len(take_rows(long, 5)) == 5
    cost = []
    for _ in range(5):
        for _ in range(90):
            take(conn, 10)
        cost.append(
            measure.cost([measure.call(conn, "select * from mq.dequeue('q')") for _ in range(100)])
        )
    assert all(later.within(1.3, cost[0]) for later in cost), "; ".join(map(str, cost))
    long.rollback()
    assert take(conn) == [1]


def test_an_empty_poll_does_not_walk_what_is_not_committed(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 1)
    assert take(conn) == [1]
    maintain(conn)  # marks
    assert value(conn, f"select count(*) from mq.mark_{number(conn)}_1") > 0

    def poll() -> measure.Cost:
        return measure.cost([measure.call(conn, "select * from mq.dequeue('q')") for _ in range(5)])

    poll()
    before, producer = poll(), session()
    fill(producer, 5000)
    conn.execute("select pg_current_xact_id()")  # younger, and done
    after = poll()
    assert after.median <= before.median + 10, f"{before}; {after}"
    producer.rollback()


def test_an_empty_poll_writes_nothing(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 3)
    a, b = session(), session()
    assert take(a, 3) == [1, 2, 3]
    assert take(b, 3) == []
    assert value(b, "select pg_current_xact_id_if_assigned()") is None
    assert race.advisory_locks(b, conn) == 0
    a.commit()
    assert take(b, 3) == []
    assert value(b, "select pg_current_xact_id_if_assigned()") is None
    assert race.advisory_locks(b, conn) == 0


def test_segments_go_when_all_of_them_is_consumed(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 50)
    a = session()
    assert len(take_rows(a, 10)) == 10
    rotate(conn)
    put(conn, "new")
    for _ in range(4):
        maintain(conn)
    assert race.segments(conn) == 2
    assert len(take_rows(conn, 100)) == 40
    for _ in range(4):
        maintain(conn)
    assert race.segments(conn) == 2  # a has ten of it
    a.rollback()
    for _ in range(10):
        assert len(take_rows(conn, 10)) == 1
    wait.until(lambda: maintain(conn) is not None and race.segments(conn) == 1)
    assert take(conn) == ["new"]
    assert number(conn) > 0


# -- the client -------------------------------------------------------------------------------------


def test_the_client_works_in_the_callers_transaction(session: Connect) -> None:
    conn = session()
    client = mq.Client(conn)
    client.enqueue("q", {"n": 1})
    conn.commit()
    assert [d.attempt for d in client.dequeue("q")] == [1]
    conn.rollback()
    (delivery,) = client.dequeue("q")
    assert (delivery.attempt, delivery.leased_until.year) == (2, 9999)
    assert client.ack("q", delivery.receipt) == 1
    conn.commit()
    assert client.dequeue("q") == []


# -- copies and upgrades ----------------------------------------------------------------------------


def test_a_copy_is_repaired(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 4)
    assert take(conn) == [1]
    a = session()
    assert take(a) == [2]
    a.rollback()
    race.from_elsewhere(conn, "q")
    assert take(conn) == []  # it repairs
    assert take(conn, 10) == [2, 3, 4]
    put(conn, "new")
    assert take(conn, 10) == ["new"]
    conn.execute("select mq._lock_generated('test'), mq._regenerate()")
    put(conn, "newer")
    assert take(conn, 10) == ["newer"]


# -- ordering keys ----------------------------------------------------------------------------------


def test_keys_are_worked_on_one_message_at_a_time_in_order(database: str, connect: Connect) -> None:
    """Consumers that roll back, and give back, at random: never two at a key, never out of order, none forgotten."""
    keys, each = 8, 6
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("select mq.drop_queue('q')")
        conn.execute(
            "select mq.create_queue('q', mode => 'transaction', max_attempts => 32000, retry_backoff => '0')"
        )
        for number_of in range(each):
            conn.execute(
                "select mq.enqueue_batch('q', array_agg(jsonb_build_array(k, %s::int)), ordering_keys => array_agg('key ' || k))"
                " from generate_series(1, %s) as k",
                (number_of, keys),
            )
    lock = threading.Lock()
    held: set[int] = set()
    done = dict.fromkeys(range(1, keys + 1), 0)
    wrong: list[str] = []

    def step(conn: psycopg.Connection, chance: random.Random) -> bool:
        rows = take_rows(conn, chance.choice((1, 3, 20)))
        with lock:
            for row in rows:
                key, place = row[5]
                if key in held or place != done[key]:
                    wrong.append(f"{key}: {place}, not {done[key]}; held: {key in held}")
                held.add(key)
        back = [row for row in rows if chance.random() < 0.2]
        if rows and chance.random() < 0.2:
            with lock:
                held.difference_update(row[5][0] for row in rows)
            conn.rollback()
            return True
        for row in back:
            conn.execute("select mq.nack('q', %s, %s, delay => '0')", (row[1], [row[0]]))
        with lock:
            for row in rows:
                done[row[5][0]] += row not in back
            held.difference_update(row[5][0] for row in rows)
        conn.commit()
        return bool(rows)

    def consume(seed: int) -> None:
        chance = random.Random(seed)
        own, upkeep = connect(autocommit=False), connect()
        while not wrong and sum(done.values()) < keys * each:
            if not step(own, chance):
                sweep(upkeep)

    threads = [threading.Thread(target=consume, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert set(done.values()) == {each}
    with psycopg.connect(database, autocommit=True) as conn:
        assert sweep(conn) == 0
        assert take(conn, 10) == []
