"""Plan a sweep: turn the command line's overrides into jobs, each once, in the order in which they run, and show them.

    expand pair=all -> compose every job -> a training run for each teacher that the store lacks

Nothing here launches or writes anything.
"""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from edkd.config.compose import Composer, chosen
from edkd.config.job import Job, digest, directory_of, labels, make_job, thaw, training_run
from edkd.config.schema import Settings, misfit_of
from edkd.console import console, counted
from edkd.distillers.vanilla import Vanilla
from edkd.errors import EdkdError
from edkd.rundir import journal, provenance
from edkd.rundir.journal import RunState
from edkd.rundir.paths import RunDir
from edkd.rundir.settings import leaves
from edkd.runs.inputs import teacher_folder
from edkd.runs.method import check_method
from edkd.runs.pretrained import weights_id
from edkd.runs.teaching import is_lost
from edkd.status.state import RunStatus
from edkd.teachers import store

LONG_PLAN = 60  # rows; for a longer plan, only the numbers are shown
DONE, LOST = "done", "done, to train again: its network is gone"
_ABOUT_STUDENTS = ("pair", "teacher", "student", "distiller", "tweak", "seed")  # not passed on to teachers' runs


@dataclass
class Sweep:
    """The jobs of a sweep, each once, in the order in which they were asked for."""

    students: list[Job] = field(default_factory=list)
    teachers: list[Job] = field(default_factory=list)  # teachers that some student needs and the store lacks
    asked: set[str] = field(default_factory=set)  # hashes of the runs that were asked for; some may train such teachers
    stored: list[str] = field(default_factory=list)  # the teachers that the store has, a line each

    @property
    def jobs(self) -> list[Job]:
        """All jobs, in the order in which they run."""
        return [*self.teachers, *self.students]

    @property
    def id(self) -> str:
        """The id, which is the same for the same jobs, so that a repeated command continues the same sweep."""
        key = self.students[0].settings.dataset.key
        return f"{key}-{digest(sorted(self.asked))[:8]}"


def is_dry(value: Any) -> bool:
    """What `+dry_run=VALUE` asks for. Raises EdkdError for anything but true and false."""
    if not isinstance(value, bool):
        raise EdkdError(f"dry_run={value}: must be true or false")
    return value


def stored_teacher(cfg: Settings) -> store.Entry | None:
    """The stored teacher of a run, None if the store lacks it. Raises EdkdError if it is not `teacher.weights`.

    Also raises EdkdError if it trained here for fewer epochs than its student will, unless `allow_weak_teacher`.
    """
    entry = store.find(teacher_folder(cfg), cfg.dataset.key, cfg.teacher.name)
    if entry is not None and cfg.teacher.weights is not None and entry.id != (wanted := weights_id(cfg)):
        raise EdkdError(
            f"teacher {entry.name} of {entry.dataset} is {entry.id}, teacher.weights={cfg.teacher.weights} are "
            f"{wanted}: remove {entry.path}, or give these another name by teacher.name=…"
        )
    if entry is None or cfg.allow_weak_teacher or entry.epochs is None or entry.epochs >= cfg.schedule.epochs:
        return entry
    raise EdkdError(
        f"teacher {entry.name} of {entry.dataset} was trained for {counted(entry.epochs, 'epoch')}, the student is to "
        f"train {cfg.schedule.epochs}: remove {entry.path} to train it anew, or set allow_weak_teacher=true"
    )


