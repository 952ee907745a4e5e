"""What clusters do to jobs, and what becomes of the runs: no epoch lost, no metric twice, the same bits."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, Row, attempts, hold_against, overlapping
from tests.integration.lab import Command, Lab
from tests.integration.processes import wait_for
from tests.integration.runs import appear, disturb, find, finished, job_of, process_of, running_at, starts, summary

SIX = ("distiller=kd,dkd,brittle", "seed=0,1")
EARLY = 5  # epochs after which a run is disturbed


@pytest.mark.usefixtures("booting_server")
def test_begin_of_the_long_run(lab: Lab, cluster: Cluster, walltime: dict[str, Command]) -> None:
    """A run longer than its walltime of a minute is started; the other tests go on beside it."""
    lab.give_teachers("walltime")
    walltime["command"] = lab.launch(
        "walltime", cluster.crew, "distiller=kd", "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=5",
        "hydra.launcher.gpus_per_node=0", "hydra.launcher.exclude=n2", output="walltime", long=True,
    )  # fmt: skip
    appear(walltime["command"], lab.folder / "walltime", 1)


def test_six_jobs_and_as_many_faults(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    output = lab.give_teachers("faults")
    command = lab.launch("faults", cluster.crew, *SIX, output="faults")
    runs = appear(command, output, 6)
    jobs = {name: job_of(run) for name, run in runs.items()}

    def order(*words: str) -> Callable[[], object]:
        return lambda: cluster.run(*words)

    def warn() -> None:
        # Not by scancel: where SLURM answers too late, it sends the signal again, to the next attempt at the run.
        os.kill(process_of(runs["kd-s0"]), signal.SIGUSR2)

    disturb(
        {
            "scancel of a waiting job": (cluster.waits(jobs["brittle-s1"]), order("scancel", jobs["brittle-s1"])),
            "first warning": (running_at(runs["kd-s0"], EARLY), warn),
            "second warning": (running_at(runs["kd-s0"], EARLY, attempt=2), warn),
            "requeue": (running_at(runs["kd-s1"], EARLY), order("scontrol", "requeue", jobs["kd-s1"])),
            "SIGKILL": (running_at(runs["dkd-s0"], EARLY), lambda: os.kill(process_of(runs["dkd-s0"]), signal.SIGKILL)),
            "scancel": (running_at(runs["dkd-s1"], EARLY), order("scancel", jobs["dkd-s1"])),
            "exception": (running_at(runs["brittle-s0"], EARLY), lambda: lab.break_run(process_of(runs["brittle-s0"]))),
        }
    )
    ended = command.ended()
    again = lab.launch("faults-again", cluster.crew, *SIX, output="faults").ended()
    lab.reference("seeds")

    def check(row: Row, name: str, *, attempts: int) -> None:
        hold_against(row, {name: runs[name]}, lab.peace, uri=lab.store, experiment="faults")
        assert len(starts(runs[name])) == attempts and len(row.resumed) == attempts - 1

    itself, command_ = "continues by itself", "named in the summary, exit code 1; the same command continues it"
    with table.row("USR2, then requeue, twice", f"stops after an epoch and is queued again; {itself}") as row:
        check(row, "kd-s0", attempts=3)
    with table.row("scontrol requeue", itself) as row:
        check(row, "kd-s1", attempts=2)
    with table.row("SIGKILL of a job", f"vanished, {command_}") as row:
        check(row, "dkd-s0", attempts=2)
    with table.row("scancel of a running job", f"vanished, {command_}") as row:
        check(row, "dkd-s1", attempts=2)
    with table.row("scancel of a waiting job", f"vanished, {command_}") as row:
        check(row, "brittle-s1", attempts=1)
    with table.row("exception in a job", f"failed with its error, {command_}") as row:
        check(row, "brittle-s0", attempts=2)
    assert ended.code == 1 and "2 of 6 runs finished" in ended.out, ended
    told = summary(ended.out)
    assert told.keys() == {"dkd-s0", "dkd-s1", "brittle-s0", "brittle-s1"}, ended
    assert "failed: RuntimeError: told to break" in told["brittle-s0"]
    assert "vanished after epoch 0: " in told["brittle-s1"]
    assert "vanished after epoch" in told["dkd-s0"] and "FAILED" in told["dkd-s0"]
    assert "vanished after epoch" in told["dkd-s1"] and "CANCELLED" in told["dkd-s1"]
    assert again.code == 0 and "6 of 6 runs finished" in again.out, again


def test_a_node_and_the_controller_are_lost(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    """Four jobs on two nodes; slurmctld is killed and restarted, then a node is lost with its jobs."""
    output = lab.give_teachers("losses")
    arguments = ("distiller=kd,dkd", "seed=0,1")
    with (
        table.row("two nodes used", "four jobs at a time, each with a GPU; then the next two faults") as spread,
        table.row("slurmctld killed, restarted", "jobs go on, the command waits for SLURM to come back") as controller,
        table.row("node lost", "SLURM queues its jobs again; they continue on the other node") as loss,
    ):
        command = lab.launch("losses", cluster.crew, *arguments, output="losses")
        runs = appear(command, output, 4)
        wait_for("four running jobs", lambda: all(starts(run) for run in runs.values()))
        wait_for("epochs of them", lambda: any(running_at(run, EARLY)() for run in runs.values()))
        cluster.kill_controller()
        cluster.start_controller()
        nodes = {name: starts(run)[0]["slurm"]["node"] for name, run in runs.items()}
        assert set(nodes.values()) == {"n1", "n2"}
        doomed = [name for name, node in nodes.items() if node == "n2"]
        wait_for("epochs on the node", lambda: all(running_at(runs[name], EARLY)() for name in doomed))
        assert not any(finished(runs[name]) for name in doomed)
        cluster.kill_node("n2")
        ended = command.ended()
        cluster.start_node("n2")
        assert ended.code == 0 and "4 of 4 runs finished" in ended.out, ended
        assert {name: attempts(run) for name, run in runs.items()} == {n: 2 if n in doomed else 1 for n in runs}
        assert {starts(runs[name])[-1]["slurm"]["node"] for name in doomed} == {"n1"}
        lab.reference("seeds")
        for records in overlapping(list(runs.values())):
            gpus = [(each["slurm"]["node"], each["slurm"]["cuda_visible_devices"]) for each in records]
            assert len(set(gpus)) == len(gpus), gpus
        for row in (spread, controller, loss):
            hold_against(row, runs, lab.peace, uri=lab.store, experiment="losses")
        assert len(loss.resumed) == len(doomed)


def test_end_of_the_long_run(lab: Lab, cluster: Cluster, walltime: dict[str, Command], table: FaultTable) -> None:
    with table.row("walltime", "warned, stops after an epoch, is queued again; continues by itself") as row:
        # Enough is enough: on a slow machine a minute is but a few epochs.
        (run,) = find(lab.folder / "walltime").values()
        wait_for("a second attempt", lambda: len(starts(run)) > 1)
        if not finished(run):
            cluster.run("scontrol", "update", f"JobId={job_of(run)}", "TimeLimit=60", check=False)
        ended = walltime["command"].ended()
        assert ended.code == 0 and "1 of 1 runs finished" in ended.out, ended
        lab.reference("long")
        hold_against(row, find(lab.folder / "walltime"), lab.peace, uri=lab.store, experiment="walltime")
        assert row.resumed
