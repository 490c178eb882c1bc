"""A search as a moving picture: the supernet's cell, epoch by epoch, on a page that needs no kernel.

matplotlib's own player (``to_jshtml``) asks another host for its buttons' icons and gives its picture no
description. Ours takes the frames in the same way (a movie writer) and puts them behind a slider and
buttons with words on them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.animation import AbstractMovieWriter, Animation, FuncAnimation
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import DARTS_SPACE, ZERO, Space
from nasbook.plots.cells import (
    cell_axes,
    draw_edge,
    draw_nodes,
    draw_pill,
    edge_paths,
    figure_of,
    pill_size,
    text_size,
)
from nasbook.plots.curves import operation_legend
from nasbook.plots.display import Described, check_alt, close, encode_png, image_tag
from nasbook.plots.history import Epoch, edge_strengths, trajectory
from nasbook.plots.layout import DagLayout, dag_layout
from nasbook.plots.palette import (
    PAGE_WIDTH,
    operation_label,
    operation_styles,
    styled,
    tint,
    wrap_label,
)

_FRAMES_PER_SECOND = 2.0
_WIDEST = 3.6
_NARROWEST = 0.4
_TYPE_SIZES = ((8.0, 1), (7.0, 2), (0.0, 1))
"""Points and lines of the labels, the best first; 0 points stand for a marker instead of a label."""
MARKER = 0.09
"""Width of such a marker in inches."""


@functools.lru_cache(maxsize=16)
def _layout(space: Space, type_sizes: Sequence[tuple[float, int]] = _TYPE_SIZES) -> tuple[DagLayout, float]:
    """The layout of a space's cell, and the type size of its labels: 0 where the cell has no room for labels."""
    nodes = range(space.inputs, space.inputs + space.nodes)
    for points, lines in type_sizes:
        sizes = [pill_size(wrap_label(operation_label(name), lines), points) for name in space.choices]
        largest = (max(wide for wide, _ in sizes), max(high for _, high in sizes)) if points else (0.0, MARKER)
        layout = dag_layout(
            space.edges, nodes=space.nodes, inputs=space.inputs, output=tuple(nodes), width=PAGE_WIDTH - 0.12,
            labels=[largest] * len(space.edges),
        )  # fmt: skip
        if layout.smallest_gap >= 0.15 and layout.height < 5:
            break
    return layout, points


