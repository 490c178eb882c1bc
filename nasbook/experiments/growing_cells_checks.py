"""Chapter 6: what is exact about growing cells: Table 2, Eq. 16, and the morphism that adds a node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.analysis import count_parameters, darts_parameters, gated_parameters, two_to_one_parameters
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import Verdict, exact
from nasbook.genotypes import DARTS_SPACE, ZERO, Space
from nasbook.networks import RECURRENT_BACKBONES, TORCH_CELLS, CellOutput
from nasbook.operations.batch_norms import kept_statistics
from nasbook.seeding import generator
from nasbook.supernets import (
    Build,
    CandidateWeights,
    NodeSoftmax,
    RecurrentSearchNetwork,
    Relaxation,
    SearchNetwork,
    SoftmaxRelaxation,
    add_node,
    candidate_weights,
    changed,
    inverse_softmax,
)
from nasbook.supernets.cell_changes import Supernet

__all__ = [
    "EXACT",
    "MORPHISM_EXAMPLES",
    "TABLE_2",
    "Example",
    "convolutional_example",
    "is_linear",
    "measured",
    "node_bound",
    "recurrent_example",
    "relative_change",
]

CHAPTER = "06-growing-recurrent-cells"


# --- examples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """As much of the data as a forecaster's supernet has to know."""

    features: int
    task: Literal["forecasting", "language"] = "forecasting"


@dataclass(frozen=True)
class Example(Generic[Supernet]):
    """A supernet in float64 whose weights and α are as far from fresh ones as if it had been trained."""

    network: Supernet
    build: Build[Supernet]
    """Builds one like it for other spaces."""
    candidates: tuple[str, ...]
    """Of a new node's edges."""
    inputs: Tensor
    """A batch."""
    targets: Tensor
    """What a loss compares with: random numbers."""


def recurrent_example(
    backbone: str,
    nodes: int,
    seed: int,
    *,
    series: int = 3,
    hidden: int = 4,
    layers: int = 1,
    steps: int = 10,
    examples: int = 8,
    operations: tuple[str, ...] = (),
) -> Example[RecurrentSearchNetwork]:
    """A forecaster's supernet with one of the recurrent backbones; ``operations`` are its own where none are given."""
    space = RECURRENT_BACKBONES[backbone].space(nodes, layers)
    space = replace(space, operations=operations or space.operations)

    def build(spaces: dict[str, Space]) -> RecurrentSearchNetwork:
        return RecurrentSearchNetwork(spaces, Series(series), hidden, engine="readable")

    draws = generator(seed, "example", backbone, nodes)
    network = _moved(lambda: build(dict.fromkeys(space.kinds, space)), 1.0, draws)
    inputs = torch.randn(examples, steps, series, generator=draws, dtype=torch.float64)
    targets = torch.randn(examples, series, generator=draws, dtype=torch.float64)
    return Example(network, build, space.operations, inputs, targets)


CONVOLUTIONAL_OPERATIONS = (ZERO, "skip_connect", "max_pool_3x3", "sep_conv_3x3")


def convolutional_example(output: CellOutput, seed: int) -> Example[SearchNetwork]:
    """A classifier's supernet of three cells with two nodes each; its batch norms have seen some images."""
    space = replace(DARTS_SPACE, nodes=2, operations=CONVOLUTIONAL_OPERATIONS)

    def build(spaces: dict[str, Space]) -> SearchNetwork:
        return SearchNetwork(spaces, 2, 3, 4, engine="readable", cell_output=output)

    draws = generator(seed, "example", output)
    network = _moved(lambda: build(dict.fromkeys(space.kinds, space)), 0.3, draws)
    with torch.no_grad():
        for _ in range(2):
            network.train()(torch.randn(8, 3, 8, 8, generator=draws, dtype=torch.float64))
    inputs = torch.randn(4, 3, 8, 8, generator=draws, dtype=torch.float64)
    return Example(network, build, space.operations, inputs, torch.zeros(4, dtype=torch.float64))


