-- The catalogue: what changes rarely. Messages live in tables that are made per queue and slot (see sql/README.md).

create table mq.queue (
    queue_id           int not null generated always as identity,
    name               text not null,
    mode               text not null,
    visibility_timeout interval not null,
    max_attempts       int not null,
    retry_backoff      interval not null,
    retry_backoff_max  interval not null,
    retry_policy       text not null default 'exponential',
    retry_delays       interval[],
    retry_jitter       float8 not null default 0.5,
    priority_ageing    interval,
    max_depth          bigint,     -- null: as many as come
    overflow           text not null default 'reject',
    dedup_window       interval not null default '5 minutes',
    max_in_flight_per_key int,     -- null: as many as are asked for
    fair               boolean not null default false,
    max_in_flight      int,        -- null: no limit
    rate_limit         int,
    rate_period        interval,
    retention          interval not null,
    result_retention   interval not null default '1 hour',
    notify             text not null,
    segment_age        interval not null,
    segment_bytes      bigint not null,
    paused             boolean not null default false,
    created_at         timestamptz not null default clock_timestamp(),
    -- Registers are sequences that are read and set without a transaction: see _internal/register.sql.
    msg_ids            regclass not null,
    register           regclass not null,
    lanes              regclass not null,
    notified           regclass not null,
    -- Where the stored transaction ids come from (mq._home): in another database or cluster this is a copy.
    home               text not null,
    append_home        text not null,  -- home, once what _append_0 knows of the queue was made for that; else upkeep makes it
    constraint queue_pkey primary key (queue_id),
    constraint queue_name_key unique (name),
    constraint queue_name_check check (name ~ '^[A-Za-z0-9_.-]{1,48}$'),
    constraint queue_mode_check check (mode in ('lease', 'transaction')),
    constraint queue_home_check check (home ~ '^[0-9]+[.]-?[0-9]+$'),
    constraint queue_notify_check check (notify in ('auto', 'always', 'never')),
    constraint queue_retry_check check (retry_policy in ('fixed', 'linear', 'exponential', 'list')
                                        and (retry_policy = 'list') = (retry_delays is not null) and retry_jitter between 0 and 1),
    constraint queue_depth_check check (overflow in ('reject', 'drop_oldest', 'dead_letter') and max_depth > 0
                                        and (overflow = 'reject' or max_depth is not null)),
    constraint queue_limit_check check (max_in_flight > 0 and rate_limit > 0 and (rate_limit is null) = (rate_period is null))
);
comment on table mq.queue is 'One row a queue: its settings, and the registers that say where its messages are.';

create table mq.subscription (
    queue_id        int not null,
    subscription_id smallint not null,
    name            text not null,
    created_at      timestamptz not null default clock_timestamp(),
    constraint subscription_pkey primary key (queue_id, subscription_id),
    constraint subscription_name_key unique (queue_id, name)
);
comment on table mq.subscription is 'Who reads a queue. Every queue has the one subscription "default".';

create table mq.slot (
    queue_id   int not null,
    slot       int not null,
    created_at timestamptz not null default clock_timestamp(),
    made_by    xid8 not null default pg_current_xact_id(),
    freed_at   timestamptz,
    constraint slot_pkey primary key (queue_id, slot)
);
comment on table mq.slot is 'One row a set of tables and functions that can hold a segment; used again when the segment is gone.';

create table mq.segment (
    queue_id     int not null,
    segment      bigint not null,
    slot         int not null,
    opened_at    timestamptz not null default clock_timestamp(),
    closed_at    timestamptz,
    sealed_at    timestamptz,
    exhausted_at timestamptz,
    drained_at   timestamptz,
    constraint segment_pkey primary key (queue_id, segment),
    constraint segment_slot_key unique (queue_id, slot)
);
-- What consumers look for; those that are only kept may be many.
create index segment_live on mq.segment (queue_id, segment) where drained_at is null;
comment on table mq.segment is 'One row a segment that holds messages: open, closed, sealed, exhausted, drained; then it is gone.';

create table mq.dead_letter (
    queue_id    int not null,
    msg_id      bigint not null,
    enqueued_at timestamptz not null,
    died_at     timestamptz not null default clock_timestamp(),
    attempts    int not null,
    reason      text not null,
    history     jsonb not null,
    payload     jsonb not null,
    headers     jsonb,
    lane        smallint not null default 0,
    ordering_key text,
    constraint dead_letter_pkey primary key (queue_id, msg_id)
);
create index dead_letter_died_at on mq.dead_letter (queue_id, died_at, msg_id);
comment on table mq.dead_letter is 'Messages that were given up: rejected, or out of attempts.';

