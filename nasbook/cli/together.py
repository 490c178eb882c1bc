"""The command line in several processes, as torchrun starts them: they share one run, and the first one speaks."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence

from nasbook import processes
from nasbook.cli.options import Usage, value_of

COMMANDS = ("search", "train")
"""What can run in several processes."""


@contextlib.contextmanager
def together(arguments: Sequence[str]) -> Iterator[None]:
    """Within the block, this process is one of those that torchrun has started; nothing changes where it has not.

    Raises:
        Usage: the command runs in one process only.
        InvalidInput: the device is not here, or there are fewer GPUs than processes.
    """
    if not processes.launched():
        yield
        return
    from nasbook.environment import resolve_device

    if arguments[0] not in COMMANDS:
        raise Usage(f"nasbook {arguments[0]} runs in one process; start it without torchrun.")
    device = resolve_device(value_of("--device", list(arguments)) or "auto")
    with processes.joined(device), contextlib.ExitStack() as stack:
        if not processes.is_first():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def speaker() -> str:
    """How this process begins an error that it may have alone: the program's name, and its number unless it is 0."""
    number = os.environ.get("RANK", "0") if processes.launched() else "0"
    return "nasbook" if number == "0" else f"nasbook, process {number}"


def is_speaker() -> bool:
    """Whether this process says what all processes have to say."""
    return speaker() == "nasbook"


def program() -> list[str]:
    """How this program was started, without its arguments."""
    if not processes.launched():
        return ["nasbook"]
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    return ["torchrun", "--nproc-per-node", here, "-m", "nasbook"]
