"""Recurrent cells against loops written out, their gradients, derived cells, dead nodes, copies, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_V1, CellGenotype, Edge, Space
from nasbook.networks import (
    RECURRENT_BACKBONES,
    DartsCell,
    HighwayCell,
    RecurrentCell,
    TwoToOneCell,
    backbone_of,
    derived_space,
)

TIME, BATCH, INPUTS, HIDDEN = 4, 3, 2, 3
BACKBONES = tuple(RECURRENT_BACKBONES)


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def cell_of(name, space, **options):
    """A readable cell in float64, with weights large enough that everything shows."""
    cell = RECURRENT_BACKBONES[name].cell(space, INPUTS, HIDDEN, **options).double()
    for parameter in cell.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)
    return cell


def softmax_rows(space):
    """Coefficients that sum to 1 over the candidates of every edge, none of them alike."""
    logits = drawn(len(space.edges), len(space.operations))
    for row, edge in enumerate(space.edges):
        own = space.candidates(*edge)
        for column, name in enumerate(space.operations):
            if name not in own:
                logits[row, column] = -math.inf
    return logits.softmax(-1)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


PHI = {"sigmoid": sigmoid, "tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "identity": lambda a: a}


# --- formulas, written as the papers have them ------------------------------------------------------------------------


def two_to_one_step(cell, w, x, h):
    """Eq. 12, with the operations of Table 1: node j reads x and node j − 1."""
    for row, (source, target) in enumerate(cell.space.edges):
        assert source == target - 1
        total = np.zeros_like(h)
        for column, name in enumerate(cell.space.operations):
            if name not in cell.space.candidates(source, target):
                continue
            p = {k: v.detach().numpy() for k, v in cell.edges[f"{source}-{target}"][name].named_parameters()}
            kind = name.split("-")[0]
            mapped = x @ p["input_weight"].T
            if kind == "sum":
                value = mapped + h
            elif kind == "product":
                value = mapped * h
            else:
                value = PHI[kind](mapped + h @ p["state_weight"].T + p["bias"])
            total = total + w[row, column] * value
        h = total
    return h


def darts_step(cell, w, x, h):
    """Eq. 1: z_j = Σ_{i<j} Σ_o w_ij^o o(z_i); node 1 reads [x; h], the later ones all nodes between."""
    z = {0: np.concatenate([x, h], axis=1)}
    for target in range(1, cell.space.nodes + 1):
        z[target] = np.zeros_like(h)
        for row, (source, other) in enumerate(cell.space.edges):
            if other != target:
                continue
            for column, name in enumerate(cell.space.operations):
                kind = name.split("-")[0]
                if name not in cell.space.candidates(source, target) or kind == "none":
                    continue
                if kind == "identity":
                    value = z[source][:, -HIDDEN:]
                else:
                    weight = cell.edges[f"{source}-{target}"][name].weight.detach().numpy()
                    value = PHI[kind](z[source] @ weight.T)
                z[target] = z[target] + w[row, column] * value
    return z[cell.space.nodes]


def highway_step(cell, w, x, h):
    """As the code of DARTS goes through its recurrent search cell, without batch norm and dropout."""
    c0h0 = np.concatenate([x, h], axis=1) @ cell.initial.detach().numpy().T
    c0, h0 = sigmoid(c0h0[:, :HIDDEN]), np.tanh(c0h0[:, HIDDEN:])
    states = [h + c0 * (h0 - h)]
    offset = 0
    for i in range(cell.space.nodes):
        s = np.zeros_like(h)
        for j, before in enumerate(states):
            ch = before @ cell.nodes[str(i + 1)].detach().numpy().T
            c, a = sigmoid(ch[:, :HIDDEN]), ch[:, HIDDEN:]
            for k, name in enumerate(cell.space.operations):
                if name == "none":
                    continue
                s = s + w[offset + j, k] * (before + c * (PHI[name](a) - before))
        offset += i + 1
        states.append(s)
    return sum(states[1:]) / cell.space.nodes


STEPS = {"two-to-one": two_to_one_step, "darts": darts_step, "highway": highway_step}


def check_against_formula(cell, coefficients):
    inputs, state = drawn(TIME, BATCH, INPUTS), drawn(BATCH, HIDDEN)
    got = cell(inputs, coefficients, state)
    assert got.shape == (TIME, BATCH, HIDDEN)
    h = state.numpy()
    for t in range(TIME):
        h = STEPS[cell.backbone](cell, coefficients.numpy(), inputs[t].numpy(), h)
        np.testing.assert_allclose(got[t].detach().numpy(), h, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_cell_with_all_candidates_is_the_papers_formula(name, nodes):
    space = RECURRENT_BACKBONES[name].space(nodes)
    check_against_formula(cell_of(name, space), softmax_rows(space))


@pytest.mark.parametrize("name", ["two-to-one", "darts"])
def test_candidates_of_an_edges_own_and_copies(name):
    space = RECURRENT_BACKBONES[name].space(3)
    pools = [("tanh", "tanh-2", "relu"), ("relu-3",), *[("sigmoid", "tanh-2", "tanh")] * (len(space.edges) - 2)]
    space = space.with_pools(pools)
    assert "tanh-2" in space.operations
    cell = cell_of(name, space)
    assert {key: tuple(edge) for key, edge in cell.edges.items()} == {
        f"{s}-{t}": pool for (s, t), pool in zip(space.edges, pools, strict=True)
    }
    check_against_formula(cell, softmax_rows(space))
    first, second = (next(cell.candidates(*space.edges[0])[n].parameters()) for n in ("tanh", "tanh-2"))
    assert not torch.equal(first, second)


def test_batch_norms_of_the_highway_cell():
    """Behind every node, as in DARTS' search: the moments of a batch at one time step, without affine parameters."""
    space = RECURRENT_BACKBONES["highway"].space(2)
    plain, cell = cell_of("highway", space), cell_of("highway", space, normalize=True)
    cell.load_state_dict(plain.state_dict(), strict=False)
    assert [p for p, _ in cell.named_parameters()] == [p for p, _ in plain.named_parameters()]
    coefficients, h = softmax_rows(space), drawn(BATCH, HIDDEN)
    inputs = drawn(1, BATCH, INPUTS)

    def norm(s):
        return (s - s.mean(0)) / (s.var(0, unbiased=False) + 1e-5).sqrt()

    gate, change = (torch.cat([inputs[0], h], 1) @ cell.initial.T).chunk(2, 1)
    states = [norm(h + gate.sigmoid() * (change.tanh() - h))]
    row = 0
    for node in (1, 2):
        total = 0
        for before in states:
            gate, change = (before @ cell.nodes[str(node)].T).chunk(2, 1)
            for column, phi in enumerate([None, torch.tanh, torch.relu, torch.sigmoid, lambda a: a]):
                if phi is not None:
                    total = total + coefficients[row, column] * (before + gate.sigmoid() * (phi(change) - before))
            row += 1
        states.append(norm(total))
    torch.testing.assert_close(cell(inputs, coefficients, h)[0], (states[1] + states[2]) / 2)
    assert int(cell.norm.num_batches_tracked) == 3
    cell.eval()
    statistics = cell.norm.running_mean.clone()
    assert not torch.equal(cell(inputs, coefficients, h)[0], (states[1] + states[2]) / 2)
    assert torch.equal(cell.norm.running_mean, statistics)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients(name):
    space = RECURRENT_BACKBONES[name].space(2)
    cell = cell_of(name, space)
    names = [n for n, _ in cell.named_parameters()]
    inputs, coefficients, state = drawn(2, 2, INPUTS), softmax_rows(space), drawn(2, HIDDEN)

    def value(inputs, coefficients, state, *parameters):
        return torch.func.functional_call(
            cell, dict(zip(names, parameters, strict=True)), (inputs, coefficients, state)
        )

    given_ = [inputs, coefficients, state, *(p.detach() for p in cell.parameters())]
    assert torch.autograd.gradcheck(value, [tensor.clone().requires_grad_() for tensor in given_])


