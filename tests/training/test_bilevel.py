"""Bilevel updates against independent references, and mutants that every check must catch.

A check is a function of an update class. The real classes pass it; a class with one of the known mistakes
of other implementations has to fail it.
"""

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nasbook.errors import InvalidInput
from nasbook.genotypes import Space
from nasbook.supernets import AnyOutputEdges, SearchNetwork, SoftmaxRelaxation
from nasbook.training import (
    Batch,
    BilevelUpdate,
    FiniteDifference,
    FirstOrder,
    Objective,
    SecondOrder,
    ToyProblem,
    UnrolledUpdate,
    kept_statistics,
)

RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.01  # decay far above DARTS' 3e-4, so that leaving it out shows

# ---------------------------------------------------------------------------------------------- networks and batches


def smooth_network() -> SearchNetwork:
    """A supernet without a kink: Softplus in place of ReLU, average pooling only."""
    torch.manual_seed(1)
    space = Space(("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3"), nodes=2)
    return without_kinks(SearchNetwork(space, channels=3, cells=3, classes=3, relaxation=_spread).double())


def without_kinks(network: SearchNetwork) -> SearchNetwork:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    assert not any(isinstance(module, nn.ReLU | nn.MaxPool2d) for module in network.modules())
    return network


def stretchable_network() -> SearchNetwork:
    """A smooth supernet with topology variables far from equal, and a penalty that is not zero."""
    torch.manual_seed(3)
    space = Space(("avg_pool_3x3", "sep_conv_3x3"), nodes=2)
    network = SearchNetwork(space, channels=2, cells=3, classes=3, relaxation=_invalid_topology).double()
    assert float(network.penalty().detach()) > 1
    return without_kinks(network)


def _invalid_topology(space: Space) -> AnyOutputEdges:
    """The inputs' most probable choice is their edge to the last node."""
    relaxation = AnyOutputEdges(space, scale=0.5, penalty_weight=3.0)
    start = 0
    for sets in relaxation.choices[:2]:
        nn.init.constant_(relaxation.beta[start + sets.index(frozenset({max(sets[-1])})) :][:1], 1.5)
        start += len(sets)
    return relaxation


def kinked_network() -> SearchNetwork:
    """A supernet of DARTS' own operations: ReLU and max pooling."""
    torch.manual_seed(2)
    return SearchNetwork(Space(nodes=2), channels=3, cells=3, classes=3, relaxation=_spread).double()


def _spread(space: Space) -> SoftmaxRelaxation:
    """α far from equal, so that its gradients are not all alike."""
    return SoftmaxRelaxation(space, scale=0.5)


NETWORKS = {"smooth": smooth_network, "kinked": kinked_network}


def batch(seed: int, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (size,), generator=generator)


