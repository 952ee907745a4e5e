"""The runs that are missing from a table, the reasons, and the commands that train or continue them."""

import shlex
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis import literature
from edkd import CONF
from edkd.rundir.settings import dataset_overrides

_OWN_DATA = "dataset=NAME"


class Missing(NamedTuple):
    """A run that would complete the grid, its state, and the overrides that give its method's values."""

    pair: str
    method: str
    seed: int
    state: str
    values: tuple[str, ...] = ()


def left_out(runs: pd.DataFrame, used: pd.DataFrame) -> list[str]:
    """One line for each of `runs` that is not among the `used` ones, and why."""
    absent = runs[~runs["run_id"].isin(used["run_id"])]
    lines = []
    for run, again in zip(absent.to_dict("records"), _superseded(absent, used)):
        if run["damage"]:
            why = run["damage"]
        elif run["status"] != "FINISHED":
            why = run["state"] + (", a later run of the same configuration is in the table" if again else "")
        elif again:
            why = "an older run of a configuration and seed that is in the table"
        elif pd.isna(run["last_top1"]) or pd.isna(run["best_top1"]):
            why = "finished without final metrics"
        else:
            why = f"another configuration (cell {run['cell']}) was picked"
        lines.append(f"{run['name']}: {why}")
    return lines


def unfinished(runs: pd.DataFrame, used: pd.DataFrame) -> list[Missing]:
    """The runs that began and did not finish, without pruned runs and those that a `used` run supersedes."""
    begun = runs[runs["status"] != "FINISHED"]
    found = [
        Missing(run["pair"], run["distiller"], run["seed"], run["state"])
        for run, again in zip(begun.to_dict("records"), _superseded(begun, used))
        if not again and run["state"] != "pruned"
    ]
    return list(dict.fromkeys(found))


def without_run(
    runs: pd.DataFrame, distilled: pd.DataFrame, begun: Sequence[Missing], pairs: Iterable[str]
) -> list[Missing]:
    """The combinations of `pairs` and the methods and seeds of `distilled` that are neither in it nor in `begun`.

    A method that has several rows, for its configurations, needs each seed on the pairs that a row has.
    """
    distilled = distilled.assign(named=distilled["teacher"] + "-" + distilled["student"])  # without column settings
    last = runs.sort_values("started", kind="stable")
    state = dict(zip(zip(last["pair"], last["distiller"], last["seed"]), last["state"]))
    seeds, begun_ones = sorted(distilled["seed"].unique()), {row[:3] for row in begun}
    found = []
    for _, row in distilled.groupby("method", sort=False):
        method, one_of_several = row["distiller"].iloc[0], bool(row["row"].iloc[0])
        values = tuple(word for word in row["changed"].iloc[0] if all(word in words for words in row["changed"]))
        known = {*zip(row["named"], row["seed"])}
        for pair, seed in product(dict.fromkeys(row["named"] if one_of_several else pairs), seeds):
            if (pair, seed) not in known and (pair, method, seed) not in begun_ones:
                now = "not begun" if one_of_several else state.get((pair, method, seed), "not begun")
                found.append(Missing(pair, method, seed, now, values))
    return found


def _superseded(runs: pd.DataFrame, used: pd.DataFrame) -> list[bool]:
    """For each of `runs`, whether a run of its configuration and seed is among the `used` ones."""
    keys = ["teacher", "student", "distiller", "cell", "seed"]
    covered = set(used[keys].itertuples(index=False, name=None))
    return [key in covered for key in runs[keys].itertuples(index=False, name=None)]


def retry_command(rows: Sequence[Missing], dataset: str, output: Path) -> str:
    """The command that continues `rows` as they were planned, from the output folder that they are in."""
    words = ["edkd", "retry", *(["--output", str(output)] if output != Path("outputs") else []), "--dataset", dataset]
    for option, values in zip(("--pair", "--distiller", "--seed"), _values(rows)):
        words += [option, values]
    return shlex.join(words)


def launch_commands(rows: Sequence[Missing], distilled: pd.DataFrame, output: Path) -> list[str]:
    """The commands that train `rows`, with the settings of the `distilled` runs that are not `launch.py`'s defaults.

    The published pairs have files in conf/pair and share a command; other pairs have a command for each teacher, and
    runs by other values than the defaults have one of their own. DIR is where the user has methods and data sets that
    conf/ lacks, and NAME is the option of such a data set.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[Missing]] = {}
    for row in rows:
        teacher = "" if row.pair in literature.PUBLISHED else row.pair.partition("-")[0]
        groups.setdefault((teacher, row.values), []).append(row)
    settings = _settings(distilled) + ([f"output={output}"] if output != Path("outputs") else [])
    known = {path.stem for path in (CONF / "distiller").glob("*.yaml")}
    commands = []
    for (teacher, values), group in sorted(groups.items()):
        pairs, methods, seeds = _values(group)
        students = ",".join(dict.fromkeys(row.pair.partition("-")[2] for row in group))
        networks = [f"teacher={teacher}", f"student={students}"] if teacher else [f"pair={pairs}"]
        ours = known.issuperset(row.method for row in group) and _OWN_DATA not in settings
        own = [] if ours else ["--config-dir", "DIR"]  # which nothing records
        words = ["python", "launch.py", "-m", *own, f"distiller={methods}", *networks, f"seed={seeds}"]
        words += [*values, *settings]
        commands.append(shlex.join(words))
    return commands


def _settings(distilled: pd.DataFrame) -> list[str]:
    """The overrides that turn the defaults of `launch.py` into the settings of the `distilled` runs."""
    words: list[str] = []
    values: dict[str, set[str]] = {}
    for params in distilled["params"]:
        for key, value in params.items():
            values.setdefault(key, set()).add(value)
    params = {key: found.pop() for key, found in values.items() if len(found) == 1}
    if not literature.comparable(distilled):
        words += dataset_overrides(params) or ([_OWN_DATA] if "dataset.source._target_" in params else [])
        by_student = all(each.get("schedule.lr") == each.get("student.lr") for each in distilled["params"])
        kept = [key for key in params if key.startswith("schedule.") and not (by_student and key == "schedule.lr")]
        words += [f"{key}={params[key]}".replace(", ", ",") for key in kept]
    usual = {"engine.precision": "fp32", "engine.devices": "1", "teacher_seed": "1000"}
    return words + [f"{key}={params[key]}" for key, value in usual.items() if params.get(key, value) != value]


def _values(rows: Sequence[Missing]) -> tuple[str, str, str]:
    """The pairs, methods and seeds of `rows`, each as a list such as 0,1,2."""
    pairs, methods = dict.fromkeys(row.pair for row in rows), dict.fromkeys(row.method for row in rows)
    return ",".join(pairs), ",".join(methods), ",".join(map(str, sorted({row.seed for row in rows})))
