/* The life of segments: is a slot ever emptied while something in it is needed, and does a row ever go where nobody
   looks any more?

   SQL: sql/functions/enqueue.sql, _internal/fence.sql (_redirect_message, _fence, _unfence), maintain.sql,
   _internal/segment.sql (_rotate, _mend_segments, _seal, _is_exhausted, _is_drained, _free, _advance_head),
   dequeue.sql and, of _take_ and _open_, what they lock and see of a slot.

   Two slots of one queue, rotated over and over by one maintainer. A message is a bit; one that is delivered again gets
   another bit. What a slot holds are masks of messages, of committed rows only; what a transaction wrote and has not
   committed is in variables of its process. Who is claimed by whom within a block is in claim.pml: here a slice is
   picked, locked and leased in one step. Table locks are masks of processes, and go at the end of the transaction. Each
   "atomic" is one statement or less.

   -DWITHOUT_CURSOR_FIRST     hazard 14: "is every lease settled" is asked before "is everything claimed"
   -DWITHOUT_FENCE            producers are not led on to the open segment
   -DWITHOUT_SEAL_WAITING     the fence is put up without a lock that waits for writers in flight
   -DWITHOUT_FENCE_ON_FREE    the fence goes when the slot is emptied, not when it is open again
   -DWITHOUT_REGISTER_CHECK   what is due again is born in any segment, not just in the open one

   -DWITHOUT_COMMITTED_HEAD   the head passes a segment that this very call found exhausted: rolled back, that takes the fence
                              along but not the head, and what arrives behind it waits for the next upkeep

   -DSTRICT_HEAD              looks after each call of maintain, not only in the end, whether the head skips what can be claimed */

#ifdef WITHOUT_COMMITTED_HEAD
#define HEAD_PASSES EXHAUSTED
#else
#define HEAD_PASSES catalogue[1 - open]
#endif

#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef CALLS
#define CALLS 3                 /* of maintain */
#endif
#ifndef SWEEPS
#define SWEEPS 1                /* so many messages may be taken back */
#endif
#ifndef DEFERRED
#define DEFERRED 0              /* 1: one is deferred at first */
#endif

/* Register register_<q>: no snapshot, no rollback. */
byte open = 0;
byte head = 0;

/* The catalogue, mq.segment and the triggers: as committed, and as the maintainer's transaction has it. */
#define EXISTS 1
#define CLOSED 2
#define SEALED 4
#define EXHAUSTED 8
#define DRAINED 16
#define FENCED 32
byte catalogue[2];
byte changed[2];

/* The tables of a slot, as committed. */
byte log_rows[2];               /* at first message 1 is in slot 0 */
byte in_blocks[2];
byte in_newest[2];
byte leased[2];
byte settled[2];
byte deferred = 4 * DEFERRED;   /* the deferral set: messages to be delivered again, due */

/* Rows that are not committed: of log and settlement. */
byte arriving[2];
byte settling[2];

/* Locks. */
byte reading[2];                /* access share, or more, on the slot's tables */
byte writing[2];                /* row exclusive on the log */
bit fencing[2];                 /* share row exclusive on the log: the maintainer */
bit emptying[2];                /* access exclusive on all four: the maintainer */
byte lane[2];
byte slices[2];                 /* slice locks, by message */

/* Not in the database. */
byte sent = 1 + 4 * DEFERRED;               /* what was committed */
byte acked = 0;
byte gone = 0;                  /* settled and emptied */
byte again = 2 + DEFERRED;      /* the next bit for a message that is delivered again */

/* The properties. */
bool not_into_sealed = true;    /* no row enters a sealed segment, or a slot without a segment */
bool emptied_when_settled = true;
bool settled_once = true;
bool nothing_phantom = true;     /* what is leased is in the log and was not settled */
bool all_deliverable = true;
#ifdef STRICT_HEAD
bool head_is_right = true;
#endif

#define ME (1 << _pid)
#define OTHERS(locks) (locks & ~ME)

