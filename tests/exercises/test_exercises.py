"""Exercises: right answers pass, wrong ones get the hint that fits; no answer ends in a traceback."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import nasbook
from nasbook.continual import Slots, free_entries
from nasbook.data import load_series
from nasbook.errors import InvalidInput
from nasbook.exercises import grade, list_exercises
from nasbook.exercises.engine_and_transit_cells import (
    WRONG_COEFFICIENTS,
    WRONG_RANGES,
    WRONG_RELAXATIONS,
    WRONG_SAVINGS,
    WRONG_TEMPERATURES,
    WRONG_TRANSITS,
)
from nasbook.exercises.firefly_tasks import (
    WRONG_ADDED,
    WRONG_FISHERS,
    WRONG_GAINS,
    WRONG_LOST,
    WRONG_SECTIONS,
    WRONG_SWITCHES,
)
from nasbook.exercises.growing_networks import (
    WRONG_COUNTS,
    WRONG_ENTRIES,
    WRONG_FILLS,
    WRONG_MATRICES,
    WRONG_PROBLEMS,
    WRONG_PROMISES,
    WRONG_WIDENINGS,
)
from nasbook.exercises.growing_recurrent_cells import (
    STEPS,
    WRONG_ALPHAS,
    WRONG_EPOCHS,
    WRONG_NODES,
    WRONG_SHARES,
    WRONG_SPLITS,
    WRONG_STEP_COUNTS,
    WRONG_STEPS,
    WRONG_STOPS,
)
from nasbook.exercises.prune_and_replace import (
    EXACT,
    MORE,
    WRONG_BATCHES,
    WRONG_CHILDREN,
    WRONG_NARROWINGS,
    WRONG_OUTPUTS,
    WRONG_SEARCHES,
    WRONG_SPACES,
    WRONG_SURVIVORS,
)
from nasbook.exercises.stretchable_cells import WRONG_PENALTIES
from nasbook.genotypes import DARTS_V2, CellGenotype, Edge
from nasbook.growth import function_change, insert_residual, morph, net2deeper, rewire, widen_with_zeros
from nasbook.methods import growing_recurrent
from nasbook.networks import RECURRENT_BACKBONES, VGG, Perceptron, TwoToOneCell, channels_for
from nasbook.operations import (
    CONSTRAINTS,
    MORPHISMS,
    Configuration,
    MorphableConvolution,
    is_morphable,
    morphisms_of,
)
from nasbook.supernets import (
    Pool,
    RecurrentSearchNetwork,
    Relaxation,
    add_node,
    candidate_weights,
    connected_cell,
    operator_eigenpairs,
    operator_splitting_matrices,
    split_candidates,
    strongest_edges,
)
from nasbook.tabular import canonical
from nasbook.training import BatchGrowth


def product_by_differences(gradient, w, v, r):
    epsilon = r / v.norm()
    return (gradient(w + epsilon * v) - gradient(w - epsilon * v)) / (2 * epsilon)


class Sigmoid(Relaxation):
    def __init__(self, space):
        super().__init__(space)
        self.alpha = torch.nn.Parameter(torch.zeros(len(space.edges), len(space.operations)))

    def coefficients(self):
        return self.alpha.sigmoid()

    def derive(self):
        return strongest_edges(self.coefficients(), self.space)


class Independent(Relaxation):
    def __init__(self, space):
        super().__init__(space)
        self.alpha = torch.nn.Parameter(torch.zeros(len(space.edges), len(space.operations)))
        self.beta = torch.nn.Parameter(torch.zeros(len(space.edges)))

    def coefficients(self):
        return 2 * self.beta.sigmoid()[:, None] * self.alpha.softmax(-1)

    def derive(self):
        edges = [edge for edge, b in zip(self.space.edges, self.beta.tolist(), strict=True) if b > 0]
        return connected_cell(edges, self.alpha, self.space)


def penalty(probabilities, has_edge):
    return torch.stack([1 - p[h].max() / p.max() for p, h in zip(probabilities, has_edge, strict=True)]).prod()


def range_of_beta(p_hat, m):
    ordered = [*sorted(p_hat, reverse=True), 0.0]
    if ordered[m] == ordered[m - 1]:
        return None
    return tuple(torch.tensor([ordered[m], ordered[m - 1]]).logit().tolist())


def coefficients_of_a_node(p, beta):
    q = (torch.sigmoid(-beta) - (1 - p / p.max())).relu()
    total = q.sum(-1, keepdim=True)
    return q / torch.where(total > 0, total, 1)


def coefficients_with_a_limit(p, beta):
    """Another way past β = 60: t stays below 1 by a limit on β."""
    q = (p / p.max() - torch.sigmoid(beta.clamp(max=15.0))).relu()
    total = q.sum(-1, keepdim=True)
    return q / torch.where(total > 0, total, 1)


def with_a_small_number(p, beta):
    q = (torch.sigmoid(-beta) - (1 - p / p.max())).relu()
    return q / (q.sum(-1, keepdim=True) + 1e-12)


def transit(inputs, operations, cell):
    nodes, features = list(inputs), {}
    for node in range(cell.inputs, cell.inputs + cell.nodes):
        for edge in cell.into(node):
            owner = edge.source, edge.operation
            if owner not in features:
                features[owner] = operations[edge.source][edge.operation](nodes[edge.source])
        nodes.append(sum(features[edge.source, edge.operation] for edge in cell.into(node)))
    return nodes[cell.inputs :]


def sparsemax(z):
    z = z - z.max()
    ordered, _ = z.sort(descending=True)
    excess = ordered.cumsum(0) - 1
    kept = (torch.arange(1, len(z) + 1) * ordered > excess).sum()
    return (z - excess[kept - 1] / kept).relu()


class Sparsemax(Relaxation):
    sparse = True

    def __init__(self, space):
        super().__init__(space)
        self.alpha = torch.nn.Parameter(1e-3 * torch.randn(len(space.edges), len(space.operations)))

    def coefficients(self):
        incoming = [len(self.space.sources(node)) for node in range(2, 2 + self.space.nodes)]
        return torch.cat([sparsemax(node.flatten()).view_as(node) for node in self.alpha.split(incoming)])

    def derive(self):
        kept = self.coefficients().nonzero().tolist()
        edges = (Edge(*self.space.edges[row], self.space.operations[column]) for row, column in kept)
        return CellGenotype(tuple(edges), self.space.nodes, self.space.inputs)


def wider(neurons, copied):
    sources = [*range(neurons), *copied]
    return sources, [1 / sources.count(source) for source in sources]


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def identity(x, eps):
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return (variance + eps).sqrt(), mean, mean, variance


def splitting_matrix(x, residual, theta, w):
    """By differentiating twice, where the chapter's solution has a formula."""
    split = torch.zeros(2, dtype=x.dtype, requires_grad=True)

    def loss(delta):
        halves = [(torch.outer(x, p[:1]).sum(1) + p[1]).square().div(-2).exp() for p in (theta + delta, theta - delta)]
        old = (theta[0] * x + theta[1]).square().div(-2).exp()
        return (residual + w * (sum(halves) / 2 - old)).square().mean()

    with torch.enable_grad():
        return torch.autograd.functional.hessian(loss, split)


