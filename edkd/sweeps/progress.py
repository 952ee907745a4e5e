"""What a sweep shows: its plan, its progress, its summary."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from edkd import tracking
from edkd.config.job import Job
from edkd.config.schema import Tracking
from edkd.console import LOG, console, counted, duration
from edkd.errors import EdkdError
from edkd.rundir import journal, provenance
from edkd.rundir.journal import RunState
from edkd.rundir.paths import RunDir
from edkd.slurm.submit import Planned
from edkd.status.state import RunStatus, one_line

LONG_PLAN = 60  # rows; of a longer plan only the numbers are shown
POLL = 0.5  # seconds


def show_plan(planned: Planned, statuses: Mapping[str, RunStatus]) -> None:
    """Print what the sweep will do: every run with its status, then the numbers."""
    stages = [("1 teacher", job) for job in planned.teachers] + [("2 student", job) for job in planned.students]
    if len(stages) <= LONG_PLAN:
        width = max(len(job.name) for _, job in stages)
        print(f"{'stage':<9}  {'run':<{width}}  state")
        for stage, job in stages:
            status = statuses[job.run]
            done = f", after epoch {status.epoch}" if status.state != "done" and status.epoch else ""
            which = f" (job {status.job})" if _active_in_slurm(status) else ""
            print(f"{stage}  {job.name:<{width}}  {_planned_as(status)}{which}{done}")
    counts = Counter(_planned_as(statuses[job.run]) for job in planned.students)
    numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
    missing = len(planned.teachers)
    print(f"sweep {planned.id}: {counted(len(planned.students), 'run')}: {numbers}; teachers to train first: {missing}")


def _active_in_slurm(status: RunStatus) -> bool:
    return status.state in ("waiting", "running") and status.job is not None


def _planned_as(status: RunStatus) -> str:
    if status.state == "done":
        return "finished"
    if _active_in_slurm(status):
        return f"{status.state} in SLURM"
    if status.state == "running":
        return "running elsewhere"
    if status.known.status == "failed":
        return "to resume (failed before)"
    return "new" if status.known.status == "new" else "to resume"


def show_summary(planned: Planned, outcome: Mapping[str, RunStatus]) -> int:
    """Print what became of the sweep, each failure with its log, and return the number of runs that are not done."""
    jobs = [*planned.teachers, *planned.students]
    lost = [job for job in jobs if outcome[job.run].state != "done"]
    print(f"sweep {planned.id}: {len(jobs) - len(lost)} of {len(jobs)} runs finished")
    failed_teachers = {f"run:{job.run}" for job in planned.teachers if job in lost}
    for job in lost:
        status = outcome[job.run]
        if status.state == "failed":
            what = f"failed: {status.why}"
        elif status.state == "running":
            holder = status.known.holder or {}
            what = f"is running in another process (pid {holder.get('pid')} on {holder.get('host')})"
        elif job.teacher_id in failed_teachers:
            what = f"not started: its teacher {job.settings.teacher.name} is not trained yet"
        elif status.state == "new":
            what = "not started"
        else:
            what = f"vanished after epoch {status.epoch}: {status.why_vanished}"
        log = RunDir(job.directory).log
        print(f"  {job.name} {what}" + (f"; see {log}" if log.exists() else ""))
    if lost:
        print("run the same command again to continue")
    return len(lost)


@contextlib.contextmanager
def watch(jobs: Sequence[Job], parallel: int) -> Iterator[None]:
    """Show the progress of jobs while the block runs: a bar on a terminal, and a line for each run that ends."""
    stop = threading.Event()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        # The names of what runs now take the rest of the line; on a narrow terminal they are cut, not the numbers.
        TextColumn("{task.fields[active]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        view = _View(jobs, parallel, progress)
        thread = threading.Thread(target=view.follow, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class _View:
    """The journals of some jobs, as a progress bar."""

    def __init__(self, jobs: Sequence[Job], parallel: int, progress: Progress) -> None:
        self.jobs, self.parallel, self.progress = list(jobs), parallel, progress
        # The time before the state: what is written in between is then shown, not missed.
        self.seen = {job.run: _changed(job) for job in jobs}
        self.states = {job.run: journal.state(job.directory) for job in jobs}
        self.done: set[str] = set()
        self.failed: set[str] = set()  # since the watch began
        total = sum(job.settings.schedule.epochs for job in jobs)
        self.overall: TaskID = progress.add_task("", total=total, left="", active="")

    def follow(self, stop: threading.Event) -> None:
        while not stop.wait(POLL):
            self.refresh()
        self.refresh()

    def refresh(self) -> None:
        for job in self.jobs:
            changed = _changed(job)
            if job.run not in self.done and changed != self.seen[job.run]:
                with contextlib.suppress(EdkdError):
                    self.states[job.run] = journal.state(job.directory)
                    self.seen[job.run] = changed
                    self._show_end(job)
        epochs = {job.run: self.states[job.run].epoch for job in self.jobs}
        running = [job for job in self.jobs if self.states[job.run].status == "running"]
        active = ", ".join(f"{j.settings.pair} {j.settings.method} {epochs[j.run]}" for j in running[:2])
        description = f"runs {len(self.done)}/{len(self.jobs)} · epochs {sum(epochs.values())}"
        left = self.seconds_left(epochs)
        self.progress.update(
            self.overall,
            completed=sum(epochs.values()),
            description=f"{description}/{self.total}",
            left=f"{duration(left)} left" if left is not None else "",
            active=active,
        )

    @property
    def total(self) -> int:
        return sum(job.settings.schedule.epochs for job in self.jobs)

    def _show_end(self, job: Job) -> None:
        state = self.states[job.run]
        if state.status == "finished" and state.end is not None:
            self.done.add(job.run)
            last, best = state.end["last"]["top1"], state.end["best"]["top1"]
            console.print(
                f"{job.name}: top-1 last {last:.2f} %, best {best:.2f} %, {state.end['seconds']:.0f} s", soft_wrap=True
            )
        elif state.status == "failed":
            self.failed.add(job.run)
            console.print(
                f"{job.name}: failed: {one_line(state.error or 'without a word')}", markup=False, soft_wrap=True
            )

    def seconds_left(self, epochs: Mapping[str, int]) -> float | None:
        """From the seconds that epochs took: the run's own, else those of its pair, else the mean of all."""
        known: dict[str, list[float]] = {}
        for job in self.jobs:
            last = self.states[job.run].last_epoch
            if last is not None:
                cost = sum(last["seconds"].values())
                for key in (job.run, job.settings.pair, ""):
                    known.setdefault(key, []).append(cost)
        if not known:
            return None
        left = 0.0
        for job in self.jobs:
            if job.run not in self.done | self.failed:
                costs = known.get(job.run) or known.get(job.settings.pair) or known[""]
                left += (job.settings.schedule.epochs - epochs[job.run]) * sum(costs) / len(costs)
        return left / self.parallel


