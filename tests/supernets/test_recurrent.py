"""The recurrent supernet: whose parameters are whose, what its coefficients mean, and Table 2 from real tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Genotype
from nasbook.networks import RECURRENT_BACKBONES, RECURRENT_ENGINES, DerivedRecurrentNetwork
from nasbook.supernets import NodeSoftmax, PoolSoftmax, RecurrentSearchNetwork, SoftmaxRelaxation

SERIES, WORDS, HIDDEN = 3, 6, 4
FORECASTING = SimpleNamespace(task="forecasting", features=SERIES)
LANGUAGE = SimpleNamespace(task="language", features=WORDS)
BACKBONES = tuple(RECURRENT_BACKBONES)


def network_of(name, nodes=3, layers=1, task=FORECASTING, **options):
    backbone = RECURRENT_BACKBONES[name]
    spaces = dict.fromkeys(backbone.kinds(layers), backbone.space(nodes, layers))
    return RecurrentSearchNetwork(spaces, task, HIDDEN, **options)


def batch(task, count=2, time=5):
    draws = torch.Generator().manual_seed(0)
    if task is FORECASTING:
        return torch.randn(count, time, SERIES, generator=draws)
    return torch.randint(WORDS, (count, time), generator=draws)


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("task", [FORECASTING, LANGUAGE], ids=lambda task: task.task)
def test_weights_and_architecture_are_disjoint_and_complete(name, layers, task):
    network = network_of(name, layers=layers, task=task)
    weights, architecture = list(network.weights()), list(network.architecture())
    of_weights, of_architecture = {id(p) for p in weights}, {id(p) for p in architecture}
    assert len(of_weights) == len(weights) and len(of_architecture) == len(architecture) == layers
    assert not of_weights & of_architecture
    assert of_weights | of_architecture == {id(p) for p in network.parameters()}
    assert of_architecture == {id(network.relaxation(kind).alpha) for kind in network.spaces}
    for kind, space in network.spaces.items():
        assert network.relaxation(kind).alpha.shape == (len(space.edges), 5)
    network(batch(task)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())  # and all of them are used


def test_every_layer_has_an_architecture_of_its_own():
    """As Eq. 23 and 25 count them."""
    network = network_of("two-to-one", layers=2)
    assert list(network.spaces) == ["two-to-one 1", "two-to-one 2"]
    inputs = batch(FORECASTING)
    first = network.coefficients()
    with torch.no_grad():
        network.relaxation("two-to-one 2").alpha[0, 3] += 5
    second = network.coefficients()
    assert torch.equal(first["two-to-one 1"], second["two-to-one 1"])
    assert not torch.equal(first["two-to-one 2"], second["two-to-one 2"])
    assert network.cell("two-to-one 1") is network.body.layers[0]
    assert network.cell("two-to-one 2") is network.body.layers[1]
    states = network.cell("two-to-one 2")(
        network.cell("two-to-one 1")(inputs.transpose(0, 1), second["two-to-one 1"]), second["two-to-one 2"]
    )
    torch.testing.assert_close(network(inputs), network.head.decoder(states[-1]))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("task", [FORECASTING, LANGUAGE], ids=lambda task: task.task)
def test_engines_have_the_same_values_and_the_same_state(name, task):
    networks = []
    for engine in RECURRENT_ENGINES:
        torch.manual_seed(1)
        networks.append(network_of(name, layers=2, task=task, engine=engine))
    states = [network.state_dict() for network in networks]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    inputs = batch(task)
    outputs = [network.double()(inputs.double() if task is FORECASTING else inputs) for network in networks]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


def test_initial_parameters_are_a_function_of_the_seed():
    flat = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        flat.append(torch.cat([p.detach().flatten() for p in network_of("darts").parameters()]))
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


def test_the_state_of_a_supernet_can_be_loaded():
    first, second = network_of("two-to-one"), network_of("two-to-one")
    inputs = batch(FORECASTING)
    assert not torch.equal(first(inputs), second(inputs))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(inputs), second(inputs))


# --- coefficients -----------------------------------------------------------------------------------------------------


def test_coefficients_are_asked_for_once_a_pass():
    """Not once a time step."""
    network, calls = network_of("darts", layers=2), []
    for relaxation in network.relaxations.values():
        original = relaxation.coefficients
        relaxation.coefficients = lambda original=original: calls.append(1) or original()
    network(batch(FORECASTING))
    assert len(calls) == 2


@pytest.mark.parametrize("name", BACKBONES)
def test_coefficients_are_a_softmax_on_every_edge(name):
    network = network_of(name)
    [coefficients] = network.coefficients().values()
    alpha = network.relaxation(name).alpha
    torch.testing.assert_close(coefficients, alpha.exp() / alpha.exp().sum(1, keepdim=True))
    assert alpha.abs().max() < 0.01  # all candidates begin alike
    assert network.penalty().item() == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_at_a_corner_the_supernet_is_the_derived_network(name):
    """α far apart means one operation an edge; then the supernet and the discrete network compute the same."""
    torch.manual_seed(2)
    network = network_of(name, nodes=3, engine="readable").double()
    space, chosen = network.spaces[name], {}
    with torch.no_grad():
        alpha = network.relaxation(name).alpha.fill_(-800)
        for node in range(1, 4):
            sources = space.sources(node)
            source = sources[(node - 1) // 2 % len(sources)]  # the others are shut by zero
            for row, edge in enumerate(space.edges):
                if edge[1] == node:
                    operation = ("tanh", "relu", "sigmoid")[node - 1] if edge[0] == source else "none"
                    alpha[row, space.operations.index(operation)] = 0
                    chosen[edge] = operation
    genotype = network.genotype()
    assert {(e.source, e.target): e.operation for e in genotype[name].edges} == {
        edge: operation for edge, operation in chosen.items() if operation != "none"
    }
    assert genotype[name].output == network.cell(name).own_output(space)
    derived = DerivedRecurrentNetwork(genotype, FORECASTING, HIDDEN, engine="readable").double()
    own = network.state_dict()
    derived.load_state_dict({key: own[key] for key in derived.state_dict()})
    inputs = batch(FORECASTING).double()
    torch.testing.assert_close(derived(inputs), network(inputs), rtol=1e-12, atol=1e-14)


def test_pools_of_a_pruned_cell():
    space = RECURRENT_BACKBONES["two-to-one"].space(2).with_pools([("tanh", "tanh-2"), ("sum",)])
    network = RecurrentSearchNetwork({"two-to-one": space}, FORECASTING, HIDDEN)
    assert type(network.relaxation("two-to-one")) is PoolSoftmax
    coefficients = network.coefficients()["two-to-one"]
    assert [bool(c) for c in (coefficients == 0).flatten()] == [False, False, True, True, True, False]
    assert coefficients[1, space.operations.index("sum")] == 1
    assert network.genotype()["two-to-one"].edges[1].operation == "sum"
    assert network.genotype()["two-to-one"].output == (2,)
    network(batch(FORECASTING)).sum().backward()
    gradient = network.relaxation("two-to-one").alpha.grad
    assert bool(gradient[0, :2].all()) and not bool(gradient[0, 2:].any()) and not bool(gradient[1].any())


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_of_the_architecture(name):
    network = network_of(name, nodes=2).double()
    inputs = batch(FORECASTING).double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)

    def loss(alpha):
        return torch.func.functional_call(network, {f"relaxations.{name}.alpha": alpha}, inputs).square().sum()

    assert torch.autograd.gradcheck(loss, (network.relaxation(name).alpha.detach().clone().requires_grad_(),))


# --- Table 2 ----------------------------------------------------------------------------------------------------------

TABLE_2 = {
    "darts": {2: (451, 235), 3: (750, 390), 4: (1196, 620), 5: (1789, 925), 6: (2529, 1305), 7: (3416, 1760)},
    "two-to-one": {2: (836, 440), 3: (1254, 660), 4: (1672, 880), 5: (2090, 1100), 6: (2508, 1320), 7: (2926, 1540)},
}
"""The paper's numbers, for G7 (7 series) and BRICS (5), with as many hidden units as series."""


