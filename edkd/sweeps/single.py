"""One run, started by hand."""

from dataclasses import replace
from typing import Any

import torch

from edkd.config.job import make_job
from edkd.console import console, counted
from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.runs.inputs import find_inputs, gather, load_teacher, teacher_folder
from edkd.runs.method import check_method
from edkd.runs.pretrained import weights_id
from edkd.runs.processes import check_devices
from edkd.runs.run import execute
from edkd.runs.teaching import is_lost
from edkd.sweeps import progress
from edkd.sweeps.plan import is_dry, stored_teacher
from edkd.sweeps.preview import show_unreached, warn_outdated, warn_queued, warn_same_seed
from edkd.sweeps.report import next_steps, open_tracking
from edkd.teachers import store
from edkd.training.device import cores, named_device, set_up


def run_one(resolved: dict[str, Any], method: str) -> None:
    """Train the run that a configuration describes; with `+dry_run=true`, only describe that run.

    Raises EdkdError for bad input, a missing teacher, or a tracking store that cannot be written.
    """
    dry_run = is_dry(resolved.pop("dry_run", False))
    job = make_job(resolved, method, teacher_id=None)
    cfg = job.settings
    check_method(cfg)
    if cfg.needs_teacher:
        entry = stored_teacher(cfg)
        if entry is None and cfg.teacher.weights is None:
            raise store.missing(cfg.dataset.key, cfg.teacher.name, teacher_folder(cfg), cfg.teacher_seed)
        job = replace(job, teacher_id=weights_id(cfg) if entry is None else entry.id)
        if entry is not None and cfg.teacher_recipe == "strict" and entry.recipe not in (None, job.tags["recipe"]):
            raise EdkdError(
                f"teacher {entry.name} of {entry.dataset} has the recipe {entry.recipe}, this run "
                f"{job.tags['recipe']}, which teacher_recipe=strict refuses; "
                f"remove {entry.path} to train it anew with this command and -m"
            )
    show_unreached([job])
    warn_same_seed([job])
    warn_queued([job.directory])
    before = journal.state(job.directory)
    if dry_run and before.status == "finished" and not is_lost(job):
        console.print(f"{job.name} is finished, in {job.directory}", soft_wrap=True)
        return
    if dry_run:
        done = before.epoch
        console.print(
            f"would train {job.name} for {counted(cfg.schedule.epochs, 'epoch')}, {done} of them done, "
            f"in {job.directory}",
            soft_wrap=True,
        )
        found = progress.estimate({"run": [job]}, {job.run: before}, here=True, parallel=1)
        console.print(found.line(), soft_wrap=True)
        return
    set_up(cfg.engine)
    # Errors of data, device or teacher come before anything is written.
    if cfg.engine.devices == 1:
        gather(cfg, job.teacher_id)
    else:  # whose processes use the GPUs, and this one none
        arrays, _, entry = find_inputs(cfg, job.teacher_id)
        if entry is not None:
            load_teacher(cfg, entry, arrays.num_classes, torch.device("cpu"))
        check_devices(cfg.engine, named_device(cfg.engine.device), nodes=1)
    if cfg.tracking.uri is not None:
        open_tracking(cfg.tracking)
    warn_outdated([job], {job.run: before})
    progress.warn_if_busy(cfg, cores())
    try:
        finished = execute(job, sweep=None, show=True)
    except EdkdError:
        raise
    except Exception:
        if journal.state(job.directory).failure == before.failure:
            raise
        raise SystemExit(1) from None  # the log, which is shown, has the traceback
    assert finished.end is not None
    last, best = finished.end["last"], finished.end["best"]
    print(
        f"{job.name}{' (finished before)' if finished.end == before.end else ''}\ntop-1 last {last['top1']:.2f} %, "
        f"best {best['top1']:.2f} % (epoch {best['epoch']}, chosen on the {best['by']} set)\n"
        f"in {job.directory}; {next_steps(cfg)}"
    )
