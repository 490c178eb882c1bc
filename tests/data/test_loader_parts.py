"""The parts of a batch together are the batch, to the bit, augmentation included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import Augmentation, Loader, augment
from nasbook.errors import InvalidInput


def loader(part=(0, 1), count=25, batch_size=12, **changes):
    images = torch.randint(256, (count, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"mean": (0.5, 0.25), "std": (0.5, 0.125), "seed": 3, "augmentation": Augmentation(2, True, 3)}
    return Loader(images, torch.arange(count), batch_size, part=part, **{**options, **changes})


@settings(deadline=None, max_examples=40)
@given(
    parts=st.integers(1, 6),
    share=st.integers(1, 4),
    index=st.integers(0, 9),
    augmentation=st.builds(Augmentation, st.integers(0, 3), st.booleans(), st.integers(0, 5)),
)
def test_the_parts_are_the_batch(parts, share, index, augmentation):
    changes = {"batch_size": parts * share, "augmentation": augmentation}
    images, labels = loader(**changes).batch(index)
    batches = [loader((k, parts), **changes).batch(index) for k in range(parts)]
    assert all(len(own) == len(classes) == share for own, classes in batches)
    assert torch.equal(torch.cat([own for own, _ in batches]), images)
    assert torch.equal(torch.cat([classes for _, classes in batches]), labels)


def test_a_loader_of_a_part_has_as_many_batches():
    assert len(loader((1, 3))) == len(loader()) == 2
    assert len(loader((0, 2), drop_last=False, count=26)) == 3


def test_the_last_batch_is_divided_too():
    options = {"drop_last": False, "count": 28}
    images, labels = loader(**options).batch(2)
    batches = [loader((k, 2), **options).batch(2) for k in range(2)]
    assert [len(classes) for _, classes in batches] == [2, 2]
    assert torch.equal(torch.cat([own for own, _ in batches]), images)
    assert torch.equal(torch.cat([classes for _, classes in batches]), labels)


def test_a_part_uses_its_own_draws():
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(6, 1, 8, 8)
    crop = Augmentation(crop_padding=3)
    whole = augment(images, crop, torch.Generator().manual_seed(1))
    for place in range(3):
        part = augment(images[:2], crop, torch.Generator().manual_seed(1), part=(place, 3))
        assert torch.equal(part, whole[2 * place : 2 * place + 2])
    assert not torch.equal(whole[:2], whole[2:4])


def test_errors():
    with pytest.raises(InvalidInput, match=r"^A batch of 12 images can't be divided equally among 5 processes\. Make "
                                           r"batch_size a multiple of 5\.$"):
        loader((0, 5))
    with pytest.raises(InvalidInput, match=r"^A batch of 1 images can't be divided equally among 2 processes\. Drop"):
        loader((0, 2), drop_last=False)
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InvalidInput, match=r"^part must be \(k, n\) with k from 0 to n - 1, got \("):
            loader(part)
