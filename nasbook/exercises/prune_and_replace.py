"""Chapter 5's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nasbook.exercises.registry import Exercise, register
from nasbook.growth import morph
from nasbook.operations import (
    CONSTRAINTS,
    MORPHISMS,
    Configuration,
    Constraints,
    MorphableConvolution,
    is_morphable,
    morphisms_of,
    obtainable,
)
from nasbook.operations.batch_norms import batch_norms, kept_statistics
from nasbook.operations.morphable import LAYER, widened_place
from nasbook.supernets import Life, possible_children

CHAPTER = "05-prune-and-replace"


# --- sizes of spaces --------------------------------------------------------------------------------------------------

_STATED = 9.3e9
"""Cells of DARTS' space, as the paper has it."""
_SPACES = (180 * 15**8, 180 * 8**8, (15 / 8) ** 8, (_STATED / 180) ** (1 / 8))
_NUMBERED = ("first", "second", "third", "fourth")

WRONG_SPACES: dict[str, tuple[float, float, float, float]] = {
    "A node also chooses which two of its inputs it reads, in C(n, 2) ways.": (
        *(15**8, 8**8, (15 / 8) ** 8),
        _STATED ** (1 / 8),
    ),
    "Each of a node's two edges has an operation of its own: K², not K.": (
        *(180 * 15**4, 180 * 8**4, (15 / 8) ** 4),
        (_STATED / 180) ** (1 / 4),
    ),
    "A node's two inputs are a set, not an ordered pair: n(n − 1)/2 of them.": (
        *(2880 * 15**8, 2880 * 8**8, (15 / 8) ** 8),
        (_STATED / 2880) ** (1 / 8),
    ),
    "That is for both cells; asked is one cell.": (
        *((180 * 15**8) ** 2, (180 * 8**8) ** 2, (15 / 8) ** 16),
        (_STATED**0.5 / 180) ** (1 / 8),
    ),
    "The search has 14 edges, but two a node are left in a cell: 8.": (
        *(15**14, 8**14, (15 / 8) ** 14),
        _STATED ** (1 / 14),
    ),
    "That is a cell with five nodes. There are four: n goes from 2 to 5.": (
        *(2700 * 15**10, 2700 * 8**10, (15 / 8) ** 10),
        (_STATED / 2700) ** (1 / 10),
    ),
    "The paper counts all candidates: 12 convolutions and 3 others; and DARTS' eight, the zero operation too.": (
        *(180 * 12**8, 180 * 7**8, (12 / 7) ** 8),
        (_STATED / 180) ** (1 / 8),
    ),
    "That takes the paper's 9.3·10⁹ for granted. Its own formula gives another number.": (
        *(180 * 15**8, int(_STATED), 180 * 15**8 / _STATED),
        8.0,
    ),
    "Don't round to a whole number: that there is none is the point.": (180 * 15**8, 180 * 8**8, (15 / 8) ** 8, 9.0),
}
"""Hints, and answers with the mistake in as many places as it can be made in."""


def _check_space(answer: Any) -> str | None:
    if (
        not isinstance(answer, tuple)
        or len(answer) != 4
        or not all(type(number) is int for number in answer[:2])
        or not all(type(number) in (int, float) for number in answer[2:])
    ):
        return "Give four numbers as a tuple, the first two whole: (cells of DL, cells of DARTS, factor, operations)."
    for place, (number, right) in enumerate(zip(answer, _SPACES, strict=True)):
        if not _same_number(number, right):
            hints = (hint for hint, wrong in WRONG_SPACES.items() if _same_number(number, wrong[place]))
            return f"The {_NUMBERED[place]} number is not right. " + next(
                hints, "Node n chooses 2 of its n inputs, and one of K operations for each: multiply over n = 2..5."
            )
    return None


def _same_number(number: float, other: float) -> bool:
    """Whole numbers exactly, others within half a percent."""
    if isinstance(number, int) and isinstance(other, int):
        return number == other
    return math.isclose(number, other, rel_tol=5e-3)


register(
    Exercise(
        "prdarts.space",
        CHAPTER,
        _check_space,
        (*WRONG_SPACES.values(), (_SPACES[0], _SPACES[1], 150, _SPACES[3]), (15, 8, 1.875, 9.2), _SPACES[:2], 153),
        takes_function=False,
    )
)


# --- a search over morphisms ------------------------------------------------------------------------------------------

Steps = Callable[[Constraints, int], Any]
Neighbours = Callable[[Configuration, Constraints], Iterable[Configuration]]


def _new_ones(neighbours: Neighbours) -> Steps:
    """Breadth-first, with another idea of who the neighbours are."""

    def steps(constraints: Constraints, number: int) -> list[int]:
        seen, frontier = {Configuration(3)}, {Configuration(3)}
        found = [1]
        for _ in range(number):
            frontier = {child for one in frontier for child in neighbours(one, constraints)} - seen
            seen |= frontier
            found.append(len(frontier))
        return found

    return steps


def _available(one: Configuration, constraints: Constraints) -> list[Configuration]:
    return list(morphisms_of(one, constraints).values())


