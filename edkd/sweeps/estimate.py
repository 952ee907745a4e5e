"""How long what is planned will take: from the journals of earlier runs.

A run costs what its epochs cost, and an epoch what it cost another run with the same networks, teacher (run in every
step, or remembered), data, batch size, precision and kind of device. A device hour is an hour of one run: runs side by
side count each.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edkd.config.instantiate import target
from edkd.config.job import Job
from edkd.config.schema import Settings
from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.rundir.journal import RunState
from edkd.training import hardware
from edkd.training.device import pick_device

LATEST = 8  # journals that are read of each method and pair


def wanted(value: object) -> bool:
    """What `+dry_run=VALUE` asks for. Raises EdkdError for anything but true and false."""
    if isinstance(value, bool):
        return value
    raise EdkdError(f"dry_run={value}: must be true or false")


class Kind(NamedTuple):
    """What an epoch's cost depends on, but for the device."""

    student: str  # how it is built, as JSON
    teacher: str | None
    mode: Literal["alone", "remembered", "online"]  # how the teacher takes part
    dataset: str  # key
    batch_size: int
    precision: str
    compiled: bool


def kind_of(dataset: str, values: Mapping[str, Any]) -> Kind:
    """The kind of a run from its configuration. Raises EdkdError, KeyError or TypeError for one that is not ours."""
    method = target(values["distiller"], "distiller")
    mode: Literal["alone", "remembered", "online"] = "alone"
    if method.needs_teacher:
        mode = "online" if method.needs_feats or not values["engine"]["teacher_cache"] else "remembered"
    return Kind(
        student=json.dumps(values["student"]["model"], sort_keys=True),
        teacher=json.dumps(values["teacher"]["model"], sort_keys=True) if method.needs_teacher else None,
        mode=mode,
        dataset=dataset,
        batch_size=values["schedule"]["batch_size"],
        precision=values["engine"]["precision"],
        compiled=bool(values["engine"].get("compile", False)),
    )


class Pace(NamedTuple):
    """What an epoch took in an earlier run."""

    seconds: float
    device: str
    threads: int | None
    method: str


def recorded(jobs: Iterable[Job]) -> dict[Kind, list[Pace]]:
    """The paces of earlier runs on the data and networks of these jobs: of each method, the latest few."""
    found: dict[Kind, list[Pace]] = {}
    for folder in {job.directory.parent for job in jobs}:
        by_method: dict[str, list[tuple[float, Path]]] = {}
        for path in folder.glob("*/"):
            try:
                changed = (path / journal.FILE).stat().st_mtime
            except OSError:
                continue
            by_method.setdefault(path.name.rpartition("-s")[0], []).append((changed, path))
        for runs in by_method.values():
            for _, path in sorted(runs, reverse=True)[:LATEST]:
                known = _pace(path)
                if known is not None:
                    found.setdefault(known[0], []).append(known[1])
    return found


def _pace(run_dir: Path) -> tuple[Kind, Pace] | None:
    """The kind of a run and the mean of its epochs; of one that is not finished, its last epoch."""
    try:
        known = journal.tail_state(run_dir)
        if known.start is None or known.last_epoch is None:
            return None
        seconds = sum(known.last_epoch["seconds"].values())
        if known.end is not None:
            seconds = known.end["seconds"] / known.end["last"]["epoch"]
        start = known.start
        pace = Pace(seconds, start["device"], start.get("threads"), start["tags"]["distiller"])
        return kind_of(run_dir.parent.parent.name, start["config"]), pace
    except (EdkdError, KeyError, TypeError, AttributeError, ZeroDivisionError):  # of another version, or damaged
        return None


