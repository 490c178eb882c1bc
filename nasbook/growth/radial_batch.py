"""Many radial-basis networks at once: training, and every way to grow them by a neuron (Firefly §2.2, §3, B.1).

A network is f(x) = Σᵢ wᵢ σ(θᵢ₁x + θᵢ₂) with σ(t) = exp(-t²/2) (Eq. 6). It is so small that a layer's call costs more
than its arithmetic, so all networks of one width are rows of one tensor: ``neurons`` has the shape (networks, neurons,
3), and a neuron is (w, θ₁, θ₂). Every network has its own data.

The gradient is written out. With M_k = 2/N Σ r σ xᵏ, where r is the residual,

    ∂L/∂w = M₀,   ∂L/∂θ₁ = -w (θ₁ M₂ + θ₂ M₁),   ∂L/∂θ₂ = -w (θ₁ M₁ + θ₂ M₀),

so that one pass over σ gives all three. For 20 networks with 6 neurons and 1000 points this takes 0.12 ms on one core,
0.14 ms with Adam's step, where ``torch.func.vmap(grad(loss))`` takes 1.1 ms (float32, AMD EPYC with AVX-512).

Growth itself runs in float64: a split changes the loss by the square of its radius. From the same ε̃ and δ̃ it leads to
the same network as :mod:`nasbook.growth.firefly` does for networks of any kind; a test holds the two together.

Three choices are ours, where the paper is silent. A split moves θ and halves w, so its δ has two entries; a new
neuron's δ is all of (w, θ₁, θ₂). Both halves of a split begin with fresh optimiser state, as new neurons do, and all
other neurons keep theirs. Where no candidate is predicted to lower the loss, the least bad one is taken, so that every
growth adds a neuron; :class:`Growth` says for which networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nasbook.errors import InvalidInput, require_positive

__all__ = [
    "Addition",
    "Growth",
    "OvergrownBatch",
    "RadialBatch",
    "RadialData",
    "RandomTries",
    "annealed",
    "constant",
    "firefly",
    "integrated_gradients",
    "least_eigenpairs",
    "loss",
    "loss_gradient",
    "outputs",
    "overgrow",
    "random_search",
    "splitting_descent",
    "splitting_matrices",
    "train",
]

BETAS = (0.9, 0.999)
"""Adam's two decay rates."""

STABILISER = 1e-8
"""What Adam adds to its denominator."""

Rate = Callable[[int], float]
"""The learning rate as a function of the iteration, from 0."""


@dataclass(frozen=True)
class RadialData:
    """Inputs and labels, a row a network."""

    x: Float[Tensor, "networks points"]
    """Inputs."""
    y: Float[Tensor, "networks points"]
    """Labels."""

    def double(self) -> RadialData:
        """The same in float64."""
        return RadialData(self.x.double(), self.y.double())

    def repeat(self, times: int) -> RadialData:
        """All rows, and all again, so many times."""
        return RadialData(self.x.repeat(times, 1), self.y.repeat(times, 1))

    @property
    def variance(self) -> Float[Tensor, " networks"]:
        """Of the labels: the loss of the best constant."""
        return self.y.var(dim=1, correction=0)


@dataclass(frozen=True)
class RadialBatch:
    """Networks of one width with the state of their optimiser, Adam."""

    neurons: Float[Tensor, "networks neurons 3"]
    """(w, θ₁, θ₂) of every neuron."""
    first: Float[Tensor, "networks neurons 3"]
    """Running mean of the gradient."""
    second: Float[Tensor, "networks neurons 3"]
    """Running mean of its square."""
    age: Float[Tensor, "networks neurons"]
    """Iterations that each neuron has been trained for, which correct the means' start at zero."""

    @classmethod
    def fresh(cls, neurons: Float[Tensor, "networks neurons 3"]) -> RadialBatch:
        """Networks that have not been trained."""
        zeros = torch.zeros_like(neurons)
        return cls(neurons, zeros, zeros, zeros[:, :, 0])

    def __len__(self) -> int:
        return len(self.neurons)

    def rows(self, rows: slice | Int[Tensor, " some"]) -> RadialBatch:
        """Some of the networks."""
        return RadialBatch(self.neurons[rows], self.first[rows], self.second[rows], self.age[rows])

    @staticmethod
    def join(batches: list[RadialBatch]) -> RadialBatch:
        """All networks of several batches, one after another; of one width."""
        return RadialBatch(*(
            torch.cat([getattr(batch, name) for batch in batches]) for name in ("neurons", "first", "second", "age")
        ))


