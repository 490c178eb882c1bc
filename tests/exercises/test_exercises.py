"""Exercises: right answers pass, wrong ones get the hint that fits; no answer ends in a traceback."""

import math

import numpy as np
import pytest
import torch

import nasbook
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
from nasbook.exercises.growing_networks import (
    WRONG_COUNTS,
    WRONG_ENTRIES,
    WRONG_FILLS,
    WRONG_MATRICES,
    WRONG_PROBLEMS,
    WRONG_PROMISES,
    WRONG_WIDENINGS,
)
from nasbook.exercises.stretchable_cells import WRONG_PENALTIES
from nasbook.genotypes import DARTS_V2, CellGenotype, Edge
from nasbook.growth import insert_residual, net2deeper, rewire, widen_with_zeros
from nasbook.networks import VGG, Perceptron, channels_for
from nasbook.supernets import Relaxation, connected_cell, strongest_edges


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
