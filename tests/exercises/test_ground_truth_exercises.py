"""Chapter 8's exercises: right answers pass, and each wrong one gets its own hint."""

import pytest

from nasbook.exercises import grade, list_exercises
from nasbook.exercises.ground_truth import (
    CHAPTER,
    NOTHING,
    WRONG_CANONICALS,
    WRONG_CHANCES,
    WRONG_COUNTS,
    WRONG_GENERATIONS,
    WRONG_INTERVALS,
    WRONG_STEPS,
)
from nasbook.tabular import canonical
from nasbook.tabular.space import all_codes, canonical_codes

HINTS = {
    "truth.count": WRONG_COUNTS,
    "truth.chance": WRONG_CHANCES,
    "truth.canonical": WRONG_CANONICALS,
    "truth.step": WRONG_STEPS,
    "truth.ageing": WRONG_GENERATIONS,
    "truth.interval": WRONG_INTERVALS,
}


def test_all_exercises_of_the_chapter_are_here():
    assert [exercise.id for exercise in list_exercises() if exercise.chapter == CHAPTER] == list(HINTS)


@pytest.mark.parametrize("name", HINTS)
def test_wrong_answers_get_their_hints(name):
    for hint, wrong in HINTS[name].items():
        assert grade(name, wrong) == hint


@pytest.mark.parametrize("name", HINTS)
def test_the_empty_stub_gets_a_word(name):
    assert grade(name, lambda *_: None) == NOTHING


def test_right_answers_of_other_forms_pass():
    def count(choices):
        some = (choices + 1) ** 2 - 1
        labelled_without_edge = some**2 + 2 * some
        alike = some
        return some * choices * (choices + 1) ** 2 + (labelled_without_edge + alike) // 2

    assert count(3) == len(canonical_codes()) and len(all_codes()) == 975
    assert grade("truth.count", count) is None

    def chance(cells, best, queries):
        missed = 1.0
        for draw in range(queries):
            missed *= (cells - best - draw) / (cells - draw)
        return 1 - missed

    assert grade("truth.chance", chance) is None
    first = canonical((0, 1, 0, 0, 0))
    assert "are one graph and got two codes" in str(
        grade("truth.canonical", lambda code: code if canonical(code) == first else canonical(code))
    )
    assert grade("truth.canonical", lambda code: list(canonical(code))) is None
    assert grade("truth.ageing", lambda population, child: [*population, child][-len(population) :]) is None


def test_answers_that_raise_are_wrong():
    assert grade("truth.interval", lambda a, b: 1 / 0) == "Your answer raised ZeroDivisionError: division by zero"
    assert grade("truth.interval", lambda a, b: (0.0,)) == "Give two numbers, the lower and the upper end."
