"""The fused cell with candidates of its own on every edge, against the readable one.

Every comparison is also made with cells that have a planted fault, and has to fail.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
from collections.abc import Mapping
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nasbook.supernets.fused
import nasbook.supernets.ragged
from nasbook.analysis import saved_activation_bytes
from nasbook.genotypes import DARTS_OPERATIONS, ZERO, Space
from nasbook.networks import CellPlacement
from nasbook.operations import Configuration, list_operations
from nasbook.operations.pointwise import in_layout_of
from nasbook.supernets import FusedCell, FusedRaggedCell, SearchCell, SearchNetwork
from nasbook.supernets.search_network import RAGGED_ENGINES
from nasbook.training import FirstOrder, SecondOrder, kept_statistics

Tensors = dict[str, Tensor]

ENGINES = ("fused", "readable")
CONFIGURATIONS = (
    Configuration(1),
    Configuration(1, 2, (1,)),
    Configuration(3),
    Configuration(3, 1, (1,)),
    Configuration(3, 2, (3,)),
    Configuration(3, 3, (1,)),
    Configuration(5, 1, (2, 1)),
    Configuration(5, 4),
    Configuration(7),
    Configuration(7, 1, (1,)),
    Configuration(7, 2, (1, 2, 1)),
)
OPERATIONS = (*list_operations(), *(configuration.name for configuration in CONFIGURATIONS))
SEVERAL = (
    ("max_pool_3x3", "skip_connect", Configuration(3).name, Configuration(5).name, Configuration(5, 1, (1,)).name),
    ("avg_pool_3x3", ZERO, Configuration(3).name, Configuration(7, 2, (2, 1)).name, "conv_1x1"),
    ("skip_connect", Configuration(3, 1, (1,)).name, Configuration(5, 1, (1,)).name, Configuration(1, 2, (3,)).name),
    (Configuration(3, 3).name,),
    ("skip_connect", "max_pool_3x3", "avg_pool_3x3"),
)
"""Pools of a cell of two nodes that share configurations, lack poolings, and have all that is special."""


def assert_same(values: Mapping[str, Tensor], expected: Mapping[str, Tensor], bound: float = 1e-9) -> None:
    """No difference is larger than a share of the tensor's largest number; numbers below 0.001 count as 0.001."""
    assert values.keys() == expected.keys()
    wrong = {}
    for name, value in values.items():
        reference = expected[name]
        assert value.shape == reference.shape and value.dtype == reference.dtype, name
        if value.numel():
            error = (value.double() - reference.double()).abs().max() / reference.double().abs().max().clamp_min(1e-3)
            if not error <= bound:
                wrong[name] = float(error)
    assert not wrong, f"differ by more than {bound:g}: {wrong}"


# ---------------------------------------------------------------------------------------------- cells


