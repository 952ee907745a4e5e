"""The compared modes of training. Each is made once for a cell and repeats the same few steps from the same weights.

`ready` and `run` alternate, and only `run` is timed. Ours run the code of a real run, over an epoch of a few batches.
The plain loop has its own process: part of what makes ours fast is set for a whole process (how memory is kept, which
algorithms cuDNN takes) and must not leak into the loop. Runs side by side have a process each.
"""

import copy
import functools
import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from edkd.bench import measure, plain
from edkd.bench.workload import Workload, networks
from edkd.config.schema import Settings
from edkd.data import _torchvision
from edkd.data.arrays import Arrays
from edkd.errors import EdkdError
from edkd.runs.inputs import Inputs, device_data
from edkd.runs.method import new_state
from edkd.runs.teacher_source import teacher_source
from edkd.teachers.source import Precision
from edkd.training.device import pick_device, set_up, to_device
from edkd.training.step import EAGER_FIRST, Step
from edkd.training.trainer import train_epoch


@dataclass(frozen=True)
class Way:
    """What distinguishes a mode of ours from the others."""

    label: str
    precision: Literal["fp32", "bf16"] = "fp32"
    cache: str = "none"  # none: the teacher network in every step; cold: an empty table each time; warm: a full one
    capture: bool = False


PLAIN, TOGETHER = "plain", "together"
WAYS = {
    "online": Way("(b) ours, teacher online"),
    "cold": Way("(c) cache cold", cache="cold"),
    "warm": Way("(d) cache warm", cache="warm"),
    "bf16": Way("(e) warm, bf16", precision="bf16", cache="warm"),
    "captured": Way("(f) captured step", cache="warm", capture=True),
    "captured_bf16": Way("(f) captured, bf16", precision="bf16", cache="warm", capture=True),
}
LABELS = {PLAIN: "(a) plain loop", **{name: way.label for name, way in WAYS.items()}, TOGETHER: "(f) side by side"}
LULL = 0.1  # seconds for the plain loop's workers to finish what its last step asked of them


def choose(asked: list[str] | None, device: torch.device) -> list[str]:
    """The modes that were asked for, in the order of the table, or all that the device has. Raises EdkdError."""
    everywhere = [PLAIN, *(name for name, way in WAYS.items() if not way.capture)]
    possible = list(LABELS) if device.type == "cuda" else everywhere
    for name in asked or []:
        if name not in possible:
            raise EdkdError(f"--modes={name}: no such mode on this device; allowed: {', '.join(possible)}")
    return [name for name in possible if asked is None or name in asked]


_prepared: dict[str, "Plain | Ours"] = {}  # in this process, for the present cell


def prepare(name: str, cfg: Settings, work: Workload) -> float | None:
    """Make and warm up a mode, in place of the earlier one of this name; returns its peak memory in MB."""
    _prepared.pop(name, None)  # frees its memory
    pick_device(str(work.device))  # also makes it this process's current device
    if name == PLAIN:
        _torchvision.load()  # before the measurement: libraries do not count
    memory = measure.Memory(work.device)
    mode = Plain(cfg, work) if name == PLAIN else Ours(WAYS[name], cfg, work)
    memory.restart()
    mode.ready()
    mode.run()
    _prepared[name] = mode
    return memory.peak(children=name == PLAIN)


def train(name: str, epochs: int) -> tuple[float, float]:
    """Train this many cut epochs from the first weights.

    Returns when that began and ended, in seconds of the machine's monotonic clock, which all processes share.
    """
    mode = _prepared[name]
    mode.ready()
    measure.wait(mode.work.device)
    began = time.monotonic()
    for _ in range(epochs):
        mode.run()
    measure.wait(mode.work.device)
    ended = time.monotonic()
    if name == PLAIN:
        time.sleep(LULL)
    return began, ended


