"""Firefly descent: the two steps that find how a network should grow (Firefly §2.2, Eq. 3 to 5).

Step one moves gates ε and directions δ of the over-grown network by a few steps of gradient descent, under |εᵢ| ≤ ϵ and
‖δᵢ‖₂ ≤ 1 (Eq. 4). Step two asks by integrated gradients what each candidate contributes, and keeps the best ones under
a budget (Eq. 5).

The loss is even in the gate of a split: θ ± εδ are the same two neurons for ε and −ε. So Eq. 5's ε̂ᵢ = −ϵ sign(sᵢ),
which turns an increase into a decrease, is right for new neurons only. A split is predicted to change the loss by
ϵ |sᵢ| on either side if sᵢ points up along its gate, and such a split is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nasbook.errors import InvalidInput, require_positive
from nasbook.growth.overgrown import OvergrownNetwork
from nasbook.growth.selection import Budget, select
from nasbook.growth.surgery import Grown
from nasbook.training import evaluating

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets; the mean over a batch."""

MIDPOINTS = 3
"""n: at how many points a gradient is taken between 0 and ε̃ (§2.2, "a small integer (e.g., 3)")."""


@dataclass(frozen=True)
class Scores:
    """What step two found out about the candidates."""

    gradients: Float[Tensor, " candidates"]
    """sᵢ: the mean gradient of the loss along the way from 0 to ε̃ᵢ."""
    reached: Float[Tensor, " candidates"]
    """ε̃ᵢ: the gates that step one reached."""
    is_split: Float[Tensor, " candidates"]
    """1 for splits, 0 for new neurons."""

    def epsilon(self, radius: float) -> Float[Tensor, " candidates"]:
        """ε̂ᵢ: the gate at which each candidate would be kept: −ϵ sign(sᵢ), and for a split the trained side."""
        return torch.where(self.is_split > 0, radius * self._side(), -radius * torch.sign(self.gradients))

    def changes(self, radius: float) -> Float[Tensor, " candidates"]:
        """ε̂ᵢ sᵢ: the predicted change of the loss by each candidate, negative where it lowers the loss."""
        return self.epsilon(radius) * self.gradients

    def _side(self) -> Tensor:
        return torch.where(self.reached < 0, -1.0, 1.0).to(self.reached)


def start(overgrown: OvergrownNetwork, radius: float) -> None:
    """Puts every gate at ϵ, where step one begins: at 0, the loss would have no gradient in δ."""
    require_positive(radius=radius)
    overgrown.set_epsilon(radius)


class CandidateDescent:
    """Gradient descent on ε and δ with a step length of its own for each gate and each direction.

    AdaGrad with one scale a candidate: gradients of splits are of the order ϵ², those of new neurons of the order ϵ,
    and one rate for both would leave one of them where it is. A scale for each *coordinate*, as Adam has, would turn a
    direction away from the gradient, and a split away from the least eigenvector.

    Splits stay at the largest gate and norm. Only εδ matters for them; where λ_min < 0 the optimum of Eq. 4 lies there,
    and where it is above 0 they are not chosen. Left free, a direction that begins with a positive curvature would
    shrink to nothing before it has turned.

    Args:
        overgrown: whose gates and directions are moved.
        radius: ϵ; the first step of a gate is ``rate`` times it.
        rate: length of a direction's first step, in units of its largest norm, 1. At 0.1, a hundred steps with a
            constant gradient add up to 1.9.
    """

    def __init__(self, overgrown: OvergrownNetwork, radius: float, rate: float = 0.1) -> None:
        require_positive(radius=radius, rate=rate)
        self.overgrown, self.radius, self.rate = overgrown, radius, rate
        self._is_split = _splits(overgrown) > 0
        # Sums of squared gradients, of the gates and of the directions, one a candidate
        self.sums = torch.zeros(2, len(overgrown.candidates)).to(overgrown.epsilon())

    def zero_grad(self) -> None:
        """Forgets the last gradient."""
        for part in (*self.overgrown.gate_parameters(), *self.overgrown.directions()):
            part.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step along the last gradient."""
        directions = self.overgrown.directions()
        gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in directions]
        gates = self.overgrown.epsilon_gradient()
        squares = self.overgrown.sum_by_candidate([gradient.square() for gradient in gradients])
        self.sums += torch.stack([gates.square(), squares])
        # Where a sum is zero the gradient is too, and the step is zero whatever the divisor.
        lengths = self.rate / torch.where(self.sums > 0, self.sums, 1).sqrt()
        self.overgrown.set_epsilon(self.overgrown.epsilon() - self.radius * lengths[0] * gates)
        for part, gradient, length in zip(directions, gradients, self.overgrown.spread(lengths[1]), strict=True):
            part.sub_(length * gradient)
        self._keep_splits_apart()

    def _keep_splits_apart(self) -> None:
        """Puts each split's direction back on the unit sphere, and its gate to ϵ."""
        norms = self.overgrown.direction_norms()
        there = self._is_split & (norms > 0)
        self.overgrown.scale_directions(torch.where(there, 1 / torch.where(there, norms, 1), 1))
        epsilon = self.overgrown.epsilon()
        self.overgrown.set_epsilon(torch.where(self._is_split, self.radius, epsilon))

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of squared gradients."""
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what :meth:`state_dict` returned."""
        self.sums.copy_(state["sums"])


