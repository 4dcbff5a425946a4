/* Claiming and settling: does a message ever have two live leases, or two settlements, and is it ever forgotten?

   SQL: sql/functions/_internal/template_take.sql (_take_), template_gather.sql (_gather_), template_open.sql (_open_),
   template_settle.sql (_ack_, _settle_, _extend_), template_sweep.sql (_sweep_), settle.sql (_settle).

   One segment, whose log holds MESSAGES messages; what a window is, is in window.pml, so here the cursor is a count.
   A block has up to two slices of one message. A position is a block and a slice of it; it is used again when the
   block or the lease was rolled back. What one transaction wrote and has not committed carries its process id: others
   do not see it, but a primary key does, and waits for it. Locks go at the end of the transaction. Each "atomic" is one
   statement or less. A lease that was committed may run out at any time, unless it was extended.

   -DWITHOUT_LOOK_AFTER_LOCK  hazard 4: whether a slice is leased is known from a snapshot older than its lock
   -DWITHOUT_LEASE_KEY        lease_<q>_<k> has no primary key
   -DWITHOUT_TOKEN            hazard 28: a receipt is a position
   -DWITHOUT_SETTLEMENT_KEY   settlement_<q>_<k> has no primary key
   -DWITHOUT_SLICE_LOCK       a slice is taken without its advisory lock */

#ifndef MESSAGES
#define MESSAGES 2
#endif
#ifndef ROUNDS
#define ROUNDS 2        /* of the first consumer; the others have one: a dequeue, then perhaps an extend, perhaps an ack */
#endif
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef SWEEPS
#define SWEEPS 1
#endif
#define BLOCKS (MESSAGES + SWEEPS)
#define POSITIONS (2 * BLOCKS)
#define NOBODY 99       /* the token of a lease to nobody */

/* Committed blocks, of two positions each; the lane's holder may have opened the one after them. */
byte blocks = 0;
byte cursor = 0;        /* messages of the log that are in committed blocks */
byte u_blocks = 0;      /* 1: the lane's holder has opened a block that he has not committed */
byte u_cursor = 0;
byte u_born = 0;
byte message[POSITIONS];        /* from 1; 0: there is no such slice */
byte first_ticket[BLOCKS];
byte ticket = 0;                /* sequence ticket_<q>_<k>: no rollback undoes it */
byte deferred = 0;              /* messages that wait to be born in a block again: a mask */

byte lane = 0;                  /* advisory locks: who holds them */
byte slice_lock[POSITIONS];

/* lease_<q>_<k> and settlement_<q>_<k> */
byte token[POSITIONS];          /* 0: not leased */
byte leasing[POSITIONS];        /* whose transaction inserted the lease and is not over */
byte seq[POSITIONS];            /* how many settlements are committed */
byte settling[POSITIONS];       /* whose transaction inserted the next one and is not over */
bit final[POSITIONS];
bit extended[POSITIONS];

/* Not in the database: whose lease of a message is neither rolled back nor settled (a token), and what was acked. */
byte holder[MESSAGES + 1];
bit acked[MESSAGES + 1];

/* The properties. */
bool one_live_lease = true;
bool settled_once = true;
bool own_lease_only = true;             /* an ack settles what was leased to who acks */
bool live_lease_not_refused = true;
bool extend_not_overruled = true;
bool call_succeeds = true;              /* no unique_violation reaches a caller */
bool none_forgotten = true;

#define SLICES(no) (1 + (message[2 * ((no) - 1) + 1] != 0))
#define LEASED(p) (token[p] && (leasing[p] == 0 || leasing[p] == _pid))
#define LOCKED_BY_OTHERS(p) (slice_lock[p] != 0 && slice_lock[p] != _pid)

/* select … from mq.block_<q>_<k> order by block_no desc limit 1 */
inline read_newest_block()
{
    atomic {
        own = (lane == _pid && u_blocks);
        if
        :: own -> no = blocks + 1; seen = u_cursor
        :: else -> no = blocks; seen = cursor
        fi
    }
}

#define BEHIND_CURSOR (seen < MESSAGES || deferred)

/* A row of lease_<q>_<k>, its key not there. */
inline insert_lease(p, tok)
{
    one_live_lease = (holder[message[p]] == 0);
    assert(one_live_lease);
    settled_once = !acked[message[p]];
    assert(settled_once);
    token[p] = tok;
    leasing[p] = _pid;
    holder[message[p]] = tok;
    printf("%d: leases message %d, block %d slice %d, token %d\n", _pid, message[p], p / 2 + 1, p % 2, tok)
}

