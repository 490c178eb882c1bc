from __future__ import annotations

import base64
import dataclasses
import io
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch
from PIL import Image

from nasbook.errors import InvalidInput
from nasbook.genotypes import (
    DARTS_OPERATIONS,
    DARTS_SPACE,
    DARTS_V2,
    CellGenotype,
    Edge,
    Genotype,
    Space,
)
from nasbook.plots import (
    animate_search,
    compare_searches,
    describe,
    draw_cell,
    draw_supernet,
    explore_search,
    show,
    show_animation,
    use_style,
)
from nasbook.plots.animation import pick
from nasbook.plots.display import encode_png

History = Callable[..., list[Any]]
ALT = 'Cells "a" & <b>: two edges.'


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def assert_self_contained(html: str) -> None:
    """No address of another file or host anywhere, in tags, styles and scripts."""
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", html)
    without_pictures = re.sub(r'"[A-Za-z0-9+/=]{100,}"', '""', without_pictures)
    for word in ("http:", "https:", "//", "url(", "@import", "<link", "fetch", "XMLHttp"):
        assert word not in without_pictures, word
    assert all(str(image["src"]).startswith("data:") for image in Tags(html).of("img"))


def test_a_described_figure_is_one_image_with_its_words() -> None:
    described = describe(draw_cell(DARTS_V2.normal), ALT)
    (image,) = Tags(described.data).of("img")
    assert image["alt"] == ALT == described.alt
    assert_self_contained(described.data)
    picture = Image.open(io.BytesIO(base64.b64decode(str(image["src"]).split(",")[1])))
    assert picture.width == 6.5 * 160
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # legible on a dark page too
    assert dict(described._repr_mimebundle_()) == {"text/html": described.data, "text/plain": f"[{ALT}]"}
    assert len(described.data) < 80_000


def test_a_small_picture_keeps_its_hues(make_history: History) -> None:
    figure = draw_supernet(make_history()[-1])
    exact = io.BytesIO()
    figure.savefig(exact, format="png", dpi=100)
    wanted = np.asarray(Image.open(exact).convert("RGB"), dtype=int)
    for colours in (96, 255):
        got = Image.open(io.BytesIO(base64.b64decode(encode_png(figure, 100, colours)))).convert("RGB")
        assert np.abs(np.asarray(got, dtype=int) - wanted).max() <= 28


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert describe(draw_cell(DARTS_V2.normal), ALT) == describe(draw_cell(DARTS_V2.normal), ALT)


def test_new_words_replace_the_old() -> None:
    first = describe(Figure(), 'Old "words".')
    second = describe(first, "New words.")
    assert Tags(second.data).of("img")[0]["alt"] == "New words."
    assert "Old" not in second.data


@pytest.mark.parametrize("alt", ["", "  ", "…"])
def test_a_figure_without_words_is_refused(alt: str) -> None:
    with pytest.raises(InvalidInput, match="alt: expected a sentence"):
        describe(Figure(), alt)
    with pytest.raises(InvalidInput, match="alt: expected a sentence"):
        show(Figure(), alt)


def test_show_displays_and_closes(capsys: pytest.CaptureFixture[str]) -> None:
    figure, _ = plt.subplots()
    show(figure, "An empty plot.")
    assert plt.get_fignums() == []
    assert "[An empty plot.]" in capsys.readouterr().out
    show(describe(Figure(), "Another one."))
    assert "[Another one.]" in capsys.readouterr().out


def test_a_figure_may_be_saved_twice_whatever_the_style() -> None:
    with matplotlib.rc_context():
        use_style()
        figure = draw_cell(DARTS_V2.normal)
        first, second = io.BytesIO(), io.BytesIO()
        figure.savefig(first, format="png")
        figure.savefig(second, format="png")
    assert first.getvalue() == second.getvalue()


def test_show_without_ipython_prints_the_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    show(Figure(), "An empty plot.")
    assert capsys.readouterr().out == "[An empty plot.]\n"


