"""Topology variables against the paper's equations, written out in its own numbering.

The references here number nodes from 1, as the paper does: inputs 1 and 2, intermediate nodes 3 to N. They enumerate
pairs and binary codes by loops of their own, and find a variable of the relaxation by the set of edges it stands for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nasbook.analysis import cell_depth, count_macs, count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import CellGenotype, Edge, Genotype, Space
from nasbook.networks import DerivedNetwork
from nasbook.plots import draw_cell
from nasbook.supernets import (
    AnyOutputEdges,
    InputEdges,
    OutputEdges,
    SoftmaxRelaxation,
    StrongestOutputs,
    TopologyRelaxation,
    connected_cell,
    output_edge_space,
)

OPERATIONS = ("max_pool_3x3", "skip_connect", "sep_conv_3x3")
SIZES = range(4, 10)
"""The paper's N, inputs and intermediate nodes together."""

Pair = tuple[int, int]


def several(examples: int) -> settings:
    return settings(derandomize=True, deadline=None, max_examples=examples)


# ---------------------------------------------------------------------------------------------- the paper's spaces


def input_pairs(size: int) -> dict[int, list[frozenset[Pair]]]:
    """τ_j of Eq. 3: for each intermediate node j the pairs of its input edges, m < n < j."""
    return {
        j: [frozenset({(m, j), (n, j)}) for m in range(1, j) for n in range(m + 1, j)] for j in range(3, size + 1)
    }


def output_pairs(size: int) -> dict[int, list[frozenset[Pair]]]:
    """τ̃_i of Eq. 7 for the nodes that have a pair; an input node is nobody's target."""
    found = {}
    for i in range(1, size + 1):
        first = max(i + 1, 3)
        pairs = [frozenset({(i, m), (i, n)}) for m in range(first, size + 1) for n in range(m + 1, size + 1)]
        if pairs:
            found[i] = pairs
    return found


def codes(size: int, *, empty: bool) -> dict[int, list[frozenset[Pair]]]:
    """B_i of Eq. 11: every binary code over the later nodes, as the set of edges it switches on."""
    found = {}
    for i in range(1, size):
        later = [j for j in range(i + 1, size + 1) if j >= 3]
        found[i] = []
        for number in range(0 if empty else 1, 2 ** len(later)):
            bits = [number >> place & 1 for place in range(len(later))]
            found[i].append(frozenset((i, j) for j, bit in zip(later, bits, strict=True) if bit))
    return found


def later_nodes(i: int, size: int) -> int:
    """N − i, or one less for node 1, which node 2 does not follow."""
    return size - max(i, 2)


SPACES = {
    "input pairs": (
        input_pairs,
        lambda space, **options: InputEdges(space, **options),
        lambda i, size, target: Fraction(math.comb(target - 1, 2), target - 2),
    ),
    "output pairs": (
        output_pairs,
        lambda space, **options: OutputEdges(output_edge_space(space), **options),
        lambda i, size, target: Fraction(math.comb(later_nodes(i, size), 2), math.comb(later_nodes(i, size) - 1, 1)),
    ),
    "codes": (
        lambda size: codes(size, empty=False),
        lambda space, **options: AnyOutputEdges(space, empty=False, **options),
        lambda i, size, target: Fraction(2 ** later_nodes(i, size) - 1, 2 ** (later_nodes(i, size) - 1)),
    ),
    "codes, empty too": (
        lambda size: codes(size, empty=True),
        lambda space, **options: AnyOutputEdges(space, **options),
        lambda i, size, target: Fraction(2),
    ),
}
"""Name: the choices of every node, the relaxation, and the factor of edge (i, target) as Eq. 10 and 13 mean it."""


def build(name: str, size: int, **options: float) -> TopologyRelaxation:
    torch.manual_seed(size)
    return SPACES[name][1](Space(OPERATIONS, size - 2), **{"scale": 1.0, **options}).double()


def ours(edges: frozenset[Pair]) -> frozenset[Pair]:
    """The edges numbered from 0."""
    return frozenset((source - 1, target - 1) for source, target in edges)


def variables(relaxation: TopologyRelaxation, chooses: dict[int, list[frozenset[Pair]]]) -> dict[int, list[int]]:
    """For each node the places in β of its choices, in the order of the reference.

    Both have to have the same choices. Two nodes' empty choices look alike, so rows are told apart by the others.
    """
    starts = itertools.accumulate([0, *map(len, relaxation.choices)])
    rows = [
        {choice: start + place for place, choice in enumerate(sets)}
        for start, sets in zip(starts, relaxation.choices, strict=False)
    ]
    assert len(rows) == len(chooses)
    assert len(relaxation.beta) == sum(map(len, rows)) == sum(map(len, chooses.values()))
    found = {}
    for node, sets in chooses.items():
        (row,) = (row for row in rows if row.keys() == {ours(choice) for choice in sets})
        found[node] = [row[ours(choice)] for choice in sets]
    return found


