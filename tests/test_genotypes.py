"""Spaces, genotypes and their two text forms."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.errors import InvalidInput
from nasbook.genotypes import (
    CELL_SECTIONS,
    DARTS_OPERATIONS,
    DARTS_SPACE,
    DARTS_V1,
    DARTS_V2,
    PC_DARTS_CIFAR,
    PR_DARTS_DL1,
    PR_DARTS_DL2,
    PR_DARTS_DR,
    PR_DARTS_UR,
    PUBLISHED,
    CellGenotype,
    DartsCells,
    Edge,
    Genotype,
    Space,
    count_cells,
    parse_darts,
    random_genotype,
    random_operations,
)

few = settings(derandomize=True, deadline=None, max_examples=25)

# ---------------------------------------------------------------------------------------------- strategies
# They give arguments, not objects: the type checker of the tests draws random numbers, which strategies must not.

spaces = st.fixed_dictionaries(
    {
        "operations": st.lists(
            st.sampled_from(["skip_connect", "sep_conv_3x3", "dil_conv_5x5", "conv_1x1"]), min_size=1, unique=True
        ).map(lambda names: ("none", *names)),
        "nodes": st.integers(1, 5),
        "inputs": st.integers(1, 3),
        "edges_per_node": st.integers(1, 4),
        "kinds": st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3, unique=True).map(tuple),
    }
)


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[tuple[int, int, str]], int, int, tuple[int, ...]]:
    """Cells that no derivation of DARTS gives: removed nodes, several edges between two nodes, part of the output."""
    nodes, inputs = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    edges: set[tuple[int, int, str]] = set()
    connected: list[int] = []
    for target in range(inputs, inputs + nodes):
        pairs = st.tuples(
            st.sampled_from([*range(inputs), *connected]), st.sampled_from(["a", "Größe", 'b"\\', "conv_1x3_3x1"])
        )
        chosen = draw(st.sets(pairs, max_size=3, min_size=0 if connected or target < inputs + nodes - 1 else 1))
        if chosen:
            connected.append(target)
        edges |= {(source, target, name) for source, name in chosen}
    output = draw(st.sampled_from([(), tuple(connected), tuple(reversed(connected)), tuple(connected[-1:])]))
    return draw(st.permutations(sorted(edges))), nodes, inputs, output


def build_cell(edges, nodes, inputs, output) -> CellGenotype:
    return CellGenotype(tuple(Edge(*edge) for edge in edges), nodes, inputs, output)


# ---------------------------------------------------------------------------------------------- spaces


def test_the_darts_space():
    assert DARTS_SPACE.edges == tuple((source, node) for node in (2, 3, 4, 5) for source in range(node))
    assert len(DARTS_SPACE.edges) == 14
    assert DARTS_SPACE.operations == DARTS_OPERATIONS
    assert len(DARTS_SPACE.operations) == 8 and len(DARTS_SPACE.choices) == 7 and "none" not in DARTS_SPACE.choices
    assert count_cells(DARTS_SPACE) == 1_037_664_180 == 7**8 * 1 * 3 * 6 * 10


@few
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2))
def test_count_cells_counts_every_cell(nodes, inputs, edges_per_node, choices):
    space = Space(("none", "a", "b")[: choices + 1], nodes, inputs, edges_per_node)
    total = 1
    for node in range(inputs, inputs + nodes):  # every set of (source, operation) with distinct sources
        options = [[None, *space.choices]] * node
        total *= sum(
            1
            for pick in _product(options)
            if sum(name is not None for name in pick) == min(edges_per_node, node)
        )
    assert count_cells(space) == total


def _product(options):
    if not options:
        yield ()
        return
    for rest in _product(options[1:]):
        for first in options[0]:
            yield (first, *rest)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodes": 0}, r"^nodes must be above 0, got 0\.$"),
        ({"inputs": -1}, r"^inputs must be above 0, got -1\.$"),
        ({"edges_per_node": 0}, r"^edges_per_node must be above 0, got 0\.$"),
        ({"operations": ("a", "b", "a")}, r"^A candidate operation is named twice: a, b, a\.$"),
        ({"operations": ("none",)}, r"^A space needs at least one candidate operation besides 'none'\.$"),
        ({"operations": ()}, r"^A space needs at least one candidate operation besides 'none'\.$"),
        ({"left_out": ((3, 3),)}, r"^left_out: this space has no edge from node 3 to node 3\.$"),
        ({"left_out": ((3, 2),)}, r"^left_out: this space has no edge from node 3 to node 2\.$"),
        ({"left_out": ((0, 1),)}, r"^left_out: this space has no edge from node 0 to node 1\.$"),
        ({"left_out": ((0, 6),)}, r"^left_out: this space has no edge from node 0 to node 6\.$"),
        ({"left_out": ((-1, 2),)}, r"^left_out: this space has no edge from node -1 to node 2\.$"),
        ({"left_out": ((0, 2), (1, 2))}, r"^left_out: node 2 would have no incoming edge\.$"),
        ({"left_out": ((0, 3), (1, 3), (2, 3))}, r"^left_out: node 3 would have no incoming edge\.$"),
    ],
)
def test_wrong_spaces(values, message):
    with pytest.raises(InvalidInput, match=message):
        Space(**values)


def test_edges_that_are_left_out():
    space = Space(nodes=3, left_out=((2, 3), (0, 4)))
    assert space.edges == ((0, 2), (1, 2), (0, 3), (1, 3), (1, 4), (2, 4), (3, 4))
    assert [space.sources(node) for node in range(5)] == [(), (0,), (0, 1), (0, 1), (1, 2, 3)]
    assert [space.targets(node) for node in range(5)] == [(2, 3), (2, 3, 4), (4,), (4,), ()]
    assert [space.kept(node) for node in (2, 3, 4)] == [2, 2, 2]
    assert Space(nodes=3, edges_per_node=3, left_out=((2, 3),)).kept(3) == 2
    assert len({space, Space(nodes=3, left_out=((2, 3), (0, 4))), Space(nodes=3)}) == 2


@st.composite
def sparse_spaces(draw: st.DrawFn) -> dict:
    """Arguments of a space without some of its edges; every node has one left."""
    nodes, inputs = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    left_out = []
    for target in range(inputs, inputs + nodes):
        fed = draw(st.sets(st.integers(0, target - 1), min_size=1))
        left_out += [(source, target) for source in range(target) if source not in fed]
    return {
        "operations": ("none", "a", "b"),
        "nodes": nodes,
        "inputs": inputs,
        "edges_per_node": draw(st.integers(1, 3)),
        "left_out": tuple(draw(st.permutations(left_out))),
    }


@few
@given(sparse_spaces())
def test_sources_and_targets_are_the_edges(options):
    space = Space(**options)
    last = space.inputs + space.nodes
    every = {(s, t) for t in range(space.inputs, last) for s in range(t)}
    assert set(space.edges) == every - set(options["left_out"]) and len(space.edges) == len(set(space.edges))
    assert list(space.edges) == sorted(space.edges, key=lambda edge: edge[::-1])  # grouped by target
    for node in range(last):
        assert space.targets(node) == tuple(t for s, t in sorted(space.edges) if s == node)
        if node >= space.inputs:
            assert space.sources(node) == tuple(s for s, t in sorted(space.edges) if t == node)


@few
@given(sparse_spaces(), st.integers(0, 2**32))
def test_cells_of_a_space_without_some_edges(options, seed):
    """They are counted by brute force, and drawn from the edges that there are."""
    space = Space(**options)
    total = 1
    for node in range(space.inputs, space.inputs + space.nodes):
        sources = [s for s, t in space.edges if t == node]
        kept = min(space.edges_per_node, len(sources))
        picks = _product([[None, "a", "b"]] * len(sources))
        total *= sum(sum(name is not None for name in pick) == kept for pick in picks)
    assert count_cells(space) == total
    cell = random_genotype(space, torch.Generator().manual_seed(seed)).normal
    assert {(edge.source, edge.target) for edge in cell.edges} <= set(space.edges)
    for node in range(space.inputs, space.inputs + space.nodes):
        assert len(cell.into(node)) == space.kept(node) == len({edge.source for edge in cell.into(node)})


def test_random_genotypes_without_some_edges_are_uniform():
    space = Space(("none", "a", "b"), nodes=2, edges_per_node=1, left_out=((1, 3), (0, 2)), kinds=("cell",))
    generator = torch.Generator().manual_seed(0)
    counts: dict[CellGenotype, int] = {}
    for _ in range(800):
        cell = random_genotype(space, generator)["cell"]
        counts[cell] = counts.get(cell, 0) + 1
    assert len(counts) == count_cells(space) == 8  # one source of node 2, two of node 3, two operations each
    assert all(60 < count < 140 for count in counts.values())  # 100 ± 4 deviations


# ---------------------------------------------------------------------------------------------- pools


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ([("a",)] * 4, r"^pools: expected one for each of the 5 edges, got 4\.$"),
        ([("a",)] * 6, r"^pools: expected one for each of the 5 edges, got 6\.$"),
        (
            [("a",), ("a", "b", "a"), ("a",), ("b",), ("b",)],
            r"^pools: the edge from node 1 to node 2 has a candidate twice: a, b, a\.$",
        ),
        (
            [("a",), ("a",), ("a",), (), ("b",)],
            r"^pools: the edge from node 1 to node 3 needs at least one candidate besides 'none'\.$",
        ),
        (
            [("none",), ("a",), ("a",), ("a",), ("b",)],
            r"^pools: the edge from node 0 to node 2 needs at least one candidate besides 'none'\.$",
        ),
        (
            [("a",), ("a",), ("a",), ("a",), ("a", "c")],
            r"^pools: the edge from node 2 to node 3 has 'c', which is not among the operations of the space\.$",
        ),
    ],
)
def test_wrong_pools(pools, message):
    with pytest.raises(InvalidInput, match=message):
        Space(("none", "a", "b"), nodes=2, pools=tuple(map(tuple, pools)))


def test_candidates_of_edges():
    graph = Space(("x",), nodes=2, left_out=((0, 3),), edges_per_node=1, kinds=("cell",))
    space = graph.with_pools([["b", "a"], ["c"], ("a", "none"), ("d", "b", "a")])
    assert space.operations == ("b", "a", "c", "none", "d")  # in order of first appearance
    assert space.pools == (("b", "a"), ("c",), ("a", "none"), ("d", "b", "a"))
    assert [space.candidates(*edge) for edge in space.edges] == list(space.pools)
    assert (space.left_out, space.edges_per_node, space.kinds) == (((0, 3),), 1, ("cell",))
    assert space.with_pools(space.pools) == space and hash(space) == hash(space.with_pools(space.pools))
    assert space != graph and graph.candidates(1, 3) == ("x",)
    with pytest.raises(ValueError, match="not in"):
        space.candidates(0, 3)
    # Candidates that stand on no edge may be among the operations, whatever their order.
    assert Space(("z", "a", "b"), nodes=1, pools=(("b", "a"), ("a",))).candidates(0, 2) == ("b", "a")
    with pytest.raises(InvalidInput, match=r"^pools: expected one for each of the 4 edges, got 2\.$"):
        graph.with_pools([("a",), ("b",)])


@st.composite
def ragged_spaces(draw: st.DrawFn) -> tuple[dict, list[tuple[str, ...]]]:
    """Arguments of a space without pools, and pools for it."""
    options = draw(sparse_spaces())
    last = options["inputs"] + options["nodes"]
    edges = sum(range(options["inputs"], last)) - len(options["left_out"])
    pool = st.lists(st.sampled_from(["none", "a", "b", "c"]), min_size=1, unique=True).map(tuple)
    return options, [draw(pool.filter(lambda names: names != ("none",))) for _ in range(edges)]


@few
@given(ragged_spaces())
def test_cells_of_pools_are_counted_by_brute_force(arguments):
    options, pools = arguments
    space = Space(**options).with_pools(pools)
    total = 1
    for node in range(space.inputs, space.inputs + space.nodes):
        own = [pool for (_, target), pool in zip(space.edges, pools, strict=True) if target == node]
        picks = _product([[None, *(name for name in pool if name != "none")] for pool in own])
        total *= sum(sum(name is not None for name in pick) == space.kept(node) for pick in picks)
    assert count_cells(space) == total
    assert count_cells(Space(**options).with_pools([space.operations] * len(space.edges))) == count_cells(
        Space(**{**options, "operations": space.operations})
    )


def test_the_size_of_pr_darts_spaces():
    """§5: 15 candidates on every edge, 180 · 15⁸ cells, 153 times as many as with 8."""
    of = {number: count_cells(Space(tuple(f"operation {i}" for i in range(number)))) for number in (8, 15)}
    assert of[15] == 180 * 15**8 == 461_320_312_500
    assert of[8] == 180 * 8**8 and of[15] // of[8] == 152 and round(of[15] / of[8]) == 153


def test_random_genotypes_of_pools_are_refused():
    space = Space(("a", "b"), nodes=1).with_pools([("a",), ("b",)])
    with pytest.raises(InvalidInput, match=r"^random_genotype\(\) needs the same candidates on all edges; this space"):
        random_genotype(space, torch.Generator())


# ---------------------------------------------------------------------------------------------- random operations


@few
@given(st.dictionaries(st.text(max_size=5), cells(), min_size=1, max_size=3), st.integers(0, 2**32))
def test_random_operations_keep_the_topology(cells_by_kind, seed):
    # Only cells whose edges are single: two operations between two nodes could be drawn alike.
    topology = Genotype({kind: build_cell(*single_edges(cell)) for kind, cell in cells_by_kind.items()})
    drawn = random_operations(topology, ("x", "y"), torch.Generator().manual_seed(seed))
    assert drawn.kinds == topology.kinds
    for kind in topology.kinds:
        old, new = topology[kind], drawn[kind]
        assert [(e.source, e.target) for e in new.edges] == [(e.source, e.target) for e in old.edges]
        assert (new.nodes, new.inputs, new.output) == (old.nodes, old.inputs, old.output)
        assert {edge.operation for edge in new.edges} <= {"x", "y"}
    assert drawn == random_operations(topology, ("x", "y"), torch.Generator().manual_seed(seed))


def single_edges(cell: tuple) -> tuple:
    edges, nodes, inputs, output = cell
    return [(*pair, "a") for pair in sorted({edge[:2] for edge in edges})], nodes, inputs, output


def test_random_operations_are_uniform_and_independent():
    topology = Genotype({"cell": CellGenotype((Edge(0, 2, "a"), Edge(2, 3, "a")), nodes=2)})
    generator = torch.Generator().manual_seed(0)
    counts: dict[Genotype, int] = {}
    for _ in range(900):
        drawn = random_operations(topology, ("x", "y", "z"), generator)
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 9
    assert all(60 < count < 140 for count in counts.values())  # 100 ± 4 deviations


# ---------------------------------------------------------------------------------------------- cells


def test_a_cell_is_the_same_in_any_order_of_its_edges():
    edges = (Edge(1, 3, "a"), Edge(0, 2, "b"), Edge(0, 3, "a"), Edge(0, 2, "a"))
    cell = CellGenotype(edges, nodes=2)
    assert cell.edges == (Edge(0, 2, "a"), Edge(0, 2, "b"), Edge(0, 3, "a"), Edge(1, 3, "a"))
    assert cell == CellGenotype(edges[::-1], nodes=2) and hash(cell) == hash(CellGenotype(edges[::-1], nodes=2))
    assert cell.into(3) == (Edge(0, 3, "a"), Edge(1, 3, "a")) and cell.into(1) == ()


def test_a_node_without_edges_is_removed():
    cell = CellGenotype((Edge(0, 2, "a"), Edge(2, 4, "a")), nodes=3)
    assert cell.connected() == (2, 4)
    assert cell.output == (2, 4)
    assert CellGenotype(cell.edges, nodes=3, output=(4,)).output == (4,)


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        ((), {}, r"^edges: a cell needs at least one edge, got none\.$"),
        ((Edge(0, 2, "a"),), {"nodes": 0}, r"^inputs=2, nodes=0: a cell needs at least one input and one int"),
        ((Edge(0, 2, "a"),), {"inputs": 0}, r"^inputs=0, nodes=4: a cell needs at least one input"),
        ((Edge(0, 2, "a"), Edge(0, 6, "a")), {}, r"^edges\[1\]\.target: .* \(2 to 5\), got 6\.$"),
        ((Edge(0, 1, "a"),), {}, r"^edges\[0\]\.target: .* \(2 to 5\), got 1\.$"),
        ((Edge(3, 3, "a"),), {}, r"^edges\[0\]\.source: .* \(0 to 2\), got 3\.$"),
        ((Edge(-1, 3, "a"),), {}, r"^edges\[0\]\.source: .* \(0 to 2\), got -1\.$"),
        ((Edge(0, 2, "none"),), {}, r"^edges\[0\]\.operation: 'none' means no connection; leave the edge out\.$"),
        ((Edge(0, 2, "a"), Edge(0, 2, "a")), {}, "^edges: the same operation stands twice between the same two nodes"),
        ((Edge(2, 3, "a"), Edge(0, 3, "a")), {}, r"^edges\[0\]\.source: node 2 has no incoming edge"),
        ((Edge(0, 2, "a"),), {"output": (2, 3)}, r"^output: node 3 has no incoming edge .* that have one: 2\.$"),
        ((Edge(0, 2, "a"),), {"output": (0,)}, r"^output: node 0 has no incoming edge"),
        ((Edge(0, 2, "a"),), {"output": (2, 2)}, r"^output: a node is named twice in \[2, 2\]\.$"),
    ],
)
def test_wrong_cells(edges, options, message):
    with pytest.raises(InvalidInput, match=message):
        CellGenotype(edges, **options)


def test_a_genotype_by_kind():
    genotype = Genotype({"normal": DARTS_V1.normal, "reduction": DARTS_V2.reduction})
    assert genotype["normal"] is genotype.normal and genotype["reduction"] is genotype.reduction
    assert genotype.kinds == ("normal", "reduction")
    assert len(list(genotype.operations())) == 16
    assert genotype == Genotype([("normal", DARTS_V1.normal), ("reduction", DARTS_V2.reduction)])
    assert len({genotype, DARTS_V1, DARTS_V2, parse_darts(darts_text(DARTS_V1))}) == 3
    with pytest.raises(InvalidInput, match=r"^Unknown kind of cell 'norml'\. Did you mean 'normal'\? Valid: normal, r"):
        genotype["norml"]
    with pytest.raises(InvalidInput, match=r"^A genotype needs at least one cell, got none\.$"):
        Genotype({})
    with pytest.raises(InvalidInput, match=r"^A kind of cell is given twice: normal, normal\.$"):
        Genotype([("normal", DARTS_V1.normal)] * 2)


# ---------------------------------------------------------------------------------------------- JSON


@few
@given(st.dictionaries(st.text(max_size=5), cells(), min_size=1, max_size=3))
def test_json_round_trip(cells_by_kind):
    genotype = Genotype({kind: build_cell(*cell) for kind, cell in cells_by_kind.items()})
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype.from_json(json.dumps(json.loads(genotype.to_json()))) == genotype  # the layout does not matter


def five_cells(seed):
    """What Firefly's cell search may find: all 14 edges of five cells, with four operations and the identity."""
    operations = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5", "skip_connect")
    space = Space(operations, edges_per_node=5, kinds=CELL_SECTIONS)
    return space, random_genotype(space, torch.Generator().manual_seed(seed))


