"""A working directory of its own for each test, and a SLURM of scripts."""

from pathlib import Path

import pytest

from edkd.status import wait
from tests.fake_slurm import fake_slurm

__all__ = ["fake_slurm"]  # a fixture


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "SILENCE", 0.3)