def _moved(make: Callable[[], Any], far: float, draws: torch.Generator) -> Any:
    """A fresh network, each tensor moved by noise of its own size times ``far``; α is drawn from N(0, 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        network = make().double()
    architecture = {id(parameter) for parameter in network.architecture()}
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
            if id(parameter) in architecture:
                parameter.copy_(noise)
            else:
                parameter.add_(far * parameter.square().mean().sqrt() * noise)
    return network


def relative_change(before: Tensor, after: Tensor) -> float:
    """‖after − before‖ / ‖before‖."""
    return float((after - before).norm() / before.norm())


# --- Table 2 ----------------------------------------------------------------------------------------------------------

SERIES = {"G7": 7, "BRICS": 5}
"""n_x = n_h of each data set."""

NODES = (2, 3, 4, 5, 6, 7)

TABLE_2: dict[str, dict[str, Any]] = {
    "G7": {
        "lstm": 392,
        "gru": 294,
        "darts": [451, 750, 1196, 1789, 2529, 3416],
        "two-to-one": [836, 1254, 1672, 2090, 2508, 2926],
    },
    "BRICS": {
        "lstm": 200,
        "gru": 150,
        "darts": [235, 390, 620, 925, 1305, 1760],
        "two-to-one": [440, 660, 880, 1100, 1320, 1540],
    },
}
"""As printed; the backbones with 2 to 7 nodes."""

FORMULAS = {"G7": {"lstm": 420, "gru": 315}, "BRICS": {"lstm": 220, "gru": 165}}
"""What the formulas in the same rows of Table 2 give."""

BREAK_EVEN = {"G7": 6, "BRICS": 7}
"""By Table 2, the least number of nodes at which the Two-to-One backbone is the smaller one."""


def parameters() -> dict[str, Any]:
    """Table 2 by counting tensors: of cells and combination weights, without the head.

    For each data set: the backbones with one softmax a node (as Eq. 22 counts) or one an edge (as growth needs), and
    without biases; LSTM and GRU with no bias vector, with the one a gate that the formula has, and with torch's two.
    And what the formulas of :mod:`nasbook.analysis` give.
    """
    found: dict[str, Any] = {"nodes": list(NODES)}
    for data, n in SERIES.items():
        rows: dict[str, Any] = {}
        for cell, layer in TORCH_CELLS.items():
            weights, with_biases = (layer(n, n, bias=bias) for bias in (False, True))
            one = [tensor for name, tensor in with_biases.named_parameters() if not name.startswith("bias_hh")]
            rows[cell] = [count_parameters(weights), count_parameters(one), count_parameters(with_biases)]
            rows[f"{cell}, formula"] = [gated_parameters(cell, (n, n), biases) for biases in (0, 1, 2)]
        formulas = {"darts": darts_parameters, "two-to-one": two_to_one_parameters}
        for backbone, formula in formulas.items():
            a_node = [_backbone(backbone, m, n, NodeSoftmax) for m in NODES]
            an_edge = [_backbone(backbone, m, n, SoftmaxRelaxation) for m in NODES]
            rows[backbone] = [count_parameters(one) for one in a_node]
            rows[f"{backbone}, an edge"] = [count_parameters(one) for one in an_edge]
            rows[f"{backbone}, no bias"] = [
                count_parameters(tensor for name, tensor in one.named_parameters() if not name.endswith(".bias"))
                for one in a_node
            ]
            rows[f"{backbone}, formula"] = [formula((n, n), m) for m in NODES]
        rows["darts, bias"] = [darts_parameters((n, n), m, biases=1) for m in NODES]
        found[data] = rows
    return found


def _backbone(name: str, nodes: int, width: int, relaxation: Callable[[Space], Relaxation]) -> nn.ModuleList:
    """The cell of a backbone's supernet and its architecture parameters, without the head."""
    space = RECURRENT_BACKBONES[name].space(nodes)
    network = RecurrentSearchNetwork({name: space}, Series(width), width, relaxation=relaxation, engine="readable")
    return nn.ModuleList([network.body, network.relaxations])


