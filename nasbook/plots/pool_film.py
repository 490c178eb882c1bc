"""All pools of a search, as a film that the page draws itself (PR-DARTS, Chapter 5): a bar an edge, a part a candidate.

From epoch to epoch the parts change their lengths, from cycle to cycle their names. So the film is one picture in SVG,
a few numbers an epoch and a short script.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_hex

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.plots.animation import Film, pick
from nasbook.plots.cells import text_size
from nasbook.plots.palette import FAINT, INK, operation_label, operation_styles, tint
from nasbook.plots.pool_explorer import edge_names
from nasbook.plots.pools import GRACE, QUIET, CycleEpoch, cycle_spans
from nasbook.plots.svg import PIXELS, WIDTH, decimal, picture, tag, text

_HEADING, _TITLE, _STRIP, _LEGEND = 24.0, 22.0, 46.0, 26.0
"""Heights in pixels: of the heading, a cell's title, the cycles and the legend."""
_MARGIN = 8.0
_ROW, _AREA = 21.0, 252.0
"""The most pixels of one bar with the gap below it, and those of a cell's bars where it has many."""
_GAP = 2.0
"""Pixels between two parts of a bar."""
_NAME, _ROOM = 9.6, 8.0
"""Type size of names in pixels, and how much wider than its name a part has to be."""
_SECONDS = 30.0
"""The whole film takes so long at most."""
_PALE = 0.4
"""Opacity of an edge that the derived cell does without."""
_PAINT = """\
    const all = function (from, name) { return Array.from(from.querySelectorAll("." + name)); };
    const heading = all(player, "heading")[0], now = all(player, "now")[0];
    const rows = all(player, "row").map(function (row) {
      return { row: row, parts: all(row, "part").map(function (part) {
        return { part: part, box: all(part, "box")[0], name: all(part, "name")[0], strike: all(part, "strike")[0],
                 words: all(part, "words")[0] };
      }) };
    });
    function set(element, values) {
      Object.keys(values).forEach(function (name) { element.setAttribute(name, values[name]); });
    }
    function show(element, yes) { element.style.display = yes ? "" : "none"; }
    function paint(frame) {
      heading.textContent = film.headings[frame];
      slider.setAttribute("aria-valuetext", film.headings[frame]);
      set(now, { x1: film.x[frame], x2: film.x[frame] });
      rows.forEach(function (row, edge) {
        const state = film.frames[frame][edge], pool = film.pools[state[0]];
        set(row.row, { opacity: state[3] });
        let x = film.left;
        row.parts.forEach(function (part, place) {
          const there = place < pool.length;
          show(part.part, there);
          if (!there) return;
          const look = film.looks[pool[place]], weight = state[1][place];
          const width = Math.max(0, film.unit * weight - film.gap);
          const born = state[2][0].includes(place), dying = state[2][1].includes(place);
          const mark = born ? "+ " : "", room = width - film.room - (born ? film.plus : 0);
          set(part.box, { x: x, width: width, fill: dying ? "#ffffff" : look[4],
                          stroke: born ? film.ink : look[5], "stroke-width": born ? 1.8 : 1 });
          part.name.textContent = look[1] <= room ? mark + look[0] : look[3] <= room ? mark + look[2] : "";
          set(part.name, { x: x + width / 2 });
          set(part.strike, { x1: x + 2, x2: x + Math.max(2, width - 2) });
          show(part.strike, dying);
          part.words.textContent = look[0] + ", weight " + (weight / 1000).toFixed(3) +
            (born ? ", born for this cycle" : "") + (dying ? ", pruned after this epoch" : "");
          x += film.unit * weight;
        });
      });
    }"""


@dataclass(frozen=True)
class _Look:
    """How one operation looks in a bar."""

    label: str
    short: str
    """For parts with little room; empty where there is nothing shorter."""
    fill: str
    colour: str

    def row(self) -> list[Any]:
        """What the script needs: names with their widths in pixels, and colours."""
        return [self.label, _wide(self.label), self.short, _wide(self.short), self.fill, self.colour]


