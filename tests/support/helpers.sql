-- What pgTAP files may use besides pgTAP; loaded by tests/support/pgtap.py, explained in tests/sql/README.md.

create schema test;
grant usage on schema test to public;

-- pgTAP keeps its counts in temporary objects of whoever called plan(), so a file stays who it is
-- and lets single statements run as somebody else.
create function test.run_as(role name, statement text) returns void
language plpgsql as $$
begin
    execute format('set local role %I', run_as.role);
    execute run_as.statement;
    reset role;
end
$$;
comment on function test.run_as(name, text) is
    'Runs a statement as another role, for throws_ok and lives_ok; its rows are thrown away.';

create function test.value_as(role name, expression text) returns text
language plpgsql as $$
declare
    v_value text;
begin
    execute format('set local role %I', value_as.role);
    execute format('select (%s)::text', value_as.expression) into v_value;
    reset role;
    return v_value;
end
$$;
comment on function test.value_as(name, text) is 'What an expression yields to another role, as text.';

-- The buffers that one statement touches, from EXPLAIN: the measure of tests that must not look at a clock.
create function test.buffers(statement text) returns bigint
language plpgsql as $$
declare
    v_plan json;
begin
    execute 'explain (analyze, buffers, timing off, summary off, costs off, format json) ' || buffers.statement into v_plan;
    return (v_plan -> 0 -> 'Plan' ->> 'Shared Hit Blocks')::bigint
         + (v_plan -> 0 -> 'Plan' ->> 'Shared Read Blocks')::bigint;
end
$$;
comment on function test.buffers(text) is 'Shared buffers hit and read by one statement, planning left out.';
