from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from growing_searches import OPERATIONS, Event, Report, cell, pruned, search
from matplotlib.figure import Figure

from nasbook.errors import InvalidInput
from nasbook.genotypes import Genotype
from nasbook.plots import (
    Film,
    animate_cell_growth,
    cell_growth_in_words,
    draw_cell_growth,
    plot_candidate_weights,
    recorded_search,
    show_animation,
)
from nasbook.plots.cell_growth import event_in_words, found_loss, spans_of, stage_losses
from nasbook.plots.recurrent_cells import candidate_label, fitting_name, wiring

EACH, END = search("two-to-one"), search("darts", each=False)
FILM = animate_cell_growth(
    {"Two-to-One": EACH[0], "DARTS": END[0]}, {"Two-to-One": EACH[1], "DARTS": END[1]},
    found={"Two-to-One": EACH[2], "DARTS": END[2]}, loss="mean squared error",
)  # fmt: skip


def copies() -> tuple[list[Report], list[Event]]:
    """An edge on which tanh is copied after epoch 2, and sum is pruned after epoch 3."""
    pools = [
        {"tanh": 0.6, "sum": 0.4},
        {"tanh": 0.8, "sum": 0.2},
        {"tanh": 0.7, "sum": 0.1, "tanh-2": 0.2},
        {"tanh": 0.5, "tanh-2": 0.5},
    ]
    reports = [Report(n, 1, False, 10 + n, 1.0, 1.0 / n, {"two-to-one": [(0, 1, pool)]}) for n, pool in
               enumerate(pools, start=1)]  # fmt: skip
    return reports, [
        Event(2, 1, "operations", 0.5, 0.5, ({"what": "grow"},)),
        Event(3, 1, "split", 0.4, 0.3, ({}, {})),
    ]


# --- reading a search -------------------------------------------------------------------------------------------------


def test_pieces_between_changes() -> None:
    history, _, _ = EACH
    spans = spans_of(history, "two-to-one")
    assert [(span.first, span.last) for span in spans] == [(0, 2), (3, 4), (5, 7), (8, 9)]
    assert [sorted(span.new_nodes) for span in spans] == [[], [], [3], []]
    assert [len(span.born) for span in spans] == [0, 0, 5, 0]
    assert [len(span.dying) for span in spans] == [8, 0, 4, 0]
    kept = {(s, t, name) for s, t, names in pruned(history[2].weights["two-to-one"]) for name in names}
    assert not spans[0].dying & kept
    back = spans_of(END[0], "darts")
    assert [(span.first, span.last) for span in back] == [(0, 2), (3, 5), (6, 7)]
    assert {(s, t) for s, t, _ in back[1].dying} >= {(1, 3), (2, 3)} and back[2].cell.nodes == 2
    reports, _ = copies()
    assert [span.born for span in spans_of(reports, "two-to-one")] == [frozenset(), {(0, 1, "tanh-2")}, frozenset()]


def test_by_which_loss_a_stage_is_judged() -> None:
    assert stage_losses(*EACH[:2]) == [(1, 5, 1.0), (6, 10, 1.15)]
    assert found_loss(*EACH[:2]) == 1.0  # back to the first stage
    assert stage_losses(*END[:2]) == [(1, 3, 1.0), (4, 6, 1.1), (7, 8, 1.05)]
    assert found_loss(*END[:2]) == 1.05  # after the last tuning
    history, events, _ = EACH
    assert stage_losses(history, events[:-1])[1] == (6, 10, 1.15)  # the last stage that was allowed
    assert found_loss(history, events[:-1]) == 1.15
    assert stage_losses(history[:2], []) == [(1, 2, 1.2)]  # under way
    last = [END[1][0], replace(END[1][2], epoch=6, loss_before=0.9)]  # no stop: pruned after the last stage
    assert stage_losses(END[0], last) == [(1, 3, 1.0), (4, 6, 0.9), (7, 8, 1.05)]


def record_of(history: list[Report], events: list[Event], found: Genotype) -> dict[str, Any]:
    """As :mod:`nasbook.experiments.growing_cells` writes it: weights of the first and the last epoch of a phase."""
    phases = [(report.stage, report.tuning) for report in history]
    course = [
        {"epoch": report.epoch, "stage": report.stage, "tuning": report.tuning, "nodes": 2,
         "parameters": report.parameters, "train": report.train_loss, "validation": report.validation_loss,
         "seconds": 0.5,
         **({"weights": report.weights} if phase not in phases[:n] or phase not in phases[n + 1:] else {})}
        for n, (report, phase) in enumerate(zip(history, phases, strict=True))
    ]  # fmt: skip
    rows = [{k: v for k, v in asdict(event).items() if k != "operations"} for event in events]
    written: dict[str, Any] = json.loads(
        json.dumps({"search": course, "events": rows, "genotype": found.to_json(), "test": 1.0})
    )
    return written


