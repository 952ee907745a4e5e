"""Launch runs again that did not end, from their frozen configurations: the choice, the plan, the launcher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from edkd import CONF
from edkd.config.compose import explain, own_options, quoted, set_output
from edkd.config.job import Job, directory_of, thaw, training_run
from edkd.errors import EdkdError
from edkd.rundir.paths import RunDir
from edkd.runs.inputs import teacher_folder
from edkd.slurm.submit import Queue
from edkd.status.state import RunStatus, about
from edkd.sweeps.plan import Sweep
from edkd.teachers import store

RETRIED = ("failed", "vanished", "interrupted")


@dataclass
class Retry(Sweep):
    """Runs that were planned before, maybe in several sweeps."""

    planned_in: set[str | None] = field(default_factory=set)  # sweeps; None: started alone

    @property
    def id(self) -> str:
        """The id of the sweep to which all runs belong; if there is no such sweep, the id of a new one."""
        only = next(iter(self.planned_in)) if len(self.planned_in) == 1 else None
        return only or super().id


def choose(views: Sequence[RunStatus], everything: Sequence[RunStatus], *, new: bool) -> list[Path]:
    """The runs among `views` to launch again: those that did not end and, with `new`, those that never began.

    Students in `everything` that never began, and whose teacher one of these runs was to train, are added.
    """
    chosen = {view.directory: view for view in views if view.state in (*RETRIED, *(("new",) if new else ()))}
    hashes = {view.hash for view in chosen.values()}
    for view in everything:
        if view.state == "new" and training_run(about(view.directory).get("teacher_id"))[:8] in hashes:
            chosen.setdefault(view.directory, view)
    return list(chosen)


def make_plan(directories: Iterable[Path]) -> Retry:
    """Plan a sweep of the runs in some directories, with the teachers that they lack.

    Raises EdkdError for a configuration that is missing or was changed, a teacher that is in neither the store nor the
    runs, and runs that were planned from another directory.
    """
    jobs: dict[str, Job] = {}
    waiting, planned_in = list(directories), set()
    for directory in waiting:  # which grows
        try:
            job, sweep = thaw(RunDir(directory).config)
        except EdkdError as error:
            raise EdkdError(f"{directory}: {error}; --pair and --distiller choose other runs") from error
        if job.directory.resolve() != directory.resolve():
            raise EdkdError(
                f"{directory} was planned as {job.directory}: run this from the directory where that path leads there"
            )
        jobs[job.run] = job
        planned_in.add(sweep)
        teacher = _teacher_run(job)
        if teacher is not None and teacher not in waiting:
            waiting.append(teacher)
    teacher_runs = {training_run(job.teacher_id) for job in jobs.values()}
    return Retry(
        students=[job for job in jobs.values() if job.run not in teacher_runs],
        teachers=[job for job in jobs.values() if job.run in teacher_runs],
        asked=set(jobs),
        planned_in=planned_in,
    )


def _teacher_run(student: Job) -> Path | None:
    """The directory of the run that is to train a student's teacher; None if the store has it or no run trains it."""
    cfg, wanted = student.settings, training_run(student.teacher_id)
    held = store.find(teacher_folder(cfg), cfg.dataset.key, cfg.teacher.name) if wanted else None
    if not wanted or (held is not None and held.id == student.teacher_id):
        return None
    found = directory_of(wanted, cfg)
    if found is None:
        raise EdkdError(
            f"{student.name} is to be taught by run {wanted} of {cfg.teacher.name}, which is neither in "
            f"{teacher_folder(cfg)} nor in {Path(cfg.output) / 'runs' / cfg.dataset.key}: give the sweep's own command "
            "again"
        )
    return found


def compose_launcher(overrides: Sequence[str], *, output: Path, task: TaskFunction) -> tuple[DictConfig, Launcher]:
    """Compose the configuration for some Hydra overrides, and its launcher, which runs jobs by `task`.

    Raises EdkdError if an override or the command line's --config-dir cannot be used.
    """
    GlobalHydra.instance().clear()
    given = [f"output={quoted(str(output))}", *overrides, *own_options()]
    initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="edkd")
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    try:
        master = hydra.compose_config("config", given, run_mode=RunMode.MULTIRUN, with_log_configuration=True)
        set_output(master)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=master)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise EdkdError(explain(error, overrides)) from error
    if isinstance(launcher, Queue):
        launcher.check()
    return master, launcher
