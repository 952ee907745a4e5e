"""How long runs take: an estimate for a plan from the journals of earlier runs, and the time left while it runs.

A run costs the sum of its epochs. An epoch costs what it cost another run with the same networks, teacher (run in every
step, or cached), data, batch size, precision, compilation and device. A device hour is an hour of one run.
"""

import contextlib
import json
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edkd.config.job import Job, labels
from edkd.config.schema import Settings, target
from edkd.console import console, counted, duration
from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.rundir.journal import RunState
from edkd.rundir.paths import JOURNAL, RunDir
from edkd.status.state import one_line
from edkd.training import hardware
from edkd.training.device import pick_device

LATEST = 24  # journals that are read of each pair
POLL = 0.5  # seconds between two reads of the journals of running jobs
LINES = 8  # runs that are shown at a time


@dataclass
class Estimate:
    """The remaining seconds by stage, and the devices on which their epochs were timed."""

    stages: dict[str, list[float]] = field(default_factory=dict)  # seconds of each remaining run whose pace is known
    parallel: int | None = None
    kinds: int = 0
    unknown: int = 0  # kinds without a recorded pace
    sources: Counter[str] = field(default_factory=Counter)  # device -> number of kinds with a pace recorded there

    def line(self) -> str:
        """One line for a user."""
        if not self.kinds:
            return "estimate: nothing to train"
        missing = f"no recorded step time for {self.unknown} of {self.kinds} networks"
        if self.unknown == self.kinds:
            return f"estimate: none yet, {missing}"
        stages = ", ".join(f"{name} {duration(sum(each))}" for name, each in self.stages.items())
        hours = sum(map(sum, self.stages.values())) / 3600
        total = f"{stages}, {hours:{',.1f' if hours >= 1 else '.2g'}} device hours in all"
        if self.parallel is not None and self.parallel > 1:
            wall = sum(max(sum(each) / self.parallel, *each) for each in self.stages.values())
            total += f", {duration(wall)} with {self.parallel} runs at a time"
        known = [f"recorded on {device}: {counted(n, 'network')}" for device, n in self.sources.items()]
        if self.unknown:
            total, known = f"at least {total}", [*known, missing]
        return f"estimate: {'; '.join([total, *known])}"


def estimate(
    stages: Mapping[str, Sequence[Job]], states: Mapping[str, RunState], *, here: bool, parallel: int | None
) -> Estimate:
    """Estimate the remaining time of these jobs, by stage.

    here: whether the jobs run on this machine. If so, only records of its device count; else those of any device,
    GPUs first. parallel: how many run at a time, None if that is not known.
    """
    left = {job.run: _epochs_left(job, states[job.run]) for jobs in stages.values() for job in jobs}
    todo = [job for jobs in stages.values() for job in jobs if left[job.run]]
    kinds = {job.run: _kind(job.settings.dataset.key, job.config) for job in todo}
    recorded = _recorded({job.directory.parent for job in todo})
    paces: dict[str, tuple[str, float]] = {}  # of each kind: the device, and the seconds of an epoch
    for kind, job in {kinds[job.run]: job for job in todo if kinds[job.run] in recorded}.items():
        devices = recorded[kind]
        device = _device(job) if here else max(devices, key=lambda name: not name.startswith("cpu "), default="")
        if device in devices:
            paces[kind] = device, statistics.median(devices[device])
    known = {
        name: [left[job.run] * paces[kinds[job.run]][1] for job in jobs if kinds.get(job.run) in paces]
        for name, jobs in stages.items()
    }
    count = len(set(kinds.values()))
    return Estimate(
        stages={name: seconds for name, seconds in known.items() if seconds},
        parallel=parallel,
        kinds=count,
        unknown=count - len(paces),
        sources=Counter(device for device, _ in paces.values()),
    )


def _epochs_left(job: Job, state: RunState) -> int:
    """The epochs that this command will train; none for a run that another process trains already."""
    if state.status in ("finished", "running"):
        return 0
    return max(0, job.settings.schedule.epochs - state.epoch)


