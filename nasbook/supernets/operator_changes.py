"""The operations on an edge change while a supernet trains: copies, pruning, exchange (growing DARTS §3.2.2–3.2.5).

Chapter 6, Algorithm 4. :func:`change_operators` looks at the softmax weights of every edge, one edge after another, and
does at most one kind of change on it:

* **Growing by a small weight** (§3.2.2): where a candidate's weight surpasses a threshold, one more of the same
  operation comes with fresh parameters and a small weight; the others keep their proportions. So ``tanh`` gets a
  ``tanh-2``.
* **Exchange** (§3.2.4), where nothing grows: the weakest candidate is replaced by one more of the strongest operation,
  or the whole pool is drawn anew from its own weights.
* **Pruning** (§3.2.3): where no candidate surpasses the threshold, those whose weight is close to 0 go.

The other way to grow, splitting steepest descent, is in :mod:`nasbook.supernets.operator_splitting`.

What the paper leaves open, and what we do:

* Only candidates with an activation are copied. The zero operation and the identity have no parameters, and two sums or
  two products compute what one does: w₁(W₁x + h) + w₂(W₂x + h) = (w₁ + w₂)(W₃x + h). So "the operation that has the
  largest weights" (§3.2.5) is the strongest *with an activation*. A new node, where sum or identity has nearly all the
  weight, is left alone.
* The weight of an operation is that of one candidate, not of all its copies together.
* One threshold says where the strongest is strong enough: to be copied, and to keep its edge from being pruned.
* Candidates go one at a time, the weakest first, and the next one is judged by the weights that are then left.
* Replacing needs a weakest candidate that is weaker than the one that takes its place. Otherwise the strongest would
  gain by every exchange, and exchange would never end.
* Drawing anew keeps as many draws as there were candidates. What is drawn c times stands there c times with 1/c of its
  weight: this changes the function least. Copies get noise that sums to zero over them, so that the function stays as
  it is to first order, and yet they part.
* All edges are looked at, each alone: the edges of one node don't compete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import ZERO
from nasbook.networks import backbone_of
from nasbook.operations import copy_name, operation_of
from nasbook.operations.recurrent import ACTIVATIONS
from nasbook.supernets.cell_changes import Build, CandidateWeights, Supernet, candidate_weights, changed
from nasbook.supernets.recurrent import RecurrentSearchNetwork
from nasbook.supernets.search_network import SearchNetwork

Strategy = Literal["none", "small-weight", "splitting"]
STRATEGIES: tuple[Strategy, ...] = ("none", "small-weight", "splitting")
"""How operations grow (§3.2.2): not at all, by a copy with a small weight, or by splitting."""

Choice = Literal["most-negative", "least-sum", "all-negative"]
CHOICES: tuple[Choice, ...] = ("most-negative", "least-sum", "all-negative")
"""Which operations are split (§3.2.5); see :class:`OperatorRules`."""

Exchange = Literal["none", "replace", "resample"]
EXCHANGES: tuple[Exchange, ...] = ("none", "replace", "resample")
"""How candidates make room for others (§3.2.4)."""


@dataclass(frozen=True)
class OperatorRules:
    """When the operations of an edge change, and how (§3.2.5). The defaults change nothing.

    Raises:
        InvalidInput: an unknown name, or a number that makes no sense.
    """

    strategy: Strategy = "none"
    """How operations grow."""
    grow_above: float = 0.5
    """A candidate is copied when its softmax weight is above this. No candidate goes while one's weight is."""
    share: float = 0.1
    """The softmax weight of a new candidate with fresh parameters."""
    most_candidates: int = 8
    """Nothing grows on an edge with so many candidates."""
    choose: Choice = "most-negative"
    """Which operations are split: of every node the one with the most hidden units whose least eigenvalue is below 0,
    or the one with the least sum of least eigenvalues; or all of which every unit's is below 0."""
    split_step: float = 0.1
    """ε: how far both halves of a split go from the parameters before, along a unit vector for each hidden unit. Eq. 11
    goes 1 far, where the second order no longer says what the loss does: of four splits of trained cells three raised
    it there. At 0.1 it fell by 0.7 to 0.9 of what the eigenvalues promise."""
    prune_below: float = 0.0
    """A candidate goes when its softmax weight is below this; 0 for never."""
    exchange: Exchange = "none"
    """What makes room, where a candidate's weight is above ``grow_above`` and nothing grows."""
    noise: float = 0.01
    """Standard deviation of what tells copies apart that were drawn together, relative to the root mean square of
    each tensor."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("strategy", self.strategy, STRATEGIES),
            ("choice", self.choose, CHOICES),
            ("exchange", self.exchange, EXCHANGES),
        ):
            if value not in known:
                raise unknown_name(f"{name} of operators", value, known)
        require_positive(most_candidates=self.most_candidates, split_step=self.split_step, noise=self.noise)
        if not 0 < self.grow_above <= 1:
            raise InvalidInput(f"grow_above is a softmax weight, above 0 and at most 1; got {self.grow_above}.")
        if not 0 < self.share < 1:
            raise InvalidInput(f"share is a softmax weight, between 0 and 1; got {self.share}.")
        if not 0 <= self.prune_below <= self.grow_above:
            raise InvalidInput(
                f"prune_below is a softmax weight, at least 0 and at most grow_above, which is {self.grow_above}; "
                f"got {self.prune_below}."
            )
        fresh = self.strategy == "small-weight" or self.exchange == "replace"
        if fresh and self.share < self.prune_below:
            raise InvalidInput(
                f"share is {self.share} and prune_below {self.prune_below}: a new candidate would soon be pruned. "
                f"Give it a share of at least prune_below."
            )


@dataclass(frozen=True)
class OperatorChange:
    """One candidate came or went. The changes of an edge follow one another: one's after is the next one's before."""

    what: Literal["grow", "split", "prune", "replace", "resample"]
    """Why."""
    kind: str
    """Of the cell."""
    edge: tuple[int, int]
    """Source and target."""
    candidate: str
    """Who came or went."""
    parent: str | None
    """The candidate of which it is a copy; None for one that went."""
    weights_before: dict[str, float]
    """Softmax weights of the edge's candidates before."""
    weights_after: dict[str, float]
    """And after."""


