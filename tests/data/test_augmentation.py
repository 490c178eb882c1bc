"""augment(): exact on small cases against a plain loop, and the right frequencies on many draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from nasbook.data import Augmentation, augment
from nasbook.errors import InvalidInput

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def one_by_one(images: torch.Tensor, augmentation: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """The same draws in the same order, then a loop with slices as one would write it for one image."""
    batch, _, height, width = images.shape
    padding, side = augmentation.crop_padding, augmentation.cutout

    def draw(limit: int) -> list[int]:
        return torch.randint(limit, (batch, 1), generator=generator).flatten().tolist()

    flips = draw(2) if augmentation.flip else [0] * batch
    downs = draw(2 * padding + 1) if padding else [0] * batch
    rights = draw(2 * padding + 1) if padding else [0] * batch
    ys, xs = (draw(height), draw(width)) if side else ([0] * batch, [0] * batch)
    result = []
    for image, flip, down, right, y, x in zip(images, flips, downs, rights, ys, xs, strict=True):
        image = pad(image, (padding,) * 4)[:, down : down + height, right : right + width]
        image = image.flip(-1) if flip else image.clone()
        image[:, max(y - side // 2, 0) : y - side // 2 + side, max(x - side // 2, 0) : x - side // 2 + side] = 0
        result.append(image)
    return torch.stack(result)


@settings(deadline=None, max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    crop_padding=st.integers(0, 6),
    flip=st.booleans(),
    cutout=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
def test_equals_a_loop_over_the_samples(shape, crop_padding, flip, cutout, seed):
    images = torch.rand(shape, generator=seeded(seed)) + 1  # never 0, so that padding shows
    augmentation = Augmentation(crop_padding, flip, cutout)
    expected = one_by_one(images, augmentation, seeded(seed + 1))
    assert torch.equal(augment(images, augmentation, seeded(seed + 1)), expected)


def test_no_augmentation_is_the_same_tensor_and_draws_nothing():
    images = torch.rand(4, 3, 8, 8)
    generator = seeded(0)
    before = generator.get_state()
    assert augment(images, Augmentation(), generator) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("device", DEVICES)
def test_every_offset_and_both_mirrors_are_equally_likely(device):
    size, padding, batch = 5, 2, 40_000
    numbers = torch.arange(1.0, size * size + 1, device=device).view(1, 1, size, size)
    output = augment(numbers.expand(batch, 1, size, size), Augmentation(padding, flip=True), seeded(3, device))
    # The pixel in the middle tells the offsets: 25 of them, and both mirrors of each.
    middle = output[:, 0, 2, 2].long().bincount(minlength=26)[1:].float() / batch
    assert (middle - 1 / 25).abs().max() < 5 * (1 / 25 / batch) ** 0.5
    unpadded = output[:, 0, 2, 1:4]
    whole = unpadded.gt(0).all(1)
    flipped = (unpadded[whole, 0] > unpadded[whole, 2]).float().mean().item()
    assert abs(flipped - 0.5) < 5 * (0.25 / int(whole.sum())) ** 0.5


@pytest.mark.parametrize("device", DEVICES)
def test_cutout_hides_as_much_as_its_clipped_square(device):
    size, side, batch = 8, 4, 20_000
    hidden = augment(torch.ones(batch, 2, size, size, device=device), Augmentation(cutout=side), seeded(5, device)) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])  # the same square in every channel
    # A centre at 0..7 covers rows centre-2..centre+1 inside the image: 2, 3, 4, 4, 4, 4, 4, 3 of them.
    assert abs(hidden[:, 0].float().sum((1, 2)).mean().item() - (28 / 8) ** 2) < 0.1
    assert hidden[:, 0].sum((1, 2)).unique().tolist() == [4, 6, 8, 9, 12, 16]


def test_crop_pads_with_black():
    black = torch.tensor([-1.0, -2.0])
    images = torch.zeros(200, 2, 4, 4)
    output = augment(images, Augmentation(crop_padding=4), seeded(0), black=black)
    assert output[:, 0].unique().tolist() == [-1, 0]
    assert torch.equal(output[:, 1], 2 * output[:, 0])


def test_the_generator_alone_decides():
    images = torch.rand(16, 3, 8, 8)
    augmentation = Augmentation(2, True, 4)
    first = augment(images, augmentation, seeded(1))
    torch.manual_seed(99)
    assert torch.equal(first, augment(images, augmentation, seeded(1)))
    assert not torch.equal(first, augment(images, augmentation, seeded(2)))


@pytest.mark.parametrize("field", ["crop_padding", "cutout"])
def test_negative_sizes_are_refused(field):
    with pytest.raises(InvalidInput, match=f"^{field} must be 0 or more, got -1.$"):
        Augmentation(**{field: -1})
