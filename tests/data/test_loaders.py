"""A batch depends on seed and number only; a pass shows every image once; evaluation keeps the order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import Augmentation, Loader, evaluation_batches
from nasbook.data.loaders import _check_batches
from nasbook.errors import InvalidInput

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


def numbered(count: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that say their own number in their first pixel; the label says it too."""
    images = torch.randint(256, (count, 2, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.arange(count)
    return images, torch.arange(count)


def loader(count: int = 20, batch_size: int = 6, **changes) -> Loader:
    settings = {"mean": (0.5, 0.25), "std": (0.5, 0.125), "seed": 0} | changes
    return Loader(*numbered(count), batch_size, **settings)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 40), drop_last=st.booleans(), number=st.integers(0, 5))
def test_a_pass_shows_every_image_once(count, batch_size, drop_last, number):
    if count < batch_size:
        with pytest.raises(InvalidInput, match=f"batch of {batch_size} needs .* got {count}\\."):
            loader(count, batch_size)
        return
    batches = loader(count, batch_size, drop_last=drop_last)
    assert len(batches) == (count // batch_size if drop_last else -(-count // batch_size))
    seen = [batches.batch(number * len(batches) + step)[1] for step in range(len(batches))]
    assert all(len(labels) == batch_size for labels in seen[:-1])
    labels = torch.cat(seen)
    assert len(labels.unique()) == len(labels) == (count - count % batch_size if drop_last else count)


@settings(deadline=None, max_examples=30)
@given(indices=st.lists(st.integers(0, 30), min_size=1, max_size=8), seed=st.integers(0, 2**40))
def test_a_batch_is_a_pure_function_of_seed_and_number(indices, seed):
    changes = {"augmentation": Augmentation(1, True, 2), "seed": seed}
    one = loader(**changes)
    for index in indices:  # any order, back and forth between passes
        torch.manual_seed(index)
        images, labels = one.batch(index)
        fresh_images, fresh_labels = loader(**changes).batch(index)
        assert torch.equal(images, fresh_images) and torch.equal(labels, fresh_labels)


def test_passes_and_seeds_have_orders_of_their_own():
    def order(loader: Loader, number: int) -> list[int]:
        steps = range(number * len(loader), (number + 1) * len(loader))
        return torch.cat([loader.batch(step)[1] for step in steps]).tolist()

    one = loader(20, 5)
    assert order(one, 0) != order(one, 1)
    assert order(one, 0) != order(loader(20, 5, seed=1), 0)


@pytest.mark.parametrize("device", DEVICES)
def test_values_are_normalised_and_belong_to_their_labels(device):
    all_images, all_labels = (tensor.to(device) for tensor in numbered(20))
    images, labels = Loader(all_images, all_labels, 6, mean=(0.5, 0.25), std=(0.5, 0.125), seed=0).batch(2)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64 and images.device.type == device
    expected = all_images[labels].cpu().double() / 255
    expected[:, 0] = (expected[:, 0] - 0.5) / 0.5
    expected[:, 1] = (expected[:, 1] - 0.25) / 0.125
    assert torch.allclose(images.cpu().double(), expected, atol=1e-6)
    assert labels.tolist() == loader().batch(2)[1].tolist()  # the order is the CPU's on every device


def test_a_crop_shows_black_and_cutout_shows_the_mean():
    white = torch.full((50, 2, 4, 4), 255, dtype=torch.uint8)
    batches = Loader(white, torch.zeros(50, dtype=torch.int64), 50, mean=(0.5, 0.25), std=(0.5, 0.125), seed=0,
                     augmentation=Augmentation(crop_padding=2, cutout=2))
    images, _ = batches.batch(0)
    assert images[:, 0].unique().tolist() == [-1, 0, 1]  # (0 - 0.5) / 0.5, cut out, (1 - 0.5) / 0.5
    assert images[:, 1].unique().tolist() == [-2, 0, 6]


def test_every_batch_is_augmented_anew():
    same = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(32, 1, 8, 8)
    batches = Loader(same, torch.zeros(32, dtype=torch.int64), 16, mean=(0.0,), std=(1.0,), seed=0,
                     augmentation=Augmentation(crop_padding=2))
    seen = [batches.batch(index)[0] for index in range(4)]
    assert all(not torch.equal(one, other) for number, one in enumerate(seen) for other in seen[:number])


def test_errors():
    with pytest.raises(InvalidInput, match="^A batch of 21 needs at least as many images, got 20. Lower"):
        loader(20, 21)
    with pytest.raises(InvalidInput, match="^batch_size must be above 0, got 0.$"):
        loader(20, 0)
    with pytest.raises(InvalidInput, match="^A batch's number must be 0 or more, got -1.$"):
        loader().batch(-1)
    images, labels = numbered(4)
    with pytest.raises(InvalidInput, match="^Expected one label for each image, got 4 images and 3 labels.$"):
        _check_batches(images, labels[:3], 1)
    with pytest.raises(InvalidInput, match=r"^images: expected uint8 \(0 to 255\), got float32.$"):
        _check_batches(images.float(), labels, 1)


def test_evaluation_shows_every_image_once_in_order():
    images, labels = numbered(11)
    batches = list(evaluation_batches(images, labels, 4, (0.0, 0.0), (1.0, 1.0)))
    assert [len(classes) for _, classes in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([classes for _, classes in batches]), labels)
    assert torch.equal(torch.cat([some for some, _ in batches]), images / 255)
    with pytest.raises(InvalidInput, match="^batch_size must be above 0, got 0.$"):
        evaluation_batches(images, labels, 0, (0.0, 0.0), (1.0, 1.0))
