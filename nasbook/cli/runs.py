"""What the commands share that run for a while: checkpoints, and what they write at the end."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nasbook.cli.options import Interrupted, RunOptions
from nasbook.errors import InvalidInput


@contextlib.contextmanager
def interrupted_if(saved: Callable[[], bool]) -> Iterator[None]:
    """Within the block, Ctrl-C says how to go on where something is saved."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted if saved() else KeyboardInterrupt from None


def drive_run(run: Any, options: RunOptions, label: str) -> None:
    """Takes a run to its end, with a checkpoint in ``--out``.

    Raises:
        InvalidInput: there is a checkpoint and no ``--resume``, or the other way round.
    """
    from nasbook.training import drive

    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise InvalidInput(f"{options.out} holds a run already: give --resume to go on with it, or another --out.")
    if options.resume and not checkpoint.exists():
        raise InvalidInput(f"There is no checkpoint in {options.out} to resume; leave --resume out to begin.")
    with interrupted_if(checkpoint.exists):
        drive(
            run,
            checkpoint=checkpoint,
            resume=options.resume,
            checkpoint_steps=options.checkpoint_steps,
            label=label,
            progress=not options.quiet,
        )


def write_found_cells(search: Any, result: Any, out: Path) -> None:
    """Writes genotype.json and result.json of a search, and prints its cells and how they changed, if they did."""
    from nasbook.methods.firefly_cells import Search as FireflySearch
    from nasbook.methods.firefly_cells import growing_cell
    from nasbook.methods.growing_search import GrowingSearch

    result.genotype.save(out / "genotype.json")
    content = {**search.header(), "history": curves(search.history)}
    if isinstance(search, GrowingSearch):
        for row, report in zip(content["history"], search.history, strict=True):
            row["weights"] = report.weights
        content["events"] = [asdict(event) for event in search.events]
        for event in search.events:
            print(f"after epoch {event.epoch}, in stage {event.stage}: {event_in_words(event)}")
    if isinstance(search, FireflySearch):
        content["events"] = [event.to_state() for event in search.events]
        for number, growth in enumerate(search.events, start=1):
            kind = search.space.kinds[growing_cell(number)]
            loss = f"validation loss {growth.loss_before:.4f} → {growth.loss_after:.4f}"
            print(f"after epoch {growth.epoch}: {kind} grew, {loss}, {growth.parameters:,} parameters")
    write_json(out / "result.json", content)
    for kind, cell in result.genotype.cells:
        print(f"{kind}: " + ", ".join(f"{e.source}→{e.target} {e.operation}" for e in cell.edges))


def event_in_words(event: Any) -> str:
    """One line about a :class:`~nasbook.methods.growing_search.CellEvent`."""
    what = {"node": "one more node", "prune": "pruned", "stop": "no gain, so back to the stage before"}
    changes = (f"{change['what']} {change['candidate']}" for change in event.operations)
    said = what.get(event.what) or f"{event.what}: {', '.join(changes)}"
    loss = f"validation loss {event.loss_before:.4f} → {event.loss_after:.4f}"
    return f"{said}, {loss}, {event.parameters:,} parameters"


def curves(history: Sequence[Any]) -> list[dict[str, Any]]:
    """Every number that the epochs measured; null where one did not (an epoch without evaluation has NaN)."""
    rows = ({field.name: getattr(report, field.name) for field in fields(report)} for report in history)
    return [
        {name: finite(value) for name, value in row.items() if isinstance(value, (int, float))} for row in rows
    ]


def finite(value: float) -> float | None:
    """The number, or None for what JSON does not have."""
    return value if math.isfinite(value) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    from nasbook.files import whole_file

    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def save_weights(network: Any, path: Path) -> None:
    """Writes the state of a network, whole or not at all."""
    from safetensors.torch import save

    from nasbook.files import whole_file

    with whole_file(path) as file:
        file.write(save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}))
