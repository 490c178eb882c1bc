"""Morphable convolutions: names, Table 2, and modules that are DARTS' own where the configurations are."""

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import count_macs, count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import CellGenotype, Edge, Genotype
from nasbook.networks import DerivedNetwork
from nasbook.operations import (
    CONSTRAINTS,
    MORPHISMS,
    Configuration,
    Constraints,
    MorphableConvolution,
    build_operation,
    get_operation,
    is_morphable,
    list_operations,
    morphisms_of,
    obtainable,
)
from nasbook.operations.morphable import widened_place

few = settings(derandomize=True, deadline=None, max_examples=40)

odd = st.integers(0, 60).map(lambda half: 2 * half + 1)
some_expansions = st.lists(st.integers(1, 40), max_size=5)


def every(constraints):
    """All configurations that a search can meet; with limited depth and width, all that there are."""
    found = set().union(*obtainable(constraints))
    if constraints.max_depth is not None:
        lengths = range(constraints.max_depth + 1)
        expansions = [e for n in lengths for e in itertools.product(range(1, constraints.max_width + 1), repeat=n)]
        kernels = range(constraints.min_kernel, constraints.max_kernel + 1, 2)
        dilations = range(constraints.min_dilation, constraints.max_dilation + 1)
        found |= {Configuration(*form) for form in itertools.product(kernels, dilations, expansions)}
    return found


# ---------------------------------------------------------------------------------------------- names


def test_names_as_they_are_written():
    assert Configuration(5, 1, (2, 1)).name == "sep_conv(kernel=5, dilation=1, expansions=2-1)"
    assert Configuration(3).name == "sep_conv(kernel=3, dilation=1, expansions=none)"
    assert Configuration.parse("sep_conv(kernel=13, dilation=20, expansions=10-7)") == Configuration(13, 20, (10, 7))


@pytest.mark.parametrize(("space", "number"), [("DL", 12), ("DR", 48), ("UR", 80)])
def test_every_configuration_of_the_three_spaces_has_a_name_that_parses_and_prints_back(space, number):
    configurations = every(CONSTRAINTS[space])
    assert len(configurations) == len({one.name for one in configurations}) == number
    for one in configurations:
        assert Configuration.parse(one.name) == one
        assert Configuration.parse(one.name).name == one.name
        assert is_morphable(one.name)
        entry = get_operation(one.name)
        assert (entry.name, entry.kind) == (one.name, "convolution")
        built = build_operation(one.name, 2, 2, affine=False)
        assert type(built) is MorphableConvolution
        assert (built.configuration, built.channels, built.stride, built.affine) == (one, 2, 2, False)


@few
@given(kernel=odd, dilation=st.integers(1, 10**6), expansions=some_expansions)
def test_so_has_any_other(kernel, dilation, expansions):
    one = Configuration(kernel, dilation, tuple(expansions))
    assert Configuration.parse(one.name) == one
    assert Configuration.parse(one.name).name == one.name
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(Configuration.parse(one.name))


@few
@given(text=st.one_of(st.text(max_size=60), st.text("012-", max_size=6)))
def test_a_name_parses_only_if_it_prints_back(text):
    for name in (text, f"sep_conv({text})", f"sep_conv(kernel=3, dilation=1, expansions={text})"):
        if is_morphable(name):
            assert Configuration.parse(name).name == name
        else:
            with pytest.raises(InvalidInput, match=r"is not the name of a morphable convolution"):
                Configuration.parse(name)


