"""The tabular benchmark on a page (Chapter 8): pick a cell, see its worth and its neighbours, replay a search.

Everything is in one piece of HTML: it needs no kernel and no network. Without scripts it shows the best cell, and all
cells as dots.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nasbook.errors import InvalidInput
from nasbook.genotypes import ZERO
from nasbook.plots.cells import cell_in_words, draw_cell
from nasbook.plots.display import Described, describe
from nasbook.plots.palette import FAINT, INK, operation_label, operation_styles
from nasbook.plots.svg import DASHES, decimal, picture, tag, text
from nasbook.tabular import TABULAR_SPACE, Entry, Table, code_of

__all__ = ["explore_table", "pick_cell"]

_HEIGHT = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 318.0, 612.0, 16.0, 258.0
"""Of the dots: the frame in pixels."""

_NODES = ((36.0, 70.0), (36.0, 200.0), (138.0, 92.0), (206.0, 190.0))
"""Where the cell's nodes stand; behind them the output."""
_OUTPUT = (262.0, 130.0)
_NAMES = ("before last", "last", "2", "3")


def _edge_names() -> list[str]:
    return [f"{_NAMES[source]} → {target}" for source, target in TABULAR_SPACE.edges]


def _looks() -> list[dict[str, str]]:
    """Colour, dashes and name of every operation, in the order of the codes."""
    styles = operation_styles(TABULAR_SPACE.operations)
    found = []
    for number, name in enumerate(TABULAR_SPACE.operations):
        none = name == ZERO
        found.append(
            {
                "name": "none" if none else operation_label(name),
                "colour": "#d0d0d0" if none else styles[name].colour,
                "dash": "2 5" if none else DASHES[number - 1],
                "width": "1.2" if none else "3.2",
            }
        )
    return found


def explore_table(table: Table, paths: Mapping[str, Sequence[int]] | None = None) -> Described:
    """A cell to be changed edge by edge, all cells as dots, and the paths of searches to be replayed.

    Click an edge, or use the menus, to change its operation; click a dot to go to its cell. The buttons list the cells
    at one change. About 60 kB, and 5 bytes for each step of a path. Show it as it is: it displays itself.

    Args:
        table: the benchmark.
        paths: search → the rows that it came through, one a step.

    Raises:
        InvalidInput: a path is empty, or has a row that is not in the table.
    """
    paths = {} if paths is None else paths
    for name, rows in paths.items():
        if not len(rows) or not all(0 <= row < len(table) for row in rows):
            raise InvalidInput(f"paths[{name!r}]: expected rows from 0 to {len(table) - 1}, got {list(rows)[:5]}….")
    entries = list(table)
    data = {
        "codes": ["".join(map(str, code_of(entry.genotype))) for entry in entries],
        "test": [round(1e5 * entry.test_accuracy) for entry in entries],
        "spread": [round(1e5 * entry.spread) for entry in entries],
        "validation": [round(1e5 * entry.validation_accuracy) for entry in entries],
        "rank": [entry.rank for entry in entries],
        "parameters": [entry.parameters for entry in entries],
        "macs": [entry.macs for entry in entries],
        "edges": [list(edge) for edge in TABULAR_SPACE.edges],
        "nodes": _NODES,
        "looks": _looks(),
        "seeds": len(table.seeds),
        "paths": [[name, list(map(int, rows))] for name, rows in paths.items()],
        **_frame(entries),
    }
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    key = hashlib.sha256(written.encode()).hexdigest()[:12]
    best = table.best
    alt = (
        f"All {len(entries)} cells as dots, test accuracy against multiply-adds, from "
        f"{100 * min(entry.test_accuracy for entry in entries):.1f} to {100 * best.test_accuracy:.1f} %. Beside them "
        f"the best cell: {cell_in_words(best.genotype['reduction'])}"
    )
    svg = picture([_drawing(entries, best, data)], _HEIGHT).replace("{alt}", html.escape(alt))
    menus = "".join(
        f'<label style="white-space: nowrap">{name} <select disabled data-edge="{number}" style="{_CONTROL}">'
        + "".join(f"<option>{html.escape(look['name'])}</option>" for look in data["looks"])
        + "</select></label>\n"
        for number, name in enumerate(_edge_names())
    )
    choices = "".join(f"<option>{html.escape(name)}</option>" for name in paths)
    return Described(
        _PAGE.format(key=key, menus=menus, picture=svg, data=written, choices=choices, control=_CONTROL,
                     hidden="" if paths else " hidden", ink=INK, faint=FAINT),
        alt,
    )  # fmt: skip