def _with_widths(widen: Callable[[tuple[int, ...]], Iterable[tuple[int, ...]]]) -> Neighbours:
    """Neighbours with another way to widen."""

    def neighbours(one: Configuration, constraints: Constraints) -> list[Configuration]:
        others = [child for name, child in morphisms_of(one, constraints).items() if name != "wider"]
        wider = [replace(one, expansions=expansions) for expansions in widen(one.expansions)]
        return [*others, *(child for child in wider if constraints.allow(child))]

    return neighbours


def _one_more(expansions: tuple[int, ...], place: int) -> tuple[int, ...]:
    return (*expansions[:place], expansions[place] + 1, *expansions[place + 1 :])


def _last_of_equals(expansions: tuple[int, ...]) -> list[tuple[int, ...]]:
    if not expansions:
        return []
    return [_one_more(expansions, len(expansions) - 1 - expansions[::-1].index(min(expansions)))]


def _without(*names: str) -> Neighbours:
    return lambda one, constraints: [
        child for name, child in morphisms_of(one, constraints).items() if name not in names
    ]


def _less_strict(**changes: Any) -> Neighbours:
    return lambda one, constraints: _available(one, replace(constraints, **changes))


def _all_ways(constraints: Constraints, number: int) -> list[int]:
    """Ways through the space, not configurations."""
    frontier = [Configuration(3)]
    found = [1]
    for _ in range(number):
        frontier = [child for one in frontier for child in _available(one, constraints)]
        found.append(len(frontier))
    return found


def _at_the_end(constraints: Constraints, number: int) -> list[int]:
    """Configurations at the end of a walk of so many steps, those that were there before among them."""
    frontier = {Configuration(3)}
    found = [1]
    for _ in range(number):
        frontier = {child for one in frontier for child in _available(one, constraints)}
        found.append(len(frontier))
    return found


def _in_all(constraints: Constraints, number: int) -> list[int]:
    found = _new_ones(_available)(constraints, number)
    return [sum(found[: place + 1]) for place in range(len(found))]


WRONG_SEARCHES: dict[str, Steps] = {
    "Each way is counted. Two ways may lead to the same configuration: keep sets.": _all_ways,
    "A walk may return. Leave out what an earlier step has reached.": _at_the_end,
    "These are sums. Count what each step reaches for the first time.": _in_all,
    "Widening enlarges the smallest expansion, not any of them.": _new_ones(
        _with_widths(lambda expansions: [_one_more(expansions, place) for place in range(len(expansions))])
    ),
    "Of equally small expansions the leading one is widened, not the last.": _new_ones(_with_widths(_last_of_equals)),
    "Widening takes the smallest expansion, not always the first.": _new_ones(
        _with_widths(lambda expansions: [_one_more(expansions, 0)] if expansions else [])
    ),
    "Without an expansion there is nothing to widen.": _new_ones(
        _with_widths(
            lambda expansions: [
                _one_more(expansions, expansions.index(min(expansions))) if expansions else (2,),
            ]
        )
    ),
    "Kernels also get smaller, down to min_kernel.": _new_ones(_without("smaller-kernel")),
    "No step inserts a layer: (), (1,), (1, 1), …": _new_ones(_without("deeper")),
    "No step widens: (1,) becomes (2,), and (1, 1) becomes (2, 1).": _new_ones(_without("wider")),
    "No step changes the dilation.": _new_ones(_without("larger-dilation")),
    "max_width is not kept.": _new_ones(_less_strict(max_width=None)),
    "max_depth is not kept.": _new_ones(_less_strict(max_depth=None)),
    "Without dilated_pointwise, kernel 1 has no dilation above 1.": _new_ones(_less_strict(dilated_pointwise=True)),
}
"""Hints, and the answers that they are for."""

_SEARCH_CASES: tuple[tuple[Constraints, int], ...] = (
    *((constraints, 5) for constraints in CONSTRAINTS.values()),
    (Constraints(min_kernel=1, dilated_pointwise=False), 4),
    (Constraints(max_kernel=3, max_dilation=1, max_depth=None, max_width=3), 6),
    (Constraints(max_kernel=9, max_dilation=3, max_depth=3, max_width=None), 6),
    (CONSTRAINTS["UR"], 0),
)


def _check_search(answer: Steps) -> str | None:
    got = [answer(*case) for case in _SEARCH_CASES]
    for (_, number), found in zip(_SEARCH_CASES, got, strict=True):
        if not isinstance(found, list | tuple) or len(found) != number + 1:
            return f"Expected a list with {number + 1} numbers for {number} steps: step 0 has the start alone."
    right = [[len(new) for new in obtainable(*case)] for case in _SEARCH_CASES]
    got = [list(found) for found in got]
    if got == right:
        return None
    for hint, wrong in WRONG_SEARCHES.items():
        if got == [wrong(*case) for case in _SEARCH_CASES]:
            return hint
    place = next(i for i, found in enumerate(got) if found != right[i])
    step = next(i for i, (a, b) in enumerate(zip(got[place], right[place], strict=True)) if a != b)
    return (
        f"Not at step {step} of {_SEARCH_CASES[place][0]}: you count {got[place][step]} new ones, and there are "
        f"{right[place][step]}. Write down those of the first two steps by hand."
    )


register(
    Exercise(
        "prdarts.enumerate",
        CHAPTER,
        _check_search,
        (
            *WRONG_SEARCHES.values(),
            _new_ones(lambda one, constraints: [replace(one, kernel=one.kernel + 2)]),
            lambda constraints, steps: sum(len(new) for new in obtainable(constraints, steps)),
            lambda constraints, steps: [1],
            lambda constraints, steps: None,
            80,
        ),
    )
)