@few
@given(st.integers(0, 2**32))
def test_five_kinds_of_cell_in_json(seed):
    _, genotype = five_cells(seed)
    again = Genotype.from_json(genotype.to_json())
    assert again == genotype and hash(again) == hash(genotype)
    assert again.kinds == tuple(json.loads(genotype.to_json())["cells"]) == CELL_SECTIONS
    swapped = {**dict(genotype.cells), "cell 1": genotype["cell 5"], "cell 5": genotype["cell 1"]}
    assert (Genotype(swapped) == genotype) == (genotype["cell 1"] == genotype["cell 5"])  # the place counts


def test_five_kinds_of_cell_keep_all_edges():
    space, genotype = five_cells(0)
    assert count_cells(space) == 5**14  # of one kind; the kinds are independent of each other
    for _, cell in genotype.cells:
        assert tuple((edge.source, edge.target) for edge in cell.edges) == DARTS_SPACE.edges
    assert len(set(dict(genotype.cells).values())) == 5  # each kind is drawn by itself
    with pytest.raises(InvalidInput, match=r"^Unknown kind of cell 'normal'\. Valid: cell 1, cell 2, cell 3, cell 4,"):
        genotype.normal  # noqa: B018


def test_five_kinds_of_cell_are_saved(tmp_path):
    _, genotype = five_cells(1)
    assert Genotype.load(genotype.save(tmp_path / "five.json")) == genotype
    damaged = (tmp_path / "five.json").read_text().replace('"cell 4": {"inputs": 2', '"cell 4": {"inputs": -2')
    (tmp_path / "five.json").write_text(damaged)
    with pytest.raises(InvalidInput, match=r"five\.json: cells\.cell 4\.inputs=-2, nodes=4: a cell needs"):
        Genotype.load(tmp_path / "five.json")