-- Nobody looks there unless something was ever cancelled in the queue (lanes_<q>, bit 11).
create table mq.cancelled (
    queue_id int not null,
    msg_id   bigint not null,
    due_at   timestamptz,           -- of what is deferred
    generation bigint,              -- of a tick: of its schedule
    constraint cancelled_pkey primary key (queue_id, msg_id)
);
comment on table mq.cancelled is 'Messages that were cancelled and that nobody has come by since: whoever does drops them.';

-- What is still leased when a segment is otherwise done moves here, so that a lease of hours does not pin a segment.
create table mq.survivor (
    queue_id     int not null,
    token        bigint not null,
    msg_id       bigint not null,
    leased_until timestamptz not null,
    enqueued_at  timestamptz not null,
    attempt      int not null,
    payload      jsonb not null,
    headers      jsonb,
    extra        jsonb,
    lane         smallint not null,
    constraint survivor_pkey primary key (queue_id, token, msg_id)
);
comment on table mq.survivor is 'Messages under leases that outlived their segment; few, and settled in place.';

-- Append only; the newest row of a key is its state. See _internal/dedup.sql.
create table mq.dedup (
    queue_id  int not null,
    dedup_key text collate "C" not null,
    no        int not null,
    msg_id    bigint,                   -- null: the entry before ended with its message
    until     timestamptz not null,     -- infinity: until its message is settled
    constraint dedup_pkey primary key (queue_id, dedup_key, no)
);
create index dedup_until on mq.dedup (queue_id, until);
comment on table mq.dedup is 'Which message has a deduplication key, and until when.';

-- Only appended, and deleted in bulk: the newest one of a kind is what holds.
create table mq.note (
    queue_id int not null,
    msg_id   bigint not null,
    kind     text not null,
    no       bigint generated always as identity,
    at       timestamptz not null default clock_timestamp(),
    value    jsonb not null,
    constraint note_pkey primary key (queue_id, msg_id, kind, no),
    constraint note_kind_check check (kind in ('progress', 'result', 'mark'))
);
create index note_at on mq.note (queue_id, at);
comment on table mq.note is 'What consumers say of messages: how far they are, and what came of it; and marks of how far the old ones are deleted.';

-- What is kept when it was acknowledged is in its segment; here is what has none.
create table mq.kept (
    queue_id    int not null,
    msg_id      bigint not null,
    settled_at  timestamptz not null default clock_timestamp(),
    enqueued_at timestamptz not null,
    attempt     int not null,
    payload     jsonb not null,
    headers     jsonb,
    extra       jsonb,
    lane        smallint not null,
    constraint kept_pkey primary key (queue_id, msg_id, settled_at)
);
create index kept_settled_at on mq.kept (queue_id, settled_at);
comment on table mq.kept is 'Acknowledged messages, kept for the retention of their queue, whose segment is not: survivors, and those of a copy that was repaired.';

create table mq.tally (
    queue_id        int not null,
    tally_id        bigint generated always as identity,
    delivered       bigint not null,
    settled         bigint not null,
    forgotten_until timestamptz,    -- nothing that was enqueued later was dropped
    forgotten_id    bigint,         -- nor with a higher msg_id
    constraint tally_pkey primary key (queue_id, tally_id)
);
comment on table mq.tally is 'Of what is done: deliveries and settlements, for queue_stats, and how far back rewind reaches. The sum, or the greatest, of a queue''s rows, which upkeep makes one.';

create table mq.timetable (
    name       text not null,
    queue_id   int not null,
    cron       text not null,
    timezone   text not null,
    payload    jsonb not null,
    headers    jsonb,
    catch_up   text not null,
    generation bigint not null,     -- at random, another for each change: whose tick a message is
    created_at timestamptz not null default clock_timestamp(),
    constraint timetable_pkey primary key (name),
    constraint timetable_generation_key unique (generation),
    constraint timetable_name_check check (length(name) between 1 and 100),
    constraint timetable_catch_up_check check (catch_up in ('one', 'all', 'none'))
);
create index timetable_queue on mq.timetable (queue_id);
comment on table mq.timetable is 'One row a schedule. When it is due next says a message that waits in its queue.';

