"""Morphisms: they preserve the function, a wrong one is seen, and every part of one is where it should be."""

import copy
import json
import math

import pytest
import torch
from growing_toys import (
    CASES,
    FAMILIES,
    MORPHISMS,
    Shape,
    contents,
    convolution_paths,
    distance,
    every_last,
    images,
    outputs,
    preserves_training,
    shapes,
    toy,
    wake,
    widths_after,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth.morphisms import (
    grow_kernel,
    insert_identity,
    insert_residual,
    net2deeper,
    net2wider,
    random_directions,
    split_neurons,
    widen_with_zeros,
)
from nasbook.growth.surgery import Surgery, blocks_of, in_blocks, remap_optimizer, replay, rewire
from nasbook.networks import BlockStack, Gaussian, Perceptron, RadialNetwork, ResidualLayer

TOLERANCE = 1e-12
some = settings(derandomize=True, deadline=None, max_examples=40, report_multiple_bugs=False)

a_shape = st.builds(
    Shape,
    first=st.integers(1, 3),
    second=st.integers(1, 3),
    hidden=st.integers(2, 4),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 3),
    bias=st.booleans(),
    normalized=st.booleans(),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hidden(network):
    return network.get_parameter("layers.0.linear.weight").detach()


# ---------------------------------------------------------------------------------------------- the function

@pytest.mark.parametrize(("family", "morphism"), CASES)
def test_every_family_computes_the_same(family, morphism):
    network, inputs = FAMILIES[family]()
    before, random = contents(network), torch.get_rng_state()
    grown = MORPHISMS[morphism](network, inputs, generator())
    assert torch.equal(torch.get_rng_state(), random)
    assert distance(network, grown.network, inputs) < TOLERANCE
    assert distance(network, grown.network, torch.randn_like(inputs)) < TOLERANCE
    assert contents(network).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in contents(network).items())
    assert shapes(grown.network) != shapes(network)


@pytest.mark.parametrize(("family", "morphism"), CASES)
def test_training_mode_where_it_is_promised(family, morphism):
    network, inputs = FAMILIES[family]()
    grown = MORPHISMS[morphism](network, inputs, generator())
    if preserves_training(morphism, network):
        other = torch.randn_like(inputs)
        assert distance(network, grown.network, other, training=True) < TOLERANCE
        network.train()(other)
        grown.network.train()(other)  # the running statistics that this leaves are the same too
        assert distance(network, grown.network, inputs) < TOLERANCE
    else:
        change = distance(network, grown.network, inputs, training=True)
        assert (change < TOLERANCE) == (morphism == "net2deeper"), change


@pytest.mark.parametrize("morphism", MORPHISMS)
@given(shape=a_shape, seed=st.integers(0, 2**31))
@some
def test_any_shape_computes_the_same(morphism, shape, seed):
    torch.manual_seed(seed)
    network, inputs = toy(shape)
    assume(float(outputs(network, inputs).std(0).max()) > 1e-2)
    grown = MORPHISMS[morphism](network, inputs, generator(seed))
    assert distance(network, grown.network, inputs) < TOLERANCE
    if preserves_training(morphism, network) or morphism == "net2deeper":
        assert distance(network, grown.network, inputs, training=True) < 10 * TOLERANCE


@given(shape=a_shape, names=st.lists(st.sampled_from(list(MORPHISMS)), min_size=2, max_size=4), seed=st.integers(0, 99))
@some
def test_one_after_another(shape, names, seed):
    torch.manual_seed(seed)
    network, inputs = toy(shape)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    network(inputs).sum().backward()
    optimizer.step()
    assume(float(outputs(network, inputs).std(0).max()) > 1e-2)
    draws, grown, cuts = generator(seed), network, ()
    for name in names:
        growth = MORPHISMS[name](grown, inputs, draws)
        optimizer = remap_optimizer(optimizer, grown, growth)
        grown, cuts = growth.network, cuts + growth.cuts
    assert distance(network, grown, inputs) < 10 * TOLERANCE
    random = torch.get_rng_state()
    again = replay(network, json.loads(json.dumps(cuts)))
    assert torch.equal(torch.get_rng_state(), random)
    assert shapes(again) == shapes(grown)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in grown.named_parameters()]
    fresh = torch.optim.SGD(again.parameters(), 0.01, momentum=0.9)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the tensors
    again.load_state_dict(grown.state_dict())
    for step in ((grown, optimizer), (again, fresh)):
        step[1].zero_grad()
        step[0](inputs).square().sum().backward()
        step[1].step()
    assert all(torch.equal(p, q) for p, q in zip(grown.parameters(), again.parameters(), strict=True))


