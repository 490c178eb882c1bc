"""A control for a live kernel: the cell of a growing search at any epoch (Chapter 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nasbook.errors import InvalidInput
from nasbook.plots.cell_growth import StageEpoch, chosen_kind, in_numbers
from nasbook.plots.display import describe
from nasbook.plots.recurrent_cells import draw_recurrent_cell, recurrent_cell_in_words


def explore_cell_growth(histories: Mapping[str, Sequence[StageEpoch]]) -> Any:
    """A choice of the search and a slider over its epochs, above the drawing of its cell with all weights.

    It redraws in the kernel and keeps one picture only, so that a saved notebook stays small.

    Args:
        histories: the reports of growing searches of recurrent cells, by name; they may differ in length.

    Returns:
        An ``ipywidgets`` box; its children are the controls and the picture.

    Raises:
        InvalidInput: ``ipywidgets`` is not installed, or there is no search, or one without epochs.
    """
    try:
        import ipywidgets as widgets
    except ModuleNotFoundError:
        raise InvalidInput(
            "The explorer needs ipywidgets, which is not installed. Run: pip install 'nasbook[widgets]'. "
            "animate_cell_growth shows the same without it."
        ) from None
    if not histories:
        raise InvalidInput("histories: expected at least one search, got none.")
    kinds = {name: chosen_kind(history, None) for name, history in histories.items()}
    search = widgets.Dropdown(options=list(histories), value=next(iter(histories)), description="search")
    longest = max(map(len, histories.values()))
    epoch = widgets.IntSlider(value=longest, min=1, max=longest, description="epoch", continuous_update=False)
    picture = widgets.HTML()

    def redraw(change: object = None) -> None:
        history, kind = histories[search.value], kinds[search.value]
        report = history[min(epoch.value, len(history)) - 1]
        title = f"after epoch {report.epoch}, validation loss {in_numbers(report.validation_loss)}"
        figure = draw_recurrent_cell(report.weights[kind], kind, title=title)
        words = f"The cell {title}. {recurrent_cell_in_words(report.weights[kind], kind)}"
        picture.value = describe(figure, words, dpi=110).data

    for control in (search, epoch):
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox([search, epoch]), picture])
