"""Write the runs that importers find as journals, each once."""

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
    """The directories of new and of existing runs, and a line for each thing left out and for each note."""

    written: list[Path] = field(default_factory=list)
    there: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def record(importer: ModuleType, paths: Sequence[Path], output: Path, overrides: Sequence[str]) -> Outcome:
    """Write every finished run that an importer finds below some paths into an output folder, each once.

    The overrides name the recipe that trained the runs, as for a run of ours. The journals record it, and a file must
    not contradict it. Anything but a finished run by this recipe is left out, with the reason. Raises EdkdError for
    overrides that do not fit, and if a journal cannot be written.
    """
    compose_settings(list(overrides))  # overrides that do not fit are wrong for all runs
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
                if not new and (other := _differs(run_dir, result, tuple(overrides))):
                    done.left_out.append(f"{source}: {other}")
                    continue
                (done.written if new else done.there).append(run_dir)
                done.notes += [f"{source}: {note}" for note in result.notes] if new else []
    return done


def _read(importer: ModuleType, source: Path, overrides: tuple[str, ...]) -> list[Result | EdkdError]:
    _, teacher, student = importer.named(source)
    return list(importer.read(source, _composed(teacher, student, overrides)[1].schedule))


@functools.cache
def _composed(teacher: str, student: str, overrides: tuple[str, ...]) -> tuple[dict[str, Any], Settings]:
    """The recipe that the overrides give an imported run, resolved and typed."""
    networks = [f"student={student}", *([f"teacher={teacher}"] if teacher else [])]
    values = compose_values(["distiller=vanilla", *networks, *overrides])
    return values, schema.settings(values, "vanilla")


def _write(result: Result, output: Path, overrides: tuple[str, ...]) -> tuple[Path, bool]:
    """Write an imported run; returns its directory and whether it is new. Its content identifies it, not its path."""
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
        # The teacher's weights are not known: a unique id prevents comparisons as if the teacher were the same.
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


def _differs(run_dir: Path, result: Result, overrides: tuple[str, ...]) -> str:
    """How the recipe of an imported run that is there differs from the one that it is given now; empty where not."""
    known = (journal.state(run_dir).start or {})["tags"]["recipe"]
    given = recipe(identity(_composed(result.teacher, result.student, overrides)[1], None))
    return f"there by the recipe {known}, not {given}: remove {run_dir} to import it anew" if known != given else ""


def _free_number(folder: Path, distiller: str) -> int:
    """A number in place of the seed, which is not known: the first that no run of this distiller has yet."""
    names = (DIRECTORY_NAME.fullmatch(each.name) for each in folder.glob(f"{distiller}-s*"))
    taken = {int(name["seed"]) for name in names if name}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _labels(method: str, origin: str) -> dict[str, str]:
    """The method's labels in tables: those of our method of that name, with the code base after the title."""
    path = CONF / "distiller" / f"{method}.yaml"
    known = yaml.safe_load(path.read_text()) if path.exists() else {}
    labels = {name: str(known[name]) for name in LABELS if name in known}
    return {**labels, "title": f"{labels.get('title', method)} ({origin})"}
