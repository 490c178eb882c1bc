"""Sequence networks: heads, stacks, derived networks, torch's LSTM and GRU as baselines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_V1, CellGenotype, Edge, Genotype
from nasbook.networks import (
    RECURRENT_BACKBONES,
    RECURRENT_ENGINES,
    DerivedRecurrentNetwork,
    ForecastingHead,
    LanguageHead,
    RecurrentStack,
    SequenceTask,
    TorchRecurrentNetwork,
    build_head,
    build_recurrent_cell,
    derived_space,
)

SERIES, WORDS, HIDDEN = 3, 6, 4
FORECASTING = SimpleNamespace(task="forecasting", features=SERIES)
LANGUAGE = SimpleNamespace(task="language", features=WORDS)
TASKS = {"forecasting": FORECASTING, "language": LANGUAGE}

CELLS = {
    "two-to-one": CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "product"), Edge(2, 3, "sum")), 3, 1, (3,)),
    "darts": CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "relu"), Edge(1, 3, "sigmoid")), 3, 1, (3,)),
    "highway": CellGenotype((Edge(0, 1, "tanh"), Edge(0, 2, "identity"), Edge(2, 3, "sigmoid")), 3, 1, (1, 2, 3)),
}


def batch(task, count=2, time=5, seed=0):
    draws = torch.Generator().manual_seed(seed)
    if task.task == "forecasting":
        return torch.randn(count, time, SERIES, generator=draws)
    return torch.randint(WORDS, (count, time), generator=draws)


# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_forecast_is_a_linear_map_of_the_last_state():
    head = build_head(FORECASTING, HIDDEN)
    assert isinstance(head, ForecastingHead) and head.width == SERIES
    inputs, states = torch.randn(2, 5, SERIES), torch.randn(5, 2, HIDDEN)
    entered = head.enter(inputs)
    assert entered.shape == (5, 2, SERIES)
    assert torch.equal(entered[3, 1], inputs[1, 3])
    expected = states[-1] @ head.decoder.weight.T + head.decoder.bias
    torch.testing.assert_close(head.leave(states), expected)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "decoder.weight": (SERIES, HIDDEN),
        "decoder.bias": (SERIES,),
    }


def test_a_language_model_predicts_at_every_step():
    head = build_head(LANGUAGE, HIDDEN)
    assert isinstance(head, LanguageHead) and head.width == HIDDEN
    tokens, states = batch(LANGUAGE), torch.randn(5, 2, HIDDEN)
    entered = head.enter(tokens)
    assert entered.shape == (5, 2, HIDDEN)
    assert torch.equal(entered[3, 1], head.embedding.weight[tokens[1, 3]])
    logits = head.leave(states)
    assert logits.shape == (2, 5, WORDS)
    torch.testing.assert_close(logits[1, 3], head.decoder.weight @ states[3, 1] + head.decoder.bias)
    assert 0.08 < head.embedding.weight.abs().max() <= 0.1
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "embedding.weight": (WORDS, HIDDEN),
        "decoder.weight": (WORDS, HIDDEN),
        "decoder.bias": (WORDS,),
    }


def test_any_data_with_a_task_and_features_will_do():
    assert isinstance(FORECASTING, SequenceTask)
    assert not isinstance(SimpleNamespace(task="forecasting"), SequenceTask)


# --- derived networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_derived_network_is_its_head_around_its_cell(kind, task):
    network = DerivedRecurrentNetwork(Genotype({kind: CELLS[kind]}), task, HIDDEN, engine="readable")
    [cell] = network.body.layers
    assert cell.backbone == kind and cell.inputs == network.head.width
    space, coefficients = derived_space(CELLS[kind])
    inputs = batch(task)
    expected = network.head.leave(cell(network.head.enter(inputs), coefficients))
    assert torch.equal(network(inputs), expected)
    assert cell.space == space
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for part in (network.head, cell) for p in part.parameters()
    )


def test_layers_read_one_another():
    genotype = Genotype({"two-to-one 1": CELLS["two-to-one"], "darts 2": CELLS["darts"]})
    network = DerivedRecurrentNetwork(genotype, FORECASTING, HIDDEN, engine="readable")
    first, second = network.body.layers
    assert (first.backbone, first.inputs, second.backbone, second.inputs) == ("two-to-one", SERIES, "darts", HIDDEN)
    inputs = batch(FORECASTING)
    coefficients = [derived_space(cell)[1] for _, cell in genotype.cells]
    states = second(first(inputs.transpose(0, 1), coefficients[0]), coefficients[1])
    assert torch.equal(network(inputs), network.head.decoder(states[-1]))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_engines_have_the_same_values_and_the_same_state(kind, task):
    genotype = Genotype({f"{kind} 1": CELLS[kind], f"{kind} 2": CELLS[kind]})
    networks = []
    for engine in RECURRENT_ENGINES:
        torch.manual_seed(3)
        networks.append(DerivedRecurrentNetwork(genotype, task, HIDDEN, engine=engine))
    states = [network.state_dict() for network in networks]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    inputs = batch(task)
    outputs = [network.double()(inputs.double() if task is FORECASTING else inputs) for network in networks]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


def test_a_derived_network_in_double_precision_and_its_state():
    """Coefficients follow the network's type and device, and are no part of its state."""
    network = DerivedRecurrentNetwork(Genotype({"darts": CELLS["darts"]}), FORECASTING, HIDDEN)
    assert network.double()(batch(FORECASTING).double()).dtype == torch.float64
    assert not any("coefficients" in name for name in network.state_dict())
    assert {name for name in network.state_dict() if "edges" in name} == {
        "body.layers.0.edges.0-1.tanh.weight",
        "body.layers.0.edges.1-3.sigmoid.weight",  # node 2 is dead
    }


