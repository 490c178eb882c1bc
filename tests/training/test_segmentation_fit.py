"""Training for segmentation: the schedule, what counts as a pixel, evaluation, and resuming to the same bits."""

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasbook import processes
from nasbook.analysis import intersection_over_union
from nasbook.data import SegmentationData, TensorSamples, load_shapes
from nasbook.data.segmentation import IGNORED
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.genotypes import CellGenotype, Edge, Genotype
from nasbook.networks import Backbone, DropPath, SegmentationNetwork
from nasbook.training import SegmentationConfig, SegmentationFit, SegmentationReport, evaluate_segmentation, poly
from nasbook.training.segmentation import pixel_loss

CELL = CellGenotype((Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect")), nodes=1)
SMALL = Genotype({"normal": CELL, "reduction": CELL})
QUICK = SegmentationConfig(epochs=3, batch_size=4, learning_rate=0.05, crop=16, smallest_scale=0.75, largest_scale=1.5,
                           drop_path=0.2)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return load_shapes(12, 5, 16)


def network(seed: int = 5, **options) -> SegmentationNetwork:
    torch.manual_seed(seed)
    backbone = Backbone(SMALL, 2, 3, stem="cifar", output_stride=4)
    return SegmentationNetwork(backbone, **{"classes": 5, "rates": (1, 1, 2), "head_channels": 4, **options})


def run(data: SegmentationData, seed: int = 0, **changes) -> SegmentationFit:
    return SegmentationFit(network(), data, replace(QUICK, **changes), seed=seed)


def ending(fit: SegmentationFit) -> dict:
    state = copy.deepcopy(fit.state_dict())
    for report in (state, *state["history"]):
        report.pop("seconds")
    state.pop("random")
    return state


# ---------------------------------------------------------------------------------------------- settings


def test_defaults_are_deeplabs():
    config = SegmentationConfig()
    assert (config.learning_rate, config.power, config.momentum, config.weight_decay) == (0.007, 0.9, 0.9, 4e-5)
    assert (config.batch_size, config.crop, config.smallest_scale, config.largest_scale) == (16, 513, 0.5, 2.0)
    assert config.flip
    steps = 10_582 // 16 * config.epochs
    assert abs(steps - 30_000) < 10_582 // 16  # to within an epoch


def test_the_schedule():
    assert poly(0.007, 0.9, 0.0) == 0.007
    assert poly(0.007, 0.9, 0.5) == pytest.approx(0.007 * 0.5**0.9, rel=1e-15)
    assert poly(2.0, 1.0, 0.75) == 0.5
    assert poly(0.007, 0.9, 1.0) == 0.0


def test_the_rate_falls_from_step_to_step(data):
    fit = run(data)
    used = []
    fit.on_step = lambda r: used.append(fit.optimizer.param_groups[0]["lr"])
    list(fit.epochs())
    assert used == pytest.approx([0.05 * (1 - step / 9) ** 0.9 for step in range(9)], rel=1e-14)
    assert [report.learning_rate for report in fit.history] == used[2::3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "^epochs must be above 0"),
        ({"batch_size": 1}, "^batch_size must be at least 2"),
        ({"learning_rate": math.nan}, "^learning_rate must be above 0"),
        ({"power": -1.0}, "^power must be at least 0"),
        ({"workers": -1}, "^workers must be at least 0"),
        ({"weight_decay": math.nan}, "^weight_decay must be at least 0"),
        ({"drop_path": 1.0}, "^drop_path must be below 1"),
        ({"crop": 0}, "^crop must be above 0"),
        ({"largest_scale": 0.1}, "^largest_scale must be at least"),
        ({"evaluation_batch": 0}, "^evaluation_batch must be above 0"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(InvalidInput, match=message):
        replace(QUICK, **changes)


def test_several_processes_are_refused(data, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InvalidInput, match="^Segmentation trains in one process; run it without torchrun.$"):
        run(data)


def test_classes_must_agree(data):
    with pytest.raises(InvalidInput, match="^The network has 3 classes, shapes has 5; build it with classes=5.$"):
        SegmentationFit(network(classes=3), data, QUICK)
    with pytest.raises(InvalidInput, match="^A batch of 16 needs at least as many images, got 12"):
        SegmentationFit(network(), data, replace(QUICK, batch_size=16))


# ---------------------------------------------------------------------------------------------- what counts


def test_ignored_pixels_do_not_count():
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, 1], [2, IGNORED]], [[IGNORED, IGNORED], [1, 1]]])
    total, counted = pixel_loss(logits, labels)
    assert int(counted) == 5
    expected = sum(-F.log_softmax(logits[i, :, r, c], 0)[labels[i, r, c]]
                   for i in range(2) for r in range(2) for c in range(2) if labels[i, r, c] != IGNORED)  # fmt: skip
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=0)
    gradient = torch.autograd.grad(total, logits)[0]
    assert not gradient.movedim(1, -1)[labels == IGNORED].any() and gradient[0, :, 0, 0].abs().sum() > 0


def test_a_batch_of_borders_is_no_divergence(data):
    labels = torch.full_like(data.train.labels, IGNORED)
    fit = run(replace(data, train=TensorSamples(data.train.images, labels)), epochs=1)
    report = next(iter(fit.epochs()))
    assert report.train_loss == 0 and report.train_accuracy == 0