@dataclass
class EdgeChanges:
    """What happens to the candidates of one edge, one step after another."""

    kind: str
    edge: tuple[int, int]
    weights: dict[str, float]
    """Softmax weights of the candidates that stand there now."""
    steps: list[OperatorChange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen = tuple(self.weights)

    @property
    def copies(self) -> dict[str, str]:
        """The candidates that came, with their parents."""
        return {step.candidate: step.parent for step in self.steps if step.parent is not None}

    def remove(self, what: Literal["prune", "replace", "resample"], name: str) -> None:
        """Takes a candidate away; the others keep their proportions."""
        rest = {other: weight for other, weight in self.weights.items() if other != name}
        total = sum(rest.values())
        self._step(what, name, None, {other: weight / total for other, weight in rest.items()})

    def add(self, what: Literal["grow", "replace"], parent: str, share: float) -> None:
        """One more candidate of the parent's operation, with some weight; the others keep their proportions."""
        name = self._new_name(parent)
        self._step(what, name, parent, {**{n: w * (1 - share) for n, w in self.weights.items()}, name: share})

    def divide(self, what: Literal["split", "resample"], parent: str, copies: int = 1) -> None:
        """So many copies of a candidate, which share its weight with it equally."""
        total, family = self.weights[parent], [parent]
        for _ in range(copies):
            family.append(self._new_name(parent))
            self._step(what, family[-1], parent, {**self.weights, **dict.fromkeys(family, total / len(family))})

    def _new_name(self, parent: str) -> str:
        # A name that has just become free would give the newcomer the parameters of the one that went.
        return copy_name(operation_of(parent), self._seen)

    def _step(self, what: str, name: str, parent: str | None, weights: dict[str, float]) -> None:
        self.steps.append(OperatorChange(what, self.kind, self.edge, name, parent, self.weights, weights))  # type: ignore[arg-type]
        self.weights = weights
        self._seen += (name,) if parent is not None else ()


def change_operators(
    network: Supernet, build: Build[Supernet], rules: OperatorRules, generator: torch.Generator
) -> tuple[Supernet, tuple[OperatorChange, ...]]:
    """Growth by small weights, pruning and exchange, by the softmax weights of now (Algorithm 4).

    Parameters of candidates that stay are kept, except where a candidate was drawn several times and gets noise. The
    architecture parameters of an edge where candidates only go stay as they are: the softmax over the rest is what
    keeps the others' proportions.

    Args:
        network: left as it is.
        build: builds a supernet like it for other spaces.
        rules: when and how. With the strategy ``splitting`` nothing grows here; see
            :func:`~nasbook.supernets.split_operators`.
        generator: of fresh parameters, draws and noise, on the CPU.

    Returns:
        The changed supernet and its changes; the same network and nothing, where no rule applies.

    Raises:
        InvalidInput: the rules ask for copies of operations, and the network can't have them.
    """
    if rules.strategy != "none" or rules.exchange != "none":
        require_copies(network)
    edges = []
    for kind in network.spaces:
        for edge, weights in candidate_weights(network, kind).items():
            if is_computed(network, kind, edge):
                edges.append(EdgeChanges(kind, edge, weights))
                _change(edges[-1], rules, generator)
    new = with_changes(network, build, edges, generator)
    for one in edges:
        _tell_apart(new, one, rules.noise, generator)
    return new, tuple(step for one in edges for step in one.steps)


def require_copies(network: RecurrentSearchNetwork | SearchNetwork) -> None:
    """Raises :class:`InvalidInput` where one operation can't stand several times on an edge."""
    if isinstance(network, SearchNetwork):
        raise InvalidInput(
            "Convolutional candidates stand on an edge once: copies need a recurrent supernet. "
            "Set strategy and exchange to 'none'; pruning works."
        )
    for kind in network.spaces:
        if backbone_of(kind).name == "highway":
            raise InvalidInput(
                f"In the cell {kind!r} the operations of a node share their weights, so that a copy computes nothing "
                "new. Set strategy and exchange to 'none'; pruning works. Or take the backbone 'darts' or 'two-to-one'."
            )


def is_computed(network: RecurrentSearchNetwork | SearchNetwork, kind: str, edge: tuple[int, int]) -> bool:
    """Whether the output of a cell depends on an edge: not so in a pruned cell where no later node reads its target."""
    return isinstance(network, SearchNetwork) or edge[1] in network.cell(kind).needed


def is_copied(name: str) -> bool:
    """Whether copies of a candidate compute what it can't compute alone: those with an activation do."""
    return operation_of(name) in ACTIVATIONS


def with_changes(
    network: Supernet, build: Build[Supernet], edges: Iterable[EdgeChanges], generator: torch.Generator
) -> Supernet:
    """The supernet after some changes; copies have fresh parameters. Without changes the same network."""
    edges = [one for one in edges if one.steps]
    if not edges:
        return network
    spaces = dict(network.spaces)
    weights: dict[str, CandidateWeights] = {kind: {} for kind in spaces}
    for kind, space in spaces.items():
        own = {one.edge: one for one in edges if one.kind == kind}
        if own:
            spaces[kind] = space.with_pools(
                [tuple(own[edge].weights) if edge in own else space.candidates(*edge) for edge in space.edges]
            )
        weights[kind] = {edge: one.weights for edge, one in own.items() if one.copies}
    return changed(network, build, spaces, weights, generator=generator)


def _change(edge: EdgeChanges, rules: OperatorRules, generator: torch.Generator) -> None:
    copied = [name for name in edge.weights if is_copied(name)]
    parent = max(copied, key=lambda name: edge.weights[name], default=None)  # of equals the first
    if parent is not None and edge.weights[parent] > rules.grow_above:
        if rules.strategy == "small-weight" and len(edge.weights) < rules.most_candidates:
            edge.add("grow", parent, rules.share)
        elif rules.exchange == "replace":
            _replace(edge, parent, rules.share)
        elif rules.exchange == "resample":
            _resample(edge, rules.most_candidates, generator)
        return
    while len(edge.weights) > 1 and max(edge.weights.values()) <= rules.grow_above:
        name = _weakest(edge)
        if edge.weights[name] >= rules.prune_below:
            break
        edge.remove("prune", name)


def _weakest(edge: EdgeChanges) -> str:
    """The weakest candidate that may go, of equals the last: an edge keeps one besides the zero operation."""
    others = [name for name in edge.weights if name != ZERO]
    names = [name for name in edge.weights if [name] != others]
    return min(reversed(names), key=lambda name: edge.weights[name])


def _replace(edge: EdgeChanges, parent: str, share: float) -> None:
    # One that has just come is as strong as the next one would be, but for rounding: it stays.
    if len(edge.weights) > 1 and edge.weights[name := _weakest(edge)] < share * (1 - 1e-5) and name != parent:
        edge.remove("replace", name)
        edge.add("replace", parent, share)


def _resample(edge: EdgeChanges, most: int, generator: torch.Generator) -> None:
    names = list(edge.weights)
    chances = torch.tensor(list(edge.weights.values()), dtype=torch.float64)
    draws = torch.multinomial(chances, min(len(names), most), replacement=True, generator=generator)
    drawn = Counter(names[place] for place in draws.tolist())
    if set(drawn) == {ZERO}:  # an edge needs another one: the strongest
        drawn[max((name for name in names if name != ZERO), key=lambda name: edge.weights[name])] = 1
    for name in names:
        if name not in drawn:
            edge.remove("resample", name)
    for name in names:
        if drawn[name] > 1 and is_copied(name):
            edge.divide("resample", name, drawn[name] - 1)


@torch.no_grad()
def _tell_apart(
    network: RecurrentSearchNetwork | SearchNetwork, edge: EdgeChanges, noise: float, generator: torch.Generator
) -> None:
    """Gives copies that were drawn their parent's parameters, and adds noise to it and to them, which sums to zero."""
    divided = {step.candidate: step.parent for step in edge.steps if step.what == "resample" and step.parent}
    for parent in dict.fromkeys(divided.values()):
        assert isinstance(network, RecurrentSearchNetwork)  # for the type checker: no other one has copies
        candidates = network.cell(edge.kind).candidates(*edge.edge)
        family = [parent, *(name for name, of in divided.items() if of == parent)]
        members = [dict(candidates[name].named_parameters()) for name in family]
        for name, value in members[0].items():
            drawn = torch.randn(len(family), *value.shape, generator=generator, dtype=torch.float64)
            scale = noise * value.square().mean().sqrt()
            moved = value + scale * (drawn - drawn.mean(0)).to(value)
            for member, own in zip(members, moved, strict=True):
                member[name].copy_(own)
