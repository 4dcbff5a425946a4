/* Windows between snapshots: is every committed row in exactly one block?

   SQL: sql/functions/_internal/snapshot.sql (_snapshot, _ranges), template_open.sql (_look_, _open_, _mark_) and the
   part of template_take.sql (_take_) that takes the lane. Slices and leases are in claim.pml; here a message counts as
   delivered when the block that names it commits.

   Transaction ids are given in order of the first write, and end in any order, by a commit or a rollback (a crash is
   one). A set of rows is a bit mask, in which transaction x has the bits 2x and 2x+1: so masks are in the order
   (xid, msg_id) of the log's index. A snapshot is the mask of what had ended when it was taken; its xmax is one above
   the highest of these, as in PostgreSQL. Each "atomic" is one statement, with a snapshot of its own.

   -DWITHOUT_ONE_SNAPSHOT     hazard 1: the stragglers and the gaps are read by two statements, and bounded by
                              the snapshot of each instead of one cur for both
   -DWITHOUT_OWN_RUNNING      hazard 2: cur is pg_current_snapshot() as it is, without the own transaction
   -DWITHOUT_LOOK_AFTER_LOCK  hazard 4, on the lane: the cursor is read with a snapshot older than the lock
   -DWITHOUT_LOOK_IN_MARK     hazard 4, in _mark_: "try the lock or exists (a newer block)" is one expression
   -DWITHOUT_BLOCK_KEY        besides: block_<q>_<k> has no primary key
   -DWITHOUT_STRAGGLERS       _ranges without its first loop */

#ifndef PRODUCERS
#define PRODUCERS 3
#endif
#ifndef CALLS
#define CALLS 3         /* a consumer's transaction is up to so many calls of dequeue and enqueue */
#endif
#ifndef MARKS
#define MARKS 0         /* upkeep that moves the sweep's marks with an empty block */
#endif
#define BLOCK 2         /* messages in a block: stands for the 64 slices */

short next_xid = 0;

short log_rows = 0;       /* rows that are in log_<q>_<k>, committed or not */
short ended = 0;          /* transactions that are not in a new snapshot any more */
short committed = 0;

byte lane = 0;          /* who holds the lane's advisory lock, to the end of his transaction */

/* The newest committed block, as of next_: the first row that it left in its window, or 0. */
byte c_no = 0;
short c_prev = 0;
short c_cur = 0;          /* 0 is null */
short c_next = 0;
short delivered = 0;      /* what is in committed blocks */

/* The newest block of whoever holds the lane. It is seen by its own transaction only. */
byte u_no = 0;
short u_prev = 0;
short u_cur = 0;
short u_next = 0;
short u_taken = 0;        /* what is in blocks of this transaction */

/* The properties. */
bool delivered_once = true;
bool all_delivered = true;
bool nothing_phantom = true;
bool call_succeeds = true;

#define VISIBLE (log_rows & (committed | own))
/* All positions below xmax of a snapshot. */
inline below_xmax(mask, snapshot)
{
    mask = snapshot | (snapshot >> 1);
    mask = mask | (mask >> 2);
    mask = mask | (mask >> 4);
    mask = mask | (mask >> 8)
}

/* mq._snapshot() */
inline take_snapshot(snapshot)
{
    snapshot = ended;
#ifdef WITHOUT_OWN_RUNNING
    below_xmax(m, snapshot);
    if
    :: own & m -> snapshot = snapshot | own     /* below xmax and not among the running ones: seems visible */
    :: else
    fi;
    m = 0
#endif
}

/* select … from mq.block_<q>_<k> order by block_no desc limit 1 */
inline read_newest_block()
{
    if
    :: lane == _pid && u_no -> b_no = u_no; b_prev = u_prev; b_cur = u_cur; b_next = u_next
    :: else -> b_no = c_no; b_prev = c_prev; b_cur = c_cur; b_next = c_next
    fi
}

/* mq._look_<q>_<k>(): found is not 0 if there is something behind the cursor. */
inline look()
{
    if
    :: b_cur -> found = 1
    :: else -> take_snapshot(s); found = VISIBLE & s & ~b_prev
    fi;
    s = 0
}

