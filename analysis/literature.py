"""The published numbers (`published/*.csv`, each with its source and protocol) and when ours may stand beside them."""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import yaml

from edkd import CONF

FULL_DATASET, FULL_EPOCHS = "cifar100", 240  # what the published numbers were measured on
RECIPE = {  # their recipe, as MLflow parameters; the learning rate depends on the student
    "schedule.batch_size": "64",
    "schedule.momentum": "0.9",
    "schedule.weight_decay": "0.0005",
    "schedule.milestones": "[150, 180, 210]",
    "schedule.gamma": "0.1",
    "schedule.warmup_epochs": "20",
    "dataset.padding": "4",
    "dataset.flip": "True",
}
MISLABELLED = "resnet32x4-mobilenetv2"
NOTES = (
    "**The seventh column of the published table is almost certainly ResNet32x4→ShuffleNetV2.** Its 74.45 (KD) and "
    "77.07 (DKD, by its authors) are exactly the numbers that the CRD, DKD and logit-standardisation papers print for "
    "ShuffleNetV2; a MobileNetV2 of this width reaches 64.60 alone. Both pairs exist here: `resnet32x4-mobilenetv2`, "
    "one of the seven as labelled, and `resnet32x4-shufflenetv2` beside it.",
    "**The rows of the published table mix protocols.** KD is the last epoch's accuracy, from the CRD paper; DKD and "
    "EDKD are the best test epoch (DKD by its authors: mean of 5 runs). In 40 public 240-epoch logs of such runs the "
    "best epoch beats the last by 0.32 on average (0.11 to 0.92). Here last and best are separate blocks.",
    "**Seeds matter.** In published runs of 240 epochs the standard deviation from seed to seed is near 0.2; EDKD's "
    "published margin over its own rerun of DKD averages 0.34. A single seed decides little.",
)


class Published(NamedTuple):
    """What the literature reports for one pair and method, top-1 in percent; None where a column has no number."""

    table: float | None
    authors: float | None
    protocol: Literal["last", "best", "unknown"]
    sources: tuple[str, ...]


@cache
def read(name: Literal["cifar100", "networks"]) -> pd.DataFrame:
    """`published/<name>.csv`."""
    return pd.read_csv(Path(__file__).parent / "published" / f"{name}.csv", keep_default_na=False)


PUBLISHED = tuple(read("cifar100")["pair"].unique())
SEVEN = tuple(yaml.safe_load((CONF / "pair" / "all.yaml").read_bytes())["pairs"])  # of the published table, in order


def number(pair: str, method: str) -> Published | None:
    """The published accuracy of `method` on `pair`: from the EDKD table, and from the method's authors.

    Only numbers by the table's recipe count, because no other may stand beside ours. Numbers of other recipes, named
    in the column `recipe` of `cifar100.csv`, are for readers of the file.
    """
    return _numbers().get((pair, method))


def sources(keys: Collection[tuple[str, str]]) -> dict[str, list[str]]:
    """Where the published numbers of these (pair, method) come from, by method."""
    found: dict[str, list[str]] = {}
    for key in keys:
        known = number(*key)
        listed = found.setdefault(key[1], []) if known else []
        listed += [source for source in (known.sources if known else ()) if source not in listed]
    return found


@cache
def _numbers() -> dict[tuple[str, str], Published]:
    known = read("cifar100")
    found = {}
    for (pair, method), rows in known[known["recipe"] == ""].groupby(["pair", "method"]):
        by = dict(zip(rows["column"], rows["top1"].astype(float)))
        sources = tuple(f"{source} ({column})" for column, source in zip(rows["column"], rows["source"]))
        found[str(pair), str(method)] = Published(by.get("table"), by.get("authors"), rows["protocol"].iloc[0], sources)
    return found


@cache
def network(role: Literal["teacher", "student"], name: str) -> float | None:
    """The published top-1 (percent) of a teacher, or of a student trained alone."""
    known = read("networks")
    values = known[(known["role"] == role) & (known["network"] == name)]["top1"]
    return None if values.empty else float(values.iloc[0])


def comparable(runs: pd.DataFrame) -> bool:
    """Whether these runs may stand beside published numbers: CIFAR-100, all of it, by the published recipe.

    The precision may differ: the recipe's name, in the table's head, says which it was.
    """
    if set(runs["dataset"]) != {FULL_DATASET} or set(runs["last_epoch"]) != {FULL_EPOCHS}:
        return False
    for student, params in zip(runs["student"], runs["params"]):
        rate = "0.01" if student.startswith(("mobilenet", "shufflenet")) else "0.05"
        published = {**RECIPE, "schedule.lr": rate}
        if any(params.get(name, value) != value for name, value in published.items()):
            return False
    return True
