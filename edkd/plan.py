"""One run before it starts: its identity, its directory, and its configuration frozen into that directory."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edkd import config
from edkd.config import Settings
from edkd.errors import EdkdError


@dataclass(frozen=True)
class Job:
    """A run that is to exist: what it computes and where it lives."""

    config: dict[str, Any]  # resolved
    settings: Settings
    teacher_id: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """See `config.identity`."""
        return config.identity(self.settings, self.teacher_id)

    @property
    def run(self) -> str:
        """The hash that names this run."""
        return config.digest(self.identity)

    @property
    def name(self) -> str:
        """Readable, and unique by the hash at its end."""
        given = self.settings
        return f"{given.dataset.key}/{given.pair}/{given.method}-s{given.seed}-{self.run[:8]}"

    @property
    def directory(self) -> Path:
        """Where the run's files are."""
        return Path(self.settings.output) / "runs" / self.name

    @property
    def tags(self) -> dict[str, str]:
        """What tracking and analysis sort runs by."""
        given, identified = self.settings, self.identity
        return {
            "pair": given.pair,
            "teacher": given.teacher.name if given.needs_teacher else "",
            "student": given.student.name,
            "distiller": given.method,
            "dataset": given.dataset.key,
            "seed": str(given.seed),
            "config_hash": self.run,
            "cell": config.cell(identified),
            "recipe": config.recipe(identified),
        }


def make_job(resolved: Mapping[str, Any], method: str, teacher_id: str | None) -> Job:
    """A job from a resolved configuration; `teacher_id` names the weights that teach (None without a teacher)."""
    given = config.settings(resolved, method)
    return Job(config=dict(resolved), settings=given, teacher_id=teacher_id if given.needs_teacher else None)


def freeze(job: Job, *, sweep: str | None, threads: int | None) -> Path:
    """Write the job's configuration into its directory, whole or not at all, and return the file.

    What runs later is this file: changing conf/ afterwards does not change a job that waits.
    """
    frozen = {**job.config, "engine": {**job.config["engine"], "threads": job.settings.engine.threads or threads}}
    frozen["run"] = {"hash": job.run, "method": job.settings.method, "teacher_id": job.teacher_id, "sweep": sweep}
    path = job.directory / "config.yaml"
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, yaml.safe_dump(frozen, sort_keys=False))
    except OSError as error:
        raise EdkdError(
            f"cannot write {path}: {error.strerror}; output={job.settings.output} sets the folder"
        ) from error
    return path


def thaw(path: Path) -> tuple[Job, str | None]:
    """The job that a frozen configuration describes, and the sweep that it belongs to."""
    try:
        frozen = yaml.safe_load(path.read_text())
        about = frozen.pop("run")
        job = make_job(frozen, about["method"], about["teacher_id"])
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise EdkdError(f"{path} is not a frozen configuration of a run: {error}") from error
    if job.run != about["hash"]:
        raise EdkdError(f"{path} was changed after planning: it now describes run {job.run}, not {about['hash']}")
    return job, about["sweep"]


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old content or the new, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def code_version() -> dict[str, str]:
    """The git commit of the code that runs and whether the tree differed from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        folder = str(Path(__file__).parent)
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit, "git_dirty": str(bool(changes)).lower()} if tracked else {}