def sgd(network: nn.Module, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.weights(), **{"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY, **options})


def adam(network: nn.Module, **options: float) -> torch.optim.Adam:
    options = {"lr": 0.01, "betas": (0.5, 0.999), "weight_decay": 1e-3, **options}
    return torch.optim.Adam(network.architecture(), **options)


def build(update: type[BilevelUpdate], network: nn.Module, *, moved: bool = False, **options: float) -> BilevelUpdate:
    """An update on the network; ``moved`` gives the weight optimiser a momentum buffer first."""
    optimizer = sgd(network)
    if moved:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(network(batch(7)[0]), batch(7)[1]).backward(inputs=list(network.weights()))
            optimizer.step()
        optimizer.zero_grad()
        assert all("momentum_buffer" in optimizer.state[w] for w in network.weights())
    return update(network, optimizer, adam(network), **options)


def relative_error(gradients: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    difference = sum(float((g - e).square().sum()) for g, e in zip(gradients, expected, strict=True))
    return (difference / sum(float(e.square().sum()) for e in expected)) ** 0.5


# ---------------------------------------------------------------------------------------------- references


def unrolled_gradient(
    update: BilevelUpdate, train: Batch, validation: Batch, xi: float, shares: tuple[float, float] = (0.0, 1.0)
) -> tuple[Tensor, ...]:
    """d L(w − ξ·step(w, α), α) / dα by plain autograd, on a copy; the step is SGD's, written out.

    L is L_val, or with ``shares`` a and b, a·L_train + b·L_val; and the network's penalty.
    """
    network = copy.deepcopy(update.network)
    names = {id(p): name for name, p in update.network.named_parameters()}
    weights = {names[id(p)]: p.detach().clone().requires_grad_() for p in update.network.weights()}
    alphas = list(network.architecture())

    def loss(w: dict[str, Tensor], data: Batch) -> Tensor:
        return F.cross_entropy(functional_call(network, w, data[0]), data[1])

    slopes = torch.autograd.grad(loss(weights, train), list(weights.values()), create_graph=True)
    unrolled = {}
    for (name, weight), slope, parameter in zip(weights.items(), slopes, update.network.weights(), strict=True):
        direction = slope + DECAY * weight
        state = update.weight_optimizer.state
        if parameter in state and state[parameter].get("momentum_buffer") is not None:
            direction = direction + MOMENTUM * state[parameter]["momentum_buffer"]
        unrolled[name] = weight - xi * direction
    of_train, of_validation = shares
    total = of_train * loss(unrolled, train) + of_validation * loss(unrolled, validation) + network.penalty()
    return torch.autograd.grad(total, alphas)


def measured_slope(update: BilevelUpdate, train: Batch, validation: Batch, direction: list[Tensor]) -> float:
    """The same derivative along one direction, with no autograd through the step: torch.optim.SGD makes it."""

    def after_a_step(h: float) -> float:
        network = copy.deepcopy(update.network)
        optimizer = sgd(network)
        optimizer.load_state_dict(copy.deepcopy(update.weight_optimizer.state_dict()))
        with torch.no_grad():
            for parameter, d in zip(network.architecture(), direction, strict=True):
                parameter += h * d
        F.cross_entropy(network(train[0]), train[1]).backward(inputs=list(network.weights()))
        optimizer.step()
        with torch.no_grad():
            return float(F.cross_entropy(network(validation[0]), validation[1]))

    # Richardson: the two central differences together are exact to the fourth order.
    wide, narrow = ((after_a_step(h) - after_a_step(-h)) / (2 * h) for h in (2e-3, 1e-3))
    return (4 * narrow - wide) / 3


# ---------------------------------------------------------------------------------------------- checks


def check_exact(update: type[BilevelUpdate]) -> None:
    """Equal to autograd through the unrolled step, on both networks, with and without a momentum buffer."""
    for network, (moved, xi) in itertools.product(NETWORKS, ((False, None), (True, 0.4))):
        built = build(update, NETWORKS[network](), moved=moved, xi=xi)
        gradient = built.architecture_gradient(batch(3), batch(4)).gradients
        expected = unrolled_gradient(built, batch(3), batch(4), RATE if xi is None else xi)
        error = relative_error(gradient, expected)
        assert error < 1e-10, (network, moved, xi, error)  # asked for: 1e-6


def check_tends_to_exact(update: type[FiniteDifference]) -> None:
    """The error falls with r², as a central difference's does, to nearly nothing."""
    for moved in (False, True):
        errors = []
        for r in (1e-2, 1e-3, 1e-4):
            built = build(update, smooth_network(), moved=moved, r=r, xi=0.4)
            gradient = built.architecture_gradient(batch(3), batch(4)).gradients
            errors.append(relative_error(gradient, unrolled_gradient(built, batch(3), batch(4), 0.4)))
        assert errors[2] < 1e-6, errors
        assert 50 < errors[0] / errors[1] < 200 and 50 < errors[1] / errors[2] < 200, errors


def check_gradient_changes_nothing(update: type[BilevelUpdate]) -> None:
    """Parameters, all buffers, modes, gradients and optimisers are bit by bit what they were."""
    for moved in (False, True):
        network = smooth_network()
        network.cells[0].eval()  # a mode of its own
        built = build(update, network, moved=moved)
        before = copy.deepcopy((network.state_dict(), built.weight_optimizer.state_dict()))
        modes = [m.training for m in network.modules()]
        built.architecture_gradient(batch(3), batch(4))
        after = (network.state_dict(), built.weight_optimizer.state_dict())
        assert all(torch.equal(value, before[0][name]) for name, value in after[0].items())
        assert _equal(after[1], before[1])
        assert modes == [m.training for m in network.modules()]
        assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))
        assert all(p.grad is None for p in network.parameters())


def check_weight_step(update: type[BilevelUpdate]) -> None:
    """The weights' step is SGD's on clipped weight gradients; α feels no decay, no momentum, no clip and no data."""
    for clip in (5.0, 1e-2):
        network = smooth_network()
        optimizer = sgd(network)
        built = update(network, optimizer, torch.optim.SGD(network.architecture(), lr=0.0), clip=clip)
        reference = copy.deepcopy(network)
        reference_optimizer = sgd(reference)
        alpha = [p.detach().clone() for p in network.architecture()]
        for step in range(3):
            built.step(batch(step), batch(step + 10))
            weights = list(reference.weights())
            loss = F.cross_entropy(reference(batch(step)[0]), batch(step)[1])
            gradients = torch.autograd.grad(loss, weights)
            norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient * min(1.0, clip / (norm + 1e-6))
            reference_optimizer.step()
            assert all(torch.equal(p, a) for p, a in zip(network.architecture(), alpha, strict=True)), step
        for (name, value), other in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


MIXED = Objective(train=0.7, validation=2.5)
"""Weights that are neither equal nor 1, so that each shows."""


def check_mixed_first_order(update: type[BilevelUpdate]) -> None:
    """0.7·∇L_train(w, α) + 2.5·∇L_val(w, α) + ∇penalty, each by a backward pass of its own."""
    for network in (smooth_network, stretchable_network):
        built = build(update, network(), moved=True, objective=MIXED)
        result = built.architecture_gradient(batch(3), batch(4))
        parts = []
        for part in ("train", "validation", "penalty"):
            other = copy.deepcopy(built.network)
            data = batch(3 if part == "train" else 4)
            loss = other.penalty() if part == "penalty" else F.cross_entropy(other(data[0]), data[1])
            if part == "validation":
                assert float(result.loss) == pytest.approx(float(loss.detach()), rel=1e-13)  # no weight, no penalty
            alphas = list(other.architecture())
            nothing = sum((alpha.sum() * 0 for alpha in alphas), torch.zeros(()))
            parts.append(torch.autograd.grad(loss + nothing, alphas))
        expected = tuple(0.7 * train + 2.5 * val + penalty for train, val, penalty in zip(*parts, strict=True))
        assert relative_error(result.gradients, expected) < 1e-12


def check_mixed_exact(update: type[BilevelUpdate]) -> None:
    """Both losses at w′, as autograd through the unrolled step gives them."""
    for network, (moved, xi) in itertools.product((smooth_network, stretchable_network), ((False, None), (True, 0.4))):
        built = build(update, network(), moved=moved, xi=xi, objective=MIXED)
        gradient = built.architecture_gradient(batch(3), batch(4)).gradients
        expected = unrolled_gradient(built, batch(3), batch(4), RATE if xi is None else xi, (0.7, 2.5))
        error = relative_error(gradient, expected)
        assert error < 1e-10, (network, moved, xi, error)


def check_mixed_tends_to_exact(update: type[FiniteDifference]) -> None:
    """The error of the one product that serves both losses falls with r²."""
    errors = []
    for r in (1e-2, 1e-3):
        built = build(update, stretchable_network(), moved=True, r=r, xi=0.4, objective=MIXED)
        gradient = built.architecture_gradient(batch(3), batch(4)).gradients
        errors.append(relative_error(gradient, unrolled_gradient(built, batch(3), batch(4), 0.4, (0.7, 2.5))))
    assert errors[1] < 1e-5 and 50 < errors[0] / errors[1] < 200, errors


def two_groups(network: SearchNetwork) -> list[list[nn.Parameter]]:
    """α of both kinds of cell, then β."""
    named = list(network.relaxations.named_parameters())
    return [[p for name, p in named if name.endswith(end)] for end in ("alpha", "beta")]


def check_groups(update: type[BilevelUpdate]) -> None:
    """α learns from the first validation batch only and β from the second, both at the same w, α and β.

    The expected gradients come from two updates that were given one batch each; the architecture's optimiser is plain
    SGD, so that its step is the gradient.
    """
    options = {"xi": 0.4} if issubclass(update, UnrolledUpdate) else {}
    network = stretchable_network()
    reference = copy.deepcopy(network)
    expected = [
        build(update, copy.deepcopy(network), objective=MIXED, **options).architecture_gradient(batch(3), batch(seed))
        for seed in (4, 5)
    ]
    groups = two_groups(network)
    optimizer = torch.optim.SGD([{"params": group} for group in groups], lr=1.0)
    built = update(network, sgd(network), optimizer, objective=MIXED, **options)
    result = built.step(batch(3), batch(4), batch(5))
    assert torch.equal(result.validation_loss, expected[0].loss)
    assert torch.equal(result.validation_outputs, expected[0].outputs)
    order = list(network.architecture())
    for group, gradients in zip((0, 1), expected, strict=True):
        for new, old in zip(groups[group], two_groups(reference)[group], strict=True):
            place = next(place for place, parameter in enumerate(order) if parameter is new)
            torch.testing.assert_close(old - new, gradients.gradients[place], rtol=1e-11, atol=1e-13)
    assert built.architecture == tuple(order) and all(p.requires_grad and p.grad is None for p in network.parameters())

    # And the weights take their own step at the new α and β, as with a single batch.
    other = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter, value in zip(other.architecture(), order, strict=True):
            parameter.copy_(value)
    loss = F.cross_entropy(other(batch(3)[0]), batch(3)[1])
    weights = list(other.weights())
    step = sgd(other)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
        weight.grad = gradient
    nn.utils.clip_grad_norm_(weights, 5.0)
    step.step()
    for (name, value), theirs in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, theirs, rtol=1e-11, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def check_toy(update: type[BilevelUpdate], xi: float) -> None:
    """From (2, −2) to α = w = 2/(1+2ξ), with the first gradient −4 + 12ξ."""
    toy = ToyProblem()
    options = {"xi": xi} if issubclass(update, UnrolledUpdate) else {}
    weight_optimizer = torch.optim.SGD(toy.weights(), lr=0.1)
    architecture_optimizer = torch.optim.SGD(toy.architecture(), lr=0.1)
    built = update(toy, weight_optimizer, architecture_optimizer, loss=toy.loss, clip=1e9, **options)
    batches = toy.train_batch, toy.validation_batch
    first = built.architecture_gradient(*batches)
    # w' = −2 + 8ξ, so L_val = 2·w' − 3; its slope is (w' − 2) + 2ξ·α.
    assert float(first.gradients[0]) == pytest.approx(-4 + 12 * xi, abs=1e-9)
    assert float(first.loss) == pytest.approx(2 * (-2 + 8 * xi) - 3, abs=1e-12)
    for _ in range(300):
        built.step(*batches)
    assert float(toy.alpha.detach()) == pytest.approx(2 / (1 + 2 * xi), abs=1e-8)
    assert float(toy.w.detach()) == pytest.approx(2 / (1 + 2 * xi), abs=1e-8)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------------------------------- the real classes


def test_second_order_is_exact():
    check_exact(SecondOrder)


@pytest.mark.parametrize("moved", [False, True])
def test_second_order_agrees_with_measured_slopes(moved):
    built = build(SecondOrder, smooth_network(), moved=moved)
    gradients = built.architecture_gradient(batch(3), batch(4)).gradients
    direction = [torch.randn_like(g) for g in gradients]
    along = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert measured_slope(built, batch(3), batch(4), direction) == pytest.approx(along, rel=1e-6)


def test_finite_difference_tends_to_the_exact_gradient():
    check_tends_to_exact(FiniteDifference)


def test_finite_difference_on_kinks():
    """Close to a kink a wide difference is wrong; a narrow one is right, down to rounding."""
    errors = []
    for r in (1e-2, 1e-6):
        built = build(FiniteDifference, kinked_network(), r=r, xi=0.4)
        gradient = built.architecture_gradient(batch(3), batch(4)).gradients
        errors.append(relative_error(gradient, unrolled_gradient(built, batch(3), batch(4), 0.4)))
    assert errors[1] < 1e-6 < errors[0]


def test_finite_difference_without_a_direction():
    """Where the validation loss does not feel the weights, the product is zero and not 0/0."""
    toy = ToyProblem(alpha=0.0)
    optimizers = torch.optim.SGD(toy.weights(), lr=0.1), torch.optim.SGD(toy.architecture(), lr=0.1)
    for update in (FiniteDifference, SecondOrder):
        result = update(toy, *optimizers, loss=toy.loss).architecture_gradient(toy.train_batch, toy.validation_batch)
        assert float(result.gradients[0]) == pytest.approx(-2 - 0.1 * 2 * -2 - 2)  # w' − 2 with ∇_w' L_val = α = 0


@pytest.mark.parametrize("update", [SecondOrder, FiniteDifference])
def test_first_order_is_the_limit_of_short_steps(update):
    network = smooth_network()
    first = build(FirstOrder, network).architecture_gradient(batch(3), batch(4)).gradients

    def distance(xi: float) -> float:
        return relative_error(build(update, network, xi=xi).architecture_gradient(batch(3), batch(4)).gradients, first)

    assert distance(0.0) < 1e-14
    assert 8 < distance(1e-3) / distance(1e-4) < 12  # linear in ξ
    assert distance(1e-3) > 1e-6


@pytest.mark.parametrize("network", NETWORKS)
def test_first_order_is_plain_autograd(network):
    built = build(FirstOrder, NETWORKS[network](), moved=True)
    other = copy.deepcopy(built.network)
    loss = F.cross_entropy(other(batch(4)[0]), batch(4)[1])
    result = built.architecture_gradient(batch(3), batch(4))
    assert relative_error(result.gradients, torch.autograd.grad(loss, list(other.architecture()))) < 1e-13
    assert float(result.loss) == pytest.approx(float(loss.detach()), rel=1e-13)
    assert result.outputs.shape == (6, 3) and not result.outputs.requires_grad and not result.loss.requires_grad


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder, FiniteDifference])
def test_the_gradient_changes_nothing(update):
    check_gradient_changes_nothing(update)


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder, FiniteDifference])
def test_the_weight_step(update):
    check_weight_step(update)


