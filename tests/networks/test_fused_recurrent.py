"""The fused recurrent cells against the readable ones: values, gradients, second derivatives, and when they step aside.

A comparison is only worth what it can find. So the main one is also made with planted faults, and has to fail.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import nasbook.networks.fused_recurrent_function
import nasbook.networks.fused_recurrent_workspaces
from nasbook.genotypes import Space
from nasbook.networks import RECURRENT_BACKBONES, RecurrentCell
from nasbook.networks.fused_recurrent import FUSED_CELLS
from nasbook.operations.recurrent import ActivatedMap, Gate
from nasbook.supernets import RecurrentSearchNetwork
from nasbook.training import BilevelUpdate, FirstOrder, SecondOrder, sequence_loss

BOUND = 1e-9
"""Largest difference between the two forms in float64, as a share of the tensor's largest number."""

FUNCTION = nasbook.networks.fused_recurrent_function
WORKSPACES = nasbook.networks.fused_recurrent_workspaces
OF_MODULES = ("two-to-one", "darts")
"""Backbones whose candidates are modules."""


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A cell and how it is called."""

    backbone: str
    nodes: int = 3
    inputs: int = 3
    hidden: int = 4
    batch: int = 2
    steps: int = 3
    initial: bool = True
    """Whether the state before the first step is given."""
    left_out: tuple[tuple[int, int], ...] = ()
    """Edges that the cell does without, besides those that its backbone has not."""
    pools: tuple[tuple[str, ...], ...] = ()
    output: tuple[int, ...] = ()
    seed: int = 0

    @property
    def space(self) -> Space:
        space = RECURRENT_BACKBONES[self.backbone].space(self.nodes)
        space = dataclasses.replace(space, left_out=space.left_out + self.left_out)
        return space.with_pools(self.pools) if self.pools else space

    def cells(self, dtype: torch.dtype = torch.float64) -> tuple[RecurrentCell, RecurrentCell]:
        """The readable and the fused one, with the same weights."""
        torch.manual_seed(self.seed)
        arguments = self.space, self.inputs, self.hidden, self.output
        readable = RECURRENT_BACKBONES[self.backbone].cell(*arguments).to(dtype)
        for parameter in readable.parameters():
            nn.init.uniform_(parameter, -0.9, 0.9)  # large enough that everything shows
        fused = FUSED_CELLS[self.backbone](*arguments).to(dtype)
        fused.load_state_dict(readable.state_dict())
        return readable, fused

    def arguments(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

        space = self.space
        found = {
            "inputs": drawn(self.steps, self.batch, self.inputs),
            "coefficients": drawn(len(space.edges), len(space.operations)),
        }
        return {**found, "state": drawn(self.batch, self.hidden)} if self.initial else found

    def seeds(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """A gradient of the states, the same in every call."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = self.steps, self.batch, self.hidden
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


# Looked up here, as checked functions draw random numbers, which a strategy must not.
SOURCES = {
    (name, node): backbone.sources(node) for name, backbone in RECURRENT_BACKBONES.items() for node in range(1, 5)
}


@st.composite
def cases(draw: st.DrawFn, backbones: tuple[str, ...] = tuple(FUSED_CELLS)) -> Case:
    backbone = RECURRENT_BACKBONES[draw(st.sampled_from(backbones))]
    nodes = draw(st.integers(1, 4))
    left_out, edges = [], []
    for node in range(1, nodes + 1):
        sources = SOURCES[backbone.name, node]
        kept = draw(st.lists(st.sampled_from(sources), min_size=1, unique=True))
        left_out += [(source, node) for source in sources if source not in kept]
        edges += [None] * len(kept)
    pools: list[list[str]] = []
    if draw(st.booleans()):
        names = [*backbone.operations, *(f"{name}-2" for name in backbone.operations if name != "none"), "tanh-3"]
        pool = st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True)
        pools = [draw(pool.filter(lambda names: names != ["none"])) for _ in edges]
    output: list[int] = []
    if draw(st.booleans()):
        most = nodes if backbone.name == "highway" else 1
        output = draw(st.lists(st.integers(1, nodes), min_size=1, max_size=most, unique=True))
    return Case(
        backbone.name,
        nodes,
        *(draw(st.integers(1, 4)) for _ in range(3)),
        steps=draw(st.integers(1, 4)),
        initial=draw(st.booleans()),
        left_out=tuple(left_out),
        pools=tuple(tuple(pool) for pool in pools),
        output=tuple(output),
        seed=draw(st.integers(0, 99)),
    )


