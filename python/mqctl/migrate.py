"""Install, upgrade and remove mq in one database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg.rows import scalar_row

from mqctl import catalogue, steps
from mqctl.errors import MqctlError
from mqctl.output import plural
from mqctl.source import Source, load

Progress = Callable[[str, int, int], None]
"""Called before each step with its name, its number from 1, and how many there are."""

_BATCH = 20
"""How many objects one transaction of a removal drops; each takes a handful of locks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an installation did.

    ``migrations`` are the names of those applied; ``changed`` is False where everything was in place already;
    ``fresh`` where there was no mq before.
    """

    version: str
    changed: bool
    fresh: bool
    migrations: tuple[str, ...]


def install(
    conn: psycopg.Connection[object],
    source: Source | None = None,
    *,
    accept_drift: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Install mq, or upgrade it, in one transaction; what is there already is left alone.

    Args: ``conn`` must not be inside a transaction; ``source`` defaults to what this mqctl ships; ``accept_drift``
    goes on although tables of mq were changed by hand.
    Raises: ``psycopg.Error`` with what the server, or one of the checks in it, refuses; SourceError. Either way
    the database is as it was before.
    """
    source = load() if source is None else source
    _require_idle(conn)
    todo = list(steps.steps(source))
    with conn.transaction(), conn.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("set transaction isolation level read committed")
        if accept_drift:
            cursor.execute("set local mqctl.accept_drift = 'on'")
        for number, step in enumerate(todo, start=1):
            if progress is not None:
                progress(step.label, number, len(todo))
            cursor.execute(step.sql)
        changed = cursor.execute("select current_setting('mqctl.plan')").fetchone() == "apply"
        before = str(cursor.execute("select current_setting('mqctl.before')").fetchone())
    fresh = before == "nothing"
    known = 0 if fresh else int(before)
    applied = tuple(m.name for m in source.migrations if m.version > known)
    return Outcome(source.version, changed, fresh, applied)


def upgrade(
    conn: psycopg.Connection[object],
    source: Source | None = None,
    *,
    accept_drift: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """:func:`install` for a database that must have mq already, else MqctlError."""
    if not is_installed(conn):
        raise MqctlError(
            f'mq is not installed in database "{conn.info.dbname}"', hint="Run: mqctl install"
        )
    return install(conn, source, accept_drift=accept_drift, progress=progress)


def is_installed(conn: psycopg.Connection[object]) -> bool:
    """Whether schema ``mq`` is there and is ours."""
    with conn.transaction(), conn.cursor(row_factory=scalar_row) as cursor:
        cursor.execute(
            """select exists (
                   select from pg_catalog.pg_namespace as n
                   where n.nspname = 'mq' and pg_catalog.obj_description(n.oid, 'pg_namespace') ~ '^mq: '
                     and exists (select from pg_catalog.pg_class as c
                                 where c.relnamespace = n.oid and c.relname = 'migration'))"""
        )
        return bool(cursor.fetchone())


def messages_left(conn: psycopg.Connection[object]) -> dict[str, int]:
    """Queues that still hold messages, dead letters included: name to number of messages."""
    query = "select s.ready + s.deferred + s.leased + s.dead from mq.queue_stats(queue => %s) as s"
    try:
        # A transaction for each queue: looking at all at once may need more locks than there are.
        names = _scalars(conn, "select q.name from mq.queues() as q")
        counts = {name: int(_scalars(conn, query, [name])[0]) for name in names}
    except psycopg.errors.Error as error:
        raise MqctlError(
            "cannot tell whether messages are left",
            detail=f"mq.queue_stats() says: {error.diag.message_primary or error}",
            hint="Repair it (mqctl upgrade), or remove mq whatever is left: mqctl uninstall --force",
        ) from None
    return {name: count for name, count in counts.items() if count}


def uninstall(conn: psycopg.Connection[object], *, force: bool = False) -> None:
    """Remove schema ``mq`` with all queues. The roles stay: they belong to the whole cluster.

    One transaction that dropped everything would lock every table at once, more than the lock table may hold. So what
    belongs to the queues goes first, a few objects a transaction, and the schema last. Interrupted, it can be run again,
    or `install` run to have the grants back.

    Raises: MqctlError where schema ``mq`` is missing or not ours, where messages are left and ``force`` is False, and
    where something outside the schema depends on it; ``psycopg.Error``.
    """
    _require_idle(conn)
    if not is_installed(conn):
        raise MqctlError(
            f'mq is not installed in database "{conn.info.dbname}"',
            detail='There is no schema "mq" with the ledger of mq; nothing was changed.',
        )
    _require_owner(conn)
    if outside := _dependents(conn):
        raise MqctlError(
            'objects outside schema "mq" depend on it',
            detail=f"They are: {', '.join(outside)}.",
            hint="Drop them first; mqctl never drops what is not its own.",
        )
    if not force:
        _refuse_messages(conn)
    allowed = _shut(conn)
    try:
        if not force:  # once more, now that nobody can add to them
            _await_writers(conn)
            _refuse_messages(conn)
    except BaseException:
        if allowed:
            conn.execute(f"grant usage on schema mq to {', '.join(allowed)}")
        raise
    for kind, query in _GENERATED.items():
        while names := _scalars(conn, query):
            with conn.transaction():
                _take_lock(conn)
                conn.execute(f"drop {kind} if exists {', '.join(names)} cascade")
    with conn.transaction():
        _take_lock(conn)
        conn.execute("drop schema mq cascade")


_RELATIONS = f"""
    select format('mq.%I', c.relname) from pg_catalog.pg_class as c
    where c.relnamespace = 'mq'::regnamespace and c.relkind = '{{kind}}' and c.relname ~ '{catalogue.GENERATED}'
    order by c.oid limit {_BATCH}"""
# What belongs to queues, by the word that DROP knows it by: the next few of each.
_GENERATED = {
    "table": _RELATIONS.format(kind="r"),
    "sequence": _RELATIONS.format(kind="S"),
    "routine": f"""
        select p.oid::regprocedure::text from pg_catalog.pg_proc as p
        where p.pronamespace = 'mq'::regnamespace and p.proname ~ '{catalogue.GENERATED}'
        order by p.oid limit {_BATCH}""",
}

# What depends on an object of ours without being in our schema, or part of something that is.
_DEPENDENTS = """
    with ours as (
        select 'pg_class'::regclass as classid, c.oid from pg_class as c where c.relnamespace = 'mq'::regnamespace
        union all
        select 'pg_proc'::regclass, p.oid from pg_proc as p where p.pronamespace = 'mq'::regnamespace
        union all
        select 'pg_type'::regclass, t.oid from pg_type as t where t.typnamespace = 'mq'::regnamespace
    ), dependent as (
        select distinct d.classid, d.objid, d.objsubid
        from pg_depend as d
        join ours on ours.classid = d.refclassid and ours.oid = d.refobjid
        where d.deptype in ('n', 'a')
    )
    select pg_describe_object(d.classid, d.objid, d.objsubid)
    from dependent as d
    where 'mq'::regnamespace <> coalesce(
        case d.classid
            when 'pg_class'::regclass then (select c.relnamespace from pg_class as c where c.oid = d.objid)
            when 'pg_proc'::regclass then (select p.pronamespace from pg_proc as p where p.oid = d.objid)
            when 'pg_type'::regclass then (select t.typnamespace from pg_type as t where t.oid = d.objid)
            when 'pg_constraint'::regclass then (select c.connamespace from pg_constraint as c where c.oid = d.objid)
            when 'pg_rewrite'::regclass then (select c.relnamespace from pg_rewrite as r
                join pg_class as c on c.oid = r.ev_class where r.oid = d.objid)
            when 'pg_trigger'::regclass then (select c.relnamespace from pg_trigger as t
                join pg_class as c on c.oid = t.tgrelid where t.oid = d.objid)
            when 'pg_attrdef'::regclass then (select c.relnamespace from pg_attrdef as a
                join pg_class as c on c.oid = a.adrelid where a.oid = d.objid)
            when 'pg_policy'::regclass then (select c.relnamespace from pg_policy as p
                join pg_class as c on c.oid = p.polrelid where p.oid = d.objid)
            when 'pg_statistic_ext'::regclass then (select s.stxnamespace from pg_statistic_ext as s where s.oid = d.objid)
        end, 0)
    order by 1"""


def _dependents(conn: psycopg.Connection[object]) -> list[str]:
    with conn.transaction():
        conn.execute("set local search_path = pg_catalog, pg_temp")
        return _scalars(conn, _DEPENDENTS)


def _refuse_messages(conn: psycopg.Connection[object]) -> None:
    if left := messages_left(conn):
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(left.items()))
        raise MqctlError(
            f"there are messages left in {plural(len(left), 'queue')}",
            detail=f"Messages and dead letters: {listed}.",
            hint="Consume or purge them, or lose them: mqctl uninstall --force",
        )