@pytest.mark.parametrize("update", [SecondOrder, FiniteDifference])
@pytest.mark.parametrize("xi", [0.0, 0.1, 0.5, 1.0])
def test_the_toy_problem(update, xi):
    check_toy(update, xi)


def test_the_toy_problem_at_first_order():
    check_toy(FirstOrder, 0.0)


@pytest.mark.parametrize(("alpha", "w"), [(2.0, -2.0), (0.5, 3.0)])
def test_the_losses_of_the_toy_problem(alpha, w):
    toy = ToyProblem(alpha, w)
    assert float(toy(toy.train_batch[0]).detach()) == w**2 - 2 * alpha * w + alpha**2
    assert float(toy(toy.validation_batch[0]).detach()) == alpha * w - 2 * alpha + 1
    assert float(toy.penalty()) == 0 and toy.alpha.dtype == torch.float64


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder, FiniteDifference])
def test_a_whole_step_is_algorithm_1(update):
    """α by Adam first, then w at the new α; batch norms see the training batch of each step, once."""
    network = smooth_network()
    built = build(update, network)
    reference = copy.deepcopy(network)
    weight_optimizer, architecture_optimizer = sgd(reference), adam(reference)
    mirror = update(reference, weight_optimizer, architecture_optimizer)
    for step in range(3):
        train, validation = batch(step), batch(step + 10)
        for parameter, gradient in zip(
            reference.architecture(), mirror.architecture_gradient(train, validation).gradients, strict=True
        ):
            parameter.grad = gradient
        architecture_optimizer.step()
        reference.zero_grad()
        outputs = reference(train[0])
        loss = F.cross_entropy(outputs, train[1])
        loss.backward()
        nn.utils.clip_grad_norm_(list(reference.weights()), 5.0)
        weight_optimizer.step()
        reference.zero_grad()
        result = built.step(train, validation)
        assert torch.equal(result.train_loss, loss.detach()) and torch.equal(result.train_outputs, outputs.detach())
        assert result.validation_outputs.shape == (6, 3) and float(result.validation_loss) > 0
    for (name, value), other in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
        assert "num_batches_tracked" not in name or int(value) == 3
    assert all(p.grad is None for p in network.parameters())


