"""Multiply-adds of the papers' tables: counts against those by hand and against what real steps do; rates and seeds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from nasbook.analysis import count_macs
from nasbook.errors import InvalidInput
from nasbook.experiments import budgets
from nasbook.experiments.budgets import Cost, Passes, count_passes, gpu_rates, hours, paper_rate, seeds_for
from nasbook.genotypes import DARTS_V2, Space
from nasbook.methods.darts import UPDATES
from nasbook.networks import VGG, DerivedNetwork
from nasbook.supernets import SearchNetwork
from nasbook.training import Objective

SMALL = Space(("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"), nodes=2)


class Executed(TorchDispatchMode):
    """Multiply-adds that torch carries out below autograd, convolutions backwards included."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        name = func._overloadpacket
        if name is aten.convolution:
            self.macs += args[1].numel() * len(output) * math.prod(output.shape[2:])
        elif name is aten.convolution_backward:
            gradient, _, weight = args[:3]
            self.macs += weight.numel() * len(gradient) * math.prod(gradient.shape[2:]) * sum(args[10][:2])
        elif name is aten.mm:
            self.macs += args[0].numel() * args[1].shape[1]
        elif name is aten.addmm:
            self.macs += args[1].numel() * args[2].shape[1]
        return output


def supernet(**options):
    torch.manual_seed(0)
    return SearchNetwork(SMALL, 4, 3, engine="readable", **options)


@pytest.mark.parametrize(
    ("step", "order", "objective"),
    [
        ("first-order", "first-order", Objective()),
        ("mixed-level", "first-order", Objective(train=1.0)),
        ("finite-difference", "finite-difference", Objective()),
    ],
)
def test_a_step_is_counted_as_torch_carries_it_out(step, order, objective):
    network = supernet()
    sgd = torch.optim.SGD(network.weights(), 0.025)
    adam = torch.optim.Adam(network.architecture(), 3e-4)
    update = UPDATES[order](network, sgd, adam, objective=objective)
    batches = [(torch.randn(2, 3, 16, 16), torch.tensor([0, 1])) for _ in range(2)]
    with Executed() as executed:
        update.step(*batches)
    assert executed.macs == 2 * count_passes(network, (3, 16, 16)).step(step)


def test_shares_of_their_own_for_operations_and_topology_cost_two_more_passes():
    network = supernet()
    first, *others = list(network.architecture())
    adam = torch.optim.Adam([{"params": [first]}, {"params": others}], 3e-4)
    update = UPDATES["first-order"](
        network, torch.optim.SGD(network.weights(), 0.025), adam, objective=Objective(train=1.0)
    )
    batches = [(torch.randn(2, 3, 16, 16), torch.tensor([0, 1])) for _ in range(3)]
    with Executed() as executed:
        update.step(*batches)
    passes = count_passes(network, (3, 16, 16))
    # Here the groups are two kinds of cell, and one of them begins further up: no more than the row's four passes.
    assert passes.step("mixed-level") < executed.macs / 2 <= passes.step("mixed-level, three shares")


def test_the_passes_of_darts_supernet():
    passes = count_passes(SearchNetwork(channels=16, cells=8, engine="readable"), (3, 32, 32))
    # 300,255,744 are in Chapter 1; the stem's convolution, 27 · 48 · 32², alone needs no gradient of its input.
    assert passes == Passes(300_255_744, 3 * 300_255_744 - 27 * 48 * 1024, 557_896_704)
    assert passes.step("first-order") == 1_457_336_832
    assert passes.step("finite-difference") == 3_814_113_792


def test_a_training_step_is_counted_as_torch_carries_it_out():
    torch.manual_seed(0)
    network = DerivedNetwork(DARTS_V2, 4, 5, auxiliary=True)
    network.train()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    with Executed() as executed:
        outputs = network(images)
        sum(torch.nn.functional.cross_entropy(each, labels) for each in outputs).backward()
    passes = count_passes(network, (3, 32, 32))
    assert executed.macs == 2 * passes.weights
    assert passes.forward > count_macs(network, (1, 3, 32, 32))  # the auxiliary head
    assert passes.architecture == 0
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_vgg_by_hand():
    """VGG-11 of 2 channels on 32×32 pixels, pooled after layers 1, 2, 4, 6 and 8."""
    sides = (32, 16, 8, 8, 4, 4, 2, 2)
    entering = 9 * 3 * 2 * 32**2
    forward = entering + sum(9 * 2 * 2 * side**2 for side in sides[1:]) + 2 * 10
    assert count_passes(VGG("vgg11", [2] * 8), (3, 32, 32)) == Passes(forward, 3 * forward - entering)


