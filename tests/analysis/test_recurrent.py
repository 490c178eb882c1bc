"""The formulas of growing DARTS against Table 2, against torch's layers and against the tensors of our cells."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import (
    GATES,
    count_parameters,
    darts_parameters,
    fixed_complexity,
    gated_parameters,
    growing_complexity,
    two_to_one_parameters,
)
from nasbook.errors import InvalidInput
from nasbook.networks import RECURRENT_BACKBONES
from nasbook.supernets import NodeSoftmax, RecurrentSearchNetwork, SoftmaxRelaxation

G7, BRICS = (7, 7), (5, 5)


class Series(NamedTuple):
    features: int
    task: str = "forecasting"


def test_table_2():
    assert [darts_parameters(G7, m) for m in range(2, 8)] == [451, 750, 1196, 1789, 2529, 3416]
    assert [darts_parameters(BRICS, m) for m in range(2, 8)] == [235, 390, 620, 925, 1305, 1760]
    assert [two_to_one_parameters(G7, m) for m in range(2, 8)] == [836, 1254, 1672, 2090, 2508, 2926]
    assert [two_to_one_parameters(BRICS, m) for m in range(2, 8)] == [440, 660, 880, 1100, 1320, 1540]
    assert [gated_parameters(cell, n, 0) for cell in ("lstm", "gru") for n in (G7, BRICS)] == [392, 200, 294, 150]
    assert [gated_parameters(cell, n) for cell in ("lstm", "gru") for n in (G7, BRICS)] == [420, 220, 315, 165]


def test_one_node_by_hand():
    assert darts_parameters((2, 3), 1) == 3 * (2 + 3) * 3 + 5 == 50
    assert two_to_one_parameters((2, 3), 1) == 3 * (6 + 9 + 3) + 2 * 6 + 5 == 71
    assert gated_parameters("rnn", (2, 3)) == 3 * 5 + 3 == 18


def test_biases_and_softmaxes_are_counted_in_other_ways_too():
    assert darts_parameters(G7, 6, softmax_of="edge") == 2529 + 5 * (16 - 6) == 2579
    assert darts_parameters(G7, 6, biases=1) == 2529 + 3 * 7 * 16
    assert two_to_one_parameters(G7, 6, biases=0) == 2508 - 3 * 7 * 6


LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@pytest.mark.parametrize("cell", GATES)
@settings(deadline=None, max_examples=20)
@given(widths=st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_classical_cells_have_as_many_in_torch(cell, widths):
    for biases, bias in ((0, False), (2, True)):
        layers = [LAYERS[cell](old, new, bias=bias) for old, new in pairwise(widths)]
        assert gated_parameters(cell, widths, biases) == count_parameters(nn.ModuleList(layers))


@settings(deadline=None, max_examples=30)
@given(inputs=st.integers(1, 9), hidden=st.integers(1, 9), nodes=st.integers(1, 6), layers=st.integers(1, 3))
def test_supernets_have_as_many(inputs, hidden, nodes, layers):
    def counted(backbone, relaxation):
        spaces = RECURRENT_BACKBONES[backbone].space(nodes, layers)
        network = RecurrentSearchNetwork(dict.fromkeys(spaces.kinds, spaces), Series(inputs), hidden,
                                         relaxation=relaxation)
        return count_parameters(network.body) + count_parameters(network.relaxations)

    widths = [inputs] + [hidden] * layers
    assert darts_parameters(widths, nodes) == counted("darts", NodeSoftmax)
    assert darts_parameters(widths, nodes, softmax_of="edge") == counted("darts", SoftmaxRelaxation)
    assert two_to_one_parameters(widths, nodes) == counted("two-to-one", NodeSoftmax)
    assert two_to_one_parameters(widths, nodes) == counted("two-to-one", SoftmaxRelaxation)


def test_complexity():
    stages = [darts_parameters(G7, m) for m in range(2, 7)]
    assert growing_complexity(stages, [10] * 5) == 67_150
    assert fixed_complexity(stages[-1], 50) == 126_450
    assert growing_complexity([3, 5], [2, 4]) == 26
    assert growing_complexity([7], [6]) == fixed_complexity(7, 6) == 42
    # As Eq. 28 is printed, without epochs, growth loses whatever it does.
    assert growing_complexity(stages, [1] * 5) > fixed_complexity(stages[-1], 1)


def test_results_are_integers_of_any_size():
    assert darts_parameters((10**9, 10**9), 2) == 9 * 10**18 + 10
    assert two_to_one_parameters((10**9, 10**9), 1) == 8 * 10**18 + 3 * 10**9 + 5
    assert gated_parameters("lstm", (10**9, 10**9), 0) == 8 * 10**18
    assert fixed_complexity(10**18 + 1, 1000) == 10**21 + 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: darts_parameters((7, 7), 0), "nodes must be at least 1, got 0"),
        (lambda: two_to_one_parameters((7, 7), -2), "nodes must be at least 1, got -2"),
        (lambda: darts_parameters((0, 7), 2), r"widths\[0\] must be at least 1, got 0"),
        (lambda: two_to_one_parameters((7, 7, 0), 2), r"widths\[2\] must be"),
        (lambda: gated_parameters("lstm", (7, 0)), r"widths\[1\] must be"),
        (lambda: gated_parameters("lstm", (7,)), r"at least one layer; got \[7\]"),
        (lambda: darts_parameters((7,), 2), "at least one layer"),
        (lambda: two_to_one_parameters((), 2), "at least one layer"),
        (lambda: gated_parameters("lstn", (7, 7)), "Did you mean 'lstm'"),
        (lambda: gated_parameters("lstm", (7, 7), -1), "biases must be at least 0, got -1"),
        (lambda: darts_parameters((7, 7), 2, biases=-1), "biases must be"),
        (lambda: two_to_one_parameters((7, 7), 2, biases=-1), "biases must be"),
        (lambda: darts_parameters((7, 7), 2, softmax_of="egde"), "Did you mean 'edge'"),
        (lambda: growing_complexity([], []), "at least one stage; got 0 and 0"),
        (lambda: growing_complexity([1, 2], [3]), "got 2 and 1"),
        (lambda: growing_complexity([1, 2], [3, 0]), "epochs must be at least 1, got 0"),
        (lambda: fixed_complexity(0, 3), "parameters must be at least 1, got 0"),
        (lambda: fixed_complexity(3, 0), "epochs must be"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()
