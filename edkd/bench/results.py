"""The arithmetic of the benchmark: from seconds per step to medians, ratios and targets."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LEAST = 3  # repetitions, for a verdict
STEPS_PER_EPOCH = 782  # of 64 images: CIFAR-100


@dataclass
class Timing:
    """What one way to train one pair with one method took."""

    pair: str
    method: str
    mode: str
    batch: int  # images a step; times the number of runs for runs side by side
    seconds: list[float] = field(default_factory=list)  # per step, one entry a repetition
    ratios: list[float] = field(default_factory=list)  # plain loop / this, one entry a repetition where both ran
    peak_mb: float | None = None
    floor_ms: float | None = None

    @property
    def ms(self) -> float:
        """Median milliseconds per step."""
        return statistics.median(self.seconds) * 1000

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of milliseconds per step; both the only value where there is one."""
        if len(self.seconds) == 1:
            return self.ms, self.ms
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low * 1000, high * 1000

    @property
    def images_per_second(self) -> float:
        """Images trained on in a second, by all runs together."""
        return self.batch / self.ms * 1000

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the plain loop: the median of the ratios within each repetition."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def above_floor(self) -> float | None:
        """The step as a multiple of the floor."""
        return self.ms / self.floor_ms if self.floor_ms else None


@dataclass(frozen=True)
class Target:
    """A number that is to be reached: `value` at least, or at most, `goal`."""

    name: str
    goal: float
    value: float
    at_least: bool
    unit: str = ""
    repetitions: int = LEAST  # behind the value

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where too few repetitions say so."""
        if self.repetitions < LEAST:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


@dataclass(frozen=True)
class Cost:
    """What something beside the step takes."""

    name: str
    value: float
    unit: str
    note: str


def compare(timings: Iterable[Timing]) -> None:
    """Fill in the ratios of timings to the plain loop of the same pair and method, repetition by repetition.

    The ways to train take turns within a repetition, so whatever slows the machine down slows both sides of a ratio.
    For runs side by side, all runs' images count.
    """
    timings = list(timings)
    plain = {(timing.pair, timing.method): timing for timing in timings if timing.mode == "plain"}
    for timing in timings:
        base = plain.get((timing.pair, timing.method))
        if base is not None:
            share = timing.batch / base.batch
            timing.ratios = [share * theirs / ours for theirs, ours in zip(base.seconds, timing.seconds, strict=False)]


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log)), for ratios. Raises ValueError for none, or for one that is not above 0."""
    if not values or min(values) <= 0:
        raise ValueError(f"a geometric mean needs numbers above 0, not {list(values)}")
    return math.exp(statistics.fmean(math.log(value) for value in values))


def ratios_of(timings: Iterable[Timing], *modes: str) -> dict[tuple[str, str], float]:
    """The ratio of each (pair, method), the best of some modes; cells without one of these are left out."""
    best: dict[tuple[str, str], float] = {}
    for timing in timings:
        if timing.mode in modes and timing.ratio is not None:
            cell = timing.pair, timing.method
            best[cell] = max(timing.ratio, best.get(cell, 0.0))
    return best


def by_pair(ratios: dict[tuple[str, str], float]) -> dict[str, float]:
    """The geometric mean of each pair's ratios over the methods."""
    pairs = dict.fromkeys(pair for pair, _ in ratios)
    return {name: geometric_mean([value for (pair, _), value in ratios.items() if pair == name]) for name in pairs}


def targets(timings: Sequence[Timing], *, cuda: bool) -> list[Target]:
    """The targets that these timings speak of, in the order of the design."""
    found: list[Target] = []
    repetitions = min((len(timing.seconds) for timing in timings), default=0)

    def speed(name: str, ratios: dict[tuple[str, str], float], mean: float, worst: float | None) -> None:
        if ratios:
            found.append(
                Target(f"{name}, geometric mean", mean, geometric_mean(list(ratios.values())), True, "x", repetitions)
            )
            if worst is not None:
                pair, value = min(by_pair(ratios).items(), key=lambda item: item[1])
                found.append(Target(f"{name}, worst pair ({pair})", worst, value, True, "x", repetitions))

    if cuda:
        speed("plain loop / captured step", ratios_of(timings, "captured"), 15.0, None)
        for timing in timings:
            if (timing.pair, timing.method, timing.mode) == ("resnet32x4-resnet8x4", "edkd", "captured"):
                minutes = timing.ms / 1000 * STEPS_PER_EPOCH * 240 / 60
                found.append(
                    Target(
                        "steps of 240 epochs of resnet32x4-resnet8x4, EDKD", 3.0, minutes, False, " min", repetitions
                    )
                )
    else:
        speed("plain loop / cache warm, fp32", ratios_of(timings, "warm"), 5.0, 2.0)
        if any(timing.mode == "bf16" for timing in timings):
            speed("plain loop / cache warm, better of fp32 and bf16", ratios_of(timings, "warm", "bf16"), 7.5, 2.0)
    cold = ratios_of(timings, "cold")
    if cold:
        (pair, method), value = min(cold.items(), key=lambda item: item[1])
        found.append(
            Target(f"plain loop / cache cold, worst cell ({pair}, {method})", 1.0, value, True, "x", repetitions)
        )
    return found
