"""One run over two nodes, a process on each: warned, robbed of a task, continued, to the bits of two processes here."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edkd.rundir import journal
from tests.commandline import REPOSITORY, metrics
from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, same_weights
from tests.integration.lab import Command
from tests.integration.processes import Crew, wait_for
from tests.integration.runs import appear, job_of, running_at, starts

EPOCHS = 150  # each a fraction of a second
RUN = (
    "distiller=vanilla", "dataset=digits", "dataset.image_size=8", "dataset.train_per_class=12",
    "dataset.test_per_class=5", "student=resnet8", "schedule=short", f"schedule.epochs={EPOCHS}",
    "engine.device=cpu", "engine.devices=2", "tracking=journal",
)  # fmt: skip
NODES = (
    "hydra/launcher=slurm", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=0", "hydra.launcher.poll_s=1",
    "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=60",
)  # fmt: skip


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew("nodes")
    try:
        yield made
    finally:
        made.dismiss()


def test_a_run_over_two_nodes(bare_cluster: Cluster, crew: Crew, table: FaultTable) -> None:
    environment = {**crew.environment, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
    environment |= {k: v for k, v in bare_cluster.environment.items() if k.startswith(("SLURM", "EDKD"))}

    def launch(name: str, output: str, *arguments: str) -> Command:
        words = [sys.executable, str(REPOSITORY / "launch.py"), "-m", *RUN, f"output={crew.folder / output}"]
        return Command([*words, *arguments], crew.folder, name, environment)

    with table.row("two nodes, one run", "warned, then a task killed: both stop, and continue together") as row:
        command = launch("first", "nodes", *NODES)
        (run,) = appear(command, crew.folder / "nodes", 1).values()
        job = job_of(run)
        log = crew.folder / "nodes" / "sweeps" / "slurm" / f"{job}_0_log.err"
        wait_for("epochs", running_at(run, 3))
        bare_cluster.run("scancel", "--signal=USR2", job)
        wait_for("a second attempt", running_at(run, 3, attempt=2))
        assert "stopped on SLURM's warning" in log.read_text()
        assert {entry["slurm"]["node"] for entry in starts(run)} == {"n1"}
        reached = len(journal.epochs(run))
        os.kill(_task(bare_cluster, "1"), signal.SIGKILL)
        ended = command.ended()
        assert ended.code == 1 and "vanished after epoch" in ended.out, ended
        first = log.read_text()
        assert "\nedkd: SLURM has ended the tasks of this job, or one of them is gone\n" in first, first
        assert "Traceback" not in first, first
        again = launch("again", "nodes", *NODES).ended()
        assert again.code == 0 and "1 of 1 runs finished" in again.out, again
        assert len(starts(run)) == 3 and starts(run)[2]["resumed_from"] >= reached
        undisturbed = launch("undisturbed", "peace", "engine.threads=2").ended()
        assert undisturbed.code == 0, undisturbed
        reference = crew.folder / "peace" / run.relative_to(crew.folder / "nodes")
        assert metrics(journal.read(run)) == metrics(journal.read(reference))
        assert all(same_weights(run / name, reference / name) for name in ("last.pt", "best.pt"))
        row.runs, row.equal = 1, True
        row.resumed = [record["resumed_from"] for record in starts(run)[1:]]
        row.seconds = journal.read(run)[-1]["time"] - journal.read(run)[0]["time"]


def _task(cluster: Cluster, number: str) -> int:
    """The process that SLURM started as this task of a job."""
    for pid, environment in cluster.crew.members().items():
        if environment.get("SLURM_PROCID") == number and b"edkd.slurm.job" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError(f"no task {number}")
