"""One SLURM with accounting and one without, an MLflow server, and the table of faults, all for the whole test run."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable
from tests.integration.lab import Command, Lab
from tests.integration.packages import SYSTEM, missing
from tests.integration.servers import TrackingServer

REPORT = Path(__file__).parents[2] / "outputs" / "slurm-faults.md"
_table = FaultTable()


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to begin without the packages, and stop in order where somebody stops the run."""
    if missing():
        pytest.exit(f"not installed: {' '.join(missing())}; `make test-slurm` installs them", returncode=1)
    os.environ["PATH"] = SYSTEM
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, frame: pytest.exit(f"stopped by signal {received}", returncode=1))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Tell what happened, after pytest's own last word."""
    if _table.rows:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(_table.markdown())
        print(f"\n{_table.text()}\n{REPORT}")


@pytest.fixture(scope="session")
def table() -> FaultTable:
    return _table


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def cluster(lab: Lab) -> Iterator[Cluster]:
    """Two nodes of four cores and two GPUs, with accounting. The undisturbed runs are on their way meanwhile."""
    yield from _booted(Cluster(accounting=True))


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Cluster]:
    """The same without accounting, and with arrays of no more than three jobs."""
    yield from _booted(Cluster(accounting=False, array=3))


@pytest.fixture(scope="session")
def walltime() -> dict[str, Command]:
    """The command whose run takes longer than its walltime: begun by one test, ended by another."""
    return {}


@pytest.fixture(scope="session")
def booting_server() -> Iterator["Future[TrackingServer]"]:
    """MLflow takes long to start: it does so beside the first tests."""
    server = TrackingServer()

    def boot() -> TrackingServer:
        server.boot()
        return server

    pool = ThreadPoolExecutor(1)
    booting = pool.submit(boot)
    try:
        yield booting
    finally:
        pool.shutdown()
        server.stop()


@pytest.fixture(scope="session")
def server(booting_server: "Future[TrackingServer]") -> TrackingServer:
    return booting_server.result()


def _booted(made: Cluster) -> Iterator[Cluster]:
    made.boot()
    try:
        yield made
    finally:
        made.stop()
