"""Hydra's face of `edkd.sweeps`. Every Hydra program of the environment imports this: nothing heavy here."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore


@dataclass
class EdkdSweeperConf:
    """`hydra/sweeper=edkd`: no settings of its own."""

    _target_: str = "hydra_plugins.edkd_sweeper.sweeper.EdkdSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="edkd", node=EdkdSweeperConf, provider="edkd")
