"""Losses and accuracies of sequences, their means over a part, and fits that resume to the same bits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences, draw, run_to_end, stop_after
from torch import nn

from nasbook import processes
from nasbook.data import load_series, load_text
from nasbook.errors import CheckpointError, InvalidInput, TrainingDiverged
from nasbook.genotypes import CellGenotype, Edge, Genotype
from nasbook.networks import RECURRENT_BACKBONES, DerivedRecurrentNetwork, TorchRecurrentNetwork
from nasbook.supernets import RecurrentSearchNetwork
from nasbook.training import (
    SequenceFit,
    SequenceFitConfig,
    SequenceReport,
    drive,
    evaluate_sequences,
    sequence_accuracy,
    sequence_loss,
)

CELL = Genotype({"two-to-one": CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "product")), 2, 1, (2,))})
SMALL = SequenceFitConfig(epochs=3, batch_size=10, learning_rate=0.02)


@pytest.fixture(scope="module")
def series():
    return load_series("simulated-brics", window=3).take(25, 12, 7)  # 2 steps an epoch; 5 examples are left over


@pytest.fixture(scope="module")
def text():
    return load_text("grammar", window=4, most_words=12).take(20, 13, 7)


def network_of(data, seed=0, kind="derived"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DerivedRecurrentNetwork(CELL, data, 3) if kind == "derived" else TorchRecurrentNetwork(kind, data, 3)


def fit_of(data, config=SMALL, seed=0, kind="derived"):
    return SequenceFit(network_of(data, kind=kind), data, config, seed=seed)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_forecast_is_the_mean_squared_error():
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    assert sequence_loss(outputs, targets).item() == (1 + 0 + 9 + 4) / 4
    assert torch.autograd.gradcheck(lambda o: sequence_loss(o, targets.double()), outputs.double().requires_grad_())


def test_the_loss_of_a_language_model_is_in_nats_a_word():
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[1 / 3] * 3, [0.7, 0.2, 0.1]]])
    targets = torch.tensor([[0, 2], [1, 1]])
    expected = -(math.log(0.5) + math.log(0.8) + math.log(1 / 3) + math.log(0.2)) / 4
    assert sequence_loss(probabilities.log() + 3.0, targets).item() == pytest.approx(expected, rel=1e-6)
    equal, zeros = torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.int64)
    assert sequence_loss(equal, zeros).item() == pytest.approx(math.log(7))


def test_accuracies():
    """Signs of forecasts; a zero counts as a fall. Words by the largest logit."""
    outputs = torch.tensor([[1.0, -2.0, 3.0, 0.0], [1.0, 1.0, -1.0, -1.0]])
    targets = torch.tensor([[2.0, -1.0, -3.0, -1.0], [1.0, -1.0, 1.0, 0.0]])
    assert sequence_accuracy(outputs, targets).item() == 5 / 8
    logits = torch.eye(3)[torch.tensor([[0, 1], [2, 0], [1, 1]])]
    assert sequence_accuracy(logits, torch.tensor([[0, 2], [2, 0], [0, 1]])).item() == pytest.approx(4 / 6)


# --- means over a part ------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Forecasts the same values for every example, and keeps the sizes of the batches."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.dropout = nn.Dropout()
        self.sizes, self.modes = [], []

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        self.modes.append(self.training)
        return self.value.expand(len(inputs), -1)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 12, 50])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_example_counts_alike_whatever_the_batches(batch_size, part, series):
    network = Constant([0.1, -0.2, 0.3, 0.0, -0.5]).train()
    network.dropout.eval()
    loss, correct = evaluate_sequences(network, series, part, batch_size)
    _, targets = series.examples(part)
    assert loss == pytest.approx((network.value - targets).square().mean().item(), rel=1e-6)
    assert correct == pytest.approx(((network.value > 0) == (targets > 0)).float().mean().item(), rel=1e-6)
    assert sum(network.sizes) == len(targets) and max(network.sizes) <= batch_size
    assert not any(network.modes)  # in evaluation mode
    assert network.training and not network.dropout.training  # which are put back, each


@settings(deadline=None, max_examples=20)
@given(batch_size=st.integers(1, 30))
def test_the_mean_does_not_depend_on_the_batches(series, text, batch_size):
    for data in (series, text):
        network = network_of(data)
        assert evaluate_sequences(network, data, batch_size=batch_size) == pytest.approx(
            evaluate_sequences(network, data, batch_size=1000), rel=1e-5
        )


def test_nothing_is_kept_for_a_backward_pass(series):
    network, graphs = network_of(series), []
    network.register_forward_hook(lambda _, inputs, outputs: graphs.append(outputs.requires_grad))
    evaluate_sequences(network, series, batch_size=10)
    assert graphs == [False, False]


def test_parts_that_are_not_there(series):
    with pytest.raises(InvalidInput, match=r"^Unknown part of the data 'valid'\. Did you mean 'validation'\? Val"):
        evaluate_sequences(network_of(series), series, "valid")
    empty = replace(series, ends=(series.ends[0], series.starts[1], series.ends[2]))
    with pytest.raises(InvalidInput, match=r"^The validation part of simulated-brics has no example to evaluate on\.$"):
        evaluate_sequences(network_of(series), empty)


# --- fits -------------------------------------------------------------------------------------------------------------


def test_the_papers_settings():
    config = SequenceFitConfig()
    assert (config.epochs, config.batch_size, config.learning_rate, config.weight_decay) == (10, 50, 1e-3, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({name: 0}, rf"^{name} must be above 0, got 0\.$") for name in ("epochs", "batch_size")],
        ({"learning_rate": math.nan}, r"^learning_rate must be above 0, got nan\.$"),
        ({"clip": -1.0}, r"^clip must be above 0, got -1\.0\.$"),
        ({"weight_decay": math.nan}, r"^weight_decay must be at least 0, got nan\.$"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(InvalidInput, match=message):
        SequenceFitConfig(**changes)


def test_a_step_is_adams_on_the_clipped_gradient(series):
    for clip in (5.0, 1e-3):
        config = replace(SMALL, clip=clip, weight_decay=0.01)
        fit, reference = fit_of(series, config), network_of(series)
        optimizer = torch.optim.Adam(reference.parameters(), 0.02, weight_decay=0.01, foreach=True)
        losses = []
        for index in range(2 * config.epochs):
            inputs, targets = fit.loader.batch(index)
            optimizer.zero_grad()
            loss = (reference(inputs) - targets).square().mean()
            loss.backward()
            losses.append(loss.item())
            norm = sum(p.grad.square().sum() for p in reference.parameters()).sqrt()
            for parameter in reference.parameters():
                parameter.grad *= min(1.0, clip / (norm.item() + 1e-6))
            optimizer.step()
        run_to_end(fit)
        for ours, theirs in zip(fit.network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        means = [sum(losses[i : i + 2]) / 2 for i in range(0, len(losses), 2)]
        assert [report.train_loss for report in fit.history] == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("kind", ["derived", "lstm", "gru"])
def test_a_fit_from_begin_to_end(kind, series, text):
    for data in (series, text):
        fit = fit_of(data, kind=kind)
        assert fit.steps_per_epoch == 2
        reports = list(fit.epochs())
        assert [report.epoch for report in reports] == [1, 2, 3] and fit.finished
        last = reports[-1]
        assert isinstance(last, SequenceReport)
        assert (last.validation_loss, last.validation_accuracy) == evaluate_sequences(fit.network, data)
        assert last.test_loss == evaluate_sequences(fit.network, data, "test")[0]
        assert last.learning_rate == 0.02 and last.seconds > 0
        assert reports[2].train_loss < reports[0].train_loss
        assert SequenceReport.from_state(last.to_state()) == last


def test_the_test_part_decides_nothing(series):
    """It is only reported: with another one everything else is the same, to the bit."""
    returns = series.returns.clone()
    returns[series.ends[1] :] *= 3
    ends = []
    for data in (series, replace(series, returns=returns)):
        fit = run_to_end(fit_of(data))
        reports = [{k: v for k, v in r.to_state().items() if k != "seconds"} for r in fit.history]
        ends.append((fit.network.state_dict(), fit.optimizer.state_dict(), reports))
    assert differences(ends[0][:2], ends[1][:2]) == []
    tests = [[report.pop("test_loss") for report in reports] for _, _, reports in ends]
    assert ends[0][2] == ends[1][2] and tests[0] != tests[1]


def test_seconds_are_those_of_training_and_validation(series, monkeypatch):
    """So that they compare with those of a search, which never looks at the test part."""
    import time

    clock = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    fit = fit_of(series)
    seconds = []
    original = fit.elapsed
    fit.elapsed = lambda: seconds.append(original()) or seconds[-1]
    report = next(fit.epochs())
    assert report.seconds == seconds[-1] == 1.0  # one look at the clock at the start, one before the test part


def ending(fit):
    state = copy.deepcopy(fit.state_dict())
    del state["seconds"], state["random"]
    for report in state["history"]:
        del report["seconds"]
    return state


@pytest.mark.parametrize("kind", ["derived", "gru"])
def test_a_fit_that_stops_after_any_step(kind, series, tmp_path):
    expected = ending(run_to_end(fit_of(series, kind=kind)))
    for steps in range(1, 6):
        fit = fit_of(series, kind=kind)
        stop_after(fit, steps)
        fit.save(tmp_path / "checkpoint.pt")
        draw()
        other = fit_of(series, kind=kind)
        with torch.no_grad():
            for parameter in other.network.parameters():
                parameter.zero_()
        other.load(tmp_path / "checkpoint.pt")
        assert (other.epoch, other.step) == divmod(steps, 2)
        run_to_end(other)
        assert differences(ending(other), expected) == [], steps


def test_a_fit_that_is_killed_goes_on_from_its_checkpoint(series, tmp_path, monkeypatch):
    expected = ending(run_to_end(fit_of(series)))
    path = tmp_path / "checkpoint.pt"
    fit = fit_of(series)
    original, calls = fit.optimizer.step, []

    class Killed(BaseException):
        pass

    def step():
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return original()

    fit.optimizer.step = step
    with pytest.raises(Killed):
        drive(fit, checkpoint=path, checkpoint_steps=1, progress=False)
    other = fit_of(series)
    drive(other, checkpoint=path, resume=True, progress=False)
    assert differences(ending(other), expected) == []


def test_a_fit_is_a_function_of_its_seed(series):
    ends = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        ends.append(ending(run_to_end(fit_of(series, seed=seed))))
    assert differences(ends[0], ends[1]) == []
    assert differences(ends[0]["network"], ends[2]["network"])


def test_a_checkpoint_of_another_fit_is_refused(series, text, tmp_path):
    path = tmp_path / "checkpoint.pt"
    fit = fit_of(series)
    next(fit.epochs())
    fit.save(path)
    other = Genotype({"two-to-one": CellGenotype((Edge(0, 1, "tanh"), Edge(1, 2, "sum")), 2, 1, (2,))})
    for build, message in (
        (lambda: fit_of(series, replace(SMALL, clip=1.0)), r"its config\.clip is 5\.0, this run's is 1\.0"),
        (lambda: fit_of(series, seed=1), r"its seed is 0, this run's is 1"),
        (lambda: fit_of(series, kind="lstm"), r"its network is 'DerivedRecurrentNetwork', this run's is 'Torch"),
        (lambda: fit_of(series.take(24)), r"its data is "),
        (lambda: fit_of(text), r"its shapes is "),
        (lambda: SequenceFit(DerivedRecurrentNetwork(other, series, 3), series, SMALL), r"its genotype is "),
    ):
        with pytest.raises(CheckpointError, match=message):
            build().load(path)


def test_a_supernet_can_be_trained_whole(series, tmp_path):
    """All its parameters by one optimiser, as a control; its header has no genotype, since that changes."""
    spaces = {"darts": RECURRENT_BACKBONES["darts"].space(2)}
    network = RecurrentSearchNetwork(spaces, series, 3)
    fit = run_to_end(SequenceFit(network, series, SMALL))
    fit.save(tmp_path / "checkpoint.pt")
    other = SequenceFit(RecurrentSearchNetwork(spaces, series, 3), series, SMALL)
    other.load(tmp_path / "checkpoint.pt")
    assert differences(ending(other), ending(fit)) == []


def test_a_fit_that_diverges(series):
    fit = fit_of(series)
    with torch.no_grad():
        next(fit.network.parameters()).fill_(math.inf)
    with pytest.raises(TrainingDiverged, match=r"^The train loss became (nan|inf) at epoch 1, step 1 of 2\."):
        run_to_end(fit)


def test_one_process_only_and_enough_examples(series, monkeypatch):
    with pytest.raises(InvalidInput, match=r"^A batch of 26 needs at least as many examples, got 25\. Lower"):
        fit_of(series, replace(SMALL, batch_size=26))
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InvalidInput, match=r"^A sequence network trains in one process; start it without torchrun\.$"):
        fit_of(series)
