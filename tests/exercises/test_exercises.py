"""Exercises: right answers pass, wrong ones get the hint that fits; no answer ends in a traceback."""

import math

import pytest
import torch

import nasbook
from nasbook.errors import InvalidInput
from nasbook.exercises import grade, list_exercises
from nasbook.exercises.stretchable_cells import WRONG_PENALTIES
from nasbook.genotypes import DARTS_V2
from nasbook.networks import channels_for
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
    ],
)
def test_the_hint_fits_the_mistake(name, answer, hint):
    assert hint in grade(name, answer)


def test_unknown_exercise_names_the_nearest():
    with pytest.raises(InvalidInput, match=r"Did you mean 'darts\.count'"):
        nasbook.check("dart.count", 1)
