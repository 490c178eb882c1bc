"""A batch of sequences depends on seed and number only, a pass shows every example once; parts can be cut short."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import PARTS, SequenceLoader, load_series, load_text
from nasbook.data.sequences import checksum_of
from nasbook.errors import InvalidInput

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


def loader(count: int = 20, batch_size: int = 6, *, seed: int = 0, part=(0, 1), device="cpu") -> SequenceLoader:
    """Examples of forecasting that say their own number; the target says it too."""
    numbers = torch.arange(float(count), device=device)
    inputs = numbers[:, None, None] + torch.zeros(count, 3, 2, device=device)
    return SequenceLoader(inputs, numbers[:, None].expand(count, 2), batch_size, seed=seed, part=part)


def numbers(batch: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    """Which examples a batch has, after a check that inputs and targets belong together."""
    inputs, targets = batch
    assert inputs.shape[1:] == (3, 2) and targets.shape[1:] == (2,)
    assert torch.equal(inputs[:, 0, 0], targets[:, 0])
    return targets[:, 0].tolist()


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 40), number=st.integers(0, 5))
def test_a_pass_shows_every_example_once(count, batch_size, number):
    if count < batch_size:
        with pytest.raises(InvalidInput, match=f"^A batch of {batch_size} needs .* examples, got {count}"):
            loader(count, batch_size)
        return
    batches = loader(count, batch_size)
    assert len(batches) == count // batch_size
    seen = [numbers(batches.batch(number * len(batches) + step)) for step in range(len(batches))]
    assert all(len(batch) == batch_size for batch in seen)
    shown = [example for batch in seen for example in batch]
    assert len(set(shown)) == len(shown) == count - count % batch_size
    assert set(shown) <= set(map(float, range(count)))


@settings(deadline=None, max_examples=30)
@given(indices=st.lists(st.integers(0, 30), min_size=1, max_size=8), seed=st.integers(0, 2**40))
def test_a_batch_is_a_pure_function_of_seed_and_number(indices, seed):
    one = loader(seed=seed)
    for index in indices:  # any order, back and forth between passes
        torch.manual_seed(index)
        assert numbers(one.batch(index)) == numbers(loader(seed=seed).batch(index))


def test_passes_and_seeds_have_orders_of_their_own():
    def order(loader: SequenceLoader, number: int) -> list[float]:
        steps = range(number * len(loader), (number + 1) * len(loader))
        return [example for step in steps for example in numbers(loader.batch(step))]

    one = loader(20, 5)
    assert sorted(order(one, 0)) == sorted(order(one, 1)) == list(map(float, range(20)))
    assert order(one, 0) != order(one, 1)
    assert order(one, 0) != order(loader(20, 5, seed=1), 0)
    assert order(one, 0) != list(map(float, range(20)))


@settings(deadline=None, max_examples=40)
@given(parts=st.integers(1, 6), share=st.integers(1, 4), index=st.integers(0, 9))
def test_the_parts_are_the_batch(parts, share, index):
    whole = numbers(loader(25, parts * share).batch(index))
    own = [numbers(loader(25, parts * share, part=(k, parts)).batch(index)) for k in range(parts)]
    assert all(len(batch) == share for batch in own)
    assert [example for batch in own for example in batch] == whole


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_is_the_same_on_every_device(device):
    assert numbers(loader(device=device).batch(4)) == numbers(loader().batch(4))


def test_errors():
    with pytest.raises(InvalidInput, match=r"^batch_size must be above 0, got 0\.$"):
        loader(20, 0)
    with pytest.raises(InvalidInput, match=r"^A batch's number must be 0 or more, got -1\.$"):
        loader().batch(-1)
    with pytest.raises(InvalidInput, match=r"^Expected one target for each input, got 4 inputs and 3 targets\.$"):
        SequenceLoader(torch.zeros(4, 2), torch.zeros(3, 2), 1, seed=0)
    with pytest.raises(InvalidInput, match=r"^A batch of 6 examples can't be divided equally among 4 processes\. Make"):
        loader(part=(0, 4))
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InvalidInput, match=r"^part must be \(k, n\) with k from 0 to n - 1, got \("):
            loader(part=part)


# ------------------------------------------------------------------------------------------------ what all sets share


@pytest.fixture(scope="module", params=["simulated-g7", "grammar"])
def data(request):
    return load_series(request.param) if request.param.startswith("simulated") else load_text(request.param)


def test_sizes_are_those_of_the_examples(data):
    for part in PARTS:
        inputs, targets = data.examples(part)
        assert len(inputs) == len(targets) == data.size(part)
        assert inputs.shape[1] == data.window


def test_the_first_examples_of_a_part(data):
    few = data.take(train=7, test=3)
    assert [few.size(part) for part in PARTS] == [7, data.size("validation"), 3]
    for part in PARTS:
        for ours, whole in zip(few.examples(part), data.examples(part), strict=True):
            assert torch.equal(ours, whole[: few.size(part)])
    assert few.features == data.features and few.checksum != data.checksum
    assert data.take().checksum == data.checksum


def test_losses_are_those_of_the_examples_that_were_taken(data):
    few = data.take(test=3)
    assert few.constant_loss("test") != data.constant_loss("test")
    assert few.irreducible_loss("test") != data.irreducible_loss("test")
    assert few.irreducible_loss("validation") == data.irreducible_loss("validation")


def test_too_many_or_no_examples_and_unknown_parts(data):
    most = data.size("validation")
    for count in (0, -1, most + 1):
        with pytest.raises(InvalidInput, match=f"^validation must be between 1 and {most}, .* got {count}\\.$"):
            data.take(validation=count)
    for method in (data.examples, data.size, data.constant_loss, data.irreducible_loss):
        with pytest.raises(InvalidInput) as error:
            method("valid")
        assert str(error.value) == (
            "Unknown part 'valid'. Did you mean 'validation'? Valid: train, validation, test."
        )


@pytest.mark.parametrize("device", DEVICES)
def test_a_device(data, device):
    moved = data.to(device)
    assert moved.checksum == data.checksum
    for part in PARTS:
        assert all(tensor.device.type == device for tensor in moved.examples(part))
        assert moved.constant_loss(part) == pytest.approx(data.constant_loss(part), rel=1e-12)
        assert moved.irreducible_loss(part) == pytest.approx(data.irreducible_loss(part), rel=1e-12)


def test_a_checksum_knows_names_values_shapes_and_types():
    zeros = torch.zeros(2, 3)
    others = [
        checksum_of(["a", "b"], [zeros]),
        checksum_of(["ab"], [zeros]),
        checksum_of(["a", "c"], [zeros]),
        checksum_of(["a", "b"], [zeros.view(3, 2)]),
        checksum_of(["a", "b"], [zeros.to(torch.int32)]),
        checksum_of(["a", "b"], [torch.tensor([[0.0, 0, 0], [0, 0, 1]])]),
        checksum_of(["a", "b"], [zeros, zeros]),
    ]
    assert len(set(others)) == len(others)
    assert checksum_of(("a", "b"), [torch.zeros(3, 2).T]) == others[0]