def test_a_step_on_the_weights_alone():
    """As a whole step whose architecture stands still; the architecture's optimiser has not begun."""
    network = smooth_network()
    reference = copy.deepcopy(network)
    built = FirstOrder(network, sgd(network), adam(network))
    still = FirstOrder(reference, sgd(reference), torch.optim.SGD(reference.architecture(), lr=0.0))
    for step in range(3):
        loss, outputs = built.weight_step(batch(step))
        whole = still.step(batch(step), batch(step + 10))
        assert torch.equal(loss, whole.train_loss) and torch.equal(outputs, whole.train_outputs)
        assert not loss.requires_grad and not outputs.requires_grad
    for (name, value), other in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert not built.architecture_optimizer.state
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


class Penalised(SoftmaxRelaxation):
    """A penalty whose gradient is the architecture parameter itself."""

    def penalty(self) -> Tensor:
        return self.alpha.square().sum() / 2


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder, FiniteDifference])
def test_the_penalty_enters_the_gradient_and_not_the_loss(update):
    results = []
    for relaxation in (SoftmaxRelaxation, Penalised):
        torch.manual_seed(0)
        network = SearchNetwork(Space(("none", "avg_pool_3x3"), nodes=1), 2, 1, 3, relaxation=relaxation).double()
        results.append(build(update, network).architecture_gradient(batch(3), batch(4)))
    plain, penalised = results
    assert torch.equal(plain.loss, penalised.loss)
    alphas = [p.detach() for p in network.architecture()]
    for one, other, alpha in zip(plain.gradients, penalised.gradients, alphas, strict=True):
        torch.testing.assert_close(other - one, alpha, rtol=1e-9, atol=1e-12)


def test_the_unrolled_step_follows_the_learning_rate():
    network = smooth_network()
    built = build(SecondOrder, network)
    built.weight_optimizer.param_groups[0]["lr"] = 0.03
    gradient = built.architecture_gradient(batch(3), batch(4)).gradients
    assert relative_error(gradient, unrolled_gradient(built, batch(3), batch(4), 0.03)) < 1e-10


# ---------------------------------------------------------------------------------------------- mixed level, groups


def test_first_order_of_a_mixed_objective():
    check_mixed_first_order(FirstOrder)


def test_second_order_of_a_mixed_objective_is_exact():
    check_mixed_exact(SecondOrder)


