"""End a run of a search early if Optuna's pruner finds that other trials do better.

A search is a sweep with an Optuna study beside its record, `<output>/sweeps/<id>.optuna.log`. After every epoch, each
of its runs reports its held-out accuracy there, and asks whether to end. Only the study marks a run as a trial: nothing
in the run's configuration does. So the same run in another sweep is an ordinary one, trained to its end.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkd.config.job import Job
from edkd.errors import import_extra

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial, Trial

HELD_OUT = "val/top1"  # the metric that a search maximises, percent


class Pruned(BaseException):
    """A search ended its run. Like KeyboardInterrupt, it is not an error for `except Exception` to handle."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"after epoch {epoch}")
        self.epoch = epoch


def load_optuna() -> Any:
    """Return Optuna, set to log only warnings. Raises EdkdError if it is not installed."""
    optuna = import_extra("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage(path: Path) -> "JournalStorage":
    """A study's file, which many processes may write, also on a network file system."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def trial_of(study: "Study", frozen: "FrozenTrial") -> "Trial":
    """A `Trial`, which accepts reports; Optuna itself makes one only in the process that asked for the trial."""
    from optuna.trial import Trial

    return Trial(study, frozen._trial_id)


def pruner_of(job: Job, search: str, path: Path) -> Callable[[Mapping[str, Any]], bool]:
    """Return a function that reports an epoch's record to the study at `path`, and returns whether to end the run."""
    cfg = job.settings
    optuna = load_optuna()
    study: Study = optuna.load_study(study_name=search, storage=storage(path))
    study.pruner = _pruner(**study.user_attrs["pruning"], epochs=cfg.schedule.epochs)
    running = (optuna.trial.TrialState.RUNNING,)

    def ask(record: Mapping[str, Any]) -> bool:
        trials = study.get_trials(deepcopy=False, states=running)
        ours = next((trial for trial in trials if trial.user_attrs.get("run") == job.run), None)
        if ours is None:  # the run is no running trial of the study any more
            return False
        trial = trial_of(study, ours)
        if record["epoch"] not in ours.intermediate_values:
            trial.report(record["metrics"][HELD_OUT], record["epoch"])
        return record["epoch"] < cfg.schedule.epochs and trial.should_prune()

    return ask


def _pruner(*, name: str, startup_trials: int, after: float, epochs: int) -> "BasePruner":
    """Optuna's pruner `name` for runs of `epochs` epochs; `after` is the share of them before which none is pruned."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    least = max(1, round(after * epochs))
    if name == "median":
        return MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=least)
    if name == "hyperband":
        return HyperbandPruner(min_resource=least, max_resource=epochs)
    return NopPruner()