# --- loss and gradient ------------------------------------------------------------------------------------------------


def outputs(
    neurons: Float[Tensor, "networks neurons 3"], x: Float[Tensor, "networks points"]
) -> Float[Tensor, "networks points"]:
    """f(x) of every network (Eq. 6)."""
    t = neurons[:, :, 1:2] * x[:, None] + neurons[:, :, 2:]  # (networks, neurons, points)
    return torch.bmm(neurons[:, None, :, 0], torch.exp(-t.square() / 2))[:, 0]


def loss(neurons: Float[Tensor, "networks neurons 3"], data: RadialData) -> Float[Tensor, " networks"]:
    """Mean squared error of every network."""
    return (outputs(neurons, data.x) - data.y).square().mean(1)


class _Gradient:
    """The gradient of :func:`loss`, with the buffers that all iterations share."""

    def __init__(self, neurons: Float[Tensor, "networks neurons 3"], data: RadialData) -> None:
        networks, count, _ = neurons.shape
        ones = torch.ones_like(data.x)
        # exp(-t²/2) is 2^-(ct)²: exp2 takes a quarter of the time of exp here.
        c = math.sqrt(math.log2(math.e) / 2)
        self.inputs = c * torch.stack([data.x, ones], 1)  # (networks, 2, points)
        self.powers = torch.stack([ones, data.x, data.x.square()], 1) * (2 / data.x.shape[1])
        self.y = data.y[:, None]
        self.t = data.x.new_empty(networks, count, data.x.shape[1])
        self.sigma = torch.empty_like(self.t)
        self.weighted = torch.empty_like(self.powers)

    @torch.no_grad()
    def __call__(self, neurons: Float[Tensor, "networks neurons 3"]) -> Float[Tensor, "networks neurons 3"]:
        w, theta = neurons[:, :, :1], neurons[:, :, 1:]
        torch.bmm(theta, self.inputs, out=self.t)
        torch.mul(self.t, self.t, out=self.sigma)
        self.sigma.neg_().exp2_()
        residual = torch.baddbmm(self.y, w.mT, self.sigma, beta=-1)  # (networks, 1, points)
        torch.mul(residual, self.powers, out=self.weighted)
        moments = torch.bmm(self.sigma, self.weighted.mT)  # M₀, M₁, M₂
        slope = theta[:, :, :1] * moments[:, :, 1:] + theta[:, :, 1:] * moments[:, :, :2]  # θ₁M₁+θ₂M₀ is the first
        return torch.cat([moments[:, :, :1], -w * slope.flip(2)], 2)


def loss_gradient(
    neurons: Float[Tensor, "networks neurons 3"], data: RadialData
) -> Float[Tensor, "networks neurons 3"]:
    """Gradient of every network's :func:`loss`."""
    return _Gradient(neurons, data)(neurons)


# --- training ---------------------------------------------------------------------------------------------------------


def constant(rate: float) -> Rate:
    """The same learning rate always."""
    return lambda iteration: rate


def annealed(rate: float, iterations: int) -> Rate:
    """From ``rate`` to zero along half a cosine."""
    return lambda iteration: rate * (1 + math.cos(math.pi * iteration / iterations)) / 2