def test_finite_difference_of_a_mixed_objective_tends_to_the_exact_gradient():
    check_mixed_tends_to_exact(FiniteDifference)


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder, FiniteDifference])
def test_groups_learn_from_images_of_their_own(update):
    check_groups(update)


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder])
def test_one_batch_serves_all_groups(update):
    """With one validation batch, groups only say how their parameters are optimised."""
    ends = []
    for grouped in (False, True):
        network = stretchable_network()
        parameters = two_groups(network)
        groups = [{"params": group} for group in parameters] if grouped else [{"params": list(network.architecture())}]
        built = update(network, sgd(network), torch.optim.Adam(groups, lr=0.1), objective=MIXED)
        for step in range(2):
            built.step(batch(step), batch(step + 10))
        ends.append(network.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("count", [0, 3])
def test_a_wrong_number_of_validation_batches_is_refused(count):
    network = stretchable_network()
    groups = [{"params": group} for group in two_groups(network)]
    built = FirstOrder(network, sgd(network), torch.optim.Adam(groups))
    before = copy.deepcopy(network.state_dict())
    message = (
        rf"^Give one validation batch, or one for each of the 2 parameter groups of the architecture optimiser; "
        rf"got {count}\.$"
    )
    with pytest.raises(InvalidInput, match=message):
        built.step(batch(0), *(batch(n) for n in range(count)))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder, FiniteDifference])
def test_an_error_in_the_middle_of_the_groups_leaves_the_parameters_as_they_were(update):
    network = stretchable_network()
    groups = [{"params": group} for group in two_groups(network)]
    built = update(network, sgd(network), torch.optim.Adam(groups))
    broken = (batch(1)[0], torch.tensor([0, 1, 2]))  # fewer labels than images
    with pytest.raises(ValueError, match="batch_size"):
        built.step(batch(0), batch(1), broken)
    assert built.architecture == tuple(network.architecture())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_training_weight_of_zero_is_darts():
    gradients = []
    for objective in (Objective(), Objective(0.0, 1.0), Objective(train=0, validation=1)):
        built = build(SecondOrder, smooth_network(), objective=objective)
        gradients.append(built.architecture_gradient(batch(3), batch(4)).gradients)
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other, strict=True))


def test_a_validation_weight_of_zero_leaves_the_training_loss():
    built = build(FirstOrder, smooth_network(), objective=Objective(2.0, 0.0))
    result = built.architecture_gradient(batch(3), batch(4))
    plain = build(FirstOrder, smooth_network()).architecture_gradient(batch(4), batch(3))
    assert relative_error(result.gradients, tuple(2 * gradient for gradient in plain.gradients)) < 1e-13
    other = build(FirstOrder, smooth_network()).architecture_gradient(batch(3), batch(4))
    assert float(result.loss) == pytest.approx(float(other.loss), rel=1e-13)  # still that of the validation batch


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((-1.0, 1.0), r"^The weight of the train loss must be at least 0, got -1\.0\.$"),
        ((0.0, -0.5), r"^The weight of the validation loss must be at least 0, got -0\.5\.$"),
        ((float("nan"), 1.0), r"^The weight of the train loss must be at least 0, got nan\.$"),
        ((0.0, float("nan")), r"^The weight of the validation loss must be at least 0, got nan\.$"),
        ((0.0, 0.0), r"^the sum of both weights must be above 0, got 0\.0\.$"),
    ],
)
def test_wrong_objectives(weights, message):
    with pytest.raises(InvalidInput, match=message):
        Objective(*weights)


def test_the_objective_of_darts_is_the_default():
    assert Objective() == Objective(train=0.0, validation=1.0)
    assert build(FirstOrder, smooth_network()).objective == Objective()


# ---------------------------------------------------------------------------------------------- mutants


class HalvedDenominator(FiniteDifference):
    """Trap 3: ``/ 2 * ε`` in place of ``/ (2 * ε)``."""

    def central_difference(self, train, vector):
        epsilon = self.r / torch.stack([v.norm() for v in vector]).norm()
        return tuple(value * epsilon**2 for value in super().central_difference(train, vector))


class OneSidedDenominator(FiniteDifference):
    """Divides the central difference by ε."""

    def central_difference(self, train, vector):
        return tuple(2 * value for value in super().central_difference(train, vector))


class AbsoluteStep(FiniteDifference):
    """ε = r in the denominator, r/‖v‖ in the step."""

    def central_difference(self, train, vector):
        norm = torch.stack([v.norm() for v in vector]).norm()
        return tuple(value / norm for value in super().central_difference(train, vector))


class ProductAtUnrolledWeights(SecondOrder):
    """Trap 2: the Hessian is taken at w′."""

    def train_gradient(self, train):
        gradients, _ = super().train_gradient(train)

        def product(vector):
            loss, _ = self._loss_at(at := self.unrolled_weights(gradients), train)
            slopes = torch.autograd.grad(loss, at, create_graph=True)
            return torch.autograd.grad(slopes, self.architecture, vector)

        return tuple(g.detach() for g in gradients), product


class DifferenceAroundUnrolledWeights(FiniteDifference):
    """Trap 2 again, in DARTS' form."""

    def central_difference(self, train, vector):
        kept = self.weights
        gradients = torch.autograd.grad(self._loss_at(None, train)[0], kept)
        self.weights = self.unrolled_weights(gradients)
        try:
            return super().central_difference(train, vector)
        finally:
            self.weights = kept


class VectorAtOldWeights(SecondOrder):
    """The validation gradient of the product is taken at w."""

    def train_gradient(self, train):
        gradients, product = super().train_gradient(train)
        return gradients, lambda vector: product(torch.autograd.grad(self._loss_at(None, batch(4))[0], self.weights))


class WrongSign(SecondOrder):
    """Adds the implicit term."""

    def train_gradient(self, train):
        gradients, product = super().train_gradient(train)
        return gradients, lambda vector: tuple(-value for value in product(vector))


