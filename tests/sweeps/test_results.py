"""The small table at the end of a sweep, from hand-made ends of its runs."""

import itertools
from typing import Any

import pytest

from edkd.rundir.journal import RunState
from edkd.status.state import RunStatus
from edkd.sweeps import results

TEACHER = "run:0123"


def shown(capsys: pytest.CaptureFixture[str], *runs: tuple[Any, float | None], code: tuple[str, ...] = ()) -> list[str]:
    """The table of these jobs, each with its accuracy, None for one that did not end; every teacher has 80 %.

    `code` names the version of the code of each run, where the journals have one.
    """
    outcome = {}
    for (job, top1), version in itertools.zip_longest(runs, code):
        start = {"teacher": {"top1": 80.0}, "tags": {"cell": version or job.tags["cell"]}}
        known = RunState("finished", start=start, end={"last": {"top1": top1}})
        known = known if top1 is not None else RunState("failed")
        outcome[job.run] = RunStatus(job.directory, job.name, "", "", "", "", 0, "done", known=known)
    results.show([job for job, _ in runs], outcome)
    return capsys.readouterr().out.splitlines()


def test_methods_of_one_pair(make_job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kd, dkd, edkd = (make_job(method, teacher_id=TEACHER) for method in ("kd", "dkd", "edkd"))
    alone = make_job("vanilla")  # the teacher as well as the student of this pair
    assert shown(capsys, (kd, 70.126), (dkd, 71.0), (edkd, None), (alone, 69.5)) == [
        "top-1 of the last epoch, %, n = 1",
        "         resnet8-resnet8",
        "teacher            80.00",
        "alone              69.50",
        "KD                 70.13",
        "DKD                71.00",
    ]


def test_more_pairs_than_columns_over_seeds(make_job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for number, student in enumerate(("vgg8", "resnet20", "resnet32", "resnet44")):
        for seed in (0, 1):
            job = make_job("kd", f"student={student}", f"seed={seed}", teacher_id=TEACHER)
            runs.append((job, 70.0 + number + seed))
    runs += [(make_job("vanilla", "student=vgg8", f"seed={seed}"), 60.0) for seed in (0, 1)]
    assert shown(capsys, *runs) == [
        "top-1 of the last epoch, %, mean of n = 2",
        "                  teacher  alone     KD",
        "resnet8-vgg8        80.00  60.00  70.50",
        "resnet8-resnet20    80.00         71.50",
        "resnet8-resnet32    80.00         72.50",
        "resnet8-resnet44    80.00         73.50",
    ]


def test_cells_of_several_counts_and_a_row_for_each_setting(make_job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [make_job("kd", f"seed={seed}", teacher_id=TEACHER) for seed in (0, 1)]
    settings = [make_job("dkd", f"distiller.temperature={t}", teacher_id=TEACHER) for t in (2, 3)]
    assert shown(capsys, *((job, 70.0) for job in (*seeds, *settings))) == [
        "top-1 of the last epoch, %, mean of (n)",
        "                   resnet8-resnet8",
        "teacher                      80.00",
        "KD                       70.00 (2)",
        "DKD temperature=2        70.00 (1)",
        "DKD temperature=3        70.00 (1)",
    ]


def test_seeds_of_two_versions_of_the_code_have_no_mean(make_job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [make_job("kd", f"seed={seed}", teacher_id=TEACHER) for seed in (0, 1)]
    lines = shown(capsys, *((job, 70.0) for job in seeds), code=("before", "after"))
    assert lines[-1].split() == ["KD", "2", "versions", "of", "its", "code"]


def test_networks_alone_and_nothing_at_all(make_job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job("vanilla")
    assert shown(capsys, (job, 70.0)) == ["top-1 of the last epoch, %, n = 1", "         alone", "resnet8  70.00"]
    assert shown(capsys, (job, None)) == []