/* mq.enqueue(), mq._append_0() */
proctype Producer(byte row)
{
    byte k = 0, r = 0;
    atomic { k = open; printf("%d: reads the register: slot %d\n", _pid, k) };
    do
    ::  /* "insert into mq.log_<q>_<k>": its lock waits for upkeep; then the trigger, if it is enabled */
        atomic { !fencing[k] && !emptying[k] -> writing[k] = writing[k] | ME };
        atomic {
            r = k;
#ifndef WITHOUT_FENCE
            if :: catalogue[k] & FENCED -> r = open :: else fi
#endif
        };
        if
        :: r == k ->
            atomic {
                not_into_sealed = (k == open || (catalogue[k] & (EXISTS | SEALED)) == EXISTS);
                assert(not_into_sealed);
                arriving[k] = arriving[k] | row;
                printf("%d: inserts message %d into slot %d\n", _pid, row, k)
            };
            break
        :: else -> k = r
        fi
    od;
    r = 0;
    atomic {
        if
        :: log_rows[k] = log_rows[k] | row; sent = sent | row; printf("%d: commits\n", _pid)
        :: printf("%d: rolls back\n", _pid)
        fi;
        arriving[k] = arriving[k] & ~row;
        writing[0] = OTHERS(writing[0]); writing[1] = OTHERS(writing[1]);
        k = 0
    }
}

#ifdef WITHOUT_REGISTER_CHECK
#define MAY_BE_BORN true
#else
#define MAY_BE_BORN (open == k)
#endif

/* mq.dequeue(), and mq.ack() in the next transaction */
proctype Consumer()
{
    byte k = 0, seen = 0, block = 0, born = 0, lease = 0, locked = 0;
    bit opened = 0;
    /* Where to look: the register, then the segments as of the catalogue. */
    if
    :: atomic { k = open }
    :: atomic {
        head != open && (catalogue[1 - open] & (EXISTS | EXHAUSTED)) == EXISTS -> k = 1 - open
       }
    fi;
    /* The newest block, which takes a lock on the slot's tables to the end of the transaction */
    atomic {
        !emptying[k] -> reading[k] = reading[k] | ME;
        seen = in_blocks[k];
        lease = in_newest[k] & ~leased[k]
    };
    /* A free slice of it, though by now there may be a newer block: the lock, and the lease's key */
    atomic {
        lease = lease & ~leased[k] & ~slices[k];
        lease = lease & -lease;
        locked = lease;
        slices[k] = slices[k] | lease
    };
    if
    :: lease -> skip
    :: !lease && ((log_rows[k] & ~seen) || (k == open && deferred)) ->
        /* The lane, and look again: no newer block */
        if
        :: atomic { lane[k] == 0 -> lane[k] = _pid; opened = 1 }
        :: lane[k] != 0
        fi;
        if
        :: opened && in_blocks[k] == seen ->
            /* What is due again is born in the block, in the open segment only: with its log locked against sealing,
               the register cannot be stale. The lock may time out, too. */
            if
            :: atomic { deferred && !fencing[k] -> writing[k] = writing[k] | ME };
                if
                :: MAY_BE_BORN -> atomic {
                        born = deferred;
                        if :: born ->
                            not_into_sealed = (k == open || (catalogue[k] & (EXISTS | SEALED)) == EXISTS);
                            assert(not_into_sealed);
                            arriving[k] = arriving[k] | born
                        :: else
                        fi
                    }
                :: else
                fi
            :: skip
            fi;
            /* The window; then "insert into mq.block_<q>_<k>" and a lease of its first slice. Up to two slices. */
            atomic {
                block = log_rows[k] & ~seen;
                block = block & ~(block & (block - 1) & ((block & (block - 1)) - 1));
                block = block | born;
                lease = block & -block;
                printf("%d: opens a block in slot %d: %x\n", _pid, k, block)
            }
        :: else
        fi
    :: else
    fi;
    seen = 0; opened = 0;
    if
    :: atomic {
        if
        :: block ->
            log_rows[k] = log_rows[k] | born; arriving[k] = arriving[k] & ~born; deferred = deferred & ~born;
            in_blocks[k] = in_blocks[k] | block; in_newest[k] = block
        :: else
        fi;
        leased[k] = leased[k] | lease;
        nothing_phantom = ((lease & ~(log_rows[k] & ~settled[k])) == 0);
        assert(nothing_phantom);
        printf("%d: leases message %d of slot %d, commits\n", _pid, lease, k)
       }
    :: atomic { arriving[k] = arriving[k] & ~born; lease = 0; printf("%d: rolls back\n", _pid) }
    fi;
    block = 0; born = 0;
    atomic {
        reading[k] = OTHERS(reading[k]); writing[k] = OTHERS(writing[k]);
        if :: lane[k] == _pid -> lane[k] = 0 :: else fi;
        slices[k] = slices[k] & ~locked;
        locked = 0
    };
    /* mq.ack(), or never. The settlement's key makes the second wait for the first. */
    if
    :: lease ->
        atomic { !emptying[k] -> reading[k] = reading[k] | ME };
        if
        :: atomic { (settling[k] & lease) == 0 ->
            if
            :: (leased[k] & lease) && !(settled[k] & lease) -> settling[k] = settling[k] | lease
            :: else -> lease = 0; printf("%d: lost its lease\n", _pid)
            fi
           }
        :: atomic { settling[k] & lease -> lease = 0 }
        fi;
        if
        :: atomic {
            settled_once = (((acked | settled[k]) & lease) == 0);
            assert(settled_once);
            settled[k] = settled[k] | lease; acked = acked | lease; settling[k] = settling[k] & ~lease;
            printf("%d: acks message %d of slot %d, commits\n", _pid, lease, k)
           }
        :: atomic { settling[k] = settling[k] & ~lease; printf("%d: rolls back\n", _pid) }
        fi;
        atomic { reading[k] = OTHERS(reading[k]) }
    :: skip
    fi
}

