"""`hydra/launcher=edkd_slurm`, which conf/hydra/launcher/slurm.yaml fills. Nothing heavy here: Hydra imports this."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf


@dataclass
class EdkdSlurmConf(SlurmQueueConf):
    """All of hydra-submitit-launcher's keys, and those of a sweep that is queued as a whole."""

    _target_: str = "hydra_plugins.edkd_slurm.launcher.EdkdSlurmLauncher"
    detached: bool = False
    poll_s: float = 10.0
    python: str | None = None
    runs_per_job: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="edkd_slurm", node=EdkdSlurmConf, provider="edkd")
