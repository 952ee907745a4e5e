"""Read the runs of a table from the MLflow store and packed results: one row a run, one configuration a cell."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import settings
from analysis.literature import PUBLISHED, SEVEN
from edkd.console import counted
from edkd.errors import EdkdError
from edkd.rundir import journal
from edkd.rundir.paths import find_runs
from edkd.tracking import load_packed, load_runs, sqlite_path

VANILLA = "vanilla"
RESULTS = Path(__file__).parent / "results"  # packed journals, as `edkd results pack` makes them
HOW_TO_RUN = (
    "make some with: python launch.py -m distiller=kd,dkd,edkd pair=all; `edkd sync` reads in those of tracking=journal"
)
_WITH_MAKE = "(with make: ARGS='--…')"

_TAGS = (
    "pair",
    "teacher",
    "student",
    "distiller",
    "title",
    "year",
    "dataset",
    "recipe",
    "cell",
    "git_commit",
    "best_by",
    "imported",  # the other code base that trained the run, if any
)
_METRICS = [(which, key) for which in ("last", "best") for key in ("top1", "top5", "epoch")]


def read(
    uri: str, experiment: str, results: Path, damaged: Mapping[str, str], *, suffice: bool = False
) -> pd.DataFrame:
    """The training runs of `experiment` in the MLflow store at `uri`, and those packed in `results`, a row each.

    Accuracies are in percent, NaN where a run has none (yet); `alone` marks a run without a teacher. A run in both
    places counts once. A sweep's parent run trains nothing and is left out. If a run's journal is `damaged` (see the
    function), MLflow's record of it cannot be checked: the run gets the status DAMAGED and the reason.

    Raises EdkdError if a packed file is damaged, if both places hold no runs, or if the store does not exist (it is
    never created) and the packed runs make no table, or do not `suffice` because the user has named the store.
    """
    packed = load_packed(results)
    path = sqlite_path(uri)
    there = path is None or path.is_file()
    makes_table = any(run["tags"].get("teacher") and run["status"] == "FINISHED" for run in packed)
    if not there and not (makes_table and suffice):
        packed_alone = "; --results DIR without --uri reads packed runs alone" if makes_table else ""
        raise EdkdError(f"no runs yet: there is no MLflow store at {path} (see --uri{packed_alone}); {HOW_TO_RUN}")
    stored = load_runs(uri, experiment) if there else []
    for run in stored:
        if reason := damaged.get(run["tags"].get("edkd.path", "")):
            run |= {"status": "DAMAGED", "damage": reason}
    rows = [_row(run) for run in _united(stored, packed) if run["tags"].get("distiller")]
    if not rows:
        raise EdkdError(f"no runs in experiment {experiment!r} of the MLflow store; {HOW_TO_RUN}")
    found = pd.DataFrame(rows)
    trained = {f"run:{tags['config_hash']}": seed for tags, seed in zip(found["tags"], found["seed"])}
    of_teachers = [trained.get(params["teacher_id"], float("nan")) for params in found["params"]]
    return found.assign(teacher_seed=of_teachers)


def _united(stored: Sequence[Mapping[str, Any]], packed: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each run once. A packed run replaces a stored one that is not FINISHED: MLflow may have missed its end."""
    done = {_identity(run) for run in stored if run["status"] == "FINISHED"}
    added = {_identity(run): {**run, "packed": True} for run in packed if _identity(run) not in done}
    return [*(run for run in stored if _identity(run) not in added), *added.values()]


def _identity(run: Mapping[str, Any]) -> tuple[Any, Any]:
    """The configuration's hash and the start time, which together identify a run."""
    return run["tags"].get("config_hash"), run["start_time"]


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    tags, metrics = run["tags"], run["metrics"]
    nan = float("nan")
    return {
        "run_id": run["run_id"],
        "name": run["name"],
        "status": run["status"],
        "state": _state(run),
        "started": run["start_time"],
        **{tag: tags.get(tag, "") for tag in _TAGS},
        "method": tags.get("distiller", ""),
        "alone": not tags.get("teacher"),
        "git_dirty": tags.get("git_dirty", "").lower() == "true",
        "seed": int(tags["seed"]),
        "teacher_top1": float(tags.get("teacher_top1", nan)),
        "taught_by": tags.get("teacher_sha256") or tags.get("teacher_id", ""),
        **{f"{which}_{key}": float(metrics.get(f"{which}/{key}", nan)) for which, key in _METRICS},
        "params": {**run["params"], "teacher_id": tags.get("teacher_id", "")},
        "tags": tags,
        "metrics": metrics,
        "packed": "packed" in run,
        "damage": run.get("damage", ""),
    }


