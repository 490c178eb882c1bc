"""Networks that grow: their sizes, what they declare about themselves, and layers that are inserted into them."""

import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import count_parameters
from nasbook.errors import InvalidInput
from nasbook.networks import (
    GROWABLE_NETWORKS,
    STANDARD_WIDTHS,
    VGG,
    BlockStack,
    Flow,
    Gaussian,
    Growable,
    MobileNetV1,
    Perceptron,
    Place,
    PlainLayer,
    RadialNetwork,
    ResidualLayer,
    Width,
    build_growable,
    output_channels,
    radial_data,
    radial_target,
    scaled_widths,
)

few = settings(derandomize=True, deadline=None, max_examples=10)
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

NETWORKS = {
    "vgg11, a pixel left": (lambda: VGG("vgg11", [3, 4, 5, 6, 3, 2, 5, 4], in_channels=2, size=8), (2, 8, 8)),
    "vgg13, 2×2 left": (lambda: VGG("vgg13", 3, in_channels=1, size=64), (1, 64, 64)),
    "mobilenet": (lambda: MobileNetV1([3, 4, 5, 2] + [3] * 10, in_channels=2), (2, 8, 8)),
    "block stack": (lambda: BlockStack([3, 5, 4, 2], in_channels=1), (1, 28, 28)),
    "perceptron": (lambda: Perceptron(6, [5, 3], 2, nn.Softplus), (2, 3)),
    "normalized perceptron": (lambda: Perceptron(6, [4, 5, 3], 2, nn.Tanh, normalized=True), (6,)),
    "radial": (lambda: RadialNetwork(4), (1,)),
}
INSERTED = {
    "nothing": lambda place, c: [],
    "residual": lambda place, c: [residual(place, c, 3), residual(place, c, 0)],
    "plain": lambda place, c: [plain(place, c), plain(place, c)],
    "both": lambda place, c: [residual(place, c, 2), plain(place, c), residual(place, c, 1)],
}


def residual(place: Place, channels: int, neurons: int) -> ResidualLayer:
    return ResidualLayer(
        channels, neurons, place.kernel_size, normalized=place.normalized, activation=place.activation
    )


def plain(place: Place, channels: int) -> PlainLayer:
    return PlainLayer(channels, place.kernel_size, normalized=place.normalized, activation=place.activation)


def build(name: str, inserted: str = "nothing") -> tuple[Growable, tuple[int, ...]]:
    """A small network of each family, with layers in every place, and the shape of a sample."""
    make, sample = NETWORKS[name]
    network = make()
    neurons = network.neurons()
    for place in network.declare().places:
        network.get_submodule(place.name).extend(INSERTED[inserted](place, neurons[place.width]))
    return network, sample


def as_if_trained(module: nn.Module, seed: int, *sample: int) -> nn.Module:
    """In float64 and evaluation mode, with norms whose scales differ and whose statistics are those of some data.

    Shifts are positive, so that signals reach the end of narrow networks.
    """
    draws = torch.Generator().manual_seed(seed)
    module = module.double().train()
    norms = [norm for norm in module.modules() if isinstance(norm, NORMS)]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.data.uniform_(0.5, 2, generator=draws)
        norm.bias.data.uniform_(0.5, 2, generator=draws)
    module(torch.randn(16, *sample, dtype=torch.float64, generator=draws))
    return module.eval()


every_network = pytest.mark.parametrize("name", NETWORKS)
every_inserted = pytest.mark.parametrize("inserted", INSERTED)


# ---------------------------------------------------------------------------------------------- declarations


@every_network
@every_inserted
def test_every_layer_is_declared_once(name, inserted):
    """All but the first layer read a width, all but the last write one; what is channelwise stands along one."""
    network, _ = build(name, inserted)
    widths = network.declare().widths
    written = Counter(path for width in widths for path in width.written_by)
    along = Counter(path for width in widths for path in width.along)
    read = Counter(path for width in widths for path in width.read_by)
    layers, channelwise = [], []
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            (channelwise if depthwise else layers).append(path)
        elif isinstance(module, NORMS):
            channelwise.append(path)
    assert along == Counter(channelwise)
    assert written == Counter(layers) - Counter(layers[-1:])
    assert read == Counter(layers) - Counter(layers[:1])