def _kind(dataset: str, cfg: Mapping[str, Any]) -> str:
    """What an epoch's cost depends on, but for the device."""
    method, engine = target(cfg["distiller"], "distiller"), cfg["engine"]
    online = method.needs_feats or not engine["teacher_cache"]
    teacher = [cfg["teacher"]["model"], online] if method.needs_teacher else None
    computed = [cfg["schedule"]["batch_size"], engine["precision"], engine.get("compile", False)]
    computed += [method.needs_strong_view, engine.get("devices", 1)]
    return json.dumps([dataset, cfg["student"]["model"], teacher, *computed], sort_keys=True)


def _recorded(folders: Iterable[Path]) -> dict[str, dict[str, list[float]]]:
    """The seconds of an epoch by kind and device, from the latest runs in these folders."""
    found: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        for path in sorted(folder.glob(f"*/{JOURNAL}"), key=_written)[-LATEST:]:
            try:
                known = journal.state(path.parent)
                if known.start is None or known.last_epoch is None:
                    continue
                seconds = sum(known.last_epoch["seconds"].values())
                if known.end is not None:
                    seconds = known.end["seconds"] / known.end["last"]["epoch"]
                kind, device = _kind(folder.parent.name, known.start["config"]), known.start["device"]
            except (EdkdError, KeyError, TypeError, AttributeError, ZeroDivisionError):  # another version, or damaged
                continue
            found.setdefault(kind, {}).setdefault(device, []).append(seconds)
    return found


def _device(job: Job) -> str:
    """The device of a run on this machine, as its journal would name it; empty if it is not there."""
    try:
        return hardware.device_name(pick_device(job.settings.engine.device))
    except EdkdError:
        return ""


