"""An MLflow server for several machines: MLflow over a PostgreSQL of its own, both below one folder.

PostgreSQL listens on a Unix socket alone, which only this server's user can reach; MLflow listens on loopback unless
told otherwise. Nothing is installed and no service of the machine is touched.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edkd.errors import EdkdError

_DEBIAN = Path("/usr/lib/postgresql")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PATIENCE = 60  # seconds for PostgreSQL to begin or to end
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def serve(folder: Path, *, host: str, port: int, allowed_hosts: str | None, workers: int) -> int:
    """Run both servers until MLflow's ends or a signal comes; return 0 after a signal, else an exit status above 0.

    folder: holds `postgres/` (the database, made at first) and `mlartifacts/`. allowed_hosts: names under which clients
    on other machines reach the server, comma-separated; MLflow refuses others. Raises EdkdError if PostgreSQL is not
    installed or does not start, and for an address that cannot be had.
    """
    if host not in _LOOPBACK and allowed_hosts is None:
        raise EdkdError(
            f"--host {host}: other machines will reach this server; say under which names, as in "
            f"--allowed-hosts '{_hostname()},{_hostname()}:{port}' (there is no password: a trusted network only)"
        )
    if workers < 1:
        raise EdkdError(f"--workers {workers}: one process at least has to answer")
    _check_address(host, port)
    folder.mkdir(parents=True, exist_ok=True)
    if allowed_hosts is not None:  # MLflow refuses all others, this machine's own name for itself included
        allowed_hosts = ",".join([allowed_hosts, *(n for name in _LOOPBACK[:2] for n in (name, f"{name}:{port}"))])
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", str(workers),
        "--artifacts-destination", str((folder / "mlartifacts").resolve()),
        *(["--allowed-hosts", allowed_hosts] if allowed_hosts else []),
    ]  # fmt: skip
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    with _database(folder.resolve() / "postgres") as store:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        server = subprocess.Popen(
            [*command, "--backend-store-uri", store], env={**_QUIET, **os.environ}, start_new_session=True
        )
        try:
            with _ended_with_this_process(server, signal.SIGTERM):
                name = host if host in _LOOPBACK else _hostname()
                print(f"MLflow over PostgreSQL in {folder}; Ctrl-C stops both", flush=True)
                print(f"for runs: tracking=server tracking.uri=http://{name}:{port}", flush=True)
                while server.poll() is None and not stopped:
                    time.sleep(0.2)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            _end(server)
    return 0 if stopped else server.returncode or 1


def _check_address(host: str, port: int) -> None:
    """Raise EdkdError if nobody can listen there, which MLflow's own processes would say once each, and start anew."""
    if not 1 <= port <= 65535:
        raise EdkdError(f"--port {port}: allowed: 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise EdkdError(
            f"cannot listen on {host}, port {port}: {error.strerror}; --host and --port name another place"
        ) from error


@contextlib.contextmanager
def _database(home: Path) -> Iterator[str]:
    """A PostgreSQL in `home`, made at first; yields its SQLAlchemy URI and stops it in the end."""
    if importlib.util.find_spec("psycopg") is None:
        raise EdkdError("the PostgreSQL driver is missing: pip install 'psycopg[binary]'")
    user = _user()
    initdb, postgres, ready = (_program(name) for name in ("initdb", "postgres", "pg_isready"))
    with tempfile.TemporaryDirectory(prefix="edkd-postgres-", dir="/tmp") as sockets:  # a socket's path must be short
        if user is not None:
            shutil.chown(sockets, user)
        if not (home / "PG_VERSION").is_file():
            _make(home, initdb, user)
        log = (home.parent / "postgres.log").open("ab")
        process = subprocess.Popen(
            [postgres, "-D", str(home), "-h", "", "-k", sockets],
            stdout=log, stderr=log, cwd="/", start_new_session=True, **_as(user),
        )  # fmt: skip
        log.close()
        try:
            with _ended_with_this_process(process, signal.SIGINT, Path(sockets)):
                deadline = time.monotonic() + _PATIENCE
                while subprocess.run([ready, "-q", "-h", sockets, "-U", "edkd"], check=False).returncode != 0:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise EdkdError(f"PostgreSQL does not start: see the end of {home.parent / 'postgres.log'}")
                    time.sleep(0.1)
                yield f"postgresql+psycopg://edkd@/postgres?host={sockets}"
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown: clients are sent away, data are written
            process.wait(timeout=_PATIENCE)


_WATCH = """
import os, shutil, signal, sys
sys.stdin.read()
try:
    os.killpg(int(sys.argv[1]), int(sys.argv[2]))
except ProcessLookupError:
    pass
for folder in sys.argv[3:]:
    shutil.rmtree(folder, ignore_errors=True)
"""


@contextlib.contextmanager
def _ended_with_this_process(
    process: "subprocess.Popen[bytes]", number: signal.Signals, *folders: Path
) -> Iterator[None]:
    """Should this process be killed inside, another sends the signal to that one's group, and removes the folders."""
    watch = [sys.executable, "-c", _WATCH, str(process.pid), str(int(number)), *map(str, folders)]
    watcher = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)  # its end: that of this process
    try:
        yield
    finally:
        watcher.kill()
        watcher.communicate()


def _make(home: Path, initdb: str, user: str | None) -> None:
    """Make the database, whole or not at all."""
    fresh = home.with_name(f"{home.name}.new-{os.getpid()}")
    fresh.mkdir(mode=0o700)
    try:
        if user is not None:
            shutil.chown(fresh, user)
        made = subprocess.run(
            # The socket's folder is the lock: nobody but this user can enter it.
            [initdb, "-D", str(fresh), "-U", "edkd", "-A", "trust", "-E", "UTF8"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, cwd="/", **_as(user),
        )  # fmt: skip
        if made.returncode:
            reason = " ".join(made.stderr.split())[-300:]
            raise EdkdError(f"PostgreSQL's initdb failed in {home.parent}: {reason}")
        fresh.rename(home)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _end(server: "subprocess.Popen[bytes]") -> None:
    """Stop the MLflow server with its workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _program(name: str) -> str:
    """A program of PostgreSQL, on PATH or where Debian keeps it (the newest version)."""
    found = shutil.which(name)
    if found is None:
        kept = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: [int(n) for n in path.parts[-3].split(".")])
        found = str(kept[-1]) if kept else None
    if found is None:
        raise EdkdError(f"PostgreSQL is not installed ({name} is missing): apt-get install postgresql")
    return found


def _user() -> str | None:
    """Whom root has to become for PostgreSQL, which refuses root; None for anybody else."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise EdkdError("PostgreSQL refuses to be run by root, and there is no user postgres: run this as another user")


def _as(user: str | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _hostname() -> str:
    return os.uname().nodename