# ---------------------------------------------------------------------------------------------- the check can fail

@pytest.mark.parametrize("family", FAMILIES)
def test_copies_with_undivided_columns_are_seen(family):
    network, inputs = FAMILIES[family]()
    copies = {}
    for width in network.declare().widths:
        count, blocks = network.neurons()[width.name], blocks_of(network, width)
        copies[width.name] = in_blocks([*range(count // blocks)] * 2, count, blocks)
    assert distance(network, rewire(network, copies).network, inputs) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_new_neurons_with_outgoing_weights_are_seen(family):
    network, inputs = FAMILIES[family]()
    grown = widen_with_zeros(network, widths_after(network), generator()).network
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter[parameter == 0] = 0.1
    assert distance(network, grown, inputs) > 1e-3


def test_wrong_layers_are_seen():
    network, inputs = FAMILIES["block-stack"]()
    deeper = net2deeper(network, "blocks.1.inserted", 0).network
    layer = deeper.get_submodule("blocks.1.inserted.0")
    layer.norm.weight.data.fill_(1.01)
    assert distance(network, deeper, inputs) > 1e-4
    layer.norm.weight.data.fill_(math.sqrt(1 + layer.norm.eps))
    assert distance(network, deeper, inputs) < TOLERANCE
    layer.layer.weight.data.copy_(layer.layer.weight.data.roll(1, dims=3))  # one pixel off the centre
    assert distance(network, deeper, inputs) > 1e-3
    residual = insert_residual(network, "blocks.0.inserted", 0, 2, generator()).network
    residual.get_submodule("blocks.0.inserted.0").projection.weight.data.fill_(0.1)
    assert distance(network, residual, inputs) > 1e-3
    grown = grow_kernel(network, "blocks.0.convolution", 5).network
    grown.get_submodule("blocks.0.convolution").weight.data[:, :, 0] = 0.1
    assert distance(network, grown, inputs) > 1e-3


def test_statistics_that_are_not_copied_are_seen():
    network, inputs = FAMILIES["vgg11"]()
    grown = net2wider(network, widths_after(network), generator()).network
    grown.get_submodule("layers.3.norm").running_mean[-1] += 1
    assert distance(network, grown, inputs) > 1e-3


# ---------------------------------------------------------------------------------------------- net2wider

def test_net2wider_by_hand():
    network = Perceptron(1, (2,), 1)
    with torch.no_grad():
        for name, values in {
            "layers.0.linear.weight": [[1.0], [2.0]],
            "layers.0.linear.bias": [3.0, 4.0],
            "classifier.weight": [[6.0, 12.0]],
        }.items():
            network.get_parameter(name).copy_(torch.tensor(values))
    grown = net2wider(network, {"layers.0.linear": 5}, generator(3)).network
    copied = hidden(grown).flatten().tolist()
    assert copied[:2] == [1.0, 2.0]
    assert set(copied[2:]) == {1.0, 2.0}  # this seed copies both
    assert grown.get_parameter("layers.0.linear.bias").tolist() == [{1.0: 3.0, 2.0: 4.0}[w] for w in copied]
    shares = {1.0: 6.0 / copied.count(1.0), 2.0: 12.0 / copied.count(2.0)}
    assert grown.get_parameter("classifier.weight").flatten().tolist() == pytest.approx([shares[w] for w in copied])


def test_net2wider_draws_uniformly_and_as_its_generator_does():
    network = RadialNetwork(4)
    copies = net2wider(network, {"hidden": 4004}, generator()).origins["hidden.weight"].sources[0]
    assert copies[:4].tolist() == [0, 1, 2, 3]
    assert all(abs(count - 1000) < 110 for count in copies[4:].bincount().tolist())  # 4 standard deviations
    again = net2wider(network, {"hidden": 4004}, generator()).origins["hidden.weight"].sources[0]
    other = net2wider(network, {"hidden": 4004}, generator(1)).origins["hidden.weight"].sources[0]
    assert torch.equal(copies, again) and not torch.equal(copies, other)


def test_copies_stay_equal_without_noise_and_part_with_it():
    network, inputs = FAMILIES["perceptron"]()
    inputs, labels = inputs[:, :1], torch.randint(3, (len(inputs),))

    def incoming_after_training(noise):
        grown = net2wider(network, {"layers.0.linear": 6}, generator(), noise=noise)
        optimizer = torch.optim.SGD(grown.network.parameters(), 0.5)
        pair = [0, 1, 2].index(int(grown.origins["layers.0.linear.weight"].sources[0][3])), 3
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(grown.network(whole), labels).backward()
            optimizer.step()
        weight = hidden(grown.network)
        assert not torch.equal(weight[pair[0]], hidden(network)[pair[0]])  # it has learnt something
        return float((weight[pair[0]] - weight[pair[1]]).norm() / weight[pair[0]].norm())

    whole = images(len(inputs), 2, 16, 16)
    assert incoming_after_training(0.0) < 1e-12
    assert incoming_after_training(0.01) > 1e-3


def test_noise_is_on_the_copies_alone_and_as_large_as_asked():
    network = Perceptron(400, (10,), 2)
    for scale, row in enumerate(network.layers[0].linear.weight.data):
        row *= scale + 1
    grown = net2wider(network, {"layers.0.linear": 40}, generator(), noise=0.1)
    sources = grown.origins["layers.0.linear.weight"].sources[0]
    difference = hidden(grown.network) - hidden(network)[sources]
    assert not difference[:10].any()
    relative = difference[10:].square().mean(1).sqrt() / hidden(network)[sources[10:]].square().mean(1).sqrt()
    assert all(0.08 < r < 0.12 for r in relative.tolist())


# ---------------------------------------------------------------------------------------------- zeros

def test_new_neurons_have_drawn_weights_in_and_zeros_out():
    network, _ = FAMILIES["toy"]()
    grown = widen_with_zeros(network, {"first": 5, "second": 4, "hidden": 7}, generator()).network
    for path, old, inputs in (("first", 2, 18), ("depthwise", 2, 9), ("second", 1, 45), ("branch", 1, 36)):
        layer, bound = grown.get_submodule(path), inputs**-0.5
        for drawn in (layer.weight.detach()[old:], layer.bias.detach()[old:]):
            assert drawn.abs().max() <= bound
        assert layer.weight.detach()[old:].abs().max() > 0.7 * bound
    assert not grown.second.weight[:, 2:].any() and grown.second.weight[:, :2].all()
    assert not grown.branch.weight[:, 1:].any() and grown.branch.weight[:, :1].all()
    assert not grown.out.weight[:, 4:].any() and grown.out.weight[:, :4].all()
    pixels = 36
    assert not grown.hidden.weight[:, pixels:].any() and grown.hidden.weight[:, :pixels].all()
    assert grown.second_norm.weight[1:].tolist() == [1, 1, 1] and grown.second_norm.running_var[1:].tolist() == [1] * 3
    assert grown.second_norm.bias[1:].tolist() == [0] * 3 and grown.second_norm.running_mean[1:].tolist() == [0] * 3


def test_an_identity_layer_becomes_a_layer():
    network, inputs = FAMILIES["block-stack"]()
    empty = insert_identity(network, "blocks.2.inserted", 0).network
    width = "blocks.2.inserted.0.layer"
    assert empty.neurons()[width] == 0
    assert torch.equal(outputs(empty, inputs), outputs(network, inputs))
    grown = widen_with_zeros(empty, {width: 3}, generator())
    assert grown.network.neurons()[width] == 3
    assert torch.equal(outputs(grown.network, inputs), outputs(network, inputs))
    layer = grown.network.get_submodule("blocks.2.inserted.0")
    assert layer.layer.weight.any() and not layer.projection.weight.any()
    statistics = contents(grown.network)
    grown.network.train()(inputs).square().sum().backward()
    grown.network.load_state_dict(statistics)  # training mode has moved them
    assert layer.projection.weight.grad.any() and not layer.layer.weight.grad.any()
    back = rewire(grown.network, {width: []}).network
    assert back.neurons()[width] == 0
    assert torch.equal(outputs(back, inputs), outputs(network, inputs))


# ---------------------------------------------------------------------------------------------- splits

def test_a_split_by_hand():
    network = RadialNetwork(3).double()
    with torch.no_grad():
        network.hidden.weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
        network.hidden.bias.copy_(torch.tensor([4.0, 5.0, 6.0]))
        network.output.weight.copy_(torch.tensor([[2.0, 4.0, 8.0]]))
    directions = {"hidden.weight": torch.tensor([[10.0], [20.0]]), "hidden.bias": torch.tensor([30.0, 40.0])}
    grown = split_neurons(network, {"hidden": [2, 0]}, step=0.1, directions=directions).network
    assert grown.hidden.weight.flatten().tolist() == pytest.approx([1 + 2, 2, 3 + 1, 3 - 1, 1 - 2])
    assert grown.hidden.bias.tolist() == pytest.approx([4 + 4, 5, 6 + 3, 6 - 3, 4 - 4])
    assert grown.output.weight.flatten().tolist() == [1, 4, 4, 4, 1]


@pytest.mark.parametrize("family", ["radial", "smooth perceptron", "smooth residual"])
def test_a_split_of_a_smooth_network_changes_it_in_second_order(family):
    if family == "radial":
        network, inputs = FAMILIES["radial"]()
    else:
        inputs = images(6, 5)
        network = wake(Perceptron(5, (4, 3), 2, activation=nn.Tanh), inputs)
        if family == "smooth residual":
            network = insert_residual(network, "layers.0.inserted", 0, 3, generator()).network
            nn.init.normal_(network.get_parameter("layers.0.inserted.0.projection.weight"))
    chosen = every_last(network)
    directions = random_directions(network, chosen, generator())
    change = [
        distance(network, split_neurons(network, chosen, step=step, directions=directions).network, inputs)
        for step in (2e-3, 1e-3)
    ]
    assert change[1] > 1e-9
    assert change[0] / change[1] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("family", ["toy", "grouped toy", "mobilenet-v1"])
def test_both_halves_are_at_the_same_distance_with_split_inputs_too(family):
    network, _ = FAMILIES[family]()
    chosen = every_last(network)
    directions = random_directions(network, chosen, generator())
    split = split_neurons(network, chosen).network
    moved = split_neurons(network, chosen, step=0.5, directions=directions)
    for width in network.declare().widths:
        for path in width.written_by:
            weights = [grown.get_parameter(f"{path}.weight").detach() for grown in (moved.network, split)]
            difference = weights[0] - weights[1]
            sources = moved.origins[f"{path}.weight"].sources[0]
            for number, neuron in enumerate(chosen[width.name].tolist()):
                first, second = (sources == neuron).nonzero().flatten().tolist()
                assert torch.allclose(difference[first], -difference[second], rtol=0, atol=1e-15)
                delta = directions[f"{path}.weight"][number]
                # The halves of an input share δ, as they share the weight: summed over them it is δ again.
                assert float(difference[first].sum()) == pytest.approx(0.5 * float(delta.sum()), abs=1e-12)
            whole = [i for i in range(len(sources)) if int(sources[i]) not in chosen[width.name].tolist()]
            assert not difference[whole].any()


@pytest.mark.parametrize("family", ["toy", "grouped toy", "radial", "normalized perceptron"])
def test_random_directions_have_length_one(family):
    network, _ = FAMILIES[family]()
    chosen = every_last(network)
    directions = random_directions(network, chosen, generator())
    for width in network.declare().widths:
        written = [d for name, d in directions.items() if name.rpartition(".")[0] in width.written_by]
        norms = sum(d.flatten(1).square().sum(1) if d.dim() > 1 else d.square() for d in written)
        assert norms.tolist() == pytest.approx([1.0] * len(chosen[width.name]))
    assert {name.rpartition(".")[0] for name in directions} == {
        path for width in network.declare().widths for path in width.written_by
    }


def test_random_directions_are_uniform_on_the_sphere():
    network = RadialNetwork(1)
    many = torch.cat(
        [
            torch.stack([d.flatten() for d in random_directions(network, {"hidden": [0]}, draws).values()])
            for draws in map(generator, range(2000))
        ],
        dim=1,
    )
    assert many.square().mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.03)  # 4 standard deviations
    assert many.mean(1).tolist() == pytest.approx([0, 0], abs=0.07)


# ---------------------------------------------------------------------------------------------- depth

def test_net2deeper_in_training_mode_needs_the_batch():
    network, inputs = FAMILIES["vgg11"]()
    place = "layers.2.inserted"
    assert distance(network, net2deeper(network, place, 0).network, inputs, training=True) > 1e-2
    grown = net2deeper(network, place, 0, inputs=inputs).network
    assert distance(network, grown, inputs, training=True) < TOLERANCE
    assert distance(network, grown, inputs[:2], training=True) > 1e-6
    norm = grown.get_submodule(f"{place}.0.norm")
    assert norm.weight.tolist() != [1.0] * 3 and norm.bias.all()


def test_net2deeper_passes_on_a_dead_channel():
    network, inputs = FAMILIES["block-stack"]()
    network.get_submodule("blocks.0.norm").bias.data[0] = -100
    grown = net2deeper(network, "blocks.0.inserted", 0, inputs=inputs).network
    assert distance(network, grown, inputs) < TOLERANCE
    assert distance(network, grown, inputs, training=True) < TOLERANCE


def test_net2deeper_again_and_again():
    network, inputs = FAMILIES["normalized perceptron"]()
    grown = network
    for index in (0, 1, 0):
        grown = net2deeper(grown, "layers.0.inserted", index, inputs=inputs).network
    assert len(grown.get_submodule("layers.0.inserted")) == 3
    assert distance(network, grown, inputs) < TOLERANCE
    assert distance(network, grown, inputs, training=True) < 10 * TOLERANCE
    assert grown.declare().widths[1].name == "layers.0.inserted.0.layer"


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.PReLU, nn.ELU, Gaussian])
def test_net2deeper_refuses_activations_that_change_their_own_outputs(activation):
    with pytest.raises(InvalidInput, match=rf"{activation.__name__} can't be the identity.*σ\(σ\(x\)\) = σ\(x\)"):
        net2deeper(Perceptron(2, (3,), 1, activation), "layers.0.inserted", 0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity])