def predicted_changes(is_split, s, reached, radius):
    of_split = torch.where(reached == 0, 0, radius**2 * s / torch.where(reached == 0, 1, reached))
    return torch.where(is_split, of_split, -radius * s.abs())


def fill(changes, costs, parameters):
    best = {0: (0.0, [])}
    for i, (change, cost) in enumerate(zip(changes, costs, strict=True)):
        for spent, (total, chosen) in list(best.items()):
            if spent + cost <= parameters and total + change < best.get(spent + cost, (0.0,))[0]:
                best[spent + cost] = total + change, [*chosen, i]
    return min(best.values())[1]


def new_ones(constraints, steps):
    """With tuples alone."""
    frontier = seen = frozenset({(3, 1, ())})
    numbers = [1]
    for _ in range(steps):
        reached = set()
        for kernel, dilation, widths in frontier:
            wider = list(widths)
            if widths:
                wider[widths.index(min(widths))] += 1
            reached |= {(kernel + 2, dilation, widths), (kernel - 2, dilation, widths)}
            reached |= {(kernel, dilation + 1, widths), (kernel, dilation - 1, widths)}
            reached |= {(kernel, dilation, tuple(wider)), (kernel, dilation, (*widths, 1))}
        frontier = frozenset(one for one in reached if is_allowed(constraints, *one)) - seen
        seen |= frontier
        numbers.append(len(frontier))
    return numbers


def is_allowed(limits, kernel, dilation, widths):
    return (
        kernel in range(limits.min_kernel, limits.max_kernel + 1)
        and dilation in range(limits.min_dilation, limits.max_dilation + 1)
        and len(widths) <= (math.inf if limits.max_depth is None else limits.max_depth)
        and max(widths, default=0) <= (math.inf if limits.max_width is None else limits.max_width)
        and (limits.dilated_pointwise or kernel > 1 or dilation == 1)
    )


def deepened(y, eps):
    """By the layers themselves."""
    norm = torch.nn.BatchNorm2d(y.shape[1], eps=eps).to(y)
    return norm.eval()(y.relu()), norm.train()(y.relu())


def survivors(weights, groups, keep):
    """Round after round, each group gives its strongest candidate that is left."""
    left = {name: [i for i in range(len(groups)) if groups[i] == name] for name in set(groups)}
    order = sorted(left, key=lambda name: -sum(weights[i] for i in left[name]))
    kept = []
    while any(left.values()):
        for name in order:
            if left[name]:
                kept.append(max(left[name], key=lambda i: weights[i]))
                left[name].remove(kept[-1])
    return kept[:keep]


def next_child(weights, constraints, seen):
    found = Counter()
    for parent, weight in weights.items():
        children = morphisms_of(Configuration.parse(parent), constraints).values() if is_morphable(parent) else ()
        for child in children:
            found[child.name] += weight / len(children) * (child.name not in seen)
    return {name: chance / found.total() for name, chance in found.items() if chance}


def batch_size(first, second, limit, minimum, multiple, maximum):
    """By trying all sizes."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    fitting = [b for b in range(minimum, maximum + 1, multiple) if first[1] + slope * (b - first[0]) <= limit]
    return max(fitting, default=minimum)


def narrower(parent):
    widths = list(parent.configuration.expansions)
    if max(widths, default=1) == 1:
        return None
    place = max(range(len(widths)), key=lambda i: (widths[i], i))
    widths[place] -= 1
    configuration = replace(parent.configuration, expansions=tuple(widths))
    child = MorphableConvolution(parent.channels, configuration, parent.stride, parent.affine)
    norms = parent[4 * place + 6].weight.detach().flatten(1).norm(dim=0)
    kept = norms.topk(widths[place] * parent.channels).indices  # in any order
    state = parent.state_dict()
    for name, value in state.items():
        module = int(name.partition(".")[0]) - 4 * place
        if module in (2, 3, 5) and value.dim():
            state[name] = value[kept]
        elif module == 6:
            state[name] = value[:, kept]
    child.load_state_dict(state)
    return child


def breakeven(n_x, n_h):
    """By the root of the quadratic equation."""
    b = 4.5 * n_h + 5 * n_x + 3
    return math.floor((b + math.sqrt(b**2 - 18 * n_h * (n_x + n_h))) / (3 * n_h)) + 1


def two_to_one_step(x, h, nodes):
    """By the package's cell."""
    n_x, n_h = x.shape[1], h.shape[1]
    cell = TwoToOneCell(RECURRENT_BACKBONES["two-to-one"].space(len(nodes)), n_x, n_h).to(x.dtype)
    with torch.no_grad():
        for edge, (_, input_weight, state_weight, bias) in zip(cell.space.edges, nodes, strict=True):
            for place, operation in enumerate(cell.candidates(*edge).values()):
                operation.input_weight.copy_(input_weight[place])
                if place < 3:
                    operation.state_weight.copy_(state_weight[place])
                    operation.bias.copy_(bias[place])
    return cell(x[None], torch.stack([alpha for alpha, *_ in nodes]).softmax(-1), h)[0]


