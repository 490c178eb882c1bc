"""Genotypes as the command line names them: a published one, or a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nasbook.errors import InvalidInput, unknown_name


def load_genotype(name: str, also: Iterable[str] = ()) -> Any:
    """A genotype of image cells or of recurrent ones, whose operations there are.

    Args:
        name: of a published genotype, or the path of a file.
        also: other names that the command takes in its place.

    Raises:
        InvalidInput: there is no such genotype, or a part of the file is wrong; the message says which.
    """
    from nasbook.genotypes import PUBLISHED, Genotype

    if name in PUBLISHED:
        return PUBLISHED[name]
    if not name.endswith(".json") and not Path(name).exists():
        raise unknown_name("genotype", name, [*PUBLISHED, *also, "a path that ends in .json"])
    genotype = Genotype.load(name)
    check = _check_recurrent_edge if is_recurrent(genotype) else _check_image_edge
    for kind, cell in genotype.cells:
        for number, edge in enumerate(cell.edges):
            try:
                check(kind, edge)
            except InvalidInput as error:
                raise InvalidInput(f"{name}: cells.{kind}.edges[{number}]: {error}") from None
    return genotype


def load_image_genotype(name: str, also: Iterable[str] = ()) -> Any:
    """A genotype for images.

    Raises:
        InvalidInput: as :func:`load_genotype`, and where the cells are recurrent.
    """
    genotype = load_genotype(name, also)
    if is_recurrent(genotype):
        raise InvalidInput(f"{name} holds recurrent cells, for series and text: nasbook train {name}.")
    return genotype


def names_recurrent(name: str) -> bool:
    """Whether a name is that of a file with recurrent cells; a file that can't be read is no such file."""
    from nasbook.genotypes import PUBLISHED, Genotype

    try:
        return name not in PUBLISHED and is_recurrent(Genotype.load(name))
    except InvalidInput:
        return False


def is_recurrent(genotype: Any) -> bool:
    """Image cells have two input nodes, recurrent ones the last state only."""
    return any(cell.inputs == 1 for _, cell in genotype.cells)


def _check_image_edge(kind: str, edge: Any) -> None:
    from nasbook.operations import get_operation

    get_operation(edge.operation)


def _check_recurrent_edge(kind: str, edge: Any) -> None:
    from nasbook.networks import backbone_of
    from nasbook.operations import operation_of

    backbone = backbone_of(kind)
    if operation_of(edge.operation) not in backbone.operations:
        raise unknown_name(f"operation of the {backbone.name} backbone", edge.operation, backbone.operations)
