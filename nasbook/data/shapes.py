"""Shapes: an embedded set for segmentation, drawn by code, that needs no network and a tenth of a second.

One or two circles, squares, triangles and crosses on a background, turned at random, partly over each other or cut off.
Nothing but the outline tells what a shape is: colours, textures and areas of all classes have the same distribution,
and so have the textures of shapes and background. Labels are exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from nasbook.data.segmentation import SegmentationData, TensorSamples
from nasbook.errors import InvalidInput, require_positive
from nasbook.seeding import generator

SHAPE_CLASSES = ("background", "circle", "square", "triangle", "cross")
"""The classes in the order of their numbers."""

CELLS = 8
"""Cells of a texture in each direction."""

MOST_SHAPES = 2
"""Shapes in one image, at most; later ones lie over earlier ones."""


def load_shapes(train: int = 400, test: int = 200, size: int = 32, seed: int = 0) -> SegmentationData:
    """Draws the set; the same arguments give the same bits on every machine.

    Everything but the outlines is computed in whole numbers, and outlines by the four operations of float64 alone,
    which IEEE 754 fixes to the last bit.

    Args:
        train: number of training images. More of them leave the first ones as they are, and so for ``test``.
        test: number of test images.
        size: height and width in pixels, a multiple of 8.
        seed: of everything random.

    Raises:
        InvalidInput: a number is below 1, or the size no multiple of 8.
    """
    require_positive(train=train, test=test, size=size)
    if size % CELLS:
        raise InvalidInput(f"size must be a multiple of {CELLS}, got {size}.")
    parts = {"train": _draw(train, size, seed, "train"), "test": _draw(test, size, seed, "test")}
    values = parts["train"].images.double() / 255
    mean, std = (tuple(statistic.tolist()) for statistic in (values.mean((0, 2, 3)), values.std((0, 2, 3))))
    return SegmentationData(
        name="shapes",
        train=parts["train"],
        test=parts["test"],
        class_names=SHAPE_CLASSES,
        mean=mean,
        std=std,
        source="embedded",
    )


def _draw(count: int, size: int, seed: int, part: str) -> TensorSamples:
    def whole(low: int, high: int, *shape: int, of: str) -> Int64[ndarray, "..."]:
        """Whole numbers from low to high − 1; image by image, so that their number does not change them."""
        draws = generator(seed, part, of)
        return torch.randint(low, high, (count, *shape), generator=draws).numpy()

    images = np.zeros((count, 3, size, size), np.int64)
    labels = np.zeros((count, size, size), np.uint8)
    background = whole(0, 256, 3, 1, 1, of="background")
    for layer in range(1 + MOST_SHAPES):
        name = f"layer {layer}"
        coarse = whole(-40, 41, 3, CELLS + 1, CELLS + 1, of=f"{name} texture")
        texture = _enlarged(coarse, size // CELLS) + whole(-12, 13, 3, size, size, of=f"{name} grain")
        if layer == 0:
            images[:] = _reflected(background + texture)
            continue
        # In every channel at least 64 away from the background's colour, round the circle of 256 values.
        colour = (background + whole(64, 193, 3, 1, 1, of=f"{name} colour")) % 256
        kind = whole(1, len(SHAPE_CLASSES), of=f"{name} kind")
        there = whole(0, 3, of=f"{name} there") < 2 if layer > 1 else np.ones(count, bool)
        inside = _outlines(
            kind,
            whole(0, 64 * size, 2, of=f"{name} centre") / 64,
            size * (3 + 2 * whole(0, 1025, of=f"{name} radius") / 1024) / 16,  # 3/16 to 5/16 of the image
            whole(-1024, 1025, of=f"{name} turn") / 1024,
            size,
        )
        inside &= there[:, None, None]
        images = np.where(inside[:, None], _reflected(colour + texture), images)
        labels = np.where(inside, kind[:, None, None], labels).astype(np.uint8)
    return TensorSamples(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels))


def _outlines(
    kind: Int64[ndarray, " images"],
    centre: Float64[ndarray, "images 2"],
    radius: Float64[ndarray, " images"],
    turn: Float64[ndarray, " images"],
    size: int,
) -> Bool[ndarray, "images size size"]:
    """The pixels whose middle lies inside of a shape. All kinds have the area of a circle with that radius."""
    pixel = np.arange(size) + 0.5
    y, x = (
        (axis - middle[:, None, None]) / radius[:, None, None]
        for axis, middle in zip((pixel[:, None], pixel[None, :]), centre.T, strict=True)
    )
    # A rotation by an angle φ with tan(φ/2) = turn, from −90° to 90°, without a cosine.
    cosine, sine = ((1 - turn * turn) / (1 + turn * turn))[:, None, None], (2 * turn / (1 + turn * turn))[:, None, None]
    u, v = cosine * x + sine * y, cosine * y - sine * x
    square = math.sqrt(math.pi) / 2  # half a side: 4 s² = π
    triangle = math.sqrt(math.pi / 3 / math.sqrt(3))  # radius of the inscribed circle: 3·√3 r² = π
    arm = 3 * math.sqrt(math.pi / 20)  # half a length, arms a third as wide: 20/9 l² = π
    slanted = math.sqrt(3) / 2
    wide, high = np.abs(u), np.abs(v)
    shapes = (
        u * u + v * v <= 1,
        np.maximum(wide, high) <= square,
        np.maximum(np.maximum(slanted * u - v / 2, -slanted * u - v / 2), v) <= triangle,
        (np.maximum(wide, high) <= arm) & (np.minimum(wide, high) <= arm / 3),
    )
    chosen = kind[:, None, None]
    return np.select([chosen == number for number in range(1, len(SHAPE_CLASSES))], shapes, default=False)


def _enlarged(
    coarse: Int64[ndarray, "images 3 nodes nodes"], step: int
) -> Int64[ndarray, "images 3 size size"]:
    """Values between the nodes of a grid, interpolated on lines along both directions and rounded down."""
    for axis in (2, 3):
        moved = np.moveaxis(coarse, axis, -1)
        share = np.arange(step)
        between = moved[..., :-1, None] * (step - share) + moved[..., 1:, None] * share
        coarse = np.moveaxis(between.reshape(*moved.shape[:-1], -1), -1, axis)
    return coarse // step**2


def _reflected(values: Int64[ndarray, "..."]) -> Int64[ndarray, "..."]:
    """Into 0 to 255, by reflection at the ends: clipping would leave plain areas without texture."""
    values = np.abs(values)
    return np.where(values > 255, 510 - values, values)
