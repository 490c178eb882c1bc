from __future__ import annotations

import itertools
from typing import Any

import pytest
from growing_searches import OPERATIONS, cell, genotype, pruned
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nasbook.errors import InvalidInput
from nasbook.genotypes import CellGenotype, Edge, Genotype
from nasbook.plots import (
    draw_recurrent_cell,
    draw_recurrent_cells,
    operation_label,
    operation_styles,
    recurrent_cell_in_words,
)
from nasbook.plots.palette import operation_copy
from nasbook.plots.recurrent_cells import (
    BAR,
    LEAST_WIDTH,
    RADIUS,
    bar_parts,
    candidate_label,
    candidate_letter,
    fitting_name,
    pixels_wide,
    plan_cell,
    wiring,
)

BACKBONES = tuple(OPERATIONS)


def texts(figure: Figure) -> dict[str, Any]:
    return {str(text.get_gid()): text for ax in figure.axes for text in ax.texts if text.get_gid()}


def parts(figure: Figure) -> dict[str, Rectangle]:
    return {
        str(patch.get_gid()): patch
        for ax in figure.axes
        for patch in ax.patches
        if isinstance(patch, Rectangle) and str(patch.get_gid()).startswith("edge-")
    }


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than half a pixel, and texts that leave the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(name, text.get_window_extent(renderer)) for name, text in texts(figure).items()]
    found = [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    page = figure.bbox
    return found + [(name, "edge of the page") for name, box in boxes if box.x0 < page.x0 or box.x1 > page.x1]


# --- names and looks --------------------------------------------------------------------------------------------------


def test_names_and_letters() -> None:
    assert [candidate_label(name) for name in ("sigmoid", "relu", "none", "tanh-2", "relu-12")] == [
        "sigmoid", "ReLU", "zero", "tanh₂", "ReLU₁₂"]  # fmt: skip
    assert [candidate_letter(name) for name in ("sigmoid", "tanh-2", "sum", "product-3", "none", "swish")] == [
        "σ", "t₂", "+", "×₃", "0", "s"]  # fmt: skip
    assert operation_label("tanh-2") == "tanh₂" and operation_label("relu") == "relu"
    assert operation_copy("sep_conv_3x3-2") == ("sep_conv_3x3", 2)
    assert operation_copy("other-2") == ("other-2", 1) and operation_copy("tanh") == ("tanh", 1)


def test_copies_have_the_colour_of_their_original_and_another_line() -> None:
    names = ["sigmoid", "tanh", "relu", "sum", "product", "identity", "none", "tanh-2", "tanh-3", "sum-2"]
    styles = operation_styles(names)
    assert len({(style.colour, str(style.dashes)) for style in styles.values()}) == len(names)
    assert styles["tanh-2"].colour == styles["tanh-3"].colour == styles["tanh"].colour
    assert len({styles[name].colour for name in names[:7]}) == 7
    assert operation_styles(["tanh"])["tanh"] == styles["tanh"]


@given(st.sampled_from(["sigmoid", "tanh-2", "none", "product"]), st.floats(0, 200))
def test_a_name_is_written_where_it_has_room(name: str, width: float) -> None:
    written = fitting_name(name, width)
    assert written in (candidate_label(name), candidate_letter(name), "")
    assert pixels_wide(written) <= width
    if width > pixels_wide(candidate_label(name)) + 6.01:
        assert written == candidate_label(name)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(10, 300))
def test_parts_fill_the_bar(weights: list[float], width: float) -> None:
    found = bar_parts([(str(n), weight) for n, weight in enumerate(weights)], width)
    assert found[0][0] == 0
    assert all(a + b == pytest.approx(c) for (a, b), (c, _) in itertools.pairwise(found))
    if sum(weights) > 1e-300:
        assert sum(wide for _, wide in found) == pytest.approx(width)
        assert [wide * sum(weights) for _, wide in found] == pytest.approx([w * width for w in weights], abs=1e-6)


# --- reading a cell ---------------------------------------------------------------------------------------------------


