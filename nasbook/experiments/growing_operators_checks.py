"""Chapter 6: what is exact about growing operations: copies, splits, and histories of pruning and replacing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasbook.experiments.growing_cells_checks import (
    CHAPTER,
    EXACT,
    MORPHISM_EXAMPLES,
    Example,
    convolutional_example,
    is_linear,
    measured,
    recurrent_example,
    relative_change,
)
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import Verdict, exact
from nasbook.genotypes import ZERO
from nasbook.operations import operation_of
from nasbook.operations.recurrent import ACTIVATIONS
from nasbook.seeding import generator
from nasbook.supernets import (
    OperatorChange,
    OperatorRules,
    RecurrentSearchNetwork,
    SearchNetwork,
    candidate_weights,
    change_operators,
    operator_splitting_matrices,
    prune,
    split_candidates,
    split_operators,
)
from nasbook.supernets.operator_changes import CHOICES, EXCHANGES, STRATEGIES, Choice
from nasbook.supernets.operator_splitting import Place
from nasbook.training import sequence_loss

__all__ = [
    "normalisation_violations",
    "operator_violations",
    "random_history",
    "rule_splits",
    "split_example",
    "unit_splits",
]

# --- a copy of an operation: with a small weight, or by a split -------------------------------------------------------

SHARES = tuple(10.0**-k for k in range(1, 9))
"""Softmax weights of a copy with fresh parameters."""

SPLIT_STEPS = (0.1, 0.03, 0.01)
"""ε: Eq. 11 has a step of 1 along eigenvectors of length 1."""

SMOOTH_OPERATIONS = {
    "two-to-one": ("sigmoid", "tanh", "sum", "product"),
    "darts": ("sigmoid", "tanh", "identity", ZERO),
}
"""Without ReLU, whose second derivative is zero wherever there is one: by Eq. 10 alone no split of it ever helps."""

SPLIT_NETWORKS = 4
"""Random supernets of each backbone of which every hidden unit is split."""

SCANNED_NETWORKS = {"two-to-one": 120, "darts": 20}
"""More of them, in which hidden units with λ_min > 0 are looked for; they are rare, and are split too."""

COPIED_NETWORKS = 3
"""Random supernets of each example that get copies with fresh parameters."""

SINGLE_UNITS = 40
"""Random supernets with one hidden unit."""

CLEAR = 1e-3
"""A least eigenvalue within this share of the matrix's norm is not told from zero."""


def operator_changes() -> dict[str, Any]:
    """What copies change: outputs over the share of a copy with fresh parameters, outputs and losses over ε of splits.

    ``units`` are those of :func:`unit_splits`, ``by_rules`` those of :func:`rule_splits`. ``whether`` has λ_min of
    supernets with a single hidden unit, and how many splits :func:`nasbook.supernets.split_operators` made of it.
    """
    copies = {
        name: [_copy_changes(MORPHISM_EXAMPLES[name](seed), seed) for seed in range(COPIED_NETWORKS)]
        for name in ("two-to-one", "two-to-one, 2 layers", "darts", "darts, 2 layers")
    }
    units = {
        name: [
            row
            for seed in range(SCANNED_NETWORKS[name])
            for row in unit_splits(name, seed, least=-math.inf if seed < SPLIT_NETWORKS else CLEAR)
        ]
        for name in SMOOTH_OPERATIONS
    }
    by_rules = [
        rule_splits(name, seed, choose)
        for name in SMOOTH_OPERATIONS
        for choose in CHOICES
        for seed in range(SPLIT_NETWORKS)
    ]
    return {
        "shares": list(SHARES),
        "copies": copies,
        "steps": list(SPLIT_STEPS),
        "units": units,
        "by_rules": by_rules,
        "whether": [_single_unit(seed) for seed in range(SINGLE_UNITS)],
    }


