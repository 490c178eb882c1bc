"""Figures with words: every picture of the book carries a description for those who don't see it.

A notebook's own PNG outputs have no place for a description that all of Jupyter, Colab and the book's pages
read. So a picture goes out as HTML: one ``<img>`` with its alt text and the image inside it, no other file.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from nasbook.errors import InvalidInput

_PIXELS_PER_INCH = 96  # CSS


@dataclass(frozen=True)
class Described:
    """A picture as a self-contained piece of HTML, with the words that stand for it.

    Jupyter, Colab and the book's pages show the HTML, a terminal shows the words.
    """

    data: str
    """The HTML."""
    alt: str
    """The description."""

    def _repr_html_(self) -> str:
        return self.data

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Mapping[str, Any]:
        return {"text/html": self.data, "text/plain": f"[{self.alt}]"}

    def __repr__(self) -> str:
        return f"[{self.alt}]"


def check_alt(alt: str) -> str:
    """The alt text without spare white space.

    Raises:
        InvalidInput: it is missing or says nothing.
    """
    if not isinstance(alt, str) or not any(character.isalpha() for character in alt):
        raise InvalidInput(
            f"alt: expected a sentence that says what the figure shows, for readers who don't see it; got {alt!r}."
        )
    return " ".join(alt.split())


def encode_png(figure: Figure, dpi: float, colours: int = 255) -> str:
    """The figure as a base64 PNG with a palette of its own: a third of the bytes, the same look."""
    from PIL import Image

    raw, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    # Maximum coverage, as the usual median cut merges hues that only few pixels have: those of thin lines.
    picture = Image.open(raw).convert("RGB").quantize(
        colours, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    )
    picture.save(packed, format="png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode("ascii")


def describe(figure: Figure | Described, alt: str, *, dpi: float = 160) -> Described:
    """The figure with its description, as an object that a notebook displays.

    Args:
        figure: a matplotlib figure, or something described already, which gets new words.
        alt: what there is to see, in a sentence or two.
        dpi: pixels an inch; twice a screen's look sharp on a good one.
    """
    alt = check_alt(alt)
    if isinstance(figure, Described):
        data = figure.data
        for name in ("alt", "aria-label"):  # of an image, and of a picture that is none
            data = data.replace(f'{name}="{html.escape(figure.alt)}"', f'{name}="{html.escape(alt)}"')
        return Described(data, alt)
    width = round(figure.get_figwidth() * _PIXELS_PER_INCH)
    picture = encode_png(figure, dpi)
    close(figure)
    return Described(image_tag(picture, alt, width), alt)


def image_tag(picture: str, alt: str, width: int) -> str:
    """An ``<img>`` that holds a base64 PNG; as wide as the figure, or as the screen when that is narrower."""
    # "dark-light": the theme is not to dim a picture that brings its own white background.
    return (
        f'<img class="nasbook-figure dark-light" alt="{html.escape(alt)}" width="{width}" '
        f'style="max-width: 100%; height: auto; background: white; border-radius: 4px" '
        f'src="data:image/png;base64,{picture}">'
    )


def close(figure: Figure) -> None:
    """Forgets the figure, so that a notebook does not show it a second time without its words."""
    import matplotlib.pyplot as plt

    plt.close(figure)


def show(figure: Figure | Described, alt: str | None = None, *, dpi: float = 160) -> None:
    """Displays a figure with its description and closes it.

    Args:
        figure: a matplotlib figure; or something described already, which needs no other words.
        alt: what there is to see, in a sentence or two. A figure without it is refused.
        dpi: pixels an inch.
    """
    if isinstance(figure, Described) and alt is None:
        described = figure
    else:
        described = describe(figure, check_alt(alt or ""), dpi=dpi)
    try:
        from IPython.display import display
    except ModuleNotFoundError:
        print(described)
    else:
        display(described)