def expand(overrides: Sequence[Override], pair_lists: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The overrides of each job: the product of all choices, `pair=all` and its like standing for the listed pairs."""
    choices: list[list[str]] = []
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values = [str(value) for value in override.sweep_string_iterator()]
        else:
            raise EdkdError(
                f"{override.input_line}: only lists of values can be swept, such as {key}=1,2,3; "
                "hydra/sweeper=optuna searches a range"
            )
        if key == "pair":
            values = [pair for value in values for pair in pair_lists.get(value, [value])]
        choices.append([f"{key}={value}" for value in dict.fromkeys(values)])
    return [list(combination) for combination in itertools.product(*choices)]


def pair_lists(overrides: Sequence[Override], master: DictConfig, loader: ConfigLoader) -> dict[str, list[str]]:
    """The pairs that each option such as `pair=all` lists, for the options that the overrides name."""
    of_pairs = [override for override in overrides if override.get_key_element() == "pair"]
    named = {text.removeprefix("pair=") for combination in expand(of_pairs, {}) for text in combination}
    lists = {}
    for option in sorted(named & set(loader.get_group_options("pair"))):
        pairs = loader.load_sweep_config(master, [f"pair={option}"]).get("pairs")
        if pairs:
            lists[option] = [str(pair) for pair in pairs]
    return lists


def make_plan(combinations: Iterable[Sequence[str]], overrides: Sequence[Override], composer: Composer) -> Sweep:
    """Compose every job, and a training run for each teacher that the store lacks.

    A student's identity contains its teacher's. This is known before the teacher is trained: it is the hash of its run,
    which has the student's data, schedule and engine, and only cross-entropy as its loss.
    """

    @functools.cache
    def training(name: str, given: tuple[str, ...]) -> Job:
        try:
            composed = composer.compose([*given, "distiller=vanilla", *chosen("student", name)])
        except EdkdError as error:
            raise EdkdError(f"teacher {name} is not in the store, and cannot be trained: {error}") from error
        return make_job(*composed, teacher_id=None)

    students: dict[str, Job] = {}
    wanted: dict[tuple[str, str], dict[str, Job]] = {}  # by data set and name, then by run
    verified: set[Path] = set()
    stored: dict[tuple[Path, tuple[str, ...]], str] = {}  # by file and the overrides that a training would have
    for combination in combinations:
        job = make_job(*composer.compose(combination), teacher_id=None)
        cfg = job.settings
        check_method(cfg)
        if cfg.needs_teacher:
            entry = stored_teacher(cfg)
            # An optimiser of distillation losses trains no teacher.
            dropped = {*_ABOUT_STUDENTS, *(["optimizer"] if misfit_of(cfg.optimizer, Vanilla) else [])}
            kept = [
                text
                for text, override in zip(combination, overrides, strict=True)
                if override.key_or_group.split(".")[0] not in dropped
            ]
            given = (*kept, f"seed={cfg.teacher_seed}")
            if entry is None and cfg.teacher.weights is not None:
                teacher_id = weights_id(cfg)
            elif entry is None:
                teacher = training(cfg.teacher.name, given)
                teacher_id = f"run:{teacher.run}"
                wanted.setdefault((cfg.dataset.key, cfg.teacher.name), {})[teacher.run] = teacher
            elif entry.path not in verified:
                store.verify(entry)
                verified.add(entry.path)
            if entry is not None and (entry.path, given) not in stored:
                others: list[str] = []
                with contextlib.suppress(EdkdError):  # a network that can only teach
                    others = differences(entry, training(entry.name, given))
                if others and cfg.teacher_recipe == "strict":
                    raise EdkdError(
                        f"teacher {entry.name} of {entry.dataset} was trained otherwise than teacher_recipe=strict "
                        f"allows: {'; '.join(others)}; remove {entry.path} to train it anew"
                    )
                stored[entry.path, given] = _described(entry, [] if cfg.teacher_recipe == "any" else others)
            job = replace(job, teacher_id=entry.id if entry is not None else teacher_id)
        students[job.run] = job
    for (dataset, name), jobs in wanted.items():
        if len(jobs) > 1:
            raise EdkdError(
                f"the sweep would train teacher {name} of {dataset} in several ways; "
                f"train it first: python launch.py distiller=vanilla student={name}, with the values that it shall have"
            )
    needed = {job.teacher_id for job in students.values() if journal.state(job.directory).status != "finished"}
    teachers = {
        run: job for jobs in wanted.values() for run, job in jobs.items() if run in students or f"run:{run}" in needed
    }
    return Sweep(
        [job for run, job in students.items() if run not in teachers],
        list(teachers.values()),
        set(students),
        list(dict.fromkeys(stored.values())),
    )


def differences(entry: store.Entry, wanted: Job) -> list[str]:
    """How the training of a stored teacher differs from a run that would train it now, `teacher_seed` included.

    If its run is not in the output folder, only the recipe is known, which leaves out the learning rate. For an
    imported teacher, nothing is known.
    """
    run = training_run(entry.id)
    if run == wanted.run:
        return []
    source = directory_of(run, wanted.settings) if run else None
    if source is not None:
        with contextlib.suppress(EdkdError):  # its configuration file was changed
            known, now = (_identity(job) for job in (thaw(RunDir(source).config)[0], wanted))
            keys = [key for key in {**known, **now} if known.get(key) != now.get(key)]
            return [f"{key} {known.get(key)}, here {now.get(key)}" for key in keys]
    recipe = wanted.tags["recipe"]
    return [f"recipe {entry.recipe}, here {recipe}"] if entry.recipe not in (None, recipe) else []


def _identity(job: Job) -> dict[str, Any]:
    """The values of a run's identity by their settings' names."""
    engine = job.settings.engine
    values = {key: value for key, value in leaves(job.identity) if not key.startswith("devices.")}
    together = engine.devices > 1 and engine.sync_batch_norm
    return values | {"engine.devices": engine.devices, "engine.sync_batch_norm": together}


def _described(entry: store.Entry, others: Sequence[str]) -> str:
    top1 = (entry.test or {}).get("top1")
    accuracy = "accuracy unknown" if top1 is None else f"top-1 {top1:.2f} %"
    run = training_run(entry.id)
    origin = f"trained by run {run[:8]}" if run else f"imported from {entry.source}"
    line = f"teacher {entry.name} of {entry.dataset}: {accuracy}, recipe {entry.recipe or 'unknown'}, {origin}"
    if not others:
        return line
    warning = f"WARNING: trained otherwise than this sweep would: {'; '.join(others)}"
    return f"{line}\n  {warning} (teacher_recipe=any omits this line)"


def show_plan(planned: Sweep, statuses: Mapping[str, RunStatus]) -> None:
    """Print what the sweep will do: every run with its status, then the numbers."""
    stages = [("1 teacher", job) for job in planned.teachers] + [("2 student", job) for job in planned.students]
    states = {run: _planned_as(status) for run, status in statuses.items()}
    states |= {job.run: LOST for job in planned.teachers if states[job.run] == DONE and is_lost(job)}
    if len(stages) <= LONG_PLAN:
        varied = labels(planned.jobs)
        names = {job.run: f"{job.name} {varied[job.run]}".rstrip() for job in planned.jobs}
        width = max(map(len, names.values()))
        print(f"{'stage':<9}  {'run':<{width}}  state")
        for stage, job in stages:
            status = statuses[job.run]
            done = f", after epoch {status.epoch}" if status.state != "done" and status.epoch else ""
            which = f" (job {status.job})" if _active_in_slurm(status) else ""
            print(f"{stage}  {names[job.run]:<{width}}  {states[job.run]}{which}{done}")
    counts = Counter(states[job.run] for job in planned.students)
    numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
    missing = sum(states[job.run] != DONE for job in planned.teachers)
    print(f"sweep {planned.id}: {counted(len(planned.students), 'run')}: {numbers}; teachers to train first: {missing}")
    for line in planned.stored:
        print(line)


def show_unreached(jobs: Iterable[Job]) -> None:
    """Print the milestones that no run of a schedule reaches, one line a schedule, and the warm-ups that do not end."""
    jobs = list(jobs)
    schedules = [job.settings.schedule for job in jobs]
    late = {(s.epochs, tuple(m for m in s.milestones if m >= s.epochs)) for s in schedules}
    for epochs, milestones in sorted(late):
        if milestones:
            console.print(
                f"schedule.milestones {', '.join(map(str, milestones))}: never reached in {counted(epochs, 'epoch')}; "
                "fractions, such as 0.625, follow schedule.epochs",
                markup=False,
                soft_wrap=True,
            )
    given = [(job.settings.method, job.config["distiller"].get("warmup_epochs") or 0, job.settings) for job in jobs]
    for method, warmup, epochs in sorted({(method, warmup, cfg.schedule.epochs) for method, warmup, cfg in given}):
        if warmup > epochs:
            console.print(
                f"WARNING: distiller.warmup_epochs {warmup} of {method}: in {counted(epochs, 'epoch')} the weight of "
                f"distillation never rises above {epochs / warmup:.0%} of its value; schedule.warmup_epochs sets it",
                markup=False,
                soft_wrap=True,
            )


def _active_in_slurm(status: RunStatus) -> bool:
    return status.state in ("waiting", "running") and status.job is not None


def _planned_as(status: RunStatus) -> str:
    if status.state == "done":
        return DONE
    if _active_in_slurm(status):
        return f"{status.state} in SLURM"
    if status.state == "running":
        return "running elsewhere"
    if status.known.status == "failed":
        return "to resume (failed before)"
    return "new" if status.known.status == "new" else "to resume"


def warn_outdated(jobs: Iterable[Job], states: Mapping[str, RunState]) -> None:
    """Print each finished run whose own classes (`provenance.own_code`) have changed since."""
    done = [job for job in jobs if states[job.run].status == "finished"]
    own = provenance.own_code(*(job.used for job in done))
    for job in done:
        known = (states[job.run].start or {}).get("sources") or {}
        named = provenance.targets(job.used)
        changed = provenance.differing(known, {target: digest for target, digest in own.items() if target in named})
        if changed:
            console.print(
                f"{job.name} was finished by another version of {', '.join(changed)}: "
                f"to train it with this one, move {job.directory} away",
                markup=False,
                soft_wrap=True,
            )