class NoMomentum(SecondOrder):
    """The unrolled step forgets the momentum buffer."""

    def unrolled_weights(self, gradients):
        kept = self.weight_optimizer.param_groups[0]["momentum"]
        self.weight_optimizer.param_groups[0]["momentum"] = 0.0
        try:
            return super().unrolled_weights(gradients)
        finally:
            self.weight_optimizer.param_groups[0]["momentum"] = kept


class NoDecay(SecondOrder):
    """The unrolled step forgets the weight decay."""

    def unrolled_weights(self, gradients):
        kept = self.weight_optimizer.param_groups[0]["weight_decay"]
        self.weight_optimizer.param_groups[0]["weight_decay"] = 0.0
        try:
            return super().unrolled_weights(gradients)
        finally:
            self.weight_optimizer.param_groups[0]["weight_decay"] = kept


class OnlyTheDirectTerm(SecondOrder):
    """The unrolled weights without the implicit term."""

    def train_gradient(self, train):
        gradients, _ = super().train_gradient(train)
        return gradients, lambda vector: tuple(torch.zeros_like(p) for p in self.architecture)


class UnrolledStatistics(SecondOrder):
    """Trap 6: the batch norms see the passes of the architecture step."""

    def _loss_at(self, weights, data):
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = True
        return super()._loss_at(weights, data)


class RealStep(SecondOrder):
    """Leaves the network at w′."""

    def architecture_gradient(self, train, validation):
        with kept_statistics(self.network):
            loss, _ = self._loss_at(None, train)
        unrolled = self.unrolled_weights(torch.autograd.grad(loss, self.weights))
        result = super().architecture_gradient(train, validation)
        with torch.no_grad():
            for weight, value in zip(self.weights, unrolled, strict=True):
                weight.copy_(value)
        return result


class CountingStep(FirstOrder):
    """Leaves gradients behind."""

    def architecture_gradient(self, train, validation):
        result = super().architecture_gradient(train, validation)
        for parameter, gradient in zip(self.architecture, result.gradients, strict=True):
            parameter.grad = gradient
        return result


class ArchitectureAmongTheWeights(FirstOrder):
    """Trap 1: α is trained, decayed and clipped with the weights."""

    def __init__(self, network, weight_optimizer, architecture_optimizer, **options):
        super().__init__(network, weight_optimizer, architecture_optimizer, **options)
        weight_optimizer.add_param_group({"params": list(self.architecture)})
        self.weights = (*self.weights, *self.architecture)

    def _loss_at(self, weights, batch):
        for parameter in self.architecture:  # the step on the weights takes α as constant
            parameter.requires_grad_(True)
        return super()._loss_at(weights, batch)


class DecayedArchitecture(ArchitectureAmongTheWeights):
    """Trap 1, milder: no gradient of the training loss, but SGD's decay."""

    def __init__(self, network, weight_optimizer, architecture_optimizer, **options):
        super().__init__(network, weight_optimizer, architecture_optimizer, **options)
        for parameter in self.architecture:  # what clip and step see of α's training gradient is zero
            parameter.register_hook(torch.zeros_like)


class ClippedTogether(FirstOrder):
    """The norm that clips the weights' gradient includes α's."""

    def step(self, train, validation):
        clip = nn.utils.clip_grad_norm_

        def clip_all(parameters, limit):
            with kept_statistics(self.network):
                loss, _ = self._loss_at(None, train)
            for parameter, slope in zip(self.architecture, torch.autograd.grad(loss, self.architecture), strict=True):
                parameter.grad = slope
            return clip([*parameters, *self.architecture], limit)

        nn.utils.clip_grad_norm_ = clip_all
        try:
            return super().step(train, validation)
        finally:
            nn.utils.clip_grad_norm_ = clip


class Unclipped(FirstOrder):
    """Forgets to clip."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{**options, "clip": 1e9})


class SwappedWeights(FirstOrder):
    """λ on the training loss, as in the authors' code of MiLeNAS."""

    def _objective_at(self, weights, train, validation):
        kept = self.objective
        self.objective = Objective(kept.validation, kept.train)
        try:
            return super()._objective_at(weights, train, validation)
        finally:
            self.objective = kept


class SwappedWeightsSecondOrder(SwappedWeights, SecondOrder):
    """The same, unrolled."""


class OneWeightForgotten(FirstOrder):
    """The training loss comes in without its weight."""

    def _objective_at(self, weights, train, validation):
        total, loss, outputs = super()._objective_at(weights, train, validation)
        return total + (1 - self.objective.train) * self._loss_at(weights, train)[0], loss, outputs


class TrainLossAtOldWeights(SecondOrder):
    """The training loss of the objective is taken at w, not at w′."""

    def _objective_at(self, weights, train, validation):
        total, loss, outputs = super()._objective_at(weights, train, validation)
        moved = self._loss_at(None, train)[0] - self._loss_at(weights, train)[0]
        return total + self.objective.train * moved, loss, outputs


class TrainLossOutsideTheProduct(SecondOrder):
    """The vector of the product is the validation loss' alone."""

    def train_gradient(self, train):
        gradients, product = super().train_gradient(train)
        unrolled = self.unrolled_weights(gradients)

        def short(vector):
            extra = torch.autograd.grad(self._loss_at(unrolled, train)[0], unrolled)
            return product(tuple(v - self.objective.train * e for v, e in zip(vector, extra, strict=True)))

        return gradients, short


class WeightedPenalty(FirstOrder):
    """The penalty is multiplied by the validation loss' weight."""

    def penalty(self):
        return self.objective.validation * super().penalty()


class ForgottenPenalty(SecondOrder):
    """No penalty."""

    def penalty(self):
        return super().penalty() * 0


class OneBatchForAll(FirstOrder):
    """β learns from α's images."""

    def step(self, train, *validation):
        return super().step(train, *(validation[0] for _ in validation))


