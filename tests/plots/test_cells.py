from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Polygon
from matplotlib.text import Text

from nasbook.genotypes import (
    CELL_SECTIONS,
    DARTS_OPERATIONS,
    DARTS_SPACE,
    DARTS_V2,
    PUBLISHED,
    CellGenotype,
    Edge,
    Genotype,
    Space,
    random_genotype,
)
from nasbook.plots import (
    cell_in_words,
    dag_layout,
    draw_cell,
    draw_genotype,
    operation_label,
    operation_styles,
)
from nasbook.plots.cells import edge_paths
from nasbook.plots.layout import share, spread
from nasbook.plots.palette import wrap_label


def texts(figure: Figure) -> list[Text]:
    return [text for ax in figure.axes for text in [*ax.texts, ax.title] if text.get_text()]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of labels whose boxes share more than half a pixel, and labels that leave the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    found = [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    page = figure.bbox
    found += [
        (name, "edge of the page")
        for name, box in boxes
        if box.x0 < page.x0 - 0.5 or box.x1 > page.x1 + 0.5 or box.y0 < page.y0 - 0.5 or box.y1 > page.y1 + 0.5
    ]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_genotype_shows_every_operation_once_an_edge(name: str) -> None:
    genotype = PUBLISHED[name]
    figure = draw_genotype(genotype)
    shown = sorted(t.get_text() for t in texts(figure) if str(t.get_gid()).startswith("operation-"))
    assert shown == sorted(operation_label(operation) for operation in genotype.operations())
    assert {"normal cell", "reduction cell"} <= {t.get_text() for t in texts(figure)}
    assert overlaps(figure) == []
    assert min(float(t.get_fontsize()) for t in texts(figure)) >= 8


@settings(max_examples=25, deadline=None)
@given(nodes=st.integers(1, 9), inputs=st.integers(1, 2), kept=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_no_two_labels_touch(nodes: int, inputs: int, kept: int, seed: int) -> None:
    space = Space(nodes=nodes, inputs=inputs, edges_per_node=kept)
    cell = random_genotype(space, torch.Generator().manual_seed(seed)).normal
    figure = draw_cell(cell, title="a cell")
    assert overlaps(figure) == []
    assert figure.get_figwidth() == 6.5
    assert sum(str(t.get_gid()).startswith("operation-") for t in texts(figure)) == len(cell.edges)


def test_the_deepest_nine_node_cell_stays_readable() -> None:
    edges = [Edge(node - back, node, "sep_conv_3x3") for node in range(2, 11) for back in (1, 2)]
    figure = draw_cell(CellGenotype(tuple(edges), nodes=9))
    assert overlaps(figure) == []
    assert min(float(t.get_fontsize()) for t in texts(figure)) >= 7


def test_the_widest_nine_node_cell_stays_readable() -> None:
    edges = [Edge(source, node, "dil_conv_5x5") for node in range(2, 11) for source in (0, 1)]
    figure = draw_cell(CellGenotype(tuple(edges), nodes=9))
    assert overlaps(figure) == []
    assert min(float(t.get_fontsize()) for t in texts(figure)) >= 8


def test_parallel_edges_unknown_names_and_removed_nodes() -> None:
    cell = CellGenotype(
        (Edge(0, 2, "skip_connect"), Edge(0, 2, "a_rather_long_name_of_my_own"), Edge(1, 2, "conv_1x7_7x1"),
         Edge(2, 4, "tanh")), nodes=4,
    )  # fmt: skip
    figure = draw_cell(cell)
    shown = {t.get_text().replace("\n", "") for t in texts(figure)}
    assert {"skip", "a_rather_long_name_of_my_own", "conv 1×7→7×1", "tanh", "2", "3", "4", "5"} <= shown
    colours = {t.get_text(): t.get_color() for t in texts(figure)}
    assert colours["3"] == colours["5"] != colours["2"] == colours["4"]  # nodes 3 and 5 are removed
    assert overlaps(figure) == []


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, 97), min_size=1, max_size=30), st.integers(0, 10**6))
def test_cells_of_any_topology_stay_readable(connections: set[int], seed: int) -> None:
    """Any number of operations between two nodes, and 1 to 10 or more connections a node."""
    names = DARTS_OPERATIONS[1:]
    edges = {Edge(*DARTS_SPACE.edges[number // 7], names[number % 7]) for number in connections}
    for node in range(2, 6):  # a node that something reads must read something
        if not any(edge.target == node for edge in edges) and any(edge.source == node for edge in edges):
            edges.add(Edge(seed % 2, node, names[seed % 7]))
    cell = CellGenotype(tuple(edges))
    figure = draw_cell(cell, title="a cell")
    assert overlaps(figure) == []
    shown = sorted(str(t.get_gid()) for t in texts(figure) if str(t.get_gid()).startswith("operation-"))
    assert len(shown) == len(set(shown)) == len(cell.edges)
    words = {str(t.get_gid()): t.get_text().replace("\n", " ") for t in texts(figure)}
    for number, edge in enumerate(cell.edges):
        assert words[f"operation-{number}"] == operation_label(edge.operation)
    assert figure.get_figwidth() == 6.5
    assert min(float(t.get_fontsize()) for t in texts(figure)) >= 7


def lines_of(figure: Figure) -> dict[str, PathPatch]:
    patches = [patch for patch in figure.axes[0].patches if str(patch.get_gid()).startswith("edge-")]
    return {str(patch.get_gid()): patch for patch in patches if isinstance(patch, PathPatch)}


def test_a_cell_of_all_connections_is_drawn_whole() -> None:
    cell = CellGenotype(tuple(Edge(*edge, name) for edge in DARTS_SPACE.edges for name in DARTS_OPERATIONS[1:]))
    figure = draw_cell(cell)
    assert overlaps(figure) == []
    assert set(lines_of(figure)) == {f"edge-{number}" for number in range(98)}
    assert sum(isinstance(patch, Polygon) for patch in figure.axes[0].patches) == 14  # one arrowhead a pair of nodes
    assert figure.get_figheight() < 14
    assert set(lines_of(draw_cell(cell, operation_labels=False))) == set(lines_of(figure))


def test_operations_between_the_same_nodes_run_side_by_side() -> None:
    names = ("max_pool_3x3", "sep_conv_3x3", "skip_connect")
    cell = CellGenotype((*(Edge(0, 2, name) for name in names), Edge(1, 2, "skip_connect"), Edge(2, 3, "sep_conv_5x5"),
                         Edge(0, 3, "skip_connect"), Edge(0, 3, "sep_conv_3x3")), nodes=2)  # fmt: skip
    pairs = [(edge.source, edge.target) for edge in cell.edges]
    layout = dag_layout(pairs, nodes=2, inputs=2, output=(2, 3), labels=[(0.5, 0.2)] * len(pairs))
    for first, second in itertools.combinations(range(len(pairs)), 2):
        if pairs[first] == pairs[second]:  # always above the other, at the nodes too: they never cross
            ours, others = layout.routes[first], layout.routes[second]
            assert [x for x, _ in ours] == [x for x, _ in others]
            assert all(a > b for (_, a), (_, b) in list(zip(ours, others, strict=True))[1:-1])
            assert layout.labels[first][0] == layout.labels[second][0]
            assert layout.labels[first][1] - layout.labels[second][1] >= 0.2
    paths, _ = edge_paths(layout, pairs, 2)
    for end in (0, -1):
        ends = [np.asarray(paths[number].vertices, dtype=float)[end] for number in range(3)]
        assert ends[0][1] > ends[1][1] > ends[2][1]
        assert ends[0][0] == ends[1][0] == ends[2][0]
    # Every line ends at its node's rim, whatever the node's height.
    for number, (source, target) in enumerate(pairs):
        vertices = np.asarray(paths[number].vertices, dtype=float)
        for node, (x, y) in ((source, vertices[0]), (target, vertices[-1])):
            middle, height = layout.nodes[node], layout.node_heights.get(node, 0.27)
            assert abs(x - middle[0]) <= 0.2201 and abs(y - middle[1]) <= height / 2
    assert layout.node_heights == {}  # five lines have room at a round node



def test_a_node_is_as_tall_as_its_bundles_need() -> None:
    pairs = [(0, 2)] * 7 + [(1, 2)] * 7
    layout = dag_layout(pairs, nodes=1, inputs=2, output=(2,))
    assert layout.node_heights == {2: pytest.approx(2 * (0.075 + 6 * 0.02) + 0.04)}
    paths, _ = edge_paths(layout, pairs, 2)
    heights = sorted(float(np.asarray(path.vertices)[-1, 1]) for path in paths)
    assert np.diff(heights).tolist() == pytest.approx([0.02] * 6 + [0.075] + [0.02] * 6)  # touching, apart, touching
    middle = layout.nodes[2][1]
    assert (heights[0] + heights[-1]) / 2 == pytest.approx(middle)
    alone = dag_layout([(source, node) for node in range(2, 12) for source in range(node)], nodes=10, inputs=2,
                       output=tuple(range(2, 12)))  # fmt: skip
    assert alone.node_heights == {}  # single lines fan out on a round node


def test_draws_into_given_axes_and_leaves_pyplot_alone() -> None:
    figure = Figure(figsize=(6.5, 2.0))
    axes = figure.subplots(1, 2)
    assert draw_cell(DARTS_V2.normal, ax=axes[0], title="small") is figure
    draw_cell(DARTS_V2.reduction, ax=axes[1])
    assert overlaps(figure) == []
    assert plt.get_fignums() == []


def test_without_labels_the_line_style_tells_operations_apart() -> None:
    figure = draw_cell(DARTS_V2.normal, operation_labels=False)
    assert not [t for t in texts(figure) if str(t.get_gid()).startswith("operation-")]


def test_edges_start_and_end_at_their_nodes() -> None:
    edges = [(0, 2), (1, 2), (2, 3), (0, 3), (0, 3)]
    layout = dag_layout(edges, nodes=2, inputs=2, output=(2, 3))
    paths, lines = edge_paths(layout, edges, inputs=2)
    assert len(paths) == 5 and len(lines) == 2
    for (source, target), path in zip(edges, paths, strict=True):
        vertices = np.asarray(path.vertices, dtype=float)
        for node, vertex in ((source, vertices[0]), (target, vertices[-1])):
            x, y = layout.nodes[node]
            assert abs(vertex[0] - x) <= 0.23 and abs(vertex[1] - y) <= 0.14
    assert layout.routes[3] != layout.routes[4]  # parallel edges run apart


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(0.1, 2))
def test_spread_keeps_distances_and_leaves_free_places_alone(wanted: list[float], distance: float) -> None:
    places = spread(wanted, [distance] * (len(wanted) - 1))
    assert all(b - a >= distance - 1e-9 for a, b in itertools.pairwise(places))
    assert sum(places) == pytest.approx(sum(wanted), abs=1e-6)  # a projection keeps the mean
    free = spread([distance * 2 * n for n in range(5)], [distance] * 4)
    assert free == pytest.approx([distance * 2 * n for n in range(5)])


def test_operations_look_different_and_always_the_same() -> None:
    names = [*DARTS_SPACE.operations, "sep_conv_7x7", "conv_1x1", "conv_3x3", "conv_1x3_3x1", "tanh", "relu"]
    styles = operation_styles(names)
    assert len({styles[name].colour for name in DARTS_SPACE.operations}) == 8
    assert len({(style.colour, str(style.dashes)) for style in styles.values()}) == len(names)
    assert len({styles[name].marker for name in DARTS_SPACE.operations}) == 8
    assert operation_styles(["sep_conv_3x3"])["sep_conv_3x3"] == styles["sep_conv_3x3"]


@pytest.mark.parametrize(
    ("name", "label"),
    [("sep_conv_3x3", "sep 3×3"), ("max_pool_3x3", "max 3×3"), ("conv_1x3_3x1", "conv 1×3→3×1"),
     ("skip_connect", "skip"), ("my_op_3x3", "my_op_3x3"), ("", "")],
)  # fmt: skip
def test_operation_labels(name: str, label: str) -> None:
    assert operation_label(name) == label


def test_labels_wrap_without_losing_a_letter() -> None:
    assert wrap_label("sep 3×3", 2) == "sep\n3×3"
    assert wrap_label("my_long_name", 2).replace("\n", "") == "my_long_name"
    assert wrap_label("conv 1×3→3×1", 3).count("\n") == 2
    assert wrap_label("tanh", 3) == "tanh"


def test_a_cell_in_words() -> None:
    words = cell_in_words(DARTS_V2.normal)
    assert words.startswith("Node 2 adds sep 3×3 of c(k-2) and sep 3×3 of c(k-1).")
    assert words.endswith("The output concatenates nodes 2, 3, 4, 5.")
    assert cell_in_words(CellGenotype((Edge(0, 1, "tanh"),), nodes=1, inputs=1)) == (
        "Node 1 is tanh of c(k-1). The output concatenates node 1."
    )


def test_operations_between_the_same_nodes_share_their_source_in_words() -> None:
    cell = CellGenotype((Edge(0, 2, "skip_connect"), Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "max_pool_3x3"),
                         Edge(2, 3, "tanh"), Edge(2, 3, "relu"), Edge(2, 3, "gelu")), nodes=2)  # fmt: skip
    assert cell_in_words(cell) == (
        "Node 2 adds sep 3×3 and skip of c(k-2); max 3×3 of c(k-1). Node 3 adds gelu, relu and tanh of node 2. "
        "The output concatenates nodes 2, 3."
    )


def test_removed_nodes_are_said_and_drawn() -> None:
    cell = CellGenotype((Edge(1, 7, "sep_conv_3x3"),), nodes=6)
    assert cell_in_words(cell) == (
        "Node 7 is sep 3×3 of c(k-1). No edge enters nodes 2, 3, 4, 5, 6. The output concatenates node 7."
    )
    figure = draw_cell(cell)
    assert overlaps(figure) == []
    assert {str(number) for number in range(2, 8)} < {t.get_text() for t in texts(figure)}


@pytest.mark.parametrize(("nodes", "kept"), [(6, 15), (6, 27), (7, 20)])
def test_cells_with_many_edges_stay_readable(nodes: int, kept: int) -> None:
    edges = Space(nodes=nodes).edges
    generator = torch.Generator().manual_seed(kept)
    drawn = {edges[place] for place in torch.randperm(len(edges), generator=generator)[: kept - nodes].tolist()}
    drawn |= {(node - 1, node) for node in range(2, nodes + 2)}  # all nodes in a row: as deep as can be
    names = ("sep_conv_5x5", "skip_connect", "max_pool_3x3")
    cell = CellGenotype(tuple(Edge(*edge, names[sum(edge) % 3]) for edge in drawn), nodes=nodes)
    figure = draw_cell(cell, title="a cell")
    assert overlaps(figure) == []
    assert min(float(t.get_fontsize()) for t in texts(figure)) >= 7
    if nodes == 6:  # the paper's largest; its labels are level
        assert all(t.get_rotation() == 0 for t in texts(figure))
        assert figure.get_figheight() < 4.5


@given(
    st.floats(0.1, 5), st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 0.5)), min_size=1, max_size=8)
)  # fmt: skip
def test_room_is_shared_by_weight_but_for_the_least(room: float, parts: list[tuple[float, float]]) -> None:
    weights, least = [weight for weight, _ in parts], [low for _, low in parts]
    shares = share(room, weights, least)
    assert sum(shares) == pytest.approx(room)
    if sum(least) < room:
        assert all(got >= low - 1e-9 for got, low in zip(shares, least, strict=True))
        rates = [got / w for got, w, low in zip(shares, weights, least, strict=True) if got > low + 1e-9]
        assert max(rates) == pytest.approx(min(rates))
    else:
        assert shares == pytest.approx([room * weight / sum(weights) for weight in weights])


