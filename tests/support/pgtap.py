"""pgTAP: where its one SQL file is, and the database it is loaded into."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import psycopg

from support import binaries

NPM_PGTAP = ("@electric-sql/pglite-pgtap", "0.0.15")
HELPERS = Path(__file__).with_name("helpers.sql")


def script() -> str:
    """The SQL that creates pgTAP: what a Debian package brought, else what npm has."""
    files = [
        (tuple(int(part) for part in found[1].split(".")), path)
        for path in Path("/usr/share/postgresql").glob("*/extension/pgtap--*.sql")
        if (found := re.fullmatch(r"pgtap--([\d.]+)\.sql", path.name))
    ]
    text = max(files)[1].read_text() if files else _from_npm()
    # A line for psql that refuses to be run outside of CREATE EXTENSION.
    return "".join(line for line in text.splitlines(True) if not line.startswith("\\"))


def load(conn: psycopg.Connection) -> None:
    """pgTAP into schema public, and the helpers of tests/support/helpers.sql into schema test."""
    conn.execute("set search_path = public")
    conn.execute(script().encode())
    conn.execute("reset search_path")
    conn.execute(HELPERS.read_bytes())


def _from_npm() -> str:
    package = binaries.npm_package(*NPM_PGTAP)
    with tarfile.open(fileobj=io.BytesIO((package / "dist" / "pgtap.tar.gz").read_bytes())) as tar:
        for member in tar:
            found = re.search(r"/pgtap--[\d.]+\.sql$", "/" + member.name)
            if found and (file := tar.extractfile(member)):
                return file.read().decode()
    raise binaries.Unavailable(f"{package} holds no pgtap--*.sql")
