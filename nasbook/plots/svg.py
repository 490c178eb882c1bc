"""Pieces of SVG, for the films that the page draws itself."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from nasbook.plots.palette import INK, PAGE_WIDTH

PIXELS = 96
"""Pixels an inch."""
WIDTH = round(PAGE_WIDTH * PIXELS)
"""Width of a picture in pixels."""
DASHES = ("", "6 3", "2 2", "6 2 2 2")
"""Line styles, in order of use; the first is solid."""


def decimal(value: float) -> str:
    """A number with at most one digit after the point."""
    return f"{value:.1f}".removesuffix(".0")


def tag(name: str, inside: str = "", **attributes: object) -> str:
    """One element; ``_`` at the end of an attribute's name is dropped, elsewhere it is a hyphen."""
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="'
        f'{decimal(value) if isinstance(value, float) else html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{inside}</{name}>" if inside or name in ("g", "text") else f"<{name}{written}/>"


def text(x: float, y: float, words: str, anchor: str = "middle", **attributes: object) -> str:
    """Words, their baseline at (x, y)."""
    return tag("text", html.escape(words), x=x, y=y, text_anchor=anchor, **attributes)


def path_data(path: Path, place: Mapping[str, float]) -> str:
    """A path as SVG writes it: inches, upwards from the bottom, become pixels, downwards from the top.

    Args:
        path: the path.
        place: ``x`` and ``y`` of its origin in pixels, and ``scale``, pixels a unit.
    """
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    parts = []
    for vertices, code in path.iter_segments(simplify=False):
        if code == Path.CLOSEPOLY:
            parts.append("Z")
            continue
        points = np.asarray(vertices).reshape(-1, 2)
        at = [
            decimal(float(value))
            for x, y in points
            for value in (place["x"] + x * place["scale"], place["y"] - y * place["scale"])
        ]
        parts.append(letters[code] + " ".join(at))
    return "".join(parts)


def marker_data(marker: str, size: float) -> str:
    """The outline of a matplotlib marker around the origin; empty for "|" and "x", which stand for a plain line."""
    if marker in "|x":
        return ""
    shape = MarkerStyle(marker)
    path = shape.get_path().transformed(shape.get_transform())
    return path_data(path, {"x": 0, "y": 0, "scale": size})


def picture(parts: list[str], height: int) -> str:
    """The first frame of a film, as wide as the page; its description is still ``{alt}``."""
    # "dark-light": the theme is not to dim a picture that brings its own white background.
    head = (
        f'<svg role="img" aria-label="{{alt}}" class="nasbook-figure dark-light" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" style="max-width: 100%; height: auto; background: white" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="{INK}">'
    )
    return "\n".join([head, *parts, "</svg>"])