def test_net2deeper_takes_activations_that_keep_their_own_outputs(activation):
    inputs = images(6, 5)
    network = wake(Perceptron(5, (9, 9), 2, activation), inputs)
    assert distance(network, net2deeper(network, "layers.1.inserted", 0).network, inputs) < TOLERANCE


def test_net2deeper_refuses_what_has_not_passed_the_activation():
    network, inputs = FAMILIES["block-stack"]()
    grown = insert_residual(network, "blocks.0.inserted", 0, 2, generator()).network
    assert distance(network, net2deeper(grown, "blocks.0.inserted", 1).network, inputs) < TOLERANCE  # h is zero yet
    nn.init.normal_(grown.get_parameter("blocks.0.inserted.0.projection.weight"))
    with pytest.raises(InvalidInput, match=r"blocks\.0\.inserted\.0 is a residual layer.*Insert it before"):
        net2deeper(grown, "blocks.0.inserted", 1)
    assert distance(grown, net2deeper(grown, "blocks.0.inserted", 0).network, inputs) < TOLERANCE

    class Bent(BlockStack):
        """Declares a place that follows no activation."""

        def forward(self, images):
            return super().forward(images)

    bent = Bent(3, 3, 2)
    bent.blocks[1].activation = nn.Identity()
    bent = wake(bent, inputs)
    with pytest.raises(InvalidInput, match=r"What enters blocks\.1\.inserted at 0 changes under ReLU"):
        net2deeper(bent, "blocks.1.inserted", 0, inputs=inputs)


