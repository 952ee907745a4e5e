"""What this machine is called, by its CPU's makers and in journals, and how much memory a run takes."""

import functools
import platform
import resource
import sys
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """A device as journals name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def cpu_model() -> str:
    """The model of the CPU: libraries choose their kernels by it."""
    return _cpu("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """Who made the CPU, as it says itself (`GenuineIntel`, `AuthenticAMD`); empty where Linux does not tell."""
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
    """Begin anew: what earlier runs of this process took of a GPU does not count. A CPU's peak cannot be forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """The most that was taken of a GPU's memory; on a CPU, by the whole process. In units of 10^6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