def _copy_changes(example: Example[RecurrentSearchNetwork], seed: int) -> dict[str, Any]:
    """Relative changes of the outputs, one for each share, and how many copies came with each."""
    changes, copies = [], []
    for share in SHARES:
        rules = OperatorRules("small-weight", grow_above=0.05, share=share)
        new, found = change_operators(example.network, example.build, rules, generator(seed, "copies"))
        changes.append(_output_change(example, new))
        copies.append(sum(change.what == "grow" for change in found))
    return {"changes": changes, "copies": copies}


def _output_change(example: Example[RecurrentSearchNetwork], new: nn.Module) -> float:
    with torch.no_grad():
        return relative_change(example.network(example.inputs), new(example.inputs))


def _loss(example: Example[RecurrentSearchNetwork], network: nn.Module) -> float:
    with torch.no_grad():
        return float(sequence_loss(network(example.inputs), example.targets))


def split_example(backbone: str, seed: int) -> Example[RecurrentSearchNetwork]:
    """Few hidden units and examples, and targets that are far below with every other seed.

    So some splitting matrices have no eigenvalue below zero.
    """
    operations = SMOOTH_OPERATIONS[backbone]
    example = recurrent_example(backbone, 2, seed, series=1, hidden=2, steps=3, examples=4, operations=operations)
    return replace(example, targets=example.targets - 3 * (seed % 2))


def unit_splits(backbone: str, seed: int, least: float) -> list[dict[str, Any]]:
    """Hidden units of a random supernet, each split alone: along its least eigenvector and in a random direction δ.

    For each unit with λ_min above ``least`` times the norm of S: λ_min, that norm, δᵀSδ, and for both directions what
    the loss gained, divided by ½ε², for each ε. It tends to λ_min and to δᵀSδ (Eq. 9–11).
    """
    example = split_example(backbone, seed)
    draws = generator(seed, "splits", backbone)
    before = _loss(example, example.network)
    batches = [(example.inputs, example.targets)]
    found = []
    for place, matrices in operator_splitting_matrices(example.network, batches, sequence_loss).items():
        values, vectors = torch.linalg.eigh(matrices)
        for unit, matrix in enumerate(matrices):
            smallest, norm = float(values[unit, 0]), float(values[unit].abs().max())
            if smallest <= least * norm:
                continue
            random = torch.randn(len(matrix), generator=draws, dtype=torch.float64)
            random = random / random.norm()
            gains = {}
            for name, direction in (("least", vectors[unit, :, 0]), ("random", random)):
                rows = torch.zeros(matrices.shape[:2], dtype=torch.float64)
                rows[unit] = direction
                gains[name] = [
                    (_loss(example, _split(example, {place: rows}, step)) - before) / (step**2 / 2)
                    for step in SPLIT_STEPS
                ]
            found.append({"least": smallest, "norm": norm, "random": float(random @ matrix @ random), "gains": gains})
    return found


def _split(example: Example[RecurrentSearchNetwork], directions: dict[Place, Tensor], step: float) -> nn.Module:
    return split_candidates(example.network, example.build, directions, step, generator(0, "split"))[0]


def rule_splits(backbone: str, seed: int, choose: Choice) -> dict[str, Any]:
    """All operations split at once that a rule names (§3.2.5).

    The rule, and the sum of their negative λ_min; for each ε what the loss gained, divided by ½ε², and the relative
    change of the outputs; that change without a step; and how many operations they were.
    """
    example = split_example(backbone, seed)
    network, batches = example.network, [(example.inputs, example.targets)]
    matrices = operator_splitting_matrices(network, batches, sequence_loss)
    before = _loss(example, network)
    gains, outputs, predicted, count = [], [], 0.0, 0
    for step in SPLIT_STEPS:
        rules = OperatorRules("splitting", choose=choose, split_step=step)
        new, changes = split_operators(
            network, example.build, rules, batches, sequence_loss, generator(seed, "split")
        )
        split = [(change.kind, change.edge, str(change.parent)) for change in changes]
        predicted = sum(float(torch.linalg.eigvalsh(matrices[place])[:, 0].clamp(max=0).sum()) for place in split)
        count = len(split)
        gains.append((_loss(example, new) - before) / (step**2 / 2))
        outputs.append(_output_change(example, new))
    directions = {place: torch.linalg.eigh(matrices[place]).eigenvectors[:, :, 0] for place in matrices}
    return {
        "choose": choose,
        "predicted": predicted,
        "gains": gains,
        "changes": outputs,
        "unmoved": _output_change(example, _split(example, directions, 0.0)),
        "splits": count,
    }


