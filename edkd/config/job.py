"""One run before it starts: its identity, its directory, and its configuration frozen into that directory."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from edkd.config.schema import LABELS, SGD, Settings, settings
from edkd.errors import EdkdError
from edkd.rundir import files, provenance
from edkd.rundir import settings as rundir_settings
from edkd.rundir.paths import CONFIG, RunDir

# PyYAML's bindings to libyaml take a tenth of the time, but are not in every build of it.
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Job:
    """A planned run: what it computes and where its files are."""

    config: dict[str, Any]  # resolved
    settings: Settings
    teacher_id: str | None
    threads: int | None = None  # its share of the CPU threads of the launcher that is to run it

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See `config.job.identity`."""
        return identity(self.settings, self.teacher_id)

    @functools.cached_property
    def run(self) -> str:
        """The hash that names this run."""
        return digest(self.identity)

    @functools.cached_property
    def name(self) -> str:
        """A readable name, unique by the hash at its end."""
        cfg = self.settings
        return f"{cfg.dataset.key}/{cfg.pair}/{cfg.method}-s{cfg.seed}-{self.run[:8]}"

    @property
    def directory(self) -> Path:
        """Where the run's files are."""
        return Path(self.settings.output) / "runs" / self.name

    @property
    def used(self) -> dict[str, Any]:
        """The configuration; without its teacher group if the method needs no teacher."""
        return {key: node for key, node in self.config.items() if key != "teacher" or self.settings.needs_teacher}

    @property
    def tags(self) -> dict[str, str]:
        """What tracking and analysis sort runs by."""
        cfg, identified = self.settings, self.identity
        return {
            "pair": cfg.pair,
            "teacher": cfg.teacher.name if cfg.needs_teacher else "",
            "student": cfg.student.name,
            "distiller": cfg.method,
            "dataset": cfg.dataset.key,
            "seed": str(cfg.seed),
            "config_hash": self.run,
            "cell": cell(identified),
            "recipe": recipe(identified),
            **{name: str(self.config["distiller"][name]) for name in LABELS if name in self.config["distiller"]},
        }


def identity(cfg: Settings, teacher_id: str | None) -> dict[str, Any]:
    """All that can change a run's result, and nothing else: no paths, no tracking, no launcher, no device.

    `teacher_id` identifies the teacher's weights: the hash of the run that trained them, or of the file they came from.
    """
    dataset = asdict(cfg.dataset)
    dataset["source"] = {k: v for k, v in cfg.dataset.source.items() if k not in ("root", "download", "workers")}
    if dataset["source"].get("broken") == "stop":  # a run that ends has read every image
        del dataset["source"]["broken"]
    teacher = None
    if cfg.needs_teacher:
        teacher = {"name": cfg.teacher.name, "model": cfg.teacher.model, "id": teacher_id}
    identified: dict[str, Any] = {
        "seed": cfg.seed,
        "dataset": dataset,
        "teacher": teacher,
        "student": {"name": cfg.student.name, "model": cfg.student.model},
        "distiller": {"method": cfg.method, **cfg.distiller},
        "schedule": asdict(cfg.schedule),
        "precision": cfg.engine.precision,
    }
    if cfg.engine.devices > 1:  # batch norms, and losses that relate images, see a process's part of a batch
        identified["devices"] = {"count": cfg.engine.devices, "sync_batch_norm": cfg.engine.sync_batch_norm}
    return identified if cfg.optimizer == SGD else {**identified, "optimizer": cfg.optimizer}


def digest(value: Any) -> str:
    """16 hexadecimal digits that name a value made of dicts, lists and scalars."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe(identified: Mapping[str, Any]) -> str:
    """A name for what the runs of one table must share: data, schedule without its learning rate, precision."""
    schedule = {name: value for name, value in identified["schedule"].items() if name != "lr"}
    common = digest([identified["dataset"], schedule, identified["precision"]])[:8]
    return f"{schedule['epochs']}ep-b{schedule['batch_size']}-{identified['precision']}-{common}"


def cell(identified: Mapping[str, Any]) -> str:
    """A name for what the runs of one table cell must share: everything but the seed."""
    return digest({name: value for name, value in identified.items() if name != "seed"})


def make_job(resolved: Mapping[str, Any], method: str, teacher_id: str | None) -> Job:
    """A job from a resolved configuration; `teacher_id` identifies the teacher's weights (None without a teacher)."""
    cfg = settings(resolved, method)
    schedule = {**resolved["schedule"], "milestones": cfg.schedule.milestones}  # in epochs
    return Job(
        config={**resolved, "schedule": schedule}, settings=cfg, teacher_id=teacher_id if cfg.needs_teacher else None
    )