def test_use_style_sets_defaults_and_drawing_does_not() -> None:
    with matplotlib.rc_context():
        before = dict(matplotlib.rcParams)
        draw_cell(DARTS_V2.normal)
        assert dict(matplotlib.rcParams) == before
        use_style()
        assert matplotlib.rcParams["figure.facecolor"] == "white"
        assert matplotlib.rcParams["font.size"] == 9


def test_supernet_width_follows_the_zero_operation(make_history: History) -> None:
    report = make_history()[0]
    coefficients = report.coefficients["normal"]
    coefficients[:] = 0.0
    coefficients[:, 0] = 1.0  # "none" takes all
    coefficients[3, 0], coefficients[3, 4] = 0.0, 1.0
    widths = [patch.get_linewidth() for patch in draw_supernet(report).axes[0].patches]
    assert widths.count(3.6) == 1 and widths.count(0.4) == 13


def test_supernet_names_the_derived_edges(make_history: History) -> None:
    report = make_history()[-1]
    figure = draw_supernet(report)
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert sum("×" in label or label == "skip" for label in labels) == len(report.genotype.normal.edges) == 8


@pytest.mark.parametrize(("number", "most", "places"), [(3, 15, [0, 1, 2]), (5, 3, [0, 2, 4]), (1, 4, [0])])
def test_frames_are_thinned_evenly(number: int, most: int, places: list[int]) -> None:
    assert pick(number, most) == places


def test_the_player_holds_its_frames_and_nothing_from_outside(make_history: History) -> None:
    html = show_animation(animate_search(make_history(epochs=40)), ALT)
    tags = Tags(html.data)
    (image,) = tags.of("img")
    assert image["alt"] == ALT == html.alt
    assert_self_contained(html.data)
    listed = re.search(r"const others = \[(.*?)\]", html.data)
    assert listed is not None
    first = str(image["src"]).split(",")[1]  # shows where scripts don't run
    pictures = [first, *re.findall(r'"([^"]+)"', listed[1])]
    assert len(pictures) == 15 and len(set(pictures)) == 15
    assert html.data.count(first) == 1
    assert len(html.data) < 400_000
    assert len(tags.of("button")) == 5
    assert re.findall(r">(\w+)</button>", html.data) == ["First", "Back", "Play", "Next", "Last"]
    (slider,) = tags.of("input")
    assert slider["type"] == "range" and slider["max"] == "14" and slider["aria-label"]
    assert "/tmp" not in html.data and ".png" not in html.data


def test_the_player_is_the_same_every_time(make_history: History) -> None:
    history = make_history(epochs=2)
    assert show_animation(animate_search(history), ALT) == show_animation(animate_search(history), ALT)


def test_an_animation_needs_words(make_history: History) -> None:
    animation = animate_search(make_history(epochs=1), "reduction")
    with pytest.raises(InvalidInput, match="alt"):
        show_animation(animation, " ")
    show_animation(animation, "One frame of the reduction cell.")


def test_other_spaces_move_too(make_history: History) -> None:
    space = Space(nodes=2, inputs=1, operations=("none", "tanh", "relu"), kinds=("recurrent",))
    show_animation(animate_search(make_history(space, 2), "recurrent", space=space), "A recurrent cell.")


def test_the_explorer_of_several_searches(make_history: History) -> None:
    pytest.importorskip("ipywidgets")
    histories = {"λ = 0": make_history(epochs=3), "λ = 1": make_history(epochs=3)}
    drawn: list[Any] = []

    def draw(report: Any, kind: str, *, space: Space) -> Figure:
        drawn.append(report)
        return draw_supernet(report, kind, space=space)

    box = explore_search(histories, draw=draw)
    epoch, _, search = box.children[0].children
    assert list(search.options) == list(histories) and drawn[-1] is histories["λ = 0"][-1]
    search.value = "λ = 1"
    assert drawn[-1] is histories["λ = 1"][-1]
    epoch.value = 1
    assert drawn[-1] is histories["λ = 1"][0]
    with pytest.raises(InvalidInput, match="different epochs"):
        explore_search({"a": make_history(epochs=3), "b": make_history(epochs=4)})


