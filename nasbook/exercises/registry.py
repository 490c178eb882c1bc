"""The registry of exercises. A checker looks at what an answer does and says what to look at when it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nasbook.errors import unknown_name

CHAPTERS = (
    "nasbook.exercises.differentiable_search",
    "nasbook.exercises.stretchable_cells",
    "nasbook.exercises.engine_and_transit_cells",
    "nasbook.exercises.growing_networks",
    "nasbook.exercises.prune_and_replace",
    "nasbook.exercises.growing_recurrent_cells",
    "nasbook.exercises.firefly_tasks",
    "nasbook.exercises.ground_truth",
)
"""The modules that register exercises, one a chapter."""


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter."""

    id: str
    """Paper and topic, with a dot between."""
    chapter: str
    """The chapter's file name without ending."""
    checker: Callable[[Any], str | None]
    """None for a right answer, else a hint."""
    wrong_answers: tuple[Any, ...]
    """Answers that a reader may well give and that the checker must refuse."""
    takes_function: bool = True
    """Whether the answer is a function or a class, rather than a value."""


_EXERCISES: dict[str, Exercise] = {}


def register(exercise: Exercise) -> None:
    """Adds an exercise to the registry."""
    _EXERCISES[exercise.id] = exercise


def list_exercises() -> tuple[Exercise, ...]:
    """All exercises, in the order of the book."""
    for module in CHAPTERS:
        import_module(module)
    return tuple(_EXERCISES.values())


def get_exercise(exercise_id: str) -> Exercise:
    """The exercise of that id.

    Raises:
        InvalidInput: there is none; the message has the nearest ids.
    """
    exercises = {exercise.id: exercise for exercise in list_exercises()}
    if exercise_id not in exercises:
        raise unknown_name("exercise", exercise_id, exercises)
    return exercises[exercise_id]


def grade(exercise_id: str, answer: Any) -> str | None:
    """None when the answer is right, else a hint. An answer that raises is wrong, and the hint says how."""
    exercise = get_exercise(exercise_id)
    if answer is None or answer is ...:
        return "No answer yet: replace the dots."
    if exercise.takes_function and not callable(answer):
        return f"Give the function or class itself, not {type(answer).__name__} {answer!r}."
    try:
        return exercise.checker(answer)
    except Exception as error:  # the reader's code may raise anything; it must not end in our stack trace
        return f"Your answer raised {type(error).__name__}: {error}"


def check(exercise_id: str, answer: Any) -> None:
    """Prints "Correct." or a hint.

    Args:
        exercise_id: as the exercise says.
        answer: a number, a function or a class, as the exercise says.

    Raises:
        InvalidInput: there is no such exercise.
    """
    hint = grade(exercise_id, answer)
    print("Correct." if hint is None else f"Not yet. {hint}")
