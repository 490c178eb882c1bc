"""Pools of candidates that change: who is pruned, who becomes a parent, who is born (PR-DARTS §3.2; Chapter 5).

A pool belongs to one edge of one kind of cell and remembers every candidate that ever stood there. Pools are values:
pruning and replacing give new ones. Nothing here has weights; what a child inherits is
:func:`nasbook.growth.morph`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from nasbook.errors import InvalidInput
from nasbook.operations import Configuration, Constraints, get_operation, is_morphable, morphisms_of

Likelihoods = Mapping[str, float]
"""How likely each morphism is, by name, relative to the others."""


@dataclass(frozen=True)
class Life:
    """One candidate's life on one edge. A configuration that comes back has another life."""

    operation: str
    """Its name."""
    born: int
    """The first cycle in which it trains; 1 for the first of the search."""
    parent: str | None = None
    """Which candidate it was morphed from; None for the initial ones."""
    morphism: str | None = None
    """By which morphism."""
    weights: tuple[float, ...] = ()
    """Its softmax weight at the end of every cycle that it lived through, from ``born`` on."""
    died: int | None = None
    """The cycle at whose end it was pruned; None while it lives."""


@dataclass(frozen=True)
class Pool:
    """The candidates of one edge, with their history, in order of birth."""

    lives: tuple[Life, ...]

    @classmethod
    def of(cls, operations: Sequence[str]) -> Pool:
        """A pool in its first cycle."""
        return cls(tuple(Life(operation, born=1) for operation in operations))

    @property
    def living(self) -> tuple[Life, ...]:
        """The candidates that stand on the edge now."""
        return tuple(life for life in self.lives if life.died is None)

    @property
    def operations(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(life.operation for life in self.living)

    @property
    def seen(self) -> frozenset[str]:
        """The names of all candidates that stand or ever stood on the edge."""
        return frozenset(life.operation for life in self.lives)

    def in_cycle(self, cycle: int) -> tuple[str, ...]:
        """The names of the candidates that stood on the edge in a cycle."""
        there = [life for life in self.lives if life.born <= cycle and (life.died is None or life.died >= cycle)]
        return tuple(life.operation for life in there)

    def weighed(self, weights: Mapping[str, float]) -> Pool:
        """The same pool with the softmax weights that its candidates ended a cycle with.

        Raises:
            InvalidInput: a weight is missing, or is none of a living candidate.
        """
        if set(weights) != set(self.operations):
            raise InvalidInput(f"Expected a weight for each of {', '.join(self.operations)}; got {', '.join(weights)}.")
        return Pool(
            tuple(
                life if life.died is not None else replace(life, weights=(*life.weights, weights[life.operation]))
                for life in self.lives
            )
        )

    def pruned(self, keep: int, cycle: int, *, keep_convolution: bool = True) -> Pool:
        """Without the candidates of the smallest weights (§3.2.2).

        Of equal weights, the candidate that was born first stays.

        Args:
            keep: how many candidates stay, at least 1; a smaller pool stays as it is.
            cycle: the cycle that has just ended.
            keep_convolution: whether the strongest convolution stays, even among the weakest candidates.

        Raises:
            InvalidInput: ``keep`` is below 1, or the candidates have no weights yet.
        """
        if keep < 1:
            raise InvalidInput(f"A pool keeps at least 1 candidate, got keep={keep}.")
        ranked = sorted(self.living, key=lambda life: -_last_weight(life))  # stable: equals keep their order
        if keep_convolution:
            convolutions = [life for life in ranked if get_operation(life.operation).kind == "convolution"]
            ranked = [*convolutions[:1], *(life for life in ranked if life not in convolutions[:1])]
        dying = ranked[keep:]
        return Pool(tuple(replace(life, died=cycle) if life in dying else life for life in self.lives))

    def replaced(
        self,
        children: int,
        cycle: int,
        constraints: Constraints,
        generator: torch.Generator,
        likelihoods: Likelihoods | None = None,
    ) -> Pool:
        """With children of the candidates that are left, born for the next cycle (§3.2, §3.2.2).

        A parent is drawn by the softmax over the architecture parameters of those that are left, then one of its
        available morphisms. A configuration that stands or stood on this edge is drawn again, so what is drawn is the
        product of both probabilities among the configurations that the edge has not seen. Where there are none, those
        that it has seen before and that do not stand there now; where there are none of these either, no child is born.

        Args:
            children: how many are wanted.
            cycle: the cycle that has just ended; the children are born in the next one.
            constraints: where morphisms may lead.
            generator: draws, on the CPU.
            likelihoods: of morphisms among those that a parent has; None for equal ones, as the paper takes.

        Raises:
            InvalidInput: the candidates have no weights yet.
        """
        parents = self.living
        pool = self
        for _ in range(children):
            offspring = list(possible_children(parents, constraints, likelihoods))
            unseen = [child for child in offspring if child[0].operation not in pool.seen]
            gone = [child for child in offspring if child[0].operation not in pool.operations]
            choices = unseen or gone
            if not choices:
                break
            likelihood = torch.tensor([probability for _, probability in choices], dtype=torch.float64)
            if not likelihood.sum() > 0:  # every parent's weight underflowed
                likelihood = torch.ones_like(likelihood)
            place = int(torch.multinomial(likelihood, 1, generator=generator))
            pool = Pool((*pool.lives, replace(choices[place][0], born=cycle + 1)))
        return pool

    def first_weights(self, cycle: int) -> list[tuple[str, float]]:
        """For every child in its first cycle: its morphism, and its weight as a multiple of the pool's mean weight."""
        size = len(self.in_cycle(cycle))
        return [
            (life.morphism, life.weights[0] * size)
            for life in self.lives
            if life.born == cycle and life.morphism is not None and life.weights
        ]


def possible_children(
    parents: Sequence[Life], constraints: Constraints, likelihoods: Likelihoods | None = None
) -> list[tuple[Life, float]]:
    """Every child that the parents can have, with the probability that a draw proposes it.

    The same configuration stands there once for each way to it.
    """
    found = []
    for parent in parents:
        if not is_morphable(parent.operation):
            continue
        available = morphisms_of(Configuration.parse(parent.operation), constraints)
        chances = {name: 1.0 if likelihoods is None else likelihoods.get(name, 1.0) for name in available}
        total = sum(chances.values())
        for name, child in available.items():
            life = Life(child.name, 0, parent.operation, name)
            found.append((life, _last_weight(parent) * chances[name] / total))
    return found


def morphism_likelihoods(first_weights: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The mean first weight of each morphism's children: how §5's weighting of morphisms draws them.

    The children are those of a whole cell, over all of its edges and cycles so far. 1 says that they ended their first
    cycle as strong as the mean of their pools. Morphisms without children yet have 1, and none falls below 0.1.
    """
    by_morphism: dict[str, list[float]] = {}
    for name, weight in first_weights:
        by_morphism.setdefault(name, []).append(weight)
    return {name: max(0.1, sum(values) / len(values)) for name, values in by_morphism.items()}


WeighMorphisms = Callable[[Sequence[tuple[str, float]]], Likelihoods | None]

MORPHISM_CHOICES: dict[str, WeighMorphisms] = {
    "uniform": lambda first_weights: None,
    "performance": morphism_likelihoods,
}
"""How a parent's morphism is drawn: all alike (§3.2), or by the performance of earlier children (proposed in §5)."""


def _last_weight(life: Life) -> float:
    if not life.weights:
        raise InvalidInput(f"{life.operation} has no weight yet: give the pool's weights at the end of a cycle first.")
    return life.weights[-1]
