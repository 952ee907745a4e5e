"""What SLURM tells a process about its own job, by environment variables."""

import os
from typing import Any


def job_id() -> str | None:
    """The job that this process runs in, named as `squeue` names it (``12``, ``12_3``); None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def here() -> dict[str, Any] | None:
    """What the journal keeps of the job: its id, node, GPUs, and how often SLURM has started it again; None outside."""
    if (job := job_id()) is None:
        return None
    return {
        "job_id": job,
        "node": os.environ.get("SLURMD_NODENAME"),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


def cores() -> int | None:
    """The CPU cores that SLURM allots to this process; None outside SLURM.

    Clusters that do not bind tasks to cores let a process see all cores of its node, its neighbours' among them.
    """
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):  # the first is there only if it was asked for
        value = os.environ.get(name, "")
        if value.isdigit():
            return max(1, int(value))
    return None
