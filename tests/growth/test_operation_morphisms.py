"""Morphisms of separable convolutions: two are exact, four change the function, and all inherit what they say."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth import function_change, morph
from nasbook.operations import (
    MORPHISMS,
    Configuration,
    DilatedConvolution,
    MorphableConvolution,
    SeparableConvolution,
    Zero,
)
from nasbook.operations.batch_norms import SynchronizedBatchNorm2d, batch_norms, synchronize_norms
from nasbook.operations.morphable import widened_place

TOLERANCE = 1e-12
EXACT = ("larger-kernel", "wider")
INEXACT = ("deeper", "smaller-kernel", "larger-dilation", "smaller-dilation")
WIDE = Configuration(3, 2, (2, 1))  # has all morphisms
some = settings(derandomize=True, deadline=None, max_examples=60, report_multiple_bugs=False)

kernels = st.sampled_from([1, 3, 5])
dilations = st.integers(1, 3)
several_expansions = st.lists(st.integers(1, 3), max_size=3)
a_morphism = st.sampled_from(list(MORPHISMS))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(configuration, channels=3, stride=1, affine=True, training=False):
    """A convolution in which everything matters: weights of size 1, and batch norms that have seen data."""
    module = MorphableConvolution(channels, configuration, stride, affine).double()
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter)
        else:  # no channel that a ReLU silences
            nn.init.uniform_(parameter, *(0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5))
    for _ in range(3):
        module.train()(images(channels))
    return module.train(training)


def images(channels=3, size=(8, 7)):
    return torch.randn(4, channels, *size, dtype=torch.float64)


def contents(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def available(configuration):
    return [name for name, function in MORPHISMS.items() if function(configuration) is not None]


def by_hand(state, configuration, stride, x, training):
    """A convolution from the numbers in its state, without its modules."""
    kernel, dilation = configuration.kernel, configuration.dilation
    for layer in range(len(configuration.expansions) + 1):
        depthwise, pointwise = (state[f"{4 * layer + place}.weight"] for place in (1, 2))
        step = 1 if layer else stride
        x = F.conv2d(x.relu(), depthwise, None, step, dilation * (kernel // 2), dilation, groups=len(depthwise))
        x = torch.einsum("oc,bchw->bohw", pointwise[:, :, 0, 0], x)
        norm = f"{4 * layer + 3}"
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        if f"{norm}.weight" in state:
            x = x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]
    return x


def relative(after, before):
    return math.sqrt(float((after - before).square().sum() / before.square().sum()))


# ---------------------------------------------------------------------------------------------- two are exact


@pytest.mark.parametrize("morphism", EXACT)
@given(
    kernel=kernels,
    dilation=dilations,
    expansions=several_expansions,
    channels=st.integers(1, 4),
    stride=st.integers(1, 2),
    affine=st.booleans(),
    training=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 2**31),
)
@some
def test_a_larger_kernel_and_a_wider_layer_compute_the_same(
    morphism, kernel, dilation, expansions, channels, stride, affine, training, last, seed
):
    assume(morphism == "larger-kernel" or expansions)
    torch.manual_seed(seed)
    configuration = Configuration(kernel, dilation, tuple(expansions))
    parent = awake(configuration, channels, stride, affine, training)
    child = morph(parent, morphism, generator(seed))
    x = images(channels).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    expected = by_hand(parent.state_dict(), configuration, stride, x, training)
    assume(float(expected.std()) > 1e-2)  # a single channel may be dead
    assert relative(parent(x).detach(), expected) < TOLERANCE
    assert relative(child(x).detach(), expected) < TOLERANCE
    assert function_change(parent, child, x) < TOLERANCE
    # The passes above moved the running statistics of training mode; they are still those of one function.
    assert function_change(parent.eval(), child.eval(), x) < TOLERANCE


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("morphism", EXACT)
def test_inherited_entries_have_the_gradients_that_they_had(morphism, training):
    configuration = Configuration(3, 2, (2, 1))
    parent = awake(configuration, training=training)
    child, x = morph(parent, morphism, generator()), images()
    slope = torch.randn_like(parent(x))
    for module in (parent, child):
        (module(x) * slope).sum().backward()
    for name, parameter in parent.named_parameters():
        after = child.get_parameter(name).grad
        if morphism == "larger-kernel" and parameter.dim() == 4 and parameter.shape[-1] > 1:
            after = after[..., 1:-1, 1:-1]
        inherited = after[tuple(slice(size) for size in parameter.shape)]
        torch.testing.assert_close(inherited, parameter.grad, rtol=1e-9, atol=1e-10)
        assert parameter.grad.count_nonzero() == parameter.numel()


# ---------------------------------------------------------------------------------------------- four are not


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("expansions", [(), (1,), (2, 1)])
@pytest.mark.parametrize("morphism", INEXACT)
def test_the_others_change_the_function_by_what_a_calculation_by_hand_gives(
    morphism, expansions, stride, affine, training
):
    configuration = Configuration(3, 2, expansions)
    parent, x = awake(configuration, 3, stride, affine, training), images()
    child = morph(parent, morphism, generator())
    state = contents(parent)
    before = by_hand(state, configuration, stride, x, training)
    if morphism == "deeper":
        after = before.relu()  # the identity, behind a ReLU and before a batch norm
        if training:
            after = after - after.mean((0, 2, 3), keepdim=True)
            after = after / (after.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        else:
            after = after / math.sqrt(1 + 1e-5)
    elif morphism == "smaller-kernel":
        for name in state:
            if int(name.split(".")[0]) % 4 == 1:
                state[name] = state[name][:, :, 1:2, 1:2]
        after = by_hand(state, Configuration(1, 2, expansions), stride, x, training)
    else:
        dilation = {"larger-dilation": 3, "smaller-dilation": 1}[morphism]
        after = by_hand(state, Configuration(3, dilation, expansions), stride, x, training)
    change = function_change(parent, child, x)
    assert change == pytest.approx(relative(after, before), rel=1e-9)
    assert 0.01 < change < 100
    torch.testing.assert_close(child(x).detach(), after, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("expansions", [(), (2, 1)])
def test_the_dilation_of_single_taps_changes_nothing(expansions):
    parent, x = awake(Configuration(1, 2, expansions)), images()
    for morphism in ("larger-dilation", "smaller-dilation"):
        assert function_change(parent, morph(parent, morphism, generator()), x) == 0


def test_the_change_of_functions_that_are_known():
    x = torch.tensor([3.0, -4.0]).view(1, 1, 1, 2)
    assert function_change(nn.Identity(), nn.ReLU(), x) == pytest.approx(0.8)  # ‖(0, 4)‖ / ‖(3, −4)‖
    assert function_change(nn.ReLU(), nn.Identity(), x) == pytest.approx(4 / 3)
    assert function_change(nn.Identity(), Zero(), x) == 1
    assert function_change(Zero(), nn.Identity(), x) == math.inf
    assert function_change(Zero(), Zero(), x) == 0


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(training):
    parent = awake(WIDE, training=training)
    child = morph(parent, "deeper", generator())
    x = images().requires_grad_()
    before, random = [contents(parent), contents(child)], torch.get_rng_state()
    first = function_change(parent, child, x)
    assert first == function_change(parent, child, x)
    assert same(contents(parent), before[0])
    assert same(contents(child), before[1])
    assert torch.equal(torch.get_rng_state(), random)
    assert parent.training == child.training == training
    assert all(norm.track_running_stats for norm in (*batch_norms(parent), *batch_norms(child)))
    assert x.grad is None and all(p.grad is None for p in (*parent.parameters(), *child.parameters()))


def test_modes_of_parent_and_child_count():
    parent, x = awake(WIDE), images()
    child = morph(parent, "larger-kernel", generator())
    assert function_change(parent, child, x) < TOLERANCE
    assert function_change(parent, child.train(), x) > 0.01
    assert function_change(parent.train(), child, x) < TOLERANCE


# ---------------------------------------------------------------------------------------------- what is inherited


@pytest.mark.parametrize("expansions", [(), (1,), (2, 1)])
def test_a_larger_kernel_has_a_margin_of_zeros(expansions):
    parent = awake(Configuration(3, 2, expansions))
    before, after = contents(parent), contents(morph(parent, "larger-kernel", generator()))
    assert after.keys() == before.keys()
    for name, value in before.items():
        if int(name.split(".")[0]) % 4 == 1:
            assert torch.equal(after[name], F.pad(value, [1] * 4))
        else:
            assert torch.equal(after[name], value)


@pytest.mark.parametrize("expansions", [(), (1,), (2, 1)])
def test_a_smaller_kernel_is_the_centre(expansions):
    parent = awake(Configuration(5, 1, expansions))
    before, after = contents(parent), contents(morph(parent, "smaller-kernel", generator()))
    assert after.keys() == before.keys()
    for name, value in before.items():
        kernels = int(name.split(".")[0]) % 4 == 1
        assert torch.equal(after[name], value[:, :, 1:4, 1:4] if kernels else value)
    larger = morph(parent, "larger-kernel", generator())
    assert same(contents(morph(larger, "smaller-kernel", generator())), before)


@pytest.mark.parametrize("morphism", ["larger-dilation", "smaller-dilation"])
def test_another_dilation_has_the_weights_as_they_are(morphism):
    parent = awake(WIDE)
    child = morph(parent, morphism, generator())
    assert same(contents(child), contents(parent))
    dilation = {"larger-dilation": 3, "smaller-dilation": 1}[morphism]
    assert [child[place].dilation for place in (1, 5, 9)] == [(dilation, dilation)] * 3


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("expansions", "place"), [((1,), 0), ((3,), 0), ((2, 1), 1), ((2, 2), 0), ((3, 2, 2, 4), 1), ((1, 1, 1), 0)]
)
def test_a_wider_layer_has_new_neurons_behind_the_old_ones(expansions, place, affine):
    parent = awake(Configuration(3, 1, expansions), affine=affine)
    child = morph(parent, "wider", generator())
    before, after = contents(parent), contents(child)
    old = 3 * expansions[place]
    assert after.keys() == before.keys()
    assert child.configuration.expansions[place] == expansions[place] + 1
    written, norm, depthwise, read = 4 * place + 2, 4 * place + 3, 4 * place + 5, 4 * place + 6
    for name, value in before.items():
        inherited = tuple(slice(size) for size in value.shape)
        assert torch.equal(after[name][inherited], value)
        changed = int(name.split(".")[0]) in (written, norm, depthwise, read) and value.dim() > 0
        assert (after[name].shape != value.shape) == changed
    assert after[f"{read}.weight"].shape[1] == old + 3
    assert not after[f"{read}.weight"][:, old:].any()
    for name, inputs in ((f"{written}.weight", before[f"{written}.weight"].shape[1]), (f"{depthwise}.weight", 9)):
        drawn = after[name][old:]
        assert len(drawn) == 3
        assert drawn.unique().numel() == drawn.numel()
        assert float(drawn.abs().max()) <= inputs**-0.5
    fresh = {"running_mean": 0.0, "running_var": 1.0} | ({"weight": 1.0, "bias": 0.0} if affine else {})
    for name, value in fresh.items():
        assert after[f"{norm}.{name}"][old:].tolist() == [value] * 3


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("expansions", [(), (1,), (2, 3)])
def test_a_deeper_convolution_has_the_identity_at_its_back(expansions, affine):
    parent = awake(Configuration(5, 2, expansions), affine=affine)
    before, after = contents(parent), contents(morph(parent, "deeper", generator()))
    assert same({name: after[name] for name in before}, before)
    assert before["3.num_batches_tracked"] > 0
    first = len(parent)
    new = {name.removeprefix(f"{first + 3}."): after[name] for name in after.keys() - before.keys()}
    delta = torch.zeros(3, 1, 5, 5)
    delta[:, 0, 2, 2] = 1
    expected = {
        f"{first + 1}.weight": delta,
        f"{first + 2}.weight": torch.eye(3)[:, :, None, None],
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "num_batches_tracked": torch.tensor(0),
    } | ({"weight": torch.ones(3), "bias": torch.zeros(3)} if affine else {})
    assert same({name: value.to(expected[name].dtype) for name, value in new.items()}, expected)


@pytest.mark.parametrize("morphism", MORPHISMS)
def test_the_parent_stays_and_shares_nothing(morphism):
    parent = awake(WIDE)
    before, modules = contents(parent), repr(parent)
    child = morph(parent, morphism, generator())
    with torch.no_grad():
        for value in child.state_dict().values():
            value.add_(1)
    assert same(contents(parent), before)
    assert (parent.configuration, repr(parent)) == (WIDE, modules)
    assert all(child.get_parameter(name) is not parameter for name, parameter in parent.named_parameters())


@pytest.mark.parametrize("morphism", MORPHISMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_stride_precision_mode_and_affine_are_the_parents(morphism, dtype, training, affine):
    parent = MorphableConvolution(2, WIDE, 2, affine).to(dtype).train(training)
    child = morph(parent, morphism, generator())
    assert (child.channels, child.stride, child.affine, child.training) == (2, 2, affine, training)
    assert all(module.training == training for module in child.modules())
    assert child(torch.zeros(2, 2, 5, 4, dtype=dtype)).shape == (2, 2, 3, 2)
    assert {value.dtype for value in child.state_dict().values()} == {dtype, torch.int64}
    assert {value.device.type for value in child.state_dict().values()} == {"cpu"}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in child.parameters())


@pytest.mark.parametrize("morphism", MORPHISMS)
def test_the_kind_of_batch_norms_is_the_parents(morphism):
    parent = awake(WIDE)
    plain = morph(parent, morphism, generator())
    synchronize_norms(parent)
    child = morph(parent, morphism, generator())
    assert {type(norm) for norm in batch_norms(plain)} == {nn.BatchNorm2d}
    assert {type(norm) for norm in batch_norms(child)} == {SynchronizedBatchNorm2d}
    assert same(contents(child), contents(plain))


@pytest.mark.parametrize("parent", [SeparableConvolution(2, 3), DilatedConvolution(2, 3)])
def test_children_of_darts_operations_are_morphable_convolutions(parent):
    for name in available(parent.configuration):
        child = morph(parent, name, generator())
        assert type(child) is MorphableConvolution  # a separable convolution's configuration is always (k, 1, (1,))
        assert child.configuration == MORPHISMS[name](parent.configuration)


@pytest.mark.parametrize("morphism", MORPHISMS)
def test_only_new_neurons_are_drawn_and_only_by_the_generator(morphism):
    parent, draws, random = awake(WIDE), generator(), torch.get_rng_state()
    children = [contents(morph(parent, morphism, draws)) for _ in range(2)]
    again = contents(morph(parent, morphism, generator()))
    assert torch.equal(torch.get_rng_state(), random)
    assert same(children[0], again)
    assert same(*children) == (morphism != "wider")
    assert torch.equal(draws.get_state(), generator().get_state()) == (morphism != "wider")


# ---------------------------------------------------------------------------------------------- chains


@given(
    kernel=kernels,
    dilation=dilations,
    expansions=several_expansions,
    names=st.lists(a_morphism, min_size=1, max_size=6),
    channels=st.integers(1, 3),
    stride=st.integers(1, 2),
    affine=st.booleans(),
    seed=st.integers(0, 2**31),
)
@some
def test_after_any_chain_a_child_is_as_one_that_is_built_so(
    kernel, dilation, expansions, names, channels, stride, affine, seed
):
    torch.manual_seed(seed)
    configuration, draws = Configuration(kernel, dilation, tuple(expansions)), generator(seed)
    child = awake(configuration, channels, stride, affine)
    for name in names:
        if name not in available(configuration):
            continue
        configuration = MORPHISMS[name](configuration)
        child = morph(child, name, draws)
        assert child.configuration == configuration
    fresh = MorphableConvolution(channels, configuration, stride, affine).double().eval()
    assert repr(child) == repr(fresh)  # sizes, strides, paddings, dilations, groups
    assert [(n, v.shape, v.dtype) for n, v in child.state_dict().items()] == [
        (n, v.shape, v.dtype) for n, v in fresh.state_dict().items()
    ]
    fresh.load_state_dict(child.state_dict())
    x = images(channels).contiguous(memory_format=torch.channels_last)
    assert torch.equal(child(x), fresh(x))
    torch.testing.assert_close(
        child(x).detach(), by_hand(child.state_dict(), configuration, stride, x, False), rtol=1e-9, atol=1e-9
    )
    for one, other in zip(child.modules(), fresh.modules(), strict=True):
        assert getattr(one, "_fast_gradients", None) == getattr(other, "_fast_gradients", None)


@pytest.mark.parametrize("pair", [EXACT, EXACT[::-1]])
def test_exact_morphisms_in_any_order(pair):
    parent, x = awake(WIDE), images()
    child = parent
    for name in (*pair, *pair):
        child = morph(child, name, generator())
    assert child.configuration == Configuration(7, 2, (3, 2))
    assert function_change(parent, child, x) < TOLERANCE


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("morphism", MORPHISMS)
@pytest.mark.parametrize("expansions", [(1,), (2, 1)])
def test_gradients_reach_everything_but_what_writes_new_neurons(morphism, expansions):
    configuration = Configuration(3, 2, expansions)
    child, x = morph(awake(configuration, training=True), morphism, generator()), images()
    slope = torch.randn_like(child(x))
    first, second = (_gradients(child, x, slope) for _ in range(2))
    place = widened_place(configuration)
    for name, gradient in first.items():
        module = int(name.split(".")[0]) - 4 * place
        idle = torch.zeros_like(gradient, dtype=torch.bool)
        if morphism == "wider" and module in (2, 3, 5):  # the pointwise that writes, its norm, the next depthwise
            idle[3 * configuration.expansions[place] :] = True
        assert torch.equal(gradient == 0, idle), name
    # After one step the new neurons' outgoing weights are no longer zero, and everything learns.
    assert all(gradient.all() for gradient in second.values())


def _gradients(module, x, slope):
    """The gradients at these weights; then a step along them."""
    module.zero_grad()
    (module(x) * slope).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 1e-3 * parameter.grad
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


# ---------------------------------------------------------------------------------------------- wrong input


def test_unknown_morphisms():
    parent = MorphableConvolution(2, WIDE)
    with pytest.raises(InvalidInput, match=r"^Unknown morphism 'widen'\. Did you mean 'wider'.* Valid: larger-ke"):
        morph(parent, "widen", generator())
    with pytest.raises(InvalidInput, match=r"^Unknown morphism ''\."):
        morph(parent, "", generator())


@pytest.mark.parametrize(
    ("configuration", "morphism", "others"),
    [
        (Configuration(3), "wider", "larger-kernel, deeper, smaller-kernel, larger-dilation"),
        (Configuration(1, 2), "smaller-kernel", "larger-kernel, deeper, larger-dilation, smaller-dilation"),
        (Configuration(1, 1, (1,)), "smaller-dilation", "larger-kernel, wider, deeper, larger-dilation"),
    ],
)
def test_morphisms_that_a_configuration_does_not_have(configuration, morphism, others):
    with pytest.raises(InvalidInput) as raised:
        morph(MorphableConvolution(2, configuration), morphism, generator())
    assert str(raised.value) == f"{configuration.name} has no morphism {morphism!r}; it has {others}."


def test_functions_of_different_shapes_are_not_compared():
    parent, child = (MorphableConvolution(2, WIDE, stride) for stride in (1, 2))
    with pytest.raises(InvalidInput, match=r"^The parent's outputs have the shape \(1, 2, 5, 5\), the child's \(1, 2"):
        function_change(parent.eval(), child.eval(), torch.zeros(1, 2, 5, 5))