def new_alpha(noise, kept, total):
    """A list of numbers."""
    weights = noise.tolist()
    if sum(weights) >= 1:
        return None
    weights.insert(kept, 1 - sum(weights))
    return [math.log(weight * total) for weight in weights]


def stages(losses, patience):
    """By looking back from every epoch."""
    epochs, found = [], []
    for curve in losses:
        waits = range(patience, len(curve))
        ended = (n + 1 for n in waits if min(curve[: n + 1 - patience]) <= min(curve[n + 1 - patience : n + 1]))
        epochs.append(next(ended, len(curve)))
        found.append(min(curve[: epochs[-1]]))
        if found.index(min(found)) < len(found) - 1:
            break
    return np.array(epochs), found.index(min(found)) + 1


def most_epochs(parameters, epochs):
    return torch.tensor(parameters).double() @ torch.tensor(epochs).double() / parameters[-2]


def identities(before, after):
    """By trying the output of unit vectors."""
    shares = (np.array(before) - np.array(after[:-1])) / after[-1]
    return shares if np.all((shares > -1e-12) & (shares < 1 + 1e-12)) else None


def unit_split(g, a, u, step):
    """By differentiating twice."""

    def surrogate(delta):
        return (g * (a + u @ delta).tanh()).sum()

    matrix = torch.autograd.functional.hessian(surrogate, torch.zeros(u.shape[-1], dtype=u.dtype))
    return matrix, min(0.0, float(torch.linalg.eigvalsh(matrix).min()) * step**2 / 2)


def added(below, above, copies, new):
    return (copies + new) * (9 * below + 2) + new * 9 * above


def section(place, cells):
    first, second = cells // 3, 2 * cells // 3
    return {first: 2, second: 4}.get(place, 1 + 2 * (place > first) + 2 * (place > second))


def gained_rank(inner, channels, width, new):
    """By multiplying random matrices."""

    def rank(between):
        drawn = torch.Generator().manual_seed(0)
        left = torch.randn(channels, between, generator=drawn, dtype=torch.float64)
        right = torch.randn(between, inner, generator=drawn, dtype=torch.float64)
        return int(torch.linalg.matrix_rank(left @ right))

    return rank(width + new) - rank(width)


def lost(matrix):
    *before, last = matrix
    return [max(row[task] for row in before[task:]) - last[task] for task in range(len(before))]


def straight_through(scores, threshold):
    return (scores > threshold).to(scores.dtype) + (scores - scores.detach())


def fisher(w, x):
    p = torch.sigmoid(x @ w)[:, None]
    return (p * (1 - p) * x**2).mean(0)


def different_cells(choices):
    """By the lemma of Burnside: labelled cells that use both nodes, and their exchange's fixed points."""
    used = (choices + 1) ** 2 - 1
    return used * (choices + 1) ** 2 * choices + (used**2 + used) // 2 + used


def best_neighbour(scores, position, neighbours):
    return max([position, *neighbours], key=scores.get)


RIGHT = {
    "darts.count": math.prod(math.comb(n, 2) * 5**2 for n in range(2, 7)),
    "darts.softmax": lambda p, g: p * (g - p @ g),
    "darts.finite-difference": product_by_differences,
    "darts.fixed-point": lambda xi: 3 / (1 + 2 * xi),
    "darts.sigmoid": Sigmoid,
    "stretchable.mixed": lambda weight: 2 * weight / (2 + weight),
    "stretchable.count": (30, 10),
    "stretchable.merge": lambda beta: 1.5 * (1 - beta.softmax(0).flip(0)),
    "stretchable.factor": lambda n, k: n / k,
    "stretchable.penalty": penalty,
    "stretchable.independent": Independent,
    "stretchable.budget": channels_for(1_800_000, DARTS_V2, 8),
    "entrannas.count": (14 * 9, 5 * 9, 5 * 12),
    "entrannas.temperature": lambda difference, ratio: difference / math.log(ratio),
    "entrannas.threshold": range_of_beta,
    "entrannas.sparse": coefficients_of_a_node,
    "entrannas.transit": transit,
    "entrannas.memory": (
        (98 * 4.25) / (98 * 1.5 + 8 * 2.75),
        (98 * 4.25) / (35 * 1.5 + 8 * 2.75),
    ),
    "entrannas.sparsemax": Sparsemax,
    "firefly.wider": wider,
    "firefly.count": (290, 156, 324, 2336),
    "firefly.identity": identity,
    "firefly.splitting-matrix": splitting_matrix,
    "firefly.gates": predicted_changes,
    "firefly.greedy": lambda n: ([-1.01, *[-1.0] * n], ["a", *["b"] * n]),
    "firefly.parameters": fill,
    "prdarts.space": (461_320_312_500, 3_019_898_880, 153, 9.21),
    "prdarts.enumerate": new_ones,
    "prdarts.deeper": (["wider", "larger-kernel"], deepened),
    "prdarts.groups": survivors,
    "prdarts.children": next_child,
    "prdarts.batch": batch_size,
    "prdarts.narrower": (narrower, 0, 1),
    "growing.breakeven": breakeven,
    "growing.step": two_to_one_step,
    "growing.alpha": (new_alpha, 8797),
    "growing.stop": stages,
    "growing.together": most_epochs,
    "growing.mean": identities,
    "growing.splitting": unit_split,
    "firefly.added": added,
    "firefly.sections": section,
    "firefly.rank": gained_rank,
    "firefly.forgetting": lost,
    "firefly.mask": straight_through,
    "firefly.fisher": fisher,
    "truth.count": different_cells,
    "truth.chance": lambda cells, best, queries: stats.hypergeom.sf(0, cells, best, queries),
    "truth.canonical": canonical,
    "truth.step": best_neighbour,
    "truth.ageing": lambda population, child: [*population[1:], child],
    "truth.interval": lambda a, b: stats.ttest_rel(a, b).confidence_interval(),
}