REFUSED = [
    "",
    "sep_conv",
    "sep_conv_3x3",
    "sep_conv(kernel=3)",
    "sep_conv(kernel=3, dilation=1)",
    "sep_conv(kernel=3, dilation=1, expansions=)",
    "sep_conv(kernel=3, dilation=1, expansions=0)",
    "sep_conv(kernel=3, dilation=1, expansions=None)",
    "sep_conv(kernel=3, dilation=1, expansions=1-)",
    "sep_conv(kernel=3, dilation=1, expansions=-1)",
    "sep_conv(kernel=3, dilation=1, expansions=1--1)",
    "sep_conv(kernel=3, dilation=1, expansions=2,1)",
    "sep_conv(kernel=3, dilation=1, expansions=none-1)",
    "sep_conv(kernel=3, dilation=1, expansions=01)",
    "sep_conv(kernel=03, dilation=1, expansions=1)",
    "sep_conv(kernel=0, dilation=1, expansions=1)",
    "sep_conv(kernel=-3, dilation=1, expansions=1)",
    "sep_conv(kernel=3.0, dilation=1, expansions=1)",
    "sep_conv(kernel=3, dilation=0, expansions=1)",
    "sep_conv(kernel=3,dilation=1,expansions=1)",
    "sep_conv(dilation=1, kernel=3, expansions=1)",
    "Sep_conv(kernel=3, dilation=1, expansions=1)",
    " sep_conv(kernel=3, dilation=1, expansions=1)",
    "sep_conv(kernel=3, dilation=1, expansions=1) ",
    "sep_conv(kernel=3, dilation=1, expansions=1)\n",
    "sep_conv(kernel=3, dilation=1, expansions=1",
]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_names(name):
    assert not is_morphable(name)
    with pytest.raises(InvalidInput) as raised:
        Configuration.parse(name)
    assert str(raised.value) == (
        f"{name!r} is not the name of a morphable convolution. Expected a form like "
        f"'sep_conv(kernel=5, dilation=1, expansions=2-1)', or 'sep_conv(kernel=3, dilation=1, expansions=none)', with "
        f"these spaces and no leading zeros."
    )
    if name.startswith("sep_conv("):
        with pytest.raises(InvalidInput, match=r"^'sep_conv\(.* is not the name of a morphable convolution\."):
            get_operation(name)


