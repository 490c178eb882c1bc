"""Cells that are computed again in the backward pass: the same bits, less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasbook.analysis import saved_activation_bytes
from nasbook.errors import InvalidInput
from nasbook.genotypes import Space
from nasbook.operations.batch_norms import Repeated, batch_norms
from nasbook.supernets import SearchNetwork
from nasbook.training import BilevelUpdate, FiniteDifference, FirstOrder, SecondOrder


def network(engine: str, recompute_cells: int) -> SearchNetwork:
    torch.manual_seed(0)
    built = SearchNetwork(Space(nodes=2), 4, 3, 3, engine=engine, recompute_cells=recompute_cells).double()
    with torch.no_grad():
        for alpha in built.architecture():
            alpha.mul_(300)  # far from equal
    return built


def after_steps(kind: type[BilevelUpdate], built: SearchNetwork) -> Tensor:
    """Weights, α and buffers after three steps."""
    weights = torch.optim.SGD(built.weights(), 0.1, momentum=0.9, weight_decay=3e-4)
    update = kind(built, weights, torch.optim.Adam(built.architecture(), 1e-2))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        batches = [
            (
                torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64),
                torch.randint(3, (5,), generator=generator),
            )
            for _ in range(2)
        ]
        update.step(*batches)
    return torch.cat([value.flatten().double() for value in built.state_dict().values()])


@pytest.mark.parametrize("engine", ["fused", "readable"])
@pytest.mark.parametrize("kind", [FirstOrder, SecondOrder, FiniteDifference])
def test_steps_keep_their_bits(kind, engine):
    plain = after_steps(kind, network(engine, 0))
    assert torch.equal(after_steps(kind, network(engine, 2)), plain)
    assert torch.equal(after_steps(kind, network(engine, 3)), plain)


@pytest.mark.parametrize("engine", ["fused", "readable"])
def test_each_cell_that_is_computed_again_saves_memory(engine):
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    kept = [saved_activation_bytes(network(engine, count), images) for count in range(4)]
    assert kept == sorted(kept, reverse=True)
    assert kept[3] < kept[0] / 10


def test_nothing_is_set_up_for_a_pass_without_gradients():
    built = network("fused", 3)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(built.eval()(images), network("fused", 0).eval()(images))


@pytest.mark.parametrize("count", [-1, 4])
def test_more_cells_than_there_are_are_refused(count):
    with pytest.raises(InvalidInput, match="recompute_cells must be from 0 to cells, which is 3"):
        SearchNetwork(Space(nodes=2), 4, 3, 3, recompute_cells=count)


def test_a_repeated_pass_leaves_no_trace_and_may_be_repeated_again():
    norm = nn.BatchNorm2d(2)
    norm.track_running_stats = False
    repeated = Repeated(batch_norms(norm))
    norm.track_running_stats = True
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for _ in range(2):
        with repeated:
            assert not norm.track_running_stats
            norm(torch.randn(3, 2, 4, 4))
            norm.running_mean.add_(1)  # as a pass that does look
        assert norm.track_running_stats
        assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())