def test_every_exercise_has_a_right_answer_here():
    assert {exercise.id for exercise in list_exercises()} == set(RIGHT)


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name, capsys):
    nasbook.check(name, RIGHT[name])
    assert capsys.readouterr().out == "Correct.\n"


@pytest.mark.parametrize(
    ("name", "answer"), [(exercise.id, answer) for exercise in list_exercises() for answer in exercise.wrong_answers]
)
def test_wrong_answers_get_a_hint(name, answer, capsys):
    nasbook.check(name, answer)
    said = capsys.readouterr().out
    assert said.startswith("Not yet. ")
    assert len(said) > 30


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("answer", [None, ...])
def test_no_answer_yet(name, answer):
    assert "replace the dots" in grade(name, answer)


def test_an_answer_that_raises_is_wrong():
    assert grade("darts.fixed-point", lambda xi: 1 / 0) == "Your answer raised ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("darts.count", 2700 * 6**10, "zero operation"),
        ("darts.softmax", lambda p, g: p * g, "a term is missing"),
        ("darts.finite-difference", lambda f, w, v, r: 2 * product_by_differences(f, w, v, r), "Twice too large"),
        ("darts.finite-difference", lambda f, w, v, r: -product_by_differences(f, w, v, r), "sign"),
        ("darts.fixed-point", lambda xi: 2 / (1 + 2 * xi), "book's toy"),
        ("stretchable.mixed", lambda weight: 2 / (1 + 2 * weight), "validation loss"),
        ("stretchable.count", (35, 10), "The other input"),
        ("stretchable.count", (30, 11), "last node but one"),
        ("stretchable.merge", lambda beta: 1 - beta.softmax(0).flip(0), "factor of Eq. 10"),
        ("stretchable.merge", lambda beta: beta.softmax(0), "two of the three pairs"),
        ("stretchable.factor", lambda n, k: k / n, "Turned round"),
        ("stretchable.factor", lambda n, k: math.comb(n, 2) / (n - 1), "Right for pairs"),
        *(("stretchable.penalty", wrong, hint) for hint, wrong in WRONG_PENALTIES.items()),
        ("stretchable.budget", 56, "square of C"),
        ("stretchable.budget", 44, "Very near"),
        ("entrannas.count", (135, 45, 60), "between the two inputs"),
        ("entrannas.count", (168, 60, 60), "have no weights"),
        ("entrannas.count", (126, 54, 72), "no later node"),
        ("entrannas.count", (126, 45, 45), "all 12 candidates"),
        ("entrannas.count", (126, 45, 168), "once for all later nodes"),
        *(("entrannas.temperature", wrong, hint) for hint, wrong in WRONG_TEMPERATURES.items()),
        *(("entrannas.threshold", wrong, hint) for hint, wrong in WRONG_RANGES.items()),
        ("entrannas.threshold", lambda p_hat, m: math.log(1 / (1 - sorted(p_hat)[-m])), "t = 1 means β = inf"),
        *(("entrannas.sparse", wrong, hint) for hint, wrong in WRONG_COEFFICIENTS.items()),
        ("entrannas.sparse", lambda p, beta: coefficients_of_a_node(p, beta).detach(), "No gradient reaches"),
        ("entrannas.sparse", with_a_small_number, "in a denominator outweighs it"),
        *(("entrannas.transit", wrong, hint) for hint, wrong in WRONG_TRANSITS.items()),
        *(("entrannas.memory", wrong, hint) for hint, wrong in WRONG_SAVINGS.items()),
        ("entrannas.memory", (2.46, 3.0), "The first is right"),
        *(("entrannas.sparsemax", wrong, hint) for hint, wrong in WRONG_RELAXATIONS.items()),
        *(("firefly.wider", wrong, hint) for hint, wrong in WRONG_WIDENINGS.items()),
        ("firefly.wider", lambda n, copied: wider(n, [*copied, 0]), "once more for each copy"),
        ("firefly.wider", lambda n, copied: (wider(n, copied)[0], [1.0]), "every channel has one of each"),
        *(("firefly.count", wrong, hint) for hint, wrong in WRONG_COUNTS.items()),
        ("firefly.count", (290, 156, 580, 2336), "third number"),
        ("firefly.count", (290, 156, 324, 2304), "fourth number is not right. A batch norm"),
        *(("firefly.identity", wrong, hint) for hint, wrong in WRONG_ENTRIES.items()),
        ("firefly.identity", lambda x, eps: identity(x[:2], eps), "In training mode"),
        *(("firefly.splitting-matrix", wrong, hint) for hint, wrong in WRONG_MATRICES.items()),
        *(("firefly.gates", wrong, hint) for hint, wrong in WRONG_PROMISES.items()),
        *(("firefly.greedy", wrong, hint) for hint, wrong in WRONG_PROBLEMS.items()),
        ("firefly.greedy", lambda n: ([-3.0, -2.0, -2.0], "abb"), "For n = 2 greedy gets -3, and the best choice -4"),
        *(("firefly.parameters", wrong, hint) for hint, wrong in WRONG_FILLS.items()),
        ("firefly.parameters", lambda changes, costs, parameters: [], "4 is possible"),
        ("firefly.parameters", lambda changes, costs, parameters: list(range(4)), "costs 71 parameters"),
        *(("prdarts.space", wrong, hint) for hint, wrong in WRONG_SPACES.items()),
        ("prdarts.space", (461_320_312_500, 3_019_898_880, 1.5e2, 9.2), "third number"),
        ("prdarts.space", (461_320_312_500, 3_019_898_880, 15**8 / 8**8, 9.3e9 ** (1 / 8)), "fourth number"),
        *(("prdarts.enumerate", wrong, hint) for hint, wrong in WRONG_SEARCHES.items()),
        ("prdarts.enumerate", lambda constraints, steps: [1] * (steps + 1), "you count 1 new ones, and there are 3"),
        *(("prdarts.deeper", (EXACT, wrong), hint) for hint, wrong in WRONG_OUTPUTS.items()),
        ("prdarts.deeper", (EXACT | {"deeper"}, deepened), "what stands before them"),
        ("prdarts.deeper", (EXACT | {"smaller-dilation"}, deepened), "read other pixels"),
        ("prdarts.deeper", (set(), deepened), "adds zeros and as much padding"),
        ("prdarts.deeper", ({"larger-kernel"}, deepened), "no weight reads yet"),
        ("prdarts.deeper", (EXACT, lambda y, eps: (0 * y, 0 * y)), "Not in evaluation mode"),
        ("prdarts.deeper", (EXACT, lambda y, eps: (deepened(y, eps)[0], 0 * y)), "Not in training mode"),
        ("prdarts.deeper", (..., lambda y, eps: None), "replace the dots"),
        *(("prdarts.groups", wrong, hint) for hint, wrong in WRONG_SURVIVORS.items()),
        ("prdarts.groups", lambda weights, groups, keep: [0], "2 candidates must stay; you keep 1"),
        *(("prdarts.children", wrong, hint) for hint, wrong in WRONG_CHILDREN.items()),
        ("prdarts.children", lambda weights, constraints, seen: {}, "is possible in case 1"),
        ("prdarts.children", lambda weights, constraints, seen: dict(weights), "is not possible in case 1"),
        *(("prdarts.batch", wrong, hint) for hint, wrong in WRONG_BATCHES.items()),
        *(("prdarts.narrower", (wrong, *MORE), hint) for hint, wrong in WRONG_NARROWINGS.items()),
        ("prdarts.narrower", (lambda parent: None, *MORE), "must become sep_conv(kernel=3, dilation=1, expansions=1)"),
        ("prdarts.narrower", (lambda parent: parent, *MORE), "must become None"),
        ("prdarts.narrower", (narrower, 1, 0), "turned round"),
        ("prdarts.narrower", (narrower, 80, 81), "Asked is how many more"),
        ("prdarts.narrower", (narrower, 3, 3), "expansions never rise"),
        ("prdarts.narrower", (narrower, 0, 0), "Narrow the leading one of (2, 2)"),
        ("prdarts.narrower", (narrower, ..., ...), "The numbers are missing"),
        *(("growing.breakeven", wrong, hint) for hint, wrong in WRONG_NODES.items()),
        ("growing.breakeven", lambda n_x, n_h: 5.62, "a whole number of nodes"),
        ("growing.breakeven", lambda n_x, n_h: None, "a whole number of nodes"),
        ("growing.breakeven", lambda n_x, n_h: 6, "with 6 nodes DARTS' backbone has 1305 parameters"),
        *(("growing.step", wrong, hint) for hint, wrong in WRONG_STEPS.items()),
        ("growing.step", lambda x, h, nodes: two_to_one_step(x, h, nodes[:1]), "Right for one node"),
        ("growing.step", lambda x, h, nodes: h, "Not for one node either"),
        ("growing.step", lambda x, h, nodes: x, "as large as h: (3, 4) here"),
        *(("growing.alpha", (wrong, STEPS), hint) for hint, wrong in WRONG_ALPHAS.items()),
        *(("growing.alpha", (new_alpha, wrong), hint) for hint, wrong in WRONG_STEP_COUNTS.items()),
        ("growing.alpha", (lambda noise, kept, total: None, STEPS), "there is a rest"),
        ("growing.alpha", (lambda noise, kept, total: noise.log(), STEPS), "one more than there is noise"),
        ("growing.alpha", (lambda noise, kept, total: [0.0] * (len(noise) + 1), STEPS), "[0.2, 0.2, 0.2, 0.2, 0.2]"),
        ("growing.alpha", (lambda *case: new_alpha(*case) or [0.0], STEPS), "noise sums to 1 or more"),
        ("growing.alpha", (new_alpha, 1), "how fast do they approach"),
        ("growing.alpha", (new_alpha, ...), "The number of steps is missing"),
        ("growing.alpha", new_alpha, "Give a pair"),
        *(("growing.stop", wrong, hint) for hint, wrong in WRONG_STOPS.items()),
        ("growing.stop", lambda losses, patience: ([], 0), "you say [] epochs and stage 0"),
        ("growing.stop", lambda losses, patience: 3, "Expected two things"),
        *(("growing.together", wrong, hint) for hint, wrong in WRONG_EPOCHS.items()),
        ("growing.together", lambda parameters, epochs: 10, "What do all stages cost together"),
        ("growing.together", lambda parameters, epochs: None, "Expected one number"),
        *(("growing.mean", wrong, hint) for hint, wrong in WRONG_SHARES.items()),
        ("growing.mean", lambda before, after: None, "compare it with"),
        ("growing.mean", lambda *case: case[0] if identities(*case) is None else identities(*case), "not possible"),
        ("growing.mean", lambda before, after: [0.5], "one weight for each node"),
        *(("growing.splitting", wrong, hint) for hint, wrong in WRONG_SPLITS.items()),
        ("growing.splitting", lambda *case: (unit_split(*case)[0], -1.0), "S is right. The change is ½ε²λ_min where"),
        ("growing.splitting", lambda *case: (-unit_split(*case)[0], -1.0), "the sign is turned"),
        ("growing.splitting", lambda *case: (torch.eye(3), 0.0), "S = Σ over steps and examples"),
        ("growing.splitting", lambda g, a, u, step: (g.T @ a, 0.0), "none for time or batch"),
        ("growing.splitting", lambda *case: unit_split(*case)[0], "Expected two things"),
        *(("firefly.added", wrong, hint) for hint, wrong in WRONG_ADDED.items()),
        ("firefly.added", lambda below, above, copies, new: 0, "take one copy alone"),
        *(("firefly.sections", wrong, hint) for hint, wrong in WRONG_SECTIONS.items()),
        ("firefly.sections", lambda place, cells: 1, "is of kind 2, got 1"),
        *(("firefly.rank", wrong, hint) for hint, wrong in WRONG_GAINS.items()),
        ("firefly.rank", lambda inner, channels, width, new: 0, "the three sides of the two matrices"),
        *(("firefly.forgetting", wrong, hint) for hint, wrong in WRONG_LOST.items()),
        ("firefly.forgetting", lambda matrix: matrix[-1], "one number for each task but the last"),
        *(("firefly.mask", wrong, hint) for hint, wrong in WRONG_SWITCHES.items()),
        ("firefly.mask", lambda scores, threshold: scores, "expected [0.0, 0.0, 1.0, 0.0, 1.0]"),
        *(("firefly.fisher", wrong, hint) for hint, wrong in WRONG_FISHERS.items()),
        ("firefly.fisher", lambda w, x: w, "expected ["),
    ],
)
def test_the_hint_fits_the_mistake(name, answer, hint):
    assert hint in grade(name, answer)


