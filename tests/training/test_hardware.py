"""The names of a machine."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edkd.training import hardware

LIST = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9554
flags\t\t: fpu vendor_id

processor\t: 1
"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    hardware._cpu.cache_clear()
    yield
    hardware._cpu.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def read(path: Path, encoding: str) -> str:
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)


def test_the_first_cpu_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, LIST)
    assert hardware.cpu_model() == "AMD EPYC 9554"
    assert hardware.cpu_vendor() == "AuthenticAMD"


@pytest.mark.parametrize("text", [None, "", "Processor : ARMv8\n"])
def test_where_there_is_no_such_list(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    pretend(monkeypatch, text)
    assert hardware.cpu_model() == (platform.processor() or platform.machine())
    assert hardware.cpu_vendor() == ""


def test_the_cpu_in_journals() -> None:
    assert hardware.device_name(torch.device("cpu")) == f"cpu ({platform.machine()})"
