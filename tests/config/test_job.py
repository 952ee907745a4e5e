"""A run before it starts: what is frozen comes back as it was, or is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from edkd.config import job as config_job
from edkd.errors import EdkdError
from edkd.rundir import journal, provenance
from edkd.runs import run
from edkd.training.device import cores


def test_a_frozen_job_comes_back_as_it_was(make_job: Any) -> None:
    job = make_job("edkd", "schedule.lr=1e-3", "seed=2", teacher_id="run:aaaa")
    path = config_job.freeze(job, sweep="grid-7", threads=None)
    assert path == job.directory / "config.yaml"
    thawed, sweep = config_job.thaw(path)
    assert sweep == "grid-7"
    frozen = yaml.safe_load(path.read_text())["run"]
    assert frozen.pop("code") == provenance.read().version
    assert frozen == {"hash": job.run, "method": "edkd", "teacher_id": "run:aaaa", "sweep": "grid-7", "threads": None}
    assert (thawed.run, thawed.name, thawed.directory) == (job.run, job.name, job.directory)
    assert thawed.identity == job.identity
    assert thawed.settings == job.settings
    assert thawed.tags == job.tags
    assert thawed.config == job.config


@pytest.mark.parametrize(("own", "given", "expected"), [("null", 3, 3), ("2", 3, 2), ("null", None, cores())])
def test_the_threads_of_a_job(make_job: Any, own: str, given: int | None, expected: int) -> None:
    job = make_job("vanilla", f"engine.threads={own}")
    thawed, _ = config_job.thaw(config_job.freeze(job, sweep=None, threads=given))
    assert run.cpu_threads(thawed, journal.RunState("new")) == expected
    assert thawed.settings == job.settings, "the launcher's share is that launcher's, and not the run's"
    again, _ = config_job.thaw(config_job.freeze(thawed, sweep=None, threads=16))  # for another launcher
    assert run.cpu_threads(again, journal.RunState("new")) == (16 if own == "null" else 2)
    assert thawed.run == job.run


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedule.lr", 0.5),
        ("seed", 9),
        ("run.teacher_id", "run:bbbb"),
        ("run.method", "other"),
        ("run.hash", "0" * 16),
    ],
)
def test_a_frozen_configuration_that_was_changed_is_refused(make_job: Any, key: str, value: Any) -> None:
    path = config_job.freeze(make_job("kd", teacher_id="run:aaaa"), sweep=None, threads=None)
    frozen = yaml.safe_load(path.read_text())
    *parents, last = key.split(".")
    node = frozen
    for parent in parents:
        node = node[parent]
    node[last] = value
    path.write_text(yaml.safe_dump(frozen))
    with pytest.raises(EdkdError, match=f"^{path} was changed after planning: it now describes run "):
        config_job.thaw(path)


@pytest.mark.parametrize("text", ["absent", "", "[1, 2]", "seed: [", "seed: 1", "run: 5", "run: {hash: x}", "é"])
def test_a_file_that_is_no_frozen_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    if text != "absent":
        path.write_text(text, "latin-1")
    with pytest.raises(EdkdError, match=f"^{path} is not a frozen configuration of a run"):
        config_job.thaw(path)


def test_a_run_directory_that_cannot_be_made(make_job: Any, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be")
    with pytest.raises(EdkdError, match=rf"^cannot write .*; output={tmp_path / 'outputs'} sets the folder$"):
        config_job.freeze(make_job("vanilla"), sweep=None, threads=None)


def test_directories_have_readable_names_and_no_date(make_job: Any, tmp_path: Path) -> None:
    job = make_job("dkd", "student=vgg8", "seed=1", teacher_id="run:aaaa")
    expected = f"digits-8-20perclass-test10/resnet8-vgg8/dkd-s1-{job.run[:8]}"
    assert job.name == expected
    assert job.directory == tmp_path / "outputs" / "runs" / expected