def test_a_limit_on_beta_is_right_too():
    assert grade("entrannas.sparse", coefficients_with_a_limit) is None


def test_unknown_exercise_names_the_nearest():
    with pytest.raises(InvalidInput, match=r"Did you mean 'darts\.count'"):
        nasbook.check("dart.count", 1)


def test_shares_keep_the_function():
    narrow = Perceptron(2, [3], 1, activation=torch.nn.Tanh).double()
    sources, factors = RIGHT["firefly.wider"](3, [0, 0, 2])
    wide = rewire(narrow, {"layers.0.linear": sources}).network
    with torch.no_grad():
        wide.classifier.weight *= torch.tensor(factors)
    x = torch.linspace(-2, 2, 20, dtype=torch.float64).view(10, 2)
    torch.testing.assert_close(wide(x), narrow(x))


def test_parameters_are_those_of_a_thin_vgg():
    network, generator = VGG("vgg11", 16, size=8, in_channels=1), torch.Generator()
    grown = (
        widen_with_zeros(network, {"layers.1.convolution": 17}, generator),
        widen_with_zeros(network, {"layers.7.convolution": 17}, generator),
        insert_residual(network, "layers.1.inserted", 0, 2, generator),
        net2deeper(network, "layers.1.inserted", 0),
    )
    assert tuple(parameters(g.network) - parameters(network) for g in grown) == RIGHT["firefly.count"]