/* mq.sweep_stale(), or the sweep in a dequeue: a lease that ran out, or a hole in an older block */
proctype Sweeper()
{
    byte k = 0, m = 0, sweeps = SWEEPS;
    bit hole = 0;
    do
    :: sweeps ->
        sweeps--;
        if :: k = 0 :: k = 1 fi;
        atomic {
            !emptying[k] -> reading[k] = reading[k] | ME;
            if
            :: true ->
                m = leased[k] & ~settled[k] & ~settling[k];
                if :: m = m & -m :: m = m & (m - 1) & -(m & (m - 1)) fi;
                settling[k] = settling[k] | m
            :: true ->
                m = in_blocks[k] & ~in_newest[k] & ~leased[k] & ~slices[k];
                m = m & -m;
                hole = 1;
                slices[k] = slices[k] | m
            fi
        };
        if
        :: atomic { m ->
            settled_once = ((settled[k] & m) == 0);
            assert(settled_once);
            leased[k] = leased[k] | m; settled[k] = settled[k] | m;
            deferred = deferred | (1 << again); sent = sent | (1 << again); again++;
            printf("%d: takes back message %d of slot %d, commits\n", _pid, m, k)
           }
        :: skip
        fi;
        atomic {
            settling[k] = settling[k] & ~m;
            slices[k] = slices[k] & ~(m * hole);
            reading[k] = OTHERS(reading[k]);
            m = 0; k = 0; hole = 0
        }
    :: else -> break
    od
}

#define IS_EXHAUSTED_1 (in_newest[k] & ~leased[k])
#define IS_DRAINED ((in_blocks[k] & ~settled[k]) == 0)

/* mq._seal(), mq._is_exhausted(), mq._is_drained() */
inline advance(k)
{
    if
    :: changed[k] & CLOSED ->
        if
        :: !(changed[k] & SEALED) ->
            /* busy if somebody writes to it */
            atomic {
#ifdef WITHOUT_SEAL_WAITING
                if
                :: changed[k] = changed[k] | SEALED | FENCED; printf("%d: seals slot %d\n", _pid, k)
                fi
#else
                if
                :: writing[k] == 0 -> fencing[k] = 1; changed[k] = changed[k] | SEALED | FENCED; printf("%d: seals slot %d\n", _pid, k)
                :: else
                fi
#endif
            }
        :: else
        fi;
#ifdef WITHOUT_CURSOR_FIRST
        drained = IS_DRAINED;
#endif
        if
        :: (changed[k] & SEALED) && !(changed[k] & EXHAUSTED) ->
            /* One statement: the newest block and its leases. It calls _look_, which has a newer snapshot. */
            atomic { seen = in_blocks[k]; free = IS_EXHAUSTED_1 };
            atomic {
                if
                :: !free && (log_rows[k] & ~seen) == 0 -> changed[k] = changed[k] | EXHAUSTED; printf("%d: slot %d is exhausted\n", _pid, k)
                :: else
                fi;
                free = 0; seen = 0
            }
        :: else
        fi;
        if
        :: (changed[k] & EXHAUSTED) && !(changed[k] & DRAINED) ->
            atomic {
#ifndef WITHOUT_CURSOR_FIRST
                drained = IS_DRAINED;
#endif
                if
                :: drained -> changed[k] = changed[k] | DRAINED; printf("%d: slot %d is drained\n", _pid, k)
                :: else
                fi
            }
        :: else
        fi;
        drained = 0
    :: else
    fi
}

