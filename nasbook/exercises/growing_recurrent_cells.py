"""Chapter 6's exercises."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nasbook.exercises.registry import Exercise, register
from nasbook.supernets import inverse_softmax

CHAPTER = "06-growing-recurrent-cells"

Same = Callable[[Any, Any], bool]


def _equals(got: Sequence[Any], rule: Callable[..., Any], cases: Sequence[tuple[Any, ...]], same: Same) -> bool:
    """Whether a rule gives in all cases what an answer gave."""
    return all(same(one, rule(*case)) for one, case in zip(got, cases, strict=True))


def _verdict(
    got: Sequence[Any],
    right: Callable[..., Any],
    wrong: Mapping[str, Callable[..., Any]],
    cases: Sequence[tuple[Any, ...]],
    same: Same,
    otherwise: Callable[[int], str],
) -> str | None:
    """None where an answer gave what is right, else the hint of the wrong rule that it follows.

    Where it follows none, ``otherwise`` gets the first case that it misses.
    """
    if _equals(got, right, cases, same):
        return None
    for hint, rule in wrong.items():
        if _equals(got, rule, cases, same):
            return hint
    return otherwise(next(i for i, case in enumerate(cases) if not same(got[i], right(*case))))


def _near(a: Any, b: Any) -> bool:
    """Whether two numbers or two tensors agree, up to single precision."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor | np.generic | np.ndarray) and torch.as_tensor(value).numel() == 1


# --- where the Two-to-One backbone becomes the smaller one ------------------------------------------------------------

Nodes = Callable[[int, int], Any]
Parameters = Callable[[int, int, int], int]


def _darts_parameters(m: int, n_x: int, n_h: int) -> int:
    return 3 * (n_x + n_h) * n_h + 3 * n_h**2 * m * (m - 1) // 2 + 5 * m  # Eq. 22


def _new_parameters(m: int, n_x: int, n_h: int) -> int:
    return m * (3 * (n_x * n_h + n_h**2 + n_h) + 2 * n_x * n_h) + 5 * m  # Eq. 24


def _first(
    darts: Parameters = _darts_parameters,
    new: Parameters = _new_parameters,
    smaller: Callable[[int, int], bool] = operator.lt,
) -> Nodes:
    """The first number of nodes at which the new backbone is smaller; 0 where there is none within reach."""
    return lambda n_x, n_h: next((m for m in range(1, 500) if smaller(new(m, n_x, n_h), darts(m, n_x, n_h))), 0)


_first_smaller = _first()

WRONG_NODES: dict[str, Nodes] = {
    "Nearly: where both are equal, neither is smaller.": _first(smaller=operator.le),
    "That is the last number of nodes at which DARTS' backbone is not larger. The next one is asked.": (
        lambda n_x, n_h: _first_smaller(n_x, n_h) - 1
    ),
    "n_x and n_h are exchanged.": lambda n_x, n_h: _first_smaller(n_h, n_x),
    "n_x and n_h need not be equal; you only use n_h.": lambda n_x, n_h: _first_smaller(n_h, n_h),
    "The three operations with an activation have a bias each in Eq. 24, n_h numbers.": _first(
        new=lambda m, n_x, n_h: _new_parameters(m, n_x, n_h) - 3 * m * n_h
    ),
    "Eq. 22 counts no biases for DARTS' operations.": _first(
        lambda m, n_x, n_h: _darts_parameters(m, n_x, n_h) + 3 * n_h * (1 + m * (m - 1) // 2)
    ),
    "Sum and product have a matrix each, n_x n_h numbers (Table 1).": _first(
        new=lambda m, n_x, n_h: _new_parameters(m, n_x, n_h) - 2 * m * n_x * n_h
    ),
    "Sum and product have no matrix for the state; their only one is n_x by n_h.": _first(
        new=lambda m, n_x, n_h: _new_parameters(m, n_x, n_h) + 2 * m * n_h**2
    ),
    "In DARTS' backbone only the first node reads x; node k reads the k − 1 nodes before it.": _first(
        lambda m, n_x, n_h: 3 * (n_x + n_h) * n_h * m + 3 * n_h**2 * m * (m - 1) // 2 + 5 * m
    ),
}
"""Hints, and the answers that they are for."""

_WIDTHS = ((7, 7), (5, 5), (1, 7), (128, 128), (1, 40), (40, 3), (3, 20), (9, 2), (5, 23), (2, 3))
"""With (1, 7) both are equal at three nodes."""


def _check_breakeven(answer: Nodes) -> str | None:
    got = [answer(*widths) for widths in _WIDTHS]
    if not all(_is_number(nodes) and float(nodes).is_integer() for nodes in got):
        return "Expected a whole number of nodes: the first behind the root of the quadratic equation."

    def otherwise(place: int) -> str:
        m, widths = max(int(got[place]), 1), _WIDTHS[place]
        return (
            f"Not for n_x, n_h = {widths}: with {m} nodes DARTS' backbone has {_darts_parameters(m, *widths)} "
            f"parameters (Eq. 22), and the Two-to-One backbone {_new_parameters(m, *widths)} (Eq. 24)."
        )

    return _verdict(got, _first_smaller, WRONG_NODES, _WIDTHS, operator.eq, otherwise)


_OTHER_NODES = (lambda n_x, n_h: 6, lambda n_x, n_h: 5.62, lambda n_x, n_h: None, 6)
register(Exercise("growing.breakeven", CHAPTER, _check_breakeven, (*WRONG_NODES.values(), *_OTHER_NODES)))


# --- one time step of the Two-to-One cell -----------------------------------------------------------------------------

Node = tuple[Tensor, Tensor, Tensor, Tensor]
"""α (5), W_xh (5, hidden, inputs), W_hh (3, hidden, hidden) and b (3, hidden), in the order of Table 1."""
Step = Callable[[Tensor, Tensor, list[Node]], Any]
Operations = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]


