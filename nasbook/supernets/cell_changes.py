"""Supernets whose cells change while they train: a node comes, candidates go (growing DARTS §3.2; Chapter 6).

A change builds a new supernet for the changed spaces and carries everything over that stays: weights, batch-norm
statistics, architecture parameters and, with :func:`carry_states`, what the optimisers know of them. The old network
stays as it is. It works alike for recurrent and for convolutional supernets.

**Node morphism** (§3.2.1). The new node repeats what the cell gave before, so that the grown network computes the same
function up to the noise δ and σ, and exactly at δ = σ = 0:

* Two-to-One (Eq. 13–15): sum has weight 1 − Σε and W_xh ~ N(0, σ²); the others have ε ~ U(0, δ).
* DARTS (Eq. 17–19): identity has weight 1 − Σε on the edge from the last node, zero on all others.
* An averaging cell (DARTS' own recurrent cell, or convolutional cells with ``cell_output="mean"``): the new node is
  made the mean of those before, by identity with weight 1/m and zero with 1 − 1/m on the edge from each of them. The
  paper has no rule for it; Eq. 17's, with the output another, would change the mean.
* A convolutional cell that concatenates its nodes: Eq. 18 and 19, and what reads the new channels (the next cells'
  preprocessing, or the classifier) has weights from N(0, σ²) for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import ZERO, CellGenotype, Edge, Genotype, Space
from nasbook.networks import backbone_of
from nasbook.supernets.recurrent import NodeSoftmax, RecurrentSearchNetwork
from nasbook.supernets.relaxations import PoolSoftmax, SoftmaxRelaxation, choice_weights
from nasbook.supernets.search_network import SearchNetwork

Supernet = TypeVar("Supernet", RecurrentSearchNetwork, SearchNetwork)
Build = Callable[[dict[str, Space]], Supernet]
"""Builds a fresh supernet like the one at hand for other spaces."""

CandidateWeights = dict[tuple[int, int], dict[str, float]]
"""For some edges, the softmax weight of every candidate on it."""


def inverse_softmax(weights: Float[Tensor, " candidates"], total: float = 1.0) -> Float[Tensor, " candidates"]:
    """The α whose softmax is ``weights``: α_k = ln w_k + ln Σ exp(α) (Eq. 16).

    Args:
        weights: at least 0, with sum 1. A weight of 0 gives −∞: a candidate that gets no gradient and never comes back.
        total: Σ exp(α), which is free; 1 makes α the log-probabilities.

    Raises:
        InvalidInput: a weight is negative or not finite, the sum is not 1, or the total is not positive.
    """
    require_positive(total=total)
    if not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise InvalidInput(f"Softmax weights are at least 0 and sum to 1, got {weights.tolist()}.")
    return weights.log() + torch.tensor(total, dtype=weights.dtype).log()


def candidate_weights(network: RecurrentSearchNetwork | SearchNetwork, kind: str) -> CandidateWeights:
    """What every candidate is multiplied by, by edge, in the order in which the candidates stand there.

    On every edge they sum to 1, in double precision.
    """
    space = network.spaces[kind]
    columns = {name: place for place, name in enumerate(space.operations)}
    with torch.no_grad():
        table = network.coefficients()[kind].double().cpu()
    table = table / table.sum(-1, keepdim=True)  # a softmax in single precision sums to 1 only nearly
    return {
        edge: {name: float(row[columns[name]]) for name in space.candidates(*edge)}
        for edge, row in zip(space.edges, table, strict=True)
    }


@dataclass(frozen=True)
class NodeMorphism:
    """How a new node repeats the cell."""

    candidates: tuple[str, ...]
    """The candidates on each of its edges."""
    identity: str
    """The candidate that can pass a node on unchanged."""
    shares: dict[int, float]
    """For every node that it reads, how much of it is passed on."""


def node_morphism(
    network: RecurrentSearchNetwork | SearchNetwork, kind: str, candidates: Sequence[str]
) -> NodeMorphism:
    """The rule for one more node in the cells of a kind; see the module's description.

    Raises:
        InvalidInput: the candidates lack the identity or the zero operation where the rule needs it, or these cells
            can't repeat a node.
    """
    space = network.spaces[kind]
    node = space.inputs + space.nodes
    if isinstance(network, RecurrentSearchNetwork):
        backbone = backbone_of(kind)
        sources, averaging = backbone.sources(node), backbone.name == "highway"
        identity = "sum" if backbone.name == "two-to-one" else "identity"
        if getattr(network.cell(kind), "normalize", False):
            raise InvalidInput("A cell whose nodes are batch-normalised has no node morphism; build it without.")
    else:
        sources, averaging = tuple(range(node)), network.placements[0].output == "mean"
        identity = "skip_connect"
        if averaging and (network.bottleneck > 1 or len(network.engine_positions) < len(network.cells)):
            raise InvalidInput(
                "In an averaging cell with a bottleneck no identity passes a node on, and a Transit-cell has no "
                "weights that could: such cells have no node morphism. Build them with cell_output='concatenation'."
            )
    intermediate = [source for source in sources if source >= space.inputs] or [sources[-1]]
    repeated = intermediate if averaging else [sources[-1]]
    shares = {source: 1 / len(repeated) if source in repeated else 0.0 for source in sources}
    if identity not in candidates:
        raise InvalidInput(f"A new node repeats the last one through {identity!r}: it must be among the candidates.")
    if any(share < 1 for share in shares.values()) and ZERO not in candidates:
        raise InvalidInput(f"A new node shuts its other edges by {ZERO!r} (Eq. 18): it must be among the candidates.")
    return NodeMorphism(tuple(candidates), identity, shares)


def morphism_weights(rule: NodeMorphism, delta: float, generator: torch.Generator) -> dict[int, dict[str, float]]:
    """The softmax weights of the new node's edges, by source (Eq. 15, 18, 19).

    All candidates but identity and zero have ε ~ U(0, δ); of those two, so has the one that is to be 0.

    Raises:
        InvalidInput: δ is negative, or so large that the ε could sum to 1.
    """
    others = max(1, len(rule.candidates) - 1)
    if not 0 <= delta < 1 / others:
        raise InvalidInput(f"delta must be at least 0 and below 1/{others}, or weights could be negative; got {delta}.")
    found = {}
    for source, share in rule.shares.items():
        kept = {rule.identity: share, ZERO: 1 - share}
        large = {name: value for name, value in kept.items() if value > 0}
        drawn = delta * torch.rand(len(rule.candidates), generator=generator, dtype=torch.float64)
        weights = {name: 0.0 if name in large else float(e) for name, e in zip(rule.candidates, drawn, strict=True)}
        rest = 1 - sum(weights.values())
        found[source] = {name: large[name] * rest if name in large else e for name, e in weights.items()}
    return found


def add_node(
    network: Supernet,
    build: Build[Supernet],
    candidates: Sequence[str],
    *,
    delta: float = 0.01,
    sigma: float = 0.01,
    generator: torch.Generator,
) -> Supernet:
    """The supernet with one more intermediate node in every cell, by node morphism (§3.2.1, Algorithm 3).

    Args:
        network: left as it is.
        build: builds a supernet like it for other spaces.
        candidates: on each edge of the new node.
        delta: δ, the largest weight of a candidate that is to be 0.
        sigma: σ, the standard deviation of weights that are to be 0.
        generator: of the noise and of the other new weights, on the CPU.

    Raises:
        InvalidInput: noise that is negative or too large, or candidates without identity or zero.
    """
    if not sigma >= 0:
        raise InvalidInput(f"sigma must be at least 0, got {sigma}.")
    spaces: dict[str, Space] = {}
    weights: dict[str, CandidateWeights] = {}
    for kind, space in network.spaces.items():
        rule = node_morphism(network, kind, candidates)
        node = space.inputs + space.nodes
        spaces[kind] = _with_node(space, rule)
        by_source = morphism_weights(rule, delta, generator)
        weights[kind] = {(source, node): by_source[source] for source in rule.shares}
    grown = changed(network, build, spaces, weights, sigma=sigma, generator=generator)
    if isinstance(grown, RecurrentSearchNetwork):
        for kind, space in grown.spaces.items():
            _repeat_last(grown, kind, space.nodes, sigma, generator)
    return grown


def _with_node(space: Space, rule: NodeMorphism) -> Space:
    """A space with one more node, which reads the sources of a rule."""
    node = space.inputs + space.nodes
    left_out = space.left_out + tuple((source, node) for source in range(node) if source not in rule.shares)
    grown = replace(space, nodes=space.nodes + 1, left_out=left_out, pools=())
    if not space.pools and set(rule.candidates) == set(space.operations):
        return grown
    old = [space.candidates(*edge) for edge in space.edges]
    return grown.with_pools(old + [rule.candidates] * len(rule.shares))


def _repeat_last(
    network: RecurrentSearchNetwork, kind: str, node: int, sigma: float, generator: torch.Generator
) -> None:
    """Gives a recurrent cell's new node the weights with which it passes the ones before on."""
    cell = network.cell(kind)
    with torch.no_grad():
        if cell.backbone == "two-to-one":
            weight = cell.candidates(node - 1, node)["sum"].input_weight
            weight.copy_(sigma * torch.randn(weight.shape, generator=generator))  # type: ignore[operator, arg-type]
        elif cell.backbone == "highway":
            weight = cell.nodes[str(node)]  # type: ignore[index]
            # [c, a] = W s with a = s, so that the identity gives s + σ(c)·(s − s) = s.
            noise = sigma * torch.randn(cell.hidden, cell.hidden, generator=generator)
            weight[cell.hidden :] = torch.eye(cell.hidden).to(weight) + noise.to(weight)