@dataclasses.dataclass(frozen=True)
class Case:
    """A cell, and how it is called."""

    pools: tuple[tuple[str, ...], ...] = SEVERAL
    nodes: int = 2
    reduces: bool = False
    channels: int = 3
    batch: int = 4
    height: int = 5
    width: int = 6
    small: bool = True
    """Whether convolutions run side by side and inputs together; otherwise one by one."""
    channels_last: bool = True
    """The layout within the cell: channels-last, as on a CPU, or as on other devices."""
    training: bool = True
    left_out: tuple[tuple[int, int], ...] = ()
    seed: int = 0

    @property
    def space(self) -> Space:
        return Space(nodes=self.nodes, left_out=self.left_out).with_pools(self.pools)

    def cell(self, engine: type[SearchCell]) -> SearchCell:
        """The same cell for every engine, with running statistics that are not those of a new cell."""
        kind = "reduction" if self.reduces else "normal"
        torch.manual_seed(self.seed)
        cell = engine(self.space, CellPlacement(kind, self.channels, (3, 4), self.reduces, False))
        for name, buffer in cell.double().train(self.training).named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        return cell

    def inputs(self) -> Tensors:
        generator = torch.Generator().manual_seed(self.seed + 1)
        sizes = {
            "older": (self.batch, 3, self.height, self.width),
            "newer": (self.batch, 4, self.height, self.width),
            "alpha": (len(self.space.edges), len(self.space.operations)),
        }
        return {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}

    def run(self, cell: SearchCell, inputs: Tensors) -> Tensor:
        """The cell's output under the circumstances of this case."""
        fused = nasbook.supernets.fused
        with contextlib.ExitStack() as stack:
            limit = 2**60 if self.small else 0
            stack.enter_context(mock.patch.object(fused, "TOGETHER", limit))
            stack.enter_context(mock.patch.object(nasbook.supernets.ragged, "SMALL", limit))
            if not self.channels_last:
                stack.enter_context(mock.patch.object(fused, "in_fast_layout", lambda x: in_layout_of(x, x)))
            return cell(inputs["older"], inputs["newer"], inputs["alpha"])

    def evaluate(self, engine: type[SearchCell], order: int = 1) -> Tensors:
        """The output, its gradients to everything, the gradients of a random sum of these, and the buffers."""
        cell = self.cell(engine)
        inputs = {name: value.requires_grad_() for name, value in self.inputs().items()}
        leaves = {**inputs, **dict(cell.named_parameters())}
        generator = torch.Generator().manual_seed(self.seed + 2)
        output = self.run(cell, inputs)
        results = {"output": output.detach()}
        roots = [output]
        for derivative in range(1, order + 1):
            # Drawn in one order of the numbers, whatever the layout of the root.
            drawn = [torch.randn(root.shape, generator=generator, dtype=root.dtype) for root in roots]
            weighted = [(root * weight).sum() for root, weight in zip(roots, drawn, strict=True) if root.requires_grad]
            loss = torch.stack(weighted).sum()
            roots = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=derivative < order, materialize_grads=True
            )
            named = zip(leaves, roots, strict=True)
            results |= {f"{derivative}: {name}": gradient.detach() for name, gradient in named}
        return results | {name: buffer.clone() for name, buffer in cell.named_buffers()}


def check(case: Case, order: int = 1, engine: type[SearchCell] = FusedRaggedCell) -> None:
    assert_same(case.evaluate(engine, order), case.evaluate(SearchCell, order))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    nodes = draw(st.integers(1, 3))
    left_out = draw(st.sets(st.sampled_from([(s, t) for t in range(2, 2 + nodes) for s in range(t)]), max_size=2))
    assume(all(any((s, t) not in left_out for s in range(t)) for t in range(2, 2 + nodes)))
    edges = nodes * (nodes + 3) // 2 - len(left_out)
    pool = st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=4, unique=True).filter(lambda p: p != [ZERO])
    return Case(
        pools=tuple(tuple(draw(pool)) for _ in range(edges)),
        nodes=nodes,
        reduces=draw(st.booleans()),
        channels=draw(st.sampled_from([2, 3, 4, 9])),
        batch=draw(st.integers(3, 5)),
        height=draw(st.integers(2, 8)),
        width=draw(st.integers(2, 8)),
        small=draw(st.booleans()),
        channels_last=draw(st.booleans()),
        training=draw(st.booleans()),
        left_out=tuple(left_out),
        seed=draw(st.integers(0, 2**20)),
    )


def several(examples: int) -> settings:
    return settings(derandomize=True, deadline=None, max_examples=examples)


@several(60)
@given(cases())
@example(Case())
@example(Case(reduces=True, small=False))
@example(Case(reduces=True, training=False, channels_last=False))
@example(Case(channels=17, height=9, width=8, reduces=True))
def test_outputs_gradients_and_buffers_are_the_readable_ones(case):
    check(case)


@several(25)
@given(cases())
@example(Case(reduces=True))
@example(Case(small=False, training=False))
def test_second_derivatives_are_the_readable_ones(case):
    check(case, order=2)


@pytest.mark.parametrize("reduces", [False, True])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != ZERO])
def test_every_operation_alone_is_the_readable_one(name, reduces):
    check(Case(((name,),) * 2, nodes=1, reduces=reduces))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 9), (16, 15)])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("reduces", [False, True])
def test_sizes_of_images(size, small, reduces):
    """Among them those that are smaller than a kernel, or than the distance of its taps."""
    names = tuple(configuration.name for configuration in CONFIGURATIONS)
    check(Case((names[:6], names[6:]), 1, reduces, batch=7, height=size[0], width=size[1], small=small))


def test_pools_that_are_alike_give_what_the_fused_cell_gives():
    space = Space(nodes=3)
    case = Case((DARTS_OPERATIONS,) * len(space.edges), 3, reduces=True)
    expected = case.evaluate(FusedCell)
    assert_same(case.evaluate(FusedRaggedCell), expected)