def _table_1(u: Tensor, v: Tensor, b: Tensor, s: Tensor) -> list[Tensor]:
    """The five operations from u = W_xh x (5, batch, hidden), v = W_hh s (3, batch, hidden), the biases and s."""
    a = u[:3] + v + b[:, None]
    return [a[0].sigmoid(), a[1].tanh(), a[2].relu(), u[3] + s, u[4] * s]


def _chain(
    operations: Operations = _table_1,
    weigh: Callable[[Tensor], Tensor] = lambda alpha: alpha.softmax(0),
    read: Callable[[list[Tensor]], Tensor] = lambda states: states[-1],
    give: Callable[[list[Tensor]], Tensor] = lambda states: states[-1],
    product: Callable[[Tensor, Tensor], Tensor] = lambda s, weight: s @ weight.mT,
) -> Step:
    """A step of a cell: how operations are made and weighed, which state a node reads, and which one the cell gives."""

    def step(x: Tensor, h: Tensor, nodes: list[Node]) -> Tensor:
        states = [h]
        for alpha, input_weight, state_weight, bias in nodes:
            s = read(states)
            outputs = torch.stack(operations(x @ input_weight.mT, product(s, state_weight), bias, s))
            states.append((weigh(alpha)[:, None, None] * outputs).sum(0))
        return give(states)

    return step


WRONG_STEPS: dict[str, Step] = {
    "The weights are the softmax of α (Eq. 2).": _chain(weigh=lambda alpha: alpha),
    "Every node reads what the node before gave; only the first reads the last step's h.": _chain(
        read=lambda states: states[0]
    ),
    "The new state is the last node's output. The mean of the nodes belongs to the cell of DARTS' own code.": _chain(
        give=lambda states: torch.stack(states[1:]).mean(0)
    ),
    "Table 1's order is sigmoid, tanh, ReLU.": _chain(
        lambda u, v, b, s: [(u[0] + v[0] + b[0]).tanh(), (u[1] + v[1] + b[1]).sigmoid(), *_table_1(u, v, b, s)[2:]]
    ),
    "The three with an activation have a bias.": _chain(lambda u, v, b, s: _table_1(u, v, 0 * b, s)),
    "The sum is W_xh x + h: h comes in as it is.": _chain(
        lambda u, v, b, s: [*_table_1(u, v, b, s)[:3], u[3], u[4] * s]
    ),
    "The product is W_xh x times h, element by element: h is missing.": _chain(
        lambda u, v, b, s: [*_table_1(u, v, b, s)[:3], u[3] + s, u[4]]
    ),
    "A row of W_hh belongs to an output: W_hh h is h @ W_hh.mT.": _chain(product=lambda s, weight: s @ weight),
    "The activations stand within the weighted sum, one in each operation, not around it.": _chain(
        lambda u, v, b, s: [*(u[:3] + v + b[:, None]), u[3] + s, u[4] * s], give=lambda states: states[-1].tanh()
    ),
}
"""Hints, and the answers that they are for."""