# --- what a deeper child computes -------------------------------------------------------------------------------------

Outputs = Callable[[Tensor, float], Any]

EXACT = frozenset({"larger-kernel", "wider"})
"""The morphisms that leave every convolution's function as it is."""
_NOT_EXACT = {
    "deeper": "Both convolutions of `deeper` are the identity; but what stands before them, and behind?",
    "smaller-kernel": "`smaller-kernel` cuts off a margin; it is zero only where the kernel has just grown.",
    "larger-dilation": "With `larger-dilation` the same weights read other pixels, unless the kernel is 1×1.",
    "smaller-dilation": "With `smaller-dilation` the same weights read other pixels, unless the kernel is 1×1.",
}
_EXACT = {
    "larger-kernel": "`larger-kernel` adds zeros and as much padding: the sums stay as they are.",
    "wider": "`wider` adds neurons that no weight reads yet: what the next layer computes stays as it is.",
}


def _normalised(x: Tensor, eps: float, moments_of: Tensor, correction: int = 0) -> Tensor:
    variance, mean = torch.var_mean(moments_of, (0, 2, 3), correction=correction, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def _evaluated(y: Tensor, eps: float) -> Tensor:
    return y.relu() / math.sqrt(1 + eps)


def _trained(y: Tensor, eps: float) -> Tensor:
    return _normalised(y.relu(), eps, y.relu())


def _over_everything(y: Tensor, eps: float) -> Tensor:
    x = y.relu()
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt()


WRONG_OUTPUTS: dict[str, Outputs] = {
    "y passes a ReLU and a batch norm; it does not stay as it is.": lambda y, eps: (y, y),
    "The new layer begins with a ReLU: what is negative in y is lost.": lambda y, eps: (
        y / math.sqrt(1 + eps),
        _normalised(y, eps, y),
    ),
    "In evaluation mode a fresh batch norm divides too: by √(1 + ε).": lambda y, eps: (y.relu(), _trained(y, eps)),
    "In evaluation mode it divides by a root: √(1 + ε).": lambda y, eps: (y.relu() / (1 + eps), _trained(y, eps)),
    "In training mode a batch norm takes the mean and the variance of the batch.": lambda y, eps: (
        _evaluated(y, eps),
        _evaluated(y, eps),
    ),
    "In evaluation mode a batch norm takes its running mean and variance: 0 and 1 in a fresh one.": lambda y, eps: (
        _trained(y, eps),
        _trained(y, eps),
    ),
    "The batch norm sees what the ReLU has left; its mean and variance are those of max(y, 0).": lambda y, eps: (
        _evaluated(y, eps),
        _normalised(y.relu(), eps, y),
    ),
    "The ReLU comes first in a layer, the batch norm last.": lambda y, eps: (
        _evaluated(y, eps),
        _normalised(y, eps, y).relu(),
    ),
    "Nearly. Training mode divides by the variance with n, not n − 1 (correction=0).": lambda y, eps: (
        _evaluated(y, eps),
        _normalised(y.relu(), eps, y.relu(), correction=1),
    ),
    "Training mode adds ε to the variance, too.": lambda y, eps: (_evaluated(y, eps), _trained(y, 0.0)),
    "A batch norm has one mean and one variance a channel, over the images and their pixels.": lambda y, eps: (
        _evaluated(y, eps),
        _over_everything(y, eps),
    ),
}
"""Hints, and the answers that they are for."""


def _check_deeper(answer: Any) -> str | None:
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not callable(answer[1]):
        return "Give a pair: the names of the morphisms that keep the function, and the function `deepened`."
    names, deepened = answer
    if names is ... or names is None:
        return "No answer yet: replace the dots."
    if isinstance(names, str) or not isinstance(names, Iterable):
        return "Give the names as a set, such as {'deeper', 'smaller-kernel'}."
    names = set(names)
    for name in names - set(MORPHISMS):
        return f"There is no morphism {name!r}; there are {', '.join(MORPHISMS)}."
    hints = [hint for name, hint in _NOT_EXACT.items() if name in names]
    hints += [hint for name, hint in _EXACT.items() if name not in names]
    return hints[0] if hints else _check_deepened(deepened)


def _check_deepened(deepened: Outputs) -> str | None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)
    got, right, cases = [], [], []
    for eps in (0.1, 1e-3):
        parent = _awake(MorphableConvolution(3, Configuration(3)), generator).double()
        child = morph(parent, "deeper", generator)
        norm = child[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        norm.eps = eps
        for place, training in enumerate((False, True)):  # its own y for each mode
            with torch.no_grad():
                y = parent.train(training)(x)
                pair = deepened(y.clone(), eps)
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    return "`deepened` must return a pair: the output in evaluation mode, and in training mode."
                if not all(isinstance(one, Tensor) and one.shape == y.shape for one in pair):
                    return f"Both outputs have the shape of y: {tuple(y.shape)} here."
                got.append(pair[place])
                right.append(child.train(training)(x))
                cases.append((y, eps))
    if all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(got, right, strict=True)):
        return None
    for hint, wrong in WRONG_OUTPUTS.items():
        outputs = [wrong(*case)[place % 2] for place, case in enumerate(cases)]
        if all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(got, outputs, strict=True)):
            return hint
    evaluation = all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(got[::2], right[::2], strict=True))
    mode = "training" if evaluation else "evaluation"
    return f"Not in {mode} mode. Follow y: ReLU, two convolutions that do nothing, a batch norm with γ = 1 and β = 0."


