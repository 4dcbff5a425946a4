"""Installation and upgrade as SQL text: one algorithm, which ``mqctl install`` runs and ``mqctl sql`` prints.

Every step is SQL that decides for itself, in the database, whether it has anything to do: the first one sets the
transaction-local setting ``mqctl.plan`` to ``apply`` or ``nothing``. So the script is idempotent whoever runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mqctl import catalogue
from mqctl.source import Migration, Source, SqlFile
from mqctl.statements import dollar_quote

LOCK = 7_023_498_115_902_377_361
"""Advisory lock that installations, upgrades and removals in one database take in turn."""

_WAIT_FOR_OTHERS = "60s"
_WAIT_FOR_TABLES = "5s"


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of the script and what to call it while it runs."""

    label: str
    sql: str
    remark: str = ""
    """A comment that goes before it in the script."""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _array(values: list[str], kind: str) -> str:
    return f"array[{', '.join(values)}]::{kind}[]"


def _block(body: str, declare: str = "") -> str:
    """A DO block, with its own text dollar-quoted safely."""
    declarations = f"declare\n{declare}" if declare else ""
    return f"do {dollar_quote(f'{chr(10)}{declarations}begin{chr(10)}{body}end {chr(10)}')}"


_SKIP = "    if current_setting('mqctl.plan') <> 'apply' then return; end if;\n"


def steps(source: Source, skip_migrations: int = 0) -> Iterator[Step]:
    """The steps of an installation or upgrade to ``source``, to be run in one READ COMMITTED transaction.

    ``skip_migrations``: leave out the text of migrations up to this one; they must have been applied before.
    """
    yield Step(
        "settings",
        "set local search_path = pg_catalog, pg_temp;\n"
        "set local statement_timeout = 0;\n"
        "set local check_function_bodies = on;\n"
        "set local default_tablespace = '';\n"
        "set local client_min_messages = notice;\n"
        f"set local lock_timeout = '{_WAIT_FOR_OTHERS}';",
    )
    yield Step("waiting for other installations", f"select pg_advisory_xact_lock({LOCK});")
    yield Step("lock timeout", f"set local lock_timeout = '{_WAIT_FOR_TABLES}';")
    yield Step("looking at what is there", _preflight(source, skip_migrations))
    yield Step("changes made by hand", _refuse_edited_structure())
    for file in (source.roles, source.schema):
        yield Step(file.path, _apply_file(file))
    yield Step("ledger", _create_ledger())
    for migration in source.migrations:
        if migration.version > skip_migrations:
            remark = f"migration {migration.name} {migration.sha256}"
            yield Step(migration.file.path, _apply_migration(source, migration), remark)
    for file in source.functions:
        yield Step(file.path, _apply_functions(file))
    yield Step("functions that are gone", _drop_old_functions(source))
    yield Step("functions of the queues", _regenerate())
    yield Step(source.grants.path, _apply_file(source.grants))
    yield Step("check", _verify(source))
    yield Step("record", _record(source))


def script(source: Source, skip_migrations: int = 0) -> str:
    """The steps as one file for ``psql``."""
    wanted = (
        f"a database that has migration {skip_migrations}" if skip_migrations else "any database"
    )
    head = (
        f"-- mq {source.version}: installs it into {wanted}, or upgrades what is there. Running it again changes nothing.\n"
        "-- Run it as the role that owns the database, or may create schemas in it:\n"
        "--     psql -X -v ON_ERROR_STOP=1 -f this-file.sql\n"
        f"-- source fingerprint {source.fingerprint()}\n"
        "begin isolation level read committed;\n"
    )
    parts = [head]
    for step in steps(source, skip_migrations):
        remark = f"-- {step.remark}\n" if step.remark else ""
        parts.append(f"-- {step.label}\n{remark}{step.sql}\n")
    parts.append("commit;\n")
    return "\n".join(parts)


