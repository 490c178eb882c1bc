"""Seeds: one number in, every random stream of a run out.

A run has many streams (data order, augmentation, initial weights, sampled genotypes). Each gets a seed
of its own, folded from the run's seed and the stream's name, so that adding a stream never shifts
another one, and so that a resumed run needs no generator state to go on.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

__all__ = [
    "fold_seed",
    "generator",
    "seed_everything",
]


def seed_everything(seed: int, threads: int | None = 1) -> None:
    """Seeds Python, NumPy and torch (all devices) and sets the number of CPU threads.

    One thread is the unit of the book's numbers: results depend on how many threads share a sum. Give
    ``threads=None`` to leave the number as it is.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**64)
    if threads is not None:
        torch.set_num_threads(threads)


def fold_seed(seed: int, *stream: int | str) -> int:
    """A seed in 0..2⁶³−1 for one stream of a run, a pure function of its arguments."""
    # int() makes NumPy's integers plain: their repr differs between versions of NumPy.
    plain = (part if isinstance(part, str) else int(part) for part in stream)
    text = repr((int(seed), *plain)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *stream: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on ``device``, seeded by :func:`fold_seed`."""
    return torch.Generator(device=device).manual_seed(fold_seed(seed, *stream))
