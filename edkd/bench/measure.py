"""Reading clocks and memory, on a CPU and on a GPU."""

import contextlib
import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch


def wait(device: torch.device) -> None:
    """Return when the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The wall-clock seconds of an action, to the end of its work on the device."""
    wait(device)
    began = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - began


class Memory:
    """The peak memory of what is built and run after this object is made, in MB (1e6 bytes).

    On a GPU it is the memory that PyTorch reserved, because a graph's tensors do not count as allocated. On Linux it is
    the resident memory of this process beyond what it held before. Elsewhere `peak` is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.restart()
        self.before = torch.cuda.memory_reserved(device) / 1e6 if self.cuda else _read("self/status", "VmRSS:")

    def restart(self) -> None:
        """Reset the peak to what is held now, after unused memory has gone back to the system where possible."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self, *, children: bool) -> float | None:
        """The peak since `restart`; on a CPU, `children` adds the private memory that child processes hold now."""
        if self.cuda:
            return torch.cuda.max_memory_reserved(self.device) / 1e6 - self.before
        workers = multiprocessing.active_children() if children else []
        held = sum(_read(f"{worker.pid}/smaps_rollup", "Private_") for worker in workers)
        return _read("self/status", "VmHWM:") - self.before + held if self.before else None


def _read(file: str, name: str) -> float:
    """The sum of the lines of a file in /proc that begin with `name`, in MB; 0 where there is none."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))