@few
@given(spaces, st.integers(0, 2**32))
def test_json_round_trip_of_random_genotypes(space, seed):
    genotype = random_genotype(Space(**space), torch.Generator().manual_seed(seed))
    assert Genotype.from_json(genotype.to_json()) == genotype


def test_save_and_load(tmp_path):
    path = DARTS_V2.save(tmp_path / "new" / "cell.json")
    assert path == tmp_path / "new" / "cell.json"
    assert Genotype.load(path) == DARTS_V2
    assert [p.name for p in path.parent.iterdir()] == ["cell.json"]  # nothing temporary is left
    DARTS_V1.save(str(path))
    assert Genotype.load(str(path)) == DARTS_V1


def test_a_failed_save_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = DARTS_V2.save(tmp_path / "cell.json")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nasbook.files.os.fsync", no_space)
    with pytest.raises(InvalidInput, match=r"^Can't write .*: No space left on device; the earlier file is unch"):
        DARTS_V1.save(path)
    with pytest.raises(InvalidInput, match=r"No space left on device; no file was left there\.$"):
        DARTS_V1.save(tmp_path / "other.json")
    assert Genotype.load(path) == DARTS_V2
    assert [p.name for p in tmp_path.iterdir()] == ["cell.json"]


def test_a_folder_in_the_way(tmp_path):
    with pytest.raises(InvalidInput, match=r"^Can't write .*; no file was left there\.$"):
        DARTS_V1.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_loaded(tmp_path):
    with pytest.raises(InvalidInput, match=r"^Can't read the genotype .*none\.json: No such file or directory\.$"):
        Genotype.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\x80\x04\xff")
    with pytest.raises(InvalidInput, match=r"binary\.json is not a text file; expected genotype JSON\.$"):
        Genotype.load(tmp_path / "binary.json")
    (tmp_path / "broken.json").write_text(DARTS_V1.to_json()[:-20])
    with pytest.raises(InvalidInput, match=r"broken\.json: Not valid JSON \(line \d+, column \d+\): .+\.$"):
        Genotype.load(tmp_path / "broken.json")


