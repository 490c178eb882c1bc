"""The supernet: a stack of search cells that share one relaxation a kind of cell (DARTS §2.2, §3.1).

Cells that hold all candidates can stand beside cells that only follow the derived architecture: Engine- and
Transit-cells (EnTranNAS §2.2, Chapter 3).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import DARTS_SPACE, CellGenotype, Genotype, Space
from nasbook.networks import CellOutput, CellPlacement, StemName, build_stem, stack_cells
from nasbook.operations.batch_norms import Repeated, batch_norms
from nasbook.operations.pointwise import in_fast_layout
from nasbook.supernets.cells import SearchCell, SharedCell
from nasbook.supernets.fused import FusedCell
from nasbook.supernets.ragged import FusedRaggedCell
from nasbook.supernets.relaxations import Relaxation, softmax_relaxation

EngineName = Literal["fused", "readable"]

ENGINES: dict[str, type[SearchCell]] = {"fused": FusedCell, "readable": SearchCell}
"""How a cell is computed; both forms have the same parameters, state and values."""

RAGGED_ENGINES: dict[str, type[SearchCell]] = {"fused": FusedRaggedCell, "readable": SearchCell}
"""The same for cells whose edges have candidates of their own."""

EngineCells = Literal["all", "half", "last", "first"]

ENGINE_CELLS: dict[str, Callable[[int], range]] = {
    "all": lambda count: range(count),
    "half": lambda count: range((count + 1) // 2),
    "last": lambda count: range(count - 1, count),
    "first": lambda count: range(1),
}
"""For each placement of EnTranNAS' Table 1, which of the cells of one kind, in order, are Engine-cells.

