"""An MLflow server over PostgreSQL, as `edkd server` starts it, in a temporary folder and on loopback alone."""

import contextlib
import os
import signal
import sys
import urllib.request
from pathlib import Path

from tests.commandline import REPOSITORY
from tests.integration.processes import PATIENCE, Crew, free_ports, wait_for


class TrackingServer:
    """`boot` it, `kill` and `start` it again, and `stop` it; `uri` is what runs log to."""

    def __init__(self) -> None:
        self.crew = Crew("tracking")
        self.crew.environment["PYTHONPATH"] = str(REPOSITORY)
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"

    def boot(self) -> None:
        """Start it; returns when MLflow answers. A boot that fails stops what it has started."""
        try:
            self.start()
            self.wait()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start it, and return at once."""
        output, port = str(self.crew.folder), str(self.port)
        command = [
            sys.executable,
            "-m",
            "edkd.cli.main",
            "server",
            "--output",
            output,
            "--port",
            port,
            "--workers",
            "1",
        ]
        self.crew.start("server", command)

    def wait(self) -> None:
        """Return when MLflow answers."""
        wait_for("the MLflow server", self._answers, pause=0.2)

    def kill(self) -> None:
        """SIGKILL to MLflow and its workers; `edkd server` then stops the database and ends as well."""
        for pid in self.crew.members():
            with contextlib.suppress(OSError):
                if b"mlflow" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        self.crew.started.pop("server").wait(PATIENCE)

    def stop(self) -> None:
        """Stop everything and remove the folder."""
        self.crew.dismiss()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=10) as answer:
            return bool(answer.status == 200)
        return False
