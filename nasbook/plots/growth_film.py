"""A network that grows, as a film that the page draws itself: a bar for every width, beside the loss.

From epoch to epoch only the lengths of the bars and the place of a cursor change. So the film is one picture in SVG,
a few numbers an epoch and a short script: a hundred epochs of twenty widths take fewer bytes than one photograph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from nasbook.errors import require_positive
from nasbook.plots.animation import Film, pick
from nasbook.plots.cells import text_size
from nasbook.plots.growth import (
    ACCURACY,
    GROWING,
    LOSS,
    SIZE,
    GrowthEpoch,
    GrowthTable,
    Kind,
    elide,
    growth_table,
    is_logarithmic,
    reader_labels,
)
from nasbook.plots.palette import FAINT, INK
from nasbook.plots.svg import DASHES, PIXELS, WIDTH, decimal, marker_data, picture, tag, text

_TOP, _LEGEND, _MARGIN = 48.0, 26.0, 8.0
"""Heights in pixels: above the rows, of the legend, and at the borders."""
_MIDDLE = 348.0
"""Where the bars end and the curves' tick labels begin, in pixels."""
_LEFT, _RIGHT = 402.0, WIDTH - 14.0
"""Where the curves begin and end, in pixels."""
_ROOM, _COUNT = 104.0, 66.0
"""The most pixels for the names of widths, and those for a count and what was added to it."""
_LEAST, _ROW = 252.0, 15.0
"""Pixels for all rows together at least, and for one row."""
_CELL = 5.0
"""From so many pixels a neuron on, the neurons of a bar are told apart."""
_SECONDS = 20.0
"""The whole film takes so long at most."""
_PAINT = """\
    const all = function (from, name) { return Array.from(from.querySelectorAll("." + name)); };
    const heading = all(player, "heading")[0], veils = all(player, "veil"), cursors = all(player, "now");
    const points = all(player, "point"), values = all(player, "value");
    const rows = all(player, "row").map(function (row) {
      return { row: row, parts: all(row, "part"), textures: all(row, "texture"),
               count: all(row, "count")[0], frame: all(row, "frame")[0] };
    });
    function set(element, values) {
      Object.keys(values).forEach(function (name) { element.setAttribute(name, values[name]); });
    }
    function show(element, yes) { element.style.display = yes ? "" : "none"; }
    function sum(counts) { return counts.reduce(function (a, b) { return a + b; }, 0); }
    function paint(frame) {
      heading.textContent = film.headings[frame];
      slider.setAttribute("aria-valuetext", film.headings[frame]);
      rows.forEach(function (row, number) {
        const now = film.counts[number][frame], before = film.counts[number][Math.max(frame - 1, 0)];
        show(row.row, now);
        if (!now) return;
        let x = film.left;
        now.forEach(function (count, kind) {
          const width = count * film.unit, texture = row.textures[kind], inset = film.insets[kind];
          set(row.parts[kind], { x: x, width: width });
          set(texture, { x1: x + inset, x2: x + Math.max(inset, width - inset) + 0.1 });
          show(texture, width > 1.9 * inset);
          x += width;
        });
        const added = sum(now) - (before ? sum(before) : 0);
        row.count.textContent = sum(now) + (added > 0 ? " +" + added : "");
        set(row.count, { x: x + 5, "font-weight": added ? "bold" : "normal" });
        set(row.frame, { width: x - film.left });
        show(row.frame, added && x > film.left);
      });
      const x = film.x[frame];
      cursors.forEach(function (line) { set(line, { x1: x, x2: x }); });
      veils.forEach(function (veil) { set(veil, { x: x, width: film.right - x }); });
      points.forEach(function (point, curve) {
        const y = film.y[curve][frame];
        show(point, y !== null);
        if (y !== null) point.setAttribute("transform", "translate(" + x + " " + y + ")");
        values[curve].textContent = film.values[curve][frame];
      });
    }"""


@dataclass(frozen=True)
class _Curve:
    """One panel beside the rows."""

    name: str
    """Stands above it."""
    values: Float[np.ndarray, " epochs"]
    """What it shows; nan where there is nothing."""
    written: list[str]
    """The values for readers."""
    colour: str
    marker: str
    dashes: str
    logarithmic: bool = False
    from_zero: bool = False
    """Whether the axis begins at zero."""
    stepped: bool = False
    """Whether a value holds from its epoch to the next."""


