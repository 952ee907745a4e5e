"""Running a sweep: launch what the plan says, see what became of it, launch again what died, sum up.

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
from edkd.console import LOG, console
from edkd.errors import EdkdError
from edkd.rundir import journal, provenance
from edkd.runs.setup import load_arrays
from edkd.slurm import submit
from edkd.slurm.submission import Submission
from edkd.status import select
from edkd.status.state import UNSEEN, RunStatus, look
from edkd.status.wait import wait
from edkd.sweeps import estimate, progress
from edkd.sweeps.plan import Sweep, expand, key_of, make_plan, pair_lists
from edkd.sweeps.preconditions import open_tracking
from edkd.sweeps.retry import Retry
from edkd.training.device import cores, pick_device


def sweep(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launcher: Launcher) -> list[Any]:
    """Plan and run the sweep that the command line's overrides describe.

    Exits with code 1 after the summary if a job failed. Raises EdkdError for what is wrong with the command itself,
    before anything is launched or written.
    """
    if isinstance(launcher, submit.Queue):  # before the plan, which takes longer
        launcher.check()
    overrides = OverridesParser.create(loader).parse_overrides(list(arguments))
    dry_run = estimate.wanted(next((o.value() for o in overrides if key_of(o) == "dry_run"), False))
    overrides = [o for o in overrides if key_of(o) != "dry_run"]
    planned = make_plan(expand(overrides, pair_lists(overrides, master, loader)), overrides, master, loader)
    carry_out(planned, master, launcher, dry_run=dry_run)
    return []


def carry_out(planned: Sweep, master: DictConfig, launcher: Launcher, *, dry_run: bool) -> None:
    """Show a plan and, unless that is all that is wanted, run it.

    Exits with code 1 after the summary if a job failed. Raises EdkdError before anything is launched or written.
    """
    queue = launcher if isinstance(launcher, submit.Queue) else None
    statuses = _look(planned, ask=queue is not None)
    states = {run: status.known for run, status in statuses.items()}
    progress.show_plan(planned, statuses)
    progress.warn_outdated(planned.jobs, states)
    _show_estimate(planned, states, master)
    if dry_run:
        return
    if _runs_here(master):
        for cfg in {job.settings.dataset.key: job.settings for job in _todo(planned, statuses)}.values():
            pick_device(cfg.engine.device)
            load_arrays(cfg)
    open_tracking(planned.students[0].settings.tracking)
    output = Path(planned.students[0].settings.output)
    retried = isinstance(planned, Retry)  # the sweep has more runs than these
    recorded = retried or planned.id in select.recorded_sweeps(output)
    if not retried:
        select.record_sweep(output, planned.id, [job.name for job in planned.jobs])
    if queue is None:
        _run(planned, _todo(planned, statuses), master, launcher)
        return
    try:
        _queue(planned, statuses, queue)
    except EdkdError:
        submissions = [Submission.read(job.directory) for job in planned.jobs]
        if not recorded and not any(each is not None and each.sweep == planned.id for each in submissions):
            select.forget_sweep(output, planned.id)  # nothing of it was submitted
        raise


def _look(planned: Sweep, *, ask: bool) -> dict[str, RunStatus]:
    """What has become of the runs; unless SLURM is to be asked, what waits in its queue is taken for vanished."""
    found = look([job.directory for job in planned.jobs], **({} if ask else {"ask": lambda job_ids: {}}))
    return {job.run: status for job, status in zip(planned.jobs, found, strict=True)}


def _todo(planned: Sweep, statuses: Mapping[str, RunStatus]) -> list[Job]:
    """The jobs to launch. A teacher that is done, but not in the store, is put there again by its job."""
    active = ("waiting", "running")
    todo = [job for job in planned.teachers if statuses[job.run].state not in active]
    return todo + [job for job in planned.students if statuses[job.run].state not in (*active, "done")]


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


def _queue(planned: Sweep, statuses: Mapping[str, RunStatus], launcher: submit.Queue) -> None:
    """Submit what is neither done nor in the queue, and wait for all that is, unless the launcher is detached."""
    submit.require_sbatch()
    # Its parent run is made by the first job that logs: there may be none, or none for hours.
    tracked = progress.SweepTracking(planned.id, planned.jobs[0].settings.tracking)
    with progress.watch(planned.jobs, parallel=len(planned.jobs)):
        with submit.alone(Path(planned.jobs[0].settings.output) / "sweeps"):
            if any(Submission.read(job.directory) != statuses[job.run].submission for job in planned.jobs):
                statuses = _look(planned, ask=True)  # others have submitted some since
            unseen = sum(status.why == UNSEEN for status in statuses.values())
            if unseen:
                raise EdkdError(
                    f"SLURM does not answer, and may still have {unseen} of these runs in its queue: "
                    "`squeue` says why; the same command continues when it is back"
                )
            queued = {run: each.submission for run, each in statuses.items() if each.in_queue and each.submission}
            submitted = submit.submit(planned, {job.run for job in _todo(planned, statuses)}, queued, launcher)
        submit.show_submitted(submitted, queued, detached=launcher.detached)
        if launcher.detached:
            return
        try:
            ended = wait([job.directory for job in planned.jobs if job.run in submitted | queued], launcher.poll_s)
        except KeyboardInterrupt:
            console.print(
                "the jobs stay in SLURM's queue: `edkd status` shows them, the same command waits for them again"
            )
            raise
    outcome = _look(planned, ask=False)
    outcome |= {job.run: ended[job.directory] for job in planned.jobs if job.directory in ended}
    tracked.finish(outcome.values())
    if progress.show_summary(planned, outcome):
        raise SystemExit(1)


def _run(planned: Sweep, todo: Sequence[Job], master: DictConfig, launcher: Launcher) -> None:
    threads = _threads_each(master, len(todo))
    known = provenance.read()
    files = {job.run: freeze(job, sweep=planned.id, threads=threads, planned_with=known) for job in todo}
    tracked = progress.SweepTracking(planned.id, planned.jobs[0].settings.tracking)
    tracked.start()
    try:
        with progress.watch(todo, parallel=_parallel(master, len(todo))):
            for stage in (planned.teachers, planned.students):
                ready = [job for job in stage if job.run in files and not _lacks_teacher(job, planned)]
                _launch(ready, files, launcher)
    finally:
        outcome = _look(planned, ask=False)
        tracked.finish(outcome.values())
    if progress.show_summary(planned, outcome):
        raise SystemExit(1)


def _lacks_teacher(job: Job, planned: Sweep) -> bool:
    """Whether the job's teacher was to be trained in this sweep and was not."""
    teachers = {f"run:{teacher.run}": teacher for teacher in planned.teachers}
    teacher = teachers.get(job.teacher_id or "")
    return teacher is not None and journal.state(teacher.directory).status != "finished"


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
        jobs = [job for job in jobs if journal.state(job.directory).status in ("new", "interrupted")]


def _note(job: Job, error: Any) -> None:
    """See that the journal has a job's error: one from before the job could open its journal is not there yet."""
    line = str(error) if isinstance(error, EdkdError) else f"{type(error).__name__}: {error}"
    status = journal.state(job.directory).status
    if status in ("new", "interrupted"):
        journal.Journal(job.directory).append({"event": "failure", "error": line})
    elif status == "finished":  # a teacher that could not be put into the store
        LOG.warning("%s: %s", job.name, line)


def _marks(job: Job) -> tuple[str, str, int]:
    state = journal.state(job.directory)
    return job.run, state.status, state.epoch


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
