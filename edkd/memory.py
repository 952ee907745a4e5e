"""How much memory a run takes."""

import resource
import sys

import torch


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
