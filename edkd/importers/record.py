"""Writing what importers find as journals of runs, each once."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from edkd import CONF
from edkd.config import schema
from edkd.config.compose import compose_settings, compose_values
from edkd.config.job import digest, identity, recipe
from edkd.config.schema import LABELS, Settings
from edkd.errors import EdkdError
from edkd.importers.results import Result
from edkd.rundir import files, journal
from edkd.rundir.paths import DIRECTORY_NAME, RunDir


@dataclass
class Outcome:
    """What an import did: the directories of new runs and of those that were there, and a line for whatever else."""

    written: list[Path] = field(default_factory=list)
    there: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def record(importer: ModuleType, paths: Sequence[Path], output: Path, overrides: Sequence[str]) -> Outcome:
    """Write every finished run that an importer finds below some paths into an output folder, each once.

    The overrides name the recipe by which they were trained, as for a run of ours: the journals say so, and what a
    file tells of its recipe must agree. What is no finished run by this recipe is left out, with the reason. Raises
    EdkdError for overrides that do not fit, and if a journal cannot be written.
    """
    compose_settings(list(overrides))  # what does not fit is wrong for all of them
    done = Outcome()
    for path in paths:
        try:
            found = importer.find(path)
        except EdkdError as error:
            done.left_out.append(f"{path}: {error}")
            continue
        for source in found:
            try:
                results = _read(importer, source, tuple(overrides))
            except EdkdError as error:
                results = [error]
            for result in results:
                if isinstance(result, EdkdError):
                    done.left_out.append(f"{source}: {result}")
                    continue
                run_dir, new = _write(result, output, tuple(overrides))
                (done.written if new else done.there).append(run_dir)
                done.notes += [f"{source}: {note}" for note in result.notes] if new else []
    return done


def _read(importer: ModuleType, source: Path, overrides: tuple[str, ...]) -> list[Result | EdkdError]:
    _, teacher, student = importer.named(source)
    return list(importer.read(source, _composed(teacher, student, overrides)[1].schedule))


@functools.cache
def _composed(teacher: str, student: str, overrides: tuple[str, ...]) -> tuple[dict[str, Any], Settings]:
    """The recipe that is said to be an imported run's, resolved and typed."""
    networks = [f"student={student}", *([f"teacher={teacher}"] if teacher else [])]
    values = compose_values(["distiller=vanilla", *networks, *overrides])
    return values, schema.settings(values, "vanilla")


def _write(result: Result, output: Path, overrides: tuple[str, ...]) -> tuple[Path, bool]:
    """The directory of an imported run, and whether it is new. A run is what its content says, wherever it lay."""
    values, cfg = _composed(result.teacher, result.student, overrides)
    about = [result.origin, result.method, result.teacher, result.student]
    run = digest([*about, dict(result.given), dict(result.best), list(result.epochs.items())])
    pair = f"{result.teacher}-{result.student}" if result.teacher else result.student
    distiller = f"{result.method}.{result.origin}"
    folder = Path(output) / "runs" / cfg.dataset.key / pair
    for there in (Path(output) / "runs").glob(f"*/{pair}/{distiller}-s*-{run[:8]}"):
        if RunDir(there).journal.exists():
            return there, False
    number = _free_number(folder, distiller)
    run_dir = folder / f"{distiller}-s{number}-{run[:8]}"
    trained_by = recipe(identity(cfg, None))
    settings_given = {name: value for name, value in result.given.items() if name != "trial"}
    config = {name: values[name] for name in ("dataset", "student", *(["teacher"] if result.teacher else []))}
    config |= {"seed": number, "schedule": {**values["schedule"], "milestones": cfg.schedule.milestones}}
    config |= {"distiller": settings_given} if settings_given else {}
    tags = {
        "pair": pair,
        "teacher": result.teacher,
        "student": result.student,
        "distiller": distiller,
        "dataset": cfg.dataset.key,
        "seed": str(number),
        "config_hash": run,
        "cell": digest([*about, settings_given, trained_by]),
        "recipe": trained_by,
        "imported": result.origin,
        **_labels(result.method, result.origin),
    }
    now = time.time()
    start = {
        "event": "start",
        "time": now,
        "run": run,
        "name": f"{cfg.dataset.key}/{pair}/{run_dir.name}",
        "config": config,
        "tags": tags,
        "imported": {
            "from": result.origin,
            "source": str(result.source.absolute()),
            "given": dict(result.given),
            "notes": list(result.notes),
        },
        # Which weights taught is not known, so nothing is compared as if it had the same teacher.
        "teacher": {"id": f"unknown:{run}"} if result.teacher else None,
    }
    last = max(result.epochs)
    metrics = result.epochs[last]
    end = {
        "event": "end",
        "time": now,
        "last": {"epoch": last, **{name: metrics.get(f"test/{name}") for name in ("top1", "top5", "loss")}},
        "best": {**result.best, "by": "test"},
    }
    epochs = [{"event": "epoch", "time": now, "epoch": n, "metrics": dict(m)} for n, m in result.epochs.items()]
    files.write_bytes(RunDir(run_dir).journal, b"".join(map(journal.encode, (start, *epochs, end))))
    return run_dir, True


def _free_number(folder: Path, distiller: str) -> int:
    """What stands in the place of a seed, which is not known: the first number that no such run has yet."""
    names = (DIRECTORY_NAME.fullmatch(each.name) for each in folder.glob(f"{distiller}-s*"))
    taken = {int(name["seed"]) for name in names if name}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _labels(method: str, origin: str) -> dict[str, str]:
    """What tables call the method: as ours of that name, with the code base behind it."""
    path = CONF / "distiller" / f"{method}.yaml"
    known = yaml.safe_load(path.read_text()) if path.exists() else {}
    labels = {name: str(known[name]) for name in LABELS if name in known}
    return {**labels, "title": f"{labels.get('title', method)} ({origin})"}
