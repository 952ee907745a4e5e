"""What the statistics say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.statistics.paired import LEVEL
from analysis.statistics.pooled import FEWEST_PAIRS, Pooled
from analysis.statistics.power import POWER, detectable, needed
from edkd.console import counted

GAIN = 0.3  # points; margins of the field, such as EDKD's published ones over DKD, which average 0.34
FEWEST_RUNS = 5  # with fewer, the 95 % interval of a standard deviation reaches beyond 3 times the estimate
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
        said.append(_sensitivity(int(str(n)), group["sd"]))
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


def _sensitivity(n: int, sds: pd.Series) -> str:
    sd = math.sqrt(float((sds**2).mean()))
    pooled = f", the root mean square of {len(sds)} comparisons" if len(sds) > 1 else ""
    rough = "" if n >= FEWEST_RUNS else f" From n = {n}, the standard deviation itself is known only roughly."
    return (
        f"With n = {n} and a standard deviation of the differences of {sd:.2f} points{pooled}, a paired t-test at the "
        f"{_percent(1 - LEVEL)} level, before Holm's correction, detects a difference of "
        f"{detectable(n, sd):.2f} points with {_percent(POWER)} power; {GAIN} points would need "
        f"n = {needed(GAIN, sd)}.{rough}"
    )


def verdict(ours: str, over: Mapping[str, Pooled], rows: pd.DataFrame) -> list[str]:
    """What the statistics say of `ours`, in a few sentences.

    `over` has `ours` minus each baseline over all pairs, and `rows` are the `comparisons` of the same contrasts. The
    strongest baseline is one of those that share the most pairs with `ours`, all of them the same pairs, for means over
    different pairs do not compare. A pair of one run per method permits no conclusion on average.
    """
    on = {name: frozenset(rows["pair"][rows["second"] == name]) for name in over}
    most = max(on.values(), key=len)
    if not most:
        return [f"{ours} has no run with the seed and teacher of a run of {_and(list(over))}: nothing is compared."]
    alike = [name for name, pairs in on.items() if pairs == most]
    closest, *others = sorted(alike, key=lambda name: over[name].mean)
    said = [_strongest(ours, closest, len(alike), over[closest], rows[rows["second"] == closest])]
    standing = {name: _standing(over[name], rows[rows["second"] == name]) for name in others}
    parts = [
        text + _few(named)
        for kind, text in (("better", "better than "), ("worse", "worse than "), ("open", "not shown to differ from "))
        if (named := [name for name in alike if standing.get(name) == kind])
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
    elsewhere = [name for name, pairs in on.items() if pairs and pairs != most]
    if elsewhere:
        said.append(f"Compared on other pairs, and so not in this order: {_few(elsewhere)}.")
    apart = [name for name, pairs in on.items() if not pairs]
    if apart:
        said.append(f"Not compared, for no run has the seed and teacher of one of {ours}: {_few(apart)}.")
    return said


def _strongest(ours: str, name: str, among: int, found: Pooled, rows: pd.DataFrame) -> str:
    """The mean difference from the strongest baseline, of which `rows` are the pairs, and what it permits to say."""
    head = f"{ours} − {name} is {_points(found.mean)} points"
    if among > 1:
        head = f"The strongest of {among} baselines is {name}: {head}"
    standing, conclusion = _standing(found, rows), ""
    if found.pairs == 1:
        row = rows.iloc[0]
        head, low, high, counts = f"{head} on {row['pair']}", float(row["low"]), float(row["high"]), f"n = {row['n']}"
    else:
        head, low, high = f"{head} on average over {found.pairs} pairs", found.low, found.high
        counts = f"win/tie/loss {found.wins}/{found.ties}/{found.losses}"
        conclusion = {
            "better": f", so {ours} is better on average",
            "worse": f", so {ours} is worse on average",
            "open": ": the interval includes 0, and no difference is shown",
            "few": f": fewer than {FEWEST_PAIRS} pairs permit no interval over pairs and no conclusion on average",
            "single": "",
        }[standing]
    if standing == "single":
        single = int((rows["n"] == 1).sum())
        where = "every pair" if single == found.pairs else f"{single} of these pairs"
        if found.pairs > 1:
            counts += ", by sign alone" if single == found.pairs else ", by sign where n = 1"
        conclusion = f". One run per method{f' (n = 1) on {where}' if found.pairs > 1 else ''} permits no conclusion"
    elif not math.isnan(low):
        chosen = ", not corrected for the choice" if among > 1 else ""
        counts = f"{_percent(LEVEL)} interval {_points(low)} to {_points(high)}{chosen}; {counts}"
    return f"{head} ({counts}){conclusion}."


def _standing(found: Pooled, rows: pd.DataFrame) -> str:
    if (rows["n"] == 1).any():
        return "single"
    if math.isnan(found.low):
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