def _judge_parameters(record: Record) -> Verdict:
    values = record.measurements[0].values["parameters"]
    right = values["nodes"] == list(NODES)
    for data, table in TABLE_2.items():
        rows = values[data]
        for backbone in ("darts", "two-to-one"):
            right &= rows[backbone] == table[backbone] == rows[f"{backbone}, formula"]
        right &= rows["two-to-one, an edge"] == rows["two-to-one"]
        for cell in ("lstm", "gru"):
            right &= rows[cell][:2] == [table[cell], FORMULAS[data][cell]] and rows[cell] == rows[f"{cell}, formula"]
    classical = "; ".join(
        f"{cell.upper()} {'/'.join(str(values[data][cell][0]) for data in TABLE_2)}, by the formula in its row "
        f"{'/'.join(str(values[data][cell][1]) for data in TABLE_2)}, in torch "
        f"{'/'.join(str(values[data][cell][2]) for data in TABLE_2)}"
        for cell in ("lstm", "gru")
    )
    an_edge = "/".join(str(values[data]["darts, an edge"][-1]) for data in TABLE_2)
    a_node = "/".join(str(values[data]["darts"][-1]) for data in TABLE_2)
    numbers = (
        f"both backbones as printed (DARTS with 7 nodes {a_node}, with a softmax for each edge, as growth needs, "
        f"{an_edge}); without biases {classical}"
    )
    return exact(right, numbers)


def _judge_breakeven(record: Record) -> Verdict:
    values = record.measurements[0].values["parameters"]
    nodes = values["nodes"]
    right, texts, alike = True, [], []
    for data, expected in BREAK_EVEN.items():
        rows = values[data]
        darts, ours = rows["darts"], rows["two-to-one"]
        smaller = [m for m, one, other in zip(nodes, ours, darts, strict=True) if one < other]
        right &= smaller == [m for m in nodes if m >= expected] and nodes == list(NODES)
        pairs = ", ".join(f"{m}: {ours[nodes.index(m)]} against {darts[nodes.index(m)]}" for m in (5, 6, 7))
        texts.append(f"{data} from {min(smaller, default=None)} nodes ({pairs})")
        for one, other in (("two-to-one, no bias", "darts, no bias"), ("two-to-one", "darts, bias")):
            alike += [next((m for m, a, b in zip(nodes, rows[one], rows[other], strict=True) if a < b), None)]
    counted = "/".join(map(str, alike))
    numbers = f"{'; '.join(texts)}; with biases counted alike, in neither or in both, from {counted} nodes"
    return exact(right, numbers)


# --- Eq. 16 -----------------------------------------------------------------------------------------------------------

ROUNDING = 1e-15
"""Most that a softmax weight may be off in float64."""


def alpha() -> dict[str, Any]:
    """softmax(inverse_softmax(w)) − w at most: over random w and Σ exp(α), with zeros in w, and in supernets.

    The last are those of new candidate weights that :func:`nasbook.supernets.changed` was given for every edge.
    """
    draws = generator(0, "alpha")
    errors, with_zeros, zeros_kept, zeros = [], [], 0, 0
    for _ in range(1000):
        candidates = int(torch.randint(2, 9, (), generator=draws))
        spread, exponent = (float(torch.rand((), generator=draws)) for _ in range(2))
        w = (10 * spread * torch.randn(candidates, generator=draws, dtype=torch.float64)).softmax(0)
        total = 10 ** (12 * exponent - 6)
        errors.append(float((inverse_softmax(w, total).softmax(0) - w).abs().max()))
        gone = torch.randperm(candidates, generator=draws)[: int(torch.randint(1, candidates, (), generator=draws))]
        w[gone] = 0.0
        if w.sum() > 0:
            w = w / w.sum()
            back = inverse_softmax(w, total).softmax(0)
            with_zeros.append(float((back - w).abs().max()))
            zeros += len(gone)
            zeros_kept += int((back[gone] == 0).sum())
    return {
        "draws": len(errors),
        "error": max(errors),
        "draws_with_zeros": len(with_zeros),
        "error_with_zeros": max(with_zeros),
        "zeros": zeros,
        "zeros_kept": zeros_kept,
        "error_in_supernets": max(_weights_error(name, seed) for name in RECURRENT_BACKBONES for seed in range(20)),
    }


