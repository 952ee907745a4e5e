"""Methods with modules and a memory of their own, and optimisers with several momenta: trained, killed, continued."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from edkd.rundir import checkpoint, journal
from tests.runs.test_resume import KILLED, Nursery, arguments, nursery

__all__ = ["nursery"]  # a fixture

METHODS = {
    "fitnet": (["distiller=fitnet"], {"distiller.conv_reg.conv.weight", "distiller.conv_reg.bn.running_mean"}),
    "crd": (
        ["distiller=crd", "distiller.negatives=32", "distiller.feat_dim=16"],
        {"distiller.embed_s.linear.weight", "distiller.memory_student", "distiller.memory_teacher"},
    ),
    "ctkd": (["distiller=ctkd"], {"distiller.theta"}),
    "mlkd": (["distiller=mlkd"], set()),
    "simkd": (["distiller=simkd"], {"distiller.transfer.0.weight", "distiller.classifier_weight"}),
    "dot": (["distiller=kd", "optimizer=dot"], set()),
    "deepkd": (["distiller=deepkd", "optimizer=deepkd"], set()),
    "crd on dot": (["distiller=crd", "distiller.negatives=32", "optimizer=dot"], {"distiller.memory_student"}),
}


def found(output: Path) -> tuple[Path, dict[int, Any]]:
    """The student's run: its directory, and the metrics of its epochs."""
    (folder,) = (output / "runs").glob("*/resnet8-resnet14/*")
    return folder, {epoch: record["metrics"] for epoch, record in journal.epochs(folder).items()}


@pytest.fixture(scope="module")
def taught(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a teacher alone."""
    output = tmp_path_factory.mktemp("taught")
    assert nursery.run(*arguments(output, "distiller=vanilla", "schedule.epochs=2")) == 0, nursery.log.read_text()
    return output


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    nursery: Nursery, taught: Path, tmp_path: Path, method: str
) -> None:
    overrides, held = METHODS[method]
    outputs = [Path(shutil.copytree(taught, tmp_path / name)) for name in ("whole", "killed")]
    whole, killed = ([*arguments(output), "student=resnet14", *overrides] for output in outputs)

    assert nursery.run(*whole) == 0, nursery.log.read_text()
    assert nursery.run(*killed, die=("replace", "checkpoint.pt", 3)) == KILLED, nursery.log.read_text()
    saved = checkpoint.load(found(outputs[1])[0] / "checkpoint.pt")
    assert saved is not None
    assert held <= saved[0]["model"].keys()
    if "optimizer=dot" in overrides:
        buffers = [set(memory) for memory in saved[0]["optimizer"]["state"].values()]
        assert {"momentum_buffer", "momentum_kd_buffer"} in buffers
    assert nursery.run(*killed) == 0, nursery.log.read_text()

    (left, expected), (right, metrics) = map(found, outputs)
    assert metrics == expected
    assert metrics[1]["train/loss"] > metrics[max(metrics)]["train/loss"]
    assert [(right / name).read_bytes() == (left / name).read_bytes() for name in ("last.pt", "best.pt")] == [True] * 2