/* pg_try_advisory_xact_lock(slice) */
inline try_slice(p)
{
#ifdef WITHOUT_SLICE_LOCK
    ok = 1
#else
    if
    :: own -> ok = 1                    /* nobody else can see the block */
    :: !own && !LOCKED_BY_OTHERS(p) -> slice_lock[p] = _pid; ok = 1
    :: else -> ok = 0
    fi
#endif
}

/* mq._gather_<q>_<k>() of one message: the first slice of the newest block that is free; holes too. */
inline gather()
{
    g = 0;
    do
    :: no && g < SLICES(no) && got == 0 ->
        /* "Look before locking", then the lock. */
        atomic { p = 2 * (no - 1) + g; ok = !LEASED(p) };
        if
        :: ok ->
            atomic { try_slice(p) };
            if
            :: ok ->
#ifndef WITHOUT_LOOK_AFTER_LOCK
                /* "select x.part, x.rest … into l": with a snapshot newer than the lock */
                atomic { ok = !LEASED(p) };
#endif
                if
                :: ok ->
                    /* "insert into mq.lease_<q>_<k>" without ON CONFLICT. The key waits for who inserted the same. */
                    atomic {
#ifndef WITHOUT_LEASE_KEY
                        token[p] == 0 || leasing[p] == 0 || leasing[p] == _pid;
                        call_succeeds = (token[p] == 0);
                        assert(call_succeeds);
#endif
                        insert_lease(p, mine);
                        got = p + 1
                    }
                :: else
                fi
            :: else
            fi
        :: else
        fi;
        g++
    :: else -> break
    od;
    atomic { g = 0; p = 0; ok = 0 }
}

/* mq._take_<q>_<k>(): got becomes a position plus one, or stays 0. */
inline take()
{
    do
    :: got == 0 ->
        read_newest_block();
        /* Tickets: read the sequence, then draw. */
        do
        :: got == 0 && no && ticket < first_ticket[no - 1] + SLICES(no) - 1 ->
            atomic { ticket++; g = ticket - first_ticket[no - 1] };
            if
            :: g >= SLICES(no) -> break
            :: else ->
                atomic { p = 2 * (no - 1) + g; try_slice(p) };
                if
                :: ok ->
                    /* "insert into mq.lease_<q>_<k> … on conflict do nothing" */
                    atomic {
#ifndef WITHOUT_LEASE_KEY
                        token[p] == 0 || leasing[p] == 0 || leasing[p] == _pid;
#endif
                        if
#ifndef WITHOUT_LEASE_KEY
                        :: token[p] != 0
#endif
                        :: else -> insert_lease(p, mine); got = p + 1
                        fi
                    }
                :: else
                fi
            fi
        :: else -> break
        od;
        g = 0; p = 0; ok = 0;
        if
        :: got -> break
        :: else
        fi;
        /* mq._look_<q>_<k>() and mq._is_due_<q>(), without a lock */
        if
        :: !BEHIND_CURSOR -> gather(); break
        :: else
        fi;
        /* The lane; refused: go away (the wait for the gate only takes time). */
        atomic {
            if
            :: lane == 0 || lane == _pid -> lane = _pid; ok = 1
            :: else -> ok = 0
            fi
        };
        if
        :: !ok -> break
        :: else
        fi;
        /* Look again: no newer block, and something behind the cursor; else the subtransaction gives the lane back. */
        atomic {
            ok = (blocks == no && BEHIND_CURSOR);
            if :: !ok -> lane = 0 :: else fi
        };
        if
        :: ok ->
            /* A hole of this block? It would be one behind a newer block. Taken without the lane. */
            atomic {
                g = 0; ok = 0;
                do
                :: no && g < SLICES(no) ->
                    if
                    :: !LEASED(2 * (no - 1) + g) && !LOCKED_BY_OTHERS(2 * (no - 1) + g) -> ok = 1
                    :: else
                    fi;
                    g++
                :: else -> break
                od;
                g = 0;
                if :: ok -> lane = 0 :: else fi
            };
            if
            :: ok -> ok = 0; gather(); if :: got -> break :: else fi
            :: else ->
                /* mq._open_<q>_<k>(): what is due again first (mq._promote_), then what the window holds. */
                atomic {
                    u_cursor = cursor;
                    p = 2 * blocks;
                    do
                    :: p < 2 * blocks + 2 && (deferred & ~u_born) ->
                        g = 1;
                        do
                        :: deferred & ~u_born & (1 << g) -> break
                        :: else -> g++
                        od;
                        message[p] = g; u_born = u_born | (1 << g); p++
                    :: p < 2 * blocks + 2 && !(deferred & ~u_born) && u_cursor < MESSAGES ->
                        u_cursor++; message[p] = u_cursor; p++
                    :: else -> break
                    od;
                    first_ticket[blocks] = ticket + 1;
                    u_blocks = (p > 2 * blocks);
                    printf("%d: opens block %d of %d messages, the first is %d\n", _pid, blocks + 1, p - 2 * blocks, message[2 * blocks]);
                    p = 0; g = 0
                }
            fi
        :: else
        fi
    :: else -> break
    od;
    atomic { no = 0; own = 0; seen = 0; g = 0; p = 0; ok = 0 }
}

