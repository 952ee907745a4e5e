"""From the MLflow store and packed results to the runs of a table: one row a run, one configuration a cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from edkd.console import counted
from edkd.errors import EdkdError
from edkd.tracking import load_packed, load_runs

VANILLA = "vanilla"
RESULTS = Path(__file__).parent / "results"  # packed journals, as `edkd results pack` makes them
HOW_TO_RUN = (
    "make some with: python launch.py -m distiller=kd,dkd,edkd pair=all; `edkd sync` reads in those of tracking=journal"
)
_WITH_MAKE = "(with make: make table ARGS='--…')"

_TAGS = (
    "pair",
    "teacher",
    "student",
    "distiller",
    "dataset",
    "recipe",
    "cell",
    "config_hash",
    "git_commit",
    "best_by",
)
_METRICS = {
    "last_top1": "last/top1",
    "last_top5": "last/top5",
    "last_epoch": "last/epoch",
    "best_top1": "best/top1",
    "best_top5": "best/top5",
    "best_epoch": "best/epoch",
}
# Parameters that no configuration of a cell depends on: where and how a run was made.
_INCIDENTAL = ("engine.", "tracking.", "output", "seed", "dataset.root", "dataset.download", "dataset.source.")
COLUMNS = (
    "run_id",
    "name",
    "status",
    "started",
    *_TAGS,
    "alone",
    "git_dirty",
    "seed",
    "teacher_top1",
    *_METRICS,
    "params",
    "packed",
)


def read(uri: str, experiment: str, results: Path) -> pd.DataFrame:
    """Every training run of `experiment` in the MLflow store at `uri`, and every one packed in `results`; see `frame`.

    A run that is in both counts once. Raises EdkdError if the store is not there (it is never created) and nothing is
    packed, if both hold no runs, or if a packed file is damaged.
    """
    packed = load_packed(results)
    path = Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:///") else None
    there = path is None or (path.is_file() and path.stat().st_size > 0)
    if not there and not packed:
        raise EdkdError(f"no runs yet: there is no MLflow store at {path} (see --uri); {HOW_TO_RUN}")
    runs = frame(_united(load_runs(uri, experiment) if there else [], packed))
    if runs.empty:
        raise EdkdError(f"no runs in experiment {experiment!r} of the MLflow store; {HOW_TO_RUN}")
    return runs


def _united(stored: Sequence[Mapping[str, Any]], packed: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each run once. What is packed and finished is whole; MLflow may not have been told of the end."""
    done = {_identity(run) for run in stored if run["status"] == "FINISHED"}
    added = {_identity(run): {**run, "packed": True} for run in packed if _identity(run) not in done}
    return [*(run for run in stored if _identity(run) not in added), *added.values()]


def _identity(run: Mapping[str, Any]) -> tuple[Any, Any]:
    """A run is what began at one time with one configuration."""
    return run["tags"].get("config_hash"), run["start_time"]


