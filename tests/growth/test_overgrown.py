"""The over-grown network: the old one at ε = 0, O(ε) away from it, and what remains of it when it grows."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from growing_toys import Shape, Toy, contents, wake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth import OvergrownNetwork, with_empty_layers
from nasbook.growth.morphisms import insert_residual
from nasbook.networks import VGG, BlockStack, Declaration, Flow, Growable, MobileNetV1, Perceptron, RadialNetwork, Width
from nasbook.training.fit import in_channels_last

few = settings(derandomize=True, deadline=None, max_examples=8)


def block_stack(neurons: int) -> Growable:
    """With two empty layers in the first block and one in the third; and with layers that have neurons, if any."""
    network = with_empty_layers(BlockStack([3, 5, 4, 2], in_channels=2), {"blocks.0.inserted": 2}).network
    network = with_empty_layers(network, {"blocks.2.inserted": 1}).network
    if neurons:
        for place in ("blocks.0.inserted", "blocks.1.inserted", "blocks.3.inserted"):
            network = insert_residual(network, place, 0, neurons, torch.Generator().manual_seed(0)).network
            nn.init.normal_(network.get_submodule(place)[0].projection.weight)
    return network


NETWORKS = {
    "vgg of 8×8": (lambda: VGG("vgg11", [3, 4, 5, 6, 3, 2, 5, 4], in_channels=2, size=8), (2, 8, 8)),
    "vgg of 32×32": (lambda: VGG("vgg11", [16, 5, 16, 6, 8, 2, 5, 16], size=32), (3, 32, 32)),
    "vgg of 64×64": (lambda: VGG("vgg11", [2, 3, 2, 4, 3, 2, 2, 3], in_channels=1, size=64), (1, 64, 64)),
    "mobilenet": (lambda: MobileNetV1([3, 4, 5, 2, *[3] * 10], in_channels=2), (2, 8, 8)),
    "block stack, empty layers": (lambda: block_stack(0), (2, 28, 28)),
    "block stack, layers": (lambda: block_stack(3), (2, 8, 8)),
    "perceptron": (lambda: Perceptron(6, [5, 3], 2, nn.Tanh), (2, 3)),
    "normalized perceptron": (lambda: Perceptron(6, [4, 5, 3], 2, normalized=True), (6,)),
    "radial": (lambda: RadialNetwork(4), (1,)),
    "toy": (lambda: Toy(Shape()), (2, 6, 6)),
    "toy without norms": (lambda: Toy(Shape(stride=2, kernel=1, normalized=False)), (2, 6, 6)),
    "toy without biases": (lambda: Toy(Shape(dilation=2, bias=False)), (2, 6, 6)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[Growable, tuple[int, ...]]:
    make, sample = NETWORKS[name]
    return wake(make(), torch.randn(8, *sample, dtype=torch.float64)).to(dtype), sample


def overgrow(network: Growable, new: int = 2, seed: int = 0, **options: object) -> OvergrownNetwork:
    return OvergrownNetwork(network, new=new, generator=torch.Generator().manual_seed(seed), **options).eval()


def train_norms(overgrown: OvergrownNetwork, inputs: torch.Tensor) -> None:
    """Two passes in training mode, with open gates."""
    kept = overgrown.epsilon()
    overgrown.set_epsilon(0.3)
    with torch.no_grad():
        overgrown.train()(inputs)
        overgrown(inputs + 0.1)
    overgrown.eval().set_epsilon(kept)


def random_epsilon(overgrown: OvergrownNetwork, radius: float, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    signs = 1 - 2 * torch.randint(2, (len(overgrown.candidates),), generator=draws, dtype=torch.float64)
    return radius * signs


def smooth(network: nn.Module) -> nn.Module:
    """With tanh in the place of every ReLU."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(path, nn.Tanh())
    return network


def slope(steps: list[float], values: list[float]) -> float:
    return float(np.polyfit(np.log(steps), np.log(values), 1)[0])


STEPS = [0.1 * 2.0**-k for k in range(4, 10)]


# -------------------------------------------------------------------------------------------- at ε = 0


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_gates_it_is_the_old_network_to_the_last_bit(name, dtype):
    network, sample = build(name, dtype)
    overgrown = overgrow(network, new=3)
    assert overgrown.direction_norms().min() > 0  # it is the gates that are zero
    for trained in (False, True):
        if trained:
            train_norms(overgrown, torch.randn(6, *sample, dtype=dtype))
        for batch in (1, 2, 7, 33):
            inputs = torch.randn(batch, *sample, dtype=dtype)
            layouts = [inputs, in_channels_last(inputs)] if len(sample) == 3 else [inputs]
            for images in layouts:
                with torch.no_grad():
                    assert torch.equal(overgrown(images), network(images)), (trained, batch)
                assert torch.equal(overgrown(images).detach(), network(images).detach())
    overgrown.set_epsilon(1e-3)
    with torch.no_grad():
        assert not torch.equal(overgrown(inputs), network(inputs))  # the comparison can fail