/* mq._free(): what an earlier call drained */
inline free_slot(k)
{
    atomic {
        if
        :: (catalogue[k] & DRAINED) && k != open && !reading[k] && !writing[k] ->
            emptying[k] = 1;
            emptied_when_settled = ((log_rows[k] & ~settled[k]) == 0 && !arriving[k]);
            assert(emptied_when_settled);
#ifdef WITHOUT_FENCE_ON_FREE
            changed[k] = 0;
#else
            changed[k] = FENCED;
#endif
            made = made | (1 << k);
            printf("%d: empties slot %d\n", _pid, k)
        :: else
        fi
    }
}

/* mq.maintain(), under the queue's upkeep lock; rotate_segment is part of it */
proctype Maintainer()
{
    byte calls = CALLS, seen = 0, free = 0, made = 0;
    bit drained = 0;
    do
    :: calls ->
        calls--;
        /* mq._mend_segments() */
        atomic {
            if
            :: !(changed[open] & EXISTS) ->
                changed[open] = changed[open] | EXISTS;
                changed[1 - open] = changed[1 - open] | ((changed[1 - open] & EXISTS) * CLOSED);
                made = 1 << open;
                printf("%d: mends slot %d\n", _pid, open)
            :: else
            fi
        };
        /* mq._rotate(), perhaps: the register moves at once. Never twice in a transaction. */
        if
        :: atomic { !(changed[1 - open] & EXISTS) && made == 0 ->
            changed[1 - open] = changed[1 - open] | EXISTS;
            changed[open] = changed[open] | CLOSED;
            open = 1 - open;
            made = 1 << open;
            printf("%d: rotates to slot %d\n", _pid, open)
           }
        :: skip
        fi;
        advance(0);
        advance(1);
        /* mq._advance_head(): the register again */
        atomic {
            head = open;
            if
            :: (changed[1 - open] & EXISTS) && !(changed[1 - open] & HEAD_PASSES & EXHAUSTED) -> head = 1 - open
            :: else
            fi
        };
        free_slot(0);
        free_slot(1);
        /* mq._unfence() of the open log */
        atomic {
            if
            :: (changed[open] & FENCED) && !writing[open] -> fencing[open] = 1; changed[open] = changed[open] & ~FENCED
            :: else
            fi
        };
        if
        :: atomic {
            catalogue[0] = changed[0]; catalogue[1] = changed[1];
            if
            :: emptying[0] -> gone = gone | log_rows[0];
                log_rows[0] = 0; in_blocks[0] = 0; in_newest[0] = 0; leased[0] = 0; settled[0] = 0
            :: else
            fi;
            if
            :: emptying[1] -> gone = gone | log_rows[1];
                log_rows[1] = 0; in_blocks[1] = 0; in_newest[1] = 0; leased[1] = 0; settled[1] = 0
            :: else
            fi;
            printf("%d: commits\n", _pid)
           }
        :: atomic { changed[0] = catalogue[0]; changed[1] = catalogue[1]; printf("%d: rolls back\n", _pid) }
        fi;
#ifdef STRICT_HEAD
        d_step {
            head_is_right = (head != open || !(log_rows[1 - open] & ~in_blocks[1 - open]));
            assert(head_is_right)
        };
#endif
        atomic { fencing[0] = 0; fencing[1] = 0; emptying[0] = 0; emptying[1] = 0; made = 0 }
    :: else -> break
    od
}

#define REACHABLE(k) ((!(log_rows[k] & ~in_blocks[k]) || !(catalogue[k] & EXHAUSTED)) && \
    (!(log_rows[k] & ~settled[k]) || open == k || (catalogue[k] & EXISTS)))

init
{
    atomic {
        catalogue[0] = EXISTS; changed[0] = EXISTS;
        catalogue[1] = FENCED; changed[1] = FENCED;
        log_rows[0] = 1;
        run Producer(2);
        run Consumer();
#if CONSUMERS > 1
        run Consumer();
#endif
#if SWEEPS > 0
        run Sweeper();
#endif
        run Maintainer()
    };
    /* When all have ended: everything that was committed is deferred, or gone because it was settled, or in a slot; what
       is not claimed there is in a segment that consumers visit, at the latest after the next call of maintain, which
       mends the catalogue and moves the head. */
    _nr_pr == 1;
    d_step {
#ifdef STRICT_HEAD
        head_is_right = (head != open || !(log_rows[1 - open] & ~in_blocks[1 - open]));
        assert(head_is_right);
#endif
        all_deliverable = ((sent & ~(log_rows[0] | log_rows[1] | deferred | gone)) == 0 && REACHABLE(0) && REACHABLE(1));
        assert(all_deliverable)
    }
}
