"""Confusion matrices and intersection over union on cases that are counted by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook import data
from nasbook.analysis import IGNORED, confusion_matrix, intersection_over_union, mean_iou, pixel_accuracy
from nasbook.errors import InvalidInput

TRUTH = torch.tensor([[0, 0, 1, IGNORED], [0, 1, 1, 2]])
PREDICTED = torch.tensor([[0, 1, 1, 2], [0, 1, 0, 0]])


def test_by_hand():
    confusion = confusion_matrix(PREDICTED, TRUTH, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    shares = intersection_over_union(confusion).tolist()
    # Class 0: 2 hits, 3 true and 4 predicted pixels; 1: 2 hits, 3 and 3; 2: never found; 3 is nowhere.
    assert shares[:3] == [2 / 5, 2 / 4, 0.0] and math.isnan(shares[3])
    assert mean_iou(confusion) == (2 / 5 + 2 / 4 + 0) / 3
    assert pixel_accuracy(confusion) == 4 / 7


def test_a_class_that_is_only_predicted_counts_as_missed():
    confusion = confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 3)
    assert intersection_over_union(confusion)[:2].tolist() == [2 / 3, 0.0]
    assert mean_iou(confusion) == 1 / 3  # class 2 is in neither and left out


def test_ignored_pixels_may_be_called_anything():
    truth = torch.full((2, 2), IGNORED)
    assert not confusion_matrix(torch.zeros(2, 2, dtype=torch.int64), truth, 2).any()
    wild = torch.tensor([[7, -3], [0, IGNORED]])  # not classes at all
    assert not confusion_matrix(wild, truth, 2).any()
    assert IGNORED == data.segmentation.IGNORED == 255  # a leaf of its own has the same number


@settings(derandomize=True, deadline=None, max_examples=30)
@given(classes=st.integers(1, 5), seed=st.integers(0, 2**32), images=st.integers(1, 4))
def test_against_sets_of_pixels(classes, seed, images):
    draws = torch.Generator().manual_seed(seed)
    predicted = torch.randint(classes, (images, 3, 4), generator=draws)
    truth = torch.randint(classes + 1, (images, 3, 4), generator=draws)
    truth[truth == classes] = IGNORED
    confusion = sum(confusion_matrix(p, t.to(torch.uint8), classes) for p, t in zip(predicted, truth, strict=True))
    assert torch.equal(confusion, confusion_matrix(predicted, truth, classes))  # parts add up
    counted = truth != IGNORED
    for label, share in enumerate(intersection_over_union(confusion).tolist()):
        is_it, said = (truth == label) & counted, (predicted == label) & counted
        either = int((is_it | said).sum())
        assert math.isnan(share) if not either else share == int((is_it & said).sum()) / either
    if counted.any():
        assert mean_iou(confusion_matrix(truth, truth, classes)) == 1.0


@pytest.mark.parametrize(
    ("predicted", "truth", "classes", "message"),
    [
        ([0, 1], [0], 2, r"^Expected one prediction for each pixel, got the shapes \(2,\) and \(1,\)\.$"),
        ([0, 2], [0, 1], 2, "^predicted: expected labels from 0 to 1, got 2.$"),
        ([0, -1], [0, 1], 2, "^predicted: expected labels from 0 to 1, got -1.$"),
        ([0, 1], [0, 9], 2, "^truth: expected labels from 0 to 1, got 9.$"),
        ([0], [0], 0, "^classes must be above 0, got 0"),
    ],
)
def test_wrong_labels(predicted, truth, classes, message):
    with pytest.raises(InvalidInput, match=message):
        confusion_matrix(torch.tensor(predicted), torch.tensor(truth), classes)


def test_nothing_to_count():
    empty = torch.zeros(2, 2, dtype=torch.int64)
    for measure in (mean_iou, pixel_accuracy):
        with pytest.raises(InvalidInput, match="^No pixel was counted"):
            measure(empty)