def test_a_residual_layer_changes_no_bit():
    network, inputs = FAMILIES["block-stack"]()
    grown = insert_residual(network, "blocks.1.inserted", 0, 4, generator())
    layer = grown.network.get_submodule("blocks.1.inserted.0")
    assert isinstance(layer, ResidualLayer) and layer.neurons == 4
    assert layer.layer.weight.detach().abs().max() <= 27**-0.5
    assert layer.layer.weight.detach().abs().max() > 0.8 * 27**-0.5
    for training in (False, True):
        assert torch.equal(outputs(network, inputs, training), outputs(grown.network, inputs, training))
    other = insert_residual(network, "blocks.1.inserted", 0, 4, generator(1))
    weights = [g.network.get_parameter("blocks.1.inserted.0.layer.weight") for g in (grown, other)]
    assert not torch.equal(*weights)


# ---------------------------------------------------------------------------------------------- kernels

def test_a_kernel_grows_by_zeros_around_it():
    network, _ = FAMILIES["toy"]()
    grown = grow_kernel(network, "first", 7).network
    assert grown.first.kernel_size == (7, 7) and grown.first.padding == (3, 3)
    assert torch.equal(grown.first.weight[:, :, 2:5, 2:5], network.first.weight)
    assert grown.first.weight.count_nonzero() == network.first.weight.count_nonzero()