inline release_locks()
{
    atomic {
        if :: lane == _pid -> lane = 0 :: else fi;
        p = 0;
        do
        :: p < POSITIONS ->
            if :: slice_lock[p] == _pid -> slice_lock[p] = 0 :: else fi;
            p++
        :: else -> break
        od;
        p = 0
    }
}

/* A commit is visible first, and gives its locks back then. A rollback may be a crash. */
inline end_transaction(is_final, kept, took)
{
    if
    :: atomic {
        kept = 1;
        if
        :: lane == _pid && u_blocks ->
            blocks++; cursor = u_cursor; deferred = deferred & ~u_born;
            u_blocks = 0; u_cursor = 0; u_born = 0
        :: else
        fi;
        p = 0;
        do
        :: p < POSITIONS ->
            if :: leasing[p] == _pid -> leasing[p] = 0 :: else fi;
            if
            :: settling[p] == _pid ->
                settling[p] = 0; seq[p]++;
                if
                :: is_final ->
                    settled_once = (!final[p] && !acked[message[p]]);
                    assert(settled_once);
                    final[p] = 1; holder[message[p]] = 0;
                    if
                    :: took ->
                        deferred = deferred | (1 << message[p]);
                        extend_not_overruled = !extended[p];
                        assert(extend_not_overruled)
                    :: else -> acked[message[p]] = 1
                    fi
                :: else -> extended[p] = 1
                fi
            :: else
            fi;
            p++
        :: else -> break
        od;
        p = 0;
        printf("%d: commits\n", _pid)
       }
    :: atomic {
        kept = 0;
        p = 0;
        do
        :: p < POSITIONS ->
            if :: leasing[p] == _pid -> leasing[p] = 0; token[p] = 0; holder[message[p]] = 0 :: else fi;
            if :: settling[p] == _pid -> settling[p] = 0 :: else fi;
            p++
        :: else -> break
        od;
        p = 0;
        if
        :: lane == _pid && u_blocks ->
            message[2 * blocks] = 0; message[2 * blocks + 1] = 0; first_ticket[blocks] = 0;
            u_blocks = 0; u_cursor = 0; u_born = 0
        :: else
        fi;
        printf("%d: rolls back\n", _pid)
       }
    fi;
    release_locks()
}

/* mq._ack_<q>_<k>(), mq._settle_<q>_<k>(), mq._extend_<q>_<k>(): inserts the next seq of a lease, or finds that it is lost.
   ok: 1 settled, 0 lost, 2 gave up waiting for somebody who is settling the same lease (lock_timeout). expiring: it was found
   to have run out, which counts only as long as it was not extended. */
inline settle(p, expiring)
{
    s = 0;
    do
    ::  /* The lease by its position and token; then "s": what is settled so far. */
        atomic {
#ifdef WITHOUT_TOKEN
            ok = LEASED(p);
#else
            ok = (LEASED(p) && token[p] == mine);
#endif
            s = seq[p];
            if
            :: ok && (final[p] || (expiring && extended[p])) -> ok = 0
            :: else
            fi
        };
        if
        :: ok ->
            if
            :: atomic {
                /* "insert into mq.settlement_<q>_<k> … on conflict do nothing" */
#ifdef WITHOUT_SETTLEMENT_KEY
                ok = 1;
#else
                settling[p] == 0;               /* waits for who inserted the same */
                ok = (seq[p] == s);
#endif
                if
                :: ok -> settling[p] = _pid
                :: else
                fi
               };
               if :: ok -> break :: else fi     /* somebody was faster: look again */
            :: settling[p] != 0 -> ok = 2; break
            fi
        :: else -> break
        fi
    od;
    s = 0
}