def test_a_genotype_of_many_kinds_is_stacked() -> None:
    genotype = Genotype({f"cell {n}": DARTS_V2.normal for n in range(3)})
    assert len(draw_genotype(genotype).axes) == 3


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.6, 1.0]))
def test_five_cells_with_all_their_edges_are_readable(seed: int, identities: float) -> None:
    """What Firefly's cell search finds: 14 edges a cell, some of which are identities."""
    generator = torch.Generator().manual_seed(seed)
    space = Space(("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"), 4, 2, 5, CELL_SECTIONS)
    drawn = random_genotype(space, generator)
    cells = {
        kind: CellGenotype(
            tuple(
                Edge(e.source, e.target, "skip_connect") if torch.rand((), generator=generator) < identities else e
                for e in cell.edges
            )
        )
        for kind, cell in drawn.cells
    }
    genotype = Genotype(cells)
    figure = draw_genotype(genotype)
    assert [ax.get_title() for ax in figure.axes] == [
        "cell 1: before the first reduction", "cell 2: the first reduction", "cell 3: between the reductions",
        "cell 4: the second reduction", "cell 5: after the second reduction",
    ]  # fmt: skip
    assert overlaps(figure) == []
    assert min(float(t.get_fontsize()) for t in texts(figure)) >= 8
    for ax, (_, cell) in zip(figure.axes, genotype.cells, strict=True):
        shown = {str(t.get_gid()): t.get_text() for t in ax.texts}
        assert len(cell.edges) == 14
        for number, edge in enumerate(cell.edges):
            assert shown[f"operation-{number}"] == operation_label(edge.operation)


def test_a_whole_genotype_is_drawn_cell_by_cell() -> None:
    assert len(draw_cell(DARTS_V2).axes) == len(draw_genotype(DARTS_V2).axes) > 1
