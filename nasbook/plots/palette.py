"""Colours, line styles and words that every figure of the book shares.

The colours are those of Okabe and Ito, which people with any of the common colour-vision deficiencies
can tell apart. Colour never carries a difference alone: a line style, a marker or a label repeats it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from cycler import cycler
from matplotlib.colors import to_rgb

from nasbook.genotypes import ZERO

INK = "#1a1a1a"
"""Text, axes and node outlines."""
FAINT = "#8a8a8a"
"""What is there but not the point: grids, removed nodes, the zero operation."""

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "bluish green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish purple": "#CC79A7",
}
"""The eight colours of Okabe and Ito (2008), by their own names."""

PAGE_WIDTH = 6.5
"""Width of a figure in inches; the text column of the page and of a printed sheet."""

LINE_COLOURS = tuple(
    OKABE_ITO[name] for name in ("blue", "vermillion", "bluish green", "orange", "reddish purple", "sky blue", "black")
)
"""Colours for lines on white, in order of use. Yellow is left out: it vanishes on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1.2, 1, 1.2)), (0, (7, 2)), (0, (2.5, 1.2)), "-")
"""Line styles, in order of use beside :data:`LINE_COLOURS`."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
"""Markers, in order of use beside :data:`LINE_COLOURS`."""

_STYLE: Any = {
    "figure.figsize": (PAGE_WIDTH, 3.2),
    "figure.dpi": 110,
    "figure.facecolor": "white",  # opaque: legible on a light and on a dark page alike
    # Not a default: matplotlib re-reads it after every save, and then moves axes that were placed by hand.
    "figure.constrained_layout.use": False,
    "figure.autolayout": False,
    "figure.subplot.bottom": 0.16,
    "figure.subplot.left": 0.1,
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that every machine draws the same
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=LINE_COLOURS) + cycler(linestyle=DASHES),
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}

P = ParamSpec("P")
R = TypeVar("R")


def use_style() -> None:
    """Makes the book's style the default of every matplotlib figure that follows in this process."""
    matplotlib.rcParams.update(_STYLE)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draws in the book's style, whatever the caller's matplotlib defaults are."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inner


@dataclass(frozen=True)
class OperationStyle:
    """How one operation looks in every figure."""

    colour: str
    """Colour of its line and label."""
    dashes: Any
    """Line style, as matplotlib takes it."""
    marker: str
    """Marker, as matplotlib takes it."""

    @property
    def tint(self) -> tuple[float, float, float]:
        """The colour, light enough to read dark text on."""
        return tint(self.colour, 0.1 if self.colour == OKABE_ITO["black"] else 0.18)


def tint(colour: str, amount: float = 0.18) -> tuple[float, float, float]:
    """``amount`` of a colour mixed into white."""
    red, green, blue = (1 - amount * (1 - channel) for channel in to_rgb(colour))
    return red, green, blue


_SOLID, _DASH, _DOT, _DASHDOT = DASHES[:4]
_KNOWN = {
    ZERO: OperationStyle(FAINT, _DOT, "x"),
    "skip_connect": OperationStyle(OKABE_ITO["black"], _SOLID, "|"),
    "max_pool_3x3": OperationStyle(OKABE_ITO["orange"], _SOLID, "^"),
    "avg_pool_3x3": OperationStyle(OKABE_ITO["vermillion"], _DASH, "v"),
    "sep_conv_3x3": OperationStyle(OKABE_ITO["blue"], _SOLID, "o"),
    "sep_conv_5x5": OperationStyle(OKABE_ITO["sky blue"], _DASH, "s"),
    "dil_conv_3x3": OperationStyle(OKABE_ITO["bluish green"], _SOLID, "D"),
    "dil_conv_5x5": OperationStyle(OKABE_ITO["reddish purple"], _DASH, "P"),
    # Recurrent cells (Chapter 6). Where they share a colour with the above, the line style differs.
    "sigmoid": OperationStyle(OKABE_ITO["orange"], _DASH, "^"),
    "tanh": OperationStyle(OKABE_ITO["blue"], _DASH, "o"),
    "relu": OperationStyle(OKABE_ITO["vermillion"], _SOLID, "v"),
    "sum": OperationStyle(OKABE_ITO["bluish green"], _DASH, "D"),
    "product": OperationStyle(OKABE_ITO["reddish purple"], _SOLID, "P"),
    "identity": OperationStyle(OKABE_ITO["black"], _DASH, "|"),
}


_BY_KERNEL = tuple(OKABE_ITO[name] for name in ("reddish purple", "blue", "sky blue", "bluish green"))
_BY_DEPTH = ("o", "s", "D", "P", "X", "*")
_CONFIGURATION = re.compile(r"sep_conv\(kernel=(\d+), dilation=(\d+), expansions=(none|\d+(?:-\d+)*)\)")


def _configuration(name: str) -> tuple[int, int, tuple[str, ...]] | None:
    """Kernel, dilation and expansions of a morphable convolution's name.

    Read here once more, as :mod:`nasbook.operations` needs torch, and drawings don't.
    """
    match = _CONFIGURATION.fullmatch(name)
    if match is None:
        return None
    expansions = () if match[3] == "none" else tuple(match[3].split("-"))
    return int(match[1]), int(match[2]), expansions