def _state(run: Mapping[str, Any]) -> str:
    """The state of a run. MLflow's KILLED covers stopped runs, runs whose process is gone, and pruned runs."""
    if run["status"] == "KILLED":
        return "pruned" if "pruned_after" in run["tags"] else "interrupted"
    return str(run["status"]).lower()


def damaged(uri: str) -> dict[str, str]:
    """An error line for each damaged journal beside a SQLite store, by the run's path below `runs`."""
    path, lines = sqlite_path(uri), {}
    if path is not None and (path.parent / "runs").is_dir():
        for run_dir in find_runs(path.parent):
            try:
                journal.read(run_dir, every_epoch=False)
            except EdkdError as error:
                lines[run_dir.relative_to(path.parent / "runs").as_posix()] = str(error)
    return lines


def finished(runs: pd.DataFrame) -> pd.Series:
    """Which runs have ended well and have the numbers of a table cell."""
    return (runs["status"] == "FINISHED") & runs["last_top1"].notna() & runs["best_top1"].notna()


def choose(runs: pd.DataFrame, *, dataset: str | None, recipe: str | None) -> tuple[pd.DataFrame, list[str]]:
    """The runs of one data set and one recipe, finished or not, and a line for each other choice.

    None allows any value, and a recipe may be given by its beginning. Of several choices, the one with the newest
    finished distillation run counts; packed runs are a choice only where no others fit. Raises EdkdError if no
    finished distillation run fits.
    """
    distilled = runs[~runs["alone"] & finished(runs)]
    if distilled.empty:
        states = ", ".join(f"{n} {state}" for state, n in runs["state"].value_counts().items())
        raise EdkdError(
            f"no finished distillation run among the {counted(len(runs), 'run')} here ({states}); {HOW_TO_RUN}"
        )
    fits = distilled
    if dataset is not None:
        fits = fits[fits["dataset"] == dataset]
    if recipe is not None:
        fits = fits[fits["recipe"].str.startswith(recipe)]
    if fits.empty:
        wanted = " and ".join(f"{k} {v!r}" for k, v in (("data set", dataset), ("recipe", recipe)) if v is not None)
        head = f"no finished distillation run has {wanted}; the store has {_WITH_MAKE}:"
        raise EdkdError("\n".join([head, *_choices(distilled)]))
    newest = fits.sort_values(["packed", "started"], ascending=[True, False]).iloc[0]
    fits = fits[fits["packed"] == newest["packed"]]
    here = (runs["dataset"] == newest["dataset"]) & (runs["recipe"] == newest["recipe"])
    return runs[here], _choices(fits[(fits["dataset"] != newest["dataset"]) | (fits["recipe"] != newest["recipe"])])


def _choices(runs: pd.DataFrame) -> list[str]:
    """A line for each data set and recipe of some runs, with the options that choose it."""
    found = runs.groupby(["dataset", "recipe"], sort=True)["started"].agg(["size", "max"])
    return [
        f"  --dataset {row['dataset']} --recipe {row['recipe']}   "
        f"({counted(row['size'], 'run')}, newest {_when(row['max'])})"
        for row in found.reset_index().to_dict("records")
    ]


def of_columns(runs: pd.DataFrame, *, pairs: list[str] | None) -> pd.DataFrame:
    """The runs of `pairs` (None: all) and of their students alone; other networks alone, mostly teachers, are left out.

    Raises EdkdError for a pair that is neither among the runs nor published.
    """
    found = runs[~runs["alone"]]
    valid = [*SEVEN, *sorted(set(found["pair"]) - set(SEVEN))]
    allowed = list(dict.fromkeys([*valid, *PUBLISHED]))
    for pair in pairs or ():
        if pair not in allowed:
            raise EdkdError(
                f"--pairs names {pair!r}, which is neither published nor has runs here; allowed: {', '.join(allowed)}"
            )
    wanted = valid if pairs is None else pairs
    found = found[found["pair"].isin(wanted)]
    students = {*found["student"], *(pair.split("-")[-1] for pair in wanted)}
    return runs[runs.index.isin(found.index) | (runs["alone"] & runs["student"].isin(students))]


def limited(runs: pd.DataFrame, *, seeds: Sequence[int] | None, methods: Sequence[str] | None) -> pd.DataFrame:
    """The runs of these seeds and methods (None: all); students alone have no method and stay.

    Raises EdkdError for a seed or method that no run has.
    """
    for option, wanted, there in (
        ("--seeds", seeds, runs["seed"]),
        ("--methods", methods, runs["distiller"][~runs["alone"]]),
    ):
        absent = [value for value in wanted or () if value not in set(there)]
        if absent:
            known = ", ".join(map(str, sorted(set(there))))
            raise EdkdError(f"{option} names {absent[0]!r}, which has no runs here; there are: {known}")
    if seeds is not None:
        runs = runs[runs["seed"].isin(seeds)]
    return runs if methods is None else runs[runs["alone"] | runs["distiller"].isin(methods)]