def train(batch: RadialBatch, data: RadialData, iterations: int, rate: Rate) -> RadialBatch:
    """The networks after so many iterations of Adam on all points; the given batch is left as it is.

    Raises:
        InvalidInput: another number of networks than of rows of data.
    """
    if len(batch) != len(data.x):
        raise InvalidInput(f"There are {len(batch)} networks and data for {len(data.x)}; each needs its own row.")
    neurons, first, second = batch.neurons.clone(), batch.first.clone(), batch.second.clone()
    beta, beta2 = BETAS
    # β^age, which says how much of the running means is still the zero they began with
    age = batch.age[:, :, None].double()
    left, left2 = (beta**age).to(neurons), (beta2**age).to(neurons)
    gradient = _Gradient(neurons, data)
    for iteration in range(iterations):
        slope = gradient(neurons)
        left *= beta
        left2 *= beta2
        first.lerp_(slope, 1 - beta)
        second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        scale = (second / (1 - left2)).sqrt_().add_(STABILISER).mul_(1 - left)
        neurons.addcdiv_(first, scale, value=-rate(iteration))
    return RadialBatch(neurons, first, second, batch.age + iterations)


# --- growing by a neuron ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Addition:
    """One neuron more in every network: a split of one of its neurons, or a new one."""

    split: Int[Tensor, " networks"]
    """Which neuron is split; -1 for a new neuron."""
    offset: Float[Tensor, "networks 2"]
    """By how much the two halves move: θ + offset and θ - offset. Not read where the neuron is new."""
    new: Float[Tensor, "networks 3"]
    """(w, θ₁, θ₂) of the new neuron. Not read where one is split."""

    def apply(self, batch: RadialBatch) -> RadialBatch:
        """The grown networks. A split's halves have w/2 each: one is in the old place, one comes last.

        Raises:
            InvalidInput: a neuron to split that a network does not have.
        """
        count = batch.neurons.shape[1]
        if bool(((self.split < -1) | (self.split >= count)).any()):
            raise InvalidInput(f"Neurons 0 to {count - 1} can be split (-1: a new one), got {self.split.tolist()}.")
        splits = self.split >= 0
        place = self.split.clamp(min=0)
        rows = torch.arange(len(batch), device=place.device)
        half = batch.neurons[rows, place].clone()
        half[:, 0] /= 2
        offset = torch.cat([torch.zeros_like(self.offset[:, :1]), self.offset], 1).to(half)
        chosen = splits[:, None]
        neurons = batch.neurons.clone()
        neurons[rows, place] = torch.where(chosen, half + offset, neurons[rows, place])
        last = torch.where(chosen, half - offset, self.new.to(half))
        fresh = RadialBatch.fresh(last[:, None])
        grown = RadialBatch(
            torch.cat([neurons, fresh.neurons], 1),
            torch.cat([batch.first, fresh.first], 1),
            torch.cat([batch.second, fresh.second], 1),
            torch.cat([batch.age, fresh.age], 1),
        )
        for state in (grown.first, grown.second, grown.age[:, :, None]):
            state[rows[splits], place[splits]] = 0  # cat made copies
        return grown


@dataclass(frozen=True)
class Growth:
    """Networks that have grown by a neuron."""

    batch: RadialBatch
    """The grown networks."""
    new: Bool[Tensor, " networks"]
    """Where the added neuron is a new one, and no split."""
    reluctant: Bool[Tensor, " networks"]
    """Where nothing was predicted to lower the loss, and the least bad was taken."""


