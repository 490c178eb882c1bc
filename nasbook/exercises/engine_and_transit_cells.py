"""Chapter 3's exercises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasbook.exercises.registry import Exercise, register
from nasbook.genotypes import DARTS_V2, CellGenotype, Edge, Space
from nasbook.supernets import AnnealedSoftmax, Relaxation, SparseRelaxation, strongest_edges

CHAPTER = "03-engine-and-transit-cells"


# --- operations and features of a cell --------------------------------------------------------------------------------


def _check_count(answer: Any) -> str | None:
    if not isinstance(answer, tuple) or len(answer) != 3 or not all(type(number) is int for number in answer):
        return "Give three whole numbers as a tuple: (without sharing, with sharing, features)."
    without, shared, features = answer
    if answer == (126, 45, 60):
        return None
    if (without, shared) == (168, 60):
        return "Pools and the skip connection have no weights: 9 of the 12 candidates do."
    if without == 135:
        return "The edge between the two inputs, which the paper's C(n, 2) counts, has no candidates: 14 edges."
    if without != 126:
        return "Without sharing, each of the 14 edges has weights of its own for each of the 9 operations."
    if shared == 54:
        return "The last of the six nodes has no later node, so it owns no operations."
    if shared != 45:
        return "With sharing, an operation belongs to the node that it leaves. How many nodes have a later one?"
    if features == 45:
        return "An Engine-cell computes the features of all 12 candidates, with weights or without."
    if features == 168:
        return "That is the number without sharing. A shared feature is computed once for all later nodes."
    return "One feature for each candidate of each node that has a later one."


register(
    Exercise(
        "entrannas.count",
        CHAPTER,
        _check_count,
        (
            (135, 45, 60),
            (168, 60, 60),
            (108, 45, 60),
            (126, 54, 72),
            (126, 36, 48),
            (126, 45, 45),
            (126, 45, 168),
            (126, 45, 72),
            126,
        ),
        takes_function=False,
    )
)


# --- a temperature for a ratio ----------------------------------------------------------------------------------------

WRONG_TEMPERATURES: dict[str, Callable[[float, float], float]] = {
    "Turned round: a wider difference needs a higher temperature for the same ratio.": lambda d, r: math.log(r) / d,
    "The ratio is exp(d/τ): take the logarithm of r.": lambda d, r: d / r,
    "The logarithm belongs to the ratio, not to the difference.": lambda d, r: math.log(d) / r,
    "The ratio is exp(d/τ), not exp(d·τ): d/τ = log r, solved for τ.": lambda d, r: d * math.log(r),
    "The exponential of Eq. 5 has base e: take the natural logarithm.": lambda d, r: d / math.log10(r),
}
"""Hints, and the answers that they are for."""


def _check_temperature(answer: Callable[[float, float], float]) -> str | None:
    cases = [(0.1, 10.0), (0.5, 2.0), (2.0, 3.0), (1e-3, 1.5)]
    got = [float(answer(difference, ratio)) for difference, ratio in cases]

    def equals(formula: Callable[[float, float], float]) -> bool:
        return all(math.isclose(value, formula(*case), rel_tol=1e-6) for value, case in zip(got, cases, strict=True))

    if equals(lambda d, r: d / math.log(r)):
        return None
    for hint, wrong in WRONG_TEMPERATURES.items():
        if equals(wrong):
            return hint
    return "Write down p₁/p₂ with Eq. 5. The sum of the denominator cancels; solve what is left for τ."


register(
    Exercise(
        "entrannas.temperature",
        CHAPTER,
        _check_temperature,
        (*WRONG_TEMPERATURES.values(), lambda d, r: 5.0, lambda d, r: r, 0.0434),
    )
)


# --- the thresholds that keep m connections ---------------------------------------------------------------------------

Bounds = tuple[float, float] | None


def _threshold_range(p_hat: Sequence[float], m: int) -> Bounds:
    """The half-open range of t that keeps exactly m connections: p̂ > t is kept."""
    ordered = [*sorted(p_hat, reverse=True), 0.0]
    return (ordered[m], ordered[m - 1]) if ordered[m] < ordered[m - 1] else None


def _logit(t: float) -> float:
    return float(torch.tensor(t, dtype=torch.float64).logit())


def _beta_range(p_hat: Sequence[float], m: int) -> Bounds:
    bounds = _threshold_range(p_hat, m)
    return bounds and (_logit(bounds[0]), _logit(bounds[1]))


def _unsorted(p_hat: Sequence[float], m: int) -> Bounds:
    return _logit([*p_hat, 0.0][m]), _logit(p_hat[m - 1])


def _ties_ignored(p_hat: Sequence[float], m: int) -> Bounds:
    ordered = [*sorted(p_hat, reverse=True), 0.0]
    return _logit(ordered[m]), _logit(ordered[m - 1])


def _one_too_many(p_hat: Sequence[float], m: int) -> Bounds:
    return _ties_ignored([*p_hat, 0.0], m + 1)


def _one_too_few(p_hat: Sequence[float], m: int) -> Bounds:
    return _ties_ignored(p_hat, m - 1) if m > 1 else (math.inf, math.inf)


def _turned(p_hat: Sequence[float], m: int) -> Bounds:
    bounds = _beta_range(p_hat, m)
    return bounds and (bounds[1], bounds[0])


def _ends_at_zero(p_hat: Sequence[float], m: int) -> Bounds:
    bounds = _beta_range(p_hat, m)
    return bounds and (0.0 if m == len(p_hat) else bounds[0], bounds[1])


WRONG_RANGES: dict[str, Callable[[Sequence[float], int], Bounds]] = {
    "That is the range of t. β is its logit, log(t / (1 − t)).": _threshold_range,
    "Low first, then high.": _turned,
    "The connections come in any order: sort them.": _unsorted,
    "One connection too many: the m-th strongest must stay above t, the next one must not.": _one_too_many,
    "One connection too few: the m-th strongest must stay above t, the next one must not.": _one_too_few,
    "A softmax is never 0. So no β is too low to keep all: the range begins at −inf.": _ends_at_zero,
    "Equal connections come and go together: where the m-th equals the next one no β keeps m. Return None.": (
        _ties_ignored
    ),
}
"""Hints, and the answers that they are for."""


def _check_threshold(answer: Callable[[list[float], int], Any]) -> str | None:
    plain = [[0.2, 1.0, 0.55, 0.7], [0.9, 0.1, 1.0], [1.0]]
    tied = [[0.5, 1.0, 0.2, 0.5], [1.0, 0.3, 1.0]]
    cases = [(p_hat, m) for p_hat in plain + tied for m in range(1, len(p_hat) + 1)]
    got = []
    for p_hat, m in cases:
        try:
            bounds = answer(list(p_hat), m)
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            return f"{type(error).__name__} for {p_hat} and m = {m}: t = 0 means β = −inf, and t = 1 means β = inf."
        if bounds is None and p_hat in plain:
            return f"Nothing for {p_hat} and m = {m}: the function must return (low, high)."
        if bounds is not None:
            if not isinstance(bounds, tuple | list | Tensor) or len(bounds) != 2:
                return f"Expected (low, high) or None, got {bounds!r}."
            bounds = float(bounds[0]), float(bounds[1])
        got.append(bounds)

    def equals(formula: Callable[[Sequence[float], int], Bounds]) -> bool:
        return all(_same_bounds(bounds, formula(*case)) for bounds, case in zip(got, cases, strict=True))

    if equals(_beta_range):
        return None
    for hint, wrong in WRONG_RANGES.items():
        if equals(wrong):
            return hint
    right = [_same_bounds(bounds, _beta_range(*case)) for bounds, case in zip(got, cases, strict=True)]
    p_hat, m = cases[right.index(False)]
    return f"Not for {p_hat} and m = {m}. A connection stays where p̂ > t = sigmoid(β). Exactly m must."


def _same_bounds(a: Bounds, b: Bounds) -> bool:
    if a is None or b is None:
        return a is b
    return all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-4) for x, y in zip(a, b, strict=True))


register(
    Exercise(
        "entrannas.threshold",
        CHAPTER,
        _check_threshold,
        (*WRONG_RANGES.values(), lambda p_hat, m: None, lambda p_hat, m: 0.0, lambda p_hat, m: (-1.0, 1.0), 0.5),
    )
)


# --- coefficients that reach zero -------------------------------------------------------------------------------------


def _divided(q: Tensor) -> Tensor:
    """Eq. 9 without 0/0 in value or gradient."""
    total = q.sum(-1, keepdim=True)
    return q / torch.where(total > 0, total, 1)


def _q_hat(p: Tensor, beta: Tensor) -> Tensor:
    """Eq. 7 to 9 for one node."""
    return _divided((torch.sigmoid(-beta) - (1 - p / p.max())).relu())


def _cut(p_hat: Tensor, beta: Tensor) -> Tensor:
    return (p_hat - torch.sigmoid(beta)).relu()


def _value_only(p: Tensor, beta: Tensor) -> Tensor:
    p_hat, t = p / p.max(), torch.sigmoid(beta)
    q = (p_hat - t) * (p_hat > t)  # a ReLU that lets NaN through: its own backward pass would drop it
    total = q.sum(-1, keepdim=True)
    return torch.where(total > 0, q / total, torch.zeros_like(q))


def _detached_max(p: Tensor, beta: Tensor) -> Tensor:
    return _divided((torch.sigmoid(-beta) - (1 - p / p.detach().max())).relu())


def _masked(p: Tensor, beta: Tensor) -> Tensor:
    p_hat = p / p.max()
    return _divided(p_hat * (p_hat > torch.sigmoid(beta)))


def _over_the_node(p: Tensor, beta: Tensor) -> Tensor:
    q = _cut(p / p.max(), beta)
    return q / q.sum()


def _not_divided(p: Tensor, beta: Tensor) -> Tensor:
    return _cut(p / p.max(), beta)


def _strongest_of_the_edge(p: Tensor, beta: Tensor) -> Tensor:
    return _divided(_cut(p / p.amax(-1, keepdim=True), beta))


def _not_normalised(p: Tensor, beta: Tensor) -> Tensor:
    return _divided(_cut(p, beta))


def _raw_threshold(p: Tensor, beta: Tensor) -> Tensor:
    return _divided((p / p.max() - beta).relu())


def _zero_over_zero(p: Tensor, beta: Tensor) -> Tensor:
    q = _cut(p / p.max(), beta)
    return q / q.sum(-1, keepdim=True)


def _saturated(p: Tensor, beta: Tensor) -> Tensor:
    return _divided(_cut(p / p.max(), beta))


def _small_number(p: Tensor, beta: Tensor) -> Tensor:
    q = (torch.sigmoid(-beta) - (1 - p / p.max())).relu()
    return q / (q.sum(-1, keepdim=True) + 1e-12)


_NAN_VALUE = "There is NaN: an edge with nothing left is 0/0 in Eq. 9. It must stay at 0."
_NAN_GRADIENT = (
    "The values are right, the gradient is NaN: where() chooses after 0/0 was computed, and 0 · NaN is NaN. "
    "Put where() on the denominator."
)
_WRONG_GRADIENT = "The values are right, the gradient is not: the strongest of Eq. 7 and t depend on p and β too."
_LOST = (
    "At β = 60 sigmoid(β) is 1 in floating point, and the strongest, which must be 1, is gone. "
    "1 − t = sigmoid(−β) is not rounded away: p̂ − t = (1 − t) − (1 − p̂)."
)

WRONG_COEFFICIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "That divides by the sum over the node. Eq. 9 sums over the operations of one edge.": _over_the_node,
    "These are q of Eq. 8. Eq. 9 is missing: what an edge keeps must sum to 1.": _not_divided,
    "Eq. 7 divides by the strongest of the node, not of each edge: else every edge keeps something.": (
        _strongest_of_the_edge
    ),
    "Eq. 7 is missing: divide by the node's strongest first.": _not_normalised,
    "The threshold is t = sigmoid(β), not β.": _raw_threshold,
    "Eq. 8 subtracts t from what stays: without that, coefficients jump when a connection goes.": _masked,
    _NAN_VALUE: _zero_over_zero,
    _NAN_GRADIENT: _value_only,
    _WRONG_GRADIENT: _detached_max,
    _LOST: _saturated,
}
"""Hints, and the answers that they are for."""

_VALUE_MISTAKES = (_over_the_node, _not_divided, _strongest_of_the_edge, _not_normalised, _raw_threshold, _masked)


def _check_sparse(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(5)
    cases = []
    for number in (-1.5, 0.3, 1.0, 2.0, 3.0):  # from nearly all to nearly nothing
        p = (1.5 * torch.randn(3, 4, generator=generator, dtype=torch.float64)).softmax(-1)
        cases.append((p, torch.tensor(number, dtype=torch.float64)))
    got = [answer(p, beta) for p, beta in cases]
    for value in got:
        if not isinstance(value, Tensor) or value.shape != (3, 4):
            return "Expected a tensor of p's shape, (edges, operations)."

    def equals(formula: Callable[[Tensor, Tensor], Tensor]) -> bool:
        expected = [formula(p, beta) for p, beta in cases]
        return all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(got, expected, strict=True))

    if not equals(_q_hat):
        for hint, wrong in WRONG_COEFFICIENTS.items():
            if wrong in _VALUE_MISTAKES and equals(wrong):
                return hint
        if any(bool(value.isnan().any()) for value in got):
            return _NAN_VALUE
        return "p̂ = p / the largest p of the node; q = relu(p̂ − sigmoid(β)); q̂ = q / the sum of q over the edge."
    for p, beta in cases:
        gradients = _gradients(answer, p, beta)
        if gradients is None:
            return "No gradient reaches p and β."
        if any(bool(gradient.isnan().any()) for gradient in gradients):
            return _NAN_GRADIENT
        expected = _gradients(_q_hat, p, beta)
        assert expected is not None
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(gradients, expected, strict=True)):
            return _WRONG_GRADIENT
    p, beta = cases[0][0].float(), torch.tensor(60.0)
    value = answer(p, beta)
    strongest = float(value.flatten()[p.argmax()])
    if math.isnan(strongest) or strongest == 0:
        return _LOST
    if not torch.allclose(value, (p == p.max()).float()):
        return (
            f"At β = 60 the strongest is {strongest:.2g} instead of 1, or another one is not 0. Its q is only "
            "1 − t = 9e-27 there: a small number in a denominator outweighs it."
        )
    gradients = _gradients(answer, p, beta)
    if gradients is None or not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return "At β = 60 the values are right, and the gradient is not finite."
    return None


def _gradients(formula: Callable[[Tensor, Tensor], Tensor], p: Tensor, beta: Tensor) -> tuple[Tensor, ...] | None:
    """Of a sum with fixed weights, with respect to p and β; None where none arrives."""
    p, beta = p.clone().requires_grad_(), beta.clone().requires_grad_()
    value = formula(p, beta)
    if not value.requires_grad:
        return None
    weights = torch.linspace(-1, 2, p.numel(), dtype=p.dtype).view_as(p)
    gradients = torch.autograd.grad((weights * value).sum(), (p, beta), allow_unused=True)
    return None if any(gradient is None for gradient in gradients) else gradients


register(
    Exercise(
        "entrannas.sparse",
        CHAPTER,
        _check_sparse,
        (
            *WRONG_COEFFICIENTS.values(),
            _small_number,
            lambda p, beta: _q_hat(p, beta).detach(),
            lambda p, beta: p,
            lambda p, beta: 0.0,
            0.5,
        ),
    )
)


# --- a Transit-cell ---------------------------------------------------------------------------------------------------

Operations = Mapping[int, Mapping[str, Callable[[Tensor], Tensor]]]

_TWO_ON_AN_EDGE = CellGenotype(
    (
        Edge(0, 2, "sep_conv_3x3"),
        Edge(0, 2, "skip_connect"),
        Edge(0, 3, "sep_conv_3x3"),
        Edge(1, 3, "sep_conv_3x3"),
        Edge(2, 3, "skip_connect"),
        Edge(0, 4, "sep_conv_3x3"),
        Edge(2, 4, "skip_connect"),
        Edge(3, 4, "max_pool_3x3"),
    ),
    nodes=3,
)
"""A cell as EnTranNAS-DST derives it: two connections between two nodes, one to four into a node."""


class _Counting:
    """Operations of every node that count how often they are called; each is another function."""

    def __init__(self, cell: CellGenotype) -> None:
        self.calls: Counter[tuple[int, str]] = Counter()
        names = sorted({edge.operation for edge in cell.edges} | {"avg_pool_3x3"})
        self.operations = {
            source: {
                name: self._operation(source, name, 1 + 0.1 * source + 0.03 * column)
                for column, name in enumerate(names)
            }
            for source in range(cell.inputs + cell.nodes - 1)
        }

    def _operation(self, source: int, name: str, factor: float) -> Callable[[Tensor], Tensor]:
        def operation(x: Tensor) -> Tensor:
            self.calls[source, name] += 1
            return torch.sin(factor * x) + factor

        return operation


def _running(
    owner: Callable[[Edge], Any], join: Callable[[Tensor], Tensor]
) -> Callable[[Sequence[Tensor], Operations, CellGenotype], list[Tensor]]:
    """A cell that computes one feature for each owner."""

    def run(inputs: Sequence[Tensor], operations: Operations, cell: CellGenotype) -> list[Tensor]:
        nodes = list(inputs)
        features: dict[Any, Tensor] = {}
        for node in range(cell.inputs, cell.inputs + cell.nodes):
            for edge in cell.into(node):
                if owner(edge) not in features:
                    features[owner(edge)] = operations[edge.source][edge.operation](nodes[edge.source])
            nodes.append(join(torch.stack([features[owner(edge)] for edge in cell.into(node)])))
        return nodes[cell.inputs :]

    return run


_transit = _running(lambda edge: (edge.source, edge.operation), lambda parts: parts.sum(0))
"""Eq. 6, its second case."""


def _check_transit(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(6)
    for cell in (DARTS_V2.normal, _TWO_ON_AN_EDGE):
        inputs = [torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
        expected = _transit(inputs, _Counting(cell).operations, cell)
        counting = _Counting(cell)
        got = answer(list(inputs), counting.operations, cell)
        if not isinstance(got, list | tuple) or not all(isinstance(node, Tensor) for node in got):
            return "Expected a list of tensors, one for each intermediate node."
        if len(got) == cell.inputs + cell.nodes:
            return "Return the intermediate nodes only, without the two inputs."
        if len(got) != cell.nodes:
            return f"Expected {cell.nodes} intermediate nodes, got {len(got)}."
        used = {(edge.source, edge.operation) for edge in cell.edges}
        for (source, name), calls in counting.calls.items():
            if (source, name) not in used:
                return f"{name} of node {source} was computed, but the cell does not have it: a Transit-cell skips it."
            if calls > 1:
                return f"{name} of node {source} was computed {calls} times: keep its feature for the later nodes."
        for source, name in sorted(used - set(counting.calls)):
            return f"{name} of node {source} was never computed. The same operation of another node is another one."
        for number, (node, right) in enumerate(zip(got, expected, strict=True), start=cell.inputs):
            if node.shape != right.shape or not torch.allclose(node, right):
                return f"Node {number} is wrong: it is the plain sum of the operations of cell.into({number})."
    return None


def _computes_all(inputs: Sequence[Tensor], operations: Operations, cell: CellGenotype) -> list[Tensor]:
    nodes = _transit(inputs, operations, cell)
    for source, node in enumerate([*inputs, *nodes[:-1]]):
        for name in set(operations[source]) - {edge.operation for edge in cell.edges if edge.source == source}:
            operations[source][name](node)
    return nodes


WRONG_TRANSITS: dict[str, Callable[[Sequence[Tensor], Operations, CellGenotype], Any]] = {
    "keep its feature for the later nodes": _running(lambda edge: edge, lambda parts: parts.sum(0)),
    "a Transit-cell skips it": _computes_all,
    "The same operation of another node is another one": _running(
        lambda edge: edge.operation, lambda parts: parts.sum(0)
    ),
    "is the plain sum of the operations": _running(
        lambda edge: (edge.source, edge.operation), lambda parts: parts.mean(0)
    ),
    "without the two inputs": lambda inputs, operations, cell: [*inputs, *_transit(inputs, operations, cell)],
    "Expected a list of tensors": lambda inputs, operations, cell: torch.cat(_transit(inputs, operations, cell), 1),
}
"""Parts of hints, and the answers that they are for."""

register(
    Exercise(
        "entrannas.transit",
        CHAPTER,
        _check_transit,
        (
            *WRONG_TRANSITS.values(),
            lambda inputs, operations, cell: inputs[:1],
            lambda inputs, operations, cell: None,
            4,
        ),
    )
)


# --- what Transit-cells save ------------------------------------------------------------------------------------------

_SIZES = (1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4)


def _savings(
    sizes: Sequence[float] = _SIZES, engines: Sequence[int] = (0, 2), candidates: int = 98, transit: int = 8
) -> tuple[float, float]:
    """Candidate features of DARTS over those of EnTranNAS, without and with feature sharing."""
    total = sum(sizes)
    engine = sum(sizes[place] for place in engines)
    without, shared = (candidates * total / (n * engine + transit * (total - engine)) for n in (98, 35))
    return without, shared


WRONG_SAVINGS: dict[str, tuple[float, float]] = {
    "A feature is smaller in later cells: weigh the cells 0 and 1 by 1, 2 to 4 by 1/2, 5 to 7 by 1/4.": _savings(
        (1,) * 8
    ),
    "Channels double at a reduction: half of the values are left, not a quarter.": _savings(
        (1, 1, *(1 / 4,) * 3, *(1 / 16,) * 3)
    ),
    "A reduction cell's candidates have the new size already: cell 2 counts 1/2, cell 5 counts 1/4.": _savings(
        (1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 4, 1 / 4)
    ),
    "There are two Engine-cells: the first normal one and the first reduction cell.": _savings(engines=(0,)),
    "Those are the last cells of each kind. The paper searches in the first ones, 0 and 2.": _savings(engines=(5, 7)),
    "The first reduction cell is cell 2.": _savings(engines=(0, 1)),
    "Transit-cells compute features too, 8 each.": _savings(transit=0),
    "Compare with DARTS, which does not share, both times.": (_savings()[0], _savings(candidates=35)[1]),
    "Without sharing first, then with it.": (_savings()[1], _savings()[0]),
    "How many times fewer: a number above 1.": (1 / _savings()[0], 1 / _savings()[1]),
}
"""Hints, and the answers that they are for."""


def _check_memory(answer: Any) -> str | None:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(n, int | float) for n in answer):
        return "Give two numbers as a tuple: (without sharing, with sharing)."
    right = _savings()

    def near(number: float, other: float) -> bool:
        return abs(number - other) < 0.011

    if all(near(a, b) for a, b in zip(answer, right, strict=True)):
        return None
    for hint, wrong in WRONG_SAVINGS.items():
        if all(near(a, b) for a, b in zip(answer, wrong, strict=True)):
            return hint
    if near(answer[0], right[0]):
        return "The first is right. With sharing an Engine-cell has 35 features, and a Transit-cell still 8."
    return "Sum size × features over the 8 cells: 98 in every cell for DARTS; 98 in cells 0 and 2, 8 elsewhere."


register(
    Exercise(
        "entrannas.memory",
        CHAPTER,
        _check_memory,
        (*WRONG_SAVINGS.values(), (_savings()[0], 2.8), (2.0, 3.5), 2.46),
        takes_function=False,
    )
)


# --- another sparse relaxation ----------------------------------------------------------------------------------------


def _projection(z: Tensor) -> Tensor:
    """The nearest point of the simplex, by bisection on the threshold; in float64."""
    z = z.double()
    low, high = z.max() - 1, z.max()
    for _ in range(80):
        middle = (low + high) / 2
        if (z - middle).relu().sum() > 1:
            low = middle
        else:
            high = middle
    return (z - (low + high) / 2).relu()


_COMPETES = "A node's coefficients must sum to 1 over all its connections, not over each edge alone."
_NEVER_ZERO = "A softmax over the node's connections is never 0. Sparsemax projects α onto the simplex."
_NOT_NEAREST = (
    "Not the nearest point of the simplex: subtract one threshold from all α of the node, so that what stays above 0 "
    "sums to 1."
)
_DETACHED = "The values are right, the gradient is not: the threshold depends on the α of all connections that stay."
_DERIVES = "derive() keeps all connections whose coefficient is not zero, and no others."


def _check_sparsemax(answer: type[Relaxation]) -> str | None:
    if not (isinstance(answer, type) and issubclass(answer, Relaxation)):
        return "Give the class itself, a subclass of Relaxation."
    space = Space(("skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=3)
    shape = (len(space.edges), len(space.operations))
    relaxation = answer(space)
    alphas = [parameter for parameter in relaxation.parameters() if tuple(parameter.shape) == shape]
    if len(alphas) != 1:
        return f"Expected one nn.Parameter α of shape {shape}."
    (alpha,) = alphas
    generator = torch.Generator().manual_seed(7)
    for spread in (1.0, 0.3, 0.01, 0.0, 10.0):
        with torch.no_grad():
            alpha.copy_(spread * torch.randn(shape, generator=generator))
        hint = _check_projection(relaxation, alpha) or _check_derived(relaxation)
        if hint:
            return hint
    if not relaxation.sparse:
        return "Set sparse = True, so that Engine-cells do not compute what is zero."
    return None


def _check_projection(relaxation: Relaxation, alpha: Tensor) -> str | None:
    space = relaxation.space
    coefficients = relaxation.coefficients()
    if not isinstance(coefficients, Tensor) or coefficients.shape != alpha.shape:
        return f"coefficients() must be (edges, operations) = {tuple(alpha.shape)}."
    incoming = [len(space.sources(node)) for node in range(space.inputs, space.inputs + space.nodes)]
    nodes = coefficients.detach().split(incoming)
    if bool((coefficients < 0).any()):
        return "A coefficient is negative."
    if not all(math.isclose(float(node.sum()), 1, abs_tol=1e-4) for node in nodes):
        return _COMPETES
    expected = [_projection(a).view_as(a) for a in alpha.detach().split(incoming)]
    if not torch.allclose(coefficients, torch.cat(expected).float(), atol=1e-4):
        softmax = [a.flatten().softmax(0).view_as(a) for a in alpha.detach().split(incoming)]
        return _NEVER_ZERO if torch.allclose(coefficients, torch.cat(softmax), atol=1e-4) else _NOT_NEAREST
    if not coefficients.requires_grad:
        return "No gradient reaches α."
    weights = torch.linspace(-1, 2, alpha.numel()).view_as(alpha)
    (gradient,) = torch.autograd.grad((weights * coefficients).sum(), alpha)
    # On the connections that stay the projection only takes off the mean; elsewhere it is constant.
    right = [
        torch.where(node > 0, w - w[node > 0].mean(), 0) for w, node in zip(weights.split(incoming), nodes, strict=True)
    ]
    return None if torch.allclose(gradient, torch.cat(right), atol=1e-4) else _DETACHED


def _check_derived(relaxation: Relaxation) -> str | None:
    cell = relaxation.derive()
    if not isinstance(cell, CellGenotype):
        return "derive() must return a CellGenotype."
    return None if cell == _non_zero(relaxation) else _DERIVES


def _non_zero(relaxation: Relaxation) -> CellGenotype:
    space = relaxation.space
    kept = relaxation.coefficients().detach().nonzero().tolist()
    places = [(space.edges[row], space.operations[column]) for row, column in kept]
    edges = tuple(Edge(source, target, name) for (source, target), name in places)
    return CellGenotype(edges, space.nodes, space.inputs)


class _NodeSoftmax(Relaxation):
    """A softmax over all connections of a node, as the base of answers that go wrong elsewhere."""

    sparse = True

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.alpha = nn.Parameter(torch.zeros(len(space.edges), len(space.operations)))

    def of_a_node(self, z: Tensor) -> Tensor:
        return z.flatten().softmax(0).view_as(z)

    def coefficients(self) -> Tensor:
        space = self.space
        incoming = [len(space.sources(node)) for node in range(space.inputs, space.inputs + space.nodes)]
        return torch.cat([self.of_a_node(node) for node in self.alpha.split(incoming)])

    def derive(self) -> CellGenotype:
        return _non_zero(self)


class _RightSparsemax(_NodeSoftmax):
    def of_a_node(self, z: Tensor) -> Tensor:
        kept = _projection(z.detach()).view_as(z) > 0
        return torch.where(kept, z - (z[kept].sum() - 1) / kept.sum(), 0)


class _EdgeSparsemax(_RightSparsemax):
    def coefficients(self) -> Tensor:
        return torch.stack([self.of_a_node(edge) for edge in self.alpha])


class _CutAndDivided(_NodeSoftmax):
    def of_a_node(self, z: Tensor) -> Tensor:
        q = (z - z.max() + 1).relu()
        return q / q.sum()


class _DetachedThreshold(_NodeSoftmax):
    def of_a_node(self, z: Tensor) -> Tensor:
        kept = _projection(z.detach()).view_as(z) > 0
        return torch.where(kept, z - ((z[kept].sum() - 1) / kept.sum()).detach(), 0)


class _TwoEdges(_RightSparsemax):
    def derive(self) -> CellGenotype:
        return strongest_edges(self.coefficients(), self.space)


class _ComputesZeros(_RightSparsemax):
    sparse = False


WRONG_RELAXATIONS: dict[str, type[Relaxation]] = {
    _NEVER_ZERO: _NodeSoftmax,
    _COMPETES: _EdgeSparsemax,
    _NOT_NEAREST: _CutAndDivided,
    _DETACHED: _DetachedThreshold,
    _DERIVES: _TwoEdges,
    "Set sparse = True": _ComputesZeros,
}
"""Hints, and the answers that they are for."""

register(
    Exercise(
        "entrannas.sparsemax",
        CHAPTER,
        _check_sparsemax,
        (*WRONG_RELAXATIONS.values(), SparseRelaxation, AnnealedSoftmax, nn.Linear, 0.5),
    )
)
