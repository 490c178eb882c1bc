"""Learning a binary mask over the neurons of a locked network (Firefly, Algorithm 2: "train a binary mask m_t").

The paper does not say how. Ours is the usual way (Mallya et al. 2018, Piggyback, which CPG uses too): each neuron has a
real score; the mask is 1 where the score is above a threshold; the gradient passes through that step unchanged.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from nasbook.growth.surgery import rewire
from nasbook.networks import Growable

INITIAL_SCORE = 0.01
"""Score of every neuron at first, so that all are in (Piggyback, §4)."""
THRESHOLD = 0.005
"""Score above which a neuron is in (Piggyback, §4)."""


class MaskedNetwork(nn.Module):
    """A network whose neurons are switched on and off by a mask that can be learned.

    A neuron that is off gives zeros to all who read it. Weights of neurons don't move; the classifier, which is the
    task's own, does, and the statistics of the batch norms follow the batches.

    Args:
        network: taken over; the parameters of its neurons are frozen.
    """

    def __init__(self, network: Growable) -> None:
        super().__init__()
        self.network = network
        declaration = network.declare()
        owned = {path for width in declaration.widths for path in (*width.written_by, *width.along)}
        for path in owned:
            network.get_submodule(path).requires_grad_(False)
        like = next(network.parameters())
        self.scores = nn.ParameterList([
            nn.Parameter(torch.full((count,), INITIAL_SCORE, dtype=like.dtype, device=like.device))
            for count in network.neurons().values()
        ])
        self._widths = declaration.widths

    def head(self) -> list[nn.Parameter]:
        """The parameters that learn beside the scores."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def mask(self) -> dict[str, Bool[Tensor, " neurons"]]:
        """The mask of each width. At least the neuron with the highest score is in."""
        return {
            width.name: _above(scores.detach()) for width, scores in zip(self._widths, self.scores, strict=True)
        }

    def forward(self, images: Tensor) -> Tensor:
        """The masked network's logits."""
        handles = [
            self.network.get_submodule(path).register_forward_pre_hook(partial(self._switch, scores))
            for width, scores in zip(self._widths, self.scores, strict=True)
            for path in width.read_by
        ]
        try:
            return self.network(images)
        finally:  # outside of this pass the network is a plain one, which can be copied
            for handle in handles:
                handle.remove()

    @staticmethod
    def _switch(scores: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = inputs
        hard = _above(scores.detach()).to(x.dtype)
        switches = hard + (scores - scores.detach())  # the value of the step, the gradient of the scores
        switches = switches.repeat_interleave(x.shape[1] // len(scores))
        return (x * switches.view(1, -1, *[1] * (x.dim() - 2)),)

    def chosen(self) -> tuple[Growable, dict[str, Int64[Tensor, " kept"]]]:
        """f_t[m_t]: the network of the neurons that are in, and their numbers for each width, ascending."""
        numbers = {name: mask.nonzero().flatten().cpu() for name, mask in self.mask().items()}
        chosen = rewire(self.network, numbers).network
        return chosen.requires_grad_(True), numbers


def _above(scores: Float[Tensor, " neurons"]) -> Bool[Tensor, " neurons"]:
    mask = scores > THRESHOLD
    if not mask.any():  # nothing goes around a layer
        mask[scores.argmax()] = True
    return mask