@dataclass(frozen=True)
class _Row:
    """One edge in one frame."""

    pool: tuple[str, ...]
    weights: tuple[int, ...]
    """In thousandths."""
    born: tuple[int, ...] = ()
    """Places in the pool of those in their first cycle."""
    dying: tuple[int, ...] = ()
    """Places in the pool of those that are pruned next."""
    opacity: float = 1.0


def _wide(label: str) -> int:
    return round(text_size(label, _NAME * 0.75)[0] * PIXELS) if label else 0


def _looks(names: Sequence[str]) -> dict[str, _Look]:
    found = {}
    for name, style in operation_styles(names).items():
        label = operation_label(name)
        kind, _, rest = label.partition(" ")
        short = rest if kind == "conv" else kind
        found[name] = _Look(label, short or label, to_hex(tint(style.colour, 0.3)), to_hex(style.colour))
    return found


def _stayed(before: Sequence[str], after: Sequence[str]) -> set[str]:
    """Which candidates of a pool are still there in the next cycle.

    They keep their order and stand before the children, so that one which was pruned and came back at once is told
    from one that stayed, unless it is the first child and stood behind all that stayed.
    """
    stayed: set[str] = set()
    left = iter(before)
    for name in after:
        if name not in left:  # takes all up to the name
            break
        stayed.add(name)
    return stayed


def _rows(history: Sequence[CycleEpoch], place: int, kind: str) -> list[_Row]:
    """The edges of one kind of cell after one epoch."""
    report = history[place]
    before = next((other for other in reversed(history[:place]) if other.cycle != report.cycle), None)
    after = history[place + 1] if place + 1 < len(history) else report
    ends = after.cycle != report.cycle
    rows = []
    for edge, weights in enumerate(report.weights(kind)):
        pool = tuple(weights)
        old = _stayed(before.pools[kind][edge], pool) if before is not None else set(pool)
        stays = _stayed(pool, after.pools[kind][edge]) if ends else set(pool)
        born = [n for n, name in enumerate(pool) if name not in old]
        dying = [n for n, name in enumerate(pool) if name not in stays]
        values = tuple(round(1000 * weight) for weight in weights.values())
        rows.append(_Row(pool, values, tuple(born), tuple(dying)))
    return rows


def _derived(report: CycleEpoch, kind: str, space: Space) -> list[_Row]:
    """The edges of one kind of cell as the genotype has them; those that it does without are pale."""
    kept: Mapping[tuple[int, int], str] = {
        (edge.source, edge.target): edge.operation for edge in report.genotype[kind].edges
    }
    return [
        _Row((kept[pair],), (1000,)) if pair in kept else _Row((max(weights, key=lambda name: weights[name]),), (1000,),
                                                               opacity=_PALE)
        for pair, weights in zip(space.edges, report.weights(kind), strict=True)
    ]  # fmt: skip


def _places(history: Sequence[CycleEpoch], most: int) -> list[int]:
    """At most ``most`` places of the history: the ends of every cycle, and others evenly between them."""
    last = len(history) - 1
    ends = sorted({0, last} | {place + n for place in range(last) for n in (0, 1)
                               if history[place].cycle != history[place + 1].cycle})  # fmt: skip
    if len(ends) > most:
        return [ends[place] for place in pick(len(ends), most)]
    others = [place for place in range(len(history)) if place not in ends]
    return sorted([*ends, *(others[place] for place in pick(len(others), most - len(ends)))])


def _heading(history: Sequence[CycleEpoch], place: int) -> str:
    report, last = history[place], place + 1 == len(history)
    words = f"epoch {report.epoch} of {history[-1].epoch}, cycle {report.cycle}"
    if not last and history[place + 1].cycle != report.cycle:
        return words + ": what is struck out is pruned"
    return words + (": α is frozen" if report.grace else ": α learns")


