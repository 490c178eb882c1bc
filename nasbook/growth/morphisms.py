"""Growth that leaves the function as it is: more neurons, more layers, larger kernels (Chapter 4).

Net2WiderNet and Net2DeeperNet are those of Chen et al. 2016 (Net2Net). A width that gets neurons with zero outgoing
weights, a layer I + h with h = 0 and a kernel with a margin of zeros are network morphisms (Wei et al. 2016).

Every function takes a network, leaves it unchanged, and returns a :class:`~nasbook.growth.surgery.Grown` whose network
computes the same, up to rounding. Batch norms keep their statistics, so that it does so in training mode too; each
docstring says where it does not. Generators draw on the CPU, wherever the network is.

New weights and biases are uniform between ±1/√n, with n the inputs of a neuron: torch's default for convolutions and
linear layers. New entries of a batch norm are fresh: scale 1, shift 0, mean 0, variance 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.growth.surgery import NEW, Grown, Surgery, blocks_of, in_blocks
from nasbook.networks.growable import Growable, PlainLayer, ResidualLayer, Width


def net2wider(
    network: Growable, neurons: Mapping[str, int], generator: torch.Generator, *, noise: float = 0.0
) -> Grown:
    """Copies random neurons until the widths are as large as asked (Chen et al. 2016, Net2WiderNet).

    New neuron j is a copy of g(j), drawn uniformly with replacement from the old ones; the old ones stay where they
    are. Whatever reads g(j) reads all of its copies, with its weights divided by their number.

    Training mode is preserved, but for dropout. Without noise or dropout, all copies of a neuron get equal incoming
    gradients for ever, and the network never becomes more than the narrow one: give ``noise`` to break the symmetry.

    Args:
        network: left as it is.
        neurons: for each width to grow, how many it gets in all. Where groups divide a width, a multiple of their
            number; every block copies the same ones.
        generator: draws g, and the noise.
        noise: standard deviation of normal noise on the incoming weights of all copies but the first, in units of the
            root mean square of the neuron's own weights. The function is preserved exactly at 0 only.

    Raises:
        InvalidInput: an unknown width, one that would shrink, one without neurons, or negative noise.
    """
    if noise < 0:
        raise InvalidInput(f"noise must be 0 or more, got {noise}.")
    widths = [network.declare().width(name) for name in neurons]
    sources = {}
    for width in widths:
        old, blocks = _checked(network, width, neurons[width.name])
        if not old:
            raise InvalidInput(f"The width {width.name} has no neuron to copy; grow it with widen_with_zeros().")
        copied = torch.randint(old // blocks, ((neurons[width.name] - old) // blocks,), generator=generator)
        sources[width.name] = in_blocks([*range(old // blocks), *copied.tolist()], old, blocks)
    surgery = Surgery(network)
    surgery.rewire(sources)
    for width in widths:
        index = sources[width.name]
        old, blocks = _checked(network, width, neurons[width.name])
        if noise:
            rows = _appended(len(index), old, blocks)
            for path in width.written_by:
                _add_noise(surgery.network.get_submodule(path), rows, noise, generator)
        _scale_columns(surgery.network, width, 1 / torch.bincount(index)[index].double())
    return surgery.grown()


def widen_with_zeros(network: Growable, neurons: Mapping[str, int], generator: torch.Generator) -> Grown:
    """Adds neurons whose outgoing weights are zero. Their incoming weights are drawn, as this module says.

    Training mode is preserved. In the first step only the outgoing weights of a new neuron have a gradient.

    Args:
        network: left as it is.
        neurons: for each width to grow, how many it gets in all. Where groups divide a width, a multiple of their
            number; then each block gets its share.
        generator: draws the weights into the new neurons, of all layers that write them or are depthwise on them.

    Raises:
        InvalidInput: an unknown width, or one that would shrink.
    """
    widths = [network.declare().width(name) for name in neurons]
    sources = {}
    for width in widths:
        old, blocks = _checked(network, width, neurons[width.name])
        new = (neurons[width.name] - old) // blocks
        sources[width.name] = in_blocks([*range(old // blocks), *[NEW] * new], old, blocks)
    surgery = Surgery(network)
    surgery.rewire(sources)
    for width in widths:
        for path in (*width.written_by, *width.along):
            layer = surgery.network.get_submodule(path)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                _draw(layer, sources[width.name] == NEW, generator)
    for width in widths:  # after all draws: a new neuron of a later width may read one of an earlier width
        _scale_columns(surgery.network, width, (sources[width.name] != NEW).double())
    return surgery.grown()


def split_neurons(
    network: Growable,
    chosen: Mapping[str, Sequence[int] | Int64[Tensor, " chosen"]],
    *,
    step: float = 0.0,
    directions: Mapping[str, Float[Tensor, "chosen *shape"]] | None = None,
) -> Grown:
    """Splits each chosen neuron θ into two halves, θ + εδ and θ − εδ, with half of its outgoing weights each.

    The first half stays at the neuron's place; the second ones follow behind all neurons of the width (of each block,
    where groups divide it), in the order in which the neurons were given.

    With ε = 0 the function is preserved, in training mode too (but for dropout); then both halves get equal incoming
    gradients for ever. With ε > 0 it changes by O(ε²) in evaluation mode where σ is smooth, by O(ε) at a kink; batch
    norms keep the statistics of θ, so that in training mode it may change by O(ε).

    This is "Network morphism Type II" of NASH as Firefly takes it (B.2), and with :func:`random_directions` random
    splitting.

    Args:
        network: left as it is.
        chosen: for each width, the neurons to split, each at most once. Where groups divide a width, the same ones in
            every block, as :func:`~nasbook.growth.surgery.in_blocks` gives them.
        step: ε.
        directions: δ, by the name of the parameter: one entry for each chosen neuron, in their order, shaped like
            that neuron's entry. Parameters of layers that write the width or act along it; others have δ = 0.

    Raises:
        InvalidInput: an unknown width or neuron, one given twice, a step without directions, or directions that no
            chosen neuron has or of a wrong shape.
    """
    if step and not directions:
        raise InvalidInput(f"step is {step}, but there are no directions; random_directions() draws some.")
    declaration = network.declare()
    sources, signs, indices = {}, {}, {}
    for name, neurons in chosen.items():
        old, blocks = network.neurons()[declaration.width(name).name], blocks_of(network, declaration.width(name))
        index = torch.as_tensor(neurons, dtype=torch.int64).cpu()
        _check_chosen(name, index, old, blocks)
        local = [*range(old // blocks), *index[: len(index) // blocks].tolist()]
        sources[name], indices[name] = in_blocks(local, old, blocks), index
        signs[name] = 1 - 2 * _appended(len(sources[name]), old, blocks).double()
    surgery = Surgery(network)
    surgery.rewire(sources)
    grown = surgery.grown()
    for parameter, direction in (directions or {}).items():
        name = _width_of(network, parameter, chosen)
        before, now = network.get_parameter(parameter).detach(), grown.network.get_parameter(parameter).detach()
        delta, index = torch.zeros_like(before), indices[name].to(before.device)
        if direction.shape != delta[index].shape:
            raise InvalidInput(
                f"The directions of {parameter} have the shape {tuple(direction.shape)}; expected "
                f"{tuple(delta[index].shape)}, one entry for each chosen neuron of {name}."
            )
        delta[index] = direction.to(delta)
        sign = signs[name].to(now).view(-1, *[1] * (now.dim() - 1))
        now += step * sign * grown.of_before(parameter, delta)
    # Columns last: the halves that a split neuron reads then share its δ as they share its θ.
    for name, source in sources.items():
        halves = torch.bincount(source)[source].double()
        _scale_columns(surgery.network, declaration.width(name), 1 / halves)
    return grown


def random_directions(
    network: Growable, chosen: Mapping[str, Sequence[int] | Int64[Tensor, " chosen"]], generator: torch.Generator
) -> dict[str, Float[Tensor, "chosen *shape"]]:
    """Directions δ for :func:`split_neurons`, uniform on the sphere: ‖δ‖ = 1 over all weights and biases of a neuron.

    A neuron's weights and biases are those of all layers that write it; batch norms and depthwise convolutions along
    it have δ = 0.

    Raises:
        InvalidInput: an unknown width.
    """
    directions = {}
    for name, neurons in chosen.items():
        drawn = {}
        for path in network.declare().width(name).written_by:
            for parameter, value in network.get_submodule(path).named_parameters(recurse=False):
                shape = (len(neurons), *value.shape[1:])
                drawn[f"{path}.{parameter}"] = torch.randn(shape, generator=generator, dtype=value.dtype)
        norms = torch.stack([delta.flatten(1).square().sum(1) for delta in drawn.values() if delta.dim() > 1])
        norms = norms.sum(0) + sum(delta.square() for delta in drawn.values() if delta.dim() == 1)
        for parameter, delta in drawn.items():
            device = network.get_parameter(parameter).device
            directions[parameter] = (delta / norms.sqrt().view(-1, *[1] * (delta.dim() - 1))).to(device)
    return directions


def net2deeper(network: Growable, place: str, index: int, *, inputs: Tensor | None = None) -> Grown:
    """Inserts a :class:`~nasbook.networks.PlainLayer` that is the identity (Chen et al. 2016, Net2DeeperNet).

    Its kernel is 1 at the centre, from each channel to itself. It needs an activation with σ(σ(x)) = σ(x), such as
    ReLU, and a place that comes after one: σ leaves what has passed it before. All places of our networks do.

    Without a batch norm, training mode is preserved. With one, it is not: batch statistics would normalise what the
    layer should pass on. With ``inputs``, scale and shift of the batch norm undo that for this very batch, as Net2Net
    sets them; on other batches training mode is preserved as far as their statistics are the same.

    Args:
        network: left as it is.
        place: where the layer goes.
        index: of the layer there before which it goes.
        inputs: a batch of what the network takes, two or more. The statistics are those in training mode, without
            dropout. A batch norm without inputs gets mean 0 and variance 1.

    Raises:
        InvalidInput: no such place or index; an activation that does not leave its own outputs as they are; a place
            after a residual layer, whose outputs have not passed σ; ``inputs`` that show that they have not.
    """
    declared = network.declare().place(place)
    if not _is_idempotent(declared.activation):
        raise InvalidInput(
            f"A layer with {declared.activation.__name__} can't be the identity: it needs an activation with "
            f"σ(σ(x)) = σ(x), such as ReLU. Insert a residual layer at {place} instead."
        )
    surgery = Surgery(network)
    layer = surgery.insert(place, index, "plain")  # its weights are set below
    assert isinstance(layer, PlainLayer)
    _check_rectified(surgery.network, place, index)
    with torch.no_grad():
        layer.layer.weight.copy_(_identity_like(layer.layer.weight))
        if layer.layer.bias is not None:
            layer.layer.bias.zero_()
    entering = None if inputs is None else _entering(surgery.network, f"{place}.{index}", inputs)
    if entering is not None and not torch.equal(layer.activation(entering), entering):
        raise InvalidInput(
            f"What enters {place} at {index} changes under {declared.activation.__name__}, so that no layer there can "
            f"be the identity. Insert a residual layer instead."
        )
    if isinstance(layer.norm, nn.modules.batchnorm._BatchNorm):
        _make_identity(layer.norm, entering)
    return surgery.grown()


def insert_residual(
    network: Growable, place: str, index: int, neurons: int, generator: torch.Generator
) -> Grown:
    """Inserts a :class:`~nasbook.networks.ResidualLayer` I + h whose way back is zero, so that h = 0.

    The weights of its neurons are drawn, as this module says. Training mode is preserved, to the last bit. In the
    first step only the way back has a gradient.

    Args:
        network: left as it is.
        place: where the layer goes.
        index: of the layer there before which it goes.
        neurons: of the new layer; with 0 it is :func:`insert_identity`.
        generator: draws the weights.

    Raises:
        InvalidInput: no such place or index, or neurons below 0.
    """
    surgery = Surgery(network)
    layer = surgery.insert(place, index, "residual", neurons)  # its weights are set below
    assert isinstance(layer, ResidualLayer)
    _draw(layer.layer, torch.ones(neurons, dtype=torch.bool), generator)
    layer.projection.weight.detach().zero_()
    return surgery.grown()


def insert_identity(network: Growable, place: str, index: int) -> Grown:
    """Inserts a residual layer without neurons: a width of zero, which any other growth may widen (Firefly §2.3).

    It computes nothing: training mode is preserved to the last bit.

    Raises:
        InvalidInput: no such place or index.
    """
    return insert_residual(network, place, index, 0, torch.Generator())


def grow_kernel(network: Growable, path: str, size: int) -> Grown:
    """Gives the convolution at ``path`` a larger kernel: a margin of zeros, and as much more padding.

    Training mode is preserved.

    Raises:
        InvalidInput: there is no convolution at the path, or its kernel can't get that size by equal margins.
    """
    surgery = Surgery(network)
    surgery.enlarge_kernel(path, size)
    return surgery.grown()


def _checked(network: Growable, width: Width, count: int) -> tuple[int, int]:
    """Neurons that a width has, and its blocks; raises if it can't grow to ``count``."""
    old, blocks = network.neurons()[width.name], blocks_of(network, width)
    if count < old:
        raise InvalidInput(f"The width {width.name} has {old} neurons and can't grow to {count}.")
    if count % blocks:
        raise InvalidInput(
            f"Grouped convolutions divide the width {width.name} into {blocks} blocks: it can have a multiple of "
            f"{blocks} neurons, not {count}."
        )
    return old, blocks