def cells_figure(
    names: Sequence[str], heights: Sequence[float], *, markers: bool, top: float = 0.0, bottom: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure with axes for cells, one above the other, and below them the legend of the operations.

    Args:
        names: the operations of the legend.
        heights: of the cells' layouts, in inches.
        markers: whether the legend shows the operations' markers; skip is a plain line all the same.
        top: room to keep above the first cell.
        bottom: room to keep between the last cell and the legend.
    """
    styles = operation_styles(names)
    longest = max(text_size(operation_label(name), 8.0)[0] for name in styles)
    columns = max(1, min(len(styles), int(PAGE_WIDTH / (longest + 0.36))))
    rows = -(-len(styles) // columns)
    columns = -(-len(styles) // rows)
    legend, title = 0.12 + 0.17 * rows, 0.28
    heights = [height + 0.12 for height in heights]
    total = legend + bottom + sum(heights) + title * len(heights) + top
    figure = Figure(figsize=(PAGE_WIDTH, total))
    panels, edge = [], total - top
    for height in heights:
        edge -= title + height
        panels.append(figure.add_axes((0.0, edge / total, 1.0, height / total)))
    handles = operation_legend(styles)
    for handle in handles:
        handle.set(linewidth=2.5, linestyle="-", markersize=MARKER * 72, markerfacecolor="white")
        if str(handle.get_marker()) in "|x" or not markers:
            handle.set(marker="")
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, fontsize=8, borderaxespad=0.2, handlelength=1.6,
        columnspacing=1.0, handletextpad=0.4,
    )  # fmt: skip
    return figure, panels


def _figure(names: Sequence[str], layouts: Sequence[tuple[DagLayout, float]]) -> tuple[Figure, list[Axes]]:
    heights = [layout.height for layout, _ in layouts]
    return cells_figure(names, heights, markers=not all(points for _, points in layouts))


def _draw_epoch(
    report: Epoch, kind: str, space: Space, ax: Axes, title: str, layout: DagLayout, points: float
) -> None:
    coefficients = trajectory([report], kind, space)[0]
    strength = edge_strengths([report], kind, space)[0]
    ax, scale = cell_axes((layout.width, layout.height), ax, title)
    choices = [number for number, name in enumerate(space.operations) if name != ZERO]
    strongest = [space.operations[choices[best]] for best in coefficients[:, choices].argmax(axis=1)]
    cell = report.genotype[kind]
    derived = {(edge.source, edge.target) for edge in cell.edges}
    styles = operation_styles(space.operations)
    paths, lines = edge_paths(layout, space.edges, space.inputs)
    draw_nodes(
        ax, layout, [line for node, line in zip(layout.output_routes, lines, strict=True) if node in cell.output],
        inputs=space.inputs, removed=set(layout.output_routes) - set(cell.connected()), scale=scale,
    )  # fmt: skip
    for number, path in enumerate(paths):
        chosen = space.edges[number] in derived
        width = _NARROWEST + (_WIDEST - _NARROWEST) * float(strength[number])
        style = dataclasses.replace(styles[strongest[number]], dashes="-")
        # A pale colour, not a transparent one: crossings stay plain, and a frame takes fewer bytes.
        shown = style if chosen else dataclasses.replace(style, colour=to_hex(tint(style.colour, 0.28)))
        draw_edge(ax, path, shown, line_width=width * scale, zorder=3 if chosen else 2)
        if chosen and points:
            text = wrap_label(operation_label(strongest[number]), 1 if points == 8.0 else 2)
            draw_pill(ax, layout.labels[number], text, style, points, scale=scale)
        elif chosen and style.marker not in "|x":  # skip and zero are plain lines
            ax.plot(*layout.labels[number], color=style.colour, marker=style.marker, markersize=MARKER * 72 * scale,
                    markerfacecolor="white", markeredgewidth=1.2 * scale, zorder=6)  # fmt: skip


@styled
def draw_supernet(
    report: Epoch, kind: str = "normal", *, space: Space = DARTS_SPACE, ax: Axes | None = None, title: str | None = None
) -> Figure:
    """Draws all edges of a cell as one epoch of the search weighs them.

    An edge is as wide as it is likely to be chosen, where the report has ``edge_probabilities``; otherwise as
    its operations weigh together, all but the zero operation (for a softmax, one minus the coefficient of
    "none"). It has the colour of the heaviest of them. Edges of the epoch's genotype are solid and carry that
    operation's name (its marker, in a cell with no room for names), the others are faint. So are nodes that the
    genotype does without.

    Args:
        report: the epoch.
        kind: which cell.
        space: the space that is searched.
        ax: where to draw; a new figure with a legend without it.
        title: shown above; the epoch and the kind by default.
    """
    layout, points = _layout(space)
    trajectory([report], kind, space)  # complains before anything is drawn
    if ax is None:
        ax = _figure(space.choices, [(layout, points)])[1][0]
    _draw_epoch(report, kind, space, ax, title or f"{kind} cell, epoch {report.epoch}", layout, points)
    return figure_of(ax)


def pick(number: int, most: int) -> list[int]:
    """At most ``most`` of ``number`` places, evenly spread, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, number - 1, min(number, most))})


def film(figure: Figure, draw: Callable[[int], None], places: Sequence[int]) -> FuncAnimation:
    """An animation whose frames are ``draw(place)`` for every place, at the pace of the player."""

    def frame(place: int) -> Iterable[Any]:
        draw(place)
        return ()

    return FuncAnimation(
        figure, frame, frames=places, init_func=lambda: (), interval=1000 / _FRAMES_PER_SECOND, cache_frame_data=False
    )


@styled
def animate_search(
    history: Sequence[Epoch], kind: str = "normal", *, space: Space = DARTS_SPACE, frames: int = 15
) -> FuncAnimation:
    """The supernet's cell over the epochs, as :func:`draw_supernet` draws it.

    Args:
        history: the reports of a search.
        kind: which cell.
        space: the space that was searched.
        frames: the most frames to draw; a longer history is thinned evenly. Fifteen stay below 400 kB.
    """
    require_positive(frames=frames)
    edge_strengths(history, kind, space)  # complains early
    figure, (ax,) = _figure(space.choices, [_layout(space)])
    last = history[-1].epoch

    def draw(place: int) -> None:
        ax.clear()
        title = f"{kind} cell, epoch {history[place].epoch} of {last}"
        draw_supernet(history[place], kind, space=space, ax=ax, title=title)

    return film(figure, draw, pick(len(history), frames))