class Constant(nn.Module):
    """Says the same class everywhere; stands for a network in an evaluation."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.label = label

    def forward(self, images):
        logits = self.scale.new_zeros(len(images), 5, *images.shape[2:])
        logits[:, self.label] = math.log(4)  # probabilities of 1/2 and of 1/8 each
        return logits


def test_evaluation_counts_whole_images_and_no_padding(data):
    constant = Constant(2)
    labels = data.test.labels
    counts = torch.bincount(labels.flatten().long(), minlength=5)
    for least in (1, 16, 23):
        for batch in (1, 2, 5):
            loss, confusion = evaluate_segmentation(constant, data, batch, least)
            assert confusion.sum(1).tolist() == counts.tolist()
            assert confusion[:, 2].tolist() == counts.tolist()
            share = float(counts[2]) / labels.numel()
            assert loss == pytest.approx(share * math.log(2) + (1 - share) * math.log(8), rel=1e-6)


def test_reports(data):
    fit = run(data, epochs=4, evaluate_every=3)
    reports = list(fit.epochs())
    assert all(isinstance(report, SegmentationReport) for report in reports)
    assert [math.isnan(report.mean_iou) for report in reports] == [True, True, False, False]
    last = reports[-1]
    loss, confusion = evaluate_segmentation(fit.network, data, 16, 16)
    shares = intersection_over_union(confusion)
    assert last.class_iou == pytest.approx(tuple(shares.tolist()), rel=0, abs=0, nan_ok=True)
    assert last.mean_iou == float(shares.nanmean())
    assert last.validation_loss == loss
    assert last.validation_accuracy == float(confusion.diagonal().sum()) / data.test.labels.numel()
    again = SegmentationReport.from_state(last.to_state())
    assert repr(again) == repr(last)  # NaN is not equal to itself
    assert fit.network.training  # as it was


def test_drop_path_is_that_of_the_settings(data):
    fit = run(data)
    next(iter(fit.epochs()))
    assert {module.rate for module in fit.network.modules() if isinstance(module, DropPath)} == {0.2}


def test_it_learns():
    """One picture, seen again and again: every pixel of it is learnt, and of its mirror image not."""
    one = load_shapes(2, 1, 16)
    same = replace(one, train=one.train, test=one.train)
    config = replace(QUICK, epochs=120, batch_size=2, smallest_scale=1.0, largest_scale=1.0, flip=False, drop_path=0.0,
                     evaluate_every=120, learning_rate=0.1)  # fmt: skip
    torch.manual_seed(0)
    backbone = Backbone(SMALL, 4, 3, stem="cifar", output_stride=1)
    net = SegmentationNetwork(backbone, 5, rates=(1, 2, 3), head_channels=16)
    *_, last = SegmentationFit(net, same, config).epochs()
    first = SegmentationFit(network(), same, replace(config, epochs=1, evaluate_every=1))
    assert last.mean_iou > 0.8 > 0.4 > next(iter(first.epochs())).mean_iou


# ---------------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def undisturbed(data):
    fit = run(data)
    list(fit.epochs())
    return ending(fit)


@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
def test_a_run_goes_on_to_the_same_bits(data, undisturbed, same, stop_at, tmp_path):
    fit = run(data)
    seen = []

    def stop(r):
        seen.append(None)
        if len(seen) == stop_at:
            r.stop()

    fit.on_step = stop
    list(fit.epochs())
    assert not fit.finished
    fit.save(tmp_path / "checkpoint.pt")
    torch.rand(3)  # what others draw changes nothing
    resumed = SegmentationFit(network(seed=9), data, replace(QUICK, workers=2))  # neither other weights, nor threads
    resumed.load(tmp_path / "checkpoint.pt")
    list(resumed.epochs())
    same(ending(resumed), undisturbed)


def test_the_same_seed_is_the_same_run(data, undisturbed, same):
    fit = run(data)
    list(fit.epochs())
    same(ending(fit), undisturbed)
    other = run(data, seed=1)
    list(other.epochs())
    assert other.history[-1].train_loss != fit.history[-1].train_loss


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    run(data).save(path)
    with pytest.raises(CheckpointError, match="its config.power is 0.9, this run's is 1.0"):
        run(data, power=1.0).load(path)
    with pytest.raises(CheckpointError, match="its data is"):
        run(load_shapes(12, 5, 16, seed=1)).load(path)
    backbone = Backbone(SMALL, 2, 3, stem="cifar", output_stride=2)
    finer = SegmentationNetwork(backbone, 5, rates=(1, 1, 2), head_channels=4)
    with pytest.raises(CheckpointError, match="its output_stride is 4, this run's is 2"):
        SegmentationFit(finer, data, QUICK).load(path)
    with pytest.raises(CheckpointError, match="its rates is"):
        SegmentationFit(network(rates=(1, 2, 2)), data, QUICK).load(path)
    assert "workers" not in run(data).header()["config"]
    assert run(data).header()["config"].items() <= asdict(QUICK).items()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda(data):
    fit = SegmentationFit(network(), data, QUICK, device="cuda")
    reports = list(fit.epochs())
    plain = run(data, mixed_precision=False)
    list(plain.epochs())
    assert reports[0].train_loss == pytest.approx(plain.history[0].train_loss, rel=0.05)
