from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, CellGenotype, Edge, Genotype, Space
from nasbook.operations import CONSTRAINTS, Configuration, obtainable
from nasbook.plots import (
    animate_pools,
    browse_family_trees,
    cycles_in_words,
    draw_cell,
    draw_family_tree,
    explore_family_trees,
    family_tree_in_words,
    operation_label,
    operation_styles,
    plot_cycles,
    show_animation,
)
from nasbook.plots.pool_explorer import edge_names
from nasbook.plots.pool_film import _stayed
from nasbook.plots.pools import THICKEST, family_tree
from nasbook.supernets import Life, Pool, mean_similarity, operation_mix

MAX, AVERAGE, SKIP, START = "max_pool_3x3", "avg_pool_3x3", "skip_connect", Configuration(3).name
INITIAL = (MAX, AVERAGE, SKIP, START)
FIVE, STACKED = Configuration(5).name, Configuration(3, 1, (1,)).name
MORPHISMS, LEFT = (3, 3, 3, 3, 3, 0, 0, 0, 0), (6, 6, 6, 6, 6, 4, 3, 2, 1)  # Table 1
SPACES = {
    name: [configuration.name for step in obtainable(constraints) for configuration in sorted(step)]
    for name, constraints in CONSTRAINTS.items()
}
SMALL = Space(INITIAL, nodes=2)

Families = dict[str, tuple[Pool, ...]]


@dataclass(frozen=True)
class Report:
    """What figures read of an epoch of PR-DARTS."""

    epoch: int
    cycle: int
    grace: bool
    train_accuracy: float
    validation_accuracy: float
    batch_size: float
    seconds: float
    softmax: dict[str, list[dict[str, float]]]
    genotype: Genotype

    @property
    def pools(self) -> dict[str, list[tuple[str, ...]]]:
        return {kind: [tuple(edge) for edge in edges] for kind, edges in self.softmax.items()}

    def weights(self, kind: str) -> list[dict[str, float]]:
        return self.softmax[kind]


def run(space: Space = SMALL, seed: int = 0, epochs: int = 2, name: str = "UR") -> tuple[list[Report], Families]:
    """A whole search with random weights: α is frozen in the first epoch of every cycle."""
    generator = torch.Generator().manual_seed(seed)
    families: Families = {kind: tuple(Pool.of(INITIAL) for _ in space.edges) for kind in space.kinds}
    history: list[Report] = []
    for cycle, (children, left) in enumerate(zip(MORPHISMS, LEFT, strict=True), start=1):
        softmax: dict[str, list[dict[str, float]]] = {}
        for place in range(epochs):
            for kind, pools in families.items():
                softmax[kind] = []
                for pool in pools:
                    alpha = torch.randn(len(pool.operations), generator=generator) * (0.4 if place else 0.0)
                    softmax[kind].append(dict(zip(pool.operations, alpha.softmax(0).tolist(), strict=True)))
            cells = {kind: derived(edges, space) for kind, edges in softmax.items()}
            number = len(history) + 1
            history.append(Report(number, cycle, place == 0, number / 50, number / 60, 64 - 2.5 * cycle, 1.5 * cycle,
                                  dict(softmax), Genotype(cells)))  # fmt: skip
        families = {
            kind: tuple(
                pool.weighed(weights)
                .pruned(left - children, cycle, keep_convolution=cycle < 9)
                .replaced(children, cycle, CONSTRAINTS[name], generator)
                for pool, weights in zip(pools, softmax[kind], strict=True)
            )
            for kind, pools in families.items()
        }
    return history, families


def derived(edges: list[dict[str, float]], space: Space) -> CellGenotype:
    best = {pair: max(weights, key=weights.__getitem__) for pair, weights in zip(space.edges, edges, strict=True)}
    kept = [pair for pair in space.edges if pair[0] in (0, pair[1] - 1)]
    return CellGenotype(tuple(Edge(*pair, best[pair]) for pair in kept), space.nodes, space.inputs)


