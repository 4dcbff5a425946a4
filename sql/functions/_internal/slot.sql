-- A slot is the insert-only tables of one segment. It is filled, drained, truncated and used again. What is beside the log
-- depends on the mode of its queue.
create or replace function mq._create_slot(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set default_tablespace = '' set default_table_access_method = 'heap' as $f$
begin
    execute mq._fill_template($x$
    create table mq.log_{t} (
        msg_id      bigint not null,
        xid         xid8 not null default pg_current_xact_id(),     -- lanes below 0: the block it was born in
        enqueued_at timestamptz not null default clock_timestamp(),
        lane        smallint not null default 0,
        attempt     smallint not null default 1,
        payload     jsonb not null,
        headers     jsonb,
        extra       jsonb       -- what few messages have, an object: h, the history of its attempts; e, when it expires, in microseconds
    ) with (autovacuum_enabled = false, toast.autovacuum_enabled = false);
    create index log_{t}_order on mq.log_{t} (lane, xid, msg_id);
    create trigger sealed before insert on mq.log_{t} for each row execute function mq._redirect_message();
    alter table mq.log_{t} enable always trigger sealed;
    $x$, _create_slot.queue_id, _create_slot.slot);
    execute mq._fill_template(case when mq._is_transactional(_create_slot.queue_id) then mq._tables_of_transactions() else $x$
    -- What a lane's cursor advanced by, cut into slices of the opener's n. The newest block of a lane is the cursor.
    create table mq.block_{t} (
        subscription smallint not null,
        lane         smallint not null,
        block_no     bigint not null,
        xid          xid8 not null,         -- who opened it: nobody else can see it before that transaction ends
        prev         pg_snapshot not null,  -- all that is visible here is in this block or an earlier one
        cur          pg_snapshot,           -- the window this block ended inside; null: the window is used up
        next_xid     xid8,                  -- where it goes on inside that window
        next_id      bigint,
        first_ticket bigint not null,       -- slice g goes to whoever draws ticket first_ticket + g
        size         int not null,          -- what slices were cut for: none holds more
        born         int not null,          -- the first so many slices are of messages born in this block
        first_xids   xid8[] not null,       -- per slice: its first message, and how many there are
        first_ids    bigint[] not null,
        counts       int[] not null,
        low_block    bigint not null,       -- every block before this one is settled, or a laggard
        laggards     bigint[] not null,
        constraint block_{t}_pkey primary key (subscription, lane, block_no)
    ) with (autovacuum_enabled = false, toast.autovacuum_enabled = false);
    alter table mq.block_{t} alter first_xids set storage plain, alter first_ids set storage plain,
        alter counts set storage plain, alter laggards set storage plain;

    -- Part of a slice under lease. Rows of one lease share the head, which the receipt names. The newest part of a
    -- slice is the slice's own cursor: rest messages, from (rest_xid, rest_id) on, are still free.
    create table mq.lease_{t} (
        subscription smallint not null,
        lane         smallint not null,
        block_no     bigint not null,
        slice        int not null,
        part         int not null,
        head_slice   int not null,
        head_part    int not null,
        n            int not null,
        total        int not null,          -- of the whole lease
        rest         int not null,
        first_id     bigint not null,
        rest_id      bigint,
        first_xid    xid8 not null,
        rest_xid     xid8,
        leased_until timestamptz not null,
        token        bigint not null default {token},
        constraint lease_{t}_pkey primary key (subscription, lane, block_no, slice, part)
    ) with (autovacuum_enabled = false);

    -- What became of a lease. Whoever inserts the next seq first wins.
    create table mq.settlement_{t} (
        subscription smallint not null,
        lane         smallint not null,
        block_no     bigint not null,
        slice        int not null,
        part         int not null,
        seq          int not null,
        final        boolean not null,
        outcome      text not null,
        n            int not null,          -- how many messages it settles
        msg_ids      int8multirange,        -- null: all that was left
        leased_until timestamptz,           -- outcome "extended"
        settled_at   timestamptz not null default clock_timestamp(),
        constraint settlement_{t}_pkey primary key (subscription, lane, block_no, slice, part, seq)
    ) with (autovacuum_enabled = false, toast.autovacuum_enabled = false);

    -- Who takes which slice: tickets are drawn without a transaction, so that consumers do not try the same slices.
    -- A ticket lost to a rollback leaves a hole, which is found when the block has no fresh slice left.
    create sequence mq.ticket_{t};
    -- last ticket << 14 | size of the slices: of the newest block, or of one whose opener rolled back; size 0 if many are
    -- short. A hint whether _take_one_0 and _claim_0 are worth trying.
    create sequence mq.last_ticket_{t};
    $x$ end, _create_slot.queue_id, _create_slot.slot);
    perform mq._shut('_' || _create_slot.queue_id || '_' || _create_slot.slot);
    insert into mq.slot (queue_id, slot) values (_create_slot.queue_id, _create_slot.slot);
    perform mq._create_slot_functions(_create_slot.queue_id, _create_slot.slot);
end $f$;

-- What a slot has beside its log in a queue of mode transaction (_internal/template_transaction.sql).
create or replace function mq._tables_of_transactions() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
    create table mq.taken_{t} (
        xid     xid8 not null,          -- with msg_id, the message
        msg_id  bigint not null,
        no      smallint not null default 0,        -- 1: it was given back by who took it
        lane    smallint not null,
        attempt smallint not null,
        outcome text,                   -- null: delivered
        call    bigint,                 -- the dequeue that delivered it, which the receipt names
        taker   xid8 not null default pg_current_xact_id(),
        at      timestamptz not null default clock_timestamp(),
        constraint taken_{t}_pkey primary key (xid, msg_id, no)
    ) with (autovacuum_enabled = false);
    create index taken_{t}_call on mq.taken_{t} (call);

    create table mq.mark_{t} (
        lane      smallint not null,
        no        bigint not null,
        prev      pg_snapshot not null, -- all that is visible here is taken, but for what is held out
        cur       pg_snapshot,          -- the window it is inside; null: that is used up
        next_xid  xid8,                 -- all before this position is taken, too
        next_id   bigint,
        held_xids xid8[] not null,
        held_ids  bigint[] not null,
        constraint mark_{t}_pkey primary key (lane, no)
    ) with (autovacuum_enabled = false, toast.autovacuum_enabled = false);
    create sequence mq.mark_no_{t};
    $x$;
end $f$;

-- The tables of a slot, as SQL lists them.
create or replace function mq._slot_tables(queue_id int, slot int) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return (
        select string_agg(format('mq.%I', c.relname), ', ' order by c.oid) from pg_class as c
        where c.relnamespace = 'mq'::regnamespace and c.relkind = 'r'
          and c.relname ~ format('^(log|block|lease|settlement|taken|mark)_%s_%s$', _slot_tables.queue_id, _slot_tables.slot));
end $$;

-- Whoever makes slots or generated functions does so alone: an upgrade must not miss what another is about to make from
-- the old templates, and the dispatchers are one for all. They are made from what the snapshot shows, so that must not be
-- older than the lock.
create or replace function mq._lock_generated(caller text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._check_isolation(_lock_generated.caller);
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(0, -7));
end $$;

-- The slots that the dispatchers have statements of: 64, those of open segments first, then each queue's oldest ones, and last
-- those that are only kept. The others are done without: by EXECUTE, which parses and plans each time, and by _take_.
create or replace function mq._dispatched() returns table (queue_id int, slot int)
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select x.queue_id, x.slot
        from (select y.queue_id, y.slot from mq.slot as y
              left join mq.segment as g on g.queue_id = y.queue_id and g.slot = y.slot and g.exhausted_at is null
              order by exists (select from mq.segment as k where k.queue_id = y.queue_id and k.slot = y.slot and k.drained_at is not null),
                       g.segment is null, g.closed_at is not null, row_number() over (partition by y.queue_id order by g.segment), y.queue_id, y.slot limit 64) as x
        order by x.queue_id, x.slot;
end $$;

-- Whether a slot of the queue has no place in the dispatchers, but should have: they were made while it was kept, or before
-- others were. Slots of a queue that keeps much take turns, and none is made any more, which would make them anew.
create or replace function mq._is_left_out(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return (select count(*) from mq.slot) > 64 and exists (
        select from mq._dispatched() as d
        where d.queue_id = _is_left_out.queue_id
          and not exists (select from pg_proc as p
                          where p.pronamespace = 'mq'::regnamespace and p.proname = '_append_0'
                            and strpos(p.prosrc, format('mq.log_%s_%s ', d.queue_id, d.slot)) > 0));
end $$;

-- _append_0: the first part of enqueue, by the name of the queue. Null: it does not know it, or not well enough, or the queue
-- has a max_depth, for which the long way looks.
create or replace function mq._create_append() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_names  text[];
    v_bodies text[];
begin
    select array_agg(quote_literal(x.name) order by x.name collate "C"), array_agg(x.body order by x.name collate "C")
    into v_names, v_bodies
    from (select q.name, mq._template_append(q.queue_id, q.home, q.notify, array_agg(d.slot order by d.slot)) as body
          from mq._dispatched() as d
          join mq.queue as q on q.queue_id = d.queue_id and q.max_depth is null
          group by q.queue_id) as x;
    execute replace($x$
        create or replace function mq._append_0(p_queue text, p_payload jsonb, p_headers jsonb) returns bigint
        language plpgsql as $y$
        declare
            v_slot   bigint;
            v_msg_id bigint;
        begin
            {branches}
            return null;
        end $y$
        $x$, '{branches}', mq._branches('p_queue collate "C"', v_names, v_bodies));
    perform mq._shut('_append_0');
end $f$;

-- _take_one_0, _claim_0, _read_0 and _ack_0 have the statements of all those slots in them: with many sessions on a few cores
-- the caches are cold, and every function more that a call goes through shows. The key is queue_id * 65536 + slot.
create or replace function mq._create_dispatchers() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    s        record;
    v_keys   text[];
    v_takes  text[];
    v_claims text[];
    v_reads  text[];
    v_acks   text[];
begin
    perform mq._create_append();
    for s in select d.queue_id, d.slot from mq._dispatched() as d where not mq._is_transactional(d.queue_id) loop
        v_keys := v_keys || (s.queue_id::bigint * 65536 + s.slot)::text;
        v_takes := v_takes || mq._fill_template(mq._template_take_one(), s.queue_id, s.slot);
        v_claims := v_claims || mq._fill_template(mq._template_claim_many(), s.queue_id, s.slot);
        v_reads := v_reads || mq._fill_template(mq._template_read(), s.queue_id, s.slot);
        -- Of a queue with max_in_flight an ack has more to do: the long way.
        v_acks := v_acks || case when exists (select from mq.queue as q where q.queue_id = s.queue_id and q.max_in_flight is not null) then ''
                                 else mq._fill_template(mq._template_ack(), s.queue_id, s.slot) end;
    end loop;
    execute replace($x$
        create or replace function mq._take_one_0(p_key bigint, p_vt interval) returns mq.delivery
        language plpgsql as $y$
        declare
            r record;
        begin
            {branches}
            return null;
        end $y$
        $x$, '{branches}', mq._branches('p_key', v_keys, v_takes));
    execute replace($x$
        create or replace function mq._claim_0(p_key bigint, p_n int, p_vt interval) returns mq._claim
        language plpgsql as $y$
        declare
            r record;
        begin
            {branches}
            return null;
        end $y$
        $x$, '{branches}', mq._branches('p_key', v_keys, v_claims));
    execute replace($x$
        create or replace function mq._read_0(p_key bigint, p_claim mq._claim) returns setof mq.delivery
        language plpgsql as $y$
        begin
            {branches}
            -- Claimed by an older _claim_0.
            return query execute 'select m.msg_id, $1, m.attempt::int, m.enqueued_at, $2, m.payload, m.headers from mq.log_' || (p_key >> 16) || '_' || (p_key & 65535)
                || ' as m where m.lane = $3 and (m.xid, m.msg_id) >= ($4, $5) order by m.lane, m.xid, m.msg_id limit $6'
                using p_claim.receipt, p_claim.leased_until, p_claim.lane, p_claim.xid, p_claim.msg_id, p_claim.n;
        end $y$
        $x$, '{branches}', mq._branches('p_key', v_keys, v_reads));
    execute replace($x$
        create or replace function mq._ack_0(p_key bigint, p_ack text) returns int
        language plpgsql as $y$
        declare
            v_count int;
        begin
            {branches}
            return v_count;         -- null: nothing was done
        end $y$
        $x$, '{branches}', mq._branches('p_key', v_keys, v_acks));
    perform mq._shut('_0');
end $f$;

-- The body of the one key that the subject is, found by halving. Keys are literals, in order; null: there are none.
create or replace function mq._branches(subject text, keys text[], bodies text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    v_half int := cardinality(keys) / 2;
begin
    if keys is null then
        return '';
    elsif v_half = 0 then
        return format('if %s = %s then %s end if;', subject, keys[1], bodies[1]);
    end if;
    return format('if %s < %s then %s else %s end if;', subject, keys[v_half + 1],
                  mq._branches(subject, keys[:v_half], bodies[:v_half]), mq._branches(subject, keys[v_half + 1:], bodies[v_half + 1:]));
end $$;

-- {token} is never used twice, though positions are: some 50 random bits, and the microsecond in case somebody has called
-- setseed. It is no secret, and always has 19 digits (until the year 2135). Each function in it is made ready in every call;
-- gen_random_uuid, which is one, asks OpenSSL, which is cold by then: 5 of the 170 us of a dequeue.
create or replace function mq._fill_template(template text, queue_id int, slot int) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return replace(replace(replace(replace(replace(replace(replace(_fill_template.template,
        '{token}', $$(random() * 4e18 + date_part('epoch', clock_timestamp()) * 1e9)::bigint$$),
        '{t}', _fill_template.queue_id || '_' || _fill_template.slot),
        '{q}', _fill_template.queue_id::text),
        '{k}', _fill_template.slot::text),
        '{key}', (_fill_template.queue_id::bigint * 65536 + _fill_template.slot)::text),
        '{seed}', (_fill_template.queue_id::bigint * 16777216 + _fill_template.slot * 256 + 1)::text),
        '{class}', $$('mq.queue'::regclass::oid::bigint & 2147483647)::int$$);
end $f$;

-- The functions that read a slot on the hot path, generated so that they are static SQL with cached plans. They carry
-- no settings of their own: dequeue, ack and the other entry points pin search_path and the planner for them.
create or replace function mq._create_slot_functions(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_template text;
begin
    foreach v_template in array case when mq._is_transactional(_create_slot_functions.queue_id)
        then array[mq._template_append_batch(), mq._template_transaction()]
        else array[mq._template_append_batch(), mq._template_take(), mq._template_gather(), mq._template_open(), mq._template_expire(), mq._template_settle(), mq._template_sweep(), mq._template_limit()] end
    loop
        execute mq._fill_template(v_template, _create_slot_functions.queue_id, _create_slot_functions.slot);
    end loop;
    perform mq._shut('_' || _create_slot_functions.queue_id || '_' || _create_slot_functions.slot);
end $f$;

-- What is new may be used by whom PostgreSQL and the owner's default privileges name; ours by nobody but the owner.
create or replace function mq._shut(suffix text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_relation regclass;
    v_routine  regprocedure;
    v_grantee  name;
begin
    for v_relation, v_grantee in
        select distinct c.oid, case a.grantee when 0 then 'public' else pg_get_userbyid(a.grantee) end
        from pg_class as c, aclexplode(c.relacl) as a
        where c.relnamespace = 'mq'::regnamespace and c.relkind in ('r', 'S') and right(c.relname, length(_shut.suffix)) = _shut.suffix
          and a.grantee <> c.relowner
    loop
        execute format('revoke all on %s from %I', v_relation, v_grantee);
    end loop;
    for v_routine, v_grantee in
        select distinct p.oid, case a.grantee when 0 then 'public' else pg_get_userbyid(a.grantee) end
        from pg_proc as p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
        where p.pronamespace = 'mq'::regnamespace and right(p.proname, length(_shut.suffix)) = _shut.suffix
          and a.grantee <> p.proowner
    loop
        execute format('revoke all on function %s from %I', v_routine, v_grantee);
    end loop;
end $$;

-- The generated functions of a slot; without a slot, those of a queue's deferral; of queue 0, the dispatchers.
create or replace function mq._generated(queue_id int, slot int) returns setof regprocedure
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select p.oid::regprocedure from pg_proc as p
        where p.pronamespace = 'mq'::regnamespace
          and case when _generated.slot is null
              then p.proname ~ ('^_[a-z_]+_' || _generated.queue_id || '$')
                or p.proname ~ ('^_(is_due|promote|next_due|waiting)_' || _generated.queue_id || '_[01]$')
              else p.proname ~ ('^_[a-z_]+_' || _generated.queue_id || '_' || _generated.slot || '$')
               and p.proname !~ '^_(is_due|promote|next_due|waiting)_' end;
end $$;

-- Makes those anew. Replaced in place, sessions that are using them go on; what PostgreSQL cannot replace, as it returns
-- something else now, is dropped before.
create or replace function mq._generate(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_routine regprocedure;
begin
    for v_try in 1 .. 2 loop
        begin
            if _generate.slot is not null then
                perform mq._create_slot_functions(_generate.queue_id, _generate.slot);
            elsif _generate.queue_id > 0 then
                perform mq._create_deferral_functions(_generate.queue_id);
                perform mq._create_key_functions(_generate.queue_id);
            else
                perform mq._create_dispatchers();
            end if;
            exit;
        exception
            when invalid_function_definition or wrong_object_type then
                if v_try = 2 then
                    raise;
                end if;
                for v_routine in select x from mq._generated(_generate.queue_id, _generate.slot) as x loop
                    execute format('drop routine %s', v_routine);
                end loop;
        end;
    end loop;
end $$;

-- Makes the generated functions anew, after an upgrade changed what they are generated from.
create or replace function mq._regenerate() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_routine regprocedure;
    v_dropped boolean := false;
begin
    perform mq._lock_generated('_regenerate');
    for v_pass in 1 .. 2 loop
        perform mq._generate(x.queue_id, x.slot) from (select s.queue_id, s.slot from mq.slot as s order by s.queue_id, s.slot) as x;
        perform mq._generate(q.queue_id, null) from mq.queue as q;
        perform mq._generate(0, null);
        exit when v_pass = 2;
        -- With other arguments a function stays beside what it was, which calls may prefer: both go, and come again.
        for v_routine in
            select p.oid from pg_proc as p
            where p.pronamespace = 'mq'::regnamespace and p.proname ~ '^_[a-z_]+_[0-9]+(_[0-9]+)?$'
              and exists (select from pg_proc as o where o.pronamespace = p.pronamespace and o.proname = p.proname and o.oid <> p.oid)
        loop
            execute format('drop routine %s', v_routine);
            v_dropped := true;
        end loop;
        exit when not v_dropped;
    end loop;
end $$;