def _document() -> dict:
    return json.loads(DARTS_V1.to_json())


def _changed(path: tuple, value: object) -> str:
    """The JSON of DARTS_V1 with another value in one place."""
    document = place = _document()
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "other", r"^format: expected 'nasbook\.genotype', got 'other'\.$"),
        (("version",), 2, r"^version: this nasbook reads version 1, got 2\.$"),
        (("cells",), {}, r"^cells: expected an object with at least one cell\.$"),
        (("cells",), [], r"^cells: expected an object with at least one cell\.$"),
        (("cell",), {}, r"^Unknown field in the genotype 'cell'\. Did you mean 'cells'\? Valid: format, version, "),
        (("cells", "normal"), [], r"^cells\.normal: expected an object with inputs, nodes, edges, output; got list\.$"),
        (("cells", "normal", "node"), 4, r"^Unknown field in cells\.normal 'node'\. Did you mean 'nodes'\?"),
    ],
)
def test_broken_json_names_the_field(path, value, message):
    with pytest.raises(InvalidInput, match=message):
        Genotype.from_json(_changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("inputs",), "2", r"inputs: expected a whole number, got '2'\.$"),
        (("inputs",), 0, r"inputs=0, nodes=4: a cell needs at least one input and one intermediate node\.$"),
        (("nodes",), 4.5, r"nodes: expected a whole number, got 4\.5\.$"),
        (("nodes",), True, r"nodes: expected a whole number, got True\.$"),
        (("nodes",), None, r"nodes: expected a whole number, got None\.$"),
        (("nodes",), 3, r"edges\[6\]\.target: expected an intermediate node \(2 to 4\), got 5\.$"),
        (("edges",), {}, r"edges: expected a list of \[source, target, operation\]\.$"),
        (("edges",), [], r"edges: a cell needs at least one edge, got none\.$"),
        (("edges", 1), [0, 2], r"edges\[1\]: expected \[source, target, operation\], got \[0, 2\]\.$"),
        (("edges", 1), [0, "2", "a"], r"edges\[1\]: expected .*, got \[0, '2', 'a'\]\.$"),
        (("edges", 1), [True, 2, "a"], r"edges\[1\]: expected .*, got \[True, 2, 'a'\]\.$"),
        (("edges", 1), [0, 2, None], r"edges\[1\]: expected .*, got \[0, 2, None\]\.$"),
        (("edges", 1), [2, 2, "a"], r"edges\[1\]\.source: expected a node before the target \(0 to 1\), got 2\.$"),
        (("edges", 1), [1, 2, "none"], r"edges\[1\]\.operation: 'none' means no connection; leave the edge out\.$"),
        (("output",), 5, r"output: expected a list of node numbers, got 5\.$"),
        (("output",), [5.0], r"output: expected a list of node numbers, got \[5\.0\]\.$"),
        (("output",), [7], r"output: node 7 has no incoming edge in this cell; nodes that have one: 2, 3, 4, 5\.$"),
    ],
)
def test_broken_json_names_the_field_of_the_cell(path, value, message):
    with pytest.raises(InvalidInput, match=r"^cells\.reduction\." + message):
        Genotype.from_json(_changed(("cells", "reduction", *path), value))