def _configuration_style(kernel: int, dilation: int, expansions: Sequence[str]) -> OperationStyle:
    dashes = (_DOT, _DASHDOT) if dilation > 1 else (_SOLID, _DASH)
    marker = _BY_DEPTH[min(len(expansions), len(_BY_DEPTH) - 1)]
    return OperationStyle(_BY_KERNEL[kernel // 2 % len(_BY_KERNEL)], dashes[bool(expansions)], marker)


def operation_copy(name: str) -> tuple[str, int]:
    """Which operation a candidate is, and its number on the edge: ("tanh", 2) for "tanh-2", ("tanh", 1) for "tanh".

    Read here once more, as :mod:`nasbook.operations` needs torch, and drawings don't.
    """
    operation, _, number = name.rpartition("-")
    return (operation, int(number)) if number.isdecimal() and operation in _KNOWN else (name, 1)


def _copy_style(name: str) -> OperationStyle | None:
    """The style of a second or third candidate of a known operation: the same colour and another line style."""
    operation, number = operation_copy(name)
    if number == 1:
        return None
    style, order = _KNOWN[operation], (_SOLID, _DASH, _DASHDOT, _DOT)
    return OperationStyle(style.colour, order[(order.index(style.dashes) + number - 1) % len(order)], style.marker)


def operation_styles(names: Iterable[str]) -> dict[str, OperationStyle]:
    """A style for every name; no two share both colour and line style, up to 28 names.

    The candidates of DARTS and of recurrent cells always look the same. A second candidate of the same operation on an
    edge ("tanh-2") has its colour and another line style. Morphable convolutions look the same too, and alike in
    families: their colour says the kernel size, the line style whether there are a dilation and expansions, the marker
    how many expansions. Other names take what is left, in their order, so give the names of a whole space where two
    figures are to agree.
    """
    names = list(dict.fromkeys(names))
    styles = {name: _KNOWN[name] for name in names if name in _KNOWN}
    styles |= {name: _configuration_style(*found) for name in names if (found := _configuration(name))}
    styles |= {name: style for name in names if (style := _copy_style(name))}
    unknown = [name for name in names if name not in styles]
    # Colours that no line has yet come first, then new line styles for the same colours.
    combinations = [(c, d) for d in (_SOLID, _DASH, _DASHDOT, _DOT) for c in LINE_COLOURS]
    colours = {style.colour for style in styles.values()}
    taken = {(style.colour, str(style.dashes)) for style in styles.values()}
    free = [(c, d) for c, d in combinations if (c, str(d)) not in taken]
    free.sort(key=lambda pair: pair[0] in colours)  # stable
    for number, name in enumerate(unknown):
        colour, dashes = free[number % len(free)]
        styles[name] = OperationStyle(colour, dashes, MARKERS[number % len(MARKERS)])
    return {name: styles[name] for name in names}


_SHORT = {
    "sep_conv": "sep",
    "dil_conv": "dil",
    "max_pool": "max",
    "avg_pool": "avg",
    "conv": "conv",
}
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_KERNEL = re.compile(rf"({'|'.join(_SHORT)})((?:_\d+x\d+)+)")


def operation_label(name: str) -> str:
    """A name for readers: ``sep_conv_3x3`` becomes "sep 3×3"; a name of another form stays as it is.

    A morphable convolution shows its expansions in brackets, and its dilation where it has one: "conv 5×5 [2,1]",
    "conv 3×3 d2 []". With empty ones it is not taken for ``conv_3x3``, which is not separable. A second candidate of
    the same operation has a number: ``tanh-2`` becomes "tanh₂".
    """
    if name == "skip_connect":
        return "skip"
    operation, number = operation_copy(name)
    if number > 1:
        return operation_label(operation) + str(number).translate(_SUBSCRIPTS)
    if found := _configuration(name):
        kernel, dilation, expansions = found
        return f"conv {kernel}×{kernel} {f'd{dilation} ' if dilation > 1 else ''}[{','.join(expansions)}]"
    match = _KERNEL.fullmatch(name)
    if match is None:
        return name
    kernels = [kernel.replace("x", "×") for kernel in match[2].strip("_").split("_")]
    return f"{_SHORT[match[1]]} {'→'.join(kernels)}"


def wrap_label(label: str, lines: int) -> str:
    """The label on at most ``lines`` lines, broken at its spaces, underscores and arrows, as evenly as they allow."""
    pieces = [piece for piece in re.split(r"(?<=[ _→])", label) if piece]
    if lines < 2 or len(pieces) < 2:
        return label

    def widest(parts: Sequence[str]) -> int:
        return max(len(part.rstrip()) for part in parts)

    rows = pieces
    while len(rows) > lines:
        joined = [[*rows[:at], rows[at] + rows[at + 1], *rows[at + 2 :]] for at in range(len(rows) - 1)]
        rows = min(joined, key=widest)
    return "\n".join(row.rstrip(" ") for row in rows)
