"""The SQL that this version of mqctl ships: where it is, what is in it, in which order it is applied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from mqctl import __version__, statements
from mqctl.errors import SourceError

_MIGRATION_NAME = re.compile(r"(?P<version>\d{4})_(?P<slug>[a-z0-9_]+)\.sql")
_INCLUDE = re.compile(r"\\ir\s+(?P<path>\S+)\s*(?:--.*)?")
_RELEASED_NAME = re.compile(r"mq-(?P<version>\d+\.\d+\.\d+)\.sql")
_RELEASED_MIGRATION = re.compile(r"^-- migration (?P<version>\d{4})_[a-z0-9_]+ ", re.MULTILINE)


@dataclass(frozen=True)
class SqlFile:
    """One file of the tree: its path below ``sql/``, with slashes, and its normalised text."""

    path: str
    text: str

    @property
    def sha256(self) -> str:
        return statements.digest(self.text)

    @cached_property
    def statements(self) -> tuple[statements.Statement, ...]:
        try:
            return tuple(statements.split(self.text))
        except ValueError as error:
            raise SourceError(f"{self.path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered, immutable step of the tables."""

    version: int
    slug: str
    file: SqlFile

    @property
    def name(self) -> str:
        return f"{self.version:04d}_{self.slug}"

    @property
    def sha256(self) -> str:
        return self.file.sha256


@dataclass(frozen=True)
class Source:
    """A whole SQL tree, read into memory."""

    root: Path
    version: str
    roles: SqlFile
    schema: SqlFile
    migrations: tuple[Migration, ...]
    functions: tuple[SqlFile, ...]
    grants: SqlFile

    def files(self) -> Iterator[SqlFile]:
        """Every file that an installation applies, in the order in which it applies them."""
        yield self.roles
        yield self.schema
        for migration in self.migrations:
            yield migration.file
        yield from self.functions
        yield self.grants

    def fingerprint(self) -> str:
        """sha256 over the paths and normalised contents of all files, in hex; the same in a wheel and a checkout."""
        total = sha256(f"mq {self.version}\n".encode())
        for file in self.files():
            total.update(f"{file.path} {file.sha256}\n".encode())
        return total.hexdigest()

    @cached_property
    def routines(self) -> dict[str, str]:
        """The functions that the manifest defines: name to md5 of the body (``md5(prosrc)``)."""
        found: dict[str, str] = {}
        for file in self.functions:
            for statement in file.statements:
                if not statement.defines_routine:
                    continue
                name, body = statement.routine, statement.body_md5
                if name is None or body is None:
                    raise SourceError(
                        f"{file.path}: a function that is not written as "
                        '"create or replace function mq.name(...) ... as $$ ... $$"'
                    )
                if name in found:
                    raise SourceError(f'{file.path}: function "{name}" is defined twice')
                found[name] = body
        return found

    def released(self) -> dict[str, int]:
        """The releases this tree knows: version to the newest migration that the release had."""
        found = {self.version: max((m.version for m in self.migrations), default=0)}
        for path in sorted((self.root / "released").glob("mq-*.sql")):
            if name := _RELEASED_NAME.fullmatch(path.name):
                versions = _RELEASED_MIGRATION.findall(path.read_text(encoding="utf-8"))
                found[name["version"]] = max(map(int, versions), default=0)
        return found

    def unlisted(self) -> list[str]:
        """Files under ``functions/`` that the manifest does not name: forgotten, so never applied."""
        listed = {file.path for file in self.functions}
        present = (
            p.relative_to(self.root).as_posix() for p in self.root.glob("functions/**/*.sql")
        )
        return sorted(path for path in present if path not in listed)

    def script(self, from_version: str | None = None) -> str:
        """The whole of :func:`mqctl.migrate.install` as one file for ``psql``.

        With ``from_version`` the migrations that release already had are left out; the script then refuses a database
        that does not have them. Raises SourceError for a release that this tree does not know.
        """
        from mqctl import steps

        return steps.script(self, self.first_migration_after(from_version))

    def first_migration_after(self, release: str | None) -> int:
        """The newest migration of ``release`` (0 without one)."""
        if release is None:
            return 0
        known = self.released()
        if release not in known:
            raise SourceError(
                f'mq {self.version} does not know a release "{release}"',
                hint=f"Known are: {', '.join(sorted(known))}. Without --from the script upgrades every release.",
            )
        return known[release]


def find_root() -> Path:
    """The folder of the SQL tree: inside the installed package, else beside ``python/`` in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "sql", package.parent.parent / "sql"):
        if (candidate / "functions.sql").is_file():
            return candidate
    raise SourceError(
        "the SQL files of mq are missing",
        detail=f'Neither "{package / "sql"}" nor "{package.parent.parent / "sql"}" has them.',
        hint="Install mqctl again: pip install --force-reinstall mqctl",
    )


def load(root: Path | None = None, version: str = __version__) -> Source:
    """Read the tree below ``root`` (default: what this mqctl ships). Raises SourceError."""
    base = find_root() if root is None else root
    return Source(
        root=base,
        version=version,
        roles=_read(base, "roles.sql"),
        schema=_read(base, "schema.sql"),
        migrations=_migrations(base),
        functions=tuple(_read(base, path) for path in _manifest(base)),
        grants=_read(base, "grants.sql"),
    )


def _read(root: Path, path: str) -> SqlFile:
    try:
        text = (root / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {root / path}: {error}") from None
    return SqlFile(path, statements.normalise(text))


def _manifest(root: Path) -> list[str]:
    """The files that ``functions.sql`` names, in order."""
    paths: list[str] = []
    for number, line in enumerate(_read(root, "functions.sql").text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("--"):
            continue
        include = _INCLUDE.fullmatch(stripped)
        if include is None:
            raise SourceError(
                f"functions.sql, line {number}: neither a comment nor \\ir FILE", detail=stripped
            )
        if include["path"] in paths:
            raise SourceError(f"functions.sql, line {number}: {include['path']} is listed twice")
        paths.append(include["path"])
    return paths


def _migrations(root: Path) -> tuple[Migration, ...]:
    found: list[Migration] = []
    for path in sorted((root / "migrations").glob("*.sql")):
        name = _MIGRATION_NAME.fullmatch(path.name)
        if name is None:
            raise SourceError(f"migrations/{path.name}: not named NNNN_slug.sql")
        file = _read(root, f"migrations/{path.name}")
        found.append(Migration(int(name["version"]), name["slug"], file))
    numbers = [migration.version for migration in found]
    if numbers != list(range(1, len(found) + 1)):
        raise SourceError(f"migrations are not numbered 1, 2, 3, …: {numbers}")
    return tuple(found)