def _frame(entries: Sequence[Entry]) -> dict[str, Any]:
    """What maps multiply-adds and accuracies to pixels. The lowest twentieth of cells stands at the bottom edge."""
    accuracies = sorted(entry.test_accuracy for entry in entries)
    macs = [entry.macs for entry in entries]
    low = accuracies[len(accuracies) // 20]
    return {
        "frame": [_LEFT, _RIGHT, _TOP, _BOTTOM],
        "x": [min(macs), max(macs)],
        "y": [round(1e5 * low), round(1e5 * accuracies[-1])],
    }


def _place(entry: Entry, data: Mapping[str, Any]) -> tuple[float, float]:
    x = (entry.macs - data["x"][0]) / max(1, data["x"][1] - data["x"][0])
    y = max(0.0, (1e5 * entry.test_accuracy - data["y"][0]) / max(1, data["y"][1] - data["y"][0]))
    return _LEFT + 8 + x * (_RIGHT - _LEFT - 16), _BOTTOM - 6 - y * (_BOTTOM - _TOP - 14)


def _drawing(entries: Sequence[Entry], shown: Entry, data: Mapping[str, Any]) -> str:
    """The picture without scripts: the frame, the dots, the nodes, and the shown cell's edges."""
    dots = "".join(
        f"M{decimal(x)} {decimal(y)}h0" for x, y in (_place(entry, data) for entry in entries)
    )
    x, y = _place(shown, data)
    scale = f"top {data['y'][1] / 1000:.1f} %, bottom edge {data['y'][0] / 1000:.1f} % and below"
    parts = [
        tag("path", d=f"M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}", stroke=INK, stroke_width="0.8", fill="none"),
        tag("path", d=dots, stroke="#7aa9c9", stroke_width="4", stroke_linecap="round", class_="dots"),
        tag("g", class_="trace"),
        tag("g", class_="near"),
        tag("circle", cx=x, cy=y, r="7", fill="none", stroke=INK, stroke_width="2.2", class_="ring"),
        text((_LEFT + _RIGHT) / 2, _BOTTOM + 34, "multiply-adds for an image"),
        text(_LEFT, _BOTTOM + 16, f"{data['x'][0]:,}", "start", font_size=10),
        text(_RIGHT, _BOTTOM + 16, f"{data['x'][1]:,}", "end", font_size=10),
        text(_LEFT + 6, _TOP - 5, f"test accuracy; {scale}", "start", font_size=10),
    ]
    code = code_of(shown.genotype)
    edges, targets = [], []
    for number, ((source, target), column) in enumerate(zip(TABULAR_SPACE.edges, code, strict=True)):
        look = data["looks"][column]
        (x1, y1), (x2, y2) = _NODES[source], _NODES[target]
        edges.append(
            tag(
                "path",
                d=f"M{x1} {y1}L{x2} {y2}",
                stroke=look["colour"],
                stroke_width=look["width"],
                stroke_dasharray=look["dash"] or "none",
                class_="edge",
            )
        )
        # A finger doesn't meet a thin, dashed line; it meets this one.
        name = tag("title", f"{_edge_names()[number]}: {html.escape(look['name'])}")
        targets.append(tag("path", name, d=f"M{x1} {y1}L{x2} {y2}", class_="target"))
    parts.append(tag("g", "".join(edges), fill="none"))
    parts.append(tag("g", "".join(targets), fill="none", stroke="transparent", stroke_width="16"))
    for node in (2, 3):
        (x1, y1), (x2, y2) = _NODES[node], _OUTPUT
        parts.append(tag("path", d=f"M{x1} {y1}L{x2} {y2}", stroke=FAINT, stroke_width="1", class_="out"))
    x, y = _OUTPUT
    parts.append(tag("rect", x=x - 8, y=y - 26, width=16, height=52, rx=3, fill="#ececec", stroke=INK))
    for (x, y), name in zip(_NODES, _NAMES, strict=True):
        parts.append(tag("circle", cx=x, cy=y, r="15", fill="#f4f4f4", stroke=INK))
        short = {"before last": "k−2", "last": "k−1"}.get(name, name)
        parts.append(text(x, y + 4, short, font_size=11))
    for number, look in enumerate(data["looks"]):
        y = 250.0 + 13 * (number // 2)
        x = 14.0 + 150 * (number % 2)
        line = tag("path", d=f"M{x} {y}h26", stroke=look["colour"], stroke_width=look["width"],
                   stroke_dasharray=look["dash"] or "none")  # fmt: skip
        parts += [line, text(x + 32, y + 3.5, look["name"], "start", font_size=10)]
    return "".join(parts)


_CONTROL = "margin: 2px 8px 4px 2px; padding: 2px 4px; font: inherit; color: #1a1a1a; background: #f4f4f4"
_PAGE = """
<div class="nasbook-table" data-table="{key}" role="group" aria-label="The tabular benchmark"
     style="display: inline-block; max-width: 100%; background: white; color: {ink}; border-radius: 4px; padding: 4px;
            font-family: sans-serif; font-size: 13px">
<div>{menus}</div>
{picture}
<p data-part="words" aria-live="polite" style="margin: 4px 2px"></p>
<div data-part="near" style="max-width: 624px"></div>
<div{hidden}><label>replay <select disabled data-part="paths" style="{control}">{choices}</select></label>
<button disabled data-part="play" style="{control}">play</button>
<label>step <input disabled type="range" data-part="step" min="0" max="0" value="0"
 style="vertical-align: middle"></label>
<span data-part="at"></span></div>
</div>
<script>
(function () {{
  const t = {data};
  const rows = {{}};
  t.codes.forEach(function (code, row) {{ rows[code] = row; }});
  function canonical(code) {{
    if (code[4] !== "0") return code;
    const other = code[2] + code[3] + code[0] + code[1] + "0";
    return other < code ? other : code;
  }}
  function rowOf(code) {{ return rows[canonical(code)]; }}
  function percent(value) {{ return (value / 1000).toFixed(2) + " %"; }}
  function near(code) {{
    const found = [], own = rowOf(code);
    function add(changed, edge, column, turned) {{
      const row = rowOf(changed);
      if (row !== undefined && row !== own && !found.some(function (f) {{ return f.row === row; }}))
        found.push({{row: row, code: changed, edge: edge, column: column, turned: turned}});
    }}
    for (let edge = 0; edge < 5; edge++) for (let column = 0; column < t.looks.length; column++)
      add(code.slice(0, edge) + column + code.slice(edge + 1), edge, column, false);
    // The edge between the nodes can be added in either direction.
    if (code[4] === "0") for (let column = 1; column < t.looks.length; column++)
      add(code[2] + code[3] + code[0] + code[1] + column, 4, column, true);
    return found.sort(function (a, b) {{ return t.rank[a.row] - t.rank[b.row]; }});
  }}
  function place(row) {{
    const f = t.frame, w = Math.max(1, t.x[1] - t.x[0]), h = Math.max(1, t.y[1] - t.y[0]);
    return [f[0] + 8 + (t.macs[row] - t.x[0]) / w * (f[1] - f[0] - 16),
            f[3] - 6 - Math.max(0, (t.test[row] - t.y[0]) / h) * (f[3] - f[2] - 14)];
  }}
  document.querySelectorAll('.nasbook-table[data-table="{key}"]:not([data-ready])').forEach(function (box) {{
    box.dataset.ready = "yes";
    const svg = box.querySelector("svg"), edges = svg.querySelectorAll(".edge"), outs = svg.querySelectorAll(".out");
    const targets = svg.querySelectorAll(".target");
    const part = function (name) {{ return box.querySelector('[data-part="' + name + '"]'); }};
    const menus = box.querySelectorAll("[data-edge]");
    let code = t.codes[t.rank.indexOf(1)], timer = null;
    function paint() {{
      const row = rowOf(code), look = t.looks;
      edges.forEach(function (edge, number) {{
        const own = look[+code[number]];
        edge.setAttribute("stroke", own.colour);
        edge.setAttribute("stroke-width", own.width);
        edge.setAttribute("stroke-dasharray", own.dash || "none");
        targets[number].querySelector("title").textContent =
          menus[number].parentNode.firstChild.textContent.trim() + ": " + own.name;
        menus[number].value = own.name;
      }});
      const there = [code[0] + code[1] !== "00", code[2] + code[3] + code[4] !== "000"];
      outs.forEach(function (out, node) {{ out.setAttribute("visibility", there[node] ? "visible" : "hidden"); }});
      const at = place(row), ring = svg.querySelector(".ring");
      ring.setAttribute("cx", at[0]); ring.setAttribute("cy", at[1]);
      const beside = near(code), best = Math.max.apply(null, t.test);
      svg.querySelector(".near").innerHTML = beside.map(function (n) {{
        const p = place(n.row);
        return '<circle cx="' + p[0].toFixed(1) + '" cy="' + p[1].toFixed(1) + '" r="3.4" fill="#D55E00"/>';
      }}).join("");
      part("words").textContent = "Row " + row + ", rank " + t.rank[row] + " of " + t.codes.length +
        ": test accuracy " + percent(t.test[row]) + " ± " + percent(t.spread[row]) +
        " (mean and standard deviation of " + t.seeds + " trainings), regret " +
        ((best - t.test[row]) / 1000).toFixed(2) + " points; validation " +
        percent(t.validation[row]) + "; " + t.parameters[row].toLocaleString("en") + " parameters, " +
        t.macs[row].toLocaleString("en") + " multiply-adds." +
        (t.codes[row] === code ? "" : " The table keeps this graph with nodes 2 and 3 exchanged.");
      svg.setAttribute("aria-label", part("words").textContent);
      const list = part("near");
      const better = beside.filter(function (n) {{ return t.test[n.row] > t.test[row]; }}).length;
      list.textContent = beside.length + " neighbours, " + (better || "none") + " better: ";
      beside.forEach(function (n, number) {{
        const button = document.createElement("button"), gain = (t.test[n.row] - t.test[row]) / 1000;
        button.style.cssText = "{control}; font-size: 11px; margin: 1px";
        const name = n.turned ? "3 → 2" : menus[n.edge].parentNode.firstChild.textContent.trim();
        const change = name + ": " + look[n.column].name + (n.turned ? ", nodes exchanged" : "");
        button.textContent = (number ? "" : "best: ") + change + " " + (gain < 0 ? "−" : "+") +
          Math.abs(gain).toFixed(2) + " (rank " + t.rank[n.row] + ")";
        button.onclick = function () {{ stop(); go(n.code); list.querySelector("button").focus(); }};
        list.appendChild(button);
      }});
    }}
    function go(next) {{
      if (rowOf(next) === undefined) {{ paint(); part("words").textContent =
        "That is no cell: something must arrive, and node 3 can't read a node 2 that nothing enters."; return; }}
      code = next; paint();
    }}
    function changed(edge, column) {{ return code.slice(0, edge) + column + code.slice(edge + 1); }}
    menus.forEach(function (menu, edge) {{
      menu.disabled = false;
      menu.onchange = function () {{ stop(); go(changed(edge, menu.selectedIndex)); }};
    }});
    targets.forEach(function (line, edge) {{
      line.style.cursor = "pointer";
      line.onclick = function (event) {{
        event.stopPropagation(); stop();
        for (let more = 1; more < t.looks.length; more++) {{
          const next = changed(edge, (+code[edge] + more) % t.looks.length);
          if (rowOf(next) !== undefined) return go(next);
        }}
      }};
    }});
    svg.onclick = function (event) {{
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      if (point.x < t.frame[0]) return;
      let found = 0, least = Infinity;
      t.codes.forEach(function (_, row) {{
        const p = place(row), d = (p[0] - point.x) ** 2 + (p[1] - point.y) ** 2;
        if (d < least) {{ least = d; found = row; }}
      }});
      stop(); go(t.codes[found]);
    }};
    const paths = part("paths"), step = part("step"), play = part("play");
    function stop() {{ if (timer) clearInterval(timer); timer = null; play.textContent = "play"; }}
    function replay() {{
      const path = t.paths[paths.selectedIndex][1], at = +step.value;
      svg.querySelector(".trace").innerHTML = '<polyline fill="none" stroke="{ink}" stroke-width="1" opacity="0.55" ' +
        'points="' + path.slice(0, at + 1).map(function (row) {{ return place(row).map(function (v) {{
          return v.toFixed(1); }}).join(","); }}).join(" ") + '"/>';
      part("at").textContent = (at + 1) + " of " + path.length;
      go(t.codes[path[at]]);
    }}
    if (t.paths.length) {{
      [paths, step, play].forEach(function (control) {{ control.disabled = false; }});
      paths.onchange = function () {{
        stop(); step.max = t.paths[paths.selectedIndex][1].length - 1; step.value = 0; replay();
      }};
      step.max = t.paths[paths.selectedIndex][1].length - 1; step.value = 0;
      step.oninput = function () {{ stop(); replay(); }};
      play.onclick = function () {{
        if (timer) return stop();
        if (+step.value >= +step.max) step.value = 0;
        play.textContent = "stop"; replay();
        timer = setInterval(function () {{
          if (+step.value >= +step.max) return stop();
          step.value = +step.value + 1; replay();
        }}, 500);
      }};
    }}
    paint();
  }});
}})();
</script>
"""


def pick_cell(table: Table) -> Any:
    """Five menus, one an edge, above the drawing of the cell and its numbers, for a live kernel.

    :func:`explore_table` does the same on any page.

    Returns:
        An ``ipywidgets`` box; its children are the menus and the picture.

    Raises:
        InvalidInput: ``ipywidgets`` is not installed.
    """
    try:
        import ipywidgets as widgets
    except ModuleNotFoundError:
        raise InvalidInput(
            "The menus need ipywidgets, which is not installed. Run: pip install 'nasbook[widgets]'. "
            "explore_table shows the same without it."
        ) from None
    from nasbook.tabular import genotype_of

    names = list(TABULAR_SPACE.operations)
    best = code_of(table.best.genotype)
    menus = [
        widgets.Dropdown(options=[(name, column) for column, name in enumerate(names)], value=column, description=edge)
        for edge, column in zip(_edge_names(), best, strict=True)
    ]
    shown = widgets.HTML()

    def redraw(change: object = None) -> None:
        try:
            genotype = genotype_of(tuple(menu.value for menu in menus))
        except InvalidInput as error:
            shown.value = html.escape(str(error))
            return
        entry = table[genotype]
        words = (
            f"Rank {entry.rank} of {len(table)}: test accuracy {100 * entry.test_accuracy:.2f} ± "
            f"{100 * entry.spread:.2f} %, {entry.parameters:,} parameters, {entry.macs:,} multiply-adds."
        )
        drawing: Figure = draw_cell(genotype["reduction"])
        shown.value = describe(drawing, words, dpi=100).data + f"<p>{html.escape(words)}</p>"

    for menu in menus:
        menu.observe(redraw, names="value")
    redraw()
    return widgets.VBox([*menus, shown])
