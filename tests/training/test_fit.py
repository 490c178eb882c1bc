"""Training from scratch: schedules, losses, what is evaluated and when."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasbook.data import Augmentation, ImageData, Loader, evaluation_batches, load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.genotypes import DARTS_V2, CellGenotype, Edge, Genotype
from nasbook.methods import darts
from nasbook.networks import AuxiliaryOutput, DerivedNetwork, DropPath, set_drop_path
from nasbook.training import (
    CIFAR10_EVALUATION,
    IMAGENET_EVALUATION,
    EpochReport,
    Fit,
    FitConfig,
    check_classes,
    evaluate,
    fit,
)

CHAIN = CellGenotype((Edge(0, 2, "conv_1x1"), Edge(1, 2, "skip_connect")), nodes=1)
SMALL = Genotype({"normal": CHAIN, "reduction": CHAIN})
QUICK = FitConfig(epochs=2, batch_size=16, cutout=0, drop_path=0.0)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits").take(64, 32)


def network(**options) -> DerivedNetwork:
    torch.manual_seed(5)
    return DerivedNetwork(SMALL, **{"channels": 2, "cells": 1, "in_channels": 1, **options})


class Classifier(nn.Module):
    """The smallest network: one linear layer, and an auxiliary one on request."""

    def __init__(self, auxiliary: bool = False, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.classifier = nn.Linear(64, classes)
        self.second = nn.Linear(64, classes) if auxiliary else None

    def forward(self, images: torch.Tensor) -> torch.Tensor | AuxiliaryOutput:
        x = images.flatten(1)
        if self.second is None or not self.training:
            return self.classifier(x)
        return AuxiliaryOutput(self.classifier(x), self.second(x))


# ---------------------------------------------------------------------------------------------- schedules


def test_the_learning_rate_is_a_cosine_over_the_epochs(digits):
    reports = fit(Classifier(), digits, replace(QUICK, epochs=5, learning_rate=0.1))
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert [report.learning_rate for report in reports] == pytest.approx(expected, rel=1e-14)
    assert expected[0] == 0.1 and expected[-1] > 0  # it would be 0 only after the last epoch
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5]


def test_other_decays(digits):
    def rates(decay: str) -> list[float]:
        reports = fit(Classifier(), digits, replace(QUICK, epochs=4, learning_rate=0.1, decay=decay))
        return [report.learning_rate for report in reports]

    assert rates("exponential") == pytest.approx([0.1, 0.097, 0.09409, 0.0912673], rel=1e-12)
    assert rates("linear") == pytest.approx([0.1, 0.075, 0.05, 0.025], rel=1e-12)
    assert rates("cosine") == rates("cosine") != rates("linear")


def test_the_learning_rate_is_what_the_optimizer_uses(digits):
    run = Fit(Classifier(), digits, replace(QUICK, epochs=3, learning_rate=0.1))
    used = []
    run.on_step = lambda r: used.append(run.optimizer.param_groups[0]["lr"])
    list(run.epochs())
    assert used == [report.learning_rate for report in run.history for _ in range(4)]


def test_drop_path_rises_from_epoch_to_epoch(digits):
    net = network(drop_path=0.5)
    run = Fit(net, digits, replace(QUICK, epochs=4, drop_path=0.2))
    rates = []
    run.on_step = lambda r: rates.append({m.rate for m in net.modules() if isinstance(m, DropPath)})
    list(run.epochs())
    assert rates == [{0.2 * epoch / 4} for epoch in range(4) for _ in range(4)]


def test_defaults_are_those_of_darts():
    config = FitConfig()
    assert (config.epochs, config.batch_size, config.learning_rate, config.momentum) == (600, 96, 0.025, 0.9)
    assert (config.weight_decay, config.clip, config.drop_path, config.cutout) == (3e-4, 5.0, 0.2, 16)
    assert config.auxiliary_weight == 0.4
    assert (config.decay, config.label_smoothing) == ("cosine", 0.0)
    assert config == CIFAR10_EVALUATION


def test_imagenet_is_trained_as_in_darts():
    config = IMAGENET_EVALUATION
    assert (config.epochs, config.batch_size, config.learning_rate, config.decay) == (250, 128, 0.1, "exponential")
    assert (config.momentum, config.weight_decay, config.clip, config.label_smoothing) == (0.9, 3e-5, 5.0, 0.1)
    assert (config.auxiliary_weight, config.drop_path, config.cutout) == (0.4, 0.0, 0)
    images = 1_281_167 * 3 * 224**2
    assert images / 2**30 == pytest.approx(180, abs=0.5)  # what the docstring says


def test_earlier_checkpoints_go_on(digits, tmp_path):
    """Their headers have none of the later fields."""
    run = Fit(network(), digits, QUICK)
    assert not {"decay", "label_smoothing"} & run.header()["config"].keys()
    run.save(tmp_path / "checkpoint.pt")
    Fit(network(), digits, QUICK).load(tmp_path / "checkpoint.pt")
    for name, value in (("decay", "linear"), ("label_smoothing", 0.1)):
        with pytest.raises(CheckpointError, match=f"its config.{name} is None, this run's is {value!r}"):
            Fit(network(), digits, replace(QUICK, **{name: value})).load(tmp_path / "checkpoint.pt")


# ---------------------------------------------------------------------------------------------- one training by hand


def smoothed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
    """Of targets of which a share is spread over all classes."""
    targets = F.one_hot(labels, 10) * (1 - share) + share / 10
    return -(targets * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("clip", [5.0, 0.1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_training_by_hand(digits, auxiliary, clip, smoothing):
    config = replace(QUICK, learning_rate=0.2, clip=clip, weight_decay=0.01, label_smoothing=smoothing)
    net = Classifier(auxiliary)
    mirror = copy.deepcopy(net)
    reports = fit(net, digits, config, seed=7)

    loader = Loader(digits.train_images, digits.train_labels, 16, mean=digits.mean, std=digits.std, seed=7)
    velocity = [torch.zeros_like(p) for p in mirror.parameters()]
    losses, hits = [], []
    for index in range(8):
        rate = 0.2 * (1 + math.cos(math.pi * (index // 4) / 2)) / 2
        images, labels = loader.batch(index)
        output = mirror(images)
        logits = output.logits if auxiliary else output
        loss = smoothed_cross_entropy(logits, labels, smoothing)
        losses.append(float(loss.detach()))
        hits.append(float((logits.argmax(1) == labels).double().mean()))
        total = loss + 0.4 * smoothed_cross_entropy(output.auxiliary, labels, smoothing) if auxiliary else loss
        slopes = torch.autograd.grad(total, list(mirror.parameters()))
        norm = sum(float(s.square().sum()) for s in slopes) ** 0.5
        with torch.no_grad():
            for p, v, slope in zip(mirror.parameters(), velocity, slopes, strict=True):
                v.mul_(0.9).add_(slope * min(1, clip / norm) + 0.01 * p)
                p.sub_(rate * v)
    for p, q in zip(net.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    # The reported loss is that of the logits alone; held-out images have whole targets.
    assert reports[-1].validation_loss == evaluate(net, digits.test_images, digits.test_labels, digits)[0]
    for epoch, report in enumerate(reports):
        assert report.train_loss == pytest.approx(sum(losses[4 * epoch :][:4]) / 4, rel=1e-4)
        assert report.train_accuracy == pytest.approx(sum(hits[4 * epoch :][:4]) / 4, abs=1e-6)


def test_the_loss_decreases_on_digits():
    digits = load_images("digits").take(320, 100)
    config = replace(QUICK, epochs=5, batch_size=32, drop_path=0.1, auxiliary_weight=0.4)
    torch.manual_seed(0)
    reports = fit(DerivedNetwork(DARTS_V2, 4, 3, in_channels=1), digits, config)
    assert reports[-1].train_loss < 0.6 * reports[0].train_loss
    assert reports[-1].validation_accuracy > 0.6
    assert all(isinstance(report, EpochReport) and report.seconds > 0 for report in reports)


def test_the_seed_decides(digits):
    def weights(seed: int) -> torch.Tensor:
        net = network()
        fit(net, digits, replace(QUICK, drop_path=0.4), seed=seed)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_augmentation_is_the_data_sets_with_the_configs_cutout(digits):
    data = replace(digits, augmentation=Augmentation(crop_padding=1, flip=True, cutout=3))
    assert Fit(Classifier(), data, replace(QUICK, cutout=2)).loader.augmentation == Augmentation(1, True, 2)
    assert Fit(Classifier(), data, QUICK).loader.augmentation == Augmentation(1, True, 0)


# ---------------------------------------------------------------------------------------------- tuned


def _layouts(net: DerivedNetwork) -> list[bool]:
    """Notes at every cell's every call whether its output's channels are neighbours in memory."""
    seen: list[bool] = []
    for cell in net.cells:
        cell.register_forward_hook(lambda module, inputs, output: seen.append(output.stride(1) == 1))
    return seen


def _larger(data: ImageData, copies: int, channels: int = 1) -> ImageData:
    """Images side by side, of as many equal channels, cropped and flipped in training."""
    times = (1, channels, copies, copies)
    return replace(data, train_images=data.train_images.repeat(times), test_images=data.test_images.repeat(times),
                   mean=data.mean * channels, std=data.std * channels, augmentation=Augmentation(1, True))  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last_is_the_layout_of_every_pass(digits, channels, channels_last):
    data = _larger(digits, 1, channels)
    net = DerivedNetwork(DARTS_V2, 4, 3, in_channels=channels)
    seen = _layouts(net)
    fit(net, data, replace(QUICK, channels_last=channels_last))
    assert set(seen) == {channels_last}


def test_large_images_are_in_channels_last_order_by_default(digits):
    for copies in (1, 2):
        net = DerivedNetwork(DARTS_V2, 4, 3, in_channels=1)
        seen = _layouts(net)
        fit(net, _larger(digits, copies), replace(QUICK, epochs=1))
        assert set(seen) == {copies == 2}  # of 8 and of 16 pixels a side


def test_channels_last_gives_the_same_values(digits):
    ends = []
    for channels_last in (True, False):
        net = network(cells=3)
        reports = fit(net, digits, replace(QUICK, channels_last=channels_last))
        ends.append((net.state_dict(), reports[-1].validation_loss))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-3, atol=1e-5)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-3)


def test_the_optimizer_has_the_bits_of_a_plain_loop(digits):
    ends = []
    for foreach in (True, False):
        net = network(cells=3)
        run = Fit(net, digits, QUICK)
        assert run.optimizer.param_groups[0]["foreach"] and not run.optimizer.param_groups[0]["fused"]
        run.optimizer.param_groups[0]["foreach"] = foreach
        list(run.epochs())
        ends.append(net.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_checkpoint_from_another_device_does_not_choose_the_optimizers_kernel(digits):
    state = Fit(network(), digits, QUICK).state_dict()
    state["optimizer"]["param_groups"][0].update(fused=True, foreach=False)  # as a run on CUDA writes it
    run = Fit(network(), digits, QUICK)
    run.load_state_dict(state)
    assert run.optimizer.param_groups[0]["foreach"] and not run.optimizer.param_groups[0]["fused"]


# ---------------------------------------------------------------------------------------------- what is evaluated


def _without_test(data: ImageData) -> ImageData:
    """The same set with test labels on which any evaluation fails."""
    return replace(data, test_labels=torch.full_like(data.test_labels, 99))


def test_held_out_training_images_leave_the_test_images_alone(digits):
    part, rest = digits.split((0.75, 0.25), seed=0)
    net = Classifier()
    reports = fit(net, _without_test(digits), QUICK, train_indices=part, held_out=rest)
    loss, accuracy = evaluate(net, digits.train_images[rest], digits.train_labels[rest], digits)
    assert reports[-1].validation_loss == pytest.approx(loss) and reports[-1].validation_accuracy == accuracy
    with pytest.raises((IndexError, RuntimeError)):  # the trap works
        fit(Classifier(), _without_test(digits), QUICK)


def test_without_held_out_images_the_test_images_are_evaluated(digits):
    net = Classifier()
    reports = fit(net, digits, QUICK)
    assert reports[-1].validation_accuracy == evaluate(net, digits.test_images, digits.test_labels, digits)[1]


def test_only_the_training_share_is_trained_on(digits):
    part, rest = digits.split((0.5, 0.5), seed=0)
    run = Fit(Classifier(), digits, QUICK, train_indices=part, held_out=rest)
    assert torch.equal(run.loader.images, digits.train_images[part])
    assert torch.equal(run.loader.labels, digits.train_labels[part])
    assert run.steps_per_epoch == 2


def test_evaluate_every(digits):
    reports = fit(Classifier(), digits, replace(QUICK, epochs=5, evaluate_every=2))
    assert [math.isnan(report.validation_loss) for report in reports] == [True, False, True, False, False]
    assert [math.isnan(report.validation_accuracy) for report in reports] == [True, False, True, False, False]


def test_evaluate_by_hand(digits):
    net = network().train()
    net.cells[0].eval()  # a mode of its own
    modes = [module.training for module in net.modules()]
    buffers = copy.deepcopy(dict(net.named_buffers()))
    results = {evaluate(net, digits.test_images, digits.test_labels, digits, size) for size in (5, 32, 512)}
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    ((images, labels),) = evaluation_batches(digits.test_images, digits.test_labels, 32, digits.mean, digits.std)
    with torch.no_grad():
        logits = net.eval()(images)
    for loss, accuracy in results:  # equal for any batch size, up to the order of a sum
        assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
        assert accuracy == float((logits.argmax(1) == labels).sum()) / 32


def test_evaluate_puts_the_mode_back_when_it_fails(digits):
    net = network().train()
    with pytest.raises((IndexError, RuntimeError)):
        evaluate(net, digits.test_images, torch.full_like(digits.test_labels, 99), digits)
    assert net.training
    net.eval()
    evaluate(net, digits.test_images, digits.test_labels, digits)
    assert not net.training


def test_evaluating_nothing(digits):
    with pytest.raises(InvalidInput, match=r"^There is no image to evaluate on\.$"):
        evaluate(Classifier(), digits.test_images[:0], digits.test_labels[:0], digits)


# ---------------------------------------------------------------------------------------------- wrong input


def test_classes_that_do_not_match(digits):
    message = r"^The network has 7 classes, digits has 10; build it with classes=10\.$"
    with pytest.raises(InvalidInput, match=message):
        Fit(network(classes=7), digits, QUICK)
    with pytest.raises(InvalidInput, match=message):
        check_classes(Classifier(classes=7), digits)
    check_classes(Classifier(), digits)
    check_classes(nn.Flatten(), digits)  # nothing to compare


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *((f, v, rf"^{f} must be above 0, got {v}\.$")
          for f in ("epochs", "batch_size", "learning_rate", "clip", "evaluate_every") for v in (0, -1)),
        *((f, -1, rf"^{f} must be at least 0, got -1\.$")
          for f in ("momentum", "weight_decay", "cutout", "auxiliary_weight", "drop_path")),
        ("drop_path", 1.0, r"^drop_path must be below 1, got 1\.0\.$"),
        *(("label_smoothing", v, rf"^label_smoothing must be at least 0 and below 1, got {v}\.$")
          for v in (-0.1, 1.0, math.nan)),
        ("learning_rate", math.nan, r"^learning_rate must be above 0, got nan\.$"),
    ],
)  # fmt: skip
def test_wrong_configurations(field, value, message):
    with pytest.raises(InvalidInput, match=message):
        FitConfig(**{field: value})


def test_a_batch_larger_than_the_set(digits):
    with pytest.raises(InvalidInput, match=r"^A batch of 65 needs at least as many images, got 64\. "):
        Fit(Classifier(), digits, replace(QUICK, batch_size=65))


def test_a_wrapped_network_drops_paths_too():
    network = DerivedNetwork(DARTS_V2, channels=2, cells=3, drop_path=0.0)
    set_drop_path(torch.nn.Sequential(network), 0.25)
    assert {module.rate for module in network.modules() if isinstance(module, DropPath)} == {0.25}


@pytest.mark.parametrize("config", [FitConfig, darts.Config])
def test_a_batch_of_one_is_refused(config):
    with pytest.raises(InvalidInput, match="batch_size must be at least 2"):
        config(batch_size=1)
