"""Peers that come from npm: fetched into .cache, driven by a script beside this file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from bench.peers.base import Absent
from support.binaries import cache_dir
from support.server import Server

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


def version(package: str) -> str:
    folder = fetched(package)
    found = json.loads((folder / "node_modules" / package / "package.json").read_text())
    return str(found["version"])


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