@pytest.mark.parametrize("field", ["format", "version", "cells"])
def test_a_missing_field_of_the_genotype(field):
    document = _document()
    del document[field]
    with pytest.raises(InvalidInput, match=rf"^the genotype: the field '{field}' is missing\.$"):
        Genotype.from_json(json.dumps(document))


@pytest.mark.parametrize("field", ["inputs", "nodes", "edges", "output"])
def test_a_missing_field_of_a_cell(field):
    document = _document()
    del document["cells"]["reduction"][field]
    with pytest.raises(InvalidInput, match=rf"^cells\.reduction: the field '{field}' is missing\.$"):
        Genotype.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "{", "[1,", "[" * 100_000, "1" * 5_000, "null", "[]", '"Genotype"', "NaN", '{"format": Infinity}']
)
def test_other_text_is_refused_in_one_line(text):
    with pytest.raises(InvalidInput) as caught:
        Genotype.from_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@few
@given(st.data())
def test_json_cut_or_garbled_is_read_right_or_refused(data):
    text = DARTS_V1.to_json()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 10)))
    garbled = text[:start] + data.draw(st.text(alphabet='0123456789[]{},:"-.a', max_size=3)) + text[end:]
    try:
        genotype = Genotype.from_json(garbled)
    except InvalidInput:
        return
    assert Genotype.from_json(genotype.to_json()) == genotype