def _awake(module: MorphableConvolution, generator: torch.Generator) -> MorphableConvolution:
    """With drawn weights and batch norms in which nothing is 0 or 1."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = torch.randn(value.shape, generator=generator)
            positive = value.dim() == 1 and name.endswith(("weight", "var"))
            value.copy_(0.5 + drawn.abs() if positive else drawn)
    return module


register(
    Exercise(
        "prdarts.deeper",
        CHAPTER,
        _check_deeper,
        (
            *((EXACT, wrong) for wrong in WRONG_OUTPUTS.values()),
            *((EXACT | {name}, lambda y, eps: (_evaluated(y, eps), _trained(y, eps))) for name in _NOT_EXACT),
            *((EXACT - {name}, lambda y, eps: (_evaluated(y, eps), _trained(y, eps))) for name in _EXACT),
            (EXACT | {"shallower"}, lambda y, eps: (y, y)),
            ("wider", lambda y, eps: (y, y)),
            (..., lambda y, eps: None),
            (EXACT, lambda y, eps: None),
            (EXACT, lambda y, eps: (y.mean(), y.mean())),
            (EXACT, lambda y, eps: (_evaluated(y, eps), 0 * y)),
            (EXACT, 1.0),
            1.0,
        ),
        takes_function=False,
    )
)


# --- pruning that compares groups -------------------------------------------------------------------------------------

Survivors = Callable[[list[float], list[str], int], Any]
Merit = Callable[[int, Sequence[float], Sequence[str]], Any]


def _members(i: int, weights: Sequence[float], groups: Sequence[str]) -> list[float]:
    return [weight for weight, group in zip(weights, groups, strict=True) if group == groups[i]]


def _place(i: int, weights: Sequence[float], groups: Sequence[str]) -> int:
    """How many of its group are stronger."""
    return sum(weight > weights[i] for weight in _members(i, weights, groups))


def _best_by(merit: Merit) -> Survivors:
    """Keeps those of the smallest ``merit``, which gets the place, the weights and the groups."""
    return lambda weights, groups, keep: sorted(range(len(weights)), key=lambda i: merit(i, weights, groups))[:keep]


_fair = _best_by(lambda i, w, g: (_place(i, w, g), -sum(_members(i, w, g))))

WRONG_SURVIVORS: dict[str, Survivors] = {
    "That is the paper's rule: it compares one copy's part of a group's weight with a whole weight.": _best_by(
        lambda i, w, g: -w[i]
    ),
    "These are the pruned ones.": lambda w, g, keep: [i for i in range(len(w)) if i not in _fair(w, g, keep)],
    "Groups are compared by their sums. A mean divides by m once more.": _best_by(
        lambda i, w, g: (_place(i, w, g), -sum(_members(i, w, g)) / len(_members(i, w, g)))
    ),
    "Groups are compared by their strongest candidates, which have a part of the group's weight only.": _best_by(
        lambda i, w, g: (_place(i, w, g), -max(_members(i, w, g)))
    ),
    "A second copy of the strongest group stays while other groups go altogether.": _best_by(
        lambda i, w, g: (-sum(_members(i, w, g)), _place(i, w, g))
    ),
    "Within a group the strongest must stay, not the weakest.": _best_by(
        lambda i, w, g: (len(_members(i, w, g)) - 1 - _place(i, w, g), -sum(_members(i, w, g)))
    ),
    "Groups are compared by how many they are, not by their weight.": _best_by(
        lambda i, w, g: (_place(i, w, g), -len(_members(i, w, g)))
    ),
    "The weakest groups stay.": _best_by(lambda i, w, g: (_place(i, w, g), sum(_members(i, w, g)))),
}
"""Hints, and the answers that they are for."""

_PRUNINGS: tuple[tuple[list[float], list[str]], ...] = (
    ([0.21, 0.19, 0.2, 0.4], ["a", "a", "a", "b"]),
    ([0.11, 0.3, 0.13, 0.16, 0.1, 0.2], ["a", "b", "a", "a", "c", "c"]),
    ([0.22, 0.05, 0.04, 0.06, 0.35, 0.28], ["a", "b", "b", "b", "c", "a"]),
    ([0.2, 0.04, 0.15, 0.14, 0.47], ["a", "a", "b", "b", "c"]),
)


def _check_survivors(answer: Survivors) -> str | None:
    cases = [(weights, groups, keep) for weights, groups in _PRUNINGS for keep in range(1, len(weights))]
    got = []
    for weights, groups, keep in cases:
        kept = answer(list(weights), list(groups), keep)
        if not isinstance(kept, list | tuple | set) or not all(i in range(len(weights)) for i in kept):
            return f"Expected a list of places from 0 to {len(weights) - 1}."
        got.append({int(i) for i in kept})

    def equals(rule: Survivors) -> bool:
        return all(kept == set(rule(*case)) for kept, case in zip(got, cases, strict=True))

    if equals(_fair):
        return None
    for hint, wrong in WRONG_SURVIVORS.items():
        if equals(wrong):
            return hint
    place = next(i for i, case in enumerate(cases) if got[i] != set(_fair(*case)))
    weights, groups, keep = cases[place]
    if len(got[place]) != keep:
        return f"{keep} candidates must stay; you keep {len(got[place])}."
    return f"Not for weights {weights}, groups {groups} and keep = {keep}: you keep the places {sorted(got[place])}."


register(
    Exercise(
        "prdarts.groups",
        CHAPTER,
        _check_survivors,
        (
            *WRONG_SURVIVORS.values(),
            lambda weights, groups, keep: list(range(len(weights))),
            lambda weights, groups, keep: list(range(keep)),
            lambda weights, groups, keep: [weights[0]],
            lambda weights, groups, keep: None,
            0.5,
        ),
    )
)


# --- the next child ---------------------------------------------------------------------------------------------------

Children = Callable[[dict[str, float], Constraints, set[str]], Any]
Ways = list[tuple[str, float]]


def _ways(parent: str, constraints: Constraints) -> list[str]:
    if not is_morphable(parent):
        return []
    return [child.name for child in morphisms_of(Configuration.parse(parent), constraints).values()]


def _shares(ways: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Adds up the ways to every child, and makes them sum to 1."""
    found: dict[str, float] = {}
    for child, chance in ways:
        found[child] = found.get(child, 0.0) + chance
    total = sum(found.values())
    return {child: chance / total for child, chance in found.items()}