def test_any_order_of_sources_is_right():
    assert grade("firefly.wider", lambda n, copied: tuple(part[::-1] for part in wider(n, copied))) is None


def test_unequal_shares_are_named():
    def unequal(neurons, copied):
        sources, factors = wider(neurons, copied)
        last = len(sources) - 1 - sources[::-1].index(sources[-1])
        first = sources.index(sources[-1])
        factors[first], factors[last] = factors[first] * 1.5, factors[last] - factors[first] / 2
        return sources, factors

    assert "not equal" in grade("firefly.wider", unequal)


def test_a_filled_budget_may_be_an_array():
    assert grade("firefly.parameters", lambda *case: np.array(fill(*case), dtype=np.int64)) is None


def partitions(number, largest):
    return 1 if number == 0 else sum(partitions(number - part, part) for part in range(1, min(number, largest) + 1))


@pytest.mark.parametrize(
    ("name", "kernels", "lists", "total"),
    [
        ("DL", [1, 1, 1], [1, 1], 12),
        ("DR", [1, 2, 1], [1] * 6, 36),
        ("UR", [1, 2, 1], [partitions(n, n) for n in range(6)], 80),
    ],
)
def test_totals_are_coefficients_of_a_product(name, kernels, lists, total):
    product = np.convolve(np.convolve(kernels, [1, 1]), lists)[:6].tolist()
    assert product == new_ones(CONSTRAINTS[name], 5)[: len(product)]
    assert sum(product) == total


@pytest.mark.parametrize(("name", "excluded"), [("DR", [1] * 4), ("UR", [partitions(n, n) for n in range(4)])])
def test_without_a_dilated_pointwise_a_third_factor_is_missing(name, excluded):
    all_of_them, without = new_ones(CONSTRAINTS[name], 5), replace(CONSTRAINTS[name], dilated_pointwise=False)
    assert new_ones(without, 5) == [a - b for a, b in zip(all_of_them, [0, 0, *excluded], strict=True)]


