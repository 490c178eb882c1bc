from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasbook.errors import InvalidInput
from nasbook.operations import CONSTRAINTS, Configuration, obtainable
from nasbook.supernets import Life, Pool
from nasbook.supernets.pool_statistics import (
    distinct_operations,
    mean_similarity,
    operation_mix,
    pool_similarity,
    similarity,
)

MAX, AVERAGE, SKIP, START = "max_pool_3x3", "avg_pool_3x3", "skip_connect", Configuration(3).name
INITIAL = (MAX, AVERAGE, SKIP, START)
SPACES = {
    name: [configuration.name for step in obtainable(constraints) for configuration in sorted(step)]
    for name, constraints in CONSTRAINTS.items()
}
candidates = st.sampled_from([MAX, AVERAGE, SKIP, *SPACES["UR"]])


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        (MAX, MAX, 1.0),
        (MAX, AVERAGE, 2 / 3),
        (MAX, SKIP, 0.0),
        (START, SKIP, 0.0),
        (START, MAX, 0.0),
        (SKIP, SKIP, 1.0),
        (START, START, 1.0),
        (START, Configuration(5).name, 3 / 4),
        (START, Configuration(3, 2).name, 3 / 4),
        (START, Configuration(5, 2).name, 2 / 4),
        (START, Configuration(3, 1, (1,)).name, 3 / 4),  # m = 1, lengths differ
        (START, Configuration(7, 2, (1,)).name, 1 / 4),
        (Configuration(3, 1, (1,)).name, Configuration(3, 1, (2,)).name, (3 + 1 / 2) / 4),  # equal lengths
        (Configuration(3, 1, (1,)).name, Configuration(3, 1, (1, 1)).name, (3 + 1 / 2) / 4),  # equal first
        (Configuration(3, 1, (2, 1)).name, Configuration(3, 1, (2, 2)).name, (3 + 2 / 3) / 4),
        (Configuration(3, 1, (2, 1)).name, Configuration(3, 1, (2, 1, 1)).name, (3 + 2 / 3) / 4),
        (Configuration(3, 1, (2, 1)).name, Configuration(3, 1, (1, 2, 1)).name, 3 / 4),
        ("sep_conv_3x3", Configuration(3, 1, (1,)).name, 1.0),  # DARTS' are configurations too
        ("dil_conv_5x5", Configuration(5, 2).name, 1.0),
    ],
)
def test_similarity_of_two_candidates(a: str, b: str, value: float) -> None:
    assert similarity(a, b) == similarity(b, a) == pytest.approx(value)


@given(candidates, candidates)
def test_similarity_is_one_for_equal_candidates_only(a: str, b: str) -> None:
    assert similarity(a, b) == similarity(b, a)
    assert 0 <= similarity(a, b) <= 1
    assert (similarity(a, b) == 1) == (a == b)


def test_similarity_of_a_pool() -> None:
    assert pool_similarity(INITIAL) == pytest.approx(2 / 3 / 6)  # one pair of two pools
    assert pool_similarity((START, Configuration(5).name, SKIP)) == pytest.approx(3 / 4 / 3)
    assert pool_similarity((SKIP,)) == 1.0
    assert mean_similarity([INITIAL, (SKIP,)]) == pytest.approx((1 / 9 + 1) / 2)
    assert mean_similarity([INITIAL, (SKIP,)], pairs="all") == pytest.approx(((4 + 2 * 2 / 3) / 16 + 1) / 2)


@given(st.lists(candidates, min_size=1, max_size=6, unique=True))
def test_all_pairs_are_the_mean_of_the_whole_table(names: list[str]) -> None:
    table = [similarity(a, b) for a, b in itertools.product(names, repeat=2)]
    assert pool_similarity(names, pairs="all") == pytest.approx(sum(table) / len(table))
    assert 1 / len(names) <= pool_similarity(names, pairs="all") + 1e-12
    assert pool_similarity(names) <= pool_similarity(names, pairs="all") + 1e-12


def test_mix_of_kinds() -> None:
    assert operation_mix([INITIAL] * 14) == {"pool": 0.5, "identity": 0.25, "convolution": 0.25}  # §4.2
    assert operation_mix([(START,), (SKIP, MAX, START)]) == {"pool": 0.25, "identity": 0.25, "convolution": 0.5}
    assert operation_mix([(SKIP, "none")]) == {"pool": 0.0, "identity": 0.5, "convolution": 0.0, "zero": 0.5}


def test_distinct_operations_count_the_dead_and_nothing_twice() -> None:
    five = Configuration(5).name
    child = Life(five, 2, START, "larger-kernel")
    first = Pool((*Pool.of(INITIAL).lives[1:], Life(MAX, 1, died=1), child))
    again = Pool((Life(START, 1, died=1), child, Life(START, 3, five, "smaller-kernel")))
    assert distinct_operations([first]) == 5
    assert distinct_operations([again]) == 2
    assert distinct_operations([first, again]) == 5
    assert distinct_operations([]) == 0
    # Table 3: 15 can be discovered in DL
    assert distinct_operations([Pool.of((MAX, AVERAGE, SKIP)), *(Pool.of((name,)) for name in SPACES["DL"])]) == 15


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(InvalidInput, match="Unknown operation 'pool'"):
        similarity("pool", SKIP)
    with pytest.raises(InvalidInput, match="'conv_3x3' is not a separable convolution"):
        similarity("conv_3x3", START)
    with pytest.raises(InvalidInput, match="at least 1 candidate, got none"):
        pool_similarity(())
    with pytest.raises(InvalidInput, match="at least 1 edge, got none"):
        mean_similarity(())
    with pytest.raises(InvalidInput, match="at least 1 candidate, got none"):
        operation_mix([(), ()])
    with pytest.raises(InvalidInput, match="Unknown choice of pairs 'both'"):
        pool_similarity(INITIAL, pairs="both")
