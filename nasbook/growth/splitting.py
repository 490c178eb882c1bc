"""Splitting steepest descent: which neurons to split, and along which direction (Liu, Wu & Wang 2019).

Replace a neuron σ(x, θ) by ½(σ(x, θ + εδ) + σ(x, θ − εδ)). The first order in ε cancels, and the loss changes by
½ ε² δᵀSδ with the neuron's splitting matrix S = E[∂L/∂σ · ∂²σ/∂θ²] (its Eq. 4). So the best direction is S's least
eigenvector, and splitting helps exactly where the least eigenvalue is below zero.

S is the second derivative of the loss in δ at δ = 0 with ε = 1, and blocks of different neurons don't mix. So one
Hessian-vector product of the over-grown network multiplies the matrices of *all* neurons of all layers by vectors.
:func:`splitting_matrices` takes one product for each entry of a neuron; :func:`rayleigh_step` follows the gradient of
the Rayleigh quotient and never forms a matrix (Wang et al. 2019).

A ReLU has no second derivative, but a kink. We give it the bump of a softplus in the second derivative alone
(:func:`curved`), as Liu et al. do; the function and its gradient stay those of the ReLU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.growth.firefly import Batch, Loss
from nasbook.growth.overgrown import OvergrownNetwork
from nasbook.growth.surgery import Grown
from nasbook.networks.growable import Growable
from nasbook.training import evaluating

SHARPNESS = 5.0
"""β of the softplus log(1 + exp(βx))/β whose second derivative stands for a ReLU's; its bump is about 4/β wide."""


@dataclass(frozen=True)
class Eigenpairs:
    """The least eigenvalue of every neuron's splitting matrix and the direction that belongs to it."""

    values: dict[str, Float[Tensor, " neurons"]]
    """λ_min, by width."""
    vectors: dict[str, Float[Tensor, "neurons entries"]]
    """The unit eigenvectors, by width; entries of the layers that write the width, one after another."""


