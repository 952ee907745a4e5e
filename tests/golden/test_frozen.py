"""Run hashes and loss traces stay what they were: finished runs are found, and continue as they began."""

import json
from pathlib import Path

import pytest

from tests.golden.cases import (
    IDENTITIES,
    OVERRIDES,
    PAIRS,
    SMOOTH,
    TRACES,
    identity,
    machine_of_traces,
    smooth_trace,
    trace,
)

FROZEN = json.loads(IDENTITIES.read_text())


def test_all_configurations_are_frozen() -> None:
    assert list(FROZEN) == OVERRIDES
    assert len({names["run"] for names in FROZEN.values()}) == len(OVERRIDES) - 1, "one differs in no result"


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_a_run_keeps_its_names(overrides: str) -> None:
    assert identity(overrides) == FROZEN[overrides]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_run_keeps_its_numbers_to_the_last_bit(pair: str, precision: str, tmp_path: Path) -> None:
    recorded = json.loads(TRACES.read_text())
    if machine_of_traces() != recorded["machine"]:
        pytest.skip("the bits were recorded with another CPU or torch")
    assert trace(pair, precision, tmp_path) == recorded[f"{pair} {precision}"]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_run_keeps_its_numbers_on_every_machine(pair: str, tmp_path: Path) -> None:
    recorded = json.loads(SMOOTH.read_text())[pair]
    found = smooth_trace(pair, tmp_path)
    assert list(found) == list(recorded)
    for method, epochs in found.items():
        for metrics, expected in zip(epochs, recorded[method], strict=True):
            losses = {name: value for name, value in expected.items() if "loss" in name}
            assert metrics.keys() == expected.keys()
            assert {name: metrics[name] for name in losses} == pytest.approx(losses, rel=1e-2)
