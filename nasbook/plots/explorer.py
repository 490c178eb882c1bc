"""A control for a live kernel: any epoch and any cell of a search, or of several, at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.plots.animation import draw_supernet
from nasbook.plots.cells import cell_in_words
from nasbook.plots.display import describe
from nasbook.plots.history import Epoch, trajectory


def explore_search(
    history: Sequence[Epoch] | Mapping[str, Sequence[Epoch]],
    *,
    space: Space = DARTS_SPACE,
    draw: Callable[..., Figure] = draw_supernet,
) -> Any:
    """A slider over the epochs and a choice of the cell, above the drawing of the supernet.

    It redraws in the kernel and keeps one picture only, so that a saved notebook stays small.

    Args:
        history: the reports of a search; or those of several of equal length by name, which adds a choice of the
            search.
        space: the space that was searched.
        draw: what draws one epoch, :func:`draw_supernet` or :func:`draw_connections`.

    Returns:
        An ``ipywidgets`` box; its children are the controls and the picture.

    Raises:
        InvalidInput: ``ipywidgets`` is not installed, or histories and space don't match.
    """
    try:
        import ipywidgets as widgets
    except ModuleNotFoundError:
        raise InvalidInput(
            "The explorer needs ipywidgets, which is not installed. Run: pip install 'nasbook[widgets]'. "
            "animate_search shows the same without it."
        ) from None
    histories = dict(history) if isinstance(history, Mapping) else {"": history}
    first = next(iter(histories.values()), [])
    kinds = [kind for kind in first[0].coefficients if kind in first[0].genotype.kinds] if first else ["normal"]
    for reports in histories.values():
        if [report.epoch for report in reports] != [report.epoch for report in first]:
            raise InvalidInput("The searches have different epochs; explore them one by one.")
        for kind in kinds:
            trajectory(reports, kind, space)
    found = {(name, report.epoch): report for name, reports in histories.items() for report in reports}
    epoch = widgets.SelectionSlider(
        options=[report.epoch for report in first], value=first[-1].epoch, description="epoch", continuous_update=False
    )
    cell = widgets.Dropdown(options=kinds, value=kinds[0], description="cell")
    search = widgets.Dropdown(options=list(histories), value=next(iter(histories)), description="search")
    picture = widgets.HTML()

    def redraw(change: object = None) -> None:
        report = found[search.value, epoch.value]
        words = f"The {cell.value} cell after epoch {report.epoch}. {cell_in_words(report.genotype[cell.value])}"
        picture.value = describe(draw(report, cell.value, space=space), words, dpi=110).data

    controls = [epoch, cell, search] if isinstance(history, Mapping) else [epoch, cell]
    for control in controls:
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox(controls), picture])
