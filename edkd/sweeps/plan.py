"""Plan a sweep: turn the command line's overrides into jobs, each once, in the order in which they run.

    expand pair=all -> compose every job -> a training run for each teacher that the store lacks

Nothing here launches or writes anything.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from edkd.config.compose import Composer, chosen
from edkd.config.job import Job, digest, directory_of, make_job, thaw, training_run
from edkd.config.schema import Settings, misfit_of
from edkd.console import counted
from edkd.distillers.vanilla import Vanilla
from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.rundir.paths import RunDir
from edkd.rundir.settings import leaves
from edkd.runs.inputs import teacher_folder
from edkd.runs.method import check_method
from edkd.runs.pretrained import weights_id
from edkd.teachers import store

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
            seed = next(iter(jobs.values())).settings.seed
            raise EdkdError(
                f"the sweep would train teacher {name} of {dataset} in several ways; "
                f"train it first: python launch.py distiller=vanilla student={name} seed={seed}, with the values that "
                "it shall have"
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