def test_deeper_keeps_outputs_that_are_not_negative():
    torch.manual_seed(0)
    parent = MorphableConvolution(3, Configuration(3)).double()
    parent[-1].bias.data.fill_(10.0)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    child = morph(parent, "deeper", torch.Generator())
    torch.testing.assert_close(child.eval()(x), parent.eval()(x) / math.sqrt(1 + 1e-5), rtol=1e-12, atol=0)
    assert function_change(parent.train(), child.train(), x) > 0.5


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_copies_share_their_groups_weight(m):
    q, alpha = 0.7, torch.zeros(m + 1, dtype=torch.float64)
    for _ in range(2000):
        alpha.requires_grad_()
        (gradient,) = torch.autograd.grad((alpha.softmax(0)[:m].sum() - q) ** 2, alpha)
        alpha = (alpha - 2 * gradient).detach()
    weights = alpha.softmax(0).tolist()
    assert weights == pytest.approx([q / m] * m + [1 - q])
    paper = weights.index(max(weights))
    assert (paper < m) == (q > m / (m + 1))
    assert survivors(weights, ["A"] * m + ["B"], 1) == [0]


def test_the_next_child_is_drawn_as_the_paper_says():
    """Parent, morphism, and both again after a repeat; and as our pools draw it."""
    constraints, generator = CONSTRAINTS["DR"], torch.Generator().manual_seed(0)
    three, five, stacked = (Configuration(*parts).name for parts in ((3,), (5,), (3, 1, (1,))))
    weights = {"max_pool_3x3": 0.2, "skip_connect": 0.1, three: 0.2, five: 0.1, stacked: 0.4}
    exact, draws = next_child(weights, constraints, set(weights)), 4000
    drawn, chances = Counter(), torch.tensor(list(weights.values()))
    while drawn.total() < draws:
        parent = list(weights)[int(torch.multinomial(chances, 1, generator=generator))]
        if is_morphable(parent):
            children = list(morphisms_of(Configuration.parse(parent), constraints).values())
            child = children[int(torch.randint(len(children), (1,), generator=generator))].name
            if child not in weights:
                drawn[child] += 1
    pool = Pool.of(tuple(weights)).weighed(weights)
    ours = Counter(pool.replaced(1, 1, constraints, generator).operations[-1] for _ in range(draws))
    assert set(drawn) == set(ours) == set(exact)
    for name, chance in exact.items():
        deviation = math.sqrt(chance * (1 - chance) / draws)
        assert abs(drawn[name] / draws - chance) < 4 * deviation
        assert abs(ours[name] / draws - chance) < 4 * deviation


@pytest.mark.parametrize(("fixed", "path"), [(0, [24, 128]), (3, [24, 48, 72, 88, 96, 104]), (6, [24])])
def test_without_the_fixed_part_a_batch_grows_slowly_or_not_at_all(fixed, path):
    growth = BatchGrowth(24, 8, 128, 9_500_000_000, threshold=1.0)
    fixed, an_image, tries = fixed * 10**9, 60_000_000, [24]
    for _ in range(8):
        tries.append(growth.grown(tries[-1], 0, fixed + an_image * tries[-1]))
    assert sorted(set(tries)) == path
    points = [(b, fixed + an_image * b) for b in (24, 32)]
    assert batch_size(*points, 9_500_000_000, 24, 8, 128) == growth.grown(24, fixed, points[0][1])


@pytest.mark.parametrize("widths", [(1,), (1, 1), (2, 1), (2, 2), (3, 2, 2)])
def test_narrower_undoes_wider(widths):
    torch.manual_seed(0)
    parent = MorphableConvolution(3, Configuration(3, expansions=widths)).double()
    child = narrower(morph(parent, "wider", torch.Generator().manual_seed(1))).double()
    assert child.configuration == parent.configuration
    assert function_change(parent, child, torch.randn(2, 3, 5, 5, dtype=torch.float64)) < 1e-12


def test_no_rule_undoes_every_widening():
    one, other = Configuration(3, expansions=(3, 1)), Configuration(3, expansions=(2, 2))
    assert MORPHISMS["wider"](one) == MORPHISMS["wider"](other)


def test_what_narrower_adds_to_the_unrestricted_space():
    def count(of_equals):
        frontier = seen = frozenset({Configuration(3)})
        for _ in range(5):
            reached = {child for one in frontier for child in morphisms_of(one, CONSTRAINTS["UR"]).values()}
            for one in frontier:
                widths = list(one.expansions)
                largest = max(widths, default=1)
                if largest > 1:
                    widths[of_equals(i for i, width in enumerate(widths) if width == largest)] -= 1
                    reached.add(replace(one, expansions=tuple(widths)))
            frontier = frozenset(reached) - seen
            seen |= frontier
        return len(seen)

    assert (count(max) - 80, count(min) - 80) == MORE


@pytest.mark.parametrize(("n_x", "n_h", "nodes"), [(7, 7, 6), (5, 5, 7), (128, 128, 6), (1, 7, 4), (40, 3, 48)])
def test_breakeven_is_that_of_real_cells(n_x, n_h, nodes):
    def difference(m):
        """Two-to-One minus DARTS; both have five α a node beside."""
        new, old = (RECURRENT_BACKBONES[name] for name in ("two-to-one", "darts"))
        return parameters(new.cell(new.space(m), n_x, n_h)) - parameters(old.cell(old.space(m), n_x, n_h))

    assert breakeven(n_x, n_h) == nodes
    assert difference(nodes) < 0 <= difference(nodes - 1)


class Series:
    """What a network asks of its data."""

    task = "forecasting"
    features = 3


