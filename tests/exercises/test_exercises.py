"""Exercises: right answers pass, wrong ones get the hint that fits; no answer ends in a traceback."""

import math

import pytest
import torch

import nasbook
from nasbook.errors import InvalidInput
from nasbook.exercises import grade, list_exercises
from nasbook.supernets import Relaxation, strongest_edges


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


RIGHT = {
    "darts.count": math.prod(math.comb(n, 2) * 5**2 for n in range(2, 7)),
    "darts.softmax": lambda p, g: p * (g - p @ g),
    "darts.finite-difference": product_by_differences,
    "darts.fixed-point": lambda xi: 3 / (1 + 2 * xi),
    "darts.sigmoid": Sigmoid,
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
    ],
)
def test_the_hint_fits_the_mistake(name, answer, hint):
    assert hint in grade(name, answer)


def test_unknown_exercise_names_the_nearest():
    with pytest.raises(InvalidInput, match=r"Did you mean 'darts\.count'"):
        nasbook.check("dart.count", 1)