def test_the_fused_engine_is_refused():
    with pytest.raises(InvalidInput, match="engine='readable'"):
        count_passes(SearchNetwork(SMALL, 4, 3), (3, 16, 16))


def test_an_unknown_step_is_refused():
    with pytest.raises(InvalidInput, match="step"):
        Passes(1, 3).step("second-order")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_of_language_models_by_hand():
    (cost,) = [c for c in budgets.paper_costs("growing") if c.row == "PTB, DARTS from 2 nodes"]
    matrices = [3 * 256 * 128 + 3 * 128**2 * (m * (m - 1) // 2) + 128 * 10_000 for m in range(2, 8)]
    assert cost.multiply_adds == 2 * 5 * 88_000 * 10 * sum(matrices)
    assert cost.total() == 5 * cost.multiply_adds
    assert cost.total(17) == 17 * cost.multiply_adds
    assert cost.is_bound
    with pytest.raises(InvalidInput, match="runs"):
        cost.total(0)


def test_unknown_names_are_refused():
    with pytest.raises(InvalidInput, match="paper"):
        budgets.paper_costs("drats")
    with pytest.raises(InvalidInput, match="row"):
        budgets.find_cost("growing", "Figures 4 to 6", "PTB, DARTS from 9 nodes", "search")


def test_the_dearest_pools_of_table_2():
    names = budgets._dearest_pools(budgets.CONSTRAINTS["DL"], 3)
    assert names[0] == "sep_conv(kernel=7, dilation=1, expansions=1)"
    assert len({*budgets._dearest_pools(budgets.CONSTRAINTS["DL"], 12)}) == 12  # Table 2's total


# --- rates and seeds --------------------------------------------------------------------------------------------------

COST = Cost("darts", "Table 1", "DARTS", "search", "supernet", 86_400_000, 3, 0.5)


def test_a_paper_tells_its_rate():
    assert paper_rate(COST) == 2000.0
    assert paper_rate(Cost("darts", "Table 1", "DARTS", "search", "supernet", 1, None)) is None


def test_rates_of_gpus():
    bound = Cost("darts", "Table 1", "other", "search", "supernet", 10**12, None, 0.5, "at most")
    plain = Cost("darts", "Table 1", "other", "search", "plain", 10**12, None)
    assert gpu_rates([COST, bound, plain]) == {"supernet": 2000.0, "plain": budgets.ASSUMED_GPU_RATES["plain"]}
    with pytest.raises(InvalidInput, match="'plain' has GPU-days"):
        gpu_rates([plain], {})


@given(st.integers(0, 10**21), st.floats(1e3, 1e15))
def test_hours_times_rate_is_the_work(macs, rate):
    assert hours(macs, rate) * rate * 3600 == pytest.approx(macs)
    assert hours(macs, 2 * rate) == pytest.approx(hours(macs, rate) / 2)


def test_hours_by_hand():
    assert hours(7.2e12, 1e9) == 2.0
    with pytest.raises(InvalidInput, match="rate"):
        hours(1, 0.0)
    with pytest.raises(InvalidInput, match="multiply_adds"):
        hours(-1, 1.0)


@pytest.mark.parametrize(("effect", "seeds"), [(2.0, 6), (1.0, 17), (0.5, 64)])
def test_seeds_as_in_tables_of_power(effect, seeds):
    """Two-sided t test of two means, power 0.8, level 0.05: the numbers of any textbook's table."""
    assert seeds_for(effect) == seeds


@given(st.floats(0.2, 3.0), st.floats(1.05, 2.0))
def test_a_smaller_effect_never_takes_fewer_seeds(effect, factor):
    assert 2 <= seeds_for(effect * factor) <= seeds_for(effect)


@pytest.mark.parametrize(
    ("effect", "power", "what"), [(0.0, 0.8, "effect"), (1.0, 1.0, "power"), (1e-6, 0.8, "million")]
)
def test_impossible_seeds_are_refused(effect, power, what):
    with pytest.raises(InvalidInput, match=what):
        seeds_for(effect, power)