def _single_unit(seed: int) -> list[float]:
    """λ_min of the only hidden unit of a supernet, and how often the rules split it."""
    example = recurrent_example(
        "darts", 1, seed, series=1, hidden=1, steps=3, examples=4, operations=("tanh", "identity")
    )
    batches = [(example.inputs, example.targets)]
    (matrices,) = operator_splitting_matrices(example.network, batches, sequence_loss).values()
    rules = OperatorRules("splitting")
    _, changes = split_operators(
        example.network, example.build, rules, batches, sequence_loss, generator(seed, "split")
    )
    return [float(torch.linalg.eigvalsh(matrices)[0, 0]), len(changes)]


def _judge_operator(record: Record) -> Verdict:
    values = record.measurements[0].values["operator"]
    steps, shares = values["steps"], values["shares"]
    copies = [row for rows in values["copies"].values() for row in rows]
    in_proportion = len(values["copies"]) == 4 and all(
        min(row["copies"]) == max(row["copies"]) > 0 and is_linear(shares, list(map(measured, row["changes"])))
        for row in copies
    )
    units = {name: values["units"].get(name, []) for name in SMOOTH_OPERATIONS}
    every = [unit for rows in units.values() for unit in rows]
    errors = np.array(
        [
            [abs(measured(gain) - unit[name]) / unit["norm"] for gain in unit["gains"][name]]
            for unit in every
            for name in ("least", "random")
        ]
    ).reshape(-1, len(steps))
    # ½ε²δᵀSδ is all there is to second order: the rest falls as ε⁴, so that ten times less ε leaves 1 % of the error.
    predicted = len(errors) > 0 and bool((errors[:, -1] < CLEAR).all()) and bool(
        np.median(errors[:, -1]) < 2 * (steps[-1] / steps[0]) ** 2 * np.median(errors[:, 0])
    )
    clear = [unit for unit in every if abs(unit["least"]) > CLEAR * unit["norm"]]
    lower, higher = ([unit for unit in clear if (unit["least"] < 0) == below] for below in (True, False))
    fell = sum(measured(unit["gains"]["least"][-1]) < 0 for unit in lower)
    # Above λ_min > 0 there is no direction that lowers the loss.
    rose = sum(all(measured(unit["gains"][name][-1]) > 0 for name in ("least", "random")) for unit in higher)
    right_way = fell == len(lower) and rose == len(higher)
    met = all({unit["least"] < 0 for unit in rows if unit in clear} == {True, False} for rows in units.values())
    whole = values["by_rules"]
    moved = [row for row in whole if row["splits"] > 0]
    by_rules = {row["choose"] for row in moved} == set(CHOICES) and all(
        row["predicted"] < 0
        and abs(measured(row["gains"][-1]) / row["predicted"] - 1) < 0.01
        and _is_quadratic(steps, list(map(measured, row["changes"])))
        if row["splits"] > 0
        else row["predicted"] == 0 and row["gains"] == row["changes"] == [0] * len(steps)
        for row in whole
    )
    kept = all(measured(row["unmoved"]) <= EXACT for row in whole)
    single = values["whether"]
    asked = all((least < 0) == (count == 1) and count in (0, 1) for least, count in single)
    both = {count for _, count in single} == {0, 1}
    at_small = max((_number_at(row["changes"], shares, 0.01) for row in copies), default=np.nan)
    numbers = (
        f"a copy with fresh parameters and weight 0.01 changes the output by up to {at_small:.1e} of itself, and in "
        f"proportion to the weight below; split alone, {fell} of {len(lower)} hidden units with λ_min < 0 lower the "
        f"loss and {rose} of {len(higher)} with λ_min > 0 raise it, by ½ε²λ_min up to "
        f"{errors[:, -1].max(initial=0.0):.0e} of ½ε²‖S‖ at ε = {steps[-1]:g}; all that a rule names at once lowers it "
        f"in {sum(measured(row['gains'][-1]) < 0 for row in moved)} of {len(moved)} supernets; of {len(single)} with "
        f"one hidden unit, {sum(least < 0 for least, _ in single)} have λ_min < 0 and "
        f"{sum(count for _, count in single)} are split"
    )
    return exact(in_proportion and predicted and right_way and met and by_rules and kept and asked and both, numbers)


