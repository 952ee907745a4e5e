"""The names of the device and the CPU, the memory that a run takes, and this process's SLURM job."""

import functools
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """A device as journals name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def cpu_model() -> str:
    """The model of the CPU: libraries choose their kernels by it."""
    return _cpu("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """The CPU's vendor ID (`GenuineIntel`, `AuthenticAMD`); empty where Linux does not report it."""
    return _cpu("vendor_id")


@functools.cache
def _cpu(field: str) -> str:
    """A field of the first CPU in Linux's list, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def forget_peak(device: torch.device) -> None:
    """Reset a GPU's peak, so that earlier runs of this process do not count. A CPU's peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """The peak memory in units of 10^6 bytes: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def slurm_job() -> str | None:
    """The job that this process runs in, named as `squeue` names it (``12``, ``12_3``); None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def slurm_note() -> dict[str, Any] | None:
    """The journal's entry for the job: its id, node, GPUs and number of restarts; None outside SLURM."""
    if (job := slurm_job()) is None:
        return None
    return {
        "job_id": job,
        "node": os.environ.get("SLURMD_NODENAME"),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


def slurm_cores() -> int | None:
    """The CPU cores that SLURM allots to this process; None outside SLURM.

    Clusters that do not bind tasks to cores let a process see all cores of its node, including those of other jobs.
    """
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):  # the first is set only if the job requests it
        value = os.environ.get(name, "")
        if value.isdigit():
            return max(1, int(value))
    return None
