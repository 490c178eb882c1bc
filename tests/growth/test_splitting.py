"""Splitting matrices against independent references, what their eigenvalues promise, and two ways to find the least."""

import pytest
import torch
import torch.nn.functional as F
from growing_toys import contents, wake
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth import (
    CurvedReLU,
    OvergrownNetwork,
    least_eigenpairs,
    rayleigh_quotients,
    rayleigh_step,
    split,
    splittable,
    splitting_matrices,
    start,
    step_one,
    with_empty_layers,
)
from nasbook.growth.morphisms import insert_residual, split_neurons
from nasbook.growth.splitting import SHARPNESS, curved, splitting_products
from nasbook.networks import VGG, BlockStack, Growable, MobileNetV1, Perceptron, RadialNetwork

EXACT = {"rtol": 1e-11, "atol": 1e-13}


def radial(neurons: int = 5) -> tuple[RadialNetwork, tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.linspace(-4, 4, 80, dtype=torch.float64)[:, None]
    return RadialNetwork(neurons).double(), (inputs, (2 * inputs).sin())


def perceptron() -> tuple[Growable, tuple[torch.Tensor, torch.Tensor]]:
    network = Perceptron(3, [3, 2], 2, nn.Tanh).double()
    return network, (torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64))


@torch.no_grad()
def loss_of(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(F.mse_loss(network(batch[0]), batch[1]))


def cosines(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """|cos| of the angle between rows."""
    return (F.normalize(found, dim=1) * F.normalize(expected, dim=1)).sum(1).abs()


# -------------------------------------------------------------------------------------- the matrices


def test_closed_form_of_the_radial_network():
    """S = E[∂L/∂σ ∂²σ/∂θ²] with σ(t) = exp(-t²/2): σ'' = (t² − 1) σ (Liu et al. 2019, Eq. 4)."""
    network, (x, y) = radial()
    matrices = splitting_matrices(network, [(x, y)], F.mse_loss)["hidden"]
    entering = torch.cat([x, torch.ones_like(x)], 1)  # θ = (θ₁, θ₂) reads (x, 1)
    with torch.no_grad():
        t = network.hidden(x)  # (points, neurons)
        outer = 2 * (network(x) - y) * network.output.weight  # ∂L/∂σ times the number of points
        curvature = outer * (t.square() - 1) * torch.exp(-t.square() / 2)
        expected = torch.einsum("pn,pi,pj->nij", curvature, entering, entering) / len(x)
    torch.testing.assert_close(matrices, expected, **EXACT)


def test_hessian_of_a_perceptron_by_hand():
    """Against torch.func's Hessian of ½(σ(θ + D) + σ(θ − D)), all neurons at once: no two of them mix."""
    network, (x, y) = perceptron()
    first, second = (
        torch.cat([layer.linear.weight, layer.linear.bias[:, None]], 1).detach() for layer in network.layers
    )
    last = network.classifier

    def layer(x, theta, delta):
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        return ((x @ (theta + delta).T).tanh() + (x @ (theta - delta).T).tanh()) / 2

    def loss(deltas):
        h = layer(layer(x, first, deltas[:12].view(3, 4)), second, deltas[12:].view(2, 4))
        return (h @ last.weight.T + last.bias - y).square().mean()

    twice = torch.func.jacrev(torch.func.jacrev(loss))  # hessian() goes forward, which warns in torch 2.11
    hessian = twice(torch.zeros(20, dtype=torch.float64)).detach()
    blocks = hessian.view(5, 4, 5, 4).transpose(1, 2)
    for i in range(5):
        for j in range(5):
            if i != j:
                assert float(blocks[i, j].abs().max()) < 1e-14
    matrices = splitting_matrices(network, [(x, y)], F.mse_loss)
    assert list(matrices) == ["layers.0.linear", "layers.1.linear"]
    torch.testing.assert_close(matrices["layers.0.linear"], blocks[range(3), range(3)], **EXACT)
    torch.testing.assert_close(matrices["layers.1.linear"], blocks[[3, 4], [3, 4]], **EXACT)


@pytest.mark.parametrize("index", [0, 2, 7])
def test_patches_of_a_convolution(index):
    """S of a filter sums over patches: ∂L/∂σ · softplus''(z) · a² · patch patchᵀ, a the norm's factor."""
    network = VGG("vgg11", [3, 2, 3, 2, 2, 3, 2, 3], in_channels=2, size=8)
    inputs = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    network, targets = wake(network, inputs), torch.randint(10, (6,))
    seen: dict[str, torch.Tensor] = {}
    layer = network.layers[index]
    hooks = [
        layer.convolution.register_forward_hook(lambda _, args, out: seen.update(x=args[0])),
        layer.norm.register_forward_hook(lambda _, args, out: seen.update(z=out)),
        layer.activation.register_forward_hook(lambda _, args, out: (out.retain_grad(), seen.update(h=out))[0]),
    ]
    F.cross_entropy(network(inputs), targets).backward()
    for hook in hooks:
        hook.remove()
    outer, z = seen["h"].grad.flatten(2), seen["z"].detach().flatten(2)  # (images, filters, positions)
    curvature = SHARPNESS * torch.sigmoid(SHARPNESS * z) * torch.sigmoid(-SHARPNESS * z)
    scale = (layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()).detach()
    patches = F.unfold(seen["x"].detach(), 3, padding=1)  # (images, 9 · channels, positions)
    expected = torch.einsum("bfp,bip,bjp->fij", outer * curvature, patches, patches) * scale[:, None, None] ** 2
    matrices = splitting_matrices(network, [(inputs, targets)], F.cross_entropy)
    assert float(expected.abs().max()) > 1e-6
    torch.testing.assert_close(matrices[f"layers.{index}.convolution"], expected, rtol=1e-9, atol=1e-14)


def deep(name: str) -> tuple[Growable, torch.Tensor]:
    inputs = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    if name == "block stack":
        network = BlockStack(2, classes=2, in_channels=2)
        for place in ("blocks.0.inserted", "blocks.3.inserted"):
            network = insert_residual(network, place, 0, 2, torch.Generator().manual_seed(0)).network
            nn.init.normal_(network.get_submodule(place)[0].projection.weight)
    else:
        network = MobileNetV1(2, classes=2, in_channels=2)
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(path, nn.Softplus())
    return wake(network, inputs), inputs


@pytest.mark.parametrize("name", ["block stack", "mobilenet"])
def test_second_differences_of_deep_networks(name):
    """Several layers write a width, depthwise filters lie along it: δᵀSδ is what the loss does along δ."""
    network, inputs = deep(name)
    targets = torch.randn(6, 2, dtype=torch.float64)
    overgrown = OvergrownNetwork(network, generator=torch.Generator().manual_seed(0)).eval()
    asked = splittable(network)
    asked.set_directions(overgrown.directions())
    quotients = rayleigh_quotients(asked, [(inputs, targets)], F.mse_loss)
    for number in range(0, len(quotients), 3):
        one = torch.zeros_like(quotients)
        one[number] = 1e-3
        changes = []
        for factor in (0.0, 1.0, 2.0):
            overgrown.set_epsilon(factor * one)
            changes.append(loss_of(overgrown, (inputs, targets)))
        second = (16 * (changes[1] - changes[0]) - (changes[2] - changes[0])) / 12 * 2 / 1e-6  # of fourth order
        assert float(quotients[number]) == pytest.approx(second, rel=1e-4, abs=1e-7)


def test_batches_count_by_their_images():
    network, (x, y) = radial()
    whole = splitting_matrices(network, [(x, y)], F.mse_loss)["hidden"]
    parts = splitting_matrices(network, zip(x.split(37), y.split(37), strict=True), F.mse_loss)["hidden"]
    torch.testing.assert_close(parts, whole, **EXACT)
    asked = splittable(network, generator=torch.Generator().manual_seed(0))
    together = rayleigh_quotients(asked, [(x, y)], F.mse_loss)
    torch.testing.assert_close(
        rayleigh_quotients(asked, zip(x.split(37), y.split(37), strict=True), F.mse_loss), together, **EXACT
    )
    directions = asked.split_rows("hidden")
    torch.testing.assert_close(together, torch.einsum("ni,nij,nj->n", directions, whole, directions), **EXACT)


def test_the_network_is_left_alone():
    inputs = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    network = with_empty_layers(BlockStack(2, in_channels=1), 1).network
    network = wake(network, inputs).train()
    before = contents(network)
    splitting_matrices(network, [(inputs, torch.randint(10, (6,)))], F.cross_entropy)
    assert all(torch.equal(v, contents(network)[n]) for n, v in before.items())
    assert network.training
    assert not any(isinstance(module, CurvedReLU) for module in network.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_directions_are_back_after_products():
    network, batch = radial()
    asked = splittable(network, generator=torch.Generator().manual_seed(0))
    assert asked.epsilon().tolist() == [1.0] * 5
    kept = [part.detach().clone() for part in asked.directions()]

    def fails(outputs, targets):
        raise ArithmeticError

    for loss in (F.mse_loss, fails):
        try:
            list(splitting_products(asked, batch, loss, [kept]))
        except ArithmeticError:
            assert loss is fails
        assert all(torch.equal(a, b) for a, b in zip(asked.directions(), kept, strict=True))


# ------------------------------------------------------------------------------------ the curved ReLU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_curved_relu_is_a_relu(dtype):
    """Forward and gradient to the last bit, at 0 too; the second derivative is the softplus'."""
    x = torch.cat([torch.randn(1000, dtype=dtype), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 50.0, -50.0], dtype=dtype)])
    outer = torch.randn(len(x), dtype=dtype)
    found = []
    for function in (F.relu, CurvedReLU()):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        found.append((value.detach(), *torch.autograd.grad((value * outer).sum(), leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("sharpness", [0.5, SHARPNESS, 40.0])
def test_its_second_derivative_is_the_softplus(sharpness):
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)

    def second(function):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf).square().sum() / 2, leaf, create_graph=True)
        return torch.autograd.grad(gradient.sum(), leaf)[0]

    # of f²/2: f'² + f f''; both f and f' are the ReLU's
    step = (x > 0).double()
    leaf = x.clone().requires_grad_()
    softplus = F.softplus(leaf, beta=sharpness, threshold=1e6)
    (gradient,) = torch.autograd.grad(softplus.sum(), leaf, create_graph=True)
    (bump,) = torch.autograd.grad(gradient.sum(), leaf)
    torch.testing.assert_close(second(CurvedReLU(sharpness)), step + x.relu() * bump, rtol=1e-9, atol=1e-12)
    assert float(bump.sum() * (x[1] - x[0])) == pytest.approx(1, abs=0.4)  # the kink's whole turn
    assert torch.equal(second(nn.ReLU()), step)  # without it, nothing at the kink


def test_only_relus_are_curved():
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.ReLU()), nn.ReLU6())
    curved(network, 3.0)
    assert [type(module) for module in (network[0], *network[1], network[2])] == [
        CurvedReLU, nn.Tanh, CurvedReLU, nn.ReLU6
    ]  # fmt: skip
    assert network[0].sharpness == 3.0
    with pytest.raises(InvalidInput, match="sharpness"):
        CurvedReLU(0.0)


