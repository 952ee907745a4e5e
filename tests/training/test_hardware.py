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


@pytest.mark.parametrize(
    ("text", "model", "vendor"),
    [
        (LIST, "AMD EPYC 9554", "AuthenticAMD"),
        *((text, platform.processor() or platform.machine(), "") for text in (None, "", "Processor : ARMv8\n")),
    ],
)
def test_the_first_cpu_of_the_list(monkeypatch: pytest.MonkeyPatch, text: str | None, model: str, vendor: str) -> None:
    def read(path: Path, encoding: str) -> str:
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    assert (hardware.cpu_model(), hardware.cpu_vendor()) == (model, vendor)


def test_the_cpu_in_journals() -> None:
    assert hardware.device_name(torch.device("cpu")) == f"cpu ({platform.machine()})"
