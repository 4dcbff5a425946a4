"""install, upgrade, uninstall, check, sql, version, demo."""

from __future__ import annotations

import platform
from pathlib import Path

import click
import psycopg
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from mqctl import __version__, migrate, source
from mqctl.base import Group, json_option, note, pass_session, refuse, yes_option
from mqctl.check import Finding, Report
from mqctl.check import check as find_drift
from mqctl.errors import MqctlError
from mqctl.output import console, plural, print_json, table
from mqctl.session import Connection, Session

_accept_drift = click.option(
    "--accept-drift", is_flag=True, help="Go on although tables of mq were changed by hand."
)


def register(root: Group) -> None:
    """Adds the commands of this module."""
    for command in (install, upgrade, uninstall, check, sql, version, demo):
        root.add_command(command)


def _show_notice(diagnostic: psycopg.errors.Diagnostic) -> None:
    if diagnostic.severity_nonlocalized != "WARNING":
        return
    text = Text.assemble(("warning: ", "bold yellow"), diagnostic.message_primary or "")
    out = console(stderr=True)
    out.print(text, soft_wrap=True)
    if diagnostic.message_hint:
        out.print(Text.assemble(("HINT: ", "bold"), diagnostic.message_hint), soft_wrap=True)


def apply(conn: Connection, action: str, *, accept_drift: bool = False) -> migrate.Outcome:
    """Install or upgrade, with a progress bar, and say what was done."""
    run = migrate.install if action == "install" else migrate.upgrade
    conn.add_notice_handler(_show_notice)
    out = console(stderr=True)
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("mq", total=None)

        def step(label: str, number: int, total: int) -> None:
            progress.update(task, description=label, completed=number, total=total)

        outcome = run(conn, accept_drift=accept_drift, progress=step)
    conn.remove_notice_handler(_show_notice)
    where = f'database "{conn.info.dbname}"'
    if not outcome.changed:
        click.echo(f"mq {outcome.version} is installed in {where} already; nothing was changed.")
    elif outcome.fresh:
        click.echo(f"mq {outcome.version} installed in {where}.")
    else:
        applied = ", ".join(outcome.migrations) or "none were pending"
        click.echo(f"mq in {where} upgraded to {outcome.version} (migrations: {applied}).")
    return outcome


@click.command(cls=Group.command_class)
@_accept_drift
@pass_session
def install(session: Session, accept_drift: bool) -> None:
    """Install mq in the database, or upgrade what is there.

    One transaction: either all of it is done or nothing. Running it again changes nothing. It needs no superuser, only
    the right to create a schema; where roles may not be created, it says which, and how to do it by hand.

    \b
    Examples:
      mqctl install
      mqctl install --dsn postgresql://me@localhost/app
      mqctl install --embedded
    """
    with session.connect() as conn:
        apply(conn, "install", accept_drift=accept_drift)


@click.command(cls=Group.command_class)
@_accept_drift
@pass_session
def upgrade(session: Session, accept_drift: bool) -> None:
    """Upgrade mq to the version of this mqctl, from any release, in one step.

    It does what install does, but refuses a database that has no mq.

    \b
    Examples:
      mqctl upgrade
      mqctl upgrade --accept-drift
    """
    with session.connect() as conn:
        apply(conn, "upgrade", accept_drift=accept_drift)


@click.command(cls=Group.command_class)
@click.option("--force", is_flag=True, help="Remove it although messages are left in queues.")
@yes_option
@pass_session
def uninstall(session: Session, force: bool, yes: bool) -> None:
    """Remove mq from the database: schema mq, with all queues.

    Refuses while messages or dead letters are left, unless forced, and while anything outside the schema depends on it.
    The roles mq_producer, mq_consumer and mq_admin belong to the whole cluster and stay.

    \b
    Examples:
      mqctl uninstall
      mqctl uninstall --yes --force
    """
    with session.connect() as conn:
        if not yes and migrate.is_installed(conn):
            click.confirm(f'Remove mq from database "{conn.info.dbname}"?', abort=True, err=True)
        migrate.uninstall(conn, force=force)
        click.echo(f'mq removed from database "{conn.info.dbname}"; its roles were left.')


@click.command(cls=Group.command_class)
@json_option
@pass_session
def check(session: Session, as_json: bool) -> None:
    """Compare schema, functions and grants with what this version ships.

    Prints what is missing, extra or changed, and ends with 1 if there is anything. The fingerprint is the same for
    every database with the same version of mq, however it was installed. Writes nothing; needs the owner of mq.

    \b
    Examples:
      mqctl check
      mqctl check --json
    """
    with session.connect() as conn:
        report = find_drift(conn)
    if as_json:
        print_json(_as_dict(report))
    else:
        _print_report(report)
    if report.findings:
        raise click.exceptions.Exit(1)