# -------------------------------------------------------------------------- what eigenvalues promise


def test_least_eigenpairs():
    network, batch = perceptron()
    matrices = splitting_matrices(network, [batch], F.mse_loss)
    pairs = least_eigenpairs(matrices)
    for name, matrix in matrices.items():
        values, vectors = pairs.values[name], pairs.vectors[name]
        product = (matrix @ vectors[:, :, None])[:, :, 0]
        torch.testing.assert_close(product, values[:, None] * vectors, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix).min(1).values, **EXACT)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(matrix), dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("make", [radial, perceptron])
def test_a_split_changes_the_loss_by_half_the_eigenvalue(make):
    """½ε²λ, whatever its sign; the error of the ratio falls with ε²."""
    network, batch = make()
    pairs = least_eigenpairs(splitting_matrices(network, [batch], F.mse_loss))
    for name, values in pairs.values.items():
        for neuron in (int(values.argmin()), int(values.argmax())):
            errors = []
            for step in (0.04, 0.02, 0.01):
                grown = split(network, {name: [neuron]}, pairs.vectors, step).network
                change = loss_of(grown, batch) - loss_of(network, batch)
                errors.append(abs(change / (step**2 / 2 * float(values[neuron])) - 1))
            assert errors[-1] < 0.02
            assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
            assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_splits_of_several_neurons_add_up():
    network, batch = perceptron()
    pairs = least_eigenpairs(splitting_matrices(network, [batch], F.mse_loss))
    chosen = {"layers.0.linear": [2, 0], "layers.1.linear": [1]}
    grown = split(network, chosen, pairs.vectors, 0.003).network
    total = sum(float(pairs.values[name][neurons].sum()) for name, neurons in chosen.items())
    change = loss_of(grown, batch) - loss_of(network, batch)
    assert change == pytest.approx(0.003**2 / 2 * total, rel=1e-3)


