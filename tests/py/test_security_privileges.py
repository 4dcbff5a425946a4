"""Who may do what: every privilege in the catalogue against a short list, and each of them really tried."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import psycopg
import pytest

from support import attack, race
from support.attack import MAY_CALL, USERS
from support.server import Server
from support.server import database as temporary_database

Connect = Callable[..., psycopg.Connection]

# Everything that anybody but the owner is granted: kind, object, role, privilege.
EXPECTED = {
    *(("schema", "mq", role, "USAGE") for role in MAY_CALL),
    *(("function", name, role, "EXECUTE") for role, names in MAY_CALL.items() for name in names),
    ("table", "inbox", "mq_producer", "INSERT"),
    ("table", "inbox", "mq_admin", "INSERT"),
}

# Types are left out: PostgreSQL grants USAGE on new ones to PUBLIC, which lets nobody see or change a message.
GRANTED = """
    with object (kind, name, owner, acl) as (
        select 'schema', n.nspname, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
        from pg_namespace as n where n.nspname = 'mq'
        union all
        select case c.relkind when 'S' then 'sequence' else 'table' end, c.relname, c.relowner,
               coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
        from pg_class as c where c.relnamespace = 'mq'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
        union all
        select 'column', c.relname || '.' || a.attname, c.relowner, a.attacl
        from pg_class as c join pg_attribute as a on a.attrelid = c.oid
        where c.relnamespace = 'mq'::regnamespace and a.attacl is not null
        union all
        select 'function', p.proname, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
        from pg_proc as p where p.pronamespace = 'mq'::regnamespace
        union all
        select 'type', t.typname, t.typowner, t.typacl
        from pg_type as t where t.typnamespace = 'mq'::regnamespace and t.typacl is not null
    )
    select o.kind, o.name, case a.grantee when 0 then 'PUBLIC' else a.grantee::regrole::text end,
           a.privilege_type || case when a.is_grantable then ' WITH GRANT OPTION' else '' end
    from object as o, aclexplode(o.acl) as a where a.grantee <> o.owner
"""

# Each statement is tried and undone; what is told is its SQLSTATE.
TRY = """
    create function public.try(statements text[]) returns text[] language plpgsql as $$
    declare
        v_states text[];
    begin
        for i in 1 .. cardinality(statements) loop
            begin
                execute statements[i];
                raise exception using errcode = 'SEC00';
            exception
                when others then
                    v_states[i] := sqlstate;
            end;
        end loop;
        return v_states;
    end $$
