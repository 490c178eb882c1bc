"""Stems, placements, the positions of the reduction cells, and which kind of cell stands where."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.networks import (
    CELL_OUTPUTS,
    CELL_SECTIONS,
    CellPlacement,
    CifarStem,
    ImageNetStem,
    build_stem,
    kinds_of_cells,
    reduces_resolution,
    reduction_positions,
    stack_cells,
    stack_runs,
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


# ---------------------------------------------------------------------------------------------- kinds of cell


@pytest.mark.parametrize(
    ("cells", "sections"),
    [
        (5, (1, 1, 1, 1, 1)),
        (6, (2, 1, 1, 1, 1)),
        (7, (2, 1, 1, 1, 2)),
        (8, (2, 1, 2, 1, 2)),
        (11, (3, 1, 3, 1, 3)),
        (20, (6, 1, 6, 1, 6)),  # the paper's 1-6, 7, 8-13, 14, 15-20 (Firefly B.3)
    ],
)
def test_five_kinds_stand_by_sections(cells, sections):
    expected = [kind for kind, length in zip(CELL_SECTIONS, sections, strict=True) for _ in range(length)]
    assert kinds_of_cells(cells, CELL_SECTIONS) == tuple(expected)
    assert kinds_of_cells(cells, tuple(reversed(CELL_SECTIONS))) == tuple(expected)  # a set of names, not an order


def test_the_names_of_the_sections():
    assert CELL_SECTIONS == ("cell 1", "cell 2", "cell 3", "cell 4", "cell 5")
    kinds = kinds_of_cells(20, CELL_SECTIONS)
    assert [place + 1 for place in range(20) if kinds[place] == "cell 3"] == [8, 9, 10, 11, 12, 13]


def test_runs_of_a_stack():
    runs = stack_runs(kinds_of_cells(20, CELL_SECTIONS))
    assert [(run.kind, run.first, run.last, run.doublings) for run in runs] == [
        ("cell 1", 0, 5, 0), ("cell 2", 6, 6, 1), ("cell 3", 7, 12, 1), ("cell 4", 13, 13, 2), ("cell 5", 14, 19, 2)
    ]  # fmt: skip
    assert [run.places for run in runs] == ["1–6", "7", "8–13", "14", "15–20"]
    # Two reductions side by side are of one kind, and of different channels.
    short = stack_runs(kinds_of_cells(3, ("normal", "reduction")))
    assert [(run.kind, run.places, run.doublings) for run in short] == [
        ("normal", "1", 0), ("reduction", "2", 1), ("reduction", "3", 2)
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match=r"^kinds: expected the kind of at least one cell, got none\.$"):
        stack_runs(())


@given(st.integers(1, 60), st.sampled_from([CELL_SECTIONS, ("normal", "reduction")]))
def test_kinds_and_placements_agree_on_what_reduces(cells, kinds):
    if cells < 5:
        kinds = ("normal", "reduction")
    placements = stack_cells(cells, 3, CifarStem(3, 3), dict.fromkeys(kinds, 4))
    assert [reduces_resolution(p.kind) for p in placements] == [p.reduces for p in placements]
    for run in stack_runs(kinds_of_cells(cells, kinds)):
        for placement in placements[run.first : run.last + 1]:
            assert (placement.kind, placement.channels) == (run.kind, 3 * 2**run.doublings)


@given(st.integers(5, 200))
def test_both_stacks_reduce_at_the_same_places(cells):
    by_section, of_darts = kinds_of_cells(cells, CELL_SECTIONS), kinds_of_cells(cells, ("normal", "reduction"))
    as_in_darts = {"cell 2": "reduction", "cell 4": "reduction"}
    assert tuple(as_in_darts.get(kind, "normal") for kind in by_section) == of_darts
    assert list(dict.fromkeys(by_section)) == list(CELL_SECTIONS) and list(by_section) == sorted(by_section)


def test_two_kinds_and_others_that_stand_nowhere():
    assert kinds_of_cells(1, ("reduction",)) == ("reduction",)
    assert kinds_of_cells(2, ("reduction",)) == ("reduction", "reduction")
    assert "".join(kind[0] for kind in kinds_of_cells(8, ("another", "normal", "reduction"))) == "nnrnnrnn"


def test_a_stack_of_five_kinds():
    outputs = dict(zip(CELL_SECTIONS, (4, 3, 2, 1, 4), strict=True))
    placements = stack_cells(7, 16, CifarStem(3, 16), outputs)
    assert [p.kind for p in placements] == ["cell 1", "cell 1", "cell 2", "cell 3", "cell 4", "cell 5", "cell 5"]
    assert [p.channels for p in placements] == [16, 16, 32, 32, 64, 64, 64]
    assert [p.reduces for p in placements] == [False, False, True, False, True, False, False]
    assert [p.halve_older for p in placements] == [False, False, False, True, False, True, False]
    assert [p.input_channels for p in placements] == [
        (48, 48), (48, 64), (64, 64), (64, 96), (96, 64), (64, 64), (64, 256)
    ]  # fmt: skip


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_a_stack_too_short_for_five_sections(cells):
    message = rf"^A stack of {cells} is too short for five kinds of cell, .*: use 5 cells or more\.$"
    with pytest.raises(InvalidInput, match=message):
        kinds_of_cells(cells, CELL_SECTIONS)
    with pytest.raises(InvalidInput, match=message):
        stack_cells(cells, 4, CifarStem(3, 4), dict.fromkeys(CELL_SECTIONS, 4))


@pytest.mark.parametrize(
    ("cells", "kinds", "needed"),
    [
        (1, ("normal",), "reduction"),
        (3, ("reduction",), "normal, reduction"),
        (20, (), "normal, reduction"),
        (20, ("darts", "darts 2"), "normal, reduction"),
        (20, CELL_SECTIONS[:4], ", ".join(CELL_SECTIONS)),
        (4, CELL_SECTIONS[1:], ", ".join(CELL_SECTIONS)),
        (20, (*CELL_SECTIONS, "normal", "reduction"), ", ".join(CELL_SECTIONS)),  # which of the two stacks?
        (20, (*CELL_SECTIONS, "cell 6"), ", ".join(CELL_SECTIONS)),
    ],
)
def test_wrong_kinds_of_cell(cells, kinds, needed):
    with pytest.raises(InvalidInput) as caught:
        kinds_of_cells(cells, kinds)
    got = ", ".join(kinds) or "none"
    assert str(caught.value) == f"Wrong kinds of cell for a stack of {cells}: needed {needed}; got {got}."


def test_no_cells_have_no_kinds():
    with pytest.raises(InvalidInput, match=r"^cells must be above 0, got 0\.$"):
        kinds_of_cells(0, CELL_SECTIONS)
