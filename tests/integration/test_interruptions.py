"""Jobs that SLURM takes the place from, or that it cannot be asked about at the wrong moment: none lost, none twice."""

import os
import signal
from pathlib import Path

from edkd.rundir import journal
from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, hold_against, overlapping
from tests.integration.lab import Lab
from tests.integration.processes import wait_for
from tests.integration.runs import (
    appear,
    disturb,
    epochs_since_start,
    finished,
    job_of,
    process_of,
    running_at,
    starts,
    summary,
)

SIX = ("distiller=kd,dkd,brittle", "seed=0,1")
EARLY = 5  # epochs after which a run is disturbed


def test_preempted_then_warned_while_the_controller_is_away(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    output = lab.give_teachers("interrupted")
    arguments = ("distiller=kd", "seed=0,1", "hydra.launcher.gpus_per_node=0")
    with (
        table.row("preemption without grace time", "SLURM queues the job again itself; no failure, no twin") as row,
        table.row("controller away at the warning", "asked again until it is back; continues by itself") as away,
    ):
        command = lab.launch("interrupted", cluster.crew, *arguments, output="interrupted")
        runs = appear(command, output, 2)
        jobs = {name: job_of(run) for name, run in runs.items()}
        wait_for("epochs", lambda: all(epochs_since_start(run) >= EARLY for run in runs.values()))
        urgent = ("sbatch", "-p", "urgent", "--exclusive", "-N", "2", "-o", "/dev/null", "--wrap", "sleep 300")
        other = cluster.run(*urgent, "--parsable").strip()
        wait_for("the jobs in the queue", lambda: all(cluster.waits(job)() for job in jobs.values()))
        assert not any(finished(run) for run in runs.values())
        assert [journal.read(run)[-1]["event"] for run in runs.values()] == ["interrupted"] * 2
        twin = lab.launch("interrupted-again", cluster.crew, *arguments, output="interrupted")
        wait_for("a second command", lambda: "SLURM" in twin.said() and "submitted" in twin.said())
        assert "0 jobs submitted to SLURM, 2 were in its queue already" in twin.said()
        cluster.run("scancel", other)
        wait_for("a second attempt", running_at(runs["kd-s0"], EARLY, attempt=2))
        cluster.kill_controller()
        os.kill(process_of(runs["kd-s0"]), signal.SIGUSR2)
        log = output / "sweeps" / "slurm" / f"{jobs['kd-s0']}_0_log.err"
        # Once by the preemption, and once by the warning; then scontrol needs seconds to find that nobody answers.
        wait_for("the request", lambda: log.read_text().count("asking SLURM to queue the job again") == 2)
        wait_for("its refusal", lambda: not _runs("scontrol", cluster), patience=60)
        cluster.start_controller()
        for ended in (command.ended(), twin.ended()):
            assert ended.code == 0 and "2 of 2 runs finished" in ended.out and "failed" not in ended.err, ended
        assert {name: job_of(run) for name, run in runs.items()} == jobs
        assert {name: len(starts(run)) for name, run in runs.items()} == {"kd-s0": 3, "kd-s1": 2}
        assert not any(record["event"] == "failure" for run in runs.values() for record in journal.read(run))
        lab.reference("seeds")
        hold_against(row, runs, lab.peace, uri=lab.store, experiment="interrupted")
        hold_against(away, {"kd-s0": runs["kd-s0"]}, lab.peace, uri=lab.store, experiment="interrupted")


def test_a_command_that_is_killed_as_slurm_takes_its_jobs(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    output = lab.give_teachers("orphans")
    arguments = ("distiller=dkd", "seed=0,1")
    sbatch = lab.folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\nPATH="${{PATH#{sbatch.parent}:}}"; sbatch "$@" >/dev/null; kill -KILL $PPID\n')
    sbatch.chmod(0o755)
    path = lab.crew.environment["PATH"]
    with table.row("command killed while it submits", "the same command finds the jobs that SLURM took") as row:
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
        lab.crew.environment["PATH"] = f"{sbatch.parent}:{path}"
        try:
            killed = lab.launch("orphans", cluster.crew, *arguments, output="orphans").ended()
        finally:
            lab.crew.environment["PATH"] = path
        assert killed.code == -signal.SIGKILL and not list(output.rglob("slurm.json")), killed
        command = lab.launch("orphans-again", cluster.crew, *arguments, output="orphans")
        runs = appear(command, output, 2)
        names = cluster.run("squeue", "-h", "-r", "-o", "%i %j").splitlines()
        assert {f"{job_of(run)}" for run in runs.values()} == {line.split()[0] for line in names}
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
        ended = command.ended()
        assert ended.code == 0 and "0 jobs submitted to SLURM, 2 were in its queue already" in ended.out, ended
        assert {name: len(starts(run)) for name, run in runs.items()} == dict.fromkeys(runs, 1)
        lab.reference("seeds")
        hold_against(row, runs, lab.peace, uri=lab.store, experiment="orphans")


def test_whole_nodes(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    """Six runs, two a job: two jobs at a time, of which one is queued again, and one run is killed."""
    output = lab.give_teachers("nodes")
    arguments = (*SIX, "hydra.launcher.runs_per_job=2", "hydra.launcher.gpus_per_node=2")
    arguments = (*arguments, "hydra.launcher.cpus_per_task=2")
    with table.row("several runs a job", "one job queued again, one run killed; no other is disturbed") as row:
        command = lab.launch("nodes", cluster.crew, *arguments, output="nodes")
        runs = appear(command, output, 6)
        first, second, doomed = (runs[name] for name in ("kd-s0", "kd-s1", "dkd-s0"))
        job = job_of(first)
        assert job_of(second) == job != job_of(doomed)
        disturb(
            {
                "requeue": (
                    lambda: all(epochs_since_start(run) >= EARLY for run in (first, second)),
                    lambda: cluster.run("scontrol", "requeue", job),
                ),
                "SIGKILL": (running_at(doomed, EARLY), lambda: os.kill(process_of(doomed), signal.SIGKILL)),
            }
        )
        ended = command.ended()
        assert ended.code == 1 and "5 of 6 runs finished" in ended.out, ended
        assert summary(ended.out)["dkd-s0"].startswith("failed: its process was killed by signal 9"), ended
        again = lab.launch("nodes-again", cluster.crew, *arguments, output="nodes").ended()
        assert again.code == 0 and "6 of 6 runs finished" in again.out, again
        for records in overlapping(list(runs.values())):
            gpus = [(each["slurm"]["node"], each["slurm"]["cuda_visible_devices"]) for each in records]
            assert len(set(gpus)) == len(gpus), gpus
        lab.reference("seeds")
        hold_against(row, runs, lab.peace, uri=lab.store, experiment="nodes")


def _runs(program: str, cluster: Cluster) -> bool:
    """Whether a program of this name runs in a job of the cluster."""
    return any(_name(pid) == program for pid in cluster.crew.members())


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