def _step_cases() -> list[tuple[Tensor, Tensor, list[Node]]]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def nodes(m: int, n_x: int, n_h: int) -> list[Node]:
        return [(draw(5), draw(5, n_h, n_x), draw(3, n_h, n_h), draw(3, n_h)) for _ in range(m)]

    return [(draw(3, n_x), draw(3, n_h), nodes(m, n_x, n_h)) for m, n_x, n_h in ((3, 2, 4), (1, 5, 3))]


def _check_step(answer: Step) -> str | None:
    cases = _step_cases()
    got = [answer(x.clone(), h.clone(), [tuple(t.clone() for t in node) for node in nodes]) for x, h, nodes in cases]  # type: ignore[misc]
    for (_, h, _), state in zip(cases, got, strict=True):
        if not isinstance(state, Tensor) or state.shape != h.shape:
            return f"Expected a tensor as large as h: {tuple(h.shape)} here."
    one_is_right = _near(got[1], _chain()(*cases[1]))
    otherwise = "Not for one node either. Write down the five outputs of Table 1, and weigh them by the softmax of α."
    if one_is_right:
        otherwise = "Right for one node. How does the second one come to its input?"
    return _verdict(got, _chain(), WRONG_STEPS, cases, _near, lambda place: otherwise)


_OTHER_STEPS = (lambda x, h, nodes: _chain()(x, h, nodes[:1]), lambda x, h, nodes: h, lambda x, h, nodes: x, 1.0)
register(Exercise("growing.step", CHAPTER, _check_step, (*WRONG_STEPS.values(), *_OTHER_STEPS)))


# --- the α of a new node ----------------------------------------------------------------------------------------------

Alpha = Callable[[Tensor, int, float], Any]

STEPS = math.log(0.98 / 0.005) / (2 * 3e-4)
"""Until another candidate can overtake the kept one."""


def _weights(noise: Tensor, kept: int, rest: Tensor | None = None) -> Tensor:
    rest = 1 - noise.sum() if rest is None else rest
    return torch.cat([noise[:kept], rest[None], noise[kept:]])


def _new_alpha(noise: Tensor, kept: int, total: float) -> Tensor | None:
    return inverse_softmax(_weights(noise, kept), total) if noise.sum() < 1 else None


WRONG_ALPHAS: dict[str, Alpha] = {
    "These are the weights. α is what gives them under a softmax (Eq. 16).": lambda noise, kept, total: (
        _weights(noise, kept) if noise.sum() < 1 else None
    ),
    "The softmax is right. But Σ exp(α) is 1, whatever `total` is: add its logarithm.": lambda noise, kept, total: (
        _new_alpha(noise, kept, 1.0)
    ),
    "The softmax is right. Not `total` itself, its logarithm is added (Eq. 16).": lambda noise, kept, total: (
        _new_alpha(noise, kept, math.exp(total))
    ),
    "ln(w/(1 − w)) inverts the sigmoid. Eq. 16 has ln w.": lambda noise, kept, total: (
        _weights(noise, kept).logit() + math.log(total) if noise.sum() < 1 else None
    ),
    "The kept candidate has place `kept`, among the others in their order; yours is always last.": (
        lambda noise, kept, total: _new_alpha(noise, len(noise), total)
    ),
    "The kept candidate has place `kept`, among the others in their order; yours is always first.": (
        lambda noise, kept, total: _new_alpha(noise, 0, total)
    ),
    "The kept candidate's weight is what the noise leaves of 1. With 1 the softmax divides them all by 1 + Σε.": (
        lambda noise, kept, total: _weights(noise, kept, torch.ones_like(noise.sum())).log() + math.log(total)
    ),
    "The kept candidate's weight is 1 − Σε, over all the others; you subtract only one ε.": (
        lambda noise, kept, total: (
            _weights(noise, kept, 1 - noise.max()).log() + math.log(total) if noise.sum() < 1 else None
        )
    ),
    "A softmax has base e: take natural logarithms.": lambda noise, kept, total: (
        _weights(noise, kept).log10() + math.log10(total) if noise.sum() < 1 else None
    ),
}
"""Hints, and the answers that they are for."""

