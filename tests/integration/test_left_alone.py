"""Submitted and left alone: the queue, `edkd status` and `edkd retry` have to do."""

import json
from typing import Any

from tests.commandline import Ended
from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, hold_against
from tests.integration.lab import Lab
from tests.integration.processes import wait_for
from tests.integration.runs import disturb, find, finished, job_of, running_at, starts


def test_detached_then_edited_then_retried(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    output = lab.give_teachers("detached")

    def edkd(name: str, *arguments: str) -> Ended:
        return lab.python(f"detached-{name}", "-m", "edkd.cli.main", *arguments, cluster=cluster.crew).ended()

    def status(name: str, code: int) -> dict[str, Any]:
        ended = edkd(name, "status", "--json", f"--output={output}")
        assert ended.code == code, ended
        return {view["distiller"] + f"-s{view['seed']}": view for view in json.loads(ended.out)["runs"]}

    with (
        table.row(
            "detached", "returns after submission; edkd status shows it; edkd retry continues what vanished"
        ) as row,
        table.row("YAML edited while queued", "the jobs compute what was planned") as edited,
    ):
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
        arguments = ("distiller=soft,kd", "seed=0,1", "hydra/launcher=slurm_detached")
        submitted = lab.launch("detached", cluster.crew, *arguments, output="detached").ended()
        assert submitted.code == 0 and "4 jobs submitted to SLURM" in submitted.out, submitted
        runs = find(output)
        jobs = {name: job_of(run) for name, run in runs.items()}
        views = status("queued", code=3)
        assert {name: (view["state"], view["job"]) for name, view in views.items()} == {
            name: ("waiting", job) for name, job in jobs.items()
        }
        lab.reference("seeds")  # which were planned from that file as well
        lab.soft.write_text(lab.soft.read_text().replace("temperature: 4.0", "temperature: 9.0"))
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
        disturb({"scancel": (running_at(runs["kd-s0"], 5), lambda: cluster.run("scancel", jobs["kd-s0"]))})
        wait_for("the other runs", lambda: all(finished(run) for name, run in runs.items() if name != "kd-s0"))
        # Not in the queue at all: a job that is completing counts as there.
        wait_for("SLURM to see the end", lambda: not cluster.run("squeue", "-h", "-j", jobs["kd-s0"]).strip())
        views = status("ended", code=1)
        assert {name: view["state"] for name, view in views.items()} == {
            name: "vanished" if name == "kd-s0" else "done" for name in runs
        }
        assert views["kd-s0"]["why"] == "CANCELLED" and views["kd-s0"]["epoch"] >= 5
        retried = edkd("retry", "retry", f"--output={output}", "hydra/launcher=slurm", "hydra.launcher.poll_s=1",
                       "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1")  # fmt: skip
        assert retried.code == 0 and "1 of 1 runs finished" in retried.out, retried
        assert {view["state"] for view in status("retried", code=0).values()} == {"done"}
        hold_against(row, runs, lab.peace, uri=lab.store, experiment="detached")
        assert len(row.resumed) == 1 and len(starts(runs["kd-s0"])) == 2
        soft = {name: run for name, run in runs.items() if "soft" in name}
        hold_against(edited, soft, lab.peace, uri=lab.store, experiment="detached")