@pytest.mark.parametrize("name", BACKBONES)
def test_a_state_carries_a_sequence_on(name):
    space = RECURRENT_BACKBONES[name].space(3)
    cell, coefficients, inputs = cell_of(name, space), softmax_rows(space), drawn(6, BATCH, INPUTS)
    whole = cell(inputs, coefficients)
    first = cell(inputs[:2], coefficients)
    second = cell(inputs[2:], coefficients, first[-1])
    assert torch.equal(whole, torch.cat([first, second]))
    assert torch.equal(whole, cell(inputs, coefficients, torch.zeros(BATCH, HIDDEN, dtype=torch.float64)))


@pytest.mark.parametrize("name", BACKBONES)
def test_examples_of_a_batch_and_the_past_know_nothing_of_what_is_elsewhere(name):
    space = RECURRENT_BACKBONES[name].space(2)
    cell, coefficients, inputs = cell_of(name, space), softmax_rows(space), drawn(TIME, BATCH, INPUTS)
    changed = inputs.clone()
    changed[2, 1] += 1
    before, after = cell(inputs, coefficients), cell(changed, coefficients)
    assert torch.equal(before[:2], after[:2])
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert bool((before[2:, 1] != after[2:, 1]).all())


# --- backbones --------------------------------------------------------------------------------------------------------


