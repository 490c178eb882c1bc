"""Stems, placements and the positions of the reduction cells."""

import pytest
import torch
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.networks import (
    CELL_OUTPUTS,
    CellPlacement,
    CifarStem,
    ImageNetStem,
    build_stem,
    reduction_positions,
    stack_cells,
)
from nasbook.operations import FactorizedReduction, ReLUConvolution


@pytest.mark.parametrize(
    ("cells", "positions"),
    [(1, (0,)), (2, (0, 1)), (3, (1, 2)), (5, (1, 3)), (6, (2, 4)), (8, (2, 5)), (14, (4, 9)), (20, (6, 13))],
)
def test_reduction_positions(cells, positions):
    assert reduction_positions(cells) == positions


def test_the_stack_of_darts():
    placements = stack_cells(8, 16, CifarStem(3, 16), {"normal": 4, "reduction": 4})
    assert [p.kind[0] for p in placements] == list("nnrnnrnn")
    assert [p.channels for p in placements] == [16, 16, 32, 32, 32, 64, 64, 64]
    assert [p.input_channels for p in placements] == [
        (48, 48), (48, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 256)
    ]  # fmt: skip
    assert [p.halve_older for p in placements] == [False, False, False, True, False, False, True, False]
    assert [p.input_stride for p in placements] == [1, 1, 2, 1, 1, 2, 1, 1]


def test_outputs_of_another_width():
    placements = stack_cells(3, 4, CifarStem(3, 4), {"normal": 1, "reduction": 3})
    assert [p.input_channels for p in placements] == [(12, 12), (12, 4), (4, 24)]


@pytest.mark.parametrize("halve_older", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_preprocessing(halve_older, affine):
    older, newer = CellPlacement("normal", 4, (6, 8), False, halve_older).preprocessing(affine)
    assert type(older) is (FactorizedReduction if halve_older else ReLUConvolution)
    assert type(newer) is ReLUConvolution
    assert older(torch.rand(2, 6, 8, 8)).shape == (2, 4, *([4, 4] if halve_older else [8, 8]))
    assert newer(torch.rand(2, 8, 4, 4)).shape == (2, 4, 4, 4)
    norms = [m for part in (older, newer) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.affine for norm in norms] == [affine, affine]


def test_the_cifar_stem():
    stem = build_stem("cifar", 1, 4)
    assert isinstance(stem, CifarStem)
    older, newer = stem(torch.rand(2, 1, 9, 8))
    assert older is newer and older.shape == (2, 12, 9, 8)
    assert all(m.affine for m in stem.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.bias is None for m in stem.modules() if isinstance(m, nn.Conv2d))


def test_the_imagenet_stem():
    stem = build_stem("imagenet", 3, 6)
    assert isinstance(stem, ImageNetStem)
    older, newer = stem(torch.rand(2, 3, 64, 48))
    assert older.shape == (2, 6, 16, 12) and newer.shape == (2, 6, 8, 6)
    (placement,) = stack_cells(1, 6, stem, {"reduction": 4})
    assert placement == CellPlacement("reduction", 12, (6, 6), reduces=True, halve_older=True)
    assert [(m.in_channels, m.out_channels, m.stride) for m in stem.modules() if isinstance(m, nn.Conv2d)] == [
        (3, 3, (2, 2)), (3, 6, (2, 2)), (6, 6, (2, 2))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifa", 3, 4), r"^Unknown stem 'cifa'\. Did you mean 'cifar'\? Valid: cifar, imagenet\.$"),
        (("cifar", 0, 4), r"^in_channels must be above 0, got 0\.$"),
        (("imagenet", 3, -1), r"^channels must be above 0, got -1\.$"),
        (("imagenet", 3, 1), r"^The imagenet stem needs channels of at least 2, got 1\.$"),
    ],
)
def test_wrong_stems(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        build_stem(*arguments)


@pytest.mark.parametrize(("cells", "channels"), [(0, 4), (-1, 4), (3, 0)])
def test_wrong_sizes(cells, channels):
    with pytest.raises(InvalidInput, match=r"^(cells|channels) must be above 0, got (0|-1)\.$"):
        stack_cells(cells, channels, CifarStem(3, 4), {"normal": 4, "reduction": 4})


# ---------------------------------------------------------------------------------------------- cell outputs


def test_a_concatenation_and_a_mean():
    nodes = [torch.full((1, 2, 1, 1), value) for value in (1.0, 2.0, 6.0)]
    assert CELL_OUTPUTS["concatenation"](nodes).flatten().tolist() == [1, 1, 2, 2, 6, 6]
    assert CELL_OUTPUTS["mean"](nodes).flatten().tolist() == [3, 3]
    for output, channels in (("concatenation", 15), ("mean", 5)):
        placement = CellPlacement("normal", 5, (4, 4), False, False, output)
        images = list(torch.randn(3, 2, 5, 4, 4))
        joined = CELL_OUTPUTS[placement.output](images)
        assert joined.shape == (2, placement.output_channels(3), 4, 4) == (2, channels, 4, 4)
        assert torch.equal(CELL_OUTPUTS[output](images[:1]), images[0])
    assert CellPlacement("normal", 5, (4, 4), False, False).output == "concatenation"


def test_a_stack_of_means():
    placements = stack_cells(8, 16, CifarStem(3, 16), {"normal": 4, "reduction": 2}, "mean")
    assert [p.channels for p in placements] == [16, 16, 32, 32, 32, 64, 64, 64]
    assert [p.input_channels for p in placements] == [
        (48, 48), (48, 16), (16, 16), (16, 32), (32, 32), (32, 32), (32, 64), (64, 64)
    ]  # fmt: skip
    assert {p.output for p in placements} == {"mean"}
    concatenated = stack_cells(3, 4, CifarStem(3, 4), {"normal": 4, "reduction": 4}, "concatenation")
    assert concatenated == stack_cells(3, 4, CifarStem(3, 4), {"normal": 4, "reduction": 4})


def test_an_unknown_cell_output():
    with pytest.raises(InvalidInput, match=r"^Unknown cell output 'men'\. Did you mean 'mean'\? Valid: conc"):
        stack_cells(3, 4, CifarStem(3, 4), {"normal": 4, "reduction": 4}, "men")