def results(cell: RecurrentCell, case: Case, *, second: bool = False, dtype: torch.dtype = torch.float64):
    """The states and all gradients of a cell; or those of the sum of the squares of these gradients."""
    arguments = case.arguments(dtype)
    at = {**arguments, **dict(cell.named_parameters())}
    states = cell(**arguments)
    found = {"states": states}
    loss = (states * case.seeds(dtype)).sum()
    gradients = torch.autograd.grad(loss, list(at.values()), create_graph=second, allow_unused=True)
    if second:
        loss = sum(g.square().sum() for g in gradients if g is not None)
        gradients = torch.autograd.grad(loss, list(at.values()), allow_unused=True)
    for name, gradient in zip(at, gradients, strict=True):
        found[name] = torch.zeros_like(at[name]) if gradient is None else gradient
    return found


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """For each tensor the largest difference, as a share of the expected tensor's largest number."""
    assert found.keys() == expected.keys()
    shares = {}
    for name, reference in expected.items():
        assert found[name].shape == reference.shape and found[name].dtype == reference.dtype, name
        if reference.numel():
            reference = reference.detach()
            shares[name] = float((found[name].detach() - reference).abs().max() / reference.abs().max().clamp_min(1e-3))
    return shares


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = BOUND) -> None:
    wrong = {name: share for name, share in differences(found, expected).items() if not share <= bound}
    assert not wrong, f"differ by more than {bound:g}: {wrong}"