@every_network
def test_without_gates_a_training_pass_is_that_of_the_old_network(name):
    network, sample = build(name)
    inputs = torch.randn(9, *sample, dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(network).train()(inputs)
        torch.testing.assert_close(overgrow(network).train()(inputs), expected, rtol=1e-11, atol=1e-11)


@every_network
def test_nothing_old_moves(name):
    """Parameters and running statistics of the network before, and of its copy inside, after training passes."""
    network, sample = build(name)
    before = contents(network)
    overgrown = overgrow(network)
    own = {id(part) for part in (*overgrown.directions(), *overgrown.gate_parameters())}
    inner = {n: v for n, v in contents(overgrown).items() if ".new_" not in n and "_extra_state" not in n}
    inputs = torch.randn(6, *sample, dtype=torch.float64)
    overgrown.set_epsilon(0.1)
    overgrown.train()(inputs).square().mean().backward()
    optimizer = torch.optim.SGD(overgrown.parameters(), 1.0)
    optimizer.step()
    parameters = dict(overgrown.named_parameters())
    moved = {n for n, parameter in parameters.items() if not torch.equal(parameter, inner.get(n, parameter))}
    trained = {n for n, parameter in parameters.items() if id(parameter) in own}
    assert moved
    assert moved <= trained
    assert all(torch.equal(v, contents(network)[n]) for n, v in before.items())
    buffers = dict(overgrown.named_buffers())
    assert all(torch.equal(v, buffers[n]) for n, v in inner.items() if n in buffers)
    assert all(p.requires_grad == (id(p) in own) for p in overgrown.parameters() if p.numel())


# -------------------------------------------------------------------------------------- at other gates


def test_it_is_the_equation_of_the_paper():
    """f_{ε,δ} of §2.2, written out for the radial network."""
    network = RadialNetwork(3).double()
    overgrown = overgrow(network, new=2)
    epsilon = random_epsilon(overgrown, 0.4)
    overgrown.set_epsilon(epsilon)
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]

    hidden, output = overgrown._layers["hidden"], overgrown._layers["output"]
    theta = torch.cat([network.hidden.weight, network.hidden.bias[:, None]], 1)
    delta = torch.cat([hidden.splits, hidden.split_biases[:, None]], 1)

    def neurons(rows):
        return torch.exp(-(x * rows[:, 0] + rows[:, 1]).square() / 2)  # (points, neurons)

    halves = (neurons(theta + epsilon[:3, None] * delta) + neurons(theta - epsilon[:3, None] * delta)) / 2
    new = neurons(torch.cat([hidden.rows, hidden.row_biases[:, None]], 1)) * epsilon[3:]
    expected = halves @ network.output.weight[0] + new @ output.columns[0]
    torch.testing.assert_close(overgrown(x)[:, 0], expected, rtol=1e-12, atol=1e-12)
    assert [(c.kind, c.index) for c in overgrown.candidates] == [
        ("split", 0), ("split", 1), ("split", 2), ("new", 0), ("new", 1)
    ]  # fmt: skip


@every_network
def test_distance_grows_with_the_gates_and_no_faster(name):
    """|f_ε − f| is O(ε), with ReLUs too: the slope on logarithmic axes is 1."""
    network, sample = build(name)
    overgrown = overgrow(network, new=3)
    inputs = torch.randn(9, *sample, dtype=torch.float64)
    train_norms(overgrown, inputs)
    distances = []
    with torch.no_grad():
        for step in STEPS:
            overgrown.set_epsilon(random_epsilon(overgrown, step))
            distances.append(float((overgrown(inputs) - network(inputs)).norm()))
    assert slope(STEPS, distances) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["vgg of 8×8", "block stack, layers", "perceptron", "radial"])
def test_splits_of_smooth_neurons_cancel_in_first_order(name):
    network, sample = build(name)
    smooth(network)
    overgrown = overgrow(network, new=0)
    inputs = torch.randn(9, *sample, dtype=torch.float64)
    distances = []
    with torch.no_grad():
        for step in STEPS:
            overgrown.set_epsilon(step)
            distances.append(float((overgrown(inputs) - network(inputs)).norm()))
    assert slope(STEPS, distances) == pytest.approx(2, abs=0.05)