def animate_growth(
    history: Sequence[GrowthEpoch],
    *,
    origins: Sequence[Mapping[str, Sequence[int]]] | None = None,
    labels: Mapping[str, str] | None = None,
    frames: int = 100,
) -> Film:
    """A growing network over its epochs: a bar for every width, beside the loss, the accuracy and the size.

    Bars stand in the order of the data, the input above. All have one scale. Where a bar is longer than in the frame
    before, it has a frame, and what was added stands beside it. Epochs in which the network grows have a grey
    background in the curves. What is still to come is pale. Show it with :func:`nasbook.plots.show_animation`; the
    last epoch shows at first.

    Args:
        history: the reports of a growing network, such as Firefly's.
        origins: for every report and width, how many neurons are initial, from splits, and new. Without it, the
            neurons of the first report are initial and all others are grown.
        labels: what to write for a width instead of its name.
        frames: the most epochs to show; of a longer history those where the network grows come first. The curves
            have all epochs. A hundred of twenty widths take less than 60 kB.

    Raises:
        InvalidInput: the history is empty, its widths change their order, or the origins don't add up to it.
    """
    require_positive(frames=frames)
    table = growth_table(history, origins)
    places = _places(table, frames)
    last = len(places) - 1
    high = max(_LEAST, _ROW * len(table.widths))
    rows, scale = _rows(table, reader_labels(table.widths, labels), places[-1], high)
    curves, moves = _curves(table, places, high)
    headings = [_heading(history[place], history[-1].epoch) for place in places]
    total = round(_TOP + high + 34 + _LEGEND)
    drawing = picture([
        text(WIDTH / 2, 16.0, headings[-1], class_="heading", font_weight="bold"),
        rows, curves, _legend(table, _TOP + high + 34),
    ], total)  # fmt: skip
    counts = [
        [table.counts[place, row].tolist() if table.present[place, row] else None for place in places]
        for row in range(len(table.widths))
    ]
    data = {"headings": headings, "counts": counts, **scale, **moves}
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return Film(drawing, last + 1, written, _PAINT, round(min(400, _SECONDS * 1000 / len(places))), still=last)


def _places(table: GrowthTable, most: int) -> list[int]:
    """At most ``most`` places of the history: the ends, those where a width changed, and others evenly between them."""
    changed = (np.diff(table.neurons, axis=0) != 0) | np.diff(table.present, axis=0)  # (epochs - 1, widths)
    first = sorted({0, *(np.flatnonzero(changed.any(axis=1)) + 1).tolist(), len(table.epochs) - 1})
    if len(first) > most:
        return [first[place] for place in pick(len(first), most)]
    others = [place for place in range(len(table.epochs)) if place not in first]
    return sorted([*first, *(others[place] for place in pick(len(others), most - len(first)))])


def _heading(report: GrowthEpoch, last: int) -> str:
    return f"epoch {report.epoch} of {last}, phase {report.phase}" + (": the network grows" if report.growing else "")


def _period(unit: float) -> float:
    """Pixels from one stripe or dot of a texture to the next: a neuron, where it is long enough."""
    return unit if unit >= _CELL else 6.0


def _texture(kind: Kind, unit: float, high: float) -> tuple[float, dict[str, Any]]:
    """A thick dashed line that is a texture: where it begins in its bar, and its looks.

    An SVG pattern would do the same and needs ``url(…)``, which a page's rules may forbid.
    """
    period = _period(unit)
    if kind.hatch == "|":
        return 0.0, {"stroke": kind.colour, "stroke_width": high, "stroke_dasharray": f"{period / 2:.2f}"}
    if kind.hatch == ".":
        looks: dict[str, Any] = {"stroke_width": max(1.5, min(period - 2, high - 4)), "stroke_linecap": "round"}
        return period / 2, {"stroke": kind.colour, **looks, "stroke_dasharray": f"0 {period:.2f}"}
    gaps = f"0 {period - 1:.2f} 1 0" if unit >= _CELL else "0 9"
    return 0.0, {"stroke": "white", "stroke_width": high if unit >= _CELL else 0.0, "stroke_dasharray": gaps}