def _proposed(weights: Mapping[str, float], constraints: Constraints) -> Ways:
    """What a draw proposes."""
    lives = [Life(name, born=1, weights=(weight,)) for name, weight in weights.items()]
    return [(life.operation, chance) for life, chance in possible_children(lives, constraints)]


def _next(weights: Mapping[str, float], constraints: Constraints, seen: AbstractSet[str]) -> dict[str, float]:
    return _shares(way for way in _proposed(weights, constraints) if way[0] not in seen)


def _shared_by_the_unseen(weights: Mapping[str, float], constraints: Constraints, seen: AbstractSet[str]) -> Any:
    unseen = {parent: [way for way in _ways(parent, constraints) if way not in seen] for parent in weights}
    return _shares((child, weights[parent] / len(ways)) for parent, ways in unseen.items() for child in ways)


def _not_scaled(weights: Mapping[str, float], constraints: Constraints, seen: AbstractSet[str]) -> Any:
    return {
        child: sum(chance for name, chance in _proposed(weights, constraints) if name == child)
        for child in _next(weights, constraints, seen)
    }


def _last_way(weights: Mapping[str, float], constraints: Constraints, seen: AbstractSet[str]) -> Any:
    ways = dict(_proposed(weights, constraints))
    return _shares((child, chance) for child, chance in ways.items() if child not in seen)


WRONG_CHILDREN: dict[str, Children] = {
    "A morphism is drawn from all that the parent has, not from those that lead to something new; a repeat costs the "
    "parent its turn.": _shared_by_the_unseen,
    "They do not sum to 1: draws that end in a repeat or at a parent without morphisms are drawn again.": _not_scaled,
    "One configuration may have two parents in the pool: add up its ways.": _last_way,
    "Repeats are in it: leave out what stands or stood on the edge.": lambda weights, constraints, seen: _shares(
        _proposed(weights, constraints)
    ),
    "What stood on the edge earlier is a repeat, too.": lambda weights, constraints, seen: _next(
        weights, constraints, set(weights)
    ),
    "Parents are drawn by their weights, not uniformly.": lambda weights, constraints, seen: _next(
        dict.fromkeys(weights, 1.0), constraints, seen
    ),
    "The parent is drawn first, then one of its morphisms: a parent with few morphisms gives each of them more.": (
        lambda weights, constraints, seen: _shares(
            (child, weight)
            for parent, weight in weights.items()
            for child in _ways(parent, constraints)
            if child not in seen
        )
    ),
    "All children are not equally likely: the parents' weights count.": lambda weights, constraints, seen: (
        dict.fromkeys(
            _next(weights, constraints, seen), 1 / max(len(_next(weights, constraints, seen)), 1)
        )
    ),
    "The weights are softmax probabilities already; don't take their softmax once more.": (
        lambda weights, constraints, seen: _next(
            {name: math.exp(weight) for name, weight in weights.items()}, constraints, seen
        )
    ),
}
"""Hints, and the answers that they are for."""


def _child_cases() -> list[tuple[dict[str, float], Constraints, set[str]]]:
    three, five, seven, stacked = (
        Configuration(kernel, expansions=expansions).name
        for kernel, expansions in ((3, ()), (5, ()), (7, ()), (3, (1,)))
    )
    dilated, wide = Configuration(5, 2, (2, 1)).name, Configuration(1, 1, (3,)).name
    weights = {"max_pool_3x3": 0.3, three: 0.25, five: 0.1, stacked: 0.2}  # what was pruned had the rest
    seen = {*weights, "skip_connect", seven}
    everything = {name for one in obtainable(CONSTRAINTS["DL"], 4) for name in (child.name for child in one)}
    return [
        (weights, CONSTRAINTS["DL"], seen),
        ({three: 0.15, dilated: 0.4, wide: 0.1, "skip_connect": 0.05}, CONSTRAINTS["UR"], {three, dilated, wide}),
        ({"skip_connect": 0.5, stacked: 0.3, five: 0.1}, CONSTRAINTS["DR"], {stacked, five, three, "skip_connect"}),
        ({three: 0.6, "skip_connect": 0.4}, CONSTRAINTS["DL"], everything),  # nothing is left
    ]


