"""The composition root: `execute` turns a configuration into a finished run, in one process or in several."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch.multiprocessing import ProcessRaisedException

from edkd import console
from edkd.config.job import Job, freeze
from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.paths import RunDir, checkpoints
from edkd.runs.attempt import Attempt, remove_checkpoints
from edkd.runs.inputs import find_inputs, gather
from edkd.runs.preemption import Asked, Stopped
from edkd.runs.processes import LOST, Nodes, check_devices, failed, last_line, run_together, stopped
from edkd.runs.pruning import Pruned
from edkd.runs.teaching import is_lost, publish
from edkd.tracking import LiveTracker
from edkd.training import distributed
from edkd.training.device import cores, named_device, pick_device, set_up

LOG = logging.getLogger("edkd")


def execute(
    job: Job, *, sweep: str | None, show: bool, stop_asked: Asked | None = None, nodes: Nodes | None = None
) -> journal.RunState:
    """Run a job to its end, from its last checkpoint if there is one; a finished run is left as it is.

    `stop_asked` is called at safe points, and ends the run there with `Stopped`; the same call resumes it. If
    `engine.devices` are spread over several `nodes`, this one is the first. A finished run is trained again if it is to
    teach, and its network is neither in its directory nor in the store: its journal may come from elsewhere, without
    weights. A search may end its run early (`pruning`).

    Raises EdkdError for errors that the user can fix. Once the run's directory exists, journal and log record every
    error.
    """
    directory, cfg = job.directory, job.settings
    journal.read(directory)  # all of it: damage is found before anything is written
    before = journal.state(directory)
    if before.status == "finished" and not is_lost(job):
        assert before.end is not None
        publish(job, before.end)
        remove_checkpoints(directory)  # a kill after the journal's end may have left them
        return before
    threads = cpu_threads(job, before)
    set_up(cfg.engine, threads)
    with lock.hold(directory):
        now = journal.state(directory)
        if now.status == "finished" and not is_lost(job):  # by another process, since the look above
            return now
        if not RunDir(directory).config.exists():
            freeze(job, sweep=sweep, threads=None)
        with console.logging_to(RunDir(directory).log, show=show):
            _train_and_record(Attempt(job, now, sweep, threads, show, stop_asked), nodes)
    return journal.state(directory)


def assist(job: Job, nodes: Nodes, stop_asked: Asked) -> None:
    """Compute this node's part of a run, where another node is the first; it ends with the first one's part.

    Raises as `check_devices` and `run_together` do. The journal, which the first node writes, records none of it.
    """
    before = journal.state(job.directory)
    check_devices(job.settings.engine, named_device(job.settings.engine.device), nodes.count)
    attempt = Attempt(job, before, None, cpu_threads(job, before), False, stop_asked)
    run_together(_train_part, job.settings.engine.devices, nodes, attempt, nodes.count)


def cpu_threads(job: Job, before: journal.RunState) -> int:
    """The CPU threads of a run on a node.

    Sums over another number of threads differ in their last bits: a run that resumes keeps the number it began with.
    """
    if before.start is not None and checkpoints(job.directory):
        return int(before.start["threads"])
    return job.settings.engine.threads or job.threads or cores()


def _train_and_record(attempt: Attempt, nodes: Nodes | None) -> None:
    """Train, and record in the journal how the attempt ends."""
    job, engine = attempt.job, attempt.job.settings.engine
    with _tracker(attempt) as tracker:
        try:
            if engine.devices == 1:
                attempt.train(gather(job.settings, job.teacher_id), tracker)
            else:
                find_inputs(job.settings, job.teacher_id)  # downloads what is missing, once
                check_devices(engine, named_device(engine.device), nodes.count if nodes is not None else 1)
                with tempfile.TemporaryDirectory() as folder:
                    nodes = nodes or Nodes(1, 0, f"{folder}/meeting")
                    run_together(_train_part, engine.devices, nodes, attempt, nodes.count)
        except Pruned as pruned:
            attempt.journal.append({"event": "pruned", "epoch": pruned.epoch})
            LOG.info("%s: pruned after epoch %d, for its search has better trials", job.name, pruned.epoch)
        except (KeyboardInterrupt, Stopped):
            attempt.journal.append({"event": "interrupted"})
            raise
        except Exception as error:
            foreign = not isinstance(error, EdkdError)
            raised = f"{type(error).__name__}: {error}" if foreign else str(error)
            line = last_line(error) if isinstance(error, ProcessRaisedException) else raised
            LOG.error("%s failed: %s", job.name, line, exc_info=foreign)
            with contextlib.suppress(EdkdError):  # a full disk takes no record either: the first error matters
                attempt.journal.append({"event": "failure", "error": line})
            raise
        finally:
            if tracker is not None:
                tracker.notify()


@contextlib.contextmanager
def _tracker(attempt: Attempt) -> Iterator[LiveTracker | None]:
    """Give MLflow's tracker, in the process that writes the run's files and if tracking is on; else None."""
    where = attempt.job.settings.tracking
    if where.uri is None or not attempt.writes:
        yield None
        return
    tracker = LiveTracker(attempt.directory, **vars(where))
    try:
        yield tracker
    finally:
        tracker.close()


def _train_part(number: int, first: int, meeting: str, attempt: Attempt, nodes: int) -> None:
    """Train as one of the `engine.devices` processes that `run_together` starts; rank 0 writes the run's files."""
    job, engine, rank = attempt.job, attempt.job.settings.engine, first + number
    set_up(engine, max(1, attempt.threads * nodes // engine.devices))
    if pick_device(engine.device).type == "cuda":
        job = replace(job, settings=replace(job.settings, engine=replace(engine, device=f"cuda:{number}")))
    store = distributed.open_store(meeting)
    # The first node writes run.log; another node's processes log to SLURM's log.
    log = RunDir(job.directory).log if first == 0 else Path(os.devnull)
    show = attempt.show and rank == 0
    with console.logging_to(log, show=first > 0 or show):
        try:
            inputs = gather(job.settings, job.teacher_id)
            with distributed.joined(rank, engine.devices, store, inputs.device):
                part = replace(attempt, job=job, show=show)
                with _tracker(part) as tracker:
                    try:
                        part.train(inputs, tracker)
                    except Stopped:
                        stopped(store)
        except EdkdError as error:
            failed(store, str(error))
            sys.exit(1)
        except RuntimeError as error:
            if distributed.lost_another(error):
                sys.exit(LOST)
            raise
