"""Chapter 2's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasbook.exercises.registry import Exercise, register
from nasbook.genotypes import DARTS_V2, CellGenotype, Space
from nasbook.networks import parameters_of
from nasbook.supernets import AnyOutputEdges, Relaxation, connected_cell

CHAPTER = "02-stretchable-cells"


# --- where a mixed-level search ends ----------------------------------------------------------------------------------


def _check_mixed(answer: Callable[[float], float]) -> str | None:
    weights = (0.5, 1.0, 2.0, 4.0)
    got = [answer(weight) for weight in weights]

    def equals(formula: Callable[[float], float]) -> bool:
        return all(math.isclose(a, formula(weight), rel_tol=1e-9) for a, weight in zip(got, weights, strict=True))

    if equals(lambda weight: 2 * weight / (2 + weight)):
        return None
    if equals(lambda weight: 2 / (1 + 2 * weight)):
        return "That has the weight on the training loss. Eq. 18 has it on the validation loss."
    if equals(lambda weight: 2 * weight / (1 + weight)):
        return "That is the chapter's problem, with α²/2; here the training loss has α²."
    if equals(lambda weight: 2.0):
        return "That is the end without the training loss, as DARTS has it."
    return "The weights end at w = α. There, set ∂L_train/∂α + λ·∂L_val/∂α to 0, with w held fixed in both."


register(
    Exercise(
        "stretchable.mixed",
        CHAPTER,
        _check_mixed,
        (
            lambda weight: 2 / (1 + 2 * weight),
            lambda weight: 2 * weight / (1 + weight),
            lambda weight: 2.0,
            lambda weight: 0.0,
            1.0,
        ),
    )
)


# --- how many variables, how many edges -------------------------------------------------------------------------------


def _check_count(answer: Any) -> str | None:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(type(number) is int for number in answer):
        return "Give two whole numbers as a tuple: (variables, edges)."
    variables, edges = answer
    if answer == (30, 10):
        return None
    if variables == 35:
        return "The other input is no target: inputs have no input edges, whatever Eq. 7 says."
    if variables == 20:
        return "Each of the two inputs has variables of its own."
    if variables == 31 or edges in (11, 12):
        return "The last node but one has one later node: there is no pair, no variable, and its edge goes."
    if variables != 30:
        return "A node with n later nodes has n(n − 1)/2 pairs. The inputs have 5 later nodes each, the others 4 to 1."
    return "Every node that has a pair to choose keeps exactly two edges. How many nodes have one?"


register(
    Exercise(
        "stretchable.count",
        CHAPTER,
        _check_count,
        ((35, 10), (20, 8), (31, 11), (30, 11), (30, 12), (30, 14), (16, 8), 30),
        takes_function=False,
    )
)


# --- merged probabilities by hand -------------------------------------------------------------------------------------


def _check_merge(answer: Callable[[Tensor], Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        beta = torch.randn(3, generator=generator, dtype=torch.float64)
        p = beta.softmax(0)
        sums = torch.stack([p[0] + p[1], p[0] + p[2], p[1] + p[2]])
        got = answer(beta)
        if not isinstance(got, Tensor) or got.shape != (3,):
            return "Expected a tensor with three entries, one for each later node."
        if torch.allclose(got, sums):
            return "The merged probabilities are right; the factor of Eq. 10 is missing."
        if torch.allclose(got, p) or torch.allclose(got, 1.5 * p):
            return "These are the pairs' probabilities. An edge is in two of the three pairs: add them."
        if torch.allclose(got, 3 * sums) or torch.allclose(got, 2 * sums):
            return "The factor is the number of all pairs over the number of pairs with the edge, 3/2."
        if not torch.allclose(got, 1.5 * sums, rtol=1e-9, atol=1e-12):
            return "p is the softmax of β over the pairs (3,4), (3,5), (4,5); node 3 is in the first two, and so on."
    return None


register(
    Exercise(
        "stretchable.merge",
        CHAPTER,
        _check_merge,
        (
            lambda beta: beta.softmax(0),
            lambda beta: 1.5 * beta.softmax(0),
            lambda beta: 1 - beta.softmax(0).flip(0),
            lambda beta: 3 * (1 - beta.softmax(0).flip(0)),
            lambda beta: 1.5 * (1 - beta.softmax(0)),
            lambda beta: 0.5,
        ),
    )
)


# --- the factor for any number of edges -------------------------------------------------------------------------------


def _check_factor(answer: Callable[[int, int], float]) -> str | None:
    cases = [(n, k) for n in range(2, 8) for k in range(1, n + 1)]
    got = [answer(n, k) for n, k in cases]

    def equals(formula: Callable[[int, int], float]) -> bool:
        return all(math.isclose(value, formula(n, k), rel_tol=1e-9) for value, (n, k) in zip(got, cases, strict=True))

    if equals(lambda n, k: n / k):
        return None
    if equals(lambda n, k: k / n):
        return "Turned round: at uniform β the merged probability is k/n, and the factor must bring it to 1."
    if all(math.isclose(value, n / 2) for value, (n, k) in zip(got, cases, strict=True) if k == 2):
        return "Right for pairs. With k edges, C(n − 1, k − 1) of the C(n, k) choices have a given edge."
    if equals(math.comb):
        return "That is the number of choices. Divide it by the number of choices that have a given edge."
    if equals(lambda n, k: math.comb(n, k) / math.comb(n, k - 1)):
        return "Once an edge is chosen, k − 1 are left, from n − 1 nodes."
    return "Count the choices of k from n, and those among them that have one given edge; divide."


register(
    Exercise(
        "stretchable.factor",
        CHAPTER,
        _check_factor,
        (
            lambda n, k: math.comb(n, 2) / (n - 1),
            lambda n, k: k / n,
            lambda n, k: math.comb(n, k),
            lambda n, k: math.comb(n, k) / math.comb(n, k - 1),
            lambda n, k: 2.0,
            1.5,
        ),
    )
)


# --- the penalty of one node ------------------------------------------------------------------------------------------


Predecessors = Sequence[Tensor]


def _over_predecessors(
    join: Callable[[Iterator[Tensor]], Any], term: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Predecessors, Predecessors], Any]:
    return lambda p, has: join(term(q, h) for q, h in zip(p, has, strict=True))


_penalty = _over_predecessors(math.prod, lambda q, has: 1 - q[has].max() / q.max())
"""Eq. 14 without its outer sum."""

WRONG_PENALTIES = {
    "A sum punishes every predecessor that does not choose the node; one that does must be enough.": (
        _over_predecessors(sum, lambda q, has: 1 - q[has].max() / q.max())
    ),
    "One minus the ratio: a predecessor that chooses the node must give 0.": (
        _over_predecessors(math.prod, lambda q, has: q[has].max() / q.max())
    ),
    "Divide by the largest probability of that predecessor, so that its choice gives exactly 0.": (
        _over_predecessors(math.prod, lambda q, has: 1 - q[has].max())
    ),
    "Eq. 14 compares the best choice with the edge to the best of all choices, not sums.": (
        _over_predecessors(math.prod, lambda q, has: 1 - q[has].sum())
    ),
}
"""Hints, and the answers that they are for."""


def _check_penalty(answer: Callable[[Predecessors, Predecessors], Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(3)
    p = [torch.randn(8, generator=generator, dtype=torch.float64).softmax(0) for _ in range(3)]
    has = [torch.arange(8) % 2 == 1 for _ in range(3)]
    for number, one in enumerate(p):  # nobody chooses the node
        one[2 * number] = one.max() + 0.1
        one /= one.sum()
    product = answer(p, has)
    if product is None:
        return "The function returns nothing yet: return the product over the earlier nodes."
    got = float(product)
    for hint, wrong in WRONG_PENALTIES.items():
        if math.isclose(got, float(wrong(p, has))):
            return hint
    if not math.isclose(got, float(_penalty(p, has)), rel_tol=1e-9):
        return "For each predecessor: 1 − max p over the choices with the edge / max p over all; then multiply."
    p[1] = torch.where(torch.arange(8) == 3, 0.9, 0.1 / 7).double()  # now one predecessor chooses it
    if float(answer(p, has)) != 0:
        return "One predecessor chooses the node now, and your penalty is not exactly 0."
    return None


register(
    Exercise(
        "stretchable.penalty", CHAPTER, _check_penalty, (*WRONG_PENALTIES.values(), lambda p, has: 0.0, 0.0)
    )
)


# --- one variable an edge ---------------------------------------------------------------------------------------------


def _check_independent(answer: type[Relaxation]) -> str | None:
    if not (isinstance(answer, type) and issubclass(answer, Relaxation)):
        return "Give the class itself, a subclass of Relaxation."
    space = Space(("skip_connect", "sep_conv_3x3"), nodes=3)
    edges = space.edges
    relaxation = answer(space)
    parameters = {tuple(parameter.shape): parameter for parameter in relaxation.parameters()}
    if (len(edges), 2) not in parameters or (len(edges),) not in parameters:
        return f"Expected two nn.Parameters: α of shape ({len(edges)}, 2) and β of shape ({len(edges)},)."
    alpha, beta = parameters[len(edges), 2], parameters[len(edges),]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        beta.zero_()
    coefficients = relaxation.coefficients()
    if coefficients.shape != (len(edges), 2):
        return f"coefficients() must be (edges, operations) = ({len(edges)}, 2), got {tuple(coefficients.shape)}."
    if not torch.allclose(coefficients.sum(-1), torch.ones(len(edges))):
        return "At β = 0 the coefficients of an edge must sum to 1: a factor is missing, or one too many."
    with torch.no_grad():
        alpha.copy_(torch.randn(alpha.shape, generator=generator))
        beta.copy_(torch.randn(beta.shape, generator=generator))
    coefficients = relaxation.coefficients()
    if not torch.allclose(coefficients / coefficients.sum(-1, keepdim=True), alpha.softmax(-1), rtol=1e-4):
        return "Along an edge, the coefficients must be in proportion to the softmax of α."

    # The same as codes whose variables add up: β of a code = the sum of β over its edges.
    codes = AnyOutputEdges(space)
    with torch.no_grad():
        codes.alpha.copy_(alpha)
        codes.beta.copy_(
            torch.stack([sum((beta[edges.index(e)] for e in b), beta.new_zeros(())) for s in codes.choices for b in s])
        )
    if not torch.allclose(coefficients, codes.coefficients(), rtol=1e-4, atol=1e-6):
        return "Each edge is on with probability sigmoid(β) of its own β, whatever the others do; times 2."
    if not all(parameter.requires_grad for parameter in parameters.values()) or not coefficients.requires_grad:
        return "No gradient reaches α and β."
    return _check_independent_cells(relaxation, beta, alpha)


def _check_independent_cells(relaxation: Relaxation, beta: Tensor, alpha: Tensor) -> str | None:
    edges = relaxation.space.edges
    for chosen in (
        {(0, 2), (1, 2), (2, 3), (0, 4), (3, 4)},
        {(0, 2), (1, 3), (1, 4)},
        {(1, 2), (2, 4), (3, 4)},  # node 3 has no input edge
    ):
        with torch.no_grad():
            beta.copy_(torch.tensor([1.0 if edge in chosen else -1.0 for edge in edges]))
        cell = relaxation.derive()
        if not isinstance(cell, CellGenotype):
            return "derive() must return a CellGenotype; connected_cell(edges, weights, space) makes one."
        if cell != connected_cell(chosen, alpha, relaxation.space):
            return "derive() keeps the edges whose probability is above 1/2, each with its strongest operation."
    return None


class _Competing(Relaxation):
    """A softmax over all edges, which still compete."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.alpha = nn.Parameter(torch.zeros(len(space.edges), len(space.operations)))
        self.beta = nn.Parameter(torch.zeros(len(space.edges)))

    def edge(self) -> Tensor:
        return self.beta.softmax(0) * len(self.space.edges)

    def coefficients(self) -> Tensor:
        return self.edge()[:, None] * self.alpha.softmax(-1)

    def derive(self) -> CellGenotype:
        chosen = [edge for edge, b in zip(self.space.edges, self.beta.tolist(), strict=True) if b > 0]
        return connected_cell(chosen, self.alpha, self.space)


