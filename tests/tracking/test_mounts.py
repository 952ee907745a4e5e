"""The file system of a path, and the refusal of SQLite on one of the network."""

from pathlib import Path

import pytest

from edkd.errors import EdkdError
from edkd.tracking import create_store, mounts, store

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
    assert mounts.network_filesystem(Path(path), tmp_path / "absent") is None  # nothing is known


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "network_filesystem", lambda path: "nfs4")
    with pytest.raises(
        EdkdError, match=r"SQLite file on a network file system \(nfs4\).*tracking=server.*sqlite:////LOCAL"
    ):
        create_store(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="e", artifacts=None)
    assert list(tmp_path.iterdir()) == []