def softmax(values: list[Tensor]) -> list[Tensor]:
    """Eq. 5, 8 and 12 by their quotient."""
    exponentials = [value.exp() for value in values]
    total = sum(exponentials[1:], exponentials[0])
    return [value / total for value in exponentials]


# ---------------------------------------------------------------------------------------------- merged against summed


class Operations(nn.Module):
    """Three smooth functions on every edge, in place of convolutions."""

    def __init__(self, size: int, width: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(size)
        self.maps = {
            (i, j): torch.randn(3, width, width, generator=generator, dtype=torch.float64) / 2
            for j in range(3, size + 1)
            for i in range(1, j)
        }
        self.inputs = torch.randn(2, width, generator=generator, dtype=torch.float64)
        self.weights = torch.randn(size - 2, width, generator=generator, dtype=torch.float64)

    def __call__(self, i: int, j: int, x: Tensor) -> list[Tensor]:
        return [torch.sin(matrix @ x + place) for place, matrix in enumerate(self.maps[i, j])]


def summed(relaxation: TopologyRelaxation, name: str, size: int, operations: Operations) -> Tensor:
    """Every node by the explicit sum over choices: Eq. 4 with Eq. 1 in it, or Eq. 9 and 13 before the merge.

    One term a choice and node: p · Σ o(x) over the edges of this choice that enter the node.
    """
    chooses, _, factor = SPACES[name]
    places = variables(relaxation, chooses(size))
    rows = zip(relaxation.space.edges, relaxation.alpha, strict=True)
    alpha = {(source + 1, target + 1): row for (source, target), row in rows}
    p = {node: softmax([relaxation.beta[place] for place in places[node]]) for node in places}
    x = {1: operations.inputs[0], 2: operations.inputs[1]}
    for j in range(3, size + 1):
        o = {}  # o^{i,j}(x_i), Eq. 1, with the factor of the edge
        for i in range(1, j):
            if (i, j) in alpha:
                weighted = zip(softmax(list(alpha[i, j])), operations(i, j, x[i]), strict=True)
                o[i] = sum(w * y for w, y in weighted) * (float(factor(i, size, j)) if relaxation.scaled else 1.0)
        x[j] = torch.zeros_like(x[1])
        for node, sets in chooses(size).items():
            for probability, choice in zip(p[node], sets, strict=True):
                entering = [o[i] for i, target in sorted(choice) if target == j]
                if entering:
                    x[j] = x[j] + probability * sum(entering[1:], entering[0])
    return torch.stack([x[j] for j in range(3, size + 1)])


def merged(relaxation: TopologyRelaxation, size: int, operations: Operations) -> Tensor:
    """Every node from the coefficients, as a search cell sums it: one term an edge."""
    coefficients = relaxation.coefficients()
    x = {1: operations.inputs[0], 2: operations.inputs[1]}
    for j in range(3, size + 1):
        x[j] = torch.zeros_like(x[1])
        for (source, target), row in zip(relaxation.space.edges, coefficients, strict=True):
            if target + 1 == j:
                outputs = operations(source + 1, j, x[source + 1])
                x[j] = x[j] + sum(c * o for c, o in zip(row, outputs, strict=True))
    return torch.stack([x[j] for j in range(3, size + 1)])


def check_merged(relaxation: TopologyRelaxation, name: str, size: int) -> None:
    operations = Operations(size)
    results = [summed(relaxation, name, size, operations), merged(relaxation, size, operations)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    leaves = (relaxation.alpha, relaxation.beta)
    slopes = [torch.autograd.grad((x * operations.weights).sum(), leaves) for x in results]
    for by_merge, by_sum in zip(*reversed(slopes), strict=True):
        torch.testing.assert_close(by_merge, by_sum, rtol=1e-11, atol=1e-12)
    assert float(slopes[0][0].abs().max()) > 1e-3
    if max(map(len, relaxation.choices)) > 1:  # one pair of N = 4's inputs: nothing to learn
        assert float(slopes[0][1].abs().max()) > 1e-3


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("size", SIZES)
def test_the_merged_form_is_the_sum_over_choices(name, size):
    for scaled in (True, False):
        check_merged(build(name, size, scaled=scaled), name, size)


def unused(size: int) -> Pair:
    """The edge that is in no pair: Eq. 10 is undefined for it."""
    return size - 1, size


@pytest.mark.parametrize("size", SIZES)
def test_merged_probabilities_as_printed(size):
    """s and s̃ of Eq. 6, 9 and 10 by their own sums over k, from p of Eq. 5 and 8."""
    relaxation = build("input pairs", size)
    assert not relaxation.scaled  # Eq. 6 has no factor
    p: dict[tuple[int, int, int], Tensor] = {}
    for j, places in variables(relaxation, input_pairs(size)).items():
        pairs = [(m, n) for m in range(1, j) for n in range(m + 1, j)]
        values = softmax([relaxation.beta[place] for place in places])
        p |= {(j, *pair): value for pair, value in zip(pairs, values, strict=True)}
    for (source, target), value in zip(relaxation.space.edges, relaxation.edge_coefficients(), strict=True):
        i, j = source + 1, target + 1
        expected = sum(p[j, k, i] for k in range(1, i)) + sum(p[j, i, k] for k in range(i + 1, j))
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)

    relaxation = build("output pairs", size)
    assert relaxation.scaled
    p = {}
    for i, places in variables(relaxation, output_pairs(size)).items():
        later = [j for j in range(i + 1, size + 1) if j >= 3]
        pairs = [(m, n) for m in later for n in later if m < n]
        values = softmax([relaxation.beta[place] for place in places])
        p |= {(i, *pair): value for pair, value in zip(pairs, values, strict=True)}
    edges = relaxation.space.edges
    assert {(s + 1, t + 1) for s, t in Space(OPERATIONS, size - 2).edges} - {(s + 1, t + 1) for s, t in edges} == {
        unused(size)
    }
    for (source, target), s, scaled in zip(
        edges, relaxation.edge_probabilities(), relaxation.edge_coefficients(), strict=True
    ):
        i, j = source + 1, target + 1
        expected = sum(p[i, k, j] for k in range(max(i + 1, 3), j)) + sum(p[i, j, k] for k in range(j + 1, size + 1))
        torch.testing.assert_close(s, expected, rtol=1e-13, atol=0)
        count = later_nodes(i, size)
        factor = math.comb(count, 2) / math.comb(count - 1, 1)
        torch.testing.assert_close(scaled, factor * expected, rtol=1e-13, atol=0)


class HalfMerged(AnyOutputEdges):
    """Forgets one choice in one edge."""

    def edge_probabilities(self) -> Tensor:
        holds = self._holds.clone()
        holds[int(holds[:, 0].argmax()), 0] = 0
        return self.probabilities().flatten() @ holds


class DetachedMerge(AnyOutputEdges):
    """No gradient through the normaliser."""

    def probabilities(self) -> Tensor:
        exponentials = self.beta_table().exp()
        return exponentials / exponentials.sum(-1, keepdim=True).detach()


class OtherFactor(AnyOutputEdges):
    """Eq. 13's factor as printed, with the empty choice in the space."""

    def edge_coefficients(self) -> Tensor:
        return self.edge_probabilities() * ((self._of_all - 1) / self._with_edge)


@pytest.mark.parametrize("mutant", [HalfMerged, DetachedMerge, OtherFactor])
def test_a_wrong_merge_is_found(mutant):
    torch.manual_seed(6)
    relaxation = mutant(Space(OPERATIONS, 4), scale=1.0).double()
    with pytest.raises(AssertionError):
        check_merged(relaxation, "codes, empty too", 6)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("size", SIZES)
def test_coefficients_are_probabilities_of_edges_and_operations(name, size):
    relaxation = build(name, size)
    coefficients = relaxation.coefficients()
    assert coefficients.shape == relaxation.alpha.shape == (len(relaxation.space.edges), 3)
    torch.testing.assert_close(coefficients.sum(1), relaxation.edge_coefficients(), rtol=1e-13, atol=0)
    p = relaxation.probabilities()
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64))
    edges = dict(zip(relaxation.space.edges, relaxation.edge_probabilities().tolist(), strict=True))
    assert all(0 < value <= 1 + 1e-12 for value in edges.values())
    if "pairs" in name:  # each node that chooses has two edges
        assert sum(edges.values()) == pytest.approx(2 * len(relaxation.choices))