def _check_chosen(name: str, index: Int64[Tensor, " chosen"], old: int, blocks: int) -> None:
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < old):
        raise InvalidInput(f"The width {name} has the neurons 0..{old - 1}; can't split {index.tolist()}.")
    if len(index.unique()) < len(index):
        raise InvalidInput(f"A neuron of {name} is given twice: {index.tolist()}. Each can be split once.")
    local = index[: len(index) // blocks].tolist()
    if len(index) % blocks or not torch.equal(index, in_blocks(local, old, blocks)):
        raise InvalidInput(
            f"Grouped convolutions divide the width {name} into {blocks} blocks: the same neurons of each must be "
            f"split, as in_blocks() gives them."
        )


def _width_of(network: Growable, parameter: str, chosen: Mapping[str, object]) -> str:
    """The chosen width to which the entries of a parameter belong."""
    path = parameter.rpartition(".")[0]
    for width in network.declare().widths:
        here = width.name in chosen and path in (*width.written_by, *width.along)
        if here and parameter in dict(network.named_parameters()):
            return width.name
    raise InvalidInput(f"There are directions for {parameter}, which no chosen neuron has.")


def _appended(neurons: int, old: int, blocks: int) -> Bool[Tensor, " neurons"]:
    """Which neurons of a grown width stand behind the old ones of their block."""
    return torch.arange(neurons) % max(neurons // blocks, 1) >= old // blocks


def _scale_columns(network: Growable, width: Width, factors: Float[Tensor, " channels"]) -> None:
    """Multiplies what reads each channel of a width. Blocks have equal factors."""
    for path in width.read_by:
        layer = network.get_submodule(path)
        weight = layer.weight.detach()  # type: ignore[operator]
        local = factors[: len(factors) // getattr(layer, "groups", 1)]
        if len(local):
            each = local.repeat_interleave(weight.shape[1] // len(local))  # a flattened channel has several positions
            weight *= each.to(weight).view(-1, *[1] * (weight.dim() - 2))


def _draw(layer: nn.Module, rows: Bool[Tensor, " outputs"], generator: torch.Generator) -> None:
    """Draws weights and biases of some outputs anew, uniform between ±1/√inputs."""
    weight = layer.weight.detach()  # type: ignore[operator]
    bound = max(math.prod(weight.shape[1:]), 1) ** -0.5
    for parameter in (weight, None if layer.bias is None else layer.bias.detach()):  # type: ignore[operator]
        if parameter is not None:
            drawn = torch.rand((int(rows.sum()), *parameter.shape[1:]), generator=generator, dtype=parameter.dtype)
            parameter[rows.to(parameter.device)] = (bound * (2 * drawn - 1)).to(parameter.device)


def _add_noise(layer: nn.Module, rows: Bool[Tensor, " outputs"], noise: float, generator: torch.Generator) -> None:
    weight = layer.weight.detach()  # type: ignore[operator]
    chosen = rows.to(weight.device)
    scale = weight[chosen].flatten(1).square().mean(1).sqrt().view(-1, *[1] * (weight.dim() - 1))
    drawn = torch.randn(weight[chosen].shape, generator=generator, dtype=weight.dtype).to(weight.device)
    weight[chosen] += noise * scale * drawn


def _is_idempotent(activation: type[nn.Module]) -> bool:
    """Whether σ(σ(x)) = σ(x), tried from -10 to 10."""
    sigma = activation().double().eval()
    with torch.no_grad():
        once = sigma(torch.linspace(-10, 10, 201, dtype=torch.float64))
        return torch.equal(sigma(once), once)


def _check_rectified(network: Growable, place: str, index: int) -> None:
    """Refuses a plain layer behind a residual layer of the same place: x + h(x) has not passed σ."""
    layers = list(network.get_submodule(place).children())
    for number in reversed(range(index)):
        before = layers[number]
        if isinstance(before, PlainLayer):
            return
        assert isinstance(before, ResidualLayer)
        if not isinstance(before.activation, nn.Identity) and bool(before.projection.weight.any()):
            raise InvalidInput(
                f"{place}.{number} is a residual layer: its outputs have not passed the activation, so that a plain "
                f"layer behind it can't be the identity. Insert it before, or insert a residual layer."
            )


def _identity_like(weight: Float[Tensor, "channels channels *kernel"]) -> Float[Tensor, "channels channels *kernel"]:
    """From each channel to itself, at the centre of the kernel."""
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    for side in weight.shape[2:]:  # sides are odd
        identity = nn.functional.pad(identity.unsqueeze(-1), [side // 2, side // 2])
    return identity


def _make_identity(norm: nn.modules.batchnorm._BatchNorm, entering: Tensor | None) -> None:
    """Makes a batch norm the identity in evaluation mode, and in training mode on a batch if there is one."""
    if entering is None:
        mean, variance = torch.zeros_like(norm.bias), torch.ones_like(norm.bias)
    else:
        others = [dimension for dimension in range(entering.dim()) if dimension != 1]
        variance, mean = torch.var_mean(entering, others, correction=0)  # training mode normalises with this variance
        # A channel that is dead in this batch may come alive: then it is to be scaled as others are, not by √eps.
        variance = torch.where(variance > 0, variance, 1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.bias.copy_(mean)
        norm.weight.copy_((variance + norm.eps).sqrt())


def _entering(network: Growable, path: str, inputs: Tensor) -> Tensor:
    """What enters the layer at ``path`` when batch norms use the statistics of this batch."""
    if len(inputs) < 2:
        raise InvalidInput(f"A batch norm needs the statistics of 2 inputs or more, got {len(inputs)}.")
    watched = copy.deepcopy(network).eval()  # a copy, for training mode moves running statistics
    for module in watched.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    seen: list[Tensor] = []
    watched.get_submodule(path).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        watched(inputs)
    return seen[0]