def _is_quadratic(steps: Sequence[float], changes: Sequence[float]) -> bool:
    """Whether a change falls as the square of the step."""
    return all(
        after > 0 and abs(math.log(before / after) / math.log(large / small) - 2) < 0.2
        for (large, before), (small, after) in pairwise(zip(steps, changes, strict=True))
        if large < 0.1
    )


def _number_at(numbers: Sequence[float | None], places: Sequence[float], place: float) -> float:
    return measured(numbers[places.index(place)]) if place in places else np.nan


# --- operations that come and go --------------------------------------------------------------------------------------

HISTORIES = {"two-to-one": 150, "darts": 150, "highway": 40, "convolutional": 10}
"""Random histories of each kind of supernet. Those of the last two have no copies."""

CHANGES_A_HISTORY = 6


def histories() -> dict[str, Any]:
    """Random histories of supernets: after each change α moves on at random; at last the cells are pruned.

    For each kind: how many histories there were, how many break a rule of :func:`operator_violations` and the first
    one broken, and how often each kind of change came up.
    """
    found = {}
    for name, count in HISTORIES.items():
        broken, met = [], dict.fromkeys(("grow", "prune", "replace", "resample", "split", "pruned cells"), 0)
        for seed in range(count):
            violations = []
            for what, wrong in random_history(name, seed):
                violations += wrong
                for one in what:
                    met[one] += 1
            broken.append(violations)
        found[name] = {
            "histories": count,
            "broken": sum(map(bool, broken)),
            "first": next((some[0] for some in broken if some), ""),
            "changes": met,
        }
    return found