# ---------------------------------------------------------------------------------------------- factors and counts


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("size", SIZES)
def test_every_scaled_coefficient_is_1_at_uniform_beta(name, size):
    relaxation = build(name, size, scaled=True)
    factor = SPACES[name][2]
    for level in (0.0, -3.0):
        nn.init.constant_(relaxation.beta, level)
        s = relaxation.edge_coefficients()
        torch.testing.assert_close(s, torch.ones_like(s), rtol=0, atol=4e-16 * len(relaxation.beta))
    for (source, target), p in zip(relaxation.space.edges, relaxation.edge_probabilities().tolist(), strict=True):
        assert p * float(factor(source + 1, size, target + 1)) == pytest.approx(1, abs=1e-13)


def test_factors_as_printed_are_off():
    """Eq. 13's factor at the paper's own number of choices (2^(N−i), the empty one among them) does not give 1."""
    relaxation = build("codes, empty too", 6, scaled=False)
    nn.init.zeros_(relaxation.beta)
    for (source, _), s in zip(relaxation.space.edges, relaxation.edge_coefficients().tolist(), strict=True):
        later = 6 - max(source + 1, 2)
        printed = (2**later - 1) / 2 ** (later - 1) * s
        assert printed == pytest.approx(1 - 2**-later)


@pytest.mark.parametrize("size", SIZES)
def test_numbers_of_choices(size):
    """C(N−i, 2) pairs, 2^(N−i) − 1 codes or 2^(N−i) with the empty one; node 1 has one target less (Eq. 7, 11)."""
    later = [later_nodes(i, size) for i in range(1, size)]
    assert later[:3] == [size - 2, size - 2, size - 3][: len(later)]
    counts = {name: [len(sets) for sets in build(name, size).choices] for name in SPACES}
    assert counts["codes"] == [2**n - 1 for n in later]
    assert counts["codes"] == [sum(math.comb(n, k) for k in range(1, n + 1)) for n in later]  # the sum of Eq. 11
    assert counts["codes, empty too"] == [2**n for n in later]
    assert counts["output pairs"] == [math.comb(n, 2) for n in later if n >= 2]
    assert counts["input pairs"] == [math.comb(j - 1, 2) for j in range(3, size + 1)]


