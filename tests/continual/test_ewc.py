"""EWC: the Fisher information against loops and closed forms, the springs against what they should come to rest at."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences, run_to_end, stop_after
from tiny_tasks import BACKBONE, VGG, ending, tiny_tasks
from torch import nn

from nasbook.continual import EWC, EWCConfig, FineTunedConfig, fisher_information, pulled
from nasbook.data import evaluation_batches
from nasbook.errors import InvalidInput
from nasbook.networks import build_growable
from nasbook.operations.batch_norms import batch_norms
from nasbook.seeding import generator

CONFIG = EWCConfig(epochs=2, batch_size=12, learning_rate=0.1, strength=10.0)


def network_of(name, classes=3):
    """A network in float64 whose batch norms have statistics of some data."""
    network = build_growable(name, widths=6, classes=classes, in_channels=1, size=8).double()
    draws = generator(0, "statistics")
    for norm in batch_norms(network):
        norm.running_mean.normal_(generator=draws)
        norm.running_var.uniform_(0.5, 2.0, generator=draws)
        norm.weight.data.uniform_(0.5, 1.5, generator=draws)
    return network.eval()


def batches_of(images, labels, size):
    return iter(list(zip(images.split(size), labels.split(size), strict=True)))


def inputs(count=7, classes=3):
    draws = generator(0, "inputs")
    images = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=draws)
    return images, torch.randint(classes, (count,), generator=draws)


# --- Fisher information -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["model", "data"])
@pytest.mark.parametrize("name", ["perceptron", "vgg11", "block-stack", "mobilenet-v1"])
def test_against_a_loop_over_images_and_classes(name, labels):
    network, (images, given) = network_of(name), inputs()
    names = [entry for entry, _ in network.named_parameters() if not entry.startswith("classifier")]
    found = fisher_information(network, batches_of(images, given, 4), names, labels)
    parameters = dict(network.named_parameters())
    expected = {entry: torch.zeros_like(parameters[entry]) for entry in names}
    for image, label in zip(images, given.tolist(), strict=True):
        logs = network(image[None])[0].log_softmax(-1)
        for y, log in enumerate(logs):
            weight = float(log.detach().exp()) if labels == "model" else float(y == label)
            gradients = torch.autograd.grad(log, [parameters[entry] for entry in names], retain_graph=True)
            for entry, gradient in zip(names, gradients, strict=True):
                expected[entry] += weight * gradient**2 / len(images)
    assert list(found) == names
    for entry in names:
        torch.testing.assert_close(found[entry], expected[entry], rtol=1e-9, atol=1e-15)
    assert sum(float(value.sum()) for value in found.values()) > 1e-6


@pytest.mark.parametrize("labels", ["model", "data"])
def test_logistic_regression(labels):
    """E_y[(∂ log p(y|x) / ∂W_kj)²] = p_k (1 − p_k) x_j², as E_y[(1[y = k] − p_k)²] is the variance of an indicator."""
    images, given = inputs(9)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    found = fisher_information(network, batches_of(images, given, 2), ["1.weight", "1.bias"], labels)
    x, p = images.flatten(1), network(images).softmax(-1).detach()
    squares = p * (1 - p) if labels == "model" else (nn.functional.one_hot(given, 3) - p) ** 2
    torch.testing.assert_close(found["1.bias"], squares.mean(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(found["1.weight"], squares.T @ x**2 / 9, rtol=1e-10, atol=0)


def test_it_is_the_curvature_of_the_loss():
    """The Fisher information of logistic regression is the diagonal of its loss' Hessian, whatever the labels are."""
    images, given = inputs(9)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    found = fisher_information(network, batches_of(images, given, 4), ["1.bias"])["1.bias"]
    weight = network[1].weight.detach()

    def loss(bias):
        return nn.functional.cross_entropy(images.flatten(1) @ weight.T + bias, given)

    hessian = torch.autograd.functional.hessian(loss, network[1].bias.detach())
    torch.testing.assert_close(found, hessian.diagonal(), rtol=1e-10, atol=0)


