"""What a sweep leaves behind: its summary on the terminal, and its parent run in MLflow."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from edkd import tracking
from edkd.config.schema import Tracking
from edkd.console import LOG
from edkd.errors import EdkdError
from edkd.slurm.submit import Planned
from edkd.status.state import RunStatus


def show_summary(planned: Planned, outcome: Mapping[str, RunStatus]) -> int:
    """Print what became of the sweep, each failure with its log, and return the number of runs that are not done."""
    jobs = [*planned.teachers, *planned.students]
    lost = [job for job in jobs if outcome[job.run].state != "done"]
    print(f"sweep {planned.id}: {len(jobs) - len(lost)} of {len(jobs)} runs finished")
    failed_teachers = {f"run:{job.run}" for job in planned.teachers if job in lost}
    for job in lost:
        status, log = outcome[job.run], job.directory / "run.log"
        if job.teacher_id in failed_teachers and status.state != "running":
            began = "failed" if status.state == "failed" else "not started"
            print(f"  {job.name} {began}: its teacher {job.settings.teacher.name} is not trained yet")
            continue
        if status.state == "failed":
            what = f"failed: {status.why}"
        elif status.state == "running":
            holder = status.known.holder or {}
            what = f"is running in another process (pid {holder.get('pid')} on {holder.get('host')})"
        elif status.state == "new":
            what = "not started"
        elif status.state == "interrupted":
            what = f"interrupted after epoch {status.epoch}"
        else:
            what = f"vanished after epoch {status.epoch}: {status.why_vanished}"
        print(f"  {job.name} {what}" + (f"; see {log}" if log.exists() else ""))
    if lost:
        print("run the same command again to continue")
    return len(lost)


def open_tracking(where: Tracking) -> None:
    """Create MLflow's store before any run needs it.

    A SQLite file that cannot be used is an error now; a server that is away costs nothing but `edkd sync` later.
    """
    try:
        tracking.create_store(**vars(where))
    except EdkdError as error:
        if not str(where.uri).startswith(("http://", "https://")):
            raise EdkdError(f"{error}; or run with tracking=journal") from error
        LOG.warning("%s; training goes on, `edkd sync` brings MLflow up to date later", error)


def track_start(sweep: str, where: Tracking) -> None:
    """Make the sweep's parent run in MLflow, so that every child finds it. What goes wrong changes nothing."""
    with _tolerant():
        tracking.start_sweep(sweep, **vars(where))


def track_end(sweep: str, where: Tracking, outcome: Iterable[RunStatus]) -> None:
    """Give the parent run its status and the number of runs in each state. What goes wrong changes nothing."""
    if where.uri is not None:
        counts = Counter(str(status.known.status) for status in outcome)
        with _tolerant():
            tracking.settle_sweeps({sweep: counts}, **vars(where))


@contextlib.contextmanager
def _tolerant() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever MLflow raises
        LOG.warning("%s; `edkd sync` brings MLflow up to date later", error)