def test_the_explorer_redraws_and_keeps_one_picture(make_history: History) -> None:
    widgets = pytest.importorskip("ipywidgets")
    box = explore_search(make_history(epochs=6))
    controls, picture = box.children
    epoch, cell = controls.children
    assert epoch.value == 6 and list(cell.options) == ["normal", "reduction"]
    first = picture.value
    epoch.value = 2
    assert picture.value != first
    assert "after epoch 2" in str(Tags(picture.value).of("img")[0]["alt"])
    cell.value = "reduction"
    assert "reduction cell" in str(Tags(picture.value).of("img")[0]["alt"])
    assert len(picture.value) < 100_000
    assert isinstance(box, widgets.VBox)


def test_the_explorer_offers_the_kinds_of_the_genotype(make_likely_history: History) -> None:
    pytest.importorskip("ipywidgets")
    report = make_likely_history()[0]
    report = dataclasses.replace(report, genotype=Genotype({"normal": report.genotype.normal}))
    assert list(explore_search([report]).children[0].children[1].options) == ["normal"]


def test_the_explorer_says_how_to_get_ipywidgets(make_history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InvalidInput, match="pip install 'nasbook"):
        explore_search(make_history(epochs=1))


def test_every_frame_is_drawn_at_the_same_size(make_history: History) -> None:
    history = make_history(epochs=3)
    animation: Any = animate_search(history)
    sizes = []
    figure: Figure = animation._fig
    for place in range(len(history)):
        animation._func(place)
        figure.savefig(io.BytesIO(), format="png")  # settles the aspect, as the writer does
        sizes.append([text.get_fontsize() for text in figure.axes[0].texts])
    assert {float(size) for frame in sizes for size in frame} == {8.0, 9.0}
    show_animation(animation, "Three frames.")


def edge_widths(figure: Figure) -> list[float]:
    """Of every edge, in the order of the space; the thin grey lines into the output are left out."""
    lines = [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch) and patch.get_zorder() > 1]
    return [line.get_linewidth() for line in lines]


def test_an_edge_is_as_wide_as_it_is_likely(make_likely_history: History) -> None:
    report = make_likely_history()[0]
    probabilities = np.linspace(0, 1, len(DARTS_SPACE.edges))
    wanted = 0.4 + 3.2 * probabilities
    for given in (probabilities, probabilities.tolist(), torch.tensor(probabilities, requires_grad=True),
                  torch.tensor(probabilities + 4e-4)):  # fmt: skip
        figure = draw_supernet(dataclasses.replace(report, edge_probabilities={"normal": given}))
        assert edge_widths(figure) == pytest.approx(wanted, abs=2e-3)
    # Without probabilities coefficients weigh, and those of this report sum to more than 1 on half of the edges.
    figure = draw_supernet(dataclasses.replace(report, edge_probabilities=None))
    sums = report.coefficients["normal"][:, 1:].sum(1).numpy()
    assert edge_widths(figure) == pytest.approx(0.4 + 3.2 * np.clip(sums, 0, 1))


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [({"normal": [0.5] * 3}, r"epoch 1: expected probabilities of 14 edges, got shape \(3,\)"),
     ({"normal": [1.5] * 14}, "from 0 to 1, got 1.5"), ({"normal": [float("nan")] * 14}, "from 0 to 1, got nan"),
     ({"reduction": [0.5] * 14}, "Unknown kind of cell 'normal'")],
)  # fmt: skip
def test_wrong_probabilities_are_refused(
    make_likely_history: History, probabilities: dict[str, list[float]], message: str
) -> None:
    report = dataclasses.replace(make_likely_history()[0], edge_probabilities=probabilities)
    for draw in (lambda: draw_supernet(report), lambda: animate_search([report])):
        with pytest.raises(InvalidInput, match=f"(?i){message}"):
            draw()


