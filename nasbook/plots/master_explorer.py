"""A control for a live kernel: the master network, task by task (Chapter 7)."""

from __future__ import annotations

from typing import Any

from nasbook.errors import InvalidInput
from nasbook.plots.display import describe
from nasbook.plots.master_network import draw_master, master_in_words, master_table


def explore_master(master: Any) -> Any:
    """A choice of the task above the drawing of its neurons: reused, copied, new, and not used.

    It redraws in the kernel and keeps one picture only, so that a saved notebook stays small.

    Args:
        master: a run with a master network, a master network itself, or its description.

    Returns:
        An ``ipywidgets`` box; its children are the choice, the counts and the picture.

    Raises:
        InvalidInput: ``ipywidgets`` is not installed, or no task is recorded.
    """
    try:
        import ipywidgets as widgets
    except ModuleNotFoundError:
        raise InvalidInput(
            "The explorer needs ipywidgets, which is not installed. Run: pip install 'nasbook[widgets]'. "
            "animate_tasks shows the same without it."
        ) from None
    master = getattr(master, "master", master)
    table = master_table(master)
    tasks = [(table.called(task), task) for task in range(table.tasks)]
    choice = widgets.Dropdown(options=[("all tasks", None), *tasks], value=table.tasks - 1, description="task")
    counts, picture = widgets.HTML(), widgets.HTML()

    def redraw(change: object = None) -> None:
        words = master_in_words(master, choice.value)
        counts.value = words
        picture.value = describe(draw_master(master, choice.value), words, dpi=110).data

    choice.observe(redraw, names="value")
    redraw()
    return widgets.VBox([choice, counts, picture])