@contextlib.contextmanager
def watch(jobs: Sequence[Job], parallel: int) -> Iterator[None]:
    """Show the progress of jobs while the block runs: bars on a terminal, and a line for each run that ends."""
    stop = threading.Event()
    view = _View(jobs, parallel)
    shown = Live(view.screen(), console=console, transient=True, auto_refresh=False)
    with shown if jobs and console.is_terminal else contextlib.nullcontext() as live:
        thread = threading.Thread(target=view.follow, args=(stop, live), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class _View:
    """The journals of some jobs, as a bar over all and a line for each that runs."""

    def __init__(self, jobs: Sequence[Job], parallel: int) -> None:
        self.jobs, self.parallel = list(jobs), parallel
        self.labels = {run: f" {label}" if label else "" for run, label in labels(jobs).items()}
        self.began = time.monotonic()
        # Read the times before the states, so that a record written in between is shown, not missed.
        self.seen = {job.run: _written(RunDir(job.directory).journal) for job in jobs}
        self.states = {job.run: journal.state(job.directory) for job in jobs}
        self.ended: dict[str, str] = {}  # run -> status, of the runs that ended since the watch began
        self.most = 0  # the largest number of jobs seen running at a time
        self.total = sum(job.settings.schedule.epochs for job in jobs)

    def follow(self, stop: threading.Event, live: Live | None) -> None:
        last = False
        while not last:
            last = stop.wait(POLL)
            self.refresh()
            if live is not None:
                live.update(self.screen(), refresh=True)

    def refresh(self) -> None:
        """Read the journals that have changed."""
        for job in self.jobs:
            changed = _written(RunDir(job.directory).journal)
            if changed != self.seen[job.run] and self.ended.get(job.run) != "finished":
                with contextlib.suppress(EdkdError):
                    self.states[job.run] = journal.state(job.directory)
                    self.seen[job.run] = changed
                    self._show_end(job, self.states[job.run])

    def screen(self) -> Group:
        """The terminal's screen: the progress of all jobs, and accuracy and pace of the running ones."""
        trained = sum(state.epoch for state in self.states.values())
        done = sum(state.status == "finished" for state in self.states.values())
        left = self.seconds_left()
        times = duration(time.monotonic() - self.began) + (f", {duration(left)} left" if left is not None else "")
        whole = Table.grid(padding=(0, 1))
        whole.add_row(
            f"runs {done}/{len(self.jobs)} · epochs {trained}/{self.total}",
            ProgressBar(total=self.total, completed=trained, width=12),
            times,
        )
        running = [job for job in self.jobs if self.states[job.run].status == "running"]
        runs = Table.grid(padding=(0, 2))
        runs.add_column(overflow="ellipsis")  # on a narrow terminal the names are cut, not the numbers
        for _ in range(4):
            runs.add_column(justify="right", no_wrap=True)
        for job in running[:LINES]:
            runs.add_row(*_line(job, self.labels[job.run], self.states[job.run]))
        more = [f"and {len(running) - LINES} more runs"] if len(running) > LINES else []
        return Group(whole, runs, *more)

    def _show_end(self, job: Job, state: RunState) -> None:
        if state.status not in ("finished", "pruned", "failed"):
            return
        self.ended[job.run] = state.status
        said = f"failed: {one_line(state.error or 'without a message')}"
        if state.status == "pruned":
            said = f"pruned after epoch {state.epoch}"
        if state.end is not None:
            last, best = state.end["last"]["top1"], state.end["best"]["top1"]
            said = f"top-1 last {last:.2f} %, best {best:.2f} %, {duration(state.end['seconds'])}"
        console.print(f"{job.name}{self.labels[job.run]}: {said}", markup=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Estimate by the last epoch of each run itself, else the mean of its pair, else of all; None without any."""
        known: dict[str, list[float]] = {}
        for job in self.jobs:
            last = self.states[job.run].last_epoch
            if last is not None:
                for key in (job.run, job.settings.pair, ""):
                    known.setdefault(key, []).append(sum(last["seconds"].values()))
        if not known:
            return None
        left: dict[str, float] = {}
        for job in self.jobs:
            if job.run not in self.ended and self.states[job.run].status != "finished":
                costs = known.get(job.run) or known.get(job.settings.pair) or known[""]
                left[job.run] = (job.settings.schedule.epochs - self.states[job.run].epoch) * sum(costs) / len(costs)
        running = sum(self.states[run].status == "running" for run in left)
        self.most = max(self.most, running)
        return wall_time(self.jobs, left, self.parallel, self.most, waiting=running < len(left))


def wall_time(jobs: Sequence[Job], left: Mapping[str, float], parallel: int, most: int, *, waiting: bool) -> float:
    """The seconds until all runs end, from the seconds `left` of each; students of runs in `left` come second.

    parallel: how many may run at a time. most: how many ever did; while some wait, no more are expected to.
    """
    at_once = min(parallel, most) if waiting and most else parallel
    teachers = {f"run:{run}" for run in left}
    stages: dict[bool, list[float]] = {}
    for job in jobs:
        if job.run in left:
            stages.setdefault(job.teacher_id in teachers, []).append(left[job.run])
    return sum(max(sum(each) / (parallel if later else at_once), *each) for later, each in stages.items())


def _line(job: Job, label: str, state: RunState) -> Iterator[Text]:
    """A run's name with label, its epoch and, after the first, accuracy, images per second and the time left."""
    cfg, last = job.settings, state.last_epoch
    yield Text(f"  {cfg.pair} {cfg.method}-s{cfg.seed}{label}", no_wrap=True)
    yield Text(f"epoch {state.epoch}/{cfg.schedule.epochs}")
    if last is not None:
        left = (cfg.schedule.epochs - state.epoch) * sum(last["seconds"].values()) - (time.time() - last["time"])
        yield Text(f"{last['metrics']['test/top1']:.2f} %")
        yield Text(f"{last['images_per_second']:,.0f} images/s")
        yield Text(f"{duration(max(0.0, left))} left")


def _written(path: Path) -> float:
    """When a journal was written to last; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def warn_if_busy(cfg: Settings, threads: int) -> None:
    """Warn if other processes use this machine's cores: the threads of a run on the CPU would wait for each other."""
    threads, load, there = cfg.engine.threads or threads, os.getloadavg()[0], os.cpu_count() or 1
    if threads > 1 and load > there / 2 and pick_device(cfg.engine.device).type == "cpu":
        console.print(
            f"WARNING: other processes hold the cores (a load of {load:.1f} on {there}), and the {threads} threads of "
            "a run will wait for each other: engine.threads=1 waits for none, and -m hydra/launcher=local has several "
            "such runs side by side; see docs/performance.md",
            markup=False,
            soft_wrap=True,
        )
