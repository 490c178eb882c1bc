"""Cells that grow, side by side, as a film that the page draws itself (growing DARTS, Chapter 6).

Between two changes of a cell only the widths of its bars' parts differ from epoch to epoch. So the picture has one
group of shapes for each structure of a cell, of which one shows, and the script has the weights.
"""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import ZERO, Genotype
from nasbook.plots.animation import Film, pick
from nasbook.plots.cell_growth import (
    TRAINING,
    TUNING,
    VALIDATION,
    Candidate,
    StageEpoch,
    StageEvent,
    chosen_kind,
    event_in_words,
    found_loss,
    in_numbers,
    mark_of,
    signs_in_words,
    spans_of,
    stage_losses,
)
from nasbook.plots.palette import FAINT, INK, OperationStyle, operation_copy
from nasbook.plots.recurrent_cells import (
    BAR,
    LEAST_PITCH,
    NAME,
    PITCH,
    RADIUS,
    WIRE,
    Arrow,
    Box,
    CellPlan,
    Line,
    Wiring,
    all_styles,
    bar_parts,
    candidate_label,
    candidate_letter,
    fitting_name,
    part_colours,
    pixels_wide,
    plan_cell,
    wire_look,
    wiring,
)
from nasbook.plots.svg import DASHES, WIDTH, decimal, marker_data, picture, tag, text

_HEADING, _STATUS, _CURVE, _LEGEND = 24.0, 76.0, 214.0, 52.0
"""Heights in pixels: of the heading, of the words above a cell, of the curves with their titles, and of the legend."""
_AREA = 380.0
"""The most pixels of a cell."""
_BETWEEN, _MARGIN = 16.0, 6.0
_AXIS = 40.0
"""Pixels for tick labels."""
_SECONDS = 30.0
"""The whole film takes so long at most."""
_PAINT = """\
    const all = function (from, name) { return Array.from(from.querySelectorAll("." + name)); };
    const heading = all(player, "heading")[0];
    const searches = all(player, "search").map(function (search) {
      return { lines: all(search, "line"), now: all(search, "now")[0], veil: all(search, "veil")[0],
               points: all(search, "point"), values: all(search, "value"),
               spans: all(search, "span").map(function (span) {
        const wires = all(span, "wires").map(function (lines) { return all(lines, "wire"); });
        return { span: span, strikes: all(span, "strike"), wires: wires, bars: all(span, "bar").map(function (bar) {
          return all(bar, "part").map(function (part) {
            return { box: all(part, "box")[0], name: all(part, "name")[0], words: all(part, "words")[0],
                     strike: all(part, "strike")[0] };
          });
        }) };
      }) };
    });
    function set(element, values) {
      Object.keys(values).forEach(function (name) { element.setAttribute(name, values[name]); });
    }
    function show(element, yes) { element.style.display = yes ? "" : "none"; }
    function paint(frame) {
      heading.textContent = film.headings[frame];
      const spoken = [film.headings[frame]];
      searches.forEach(function (search, number) {
        const data = film.searches[number], state = data.frames[data.at[frame]];
        const lines = data.lines[frame];
        search.lines.forEach(function (line, place) { line.textContent = lines[place]; });
        spoken.push(data.label + ": " + lines.filter(Boolean).join(", "));
        search.spans.forEach(function (span, place) {
          show(span.span, place === state[0]);
          if (place !== state[0]) return;
          span.strikes.forEach(function (strike) { show(strike, state[2]); });
          span.bars.forEach(function (bar, edge) {
            const there = data.bars[place][edge], weights = data.weights[state[1]][edge];
            let x = there[0], kept = 0;
            bar.forEach(function (part, at) {
              const look = film.looks[there[2][at]], width = there[1] * weights[at] / 1000;
              set(part.box, { x: x, width: width, fill: part.strike && state[2] ? "#ffffff" : look[5] });
              part.name.textContent = look[1] + 6 <= width ? look[0] : look[3] + 2 <= width ? look[2] : "";
              set(part.name, { x: x + width / 2 });
              part.words.textContent = look[0] + ", weight " + (weights[at] / 1000).toFixed(3);
              if (part.strike) set(part.strike, { x1: x + 1, x2: x + Math.max(1, width - 1) });
              if (!look[4]) kept += weights[at] / 1000;
              x += width;
            });
            span.wires[edge].forEach(function (wire) { set(wire, { "stroke-width": 0.5 + 1.2 * kept }); });
          });
        });
        const x = state[3];
        set(search.now, { x1: x, x2: x });
        set(search.veil, { x: x, width: Math.max(0, data.right - x) });
        search.points.forEach(function (point, curve) {
          const y = state[4 + curve];
          show(point, y !== null);
          if (y !== null) point.setAttribute("transform", "translate(" + x + " " + y + ")");
          search.values[curve].textContent = state[6 + curve];
        });
      });
      slider.setAttribute("aria-valuetext", spoken.join(". "));
    }"""