def random_history(name: str, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """The kinds of change in each step of one history, and the rules that it broke."""
    draws = generator(seed, "history", name)
    example: Example[Any]
    if name == "convolutional":
        example = convolutional_example(("concatenation", "mean")[seed % 2], seed)
    else:
        layers = 1 + seed % 2
        example = recurrent_example(name, 1 + seed % 3, seed, series=2, hidden=2, layers=layers, steps=3, examples=2)
    network: Any = example.network
    copies = name in ("two-to-one", "darts")
    for _ in range(CHANGES_A_HISTORY):
        rules = _random_rules(copies, draws)
        if rules.strategy == "splitting":
            batches = [(example.inputs, example.targets)]
            new, changes = split_operators(network, example.build, rules, batches, sequence_loss, draws)
        else:
            new, changes = change_operators(network, example.build, rules, draws)
        yield [change.what for change in changes], operator_violations(network, new, changes, rules, example.inputs)
        network = new
        with torch.no_grad():
            for parameter in network.architecture():
                parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    pruned = prune(network, example.build, keep=1 + seed % 2, generator=draws)
    yield ["pruned cells"], normalisation_violations(pruned, example.inputs)


def _random_rules(copies: bool, draws: torch.Generator) -> OperatorRules:
    def choice(names: Sequence[Any]) -> Any:
        return names[int(torch.randint(len(names), (), generator=draws))]

    share, prune_below, grow_above = torch.rand(3, generator=draws, dtype=torch.float64).tolist()
    grow_above = 0.2 + 0.6 * grow_above
    share = 0.02 + 0.3 * share
    return OperatorRules(
        strategy=choice(STRATEGIES) if copies else "none",
        grow_above=grow_above,
        share=share,
        most_candidates=choice((3, 5, 8)),
        choose=choice(CHOICES),
        prune_below=min(share, grow_above, 0.3 * prune_below),
        exchange=choice(EXCHANGES) if copies else "none",
    )


def normalisation_violations(network: RecurrentSearchNetwork | SearchNetwork, inputs: Tensor) -> list[str]:
    """What §3.2.3 to 3.2.5 may not do to a supernet, read off its coefficients and spaces."""
    found = []
    with torch.no_grad():
        if not bool(torch.isfinite(network(inputs)).all()):
            found.append("the output is not finite")
        for kind, coefficients in network.coefficients().items():
            space = network.spaces[kind]
            reached = {target for source, target in space.edges if set(space.candidates(source, target)) - {ZERO}}
            if reached != set(range(space.inputs, space.inputs + space.nodes)):
                found.append(f"{kind}: a node is empty")
            for edge, row in zip(space.edges, coefficients, strict=True):
                names = space.candidates(*edge)
                own = torch.tensor([name in names for name in space.operations])
                if len(set(names)) != len(names):
                    found.append(f"{kind} {edge}: two candidates have one name")
                if not set(names) - {ZERO}:
                    found.append(f"{kind} {edge}: an edge is empty")
                if not bool((row >= 0).all()):
                    found.append(f"{kind} {edge}: a weight is below 0, or none")
                if not abs(float(row.sum()) - 1) <= EXACT:
                    found.append(f"{kind} {edge}: weights sum to {float(row.sum())}")
                if bool((row[~own] != 0).any()):
                    found.append(f"{kind} {edge}: a candidate that is not there has a weight")
    return found


def operator_violations(
    network: RecurrentSearchNetwork | SearchNetwork,
    new: RecurrentSearchNetwork | SearchNetwork,
    changes: Sequence[OperatorChange],
    rules: OperatorRules,
    inputs: Tensor,
) -> list[str]:
    """The rules of §3.2.2 to 3.2.5 that a change of operations breaks; read off both supernets and the changes."""
    found = normalisation_violations(new, inputs)
    for kind in network.spaces:
        before, after = candidate_weights(network, kind), candidate_weights(new, kind)
        if list(before) != list(after):
            found.append(f"{kind}: edges have changed")
            continue
        for edge in before:
            own = [change for change in changes if (change.kind, change.edge) == (kind, edge)]
            found += [f"{kind} {edge}: {text}" for text in _edge_violations(before[edge], after[edge], own, rules)]
    return found


def _edge_violations(
    before: dict[str, float], after: dict[str, float], changes: Sequence[OperatorChange], rules: OperatorRules
) -> list[str]:
    found = []
    weights = before
    for change in changes:
        if not _same(change.weights_before, weights):
            found.append("a change doesn't begin where the last one ended")
        if abs(sum(change.weights_after.values()) - 1) > EXACT:
            found.append("the weights of a change don't sum to 1")
        found += _change_violations(change, rules)
        weights = change.weights_after
    if not _same(weights, after):
        found.append("the supernet's weights are not those of the last change")
    whats = {change.what for change in changes}
    if len(whats) > 1:
        found.append(f"{' and '.join(sorted(whats))} at once")
    grown = len(after) - len(before)
    if grown > 0 and len(after) > rules.most_candidates:
        found.append(f"{len(after)} candidates, and {rules.most_candidates} are allowed")
    if whats & {"replace", "grow"} and grown != ("grow" in whats):
        found.append(f"the number of candidates changed by {grown}")
    return found


def _change_violations(change: OperatorChange, rules: OperatorRules) -> list[str]:
    before, after = change.weights_before, change.weights_after
    # The copies of a candidate share what they had together; the others keep their proportions.
    divided = change.parent is not None and change.what in ("split", "resample")
    family = {name for name in after if divided and after[name] == after[change.candidate]} | {change.candidate}
    others = [after[name] / before[name] for name in before if name in after and name not in family]
    found = []
    if others and max(others) - min(others) > 1e-9 * max(others):
        found.append(f"{change.what}: the others' weights are out of proportion")
    if divided and abs(sum(after[name] - before.get(name, 0.0) for name in family)) > EXACT:
        found.append(f"{change.what}: copies don't share their parent's weight")
    came, went = after.keys() - before.keys(), before.keys() - after.keys()
    if (came, went) != ((set(), {change.candidate}) if change.parent is None else ({change.candidate}, set())):
        found.append(f"{change.what}: not the one candidate that is named came or went")
        return found
    return found + (_departure_violations(change, rules) if change.parent is None else _birth_violations(change, rules))


def _departure_violations(change: OperatorChange, rules: OperatorRules) -> list[str]:
    before, weight = change.weights_before, change.weights_before[change.candidate]
    useful = before.keys() - {ZERO}
    weakest = min((before[name] for name in before if {name} != useful), default=0.0)
    found = []
    if change.what == "prune" and weight >= rules.prune_below:
        found.append(f"pruned at a weight of {weight}, which is not below {rules.prune_below}")
    if change.what == "prune" and max(before.values()) > rules.grow_above:
        found.append("pruned beside a candidate above the threshold")
    if change.what in ("prune", "replace") and weight > weakest:
        found.append(f"{change.what}: {change.candidate} was not the weakest")
    return found


def _birth_violations(change: OperatorChange, rules: OperatorRules) -> list[str]:
    before, parent = change.weights_before, str(change.parent)
    activated = [weight for name, weight in before.items() if operation_of(name) in ACTIVATIONS]
    found = []
    if operation_of(change.candidate) != operation_of(parent):
        found.append(f"{change.candidate} is no copy of {parent}")
    if change.what in ("grow", "replace"):
        if abs((share := change.weights_after[change.candidate]) - rules.share) > EXACT:
            found.append(f"{change.what}: the copy's weight is {share}, not {rules.share}")
        if before[parent] <= rules.grow_above or before[parent] < max(activated):
            found.append(f"{change.what}: {parent} is not the strongest, above the threshold")
    return found


def _same(one: dict[str, float], other: dict[str, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) <= EXACT for name in one)


def _judge_prune_replace(record: Record) -> Verdict:
    values = record.measurements[0].values["histories"]
    count = {name: values[name]["histories"] for name in HISTORIES if name in values}
    broken = sum(row["broken"] for row in values.values())
    changes = {
        what: sum(row["changes"][what] for row in values.values())
        for what in ("grow", "split", "prune", "replace", "resample", "pruned cells")
    }
    numbers = (
        f"{broken} of {sum(count.values())} random histories break a rule: weights sum to 1, no edge and no node is "
        f"empty, the threshold is kept; candidates that came or went: "
        + ", ".join(f"{what} {number:,}" for what, number in changes.items() if what != "pruned cells")
        + f"; cells pruned {changes['pruned cells']:,}"
    )
    return exact(count == HISTORIES and broken == 0 and min(changes.values()) > 0, numbers)


# --- the experiment ---------------------------------------------------------------------------------------------------


def exact_results(workplace: Workplace | None = None) -> dict[str, Any]:
    """Both of the above: ``operator`` and ``histories``."""
    return {"operator": operator_changes(), "histories": histories()}


register(
    Experiment(
        "growing-operators-exact",
        "Eq. 8 to 11, 20, 21 and §3.2.3 to 3.2.5: copies and splits of operations, pruning and replacing",
        CHAPTER,
        exact_results,
        {"growing.operator": _judge_operator, "growing.prune-replace": _judge_prune_replace},
        seeded=False,
    )
)