The paper does not say which half: ours is the first one of each kind, rounded up.
"""


def engine_positions(kinds: Sequence[str], engine_cells: EngineCells | str) -> frozenset[int]:
    """The positions of the Engine-cells in a stack: of each kind of cell, those that the placement names.

    Args:
        kinds: the kind of every cell, in order.
        engine_cells: ``all``, ``half``, ``last`` or ``first``.

    Raises:
        InvalidInput: there is no such placement.
    """
    if engine_cells not in ENGINE_CELLS:
        raise unknown_name("placement of Engine-cells", engine_cells, ENGINE_CELLS)
    places = {kind: [place for place, other in enumerate(kinds) if other == kind] for kind in kinds}
    return frozenset(own[i] for own in places.values() for i in ENGINE_CELLS[engine_cells](len(own)))


class SearchNetwork(nn.Module):
    """A classifier that holds every candidate of the space.

    With DARTS' space, 16 channels, 8 cells and 10 classes it has 1,930,618 weights. Architecture parameters
    are not among them: :meth:`weights` and :meth:`architecture` are disjoint and together cover all
    parameters.

    Args:
        space: the cell space; or, where kinds of cell differ in their edges or candidates, one for each kind.
        channels: channels of the first cell's nodes, C.
        cells: number of cells, L.
        classes: number of classes.
        in_channels: channels of the images.
        stem: ``cifar`` (any image size) or ``imagenet`` (divides the size by 8 first).
        relaxation: builds the relaxation of one kind of cell from the space.
        engine: ``fused`` computes a cell's nodes in a few large steps, ``readable`` one module at a time, as
            the papers write it. The values are the same up to rounding, and so is the state dict.
        recompute_cells: how many cells, from the first on, keep nothing for the backward pass but what enters
            them, and are computed again there (Chen et al. 2016, "Training deep nets with sublinear memory
            cost"). Values and gradients stay the same. The first cells have the largest images.
        engine_cells: which cells hold all candidates: of each kind ``all`` (DARTS), the first ``half``, the ``last``
            or the ``first`` one. The others are Transit-cells: in every pass they run the operations that the
            architecture parameters mean at that moment, once each, and nothing else. They own all candidates, so that
            an operation which comes back finds its weights, and an optimiser their state, as it left them.
        feature_sharing: whether an operation belongs to its source node and is computed once for all later ones
            (EnTranNAS §2.3). Such a cell has one form: both engines run it module by module.
        bottleneck: by how much a cell's candidates are narrower than its nodes (EnTranNAS §2.5); 1 for not at all.
        cell_output: ``concatenation`` of a cell's nodes, or their ``mean``.

    Raises:
        InvalidInput: sizes below 1, an unknown operation, stem, engine, placement or cell output, a space that is not
            convolutional or lacks a kind of cell that the stack needs, or a bottleneck that does not divide C.
    """

    def __init__(
        self,
        space: Space | Mapping[str, Space] = DARTS_SPACE,
        channels: int = 16,
        cells: int = 8,
        classes: int = 10,
        *,
        in_channels: int = 3,
        stem: StemName | str = "cifar",
        relaxation: Callable[[Space], Relaxation] = softmax_relaxation,
        engine: EngineName | str = "fused",
        recompute_cells: int = 0,
        engine_cells: EngineCells | str = "all",
        feature_sharing: bool = False,
        bottleneck: int = 1,
        cell_output: CellOutput | str = "concatenation",
    ) -> None:
        super().__init__()
        if not 0 <= recompute_cells <= cells:
            raise InvalidInput(f"recompute_cells must be from 0 to cells, which is {cells}; got {recompute_cells}.")
        require_positive(channels=channels, cells=cells, classes=classes)
        self.spaces = dict(space) if isinstance(space, Mapping) else dict.fromkeys(space.kinds, space)
        space = next(iter(self.spaces.values()))
        if len({(other.inputs, other.nodes) for other in self.spaces.values()}) > 1:
            raise InvalidInput(
                "The spaces of a supernet's kinds of cell may differ in their edges and candidates only."
            )
        if space.inputs != 2:
            raise InvalidInput(f"A convolutional search cell has 2 input nodes, this space has {space.inputs}.")
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        self.space = space
        """The cell space; where kinds of cell differ, that of the first kind."""
        self.engine = engine
        self.recompute_cells = recompute_cells
        self.feature_sharing = feature_sharing
        self.bottleneck = bottleneck
        self.stem = build_stem(stem, in_channels, channels)
        nodes = dict.fromkeys(self.spaces, space.nodes)
        placements = stack_cells(cells, channels, self.stem, nodes, cell_output)
        self.placements = tuple(placements)
        self.cells = nn.ModuleList(self.build_cell(placement) for placement in placements)
        self.kinds = tuple(placement.kind for placement in placements)
        self.engine_positions = engine_positions(self.kinds, engine_cells)
        self.classifier = nn.Linear(placements[-1].output_channels(space.nodes), classes)
        self.relaxations = nn.ModuleDict({kind: relaxation(own) for kind, own in self.spaces.items()})
        self._child: Literal["", "derived", "weighted"] = ""
        self._chosen: Genotype | None = None

    def build_cell(self, placement: CellPlacement) -> SearchCell:
        """The cell that stands at one place of the stack. Methods with cells of their own override it."""
        space = self.spaces[placement.kind]
        engines = RAGGED_ENGINES if space.pools else ENGINES
        cell = SharedCell if self.feature_sharing else engines[self.engine]
        return cell(space, placement, self.bottleneck)

    def weights(self) -> Iterator[nn.Parameter]:
        """Every parameter that is not an architecture parameter: w of Eq. 3 and 4."""
        return (p for name, p in self.named_parameters() if not name.startswith("relaxations."))

    def architecture(self) -> Iterator[nn.Parameter]:
        """The architecture parameters: α of Eq. 3 and 4."""
        return self.relaxations.parameters()

    def coefficients(self) -> dict[str, Float[Tensor, "edges operations"]]:
        """What every candidate is multiplied by, for each kind of cell."""
        return {kind: _relaxation(module).coefficients() for kind, module in self.relaxations.items()}

    def penalty(self) -> Float[Tensor, ""]:
        """The sum of the relaxations' penalties, added to the architecture loss."""
        penalties = [_relaxation(module).penalty() for module in self.relaxations.values()]
        return torch.stack(penalties).sum()

    def genotype(self) -> Genotype:
        """The discrete cells that the architecture parameters mean now."""
        return Genotype({kind: _relaxation(module).derive() for kind, module in self.relaxations.items()})

    @contextmanager
    def child(self, genotype: Genotype | None = None, *, weighted: bool = False) -> Iterator[None]:
        """Within the block every cell runs the derived architecture only: the child-net of EnTranNAS' Table 1.

        It has the supernet's weights and batch-norm statistics. Its operations count once each, as in the derived
        network; ``weighted`` gives those of Engine-cells their coefficients.

        Args:
            genotype: run these cells, of the supernet's space, in place of the derived ones: how a supernet ranks cells
                that it would not choose (Chapter 8).
            weighted: whether the operations of Engine-cells have their coefficients.

        Raises:
            InvalidInput: the genotype lacks a kind of cell that stands in the supernet.
        """
        if genotype is not None and not set(self.kinds) <= set(genotype.kinds):
            raise InvalidInput(
                f"The supernet has cells of the kinds {', '.join(dict.fromkeys(self.kinds))}; "
                f"the genotype has {', '.join(genotype.kinds)}."
            )
        before = self._child, self._chosen
        self._child, self._chosen = "weighted" if weighted else "derived", genotype
        try:
            yield
        finally:
            self._child, self._chosen = before

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch classes"]:
        coefficients = self.coefficients()  # once a pass: all cells of a kind share them
        roles = [self._role(place) for place in range(len(self.cells))]
        derived: dict[str, CellGenotype] = {}
        for (_, follows), kind in zip(roles, self.kinds, strict=True):
            if follows and kind not in derived:  # deriving waits for the device: only where a cell needs it
                derived[kind] = self._derived(kind)
        if self.engine == "fused":
            images = in_fast_layout(images)
        older, newer = self.stem(images)
        for place, (cell, kind, (weighs, follows)) in enumerate(zip(self.cells, self.kinds, roles, strict=True)):
            again = place < self.recompute_cells and torch.is_grad_enabled()
            run = functools.partial(_run_again_later, cell) if again else cell
            given = coefficients[kind] if weighs else None
            older, newer = newer, run(older, newer, given, derived[kind] if follows else None)
        return self.classifier(F.adaptive_avg_pool2d(newer, 1).flatten(1))

    def _derived(self, kind: str) -> CellGenotype:
        """The cell of this kind that a pass runs where it runs one only."""
        return _relaxation(self.relaxations[kind]).derive() if self._chosen is None else self._chosen[kind]

    def _role(self, place: int) -> tuple[bool, bool]:
        """Whether a cell weighs its operations, and whether it runs those of the derived cell only."""
        engine = place in self.engine_positions
        if self._child:
            return engine and self._child == "weighted", True
        # Where what is not derived has coefficient zero, the Engine-cell does without it too.
        return engine, not engine or _relaxation(self.relaxations[self.kinds[place]]).sparse


def _run_again_later(cell: nn.Module, *inputs: Tensor | CellGenotype | None) -> Tensor:
    """The cell's output; what it computes on the way is computed again in the backward pass.

    The second run must be the first one's repetition: at the weights of now, which a functional call may have put in
    place for this pass only, and without a second look of the batch norms at the same images.
    """
    parameters = dict(cell.named_parameters())
    # Detached, a weight that needs no gradient now will not need one in the second run either.
    weights = [weight if weight.requires_grad else weight.detach() for weight in parameters.values()]
    again = Repeated(batch_norms(cell))

    def run(*arguments: Any) -> Tensor:
        given = dict(zip(parameters, arguments[len(inputs) :], strict=True))
        return functional_call(cell, given, arguments[: len(inputs)])

    def contexts() -> tuple[AbstractContextManager[None], Repeated]:
        return nullcontext(), again

    return checkpoint(run, *inputs, *weights, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _relaxation(module: nn.Module) -> Relaxation:
    assert isinstance(module, Relaxation)  # for the type checker: ModuleDict forgets
    return module