inline assign_xid()
{
    if
    :: own -> skip
    :: else -> own = 3 << (2 * next_xid); next_xid++
    fi
}

/* mq._append_0(): a row, in this transaction's place in the log. */
inline enqueue()
{
    atomic {
        assign_xid();
        if
        :: (log_rows & own) == 0 -> log_rows = log_rows | (own & 21845)
        :: else -> log_rows = log_rows | own
        fi;
        printf("%d: enqueues; rows of the log: %x\n", _pid, log_rows)
    }
}

/* mq._take_<q>_<k>(), mq._open_<q>_<k>() */
inline dequeue()
{
    /* "select y.block_no … into b": what is free in this block is somebody's already. Then _look_, without a lock. */
    atomic { read_newest_block(); printf("%d: reads block %d\n", _pid, b_no) };
    atomic { look(); had = (lane == _pid) };
    if
    :: found ->
        /* pg_try_advisory_xact_lock(lane); refused means to wait for the gate and then to go away. */
        atomic {
            if
            :: lane == 0 || lane == _pid -> lane = _pid; found = 1; printf("%d: has the lane\n", _pid)
            :: else -> found = 0
            fi
        };
        if
        :: found ->
#ifndef WITHOUT_LOOK_AFTER_LOCK
            /* Look again: "not exists (… x.block_no > b.block_no)" and _look_. */
            atomic {
                if
                :: (lane == _pid && u_no && u_no > b_no) || c_no > b_no -> found = 0
                :: else -> look()
                fi
            };
#endif
            if
            :: found -> open_block()
            :: else ->
                atomic { if :: !had -> lane = 0 :: else fi }    /* the subtransaction gives the lane back */
            fi
        :: else
        fi
    :: else
    fi;
    atomic { b_no = 0; b_prev = 0; b_cur = 0; b_next = 0; found = 0; had = 0 }
}

inline open_block()
{
#ifndef WITHOUT_LOOK_AFTER_LOCK
    /* "select x.* into b" */
    atomic { read_newest_block() };
#endif
    /* v_cur := mq._snapshot(), unless the last block ended inside its window */
    atomic {
        cur = b_cur;
        if :: !cur -> take_snapshot(cur) :: else fi;
        printf("%d: opens block %d, prev %x, cur %x\n", _pid, b_no + 1, b_prev, cur)
    };
    /* mq._slices_<q>_<k>(): first the stragglers, which ran in prev and are visible in cur … */
    atomic {
        below_xmax(m, b_prev);
        found = VISIBLE & cur & ~b_prev & m;
#ifdef WITHOUT_STRAGGLERS
        found = 0;
#endif
        m = 0
    };
    /* … then the gaps, from xmax(prev) to xmax(cur). */
    atomic {
        below_xmax(m, b_prev);
#ifdef WITHOUT_ONE_SNAPSHOT
        if :: !b_cur -> take_snapshot(cur) :: else fi;
#endif
        found = found | (VISIBLE & cur & ~b_prev & ~m);
        if :: b_next -> found = found & ~(b_next - 1) :: else fi;
        /* The first so many; found becomes what is left over. */
        m = 0;
        n = 0;
        do
        :: found && n < BLOCK -> m = m | (found & -found); found = found & (found - 1); n++
        :: else -> break
        od;
        n = 0
    };
    /* "insert into mq.block_<q>_<k>"; false if there was nothing */
    atomic {
        if
        :: m ->
            assign_xid();
#ifndef WITHOUT_BLOCK_KEY
            call_succeeds = (c_no <= b_no);
            assert(call_succeeds);
#endif
            delivered_once = ((u_taken & m) == 0);
            assert(delivered_once);
            u_no = b_no + 1;
            u_taken = u_taken | m;
            u_next = found & -found;
            if
            :: u_next -> u_prev = b_prev; u_cur = cur
            :: else -> u_prev = cur; u_cur = 0       /* the window is used up */
            fi;
            printf("%d: block %d has rows %x\n", _pid, u_no, m)
        :: else
        fi;
        m = 0; cur = 0
    }
}

/* A commit is visible first, and gives its locks back then. A rollback may come at any time, which is also what a crash
   does; from here it looks the same as one at the end. */
