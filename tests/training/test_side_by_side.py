"""Networks side by side compute what each computes alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nasbook.data import load_images
from nasbook.errors import InvalidInput
from nasbook.genotypes import CellGenotype, Edge, Genotype
from nasbook.networks import DerivedNetwork
from nasbook.training import FitConfig, evaluate, fit
from nasbook.training.side_by_side import SideBySide, Trainee, evaluate_side_by_side, train_side_by_side

CONFIG = FitConfig(epochs=2, batch_size=16, learning_rate=0.05, drop_path=0.0, cutout=0)


def cell(*edges, nodes=2):
    return CellGenotype(tuple(Edge(source, target, name) for source, target, name in edges), nodes)


CELLS = (
    cell((0, 2, "sep_conv_3x3"), (1, 2, "skip_connect"), (0, 3, "avg_pool_3x3"), (2, 3, "dil_conv_3x3")),
    cell((1, 2, "dil_conv_5x5"), (0, 3, "skip_connect"), (1, 3, "sep_conv_5x5")),
    cell((0, 2, "dil_conv_3x3"), (1, 2, "avg_pool_3x3"), (2, 3, "skip_connect")),
)


def network(genotype, seed, channels=4, cells=3):
    torch.manual_seed(seed)
    kinds = {"normal": genotype, "reduction": genotype}
    return DerivedNetwork(Genotype(kinds), channels, cells, 10, in_channels=1)


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)


def trainees(data):
    found = []
    for number, genotype in enumerate(CELLS):
        train, held_out = data.split((0.5, 0.5), seed=number // 2)  # the first two share their images
        found.append(Trainee(network(genotype, number), train, held_out, seed=number))
    return found


def test_the_same_function_and_gradients_in_float64():
    networks = [network(genotype, number).double() for number, genotype in enumerate(CELLS)]
    together = SideBySide(networks, 8)
    images = torch.rand(2, 5, 1, 8, 8, dtype=torch.float64)
    set_of = torch.tensor([0, 1, 0])
    labels = torch.arange(5)
    logits = together(images, set_of)
    F.cross_entropy(logits.flatten(0, 1), labels.repeat(3), reduction="sum").backward()
    for number, alone in enumerate(networks):
        own = alone(images[set_of[number]])
        torch.testing.assert_close(logits[number], own)
        F.cross_entropy(own, labels, reduction="sum").backward()
    together.write_back()  # statistics
    own_classifier = torch.stack([n.classifier.weight.grad for n in networks])
    torch.testing.assert_close(together.classifier.weight.grad, own_classifier)
    own_stem = torch.stack([n.stem.layers[0].weight.grad for n in networks])
    torch.testing.assert_close(together.stem.weight.grad, own_stem)
    # A depthwise kernel, of which only the first network has the operation on this edge.
    place = together.cells[0].groups.index((2, 0, "sep_conv_3x3"))
    own_kernel = networks[0].cells[0].operations[0][1].weight.grad
    torch.testing.assert_close(together.cells[0].operations[place][1].weight.grad[0], own_kernel)


@pytest.mark.parametrize("clip", [5.0, 0.05])
def test_each_trains_as_it_would_alone(data, clip):
    config = replace(CONFIG, clip=clip)
    given, alone = trainees(data), trainees(data)
    seen = []
    reports, together = train_side_by_side(given, data, config, seen.append)
    assert seen == reports
    for number, trainee in enumerate(alone):
        own = fit(
            trainee.network,
            data,
            config,
            seed=trainee.seed,
            train_indices=trainee.train_indices,
            held_out=trainee.held_out,
        )
        for report, expected in zip(reports, own, strict=True):
            assert report.train_loss[number].item() == pytest.approx(expected.train_loss, abs=2e-3)
            assert report.validation_loss[number].item() == pytest.approx(expected.validation_loss, abs=5e-3)
            assert report.epoch == expected.epoch
        for name, value in trainee.network.state_dict().items():
            torch.testing.assert_close(given[number].network.state_dict()[name], value, atol=5e-3, rtol=5e-2)
    tests = [(data.test_images, data.test_labels)] * 3
    losses, accuracies = evaluate_side_by_side(together, tests, data, batch_size=16)
    for number, trainee in enumerate(given):  # with what was written back
        loss, accuracy = evaluate(trainee.network, data.test_images, data.test_labels, data)
        assert losses[number].item() == pytest.approx(loss, abs=1e-5)
        assert accuracies[number].item() == pytest.approx(accuracy)


def test_what_has_no_form_here_is_refused(data):
    one = network(CELLS[0], 0)
    with pytest.raises(InvalidInput, match="at least one"):
        SideBySide([], 8)
    with pytest.raises(InvalidInput, match="same cells, channels"):
        SideBySide([one, network(CELLS[0], 0, channels=8)], 8)
    with pytest.raises(InvalidInput, match="same cells, channels"):
        SideBySide([one, network(cell((0, 2, "skip_connect")), 0)], 8)  # one output node
    with pytest.raises(InvalidInput, match="SeparatedKernels has no form"):
        SideBySide([network(cell((0, 2, "conv_1x3_3x1")), 0)], 8)
    for wrong in ({"drop_path": 0.1}, {"cutout": 4}, {"label_smoothing": 0.1}):
        with pytest.raises(InvalidInput, match="train without drop path"):
            train_side_by_side(trainees(data), data, replace(CONFIG, **wrong))