class _Unscaled(_Competing):
    def edge(self) -> Tensor:
        return self.beta.sigmoid()


class _KeepsAll(_Competing):
    def edge(self) -> Tensor:
        return 2 * self.beta.sigmoid()

    def derive(self) -> CellGenotype:
        return connected_cell(self.space.edges, self.alpha, self.space)


register(
    Exercise(
        "stretchable.independent",
        CHAPTER,
        _check_independent,
        (_Competing, _Unscaled, _KeepsAll, AnyOutputEdges, nn.Linear, 0.5),
    )
)


# --- channels for a budget --------------------------------------------------------------------------------------------

BUDGET = 1_800_000
CELLS = 8
CHANNELS = 45
"""The answer; ``channels_for`` finds it too, in half a second."""


def _check_budget(answer: Any) -> str | None:
    if type(answer) is not int or answer < 1:
        return f"Expected a number of channels, got {answer!r}."
    if answer == CHANNELS:
        return None
    got = parameters_of(DARTS_V2, answer, CELLS)
    if math.isclose(answer, 36 * BUDGET / parameters_of(DARTS_V2, 36, CELLS), abs_tol=1):
        return f"With C = {answer} it is {got:,}: the number of parameters grows with the square of C."
    if abs(answer - CHANNELS) == 1:
        return f"Very near: with C = {answer} it is {got:,}, but one neighbour comes nearer to {BUDGET:,}."
    return f"With C = {answer} it is {got:,}; wanted is the C that comes nearest to {BUDGET:,}."


register(
    Exercise(
        "stretchable.budget",
        CHAPTER,
        _check_budget,
        (36, 56, 44, 46, 100, 0, 48.5),
        takes_function=False,
    )
)
