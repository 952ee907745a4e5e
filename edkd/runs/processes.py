"""One run in several processes of this machine (`engine.devices`): they are started together, and end together."""

import logging
import math
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing

from edkd.config.schema import Engine
from edkd.errors import EdkdError
from edkd.runs.preemption import Asked, Stopped

_LOOK = 0.5  # seconds between two looks at whether the run shall stop


def check_devices(engine: Engine, device: torch.device) -> None:
    """Raise EdkdError for more devices than there are, and for what they cannot do."""
    if device.type == "cpu":
        if engine.sync_batch_norm:
            raise EdkdError("engine.sync_batch_norm=true needs GPUs: torch has no such batch norm for CPUs")
    elif device.index is not None:
        raise EdkdError(
            f"engine.device={engine.device} is one GPU; engine.devices={engine.devices} needs engine.device=cuda"
        )
    elif engine.devices > torch.cuda.device_count():
        raise EdkdError(f"engine.devices={engine.devices}: this process sees {torch.cuda.device_count()} GPUs")


def run_together(function: Callable[..., None], size: int, *args: Any, stop_asked: Asked | None) -> None:
    """Call `function(rank, *args, errors)` in `size` new processes; `errors` takes the line of an EdkdError.

    If one fails, or is killed, the others are ended. Raises EdkdError with the line of the first that failed, and
    `Stopped` where `stop_asked` says so: what an epoch has computed so far is lost.
    """
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each process that it ends
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    started = multiprocessing.start_processes(
        function, args=(*args, errors), nprocs=size, join=False, start_method="spawn"
    )
    try:
        while not started.join(timeout=_LOOK):
            if stop_asked is not None and stop_asked(math.inf):
                raise Stopped
    except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException):
        if not errors.empty():
            raise EdkdError(errors.get()) from None
        codes = [process.exitcode or 0 for process in started.processes]
        # The others were ended by SIGTERM, or failed for want of the one that was killed.
        killed = [rank for rank, code in enumerate(codes) if code < 0 and code != -signal.SIGTERM]
        if not killed:
            raise
        name = signal.Signals(-codes[killed[0]]).name
        raise EdkdError(
            f"process {killed[0] + 1} of {size} was killed ({name}), and the run ended with it; "
            "the same command continues it"
        ) from None
    finally:
        for process in started.processes:
            process.terminate()
        for process in started.processes:
            process.join()