@dataclass
class Estimate:
    """Seconds that are left, by stage, and where they are from."""

    stages: dict[str, list[float]] = field(default_factory=dict)  # of each run that is left and known
    parallel: int | None = None
    kinds: int = 0
    unknown: int = 0  # kinds
    sources: Counter[str] = field(default_factory=Counter)  # device -> kinds, of those that are recorded

    @property
    def seconds(self) -> float:
        """Of all runs together."""
        return sum(map(sum, self.stages.values()))

    @property
    def wall(self) -> float | None:
        """With as many runs at a time as the launcher starts, one stage after the other; None if that is not known."""
        if self.parallel is None:
            return None
        return sum(max(sum(each) / self.parallel, *each) for each in self.stages.values() if each)

    def line(self) -> str:
        """One line for a user."""
        if not self.kinds:
            return "estimate: nothing to train"
        networks = f"{self.unknown} of {self.kinds} networks"
        missing = f"no recorded step time for {networks}" if self.unknown else ""
        if self.unknown == self.kinds:
            return f"estimate: none yet, {missing}"
        stages = ", ".join(f"{name} {duration(sum(each))}" for name, each in self.stages.items())
        total = f"{'at least ' if self.unknown else ''}{stages}, {hours(self.seconds)} device hours in all"
        if self.wall is not None and self.parallel is not None and self.parallel > 1:
            total += f", {duration(self.wall)} with {self.parallel} runs at a time"
        known = [f"recorded on {device}: {n} network{'s' * (n > 1)}" for device, n in self.sources.items()]
        told = "; ".join(part for part in (", ".join(known), missing) if part)
        return f"estimate: {total}; {told}"


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 1.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def hours(seconds: float) -> str:
    """Hours with one decimal, or two digits where there are fewer."""
    return f"{seconds / 3600:,.1f}" if seconds >= 3600 else f"{seconds / 3600:.2g}"


def estimate(
    stages: Mapping[str, Sequence[Job]],
    states: Mapping[str, RunState],
    *,
    here: bool,
    parallel: int | None,
    threads: int | None,
) -> Estimate:
    """What is left of these jobs, by stage.

    here: whether the jobs run on this machine; only what was recorded on its device then counts, else that of any,
    GPUs first. parallel: how many run at a time, None if that is not known. threads: of each, where it does not say
    so itself.
    """
    left = {job.run: _epochs_left(job, states[job.run]) for jobs in stages.values() for job in jobs}
    jobs = [job for stage in stages.values() for job in stage if left[job.run]]
    kinds = {job.run: kind_of(job.settings.dataset.key, job.config) for job in jobs}
    book = recorded(jobs)
    found = Estimate(parallel=parallel, kinds=len(set(kinds.values())))
    seconds: dict[str, float] = {}
    told: dict[Kind, str] = {}
    for job in jobs:
        pace = _choose(book.get(kinds[job.run], ()), job, _device(job.settings) if here else None, threads)
        if pace is not None:
            told[kinds[job.run]] = pace.device
            seconds[job.run] = left[job.run] * pace.seconds
    found.sources = Counter(told.values())
    found.unknown = len({kinds[job.run] for job in jobs if job.run not in seconds})
    for name, stage in stages.items():
        known = [seconds[job.run] for job in stage if job.run in seconds]
        if known:
            found.stages[name] = known
    return found


def _epochs_left(job: Job, state: RunState) -> int:
    """Of what this command will train: what another process trains already is not its own."""
    if state.status in ("finished", "running"):
        return 0
    return max(0, job.settings.schedule.epochs - max(state.epochs, default=0))


def _choose(paces: Sequence[Pace], job: Job, device: str | None, threads: int | None) -> Pace | None:
    """The middle of those that fit best: the device first, then the number of CPU threads, then the method."""
    if device is None and paces:
        devices = Counter(pace.device for pace in paces)
        device = max(devices, key=lambda name: (not name.startswith("cpu "), devices[name]))
    fitting = [pace for pace in paces if pace.device == device]
    for alike in (
        lambda pace: pace.threads == (job.settings.engine.threads or threads),
        lambda pace: pace.method == job.settings.method,
    ):
        fitting = [pace for pace in fitting if alike(pace)] or fitting
    if not fitting:
        return None
    return fitting[0]._replace(seconds=statistics.median(pace.seconds for pace in fitting))


def _device(cfg: Settings) -> str:
    """The device of a run on this machine, as its journal would name it; empty if it is not there."""
    try:
        device = pick_device(cfg.engine.device)
    except EdkdError:
        return ""
    return hardware.device_name(device)
