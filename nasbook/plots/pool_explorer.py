"""The family tree of any edge (PR-DARTS, Chapter 5): a menu that needs no kernel, and a control for a live one."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import to_hex

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.plots.cells import text_size
from nasbook.plots.display import Described, describe
from nasbook.plots.palette import INK, operation_styles, tint
from nasbook.plots.pools import (
    BRANCH,
    QUIET,
    Family,
    FamilyTree,
    Lane,
    descent_in_words,
    draw_family_tree,
    family_tree,
    family_tree_in_words,
    lane_outline,
    life_in_words,
    sample_weights,
    tree_margin,
)
from nasbook.plots.svg import PIXELS, WIDTH, decimal, marker_data, picture, tag, text

_PITCH, _TOP, _BELOW = 27.0, 8.0, 62.0
"""Pixels from lane to lane, above the first one and below the last."""
_LEFT, _BEYOND = 12.0, 10.6
"""Pixels left of the first cycle, and from a lane's end to its name."""
_NAME, _WEIGHT, _MORPHISM = 10.2, 8.8, 8.6
"""Type sizes in pixels."""


def edge_names(space: Space) -> list[str]:
    """Every edge of a cell for readers, in words that need no subscripts: "c(k−2) → 2"."""
    names = [f"c(k−{space.inputs - node})" for node in range(space.inputs)]
    return [f"{[*names, source][min(source, space.inputs)]} → {target}" for source, target in space.edges]


def _named_trees(families: Mapping[str, Sequence[Family]], space: Space) -> dict[str, dict[str, Family]]:
    """The pools by the kind of cell and the name of the edge.

    Raises:
        InvalidInput: there are none, or they are not one an edge.
    """
    if not families:
        raise InvalidInput("families: expected at least one kind of cell with its pools, got none.")
    edges = edge_names(space)
    for kind, pools in families.items():
        if len(pools) != len(edges):
            raise InvalidInput(
                f"families[{kind!r}]: expected {len(edges)} pools, one an edge of the space, got {len(pools)}. "
                "Give the space that was searched as space=…."
            )
    return {kind: dict(zip(edges, pools, strict=True)) for kind, pools in families.items()}


def _tree(pool: Family, operations: Sequence[str]) -> tuple[str, int]:
    """One tree as SVG and its height, drawn as :func:`nasbook.plots.draw_family_tree` does."""
    tree = family_tree(pool)
    styles = operation_styles([*operations, *sorted({lane.operation for lane in tree.lanes})])
    margin = tree_margin(tree, (WIDTH - _LEFT) / PIXELS) * PIXELS
    column = (WIDTH - _LEFT - margin) / tree.cycles
    rows = len(tree.lanes)
    bottom = _TOP + _PITCH * (rows + 0.5)

    def x(cycle: float) -> float:
        return _LEFT + column * cycle

    def y(row: float) -> float:
        return _TOP + _PITCH * (row + 0.75)

    grid = "".join(f"M{decimal(x(cycle))} {_TOP:.0f}V{decimal(bottom)}" for cycle in range(tree.cycles + 1))
    parts = [tag("path", d=grid, stroke="#e2e2e2")]
    for line, looks in ((False, {"stroke": BRANCH}), (True, {"stroke": INK, "stroke_width": "2.4"})):
        branches = "".join(
            f"M{decimal(x(lane.born - 1))} {decimal(y(tree.lanes[lane.parent].row))}V{decimal(y(lane.row))}"
            for lane in tree.lanes
            if lane.parent is not None and lane.ancestor == line
        )
        if branches:
            parts.append(tag("path", d=branches, stroke_linecap="round", fill="none", **looks))
    lanes, names, morphisms, crosses = [], [], [], ""
    for number, lane in enumerate(tree.lanes):
        lanes.append(_lane(tree, number, styles[lane.operation].colour, x, y))
        middle, end = y(lane.row), x(lane.end)
        if lane.died:
            crosses += f"M{decimal(end - 3)} {decimal(middle - 3)}l6 6m0-6l-6 6"
        bold = {"font_weight": "bold"} if lane.survivor else {}
        weight = f"{lane.weights[-1]:.2f}" if lane.weights else ""
        small = tag("tspan", weight, dx=6, font_size=_WEIGHT, fill=QUIET) if weight else ""
        names.append(tag("text", html.escape(lane.label) + small, x=end + _BEYOND, y=middle + 3.7, **bold))
        if lane.parent is not None:
            half = tree.thickness(lane.weights[0] if lane.weights else 0.0) / 2 * _PITCH
            dark = {"fill": INK} if lane.ancestor else {}
            morphisms.append(text(x(lane.born - 1) + 4, middle - half - 2.6, lane.morphism, "start", **dark))
    parts += [tag("g", "".join(lanes), stroke_width=".8"), tag("path", d=crosses, stroke=INK, stroke_width="1.6")]
    parts += [_star(x(lane.end), y(lane.row)) for lane in tree.lanes if lane.survivor]
    parts.append(tag("g", "".join(names), font_size=_NAME))
    parts.append(tag("g", "".join(morphisms), font_size=_MORPHISM, fill=QUIET))
    ticks = [text(x(cycle - 0.5), bottom + 13, str(cycle)) for cycle in range(1, tree.cycles + 1)]
    ticks.append(text(x(tree.cycles / 2), bottom + 28, "cycle", font_size=12))
    parts.append(tag("g", "".join(ticks), font_size=10.7))
    parts.append(_legend(tree, bottom + 48))
    # Anchors at the start are the most; they need not be said one by one.
    drawn = "".join(parts).replace(' text-anchor="start"', "")
    return drawn, round(bottom + _BELOW)


