"""The tabular benchmark: what every cell of a small space reaches, looked up instead of trained (Chapter 8).

855 cells, five trainings each: losses and validation accuracies of every epoch, test accuracy, parameters,
multiply-adds, seconds. A look-up takes microseconds, so that a search which would train for an hour is repeated a
thousand times. Cells that are the same graph have one entry.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nasbook.errors import InvalidInput
from nasbook.genotypes import CellGenotype, Genotype
from nasbook.tabular.space import (
    TABULAR_SPACE,
    Code,
    TabularCells,
    all_codes,
    canonical,
    canonical_codes,
    code_of,
    genotype_of,
)

__all__ = ["Entry", "Table", "load_table"]

FILE = Path(__file__).parent / "digits.npz"
"""The table, made by ``tools/tabular.py``."""

ARRAYS = (
    "codes", "train_loss", "validation_loss", "validation_correct", "test_loss", "test_correct", "seconds",
    "parameters", "macs",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Entry:
    """One cell of the table, with a row a training in every array."""

    index: int
    """Its row in the table, from 0."""
    genotype: Genotype
    """The cell, in the labelling that the table keeps."""
    train_loss: Float[np.ndarray, "seeds epochs"]
    """Mean cross entropy over each epoch's training batches."""
    validation_loss: Float[np.ndarray, "seeds epochs"]
    """On the 320 held-out images, after each epoch."""
    validation_accuracies: Float[np.ndarray, "seeds epochs"]
    """On the same."""
    test_loss: Float[np.ndarray, " seeds"]
    """On the 1,157 test images, after the last epoch."""
    test_accuracies: Float[np.ndarray, " seeds"]
    """On the same."""
    seconds: Float[np.ndarray, " seeds"]
    """CPU time of a training side by side with others, evaluations included."""
    parameters: int
    """Of the network."""
    macs: int
    """Multiply-adds for one image."""
    rank: int
    """1 for the highest mean test accuracy; of equals the one with fewer parameters, then the earlier row."""
    labellings: int
    """How many labelled graphs are this cell: 1 or 2."""

    @property
    def test_accuracy(self) -> float:
        """Mean over the trainings: the truth that a search is judged by."""
        return float(self.test_accuracies.mean())

    @property
    def validation_accuracy(self) -> float:
        """Mean over the trainings, after the last epoch. A search may see the seeds' own, never the test."""
        return float(self.validation_accuracies[:, -1].mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the test accuracy over the trainings (n − 1)."""
        return float(self.test_accuracies.std(ddof=1))


class Table:
    """All entries. ``table[genotype]`` looks one up, ``table[row]`` too; iteration goes through all in order of rows.

    Args:
        arrays: as :func:`load_table` reads them from a file.
        provenance: how they were made.
    """

    def __init__(self, arrays: dict[str, np.ndarray], provenance: dict[str, Any]) -> None:
        self.provenance = provenance
        """Commit, versions, hardware, recipe, data and its checksum."""
        self._arrays = arrays
        self._codes: list[Code] = [tuple(map(int, code)) for code in arrays["codes"]]
        self._rows = {code: self._codes.index(canonical(code)) for code in all_codes()}
        self._labellings = np.bincount(list(self._rows.values()), minlength=len(self._codes))
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[Entry]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: Genotype | CellGenotype | int) -> Entry:
        """The entry of a cell in any labelling, or of a row.

        Raises:
            InvalidInput: the cell is not of this space, or there is no such row.
        """
        row = self.row(key)
        if row not in self._entries:
            arrays = self._arrays
            self._entries[row] = Entry(
                index=row,
                genotype=genotype_of(self._codes[row]),
                train_loss=arrays["train_loss"][row].astype(float),
                validation_loss=arrays["validation_loss"][row].astype(float),
                validation_accuracies=arrays["validation_correct"][row] / self.provenance["held_out_images"],
                test_loss=arrays["test_loss"][row].astype(float),
                test_accuracies=arrays["test_correct"][row] / self.provenance["test_images"],
                seconds=arrays["seconds"][row].astype(float),
                parameters=int(arrays["parameters"][row]),
                macs=int(arrays["macs"][row]),
                rank=int(self.ranks[row]),
                labellings=int(self._labellings[row]),
            )
        return self._entries[row]

    def row(self, key: Genotype | CellGenotype | int) -> int:
        """The row of a cell in any labelling; a row is checked and given back.

        Raises:
            InvalidInput: the cell is not of this space, or there is no such row.
        """
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            if not 0 <= key < len(self):
                raise InvalidInput(f"The table has rows 0 to {len(self) - 1}, there is no row {key}.")
            return int(key)
        if not isinstance(key, (Genotype, CellGenotype)):
            raise InvalidInput(f"Look up a Genotype, a CellGenotype or a row, not a {type(key).__name__}.")
        return self._rows[code_of(key)]

    def __contains__(self, key: object) -> bool:
        try:
            self.row(key)  # type: ignore[arg-type]
        except InvalidInput:
            return False
        return True

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the trainings: the first axis of an entry's arrays."""
        return tuple(self.provenance["seeds"])

    @cached_property
    def test_accuracies(self) -> Float[np.ndarray, "cells seeds"]:
        """Of all cells and trainings."""
        return self._arrays["test_correct"] / self.provenance["test_images"]

    @cached_property
    def validation_accuracies(self) -> Float[np.ndarray, "cells seeds"]:
        """Of all cells and trainings, after the last epoch."""
        return self._arrays["validation_correct"][:, :, -1] / self.provenance["held_out_images"]

    @cached_property
    def parameters(self) -> Int[np.ndarray, " cells"]:
        """Of all cells' networks."""
        return self._arrays["parameters"]

    @cached_property
    def macs(self) -> Int[np.ndarray, " cells"]:
        """Multiply-adds of all cells' networks for one image."""
        return self._arrays["macs"]

    @cached_property
    def ranks(self) -> Int[np.ndarray, " cells"]:
        """The rank of every row, from 1."""
        correct = self._arrays["test_correct"].sum(1, dtype=np.int64)  # whole numbers: equals are equals
        order = np.lexsort((np.arange(len(self)), self.parameters, -correct))
        ranks = np.empty(len(self), np.int64)
        ranks[order] = np.arange(1, len(self) + 1)
        return ranks

    @property
    def best(self) -> Entry:
        """The entry of rank 1."""
        return self[int(self.ranks.argmin())]

    def regret(self, key: Genotype | CellGenotype | int) -> float:
        """How far the mean test accuracy of a cell is below the best cell's; 0 for the best."""
        return self.best.test_accuracy - self[key].test_accuracy

    def validate(self, genotype: Genotype | CellGenotype | int, seed: int) -> float:
        """What a search sees that trains a cell once: the validation accuracy of one training, after its last epoch.

        Raises:
            InvalidInput: the cell is not of this space, or the table has no training with that seed.
        """
        if seed not in self.seeds:
            raise InvalidInput(f"The table's trainings have the seeds {', '.join(map(str, self.seeds))}; got {seed}.")
        return float(self.validation_accuracies[self.row(genotype), self.seeds.index(seed)])

    def neighbours(self, key: Genotype | CellGenotype | int) -> tuple[Entry, ...]:
        """The entries of all cells that have another operation, or none, on one edge; in order of rows."""
        return tuple(self[other] for other in TabularCells().neighbours(self[key].genotype))


@cache
def _load(path: Path) -> Table:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
            provenance = json.loads(str(file["provenance"]))
    except FileNotFoundError:
        raise InvalidInput(f"There is no table at {path}. tools/tabular.py makes one.") from None
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path} is not a table of nasbook: {error}.") from None
    if {tuple(map(int, code)) for code in arrays["codes"]} != set(canonical_codes()):
        raise InvalidInput(f"{path} is not a table of nasbook: its codes are not those of the space's cells.")
    cells = {len(arrays[name]) for name in ARRAYS}
    if len(cells) > 1 or arrays["codes"].shape[1:] != (len(TABULAR_SPACE.edges),):
        raise InvalidInput(f"{path} is not a table of nasbook: its arrays don't have one row a cell.")
    return Table(arrays, provenance)


def load_table(path: str | os.PathLike[str] | None = None) -> Table:
    """The table in the package, or one that ``tools/tabular.py`` wrote; read once.

    Raises:
        InvalidInput: there is no file, or it is no table.
    """
    return _load(FILE if path is None else Path(path))
