"""The trials of a search: asked for in batches, launched as a sweep of ordinary runs, reported to Optuna's study.

The journals are authoritative. If a command leaves a trial, the next command resumes it: it reports the result if the
journal has the end of the run, and otherwise continues the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, NonNegativeInt, PositiveInt

from edkd.config.compose import Composer
from edkd.config.job import Job
from edkd.rundir import journal
from edkd.rundir.paths import record_sweep, runs_of_sweep
from edkd.runs.pruning import HELD_OUT, storage, trial_of
from edkd.slurm import submit
from edkd.status.state import RunStatus
from edkd.sweeps.execution import look_at, run
from edkd.sweeps.plan import Sweep, make_plan
from edkd.sweeps.report import unfinished
from edkd.sweeps.space import Space, text

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Values:
    """`hydra.sweeper`, explained in conf/hydra/sweeper/optuna.yaml."""

    params: dict[str, Any]
    n_trials: PositiveInt
    n_jobs: PositiveInt | None
    sampler: Literal["tpe", "random"]
    seed: NonNegativeInt
    startup_trials: NonNegativeInt
    pruner: Literal["median", "hyperband", "none"]
    prune_after: Annotated[float, Field(ge=0, le=1)]


@dataclass
class Batch(Sweep):
    """Trials that run together, with their teachers if those are missing."""

    search: str = ""

    @property
    def id(self) -> str:
        """The id of the search, because its trials are not known beforehand."""
        return self.search


def find_study(path: Path, search: str) -> optuna.Study | None:
    """The study of a search; None if there is none yet."""
    if not path.exists() or search not in optuna.get_all_study_names(storage(path)):
        return None
    return optuna.load_study(study_name=search, storage=storage(path))


def new_study(path: Path, search: str) -> optuna.Study:
    """A study without trials, in a file of its own."""
    return optuna.create_study(study_name=search, storage=storage(path), direction="maximize")


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials but for those that nobody has begun, and those that failed if a later one has the same run."""
    latest = {trial.user_attrs.get("run"): trial.number for trial in study.trials}
    return [
        trial
        for trial in study.trials
        if "run" in trial.user_attrs
        and trial.state is not TrialState.WAITING
        and (trial.state is not TrialState.FAIL or latest[trial.user_attrs["run"]] == trial.number)
    ]


@dataclass
class Trials:
    """The trials of a study, while a command asks for them and launches them."""

    study: optuna.Study
    space: Space
    composer: Composer
    values: Values
    output: Path

    def carry_out(self, size: int, master: DictConfig, launcher: Launcher) -> None:
        """Resume the trials that earlier commands left, then run new ones up to `n_trials`, `size` at a time."""
        left = self._left_by_earlier()
        new = self.values.n_trials - len(left) - len(self.study.get_trials(states=ENDED))
        while left or new > 0:
            numbers, left = left[:size], left[size:]
            asked = [self._ask() for _ in range(min(size - len(numbers), max(0, new)))]
            new -= len(asked)
            if not self._launch([*numbers, *asked], master, launcher):
                return

    def _left_by_earlier(self) -> list[int]:
        """The numbers of the trials that have not ended. Values that failed are queued to be tried again."""
        running = self.study.get_trials(states=(TrialState.RUNNING,))
        whole = [trial.number for trial in running if trial.params.keys() == self.space.distributions.keys()]
        for trial in running:
            if trial.number not in whole:  # a kill interrupted `ask`
                self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in counted_trials(self.study):
            if trial.state is TrialState.FAIL:
                self.study.enqueue_trial(trial.params, user_attrs={"run": trial.user_attrs["run"]})
        return whole

    def _ask(self) -> int:
        """A new trial. What it draws depends on the seed and the trials before it, not on kills while one was drawn."""
        drawn = sum(trial.state is not TrialState.FAIL or "run" in trial.user_attrs for trial in self.study.trials)
        seed = (self.values.seed * 1_000_003 + drawn) % 2**32
        if self.values.sampler == "tpe":
            startup = self.values.startup_trials
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        else:
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
        return self.study.ask(self.space.distributions).number

    def _launch(self, numbers: Sequence[int], master: DictConfig, launcher: Launcher) -> bool:
        """Run some trials and report their results to the study; returns whether their teachers are trained."""
        search = self.study.study_name
        jobs: dict[int, Job] = {}
        teachers: dict[str, Job] = {}
        for number in numbers:
            frozen = self.study.trials[number]
            chosen = {key: text(value) for key, value in frozen.params.items()}
            planned = make_plan([self.space.combination(chosen)], self.space.overrides, self.composer)
            (jobs[number],) = planned.students
            teachers |= {job.run: job for job in planned.teachers}
            trial = trial_of(self.study, frozen)
            trial.set_user_attr("run", jobs[number].run)
            trial.set_user_attr("name", jobs[number].name)
            print(f"trial {number}: {' '.join(f'{key}={value}' for key, value in chosen.items())}", flush=True)
        names = [*runs_of_sweep(self.output, search), *(job.name for job in jobs.values())]
        record_sweep(self.output, search, dict.fromkeys(names))
        batch = Batch(list({job.run: job for job in jobs.values()}.values()), list(teachers.values()), search=search)
        statuses = look_at(batch, ask=isinstance(launcher, submit.Queue))
        batch.students = [job for job in batch.students if not self._has_ended(statuses[job.run])]
        if batch.jobs:
            statuses |= run(batch, statuses, master, launcher) or {}
        for number, job in jobs.items():
            print(f"trial {number}: {self._tell(number, job, statuses[job.run])}", flush=True)
        lacking = [job for job in batch.teachers if statuses[job.run].state != "done"]
        for job in lacking:
            print(f"teacher {job.name}: {unfinished(job, statuses[job.run])}", flush=True)
        return not lacking

    def _has_ended(self, status: RunStatus) -> bool:
        """Whether a run is done, or was pruned in this search; a run that another search pruned continues."""
        ours = (status.known.start or {}).get("sweep") == self.study.study_name
        return status.state == "done" or (status.state == "pruned" and ours)

    def _tell(self, number: int, job: Job, status: RunStatus) -> str:
        """Report the result of a trial's run to the study, if it has one; returns its state as text for a user."""
        frozen = self.study.trials[number]
        trial = trial_of(self.study, frozen)
        if not self._has_ended(status):
            if status.state == "failed":
                self.study.tell(number, state=TrialState.FAIL)
            return unfinished(job, status)
        curve = {epoch: record["metrics"][HELD_OUT] for epoch, record in journal.epochs(job.directory).items()}
        for epoch in curve.keys() - frozen.intermediate_values.keys():  # the run was no trial of this search
            trial.report(curve[epoch], epoch)
        if status.state == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
            return f"pruned after epoch {status.epoch}, at {max(curve.values()):.2f} % of the held-out part"
        epoch = max(curve, key=lambda each: curve[each])  # the first of equal ones, which is the epoch of best.pt
        trial.set_user_attr("epoch", epoch)
        self.study.tell(number, curve[epoch])
        return f"{curve[epoch]:.2f} % of the held-out part (epoch {epoch})"
