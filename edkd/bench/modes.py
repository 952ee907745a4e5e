"""The ways to train that are compared: made once for a cell, each repeats the same few steps from the same weights.

`ready` and `run` alternate: only `run` is timed. Ours run the code of a real run, over an epoch cut to a few batches.
"""

import copy
import shutil
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from edkd.bench import plain
from edkd.bench.workload import Workload, inputs, networks
from edkd.config.schema import Settings
from edkd.errors import EdkdError
from edkd.runs.setup import device_data, new_state, teacher_source
from edkd.teachers.source import Precision
from edkd.training.device import set_up, to_device
from edkd.training.step import EAGER_FIRST, Step
from edkd.training.trainer import make_step, train_epoch


@dataclass(frozen=True)
class Way:
    """What distinguishes a mode of ours from the others."""

    label: str
    precision: Literal["fp32", "bf16"] = "fp32"
    cache: str = "none"  # none: the teacher network in every step; cold: an empty table each time; warm: a full one
    capture: bool = False


PLAIN = "plain"
WAYS = {
    "online": Way("(b) ours, teacher online"),
    "cold": Way("(c) cache cold", cache="cold"),
    "warm": Way("(d) cache warm", cache="warm"),
    "bf16": Way("(e) warm, bf16", precision="bf16", cache="warm"),
    "captured": Way("(f) captured step", cache="warm", capture=True),
    "captured_bf16": Way("(f) captured, bf16", precision="bf16", cache="warm", capture=True),
}
TOGETHER = "together"
LABELS = {PLAIN: "(a) plain loop", **{name: way.label for name, way in WAYS.items()}, TOGETHER: "(f) side by side"}
ON_CUDA = ("captured", "captured_bf16", TOGETHER)


class NotCapturedError(EdkdError):
    """The step of a mode that is to be captured ran one by one."""


class Mode(Protocol):
    """One way to train one cell."""

    def fill(self) -> None:
        """Bring about what the mode takes for granted, such as a full cache."""

    def ready(self) -> None:
        """Go back to the first weights, untimed."""

    def run(self) -> dict[str, float]:
        """Train for the steps of one repetition; what was measured meanwhile, as a progress line shows it."""

    def check(self) -> None:
        """Called once, after the first repetition. Raises NotCapturedError."""


def make(name: str, cfg: Settings, work: Workload) -> Mode:
    """A mode by name."""
    return Plain(cfg, work) if name == PLAIN else Ours(WAYS[name], cfg, work)


def choose(asked: list[str] | None, device: torch.device) -> list[str]:
    """The modes that were asked for, in the order of the table, or all that the device has. Raises EdkdError."""
    possible = [name for name in LABELS if device.type == "cuda" or name not in ON_CUDA]
    for name in asked or []:
        if name not in LABELS:
            raise EdkdError(f"--modes={name}: no such mode; allowed: {', '.join(LABELS)}")
        if name not in possible:
            raise EdkdError(f"--modes={name} needs a CUDA device; allowed here: {', '.join(possible)}")
    return [name for name in possible if asked is None or name in asked]


class Plain:
    """The plain loop, with torch as it comes and cuDNN choosing its algorithms by trial."""

    def __init__(self, cfg: Settings, work: Workload) -> None:
        assert work.feed is not None
        self.work, self.feed = work, work.feed
        teacher, student = networks(cfg, work)
        self.teacher, self.student = teacher.to(work.device), student.to(work.device)
        self.schedule, self.loss = cfg.schedule, plain.loss_of(cfg.distiller)
        self.first = _weights(self.student)
        self.ready()

    def fill(self) -> None:
        """Nothing is taken for granted."""

    def ready(self) -> None:
        """See `Mode`. On a GPU the batches that the workers made in the pause are used up: they cost a run nothing."""
        torch.set_num_threads(self.work.threads)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True  # torch's default
        self.student.load_state_dict(self.first)
        self.loop = plain.PlainLoop(
            self.teacher,
            self.student,
            self.loss,
            self.feed.batches,
            lr=self.schedule.rate(1),
            momentum=self.schedule.momentum,
            weight_decay=self.schedule.weight_decay,
            device=self.work.device,
        )
        if self.work.device.type == "cuda":
            self.loop.train(self.feed.ready, epoch=1)

    def run(self) -> dict[str, float]:
        """See `Mode`."""
        return self.loop.train(self.work.steps, epoch=1)

    def check(self) -> None:
        """Nothing can be otherwise than meant."""


class Ours:
    """`trainer.train_epoch` over data on the device, with the teacher that a run of this configuration gets."""

    def __init__(self, way: Way, cfg: Settings, work: Workload) -> None:
        self.way, self.work = way, work
        chosen = replace(cfg.engine, precision=way.precision, teacher_cache=way.cache != "none", capture=way.capture)
        self.cfg = replace(cfg, engine=chosen, output=str(work.folder))
        set_up(self.cfg.engine, work.threads)
        self.teacher = to_device(networks(cfg, work)[0], self.cfg.engine, work.device)
        self.state = new_state(self.cfg, inputs(self.cfg, work, self.teacher))
        self.precision = Precision(way.precision, work.device)
        self.first = _weights(self.state.student)
        self.data = device_data(work.cut, self.cfg, work.device).train
        self.step: Step | None = None

    def fill(self) -> None:
        """One epoch fills the cache, whose table the methods of a pair share, as runs do; a capture takes more."""
        self.ready()
        for _ in range(1 + (EAGER_FIRST // self.work.steps if self.way.capture else 0)):
            self.run()

    def ready(self) -> None:
        """See `Mode`."""
        set_up(self.cfg.engine, self.work.threads)
        self.state.student.load_state_dict(self.first)
        for memory in self.state.optimizer.state.values():
            memory["momentum_buffer"].zero_()
        if self.step is None or self.way.cache == "cold":
            self.step = self._step()

    def run(self) -> dict[str, float]:
        """See `Mode`. The progress is not moved on, so that each repetition is the same epoch, with the same views."""
        assert self.step is not None
        return train_epoch(self.state, self.step, self.cfg.schedule, seed=self.cfg.seed)

    def check(self) -> None:
        """See `Mode`."""
        assert self.step is not None
        if self.way.capture and not self.step.graphs:
            raise NotCapturedError(f"{self.way.label}: no CUDA graph was recorded")

    def _step(self) -> Step:
        cfg = self.cfg
        if self.way.cache == "cold":
            shutil.rmtree(self.work.folder / "cold", ignore_errors=True)
            cfg = replace(cfg, output=str(self.work.folder / "cold"))
        found = inputs(cfg, self.work, self.teacher)
        needs_feats = self.state.distiller.needs_feats
        return make_step(
            self.state,
            teacher_source(cfg, found, self.data, self.precision, needs_feats),
            self.data,
            cfg.schedule,
            capture=cfg.engine.capture,
        )


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())
