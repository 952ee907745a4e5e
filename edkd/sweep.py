"""A sweep: expand what is asked for, find what is done, train what is missing, tell what happened.

    expand pair=all -> jobs -> drop the finished, resume the interrupted -> missing teachers -> students -> summary

Jobs are launched by Hydra's launcher (in this process, in several local ones, on SLURM); what became of them is read
from their journals alone, for a launcher may lose a job, and a lost job must not take the others with it.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from edkd import config, journal, plan, report, teachers
from edkd.compose import explain, resolve
from edkd.console import LOG
from edkd.engine import cores, pick_device
from edkd.errors import EdkdError
from edkd.inputs import load_arrays
from edkd.plan import Job
from edkd.single import check_strength, open_tracking


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
        return f"{key}-{config.digest(sorted(self.asked))[:8]}"


def sweep(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launcher: Launcher) -> list[Any]:
    """Plan and run the sweep that the command line's overrides describe.

    Exits with code 1 after the summary if a job failed. Raises EdkdError for what is wrong with the command itself,
    before anything is launched or written.
    """
    overrides = OverridesParser.create(loader).parse_overrides(list(arguments))
    dry_run = any(_key(o) == "dry_run" and o.value() for o in overrides)
    overrides = [o for o in overrides if _key(o) != "dry_run"]
    planned = make_plan(expand(overrides, _all_pairs(master, loader)), overrides, master, loader)
    states = {job.run: journal.tail_state(job.directory) for job in planned.jobs}
    report.show_plan(planned, states)
    if dry_run:
        return []
    # A teacher whose run is finished, but that is not in the store, is put there again by its job.
    todo = [job for job in planned.teachers if states[job.run].status != "running"]
    todo += [job for job in planned.students if states[job.run].status not in ("finished", "running")]
    if _runs_here(master):
        for given in {job.settings.dataset.key: job.settings for job in todo}.values():
            pick_device(given.engine.device)
            load_arrays(given)
    open_tracking(planned.students[0].settings.tracking)
    _run(planned, todo, master, launcher)
    return []


def expand(overrides: Sequence[Override], all_pairs: Sequence[str]) -> list[list[str]]:
    """The overrides of each job: the product of all choices, `pair=all` standing for the pairs of the table."""
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
            values = [pair for value in values for pair in (all_pairs if value == "all" else [value])]
        choices.append([f"{key}={value}" for value in dict.fromkeys(values)])
    return [list(combination) for combination in itertools.product(*choices)]


def make_plan(
    combinations: Iterable[Sequence[str]], overrides: Sequence[Override], master: DictConfig, loader: ConfigLoader
) -> Sweep:
    """Compose every job, and a training run for each teacher that the store lacks.

    A student's identity contains its teacher's, which is known before that is trained: the hash of its run.
    """
    planned = Sweep()
    wanted: dict[tuple[str, str], list[Job]] = {}
    training = _TeacherRuns(master, loader)
    verified: set[Path] = set()
    for combination in combinations:
        resolved, method = _compose(combination, master, loader)
        given = config.settings(resolved, method)
        teacher_id = None
        if given.needs_teacher:
            entry = teachers.find(Path(given.output) / "teachers", given.dataset.key, given.teacher.name)
            if entry is not None:
                check_strength(given, entry)
                if entry.path not in verified:
                    teachers.verify(entry)
                    verified.add(entry.path)
                teacher_id = entry.id
            else:
                job = training.job(given.teacher.name, combination, overrides)
                wanted.setdefault((given.dataset.key, given.teacher.name), []).append(job)
                teacher_id = f"run:{job.run}"
        planned.students.append(plan.make_job(resolved, method, teacher_id))
    for (dataset, name), jobs in wanted.items():
        if len({job.run for job in jobs}) > 1:
            raise EdkdError(
                f"the sweep would train teacher {name} of {dataset} in several ways; "
                f"train it first: python launch.py distiller=vanilla student={name}, with the values that it shall have"
            )
    # The largest first: with several processes, the last to start then waits for nobody.
    planned.teachers = sorted(_unique(job for jobs in wanted.values() for job in jobs), key=_size, reverse=True)
    planned.asked = {job.run for job in planned.students}
    alone = {job.run for job in planned.teachers}
    planned.students = [job for job in _unique(planned.students) if job.run not in alone]
    return planned


def _run(planned: Sweep, todo: Sequence[Job], master: DictConfig, launcher: Launcher) -> None:
    threads = _threads_each(master, len(todo))
    files = {job.run: plan.freeze(job, sweep=planned.id, threads=threads) for job in todo}
    tracked = report.SweepTracking(planned.id, planned.jobs[0].settings.tracking)
    tracked.start()
    outcome: dict[str, journal.RunState] = {}
    try:
        with report.watch(todo, parallel=_parallel(master, len(todo))):
            for stage in (planned.teachers, planned.students):
                ready = [job for job in stage if job.run in files and not _orphan(job, planned, outcome)]
                _launch(ready, files, launcher)
                outcome |= {job.run: journal.tail_state(job.directory) for job in stage}
    finally:
        outcome = {job.run: journal.tail_state(job.directory) for job in planned.jobs}
        tracked.finish(outcome.values())
    if report.show_summary(planned, outcome):
        raise SystemExit(1)


def _orphan(job: Job, planned: Sweep, outcome: dict[str, journal.RunState]) -> bool:
    """Whether the job's teacher was to be trained in this sweep and was not."""
    failed = {f"run:{t.run}" for t in planned.teachers if t.run in outcome and outcome[t.run].status != "finished"}
    return job.teacher_id in failed


