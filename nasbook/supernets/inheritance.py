"""What a supernet takes over from the one before: weights of what stays, and of parents (PR-DARTS §3.2; Chapter 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nasbook.growth.operation_morphisms import morph
from nasbook.networks import CellPlacement
from nasbook.operations import MorphableConvolution
from nasbook.supernets.cells import SearchCell, candidates_of
from nasbook.supernets.pools import Life, Pool
from nasbook.supernets.search_network import SearchNetwork


def inherit(
    network: SearchNetwork, earlier: SearchNetwork, pools: Mapping[str, Sequence[Pool]], generator: torch.Generator
) -> None:
    """Gives a supernet the weights of the one before, whose pools were pruned and got children.

    A candidate that stays keeps its weights and the statistics of its batch norms; a child gets those of its parent,
    morphed. Architecture parameters stay as they are. With other cells than before, each takes what fits from its
    :func:`corresponding cell <corresponding_cells>`; what fits nowhere keeps its fresh weights.

    Args:
        network: the new supernet; changed in place.
        earlier: the one before; left as it is.
        pools: for every kind of cell the pools of the new one, edge by edge.
        generator: draws the weights into new neurons, on the CPU.
    """
    _take_over(network.stem, earlier.stem)
    _take_over(network.classifier, earlier.classifier)
    sources = corresponding_cells(network.placements, earlier.placements)
    for cell, placement, source in zip(network.cells, network.placements, sources, strict=True):
        if source is None:
            continue
        assert isinstance(cell, SearchCell)  # for the type checker: ModuleList forgets
        before = earlier.cells[source]
        assert isinstance(before, SearchCell)
        for part in ("preprocessing", "narrow", "widen"):
            own, former = cell.get_submodule(part), before.get_submodule(part)
            for module, module_before in zip(own.children(), former.children(), strict=True):
                _take_over(module, module_before)
        for mixed, mixed_before, pool in zip(cell.edges, before.edges, pools[placement.kind], strict=True):
            candidates, parents = candidates_of(mixed), candidates_of(mixed_before)
            for name in set(candidates) & set(parents):
                _take_over(candidates[name], parents[name])
            for life in _children(pool):
                parent = parents[str(life.parent)]
                assert isinstance(parent, MorphableConvolution)  # the pool saw to it
                child = morph(parent, str(life.morphism), generator)
                candidates[life.operation].load_state_dict(child.state_dict())


def corresponding_cells(new: Sequence[CellPlacement], old: Sequence[CellPlacement]) -> list[int | None]:
    """For each new cell, the old one whose weights it takes.

    One that stood in an equal place: the first for the first, the last for all others. Else the last one of the same
    kind and channels, whose candidates fit, if not its preprocessing. Else none.
    """
    found: list[int | None] = []
    for place, placement in enumerate(new):
        equal = [i for i, other in enumerate(old) if other == placement]
        alike = [i for i, o in enumerate(old) if (o.kind, o.channels) == (placement.kind, placement.channels)]
        if equal:
            found.append(equal[min(new[:place].count(placement), len(equal) - 1)])
        else:
            found.append(alike[-1] if alike else None)
    return found


def _children(pool: Pool) -> list[Life]:
    """The candidates that have not trained yet."""
    return [life for life in pool.living if life.parent is not None and not life.weights]


def _take_over(module: nn.Module, earlier: nn.Module) -> None:
    """Loads the earlier module's state if it has the same form; else leaves all as it is."""
    before, own = earlier.state_dict(), module.state_dict()
    if {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in own.items()}:
        module.load_state_dict(before)
