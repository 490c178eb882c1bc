from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nasbook.errors import InvalidInput
from nasbook.plots import (
    Film,
    GrowthEpoch,
    animate_growth,
    describe,
    draw_growth,
    draw_neurons,
    fitted_slope,
    plot_accuracy_against_size,
    plot_loss_by_neurons,
    plot_orders,
    show_animation,
)
from nasbook.plots.growth import growth_table
from nasbook.plots.scaling import _mean_and_error

ALT = 'A network "grows", <all> of it.'


@dataclass(frozen=True)
class Report:
    epoch: int
    train_loss: float
    validation_accuracy: float | None
    neurons: Mapping[str, int]
    parameters: int
    phase: int
    growing: bool


def small_history() -> tuple[list[Report], list[dict[str, tuple[int, int, int]]]]:
    """Two layers; the first splits and gets a neuron in epoch 2; in epoch 4 a layer appears between them."""
    neurons = [{"a": 2, "c": 3}, {"a": 4, "c": 3}, {"a": 4, "c": 3}, {"a": 4, "b": 1, "c": 3}, {"a": 4, "b": 1, "c": 3}]
    origins = [{"a": (2, 0, 0), "c": (3, 0, 0)}] + [{"a": (2, 1, 1), "c": (3, 0, 0)}] * 2
    origins += [{"a": (2, 1, 1), "b": (0, 0, 1), "c": (3, 0, 0)}] * 2
    history = [
        Report(epoch, 2.0 / epoch, 0.5 + 0.1 * epoch, counts, 100 * epoch, (epoch >= 2) + (epoch >= 4), epoch in (2, 4))
        for epoch, counts in enumerate(neurons, start=1)
    ]
    return history, origins