def test_a_search_that_a_record_has() -> None:
    record = record_of(*END)
    history, events, found = recorded_search(record)
    assert found == END[2] and [asdict(event) for event in events] == [asdict(event) for event in END[1]]
    for report, original in zip(history, END[0], strict=True):
        middle = report.epoch in (2, 5)  # get those of the epoch before, which is as near as the one after
        there = END[0][report.epoch - 2] if middle else original
        cells = [wiring(one.weights["darts"], "darts") for one in (report, there)]
        assert cells[0] == cells[1]
        assert (report.parameters, report.validation_loss) == (original.parameters, original.validation_loss)
    assert cell_growth_in_words(history, events) == cell_growth_in_words(*END[:2])
    film = animate_cell_growth({"a": history}, {"a": events}, found={"a": found})
    assert film.frames == 9
    grown = {**record["events"][0], "what": "operations", "changes": [["grow", 0, 1, "tanh-2"]]}
    changed = {**record, "events": [grown]}
    assert event_in_words(recorded_search(changed)[1][0]).startswith("1 operation changes")
    with pytest.raises(InvalidInput, match="this one has no 'search'"):
        recorded_search({"train": [1.0], "genotype": found.to_json()})
    bare = [{k: v for k, v in epoch.items() if k != "weights"} for epoch in record["search"]]
    with pytest.raises(InvalidInput, match="epoch 1 and its phase have no weights"):
        recorded_search({**record, "search": bare})


def test_events_in_words() -> None:
    assert [event_in_words(event) for event in EACH[1]] == [
        "pruned: loss 1.1 → 1.45", "a node grows: loss 1 → 1.01", "pruned: loss 1.24 → 1.5",
        "no gain: back to the stage before"]  # fmt: skip
    assert [event_in_words(event) for event in copies()[1]] == [
        "1 operation changes: 0.5 → 0.5", "2 operations split: 0.4 → 0.3"]  # fmt: skip
    assert cell_growth_in_words(*END[:2]) == (
        "The darts cell begins with 2 nodes. After epoch 3: a node grows: loss 1 → 1.001. After epoch 6: no gain: back "
        "to the stage before; pruned: loss 1 → 1.3. The search ends after epoch 8; the validation loss of its answer "
        "is 1.05."
    )


# --- the film ---------------------------------------------------------------------------------------------------------

_STAGE = """
const film = FILM, slider = { setAttribute: function (name, value) { this[name] = value; } };
function element(name) {
  return { class: name, style: {}, setAttribute: function (key, value) { this[key] = value; }, children: {},
           querySelectorAll: function (key) { return this.children[key] || []; } };
}
function made(name, children) {
  const found = element(name);
  Object.keys(children).forEach(function (key) { found.children["." + key] = children[key]; });
  return found;
}
function many(number, name) { return Array.from({ length: number }, function () { return element(name); }); }
const dying = DYING;
const drawn = film.searches.map(function (search, number) {
  return made("search", {
    line: many(4, "line"), now: many(1, "now"), veil: many(1, "veil"), point: many(2, "point"), value: many(2, "value"),
    span: search.bars.map(function (bars, place) {
      const parts = bars.map(function (bar, edge) {
        return bar[2].map(function (_, at) {
          return made("part", { box: many(1, "box"), name: many(1, "name"), words: many(1, "words"),
                                strike: many(dying[number][place][edge][at], "strike") });
        });
      });
      return made("span", {
        strike: parts.flat().flatMap(function (part) { return part.children[".strike"]; }),
        wires: bars.map(function () { return made("wires", { wire: many(2, "wire") }); }),
        bar: bars.map(function (_, edge) { return made("bar", { part: parts[edge] }); })
      });
    })
  });
});
const player = made("player", { heading: many(1, "heading"), search: drawn });
PAINT
console.log(JSON.stringify(film.headings.map(function (_, frame) {
  paint(frame);
  return { heading: player.children[".heading"][0].textContent, spoken: slider["aria-valuetext"],
           searches: drawn.map(function (search) {
    const first = function (from, name) { return from.children["." + name][0]; };
    return {
      lines: search.children[".line"].map(function (line) { return line.textContent; }),
      values: search.children[".value"].map(function (value) { return value.textContent; }),
      points: search.children[".point"].map(function (point) { return point.style.display !== "none"; }),
      now: first(search, "now").x1, veil: first(search, "veil").width,
      spans: search.children[".span"].map(function (span) { return span.style.display !== "none"; }),
      bars: search.children[".span"].map(function (span) {
        return span.children[".bar"].map(function (bar, edge) {
          const wire = first(span.children[".wires"][edge], "wire");
          return { wire: wire["stroke-width"], parts: bar.children[".part"].map(function (part) {
            const box = first(part, "box");
            return { x: box.x, width: box.width, fill: box.fill, name: first(part, "name").textContent,
                     words: first(part, "words").textContent,
                     struck: part.children[".strike"].some(function (one) { return one.style.display !== "none"; }) };
          }) };
        });
      }) };
  }) };
})));
"""