def _lane(tree: FamilyTree, number: int, colour: str, x: Any, y: Any) -> str:
    """One lane, with its life in words for whoever points at it."""
    lane: Lane = tree.lanes[number]
    words = tag("title", html.escape(life_in_words(tree, number)))
    drawn = ""
    if lane.weights:
        (start, high), *corners = lane_outline(tree, lane)
        # Corner by corner a level line, then a plumb one; the path closes itself.
        outline = f"M{decimal(x(start))} {decimal(y(lane.row + high))}" + "".join(
            f"V{decimal(y(lane.row + up))}" if place % 2 else f"H{decimal(x(across))}"
            for place, (across, up) in enumerate(corners)
        )
        fill = to_hex(tint(colour, 1.0 if lane.ancestor else 0.5))
        looks = {"stroke": INK, "stroke_width": "1.3"} if lane.ancestor else {"stroke": colour}
        drawn += tag("path", words, d=outline + "Z", fill=fill, **looks)
        words = ""
    if lane.end > lane.known:
        line = f"M{decimal(x(lane.known))} {decimal(y(lane.row))}H{decimal(x(lane.end))}"
        drawn += tag("path", words, d=line, stroke=colour, stroke_width="1.9", stroke_dasharray="5 3")
    return drawn


def _star(x: float, y: float) -> str:
    """A star with five points."""
    return tag("path", d=marker_data("*", 13.0), fill=INK, transform=f"translate({decimal(x)} {decimal(y)})")


def _legend(tree: FamilyTree, y: float) -> str:
    """What thickness, crosses and the star mean."""
    entries: list[tuple[str, str]] = []
    for weight in sample_weights(tree):
        thick = tree.thickness(weight) * _PITCH
        entries.append((f"weight {weight:.2g}",
                        tag("rect", x=0, y=-thick / 2, width=22, height=thick, fill="#b0b0b0")))  # fmt: skip
    if any(lane.end > lane.known for lane in tree.lanes):
        dashes = tag("path", d="M0 0H22", stroke=QUIET, stroke_width="1.9", stroke_dasharray="5 3")
        entries.append(("this cycle", dashes))
    if any(lane.died for lane in tree.lanes):
        cross = tag("path", d="M8-3l6 6m0-6l-6 6", stroke=INK, stroke_width="1.6")
        entries.append(("pruned, with its last weight", cross))
    if any(lane.survivor for lane in tree.lanes):
        entries.append(("left in the end", _star(11.0, 0.0)))
    widths = [46 + text_size(name, 7.6)[0] * PIXELS for name, _ in entries]
    at, parts = (WIDTH - sum(widths)) / 2, []
    for (name, shape), width in zip(entries, widths, strict=True):
        parts.append(tag("g", shape, transform=f"translate({decimal(at)} {decimal(y)})"))
        parts.append(text(at + 27, y + 3.6, name, "start", font_size=10.2))
        at += width
    return "".join(parts)


_MENU_STYLE = "margin: 2px 10px 6px 2px; padding: 2px 4px; font: inherit; color: #1a1a1a; background: #f4f4f4"
_PAGE = """
<div class="nasbook-menu" data-menu="{key}" role="group" aria-label="Family trees"
     style="display: inline-block; max-width: 100%; background: white; color: #1a1a1a; border-radius: 4px;
            font-family: sans-serif; font-size: 14px">
<div>{menus}</div>
{picture}
</div>
<script>
(function () {{
  const trees = {trees};
  document.querySelectorAll('.nasbook-menu[data-menu="{key}"]:not([data-ready])').forEach(function (menu) {{
    menu.dataset.ready = "yes";
    const chosen = menu.querySelectorAll("select"), svg = menu.querySelector("svg");
    function paint() {{
      const tree = trees[chosen[0].selectedIndex][chosen[1].selectedIndex];
      svg.setAttribute("height", tree.height);
      svg.setAttribute("viewBox", "0 0 {width} " + tree.height);
      svg.innerHTML = tree.drawing;
      const lives = Array.from(svg.querySelectorAll("title")).map(function (life) {{ return life.textContent; }});
      svg.setAttribute("aria-label", [tree.words].concat(lives).join(" "));
    }}
    chosen.forEach(function (one) {{ one.disabled = false; one.onchange = paint; }});
  }});
}})();
</script>
"""