@contextlib.contextmanager
def only_fused():
    """Fails if a cell takes the readable way."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("took the readable way")

    with mock.patch.object(RecurrentCell, "forward", refuse):
        yield


COPIES = Case(
    "two-to-one", 2, pools=(("tanh", "sum", "tanh-2", "product", "sum-2"), ("product-2", "product", "relu", "sum-3"))
)
SPARSE = Case("darts", 4, left_out=((1, 3), (2, 4)), pools=(("tanh", "none"), ("relu",), *[("identity", "tanh-2")] * 3))
SPREAD = Case("darts", 4, left_out=((2, 3), (1, 4)))
SUM_ALONE = Case("two-to-one", 1, pools=(("sum",),))
APART = Case("highway", 3, left_out=((1, 2), (1, 3)), output=(1, 3))
SMALLER = Case("darts", 4, output=(2,), initial=False)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(case=cases())
@example(case=Case("two-to-one"))
@example(case=Case("darts"))
@example(case=Case("highway"))
@example(case=COPIES)
@example(case=SPREAD)
@example(case=SMALLER)
@example(case=SUM_ALONE)
@example(case=APART)
def test_values_and_gradients(case):
    readable, fused = case.cells()
    expected = results(readable, case)
    with only_fused():
        found = results(fused, case)
    assert_same(found, expected)
    with torch.no_grad(), only_fused():
        assert_same({"states": fused(**case.arguments())}, {"states": expected["states"]})


@settings(derandomize=True, deadline=None, max_examples=30)
@given(case=cases())
@example(case=Case("two-to-one"))
@example(case=Case("darts"))
@example(case=COPIES)
@example(case=SPREAD)
def test_second_derivatives(case):
    readable, fused = case.cells()
    assert_same(results(fused, case, second=True), results(readable, case, second=True))


@pytest.mark.parametrize("case", [Case(name, 2, 2, 2) for name in FUSED_CELLS] + [COPIES, SPARSE, SPREAD])
def test_finite_differences(case):
    case = dataclasses.replace(case, inputs=2, hidden=2, steps=2)
    _, fused = case.cells()
    arguments = case.arguments()
    parameters = {name: p.detach().requires_grad_() for name, p in fused.named_parameters()}
    names = list(parameters)

    def states(*tensors):
        given = dict(zip(arguments, tensors, strict=False))
        return functional_call(fused, dict(zip(names, tensors[len(given) :], strict=True)), kwargs=given)

    tensors = (*arguments.values(), *parameters.values())
    assert torch.autograd.gradcheck(states, tensors)
    assert torch.autograd.gradgradcheck(states, tensors, fast_mode=True)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_single_precision(name):
    case = Case(name, 3, hidden=8, batch=4, steps=6)
    readable, fused = case.cells(torch.float32)
    assert_same(
        results(fused, case, dtype=torch.float32), results(readable, case, dtype=torch.float32), bound=1e-3
    )


def test_a_saturated_tanh_is_exact_enough():
    """2 sigmoid(2a) − 1 rounds to ±1 where tanh does, and loses no more than one rounding of 1 near zero."""
    case = Case("two-to-one", 1, 1, 1, 1, 1, pools=(("tanh",),))
    readable, fused = case.cells()
    for x in (0.0, 1e-12, -3e-5, 1.0, -30.0, 800.0):
        inputs = torch.full((1, 1, 1), x, dtype=torch.float64)
        ones = torch.ones(1, 1, dtype=torch.float64)
        torch.testing.assert_close(fused(inputs, ones), readable(inputs, ones), rtol=0, atol=3e-16)


# --- planted faults ---------------------------------------------------------------------------------------------------


FAULTS = {
    "slopes": (torch, "sign", lambda values, out: out.fill_(1)),
    "the gradients of maps": (FUNCTION, "_products", lambda gradients, x: (x.T @ gradients).T * (1 + 1e-8)),
    "a node late": (
        FUNCTION.NodeWorkspace,
        "of_node",
        lambda self, node, values: values[max(node - 1, 0) :: self.graph.nodes][: self.steps],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    place, name, wrong = FAULTS[fault]
    case = Case("two-to-one")
    readable, fused = case.cells()
    expected = results(readable, case)
    with mock.patch.object(place, name, wrong), pytest.raises(AssertionError, match="differ by more"):
        assert_same(results(fused, case), expected)


def test_a_fault_in_the_second_derivatives_is_found():
    case = Case("darts")
    readable, fused = case.cells()
    right = FUNCTION.Graph.plain

    def wrong(graph, *tensors):
        *others, coefficients = tensors
        return right(graph, *others, coefficients.detach()) + 0 * coefficients.sum()

    expected = results(readable, case, second=True)
    with (
        mock.patch.object(FUNCTION.Graph, "plain", wrong),
        pytest.raises(AssertionError, match="differ by more"),
    ):
        assert_same(results(fused, case, second=True), expected)


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUSED_CELLS)
@pytest.mark.parametrize("wanted", ["inputs", "coefficients", "state", "weights"])
def test_single_gradients(name, wanted):
    """Each alone: the architecture step has frozen weights, a derived cell has a buffer of coefficients."""
    case = Case(name)
    readable, fused = case.cells()
    expected = results(readable, case)
    fused.requires_grad_(wanted == "weights")
    arguments = {key: tensor.detach().requires_grad_(key == wanted) for key, tensor in case.arguments().items()}
    with only_fused():
        loss = (fused(**arguments) * case.seeds()).sum()
    at = dict(fused.named_parameters()) if wanted == "weights" else {wanted: arguments[wanted]}
    found = dict(zip(at, torch.autograd.grad(loss, list(at.values())), strict=True))
    assert_same(found, {key: expected[key] for key in found})


@pytest.mark.parametrize("name", OF_MODULES)
def test_one_parameter_alone(name):
    case = Case(name)
    readable, fused = case.cells()
    expected = results(readable, case)
    fused.requires_grad_(False)
    arguments = {key: tensor.detach() for key, tensor in case.arguments().items()}
    for key, parameter in fused.named_parameters():
        parameter.requires_grad_()
        (found,) = torch.autograd.grad((fused(**arguments) * case.seeds()).sum(), [parameter])
        parameter.requires_grad_(False)
        assert_same({key: found}, {key: expected[key]})


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_a_graph_may_be_used_twice(name):
    case = Case(name)
    _, fused = case.cells()
    parameters = list(fused.parameters())
    loss = (fused(**case.arguments()) * case.seeds()).sum()
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters)
    assert all(map(torch.equal, first, again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_states_may_be_changed_in_place(name):
    """As those of the readable cell, which are stacked."""
    case = Case(name)
    readable, fused = case.cells()
    gradients = []
    for cell in (readable, fused):
        states = cell(**case.arguments())
        assert states.is_contiguous()
        loss = (states.mul_(2) * case.seeds()).sum()
        gradients.append(torch.autograd.grad(loss, list(cell.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_inputs_of_any_layout(name):
    case = Case(name)
    readable, fused = case.cells()
    arguments = case.arguments()
    inputs = arguments["inputs"].detach().transpose(0, 1).contiguous().transpose(0, 1)
    coefficients = arguments["coefficients"].detach().T.contiguous().T
    state = arguments["state"].detach().T.contiguous().T
    seeds = case.seeds().transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(tensor.is_contiguous() for tensor in (inputs, coefficients, state, seeds))
    found = []
    for cell in (readable, fused):
        at = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in (inputs, coefficients)]
        states = cell(*at, state)
        gradients = torch.autograd.grad((states * seeds).sum(), [*at, *cell.parameters()])
        found.append(dict(enumerate((states, *gradients))))
    assert_same(found[1], found[0])


def test_the_same_tensor_as_two_arguments():
    """The first input is the state, and the gradient of a gradient counts both."""
    case = Case("darts", inputs=4, hidden=4, steps=1)
    found = []
    for cell in case.cells():
        arguments = case.arguments()
        state = arguments["state"]
        states = cell(state[None], arguments["coefficients"], state)
        (gradient,) = torch.autograd.grad((states * case.seeds()).sum(), [state], create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), [state])
        found.append({"gradient": gradient, "second": second})
    assert_same(found[1], found[0])


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_gradients_are_contiguous(name):
    """Optimisers update tensors of one layout together."""
    case = Case(name)
    _, fused = case.cells()
    loss = (fused(**case.arguments()) * case.seeds()).sum()
    assert all(gradient.is_contiguous() for gradient in torch.autograd.grad(loss, list(fused.parameters())))


# --- parameters, copies, modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_state_dicts_are_interchangeable(name):
    case = Case(name, seed=1)
    readable, fused = case.cells()
    assert list(fused.state_dict()) == list(readable.state_dict())
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in readable.named_modules()]
    assert not list(fused.named_buffers())
    torch.manual_seed(3)
    one = FUSED_CELLS[name](case.space, 3, 4)
    torch.manual_seed(3)
    other = RECURRENT_BACKBONES[name].cell(case.space, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    other.load_state_dict(fused.state_dict())


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_parameters_are_read_in_every_pass(name):
    case = Case(name)
    readable, fused = case.cells()
    arguments = {key: tensor.detach() for key, tensor in case.arguments().items()}
    fused(**arguments)
    swapped = {key: (p.detach() * 0.5).requires_grad_() for key, p in readable.named_parameters()}
    found = []
    for cell in (readable, fused):
        states = functional_call(cell, swapped, kwargs=arguments)
        gradients = torch.autograd.grad((states * case.seeds()).sum(), list(swapped.values()))
        found.append({"states": states, **dict(zip(swapped, gradients, strict=True))})
    assert_same(found[1], found[0])
    with torch.no_grad():
        for cell in (readable, fused):
            for parameter in cell.parameters():
                parameter.mul_(0.5)
    assert_same({"states": fused(**arguments)}, {"states": found[0]["states"]})


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_copies_are_independent(name):
    case = Case(name)
    _, fused = case.cells()
    arguments = case.arguments()
    before = fused(**arguments)
    others = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    with only_fused():
        for other in others:
            assert torch.equal(other(**arguments), before)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_training_after_inference_mode(name):
    """What is kept between passes must not be born in inference mode."""
    case = Case(name)
    readable, fused = case.cells()
    with torch.inference_mode(), only_fused():
        fused(**{key: tensor.detach() for key, tensor in case.arguments().items()})
    assert_same(results(fused, case), results(readable, case))


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_a_change_of_precision(name):
    case = Case(name)
    _, fused = case.cells()
    fused(**case.arguments())
    fused.float()
    readable = case.cells()[0].float()
    with only_fused():
        found = results(fused, case, dtype=torch.float32)
    assert_same(found, results(readable, case, dtype=torch.float32), bound=1e-4)


# --- workspaces -------------------------------------------------------------------------------------------------------


def free(cell) -> list:
    return list(cell._plan.workspaces.free)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_passes_that_wait_for_their_backward_pass_do_not_share(name):
    """Two graphs at once, taken back in either order; then the workspaces are used again."""
    first, second = Case(name, seed=1), Case(name, seed=2)
    readable, fused = first.cells()
    expected = [results(readable, case) for case in (first, second)]
    for order in ((0, 1), (1, 0)):
        pending = []
        for case in (first, second):
            arguments = case.arguments()
            at = {**arguments, **dict(fused.named_parameters())}
            pending.append((at, fused(**arguments), case.seeds()))
        for place in order:
            at, states, seeds = pending[place]
            gradients = torch.autograd.grad((states * seeds).sum(), list(at.values()))
            assert_same({"states": states, **dict(zip(at, gradients, strict=True))}, expected[place])
        assert not free(fused)
        del pending, states, gradients
        assert len(free(fused)) == 2
    once = free(fused)
    results(fused, first)
    assert set(map(id, free(fused))) == set(map(id, once))


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_results_outlive_their_workspace(name):
    """Also with one node, where the states are all the values there are."""
    for case in (Case(name), Case(name, 1, batch=1, hidden=1, inputs=1)):
        _, fused = case.cells()
        found = results(fused, case)
        kept = {key: tensor.detach().clone() for key, tensor in found.items()}
        results(fused, dataclasses.replace(case, seed=case.seed + 7))
        with torch.no_grad():
            fused(**{key: 3 * tensor for key, tensor in case.arguments().items()})
        assert len(free(fused)) == 1 or not found  # the same one, three times
        assert all(torch.equal(found[key], tensor) for key, tensor in kept.items())


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_few_workspaces_are_kept(name):
    case = Case(name)
    readable, fused = case.cells()
    for steps in (1, 2, 3, 4, 5, 6, 2):
        other = dataclasses.replace(case, steps=steps, batch=1 + steps % 3)
        assert_same(results(fused, other), results(readable, other))
    assert len(free(fused)) == 4
    assert not free(copy.deepcopy(fused))
    assert abs(len(pickle.dumps(fused)) - len(pickle.dumps(copy.deepcopy(fused)))) < 200


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_threads_do_not_share(name):
    """Passes of one cell on several threads at once."""
    case = Case(name, steps=6)
    readable, fused = case.cells()
    seeds = range(8)
    expected = [results(readable, dataclasses.replace(case, seed=seed))["states"] for seed in seeds]

    def states(seed):
        found = [fused(**dataclasses.replace(case, seed=seed).arguments()) for _ in range(20)]
        assert all(torch.equal(found[0], other) for other in found)
        return found[0]

    with ThreadPoolExecutor(4) as pool:
        for wanted, found in zip(expected, pool.map(states, seeds), strict=True):
            torch.testing.assert_close(found, wanted, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_large_workspaces_are_not_kept(name):
    case = Case(name)
    readable, fused = case.cells()
    longer = dataclasses.replace(case, steps=4)
    expected = [results(readable, each) for each in (case, longer)]
    with mock.patch.object(WORKSPACES.Workspaces, "most_numbers", 10):
        assert_same(results(fused, case), expected[0])
    assert not free(fused)
    results(fused, case)
    (kept,) = free(fused)
    numbers = sum(tensor.numel() for tensor in kept.kept)
    with mock.patch.object(WORKSPACES.Workspaces, "most_numbers", 2 * numbers):
        assert_same(results(fused, longer), expected[1])
    (other,) = free(fused)
    assert other is not kept and other.kind.steps == 4  # the older one went


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_a_cell_that_is_gone_leaves_nothing_behind(name):
    """No cycle keeps its workspaces until the garbage collector runs."""
    case = Case(name)
    _, fused = case.cells()
    results(fused, case)
    (workspace,) = map(weakref.ref, free(fused))
    gc.disable()
    try:
        fused._plan.workspaces.free.clear()
        assert workspace() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_tensors_without_numbers(name):
    """Fake tensors and the meta device give shapes, and don't disturb later passes."""
    case = Case(name)
    readable, fused = case.cells()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = {key: mode.from_tensor(tensor.detach()) for key, tensor in case.arguments().items()}
        assert fused(**given).shape == (3, 2, 4)
    meta = copy.deepcopy(fused).to("meta")
    assert meta(**{key: tensor.detach().to("meta") for key, tensor in case.arguments().items()}).shape == (3, 2, 4)
    assert_same(results(fused, case), results(readable, case))