-- Only appended, and deleted in bulk. See _internal/limit.sql.
create table mq.meter (
    queue_id int not null,
    at       timestamptz not null,
    total    bigint not null,       -- of all until then; the newest row has the greatest
    n        int not null,
    constraint meter_pkey primary key (queue_id, at, total)
);
comment on table mq.meter is 'What queues with a rate_limit have delivered, and when.';

-- Where queues with max_depth count on from: so many rows were in a table, and so many of a log's in blocks, in a snapshot.
create table mq.depth_mark (
    queue_id  int not null,
    file      oid not null,
    lane      smallint not null,        -- of a log; -1: a deferral set
    rows      bigint not null,
    at        pg_snapshot not null,
    block_no  bigint not null,
    in_blocks bigint not null,
    constraint depth_mark_pkey primary key (queue_id, file, lane, rows)
);
comment on table mq.depth_mark is 'How many rows a table had in a snapshot, so that what came since is all that is counted.';

create type mq.delivery as (
    msg_id       bigint,
    receipt      text,
    attempt      int,
    enqueued_at  timestamptz,
    leased_until timestamptz,
    payload      jsonb,
    headers      jsonb
);
comment on type mq.delivery is 'A message as dequeue gives it out: receipt names the lease, attempt counts from 1.';

-- The COPY target. Unlogged: a row is copied into its queue by the statement that brings it, and is worthless after.
create unlogged table mq.inbox (
    queue      text,
    payload    jsonb,
    headers    jsonb,
    deliver_at timestamptz,
    priority   int,
    dedup_key  text,
    ordering_key text
) with (autovacuum_enabled = false);
comment on table mq.inbox is 'COPY mq.inbox (queue, payload, headers, deliver_at, priority, dedup_key, ordering_key) FROM …: bulk enqueue, the whole statement or nothing. Role: mq_producer.';

-- A message on its way from one place to the next: taken from a lease, to be delivered again or buried.
create type mq._taken as (
    msg_id      bigint,
    enqueued_at timestamptz,
    attempt     int,
    payload     jsonb,
    headers     jsonb,
    extra       jsonb,
    outcome     text,
    due_at      timestamptz,
    lane        smallint
);

-- What functions return. Types, because an argument and a result column of one name cannot both be columns of a table.
create type mq.queue_info as (name text, settings jsonb, created_at timestamptz, paused boolean);
create type mq.upkeep as (queue text, action text, detail text);
create type mq.dead_message as (
    msg_id bigint, enqueued_at timestamptz, died_at timestamptz, attempts int, reason text, history jsonb, payload jsonb, headers jsonb);
create type mq.settled_message as (
    msg_id bigint, enqueued_at timestamptz, settled_at timestamptz, attempts int, outcome text, history jsonb, payload jsonb, headers jsonb);
create type mq.peeked_message as (
    msg_id bigint, state text, attempt int, enqueued_at timestamptz, due_at timestamptz, payload jsonb, headers jsonb, priority int);
create type mq.message_state as (
    state text, attempt int, enqueued_at timestamptz, due_at timestamptz, leased_until timestamptz, settled_at timestamptz, reason text, priority int,
    progress jsonb, result jsonb);
create type mq.queue_statistics as (
    queue text, ready bigint, deferred bigint, leased bigint, dead bigint, oldest_ready_age interval, enqueued_total bigint,
    delivered_total bigint, settled_total bigint, segments int, bytes bigint, paused boolean, maintenance_overdue boolean);

create type mq.schedule_info as (
    name text, queue text, cron text, timezone text, payload jsonb, headers jsonb, catch_up text, next_at timestamptz, created_at timestamptz);

comment on type mq.queue_info is 'A queue as queues lists it.';
comment on type mq.upkeep is 'What maintain did.';
comment on type mq.dead_message is 'A dead letter as dead_letters lists it.';
comment on type mq.settled_message is 'A message that is done, as history lists it.';
comment on type mq.peeked_message is 'A message as peek shows it.';
comment on type mq.message_state is 'What message_status tells of a message.';
comment on type mq.queue_statistics is 'The figures of a queue, of queue_stats.';
comment on type mq.schedule_info is 'A schedule as schedules lists it.';
comment on type mq._taken is 'A message on its way from one place to the next.';

create type mq._claim as (
    n            int,
    lane         int,
    xid          xid8,
    msg_id       bigint,
    receipt      text,
    leased_until timestamptz
);
comment on type mq._claim is 'Messages that were leased and are to be read: so many of the log, from (lane, xid, msg_id) on.';
