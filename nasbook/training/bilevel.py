"""Bilevel updates: one step on the architecture, one on the weights (DARTS §2.3, Algorithm 1).

The problem (Eq. 3, 4):  min_α L_val(w*(α), α)   with   w*(α) = argmin_w L_train(w, α).

Every update here replaces w* by one step of gradient descent, w′ = w − ξ ∇_w L_train(w, α) (Eq. 6), and
they differ in how much of the gradient through that step they keep:

* :class:`FirstOrder` keeps none (ξ = 0);
* :class:`SecondOrder` keeps it exactly, by a Hessian-vector product;
* :class:`FiniteDifference` approximates that product by two more gradients, as DARTS does (Eq. 8).

What α minimises is an :class:`Objective`, a weighted sum of both losses. DARTS' has the validation loss alone;
the mixed level of MiLeNAS (He et al., CVPR 2020) has both.

Where several processes have a part of each batch (:mod:`nasbook.processes`), every gradient and loss that a method here
returns is the mean over them: that of the whole batch.

Symbols: ``weights`` is w, ``architecture`` is α, ``xi`` is ξ, ``vector`` is ∇_{w′} of the objective at (w′, α).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from nasbook import processes
from nasbook.errors import InvalidInput, require_positive
from nasbook.operations.batch_norms import batch_norms, kept_statistics

Batch = tuple[Tensor, Tensor]
"""Images and labels."""
Gradients = tuple[Tensor, ...]


@dataclass(frozen=True)
class Objective:
    """What the architecture minimises: ``train``·L_train(w*, α) + ``validation``·L_val(w*, α) + the penalty.

    Raises:
        InvalidInput: a weight is negative, or both are zero.
    """

    train: float = 0.0
    """Weight of the training loss; 1 in MiLeNAS."""
    validation: float = 1.0
    """Weight of the validation loss; 1 in DARTS, λ in MiLeNAS."""

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            if not getattr(self, name) >= 0:  # NaN too
                raise InvalidInput(f"The weight of the {name} loss must be at least 0, got {getattr(self, name)}.")
        require_positive(**{"the sum of both weights": self.train + self.validation})


class ArchitectureGradient(NamedTuple):
    """The gradient for the architecture optimiser, and what was computed on the way."""

    gradients: Gradients
    """One tensor for each architecture parameter."""
    loss: Float[Tensor, ""]
    """Validation loss without its weight and without the penalty, detached."""
    outputs: Tensor
    """The network's outputs on the validation batch, detached; of several processes, on the own part of it."""


