"""Planning a sweep: from the command line's overrides to jobs, each once, in the order in which they should run.

    expand pair=all -> compose every job -> a training run for each teacher that the store lacks

Nothing here launches or writes anything.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from edkd.config import schema
from edkd.config.compose import Composer, files_read_once
from edkd.config.job import Job, digest, make_job
from edkd.errors import EdkdError
from edkd.sweeps.preconditions import check_strength
from edkd.teachers import store


@dataclass
class Sweep:
    """The jobs of a sweep, each once, in the order in which they were asked for."""

    students: list[Job] = field(default_factory=list)
    teachers: list[Job] = field(default_factory=list)  # those that some student needs and the store lacks
    asked: set[str] = field(default_factory=set)  # the runs that were asked for, some of which may be such teachers

    @property
    def jobs(self) -> list[Job]:
        """All jobs, in the order in which they run."""
        return [*self.teachers, *self.students]

    @property
    def id(self) -> str:
        """The same for the same jobs, so that a repeated command continues the same sweep."""
        key = self.students[0].settings.dataset.key
        return f"{key}-{digest(sorted(self.asked))[:8]}"


def expand(overrides: Sequence[Override], pair_lists: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The overrides of each job: the product of all choices, `pair=all` and its like standing for the listed pairs."""
    choices: list[list[str]] = []
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise EdkdError(f"{override.input_line}: only lists of values can be swept, such as {key}=1,2,3")
            values = [str(value) for value in override.sweep_string_iterator()]
        else:
            values = [override.get_value_element_as_str()]
        if key == "pair":
            values = [pair for value in values for pair in pair_lists.get(value, [value])]
        choices.append([f"{key}={value}" for value in dict.fromkeys(values)])
    return [list(combination) for combination in itertools.product(*choices)]


def make_plan(
    combinations: Iterable[Sequence[str]], overrides: Sequence[Override], master: DictConfig, loader: ConfigLoader
) -> Sweep:
    """Compose every job, and a training run for each teacher that the store lacks.

    A student's identity contains its teacher's, which is known before that is trained: the hash of its run.
    """
    with files_read_once(loader):
        return _make_plan(combinations, overrides, Composer(master, loader))


def _make_plan(combinations: Iterable[Sequence[str]], overrides: Sequence[Override], composer: Composer) -> Sweep:
    planned = Sweep()
    wanted: dict[tuple[str, str], list[Job]] = {}
    training = _TeacherRuns(composer)
    stored = _Stored()
    for combination in combinations:
        resolved, method = composer.compose(combination)
        cfg = schema.settings(resolved, method)
        teacher_id = None
        if cfg.needs_teacher:
            entry = stored.find(cfg)
            if entry is not None:
                check_strength(cfg, entry)
                stored.verify(entry)
                teacher_id = entry.id
            else:
                job = training.job(cfg, combination, overrides)
                wanted.setdefault((cfg.dataset.key, cfg.teacher.name), []).append(job)
                teacher_id = f"run:{job.run}"
        planned.students.append(Job(config=resolved, settings=cfg, teacher_id=teacher_id))
    for (dataset, name), jobs in wanted.items():
        if len({job.run for job in jobs}) > 1:
            raise EdkdError(
                f"the sweep would train teacher {name} of {dataset} in several ways; "
                f"train it first: python launch.py distiller=vanilla student={name}, with the values that it shall have"
            )
    planned.teachers = _unique(job for jobs in wanted.values() for job in jobs)
    planned.asked = {job.run for job in planned.students}
    alone = {job.run for job in planned.teachers}
    planned.students = [job for job in _unique(planned.students) if job.run not in alone]
    return planned


class _Stored:
    """The teachers of the store, each looked for and verified once in a plan."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], store.Entry | None] = {}
        self.verified: set[Path] = set()

    def find(self, cfg: schema.Settings) -> store.Entry | None:
        """The teacher of a run, None if the store lacks it."""
        key = cfg.output, cfg.dataset.key, cfg.teacher.name
        if key not in self.found:
            self.found[key] = store.find(Path(cfg.output) / "teachers", *key[1:])
        return self.found[key]

    def verify(self, entry: store.Entry) -> None:
        """Raise EdkdError for a teacher whose weights were changed."""
        if entry.path not in self.verified:
            store.verify(entry)
            self.verified.add(entry.path)


class _TeacherRuns:
    """The runs that train missing teachers: the student's data, schedule and engine, cross-entropy alone."""

    about_students = ("pair", "teacher", "student", "distiller", "tweak", "seed")

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.made: dict[tuple[str, ...], Job] = {}

    def job(self, cfg: schema.Settings, combination: Sequence[str], overrides: Sequence[Override]) -> Job:
        """The run for the teacher of the student `cfg`, which is composed by `combination`."""
        kept = [
            text
            for text, override in zip(combination, overrides, strict=True)
            if key_of(override).split(".")[0] not in self.about_students
        ]
        asked = (*kept, "distiller=vanilla", f"student={cfg.teacher.name}", f"seed={cfg.teacher_seed}")
        if asked not in self.made:
            try:
                composed = self.composer.compose(asked)
            except EdkdError as error:
                raise EdkdError(
                    f"teacher {cfg.teacher.name} is not in the store, and cannot be trained: {error}"
                ) from error
            self.made[asked] = make_job(*composed, teacher_id=None)
        return self.made[asked]


def pair_lists(overrides: Sequence[Override], master: DictConfig, loader: ConfigLoader) -> dict[str, list[str]]:
    """The pairs that `pair=all` and its like stand for, of the options that some overrides name."""
    words = [override for override in overrides if override.get_key_element() == "pair"]
    named = {
        str(value)
        for override in words
        for value in (override.sweep_string_iterator() if override.is_sweep_override() else [override.value()])
    }
    lists = {}
    for option in sorted(named & set(loader.get_group_options("pair"))):
        pairs = loader.load_sweep_config(master, [f"pair={option}"]).get("pairs")
        if pairs:
            lists[option] = [str(pair) for pair in pairs]
    return lists


def _unique(jobs: Iterable[Job]) -> list[Job]:
    return list({job.run: job for job in jobs}.values())


def key_of(override: Override) -> str:
    """The key or group that an override sets."""
    return override.key_or_group