class OneBatchForAllSecondOrder(OneBatchForAll, SecondOrder):
    """The same, unrolled."""


class GroupsExchanged(FirstOrder):
    """α learns from β's images and β from α's."""

    def step(self, train, *validation):
        return super().step(train, *reversed(validation))


class GroupAfterGroup(FirstOrder):
    """α makes its step, of the check's plain SGD, before β's gradient is taken."""

    def architecture_gradient(self, train, validation):
        result = super().architecture_gradient(train, validation)
        with torch.no_grad():
            for parameter, gradient in zip(self.architecture, result.gradients, strict=True):
                parameter -= gradient
        return result._replace(gradients=tuple(torch.zeros_like(gradient) for gradient in result.gradients))


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (check_mixed_first_order, SwappedWeights),
        (check_mixed_first_order, OneWeightForgotten),
        (check_mixed_first_order, WeightedPenalty),
        (check_mixed_exact, SwappedWeightsSecondOrder),
        (check_mixed_exact, TrainLossAtOldWeights),
        (check_mixed_exact, TrainLossOutsideTheProduct),
        (check_mixed_exact, ForgottenPenalty),
        (check_mixed_exact, FiniteDifference),
        (check_groups, OneBatchForAll),
        (check_groups, OneBatchForAllSecondOrder),
        (check_groups, GroupsExchanged),
        (check_groups, GroupAfterGroup),
        (check_tends_to_exact, HalvedDenominator),
        (check_tends_to_exact, OneSidedDenominator),
        (check_tends_to_exact, AbsoluteStep),
        (check_tends_to_exact, DifferenceAroundUnrolledWeights),
        (check_exact, ProductAtUnrolledWeights),
        (check_exact, VectorAtOldWeights),
        (check_exact, WrongSign),
        (check_exact, NoMomentum),
        (check_exact, NoDecay),
        (check_exact, OnlyTheDirectTerm),
        (check_exact, FiniteDifference),
        (check_gradient_changes_nothing, UnrolledStatistics),
        (check_gradient_changes_nothing, RealStep),
        (check_gradient_changes_nothing, CountingStep),
        (check_weight_step, ArchitectureAmongTheWeights),
        (check_weight_step, DecayedArchitecture),
        (check_weight_step, ClippedTogether),
        (check_weight_step, Unclipped),
        (check_weight_step, UnrolledStatistics),
        (check_weight_step, RealStep),
    ],
    ids=lambda value: value.__name__,
)
def test_mutants_are_caught(check: Callable[[type[BilevelUpdate]], None], mutant: type[BilevelUpdate]):
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize("mutant", [WrongSign, OnlyTheDirectTerm, ProductAtUnrolledWeights])
def test_the_toy_problem_catches_mutants_of_the_formula(mutant):
    if mutant is ProductAtUnrolledWeights:
        check_toy(mutant, 0.5)  # its Hessian is constant, so this one it cannot tell: why check_exact is there
        return
    with pytest.raises(AssertionError):
        check_toy(mutant, 0.5)


# ---------------------------------------------------------------------------------------------- statistics


def test_kept_statistics():
    untracked = nn.BatchNorm2d(2, track_running_stats=False)
    norms = [nn.BatchNorm2d(2), nn.BatchNorm1d(2), untracked, nn.BatchNorm2d(2).eval()]
    network = nn.Sequential(*norms)
    for norm in (norms[0], norms[3]):
        nn.init.normal_(norm.running_mean)
    x = torch.randn(4, 2, 3, 3)
    outside = norms[0](x), norms[3](x)
    before = copy.deepcopy(network.state_dict())
    with kept_statistics(network):
        torch.testing.assert_close(norms[0](x), outside[0])  # by the batch, as outside
        torch.testing.assert_close(norms[3](x), outside[1])  # in evaluation mode by the running statistics
        norms[1](torch.randn(4, 2))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [norm.track_running_stats for norm in norms] == [True, True, False, True]
    with pytest.raises(ZeroDivisionError), kept_statistics(network):
        raise ZeroDivisionError
    assert [norm.track_running_stats for norm in norms] == [True, True, False, True]


# ---------------------------------------------------------------------------------------------- beside Adam


def beside_adam(update: type[UnrolledUpdate], network: nn.Module, steps: int, **options: float) -> UnrolledUpdate:
    """An update whose weights Adam trains; ``steps`` steps give it moments first."""
    optimizer = torch.optim.Adam(network.weights(), RATE, weight_decay=DECAY)
    built = update(network, optimizer, adam(network), **options)
    for step in range(steps):
        built.weight_step(batch(step + 20))
    assert len(optimizer.state) == (len(list(network.weights())) if steps else 0)
    return built


@pytest.mark.parametrize(("name", "steps", "xi"), [("smooth", 0, 0.4), ("smooth", 2, None), ("kinked", 2, 0.4)])
def test_beside_adam_the_unrolled_step_is_the_plain_gradients(name, steps, xi):
    """w − ξ(∇_w L_train(w, α) + decay·w), whatever Adam's moments are; ξ is Adam's rate where nothing is said."""
    built = beside_adam(SecondOrder, NETWORKS[name](), steps, xi=xi)
    step = RATE if xi is None else xi
    assert built.current_xi == step
    gradient = built.architecture_gradient(batch(3), batch(4)).gradients
    assert relative_error(gradient, unrolled_gradient(built, batch(3), batch(4), step)) < 1e-10
    without = beside_adam(FirstOrder, NETWORKS[name](), steps)
    assert relative_error(gradient, without.architecture_gradient(batch(3), batch(4)).gradients) > 1e-3


