"""Show what a sweep will do before it does it: its runs with their states, and what its values make of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from edkd.config.job import Job, directory_of, labels, training_run
from edkd.console import console, counted
from edkd.rundir import provenance
from edkd.rundir.journal import RunState
from edkd.rundir.paths import DIRECTORY_NAME, RunDir
from edkd.runs.teaching import is_lost
from edkd.status.state import RunStatus, look
from edkd.sweeps.plan import Sweep

LONG_PLAN = 60  # rows; for a longer plan, only the numbers are shown
DONE, LOST = "done", "done, to train again: its network is gone"


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


def warn_same_seed(jobs: Iterable[Job]) -> None:
    """Print the seeds that some students share with the training of their teachers, in the store or among the jobs.

    All randomness of an epoch is a function of seed and epoch: such a student sees in each epoch what its teacher was
    trained on in that epoch, in the same order.
    """
    jobs = list(jobs)
    seeds: dict[str, int | None] = {job.run: job.settings.seed for job in jobs}
    shared: dict[int, list[str]] = {}
    for job in jobs:
        if run := training_run(job.teacher_id):
            if run not in seeds:  # one look at the disk for each teacher
                directory = directory_of(run, job.settings)
                named = DIRECTORY_NAME.fullmatch(directory.name) if directory is not None else None
                seeds[run] = int(named["seed"]) if named else None
            if seeds[run] == job.settings.seed:
                shared.setdefault(job.settings.seed, []).append(job.settings.teacher.name)
    for seed, names in shared.items():
        print(
            f"WARNING: seed {seed} is also that of {', '.join(dict.fromkeys(names))}: in each epoch these students see "
            "what their teacher was trained on in that epoch; take other seeds (see Seeds in docs/results.md)"
        )


def warn_queued(directories: Iterable[Path]) -> None:
    """Print which of some runs wait in SLURM's queue, to a command that is to run them here."""
    submitted = [each for each in directories if RunDir(each).submission.exists()]
    waiting = [view for view in look(submitted) if view.in_queue and view.state == "waiting"]
    if waiting:
        numbers = ", ".join(dict.fromkeys(str(view.job).partition("_")[0] for view in waiting))
        console.print(
            f"WARNING: in SLURM's queue: {counted(len(waiting), 'run')} of this command (job {numbers}); `scancel` "
            "that, or let SLURM run them and wait with -m hydra/launcher=slurm",
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
