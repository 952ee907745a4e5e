"""A cluster without accounting: the queue forgets, and only the journals show that a run ended."""

import os
import signal

from tests.integration.cluster import Cluster
from tests.integration.evidence import FaultTable, hold_against
from tests.integration.lab import Lab
from tests.integration.runs import appear, disturb, job_of, process_of, running_at, starts, summary


def test_jobs_vanish_where_nobody_keeps_accounts(lab: Lab, bare_cluster: Cluster, table: FaultTable) -> None:
    """Four jobs, in two arrays since the cluster takes no larger ones than three."""
    output = lab.give_teachers("bare")
    arguments = ("distiller=kd,dkd", "seed=0,1")
    with (
        table.row("accounting off", "one job killed, one cancelled: vanished, the same command continues them") as row,
        table.row("arrays limited", "four jobs where arrays may have three") as split,
    ):
        command = lab.launch("bare", bare_cluster.crew, *arguments, output="bare")
        runs = appear(command, output, 4)
        jobs = {name: job_of(run) for name, run in runs.items()}
        assert sorted(job.partition("_")[0] for job in jobs.values()).count(jobs["kd-s0"].partition("_")[0]) == 3
        disturb(
            {
                "SIGKILL": (running_at(runs["kd-s0"], 5), lambda: os.kill(process_of(runs["kd-s0"]), signal.SIGKILL)),
                "scancel": (running_at(runs["dkd-s1"], 5), lambda: bare_cluster.run("scancel", jobs["dkd-s1"])),
            }
        )
        ended = command.ended()
        assert ended.code == 1 and "2 of 4 runs finished" in ended.out, ended
        told = summary(ended.out)
        assert told.keys() == {"kd-s0", "dkd-s1"}, ended
        assert all("vanished after epoch" in line for line in told.values()), ended
        again = lab.launch("bare-again", bare_cluster.crew, *arguments, output="bare").ended()
        assert again.code == 0 and "4 of 4 runs finished" in again.out, again
        assert {name: len(starts(run)) for name, run in runs.items()} == {n: 2 if n in told else 1 for n in runs}
        lab.reference("seeds")
        for each in (row, split):
            hold_against(each, runs, lab.peace, uri=lab.store, experiment="bare")