def labels(jobs: Iterable[Job]) -> dict[str, str]:
    """For each run, by its hash: the settings, except the seed, that differ among runs of its data, pair and method."""
    given = {job.run: ((job.settings.dataset.key, job.settings.pair, job.settings.method), job.config) for job in jobs}
    return rundir_settings.labels(given)


def freeze(job: Job, *, sweep: str | None, threads: int | None, planned_with: provenance.Code | None = None) -> Path:
    """Write the job's configuration into its directory, whole or not at all, and return the file.

    The run later reads this file, so a change of conf/ does not affect a waiting job. The file names the code that
    planned it, by default the code on the disk now. Uncommitted changes are saved beside the file.
    """
    known = planned_with or provenance.read()
    about = {"hash": job.run, "method": job.settings.method, "teacher_id": job.teacher_id, "sweep": sweep}
    frozen = {**job.config, "run": {**about, "threads": threads, "code": known.version}}
    path = RunDir(job.directory).config
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        files.write_text(path, yaml.dump(frozen, Dumper=_DUMPER, sort_keys=False))
        provenance.keep_changes(known, job.directory)
    except OSError as error:
        raise EdkdError(
            f"cannot write {path}: {error.strerror}; output={job.settings.output} sets the folder"
        ) from error
    return path


def absent(job: Job) -> list[Path]:
    """Those of the run's directory and its parents up to `runs` that do not exist yet: `freeze` will make them."""
    return [folder for folder in (job.directory, *job.directory.parents[:3]) if not folder.exists()]


def remove_frozen(folders: Iterable[Path]) -> None:
    """Remove folders that `freeze` made, with the files that it wrote; a folder with anything else in it stays."""
    for folder in sorted({*folders}, key=lambda folder: len(folder.parts), reverse=True):
        with contextlib.suppress(OSError):
            held = set(folder.iterdir())
            if held <= {RunDir(folder).config, RunDir(folder).code}:
                for path in held:
                    path.unlink()
                folder.rmdir()


def thaw(path: Path) -> tuple[Job, str | None]:
    """The job that a frozen configuration describes, and the sweep that it belongs to."""
    try:
        frozen = yaml.load(path.read_text(), Loader=_LOADER)
        about = frozen.pop("run")
        frozen.setdefault("optimizer", SGD)  # earlier versions froze neither
        frozen.setdefault("teacher_recipe", "warn")
        job = replace(make_job(frozen, about["method"], about["teacher_id"]), threads=about.get("threads"))
        sweep: str | None = about["sweep"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise EdkdError(f"{path} is not a frozen configuration of a run: {error}") from error
    if job.run != about["hash"]:
        raise EdkdError(f"{path} was changed after planning: it now describes run {job.run}, not {about['hash']}")
    return job, sweep


def training_run(teacher_id: str | None) -> str:
    """The hash of the run that trains a teacher; empty for an imported teacher, and without a teacher."""
    kind, _, value = (teacher_id or "").partition(":")
    return value if kind == "run" else ""


def directory_of(run: str, cfg: Settings) -> Path | None:
    """The directory of a run of the same data set in the same output folder, by its hash; None where there is none."""
    folder = Path(cfg.output) / "runs" / cfg.dataset.key
    found = sorted(folder.glob(f"*/*-{run[:8]}/{CONFIG}"))
    return found[0].parent if found else None


def planned_code(run_dir: Path) -> dict[str, str]:
    """The version of the code that planned a run; empty where git did not know it."""
    try:
        return dict(yaml.load(RunDir(run_dir).config.read_text(), Loader=_LOADER)["run"].get("code") or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return {}