def step_one(
    overgrown: OvergrownNetwork,
    optimizer: CandidateDescent | torch.optim.Optimizer,
    batch: Batch,
    loss: Loss,
    radius: float,
) -> tuple[Float[Tensor, ""], Tensor]:
    """One step of projected gradient descent on ε and δ (Eq. 4); returns loss and outputs before it, detached.

    The paper turns the constraints into penalties; a projection keeps them exactly.

    Args:
        overgrown: in training mode.
        optimizer: of its gates and directions; :class:`CandidateDescent` knows what they are.
        batch: inputs and targets.
        loss: what is minimised.
        radius: ϵ.

    Raises:
        InvalidInput: a radius that is not above 0.
    """
    require_positive(radius=radius)
    optimizer.zero_grad()
    outputs = overgrown(batch[0])
    value = loss(outputs, batch[1])
    value.backward()
    optimizer.step()
    overgrown.project(radius)
    return value.detach(), outputs.detach()


def integrated_gradients(
    overgrown: OvergrownNetwork, batches: Iterable[Batch], loss: Loss, points: int = MIDPOINTS
) -> Scores:
    """sᵢ for all candidates along one common path: all gates go from 0 to ε̃ together.

    The equation after Eq. 4 lets only gate i move while the others stay at ε̃, which takes a pass for each candidate
    (:func:`integrated_gradients_by_coordinate`). Both have the same leading order in ϵ, and this one is complete: the
    sum of ε̃ᵢ sᵢ tends to L(ε̃) − L(0) as ``points`` grows.

    Costs ``points`` forward and backward passes a batch, in evaluation mode.

    Args:
        overgrown: after step one; its gates are ε̃, and are left there.
        batches: over which the gradient is averaged, weighted by their sizes.
        loss: the mean over a batch.
        points: n.

    Raises:
        InvalidInput: no point, or no batch.
    """
    require_positive(points=points)
    reached = overgrown.epsilon()
    batches = _some(batches)
    total = torch.zeros_like(reached)
    with evaluating(overgrown):
        for place in range(1, points + 1):
            overgrown.set_epsilon((2 * place - 1) / (2 * points) * reached)  # c_z
            total += _mean_gradient(overgrown, batches, loss)
    overgrown.set_epsilon(reached)
    return Scores(total / points, reached, _splits(overgrown))


def integrated_gradients_by_coordinate(
    overgrown: OvergrownNetwork, batches: Iterable[Batch], loss: Loss, points: int = MIDPOINTS
) -> Scores:
    """sᵢ as the equation after Eq. 4 has it: gate i goes from 0 to ε̃ᵢ while the others stay at ε̃.

    Costs ``points`` passes a batch *and candidate*: for small networks, and to see what the common path leaves out.
    """
    require_positive(points=points)
    reached = overgrown.epsilon()
    batches = _some(batches)
    total = torch.zeros_like(reached)
    with evaluating(overgrown):
        for index in range(len(reached)):
            for place in range(1, points + 1):
                moved = reached.clone()
                moved[index] *= (2 * place - 1) / (2 * points)
                overgrown.set_epsilon(moved)
                total[index] += _mean_gradient(overgrown, batches, loss)[index]
    overgrown.set_epsilon(reached)
    return Scores(total / points, reached, _splits(overgrown))


def _some(batches: Iterable[Batch]) -> list[Batch]:
    found = list(batches)
    if not found:
        raise InvalidInput("There are no batches to average a gradient over; give one or more.")
    return found


def _mean_gradient(overgrown: OvergrownNetwork, batches: Sequence[Batch], loss: Loss) -> Float[Tensor, " candidates"]:
    images = sum(len(targets) for _, targets in batches)
    total = torch.zeros_like(overgrown.epsilon())
    gates = overgrown.gate_parameters()
    for inputs, targets in batches:
        value = loss(overgrown(inputs), targets) * (len(targets) / images)
        total += torch.cat(torch.autograd.grad(value, gates, allow_unused=True, materialize_grads=True))
    return total


def _splits(overgrown: OvergrownNetwork) -> Tensor:
    return overgrown.epsilon().new_tensor([candidate.kind == "split" for candidate in overgrown.candidates])


@dataclass(frozen=True)
class Descent:
    """What one firefly growth did."""

    grown: Grown
    """The network with the chosen candidates."""
    chosen: tuple[int, ...]
    """Which candidates of the over-grown network were kept."""
    predicted: float
    """Σ ε̂ᵢ sᵢ over the chosen ones: the change of the loss that Eq. 5 predicts."""


def step_two(
    overgrown: OvergrownNetwork,
    scores: Scores,
    budget: Budget,
    radius: float,
    choose: Callable[..., list[int]] = select,
) -> Descent:
    """Keeps the candidates that promise most, at ε̂ (Eq. 5), and returns the grown network.

    Empty residual layers that got nothing are still there; :func:`nasbook.growth.without_empty_layers` takes them out.

    Args:
        overgrown: after step one.
        scores: of its candidates.
        budget: how many may be kept.
        radius: ϵ.
        choose: :func:`~nasbook.growth.select`, as the paper does, or :func:`~nasbook.growth.select_exactly`.
    """
    changes = scores.changes(radius).double().cpu().numpy()
    empty = [name for name, gates in overgrown.gates.items() if not gates.old]
    chosen = choose(np.asarray(changes), [c.width for c in overgrown.candidates], budget, empty)
    grown = overgrown.grow(chosen, scores.epsilon(radius))
    return Descent(grown, tuple(chosen), float(changes[chosen].sum()))
