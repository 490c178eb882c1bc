"""The master network of a sequence of tasks: a column a layer, a stratum a task, a mark a neuron (Firefly §2.4).

A task's new neurons and copies lie in a stratum of their own, below those of earlier tasks, in all layers alike. So the
place says the same as the colour: which task made a neuron. The film of the same picture is in
:mod:`nasbook.plots.master_film`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.path import Path

from nasbook.errors import InvalidInput
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, PAGE_WIDTH, styled, tint
from nasbook.plots.svg import PIXELS

ABSENT, UNUSED, REUSED, COPIED, NEW = range(5)
"""What a neuron is to a task: not made yet; made earlier and not used; made earlier and used as it is; a copy that the
task has made; new."""
STATES = ("not made yet", "not used", "reused, locked", "unlocked copy", "new")
"""The same in words."""
PALE = 0.4
"""Tint of a neuron that is not used."""
SMALL = 0.45
"""Side of such a neuron, as a share of the others'."""
BAND = "#efefef"
"""Behind the stratum of the shown task."""
_LEFT, _TOP, _BOTTOM, _LEGEND = 52.0, 46.0, 36.0, 30.0
"""Pixels for the tasks' numbers, for the title, for the counts, and for the legend."""
_HIGHEST = 300.0
"""The most pixels for the strata of a drawing."""


@dataclass(frozen=True)
class MasterTable:
    """What a drawing needs to know of a master network."""

    widths: tuple[str, ...]
    """Names of the widths, in the order of the data."""
    made_by: tuple[Int[np.ndarray, " _neurons"], ...]
    """For each width the index of the task that made each neuron."""
    copy_of: tuple[Int[np.ndarray, " _neurons"], ...]
    """For each width the number of the neuron that each was copied from, or -1."""
    used: tuple[Bool[np.ndarray, "tasks _neurons"], ...]
    """For each width which neurons each task's network has."""
    classes: tuple[tuple[int, ...], ...]
    """For each task the labels of its classes; empty where they are not known."""
    parameters: tuple[int, ...]
    """In the memory after each task; empty where they are not known."""

    @property
    def tasks(self) -> int:
        """How many tasks it knows."""
        return len(self.used[0])

    @property
    def neurons(self) -> int:
        """How many there are in all layers, all tasks together."""
        return sum(map(len, self.made_by))

    def states(self, task: int) -> list[Int[np.ndarray, " _neurons"]]:
        """For each width what each neuron is to a task's network, as it was recorded."""
        found = []
        for makers, sources, used in zip(self.made_by, self.copy_of, self.used, strict=True):
            states = np.where(used[task], REUSED, UNUSED)
            states[makers == task] = np.where(sources[makers == task] < 0, NEW, COPIED)
            states[makers > task] = ABSENT
            found.append(states)
        return found

    def masked(self, task: int) -> list[Int[np.ndarray, " _neurons"]]:
        """The same before the task's network grows: its mask over the neurons of earlier tasks.

        An original whose copy the task has was in the mask, as only a chosen neuron can be unlocked.
        """
        found = self.states(task)
        for states, makers, sources in zip(found, self.made_by, self.copy_of, strict=True):
            own = makers == task
            states[sources[own & (sources >= 0)]] = REUSED
            states[own] = ABSENT
        return found

    def counts(self, task: int) -> tuple[int, int, int, int]:
        """How many neurons a task's network reuses, has copied and has made anew, and how many it leaves out."""
        states = np.concatenate(self.states(task))
        reused, copied, new, unused = (int((states == kind).sum()) for kind in (REUSED, COPIED, NEW, UNUSED))
        return reused, copied, new, unused

    def called(self, task: int) -> str:
        """A task in words. Counted from 1, as in the paper."""
        classes = f" (classes {', '.join(map(str, self.classes[task]))})" if self.classes else ""
        return f"task {task + 1}{classes}"


