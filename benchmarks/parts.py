"""What each trick of the fused engine saves: one node with four outgoing edges, part by part, forward and backward.

    python benchmarks/parts.py                      C=16 at 32×32 and C=64 at 8×8, batch 16
    python benchmarks/parts.py --device cuda

Each part runs in isolation, the readable engine's way (one edge at a time, torch's default layout) and the fused
engine's, on tensors of the shapes that DARTS' node has. Depthwise convolutions, pointwise convolutions with their
batch norms and coefficients, and ReLUs are built here from the functions that the engine is built from, with its
backward pass; the pools are the engine itself, restricted to them, and "identity, zero, sums" is what these operations
add to the pools' time, since the engine joins them in one map.

Rows have ``channels``, ``side``, ``batch``, ``part``, ``trick`` and ``way``; times, and ``saved_bytes``, what is kept
for the backward pass, inputs included. ``way`` is "readable", "fused", or a step between them. Rows of the fused way
also have

* ``ratio``: readable time over fused time;
* ``share``: of the saving of all parts together, the share of this one;
* ``saved_ratio``: fused bytes over readable bytes.

"all parts" is the sum of the parts' times. "whole node" is the engine itself with all eight operations, which is no
sum: alone, a part finds other things in the caches, and the additions of gradients between parts are in none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import _measure as measure
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from nasbook.analysis import saved_activation_bytes
from nasbook.genotypes import DARTS_OPERATIONS, Space
from nasbook.networks import CellPlacement
from nasbook.operations.depthwise import depthwise, depthwise_products, turned
from nasbook.operations.pointwise import (
    channel_sums,
    grouped_map,
    grouped_products,
    in_fast_layout,
    repeat_channels,
    sum_copies,
)
from nasbook.supernets import FusedCell
from nasbook.supernets.folded_norm import (
    FoldedNorm,
    NormPass,
    Statistics,
    fold_norms,
    unfold_gradients,
    update_running_statistics,
)
from nasbook.supernets.fused import _NodeDeparture

EDGES = 4
EPSILON, MOMENTUM = 1e-5, 0.1
"""Of torch's batch norms."""

SHAPES = {"3×3": (3, 1), "5×5": (5, 1), "3×3 dilated": (3, 2), "5×5 dilated": (5, 2)}
"""Kernel and dilation. The undilated ones stand twice in their operation, the second time on each edge's own images."""

POOLS = ("max_pool_3x3", "avg_pool_3x3")
REST = "identity, zero, sums"
"""Measured as what they add to the pools, as the fused engine joins all these in one map."""

SIZES = ((16, 32), (64, 8))
"""Channels and side of the images."""


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    rounds: int = 21
    """How many times each contestant is timed, after one time that warms up."""
    batch: int = 16
    """Images."""


Function = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Contestant:
    """One part, one way: a function of images and parameters, and the gradients that come back to its outputs."""

    part: str
    trick: str
    way: str
    function: Function
    images: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def outputs(self) -> Sequence[Tensor]:
        return self.function(*self.images, *self.parameters)

    def run(self) -> None:
        """Forward and backward."""
        torch.autograd.grad(self.outputs(), (*self.images, *self.parameters), self.gradients)

    def saved_bytes(self) -> int:
        return saved_activation_bytes(lambda *images: self.function(*images, *self.parameters), *self.images)


def contestant(
    part: str, trick: str, way: str, function: Function, images: Sequence[Tensor], parameters: Sequence[Tensor] = ()
) -> Contestant:
    """With gradients of the outputs' sizes and layouts."""
    images = tuple(image.detach().requires_grad_() for image in images)
    parameters = tuple(parameter.requires_grad_() for parameter in parameters)
    gradients = tuple(torch.randn_like(output) for output in function(*images, *parameters))
    return Contestant(part, trick, way, function, images, parameters, gradients)


class Node:
    """The tensors of one node: its state, and what the edges' operations make of it."""

    def __init__(self, channels: int, side: int, batch: int, device: torch.device) -> None:
        self.channels = channels
        self.x = torch.randn(batch, channels, side, side, device=device)
        self.device = device

    def images(self, count: int = 1) -> list[Tensor]:
        """Like the node's state: in torch's default layout."""
        return [torch.randn_like(self.x) for _ in range(count)]

    def matrices(self, count: int, *shape: int) -> list[Tensor]:
        scale = shape[-1] ** -0.5
        return [torch.randn(*shape, device=self.device) * scale for _ in range(count)]

    def norms(self, count: int) -> list[nn.BatchNorm2d]:
        return [nn.BatchNorm2d(self.channels, affine=False).to(self.device) for _ in range(count)]


