-- Every error of class MQ is raised here and nowhere else, but for MQ0ZZ, which undoes a subtransaction and is caught where it is raised. (Not MQ000:
-- plpgsql takes what ends in 000 for all of the class.)

create or replace function mq._queue_not_found(queue text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ001',
        message = pg_catalog.format('queue "%s" does not exist', pg_catalog.left(_queue_not_found.queue, 100)),
        hint = 'Create it with: select mq.create_queue(…). Names are case-sensitive; select * from mq.queues() lists them.';
end $$;

create or replace function mq._queue_exists(queue text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ002',
        message = pg_catalog.format('queue "%s" already exists', _queue_exists.queue),
        hint = 'Use if_not_exists => true to accept that, or mq.alter_queue to change its settings.';
end $$;

create or replace function mq._lease_lost(queue text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ003',
        message = pg_catalog.format('the lease of this receipt is lost or was settled before, in queue "%s"', _lease_lost.queue),
        hint = 'Its messages were, or will be, given to somebody else: roll back what was done for them. '
            'A longer visibility_timeout, or mq.extend while working, avoids this.';
end $$;

create or replace function mq._malformed_receipt(queue text, receipt text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ004',
        message = pg_catalog.format('not a receipt of queue "%s": "%s"', _malformed_receipt.queue,
                                    pg_catalog.left(_malformed_receipt.receipt, 100)),
        hint = 'Pass the receipt exactly as mq.dequeue returned it, with the name of the same queue.';
end $$;

create or replace function mq._schedule_not_found(name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ011',
        message = pg_catalog.format('schedule "%s" does not exist', pg_catalog.left(_schedule_not_found.name, 100)),
        hint = 'Create it with: select mq.schedule(…). Names are case-sensitive; select * from mq.schedules() lists them.';
end $$;

create or replace function mq._in_use() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'lock_not_available',
        message = 'the queue is in use',
        hint = 'End the transactions that use it (pg_stat_activity, pg_locks), then try again.';
end $$;

create or replace function mq._too_many_claims() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ007',
        message = 'this transaction has dequeued too often',
        detail = 'Every claim keeps a lock until the transaction ends; at most 1000 are allowed.',
        hint = 'Commit after each dequeue, or ask for more messages at a time with n.';
end $$;

create or replace function mq._duplicate(queue text, msg_id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ009',
        message = pg_catalog.format('a message of queue "%s" has this dedup_key already', _duplicate.queue),
        detail = pg_catalog.format('msg_id %s', _duplicate.msg_id),
        hint = 'With on_duplicate => ''keep'' its msg_id is returned instead.';
end $$;

-- depth is null where nobody could count.
create or replace function mq._queue_full(queue text, max_depth bigint, depth bigint, n bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ008',
        message = pg_catalog.format('queue "%s" is full', _queue_full.queue),
        detail = case
            when _queue_full.n > _queue_full.max_depth then pg_catalog.format('%s messages at once are more than max_depth, %s.', _queue_full.n, _queue_full.max_depth)
            when _queue_full.depth is null then 'The room that was last counted is used up, and it could not be counted anew: '
                'others have enqueued and not yet committed, or this transaction is not READ COMMITTED.'
            else pg_catalog.format('%s messages wait, %s more would come, and max_depth is %s.', _queue_full.depth, _queue_full.n, _queue_full.max_depth) end,
        hint = case
            when _queue_full.n > _queue_full.max_depth then 'Enqueue fewer at a time.'
            when _queue_full.depth is null then 'Retry the transaction.'
            else 'Retry when consumers have caught up; mq.alter_queue changes max_depth, and with overflow what is done.' end;
end $$;

create or replace function mq._message_dead(queue text, msg_id bigint, reason text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'MQ010',
        message = pg_catalog.format('the message that is waited for is dead: %s of queue "%s"', _message_dead.msg_id, _message_dead.queue),
        detail = _message_dead.reason,
        hint = 'mq.dead_letters(…) shows it; mq.redrive(…) has it tried again.';
end $$;

create or replace function mq._not_yet(feature text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'feature_not_supported',
        message = pg_catalog.format('%s is not supported by this version of mq', _not_yet.feature),
        hint = 'Leave it at its default; mq.version() says what is installed.';
end $$;

create or replace function mq._invalid(argument text, detail text, hint text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'invalid_parameter_value',
        message = pg_catalog.format('invalid value for argument "%s"', _invalid.argument),
        detail = _invalid.detail,
        hint = _invalid.hint;
end $$;

create or replace function mq._null_argument(argument text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'null_value_not_allowed',
        message = pg_catalog.format('argument "%s" must not be null', _null_argument.argument),
        hint = 'A JSON null is written ''null''::jsonb.';
end $$;

create or replace function mq._wrong_isolation(caller text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'feature_not_supported',
        message = pg_catalog.format('mq.%s needs a READ COMMITTED transaction', _wrong_isolation.caller),
        detail = 'The snapshot of this transaction is too old to see what others have done since.',
        hint = 'Call it in a transaction begun with: begin isolation level read committed.';
end $$;

create or replace function mq._snapshot_too_old() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'serialization_failure',
        message = 'could not settle: the lease is newer than the snapshot of this transaction',
        hint = 'Retry the transaction.';
end $$;

create or replace function mq._key_unknown() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'serialization_failure',
        message = 'could not tell whether the dedup_key is free: this transaction is older than what is remembered',
        hint = 'Retry the transaction, and enqueue within ten minutes, or in READ COMMITTED.';
end $$;