def test_beside_adam_the_difference_tends_to_the_exact_product():
    errors = []
    for r in (1e-2, 1e-3, 1e-4):
        built = beside_adam(FiniteDifference, smooth_network(), 2, r=r, xi=0.4)
        gradient = built.architecture_gradient(batch(3), batch(4)).gradients
        errors.append(relative_error(gradient, unrolled_gradient(built, batch(3), batch(4), 0.4)))
    assert errors[2] < 1e-6
    assert 50 < errors[0] / errors[1] < 200 and 50 < errors[1] / errors[2] < 200


def test_beside_adam_the_gradient_is_the_slope_after_a_plain_step():
    """Without autograd through the step: torch.optim.SGD without momentum makes it."""
    built = beside_adam(SecondOrder, smooth_network(), 2)
    draws = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=draws, dtype=p.dtype) for p in built.network.architecture()]

    def after_a_step(h: float) -> float:
        network = copy.deepcopy(built.network)
        with torch.no_grad():
            for parameter, d in zip(network.architecture(), direction, strict=True):
                parameter += h * d
        F.cross_entropy(network(batch(3)[0]), batch(3)[1]).backward(inputs=list(network.weights()))
        sgd(network, momentum=0.0).step()
        with torch.no_grad():
            return float(F.cross_entropy(network(batch(4)[0]), batch(4)[1]))

    wide, narrow = ((after_a_step(h) - after_a_step(-h)) / (2 * h) for h in (2e-3, 1e-3))
    gradient = built.architecture_gradient(batch(3), batch(4)).gradients
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert slope == pytest.approx((4 * narrow - wide) / 3, rel=1e-6)


@pytest.mark.parametrize("update", [SecondOrder, FiniteDifference])
def test_beside_adam_the_weights_take_adams_own_step(update):
    """Unrolling changes neither the weights nor Adam's moments, which see the training batch's gradient alone."""
    built = beside_adam(update, smooth_network(), 1)
    reference = copy.deepcopy(built.network)
    optimizer = torch.optim.Adam(reference.weights(), RATE, weight_decay=DECAY)
    optimizer.load_state_dict(copy.deepcopy(built.weight_optimizer.state_dict()))
    before = copy.deepcopy((built.network.state_dict(), built.weight_optimizer.state_dict()))
    built.architecture_gradient(batch(3), batch(4))
    after = built.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before[0].items())
    assert _equal(built.weight_optimizer.state_dict(), before[1])
    built.step(batch(3), batch(4))
    with torch.no_grad():
        for own, moved in zip(reference.architecture(), built.network.architecture(), strict=True):
            own.copy_(moved)  # α moves first
    F.cross_entropy(reference(batch(3)[0]), batch(3)[1]).backward(inputs=list(reference.weights()))
    nn.utils.clip_grad_norm_(reference.weights(), 5.0)
    optimizer.step()
    for ours, theirs in zip(built.network.weights(), reference.weights(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------- wrong input


def _parameters(network: SearchNetwork, which: str) -> Iterator[nn.Parameter] | list[nn.Parameter]:
    weights, architecture = list(network.weights()), list(network.architecture())
    return {
        "all": [*weights, *architecture],
        "model.parameters()": list(network.parameters()),
        "some": weights[1:],
        "architecture": architecture,
    }[which]


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder, FiniteDifference])
@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("all", "it holds 2 that are not in it and lacks 0 of it"),
        ("model.parameters()", "it holds 2 that are not in it and lacks 0 of it"),
        ("some", "it holds 0 that are not in it and lacks 1 of it"),
    ],
)
def test_a_weight_optimizer_of_other_parameters_is_refused(update, which, message):
    network = smooth_network()
    optimizer = torch.optim.SGD(_parameters(network, which), lr=0.1)
    count = len(list(network.weights()))
    with pytest.raises(
        InvalidInput,
        match=rf"^weight_optimizer must hold network\.weights\(\) and nothing else, {count} parameters; {message}\.$",
    ):
        update(network, optimizer, adam(network))


def test_an_architecture_optimizer_of_other_parameters_is_refused():
    network = smooth_network()
    with pytest.raises(InvalidInput, match=r"^architecture_optimizer must hold network\.architecture\(\) and nothing"):
        FirstOrder(network, sgd(network), torch.optim.Adam(network.parameters()))


@pytest.mark.parametrize("update", [SecondOrder, FiniteDifference])
def test_an_unrolled_step_is_plain_sgd(update):
    network = smooth_network()
    for kind in (torch.optim.RMSprop, torch.optim.Adagrad):
        with pytest.raises(
            InvalidInput,
            match=rf"^An unrolled step repeats torch\.optim\.SGD's, or is the plain gradient's beside "
            rf"torch\.optim\.Adam; weight_optimizer is {kind.__name__}\.$",
        ):
            update(network, kind(network.weights()), adam(network))
    with pytest.raises(InvalidInput, match=r"^An unrolled step knows .*, but not maximize; leave it out\.$"):
        update(network, torch.optim.Adam(network.weights(), maximize=True), adam(network))
    for option, value in (("nesterov", True), ("dampening", 0.1), ("maximize", True)):
        options = {"dampening": 0.0, option: value}
        with pytest.raises(InvalidInput, match=rf"^An unrolled step knows .*, but not {option}; leave it out\.$"):
            update(network, sgd(network, **options), adam(network))
    weights = list(network.weights())
    groups = torch.optim.SGD([{"params": weights[:3]}, {"params": weights[3:], "lr": 1.0}], lr=0.1)
    with pytest.raises(InvalidInput, match=r"give the weight optimiser one parameter group, not 2\.$"):
        update(network, groups, adam(network))


def test_wrong_numbers():
    network = smooth_network()
    with pytest.raises(InvalidInput, match=r"^clip must be above 0, got 0\.$"):
        FirstOrder(network, sgd(network), adam(network), clip=0)
    with pytest.raises(InvalidInput, match=r"^r must be above 0, got -0\.01\.$"):
        FiniteDifference(network, sgd(network), adam(network), r=-0.01)