def test_the_graphs_of_the_backbones():
    assert RECURRENT_BACKBONES["two-to-one"].space(4).edges == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert RECURRENT_BACKBONES["darts"].space(4).edges == ((0, 1), (1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4))
    highway = RECURRENT_BACKBONES["highway"].space(8)
    assert len(highway.edges) == 36 and not highway.left_out
    for name, backbone in RECURRENT_BACKBONES.items():
        space = backbone.space(3)
        assert backbone.name == backbone.cell.backbone == name
        assert (space.inputs, space.nodes, space.edges_per_node, space.pools) == (1, 3, 1, ())
        assert space.kinds == (name,) == backbone.kinds(1)
        assert backbone.space(3, 2).kinds == (f"{name} 1", f"{name} 2")
        for nodes in range(1, 5):  # a new node reads what the larger space has it read, and nothing else changes
            new = tuple((source, nodes + 1) for source in backbone.sources(nodes + 1))
            assert backbone.space(nodes + 1).edges == backbone.space(nodes).edges + new
    assert RECURRENT_BACKBONES["darts"].operations == ("sigmoid", "tanh", "relu", "identity", "none")
    assert RECURRENT_BACKBONES["two-to-one"].operations == ("sigmoid", "tanh", "relu", "sum", "product")
    assert set(RECURRENT_BACKBONES["highway"].operations) == {"none", "tanh", "relu", "sigmoid", "identity"}


def test_the_backbone_of_a_kind():
    for name, backbone in RECURRENT_BACKBONES.items():
        assert backbone_of(name) is backbone_of(f"{name} 2") is backbone
    for kind in ("normal", "reduction", "two-to-one2", "dart"):
        with pytest.raises(InvalidInput, match=f"^Unknown recurrent backbone '{kind}'.* Valid: two-to-one, darts, hi"):
            backbone_of(kind)


@pytest.mark.parametrize("name", BACKBONES)
def test_fresh_weights(name):
    """Within ±1/√h as torch's; in the cell of DARTS' code within ±0.04."""
    cell = RECURRENT_BACKBONES[name].cell(RECURRENT_BACKBONES[name].space(2), 20, 16)
    bound = 0.04 if name == "highway" else 0.25
    assert all(0.9 * bound < p.abs().max() <= bound for p in cell.parameters() if p.numel() > 100)


def test_sizes_of_the_highway_cell():
    """One matrix a node, whatever reads it: 2h × h, and 2h × (n_x + h) for the first state."""
    cell = HighwayCell(RECURRENT_BACKBONES["highway"].space(8), 5, 7)
    assert {name: tuple(p.shape) for name, p in cell.named_parameters()} == {
        "initial": (14, 12),
        **{f"nodes.{node}": (14, 7) for node in range(1, 9)},
    }


# --- derived cells ----------------------------------------------------------------------------------------------------


CHOICES = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=4)
"""For every node, numbers that choose the node it reads and its operation."""


def chosen_cell(name, choices):
    """A discrete cell of a backbone's space, one edge a node."""
    backbone = RECURRENT_BACKBONES[name]
    operations = [operation for operation in backbone.operations if operation != "none"]
    edges = []
    for node, (source, operation) in enumerate(choices, start=1):
        sources = backbone.sources(node)
        edges.append(Edge(sources[source % len(sources)], node, operations[operation % len(operations)]))
    return CellGenotype(tuple(edges), len(choices), 1, backbone.cell.own_output(backbone.space(len(choices))))


def copy_parameters(whole: RecurrentCell, derived: RecurrentCell) -> None:
    own = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in derived.named_parameters():
            parameter.copy_(own[name])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BACKBONES), CHOICES, st.integers(0, 2**30))
