"""What the statistics say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.statistics.paired import LEVEL
from analysis.statistics.pooled import FEWEST_PAIRS, Pooled
from analysis.statistics.power import POWER, detectable, needed
from edkd.console import counted

GAIN = 0.3  # points; a margin as the field publishes them: EDKD's over DKD averages 0.34
FEWEST_FREEDOM = 4  # degrees; with fewer, the 95 % interval of a standard deviation reaches beyond 3 times the estimate
_NAMED = 6  # baselines in one sentence


def permits(rows: pd.DataFrame, protocol: str = "last") -> list[str]:
    """Sentences on what the n of these `comparisons` permits and does not permit; empty for no rows."""
    said = []
    alone, flat = int((rows["n"] == 1).sum()), int((rows["sd"] == 0).sum())
    if alone:
        said.append(
            f"One run per method (n = 1), for {alone} of {counted(len(rows), 'difference')}, shows no spread, so it "
            "permits no interval, no p and no conclusion on a pair."
        )
    if flat:
        said.append(
            f"The same value in every run, for {flat} of {counted(len(rows), 'difference')}, is no spread either, so "
            "there is no interval and no p on a pair."
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
    if protocol == "best" and len(rows):
        said.append(
            "The test set chose the epochs, where it is recorded what did: this flatters every accuracy, and a "
            "difference includes both choices."
        )
    return said


def _sensitivity(n: int, rows: pd.DataFrame) -> str:
    sd = math.sqrt(float((rows["sd"] ** 2).mean()))
    typical, pooled = ("typical ", f" (root mean square of {len(rows)})") if len(rows) > 1 else ("", "")
    rough = rows["pair"].nunique() * (n - 1) < FEWEST_FREEDOM
    return (
        f"With n = {n} and a {typical}standard deviation of the differences of {sd:.2f} points{pooled}, a paired "
        f"t-test at the {_percent(1 - LEVEL)} level, before Holm's correction, detects a difference of "
        f"{detectable(n, sd):.2f} points with {_percent(POWER)} power; {GAIN} points would need "
        f"n = {needed(GAIN, sd)}.{' So few runs give this standard deviation only roughly.' if rough else ''}"
    )


def verdict(ours: str, over: Mapping[str, Pooled], rows: pd.DataFrame) -> list[str]:
    """What the statistics say of `ours`, in a few sentences.

    `over` has `ours` minus each baseline over all pairs, and `rows` are `comparisons` of at least these contrasts. The
    first sentence is about the strongest of the baselines on the largest common set of pairs, because means over
    different pairs have no order. A conclusion on average needs FEWEST_PAIRS pairs of more than one run.
    """
    rows = rows[rows["second"].isin(list(over))]
    on = {name: frozenset(rows["pair"][rows["second"] == name]) for name in over}
    there = [name for name, pairs in on.items() if pairs]
    if not there:
        return [f"{ours} has no run with the seed and teacher of a run of {_and(list(over))}: nothing is compared."]
    standing = {name: _standing(over[name], rows[rows["second"] == name]) for name in there}
    sets = list(on.values())
    most = max((on[name] for name in there), key=lambda pairs: (len(pairs), sets.count(pairs)))
    alike = [name for name in there if on[name] == most]
    firm = [name for name in alike if standing[name] != "single"] or alike
    closest = min(firm, key=lambda name: over[name].mean)
    said = [_strongest(ours, closest, len(firm), over[closest], rows[rows["second"] == closest])]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "open": [], "few": [], "single": []}
    for name in there:
        if name != closest:
            where = "" if on[name] == most else f" over {counted(over[name].pairs, 'pair')}"
            groups[standing[name]].append(f"{name} ({_points(over[name].mean)}{where})")
    words = {"better": "better than ", "worse": "worse than ", "open": "not shown to differ from "}
    parts = [text + _few(groups[kind]) for kind, text in words.items() if groups[kind]]
    if parts:
        said.append(f"On average over pairs, {ours} is {_and(parts)}; not corrected for the number of baselines.")
    if groups["few"] or groups["single"]:
        said.append(f"Without a conclusion on average: {_few([*groups['few'], *groups['single']])}.")
    apart = [name for name, pairs in on.items() if not pairs]
    if apart:
        said.append(f"Not compared, for want of a common seed, teacher and kind of epoch: {_few(apart)}.")
    tested = rows[rows["p_holm"].notna()]
    if len(tested):
        clear = tested[tested["p_holm"] < 1 - LEVEL]
        favour = int((clear["difference"] > 0).sum())
        said.append(
            f"On single pairs, significant at the {_percent(1 - LEVEL)} level after Holm's correction: {len(clear)} of "
            f"{counted(len(tested), 'comparison')}"
            + (f", {favour} in favour of {ours} and {len(clear) - favour} against it." if len(clear) else ".")
        )
    return said


def _strongest(ours: str, name: str, among: int, found: Pooled, rows: pd.DataFrame) -> str:
    """The mean difference from the strongest baseline, whose pairs are the `rows`, and what it permits to say."""
    head = f"{ours} − {name} is {_points(found.mean)} points"
    if among > 1:
        head = f"The strongest of {among} baselines on the same pairs is {name}: {head}"
    if found.pairs == 1:
        row = rows.iloc[0]
        head, low, high, shown = f"{head} on {row['pair']}", float(row["low"]), float(row["high"]), f"n = {row['n']}"
        conclusion = "" if row["n"] > 1 else ": one run per method permits no conclusion"
    else:
        head, low, high = f"{head} on average over {found.pairs} pairs", found.low, found.high
        by_sign = int(rows["low"].isna().sum())
        sign = "" if not by_sign else ", by sign alone" if by_sign == found.pairs else f", {by_sign} by sign alone"
        shown = f"win/tie/loss {found.wins}/{found.ties}/{found.losses}{sign}"
        conclusion = {
            "better": f", so {ours} is better on average",
            "worse": f", so {ours} is worse on average",
            "open": ": the interval includes 0, and no difference is shown",
            "few": f": fewer than {FEWEST_PAIRS} pairs permit no interval over pairs and no conclusion on average",
            "single": f": fewer than {FEWEST_PAIRS} of these pairs have more than one run per method, which permits "
            "no conclusion on average",
        }[_standing(found, rows)]
    if not math.isnan(low):
        chosen = f", not corrected for choosing the strongest of {among}" if among > 1 else ""
        shown = f"{_percent(LEVEL)} interval {_points(low)} to {_points(high)}{chosen}; {shown}"
    return f"{head} ({shown}){conclusion}."


def _standing(found: Pooled, rows: pd.DataFrame) -> str:
    """Which conclusion a baseline's difference permits on average over its pairs, the `rows`."""
    several = int((rows["n"] > 1).sum())
    if several < min(found.pairs, FEWEST_PAIRS):
        return "single"
    if found.pairs < FEWEST_PAIRS:
        return "few"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "open"


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _few(names: Sequence[str]) -> str:
    return _and(names) if len(names) <= _NAMED else f"{len(names)} baselines"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