@pytest.mark.parametrize("name", SPACES)
def test_choices_are_all_different_and_of_one_node(name):
    relaxation = build(name, 7)
    for sets in relaxation.choices:
        assert len(set(sets)) == len(sets)
        side = 1 if name == "input pairs" else 0
        assert len({edge[side] for choice in sets for edge in choice}) == 1


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_other_numbers_of_edges(number):
    space = Space(OPERATIONS, 4)
    relaxation = InputEdges(space, number)
    assert [len(sets) for sets in relaxation.choices] == [math.comb(n, min(number, n)) for n in (2, 3, 4, 5)]
    assert {len(choice) for sets in relaxation.choices for choice in sets} == set(range(min(2, number), number + 1))
    relaxation = OutputEdges(output_edge_space(space, number), number)
    assert [len(sets) for sets in relaxation.choices] == [math.comb(n, number) for n in (4, 4, 3, 2, 1) if n >= number]
    assert {len(choice) for sets in relaxation.choices for choice in sets} == {number}
    for scaled in (InputEdges(space, number, scaled=True, scale=0), OutputEdges(relaxation.space, number, scale=0)):
        s = scaled.edge_coefficients()
        torch.testing.assert_close(s, torch.ones_like(s))


def test_a_node_that_has_fewer_edges_than_it_should_choose_takes_all_of_its_inputs():
    relaxation = InputEdges(Space(OPERATIONS, 3), 3)
    assert relaxation.choices[0] == (frozenset({(0, 2), (1, 2)}),)
    assert float(relaxation.probabilities()[0, 0].detach()) == 1


# ---------------------------------------------------------------------------------------------- the penalty


def printed_penalty(relaxation: TopologyRelaxation, name: str, size: int) -> Tensor:
    """r(β) of Eq. 14, word for word: probabilities by their quotient, both maxima over lists of them.

    The sum is over intermediate nodes, since inputs have no input edges, and the product over edges of the space.
    """
    chooses = SPACES[name][0](size)
    places = variables(relaxation, chooses)
    p = {node: softmax([relaxation.beta[place] for place in places[node]]) for node in chooses}
    r = torch.zeros((), dtype=torch.float64)
    for j in range(3, size + 1):
        product = torch.ones((), dtype=torch.float64)
        for i in range(1, j):
            chooser = j if name == "input pairs" else i
            if chooser not in chooses:
                continue
            giving = [q for q, choice in zip(p[chooser], chooses[chooser], strict=True) if (i, j) in choice]
            if giving:
                product = product * (1 - torch.stack(giving).max() / torch.stack(p[chooser]).max())
        r = r + product
    return r


