"""What a sweep leaves behind: its results and its summary on the terminal, and its parent run in MLflow."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edkd import CONF, tracking
from edkd.config.instantiate import build
from edkd.config.job import Job
from edkd.config.schema import Settings, Tracking
from edkd.console import LOG
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, journal
from edkd.rundir.paths import RunDir, runs_of_sweep
from edkd.status.state import RunStatus
from edkd.sweeps import results
from edkd.sweeps.plan import Sweep


def show_summary(planned: Sweep, outcome: Mapping[str, RunStatus]) -> int:
    """Print the results, the number of finished runs, each other run with its state and log, and the next step.

    Returns the number of runs that are neither done nor pruned.
    """
    results.show(planned.jobs, outcome)
    done = [job for job in planned.jobs if outcome[job.run].state == "done"]
    lost = [job for job in planned.jobs if outcome[job.run].state not in ("done", "pruned")]
    print(f"sweep {planned.id}: {len(done)} of {len(planned.jobs)} runs finished")
    failed_teachers = {f"run:{job.run}" for job in planned.teachers if job in lost}
    for job in planned.jobs:
        status = outcome[job.run]
        if job in lost and job.teacher_id in failed_teachers and status.state != "running":
            began = "failed" if status.state == "failed" else "not started"
            print(f"  {job.name} {began}: its teacher {job.settings.teacher.name} is not trained yet")
        elif status.state != "done":
            print(f"  {job.name} {unfinished(job, status)}")
    again = "run the same command again, or `edkd retry`, to continue"
    print(again if lost else next_steps(planned.students[0].settings))
    return len(lost)


def unfinished(job: Job, status: RunStatus) -> str:
    """The state of a run that is not done, and where its log is, as text for a user."""
    if status.state == "new":
        return "not started"
    if status.state == "failed":
        what = f"failed: {status.why}"
    elif status.state == "running":
        holder = status.known.holder or {}
        what = f"is running in another process (pid {holder.get('pid')} on {holder.get('host')})"
    elif status.state == "vanished":
        what = f"vanished after epoch {status.epoch}: {status.why_vanished}"
    else:
        what = f"{status.state} after epoch {status.epoch}"
    log = RunDir(job.directory).log
    return f"{what}; see {log}" if log.exists() else what


def next_steps(cfg: Settings) -> str:
    """The commands that show results, with the options to read the store of this configuration's runs."""
    own = f"sqlite:///{cfg.output}/mlflow.db"
    store = cfg.tracking.uri or own
    place = [] if cfg.output == "outputs" else ["--output", _quoted(cfg.output)]
    known = store if store.startswith("sqlite:") else "URI"  # a server's may hold a password
    read = [*([] if store == own else ["--uri", _quoted(known)]), *place]
    if Path.cwd() == CONF.parent:
        table, ui = (
            f"make {name}" + (f" ARGS='{' '.join(words)}'" if words else "")
            for name, words in (("table", read), ("ui", place))
        )
    else:
        table, ui = (" ".join(words) for words in (["python -m analysis --report", *read], ["edkd ui", *place]))
    pages = f"`{ui}`" if store == own else "the pages of that store"
    sync = "" if cfg.tracking.uri else f"`{' '.join(['edkd sync', *place])}` for MLflow, then "
    return f"{sync}`{table}` for the table and one page with figures, {pages} for the curves"


def _quoted(word: str) -> str:
    """Quote a word for a shell, also between the single quotes of make's ARGS."""
    return word if shlex.quote(word) == word else f'"{word}"'


def open_tracking(where: Tracking) -> None:
    """Create MLflow's store before any run needs it.

    Raises EdkdError for a SQLite file that cannot be used. An unreachable server only needs `edkd sync` later.
    """
    try:
        tracking.create_store(**vars(where))
    except EdkdError as error:
        if not str(where.uri).startswith(("http://", "https://")):
            raise EdkdError(f"{error}; or run with tracking=journal, and `edkd sync` later") from error
        LOG.warning("%s; training goes on, %s", error, _later(where))


def track_start(sweep: str, where: Tracking) -> None:
    """Make the sweep's parent run in MLflow, so that every child finds it. Errors are only logged."""
    with _tolerant(_later(where)):
        tracking.start_sweep(sweep, **vars(where))


def track_end(planned: Sweep, outcome: Mapping[str, RunStatus]) -> None:
    """Give the parent run its status and the number of runs in each state. Errors are only logged.

    A retry has only some of the sweep's runs; the others count as their journals say.
    """
    where, output = planned.jobs[0].settings.tracking, Path(planned.jobs[0].settings.output)
    if where.uri is not None:
        counts = Counter(str(status.known.status) for status in outcome.values())
        with _tolerant(_later(where)):
            others = {*runs_of_sweep(output, planned.id)} - {job.name for job in planned.jobs}
            counts.update(str(journal.state(output / "runs" / name).status) for name in others)
            tracking.settle_sweeps({planned.id: counts}, **vars(where))


def track_search(sweep: str, where: Tracking, states: Mapping[str, int], best: str) -> None:
    """Give the parent run of a search its status and a sentence on its best trial. Errors are only logged."""
    with _tolerant(_later(where)):
        run = tracking.start_sweep(sweep, **vars(where))
        tracking.attach(str(where.uri), [run], paths=[], sentence=best, metrics={})
        tracking.settle_sweeps({sweep: states}, **vars(where))


class _Logits(nn.Module):
    """A network that returns its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalised as in training, to [B, K]."""
        logits: Tensor = self.network(images).logits
        return logits


def log_best_student(planned: Sweep, outcome: Mapping[str, RunStatus]) -> None:
    """Log the most accurate student of a sweep as a model in MLflow. Errors are only logged.

    Only one is logged, because each is as large as its weights and takes seconds. Students that end in modules of
    their method are left out, and so are those whose weights were removed.
    """
    done = [job for job in planned.students if outcome[job.run].state == "done" and job.settings.needs_teacher]
    done.sort(key=lambda job: outcome[job.run].best or 0.0, reverse=True)
    for job in done:
        weights = RunDir(job.directory).best
        with _tolerant("the same command logs the best student again"):
            if not weights.exists() or checkpoint.ends_in_method(weights):
                continue
            _log_model(planned.id, job, weights, outcome[job.run])
        return


def _log_model(sweep: str, job: Job, weights: Path, status: RunStatus) -> None:
    cfg, end = job.settings, status.known.end
    assert end is not None  # it is done
    network = build(cfg.student.model, "student.model", num_classes=end["num_classes"])
    checkpoint.load_into(network, checkpoint.load_weights(weights), str(weights))
    size = int(cfg.dataset.source.get("image_size", 32))
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tracking.log_model(_Logits(network).eval(), example, run=job.run, sweep=sweep, **vars(cfg.tracking))


def _later(where: Tracking) -> str:
    return f"`{tracking.sync_command(str(where.uri), where.experiment)}` brings MLflow up to date later"


@contextlib.contextmanager
def _tolerant(later: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever MLflow raises
        LOG.warning("%s; %s", error, later)