WRONG_STEP_COUNTS: dict[str, float] = {
    "Both move: the kept one down, the other up.": 2 * STEPS,
    "Adam moves α, not the weights: they are equal when the α are.": (0.98 - 0.005) / (2 * 3e-4),
    "Adam moves α, not the weights: they are equal when the α are. And both move.": (0.98 - 0.005) / 3e-4,
    "A softmax has base e: take the natural logarithm.": math.log10(0.98 / 0.005) / (2 * 3e-4),
    "The ε are drawn from U(0, δ): in the middle they are δ/2, and the rest is 1 − 4δ/2.": math.log(96) / (2 * 3e-4),
}
"""Hints, and the wrong numbers of steps that they are for."""


def _check_alpha(answer: Any) -> str | None:
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not callable(answer[0]):
        return "Give a pair: the function new_alpha, and the number of steps."
    new_alpha, steps = answer
    hint = _check_new_alpha(new_alpha)
    if hint is not None:
        return hint
    if not _is_number(steps):
        return "The function is right. The number of steps is missing."
    if math.isclose(steps, STEPS, rel_tol=2e-3):
        return None
    hints = (hint for hint, wrong in WRONG_STEP_COUNTS.items() if math.isclose(steps, wrong, rel_tol=2e-3))
    otherwise = "How far apart are the two α, and how fast do they approach?"
    return f"The function is right, the number of steps is not. {next(hints, otherwise)}"


def _check_new_alpha(new_alpha: Alpha) -> str | None:
    generator = torch.Generator().manual_seed(2)
    cases = [
        (delta * torch.rand(others, generator=generator, dtype=torch.float64), kept, total)
        for delta, others, kept, total in ((0.01, 4, 3, 1.0), (0.2, 4, 0, 5.0), (0.3, 2, 1, 0.4), (0.04, 6, 6, 7.0))
    ]
    too_much = torch.tensor([0.5, 0.25, 0.25, 0.25], dtype=torch.float64)
    got = [new_alpha(noise.clone(), kept, total) for noise, kept, total in cases]
    for (noise, _, _), alpha in zip(cases, got, strict=True):
        if alpha is None:
            return f"With the noise {[round(e, 3) for e in noise.tolist()]} there is a rest, and so there are such α."
        if torch.as_tensor(alpha).shape != (len(noise) + 1,):
            return "Expected one α for each candidate, the kept one among them: one more than there is noise."

    def otherwise(place: int) -> str:
        noise, kept, _ = cases[place]
        found, wanted = torch.as_tensor(got[place]).softmax(0), _weights(noise, kept)
        rounded = ([round(weight, 4) for weight in weights.tolist()] for weights in (found, wanted))
        return "The softmax of your α is {} in a case where the weights shall be {}.".format(*rounded)

    hint = _verdict(got, _new_alpha, WRONG_ALPHAS, cases, _near, otherwise)
    if hint is None and any(new_alpha(noise.clone(), 1, 1.0) is not None for noise in (too_much, too_much / 1.25)):
        return "Where the noise sums to 1 or more, nothing is left for the kept candidate: return None."
    return hint


_WRONG_PAIRS = (
    *((wrong, STEPS) for wrong in WRONG_ALPHAS.values()),
    *((_new_alpha, wrong) for wrong in WRONG_STEP_COUNTS.values()),
    (lambda noise, kept, total: _weights(noise, kept).log() + math.log(total), STEPS),  # NaN where there is no rest
    (lambda noise, kept, total: noise.log(), STEPS),
    (lambda noise, kept, total: None, STEPS),
    (lambda noise, kept, total: 0 * _weights(noise, kept), STEPS),
    (_new_alpha, ...),
    (_new_alpha, 1),
    _new_alpha,
)
register(Exercise("growing.alpha", CHAPTER, _check_alpha, _WRONG_PAIRS, takes_function=False))


# --- two levels of early stopping -------------------------------------------------------------------------------------

Curves = list[list[float]]
Stopping = Callable[[Curves, int], Any]


def _epochs(curve: list[float], patience: int, best: float = math.inf, falls: Same = operator.lt) -> int:
    """After how many epochs a stage ends."""
    waited = 0
    for epoch, loss in enumerate(curve, 1):
        waited = 0 if falls(loss, best) else waited + 1
        best = min(best, loss)
        if waited >= patience:
            return epoch
    return len(curve)


