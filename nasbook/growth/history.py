"""The history of a network that grew: what was done to it when, and what that was worth.

The cuts of all events, made again on the network that it began with, give its present structure; weights come from a
checkpoint. A history is plain values, so it can stand in a checkpoint or in a JSON file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nasbook.errors import InvalidInput
from nasbook.files import whole_file
from nasbook.growth.surgery import Cut, replay
from nasbook.networks.growable import Growable

FORMAT = "nasbook.growth"
VERSION = 1


@dataclass(frozen=True)
class GrowthEvent:
    """One growth."""

    epoch: int
    """Epochs that were finished before it."""
    method: str
    """Name of the growth method."""
    cuts: tuple[Cut, ...]
    """What was done to the structure."""
    neurons: dict[str, int]
    """Neurons of each width after it, in the order of the data."""
    parameters: int
    """Parameters of the network after it."""
    loss_before: float
    """Of the network before, in evaluation mode, over the images that the growth looked at."""
    loss_after: float
    """Of the grown network, over the same images."""
    predicted: float | None
    """The change of the loss that the method foresaw; None where it foresees none."""
    seconds: float
    """Wall time of the growth, all its epochs."""

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {**asdict(self), "cuts": [list(cut) for cut in self.cuts]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GrowthEvent:
        """The inverse of :meth:`to_state`."""
        return cls(**{**state, "cuts": tuple(tuple(cut) for cut in state["cuts"])})


def replay_history(network: Growable, events: Sequence[GrowthEvent]) -> Growable:
    """The structure after some events, from a network like the one that the history began with; weights are not."""
    return replay(network, [cut for event in events for cut in event.cuts])


def save_history(events: Sequence[GrowthEvent], path: str | os.PathLike[str]) -> None:
    """Writes a history as JSON, whole or not at all.

    Raises:
        InvalidInput: the file system refuses.
    """
    states = [event.to_state() for event in events]
    content = {"format": FORMAT, "version": VERSION, "events": states}
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def load_history(path: str | os.PathLike[str]) -> list[GrowthEvent]:
    """Reads what :func:`save_history` wrote.

    Raises:
        InvalidInput: the file can't be read or is no history.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            found = f"{content['format']} of version {content['version']}"
            raise InvalidInput(f"{path} is a {found}; expected {FORMAT} of version {VERSION}.")
        return [GrowthEvent.from_state(state) for state in content["events"]]
    except OSError as error:
        raise InvalidInput(f"Can't read the growth history {path}: {error.strerror}.") from error
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path} is no growth history of nasbook ({error}).") from error
