"""One attempt at a run: from its beginning or its last checkpoint to its end."""

import contextlib
import logging
import os
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edkd import __version__, console
from edkd.config.job import Job, digest, planned_code
from edkd.data.streaming import naming_lost_workers
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, journal, provenance
from edkd.rundir.paths import RunDir, checkpoints, study_file
from edkd.runs.inputs import Inputs, device_data
from edkd.runs.method import new_state
from edkd.runs.preemption import Asked, SafePoints
from edkd.runs.pruning import Pruned, pruner_of
from edkd.runs.teacher_source import teacher_source
from edkd.runs.teaching import publish
from edkd.teachers.source import Precision
from edkd.tracking import LiveTracker
from edkd.training import distributed, hardware
from edkd.training.device import cores
from edkd.training.evaluation import all_logits
from edkd.training.trainer import TrainState, Within, fit

LOG = logging.getLogger("edkd")


@dataclass(frozen=True)
class Attempt:
    """An attempt at a run, while a process holds the lock of its directory; all processes of the run have the same.

    Of several processes that share the run, only the first writes its files.
    """

    job: Job
    before: journal.RunState  # what earlier attempts have left
    sweep: str | None
    threads: int
    show: bool
    stop_asked: Asked | None

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.job.directory

    @property
    def paths(self) -> RunDir:
        """The files of the run's directory."""
        return RunDir(self.directory)

    @property
    def journal(self) -> journal.Journal:
        """The run's journal."""
        return journal.Journal(self.directory)

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files."""
        return distributed.rank() == 0

    @naming_lost_workers()
    def train(self, inputs: Inputs, tracker: LiveTracker | None) -> None:
        """Train from the beginning or the last checkpoint to the end."""
        job, cfg, device = self.job, self.job.settings, inputs.device
        if self.before.start is not None:
            self.check_unchanged(inputs)
        state = new_state(cfg, inputs)
        self.resume(state)
        if self.writes:
            self.journal.append(self.start_record(inputs, resumed_from=state.epoch))
            LOG.info("%s%s", job.name, _resumed(state))
        if self.writes and self.threads > cores():
            known = "the run began with this number" if _resumed(state) else "see engine.threads"
            LOG.warning("%d threads share %d CPU cores, which may be very slow: %s", self.threads, cores(), known)
        hardware.forget_peak(device)
        splits = device_data(inputs.arrays, cfg, device)
        teacher = None
        if inputs.teacher is not None:
            splits = replace(splits, teacher_logits=all_logits(inputs.teacher, splits.test, Precision("fp32", device)))
            teacher = teacher_source(cfg, inputs, splits.train, state.distiller.needs_feats)
        safe, prune = self.safe_points(state), self.pruner()
        with console.step_bar(self.show, cfg.schedule.epochs) as bar:

            def on_epoch(record: dict[str, Any], improved: bool) -> None:
                if self.writes:
                    self.save_epoch(state, record, improved)
                    if tracker is not None:
                        tracker.notify()
                    if prune is not None and prune(record):
                        raise Pruned(record["epoch"])
                if safe is not None and record["epoch"] < cfg.schedule.epochs:
                    safe.after_epoch(record)

            def on_step(done: int, steps: int, within: Callable[[], Within]) -> None:
                if bar is not None:
                    bar(state.epoch + 1, done, steps)
                if safe is not None:
                    safe.after_step(done, steps, lambda: self.save_within(state, within))

            fit(
                state,
                teacher,
                splits,
                cfg.schedule,
                seed=cfg.seed,
                capture=cfg.engine.capture,
                on_epoch=on_epoch,
                on_step=on_step if bar is not None or safe is not None else None,
            )
        if self.writes:
            self.finish(state, inputs)

    def safe_points(self, state: TrainState) -> SafePoints | None:
        """Where this attempt may be stopped, or makes a checkpoint within an epoch; None if neither is wanted."""
        every = self.job.settings.engine.checkpoint_every_minutes
        if self.stop_asked is None and every is None:
            return None
        agree = distributed.agreed if distributed.size() > 1 else None
        done = 0 if state.within is None else state.within["steps"]
        return SafePoints(self.stop_asked, agree, every=None if every is None else 60 * every, done=done)

    def pruner(self) -> Callable[[dict[str, Any]], bool] | None:
        """What decides after each epoch whether a search ends this run; None outside a search."""
        if self.sweep is None or not (study := study_file(Path(self.job.settings.output), self.sweep)).exists():
            return None
        return pruner_of(self.job, self.sweep, study)

    def check_unchanged(self, inputs: Inputs) -> None:
        """Raise EdkdError if the data or the teacher's weights are not those of the run's first start."""
        first, teacher = self.before.first_start, inputs.teacher_record
        assert first is not None
        if first["data_sha256"] != inputs.data_sha256:
            what = "data"
        elif teacher is not None and first["teacher"]["sha256"] != teacher["sha256"]:
            what = f"weights of teacher {teacher['id']}"
        else:
            return
        raise EdkdError(f"the {what} changed since {self.directory} began: restore them, or move that directory away")

    def resume(self, state: TrainState) -> None:
        """Restore any checkpoint. Raises EdkdError as `check_resumable`."""
        saved = checkpoint.load(self.paths.checkpoint) if self.writes else None
        # Other nodes may see outdated files for a while.
        known = distributed.from_first(None if saved is None else saved[0])
        if known is None:
            if self.before.epoch and self.writes:
                LOG.warning(
                    "%s had reached epoch %d and has no checkpoint: it is trained anew",
                    self.directory, self.before.epoch,
                )  # fmt: skip
            return
        if self.writes:
            self.check_resumable(known["epoch"])
        state.restore(known)

    def check_resumable(self, epoch: int) -> None:
        """Raise EdkdError if a checkpoint of this epoch does not match the journal or the code of the run's classes."""
        if epoch and epoch not in journal.epochs(self.directory):
            raise EdkdError(
                f"{self.directory} has a checkpoint of epoch {epoch}, and no record of that epoch in "
                f"{self.paths.journal.name}: restore that file, or move the directory away to start anew"
            )
        sources = (self.before.start or {}).get("sources") or {}
        changed = provenance.differing(sources, provenance.own_code(self.job.used))
        if changed:
            raise EdkdError(
                f"the code of {', '.join(changed)} changed since {self.directory} reached epoch "
                f"{self.before.epoch}: restore it, or move that directory away to train anew"
            )

    def start_record(self, inputs: Inputs, *, resumed_from: int) -> dict[str, Any]:
        """The journal's record of a start: configuration, code, machine, data and teacher."""
        job, running = self.job, provenance.read()
        provenance.keep_changes(running, self.directory)
        sources = provenance.own_code(self.job.used)
        # Seeds that were trained by two versions of a method are not samples of one setting.
        cell = {"cell": digest([job.tags["cell"], sources])} if sources else {}
        planned_with = planned_code(self.directory)
        return {
            "event": "start",
            "run": job.run,
            "name": job.name,
            "sweep": self.sweep,
            "resumed_from": resumed_from,
            "config": job.used,
            "tags": {**job.tags, **cell, **running.version},
            "sources": sources,
            "planned_with": planned_with if planned_with != running.version else None,  # a job may wait for days
            "versions": {
                "edkd": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            },
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": hardware.device_name(inputs.device),
            "threads": self.threads,
            "slurm": hardware.slurm_note(),
            "data_sha256": inputs.data_sha256,
            "teacher": inputs.teacher_record,
        }

    def finish(self, state: TrainState, inputs: Inputs) -> None:
        """Save the last weights, publish a network trained alone as a teacher, and append the journal's end."""
        epochs = journal.epochs(self.directory)
        metrics, best = epochs[state.epoch]["metrics"], state.best
        assert best is not None
        self.save_student(state, self.paths.last, state.epoch)
        seconds = sum(sum(record["seconds"].values()) for record in epochs.values())
        end: dict[str, Any] = {
            "event": "end",
            "last": {"epoch": state.epoch, **{name: metrics[f"test/{name}"] for name in ("top1", "top5", "loss")}},
            "best": {name: value for name, value in best.items() if name != "chosen_at"},
            "seconds": seconds,
            "peak_memory_mb": hardware.peak_mb(inputs.device),
            "num_classes": inputs.arrays.num_classes,
        }
        # Before the journal's end, so that a finished network is never missing from the store.
        publish(self.job, end)
        self.journal.append(end)
        remove_checkpoints(self.directory)
        LOG.info(
            "%s: top-1 last %.2f %%, best %.2f %% (epoch %d, chosen on the %s set), in %.0f s; %s",
            self.job.name, metrics["test/top1"], best["top1"], best["epoch"], best["by"], seconds, self.directory,
        )  # fmt: skip

    def save_epoch(self, state: TrainState, record: dict[str, Any], improved: bool) -> None:
        """Record an epoch in journal and log, make a checkpoint, and save the student if it is the best so far."""
        if improved:
            self.save_student(state, self.paths.best, record["epoch"])
        self.journal.append(record)
        checkpoint.save(state.state(), self.paths.checkpoint)
        metrics = record["metrics"]
        LOG.info(
            "epoch %d/%d: train loss %.3f, top-1 %.2f %%; test top-1 %.2f %%; %.0f images/s",
            record["epoch"], self.job.settings.schedule.epochs, metrics["train/loss"], metrics["train/top1"],
            metrics["test/top1"], record["images_per_second"],
        )  # fmt: skip

    def save_within(self, state: TrainState, within: Callable[[], Within]) -> None:
        """Make a checkpoint within an epoch, unless a loss was not finite: the run will fail at the epoch's end."""
        state.within = within()
        sound = all(bool(each["measured"]["sound"].all()) for each in state.within["processes"])
        if self.writes and sound:
            checkpoint.save(state.state(), self.paths.checkpoint)
        state.within = None

    def save_student(self, state: TrainState, file: Path, epoch: int) -> None:
        """Save the student's weights in a file of the run's directory, with its method's if it ends in the method."""
        about: dict[str, Any] = {"student": self.job.settings.student.name, "run": self.job.run, "epoch": epoch}
        if state.trainable.ends_in_method:
            about["distiller"] = checkpoint.portable(state.distiller.state_dict())
        checkpoint.save_weights(state.student.state_dict(), file, **about)


def _resumed(state: TrainState) -> str:
    """From where a run continues, for its log; empty for one that begins."""
    if state.within is None:
        return f", resumed after epoch {state.epoch}" if state.epoch else ""
    return f", resumed in epoch {state.epoch + 1}, after step {state.within['steps']}"


def remove_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of a finished run; the run does not fail if they cannot be removed."""
    with contextlib.suppress(OSError):
        for path in checkpoints(directory):
            path.unlink(missing_ok=True)
