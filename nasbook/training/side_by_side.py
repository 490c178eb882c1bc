"""Many small networks trained at once, as one program: how the book's tabular benchmark is made (Chapter 8).

A network that trains in seconds spends most of them on the calls, not on the numbers. Here networks that differ in
their cells, initial weights and data lie side by side in one tensor, and every call serves them all: an image is
stored as (networks, channels, batch, pixels). Each network computes what :class:`~nasbook.training.Fit` would compute
for it alone, up to rounding: its own batches, batch norms, clipping and decay.

On an edge, networks with the same operation go together. A depthwise convolution of a small image is one product with
the matrix that its kernel means: on 4×4 pixels and fewer that is faster than a convolution, and it is a batched product
for all channels of all networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nasbook.data import ImageData, Loader, evaluation_batches
from nasbook.errors import InvalidInput
from nasbook.networks import CifarStem, DerivedCell, DerivedNetwork
from nasbook.operations import FactorizedReduction, MorphableConvolution, Pool, ReLUConvolution
from nasbook.training.fit import DECAYS, FitConfig

__all__ = ["SideBySide", "SideBySideReport", "Trainee", "evaluate_side_by_side", "train_side_by_side"]

Images = Float[Tensor, "networks channels batch pixels"]
"""What flows between layers: the networks of a group, and images with their rows laid end to end."""

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trainee:
    """One network, and the images that it learns from."""

    network: DerivedNetwork
    """With its initial weights; they are read, and not changed before :meth:`SideBySide.write_back`."""
    train_indices: Int64[Tensor, " n"]
    """Which training images it learns from; as many for every network."""
    held_out: Int64[Tensor, " m"]
    """Which training images it is evaluated on; as many for every network."""
    seed: int
    """Of the order of its images, as in :class:`~nasbook.training.Fit`."""


@dataclass(frozen=True)
class SideBySideReport:
    """What one epoch measured; every tensor has one number a network, on the CPU."""

    epoch: int
    """From 1."""
    train_loss: Float[Tensor, " networks"]
    """Mean cross entropy over the epoch's training batches."""
    train_accuracy: Float[Tensor, " networks"]
    """Over the same."""
    validation_loss: Float[Tensor, " networks"]
    """Mean cross entropy over the held-out images."""
    validation_accuracy: Float[Tensor, " networks"]
    """Over the same."""


class _Stack(nn.Module):
    """A piece of several networks; ``parts`` are the pieces of each, alike in all but their numbers."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = list(parts)  # a plain list: the networks keep their own parameters
        self._paths: dict[str, str] = {}

    def stack(self, name: str, path: str) -> None:
        """Makes one parameter of all networks' parameters at ``path``."""
        values = [part.get_parameter(path).detach() for part in self.parts]
        self.register_parameter(name, nn.Parameter(torch.stack(values)))
        self._paths[name] = path

    def stack_buffer(self, name: str, path: str) -> None:
        """The same for a buffer."""
        self.register_buffer(name, torch.stack([part.get_buffer(path) for part in self.parts]))
        self._paths[name] = path

    def write_back(self) -> None:
        """Copies the stacked values into the networks."""
        for name, path in self._paths.items():
            for part, value in zip(self.parts, getattr(self, name).detach(), strict=True):
                own, _, last = path.rpartition(".")
                getattr(part.get_submodule(own), last).data.copy_(value)


class _Map(_Stack):
    """A linear map at every pixel: a 1×1 convolution of each network, ``path`` its place in the part."""

    def __init__(self, parts: Sequence[nn.Module], path: str) -> None:
        super().__init__(parts)
        self.stack("weight", f"{path}.weight")  # (networks, outputs, inputs, 1, 1)

    def forward(self, x: Images) -> Float[Tensor, "networks outputs batch pixels"]:
        networks, _, batch, pixels = x.shape
        y = torch.bmm(self.weight.flatten(2), x.reshape(networks, -1, batch * pixels))
        return y.view(networks, -1, batch, pixels)