class StepResult(NamedTuple):
    """What one step saw; tensors stay on the device, so that reading them is the caller's choice."""

    train_loss: Float[Tensor, ""]
    train_outputs: Tensor
    validation_loss: Float[Tensor, ""]
    validation_outputs: Tensor


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block, the parameters need no gradient, so that none is prepared for and nothing kept for it."""
    needing = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in needing:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)


class BilevelUpdate(ABC):
    """One alternation of Algorithm 1: α by its own optimiser on validation data, then w on training data.

    Args:
        network: an ``nn.Module`` with ``weights()``, ``architecture()`` and ``penalty()``.
        weight_optimizer: holds exactly the network's weights.
        architecture_optimizer: holds exactly its architecture parameters.
        loss: (outputs, targets) → scalar.
        clip: largest norm of the weights' gradient (DARTS: 5); the architecture's is not clipped.
        objective: what the architecture minimises; DARTS' by default.

    Raises:
        InvalidInput: an optimiser holds other parameters than it should. A weight optimiser that also
            holds α would decay it, clip it and train it on training data, without any visible sign.
    """

    def __init__(
        self,
        network: nn.Module,
        weight_optimizer: torch.optim.Optimizer,
        architecture_optimizer: torch.optim.Optimizer,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        clip: float = 5.0,
        objective: Objective = Objective(),
    ) -> None:
        require_positive(clip=clip)
        self.network = network
        self.weights = tuple(network.weights())  # type: ignore[operator]
        self.architecture = tuple(network.architecture())  # type: ignore[operator]
        _check_parameters("weight_optimizer", weight_optimizer, self.weights)
        _check_parameters("architecture_optimizer", architecture_optimizer, self.architecture)
        self.weight_optimizer = weight_optimizer
        self.architecture_optimizer = architecture_optimizer
        self.loss = loss
        self.clip = clip
        self.objective = objective
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        self._norms = batch_norms(network)
        self._weight_names = tuple(names[id(weight)] for weight in self.weights)

    @abstractmethod
    def architecture_gradient(self, train: Batch, validation: Batch) -> ArchitectureGradient:
        """The gradient of the objective and the penalty with respect to α. Changes nothing."""

    def step(self, train: Batch, *validation: Batch) -> StepResult:
        """One step on the architecture, then one on the weights.

        Args:
            train: the batch for the weights, and for the training loss in the objective.
            validation: one batch for the whole architecture; or one for each parameter group of the architecture
                optimiser, where every group learns from images of its own.

        Raises:
            InvalidInput: neither one batch nor one for each group.
        """
        results = []
        for batch, learning in zip(validation, self._learning_apart(validation), strict=True):
            with self._only(learning):
                results.append(self.architecture_gradient(train, batch))
            for parameter, gradient in zip(learning, results[-1].gradients, strict=True):
                parameter.grad = gradient
        self.architecture_optimizer.step()
        self.architecture_optimizer.zero_grad()
        return StepResult(*self.weight_step(train), results[0].loss, results[0].outputs)

    def weight_step(self, train: Batch) -> tuple[Float[Tensor, ""], Tensor]:
        """One step on the weights alone, at the architecture as it is; returns loss and outputs, detached."""
        with constant(self.architecture):
            loss, outputs = self._loss_at(None, train)
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        loss, *given = processes.mean([loss.detach(), *(gradient for gradient in gradients if gradient is not None)])
        means = iter(given)
        for parameter, weight_gradient in zip(self.weights, gradients, strict=True):
            parameter.grad = None if weight_gradient is None else next(means)
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.weight_optimizer.step()
        self.weight_optimizer.zero_grad()
        return loss, outputs.detach()

    def _learning_apart(self, validation: Sequence[Batch]) -> list[tuple[nn.Parameter, ...]]:
        """The architecture parameters that each validation batch is for."""
        if len(validation) == 1:
            return [self.architecture]
        groups = [tuple(group["params"]) for group in self.architecture_optimizer.param_groups]
        if len(validation) != len(groups):
            raise InvalidInput(
                f"Give one validation batch, or one for each of the {len(groups)} parameter groups of the architecture "
                f"optimiser; got {len(validation)}."
            )
        return groups

    def penalty(self) -> Float[Tensor, ""]:
        """The network's penalty on its architecture."""
        return self.network.penalty()  # type: ignore[operator]

    def _objective_at(
        self, weights: tuple[Tensor, ...] | None, train: Batch, validation: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The objective with the penalty, and the validation loss and outputs, at other weights than the network's."""
        loss, outputs = self._loss_at(weights, validation)
        total = self.objective.validation * loss + self.penalty()
        if self.objective.train > 0:
            total = total + self.objective.train * self._loss_at(weights, train)[0]
        return total, loss.detach(), outputs.detach()

    @contextmanager
    def _only(self, learning: tuple[nn.Parameter, ...]) -> Iterator[None]:
        """Within the block, these are the architecture, and its other parameters are constants."""
        whole = self.architecture
        kept = {id(parameter) for parameter in learning}
        try:
            self.architecture = learning
            with constant([parameter for parameter in whole if id(parameter) not in kept]):
                yield
        finally:
            self.architecture = whole

    def _loss_at(self, weights: tuple[Tensor, ...] | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and outputs at other weights than the network's own (None: at its own)."""
        if weights is None:
            outputs = self.network(batch[0])
        else:
            outputs = functional_call(self.network, dict(zip(self._weight_names, weights, strict=True)), batch[0])
        return self.loss(outputs, batch[1]), outputs


class FirstOrder(BilevelUpdate):
    """The gradient at the current weights, which stand for the best ones (ξ = 0, the end of §2.3).

    ∇_α L_val(w, α) for DARTS; for MiLeNAS ∇_α L_train(w, α) + λ ∇_α L_val(w, α).
    """

    def architecture_gradient(self, train: Batch, validation: Batch) -> ArchitectureGradient:
        with kept_statistics(self._norms), constant(self.weights):
            total, loss, outputs = self._objective_at(None, train, validation)
        loss, *gradients = processes.mean([loss, *_grad(total, self.architecture)])
        return ArchitectureGradient(tuple(gradients), loss, outputs)


class UnrolledUpdate(BilevelUpdate):
    """The gradient through one unrolled step (Eq. 7):

    ∇_α L_val(w′, α) − ξ ∇²_{α,w} L_train(w, α) ∇_{w′} L_val(w′, α).

    In general the objective stands where L_val stands here. For MiLeNAS both of its losses are taken at w′, and
    since the product is linear in its vector, one product serves both.

    The unrolled step is the optimiser's own, with its momentum and weight decay (both independent of α),
    but without clipping, as in the authors' code. Adam's step depends on the gradient otherwise than linearly, so
    beside Adam it is the plain w − ξ ∇_w L_train(w, α) of Eq. 6, with the weight decay.

    Args:
        xi: ξ, the length of the unrolled step; None takes the weight optimiser's current learning rate.
    """

    def __init__(
        self,
        network: nn.Module,
        weight_optimizer: torch.optim.Optimizer,
        architecture_optimizer: torch.optim.Optimizer,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        clip: float = 5.0,
        objective: Objective = Objective(),
        xi: float | None = None,
    ) -> None:
        super().__init__(network, weight_optimizer, architecture_optimizer, loss=loss, clip=clip, objective=objective)
        if not isinstance(weight_optimizer, (torch.optim.SGD, torch.optim.Adam)):
            raise InvalidInput(
                f"An unrolled step repeats torch.optim.SGD's, or is the plain gradient's beside torch.optim.Adam; "
                f"weight_optimizer is {type(weight_optimizer).__name__}."
            )
        if len(weight_optimizer.param_groups) != 1:
            raise InvalidInput(
                f"An unrolled step has one length ξ; give the weight optimiser one parameter group, "
                f"not {len(weight_optimizer.param_groups)}."
            )
        for option in ("dampening", "nesterov", "maximize"):
            if weight_optimizer.param_groups[0].get(option):
                raise InvalidInput(f"An unrolled step knows momentum and weight decay, but not {option}; leave it out.")
        if xi is not None and not xi >= 0:
            raise InvalidInput(f"xi must be at least 0, got {xi}.")
        self.xi = xi

    @abstractmethod
    def train_gradient(self, train: Batch) -> tuple[Gradients, Callable[[Gradients], Gradients]]:
        """∇_w L_train(w, α), and the function v ↦ ∇²_{α,w} L_train(w, α)·v."""

    def unrolled_weights(self, gradients: Gradients) -> Gradients:
        """w′ of Eq. 7, detached, ready to be differentiated by."""
        (group,) = self.weight_optimizer.param_groups
        unrolled = []
        for weight, gradient in zip(self.weights, gradients, strict=True):
            buffer = self.weight_optimizer.state.get(weight, {}).get("momentum_buffer")
            velocity = 0 if buffer is None else group["momentum"] * buffer
            step = velocity + gradient.detach() + group["weight_decay"] * weight.detach()
            unrolled.append((weight.detach() - self.current_xi * step).requires_grad_())
        return tuple(unrolled)

    @property
    def current_xi(self) -> float:
        """ξ of this step."""
        return self.weight_optimizer.param_groups[0]["lr"] if self.xi is None else self.xi

    def architecture_gradient(self, train: Batch, validation: Batch) -> ArchitectureGradient:
        with kept_statistics(self._norms):
            gradients, hessian_vector_product = self.train_gradient(train)
            unrolled = self.unrolled_weights(gradients)
            total, loss, outputs = self._objective_at(unrolled, train, validation)
            loss, *both = processes.mean([loss, *_grad(total, (*self.architecture, *unrolled))])
            direct, vector = both[: len(self.architecture)], both[len(self.architecture) :]
            implicit = hessian_vector_product(tuple(vector))
        combined = tuple(d - self.current_xi * i for d, i in zip(direct, implicit, strict=True))  # Eq. 7
        return ArchitectureGradient(combined, loss, outputs)


class SecondOrder(UnrolledUpdate):
    """The exact product, by differentiating ∇_w L_train · v once more (Pearlmutter's way)."""

    def train_gradient(self, train: Batch) -> tuple[Gradients, Callable[[Gradients], Gradients]]:
        loss, _ = self._loss_at(None, train)
        gradients = _grad(loss, self.weights, create_graph=True)

        def hessian_vector_product(vector: Gradients) -> Gradients:
            pairs = [(g, v) for g, v in zip(gradients, vector, strict=True) if g.requires_grad]
            if not pairs:  # the training gradient does not depend on α at all
                return tuple(torch.zeros_like(parameter) for parameter in self.architecture)
            roots, seeds = zip(*pairs, strict=True)
            return processes.mean(torch.autograd.grad(roots, self.architecture, seeds, materialize_grads=True))

        return processes.mean(gradients), hessian_vector_product


class FiniteDifference(UnrolledUpdate):
    """DARTS' central difference (Eq. 8): (∇_α L_train(w⁺, α) − ∇_α L_train(w⁻, α)) / 2ε, w± = w ± εv.

    Args:
        r: ε = r/‖v‖; the authors take 0.01. On networks with ReLU and max pooling the loss has kinks, and
            the error at that r is large; see Chapter 1.
    """

    def __init__(
        self,
        network: nn.Module,
        weight_optimizer: torch.optim.Optimizer,
        architecture_optimizer: torch.optim.Optimizer,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        clip: float = 5.0,
        objective: Objective = Objective(),
        xi: float | None = None,
        r: float = 1e-2,
    ) -> None:
        super().__init__(
            network, weight_optimizer, architecture_optimizer, loss=loss, clip=clip, objective=objective, xi=xi
        )
        require_positive(r=r)
        self.r = r

    def train_gradient(self, train: Batch) -> tuple[Gradients, Callable[[Gradients], Gradients]]:
        loss, _ = self._loss_at(None, train)
        return processes.mean(_grad(loss, self.weights)), lambda vector: self.central_difference(train, vector)

    def central_difference(self, train: Batch, vector: Gradients) -> Gradients:
        """The approximate product with ``vector``."""
        norm = torch.stack([v.norm() for v in vector]).norm()
        epsilon = self.r / norm.clamp_min(torch.finfo(norm.dtype).tiny)

        def gradient(sign: int) -> Gradients:
            moved = tuple(w.detach() + sign * epsilon * v for w, v in zip(self.weights, vector, strict=True))
            return _grad(self._loss_at(moved, train)[0], self.architecture)

        pairs = zip(gradient(1), gradient(-1), strict=True)
        return processes.mean([(plus - minus) / (2 * epsilon) for plus, minus in pairs])


class ToyProblem(nn.Module):
    """DARTS' example with one weight and one architecture parameter (§2.3, Fig. 2).

    L_train(w, α) = w² − 2αw + α²,   L_val(w, α) = αw − 2α + 1.

    The inner problem's solution is w*(α) = α, so the bilevel optimum is α = w = 1. From (α, w) = (2, −2) an
    unrolled search converges to α = w = 2/(1 + 2ξ): the optimum at ξ = 1/2.
    """

    train_batch = (torch.tensor(1.0), torch.tensor(0.0))
    validation_batch = (torch.tensor(0.0), torch.tensor(0.0))

    def __init__(self, alpha: float = 2.0, w: float = -2.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha, dtype=dtype))
        self.w = nn.Parameter(torch.tensor(w, dtype=dtype))

    def weights(self) -> Iterator[nn.Parameter]:
        yield self.w

    def architecture(self) -> Iterator[nn.Parameter]:
        yield self.alpha

    def penalty(self) -> Float[Tensor, ""]:
        return torch.zeros_like(self.alpha)

    def forward(self, training: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The training loss for 1, the validation loss for 0: the "network" is its own loss."""
        train_loss = self.w**2 - 2 * self.alpha * self.w + self.alpha**2
        validation_loss = self.alpha * self.w - 2 * self.alpha + 1
        return torch.where(training > 0, train_loss, validation_loss)

    @staticmethod
    def loss(outputs: Float[Tensor, ""], _: Tensor) -> Float[Tensor, ""]:
        """The loss to give to an update: the outputs as they are."""
        return outputs


def _grad(loss: Tensor, parameters: tuple[Tensor, ...], create_graph: bool = False) -> Gradients:
    if not loss.requires_grad:  # it depends on none of them
        return tuple(torch.zeros_like(parameter) for parameter in parameters)
    return torch.autograd.grad(loss, parameters, create_graph=create_graph, materialize_grads=True)


def _check_parameters(name: str, optimizer: torch.optim.Optimizer, expected: tuple[nn.Parameter, ...]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {id(parameter) for parameter in expected}
    if held != own:
        kind = "weights()" if name == "weight_optimizer" else "architecture()"
        raise InvalidInput(
            f"{name} must hold network.{kind} and nothing else, {len(own)} parameters; "
            f"it holds {len(held - own)} that are not in it and lacks {len(own - held)} of it."
        )