def test_a_derived_cell_is_the_supernets_with_coefficients_of_one(name, choices, seed):
    torch.manual_seed(seed)
    genotype = chosen_cell(name, choices)
    whole = RECURRENT_BACKBONES[name].space(genotype.nodes)
    cell = cell_of(name, whole)
    one_hot = torch.zeros(len(whole.edges), len(whole.operations), dtype=torch.float64)
    for row, edge in enumerate(whole.edges):
        if "none" in whole.operations:
            one_hot[row, whole.operations.index("none")] = 1
        for chosen_edge in genotype.edges:
            if (chosen_edge.source, chosen_edge.target) == edge:
                one_hot[row] = 0
                one_hot[row, whole.operations.index(chosen_edge.operation)] = 1
    space, coefficients = derived_space(genotype)
    derived = cell_of(name, space, output=genotype.output)
    copy_parameters(cell, derived)
    assert len(space.edges) == genotype.nodes and bool((coefficients.sum(1) == 1).all())
    inputs = drawn(TIME, BATCH, INPUTS)
    torch.testing.assert_close(derived(inputs, coefficients.double()), cell(inputs, one_hot), rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(BACKBONES), CHOICES)
def test_only_what_the_output_depends_on_has_parameters(name, choices):
    genotype = chosen_cell(name, choices)
    space, _ = derived_space(genotype)
    cell = RECURRENT_BACKBONES[name].cell(space, INPUTS, HIDDEN, genotype.output)
    reached, frontier = set(), set(genotype.output)
    while frontier:
        reached |= frontier
        frontier = {e.source for e in genotype.edges if e.target in frontier and e.source > 0}
    assert cell.needed == tuple(sorted(reached))
    with_weights = [e for e in genotype.edges if e.target in reached and e.operation != "identity"]
    expected = {
        "two-to-one": lambda: sum(
            INPUTS * HIDDEN + (HIDDEN**2 + HIDDEN if e.operation not in ("sum", "product") else 0) for e in with_weights
        ),
        "darts": lambda: sum(HIDDEN * (HIDDEN + (INPUTS if e.source == 0 else 0)) for e in with_weights),
        "highway": lambda: 2 * HIDDEN * (INPUTS + HIDDEN) + 2 * HIDDEN * HIDDEN * genotype.nodes,
    }[name]()
    assert sum(p.numel() for p in cell.parameters()) == expected
    if expected:
        loss = cell(torch.randn(2, BATCH, INPUTS), derived_space(genotype)[1]).sum()
        torch.autograd.grad(loss, list(cell.parameters()))  # raises where a parameter lies idle


def test_a_dead_node():
    edges = (Edge(0, 1, "tanh"), Edge(1, 2, "relu"), Edge(1, 3, "sigmoid"))
    space, _ = derived_space(CellGenotype(edges, 3, 1, (3,)))
    cell = DartsCell(space, INPUTS, HIDDEN, (3,))
    assert cell.needed == (1, 3)
    assert sorted(cell.edges) == ["0-1", "1-3"]


def test_several_operations_share_an_edge():
    """Copies, or what pruning to several operations leaves: they average, so that an edge's coefficients sum to 1."""
    edges = (Edge(0, 1, "tanh"), Edge(0, 1, "tanh-2"), Edge(0, 1, "sum"), Edge(1, 2, "product"))
    space, coefficients = derived_space(CellGenotype(edges, 2, 1, (2,)))
    assert space.edges == ((0, 1), (1, 2))
    assert space.pools == (("sum", "tanh", "tanh-2"), ("product",))
    by_name = [dict(zip(space.operations, row, strict=True)) for row in coefficients.tolist()]
    third = pytest.approx(1 / 3)
    assert by_name == [
        {"sum": third, "tanh": third, "tanh-2": third, "product": 0},
        {"sum": 0, "tanh": 0, "tanh-2": 0, "product": 1},
    ]
    check_against_formula(cell_of("two-to-one", space), coefficients.double())


def test_several_edges_of_a_node_add_up():
    edges = (Edge(0, 1, "tanh"), Edge(1, 2, "relu"), Edge(1, 3, "sigmoid"), Edge(2, 3, "identity"))
    space, coefficients = derived_space(CellGenotype(edges, 3, 1, (3,)))
    assert (space.edges_per_node, space.left_out) == (2, ((0, 2), (0, 3)))
    assert coefficients.sum(1).tolist() == [1, 1, 1, 1]
    check_against_formula(cell_of("darts", space), coefficients.double())