def test_every_convolution_of_every_family_may_have_a_larger_kernel():
    for family in ("toy", "grouped toy", "mobilenet-v1", "block-stack"):
        network, inputs = FAMILIES[family]()
        grown = network
        for path in convolution_paths(network):
            grown = grow_kernel(grown, path, network.get_submodule(path).kernel_size[0] + 4).network
        assert distance(network, grown, inputs) < TOLERANCE


# ---------------------------------------------------------------------------------------------- precision, place

@pytest.mark.parametrize("morphism", MORPHISMS)
def test_single_precision_and_frozen_weights_stay(morphism):
    network, inputs = FAMILIES["block-stack"]()
    network, inputs = network.float(), inputs.float()
    network.get_parameter("blocks.3.convolution.weight").requires_grad_(False)
    grown = MORPHISMS[morphism](network, inputs, generator())
    assert {p.dtype for p in grown.network.parameters()} == {torch.float32}
    frozen = [name for name, p in grown.network.named_parameters() if not p.requires_grad]
    assert frozen == ["blocks.3.convolution.weight"]
    assert distance(network, grown.network, inputs) < 1e-5
    assert not grown.network.training
    assert MORPHISMS[morphism](network.train(), inputs, generator()).network.training


# ---------------------------------------------------------------------------------------------- wrong input