# --- stepping aside ---------------------------------------------------------------------------------------------------


class Halved(Gate):
    """A candidate that computes something else than what the cell was built from."""

    def forward(self, x, h):
        return super().forward(x, h) / 2


class HalvedMap(ActivatedMap):
    """The same for DARTS' cell."""

    def forward(self, z):
        return super().forward(z) / 2


@pytest.mark.parametrize("name", OF_MODULES)
@pytest.mark.parametrize("change", ["module", "hook", "hook before", "backward hook", "activation", "method"])
def test_a_foreign_candidate_is_called(name, change):
    case = Case(name)
    cells = case.cells()
    calls = []
    for cell in cells:
        candidates = cell.candidates(1, 2)
        other = candidates["tanh"]
        if change == "module":
            kind, arguments = (Halved, (3, 4)) if name == "two-to-one" else (HalvedMap, (4, 4))
            candidates["tanh"] = kind("tanh", *arguments).double()
            candidates["tanh"].load_state_dict(other.state_dict())
        elif change == "hook":
            other.register_forward_hook(lambda module, inputs, output: output / 2)
        elif change == "hook before":
            other.register_forward_pre_hook(lambda module, inputs: tuple(tensor / 2 for tensor in inputs))
        elif change == "backward hook":
            other.register_full_backward_hook(lambda module, inputs, outputs: calls.append(module))
        elif change == "activation":
            other.activation = "relu"
        else:
            other.forward = lambda *inputs, other=other: type(other).forward(other, *inputs) / 2
    readable, fused = cells
    unchanged = results(case.cells()[1], case)
    found = results(fused, case)
    assert_same(found, results(readable, case), bound=0)
    if change == "backward hook":
        assert len(calls) == 2 * case.steps
    else:
        assert differences(found, unchanged)["states"] > 1e-3


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_wrong_input_says_what_the_readable_cell_says(name):
    case = Case(name)
    arguments = {key: tensor.detach() for key, tensor in case.arguments().items()}
    wrong = {
        "too few coefficients": {"coefficients": arguments["coefficients"][1:]},
        "wider inputs": {"inputs": torch.zeros(3, 2, 7, dtype=torch.float64)},
        "another precision": {"inputs": arguments["inputs"].float(), "state": arguments["state"].float()},
        "wider state": {"state": torch.zeros(2, 9, dtype=torch.float64)},
        "no time": {"inputs": arguments["inputs"][:0]},
    }
    for what, change in wrong.items():
        messages = []
        for cell in case.cells():
            with pytest.raises((RuntimeError, ValueError)) as refused:
                cell(**{**arguments, **change})
            messages.append((refused.type, str(refused.value)))
        assert messages[0] == messages[1], what


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_what_the_readable_cell_accepts(name):
    """An empty batch, coefficients of more operations than there are, of another precision: readable, as ever."""
    case = Case(name)
    readable, fused = case.cells()
    arguments = {key: tensor.detach() for key, tensor in case.arguments().items()}
    accepted = [
        {"inputs": arguments["inputs"][:, :0], "state": arguments["state"][:0]},
        {"coefficients": torch.cat([arguments["coefficients"], arguments["coefficients"][:, :1]], dim=1)},
        {"coefficients": arguments["coefficients"].float()},
    ]
    for change in accepted:
        expected, found = (cell(**{**arguments, **change}) for cell in (readable, fused))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_autocast(name):
    case = Case(name)
    readable, fused = case.cells(torch.float32)
    arguments = case.arguments(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = readable(**arguments), fused(**arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", FUSED_CELLS)
def test_functional_transforms(name):
    case = Case(name)
    found = []
    for cell in case.cells():
        arguments = {key: tensor.detach() for key, tensor in case.arguments().items()}

        def loss(parameters, cell=cell, arguments=arguments):
            return (functional_call(cell, parameters, kwargs=arguments) * case.seeds()).sum()

        parameters = {key: p.detach() for key, p in cell.named_parameters()}
        found.append(torch.func.grad(loss)(parameters))
        many = torch.func.vmap(lambda inputs, cell=cell, a=arguments: cell(inputs, a["coefficients"], a["state"]))
        found[-1]["many"] = many(torch.stack([arguments["inputs"], 2 * arguments["inputs"]]))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("training", [True, False])
def test_a_normalised_highway(training):
    case = Case("highway", batch=4)
    cells = [
        kind(case.space, case.inputs, case.hidden, normalize=True).double()
        for kind in (RECURRENT_BACKBONES["highway"].cell, FUSED_CELLS["highway"])
    ]
    cells[1].load_state_dict(cells[0].state_dict())
    found = []
    for cell in cells:
        cell.norm.running_mean += 0.3
        found.append({**results(cell.train(training), case), **dict(cell.named_buffers())})
    assert_same(found[1], found[0])


# --- networks ---------------------------------------------------------------------------------------------------------

TASK = SimpleNamespace(task="language", features=7)


def networks(name: str, layers: int = 2) -> tuple[RecurrentSearchNetwork, RecurrentSearchNetwork]:
    """The readable and the fused supernet, with the same weights and architecture parameters."""
    backbone = RECURRENT_BACKBONES[name]
    space = backbone.space(3, layers)
    spaces = dict.fromkeys(space.kinds, space)
    readable, fused = (
        RecurrentSearchNetwork(spaces, TASK, 4, engine=engine).double() for engine in ("readable", "fused")
    )
    fused.load_state_dict(readable.state_dict())
    return readable, fused


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(7, (3, 6), generator=generator)
    return drawn[:, :-1], drawn[:, 1:]


@pytest.mark.parametrize("name", FUSED_CELLS)
@pytest.mark.parametrize("update", [FirstOrder, SecondOrder])
def test_searches_of_both_engines_go_the_same_way(name, update):
    """Stacked cells, several steps: weights and architecture end where the readable supernet's do."""
    ends = []
    for network in networks(name):
        weights = torch.optim.SGD(network.weights(), lr=0.3, momentum=0.9, weight_decay=1e-3)
        architecture = torch.optim.Adam(network.architecture(), lr=0.1)
        step: BilevelUpdate = update(network, weights, architecture, loss=sequence_loss)
        for number in range(3):
            step.step(tokens(2 * number), tokens(2 * number + 1))
        ends.append({key: p.detach() for key, p in network.named_parameters()})
    assert_same(ends[1], ends[0], bound=1e-7)  # Adam divides by gradients that are nearly zero
    start = {key: p.detach() for key, p in networks(name)[0].named_parameters()}
    assert any(not torch.equal(start[key], end) for key, end in ends[1].items() if key.startswith("relaxations."))


class Calls(TorchDispatchMode):
    """Counts the calls that reach torch's kernels, views included."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FUSED_CELLS)
@pytest.mark.parametrize("wanted", ["all", "coefficients"])
def test_calls(name, wanted):
    """Small cells cost what their calls cost: not a third of the readable cell's may be left."""
    case = Case(name, 4, inputs=7, hidden=7, batch=5, steps=10, initial=False)
    counts = []
    for cell in case.cells():
        cell.requires_grad_(wanted == "all")
        arguments = {"inputs": case.arguments()["inputs"].detach(), "coefficients": case.arguments()["coefficients"]}
        at = [arguments["coefficients"], *(p for p in cell.parameters() if p.requires_grad)]
        torch.autograd.grad(cell(**arguments).sum(), at)  # which makes what all passes use
        with Calls() as calls:
            torch.autograd.grad(cell(**arguments).sum(), at)
        counts.append(calls.count)
    assert 3 * counts[1] < counts[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("name", FUSED_CELLS)
def test_cuda(name):
    case = Case(name)
    readable, fused = case.cells()
    expected = results(readable, case)
    results(fused, case)
    fused.cuda()
    arguments = {key: tensor.detach().cuda().requires_grad_() for key, tensor in case.arguments().items()}
    with only_fused():
        states = fused(**arguments)
    at = {**arguments, **dict(fused.named_parameters())}
    gradients = torch.autograd.grad((states * case.seeds().cuda()).sum(), list(at.values()))
    found = {"states": states, **dict(zip(at, gradients, strict=True))}
    assert_same({key: tensor.cpu() for key, tensor in found.items()}, expected)