def play(film: Film, dying: Any) -> list[dict[str, Any]]:
    program = _STAGE.replace("FILM", film.data).replace("PAINT", film.paint).replace("DYING", json.dumps(dying))
    result = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    shown: list[dict[str, Any]] = json.loads(result.stdout)
    return shown


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the film's script")
def test_the_script_shows_what_the_reports_say() -> None:
    dying = [
        [[[int((source, target, name) in span.dying) for name, _ in weights]
          for source, target, weights in span.cell.edges] for span in spans_of(history, kind)]
        + [[[0]] * len(found[kind].edges)]
        for (history, _, found), kind in ((EACH, "two-to-one"), (END, "darts"))
    ]  # fmt: skip
    *frames, end = play(FILM, dying)
    assert len(frames) + 1 == FILM.frames == 11  # ten epochs of the longer search, and what was found
    for number, (history, events, kind) in enumerate([(*EACH[:2], "two-to-one"), (*END[:2], "darts")]):
        spans = spans_of(history, kind)
        places = []
        for epoch, frame in enumerate(frames, start=1):
            report = history[min(epoch, len(history)) - 1]
            shown = frame["searches"][number]
            (place,) = [n for n, there in enumerate(shown["spans"]) if there]
            span = spans[place]
            assert span.first <= history.index(report) <= span.last
            happens = [event_in_words(event) for event in events if event.epoch == report.epoch]
            if epoch <= len(history):
                phase = "only weights learn" if report.tuning else "weights and α learn"
                size = f"{span.cell.nodes} nodes, {report.parameters:,} parameters"
                assert shown["lines"] == [f"stage {report.stage}, {phase}", size,
                                          *[*(f"then {words}" for words in happens), "", ""][:2]]  # fmt: skip
            else:
                assert shown["lines"][0] == f"ended after epoch {len(history)}"
            assert shown["values"] == [f"{report.validation_loss:.4g}", f"{report.train_loss:.4g}"]
            assert shown["points"] == [True, True]
            for (source, target, weights), bar in zip(
                wiring(report.weights[kind], kind).edges, shown["bars"][place], strict=True
            ):
                total = sum(part["width"] for part in bar["parts"])
                for (name, weight), part in zip(weights, bar["parts"], strict=True):
                    assert part["width"] / total == pytest.approx(weight, abs=2e-3)
                    assert part["words"] == f"{candidate_label(name)}, weight {round(1000 * weight) / 1000:.3f}"
                    assert part["name"] in (fitting_name(name, part["width"] - 0.6),
                                            fitting_name(name, part["width"] + 0.6))  # fmt: skip
                    ends = epoch <= len(history) and history.index(report) == span.last
                    if (source, target, name) in span.dying:
                        assert part["struck"] == ends and (part["fill"] == "#ffffff") >= ends
                    else:
                        assert not part["struck"] and (part["fill"] == "#ffffff") == (name == "none")
                zero = dict(weights).get("none", 0.0)
                assert bar["wire"] == pytest.approx(0.5 + 1.2 * (1 - zero), abs=4e-3)
            places.append(shown["now"])
            assert shown["now"] + shown["veil"] == pytest.approx(places[0] + frames[0]["searches"][number]["veil"])
        assert places[: len(history)] == sorted(set(places))  # the cursor moves
        assert frame["spoken"].startswith("epoch 10 of 10. Two-to-One: stage 2, only weights learn, ")
    assert end["heading"] == "The found cells"
    answers = zip(end["searches"], (EACH, END), ("two-to-one", "darts"), strict=True)
    for shown, (history, events, found), kind in answers:
        assert shown["lines"][:2] == ["the answer: 2 nodes", f"validation loss {found_loss(history, events):.4g}"]
        assert shown["points"] == [False, False] and shown["values"] == ["", ""]
        names = [part["name"] for bar in shown["bars"][-1] for part in bar["parts"]]
        assert names == [candidate_label(edge.operation) for edge in found[kind].edges]


