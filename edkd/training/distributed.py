"""One run in several processes: each trains on its part of every batch, and their gradients are added.

Optimisers add gradients explicitly in each step, not by the hooks of DistributedDataParallel: those run in `backward`
alone, and optimisers that treat losses apart differentiate each by `torch.autograd.grad`. Explicit addition also leaves
a step's losses, weights and state_dict as they are in one process. Without a process group the functions that a step
calls change nothing.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import FileStore, Store, TCPStore

from edkd.errors import EdkdError

_BUCKET = 1 << 23  # values that are added in one call
_PATIENCE = timedelta(hours=2)  # timeout: the first process may be writing, or others filling a teacher cache
_LOST = re.compile("connection (closed|reset)|socket closed|broken pipe", re.IGNORECASE)


def open_store(meeting: str, *, serve: bool = False) -> Store:
    """The store in which processes meet: the file `meeting` on one node, or HOST:PORT of the first of several.

    serve: whether this process serves the store; the others wait for it. Raises EdkdError for a port in use.
    """
    if meeting.startswith(("/", "127.")):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if meeting.startswith("/"):
        return FileStore(meeting, -1)
    host, _, port = meeting.rpartition(":")
    try:
        return TCPStore(host, int(port), is_master=serve, wait_for_workers=False, timeout=_PATIENCE)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise EdkdError(f"the processes of the run cannot meet at {meeting}: {why}") from error


def join(rank: int, size: int, store: Store, device: torch.device) -> None:
    """Make this process one of `size`, which meet in a store, until it calls `leave`."""
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE
    )


def leave() -> None:
    """End what `join` began. In a process that exits without it, gloo's threads may abort (SIGABRT)."""
    distributed.destroy_process_group()


@contextlib.contextmanager
def joined(rank: int, size: int, store: Store, device: torch.device) -> Iterator[None]:
    """Join `size` processes, which meet in a store, for this context; wait for the others at its end."""
    join(rank, size, store, device)
    try:
        yield
        distributed.barrier()
    finally:
        leave()


def lost_another(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone."""
    return isinstance(error, distributed.DistError) or _LOST.search(str(error)) is not None


def rank() -> int:
    """This process's number, from 0; process 0 writes all of a run's output."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def part(count: int) -> slice:
    """This process's slice of `count` items; slices are contiguous and differ in length by one at most."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def add(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if size() > 1:
        distributed.all_reduce(values)
    return values


def total(count: int, device: torch.device) -> int:
    """The sum of every process's count."""
    return count if size() == 1 else int(add(torch.tensor(count, device=device)))


def least(values: Tensor) -> Tensor:
    """The least of each value of a tensor over all processes, in place."""
    if size() > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MIN)
    return values


def agreed(values: Sequence[int]) -> list[int]:
    """The first process's values, in every process."""
    given = torch.tensor(values, dtype=torch.int64, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.broadcast(given, 0)
    found: list[int] = given.tolist()
    return found


def from_first(value: Any) -> Any:
    """The first process's value, in every process: tensors on the CPU, and containers of them."""
    if size() == 1:
        return value
    given = [value]
    distributed.broadcast_object_list(given, 0)
    return given[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    found = [value] * size()
    if size() > 1:
        distributed.all_gather_object(found, value)
    return found


@torch.no_grad()
def add_gradients(gradients: Iterable[Tensor | None]) -> None:
    """Make each gradient the sum of those of all processes, in place; an optimiser calls it before it uses them."""
    if size() == 1:
        return
    for bucket in _buckets([each for each in gradients if each is not None]):
        flat = torch.cat([each.reshape(-1) for each in bucket])
        distributed.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            gradient.copy_(summed.view(gradient.shape))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    values = 0
    for tensor in tensors:
        values += tensor.numel()
        if bucket and values > _BUCKET:
            yield bucket
            bucket, values = [], tensor.numel()
        bucket.append(tensor)
    if bucket:
        yield bucket


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Copy the first process's buffers to all: batch norms' running statistics, which its checkpoint holds."""
    if size() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def check_memory(method: nn.Module) -> None:
    """Raise EdkdError if a method's buffers, except batch norms', differ between processes after a step."""
    for place, module in method.named_modules():
        for name, buffer in (
            [] if isinstance(module, nn.modules.batchnorm._BatchNorm) else module.named_buffers("", False)
        ):
            values = buffer.double().flatten()
            if not torch.equal(least(values.clone()), -least(-values)):
                raise EdkdError(
                    f"the method keeps {f'{place}.{name}'.lstrip('.')} of the images it sees, and each process sees "
                    "others: this method needs engine.devices=1"
                )