def frame(runs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a training run, columns `COLUMNS`; accuracies in percent, NaN where a run has none (yet).

    `alone` says that a run has no teacher. A sweep's parent run trains nothing and has no `distiller` tag: left out.
    """
    rows = [_row(run) for run in runs if run["tags"].get("distiller")]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    tags, params, metrics = run["tags"], run["params"], run["metrics"]
    nan = float("nan")
    return {
        "run_id": run["run_id"],
        "name": run["name"] or run["run_id"],
        "status": run["status"],
        "started": run["start_time"] or 0,
        **{tag: tags.get(tag) or "" for tag in _TAGS},
        "alone": not tags.get("teacher"),
        "git_dirty": str(tags.get("git_dirty", "")).lower() in ("true", "1"),
        "seed": int(tags.get("seed", params.get("seed", 0))),
        "teacher_top1": float(tags.get("teacher_top1") or params.get("teacher_top1") or nan),
        **{column: float(metrics.get(metric, nan)) for column, metric in _METRICS.items()},
        "params": {**params, "teacher_id": tags.get("teacher_id", "")},
        "packed": bool(run.get("packed")),
    }


def finished(runs: pd.DataFrame) -> pd.Series:
    """Which runs have ended well and have the numbers of a table cell."""
    return (runs["status"] == "FINISHED") & runs["last_top1"].notna() & runs["best_top1"].notna()


def choose(runs: pd.DataFrame, *, dataset: str | None, recipe: str | None) -> pd.DataFrame:
    """The runs of one data set and one recipe, finished or not.

    None leaves that side open. Raises EdkdError, one line per choice, unless the distillation runs leave just one;
    of packed and other runs, the other ones decide.
    """
    distilled = runs[~runs["alone"] & finished(runs)]
    if distilled.empty:
        count = runs["status"].value_counts()
        states = ", ".join(f"{n} {str(status).lower()}" for status, n in count.items())
        raise EdkdError(
            f"no finished distillation run among the {counted(len(runs), 'run')} here ({states}); {HOW_TO_RUN}"
        )
    fits = distilled
    if dataset is not None:
        fits = fits[fits["dataset"] == dataset]
    if recipe is not None:
        fits = fits[fits["recipe"] == recipe]
    choices = fits.groupby(["dataset", "recipe"], sort=True)["started"].agg(["size", "max"])
    own = fits[~fits["packed"]].drop_duplicates(["dataset", "recipe"])
    if len(choices) > 1 and len(own) == 1:  # what the reader has run here, not what came with the code
        choices = own.groupby(["dataset", "recipe"])["started"].agg(["size", "max"])
    if len(choices) == 1:
        ((dataset, recipe),) = choices.index
        return runs[(runs["dataset"] == dataset) & (runs["recipe"] == recipe)]
    if choices.empty:
        wanted = " and ".join(f"{k} {v!r}" for k, v in (("data set", dataset), ("recipe", recipe)) if v is not None)
        head = f"no finished distillation run has {wanted}; the store has {_WITH_MAKE}:"
        choices = distilled.groupby(["dataset", "recipe"], sort=True)["started"].agg(["size", "max"])
    else:
        head = f"one table holds one data set and one recipe; pick one of these {_WITH_MAKE}:"
    lines = [
        f"  --dataset {row['dataset']} --recipe {row['recipe']}   "
        f"({counted(row['size'], 'run')}, newest {_when(row['max'])})"
        for row in choices.reset_index().to_dict("records")
    ]
    raise EdkdError("\n".join([head, *lines]))


def of_columns(runs: pd.DataFrame, *, pairs: list[str] | None, known: Sequence[str]) -> pd.DataFrame:
    """The runs of `pairs` (None: of all there are) and of their students alone; networks alone that are no
    student here (teachers, mostly) are no row of the table.

    Raises EdkdError for a pair that is neither among the runs nor among the `known` ones.
    """
    found = runs[~runs["alone"]]
    valid = [*known, *sorted(set(found["pair"]) - set(known))]
    for pair in pairs or ():
        if pair not in valid:
            raise EdkdError(f"--pairs names {pair!r}, which has no runs here; there are: {', '.join(valid)}")
    wanted = valid if pairs is None else pairs
    found = found[found["pair"].isin(wanted)]
    students = {*found["student"], *(pair.split("-")[-1] for pair in wanted)}
    return runs[runs.index.isin(found.index) | (runs["alone"] & runs["student"].isin(students))]


def one_cell_each(runs: pd.DataFrame, *, picked: Mapping[tuple[str, str], str], latest: bool) -> pd.DataFrame:
    """The finished runs that enter the table: per pair and distiller one configuration, per seed the newest run.

    Runs of one table cell must share the tag `cell` (hash of the configuration without the seed).
    Where they do not, `picked[pair, distiller]` names the hash (or its beginning), or `latest` takes the cell that
    holds the newest run; otherwise EdkdError lists the runs and the parameters in which they differ.
    """
    done = runs[finished(runs)].sort_values("started", kind="stable")
    groups = {(str(p), str(d)): group for (p, d), group in done.groupby(["pair", "distiller"], sort=False)}
    for key in picked:
        if key not in groups:
            names = ", ".join(":".join(k) for k in groups)
            raise EdkdError(f"--cell names {':'.join(key)}, which has no finished run; there are: {names}")
    kept, clashes = [], []
    for key, group in groups.items():
        if key in picked:
            group = _picked(group, key, picked[key])
        elif latest:
            group = group[group["cell"] == group["cell"].iloc[-1]]
        if group["cell"].nunique() > 1:
            clashes.append(_clash(group, key))
        kept.append(group.drop_duplicates("seed", keep="last"))
    if clashes:
        head = "runs of different configurations compete for one cell of the table; nothing was written:"
        tail = (
            "pick by --cell PAIR:DISTILLER=HASH, or take the configuration of each cell's newest run by --latest-cell "
            f"{_WITH_MAKE}"
        )
        raise EdkdError("\n".join([head, *clashes, tail]))
    return pd.concat(kept) if kept else done


def _picked(group: pd.DataFrame, key: tuple[str, str], start: str) -> pd.DataFrame:
    cells = [cell for cell in group["cell"].unique() if cell.startswith(start)]
    if len(cells) != 1:
        there = ", ".join(group["cell"].unique())
        raise EdkdError(f"--cell {':'.join(key)}={start} fits {len(cells)} configurations; there are: {there}")
    return group[group["cell"] == cells[0]]


def _clash(group: pd.DataFrame, key: tuple[str, str]) -> str:
    lines = []
    differing = _differing(group)
    for cell, runs in group.groupby("cell", sort=False):
        names = ", ".join(runs["name"])
        values = ", ".join(f"{k}={runs['params'].iloc[-1].get(k, '(absent)')}" for k in differing)
        lines.append(
            f"  --cell {':'.join(key)}={cell}   ({counted(len(runs), 'run')}, newest {_when(runs['started'].max())})"
        )
        lines.append(f"      {values or 'no logged parameter differs'}; runs: {names}")
    return "\n".join(lines)


def _differing(group: pd.DataFrame) -> list[str]:
    """Names of the parameters that differ between the cells of a group, and not within one of them."""
    by_cell = [list(params) for _, params in group.groupby("cell", sort=False)["params"]]
    names = sorted({n for cell in by_cell for params in cell for n in params if not n.startswith(_INCIDENTAL)})
    values = {name: [{params.get(name) for params in cell} for cell in by_cell] for name in names}
    return [name for name, v in values.items() if all(len(s) == 1 for s in v) and len(set.union(*v)) > 1]


def left_out(runs: pd.DataFrame, used: pd.DataFrame) -> list[str]:
    """One line for each of `runs` that is not among the `used` ones, and why."""
    covered = set(zip(used["pair"], used["distiller"], used["cell"], used["seed"]))
    lines = []
    for run in runs[~runs["run_id"].isin(used["run_id"])].to_dict("records"):
        again = (run["pair"], run["distiller"], run["cell"], run["seed"]) in covered
        if run["status"] != "FINISHED":
            why = run["status"].lower() + (", a later run of the same configuration is in the table" if again else "")
        elif again:
            why = "an older run of a configuration and seed that is in the table"
        elif pd.isna(run["last_top1"]) or pd.isna(run["best_top1"]):
            why = "finished without final metrics"
        else:
            why = f"another configuration (cell {run['cell']}) was picked"
        lines.append(f"{run['name']}: {why}")
    return lines


def _when(milliseconds: float) -> str:
    return f"{pd.Timestamp(int(milliseconds), unit='ms'):%Y-%m-%d %H:%M} UTC"
