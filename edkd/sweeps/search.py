"""Searching for values: trials that Optuna proposes, each an ordinary run, judged by the held-out part of the data.

    space -> plan of its ends -> (ask for a batch -> launch it as a sweep, missing teachers first -> tell) … -> the best

hydra-optuna-sweeper is not used: its last version needs an Optuna below 3, takes a trial's value from a job's return
value, which a requeued SLURM job does not have, prunes nothing, and draws its first values again when it is repeated.
So this module puts Optuna's own ask and tell around the launch of a sweep. Importing it loads Optuna.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from edkd.config.compose import Composer, own_folder
from edkd.config.instantiate import typed
from edkd.config.job import digest
from edkd.config.schema import Settings
from edkd.console import counted, print_lines, stdout
from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.rundir.journal import RunState
from edkd.rundir.paths import record_sweep, runs_of_sweep, study_file
from edkd.slurm import submit
from edkd.sweeps import progress, report
from edkd.sweeps.execution import shares
from edkd.sweeps.plan import Sweep, make_plan, pair_lists
from edkd.sweeps.preview import show_unreached
from edkd.sweeps.space import Space, make_space, text
from edkd.sweeps.sweep import find_devices, parse, prepare
from edkd.sweeps.trials import ENDED, Trials, Values, counted_trials, find_study, new_study

ON_SLURM = 4  # trials of a batch, where the launcher does not say how many run at a time
BEST = 5  # trials in the table at the end
_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "not ended",
}


def search(
    arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launcher: Launcher, values: Mapping[str, Any]
) -> None:
    """Run the search that the command line's overrides and the values of `hydra.sweeper` describe.

    Exits with code 1 after the summary if a trial failed or did not end. Raises EdkdError for what is wrong with the
    command itself, before anything is launched or written.
    """
    cfg = typed(Values, values, "hydra.sweeper")
    if isinstance(launcher, submit.Queue):
        launcher.check()
        if launcher.detached:
            raise EdkdError("hydra.launcher.detached=true: a search waits for its trials, to choose the next by them")
    given, dry_run = parse([*(f"{key}={value}" for key, value in cfg.params.items()), *arguments], loader)
    space = make_space(given)
    if pair_lists(space.overrides, master, loader):
        raise EdkdError("the trials of a search have one pair; see conf/pair")
    composer = Composer(master, loader)
    ends = make_plan(space.ends(), space.overrides, composer)
    settings = ends.students[0].settings
    _check(ends, cfg)
    name = f"{settings.dataset.key}-{digest([sorted(ends.asked), space.document()])[:8]}"
    output, path = Path(settings.output), study_file(Path(settings.output), name)
    parallel, _ = shares(master, cfg.n_trials)
    size = cfg.n_jobs or parallel or ON_SLURM
    study = find_study(path, name)
    begun = Counter(trial.state for trial in counted_trials(study)) if study is not None else Counter[TrialState]()
    new = max(0, cfg.n_trials - sum(begun[state] for state in (*ENDED, TrialState.RUNNING)))
    print(f"search {name}: {counted(cfg.n_trials, 'trial')}: {_numbers(begun, new)}, {size} at a time")
    _show_plan(space, ends, new + begun[TrialState.RUNNING], size, here=parallel is not None)
    if parallel is not None:
        find_devices(ends.jobs)
    if dry_run:
        return
    prepare(ends.jobs, here=parallel is not None)
    if settings.tracking.uri is not None:
        report.open_tracking(settings.tracking)
    held = FileLock(path.with_name(f".{name}.search.lock"), fallback_to_soft=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise EdkdError(f"another command is at search {name}; `edkd status {name}` shows its trials") from None
    except OSError as error:
        raise EdkdError(f"could not lock {held.lock_file}: {error.strerror or error}") from error
    try:
        record_sweep(output, name, runs_of_sweep(output, name) or [job.name for job in ends.teachers])
        study = find_study(path, name) or new_study(path, name)
        pruning = {"name": cfg.pruner, "startup_trials": cfg.startup_trials, "after": cfg.prune_after}
        study.set_user_attr("pruning", pruning)
        Trials(study, space, composer, cfg, output).carry_out(size, master, launcher)
    finally:
        held.release()
    _conclude(study, space, settings, master)


def _check(ends: Sweep, cfg: Values) -> None:
    """Raise EdkdError for runs that cannot be judged by held-out images, or not be pruned."""
    for each in (job.settings for job in ends.students):
        if not each.dataset.validation:
            raise EdkdError(
                "a search chooses by held-out images, of which there are none: dataset.validation=0.1 sets a tenth "
                "aside"
            )
        if cfg.pruner != "none" and each.engine.devices > 1:
            raise EdkdError("engine.devices: a run in several processes cannot be pruned; hydra.sweeper.pruner=none")


def _show_plan(space: Space, ends: Sweep, left: int, size: int, *, here: bool) -> None:
    """Print the search space, the teachers, and what the trials that are `left` cost at most."""
    for line in (*(f"  {each}" for each in space.lines()), *ends.stored):
        print(line)
    if ends.teachers:
        print(f"teachers to train first: {len(ends.teachers)}")
    trials = [ends.students[0]] * left
    states = {job.run: journal.state(job.directory) for job in ends.teachers}
    states |= {job.run: RunState("new") for job in trials}
    stages = {"teachers": ends.teachers, "trials, if none is pruned,": trials}
    print(progress.estimate(stages, states, here=here, parallel=size).line())
    show_unreached(ends.jobs)


def _conclude(study: optuna.Study, space: Space, settings: Settings, master: DictConfig) -> None:
    """Print how the trials ended, the best of them and the command that runs its values; report to MLflow.

    Exits with code 1 if a trial failed or did not end.
    """
    trials = counted_trials(study)
    print(f"search {study.study_name}: {counted(len(trials), 'trial')}: {_numbers(Counter(t.state for t in trials))}")
    done = sorted((trial for trial in trials if trial.state is TrialState.COMPLETE), key=_value, reverse=True)
    best = ""
    if done:
        _show_best(done[:BEST])
        chosen = " ".join(f"{key}={text(value)}" for key, value in done[0].params.items())
        best = f"best: trial {done[0].number}, {_value(done[0]):.2f} % of the held-out part: {chosen}"
        print(f"{best}\nat seeds that the search has not seen:")
        print(f"    {_command(done[0], space.overrides, settings.seed, master)}")
    if settings.tracking.uri is not None:
        names = dict.fromkeys(trial.user_attrs["name"] for trial in trials)
        states = Counter(str(journal.state(Path(settings.output) / "runs" / each).status) for each in names)
        report.track_search(study.study_name, settings.tracking, states, best)
    if any(trial.state not in ENDED for trial in trials):
        print("run the same command again to continue")
        raise SystemExit(1)


def _numbers(counts: Mapping[TrialState, int], new: int = 0) -> str:
    numbers = [f"{counts[state]} {name}" for state, name in _STATES.items() if counts[state]]
    return ", ".join([*numbers, *([f"{new} to come"] if new or not numbers else [])])


def _show_best(trials: Sequence[FrozenTrial]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("trial", "held-out %", "epoch", *trials[0].params):
        table.add_column(column, justify="right", overflow="fold")
    for trial in trials:
        values = (text(value) for value in trial.params.values())
        table.add_row(str(trial.number), f"{_value(trial):.2f}", str(trial.user_attrs["epoch"]), *values)
    print_lines(stdout(), table)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None  # it is complete
    return trial.value


def _command(best: FrozenTrial, overrides: Sequence[Override], seed: int, master: DictConfig) -> str:
    """The command that runs a trial's values at three seeds, launched as the search was."""
    folder = own_folder()
    words = ["python", "launch.py", "-m", *(["--config-dir", folder] if folder else [])]
    words += [each for each in master.hydra.overrides.hydra if each.startswith(("hydra/launcher", "hydra.launcher"))]
    words += [
        str(o.input_line) for o in overrides if o.get_key_element() not in best.params and o.key_or_group != "seed"
    ]
    words += [f"{key}={text(value)}" for key, value in best.params.items()]
    return shlex.join([*words, f"seed={seed + 1},{seed + 2},{seed + 3}"])