def splitting_matrices(
    neurons: Float[Tensor, "networks neurons 3"], data: RadialData
) -> Float[Tensor, "networks neurons 2 2"]:
    """Sᵢ = E_x[∂L/∂σᵢ ∂²σᵢ/∂θ²] of every neuron σᵢ = wᵢσ(θᵢ·(x, 1)) (Liu et al. 2019).

    Splitting neuron i into halves at θ ± ε v changes the loss by ε²/2 vᵀSᵢv + O(ε⁴).
    """
    residual = outputs(neurons, data.x) - data.y
    inputs = torch.stack([data.x, torch.ones_like(data.x)], 1)  # (networks, 2, points)
    t = torch.bmm(neurons[:, :, 1:], inputs)
    curvature = neurons[:, :, :1] * (t.square() - 1) * torch.exp(-t.square() / 2)  # of σᵢ along t
    products = torch.stack([inputs[:, 0].square(), inputs[:, 0], inputs[:, 1]], 1)  # of (x, 1) with itself
    moments = torch.bmm(curvature, (residual[:, None] * products).mT) * (2 / data.x.shape[1])
    return moments[:, :, [0, 1, 1, 2]].unflatten(2, (2, 2))


def least_eigenpairs(
    matrices: Float[Tensor, "*batch 2 2"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 2"]]:
    """The least eigenvalue of symmetric matrices and a unit eigenvector of it, in closed form."""
    mean = (matrices[..., 0, 0] + matrices[..., 1, 1]) / 2
    half = (matrices[..., 0, 0] - matrices[..., 1, 1]) / 2
    mixed = matrices[..., 0, 1]
    # The greatest eigenvector stands at half the angle of (half, mixed); the least one is perpendicular to it.
    angle = torch.atan2(mixed, half) / 2
    return mean - torch.hypot(half, mixed), torch.stack([-angle.sin(), angle.cos()], -1)


def splitting_descent(batch: RadialBatch, data: RadialData, radius: float) -> Growth:
    """Steepest splitting descent: the neuron with the least eigenvalue splits along its eigenvector.

    Args:
        batch: the networks.
        data: their data.
        radius: ε, how far the halves move.

    Raises:
        InvalidInput: a radius that is not above 0.
    """
    require_positive(radius=radius)
    values, vectors = least_eigenpairs(splitting_matrices(batch.neurons.double(), data.double()))
    least, place = values.min(1)
    rows = torch.arange(len(batch), device=place.device)
    new = values.new_zeros(len(batch), 3)
    grown = Addition(place, radius * vectors[rows, place], new).apply(batch)
    return Growth(grown, torch.zeros_like(place, dtype=torch.bool), least >= 0)


# --- firefly descent --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OvergrownBatch:
    """f_{ε,δ} of §2.2: every neuron may split and m' new ones may come, each behind a gate."""

    neurons: Float[Tensor, "networks neurons 3"]
    """The networks that grow; they don't move."""
    gates: Float[Tensor, "networks candidates"]
    """ε: those of the splits, then those of the new neurons."""
    splits: Float[Tensor, "networks neurons 2"]
    """δ of the splits, which moves θ."""
    new: Float[Tensor, "networks new 3"]
    """δ of the new neurons, which is (w, θ₁, θ₂)."""

    def expand(self) -> Float[Tensor, "networks expanded 3"]:
        """The over-grown networks as plain ones: all halves at θ + εδ, all at θ - εδ, the new neurons."""
        count = self.neurons.shape[1]
        offset = self.gates[:, :count, None] * self.splits
        w, theta = self.neurons[:, :, :1] / 2, self.neurons[:, :, 1:]
        new_w = self.gates[:, count:, None] * self.new[:, :, :1]
        return torch.cat([
            torch.cat([w, theta + offset], 2),
            torch.cat([w, theta - offset], 2),
            torch.cat([new_w, self.new[:, :, 1:]], 2),
        ], 1)  # fmt: skip

    def loss(self, data: RadialData) -> Float[Tensor, " networks"]:
        """L(f_{ε,δ})."""
        return loss(self.expand(), data)

    def gradient(self, data: RadialData) -> OvergrownBatch:
        """The gradient of the loss, each part in the place of what it belongs to; the old neurons' is zero."""
        count = self.neurons.shape[1]
        slope = loss_gradient(self.expand(), data)
        pull = slope[:, :count, 1:] - slope[:, count : 2 * count, 1:]  # along εδ
        new = slope[:, 2 * count :]
        gates = self.gates[:, :, None]
        return OvergrownBatch(
            torch.zeros_like(self.neurons),
            torch.cat([(pull * self.splits).sum(2), new[:, :, 0] * self.new[:, :, 0]], 1),
            gates[:, :count] * pull,
            torch.cat([gates[:, count:] * new[:, :, :1], new[:, :, 1:]], 2),
        )


def overgrow(start: OvergrownBatch, data: RadialData, radius: float, iterations: int) -> OvergrownBatch:
    """Step one: L over ε and δ with |εᵢ| ≤ ``radius`` and ‖δᵢ‖₂ ≤ 1 (Eq. 4), by projected gradient steps.

    AdaGrad sets the length of the steps, with one scale for a gate and one for a direction: the gradients of splits and
    of new neurons differ by orders of ε, and a scale for every coordinate would turn the direction of a split away from
    the eigenvector. The base length is a tenth of the radius; 100 steps with a constant gradient then add up to 1.9
    radii, about the diameter.

    Raises:
        InvalidInput: a radius or a number of iterations that is not above 0.
    """
    require_positive(radius=radius, iterations=iterations)
    gates, splits, new = start.gates.clamp(-radius, radius), _in_ball(start.splits), _in_ball(start.new)
    current = replace(start, gates=gates, splits=splits, new=new)
    sums = [torch.zeros_like(gates), torch.zeros_like(splits[:, :, :1]), torch.zeros_like(new[:, :, :1])]
    for _ in range(iterations):
        slope = current.gradient(data)
        squares = (slope.gates.square(), slope.splits.square().sum(2, True), slope.new.square().sum(2, True))
        for total, square in zip(sums, squares, strict=True):
            total += square
        # Where the sum is zero the gradient is too: the step is then zero whatever the divisor.
        gate_step, split_step, new_step = (0.1 / torch.where(total > 0, total, 1).sqrt() for total in sums)
        current = replace(
            current,
            gates=(current.gates - radius * gate_step * slope.gates).clamp(-radius, radius),
            splits=_in_ball(current.splits - split_step * slope.splits),
            new=_in_ball(current.new - new_step * slope.new),
        )
    return current


def _in_ball(directions: Float[Tensor, "networks candidates entries"]) -> Float[Tensor, "networks candidates entries"]:
    """The nearest directions with ‖δ‖₂ ≤ 1."""
    return directions / directions.norm(dim=2, keepdim=True).clamp(min=1)


def integrated_gradients(
    overgrown: OvergrownBatch, data: RadialData, samples: int = 3
) -> Float[Tensor, "networks candidates"]:
    """sᵢ of step two: the mean of ∂L/∂εᵢ at ``samples`` midpoints of [0, ε̃ᵢ], all other gates at ε̃ (below Eq. 4).

    sᵢ ε̃ᵢ is, up to the sampling, by how much the loss changes when candidate i is turned on last.
    """
    scores = torch.zeros_like(overgrown.gates)
    for candidate in range(overgrown.gates.shape[1]):
        for z in range(1, samples + 1):
            gates = overgrown.gates.clone()
            gates[:, candidate] *= (2 * z - 1) / (2 * samples)  # c_z
            scores[:, candidate] += replace(overgrown, gates=gates).gradient(data).gates[:, candidate] / samples
    return scores


def firefly(
    batch: RadialBatch,
    data: RadialData,
    splits: Float[Tensor, "networks neurons 2"],
    new: Float[Tensor, "networks new 3"],
    radius: float,
    iterations: int,
) -> Growth:
    """Firefly descent by one neuron (Algorithm 1, steps 2 and 3, η = 1).

    Step one begins with all gates at ``radius``. Step two takes the candidate with the largest predicted decrease, at a
    gate of ± ``radius`` (Eq. 5). For new neurons this is the paper's -ε|sᵢ|. The loss of a split is even in its gate,
    so turning its sign as the paper does would not make a decrease of an increase: for splits it is ε sᵢ on the side
    that was trained.

    Args:
        batch: the networks.
        data: their data.
        splits: first directions of the splits.
        new: first δ of the new neurons, m' of them; m' = 0 leaves splits only.
        radius: ε.
        iterations: of step one.

    Raises:
        InvalidInput: a radius or a number of iterations that is not above 0.
    """
    data = data.double()
    neurons = batch.neurons.double()
    count = neurons.shape[1]
    gates = neurons.new_full((len(batch), count + new.shape[1]), radius)
    start = OvergrownBatch(neurons, gates, splits.double(), new.double())
    overgrown = overgrow(start, data, radius, iterations)
    scores = integrated_gradients(overgrown, data)
    predicted = radius * torch.cat([
        scores[:, :count] * torch.where(overgrown.gates[:, :count] < 0, -1.0, 1.0),
        -scores[:, count:].abs(),
    ], 1)  # fmt: skip
    least, chosen = predicted.min(1)
    rows = torch.arange(len(batch), device=chosen.device)
    is_new = chosen >= count
    if new.shape[1]:
        added = overgrown.new[rows, (chosen - count).clamp(min=0)].clone()
        added[:, 0] *= -radius * scores[rows, chosen].sign()
    else:
        added = neurons.new_zeros(len(batch), 3)
    offset = radius * overgrown.splits[rows, chosen.clamp(max=count - 1)]
    grown = Addition(torch.where(is_new, -1, chosen), offset, added).apply(batch)
    return Growth(grown, is_new, least >= 0)


# --- random search ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomTries:
    """What random search draws: k tries for every network."""

    choices: Float[Tensor, "tries networks"]
    """Which candidate each try takes, as a number in [0, 1) that is spread over the candidates."""
    directions: Float[Tensor, "tries networks 2"]
    """Unit vectors, for the tries that split."""


def random_search(
    batch: RadialBatch,
    data: RadialData,
    tries: RandomTries,
    new: Float[Tensor, "networks new 3"],
    radius: float,
    iterations: int,
    rate: Rate,
) -> Growth:
    """Random search by one neuron: k random candidates are fine-tuned, and the best network is kept as it then is.

    The candidates are Firefly's before its step one: a split along a random direction of length ``radius``, or one of
    m' new neurons whose w is multiplied by ``radius``. Nothing is predicted, so no growth is reluctant.

    Args:
        batch: the networks.
        data: their data.
        tries: what was drawn.
        new: δ of the new neurons; m' = 0 leaves splits only.
        radius: ε.
        iterations: of fine-tuning.
        rate: of fine-tuning.
    """
    count, fresh = batch.neurons.shape[1], new.shape[1]
    children: list[RadialBatch] = []
    kinds: list[Tensor] = []
    rows = torch.arange(len(batch), device=batch.neurons.device)
    for choice, direction in zip(tries.choices, tries.directions, strict=True):
        chosen = (choice * (count + fresh)).long()
        is_new = chosen >= count
        added = new[rows, (chosen - count).clamp(min=0)].clone() if fresh else new.new_zeros(len(batch), 3)
        added[:, 0] *= radius
        children.append(Addition(torch.where(is_new, -1, chosen), radius * direction, added).apply(batch))
        kinds.append(is_new)
    tuned = train(RadialBatch.join(children), data.repeat(len(children)), iterations, rate)
    losses = loss(tuned.neurons.double(), data.double().repeat(len(children))).view(len(children), -1)
    best = losses.argmin(0)
    return Growth(
        tuned.rows(best * len(batch) + rows),
        torch.stack(kinds)[best, rows],
        torch.zeros_like(rows, dtype=torch.bool),
    )
