"""Chapter 1's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nasbook.exercises.registry import Exercise, register
from nasbook.genotypes import CellGenotype, Space
from nasbook.supernets import Relaxation, strongest_edges

CHAPTER = "01-differentiable-architecture-search"


# --- how many cells ---------------------------------------------------------------------------------------------------


def _check_count(answer: Any) -> str | None:
    if not isinstance(answer, int) or isinstance(answer, bool):
        return f"Expected a whole number, got {type(answer).__name__}."
    right = math.prod(math.comb(n, 2) * 5**2 for n in range(2, 7))
    if answer == right:
        return None
    if answer == math.prod(math.comb(n, 2) * 6**2 for n in range(2, 7)):
        return "The zero operation can't stand in a discrete cell."
    if answer == math.prod(n**2 * 5**2 for n in range(2, 7)):
        return "The two edges of a node come from different nodes, and their order does not matter."
    return "Each node chooses 2 of its n earlier nodes and one of 5 operations on each; multiply over n = 2 to 6."


register(
    Exercise(
        "darts.count",
        CHAPTER,
        _check_count,
        (2700, 2700 * 6**10, 720**2 * 5**10, 1_037_664_180, 2.6e10),
        takes_function=False,
    )
)


# --- the gradient of the softmax --------------------------------------------------------------------------------------


def _check_softmax(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        alpha = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
        gradient = torch.randn(6, generator=generator, dtype=torch.float64)
        p = alpha.softmax(0)
        (expected,) = torch.autograd.grad(p @ gradient, alpha)
        got = answer(p.detach(), gradient)
        if not isinstance(got, Tensor) or got.shape != (6,):
            return "Expected a tensor with one entry for each operation."
        if torch.allclose(got, p.detach() * gradient):
            return "Raising one coefficient lowers the others: a term is missing."
        if not torch.allclose(got, expected, rtol=1e-9, atol=1e-12):
            return "Start from ∂p_i/∂α_j = p_i (δ_ij − p_j) and sum over i."
    return None


register(
    Exercise(
        "darts.softmax",
        CHAPTER,
        _check_softmax,
        (lambda p, g: p * g, lambda p, g: g, lambda p, g: p * (g - g.mean()), lambda p, g: g - p @ g, lambda p, g: 0.0),
    )
)


# --- the finite difference --------------------------------------------------------------------------------------------


def _check_difference(answer: Callable[..., Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    w, v = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    got = answer(lambda weights: mixed @ weights, w, v, 1e-2)  # ∇_α of αᵀMw: its product with v is Mv, exactly
    expected = mixed @ v
    if not isinstance(got, Tensor) or got.shape != (3,):
        return "Expected a tensor of α's shape."
    for factor, hint in (
        (2.0, "Twice too large: the two points are 2ε apart."),
        (1e-2, "ε is r/‖v‖, and the difference is divided by 2ε."),
        (-1.0, "The sign is turned: plus first, then minus."),
    ):
        if torch.allclose(got, factor * expected, rtol=1e-6):
            return hint
    if torch.allclose(got, expected / v.norm(), rtol=1e-6) or torch.allclose(got, expected * v.norm(), rtol=1e-6):
        return "The norm of v is lost: divide by 2ε with the same ε that moves the weights."
    if not torch.allclose(got, expected, rtol=1e-6):
        return "w± = w ± εv with ε = r/‖v‖; then (∇_α at w⁺ minus ∇_α at w⁻) / 2ε."
    # A cubic: only a central difference has no error of first order in ε.
    central = answer(lambda weights: weights[:3] ** 2, w, v, 1e-2)
    if not torch.allclose(central, 2 * w[:3] * v[:3], rtol=1e-6):
        return "Right on a linear gradient only: take the difference on both sides of w."
    return None


def _forward_difference(gradient: Callable[[Tensor], Tensor], w: Tensor, v: Tensor, r: float) -> Tensor:
    epsilon = r / v.norm()
    return (gradient(w + epsilon * v) - gradient(w)) / epsilon


def _half_difference(gradient: Callable[[Tensor], Tensor], w: Tensor, v: Tensor, r: float) -> Tensor:
    epsilon = r / v.norm()
    return (gradient(w + epsilon * v) - gradient(w - epsilon * v)) / epsilon


def _norm_lost(gradient: Callable[[Tensor], Tensor], w: Tensor, v: Tensor, r: float) -> Tensor:
    epsilon = r / v.norm()
    return (gradient(w + epsilon * v) - gradient(w - epsilon * v)) / (2 * r)


register(
    Exercise(
        "darts.finite-difference", CHAPTER, _check_difference, (_forward_difference, _half_difference, _norm_lost, 1.0)
    )
)


# --- the toy's fixed point --------------------------------------------------------------------------------------------


def _check_fixed_point(answer: Callable[[float], float]) -> str | None:
    for xi in (0.25, 0.0, 1.0, 3.0):
        if math.isclose(answer(xi), 2 / (1 + 2 * xi)):
            return "That is the book's toy; here the validation loss has −3α."
        if not math.isclose(answer(xi), 3 / (1 + 2 * xi), rel_tol=1e-9):
            return "At the end w = α, so w′ = w. Set dL_val(w′(α), α)/dα = 0 and remember dw′/dα = 2ξ."
    return None


register(
    Exercise(
        "darts.fixed-point",
        CHAPTER,
        _check_fixed_point,
        (lambda xi: 2 / (1 + 2 * xi), lambda xi: 3.0, lambda xi: 3 / (1 + xi), 1.0),
    )
)


# --- another relaxation -----------------------------------------------------------------------------------------------


def _check_sigmoid(answer: type[Relaxation]) -> str | None:
    if not (isinstance(answer, type) and issubclass(answer, Relaxation)):
        return "Give the class itself, a subclass of Relaxation."
    space = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2)
    relaxation = answer(space)
    parameters = list(relaxation.parameters())
    if not parameters:
        return "The architecture parameters must be an nn.Parameter."
    with torch.no_grad():
        parameters[0].copy_(torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 1], [0, 0, 2], [0, -1, -2.0]]))
    coefficients = relaxation.coefficients()
    if coefficients.shape != (5, 3):
        return f"coefficients() must be (edges, operations) = (5, 3), got {tuple(coefficients.shape)}."
    if torch.allclose(coefficients.sum(-1), torch.ones(5)):
        return "The coefficients of an edge still sum to 1: the candidates still compete."
    if not torch.allclose(coefficients, parameters[0].sigmoid()):
        return "Each coefficient is the sigmoid of its own α."
    if not coefficients.requires_grad:
        return "No gradient reaches α."
    cell = relaxation.derive()
    if not isinstance(cell, CellGenotype):
        return "derive() must return a CellGenotype."
    if {edge.operation for edge in cell.into(3)} != {"sep_conv_3x3"}:
        return "derive() ranks the coefficients without 'none'; strongest_edges(…) does it."
    return None


class _StillSoftmax(Relaxation):
    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.alpha = torch.nn.Parameter(torch.zeros(len(space.edges), len(space.operations)))

    def coefficients(self) -> Tensor:
        return self.alpha.softmax(-1)

    def derive(self) -> CellGenotype:
        return strongest_edges(self.coefficients(), self.space)


class _Detached(_StillSoftmax):
    def coefficients(self) -> Tensor:
        return self.alpha.detach().sigmoid()


register(Exercise("darts.sigmoid", CHAPTER, _check_sigmoid, (_StillSoftmax, _Detached, torch.nn.Linear, 0.5)))