def one_cell_each(
    runs: pd.DataFrame,
    *,
    picked: Mapping[tuple[str, str], str],
    latest: bool,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] = (),
) -> pd.DataFrame:
    """The finished runs of the table: one configuration per row and column, and its newest run per seed.

    First, `picked[pair, distiller]` names the only configuration to keep, by the hash in the tag `cell` or its start.
    Then runs of one pair and distiller that differ in hyper-parameters get rows of their own, or the rows and columns
    that `rows` and `columns` ask for (see `settings.place`). If one row and column still has several configurations,
    `latest` keeps that of the newest run; without it EdkdError lists them and the parameters in which they differ.
    """
    done = runs[finished(runs)].sort_values("started", kind="stable")
    groups = {(str(p), str(d)): group for (p, d), group in done.groupby(["pair", "distiller"], sort=False)}
    for key in picked:
        if key not in groups:
            names = ", ".join(":".join(k) for k in groups)
            raise EdkdError(f"--cell names {':'.join(key)}, which has no finished run; there are: {names}")
    chosen = []
    for key, group in groups.items():
        if key in picked:
            group = _picked(group, key, picked[key])
        chosen.append(group.assign(asked=":".join(key)))
    placed = settings.place(pd.concat(chosen) if chosen else done, rows=rows, columns=columns)
    if latest:
        newest = placed.groupby(["pair", "method"], sort=False)["cell"].transform("last")
        placed = placed[placed["cell"] == newest]
    places = placed.groupby(["pair", "method"], sort=False)
    clashing = placed[places["cell"].transform("nunique") > 1]
    if len(clashing):
        clashes = [_clash(group) for _, group in clashing.groupby(["pair", "method"], sort=False)]
        head = "runs of different configurations compete for one cell of the table; nothing was written:"
        tail = (
            "pick by --cell PAIR:DISTILLER=HASH, or take the configuration of each cell's newest run by --latest-cell "
            f"{_WITH_MAKE}"
        )
        raise EdkdError("\n".join([head, *clashes, tail]))
    in_place = placed.iloc[places.ngroup().argsort(kind="stable")]
    return in_place.drop_duplicates(["pair", "method", "seed"], keep="last")


def _picked(group: pd.DataFrame, key: tuple[str, str], start: str) -> pd.DataFrame:
    cells = [cell for cell in group["cell"].unique() if cell.startswith(start)]
    if len(cells) != 1:
        there = ", ".join(group["cell"].unique())
        raise EdkdError(f"--cell {':'.join(key)}={start} fits {len(cells)} configurations; there are: {there}")
    return group[group["cell"] == cells[0]]


_UNSEEN = "no parameter differs, but the teacher's weights or the code of the method"


def _clash(group: pd.DataFrame) -> str:
    lines = []
    differing = settings.differing(group)
    for cell, runs in group.groupby("cell", sort=False):
        names = ", ".join(runs["name"])
        values = ", ".join(f"{k}={runs['params'].iloc[-1].get(k, '(absent)')}" for k in differing)
        made = f"{counted(len(runs), 'run')}, newest {_when(runs['started'].max())}"
        lines.append(f"  --cell {runs['asked'].iloc[0]}={cell}   ({made})")
        lines.append(f"      {values or _UNSEEN}; runs: {names}")
    return "\n".join(lines)


def tidy(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of students with a teacher as `analysis.statistics` reads them: a row per run and protocol.

    `method` is the run's row of the table, `teacher` the identity of its teacher's weights, `value` the test top-1 in
    percent. Protocol "last" is the last epoch, "best" the best epoch chosen on the test set, and "selected" the best
    epoch chosen on held-out training images. The caller passes one run per pair, method, seed and teacher, as
    `one_cell_each` returns them.
    """
    used = runs[finished(runs) & ~runs["alone"]]
    frame = used[["pair", "method", "seed"]].assign(teacher=used["taught_by"])
    best = used["best_by"].map({"validation": "selected"}).fillna("best")
    return pd.concat(
        [
            frame.assign(protocol="last", value=used["last_top1"]),
            frame.assign(protocol=best, value=used["best_top1"]),
        ],
        ignore_index=True,
    )


def _when(milliseconds: float) -> str:
    return f"{pd.Timestamp(int(milliseconds), unit='ms'):%Y-%m-%d %H:%M} UTC"