def master_table(master: Any) -> MasterTable:
    """What a master network or its description says, as arrays.

    Args:
        master: a :class:`nasbook.continual.MasterNetwork`, or what its ``describe()`` returns: ``widths``, ``made_by``,
            ``copy_of`` and ``chosen``; ``classes`` and ``parameters`` may be missing.

    Raises:
        InvalidInput: something is missing, no task is recorded, or a number does not belong to a neuron or a task.
    """
    described: Mapping[str, Any] = master if isinstance(master, Mapping) else master.describe()
    for name in ("widths", "made_by", "copy_of", "chosen"):
        if name not in described:
            raise InvalidInput(f"master: expected a master network or its description; {name!r} is missing.")
    widths, chosen = tuple(described["widths"]), described["chosen"]
    if not widths or not chosen:
        raise InvalidInput("The master network is empty; record at least one task first.")
    made_by, copy_of, used = [], [], []
    for name in widths:
        makers = np.asarray(described["made_by"].get(name, ()), dtype=int)
        sources = np.asarray(described["copy_of"].get(name, ()), dtype=int)
        if makers.ndim != 1 or not len(makers) or makers.shape != sources.shape:
            raise InvalidInput(
                f"master: expected the maker and the original of each neuron of {name!r}; got {len(makers)} makers and "
                f"{len(sources)} originals."
            )
        _check_between(f"made_by[{name!r}]", makers, 0, len(chosen))
        if (np.diff(makers) < 0).any() or (sources >= np.arange(len(makers))).any():
            raise InvalidInput(f"master: expected the neurons of {name!r} in the order in which tasks made them.")
        _check_between(f"copy_of[{name!r}]", sources, -1, len(makers))
        masks = np.zeros((len(chosen), len(makers)), dtype=bool)
        for task, part in enumerate(chosen):
            numbers = np.asarray(part.get(name, ()), dtype=int)
            _check_between(f"chosen[{task}][{name!r}]", numbers, 0, len(makers))
            masks[task, numbers] = True
            if (masks[task] & (makers > task)).any() or (~masks[task] & (makers == task)).any():
                raise InvalidInput(
                    f"chosen[{task}][{name!r}]: expected all neurons that the task has made, and none of a later task."
                )
        made_by.append(makers)
        copy_of.append(sources)
        used.append(masks)
    classes = tuple(tuple(one) for one in described.get("classes", ()))
    parameters = tuple(described.get("parameters", ()))
    for what, given in (("classes", classes), ("parameters", parameters)):
        if given and len(given) != len(chosen):
            raise InvalidInput(f"{what}: expected one entry for each of {len(chosen)} tasks, got {len(given)}.")
    return MasterTable(widths, tuple(made_by), tuple(copy_of), tuple(used), classes, parameters)


def _check_between(name: str, numbers: Int[np.ndarray, " numbers"], low: int, end: int) -> None:
    if len(numbers) and not (numbers.min() >= low and numbers.max() < end):
        raise InvalidInput(f"{name}: expected numbers of {low}..{end - 1}, got {numbers.min()}..{numbers.max()}.")


def in_copies(count: int) -> str:
    """A number of copies in words."""
    return f"{count} unlocked cop{'y' if count == 1 else 'ies'}"


def check_task(table: MasterTable, task: int) -> None:
    """Raises :class:`InvalidInput` where there is no such task."""
    if not 0 <= task < table.tasks:
        raise InvalidInput(f"task: expected an index of 0..{table.tasks - 1}, got {task}.")


# --- where things stand -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strata:
    """Where the marks of all neurons stand, in pixels from the upper left."""

    pitch: float
    """From one mark to the next."""
    lefts: tuple[float, ...]
    """Where the marks of each width begin."""
    wide: float
    """Of the marks of a width."""
    tops: tuple[float, ...]
    """Where the stratum of each task begins."""
    heights: tuple[float, ...]
    """Of the strata."""
    spots: tuple[Float[np.ndarray, "_neurons 2"], ...]
    """For each width the middle of each mark: across and down."""

    @property
    def side(self) -> float:
        """Of a mark."""
        return self.pitch - min(2.0, 0.22 * self.pitch)

    @property
    def bend(self) -> float:
        """How far to the left the lines from originals to copies bend at most."""
        return 2.2 * self.lefts[0]

    @property
    def height(self) -> float:
        """Of all strata."""
        return self.tops[-1] + self.heights[-1]


