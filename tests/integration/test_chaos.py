"""Sweep after sweep under faults that are drawn from a seed: no epoch lost, no metric twice, no twins, the same bits.

    make chaos MINUTES=60 SEED=7
    make chaos MINUTES=0 SEED=7 SWEEP=13    # the thirteenth sweep of that alone

Each sweep prints its faults and their times, and the command that repeats it.
"""

import os
import time
from collections import Counter

from tests.integration.cluster import Cluster
from tests.integration.disturbed import DisturbedSweep, draw
from tests.integration.evidence import FaultTable
from tests.integration.lab import Lab

MINUTES, SEED, FIRST = (float(each) for each in os.environ.get("EDKD_CHAOS", "3 1 1").split())


def test_chaos(lab: Lab, cluster: Cluster, table: FaultTable) -> None:
    began, seed, number = time.monotonic(), int(SEED), int(FIRST)
    faults: Counter[str] = Counter()
    failures: list[str] = []
    with table.row(f"chaos, seed {seed}", "a sweep after the other") as row:
        row.equal = True
        while True:
            sweep = DisturbedSweep(lab, cluster, draw(seed=seed, number=number), output=f"chaos-{number}")
            sweep.run()
            faults += sweep.done
            row.runs += sweep.row.runs
            row.lost += sweep.row.lost
            row.duplicates += sweep.row.duplicates
            row.equal &= sweep.row.equal
            row.seconds = time.monotonic() - began
            counts = ", ".join(f"{kind} ({count})" for kind, count in faults.most_common())
            row.what = f"{number - int(FIRST) + 1} sweeps, {faults.total()} faults: {counts}"
            how = f"make chaos MINUTES=0 SEED={seed} SWEEP={number}"
            print(how, *sweep.log, sep="\n", flush=True)
            if sweep.wrong:
                failures.append("\n".join([how, *sweep.log]))
            number += 1
            if time.monotonic() - began > 60 * MINUTES:
                break
        assert not failures, "\n\n".join(failures)
