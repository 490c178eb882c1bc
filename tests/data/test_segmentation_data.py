"""Crops, batches and whole images with a label for every pixel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import (
    CropAugmentation,
    SegmentationData,
    SegmentationLoader,
    TensorSamples,
    random_crop,
    whole_images,
)
from nasbook.data.segmentation import IGNORED, Samples
from nasbook.errors import InvalidInput
from nasbook.seeding import generator

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
AS_IT_IS = {"smallest_scale": 1.0, "largest_scale": 1.0, "flip": False}


class OfManySizes(Samples):
    """Images of different sizes, whose red is ten times the label at every pixel."""

    def __init__(self, sizes):
        self.sizes = list(sizes)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        height, width = self.sizes[index]
        labels = torch.randint(0, 20, (height, width), dtype=torch.uint8, generator=generator(index, "labels"))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator(index, "image"))
        image[0] = labels * 10
        return image, labels

    def take(self, count):
        return OfManySizes(self.sizes[:count])

    def digest(self):
        return repr(self.sizes)


SAMPLES = OfManySizes([(5, 7), (9, 4), (9, 4), (12, 12), (5, 7), (3, 3), (9, 4)])


def crop(index: int = 0, seed: int = 0, **options):
    augmentation = CropAugmentation(**options)
    return random_crop(SAMPLES[index], augmentation, generator(seed), mean=MEAN, std=STD)


def red_of(image):
    """The red values 0 to 255 behind normalised ones."""
    return ((image[0] * STD[0] + MEAN[0]) * 255).round().to(torch.int64)


# ---------------------------------------------------------------------------------------------- crops


def test_an_image_of_the_crops_size_stays():
    image, labels = crop(3, crop=12, **AS_IT_IS)
    expected, truth = SAMPLES[3]
    assert torch.equal(labels, truth)
    shift, scale = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    assert torch.equal(image, (expected.float() / 255 - shift) / scale)


def test_smaller_images_are_padded_on_the_right_and_below():
    image, labels = crop(0, crop=8, **AS_IT_IS)
    assert image.shape == (3, 8, 8) and labels.shape == (8, 8)
    assert torch.equal(labels[:5, :7], SAMPLES[0][1])
    assert bool((labels[5:] == IGNORED).all() and (labels[:, 7:] == IGNORED).all())
    assert not image[:, 5:].any() and not image[:, :, 7:].any()  # the mean colour


def test_mirrored():
    plain, mirrored = crop(3, crop=12, **AS_IT_IS), None
    for seed in range(50):
        image, labels = crop(3, seed, crop=12, **{**AS_IT_IS, "flip": True})
        assert torch.equal(image, plain[0]) or torch.equal(image, plain[0].flip(-1))
        if not torch.equal(labels, plain[1]):
            mirrored = labels
            assert torch.equal(image, plain[0].flip(-1))  # together with its labels
    assert torch.equal(mirrored, plain[1].flip(-1))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    index=st.integers(0, 6), seed=st.integers(0, 2**32), side=st.integers(1, 16), flip=st.booleans(),
    low=st.sampled_from([0.3, 0.5, 1.0]), spread=st.sampled_from([0.0, 0.5, 1.5]),
)  # fmt: skip
def test_labels_move_with_their_pixels(index, seed, side, flip, low, spread):
    options = {"crop": side, "smallest_scale": low, "largest_scale": low + spread, "flip": flip}
    image, labels = crop(index, seed, **options)
    assert image.shape == (3, side, side) and labels.shape == (side, side)
    known = labels != IGNORED
    assert bool(known.any())  # an image is never cropped away
    assert not image[:, ~known].any()
    assert set(labels[known].tolist()) <= set(SAMPLES[index][1].flatten().tolist())  # no mixtures of labels
    again = crop(index, seed, **options)
    assert torch.equal(image, again[0]) and torch.equal(labels, again[1])
    if low == 1.0 and spread == 0.0:
        assert torch.equal(red_of(image)[known], 10 * labels[known].long())


def test_scaled_labels_lie_where_the_image_does():
    """Two halves, twice as large: the edge is in the middle of both."""
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[:, :, 2:] = 255
    labels = (image[0] > 0).to(torch.uint8)
    twice = CropAugmentation(crop=8, smallest_scale=2.0, largest_scale=2.0, flip=False)
    big, truth = random_crop((image, labels), twice, generator(0), mean=(0, 0, 0), std=(1, 1, 1))
    assert truth.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 8
    assert big[0, 0].tolist() == [0, 0, 0, 0.25, 0.75, 1, 1, 1]


def test_scales_are_uniform():
    """Of a large plain image, the share of the crop that is not padding tells the scale."""
    sample = (torch.zeros(3, 100, 100, dtype=torch.uint8), torch.zeros(100, 100, dtype=torch.uint8))
    augmentation = CropAugmentation(crop=200)  # scales from 0.5 to 2
    sides = torch.tensor([
        int((random_crop(sample, augmentation, generator(seed), mean=MEAN, std=STD)[1][0] == 0).sum())
        for seed in range(300)
    ]) / 100  # fmt: skip
    assert 0.5 <= sides.min() < 0.52 and 1.98 < sides.max() <= 2.0
    assert abs(float(sides.mean()) - 1.25) < 4 * 1.5 / math.sqrt(12 * 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0}, "^crop must be above 0, got 0"),
        ({"smallest_scale": 0.0}, "^smallest_scale must be above 0, got 0"),
        ({"largest_scale": 0.4}, "^largest_scale must be at least smallest_scale=0.5, got 0.4.$"),
        ({"largest_scale": math.nan}, "^largest_scale must be at least"),
    ],
)
def test_wrong_augmentations(options, message):
    with pytest.raises(InvalidInput, match=message):
        CropAugmentation(**options)


# ---------------------------------------------------------------------------------------------- batches


def loader(**options) -> SegmentationLoader:
    settings = {"mean": MEAN, "std": STD, "augmentation": CropAugmentation(6), "seed": 1, **options}
    return SegmentationLoader(SAMPLES, 2, **settings)


def test_a_batch_is_a_function_of_seed_and_number():
    batches = [loader().batch(index) for index in range(9)]
    assert len(loader()) == 3  # of 7 images, one is left over in every pass
    for workers in (0, 1, 3):
        other = loader(workers=workers)
        for index in (4, 5, 0, 8, 8, 1, 2, 3):  # in any order, and again
            images, labels = other.batch(index)
            assert images.shape == (2, 3, 6, 6) and labels.dtype == torch.int64
            assert torch.equal(images, batches[index][0]) and torch.equal(labels, batches[index][1])
    assert not torch.equal(loader(seed=2).batch(0)[0], batches[0][0])


def test_every_pass_has_its_own_order_and_crops():
    order = CropAugmentation(1, 1.0, 1.0, flip=False)
    whole = SegmentationLoader(SAMPLES.take(2), 1, mean=MEAN, std=STD, augmentation=order, seed=0)
    pixels = [tuple(whole.batch(index)[0].flatten().tolist()) for index in range(40)]
    assert len(set(pixels)) > 10  # other places in each pass
    small = TensorSamples(*(torch.stack(part) for part in zip(SAMPLES[1], SAMPLES[2], SAMPLES[6], strict=True)))
    whole = SegmentationLoader(small, 1, mean=MEAN, std=STD, augmentation=CropAugmentation(9, **AS_IT_IS), seed=0)
    passes = [[red_of(whole.batch(3 * number + step)[0][0])[:, :4].flatten().tolist() for step in range(3)]
              for number in range(8)]  # fmt: skip
    assert all(sorted(images) == sorted(passes[0]) for images in passes)  # every image once
    assert len({repr(images) for images in passes}) > 1


def test_nothing_global_is_drawn():
    before = torch.get_rng_state()
    loader(workers=2).batch(0)
    assert torch.equal(torch.get_rng_state(), before)


class Unreadable(OfManySizes):
    def __getitem__(self, index):
        raise InvalidInput(f"sample {index} can't be read")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_thread_is_raised_where_the_batch_is_asked_for(workers):
    broken = SegmentationLoader(Unreadable(SAMPLES.sizes), 2, mean=MEAN, std=STD, augmentation=CropAugmentation(6),
                                seed=0, workers=workers)  # fmt: skip
    with pytest.raises(InvalidInput, match=r"^sample \d can't be read"):
        broken.batch(0)
    with pytest.raises(InvalidInput, match="^sample 0 can't be read"):
        next(iter(whole_images(Unreadable(SAMPLES.sizes), 2, mean=MEAN, std=STD, workers=workers)))


def test_wrong_batches():
    with pytest.raises(InvalidInput, match="^A batch of 8 needs at least as many images, got 7. Lower batch_size.$"):
        SegmentationLoader(SAMPLES, 8, mean=MEAN, std=STD, augmentation=CropAugmentation(6), seed=0)
    with pytest.raises(InvalidInput, match="^batch_size must be above 0, got 0"):
        SegmentationLoader(SAMPLES, 0, mean=MEAN, std=STD, augmentation=CropAugmentation(6), seed=0)
    with pytest.raises(InvalidInput, match="^A batch's number must be 0 or more, got -1.$"):
        loader().batch(-1)


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_in_order(workers):
    batches = list(whole_images(SAMPLES, 2, mean=MEAN, std=STD, workers=workers))
    shapes = [tuple(labels.shape) for _, labels in batches]
    assert shapes == [(1, 5, 7), (2, 9, 4), (1, 12, 12), (1, 5, 7), (1, 3, 3), (1, 9, 4)]
    every = [labels for batch in batches for labels in batch[1]]
    assert all(torch.equal(got, SAMPLES[index][1].long()) for index, got in enumerate(every))
    assert torch.equal(red_of(batches[2][0][0]), 10 * SAMPLES[3][1].long())


def test_whole_images_of_one_size():
    batches = list(whole_images(SAMPLES, 3, least=10, mean=MEAN, std=STD))
    assert [tuple(labels.shape) for _, labels in batches] == [(3, 10, 10), (1, 12, 12), (3, 10, 10)]
    images, labels = batches[0]
    assert torch.equal(labels[1, :9, :4], SAMPLES[1][1].long())
    assert bool((labels[1, 9:] == IGNORED).all() and (labels[1, :, 4:] == IGNORED).all())
    assert not images[1, :, 9:].any() and not images[1, :, :, 4:].any()
    scored = sum(int((labels != IGNORED).sum()) for _, labels in batches)
    assert scored == sum(height * width for height, width in SAMPLES.sizes)


# ---------------------------------------------------------------------------------------------- sets


def tiny(name: str = "tiny", classes: tuple[str, ...] = ("background", "thing"), first: int = 0) -> SegmentationData:
    images = torch.arange(3 * 3 * 4 * 4, dtype=torch.uint8).view(3, 3, 4, 4) + first
    samples = TensorSamples(images, images[:, 0] % 2)
    return SegmentationData(name, samples, samples.take(2), classes, MEAN, STD, "here")


def test_a_set():
    data = tiny()
    assert (len(data.train), len(data.test), data.classes) == (3, 2, 2)
    assert repr(data) == "SegmentationData('tiny', 3 train + 2 test images, 2 classes, here)"
    assert data.checksum == tiny().checksum
    others = [tiny(name="other"), tiny(classes=("background", "another")), tiny(first=1)]
    others += [data.take(2), data.take(test=1)]
    assert len({data.checksum, *(other.checksum for other in others)}) == 6
    assert len(data.take(2).train) == 2 and len(data.take(2).test) == 2
    for part, most, count in (("train", 3, 4), ("train", 3, 0), ("test", 2, 3)):
        message = f"^{part} must be between 1 and {most}, the images there are; got {count}.$"
        with pytest.raises(InvalidInput, match=message):
            data.take(**{part: count})


def test_labels_must_fit():
    with pytest.raises(InvalidInput, match=r"^Expected one label for each pixel, got images of the shape \(1, 3, 4"):
        TensorSamples(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.uint8))