@pytest.mark.parametrize("widen", [net2wider, widen_with_zeros])
def test_widening_refuses(widen):
    network, _ = FAMILIES["grouped toy"]()
    with pytest.raises(InvalidInput, match=r"Unknown width 'frist'. Did you mean 'first'"):
        widen(network, {"frist": 8}, generator())
    with pytest.raises(InvalidInput, match=r"first has 4 neurons and can't grow to 2"):
        widen(network, {"first": 2}, generator())
    with pytest.raises(InvalidInput, match=r"into 2 blocks: it can have a multiple of 2 neurons, not 7"):
        widen(network, {"first": 7}, generator())
    assert shapes(widen(network, {"first": 4}, generator()).network) == shapes(network)


def test_net2wider_refuses():
    network, _ = FAMILIES["block-stack"]()
    with pytest.raises(InvalidInput, match=r"noise must be 0 or more, got -1"):
        net2wider(network, {"blocks.0.convolution": 8}, generator(), noise=-1)
    empty = insert_identity(network, "blocks.0.inserted", 0).network
    with pytest.raises(InvalidInput, match=r"no neuron to copy; grow it with widen_with_zeros"):
        net2wider(empty, {"blocks.0.inserted.0.layer": 8}, generator())


def test_splitting_refuses():
    network, _ = FAMILIES["grouped toy"]()
    with pytest.raises(InvalidInput, match=r"Unknown width 'frist'"):
        split_neurons(network, {"frist": [0]})
    with pytest.raises(InvalidInput, match=r"Unknown width 'frist'"):
        random_directions(network, {"frist": [0]}, generator())
    for wrong in ([0, 4], [-1, 1]):
        with pytest.raises(InvalidInput, match=r"has the neurons 0\.\.3; can't split"):
            split_neurons(network, {"first": wrong})
    with pytest.raises(InvalidInput, match=r"given twice: \[1, 1\]"):
        split_neurons(network, {"first": [1, 1]})
    for wrong in ([0], [0, 3]):
        with pytest.raises(InvalidInput, match=r"into 2 blocks: the same neurons of each"):
            split_neurons(network, {"first": wrong})
    with pytest.raises(InvalidInput, match=r"step is 0\.1, but there are no directions"):
        split_neurons(network, {"first": [0, 2]}, step=0.1)
    right = random_directions(network, {"first": [0, 2]}, generator())
    assert split_neurons(network, {"first": [0, 2]}, step=0.1, directions=right).network.neurons()["first"] == 6
    for name in ("hidden.weight", "out.weight", "first.wieght"):
        with pytest.raises(InvalidInput, match=rf"directions for {name}, which no chosen neuron has"):
            split_neurons(network, {"first": [0, 2]}, step=0.1, directions={name: right["first.weight"]})
    with pytest.raises(InvalidInput, match=r"first\.bias have the shape \(3,\); expected \(2,\)"):
        split_neurons(network, {"first": [0, 2]}, step=0.1, directions={"first.bias": torch.zeros(3)})


