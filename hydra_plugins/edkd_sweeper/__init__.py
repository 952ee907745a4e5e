"""Hydra's face of `edkd.sweeps`. Every Hydra program of the environment imports this: nothing heavy here."""

from hydra.core.config_store import ConfigStore

# `hydra/sweeper=edkd` has no settings of its own, and as a plain node takes what an experiment says of a search.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="edkd",
    node={"_target_": "hydra_plugins.edkd_sweeper.sweeper.EdkdSweeper"},
    provider="edkd",
)
