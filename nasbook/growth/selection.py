"""Which candidates are kept: the linearised problem under a budget of neurons and one of new layers (Firefly, Eq. 5).

Each candidate has a predicted change of the loss, and those with the largest decrease are wanted. With one budget,
sorting is optimal. With two it is not, although §2.3 sorts there too: one excellent neuron may open a layer whose
others are worth little. :func:`select_exactly` solves that problem by dynamic programming over the layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from nasbook.errors import InvalidInput


@dataclass(frozen=True)
class Budget:
    """How much a growth may add."""

    neurons: int
    """η₀: candidates kept in all."""
    layers: int | None = None
    """η₁: widths without neurons that may get some; None for any number."""
    least: int = 1
    """A new layer is kept only with so many neurons; the paper asks for 2 (B.2)."""
    per_width: Mapping[Hashable, int] = field(default_factory=dict)
    """The most neurons of some widths, by name; the others have no limit of their own."""
    in_new_layers: int | None = None
    """Candidates kept in new layers, on top of ``neurons``, as B.2 does; None counts them with the others (§2.3)."""

    def __post_init__(self) -> None:
        for name in ("neurons", "layers", "least", "in_new_layers"):
            value = getattr(self, name)
            least = int(name == "least")
            if value is not None and not (isinstance(value, int | np.integer) and value >= least):
                raise InvalidInput(f"A budget's {name} must be a whole number, at least {least}, got {value}.")


def select(
    changes: Float[np.ndarray, " candidates"],
    widths: Sequence[Hashable],
    budget: Budget,
    new_layers: Sequence[Hashable] = (),
) -> list[int]:
    """The paper's choice: sort the candidates and take the best until a budget is used up.

    Candidates that are not predicted to lower the loss are not taken: dead neurons (change 0), and splits that would
    raise it. Of equal ones the earlier is taken. A new layer that ends with fewer than ``least`` neurons is given up;
    what it leaves of the budget goes to the next candidates.

    Args:
        changes: predicted change of the loss, one a candidate; negative is good.
        widths: the width of each candidate.
        budget: how many may be taken.
        new_layers: the widths that have no neurons yet.

    Returns:
        Indices of the chosen candidates, ascending.

    Raises:
        InvalidInput: not as many widths as changes.
    """
    _check_lengths(changes, widths)
    if budget.in_new_layers is not None:
        return _apart(select, changes, widths, budget, new_layers)
    given_up: set[Hashable] = set()
    while True:
        chosen = _take_best(changes, widths, budget, set(new_layers), given_up)
        counts = Counter(widths[i] for i in chosen)
        small = [width for width in counts if width in set(new_layers) and counts[width] < budget.least]
        if not small:
            return sorted(chosen)
        # One at a time: what the weakest leaves may complete another one.
        given_up.add(max(small, key=lambda width: min(changes[i] for i in chosen if widths[i] == width)))


def _take_best(
    changes: Float[np.ndarray, " candidates"],
    widths: Sequence[Hashable],
    budget: Budget,
    new_layers: set[Hashable],
    given_up: set[Hashable],
) -> list[int]:
    chosen: list[int] = []
    counts: dict[Hashable, int] = {}
    opened: set[Hashable] = set()
    for candidate in np.argsort(changes, kind="stable"):
        width = widths[candidate]
        if len(chosen) == budget.neurons or not changes[candidate] < 0:
            break
        full = counts.get(width, 0) >= budget.per_width.get(width, budget.neurons)
        closed = width in new_layers and width not in opened and len(opened) == budget.layers
        if width in given_up or full or closed:
            continue
        if width in new_layers:
            opened.add(width)
        counts[width] = counts.get(width, 0) + 1
        chosen.append(int(candidate))
    return chosen


def select_exactly(
    changes: Float[np.ndarray, " candidates"],
    widths: Sequence[Hashable],
    budget: Budget,
    new_layers: Sequence[Hashable] = (),
) -> list[int]:
    """The optimum of the linearised problem under both budgets, by dynamic programming over the widths.

    Candidates that are not predicted to lower the loss are not taken, not even to fill a layer up to ``least``. Within
    a width the best k candidates are the k with the largest decrease; so what remains is how many each width gets.
    Costs widths × neurons² × layers.

    Args:
        changes: predicted change of the loss, one a candidate; negative is good.
        widths: the width of each candidate.
        budget: how many may be taken.
        new_layers: the widths that have no neurons yet.

    Returns:
        Indices of the chosen candidates, ascending.

    Raises:
        InvalidInput: not as many widths as changes.
    """
    _check_lengths(changes, widths)
    if budget.in_new_layers is not None:
        return _apart(select_exactly, changes, widths, budget, new_layers)
    layers = len(set(new_layers)) if budget.layers is None else min(budget.layers, len(set(new_layers)))
    best = np.full((budget.neurons + 1, layers + 1), np.inf)  # least sum with so many neurons and new layers
    best[0, 0] = 0.0
    kept: dict[tuple[int, int], list[int]] = {(0, 0): []}
    for width in dict.fromkeys(widths):
        own = [i for i in range(len(widths)) if widths[i] == width and changes[i] < 0]
        own = sorted(own, key=lambda i: (changes[i], i))[: budget.per_width.get(width, budget.neurons)]
        opens = int(width in set(new_layers))
        least = budget.least if opens else 1
        sums = np.concatenate([[0.0], np.cumsum([changes[i] for i in own])])
        now, chosen = best.copy(), dict(kept)
        for (neurons, used), earlier in kept.items():
            for count in range(least, min(len(own), budget.neurons - neurons) + 1):
                if used + opens > layers:
                    break
                place = (neurons + count, used + opens)
                total = best[neurons, used] + sums[count]
                if total < now[place]:
                    now[place] = total
                    chosen[place] = [*earlier, *own[:count]]
        best, kept = now, chosen
    return sorted(kept[min(kept, key=lambda place: (best[place], place))])


def _apart(
    choose: Callable[..., list[int]],
    changes: Float[np.ndarray, " candidates"],
    widths: Sequence[Hashable],
    budget: Budget,
    new_layers: Sequence[Hashable],
) -> list[int]:
    """Chooses in old widths under one budget of neurons, and in new layers under another."""
    assert budget.in_new_layers is not None
    chosen: list[int] = []
    for in_new, neurons in ((False, budget.neurons), (True, budget.in_new_layers)):
        own = [i for i in range(len(widths)) if (widths[i] in set(new_layers)) == in_new]
        part = replace(budget, neurons=neurons, in_new_layers=None)
        chosen += [own[i] for i in choose(changes[own], [widths[i] for i in own], part, new_layers)]
    return sorted(chosen)


def _check_lengths(changes: Float[np.ndarray, " candidates"], widths: Sequence[Hashable]) -> None:
    if len(changes) != len(widths):
        raise InvalidInput(f"There are {len(changes)} changes and {len(widths)} widths; give both for each candidate.")