@dataclass(frozen=True)
class _Span:
    """One structure of a cell, as the film draws it."""

    cell: Wiring
    new_nodes: frozenset[int]
    born: frozenset[Candidate]
    dying: frozenset[Candidate]


@dataclass(frozen=True)
class _Search:
    """One search of the film."""

    label: str
    kind: str
    history: Sequence[StageEpoch]
    events: Sequence[StageEvent]
    spans: list[_Span]
    span_of: list[int]
    """For every report, which structure it has."""
    ends: list[bool]
    """For every report, whether it is the last one of its structure."""

    def after(self, epoch: int) -> list[StageEvent]:
        """What happens to the cell after an epoch."""
        return [event for event in self.events if event.epoch == epoch]


def animate_cell_growth(
    histories: Mapping[str, Sequence[StageEpoch]],
    events: Mapping[str, Sequence[StageEvent]],
    *,
    found: Mapping[str, Genotype] | None = None,
    kinds: Mapping[str, str] | None = None,
    loss: str = "loss",
    frames: int = 60,
) -> Film:
    """One or two searches whose cells grow, side by side: the cells as they are, and below them the losses so far.

    A bar in front of a node has the candidates of an edge, as wide as their softmax weights. New nodes and candidates
    have a bold outline until the next change; candidates that the next change takes away are struck out after the
    last epoch before it. In the curves, a dashed line ends each phase, with a sign for what happens there (+ a node
    grows, − pruned, ± operations change, ■ no gain), a grey background has the epochs in which only weights learn, and
    black steps have the loss by which a stage is judged: the search goes on if they go down. Both searches have the
    same axes. Show it with :func:`nasbook.plots.show_animation`.

    Args:
        histories: the reports of one or two growing searches of recurrent cells, by the label to write above them.
        events: the events of the same searches.
        found: the genotypes that the searches answered, for one more frame at the end.
        kinds: which kind of cell to show, by label; the first by default.
        loss: what the loss is, such as "mean squared error".
        frames: the most epochs to show; of longer histories those before and after changes come first.

    Raises:
        InvalidInput: there is no search or more than two, or a history or its events are missing.
    """
    require_positive(frames=frames)
    if not 1 <= len(histories) <= 2:
        raise InvalidInput(f"histories: expected one or two searches, side by side; got {len(histories)}.")
    for given, name in ((events, "events"), (found, "found"), (kinds, "kinds")):
        for label in given or ():
            if label not in histories:
                raise unknown_name(f"label in {name}", label, histories)
    for label in histories:
        if label not in events or (found is not None and label not in found):
            raise InvalidInput(f"{'events' if label not in events else 'found'}: expected an entry for {label!r}.")
    searches = [
        _search(label, history, events[label], chosen_kind(history, (kinds or {}).get(label)),
                None if found is None else found[label])
        for label, history in histories.items()
    ]  # fmt: skip
    return _Drawing(searches, found is not None, loss, frames).film()


def _search(
    label: str, history: Sequence[StageEpoch], events: Sequence[StageEvent], kind: str, found: Genotype | None
) -> _Search:
    spans, span_of, ends = [], [], []
    for number, span in enumerate(spans_of(history, kind)):
        spans.append(_Span(span.cell, span.new_nodes, span.born, span.dying))
        length = span.last - span.first + 1
        span_of += [number] * length
        ends += [False] * (length - 1) + [bool(span.dying)]
    if found is not None:
        spans.append(_Span(wiring(found[kind], kind), frozenset(), frozenset(), frozenset()))
    return _Search(label, kind, history, events, spans, span_of, ends)