def _rises(curve: list[float], patience: int) -> int:
    """After how many epochs the loss was ``patience`` times in a row not below the epoch before."""
    waited = 0
    for epoch in range(1, len(curve)):
        waited = 0 if curve[epoch] < curve[epoch - 1] else waited + 1
        if waited >= patience:
            return epoch + 1
    return len(curve)


def _levels(
    end: Callable[[list[float], int, float], int] = lambda curve, patience, best: _epochs(curve, patience),
    judged: Callable[[list[float]], float] = min,
    fails: Same = operator.ge,
    said: Callable[[list[int], int], tuple[list[int], int]] = lambda ends, answer: (ends, answer),
) -> Stopping:
    """When a stage ends, by what loss it is judged, when it has failed, and what is said of it all."""

    def stopping(losses: Curves, patience: int) -> tuple[list[int], int]:
        ends: list[int] = []
        best, answer = math.inf, 0
        for stage, curve in enumerate(losses, 1):
            ends.append(end(curve, patience, best))
            loss = judged(curve[: ends[-1]])
            if fails(loss, best):
                break
            if loss < best:
                best, answer = loss, stage
        return said(ends, answer)

    return stopping


WRONG_STOPS: dict[str, Stopping] = {
    "Compare with the best epoch of the stage, not with the epoch before.": _levels(lambda c, p, best: _rises(c, p)),
    "The stage ends in the epoch in which the loss has not fallen for `patience` epochs; yours goes on for one more.": (
        _levels(lambda curve, patience, best: _epochs(curve, patience + 1))
    ),
    "A loss that is only equal to the best one has not fallen.": _levels(
        lambda curve, patience, best: _epochs(curve, patience, falls=operator.le)
    ),
    "An equal loss is no gain: with it, growing is over.": _levels(fails=operator.gt),
    "Those are the stages' best epochs. A stage trains on for `patience` epochs before it knows.": _levels(
        lambda curve, patience, best: curve.index(min(curve[: _epochs(curve, patience)])) + 1
    ),
    "A stage is worth its best epoch, to whose weights it goes back, not its last one.": _levels(
        judged=lambda curve: curve[-1]
    ),
    "A stage begins with a best loss of its own. Otherwise a new node has only `patience` epochs to be better.": (
        _levels(_epochs)
    ),
    "The second level is missing: the first stage that is not better ends it all, and what follows never runs.": (
        _levels(fails=lambda loss, best: False)
    ),
    "The failed stage runs, too: its epochs belong to the list.": _levels(
        said=lambda ends, answer: (ends[:answer], answer)
    ),
    "The stage that has failed is not the answer; the one before it is.": _levels(
        said=lambda ends, answer: (ends, len(ends))
    ),
    "Stages are numbered from 1.": _levels(said=lambda ends, answer: (ends, answer - 1)),
}
"""Hints, and the answers that they are for."""

_CURVES: tuple[tuple[Curves, int], ...] = (
    ([[10, 8, 9, 7, 7.5, 7.2, 6], [7.1, 6.5, 6.5, 6.6, 5], [6.4, 6.6, 6.7, 3], [6.9, 6.6, 6.5, 6.6, 6.7, 1], [1]], 2),
    ([[3.0, 2.0, 2.5], [2.0, 2.2, 2.1], [1.0]], 1),  # equal
    ([[3.0, 2.9, 2.8], [2.7, 2.6], [2.5, 2.9, 2.4]], 3),  # better to the end; no stage ends early
    ([[0.5, 0.6, 0.4, 0.45, 0.44, 0.43, 0.42]], 3),
)


def _check_stop(answer: Stopping) -> str | None:
    got = []
    for losses, patience in _CURVES:
        pair = answer([list(curve) for curve in losses], patience)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            return "Expected two things: the epochs of every stage that ran, and the number of the answer's stage."
        got.append(([int(epochs) for epochs in pair[0]], int(pair[1])))

    def otherwise(place: int) -> str:
        losses, patience = _CURVES[place]
        ends, stage = got[place]
        return f"Not for patience {patience} and the losses {losses}: you say {ends} epochs and stage {stage}."

    return _verdict(got, _levels(), WRONG_STOPS, _CURVES, operator.eq, otherwise)


