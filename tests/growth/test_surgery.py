"""Surgery: every cut by hand, where entries come from, cuts made again, optimisers that go on."""

import copy

import pytest
import torch
from growing_toys import (
    CASES,
    FAMILIES,
    MORPHISMS,
    Shape,
    contents,
    distance,
    outputs,
    shapes,
    toy,
    wake,
    widths_after,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth.morphisms import insert_residual, net2deeper, net2wider, widen_with_zeros
from nasbook.growth.surgery import (
    NEW,
    Grown,
    Origin,
    Surgery,
    blocks_of,
    columns,
    gather,
    in_blocks,
    remap_optimizer,
    replay,
    rewire,
)
from nasbook.networks import BlockStack, Declaration, Flow, Growable, Perceptron, PlainLayer, ResidualLayer

some = settings(derandomize=True, deadline=None, max_examples=40, report_multiple_bugs=False)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(network):
    return {name: value.detach() for name, value in network.named_parameters()}


# ---------------------------------------------------------------------------------------------- rewiring

def test_gather():
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert gather(table, 0, torch.tensor([2, NEW, 0])).tolist() == [[5, 6], [0, 0], [1, 2]]
    assert gather(table, 1, torch.tensor([1, 1, NEW])).tolist() == [[2, 2, 0], [4, 4, 0], [6, 6, 0]]
    assert gather(table[:0], 0, torch.tensor([NEW])).tolist() == [[0, 0]]
    assert gather(table, 1, torch.tensor([], dtype=torch.int64)).shape == (3, 0)


def test_blocks():
    assert in_blocks([0, 1, 1, NEW], 4, 2).tolist() == [0, 1, 1, NEW, 2, 3, 3, NEW]
    assert in_blocks([2, 0], 3, 1).tolist() == [2, 0]
    network, _ = toy(Shape(groups=3))
    assert [blocks_of(network, width) for width in network.declare().widths] == [3, 3, 1]


def test_columns_of_a_flattened_channel():
    network, _ = FAMILIES["toy"]()
    seen = columns(network.hidden, 1)
    assert seen.shape == (4, 1, 36)
    seen[:, 0, 5] = 7.0
    assert network.hidden.weight[:, 5].tolist() == [7.0] * 4
    assert columns(network.second, 2).shape == (1, 2, 1, 3, 3)
    assert columns(ResidualLayer(3).projection, 0).shape == (3, 0, 0, 1, 1)


def test_a_rewiring_by_hand():
    network = Perceptron(2, (2,), 1, normalized=True)
    with torch.no_grad():
        for name, values in {
            "layers.0.linear.weight": [[1.0, 2.0], [3.0, 4.0]],
            "layers.0.norm.weight": [5.0, 6.0],
            "layers.0.norm.bias": [7.0, 8.0],
            "classifier.weight": [[9.0, 10.0]],
        }.items():
            network.get_parameter(name).copy_(torch.tensor(values))
        network.layers[0].norm.running_mean.copy_(torch.tensor([11.0, 12.0]))
        network.layers[0].norm.running_var.copy_(torch.tensor([13.0, 14.0]))
    before = contents(network)
    grown = rewire(network, {"layers.0.linear": [1, NEW, 0, 1]})
    hidden, classifier = grown.network.layers[0], grown.network.classifier
    assert hidden.linear.weight.tolist() == [[3, 4], [0, 0], [1, 2], [3, 4]]
    assert hidden.norm.weight.tolist() == [6, 1, 5, 6] and hidden.norm.bias.tolist() == [8, 0, 7, 8]
    assert hidden.norm.running_mean.tolist() == [12, 0, 11, 12] and hidden.norm.running_var.tolist() == [14, 1, 13, 14]
    assert classifier.weight.tolist() == [[10, 0, 9, 10]]
    assert (hidden.linear.out_features, hidden.norm.num_features, classifier.in_features) == (4, 4, 4)
    assert grown.network.neurons() == {"layers.0.linear": 4} and network.neurons() == {"layers.0.linear": 2}
    assert all(torch.equal(value, before[name]) for name, value in contents(network).items())
    assert grown.cuts == (("rewire", {"layers.0.linear": [1, NEW, 0, 1]}),)
    assert all(type(source) is int for source in grown.cuts[0][1]["layers.0.linear"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_permutation_changes_nothing(family):
    network, inputs = FAMILIES[family]()
    order = {}
    for width in network.declare().widths:
        count, blocks = network.neurons()[width.name], blocks_of(network, width)
        order[width.name] = in_blocks(torch.arange(count // blocks).flip(0).tolist(), count, blocks)
    permuted = rewire(network, order)
    assert distance(network, permuted.network, inputs) < 1e-12
    assert distance(network, permuted.network, inputs, training=True) < 1e-12
    assert any(not torch.equal(value, contents(permuted.network)[name]) for name, value in contents(network).items())
    back = rewire(permuted.network, order).network
    assert all(torch.equal(value, contents(back)[name]) for name, value in contents(network).items())


def test_the_sizes_that_layers_keep():
    network, inputs = FAMILIES["grouped toy"]()
    grown = rewire(network, {"first": in_blocks([0, 1, 1, NEW], 4, 2), "second": in_blocks([0, 0, NEW], 2, 2)}).network
    assert (grown.first.out_channels, grown.second.in_channels, grown.second.out_channels) == (8, 8, 6)
    assert (grown.depthwise.in_channels, grown.depthwise.out_channels, grown.depthwise.groups) == (8, 8, 8)
    assert (grown.branch.in_channels, grown.branch.out_channels, grown.branch.groups) == (6, 6, 2)
    assert grown.second.weight.shape == (6, 4, 3, 3) and grown.branch.weight.shape == (6, 3, 3, 3)
    assert grown.hidden.in_features == grown.hidden.weight.shape[1] == 3 * network.hidden.in_features
    assert outputs(grown, inputs).shape == outputs(network, inputs).shape
    assert "8, 8" in repr(grown.depthwise)


@given(seed=st.integers(0, 2**31), groups=st.integers(1, 2), normalized=st.booleans())
@some
def test_where_every_entry_comes_from(seed, groups, normalized):
    """However often a network is cut, of_before() of the old parameters gives the new ones: structure is all."""
    torch.manual_seed(seed)
    network, _ = toy(Shape(2, 2, 3, groups=groups, normalized=normalized))
    surgery = Surgery(network)
    for cut in torch.randint(5, (5,)).tolist():
        if cut == 0:
            surgery.enlarge_kernel("second", surgery.network.second.kernel_size[0] + 2)
        elif cut == 1:
            surgery.insert("inserted", int(torch.randint(len(surgery.network.inserted) + 1, ())), "residual", 2)
        elif cut == 2 and len(surgery.network.inserted):
            surgery.remove("inserted", int(torch.randint(len(surgery.network.inserted), ())))
        else:
            sources = {}
            for width in surgery.network.declare().widths:
                old, blocks = surgery.network.neurons()[width.name], blocks_of(surgery.network, width)
                local = torch.randint(NEW, old // blocks, (int(torch.randint(1, 5, ())),))
                sources[width.name] = in_blocks(local.tolist(), old, blocks)
            surgery.rewire(sources)
    grown = surgery.grown()
    before, now = parameters(network), parameters(grown.network)
    assert list(grown.origins) == list(now)
    assert set(before) <= {origin.name for origin in grown.origins.values()}
    for name, value in now.items():
        origin = grown.origins[name].name
        if origin is None:
            assert name.startswith("inserted.")
            continue
        moved = grown.of_before(name, before[origin])
        new = grown.of_before(name, torch.ones_like(before[origin])) == 0
        assert torch.equal(moved[~new], value[~new])
        fresh = 1.0 if name.endswith("norm.weight") else 0.0
        assert (value[new] == fresh).all()
    again = replay(network, grown.cuts)
    assert shapes(again) == shapes(grown.network)
    assert list(parameters(again)) == list(now)


def test_rewiring_refuses():
    network, _ = FAMILIES["grouped toy"]()
    with pytest.raises(InvalidInput, match=r"Unknown width 'frist'. Did you mean 'first'"):
        rewire(network, {"frist": [0]})
    for wrong in ([0, 4], [-2, 1]):
        with pytest.raises(InvalidInput, match=r"has 4 neurons; a source must be 0\.\.3, or -1"):
            rewire(network, {"first": wrong})
    with pytest.raises(InvalidInput, match=r"can't be left without neurons"):
        rewire(network, {"hidden": []})
    for wrong in ([0, 1, 2], [0, 1, 3, 2], [0, 0, 0, 0], [0, 1, NEW, 2, 3, 3]):
        with pytest.raises(InvalidInput, match=r"into 2 blocks: sources must do the same in each"):
            rewire(network, {"first": wrong})

    class Multiplied(Growable):
        """A depthwise convolution with two filters a channel, which is none along a width."""

        def __init__(self):
            super().__init__()
            self.first, self.many = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 4, 1, groups=2)

        def declare(self):
            flow = Flow(self)
            flow.write("first", "many")
            return flow.declaration()

    with pytest.raises(InvalidInput, match=r"many is a Conv2d along a width; expected a batch norm or a depthwise"):
        rewire(Multiplied(), {"first": [0, 1, 1]})


def test_a_reader_with_a_group_for_every_channel():
    class Grouped(Growable):
        def __init__(self):
            super().__init__()
            self.first, self.each, self.out = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 6, 1, groups=3), nn.Conv2d(6, 1, 1)

        def forward(self, images):
            return self.out(self.each(self.first(images).relu()).relu())

        def declare(self):
            flow = Flow(self)
            flow.write("first").read_by.append("each")
            flow.write("each").read_by.append("out")
            return flow.declaration()

    inputs = torch.randn(4, 1, 5, 5, dtype=torch.float64)
    network = wake(Grouped(), inputs)
    for widen in (net2wider, widen_with_zeros):
        grown = widen(network, {"first": 9, "each": 12}, generator()).network
        assert grown.each.weight.shape == (12, 3, 1, 1)
        assert distance(network, grown, inputs) < 1e-12


# ---------------------------------------------------------------------------------------------- layers in and out

def test_layers_come_and_go():
    network, inputs = FAMILIES["block-stack"]()
    surgery = Surgery(network)
    first = surgery.insert("blocks.1.inserted", 0, "residual", 2)
    second = surgery.insert("blocks.1.inserted", 0, "residual", 4)
    assert list(surgery.network.get_submodule("blocks.1.inserted")) == [second, first]
    assert [layer.neurons for layer in surgery.network.get_submodule("blocks.1.inserted")] == [4, 2]
    grown = surgery.grown()
    assert list(grown.origins) == list(parameters(grown.network))
    assert {name for name, origin in grown.origins.items() if origin.name is None} == {
        f"blocks.1.inserted.{index}.{name}"
        for index in (0, 1)
        for name in ("layer.weight", "norm.weight", "norm.bias", "projection.weight")
    }
    assert grown.cuts == (
        ("insert", "blocks.1.inserted", 0, "residual", 2),
        ("insert", "blocks.1.inserted", 0, "residual", 4),
    )
    after = Surgery(grown.network)
    after.remove("blocks.1.inserted", 0)
    left = after.grown()
    assert left.origins["blocks.1.inserted.0.layer.weight"].name == "blocks.1.inserted.1.layer.weight"
    assert torch.equal(
        left.network.get_parameter("blocks.1.inserted.0.layer.weight"),
        grown.network.get_parameter("blocks.1.inserted.1.layer.weight"),
    )
    last = Surgery(left.network)
    last.remove("blocks.1.inserted", 0)
    assert shapes(last.network) == shapes(network)
    assert torch.equal(outputs(last.network, inputs), outputs(network, inputs))


def test_a_layer_behind_a_wider_plain_one():
    network, inputs = FAMILIES["block-stack"]()
    deeper = net2deeper(network, "blocks.0.inserted", 0).network
    wider = widen_with_zeros(deeper, {"blocks.0.inserted.0.layer": 5}, generator()).network
    behind = insert_residual(wider, "blocks.0.inserted", 1, 2, generator()).network
    assert behind.get_submodule("blocks.0.inserted.1").layer.weight.shape == (2, 5, 3, 3)
    assert behind.blocks[1].convolution.in_channels == 5
    assert distance(network, behind, inputs) < 1e-12
    with pytest.raises(InvalidInput, match=r"blocks\.0\.inserted\.0 is a plain layer; only a residual layer"):
        Surgery(behind).remove("blocks.0.inserted", 0)


def test_inserted_layers_look_as_their_place_says():
    network = Perceptron(3, (4,), 2, nn.Tanh, normalized=True)
    layer = Surgery(network.double()).insert("layers.0.inserted", 0, "plain")
    assert isinstance(layer, PlainLayer) and isinstance(layer.layer, nn.Linear)
    assert isinstance(layer.norm, nn.BatchNorm1d) and isinstance(layer.activation, nn.Tanh)
    assert layer.layer.weight.dtype == torch.float64
    layer = Surgery(BlockStack(4)).insert("blocks.0.inserted", 0, "residual")
    assert isinstance(layer, ResidualLayer) and layer.neurons == 0 and isinstance(layer.layer, nn.Conv2d)


def test_removing_refuses():
    surgery = Surgery(BlockStack(4))
    with pytest.raises(InvalidInput, match=r"Unknown place for new layers"):
        surgery.remove("blocks.9.inserted", 0)
    with pytest.raises(InvalidInput, match=r"has 0 layers; there is none at 0"):
        surgery.remove("blocks.0.inserted", 0)


def test_replaying_refuses():
    with pytest.raises(InvalidInput, match=r"Unknown cut 'stretch'; expected one of rewire, insert, remove, kernel"):
        replay(BlockStack(4), [("stretch", 2)])
    with pytest.raises(InvalidInput, match=r"Unknown width"):
        replay(BlockStack(4), [("rewire", {"first": [0]})])


@pytest.mark.parametrize(("family", "morphism"), CASES)
def test_a_replay_has_the_same_shapes_and_names(family, morphism):
    network, inputs = FAMILIES[family]()
    grown = MORPHISMS[morphism](network, inputs, generator())
    again = replay(network, grown.cuts)
    assert shapes(again) == shapes(grown.network)
    again.load_state_dict(grown.network.state_dict())
    assert torch.equal(outputs(again, inputs), outputs(grown.network, inputs))


# ---------------------------------------------------------------------------------------------- optimisers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.95), eps=1e-4, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-4, weight_decay=0.1),
}


def trained(network, inputs, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        network.train()(inputs).square().mean().backward()
        optimizer.step()
    return optimizer


def state_of(optimizer, parameter):
    return {key: value for key, value in optimizer.state[parameter].items() if value is not None}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("family", "morphism"), [c for c in CASES if c[0] in ("toy", "grouped toy", "radial")])
def test_the_state_of_surviving_entries_moves_to_the_bit(family, morphism, kind):
    network, inputs = FAMILIES[family]()
    optimizer = trained(network, inputs, OPTIMIZERS[kind](network.parameters()))
    grown = MORPHISMS[morphism](network, inputs, generator())
    before = copy.deepcopy(optimizer.state_dict())
    remapped = remap_optimizer(optimizer, network, grown)
    assert type(remapped) is type(optimizer) and remapped.defaults == optimizer.defaults
    assert [id(p) for group in remapped.param_groups for p in group["params"]] == [
        id(p) for p in grown.network.parameters()
    ]
    old = dict(network.named_parameters())
    for name, parameter in grown.network.named_parameters():
        origin = grown.origins[name]
        if origin.name is None:
            assert parameter not in remapped.state
            continue
        moved, kept = state_of(remapped, parameter), state_of(optimizer, old[origin.name])
        assert moved.keys() == kept.keys()
        new = grown.of_before(name, torch.ones_like(old[origin.name])) == 0
        for key, value in kept.items():
            if value.dim() == 0:
                assert torch.equal(moved[key], value)
                continue
            assert value.any() and moved[key].shape == parameter.shape
            by_hand = value
            for dimension, sources in origin.sources.items():
                by_hand = by_hand.index_select(dimension, sources.clamp(min=0))
            margin = origin.margins
            inner = moved[key][..., margin:-margin, margin:-margin] if margin else moved[key]
            inner_new = new[..., margin:-margin, margin:-margin] if margin else new
            assert torch.equal(inner[~inner_new], by_hand[~inner_new])
            assert not moved[key][new].any()
    after = optimizer.state_dict()  # the old one keeps what it had
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][number][key]))
    trained(grown.network, inputs, remapped, steps=1)
    assert all(p in remapped.state for p in grown.network.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("family", ["block-stack", "normalized perceptron", "radial", "vgg11"])
def test_the_next_step_is_the_one_that_would_have_been(family, kind):
    network, inputs = FAMILIES[family]()
    optimizer = trained(network, inputs, OPTIMIZERS[kind](network.parameters()))
    for growth in (
        lambda: widen_with_zeros(network, widths_after(network), generator()),
        lambda: rewire(network, {name: range(count - 1, -1, -1) for name, count in network.neurons().items()}),
    ):
        grown, going_on = growth(), copy.deepcopy((network, optimizer))
        remapped = remap_optimizer(optimizer, network, grown)
        trained(going_on[0], inputs, going_on[1], steps=1)
        trained(grown.network, inputs, remapped, steps=1)
        expected = dict(going_on[0].named_parameters())
        for name, parameter in grown.network.named_parameters():
            new = grown.of_before(name, torch.ones_like(expected[name])) == 0
            moved = grown.of_before(name, expected[name].detach())
            assert moved.isfinite().all()
            assert torch.allclose(parameter.detach()[~new], moved[~new], rtol=0, atol=1e-12), name


def test_an_optimizer_that_forgets_takes_another_step():
    """The check above can fail: without its momentum, SGD goes elsewhere."""
    network, inputs = FAMILIES["block-stack"]()
    optimizer = trained(network, inputs, OPTIMIZERS["sgd"](network.parameters()))
    grown = widen_with_zeros(network, widths_after(network), generator())
    going_on = copy.deepcopy((network, optimizer))
    trained(going_on[0], inputs, going_on[1], steps=1)
    trained(grown.network, inputs, OPTIMIZERS["sgd"](grown.network.parameters()), steps=1)
    name = "blocks.1.convolution.weight"
    difference = grown.network.get_parameter(name)[:3, :3] - going_on[0].get_parameter(name)
    assert difference.abs().max() > 1e-6


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_remapped_can_be_saved_and_resumed(kind):
    network, inputs = FAMILIES["toy"]()
    optimizer = trained(network, inputs, OPTIMIZERS[kind](network.parameters()))
    for group in optimizer.param_groups:
        group["lr"] = 0.003
    grown = insert_residual(network, "inserted", 0, 3, generator())
    remapped = remap_optimizer(optimizer, network, grown)
    saved = copy.deepcopy((grown.network.state_dict(), remapped.state_dict()))
    again = replay(network, grown.cuts)
    fresh = OPTIMIZERS[kind](again.parameters())
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    assert fresh.param_groups[0]["lr"] == 0.003
    trained(grown.network, inputs, remapped)
    trained(again, inputs, fresh)
    assert all(torch.equal(p, q) for p, q in zip(grown.network.parameters(), again.parameters(), strict=True))


def test_groups_and_their_rates_are_kept():
    network, inputs = FAMILIES["toy"]()
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.5, "initial_lr": 1.0}], 0.01, momentum=0.9
    )
    trained(network, inputs, optimizer)
    grown = insert_residual(network, "inserted", 0, 2, generator())
    remapped = remap_optimizer(optimizer, network, grown)
    assert [(g["lr"], g["weight_decay"], g.get("initial_lr")) for g in remapped.param_groups] == [
        (0.01, 0.1, None),
        (0.5, 0, 1.0),
    ]
    names = {id(p): name for name, p in grown.network.named_parameters()}
    first, second = ([names[id(p)] for p in group["params"]] for group in remapped.param_groups)
    assert set(first) == {n for n, p in network.named_parameters() if p.dim() > 1} | {
        n for n in names.values() if n.startswith("inserted.0.")
    }
    assert set(second) == {n for n, p in network.named_parameters() if p.dim() == 1}
    remapped.param_groups[0]["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_frozen_parameters_and_named_ones():
    network, inputs = FAMILIES["toy"]()
    named = [(name, p) for name, p in network.named_parameters() if name != "first.weight"]
    optimizer = trained(network, inputs, torch.optim.AdamW(named, 0.01))
    grown = insert_residual(network, "inserted", 0, 2, generator())
    remapped = remap_optimizer(optimizer, network, grown)
    names = remapped.param_groups[0]["param_names"]
    assert "first.weight" not in names and "inserted.0.layer.weight" in names
    assert [id(grown.network.get_parameter(name)) for name in names] == [
        id(p) for p in remapped.param_groups[0]["params"]
    ]


def test_what_leaves_takes_its_state_along():
    network, inputs = FAMILIES["toy"]()
    network = insert_residual(network, "inserted", 0, 2, generator()).network
    optimizer = trained(network, inputs, OPTIMIZERS["adam"](network.parameters()))
    surgery = Surgery(network)
    surgery.remove("inserted", 0)
    remapped = remap_optimizer(optimizer, network, surgery.grown())
    assert len(remapped.state) == len(list(surgery.network.parameters())) < len(optimizer.state)
    trained(surgery.network, inputs, remapped, steps=1)


def test_an_identity_layer_gets_its_state_when_it_grows():
    network, inputs = FAMILIES["block-stack"]()
    surgery = Surgery(network)
    surgery.insert("blocks.0.inserted", 0, "residual")
    network = surgery.network
    optimizer = trained(network, inputs, OPTIMIZERS["adam"](network.parameters()))
    assert network.get_parameter("blocks.0.inserted.0.layer.weight") not in optimizer.state
    grown = widen_with_zeros(network, {"blocks.0.inserted.0.layer": 3}, generator())
    remapped = trained(grown.network, inputs, remap_optimizer(optimizer, network, grown), steps=1)
    assert int(remapped.state[grown.network.get_parameter("blocks.0.inserted.0.layer.weight")]["step"]) == 1
    assert int(remapped.state[grown.network.get_parameter("classifier.weight")]["step"]) == 4


def test_remapping_refuses():
    network, inputs = FAMILIES["toy"]()
    grown = rewire(network, {"first": [0, 1, 1]})
    with pytest.raises(InvalidInput, match=r"has a parameter that the network before the growth does not have"):
        remap_optimizer(torch.optim.SGD(grown.network.parameters(), 0.1), network, grown)
    factored = trained(network, inputs, torch.optim.Adafactor(network.parameters(), 0.01))
    with pytest.raises(InvalidInput, match=r"keeps 'row_var' of .* in another shape than the parameter's"):
        remap_optimizer(factored, network, grown)


def test_a_growth_that_is_none():
    network, inputs = FAMILIES["toy"]()
    nothing = Surgery(network).grown()
    assert isinstance(nothing, Grown) and nothing.cuts == ()
    assert nothing.origins == {name: Origin(name) for name in parameters(network)}
    assert torch.equal(outputs(nothing.network, inputs), outputs(network, inputs))
    assert isinstance(nothing.network.declare(), Declaration)