def _weights_error(backbone: str, seed: int) -> float:
    example = recurrent_example(backbone, 3, seed)
    network, draws = example.network, generator(seed, "weights")
    wanted: dict[str, CandidateWeights] = {}
    for kind, space in network.spaces.items():
        logits = torch.randn(len(space.edges), len(space.operations), generator=draws, dtype=torch.float64)
        wanted[kind] = {
            edge: dict(zip(space.candidates(*edge), row.tolist(), strict=True))
            for edge, row in zip(space.edges, (3 * logits).softmax(1), strict=True)
        }
    new = changed(network, example.build, network.spaces, wanted, generator=draws)
    return max(
        abs(weight - wanted[kind][edge][name])
        for kind in wanted
        for edge, weights in candidate_weights(new, kind).items()
        for name, weight in weights.items()
    )


def _judge_alpha(record: Record) -> Verdict:
    values = record.measurements[0].values["alpha"]
    errors = [measured(values[name]) for name in ("error", "error_with_zeros", "error_in_supernets")]
    right = (
        bool(np.max(errors) <= ROUNDING)
        and values["zeros_kept"] == values["zeros"] > 0
        and min(values["draws"], values["draws_with_zeros"]) > 0
    )
    numbers = (
        f"softmax(α) differs from w by at most {errors[0]:.0e} in {values['draws']:,} draws with any Σ exp(α), by "
        f"{errors[1]:.0e} where some w are 0, which {values['zeros_kept']:,} of {values['zeros']:,} stay, and by "
        f"{errors[2]:.0e} in supernets"
    )
    return exact(right, numbers)


def measured(value: float | None) -> float:
    """A measured number; NaN where it was not finite, for which a record has None."""
    return np.nan if value is None else float(value)


# --- a new node -------------------------------------------------------------------------------------------------------

NOISE = (*(10.0**-k for k in range(1, 9)), 0.0)
"""δ = σ."""

EXACT = 1e-12
"""Most that a function may change, relative to itself, where only rounding changes it."""

MORPHISM_EXAMPLES: dict[str, Callable[[int], Example[Any]]] = {
    "two-to-one": lambda seed: recurrent_example("two-to-one", 3, seed),
    "two-to-one, 2 layers": lambda seed: recurrent_example("two-to-one", 2, seed, layers=2),
    "darts": lambda seed: recurrent_example("darts", 3, seed),
    "darts, 2 layers": lambda seed: recurrent_example("darts", 2, seed, layers=2),
    "highway": lambda seed: recurrent_example("highway", 3, seed),
    "convolutional, concatenation": lambda seed: convolutional_example("concatenation", seed),
    "convolutional, mean": lambda seed: convolutional_example("mean", seed),
}
"""Highway cells and the last one have the mean of their nodes as output."""

MORPHISM_SEEDS = {name: 1 if "convolutional" in name else 3 for name in MORPHISM_EXAMPLES}
"""Random supernets of each example; the convolutional ones take most of the time, and are seen in two modes."""


def node_morphism_changes() -> dict[str, Any]:
    """How much one more node changes a supernet's outputs, over the noise; and the bound for the node itself.

    Of each example ``changes`` has a row for each network and mode: relative changes at each noise, all with the same
    random numbers. Convolutional networks are seen in evaluation and in training mode. ``nodes`` are those before and
    after.
    """
    rows: dict[str, Any] = {}
    for name, make in MORPHISM_EXAMPLES.items():
        changes, nodes = [], []
        for seed in range(MORPHISM_SEEDS[name]):
            example = make(seed)
            network = example.network
            modes = (False, True) if isinstance(network, SearchNetwork) else (False,)
            found: dict[bool, list[float]] = {mode: [] for mode in modes}
            for noise in NOISE:
                grown = _grown(example, noise, seed)
                for mode in modes:
                    with torch.no_grad(), kept_statistics(network), kept_statistics(grown):
                        before, after = network.train(mode)(example.inputs), grown.train(mode)(example.inputs)
                    found[mode].append(relative_change(before, after))
            nodes.append([next(iter(one.spaces.values())).nodes for one in (network, grown)])
            changes += list(found.values())
        rows[name] = {"changes": changes, "nodes": nodes}
    bounds = {backbone: _bounds(backbone) for backbone in ("two-to-one", "darts")}
    return {"noise": list(NOISE), "examples": rows, "bounds": bounds}