"""


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    with temporary_database(server, "security_privileges", mq_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as owner:
            attack.make_users(owner)
            owner.execute(TRY)
        yield dsn


def granted(owner: psycopg.Connection) -> set[tuple[str, ...]]:
    return {tuple(map(str, row)) for row in owner.execute(GRANTED.encode())}


def attempts(owner: psycopg.Connection) -> dict[str, tuple[str, str]]:
    """Statement to what it needs: (kind, name), with all that is in the schema now."""
    found: dict[str, tuple[str, str]] = {}
    relations = owner.execute(
        """
        select c.relname, c.relkind = 'S', (select min(quote_ident(a.attname)) from pg_attribute as a
                                            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
        from pg_class as c where c.relnamespace = 'mq'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
        """
    )
    for name, is_sequence, column in relations:
        at = f"mq.{name}"
        if is_sequence:
            statements = [
                f"select nextval('{at}')",
                f"select setval('{at}', 7)",
                f"select from {at}",
                f"alter sequence {at} restart",
                f"drop sequence {at}",
            ]
        else:
            statements = [
                f"select from {at}",
                f"update {at} set {column} = null where false",
                f"delete from {at} where false",
                f"truncate {at}",
                f"alter table {at} add boo int",
                f"drop table {at}",
                f"comment on table {at} is 'boo'",
                f"create index on {at} ({column})",
                f"create table pg_temp.boo (like {at})",
                f"create table pg_temp.boo () inherits ({at})",
                f"create trigger boo before insert on {at} execute function suppress_redundant_updates_trigger()",
            ]
            found[f"insert into {at} default values"] = ("table", name)
        found |= dict.fromkeys(statements, ("owner", name))
    for name, identity, types in owner.execute(
        """
        select p.proname, pg_get_function_identity_arguments(p.oid),
               array(select format_type(t, null) from unnest(p.proargtypes) with ordinality as u (t, no) order by no)
        from pg_proc as p where p.pronamespace = 'mq'::regnamespace
        """
    ):
        nulls = ", ".join(f"null::{type_}" for type_ in types)
        found[f"select mq.{name}({nulls})"] = ("function", name)
        found[f"alter function mq.{name}({identity}) reset all"] = ("owner", name)
    for statement in (
        "create table mq.boo ()",
        "create view mq.boo as select 1",
        "create type mq.boo as (x int)",
        "create function mq.boo() returns int language sql return 1",
        'create collation mq.boo from "C"',
        "alter type mq.delivery add attribute boo int",
        "drop schema mq cascade",
    ):
        found[statement] = ("owner", "mq")
    return found


def walk(owner: psycopg.Connection, users: dict[str, psycopg.Connection]) -> int:
    """Compares and tries everything; how many statements each user tried."""
    assert granted(owner) - EXPECTED == set()
    assert EXPECTED - granted(owner) == set()
    todo = attempts(owner)
    for user, conn in users.items():
        role = USERS[user]
        allowed = {(kind, name) for kind, name, grantee, _ in EXPECTED if grantee == role}
        row = conn.execute("select public.try(%s)", (list(todo),)).fetchone()
        assert row is not None
        wrong = [
            f"{user}: {statement}: {state}"
            for (statement, needed), state in zip(todo.items(), row[0], strict=True)
            if (state != "42501") != (needed in allowed)
        ]
        assert wrong == []
    return len(todo)


def test_nobody_may_do_more_than_the_list_says(connect: Connect, conn: psycopg.Connection) -> None:
    race.fresh(conn.info.dsn, "q", "q.2")
    users = {user: connect(user=user) for user in USERS}
    assert walk(conn, users) > 300

    # Everything that a queue goes through, with a third slot and one that is dropped again.
    race.fill(conn, 3)
    race.put(conn, "later", delay="1 hour")
    held = race.lease(conn)
    for _ in range(2):
        race.rotate(conn)
        race.maintain(conn)
    attack.upgrade(conn)
    assert race.ack(conn, held) == 1
    walk(conn, users)
    conn.execute("select mq._regenerate()")
    conn.execute("select mq.purge_queue('q')")
    conn.execute("select mq.drop_queue('q.2')")
    conn.execute("update mq.slot set freed_at = '-infinity'")
    for _ in range(3):
        race.maintain(conn)
    race.fresh(conn.info.dsn, "q")
    walk(conn, users)


def test_an_upgrade_takes_back_what_was_granted(connect: Connect, conn: psycopg.Connection) -> None:
    race.fresh(conn.info.dsn, "q")
    for role in ("public", *MAY_CALL):
        for objects in (
            "schema mq",
            *(f"all {kind} in schema mq" for kind in ("tables", "sequences", "routines")),
        ):
            conn.execute(f"grant all on {objects} to {role}")
        conn.execute(f"grant select (name), update (paused) on mq.queue to {role}")
    # Of a role that mq does not know there is nothing else that would be taken back with it.
    conn.execute("grant select (payload) on mq.dead_letter to sec_stranger")
    assert granted(conn) > EXPECTED
    attack.upgrade(conn)
    walk(conn, {user: connect(user=user) for user in USERS})


def test_default_privileges_of_the_owner_open_nothing(server: Server, database: str) -> None:
    from mqctl import migrate

    assert database  # the users are there
    with (
        temporary_database(server, "security_defaults") as dsn,
        psycopg.connect(dsn, autocommit=True) as owner,
    ):
        for kind in ("tables", "sequences", "functions", "schemas", "types"):
            owner.execute(
                f"alter default privileges grant all on {kind} to public, sec_stranger, mq_producer"
            )
        migrate.install(owner)
        owner.execute("select mq.create_queue('q')")
        race.rotate(owner)
        for user in USERS:
            with psycopg.connect(dsn, user=user) as conn:
                with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                    pytest.fail(
                        f"{user} read {conn.execute('select from mq.log_1_2').rowcount} rows"
                    )
                conn.rollback()
        # To use what is public, the owner may grant to whom he likes.
        public = {(kind, name, "sec_stranger", right) for kind, name, _, right in EXPECTED}
        assert {row for row in granted(owner) if row[0] != "type"} - public == EXPECTED


def test_a_view_of_a_stranger_does_not_keep_a_queue_alive(
    connect: Connect, conn: psycopg.Connection
) -> None:
    """CREATE VIEW asks for no privilege on what it reads, so whoever may use the schema can make one."""
    race.fresh(conn.info.dsn, "q")
    queue_id = race.value(conn, "select queue_id from mq.queue")
    producer = connect(user="sec_producer")
    producer.execute(f"create temp view clinging as select * from mq.log_{queue_id}_1")
    producer.execute(f"create table pg_temp.clinging_too (x mq.lease_{queue_id}_1)")
    connect(user="sec_admin").execute("select mq.drop_queue('q')")


def test_a_view_of_a_stranger_does_not_stop_upkeep(
    connect: Connect, conn: psycopg.Connection
) -> None:
    race.fresh(conn.info.dsn, "q")
    race.rotate(conn)
    for _ in range(4):
        race.maintain(conn)
    queue_id = race.value(conn, "select queue_id from mq.queue")
    slots = conn.execute("select slot from mq.slot where queue_id = %s", (queue_id,)).fetchall()
    producer = connect(user="sec_producer")
    for (slot,) in slots:
        producer.execute(
            f"create temp view clinging_{slot} as select * from mq.log_{queue_id}_{slot}"
        )
    conn.execute("update mq.slot set freed_at = '-infinity'")
    connect(user="sec_consumer").execute("select mq.maintain()")


def test_nobody_puts_tables_where_only_the_owner_may(
    connect: Connect, conn: psycopg.Connection
) -> None:
    if conn.info.server_version < 150000:
        pytest.skip("no tablespaces in place")
    race.fresh(conn.info.dsn)
    conn.execute("set allow_in_place_tablespaces = on")
    conn.execute("create tablespace security_elsewhere location ''")
    try:
        admin = connect(user="sec_admin", options="-c default_tablespace=security_elsewhere")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute("create table pg_temp.mine ()  tablespace security_elsewhere")
        admin.execute("select mq.create_queue('q')")
        moved = conn.execute(
            "select relname from pg_class where relnamespace = 'mq'::regnamespace and reltablespace <> 0"
        ).fetchall()
        admin.execute("select mq.drop_queue('q')")
        assert moved == []
    finally:
        conn.execute("drop tablespace security_elsewhere")


def test_private_names_begin_with_an_underscore(conn: psycopg.Connection) -> None:
    """A function that was added and forgotten here is private, or missing in the list."""
    named = {
        row[0]
        for row in conn.execute(
            "select proname from pg_proc where pronamespace = 'mq'::regnamespace"
        )
    }
    assert {name for name in named if not re.match("_", name)} == MAY_CALL["mq_admin"]
