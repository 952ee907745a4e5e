"""One run in several processes (`engine.devices`), of one node or of several: they begin together, and end together.

On each node, one process starts that node's share with `torch.multiprocessing` and watches it. The reason for a failure
is written into the store that all processes of the run share. Each node polls the store, and ends its own processes.
"""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed import DistError, Store

from edkd.config.schema import Engine
from edkd.errors import EdkdError
from edkd.runs.preemption import Ended, Stopped
from edkd.training.distributed import open_store

LOST = 5  # exit code of a process that ends because another one is gone
_LOOK = 0.5  # seconds between two polls of the processes and the store
_GRACE = 5.0  # seconds that a node waits for the reason after its processes lost another node's
_FAILED, _STOPPED = "edkd/failed", "edkd/stopped"  # keys in the store


class Nodes:
    """The nodes of a run: their count, this one's number (from 0), and the address of the store (`open_store`).

    The store exists as long as this process of the first node.
    """

    def __init__(self, count: int, number: int, meeting: str) -> None:
        self.count, self.number, self.meeting = count, number, meeting
        self.store = open_store(meeting, serve=number == 0)

    def ranks(self, size: int) -> range:
        """The ranks of this node's processes, of `size` in the run."""
        return range(size * self.number // self.count, size * (self.number + 1) // self.count)


def check_devices(engine: Engine, device: torch.device, nodes: int) -> None:
    """Raise EdkdError for more devices than there are, and for what they cannot do."""
    if device.type == "cpu":
        if engine.sync_batch_norm:
            raise EdkdError("engine.sync_batch_norm=true needs GPUs: torch has no such batch norm for CPUs")
    elif device.index is not None:
        raise EdkdError(
            f"engine.device={engine.device} is one GPU; engine.devices={engine.devices} needs engine.device=cuda"
        )
    elif engine.devices > nodes * torch.cuda.device_count():
        where = "this process sees" if nodes == 1 else f"on each of {nodes} nodes a process sees"
        raise EdkdError(f"engine.devices={engine.devices}: {where} {torch.cuda.device_count()} GPUs")


def failed(store: Store, line: str) -> None:
    """Record why the run fails, unless another process has done so."""
    with contextlib.suppress(DistError):  # the first node has ended
        store.compare_set(_FAILED, "", line)


def stopped(store: Store) -> None:
    """Record that the processes stopped on request."""
    store.set(_STOPPED, "yes")


def run_together(function: Callable[..., None], size: int, nodes: Nodes, *args: Any) -> None:
    """Call `function(number, rank of the first, meeting, *args)` in this node's share of `size` new processes.

    If a process of any node fails or is killed, the others are ended. Raises EdkdError with the line of the first that
    failed, and `Stopped` if the processes stopped on request.
    """
    try:
        _run(function, size, nodes, args)
    except Ended:
        if line := _failure(nodes.store):
            raise EdkdError(line) from None
        raise
    with contextlib.suppress(DistError):  # the first node has ended, and all is well
        if nodes.store.check([_STOPPED]):
            raise Stopped


def _run(function: Callable[..., None], size: int, nodes: Nodes, args: tuple[Any, ...]) -> None:
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each process that it ends
    ranks = nodes.ranks(size)
    started = multiprocessing.start_processes(
        function, args=(ranks[0], nodes.meeting, *args), nprocs=len(ranks), join=False, start_method="spawn"
    )
    try:
        while not started.join(timeout=_LOOK):
            if line := _failure(nodes.store):
                raise EdkdError(line)
    except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as error:
        line = _why([process.exitcode or 0 for process in started.processes], ranks[0], size, nodes)
        if not line:
            failed(nodes.store, f"process {ranks[0] + error.error_index + 1} of {size} failed: {last_line(error)}")
            raise
        failed(nodes.store, line)
        raise EdkdError(line) from None
    finally:
        for process in started.processes:
            process.terminate()
        for process in started.processes:
            process.join()


def _failure(store: Store) -> str:
    """Why the run failed, as recorded by the first process that noticed; empty if nothing is recorded."""
    try:
        return store.get(_FAILED).decode() if store.check([_FAILED]) else ""
    except DistError:
        return "the first node of the run has ended, and this one with it"


def _why(codes: Sequence[int], first: int, size: int, nodes: Nodes) -> str:
    """Why this node's processes ended with these exit codes; empty if one raised an error that is not recorded."""
    # The others were ended by SIGTERM, or failed because the killed one was gone.
    killed = [number for number, code in enumerate(codes) if code < 0 and code != -signal.SIGTERM]
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        return (
            f"process {first + killed[0] + 1} of {size} was killed ({name}), and the run ended with it; "
            "the same command continues it"
        )
    if nodes.count > 1 and {*codes} <= {0, LOST, -signal.SIGTERM}:
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline:  # SLURM's SIGTERM may come first
            if line := _failure(nodes.store):
                return line
            time.sleep(_LOOK)
        return "a process of another node is gone, and the run ended with it; the same command continues it"
    return _failure(nodes.store)


def last_line(error: Exception) -> str:
    """What a process raised, `Type: message`, from the error with its traceback as text that ends the others."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