_OTHER_STOPS: tuple[Any, ...] = (lambda losses, patience: ([], 0), lambda losses, patience: 3, 2)
register(Exercise("growing.stop", CHAPTER, _check_stop, (*WRONG_STOPS.values(), *_OTHER_STOPS)))


# --- growing, or all at once ------------------------------------------------------------------------------------------

MostEpochs = Callable[[list[int], list[int]], Any]


def _cost(parameters: Sequence[int], epochs: Sequence[int]) -> int:
    return sum(n * e for n, e in zip(parameters, epochs, strict=True))  # Eq. 26, 27


WRONG_EPOCHS: dict[str, MostEpochs] = {
    "The last stage has failed, so the answer is the cell before it: that one is trained at once.": (
        lambda n, e: _cost(n, e) / n[-1]
    ),
    "The stage that has failed was trained, too: it belongs to the cost of growing.": lambda n, e: (
        _cost(n[:-1], e[:-1]) / n[-2]
    ),
    "An epoch of a small backbone costs less: count parameters times epochs.": lambda n, e: sum(e),
    "Every stage takes e_i epochs (Eq. 26).": lambda n, e: sum(n) / n[-2],
    "That is the cost of growing. How many epochs of the answer's cell does it buy?": _cost,
    "Eq. 28 as it stands is the cost of one epoch. The number of epochs is what is asked.": lambda n, e: n[-2],
    "Turned round: the cost of growing is divided by that of one epoch of the answer's cell.": lambda n, e: (
        n[-2] / _cost(n, e)
    ),
    "That is how many times as long as the answer's own stage. Asked is the number of epochs.": lambda n, e: (
        _cost(n, e) / (n[-2] * e[-2])
    ),
}
"""Hints, and the answers that they are for."""

_GROWTHS: tuple[tuple[list[int], list[int]], ...] = (
    ([836, 1254, 1672], [12, 7, 5]),
    ([451, 750, 1196, 1789, 2529], [10, 8, 6, 9, 4]),
    ([100, 200], [1, 3]),
)


def _check_together(answer: MostEpochs) -> str | None:
    got = [answer(list(n), list(e)) for n, e in _GROWTHS]
    if not all(_is_number(epochs) for epochs in got):
        return "Expected one number, of epochs."
    question = "What do all stages cost together, in parameters times epochs, and one epoch of the answer's cell?"
    return _verdict(
        got, lambda n, e: _cost(n, e) / n[-2], WRONG_EPOCHS, _GROWTHS, _near, lambda place: question
    )


_OTHER_EPOCHS = (lambda n, e: 10, lambda n, e: n, lambda n, e: None, 24)
register(Exercise("growing.together", CHAPTER, _check_together, (*WRONG_EPOCHS.values(), *_OTHER_EPOCHS)))


# --- a new node that keeps the mean -----------------------------------------------------------------------------------

Shares = Callable[[list[float], list[float]], Any]