def test_where_the_least_eigenvalue_is_positive_no_split_helps():
    network = RadialNetwork(2).double()
    x = torch.linspace(-3, 3, 60, dtype=torch.float64)[:, None]
    with torch.no_grad():
        network.hidden.weight.copy_(torch.tensor([[3.0], [0.5]]))
        network.hidden.bias.copy_(torch.tensor([5.0, 1.5]))
        network.output.weight.copy_(torch.tensor([[1.0, -1.0]]))
    # Residuals with the sign of w σ'': every term of S is positive for neuron 0.
    t = network.hidden(x)[:, :1].detach()
    batch = (x, network(x).detach() - (t.square() - 1).sign())
    matrices = splitting_matrices(network, [batch], F.mse_loss)
    least = float(least_eigenpairs(matrices).values["hidden"][0])
    assert least > 1e-3
    for seed in range(20):
        direction = F.normalize(torch.randn(2, 2, generator=torch.Generator().manual_seed(seed)).double(), dim=1)
        grown = split(network, {"hidden": [0]}, {"hidden": direction}, 1e-3).network
        change = loss_of(grown, batch) - loss_of(network, batch)
        assert change >= 0.999 * least * 1e-6 / 2


def test_split_is_the_morphism_of_that_name():
    """Two implementations, one network."""
    network, _ = perceptron()
    vectors = {"layers.1.linear": torch.randn(2, 4, dtype=torch.float64)}
    found = split(network, {"layers.1.linear": [1]}, vectors, 0.1).network
    delta = {
        "layers.1.linear.weight": vectors["layers.1.linear"][1:, :3],
        "layers.1.linear.bias": vectors["layers.1.linear"][1:, 3],
    }
    expected = split_neurons(network, {"layers.1.linear": [1]}, step=0.1, directions=delta).network
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-15, atol=1e-16)