def _rows(
    table: GrowthTable, labels: Sequence[str], place: int, high: float
) -> tuple[str, dict[str, float | list[float]]]:
    """The bars as they are at one place of the history, and what the script needs to move them."""
    names = [elide(label, _ROOM / PIXELS, 8) for label in labels]
    left = _MARGIN + max(40.0, max(text_size(name, 8)[0] for name in names) * PIXELS) + 8
    unit = min(22.0, (_MIDDLE - _COUNT - left) / max(1, int(table.neurons.max())))
    pitch = min(40.0, high / len(names))
    thick = round(min(20.0, 0.72 * pitch), 1)
    first = _TOP + (high - pitch * len(names)) / 2
    bottom = first + pitch * len(names)
    textures = [_texture(kind, unit, thick) for kind in table.kinds]
    parts = [
        tag("path", d=f"M{decimal(left)} {decimal(first - 4)}V{decimal(bottom + 5)}", stroke=INK),
        tag("path", d=f"M{decimal(left)} {decimal(bottom + 10)}l-3.5-7h7Z", fill=INK),
        text(left, first - 9, "input", font_size=10, font_style="italic"),
        text(left, bottom + 21, "output", font_size=10, font_style="italic"),
    ]
    for row, name in enumerate(names):
        y = first + pitch * (row + 0.5)
        inside, x = [text(left - 8, y + 4, name, "end", font_size=10.7)], left
        for kind, (inset, looks), count in zip(table.kinds, textures, table.counts[place, row].tolist(), strict=True):
            width, fill = count * unit, kind.fill if isinstance(kind.fill, str) else to_hex(kind.fill)
            inside.append(tag("rect", x=x, y=y - thick / 2, width=width, height=thick, fill=fill, class_="part"))
            inside.append(
                tag("line", x1=x + inset, x2=x + max(inset, width - inset) + 0.1, y1=y, y2=y, class_="texture",
                    **looks, **({} if width > 1.9 * inset else {"style": "display: none"}))
            )  # fmt: skip
            x += width
        inside.append(
            tag("rect", x=left, y=y - thick / 2, width=x - left, height=thick, fill="none", stroke=INK,
                stroke_width=1.6, class_="frame", style="display: none")
        )  # fmt: skip
        inside.append(text(x + 5, y + 4, str(table.neurons[place, row]), "start", font_size=10.7, class_="count"))
        there = {} if table.present[place, row] else {"style": "display: none"}
        parts.append(tag("g", "".join(inside), class_="row", **there))
    return "\n".join(parts), {"left": left, "unit": round(unit, 4), "insets": [round(at, 3) for at, _ in textures]}


def _curves(table: GrowthTable, places: Sequence[int], high: float) -> tuple[str, dict[str, object]]:
    """The panels beside the bars as they are in the last frame, and where their marks stand in every frame."""
    losses = [f"{value:.3g}" if np.isfinite(value) else "" for value in table.loss]
    curves = [_Curve("train loss", table.loss, losses, LOSS, "o", DASHES[0], is_logarithmic(table.loss))]
    if np.isfinite(table.accuracy).any():
        shares = [f"{value:.1f} %" if np.isfinite(value) else "" for value in table.accuracy]
        curves.append(_Curve("validation accuracy", table.accuracy, shares, ACCURACY, "s", DASHES[1]))
    sizes = [f"{int(value):,}" for value in table.parameters]
    curves.append(
        _Curve("parameters", table.parameters.astype(float), sizes, SIZE, "^", DASHES[0], from_zero=True, stepped=True)
    )
    epochs = table.epochs.astype(float)
    step = (_RIGHT - _LEFT) / (epochs[-1] - epochs[0] + 1)
    x = _LEFT + (epochs - epochs[0] + 0.5) * step  # an epoch's middle
    title, height = 22.0, high / len(curves)
    parts: list[str] = []
    heights: list[list[float | None]] = []
    for number, curve in enumerate(curves):
        top = _TOP - 12 + height * number + title
        drawn, y = _panel(curve, table, x, step, (top, top + height - title - 8), places[-1])
        parts.append(drawn)
        heights.append([None if np.isnan(y[place]) else round(float(y[place]), 1) for place in places])
    low = _TOP - 12 + high - 8
    whole = [at for at in MaxNLocator(5, integer=True).tick_values(epochs[0], epochs[-1])
             if epochs[0] <= at <= epochs[-1]]  # fmt: skip
    parts += [text(_LEFT + (at - epochs[0] + 0.5) * step, low + 14, str(int(at)), font_size=10) for at in whole]
    parts.append(text((_LEFT + _RIGHT) / 2, low + 29, "epoch", font_size=11))
    return "\n".join(parts), {
        "x": [round(float(x[place]), 1) for place in places],
        "y": heights,
        "values": [[curve.written[place] for place in places] for curve in curves],
        "right": _RIGHT,
    }


