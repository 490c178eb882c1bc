"""Batches of any size: pure functions of their place, no image twice in a pass, and a walk that goes on anywhere."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import Augmentation, Loader, Walk, augment
from nasbook.errors import InvalidInput
from nasbook.seeding import generator

AUGMENTATION = Augmentation(2, True, 3)


def loader(count=20, batch_size=6, **changes) -> Loader:
    """Images whose labels are their numbers."""
    images = torch.randint(256, (count, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"mean": (0.5, 0.25), "std": (0.5, 0.125), "seed": 3, "augmentation": AUGMENTATION}
    return Loader(images, torch.arange(count), batch_size, **{**options, **changes})


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


sizes = st.lists(st.integers(1, 20), min_size=1, max_size=12)


# --- a batch at a place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2, 3, 7])
def test_a_numbered_batch_has_the_bits_it_always_had(index):
    """Runs that go on from earlier checkpoints see the same batches: order by pass, augmentation by number."""
    batches = loader()
    number, step = divmod(index, 3)
    order = torch.randperm(20, generator=generator(3, "order", number))[6 * step : 6 * step + 6]
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.5, 0.25), (0.5, 0.125)))
    plain = (batches.images[order].float() / 255 - mean) / std
    black = (-mean / std).flatten()
    expected = augment(plain, AUGMENTATION, generator(3, "augment", index), black=black)
    batches.at(5, 3, 7)  # and what was looked at in between changes nothing
    assert same(batches.batch(index), (expected, order))


@settings(deadline=None, max_examples=50)
@given(number=st.integers(0, 4), cuts=st.sets(st.integers(1, 19)))
def test_any_division_of_a_pass_shows_its_order(number, cuts):
    batches = loader()
    places = [0, *sorted(cuts), 20]
    labels = [batches.at(number, a, b - a)[1] for a, b in itertools.pairwise(places)]
    assert [len(part) for part in labels] == [b - a for a, b in itertools.pairwise(places)]
    assert torch.cat(labels).tolist() == torch.randperm(20, generator=generator(3, "order", number)).tolist()


@settings(deadline=None, max_examples=30)
@given(places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 11)), min_size=1, max_size=6))
def test_a_batch_is_a_pure_function_of_its_place(places):
    one = loader()
    for place in places:  # back and forth between passes
        torch.manual_seed(sum(place))
        assert same(one.at(*place), loader(batch_size=4).at(*place))


def test_without_augmentation_it_is_the_numbered_batch():
    batches = loader(augmentation=Augmentation())
    for index in range(7):
        number, step = divmod(index, 3)
        assert same(batches.at(number, 6 * step, 6), batches.batch(index))


def test_every_place_is_augmented_anew():
    """The same picture at every place shows the draws: they differ by pass, by start, by size, and from a number's."""
    picture = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(40, 1, 8, 8)
    batches = Loader(picture, torch.zeros(40, dtype=torch.int64), 16, mean=(0.0,), std=(1.0,), seed=0,
                     augmentation=Augmentation(flip=True))  # from one seed, 17 images begin with the draws of 16
    places = [(0, 0, 16), (1, 0, 16), (0, 1, 16), (0, 0, 17), (0, 16, 16)]
    seen = [batches.batch(0)[0], *(batches.at(*place)[0][:16] for place in places)]
    assert all(not torch.equal(one, other) for number, one in enumerate(seen) for other in seen[:number])


@settings(deadline=None, max_examples=30)
@given(parts=st.integers(1, 4), share=st.integers(1, 5), number=st.integers(0, 3))
def test_the_parts_are_the_batch(parts, share, number):
    size = parts * share
    whole = loader(batch_size=parts).at(number, 20 - size, size)
    batches = [loader(batch_size=parts, part=(k, parts)).at(number, 20 - size, size) for k in range(parts)]
    assert all(len(labels) == share for _, labels in batches)
    assert same([torch.cat(own) for own in zip(*batches, strict=True)], whole)


