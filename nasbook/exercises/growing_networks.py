"""Chapter 4's exercises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasbook.exercises.registry import Exercise, register
from nasbook.growth import Budget, select, select_exactly, splitting_matrices
from nasbook.networks import RadialNetwork

CHAPTER = "04-growing-networks"


# --- sources and shares of copies -------------------------------------------------------------------------------------

Widening = Callable[[int, Sequence[int]], Any]


def _wider(share: Callable[[int, int, bool], float]) -> Widening:
    """A widening; ``share`` gets how often a neuron is there now, how many copies were added, and if this is one."""

    def widen(neurons: int, copied: Sequence[int]) -> tuple[list[int], list[float]]:
        sources = [*range(neurons), *copied]
        added = Counter(copied)
        factors = [share(1 + added[i], added[i], place >= neurons) for place, i in enumerate(sources)]
        return sources, factors

    return widen


WRONG_WIDENINGS: dict[str, Widening] = {
    "Each copy is read in full, so that the next layer gets the neuron several times.": _wider(lambda n, k, new: 1),
    "The old neuron is still read in full: its column is divided too.": _wider(lambda n, k, new: 1 / k if new else 1),
    "Count the old neuron among its copies.": _wider(lambda n, k, new: 1 / max(k, 1)),
    "Halves are right for two copies. A neuron that is there three times has thirds.": _wider(
        lambda n, k, new: 1 / min(n, 2)
    ),
    "The function is kept, but the shares of a neuron's copies are not equal.": _wider(
        lambda n, k, new: float(not new)
    ),
    "Multiply by the share, don't divide by it: the shares of a neuron's copies sum to 1.": _wider(
        lambda n, k, new: n
    ),
    "The sources are those of every channel of the new width, the old ones too.": lambda n, copied: (
        list(copied),
        [0.5] * len(copied),
    ),
    "-1 is a new neuron with zero weights. A copy has the index of the neuron that it copies.": lambda n, copied: (
        [*range(n), *[-1] * len(copied)],
        [1.0] * (n + len(copied)),
    ),
}
"""Hints, and the answers that they are for."""


def _check_wider(answer: Widening) -> str | None:
    cases: list[tuple[int, list[int]]] = [(3, [0, 0]), (4, [1, 3]), (2, [1]), (3, [2, 0, 2, 2])]
    got = []
    for neurons, copied in cases:
        pair = answer(neurons, list(copied))
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            return "Expected two lists: (sources, factors)."
        sources, factors = ([float(number) for number in part] for part in pair)
        if len(factors) != len(sources):
            return f"There are {len(sources)} sources and {len(factors)} factors; every channel has one of each."
        got.append((sources, factors))
    for hint, wrong in WRONG_WIDENINGS.items():
        if all(_same_pair(pair, wrong(*case)) for pair, case in zip(got, cases, strict=True)):
            return hint
    for (neurons, copied), (sources, factors) in zip(cases, got, strict=True):
        if Counter(sources) != Counter([*range(neurons), *copied]):
            return f"For {neurons} neurons and {copied}: every old neuron once, and once more for each copy."
        for source in range(neurons):
            shares = [factor for factor, i in zip(factors, sources, strict=True) if i == source]
            if not math.isclose(sum(shares), 1):
                return f"For {neurons} neurons and {copied}, the shares of neuron {source} sum to {sum(shares):.2f}."
            if not all(math.isclose(share, 1 / len(shares)) for share in shares):
                return "The function is kept, but the shares of a neuron's copies are not equal."
    return None


def _same_pair(pair: Any, other: Any) -> bool:
    return list(pair[0]) == list(other[0]) and np.allclose(pair[1], other[1])


register(
    Exercise(
        "firefly.wider",
        CHAPTER,
        _check_wider,
        (
            *WRONG_WIDENINGS.values(),
            lambda n, copied: [1.0] * n,
            lambda n, copied: ([*range(n), *copied], [1.0] * n),
            lambda n, copied: (list(range(n + len(copied))), [1.0] * (n + len(copied))),
            1 / 3,
        ),
    )
)


# --- parameters of one step -------------------------------------------------------------------------------------------

_PARAMETERS = (290, 156, 324, 2336)
_NUMBERED = ("first", "second", "third", "fourth")

WRONG_COUNTS: dict[str, tuple[int, int, int, int]] = {
    "The layer that reads the channels grows too: a column of it for each.": (146, 146, 292, 2336),
    "A batch norm has a scale and a shift for every neuron.": (288, 154, 320, 2304),
    "These convolutions have no bias: the shift of the batch norm does its work.": (291, 157, 326, 2352),
    "The running mean and variance are no parameters: no gradient moves them.": (292, 158, 328, 2368),
    "The last width is read by the linear classifier: 10 weights, one a class.": (290, 290, 324, 2336),
    "The way back of a residual layer is a 1×1 convolution, without bias or batch norm.": (290, 156, 580, 2336),
    "That residual layer has two neurons.": (290, 156, 162, 2336),
    "Net2Deeper's layer has as many neurons as channels. It can't begin with fewer.": (290, 156, 324, 146),
}
"""Hints, and answers with the mistake in as many places as it can be made in."""


def _check_count(answer: Any) -> str | None:
    if not isinstance(answer, tuple) or len(answer) != 4 or not all(type(number) is int for number in answer):
        return "Give four whole numbers as a tuple: (inner neuron, last neuron, residual layer, plain layer)."
    for place, (number, right) in enumerate(zip(answer, _PARAMETERS, strict=True)):
        if number != right:
            hints = (hint for hint, wrong in WRONG_COUNTS.items() if wrong[place] == number)
            return f"The {_NUMBERED[place]} number is not right. " + next(
                hints, "Count the 3×3 filters, the scale and shift of each neuron, and what reads its output."
            )
    return None


register(
    Exercise(
        "firefly.count",
        CHAPTER,
        _check_count,
        (*WRONG_COUNTS.values(), (290, 156, 324, 2338), (18, 18, 18, 18), (290, 156, 324), 290),
        takes_function=False,
    )
)


# --- a batch norm that does nothing -----------------------------------------------------------------------------------

Entries = Callable[[Tensor, float], Any]


def _entries(of: Callable[[Tensor, Tensor, float], tuple[Tensor, ...]], correction: int = 0) -> Entries:
    """Entries from mean, variance and the small number of the norm."""

    def entries(x: Tensor, eps: float) -> tuple[Tensor, ...]:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=correction)
        return of(mean, variance, eps)

    return entries


_RIGHT_ENTRIES = _entries(lambda mean, var, eps: ((var + eps).sqrt(), mean, mean, var))

WRONG_ENTRIES: dict[str, Entries] = {
    "Nearly. Training mode normalises with the variance that divides by n, not by n − 1 (correction=0).": _entries(
        lambda mean, var, eps: ((var + eps).sqrt(), mean, mean, var), correction=1
    ),
    "A batch norm divides by √(variance + eps), in both modes: the scale must undo that.": _entries(
        lambda mean, var, eps: (var.sqrt(), mean, mean, var)
    ),
    "The scale multiplies what was divided by a root: it is √(variance + eps).": _entries(
        lambda mean, var, eps: (var + eps, mean, mean, var)
    ),
    "running_var holds a variance, not a standard deviation.": _entries(
        lambda mean, var, eps: ((var + eps).sqrt(), mean, mean, var.sqrt())
    ),
    "The shift is added after the mean was taken off: it has the mean's sign.": _entries(
        lambda mean, var, eps: ((var + eps).sqrt(), -mean, mean, var)
    ),
    "In evaluation mode that is the identity; in training mode it normalises by the batch's own moments.": _entries(
        lambda mean, var, eps: ((torch.ones_like(var) + eps).sqrt(), 0 * mean, 0 * mean, torch.ones_like(var))
    ),
    "These are a fresh batch norm's entries. In training mode they normalise, and eps spoils evaluation mode.": (
        _entries(lambda mean, var, eps: (torch.ones_like(var), 0 * mean, 0 * mean, torch.ones_like(var)))
    ),
    "In training mode that is the identity. Evaluation mode reads the running entries, and yours are fresh.": _entries(
        lambda mean, var, eps: ((var + eps).sqrt(), mean, 0 * mean, torch.ones_like(var))
    ),
}
"""Hints, and the answers that they are for."""


def _check_identity(answer: Entries) -> str | None:
    generator = torch.Generator().manual_seed(1)
    for eps in (0.1, 1e-3):
        x = (torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64) + 0.5).relu()
        x[:, 0] = 0.0  # a dead channel
        got = answer(x.clone(), eps)
        if not isinstance(got, tuple | list) or len(got) != 4:
            return "Expected four tensors: (weight, bias, running_mean, running_var)."
        if not all(isinstance(entry, Tensor) and entry.shape == (4,) for entry in got):
            return "Expected one number a channel in each tensor: average over the images and all of their pixels."

        def equals(formula: Entries, x: Tensor = x, eps: float = eps, got: Any = got) -> bool:
            return all(torch.allclose(a, b.to(a)) for a, b in zip(got, formula(x, eps), strict=True))

        for hint, wrong in WRONG_ENTRIES.items():
            if equals(wrong):
                return hint
        norm = nn.BatchNorm2d(4, eps=eps).double()
        with torch.no_grad():
            for name, entry in zip(("weight", "bias", "running_mean", "running_var"), got, strict=True):
                getattr(norm, name).copy_(entry)
            if not torch.allclose(norm.eval()(x), x):
                return "In evaluation mode it is not the identity: γ(x − running_mean)/√(running_var + eps) + β is."
            if not torch.allclose(norm.train()(x), x):
                return "In training mode it is not the identity: the batch's own mean and variance are taken there."
    return None


register(
    Exercise(
        "firefly.identity",
        CHAPTER,
        _check_identity,
        (
            *WRONG_ENTRIES.values(),
            lambda x, eps: (x.var(0).sqrt(), x.mean(0), x.mean(0), x.var(0)),
            lambda x, eps: x.mean((0, 2, 3)),
            lambda x, eps: None,
            1.0,
        ),
    )
)


# --- the splitting matrix of a Gaussian -------------------------------------------------------------------------------

Matrix = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


def _matrix(
    factor: Callable[[Tensor, Tensor, Tensor], Tensor], *, swapped: bool = False, hessian: bool = False
) -> Matrix:
    """E[factor · zzᵀ] with z = ∂t/∂θ; ``factor`` gets r, w and t."""

    def matrix(x: Tensor, residual: Tensor, theta: Tensor, w: Tensor) -> Tensor:
        t = theta[0] * x + theta[1]
        z = torch.stack([x, torch.ones_like(x)])
        found = factor(residual, w, t) * (-(t**2) / 2).exp()
        if hessian:
            found = found + 2 * (w * t) ** 2 * (-(t**2)).exp()
        return (found * (z.flip(0) if swapped else z)) @ (z.flip(0) if swapped else z).T / len(x)

    return matrix


WRONG_MATRICES: dict[str, Matrix] = {
    "The outgoing weight is missing: the loss reaches σ through w.": _matrix(lambda r, w, t: 2 * r * (t**2 - 1)),
    "Half of it: the derivative of r² is 2r.": _matrix(lambda r, w, t: r * w * (t**2 - 1)),
    "The sign is turned: ∂L/∂f has the sign of f − y, and σ''(t) = (t² − 1)σ(t).": _matrix(
        lambda r, w, t: 2 * r * w * (1 - t**2)
    ),
    "That takes the first derivative, σ'(t) = −tσ(t). S has the second one.": _matrix(lambda r, w, t: -2 * r * w * t),
    "A sum over the points; the loss is a mean.": lambda x, r, theta, w: (
        len(x) * _matrix(lambda r, w, t: 2 * r * w * (t**2 - 1))(x, r, theta, w)
    ),
    "The entries are in the order of θ: θ₁, which multiplies x, comes first.": _matrix(
        lambda r, w, t: 2 * r * w * (t**2 - 1), swapped=True
    ),
    "That is the Hessian of the loss in θ. The halves move to opposite sides, so that products of first derivatives "
    "cancel: only the term with ∂²σ/∂θ² is left.": _matrix(lambda r, w, t: 2 * r * w * (t**2 - 1), hessian=True),
}
"""Hints, and the answers that they are for."""


def _check_splitting_matrix(answer: Matrix) -> str | None:
    generator = torch.Generator().manual_seed(2)
    network = RadialNetwork(4).double()
    network.draw(1.0, generator)
    x, y = torch.randn(2, 60, 1, generator=generator, dtype=torch.float64)
    right = splitting_matrices(network, [(x, y)], nn.functional.mse_loss)["hidden"]
    with torch.no_grad():
        residual = (network(x) - y).flatten()
        theta = torch.cat([network.hidden.weight, network.hidden.bias[:, None]], 1)
        inputs = [(x.flatten(), residual, theta[i], network.output.weight[0, i]) for i in range(4)]
        got = [answer(*(part.clone() for part in one)) for one in inputs]
        if not all(isinstance(matrix, Tensor) and matrix.shape == (2, 2) for matrix in got):
            return "Expected a 2×2 tensor."
        if torch.allclose(torch.stack(got), right):
            return None
        for hint, wrong in WRONG_MATRICES.items():
            if all(torch.allclose(matrix, wrong(*one)) for matrix, one in zip(got, inputs, strict=True)):
                return hint
    return "S = E[∂L/∂σ · σ''(t) · zzᵀ] with z = ∂t/∂θ = (x, 1), and ∂L/∂σ = 2rw for one point."


register(
    Exercise(
        "firefly.splitting-matrix",
        CHAPTER,
        _check_splitting_matrix,
        (*WRONG_MATRICES.values(), lambda x, r, theta, w: torch.eye(2), lambda x, r, theta, w: r.mean(), 0.0),
    )
)


# --- what a gate promises ---------------------------------------------------------------------------------------------

Promise = Callable[[Tensor, Tensor, Tensor, float], Any]


def _promise(
    of_split: Callable[[Tensor, Tensor, float], Tensor],
    of_new: Callable[[Tensor, float], Tensor] = lambda s, radius: -radius * s.abs(),
) -> Promise:
    return lambda is_split, s, reached, radius: torch.where(
        is_split, of_split(s, reached, radius), of_new(s, radius)
    )


def _curved(s: Tensor, reached: Tensor, radius: float) -> Tensor:
    """ϵ²s/ε̃, and 0 where the gate is shut."""
    return radius**2 * s / torch.where(reached == 0, 1, reached)


_NOT_A_NUMBER = "NaN or infinity where step one ended at ε̃ = 0: there is no split there, and its change is 0."

WRONG_PROMISES: dict[str, Promise] = {
    "Eq. 5 flips the sign of every gate. A split with −ε is the same two neurons: flipping changes nothing.": _promise(
        lambda s, reached, radius: -radius * s.abs()
    ),
    "Where the loss curves up along a split, it does so on both sides: the change is above 0.": _promise(
        lambda s, reached, radius: -_curved(s, reached, radius).abs()
    ),
    "Linear in ϵ, as the package has it: right where |ε̃| = ϵ. A split's change grows with ϵ².": _promise(
        lambda s, reached, radius: radius * s * torch.sign(reached)
    ),
    "The sign of s alone says nothing about a split: s is a slope on the side of ε̃.": _promise(
        lambda s, reached, radius: radius * s
    ),
    "That is the change at ε̃. The split is kept at ±ϵ.": _promise(lambda s, reached, radius: reached * s),
    "Half of it: s is the mean slope on the way, κε̃/2, not the slope κε̃ at its end.": _promise(
        lambda s, reached, radius: _curved(s, reached, radius) / 2
    ),
    "Twice too much: with curvature κ the loss changes by κϵ²/2, and s is κε̃/2.": _promise(
        lambda s, reached, radius: 2 * _curved(s, reached, radius)
    ),
    "A new neuron takes the side that lowers the loss, ε̂ = −ϵ sign(s): its change is never above 0.": _promise(
        _curved, lambda s, radius: radius * s
    ),
    _NOT_A_NUMBER: _promise(lambda s, reached, radius: radius**2 * s / reached),
}
"""Hints, and the answers that they are for."""


def _check_gates(answer: Promise) -> str | None:
    is_split = torch.tensor([True, True, True, True, True, False, False, False])
    reached = torch.tensor([0.02, -0.02, 0.07, -0.1, 0.0, 0.05, -0.1, 0.1], dtype=torch.float64)
    s = torch.tensor([-0.3, -0.5, 0.2, 0.4, 0.0, 0.6, 0.7, -0.8], dtype=torch.float64)
    cases = [(is_split, s, reached, radius) for radius in (0.1, 0.25)]
    got = [answer(is_split, s.clone(), reached.clone(), radius) for is_split, s, reached, radius in cases]
    if not all(isinstance(changes, Tensor) and changes.shape == s.shape for changes in got):
        return "Expected a tensor with one change a candidate."

    def equals(formula: Promise) -> bool:
        return all(
            torch.allclose(changes.double(), formula(*case), equal_nan=True)
            for changes, case in zip(got, cases, strict=True)
        )

    if equals(_promise(_curved)):
        return None
    for hint, wrong in WRONG_PROMISES.items():
        if equals(wrong):
            return hint
    if not all(bool(changes.isfinite().all()) for changes in got):
        return _NOT_A_NUMBER
    if torch.allclose(got[0][is_split].double(), _promise(_curved)(*cases[0])[is_split]):
        return "The splits are right. A new neuron's change is linear in its gate, ε̂s with ε̂ = −ϵ sign(s)."
    return "A split: L(ε) = L(0) + κε²/2. The mean slope from 0 to ε̃ is s; find κ, then the change at ±ϵ."


register(
    Exercise(
        "firefly.gates",
        CHAPTER,
        _check_gates,
        (
            *WRONG_PROMISES.values(),
            _promise(_curved, lambda s, radius: -radius * s),
            lambda is_split, s, reached, radius: 0 * s,
            lambda is_split, s, reached, radius: None,
            0.1,
        ),
    )
)


# --- how far greedy falls short ---------------------------------------------------------------------------------------

Problem = Callable[[int], Any]

_ONE_LAYER = "With one layer, sorting is optimal: the budget of layers forbids nothing."

WRONG_PROBLEMS: dict[str, Problem] = {
    _ONE_LAYER: lambda n: ([-1.01] * (n + 1), "a" * (n + 1)),
    "Greedy is as good as the best choice here": lambda n: ([-2.0 * n, *[-1.0] * n], "a" + "b" * n),
    "Now make its neuron only just better than one of the other layer.": lambda n: (
        [-1.3, *[-1.0] * n],
        "a" + "b" * n,
    ),
    "n + 1 candidates are enough": lambda n: ([*[-1.01] * 2, *[-1.0] * n], "aa" + "b" * n),
    "A change below 0 lowers the loss": lambda n: ([1.01, *[1.0] * n], "a" + "b" * n),
    "Only one layer may be opened": lambda n: ([-1.01, *[-1.0] * n], range(n + 1)),
}
"""Parts of hints, and the answers that they are for."""


def _check_greedy(answer: Problem) -> str | None:
    for n in range(2, 8):
        problem = answer(n)
        if not isinstance(problem, tuple | list) or len(problem) != 2 or len(problem[0]) != len(problem[1]):
            return "Expected two lists of equal length: (changes, widths)."
        changes, widths = np.asarray(problem[0], dtype=float), list(problem[1])
        if not (changes < 0).any():
            return "A change below 0 lowers the loss; there is none."
        if len(set(widths)) == 1:
            return _ONE_LAYER
        if len(changes) > n + 1:
            return f"Right or not: n + 1 candidates are enough, and for n = {n} you have {len(changes)}."
        budget = Budget(neurons=n, layers=1)
        greedy = float(changes[select(changes, widths, budget, widths)].sum())
        best = float(changes[select_exactly(changes, widths, budget, widths)].sum())
        said = f"For n = {n} greedy gets {greedy:.3g}, and the best choice {best:.3g}."
        if greedy > 1.02 * best / n:
            continue
        if len(set(widths)) > 2:
            return f"{said} Only one layer may be opened: put into one of them what greedy misses."
        if math.isclose(greedy, best):
            return f"{said} Greedy is as good as the best choice here: what must it lose by opening the wrong layer?"
        return f"{said} Greedy is wrong already. Now make its neuron only just better than one of the other layer."
    return None


register(
    Exercise(
        "firefly.greedy",
        CHAPTER,
        _check_greedy,
        (
            *WRONG_PROBLEMS.values(),
            lambda n: [-1.01, *[-1.0] * n],
            lambda n: ([-3.0, -2.0, -2.0], "abb"),
            lambda n: None,
            0.5,
        ),
    )
)


# --- a budget of parameters -------------------------------------------------------------------------------------------

Fill = Callable[[list[float], list[int], int], Any]


def _in_order(worth: Callable[[float, int], float], *, stops: bool = False, passes_over: bool = True) -> Fill:
    """Takes candidates in the order of ``worth``, the least first."""

    def fill(changes: list[float], costs: list[int], parameters: int) -> list[int]:
        chosen: list[int] = []
        for i in sorted(range(len(changes)), key=lambda i: worth(changes[i], costs[i])):
            if changes[i] >= 0:
                continue
            if passes_over and sum(costs[j] for j in chosen) + costs[i] > parameters:
                if stops:
                    break
                continue
            chosen.append(i)
        return chosen

    return fill


def _best_change(changes: list[float], costs: list[int], parameters: int) -> float:
    """The least sum that fits, among all choices."""
    choices = (np.arange(2 ** len(changes))[:, None] >> np.arange(len(changes))) & 1  # (choices, candidates)
    return float((choices @ np.asarray(changes))[choices @ np.asarray(costs) <= parameters].min())


WRONG_FILLS: dict[str, Fill] = {
    "That is the paper's rule with costs, which stops at the first candidate that does not fit.": _in_order(
        lambda change, cost: change, stops=True
    ),
    "Sorted by change: a costly candidate takes the room of several cheap ones.": _in_order(
        lambda change, cost: change
    ),
    "Sorted by change per parameter: better, but what is left over may be too small for the next one.": _in_order(
        lambda change, cost: change / cost
    ),
    "Sorted by cost, whatever the candidates are worth.": _in_order(lambda change, cost: cost),
    "the budget has": _in_order(lambda change, cost: change, passes_over=False),
}
"""Parts of hints, and the answers that they are for."""


def _check_parameters(answer: Fill) -> str | None:
    generator = np.random.default_rng(3)
    cases = [([-3.0, -2.0, -2.0, 1.0], [30, 20, 20, 1], 40), ([-1.0, -0.9], [50, 60], 40)]
    for _ in range(8):
        costs = generator.choice([19, 73, 156, 290], size=10).tolist()
        cases.append((generator.normal(-0.5, 1.0, size=10).tolist(), costs, int(0.4 * sum(costs))))
    got = []
    for changes, costs, parameters in cases:
        chosen = answer(list(changes), list(costs), parameters)
        if not isinstance(chosen, list | tuple | np.ndarray) or len(set(chosen)) < len(chosen):
            return "Expected a list of candidates' indices, each at most once."
        chosen = [int(i) for i in chosen]
        if not all(0 <= i < len(changes) for i in chosen):
            return f"There are the candidates 0..{len(changes) - 1}; you chose {chosen}."
        spent = sum(costs[i] for i in chosen)
        if spent > parameters:
            return f"Your choice costs {spent} parameters; the budget has {parameters}."
        if any(changes[i] > 0 for i in chosen):
            return "You take a candidate that is predicted to raise the loss, because there is room."
        got.append(sum(changes[i] for i in chosen))
    best = [_best_change(*case) for case in cases]
    if np.allclose(got, best):
        return None
    for hint, wrong in WRONG_FILLS.items():
        if np.allclose(got, [sum(case[0][i] for i in wrong(*case)) for case in cases]):
            return hint
    place = int(np.argmax(~np.isclose(got, best)))
    return f"fill{cases[place]} lowers the loss by {-got[place]:.3g}; {-best[place]:.3g} is possible."


register(
    Exercise(
        "firefly.parameters",
        CHAPTER,
        _check_parameters,
        (
            *WRONG_FILLS.values(),
            lambda changes, costs, parameters: [],
            lambda changes, costs, parameters: [0, 0],
            lambda changes, costs, parameters: [len(changes)],
            lambda changes, costs, parameters: [i for i in range(len(changes)) if changes[i] > 0 and costs[i] < 40],
            lambda changes, costs, parameters: None,
            40,
        ),
    )
)