def _grown(example: Example[Supernet], noise: float, seed: int) -> Supernet:
    return add_node(
        example.network,
        example.build,
        example.candidates,
        delta=noise,
        sigma=noise,
        generator=generator(seed, "node"),
    )


BOUND_DRAWS = 200


def _bounds(backbone: str) -> dict[str, Any]:
    """One time step of random cells with a new node: how far it is from the last one, against :func:`node_bound`."""
    beyond, entries, tightest, over_noise, largest = 0, 0, 0.0, 0.0, 0.0
    for seed in range(BOUND_DRAWS):
        draws = generator(seed, "bounds", backbone)
        noise = 0.2 * 10 ** (-7 * float(torch.rand((), generator=draws)))
        nodes = int(torch.randint(1, 5, (), generator=draws))
        example = recurrent_example(backbone, nodes, seed)
        grown = _grown(example, noise, seed)
        x = torch.randn(16, 3, generator=draws, dtype=torch.float64)
        h = torch.randn(16, 4, generator=draws, dtype=torch.float64)
        change, bound, weights = node_bound(example.network, grown, backbone, x, h)
        beyond += int((change.abs() > bound + EXACT).sum())
        entries += change.numel()
        tightest = max(tightest, float((change.abs() / bound).max()))
        over_noise = max(over_noise, float(bound.max()) / noise)
        largest = max(largest, max(weights) / noise)
    return {
        "draws": BOUND_DRAWS,
        "entries": entries,
        "beyond": beyond,
        "tightest": tightest,
        "bound_over_noise": over_noise,
        "weight_over_noise": largest,
    }


def node_bound(
    network: RecurrentSearchNetwork,
    grown: RecurrentSearchNetwork,
    kind: str,
    x: Float[Tensor, "batch inputs"],
    h: Float[Tensor, "batch hidden"],
) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"], list[float]]:
    """How far a new node is from the last one in one time step, a bound for it, and the ε of its candidates.

    Two-to-One (Eq. 13–15), with o the last node and W x what the new sum adds:
    o_new − o = Σ ε_k (o_k − o) + (1 − Σ ε_k) W x, so that |o_new − o| ≤ Σ ε_k (|o_k| + |o|) + |W x|.

    DARTS (Eq. 17–19), with z_j the last node, and k over all candidates but zero (i < j) or identity (i = j):
    |z_new − z_j| ≤ Σ_{i<j} Σ_k ε_ik |o_k(z_i)| + Σ_k ε_jk (|o_k(z_j)| + |z_j|).

    Args:
        network: before the growth.
        grown: after it.
        kind: ``two-to-one`` or ``darts``.
        x: the cell's inputs.
        h: its states before the step.
    """
    with torch.no_grad():
        cells = [one.cell(kind) for one in (network, grown)]
        calls: dict[tuple[int, str], Tensor] = {}
        node = grown.spaces[kind].nodes
        sources = grown.spaces[kind].sources(node)
        hooks = [
            module.register_forward_hook(_keeping(calls, (source, name)))
            for source in sources
            for name, module in cells[1].candidates(source, node).items()
        ]
        last, new = (
            cell.next_state(x, h, cell.by_candidate(one.coefficients()[kind]))
            for one, cell in zip((network, grown), cells, strict=True)
        )
        for hook in hooks:
            hook.remove()
        weights = candidate_weights(grown, kind)
        bound, small = torch.zeros_like(last), []
        for source in sources:
            passing = "sum" if kind == "two-to-one" else "identity" if source == sources[-1] else ZERO
            for name, weight in weights[source, node].items():
                if name != passing:
                    small.append(weight)
                    kept = last.abs() if passing != ZERO else torch.zeros_like(last)
                    bound += weight * (calls[source, name].abs() + kept)
            if passing == "sum":
                weight_matrix = cells[1].candidates(source, node)["sum"].input_weight
                assert isinstance(weight_matrix, Tensor)  # for the type checker
                bound += (x @ weight_matrix.T).abs()  # |W x|
        return new - last, bound, small


