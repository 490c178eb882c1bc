"""Curves over epochs: coefficients of the candidates, losses and accuracies with their spread over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.plots.cells import figure_of, input_names
from nasbook.plots.history import Epoch, trajectory
from nasbook.plots.layout import spread
from nasbook.plots.palette import (
    DASHES,
    INK,
    LINE_COLOURS,
    MARKERS,
    PAGE_WIDTH,
    OperationStyle,
    operation_label,
    operation_styles,
    styled,
)


def operation_legend(styles: Mapping[str, OperationStyle]) -> list[Line2D]:
    """Legend entries for operations, in their order."""
    return [
        Line2D([], [], color=style.colour, linestyle=style.dashes, marker=style.marker, label=operation_label(name))
        for name, style in styles.items()
    ]


@styled
def plot_architecture_weights(
    history: Sequence[Epoch],
    kind: str = "normal",
    edges: Sequence[tuple[int, int]] | None = None,
    *,
    space: Space = DARTS_SPACE,
) -> Figure:
    """The coefficients of every candidate over the epochs: one panel an edge, one line an operation.

    With all edges, the rows of panels are the nodes that edges enter and the columns those they leave. A
    label at the top of a panel names the operation that the last epoch's genotype keeps on that edge.

    Args:
        history: the reports of a search.
        kind: which cell.
        edges: (source, target) of the edges to show; all of them by default.
        space: the space that was searched.
    """
    values = trajectory(history, kind, space)
    epochs = [report.epoch for report in history]
    for edge in edges or ():
        if tuple(edge) not in space.edges:
            raise InvalidInput(f"edges: {tuple(edge)} is not an edge (source, target) of this space.")
    chosen = [(source, target) for source, target in edges] if edges else list(space.edges)
    names = [*input_names(space.inputs), *map(str, range(space.inputs, space.inputs + space.nodes))]
    if edges:
        rows = -(-len(chosen) // 4)
        columns = -(-len(chosen) // rows)
        places = [divmod(number, columns) for number in range(len(chosen))]
    else:
        columns, rows = space.inputs + space.nodes - 1, space.nodes
        places = [(target - space.inputs, source) for source, target in chosen]
    legend_room = 0.0 if not edges and space.nodes > 2 else 0.5  # the upper right triangle holds the legend
    figure = Figure(figsize=(PAGE_WIDTH, 0.5 + 1.15 * rows + legend_room), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for row, column in itertools.product(range(rows), range(columns)):
        if (row, column) not in places:
            panels[row, column].set_axis_off()

    styles = operation_styles(space.operations)
    top = 1.32 * max(float(values.max()), 1e-9)
    kept = {(edge.source, edge.target): edge.operation for edge in history[-1].genotype[kind].edges}
    every = max(1, len(epochs) // 4)
    for (source, target), (row, column) in zip(chosen, places, strict=True):
        ax = panels[row, column]
        for number, (name, style) in enumerate(styles.items()):
            ax.plot(
                epochs, values[:, space.edges.index((source, target)), number], color=style.colour,
                linestyle=style.dashes, marker=style.marker, markevery=(number % every, every), markersize=3,
                linewidth=1.2, label=operation_label(name),
            )  # fmt: skip
        if (source, target) in kept:
            style = operation_styles([*space.operations, kept[source, target]])[kept[source, target]]
            ax.text(
                0.5, 0.95, operation_label(kept[source, target]), transform=ax.transAxes, ha="center", va="top",
                fontsize=7, zorder=5, gid=f"kept-{source}-{target}",
                bbox={"boxstyle": "round,pad=0.25", "facecolor": style.tint, "edgecolor": style.colour,
                      "linewidth": 0.8},
            )  # fmt: skip
        ax.set_ylim(0, top)
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(labelsize=7, length=2.5)
        if edges:
            ax.set_title(f"{names[source]} → {names[target]}", fontsize=8)
        if (row + 1, column) not in places:
            ax.tick_params(labelbottom=True)
        if not edges and source == 0:
            ax.set_ylabel(f"into {names[target]}", fontsize=8)
        if not edges and row == max(0, source - space.inputs + 1):
            ax.set_title(f"from {names[source]}", fontsize=8, pad=4)
    figure.supxlabel("epoch", fontsize=8)
    if edges:
        figure.supylabel("coefficient", fontsize=8)
    handles = operation_legend(styles)
    if legend_room:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)), fontsize=7.5)
    else:
        figure.legend(
            handles=handles, loc="upper right", ncols=2 if space.nodes > 3 else 1, fontsize=7.5,
            title=f"coefficients, {kind} cell", title_fontsize=8, alignment="left",
        )  # fmt: skip
    return figure


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Writes each line's name beside its end, moved up or down where names would touch.

    Args:
        ax: the axes, with their final limits and scales.
        ends: name, x, y and colour of every line's last point.
    """
    inches = ax.get_position().height * figure_of(ax).get_size_inches()[1]
    step = 0.155 / max(inches, 0.5)
    scaled = ax.transScale.transform([(last, value) for _, last, value, _ in ends])
    low, high = ax.transScale.transform([(x, y) for x, y in zip(ax.get_xlim(), ax.get_ylim(), strict=True)])[:, 1]
    heights = ((scaled[:, 1] - low) / (high - low)).tolist()
    order = sorted(range(len(ends)), key=lambda n: heights[n])
    places = spread([heights[n] for n in order], [step] * (len(order) - 1))
    for number, y in zip(order, places, strict=True):
        name, last, value, colour = ends[number]
        ax.annotate(
            name, xy=(last, value), xytext=(1.035, y),
            textcoords="axes fraction", va="center", fontsize=8, color=INK,
            annotation_clip=False, arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.9, "shrinkA": 1,
                                               "shrinkB": 3},
        )  # fmt: skip


@styled
def plot_learning_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    *,
    ylabel: str,
    xlabel: str = "epoch",
    ax: Axes | None = None,
) -> Figure:
    """Mean over seeds and a band of one standard error, each line named at its end.

    Args:
        curves: for every label, one sequence a seed; all seeds of a label have the same number of epochs.
            With a single seed there is no band.
        ylabel: what is measured, with its unit.
        xlabel: what the steps are.
        ax: where to draw; a new figure without it.
    """
    if not curves:
        raise InvalidInput("curves: expected at least one label with its seeds, got none.")
    if ax is None:
        ax = Figure(figsize=(PAGE_WIDTH, 3.2), layout="constrained").subplots()
    ends = []
    for number, (label, seeds) in enumerate(curves.items()):
        lengths = sorted({len(seed) for seed in seeds})
        if len(lengths) != 1 or not lengths[0]:
            raise InvalidInput(f"curves[{label!r}]: expected seeds of one length above 0, got lengths {lengths}.")
        values = np.asarray(seeds, dtype=float)  # (seeds, epochs)
        steps = np.arange(1, values.shape[1] + 1)
        mean = values.mean(axis=0)
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        ax.plot(
            steps, mean, color=colour, linestyle=DASHES[number % len(DASHES)], marker=MARKERS[number % len(MARKERS)],
            markevery=max(1, len(steps) // 10), label=label,
        )  # fmt: skip
        if len(values) > 1:
            error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
            ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
        ends.append((label, float(steps[-1]), float(mean[-1]), colour))
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.02)
    ax.autoscale_view()
    label_ends(ax, ends)
    return figure_of(ax)