def plan_strata(table: MasterTable, wide: float, high: float, biggest: float = 11.0) -> Strata:
    """Places for all neurons in ``wide`` × ``high`` pixels: as large as they fit, several abreast where that helps.

    Args:
        table: the master network.
        wide: pixels for all layers.
        high: the most pixels for all strata.
        biggest: the most pixels from one neuron to the next.
    """
    tasks, slot = table.tasks, wide / len(table.widths)
    room = slot - max(5.0, 0.16 * slot)
    label, gap = min(12.0, 0.6 * high / tasks), min(6.0, 0.2 * high / tasks)
    made = np.array([np.bincount(makers, minlength=tasks) for makers in table.made_by])  # (widths, tasks)
    most = made.max(axis=0)

    def heights(pitch: float, abreast: int) -> np.ndarray:
        return np.maximum(label, pitch * -(-most // abreast))

    def fits(pitch: float, abreast: int) -> bool:
        return float(heights(pitch, abreast).sum()) + gap * (tasks - 1) <= high

    pitch = min(biggest, room)
    while not fits(pitch, max(1, int(room / pitch))):
        pitch *= 0.98
    abreast = next(number for number in range(1, max(1, int(room / pitch)) + 1) if fits(pitch, number))
    each = heights(pitch, abreast)
    tops = np.concatenate([[0.0], np.cumsum(each + gap)[:-1]])
    lefts = [slot * number + (slot - abreast * pitch) / 2 for number in range(len(table.widths))]
    spots = []
    for left, makers in zip(lefts, table.made_by, strict=True):
        number = np.zeros(len(makers), dtype=int)  # of a neuron in its stratum
        for task in range(tasks):
            number[makers == task] = np.arange((makers == task).sum())
        across = left + (number % abreast + 0.5) * pitch
        spots.append(np.stack([across, tops[makers] + (number // abreast + 0.5) * pitch], axis=1))
    return Strata(pitch, tuple(lefts), abreast * pitch, tuple(tops.tolist()), tuple(each.tolist()), tuple(spots))


def task_colour(task: int) -> str:
    """The colour of what a task has made; beyond seven tasks colours repeat, and strata tell them apart."""
    return LINE_COLOURS[task % len(LINE_COLOURS)]


def labelled_tasks(strata: Strata, least: float) -> list[int]:
    """The tasks whose numbers have room beside their strata, ``least`` pixels apart."""
    chosen: list[int] = []
    for task, (top, height) in enumerate(zip(strata.tops, strata.heights, strict=True)):
        middle = top + height / 2
        if not chosen or middle - (strata.tops[chosen[-1]] + strata.heights[chosen[-1]] / 2) >= least:
            chosen.append(task)
    return chosen


# --- the drawing ------------------------------------------------------------------------------------------------------


@styled
def draw_master(master: Any, task: int | None = None, *, title: str | None = None) -> Figure:
    """Draws all neurons of a master network, and those of one task's network (Firefly, Fig. 2).

    A column is a layer, from the input at the left to the output at the right. A stratum has what a task made, the
    first task above, and a colour of its own. In the network of a task, neurons that it reuses are large, those that it
    leaves out are small and pale, its own have a dark frame: new ones are full, unlocked copies have a white middle and
    a line to their originals. Below each layer stands how many of its neurons the task uses, and of how many. Strata
    of later tasks are not drawn.

    Args:
        master: a master network, or its description (:meth:`nasbook.continual.MasterNetwork.describe`).
        task: index of the task, from 0; the picture counts tasks from 1, as the paper does. None for all neurons
            alike.
        title: shown above, instead of the counts.

    Raises:
        InvalidInput: no task is recorded, or there is no such task.
    """
    table = master_table(master)
    if task is not None:
        check_task(table, task)
    wide = PAGE_WIDTH * PIXELS - _LEFT - 8
    strata = plan_strata(table, wide, _HIGHEST)
    last = table.tasks - 1 if task is None else task
    high = strata.tops[last] + strata.heights[last]
    total = _TOP + high + _BOTTOM + _LEGEND
    figure = Figure(figsize=(PAGE_WIDTH, total / PIXELS))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_xlim(-_LEFT, wide + 8)
    ax.set_ylim(high + _BOTTOM + _LEGEND, -_TOP)
    ax.axis("off")
    _draw_frame(ax, table, strata, task)
    states = _all_states(table) if task is None else table.states(task)
    _draw_marks(ax, table, strata, states, framed=task is not None)
    for number, found in enumerate(states):
        shown = int((found > UNUSED).sum())
        across, below = strata.lefts[number] + strata.wide / 2, high + 13
        ax.text(across, below, str(shown), ha="center", va="center", fontsize=8, fontweight="bold", gid="used")
        if task is not None:
            made = int((found != ABSENT).sum())
            ax.text(across, below + 12, str(made), ha="center", va="center", fontsize=7.5, color=FAINT, gid="made")
    title = title or master_title(table, task)
    ax.text(wide / 2 - _LEFT / 2, 13 - _TOP, title, ha="center", va="center", fontsize=9.5, gid="title")
    figure.legend(handles=_handles(task), loc="lower center", ncols=4, fontsize=8, borderaxespad=0.3,
                  handletextpad=0.3, columnspacing=1.4)  # fmt: skip
    return figure


def _all_states(table: MasterTable) -> list[Int[np.ndarray, " _neurons"]]:
    """Every neuron as its maker sees it."""
    return [np.where(sources < 0, NEW, COPIED) for sources in table.copy_of]


def master_title(table: MasterTable, task: int | None) -> str:
    """A task and its counts in a line; of None the whole."""
    if task is None:
        copies = sum(int((sources >= 0).sum()) for sources in table.copy_of)
        return f"all {table.tasks} tasks: {table.neurons} neurons, {copies} of them copies"
    reused, copied, new, _ = table.counts(task)
    return f"{table.called(task)}: {reused} neurons reused, {in_copies(copied)}, {new} new"


def _draw_frame(ax: Axes, table: MasterTable, strata: Strata, task: int | None) -> None:
    """Numbers of tasks and layers, and the band behind the shown task's stratum."""
    end = len(table.widths) * (strata.lefts[0] * 2 + strata.wide)
    if task is not None:
        ax.add_patch(Rectangle((-_LEFT + 4, strata.tops[task] - 2), end + _LEFT - 4, strata.heights[task] + 4,
                               facecolor=BAND, linewidth=0, zorder=0, gid="band"))  # fmt: skip
    last = table.tasks - 1 if task is None else task
    high = strata.tops[last] + strata.heights[last]
    for number in labelled_tasks(strata, 9.0):
        if number <= last:
            words = f"task {number + 1}" if number == 0 else str(number + 1)
            ax.text(-6, strata.tops[number] + strata.heights[number] / 2, words, ha="right", va="center", fontsize=8,
                    fontweight="bold" if number == task else "normal", gid="task")  # fmt: skip
    ax.text(-6, -11, "layer", ha="right", va="center", fontsize=8)
    for number, left in enumerate(strata.lefts):
        ax.text(left + strata.wide / 2, -11, str(number + 1), ha="center", va="center", fontsize=8, gid="layer")
    ax.text(-6, high + 13, "neurons" if task is None else "used", ha="right", va="center", fontsize=8)
    if task is not None:
        ax.text(-6, high + 25, "of", ha="right", va="center", fontsize=7.5, color=FAINT)


def _draw_marks(
    ax: Axes, table: MasterTable, strata: Strata, states: Sequence[Int[np.ndarray, " _neurons"]], *, framed: bool
) -> None:
    """Marks of all neurons, by what they are; and the lines from originals to copies."""
    spots = np.concatenate(strata.spots)
    makers, found = np.concatenate(table.made_by), np.concatenate(states)
    edge = min(1.2, 0.14 * strata.side)
    for kind in (UNUSED, REUSED, NEW, COPIED):
        chosen = found == kind
        if not chosen.any():
            continue
        side = strata.side * (SMALL if kind == UNUSED else 1.0)
        colours = [task_colour(int(maker)) for maker in makers[chosen]]
        fills = [tint(colour, PALE) for colour in colours] if kind == UNUSED else colours
        own = framed and kind in (NEW, COPIED)
        ax.add_collection(
            PolyCollection(_squares(spots[chosen], side), facecolors=fills, edgecolors=INK if own else "none",
                           linewidths=edge if own else 0.0, zorder=3, gid=STATES[kind])
        )  # fmt: skip
        if kind == COPIED:
            ax.add_collection(
                PolyCollection(_squares(spots[chosen], SMALL * strata.side), facecolors="white", zorder=5,
                               gid="middle of a copy")
            )  # fmt: skip
    codes = [Path.MOVETO, Path.CURVE3, Path.CURVE3]
    lines = [Path(line, codes) for number in range(len(states)) for line in copy_lines(table, strata, states, number)]
    if lines:
        ax.add_collection(
            PathCollection(lines, facecolors="none", edgecolors=INK, linewidths=line_width(strata), zorder=4,
                           gid="lines")
        )  # fmt: skip


def _squares(spots: Float[np.ndarray, "marks 2"], side: float) -> list[Float[np.ndarray, "4 2"]]:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2
    return list(spots[:, None, :] + corners)


def line_width(strata: Strata) -> float:
    """Of the lines from originals to copies, in points."""
    return 0.9 if strata.pitch > 6 else 0.5


def copy_lines(
    table: MasterTable, strata: Strata, states: Sequence[Int[np.ndarray, " _neurons"]], width: int
) -> Float[np.ndarray, "copies 3 2"]:
    """From the original of each shown copy of a width to the copy: start, control point and end of a parabola.

    It bends to the left, so that it does not hide what lies between.
    """
    spots, sources = strata.spots[width], table.copy_of[width]
    copies = np.flatnonzero((states[width] == COPIED) & (sources >= 0))
    start, end = spots[sources[copies]], spots[copies]
    aside = strata.bend * np.minimum(1.0, (end[:, 1] - start[:, 1]) / 60)
    control = np.stack([np.minimum(start[:, 0], end[:, 0]) - aside, (start[:, 1] + end[:, 1]) / 2], axis=1)
    return np.stack([start, control, end], axis=1)


def _handles(task: int | None) -> list[Line2D]:
    colour = LINE_COLOURS[0]

    def mark(label: str, size: float, **look: Any) -> Line2D:
        plain: dict[str, Any] = {"marker": "s", "markersize": size, "linestyle": "none", "markeredgewidth": 0}
        return Line2D([], [], label=label, **{**plain, "markerfacecolor": colour, **look})

    # A framed square with a white middle is a marker with a thick edge.
    copied = mark("copy, with a line to its original", 5.5, markerfacecolor="white", markeredgecolor=colour,
                  markeredgewidth=2.2)  # fmt: skip
    if task is None:
        return [mark("new to its task", 7.5), copied]
    return [
        mark("reused, locked", 7.5),
        mark("new", 7, markeredgecolor=INK, markeredgewidth=1.2),
        copied,
        mark("not used", 3.6, markerfacecolor=tint(colour, PALE)),
    ]


def master_in_words(master: Any, task: int | None = None) -> str:
    """What :func:`draw_master` shows, in two or three sentences: an alt text.

    Raises:
        InvalidInput: no task is recorded, or there is no such task.
    """
    table = master_table(master)
    layers = len(table.widths)
    if task is None:
        made = [sum(int((makers == number).sum()) for makers in table.made_by) for number in range(table.tasks)]
        listed = ", ".join(f"{count} by task {number + 1}" for number, count in enumerate(made))
        copies = sum(int((sources >= 0).sum()) for sources in table.copy_of)
        return (
            f"The master network of {table.tasks} tasks has {table.neurons} neurons in {layers} layers: {listed}. "
            f"{copies} of them are unlocked copies of older ones."
        )
    check_task(table, task)
    reused, copied, new, unused = table.counts(task)
    words = (
        f"The network of {table.called(task)} has {reused + copied + new} neurons in {layers} layers: {reused} reused, "
        f"{in_copies(copied)} and {new} new."
    )
    if task == 0:
        return words
    sources = [
        sum(int((one[task] & (by == number)).sum()) for one, by in zip(table.used, table.made_by, strict=True))
        for number in range(task)
    ]
    listed = ", ".join(f"{count} of task {number + 1}" for number, count in enumerate(sources) if count)
    replaced = ", the originals of its copies among them" if copied else ""
    return f"{words} It reuses {listed or 'none'}, and leaves out {unused}{replaced}."
