"""The sweeper plugin: hands Hydra's arguments to `edkd.sweeps`, which plans, launches and reports."""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class EdkdSweeper(Sweeper):
    """Plans a sweep of edkd runs; see `edkd.sweeps`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and instantiate the launcher that the command line names."""
        self.master, self.loader = config, hydra_context.config_loader
        self.started = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep that the command line's overrides describe."""
        from edkd.sweeps.sweep import sweep

        return sweep(arguments, self.master, self.loader, self.started)