def _launch(jobs: Sequence[Job], files: dict[str, Path], launcher: Launcher) -> None:
    """Launch jobs; launch again those that died or that a dying neighbour took along, while that gets any further."""
    first, before = 0, None
    while jobs and (now := [_marks(job) for job in jobs]) != before:
        before = now
        try:
            ended = launcher.launch([[f"+frozen='{files[job.run].as_posix()}'"] for job in jobs], initial_job_idx=first)
            for job, returned in zip(jobs, ended, strict=False):
                if returned.status is JobStatus.FAILED:
                    _note(job, returned._return_value)
        except Exception as error:
            reason = " ".join(str(error).split())[:500]
            LOG.warning("the launcher stopped (%s: %s); looking at the journals", type(error).__name__, reason)
        first += len(jobs)
        jobs = [job for job in jobs if journal.tail_state(job.directory).status in ("new", "interrupted")]


def _note(job: Job, error: Any) -> None:
    """See that the journal has a job's error: one from before the job could open its journal is not there yet."""
    if journal.tail_state(job.directory).status in ("new", "interrupted"):
        line = str(error) if isinstance(error, EdkdError) else f"{type(error).__name__}: {error}"
        journal.Journal(job.directory / journal.FILE).append({"event": "failure", "error": line})


def _marks(job: Job) -> tuple[str, str, int]:
    state = journal.tail_state(job.directory)
    return job.run, state.status, max(state.epochs, default=0)


def _compose(overrides: Sequence[str], master: DictConfig, loader: ConfigLoader) -> tuple[dict[str, Any], str]:
    try:
        composed = loader.load_sweep_config(master, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise EdkdError(explain(error, overrides)) from error
    return resolve(composed), composed.hydra.runtime.choices["distiller"]


class _TeacherRuns:
    """The runs that train missing teachers: the student's data, schedule and engine, cross-entropy alone."""

    about_students = ("pair", "teacher", "student", "distiller", "tweak", "seed")

    def __init__(self, master: DictConfig, loader: ConfigLoader) -> None:
        self.master, self.loader = master, loader
        self.made: dict[tuple[str, ...], Job] = {}

    def job(self, name: str, combination: Sequence[str], overrides: Sequence[Override]) -> Job:
        """The run for the teacher of a student that is composed by `combination`."""
        kept = [
            text
            for text, override in zip(combination, overrides, strict=True)
            if _key(override).split(".")[0] not in self.about_students
        ]
        asked = (*kept, "distiller=vanilla", f"student={name}")
        if asked not in self.made:
            try:
                seed = _compose(asked, self.master, self.loader)[0]["teacher_seed"]
                composed = _compose((*asked, f"seed={seed}"), self.master, self.loader)
            except EdkdError as error:
                raise EdkdError(f"teacher {name} is not in the store, and cannot be trained: {error}") from error
            self.made[asked] = plan.make_job(*composed, teacher_id=None)
        return self.made[asked]


def _all_pairs(master: DictConfig, loader: ConfigLoader) -> list[str]:
    return [str(pair) for pair in loader.load_sweep_config(master, ["pair=all"]).pairs]


def _parallel(master: DictConfig, jobs: int) -> int:
    """How many of so many jobs the launcher runs at a time on this machine; launchers that queue elsewhere: all."""
    launcher = master.hydra.launcher
    if str(launcher._target_).endswith("BasicLauncher"):
        return 1
    at_once = launcher.get("n_jobs", jobs)
    return max(1, min(jobs, at_once if at_once > 0 else cores()))


def _threads_each(master: DictConfig, jobs: int) -> int | None:
    """CPU threads of each job, so that jobs side by side share the cores; None where jobs run on other machines."""
    return max(1, cores() // _parallel(master, jobs)) if _runs_here(master) else None


def _runs_here(master: DictConfig) -> bool:
    """Whether the launcher starts jobs on this machine, rather than handing them to a queue."""
    launcher = master.hydra.launcher
    return "n_jobs" in launcher or str(launcher._target_).endswith("BasicLauncher")


def _size(job: Job) -> int:
    """The number of parameters of the network that a job trains."""
    with torch.device("meta"):
        network = config.build(job.settings.student.model, "student.model", num_classes=10)
    return sum(parameter.numel() for parameter in network.parameters())


def _unique(jobs: Iterable[Job]) -> list[Job]:
    return list({job.run: job for job in jobs}.values())


def _key(override: Override) -> str:
    return override.key_or_group
