"""Batch norms that several processes share are those of one process that has the whole batch."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.genotypes import Space
from nasbook.operations.batch_norms import SynchronizedBatchNorm2d, batch_norms, synchronize_norms
from nasbook.supernets import SearchNetwork

HERE = Path(__file__).parent


def load(file: Path):
    specification = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """How every case of ``norm_cases.py`` ended."""
    return load(HERE.parent / "worlds.py").outcomes(HERE / "norm_cases.py", tmp_path_factory.mktemp("worlds"))


def values(found, case):
    """What the processes of a case returned."""
    assert [outcome.error for outcome in found[case]] == [None] * len(found[case])
    return [outcome.value for outcome in found[case]]


PARTS = ("outputs", "images", "evaluated")
"""Names of what has a row for each image: of several processes, each has its own."""


@pytest.mark.parametrize("setting", ["affine", "plain", "momentum", "cumulative", "no statistics"])
def test_two_processes_normalise_as_one(found, setting):
    [alone], together = values(found, f"{setting}, 1"), values(found, f"{setting}, 2")
    compare(alone, together)


def test_three_processes_normalise_as_one(found):
    [alone], together = values(found, "affine, 1"), values(found, "affine, 3")
    compare(alone, together)


def compare(alone, together):
    for name, expected in alone.items():
        if name.startswith(PARTS):
            got = torch.cat([one[name] for one in together])
        else:
            got = together[0][name]
            assert all(torch.equal(one[name], got) for one in together), name  # to the bit
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_the_parts_by_themselves_would_differ(found):
    # Otherwise the tests above would also pass without a message between the processes.
    [alone] = values(found, "affine, 1")
    cases = load(HERE / "norm_cases.py")
    net = cases.network()
    apart = torch.cat([net(part) for part in cases.images(0).chunk(2)])
    assert (apart - alone["outputs 0"]).abs().max() > 0.1


@pytest.mark.parametrize("processes", [2, 3])
def test_second_derivatives_are_those_of_one_process(found, processes):
    [alone], together = values(found, "second derivative, 1"), values(found, f"second derivative, {processes}")
    for number, expected in enumerate(alone):
        got = torch.cat([one[0] for one in together]) if number == 0 else together[-1][number]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert all(product.abs().max() > 1e-3 for product in alone)


def test_gradients_agree_with_finite_differences(found):
    assert values(found, "gradcheck") == [True, True]
    assert values(found, "gradgradcheck") == [True, True]


def test_a_large_mean_costs_no_digits(found):
    got = torch.cat(values(found, "far from zero"))
    x = (torch.randn(600, 1, 1, 1, generator=torch.Generator().manual_seed(0)) + 1000).double()
    expected = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    assert (got - expected).abs().max() < 5e-4  # rounding x·scale + shift, as torch's own norm does on a CPU


def test_half_precision_has_moments_in_single_precision(found):
    [(alone, mean)] = values(found, "half precision, 1")
    together = values(found, "half precision, 2")
    outputs = torch.cat([one for one, _ in together])
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, alone, rtol=0.02, atol=0.02)
    torch.testing.assert_close(together[1][1], mean, rtol=1e-5, atol=1e-6)


def test_the_memory_order_stays(found):
    [alone], last = values(found, "affine, 1"), values(found, "channels last")
    assert all(kept for kept, _ in last)
    torch.testing.assert_close(torch.cat([outputs for _, outputs in last]), alone["outputs 0"], rtol=1e-12, atol=1e-12)


def test_one_value_in_each_process_is_enough(found):
    got = torch.cat(values(found, "one value each")).flatten()
    torch.testing.assert_close(got, torch.tensor([-1.0, 1.0]), rtol=1e-4, atol=0)


def test_alone_it_is_torch_s_norm_to_the_bit():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    shared = copy.deepcopy(plain)
    synchronize_norms(shared)
    assert [type(norm) for norm in batch_norms(shared)] == [SynchronizedBatchNorm2d]
    x = torch.randn(4, 2, 5, 5)
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(x), shared.train(mode)(x))
    assert plain.state_dict().keys() == shared.state_dict().keys()
    assert all(torch.equal(value, shared.state_dict()[name]) for name, value in plain.state_dict().items())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        SynchronizedBatchNorm2d(1)(torch.zeros(1, 1, 1, 1))


def test_a_converted_network_keeps_parameters_buffers_and_modes():
    inner = nn.BatchNorm2d(3, eps=0.1, momentum=0.2)
    network = nn.ModuleDict({"first": inner, "again": inner, "other": nn.Sequential(nn.BatchNorm2d(3, affine=False))})
    network["other"].eval()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    before = dict(network.named_parameters()), dict(network.named_buffers())
    synchronize_norms(network)
    norm = network["first"]
    assert norm is network["again"] and type(norm) is SynchronizedBatchNorm2d
    assert (norm.eps, norm.momentum, norm.affine, norm.training) == (0.1, 0.2, True, True)
    assert not network["other"][0].training and not network["other"][0].affine
    for kept, now in zip(before, (network.named_parameters(), network.named_buffers()), strict=True):
        assert {name: id(tensor) for name, tensor in now} == {name: id(tensor) for name, tensor in kept.items()}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in network.parameters()}
    synchronize_norms(network)  # again changes nothing
    assert network["first"] is norm


def test_another_kind_of_norm_is_refused_and_nothing_changed():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2))
    with pytest.raises(InvalidInput, match=r"^Several processes can share an nn.BatchNorm2d, not a BatchNorm1d\.$"):
        synchronize_norms(network)
    assert type(network[0]) is nn.BatchNorm2d


def test_a_fused_cell_takes_the_readable_way():
    torch.manual_seed(0)
    space = Space(("skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=2)
    network = SearchNetwork(space, channels=2, cells=3, classes=3, engine="fused")
    network(torch.randn(4, 3, 8, 8))  # has looked at its modules once
    synchronize_norms(network)
    assert all(type(norm) is SynchronizedBatchNorm2d for norm in batch_norms(network))
    seen = []
    for norm in batch_norms(network.cells[0].edges):
        norm.register_forward_hook(lambda *_: seen.append(1))
    network(torch.randn(4, 3, 8, 8))
    assert len(seen) == len(batch_norms(network.cells[0].edges))