def test_the_picture_is_the_frame_that_the_script_begins_with() -> None:
    assert FILM.still == FILM.frames - 1
    assert "The found cells" in FILM.picture and "the answer: 2 nodes" in FILM.picture
    described = show_animation(FILM, 'Two cells "grow".')
    assert 'aria-label="Two cells &quot;grow&quot;."' in described.data
    assert "mean squared error, lower is better" in FILM.picture
    shown = re.findall(r'class="span" transform="[^"]*"( style="display: none")?', FILM.picture)
    assert [not hidden for hidden in shown] == [False] * 4 + [True] + [False] * 3 + [True]
    assert FILM.picture.count('class="tuning"') == 3 and FILM.picture.count('class="border"') == 4 + 2
    assert re.findall(r'class="mark">([^<]*)<', FILM.picture) == ["−", "+", "−", "■", "+", "■−"]
    assert "http" not in FILM.picture and "url(" not in FILM.picture


def test_a_search_under_way_alone() -> None:
    history, events = EACH[0][:6], EACH[1][:2]
    film = animate_cell_growth({"a": history}, {"a": events})
    assert film.frames == 6 and "epoch 6 of 6" in film.picture
    assert 'stroke-width="2.6"' in film.picture and 'class="new"' in film.picture  # the node that just grew
    assert 'class="new"' not in animate_cell_growth({"a": history[:5]}, {"a": events[:1]}).picture


def test_copies_in_the_film() -> None:
    film = animate_cell_growth(*({"a": one} for one in copies()))
    looks = [look[0] for look in json.loads(film.data)["looks"]]
    assert looks == ["tanh", "tanh₂", "sum"]
    lines = json.loads(film.data)["searches"][0]["lines"]
    assert [line[2] for line in lines] == ["", "then 1 operation changes: 0.5 → 0.5",
                                           "then 2 operations split: 0.4 → 0.3", ""]  # fmt: skip


def test_losses_that_are_not_finite_leave_gaps() -> None:
    history = [replace(report, validation_loss=value) for report, value in
               zip(EACH[0], [1, np.nan, np.inf, 1, 2, 3, 4, 5, 6, 7], strict=True)]  # fmt: skip
    film = animate_cell_growth({"a": history}, {"a": EACH[1]})
    heights = [frame[4] for frame in json.loads(film.data)["searches"][0]["frames"]]
    assert [height is None for height in heights] == [False, True, True, *[False] * 7]
    hopeless = [replace(report, validation_loss=np.nan, train_loss=np.nan) for report in EACH[0]]
    assert "NaN" not in animate_cell_growth({"a": hopeless}, {"a": []}).data
    steep = [replace(report, validation_loss=10.0 ** -report.epoch) for report in EACH[0]]
    film = animate_cell_growth({"a": steep}, {"a": []})
    heights = [frame[4] for frame in json.loads(film.data)["searches"][0]["frames"]]
    assert np.allclose(np.diff(heights), heights[1] - heights[0], atol=0.11)  # a logarithmic axis


def test_a_long_film_stays_small() -> None:
    """Five stages of a DARTS cell with up to six nodes, beside a Two-to-One cell; 25 epochs."""
    histories: dict[str, list[Report]] = {}
    events: dict[str, list[Event]] = {}
    for backbone in ("darts", "two-to-one"):
        reports = [
            Report(5 * stage + n + 1, stage + 1, n > 2, 999, 1.0, 1.0 - 0.01 * (5 * stage + n),
                   {backbone: (pruned if n > 2 else list)(cell(backbone, stage + 2, 9 * stage + n * (n < 3)))})
            for stage in range(5) for n in range(5)
        ]  # fmt: skip
        histories[backbone] = reports
        events[backbone] = [
            Event(5 * stage + after, stage + 1, what, 1.0, 1.1)
            for stage in range(5) for after, what in ((3, "prune"), (5, "node"))
        ]  # fmt: skip
    film = animate_cell_growth(histories, events)
    assert film.frames == 25
    assert len(show_animation(film, "Two cells grow.").data) < 250_000
    few = animate_cell_growth(histories, events, frames=12)
    assert few.frames == 12
    headings = json.loads(few.data)["headings"]
    assert headings[0] == "epoch 1 of 25" and headings[-1] == "epoch 25 of 25"


