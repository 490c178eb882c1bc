"""Tasks that arrive one after the other, as a film that the page draws itself (Firefly §2.4, Chapter 7).

At the left the master network as :mod:`nasbook.plots.master_network` draws it; at the right the accuracies of all tasks
so far, row by row, and the parameters in the memory. A frame differs from the next in what each neuron is to the task.
So the picture has a path for each look, and the script writes the paths anew from a bit for each task and neuron.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.colors import to_hex

from nasbook.errors import InvalidInput
from nasbook.plots.animation import Film
from nasbook.plots.continual_results import Matrix, percent_matrix, plain_size, shade, shade_limits
from nasbook.plots.master_network import (
    ABSENT,
    BAND,
    COPIED,
    NEW,
    PALE,
    REUSED,
    SMALL,
    UNUSED,
    MasterTable,
    copy_lines,
    in_copies,
    labelled_tasks,
    line_width,
    master_table,
    plan_strata,
    task_colour,
)
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, tint
from nasbook.plots.svg import WIDTH, decimal, picture, tag, text

_TOP = 74.0
"""Pixels above the strata: two lines of words, and the layers' numbers."""
_LEFT, _SPLIT, _RIGHT = 46.0, 418.0, WIDTH - 8.0
"""Where the strata begin and end, and where the right column ends, in pixels."""
_COLUMN = 452.0
"""Where the matrices begin, in pixels."""
_CAPTION, _BETWEEN, _SIZES = 20.0, 30.0, 62.0
"""Pixels for a panel's title, from a panel to the next, and for the parameters' curve."""
_COUNTS, _LEGEND = 34.0, 26.0
"""Pixels below the strata, and for the legend."""
_LEAST_HIGH = 260.0
"""Of the strata, in pixels."""
_NUMBERS_FROM = 20.0
"""From so many pixels an entry on, a matrix has numbers."""
_BIGGEST = 15.0
"""The most pixels from one neuron to the next."""
_SECONDS = 45.0
"""The whole film takes so long at most."""
_PAINT = """\
    const all = function (from, name) { return Array.from(from.querySelectorAll("." + name)); };
    const headings = all(player, "heading"), details = all(player, "detail"), bands = all(player, "band");
    const numbers = all(player, "task"), used = all(player, "used"), made = all(player, "made");
    const lit = all(player, "lit"), pale = all(player, "pale"), edges = all(player, "edges")[0];
    const whites = all(player, "whites")[0], lines = all(player, "lines")[0];
    const matrices = all(player, "matrix").map(function (matrix) {
      return { rows: all(matrix, "row"), frame: all(matrix, "frame")[0], mean: all(matrix, "mean")[0] };
    });
    const veils = all(player, "veil"), points = all(player, "point"), sizes = all(player, "size");
    function show(element, yes) { element.style.display = yes ? "" : "none"; }
    function tenth(value) { return Math.round(10 * value) / 10; }
    const places = film.made.map(function (runs, width) {
      const spots = [];
      runs.forEach(function (run) {
        for (let number = 0; number < run[1]; number++) {
          spots.push([film.lefts[width] + (number % film.abreast + 0.5) * film.pitch,
                      film.tops[run[0]] + (Math.floor(number / film.abreast) + 0.5) * film.pitch, run[0]]);
        }
      });
      return spots;
    });
    const copies = film.made.map(function () { return {}; });
    film.copies.forEach(function (copy) { copies[copy[0]][copy[1]] = copy[2]; });
    function square(x, y, side) { return "M" + tenth(x - side / 2) + " " + tenth(y) + "h" + tenth(side); }
    function outline(x, y, side) {
      return "M" + tenth(x - side / 2) + " " + tenth(y - side / 2) + "h" + side + "v" + side + "h" + -side + "z";
    }
    function paint(frame) {
      const task = Math.ceil(frame / 2), learned = frame % 2 === 0, side = film.side, small = film.small;
      headings[0].textContent = film.headings[frame];
      details[0].textContent = film.details[frame];
      const bright = lit.map(function () { return ""; }), faint = pale.map(function () { return ""; });
      let frames = "", middles = "", curves = "";
      places.forEach(function (spots, width) {
        const bits = film.used[width][task], replaced = {};
        let count = 0, there = 0;
        if (!learned) spots.forEach(function (spot, number) {
          if (spot[2] === task && number in copies[width]) replaced[copies[width][number]] = true;
        });
        spots.forEach(function (spot, number) {
          const own = spot[2] === task, colour = spot[2] % lit.length;
          if (spot[2] > task || (own && !learned)) return;
          there += 1;
          const uses = own || replaced[number] || (parseInt(bits[number >> 2], 16) >> (number & 3)) & 1;
          if (!uses) { faint[colour] += square(spot[0], spot[1], small); return; }
          count += 1;
          bright[colour] += square(spot[0], spot[1], side);
          if (!own) return;
          frames += outline(spot[0], spot[1], side);
          if (!(number in copies[width])) return;
          const source = spots[copies[width][number]];
          middles += square(spot[0], spot[1], small);
          const aside = film.aside * Math.min(1, (spot[1] - source[1]) / 60);
          curves += "M" + tenth(source[0]) + " " + tenth(source[1]) + "Q" +
                    tenth(Math.min(source[0], spot[0]) - aside) + " " + tenth((source[1] + spot[1]) / 2) + " " +
                    tenth(spot[0]) + " " + tenth(spot[1]);
        });
        used[width].textContent = count;
        made[width].textContent = there;
      });
      lit.forEach(function (path, colour) { path.setAttribute("d", bright[colour]); });
      pale.forEach(function (path, colour) { path.setAttribute("d", faint[colour]); });
      edges.setAttribute("d", frames);
      whites.setAttribute("d", middles);
      lines.setAttribute("d", curves);
      bands[0].setAttribute("y", film.tops[task] - 2);
      bands[0].setAttribute("height", film.heights[task] + 4);
      numbers.forEach(function (number, place) {
        show(number, film.labelled[place] <= task);
        number.setAttribute("font-weight", film.labelled[place] === task ? "bold" : "normal");
      });
      const rows = learned ? task + 1 : task;
      const spoken = [film.headings[frame], film.details[frame]];
      matrices.forEach(function (matrix, which) {
        matrix.rows.forEach(function (row, number) { show(row, number < rows); });
        matrix.frame.setAttribute("y", film.rows[which][rows - 1]);
        matrix.frame.setAttribute("width", film.cell * rows);
        matrix.mean.textContent = film.means[which][rows - 1];
        spoken.push(film.labels[which] + ": " + film.means[which][rows - 1]);
      });
      const end = film.x[rows - 1];
      veils.forEach(function (veil) { veil.setAttribute("x", end); veil.setAttribute("width", film.right - end); });
      points.forEach(function (point) {
        point.setAttribute("transform", "translate(" + end + " " + film.y[rows - 1] + ")");
      });
      sizes.forEach(function (size) { size.textContent = film.sizes[rows - 1]; });
      slider.setAttribute("aria-valuetext", spoken.join(". "));
    }"""


