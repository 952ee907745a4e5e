"""The names of a machine."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from edkd.training import device, hardware

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


@pytest.mark.parametrize(("count", "given", "named"), [(3, None, "0,1,2"), (3, "5,7", "5,7"), (1, None, None)])
def test_processes_take_the_visible_gpus_in_turn(
    monkeypatch: pytest.MonkeyPatch, count: int, given: str | None, named: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv(device.VISIBLE, raising=False)
    if given is not None:
        monkeypatch.setenv(device.VISIBLE, given)
    device.name_gpus()
    assert os.environ.get(device.VISIBLE) == named
    taken = []
    for number in range(1, 5):
        with mock.patch.dict(os.environ):
            for _ in range(2):  # a process is given several runs
                device.take_gpus(f"LokyProcess-{number}", 1)
            taken.append(os.environ.get(device.VISIBLE))
    gpus = named.split(",") if named is not None else [None]
    assert taken == [gpus[number % len(gpus)] for number in range(4)]


@pytest.mark.parametrize(
    ("count", "taken"), [(2, ["0,1", "2,3", "0,1"]), (3, ["0,1,2", "3,0,1", "2,3,0"]), (4, ["0,1,2,3"] * 3)]
)
def test_a_run_on_several_gpus_takes_as_many(monkeypatch: pytest.MonkeyPatch, count: int, taken: list[str]) -> None:
    found = []
    for number in range(1, 4):
        monkeypatch.setenv(device.VISIBLE, "0,1,2,3")
        device.take_gpus(f"LokyProcess-{number}", count)
        found.append(os.environ[device.VISIBLE])
    assert found == taken