def test_an_even_kernel_has_no_configuration():
    message = r"^A kernel size must be odd, so that the size of the image stays; got 4\.$"
    with pytest.raises(InvalidInput, match=message):
        Configuration.parse("sep_conv(kernel=4, dilation=1, expansions=1)")
    with pytest.raises(InvalidInput, match=message):
        build_operation("sep_conv(kernel=4, dilation=1, expansions=none)", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"^kernel must be "),
        ((-3,), r"^kernel must be "),
        ((3, 0), r"^dilation must be "),
        ((3, 1, (0,)), r"^Expansions are multiples of the channels, 1 or more; got \(0,\)\.$"),
        ((3, 1, (2, -1)), r"^Expansions are multiples of the channels, 1 or more; got \(2, -1\)\.$"),
    ],
)
def test_configurations_that_there_are_not(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        Configuration(*arguments)


def test_the_registry_lists_none_of_them():
    assert not [name for name in list_operations() if is_morphable(name)]
    with pytest.raises(InvalidInput, match=r"^channels must be at least 1, got 0\.$"):
        build_operation(Configuration(3).name, 0)
    with pytest.raises(InvalidInput, match=r"^stride must be 1 or 2, got 3\.$"):
        build_operation(Configuration(3).name, 4, 3)


# ---------------------------------------------------------------------------------------------- the six morphisms


def test_where_the_morphisms_lead():
    start = Configuration(5, 2, (2, 1))
    assert {name: function(start) for name, function in MORPHISMS.items()} == {
        "larger-kernel": Configuration(7, 2, (2, 1)),
        "wider": Configuration(5, 2, (2, 2)),
        "deeper": Configuration(5, 2, (2, 1, 1)),
        "smaller-kernel": Configuration(3, 2, (2, 1)),
        "larger-dilation": Configuration(5, 3, (2, 1)),
        "smaller-dilation": Configuration(5, 1, (2, 1)),
    }
    assert list(MORPHISMS) == [
        "larger-kernel", "wider", "deeper", "smaller-kernel", "larger-dilation", "smaller-dilation"
    ]  # 1 to 6 of §3.2  # fmt: skip
    assert [name for name, function in MORPHISMS.items() if function(Configuration(1)) is None] == [
        "wider", "smaller-kernel", "smaller-dilation"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expansions", "place"),
    [((), None), ((4,), 0), ((1, 1), 0), ((2, 1), 1), ((2, 2, 2), 0), ((3, 2, 2), 1), ((1, 2, 1), 0), ((3, 2, 1), 2)],
)
def test_the_smallest_expansion_is_widened_and_of_equals_the_leading_one(expansions, place):
    configuration = Configuration(3, 1, expansions)
    assert widened_place(configuration) == place
    wider = MORPHISMS["wider"](configuration)
    if place is None:
        assert wider is None
    else:
        expected = list(expansions)
        expected[place] += 1
        assert wider == Configuration(3, 1, tuple(expected))


def test_the_initial_convolution_in_the_three_spaces():
    everywhere = {
        "larger-kernel": Configuration(5),
        "deeper": Configuration(3, 1, (1,)),
        "larger-dilation": Configuration(3, 2),
    }
    assert morphisms_of(Configuration(3), CONSTRAINTS["DL"]) == everywhere
    for space in ("DR", "UR"):
        assert morphisms_of(Configuration(3), CONSTRAINTS[space]) == everywhere | {"smaller-kernel": Configuration(1)}


@few
@given(
    kernel=st.sampled_from([1, 3, 5, 7, 9]),
    dilation=st.integers(1, 3),
    expansions=st.lists(st.integers(1, 6), max_size=3),
    space=st.sampled_from([*CONSTRAINTS.values(), Constraints(1, 9, 1, 3, 2, 3, dilated_pointwise=False)]),
)
def test_available_morphisms_are_those_that_stay_in_the_space(kernel, dilation, expansions, space):
    start = Configuration(kernel, dilation, tuple(expansions))
    found = morphisms_of(start, space)
    assert list(found) == [name for name in MORPHISMS if name in found]
    for name, function in MORPHISMS.items():
        child = function(start)
        assert (name in found) == (child is not None and space.allow(child))
        assert found.get(name, child) == child


# ---------------------------------------------------------------------------------------------- Table 2


def test_the_columns_of_table_2():
    columns = {
        name: (c.min_kernel, c.max_kernel, c.min_dilation, c.max_dilation, c.max_depth, c.max_width)
        for name, c in CONSTRAINTS.items()
    }
    assert columns == {"DL": (3, 7, 1, 2, 1, 1), "DR": (1, 7, 1, 2, 1, 5), "UR": (1, 7, 1, 2, None, None)}
    assert Constraints() == CONSTRAINTS["DL"]


@pytest.mark.parametrize(
    ("space", "steps", "total", "without_dilated_pointwise"),
    [
        ("DL", [1, 3, 4, 3, 1, 0], 12, 12),
        ("DR", [1, 4, 7, 8, 8, 8], 36, 32),
        ("UR", [1, 4, 8, 13, 21, 33], 80, 73),
    ],
)
def test_how_many_configurations_each_step_reaches(space, steps, total, without_dilated_pointwise):
    frontiers = obtainable(CONSTRAINTS[space])
    assert [len(new) for new in frontiers] == steps
    assert sum(steps) == total == len(frozenset().union(*frontiers))
    dilated_pointwise = {one for new in frontiers for one in new if one.kernel == 1 and one.dilation == 2}
    # Table 2's totals count these, although its caption says that they are excluded.
    assert total - len(dilated_pointwise) == without_dilated_pointwise
    limits = CONSTRAINTS[space]
    excluding = Constraints(
        limits.min_kernel, limits.max_kernel, limits.min_dilation, limits.max_dilation, limits.max_depth,
        limits.max_width, dilated_pointwise=False,
    )  # fmt: skip
    assert frozenset().union(*obtainable(excluding)) == frozenset().union(*frontiers) - dilated_pointwise


@pytest.mark.parametrize("space", CONSTRAINTS)
def test_the_step_of_a_configuration_is_its_distance_from_the_first(space):
    """Counted without searching: each step moves the kernel by 2, the dilation by 1, or adds 1 to the expansions."""
    limits = CONSTRAINTS[space]
    for step, new in enumerate(obtainable(limits, steps=6)):
        assert new == {
            Configuration(kernel, dilation, partition)
            for kernel in range(limits.min_kernel, limits.max_kernel + 1, 2)
            for dilation in range(limits.min_dilation, limits.max_dilation + 1)
            for partition in partitions(step - abs(kernel - 3) // 2 - (dilation - 1))
            if limits.max_depth is None or len(partition) <= limits.max_depth
            if limits.max_width is None or max(partition, default=0) <= limits.max_width
        }


def test_expansions_are_partitions():
    only_expansions = Constraints(3, 3, 1, 1, max_depth=None, max_width=None)
    frontiers = obtainable(only_expansions, steps=7)
    assert [len(new) for new in frontiers] == [1, 1, 2, 3, 5, 7, 11, 15]
    for step, new in enumerate(frontiers):
        assert {one.expansions for one in new} == set(partitions(step))
    assert {one.expansions for one in frontiers[4]} == {(4,), (3, 1), (2, 2), (2, 1, 1), (1, 1, 1, 1)}


def partitions(total, largest=None):
    """All ways to write a number as a sum, largest part first."""
    if total <= 0:
        return [()] if total == 0 else []
    parts = range(1, min(total, largest or total) + 1)
    return [(part, *rest) for part in parts for rest in partitions(total - part, part)]


def test_other_starts_and_steps():
    assert obtainable(CONSTRAINTS["UR"], steps=0) == (frozenset({Configuration(3)}),)
    assert obtainable(CONSTRAINTS["DL"], 2, Configuration(7, 2, (1,)))[1:] == (
        {Configuration(5, 2, (1,)), Configuration(7, 1, (1,))},
        {Configuration(3, 2, (1,)), Configuration(5, 1, (1,))},
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_kernel": 0}, r"^min_kernel must be "),
        ({"min_dilation": -1}, r"^min_dilation must be "),
        ({"min_kernel": 9}, r"^min_kernel=9 must be at most max_kernel=7\.$"),
        ({"min_kernel": 5, "max_kernel": 3}, r"^min_kernel=5 must be at most max_kernel=3\.$"),
        ({"max_dilation": 0}, r"^min_dilation=1 must be at most max_dilation=0\.$"),
        ({"max_depth": -1}, r"^max_depth must be at least 0, or None for no limit; got -1\.$"),
        ({"max_width": -2}, r"^max_width must be at least 0, or None for no limit; got -2\.$"),
    ],
)
def test_constraints_that_there_are_not(limits, message):
    with pytest.raises(InvalidInput, match=message):
        Constraints(**limits)


def test_the_borders_of_a_space():
    space = Constraints(3, 5, 2, 3, max_depth=2, max_width=4)
    inside = [(3, 2), (5, 3), (3, 2, (4, 4)), (5, 3, (1,))]
    outside = [(1, 2), (7, 2), (3, 1), (3, 4), (3, 2, (1, 1, 1)), (3, 2, (5,)), (3, 2, (1, 5))]
    assert [space.allow(Configuration(*form)) for form in inside] == [True] * 4
    assert [space.allow(Configuration(*form)) for form in outside] == [False] * 7
    pointwise = [Configuration(1), Configuration(1, 2)]
    assert [Constraints(1).allow(one) for one in pointwise] == [True, True]
    assert [Constraints(1, dilated_pointwise=False).allow(one) for one in pointwise] == [True, False]
    assert Constraints(dilated_pointwise=False).allow(Configuration(3, 2))


# ---------------------------------------------------------------------------------------------- the module


def darts_layer(channels, kernel, stride, dilation, affine):
    """One half of DARTS' separable convolution, or its dilated one (§3.1), of torch's own modules."""
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel, stride, dilation * (kernel - 1) // 2, dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "name", ["sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5"]
)
def test_darts_operations_are_two_of_the_configurations(name, stride, affine):
    kernel = int(name[-1])
    separable = name.startswith("sep")
    configuration = Configuration(kernel, 1, (1,)) if separable else Configuration(kernel, 2)
    layers = (
        [*darts_layer(4, kernel, stride, 1, affine), *darts_layer(4, kernel, 1, 1, affine)]
        if separable
        else darts_layer(4, kernel, stride, 2, affine)
    )
    reference = nn.Sequential(*layers).double()
    theirs = build_operation(name, 4, stride, affine).double()
    ours = MorphableConvolution(4, configuration, stride, affine).double()
    shapes = [(key, value.shape) for key, value in reference.state_dict().items()]
    for module in (theirs, ours):
        assert [(key, value.shape) for key, value in module.state_dict().items()] == shapes
        assert module.configuration == configuration
        module.load_state_dict(reference.state_dict())
    for training in (True, False):
        x = torch.randn(3, 4, 9, 8, dtype=torch.float64, requires_grad=True)
        outputs = [module.train(training)(x) for module in (reference, theirs, ours)]
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])
        slope = torch.randn_like(outputs[0])
        expected, *others = (torch.autograd.grad(output, x, slope)[0] for output in outputs)
        for gradient in others:
            assert torch.equal(gradient, expected)


