"""Carry out a sweep: plan it, run what is not finished, and sum up.

plan -> drop the finished, resume the interrupted -> missing teachers -> students -> summary
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from edkd.config.compose import Composer
from edkd.config.job import Job
from edkd.console import counted, size
from edkd.errors import EdkdError
from edkd.rundir.paths import forget_sweep, record_sweep, recorded_sweeps
from edkd.runs.inputs import find_teacher, load_arrays
from edkd.runs.method import streams, weights_size
from edkd.slurm import submit
from edkd.slurm.submission import Submission
from edkd.sweeps import progress, report
from edkd.sweeps.execution import look_at, outstanding, run, shares
from edkd.sweeps.plan import Sweep, expand, is_dry, make_plan, pair_lists
from edkd.sweeps.preview import show_plan, show_unreached, warn_outdated, warn_queued, warn_same_seed
from edkd.sweeps.retry import Retry
from edkd.training.device import pick_device


def sweep(arguments: Sequence[str], master: DictConfig, loader: ConfigLoader, launcher: Launcher) -> list[Any]:
    """Plan and run the sweep that the command line's overrides describe.

    Exits with code 1 after the summary if a job failed. Raises EdkdError for what is wrong with the command itself,
    before anything is launched or written.
    """
    if isinstance(launcher, submit.Queue):  # before the plan, which takes longer
        launcher.check()
    overrides, dry_run = parse(arguments, loader)
    named = {override.get_key_element() for override in overrides}
    if "pair" in named and (beside := sorted(named & {"teacher", "student"})):  # they would silently replace the pair's
        raise EdkdError(f"pair= names teacher and student: leave out {' and '.join(f'{key}=' for key in beside)}")
    combinations = expand(overrides, pair_lists(overrides, master, loader))
    planned = make_plan(combinations, overrides, Composer(master, loader))
    carry_out(planned, master, launcher, dry_run=dry_run)
    return []


def parse(arguments: Sequence[str], loader: ConfigLoader) -> tuple[list[Override], bool]:
    """The command line's overrides without `+dry_run=…`, and its value."""
    overrides = OverridesParser.create(loader).parse_overrides(list(arguments))
    dry_run = is_dry(next((o.value() for o in overrides if o.key_or_group == "dry_run"), False))
    return [o for o in overrides if o.key_or_group != "dry_run"], dry_run


def carry_out(planned: Sweep, master: DictConfig, launcher: Launcher, *, dry_run: bool) -> None:
    """Show a plan and, unless `dry_run`, run it; exits with code 1 after the summary if a job failed.

    Raises EdkdError before anything is launched or written, or if jobs cannot be submitted to SLURM.
    """
    queue = launcher if isinstance(launcher, submit.Queue) else None
    if queue is not None:
        queue.check_devices(planned.jobs)
    statuses = look_at(planned, ask=queue is not None)
    states = {run: status.known for run, status in statuses.items()}
    parallel, _ = shares(master, len(planned.jobs))
    todo = outstanding(planned, statuses)
    show_plan(planned, statuses)
    warn_same_seed(todo)
    show_unreached(planned.jobs)
    warn_outdated(planned.jobs, states)
    if queue is None:
        warn_queued(job.directory for job in planned.jobs)
    stages = {"teachers": planned.teachers, "students": planned.students}
    estimate = progress.estimate(stages, states, here=parallel is not None, parallel=parallel)
    if estimate.kinds:
        print(estimate.line())
    if todo:
        print(_disk(todo))
    if parallel is not None:
        find_devices(todo)
    if dry_run:
        return
    prepare(todo, here=parallel is not None)
    where, output = planned.students[0].settings.tracking, Path(planned.students[0].settings.output)
    if all(status.state == "done" for status in statuses.values()) and not os.access(output, os.W_OK):
        report.show_summary(planned, statuses)  # another user's sweep
        return
    if where.uri is not None:
        report.open_tracking(where)
    recorded = planned.id in recorded_sweeps(output)
    if not (recorded and isinstance(planned, Retry)):  # whose sweep may have more runs than these
        record_sweep(output, planned.id, [job.name for job in planned.jobs])
    try:
        outcome = run(planned, statuses, master, launcher)
    except EdkdError:
        submissions = [Submission.read(job.directory) for job in planned.jobs]
        if queue and not recorded and not any(each is not None and each.sweep == planned.id for each in submissions):
            forget_sweep(output, planned.id)  # nothing of it was submitted
        raise
    if outcome and where.uri is not None:
        report.log_best_student(planned, outcome)
    if outcome and report.show_summary(planned, outcome):
        raise SystemExit(1)


def _disk(jobs: Sequence[Job]) -> str:
    """One line: what the jobs' weights take in the end, and that the teachers' logits come to it."""
    needed = 2 * sum(weights_size(job.settings) for job in jobs)  # last.pt and best.pt
    cached = {job.settings.teacher.name for job in jobs if job.settings.looks_into_table and not streams(job.settings)}
    logits = f", beside the logits of {counted(len(cached), 'teacher')} (see docs/teacher-cache.md)" if cached else ""
    return f"disk: {size(needed)} of weights at the end{logits}"


def find_devices(jobs: Iterable[Job]) -> None:
    """Raise EdkdError if a device of some jobs is not on this machine."""
    for device in {job.settings.engine.device for job in jobs}:
        pick_device(device)


def prepare(jobs: Iterable[Job], *, here: bool) -> None:
    """Find what some jobs need before the first is launched: their data if they run `here`, and weights."""
    jobs = list(jobs)
    if here:
        for cfg in {job.settings.dataset.key: job.settings for job in jobs}.values():
            load_arrays(cfg)
    for job in jobs:
        if job.settings.needs_teacher and job.settings.teacher.weights is not None:
            find_teacher(job.settings)  # now, because a compute node may have no network to download from