@every_network
def test_splits_are_even_in_their_gates(name):
    network, sample = build(name)
    overgrown = overgrow(network, new=0)
    inputs = torch.randn(4, *sample, dtype=torch.float64)
    with torch.no_grad():
        overgrown.set_epsilon(0.3)
        right = overgrown(inputs)
        overgrown.set_epsilon(-0.3)
        torch.testing.assert_close(overgrown(inputs), right, rtol=1e-12, atol=1e-12)


def test_new_norms_follow_the_batches():
    """The mean and variance of a new neuron are those of all first batches, then a running mean of momentum 0.1."""
    network = wake(Perceptron(4, [3], 2, normalized=True), torch.randn(8, 4, dtype=torch.float64))
    overgrown = overgrow(network, new=2).train()
    rows, norm = overgrown._layers["layers.0.linear"].rows, overgrown._norms["layers.0.norm"]
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for number in range(1, 15):
        inputs = torch.randn(20, 4, dtype=torch.float64)
        with torch.no_grad():
            overgrown(inputs)
            seen, momentum = inputs @ rows.T, max(0.1, 1 / number)
        mean = (1 - momentum) * mean + momentum * seen.mean(0)
        variance = (1 - momentum) * variance + momentum * seen.var(0)
        torch.testing.assert_close(norm.new_mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.new_var, variance, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------- growing


def check_grown(network: Growable, sample: tuple[int, ...], seed: int, share: float) -> None:
    """The grown network is the over-grown one with the other gates at zero."""
    draws = torch.Generator().manual_seed(seed)
    overgrown = overgrow(network, seed=seed)
    inputs = torch.randn(5, *sample, dtype=torch.float64, generator=draws)
    train_norms(overgrown, inputs)
    epsilon = torch.rand(len(overgrown.candidates), dtype=torch.float64, generator=draws) - 0.5
    taken = torch.rand(len(overgrown.candidates), generator=draws) < share
    chosen = [number for number, kept in enumerate(taken.tolist()) if kept]
    before = contents(network)
    grown = overgrown.grow(chosen, epsilon)
    overgrown.set_epsilon(torch.where(taken, epsilon, 0.0))
    with torch.no_grad():
        old, expected, found = network(inputs), overgrown(inputs), grown.network.eval()(inputs)
    scale = float(old.abs().max() + expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * max(scale, 1))
    assert share < 1 or float((expected - old).abs().max()) > 1e-4  # something was there to be seen
    widths = [overgrown.candidates[number].width for number in chosen]
    assert grown.network.neurons() == {n: k + widths.count(n) for n, k in network.neurons().items()}
    assert all(torch.equal(v, contents(network)[n]) for n, v in before.items())


@every_network
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
@few
def test_grown_is_the_overgrown_network_with_the_other_gates_at_zero(name, seed, share):
    torch.manual_seed(seed)
    check_grown(*build(name), seed, share)


@given(
    shape=st.builds(
        Shape,
        first=st.integers(1, 4),
        second=st.integers(1, 3),
        hidden=st.integers(1, 4),
        kernel=st.sampled_from([1, 3]),
        stride=st.integers(1, 2),
        bias=st.booleans(),
        normalized=st.booleans(),
    ),
    layers=st.integers(0, 2),
    seed=st.integers(0, 2**20),
)
@settings(derandomize=True, deadline=None, max_examples=25)
def test_grown_holds_for_any_toy(shape, layers, seed):
    """Flattenings, residual sums, depthwise filters, new layers and two writers at once."""
    torch.manual_seed(seed)
    network = wake(Toy(shape), torch.randn(8, 2, 6, 6, dtype=torch.float64))
    check_grown(with_empty_layers(network, layers).network, (2, 6, 6), seed, 0.6)


def test_float32_gates_are_the_same_in_the_grown_network():
    network, sample = build("vgg of 8×8", torch.float32)
    overgrown = overgrow(network)
    overgrown.set_epsilon(0.1)
    inputs = torch.randn(5, *sample)
    grown = overgrown.grow(range(len(overgrown.candidates)), overgrown.epsilon())
    with torch.no_grad():
        torch.testing.assert_close(grown.network.eval()(inputs), overgrown(inputs), rtol=1e-4, atol=1e-5)


@every_network
def test_growing_nothing_changes_no_bit(name):
    network, sample = build(name)
    overgrown = overgrow(network)
    grown = overgrown.grow([], overgrown.epsilon()).network
    inputs = torch.randn(5, *sample, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(grown.eval()(inputs), network(inputs))
    assert grown.neurons() == network.neurons()


def test_halves_of_a_split():
    """θ + εδ stays in place, θ − εδ comes behind, each is read by half; a new neuron is last, read by ε."""
    network = RadialNetwork(3).double()
    overgrown = overgrow(network, new=1)
    hidden, output = overgrown._layers["hidden"], overgrown._layers["output"]
    grown = overgrown.grow([3, 1], torch.tensor([9.0, 0.25, 9.0, -0.5], dtype=torch.float64)).network
    theta, delta = network.hidden.weight, hidden.splits
    expected = torch.stack([theta[0], theta[1] + delta[1] / 4, theta[2], theta[1] - delta[1] / 4, hidden.rows[0]])
    assert torch.equal(grown.hidden.weight, expected)
    w = network.output.weight[0]
    expected = torch.stack([w[0], w[1] / 2, w[2], w[1] / 2, -output.columns[0, 0] / 2])
    assert torch.equal(grown.output.weight[0], expected)


# ------------------------------------------------------------------------------ directions as vectors


@every_network
def test_each_candidate_has_its_own_direction(name):
    """With the directions of all others at zero, open gates are those of that candidate alone."""
    network, sample = build(name)
    overgrown = overgrow(network)
    inputs = torch.randn(3, *sample, dtype=torch.float64)
    train_norms(overgrown, inputs)
    kept = [part.detach().clone() for part in overgrown.directions()]
    numbers = range(0, len(overgrown.candidates), max(1, len(overgrown.candidates) // 12))
    for number in numbers:
        one = torch.zeros(len(overgrown.candidates), dtype=torch.float64)
        one[number] = 1
        with torch.no_grad():
            overgrown.set_epsilon(0.3 * one)
            expected = overgrown(inputs)
            overgrown.set_epsilon(0.3)
            overgrown.scale_directions(one)
            torch.testing.assert_close(overgrown(inputs), expected, rtol=1e-10, atol=1e-10)
        overgrown.set_directions(kept)


@every_network
def test_norms_are_at_most_one_and_count_every_entry(name):
    network, _ = build(name)
    overgrown = overgrow(network)
    norms = overgrown.direction_norms()
    assert norms.max() <= 1 + 1e-12
    total = sum(float(part.detach().square().sum()) for part in overgrown.directions())
    assert float(norms.square().sum()) == pytest.approx(total, rel=1e-12)
    overgrown.scale_directions(1 / norms)
    torch.testing.assert_close(overgrown.direction_norms(), torch.ones_like(norms), rtol=1e-12, atol=0)
    overgrown.set_epsilon(7.0)
    overgrown.scale_directions(3 * torch.ones_like(norms))
    overgrown.project(0.1)
    assert torch.equal(overgrown.epsilon(), torch.full_like(norms, 0.1))
    torch.testing.assert_close(overgrown.direction_norms(), torch.ones_like(norms), rtol=1e-12, atol=0)


def test_directions_begin_with_the_papers_variance():
    """N(0, 0.1) of every entry, cut to the unit ball: RBF neurons have few entries, most stay uncut."""
    overgrown = OvergrownNetwork(RadialNetwork(4000).double(), new=0, generator=torch.Generator().manual_seed(0))
    inside = overgrown.split_rows("hidden")[overgrown.direction_norms() < 1 - 1e-9]
    assert len(inside) / 4000 == pytest.approx(1 - math.exp(-5), abs=0.003)  # ‖δ‖²/0.1 is χ² with 2 degrees
    # E[δ²] of one entry of 2, given ‖δ‖ < 1: 0.1 · (1 − 5e⁻⁵/(1 − e⁻⁵))
    expected = 0.1 * (1 - 5 * math.exp(-5) / (1 - math.exp(-5)))
    assert float(inside.square().mean()) == pytest.approx(expected, rel=0.05)


def test_same_generator_same_directions():
    network = RadialNetwork(4)
    first, again, other = (overgrow(network, seed=seed).directions() for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(not part.any() for part in OvergrownNetwork(network, new=2).directions())


@every_network
def test_rows_of_splits_and_back(name):
    network, _ = build(name)
    overgrown = overgrow(network, new=1)
    rows = {width: overgrown.split_rows(width) for width, gates in overgrown.gates.items() if gates.splits}
    back = overgrown.from_split_rows(rows)
    for piece, value in zip(overgrown.pieces, back, strict=True):
        expected = piece.parameter.detach() if piece.kind == "split" else torch.zeros_like(piece.parameter)
        assert torch.equal(value, expected)
    norms = dict(zip(overgrown.candidates, overgrown.direction_norms(), strict=True))
    for candidate, norm in norms.items():
        if candidate.kind == "split":
            torch.testing.assert_close(rows[candidate.width][candidate.index].norm(), norm, rtol=1e-12, atol=0)


def test_gates_keep_the_networks_precision():
    overgrown = overgrow(RadialNetwork(2).double())
    overgrown.set_epsilon(0.1)
    assert overgrown.epsilon().tolist() == [0.1] * 4
    overgrown.set_epsilon(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert overgrown.epsilon().dtype == torch.float64


def test_gradient_of_gates_comes_in_the_order_of_the_candidates():
    network, sample = build("toy")
    overgrown = overgrow(network)
    inputs = torch.randn(6, *sample, dtype=torch.float64)
    epsilon = random_epsilon(overgrown, 0.1)
    assert not overgrown.epsilon_gradient().any()  # nothing was computed yet
    overgrown.set_epsilon(epsilon)
    overgrown(inputs).square().mean().backward()
    gradient = overgrown.epsilon_gradient()
    for number in range(0, len(epsilon), 3):
        values = []
        for sign in (1, -1):
            moved = epsilon.clone()
            moved[number] += sign * 1e-6
            overgrown.set_epsilon(moved)
            with torch.no_grad():
                values.append(float(overgrown(inputs).square().mean()))
        assert float(gradient[number]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-8)


# ---------------------------------------------------------------------------------- what may be asked for


def test_widths_can_be_chosen():
    network = Perceptron(4, [3, 2], 2)
    overgrown = OvergrownNetwork(network, new={"layers.1.linear": 2}, splits={"layers.0.linear": True})
    assert [(c.width, c.kind) for c in overgrown.candidates] == [
        *[("layers.0.linear", "split")] * 3,
        *[("layers.1.linear", "new")] * 2,
    ]
    overgrown = OvergrownNetwork(network, new=1, splits={"layers.0.linear": False, "layers.1.linear": True})
    assert [(c.width[7], c.kind) for c in overgrown.candidates] == [
        ("0", "new"), ("1", "split"), ("1", "split"), ("1", "new")
    ]  # fmt: skip


class Odd(Growable):
    """A convolution, something along its channels, a linear layer."""

    def __init__(self, along: nn.Module, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1, padding_mode=padding_mode)
        self.along = along
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.along(self.convolution(x))).mean((2, 3)))

    def declare(self) -> Declaration:
        flow = Flow(self)
        flow.write("convolution", "along").read_by.append("out")
        return flow.declaration()


class Unusual(Odd):
    """Declares a norm as what writes its channels."""

    def declare(self) -> Declaration:
        return Declaration((Width("along", ("along",), (), ("out",)),))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OvergrownNetwork(RadialNetwork(2), splits=False), "nothing to over-grow"),
        (lambda: OvergrownNetwork(RadialNetwork(2), new={"hiden": 1}), "hidden"),
        (lambda: OvergrownNetwork(RadialNetwork(2), splits={"hiden": True}), "hidden"),
        (lambda: OvergrownNetwork(RadialNetwork(2), new=-1), "0 or more"),
        (lambda: OvergrownNetwork(Toy(Shape(groups=2))), "Grouped"),
        (lambda: OvergrownNetwork(Odd(nn.GroupNorm(2, 4))), "GroupNorm"),
        (lambda: OvergrownNetwork(Odd(nn.BatchNorm2d(4, track_running_stats=False))), "running statistics"),
        (lambda: OvergrownNetwork(Odd(nn.BatchNorm2d(4), "circular")), "circular"),
        (lambda: OvergrownNetwork(Unusual(nn.BatchNorm2d(4))), "BatchNorm2d"),
    ],
)
def test_what_cannot_be_overgrown_is_refused(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_grouped_widths_can_be_left_out():
    network = wake(Toy(Shape(groups=2)), torch.randn(8, 2, 6, 6, dtype=torch.float64))
    overgrown = overgrow(network, new={"hidden": 2}, splits={"hidden": True})
    inputs = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(overgrown(inputs), network(inputs))


@pytest.mark.parametrize("chosen", [[4], [-1], [0, 0], [1, 2, 1]])
def test_candidates_that_are_not_there_or_given_twice_are_refused(chosen):
    overgrown = overgrow(RadialNetwork(2))
    with pytest.raises(InvalidInput, match="candidates 0..3"):
        overgrown.grow(chosen, overgrown.epsilon())