# ------------------------------------------------------------------------ two ways to the eigenvectors


@pytest.mark.parametrize("make", [radial, perceptron])
def test_rayleigh_descent_comes_to_the_least_eigenpairs(make):
    network, batch = make()
    matrices = splitting_matrices(network, [batch], F.mse_loss)
    pairs = least_eigenpairs(matrices)
    largest = max(float(torch.linalg.matrix_norm(matrix, 2).max()) for matrix in matrices.values())
    asked = splittable(network, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(asked.directions(), 0.4 / largest)
    history = torch.stack([rayleigh_step(asked, optimizer, batch, F.mse_loss) for _ in range(800)])
    assert float((history[1:] - history[:-1]).max()) < 1e-14  # it never goes up
    expected = torch.cat(list(pairs.values.values()))
    norms = asked.direction_norms()
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-12, atol=0)
    torch.testing.assert_close(rayleigh_quotients(asked, [batch], F.mse_loss), expected, rtol=1e-3, atol=1e-4 * largest)
    for name, matrix in matrices.items():
        values = torch.linalg.eigvalsh(matrix)
        apart = values[:, 1] - values[:, 0] > 0.02 * largest
        assert apart.any()
        assert float(cosines(asked.split_rows(name), pairs.vectors[name])[apart].min()) > 1 - 1e-5


