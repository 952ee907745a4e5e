"""Every number of the table as a frame with one row a number, as in the CSV."""

from collections.abc import Iterable, Sequence
from typing import Literal

import pandas as pd

from analysis import literature, load
from analysis import statistics as st

Kind = Literal["last", "best", "selected"]  # the protocols of `analysis.statistics`
KINDS: tuple[Kind, ...] = ("last", "best", "selected")

_OF_PAIR = ["chosen_on", "dataset", "recipe", "teacher", "student"]
_KEY = ["pair", "method", "kind"]
_STATISTICS = {"mean": "top1_mean", "difference": "top1_mean", "sd": "top1_sd"}
_STATISTICS |= {"low": "top1_ci95_low", "high": "top1_ci95_high", "protocol": "kind"}
_PUBLISHED = ["published", "published_by_authors", "published_protocol", "same_protocol"]
_PUBLISHED += ["minus_published", "minus_authors"]
_COLUMNS = ["quantity", "kind", *_OF_PAIR[:3], "pair", *_OF_PAIR[3:], "method", "n", *list(_STATISTICS.values())[1:5]]
_COLUMNS += ["top1_values", "seeds", "p", "p_holm", "top5_mean", "top5_sd", "epoch_mean", "teacher_top1", *_PUBLISHED]
_COLUMNS += ["changed", "cell", "git_commits", "run_ids"]


def long_table(runs: pd.DataFrame, tidy: pd.DataFrame, compared: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """The accuracies of every method on every pair, and the paired differences of the methods that are `compared`.

    The kinds are `last`, `best` (chosen on the test set) and `selected` (chosen on held-out training images). `runs`
    holds one finished run per cell and seed, and `tidy` is `load.tidy` of them. Accuracies are in percent. Intervals
    cover 95 %. `p` is from a paired t-test, and `p_holm` is adjusted by Holm over the differences of its kind and
    quantity: those of two methods, or those from the student alone.
    """
    cells, from_alone = accuracies(runs), differences_from_alone(runs)
    differences = pd.concat(
        frame.assign(kind=kind, quantity=quantity)
        for kind in KINDS
        for quantity, frame in (
            ("paired difference", st.comparisons(tidy, kind, compared)),
            ("difference from the student alone", from_alone[kind]),
        )
    )
    of_first = cells[[*_KEY, *_OF_PAIR]].rename(columns={"method": "first"})
    differences = differences.rename(columns=_STATISTICS).merge(of_first, on=["pair", "first", "kind"])
    differences = differences.assign(
        method=[f"{first}-{second}" for first, second in zip(differences["first"], differences["second"])],
        top1_values=[" ".join(f"{value:.4f}" for value in values) for values in differences["values"]],
    )
    rows = pd.concat([cells, differences]) if len(differences) else cells
    rows = rows.sort_values(_KEY, key=lambda each: each.map(KINDS.index) if each.name == "kind" else each)
    return rows[[name for name in _COLUMNS if name in rows]].reset_index(drop=True)


def differences_from_alone(runs: pd.DataFrame) -> dict[Kind, pd.DataFrame]:
    """The `statistics.comparisons` of each of our methods with the student alone, VANILLA, by kind."""
    ours = runs["method"][~runs["alone"] & (runs["imported"] == "")].unique()
    tidy = _with_alone(runs)
    return {kind: st.comparisons(tidy, kind, [(method, load.VANILLA) for method in ours]) for kind in KINDS}


def students_alone(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of students alone, without those students that have several configurations."""
    usual = runs[runs["alone"] & (runs["distiller"] == load.VANILLA)]
    return usual[usual.groupby("student")["row"].transform("nunique") == 1]


def _with_alone(runs: pd.DataFrame) -> pd.DataFrame:
    """`load.tidy`, and each student alone on every pair of its own, as VANILLA, with the pair's teacher beside it.

    So a method is compared with its student alone, seed by seed.
    """
    distilled = runs[~runs["alone"]]
    taught = distilled[["pair", "student", "taught_by"]].drop_duplicates()
    beside = students_alone(runs).drop(columns=["pair", "taught_by"]).merge(taught, on="student")
    return load.tidy(pd.concat([distilled, beside.assign(alone=False, method=load.VANILLA)]))


def commits(runs: pd.DataFrame) -> pd.Series:
    """The git commit of each run, shortened, with `+dirty` for a changed working tree; NaN for an imported run."""
    dirty = runs["git_dirty"].map({True: "+dirty", False: ""})
    shown = runs["git_commit"].str[:10].replace("", "unknown") + dirty
    return shown.mask(runs["imported"] != "")


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of `long_table`, with the published ones where these may stand beside them."""
    runs = runs.assign(commit=commits(runs)).sort_values("seed", kind="stable")
    held_out = runs["best_by"] == "validation"
    part = {"last": runs.assign(best_by=""), "best": runs[~held_out], "selected": runs[held_out]}
    frame = pd.concat(
        part[kind].assign(
            kind=kind,
            protocol=kind,
            value=part[kind][f"{epoch}_top1"],
            top5=part[kind][f"{epoch}_top5"],
            epoch=part[kind][f"{epoch}_epoch"],
        )
        for kind, epoch in zip(KINDS, ("last", "best", "best"))
    )
    texts = frame.assign(
        changed=frame["changed"].map(" ".join),
        top1_values=frame["value"].map("{:.4f}".format),
        seeds=frame["seed"].astype(str),
        teacher_top1=frame["teacher_top1"].map("{:.4f}".format).where(frame["teacher_top1"].notna()),
    )
    cells = texts.groupby(_KEY, sort=False).agg(
        chosen_on=("best_by", _each_once),
        **{name: (name, "first") for name in _OF_PAIR[1:]},
        top1_values=("top1_values", " ".join),
        seeds=("seeds", " ".join),
        top5_mean=("top5", "mean"),
        top5_sd=("top5", "std"),
        epoch_mean=("epoch", "mean"),
        teacher_top1=("teacher_top1", _each_once),
        distiller=("distiller", "first"),
        changed=("changed", _each_once),
        cell=("cell", _each_once),
        git_commits=("commit", _each_once),
        run_ids=("run_id", " ".join),
    )
    cells = cells.reset_index().merge(st.cells(frame).rename(columns=_STATISTICS), on=_KEY)
    if literature.comparable(runs):
        columns = ["pair", "distiller", "kind", "top1_mean", "changed"]
        known = [_beside(*row) for row in cells[columns].itertuples(index=False)]
        cells[_PUBLISHED] = pd.DataFrame(known, columns=_PUBLISHED, index=cells.index)
    return cells.assign(quantity="accuracy")


def _beside(pair: str, method: str, kind: Kind, ours: float, changed: str) -> dict[str, float | str | None]:
    """The published numbers for one of our cells, and the differences from them if both have one protocol.

    There are none for a cell of other values than the defaults, which are the published ones.
    """
    known = None if changed else literature.number(pair, method)
    if known is None:
        return {}
    same = known.protocol == kind
    row: dict[str, float | str | None] = {"published": known.table, "published_by_authors": known.authors}
    row |= {"published_protocol": known.protocol, "same_protocol": "yes" if same else "no"}
    if same:
        row |= {"minus_published": None if known.table is None else ours - known.table}
        row |= {"minus_authors": None if known.authors is None else ours - known.authors}
    return row


def _each_once(values: Iterable[str]) -> str:
    return " ".join(sorted({value for value in values if pd.notna(value)}))
