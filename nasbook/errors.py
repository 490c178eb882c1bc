"""The errors that a reader of the book may meet, and the words they use.

Every message says what was wrong, what was expected and what to do. The command line prints the
message alone; Python callers catch :class:`NasbookError` or the standard class it derives from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "InvalidInput",
    "NasbookError",
    "TrainingDiverged",
    "require_positive",
    "unknown_name",
]


class NasbookError(Exception):
    """Base of the errors that nasbook raises on purpose."""


class InvalidInput(NasbookError, ValueError):
    """A value, a name or a file that the caller gave is not usable as it is."""


class CheckpointError(NasbookError, RuntimeError):
    """A checkpoint can't be written, read, or used for this run."""


class DataError(NasbookError, RuntimeError):
    """A data set can't be found, downloaded, verified or read."""


class TrainingDiverged(NasbookError, ArithmeticError):
    """A loss became NaN or infinite; the message names the step."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InvalidInput:
    """The error for a name that is not in a registry, with the nearest valid names.

    Args:
        kind: what the name stands for, in the singular ("operation", "data set").
        name: what was given.
        known: every valid name.
    """
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(repr(n) for n in nearest)}? " if nearest else ""
    return InvalidInput(f"Unknown {kind} {str(name)!r}. {hint}Valid: {', '.join(known)}.")


def require_positive(**values: float) -> None:
    """Raises :class:`InvalidInput` unless every value is above zero; the names become the message's."""
    for name, value in values.items():
        if not value > 0:
            raise InvalidInput(f"{name} must be above 0, got {value}.")