def test_nodes_that_the_epoch_does_without_are_faint(make_history: History) -> None:
    cell = CellGenotype((Edge(0, 2, "skip_connect"), Edge(2, 4, "skip_connect")))
    report = dataclasses.replace(make_history()[0], genotype=Genotype({"normal": cell}))
    ax = draw_supernet(report).axes[0]
    dotted = {number for number, patch in enumerate(p for p in ax.patches if isinstance(p, Circle))
              if patch.get_linestyle() == ":"}  # fmt: skip
    assert dotted == {1, 3}  # nodes 3 and 5
    grey = [patch for patch in ax.patches if isinstance(patch, PathPatch) and patch.get_zorder() == 1]
    assert len(grey) == 2  # nodes 2 and 4 are concatenated
    assert sum(text.get_text() == "skip" for text in ax.texts) + sum("×" in t.get_text() for t in ax.texts) == 2


def test_a_space_with_edges_left_out_moves_too(make_likely_history: History) -> None:
    space = Space(nodes=4, left_out=((4, 5), (0, 3)))
    history = make_likely_history(space, 2)
    assert len(edge_widths(draw_supernet(history[0], space=space))) == 12
    show_animation(animate_search(history, space=space), "A cell without two edges.")
    with pytest.raises(InvalidInput, match="expected coefficients of 14 edges"):
        animate_search(history)


WIDE = Space(DARTS_OPERATIONS[1:], nodes=6)


def test_two_searches_are_compared_epoch_by_epoch(make_likely_history: History) -> None:
    histories = {f"L = {depth}": make_likely_history(WIDE, 15, seed=depth) for depth in (4, 12)}
    animation: Any = compare_searches(histories, space=WIDE)
    figure: Figure = animation._fig
    widths = []
    for place in (0, 14):
        animation._func(place)
        assert [ax.get_title() for ax in figure.axes] == [
            f"L = {depth}: normal cell, epoch {place + 1} of 15" for depth in (4, 12)
        ]
        for ax, history in zip(figure.axes, histories.values(), strict=True):
            lines = [patch for patch in ax.patches if isinstance(patch, PathPatch) and patch.get_zorder() > 1]
            widths = [line.get_linewidth() for line in lines]
            assert widths == pytest.approx(0.4 + 3.2 * history[place].edge_probabilities["normal"].numpy())
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 7
    markers = [line.get_marker() for line in figure.axes[0].lines]
    chosen = [edge.operation for edge in histories["L = 4"][14].genotype.normal.edges]
    assert len(markers) == sum(name != "skip_connect" for name in chosen)  # skip is a plain line
    html = show_animation(animation, "Two cells.")
    assert len(html.data) < 600_000
    assert 'max="14"' in html.data


def test_searches_of_different_spaces_are_compared(make_likely_history: History, make_history: History) -> None:
    spaces = {"input edges": Space(nodes=2), "output edges": Space(nodes=3, left_out=((3, 4),))}
    histories = {
        "input edges": make_history(spaces["input edges"], 3),
        "output edges": make_likely_history(spaces["output edges"], 3),
    }
    show_animation(compare_searches(histories, "reduction", space=spaces, frames=2), "Two cells.")
    only = {
        label: [
            dataclasses.replace(report, genotype=Genotype({"normal": report.genotype.normal})) for report in history
        ]
        for label, history in histories.items()
    }
    show_animation(compare_searches(only, space=spaces), "The same, normal cells only.")
    with pytest.raises(InvalidInput, match="Unknown kind of cell 'reduction'"):
        compare_searches(only, "reduction", space=spaces)


def test_searches_that_do_not_match_are_refused(make_history: History) -> None:
    with pytest.raises(InvalidInput, match="at least one label"):
        compare_searches({})
    with pytest.raises(InvalidInput, match=r"histories\['b'\]: The history is empty"):
        compare_searches({"a": make_history(epochs=2), "b": []})
    with pytest.raises(InvalidInput, match="'a' has 3 epochs, 1 to 3, 'b' has 2 epochs, 1 to 2"):
        compare_searches({"a": make_history(epochs=3), "b": make_history(epochs=2)})
    with pytest.raises(InvalidInput, match="'b' has 2 epochs, 2 to 3"):
        compare_searches({"a": make_history(epochs=2), "b": make_history(epochs=3)[1:]})
    with pytest.raises(InvalidInput, match="Unknown label in space 'b'"):
        compare_searches({"b": make_history(epochs=2)}, space={"a": DARTS_SPACE})