@styled
def compare_searches(
    histories: Mapping[str, Sequence[Epoch]],
    kind: str = "normal",
    *,
    space: Space | Mapping[str, Space] = DARTS_SPACE,
    frames: int = 15,
) -> FuncAnimation:
    """The cells of several searches over the same epochs, one above the other, edges as in :func:`draw_supernet`.

    Markers say which operations the epoch's genotype has; there are no names on the edges, so that all cells fit
    on a screen.

    Args:
        histories: the reports of every search, by the label that stands above its cell, such as "L = 4".
        kind: which cell.
        space: the space that was searched; by label, where the searches differ in it.
        frames: the most frames to draw; longer histories are thinned evenly. Fifteen stay below 600 kB.

    Raises:
        InvalidInput: there is no history or an empty one, or they have not the same epochs.
    """
    require_positive(frames=frames)
    if not histories:
        raise InvalidInput("histories: expected at least one label with the reports of its search, got none.")
    spaces = dict.fromkeys(histories, space) if isinstance(space, Space) else dict(space)
    epochs: dict[str, list[int]] = {}
    for label, history in histories.items():
        if label not in spaces:
            raise unknown_name("label in space", label, spaces)
        try:
            edge_strengths(history, kind, spaces[label])  # complains early
        except InvalidInput as error:
            raise InvalidInput(f"histories[{label!r}]: {error}") from None
        epochs[label] = [report.epoch for report in history]
    first, *others = histories
    for label in others:
        if epochs[label] != epochs[first]:
            raise InvalidInput(
                f"histories: expected searches of the same epochs; {first!r} has {_span(epochs[first])}, "
                f"{label!r} has {_span(epochs[label])}."
            )
    layouts = [_layout(spaces[label], _TYPE_SIZES[-1:]) for label in histories]
    names = dict.fromkeys(name for label in histories for name in spaces[label].choices)
    figure, panels = _figure(tuple(names), layouts)

    def draw(place: int) -> None:
        for (label, history), ax, (layout, points) in zip(histories.items(), panels, layouts, strict=True):
            ax.clear()
            report = history[place]
            title = f"{label}: {kind} cell, epoch {report.epoch} of {epochs[first][-1]}"
            _draw_epoch(report, kind, spaces[label], ax, title, layout, points)

    return film(figure, draw, pick(len(epochs[first]), frames))


def _span(epochs: Sequence[int]) -> str:
    return f"{len(epochs)} epochs, {epochs[0]} to {epochs[-1]}"


class _Frames(AbstractMovieWriter):
    """Keeps every frame of an animation as a base64 PNG."""

    def __init__(self, colours: int) -> None:
        super().__init__(fps=round(_FRAMES_PER_SECOND))
        self.colours = colours
        self.pictures: list[str] = []

    @classmethod
    def isAvailable(cls) -> bool:
        return True

    def setup(self, fig: Figure, outfile: Any, dpi: float | None = None) -> None:
        self.figure = fig
        self.resolution = dpi or 100.0

    def grab_frame(self, **savefig_kwargs: Any) -> None:
        self.pictures.append(encode_png(self.figure, self.resolution, self.colours))

    def finish(self) -> None:
        pass


