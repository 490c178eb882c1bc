"""Pools that change (PR-DARTS, Chapter 5): an edge's family tree, and a search over its cycles as in Fig. 2.

A lane of a tree is one candidate from birth to death. Children stand below their parent, the youngest next to it, so
that no branch crosses a lane. The tree of any edge is in :mod:`nasbook.plots.pool_explorer`, the film of all edges in
:mod:`nasbook.plots.pool_film`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import MaxNLocator

from nasbook.errors import InvalidInput, unknown_name
from nasbook.genotypes import Genotype
from nasbook.plots.cells import figure_of, text_size
from nasbook.plots.curves import label_ends
from nasbook.plots.palette import (
    INK,
    LINE_COLOURS,
    MARKERS,
    OKABE_ITO,
    PAGE_WIDTH,
    operation_label,
    operation_styles,
    styled,
    tint,
)

QUIET = "#5a5a5a"
"""Text that is not the point: weights, morphisms, ticks."""
BRANCH = "#9a9a9a"
"""Branches that don't lead to the survivor."""
UNDER_WAY = (0, (2.5, 1.5))
"""Line style of a cycle whose weights are not known yet."""
GRACE = "#e9e9e9"
"""Background of the epochs in which α is frozen."""
THICKEST, THINNEST = 0.56, 0.05
"""Thickness of a lane as a part of the distance of two lanes: at the greatest weight, and at least."""
_PITCH = 0.285
"""Distance of two lanes in inches."""
_NAME, _WEIGHT, _MORPHISM = 7.6, 6.6, 6.4
"""Type sizes in points."""
_LEFT, _BEYOND = 0.12, 0.11
"""Inches left of the first cycle, and from a lane's end to its name."""


@runtime_checkable
class Life(Protocol):
    """What a tree needs to know of one candidate: :class:`nasbook.supernets.Life`."""

    @property
    def operation(self) -> str:
        """Its name."""

    @property
    def born(self) -> int:
        """The first cycle that it trains in."""

    @property
    def parent(self) -> str | None:
        """Which candidate it was morphed from."""

    @property
    def morphism(self) -> str | None:
        """By which morphism."""

    @property
    def weights(self) -> Sequence[float]:
        """Its weight at the end of every cycle that it lived through."""

    @property
    def died(self) -> int | None:
        """The cycle at whose end it was pruned."""


@runtime_checkable
class Family(Protocol):
    """All candidates that ever stood on one edge: :class:`nasbook.supernets.Pool`."""

    @property
    def lives(self) -> Sequence[Any]:
        """Each a :class:`Life`, in the order of birth."""


