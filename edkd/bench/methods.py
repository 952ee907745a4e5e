"""The page docs/methods.md: every method, from its YAML file, its class and its measured cost.

`python -m edkd.bench.methods` writes it.
"""

import csv
import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from edkd import CONF
from edkd.bench.method_costs import FILE
from edkd.config.instantiate import target

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
COSTS = ROOT / "docs" / FILE
HEAD = """# Methods

Each is `distiller=<option>`, a file in `conf/distiller/` with its formula, values and the sources of its numbers.
*Needs*: logits of the teacher come from the [cache](teacher-cache.md); features and strong views make it run in every
step. Published accuracies, each with its source and protocol, are in `analysis/published/cifar100.csv`. *Cost* is the
time of a step as a multiple of KD's, *MB* the peak memory of a run beside data and libraries, both for
{machine};
all methods in turns: `edkd bench --methods all --output docs`. This page is written by `python -m edkd.bench.methods`.

KDSVD (Lee, Kim and Song, ECCV 2018, [1807.06819](https://arxiv.org/abs/1807.06819)) is missing: what it computes in
detail could not be established, and no loss written from its description gives the value that its implementation does
(`kdsvd_k1` in `tests/golden/losses.json`).

In the formulas CE is the cross-entropy, s and t are the logits of student and teacher, p their probabilities, y the
label, T the temperature. TCKD and NCKD are the two parts of KD in DKD: of the label against all other classes, and
among the other classes. w(epoch) rises from 0 to 1 over `distiller.warmup_epochs`.

| option | method | family | year | source | needs | loss | cost | MB |
|---|---|---|---|---|---|---|---:|---:|
"""


def page() -> str:
    """The text of the page."""
    costs = list(csv.DictReader(COSTS.read_text().splitlines()))
    of_method = {row["method"]: row for row in costs if row["pair"] == costs[0]["pair"]}
    options = sorted((CONF / "distiller").glob("*.yaml"))
    return HEAD.format(machine=_machine(costs[0])) + "".join(_row(path, of_method.get(path.stem)) for path in options)


def _machine(first: dict[str, str]) -> str:
    """The pair and the machine that the costs were measured with."""
    machine = f"{first['cpu']}, {first['threads']} threads, torch {first['torch']}, {first['date'][:10]}"
    return f"{first['pair']} ({machine})"


def _row(path: Path, cost: dict[str, str] | None) -> str:
    text = path.read_text()
    values, head = yaml.safe_load(text), [line for line in text.splitlines() if line.startswith("#")]
    comment = " ".join(line.lstrip("# ") for line in head)
    venue = re.search(r"(ICLR|ICCV|CVPR|ECCV|NeurIPS|AAAI|ACM MM) \d{4}", comment)
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", comment)
    source = ", ".join(
        [*([venue[0]] if venue else []), *([f"[{arxiv[1]}](https://arxiv.org/abs/{arxiv[1]})"] if arxiv else [])]
    )
    indented = itertools.takewhile(
        lambda line: line.startswith("#   ") and "launch.py" not in line,
        itertools.dropwhile(lambda line: not line.startswith("#   "), head),
    )
    formula = " ".join(line.lstrip("# ") for line in indented)
    cells = [
        f"`{path.stem}`",
        str(values.get("title", "the student alone")),
        str(values.get("family", "")),
        str(values.get("year", "")),
        source,
        _needs(values),
        formula.replace("|", "\\|").replace("*", "\\*"),
        f"{float(cost['ratio']):.2f}" if cost else "",
        f"{float(cost['peak_mb']):.0f}" if cost and cost["peak_mb"] else "",
    ]
    return f"| {' | '.join(cells)} |\n"


def _needs(values: dict[str, Any]) -> str:
    method = target(values, "distiller")
    if not method.needs_teacher:
        return "nothing"
    return f"{'features' if method.needs_feats else 'logits'}{', strong views' if method.needs_strong_view else ''}"


if __name__ == "__main__":
    PAGE.write_text(page())
