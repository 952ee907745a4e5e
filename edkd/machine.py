"""What this machine is called: by its CPU's makers, and in journals."""

import functools
import platform
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
