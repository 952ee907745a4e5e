"""MLflow over a PostgreSQL of its own, and the refusal of SQLite on a network."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edkd.cli import main
from edkd.errors import EdkdError
from edkd.tracking import create_store, mounts, server, store

INSTALLED = bool(shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))

TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /home rw,relatime shared:9 - nfs4 filer:/home rw,vers=4.2
31 30 0:26 / /home/local rw - xfs /dev/sdb1 rw
32 22 0:27 / /shared\\040disk rw - lustre 10.0.0.1@tcp:/fs rw
33 22 0:28 / /scratch rw - nfs filer:/scratch rw
34 33 0:29 / /scratch rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/ann/outputs/mlflow.db", "nfs4"),
        ("/home", "nfs4"),
        ("/homework/mlflow.db", None),
        ("/home/local/ann/mlflow.db", None),
        ("/shared disk/mlflow.db", "lustre"),
        ("/scratch/mlflow.db", None),
        ("/var/mlflow.db", None),
    ],
)
def test_the_file_system_of_a_path(tmp_path: Path, path: str, expected: str | None) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    assert mounts.network_filesystem(Path(path), table) == expected


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    assert mounts.network_filesystem(tmp_path, tmp_path / "absent") is None


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "network_filesystem", lambda path: "nfs4")
    with pytest.raises(EdkdError, match=r"SQLite file on a network file system \(nfs4\).*tracking=server.*journal"):
        create_store(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="e", artifacts=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "login1"])
def test_other_machines_need_a_name(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["server", "--output", str(tmp_path), "--host", host])
    assert ended.value.code == 1
    assert "--allowed-hosts" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999999"])
def test_a_port_that_there_is_not(tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["server", "--output", str(tmp_path), "--port", port])
    assert ended.value.code == 1
    assert f"--port {port}: allowed: 1 to 65535" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main.main(["server", "--output", str(tmp_path), "--port", str(port)])
    assert ended.value.code == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_workers_no_server(tmp_path: Path) -> None:
    with pytest.raises(EdkdError, match="--workers 0"):
        server.serve(tmp_path / "server", host="127.0.0.1", port=5000, allowed_hosts=None, workers=0)


def test_a_host_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(EdkdError, match="cannot listen on 256.1.1.1"):
        server.serve(tmp_path / "server", host="256.1.1.1", port=5000, allowed_hosts="a", workers=1)


def test_without_postgresql_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_DEBIAN", tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdkdError, match=r"^PostgreSQL is not installed \(initdb is missing\): apt-get install"):
        server.serve(tmp_path / "server", host="127.0.0.1", port=free_port(), allowed_hosts=None, workers=1)


@pytest.mark.parametrize(("program", "status"), [("true", 1), ("false", 1)])
def test_a_server_that_ends_by_itself_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, status: int
) -> None:
    monkeypatch.setattr(server, "_database", lambda home: contextlib.nullcontext("sqlite://"))
    monkeypatch.setattr(sys, "executable", shutil.which(program))
    assert server.serve(tmp_path, host="127.0.0.1", port=free_port(), allowed_hosts=None, workers=1) == status


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that the user who runs PostgreSQL can reach, which pytest's own are not where it is run by root."""
    with tempfile.TemporaryDirectory(prefix="edkd-server-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def answers(process: "subprocess.Popen[str]", url: str) -> None:
    """Wait until the server does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the server ended"
        try:
            with direct.open(f"{url}/health", timeout=10):
                return
        except OSError as error:
            assert time.monotonic() < deadline, f"no answer: {error}"
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="PostgreSQL is not installed")
def test_a_server_that_is_killed_leaves_nothing_running_and_starts_again(shared: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "edkd.cli.main", "server", "--output", str(shared), "--port", str(port)]
    command += ["--host", "0.0.0.0", "--allowed-hosts", "login1", "--workers", "1"]
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = set(Path("/tmp").glob("edkd-postgres-*"))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True) as process:
            try:
                answers(process, url)  # under a name that was not given, but is this machine's own
            finally:
                process.send_signal(number)
        deadline = time.monotonic() + 60
        while (shared / "server" / "postgres" / "postmaster.pid").exists() or listens(port):
            assert time.monotonic() < deadline, "something is still running"
            time.sleep(0.2)
        assert set(Path("/tmp").glob("edkd-postgres-*")) <= before


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="PostgreSQL is not installed")
def test_a_server_keeps_its_runs_and_leaves_nothing_running(shared: Path) -> None:
    from mlflow import MlflowClient

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "edkd.cli.main", "server", "--output", str(shared), "--port", str(port)]
    for first in (True, False):
        process = subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.PIPE, text=True)
        try:
            answers(process, url)
            client = MlflowClient(url)
            if first:
                run = client.create_run(client.create_experiment("kept"))
                client.log_metric(run.info.run_id, "test/top1", 76.5)
            else:
                assert client.get_run(run.info.run_id).data.metrics == {"test/top1": 76.5}
        finally:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert f"tracking.uri={url}" in said
        assert not (shared / "server" / "postgres" / "postmaster.pid").exists(), "the database was shut down"
        assert not listens(port)