class _Norm(_Stack):
    """Batch norm over the images of each network."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, parts: Sequence[nn.Module], path: str) -> None:
        super().__init__(parts)
        norm = parts[0].get_submodule(path)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.momentum is not None
        self.eps, self.momentum = norm.eps, norm.momentum
        for name in ("weight", "bias"):
            self.stack(name, f"{path}.{name}")
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.stack_buffer(name, f"{path}.{name}")

    def forward(self, x: Images) -> Images:
        networks, channels, batch, pixels = x.shape
        if self.training:
            self.num_batches_tracked += 1
        y = F.batch_norm(  # to torch: one image with the channels of all networks
            x.reshape(1, networks * channels, batch * pixels),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.view(-1),
            self.bias.view(-1),
            self.training,
            self.momentum,
            self.eps,
        )
        return y.view(x.shape)


class _Depthwise(_Stack):
    """A depthwise convolution as a product with the matrix that its kernel means on images of this size."""

    positions: Tensor

    def __init__(self, parts: Sequence[nn.Module], path: str, size: int) -> None:
        super().__init__(parts)
        self.stack("weight", f"{path}.weight")  # (networks, channels, 1, kernel, kernel)
        convolution = parts[0].get_submodule(path)
        assert isinstance(convolution, nn.Conv2d)
        kernel = convolution.kernel_size[0]
        # What a kernel with a single one in it does to each pixel: linear in the kernel, so these say all.
        taps = torch.eye(kernel * kernel, dtype=convolution.weight.dtype).view(-1, 1, kernel, kernel)
        pixels = torch.eye(size * size, dtype=convolution.weight.dtype).view(-1, 1, size, size)
        moved = F.conv2d(pixels, taps, None, convolution.stride, convolution.padding, convolution.dilation)
        self.register_buffer("positions", moved.flatten(2).permute(1, 0, 2).contiguous())  # (taps, pixels, new pixels)

    def forward(self, x: Images) -> Float[Tensor, "networks channels batch new_pixels"]:
        networks, channels, batch, pixels = x.shape
        matrices = self.weight.view(networks * channels, -1) @ self.positions.flatten(1)
        y = torch.bmm(x.reshape(networks * channels, batch, pixels), matrices.view(networks * channels, pixels, -1))
        return y.view(networks, channels, batch, -1)


class _Stem(_Stack):
    """A dense convolution of the images, each network's own; then its batch norm."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__(parts)
        self.stack("weight", "layers.0.weight")  # (networks, outputs, inputs, kernel, kernel)
        self.norm = _Norm(parts, "layers.1")

    def forward(
        self, images: Float[Tensor, "sets batch channels height width"], set_of: Int64[Tensor, " networks"]
    ) -> Float[Tensor, "networks stem batch pixels"]:
        sets, batch = images.shape[:2]
        kernel = self.weight.shape[-1]
        columns = F.unfold(images.flatten(0, 1), kernel, padding=kernel // 2)  # (sets·batch, inputs·taps, pixels)
        columns = columns.view(sets, batch, *columns.shape[1:]).transpose(1, 2).flatten(2)
        y = torch.bmm(self.weight.flatten(2), columns[set_of])
        return self.norm(y.view(len(set_of), -1, batch, images[0, 0, 0].numel()))


class _FactorizedReduction(_Stack):
    """Both halves of the skip connection of stride 2."""

    def __init__(self, parts: Sequence[nn.Module], path: str, size: int) -> None:
        super().__init__(parts)
        prefix = f"{path}." if path else ""
        self.plain = _Map(parts, f"{prefix}convolution")
        self.shifted = _Map(parts, f"{prefix}shifted_convolution")
        self.norm = _Norm(parts, f"{prefix}norm")
        self.size = size

    def forward(self, x: Images) -> Float[Tensor, "networks outputs batch new_pixels"]:
        size = self.size
        x = F.relu(x).view(*x.shape[:3], size, size)
        shifted = F.pad(x[..., 1:, 1:], (0, size % 2, 0, size % 2))
        halves = [self.plain(x[..., ::2, ::2].flatten(3)), self.shifted(shifted[..., ::2, ::2].flatten(3))]
        return self.norm(torch.cat(halves, dim=1))


class _Pool(nn.Module):
    """The pools have no numbers of their own: all networks' channels are images of one channel."""

    def __init__(self, pool: Pool, size: int) -> None:
        super().__init__()
        self.pool = pool
        self.size = size

    def forward(self, x: Images) -> Float[Tensor, "networks channels batch new_pixels"]:
        networks, channels, batch, _ = x.shape
        pooled = self.pool(x.reshape(networks * channels, batch, self.size, self.size))
        return pooled.view(networks, channels, batch, -1)


class _ReLU(nn.Module):
    def forward(self, x: Images) -> Images:
        return F.relu(x)


def _layers(parts: Sequence[nn.Module], size: int) -> nn.Module:
    """The side-by-side form of one module of every network, for images of this many pixels a side."""
    first = parts[0]
    if isinstance(first, nn.Identity):
        return nn.Identity()
    if isinstance(first, Pool):
        return _Pool(first, size)
    if isinstance(first, FactorizedReduction):
        return _FactorizedReduction(parts, "", size)
    if isinstance(first, MorphableConvolution):
        layers: list[nn.Module] = []
        for start in range(0, len(first), 4):  # ReLU, depthwise, pointwise, batch norm
            depthwise = first[start + 1]
            assert isinstance(depthwise, nn.Conv2d)
            layers += [_ReLU(), _Depthwise(parts, f"{start + 1}", size), _Map(parts, f"{start + 2}")]
            layers.append(_Norm(parts, f"{start + 3}"))
            size = -(-size // depthwise.stride[0])
        return nn.Sequential(*layers)
    if isinstance(first, ReLUConvolution) and first[1].kernel_size == (1, 1) and first[1].stride == (1, 1):
        return nn.Sequential(_ReLU(), _Map(parts, "1"), _Norm(parts, "2"))
    raise InvalidInput(f"{type(first).__name__} has no form for networks side by side; train it with fit().")


class _Cell(nn.Module):
    """The cells at one place of all networks' stacks: for every edge, the networks that have each operation there."""

    joined: Tensor

    def __init__(self, cells: Sequence[DerivedCell], inputs: tuple[int, int], size: int, reduces: bool) -> None:
        super().__init__()
        genotypes = [cell.genotype for cell in cells]
        self.preprocessing = nn.ModuleList(
            _layers([cell.preprocessing[place] for cell in cells], inputs[place]) for place in range(2)
        )
        self.output_size = -(-size // 2) if reduces else size
        self.intermediate = range(2, 2 + genotypes[0].nodes)
        self.groups: list[tuple[int, int, str]] = []
        self.operations = nn.ModuleList()
        found: dict[tuple[int, int, str], list[tuple[int, nn.Module]]] = {}
        for number, cell in enumerate(cells):
            for edge, operation in zip(cell.genotype.edges, cell.operations, strict=True):
                found.setdefault((edge.target, edge.source, edge.operation), []).append((number, operation))
        for (target, source, name), members in sorted(found.items()):
            self.groups.append((target, source, name))
            self.operations.append(
                _layers([module for _, module in members], size if source < 2 else self.output_size)
            )
            numbers = torch.tensor([number for number, _ in members])
            self.register_buffer(f"members_{len(self.groups) - 1}", numbers, persistent=False)
        # Which nodes each network joins, as many for all: (outputs, networks).
        self.register_buffer("joined", torch.tensor([g.output for g in genotypes]).t() - 2, persistent=False)

    def forward(
        self,
        older: Float[Tensor, "networks older batch older_pixels"],
        newer: Float[Tensor, "networks newer batch newer_pixels"],
    ) -> Float[Tensor, "networks outputs batch new_pixels"]:
        states = [self.preprocessing[0](older), self.preprocessing[1](newer)]
        networks, channels, batch, _ = states[0].shape
        groups = iter(range(len(self.groups)))
        place = next(groups, None)
        for node in self.intermediate:
            state = states[0].new_zeros(networks, channels, batch, self.output_size**2)
            while place is not None and self.groups[place][0] == node:
                members = self.get_buffer(f"members_{place}")
                value = self.operations[place](states[self.groups[place][1]].index_select(0, members))
                state = state.index_add(0, members, value)
                place = next(groups, None)
            states.append(state)
        nodes = torch.stack(states[2:])  # (nodes, networks, channels, batch, pixels)
        everyone = torch.arange(networks, device=nodes.device)
        joined = nodes[self.joined, everyone]  # (outputs, networks, channels, batch, pixels)
        return joined.transpose(0, 1).flatten(1, 2)


class SideBySide(nn.Module):
    """Several derived networks as one module.

    Args:
        networks: of the same sizes, with the ``cifar`` stem, concatenation, and as many output nodes in each cell.
            Edges and operations may differ. No drop path, no auxiliary head.
        size: height and width of the images, in pixels.

    Raises:
        InvalidInput: they differ in more, or have a module with no form here.
    """

    def __init__(self, networks: Sequence[DerivedNetwork], size: int) -> None:
        super().__init__()
        if not networks:
            raise InvalidInput("networks: expected at least one, got none.")
        shapes = {
            (len(network.cells), network.classifier.weight.shape, network.stem.output_channels) for network in networks
        }
        if len(shapes) > 1 or not all(isinstance(network.stem, CifarStem) for network in networks):
            raise InvalidInput(
                "Networks side by side need the same cells, channels, classes and output nodes, and the cifar stem."
            )
        self.networks = list(networks)  # a plain list: the parameters here are the stacked ones
        self.stem = _Stem([network.stem for network in networks])
        self.cells = nn.ModuleList()
        older, newer = size, size
        for place in range(len(networks[0].cells)):
            cells = [cell for network in networks if isinstance(cell := network.cells[place], DerivedCell)]
            stride = cells[0].placement.input_stride
            self.cells.append(_Cell(cells, (older, newer), newer, stride == 2))
            older, newer = newer, -(-newer // stride)
        self.classifier = _Classifier([network.classifier for network in networks])

    def forward(
        self, images: Float[Tensor, "sets batch channels height width"], set_of: Int64[Tensor, " networks"]
    ) -> Float[Tensor, "networks batch classes"]:
        """Logits of every network for the batch that ``set_of`` gives it."""
        older = newer = self.stem(images, set_of)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return self.classifier(newer.mean(-1).transpose(1, 2))

    def owners(self) -> list[Int64[Tensor, " rows"]]:
        """For every parameter, in the order of ``parameters()``, the network that each of its rows belongs to."""
        everyone = torch.arange(len(self.networks))
        found = []
        for name, _ in self.named_parameters():
            path = name.split(".")
            if path[0] == "cells" and path[2] == "operations":
                found.append(self.get_submodule(".".join(path[:2])).get_buffer(f"members_{path[3]}").cpu())
            else:
                found.append(everyone)
        return found

    def write_back(self) -> None:
        """Copies all weights and statistics into the networks that this was built from."""
        for module in self.modules():
            if isinstance(module, _Stack):
                module.write_back()


class _Classifier(_Stack):
    """A linear classifier each."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__(parts)
        self.stack("weight", "weight")
        self.stack("bias", "bias")

    def forward(
        self, features: Float[Tensor, "networks batch features"]
    ) -> Float[Tensor, "networks batch classes"]:
        return torch.baddbmm(self.bias[:, None], features, self.weight.mT)


def train_side_by_side(
    trainees: Sequence[Trainee],
    data: ImageData,
    config: FitConfig,
    on_epoch: Callable[[SideBySideReport], None] = lambda _: None,
) -> tuple[list[SideBySideReport], SideBySide]:
    """Trains all networks to the end, each as :func:`~nasbook.training.fit` would, and writes their weights back.

    Args:
        trainees: the networks and their images.
        data: images on the device to train on.
        config: how to train; without drop path, cutout, smoothing and an auxiliary head.
        on_epoch: called after every epoch.

    Returns:
        The reports, and the networks side by side in evaluation mode.

    Raises:
        InvalidInput: the configuration asks for what is not done here, or the networks don't go together.
    """
    if config.drop_path or config.cutout or config.label_smoothing or config.compile:
        raise InvalidInput("Networks side by side train without drop path, cutout, label smoothing and compilation.")
    device = data.train_images.device
    together = SideBySide([trainee.network for trainee in trainees], data.size).to(device)
    owners = [owner.to(device) for owner in together.owners()]
    parameters = list(together.parameters())
    optimizer = torch.optim.SGD(
        parameters, config.learning_rate, config.momentum, weight_decay=config.weight_decay, foreach=True
    )
    loaders, place_of = _loaders(trainees, data, config)
    held_out: dict[bytes, tuple[Tensor, Tensor]] = {}
    shares = []
    for trainee in trainees:
        share = trainee.held_out.cpu().numpy().tobytes()
        held_out.setdefault(share, (data.train_images[trainee.held_out], data.train_labels[trainee.held_out]))
        shares.append(held_out[share])  # one object for those who share it
    steps = len(loaders[0])
    reports = []
    for epoch in range(config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = DECAYS[config.decay](config.learning_rate, epoch, config.epochs)
        together.train()
        losses = torch.zeros(len(trainees), device=device)
        correct = torch.zeros(len(trainees), device=device)
        for step in range(steps):
            batches = [loader.batch(epoch * steps + step) for loader in loaders]
            images = torch.stack([images for images, _ in batches])
            labels = torch.stack([labels for _, labels in batches])[place_of]
            optimizer.zero_grad()
            logits = together(images, place_of)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
            loss.sum().backward()  # each network's loss has its own parameters only
            _clip(parameters, owners, config.clip, len(trainees))
            optimizer.step()
            losses += loss.detach()
            correct += (logits.argmax(-1) == labels).float().mean(1)
        loss, accuracy = evaluate_side_by_side(together, shares, data)
        reports.append(SideBySideReport(epoch + 1, (losses / steps).cpu(), (correct / steps).cpu(), loss, accuracy))
        on_epoch(reports[-1])
    together.write_back()
    return reports, together


def _loaders(
    trainees: Sequence[Trainee], data: ImageData, config: FitConfig
) -> tuple[list[Loader], Int64[Tensor, " networks"]]:
    """The different loaders, and which of them each network has: those with the same seed and images share one."""
    loaders: dict[tuple[int, bytes], Loader] = {}
    keys = []
    for trainee in trainees:
        key = (trainee.seed, trainee.train_indices.cpu().numpy().tobytes())
        keys.append(key)
        if key not in loaders:
            loaders[key] = Loader(
                data.train_images[trainee.train_indices],
                data.train_labels[trainee.train_indices],
                config.batch_size,
                mean=data.mean,
                std=data.std,
                augmentation=replace(data.augmentation, cutout=0),
                seed=trainee.seed,
            )
    order = list(loaders)
    return list(loaders.values()), torch.tensor([order.index(key) for key in keys], device=data.train_images.device)


def _clip(parameters: Sequence[nn.Parameter], owners: Sequence[Tensor], largest: float, networks: int) -> None:
    """Clips the norm of each network's gradient, as ``clip_grad_norm_`` does for one."""
    squares = parameters[0].new_zeros(networks)
    for parameter, owner in zip(parameters, owners, strict=True):
        assert parameter.grad is not None
        squares.index_add_(0, owner, parameter.grad.flatten(1).square().sum(1))
    scale = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    if bool((scale < 1).any()):
        for parameter, owner in zip(parameters, owners, strict=True):
            assert parameter.grad is not None
            parameter.grad *= scale[owner].view(-1, *[1] * (parameter.dim() - 1))


@torch.no_grad()
def evaluate_side_by_side(
    together: SideBySide,
    held_out: Sequence[tuple[Tensor, Tensor]],
    data: ImageData,
    batch_size: int = 160,
) -> tuple[Float[Tensor, " networks"], Float[Tensor, " networks"]]:
    """Mean cross entropy and accuracy of every network on images of its own, in evaluation mode.

    Args:
        together: the networks.
        held_out: images and labels for every network, as many for each; the same object for those who share it.
        data: whose mean and deviation normalise them.
        batch_size: images of each network at a time.
    """
    together.eval()
    count = len(held_out[0][1])
    loss = torch.zeros(len(held_out), device=data.train_images.device)
    correct = torch.zeros_like(loss)
    different = {id(images): (images, labels) for images, labels in held_out}
    order = list(different)
    place_of = torch.tensor([order.index(id(images)) for images, _ in held_out], device=data.train_images.device)
    walks = [evaluation_batches(*share, batch_size, data.mean, data.std) for share in different.values()]
    for batches in zip(*walks, strict=True):
        images = torch.stack([images for images, _ in batches])
        labels = torch.stack([labels for _, labels in batches])[place_of]
        logits = together(images, place_of)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        loss += losses.sum(1)
        correct += (logits.argmax(-1) == labels).float().sum(1)
    return (loss / count).cpu(), (correct / count).cpu()