def changed(
    network: Supernet,
    build: Build[Supernet],
    spaces: Mapping[str, Space],
    weights: Mapping[str, CandidateWeights],
    *,
    sigma: float = 0.0,
    generator: torch.Generator,
) -> Supernet:
    """The supernet for other spaces, with everything carried over that stays.

    Candidates are the same where edge and name are. A tensor that has grown keeps its old part in front; the rest is
    drawn from N(0, σ²). What is new altogether keeps the fresh weights that ``build`` gave it.

    Args:
        network: left as it is.
        build: builds a supernet like it for other spaces.
        spaces: the new space of every kind of cell; the kinds are those of the network.
        weights: the softmax weights of edges that are new or have other candidates than before; an edge whose
            candidates are fewer gets those that stay in proportion, if nothing is said here.
        sigma: σ.
        generator: of the noise and of the fresh weights, on the CPU.

    Raises:
        InvalidInput: an edge has new candidates and no weights are given, weights don't fit its candidates or are of
            no edge, the kinds of cell are others, or coefficients are not a softmax over every edge's candidates.
    """
    if list(spaces) != list(network.spaces):
        raise InvalidInput(f"spaces: expected the kinds {', '.join(network.spaces)}; got {', '.join(spaces)}.")
    example = next(network.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        new = build(dict(spaces)).to(example.device, example.dtype)
    before, after = _named(network), _named(new)
    with torch.no_grad():
        for name, value in after.items():
            if name in before and not name.startswith("relaxations."):
                value.copy_(_embedded(before[name], value.shape, sigma, generator))
        for kind in new.spaces:
            _set_architecture(new, network, kind, weights.get(kind, {}))
    new.train(network.training)
    return new


def _set_architecture(
    new: RecurrentSearchNetwork | SearchNetwork,
    network: RecurrentSearchNetwork | SearchNetwork,
    kind: str,
    weights: CandidateWeights,
) -> None:
    alpha, before = _alpha(new, kind), _alpha(network, kind)
    places, new_places = _places(network.spaces[kind]), _places(new.spaces[kind])
    rows = {edge: row for row, edge in enumerate(new.spaces[kind].edges)}
    for edge in weights:
        if edge not in rows:
            raise InvalidInput(f"weights: the new space of {kind} has no edge {edge}.")
    for edge in new.spaces[kind].edges:
        own = new.spaces[kind].candidates(*edge)
        if edge in weights:
            if set(weights[edge]) != set(own):
                raise InvalidInput(f"weights: the edge {edge} of {kind} has the candidates {', '.join(own)}.")
            found = inverse_softmax(torch.tensor([weights[edge][name] for name in own], dtype=torch.float64))
            # The total of Eq. 16 is free: with the least one, α of all that keep their proportions stays as it was.
            old = {name: float(before[places[edge, name]]) for name in own if (edge, name) in places}
            levels = [old[name] - float(value) for name, value in zip(own, found, strict=True) if name in old]
            known = [level for level in levels if math.isfinite(level)]
            found = found + (min(known) if known else -found[found.isfinite()].mean())
        else:
            missing = [name for name in own if (edge, name) not in places]
            if missing:
                raise InvalidInput(f"weights: the edge {edge} of {kind} has a new candidate, {missing[0]!r}.")
            found = torch.stack([before[places[edge, name]] for name in own])
        for name, value in zip(own, found, strict=True):
            alpha[new_places[edge, name]] = value.to(alpha)
        absent = [c for c, name in enumerate(new.spaces[kind].operations) if name not in own]
        alpha[rows[edge], absent] = 0.0


def _alpha(network: RecurrentSearchNetwork | SearchNetwork, kind: str) -> nn.Parameter:
    """The architecture parameters of a kind of cell: coefficients have to be a softmax over each of their rows."""
    relaxation, space = network.relaxations[kind], network.spaces[kind]
    if type(relaxation) in (SoftmaxRelaxation, PoolSoftmax, NodeSoftmax):  # subclasses may have a temperature
        alpha = relaxation.alpha
        if isinstance(alpha, nn.Parameter) and alpha.shape == (len(space.edges), len(space.operations)):
            return alpha
    raise InvalidInput(
        f"A cell can change where every edge has a softmax of its own, and {type(relaxation).__name__} is another "
        "relaxation for it. Take softmax_relaxation."
    )


def _places(space: Space) -> dict[tuple[tuple[int, int], str], tuple[int, int]]:
    """Row and column in α of every candidate, by edge and name."""
    columns = {name: place for place, name in enumerate(space.operations)}
    return {
        (edge, name): (row, columns[name])
        for row, edge in enumerate(space.edges)
        for name in space.candidates(*edge)
    }


def _embedded(old: Tensor, shape: torch.Size, sigma: float, generator: torch.Generator) -> Tensor:
    """A tensor of a larger shape that has the old one in front and noise in the rest."""
    if old.shape == shape:
        return old
    noise = sigma * torch.randn(shape, generator=generator, dtype=torch.float64)
    larger = noise.to(old)
    larger[tuple(slice(size) for size in old.shape)] = old
    return larger


def _named(network: RecurrentSearchNetwork | SearchNetwork) -> dict[str, Tensor]:
    """The state of a supernet; where edges have numbers, they are named by their nodes, which a change leaves alone."""
    state = network.state_dict(keep_vars=True)
    if isinstance(network, RecurrentSearchNetwork):
        return state

    def by_nodes(match: re.Match[str]) -> str:
        cell, edge = int(match[1]), int(match[2])
        source, target = network.spaces[network.kinds[cell]].edges[edge]
        return f"cells.{cell}.edges.{source}-{target}."

    return {re.sub(r"^cells\.(\d+)\.edges\.(\d+)\.", by_nodes, name): value for name, value in state.items()}


def carry_states(
    network: Supernet,
    optimizer: torch.optim.Optimizer,
    new: Supernet,
    new_optimizer: torch.optim.Optimizer,
) -> None:
    """Gives the optimiser of a changed supernet what the one before knew of the parameters that stayed.

    What is new begins anew. In a tensor that has grown, the new part shares the tensor's step count: its first moments
    are zero, and its second ones the mean of the old part's. At zero they would make Adam's first steps there about
    three times as long as its rate, as the count no longer corrects them.

    Args:
        network: before the change.
        optimizer: of its parameters; left as it is.
        new: after the change.
        new_optimizer: of its parameters, freshly built; changed in place.
    """
    before, after = _named(network), _named(new)
    held = {id(parameter) for group in new_optimizer.param_groups for parameter in group["params"]}
    for name, parameter in after.items():
        old = before.get(name)
        if old is None or id(parameter) not in held or old not in optimizer.state:
            continue
        state: dict[str, Any] = {}
        for key, value in optimizer.state[old].items():
            if isinstance(value, Tensor) and value.shape == old.shape:
                state[key] = _carried(value, network, new, name, parameter.shape, like_mean=key == "exp_avg_sq")
            else:
                state[key] = value.clone() if isinstance(value, Tensor) else value
        new_optimizer.state[parameter] = state


def _carried(
    value: Tensor,
    network: RecurrentSearchNetwork | SearchNetwork,
    new: RecurrentSearchNetwork | SearchNetwork,
    name: str,
    shape: torch.Size,
    *,
    like_mean: bool,
) -> Tensor:
    """A state of a tensor for the tensor as it is now; what is new there is zero, or the mean of what was there."""
    match = re.fullmatch(r"relaxations\.(.+)\.alpha", name)
    if match is None:
        found = value.new_full(shape, float(value.mean()) if like_mean else 0.0)
        found[tuple(slice(size) for size in value.shape)] = value
        return found
    places, new_places = _places(network.spaces[match[1]]), _places(new.spaces[match[1]])
    kept = {place: value[places[place]] for place in new_places if place in places}  # in order: the mean rounds by it
    found = value.new_full(shape, float(torch.stack(list(kept.values())).mean()) if like_mean and kept else 0.0)
    for place, old in kept.items():
        found[new_places[place]] = old
    return found


def pruned_spaces(
    network: RecurrentSearchNetwork | SearchNetwork, keep: int = 1
) -> tuple[dict[str, Space], dict[str, CandidateWeights]]:
    """What pruning leaves of the cells: per node the k strongest edges, on each the strongest candidates (§3.2.3).

    Args:
        network: the trained supernet; k is its spaces' ``edges_per_node``.
        keep: most candidates on an edge. With several, they keep their weights in proportion.

    Returns:
        The spaces, and the weights of their candidates, which sum to 1 on every edge.
    """
    require_positive(keep=keep)
    spaces: dict[str, Space] = {}
    weights: dict[str, CandidateWeights] = {}
    coefficients = network.coefficients()
    for kind, space in network.spaces.items():
        table = choice_weights(coefficients[kind], space)
        kept: CandidateWeights = {}
        for node in range(space.inputs, space.inputs + space.nodes):
            # The sort is stable: of equals, the lower index stays, as in DARTS' derivation.
            ranked = sorted(space.sources(node), key=lambda source: -max(table[source, node]))
            for source in sorted(ranked[: space.kept(node)]):
                own = [name for name in space.candidates(source, node) if name != ZERO]
                by_name = dict(zip(space.choices, table[source, node], strict=True))
                strongest = sorted(own, key=lambda name: -by_name[name])[:keep]
                total = sum(by_name[name] for name in strongest)
                if not total > 0:  # rounding left nothing but the zero operation
                    by_name, total = dict.fromkeys(by_name, 1.0), float(len(strongest))
                kept[source, node] = {name: by_name[name] / total for name in own if name in strongest}
        graph = replace(
            space,
            left_out=tuple((s, t) for t in range(space.inputs, space.inputs + space.nodes) for s in range(t)
                           if (s, t) not in kept),
            pools=(),
        )
        spaces[kind] = graph.with_pools([tuple(kept[edge]) for edge in graph.edges])
        weights[kind] = kept
    return spaces, weights


def prune(
    network: Supernet, build: Build[Supernet], *, keep: int = 1, generator: torch.Generator
) -> Supernet:
    """The supernet without the candidates and edges that :func:`pruned_spaces` leaves out (Algorithm 2, Prune)."""
    spaces, weights = pruned_spaces(network, keep)
    return changed(network, build, spaces, weights, generator=generator)


def remaining_cells(network: RecurrentSearchNetwork | SearchNetwork) -> Genotype:
    """The cells of a pruned supernet as they are: every candidate that is left is an edge."""
    cells = {}
    for kind, space in network.spaces.items():
        edges = tuple(Edge(*edge, name) for edge in space.edges for name in space.candidates(*edge) if name != ZERO)
        output = network.cell(kind).output if isinstance(network, RecurrentSearchNetwork) else ()
        cells[kind] = CellGenotype(edges, space.nodes, space.inputs, output)
    return Genotype(cells)
