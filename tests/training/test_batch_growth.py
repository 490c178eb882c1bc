"""The batch grows as far as the expected memory allows, on its grid, and the measured memory is what a step takes."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from running import draw, run_to_end, stop_after
from torch import nn

from nasbook import processes
from nasbook.analysis import saved_activation_bytes
from nasbook.data import Walk
from nasbook.errors import InvalidInput
from nasbook.methods import darts
from nasbook.training import (
    AllocatedMemory,
    BatchGrowth,
    CountedMemory,
    FirstOrder,
    MemoryUse,
    accuracy,
    memory_meter,
)
from nasbook.training.bilevel import constant

AUTHORS = BatchGrowth(minimum=24, multiple=8, maximum=128, budget=10_000)


@st.composite
def growths(draw):
    minimum = draw(st.integers(1, 100))
    return BatchGrowth(
        minimum,
        draw(st.integers(1, 40)),
        minimum + draw(st.integers(0, 300)),
        draw(st.integers(1, 10**12)),
        draw(st.floats(0.01, 1.0)),
    )


@st.composite
def situations(draw):
    """A growth, a present batch of its sizes, and what it takes."""
    growth = draw(growths())
    batch = draw(st.sampled_from(range(growth.minimum, growth.maximum + 1, growth.multiple)))
    fixed = draw(st.integers(0, 2 * growth.budget))
    return growth, batch, fixed, fixed + draw(st.integers(1, 2 * growth.budget))


def expected(batch, fixed, used, size):
    """Bytes of a batch of that size by the linear model, exactly."""
    return fixed + Fraction((used - fixed) * size, batch)


# --- how far it may grow ----------------------------------------------------------------------------------------------


@given(situations())
def test_the_largest_size_within_the_threshold(situation):
    growth, batch, fixed, used = situation
    grown = growth.grown(batch, fixed, used)
    sizes = [size for size in range(growth.minimum, growth.maximum + 1, growth.multiple) if size >= batch]
    assert growth.limit <= growth.threshold * growth.budget < growth.limit + 1
    fitting = [size for size in sizes if expected(batch, fixed, used, size) <= growth.limit]
    assert grown == max([batch, *fitting])


@given(situations(), st.integers(0, 10**12))
def test_more_budget_never_means_a_smaller_batch(situation, more):
    growth, *present = situation
    larger = dataclasses.replace(growth, budget=growth.budget + more)
    assert larger.grown(*present) >= growth.grown(*present)


@given(situations(), st.integers(0, 10**12))
def test_more_memory_used_never_means_a_larger_batch(situation, more):
    growth, batch, fixed, used = situation
    assert growth.grown(batch, fixed, used + more) <= growth.grown(batch, fixed, used)


@given(situations())
def test_where_memory_is_linear_one_attempt_is_enough(situation):
    growth, batch, fixed, used = situation
    grown = growth.grown(batch, fixed, fixed + (used - fixed) * batch)
    assert growth.grown(grown, fixed, fixed + (used - fixed) * grown) == grown


@pytest.mark.parametrize(("batch", "fixed", "used", "grown"), [
    (24, 0, 2400, 88),  # 9,500 bytes at 100 each: 95 images, and 88 is the size below
    (24, 0, 2590, 88),  # 9,496 2/3 bytes at 88
    (24, 0, 2591, 80),  # 9,500 1/3 bytes at 88
    (24, 1400, 2400, 128),  # 6,733 bytes: no more images than the maximum
    (24, 1500, 2700, 128),  # 7,900 bytes
    (24, 1500, 3420, 96),  # 80 bytes an image: 100 images
    (96, 1500, 9180, 96),  # and from there no further
    (32, 0, 9600, 32),  # over the threshold already: the batch only increases
    (24, 9999, 20000, 24),  # the fixed part alone is over it
    (120, 0, 120, 128),
])
def test_exact_sizes(batch, fixed, used, grown):
    assert AUTHORS.grown(batch, fixed, used) == grown


def test_a_maximum_between_two_sizes():
    assert BatchGrowth(24, 8, 60, 10_000).grown(24, 0, 24) == 56


def test_the_last_byte_counts():
    assert BatchGrowth(1, 1, 100, 61, threshold=1.0).grown(7, 0, 7) == 61  # 61 / 7 * 7 is less in floating point


def test_equal_limits_fix_the_batch():
    assert BatchGrowth(64, 8, 64, 10**9).grown(64, 0, 1) == 64


def test_it_is_due_every_five_steps():
    assert [step for step in range(17) if AUTHORS.due(step)] == [5, 10, 15]
    assert [step for step in range(7) if dataclasses.replace(AUTHORS, every=2).due(step)] == [2, 4, 6]


@pytest.mark.parametrize(("changes", "message"), [
    ({"minimum": 0}, r"minimum must be above 0, got 0\."),
    ({"multiple": -8}, r"multiple must be above 0, got -8\."),
    ({"maximum": 16}, r"maximum must be at least minimum, 24, got 16\."),
    ({"budget": 0}, r"budget must be above 0, got 0\."),
    ({"every": 0}, r"every must be above 0, got 0\."),
    ({"threshold": 0.0}, r"threshold must be above 0 and at most 1, got 0\.0\."),
    ({"threshold": 1.5}, r"threshold must be above 0 and at most 1, got 1\.5\."),
    ({"threshold": float("nan")}, r"threshold must be above 0 and at most 1, got nan\."),
])
def test_wrong_growths(changes, message):
    with pytest.raises(InvalidInput, match=f"^{message}$"):
        dataclasses.replace(AUTHORS, **changes)


@pytest.mark.parametrize("batch", [16, 25, 136])
def test_a_batch_of_another_size(batch):
    message = rf"^batch must be 24 plus a multiple of 8, at most 128, got {batch}\.$"
    with pytest.raises(InvalidInput, match=message):
        AUTHORS.grown(batch, 0, 1)


@pytest.mark.parametrize(("fixed", "used"), [(5, 5), (5, 4), (-1, 4)])
def test_a_measurement_without_a_step(fixed, used):
    """A step that takes nothing would let the batch grow to its maximum."""
    with pytest.raises(InvalidInput, match=rf"^A step must take .*, got {used} bytes in all, {fixed} of them fixed\. "
                                           r"Measure after a step at the present batch size\.$"):
        AUTHORS.grown(24, fixed, used)


# --- what a step takes ------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A linear layer of 5 inputs and 3 classes, whose outputs one architecture parameter scales."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3, bias=False)
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.alpha = nn.Parameter(torch.ones(()))

    def weights(self):
        return self.linear.parameters()

    def architecture(self):
        yield self.alpha

    def penalty(self):
        return torch.zeros(())

    def forward(self, x):
        return self.alpha * self.norm(self.linear(x))


def update_of(network, loss=F.cross_entropy):
    return FirstOrder(
        network,
        torch.optim.SGD(network.weights(), 0.1, momentum=0.9),
        torch.optim.Adam(network.architecture(), 0.1),
        loss=loss,
    )


def random_batch(images):
    return torch.randn(images, 5), torch.randint(3, (images,))


def test_counted_memory_is_exact():
    """Single precision: 4 bytes. The mean of the outputs keeps nothing."""
    update = update_of(Scaled(), loss=lambda outputs, _: outputs.mean())
    batch = random_batch(7)
    parameters = 4 * (15 + 1)
    # Kept: the images, the layer's outputs and the normalised ones (for α), and two moments for each of 3 channels.
    activations = 4 * 7 * (5 + 3 + 3) + 4 * 2 * 3
    meter = CountedMemory()
    assert meter.measure(update, batch) == (2 * parameters, 2 * parameters + activations)
    update.step(batch, batch)
    states = 4 * 15 + 4 * 3  # the momentum; for α two moments and the number of steps
    assert meter.measure(update, batch) == (2 * parameters + states, 2 * parameters + states + activations)


def test_counting_changes_nothing(tiny, data, same):
    search = tiny.make_run("first-order", data)
    stop_after(search, 2)
    before, drawn = tiny.ending(search), torch.get_rng_state()
    use = CountedMemory().measure(search.update, search.loaders[0].batch(0))
    assert 0 < use.fixed < use.used
    same(tiny.ending(search), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in search.network.parameters())


def test_a_size_is_counted_once_until_the_reset():
    network = Scaled()
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    update, meter = update_of(network), CountedMemory()
    first = meter.measure(update, random_batch(4))
    assert meter.measure(update, random_batch(4)) == first
    assert len(passes) == 1
    assert meter.measure(update, random_batch(8)).used > first.used
    assert len(passes) == 2
    meter.reset()
    assert meter.measure(update, random_batch(4)) == first
    assert len(passes) == 3


def test_a_step_keeps_no_more_than_is_counted(tiny, data):
    """Each of the two passes of a first-order step needs fewer gradients than the pass that is counted."""
    update = tiny.make_run("first-order", data).update
    batch = data.train_images[:16].float(), data.train_labels[:16]
    use = CountedMemory().measure(update, batch)
    for parameters in (update.weights, update.architecture):
        with constant(parameters):
            kept = saved_activation_bytes(lambda x, y: update.loss(update.network(x), y), *batch)
        assert 0 < kept <= use.used - use.fixed


def test_a_real_network_stays_within_the_limit(tiny, data):
    """Its memory is affine, with a part that neither grows nor counts as fixed: so the linear model is cautious."""
    search = tiny.make_run("first-order", data)
    walk, meter = Walk(search.loaders[0]), CountedMemory()
    sizes = {size: meter.measure(search.update, walk.take(size)) for size in range(8, 41, 4)}
    for budget in range(sizes[8].used, sizes[40].used, 100_000):
        growth = BatchGrowth(8, 4, 40, budget)
        batch = grown = 8
        while (grown := growth.grown(batch, *sizes[batch])) > batch:
            batch = grown
            assert sizes[batch].used <= growth.limit
        larger = [size for size in sizes if size > batch]
        if larger:  # and an attempt more would not have found room
            assert expected(batch, *sizes[batch], larger[0]) > growth.limit


def test_the_meter_of_a_device():
    assert isinstance(memory_meter("cpu"), CountedMemory)


def test_processes_agree_on_what_is_safe_in_all(monkeypatch):
    """The other process has 10 bytes more, all of them fixed; each sees the same."""
    update, batch = update_of(Scaled()), random_batch(4)
    alone = CountedMemory().measure(update, batch)
    for rank in (0, 1):
        other = torch.zeros(2, 2, dtype=torch.int64)
        other[1 - rank] = torch.tensor(alone) + 10
        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "total", lambda tensors, other=other: tuple(own + other for own in tensors))
        assert CountedMemory().measure(update, batch) == MemoryUse(alone.fixed, alone.used + 10)


def test_a_reading_of_allocated_memory(monkeypatch):
    """Peak and present come from the device's statistics; every reading begins a new peak."""
    calls, device = [], torch.device("cuda", 1)
    answers = {"reset_peak_memory_stats": None, "max_memory_allocated": 900, "memory_allocated": 300}
    for name, answer in answers.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda of, name=name, answer=answer: (calls.append((name, of)), answer)[1]
        )
    meter = memory_meter(device)
    assert isinstance(meter, AllocatedMemory)
    assert calls == [("reset_peak_memory_stats", device)]
    assert meter.measure(update_of(Scaled()), random_batch(4)) == MemoryUse(fixed=300, used=900)
    names = [name for name, _ in calls[1:]]
    assert names.index("max_memory_allocated") < names.index("reset_peak_memory_stats")
    assert names.count("reset_peak_memory_stats") == 1 and {of for _, of in calls} == {device}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_allocated_memory_grows_with_the_batch():
    device = torch.device("cuda", torch.cuda.current_device())
    meter, kept = memory_meter(device), torch.zeros(1 << 20, device=device)
    update, uses = update_of(Scaled().to(device)), {}
    for images in (1 << 16, 1 << 17, 1 << 16):
        batch = tuple(part.to(device) for part in random_batch(images))
        meter.reset()
        update.step(batch, batch)
        uses[images] = meter.measure(update, batch)
        assert uses[images].fixed >= kept.nbytes + sum(part.nbytes for part in batch)
    small, large = (uses[images].used - uses[images].fixed for images in (1 << 16, 1 << 17))
    assert large == pytest.approx(2 * small, rel=0.1)
    assert meter.measure(update, batch).used < uses[1 << 16].used  # a new peak


