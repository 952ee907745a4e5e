"""Run hashes and loss traces stay what they were: finished runs are found, and continue as they began."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cases import IDENTITIES, OVERRIDES, PAIRS, TRACES, identity, machine_of_traces, trace

FROZEN = json.loads(IDENTITIES.read_text())


def test_all_configurations_are_frozen() -> None:
    assert list(FROZEN) == OVERRIDES
    assert len({names["run"] for names in FROZEN.values()}) == len(OVERRIDES) - 1, "one differs in no result"


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_a_run_keeps_its_names(overrides: str) -> None:
    assert identity(overrides) == FROZEN[overrides]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_run_keeps_its_numbers(pair: str, precision: str, tmp_path: Path) -> None:
    """To the last bit where CPU and torch are those of the recording; other kernels add in another order."""
    recorded = json.loads(TRACES.read_text())
    expected: dict[str, Any] = recorded[f"{pair} {precision}"]
    found = trace(pair, precision, tmp_path)
    if machine_of_traces() == recorded["machine"]:
        assert found == expected
        return
    assert list(found) == list(expected)
    for method, numbers in found.items():
        first, known = numbers["epochs"][0], expected[method]["epochs"][0]
        assert first.keys() == known.keys()
        for name in ("train/loss", "train/loss_ce", "train/loss_kd"):
            if name in known:
                assert first[name] == pytest.approx(known[name], rel=1e-3 if precision == "fp32" else 5e-2), name
