"""Candidates of recurrent cells against formulas written out, their parameters, their names."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.operations import copy_name, operation_of
from nasbook.operations.recurrent import (
    DARTS_RECURRENT_OPERATIONS,
    TWO_TO_ONE_OPERATIONS,
    build_recurrent_operation,
    build_two_to_one_operation,
    recurrent_weight,
    units_of,
)

INPUTS, HIDDEN, BATCH = 3, 4, 5

PHI = {
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "relu": lambda a: np.where(a > 0, a, 0.0),
}


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


# --- values and gradients ---------------------------------------------------------------------------------------------


def two_to_one_formula(operation, w, x, h):
    """Table 1, one example and one unit after another."""
    out = np.zeros_like(h)
    for b in range(len(x)):
        for unit in range(HIDDEN):
            mapped = sum(w["input_weight"][unit, i] * x[b, i] for i in range(INPUTS))
            if operation == "sum":
                out[b, unit] = mapped + h[b, unit]
            elif operation == "product":
                out[b, unit] = mapped * h[b, unit]
            else:
                mapped += sum(w["state_weight"][unit, i] * h[b, i] for i in range(HIDDEN))
                out[b, unit] = PHI[operation](mapped + w["bias"][unit])
    return out


@pytest.mark.parametrize("operation", TWO_TO_ONE_OPERATIONS)
def test_two_to_one_candidates_are_table_1(operation):
    module = build_two_to_one_operation(operation, INPUTS, HIDDEN).double()
    x, h = drawn(BATCH, INPUTS), drawn(BATCH, HIDDEN)
    expected = two_to_one_formula(operation, arrays(module), x.numpy(), h.numpy())
    np.testing.assert_allclose(module(x, h).detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    sizes = {name: value.shape for name, value in arrays(module).items()}
    if operation in PHI:  # Eq. 24: n_x n_h + n_h² + n_h
        assert sizes == {"input_weight": (4, 3), "state_weight": (4, 4), "bias": (4,)}
    else:  # n_x n_h
        assert sizes == {"input_weight": (4, 3)}
    x.requires_grad_(), h.requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def value(x, h, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, h))

    assert torch.autograd.gradcheck(value, (x, h, *module.parameters()))


@pytest.mark.parametrize("operation", DARTS_RECURRENT_OPERATIONS)
@pytest.mark.parametrize("inputs", [HIDDEN, INPUTS + HIDDEN])
def test_darts_candidates_have_one_input_and_no_bias(operation, inputs):
    module = build_recurrent_operation(operation, inputs, HIDDEN).double()
    z = drawn(BATCH, inputs)
    if operation in PHI:  # Eq. 22: a matrix, no bias
        [weight] = module.parameters()
        assert weight.shape == (HIDDEN, inputs)
        expected = PHI[operation](np.einsum("oi,bi->bo", weight.detach().numpy(), z.numpy()))
        assert torch.autograd.gradcheck(
            lambda z, w: torch.func.functional_call(module, {"weight": w}, z), (z.requires_grad_(), weight)
        )
    else:
        assert not list(module.parameters())
        # Of [x; h] only h is as wide as the state.
        expected = z[:, inputs - HIDDEN :].numpy() * (operation == "identity")
    assert module(z).shape == (BATCH, HIDDEN)
    np.testing.assert_allclose(module(z).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_a_sum_with_a_zero_matrix_is_the_identity_of_the_state():
    """What Eq. 15 builds on."""
    module = build_two_to_one_operation("sum", INPUTS, HIDDEN)
    nn.init.zeros_(module.input_weight)
    x, h = torch.randn(BATCH, INPUTS), torch.randn(BATCH, HIDDEN)
    assert torch.equal(module(x, h), h)


def test_fresh_weights_are_as_torchs():
    torch.manual_seed(0)
    weight = recurrent_weight(64, 100)
    bound = 1 / math.sqrt(64)
    assert weight.shape == (64, 100)
    assert 0.99 * bound < weight.max() <= bound
    assert -bound <= weight.min() < -0.99 * bound
    assert abs(weight.mean()) < 0.02 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # uniform
    assert 0.19 < recurrent_weight(64, 100, 25).abs().max() <= 0.2
    gate = build_two_to_one_operation("tanh", 2, 64)
    assert all(0.9 * bound < value.abs().max() <= bound for value in gate.parameters())
    assert len({value.tolist()[0] for value in [gate.bias, *gate.state_weight]}) == 65  # each drawn on its own


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "operation"),
    [("tanh", "tanh"), ("tanh-2", "tanh"), ("tanh-13", "tanh"), ("none", "none"), ("a-b", "a-b"), ("a-b-2", "a-b")],
)
def test_the_operation_behind_a_name(name, operation):
    assert operation_of(name) == operation


@settings(deadline=None)
@given(
    operations=st.lists(st.sampled_from(TWO_TO_ONE_OPERATIONS), max_size=12),
    gone=st.lists(st.integers(0, 11), max_size=6),
)
def test_a_copys_name_is_new_and_tells_its_operation(operations, gone):
    taken = ()
    for operation in operations:
        name = copy_name(operation, taken)
        assert name not in taken
        assert operation_of(name) == operation
        taken += (name,)
    assert len(set(taken)) == len(taken)
    rest = tuple(name for place, name in enumerate(taken) if place not in gone)
    for operation in operations:  # and so after some have gone
        assert copy_name(operation, rest) not in rest


def test_names_of_copies():
    assert copy_name("tanh", ()) == "tanh"
    assert copy_name("tanh", ("relu", "tanh")) == "tanh-2"
    assert copy_name("tanh", ("tanh", "tanh-2", "tanh-3")) == "tanh-4"
    assert copy_name("tanh", ("tanh", "tanh-3")) == "tanh-2"
    assert copy_name("tanh", ("tanh-2",)) == "tanh"


def test_a_copy_is_the_same_operation():
    for build, names in (
        (build_two_to_one_operation, TWO_TO_ONE_OPERATIONS),
        (build_recurrent_operation, DARTS_RECURRENT_OPERATIONS),
    ):
        for name in names:
            first, second = build(name, INPUTS + HIDDEN, HIDDEN), build(f"{name}-2", INPUTS + HIDDEN, HIDDEN)
            assert type(first) is type(second)
            assert getattr(first, "activation", None) == getattr(second, "activation", None)


def test_unknown_operations():
    with pytest.raises(InvalidInput) as caught:
        build_recurrent_operation("tahn", INPUTS, HIDDEN)
    assert str(caught.value) == (
        "Unknown operation of the DARTS recurrent cell 'tahn'. Did you mean 'tanh'? "
        "Valid: sigmoid, tanh, relu, identity, none."
    )
    for name in ("identity", "none", "sep_conv_3x3", "tanh-", "tanh-x"):
        with pytest.raises(InvalidInput, match=f"^Unknown operation of the Two-to-One cell '{name}'"):
            build_two_to_one_operation(name, INPUTS, HIDDEN)
    for name in ("sum", "product"):
        with pytest.raises(InvalidInput, match=f"^Unknown operation of the DARTS recurrent cell '{name}'"):
            build_recurrent_operation(name, INPUTS, HIDDEN)


# --- hidden units -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["sigmoid", "tanh-2", "relu"])
def test_the_units_of_a_candidate_are_rows_of_its_parameters(operation):
    """A unit is φ(θ·u), with u = z in DARTS' cell and u = (x, h, 1) in the Two-to-One cell (Eq. 8, 20)."""
    z, x, h = torch.randn(BATCH, HIDDEN), torch.randn(BATCH, INPUTS), torch.randn(BATCH, HIDDEN)
    ones = torch.ones(BATCH, 1)
    for module, read, outputs in (
        (plain := build_recurrent_operation(operation, HIDDEN, HIDDEN), z, plain(z)),
        (gate := build_two_to_one_operation(operation, INPUTS, HIDDEN), torch.cat([x, h, ones], 1), gate(x, h)),
    ):
        units = units_of(module)
        assert {id(p) for p in units.parameters} == {id(p) for p in module.parameters()}
        theta = torch.cat([p.reshape(HIDDEN, -1) for p in units.parameters], 1)
        phi = getattr(torch, units.activation)
        torch.testing.assert_close(phi(torch.einsum("bi,ui->bu", read, theta)), outputs)


def test_candidates_without_an_activation_have_no_units():
    assert units_of(build_recurrent_operation("identity", HIDDEN, HIDDEN)) is None
    assert units_of(build_recurrent_operation("none", HIDDEN, HIDDEN)) is None
    assert units_of(build_two_to_one_operation("sum", INPUTS, HIDDEN)) is None
    assert units_of(build_two_to_one_operation("product", INPUTS, HIDDEN)) is None