def test_splitting_nothing_changes_nothing():
    network, inputs = FAMILIES["toy"]()
    grown = split_neurons(network, {"first": []})
    assert shapes(grown.network) == shapes(network)
    assert torch.equal(outputs(grown.network, inputs), outputs(network, inputs))


def test_inserting_refuses():
    network, inputs = FAMILIES["block-stack"]()
    for insert in (
        lambda place, index: net2deeper(network, place, index),
        lambda place, index: insert_residual(network, place, index, 2, generator()),
        lambda place, index: insert_identity(network, place, index),
    ):
        with pytest.raises(InvalidInput, match=r"Unknown place for new layers 'blocks.0.insert'. Did you mean"):
            insert("blocks.0.insert", 0)
        for index in (-1, 1):
            with pytest.raises(InvalidInput, match=rf"has 0 layers; a layer can't be inserted at {index}"):
                insert("blocks.0.inserted", index)
    with pytest.raises(InvalidInput, match=r"neurons must be 0 or more, got -1"):
        insert_residual(network, "blocks.0.inserted", 0, -1, generator())
    with pytest.raises(InvalidInput, match=r"statistics of 2 inputs or more, got 1"):
        net2deeper(network, "blocks.0.inserted", 0, inputs=inputs[:1])


def test_kernels_refuse():
    network, _ = FAMILIES["toy"]()
    with pytest.raises(InvalidInput, match=r"hidden is a Linear; only a convolution"):
        grow_kernel(network, "hidden", 5)
    for size in (1, 4):
        with pytest.raises(InvalidInput, match=rf"first has a kernel of 3×3; .* not to {size}"):
            grow_kernel(network, "first", size)
    with pytest.raises(InvalidInput, match=r"Unknown layer 'frist'. Did you mean 'first'"):
        grow_kernel(network, "frist", 5)
    network.first.padding_mode = "reflect"
    with pytest.raises(InvalidInput, match=r"its kernel can't grow"):
        grow_kernel(network, "first", 5)


def test_the_order_of_the_widths_does_not_matter():
    network, inputs = FAMILIES["toy"]()
    neurons = widths_after(network)
    for widen in (net2wider, widen_with_zeros):
        grown = widen(network, dict(reversed(neurons.items())), generator())
        assert distance(network, grown.network, inputs) < TOLERANCE
    chosen = dict(reversed(every_last(network).items()))
    assert distance(network, split_neurons(network, chosen).network, inputs) < TOLERANCE


def test_a_copy_of_the_network_is_what_grows():
    network, _ = FAMILIES["toy"]()
    surgery = Surgery(network)
    assert surgery.network is not network
    assert not {id(p) for p in network.parameters()} & {id(p) for p in surgery.network.parameters()}
    assert copy.deepcopy(surgery.network).neurons() == network.neurons()