@pytest.mark.parametrize("name", TABLE_2)
@pytest.mark.parametrize("place", [0, 1])
def test_table_2(name, place):
    size = (7, 5)[place]
    task = SimpleNamespace(task="forecasting", features=size)
    for nodes, row in TABLE_2[name].items():
        spaces = {name: RECURRENT_BACKBONES[name].space(nodes)}
        network = RecurrentSearchNetwork(spaces, task, size, relaxation=NodeSoftmax)
        cell = [network.cell(name), network.relaxation(name)]  # without the linear map to the forecast
        assert sum(p.numel() for part in cell for p in part.parameters()) == row[place]


def test_a_softmax_for_all_edges_of_a_node():
    space = RECURRENT_BACKBONES["darts"].space(3)
    relaxation = NodeSoftmax(space)
    assert relaxation.alpha.shape == (3, 5)
    nn.init.normal_(relaxation.alpha)
    rows = relaxation.alpha.softmax(-1)
    assert space.edges == ((0, 1), (1, 2), (1, 3), (2, 3))
    assert torch.equal(relaxation.coefficients(), rows[[0, 1, 2, 2]])
    assert relaxation.derive().edges[-1].source in (1, 2)
    chain = RECURRENT_BACKBONES["two-to-one"].space(3)
    by_node, by_edge = NodeSoftmax(chain), SoftmaxRelaxation(chain)
    by_edge.load_state_dict(by_node.state_dict())
    assert torch.equal(by_node.coefficients(), by_edge.coefficients())  # where a node has one edge both are the same


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_wrong_sizes_and_spaces():
    space = RECURRENT_BACKBONES["darts"].space(2)
    for hidden in (0, -1):
        with pytest.raises(InvalidInput, match=rf"^hidden must be above 0, got {hidden}\.$"):
            RecurrentSearchNetwork({"darts": space}, FORECASTING, hidden)
    with pytest.raises(InvalidInput, match=r"^A recurrent network needs at least one layer\.$"):
        RecurrentSearchNetwork({}, FORECASTING, HIDDEN)
    with pytest.raises(InvalidInput, match="^Unknown recurrent backbone 'normal'"):
        RecurrentSearchNetwork({"normal": space}, FORECASTING, HIDDEN)
    with pytest.raises(InvalidInput, match=r"^A recurrent cell has 1 input node, this space has 2\.$"):
        RecurrentSearchNetwork({"darts": DARTS_SPACE}, FORECASTING, HIDDEN)
    with pytest.raises(InvalidInput, match="^Unknown engine 'fusde'. Did you mean 'fused'"):
        RecurrentSearchNetwork({"darts": space}, FORECASTING, HIDDEN, engine="fusde")
    with pytest.raises(InvalidInput, match="^Unknown operation of the Two-to-One cell 'identity'"):
        RecurrentSearchNetwork({"two-to-one": RECURRENT_BACKBONES["darts"].space(1)}, FORECASTING, HIDDEN)
    with pytest.raises(InvalidInput, match="NodeSoftmax needs the same candidates on all edges; this space has pools"):
        NodeSoftmax(space.with_pools([("tanh",)] * 2))


def test_a_genotype_says_which_nodes_are_the_state():
    for name in BACKBONES:
        genotype = network_of(name).genotype()
        assert isinstance(genotype, Genotype) and genotype.kinds == (name,)
        assert genotype[name].output == ((1, 2, 3) if name == "highway" else (3,))
        assert Genotype.from_json(genotype.to_json()) == genotype
        DerivedRecurrentNetwork(genotype, LANGUAGE, HIDDEN)