def test_the_initial_convolution_is_half_of_darts():
    module = MorphableConvolution(4, Configuration(3))
    kinds = (nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d)
    assert all(isinstance(layer, kind) for layer, kind in zip(module, kinds, strict=True))
    assert 2 * count_parameters(module) == count_parameters(build_operation("sep_conv_3x3", 4))


a_module = {
    "kernel": st.sampled_from([1, 3, 5, 7]),
    "dilation": st.integers(1, 3),
    "expansions": st.lists(st.integers(1, 4), max_size=3),
    "channels": st.integers(1, 6),
    "stride": st.integers(1, 2),
    "affine": st.booleans(),
}


@few
@given(**a_module)
def test_parameters_and_macs_follow_the_formula(kernel, dilation, expansions, channels, stride, affine):
    configuration = Configuration(kernel, dilation, tuple(expansions))
    module = MorphableConvolution(channels, configuration, stride, affine)
    widths = [channels, *[channels * expansion for expansion in expansions], channels]
    convolutions = sum(kernel**2 * into + into * out for into, out in itertools.pairwise(widths))
    norms = 2 * sum(widths[1:]) if affine else 0
    assert count_parameters(module) == convolutions + norms
    assert len(module) == 4 * (len(expansions) + 1)
    pixels = 8 * 8 // stride**2  # the stride is in the first layer
    assert count_macs(module, (1, channels, 8, 8)) == convolutions * pixels


