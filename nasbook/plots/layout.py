"""Where the nodes, edges and labels of a cell go, from left to right, so that no two labels touch.

A layered drawing in the manner of Sugiyama: a node stands in the layer of its longest path from an
input. Between two layers lies a column for labels. An edge crosses every column between its ends, and
holds a place in each (a *lane*) that nothing else may enter; in one of them stands its label. So labels
can't overlap by construction; what is left to optimise is crossings (by barycentre sweeps) and bends (by
averaging neighbours and projecting on the required distances).

Several operations between the same two nodes are a *bundle*: it holds one lane, wide enough for all of them, and
its labels are stacked. So they run side by side, and no two of them cross.

All lengths are in inches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, float]

NODE = 0.27
"""Diameter of an intermediate node."""
INPUT_WIDTH = 0.44
"""Width of an input's box."""
OUTPUT_WIDTH = 0.2
"""Width of the output's bar."""
_LANE = 0.03
_GAP = 0.07
_TRACK = 0.034
"""Distance between two lines of a bundle where they run on."""
_STACK = 0.03
"""Room between two labels of a bundle."""
PORT_TRACK = 0.02
"""Distance between two lines of a bundle where they meet a node: they touch."""
PORT = 0.075
"""Height that a line or a bundle takes at a node that has bundles, besides the distances of its lines."""
_LEAST_GAP = 0.135  # between two columns where there is room for it; labels on two lines look for 0.13


@dataclass(frozen=True)
class DagLayout:
    """Positions of everything in the drawing of a cell; the origin is the lower left corner."""

    nodes: dict[int, Point]
    """Centre of every node, inputs included."""
    output: Point
    """Centre of the output's bar."""
    output_height: float
    """Height of the output's bar."""
    routes: tuple[tuple[Point, ...], ...]
    """Points that each edge runs through, in the order of the edges: pairs that span a level run."""
    labels: tuple[Point, ...]
    """Centre of each edge's label."""
    output_routes: dict[int, tuple[Point, ...]]
    """Points that the edge from a node to the output runs through."""
    width: float
    height: float
    smallest_gap: float = field(default=math.inf)
    """Distance between the closest two columns; below 0.1 the drawing is cramped."""
    node_heights: dict[int, float] = field(default_factory=dict)
    """Height of every node that is taller than :data:`NODE`, so that its bundles have room."""


