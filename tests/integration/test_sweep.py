"""A sweep on two nodes: who waits for whom, who runs beside whom, and what a second command makes of it."""

from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, attempts, hold_against, overlapping
from tests.integration.lab import Lab
from tests.integration.processes import wait_for
from tests.integration.runs import appear, finished, job_of, starts


def test_two_stages_and_a_launcher_that_is_killed(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    """Teachers resnet14 and resnet20, three students each; resnet20's is held back, and nobody else with it."""
    arguments = ("distiller=kd,dkd,edkd", "teacher=resnet14,resnet20", "hydra.launcher.array_parallelism=2")
    with (
        table.row("none", "six students of two teachers, two at a time: all done, exit code 0") as plain,
        table.row("a teacher is late", "its students wait, those of the other are done before") as stages,
        table.row("launching process killed", "the same command finds its jobs in the queue: no twins") as adopted,
    ):
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
        command = lab.launch("killed", cluster.crew, *arguments, output="sweep")
        runs = appear(command, lab.folder / "sweep", 8)
        late, early = "resnet20/vanilla-s0", "resnet14/vanilla-s0"
        jobs = {name: job_of(run) for name, run in runs.items()}
        for name in ("kd-s0", "dkd-s0", "edkd-s0"):
            assert f"Dependency=afterany:{jobs[early]}(" in cluster.run("scontrol", "show", "job", jobs[name])
            other = jobs[f"resnet20-resnet8/{name}"]
            assert f"Dependency=afterany:{jobs[late]}(" in cluster.run("scontrol", "show", "job", other)
        cluster.run("scontrol", "hold", jobs[late])
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
        wait_for("the early teacher's students", lambda: all(finished(runs[f"{m}-s0"]) for m in ("kd", "dkd", "edkd")))
        assert not starts(runs[late])
        command.kill()
        second = lab.launch("again", cluster.crew, *arguments, output="sweep")
        wait_for("the second command to adopt", lambda: "in its queue already" in second.said())
        cluster.run("scontrol", "release", jobs[late])
        ended = second.ended()

        assert ended.code == 0, ended
        assert "0 jobs submitted to SLURM, 4 were in its queue already" in ended.out
        assert "7 of 7 runs finished" in ended.out  # the early teacher is in the store by now
        assert {name: job_of(run) for name, run in runs.items()} == jobs
        assert {name: attempts(run) for name, run in runs.items()} == dict.fromkeys(runs, 1)
        side_by_side = list(overlapping([run for name, run in runs.items() if "vanilla" not in name]))
        assert max(map(len, side_by_side)) == 2
        for records in side_by_side:
            gpus = [(record["slurm"]["node"], record["slurm"]["cuda_visible_devices"]) for record in records]
            assert len(set(gpus)) == len(gpus), gpus
        lab.reference("pairs")
        for row in (plain, stages, adopted):
            hold_against(row, runs, lab.peace, uri=lab.store, experiment="sweep")
