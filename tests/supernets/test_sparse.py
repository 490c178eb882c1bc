"""EnTranNAS' relaxations: temperature (Eq. 5), coefficients that reach zero (Eq. 7-11), and the two derivations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Edge, Space
from nasbook.supernets import AnnealedSoftmax, SoftmaxRelaxation, SparseRelaxation, strongest_connections

SPACE = Space(DARTS_SPACE.choices)
many = settings(derandomize=True, deadline=None, max_examples=200)
few = settings(derandomize=True, deadline=None, max_examples=25)


def sparse(alpha, beta, temperature=1.0, space=SPACE, **options):
    relaxation = SparseRelaxation(space, temperature, **options).to(alpha.dtype)
    relaxation.alpha.data.copy_(alpha)
    relaxation.beta.data.copy_(beta)
    return relaxation


def by_the_book(alpha, beta, temperature, space=SPACE):
    """Eq. 5 and 7 to 9 entry by entry, as the paper prints them."""
    p = (alpha / temperature).softmax(-1)
    q_hat = torch.zeros_like(p)
    for place, node in enumerate(range(space.inputs, space.inputs + space.nodes)):
        rows = [row for row, (_, target) in enumerate(space.edges) if target == node]
        strongest = max(float(p[row, k]) for row in rows for k in range(p.shape[1]))
        threshold = 1 / (1 + math.exp(-float(beta[place])))
        for row in rows:
            q = [max(0.0, float(value) / strongest - threshold) for value in p[row]]
            if any(q):
                q_hat[row] = torch.tensor([value / sum(q) for value in q], dtype=p.dtype)
    return q_hat


# ---------------------------------------------------------------------------------------------- temperature


def test_a_temperature_divides_alpha():
    relaxation = AnnealedSoftmax(SPACE, 5.0)
    torch.testing.assert_close(relaxation.coefficients(), (relaxation.alpha / 5).softmax(-1))
    plain = SoftmaxRelaxation(SPACE)
    plain.alpha.data.copy_(relaxation.alpha)
    relaxation.temperature = 1.0
    assert torch.equal(relaxation.coefficients(), plain.coefficients())
    relaxation.alpha.data.normal_()
    relaxation.temperature = 1e-3
    assert torch.equal(relaxation.coefficients().amax(-1).round(), torch.ones(14))  # "approaches to a one-hot vector"
    assert float(relaxation.penalty().detach()) == 0 and not relaxation.sparse
    assert list(relaxation.state_dict()) == ["alpha"]
    with pytest.raises(InvalidInput, match="temperature must be above 0"):
        AnnealedSoftmax(SPACE, 0.0)


def test_both_derivations():
    space = Space(("a", "b"), nodes=2)  # edges 0→2, 1→2, 0→3, 1→3, 2→3
    weights = torch.tensor([[0.9, 0.8], [0.1, 0.2], [0.5, 0.1], [0.4, 0.6], [0.3, 0.2]])
    letter = strongest_connections(weights, space)
    assert letter.edges == (Edge(0, 2, "a"), Edge(0, 2, "b"), Edge(0, 3, "a"), Edge(1, 3, "b"))
    relaxation = AnnealedSoftmax(space, derivation=strongest_connections)
    relaxation.alpha.data.copy_(weights.log())
    assert len(relaxation.derive().edges) == 4
    relaxation = AnnealedSoftmax(space)
    relaxation.alpha.data.copy_(weights)
    assert {(e.source, e.target) for e in relaxation.derive().edges} >= {(0, 2), (1, 2)}  # DARTS' rule: two edges


def test_the_zero_operation_is_no_connection():
    space = Space(("none", "a"), nodes=1)
    assert strongest_connections(torch.tensor([[5.0, 0.1], [5.0, 0.2]]), space).edges == (
        Edge(0, 2, "a"),
        Edge(1, 2, "a"),
    )


# ---------------------------------------------------------------------------------------------- sparse coefficients


@few
@given(st.integers(0, 2**32), st.floats(0.1, 5), st.floats(0.1, 3))
def test_the_equations_as_printed(seed, temperature, spread):
    draws = torch.Generator().manual_seed(seed)
    alpha = spread * torch.randn(14, 7, generator=draws, dtype=torch.float64)
    beta = 2 * torch.randn(4, generator=draws, dtype=torch.float64)
    found = sparse(alpha, beta, temperature).coefficients()
    torch.testing.assert_close(found, by_the_book(alpha, beta, temperature), rtol=1e-9, atol=1e-12)


@many
@given(
    st.integers(0, 2**32),
    st.floats(-3, 1),
    st.floats(-3, 4),
    st.floats(-2, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_what_holds_for_any_alpha_beta_and_temperature(seed, temperature, spread, shift, dtype):
    draws = torch.Generator().manual_seed(seed)
    alpha = 10**spread * torch.randn(14, 7, generator=draws, dtype=dtype)
    beta = 10**shift * torch.randn(4, generator=draws, dtype=dtype)
    relaxation = sparse(alpha, beta, 10**temperature)
    coefficients = relaxation.coefficients()
    sums = coefficients.detach().sum(-1)
    assert bool((coefficients >= 0).all()) and bool(coefficients.isfinite().all())
    precision = 20 * torch.finfo(dtype).eps
    assert bool(((sums - 1).abs() < precision)[sums > 0].all())  # Eq. 9 on every edge that is left
    cell = relaxation.derive()
    kept = {(SPACE.edges[row], SPACE.operations[k]) for row, k in coefficients.nonzero().tolist()}
    assert {((edge.source, edge.target), edge.operation) for edge in cell.edges} == kept  # Eq. 10
    p = (alpha / 10**temperature).log_softmax(-1)
    for node in range(2, 6):
        rows = [row for row, (_, target) in enumerate(SPACE.edges) if target == node]
        assert cell.into(node)  # never without a connection
        block = p[rows]
        strongest = block == block.max()
        assert bool((coefficients[rows][strongest] > 0).all())  # and the strongest is one of them
    loss = (coefficients * torch.randn(coefficients.shape, generator=draws, dtype=dtype)).sum() + relaxation.penalty()
    for gradient in torch.autograd.grad(loss, (relaxation.alpha, relaxation.beta)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("beta", [-1e30, -1e4, -50.0, 0.0, 17.0, 50.0, 1e4, 1e30])
def test_thresholds_at_the_end_of_floating_point(beta):
    torch.manual_seed(0)
    relaxation = sparse(torch.randn(14, 7), torch.full((4,), beta))
    cell = relaxation.derive()
    counts = [len(cell.into(node)) for node in range(2, 6)]
    if beta <= -50:
        assert counts == [7 * n for n in (2, 3, 4, 5)]  # t = 0 keeps everything
    if beta >= 17:
        assert counts == [1, 1, 1, 1]  # sigmoid(17) is 1 in float32, and Eq. 8 as printed would keep nothing
        assert set(relaxation.coefficients().amax(-1).tolist()) == {0.0, 1.0}
    assert bool(((relaxation.thresholds() >= 0) & (relaxation.thresholds() <= 1)).all())


def test_ties_are_all_kept():
    relaxation = sparse(torch.zeros(14, 7), torch.full((4,), 1e4))
    coefficients = relaxation.coefficients()
    torch.testing.assert_close(coefficients, torch.full((14, 7), 1 / 7))
    gradients = torch.autograd.grad(coefficients.square().sum(), (relaxation.alpha, relaxation.beta))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_gradients_against_finite_differences():
    torch.manual_seed(1)
    alpha = torch.randn(14, 7, dtype=torch.float64, requires_grad=True)
    beta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    relaxation = SparseRelaxation(SPACE, 0.7, penalty_weight=0.3).double()

    def values(alpha, beta):
        relaxation._parameters.update(alpha=alpha, beta=beta)
        return relaxation.coefficients(), relaxation.penalty()

    with torch.no_grad():  # no connection is so near its threshold that the difference would cross a kink
        torch.testing.assert_close(values(alpha + 1e-6, beta)[0] > 0, values(alpha, beta - 1e-5)[0] > 0)
    assert torch.autograd.gradcheck(values, (alpha, beta), eps=1e-7, atol=1e-5)


def test_a_dropped_connection_has_no_gradient_of_its_own_but_can_come_back():
    alpha = torch.zeros(14, 7, dtype=torch.float64)
    alpha[:, 0] = 3.0
    relaxation = sparse(alpha, torch.zeros(4, dtype=torch.float64))
    coefficients = relaxation.coefficients()
    assert coefficients[0].tolist() == [1, 0, 0, 0, 0, 0, 0]
    (gradient,) = torch.autograd.grad(coefficients[0, 3], relaxation.alpha)
    assert float(gradient.abs().max()) == 0
    relaxation.temperature = 5.0  # warmer: p̂ = exp(-3/5) > 1/2
    assert float(relaxation.coefficients()[0, 3].detach()) > 0


def test_the_penalty_is_the_mean_of_minus_log_t():
    beta = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    relaxation = sparse(torch.zeros(14, 7, dtype=torch.float64), beta, penalty_weight=0.2)
    expected = 0.2 * -beta.sigmoid().log().mean()
    torch.testing.assert_close(relaxation.penalty(), expected)
    (gradient,) = torch.autograd.grad(relaxation.penalty(), relaxation.beta)
    torch.testing.assert_close(gradient, -0.2 / 4 * (1 - beta.sigmoid()))  # it pushes every t towards 1
    assert float(sparse(torch.zeros(14, 7), torch.full((4,), -1e4), penalty_weight=0.0).penalty().detach()) == 0


def test_other_spaces():
    space = Space(("a", "b", "c"), nodes=3, left_out=((0, 3),))
    torch.manual_seed(0)
    alpha, beta = torch.randn(len(space.edges), 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    found = sparse(alpha, beta, 0.5, space).coefficients()
    torch.testing.assert_close(found, by_the_book(alpha, beta, 0.5, space))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": DARTS_SPACE}, "without the zero operation"),
        ({"penalty_weight": -1.0}, "penalty_weight must be at least 0, got -1.0"),
        ({"penalty_weight": math.nan}, "penalty_weight must be at least 0, got nan"),
        ({"beta": math.inf}, "beta must be finite"),
        ({"temperature": -1.0}, "temperature must be above 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InvalidInput, match=message):
        SparseRelaxation(**{"space": SPACE, **options})


def test_weights_that_are_not_finite_are_refused():
    relaxation = sparse(torch.full((14, 7), math.nan), torch.zeros(4))
    with pytest.raises(InvalidInput, match="not finite"):
        relaxation.derive()