@settings(derandomize=True, deadline=None, max_examples=10)
@given(size=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_batches_and_order_make_no_difference(size, seed):
    network, (images, given) = network_of("vgg11"), inputs()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    names = ["layers.0.convolution.weight", "layers.1.norm.bias"]
    whole = fisher_information(network, batches_of(images, given, 7), names)
    parts = fisher_information(network, batches_of(images[order], given[order], size), names)
    for entry in names:
        torch.testing.assert_close(parts[entry], whole[entry], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    network, (images, given) = network_of("vgg11").train(training), inputs()
    before = copy.deepcopy(network.state_dict())
    found = fisher_information(network, batches_of(images, given, 3), ["layers.0.convolution.weight"])
    again = fisher_information(network.eval(), batches_of(images, given, 3), ["layers.0.convolution.weight"])
    assert not differences(found, again)  # by the running statistics in either mode
    assert not differences(dict(network.state_dict()), dict(before))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_no_image():
    with pytest.raises(InvalidInput, match="^The Fisher information is a mean over images; give one or more.$"):
        fisher_information(network_of("perceptron"), iter(()), [])


# --- springs ----------------------------------------------------------------------------------------------------------

FINITE = st.floats(-10, 10)


@settings(derandomize=True, deadline=None)
@given(weight=FINITE, anchor=FINITE, stiffness=st.floats(0, 1e6), rate=st.floats(1e-6, 10))
def test_an_implicit_step(weight, anchor, stiffness, rate):
    """It goes down the slope of where it ends: θ' = θ − η k (θ' − a)."""
    theta, a, k = (torch.tensor([value], dtype=torch.float64) for value in (weight, anchor, stiffness))
    after = pulled(theta, a, k, rate)
    torch.testing.assert_close(after, theta - rate * k * (after - a), rtol=1e-9, atol=1e-9 * (1 + rate * stiffness))
    assert min(weight, anchor) - 1e-12 <= float(after) <= max(weight, anchor) + 1e-12


def test_no_spring_and_the_stiffest():
    draws = generator(0, "springs")
    weights, anchor = torch.randn(2, 50, generator=draws)
    assert torch.equal(pulled(weights, anchor, torch.zeros(50), 0.5), weights)
    for stiffness in (1e30, math.inf):
        assert torch.equal(pulled(weights, anchor, torch.full((50,), stiffness), 0.5), anchor)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("strength", [0.0, 1.0, 1e4])
def test_it_rests_where_loss_and_penalty_are_least(momentum, strength):
    """Loss ½ Σ h (θ − b)², penalty ½ λ Σ F (θ − θ*)²: least at (h b + λ F θ*) / (h + λ F), with momentum too."""
    draws = generator(0, "quadratic")
    h, b, fisher, anchor = torch.rand(4, 20, dtype=torch.float64, generator=draws) + 0.1
    theta = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    optimizer = torch.optim.SGD([theta], 0.1, momentum)
    for _ in range(3000):
        optimizer.zero_grad()
        (0.5 * h * (theta - b) ** 2).sum().backward()
        optimizer.step()
        with torch.no_grad():
            theta.copy_(pulled(theta, anchor, strength * fisher, 0.1 / (1 - momentum)))
    expected = (h * b + strength * fisher * anchor) / (h + strength * fisher)
    torch.testing.assert_close(theta.detach(), expected, rtol=1e-6, atol=1e-9)


# --- the learner ------------------------------------------------------------------------------------------------------


def recorded(config, backbone, tasks):
    """A finished run, and θ* and F of the body after every task but the last."""
    run, found = config.begin(tasks, backbone), []
    end_task = run.end_task

    def keep():
        network = copy.deepcopy(run.network)
        end_task()
        if run.task + 1 < len(tasks):
            data = tasks[run.task].data
            batches = evaluation_batches(data.train_images, data.train_labels, 9, data.mean, data.std)
            names = [name for name, _ in run.body_parameters()]
            fisher = fisher_information(network, batches, names, config.labels)
            found.append(({name: network.get_parameter(name).detach() for name in names}, fisher))

    run.end_task = keep
    return run_to_end(run), found


@pytest.mark.parametrize("backbone", [VGG, BACKBONE])
def test_the_springs_of_all_tasks_are_one(backbone):
    """P = Σ F and P a = Σ F θ*, so that Σ F (θ − θ*)² = P (θ − a)² + a constant."""
    run, found = recorded(CONFIG, backbone, tiny_tasks(4))
    assert len(found) == 3
    for name, precision in run.precision.items():
        fishers = torch.stack([fisher[name] for _, fisher in found]).double()
        stars = torch.stack([star[name] for star, _ in found]).double()
        torch.testing.assert_close(precision.double(), fishers.sum(0), rtol=1e-4, atol=1e-9)
        pull = (fishers * stars).sum(0)
        torch.testing.assert_close(precision.double() * run.anchor[name].double(), pull, rtol=1e-3, atol=1e-6)
    assert run.training_memory == 2 * sum(weights.numel() for _, weights in run.body_parameters())
    assert not any(name.startswith("classifier") for name in run.precision)


def test_after_one_task_the_anchor_is_where_it_ended():
    run, found = recorded(CONFIG, VGG, tiny_tasks(2))
    for name, precision in run.precision.items():
        held = precision > 0
        assert torch.equal(run.anchor[name][held], found[0][0][name][held])
    assert any((precision > 0).any() for precision in run.precision.values())


def without_springs(run):
    state = ending(run)
    for name in ("precision", "anchor"):
        del state["method"][name]
    return state


@pytest.mark.parametrize("backbone", [VGG, BACKBONE])
def test_without_strength_it_is_fine_tuning_to_the_bit(backbone):
    plain = FineTunedConfig(epochs=2, batch_size=12, learning_rate=0.1)
    tuned = run_to_end(plain.begin(tiny_tasks(), backbone))
    run = run_to_end(replace(CONFIG, strength=0.0).begin(tiny_tasks(), backbone))
    assert not differences(without_springs(run), ending(tuned))
    held = run_to_end(CONFIG.begin(tiny_tasks(), backbone))
    assert differences(without_springs(held), ending(tuned))


def test_with_the_greatest_strength_no_weight_that_matters_moves():
    run = replace(CONFIG, strength=1e30).begin(tiny_tasks(2), VGG)
    stop_after(run, 2 * 3)
    before = copy.deepcopy(run.network.state_dict())
    run_to_end(run)
    moved = False
    for name, parameter in run.body_parameters():
        held = run.precision[name] > 1e-12
        assert torch.equal(parameter[held], before[name][held])
        moved |= not torch.equal(parameter, before[name])
    assert moved  # what does not matter is free
    assert not torch.equal(run.network.classifier.weight, before["classifier.weight"])


def test_the_stronger_the_less_it_moves():
    distances = []
    for strength in (0.0, 10.0, 1e3, 1e5):
        run = run_to_end(replace(CONFIG, strength=strength, epochs=6).begin(tiny_tasks(2), BACKBONE))
        distances.append(
            sum(
                float((run.precision[name] * (weights.detach() - run.anchor[name]) ** 2).sum())
                for name, weights in run.body_parameters()
            )
        )
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4 * distances[0]


def test_a_share_of_the_images():
    runs = [
        run_to_end(replace(CONFIG, images=images).begin(tiny_tasks(2), BACKBONE, seed))
        for images, seed in ((None, 0), (36, 0), (1000, 0), (5, 0), (5, 0))
    ]
    whole, every, more, few, again = (run.precision for run in runs)
    assert not differences(whole, every) and not differences(whole, more) and not differences(few, again)
    assert differences(whole, few)


def test_the_labels_make_a_difference():
    model, data = (
        run_to_end(replace(CONFIG, labels=labels).begin(tiny_tasks(2), BACKBONE)) for labels in ("model", "data")
    )
    assert differences(model.precision, data.precision)


def test_nothing_is_noted_after_the_last_task():
    run = run_to_end(CONFIG.begin(tiny_tasks(1), BACKBONE))
    assert isinstance(run, EWC)
    assert run.precision == run.anchor == {} and run.training_memory == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": -1.0}, "strength must be at least 0 and at most 1e[+]30, got -1.0"),
        ({"strength": math.nan}, "strength must be at least 0"),
        ({"strength": math.inf}, "strength must be at least 0"),
        ({"images": 0}, "images must be above 0, got 0"),
        ({"epochs": 0}, "epochs must be above 0"),
    ],
)
def test_wrong_numbers(wrong, message):
    with pytest.raises(InvalidInput, match=f"^{message}"):
        replace(CONFIG, **wrong)


def test_wrong_labels():
    config = replace(CONFIG)
    object.__setattr__(config, "labels", "datum")  # past the check of its type
    with pytest.raises(InvalidInput, match="^Unknown labels 'datum'. Did you mean 'data'[?] Valid: model, data"):
        config.__post_init__()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_is_that_of_fine_tuning_and_the_springs(momentum):
    numbers = {"epochs": 2, "batch_size": 12, "learning_rate": 0.1, "momentum": momentum, "later_rate": 0.5}
    tuned, run = FineTunedConfig(**numbers), EWCConfig(**numbers, strength=1e4)
    tuned, run = (config.begin(tiny_tasks(2), VGG) for config in (tuned, run))
    for learner in (tuned, run):
        stop_after(learner, 2 * 3 + 1)
    plain = dict(tuned.network.named_parameters())
    for name, parameter in run.body_parameters():
        rate = 0.05 / (1 - momentum)
        expected = pulled(plain[name].detach(), run.anchor[name], 1e4 * run.precision[name], rate)
        assert torch.equal(parameter, expected)
    assert torch.equal(run.network.classifier.weight, tuned.network.classifier.weight)
    assert not torch.equal(run.network.layers[-1].norm.bias, tuned.network.layers[-1].norm.bias)