class _Drawing:
    """Places of everything in the film, and its pieces."""

    def __init__(self, searches: Sequence[_Search], found: bool, loss: str, frames: int) -> None:
        self.searches = searches
        self.found = found
        self.loss = loss
        self.epochs = _epochs(searches, frames)
        self.column = (WIDTH - 2 * _MARGIN - _BETWEEN * (len(searches) - 1)) / len(searches)
        cells = [span.cell for search in searches for span in search.spans]
        self.styles = all_styles(cells)
        self.order = {name: number for number, name in enumerate(self.styles)}
        self.most = max(cell.nodes for cell in cells)
        wide = min(self.column, 360.0)
        self.inset = (self.column - wide) / 2
        tallest = plan_cell(max(cells, key=lambda cell: cell.nodes), wide).height
        pitch = PITCH
        while tallest - (PITCH - pitch) * (self.most + 1) > _AREA and pitch > LEAST_PITCH:
            pitch -= 1
        self.plans = [
            [plan_cell(span.cell, wide, pitch=pitch,
                       most_nodes=max(one.cell.nodes for one in search.spans)) for span in search.spans]
            for search in searches
        ]  # fmt: skip
        self.area = max(plan.height for plans in self.plans for plan in plans)
        self.curve_top = _HEADING + _STATUS + self.area + 36
        self.curve_bottom = self.curve_top + _CURVE - 72
        self.height = round(self.curve_top + _CURVE - 32 + _LEGEND)
        self.low, self.high, self.logarithmic = _limits(searches)

    def left(self, number: int) -> float:
        return _MARGIN + number * (self.column + _BETWEEN)

    def level(self, loss: float) -> float | None:
        """How high a loss stands in the picture; None for one that is not finite."""
        if not math.isfinite(loss) or (self.logarithmic and loss <= 0):
            return None
        value = math.log10(loss) if self.logarithmic else loss
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return self.curve_bottom - 2 - (self.curve_bottom - self.curve_top - 4) * share

    def across(self, number: int, epoch: float) -> float:
        """Where an epoch stands; the middle of its place."""
        left, last = self.left(number) + _AXIS, max(self.epochs)
        return left + (self.left(number) + self.column - 4 - left) * (epoch - 0.5) / last

    # --- the film ---

    def film(self) -> Film:
        last = max(self.epochs)
        headings = [f"epoch {epoch} of {last}" for epoch in self.epochs]
        if self.found:
            headings.append(f"The found cell{'s' if self.searches[1:] else ''}")
        looks = [
            [candidate_label(name), round(pixels_wide(candidate_label(name))), candidate_letter(name),
             round(pixels_wide(candidate_letter(name))), int(operation_copy(name)[0] == ZERO),
             to_hex(part_colours(name, style)[0])]
            for name, style in self.styles.items()
        ]  # fmt: skip
        described = [self._data(number, search) for number, search in enumerate(self.searches)]
        still = len(headings) - 1
        parts = [text(WIDTH / 2, 16.0, headings[still], class_="heading", font_weight="bold")]
        for number, search in enumerate(self.searches):
            parts.append(self._drawn(number, search, described[number], still))
        parts.append(self._legend())
        data = {"headings": headings, "looks": looks, "searches": described}
        written = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
        interval = round(max(250.0, min(900.0, _SECONDS * 1000 / len(headings))))
        return Film(picture(parts, self.height), len(headings), written, _PAINT, interval, still)

    def _data(self, number: int, search: _Search) -> dict[str, Any]:
        """What the script needs of one search."""
        tables: list[str] = []

        def table(cell: Wiring) -> int:
            rows = [[round(1000 * weight / (sum(w for _, w in weights) or 1)) for _, weight in weights]
                    for _, _, weights in cell.edges]  # fmt: skip
            key = json.dumps(rows, separators=(",", ":"))
            if key not in tables:
                tables.append(key)
            return tables.index(key)

        last = search.history[-1].epoch
        known = {report.epoch: place for place, report in enumerate(search.history)}
        frames, at, lines = [], [], []
        for epoch in self.epochs:
            place = known.get(min(epoch, last))
            if place is None:  # histories with gaps show the report before
                place = max(n for e, n in known.items() if e <= epoch) if min(known) <= epoch else 0
            report = search.history[place]
            state = [
                search.span_of[place], table(wiring(report.weights[search.kind], search.kind)), int(search.ends[place]),
                round(self.across(number, report.epoch), 1), *self._levels(report),
                in_numbers(report.validation_loss), in_numbers(report.train_loss),
            ]  # fmt: skip
            if state not in frames:
                frames.append(state)
            at.append(frames.index(state))
            lines.append(self._lines(search, place, epoch))
        if self.found:
            cell = search.spans[-1].cell
            end = round(self.across(number, last), 1)
            frames.append([len(search.spans) - 1, table(cell), 0, end, None, None, "", ""])
            at.append(len(frames) - 1)
            loss = in_numbers(found_loss(search.history, search.events))
            lines.append([f"the answer: {_counted(cell.nodes, 'node')}", f"validation loss {loss}", "", ""])
        bars = [
            [[round(bar.x, 1), round(bar.width, 1), [self.order[name] for name, _ in weights]]
             for bar, (_, _, weights) in zip(plan.bars, span.cell.edges, strict=True)]
            for plan, span in zip(self.plans[number], search.spans, strict=True)
        ]  # fmt: skip
        return {
            "label": search.label, "bars": bars, "weights": [json.loads(key) for key in tables], "frames": frames,
            "at": at, "lines": lines, "right": round(self.left(number) + self.column - 4, 1),
        }  # fmt: skip

    def _levels(self, report: StageEpoch) -> list[float | None]:
        levels = (self.level(report.validation_loss), self.level(report.train_loss))
        return [None if level is None else round(level, 1) for level in levels]

    def _lines(self, search: _Search, place: int, epoch: int) -> list[str]:
        """Four lines of words: the phase, the size, and what happens."""
        report = search.history[place]
        cell = search.spans[search.span_of[place]].cell
        phase = "only weights learn" if report.tuning else "weights and α learn"
        first = f"stage {report.stage}, {phase}"
        size = f"{_counted(cell.nodes, 'node')}, {report.parameters:,} parameters"
        if epoch > search.history[-1].epoch:
            return [f"ended after epoch {search.history[-1].epoch}", size, "", ""]
        happens = [f"then {event_in_words(event)}" for event in search.after(report.epoch)]
        return [first, size, *[*happens, "", ""][:2]]

    # --- the picture ---

    def _drawn(self, number: int, search: _Search, data: Mapping[str, Any], still: int) -> str:
        left = self.left(number)
        state = data["frames"][data["at"][still]]
        middle = left + self.column / 2
        parts = [text(middle, _HEADING + 13, search.label, font_weight="bold", font_size=13)]
        for line, words in enumerate(data["lines"][still]):
            y = _HEADING + 29 + 14.5 * line
            bold = {"font_weight": "bold"} if line > 1 else {}
            parts.append(text(middle, y, words, class_="line", font_size=10.4, **bold))
        for place, (span, plan) in enumerate(zip(search.spans, self.plans[number], strict=True)):
            weights = data["weights"][state[1]] if place == state[0] else None
            parts.append(self._span(number, span, plan, weights, place == state[0], bool(state[2])))
        parts.append(self._curves(number, search, state))
        return tag("g", "\n".join(parts), class_="search")

    def _span(
        self, number: int, span: _Span, plan: CellPlan, weights: Any, shown: bool, struck: bool
    ) -> str:
        """One structure of a cell; hidden unless it is the one that shows."""
        needed = span.cell.needed
        parts = [_path(line, WIRE, 1.1) for line in plan.rails]
        parts += [_arrow(arrow, WIRE, 1.1) for arrow in plan.arrows]
        bars = []  # above all lines
        for place, ((source, target, names), bar) in enumerate(zip(span.cell.edges, plan.bars, strict=True)):
            values = [value / 1000 for value in weights[place]] if weights else [weight for _, weight in names]
            pairs = [(name, value) for (name, _), value in zip(names, values, strict=True)]
            faded = {} if target in needed else {"opacity": "0.4"}
            colour, thick = wire_look(pairs, self.styles)
            lines = [_path(bar.entry, colour, thick, "wire"), _arrow(bar.exit, colour, thick, "wire")]
            if bar.feed is not None:
                lines.append(_arrow(bar.feed, WIRE, 1.1))
            parts.append(tag("g", "".join(lines), class_="wires", **faded))
            inside = [tag("rect", x=bar.x - 2, y=bar.y - BAR / 2 - 1, width=bar.width + 4, height=BAR + 2,
                          fill="white")]  # fmt: skip
            born = {name for name, _ in names if (source, target, name) in span.born}
            for (name, weight), (start, wide) in zip(pairs, bar_parts(pairs, bar.width), strict=True):
                inside.append(
                    _part(name, weight, bar.x + start, bar.y, wide, self.styles[name],
                          name in born and len(born) < len(names), (source, target, name) in span.dying, struck)
                )  # fmt: skip
            if len(born) == len(names):
                inside.append(tag("rect", x=bar.x - 1, y=bar.y - BAR / 2 - 1, width=bar.width + 2, height=BAR + 2,
                                  fill="none", stroke=INK, stroke_width="2.2", class_="new"))  # fmt: skip
            bars.append(tag("g", "".join(inside), class_="bar", **faded))
        parts += bars
        for node, (x, y) in plan.nodes.items():
            if node or span.cell.backbone == "highway":
                there = node in needed or node == 0
                bold = "2.6" if node in span.new_nodes else "1.2"
                dashes = {} if there else {"stroke_dasharray": "2 2"}
                parts.append(tag("circle", cx=x, cy=y, r=RADIUS, fill="white", stroke=INK if there else FAINT,
                                 stroke_width=bold, **dashes))  # fmt: skip
                parts.append(text(x, y + 3.9, str(node), font_size=11, fill=INK if there else FAINT))
        parts += [_box(box) for box in plan.boxes]
        move = f"translate({decimal(self.left(number) + self.inset)} {decimal(_HEADING + _STATUS)})"
        hidden = {} if shown else {"style": "display: none"}
        return tag("g", "\n".join(parts), class_="span", transform=move, **hidden)

    def _curves(self, number: int, search: _Search, state: Sequence[Any]) -> str:
        """Losses with the borders of the phases, as they are in the frame that shows first."""
        left, right = self.left(number) + _AXIS, self.left(number) + self.column - 4
        top, bottom = self.curve_top, self.curve_bottom
        half = (self.across(number, 2) - self.across(number, 1)) / 2
        parts = []
        for tuned, group in itertools.groupby(search.history, key=lambda report: report.tuning):
            epochs = [report.epoch for report in group]
            if tuned:
                begin, end = self.across(number, epochs[0]) - half, self.across(number, epochs[-1]) + half
                parts.append(tag("rect", x=begin, y=top, width=end - begin, height=bottom - top, fill=TUNING,
                                 class_="tuning"))  # fmt: skip
        for at, name in _ticks(self.low, self.high, self.logarithmic):
            level = bottom - 2 - (bottom - top - 4) * (at - self.low) / (self.high - self.low)
            parts.append(tag("path", d=f"M{decimal(left)} {decimal(level)}h-4", stroke=INK))
            parts.append(text(left - 6, level + 3.5, name, "end", font_size=10))
        steps: list[tuple[float, float | None]] = []
        for first, last, loss in stage_losses(search.history, search.events):
            begin, end = self.across(number, first) - half, self.across(number, last) + half
            steps += [(begin, self.level(loss)), (end, self.level(loss))]
        parts.append(tag("path", d=_polyline(steps), fill="none", stroke=INK, stroke_width="1.2", class_="stages"))
        curves = (
            ("validation", VALIDATION, "o", DASHES[0], [report.validation_loss for report in search.history]),
            ("training", TRAINING, "s", DASHES[1], [report.train_loss for report in search.history]),
        )
        for _, colour, _, dashes, losses in curves:
            points = [(self.across(number, report.epoch), self.level(value))
                      for report, value in zip(search.history, losses, strict=True)]  # fmt: skip
            parts.append(tag("path", d=_polyline(points), fill="none", stroke=colour, stroke_width=1.7,
                             stroke_dasharray=dashes or "none", stroke_linejoin="round"))  # fmt: skip
        x = state[3]
        parts.append(tag("rect", x=x, y=top - 2, width=max(0.0, right - x), height=bottom - top + 1, fill="white",
                         fill_opacity=0.75, class_="veil"))  # fmt: skip
        parts.append(tag("path", d=f"M{decimal(left)} {decimal(top)}V{decimal(bottom)}H{decimal(right)}", stroke=INK,
                         fill="none"))  # fmt: skip
        taken, raised = -math.inf, False
        for epoch in sorted({event.epoch for event in search.events}):
            border = self.across(number, epoch) + half
            signs = "".join(dict.fromkeys(mark_of(event) for event in search.after(epoch)))
            wide = pixels_wide(signs, 11) / 2 + 1
            raised = border - wide < taken and not raised  # a sign that would touch the one before stands higher
            taken = border + wide
            parts.append(tag("line", x1=border, x2=border, y1=top - 3, y2=bottom, stroke=FAINT, stroke_width="1",
                             stroke_dasharray="3 2", class_="border"))  # fmt: skip
            parts.append(text(border, top - (15 if raised else 5), signs, font_size=11, class_="mark"))
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, stroke=INK, stroke_width="1.4", class_="now"))
        last = max(self.epochs)
        for at in MaxNLocator(6, integer=True).tick_values(1, last):
            if 1 <= at <= last:
                parts.append(text(self.across(number, at), bottom + 13, str(int(at)), font_size=10))
        parts.append(text((left + right) / 2, bottom + 27, "epoch", font_size=11))
        for place, (name, colour, marker, _, _) in enumerate(curves):
            y = state[4 + place]
            hidden = {} if y is not None else {"style": "display: none"}
            spot = f"translate({decimal(float(x))} {decimal(float(y or 0))})"
            shape = marker_data(marker, 7.0)
            parts.append(tag("path", d=shape, fill=colour, stroke="white", transform=spot, class_="point", **hidden))
            begin = left + place * (right - left) * 0.52
            parts.append(tag("path", d=shape, fill=colour,
                             transform=f"translate({decimal(begin + 4)} {decimal(top - 32)})"))  # fmt: skip
            parts.append(text(begin + 12, top - 28, name, "start", font_size=11))
            parts.append(text(begin + 16 + pixels_wide(name, 11), top - 28, state[6 + place], "start", font_size=11,
                              font_weight="bold", class_="value"))  # fmt: skip
        return "\n".join(parts)

    def _legend(self) -> str:
        """What letters, signs and lines mean."""
        letters = [f"{candidate_letter(name)} {candidate_label(name)}" for name in self.order
                   if operation_copy(name)[1] == 1 and candidate_letter(name) != candidate_label(name)]  # fmt: skip
        signs = signs_in_words([event for search in self.searches for event in search.events]).split("   ")
        tuned = any(report.tuning for search in self.searches for report in search.history)
        rows = [
            [*letters, "width: softmax weight", "bold: new"],
            signs,
            [f"{self.loss}, lower is better", "black steps: best of each stage"] + ["grey: only weights learn"] * tuned,
        ]
        top = self.height - _LEGEND + 10
        return "\n".join(
            text(WIDTH / 2, top + 15.5 * number, " · ".join(row), font_size=10.2, class_="legend")
            for number, row in enumerate(row for row in rows if any(row))
        )


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"


