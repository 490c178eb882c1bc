"""The cuts that every growth is made of: channels are rewired, layers come and go, kernels get larger.

A :class:`Surgery` works on a copy of a network and keeps two records: where every entry of every parameter comes from,
with which an optimiser's state moves along, and the cuts themselves, which can be made again on another copy. It
changes structure only: a new neuron has zero weights, an inserted layer its own. What a growth puts there is its own.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nasbook.errors import InvalidInput, unknown_name
from nasbook.networks.growable import Growable, PlainLayer, ResidualLayer, Width

Cut = tuple[Any, ...]
"""One cut as plain values: ``("rewire", {width: sources})``, ``("insert", place, index, kind, neurons)``,
``("remove", place, index)`` or ``("kernel", path, size)``."""

LayerKind = Literal["residual", "plain"]
"""Which layer is inserted: I + h, or one that Net2Deeper makes the identity."""

NEW = -1
"""The source of a neuron that has none."""


@dataclass(frozen=True)
class Origin:
    """Where the entries of one parameter come from."""

    name: str | None
    """Name of the parameter in the network before; None for a new one."""
    sources: Mapping[int, Int64[Tensor, " length"]] = field(default_factory=dict)
    """For each dimension that changed, the index before of each entry; -1 for a new one."""
    margins: int = 0
    """How many zeros the kernel got on each side."""


@dataclass(frozen=True)
class Grown:
    """A network that has grown, and how."""

    network: Growable
    """The larger network; the one before is unchanged."""
    origins: Mapping[str, Origin]
    """By the names of its parameters."""
    cuts: tuple[Cut, ...]
    """What was done to the structure, in order."""

    def then(self, later: Grown) -> Grown:
        """This growth and a later one, of its network, as one."""
        origins = {}
        for name, origin in later.origins.items():
            if origin.name is None or (earlier := self.origins[origin.name]).name is None:
                origins[name] = Origin(None)
                continue
            sources = dict(earlier.sources)
            for dimension, index in origin.sources.items():
                sources[dimension] = compose(sources[dimension], index) if dimension in sources else index
            origins[name] = Origin(earlier.name, sources, earlier.margins + origin.margins)
        return Grown(later.network, origins, self.cuts + later.cuts)

    def of_before(self, name: str, before: Tensor) -> Tensor:
        """Values that belonged to a parameter before, moved to where its entries are now; zero where it is new.

        Args:
            name: of the parameter in the grown network.
            before: one value for each entry that it had, such as a momentum.
        """
        origin = self.origins[name]
        for dimension, sources in origin.sources.items():
            before = gather(before, dimension, sources)
        return nn.functional.pad(before, [origin.margins] * 4) if origin.margins else before


def gather(tensor: Tensor, dimension: int, sources: Int64[Tensor, " length"]) -> Tensor:
    """The entries of a dimension at the sources; zeros where a source is -1."""
    sources = sources.to(tensor.device)
    if not tensor.shape[dimension]:
        return tensor.new_zeros([len(sources) if d == dimension else n for d, n in enumerate(tensor.shape)])
    taken = tensor.index_select(dimension, sources.clamp(min=0))
    new = (sources == NEW).view([-1 if d == dimension else 1 for d in range(tensor.dim())])
    return taken.masked_fill(new, 0)


def columns(layer: nn.Module, channels: int) -> Float[Tensor, "outputs channels positions *kernel"]:
    """What a layer does with each of its input channels: a view of its weight, which may be written to.

    A linear layer after a flattening reads every channel at several positions; a convolution at one.
    """
    weight = layer.weight.detach()  # type: ignore[operator]
    return weight.view(weight.shape[0], channels, weight.shape[1] // max(channels, 1), *weight.shape[2:])


def blocks_of(network: Growable, width: Width) -> int:
    """Into how many equal blocks the channels of a width are divided by the groups of the convolutions around them.

    1 unless a layer that writes or reads them is grouped. Depthwise convolutions along a width do not divide it.
    """
    around = (*width.written_by, *width.read_by)
    return math.lcm(*(getattr(network.get_submodule(path), "groups", 1) for path in around))


def in_blocks(local: Sequence[int], width: int, blocks: int) -> Int64[Tensor, " channels"]:
    """Sources that do in every block of a width what ``local`` does in one: 0..width/blocks, or -1."""
    one = torch.as_tensor(local, dtype=torch.int64)
    parts = [torch.where(one == NEW, NEW, one + block * (width // blocks)) for block in range(blocks)]
    return torch.cat(parts)


class Surgery:
    """Cuts on a copy of a network. Make them, then take :meth:`grown`.

    Args:
        network: left as it is.

    Raises:
        InvalidInput: a parameter stands at two places of the network.
    """

    def __init__(self, network: Growable) -> None:
        distinct = {name for name, _ in network.named_parameters()}
        shared = [name for name, _ in network.named_parameters(remove_duplicate=False) if name not in distinct]
        if shared:
            raise InvalidInput(f"{shared[0]} is the same parameter as another one; tied weights can't grow.")
        self.network = copy.deepcopy(network)
        self._before = {name: name for name, _ in network.named_parameters()}  # name now → name before
        self._origins: dict[str, Origin] = {name: Origin(name) for name in self._before}
        self._cuts: list[Cut] = []

    def grown(self) -> Grown:
        """The network as it is now, and what was done."""
        return Grown(self.network, dict(self._origins), tuple(self._cuts))

    def rewire(self, sources: Mapping[str, Sequence[int] | Int64[Tensor, " channels"]]) -> None:
        """Gives widths the channels of their sources: old ones in any order, any number of times, and new ones.

        A new neuron (-1) has zero weights, in and out, and the entries of a fresh batch norm.

        Args:
            sources: for each width to change, the index before of each channel, or -1.

        Raises:
            InvalidInput: an unknown width, a source that is not there, or sources that don't do the same in every
                block of a width that grouped convolutions divide (see :func:`in_blocks`).
        """
        plain: dict[str, list[int]] = {}
        declaration = self.network.declare()
        for name, chosen in sources.items():
            width = declaration.width(name)
            index = torch.as_tensor(chosen).cpu()
            if index.dim() != 1 or (len(index) and index.is_floating_point()):
                raise InvalidInput(f"Sources of {name} must be a list of whole numbers, got {chosen!r}.")
            index = index.to(torch.int64)
            plain[name] = index.tolist()
            self._check_sources(width, index)
            old = self.network.neurons()[name]
            for path in width.written_by:
                self._take(path, "weight", 0, index)
                self._take(path, "bias", 0, index)
                _resize(self.network.get_submodule(path), outputs=len(index))
            for path in width.along:
                self._take_along(path, index)
            for path in width.read_by:
                layer = self.network.get_submodule(path)
                groups = int(getattr(layer, "groups", 1))
                weight = layer.weight
                assert isinstance(weight, Tensor)
                # A residual layer's way back reads each channel once; nothing else reads a width without neurons.
                positions = weight.shape[1] * groups // old if old else 1
                # A grouped layer has the columns of one group for all, since every block does the same.
                local = index[: len(index) // groups]
                spread = local[:, None] * positions + torch.arange(positions)
                self._take(path, "weight", 1, torch.where(local[:, None] == NEW, NEW, spread).flatten())
                _resize(layer, inputs=len(index) * positions)
        self._cuts.append(("rewire", plain))

    def insert(self, place: str, index: int, kind: LayerKind, neurons: int = 0) -> ResidualLayer | PlainLayer:
        """Puts a layer into a place, before the one that is at ``index`` there, and returns it.

        Its weights are initialised as torch does. A plain layer has as many neurons as its input has channels.

        Raises:
            InvalidInput: no such place, or no such index in it.
        """
        declared = self.network.declare().place(place)
        layers = self._layers(place)
        if not 0 <= index <= len(layers):
            raise InvalidInput(f"The place {place} has {len(layers)} layers; a layer can't be inserted at {index}.")
        channels = self._channels_at(declared.width, layers, index)
        options: dict[str, Any] = {
            "kernel_size": declared.kernel_size,
            "normalized": declared.normalized,
            "activation": declared.activation,
        }
        with torch.random.fork_rng(devices=[]):  # what is drawn elsewhere does not change
            layer = (
                ResidualLayer(channels, neurons, **options)
                if kind == "residual"
                else PlainLayer(channels, **options)
            )
        reference = next(self.network.parameters())
        layer.to(device=reference.device, dtype=reference.dtype).train(self.network.training)
        self._rename(place, {i: i + (i >= index) for i in range(len(layers))})
        layers.insert(index, layer)
        for name, _ in layer.named_parameters():
            self._origins[f"{place}.{index}.{name}"] = Origin(None)
        self._origins = {name: self._origins[name] for name, _ in self.network.named_parameters()}
        self._cuts.append(("insert", place, index, kind, neurons))
        return layer

    def remove(self, place: str, index: int) -> None:
        """Takes the layer at ``index`` out of a place.

        Raises:
            InvalidInput: no such place or index, or a plain layer, whose channels others read.
        """
        self.network.declare().place(place)
        layers = self._layers(place)
        if not 0 <= index < len(layers):
            raise InvalidInput(f"The place {place} has {len(layers)} layers; there is none at {index}.")
        if not isinstance(layers[index], ResidualLayer):
            raise InvalidInput(f"{place}.{index} is a plain layer; only a residual layer can be taken out.")
        for name in [n for n in self._origins if n.startswith(f"{place}.{index}.")]:
            del self._origins[name]
        del layers[index]
        self._rename(place, {i + (i >= index): i for i in range(len(layers))})
        self._cuts.append(("remove", place, index))

    def enlarge_kernel(self, path: str, size: int) -> None:
        """Makes the kernel of a convolution larger by a margin of zeros, and its padding with it.

        Raises:
            InvalidInput: there is no such layer, it is no convolution, or its kernel can't get that size by equal
                margins.
        """
        layers = dict(self.network.named_modules())
        if path not in layers:
            raise unknown_name("layer", path, [name for name in layers if isinstance(layers[name], nn.Conv2d)])
        layer = layers[path]
        if not isinstance(layer, nn.Conv2d):
            raise InvalidInput(f"{path} is a {type(layer).__name__}; only a convolution has a kernel that can grow.")
        margins = [size - side for side in layer.kernel_size]
        if len(set(margins)) > 1 or margins[0] < 0 or margins[0] % 2:
            raise InvalidInput(
                f"{path} has a kernel of {'×'.join(map(str, layer.kernel_size))}; it can grow to a square one of "
                f"{layer.kernel_size[0]} + an even number, not to {size}."
            )
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise InvalidInput(f"{path} pads with {layer.padding!r}, {layer.padding_mode}; its kernel can't grow.")
        margin = margins[0] // 2
        larger = nn.functional.pad(layer.weight.detach(), [margin] * 4)
        layer.weight = nn.Parameter(larger, requires_grad=layer.weight.requires_grad)
        layer.kernel_size = (size, size)
        layer.padding = tuple(p + margin * d for p, d in zip(layer.padding, layer.dilation, strict=True))
        layer._reversed_padding_repeated_twice = [p for p in reversed(layer.padding) for _ in range(2)]
        before = self._origins[f"{path}.weight"]
        self._origins[f"{path}.weight"] = Origin(before.name, before.sources, before.margins + margin)
        self._cuts.append(("kernel", path, size))

    def _check_sources(self, width: Width, index: Tensor) -> None:
        old = self.network.neurons()[width.name]
        if len(index) and not (int(index.min()) >= NEW and int(index.max()) < old):
            raise InvalidInput(
                f"The width {width.name} has {old} neurons; a source must be 0..{old - 1}, or -1 for a new neuron, "
                f"got {int(index.min())}..{int(index.max())}."
            )
        if not len(index) and not isinstance(self._owner(width), ResidualLayer):
            raise InvalidInput(f"The width {width.name} can't be left without neurons: nothing goes around it.")
        blocks = blocks_of(self.network, width)
        local = index[: len(index) // blocks]
        if blocks > 1 and (len(index) % blocks or not torch.equal(index, in_blocks(local.tolist(), old, blocks))):
            raise InvalidInput(
                f"Grouped convolutions divide the width {width.name} into {blocks} blocks: sources must do the same in "
                f"each, as in_blocks() makes them."
            )

    def _owner(self, width: Width) -> nn.Module:
        return self.network.get_submodule(width.name.rpartition(".")[0])

    def _layers(self, place: str) -> nn.Sequential:
        layers = self.network.get_submodule(place)
        assert isinstance(layers, nn.Sequential)
        return layers

    def _channels_at(self, width: str, layers: nn.Sequential, index: int) -> int:
        plain = [layer for layer in list(layers)[:index] if isinstance(layer, PlainLayer)]
        if plain:
            return int(plain[-1].layer.weight.shape[0])
        return self.network.neurons()[width]

    def _rename(self, place: str, moved: Mapping[int, int]) -> None:
        """Follows layers of a place from one index to another."""
        origins = {}
        for name, origin in self._origins.items():
            head, tail = name[: len(place) + 1], name[len(place) + 1 :]
            number, _, rest = tail.partition(".")
            if head == f"{place}." and number.isdigit() and rest:
                name = f"{place}.{moved[int(number)]}.{rest}"
            origins[name] = origin
        self._origins = origins

    def _take(self, path: str, kind: str, dimension: int, index: Tensor) -> None:
        """Gathers a parameter along a dimension and notes it."""
        layer = self.network.get_submodule(path)
        parameter = getattr(layer, kind)
        if parameter is None:
            return
        trained = parameter.requires_grad
        setattr(layer, kind, nn.Parameter(gather(parameter.detach(), dimension, index), requires_grad=trained))
        origin = self._origins[f"{path}.{kind}"]
        earlier = origin.sources.get(dimension)
        together = index if earlier is None else compose(earlier, index)
        self._origins[f"{path}.{kind}"] = Origin(
            origin.name, {**origin.sources, dimension: together} if origin.name else {}, origin.margins
        )

    def _take_along(self, path: str, index: Tensor) -> None:
        layer = self.network.get_submodule(path)
        self._take(path, "weight", 0, index)
        self._take(path, "bias", 0, index)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            new = index == NEW
            for name, fresh in (("weight", 1.0), ("running_mean", 0.0), ("running_var", 1.0)):
                values = getattr(layer, name)
                if values is None:
                    continue
                if name == "weight":
                    values.detach()[new.to(values.device)] = fresh
                else:
                    taken = gather(values, 0, index)
                    setattr(layer, name, taken.masked_fill(new.to(taken.device), fresh))
            layer.num_features = len(index)
        elif isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = layer.in_channels = layer.out_channels = len(index)
        else:
            raise InvalidInput(
                f"{path} is a {type(layer).__name__} along a width; expected a batch norm or a depthwise convolution "
                f"with one filter a channel."
            )


def compose(earlier: Int64[Tensor, " old"], index: Int64[Tensor, " new"]) -> Int64[Tensor, " new"]:
    """Sources of sources: where an entry that comes from ``earlier[index]`` came from; -1 for a new one."""
    return gather(earlier + 1, 0, index) - 1


def _resize(layer: nn.Module, *, inputs: int | None = None, outputs: int | None = None) -> None:
    """Writes the new sizes where a layer keeps them."""
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    for name, size in zip(names, (inputs, outputs), strict=True):
        if size is not None:
            setattr(layer, name, size)


def rewire(network: Growable, sources: Mapping[str, Sequence[int] | Int64[Tensor, " channels"]]) -> Grown:
    """:meth:`Surgery.rewire` alone."""
    surgery = Surgery(network)
    surgery.rewire(sources)
    return surgery.grown()


def replay(network: Growable, cuts: Sequence[Sequence[Any]]) -> Growable:
    """Makes the cuts of a growth again on a copy of the network that it began with. Weights are not those of then.

    Args:
        network: the one before the growth; left as it is.
        cuts: each a :data:`Cut`, or the list that JSON makes of one.

    Raises:
        InvalidInput: an unknown cut, or one that this network can't have.
    """
    return regrow(network, cuts).network


def regrow(network: Growable, cuts: Sequence[Sequence[Any]]) -> Grown:
    """:func:`replay`, with the origins of all entries."""
    surgery = Surgery(network)
    actions: dict[str, Callable[..., object]] = {
        "rewire": surgery.rewire,
        "insert": surgery.insert,
        "remove": surgery.remove,
        "kernel": surgery.enlarge_kernel,
    }
    for name, *arguments in cuts:
        if name not in actions:
            raise InvalidInput(f"Unknown cut {name!r}; expected one of {', '.join(actions)}.")
        try:
            inspect.signature(actions[name]).bind(*arguments)
        except TypeError as error:
            raise InvalidInput(f"The cut {name!r} has wrong arguments: {error}.") from None
        actions[name](*arguments)
    return surgery.grown()


def remap_optimizer(optimizer: torch.optim.Optimizer, network: Growable, grown: Grown) -> torch.optim.Optimizer:
    """An optimiser of the grown network that goes on where the one of the network before stopped.

    Its state (momenta, second moments) moves with the entries of the parameters that survive; entries of new neurons
    begin at zero. A copy of a neuron, such as the second half of a split, has the state of the one that it comes from.
    A parameter that is new altogether has no state yet and joins the first group. Within a group, parameters stand in
    the order of the network.

    Args:
        optimizer: of ``network``'s parameters, any of torch's that keep tensors shaped like their parameter.
        network: the one before.
        grown: what became of it.

    Raises:
        InvalidInput: the optimiser has parameters that are not the network's, or keeps tensors of other shapes.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    group_of: dict[str | None, int] = {None: 0}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise InvalidInput("The optimiser has a parameter that the network before the growth does not have.")
            group_of[names[id(parameter)]] = number
    # A copy of the options, so that the old optimiser keeps its own; names of parameters are given anew.
    groups: list[dict[str, Any]] = [
        {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        | {"params": []}
        for group in optimizer.param_groups
    ]
    named = "param_names" in optimizer.param_groups[0]
    now = dict(grown.network.named_parameters())
    for name, parameter in now.items():
        if grown.origins[name].name in group_of:  # the others were not the optimiser's before either
            groups[group_of[grown.origins[name].name]]["params"].append((name, parameter) if named else parameter)
    remapped = cast("Any", type(optimizer))(groups)
    remapped.defaults = copy.deepcopy(optimizer.defaults)
    before = dict(network.named_parameters())
    for name, parameter in now.items():
        origin = grown.origins[name].name
        if origin is None or before[origin] not in optimizer.state:
            continue
        state = {}
        for key, value in optimizer.state[before[origin]].items():
            if isinstance(value, Tensor) and value.dim():
                if value.shape != before[origin].shape:
                    raise InvalidInput(
                        f"The optimiser keeps {key!r} of {origin} in another shape than the parameter's; it can't be "
                        f"moved. Use an optimiser such as SGD, Adam or AdamW."
                    )
                state[key] = grown.of_before(name, value).clone()
            else:
                state[key] = copy.deepcopy(value)
        remapped.state[parameter] = state
    return remapped