def _keeping(calls: dict[tuple[int, str], Tensor], place: tuple[int, str]) -> Callable[..., None]:
    """A hook that keeps what a candidate gave."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[place] = output

    return hook


def is_linear(noise: Sequence[float], changes: Sequence[float]) -> bool:
    """Whether a change falls with the noise, and from noise of 1e-3 on in proportion to it."""
    known = list(zip(noise, changes, strict=True))
    if not all(change > 0 for change in changes):
        return False
    falls = all(after < before for (_, before), (_, after) in pairwise(known))
    slopes = [
        math.log(before / after) / math.log(large / small)
        for (large, before), (small, after) in pairwise(known)
        if large < 2e-3
    ]
    return falls and len(slopes) >= 3 and all(abs(slope - 1) < 0.1 for slope in slopes)


def _judge_node_morphism(record: Record) -> Verdict:
    values = record.measurements[0].values["node_morphism"]
    noise, rows, bounds = values["noise"], values["examples"], values["bounds"]
    complete = set(rows) == set(MORPHISM_EXAMPLES) and set(bounds) == {"two-to-one", "darts"} and noise[-1] == 0
    changes = {name: [[measured(value) for value in one] for one in row["changes"]] for name, row in rows.items()}
    at_zero = float(np.max([one[-1] for of_name in changes.values() for one in of_name]))
    linear = all(is_linear(noise[:-1], one[:-1]) for of_name in changes.values() for one in of_name)
    grew = all(row["nodes"] and all(after == before + 1 for before, after in row["nodes"]) for row in rows.values())
    within = all(
        bound["beyond"] == 0
        and bound["draws"] > 0
        and bound["entries"] > 0
        and measured(bound["weight_over_noise"]) <= 1 + 1e-6
        and 0 < measured(bound["tightest"]) <= 1 + 1e-3
        and measured(bound["bound_over_noise"]) < np.inf
        for bound in bounds.values()
    )
    place = noise.index(0.01) if 0.01 in noise else 0
    largest = {name: np.max([one[place] for one in of_name]) for name, of_name in changes.items()}
    bounded = ", ".join(
        f"{kind} at most {measured(bound['tightest']):.0%} of it in {bound['entries']:,} entries"
        for kind, bound in bounds.items()
    )
    numbers = (
        f"without noise the output changes by at most {at_zero:.0e} of itself, which is rounding; at δ = σ = "
        f"{noise[place]:g} by {', '.join(f'{name} {value:.1e}' for name, value in largest.items())}, and in proportion "
        f"below; the new node keeps its bound: {bounded}"
    )
    return exact(complete and grew and within and linear and at_zero <= EXACT, numbers)


# --- the experiment ---------------------------------------------------------------------------------------------------


def exact_results(workplace: Workplace | None = None) -> dict[str, Any]:
    """All of the above: ``parameters``, ``alpha`` and ``node_morphism``."""
    return {"parameters": parameters(), "alpha": alpha(), "node_morphism": node_morphism_changes()}


register(
    Experiment(
        "growing-exact",
        "Table 2 and Eq. 13 to 24: parameters, inverse softmax, and a new node that changes nothing",
        CHAPTER,
        exact_results,
        {
            "growing.parameters": _judge_parameters,
            "growing.breakeven": _judge_breakeven,
            "growing.alpha": _judge_alpha,
            "growing.node-morphism": _judge_node_morphism,
        },
        seeded=False,
    )
)
