"""Drift: what differs between a database and what this version ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row, dict_row

from mqctl import catalogue
from mqctl.catalogue import Item
from mqctl.errors import MqctlError
from mqctl.migrate import is_installed
from mqctl.source import Source, load


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: ``problem`` is missing, extra, changed or outdated; both sides as text, None where absent."""

    kind: str
    name: str
    problem: str
    expected: str | None
    found: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`check` found.

    ``installed`` is the version in the database, ``shipped`` that of the source; ``fingerprint`` stands for all that
    is in the schema, queues aside, and is the same wherever the same version was installed in whatever way.
    """

    database: str
    installed: str
    shipped: str
    fingerprint: str
    source_fingerprint: str
    findings: tuple[Finding, ...]


def check(conn: psycopg.Connection[object], source: Source | None = None) -> Report:
    """Compare schema, functions and grants with ``source`` (default: what this mqctl ships). Writes nothing.

    Raises: MqctlError where mq is not installed, or the user may not read its ledger; ``psycopg.Error``.
    """
    source = load() if source is None else source
    if not is_installed(conn):
        raise MqctlError(
            f'mq is not installed in database "{conn.info.dbname}"', hint="Run: mqctl install"
        )
    try:
        with conn.transaction():
            conn.execute("set transaction isolation level repeatable read, read only")
            live = _live(conn)
            recorded = _recorded(conn)
            applied = _applied(conn)
    except psycopg.errors.InsufficientPrivilege as error:
        raise MqctlError(
            "only the owner of mq may check it",
            detail=error.diag.message_primary or "",
            hint="Connect as the owner of schema mq, or as a member of that role.",
        ) from None
    except psycopg.errors.UndefinedTable as error:
        raise MqctlError(
            "mq was not installed by mqctl, or only half of it is left",
            detail=error.diag.message_primary or "",
            hint="Run: mqctl install",
        ) from None
    origin = {item.name: item.definition for item in recorded if item.kind == "source"}
    current = origin.get("fingerprint") == source.fingerprint()
    findings = [
        *_version(source, origin, current),
        *_migrations(source, applied),
        *_objects([item for item in recorded if item.kind != "source"], live),
    ]
    if current:
        known = {(finding.kind, finding.name.partition("(")[0]) for finding in findings}
        findings += [
            finding
            for finding in _bodies(source, live)
            if (finding.kind, finding.name.partition("(")[0]) not in known
        ]
    return Report(
        database=conn.info.dbname,
        installed=origin.get("version", "unknown"),
        shipped=source.version,
        fingerprint=catalogue.fingerprint(i for i in live if i.kind != catalogue.STRANGER),
        source_fingerprint=source.fingerprint(),
        findings=tuple(findings),
    )


def _live(conn: psycopg.Connection[object]) -> list[Item]:
    conn.execute("set local search_path = pg_catalog, pg_temp")
    with conn.cursor(row_factory=class_row(Item)) as cursor:
        return sorted(cursor.execute(catalogue.QUERY))


def _recorded(conn: psycopg.Connection[object]) -> list[Item]:
    with conn.cursor(row_factory=class_row(Item)) as cursor:
        query = "select o.kind, o.name, o.definition from mq.installed_object as o"
        return sorted(cursor.execute(query))


def _applied(conn: psycopg.Connection[object]) -> dict[str, str]:
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "select m.version, m.slug, m.sha256 from mq.migration as m"
        ).fetchall()
    return {f"{row['version']:04d}_{row['slug']}": row["sha256"] for row in rows}


def _version(source: Source, origin: dict[str, str], current: bool) -> Iterator[Finding]:
    if not current:
        yield Finding(
            "version",
            "mq",
            "outdated",
            f"{source.version}, source {source.fingerprint()[:12]}",
            f"{origin.get('version', 'unknown')}, source {origin.get('fingerprint', '')[:12]}",
        )


def _migrations(source: Source, applied: dict[str, str]) -> Iterator[Finding]:
    shipped = {migration.name: migration.sha256 for migration in source.migrations}
    yield from _compare("migration", shipped, applied)


def _objects(recorded: list[Item], live: list[Item]) -> Iterator[Finding]:
    for kind in dict.fromkeys(item.kind for item in [*recorded, *live]):
        yield from _compare(
            kind,
            {item.name: item.definition for item in recorded if item.kind == kind},
            {item.name: item.definition for item in live if item.kind == kind},
        )


def _bodies(source: Source, live: list[Item]) -> Iterator[Finding]:
    """Functions against the source itself, whatever the record says."""
    found = {
        item.name.partition("(")[0]: item.definition for item in live if item.kind == "function"
    }
    for name, body in source.routines.items():
        if name not in found:
            yield Finding("function", name, "missing", f"body {body}", None)
        elif f"body {body}" not in found[name]:
            yield Finding("function", name, "changed", f"body {body}", found[name])


def _compare(kind: str, expected: dict[str, str], found: dict[str, str]) -> Iterator[Finding]:
    for name in sorted({*expected, *found}):
        before, after = expected.get(name), found.get(name)
        if before == after:
            continue
        problem = "extra" if before is None else "missing" if after is None else "changed"
        yield Finding(kind, name, problem, before, after)
