"""What the six morphisms of PR-DARTS do to weights (§3.2; Chapter 5).

:data:`nasbook.operations.MORPHISMS` says which configuration follows which; here a child inherits its parent's weights.
Two morphisms leave the function as it is, in training and in evaluation mode: a larger kernel (1) and a wider layer
(2). They are :func:`~nasbook.growth.morphisms.grow_kernel` and :func:`~nasbook.growth.morphisms.widen_with_zeros` of
Chapter 4. The others change it (3-6); :func:`function_change` says by how much.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, unknown_name
from nasbook.growth.morphisms import grow_kernel, widen_with_zeros
from nasbook.networks.growable import Declaration, Growable, Width
from nasbook.operations.batch_norms import (
    SynchronizedBatchNorm2d,
    batch_norms,
    kept_statistics,
    synchronize_norms,
)
from nasbook.operations.morphable import LAYER, MORPHISMS, MorphableConvolution, widened_place

_DEPTHWISE, _POINTWISE, _NORM = 1, 2, 3  # where they are in a layer


def morph(parent: MorphableConvolution, morphism: str, generator: torch.Generator) -> MorphableConvolution:
    """The child of a convolution: its configuration is that of the morphism, its weights are inherited.

    Stride, device, dtype, mode and the kind of batch norms are the parent's. Scales, shifts and running statistics of
    batch norms are inherited like weights.

    * ``larger-kernel``: the kernels get a margin of zeros. The function stays.
    * ``wider``: the chosen expansion gets as many neurons as the convolution has channels. The weights that read them
      are zero; those that write them are drawn, see :mod:`nasbook.growth.morphisms`. The function stays.
    * ``deeper``: a layer at the back whose convolutions are the identity and whose batch norm is fresh. The function
      changes, because of its ReLU and, in training mode, of its batch norm.
    * ``smaller-kernel``: the centre of the kernels.
    * ``larger-dilation``, ``smaller-dilation``: the kernels as they are. At kernel 1 the function stays.

    Args:
        parent: left as it is.
        morphism: a key of :data:`~nasbook.operations.MORPHISMS`.
        generator: draws the weights into new neurons; only ``wider`` needs it.

    Raises:
        InvalidInput: an unknown morphism, or one that this configuration does not have.
    """
    if morphism not in MORPHISMS:
        raise unknown_name("morphism", morphism, list(MORPHISMS))
    before = parent.configuration
    configuration = MORPHISMS[morphism](before)
    if configuration is None:
        others = [name for name, function in MORPHISMS.items() if function(before) is not None]
        raise InvalidInput(f"{before.name} has no morphism {morphism!r}; it has {', '.join(others)}.")
    with torch.device("meta"):  # nothing is drawn: every value is inherited
        child = MorphableConvolution(parent.channels, configuration, parent.stride, parent.affine)
    state = {name: value.clone() for name, value in _INHERITED[morphism](parent, generator).items()}
    child.load_state_dict(state, assign=True)
    if any(isinstance(norm, SynchronizedBatchNorm2d) for norm in batch_norms(parent)):
        synchronize_norms(child)
    return child.train(parent.training)


def function_change(
    parent: nn.Module, child: nn.Module, x: Float[Tensor, "batch channels height width"]
) -> float:
    """‖child(x) − parent(x)‖ / ‖parent(x)‖: how much of a function a morphism changed, from 0.

    Both are in the mode in which they are; running statistics don't move. It is infinite where only the parent's
    outputs are all zero, and NaN where an output is.

    Raises:
        InvalidInput: the outputs have different shapes.
    """
    with torch.no_grad(), kept_statistics([*batch_norms(parent), *batch_norms(child)]):
        before, after = parent(x), child(x)
    if before.shape != after.shape:
        raise InvalidInput(
            f"The parent's outputs have the shape {tuple(before.shape)}, the child's {tuple(after.shape)}; expected "
            f"equal ones. Have both the same channels and stride?"
        )
    change = torch.linalg.vector_norm(after - before)
    return 0.0 if change == 0 else float(change / torch.linalg.vector_norm(before))


class _Widths(Growable):
    """A morphable convolution as a network that grows: each of its expansions is a width."""

    def __init__(self, convolution: MorphableConvolution) -> None:
        super().__init__()
        self.convolution = convolution

    def declare(self) -> Declaration:
        """One width an expansion, in their order."""
        return Declaration(tuple(self._width(place) for place in range(len(self.convolution) // LAYER - 1)))

    def _width(self, place: int) -> Width:
        here, after = place * LAYER, (place + 1) * LAYER
        written = f"convolution.{here + _POINTWISE}"
        along = (f"convolution.{here + _NORM}", f"convolution.{after + _DEPTHWISE}")
        return Width(written, (written,), along, (f"convolution.{after + _POINTWISE}",))


def _depthwise_places(parent: MorphableConvolution) -> range:
    return range(_DEPTHWISE, len(parent), LAYER)


def _with_margin(parent: MorphableConvolution, _: torch.Generator) -> dict[str, Tensor]:
    """Morphism 1."""
    network: Growable = _Widths(parent)
    for place in _depthwise_places(parent):
        network = grow_kernel(network, f"convolution.{place}", parent.configuration.kernel + 2).network
    return network.get_submodule("convolution").state_dict()


def _with_neurons(parent: MorphableConvolution, generator: torch.Generator) -> dict[str, Tensor]:
    """Morphism 2: "the weights using the new neurons are initialized with zeros"."""
    network, place = _Widths(parent), widened_place(parent.configuration)
    assert place is not None
    name = network.declare().widths[place].name
    neurons = (parent.configuration.expansions[place] + 1) * parent.channels
    return widen_with_zeros(network, {name: neurons}, generator).network.get_submodule("convolution").state_dict()


def _with_layer(parent: MorphableConvolution, _: torch.Generator) -> dict[str, Tensor]:
    """Morphism 3: what was the last layer now writes the new expansion, of factor 1."""
    state, place, channels = dict(parent.state_dict()), len(parent), parent.channels
    kernels = state[f"{place - LAYER + _DEPTHWISE}.weight"]
    matrix = state[f"{place - LAYER + _POINTWISE}.weight"]
    identity = matrix.new_zeros(channels, channels, 1, 1)
    deltas = kernels.new_zeros(channels, *kernels.shape[1:])
    state[f"{place + _DEPTHWISE}.weight"] = nn.init.dirac_(deltas, groups=channels)
    state[f"{place + _POINTWISE}.weight"] = nn.init.dirac_(identity)
    for name, value in parent[-1].state_dict().items():
        fresh = 1 if name in ("weight", "running_var") else 0
        state[f"{place + _NORM}.{name}"] = torch.full_like(value, fresh)
    return state


def _with_centres(parent: MorphableConvolution, _: torch.Generator) -> dict[str, Tensor]:
    """Morphism 4."""
    centres = {f"{place}.weight" for place in _depthwise_places(parent)}
    return {name: value[..., 1:-1, 1:-1] if name in centres else value for name, value in parent.state_dict().items()}


def _as_they_are(parent: MorphableConvolution, _: torch.Generator) -> dict[str, Tensor]:
    """Morphisms 5 and 6."""
    return parent.state_dict()


_INHERITED: dict[str, Callable[[MorphableConvolution, torch.Generator], dict[str, Tensor]]] = {
    "larger-kernel": _with_margin,
    "wider": _with_neurons,
    "deeper": _with_layer,
    "smaller-kernel": _with_centres,
    "larger-dilation": _as_they_are,
    "smaller-dilation": _as_they_are,
}
"""The state that a child begins with; its tensors may be the parent's."""
