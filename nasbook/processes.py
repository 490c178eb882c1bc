"""Several processes on one run: how each takes its part of a batch, and how they stay the same.

``torchrun`` starts one program several times, a process for each GPU. Within :func:`joined`, they work on one run as
one process would: each computes an equal part of every batch, and what a batch's mean stands for (gradients, losses,
the moments of batch norm) is averaged over the processes. So all of them hold the same network after every step, to
the bit, and any of them could write the checkpoint; the first one does.

Alone, outside of :func:`joined`, every function here returns what it was given, and torch.distributed is not needed.
Where there are several, all must call the same functions in the same order; each waits for the others.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasbook.errors import InvalidInput, NasbookError

__all__ = [
    "ProcessFailed",
    "any_process",
    "average_gradients",
    "count",
    "device_of_run",
    "first_ahead",
    "in_first",
    "is_first",
    "joined",
    "launched",
    "mean",
    "own_part",
    "rank",
    "require_same",
    "sum_over_processes",
    "total",
]

PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others before it gives up."""


class ProcessFailed(NasbookError, RuntimeError):
    """Another process of the run failed; its own error says why."""


@dataclass(frozen=True)
class _Group:
    """This process among those that it works with."""

    rank: int
    count: int
    device: torch.device


_group: _Group | None = None


def launched() -> bool:
    """Whether this process was started as one of several, by torchrun or with its environment variables."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def count() -> int:
    """How many processes share the run."""
    return 1 if _group is None else _group.count


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _group is None else _group.rank


def is_first() -> bool:
    """Whether this process speaks and writes for all of them."""
    return rank() == 0


def device_of_run() -> torch.device | None:
    """The device of this process, None outside of :func:`joined`."""
    return None if _group is None else _group.device


@contextmanager
def joined(device: torch.device, meeting: str = "env://") -> Iterator[torch.device]:
    """Within the block, the processes that torchrun has started work together. Does nothing where there is only one.

    They talk through NCCL on CUDA, and through Gloo on a CPU.

    Args:
        device: ``cpu``, or ``cuda`` without a number: each process then takes the GPU of its ``LOCAL_RANK``.
        meeting: where the processes find each other: torchrun's variables, or ``file:///path``, a file that is not
            there yet.

    Yields:
        The device of this process.

    Raises:
        InvalidInput: a GPU is named or there are too few, torch.distributed is missing, or a block is open already.
    """
    global _group
    if not launched():
        yield device
        return
    from torch import distributed

    if _group is not None:
        raise InvalidInput("These processes work together already; joined() is for the outermost block of a program.")
    if not distributed.is_available():
        raise InvalidInput("This build of torch has no torch.distributed. Run in one process, without torchrun.")
    if device.type == "cuda":
        device = _own_gpu(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # flags are agreed on without the GPU
    number, together = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(backend, meeting, PATIENCE, rank=number, world_size=together)
    _group = _Group(number, together, device)
    try:
        any_process(False)  # nobody leaves before everybody is connected
        yield device
    finally:
        _group = None
        distributed.destroy_process_group()


def _own_gpu(device: torch.device) -> torch.device:
    if device.index is not None:
        raise InvalidInput(f"Each process takes a GPU of its own: give the device as cuda, not as {device}.")
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > found:
        raise InvalidInput(f"{here} processes need as many GPUs, torch finds {found}. Lower --nproc-per-node.")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


# --- tensors ----------------------------------------------------------------------------------------------------------


def own_part(whole: Tensor) -> Tensor:
    """The rows of a batch that this process computes: an equal share, in the order of the processes.

    Raises:
        InvalidInput: the number of rows is no multiple of the number of processes.
    """
    if len(whole) % count():
        raise InvalidInput(f"{count()} processes can't share {len(whole)} rows equally.")
    size = len(whole) // count()
    return whole[rank() * size : (rank() + 1) * size]


def total(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The sums over the processes, detached and with the same bits in each; in one message for each type of number."""
    return tuple(tensors) if _group is None else _reduced(tensors, 1)


def mean(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The means over the processes, detached and with the same bits in each; in one message for each type of number.

    Alone, the tensors as they are, with their graph.
    """
    return tuple(tensors) if _group is None else _reduced(tensors, _group.count)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces the gradients, where there are some, by their means over the processes."""
    if _group is not None:
        having = [parameter for parameter in parameters if parameter.grad is not None]
        for parameter, gradient in zip(having, mean([p.grad for p in having if p.grad is not None]), strict=True):
            parameter.grad = gradient


@torch.no_grad()
def _reduced(tensors: Sequence[Tensor], divisor: int) -> tuple[Tensor, ...]:
    from torch import distributed

    results = list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = torch.cat([tensors[place].reshape(-1) for place in places])
        distributed.all_reduce(flat)
        if divisor != 1:
            flat /= divisor
        for place, part in zip(places, flat.split([tensors[place].numel() for place in places]), strict=True):
            like = tensors[place]
            part = part.view(like.shape)
            # Optimisers want the gradient in the memory order of its parameter.
            results[place] = part if like.is_contiguous() else torch.empty_like(like).copy_(part)
    return tuple(results)


class _Sum(torch.autograd.Function):
    """The sum over the processes. What depends on a sum depends on each summand alike, so its transpose is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from torch import distributed

        result = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum over the processes, to be differentiated any number of times.

    The gradient in each process is that of the sum of what all processes differentiate, with respect to its own ``x``.
    """
    return x if _group is None else _Sum.apply(x)


# --- agreement --------------------------------------------------------------------------------------------------------


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. Does not wait for GPUs."""
    if _group is None:
        return flag
    from torch import distributed

    value = torch.tensor(int(flag))
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return bool(value)


def in_first(work: Callable[[], object]) -> None:
    """Runs ``work`` in the first process alone; the others wait for its end.

    Raises:
        ProcessFailed: in the others, where ``work`` raised.
    """
    if _group is None:
        work()
        return
    error: BaseException | None = None
    try:
        if is_first():
            work()
    except BaseException as raised:
        error = raised
    failed = any_process(error is not None)
    if error is not None:
        raise error
    if failed:
        raise ProcessFailed("The first process failed; its error says why.")


@contextmanager
def first_ahead() -> Iterator[None]:
    """The first process runs the block before the others do, as for a download that they then find on the disk."""
    try:
        if not is_first():
            any_process(False)
        yield
    finally:
        if is_first():
            any_process(False)


def require_same(what: str, text: str, tensors: Iterable[Tensor]) -> None:
    """Checks that all processes have the same text and, to the bit, the same tensors.

    Args:
        what: what they are, for the message.
        text: anything that says it whole.
        tensors: in the same order and of the same shapes everywhere where the text is the same.

    Raises:
        InvalidInput: in all processes, where one of them differs from the first.
    """
    if _group is None:
        return
    from torch import distributed

    digest = torch.tensor(list(hashlib.sha256(text.encode()).digest()))
    first = digest.clone()
    distributed.broadcast(first, 0)
    differs = not torch.equal(first, digest)
    if not any_process(differs):
        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
        whole = flat.clone()
        distributed.broadcast(whole, 0)
        differs = not torch.equal(whole.view(torch.int64), flat.view(torch.int64))  # as bits: NaN is NaN
    if any_process(differs):
        here = f"process {rank()} differs from process 0" if differs else "another process differs from process 0"
        raise InvalidInput(
            f"The processes of a run must have the same {what}; {here}. Give all of them the same seed, options and "
            f"files, and build the network after seeding."
        )