def test_what_a_cell_consists_of() -> None:
    weights = [(0, 1, {"tanh": 0.5, "sum": 0.2, "tanh-2": 0.3})]
    assert wiring(weights, "two-to-one").edges == ((0, 1, (("tanh", 0.5), ("tanh-2", 0.3), ("sum", 0.2))),)
    assert wiring(cell("highway", 3), "highway 2").output == (1, 2, 3)
    assert wiring(cell("darts", 3), "darts").output == (3,)
    spare = CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "relu"), Edge(1, 3, "identity")), 3, 1, (3,))
    found = wiring(spare, "darts")
    assert found.needed == {0, 1, 3}
    assert found.edges[1] == (1, 2, (("relu", 1.0),))


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([], "darts", "at least one edge"),
        ([(1, 1, {"tanh": 1.0})], "darts", "edges to a later node"),
        ([(0, 1, {})], "darts", "at least one candidate"),
        ([(0, 1, {"tanh": 1.0})], "dart", "Did you mean 'darts'"),
        (CellGenotype((Edge(0, 2, "tanh"),), 1), "darts", "has 1 input node, this one has 2"),
    ],
)
def test_cells_that_are_none(given: Any, kind: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        draw_recurrent_cell(given, kind)


# --- places -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(BACKBONES), st.integers(1, 7), st.integers(int(LEAST_WIDTH), 360), st.booleans())
def test_bars_keep_apart_and_stay_inside(backbone: str, nodes: int, width: int, single: bool) -> None:
    weights = cell(backbone, nodes)
    found = wiring(pruned(weights) if single else weights, backbone)
    plan = plan_cell(found, width, most_nodes=nodes)
    assert len(plan.bars) == len(found.edges) and list(plan.nodes) == list(range(nodes + 1))
    for bar in plan.bars:
        assert bar.x >= 0 and bar.x + bar.width <= width + 0.01
    for one, other in itertools.combinations(plan.bars, 2):
        level = abs(one.y - other.y) < BAR
        assert not level or one.x + one.width <= other.x + 0.01 or other.x + other.width <= one.x + 0.01
    for bar in plan.bars:
        for x, y in list(plan.nodes.values())[1:]:
            beside = x + RADIUS < bar.x or bar.x + bar.width < x - RADIUS
            assert beside or abs(bar.y - y) >= BAR / 2 + RADIUS
    assert plan.boxes[-1].name == "state" and plan.height > plan.boxes[-1].y


@pytest.mark.parametrize("backbone", BACKBONES)
def test_lines_join_what_they_should(backbone: str) -> None:
    found = wiring(cell(backbone, 4), backbone)
    plan = plan_cell(found, 312.0)
    for (source, target, _), bar in zip(found.edges, plan.bars, strict=True):
        (start, end) = bar.entry.steps[0][1], bar.entry.steps[-1][1][-2:]
        x, y = plan.nodes[source]
        assert abs(start[0] - x) <= 11 and 0 < start[1] - y <= 11  # leaves below
        assert end == pytest.approx((bar.x + bar.width / 2, bar.y - BAR / 2))
        start, end = bar.exit.line.steps[0][1], bar.exit.line.steps[-1][1][-2:]
        assert start == pytest.approx((bar.x + bar.width / 2, bar.y + BAR / 2))
        x, y = plan.nodes[target]
        assert ((end[0] - x) ** 2 + (end[1] - y) ** 2) ** 0.5 == pytest.approx(RADIUS, abs=0.6) and end[1] < y
        assert (bar.feed is not None) == (backbone == "two-to-one")
        if bar.feed is not None:
            assert bar.feed.line.steps[-1][1] == pytest.approx((bar.x, bar.y))
    boxes = {box.name: box for box in plan.boxes}
    assert set(boxes) == ({"x", "last-state", "state"} if backbone == "two-to-one" else {"last-state", "state"})
    assert ("mean" in "".join(base for base, _ in boxes["state"].words)) == (backbone == "highway")


def test_bars_do_not_move_while_a_cell_grows() -> None:
    small, large = wiring(cell("darts", 2), "darts"), wiring(cell("darts", 5), "darts")
    early, late = plan_cell(small, 300.0, most_nodes=5), plan_cell(large, 300.0, most_nodes=5)
    assert [(bar.x, bar.width) for bar in early.bars] == [(bar.x, bar.width) for bar in late.bars[:2]]
    assert plan_cell(small, 300.0).bars[0].width > early.bars[0].width


# --- drawings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("nodes", [1, 3, 6])
def test_a_supernets_cell_shows_its_weights(backbone: str, nodes: int) -> None:
    weights = cell(backbone, nodes)
    figure = draw_recurrent_cell(weights, backbone, title="a cell")
    drawn, written = parts(figure), texts(figure)
    assert len(drawn) == sum(len(names) for *_, names in weights)
    plan = plan_cell(wiring(weights, backbone), 312.0)
    for (source, target, names), bar in zip(weights, plan.bars, strict=True):
        for name, weight in names.items():
            wide = drawn[f"edge-{source}-{target}-{name}"].get_width()
            assert wide == pytest.approx(weight * bar.width, rel=1e-6)
            label = written.get(f"name-edge-{source}-{target}-{name}")
            assert (label.get_text() if label else "") == fitting_name(name, wide)
    assert {name for name in written if name.startswith("node-")} == {
        f"node-{n}" for n in range(0 if backbone == "highway" else 1, nodes + 1)
    }
    assert overlaps(figure) == []
    assert figure.axes[0].get_title() == "a cell"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_derived_cell_names_its_operations(backbone: str) -> None:
    kept = pruned(cell(backbone, 5, seed=3))
    figure = draw_recurrent_cell(genotype(backbone, kept))
    written = texts(figure)
    for source, target, names in kept:
        (name,) = names
        assert written[f"name-edge-{source}-{target}-{name}"].get_text() == candidate_label(name)
    assert overlaps(figure) == []


def test_several_cells_side_by_side() -> None:
    cells = {f"cell {n}": cell("darts", n) for n in range(1, 6)}
    figure = draw_recurrent_cells(cells, dict.fromkeys(cells, "darts"))
    assert [ax.get_title() for ax in figure.axes] == list(cells)
    tops = [round(ax.get_position().y1, 6) for ax in figure.axes]
    assert tops[0] == tops[1] == tops[2] > tops[3] == tops[4]
    edges = tuple(Edge(n, n + 1, "tanh") for n in range(2))
    stack = Genotype({"darts 1": CellGenotype(edges, 2, 1, (2,)), "darts 2": CellGenotype(edges, 2, 1, (2,))})
    assert [ax.get_title() for ax in draw_recurrent_cell(stack).axes] == ["darts 1", "darts 2"]
    titled = draw_recurrent_cells({"stack": stack})
    assert [ax.get_title() for ax in titled.axes] == ["stack: darts 1", "stack: darts 2"]
    assert len(draw_recurrent_cell(stack, "darts 2").axes) == 1
    assert recurrent_cell_in_words(stack).startswith("darts 1: Node 1 is tanh of x and h(t−1). ")


def test_a_cell_in_given_axes() -> None:
    figure = Figure(figsize=(2, 2))
    ax = figure.add_axes((0, 0, 1, 1))
    assert draw_recurrent_cell(cell("two-to-one", 6), "two-to-one", ax=ax) is figure
    sizes = {text.get_fontsize() for text in ax.texts}
    assert max(sizes) < 6  # shrunk to a third
    edges = (Edge(0, 1, "tanh"),)
    two = Genotype({"darts 1": CellGenotype(edges, 1, 1), "darts 2": CellGenotype(edges, 1, 1)})
    with pytest.raises(InvalidInput, match="one cell for one place, got 2"):
        draw_recurrent_cell(two, ax=ax)
    with pytest.raises(InvalidInput, match="kind: expected the cell's backbone"):
        draw_recurrent_cell(cell("darts", 1))
    with pytest.raises(InvalidInput, match="at least one title"):
        draw_recurrent_cells({})


def test_spare_nodes_are_pale() -> None:
    spare = CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "relu"), Edge(1, 3, "identity")), 3, 1, (3,))
    drawn = parts(draw_recurrent_cell(spare, "darts"))
    assert drawn["edge-1-2-relu"].get_alpha() == 0.35
    assert drawn["edge-1-3-identity"].get_alpha() == 1.0
    assert recurrent_cell_in_words(spare, "darts") == (
        "Node 1 is tanh of x and h(t−1). Node 2 is ReLU of node 1, and leads nowhere. Node 3 is identity of node 1. "
        "The new state is node 3."
    )


def test_cells_in_words() -> None:
    chain = genotype("two-to-one", [(0, 1, {"tanh": 1.0}), (1, 2, {"sum": 1.0})])
    assert recurrent_cell_in_words(chain) == (
        "Node 1 is tanh of x and h(t−1). Node 2 is sum of x and node 1. The new state is node 2."
    )
    weights = [(0, 1, {"tanh": 0.75, "none": 0.25}), (0, 2, {"relu": 1.0}), (1, 2, {"none": 0.5, "identity": 0.5})]
    assert recurrent_cell_in_words(weights, "highway") == (
        "Node 0 is a gated step from h(t−1) with x. Node 1 has 2 candidates on node 0, most weight on tanh (0.75). "
        "Node 2 has ReLU of node 0; 2 candidates on node 1, most weight on zero (0.50). "
        "The new state is the mean of nodes 1 and 2."
    )
