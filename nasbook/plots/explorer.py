"""A control for a live kernel: any epoch and any cell of a search, at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.plots.animation import draw_supernet
from nasbook.plots.cells import cell_in_words
from nasbook.plots.display import describe
from nasbook.plots.history import Epoch, trajectory


def explore_search(
    history: Sequence[Epoch], *, space: Space = DARTS_SPACE, draw: Callable[..., Figure] = draw_supernet
) -> Any:
    """A slider over the epochs and a choice of the cell, above the drawing of the supernet.

    It redraws in the kernel and keeps one picture only, so that a saved notebook stays small.

    Args:
        history: the reports of a search.
        space: the space that was searched.
        draw: what draws one epoch, :func:`draw_supernet` or :func:`draw_connections`.

    Returns:
        An ``ipywidgets`` box; its children are the controls and the picture.

    Raises:
        InvalidInput: ``ipywidgets`` is not installed, or history and space don't match.
    """
    try:
        import ipywidgets as widgets
    except ModuleNotFoundError:
        raise InvalidInput(
            "The explorer needs ipywidgets, which is not installed. Run: pip install 'nasbook[widgets]'. "
            "animate_search shows the same without it."
        ) from None
    kinds = [kind for kind in history[0].coefficients if kind in history[0].genotype.kinds] if history else ["normal"]
    for kind in kinds:
        trajectory(history, kind, space)
    reports = {report.epoch: report for report in history}
    epoch = widgets.SelectionSlider(
        options=list(reports), value=history[-1].epoch, description="epoch", continuous_update=False
    )
    cell = widgets.Dropdown(options=kinds, value=kinds[0], description="cell")
    picture = widgets.HTML()

    def redraw(change: object = None) -> None:
        report = reports[epoch.value]
        words = f"The {cell.value} cell after epoch {report.epoch}. {cell_in_words(report.genotype[cell.value])}"
        picture.value = describe(draw(report, cell.value, space=space), words, dpi=110).data

    epoch.observe(redraw, names="value")
    cell.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox([epoch, cell]), picture])