HISTORY, FAMILIES = run()
POOL = FAMILIES["normal"][0]


def texts(figure: Figure) -> dict[str, Any]:
    return {str(text.get_gid()): text for ax in figure.axes for text in ax.texts if text.get_gid()}


def overlaps(figure: Figure, prefixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of labels whose boxes share more than half a pixel, and labels that leave the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for name, text in texts(figure).items()
             if name.startswith(prefixes)]  # fmt: skip
    found = [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    page = figure.bbox
    found += [(name, "edge of the page") for name, box in boxes if box.x0 < page.x0 or box.x1 > page.x1]
    return found


# --- names and looks of configurations --------------------------------------------------------------------------------


def test_labels_of_configurations() -> None:
    assert operation_label(START) == "conv 3×3 []"
    assert operation_label("sep_conv(kernel=5, dilation=1, expansions=2-1)") == "conv 5×5 [2,1]"
    assert operation_label("sep_conv(kernel=7, dilation=2, expansions=3-2-1-1)") == "conv 7×7 d2 [3,2,1,1]"
    assert operation_label("sep_conv(kernel=7)") == "sep_conv(kernel=7)"
    every = sorted({name for names in SPACES.values() for name in names})
    assert len({operation_label(name) for name in [*every, "conv_3x3", "sep_conv_3x3"]}) == len(every) + 2


def test_configurations_look_the_same_in_every_figure() -> None:
    every = operation_styles(SPACES["UR"])
    assert operation_styles(["other", *reversed(SPACES["DL"]), "tanh"]).items() >= {
        (name, every[name]) for name in SPACES["DL"]
    }
    assert len({(every[name].colour, str(every[name].dashes)) for name in SPACES["DL"]}) == 12
    for a, b in itertools.combinations(SPACES["UR"], 2):
        one, other = Configuration.parse(a), Configuration.parse(b)
        assert (every[a].colour == every[b].colour) == (one.kernel == other.kernel)
        if one.dilation != other.dilation:
            assert every[a].dashes != every[b].dashes
        if len(one.expansions) != len(other.expansions):
            assert every[a].marker != every[b].marker
    plain = operation_styles(["new", START])
    assert plain["new"].colour != plain[START].colour


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from([MAX, SKIP, *SPACES["UR"]]), min_size=8, max_size=8), st.integers(0, 3))
def test_cells_of_deep_convolutions_are_legible(names: list[str], shape: int) -> None:
    pairs = [(0, 2), (1, 2), (shape % 2, 3), (2, 3), (shape // 2, 4), (3, 4), (4 - shape % 3, 5), (0, 5)]
    cell = CellGenotype(tuple(Edge(*pair, name) for pair, name in zip(pairs, names, strict=True)))
    figure = draw_cell(cell)
    assert overlaps(figure, ("operation-",)) == []
    assert sum(name.startswith("operation-") for name in texts(figure)) == 8


# --- family trees -----------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(SPACES)))
def test_no_branch_crosses_a_lane_or_a_name(seed: int, name: str) -> None:
    _, families = run(Space(INITIAL, nodes=1), seed, 1, name)
    for pool in itertools.chain(*families.values()):
        tree = family_tree(pool)
        assert sorted(lane.row for lane in tree.lanes) == list(range(len(pool.lives)))
        assert tree.cycles == 9
        for lane in tree.lanes:
            if lane.parent is None:
                continue
            parent = tree.lanes[lane.parent]
            assert parent.row < lane.row
            assert parent.born < lane.born <= parent.end
            between = [other for other in tree.lanes if parent.row < other.row < lane.row]
            # A lane with its name takes the place from its birth on. Those between the two begin here or later.
            assert all(other.born >= lane.born for other in between)


def test_the_survivor_and_its_ancestors() -> None:
    for pool in itertools.chain(*FAMILIES.values()):
        tree = family_tree(pool)
        (survivor,) = [lane for lane in tree.lanes if lane.survivor]
        assert survivor.operation == pool.operations[0] and not survivor.died and survivor.end == 9
        (life,) = pool.living
        line = [life]
        while life.parent is not None:
            before = [other for other in pool.lives if other.operation == life.parent and other.born < life.born]
            life = before[-1]
            line.append(life)
        assert [lane for lane in tree.lanes if lane.ancestor] == [tree.lanes[pool.lives.index(x)] for x in line[::-1]]


def test_a_configuration_that_came_back() -> None:
    lives = (
        Life(START, 1, weights=(0.6, 0.2), died=2),
        Life(SKIP, 1, weights=(0.4,), died=1),
        Life(FIVE, 2, START, "larger-kernel", (0.8, 0.5)),
        Life(START, 3, FIVE, "smaller-kernel", (0.5, 0.1), 4),
        Life(STACKED, 4, START, "deeper"),
    )
    tree = family_tree(Pool(lives))
    assert [lane.parent for lane in tree.lanes] == [None, None, 0, 2, 3]
    assert [lane.row for lane in tree.lanes] == [0, 4, 1, 2, 3]
    assert [lane.label for lane in tree.lanes][3] == "conv 3×3 [] again"
    assert tree.cycles == 4 and not any(lane.survivor or lane.ancestor for lane in tree.lanes)  # two are left
    assert family_tree_in_words(Pool(lives)) == (
        "A family tree over 4 cycles: 2 candidates in the beginning, 3 born later. "
        "conv 3×3 [] is there from cycle 1 on and pruned after cycle 2, with weights 0.60, 0.20. "
        "skip is there from cycle 1 on and pruned after cycle 1, with weight 0.40. "
        "conv 5×5 [] is born for cycle 2 from conv 3×3 [] (larger kernel) and still there, with weights 0.80, 0.50. "
        "conv 3×3 [] again is born for cycle 3 from conv 5×5 [] (smaller kernel) and pruned after cycle 4, "
        "with weights 0.50, 0.10. "
        "conv 3×3 [1] is born for cycle 4 from conv 3×3 [] again (deeper) and still there."
    )


def test_descent_in_words() -> None:
    child = Life(FIVE, 2, START, "larger-kernel", (0.9,))
    pool = Pool((Life(START, 1, weights=(1.0, 0.1), died=2), child))
    assert "Left in the end is conv 5×5 [], by way of conv 3×3 [], larger kernel. " in family_tree_in_words(pool)
    alone = family_tree_in_words(Pool((Life(SKIP, 1, weights=(1.0,)),)))
    assert alone.startswith("A family tree over 1 cycle: 1 candidate in the beginning, 0 born later. ")
    assert "Left in the end is skip, which was there from the beginning. " in alone


def test_a_tree_is_drawn_whole() -> None:
    figure = draw_family_tree(POOL, title="an edge")
    tree, (ax,), found = family_tree(POOL), figure.axes, texts(figure)
    assert len(tree.lanes) == 19
    assert overlaps(figure, ("name-", "weight-")) == []
    assert overlaps(figure, ("morphism-",)) == []
    assert min(float(text.get_fontsize()) for text in found.values()) >= 6.4
    lanes = {str(patch.get_gid()): patch for patch in ax.patches if isinstance(patch, Polygon)}
    marks = {str(line.get_gid()): line for line in ax.lines}
    for number, lane in enumerate(tree.lanes):
        corners = np.asarray(lanes[f"lane-{number}"].get_xy())
        for place, weight in enumerate(lane.weights):
            inside = corners[np.abs(corners[:, 0] - lane.born + 0.5 - place) < 0.6]
            wanted = max(0.05, THICKEST * weight / tree.heaviest) / 2
            assert np.isclose(np.abs(inside[:, 1] - lane.row), wanted).sum() >= 4
        name = found[f"name-{number}"]
        assert name.get_text() == lane.label
        assert (name.get_fontweight() == "bold") == lane.survivor
        assert found[f"weight-{number}"].get_text() == f"{lane.weights[-1]:.2f}"
        assert marks[f"end-{number}"].get_marker() == ("*" if lane.survivor else "x")
        if lane.parent is not None:
            assert found[f"morphism-{number}"].get_text() == lane.morphism
            branch = marks[f"branch-{number}"]
            assert list(branch.get_xdata()) == [lane.born - 1] * 2
            assert list(branch.get_ydata()) == [tree.lanes[lane.parent].row, lane.row]
    assert sum(name.startswith("branch-") for name in marks) == 15
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(n) for n in range(1, 10)]


def test_a_search_under_way() -> None:
    child = Life(FIVE, 2, START, "larger-kernel")
    figure = draw_family_tree(Pool((Life(START, 1, weights=(0.7,)), Life(SKIP, 1, weights=(0.3,), died=1), child)))
    names = [str(line.get_gid()) for line in figure.axes[0].lines]
    assert {"under-way-0", "under-way-2"} <= set(names) and "under-way-1" not in names
    assert sum(name.startswith("end-") for name in names) == 1
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [  # type: ignore[union-attr]
        "weight 0.5", "weight 0.25", "this cycle", "pruned, with its last weight"]  # fmt: skip
    begun = draw_family_tree(Pool.of(INITIAL), ax=Figure().subplots())
    assert not any(isinstance(patch, Polygon) for patch in begun.axes[0].patches)


def test_trees_that_are_none() -> None:
    with pytest.raises(InvalidInput, match="at least one candidate"):
        draw_family_tree(Pool(()))
    orphan = Life(FIVE, 2, STACKED, "larger-kernel", (1.0,))
    with pytest.raises(InvalidInput, match="which does not stand there then"):
        family_tree(Pool((Life(START, 1, weights=(1.0, 0.5)), orphan)))
    with pytest.raises(InvalidInput, match="which does not stand there then"):  # died before
        family_tree(Pool((Life(STACKED, 1, weights=(1.0,), died=1), orphan)))


# --- menus ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


def trees_of(page: str) -> list[list[dict[str, Any]]]:
    (written,) = re.findall(r"const trees = (.*);\n", page)
    found: list[list[dict[str, Any]]] = json.loads(written)
    return found


def test_the_menu_has_every_tree() -> None:
    described = browse_family_trees(FAMILIES, space=SMALL, edge=(1, 3))
    assert described.alt == f"The normal cell, edge c(k−1) → 3. {family_tree_in_words(FAMILIES['normal'][3])}"
    page = Page(described.data)
    (svg,) = page.of("svg")
    assert svg["aria-label"] == described.alt
    assert len(page.of("option")) == 2 + 5 and all("disabled" in menu for menu in page.of("select"))
    assert "src" not in described.data and "href" not in described.data  # nothing from elsewhere
    trees = trees_of(described.data)
    for kind, pools in zip(trees, FAMILIES.values(), strict=True):
        for tree, pool in zip(kind, pools, strict=True):
            lives = re.findall("<title>(.*?)</title>", tree["drawing"])
            where = tree["words"].index("A family")
            assert " ".join([tree["words"][where:], *lives]) == family_tree_in_words(pool)
            assert tree["drawing"].count("<title>") == len(pool.lives)
    assert trees[0][3]["drawing"] in described.data[: described.data.index("<script>")]
    assert browse_family_trees(FAMILIES, space=SMALL).alt.startswith("The normal cell, edge c(k−2) → 2. ")


def test_all_trees_of_two_darts_cells_stay_small() -> None:
    _, families = run(replace(DARTS_SPACE, operations=INITIAL), epochs=1)
    assert len(browse_family_trees(families).data) < 330_000


_MENU = """
const menu = { dataset: {}, isConnected: true };
const svg = { querySelectorAll: function () { return [{ textContent: "a life" }]; },
              setAttribute: function (name, value) { this[name] = value; } };
const chosen = [{ selectedIndex: 0 }, { selectedIndex: 0 }];
menu.querySelector = function () { return svg; };
menu.querySelectorAll = function () { return chosen; };
globalThis.document = { querySelectorAll: function () { return [menu]; } };
SCRIPT
const enabled = chosen.map(function (one) { return one.disabled; });
chosen[0].selectedIndex = 1; chosen[1].selectedIndex = 2; chosen[1].onchange();
console.log(JSON.stringify([enabled, svg.innerHTML, svg["aria-label"], svg.viewBox, svg.height]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_the_menu_shows_what_is_chosen() -> None:
    page = browse_family_trees(FAMILIES, space=SMALL).data
    (script,) = re.findall(r"<script>(.*)</script>", page, re.S)
    result = subprocess.run(["node", "-"], input=_MENU.replace("SCRIPT", script), capture_output=True, text=True,
                            timeout=60, check=True)  # fmt: skip
    enabled, drawing, words, box, height = json.loads(result.stdout)
    tree = trees_of(page)[1][2]
    assert enabled == [False, False]
    assert (drawing, words) == (tree["drawing"], tree["words"] + " a life")
    assert (box, height) == (f"0 0 624 {tree['height']}", tree["height"])


def test_the_explorer_redraws_what_is_chosen() -> None:
    pytest.importorskip("ipywidgets")
    controls, picture = explore_family_trees(FAMILIES, space=SMALL).children
    cell, edge = controls.children
    assert list(cell.options) == ["normal", "reduction"] and list(edge.options) == edge_names(SMALL)
    edge.value = "2 → 3"
    cell.value = "reduction"
    (image,) = Page(picture.value).of("img")
    assert image["alt"] == f"The reduction cell, edge 2 → 3. {family_tree_in_words(FAMILIES['reduction'][4])}"


def test_menus_of_other_families_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for explore in (browse_family_trees, explore_family_trees):
        with pytest.raises(InvalidInput, match="expected 14 pools"):
            explore(FAMILIES)
        with pytest.raises(InvalidInput, match="at least one kind of cell"):
            explore({}, space=SMALL)
    with pytest.raises(InvalidInput, match=r"\(0, 1\) is not an edge"):
        browse_family_trees(FAMILIES, space=SMALL, edge=(0, 1))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InvalidInput, match="pip install 'nasbook"):
        explore_family_trees(FAMILIES, space=SMALL)


def test_names_of_edges() -> None:
    assert edge_names(SMALL) == ["c(k−2) → 2", "c(k−1) → 2", "c(k−2) → 3", "c(k−1) → 3", "2 → 3"]
    assert edge_names(Space(INITIAL, nodes=2, inputs=1)) == ["c(k−1) → 1", "c(k−1) → 2", "1 → 2"]


# --- Fig. 2 -----------------------------------------------------------------------------------------------------------


def test_fig_2_shows_what_the_reports_say() -> None:
    figure = plot_cycles(HISTORY)
    accuracy, batch, seconds, normal, reduction, similar = figure.axes
    curves = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    assert list(curves["training"]) == pytest.approx([100 * report.train_accuracy for report in HISTORY])
    assert list(curves["validation"]) == pytest.approx([100 * report.validation_accuracy for report in HISTORY])
    assert list(batch.lines[-1].get_ydata()) == [report.batch_size for report in HISTORY]
    assert list(seconds.lines[-1].get_ydata()) == [report.seconds for report in HISTORY]
    curves = {line.get_label(): line.get_ydata() for line in similar.lines}
    for kind, ax in (("normal", normal), ("reduction", reduction)):
        assert list(curves[kind]) == pytest.approx([mean_similarity(report.pools[kind]) for report in HISTORY])
        for name in ("pool", "identity", "convolution"):
            parts = [patch for patch in ax.patches if patch.get_gid() == f"share-{name}"]
            assert [part.get_height() for part in parts] == pytest.approx(
                [100 * operation_mix(report.pools[kind])[name] for report in HISTORY]
            )
    for ax in figure.axes:
        borders = [line.get_xdata()[0] for line in ax.lines if str(line.get_gid()).startswith("border-")]
        assert borders == [2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5, 16.5]
        grace = [patch.get_x() for patch in ax.patches if str(patch.get_gid()).startswith("grace-")]
        assert grace == [first - 0.5 for first in range(1, 19, 2)]
    assert [texts(figure)[f"cycle-{n}"].get_text() for n in range(1, 10)] == [str(n) for n in range(1, 10)]


def test_fig_2_of_one_cell_without_grace_in_words() -> None:
    history = [replace(report, grace=False, batch_size=64.0) for report in HISTORY[:3]]
    figure = plot_cycles(history, ["reduction"])
    assert len(figure.axes) == 5
    assert not any(str(patch.get_gid()).startswith("grace-") for ax in figure.axes for patch in ax.patches)
    words = cycles_in_words(history, ["reduction"])
    assert words.startswith(
        "Curves over 3 epochs in 2 cycles. Validation accuracy goes from 2 % to 5 %, training accuracy from 2 % to 6 %."
        " A step has 64 images. In the reduction cell, poolings from 50 % to "
    )
    assert "their similarity goes from 0.11 to " in words
    assert "A step has from 42 to 62 images." in cycles_in_words(HISTORY)
    for draw in (plot_cycles, cycles_in_words):
        with pytest.raises(InvalidInput, match="history is empty"):
            draw([])
        with pytest.raises(InvalidInput, match="Unknown kind of cell 'recurrent'"):
            draw(history, ["recurrent"])


# --- the film ---------------------------------------------------------------------------------------------------------

_STAGE = """
const film = FILM, slider = { setAttribute: function () {} };
function element(name) {
  return { class: name, style: {}, setAttribute: function (key, value) { this[key] = value; }, children: {},
           querySelectorAll: function (key) { return this.children[key] || []; } };
}
function part() {
  const made = element("part");
  ["box", "name", "strike", "words"].forEach(function (key) { made.children["." + key] = [element(key)]; });
  return made;
}
const bars = film.frames[0].map(function () {
  const row = element("row");
  row.children[".part"] = Array.from({ length: SLOTS }, part);
  return row;
});
const player = element("player");
player.children = { ".row": bars, ".heading": [element("heading")], ".now": [element("now")] };
PAINT
console.log(JSON.stringify(film.frames.map(function (_, frame) {
  paint(frame);
  return { heading: player.children[".heading"][0].textContent, rows: bars.map(function (row) {
    return { opacity: row.opacity, parts: row.children[".part"].map(function (p) {
      const box = p.children[".box"][0];
      return { there: p.style.display !== "none", words: p.children[".words"][0].textContent,
               width: box.width, x: box.x, name: p.children[".name"][0].textContent,
               struck: p.children[".strike"][0].style.display !== "none" };
    }) };
  }) };
})));
"""


def test_who_stayed_and_who_came_back() -> None:
    assert _stayed("abcdef", "acexyz") == set("ace")
    assert _stayed("abcdef", "abcxdy") == set("abc")  # d was pruned and is the second child
    assert _stayed("abcdef", "bdfax") == set("bdf")  # so is a
    assert _stayed("abcdef", "f") == {"f"}
    assert _stayed("ab", "xy") == set()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the film's script")
def test_the_script_shows_what_the_reports_say() -> None:
    film = animate_pools(HISTORY, space=SMALL)
    program = _STAGE.replace("FILM", film.data).replace("PAINT", film.paint).replace("SLOTS", "6")
    result = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    *shown, end = json.loads(result.stdout)
    assert len(shown) + 1 == film.frames == 19
    lives = {kind: [pool.lives for pool in pools] for kind, pools in FAMILIES.items()}
    for report, frame in zip(HISTORY, shown, strict=True):
        rows = iter(frame["rows"])
        last = not report.grace  # two epochs a cycle
        for kind in ("normal", "reduction"):
            for edge, weights in enumerate(report.weights(kind)):
                row = next(rows)
                parts = [part for part in row["parts"] if part["there"]]
                assert row["opacity"] == 1 and len(parts) == len(weights)
                for part, (name, weight) in zip(parts, weights.items(), strict=True):
                    life = [x for x in lives[kind][edge] if x.operation == name and x.born <= report.cycle][-1]
                    born = life.born == report.cycle > 1
                    dying = last and life.died == report.cycle and report.epoch < 18  # after 18 nobody knows yet
                    assert part["words"] == f"{operation_label(name)}, weight {round(1000 * weight) / 1000:.3f}" + (
                        ", born for this cycle" * born + ", pruned after this epoch" * dying
                    )
                    assert part["struck"] == dying
                    assert part["name"] in ("", *(f"{'+ ' * born}{label}" for label in short(name)))
                assert sum(part["width"] + 2 for part in parts) == pytest.approx(624 - 8 - parts[0]["x"], abs=2)
        assert frame["heading"].startswith(f"epoch {report.epoch} of 18, cycle {report.cycle}: ")
    rows = iter(end["rows"])
    for kind in ("normal", "reduction"):
        kept = {(edge.source, edge.target): edge.operation for edge in HISTORY[-1].genotype[kind].edges}
        for pair in SMALL.edges:
            row = next(rows)
            (part,) = [part for part in row["parts"] if part["there"]]
            assert (row["opacity"] == 1) == (pair in kept)
            if pair in kept:
                assert part["name"] == operation_label(kept[pair])
    assert end["heading"] == "The derived cells, after epoch 18"


def short(name: str) -> tuple[str, str]:
    label = operation_label(name)
    return label, label.removeprefix("conv ") if label.startswith("conv") else label.split(" ")[0]


def test_the_picture_is_the_frame_that_the_script_begins_with() -> None:
    film = animate_pools(HISTORY, ["normal"], space=SMALL)
    report = HISTORY[film.still]
    assert (report.cycle, report.grace) == (5, False)
    assert "epoch 10 of 18, cycle 5: what is struck out is pruned" in film.picture
    drawn = re.findall(r'<title class="words">(.*?)</title>', film.picture)
    weights = [w for edge in report.weights("normal") for w in edge.items()]
    assert [words.split(", ")[:2] for words in drawn] == [
        [operation_label(name), f"weight {round(1000 * weight) / 1000:.3f}"] for name, weight in weights
    ]
    assert "normal cell" in film.picture and "reduction" not in film.picture
    described = show_animation(film, 'Pools "change", <all> of them.')
    assert 'aria-label="Pools &quot;change&quot;, &lt;all&gt; of them."' in described.data


def test_a_long_film_of_two_darts_cells_stays_small() -> None:
    history, _ = run(replace(DARTS_SPACE, operations=INITIAL), epochs=11)
    film = animate_pools(history)
    assert film.frames == 61
    headings = json.loads(film.data)["headings"]
    for cycle in range(1, 9):
        assert f"epoch {11 * cycle} of 99, cycle {cycle}: what is struck out is pruned" in headings
        assert f"epoch {11 * cycle + 1} of 99, cycle {cycle + 1}: α is frozen" in headings
    assert len(show_animation(film, "All pools.").data) < 300_000
    assert animate_pools(history, frames=5).frames == 6


def test_films_of_other_histories_are_refused() -> None:
    with pytest.raises(InvalidInput, match="history is empty"):
        animate_pools([], space=SMALL)
    with pytest.raises(InvalidInput, match="expected 14 pools, one an edge of the space, got 5"):
        animate_pools(HISTORY)
    with pytest.raises(InvalidInput, match="Unknown kind of cell 'recurrent'"):
        animate_pools(HISTORY, ["recurrent"], space=SMALL)
    with pytest.raises(InvalidInput, match="frames"):
        animate_pools(HISTORY, space=SMALL, frames=0)