def _shut(conn: psycopg.Connection[object]) -> list[str]:
    """From here on no role of ours can call anything; those that could, as SQL has them."""
    query = """
        select distinct case when a.grantee = 0 then 'public' else a.grantee::regrole::text end
        from pg_namespace as n, aclexplode(n.nspacl) as a
        where n.nspname = 'mq' and a.privilege_type = 'USAGE' and a.grantee <> n.nspowner"""
    with conn.transaction():
        _take_lock(conn)
        allowed = _scalars(conn, query)
        if allowed:
            conn.execute(f"revoke usage on schema mq from {', '.join(allowed)}")
    return allowed


def _await_writers(conn: psycopg.Connection[object]) -> None:
    """Until the transactions have ended that wrote before; what they wrote is to be counted."""
    query = _RELATIONS.format(kind="r").replace(f"limit {_BATCH}", "")
    for name in _scalars(conn, query):
        with conn.transaction():
            _take_lock(conn)
            conn.execute(f"lock table only {name} in share mode")


def _scalars(
    conn: psycopg.Connection[object], query: str, values: list[object] | None = None
) -> list[str]:
    with conn.transaction(), conn.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("set local search_path = pg_catalog, pg_temp")
        return [str(value) for value in cursor.execute(query, values)]


def _require_owner(conn: psycopg.Connection[object]) -> None:
    query = """
        select pg_catalog.pg_get_userbyid(n.nspowner) from pg_catalog.pg_namespace as n
        where n.nspname = 'mq' and not pg_catalog.pg_has_role(n.nspowner, 'USAGE')"""
    if owner := _scalars(conn, query):
        raise MqctlError(
            f'mq is owned by "{owner[0]}", not by "{conn.info.user}"',
            hint=f'Connect as "{owner[0]}" or as a member of that role.',
        )


def _take_lock(conn: psycopg.Connection[object]) -> None:
    conn.execute("set local search_path = pg_catalog, pg_temp")
    conn.execute("set local lock_timeout = '60s'")
    conn.execute(f"select pg_advisory_xact_lock({steps.LOCK})")


def _require_idle(conn: psycopg.Connection[object]) -> None:
    if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise MqctlError(
            "the connection is inside a transaction", hint="Commit or roll back first."
        )
