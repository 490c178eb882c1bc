"""Chapter 8's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from nasbook.exercises.registry import Exercise, register
from nasbook.tabular.space import all_codes, canonical

CHAPTER = "08-ground-truth-and-fair-comparison"


NOTHING = "Nothing came back: replace the dots, and return the result."
"""The hint for an answer that returns None."""


# --- how many cells differ --------------------------------------------------------------------------------------------

Count = Callable[[int], Any]


def _filled(choices: int) -> int:
    """Ways to give a node that reads both inputs at least one operation."""
    return (choices + 1) ** 2 - 1


def _different(choices: int) -> int:
    some = _filled(choices)
    return some * (choices + 1) ** 2 * choices + some * (some + 1) // 2 + some


WRONG_COUNTS: dict[str, Count] = {
    "Those are all codes. A node that nothing enters can't be read, and something must arrive.": lambda c: (c + 1) ** 5,
    "Those are the labelled cells. Where node 3 does not read node 2, the two can change places.": lambda c: _filled(
        c
    )
    * ((c + 1) ** 3 + 1),
    "One node alone counts once: it does not matter which of the two it is.": lambda c: _different(c) + _filled(c),
    "And the cells with one node only? The other one may be empty.": lambda c: _different(c) - _filled(c),
    "Of two nodes that are alike, the exchange gives the same code: those pairs are not halved.": lambda c: (
        _filled(c) * (c + 1) ** 2 * c + _filled(c) ** 2 // 2 + _filled(c)
    ),
    "Without an edge between them the two nodes are an unordered pair.": lambda c: (
        _filled(c) * (c + 1) ** 2 * c + _filled(c) ** 2 + _filled(c)
    ),
}
"""Hints, and the answers that they are for."""


def _check_count(answer: Count) -> str | None:
    cases = (1, 2, 3, 4)
    got = [answer(case) for case in cases]
    if None in got:
        return NOTHING
    for hint, wrong in WRONG_COUNTS.items():
        if got == [wrong(case) for case in cases]:
            return hint
    for choices, found in zip(cases, got, strict=True):
        if found != _different(choices):
            return (
                f"With {choices} operations besides none got {found!r}. Count three kinds of cell: 3 reads 2; both are "
                f"there and 3 does not; one node only."
            )
    return None


register(Exercise("truth.count", CHAPTER, _check_count, (*WRONG_COUNTS.values(), lambda c: 855, 855)))


# --- the chance of random search --------------------------------------------------------------------------------------

Chance = Callable[[int, int, int], Any]


def _chance(cells: int, best: int, queries: int) -> float:
    return 1 - math.comb(cells - best, queries) / math.comb(cells, queries)


WRONG_CHANCES: dict[str, Chance] = {
    "That draws with replacement; the search never trains a cell twice.": lambda n, k, q: 1 - (1 - k / n) ** q,
    "Chances don't add up: with enough queries this exceeds 1.": lambda n, k, q: k * q / n,
    "That is the chance to miss them all.": lambda n, k, q: math.comb(n - k, q) / math.comb(n, q),
    "That is the chance that the last draw is one of them.": lambda n, k, q: k / n,
    "That is the chance to draw one of them exactly; two or more count too.": lambda n, k, q: (
        k * math.comb(n - k, q - 1) / math.comb(n, q)
    ),
}
"""Hints, and the answers that they are for."""


def _check_chance(answer: Chance) -> str | None:
    cases = [(855, 10, 30), (855, 43, 59), (12, 3, 5), (12, 3, 10), (7, 1, 4)]
    found_chances = [answer(*case) for case in cases]
    if None in found_chances:
        return NOTHING
    got = [float(value) for value in found_chances]
    for hint, wrong in WRONG_CHANCES.items():
        if np.allclose(got, [wrong(*case) for case in cases], rtol=1e-6, atol=1e-9):
            return hint
    for case, found in zip(cases, got, strict=True):
        if not math.isclose(found, _chance(*case), rel_tol=1e-6, abs_tol=1e-9):
            return (
                f"Of {case[0]} cells, {case[1]} of them wanted, {case[2]} draws: got {found:.4f}. In how many of all "
                f"sets of draws is none of them?"
            )
    return None


register(Exercise("truth.chance", CHAPTER, _check_chance, (*WRONG_CHANCES.values(), lambda n, k, q: 1.0, 0.3)))


# --- one code a graph -------------------------------------------------------------------------------------------------

Canonical = Callable[[tuple[int, ...]], Any]


def _exchanged(code: Sequence[int]) -> tuple[int, ...]:
    return (code[2], code[3], code[0], code[1], code[4])


WRONG_CANONICALS: dict[str, Canonical] = {
    "The inputs differ: an edge from node 0 can't stand for one from node 1.": lambda code: (
        tuple(code) if code[4] else (*sorted(code[:4]), 0)
    ),
    "Where node 3 reads node 2, the two can't change places.": lambda code: min(tuple(code), _exchanged(code)),
    "Two labellings of one graph need one code: choose between them by a rule.": lambda code: (
        tuple(code) if code[4] else _exchanged(code)
    ),
    "That leaves every code as it is; which pairs of them are the same graph?": lambda code: tuple(code),
}
"""Hints, and the answers that they are for."""


def _check_canonical(answer: Canonical) -> str | None:
    codes = all_codes()
    if answer(codes[0]) is None:
        return NOTHING
    got = [tuple(answer(code)) for code in codes]
    for hint, wrong in WRONG_CANONICALS.items():
        if got == [wrong(code) for code in codes]:
            return hint
    representative: dict[tuple[int, ...], tuple[int, ...]] = {}
    for code, found in zip(codes, got, strict=True):
        if found not in codes or canonical(found) != canonical(code):
            return f"{code} became {found}, which is no labelling of the same graph."
        if representative.setdefault(canonical(code), found) != found:
            return f"{code} and {_exchanged(code)} are one graph and got two codes."
    return None


register(
    Exercise(
        "truth.canonical", CHAPTER, _check_canonical, (*WRONG_CANONICALS.values(), lambda code: (0, 0, 1, 0, 0), 3)
    )
)


# --- one step of local search -----------------------------------------------------------------------------------------

Step = Callable[[dict[str, float], str, list[str]], Any]


def _step(scores: dict[str, float], position: str, neighbours: list[str]) -> str:
    best = max(neighbours, key=scores.__getitem__)
    return best if scores[best] > scores[position] else position


WRONG_STEPS: dict[str, Step] = {
    "From a local optimum that walks downhill. When does a walk end?": lambda s, p, n: max(n, key=s.__getitem__),
    "That is the first better one, not the best one.": lambda s, p, n: next((c for c in n if s[c] > s[p]), p),
    "Accuracies: higher is better.": lambda s, p, n: min([p, *n], key=s.__getitem__),
    "A neighbour that is only as good is no reason to move: two equals would exchange forever.": lambda s, p, n: max(
        [*n, p], key=s.__getitem__
    ),
    "Only neighbours can be reached in one step.": lambda s, p, n: max(s, key=s.__getitem__),
}
"""Hints, and the answers that they are for."""


def _check_step(answer: Step) -> str | None:
    scores = {"a": 0.90, "b": 0.92, "c": 0.95, "d": 0.91, "e": 0.95, "f": 0.99, "g": 0.80}
    cases = [("a", ["d", "b", "c"]), ("c", ["a", "b", "d"]), ("c", ["a", "e"]), ("g", ["a", "d"]), ("e", ["c", "b"])]
    got = [answer(scores, position, list(others)) for position, others in cases]
    if all(value is None for value in got):
        return NOTHING
    for hint, wrong in WRONG_STEPS.items():
        if got == [wrong(scores, *case) for case in cases]:
            return hint
    for (position, others), found in zip(cases, got, strict=True):
        if found != _step(scores, position, others):
            around = ", ".join(f"{name} {scores[name]}" for name in others)
            return f"At {position} ({scores[position]}) with neighbours {around}: got {found!r}."
    return None


register(Exercise("truth.step", CHAPTER, _check_step, (*WRONG_STEPS.values(), lambda s, p, n: None, "c")))


# --- who dies ---------------------------------------------------------------------------------------------------------

Generation = Callable[[list[tuple[float, str]], tuple[float, str]], Any]


def _without_worst(population: list[tuple[float, str]], child: tuple[float, str]) -> list[tuple[float, str]]:
    everyone = [*population, child]
    everyone.remove(min(everyone))
    return everyone


WRONG_GENERATIONS: dict[str, Generation] = {
    "That kills the worst. A cell that was lucky once would live forever.": _without_worst,
    "Somebody has to die, or the population grows.": lambda p, c: [*p, c],
    "The child is the youngest: it stands at the end.": lambda p, c: [c, *p[1:]],
    "That kills the youngest; nothing would ever change.": lambda p, c: list(p),
    "The child takes its place behind the others, whatever its score.": lambda p, c: (
        [*p[1:], c] if c[0] > min(p)[0] else list(p)
    ),
    "The order is that of age, not of score.": lambda p, c: sorted([*p[1:], c]),
}
"""Hints, and the answers that they are for."""


def _check_generation(answer: Generation) -> str | None:
    cases = [
        ([(0.9, "a"), (0.7, "b"), (0.8, "c")], (0.85, "d")),
        ([(0.99, "a"), (0.7, "b"), (0.8, "c"), (0.75, "d")], (0.6, "e")),
        ([(0.5, "a")], (0.4, "b")),
    ]
    if answer(list(cases[0][0]), cases[0][1]) is None:
        return NOTHING
    got = [list(answer(list(population), child)) for population, child in cases]
    for hint, wrong in WRONG_GENERATIONS.items():
        if got == [wrong(list(population), child) for population, child in cases]:
            return hint
    for (population, child), found in zip(cases, got, strict=True):
        if found != [*population[1:], child]:
            return f"From {population} and the child {child} got {found}. The oldest stands first."
    return None


register(
    Exercise("truth.ageing", CHAPTER, _check_generation, (*WRONG_GENERATIONS.values(), lambda p, c: [], "the oldest"))
)


# --- an interval for a difference -------------------------------------------------------------------------------------

Between = Callable[[Any, Any], Any]


def _spanned(middle: float, half: float) -> tuple[float, float]:
    return middle - half, middle + half


def _paired(a: Any, b: Any) -> tuple[float, float]:
    d = np.asarray(a) - np.asarray(b)
    return _spanned(float(d.mean()), float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))))


def _unpaired(a: Any, b: Any) -> tuple[float, float]:
    a, b = np.asarray(a), np.asarray(b)
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return _spanned(float(a.mean() - b.mean()), float(stats.t.ppf(0.975, 2 * len(a) - 2)) * error)


def _with(a: Any, b: Any, factor: Callable[[int], float], freedom: int = 1) -> tuple[float, float]:
    d = np.asarray(a) - np.asarray(b)
    return _spanned(float(d.mean()), factor(len(d)) * float(d.std(ddof=freedom)))


WRONG_INTERVALS: dict[str, Between] = {
    "Both methods ran with the same seeds: take the differences first.": _unpaired,
    "1.96 is for many seeds. With few, Student's t has longer tails.": lambda a, b: _with(
        a, b, lambda n: float(stats.norm.ppf(0.975)) / math.sqrt(n)
    ),
    "That is where one more seed would lie, not the mean: divide by the root of the number of seeds.": lambda a, b: (
        _with(a, b, lambda n: float(stats.t.ppf(0.975, n - 1)))
    ),
    "The deviation of a sample divides by n − 1: ddof=1.": lambda a, b: _with(
        a, b, lambda n: float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n), 0
    ),
    "Two-sided: 2.5 % on each side.": lambda a, b: _with(
        a, b, lambda n: float(stats.t.ppf(0.95, n - 1)) / math.sqrt(n)
    ),
    "n differences have n − 1 degrees of freedom.": lambda a, b: _with(
        a, b, lambda n: float(stats.t.ppf(0.975, n)) / math.sqrt(n)
    ),
    "Asked is a − b, and not b − a.": lambda a, b: _paired(b, a),
}
"""Hints, and the answers that they are for."""


def _check_interval(answer: Between) -> str | None:
    cases = [
        (np.array([0.95, 0.93, 0.96]), np.array([0.94, 0.93, 0.94])),
        (np.array([0.90, 0.88, 0.93, 0.91, 0.89]), np.array([0.91, 0.86, 0.90, 0.92, 0.87])),
    ]
    if answer(*cases[0]) is None:
        return NOTHING
    got = [tuple(map(float, answer(a.copy(), b.copy()))) for a, b in cases]
    if any(len(pair) != 2 for pair in got):
        return "Give two numbers, the lower and the upper end."
    for hint, wrong in WRONG_INTERVALS.items():
        if np.allclose(got, [wrong(*case) for case in cases], rtol=1e-6, atol=1e-9):
            return hint
    for (a, b), found in zip(cases, got, strict=True):
        if not np.allclose(found, _paired(a, b), rtol=1e-5, atol=1e-9):
            return (
                f"For {a.tolist()} and {b.tolist()} got {found[0]:.4f} to {found[1]:.4f}. In the middle is the mean of "
                f"the differences; to each side goes Student's t times its standard error."
            )
    return None


register(Exercise("truth.interval", CHAPTER, _check_interval, (*WRONG_INTERVALS.values(), lambda a, b: (0, 0), 0.05)))
