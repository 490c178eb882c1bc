from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Polygon

from nasbook.errors import InvalidInput
from nasbook.genotypes import CELL_SECTIONS, CellGenotype, Edge, Genotype, Space
from nasbook.networks import kinds_of_cells
from nasbook.plots import draw_search_network, draw_stack, stack_in_words

OF_DARTS = ("normal", "reduction")


def words(figure: Figure, name: str) -> list[str]:
    """Texts whose id begins so, by their number."""
    found = {str(t.get_gid()): t.get_text() for ax in figure.axes for t in ax.texts if t.get_gid()}
    return [found[f"{name}-{n}"] for n in range(len(found)) if f"{name}-{n}" in found]


def patches(figure: Figure, name: str) -> list[Patch]:
    found = {str(p.get_gid()): p for ax in figure.axes for p in ax.patches}
    return [found[f"{name}-{n}"] for n in range(len(found)) if f"{name}-{n}" in found]


def dotted(box: Patch) -> bool:
    return box.get_linestyle() != "-"


def test_a_stack_of_five_kinds_says_which_stands_where() -> None:
    figure = draw_stack(kinds_of_cells(20, CELL_SECTIONS), searched=CELL_SECTIONS)
    assert words(figure, "kind") == words(figure, "copied") == list(CELL_SECTIONS)
    assert words(figure, "places") == ["1–6", "7", "8–13", "14", "15–20"]
    assert words(figure, "channels") == ["$C$", "$2\\,C$", "$2\\,C$", "$4\\,C$", "$4\\,C$"]
    assert words(figure, "number") == [str(number) for number in range(1, 21)]
    cells = patches(figure, "cell")
    assert [place for place, box in enumerate(cells) if dotted(box)] == [6, 13]
    colours = [to_hex(box.get_edgecolor()) for box in cells]
    assert [len(list(group)) for _, group in itertools.groupby(colours)] == [6, 1, 6, 1, 6]
    assert len(set(colours)) == 5
    heights = [box.get_height() for box in cells if isinstance(box, FancyBboxPatch)]
    assert heights[0] == heights[5] > heights[6] == heights[12] > heights[13] == heights[19]


def test_a_band_leads_from_a_searched_cell_to_its_copies() -> None:
    figure = draw_stack(kinds_of_cells(20, CELL_SECTIONS), searched=CELL_SECTIONS)
    cells, searched = patches(figure, "cell"), patches(figure, "searched")
    assert [dotted(box) for box in searched] == [False, True, False, True, False]
    for number, (first, last) in enumerate([(0, 5), (6, 6), (7, 12), (13, 13), (14, 19)]):
        band, box = patches(figure, "band")[number], searched[number]
        assert isinstance(band, Polygon) and isinstance(box, FancyBboxPatch)
        corners = band.get_xy()[:4]
        assert corners[:2, 0].tolist() == pytest.approx([box.get_x(), box.get_x() + box.get_width()])
        left, right = cells[first], cells[last]
        assert isinstance(left, FancyBboxPatch) and isinstance(right, FancyBboxPatch)
        assert corners[2:, 0].tolist() == pytest.approx([right.get_x() + right.get_width(), left.get_x()])
        assert to_hex(box.get_edgecolor()) == to_hex(left.get_edgecolor())


@settings(max_examples=12, deadline=None)
@given(st.integers(5, 60), st.booleans())
def test_no_two_words_of_a_stack_touch(cells: int, of_darts: bool) -> None:
    kinds = OF_DARTS if of_darts else CELL_SECTIONS
    figure = draw_stack(kinds_of_cells(cells, kinds), searched=() if of_darts else CELL_SECTIONS)
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [t for ax in figure.axes for t in ax.texts if t.get_rotation() == 0]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) <= 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 0.5
        assert apart, (first, second)
    for word, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, word
    numbers = patches(figure, "cell")
    for word, box in zip(words(figure, "number"), numbers, strict=False):
        assert isinstance(box, FancyBboxPatch)
        extent = dict(boxes)[word]
        assert extent.width <= box.get_width() * figure.dpi


def test_a_stack_of_darts() -> None:
    figure = draw_stack(kinds_of_cells(4, OF_DARTS))
    assert words(figure, "kind") == ["normal", "reduction", "reduction", "normal"]
    # Neighbours of one kind, but not of one size.
    assert words(figure, "channels") == ["$C$", "$2\\,C$", "$4\\,C$", "$4\\,C$"]
    assert patches(figure, "band") == patches(figure, "searched") == []


def test_a_stack_in_words() -> None:
    assert stack_in_words(kinds_of_cells(8, CELL_SECTIONS)) == (
        "A stack of 8. Cells 1–2: cell 1; cell 3: cell 2, which reduces; cells 4–5: cell 3; "
        "cell 6: cell 4, which reduces; cells 7–8: cell 5."
    )
    assert stack_in_words(kinds_of_cells(3, OF_DARTS)) == (
        "A stack of 3. Cell 1: normal; cell 2: reduction; cell 3: reduction."
    )


def test_stacks_that_do_not_match_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one cell"):
        draw_stack(())
    with pytest.raises(InvalidInput, match="at least one cell"):
        stack_in_words(())
    kinds = kinds_of_cells(5, CELL_SECTIONS)
    for searched in (CELL_SECTIONS[:4], tuple(reversed(CELL_SECTIONS)), OF_DARTS):
        with pytest.raises(InvalidInput, match="^searched: expected every kind of the network once, in its order"):
            draw_stack(kinds, searched=searched)


def test_a_search_network_of_five_kinds() -> None:
    space = Space(("skip_connect", "sep_conv_3x3"), nodes=1, kinds=CELL_SECTIONS)
    genotype = Genotype(dict.fromkeys(CELL_SECTIONS, CellGenotype((Edge(0, 2, "sep_conv_3x3"),), nodes=1)))
    figure = draw_search_network(kinds_of_cells(20, CELL_SECTIONS), {19}, genotype=genotype, space=space)
    assert words(figure, "kind") == list("11111123333334555555")
    assert [place for place, box in enumerate(patches(figure, "cell")) if dotted(box)] == [6, 13]