class _Step(torch.autograd.Function):
    """The ReLU's derivative, whose own derivative is a softplus' bump."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sharpness: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sharpness = sharpness
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(ctx.sharpness * x)
        return gradient * ctx.sharpness * s * (1 - s), None


class _CurvedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharpness: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sharpness = sharpness
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * _Step.apply(x, ctx.sharpness), None


class CurvedReLU(nn.Module):
    """A ReLU with the second derivative of a softplus."""

    def __init__(self, sharpness: float = SHARPNESS) -> None:
        super().__init__()
        require_positive(sharpness=sharpness)
        self.sharpness = sharpness

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return _CurvedReLU.apply(x, self.sharpness)


def curved(network: nn.Module, sharpness: float = SHARPNESS) -> None:
    """Puts :class:`CurvedReLU` in the place of every ``nn.ReLU``, in the network itself.

    A ReLU that a network calls as a function stays as it is: give it a module.
    """
    for name, module in list(network.named_modules(remove_duplicate=False)):  # one may stand at several places
        if type(module) is nn.ReLU:
            network.set_submodule(name, CurvedReLU(sharpness))


def splittable(
    network: Growable, *, sharpness: float = SHARPNESS, generator: torch.Generator | None = None
) -> OvergrownNetwork:
    """The over-grown network that asks for splitting matrices: splits only, gates at 1, curved ReLUs.

    Args:
        network: left as it is.
        sharpness: of the softplus that curves the ReLUs.
        generator: of the directions; None leaves them at zero.
    """
    overgrown = OvergrownNetwork(network, splits=True, generator=generator)
    curved(overgrown.network, sharpness)
    overgrown.set_epsilon(1.0)
    return overgrown


def splitting_products(
    overgrown: OvergrownNetwork, batch: Batch, loss: Loss, vectors: Iterable[Sequence[Tensor]]
) -> Iterator[list[Tensor]]:
    """Sv for all neurons at once, one Hessian-vector product for each of ``vectors``.

    While it runs, the directions are zero: take the products before changing them.

    Args:
        overgrown: from :func:`splittable`; what its directions are does not matter.
        batch: inputs and targets.
        loss: the mean over a batch.
        vectors: each is one tensor for each of ``overgrown.directions()``, shaped like it.
    """
    directions = overgrown.directions()
    kept = [part.detach().clone() for part in directions]
    overgrown.set_directions([torch.zeros_like(part) for part in directions])
    try:
        with evaluating(overgrown):  # the moments of a batch would move with δ
            value = loss(overgrown(batch[0]), batch[1])
            gradient = torch.autograd.grad(value, directions, create_graph=True)
            for vector in vectors:
                along = torch.stack([(g * v).sum() for g, v in zip(gradient, vector, strict=True)]).sum()
                yield list(
                    torch.autograd.grad(along, directions, retain_graph=True, allow_unused=True, materialize_grads=True)
                )
    finally:
        overgrown.set_directions(kept)


def splitting_matrices(
    network: Growable, batches: Iterable[Batch], loss: Loss, *, sharpness: float = SHARPNESS
) -> dict[str, Float[Tensor, "neurons entries entries"]]:
    """S of every neuron, by width: exact, with one Hessian-vector product an entry and batch.

    Args:
        network: in evaluation mode while this runs: its batch norms are constants.
        batches: over which the loss is averaged, weighted by their sizes.
        loss: the mean over a batch.
        sharpness: of the softplus that curves the ReLUs.

    Raises:
        InvalidInput: no batch.
    """
    overgrown = splittable(network, sharpness=sharpness)
    batches = list(batches)
    if not batches:
        raise InvalidInput("There are no batches to average the loss over; give one or more.")
    images = sum(len(targets) for _, targets in batches)
    entries = {name: overgrown.split_rows(name).shape[1] for name, gates in overgrown.gates.items() if gates.splits}
    like = next(network.parameters())
    matrices = {name: like.new_zeros(overgrown.gates[name].old, n, n) for name, n in entries.items()}
    for inputs, targets in batches:
        basis = (_unit_vectors(overgrown, entries, entry) for entry in range(max(entries.values())))
        for entry, product in enumerate(splitting_products(overgrown, (inputs, targets), loss, basis)):
            for name, count in entries.items():
                if entry < count:
                    matrices[name][:, :, entry] += len(targets) / images * overgrown.split_rows(name, product)
    for matrix in matrices.values():  # in place: with n entries, a width of m neurons takes m n² numbers
        matrix.add_(matrix.mT.clone()).div_(2)
    return matrices


def least_eigenpairs(matrices: dict[str, Float[Tensor, "neurons entries entries"]]) -> Eigenpairs:
    """λ_min and its unit eigenvector of every splitting matrix, decomposed one width after another."""
    values, vectors = {}, {}
    for name, matrix in matrices.items():
        # In double precision: on matrices of low rank, LAPACK's single-precision routine may not converge.
        found = torch.linalg.eigh(matrix.double())
        values[name] = found.eigenvalues[:, 0].to(matrix)
        vectors[name] = found.eigenvectors[:, :, 0].to(matrix)
    return Eigenpairs(values, vectors)


def rayleigh_step(
    overgrown: OvergrownNetwork, optimizer: torch.optim.Optimizer, batch: Batch, loss: Loss
) -> Float[Tensor, " neurons"]:
    """One step down the Rayleigh quotients δᵀSδ / δᵀδ of all neurons, on one batch (Wang et al. 2019, §3).

    Directions are put back on the unit sphere after it.

    Args:
        overgrown: from :func:`splittable`, with drawn directions.
        optimizer: of its directions.
        batch: inputs and targets.
        loss: the mean over a batch.

    Returns:
        The quotients before the step, one a neuron in the order of ``overgrown.candidates``.
    """
    directions = overgrown.directions()
    overgrown.scale_directions(1 / overgrown.direction_norms().clamp(min=torch.finfo(directions[0].dtype).tiny))
    kept = [part.detach().clone() for part in directions]
    (product,) = splitting_products(overgrown, batch, loss, [kept])
    quotients = overgrown.sum_by_candidate([v * sv for v, sv in zip(kept, product, strict=True)])
    for part, v, sv, quotient in zip(directions, kept, product, overgrown.spread(quotients), strict=True):
        part.grad = 2 * (sv - quotient * v)  # of δᵀSδ / δᵀδ at ‖δ‖ = 1
    optimizer.step()
    optimizer.zero_grad()
    overgrown.scale_directions(1 / overgrown.direction_norms().clamp(min=torch.finfo(directions[0].dtype).tiny))
    return quotients


def rayleigh_quotients(
    overgrown: OvergrownNetwork, batches: Iterable[Batch], loss: Loss
) -> Float[Tensor, " neurons"]:
    """δᵀSδ of every neuron over some batches: the eigenvalues that :func:`rayleigh_step` has come to."""
    batches = list(batches)
    if not batches:
        raise InvalidInput("There are no batches to average the loss over; give one or more.")
    images = sum(len(targets) for _, targets in batches)
    kept = [part.detach().clone() for part in overgrown.directions()]
    total = torch.zeros_like(overgrown.epsilon())
    for batch in batches:
        (product,) = splitting_products(overgrown, batch, loss, [kept])
        share = len(batch[1]) / images
        total += share * overgrown.sum_by_candidate([v * sv for v, sv in zip(kept, product, strict=True)])
    return total


def split(network: Growable, chosen: dict[str, list[int]], vectors: dict[str, Tensor], step: float) -> Grown:
    """Splits neurons into θ ± ``step`` times their direction, each read by half.

    Args:
        network: left as it is.
        chosen: the neurons to split, by width.
        vectors: a direction for each neuron, as in :class:`Eigenpairs`.
        step: ε.

    Raises:
        InvalidInput: an unknown width, a neuron that is not there, or one given twice.
    """
    for name, neurons in chosen.items():
        old = network.neurons()[network.declare().width(name).name]
        if len(set(neurons)) < len(neurons) or any(not 0 <= neuron < old for neuron in neurons):
            raise InvalidInput(
                f"The width {name} has {old} neurons, 0..{old - 1}, each to be split once; can't split "
                f"{sorted(neurons)}."
            )
    overgrown = OvergrownNetwork(network, splits=dict.fromkeys(chosen, True))
    overgrown.set_directions(overgrown.from_split_rows({name: vectors[name] for name in chosen}))
    numbers = [i for i, c in enumerate(overgrown.candidates) if c.index in chosen[c.width]]
    return overgrown.grow(numbers, torch.full((len(overgrown.candidates),), step, dtype=torch.float64))


def _unit_vectors(overgrown: OvergrownNetwork, entries: dict[str, int], entry: int) -> list[Tensor]:
    """The unit vector of an entry for every neuron that has it, shaped like the directions."""
    rows = {}
    for name, count in entries.items():
        if entry < count:
            rows[name] = overgrown.gates[name].split_gates.new_zeros(overgrown.gates[name].old, count)
            rows[name][:, entry] = 1
    return overgrown.from_split_rows({name: value.detach() for name, value in rows.items()})