_PLAYER = """
<div class="nasbook-player" data-player="{key}" role="group" aria-label="Animation"
     style="display: inline-block; max-width: 100%; padding-bottom: 6px; background: white; color: #1a1a1a;
            border-radius: 4px; font-family: sans-serif; font-size: 14px; text-align: center">
{picture}
<div><input type="range" min="0" max="{last}" value="{still}" step="1" aria-label="Frame" style="width: 70%"></div>
<div>{buttons}
<output aria-live="off" style="display: inline-block; min-width: 5em">{shown} of {count}</output></div>
</div>
<script>
(function () {{
{prelude}
  document.querySelectorAll('.nasbook-player[data-player="{key}"]:not([data-ready])').forEach(function (player) {{
    player.dataset.ready = "yes";
    const slider = player.querySelector("input"), last = {last};
    const place = player.querySelector("output"), play = player.querySelector('[data-do="play"]');
{setup}
    let timer = null;
    function go(frame) {{
      slider.value = Math.min(Math.max(frame, 0), last);
      paint(Number(slider.value));
      place.textContent = (Number(slider.value) + 1) + " of " + (last + 1);
    }}
    function stop() {{ clearInterval(timer); timer = null; play.textContent = "Play"; }}
    function start() {{
      if (Number(slider.value) === last) go(0);
      play.textContent = "Pause";
      timer = setInterval(function () {{
        if (!player.isConnected || Number(slider.value) === last) stop();
        else go(Number(slider.value) + 1);
      }}, {interval});
    }}
    const doing = {{
      first: function () {{ stop(); go(0); }},
      back: function () {{ stop(); go(Number(slider.value) - 1); }},
      play: function () {{ if (timer) stop(); else start(); }},
      forth: function () {{ stop(); go(Number(slider.value) + 1); }},
      last: function () {{ stop(); go(last); }}
    }};
    player.querySelectorAll("button").forEach(function (button) {{ button.onclick = doing[button.dataset.do]; }});
    slider.oninput = function () {{ stop(); go(Number(slider.value)); }};
    go({still});
  }});
}})();
</script>
"""
_PAINT_IMAGES = """\
    const image = player.querySelector("img"), pictures = [image.src.split(",")[1]].concat(others);
    function paint(frame) { image.src = "data:image/png;base64," + pictures[frame]; }"""
_BUTTONS = {"first": "First", "back": "Back", "play": "Play", "forth": "Next", "last": "Last"}
_BUTTON_STYLE = (
    "margin: 2px; padding: 2px 10px; border: 1px solid #8a8a8a; border-radius: 4px; background: #f4f4f4; "
    "color: #1a1a1a; font: inherit; min-width: 4em; cursor: pointer"
)


@dataclass(frozen=True)
class Film:
    """A film that the page draws itself: one picture, and a script that changes it from frame to frame.

    Where few things change between frames, this takes a tenth of the bytes of as many images, and stays sharp.
    """

    picture: str
    """A frame as an ``<svg>`` with the attribute ``aria-label="{alt}"``, for the words."""
    frames: int
    """Number of frames."""
    data: str
    """What the frames differ in, as JSON; the script reads it as ``film``."""
    paint: str
    """A script that defines ``paint(frame)`` for the element ``player``; frames count from 0."""
    interval: int = 400
    """Milliseconds from frame to frame."""
    still: int = 0
    """Which frame the picture is. It shows at first, on paper, and where scripts don't run."""


def show_animation(animation: Animation | Film, alt: str, *, dpi: float = 96, colours: int = 96) -> Described:
    """The animation as HTML with a slider, which plays on a static page, in Jupyter and on Colab.

    Everything is inside: no other file, no other host. Where scripts don't run, the first frame shows; of a film, the
    one that it names.

    Args:
        animation: a matplotlib animation, or a film.
        alt: what the animation shows and what happens in it.
        dpi: pixels an inch of a frame; 96 are the pixels of a page, so that none is blurred. A film has none.
        colours: the most colours in a frame; few make it small. A film has all.
    """
    alt = check_alt(alt)
    if isinstance(animation, Film):
        prelude = f"  const film = {animation.data};"
        picture = animation.picture.replace("{alt}", html.escape(alt))
        return Described(
            _player(picture, animation.frames, prelude, animation.paint, animation.interval, animation.still), alt
        )
    figure: Figure = animation._fig  # type: ignore[attr-defined]
    writer = _Frames(colours)
    animation.save("frames", writer=writer, dpi=dpi)
    close(figure)
    first, *others = writer.pictures
    listed = ", ".join(f'"{picture}"' for picture in others)
    image = image_tag(first, alt, round(figure.get_figwidth() * 96))
    interval = round(1000 / _FRAMES_PER_SECOND)
    return Described(
        _player(image, len(writer.pictures), f"  const others = [{listed}];", _PAINT_IMAGES, interval), alt
    )


def _player(picture: str, count: int, prelude: str, setup: str, interval: int, still: int = 0) -> str:
    buttons = "\n".join(
        f'<button type="button" data-do="{do}" style="{_BUTTON_STYLE}">{word}</button>'
        for do, word in _BUTTONS.items()
    )
    return _PLAYER.format(
        key=hashlib.sha256((picture + prelude).encode()).hexdigest()[:12],  # the same frames, the same page
        picture=picture, last=count - 1, count=count, buttons=buttons, prelude=prelude, setup=setup, interval=interval,
        still=still, shown=still + 1,
    )  # fmt: skip
