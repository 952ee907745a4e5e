"""A search for values whose trials are SLURM jobs."""

from pathlib import Path

from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, hold_against
from tests.integration.lab import Lab
from tests.integration.processes import wait_for
from tests.integration.runs import running_at

SEARCH = (
    "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2", "hydra.sweeper.startup_trials=2",
    "hydra.sweeper.pruner=none", "distiller=dkd", "dataset.validation=0.25",
    "distiller.beta=tag(log,interval(0.5,16))", "distiller.temperature=range(1,8,0.5)",
)  # fmt: skip


def test_the_command_of_a_search_is_killed(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    words = (*SEARCH, "hydra.launcher.gpus_per_node=0")
    output, peace = lab.folder / "search", lab.folder / "search-undisturbed"
    with table.row("command of a search killed", "jobs go on; the same command takes them up and proposes on") as row:
        command = lab.launch("search", cluster.crew, *words, output="search")
        wait_for("its second batch", lambda: any(running_at(run, 3)() for run in _trials(output)[2:]))
        command.kill()
        again = lab.launch("search-again", cluster.crew, *words, output="search").ended()
        assert again.code == 0, again
        lab.local("search-undisturbed", lab.base(), peace, *SEARCH)
        runs = {run.name: run for run in _trials(output)}
        assert len(runs) == 6 and sorted(runs) == sorted(run.name for run in _trials(peace)), runs
        hold_against(row, runs, peace, uri=lab.store, experiment="search")


def _trials(output: Path) -> list[Path]:
    """The runs of a search that were planned, the earliest first."""
    configs = output.glob("runs/*/*/dkd-*/config.yaml")
    return [config.parent for config in sorted(configs, key=lambda config: config.stat().st_mtime)]
