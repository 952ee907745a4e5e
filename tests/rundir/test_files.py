"""A file is written in one piece or not at all, and a failure leaves nothing behind."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from edkd.errors import EdkdError
from edkd.rundir import files


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_text_is_written_whole_and_as_readable_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    path, before = tmp_path / "file.yaml", os.umask(umask)
    try:
        files.write_text(path, "old\n")
        files.write_text(path, "new ü\n")
    finally:
        os.umask(before)
    assert path.read_text() == "new ü\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["fsync", "replace", "encode"])
def test_a_failed_write_leaves_the_old_text_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("old\n")

    text = "new\n"
    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif fails == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        text = "\udcff"  # cannot be encoded
    with pytest.raises((OSError, UnicodeEncodeError)):
        files.write_text(path, text)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_of_bytes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.replacing(path, b"new"):
        raise ZeroDivisionError
    monkeypatch.setattr(*{"fsync": (os, "fsync", full), "replace": (Path, "replace", full)}[fails])
    with pytest.raises(
        EdkdError, match=rf"^could not save {path}: No space left on device \(.* MiB free on that disk\)$"
    ):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old\n")
    with pytest.raises(EdkdError, match=rf"^could not save {tmp_path}/file/new: {tmp_path}/file is not a folder$"):
        files.write_bytes(tmp_path / "file" / "new", b"new")


def test_what_a_killed_writer_of_bytes_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    files.write_bytes(path, b"old")
    (tmp_path / "new" / ".file.bin.tmp").write_bytes(b"a part of something longer")
    files.write_bytes(path, memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
