"""The arithmetic of the benchmark: from seconds per step to medians and ratios."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


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


@dataclass(frozen=True)
class Cost:
    """What something beside the step takes."""

    name: str
    value: float
    unit: str
    note: str


def compare(timings: Sequence[Timing]) -> None:
    """Fill in the ratios of a cell's timings to its plain loop, repetition by repetition.

    The ways to train take turns within a repetition, so whatever slows the machine down slows both sides of a ratio.
    For runs side by side, all runs' images count.
    """
    for base in [timing for timing in timings if timing.mode == "plain"]:
        for timing in timings:
            share = timing.batch / base.batch
            pairs = zip(base.seconds, timing.seconds, strict=False)
            timing.ratios = [share * theirs / ours for theirs, ours in pairs]


def by_pair(timings: Sequence[Timing], mode: str) -> dict[str, float]:
    """The geometric mean of a mode's ratios over the methods of each pair that has some."""
    found: dict[str, list[float]] = {}
    for timing in timings:
        if timing.mode == mode and timing.ratio is not None:
            found.setdefault(timing.pair, []).append(timing.ratio)
    return {pair: statistics.geometric_mean(ratios) for pair, ratios in found.items()}
