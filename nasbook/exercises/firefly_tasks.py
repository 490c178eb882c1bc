"""Chapter 7's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasbook.analysis import forgetting
from nasbook.exercises.registry import Exercise, register
from nasbook.networks import CELL_SECTIONS, kinds_of_cells

CHAPTER = "07-firefly-cells-and-continual-learning"


# --- what a growth adds to the memory ---------------------------------------------------------------------------------

Added = Callable[[int, int, int, int], Any]


def _added(below: int, above: int, copies: int, new: int) -> int:
    return (copies + new) * (9 * below + 2) + new * 9 * above


WRONG_ADDED: dict[str, Added] = {
    "A copy is read by the weights of its original: it brings no columns.": lambda b, a, c, n: (c + n) * (
        9 * b + 2 + 9 * a
    ),
    "Who reads a new neuron? The weights come with it, a kernel for each neuron above.": lambda b, a, c, n: (c + n) * (
        9 * b + 2
    ),
    "A neuron has a scale and a shift of its own in the batch norm.": lambda b, a, c, n: (c + n) * 9 * b + n * 9 * a,
    "The running mean and variance are the task's, and no parameters.": lambda b, a, c, n: (c + n) * (
        9 * b + 4
    )
    + n * 9 * a,
    "A copy takes memory too: its filter trains on while the original stays.": lambda b, a, c, n: n * (
        9 * b + 2 + 9 * a
    ),
}
"""Hints, and the answers that they are for."""


def _check_added(answer: Added) -> str | None:
    cases = [(4, 3, 2, 1), (8, 16, 0, 3), (5, 7, 4, 0), (6, 6, 1, 2)]
    got = [answer(*case) for case in cases]
    for hint, wrong in WRONG_ADDED.items():
        if got == [wrong(*case) for case in cases]:
            return hint
    for (below, above, copies, new), found in zip(cases, got, strict=True):
        expected = _added(below, above, copies, new)
        if found != expected:
            return (
                f"For {below} neurons below, {above} above, {copies} copies and {new} new ones got {found!r}; take one "
                f"copy alone, then one new neuron alone."
            )
    return None


register(Exercise("firefly.added", CHAPTER, _check_added, (*WRONG_ADDED.values(), lambda b, a, c, n: 0, 42)))


# --- where each cell stands -------------------------------------------------------------------------------------------

Section = Callable[[int, int], Any]


def _place(cell: int, cells: int) -> int:
    return CELL_SECTIONS.index(kinds_of_cells(cells, CELL_SECTIONS)[cell]) + 1


WRONG_SECTIONS: dict[str, Section] = {
    "Cells count from 0 here: the first reduction of 20 cells has the index 6.": lambda i, n: _place(max(i - 1, 0), n),
    "Not five equal parts: kinds 2 and 4 are single cells, the reductions.": lambda i, n: 1 + 5 * i // n,
    "The cells after the last reduction are of kind 5.": lambda i, n: min(_place(i, n), 4),
    "Three kinds keep the resolution: before, between and after the reductions.": lambda i, n: {3: 1, 5: 1}.get(
        _place(i, n), _place(i, n)
    ),
}
"""Hints, and the answers that they are for."""


def _check_section(answer: Section) -> str | None:
    cases = [(cell, cells) for cells in (5, 8, 11, 20) for cell in range(cells)]
    got = [answer(*case) for case in cases]
    for hint, wrong in WRONG_SECTIONS.items():
        if got == [wrong(*case) for case in cases]:
            return hint
    for (cell, cells), found in zip(cases, got, strict=True):
        if found != _place(cell, cells):
            return f"Cell {cell} of {cells}, counted from 0, is of kind {_place(cell, cells)}, got {found!r}."
    return None


register(
    Exercise("firefly.sections", CHAPTER, _check_section, (*WRONG_SECTIONS.values(), lambda i, n: 1, "cell 1"))
)


# --- what a wider operation can do more -------------------------------------------------------------------------------

Gain = Callable[[int, int, int, int], Any]


def _gain(inner: int, channels: int, width: int, new: int) -> int:
    return min(inner, channels, width + new) - min(inner, channels, width)


WRONG_GAINS: dict[str, Gain] = {
    "The product of two matrices has no higher rank than its smallest side.": lambda i, c, w, n: n,
    "What does the convolution read? From few channels nothing of higher rank can be made.": lambda i, c, w, n: (
        min(c, w + n) - min(c, w)
    ),
    "What does the transform write? The rank can't exceed the node's channels.": lambda i, c, w, n: (
        min(i, w + n) - min(i, w)
    ),
    "That is the rank afterwards; asked is by how much it rises.": lambda i, c, w, n: min(i, c, w + n),
    "An operation that is already wider than it needs to be loses nothing by growing.": lambda i, c, w, n: (
        min(i, c, w + n) - w
    ),
}
"""Hints, and the answers that they are for."""


def _check_gain(answer: Gain) -> str | None:
    cases = [(4, 16, 4, 3), (16, 16, 4, 3), (16, 8, 6, 5), (12, 16, 10, 9), (6, 5, 9, 4), (16, 16, 4, 20)]
    got = [answer(*case) for case in cases]
    for hint, wrong in WRONG_GAINS.items():
        if got == [wrong(*case) for case in cases]:
            return hint
    for (inner, channels, width, new), found in zip(cases, got, strict=True):
        expected = _gain(inner, channels, width, new)
        if found != expected:
            return (
                f"From {inner} channels by {width} to {channels}, with {new} new neurons: got {found!r}; look at the "
                f"three sides of the two matrices."
            )
    return None


register(Exercise("firefly.rank", CHAPTER, _check_gain, (*WRONG_GAINS.values(), lambda i, c, w, n: 0, 3)))


# --- what was forgotten -----------------------------------------------------------------------------------------------

Lost = Callable[[Sequence[Sequence[float]]], Any]

WRONG_LOST: dict[str, Lost] = {
    "Forgetting compares with the best accuracy before, which need not be the first one.": lambda m: [
        m[t][t] - m[-1][t] for t in range(len(m) - 1)
    ],
    "The last row can't be the best one before: then nothing that gained would have a negative number.": lambda m: [
        max(row[t] for row in m[t:]) - m[-1][t] for t in range(len(m) - 1)
    ],
    "Lost is positive: the best minus the last.": lambda m: [
        m[-1][t] - max(row[t] for row in m[t:-1]) for t in range(len(m) - 1)
    ],
    "The last task had no time to be forgotten: one number for each of the others.": lambda m: [
        max(row[t] for row in m[t:]) - m[-1][t] for t in range(len(m))
    ],
}
"""Hints, and the answers that they are for."""


def _check_lost(answer: Lost) -> str | None:
    matrices = [
        [[0.9], [0.8, 0.7], [0.6, 0.9, 0.8]],
        [[0.5], [0.7, 0.9], [0.6, 0.8, 0.9], [0.65, 0.85, 0.7, 0.6]],
        [[0.4], [0.8, 0.9]],
    ]
    got = [np.asarray(answer(matrix), dtype=float) for matrix in matrices]
    for hint, wrong in WRONG_LOST.items():
        if all(_alike(found, wrong(matrix)) for found, matrix in zip(got, matrices, strict=True)):
            return hint
    for matrix, found in zip(matrices, got, strict=True):
        if not _alike(found, forgetting(matrix)):
            return f"For the matrix {matrix} expected one number for each task but the last; got {found.tolist()}."
    return None


def _alike(found: Any, expected: Any) -> bool:
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    return found.shape == expected.shape and bool(np.allclose(found, expected))


register(Exercise("firefly.forgetting", CHAPTER, _check_lost, (*WRONG_LOST.values(), lambda m: m[-1], 0.3)))


# --- a mask that learns -----------------------------------------------------------------------------------------------

Switch = Callable[[Tensor, float], Any]

WRONG_SWITCHES: dict[str, Switch] = {
    "The value is right, and no gradient reaches the scores: a step has none.": lambda s, t: (s > t).to(s.dtype),
    "A mask is 0 or 1; a sigmoid is neither. The gradient may pass as if the step were not there.": lambda s, t: (
        torch.sigmoid(s - t)
    ),
    "The value must be that of the step, not the score's.": lambda s, t: s * (s > t),
    "The step is added to the score: take the score's value away again, and keep its gradient.": lambda s, t: (
        (s > t).to(s.dtype) + s
    ),
    "The gradient reaches the neurons that are off too: they may want to come back.": lambda s, t: (
        (s > t).to(s.dtype) + (s - s.detach()) * (s > t)
    ),
}
"""Hints, and the answers that they are for."""


def _check_switch(answer: Switch) -> str | None:
    scores, threshold = torch.tensor([0.2, -0.1, 0.7, 0.5, 0.9], dtype=torch.float64), 0.5
    weights = torch.tensor([1.0, 2.0, -3.0, 4.0, 5.0], dtype=torch.float64)
    got = _value_and_gradient(answer, scores, threshold, weights)
    for hint, wrong in WRONG_SWITCHES.items():
        if _same(got, _value_and_gradient(wrong, scores, threshold, weights)):
            return hint
    value, gradient = got
    expected = (scores > threshold).to(scores.dtype)
    if not _same_tensor(value, expected):
        return f"For the scores {scores.tolist()} and the threshold 0.5 expected {expected.tolist()}, got {value}."
    if not _same_tensor(gradient, weights):
        return "The gradient of the scores must be that of the mask, unchanged."
    return None


def _value_and_gradient(
    answer: Switch, scores: Tensor, threshold: float, weights: Tensor
) -> tuple[Tensor, Tensor | None]:
    leaf = scores.clone().requires_grad_()
    value = torch.as_tensor(answer(leaf, threshold))
    if not value.requires_grad:
        return value, None
    (gradient,) = torch.autograd.grad((value * weights).sum(), leaf, allow_unused=True)
    return value.detach(), gradient


def _same(got: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> bool:
    if (got[1] is None) != (other[1] is None):
        return False
    return _same_tensor(got[0], other[0]) and (got[1] is None or _same_tensor(got[1], other[1]))


def _same_tensor(got: Tensor | None, expected: Tensor | None) -> bool:
    if got is None or expected is None:
        return got is expected
    return got.shape == expected.shape and torch.allclose(got.double(), expected.double())


register(Exercise("firefly.mask", CHAPTER, _check_switch, (*WRONG_SWITCHES.values(), lambda s, t: s, 1.0)))


# --- the Fisher information of logistic regression --------------------------------------------------------------------

Fisher = Callable[[Tensor, Tensor], Any]


def _probability(w: Tensor, x: Tensor) -> Tensor:
    return torch.sigmoid(x @ w)


def _fisher(w: Tensor, x: Tensor) -> Tensor:
    p = _probability(w, x)[:, None]
    return (p * (1 - p) * x**2).mean(0)


def _gradients(w: Tensor, x: Tensor) -> Tensor:
    """Of log p(1|x), image by image."""
    return (1 - _probability(w, x))[:, None] * x


WRONG_FISHERS: dict[str, Fisher] = {
    "That takes the label 1 for every image. The expectation is over both, each as likely as the model says.": lambda w, x: (  # noqa: E501
        _gradients(w, x) ** 2
    ).mean(0),
    "Square image by image, then take the mean. The square of a mean forgets images that pull in opposite directions.": lambda w, x: (  # noqa: E501
        _gradients(w, x).mean(0) ** 2
    ),
    "A mean over the images, not a sum.": lambda w, x: _fisher(w, x) * len(x),
    "The derivative of x·w with respect to w_i is x_i, and it stands there squared.": lambda w, x: (
        (_probability(w, x) * (1 - _probability(w, x)))[:, None] * x.abs()
    ).mean(0),
    "The expected square of (y − p) is p(1 − p), not p².": lambda w, x: (
        _probability(w, x)[:, None] ** 2 * x**2
    ).mean(0),
}
"""Hints, and the answers that they are for."""


def _check_fisher(answer: Fisher) -> str | None:
    drawn = torch.Generator().manual_seed(0)
    cases = [
        (torch.randn(3, generator=drawn).double(), torch.randn(n, 3, generator=drawn).double()) for n in (1, 5, 40)
    ]
    got = [torch.as_tensor(answer(w.clone(), x.clone())).detach() for w, x in cases]
    for hint, wrong in WRONG_FISHERS.items():
        if all(_same_tensor(found, wrong(*case)) for found, case in zip(got, cases, strict=True)):
            return hint
    for found, case in zip(got, cases, strict=True):
        if not _same_tensor(found, _fisher(*case)):
            return (
                f"For {len(case[1])} images and 3 weights expected {[round(v, 4) for v in _fisher(*case).tolist()]}, "
                f"got {found.tolist()}."
            )
    return None


register(Exercise("firefly.fisher", CHAPTER, _check_fisher, (*WRONG_FISHERS.values(), lambda w, x: w, 0.25)))