def test_films_of_other_searches_are_refused() -> None:
    history, events, found = EACH
    with pytest.raises(InvalidInput, match="one or two searches, side by side; got 0"):
        animate_cell_growth({}, {})
    with pytest.raises(InvalidInput, match="one or two searches, side by side; got 3"):
        animate_cell_growth(dict.fromkeys("abc", history), dict.fromkeys("abc", events))
    with pytest.raises(InvalidInput, match="events: expected an entry for 'a'"):
        animate_cell_growth({"a": history}, {})
    with pytest.raises(InvalidInput, match="found: expected an entry for 'a'"):
        animate_cell_growth({"a": history}, {"a": events}, found={})
    with pytest.raises(InvalidInput, match="label in found 'b'"):
        animate_cell_growth({"a": history}, {"a": events}, found={"b": found})
    with pytest.raises(InvalidInput, match="history is empty"):
        animate_cell_growth({"a": []}, {"a": []})
    with pytest.raises(InvalidInput, match="kind of cell 'darts'"):
        animate_cell_growth({"a": history}, {"a": events}, kinds={"a": "darts"})
    with pytest.raises(InvalidInput, match="frames"):
        animate_cell_growth({"a": history}, {"a": events}, frames=0)


# --- one picture ------------------------------------------------------------------------------------------------------


def texts(figure: Figure) -> dict[str, Any]:
    every = [*figure.texts, *(text for ax in figure.axes for text in ax.texts)]
    return {str(text.get_gid()): text for text in every if text.get_gid()}


@pytest.mark.parametrize("backbone", OPERATIONS)
def test_a_search_in_one_picture(backbone: str) -> None:
    history, events, _ = search(backbone)
    figure = draw_cell_growth(history, events, loss="mean squared error")
    *cells, losses = figure.axes
    assert len(cells) == 4
    assert [texts(figure)[f"title-{n}"].get_text().split("epoch")[1] for n in range(4)] == [
        "s 1–3", "s 4–5", "s 6–8", "s 9–10"]  # fmt: skip
    assert [texts(figure)[f"letter-{n}"].get_position()[0] for n in range(4)] == [2, 4.5, 7, 9.5]
    lines = {str(line.get_gid()): line for line in losses.lines}
    assert list(lines["validation"].get_ydata()) == [report.validation_loss for report in history]
    assert list(lines["training"].get_ydata()) == [report.train_loss for report in history]
    assert list(lines["stages"].get_ydata()) == [1.0, 1.0, 1.15, 1.15]
    assert list(lines["stages"].get_xdata()) == [0.5, 5.5, 5.5, 10.5]
    assert [texts(figure)[f"mark-{n}"].get_text() for n in (3, 5, 8, 10)] == ["−", "+", "−", "■"]
    assert losses.get_ylabel() == "mean squared error,\nlower is better"
    assert len(draw_cell_growth(history, events, cells=2).axes) == 3
    with pytest.raises(InvalidInput, match="history is empty"):
        draw_cell_growth([], [])


def test_candidates_over_epochs() -> None:
    reports, events = copies()
    figure = plot_candidate_weights(reports, events)
    (ax,) = figure.axes
    bands = [(str(band.get_gid()), np.asarray(band.get_paths()[0].vertices)) for band in ax.collections
             if str(band.get_gid()).startswith("band-")]  # fmt: skip
    assert [name for name, _ in bands] == [
        f"band-0-1-{name}" for name in ("tanh", "sum", "tanh", "tanh-2", "sum", "tanh", "tanh-2")]  # fmt: skip
    edges = [(points[:, 0].min(), points[:, 0].max()) for _, points in bands]
    assert edges == [(0.5, 2.5)] * 2 + [(2.5, 3.5)] * 3 + [(3.5, 4.5)] * 2
    heights = [(points[:, 1].min(), points[:, 1].max()) for _, points in bands[2:]]
    assert np.allclose(heights, [(0, 0.7), (0.7, 0.9), (0.9, 1), (0, 0.5), (0.5, 1)])
    assert [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "border"] == [2.5, 3.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["t  tanh", "t₂  tanh₂", "+  sum"]
    figure.savefig("/dev/null", format="png")


def test_chosen_edges_over_epochs() -> None:
    history, events, _ = END
    every = plot_candidate_weights(history, events)
    assert [ax.get_title() for ax in every.axes if ax.axison] == ["$[x_t; h_{t-1}]$ → 1", "1 → 2", "1 → 3", "2 → 3"]
    third = every.axes[2]
    assert min(np.asarray(band.get_paths()[0].vertices)[:, 0].min() for band in third.collections) == 3.5
    assert len(plot_candidate_weights(history, edges=[(1, 3)]).axes) == 1
    with pytest.raises(InvalidInput, match=r"\(0, 3\) is not an edge"):
        plot_candidate_weights(history, edges=[(0, 3)])
    with pytest.raises(InvalidInput, match="kind of cell 'highway'"):
        plot_candidate_weights(history, kind="highway")
