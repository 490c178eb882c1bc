"""Transit-cells, shared features and the bottleneck (EnTranNAS §2.2, §2.3, §2.5) against what they stand for."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from nasbook.analysis import count_parameters
from nasbook.errors import InvalidInput
from nasbook.experiments.entrannas_checks import candidate_calls, derived_copy
from nasbook.genotypes import DARTS_SPACE, CellGenotype, Edge, Genotype, Space, random_genotype
from nasbook.methods.entrannas import EXTENDED_SPACE
from nasbook.networks import CellPlacement, reduction_positions
from nasbook.operations import ReLUConvolution
from nasbook.supernets import (
    FusedCell,
    SearchCell,
    SearchNetwork,
    SharedCell,
    SparseRelaxation,
    engine_positions,
    strongest_edges,
)
from nasbook.training import FirstOrder, SecondOrder

few = settings(derandomize=True, deadline=None, max_examples=20)
SPACE = Space(DARTS_SPACE.choices)
CELLS = (SearchCell, FusedCell, SharedCell)


def place(reduces=False, channels=4):
    return CellPlacement("reduction" if reduces else "normal", channels, (6, 8), reduces, halve_older=False)


def images(seed=0, size=6):
    torch.manual_seed(seed)
    return torch.randn(3, 6, size, size).double(), torch.randn(3, 8, size, size).double()


def any_cell(seed, space=SPACE):
    """A discrete cell with any number of connections, several on an edge among them; every node has one."""
    draws = torch.Generator().manual_seed(seed)
    edges = []
    for node in range(2, 2 + space.nodes):
        pairs = list(itertools.product(space.sources(node), space.choices))
        count = int(torch.randint(1, 6, (), generator=draws))
        for index in torch.randperm(len(pairs), generator=draws)[:count].tolist():
            edges.append(Edge(pairs[index][0], node, pairs[index][1]))
    return CellGenotype(tuple(edges), space.nodes)


# ---------------------------------------------------------------------------------------------- one cell


@few
@given(st.integers(0, 2**32), st.sampled_from(CELLS), st.booleans(), st.booleans())
def test_a_transit_cell_is_the_derived_cell_with_the_same_weights(seed, kind, reduces, training):
    placement = place(reduces)
    torch.manual_seed(seed)
    cell = kind(SPACE, placement).double()
    older, newer = images(seed)
    cell(older, newer, torch.rand(14, 7).double())  # statistics that are not the initial ones
    genotype = any_cell(seed)
    copy = derived_copy(cell, genotype, placement)
    found = cell.train(training)(older, newer, derived=genotype)
    torch.testing.assert_close(found, copy.train(training)(older, newer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bottleneck", [1, 2])
def test_what_a_transit_cell_leaves_out_is_not_touched(kind, bottleneck):
    cell = kind(SPACE, place(), bottleneck).double()
    before = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    genotype = any_cell(3)
    with candidate_calls(cell) as calls:
        cell(*images(), derived=genotype).square().mean().backward()
    used = {cell.candidate(edge) for edge in genotype.edges}
    assert set(calls) == used and set(calls.values()) == {1}
    for module in cell.modules():
        if module in used:
            assert all(parameter.grad is not None for parameter in module.parameters())
    outside = {parameter for module in used for parameter in module.parameters()}
    owners = cell.sources if kind is SharedCell else cell.edges
    for name, parameter in owners.named_parameters():
        assert (parameter.grad is not None) == (parameter in outside), name
    read = {edge.source for edge in genotype.edges}
    for node, narrow in enumerate(cell.narrow):  # nor is a node made narrow that nothing reads
        for parameter in narrow.parameters():
            assert (parameter.grad is not None) == (node in read)
        for name, buffer in narrow.named_buffers():
            assert torch.equal(buffer, before[f"narrow.{node}.{name}"]) == (node not in read)
    ran = {buffer for module in used for buffer in module.buffers()}
    for name, buffer in owners.named_buffers():
        full = f"{'sources' if kind is SharedCell else 'edges'}.{name}"
        assert torch.equal(buffer, before[full]) == (buffer not in ran), name


@few
@given(st.integers(0, 2**32), st.sampled_from(CELLS), st.sampled_from([1, 2]), st.booleans())
def test_a_derived_cell_with_its_coefficients_is_the_sparse_engine_cell(seed, kind, bottleneck, reduces):
    cell = kind(SPACE, place(reduces), bottleneck).double()
    relaxation = SparseRelaxation(SPACE).double()
    relaxation.alpha.data.normal_()
    relaxation.beta.data.normal_()
    older, newer = images(seed)
    everything = cell(older, newer, relaxation.coefficients())
    relevant = cell(older, newer, relaxation.coefficients(), relaxation.derive())
    torch.testing.assert_close(relevant, everything, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(everything)
    parameters = (relaxation.alpha, relaxation.beta)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in (everything, relevant)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("reduces", [False, True])
def test_shared_features_are_one_set_of_weights_on_all_edges_of_a_source(reduces):
    torch.manual_seed(0)
    shared, own = SharedCell(SPACE, place(reduces)).double(), SearchCell(SPACE, place(reduces)).double()
    own.preprocessing.load_state_dict(shared.preprocessing.state_dict())
    for (source, _), mixed in zip(SPACE.edges, own.edges, strict=True):
        mixed.load_state_dict(shared.sources[str(source)].state_dict())
    older, newer = images()
    weights = torch.rand(14, 7, dtype=torch.float64, requires_grad=True)
    outputs = [cell(older, newer, weights) for cell in (shared, own)]
    torch.testing.assert_close(*outputs, rtol=1e-11, atol=1e-11)
    draws = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad((out * draws).sum(), weights, retain_graph=True)[0] for out in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    first = torch.autograd.grad((outputs[0] * draws).sum(), shared.sources["0"].candidates["sep_conv_3x3"][1].weight)
    each = torch.autograd.grad(
        (outputs[1] * draws).sum(),
        [own.edges[row].candidates["sep_conv_3x3"][1].weight for row, (s, _) in enumerate(SPACE.edges) if s == 0],
    )
    torch.testing.assert_close(first[0], sum(each), rtol=1e-9, atol=1e-9)


def test_shared_cells_in_any_memory_layout():
    cell = SharedCell(SPACE, place()).double()
    older, newer = images()
    last = [image.contiguous(memory_format=torch.channels_last) for image in (older, newer)]
    weights = torch.rand(14, 7).double()
    torch.testing.assert_close(cell(*last, weights), cell(older, newer, weights))


def test_counts():
    parametric = 4
    with torch.device("meta"):
        own, shared = SearchCell(SPACE, place()), SharedCell(SPACE, place())

    def convolutions(cell):
        return sum(any(True for _ in module.parameters()) for owner in cell for module in owner.candidates.values())

    assert convolutions(own.edges) == 14 * parametric
    assert convolutions(shared.sources.values()) == 5 * parametric
    weights = {
        (sharing, bottleneck): count_parameters(
            SearchNetwork(SPACE, feature_sharing=sharing, bottleneck=bottleneck).weights()
        )
        for sharing in (False, True)
        for bottleneck in (1, 4)
    }
    assert weights[False, 1] == 1_930_618  # DARTS': the zero operation has no weights
    assert weights[True, 1] == 749_050
    assert weights[True, 4] == 206_362
    extended = SearchNetwork(EXTENDED_SPACE, feature_sharing=True, bottleneck=4)
    assert count_parameters(extended.weights()) == 404_762


@pytest.mark.parametrize("kind", [SearchCell, SharedCell])
def test_the_bottleneck_summed_by_hand(kind):
    cell = kind(SPACE, place(), 2).double().eval()
    older, newer = images()
    weights = torch.rand(14, 7).double()
    nodes = [cell.preprocessing[0](older), cell.preprocessing[1](newer)]
    for node in range(2, 6):
        total = 0
        for source in range(node):
            narrow = cell.narrow[source](nodes[source])
            assert narrow.shape[1] == 2
            row = SPACE.edges.index((source, node))
            for column, name in enumerate(SPACE.operations):
                total = total + weights[row, column] * cell.candidate(Edge(source, node, name))(narrow)
        nodes.append(cell.widen[node - 2](total))
    torch.testing.assert_close(cell(older, newer, weights), torch.cat(nodes[2:], 1), rtol=1e-11, atol=1e-11)
    ends = [*cell.narrow, *cell.widen]
    assert len(ends) == 9 and all(isinstance(end, ReLUConvolution) and not end[2].affine for end in ends)


def test_the_fused_engine_with_a_bottleneck():
    torch.manual_seed(0)
    fused, readable = FusedCell(SPACE, place(True, 8), 2).double(), SearchCell(SPACE, place(True, 8), 2).double()
    readable.load_state_dict(fused.state_dict())
    older, newer = images()
    weights = torch.rand(14, 7).double()
    torch.testing.assert_close(fused(older, newer, weights), readable(older, newer, weights), rtol=1e-9, atol=1e-9)
    for a, b in zip(fused.buffers(), readable.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("channels", "bottleneck"), [(4, 3), (4, 4), (6, 4), (4, 0)])
def test_bottlenecks_that_do_not_fit(channels, bottleneck):
    with pytest.raises(InvalidInput, match="bottleneck"):
        SearchNetwork(SPACE, channels, 3, bottleneck=bottleneck)


def test_a_node_that_nothing_reaches_is_zero():
    genotype = CellGenotype((Edge(0, 2, "sep_conv_3x3"), Edge(1, 5, "skip_connect")))
    for kind, reduces, bottleneck in itertools.product(CELLS, (False, True), (1, 2)):
        cell = kind(SPACE, place(reduces), bottleneck).double()
        cell(*images(), torch.rand(14, 7).double())  # statistics that are not the initial ones
        cell.eval()
        out = cell(*images(), derived=genotype).detach()
        assert out.shape[1] == 16 and float(out[:, 4:12].abs().max()) == 0 and float(out[:, 12:].abs().max()) > 0


# ---------------------------------------------------------------------------------------------- networks


def test_placements():
    kinds = ["reduction" if i in reduction_positions(8) else "normal" for i in range(8)]
    assert kinds == ["normal", "normal", "reduction", "normal", "normal", "reduction", "normal", "normal"]
    assert engine_positions(kinds, "all") == set(range(8))
    assert engine_positions(kinds, "half") == {0, 1, 3, 2}
    assert engine_positions(kinds, "first") == {0, 2}  # the paper's Fig. 4
    assert engine_positions(kinds, "last") == {7, 5}
    with pytest.raises(InvalidInput, match=r"placement of Engine-cells.*'frist'.*first"):
        SearchNetwork(SPACE, 4, 3, engine_cells="frist")


@pytest.mark.parametrize("engine", ["readable", "fused"])
@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("bottleneck", [1, 2])
def test_engine_cells_search_and_the_others_follow(engine, sharing, bottleneck):
    torch.manual_seed(0)
    options = {"engine_cells": "first", "feature_sharing": sharing, "bottleneck": bottleneck}
    network = SearchNetwork(SPACE, 4, 6, 3, engine=engine, **options).double()
    for relaxation in network.relaxations.values():
        relaxation.alpha.data.normal_()
    assert network.engine_positions == {0, 2}
    x = torch.randn(4, 3, 8, 8).double()
    coefficients, genotype = network.coefficients(), network.genotype()
    older, newer = network.stem(x)
    for position, cell in enumerate(network.cells):
        kind = network.kinds[position]
        given = (coefficients[kind],) if position in (0, 2) else (None, genotype[kind])
        older, newer = newer, cell(older, newer, *given)
    expected = network.classifier(F.adaptive_avg_pool2d(newer, 1).flatten(1))
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


def test_the_derived_cell_is_the_one_of_this_very_step():
    network = SearchNetwork(SPACE, 4, 4, 3, engine_cells="first")
    seen = []
    network.cells[3].register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    x = torch.randn(2, 3, 8, 8)
    for seed in range(3):
        torch.manual_seed(seed)
        network.relaxations["normal"].alpha.data.normal_()
        network(x)
        assert seen[-1] == strongest_edges(network.relaxations["normal"].coefficients(), SPACE)
    assert len(set(seen)) == 3


def test_the_child_net():
    torch.manual_seed(0)
    network = SearchNetwork(SPACE, 4, 4, 3, engine_cells="first").eval()
    for relaxation in network.relaxations.values():
        relaxation.alpha.data.normal_()
    x = torch.randn(2, 3, 8, 8)
    supernet = network(x)
    genotype, coefficients = network.genotype(), network.coefficients()

    def by_hand(weighted):
        older, newer = network.stem(x)
        for position, (cell, kind) in enumerate(zip(network.cells, network.kinds, strict=True)):
            weights = coefficients[kind] if weighted and position in network.engine_positions else None
            older, newer = newer, cell(older, newer, weights, genotype[kind])
        return network.classifier(F.adaptive_avg_pool2d(newer, 1).flatten(1))

    with network.child():
        torch.testing.assert_close(network(x), by_hand(weighted=False))
        with network.child(weighted=True):
            torch.testing.assert_close(network(x), by_hand(weighted=True))
        torch.testing.assert_close(network(x), by_hand(weighted=False))
    assert torch.equal(network(x), supernet)
    with pytest.raises(RuntimeError, match="stop"), network.child():
        raise RuntimeError("stop")
    assert torch.equal(network(x), supernet)


def test_any_cell_can_be_the_child():
    torch.manual_seed(0)
    network = SearchNetwork(SPACE, 4, 4, 3).eval()
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    with network.child():
        derived = network(x)
    with network.child(network.genotype()):
        assert torch.equal(network(x), derived)
    for _ in range(3):
        genotype = random_genotype(SPACE, draws)
        older, newer = network.stem(x)
        for cell, kind in zip(network.cells, network.kinds, strict=True):
            older, newer = newer, cell(older, newer, None, genotype[kind])
        with network.child(genotype):
            own = network(x)
        torch.testing.assert_close(own, network.classifier(F.adaptive_avg_pool2d(newer, 1).flatten(1)))
        assert not torch.equal(own, derived)
    with network.child():
        assert torch.equal(network(x), derived)
    lacking = network.child(Genotype({"normal": any_cell(0)}))
    with pytest.raises(InvalidInput, match="reduction; the genotype has normal"), lacking:
        pass


def test_a_sparse_supernet_is_its_child_with_coefficients():
    torch.manual_seed(0)
    network = SearchNetwork(SPACE, 4, 4, 3, relaxation=SparseRelaxation, engine_cells="first", feature_sharing=True)
    for relaxation in network.relaxations.values():
        relaxation.alpha.data.normal_()
    x = torch.randn(2, 3, 8, 8)
    network.eval()
    with network.child(weighted=True):
        child = network(x)
    assert torch.equal(network(x), child)  # "the derived architecture equivalent to that of Engine-cell"


@pytest.mark.parametrize("sharing", [False, True])
def test_transit_cells_recomputed(sharing):
    torch.manual_seed(0)
    options = {"engine_cells": "last", "feature_sharing": sharing, "bottleneck": 2}
    plain = SearchNetwork(SPACE, 4, 4, 3, **options)
    again = SearchNetwork(SPACE, 4, 4, 3, recompute_cells=4, **options)
    again.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 8, 8)
    gradients = []
    for network in (plain, again):
        loss = network(x).square().mean()
        gradients.append(torch.autograd.grad(loss, tuple(network.parameters()), allow_unused=True))
    for name, a, b in zip(dict(plain.named_parameters()), *gradients, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=name)
    for (name, a), b in zip(plain.named_buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_weights_that_are_left_out_keep_their_optimisers_state():
    torch.manual_seed(0)
    network = SearchNetwork(SPACE, 4, 4, 3, engine_cells="first", feature_sharing=True)
    relaxation = network.relaxations["normal"]
    sgd = torch.optim.SGD(network.weights(), 0.1, 0.9, weight_decay=0.1)
    adam = torch.optim.Adam(network.architecture(), 0.0)
    update = FirstOrder(network, sgd, adam)
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    transit = network.cells[3]

    def favour(column):
        relaxation.alpha.data.zero_()
        relaxation.alpha.data[:, column] = 1.0

    def state(name):
        weight = transit.sources["1"].candidates[name][1].weight
        buffer = sgd.state.get(weight, {}).get("momentum_buffer")
        return weight.detach().clone(), None if buffer is None else buffer.clone()

    three, five = (SPACE.operations.index(f"sep_conv_{k}x{k}") for k in (3, 5))
    favour(three)
    untouched = state("sep_conv_5x5")
    update.step(*batches)
    learned = state("sep_conv_3x3")
    assert learned[1] is not None and torch.equal(state("sep_conv_5x5")[0], untouched[0])
    assert state("sep_conv_5x5")[1] is None
    favour(five)
    update.step(*batches)
    for before, after in zip(learned, state("sep_conv_3x3"), strict=True):  # no momentum, no decay while away
        assert torch.equal(before, after)
    favour(three)
    update.step(*batches)
    assert not torch.equal(state("sep_conv_3x3")[1], learned[1])


@pytest.mark.parametrize("sharing", [False, True])
def test_second_order_through_transit_cells(sharing):
    """Against differences of L_val(w − ξ ∇_w L_train(w, α), α) in α, the derived cell being the same all along."""
    torch.manual_seed(0)
    space = Space(("skip_connect", "avg_pool_3x3", "sep_conv_3x3"), nodes=2)
    options = {"engine_cells": "first", "feature_sharing": sharing, "bottleneck": 2, "engine": "readable"}
    network = SearchNetwork(space, 4, 4, 3, **options).double()
    for relaxation in network.relaxations.values():
        relaxation.alpha.data.normal_()
    train, validation = ((torch.randn(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0])) for _ in range(2))
    xi = 0.01
    update = SecondOrder(network, torch.optim.SGD(network.weights(), xi), torch.optim.Adam(network.architecture()))
    found = update.architecture_gradient(train, validation)
    names = [name for name, _ in network.named_parameters() if not name.startswith("relaxations.")]

    def objective():
        weights = tuple(network.weights())
        loss = F.cross_entropy(network(train[0]), train[1])
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        assert any(gradient is None for gradient in gradients)  # what Transit-cells leave out
        moved = {
            name: weight.detach() - (0 if gradient is None else xi * gradient)
            for name, weight, gradient in zip(names, weights, gradients, strict=True)
        }
        with torch.no_grad():
            return float(F.cross_entropy(functional_call(network, moved, validation[0]), validation[1]))

    genotype = network.genotype()
    for alpha, gradient in zip(network.architecture(), found.gradients, strict=True):
        direction = torch.randn_like(alpha)
        start = alpha.detach().clone()
        values = []
        for sign in (1, -1):
            alpha.data.copy_(start + sign * 1e-8 * direction)
            assert network.genotype() == genotype
            values.append(objective())
        alpha.data.copy_(start)
        expected = (values[0] - values[1]) / 2e-8
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_shared_cells_without_some_edges():
    space = Space(SPACE.operations[:3], nodes=2, left_out=((0, 2), (0, 3)))
    cell = SharedCell(space, place())
    assert list(cell.sources) == ["1", "2"]
    older, newer = (image.float() for image in images())
    genotype = random_genotype(Space(space.operations, 2, edges_per_node=1, left_out=space.left_out),
                               torch.Generator().manual_seed(0)).normal
    assert cell(older, newer, torch.rand(3, 3)).shape == cell(older, newer, derived=genotype).shape
    assert isinstance(cell.narrow[0], nn.Identity)