@few
@given(**a_module, height=st.integers(1, 9), width=st.integers(1, 9))
def test_sizes_are_rounded_up(kernel, dilation, expansions, channels, stride, affine, height, width):
    configuration = Configuration(kernel, dilation, tuple(expansions))
    module = MorphableConvolution(channels, configuration, stride, affine).eval()
    x = torch.rand(2, channels, height, width)
    kept = x.clone()
    assert module(x).shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))
    assert torch.equal(x, kept)  # every candidate of an edge reads the same tensor


@pytest.mark.parametrize(
    ("configuration", "offsets"),
    [
        (Configuration(1, 2, (2, 1)), [0]),
        (Configuration(3), [-1, 0, 1]),
        (Configuration(3, 2), [-2, 0, 2]),
        (Configuration(3, 3, (1,)), [-6, -3, 0, 3, 6]),
        (Configuration(5, 1, (2, 1)), list(range(-6, 7))),
    ],
)
def test_all_layers_have_one_kernel_and_one_dilation(configuration, offsets):
    module = MorphableConvolution(2, configuration).double().eval()
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1.0)
    x = torch.ones(1, 2, 17, 17, dtype=torch.float64, requires_grad=True)
    module(x)[0, 0, 8, 8].backward()
    read = (x.grad[0, 0] != 0).nonzero() - 8
    assert read.tolist() == [[row, column] for row in offsets for column in offsets]


# ---------------------------------------------------------------------------------------------- the published cell


def dl1():
    """PR-DARTS' cell DL1 (Fig. 3): all of its convolutions are stacked twice and none is dilated."""
    conv3, conv5 = Configuration(3, 1, (1,)).name, Configuration(5, 1, (1,)).name
    skip, pool = "skip_connect", "max_pool_3x3"
    normal = [(conv5, 0), (conv3, 1), (conv3, 1), (skip, 2), (conv3, 1), (skip, 2), (skip, 0), (skip, 2)]
    reduction = [(conv3, 0), (skip, 1), (pool, 0), (conv5, 2), (conv3, 0), (conv3, 1), (pool, 1), (conv3, 4)]
    cells = {
        kind: CellGenotype(tuple(Edge(source, 2 + i // 2, operation) for i, (operation, source) in enumerate(edges)))
        for kind, edges in (("normal", normal), ("reduction", reduction))
    }
    return Genotype(cells)


def test_the_published_cell_dl1():
    genotype = dl1()
    network = DerivedNetwork(genotype, channels=36, cells=20, classes=10)
    assert count_parameters(network) == 3_174_166
    assert count_macs(network, (1, 3, 32, 32)) == 491_200_128


def test_the_published_cell_survives_json(tmp_path):
    genotype = dl1()
    text = genotype.to_json()
    assert text.count('"sep_conv(kernel=3, dilation=1, expansions=1)"') == 7
    assert text.count('"sep_conv(kernel=5, dilation=1, expansions=1)"') == 2
    again = Genotype.from_json(text)
    assert again == genotype
    assert again.to_json() == text
    assert Genotype.load(genotype.save(tmp_path / "dl1.json")) == genotype
    assert sum(map(is_morphable, again.operations())) == 9


def test_a_genotype_of_darts_names_is_the_same_network():
    named = {Configuration(k, 1, (1,)).name: f"sep_conv_{k}x{k}" for k in (3, 5)}
    genotype = dl1()
    darts = Genotype(
        {
            kind: CellGenotype(
                tuple(Edge(e.source, e.target, named.get(e.operation, e.operation)) for e in cell.edges)
            )
            for kind, cell in genotype.cells
        }
    )
    ours, theirs = (DerivedNetwork(g, channels=4, cells=3).eval() for g in (genotype, darts))
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(ours(x), theirs(x))
