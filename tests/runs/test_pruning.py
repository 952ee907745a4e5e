"""A run that its search ends early, and what else may become of it."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from edkd.config.job import Job
from edkd.rundir import journal
from edkd.rundir.paths import RunDir, study_file
from edkd.runs.pruning import load_optuna, storage
from edkd.runs.run import execute
from tests.conftest import MakeJob

SPACE = {"x": FloatDistribution(0.0, 1.0)}
OTHERS = 5


@pytest.fixture
def job(make_job: MakeJob) -> Job:
    return make_job("vanilla", "dataset.validation=0.2", "schedule.epochs=4")


@pytest.fixture
def study(job: Job) -> optuna.Study:
    """That of search `s`, in which this run is the last trial; the others are done, and better than a run can be."""
    load_optuna()
    path = study_file(Path(job.settings.output), "s")
    path.parent.mkdir(parents=True)
    made = optuna.create_study(study_name="s", storage=storage(path), direction="maximize")
    curve = dict.fromkeys(range(1, 5), 101.0)
    rungs = {"completed_rung_0": 101.0, "completed_rung_1": 101.0}  # by which hyperband compares
    given: dict[str, Any] = {"params": {"x": 0.5}, "distributions": SPACE, "intermediate_values": curve}
    made.add_trials([create_trial(value=101.0, system_attrs=rungs, **given) for _ in range(OTHERS)])
    prunes(made)
    made.ask(SPACE).set_user_attr("run", job.run)
    return made


def prunes(study: optuna.Study, **values: Any) -> None:
    study.set_user_attr("pruning", {"name": "median", "startup_trials": 1, "after": 0.5, **values})


def events(job: Job) -> list[str]:
    return [record["event"] for record in journal.read(job.directory)]


def test_a_trial_with_better_ones_ends_at_the_first_epoch_at_which_it_may(job: Job, study: optuna.Study) -> None:
    found = execute(job, sweep="s", show=False)
    assert (found.status, found.epoch) == ("pruned", 2)
    assert events(job) == ["start", "epoch", "epoch", "pruned"]
    curve = {epoch: record["metrics"]["val/top1"] for epoch, record in journal.epochs(job.directory).items()}
    assert study.trials[OTHERS].intermediate_values == curve
    assert RunDir(job.directory).checkpoint.exists() and not RunDir(job.directory).last.exists()
    assert execute(job, sweep="another", show=False).status == "finished"  # in which it is an ordinary run
    assert events(job)[4:] == ["start", "epoch", "epoch", "end"]


@pytest.mark.parametrize("values", [{"startup_trials": OTHERS + 1}, {"after": 1.0}, {"name": "none"}])
def test_a_trial_ends_no_earlier_than_the_search_says(job: Job, study: optuna.Study, values: dict[str, Any]) -> None:
    prunes(study, **values)
    assert execute(job, sweep="s", show=False).status == "finished"
    assert list(study.trials[OTHERS].intermediate_values) == [1, 2, 3, 4]


def test_hyperband_compares_with_those_that_came_as_far(job: Job, study: optuna.Study) -> None:
    prunes(study, name="hyperband", after=0.25)
    assert execute(job, sweep="s", show=False).status == "pruned"
    assert study.trials[OTHERS].system_attrs["completed_rung_0"] < 101.0


def test_a_trial_that_the_search_has_given_up_is_trained_to_its_end(job: Job, study: optuna.Study) -> None:
    study.tell(OTHERS, state=TrialState.FAIL)
    assert execute(job, sweep="s", show=False).status == "finished"
