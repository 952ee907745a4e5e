"""An MLflow server over PostgreSQL, started as docs/tracking-server.md says, in a temporary folder and on loopback."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import urllib.request

from tests.integration.packages import program
from tests.integration.processes import PATIENCE, Crew, free_ports, wait_for


class TrackingServer:
    """`boot` it, `kill` and `start` it again, and `stop` it; `uri` is what runs log to."""

    def __init__(self) -> None:
        self.crew = Crew("tracking")
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"

    def boot(self) -> None:
        """Start both servers; returns when MLflow answers. A boot that fails stops what it has started."""
        try:
            self._start_database()
            self.start()
            self.wait()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start MLflow, and return at once."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"postgresql+psycopg://edkd@/postgres?host={self.crew.folder / 'db'}",
            "--artifacts-destination", str(self.crew.folder / "artifacts"),
        ]  # fmt: skip
        self.crew.start("mlflow", command)

    def wait(self) -> None:
        """Return when MLflow answers."""
        wait_for("the MLflow server", self._answers, pause=0.2)

    def kill(self) -> None:
        """SIGKILL to MLflow and its workers."""
        process = self.crew.started.pop("mlflow")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)

    def stop(self) -> None:
        """Stop everything and remove the folder."""
        self.crew.stop("postgres", how=signal.SIGINT)  # a fast shutdown, which does not wait for its clients
        self.crew.dismiss()

    def _start_database(self) -> None:
        initdb, postgres, ready = (program(name) for name in ("initdb", "postgres", "pg_isready"))
        assert initdb and postgres and ready
        folder = self.crew.folder / "db"
        folder.mkdir(mode=0o700)
        other: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses root
            shutil.chown(folder, "postgres", "postgres")
            other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        made = [*other, initdb, "-D", str(folder), "-U", "edkd", "-A", "trust", "-E", "UTF8"]
        subprocess.run(made, stdout=subprocess.DEVNULL, check=True, cwd="/")
        self.crew.start("postgres", [*other, postgres, "-D", folder, "-h", "", "-k", folder])
        asked = [ready, "-q", "-h", str(folder), "-U", "edkd"]
        wait_for("PostgreSQL", lambda: subprocess.run(asked, check=False).returncode == 0, pause=0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=10) as answer:
            return bool(answer.status == 200)
        return False
