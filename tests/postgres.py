"""A PostgreSQL server of its own for the tests of a module."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@dataclass
class Server:
    """A server that can be stopped and started; ``address`` is its host and port."""

    folder: Path
    port: int
    other_user: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def call(self, program, *arguments):
        subprocess.run(
            [SERVERS[-1] / program, "-D", self.folder / "data", *arguments],
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            **self.other_user,
        )

    def start(self):
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        zone = "-c timezone=America/New_York"
        self.call("pg_ctl", "-l", self.folder / "log", "-o", f"{settings} {zone}", "-w", "start")

    def stop(self, mode="immediate"):
        self.call("pg_ctl", "-m", mode, "-w", "stop")


@contextlib.contextmanager
def running_server(user, password):
    """A running server with a superuser who has a password; skips where PostgreSQL is not installed."""
    if not SERVERS:
        pytest.skip("no PostgreSQL server (Debian: postgresql)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(Path(tempfile.mkdtemp(prefix="postgres-")), port)
    if os.geteuid() == 0:  # which PostgreSQL refuses
        shutil.chown(server.folder, "postgres", "postgres")
        server.other_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    file = server.folder / "password"
    file.write_text(password)
    file.chmod(0o644)
    server.call(
        "initdb", "-U", user, "-A", "scram-sha-256", "--pwfile", file, "-N", "-E", "UTF8", "--no-locale"
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder)