def _epochs(searches: Sequence[_Search], most: int) -> list[int]:
    """At most ``most`` epochs: the ends, those before and after changes, and others evenly between them."""
    every = sorted({report.epoch for search in searches for report in search.history})
    wanted = {every[0], every[-1]}
    for search in searches:
        for event in search.events:
            wanted |= {event.epoch, event.epoch + 1} & set(every)
    first = sorted(wanted)
    if len(first) > most:
        return [first[place] for place in pick(len(first), most)]
    others = [epoch for epoch in every if epoch not in wanted]
    return sorted([*first, *(others[place] for place in pick(len(others), most - len(first)))])


def _limits(searches: Sequence[_Search]) -> tuple[float, float, bool]:
    """The least and the greatest loss of the axes, as exponents of ten where they are logarithmic."""
    values = np.array([loss for search in searches for report in search.history
                       for loss in (report.validation_loss, report.train_loss)], dtype=float)  # fmt: skip
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0, False
    logarithmic = bool(finite.min() > 0 and finite.max() > 10 * finite.min())
    scaled = np.log10(finite) if logarithmic else finite
    low, high = float(scaled.min()), float(scaled.max())
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room, logarithmic


def _ticks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    if logarithmic:
        tens = [(float(power), f"{10.0**power:g}") for power in range(math.ceil(low), math.floor(high) + 1)]
        if len(tens) > 1:
            return tens
        steps = [scale * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for scale in (1, 2, 5)]
        return [(math.log10(at), f"{at:g}") for at in steps if low <= math.log10(at) <= high]
    even = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [(float(at), f"{at:g}") for at in np.round(even, 10) if low <= at <= high]


