"""What several processes do with synchronised batch norms; see ``tests/worlds.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nasbook import processes
from nasbook.operations.batch_norms import SynchronizedBatchNorm2d, kept_statistics, synchronize_norms

CHANNELS, BATCH, SIZE = 3, 6, 2


def images(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch whose parts have different means and deviations, so that normalising each by itself would show."""
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * torch.arange(1, BATCH + 1)[:, None, None, None] + torch.arange(BATCH)[:, None, None, None]).to(dtype)


def network(**options: Any) -> nn.Sequential:
    """Two norms in a row with a curve between them."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(CHANNELS, **options), nn.Softplus(), nn.BatchNorm2d(CHANNELS, **options)]
    result = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    if processes.count() > 1:
        synchronize_norms(result)
    return result


def loss_of(outputs: Tensor, seed: int = 5) -> Tensor:
    """A sum over the own part of a batch that is the sum over the whole one when the processes add theirs."""
    weights = processes.own_part(images(seed))
    return (outputs.square() * weights).sum()


def pass_twice(**options: Any) -> dict[str, Tensor]:
    """Outputs, gradients and state after two training passes and one in evaluation mode."""
    net = network(**options)
    found = {}
    for step in range(2):
        x = processes.own_part(images(step)).requires_grad_()
        outputs = net(x)
        gradients = torch.autograd.grad(loss_of(outputs), [x, *net.parameters()])
        found |= {f"outputs {step}": outputs.detach(), f"images {step}": gradients[0]}
        for number, gradient in enumerate(processes.total(gradients[1:])):
            found[f"parameter {number} {step}"] = gradient
    with kept_statistics(net):
        net(processes.own_part(images(3)))
    net.eval()
    found["evaluated"] = net(processes.own_part(images(4))).detach()
    return {**found, **{name: value.clone() for name, value in net.state_dict().items()}}


def second_derivative() -> list[Tensor]:
    """A Hessian-vector product with respect to images and parameters."""
    net = network()
    x = processes.own_part(images(0)).requires_grad_()
    variables = [x, *net.parameters()]
    gradients = torch.autograd.grad(loss_of(net(x)), variables, create_graph=True)
    vectors = [processes.own_part(images(9)), *(torch.linspace(-1, 1, CHANNELS).double() for _ in variables[1:])]
    # Each process has its share of a parameter's gradient: their sum is the gradient.
    product = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True))
    own, *shared = torch.autograd.grad(product, variables)
    return [own, *processes.total(shared)]


def checked(check: Callable[..., bool]) -> bool:
    """gradcheck or gradgradcheck of what the processes compute together, as a function of the whole batch."""
    net = network()

    def together(x: Tensor, *parameters: Tensor) -> Tensor:
        # In both directions this is the identity on what all processes have alike.
        x, *parameters = (processes.sum_over_processes(value) / processes.count() for value in (x, *parameters))
        names = [name for name, _ in net.named_parameters()]
        given = dict(zip(names, parameters, strict=True))
        outputs = torch.func.functional_call(net, given, (processes.own_part(x),))
        return processes.sum_over_processes(loss_of(outputs.tanh())) / 10

    with kept_statistics(net):
        return check(together, (images(0).requires_grad_(), *(p.detach().requires_grad_() for p in net.parameters())))


def far_from_zero() -> Tensor:
    """Normalised values, in single precision, of images whose mean is a thousand deviations."""
    x = torch.randn(600, 1, 1, 1, generator=torch.Generator().manual_seed(0)) + 1000
    return SynchronizedBatchNorm2d(1, affine=False)(processes.own_part(x))


def half_precision() -> tuple[Tensor, Tensor]:
    norm = SynchronizedBatchNorm2d(CHANNELS)
    outputs = norm(processes.own_part(images(0, torch.bfloat16)))
    return outputs.detach(), norm.running_mean


def channels_last() -> tuple[bool, Tensor]:
    x = processes.own_part(images(0)).contiguous(memory_format=torch.channels_last)
    outputs = network()(x)
    return outputs.is_contiguous(memory_format=torch.channels_last), outputs.detach()


def one_value_each() -> Tensor:
    """A batch of one value a channel in each process, of which there are enough together."""
    return SynchronizedBatchNorm2d(1, affine=False)(torch.tensor([[[[float(processes.rank())]]]]))


SETTINGS: dict[str, dict[str, Any]] = {
    "affine": {},
    "plain": {"affine": False},
    "momentum": {"momentum": 0.3, "eps": 0.1},
    "cumulative": {"momentum": None},
    "no statistics": {"track_running_stats": False},
}
CASES: dict[str, tuple[int, Callable[[], Any]]] = {
    **{f"{name}, {n}": (n, partial(pass_twice, **options)) for name, options in SETTINGS.items() for n in (1, 2)},
    "affine, 3": (3, pass_twice),
    **{f"second derivative, {n}": (n, second_derivative) for n in (1, 2, 3)},
    "gradcheck": (2, partial(checked, torch.autograd.gradcheck)),
    "gradgradcheck": (2, partial(checked, torch.autograd.gradgradcheck)),
    "far from zero": (2, far_from_zero),
    "half precision, 1": (1, half_precision),
    "half precision, 2": (2, half_precision),
    "channels last": (2, channels_last),
    "one value each": (2, one_value_each),
}
