"""The scales of Chapter 8's comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nasbook.experiments.scale import SCALES, Scale, own_scale


@dataclass(frozen=True)
class ComparisonScale(Scale):
    """The numbers of the comparison at one size: all searches have the scale's space, channels, cells and batch."""

    sample_epochs: int
    """Epochs of every cell that a method trains which trains cells one by one."""
    most_samples: int
    """Most cells that it trains; fewer where the budget ends."""


_NUMBERS: dict[str, dict[str, Any]] = {
    "quick": {
        "train_images": 640,
        "operations": ("none", "skip_connect", "sep_conv_3x3", "avg_pool_3x3"),
        "nodes": 2,
        "search_epochs": 8,
        "search_batch": 64,
        "epochs": 8,
        "batch": 64,
        "cells": 5,
        "sample_epochs": 4,
        "most_samples": 30,
    },
    "laptop": {
        "train_images": 1000,
        "test_images": 1000,
        "operations": ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"),
        "nodes": 3,
        "search_epochs": 6,
        "search_channels": 4,
        "search_cells": 3,
        "epochs": 8,
        "channels": 8,
        "cells": 5,
        "sample_epochs": 3,
        "most_samples": 30,
    },
    "gpu": {"order": "first-order", "sample_epochs": 10, "most_samples": 100},
    "paper": {"order": "first-order", "sample_epochs": 25, "most_samples": 1000},
}

COMPARISON_SCALES: dict[str, ComparisonScale] = {
    name: ComparisonScale(**{**vars(SCALES[name]), **numbers}) for name, numbers in _NUMBERS.items()
}
"""The scales of the comparison by name."""


def comparison_scale(scale: Scale) -> ComparisonScale:
    """The comparison's numbers at a scale.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    return own_scale(scale, ComparisonScale, COMPARISON_SCALES, "The comparison")
