"""How well every pixel is labelled: confusion matrices and intersection over union, as Pascal VOC counts them.

All images are counted into one matrix first and divided then, as VOC's own evaluation does. A mean over images of
every image's value is another, usually higher number.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from nasbook.errors import InvalidInput, require_positive

IGNORED = 255
"""The label of pixels that count for nothing: VOC's borders between objects, and what lies outside of an image."""


def confusion_matrix(
    predicted: Integer[Tensor, "*pixels"], truth: Integer[Tensor, "*true_pixels"], classes: int
) -> Int64[Tensor, "classes classes"]:
    """How many pixels of each class (row) were labelled as each class (column). Matrices of parts can be added.

    Pixels whose true label is :data:`IGNORED` are left out, whatever was predicted there.

    Args:
        predicted: a class for every pixel, from 0.
        truth: its true class, or :data:`IGNORED`.
        classes: number of classes.

    Raises:
        InvalidInput: the shapes differ, or a label is not one of the classes.
    """
    require_positive(classes=classes)
    if predicted.shape != truth.shape:
        raise InvalidInput(
            f"Expected one prediction for each pixel, got the shapes {tuple(predicted.shape)} and {tuple(truth.shape)}."
        )
    counted = truth != IGNORED
    rows, columns = truth[counted].long(), predicted[counted].long()
    for name, labels in (("truth", rows), ("predicted", columns)):
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            wrong = labels[(labels < 0) | (labels >= classes)][0]
            raise InvalidInput(f"{name}: expected labels from 0 to {classes - 1}, got {wrong}.")
    return torch.bincount(rows * classes + columns, minlength=classes**2).view(classes, classes)


def intersection_over_union(confusion: Int64[Tensor, "classes classes"]) -> Float64[Tensor, " classes"]:
    """For every class the pixels that are it and were labelled so, over those of which at least one holds.

    NaN for a class that occurs neither in the truth nor in the prediction: there is nothing to divide by.
    """
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 is NaN


def mean_iou(confusion: Int64[Tensor, "classes classes"]) -> float:
    """Mean intersection over union, 0..1, over the classes that occur in the truth or in the prediction.

    A class in neither is left out rather than counted as right or as wrong. Pascal VOC's 21 classes all occur in its
    validation images, so that it makes no difference there.

    Raises:
        InvalidInput: no pixel was counted.
    """
    if not int(confusion.sum()):
        raise InvalidInput("No pixel was counted: every true label is ignored, or there are no images.")
    return float(intersection_over_union(confusion).nanmean())


def pixel_accuracy(confusion: Int64[Tensor, "classes classes"]) -> float:
    """Share of the counted pixels that were labelled right, 0..1; mostly that of the background.

    Raises:
        InvalidInput: no pixel was counted.
    """
    if not int(confusion.sum()):
        raise InvalidInput("No pixel was counted: every true label is ignored, or there are no images.")
    return float(confusion.diagonal().sum()) / float(confusion.sum())