def _check_children(answer: Children) -> str | None:
    cases = _child_cases()
    got = []
    for weights, constraints, seen in cases:
        found = answer(dict(weights), constraints, set(seen))
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            return "Expected a dictionary from the names of the children to their probabilities."
        got.append({name: float(chance) for name, chance in found.items() if chance != 0})

    def equals(formula: Children) -> bool:
        return all(_same_shares(found, formula(*case)) for found, case in zip(got, cases, strict=True))

    if equals(_next):
        return None
    for hint, wrong in WRONG_CHILDREN.items():
        if equals(wrong):
            return hint
    place = next(i for i, case in enumerate(cases) if not _same_shares(got[i], _next(*case)))
    if set(got[place]) != set(_next(*cases[place])):
        few = sorted(set(got[place]) ^ set(_next(*cases[place])))[0]
        return f"{few} is {'possible' if few not in got[place] else 'not possible'} in case {place + 1}."
    return "The parent by its weight, then a morphism of those it has, all alike; drawn again until there is no repeat."


def _same_shares(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return set(a) == set(b) and all(math.isclose(a[name], b[name], rel_tol=1e-6) for name in a)


register(
    Exercise(
        "prdarts.children",
        CHAPTER,
        _check_children,
        (
            *WRONG_CHILDREN.values(),
            lambda weights, constraints, seen: {
                Configuration.parse(name): chance for name, chance in _next(weights, constraints, seen).items()
            },
            lambda weights, constraints, seen: dict(weights),
            lambda weights, constraints, seen: {},
            lambda weights, constraints, seen: None,
            0.25,
        ),
    )
)


# --- a batch for a budget ---------------------------------------------------------------------------------------------

Measured = tuple[int, int]
BatchSize = Callable[[Measured, Measured, int, int, int, int], Any]


def _fitting(affordable: Callable[[Measured, Measured, int], float]) -> BatchSize:
    """The largest size within what ``affordable`` says."""

    def size(
        first: Measured, second: Measured, limit: int, minimum: int, multiple: int, maximum: int
    ) -> int:
        n = math.floor((min(affordable(first, second, limit), maximum) - minimum) / multiple)
        return minimum + max(n, 0) * multiple

    return size


def _line(first: Measured, second: Measured, limit: int) -> float:
    an_image = (second[1] - first[1]) / (second[0] - first[0])
    return (limit - (first[1] - an_image * first[0])) / an_image


_fits = _fitting(_line)
_PROPORTIONAL = "All memory is taken to grow with the batch, as the authors' code does. A part of it is fixed."

WRONG_BATCHES: dict[str, BatchSize] = {
    _PROPORTIONAL: _fitting(lambda first, second, limit: limit * second[0] / second[1]),
    f"{_PROPORTIONAL} Two points give both parts.": _fitting(lambda first, second, limit: limit * first[0] / first[1]),
    "The line has an intercept: bytes that are taken before the first image. Subtract them from the limit.": _fitting(
        lambda first, second, limit: limit * (second[0] - first[0]) / (second[1] - first[1])
    ),
    "Round n down: rounded up, the batch needs more than the limit.": (
        lambda first, second, limit, minimum, multiple, maximum: min(
            minimum + max(math.ceil((_line(first, second, limit) - minimum) / multiple), 0) * multiple,
            minimum + (maximum - minimum) // multiple * multiple,
        )
    ),
    "The sizes are b_min, b_min + b_mult, …: not the multiples of b_mult.": (
        lambda first, second, limit, minimum, multiple, maximum: max(
            int(min(_line(first, second, limit), maximum)) // multiple * multiple, minimum
        )
    ),
    "The batch is above b_max.": lambda first, second, limit, minimum, multiple, maximum: (
        minimum + max(int((_line(first, second, limit) - minimum) // multiple), 0) * multiple
    ),
    "b_max itself may be none of the sizes: then the largest size below it is the most.": (
        lambda first, second, limit, minimum, multiple, maximum: min(
            minimum + max(int((_line(first, second, limit) - minimum) // multiple), 0) * multiple, maximum
        )
    ),
    "Never fewer than b_min images, even where they do not fit: n is 0 at least.": (
        lambda first, second, limit, minimum, multiple, maximum: (
            minimum + int((min(_line(first, second, limit), maximum) - minimum) // multiple) * multiple
        )
    ),
    "That is n; the batch has b_min + n·b_mult images.": lambda first, second, limit, minimum, multiple, maximum: (
        (_fits(first, second, limit, minimum, multiple, maximum) - minimum) // multiple
    ),
    "That is what would fit; the batch is the largest b_min + n·b_mult within it.": (
        lambda first, second, limit, minimum, multiple, maximum: int(
            max(min(_line(first, second, limit), maximum), minimum)
        )
    ),
}
"""Hints, and the answers that they are for."""

_MEASURED: tuple[tuple[Measured, Measured, int, int, int, int], ...] = (
    ((24, 3_400_000_000), (32, 4_200_000_000), 10_000_000_000, 24, 8, 128),
    ((24, 3_400_000_000), (32, 4_200_000_000), 9_800_000_000, 24, 8, 128),  # 88 fit exactly
    ((52, 6_200_000_000), (20, 3_000_000_000), 9_700_000_000, 20, 16, 130),  # in any order
    ((20, 3_000_000_000), (52, 6_200_000_000), 30_000_000_000, 20, 16, 130),  # more than enough
    ((24, 3_400_000_000), (32, 4_200_000_000), 1_500_000_000, 24, 8, 128),  # not even the smallest fits
)


def _check_batch(answer: BatchSize) -> str | None:
    got = [answer(*case) for case in _MEASURED]
    if not all(isinstance(size, int | float) for size in got):
        return "Expected one number, the images in a batch."
    if got == [_fits(*case) for case in _MEASURED]:
        return None
    for hint, wrong in WRONG_BATCHES.items():
        if got == [wrong(*case) for case in _MEASURED]:
            return hint
    place = next(i for i, case in enumerate(_MEASURED) if got[i] != _fits(*case))
    return f"Not for {_MEASURED[place]}: you get {got[place]}. Draw the line through the two points, up to the limit."


register(
    Exercise(
        "prdarts.batch",
        CHAPTER,
        _check_batch,
        (
            *WRONG_BATCHES.values(),
            lambda first, second, limit, minimum, multiple, maximum: minimum,
            lambda first, second, limit, minimum, multiple, maximum: None,
            88,
        ),
    )
)


# --- a seventh morphism -----------------------------------------------------------------------------------------------

Narrower = Callable[[MorphableConvolution], Any]
Place = Callable[[tuple[int, ...]], int]
Strength = Callable[[Mapping[str, Tensor], int], Tensor]
_DEPTHWISE, _POINTWISE, _NORM = 1, 2, 3  # where they are in a layer


def _last_largest(expansions: tuple[int, ...]) -> int:
    return len(expansions) - 1 - expansions[::-1].index(max(expansions))


def _is_read(state: Mapping[str, Tensor], place: int) -> Tensor:
    """How strongly the next pointwise convolution reads each neuron of an expansion."""
    return state[f"{(place + 1) * LAYER + _POINTWISE}.weight"].flatten(2).square().sum((0, 2))


def _is_written(state: Mapping[str, Tensor], place: int) -> Tensor:
    return state[f"{place * LAYER + _POINTWISE}.weight"].flatten(1).square().sum(1)


def _narrowing(
    place_of: Place = _last_largest,
    strength: Strength = _is_read,
    fresh: Callable[[str, int], bool] = lambda name, place: False,
) -> Narrower:
    """A way to narrow: which expansion, which of its neurons stay, and which entries are not inherited."""

    def narrower(parent: MorphableConvolution) -> MorphableConvolution | None:
        before = parent.configuration
        if max(before.expansions, default=1) == 1:
            return None
        place = place_of(before.expansions)
        if before.expansions[place] == 1:
            return None
        widths = [*before.expansions]
        widths[place] -= 1
        child = MorphableConvolution(
            parent.channels, replace(before, expansions=tuple(widths)), parent.stride, parent.affine
        )
        state = parent.state_dict()
        order = strength(state, place).argsort(descending=True, stable=True)
        kept = order[: widths[place] * parent.channels].sort().values
        here, after = place * LAYER, (place + 1) * LAYER
        rows = {f"{here + _POINTWISE}", f"{here + _NORM}", f"{after + _DEPTHWISE}"}
        for name, value in state.items():
            module = name.partition(".")[0]
            if module in rows and value.dim():
                state[name] = value[kept]
            elif module == f"{after + _POINTWISE}":
                state[name] = value[:, kept]
        own = child.state_dict()
        child.load_state_dict({name: own[name] if fresh(name, place) else state[name] for name in state})
        return child

    return narrower


_right_narrower = _narrowing()


def _always(parent: MorphableConvolution) -> Any:
    if parent.configuration.expansions == (1,):
        return MorphableConvolution(parent.channels, replace(parent.configuration, expansions=()), parent.stride)
    return _right_narrower(parent)


def _place_of_smallest(expansions: tuple[int, ...]) -> int:
    place = widened_place(Configuration(3, expansions=expansions))
    assert place is not None
    return place


_FRESH = "The child's weights are fresh. It inherits those of its parent."
WRONG_NARROWINGS: dict[str, Narrower] = {
    "Of equally large expansions the last one is narrowed, so that expansions never rise.": _narrowing(
        lambda expansions: expansions.index(max(expansions))
    ),
    "The largest expansion is narrowed, not the smallest.": _narrowing(_place_of_smallest),
    "The largest expansion is narrowed, not always the last.": _narrowing(lambda expansions: len(expansions) - 1),
    "An expansion of 1 can't be narrowed; taking the layer away is another morphism. Return None.": _always,
    "You take the neurons that stand last. That is right after a widening; look for those that are read least.": (
        _narrowing(strength=lambda state, place: -torch.arange(len(_is_read(state, place))))
    ),
    "You keep the neurons that are read least.": _narrowing(
        strength=lambda state, place: -_is_read(state, place)
    ),
    "You look at the weights that write a neuron. Whether it is missed depends on those that read it.": _narrowing(
        strength=_is_written
    ),
    "In training mode it is right. The running mean and variance are not inherited.": _narrowing(
        fresh=lambda name, place: "running" in name
    ),
    _FRESH: _narrowing(fresh=lambda name, place: True),
    "The batch norm behind the expansion is fresh: its scale and shift are neurons' too.": _narrowing(
        fresh=lambda name, place: name.startswith(f"{place * LAYER + _NORM}.")
    ),
}
"""Hints, and the answers that they are for."""

MORE = (0, 1)
"""How many configurations more than 80 there are in UR within five steps: the last of equals narrowed, the leading."""

_NARROWED = (
    Configuration(3),
    Configuration(5, 1, (1,)),
    Configuration(3, 2, (1, 1)),
    Configuration(3, 1, (2,)),
    Configuration(5, 2, (2, 1)),
    Configuration(3, 1, (2, 2)),
    Configuration(3, 1, (3, 2)),
    Configuration(1, 1, (2, 2, 1)),
)


def _check_narrower(answer: Any) -> str | None:
    if not isinstance(answer, tuple | list) or len(answer) != 3 or not callable(answer[0]):
        return "Give three things as a tuple: the function narrower, and two whole numbers."
    narrower, *more = answer
    hint = _check_narrowed(narrower)
    if hint is not None:
        return hint
    if not all(type(number) is int for number in more):
        return "The morphism is right. The numbers are missing: how many configurations more, by either rule."
    if tuple(more) == MORE:
        return None
    if tuple(more) == MORE[::-1]:
        return "The morphism is right. The two numbers are turned round: the last of equals comes first."
    if tuple(more) == (80, 81):
        return "The morphism is right. Asked is how many more than the 80 there are without it."
    if more[0] > 0:
        return (
            "The morphism is right. Narrow the last of equals, and expansions never rise: they are the partitions of a "
            "number that is one smaller. Fewer steps have reached those."
        )
    return "The morphism is right. Narrow the leading one of (2, 2): is the result among the 80, and which step has it?"


def _check_narrowed(narrower: Narrower) -> str | None:
    generator = torch.Generator().manual_seed(2)
    cases = [
        _awake(MorphableConvolution(4, configuration, 1 + place % 2, affine=place < 7), generator)
        for place, configuration in enumerate(_NARROWED)
    ]
    x = torch.randn(3, 4, 6, 6, generator=generator)
    got = []
    for parent in cases:
        before = {name: value.clone() for name, value in parent.state_dict().items()}
        child = narrower(parent)
        if any(not torch.equal(value, before[name]) for name, value in parent.state_dict().items()):
            return "The parent has changed. The child must have weights of its own."
        if child is not None and not isinstance(child, MorphableConvolution):
            return f"Expected a MorphableConvolution or None, got {type(child).__name__}."
        got.append(child)
    right = [_right_narrower(parent) for parent in cases]
    configurations = _configurations(got)
    if configurations != _configurations(right):
        for hint, wrong in WRONG_NARROWINGS.items():
            if configurations == _configurations([wrong(parent) for parent in cases]):
                return hint
        place = next(i for i, one in enumerate(_configurations(right)) if configurations[i] != one)
        wanted = _configurations(right)[place]
        return f"{cases[place].configuration.name} must become {wanted.name if wanted else None}."
    for parent, child in zip(cases, got, strict=True):
        if child is not None and (child.stride, child.affine) != (parent.stride, parent.affine):
            return "The child has its parent's stride, and batch norms with scale and shift only where its parent does."
        path = f"{_DEPTHWISE}.weight"  # whole in every child
        if child is not None and not torch.equal(child.get_parameter(path), parent.get_parameter(path)):
            return _FRESH
    if _compute_the_same(got, right, x):
        return None
    for hint, wrong in WRONG_NARROWINGS.items():
        others = [wrong(parent) for parent in cases]
        if _configurations(others) == configurations and _compute_the_same(got, others, x):
            return hint
    return (
        "The configurations are right, the weights are not. A neuron has a row of the pointwise convolution that "
        "writes it, entries of the batch norm, a filter of the next depthwise convolution, a column of the next "
        "pointwise one."
    )


def _configurations(children: Sequence[MorphableConvolution | None]) -> list[Configuration | None]:
    return [None if child is None else child.configuration for child in children]


def _compute_the_same(
    children: Sequence[MorphableConvolution | None], others: Sequence[MorphableConvolution | None], x: Tensor
) -> bool:
    """Whether they have the same outputs in evaluation and in training mode."""
    for child, other in zip(children, others, strict=True):
        if child is None or other is None:
            continue
        for training in (False, True):
            with torch.no_grad(), kept_statistics([*batch_norms(child), *batch_norms(other)]):
                outputs = child.train(training)(x), other.train(training)(x)
            if not torch.allclose(*outputs, rtol=1e-3, atol=1e-3):
                return False
    return True


register(
    Exercise(
        "prdarts.narrower",
        CHAPTER,
        _check_narrower,
        (
            *((wrong, *MORE) for wrong in WRONG_NARROWINGS.values()),
            *((_right_narrower, *more) for more in (MORE[::-1], (80, 81), (7, 7), (0, 0), (0, 7), (..., ...))),
            (lambda parent: parent, *MORE),
            (lambda parent: None, *MORE),
            (lambda parent: parent.configuration, *MORE),
            (MORE, MORE, MORE),
            _right_narrower,
            1.0,
        ),
        takes_function=False,
    )
)