@runtime_checkable
class CycleEpoch(Protocol):
    """The part of an epoch report that figures of PR-DARTS read."""

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 1."""

    @property
    def cycle(self) -> int:
        """Number of the cycle, from 1."""

    @property
    def grace(self) -> bool:
        """Whether α was frozen."""

    @property
    def train_accuracy(self) -> float:
        """Share of training images that are right, 0..1."""

    @property
    def validation_accuracy(self) -> float:
        """The same of validation images."""

    @property
    def batch_size(self) -> float:
        """Images a step, the mean over the epoch's steps."""

    @property
    def seconds(self) -> float:
        """How long the epoch took."""

    @property
    def pools(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """For every kind of cell the names of the candidates of every edge."""

    @property
    def genotype(self) -> Genotype:
        """What the search would answer after this epoch."""

    def weights(self, kind: str) -> Sequence[Mapping[str, float]]:
        """For every edge of a kind of cell, the softmax weight of each of its candidates."""


# --- one edge's family tree -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lane:
    """One candidate in the tree."""

    operation: str
    """Its name."""
    label: str
    """What to write for it; says "again" where the configuration was there before."""
    row: int
    """0 for the uppermost lane."""
    born: int
    """Its first cycle."""
    end: int
    """Its last cycle so far."""
    weights: tuple[float, ...]
    """At the end of its cycles; one less than it has cycles while the last one is under way."""
    died: bool
    """Whether it was pruned."""
    parent: int | None
    """Which lane it branches off from, by its place among all lanes."""
    morphism: str
    """By which morphism, for readers; empty for a candidate of the beginning."""
    survivor: bool
    """Whether it is the only one that is left."""
    ancestor: bool
    """Whether it is the survivor, or the survivor descends from it."""

    @property
    def known(self) -> int:
        """The last cycle of which its weight is known; the one before its first where there is none."""
        return self.born - 1 + len(self.weights)


@dataclass(frozen=True)
class FamilyTree:
    """The lanes of one edge, in the order of birth."""

    lanes: tuple[Lane, ...]
    cycles: int
    """How many cycles there have been, the current one included."""

    @property
    def heaviest(self) -> float:
        """The greatest weight."""
        return max((weight for lane in self.lanes for weight in lane.weights), default=1.0)

    def thickness(self, weight: float) -> float:
        """Of a lane with this weight, in distances of two lanes."""
        return max(THINNEST, THICKEST * weight / self.heaviest)


def family_tree(pool: Family) -> FamilyTree:
    """Where every candidate of an edge stands in its tree.

    Raises:
        InvalidInput: there is no candidate, or a parent was not there when its child was born.
    """
    lives: Sequence[Life] = pool.lives
    if not lives:
        raise InvalidInput("pool: expected a pool with at least one candidate, got an empty one.")
    parents = [_parent(lives, place) for place in range(len(lives))]
    cycles = max(life.died or max(life.born, life.born + len(life.weights) - 1) for life in lives)
    rows: list[int] = []

    def place_below(number: int) -> None:
        rows.append(number)
        children = [child for child, parent in enumerate(parents) if parent == number]
        for child in sorted(children, key=lambda child: -lives[child].born):
            place_below(child)

    for number, parent in enumerate(parents):
        if parent is None:
            place_below(number)
    living = [number for number, life in enumerate(lives) if life.died is None]
    survivor = living[0] if len(living) == 1 else None
    line: set[int] = set()
    ancestor = survivor
    while ancestor is not None:
        line.add(ancestor)
        ancestor = parents[ancestor]
    names = [life.operation for life in lives]
    lanes = [
        Lane(
            operation=life.operation,
            label=operation_label(life.operation) + (" again" if life.operation in names[:number] else ""),
            row=rows.index(number),
            born=life.born,
            end=life.died or cycles,
            weights=tuple(life.weights),
            died=life.died is not None,
            parent=parents[number],
            morphism=(life.morphism or "").replace("-", " "),
            survivor=number == survivor,
            ancestor=number in line,
        )
        for number, life in enumerate(lives)
    ]
    return FamilyTree(tuple(lanes), cycles)


def _parent(lives: Sequence[Life], place: int) -> int | None:
    """Which earlier life is the parent of this one."""
    life = lives[place]
    if life.parent is None:
        return None
    for number in reversed(range(place)):
        other = lives[number]
        if other.operation == life.parent and other.born < life.born and (other.died or life.born) >= life.born:
            return number
    raise InvalidInput(
        f"pool: {life.operation!r} is born for cycle {life.born} from {life.parent!r}, which does not stand there then."
    )


def life_in_words(tree: FamilyTree, number: int) -> str:
    """One candidate's life as a sentence."""
    lane = tree.lanes[number]
    if lane.parent is None:
        words = f"{lane.label} is there from cycle {lane.born} on"
    else:
        words = f"{lane.label} is born for cycle {lane.born} from {tree.lanes[lane.parent].label} ({lane.morphism})"
    if lane.died:
        words += f" and pruned after cycle {lane.end}"
    elif lane.survivor:
        words += " and is left in the end"
    else:
        words += " and still there"
    if lane.weights:
        several = len(lane.weights) > 1
        values = [_weight(weight) for weight in lane.weights]
        words += f", with weight{'s' if several else ''} {', '.join(values)}"
    return words + "."


def family_tree_in_words(pool: Family) -> str:
    """The tree as sentences, for alt texts: what is left and where it comes from, then every candidate's life."""
    tree = family_tree(pool)
    return " ".join([descent_in_words(tree), *(life_in_words(tree, number) for number in range(len(tree.lanes)))])


def descent_in_words(tree: FamilyTree) -> str:
    """How many candidates there were, what is left, and where it comes from."""
    lanes = tree.lanes
    first = sum(lane.parent is None for lane in lanes)
    cycles, candidates = _counted(tree.cycles, "cycle"), _counted(first, "candidate")
    summary = f"A family tree over {cycles}: {candidates} in the beginning, {len(lanes) - first} born later."
    survivor = next((lane for lane in lanes if lane.survivor), None)
    if survivor is not None:
        steps, lane = [], survivor
        while lane.parent is not None:
            lane, morphism = lanes[lane.parent], lane.morphism
            steps.append(f"{lane.label}, {morphism}")
        descent = f", by way of {', '.join(reversed(steps))}" if steps else ", which was there from the beginning"
        summary += f" Left in the end is {survivor.label}{descent}."
    return summary


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"


def _weight(weight: float) -> str:
    return f"{weight:.2f}"


def lane_outline(tree: FamilyTree, lane: Lane) -> list[tuple[float, float]]:
    """A lane's shape around its middle line: (cycles since the beginning, distances of two lanes), a step a cycle."""
    upper: list[tuple[float, float]] = []
    for number, weight in enumerate(lane.weights):
        half = tree.thickness(weight) / 2
        start = lane.born - 1 + number
        upper += [(float(start), half), (float(start + 1), half)]
    return [*upper, *((x, -half) for x, half in reversed(upper))]


def tree_margin(tree: FamilyTree, width: float) -> float:
    """Inches that the names need beyond the last cycle, of ``width`` inches for all cycles and this margin."""
    for step in range(300):
        margin = 0.02 * step
        column = (width - margin) / tree.cycles
        if all(_BEYOND + _words_width(lane) <= margin + column * (tree.cycles - lane.end) for lane in tree.lanes):
            return margin
    raise AssertionError("some margin is wide enough for a name")


def _words_width(lane: Lane) -> float:
    """Inches of a lane's name and weight; bold type is a sixth wider."""
    name = text_size(lane.label, _NAME)[0] * (1.18 if lane.survivor else 1.0)
    return name + (0.07 + text_size(_weight(lane.weights[-1]), _WEIGHT)[0] if lane.weights else 0.0) + 0.07


def sample_weights(tree: FamilyTree) -> list[float]:
    """Round weights for the legend of thicknesses, the greatest first; none where no weight is known."""
    if not any(lane.weights for lane in tree.lanes):
        return []
    top = tree.heaviest
    digits = 10.0 ** math.floor(math.log10(top))
    largest = max(step * digits for step in (1, 2, 3, 5, 8) if step * digits <= top * (1 + 1e-9))
    return [largest, largest / 2]


@styled
def draw_family_tree(
    pool: Family, *, ax: Axes | None = None, title: str | None = None, operations: Sequence[str] = ()
) -> Figure:
    """Draws who was born from whom on one edge, when each candidate was pruned, and how strong it was.

    Cycles run to the right. A lane is a candidate, as thick as its softmax weight at the end of each cycle. A child
    branches off from its parent where its first cycle begins, with the name of the morphism. A cross is a death; behind
    it stand the candidate's name and its last weight. The survivor has a star and a bold name; its lane and those of
    its ancestors have dark outlines. Lanes are dashed in a cycle that is still under way.

    Args:
        pool: the candidates of one edge with their history, such as one of ``Search.families()``.
        ax: where to draw; a new figure as wide as the page without it.
        title: shown above.
        operations: the names of a whole space, where unusual operations are to look alike in several figures.

    Raises:
        InvalidInput: there is no candidate, or a parent was not there when its child was born.
    """
    tree = family_tree(pool)
    rows = len(tree.lanes)
    if ax is None:
        above, below = (0.3 if title else 0.06), 0.66
        high = _PITCH * (rows + 0.5) + above + below
        figure = Figure(figsize=(PAGE_WIDTH, high))
        ax = figure.add_axes((0.0, below / high, 1.0, 1 - (above + below) / high))
    box, (full_width, full_height) = ax.get_position(), figure_of(ax).get_size_inches()
    width, height = box.width * full_width, box.height * full_height
    margin = tree_margin(tree, width - _LEFT)
    column = (width - _LEFT - margin) / tree.cycles
    pitch = height / (rows + 0.5)
    ax.set_xlim(-_LEFT / column, tree.cycles + margin / column)
    ax.set_ylim(rows - 0.25, -0.75)
    styles = operation_styles([*operations, *sorted({lane.operation for lane in tree.lanes})])
    for cycle in range(tree.cycles + 1):
        ax.axvline(cycle, color="#e2e2e2", linewidth=0.8, zorder=0)
    for lane in sorted(tree.lanes, key=lambda lane: lane.ancestor):  # the survivor's line above the others
        if lane.parent is not None:
            parent = tree.lanes[lane.parent]
            ax.plot(
                [lane.born - 1] * 2, [parent.row, lane.row], color=INK if lane.ancestor else BRANCH, linestyle="-",
                linewidth=1.8 if lane.ancestor else 1.0, solid_capstyle="round", zorder=2.5 if lane.ancestor else 1.5,
                gid=f"branch-{tree.lanes.index(lane)}",
            )  # fmt: skip
    for number, lane in enumerate(tree.lanes):
        _draw_lane(ax, tree, number, styles[lane.operation].colour, column, pitch)
    ax.set_xticks([cycle - 0.5 for cycle in range(1, tree.cycles + 1)], [str(n) for n in range(1, tree.cycles + 1)])
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.tick_params(axis="x", length=0, pad=2)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xlabel("cycle", labelpad=1, x=(_LEFT + column * tree.cycles / 2) / width)
    if title:
        ax.set_title(title, fontsize=10, pad=5)
    _tree_legend(ax, tree, pitch)
    return figure_of(ax)


def _draw_lane(ax: Axes, tree: FamilyTree, number: int, colour: str, column: float, pitch: float) -> None:
    lane = tree.lanes[number]
    if lane.weights:
        outline = [(x, lane.row + y) for x, y in lane_outline(tree, lane)]
        ax.add_patch(
            Polygon(outline, closed=True, facecolor=colour if lane.ancestor else tint(colour, 0.5),
                    edgecolor=INK if lane.ancestor else colour, linewidth=1.0 if lane.ancestor else 0.6,
                    joinstyle="miter", zorder=4 if lane.ancestor else 3, gid=f"lane-{number}")
        )  # fmt: skip
    if lane.end > lane.known:
        ax.plot([lane.known, lane.end], [lane.row] * 2, color=colour, linestyle=UNDER_WAY, linewidth=1.4, zorder=3,
                solid_capstyle="butt", gid=f"under-way-{number}")  # fmt: skip
    if lane.parent is not None:
        half = tree.thickness(lane.weights[0] if lane.weights else 0.0) / 2
        ax.annotate(
            lane.morphism, (lane.born - 1, lane.row - half), (3.0, 1.2), textcoords="offset points", ha="left",
            va="bottom", fontsize=_MORPHISM, color=INK if lane.ancestor else QUIET, zorder=6,
            gid=f"morphism-{number}",
        )  # fmt: skip
    if lane.died or lane.survivor:
        mark = "*" if lane.survivor else "x"
        ax.plot([lane.end], [lane.row], marker=mark, color=INK, markersize=9 if lane.survivor else 4.6, zorder=7,
                markeredgewidth=0.4 if lane.survivor else 1.2, gid=f"end-{number}", linestyle="none")  # fmt: skip
    name = ax.annotate(
        lane.label, (lane.end, lane.row), (_BEYOND * 72, 0), textcoords="offset points", ha="left",
        va="center_baseline", fontsize=_NAME, zorder=6, fontweight="bold" if lane.survivor else "normal",
        gid=f"name-{number}",
    )  # fmt: skip
    if lane.weights:
        ax.annotate(
            _weight(lane.weights[-1]), (1.0, lane.row), (4.5, 0), xycoords=(name, "data"), ha="left",
            textcoords="offset points", va="center_baseline", fontsize=_WEIGHT, color=QUIET,
            fontweight=name.get_fontweight(), zorder=6, gid=f"weight-{number}",
        )  # fmt: skip


def _tree_legend(ax: Axes, tree: FamilyTree, pitch: float) -> None:
    """What thickness, crosses and the star mean, below the axis."""
    handles = [
        Line2D([], [], color="#b0b0b0", linewidth=tree.thickness(weight) * pitch * 72, solid_capstyle="butt",
               linestyle="-", label=f"weight {weight:.2g}")
        for weight in sample_weights(tree)
    ]  # fmt: skip
    if any(lane.end > lane.known for lane in tree.lanes):
        handles.append(Line2D([], [], color=QUIET, linestyle=UNDER_WAY, linewidth=1.4, label="this cycle"))
    if any(lane.died for lane in tree.lanes):
        handles.append(Line2D([], [], color=INK, marker="x", markersize=4.6, markeredgewidth=1.2, linestyle="none",
                              label="pruned, with its last weight"))  # fmt: skip
    if any(lane.survivor for lane in tree.lanes):
        handles.append(Line2D([], [], color=INK, marker="*", markersize=9, linestyle="none", label="left in the end"))
    inches = ax.get_position().height * figure_of(ax).get_size_inches()[1]
    ax.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.37 / inches), ncols=len(handles), fontsize=7.5,
        handlelength=1.8, columnspacing=1.4, borderaxespad=0.0, borderpad=0.0,
    )  # fmt: skip