def animate_tasks(
    master: Any, accuracies: Matrix | None = None, *, label: str = "Firefly", beside: Mapping[str, Matrix] | None = None
) -> Film:
    """Tasks arrive one after the other: what each takes from the master network and adds to it, and what is kept.

    Each task but the first has two frames. First its mask: the neurons of earlier tasks that it keeps are large, the
    others small and pale. Then what it has grown: copies and new neurons in a stratum of its own, with a dark frame;
    a line leads from each copy, which has a white middle, to its original. With it comes a row of the matrix of
    accuracies: how right all tasks so far are now. Show it with :func:`nasbook.plots.show_animation`; the last frame
    shows at first.

    Args:
        master: a master network, or its description (:meth:`nasbook.continual.MasterNetwork.describe`).
        accuracies: row t has the test accuracies of tasks 0..t after task t, as shares. None where the description has
            them as ``accuracies``.
        label: what to write above them.
        beside: the accuracies of one more learner of the same tasks, by what to write above them.

    Raises:
        InvalidInput: no task is recorded, the accuracies or parameters are missing or those of other tasks, or there is
            more than one other learner.
    """
    table = master_table(master)
    given = master.get("accuracies") if accuracies is None and isinstance(master, Mapping) else accuracies
    if given is None:
        raise InvalidInput("accuracies: expected a row for each task; a master network has none, its run has.")
    if not table.parameters:
        raise InvalidInput("master: expected the parameters after each task, as describe() has them.")
    beside = beside or {}
    if len(beside) > 1 or label in beside:
        raise InvalidInput(f"beside: expected one learner of another label than {label!r}, got {list(beside)}.")
    matrices = {
        name: percent_matrix(f"accuracies of {name}", matrix, table.tasks)
        for name, matrix in {label: given, **beside}.items()
    }
    return _Drawing(table, matrices).film()