proctype Consumer(byte mine, rounds)
{
    byte no = 0, seen = 0, g = 0, p = 0, at = 0, got = 0, s = 0, what = 0, ok = 0;
    bit own = 0, kept = 0;
    do
    :: rounds ->
        rounds--;
        take();
        if
        :: got ->
            atomic { at = got - 1; what = message[at] };
            end_transaction(0, kept, 0);
            /* The client may have the receipt even where the transaction was rolled back in the end. Now it extends,
               acknowledges, both or nothing. */
            if
            :: settle(at, 0); end_transaction(0, kept, 0)
            :: skip
            fi;
            if
            :: settle(at, 0);
                atomic {
                    own_lease_only = (ok != 1 || holder[what] == mine);
                    assert(own_lease_only);
                    live_lease_not_refused = (ok != 0 || holder[what] != mine);
                    assert(live_lease_not_refused);
                    printf("%d: acks message %d with token %d: %d\n", _pid, what, mine, ok)
                };
                end_transaction(1, kept, 0)
            :: skip
            fi
        :: else -> end_transaction(0, kept, 0)
        fi;
        atomic { got = 0; at = 0; what = 0; ok = 0; kept = 0; mine++ }
    :: else -> break
    od
}

/* mq._sweep_<q>_<k>(), one lease or hole at a time; what it took is deferred, due at once, in the same transaction. */
proctype Sweeper()
{
    byte p = 0, at = 0, mine = 0, s = 0, ok = 0, sweeps = SWEEPS;
    bit own = 0, kept = 0;
    do
    :: sweeps ->
        sweeps--;
        if
        ::  /* mq._stale_<q>_<k>(): any lease, as any may have run out */
            atomic {
                at = 0;
                do
                :: at < POSITIONS && !(token[at] && token[at] != NOBODY && leasing[at] == 0 && !final[at] && !extended[at]) -> at++
                :: at < POSITIONS - 1 -> at++
                :: break
                od;
                ok = (at < POSITIONS && token[at] && token[at] != NOBODY && leasing[at] == 0 && !final[at] && !extended[at]);
                if :: ok -> mine = token[at] :: else -> at = 0 fi
            };
            if
            :: ok ->
                settle(at, 1);
                printf("%d: expires block %d slice %d: %d\n", _pid, at / 2 + 1, at % 2, ok);
                end_transaction(1, kept, 1)
            :: else
            fi
        ::  /* A slice of an older block that nobody leased; the lock; then look and insert, one statement. */
            atomic {
                at = 0;
                do
                :: at < POSITIONS - 1 -> at++
                :: break
                od;
                ok = (at / 2 + 1 < blocks && message[at] && !LEASED(at));
                if :: !ok -> at = 0 :: else fi
            };
            if
            :: ok ->
                atomic { try_slice(at) };
                if
                :: ok ->
                    atomic {
#ifndef WITHOUT_LOOK_AFTER_LOCK
                        ok = !LEASED(at);
#endif
                        if
                        :: ok ->
#ifndef WITHOUT_LEASE_KEY
                            token[at] == 0 || leasing[at] == 0 || leasing[at] == _pid;
                            call_succeeds = (token[at] == 0);
                            assert(call_succeeds);
#endif
                            insert_lease(at, NOBODY)
                        :: else
                        fi
                    };
                    if
                    :: ok -> mine = NOBODY; settle(at, 0)
                    :: else
                    fi
                :: else
                fi;
                end_transaction(1, kept, 1)
            :: else
            fi
        fi;
        atomic { at = 0; ok = 0; mine = 0; kept = 0 }
    :: else -> break
    od
}

init
{
    byte m = 1, p = 0;
    bit found = 0;
    atomic {
        run Consumer(1, ROUNDS);
        run Consumer(11, 1);
#if CONSUMERS > 2
        run Consumer(21, 1);
#endif
        run Sweeper()
    };
    /* When all have ended: what was not acked is in the window, or deferred, or in a block where it is leased, so that
       it will be settled or run out, or a hole, which the sweep finds. */
    _nr_pr == 1;
    d_step {
        do
        :: m <= MESSAGES ->
            found = (acked[m] || m > cursor || (deferred & (1 << m)));
            p = 0;
            do
            :: p < 2 * blocks ->
                if
                :: message[p] == m && !final[p] -> found = 1
                :: else
                fi;
                p++
            :: else -> break
            od;
            none_forgotten = found;
            assert(none_forgotten);
            m++
        :: else -> break
        od
    }
}