def pointing_at(relaxation: TopologyRelaxation, picked: tuple[int, ...], seed: int) -> TopologyRelaxation:
    """Makes the picked choice of every node its most probable one, all others random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        relaxation.beta.copy_(torch.rand(relaxation.beta.shape, generator=generator, dtype=torch.float64))
        for start, place in zip(itertools.accumulate([0, *map(len, relaxation.choices)]), picked, strict=False):
            relaxation.beta[start + place] = relaxation.beta.max() + 0.5
    return relaxation


def all_topologies(relaxation: TopologyRelaxation) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(sets)) for sets in relaxation.choices))


def check_penalty(relaxation: TopologyRelaxation, name: str, size: int, picked: tuple[int, ...]) -> bool:
    """r is 0 on a valid topology, and so is all of its gradient; else it is positive, and its gradient touches the
    offending variables, in the direction that repairs the cell. Returns whether the topology is valid.

    Offending are, for each node without an input edge, its predecessors' best choices (their probability should
    fall), and their best choices among those that would give it an edge (it should rise).
    """
    chosen = frozenset().union(*(sets[n] for sets, n in zip(relaxation.choices, picked, strict=True)))
    assert relaxation.topology() == chosen
    starts = list(itertools.accumulate([0, *map(len, relaxation.choices)]))
    beta = relaxation.beta.detach().tolist()
    falling, rising = set(), set()
    for node in range(2, size):
        if not any(target == node for _, target in chosen):
            for start, sets, best in zip(starts, relaxation.choices, picked, strict=False):
                giving = [start + n for n, choice in enumerate(sets) if any(edge[1] == node for edge in choice)]
                if giving:
                    falling.add(start + best)
                    rising.add(max(giving, key=lambda place: beta[place]))
    r = relaxation.invalidity()
    (slope,) = torch.autograd.grad(r, relaxation.beta)
    valid = not falling
    assert valid == all(any(edge[1] == node for edge in chosen) for node in range(2, size))
    assert (float(r.detach()) == 0) == valid and float(r.detach()) >= 0
    for place, value in enumerate(slope.tolist()):
        assert (value > 0) == (place in falling), place
        assert (value < 0) == (place in rising), place
    expected = printed_penalty(relaxation, name, size)
    torch.testing.assert_close(r, expected, rtol=1e-12, atol=1e-15)
    (theirs,) = torch.autograd.grad(expected, relaxation.beta, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(slope, theirs, rtol=1e-10, atol=1e-14)
    return valid


@pytest.mark.parametrize(
    ("name", "size", "topologies", "valid"),
    [
        ("input pairs", 4, 3, 3),
        ("input pairs", 5, 18, 18),
        ("output pairs", 4, 1, 1),  # both inputs have one pair
        ("output pairs", 5, 9, 8),  # three pairs each, node 3's is fixed; invalid: node 3 left out by both
        ("codes", 4, 9, 8),
        ("codes", 5, 147, 147 - 27 - 9 + 1),  # without those that leave out node 3, or node 4; both leave out both
        ("codes, empty too", 4, 32, 3 * 7),  # any set of input edges but the empty one, for each node
        ("codes, empty too", 5, 512, 3 * 7 * 15),
    ],
)
def test_the_penalty_over_all_topologies(name, size, topologies, valid):
    relaxation = build(name, size)
    results = [
        check_penalty(pointing_at(relaxation, picked, seed), name, size, picked)
        for seed, picked in enumerate(all_topologies(relaxation))
    ]
    assert len(results) == topologies
    assert results.count(True) == valid


@several(30)
@given(st.sampled_from(sorted(SPACES)), st.integers(4, 7), st.integers(0, 2**32))
def test_the_penalty_of_random_variables(name, size, seed):
    relaxation = build(name, size)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(relaxation.beta, std=2.0, generator=generator)
    starts = list(itertools.accumulate([0, *map(len, relaxation.choices)]))
    picked = tuple(
        int(relaxation.beta[start : start + len(sets)].argmax())
        for start, sets in zip(starts, relaxation.choices, strict=False)
    )
    check_penalty(relaxation, name, size, picked)


def invalid_relaxation(size: int = 5) -> TopologyRelaxation:
    """Every node chooses its last target only, so that the nodes between have no input edge."""
    relaxation = build("codes, empty too", size)
    picked = tuple(sets.index(frozenset({max(sets[-1])})) for sets in relaxation.choices)
    return pointing_at(relaxation, picked, 0)


def test_the_slope_of_the_penalty_is_the_measured_one():
    relaxation = invalid_relaxation()
    assert float(relaxation.invalidity().detach()) > 0.1

    def invalidity(beta: Tensor) -> Tensor:
        return torch.func.functional_call(_Invalidity(relaxation), {"relaxation.beta": beta}, ())

    assert torch.autograd.gradcheck(invalidity, relaxation.beta.detach().requires_grad_())


class _Invalidity(nn.Module):
    def __init__(self, relaxation: TopologyRelaxation) -> None:
        super().__init__()
        self.relaxation = relaxation

    def forward(self) -> Tensor:
        return self.relaxation.invalidity()


@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0])
def test_lambda_multiplies(weight):
    relaxation = invalid_relaxation()
    assert relaxation.penalty_weight == 10.0  # Eq. 15
    relaxation.penalty_weight = weight
    slopes = [torch.autograd.grad(f(), relaxation.beta)[0] for f in (relaxation.penalty, relaxation.invalidity)]
    assert float(relaxation.penalty().detach()) == weight * float(relaxation.invalidity().detach())
    torch.testing.assert_close(slopes[0], weight * slopes[1], rtol=1e-14, atol=0)
    options = {"penalty_weight": weight}
    assert AnyOutputEdges(Space(OPERATIONS, 2), **options).penalty_weight == weight


def test_descent_on_the_penalty_makes_the_cell_valid():
    relaxation = invalid_relaxation(6)
    optimizer = torch.optim.SGD([relaxation.beta], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        relaxation.penalty().backward()
        if not relaxation.beta.grad.any():
            break
        optimizer.step()
    assert float(relaxation.penalty().detach()) == 0
    assert {edge.target for edge in relaxation.derive().edges} == {2, 3, 4, 5}


# ---------------------------------------------------------------------------------------------- edges and derivation


@pytest.mark.parametrize("name", ["input pairs", "output pairs"])
def test_eight_edges_with_pairs_on_four_nodes(name):
    relaxation = build(name, 6)
    for seed in range(50):
        nn.init.normal_(relaxation.beta, generator=torch.Generator().manual_seed(seed))
        assert len(relaxation.topology()) == 8
        if float(relaxation.invalidity().detach()) == 0:
            assert len(relaxation.derive().edges) == 8


def expected_cell(space: Space, choices: list, beta: list[list[int]], alpha: dict[Pair, list[int]]) -> set[Edge]:
    """The derived cell by loops: the first most probable choice of every node, what inputs reach, strongest operations.

    ``choices`` and ``beta`` have a row for each node that chooses; the inputs' fallback is by the least loss.
    """
    edges = set()
    for sets, row in zip(choices, beta, strict=True):
        best = 0
        for place, value in enumerate(row):
            if value > row[best]:
                best = place
        edges |= set(sets[best])
    if not any(source < space.inputs for source, _ in edges):
        losses = []
        for number, (sets, row) in enumerate(zip(choices, beta, strict=True)):
            for place, choice in enumerate(sets):
                if any(source < space.inputs for source, _ in choice):
                    losses.append((max(row) - row[place], number, place))
        _, number, place = sorted(losses)[0]
        edges |= set(choices[number][place])
    alive = set(range(space.inputs))
    kept: set[Edge] = set()
    for node in range(space.inputs, space.inputs + space.nodes):
        for source in range(node):
            if source in alive and (source, node) in edges:
                row = alpha[source, node]
                best = next(place for place, value in enumerate(row) if value == max(row))
                kept.add(Edge(source, node, space.operations[best]))
        if any(edge.target == node for edge in kept):
            alive.add(node)
    return kept


@several(150)
@given(st.data())
def test_derivation_against_brute_force(data):
    """Few values of α and β, so that there are many ties."""
    nodes = data.draw(st.integers(1, 4))
    inputs = data.draw(st.integers(1, 3))
    kind = data.draw(st.sampled_from([InputEdges, OutputEdges, AnyOutputEdges, "never empty"]))
    space = Space(OPERATIONS, nodes, inputs)
    if kind is OutputEdges:
        space = Space(OPERATIONS, nodes + 1, inputs)
        relaxation = OutputEdges(output_edge_space(space))
    elif kind == "never empty":
        relaxation = AnyOutputEdges(space, empty=False)
    else:
        relaxation = kind(space)
    values = st.integers(0, data.draw(st.integers(0, 3)))
    beta = [[data.draw(values) for _ in sets] for sets in relaxation.choices]
    alpha = {edge: [data.draw(values) for _ in OPERATIONS] for edge in relaxation.space.edges}
    with torch.no_grad():
        relaxation.beta.copy_(torch.tensor([value for row in beta for value in row]))
        relaxation.alpha.copy_(torch.tensor(list(alpha.values())))
    cell = relaxation.derive()
    assert set(cell.edges) == expected_cell(relaxation.space, list(relaxation.choices), beta, alpha)
    assert (cell.nodes, cell.inputs) == (relaxation.space.nodes, inputs)


def choosing(space: Space, *edges: Pair, **options: object) -> TopologyRelaxation:
    """A stretchable relaxation whose most probable choices are these edges."""
    relaxation = AnyOutputEdges(space, scale=0, **options)
    start = 0
    for sets in relaxation.choices:
        for place, choice in enumerate(sets):
            if choice == {edge for edge in edges if edge[0] in {source for c in sets for source, _ in c}}:
                nn.init.ones_(relaxation.beta[start + place : start + place + 1])
        start += len(sets)
    assert relaxation.topology() == set(edges)
    return relaxation


def pairs_of(cell: CellGenotype) -> set[Pair]:
    return {(edge.source, edge.target) for edge in cell.edges}


def test_a_node_that_nobody_chooses_is_removed_and_so_is_what_leaves_it():
    space = Space(OPERATIONS, 4)
    # Nobody chooses node 3; it chooses 4, and 4 chooses 5, which has an edge of its own.
    relaxation = choosing(space, (0, 2), (2, 5), (3, 4), (4, 5))
    cell = relaxation.derive()
    assert pairs_of(cell) == {(0, 2), (2, 5)}
    assert cell.connected() == cell.output == (2, 5)
    assert pairs_of(choosing(space, (0, 2), (1, 3), (2, 4), (3, 4)).derive()) == {(0, 2), (1, 3), (2, 4), (3, 4)}
    assert pairs_of(choosing(space, (1, 5), (2, 3), (2, 4), (3, 4)).derive()) == {(1, 5)}


def test_where_nobody_chooses_anything_the_inputs_least_loss_stands_in():
    space = Space(OPERATIONS, 3)
    relaxation = choosing(space)
    assert relaxation.topology() == frozenset()
    # All codes of the inputs that have an edge lose as much: the first of them, from the first input.
    assert pairs_of(relaxation.derive()) == {(0, 2)}
    with torch.no_grad():
        relaxation.beta[8 + relaxation.choices[1].index(frozenset({(1, 3), (1, 4)}))] = 0.5
    assert pairs_of(relaxation.derive()) == {(1, 3), (1, 4)}
    # What intermediate nodes chose is kept where the stand-in reaches it.
    relaxation = choosing(space, (2, 4), (3, 4))
    with torch.no_grad():
        relaxation.beta[8 + relaxation.choices[1].index(frozenset({(1, 3)}))] = 0.5
    assert pairs_of(relaxation.derive()) == {(1, 3), (3, 4)}


def test_ties_go_to_the_first():
    cell = AnyOutputEdges(Space(OPERATIONS, 2), scale=0, empty=False).derive()
    assert cell.edges == (Edge(0, 2, "max_pool_3x3"), Edge(1, 2, "max_pool_3x3"), Edge(2, 3, "max_pool_3x3"))
    cell = InputEdges(Space(OPERATIONS, 2), scale=0).derive()
    assert pairs_of(cell) == {(0, 2), (1, 2), (0, 3), (1, 3)}
    cell = OutputEdges(output_edge_space(Space(OPERATIONS, 3)), scale=0).derive()
    assert pairs_of(cell) == {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (2, 4)}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("which", ["alpha", "beta"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_variable_that_is_not_finite(name, which, value):
    relaxation = build(name, 5)
    getattr(relaxation, which).data.view(-1)[1] = value
    with pytest.raises(InvalidInput, match=r"^Can't derive a cell: an architecture weight is not finite\.$"):
        relaxation.derive()


def test_a_removed_node_in_the_derived_network():
    """It is built, trained, counted, drawn, written and read like any other cell."""
    normal = choosing(Space(OPERATIONS, 4), (0, 2), (1, 5), (2, 5), (3, 4)).derive()
    reduction = choosing(Space(OPERATIONS, 4), (1, 4)).derive()
    genotype = Genotype({"normal": normal, "reduction": reduction})
    assert (normal.output, reduction.output) == ((2, 5), (4,))
    assert Genotype.from_json(genotype.to_json()) == genotype
    network = DerivedNetwork(genotype, channels=2, cells=6, classes=3)
    images = torch.randn(4, 3, 8, 8)
    network(images).square().sum().backward()
    unread = ("cells.2.preprocessing.0.", "cells.4.preprocessing.0.")  # the reduction cell does not read input 0
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(unread), name
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
    widths = [cell(*_inputs_of(cell)).shape[1] for cell in network.cells]
    assert widths == [2 * 2, 2 * 2, 4 * 1, 4 * 2, 8 * 1, 8 * 2]
    assert count_parameters(network) == sum(parameter.numel() for parameter in network.parameters())
    assert count_parameters(network.classifier) == (8 * 2 + 1) * 3
    assert count_macs(network, (1, 3, 8, 8)) > 0
    assert cell_depth(normal) == 2
    drawing = draw_cell(normal)
    assert drawing is not None


def _inputs_of(cell: nn.Module) -> tuple[Tensor, Tensor]:
    widths = [next(m for m in p.modules() if isinstance(m, nn.Conv2d)).in_channels for p in cell.preprocessing]
    halved = type(cell.preprocessing[0]).__name__ == "FactorizedReduction"
    return torch.randn(2, widths[0], 8 if halved else 4, 8 if halved else 4), torch.randn(2, widths[1], 4, 4)


# ---------------------------------------------------------------------------------------------- DARTS' output edges


@several(40)
@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 3), st.booleans())
def test_strongest_outputs_against_brute_force(seed, nodes, kept, zero):
    names = ("none", *OPERATIONS) if zero else OPERATIONS
    kept = min(kept, nodes)
    space = Space(names, nodes, edges_per_node=kept)
    relaxation = StrongestOutputs(space)
    generator = torch.Generator().manual_seed(seed)
    relaxation.alpha.data = torch.randint(0, 4, relaxation.alpha.shape, generator=generator).double()
    weights = relaxation.alpha.detach().softmax(-1)
    best = {}
    for edge, row in zip(space.edges, weights.tolist(), strict=True):
        value, place = min((-value, place) for place, value in enumerate(row) if names[place] != "none")
        best[edge] = (-value, names[place])
    chosen = set()
    for i in range(nodes + 1):
        ranked = sorted((-best[i, j][0], j) for j in range(max(2, i + 1), nodes + 2))
        if len(ranked) >= kept:
            chosen |= {(i, j) for _, j in ranked[:kept]}
    reached = {0, 1}
    edges = set()
    for i, j in sorted(chosen, key=lambda edge: edge[1]):
        if i in reached:
            reached.add(j)
            edges.add(Edge(i, j, best[i, j][1]))
    assert set(relaxation.derive().edges) == edges
    torch.testing.assert_close(relaxation.coefficients(), weights)


def test_strongest_outputs_keep_as_many_edges_as_pairs():
    relaxation = StrongestOutputs(Space(nodes=4), scale=1.0)
    assert isinstance(relaxation, SoftmaxRelaxation)
    counts = set()
    for seed in range(100):
        nn.init.normal_(relaxation.alpha, generator=torch.Generator().manual_seed(seed))
        counts.add(len(relaxation.derive().edges))
    assert max(counts) == 8
    nn.init.constant_(relaxation.alpha, math.nan)
    with pytest.raises(InvalidInput, match=r"^Can't derive a cell: an architecture weight is not finite\.$"):
        relaxation.derive()


def test_the_output_edge_space():
    space = Space(OPERATIONS, 4)
    assert output_edge_space(space).left_out == ((4, 5),)
    assert output_edge_space(space, 3).left_out == ((3, 4), (3, 5), (4, 5))
    assert output_edge_space(space, 1) == space
    assert output_edge_space(output_edge_space(space)) == output_edge_space(space)
    left = output_edge_space(Space(OPERATIONS, 4, left_out=((3, 5),)))  # node 3 has one target left
    assert left.left_out == ((3, 4), (3, 5), (4, 5))


def test_a_cell_of_given_edges():
    space = Space(("none", "a", "b"), 2)
    weights = torch.tensor([[9.0, 0, 1], [9, 1, 0], [9, 1, 1], [9, 0, 1], [9, 2, 3]])
    cell = connected_cell({(0, 2), (1, 3), (2, 3)}, weights, space)
    assert cell.edges == (Edge(0, 2, "b"), Edge(1, 3, "b"), Edge(2, 3, "b"))
    assert connected_cell([(0, 3)], weights, space).edges == (Edge(0, 3, "a"),)
    with pytest.raises(InvalidInput, match=r"^edges: a cell needs at least one edge, got none\.$"):
        connected_cell([(2, 3)], weights, space)


# ---------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("kind", [InputEdges, OutputEdges, AnyOutputEdges])
def test_the_zero_operation_is_refused(kind):
    message = r"^The topology variables say which edges there are: leave 'none' out of the space\.$"
    with pytest.raises(InvalidInput, match=message):
        kind(Space(("none", "skip_connect"), 3))


def test_an_edge_that_no_node_can_choose_is_refused():
    message = (
        r"^No node can choose the edge from {} to {}: expected one. "
        r"An edge that nobody chooses is left out of the space "
        r"\(see nasbook\.supernets\.output_edge_space\)\.$"
    )
    with pytest.raises(InvalidInput, match=message.format(4, 5)):
        OutputEdges(Space(OPERATIONS, 4))
    with pytest.raises(InvalidInput, match=message.format(3, 4)):
        OutputEdges(Space(OPERATIONS, 4), 3)
    with pytest.raises(InvalidInput, match=message.format(1, 2)):
        TopologyRelaxation(Space(OPERATIONS, 1), [[frozenset({(0, 2)})]])


def test_wrong_numbers():
    space = Space(OPERATIONS, 3)
    for kind in (InputEdges, OutputEdges):
        with pytest.raises(InvalidInput, match=r"^number must be above 0, got 0\.$"):
            kind(space, 0)
    for value in (-1.0, math.nan):
        with pytest.raises(InvalidInput, match=rf"^penalty_weight must be at least 0, got {value}\.$"):
            AnyOutputEdges(space, penalty_weight=value)
    with pytest.raises(InvalidInput, match=r"^No node has 4 later nodes to choose from: lower number, or add nodes\.$"):
        OutputEdges(space, 4)


def test_too_many_output_edges():
    message = (
        r"^A node with 15 output edges has 2\^15 sets of them to choose from; "
        r"at most 14 edges are supported: use fewer nodes\.$"
    )
    with pytest.raises(InvalidInput, match=message):
        AnyOutputEdges(Space(OPERATIONS, 15))


def test_a_node_without_output_edges_does_not_choose():
    space = Space(OPERATIONS, 3, left_out=((2, 3), (2, 4)))
    for empty in (False, True):
        relaxation = AnyOutputEdges(space, empty=empty, scale=0)
        s = relaxation.edge_coefficients()
        torch.testing.assert_close(s, torch.ones_like(s))
        assert sum(len(sets) > 1 for sets in relaxation.choices) == 3 - (not empty)
        assert relaxation.derive().edges


def test_initial_variables():
    torch.manual_seed(0)
    relaxation = AnyOutputEdges(Space(nodes=6, operations=OPERATIONS))
    for parameter in (relaxation.alpha, relaxation.beta):
        assert 5e-4 < float(parameter.detach().std()) < 2e-3  # 1e-3 · N(0, 1)
    assert len(relaxation.beta) == 2 * 64 + 32 + 16 + 8 + 4 + 2
    assert set(relaxation.state_dict()) == {"alpha", "beta"}
    assert {name for name, _ in relaxation.named_parameters()} == {"alpha", "beta"}
