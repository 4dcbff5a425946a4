-- What a hostile user puts in the way: in his schema "evil" and in pg_temp, whatever mq uses, under the same name. What is
-- stepped on says so in a warning, with the user that it runs as. Run as that user; evil.to_use lists functions, types
-- and relations that the bodies of mq's functions name.

create schema evil;
grant usage on schema evil to public;

create function evil.sprung(what text) returns boolean language plpgsql set search_path = pg_catalog as $$
begin
    raise warning 'sprung by %: %', current_user, what;
    return null;
end $$;

-- Words of all bodies; generated functions too.
create table evil.word as
    select distinct m[1] as word
    from pg_catalog.pg_proc as p, pg_catalog.regexp_matches(p.prosrc, '[a-z_0-9]+', 'g') as m
    where p.pronamespace = 'mq'::pg_catalog.regnamespace;

-- Functions: each one of pg_catalog that they could mean, and one more for each usual argument.
do $do$
declare
    c_types constant text[] := array['text', 'int', 'bigint', 'smallint', 'timestamptz', 'interval', 'jsonb', 'regclass', 'name', 'xid8',
                                     'boolean', 'bigint[]', 'jsonb[]', 'text[]', 'pg_catalog.pg_snapshot'];
    v_name      text;
    v_arguments text;
    v_result    text;
begin
    for v_name, v_arguments, v_result in
        select p.proname, pg_catalog.oidvectortypes(p.proargtypes), pg_catalog.format_type(p.prorettype, null)
        from pg_catalog.pg_proc as p join evil.word as w on w.word = p.proname
        where p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
        union all
        select w.word, t, 'text'
        from evil.word as w, unnest(c_types || array['text, text', 'text, int', 'text, bigint', 'text, int, int', 'text, text, text']) as t
        where exists (select from pg_catalog.pg_proc as p where p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace and p.proname = w.word)
    loop
        begin
            execute format('create function evil.%I(%s) returns %s language plpgsql as '
                           '$x$ begin perform evil.sprung(%L); return null; end $x$', v_name, v_arguments, v_result, 'function ' || v_name);
        exception
            when others then
                null;       -- a pseudo-type, or there is one already
        end;
    end loop;
end $do$;

-- Operators.
do $do$
declare
    o      record;
    v_no   int := 0;
begin
    for o in
        select p.oprname, p.oprleft::regtype as l, p.oprright::regtype as r, p.oprresult::regtype as result
        from pg_catalog.pg_operator as p
        where p.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace
          and p.oprname = any (array['=', '<>', '<', '<=', '>', '>=', '+', '-', '*', '/', '%', '&', '|', '#', '<<', '>>', '||', '~', '!~', '<@'])
          and p.oprright::regtype = any (array['text', 'int', 'bigint', 'smallint', 'timestamptz', 'interval', 'jsonb', 'name', 'xid8', 'boolean',
                                               'oid', 'uuid', 'double precision', 'numeric', '"char"', 'regclass']::regtype[])
          and p.oprleft <> 0
        union
        select '~', 'name', 'name', 'boolean'
    loop
        v_no := v_no + 1;
        begin
            execute format('create function evil.operator_%s(%s, %s) returns %s language plpgsql as '
                           '$x$ begin perform evil.sprung(%L); return null; end $x$', v_no, o.l, o.r, o.result, 'operator ' || o.oprname);
            execute format('create operator evil.%s (leftarg = %s, rightarg = %s, function = evil.operator_%s)', o.oprname, o.l, o.r, v_no);
        exception
            when undefined_function or invalid_function_definition or feature_not_supported then
                null;
        end;
    end loop;
end $do$;

-- Types, as domains that look at each value; a cast of a type of his own.
do $do$
declare
    v_type   text;
    v_schema text;
begin
    foreach v_type in array array['text', 'name', 'jsonb', 'xid8', 'regclass', 'timestamptz', 'uuid', 'oid', 'pg_snapshot', 'int4', 'int8'] loop
        foreach v_schema in array array['evil', 'pg_temp'] loop
            execute format('create domain %s.%I as pg_catalog.%I check (evil.sprung(%L) is null)', v_schema, v_type, v_type, 'type ' || v_type);
        end loop;
    end loop;
end $do$;
create type evil.sly as (x pg_catalog.text);
create function evil.to_text(evil.sly) returns pg_catalog.text language plpgsql as $$ begin perform evil.sprung('cast'); return ($1).x; end $$;
create cast (evil.sly as pg_catalog.text) with function evil.to_text(evil.sly) as implicit;

-- Relations: those of mq and of the catalogue, and the names that queries give to their parts.
do $do$
declare
    v_name text;
    v_from text;
begin
    for v_name, v_from in
        select c.relname, case when c.relnamespace = 'mq'::regnamespace then null else c.oid::regclass::text end
        from pg_catalog.pg_class as c
        where c.relkind in ('r', 'v', 'S') and (c.relnamespace = 'mq'::regnamespace
            or c.relnamespace = 'pg_catalog'::regnamespace and c.relname in (select w.word from evil.word as w))
        union all
        select x, null from unnest(array['arrived', 'claim', 'gone', 'leased', 'moved', 'm', 'i', 't', 'dead', 'old', 'chosen', 'one', 'extended',
                                         'whole', 'single', 'delivery', '_taken']) as x
    loop
        execute format('create view evil.%I as select %s evil.sprung(%L) as boo%s', v_name, case when v_from is not null then 'x.*,' else '' end,
                       'relation ' || v_name, ' from ' || v_from || ' as x');
        execute format('create temp view %I as select %s evil.sprung(%L) as boo%s', v_name, case when v_from is not null then 'x.*,' else '' end,
                       'temporary relation ' || v_name, ' from ' || v_from || ' as x');
    end loop;
end $do$;

-- Where he keeps what he gets: everything that can run code on a row.
create table evil.mine (id pg_catalog.int8 default evil.sprung('default')::pg_catalog.int4, note pg_catalog.text);
create function evil.of_index(pg_catalog.int8) returns pg_catalog.int8 language plpgsql immutable as $$
begin
    raise warning 'sprung by %: index', current_user;
    return $1;
end $$;
create index on evil.mine (evil.of_index(id));
create function evil.of_trigger() returns trigger language plpgsql as $$ begin perform evil.sprung('trigger'); return new; end $$;
create trigger hello before insert on evil.mine for each row execute function evil.of_trigger();
