from __future__ import annotations

import base64
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
from matplotlib.figure import Figure
from PIL import Image

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_V2, Space
from nasbook.plots import (
    animate_search,
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
    for colours in (160, 255):
        got = Image.open(io.BytesIO(base64.b64decode(encode_png(figure, 100, colours)))).convert("RGB")
        assert np.abs(np.asarray(got, dtype=int) - wanted).max() <= 24


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
    listed = re.search(r"const pictures = \[(.*?)\]", html.data)
    assert listed is not None
    pictures = re.findall(r'"([^"]+)"', listed[1])
    assert len(pictures) == 15 and len(set(pictures)) == 15
    assert str(image["src"]).endswith(pictures[0])  # shows where scripts don't run
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


def test_the_explorer_says_how_to_get_ipywidgets(make_history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InvalidInput, match="pip install 'nasbook"):
        explore_search(make_history(epochs=1))


def test_every_frame_is_drawn_at_the_same_size(make_history: History) -> None:
    history = make_history(epochs=3)
    animation: Any = animate_search(history)
    sizes = []
    figure: Figure = animation._fig
    for report in history:
        animation._func(report)
        figure.savefig(io.BytesIO(), format="png")  # settles the aspect, as the writer does
        sizes.append([text.get_fontsize() for text in figure.axes[0].texts])
    assert {float(size) for frame in sizes for size in frame} == {8.0, 9.0}
    show_animation(animation, "Three frames.")
