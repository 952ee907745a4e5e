"""Reading clocks and memory, on a CPU and on a GPU."""

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


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

    On a GPU: device memory that PyTorch reserved, for a graph's tensors do not count as allocated. On Linux: resident
    memory of this process, over what it held before. Elsewhere `peak` is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        tidy(device)
        self.before = self._held()

    def restart(self) -> None:
        """Forget the peak so far, not what is held."""
        tidy(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                CLEAR_REFS.write_text("5")

    def peak(self, processes: Iterable[int] = ()) -> float | None:
        """The peak since `restart`; on a CPU with what these other processes hold for themselves now."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) / 1e6 - self.before
        highest = _status("VmHWM")
        return None if highest is None else highest - self.before + sum(map(_private, processes))

    def _held(self) -> float | None:
        return torch.cuda.memory_reserved(self.device) / 1e6 if self.device.type == "cuda" else _status("VmRSS")


def tidy(device: torch.device) -> None:
    """Give memory that nothing uses back to the system, where that is possible."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> float | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:")), None)


def _private(pid: int) -> float:
    """What a process does not share with others, in MB; 0 where that cannot be told."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Private_"))