@every_network
@every_inserted
def test_declared_channels_match(name, inserted):
    network, _ = build(name, inserted)
    neurons = network.neurons()
    declaration = network.declare()
    assert list(neurons) == [width.name for width in declaration.widths]
    for width in declaration.widths:
        count = neurons[width.name]
        assert width.name == width.written_by[0] and width.read_by
        for path in width.written_by:
            assert output_channels(network.get_submodule(path)) == count
        for path in width.along:
            layer = network.get_submodule(path)
            assert layer.weight.shape[0] == count
            assert (layer.num_features if isinstance(layer, NORMS) else layer.groups) == count
        for path in width.read_by:
            layer = network.get_submodule(path)
            if isinstance(layer, nn.Conv2d):
                assert layer.in_channels == layer.weight.shape[1] == count
            else:
                assert layer.in_features == layer.weight.shape[1]
                assert layer.in_features == count or layer.in_features % count == 0
    for place in declaration.places:
        assert isinstance(network.get_submodule(place.name), nn.Sequential) and place.width in neurons


def permute(network: Growable, width: Width, order: torch.Tensor) -> None:
    """Renumbers the neurons of a width: rows of what writes it, entries along it, columns of what reads it."""
    for path in (*width.written_by, *width.along):
        layer = network.get_submodule(path)
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if tensor.dim():  # not the counter of a batch norm
                tensor.data = tensor.data[order].clone()
    for path in width.read_by:
        weight = network.get_submodule(path).weight
        columns = weight.data.view(len(weight), len(order), weight.shape[1] // len(order), *weight.shape[2:])
        weight.data = columns[:, order].reshape(weight.shape).clone()


@every_network
@every_inserted
@few
@given(data=st.data())
def test_declared_neurons_may_be_renumbered(name, inserted, data):
    """The function stays if everything that a width touches is declared, in the right role."""
    network, sample = build(name, inserted)
    as_if_trained(network, data.draw(st.integers(0, 2**32)), *sample)
    x = torch.randn(3, *sample, dtype=torch.float64)
    before = network(x)
    neurons = network.neurons()
    wide = [width for width in network.declare().widths if neurons[width.name] > 1]
    for width in data.draw(st.lists(st.sampled_from(wide), min_size=1, unique=True)):
        permute(network, width, torch.tensor(data.draw(st.permutations(range(neurons[width.name])))))
    torch.testing.assert_close(network(x), before, **CLOSE)


@torch.no_grad()
@every_network
def test_every_declared_layer_counts(name):
    """Renumbered in one layer alone, a width gives another function: so the test above notices a forgotten layer."""
    network, sample = build(name, "both")
    as_if_trained(network, 0, *sample)
    x = torch.randn(4, *sample, dtype=torch.float64)
    before = network(x)
    for width in network.declare().widths:
        order = torch.arange(network.neurons()[width.name]).roll(1)
        for role in ("written_by", "along", "read_by"):
            for path in getattr(width, role) if len(order) > 1 else ():
                alone = Width(width.name, **{"written_by": (), role: (path,)})
                permute(network, alone, order)
                assert (network(x) - before).abs().max() > 1e-9, (width.name, path)
                permute(network, alone, order.argsort())
    assert torch.equal(network(x), before)


def test_what_a_separable_block_declares():
    network = MobileNetV1(4)
    stem, first = network.declare().widths[:2]
    assert stem.written_by == ("stem.convolution",)
    assert stem.along == ("stem.norm", "layers.0.depthwise", "layers.0.depthwise_norm")
    assert stem.read_by == ("layers.0.pointwise",)
    assert first.name == "layers.0.pointwise"


def test_what_inserted_layers_declare():
    """After a residual layer the same channels go on; after a plain one there are new ones."""
    network = BlockStack(4, in_channels=1)
    network.blocks[1].inserted.extend([ResidualLayer(4, 2), PlainLayer(4)])
    declaration = network.declare()
    entering, inner, new = declaration.widths[1:4]
    inserted = "blocks.1.inserted"
    assert entering.written_by == ("blocks.1.convolution", f"{inserted}.0.projection")
    assert entering.along == ("blocks.1.norm",)
    assert entering.read_by == (f"{inserted}.0.layer", f"{inserted}.1.layer")
    assert (inner.written_by, inner.along) == ((f"{inserted}.0.layer",), (f"{inserted}.0.norm",))
    assert inner.read_by == (f"{inserted}.0.projection",)
    assert (new.written_by, new.along) == ((f"{inserted}.1.layer",), (f"{inserted}.1.norm",))
    assert new.read_by == ("blocks.2.convolution",)
    assert declaration.place(inserted) == Place(inserted, "blocks.1.convolution")


def test_places():
    assert [place.name for place in VGG("vgg11", 2).declare().places] == [f"layers.{i}.inserted" for i in range(8)]
    assert len(MobileNetV1(2).declare().places) == 14
    assert [place.name for place in BlockStack().declare().places] == [f"blocks.{i}.inserted" for i in range(4)]
    (place,) = Perceptron(3, [2], 1, nn.Tanh, normalized=True).declare().places
    assert place == Place("layers.0.inserted", "layers.0.linear", kernel_size=0, normalized=True, activation=nn.Tanh)
    assert RadialNetwork().declare().places == ()


def test_unknown_widths_and_places():
    declaration = VGG("vgg11", 2).declare()
    assert declaration.width("layers.3.convolution").along == ("layers.3.norm",)
    with pytest.raises(InvalidInput, match=r"Unknown width 'layers.3.conv'. Did you mean 'layers.3.convolution'"):
        declaration.width("layers.3.conv")
    with pytest.raises(InvalidInput, match=r"Unknown place for new layers 'layers.8.inserted'. Did you mean"):
        declaration.place("layers.8.inserted")


def test_flow_refuses_other_layers_in_a_place():
    network = BlockStack(2)
    network.blocks[2].inserted.append(nn.Conv2d(2, 2, 1))
    with pytest.raises(InvalidInput, match=r"The place blocks.2.inserted holds a Conv2d; expected a ResidualLayer"):
        network.declare()


def test_flow_notes_in_the_order_of_the_data():
    network = nn.ModuleDict({"a": nn.Linear(1, 2), "b": nn.Linear(2, 3), "c": nn.Linear(3, 1)})
    flow = Flow(network)
    first = flow.write("a")
    first.read_by.append("b")
    flow.write("b", "norm").read_by.append("c")
    a, b = flow.declaration().widths
    assert (a.name, a.written_by, a.along, a.read_by) == ("a", ("a",), (), ("b",))
    assert (b.name, b.written_by, b.along, b.read_by) == ("b", ("b",), ("norm",), ("c",))


# ---------------------------------------------------------------------------------------------- inserted layers


@every_network
@every_inserted
def test_inserted_layers_keep_shapes_and_are_trained(name, inserted):
    network, sample = build(name, inserted)
    x = torch.randn(3, *sample)
    plain_network, _ = build(name)
    outputs = network(x)
    assert outputs.shape == plain_network(x).shape
    outputs.square().mean().backward()
    for path, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (parameter.numel() > 0), path


@pytest.mark.parametrize("training", [True, False])
@every_network
def test_residual_layers_without_neurons_are_the_identity(name, training):
    """To the last bit, with any batch: nothing is computed."""
    network, sample = build(name)
    network.train(training)
    x = torch.randn(3, *sample)
    grown = copy.deepcopy(network)
    neurons = grown.neurons()
    for place in grown.declare().places:
        grown.get_submodule(place.name).extend(residual(place, neurons[place.width], 0) for _ in range(3))
    assert torch.equal(grown(x), network(x))
    assert count_parameters(grown) == count_parameters(network)
    assert {k: v for k, v in grown.neurons().items() if k in neurons} == neurons
    assert all(count == 0 for k, count in grown.neurons().items() if k not in neurons)


@pytest.mark.parametrize("kernel_size", [0, 1, 3, 5])
@pytest.mark.parametrize("normalized", [True, False])
def test_residual_layer_without_neurons(kernel_size, normalized):
    layer = ResidualLayer(3, 0, kernel_size, normalized=normalized)
    x = torch.randn(2, 3) if kernel_size == 0 else torch.randn(2, 3, 4, 5)
    assert torch.equal(layer(x), x)
    assert layer.neurons == 0 and layer.normalized == normalized
    assert sum(parameter.numel() for parameter in layer.parameters()) == 0
    assert layer.layer.weight.shape[:2] == (0, 3) and layer.projection.weight.shape[:2] == (3, 0)


@pytest.mark.parametrize("normalized", [True, False])
def test_residual_layer_is_a_sum_of_neurons(normalized):
    """I + h, h the sum of what each neuron does alone (Firefly §2.3)."""
    layer = as_if_trained(ResidualLayer(3, 4, 3, normalized=normalized, activation=nn.Tanh), 0, 3, 5, 6)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = x.clone()
    for i in range(4):
        bias = None if layer.layer.bias is None else layer.layer.bias[i : i + 1]
        neuron = F.conv2d(x, layer.layer.weight[i : i + 1], bias, padding=1)
        if normalized:
            norm = layer.norm
            scale = norm.weight[i] / torch.sqrt(norm.running_var[i] + norm.eps)
            neuron = (neuron - norm.running_mean[i]) * scale + norm.bias[i]
        expected = expected + torch.tanh(neuron) * layer.projection.weight[:, i].view(1, 3, 1, 1)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    assert layer.projection.bias is None
    assert (layer.layer.bias is None) == normalized


def test_residual_layer_of_vectors():
    layer = ResidualLayer(3, 5, 0, normalized=False).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    hidden = torch.relu(x @ layer.layer.weight.T + layer.layer.bias)
    torch.testing.assert_close(layer(x), x + hidden @ layer.projection.weight.T, **CLOSE)


@pytest.mark.parametrize("kernel_size", [0, 1, 3])
@pytest.mark.parametrize("normalized", [True, False])
def test_plain_layer(kernel_size, normalized):
    sample = (3,) if kernel_size == 0 else (3, 6, 5)
    layer = as_if_trained(PlainLayer(3, kernel_size, normalized=normalized, activation=nn.Sigmoid), 0, *sample)
    x = torch.randn(4, *sample, dtype=torch.float64)
    assert layer.normalized == normalized and layer(x).shape == x.shape
    torch.testing.assert_close(layer(x), torch.sigmoid(layer.norm(layer.layer(x))), rtol=0, atol=0)


def test_layers_refuse():
    with pytest.raises(InvalidInput, match="kernel_size must be odd, or 0 for a linear layer, got 2"):
        ResidualLayer(3, 1, 2)
    with pytest.raises(InvalidInput, match="kernel_size must be odd"):
        PlainLayer(3, -1)
    with pytest.raises(InvalidInput, match="neurons must be 0 or more, got -1"):
        ResidualLayer(3, -1)
    with pytest.raises(InvalidInput, match="channels must be above 0, got 0"):
        PlainLayer(0)


# ---------------------------------------------------------------------------------------------- VGG


def test_vgg19_has_the_known_size():
    """The often cited 20,040,522 count a bias for each of the 5,504 convolution filters."""
    with torch.device("meta"):
        network = VGG("vgg19")
    filters = sum(network.neurons().values())
    assert filters == 5504
    assert count_parameters(network) == 20_040_522 - filters == 20_035_018


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_vgg_has_torchvisions_convolutions(name):
    with torch.device("meta"):
        ours = VGG(name)
        theirs = getattr(torchvision.models, f"{name}_bn")(weights=None, init_weights=False).features
    shapes = [m.weight.shape for m in theirs if isinstance(m, nn.Conv2d)]
    assert [layer.convolution.weight.shape for layer in ours.layers] == shapes
    pools = [i for i, m in enumerate(theirs) if isinstance(m, nn.MaxPool2d)]
    before = {sum(isinstance(m, nn.Conv2d) for m in theirs[:i]) - 1 for i in pools}
    assert ours.pooled_after == before
    biases = sum(shape[0] for shape in shapes)
    assert count_parameters(ours) - 5130 == sum(p.numel() for p in theirs.parameters()) - biases


def test_vgg_computes_what_torchvision_does():
    """Same weights, same map: order of layers and pools, on the size that takes all pools."""
    ours = as_if_trained(VGG("vgg13", [5, 6] * 5), 0, 3, 32, 32)
    theirs = torchvision.models.vgg.make_layers([5, 6, "M"] * 5, batch_norm=True).double().eval()
    convolutions = [m for m in theirs if isinstance(m, nn.Conv2d)]
    norms = [m for m in theirs if isinstance(m, nn.BatchNorm2d)]
    for layer, convolution, norm in zip(ours.layers, convolutions, norms, strict=True):
        convolution.weight.data = layer.convolution.weight.data
        convolution.bias.data.zero_()
        norm.load_state_dict(layer.norm.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x), ours.classifier(theirs(x).flatten(1)), **CLOSE)