def test_wrong_places():
    batches = loader()
    with pytest.raises(InvalidInput, match=r"^A pass has 20 images; it has no 6 from image 15 on\. Begin the next"):
        batches.at(0, 15, 6)
    for place in ((-1, 0, 6), (0, -1, 6)):
        with pytest.raises(InvalidInput, match=rf"must be 0 or more, got pass {place[0]} from image {place[1]}\.$"):
            batches.at(*place)
    with pytest.raises(InvalidInput, match=r"^size must be above 0, got 0\.$"):
        batches.at(0, 0, 0)
    with pytest.raises(InvalidInput, match=r"^A batch of 5 images can't be divided equally among 2 processes\. Make "
                                           r"its size a multiple of 2\.$"):
        loader(part=(1, 2)).at(0, 0, 5)


# --- a walk -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_a_walk_goes_on_where_it_was_and_to_the_next_pass_where_too_few_are_left(sizes):
    walk = Walk(loader())
    number, start = 0, 0
    for size in sizes:
        assert walk.position == (number, start)
        assert walk.fits(size) == (start + size <= 20)
        if start + size > 20:
            number, start = number + 1, 0
        assert same(walk.take(size), loader().at(number, start, size))
        start += size
    assert walk.position == (number, start)


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_no_image_twice_in_a_pass(sizes):
    walk, seen = Walk(loader()), {}
    for size in sizes:
        labels = walk.take(size)[1].tolist()
        seen.setdefault(walk.position[0], []).extend(labels)
    assert all(len(set(labels)) == len(labels) for labels in seen.values())


@settings(deadline=None, max_examples=40)
@given(sizes, st.data())
def test_another_walk_goes_on_from_a_position(sizes, data):
    """Two plain integers are all that a checkpoint needs."""
    stop = data.draw(st.integers(0, len(sizes)))
    one, other = Walk(loader()), Walk(loader())
    for size in sizes[:stop]:
        one.take(size)
    assert [type(number) for number in one.position] == [int, int]
    other.position = one.position
    assert all(same(one.take(size), other.take(size)) for size in sizes[stop:])
    assert one.position == other.position


def test_a_pass_begins_once():
    walk = Walk(loader())
    walk.begin_pass()
    assert walk.position == (0, 0)  # nothing of it was taken
    walk.take(3)
    walk.begin_pass()
    walk.begin_pass()
    assert walk.position == (1, 0)
    walk.take(20)
    assert walk.position == (1, 20)  # used up, but the next one is not begun before it is needed
    assert not walk.fits(1)
    walk.begin_pass()
    assert walk.position == (2, 0)
    assert walk.fits(20) and not walk.fits(21)


def test_walks_of_one_loader_do_not_disturb_each_other():
    shared = loader()
    one, other = Walk(shared), Walk(shared)
    other.position = (4, 0)
    for size in (3, 9, 7, 12):
        alone = Walk(loader())
        alone.position = one.position
        other.take(size)
        assert same(one.take(size), alone.take(size))


def test_wrong_sizes_leave_the_position():
    walk = Walk(loader(part=(0, 2)))
    walk.take(12)
    message = r"^A batch of 22 needs at least as many images, got 20\. Take fewer\.$"
    with pytest.raises(InvalidInput, match=message):
        walk.take(22)
    with pytest.raises(InvalidInput, match=r"^A batch of 9 images can't be divided"):
        walk.take(9)  # of the next pass
    for size in (0, -2):
        with pytest.raises(InvalidInput, match=rf"^size must be above 0, got {size}\.$"):
            walk.take(size)
    assert walk.position == (0, 12)


@pytest.mark.parametrize("position", [(-1, 0), (0, -1), (0, 21)])
def test_wrong_positions(position):
    walk = Walk(loader())
    walk.take(4)
    with pytest.raises(InvalidInput, match=r"^A position is a pass, from 0, and a number of images up to 20, got \("):
        walk.position = position
    assert walk.position == (0, 4)
