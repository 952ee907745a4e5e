"""The file of the teacher cache: whole entries or none, whatever kills, twins, strangers and disks do to it."""

import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd.teachers.cache_file import HEADER, Rows, Table, disk_bytes, entry_bytes

ROWS, CLASSES = 900, 10


def table(folder: Path, *, key: str = "a", dtype: torch.dtype = torch.float32) -> Table:
    return Table(folder / "t.logits", key={"teacher": key}, rows=ROWS, classes=CLASSES, dtype=dtype)


def truth(rows: Rows) -> Tensor:
    return torch.sin(torch.from_numpy(rows)[:, None] * 7 + torch.arange(CLASSES) * 0.7)


def rows(*numbers: int) -> Rows:
    return np.array(numbers, dtype=np.int64)


ALL: Rows = np.arange(ROWS, dtype=np.int64)


def write(to: Table, which: Rows) -> None:
    to.write(which, to.encode(truth(which)))


def there(of: Table, which: Rows = ALL) -> list[bool]:
    """Which entries are there; those that are must be right."""
    words, found = of.read(which)
    assert torch.equal(of.decode(words)[torch.from_numpy(found)], truth(which[found]))
    return found.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_entries_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    written = torch.randn(4, CLASSES).to(dtype)
    written[0, :4] = torch.tensor([float("inf"), -0.0, float("nan"), 1e-40]).to(dtype)
    made = table(tmp_path, dtype=dtype)
    made.write(rows(5, ROWS - 1, 4, 0), made.encode(written))
    again = table(tmp_path, dtype=dtype)
    words, found = again.read(rows(5, 1, ROWS - 1, 4, 0))
    assert found.tolist() == [True, False, True, True, True]
    read = again.decode(words)[[0, 2, 3, 4]]
    assert read.dtype == dtype
    assert read.contiguous().view(torch.uint8).equal(written.view(torch.uint8))


@pytest.mark.parametrize("byte", [0, 3, 17, 39])
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_an_entry_that_is_not_wholly_there_does_not_count(tmp_path: Path, byte: int, bit: int) -> None:
    made = table(tmp_path)
    write(made, np.arange(4))
    with made.path.open("r+b") as file:
        file.seek(HEADER + 2 * entry_bytes(CLASSES, torch.float32) + byte)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ bit]))
    assert there(made, np.arange(5)) == [True, True, False, True, False]


def test_half_an_entry_and_a_hole_are_none_and_logits_of_zero_are_one(tmp_path: Path) -> None:
    made = table(tmp_path)
    data = made.encode(truth(rows(2))).numpy().tobytes()
    for length in range(8, len(data), 8):
        with made.path.open("r+b") as file:
            file.seek(HEADER + 2 * len(data))
            file.write(data[:length])
        assert there(made, rows(2)) == [False]
    made.write(rows(7), made.encode(torch.zeros(1, CLASSES)))
    assert made.read(rows(7, 8))[1].tolist() == [True, False]


@pytest.mark.parametrize("fault", ["truncated", "foreign", "other teacher", "empty", "longer"])
def test_a_file_that_is_not_ours_is_begun_anew(tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    made = table(tmp_path, key="b" if fault == "other teacher" else "a")
    write(made, rows(0))
    size = made.path.stat().st_size
    if fault in ("truncated", "longer"):
        os.truncate(made.path, size + (1 if fault == "longer" else -1))
    elif fault in ("foreign", "empty"):
        made.path.write_bytes(b"" if fault == "empty" else os.urandom(size))
    with caplog.at_level(logging.WARNING, "edkd.teachers.cache"):
        anew = table(tmp_path)
    assert not any(there(anew))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("fault", ["removed", "folder removed", "replaced", "cut", "overwritten"])
def test_a_file_that_changes_while_it_is_in_use_is_begun_anew(tmp_path: Path, fault: str) -> None:
    made = table(tmp_path / "store")
    write(made, ALL)
    assert all(there(made))
    if fault == "removed":
        made.path.unlink()
    elif fault == "folder removed":
        shutil.rmtree(made.path.parent)
    elif fault == "replaced":
        other = table(tmp_path / "other", key="b")
        write(other, ALL[::-1].copy())
        other.path.replace(made.path)
    elif fault == "cut":
        os.truncate(made.path, HEADER)
    else:  # by a copy: the same file in place, of the same size
        with made.path.open("r+b") as file:
            file.write(os.urandom(made.path.stat().st_size))
    if fault == "replaced":
        write(made, rows(3))  # never into the stranger
    else:
        assert not any(there(made))
        write(made, rows(3))
    assert there(made, rows(2, 3)) == [False, True]
    assert there(table(tmp_path / "store"), rows(2, 3)) == [False, True]


def test_what_a_killed_process_left_of_a_new_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "t.logits.new").write_bytes(os.urandom(10000))
    write(table(tmp_path), rows(1))
    assert there(table(tmp_path), rows(0, 1)) == [False, True]
    assert not (tmp_path / "t.logits.new").exists()


def test_the_space_on_disk_is_foretold(tmp_path: Path) -> None:
    made = Table(tmp_path / "t.logits", key={}, rows=50_000, classes=100, dtype=torch.float32)
    entry = entry_bytes(100, torch.float32)
    which = np.unique(np.random.default_rng(0).integers(0, 50_000, 400))
    assert disk_bytes(which[:1], entry) <= 2 * 4096 + HEADER
    made.write(which, made.encode(torch.randn(len(which), 100)))
    os.sync()
    used = made.path.stat().st_blocks * 512
    assert used <= made.path.stat().st_size < 50_000 * entry + 2 * HEADER
    assert disk_bytes(which, entry) == pytest.approx(used, rel=0.1)


LIMITED = """
import os, resource, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_file import *
if os.geteuid() == 0:
    os.setuid(65534)
try:
    made = table(Path(sys.argv[1]))
    print(sum(there(made)), flush=True)
    write(made, ALL)
except OSError as error:
    print(type(error).__name__)
print(sum(there(made)) if "made" in globals() else "none")
"""


@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_that_is_read_only_can_be_read(begun: bool) -> None:
    # Not tmp_path: its parents are closed to the user as whom the process runs.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if begun:
            write(table(folder), rows(1, 2, 3))
            (folder / "t.logits").chmod(0o444)
            (folder / "t.logits.lock").chmod(0o600)
        folder.chmod(0o555)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        command = [sys.executable, "-c", LIMITED, name, str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == (["3", "PermissionError", "3"] if begun else ["PermissionError", "none"]), done
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        folder.chmod(0o755)


def test_a_disk_that_is_full_keeps_what_was_written(tmp_path: Path) -> None:
    made = table(tmp_path)
    write(made, rows(1))
    inside = 100
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER + inside * entry_bytes(CLASSES, torch.float32) + 20, old[1]))
    try:
        write(made, np.arange(50))
        with pytest.raises(OSError, match="No space left|File too large"):
            write(made, np.arange(90, 110))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    found = there(made)
    assert found[:50] == [True] * 50
    assert not any(found[inside:])


WRITER = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_file import ROWS, table, write
made = table(Path(sys.argv[1]))
print("ready", flush=True)
for round in range(10**6):
    for which in np.random.default_rng(round).permutation(ROWS).reshape(-1, 50):
        write(made, which)
"""


def test_writers_that_are_killed_leave_only_whole_entries(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    seen, reader = 0, table(tmp_path)
    while seen < ROWS // 2:
        seen = sum(there(reader))
    for writer in writers:
        writer.kill()
        writer.communicate()
    assert ROWS >= sum(there(table(tmp_path))) >= seen