class Plain:
    """The plain loop, with torch as it comes and cuDNN choosing its algorithms by trial."""

    def __init__(self, cfg: Settings, work: Workload) -> None:
        torch.set_num_threads(work.threads)
        torch.backends.cudnn.benchmark = True
        self.cfg, self.work = cfg, work
        self.loss = functools.partial(plain.LOSSES[cfg.method], cfg=cfg.distiller)
        teacher, student = networks(cfg, work)
        self.teacher, self.student = teacher.to(work.device), student.to(work.device)
        self.first = copy.deepcopy(self.student.state_dict())
        assert isinstance(work.arrays, Arrays)
        self.loader = plain.loader(
            work.arrays.train, cfg.dataset, batch_size=cfg.schedule.batch_size, workers=work.workers, device=work.device
        )
        self.batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(self.loader))
        self.ready()
        self.run()

    def ready(self) -> None:
        """Go back to the first weights; on a GPU, use up the batches that the workers made in the pause."""
        self.student.load_state_dict(self.first)
        schedule = self.cfg.schedule
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=schedule.rate(1),
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
        )
        if self.work.device.type == "cuda":
            self._train((self.loader.prefetch_factor or 0) * self.work.workers)

    def run(self) -> dict[str, float]:
        """Train for the steps of one repetition; returns the averages that a progress line shows."""
        return self._train(self.work.steps)

    def _train(self, steps: int) -> dict[str, float]:
        batches = itertools.islice(self.batches, steps)
        networks = self.teacher, self.student
        return plain.train(*networks, self.optimizer, self.loss, batches, epoch=1, device=self.work.device)


class Ours:
    """`trainer.train_epoch` over data on the device, with the teacher that a run of this configuration gets."""

    def __init__(self, way: Way, cfg: Settings, work: Workload) -> None:
        self.way, self.work = way, work
        engine = replace(cfg.engine, precision=way.precision, teacher_cache=way.cache != "none", capture=way.capture)
        self.cfg = replace(cfg, engine=engine, output=str(work.folder / way.cache))
        set_up(engine, work.threads)
        self.teacher = to_device(networks(cfg, work)[0], engine, work.device)
        name = f"untrained {cfg.teacher.name}"  # its forward pass takes as long as a trained one's
        note = {"id": name, "sha256": name, "top1": 0.0}
        self.inputs = Inputs(work.cut, "cut for the benchmark", work.device, self.teacher, note)
        self.state = new_state(self.cfg, replace(self.inputs, arrays=work.arrays))  # memories as large as a run's
        self.first = copy.deepcopy(self.state.student.state_dict())
        self.precision = Precision(way.precision, work.device)
        self.data = device_data(work.cut, self.cfg, work.device).train
        self.step = self._step()
        # One epoch fills the cache, whose table the methods of a pair share, as runs do; a capture takes more.
        for _ in range(1 + (EAGER_FIRST // work.steps if way.capture else 0)):
            self.run()
        if way.capture and not self.step.graphs:
            raise EdkdError(f"{way.label}: no CUDA graph was recorded")

    def ready(self) -> None:
        """Go back to the first weights and zeroed buffers of the optimiser; if the mode is cold, empty the cache."""
        self.state.student.load_state_dict(self.first)
        for memory in self.state.optimizer.state.values():
            for buffer in memory.values():
                buffer.zero_()
        if self.way.cache == "cold":
            self.step = self._step()

    def run(self) -> dict[str, float]:
        """Train for an epoch without advancing the progress, so that all repetitions see the same views."""
        return train_epoch(self.state, self.step, self.cfg.schedule, seed=self.cfg.seed)

    def _step(self) -> Step:
        cfg, state = self.cfg, self.state
        if self.way.cache == "cold":
            shutil.rmtree(cfg.output, ignore_errors=True)
        source = teacher_source(cfg, self.inputs, self.data, state.distiller.needs_feats)
        batch = cfg.schedule.batch_size
        return Step(state.trainable, state.optimizer, source, self.data, batch_size=batch, capture=cfg.engine.capture)