inline end_transaction()
{
    if
    :: atomic {
        committed = committed | own;
        ended = ended | own;
        if
        :: lane == _pid && u_no ->
            delivered_once = ((delivered & u_taken) == 0);
            assert(delivered_once);
            delivered = delivered | u_taken;
            nothing_phantom = ((delivered & ~(log_rows & committed)) == 0);
            assert(nothing_phantom);
            c_no = u_no; c_prev = u_prev; c_cur = u_cur; c_next = u_next;
            u_no = 0; u_prev = 0; u_cur = 0; u_next = 0; u_taken = 0
        :: else
        fi;
        printf("%d: commits, ended now %x\n", _pid, ended)
       }
    :: atomic {
        log_rows = log_rows & ~own;
        ended = ended | own;
        if
        :: lane == _pid -> u_no = 0; u_prev = 0; u_cur = 0; u_next = 0; u_taken = 0
        :: else
        fi;
        printf("%d: rolls back, ended now %x\n", _pid, ended)
       }
    fi;
    atomic { own = 0; if :: lane == _pid -> lane = 0 :: else fi }
}

/* mq.enqueue(), once or twice in one transaction */
proctype Producer(byte rows)
{
    short own = 0;
    do
    :: rows -> enqueue(); rows--
    :: else -> break
    od;
    end_transaction()
}

/* mq.dequeue() and mq.enqueue() in one transaction, in any order; dequeue only in READ COMMITTED */
proctype Consumer()
{
    short own = 0, b_prev = 0, b_cur = 0, b_next = 0, cur = 0, found = 0, m = 0, s = 0;
    byte b_no = 0, n = 0, calls = CALLS;
    bit had = 0, wrote = 0;
    do
    :: calls -> calls--; dequeue()
    :: calls && !wrote -> calls--; wrote = 1; enqueue()
    :: break
    od;
    calls = 0; wrote = 0;
    end_transaction()
}

/* mq._mark_<q>_<k>(), of maintain(): appends a block without slices, with the cursor of the newest block. */
proctype Marker()
{
    short own = 0, b_prev = 0, b_cur = 0, b_next = 0;
    byte b_no = 0, newest = 0;
    /* "select x.* into b": the newest block, all of it leased */
    atomic { read_newest_block(); newest = b_no };
    if
    :: b_no ->
#ifdef WITHOUT_LOOK_IN_MARK
        atomic { newest = c_no };
#endif
        atomic { lane == 0 -> lane = _pid; printf("%d: has the lane, marks block %d\n", _pid, b_no + 1) };
#ifndef WITHOUT_LOOK_IN_MARK
        atomic { newest = c_no };
#endif
        atomic {
            if
            :: newest == b_no ->
                assign_xid();
#ifndef WITHOUT_BLOCK_KEY
                call_succeeds = (c_no <= b_no);
                assert(call_succeeds);
#endif
                u_no = b_no + 1; u_prev = b_prev; u_cur = b_cur; u_next = b_next
            :: else
            fi
        }
    :: else
    fi;
    atomic { b_no = 0; b_prev = 0; b_cur = 0; b_next = 0; newest = 0 };
    end_transaction()
}

init
{
    short own = 0, b_prev = 0, b_cur = 0, b_next = 0, cur = 0, found = 0, m = 0, s = 0;
    byte b_no = 0, n = 0, n_before = 0;
    bit had = 0;
    atomic {
        run Producer(2);
#if PRODUCERS > 1
        run Producer(1);
#endif
#if PRODUCERS > 2
        run Producer(1);
#endif
        run Consumer();
        run Consumer();
#if MARKS
        run Marker()
#endif
    };
    /* When all have ended, one consumer who is alone must get the rest: so nothing was lost behind a window. */
    _nr_pr == 1;
    atomic {
        do
        :: n_before = u_no; dequeue(); if :: u_no == n_before -> break :: else fi
        od;
        delivered_once = ((delivered & u_taken) == 0);
        assert(delivered_once);
        delivered = delivered | u_taken;
        all_delivered = (delivered == (log_rows & committed));
        assert(all_delivered)
    }
}
