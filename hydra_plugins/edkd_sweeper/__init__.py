"""Hydra's plugin for `edkd.sweeps`. Every Hydra program of the environment imports this: nothing heavy here."""

from hydra.core.config_store import ConfigStore

# `hydra/sweeper=edkd` has no settings of its own; as a plain node it accepts an experiment's settings of a search.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="edkd",
    node={"_target_": "hydra_plugins.edkd_sweeper.sweeper.EdkdSweeper"},
    provider="edkd",
)