def animate_pools(
    history: Sequence[CycleEpoch],
    kinds: Sequence[str] | None = None,
    *,
    space: Space = DARTS_SPACE,
    frames: int = 60,
) -> Film:
    """A search of PR-DARTS over its epochs: the pools of all edges, and at the end the derived cells.

    A bar is an edge; its parts are the candidates, in order of birth, as long as their softmax weights. A candidate in
    its first cycle has a dark frame and a plus; one that is about to be pruned is white and struck out. Names are cut
    short or left out where there is no room; whoever points at a part reads its name and weight. The last frame has
    the derived cells, with pale bars for the edges that they do without. Show it with
    :func:`nasbook.plots.show_animation`; the end of the middle cycle shows at first.

    Args:
        history: the reports of a PR-DARTS search.
        kinds: which cells, from top to bottom; all by default.
        space: the space that was searched.
        frames: the most epochs to show; of a longer history the first and last epochs of the cycles come first. Sixty
            of two DARTS cells take about 160 kB.

    Raises:
        InvalidInput: the history is empty, has no such kind of cell, or belongs to another space.
    """
    require_positive(frames=frames)
    spans = cycle_spans(history)
    kinds = tuple(kinds) if kinds else tuple(history[0].pools)
    for kind in kinds:
        if kind not in history[0].pools:
            raise unknown_name("kind of cell", kind, history[0].pools)
        for report in history:
            if len(report.pools[kind]) != len(space.edges):
                raise InvalidInput(
                    f"Epoch {report.epoch}: expected {len(space.edges)} pools, one an edge of the space, got "
                    f"{len(report.pools[kind])}. Give the space that was searched as space=…."
                )
    places = _places(history, frames)
    shown = [[row for kind in kinds for row in _rows(history, place, kind)] for place in places]
    shown.append([row for kind in kinds for row in _derived(history[-1], kind, space)])
    looks = _looks(sorted({name for rows in shown for row in rows for name in row.pool}))
    headings = [_heading(history, place) for place in places]
    headings.append(f"The derived cell{'s' if kinds[1:] else ''}, after epoch {history[-1].epoch}")
    middle = spans[(len(spans) - 1) // 2][3]
    still = max(number for number, place in enumerate(places) if number == 0 or history[place].epoch <= middle)

    names = edge_names(space)
    left = _MARGIN + max(_wide(name) for name in names) + 10
    unit = (WIDTH - _MARGIN - left) / 1000
    pitch = min(_ROW, _AREA / len(names))
    slots = max(len(row.pool) for rows in shown for row in rows)
    area = _TITLE + pitch * len(names)
    parts = [text(WIDTH / 2, 16.0, headings[still], class_="heading", font_weight="bold")]
    for number, row in enumerate(shown[still]):
        cell, edge = divmod(number, len(names))
        if edge == 0:
            title = f"{kinds[cell]} cell"
            parts.append(text(left + 500 * unit, _HEADING + area * cell + _TITLE - 7, title))
        y = _HEADING + area * cell + _TITLE + pitch * (edge + 0.5)
        parts.append(text(left - 7, y + 3.6, names[edge], "end", font_size=10))
        parts.append(_bar(row, looks, left, unit, y, pitch - 3.5, slots))
    top = _HEADING + area * len(kinds)
    strip, x = _strip(spans, [history[place].epoch for place in places], top, left)
    x.append(x[-1])
    parts += [strip(x[still]), _legend(top + _STRIP)]
    pools = list(dict.fromkeys(row.pool for rows in shown for row in rows))
    order = {name: number for number, name in enumerate(looks)}
    data = {
        "headings": headings,
        "x": [round(at, 1) for at in x],
        "looks": [look.row() for look in looks.values()],
        "pools": [[order[name] for name in pool] for pool in pools],
        "frames": [
            [[pools.index(row.pool), row.weights, [row.born, row.dying], row.opacity] for row in rows] for rows in shown
        ],
        "left": left, "unit": round(unit, 5), "gap": _GAP, "room": _ROOM, "plus": _wide("+ "), "ink": INK,
    }  # fmt: skip
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    drawing = picture(parts, round(top + _STRIP + _LEGEND + _MARGIN))
    interval = round(max(120.0, min(700.0, _SECONDS * 1000 / len(shown))))
    return Film(drawing, len(shown), written, _PAINT, interval, still)


def _bar(
    row: _Row, looks: Mapping[str, _Look], left: float, unit: float, y: float, high: float, slots: int
) -> str:
    """One edge's candidates, with room for as many as any edge ever has."""
    parts, x = [], left
    for place in range(slots):
        there = place < len(row.pool)
        look = looks[row.pool[place]] if there else next(iter(looks.values()))
        weight = row.weights[place] if there else 0
        width = max(0.0, unit * weight - _GAP)
        born, dying = place in row.born, place in row.dying
        room = width - _ROOM - (_wide("+ ") if born else 0)
        name = next((name for name in (look.label, look.short) if _wide(name) <= room), "")
        words = f"{look.label}, weight {weight / 1000:.3f}" + ", born for this cycle" * born
        words += ", pruned after this epoch" * dying
        inside = [
            tag("title", html.escape(words), class_="words"),
            tag("rect", x=x, y=y - high / 2, width=width, height=high, fill="#ffffff" if dying else look.fill,
                stroke=INK if born else look.colour, stroke_width="1.8" if born else "1", class_="box"),
            text(x + width / 2, y + 3.4, ("+ " * born + name) if name else "", class_="name"),
            tag("line", x1=x + 2, x2=x + max(2.0, width - 2), y1=y, y2=y, stroke=INK, class_="strike",
                **({} if dying else {"style": "display: none"})),
        ]  # fmt: skip
        parts.append(tag("g", "".join(inside), class_="part", **({} if there else {"style": "display: none"})))
        x += unit * weight
    return tag("g", "".join(parts), class_="row", font_size=_NAME, opacity=str(row.opacity))


def _strip(
    spans: Sequence[tuple[int, int, int, int]], epochs: Sequence[int], top: float, left: float
) -> tuple[Any, list[float]]:
    """The cycles over the epochs, as a function of where the cursor stands, and where it stands in every frame."""
    first, last = spans[0][1], spans[-1][3]
    step = (WIDTH - _MARGIN - left) / (last - first + 1)
    high, low = top + 12, top + 28

    def at(epoch: float) -> float:
        return left + step * (epoch - first)

    parts = [text(left - 7, (high + low) / 2 + 3.6, "cycle", "end", font_size=10)]
    for number, begin, grace, end in spans:
        if grace >= begin:
            parts.append(tag("rect", x=at(begin), y=high, width=at(grace + 1) - at(begin), height=low - high,
                             fill=GRACE, class_="grace"))  # fmt: skip
        parts.append(tag("rect", x=at(begin), y=high, width=at(end + 1) - at(begin), height=low - high, fill="none",
                         stroke=QUIET, class_="cycle"))  # fmt: skip
        parts.append(text((at(begin) + at(end + 1)) / 2, low + 12, str(number), font_size=10))

    def drawn(x: float) -> str:
        cursor = tag("line", x1=x, x2=x, y1=high - 5, y2=low + 1, stroke=INK, stroke_width="2.4", class_="now")
        return "".join([*parts, cursor])

    return drawn, [at(epoch + 0.5) for epoch in epochs]


def _legend(top: float) -> str:
    """What frames and lines mean."""
    y = top + 12
    box: dict[str, Any] = {"x": 0, "y": -6, "width": 22, "height": 12}
    strike = tag("rect", **box, fill="#ffffff", stroke=FAINT) + tag("line", x1=2, x2=20, y1=0, y2=0, stroke=INK)
    entries = [
        ("born for this cycle", tag("rect", **box, fill="#ffffff", stroke=INK, stroke_width="1.8")
         + text(11, 3.6, "+", font_size=10)),
        ("pruned after this epoch", strike),
        ("α is frozen", tag("rect", **box, fill=GRACE, stroke=QUIET)),
        ("length: softmax weight", ""),
    ]  # fmt: skip
    widths = [(44 if shape else 12) + text_size(name, 7.6)[0] * PIXELS for name, shape in entries]
    x, parts = (WIDTH - sum(widths)) / 2, []
    for (name, shape), width in zip(entries, widths, strict=True):
        if shape:
            parts.append(tag("g", shape, transform=f"translate({decimal(x)} {decimal(y)})"))
        parts.append(text(x + (28 if shape else 0), y + 3.6, name, "start", font_size=10.2))
        x += width
    return "".join(parts)