# --- pieces of a cell -------------------------------------------------------------------------------------------------


def _steps(line: Line) -> str:
    return "".join(letter + " ".join(decimal(float(number)) for number in numbers) for letter, numbers in line.steps)


def _path(line: Line, colour: str, width: float, name: str = "") -> str:
    look = {"class_": name} if name else {}
    return tag("path", d=_steps(line), fill="none", stroke=colour, stroke_width=f"{width:.2f}", **look)


def _arrow(arrow: Arrow, colour: str, width: float, name: str = "") -> str:
    corners = "L".join(f"{decimal(float(x))} {decimal(float(y))}" for x, y in arrow.head)
    return _path(arrow.line, colour, width, name) + tag("path", d=f"M{corners}Z", fill=colour)


def _part(
    name: str, weight: float, x: float, y: float, wide: float, style: OperationStyle, born: bool, dying: bool,
    struck: bool,
) -> str:  # fmt: skip
    """A candidate's part of a bar."""
    fill, edge = part_colours(name, style)
    inside = [
        tag("title", html.escape(f"{candidate_label(name)}, weight {weight:.3f}"), class_="words"),
        tag("rect", x=x, y=y - BAR / 2, width=wide, height=BAR, fill="#ffffff" if dying and struck else to_hex(fill),
            stroke=INK if born else edge, stroke_width="1.8" if born else "0.9", class_="box"),
        text(x + wide / 2, y + 3.4, fitting_name(name, wide), font_size=NAME, class_="name"),
    ]  # fmt: skip
    if dying:
        hidden = {} if struck else {"style": "display: none"}
        inside.append(tag("line", x1=x + 1, x2=x + max(1.0, wide - 1), y1=y, y2=y, stroke=INK, stroke_width="1.3",
                          class_="strike", **hidden))  # fmt: skip
    return tag("g", "".join(inside), class_="part")


def _box(box: Box) -> str:
    pieces = []
    for number, (base, below) in enumerate(box.words):
        raise_again = {"dy": "-3"} if number and box.words[number - 1][1] else {}
        pieces.append(tag("tspan", html.escape(base), **raise_again))
        if below:
            pieces.append(tag("tspan", html.escape(below), dy="3", font_size="8.6"))
    shape = tag("rect", x=box.x - box.width / 2, y=box.y - 10, width=box.width, height=20, rx=5, fill="#ececec",
                stroke=INK, stroke_width="1.1")  # fmt: skip
    return shape + tag("text", "".join(pieces), x=box.x, y=box.y + 3.5, text_anchor="middle")


def _polyline(points: Sequence[tuple[float, float | None]]) -> str:
    """A line through the points there are, broken where there is none."""
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{decimal(x)} {decimal(y)}")
        pen = "L"
    return "".join(parts)
