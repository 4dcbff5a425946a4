"""Peers that come from npm: fetched into .cache, driven by a script beside this file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from bench.peers.base import Absent, Load, Peer
from support.binaries import cache_dir
from support.server import Server, database

# The last ones that run on Node 20.
VERSIONS = {"graphile-worker": "0.17.3", "pg-boss": "10.4.2"}
HERE = Path(__file__).resolve().parent


def folder_of(package: str) -> Path:
    """Where it is, once it is fetched."""
    return cache_dir() / f"bench-{package}-{VERSIONS[package]}"


@cache
def fetched(package: str) -> Path:
    """The folder that has the package in its node_modules. Raises: Absent."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Absent(f"there is no {program} on the path")
    folder = folder_of(package)
    if not (folder / "node_modules" / package / "package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                *("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund"),
                f"{package}@{VERSIONS[package]}",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Absent(f"npm install {package}: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def command(package: str, *words: str) -> list[str]:
    """The script of a package with its words: install, statements N, consume CONCURRENCY N."""
    script = HERE / f"{package.replace('-', '_')}.cjs"
    return ["node", str(script), str(fetched(package)), *words]


def run(package: str, server: Server, dbname: str, *words: str) -> Any:
    """What the script printed as JSON."""
    done = subprocess.run(
        command(package, *words),
        env=environment(server.env(dbname)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{package} {words}: {done.stdout}{done.stderr}")
    return json.loads(lines[-1])


def environment(libpq: dict[str, str]) -> dict[str, str]:
    return libpq | {"NODE_ENV": "production", "PATH": os.environ.get("PATH", os.defpath)}


class NodePeer(Peer):
    """A package, `name` on npm; its script tells which statements it sends for n jobs, and consumes."""

    def __init__(self) -> None:
        #: By n, what it sends to claim and complete so many, and the like: text and values.
        self._said: dict[int, dict[str, dict[str, object]]] = {}

    def version(self, server: Server) -> str:
        folder = fetched(self.name)
        found = json.loads((folder / "node_modules" / self.name / "package.json").read_text())
        return str(found["version"])

    def install(self, server: Server, dbname: str, variant: str) -> None:
        run(self.name, server, dbname, "install")

    def prepare(self, server: Server, load: Load) -> None:
        """Watches what it sends for so many jobs, once."""
        name = f"{self.name.replace('-', '_')}_watched"
        for n in self.watched(load) - self._said.keys():
            with database(server, name):
                run(self.name, server, name, "install")
                self._said[n] = run(self.name, server, name, "statements", str(n))

    def watched(self, load: Load) -> set[int]:
        """The numbers of jobs that `script` needs to know the statements of."""
        return {load.n}

    def consumer(self, dsn: str, variant: str, concurrency: int, n: int) -> list[str]:
        return command(self.name, "consume", str(concurrency), str(n))
