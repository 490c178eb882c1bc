"""The embedded shapes: the same bits everywhere, and nothing but outlines tells the classes apart."""

import math
import time

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from nasbook.data import SHAPE_CLASSES, load_shapes
from nasbook.data.shapes import _outlines
from nasbook.errors import InvalidInput


@pytest.fixture(scope="module")
def data():
    return load_shapes()


def test_the_same_bits_on_every_machine(data):
    assert data.checksum == "26d2a145292bafef63e71a4bb9baddf139d9ceb7a03839466322924335cadf86"
    assert repr(data) == "SegmentationData('shapes', 400 train + 200 test images, 5 classes, embedded)"
    assert data.train.images.shape == (400, 3, 32, 32) and data.test.labels.shape == (200, 32, 32)
    assert data.class_names == SHAPE_CLASSES == ("background", "circle", "square", "triangle", "cross")


def test_it_is_quick():
    start = time.process_time()
    load_shapes(seed=1)
    assert time.process_time() - start < 2  # 0.2 s on one thread


def test_arguments():
    larger = load_shapes(20, 10, 64, seed=1)
    assert larger.train.images.shape == (20, 3, 64, 64)
    assert larger.checksum != load_shapes(20, 10, 64, seed=2).checksum
    assert not torch.equal(larger.train.images[:10], larger.test.images)
    for options, message in (({"train": 0}, "^train must be above 0"), ({"test": -1}, "^test must be above 0"),
                             ({"size": 30}, "^size must be a multiple of 8, got 30.$")):
        with pytest.raises(InvalidInput, match=message):
            load_shapes(**options)


def test_more_images_leave_the_first_as_they_are(data):
    few = load_shapes(30, 10)
    assert torch.equal(few.train.images, data.train.images[:30])
    assert torch.equal(few.test.labels, data.test.labels[:10])


def test_normalisation(data):
    values = data.train.images.double() / 255
    assert data.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(values.std((0, 2, 3)).tolist())


# ---------------------------------------------------------------------------------------------- outlines


def areas(kind: int, radius: float = 40.0, turn: float = 0.0) -> np.ndarray:
    size = 128
    return _outlines(np.array([kind]), np.array([[64.0, 64.0]]), np.array([radius]), np.array([turn]), size)[0]


@pytest.mark.parametrize("turn", [0.0, 0.3, -1.0])
@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_all_kinds_have_a_circles_area(kind, turn):
    assert areas(kind, turn=turn).sum() == pytest.approx(math.pi * 40**2, rel=0.03)  # upright sides are whole pixels


def test_outlines_by_hand():
    rows, columns = (np.flatnonzero(areas(2).any(axis)) for axis in (1, 0))
    side = 40 * math.sqrt(math.pi)
    assert len(rows) == len(columns) == pytest.approx(side, abs=1)  # a square, upright
    cross = areas(4)
    assert cross[64, 64] and not cross[40, 40]
    arm = 3 * math.sqrt(math.pi / 20) * 40
    assert cross[64].sum() == pytest.approx(2 * arm, abs=1) and cross[40].sum() == pytest.approx(2 * arm / 3, abs=1)
    triangle = areas(3)
    widths = triangle.sum(1)[triangle.any(1)]
    assert bool((np.diff(widths) >= 0).all())  # from its tip downwards
    assert widths[-1] == pytest.approx(len(widths) * 2 / math.sqrt(3), abs=3)  # equilateral
    assert (areas(1) == areas(1, turn=0.5)).mean() > 0.999
    assert np.array_equal(areas(2, turn=1.0), areas(2).T)  # by 90 degrees


# ---------------------------------------------------------------------------------------------- what tells nothing


def test_all_classes_are_there_and_lie_over_each_other(data):
    labels = data.train.labels
    shares = torch.bincount(labels.flatten().long(), minlength=5) / labels.numel()
    assert 0.6 < shares[0] < 0.85
    assert shares[1:].min() > 0.7 * shares[1:].max()
    kinds = [set(image.unique().tolist()) - {0} for image in labels]
    assert all(kinds)  # a shape in every image
    assert 0.3 < np.mean([len(kind) == 2 for kind in kinds]) < 0.7  # two different ones in many


def pixels(samples, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As many pixels of every class, each with its 3×3 surroundings."""
    patches = torch.nn.functional.unfold(samples.images.float(), 3).transpose(1, 2).reshape(-1, 27).numpy()
    labels = samples.labels[:, 1:-1, 1:-1].reshape(-1).numpy()
    random = np.random.default_rng(seed)
    chosen = np.concatenate([random.choice(np.flatnonzero(labels == kind), each) for kind in range(1, 5)])
    return patches[chosen], labels[chosen]


@pytest.mark.parametrize("what", ["colour", "texture"])
def test_pixels_do_not_tell_which_shape_it_is(data, what):
    """Nearest neighbours guess the class of a shape's pixel from its colour, or from its surroundings, as by chance."""

    def features(patches: np.ndarray) -> np.ndarray:
        centre = patches[:, [4, 13, 22]]
        return centre if what == "colour" else patches - np.repeat(centre, 9, axis=1)

    patches, labels = pixels(data.train, 500, 0)
    held_out, truth = pixels(data.test, 300, 1)
    classifier = KNeighborsClassifier(15).fit(features(patches), labels)
    right = classifier.score(features(held_out), truth)
    assert right < 0.25 + 0.12, right  # texture has corners in it, of which crosses have more


def test_a_shape_stands_out_from_its_background(data):
    """In every channel, on average over the shape: its colour is at least 64 away round the circle of 256 values."""
    distances = []
    for image, labels in zip(data.train.images[:100].float(), data.train.labels[:100], strict=True):
        inside, outside = image[:, labels > 0], image[:, labels == 0]
        if outside.shape[1]:
            distances.append((inside.mean(1) - outside.mean(1)).abs().max())
    assert np.mean([float(distance) > 32 for distance in distances]) > 0.9
