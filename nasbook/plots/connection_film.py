"""How a sparse search drops its connections, as a film that the page draws itself.

The lines of all frames run along the same paths; only their widths change. So the film is one picture in SVG, a few
hundred numbers an epoch and a short script: all epochs of a search take fewer bytes than two images of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import DARTS_SPACE, Genotype, Space
from nasbook.plots.animation import MARKER, Film
from nasbook.plots.cells import draw_genotype, text_size
from nasbook.plots.connections import (
    MARKER_PART,
    NARROWEST,
    TRACE,
    WIDEST,
    ConnectionLayout,
    connection_layout,
    counted_connections,
    kept_connections,
    line_widths,
)
from nasbook.plots.display import encode_png
from nasbook.plots.history import Epoch
from nasbook.plots.layout import INPUT_WIDTH, NODE, OUTPUT_WIDTH, Point, bundles
from nasbook.plots.palette import (
    FAINT,
    INK,
    LINE_COLOURS,
    MARKERS,
    OperationStyle,
    operation_label,
    operation_styles,
)
from nasbook.plots.svg import DASHES, PIXELS, WIDTH, decimal, marker_data, path_data, picture, tag, text

_HEADING, _TITLE, _STRIP, _ROW = 22, 26, 92, 18
"""Heights in pixels: of the heading, a cell's title, the panel that counts and a row of the legend."""
_MARGIN = 6
_PAINT = """\
    const all = function (from, name) { return Array.from(from.querySelectorAll("." + name)); };
    const heading = all(player, "heading")[0], search = all(player, "search")[0], derived = all(player, "derived")[0];
    const cells = all(player, "cell").map(function (cell) {
      return { title: all(cell, "title")[0], lines: all(cell, "line"), marks: all(cell, "mark"),
               heads: all(cell, "head"), traces: all(cell, "trace"), outputs: all(cell, "output") };
    });
    const now = all(player, "now")[0], points = all(player, "point");
    function show(element, yes) { if (element) element.style.display = yes ? "" : "none"; }
    function paint(frame) {
      const epoch = Math.min(frame, film.x.length - 1), end = frame === film.x.length;
      heading.textContent = film.headings[frame];
      show(search, !end); show(derived, end);
      now.setAttribute("x1", film.x[epoch]); now.setAttribute("x2", film.x[epoch]);
      points.forEach(function (point, kind) {
        point.setAttribute("transform", "translate(" + film.x[epoch] + " " + film.y[kind][epoch] + ")");
      });
      cells.forEach(function (cell, kind) {
        const kept = film.coefficients[kind][epoch];
        cell.title.textContent = film.titles[kind][epoch];
        cell.lines.forEach(function (line, number) {
          line.style.strokeWidth = kept[number] ? Math.max(film.narrowest, film.widest * kept[number] / 100) : 0;
          show(cell.marks[number], kept[number]);
        });
        const entered = film.edges.map(function (members) {
          return members.some(function (number) { return kept[number] > 0; });
        });
        entered.forEach(function (yes, edge) { show(cell.heads[edge], yes); show(cell.traces[edge], !yes); });
        cell.outputs.forEach(function (line, node) {
          show(line, film.into[node].some(function (edge) { return entered[edge]; }));
        });
      });
    }"""


