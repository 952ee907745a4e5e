"""The sweeper plugins: they pass Hydra's arguments to `edkd.sweeps`, which plans, launches and reports."""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from edkd.config.compose import set_output


class EdkdSweeper(Sweeper):
    """Plans a sweep of edkd runs; see `edkd.sweeps`.

    `search` holds the settings of a search, which only `hydra/sweeper=optuna` uses.
    """

    def __init__(self, **search: Any) -> None:
        self.search = search

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and instantiate the launcher that the command line names."""
        set_output(config)
        self.master, self.loader = config, hydra_context.config_loader
        self.started = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep that the command line's overrides describe."""
        from edkd.sweeps.sweep import sweep

        return sweep(arguments, self.master, self.loader, self.started)


class OptunaSweeper(EdkdSweeper):
    """Searches for values instead of trying all; see `edkd.sweeps.search`."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search that the command line's overrides and `hydra.sweeper` describe."""
        from edkd.runs.pruning import load_optuna

        load_optuna()  # if it is missing, the error names what to install
        from edkd.sweeps.search import search

        values: Any = OmegaConf.to_container(OmegaConf.create(self.search), resolve=True)
        return search(arguments, self.master, self.loader, self.started, values)