@pytest.mark.parametrize(
    ("size", "pools", "pixels"), [(1, 0, 1), (2, 1, 1), (3, 1, 1), (8, 3, 1), (28, 4, 1), (32, 5, 1), (64, 5, 4),
                                  (100, 5, 9)]
)
def test_vgg_leaves_out_pools(size, pools, pixels):
    network = VGG("vgg11", 4, size=size)
    assert len(network.pooled_after) == pools
    assert network.classifier.in_features == 4 * pixels
    assert network(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_vgg_says_which_size_it_takes():
    with pytest.raises(InvalidInput, match="built for 8×8 images, got 9×8; give their size when you build it"):
        VGG("vgg11", 2, size=8)(torch.randn(1, 3, 9, 8))


def test_widths_of_net2net_and_firefly():
    """Firefly §4: Net2Net begins with an eighth of VGG-19's channels, the other methods with 16 everywhere."""
    assert scaled_widths("vgg19", 0.125) == (8, 8, 16, 16, *[32] * 4, *[64] * 8)
    assert scaled_widths("vgg11", 0.001) == (1,) * 8
    assert scaled_widths("mobilenet-v1", 0.25)[:4] == (8, 16, 32, 32)
    assert list(VGG("vgg19", scaled_widths("vgg19", 0.125)).neurons().values()) == [8, 8, 16, 16, *[32] * 4, *[64] * 8]
    assert set(VGG("vgg19", 16).neurons().values()) == {16}
    with pytest.raises(InvalidInput, match="multiplier must be above 0, got 0"):
        scaled_widths("vgg19", 0)
    with pytest.raises(InvalidInput, match="Unknown growable network 'vgg'. Did you mean 'vgg"):
        scaled_widths("vgg", 1)


def test_widths_are_refused():
    with pytest.raises(InvalidInput, match="widths has 3 numbers, the network has 8 layers; give one each"):
        VGG("vgg11", [1, 2, 3])
    with pytest.raises(InvalidInput, match=r"Every width must be 1 or more, got \[4, 0, 4, 4\]"):
        BlockStack([4, 0, 4, 4])
    with pytest.raises(InvalidInput, match="Every width must be 1 or more"):
        MobileNetV1(0)
    with pytest.raises(InvalidInput, match="classes must be above 0, got 0"):
        BlockStack(classes=0)
    with pytest.raises(InvalidInput, match=r"Unknown VGG network 'vgg18'. Did you mean"):
        VGG("vgg18")


# ---------------------------------------------------------------------------------------------- MobileNetV1


@pytest.mark.parametrize(("classes", "parameters"), [(1000, 4_231_976), (10, 3_217_226), (100, 3_309_476)])
def test_mobilenet_has_the_known_size(classes, parameters):
    """4.2 million with ImageNet's classes (Howard et al. 2017, Table 4); 1,025 fewer for each class less."""
    with torch.device("meta"):
        assert count_parameters(MobileNetV1(classes=classes)) == parameters


def test_mobilenet_of_firefly():
    """32 channels in each layer (B.2): the arithmetic of its parameters."""
    network = MobileNetV1(32, classes=100)
    assert set(network.neurons().values()) == {32} and len(network.neurons()) == 14
    stem, block, classifier = 3 * 32 * 9 + 64, 32 * 9 + 64 + 32 * 32 + 64, 33 * 100
    assert count_parameters(network) == stem + 13 * block + classifier


def test_mobilenet_maps():
    """Its last map has 2 pixels a side: strides 2 stand at the third, fifth, seventh and thirteenth layer."""
    network = MobileNetV1(2)
    x, sides = network.stem(torch.randn(2, 3, 32, 32)), []
    for layer in network.layers:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides == [32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 2, 2]


# ---------------------------------------------------------------------------------------------- block stack


def test_block_stack_has_the_known_size():
    """Four convolutions of 16 channels, their batch norms, a classifier."""
    assert count_parameters(BlockStack()) == 3 * 16 * 9 + 3 * 16 * 16 * 9 + 4 * 32 + 170
    assert set(BlockStack().neurons().values()) == {16}


def test_structure():
    """Inserted layers count if they have neurons; the paper's end is 12-12-12-12."""
    network = BlockStack(4)
    assert network.structure() == (1, 1, 1, 1)
    for block in network.blocks:
        block.inserted.extend(ResidualLayer(4, 0) for _ in range(11))
    assert network.structure() == (1, 1, 1, 1)
    network.blocks[0].inserted[3] = ResidualLayer(4, 2)
    network.blocks[3].inserted.append(PlainLayer(4))
    assert network.structure() == (2, 1, 1, 2)
    for block in network.blocks:
        for i in range(11):
            block.inserted[i] = ResidualLayer(4, 20)
    assert network.structure() == (12, 12, 12, 13)
    assert network(torch.randn(2, 3, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("size", "sides"), [(8, [4, 2, 1, 1]), (28, [14, 7, 4, 2]), (32, [16, 8, 4, 2]), (1, [1, 1, 1, 1])]
)
def test_block_stack_maps(size, sides):
    x, seen = torch.randn(2, 3, size, size), []
    for block in BlockStack(2).blocks:
        x = block(x)
        seen.append(x.shape[-1])
    assert seen == sides


# ---------------------------------------------------------------------------------------------- perceptron


def test_perceptron_is_its_formula():
    network = Perceptron(6, [5, 4], 3, nn.Tanh).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    first, second = network.layers
    h = torch.tanh(x.flatten(1) @ first.linear.weight.T + first.linear.bias)
    h = torch.tanh(h @ second.linear.weight.T + second.linear.bias)
    torch.testing.assert_close(network(x), h @ network.classifier.weight.T + network.classifier.bias, **CLOSE)
    assert count_parameters(network) == 7 * 5 + 6 * 4 + 5 * 3


def test_normalized_perceptron():
    """Its hidden layers have batch norms in place of biases: two numbers a neuron in place of one."""
    network = Perceptron(6, [5, 4], 3, normalized=True)
    assert count_parameters(network) == 6 * 5 + 10 + 5 * 4 + 8 + 15
    hidden = network.layers[0].norm(network.layers[0].linear(torch.randn(64, 6)))
    torch.testing.assert_close(hidden.mean(0), torch.zeros(5), rtol=0, atol=1e-6)


def test_perceptron_refuses():
    with pytest.raises(InvalidInput, match="widths is empty; a perceptron that grows needs a hidden layer"):
        Perceptron(3, [], 2)
    with pytest.raises(InvalidInput, match="outputs must be above 0"):
        Perceptron(3, [2], 0)
    with pytest.raises(InvalidInput, match="Every width must be 1 or more"):
        Perceptron(3, [2, 0], 2)


# ---------------------------------------------------------------------------------------------- radial network


def test_radial_network_is_equation_6():
    network = RadialNetwork(3).double()
    theta_1, theta_2 = network.hidden.weight[:, 0], network.hidden.bias
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    expected = [
        sum(
            w.item() * math.exp(-((a.item() * point + b.item()) ** 2) / 2)
            for w, a, b in zip(network.output.weight[0], theta_1, theta_2, strict=True)
        )
        for point in x.tolist()
    ]
    torch.testing.assert_close(network(x[:, None])[:, 0], torch.tensor(expected, dtype=torch.float64), **CLOSE)
    assert count_parameters(network) == 9 and network.neurons() == {"hidden": 3}


def test_gaussian():
    values = Gaussian()(torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(values, torch.tensor([1, math.exp(-0.5), math.exp(-2)], dtype=torch.float64))


def test_radial_targets():
    """15 neurons whose 45 weights have mean 0 and variance 3 (B.1): within five standard errors over 400 targets."""
    generator = torch.Generator().manual_seed(0)
    targets = [radial_target(generator) for _ in range(400)]
    assert all(target.neurons() == {"hidden": 15} for target in targets)
    for of in (lambda t: t.hidden.weight, lambda t: t.hidden.bias, lambda t: t.output.weight):
        values = torch.cat([of(target).detach().flatten() for target in targets])
        assert abs(values.mean()) < 5 * math.sqrt(3 / 6000)
        assert abs(values.var() - 3) < 5 * 3 * math.sqrt(2 / 6000)


def test_radial_data():
    generator = torch.Generator().manual_seed(1)
    target = radial_target(generator).double()
    state = generator.get_state()
    x, y = radial_data(target, generator)
    assert x.shape == y.shape == (1000, 1) and x.dtype == y.dtype == torch.float64 and not y.requires_grad
    assert torch.equal(y, target(x))
    assert -5 <= x.min() < -4.9 and 4.9 < x.max() < 5 and abs(x.var() - 100 / 12) < 0.7
    generator.set_state(state)
    assert torch.equal(radial_data(target, generator)[0], x)
    assert radial_data(target, generator, 7)[0].shape == (7, 1)
    with pytest.raises(InvalidInput, match="points must be above 0"):
        radial_data(target, generator, 0)
    with pytest.raises(InvalidInput, match="neurons must be above 0"):
        RadialNetwork(0)


# ---------------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize("name", GROWABLE_NETWORKS)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (9, 5)])
def test_build_growable(name, size, channels):
    network = build_growable(name, widths=4, classes=7, in_channels=channels, size=size)
    assert network(torch.randn(2, channels, size, size)).shape == (2, 7)
    assert isinstance(network.classifier, nn.Linear) and network.classifier.out_features == 7
    assert set(network.neurons().values()) == {4}


@pytest.mark.parametrize("name", GROWABLE_NETWORKS)
def test_standard_widths(name):
    with torch.device("meta"):
        network = build_growable(name)
        again = build_growable(name, widths=scaled_widths(name, 1))
    assert tuple(network.neurons().values()) == tuple(again.neurons().values()) == STANDARD_WIDTHS[name]
    assert STANDARD_WIDTHS.keys() == GROWABLE_NETWORKS.keys()


def test_perceptrons_have_as_many_layers_as_widths():
    assert list(build_growable("perceptron", widths=[3, 2, 5]).neurons().values()) == [3, 2, 5]
    assert list(build_growable("perceptron", widths=[3]).neurons().values()) == [3]


def test_unknown_networks():
    with pytest.raises(InvalidInput, match=r"Unknown growable network 'vgg-19'. Did you mean 'vgg19'"):
        build_growable("vgg-19")
    with pytest.raises(InvalidInput, match="size must be above 0, got 0"):
        build_growable("block-stack", size=0)
