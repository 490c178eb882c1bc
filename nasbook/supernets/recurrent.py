"""The recurrent supernet: stacked cells with every candidate, each layer with architecture parameters of its own
(growing DARTS, Eq. 1, 2, 12, 23, 25; Chapter 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import require_positive
from nasbook.genotypes import Genotype, Space
from nasbook.networks import RecurrentCell, RecurrentEngineName, RecurrentStack, SequenceTask, build_head
from nasbook.supernets.relaxations import Relaxation, SoftmaxRelaxation, softmax_relaxation


class RecurrentSearchNetwork(nn.Module):
    """A sequence network that holds every candidate of its cells' spaces.

    :meth:`weights` and :meth:`architecture` are disjoint and together cover all parameters.

    Args:
        spaces: for every layer, from the first, the kind of its cell and its space, as
            ``backbone.space(nodes, layers)`` has them.
        task: the data, or what says as much of them.
        hidden: width of the states, n_h.
        relaxation: builds the relaxation of one layer.
        engine: ``fused`` or ``readable``: the same values up to rounding, and the same state dict.

    Raises:
        InvalidInput: a kind is of no recurrent backbone, or a size is below 1.
    """

    def __init__(
        self,
        spaces: Mapping[str, Space],
        task: SequenceTask,
        hidden: int,
        *,
        relaxation: Callable[[Space], Relaxation] = softmax_relaxation,
        engine: RecurrentEngineName | str = "fused",
    ) -> None:
        super().__init__()
        require_positive(hidden=hidden)
        self.spaces = dict(spaces)
        self.head = build_head(task, hidden)
        self.body = RecurrentStack(list(self.spaces.items()), self.head.width, hidden, engine=engine)
        self.relaxations = nn.ModuleDict({kind: relaxation(space) for kind, space in self.spaces.items()})

    def cell(self, kind: str) -> RecurrentCell:
        """The cell of a kind."""
        found = self.body.layers[list(self.spaces).index(kind)]
        assert isinstance(found, RecurrentCell)  # for the type checker: ModuleList forgets
        return found

    def relaxation(self, kind: str) -> Relaxation:
        """The relaxation of a kind of cell."""
        found = self.relaxations[kind]
        assert isinstance(found, Relaxation)
        return found

    def weights(self) -> Iterator[nn.Parameter]:
        """Every parameter that is not an architecture parameter: w of Eq. 3."""
        return (p for name, p in self.named_parameters() if not name.startswith("relaxations."))

    def architecture(self) -> Iterator[nn.Parameter]:
        """The architecture parameters: α of Eq. 2 and 3."""
        return self.relaxations.parameters()

    def coefficients(self) -> dict[str, Float[Tensor, "edges operations"]]:
        """What every candidate is multiplied by, for each layer."""
        return {kind: self.relaxation(kind).coefficients() for kind in self.spaces}

    def penalty(self) -> Float[Tensor, ""]:
        """The sum of the relaxations' penalties."""
        return torch.stack([self.relaxation(kind).penalty() for kind in self.spaces]).sum()

    def genotype(self) -> Genotype:
        """The discrete cells that the architecture parameters mean now: one operation a node (§3.2.3, k = 1)."""
        return Genotype(
            {kind: replace(self.relaxation(kind).derive(), output=self.cell(kind).output) for kind in self.spaces}
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions for a batch of examples: forecasts, or logits at every step."""
        coefficients = list(self.coefficients().values())  # once a pass, not once a time step
        return self.head.leave(self.body(self.head.enter(inputs), coefficients))


class NodeSoftmax(SoftmaxRelaxation):
    """One softmax for all edges that enter a node: five combination weights a node, as Eq. 22 to 25 count them.

    Eq. 1 has five for every *edge*, which growth needs (Eq. 18, 19). For the Two-to-One cell both are the same.
    """

    def __init__(self, space: Space, scale: float = 1e-3) -> None:
        super().__init__(space, scale)
        self.alpha = nn.Parameter(scale * torch.randn(space.nodes, len(space.operations)))

    def coefficients(self) -> Float[Tensor, "edges operations"]:
        rows = self.alpha.softmax(dim=-1).unbind()
        return torch.stack([rows[target - self.space.inputs] for _, target in self.space.edges])