def _changed(job: Job) -> float:
    """When the job's journal was written to last; 0 where there is none."""
    try:
        return RunDir(job.directory).journal.stat().st_mtime
    except OSError:
        return 0.0


class SweepTracking:
    """The sweep's parent run in MLflow; what goes wrong here is logged and changes nothing."""

    def __init__(self, sweep: str, where: Tracking) -> None:
        self.sweep, self.where = sweep, where
        self.place: dict[str, Any] = {"uri": where.uri, "experiment": where.experiment, "artifacts": where.artifacts}

    def start(self) -> None:
        """Make the parent run, so that every child finds it."""
        if self.where.uri is not None:
            with self._tolerant():
                tracking.start_sweep(self.sweep, **self.place)

    def finish(self, outcome: Iterable[RunStatus]) -> None:
        """Give the parent run its status and the number of runs in each state."""
        counts = Counter(str(status.known.status) for status in outcome)
        if self.where.uri is not None:
            with self._tolerant():
                tracking.settle_sweeps({self.sweep: counts}, **self.place)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever MLflow raises
            LOG.warning("%s; `edkd sync` brings MLflow up to date later", error)


def warn_outdated(jobs: Iterable[Job], states: Mapping[str, RunState]) -> None:
    """Name each finished run that the user's own classes, as they are now, would train in another way."""
    for job in jobs:
        if states[job.run].status != "finished" or not (states[job.run].first_start or {}).get("sources"):
            continue
        known = (states[job.run].start or {})["sources"]
        now = provenance.foreign(job.config)
        changed = [target for target, digest in known.items() if now.get(target) != digest]
        if changed:
            console.print(
                f"{job.name} was finished by another version of {', '.join(changed)}: "
                f"to train it with this one, move {job.directory} away",
                markup=False,
                soft_wrap=True,
            )
