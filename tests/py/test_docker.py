"""mq in the official image, from the one-file script, its pgTAP files run by the image's own pg_prove."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import binaries, wait

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

IMAGE = "postgres:18"
PREPARE = """
set -eu
apt-get update -qq
apt-get install -y -qq --no-install-recommends postgresql-18-pgtap libtap-parser-sourcehandler-pgtap-perl
createdb tap
psql -qX -v ON_ERROR_STOP=1 -d tap -f /script/mq.sql
psql -qX -v ON_ERROR_STOP=1 -d tap -c 'create extension pgtap' -f /mq/tests/support/helpers.sql
"""
PROVE = "pg_prove --psql-bin /mq/tests/support/psql-fresh --failures --comments /mq/tests/sql/*.sql"


def docker_answers() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not docker_answers(), reason="Docker does not answer")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pgtap_in_the_official_image(tmp_path: Path) -> None:
    from testcontainers.core.container import DockerContainer

    tmp_path.chmod(0o755)
    script = tmp_path / "mq.sql"
    with script.open("wb") as file:
        subprocess.run([sys.executable, "-m", "mqctl", "sql"], stdout=file, check=True)

    container = DockerContainer(IMAGE)
    for name, value in {
        "POSTGRES_HOST_AUTH_METHOD": "trust",
        "PGUSER": "postgres",
        "MQ_PSQL": "psql",
        "MQ_TAP_TEMPLATE": "tap",
    }.items():
        container.with_env(name, value)
    container.with_volume_mapping(str(binaries.REPO), "/mq", "ro")
    container.with_volume_mapping(str(tmp_path), "/script", "ro")
    with container:
        # Over TCP: while the image sets itself up its server listens on the socket only.
        wait.until(
            lambda: run(container, "pg_isready -qh 127.0.0.1")[0] == 0, "PostgreSQL", seconds=120
        )
        for command in (PREPARE, PROVE):
            status, said = run(container, command)
            print(said)
            assert status == 0


def run(container: Any, command: str) -> tuple[int, str]:
    done = container.exec(["bash", "-c", command])
    return done.exit_code, done.output.decode(errors="replace")