# ---------------------------------------------------------------------------------------------- the authors' text form


def darts_text(genotype: Genotype) -> str:
    """What ``print`` shows of the authors' named tuple; needs two edges a node."""
    parts = []
    for field, kind in (("normal", "normal"), ("reduce", "reduction")):
        cell = genotype[kind]
        pairs = [(edge.operation, edge.source) for edge in cell.edges]
        parts += [f"{field}={pairs!r}", f"{field}_concat={list(cell.output)!r}"]
    return f"Genotype({', '.join(parts)})"


@few
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_parse_darts_reads_what_the_authors_print(seed, nodes):
    genotype = random_genotype(Space(nodes=nodes), torch.Generator().manual_seed(seed))
    assert parse_darts(darts_text(genotype)) == genotype
    assert parse_darts(f"\n  BEST = {darts_text(genotype)}\n") == genotype
    assert parse_darts(f"BEST: object = {darts_text(genotype)}  # comment") == genotype
    ranged = darts_text(genotype).replace(repr(list(genotype.normal.output)), f"range(2, {nodes + 2})")
    assert parse_darts(ranged) == genotype


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("DARTS_V1", "normal", "sep3(1) sep3(0) | skip(0) sep3(1) | skip(0) sep3(1) | sep3(0) skip(2)"),
        ("DARTS_V1", "reduction", "max(0) max(1) | skip(2) max(0) | max(0) skip(2) | skip(2) avg(0)"),
        ("DARTS_V2", "normal", "sep3(0) sep3(1) | sep3(0) sep3(1) | sep3(1) skip(0) | skip(0) dil3(2)"),
        ("DARTS_V2", "reduction", "max(0) max(1) | skip(2) max(1) | max(0) skip(2) | skip(2) max(1)"),
        ("PC_DARTS_CIFAR", "normal", "sep3(1) skip(0) | sep3(0) dil3(1) | sep5(0) sep3(1) | avg(0) dil3(1)"),
        ("PC_DARTS_CIFAR", "reduction", "sep5(1) max(0) | sep5(1) sep5(2) | sep3(0) sep3(3) | sep3(1) sep3(2)"),
        ("PR_DARTS_DL1", "normal", "once5(0) once3(1) | once3(1) skip(2) | once3(1) skip(2) | skip(0) skip(2)"),
        ("PR_DARTS_DL1", "reduction", "once3(0) skip(1) | max(0) once5(2) | once3(0) once3(1) | max(1) once3(4)"),
    ],
)
def test_published_cells(name, kind, rows):
    words = {
        "sep3": "sep_conv_3x3", "sep5": "sep_conv_5x5", "dil3": "dil_conv_3x3",
        "skip": "skip_connect", "max": "max_pool_3x3", "avg": "avg_pool_3x3",
        "once3": "sep_conv(kernel=3, dilation=1, expansions=1)",
        "once5": "sep_conv(kernel=5, dilation=1, expansions=1)",
    }  # fmt: skip
    expected = {
        Edge(int(source), node, words[word])
        for node, row in enumerate(rows.split(" | "), start=2)
        for word, source in (entry.rstrip(")").split("(") for entry in row.split())
    }
    cell = PUBLISHED[name][kind]
    assert set(cell.edges) == expected and len(cell.edges) == 8
    assert (cell.nodes, cell.inputs, cell.output) == (4, 2, (2, 3, 4, 5))


def test_the_names_of_the_published_cells():
    assert PUBLISHED == {
        "DARTS_V1": DARTS_V1,
        "DARTS_V2": DARTS_V2,
        "PC_DARTS_CIFAR": PC_DARTS_CIFAR,
        "PR_DARTS_DL1": PR_DARTS_DL1,
        "PR_DARTS_DL2": PR_DARTS_DL2,
        "PR_DARTS_DR": PR_DARTS_DR,
        "PR_DARTS_UR": PR_DARTS_UR,
    }


_PAIRS = "[('a', 0), ('b', 1)]"