def spread(wanted: Sequence[float], distances: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """The places closest to the wanted ones (least squares) that keep order and distances.

    ``distances[i]`` is the least distance between places ``i`` and ``i + 1``. Pool-adjacent-violators.
    """
    offsets = np.concatenate([[0.0], np.cumsum(distances)]) if len(wanted) else np.zeros(0)
    pools: list[tuple[float, float, int]] = []  # mean, weight, size
    for number, (want, offset) in enumerate(zip(wanted, offsets, strict=True)):
        weight = 1.0 if weights is None else weights[number]
        mean, size = float(want - offset), 1
        while pools and pools[-1][0] >= mean:
            other, other_weight, other_size = pools.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, size = weight + other_weight, size + other_size
        pools.append((mean, weight, size))
    means = [mean for mean, _, size in pools for _ in range(size)]
    return [mean + float(offset) for mean, offset in zip(means, offsets, strict=True)]


def _layers(edges: Sequence[tuple[int, int]], nodes: int, inputs: int) -> dict[int, int]:
    """Length of the longest path from an input, of every node that an edge enters and of the inputs."""
    layer = dict.fromkeys(range(inputs), 0)
    for target in range(inputs, inputs + nodes):
        before = [layer[source] for source, end in edges if end == target and source in layer]
        if before:
            layer[target] = 1 + max(before)
    return layer


@dataclass
class _Item:
    """What stands at one place of one column: a node, a label or the lane of an edge that passes."""

    column: int
    height: float
    width: float = 0.0
    opening: float = 0.0  # from the bundle's middle line to its outermost
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    y: float = 0.0


class _Columns:
    """The items of a drawing and their order in each column."""

    def __init__(self) -> None:
        self.items: list[_Item] = []

    def add(self, column: int, height: float, width: float = 0.0, opening: float = 0.0) -> int:
        self.items.append(_Item(column, height, width, opening))
        return len(self.items) - 1

    def join(self, chain: Sequence[int]) -> None:
        for a, b in itertools.pairwise(chain):
            self.items[a].right.append(b)
            self.items[b].left.append(a)

    def start(self) -> list[list[int]]:
        order: list[list[int]] = [[] for _ in range(1 + max(item.column for item in self.items))]
        for number, item in enumerate(self.items):
            order[item.column].append(number)
        return order

    def crossings(self, order: list[list[int]]) -> int:
        total = 0
        place = {item: at for column in order for at, item in enumerate(column)}
        for column in order[:-1]:
            ends = [place[b] for a in column for b in sorted(self.items[a].right, key=place.__getitem__)]
            total += sum(ends[i] > end for j, end in enumerate(ends) for i in range(j))
        return total

    def sweep(self, order: list[list[int]], leftwards: bool) -> None:
        """Sorts every column by the mean place of its neighbours in the column before it."""
        columns = range(len(order) - 2, -1, -1) if leftwards else range(1, len(order))
        for column in columns:
            other = order[column + 1 if leftwards else column - 1]
            place = {item: at / max(1, len(other) - 1) for at, item in enumerate(other)}
            here = {item: at / max(1, len(order[column]) - 1) for at, item in enumerate(order[column])}

            def mean(number: int, place: dict[int, float] = place, here: dict[int, float] = here) -> float:
                item = self.items[number]
                near = item.right if leftwards else item.left
                return sum(place[n] for n in near) / len(near) if near else here[number]

            order[column].sort(key=mean)

    def best_order(self) -> list[list[int]]:
        """The order with the fewest crossings among some dozens of sweeps from a few fixed starts."""
        generator = np.random.default_rng(0)
        best, fewest = self.start(), math.inf
        for attempt in range(10):
            order = self.start()
            if attempt:
                for column in order[1:]:
                    generator.shuffle(column)
            stale = 0
            for number in range(24):
                count = self.crossings(order)
                if count < fewest:
                    best, fewest, stale = [list(column) for column in order], count, 0
                else:
                    stale += 1
                if stale > 6 or not fewest:
                    break
                self.sweep(order, leftwards=number % 2 == 1)
            if not fewest:
                break
        return self.untangle(best)

    def untangle(self, order: list[list[int]]) -> list[list[int]]:
        """Swaps neighbours for as long as that saves crossings."""
        count = self.crossings(order)
        improved = count > 0
        while improved:
            improved = False
            for column in order:
                for at in range(len(column) - 1):
                    column[at], column[at + 1] = column[at + 1], column[at]
                    now = self.crossings(order)
                    if now < count:
                        count, improved = now, True
                    else:
                        column[at], column[at + 1] = column[at + 1], column[at]
        return order

    def place(self, order: list[list[int]], runs: Sequence[Sequence[int]], sweeps: int = 120) -> None:
        """Sets every ``y``: near the neighbours', lanes straighter than the rest, distances kept.

        ``runs`` are the lanes of one edge each, in order.
        """

        def gaps(column: list[int]) -> list[float]:
            return [
                (self.items[a].height + self.items[b].height) / 2 + _GAP
                for a, b in itertools.pairwise(column)
            ]

        lane = dict.fromkeys(range(len(self.items)), False) | {number: True for run in runs for number in run}
        for column in order:
            places = spread([0.0] * len(column), gaps(column))
            for number, y in zip(column, places, strict=True):
                self.items[number].y = y
        for number in range(sweeps):
            columns = order if number % 2 == 0 else order[::-1]
            for column in columns:
                wanted, weights = [], []
                for at in column:
                    item = self.items[at]
                    near = item.left + item.right
                    # A segment between two lanes bends visibly, one that ends at a node does not.
                    pull = [8.0 if lane[at] and lane[n] else 1.0 for n in near]
                    total = sum(pull)
                    mean = sum(p * self.items[n].y for p, n in zip(pull, near, strict=True)) / total if near else item.y
                    wanted.append(mean)
                    weights.append(total or 1.0)
                for at, y in zip(column, spread(wanted, gaps(column), weights), strict=True):
                    self.items[at].y = y

        for run in runs:
            self.straighten(run, order)

    def straighten(self, run: Sequence[int], order: list[list[int]]) -> None:
        """Levels a run of lanes as far as its neighbours leave room, in parts where the whole does not fit."""
        if len(run) < 2:
            return
        low, high = -math.inf, math.inf
        for number in run:
            item, column = self.items[number], order[self.items[number].column]
            at = column.index(number)
            if at:
                below = self.items[column[at - 1]]
                low = max(low, below.y + (below.height + item.height) / 2 + _GAP)
            if at + 1 < len(column):
                above = self.items[column[at + 1]]
                high = min(high, above.y - (above.height + item.height) / 2 - _GAP)
        ys = [self.items[number].y for number in run]
        if low <= high + 1e-9:
            level = min(max(sum(ys) / len(ys), low), high)
            for number in run:
                self.items[number].y = level
        else:
            steps = [abs(b - a) for a, b in itertools.pairwise(ys)]
            cut = 1 + steps.index(max(steps))
            self.straighten(run[:cut], order)
            self.straighten(run[cut:], order)


def bundles(edges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """The numbers of the edges between the same two nodes, by (source, target), in order of appearance."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, (source, target) in enumerate(edges):
        found.setdefault((source, target), []).append(number)
    return found


def port_room(lines: int) -> float:
    """Height that a bundle of so many lines takes at a node that has bundles."""
    return PORT + (lines - 1) * PORT_TRACK


def _node_heights(together: dict[tuple[int, int], list[int]], output: Sequence[int]) -> dict[int, float]:
    """Heights of the nodes at which bundles need more than a round node has."""
    heights: dict[int, float] = {}
    for node in {node for pair in together for node in pair}:
        for end in (0, 1):
            sizes = [len(members) for pair, members in together.items() if pair[end] == node]
            if max(sizes, default=1) > 1:
                lines = [*sizes, *([1] if end == 0 and node in output else [])]
                heights[node] = max(NODE, heights.get(node, 0.0), sum(map(port_room, lines)) + 0.04)
    return {node: height for node, height in heights.items() if height > NODE}


def _stacked(heights: Sequence[float]) -> list[float]:
    """Where the middles of labels stand, one below the other, around 0."""
    total = sum(heights) + _STACK * (len(heights) - 1)
    tops = itertools.accumulate([0.0, *(height + _STACK for height in heights[:-1])])
    return [total / 2 - top - height / 2 for top, height in zip(tops, heights, strict=True)]


def share(room: float, weights: Sequence[float], least: Sequence[float]) -> list[float]:
    """``room`` divided in proportion to the weights, but no part below its least, as long as there is room for that."""
    fixed: set[int] = set()
    while sum(least) < room:
        rest = (room - sum(least[n] for n in fixed)) / sum(w for n, w in enumerate(weights) if n not in fixed)
        small = {n for n, weight in enumerate(weights) if n not in fixed and rest * weight < least[n]}
        if not small:
            return [least[n] if n in fixed else rest * weight for n, weight in enumerate(weights)]
        fixed |= small
    return [room * weight / sum(weights) for weight in weights]


def dag_layout(
    edges: Sequence[tuple[int, int]],
    *,
    nodes: int,
    inputs: int,
    output: Sequence[int],
    labels: Sequence[tuple[float, float]] | None = None,
    width: float = 6.5,
) -> DagLayout:
    """Lays out a cell from left to right.

    Args:
        edges: (source, target) of every edge; the same pair may stand there several times.
        nodes: number of intermediate nodes.
        inputs: number of input nodes.
        output: nodes that feed the cell's output.
        labels: (width, height) of each edge's label; without them edges run unlabelled.
        width: of the drawing.
    """
    layer = _layers(edges, nodes, inputs)
    last = 2 * (1 + max(layer.values()))
    together = bundles(edges)
    node_heights = _node_heights(together, output)
    columns = _Columns()
    node_item = {
        node: columns.add(2 * layer[node], node_heights.get(node, NODE), INPUT_WIDTH if node < inputs else NODE)
        for node in sorted(layer)
    }
    end = columns.add(last, NODE, OUTPUT_WIDTH)

    # The labels stand in the emptiest column that their bundle crosses, near the target when in doubt.
    sizes = [(0.0, _LANE)] * len(edges) if labels is None else list(labels)
    held = dict.fromkeys(range(1, last, 2), 0)
    label_column = {}
    for source, target in sorted(together, key=lambda pair: layer[pair[1]] - layer[pair[0]]):
        column = min(range(2 * layer[target] - 1, 2 * layer[source], -2), key=held.__getitem__)
        label_column[source, target] = column
        held[column] += len(together[source, target])

    # How far above the bundle's middle each edge runs, beside its label and elsewhere.
    at_label, on_track = [0.0] * len(edges), [0.0] * len(edges)
    chains = {}
    for (source, target), members in together.items():
        high_labels = [sizes[number][1] for number in members]
        for place, (number, height) in enumerate(zip(members, _stacked(high_labels), strict=True)):
            at_label[number] = height
            on_track[number] = ((len(members) - 1) / 2 - place) * _TRACK
        chain = [node_item[source]]
        for column in range(2 * layer[source] + 1, 2 * layer[target]):
            if column == label_column[source, target]:
                wide, high = max(sizes[number][0] for number in members), sum(high_labels) + _STACK * (len(members) - 1)
                opening = at_label[members[0]]
            else:
                wide, high, opening = 0.0, _LANE + _TRACK * (len(members) - 1), on_track[members[0]]
            chain.append(columns.add(column, high, wide, opening))
        chains[source, target] = [*chain, node_item[target]]
    output_chains = {}
    for node in output:
        lanes = [columns.add(column, _LANE) for column in range(2 * layer[node] + 1, last)]
        output_chains[node] = [node_item[node], *lanes, end]
    for chain in [*chains.values(), *output_chains.values()]:
        columns.join(chain)

    order = columns.best_order()
    columns.place(order, [chain[1:-1] for chain in [*chains.values(), *output_chains.values()]])
    items = columns.items
    # Nodes count upwards in most papers' figures from top to bottom: the first input stands on top.
    if inputs > 1 and items[node_item[0]].y < items[node_item[inputs - 1]].y:
        for item in items:
            item.y = -item.y

    # Columns get their widths; what is left goes to the gaps, more where edges climb more.
    widths = [max(items[number].width for number in column) for column in order]
    climbs = [
        max(
            abs(items[a].y - items[b].y) + abs(items[a].opening - items[b].opening)
            for a in column for b in items[a].right
        )
        for column in order[:-1]
    ]
    climbs = [climb + (0.45 if at < len(climbs) - 2 else 0.12) for at, climb in enumerate(climbs)]
    room = width - sum(widths)
    gaps = [min(gap, 1.3) for gap in share(room, climbs, [_LEAST_GAP] * (len(climbs) - 2) + [0.0, 0.0])]
    x = [widths[0] / 2]
    for before, after, gap in zip(widths, widths[1:], gaps, strict=False):
        x.append(x[-1] + before / 2 + gap + after / 2)
    used = x[-1] + widths[-1] / 2

    removed = [node for node in range(inputs, inputs + nodes) if node not in layer]
    low = min(item.y - item.height / 2 for item in items)
    high = max(item.y + item.height / 2 for item in items)
    lanes_at_end = [items[number].y for number in items[end].left]
    output_height = max(NODE * 1.6, max(lanes_at_end) - min(lanes_at_end) + NODE)
    middle = (max(lanes_at_end) + min(lanes_at_end)) / 2
    low = min(low, middle - output_height / 2)
    high = max(high, middle + output_height / 2)
    if removed:
        low -= NODE + 2 * _GAP

    def point(number: int) -> Point:
        return x[items[number].column], items[number].y - low

    def route(chain: list[int], heights: Sequence[float], to_output: bool = False) -> tuple[Point, ...]:
        points = [point(chain[0])]
        for number, height in zip(chain[1:-1], heights, strict=True):
            half = widths[items[number].column] / 2
            here = point(number)
            points += [(here[0] - half, here[1] + height), (here[0] + half, here[1] + height)]
        last_y = points[-1][1] if to_output else point(chain[-1])[1]
        return (*points, (x[items[chain[-1]].column], last_y))

    routes, label_places = [], []
    for number, pair in enumerate(edges):
        chain, here = chains[pair], label_column[pair]
        crossed = range(2 * layer[pair[0]] + 1, 2 * layer[pair[1]])
        routes.append(route(chain, [(at_label if column == here else on_track)[number] for column in crossed]))
        label_x, label_y = point(chain[here - 2 * layer[pair[0]]])
        label_places.append((label_x, label_y + at_label[number]))

    places = {node: point(item) for node, item in node_item.items()}
    for at, node in enumerate(removed):
        places[node] = (used / 2 + (at - (len(removed) - 1) / 2) * 2 * NODE, NODE / 2)
    return DagLayout(
        nodes=places,
        output=(x[-1], middle - low),
        output_height=output_height,
        routes=tuple(routes),
        labels=tuple(label_places),
        output_routes={
            node: route(chain, [0.0] * (len(chain) - 2), to_output=True) for node, chain in output_chains.items()
        },
        width=used,
        height=high - low,
        smallest_gap=min(gaps[:-2]),  # nothing is written beside the output
        node_heights=node_heights,
    )
