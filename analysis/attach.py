"""Attach the table or report of a sweep's runs to the sweep's own run in MLflow, where people look first."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import tables
from analysis.options import store_of
from edkd import tracking
from edkd.console import counted
from edkd.errors import EdkdError


def to_sweeps(used: pd.DataFrame, options: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Attach files, a sentence and each method's mean accuracies to the sweeps that trained the `used` runs.

    A read-only SQLite store is left as it is. Any other EdkdError is printed as one line on standard error.
    """
    sweeps = sorted({tags["mlflow.parentRunId"] for tags in used["tags"] if "mlflow.parentRunId" in tags})
    if not sweeps:
        return
    titles = {row.method: row.title for row in tables.rows_of(used)}
    distilled = used[~used["alone"]]
    cells = distilled.groupby(["pair", distilled["method"].map(titles)], sort=False)[["last_top1", "best_top1"]].mean()
    per_pair = cells["last_top1"].unstack()
    shared = per_pair.index[per_pair.notna().all(axis="columns")]  # a mean over other pairs compares nothing
    means = cells.loc[list(shared)].groupby(level=1, sort=False).mean()
    shown = ", ".join(f"{method} {top1:.2f}" for method, top1 in means["last_top1"].items())
    sentence = (
        f"{counted(len(distilled), 'distilled student')} of {distilled['dataset'].iloc[0]}, "
        f"{counted(len(per_pair), 'pair')}: mean top-1 after the last epoch, in percent"
        + (
            f", of the {counted(len(shared), 'pair')} with every method: {shown}."
            if len(shared)
            else ": no pair has all."
        )
    )
    metrics = {
        f"{which}/top1 {method}": top1
        for which in ("last", "best")
        for method, top1 in means[f"{which}_top1"].round(2).items()
    }
    try:
        tracking.attach(store_of(options), sweeps, paths=paths, sentence=sentence, metrics=metrics)
    except EdkdError as error:
        print(f"analysis: the sweep's run in MLflow did not get the table: {error}", file=sys.stderr)
