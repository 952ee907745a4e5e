"""What disturbed runs came to, held against the same runs undisturbed; and the table of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edkd.rundir import journal
from edkd.tracking.recorded import shown
from edkd.tracking.store import open_existing, search
from tests.integration.runs import starts

COLUMNS = ("fault", "what happens", "runs", "resumed after epoch", "lost epochs", "duplicate metrics", "equal", "s")


@dataclass
class Row:
    """One fault. What is not known when a test fails stays empty."""

    fault: str
    what: str
    runs: int = 0
    resumed: list[int] = field(default_factory=list)
    lost: int = 0
    duplicates: int = 0
    equal: bool = False
    seconds: float | None = None  # from the start of the first run to the end of the last
    passed: bool = False

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of COLUMNS."""
        known = self.runs > 0
        return (
            self.fault,
            self.what if self.passed else f"TEST FAILED: {self.what}",
            str(self.runs),
            ", ".join(map(str, self.resumed)) or "-",
            str(self.lost) if known else "?",
            str(self.duplicates) if known else "?",
            ("yes" if self.equal else "NO") if known else "?",
            f"{self.seconds:.0f}" if self.seconds is not None else "?",
        )


class FaultTable:
    """The rows of a test run."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @contextmanager
    def row(self, fault: str, what: str) -> Iterator[Row]:
        """A row that counts as passed if the block ends without an error."""
        row = Row(fault, what)
        self.rows.append(row)
        yield row
        row.passed = True

    def text(self) -> str:
        """Aligned, for a terminal."""
        lines = [COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(len(line[number]) for line in lines) for number in range(len(COLUMNS))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)

    def markdown(self) -> str:
        """For the README."""
        lines = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def hold_against(row: Row, runs: Mapping[str, Path], peace: Path, *, uri: str, experiment: str) -> None:
    """Compare finished runs with the same runs below `peace`, and what MLflow has of them with the journals.

    Fills the row, then raises AssertionError if an epoch is missing, a metric is there twice or not at all, or a value
    or a weight differs in any bit.
    """
    faults: list[str] = []
    times: list[float] = []
    row.runs += len(runs)
    row.equal = True
    for name, run in runs.items():
        records = journal.read(run)
        state = journal.state(run)
        reference = peace.joinpath(*run.parts[-4:])
        times += [record["time"] for record in records]
        row.resumed += [record["resumed_from"] for record in starts(run)[1:] if record["resumed_from"]]
        assert state.epochs_total is not None
        lost = set(range(1, state.epochs_total + 1)) - set(journal.epochs(run))
        row.lost += len(lost)
        faults += [f"{name}: lost epochs {sorted(lost)}"] if lost else []
        differences = list(_differences(records, journal.read(reference)))
        differences += [file for file in ("last.pt", "best.pt") if not same_weights(run / file, reference / file)]
        row.equal &= not differences
        faults += [f"{name}: {each} differs" for each in differences]
        duplicates, missing = _in_mlflow(state, journal.epochs(run), uri, experiment)
        row.duplicates += duplicates
        faults += [f"{name}: {duplicates} duplicate metrics in MLflow"] if duplicates else []
        faults += [f"{name}: MLflow lacks or has otherwise {missing[:5]}"] if missing else []
    row.seconds = max(times) - min(times)
    assert not faults, faults


def attempts(run: Path) -> int:
    """How often a run was started."""
    return len(starts(run))


def overlapping(runs: Sequence[Path]) -> Iterator[list[journal.Record]]:
    """At each start of a run, the start records of all the runs that went on at that moment, its own among them.

    Of each run the last attempt counts.
    """
    spans = []
    for run in runs:
        records = journal.read(run)
        begin = max(number for number, record in enumerate(records) if record["event"] == "start")
        spans.append((records[begin]["time"], records[-1]["time"], records[begin]))
    for moment, _, _ in spans:
        yield [record for begin, end, record in spans if begin <= moment < end]


def _differences(records: Sequence[journal.Record], reference: Sequence[journal.Record]) -> Iterator[str]:
    """What a journal says otherwise than the other: each epoch, also where it was computed twice, and the end."""
    expected = {record["epoch"]: record["metrics"] for record in reference if record["event"] == "epoch"}
    for record in records:
        if record["event"] == "epoch" and record["metrics"] != expected.get(record["epoch"]):
            yield f"epoch {record['epoch']}"
    for key in ("last", "best"):
        if records[-1].get(key) != reference[-1].get(key) or key not in records[-1]:
            yield key


def same_weights(one: Path, other: Path) -> bool:
    """Whether two files have the same tensors, bit for bit."""
    loaded = [torch.load(path, weights_only=True) for path in (one, other)]
    first, second = (_tensors(each) for each in loaded)
    return bool(first) and first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _tensors(node: object, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return {prefix: node}
    found: dict[str, torch.Tensor] = {}
    if isinstance(node, Mapping):
        for key, value in node.items():
            found |= _tensors(value, f"{prefix}.{key}")
    return found


def _in_mlflow(
    state: journal.RunState, epochs: dict[int, journal.Record], uri: str, experiment: str
) -> tuple[int, list[str]]:
    """How many values MLflow has more than once, twin runs included, and which it lacks or has otherwise."""
    client = open_existing(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"MLflow has no experiment {experiment}"
    logged = search(client, found.experiment_id, f"tags.`config_hash` = '{state.run}'")
    if not logged:
        return 0, ["the run"]
    duplicates = sum(len(client.get_metric_history(twin.info.run_id, "test/top1")) for twin in logged[1:])
    missing = [] if logged[0].info.status == "FINISHED" else [f"its end: {logged[0].info.status}"]
    for key in next(iter(epochs.values()))["metrics"]:
        history = client.get_metric_history(logged[0].info.run_id, key)
        duplicates += sum(count - 1 for count in Counter(each.step for each in history).values())
        values = {each.step: each.value for each in history}
        expected = {epoch: shown(record["metrics"])[key] for epoch, record in epochs.items()}
        missing += [] if values == expected else [key]
    return duplicates, missing
