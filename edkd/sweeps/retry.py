"""Launching again what failed or vanished, from the frozen configurations: the choice, and the plan made of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edkd.config.job import Job, directory_of, thaw, training_run
from edkd.errors import EdkdError
from edkd.rundir.paths import RunDir
from edkd.status.state import RunStatus, about
from edkd.sweeps.plan import Sweep
from edkd.teachers import store

RETRIED = ("failed", "vanished")


@dataclass
class Retry(Sweep):
    """Runs that were planned before, maybe in several sweeps."""

    planned_in: set[str | None] = field(default_factory=set)  # sweeps; None: started alone

    @property
    def id(self) -> str:
        """That of the sweep they belong to, if it is one; else they become one."""
        only = next(iter(self.planned_in)) if len(self.planned_in) == 1 else None
        return only or super().id


def choose(views: Sequence[RunStatus], everything: Sequence[RunStatus], *, new: bool) -> list[Path]:
    """The runs among `views` to launch again: what failed or vanished, and with `new` what never began.

    Students that never began because one of these was to teach them are among `everything` and go along.
    """
    chosen = {view.directory: view for view in views if view.state in (*RETRIED, *(("new",) if new else ()))}
    hashes = {view.hash for view in chosen.values()}
    for view in everything:
        if view.state == "new" and training_run(about(view.directory).get("teacher_id"))[:8] in hashes:
            chosen.setdefault(view.directory, view)
    return list(chosen)


def make_plan(directories: Iterable[Path]) -> Retry:
    """The sweep that the runs of some directories make, with the teachers that they lack.

    Raises EdkdError for a configuration that is missing or was changed, a teacher that is in neither the store nor the
    runs, and runs that were planned from another directory.
    """
    jobs: dict[str, Job] = {}
    result = Retry()
    for directory in directories:
        _thaw(directory, jobs, result)
    taught_by = {training_run(job.teacher_id) for job in jobs.values()}
    for job in list(jobs.values()):
        missing = _missing_teacher(job)
        if missing is not None and missing not in jobs:
            taught_by.add(missing)
            _thaw(_teacher_directory(job, missing), jobs, result)
    result.teachers = [job for job in jobs.values() if job.run in taught_by]
    result.students = [job for job in jobs.values() if job.run not in taught_by]
    result.asked = set(jobs)
    return result


def _thaw(directory: Path, jobs: dict[str, Job], result: Retry) -> None:
    job, sweep = thaw(RunDir(directory).config)
    if job.directory.resolve() != directory.resolve():
        raise EdkdError(
            f"{directory} was planned as {job.directory}: run this from the directory where that path leads there"
        )
    jobs[job.run] = job
    result.planned_in.add(sweep)


def _missing_teacher(job: Job) -> str | None:
    """The hash of the run that is to teach a student, if the store has no such teacher yet."""
    wanted = training_run(job.teacher_id)
    if not wanted:
        return None
    cfg = job.settings
    held = store.find(Path(cfg.output) / "teachers", cfg.dataset.key, cfg.teacher.name)
    return None if held is not None and held.id == job.teacher_id else wanted


def _teacher_directory(student: Job, wanted: str) -> Path:
    found = directory_of(wanted, student.settings)
    if found is None:
        cfg = student.settings
        raise EdkdError(
            f"{student.name} is to be taught by run {wanted} of {cfg.teacher.name}, which is neither in "
            f"{Path(cfg.output) / 'teachers'} nor in {Path(cfg.output) / 'runs' / cfg.dataset.key}: "
            "give the sweep's own command again"
        )
    return found