def long_history(widths: int, epochs: int) -> list[Report]:
    generator = np.random.default_rng(0)
    neurons = {f"features.{3 * number}": 4 for number in range(widths)}
    history = []
    for epoch in range(1, epochs + 1):
        if growing := epoch % 5 == 0:
            neurons = {name: count + int(generator.integers(0, count // 2)) for name, count in neurons.items()}
        history.append(
            Report(epoch, 3 * 0.9**epoch, 1 - 0.9**epoch, neurons, sum(neurons.values()), epoch // 5, growing)
        )
    return history


# --- what is read -----------------------------------------------------------------------------------------------------


def test_the_table_holds_what_the_reports_say() -> None:
    history, origins = small_history()
    assert isinstance(history[0], GrowthEpoch)
    table = growth_table(history, origins)
    assert table.widths == ("a", "b", "c")  # the new layer stands where the data meet it
    assert [kind.name for kind in table.kinds] == ["initial", "from splits", "new"]
    assert table.counts[1].tolist() == [[2, 1, 1], [0, 0, 0], [3, 0, 0]]
    assert table.counts[4].tolist() == [[2, 1, 1], [0, 0, 1], [3, 0, 0]]
    assert table.present.tolist() == [[True, False, True]] * 3 + [[True] * 3] * 2
    assert table.growths == [(1, 1), (3, 3)]
    assert table.accuracy.tolist() == pytest.approx([60, 70, 80, 90, 100])
    assert table.parameters.tolist() == [100, 200, 300, 400, 500]


def test_without_origins_what_was_not_there_at_first_has_grown() -> None:
    history, _ = small_history()
    table = growth_table(history)
    assert [kind.name for kind in table.kinds] == ["initial", "grown"]
    assert table.counts[0].tolist() == [[2, 0], [0, 0], [3, 0]]
    assert table.counts[4].tolist() == [[2, 2], [0, 1], [3, 0]]
    lost = [dataclasses.replace(history[0], neurons={"a": count}) for count in (4, 2, 5)]
    assert growth_table(lost).counts[:, 0].tolist() == [[4, 0], [2, 0], [2, 3]]


@given(st.permutations("abcdef"), st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=5))
def test_rows_keep_the_order_of_the_data(order: list[str], present: list[set[str]]) -> None:
    history = [
        Report(epoch, 1.0, None, {name: 1 for name in order if name in names}, 1, 0, False)
        for epoch, names in enumerate([*present, set(order)], start=1)
    ]
    assert growth_table(history).widths == growth_table(history[::-1]).widths == tuple(order)


def test_a_growth_of_several_epochs_is_one() -> None:
    history, _ = small_history()
    flags = [True, True, False, True, True]
    history = [dataclasses.replace(report, growing=flag) for report, flag in zip(history, flags, strict=True)]
    assert growth_table(history).growths == [(0, 1), (3, 4)]


@pytest.mark.parametrize("draw", [draw_growth, animate_growth])
def test_what_is_no_growth_is_refused(draw: Any) -> None:
    history, origins = small_history()
    with pytest.raises(InvalidInput, match="history is empty; run at least one epoch"):
        draw([])
    with pytest.raises(InvalidInput, match="neurons of at least one width"):
        draw([dataclasses.replace(history[0], neurons={})])
    turned = dataclasses.replace(history[1], neurons={"c": 3, "a": 4})
    with pytest.raises(InvalidInput, match="the widths a, c stand in another order in some epochs than in others"):
        draw([history[0], turned])
    with pytest.raises(InvalidInput, match="one entry for each of 5 reports, got 4"):
        draw(history, origins=origins[1:])
    for wrong in ((2, 1, 0), (2, 2), (5, -1, 0), ()):
        with pytest.raises(InvalidInput, match=r"origins, epoch 2, width 'a': expected three counts .* 4 neurons"):
            draw(history, origins=[origins[0], {**origins[1], "a": wrong}, *origins[2:]])
    with pytest.raises(InvalidInput, match="Unknown width in origins of epoch 1: 'b'"):
        draw(history, origins=[{**origins[0], "b": (0, 0, 0)}, *origins[1:]])
    with pytest.raises(InvalidInput, match="Unknown width in labels 'd'"):
        draw(history, labels={"d": "fourth"})


# --- the ribbons ------------------------------------------------------------------------------------------------------


def words(figure: Figure, panel: int = 0) -> dict[str, str]:
    return {str(text.get_gid()): text.get_text() for text in figure.axes[panel].texts if text.get_gid()}


def ribbons(figure: Figure) -> dict[str, dict[float, float]]:
    """By origin and row: the thickness in inches at the middle of every epoch that has it."""
    found = {}
    for artist in figure.axes[0].collections:
        if isinstance(artist, PolyCollection) and artist.get_gid() != "growth":
            thickness = {}
            for path in artist.get_paths():
                vertices = np.asarray(path.vertices)
                for epoch in range(math.ceil(vertices[:, 0].min()), math.floor(vertices[:, 0].max()) + 1):
                    at = vertices[np.abs(vertices[:, 0] - epoch) <= 0.5 + 1e-9]
                    thickness[float(epoch)] = float(np.ptp(at[:, 1]))
            found[str(artist.get_gid())] = thickness
    return found


def test_ribbons_are_as_thick_as_the_widths_have_neurons() -> None:
    history, origins = small_history()
    figure = draw_growth(history, origins=origins)
    found = ribbons(figure)
    assert set(found) == {"initial-0", "from splits-0", "new-0", "new-1", "initial-2"}
    neuron = found["initial-0"][1] / 2
    assert neuron > 0
    assert found["initial-0"] == pytest.approx(dict.fromkeys(range(1, 6), 2 * neuron))
    assert found["initial-2"] == pytest.approx(dict.fromkeys(range(1, 6), 3 * neuron))
    assert found["new-0"] == pytest.approx(dict.fromkeys(range(2, 6), neuron))
    assert found["new-1"] == pytest.approx(dict.fromkeys(range(4, 6), neuron))
    looks = {
        (str(artist.get_facecolor()), artist.get_hatch())
        for artist in figure.axes[0].collections
        if isinstance(artist, PolyCollection)
    }
    assert len({colour for colour, _ in looks}) == len({hatch for _, hatch in looks}) == 3


def test_growth_is_said_in_words_and_shown_in_every_panel() -> None:
    history, origins = small_history()
    figure = draw_growth(history, origins=origins, labels={"a": "first layer"})
    found = words(figure)
    assert [found[f"name-{row}"] for row in range(3)] == ["first layer", "b", "c"]
    assert (found["first-0"], found["last-0"], found["last-1"]) == ("2", "4", "1")
    assert "first-1" not in found  # it was not there
    assert [found[f"parameters-{phase}"] for phase in range(3)] == ["100", "300", "500"]
    assert [ax.get_ylabel() for ax in figure.axes[1:]] == ["train loss", "accuracy, %"]
    for ax in figure.axes:
        spans = [patch for patch in ax.patches if patch.get_gid() == "growth"]
        assert [(span.get_x(), span.get_width()) for span in spans] == [(1.5, 1.0), (3.5, 1.0)]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["initial", "from splits", "new", "the network grows"]
    assert [text.get_text() for text in draw_growth(history).legends[0].get_texts()][:2] == ["initial", "grown"]


def test_the_axis_of_the_loss_is_logarithmic_where_it_spans_much() -> None:
    assert draw_growth(long_history(3, 60)).axes[1].get_yscale() == "log"
    history, _ = small_history()
    assert draw_growth(history).axes[1].get_yscale() == "linear"
    zero = dataclasses.replace(history[-1], train_loss=0.0)
    assert draw_growth([*history[:-1], zero]).axes[1].get_yscale() == "linear"


@pytest.mark.parametrize("widths", [1, 4, 20])
def test_everything_stands_on_the_page_and_apart(widths: int) -> None:
    figure = draw_growth(long_history(widths, 40), labels={"features.0": "the very first convolution of the network"})
    figure.draw_without_rendering()
    assert figure.get_figwidth() == 6.5 and figure.get_figheight() < 9
    boxes = [(text.get_text(), text.get_window_extent()) for ax in figure.axes
             for text in [*ax.texts, ax.yaxis.label, ax.xaxis.label] if text.get_text()]  # fmt: skip
    for name, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, name
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) <= 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 1.5
        assert apart, (first, second)
    assert re.fullmatch("the ver.*….*network", words(figure)["name-0"])


def test_a_network_without_accuracy_or_growth_is_drawn() -> None:
    history = [Report(epoch, math.nan if epoch == 2 else 1.0, None, {"a": 0}, 3, 0, False) for epoch in (1, 2, 3)]
    figure = draw_growth(history)
    assert len(figure.axes) == 2
    assert ribbons(figure) == {}
    figure.savefig("/dev/null", format="png")
    assert draw_growth(history[:1]).axes[0].get_xlim() == (0.5, 1.5)


# --- the film ---------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Elements with a class, in order: their class, the number of the row that they stand in, attributes, words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []
        self.row = -1
        self.open: list[dict[str, Any] | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        self.open.append(self.found[-1] if dict(attrs).get("class") else None)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        kind = attributes.get("class")
        self.row += kind == "row"
        inside = kind in ("part", "texture", "count", "frame", "row")
        if kind:
            self.found.append({"class": kind, "row": self.row if inside else None, **attributes})

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] is not None:
            self.open[-1]["words"] = data

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def of(self, kind: str, row: int | None = None) -> list[dict[str, Any]]:
        return [found for found in self.found if found["class"] == kind and row in (None, found["row"])]


def test_the_film_says_every_epoch() -> None:
    history, origins = small_history()
    film = animate_growth(history, origins=origins)
    assert isinstance(film, Film)
    assert (film.frames, film.still, film.interval) == (5, 4, 400)
    data = json.loads(film.data)
    assert data["headings"] == [
        "epoch 1 of 5, phase 0", "epoch 2 of 5, phase 1: the network grows", "epoch 3 of 5, phase 1",
        "epoch 4 of 5, phase 2: the network grows", "epoch 5 of 5, phase 2",
    ]  # fmt: skip
    assert data["counts"][0] == [[2, 0, 0]] + [[2, 1, 1]] * 4
    assert data["counts"][1] == [None] * 3 + [[0, 0, 1]] * 2
    assert data["values"] == [["2", "1", "0.667", "0.5", "0.4"],
                              ["60.0 %", "70.0 %", "80.0 %", "90.0 %", "100.0 %"],
                              ["100", "200", "300", "400", "500"]]  # fmt: skip
    assert np.diff(data["x"]) == pytest.approx(data["x"][1] - data["x"][0], abs=0.11)
    loss, accuracy, size = data["y"]
    assert loss == sorted(loss) and accuracy == sorted(accuracy, reverse=True) and size == sorted(size, reverse=True)
    assert size[0] - size[1] == pytest.approx(size[3] - size[4], abs=0.11)  # the axis is linear


def test_the_picture_is_the_last_frame() -> None:
    history, origins = small_history()
    film = animate_growth(history, origins=origins)
    data, elements = json.loads(film.data), Elements(film.picture)
    for row, report_counts in enumerate([(2, 1, 1), (0, 0, 1), (3, 0, 0)]):
        parts = elements.of("part", row)
        assert [float(part["width"]) for part in parts] == [count * data["unit"] for count in report_counts]
        starts = data["left"] + data["unit"] * np.array([0, *np.cumsum(report_counts)[:-1]])
        assert [float(part["x"]) for part in parts] == pytest.approx(starts, abs=0.051)
        assert elements.of("count", row)[0]["words"] == str(sum(report_counts))
        assert elements.of("frame", row)[0]["style"] == "display: none"
        shown = ["style" not in texture for texture in elements.of("texture", row)]
        assert shown == [count > 0 for count in report_counts]
    assert elements.of("heading")[0]["words"] == "epoch 5 of 5, phase 2"
    assert [value["words"] for value in elements.of("value")] == ["0.4", "100.0 %", "500"]
    assert {float(line["x1"]) for line in elements.of("now")} == {data["x"][-1]}
    assert len(elements.of("growth")) == 2 * 3
    unseen = animate_growth(history[:4][::-1])  # a layer that is gone in the last frame
    (style,) = [row.get("style") for row in Elements(unseen.picture).of("row")][1:2]
    assert style == "display: none"


def test_origins_differ_in_colour_and_texture() -> None:
    history, origins = small_history()
    elements = Elements(animate_growth(history, origins=origins).picture)
    assert len({part["fill"] for part in elements.of("part", 0)}) == 3
    textures = [
        (texture["stroke-dasharray"], texture.get("stroke-linecap")) for texture in elements.of("texture", 0)
    ]
    assert len(set(textures)) == 3


def test_the_film_is_small_described_and_whole() -> None:
    history = long_history(20, 100)
    origins = [{name: (4, count - 4, 0) for name, count in report.neurons.items()} for report in history]
    film = animate_growth(history, origins=origins)
    shown = show_animation(film, ALT)
    assert film.frames == 100 and len(shown.data) < 80_000
    for word in ("http:", "https:", "//", "url(", "@import", "<link", "fetch", "XMLHttp", "{alt}", "NaN"):
        assert word not in shown.data, word
    assert 'role="img" aria-label="A network &quot;grows&quot;, &lt;all&gt; of it."' in shown.data
    assert 'aria-label="Other words."' in describe(shown, "Other words.").data
    assert 'max="99" value="99"' in shown.data and "100 of 100" in shown.data and "go(99);\n" in shown.data
    assert film.interval == 200  # twenty seconds in all
    assert shown == show_animation(animate_growth(long_history(20, 100), origins=origins), ALT)


def test_frames_are_those_in_which_the_network_grows() -> None:
    history = long_history(3, 200)
    film = animate_growth(history, frames=90)
    epochs = [int(heading.split()[1]) for heading in json.loads(film.data)["headings"]]
    assert film.frames == 90 and epochs[0] == 1 and epochs[-1] == 200
    grown = [report.epoch for before, report in itertools.pairwise(history)
             if report.neurons != before.neurons]  # fmt: skip
    assert len(grown) > 30 and set(grown) <= set(epochs)
    assert max(b - a for a, b in itertools.pairwise(epochs)) <= 5
    few = [int(heading.split()[1]) for heading in json.loads(animate_growth(history, frames=7).data)["headings"]]
    assert len(few) == 7 and few[-1] == 200 and set(few[1:-1]) <= set(grown)
    with pytest.raises(InvalidInput, match="frames"):
        animate_growth(history, frames=0)


def test_a_film_without_accuracy_and_with_gaps() -> None:
    history = [Report(epoch, math.nan if epoch == 2 else 1.0, None, {"<a>": 0}, 3, 0, False) for epoch in (1, 2, 3)]
    film = animate_growth(history, labels={"<a>": "<b>"})
    data = json.loads(film.data)
    assert [values is None for values in data["y"][0]] == [False, True, False]
    assert data["values"] == [["1", "", "1"], ["3", "3", "3"]]  # loss and parameters
    assert "&lt;b&gt;" in film.picture and "<b>" not in film.picture and "nan" not in film.picture
    assert animate_growth(history[:1]).frames == 1 == animate_growth(history, frames=1).frames


_STAGE = """
const elements = INPUT, film = FILM;
function by(name, row) {
  return elements.filter(function (e) { return "." + e.class === name && (row === null || e.row === row); });
}
for (const element of elements) {
  element.style = {};
  element.setAttribute = function (name, value) { element[name] = value; };
  element.querySelectorAll = function (name) { return by(name, element.row); };
}
const player = { querySelectorAll: function (name) { return by(name, null); } };
const slider = { setAttribute: function (name, value) { this[name] = value; } };
PAINT
const seen = FRAMES.map(function (frame) {
  paint(frame);
  return JSON.parse(JSON.stringify({ slider: slider["aria-valuetext"], elements: elements }));
});
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the film's script")
def test_the_script_shows_what_the_reports_say() -> None:
    history, origins = small_history()
    film = animate_growth(history, origins=origins)
    frames = [3, 0, 1, 2, 4]  # forth and back
    program = _STAGE.replace("INPUT", json.dumps(Elements(film.picture).found)).replace("FILM", film.data)
    program = program.replace("PAINT", film.paint).replace("FRAMES", json.dumps(frames))
    result = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    data = json.loads(film.data)
    counts = {0: ["2", "4 +2", "4", "4", "4"], 1: ["", "", "", "1 +1", "1"], 2: ["3"] * 5}
    for frame, seen in zip(frames, json.loads(result.stdout), strict=True):
        elements = seen["elements"]

        def of(name: str, row: int | None = None, elements: Sequence[dict[str, Any]] = elements) -> list[Any]:
            return [e for e in elements if e["class"] == name and row in (None, e["row"])]

        assert of("heading")[0]["textContent"] == data["headings"][frame] == seen["slider"]
        for row, name in enumerate("abc"):
            there = name in history[frame].neurons
            assert (of("row", row)[0]["style"]["display"] == "") is there
            if there:
                widths = [float(part["width"]) for part in of("part", row)]
                assert widths == pytest.approx([count * data["unit"] for count in origins[frame][name]])
                assert of("count", row)[0]["textContent"] == counts[row][frame]
                assert (of("frame", row)[0]["style"]["display"] == "") is ("+" in counts[row][frame])
                shown = [texture["style"]["display"] == "" for texture in of("texture", row)]
                assert shown == [count > 0 for count in origins[frame][name]]
        assert {line["x1"] for line in of("now")} == {data["x"][frame]}
        assert {veil["x"] + veil["width"] for veil in of("veil")} == {data["right"]}
        wanted = [[data["x"][frame], curve[frame]] for curve in data["y"]]
        assert [[float(at) for at in point["transform"][10:-1].split()] for point in of("point")] == wanted
        assert [value["textContent"] for value in of("value")] == [values[frame] for values in data["values"]]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the film's script")
def test_the_script_at_the_last_frame_changes_nothing() -> None:
    film = animate_growth(long_history(6, 30))
    elements = Elements(film.picture).found
    program = _STAGE.replace("INPUT", json.dumps(elements)).replace("FILM", film.data)
    program = program.replace("PAINT", film.paint).replace("FRAMES", f"[{film.still}]")
    result = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    (seen,) = json.loads(result.stdout)
    for before, after in zip(elements, seen["elements"], strict=True):
        for name in ("x", "x1", "x2", "width"):
            if name in before:
                assert float(after[name]) == pytest.approx(float(before[name]), abs=0.08), (before["class"], name)
        display = after["style"].get("display")
        if display is not None and before["class"] != "frame":
            assert (display == "none") is ("style" in before), before
        if "textContent" in after and before["class"] != "count":
            assert after["textContent"] == before["words"]


# --- against size -----------------------------------------------------------------------------------------------------


def test_mean_and_error_know_what_is_missing() -> None:
    mean, error = _mean_and_error(np.array([[1.0, 5.0, np.nan], [3.0, np.nan, np.nan], [5.0, np.nan, np.nan]]))
    assert mean.tolist()[:2] == [3.0, 5.0] and math.isnan(mean[2])
    assert error[:2] == pytest.approx([2 / math.sqrt(3), 0.0])


def test_accuracy_against_size_has_both_means_and_both_errors() -> None:
    curves = {
        "Firefly": [([1.0, 3.0], torch.tensor([80.0, 90.0])), (np.array([3.0, 3.0]), [84.0, 90.0])],
        "Net2Net": [([1.0, 9.0], [70.0, 80.0])],
    }
    figure = plot_accuracy_against_size(curves, full=[92.0, 94.0])
    ax = figure.axes[0]
    firefly, net2net = ax.containers
    assert np.asarray(firefly.lines[0].get_xydata()).tolist() == [[2.0, 82.0], [3.0, 90.0]]
    (across, up) = (bars.get_segments() for bars in firefly.lines[2])
    assert across[0][:, 0].tolist() == pytest.approx([1, 3]) and across[0][:, 1].tolist() == [82, 82]
    assert up[0][:, 1].tolist() == pytest.approx([80, 84])
    assert (net2net.has_xerr, net2net.has_yerr) == (False, False)  # one seed
    (full,) = [line for line in ax.lines if line.get_gid() == "full"]
    assert set(np.asarray(full.get_ydata()).tolist()) == {93.0}
    legend = ax.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"Firefly", "Net2Net", "full network"}
    looks = [(c.lines[0].get_color(), str(c.lines[0].get_linestyle()), c.lines[0].get_marker()) for c in ax.containers]
    assert all(len(set(column)) == 2 for column in zip(*looks, strict=True))


def test_sizes_on_a_logarithmic_axis_are_plain_numbers() -> None:
    figure = plot_accuracy_against_size({"a": [([1, 10, 100], [1, 2, 3])]}, xscale="log")
    figure.draw_without_rendering()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"1", "10", "100"} <= set(shown) and not any("$" in label for label in shown)
    with pytest.raises(InvalidInput, match=r"curves\['a'\]: expected sizes above 0 on a logarithmic axis, got 0"):
        plot_accuracy_against_size({"a": [([0, 10], [1, 2])]}, xscale="log")
    with pytest.raises(InvalidInput, match='expected "linear" or "log", got \'symlog\''):
        plot_accuracy_against_size({"a": [([1, 10], [1, 2])]}, xscale="symlog")


@pytest.mark.parametrize(
    "curves", [{}, {"a": []}, {"a": [([], [])]}, {"a": [([1, 2], [1])]}, {"a": [([1], [1]), ([1, 2], [1, 2])]},
               {"a": [([1], [math.nan])]}],
)  # fmt: skip
def test_ragged_or_missing_accuracies_are_refused(curves: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="curves"):
        plot_accuracy_against_size(curves)
    with pytest.raises(InvalidInput, match="full: expected finite accuracies"):
        plot_accuracy_against_size({"a": [([1], [1])]}, full=[])


def test_loss_by_neurons_shows_mean_and_standard_error() -> None:
    losses = {"Firefly": [[1.0, 0.01], [3.0, 0.09]], "splitting": torch.tensor([[math.nan, 0.4], [math.nan, 0.4]])}
    figure = plot_loss_by_neurons(losses, [2, 5])
    ax = figure.axes[0]
    assert ax.get_yscale() == "log"
    firefly, splitting = ax.containers
    assert np.asarray(firefly.lines[0].get_ydata()).tolist() == pytest.approx([2.0, 0.05])
    assert np.asarray(firefly.lines[0].get_xdata()).round().tolist() == [2, 5]
    segments = [segment[:, 1].tolist() for segment in firefly.lines[2][0].get_segments()]
    assert segments == [pytest.approx([1.0, 3.0]), pytest.approx([0.01, 0.09])]
    assert np.asarray(splitting.lines[0].get_xydata()).round(2).tolist() == [[5.03, 0.4]]  # nothing at two neurons
    assert {text.get_text() for text in ax.texts} == {"Firefly", "splitting"}
    below = plot_loss_by_neurons({"a": [[1e-9], [1.0]]}).axes[0].containers[0].lines[2][0].get_segments()[0][:, 1]
    assert below.tolist() == pytest.approx([0.05, 1.0])  # its lower end would be zero


def test_names_on_a_logarithmic_axis_stand_beside_their_lines() -> None:
    figure = plot_loss_by_neurons({"high": [[10.0, 1.0]], "low": [[10.0, 1e-4]], "lower": [[10.0, 0.9e-4]]})
    ax = figure.axes[0]
    places = {text.get_text(): text.get_position()[1] for text in ax.texts}
    low, high = np.log10(ax.get_ylim())
    assert places["high"] == pytest.approx((0 - low) / (high - low))
    assert places["low"] - places["lower"] > 0.04  # moved apart


@pytest.mark.parametrize(
    ("losses", "neurons", "message"),
    [({}, None, "at least one label"), ({"a": [1.0]}, None, r"got shape \(1,\)"),
     ({"a": [[1.0, 0.0]]}, None, "above 0"),
     ({"a": [[1.0]]}, [1, 2], r"repetitions × 2 numbers of neurons, got shape \(1, 1\)"),
     ({"a": [[math.nan]]}, None, "finite losses"), ({"a": [[math.inf]]}, None, "finite losses")],
)  # fmt: skip
def test_losses_that_are_none_are_refused(losses: dict[str, Any], neurons: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_loss_by_neurons(losses, neurons)


@settings(deadline=None)
@given(st.floats(-4, 4), st.floats(1e-3, 1e3), st.integers(2, 9))
def test_the_fitted_slope_is_the_exponent(exponent: float, factor: float, count: int) -> None:
    steps = 1e-3 * 1.7 ** np.arange(count)
    values = factor * steps**exponent
    assert fitted_slope(steps, values) == pytest.approx(exponent, abs=1e-9)
    assert fitted_slope([*steps, 9.0], [*values, math.nan]) == pytest.approx(exponent, abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [([1], [1], "two different ones"), ([1, 1], [1, 2], "two different ones"), ([1, 2], [1, math.nan], "two different"),
     ([0, 1], [1, 1], "above 0"), ([1, 2], [0, 1], "above 0"), ([1, 2], [1], "one for each of the steps")],
)  # fmt: skip
def test_no_slope_fits_what_has_no_logarithm(steps: Any, values: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        fitted_slope(steps, values)


def test_orders_stand_beside_their_reference_slopes() -> None:
    steps = np.logspace(-5, -1, 9)
    remainder = 2 * steps**2
    remainder[0] = 1e-6  # rounding
    errors = {"closeness": [3 * steps, 5 * steps], "Taylor": remainder}
    figure = plot_orders(steps, errors, slopes=(1, 2), fit=(1e-4, 1.0))
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["closeness: slope 1.00", "Taylor: slope 2.00"]
    assert np.asarray(ax.containers[0].lines[0].get_ydata()) == pytest.approx(4 * steps)
    references = {str(line.get_gid()): np.asarray(line.get_xydata()) for line in ax.lines
                  if str(line.get_gid()).startswith("slope-")}  # fmt: skip
    for slope, top in ((1, 0.4), (2, 0.02)):
        (x0, y0), (x1, y1) = references[f"slope-{slope}"]
        assert math.log(y1 / y0) / math.log(x1 / x0) == pytest.approx(slope)
        assert y1 == pytest.approx(0.45 * top) and x1 == pytest.approx(0.1)
    assert [text.get_text() for text in ax.texts] == ["slope 1", "slope 2"]


def test_times_against_widths_have_the_widths_as_ticks() -> None:
    figure = plot_orders([16, 32, 64], {"exact": [1.0, 8.0, math.nan], "fast": [1.0, 1.0, 1.0]}, xlabel="width")
    figure.draw_without_rendering()
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["16", "32", "64"]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["exact: slope 3.00", "fast: slope 0.00"]


@pytest.mark.parametrize(
    ("steps", "errors", "message"),
    [([1, 2], {}, "at least one label"), ([0, 1], {"a": [1, 2]}, "steps: expected finite numbers above 0"),
     ([], {"a": []}, "steps"), ([1, 2], {"a": [1]}, r"expected 2 numbers, one a step, got shape \(1, 1\)"),
     ([1, 2], {"a": [0, 1]}, r"errors\['a'\]: expected finite numbers above 0")],
)  # fmt: skip
def test_orders_without_logarithms_are_refused(steps: Any, errors: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_orders(steps, errors)
    with pytest.raises(InvalidInput, match="two different ones"):
        plot_orders([1, 2, 4], {"a": [1, 2, 3]}, fit=(3, 5))


# --- three ways -------------------------------------------------------------------------------------------------------


def test_the_drawing_shows_three_ways_to_grow() -> None:
    figure = draw_neurons()
    ax = figure.axes[0]
    boxes = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch) and patch.get_gid()]
    kinds = [str(box.get_gid()) for box in boxes]
    # 3 before; 2 beside a split; 3 beside a new one; 3 before the new layer.
    assert {kind: kinds.count(kind) for kind in kinds} == {"initial": 11, "from splits": 2, "new": 3}
    looks = {(str(box.get_gid()), str(box.get_edgecolor()), str(box.get_linestyle())) for box in boxes}
    assert all(len({look[part] for look in looks}) == 3 for part in range(3))
    found = [text.get_text() for text in ax.texts]
    for label in (r"$\theta_2+\varepsilon\delta$", r"$\theta_2-\varepsilon\delta$", r"$\delta$", "$I+h$"):
        assert found.count(label) == 1, label
    assert found.count("½") == 2 and found.count("ε") == 1


def test_the_words_of_the_drawing_stand_on_the_page_and_apart() -> None:
    figure = draw_neurons()
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts if text.get_text()]
    legend = figure.legends[0].get_window_extent()
    for name, box in [*boxes, ("legend", legend)]:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, name
    for (first, a), (second, b) in itertools.combinations([*boxes, ("legend", legend)], 2):
        assert min(a.x1, b.x1) - max(a.x0, b.x0) <= 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 0.5, (first, second)


def test_the_reference_line_is_drawn_for_steps_in_any_order() -> None:
    """With falling steps the last one is the smallest; a reference from there to there would have no length."""
    steps = [0.1 * 2.0**-k for k in range(5)]
    lengths = []
    for order in (steps, steps[::-1]):
        figure = plot_orders(order, {"a": [step**2 for step in order]}, slopes=(2,))
        (line,) = [line for line in figure.axes[0].lines if line.get_gid() == "slope-2"]
        lengths.append(np.ptp(np.log(np.asarray(line.get_xdata(), dtype=float))))
    assert lengths == pytest.approx([np.log(16)] * 2)
