"""The machine a run computes on: device, threads, memory layout, determinism."""

import importlib.util
import os
import shutil

import torch
from torch import nn

from edkd.config.schema import Engine
from edkd.errors import EdkdError
from edkd.training import cpu_kernels, hardware

VISIBLE = "CUDA_VISIBLE_DEVICES"
_COMPILED = 200  # of a `forward` that several networks share: each takes three or more, for batch shapes and evaluation


def set_up(engine: Engine, threads: int | None = None) -> None:
    """Make this process compute as the engine asks; called before anything touches a GPU.

    `threads`: those that a run began with; None: the engine's, or as many as there are `cores`. fp32 means fp32:
    convolutions and products on a GPU do not fall back to TF32's 10 bits.
    """
    torch.set_num_threads(threads or engine.threads or cores())
    cpu_kernels.keep_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(engine.deterministic, warn_only=True)


def cores() -> int:
    """The number of CPU cores that this process may use: those it is bound to, or fewer if SLURM allots fewer."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, hardware.slurm_cores() or bound)


def named_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`, which this process does not use yet. Raises EdkdError for another name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise EdkdError(f"engine.device={name} is not here: {str(error).splitlines()[0]}") from error


def pick_device(name: str) -> torch.device:
    """As `named_device`, ready to be used. Raises EdkdError for a device that is not here."""
    device = named_device(name)
    try:
        torch.empty(0, device=device)
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # for operations on "the current device"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EdkdError(f"engine.device={name} is not here: {reason}") from error
    return device


def name_gpus() -> None:
    """List the GPUs in CUDA_VISIBLE_DEVICES if it is unset and there are several; child processes take theirs there."""
    if not os.environ.get(VISIBLE) and torch.cuda.device_count() > 1:
        os.environ[VISIBLE] = ",".join(str(number) for number in range(torch.cuda.device_count()))


def take_gpus(process: str, count: int) -> None:
    """Before CUDA starts, make `count` GPUs visible, chosen in turn by the number that ends the process's name."""
    gpus, number = os.environ.get(VISIBLE, "").split(","), process.rpartition("-")[2]
    if len(gpus) > count and number.isdigit():
        first = (int(number) - 1) * count
        os.environ[VISIBLE] = ",".join(gpus[(first + i) % len(gpus)] for i in range(count))


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Have a network compiled by torch when it first runs; names and weights stay. Raises EdkdError without a compiler.

    Each batch shape is compiled separately. Code for several shapes would replace the code for the first shape; a
    resumed run, which starts with the latter, would end with other bits. For the same reason a process compiles as
    many networks as it trains: beyond torch's limit of 8 for one `forward`, it would run the next ones uncompiled.
    """
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise EdkdError("engine.compile=true needs a C++ compiler: g++, or the one that CXX names")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise EdkdError("engine.compile=true needs triton on a GPU: pip install triton")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED)
    network.compile(dynamic=False)


def to_device(network: nn.Module, engine: Engine, device: torch.device) -> nn.Module:
    """Move a network to the device in the engine's memory layout, with its `cpu_kernels` where they apply."""
    layout = torch.channels_last if engine.channels_last else torch.contiguous_format
    if device.type == "cpu" and engine.channels_last and engine.cpu_kernels:
        cpu_kernels.use_products(network, in_fp32=cpu_kernels.fast_products())
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