def _shares(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """What the new node must pass on of every node, possible or not."""
    return [(old - new) / after[-1] for old, new in zip(before, after[:-1], strict=True)]


def _right_shares(before: Sequence[float], after: Sequence[float]) -> list[float] | None:
    shares = _shares(before, after)
    return shares if all(-1e-9 <= share <= 1 + 1e-9 for share in shares) else None


def _same_shares(a: Any, b: Any) -> bool:
    return a is b if a is None or b is None else _near(a, b)


WRONG_SHARES: dict[str, Shares] = {
    "That is Eq. 17 to 19. It repeats the last node, which is right where the last node is the output.": (
        lambda before, after: [0.0] * (len(before) - 1) + [1.0]
    ),
    "The new node must be the mean of the old ones, and they are m, not m + 1.": lambda before, after: (
        [1 / len(after)] * len(before)
    ),
    "Right for a mean and for the last node. It fails where the old nodes' weights don't all shrink alike.": (
        lambda before, after: list(before)
    ),
    "With what weight is the new node read? Divide by it.": lambda before, after: (
        [old - new for old, new in zip(before, after[:-1], strict=True)]
    ),
    "The sign is turned: the new node makes up for what the old ones' weights have lost.": lambda before, after: (
        [-share for share in _shares(before, after)]
    ),
    "No softmax has a weight below 0 or above 1: return None there.": _shares,
    "A new node that is 0 is possible: all identities have weight 0 and the zero operations 1.": (
        lambda before, after: _right_shares(before, after) if any(_shares(before, after)) else None
    ),
    "Each edge has a softmax of its own, so the identities' weights need not sum to 1.": lambda before, after: (
        _right_shares(before, after) if math.isclose(sum(_shares(before, after)), 1) else None
    ),
    "A weight of exactly 0 or 1 is possible, with the zero operation or the identity alone.": lambda before, after: (
        _right_shares(before, after) if all(1e-9 < s < 1 - 1e-9 for s in _shares(before, after)) else None
    ),
}
"""Hints, and the answers that they are for."""

_OUTPUTS: tuple[tuple[list[float], list[float]], ...] = (
    ([1 / 2] * 2, [1 / 3] * 3),
    ([1 / 5] * 5, [1 / 6] * 6),
    ([0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]),  # the last node
    ([0.7, 0.3], [0.4, 0.2, 0.4]),
    ([0.5, 0.5], [0.6, 0.2, 0.2]),  # below 0
    ([2.0, 0.6], [1.0, 0.5, 0.5]),  # above 1
    ([1.0, 1.0], [1.0, 1.0, 1.0]),  # a sum
    ([0.8, 0.5, 0.2], [0.4, 0.3, 0.2, 0.5]),
)


def _check_mean(answer: Shares) -> str | None:
    got = [answer(list(before), list(after)) for before, after in _OUTPUTS]
    for (before, _), shares in zip(_OUTPUTS, got, strict=True):
        if shares is not None and torch.as_tensor(shares).shape != (len(before),):
            return "Expected one weight for each node that was there before, that of the identity, or None."

    def otherwise(place: int) -> str:
        before, after = _OUTPUTS[place]
        if _right_shares(before, after) is None:
            return f"From {before} to {after} it is not possible: no softmax has a weight below 0 or above 1."
        return "Write the output as Σ v'_j s_j + v'_{m+1} Σ c_j s_j and compare it with Σ v_j s_j, node by node."

    return _verdict(got, _right_shares, WRONG_SHARES, _OUTPUTS, _same_shares, otherwise)


_OTHER_SHARES = (lambda before, after: None, lambda before, after: before[1:], lambda before, after: [0.5], 0.5)
register(Exercise("growing.mean", CHAPTER, _check_mean, (*WRONG_SHARES.values(), *_OTHER_SHARES)))


# --- the splitting matrix of a unit over time -------------------------------------------------------------------------

Split = Callable[[Tensor, Tensor, Tensor, float], Any]


def _second(a: Tensor) -> Tensor:
    """The second derivative of tanh."""
    return -2 * a.tanh() * (1 - a.tanh() ** 2)


def _least(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix)[0]


def _gain(matrix: Tensor, step: float) -> Tensor:
    return (step**2 * _least(matrix) / 2).clamp(max=0)


def _splitting(
    factor: Callable[[Tensor, Tensor], Tensor] = lambda g, a: g * _second(a),
    change: Callable[[Tensor, float], Tensor] = _gain,
    total: Callable[[Tensor], Tensor] = lambda terms: terms.sum((0, 1)),
) -> Split:
    """S as the total of factor · uuᵀ over time and batch, and the change of the loss from it."""

    def split(g: Tensor, a: Tensor, u: Tensor, step: float) -> tuple[Tensor, Tensor]:
        matrix = total(factor(g, a)[..., None, None] * u[..., :, None] * u[..., None, :])
        return matrix, change(matrix, step)

    return split


WRONG_SPLITS: dict[str, Split] = {
    "That is a mean over steps and examples. g is the gradient of the mean loss already: sum.": _splitting(
        total=lambda terms: terms.mean((0, 1))
    ),
    "That is a mean over the batch. g is the gradient of the mean loss already: sum.": _splitting(
        total=lambda terms: terms.mean(1).sum(0)
    ),
    "The unit is applied at every step with the same θ: sum over time, don't average.": _splitting(
        total=lambda terms: terms.sum(1).mean(0)
    ),
    "The unit is applied at every step, not at the last one only: sum over time.": _splitting(
        total=lambda terms: terms[-1].sum(0)
    ),
    "tanh'' = −2 tanh(a)(1 − tanh²(a)): the sign is turned.": _splitting(lambda g, a: -g * _second(a)),
    "That takes the first derivative, 1 − tanh²(a). S has the second one.": _splitting(
        lambda g, a: g * (1 - a.tanh() ** 2)
    ),
    "tanh'' = −2 tanh(a)(1 − tanh²(a)): a factor is missing.": _splitting(lambda g, a: -2 * g * a.tanh()),
    "S has ∂L/∂o, with its sign: whether a split helps depends on it.": _splitting(lambda g, a: g.abs() * _second(a)),
    "Without g it says nothing about the loss: S = Σ g tanh''(a) uuᵀ.": _splitting(lambda g, a: _second(a)),
    "S is right. The change is ½ε²λ_min: the half is missing.": _splitting(
        change=lambda matrix, step: 2 * _gain(matrix, step)
    ),
    "S is right. Two halves move to opposite sides, so the first order in ε cancels: ε².": _splitting(
        change=lambda matrix, step: (step * _least(matrix) / 2).clamp(max=0)
    ),
    "S is right. And the step of both halves is ε, not 1.": _splitting(change=lambda matrix, step: _gain(matrix, 1.0)),
    "S is right. Where λ_min is above 0, a split raises the loss: don't split, and the change is 0.": _splitting(
        change=lambda matrix, step: step**2 * _least(matrix) / 2
    ),
    "S is right. The largest eigenvalue is the worst direction; take the least.": _splitting(
        change=lambda matrix, step: step**2 * torch.linalg.eigvalsh(matrix)[-1] / 2
    ),
    "S is right. The sign is turned: where the loss falls, its change is below 0.": _splitting(
        change=lambda matrix, step: -_gain(matrix, step)
    ),
}
"""Hints, and the answers that they are for."""


def _split_cases() -> list[tuple[Tensor, Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(3)
    cases = []
    for step, sign in ((0.1, None), (0.5, 1), (0.3, -1)):
        u = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
        a = u @ torch.tensor([0.7, -0.4, 0.5], dtype=torch.float64)
        g = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        # With g of the sign of tanh'' every direction raises the loss; with the other sign every one lowers it.
        cases.append((g if sign is None else sign * g.abs() * _second(a).sign(), a, u, step))
    return cases


def _same_split(pair: Any, other: Any) -> bool:
    return _same_matrix(pair, other) and _near(pair[1], other[1])


def _same_matrix(pair: Any, other: Any) -> bool:
    return _near(pair[0], other[0])


_MATRIX = "S = Σ over steps and examples of g tanh''(a) uuᵀ, with tanh'' = −2 tanh(a)(1 − tanh²(a)) (Eq. 10)."


def _check_splitting(answer: Split) -> str | None:
    cases = _split_cases()
    got = [answer(g.clone(), a.clone(), u.clone(), step) for g, a, u, step in cases]
    for pair in got:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or torch.as_tensor(pair[1]).numel() != 1:
            return "Expected two things: S, and the change of the loss, one number."
        if not isinstance(pair[0], Tensor) or pair[0].shape != (3, 3):
            return "S has a row and a column for each entry of u, and none for time or batch: (3, 3) here."
    got = [(matrix, torch.as_tensor(change).double().reshape(())) for matrix, change in got]
    hint = _verdict(got, _splitting(), WRONG_SPLITS, cases, _same_split, lambda place: "")
    if hint == "":  # no rule has both
        of_matrix = _verdict(got, _splitting(), WRONG_SPLITS, cases, _same_matrix, lambda place: _MATRIX)
        return of_matrix or "S is right. The change is ½ε²λ_min where λ_min < 0, and 0 elsewhere (Eq. 11)."
    return hint


_OTHER_SPLITS = (
    lambda g, a, u, step: (_splitting()(g, a, u, step)[0], -1.0),
    lambda g, a, u, step: (_splitting(total=lambda terms: terms.mean((0, 1)))(g, a, u, step)[0], 0.0),
    lambda g, a, u, step: (torch.eye(3), 0.0),
    lambda g, a, u, step: (g.T @ a, 0.0),
    lambda g, a, u, step: _splitting()(g, a, u, step)[0],
)
register(Exercise("growing.splitting", CHAPTER, _check_splitting, (*WRONG_SPLITS.values(), *_OTHER_SPLITS, 0.1)))
