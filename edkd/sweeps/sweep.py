"""Running a sweep: launch what the plan says, see what became of it, launch again what died, tell what happened.

    plan -> drop the finished, resume the interrupted -> missing teachers -> students -> summary

Jobs are launched by Hydra's launcher (in this process, in several local ones, on SLURM); what became of them is read
from their journals alone, for a launcher may lose a job, and a lost job must not take the others with it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from edkd.config.compose import quoted
from edkd.config.job import Job, freeze
from edkd.console import LOG
from edkd.errors import EdkdError
from edkd.rundir import journal, provenance
from edkd.runs.setup import load_arrays
from edkd.slurm import submission, submit
from edkd.status import registry
from edkd.sweeps import estimate, progress, retry
from edkd.sweeps.plan import Sweep, expand, key_of, make_plan, pair_lists
from edkd.sweeps.single import open_tracking
from edkd.training.device import cores, pick_device


def sweep(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launcher: Launcher) -> list[Any]:
    """Plan and run the sweep that the command line's overrides describe.

    Exits with code 1 after the summary if a job failed. Raises EdkdError for what is wrong with the command itself,
    before anything is launched or written.
    """
    if isinstance(launcher, submit.Queue):
        launcher.check()
    overrides = OverridesParser.create(loader).parse_overrides(list(arguments))
    dry_run = estimate.wanted(next((o.value() for o in overrides if key_of(o) == "dry_run"), False))
    again = next((Path(str(o.value())) for o in overrides if key_of(o) == "retry"), None)
    overrides = [o for o in overrides if key_of(o) != "dry_run"]
    if again is not None:
        planned: Sweep = retry.planned(again)
    else:
        planned = make_plan(expand(overrides, pair_lists(overrides, master, loader)), overrides, master, loader)
    states = {job.run: journal.tail_state(job.directory) for job in planned.jobs}
    answer = submission.ask(planned.jobs, states) if isinstance(launcher, submit.Queue) else None
    progress.show_plan(planned, states, submission.whereabouts(planned.jobs, states, answer))
    progress.tell_outdated(planned.jobs, states)
    _show_estimate(planned, states, master)
    if dry_run:
        return []
    # A teacher whose run is finished, but that is not in the store, is put there again by its job.
    todo = [job for job in planned.teachers if states[job.run].status != "running"]
    todo += [job for job in planned.students if states[job.run].status not in ("finished", "running")]
    if _runs_here(master):
        for cfg in {job.settings.dataset.key: job.settings for job in todo}.values():
            pick_device(cfg.engine.device)
            load_arrays(cfg)
    open_tracking(planned.students[0].settings.tracking)
    output = Path(planned.students[0].settings.output)
    recorded = again is not None or planned.id in registry.known(output)
    if again is None:  # else the sweep has more runs than these
        registry.record(output, planned.id, [job.name for job in planned.jobs])
    if isinstance(launcher, submit.Queue):
        try:
            _queue(planned, states, launcher, answer)
        except EdkdError:
            held = map(submission.read, [job.directory for job in planned.jobs])
            if not recorded and not any(ticket is not None and ticket.sweep == planned.id for ticket in held):
                registry.forget(output, planned.id)  # nothing of it was submitted
            raise
    else:
        _run(planned, todo, master, launcher)
    return []


def _show_estimate(planned: Sweep, states: Mapping[str, journal.RunState], master: DictConfig) -> None:
    here, jobs = _runs_here(master), len(planned.jobs)
    found = estimate.estimate(
        {"teachers": planned.teachers, "students": planned.students},
        states,
        here=here,
        parallel=_parallel(master, jobs) if here else None,
    )
    if found.kinds:
        print(found.line())


def _queue(
    planned: Sweep, states: Mapping[str, journal.RunState], launcher: submit.Queue, answer: submission.Answer | None
) -> None:
    # Its parent run is made by the first job that logs: there may be none, or none for hours.
    tracked = progress.SweepTracking(planned.id, planned.jobs[0].settings.tracking)
    with progress.watch(planned.jobs, parallel=len(planned.jobs)):
        vanished = submit.run(planned, states, launcher, answer)
    if vanished is None:
        return
    outcome = {job.run: journal.tail_state(job.directory) for job in planned.jobs}
    tracked.finish(outcome.values())
    if progress.show_summary(planned, outcome, vanished):
        raise SystemExit(1)


def _run(planned: Sweep, todo: Sequence[Job], master: DictConfig, launcher: Launcher) -> None:
    threads = _threads_each(master, len(todo))
    known = provenance.read()
    files = {job.run: freeze(job, sweep=planned.id, threads=threads, planned_with=known) for job in todo}
    tracked = progress.SweepTracking(planned.id, planned.jobs[0].settings.tracking)
    tracked.start()
    outcome: dict[str, journal.RunState] = {}
    try:
        with progress.watch(todo, parallel=_parallel(master, len(todo))):
            for stage in (planned.teachers, planned.students):
                ready = [job for job in stage if job.run in files and not _orphan(job, planned, outcome)]
                _launch(ready, files, launcher)
                outcome |= {job.run: journal.tail_state(job.directory) for job in stage}
    finally:
        outcome = {job.run: journal.tail_state(job.directory) for job in planned.jobs}
        tracked.finish(outcome.values())
    if progress.show_summary(planned, outcome):
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
            ended = launcher.launch(
                [[f"+frozen={quoted(files[job.run].as_posix())}"] for job in jobs], initial_job_idx=first
            )
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
    line = str(error) if isinstance(error, EdkdError) else f"{type(error).__name__}: {error}"
    status = journal.tail_state(job.directory).status
    if status in ("new", "interrupted"):
        journal.Journal(job.directory / journal.FILE).append({"event": "failure", "error": line})
    elif status == "finished":  # a teacher that could not be put into the store
        LOG.warning("%s: %s", job.name, line)


def _marks(job: Job) -> tuple[str, str, int]:
    state = journal.tail_state(job.directory)
    return job.run, state.status, max(state.epochs, default=0)


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