# --- a search whose batch grows ---------------------------------------------------------------------------------------


class GrowingSearch(darts.Search):
    """DARTS with batches of 8 images and more, under a budget that 16 fit in; each epoch begins with 8 again."""

    measurements = ("train_loss", "train_accuracy", "architecture_loss", "images")
    growth = BatchGrowth(minimum=8, multiple=4, maximum=24, budget=800_000, every=2)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.walks = [Walk(loader) for loader in self.loaders]
        self.meter = memory_meter(self.device)
        self.batch = self.growth.minimum

    def begin_epoch(self):
        super().begin_epoch()
        if self.step == 0:
            self.meter.reset()
            self.batch = self.growth.minimum
            for walk in self.walks:
                walk.begin_pass()

    def epoch_is_over(self):
        return not self.walks[0].fits(self.batch)

    def step_weights(self):
        return self._measured[: self.step, 3]

    def run_step(self, index):
        train, validation = (walk.take(self.batch) for walk in self.walks)
        result = self.update.step(train, validation)
        images = torch.tensor(float(self.batch))
        if self.growth.due(self.step + 1):
            self.batch = self.growth.grown(self.batch, *self.meter.measure(self.update, train))
        return result.train_loss, accuracy(result.train_outputs, train[1]), result.validation_loss, images

    def state_dict(self):
        return {**super().state_dict(), "batch": self.batch, "walks": [walk.position for walk in self.walks]}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.batch = state["batch"]
        for walk, position in zip(self.walks, state["walks"], strict=True):
            walk.position = position


@pytest.fixture(scope="module")
def search(tiny, data):
    config = darts.Config(epochs=2, batch_size=8, channels=2, cells=3)
    return lambda: GrowingSearch(config, data, tiny.SPACE, 0)


@pytest.fixture(scope="module")
def undisturbed_search(search):
    return run_to_end(search())


def test_the_batch_grows_within_each_epoch(undisturbed_search):
    sizes = undisturbed_search._measured[:, 3].tolist()
    assert sizes == [8, 8, 16, 16, 0, 0]  # 48 images an epoch, in 4 steps of at most 6
    assert [len(walk.position) for walk in undisturbed_search.walks] == [2, 2]
    assert [walk.position for walk in undisturbed_search.walks] == [(1, 48), (1, 48)]


def test_a_growing_search_stopped_saved_and_loaded_after_every_step(search, undisturbed_search, tiny, same, tmp_path):
    """Each time by a new object, which measures anew what the last one had measured."""
    run, steps = search(), 0
    while not run.finished:
        stop_after(run, 1)
        steps += 1
        run.save(tmp_path / "checkpoint.pt")
        run = search()
        draw()
        run.load(tmp_path / "checkpoint.pt")
    assert steps == 8
    same(tiny.ending(run), tiny.ending(undisturbed_search))