# --- a search over its cycles (Fig. 2) --------------------------------------------------------------------------------

_MIX = {
    "convolution": ("convolutions", OKABE_ITO["blue"], ""),
    "identity": ("identities", OKABE_ITO["black"], ""),
    "pool": ("poolings", OKABE_ITO["orange"], "////"),
    "zero": ("none", OKABE_ITO["reddish purple"], "...."),
}
"""Names, colours and textures of the kinds of operations."""


def cycle_spans(history: Sequence[CycleEpoch]) -> list[tuple[int, int, int, int]]:
    """For every cycle: its number, its first epoch, the last one with α frozen (one less than the first where there is
    none), and its last epoch.

    Raises:
        InvalidInput: the history is empty.
    """
    if not history:
        raise InvalidInput("The history is empty; run at least one epoch of a search first.")
    spans: dict[int, tuple[int, int, int, int]] = {}
    for report in history:
        _, first, grace, _ = spans.get(report.cycle, (0, report.epoch, report.epoch - 1, 0))
        spans[report.cycle] = (report.cycle, first, report.epoch if report.grace else grace, report.epoch)
    return list(spans.values())


@styled
def plot_cycles(history: Sequence[CycleEpoch], kinds: Sequence[str] | None = None) -> Figure:
    """A search over its epochs, as in the paper's Fig. 2.

    From top to bottom: accuracy on training and validation images; images a step; seconds an epoch; for each kind of
    cell the shares of poolings, identities and convolutions among all candidates; and their mean similarity
    (:func:`nasbook.supernets.mean_similarity`). Lines stand between cycles. In epochs with a grey background α is
    frozen.

    Args:
        history: the reports of a PR-DARTS search.
        kinds: which cells; all by default.

    Raises:
        InvalidInput: the history is empty, or has no such kind of cell.
    """
    # They load torch, which drawings else do without.
    from nasbook.supernets import mean_similarity, operation_mix

    spans = cycle_spans(history)
    kinds = tuple(kinds) if kinds else tuple(history[0].pools)
    for kind in kinds:
        if kind not in history[0].pools:
            raise unknown_name("kind of cell", kind, history[0].pools)
    epochs = np.array([report.epoch for report in history])
    heights = [1.35, 0.8, 0.8, *[1.0] * len(kinds), 1.1]
    figure = Figure(figsize=(PAGE_WIDTH, 1.0 * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for ax in panels:
        for number, first, grace, _ in spans:
            if grace >= first:
                ax.axvspan(first - 0.5, grace + 0.5, facecolor=GRACE, edgecolor="none", zorder=0, gid=f"grace-{number}")
            if first > epochs[0]:
                ax.axvline(first - 0.5, color=QUIET, linewidth=0.7, zorder=1, gid=f"border-{number}")
        ax.grid(visible=False)
        ax.tick_params(labelsize=7.5, length=2.5)
    for number, first, _, last in spans:
        panels[0].text((first + last) / 2, 1.03, str(number), transform=panels[0].get_xaxis_transform(), ha="center",
                       va="bottom", fontsize=8, color=QUIET, gid=f"cycle-{number}")  # fmt: skip
    panels[0].set_title("cycle", fontsize=8, color=QUIET, pad=13)

    accuracy, batch, seconds, *others, similar = panels
    curves: list[tuple[Axes, str, list[tuple[str, np.ndarray]]]] = [
        (accuracy, "accuracy (%)", [
            ("training", 100 * np.array([report.train_accuracy for report in history])),
            ("validation", 100 * np.array([report.validation_accuracy for report in history])),
        ]),
        (batch, "images\na step", [("", np.array([report.batch_size for report in history]))]),
        (seconds, "seconds\nan epoch", [("", np.array([report.seconds for report in history]))]),
        (similar, "similarity", [
            (kind, np.array([mean_similarity(report.pools[kind]) for report in history])) for kind in kinds
        ]),
    ]  # fmt: skip
    every = max(1, len(epochs) // 12)
    ends: list[tuple[Axes, list[tuple[str, float, float, str]]]] = []
    for ax, label, lines in curves:
        for number, (name, values) in enumerate(lines):
            colour = LINE_COLOURS[number] if len(lines) > 1 else INK
            ax.plot(epochs, values, color=colour, linestyle="-" if number == 0 else (0, (4, 1.2)), label=name,
                    marker=MARKERS[number], markersize=3, markevery=every, zorder=3)  # fmt: skip
        ax.set_ylabel(label, fontsize=8)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ends.append((ax, [(name, float(epochs[-1]) + 0.5, float(values[-1]), LINE_COLOURS[number])
                          for number, (name, values) in enumerate(lines) if name]))  # fmt: skip
    for ax in (batch, seconds, similar):
        ax.set_ylim(bottom=0)
        ax.set_ylim(top=1.12 * ax.dataLim.y1)
    for ax, kind in zip(others, kinds, strict=True):
        mixes = [operation_mix(report.pools[kind]) for report in history]
        ends.append((ax, _draw_mix(ax, epochs, mixes)))
        ax.set_ylabel(f"{kind} cell:\ncandidates (%)", fontsize=8)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    figure.align_ylabels(panels)
    for ax, named in ends:
        if named:
            label_ends(ax, named)
    return figure


def cycles_in_words(history: Sequence[CycleEpoch], kinds: Sequence[str] | None = None) -> str:
    """What :func:`plot_cycles` shows, for its alt text.

    Raises:
        InvalidInput: the history is empty, or has no such kind of cell.
    """
    from nasbook.supernets import mean_similarity, operation_mix

    spans = cycle_spans(history)
    kinds = tuple(kinds) if kinds else tuple(history[0].pools)
    first, last = history[0], history[-1]
    batches = [report.batch_size for report in history]
    words = [
        f"Curves over {last.epoch} epochs in {len(spans)} cycles.",
        f"Validation accuracy goes from {100 * first.validation_accuracy:.0f} % to "
        f"{100 * last.validation_accuracy:.0f} %, training accuracy from {100 * first.train_accuracy:.0f} % to "
        f"{100 * last.train_accuracy:.0f} %.",
        f"A step has {min(batches):.0f} images."
        if max(batches) == min(batches)
        else f"A step has from {min(batches):.0f} to {max(batches):.0f} images.",
    ]
    for kind in kinds:
        if kind not in first.pools:
            raise unknown_name("kind of cell", kind, first.pools)
        mixes = [operation_mix(report.pools[kind]) for report in (first, last)]
        shares = [f"{_MIX[name][0]} from {100 * mixes[0][name]:.0f} % to {100 * mixes[1][name]:.0f} %"
                  for name in mixes[0]]  # fmt: skip
        similar = [mean_similarity(report.pools[kind]) for report in (first, last)]
        words.append(
            f"In the {kind} cell, {', '.join(shares)} of the candidates; their similarity goes from "
            f"{similar[0]:.2f} to {similar[1]:.2f}."
        )
    return " ".join(words)


def _draw_mix(
    ax: Axes, epochs: np.ndarray, mixes: Sequence[Mapping[str, float]]
) -> list[tuple[str, float, float, str]]:
    """Shares of the kinds of operations above each other, and where to write their names."""
    names = [name for name in _MIX if any(name in mix for mix in mixes)]
    low = np.zeros(len(epochs))
    ends = []
    for name in names:
        label, colour, hatch = _MIX[name]
        high = low + 100 * np.array([mix.get(name, 0.0) for mix in mixes])
        for epoch, bottom, top in zip(epochs.tolist(), low.tolist(), high.tolist(), strict=True):
            ax.add_patch(
                Rectangle((epoch - 0.5, bottom), 1, top - bottom, facecolor=tint(colour, 0.3), edgecolor="none",
                          zorder=0.5, gid=f"share-{name}")
            )  # fmt: skip
        edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
        ax.fill_between(
            edges, np.append(low, low[-1]), np.append(high, high[-1]), step="post", facecolor="none", hatch=hatch,
            edgecolor=colour, linewidth=0.0, zorder=0.6,
        )  # fmt: skip
        ax.step(edges, np.append(high, high[-1]), where="post", color=colour, linewidth=1.2, linestyle="-", zorder=2)
        ends.append((label, float(edges[-1]), float(low[-1] + high[-1]) / 2, colour))
        low = high
    ax.set_ylim(0, 100)
    ax.set_yticks([0, 50, 100])
    return ends