def tasks_in_words(
    master: Any, accuracies: Matrix | None = None, *, label: str = "Firefly", beside: Mapping[str, Matrix] | None = None
) -> str:
    """What :func:`animate_tasks` shows, in a few sentences: an alt text. Takes the same arguments."""
    film = animate_tasks(master, accuracies, label=label, beside=beside)
    data = json.loads(film.data)
    table = master_table(master)
    made = [sum(int((makers == task).sum()) for makers in table.made_by) for task in range(table.tasks)]
    ends = "; ".join(f"{name}: {means[-1]}" for name, means in zip(data["labels"], data["means"], strict=True))
    return (
        f"{table.tasks} tasks arrive at a network of {len(table.widths)} layers. Task 1 makes {made[0]} neurons, the "
        f"others make {', '.join(map(str, made[1:])) or 'none'}; at the end there are {table.neurons} with "
        f"{data['sizes'][-1]} parameters. Each task reuses neurons of those before, copies some and adds new ones. "
        f"A matrix of accuracies gets a row with each task; at the end, {ends}."
    )


class _Drawing:
    """Places of everything in the film, and its pieces."""

    def __init__(self, table: MasterTable, matrices: Mapping[str, list[list[float]]]) -> None:
        self.table, self.matrices = table, matrices
        tasks = table.tasks
        self.side = min(150.0 if len(matrices) == 1 else 128.0, 30.0 * tasks)
        self.cell = self.side / tasks
        right = len(matrices) * (_CAPTION + self.side + _BETWEEN) + _CAPTION + _SIZES + 14
        self.column_top = _TOP - 34
        high = max(_LEAST_HIGH, right - 34 - _COUNTS)
        self.strata = plan_strata(table, _SPLIT - _LEFT, high, _BIGGEST)
        self.below = _TOP + self.strata.height
        self.height = round(max(self.below + _COUNTS + _LEGEND, self.column_top + right + 4))
        values = [value for rows in matrices.values() for row in rows for value in row]
        self.low, self.high = shade_limits(values)

    def film(self) -> Film:
        table, strata = self.table, self.strata
        headings, details = self._words()
        still = len(headings) - 1
        matrices, rows = self._matrices()
        sizes, moves = self._sizes()
        layers = [text(_LEFT + left + strata.wide / 2, _TOP - 10, str(number + 1), font_size=10.5)
                  for number, left in enumerate(strata.lefts)]  # fmt: skip
        parts = [
            text(WIDTH / 2, 16.0, headings[still], class_="heading", font_weight="bold"),
            text(_LEFT - 30, 36.0, details[still], "start", class_="detail", font_size=11.5),
            text(_LEFT - 8, _TOP - 10, "layer", "end", font_size=10.5),
            *layers, self._network(), self._counts(), *matrices, sizes, self._legend(),
        ]  # fmt: skip
        data = {
            "headings": headings,
            "details": details,
            "made": [[[int(task), int(count)] for task, count in zip(*np.unique(one, return_counts=True), strict=True)]
                     for one in table.made_by],
            "copies": [[width, int(number), int(sources[number])] for width, sources in enumerate(table.copy_of)
                       for number in np.flatnonzero(sources >= 0)],
            "used": [[_hexadecimal(row) for row in used] for used in table.used],
            "lefts": [round(_LEFT + left, 2) for left in strata.lefts],
            "tops": [round(_TOP + top, 2) for top in strata.tops],
            "heights": [round(height, 2) for height in strata.heights],
            "pitch": round(strata.pitch, 3), "abreast": round(strata.wide / strata.pitch),
            "side": round(strata.side, 1), "small": round(SMALL * strata.side, 1), "aside": round(strata.bend, 2),
            "labelled": labelled_tasks(strata, 9.0),
            "labels": list(self.matrices),
            "means": [[f"{np.mean(row):.1f} %" for row in one] for one in self.matrices.values()],
            "rows": rows, "cell": round(self.cell, 3), **moves,
        }  # fmt: skip
        written = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
        interval = round(max(300.0, min(1500.0, _SECONDS * 1000 / len(headings))))
        return Film(picture(parts, self.height), len(headings), written, _PAINT, interval, still)

    def _words(self) -> tuple[list[str], list[str]]:
        """Two lines for each frame."""
        table, headings, details = self.table, [], []
        for task in range(table.tasks):
            called = table.called(task).replace(f"task {task + 1}", f"task {task + 1} of {table.tasks}")
            reused, copied, new, _ = table.counts(task)
            if task:
                masked = np.concatenate(table.masked(task))
                kept, there = int((masked == REUSED).sum()), int((masked != ABSENT).sum())
                headings.append(f"{called} arrives")
                details.append(f"its mask keeps {kept} of {there} neurons")
            headings.append(f"{called} is learned")
            grown = f"{reused} neurons reused, {in_copies(copied)}, {new} new"
            details.append(grown if task else f"{new} neurons")
        return headings, details

    def _network(self) -> str:
        """Strata, marks and lines as they are in the last frame."""
        table, strata, last = self.table, self.strata, self.table.tasks - 1
        origin = np.array([_LEFT, _TOP])
        states = table.states(last)
        spots = np.concatenate(strata.spots) + origin
        colours = np.concatenate(table.made_by) % len(LINE_COLOURS)
        found = np.concatenate(states)
        side, small = round(strata.side, 1), round(SMALL * strata.side, 1)
        own = (found == NEW) | (found == COPIED)
        parts = [
            tag("rect", x=6.0, width=_SPLIT - 6, y=_TOP + strata.tops[last] - 2, height=strata.heights[last] + 4,
                fill=BAND, class_="band")
        ]  # fmt: skip
        for task in labelled_tasks(strata, 9.0):
            words = f"task {task + 1}" if task == 0 else str(task + 1)
            y = _TOP + strata.tops[task] + strata.heights[task] / 2 + 3.5
            parts.append(text(_LEFT - 8, y, words, "end", font_size=10.5, class_="task",
                              font_weight="bold" if task == last else "normal"))  # fmt: skip
        for number in range(min(table.tasks, len(LINE_COLOURS))):
            colour, here = task_colour(number), colours == number
            parts.append(tag("path", d=_squares(spots[here & (found == UNUSED)], small), class_="pale", fill="none",
                             stroke=to_hex(tint(colour, PALE)), stroke_width=small))  # fmt: skip
            parts.append(tag("path", d=_squares(spots[here & (found > UNUSED)], side), class_="lit", fill="none",
                             stroke=colour, stroke_width=side))  # fmt: skip
        edge = round(min(1.4, 0.16 * side), 2)
        outlines = "".join(f"M{_at(x - side / 2, y - side / 2)}h{side:g}v{side:g}h{-side:g}z" for x, y in spots[own])
        curves = [line + origin for width in range(len(states)) for line in copy_lines(table, strata, states, width)]
        bends = "".join(f"M{_at(*start)}Q{_at(*control)} {_at(*end)}" for start, control, end in curves)
        parts += [
            tag("path", d=outlines, fill="none", stroke=INK, stroke_width=f"{edge}", class_="edges"),
            tag("path", d=bends, fill="none", stroke=INK, stroke_width=1.2 * line_width(strata), class_="lines"),
            tag("path", d=_squares(spots[found == COPIED], small), fill="none", stroke="white", stroke_width=small,
                class_="whites"),
        ]  # fmt: skip
        return "\n".join(parts)

    def _counts(self) -> str:
        """Below each layer, how many of its neurons the task uses and how many there are."""
        y = self.below + 15
        parts = [text(_LEFT - 8, y, "used", "end", font_size=10.5), text(_LEFT - 8, y + 13, "of", "end", font_size=9.5)]
        for left, states in zip(self.strata.lefts, self.table.states(self.table.tasks - 1), strict=True):
            x = _LEFT + left + self.strata.wide / 2
            used = str(int((states > UNUSED).sum()))
            parts.append(text(x, y, used, font_size=10.5, font_weight="bold", class_="used"))
            parts.append(text(x, y + 13, str(int((states != ABSENT).sum())), font_size=9.5, class_="made"))
        return "\n".join(parts)

    def _matrices(self) -> tuple[list[str], list[list[float]]]:
        """The matrices with all rows, and where each row begins."""
        drawn, tops, top = [], [], self.column_top
        for name, rows in self.matrices.items():
            first = top + _CAPTION
            tops.append([round(first + self.cell * number, 2) for number in range(len(rows))])
            end = _COLUMN + self.side
            every = math.ceil(14 / self.cell)
            inside = [
                text(_COLUMN, top + 11, f"{name}: accuracy, %", "start", font_size=11.5, font_weight="bold"),
                text(_COLUMN - 5, first - 3, "after", "end", font_size=9),
                text(_COLUMN - 5, first + self.side + 11, "task", "end", font_size=9),
                text(_RIGHT, first + 12, "on average", "end", font_size=10),
                text(_RIGHT, first + 27, f"{np.mean(rows[-1]):.1f} %", "end", font_size=13, font_weight="bold",
                     class_="mean"),
            ]  # fmt: skip
            for number in range(0, len(rows), every):
                middle = self.cell * (number + 0.5)
                inside.append(text(_COLUMN - 5, first + middle + 3.5, str(number + 1), "end", font_size=9.5))
                inside.append(text(_COLUMN + middle, first + self.side + 11, str(number + 1), font_size=9.5))
            inside += [self._row(number, row, first) for number, row in enumerate(rows)]
            inside.append(tag("rect", x=_COLUMN, y=tops[-1][-1], width=end - _COLUMN, height=self.cell, fill="none",
                              stroke=INK, stroke_width=1.4, class_="frame"))  # fmt: skip
            drawn.append(tag("g", "".join(inside), class_="matrix"))
            top += _CAPTION + self.side + _BETWEEN
        return drawn, tops

    def _row(self, number: int, row: Sequence[float], first: float) -> str:
        parts, gap, y = [], 1.0 if self.cell > 6 else 0.0, first + self.cell * number
        for task, value in enumerate(row):
            x = _COLUMN + self.cell * task
            parts.append(tag("rect", x=x, y=y, width=self.cell - gap, height=self.cell - gap,
                             fill=shade(value, self.low, self.high)))  # fmt: skip
            if self.cell >= _NUMBERS_FROM:
                parts.append(text(x + self.cell / 2, y + self.cell / 2 + 3.5, f"{value:.0f}", font_size=10))
        return tag("g", "".join(parts), class_="row")

    def _sizes(self) -> tuple[str, dict[str, Any]]:
        """The parameters after each task as a line, and where its point stands in every frame."""
        top = self.column_top + len(self.matrices) * (_CAPTION + self.side + _BETWEEN)
        low = top + _CAPTION + _SIZES
        numbers = np.array(self.table.parameters, dtype=float)
        x = _COLUMN + (np.arange(len(numbers)) + 0.5) * (_RIGHT - _COLUMN) / len(numbers)
        y = low - (_SIZES - 6) * numbers / max(1.0, float(numbers.max()))
        line = "M" + "L".join(_at(*at) for at in zip(x.tolist(), y.tolist(), strict=True))
        parts = [
            text(_COLUMN, top + 11, "parameters", "start", font_size=11.5, font_weight="bold"),
            text(_RIGHT, top + 11, plain_size(numbers[-1]), "end", font_size=13, font_weight="bold", class_="size"),
            text(_COLUMN - 5, low + 3, "0", "end", font_size=9.5),
            tag("path", d=line, fill="none", stroke=INK, stroke_width=1.6),
            tag("rect", x=float(x[-1]), width=float(_RIGHT - x[-1]), y=top + _CAPTION - 2, height=_SIZES, fill="white",
                fill_opacity=0.8, class_="veil"),
            tag("path", d=f"M{_at(_COLUMN, top + _CAPTION)}V{decimal(low)}H{decimal(_RIGHT)}", stroke=FAINT,
                fill="none"),
            tag("path", d="M-4-4h8v8h-8z", fill=INK, transform=f"translate({_at(float(x[-1]), float(y[-1]))})",
                class_="point"),
        ]  # fmt: skip
        for number in sorted({0, len(numbers) - 1}):
            parts.append(text(float(x[number]), low + 12, str(number + 1), font_size=9.5))
        parts.append(text(_COLUMN - 5, low + 12, "task", "end", font_size=9))
        return "\n".join(parts), {
            "x": [round(value, 1) for value in x.tolist()],
            "y": [round(value, 1) for value in y.tolist()],
            "right": _RIGHT,
            "sizes": [plain_size(value) for value in numbers.tolist()],
        }

    def _legend(self) -> str:
        colour, y = LINE_COLOURS[0], self.height - 12.0
        full = tag("rect", x=0, y=-5, width=10, height=10, fill=colour)
        framed = tag("rect", x=0, y=-5, width=10, height=10, fill=colour, stroke=INK, stroke_width=1.4)
        middle = tag("rect", x=2.5, y=-2.5, width=5, height=5, fill="white")
        pale = tag("rect", x=3, y=-2.5, width=5, height=5, fill=to_hex(tint(colour, PALE)))
        x, parts = _LEFT - 30, []
        entries = [(full, "reused", 66.0), (framed, "new", 52.0), (pale, "not used", 76.0),
                   (framed + middle, "copy, with a line to its original", 0.0)]  # fmt: skip
        for shape, words, wide in entries:
            parts.append(tag("g", shape, transform=f"translate({_at(x, y)})"))
            parts.append(text(x + 15, y + 4, words, "start", font_size=10.5))
            x += wide
        return "\n".join(parts)


def _at(x: float, y: float) -> str:
    return f"{decimal(float(x))} {decimal(float(y))}"


def _squares(spots: np.ndarray, side: float) -> str:
    """Squares as the strokes of short lines, which are as thick as they are long."""
    return "".join(f"M{_at(x - side / 2, y)}h{side:g}" for x, y in spots)


def _hexadecimal(bits: Bool[np.ndarray, " neurons"]) -> str:
    """Four neurons a digit, the first one its lowest bit."""
    padded: Int[np.ndarray, "digits 4"] = np.pad(bits, (0, -len(bits) % 4)).reshape(-1, 4).astype(int)
    return "".join(f"{digit:x}" for digit in padded @ [1, 2, 4, 8])
