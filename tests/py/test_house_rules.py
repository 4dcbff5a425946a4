"""House rules, read from the catalogue of an installed database. Every test lists the offenders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support import binaries, template
from support.server import Server

SQL = binaries.REPO / "sql"

# Functions that are made for a queue, and what they may be spared: see sql/README.md.
GENERATED = re.compile(r"^_.*_\d+$")

# What plpgsql_check cannot see: a loop that only RETURN leaves, RETURN QUERY EXECUTE.
NO_MATTER = re.compile(
    r"""
      ^mq\._extend_\d+_\d+\(.*control\ reached\ end\ of\ function\ without\ RETURN
    | ^mq\._(fates|fates_of_taken|locate|promotions)\(.*is\ maybe\ unmodified
    # The arguments are those of other slots.
    | ^mq\._(take|first_ready|mark)_2_\d+\(.*unused\ parameter\ "p_(ticket|sub|vt|fresh|due|had|give_up)"
    """,
    re.VERBOSE,
)

ROUTINES = """
    select p.oid, p.proname as name, p.oid::regprocedure::text as signature, l.lanname as language
      from pg_proc as p
      join pg_language as l on l.oid = p.prolang
     where p.pronamespace = 'mq'::regnamespace
"""

RELATIONS = "select c.* from pg_class as c where c.relnamespace = 'mq'::regnamespace"


@pytest.fixture
def installed(conn: psycopg.Connection, queue: str) -> psycopg.Connection:
    """mq with one queue, so that what is made for a queue is there too."""
    assert queue
    return conn


def names(conn: psycopg.Connection, query: str) -> list[str]:
    return [str(row[0]) for row in conn.execute(query.encode())]


def is_public(name: str) -> bool:
    return not name.startswith("_")


def public_functions(conn: psycopg.Connection) -> list[str]:
    return sorted(filter(is_public, names(conn, f"select name from ({ROUTINES}) as r")))


def source_files() -> Iterator[tuple[Path, str]]:
    for path in sorted(SQL.rglob("*.sql")):
        if "released" not in path.parts:
            yield path, path.read_text()


def without_comments(text: str) -> str:
    return re.sub(r"--[^\n]*", "", text)


def test_every_routine_pins_its_search_path(installed: psycopg.Connection) -> None:
    loose = names(
        installed,
        f"""
        select r.name from ({ROUTINES}) as r join pg_proc as p on p.oid = r.oid
         where not coalesce(p.proconfig, '{{}}') @> array['search_path=pg_catalog, pg_temp']
        """,
    )
    assert [name for name in loose if not GENERATED.match(name)] == []


def test_no_function_is_overloaded(installed: psycopg.Connection) -> None:
    assert (
        names(installed, f"select name from ({ROUTINES}) as r group by name having count(*) > 1")
        == []
    )


def test_every_public_function_has_a_comment_that_names_its_role(
    installed: psycopg.Connection,
) -> None:
    rows = installed.execute(
        f"select name, coalesce(obj_description(oid, 'pg_proc'), '') from ({ROUTINES}) as r".encode()
    ).fetchall()
    assert [name for name, text in rows if is_public(name) and "Role:" not in text] == []


def test_every_table_and_type_has_a_comment(installed: psycopg.Connection) -> None:
    bare = names(
        installed,
        f"""
        select c.relname from ({RELATIONS}) as c
         where c.relkind in ('r', 'p', 'v', 'm', 'c') and obj_description(c.oid, 'pg_class') is null
           and (c.relkind <> 'c' or obj_description(c.reltype, 'pg_type') is null)
        """,
    )
    missing = {name for name in bare if is_public(name) and not re.search(r"_\d+$", name)}
    assert missing == set()


def test_public_may_execute_nothing(installed: psycopg.Connection) -> None:
    assert (
        names(
            installed,
            f"""
            select r.signature
              from ({ROUTINES}) as r
              join pg_proc as p on p.oid = r.oid,
                   aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as acl
             where acl.grantee = 0
            """,
        )
        == []
    )


def test_public_may_see_and_touch_nothing(installed: psycopg.Connection) -> None:
    assert (
        names(
            installed,
            f"""
            select c.relname
              from ({RELATIONS}) as c,
                   aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) as acl
             where acl.grantee = 0
             union all
            select 'schema'
              from pg_namespace as n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as acl
             where n.nspname = 'mq' and acl.grantee = 0
            """,
        )
        == []
    )


def test_what_is_private_is_granted_to_nobody(installed: psycopg.Connection) -> None:
    granted = names(
        installed,
        f"""
        select r.name
          from ({ROUTINES}) as r
          join pg_proc as p on p.oid = r.oid,
               aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as acl
         where acl.grantee <> p.proowner
         union all
        select c.relname
          from ({RELATIONS}) as c,
               aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) as acl
         where acl.grantee <> c.relowner
           and c.relkind <> 'c'
           and c.relname <> 'inbox'
        """,
    )
    assert [
        name for name in granted if not (is_public(name) and name in public_functions(installed))
    ] == []


def test_every_public_function_can_be_called_by_a_role(installed: psycopg.Connection) -> None:
    assert (
        names(
            installed,
            f"""
            select r.signature from ({ROUTINES}) as r
             where left(r.name, 1) <> '_'
               and not has_function_privilege('mq_producer', r.oid, 'execute')
               and not has_function_privilege('mq_consumer', r.oid, 'execute')
               and not has_function_privilege('mq_admin', r.oid, 'execute')
            """,
        )
        == []
    )


def test_the_manifest_lists_every_file_once() -> None:
    listed = re.findall(r"^\\ir\s+(\S+)", (SQL / "functions.sql").read_text(), re.MULTILINE)
    files = [path.relative_to(SQL).as_posix() for path in (SQL / "functions").rglob("*.sql")]
    assert sorted(listed) == sorted(files)


def test_public_functions_are_the_files_of_their_names(installed: psycopg.Connection) -> None:
    files = sorted(path.stem for path in (SQL / "functions").glob("*.sql"))
    assert files == public_functions(installed)


def test_a_file_defines_the_function_that_it_is_named_after() -> None:
    for path in sorted((SQL / "functions").glob("*.sql")):
        defined = re.findall(
            r"^create (?:or replace )?(?:function|procedure) mq\.(\w+)",
            path.read_text(),
            re.MULTILINE,
        )
        assert [name for name in defined if is_public(name)] == [path.stem]


def test_every_public_function_has_its_pgtap_file(installed: psycopg.Connection) -> None:
    tested = {path.stem for path in (binaries.REPO / "tests" / "sql").glob("*.sql")}
    assert sorted(set(public_functions(installed)) - tested) == []


def test_every_exception_has_an_sqlstate() -> None:
    bare = []
    for path, text in source_files():
        for raised in re.findall(r"\braise exception\b[^;]*", without_comments(text)):
            if "errcode" not in raised:
                bare.append(f"{path.relative_to(SQL)}: {raised.split(chr(10))[0]}")
    assert bare == []


def test_migrations_neither_define_nor_call_functions_of_mq(installed: psycopg.Connection) -> None:
    functions = "|".join(map(re.escape, names(installed, f"select name from ({ROUTINES}) as r")))
    offenders = []
    for path in sorted((SQL / "migrations").glob("*.sql")):
        text = without_comments(path.read_text())
        if re.search(r"\bcreate\s+(or\s+replace\s+)?(function|procedure)\b", text) or re.search(
            rf"\bmq\.({functions})\s*\(", text
        ):
            offenders.append(path.name)
    assert offenders == []


def test_a_register_is_written_by_one_function(installed: psycopg.Connection) -> None:
    """Each writer replaces some bits, so all read it under the lock of _write_register. The other sequences are no registers."""
    rows = installed.execute(
        "select p.proname, p.prosrc from pg_proc as p where p.pronamespace = 'mq'::regnamespace"
    ).fetchall()
    calls = re.compile(r"\bsetval\b(?:\(((?:\([^()]*\)|[^,()])+),)?")
    written = [
        (name, sequence)
        for name, source in rows
        for sequence in calls.findall(without_comments(source))
        if not re.search(
            r"\b(v_)?(msg_ids?|waiting|notified|room|strikes?|(last_)?ticket)(\b|_)", sequence
        )
    ]
    assert written == [("_write_register", "_write_register.register")]


@pytest.fixture(scope="module")
def checker() -> Iterator[psycopg.Connection]:
    """mq with a queue of each mode on a Debian server that has plpgsql_check."""
    required = os.environ.get("MQ_REQUIRE_PLPGSQL_CHECK") == "1"
    try:
        server = Server("debian")
    except binaries.Unavailable as error:
        if required:
            raise
        pytest.skip(str(error))
    with server:
        server.create_database("checked", template.make(server))
        with server.connect("checked") as conn:
            try:
                conn.execute("create extension plpgsql_check schema public")
            except psycopg.errors.UndefinedFile:
                if required:
                    raise
                pytest.skip("Debian: apt install postgresql-15-plpgsql-check")
            conn.execute("select mq.create_queue('q')")
            conn.execute("select mq.create_queue('tx', mode => 'transaction')")
            yield conn


def test_plpgsql_check_has_nothing_to_say(checker: psycopg.Connection) -> None:
    said = names(
        checker,
        f"""
        select format('%s line %s: %s: %s', r.signature, c.lineno, c.level, c.message)
          from ({ROUTINES}) as r
          join pg_proc as p on p.oid = r.oid
          left join pg_trigger as t on t.tgfoid = r.oid and not t.tgisinternal,
               public.plpgsql_check_function_tb(
                   r.oid, coalesce(t.tgrelid, 0), fatal_errors => false, security_warnings => true,
                   oldtable => t.tgoldtable, newtable => t.tgnewtable
               ) as c
         where r.language = 'plpgsql'
         order by r.signature, c.lineno
        """,
    )
    said = [line for line in said if not NO_MATTER.search(line)]
    assert not said, "\n".join(said)


def test_no_handler_catches_a_whole_class(installed: psycopg.Connection) -> None:
    """To plpgsql a code that ends in 000 is its class: who waits for MQ000 swallows MQ007."""
    query = "select proname from pg_proc where pronamespace = 'mq'::regnamespace and prosrc ~"
    assert names(installed, f"{query} $$when .*sqlstate '[A-Z0-9]{{2}}000'$$") == []