def test_rayleigh_gradient_is_that_of_the_quotient():
    network, batch = radial()
    matrices = splitting_matrices(network, [batch], F.mse_loss)["hidden"]
    asked = splittable(network, generator=torch.Generator().manual_seed(0))
    rows = F.normalize(asked.split_rows("hidden"), dim=1).requires_grad_()
    quotient = torch.einsum("ni,nij,nj->n", rows, matrices, rows) / rows.square().sum(1)
    (gradient,) = torch.autograd.grad(quotient.sum(), rows)
    returned = rayleigh_step(asked, torch.optim.SGD(asked.directions(), 0.01), batch, F.mse_loss)
    torch.testing.assert_close(returned, quotient.detach(), **EXACT)
    expected = F.normalize(rows.detach() - 0.01 * gradient, dim=1)
    torch.testing.assert_close(asked.split_rows("hidden"), expected, **EXACT)


def test_firefly_with_splits_only_is_splitting_steepest_descent():
    """Step one with gates held at a small ϵ comes to the least eigenvectors where λ_min < 0 (Remark of §2.2)."""
    network, batch = radial()
    matrices = splitting_matrices(network, [batch], F.mse_loss)["hidden"]
    pairs = least_eigenpairs({"hidden": matrices})
    values, vectors = pairs.values["hidden"], pairs.vectors["hidden"]
    down = values < 0
    assert down.any()
    errors = []
    for radius in (0.1, 0.01):
        overgrown = OvergrownNetwork(network, generator=torch.Generator().manual_seed(0))
        start(overgrown, radius)
        rate = 1 / (radius**2 * float(torch.linalg.matrix_norm(matrices, 2).max()))
        optimizer = torch.optim.SGD(overgrown.directions(), rate)
        for _ in range(800):
            step_one(overgrown, optimizer, batch, F.mse_loss, radius)
        assert overgrown.epsilon().tolist() == [radius] * 5
        errors.append(float((1 - cosines(overgrown.split_rows("hidden"), vectors)[down]).max()))
        torch.testing.assert_close(overgrown.direction_norms()[down], torch.ones(int(down.sum())).double(), **EXACT)
    assert errors[0] < 0.02
    assert errors[1] < 1e-6


# --------------------------------------------------------------------------------------- wrong input


def test_wrong_input_is_refused():
    network, batch = radial()
    vectors = {"hidden": torch.ones(5, 2, dtype=torch.float64)}
    for neurons in ([5], [-1], [0, 0]):
        with pytest.raises(InvalidInput, match="has 5 neurons"):
            split(network, {"hidden": neurons}, vectors, 0.1)
    with pytest.raises(InvalidInput, match="hidden"):
        split(network, {"hiden": [0]}, vectors, 0.1)
    with pytest.raises(InvalidInput, match="no batches"):
        splitting_matrices(network, [], F.mse_loss)
    with pytest.raises(InvalidInput, match="no batches"):
        rayleigh_quotients(splittable(network), [], F.mse_loss)
    with pytest.raises(InvalidInput, match="sharpness"):
        splitting_matrices(Perceptron(3, [2], 1), [batch], F.mse_loss, sharpness=-1.0)