@pytest.mark.parametrize("kind", CELLS)
def test_what_a_model_says_of_a_word_does_not_depend_on_what_follows(kind):
    network = DerivedRecurrentNetwork(Genotype({kind: CELLS[kind]}), LANGUAGE, HIDDEN)
    tokens = batch(LANGUAGE)
    changed = tokens.clone()
    changed[0, 3] = (tokens[0, 3] + 1) % WORDS
    before, after = network(tokens), network(changed)
    assert torch.equal(before[0, :3], after[0, :3]) and torch.equal(before[1], after[1])
    assert not torch.equal(before[0, 3], after[0, 3])


def test_every_parameter_learns():
    for kind, cell in CELLS.items():
        network = DerivedRecurrentNetwork(Genotype({kind: cell}), LANGUAGE, HIDDEN)
        network(batch(LANGUAGE)).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters()), kind


def test_initial_weights_are_a_function_of_the_seed():
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(DerivedRecurrentNetwork(Genotype({"darts": CELLS["darts"]}), FORECASTING, HIDDEN))
    flat = [torch.cat([p.flatten() for p in network.parameters()]) for network in networks]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


# --- baselines --------------------------------------------------------------------------------------------------------


def lstm_states(rnn, inputs):
    """Hochreiter & Schmidhuber's cell in torch's order of gates: input, forget, change, output."""
    h = c = torch.zeros(inputs.shape[1], rnn.hidden_size, dtype=inputs.dtype)
    states = []
    for x in inputs:
        gates = x @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + h @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states)


