"""Many jobs that log to one MLflow server over PostgreSQL, which is then killed under them."""

from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, hold_against, overlapping
from tests.integration.lab import Lab
from tests.integration.processes import wait_for
from tests.integration.runs import appear, finished, running_at, starts
from tests.integration.servers import TrackingServer


def test_eight_jobs_log_at_once(lab: Lab, cluster: Cluster, server: TrackingServer, table: FaultTable) -> None:
    output = lab.give_teachers("eight")
    with table.row("MLflow over PostgreSQL", "eight jobs at a time log to one server") as row:
        command = lab.launch(
            "eight", cluster.crew, "distiller=kd,dkd", "seed=0,1,2,3", f"tracking.uri={server.uri}",
            "tracking.artifacts=null", "hydra.launcher.gpus_per_node=0", output="eight",
        )  # fmt: skip
        runs = appear(command, output, 8)
        ended = command.ended()
        assert ended.code == 0 and "8 of 8 runs finished" in ended.out, ended
        assert max(len(records) for records in overlapping(list(runs.values()))) > 4
        lab.reference("seeds")
        hold_against(row, runs, lab.peace, uri=server.uri, experiment="eight")
        assert not row.resumed


def test_the_server_is_killed(lab: Lab, cluster: Cluster, server: TrackingServer, table: FaultTable) -> None:
    output = lab.give_teachers("away")
    with table.row("MLflow server killed, restarted", "runs go on; edkd sync brings the rest") as row:
        command = lab.launch(
            "away", cluster.crew, "distiller=kd", "seed=0,1", f"tracking.uri={server.uri}", "tracking.artifacts=null",
            "hydra.launcher.gpus_per_node=0", output="away",
        )  # fmt: skip
        runs = appear(command, output, 2)
        wait_for("epochs", lambda: any(running_at(run, 5)() for run in runs.values()))
        server.kill()
        wait_for("the runs", lambda: all(finished(run) for run in runs.values()))
        server.start()
        ended = command.ended()
        assert ended.code == 0 and "2 of 2 runs finished" in ended.out, ended
        assert all(len(starts(run)) == 1 for run in runs.values())
        server.wait()
        synced = lab.python(
            "away-sync", "-m", "edkd.cli.main", "sync", f"--output={output}", f"--uri={server.uri}", "--experiment=away"
        ).ended()
        assert synced.code == 0, synced
        lab.reference("seeds")
        hold_against(row, runs, lab.peace, uri=server.uri, experiment="away")