def _cell(found: ConnectionLayout, space: Space, coefficients: np.ndarray, title: str, top: float, key: str) -> str:
    """One cell in its first frame; paths and markers are defined elsewhere, as all cells share them."""
    layout, edges = found.cell, found.edges
    styles = list(operation_styles(space.choices).values())

    def place(point: Point) -> tuple[float, float]:
        return _MARGIN + point[0] * PIXELS, _MARGIN + (layout.height - point[1]) * PIXELS

    def hidden(is_hidden: bool) -> dict[str, str]:
        return {"style": "display: none"} if is_hidden else {}

    kept = (coefficients > 0).tolist()
    entered = {target for (_, target), there in zip(edges, kept, strict=True) if there}
    parts = [
        tag("use", href=f"#{key}-output-{node}", stroke="#b4b4b4", stroke_width=1.2, class_="output",
            **hidden(node not in entered))
        for node in layout.output_routes
    ]  # fmt: skip
    groups = list(bundles(edges).values())
    for members in groups:
        parts.append(
            tag("use", href=f"#{key}-{members[len(members) // 2]}", stroke=TRACE, class_="trace",
                **hidden(any(kept[number] for number in members)))
        )  # fmt: skip
    for number, width in enumerate(line_widths(coefficients) * PIXELS / 72):
        parts.append(
            tag("use", href=f"#{key}-{number}", stroke=styles[number % len(styles)].colour, class_="line",
                style=f"stroke-width: {decimal(width)}; transition: stroke-width 0.25s")
        )  # fmt: skip
    for members in groups:
        ends = [np.asarray(found.paths[number].vertices, dtype=float)[-1] for number in members]
        x, y = place(tuple(np.mean(ends, axis=0)))
        parts.append(
            tag("path", d=f"M{decimal(x)} {decimal(y)}l-10-5v10Z", fill=INK, class_="head",
                **hidden(not any(kept[number] for number in members)))
        )  # fmt: skip
    for number, there in enumerate(kept):
        x, y = place(layout.labels[number])
        mark = f"#{key}-mark-{number % len(styles)}"
        parts.append(tag("use", href=mark, x=x, y=y, class_="mark", **hidden(not there)))
    for node, point in layout.nodes.items():
        x, y = place(point)
        wide, high = INPUT_WIDTH if node < space.inputs else NODE, layout.node_heights.get(node, NODE)
        parts.append(_box(x, y, wide, high, 0.06 if node < space.inputs else NODE / 2, node < space.inputs))
        name = f"k−{space.inputs - node}" if node < space.inputs else ""
        parts.append(_node_name(x, y, name) if name else text(x, y + 4, str(node)))
    x, y = place(layout.output)
    parts += [_box(x, y, OUTPUT_WIDTH, layout.output_height, 0.06, True), _node_name(x, y, "k")]
    parts.append(text(WIDTH / 2, -8.0, title, class_="title"))
    return tag("g", "\n".join(parts), class_="cell", transform=f"translate(0 {decimal(top + _TITLE)})")


def _box(x: float, y: float, wide: float, high: float, rounding: float, filled: bool) -> str:
    wide, high = wide * PIXELS, high * PIXELS
    return tag("rect", x=x - wide / 2, y=y - high / 2, width=wide, height=high, rx=rounding * PIXELS,
               fill="#ececec" if filled else "white", stroke=INK, stroke_width=1.4)  # fmt: skip


def _node_name(x: float, y: float, index: str) -> str:
    inside = f'<tspan font-style="italic">c</tspan><tspan dy="3" font-size="9" font-style="italic">{index}</tspan>'
    return tag("text", inside, x=x, y=y + 3, text_anchor="middle")


def _strip(
    epochs: Sequence[int], counts: Mapping[str, Float[np.ndarray, " epochs"]], places: Sequence[int], top: float
) -> tuple[str, list[float], list[list[float]]]:
    """The panel that counts connections over the epochs, and where its marks stand in every frame."""
    left, right, high, low = 62.0, WIDTH - 96.0, top + 12, top + _STRIP - 34
    most = max(float(values.max()) for values in counts.values()) or 1.0
    x = [left + (right - left) * (epoch - epochs[0]) / max(1, epochs[-1] - epochs[0]) for epoch in epochs]
    y = [[low - (low - high) * float(value) / most for value in values] for values in counts.values()]
    parts = [
        tag("path", d=f"M{decimal(left)} {decimal(high)}V{decimal(low)}H{decimal(right)}", stroke=INK, fill="none"),
        text(left - 5, high + 4, f"{most:.0f}", "end", font_size=10),
        text(left - 5, low + 4, "0", "end", font_size=10),
        text(left, low + 13, str(epochs[0]), font_size=10),
        text(right, low + 13, str(epochs[-1]), "end", font_size=10),
        text((left + right) / 2, low + 13, "epoch", font_size=11),
        tag("text", "connections", x=0, y=0, text_anchor="middle", font_size=11,
            transform=f"translate(26 {decimal((high + low) / 2)}) rotate(-90)"),
        tag("line", x1=x[places[0]], x2=x[places[0]], y1=high, y2=low, stroke=FAINT, class_="now"),
    ]  # fmt: skip
    looks = [
        OperationStyle(LINE_COLOURS[number % len(LINE_COLOURS)], "-", MARKERS[number % len(MARKERS)])
        for number in range(len(y))
    ]
    heights = sorted(range(len(y)), key=lambda n: y[n][-1])
    room = 13.0
    first = min(y[heights[0]][-1], low - room * (len(y) - 1))
    for order, number in enumerate(heights):
        kind, colour = list(counts)[number], looks[number].colour
        points = " ".join(f"{decimal(a)},{decimal(b)}" for a, b in zip(x, y[number], strict=True))
        parts.append(tag("polyline", points=points, fill="none", stroke=colour, stroke_width=1.6,
                         stroke_dasharray=DASHES[number % len(DASHES)] or "none"))  # fmt: skip
        name = max(y[number][-1], first + room * order)
        first = name - room * order
        shape = {"d": marker_data(looks[number].marker, 7.0), "fill": colour}
        parts.append(tag("path", **shape, transform=f"translate({decimal(right + 14)} {decimal(name)})"))
        parts.append(text(right + 22, name + 4, kind, "start", font_size=11))
    for number, look in enumerate(looks):
        at = f"translate({decimal(x[places[0]])} {decimal(y[number][places[0]])})"
        parts.append(tag("path", d=marker_data(look.marker, 7.0), fill=look.colour, class_="point", transform=at))
    return "\n".join(parts), [round(x[place], 1) for place in places], [
        [round(line[place], 1) for place in places] for line in y
    ]


