"""How long what is planned will take: from the journals of earlier runs.

A run costs what its epochs cost, and an epoch what it cost another run with the same networks, teacher (run in every
step, or remembered), data, batch size, precision and device. A device hour is an hour of one run.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edkd.config.job import Job
from edkd.config.schema import target
from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.rundir.journal import RunState
from edkd.training import hardware
from edkd.training.device import pick_device

LATEST = 24  # journals that are read of each pair


def wanted(value: object) -> bool:
    """What `+dry_run=VALUE` asks for. Raises EdkdError for anything but true and false."""
    if isinstance(value, bool):
        return value
    raise EdkdError(f"dry_run={value}: must be true or false")


@dataclass
class Estimate:
    """Seconds that are left, by stage, and where they are from."""

    stages: dict[str, list[float]] = field(default_factory=dict)  # of each run that is left and known
    parallel: int | None = None
    kinds: int = 0
    unknown: int = 0  # kinds
    sources: Counter[str] = field(default_factory=Counter)  # device -> kinds, of those that are recorded

    def line(self) -> str:
        """One line for a user."""
        if not self.kinds:
            return "estimate: nothing to train"
        missing = f"no recorded step time for {self.unknown} of {self.kinds} networks"
        if self.unknown == self.kinds:
            return f"estimate: none yet, {missing}"
        stages = ", ".join(f"{name} {duration(sum(each))}" for name, each in self.stages.items())
        total = f"{stages}, {_hours(sum(map(sum, self.stages.values())))} device hours in all"
        if self.parallel is not None and self.parallel > 1:
            wall = sum(max(sum(each) / self.parallel, *each) for each in self.stages.values())
            total += f", {duration(wall)} with {self.parallel} runs at a time"
        known = [f"recorded on {device}: {n} network{'s' * (n > 1)}" for device, n in self.sources.items()]
        if self.unknown:
            total, known = f"at least {total}", [*known, missing]
        return f"estimate: {'; '.join([total, *known])}"


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 1.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}" if seconds >= 3600 else f"{seconds / 3600:.2g}"


def estimate(
    stages: Mapping[str, Sequence[Job]], states: Mapping[str, RunState], *, here: bool, parallel: int | None
) -> Estimate:
    """What is left of these jobs, by stage.

    here: whether the jobs run on this machine; only what was recorded on its device then counts, else that of any,
    GPUs first. parallel: how many run at a time, None if that is not known.
    """
    left = {job.run: _epochs_left(job, states[job.run]) for jobs in stages.values() for job in jobs}
    todo = [job for jobs in stages.values() for job in jobs if left[job.run]]
    kinds = {job.run: _kind(job.settings.dataset.key, job.config) for job in todo}
    recorded = _recorded({job.directory.parent for job in todo})
    paces: dict[str, tuple[str, float]] = {}  # of each kind: the device, and the seconds of an epoch
    for kind, job in {kinds[job.run]: job for job in todo}.items():
        devices = recorded.get(kind, {})
        device = _device(job) if here else max(devices, key=lambda name: not name.startswith("cpu "), default="")
        if device in devices:
            paces[kind] = device, statistics.median(devices[device])
    found = Estimate(parallel=parallel, kinds=len(set(kinds.values())))
    found.unknown = found.kinds - len(paces)
    found.sources = Counter(device for device, _ in paces.values())
    for name, jobs in stages.items():
        known = [left[job.run] * paces[kinds[job.run]][1] for job in jobs if kinds.get(job.run) in paces]
        if known:
            found.stages[name] = known
    return found


def _epochs_left(job: Job, state: RunState) -> int:
    """Of what this command will train: what another process trains already is not its own."""
    if state.status in ("finished", "running"):
        return 0
    return max(0, job.settings.schedule.epochs - max(state.epochs, default=0))


def _kind(dataset: str, cfg: Mapping[str, Any]) -> str:
    """What an epoch's cost depends on, but for the device."""
    method, engine = target(cfg["distiller"], "distiller"), cfg["engine"]
    online = method.needs_feats or not engine["teacher_cache"]
    teacher = [cfg["teacher"]["model"], online] if method.needs_teacher else None
    computed = [cfg["schedule"]["batch_size"], engine["precision"], engine.get("compile", False)]
    return json.dumps([dataset, cfg["student"]["model"], teacher, *computed], sort_keys=True)


def _recorded(folders: Iterable[Path]) -> dict[str, dict[str, list[float]]]:
    """The seconds of an epoch by kind and device, from the latest runs in these folders."""
    found: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        for path in sorted(folder.glob(f"*/{journal.FILE}"), key=lambda path: path.stat().st_mtime)[-LATEST:]:
            try:
                known = journal.tail_state(path.parent)
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