def _as_dict(report: Report) -> dict[str, object]:
    return {
        "database": report.database,
        "installed": report.installed,
        "shipped": report.shipped,
        "fingerprint": report.fingerprint,
        "source_fingerprint": report.source_fingerprint,
        "findings": [_finding(finding) for finding in report.findings],
    }


def _finding(finding: Finding) -> dict[str, object]:
    return {
        "kind": finding.kind,
        "object": finding.name,
        "problem": finding.problem,
        "expected": finding.expected,
        "found": finding.found,
    }


def _print_report(report: Report) -> None:
    out = console()
    if report.findings:
        rows = [
            {"kind": f.kind, "object": f.name, "problem": f.problem, "what": _difference(f)}
            for f in report.findings
        ]
        out.print(table(rows))
        click.echo(
            f"{plural(len(rows), 'difference')}. To put functions and grants right: mqctl upgrade"
        )
    else:
        click.echo(f'mq {report.installed} in database "{report.database}" is as shipped.')
    click.echo(f"fingerprint {report.fingerprint}")


def _difference(finding: Finding) -> str:
    """Expected and found in a line each; of functions only the lines that differ."""
    before, after = finding.expected, finding.found
    if before is None or after is None:
        return "" if finding.kind == "function" else (before or after or "")
    if finding.kind == "function":
        old, new = before.splitlines(), after.splitlines()
        gone = [line for line in old if line not in new]
        added = [line for line in new if line not in old]
        before, after = " ".join(gone), " ".join(added)
    return f"expected {before.strip() or '–'}\nfound    {after.strip() or '–'}"


@click.command(cls=Group.command_class)
@click.option(
    "--from",
    "from_version",
    metavar="VERSION",
    help="Upgrade this release only: leaves out what it has.",
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file."
)
def sql(from_version: str | None, output: Path | None) -> None:
    """Print what install does as one SQL script, for people who only have psql.

    The script is one transaction, installs or upgrades, and changes nothing when it is run again. No server is needed to
    print it.

    \b
    Examples:
      mqctl sql | psql -X -v ON_ERROR_STOP=1
      mqctl sql --output mq.sql
      mqctl sql --from 0.1.0 | less
    """
    script = source.load().script(from_version)
    if output is None:
        click.echo(script, nl=False)
        return
    try:
        output.write_text(script, encoding="utf-8")
    except OSError as error:
        raise refuse(f"cannot write {output}: {error.strerror}") from None


@click.command(cls=Group.command_class)
@json_option
def version(as_json: bool) -> None:
    """Print the version of mqctl and the fingerprint of the SQL it ships. No server is needed.

    \b
    Examples:
      mqctl version
      mqctl version --json
    """
    shipped = source.load()
    if as_json:
        print_json(
            {
                "mqctl": __version__,
                "source_fingerprint": shipped.fingerprint(),
                "python": platform.python_version(),
            }
        )
    else:
        click.echo(f"mqctl {__version__}\nsource fingerprint {shipped.fingerprint()}")


@click.command(cls=Group.command_class)
@click.argument(
    "folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--workers", type=click.IntRange(2, 32), default=3, show_default=True, help="Worker processes."
)
@click.option(
    "--failing",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="Files that fail on purpose.",
)
@click.option("--keep", is_flag=True, help="Keep the queue and the tables to look at.")
@click.option(
    "--install",
    "may_install",
    is_flag=True,
    help="Install mq if it is missing (always so with --embedded).",
)
@json_option
@pass_session
def demo(
    session: Session,
    folder: Path | None,
    workers: int,
    failing: int,
    keep: bool,
    may_install: bool,
    as_json: bool,
) -> None:
    """Hash every file of FOLDER (default: the Python standard library) through a queue, with failures.

    One message a file. Worker processes write each result in the transaction of its ack. A few files fail on purpose: they
    are retried, dead-lettered, cured and redriven. One worker is killed by SIGKILL while it holds messages. At the end
    every hash is compared with one of the file itself; the exit status says whether all was well.

    \b
    Examples:
      mqctl --embedded demo
      mqctl demo /usr/share/doc --workers 4
      mqctl demo --dsn dbname=app --install --keep
    """
    from mqctl.demo import run, show

    with session.connect() as conn:
        if not migrate.is_installed(conn):
            if not (may_install or session.use_embedded):
                raise MqctlError(
                    f'mq is not installed in database "{conn.info.dbname}"',
                    hint="Run: mqctl install, or mqctl demo --install",
                )
            apply(conn, "install")
        result = run(
            conn,
            session.resolve(),
            folder=folder,
            workers=workers,
            failing=failing,
            keep=keep,
            quiet=as_json,
        )
    if as_json:
        print_json(result.as_dict())
    else:
        show(result)
    if not result.good:
        note("The demo found something wrong.")
        raise click.exceptions.Exit(1)
