"""What a network costs: parameters, multiply-adds, memory kept for the backward pass.

Conventions differ between papers by a factor of two and more, so each function states its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nasbook.errors import InvalidInput


def count_parameters(module_or_parameters: nn.Module | Iterable[Tensor], trainable_only: bool = False) -> int:
    """Number of scalar parameters; one that is shared counts once. Buffers, such as running means, don't count.

    Args:
        module_or_parameters: a module, or the parameters themselves.
        trainable_only: leave out those with ``requires_grad=False``.
    """
    parameters = (
        module_or_parameters.parameters() if isinstance(module_or_parameters, nn.Module) else module_or_parameters
    )
    distinct = {id(parameter): parameter for parameter in parameters}.values()
    return sum(parameter.numel() for parameter in distinct if parameter.requires_grad or not trainable_only)


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of one forward pass in evaluation mode.

    Convention: convolutions and matrix products (linear layers) count, one multiplication with its addition
    as one; a convolution counts its padding too. Biases, batch norm, activations, pooling and sums do not
    count. An auxiliary head that runs in training only does not count either. Papers that say "FLOPs" often
    mean this number, some of them twice this number.

    The module is left as it was: mode, parameters, buffers, gradients.

    Args:
        module: the network; the pass runs on its device and in its precision.
        input_shape: shape of the whole input, the batch included: ``(1, 3, 32, 32)`` for one CIFAR image.
    """
    like = next(module.parameters(), torch.empty(0))
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        # Not inference_mode(): there, linear layers reach the counter in a form that it does not know.
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(module, _cloned_buffers(module), (like.new_zeros(tuple(input_shape)),))
    finally:
        for part, training in modes.items():
            part.training = training
    return counter.get_total_flops() // 2  # the counter takes a multiplication and an addition as two


def saved_activation_bytes(module_or_callable: nn.Module | Callable[..., Any], *inputs: Any) -> int:
    """Bytes that autograd keeps between a forward pass and its backward pass, without the parameters.

    Counts the storage behind every saved tensor, whole and once, however many operations save it or a view
    of it. The input counts if an operation saves it; parameters and the module's buffers don't. This is what
    a candidate operation adds to a supernet's memory; it depends on shapes and modes only, not on the
    allocator, so it is the same on every run of one torch version and device type. Temporary memory of the
    kernels is not in it (:func:`peak_memory` has that).

    A module runs in its current mode on copies of its buffers; the CPU's random state is restored.

    Args:
        module_or_callable: the network, or a function of it such as a training loss. Of a function, the
            leaves of the graph of its output (a tensor, or a list, tuple or mapping of tensors) are taken as
            the parameters.
        inputs: its arguments.
    """
    storages: dict[int, torch.UntypedStorage] = {}  # by address; holding them keeps an address from being reused

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.random.fork_rng(devices=()), torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        if isinstance(module_or_callable, nn.Module):
            buffers = _cloned_buffers(module_or_callable)
            output = functional_call(module_or_callable, buffers, inputs)
            own = [*module_or_callable.parameters(), *buffers.values()]
        else:
            output = module_or_callable(*inputs)
            given = {id(tensor) for tensor in inputs}
            own = [leaf for leaf in _leaves(output) if id(leaf) not in given]
    excluded = {tensor.untyped_storage().data_ptr() for tensor in own}
    return sum(storage.nbytes() for address, storage in storages.items() if address not in excluded)


def count_traffic(module: nn.Module, *inputs: Tensor) -> int:
    """Bytes that a forward and a backward pass of a module in its current mode have to move at the least.

    Convention: every activation kept for the backward pass (:func:`saved_activation_bytes`) is written once and
    read once; every input is read once; every parameter is read in both passes, and the gradient of one that is
    trained is written once. Sums and maps that are not kept do not count, nor does what the kernels
    read again, nor the optimiser.
    """
    parameters = {id(parameter): parameter for parameter in module.parameters()}.values()
    moved = sum(parameter.nbytes * (2 + parameter.requires_grad) for parameter in parameters)
    return 2 * saved_activation_bytes(module, *inputs) + sum(x.nbytes for x in inputs) + moved


def largest_batch(bytes_of: Callable[[int], int], budget: int) -> int:
    """The largest batch whose bytes stay within a budget; 0 if not even one image does.

    The bytes of a network are nearly affine in the batch. So the search follows the line through the last two
    batches that it looked at, which takes about four calls and hardly goes over the budget, and halves where
    the line fails it.

    Args:
        bytes_of: bytes of a batch of so many images; must grow with the batch.
        budget: the most bytes that it may take.

    Raises:
        InvalidInput: a larger batch that fits takes no more bytes, so that there may be no largest one.
    """
    fits, fitting = 1, bytes_of(1)
    if fitting > budget:
        return 0
    slope, too_many, halve = float(fitting), None, False
    while too_many is None or too_many - fits > 1:
        guess = fits + max(1, int((budget - fitting) / max(slope, 1)))
        if too_many is not None:
            guess = (fits + too_many) // 2 if halve else min(guess, too_many - 1)
            halve = not halve
        cost = bytes_of(guess)
        if cost <= fitting:
            raise InvalidInput(f"bytes_of does not grow: {fitting} for a batch of {fits}, {cost} for {guess}.")
        slope = (cost - fitting) / (guess - fits)
        if cost <= budget:
            fits, fitting = guess, cost
        else:
            too_many = guess
    return fits


def peak_memory(function: Callable[[], Any], device: torch.device | str) -> int:
    """Most bytes that tensors held on a CUDA device at once while ``function()`` ran, what was there before included.

    Resets the device's peak statistics. Only memory in tensors counts, not what the allocator holds in
    reserve, so ``nvidia-smi`` shows more.

    Raises:
        InvalidInput: the device is not a CUDA device, or there is none. On a CPU, use
            :func:`saved_activation_bytes`.
    """
    device = torch.device(device)
    if device.type != "cuda":
        raise InvalidInput(f"peak_memory needs a CUDA device, got {device}; elsewhere use saved_activation_bytes.")
    if not torch.cuda.is_available():
        raise InvalidInput("peak_memory needs a CUDA device, and this machine has none. Use saved_activation_bytes.")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _cloned_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies for a forward pass to change in place of the module's own buffers."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _leaves(output: Any) -> list[Tensor]:
    """The tensors that the graph behind ``output`` would leave gradients in."""
    pending: list[Node | None] = [tensor.grad_fn for tensor in _tensors(output)]
    seen: set[Node] = set()
    leaves = []
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # an AccumulateGrad node
            leaves.append(node.variable)
        pending += [function for function, _ in node.next_functions]
    return leaves