def test_nodes_without_an_edge_behind_the_last_one_are_left_out():
    genotype = CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "sum")), nodes=5, inputs=1, output=(2,))
    space, _ = derived_space(genotype)
    assert space.nodes == 2


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_a_convolutional_genotype_is_refused():
    with pytest.raises(InvalidInput, match=r"^A recurrent cell has 1 input node, this genotype has 2\.$"):
        derived_space(DARTS_V1.normal)
    gap = CellGenotype((Edge(0, 1, "tanh"), Edge(1, 3, "tanh")), nodes=3, inputs=1, output=(3,))
    with pytest.raises(InvalidInput, match=r"^A recurrent genotype's nodes need an incoming edge each; renumber"):
        derived_space(gap)


@pytest.mark.parametrize("cell", [TwoToOneCell, DartsCell, HighwayCell])
def test_wrong_sizes_and_spaces(cell):
    space = RECURRENT_BACKBONES[cell.backbone].space(2)
    for inputs, hidden, name in ((0, 3, "inputs"), (3, 0, "hidden"), (-1, 3, "inputs")):
        with pytest.raises(InvalidInput, match=f"^{name} must be above 0, got {min(inputs, hidden)}"):
            cell(space, inputs, hidden)
    with pytest.raises(InvalidInput, match=r"^A recurrent cell has 1 input node, this space has 2\.$"):
        cell(Space(("tanh",), nodes=1), 3, 3)
    for node in (0, 3, -1):
        with pytest.raises(InvalidInput, match=rf"^output: expected intermediate nodes \(1 to 2\), got {node}\.$"):
            cell(space, 3, 3, (node,))


def test_operations_of_other_spaces():
    space = Space(("sep_conv_3x3",), 1, 1, 1)
    with pytest.raises(InvalidInput, match="^Unknown operation of the Two-to-One cell 'sep_conv_3x3'"):
        TwoToOneCell(space, 2, 3)
    with pytest.raises(InvalidInput, match="^Unknown operation of the DARTS recurrent cell 'sep_conv_3x3'"):
        DartsCell(space, 2, 3)
    with pytest.raises(InvalidInput, match="^Unknown operation of the highway recurrent cell 'sum'.* Valid: sigmoid"):
        HighwayCell(Space(("sum",), 1, 1, 1), 2, 3)


def test_a_two_to_one_cell_is_a_chain():
    """A graph with other edges would have been computed as a chain, without a word."""
    for space in (
        Space(("tanh",), 2, 1, 1),
        Space(("tanh",), 2, 1, 1, left_out=((1, 2),)),  # as many edges as a chain, but both leave node 0
    ):
        with pytest.raises(InvalidInput, match=r"reads the node before it \(Eq\. 12\); .* edge from node 0 to node 2"):
            TwoToOneCell(space, 2, 3)


@pytest.mark.parametrize("cell", [TwoToOneCell, DartsCell])
def test_the_state_of_a_cell_is_one_node(cell):
    """CellGenotype means all nodes where no output is given; node 1 alone would have been the state."""
    genotype = CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "relu")), nodes=2, inputs=1)
    assert genotype.output == (1, 2)
    space, _ = derived_space(genotype)
    with pytest.raises(InvalidInput, match=r"cell is one node, got \[1, 2\]\. .* give it output=\(2,\)\.$"):
        cell(space, 2, 3, genotype.output)


@pytest.mark.parametrize("name", ["two-to-one", "darts"])
def test_an_earlier_node_can_be_the_state(name):
    space = RECURRENT_BACKBONES[name].space(3)
    cell, shorter = cell_of(name, space, output=(2,)), cell_of(name, RECURRENT_BACKBONES[name].space(2))
    copy_parameters(cell, shorter)
    assert sorted(dict(cell.named_parameters())) == sorted(dict(shorter.named_parameters()))
    coefficients, inputs = softmax_rows(space), drawn(TIME, BATCH, INPUTS)
    torch.testing.assert_close(cell(inputs, coefficients), shorter(inputs, coefficients[: len(shorter.space.edges)]))


def test_the_highway_cell_has_no_candidates_of_its_own():
    cell = HighwayCell(RECURRENT_BACKBONES["highway"].space(2), 2, 3)
    with pytest.raises(InvalidInput, match="^In the highway backbone no operation has weights of its own"):
        cell.candidates(0, 1)


@pytest.mark.parametrize("nodes", [0, -1])
def test_a_backbone_needs_nodes_and_layers(nodes):
    with pytest.raises(InvalidInput, match=f"^nodes must be above 0, got {nodes}"):
        RECURRENT_BACKBONES["darts"].space(nodes)
    with pytest.raises(InvalidInput, match=f"^layers must be above 0, got {nodes}"):
        RECURRENT_BACKBONES["darts"].space(2, nodes)