class WrongPlaces(FusedRaggedCell):
    """Coefficients of other candidates."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for departure in (*self._together, *self._alone):
            for parts in (departure._side_by_side, departure._one_by_one):
                parts._places = parts._places.roll(1)


class SmallerKernels(FusedRaggedCell):
    """The largest kernels of a chain have one ring less."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for departure in (*self._together, *self._alone):
            for parts in (departure._side_by_side, departure._one_by_one):
                for chain in (chain for part in parts.parts for chain in getattr(part, "chains", ())):
                    chain.reach = max(chain.reach - 1, 0)


class LostPooling(FusedRaggedCell):
    """A batch norm of a pooling is not told what it saw."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for departure in (*self._together, *self._alone):
            for parts in (departure._side_by_side, departure._one_by_one):
                for part in parts.parts:
                    pools = getattr(part, "pools", [])
                    pools[:] = [dataclasses.replace(pool, norms=(None,) * len(pool.norms)) for pool in pools]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("mutant", [WrongPlaces, SmallerKernels, LostPooling])
def test_a_planted_fault_is_found(mutant, small):
    with pytest.raises(AssertionError, match="differ by more than"):
        check(Case(small=small), engine=mutant)


def test_what_an_edge_does_not_have_does_not_count():
    """Whatever stands in the matrix where an edge lacks a candidate: it has no influence and no gradient."""
    case = Case()
    cell, inputs = case.cell(FusedRaggedCell), case.inputs()
    absent = torch.tensor([[name not in pool for name in case.space.operations] for pool in case.pools])
    alpha = inputs["alpha"].requires_grad_()
    output = case.run(cell, inputs)
    (gradient,) = torch.autograd.grad((output * torch.arange(6.0)).sum(), alpha)
    assert absent.any() and not gradient[absent].any() and gradient[~absent].any()
    other = alpha.detach().masked_fill(absent, float("nan"))
    assert torch.equal(case.run(cell, {**inputs, "alpha": other}), output)


def test_kept_statistics_are_kept():
    case = Case()
    cell = case.cell(FusedRaggedCell)
    before = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    with kept_statistics(cell):
        output = case.run(cell, case.inputs())
    assert_same(dict(cell.named_buffers()), before, bound=0)
    assert torch.equal(output, case.run(cell, case.inputs()))
    assert not any(torch.equal(buffer, before[name]) for name, buffer in cell.named_buffers())


# ---------------------------------------------------------------------------------------------- the readable way


def freeze_a_norm(cell: SearchCell) -> None:
    next(module for module in cell.edges.modules() if isinstance(module, nn.BatchNorm2d)).eval()


def replace_a_convolution(cell: SearchCell) -> None:
    candidate = next(module for module in cell.edges.modules() if isinstance(module, nn.ReLU))
    owner = next(module for module in cell.edges.modules() if candidate in module.children())
    owner[0] = nn.Tanh()


@pytest.mark.parametrize("change", [freeze_a_norm, replace_a_convolution])
def test_a_cell_that_was_changed_takes_the_readable_way(change):
    case = Case()
    results = []
    for engine in (FusedRaggedCell, SearchCell):
        cell = case.cell(engine)
        change(cell)
        results.append({"output": case.run(cell, case.inputs()), **dict(cell.named_buffers())})
    assert_same(*results, bound=0)
    unchanged = case.run(case.cell(FusedRaggedCell), case.inputs())
    assert (results[0]["output"] - unchanged).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------- networks

NORMAL = Space(nodes=2).with_pools(SEVERAL)
REDUCTION = Space(nodes=2).with_pools(SEVERAL[::-1])


def network(engine: str, channels: int = 4, **arguments) -> SearchNetwork:
    torch.manual_seed(0)
    spaces = {"normal": NORMAL, "reduction": REDUCTION}
    built = SearchNetwork(spaces, channels, 3, 3, engine=engine, **arguments)
    with torch.no_grad():
        for alpha in built.architecture():
            alpha.mul_(300)  # far from equal
    return built


def batch(seed: int = 0, images: int = 5, size: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(images, 3, size, size, generator=generator, dtype=torch.float64)
    return drawn.to(dtype), torch.randint(3, (images,), generator=generator)


def gradients(built: SearchNetwork, data: tuple[Tensor, Tensor]) -> Tensors:
    names, parameters = zip(*built.named_parameters(), strict=True)
    outputs = built(data[0])
    values = torch.autograd.grad(F.cross_entropy(outputs, data[1]), parameters, materialize_grads=True)
    return {"outputs": outputs.detach(), **dict(zip(names, values, strict=True))}


def test_the_engines_of_a_network_with_pools():
    assert set(RAGGED_ENGINES) == set(ENGINES)
    fused, readable = (network(engine) for engine in ENGINES)
    assert {type(cell) for cell in fused.cells} == {FusedRaggedCell}
    assert {type(cell) for cell in readable.cells} == {SearchCell}
    assert list(fused.state_dict()) == list(readable.state_dict())
    assert_same(fused.state_dict(), readable.state_dict(), bound=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bottleneck", [1, 2])
def test_a_network_is_the_readable_one(training, bottleneck):
    networks = [network(engine, bottleneck=bottleneck).double().train(training) for engine in ENGINES]
    for size in (7, 16):
        assert_same(*(gradients(built, batch(size=size)) for built in networks))
        assert_same(*(built.state_dict() for built in networks))


@pytest.mark.parametrize("update", [FirstOrder, SecondOrder])
def test_a_search_ends_where_the_readable_one_ends(update):
    ends = []
    for built in (network(engine).double() for engine in ENGINES):
        start = {name: value.clone() for name, value in built.state_dict().items()}
        weights = torch.optim.SGD(built.weights(), 0.1, momentum=0.9, weight_decay=3e-4)
        step = update(built, weights, torch.optim.Adam(built.architecture(), 1e-2))
        for number in range(3):
            step.step(batch(2 * number), batch(2 * number + 1))
        ends.append(built.state_dict())
        assert any(not torch.equal(start[name], value) for name, value in ends[-1].items())
    assert_same(*ends, bound=1e-8)


def test_cells_that_are_computed_again_keep_their_bits():
    plain, again = (network("fused", recompute_cells=count).double() for count in (0, 3))
    assert_same(gradients(again, batch()), gradients(plain, batch()), bound=0)
    assert_same(again.state_dict(), plain.state_dict(), bound=0)
    images = batch()[0]
    assert saved_activation_bytes(again, images) < 0.2 * saved_activation_bytes(plain, images)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_derived_network_within_is_the_readable_one(weighted):
    results = []
    for built in (network(engine).double() for engine in ENGINES):
        with built.child(weighted=weighted):
            results.append({**gradients(built, batch()), **built.state_dict()})
    assert_same(*results)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda built: pickle.loads(pickle.dumps(built))])
def test_a_copy_is_independent(copied):
    original = network("fused").double()
    original(batch()[0])
    other = copied(original)
    with torch.no_grad():
        for weight in original.weights():
            weight.zero_()
    fresh = network("readable").double()
    fresh.load_state_dict(other.state_dict())
    assert_same(gradients(other, batch(1)), gradients(fresh, batch(1)))


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_is_as_close_to_float32_as_the_readable_engine_is(engine):
    built = network(engine, channels=8)
    data = batch(images=16, size=16, dtype=torch.float32)
    expected = gradients(copy.deepcopy(built), data)
    with torch.autocast("cpu", torch.bfloat16):
        values = gradients(built, data)
    assert values["outputs"].dtype == torch.bfloat16
    parameters = dict(built.named_parameters())
    assert {values[name].dtype for name in parameters} == {torch.float32}
    outputs, reference = values["outputs"].float(), expected["outputs"]
    assert (outputs - reference).norm() < 0.05 * reference.norm()
    both = [torch.cat([results[name].flatten() for name in parameters]) for results in (values, expected)]
    assert F.cosine_similarity(*both, 0) > 0.9
    assert all(bool(buffer.isfinite().all()) for buffer in built.buffers())


def test_at_most_half_of_the_readable_engines_activations_are_kept():
    configurations = (Configuration(3), Configuration(5, 1, (1,)), Configuration(7, 2, (1,)), Configuration(3, 2, (1,)))
    pool = ("max_pool_3x3", "skip_connect", *(configuration.name for configuration in configurations))
    space = Space(nodes=2).with_pools([pool] * 5)
    images = torch.randn(8, 3, 32, 32)
    kept = {engine: saved_activation_bytes(SearchNetwork(space, 16, 3, engine=engine), images) for engine in ENGINES}
    assert 0 < kept["fused"] <= 0.5 * kept["readable"]
