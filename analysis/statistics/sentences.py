"""What the statistics say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.statistics.paired import LEVEL
from analysis.statistics.pooled import FEWEST_PAIRS, Pooled
from analysis.statistics.power import POWER, detectable, needed
from edkd.console import counted

_NAMED = 6  # baselines in one sentence


def permits(rows: pd.DataFrame) -> list[str]:
    """Sentences on what the n of these `comparisons` permits and does not permit; empty for no rows."""
    said = []
    alone, flat = int((rows["n"] == 1).sum()), int((rows["sd"] == 0).sum())
    if alone:
        which = "Every difference is" if alone == len(rows) else f"{alone} of {len(rows)} differences are"
        said.append(
            f"{which} from one run per method (n = 1): one run shows no spread, "
            "so it permits no interval, no p and no conclusion on a pair."
        )
    if flat:
        said.append(
            f"{flat} of {counted(len(rows), 'difference')} had the same value in every run: without a spread there is "
            "no interval and no p."
        )
    for n, group in rows[rows["sd"] > 0].groupby("n"):
        said.append(_sensitivity(int(str(n)), group))
    pairs = rows["pair"].unique()
    teachers = [str(pair).split("-", 1)[0] for pair in pairs]
    sharing = sum(teachers.count(teacher) > 1 for teacher in teachers)
    if sharing:
        said.append(
            f"{sharing} of {len(pairs)} pairs share a teacher network with another pair, so the pairs are not "
            "independent; intervals and tests over pairs treat them as if they were."
        )
    count = int(rows.groupby(["first", "second"])["pair"].nunique().max()) if len(rows) else 0
    if count > 1:
        floor = 2.0 ** (1 - count)
        never = f", so it cannot reach {_percent(1 - LEVEL)}" if floor > 1 - LEVEL else ""
        said.append(f"Over {count} pairs a two-sided Wilcoxon test cannot give p below {floor:.4f}{never}.")
    return said


def _sensitivity(n: int, group: pd.DataFrame) -> str:
    sd, difference = float(group["sd"].median()), float(group["difference"].abs().median())
    median = f", the median of {len(group)} comparisons" if len(group) > 1 else ""
    need = needed(difference, sd)
    observed = f"the {'median ' if median else ''}observed difference of {difference:.2f} points"
    return (
        f"With n = {n} and a standard deviation of the differences of {sd:.2f} points{median}, a paired t-test at the "
        f"{_percent(1 - LEVEL)} level, before Holm's correction, detects a difference of "
        f"{detectable(n, sd):.2f} points with {_percent(POWER)} power"
        + (f"; {observed} would need n = {need}." if need else ".")
    )


def verdict(ours: str, over: Mapping[str, Pooled], rows: pd.DataFrame) -> list[str]:
    """What the statistics say of `ours`, in at most three sentences.

    `over` has `ours` minus each baseline over all pairs, and `rows` are the `comparisons` of the same contrasts.
    """
    found = {name: result for name, result in over.items() if result.pairs}
    if not found:
        return [f"{ours} has no run with the seed and teacher of a run of {_and(list(over))}: nothing is compared."]
    if (rows["n"] == 1).all():
        reason = "Every comparison is of one run per method (n = 1), which permits no conclusion"
        if any(not math.isnan(result.low) for result in found.values()):
            reason += ": the intervals over pairs say how pairs differ, and not how other seeds would"
        return [f"{_observed(ours, found, rows, interval=False)}.", f"{reason}."]
    closest, conclusion = min(found, key=lambda name: found[name].mean), ""
    if found[closest].pairs > 1:
        conclusion = {
            "better": f", so {ours} is better on average",
            "worse": f", so {ours} is worse on average",
            "open": ": the interval includes 0, and no difference is shown",
            "unknown": f": fewer than {FEWEST_PAIRS} pairs permit no interval over pairs and no conclusion on average",
        }[_standing(found[closest])]
    said = [f"{_observed(ours, found, rows, interval=True)}{conclusion}."]
    others = {
        standing: [name for name, result in found.items() if name != closest and _standing(result) == standing]
        for standing in ("better", "worse", "open")
    }
    parts = [
        text + _few(others[standing])
        for standing, text in (
            ("better", "better than "),
            ("worse", "worse than "),
            ("open", "not shown to differ from "),
        )
        if others[standing]
    ]
    if parts:
        said.append(f"On average over pairs it is {_and(parts)} (not corrected for the number of baselines).")
    tested = rows[rows["p_holm"].notna()]
    if len(tested):
        clear = tested[tested["p_holm"] < 1 - LEVEL]
        favour = int((clear["difference"] > 0).sum())
        are = "is" if len(clear) == 1 else "are"
        said.append(
            f"On single pairs, {len(clear)} of {counted(len(tested), 'comparison')} {are} significant at the "
            f"{_percent(1 - LEVEL)} level after Holm's correction"
            + (f": {favour} in favour of {ours}, {len(clear) - favour} against it." if len(clear) else ".")
        )
    return said


def _observed(ours: str, found: Mapping[str, Pooled], rows: pd.DataFrame, *, interval: bool) -> str:
    """The mean difference from the strongest baseline, without the full stop."""
    name = min(found, key=lambda name: found[name].mean)
    result = found[name]
    head = f"{ours} − {name} is {_points(result.mean)} points"
    if len(found) > 1:
        head = f"The strongest of {len(found)} baselines is {name}: {head}"
    if result.pairs == 1:
        row = rows[rows["second"] == name].iloc[0]
        shown, low, high = f"n = {row['n']}", float(row["low"]), float(row["high"])
        head += f" on {row['pair']}"
    else:
        shown, low, high = f"win/tie/loss {result.wins}/{result.ties}/{result.losses}", result.low, result.high
        head += f" on average over {result.pairs} pairs"
    if interval and not math.isnan(low):
        shown = f"{_percent(LEVEL)} interval {_points(low)} to {_points(high)}; {shown}"
    return f"{head} ({shown})"


def _standing(result: Pooled) -> str:
    if math.isnan(result.low):
        return "unknown"
    return "better" if result.low > 0 else "worse" if result.high < 0 else "open"


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _few(names: Sequence[str]) -> str:
    return _and(names) if len(names) <= _NAMED else f"{len(names)} baselines"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