class _ByHand(torch.autograd.Function):
    """A part whose backward pass is written out, as in the engine: it keeps what its forward pass says and no more."""

    @staticmethod
    def forward(ctx: Any, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor) -> Any:
        outputs, kept = forward(*inputs)
        ctx.back, ctx.count = backward, len(inputs)
        ctx.save_for_backward(*inputs, *kept)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved = ctx.saved_tensors
        return None, None, *ctx.back(saved[: ctx.count], saved[ctx.count :], gradients)


def by_hand(forward: Callable[..., Any], backward: Callable[..., Any]) -> Function:
    """A differentiable function from a forward pass (inputs → outputs, kept) and its backward pass."""
    return lambda *inputs: _ByHand.apply(forward, backward, *inputs)


def depthwise_part(node: Node, shape: str) -> Iterator[Contestant]:
    """Depthwise convolutions of one kernel shape: on ReLU(x) for all edges, and a second time where it is separable."""
    kernel, dilation = SHAPES[shape]
    padding, halves, channels = dilation * (kernel // 2), 2 if dilation == 1 else 1, node.channels
    part, trick = f"depthwise {shape}", "depthwise"
    (h,) = node.images()
    second = node.images(EDGES) if halves == 2 else []
    kernels = node.matrices(halves * EDGES, channels, 1, kernel, kernel)

    def separate(*inputs: Tensor) -> list[Tensor]:
        """One convolution an edge and half, in the layout of the images."""
        images, weights = [inputs[0]] * EDGES + list(inputs[1 : 1 + len(second)]), inputs[1 + len(second) :]
        return [
            F.conv2d(image, weight, padding=padding, dilation=dilation, groups=channels)
            for image, weight in zip(images, weights, strict=True)
        ]

    def library(h: Tensor, *others: Tensor) -> list[Tensor]:
        """All edges in one convolution, with torch's own gradients."""
        images, weights = [repeat_channels(h, EDGES), *others[: halves - 1]], others[halves - 1 :]
        return [
            F.conv2d(image, weight, padding=padding, dilation=dilation, groups=weight.shape[0])
            for image, weight in zip(images, weights, strict=True)
        ]

    def forward(h: Tensor, *others: Tensor) -> tuple[Any, Any]:
        images, weights = [repeat_channels(h, EDGES), *others[: halves - 1]], others[halves - 1 :]
        return tuple(depthwise(image, weight, dilation) for image, weight in zip(images, weights, strict=True)), ()

    def backward(inputs: Sequence[Tensor], _: Any, gradients: Sequence[Tensor]) -> list[Tensor]:
        h, *others = inputs
        images, weights = [repeat_channels(h, EDGES), *others[: halves - 1]], others[halves - 1 :]
        for_images = [depthwise(g, turned(weight), dilation) for g, weight in zip(gradients, weights, strict=True)]
        products = [depthwise_products(i, g, kernel, dilation) for i, g in zip(images, gradients, strict=True)]
        return [sum_copies(for_images[0], EDGES), *for_images[1:], *products]

    yield contestant(part, trick, "readable", separate, [h, *second], kernels)
    fast = [in_fast_layout(image) for image in (h, *second)]
    yield contestant(part, trick, "fast layout, edge by edge", separate, fast, kernels)
    wide = [in_fast_layout(h), *([in_fast_layout(torch.cat(second, dim=1))] if second else [])]
    stacked = [torch.cat(kernels[start : start + EDGES]) for start in range(0, len(kernels), EDGES)]
    yield contestant(part, trick, "wide, torch's gradients", library, wide, stacked)
    yield contestant(part, trick, "fused", by_hand(forward, backward), wide, stacked)


def pointwise_part(node: Node, last: bool) -> Iterator[Contestant]:
    """Pointwise convolutions with their batch norms: of the four last halves, with coefficients and sum, or the two
    first halves of the separable convolutions."""
    count, channels = (4, node.channels) if last else (2, node.channels)
    part = "pointwise, batch norm, coefficient" if last else "pointwise, batch norm (first halves)"
    trick = "pointwise + batch norm"
    images = [node.images(EDGES) for _ in range(count)]
    weights = node.matrices(count * EDGES, channels, channels)
    coefficients = torch.softmax(torch.randn(EDGES, 8, device=node.device), dim=-1)[:, :count]
    norms = node.norms(count * EDGES)

    def separate(*inputs: Tensor) -> list[Tensor]:
        size = count * EDGES
        z, weights, scales = inputs[:size], inputs[size : 2 * size], inputs[2 * size :]
        normal = [
            norm(F.conv2d(image, weight[..., None, None]))
            for image, weight, norm in zip(z, weights, norms, strict=True)
        ]
        if not last:
            return normal
        totals = []
        for edge in range(EDGES):
            total = scales[0][edge, 0] * normal[edge]
            for place in range(1, count):
                total = total + scales[0][edge, place] * normal[place * EDGES + edge]
            totals.append(total)
        return totals

    def scaled(scales: Sequence[Tensor], values: Tensor) -> Tensor:
        """Each map's coefficient, in the shape of what it multiplies."""
        return scales[0].mT.reshape(-1, *[1] * (values.dim() - 1)) if scales else values.new_ones(())

    def forward(*inputs: Tensor) -> tuple[Any, Any]:
        z, weight, scales = inputs[:count], inputs[count], inputs[count + 1 :]
        statistics: list[Statistics] = []
        norm = fold_norms(weight, z, EDGES, norms, NormPass(True, EPSILON, statistics))
        update_running_statistics(statistics, MOMENTUM)
        maps, bias = norm.maps * scaled(scales, norm.maps), norm.bias * scaled(scales, norm.bias)
        if not last:
            outputs = [grouped_map(z[i], maps[_of(i)], bias[_of(i)].flatten()) for i in range(count)]
            return tuple(outputs), norm
        total = grouped_map(z[0], maps[_of(0)], bias.view(count, -1).sum(0))
        for i in range(1, count):
            total = total.add_(grouped_map(z[i], maps[_of(i)]))
        return (total,), norm

    def backward(inputs: Sequence[Tensor], kept: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        z, weight, scales = inputs[:count], inputs[count], inputs[count + 1 :]
        norm = FoldedNorm(*kept)
        maps = norm.maps * scaled(scales, norm.maps)
        received = gradients if not last else list(gradients) * count
        sums = [channel_sums(gradient).view(EDGES, -1) for gradient in gradients]
        for_maps = torch.cat([grouped_products(z[i], received[i], EDGES) for i in range(count)])
        for_bias = torch.cat(sums if not last else sums * count)
        for_scales = []
        if last:
            inner = (for_maps * norm.maps).sum((1, 2)) + (for_bias * norm.bias).sum(1)
            for_scales.append(inner.view(count, EDGES).mT)
            for_maps, for_bias = for_maps * scaled(scales, for_maps), for_bias * scaled(scales, for_bias)
        pixels = z[0].numel() // z[0].shape[1]
        for_weight, quadratic, linear = unfold_gradients(weight, norm, for_maps, for_bias, pixels)
        for_z = [
            grouped_map(received[i], maps[_of(i)].mT).add_(
                grouped_map(z[i], quadratic[_of(i)], linear[_of(i)].flatten())
            )
            for i in range(count)
        ]
        return [*for_z, for_weight, *for_scales]

    flat = [image for edges in images for image in edges]
    scales = [coefficients] if last else []
    yield contestant(part, trick, "readable", separate, flat, [*weights, *scales])
    wide = [in_fast_layout(torch.cat(edges, dim=1)) for edges in images]
    yield contestant(part, trick, "fused", by_hand(forward, backward), wide, [torch.stack(weights), *scales])


def relu_part(node: Node) -> Iterator[Contestant]:
    """One ReLU in front of each of the 4·4 convolutions and of the 2·4 second halves, against one for all, and two."""
    part = trick = "ReLU"
    (x,), second = node.images(), [node.images(EDGES) for _ in range(2)]

    def separate(x: Tensor, *others: Tensor) -> list[Tensor]:
        return [F.relu(x) for _ in range(4 * EDGES)] + [F.relu(y) for y in others]

    def forward(x: Tensor, *others: Tensor) -> tuple[Any, Any]:
        return (F.relu(x), *(y.detach().relu_() for y in others)), ()  # in place: what was there is no longer needed

    def backward(inputs: Sequence[Tensor], _: Any, gradients: Sequence[Tensor]) -> list[Tensor]:
        results = [F.relu(inputs[0]), *inputs[1:]]
        return [torch.ops.aten.threshold_backward(g, r, 0) for g, r in zip(gradients, results, strict=True)]

    yield contestant(part, trick, "readable", separate, [x, *second[0], *second[1]])
    wide = [in_fast_layout(torch.cat(edges, dim=1)) for edges in second]
    yield contestant(part, trick, "fused", by_hand(forward, backward), [in_fast_layout(x), *wide])


def engine_part(node: Node, part: str, trick: str, operations: tuple[str, ...]) -> Iterator[Contestant]:
    """The engines themselves, restricted to some operations."""
    cell = FusedCell(Space(operations, EDGES), CellPlacement("normal", node.channels, (1, 1), False, False))
    cell.to(node.device)
    departure = _NodeDeparture(cell, (0,))
    coefficients = torch.softmax(torch.randn(len(cell.edges), len(operations), device=node.device), dim=-1)
    rows = [row for row, (source, _) in enumerate(cell.space.edges) if source == 0]
    used = [parameter for row in rows for parameter in cell.edges[row].parameters()]

    def readable(x: Tensor, coefficients: Tensor, *_: Tensor) -> list[Tensor]:
        return [cell.edges[row](x, coefficients[row]) for row in rows]

    def fused(x: Tensor, coefficients: Tensor, *_: Tensor) -> Sequence[Tensor]:
        norms = NormPass(True, EPSILON, [])
        received = departure([x], coefficients, norms)
        if norms.statistics:
            update_running_statistics(norms.statistics, MOMENTUM)
        return [part for _, part in received]

    yield contestant(part, trick, "readable", readable, [node.x], [coefficients, *used])
    yield contestant(part, trick, "fused", fused, [in_fast_layout(node.x)], [coefficients, *used])


def contestants(node: Node) -> Iterator[Contestant]:
    """Everything, part by part."""
    for shape in SHAPES:
        yield from depthwise_part(node, shape)
    yield from pointwise_part(node, last=False)
    yield from pointwise_part(node, last=True)
    yield from engine_part(node, "pools", "pools", POOLS)
    yield from relu_part(node)
    yield from engine_part(node, REST, "zero and sums", ("none", *POOLS, "skip_connect"))
    yield from engine_part(node, "whole node", "", DARTS_OPERATIONS)


def measure_node(
    channels: int, side: int, batch: int, rounds: int, device: torch.device
) -> tuple[list[measure.Row], list[measure.Row]]:
    """The rows of the parts, and those of their sum and of the whole node."""
    found = list(contestants(Node(channels, side, batch, device)))
    seconds = measure.interleave({(c.part, c.way): c.run for c in found}, rounds, device)
    saved = {(c.part, c.way): c.saved_bytes() for c in found}
    for way in ("readable", "fused"):
        both = zip(seconds[REST, way], seconds["pools", way], strict=True)
        seconds[REST, way] = [joined - pools for joined, pools in both]
        saved[REST, way] -= saved["pools", way]
    size = {"channels": channels, "side": side, "batch": batch}
    rows: dict[tuple[str, str], measure.Row] = {}
    for c in found:
        row = {**size, "part": c.part, "trick": c.trick, "way": c.way, **measure.summary(seconds[c.part, c.way])}
        readable = rows.get((c.part, "readable"), row)
        row["ratio"] = readable["seconds"] / row["seconds"] if row["seconds"] > 0 else None  # a difference may vanish
        row["saved_bytes"] = saved[c.part, c.way]
        row["saved_ratio"] = row["saved_bytes"] / readable["saved_bytes"]
        rows[c.part, c.way] = row
    whole = [row for row in rows.values() if not row["trick"]]
    parts = [row for row in rows.values() if row["trick"]]
    total = {way: sum(row["seconds"] for row in parts if row["way"] == way) for way in ("readable", "fused")}
    for row in parts:
        if row["way"] == "fused":
            saving = rows[row["part"], "readable"]["seconds"] - row["seconds"]
            row["share"] = saving / (total["readable"] - total["fused"])
    sums = [
        {
            **size,
            "part": "all parts",
            "trick": "",
            "way": way,
            "seconds": total[way],
            "ratio": total["readable"] / total[way],
        }
        for way in total
    ]
    return parts, [*sums, *whole]


COLUMNS = {
    "part": "part",
    "way": "way",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "ratio": "readable/this",
    "share": "share of saving %",
    "saved_bytes": "saved MiB",
    "saved_ratio": "of readable's",
}


def main(options: Options) -> None:
    device = options.prepare()
    rows: list[measure.Row] = []
    for channels, side in SIZES:
        rows += [row for part in measure_node(channels, side, options.batch, options.rounds, device) for row in part]
    tables = [(COLUMNS, [row for row in rows if row["channels"] == channels]) for channels, _ in SIZES]
    sizes = " and ".join(f"C={channels} at {side}×{side}" for channels, side in SIZES)
    title = f"a node with {EDGES} outgoing edges, {sizes}, batch {options.batch}"
    measure.finish(options, "parts", "", title, tables)


def _of(place: int) -> slice:
    """The maps of one operation, in stacks of one for each edge."""
    return slice(place * EDGES, (place + 1) * EDGES)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
