"""What a journal holds for MLflow, as plain data: parameters, tags, metrics, status. Knows nothing of MLflow."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edkd.errors import EdkdError
from edkd.rundir.journal import Record
from edkd.rundir.settings import leaves

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]  # MLflow's names

PARAM_LENGTH = 6000  # characters, MLflow's limit for the value of a parameter
TAG_LENGTH = 5000  # characters: the limit of MLflow's older servers, newer ones take 8000

# Parameters that no reader compares: storage, engine details, and constants of the data set and the method.
_CONSTANT = (
    *("output", "tracking.", "allow_weak_teacher", "teacher_recipe", "dataset.mean", "dataset.std"),
    *("distiller._target_", "distiller.title", "distiller.family", "distiller.year", "teacher.name", "student.name"),
    *("engine.channels_last", "engine.capture", "engine.cpu_kernels", "engine.teacher_cache", "engine.compile"),
)

_encode = json.JSONEncoder(sort_keys=True).encode  # made once: json.dumps would make one for each epoch

_VERDICTS: dict[str, Status] = {"end": "FINISHED", "failure": "FAILED", "interrupted": "KILLED", "pruned": "KILLED"}


@dataclass(frozen=True)
class Epoch:
    """One epoch: ``metrics`` by name, ``time`` in ms."""

    number: int
    time: int
    metrics: dict[str, float]
    mark: str  # ``<number>:<digest of all values up to this epoch>``, to record how far a run was logged


@dataclass(frozen=True)
class RecordedRun:
    """A run as its journal has it. All times are unix milliseconds."""

    run: str  # the hash of its configuration
    name: str
    label: str  # short, with the method first, because MLflow cuts long names
    sweep: str | None
    started: int
    params: dict[str, str]
    tags: dict[str, str]
    epochs: list[Epoch]  # in order, each once
    status: Status
    since: int  # when the run reached this status
    final: dict[str, float]  # values that a finished run has once: last/…, best/… and others
    summary: Record | None  # the end record of a finished run
    error: str | None

    @property
    def state(self) -> str:
        """The status and its start time; it changes whenever the run starts, ends, fails or stops again."""
        return f"{self.status}@{self.since}"

    def steps(self, *, after: int) -> Iterator[tuple[int, int, dict[str, float]]]:
        """Yield step, time and metrics of each epoch after epoch `after`, then the `final` values as step 0.

        MLflow draws a metric as a bar if it has no other step.
        """
        yield from ((epoch.number, epoch.time, shown(epoch.metrics)) for epoch in self.epochs if epoch.number > after)
        yield 0, self.since, shown(self.final)


def summarise(records: list[Record], source: Path, *, held: bool) -> RecordedRun | None:
    """Summarise the records of one journal; ``held`` says whether a process holds the run's directory now.

    A run whose last record is a start or an epoch is running if it is held; otherwise it was killed. If an epoch was
    written more than once, its last record counts. Returns None if no start was recorded.
    Raises `EdkdError` for a record of another shape.
    """
    try:
        return _summarise(records, held)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        lacks = f"a record of {source} lacks what it needs ({type(error).__name__}: {error})"
        raise EdkdError(f"{lacks}; restore or remove it") from error


def _summarise(records: list[Record], held: bool) -> RecordedRun | None:
    starts = [record for record in records if record["event"] == "start"]
    if not starts:
        return None
    start, last = starts[-1], records[-1]
    status: Status = _VERDICTS.get(last["event"], "RUNNING" if held else "KILLED")
    sweeps = [record["sweep"] for record in starts if record.get("sweep")]
    return RecordedRun(
        run=start["run"],
        name=start["name"],
        label=_label(start["tags"]),
        sweep=sweeps[-1] if sweeps else None,
        started=_milliseconds(starts[0]),
        params=comparable(flatten(start["config"])),
        tags=_tags(start, last, attempts=len(starts)),
        epochs=_epochs(records),
        status=status,
        since=_milliseconds(start if status == "RUNNING" else last),
        final=_final(start, last),
        summary=last if status == "FINISHED" else None,
        error=str(last.get("error"))[:TAG_LENGTH] if status == "FAILED" else None,
    )


def flatten(config: dict[str, Any]) -> dict[str, str]:
    """A nested configuration as one level of dotted keys, in the characters and lengths that MLflow takes.

    >>> flatten({"distiller": {"temperature": 4.0}, "seed": 0})
    {'distiller.temperature': '4.0', 'seed': '0'}
    """
    return {re.sub(r"[^\w.\- /]", "_", key): str(value)[:PARAM_LENGTH] for key, value in leaves(config)}


def comparable(params: dict[str, str]) -> dict[str, str]:
    """The parameters without those that no reader compares."""
    return {key: value for key, value in params.items() if not key.startswith(_CONSTANT)}


def shown(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics as MLflow shows them: accuracies, in percent, with two decimals."""
    return {key: round(value, 2) if key.endswith(("/top1", "/top5")) else value for key, value in metrics.items()}


def _label(tags: dict[str, Any]) -> str:
    method = tags.get("title") or tags["distiller"]
    networks = f"{tags['teacher']}→{tags['student']}" if tags["teacher"] else tags["student"]
    what = f"{networks} alone" if tags["distiller"] == "vanilla" else f"{method} {networks}"
    return f"{what} s{tags['seed']}"


def _epochs(records: list[Record]) -> list[Epoch]:
    latest = {record["epoch"]: record for record in records if record["event"] == "epoch"}
    epochs = []
    digest = ""
    for number, record in sorted(latest.items()):
        values = _encode([number, record["metrics"]])
        digest = hashlib.sha256(f"{digest}{values}".encode()).hexdigest()[:16]
        measured = {
            **record["metrics"],
            **{f"seconds/{phase}": value for phase, value in record.get("seconds", {}).items()},
            "images_per_second": record.get("images_per_second"),
        }
        epochs.append(Epoch(number, _milliseconds(record), _numbers(measured), f"{number}:{digest}"))
    return epochs


def _tags(start: Record, last: Record, *, attempts: int) -> dict[str, str]:
    teacher = start.get("teacher") or {}
    tags = {
        **start["tags"],
        "host": start.get("host"),
        "device": start.get("device"),
        "threads": start.get("threads"),
        "data_sha256": start.get("data_sha256"),
        "sweep": start.get("sweep"),
        "attempts": attempts,
        **{f"teacher_{key}": value for key, value in teacher.items()},
        **{f"versions.{package}": version for package, version in start.get("versions", {}).items()},
        "best_by": last.get("best", {}).get("by"),
        "pruned_after": last["epoch"] if last["event"] == "pruned" else None,
    }
    return {key: str(value)[:TAG_LENGTH] for key, value in tags.items() if value is not None}


def _final(start: Record, last: Record) -> dict[str, float]:
    if last["event"] != "end":
        return {}
    named = {f"{which}/{key}": value for which in ("last", "best") for key, value in last[which].items()}
    once = {key: last.get(key) for key in ("seconds", "peak_memory_mb")}
    return _numbers({**named, **once, "teacher/top1": (start.get("teacher") or {}).get("top1")})


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Drop values that are no numbers: text, and null, which the journal writes for NaN and infinity."""
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def _milliseconds(record: Record) -> int:
    return int(record["time"] * 1000)
