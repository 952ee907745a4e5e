"""Several processes of one run on the CPU: they compute what one computes, write once, and end together."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from edkd.rundir import journal
from edkd.training import distributed
from tests.commandline import journals, launch, metrics
from tests.runs.networks import KILL_AT

PLAIN = ["student.name=plain", "student.model._target_=tests.runs.networks.plain"]
MORTAL = ["student.name=mortal", "student.model._target_=tests.runs.networks.mortal"]
TOLERANCE = 2e-5  # sums of floats in another order, over some ten steps; nothing else differs


def trained(output: Path) -> dict[int, Any]:
    (records,) = [each for each in journals(output).values() if each[0]["tags"]["student"] == "plain"]
    assert [record["event"] for record in records] == ["start", "epoch", "epoch", "end"]
    return metrics(records)


def last_line(*words: str) -> str:
    ended = launch(*words)
    assert ended.code == 1, ended
    return ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    "command", [["distiller=vanilla"], ["-m", "distiller=kd", "optimizer=dot", "teacher=resnet8"]], ids=["sgd", "dot"]
)
def test_two_processes_compute_what_one_does(command: list[str], tiny: list[str], tmp_path: Path) -> None:
    """Parts, the last batch and the test set are odd; a teacher is trained once, in one process."""
    words = [*tiny, *PLAIN, *command, "schedule.batch_size=63", "dataset.test_per_class=9"]
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "teachers").symlink_to(tmp_path / "1" / "teachers")
    one, two = ({}, {})
    for devices, found in ((1, one), (2, two)):
        done = launch(*words, f"output={tmp_path / str(devices)}", f"engine.devices={devices}")
        assert done.code == 0, done
        found.update(trained(tmp_path / str(devices)))
    for epoch in (1, 2):
        assert two[epoch] == pytest.approx(one[epoch], rel=TOLERANCE, abs=TOLERANCE)
        for name in ("train/top1", "test/top1", "test/top5"):
            assert two[epoch][name] == one[epoch][name]


def test_gradients_are_added_in_buckets_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_BUCKET", 10)
    given = [mock.Mock(**{"numel.return_value": values}) for values in (4, 4, 4, 10, 1, 12, 3, *[1] * 9)]
    buckets: Any = list(distributed._buckets(given))
    assert [[each.numel.return_value for each in bucket] for bucket in buckets] == [
        [4, 4],
        [4],
        [10],
        [1],
        [12],
        [3, *[1] * 7],
        [1, 1],
    ]
    assert max(each.numel.call_count for each in given) <= 2


def test_a_killed_process_ends_the_run_which_resumes_to_the_same_bits(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*tiny, *MORTAL, "distiller=vanilla", "engine.devices=2"]
    monkeypatch.setenv(KILL_AT, "1,6")  # in the second epoch of four batches
    expected = "process 2 of 2 was killed (SIGKILL), and the run ended with it; the same command continues it"
    assert last_line(*words) == f"edkd: {expected}"
    (path,) = (tmp_path / "outputs" / "runs").glob("*/*/*/journal.jsonl")
    state = journal.state(path.parent)
    assert (state.status, state.epoch, state.error) == ("failed", 1, expected)
    monkeypatch.delenv(KILL_AT)
    assert launch(*words).code == 0
    assert launch(*words, f"output={tmp_path / 'undisturbed'}").code == 0
    resumed, undisturbed = (journals(tmp_path / name).values() for name in ("outputs", "undisturbed"))
    assert [metrics(each) for each in resumed] == [metrics(each) for each in undisturbed]


def test_what_several_processes_cannot_do_is_one_line(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "distiller=vanilla", "student=resnet8", "engine.devices=2"]
    assert "needs GPUs" in last_line(*words, "engine.sync_batch_norm=true")
    few = last_line(*words, "schedule.batch_size=199")
    assert few.startswith("edkd: the last batch of 200 images has 1, fewer than engine.devices=2")
    assert "each takes a part of a batch, which has" in last_line(*words, "engine.devices=3000")
    assert "does not add the gradients" in last_line(*words, "optimizer._target_=tests.runs.networks.Alone")


def test_a_memory_of_images_needs_one_process(tiny: list[str], tmp_path: Path) -> None:
    ended = launch("-m", *tiny, "distiller=crd", "student=resnet14", "distiller.negatives=8", "engine.devices=2")
    assert ended.code == 1
    assert "the method keeps memory_student of the images it sees" in ended.out + ended.err


def test_what_one_process_raises_is_said_as_in_one_alone(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "student.name=faulty", "student.model._target_=tests.runs.networks.faulty", "distiller=vanilla"]
    for devices in (1, 2):
        ended = launch(*words, f"engine.devices={devices}", f"output={tmp_path / str(devices)}")
        assert ended.code != 0
        (path,) = (tmp_path / str(devices) / "runs").glob("*/*/*/journal.jsonl")
        assert journal.state(path.parent).error == "RuntimeError: a fault of this network"