def _legend(names: Iterable[str], key: str, top: float) -> tuple[str, float]:
    """The operations with their colours and markers, and the height that they take."""
    entries = [
        (number, name, style, 44 + text_size(operation_label(name), 8.0)[0] * PIXELS)
        for number, (name, style) in enumerate(operation_styles(names).items())
    ]
    rows: list[list[tuple[int, str, OperationStyle, float]]] = [[]]
    for entry in entries:
        if rows[-1] and sum(width for *_, width in rows[-1]) + entry[-1] > WIDTH - 2 * _MARGIN:
            rows.append([])
        rows[-1].append(entry)
    parts = []
    for row, members in enumerate(rows):
        x, y = (WIDTH - sum(width for *_, width in members)) / 2, top + _ROW * (row + 0.5)
        for number, name, style, width in members:
            line = f"M{decimal(x)} {decimal(y)}h22"
            parts.append(tag("path", d=line, stroke=style.colour, stroke_width=3))
            parts.append(tag("use", href=f"#{key}-mark-{number}", x=x + 11, y=y))
            parts.append(text(x + 27, y + 4, operation_label(name), "start", font_size=11))
            x += width
    return "\n".join(parts), _ROW * len(rows)


def _eventful(counts: Float[np.ndarray, " epochs"], most: int) -> list[int]:
    """At most ``most`` places, the first and the last among them: half by time, half by how much is dropped.

    The connections of a sparse search go within a few epochs. Frames at even steps of time would miss how.
    """
    moved = np.concatenate([[0.0], np.abs(np.diff(counts)).cumsum()])
    time = np.linspace(0, 1, len(counts))
    progress = (time + moved / moved[-1]) / 2 if moved[-1] else time
    # The first, the last, and then always the place that is farthest from those there are.
    places = [0, len(counts) - 1][:most]
    while len(places) < min(most, len(counts)):
        nearest = np.abs(progress[:, None] - progress[places]).min(axis=1)
        nearest[places] = -1.0
        places.append(int(nearest.argmax()))
    return sorted(set(places))