def browse_family_trees(
    families: Mapping[str, Sequence[Family]], *, space: Space = DARTS_SPACE, edge: tuple[int, int] | None = None
) -> Described:
    """The family tree of any edge, chosen from two menus: the kind of cell and the edge. It needs no kernel.

    Trees look as :func:`draw_family_tree` draws them. Whoever points at a lane reads that candidate's life. Where
    scripts don't run, the first tree shows. The trees of both DARTS cells take about 300 kB. Show it with
    :func:`show`.

    Args:
        families: for every kind of cell one pool an edge, such as ``Search.families()``.
        space: the space that was searched.
        edge: (source, target) of the edge to show at first; the first one by default.

    Raises:
        InvalidInput: there are no families, they are not one an edge, or there is no such edge.
    """
    named = _named_trees(families, space)
    if edge is not None and tuple(edge) not in space.edges:
        raise InvalidInput(f"edge: {tuple(edge)} is not an edge (source, target) of this space.")
    first = space.edges.index(tuple(edge)) if edge is not None else 0
    names = sorted({life.operation for pools in families.values() for pool in pools for life in pool.lives})
    trees: list[list[dict[str, Any]]] = []
    for kind, pools in named.items():
        trees.append([])
        for where, pool in pools.items():
            drawing, height = _tree(pool, names)
            words = f"{_where(kind, where)} {descent_in_words(family_tree(pool))}"
            # Values are escaped, so that single quotes do, and JSON need not escape each double one.
            trees[-1].append({"height": height, "words": words, "drawing": drawing.replace('"', "'")})
    kind, shown = next(iter(named)), trees[0][first]
    alt = f"{_where(kind, edge_names(space)[first])} {family_tree_in_words(families[kind][first])}"
    svg = picture([shown["drawing"]], shown["height"]).replace("{alt}", html.escape(alt))
    menus = _menu("cell", list(named), 0) + _menu("edge", edge_names(space), first)
    # "</" would end the script.
    data = json.dumps(trees, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    key = hashlib.sha256(data.encode()).hexdigest()[:12]
    return Described(_PAGE.format(key=key, menus=menus, picture=svg, trees=data, width=WIDTH), alt)


def _where(kind: str, edge: str) -> str:
    return f"The {kind} cell, edge {edge}."


def _menu(name: str, options: Sequence[str], chosen: int) -> str:
    inside = "".join(
        f"<option{' selected' if number == chosen else ''}>{html.escape(option)}</option>"
        for number, option in enumerate(options)
    )
    return f'<label>{name} <select disabled style="{_MENU_STYLE}">{inside}</select></label>\n'


def explore_family_trees(families: Mapping[str, Sequence[Family]], *, space: Space = DARTS_SPACE) -> Any:
    """A choice of the cell and of the edge, above the edge's family tree, for a live kernel.

    It redraws in the kernel and keeps one picture only. :func:`browse_family_trees` does the same on any page.

    Args:
        families: for every kind of cell one pool an edge, such as ``Search.families()``.
        space: the space that was searched.

    Returns:
        An ``ipywidgets`` box; its children are the controls and the picture.

    Raises:
        InvalidInput: ``ipywidgets`` is not installed, there are no families, or they are not one an edge.
    """
    try:
        import ipywidgets as widgets
    except ModuleNotFoundError:
        raise InvalidInput(
            "The explorer needs ipywidgets, which is not installed. Run: pip install 'nasbook[widgets]'. "
            "browse_family_trees shows the same without it."
        ) from None
    named = _named_trees(families, space)
    names = sorted({life.operation for pools in families.values() for pool in pools for life in pool.lives})
    cell = widgets.Dropdown(options=list(named), description="cell")
    edge = widgets.Dropdown(options=edge_names(space), description="edge")
    tree = widgets.HTML()

    def redraw(change: object = None) -> None:
        pool = named[cell.value][edge.value]
        words = f"{_where(cell.value, edge.value)} {family_tree_in_words(pool)}"
        tree.value = describe(draw_family_tree(pool, operations=names), words, dpi=110).data

    for control in (cell, edge):
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox([cell, edge]), tree])