def _preflight(source: Source, skip_migrations: int) -> str:
    """Refuses what is not ours to touch, and decides whether anything has to be done at all."""
    versions = _array([str(m.version) for m in source.migrations], "int")
    names = _array([_literal(m.name) for m in source.migrations], "text")
    hashes = _array([_literal(m.sha256) for m in source.migrations], "text")
    declare = f"""\
    v_versions constant int[] := {versions};
    v_names    constant text[] := {names};
    v_hashes   constant text[] := {hashes};
    v_schema   oid := (select n.oid from pg_namespace as n where n.nspname = 'mq');
    v_owner    oid := (select n.nspowner from pg_namespace as n where n.nspname = 'mq');
    v_newest   int := 0;
    v_row      record;
    v_known    boolean;
    v_same     boolean := false;
"""
    body = f"""\
    perform set_config('mqctl.plan', 'apply', true);
    perform set_config('mqctl.before', 'nothing', true);
    if current_setting('server_version_num')::int < 140000 then
        raise exception using errcode = 'feature_not_supported',
            message = format('PostgreSQL %s is too old for mq', current_setting('server_version')),
            hint = 'mq needs PostgreSQL 14 or newer.';
    end if;
    if v_schema is null and not has_database_privilege(current_database(), 'CREATE') then
        raise exception using errcode = 'insufficient_privilege',
            message = format('"%s" may not create a schema in database "%s"', current_user, current_database()),
            hint = format('Connect as the owner of the database, or have him run: grant create on database %I to %I;',
                          current_database(), current_user);
    end if;
    if v_schema is not null then
        if (select count(*) from pg_attribute as a
            where a.attrelid = to_regclass('mq.migration') and not a.attisdropped
              and a.attname in ('version', 'slug', 'sha256', 'mq_version', 'applied_at')) < 5
           or coalesce(obj_description(v_schema, 'pg_namespace'), '') !~ '^mq: ' then
            raise exception using errcode = 'duplicate_schema',
                message = 'schema "mq" belongs to something else',
                detail = 'It has no ledger of mq (table mq.migration and the comment on the schema). Nothing was changed.',
                hint = 'mq always lives in schema "mq": use another database, or rename that schema if it is yours.';
        end if;
        if not pg_has_role(v_owner, 'USAGE') then
            raise exception using errcode = 'insufficient_privilege',
                message = format('schema "mq" is owned by "%s", not by "%s"', pg_get_userbyid(v_owner), current_user),
                hint = format('Connect as "%s" or as a member of that role.', pg_get_userbyid(v_owner));
        end if;
        for v_row in execute 'select m.version, m.slug, m.sha256, m.mq_version from mq.migration as m order by m.version' loop
            v_newest := v_row.version;
            if v_row.version <> all (v_versions) then
                raise exception using errcode = 'object_not_in_prerequisite_state',
                    message = format('the database is newer than mqctl {source.version}: it has migration %s_%s of mq %s',
                        to_char(v_row.version, 'FM0000'), v_row.slug, v_row.mq_version),
                    hint = format('Use mqctl %s or newer.', v_row.mq_version);
            end if;
            if v_row.sha256 <> v_hashes[array_position(v_versions, v_row.version)] then
                raise exception using errcode = 'object_not_in_prerequisite_state',
                    message = format('migration %s was edited after it was applied',
                        v_names[array_position(v_versions, v_row.version)]),
                    detail = format('Applied by mq %s: %s. Shipped by mq {source.version}: %s.', v_row.mq_version, v_row.sha256,
                        v_hashes[array_position(v_versions, v_row.version)]),
                    hint = 'Use an unmodified mqctl: a migration never changes once it is released.';
            end if;
        end loop;
        perform set_config('mqctl.before', v_newest::text, true);
        v_known := to_regclass('mq.installed_object') is not null;
        if v_known then
            execute $query$
{_same_query(source)}
            $query$ into v_same;
            if v_same and v_newest = {source.migrations[-1].version if source.migrations else 0} then
                perform set_config('mqctl.plan', 'nothing', true);
                raise notice 'mq {source.version} is installed already, nothing changed';
            end if;
        end if;
    end if;
    if v_newest < {skip_migrations} then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = 'this script upgrades a release that has migration {skip_migrations}, and the database does not',
            hint = 'Use the whole script: mqctl sql';
    end if;
"""
    return _block(body, declare) + ";"


def _same_query(source: Source) -> str:
    """Whether the database is as the last installation left it, and that was one of this very source."""
    return f"""
                with live as ({catalogue.QUERY}), recorded as (
                    select o.kind, o.name, o.definition from mq.installed_object as o where o.kind <> 'source'
                )
                select (select o.definition from mq.installed_object as o
                        where o.kind = 'source' and o.name = 'fingerprint') = '{source.fingerprint()}'
                    and not exists (select * from live except select * from recorded)
                    and not exists (select * from recorded except select * from live)"""


def _refuse_edited_structure() -> str:
    """Tables changed by hand since the last installation: refused, since recording them as right would hide it."""
    kinds = ", ".join(_literal(kind) for kind in catalogue.STRUCTURE)
    declare = "    v_changed text;\n"
    body = f"""\
{_SKIP}    if to_regclass('mq.installed_object') is null
       or coalesce(current_setting('mqctl.accept_drift', true), '') = 'on' then
        return;
    end if;
    execute $query$
        with live as ({catalogue.QUERY}), recorded as (
            select o.kind, o.name, o.definition from mq.installed_object as o
        )
        select string_agg(distinct format('%s %s', d.kind, d.name), ', ' order by format('%s %s', d.kind, d.name))
        from (
            (select * from live except select * from recorded)
            union all
            (select * from recorded except select * from live)
        ) as d
        where d.kind in ({kinds})
    $query$ into v_changed;
    if v_changed is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = 'tables of mq were changed by hand since mq was installed',
            detail = format('Different from what was installed: %s.', v_changed),
            hint = 'mqctl check shows how. Undo it, or keep it: mqctl upgrade --accept-drift'
                || ' (with the script: set mqctl.accept_drift = ''on'').';
    end if;
"""
    return _block(body, declare) + ";\nset local client_min_messages = warning;"


def _apply_file(file: SqlFile) -> str:
    return _block(f"{_SKIP}    execute {dollar_quote(file.text)};\n") + ";"