def animate_connections(
    history: Sequence[Epoch],
    kinds: Sequence[str] | None = None,
    *,
    space: Space = DARTS_SPACE,
    frames: int = 60,
) -> Film:
    """A sparse search over its epochs: cells as :func:`draw_connections` draws them, and at the end the derived ones.

    Below the cells stands how many connections are left, over the epochs. Each frame says its epoch and, where the
    reports have a ``temperature``, τ. Show it with :func:`show_animation`.

    Args:
        history: the reports of a search, such as EnTranNAS-DST.
        kinds: which cells, from top to bottom; all by default.
        space: the space that was searched.
        frames: the most epochs to show; of a longer history those where many connections are dropped come first.
            Sixty take about 150 kB.

    Raises:
        InvalidInput: the history is empty or belongs to another space, there is no such cell, or a coefficient is
            negative.
    """
    require_positive(frames=frames)
    if not history:
        raise InvalidInput("The history is empty; run at least one epoch of a search first.")
    kinds = tuple(kinds) if kinds else history[0].genotype.kinds
    values = {kind: kept_connections(history, kind, space) for kind in kinds}
    counts = {kind: (kept > 0).sum(axis=(1, 2)).astype(float) for kind, kept in values.items()}
    places = _eventful(np.sum([*counts.values()], axis=0), frames)
    shown = [history[place] for place in places]
    found = connection_layout(space)
    titles = {kind: [counted_connections(report, kind, space) for report in shown] for kind in kinds}
    height = found.cell.height * PIXELS + 2 * _MARGIN + _TITLE
    key = "{key}"
    drawn = [
        _cell(found, space, values[kind][places[0]].ravel(), titles[kind][0], _HEADING + height * number, key)
        for number, kind in enumerate(kinds)
    ]
    area = height * len(kinds)
    strip, x, y = _strip([report.epoch for report in history], counts, places, _HEADING + area)
    legend, rows = _legend(space.choices, key, _HEADING + area + _STRIP)
    headings = [_heading(report, history[-1].epoch) for report in shown]
    derived = draw_genotype(
        Genotype({kind: history[-1].genotype[kind] for kind in kinds}), operations=space.choices
    )
    image = f"data:image/png;base64,{encode_png(derived, 130, 96)}"
    total = round(_HEADING + area + _STRIP + rows + _MARGIN)
    drawing = picture([
        _definitions(found, space, key),
        text(WIDTH / 2, 16.0, headings[0], class_="heading", font_weight="bold"),
        tag("g", "\n".join(drawn), class_="search", fill=INK),
        tag("image", href=image, x=0, y=_HEADING, width=WIDTH, height=area, class_="derived",
            style="display: none"),
        strip, legend,
    ], total)  # fmt: skip
    groups = list(bundles(found.edges))
    data = {
        "headings": [*headings, f"The derived cell{'s' if kinds[1:] else ''}, after epoch {history[-1].epoch}"],
        "titles": list(titles.values()),
        "coefficients": [[_hundredths(kept[place].ravel()) for place in places] for kept in values.values()],
        "edges": list(bundles(found.edges).values()),
        "into": [[n for n, (_, target) in enumerate(groups) if target == node] for node in found.cell.output_routes],
        "x": x, "y": y, "widest": WIDEST * PIXELS / 72, "narrowest": NARROWEST * PIXELS / 72,
    }  # fmt: skip
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    name = "film-" + hashlib.sha256((drawing + written).encode()).hexdigest()[:8]  # for one of many on a page
    return Film(drawing.replace(key, name), len(places) + 1, written, _PAINT)


def _heading(report: Epoch, last: int) -> str:
    temperature = getattr(report, "temperature", None)
    return f"epoch {report.epoch} of {last}" + ("" if temperature is None else f", τ = {temperature:.3g}")


def _hundredths(coefficients: Float[np.ndarray, " connections"]) -> list[int]:
    """Coefficients as whole hundredths; what is there at all counts at least one."""
    rounded = np.maximum(np.rint(100 * coefficients), coefficients > 0)
    return [int(value) for value in rounded]


def _definitions(found: ConnectionLayout, space: Space, key: str) -> str:
    """The paths and markers that all cells draw, by name."""
    place = {"x": _MARGIN, "y": _MARGIN + found.cell.height * PIXELS, "scale": PIXELS}
    parts = [
        tag("path", id=f"{key}-{number}", d=path_data(path, place), fill="none")
        for number, path in enumerate(found.paths)
    ]
    parts += [
        tag("path", id=f"{key}-output-{node}", d=path_data(path, place), fill="none")
        for node, path in zip(found.cell.output_routes, found.lines, strict=True)
    ]
    for number, style in enumerate(operation_styles(space.choices).values()):
        shape = tag("path", d=marker_data(style.marker, MARKER_PART * MARKER * PIXELS) or "M0 0", fill="white",
                    stroke=style.colour, stroke_width=1.4)  # fmt: skip
        parts.append(tag("g", shape, id=f"{key}-mark-{number}"))
    return tag("defs", "\n".join(parts))