def _text(normal=_PAIRS, normal_concat="[2]", reduce=_PAIRS, reduce_concat="[2]") -> str:
    return f"Genotype(normal={normal}, normal_concat={normal_concat}, reduce={reduce}, reduce_concat={reduce_concat})"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^Not a DARTS genotype\. Expected Genotype\(normal="),
        ("Genotype(", r"^Not a DARTS genotype\."),
        ("Genotyp()", r"^Not a DARTS genotype\."),
        ("import os", r"^Not a DARTS genotype\."),
        ("\0", r"^Not a DARTS genotype\."),
        ("(" * 100_000, r"^Not a DARTS genotype\."),
        ("-" * 20_000 + "1", r"^Not a DARTS genotype\."),
        ("+".join("1" * 20_000), r"^Not a DARTS genotype\."),
        ("Genotype()", r"^Expected the keywords normal, normal_concat, reduce, reduce_concat; got none\.$"),
        ("Genotype(normal=[], reduce=[])", r"; got normal, reduce\.$"),
        (_text().replace("Genotype(", "Genotype(1, "), r"^Expected the keywords"),
        (_text().replace("reduce=", "reduction="), r"; got normal, normal_concat, reduction, reduce_concat\.$"),
        (_text(normal="5"), r"^normal: expected a list of \('operation', source\) pairs\.$"),
        (_text(normal="['ab', 3]"), r"^normal: expected a list of \('operation', source\) pairs\.$"),
        (_text(reduce="[]"), r"^reduce: expected two edges for every node, got 0 edges\.$"),
        (_text(reduce="[('a', 0)]"), r"^reduce: expected two edges for every node, got 1 edges\.$"),
        (_text(normal="[('a', 0), (1, 'b')]"), r"^normal\[1\]: expected \('operation', source\), got \(1, 'b'\)\.$"),
        (_text(normal="[('a', True), ('b', 1)]"), r"^normal\[0\]: expected .*, got \('a', True\)\.$"),
        (_text(normal="[('a', 0), ('b', 2)]"), r"^normal: edges\[1\]\.source: .* \(0 to 1\), got 2\.$"),
        (_text(normal="[('a', 0), ('none', 1)]"), r"^normal: edges\[1\]\.operation: 'none' means no connection"),
        (_text(normal_concat="5"), r"^normal_concat: expected range\(…\) or a list of node numbers\.$"),
        (_text(normal_concat="range('a')"), r"^normal_concat: expected range\(…\) or a list"),
        (_text(normal_concat="{2: 2}"), r"^normal_concat: expected range\(…\) or a list"),
        (_text(reduce_concat="[2, 3]"), r"^reduce: output: node 3 has no incoming edge in this cell; .*: 2\.$"),
        (_text(reduce_concat="range(2, 1000000000000)"), r"^reduce: output: node 3 has no incoming edge"),
    ],
)
def test_wrong_darts_text(text, message):
    with pytest.raises(InvalidInput, match=message):
        parse_darts(text)


_CODE = "__import__('pathlib').Path({path!r}).touch()"


@pytest.mark.parametrize(
    "template",
    [
        "{code}",
        "Genotype({code})",
        "Genotype(*{code})",
        "Genotype(**{code})",
        "x = [{code}]; " + _text(),
        _text(normal="[('a', 0), ('b', {code})]"),
        _text(normal="[('a', i) for i in [{code}]]"),
        _text(normal="{code}"),
        _text(reduce="[(f'{{{code}}}', 0), ('b', 1)]"),
        _text(normal_concat="range({code}, 3)"),
        _text(normal_concat="range(2, 3, *{code})"),
        _text(normal_concat="[{code}]"),
        _text(reduce_concat="(lambda: {code})()"),
        "Genotype[{code}](normal=1)",
        "Genotype.{code}",
    ],
)
def test_parse_darts_never_evaluates(template, tmp_path):
    target = tmp_path / "ran"
    with pytest.raises(InvalidInput):
        parse_darts(template.replace("{code}", _CODE.format(path=str(target))))
    assert not target.exists()


# ---------------------------------------------------------------------------------------------- random genotypes


@few
@given(spaces, st.integers(0, 2**32))
def test_random_genotypes_lie_in_the_space(options, seed):
    space = Space(**options)
    genotype = random_genotype(space, torch.Generator().manual_seed(seed))
    assert genotype.kinds == space.kinds
    for _, cell in genotype.cells:
        assert (cell.nodes, cell.inputs) == (space.nodes, space.inputs)
        for node in range(space.inputs, space.inputs + space.nodes):
            incoming = cell.into(node)
            assert len(incoming) == space.kept(node) == len({edge.source for edge in incoming})
            assert all(edge.operation in space.choices for edge in incoming)
    assert genotype == random_genotype(space, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("operations", "nodes", "cells"), [(("none", "a", "b"), 2, 48), (("none", "a"), 3, 18)])
def test_random_genotypes_are_uniform(operations, nodes, cells):
    space = Space(operations, nodes, kinds=("cell",))
    generator = torch.Generator().manual_seed(0)
    draws = 2_400
    counts: dict[CellGenotype, int] = {}
    for _ in range(draws):
        cell = random_genotype(space, generator)["cell"]
        counts[cell] = counts.get(cell, 0) + 1
    assert len(counts) == count_cells(space) == cells  # every cell comes up
    expected = draws / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = len(counts) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)  # four deviations of the χ² distribution


