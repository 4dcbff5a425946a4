create or replace function mq.create_queue(
    queue text,
    mode text default 'lease',
    visibility_timeout interval default '30 seconds',
    max_attempts int default 5,
    retry_backoff interval default '1 second',
    retry_backoff_max interval default '1 hour',
    retention interval default '0',
    notify text default 'auto',
    segment_age interval default '1 hour',
    segment_bytes bigint default 268435456,
    if_not_exists boolean default false,
    retry_policy text default 'exponential',
    retry_delays interval[] default null,
    retry_jitter float8 default 0.5,
    priority_ageing interval default null,
    result_retention interval default '1 hour',
    max_depth bigint default null,
    overflow text default 'reject',
    dedup_window interval default '5 minutes',
    max_in_flight_per_key int default null,
    fair boolean default false,
    max_in_flight int default null,
    rate_limit int default null,
    rate_period interval default null
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set default_tablespace = '' set lock_timeout = '10s' as $$
declare
    q mq.queue;
begin
    if coalesce(create_queue.queue, '') !~ '^[A-Za-z0-9_.-]{1,48}$' then
        perform mq._invalid('queue', format('"%s" is not a queue name.', left(create_queue.queue, 100)),
                            'Use 1 to 48 letters, digits, underscores, dots and hyphens.');
    end if;
    if num_nulls(mode, visibility_timeout, max_attempts, retry_backoff, retry_backoff_max, retention, notify, segment_age, segment_bytes, if_not_exists,
                 retry_policy, retry_jitter, result_retention, overflow, dedup_window, fair) > 0 then
        perform mq._null_argument('a setting of create_queue');
    end if;
    q.name := create_queue.queue;
    q.mode := create_queue.mode;
    q.visibility_timeout := create_queue.visibility_timeout;
    q.max_attempts := create_queue.max_attempts;
    q.retry_backoff := create_queue.retry_backoff;
    q.retry_backoff_max := create_queue.retry_backoff_max;
    q.retry_policy := create_queue.retry_policy;
    q.retry_delays := create_queue.retry_delays;
    q.retry_jitter := create_queue.retry_jitter;
    q.priority_ageing := nullif(create_queue.priority_ageing, '0');
    q.max_depth := create_queue.max_depth;
    q.overflow := create_queue.overflow;
    q.dedup_window := create_queue.dedup_window;
    q.max_in_flight_per_key := create_queue.max_in_flight_per_key;
    q.fair := create_queue.fair;
    q.max_in_flight := create_queue.max_in_flight;
    q.rate_limit := create_queue.rate_limit;
    q.rate_period := create_queue.rate_period;
    q.retention := create_queue.retention;
    q.result_retention := create_queue.result_retention;
    q.notify := create_queue.notify;
    q.segment_age := create_queue.segment_age;
    q.segment_bytes := create_queue.segment_bytes;
    perform mq._check_settings(q);
    -- Nobody waits for what is there. (A drop under way is waited for, and then the register is null.)
    if if_not_exists and exists (select from mq.queue as x where x.name = create_queue.queue and pg_sequence_last_value(x.register) > 0) then
        return;
    end if;
    -- One at a time, so that two who create the same queue do not both begin, and none while mq is upgraded.
    perform mq._lock_generated('create_queue');
    perform pg_advisory_xact_lock(mq._lock_class(), hashtext(create_queue.queue));
    -- One that is being dropped is waited for.
    perform from mq.queue as x where x.name = create_queue.queue for key share;
    if found then
        if not if_not_exists then
            perform mq._queue_exists(create_queue.queue);
        end if;
        return;
    end if;
    q.queue_id := nextval(pg_get_serial_sequence('mq.queue', 'queue_id'));
    execute format('create sequence mq.msg_id_%1$s; create sequence mq.register_%1$s; create sequence mq.notified_%1$s; create sequence mq.waiting_%1$s; create sequence mq.lanes_%1$s;'
                   ' create sequence mq.room_%1$s minvalue -9223372036854775807 start 1; create sequence mq.counted_%1$s', q.queue_id);
    perform mq._shut('_' || q.queue_id);
    q.paused := false;
    q.created_at := clock_timestamp();
    q.msg_ids := format('mq.msg_id_%s', q.queue_id)::regclass;
    q.register := format('mq.register_%s', q.queue_id)::regclass;
    q.lanes := format('mq.lanes_%s', q.queue_id)::regclass;
    q.notified := format('mq.notified_%s', q.queue_id)::regclass;
    q.home := mq._home();
    q.append_home := '';
    insert into mq.queue overriding system value values (q.*);
    insert into mq.subscription (queue_id, subscription_id, name) values (q.queue_id, 1, 'default');
    perform setval(q.notified, 1);
    perform setval(format('mq.waiting_%s', q.queue_id)::regclass, 1), setval(format('mq.room_%s', q.queue_id)::regclass, 1);
    perform mq._set_register(q.queue_id, q.register, 1, 1, 0, false, mq._home_bits(q.home));
    perform mq._create_deferral(q.queue_id);
    perform mq._create_keys(q.queue_id);
    if q.mode = 'transaction' then
        perform mq._create_strikes(q.queue_id);
        perform mq._write_register(q.queue_id, q.register, 0, 1::bigint << 31);     -- dequeue goes the way that knows of it
    end if;
    perform mq._mind_limits(q) where num_nonnulls(q.max_in_flight, q.rate_limit) > 0;
    perform mq._create_slot(q.queue_id, 1);
    perform mq._create_slot(q.queue_id, 2);
    perform mq._create_dispatchers();
    update mq.queue as x set append_home = x.home where x.queue_id = q.queue_id;
    insert into mq.segment (queue_id, segment, slot) values (q.queue_id, 1, 1);
    perform mq._unfence(format('log_%s_1', q.queue_id));
    perform mq._unfence(format('deferred_%s_0', q.queue_id));
end $$;

comment on function mq.create_queue(text, text, interval, int, interval, interval, interval, text, interval, bigint, boolean, text, interval[], float8, interval, interval, bigint, text, interval, int, boolean, int, int, interval) is
'Creates a queue.
queue: its name, 1 to 48 of A-Z a-z 0-9 _ . -, case-sensitive.
mode: ''lease'' (default): a message is leased, and then acknowledged. ''transaction'': it is consumed when the transaction that dequeued it commits, and is there again at once when that rolls back.
visibility_timeout: how long a consumer has a message before it is given to another; default 30 seconds.
max_attempts: deliveries before a message becomes a dead letter; default 5.
retry_policy: how long a message that failed waits: ''fixed'' (retry_backoff each time), ''linear'' (that times the attempt), ''exponential'' (doubled each time; default), or ''list''.
retry_backoff, retry_backoff_max: that wait after the first attempt, and the most it may become; defaults 1 second, 1 hour.
retry_delays: with ''list'', the wait after each attempt, the last one from then on.
retry_jitter: the share of the wait, 0 to 1, of which as much is taken off as chance says; default 0.5.
priority_ageing: by how much the oldest message of a priority must wait to be one priority higher, so that nothing starves; default null: never.
max_depth: how many messages may wait, ready or delayed; default any number. What comes back to be tried again always may.
overflow: what is done with a new message for which there is no room: ''reject'' it (MQ008; default), or make room by removing the oldest that are ready: ''drop_oldest'', or ''dead_letter'' (reason "overflow").
dedup_window: for how long a dedup_key is taken, from when its first message was enqueued; 0: until that message is settled; default 5 minutes.
max_in_flight_per_key: how many messages of one ordering_key may be under lease, which is always one lease; default any number.
fair: ordering keys have their turn one after the other, a message each as long as there are enough of them; default false: the key with the oldest message first, as many as are asked for.
max_in_flight: how many messages may be leased at a time, and not settled, over all consumers; default any number. Such a queue delivers to one consumer after the other: commit soon after dequeue.
rate_limit, rate_period: in no time of rate_period are more than rate_limit messages delivered, retries among them; default any number.
retention: how long maintain() keeps what is settled, for rewind and history; default 0, not at all. Kept segments hold a slot each: segment_age is best a twentieth of it or more.
result_retention: how long results and progress are kept, at least; default 1 hour.
notify: auto (wake consumers that wait), always, never.
segment_age, segment_bytes: when maintain() begins a new segment; defaults 1 hour, 256 MB.
if_not_exists: accept a queue of that name as it is.
Raises: MQ002 the queue exists; 55P03 another transaction that creates or drops queues does not end; 22004 a null setting; 22023 a bad name or setting; 0A000 a setting of a later version, or not in READ COMMITTED.
Role: mq_admin.';