def _create_ledger() -> str:
    body = f"""\
{_SKIP}    create table if not exists mq.installed_object (
        kind       text not null,
        name       text not null,
        definition text not null,
        constraint installed_object_pkey primary key (kind, name)
    );
    comment on table mq.installed_object is
        'What the last installation left in the schema, so that mqctl check can say what was changed since.';
"""
    return _block(body) + ";"


def _apply_migration(source: Source, migration: Migration) -> str:
    body = f"""\
{_SKIP}    if exists (select from mq.migration as m where m.version = {migration.version}) then return; end if;
    execute {dollar_quote(migration.file.text)};
    insert into mq.migration (version, slug, sha256, mq_version, applied_at)
    values ({migration.version}, {_literal(migration.slug)}, '{migration.sha256}', '{source.version}', clock_timestamp());
"""
    return _block(body) + ";"


def _apply_functions(file: SqlFile) -> str:
    """Re-creates the functions of one file.

    A function whose signature changed is dropped: the old one where other argument types made a second function of
    the same name, and before it is created again where PostgreSQL cannot replace it in place.
    """
    names = [_literal(statement.routine or "") for statement in file.statements]
    texts = [dollar_quote(statement.text) for statement in file.statements]
    separator = ",\n"
    declare = f"""\
    v_names      constant text[] := {_array(names, "text")};
    v_statements constant text[] := array[
{separator.join(texts)}
    ]::text[];
    v_before     oid[];
    v_old        oid;
"""
    body = f"""\
{_SKIP}    for i in 1 .. coalesce(array_length(v_statements, 1), 0) loop
        if v_names[i] = '' then
            execute v_statements[i];
            continue;
        end if;
        v_before := array(select p.oid from pg_proc as p
                          where p.pronamespace = 'mq'::regnamespace and p.proname = v_names[i]);
        begin
            execute v_statements[i];
        exception when invalid_function_definition or wrong_object_type then
            foreach v_old in array v_before loop
                execute format('drop routine %s', v_old::regprocedure);
            end loop;
            execute v_statements[i];
            continue;
        end;
        if (select count(*) from pg_proc as p
            where p.pronamespace = 'mq'::regnamespace and p.proname = v_names[i]) > 1 then
            foreach v_old in array v_before loop
                execute format('drop routine %s', v_old::regprocedure);
            end loop;
        end if;
    end loop;
"""
    return _block(body, declare) + ";"


def _drop_old_functions(source: Source) -> str:
    """Drops what an earlier version shipped and this one does not."""
    names = _array([_literal(name) for name in source.routines], "text")
    declare = "    v_old record;\n"
    body = f"""\
{_SKIP}    for v_old in
        select p.oid from pg_proc as p
        where p.pronamespace = 'mq'::regnamespace and p.proname <> all ({names})
          and exists (select from mq.installed_object as o
                      where o.kind = 'function'
                        and o.name = format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)))
    loop
        execute format('drop routine %s', v_old.oid::regprocedure);
    end loop;
"""
    return _block(body, declare) + ";"


def _regenerate() -> str:
    body = f"""\
{_SKIP}    if to_regprocedure('mq._regenerate()') is not null then
        perform mq._regenerate();
    end if;
"""
    return _block(body) + ";"


def _verify(source: Source) -> str:
    """Raises unless the functions of the schema are those of the manifest, body for body."""
    names = _array([_literal(name) for name in source.routines], "text")
    bodies = _array([_literal(body) for body in source.routines.values()], "text")
    declare = "    v_wrong text;\n"
    body = f"""\
{_SKIP}    select string_agg(coalesce(p.name, w.name) || case when w.name is null then ' (not part of mq)'
                          when p.name is null then ' (missing)' when p.number > 1 then ' (overloaded)'
                          else ' (another body)' end, ', ' order by coalesce(p.name, w.name))
    into v_wrong
    from unnest({names}, {bodies}) as w(name, body)
    full join (
        select p.proname::text as name, count(*) as number, min(md5(p.prosrc)) as body
        from pg_proc as p
        where p.pronamespace = 'mq'::regnamespace and p.proname !~ '{catalogue.GENERATED}'
        group by p.proname
    ) as p on p.name = w.name
    where p.name is null or w.name is null or p.number > 1 or p.body <> w.body;
    if v_wrong is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = 'the functions in schema "mq" are not those of mq {source.version}',
            detail = format('Wrong are: %s. Nothing was changed.', v_wrong),
            hint = 'Move functions of your own to another schema.';
    end if;
"""
    return _block(body, declare) + ";"


def _record(source: Source) -> str:
    body = f"""\
{_SKIP}    delete from mq.installed_object;
    execute $query$
        insert into mq.installed_object (kind, name, definition)
        select live.kind, live.name, live.definition
        from ({catalogue.QUERY}) as live
        where live.kind <> '{catalogue.STRANGER}'
        union all select 'source', 'fingerprint', '{source.fingerprint()}'
        union all select 'source', 'version', '{source.version}'
    $query$;
"""
    return _block(body) + ";"