def gru_states(rnn, inputs):
    """Cho et al.'s cell in torch's order of gates: reset, update, change."""
    h = torch.zeros(inputs.shape[1], rnn.hidden_size, dtype=inputs.dtype)
    states = []
    for x in inputs:
        ir, iz, ic = (x @ rnn.weight_ih_l0.T + rnn.bias_ih_l0).chunk(3, 1)
        hr, hz, hc = (h @ rnn.weight_hh_l0.T + rnn.bias_hh_l0).chunk(3, 1)
        z = (iz + hz).sigmoid()
        h = (1 - z) * (ic + (ir + hr).sigmoid() * hc).tanh() + z * h
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize(("cell", "states_of"), [("lstm", lstm_states), ("gru", gru_states)])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_baselines_are_lstm_and_gru(cell, states_of, task):
    network = TorchRecurrentNetwork(cell, task, HIDDEN).double()
    assert type(network.body) is {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
    inputs = batch(task).double() if task is FORECASTING else batch(task)
    states = states_of(network.body, network.head.enter(inputs))
    torch.testing.assert_close(network(inputs), network.head.leave(states))


def test_layers_of_the_baselines_and_their_size():
    """With torch's two biases a gate: 4(n_h(n_h + n_x) + 2 n_h) for an LSTM."""
    for cell, gates in (("lstm", 4), ("gru", 3)):
        network = TorchRecurrentNetwork(cell, FORECASTING, HIDDEN, layers=2)
        assert network.body.num_layers == 2
        expected = gates * (HIDDEN * (HIDDEN + SERIES) + 2 * HIDDEN) + gates * (HIDDEN * 2 * HIDDEN + 2 * HIDDEN)
        assert sum(p.numel() for p in network.body.parameters()) == expected


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_genotypes_of_another_form():
    with pytest.raises(InvalidInput, match=r"^A recurrent cell has 1 input node, this genotype has 2\.$"):
        DerivedRecurrentNetwork(DARTS_V1, FORECASTING, HIDDEN)
    with pytest.raises(InvalidInput, match=r"^Unknown recurrent backbone 'normal'\. Valid: two-to-one, darts, hi"):
        DerivedRecurrentNetwork(Genotype({"normal": CELLS["darts"]}), FORECASTING, HIDDEN)
    wrong = CellGenotype((Edge(0, 1, "sep_conv_3x3"),), 1, 1)
    for kind in CELLS:
        with pytest.raises(InvalidInput, match=r"^Unknown operation of the .* cell 'sep_conv_3x3'\. Valid: "):
            DerivedRecurrentNetwork(Genotype({kind: wrong}), FORECASTING, HIDDEN)
    everything = CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "tanh")), 2, 1)  # whose output is both nodes
    for kind in ("two-to-one", "darts"):
        for engine in RECURRENT_ENGINES:
            with pytest.raises(InvalidInput, match=r"cell is one node, got \[1, 2\]\."):
                DerivedRecurrentNetwork(Genotype({kind: everything}), FORECASTING, HIDDEN, engine=engine)
    DerivedRecurrentNetwork(Genotype({"highway": everything}), FORECASTING, HIDDEN)


@pytest.mark.parametrize("size", [0, -2])
def test_wrong_sizes(size):
    genotype = Genotype({"darts": CELLS["darts"]})
    with pytest.raises(InvalidInput, match=rf"^hidden must be above 0, got {size}\.$"):
        DerivedRecurrentNetwork(genotype, FORECASTING, size)
    with pytest.raises(InvalidInput, match=rf"^hidden must be above 0, got {size}\.$"):
        TorchRecurrentNetwork("lstm", FORECASTING, size)
    with pytest.raises(InvalidInput, match=rf"^layers must be above 0, got {size}\.$"):
        TorchRecurrentNetwork("lstm", FORECASTING, 3, layers=size)


def test_wrong_names():
    with pytest.raises(InvalidInput, match=r"^Unknown torch cell 'lstn'\. Did you mean 'lstm'\? Valid: lstm, gru\.$"):
        TorchRecurrentNetwork("lstn", FORECASTING, 3)
    space = RECURRENT_BACKBONES["darts"].space(2)
    with pytest.raises(InvalidInput, match=r"^Unknown engine 'fuse'\. Did you mean 'fused'\? Valid: fused, read"):
        build_recurrent_cell("darts", space, 3, 3, engine="fuse")
    with pytest.raises(InvalidInput, match="^Unknown recurrent backbone 'dart'"):
        build_recurrent_cell("dart", space, 3, 3)
    with pytest.raises(InvalidInput, match=r"^A recurrent network needs at least one layer\.$"):
        RecurrentStack([], 3, 3)