def recurrent_network(spaces):
    return RecurrentSearchNetwork(spaces, Series(), 4, engine="readable").double()


@pytest.mark.parametrize(("name", "kept"), [("two-to-one", "sum"), ("darts", "identity")])
def test_a_new_node_is_pruned_to_what_it_was_born_as(name, kept):
    backbone, generator = RECURRENT_BACKBONES[name], torch.Generator().manual_seed(0)
    network = recurrent_network({name: backbone.space(2)})
    grown = add_node(network, recurrent_network, backbone.operations, delta=0.01, generator=generator)
    assert grown.genotype()[name].into(3) == (Edge(2, 3, kept),)


def test_new_alpha_inverts_the_weights_of_a_grown_cell():
    backbone, generator = RECURRENT_BACKBONES["two-to-one"], torch.Generator().manual_seed(0)
    network = recurrent_network({"two-to-one": backbone.space(1)})
    grown = add_node(network, recurrent_network, backbone.operations, delta=0.2, generator=generator)
    weights = torch.tensor(list(candidate_weights(grown, "two-to-one")[1, 2].values()), dtype=torch.float64)
    alpha = torch.tensor(new_alpha(weights[[0, 1, 2, 4]], 3, 2.5), dtype=torch.float64)
    torch.testing.assert_close(alpha.softmax(0), weights)
    assert float(alpha.exp().sum()) == pytest.approx(2.5)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_a_mean_needs_the_shares_that_the_package_gives_it(m):
    highway, generator = RECURRENT_BACKBONES["highway"], torch.Generator().manual_seed(0)
    network = recurrent_network({"highway": highway.space(m)})
    grown = add_node(network, recurrent_network, highway.operations, delta=0, sigma=0, generator=generator)
    weights = candidate_weights(grown, "highway")
    found = [weights[source, m + 1]["identity"] for source in range(1, m + 1)]
    assert found == pytest.approx(identities([1 / m] * m, [1 / (m + 1)] * (m + 1)).tolist())
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(grown(x), network(x), rtol=0, atol=1e-12)


def test_the_promise_of_a_split_is_kept_to_second_order():
    torch.manual_seed(0)
    kind, place, loss = "two-to-one", ("two-to-one", (0, 1), "tanh"), torch.nn.functional.mse_loss
    network = recurrent_network({kind: RECURRENT_BACKBONES[kind].space(2)})
    x, y = torch.randn(20, 6, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    tanh = network.cell(kind).candidates(0, 1)["tanh"]
    calls = []
    handle = tanh.register_forward_hook(lambda module, inputs, output: calls.append((*inputs, output)))
    before = loss(network(x), y)
    handle.remove()
    g = torch.stack(torch.autograd.grad(before, [output for *_, output in calls]))
    u = torch.stack([torch.cat([x, h, torch.ones_like(h[:, :1])], 1).detach() for x, h, _ in calls])
    theta = torch.cat([tanh.input_weight, tanh.state_weight, tanh.bias[:, None]], 1).detach()
    matrices = operator_splitting_matrices(network, [(x, y)], loss)
    pairs = operator_eigenpairs({place: matrices[place]})[place]
    errors = []
    for step in (0.2, 0.1):
        promises = [unit_split(g[..., i], u @ theta[i], u, step) for i in range(4)]
        torch.testing.assert_close(torch.stack([matrix for matrix, _ in promises]), matrices[place])
        directions = {place: pairs.vectors * pairs.negative[:, None]}
        halves, _ = split_candidates(network, recurrent_network, directions, step, torch.Generator())
        promised = sum(change for _, change in promises)
        assert promised < 0
        errors.append(abs(float((loss(halves(x), y) - before).detach()) - promised) / -promised)
    assert errors[1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # what is left is of fourth order


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_stages_are_those_of_the_search(patience, monkeypatch):
    """With losses as written here instead of measured ones."""
    curves = [[9, 8, 8.5, 7, 7.2, 7], [7, 6, 6.5, 6.6, 5, 6], [6, 5.5, 4, 4.5, 4.6, 4.7], [5, 4, 4.5, 4.2, 4.1, 3]]
    search_type, ended = growing_recurrent.Search, growing_recurrent.Search._after_epoch

    def after_epoch(search, loss):
        ended(search, loss if search.tuning else curves[search.stage][search._phase_epochs])

    monkeypatch.setattr(search_type, "_after_epoch", after_epoch)
    plan = growing_recurrent.Config(
        mode="prune-at-end", stages=4, stage_epochs=6, tune_epochs=1, patience=patience, hidden=2, batch_size=8
    )
    data = load_series("simulated-g7").take(train=16, validation=8, test=8)
    search = search_type(plan, data, seed=0)
    nodes = next(iter(search.network.spaces.values())).nodes
    trained = Counter(report.stage for report in search.epochs() if not report.tuning)
    epochs, answer = stages(curves, patience)
    assert [trained[stage] for stage in sorted(trained)] == epochs.tolist()
    assert next(iter(search.network.spaces.values())).nodes == nodes + answer - 1


@pytest.mark.parametrize(("copies", "new"), [(0, 0), (1, 0), (0, 2), (3, 1)])
def test_what_a_growth_adds_is_what_is_free(copies, new):
    network = VGG("vgg11", [4, 4 + new, 4, 4, 4, 4, 4, 4], size=8, in_channels=1)
    slots = {name: Slots(tuple(range(count))) for name, count in network.neurons().items()}
    slots["layers.1.convolution"] = Slots(tuple(range(4 - copies)), (*range(4 - copies, 4), *[-1] * new))
    free = free_entries(network, slots)
    counted = sum(int(entries.sum()) for name, entries in free.items() if not name.startswith("classifier"))
    assert counted == RIGHT["firefly.added"](4, 4, copies, new)