def _panel(
    curve: _Curve, table: GrowthTable, x: np.ndarray, step: float, between: tuple[float, float], place: int
) -> tuple[str, Float[np.ndarray, " epochs"]]:
    """One curve with its axes, and how high it is in every epoch."""
    top, bottom = between
    values = np.log10(curve.values) if curve.logarithmic else curve.values
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    least = 0.0 if curve.from_zero else least
    if most <= least:
        least, most = least - 0.5, least + 0.5
    ticks = _ticks(least, most, curve.logarithmic)
    y = bottom - (bottom - top - 3) * (np.where(np.isfinite(values), values, np.nan) - least) / (most - least)
    parts = []
    for first, last in table.growths:
        begin, end = float(x[first]) - step / 2, float(x[last]) + step / 2
        parts.append(tag("rect", x=begin, y=top - 3, width=max(end - begin, 1.5), height=bottom - top + 3,
                         fill=GROWING, class_="growth"))  # fmt: skip
    for at, name in ticks:
        level = bottom - (bottom - top - 3) * (at - least) / (most - least)
        parts.append(tag("path", d=f"M{decimal(_LEFT)} {decimal(level)}h-4", stroke=INK))
        parts.append(text(_LEFT - 7, level + 3.5, name, "end", font_size=10))
    parts.append(tag("path", d=_line(x, y, step, curve.stepped), fill="none", stroke=curve.colour, stroke_width=1.7,
                     stroke_dasharray=curve.dashes or "none", stroke_linejoin="round"))  # fmt: skip
    parts += [
        tag("rect", x=float(x[place]), y=top - 6, width=float(_RIGHT - x[place]), height=bottom - top + 5, fill="white",
            fill_opacity=0.72, class_="veil"),
        tag("path", d=f"M{decimal(_LEFT)} {decimal(top - 3)}V{decimal(bottom)}H{decimal(_RIGHT)}", stroke=INK,
            fill="none"),
        tag("line", x1=float(x[place]), x2=float(x[place]), y1=top - 3, y2=bottom, stroke=FAINT, class_="now"),
    ]  # fmt: skip
    hidden = {} if np.isfinite(y[place]) else {"style": "display: none"}
    spot = f"translate({decimal(float(x[place]))} {decimal(float(np.nan_to_num(y[place])))})"
    parts.append(tag("path", d=marker_data(curve.marker, 8.0), fill=curve.colour, stroke="white", transform=spot,
                     class_="point", **hidden))  # fmt: skip
    shape = tag("path", d=marker_data(curve.marker, 8.0), fill=curve.colour,
                transform=f"translate({decimal(_LEFT + 4)} {decimal(top - 14)})")  # fmt: skip
    parts += [
        shape,
        text(_LEFT + 13, top - 10, curve.name, "start", font_size=11),
        text(_RIGHT, top - 10, curve.written[place], "end", font_size=11, font_weight="bold", class_="value"),
    ]
    return "\n".join(parts), y


def _ticks(least: float, most: float, logarithmic: bool) -> list[tuple[float, str]]:
    """Places on an axis and what to write there; of a logarithmic one, exponents of ten."""
    if not logarithmic:
        steps = MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]).tick_values(least, most)
        return [(float(at), _short(float(at))) for at in steps if least <= at <= most]
    tens = np.arange(np.ceil(least), np.floor(most) + 1)
    every = -(-len(tens) // 4)
    return [(float(at), f"{10.0 ** float(at):g}") for at in tens[::every]]


def _short(value: float) -> str:
    """A number with thousands and millions as letters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _line(x: np.ndarray, y: np.ndarray, step: float, stepped: bool) -> str:
    """A line through the points there are, broken where there is none; of a stepped one, a level an epoch."""
    parts, pen = [], "M"
    for across, level in zip(x.tolist(), y.tolist(), strict=True):
        if np.isnan(level):
            pen = "M"
        elif stepped:
            start = decimal(across - step / 2)
            parts.append(f"{pen}{start} {decimal(level)}" if pen == "M" else f"V{decimal(level)}")
            parts.append(f"H{decimal(across + step / 2)}")
            pen = "L"
        else:
            parts.append(f"{pen}{decimal(across)} {decimal(level)}")
            pen = "L"
    return "".join(parts)


def _legend(table: GrowthTable, top: float) -> str:
    """The origins that there are, and the background of growths."""
    wide, high = 24.0, 12.0
    entries: list[tuple[str, str]] = []
    for number, kind in enumerate(table.kinds):
        if table.counts[:, :, number].any():
            fill = kind.fill if isinstance(kind.fill, str) else to_hex(kind.fill)
            inset, looks = _texture(kind, 6.0, high)
            shape = tag("rect", x=0, y=-high / 2, width=wide, height=high, fill=fill)
            if kind.hatch:
                shape += tag("line", x1=inset, x2=wide - inset + 0.1, y1=0, y2=0, **looks)
            entries.append((kind.name, shape))
    if table.growths:
        shape = tag("rect", x=0, y=-high / 2, width=wide, height=high, fill=GROWING)
        entries.append(("the network grows", shape))
    widths = [wide + 28 + text_size(name, 8.3)[0] * PIXELS for name, _ in entries]
    x, y = (WIDTH - sum(widths)) / 2, top + _LEGEND / 2
    parts = []
    for (name, shape), width in zip(entries, widths, strict=True):
        parts.append(tag("g", shape, transform=f"translate({decimal(x)} {decimal(y)})"))
        parts.append(text(x + wide + 6, y + 4, name, "start", font_size=11))
        x += width
    return "\n".join(parts)