def test_reading_a_genotype_needs_no_torch():
    program = "import sys, nasbook.genotypes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_drawing_a_genotype_needs_no_torch():
    program = (
        "import sys; from nasbook.genotypes import DARTS_V2; from nasbook.plots import draw_genotype, draw_stack; "
        "draw_genotype(DARTS_V2); draw_stack(DARTS_V2.kinds); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=300).returncode == 0


def test_genotypes_are_equal_when_their_cells_are():
    cells = dict(DARTS_V2.cells)
    turned = Genotype(dict(reversed(list(cells.items()))))
    assert turned == DARTS_V2
    assert hash(turned) == hash(DARTS_V2)
    assert DARTS_V1 != DARTS_V2
    assert DARTS_V1 != "DARTS_V1"


def test_a_kind_that_is_no_name_is_refused():
    # The type checker of the tests refuses it before the function itself can.
    with pytest.raises((InvalidInput, TypeError), match=r"kind of a cell is a name, got 1|parameter 'cells'"):
        Genotype({1: DARTS_V2.normal})


# ---------------------------------------------------------------------------------------------- neighbours


def changes_between(one, other):
    """How many edges of each kind of cell stand in one genotype and not in the other."""
    return [len(set(cell.edges) - set(other[kind].edges)) for kind, cell in one.cells]


@given(spaces, st.integers(0, 2**40))
@few
def test_neighbours_are_at_one_change_and_mutual(options, seed):
    space = Space(**options)
    cells = DartsCells(space)
    genotype = cells.random(torch.Generator().manual_seed(seed))
    neighbours = cells.neighbours(genotype)
    expected = 0
    for node in range(space.inputs, space.inputs + space.nodes):
        kept, others = space.kept(node), len(space.choices) - 1
        expected += kept * (others + len(space.sources(node)) - kept)
    assert len(neighbours) == len(set(neighbours)) == expected * len(space.kinds)
    for neighbour in neighbours:
        cells.check(neighbour)
        assert sorted(changes_between(genotype, neighbour)) == [0] * (len(space.kinds) - 1) + [1]
    for neighbour in neighbours[:3]:
        assert genotype in cells.neighbours(neighbour)
    if neighbours:
        assert cells.mutate(genotype, torch.Generator().manual_seed(seed)) in neighbours
    else:
        with pytest.raises(InvalidInput, match="^A genotype without neighbours can't be mutated"):
            cells.mutate(genotype, torch.Generator())


def test_neighbours_in_darts_space():
    neighbours = DartsCells().neighbours(DARTS_V2)
    assert len(neighbours) == 120
    assert neighbours == DartsCells().neighbours(DARTS_V2)
    assert neighbours[0] == Genotype(
        {
            "normal": CellGenotype((Edge(0, 2, "max_pool_3x3"), *DARTS_V2.normal.edges[1:])),
            "reduction": DARTS_V2.reduction,
        }
    )


def test_neighbours_keep_to_pools_and_edges_left_out():
    space = Space(("a", "b", "c"), nodes=1, inputs=3, edges_per_node=1, kinds=("cell",), left_out=((0, 3),))
    cells = DartsCells(space.with_pools((("a", "b"), ("b", "none", "c"))))
    start = Genotype({"cell": CellGenotype((Edge(1, 3, "a"),), 1, 3)})
    [middle] = cells.neighbours(start)  # "a" may not stand on the other edge
    assert middle["cell"].edges == (Edge(1, 3, "b"),)
    assert [g["cell"].edges[0] for g in cells.neighbours(middle)] == [Edge(1, 3, "a"), Edge(2, 3, "b")]


def test_a_mutation_draws_the_kind_then_the_mutation_then_the_edge():
    """In DARTS' space half of the mutations move an edge, though only 12 of 60 neighbours of a cell do."""
    generator = torch.Generator().manual_seed(0)
    kinds, moved, places = dict.fromkeys(("normal", "reduction"), 0), 0, [0] * 6
    for _ in range(1200):
        child = DartsCells().mutate(DARTS_V1, generator)
        [kind] = [kind for kind, cell in child.cells if cell != DARTS_V1[kind]]
        kinds[kind] += 1
        [old], [new] = (
            set(one[kind].edges) - set(other[kind].edges) for one, other in ((DARTS_V1, child), (child, DARTS_V1))
        )
        assert (old.source == new.source) != (old.operation == new.operation)
        assert old.target == new.target
        if old.source != new.source:
            moved += 1
            places[old.target] += 1
    assert abs(kinds["normal"] - 600) < 90  # five standard deviations
    assert abs(moved - 600) < 90
    assert places[2] == 0  # both inputs enter the first node, so that no source is free
    assert all(abs(count - moved / 3) < 60 for count in places[3:])


def test_cells_whose_edges_have_nowhere_to_go_change_operations():
    cells = DartsCells(Space(("a", "b"), nodes=1, kinds=("cell",)))
    start = Genotype({"cell": CellGenotype((Edge(0, 2, "a"), Edge(1, 2, "a")), 1)})
    drawn = {cells.mutate(start, torch.Generator().manual_seed(seed)) for seed in range(20)}
    assert drawn == set(cells.neighbours(start))
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("kinds", "cell", "message"),
    [
        (("other",), CellGenotype((Edge(0, 2, "a"), Edge(1, 2, "a")), 1), "has the cells other; the space has cell"),
        (("cell",), CellGenotype((Edge(0, 1, "a"),), 1, 1), "expected 2 inputs and 1 nodes, got 1 and 1"),
        (("cell",), CellGenotype((Edge(0, 2, "a"),), 1), "expected edges from 2 sources into node 2, got .0."),
        (("cell",), CellGenotype((Edge(0, 2, "a"), Edge(0, 2, "b")), 1), "from 2 sources into node 2, got .0, 0."),
        (("cell",), CellGenotype((Edge(0, 2, "a"), Edge(1, 2, "c")), 1), "'c' is no candidate from 1 to 2"),
    ],
)
def test_genotypes_of_another_space_have_no_neighbours(kinds, cell, message):
    cells = DartsCells(Space(("a", "b"), nodes=1, kinds=("cell",)))
    for ask in (cells.neighbours, lambda genotype: cells.mutate(genotype, torch.Generator())):
        with pytest.raises(InvalidInput, match=message):
            ask(Genotype(dict.fromkeys(kinds, cell)))


def test_an_edge_that_the_space_leaves_out_is_refused():
    cells = DartsCells(Space(("a",), nodes=1, inputs=3, kinds=("cell",), left_out=((0, 3),)))
    genotype = Genotype({"cell": CellGenotype((Edge(0, 3, "a"), Edge(1, 3, "a")), 1, 3)})
    with pytest.raises(InvalidInput, match="^cells.cell: no edge of the space runs from 0 to 3"):
        cells.neighbours(genotype)
