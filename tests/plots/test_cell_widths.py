"""Widths of growing cells: what names say, which operation wins, bars and the film."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from film_stage import needs_node, of_class, play, shown, still
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, CellGenotype, Space
from nasbook.genotypes import Edge as GenotypeEdge
from nasbook.methods.firefly_cells import derive_cell
from nasbook.networks import GrowableCellNetwork
from nasbook.plots import (
    animate_cell_widths,
    plot_cell_widths,
    show_animation,
    widths_by_growth,
    widths_of_cells,
)
from nasbook.plots.cell_widths import chosen_operations

OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
# Two nodes: five edges. The first has a winner, the second two equals, the third one at the line, the others none.
WIDTHS = {
    (0, 2): dict(zip(OPERATIONS, (10, 17, 10, 11), strict=True)),
    (1, 2): dict(zip(OPERATIONS, (10, 14, 14, 10), strict=True)),
    (0, 3): dict(zip(OPERATIONS, (10, 10, 10, 12), strict=True)),
    (1, 3): dict(zip(OPERATIONS, (11, 11, 10, 10), strict=True)),
    (2, 3): dict(zip(OPERATIONS, (10, 10, 10, 10), strict=True)),
}
EDGES = list(WIDTHS)


def named(cells: list[dict[tuple[int, int], dict[str, int]]]) -> dict[str, int]:
    return {
        f"cells.{number}.edges.{place}.operations.{name}.last": count
        for number, cell in enumerate(cells)
        for place, own in enumerate(cell.values())
        for name, count in own.items()
    }


def flat(count: int) -> dict[tuple[int, int], dict[str, int]]:
    return {edge: dict.fromkeys(OPERATIONS, count) for edge in EDGES}


def grown() -> list[dict[str, int]]:
    """Two cells that begin with 10 and with 20; the first grows, then the second, then the first once more."""
    later = {edge: {name: count + 2 for name, count in own.items()} for edge, own in WIDTHS.items()}
    second = flat(20)
    second[0, 3]["dil_conv_3x3"] = 30
    steps = [[flat(10), flat(20)], [WIDTHS, flat(20)], [WIDTHS, second], [later, second]]
    return [named(step) for step in steps]


def points(figure: Figure, name: str) -> list[list[float]]:
    (line,) = [line for line in figure.axes[0].lines if line.get_gid() == name]
    return np.asarray(line.get_xydata()).tolist()


# --- what is read -----------------------------------------------------------------------------------------------------


def test_names_say_cells_edges_and_operations() -> None:
    assert widths_of_cells(named([WIDTHS, flat(20)])) == [WIDTHS, flat(20)]
    network = GrowableCellNetwork(Space(OPERATIONS, edges_per_node=5), channels=4, width=2)
    cells = widths_of_cells(network.neurons())
    assert cells == [network.operation_widths(cell) for cell in range(5)]
    assert list(cells[0]) == list(DARTS_SPACE.edges)


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ({}, "at least one cell"),
        ({"layers.0": 3}, "expected names such as cells.0.edges.3.*got 'layers.0'"),
        ({"cells.0.edges.2.operations.sep_conv_3x3.last": 3}, r"cell 0 has the edges \[2\], expected 0\.\.1"),
    ],
)
def test_other_names_are_refused(neurons: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        widths_of_cells(neurons)


def test_widths_after_each_growth_are_the_last_of_its_phase() -> None:
    rows = [(0, False, 4), (0, False, 4), (1, True, 4), (1, True, 6), (1, False, 6), (2, True, 9)]
    history = [
        SimpleNamespace(
            epoch=epoch, phase=phase, growing=growing, neurons={"a": count}, parameters=1, train_loss=1.0,
            validation_accuracy=None,
        )
        for epoch, (phase, growing, count) in enumerate(rows, start=1)
    ]  # fmt: skip
    assert widths_by_growth(history) == [{"a": 4}, {"a": 6}, {"a": 9}]
    for wrong in ([], history[2:]):
        with pytest.raises(InvalidInput, match="begin before the first growth"):
            widths_by_growth(wrong)


# --- which operation wins ---------------------------------------------------------------------------------------------


def test_the_widest_wins_and_of_equals_the_first() -> None:
    assert list(chosen_operations(WIDTHS, 10).values()) == [
        "sep_conv_5x5", "sep_conv_5x5", "dil_conv_5x5", "skip_connect", "skip_connect",
    ]  # fmt: skip
    assert list(chosen_operations(WIDTHS, 10, 0.0).values())[3:] == ["sep_conv_3x3"] * 2


@settings(deadline=None)
@given(st.data(), st.integers(1, 30), st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]))
def test_the_picture_chooses_as_the_method_does(data: st.DataObject, initial: int, least: float) -> None:
    widths = {
        edge: {name: data.draw(st.integers(initial, 2 * initial + 1)) for name in OPERATIONS} for edge in EDGES
    }
    cell = derive_cell(widths, initial, least)
    answer = {(edge.source, edge.target): edge.operation for edge in cell.edges}
    assert answer == chosen_operations(widths, initial, least)


# --- bars -------------------------------------------------------------------------------------------------------------


def test_bars_have_what_was_there_and_what_has_grown() -> None:
    figure = plot_cell_widths(WIDTHS, 10, title="cell 1")
    ax = figure.axes[0]
    bars = {str(patch_group.patches[0].get_gid()): patch_group for patch_group in ax.containers}
    assert len(bars) == 2 * len(OPERATIONS)
    for name in OPERATIONS:
        below, above = (bars[f"{part}-{name}"].patches for part in ("initial", "grown"))
        assert [bar.get_height() for bar in below] == [10] * 5
        assert [bar.get_y() + bar.get_height() for bar in above] == [own[name] for own in WIDTHS.values()]
        assert [bar.get_x() for bar in below] == [bar.get_x() for bar in above]
    every = [bar for name in OPERATIONS for bar in bars[f"grown-{name}"].patches]
    places = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in every)
    assert all(first[1] <= second[0] + 1e-9 for first, second in itertools.pairwise(places))  # none hides another
    lines = {str(line.get_gid()): np.asarray(line.get_ydata()).tolist() for line in ax.lines}
    assert lines["initial"] == [10, 10] and lines["least"] == [12, 12]
    winners = {name for name in lines if name.startswith("winner")}
    assert winners == {"winner-0", "winner-1", "winner-2"}
    for number, height in ((0, 17), (1, 14), (2, 12)):
        ((x, y),) = points(figure, f"winner-{number}")
        assert y == height and number - 0.5 < x < number + 0.5
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "k−2→2\nsep\n5×5", "k−1→2\nsep\n5×5", "k−2→3\ndil\n5×5", "k−1→3\nskip", "2→3\nskip",
    ]  # fmt: skip


def test_an_answer_that_leaves_out_edges() -> None:
    kept = (GenotypeEdge(0, 2, "sep_conv_5x5"), GenotypeEdge(1, 2, "skip_connect"), GenotypeEdge(2, 3, "dil_conv_3x3"))
    figure = plot_cell_widths(WIDTHS, 10, cell=CellGenotype(kept, nodes=2))
    ax = figure.axes[0]
    assert [label.get_text().split("\n", 1)[1] for label in ax.get_xticklabels()] == [
        "sep\n5×5", "skip", "–", "–", "dil\n3×3",
    ]  # fmt: skip
    assert {str(line.get_gid()) for line in ax.lines if "winner" in str(line.get_gid())} == {"winner-0", "winner-4"}


@pytest.mark.parametrize(
    ("widths", "initial", "message"),
    [
        ({}, 4, "at least one edge"),
        ({(0, 2): {}}, 4, "at least one operation"),
        (WIDTHS, 0, "initial must be above 0"),
        (WIDTHS, 11, "expected 11 channels, the initial ones, or more; got 10"),
    ],
)
def test_widths_that_are_none(widths: dict[Any, Any], initial: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_cell_widths(widths, initial)


# --- the film ---------------------------------------------------------------------------------------------------------


def test_the_film_has_a_frame_a_growth() -> None:
    film = animate_cell_widths(grown())
    data = json.loads(film.data)
    assert film.frames == 4 and film.still == 3
    assert data["headings"] == [
        "before the first growth", "growth 1 of 3: cell 1 grows", "growth 2 of 3: cell 2 grows",
        "growth 3 of 3: cell 1 grows",
    ]  # fmt: skip
    assert data["growing"] == [-1, 0, 1, 0]
    assert data["grown"][0] == [[0] * 20, [0] * 20]
    assert data["grown"][1][0][:8] == [0, 70, 0, 10, 0, 40, 40, 0]
    assert data["winners"][0] == [[-1] * 5, [-1] * 5]
    assert data["winners"][1][0] == [1, 1, 3, -1, -1]
    assert data["winners"][2][1] == [-1, -1, 2, -1, -1]
    assert data["sizes"][0] == ["200 channels", "400 channels"]
    assert json.loads(animate_cell_widths(grown(), growing=[1, 1, 0]).data)["growing"] == [-1, 1, 1, 0]


@needs_node
def test_the_film_shows_what_the_widths_say() -> None:
    film = animate_cell_widths(grown())
    data = json.loads(film.data)
    order = [3, 0, 1, 2]
    for frame, seen in zip(order, play(film, order), strict=True):
        picture = seen["picture"]
        assert of_class(picture, "heading")[0]["textContent"] == data["headings"][frame]
        assert seen["spoken"].startswith(data["headings"][frame])
        for number, cell in enumerate(of_class(picture, "cell")):
            assert shown(of_class(cell, "band")[0]) is (data["growing"][frame] == number)
            bars = of_class(cell, "bar")
            wanted = [max(0.6, data["unit"] * value) for value in data["grown"][frame][number]]
            assert [float(bar["height"]) for bar in bars] == pytest.approx(wanted, abs=1e-6)
            bottoms = [float(bar["y"]) + float(bar["height"]) for bar in bars]
            assert bottoms == pytest.approx([data["floors"][number]] * 20)
            chosen = data["winners"][frame][number]
            assert [shown(winner) for winner in of_class(cell, "winner")] == [place >= 0 for place in chosen]
            for edge, (place, winner) in enumerate(zip(chosen, of_class(cell, "winner"), strict=True)):
                if place >= 0:
                    at = float(winner["transform"][10:].split()[0])
                    bar = bars[4 * edge + place]
                    assert at == pytest.approx(float(bar["x"]) + float(bar["width"]) / 2, abs=0.2)
            assert of_class(cell, "size")[0]["textContent"] == data["sizes"][frame][number]


@needs_node
def test_the_script_at_the_last_frame_changes_nothing() -> None:
    film = animate_cell_widths(grown())
    (seen,) = play(film, [film.still])
    before = still(film)
    for name in ("band", "bar", "winner"):
        for one, two in zip(of_class(before, name), of_class(seen["picture"], name), strict=True):
            assert shown(one) is shown(two)
            for attribute in ("y", "height"):
                if attribute in one:
                    assert float(two[attribute]) == pytest.approx(float(one[attribute]), abs=0.1)
    for name in ("heading", "size"):
        words, after = ([e["textContent"] for e in of_class(where, name)] for where in (before, seen["picture"]))
        assert words == after


def test_the_papers_film_is_small() -> None:
    initial = (4, 8, 8, 16, 16)
    now = {
        f"cells.{cell}.edges.{edge}.operations.{name}.last": initial[cell]
        for cell in range(5) for edge in range(14) for name in OPERATIONS
    }  # fmt: skip
    steps = [dict(now)]
    for growth in range(10):
        own = [name for name in now if name.startswith(f"cells.{growth % 5}.")]
        for place, name in enumerate(own):
            now[name] += (place * (growth + 3)) % 5
        steps.append(dict(now))
    film = animate_cell_widths(steps)
    assert film.frames == 11 and len(show_animation(film, "Cells grow.").data) < 100_000


@pytest.mark.parametrize(
    ("widths", "growing", "message"),
    [
        (grown()[:1], None, "before the first growth and after one or more, got 1"),
        ([grown()[0], named([flat(10)])], None, "the same cells, edges and operations"),
        ([grown()[1], grown()[1]], None, "all operations of cell 1 on all edges, alike at first"),
        ([grown()[0], named([flat(9), flat(20)])], None, "expected 10 channels, the initial ones, or more; got 9"),
        (grown(), [0, 1], r"an index of 0\.\.1 for each of 3 growths"),
        (grown(), [0, 1, 2], r"an index of 0\.\.1 for each of 3 growths"),
    ],
)
def test_growths_that_are_none(widths: Any, growing: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        animate_cell_widths(widths, growing=growing)
