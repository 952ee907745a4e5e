"""Hydra's launcher, outside Hydra's main function: for a sweep that is planned from frozen configurations."""

from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from edkd.config import schema
from edkd.config.compose import explain, quoted
from edkd.errors import EdkdError
from edkd.slurm.submit import Queue


def compose_launcher(
    overrides: Sequence[str], *, config_dir: Path | None, output: Path, task: TaskFunction
) -> tuple[DictConfig, Launcher]:
    """The configuration that some overrides of Hydra's give, and the launcher in it, which runs jobs by `task`.

    `config_dir` is a folder of the user's own options. Raises EdkdError for what does not fit.
    """
    GlobalHydra.instance().clear()
    given = [f"output={quoted(str(output))}", *overrides]
    if config_dir is not None:
        if not config_dir.is_dir():
            raise EdkdError(f"Additional config directory '{config_dir.absolute()}' not found")
        given.append(f"hydra.searchpath=[{quoted(f'file://{config_dir.absolute()}')}]")
    initialize_config_dir(version_base="1.3", config_dir=str(schema.folder()), job_name="edkd")
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    try:
        master = hydra.compose_config("config", given, run_mode=RunMode.MULTIRUN, with_log_configuration=True)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=master)
    except (HydraException, OmegaConfBaseException) as error:
        raise EdkdError(explain(error, overrides)) from error
    if isinstance(launcher, Queue):
        launcher.check()
    return master, launcher
