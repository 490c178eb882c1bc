"""Learning without forgetting: the distillation loss as the paper writes it, and who learns when."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences, run_to_end, stop_after
from tiny_tasks import BACKBONE, VGG, ending, tiny_tasks

from nasbook.continual import FineTunedConfig, LwFConfig, distillation
from nasbook.errors import InvalidInput
from nasbook.operations.batch_norms import batch_norms

CONFIG = LwFConfig(epochs=2, batch_size=12, learning_rate=0.1, warm_up_epochs=1, later_rate=0.5)
STEPS = 3
"""Steps of an epoch of a tiny task."""
FIRST, LATER = 2 * STEPS, 3 * STEPS
"""Steps of the first task, and of a later one with its warm-up."""


def state_of(run):
    return copy.deepcopy(dict(run.network.state_dict()))


def moved(run, before):
    """Names of the entries that have changed."""
    return {name for name, value in run.network.state_dict().items() if not torch.equal(value, before[name])}


# --- the loss ---------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.floats(0.5, 8),
    classes=st.integers(2, 6),
    images=st.integers(1, 5),
)
def test_as_the_paper_writes_it(seed, temperature, classes, images):
    draws = torch.Generator().manual_seed(seed)
    logits, targets = 3 * torch.randn(2, images, classes, dtype=torch.float64, generator=draws)
    y, y_hat = targets.softmax(-1), logits.softmax(-1)
    total = 0.0
    for image in range(images):  # Eq. 4, then Eq. 3
        soft, soft_hat = (
            [float(p) ** (1 / temperature) / sum(float(q) ** (1 / temperature) for q in of[image]) for p in of[image]]
            for of in (y, y_hat)
        )
        total -= sum(p * math.log(q) for p, q in zip(soft, soft_hat, strict=True))
    got = distillation(logits, targets, temperature)
    assert float(got) == pytest.approx(total / images, rel=1e-9)
    # Least where both agree.
    assert float(distillation(targets, targets, temperature)) <= float(got) + 1e-12


def test_its_gradient():
    """(ŷ' − y') / T for each image of the mean: zero where both agree, without a factor T²."""
    logits, targets = torch.randn(2, 4, 3, dtype=torch.float64)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation(logits, targets, 2.0), logits)
    expected = ((logits / 2).softmax(-1) - (targets / 2).softmax(-1)) / 2 / 4
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-10, atol=1e-14)
    (gradient,) = torch.autograd.grad(distillation(logits, logits.detach(), 2.0), logits)
    assert gradient.abs().max() < 1e-15


def test_of_certain_answers_it_is_the_cross_entropy():
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    certain = 1e4 * F.one_hot(labels, 3).double()
    torch.testing.assert_close(distillation(logits, certain, 1.0), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("backbone", [VGG, BACKBONE])
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_the_objective_is_the_sum_over_all_earlier_tasks(backbone, weight):
    run = replace(CONFIG, weight=weight).begin(tiny_tasks(), backbone)
    stop_after(run, FIRST + LATER + STEPS + 2)  # two steps into the joint training of the third task
    assert run.task == 2 and not run.warming_up
    heads = [backbone.build(2, 0).classifier for _ in range(4)]
    for head, entries in zip(heads, [*run.heads, *run._old], strict=True):
        head.load_state_dict({name.removeprefix("classifier."): value.detach() for name, value in entries.items()})
    now, then = copy.deepcopy(run.network).train(), copy.deepcopy(run._before).train()
    images, labels = run.loader.batch(7)
    total, loss, logits = run.objective(images, labels)
    assert torch.equal(logits, now(images)) and torch.equal(loss, F.cross_entropy(logits, labels))
    now.classifier = then.classifier = torch.nn.Identity()
    new_features, old_features = now(images), then(images)
    expected = loss + weight * sum(
        distillation(heads[2 + task](new_features), heads[task](old_features), 2.0) for task in range(2)
    )
    torch.testing.assert_close(total, expected)
    assert not torch.equal(total, loss)


@pytest.mark.parametrize("backbone", [VGG, BACKBONE])
def test_old_answers_pull_at_nothing_that_has_not_moved(backbone):
    """At the first joint step both networks answer the same, batch norms included, so the gradient is zero."""
    run = CONFIG.begin(tiny_tasks(), backbone)
    stop_after(run, FIRST + LATER + STEPS)  # the warm-up of the third task is over
    assert run.task == 2 and not run.warming_up
    run.network.train()
    total, loss, _ = run.objective(*run.loader.batch(0))
    gradients = torch.autograd.grad(total - loss, run.trained())
    assert len(gradients) == len(run.body_parameters()) + 3 * 2
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6
    stop_after(run, 1)
    run.network.train()
    total, loss, _ = run.objective(*run.loader.batch(0))
    later = torch.autograd.grad(total - loss, run.trained())
    assert max(float(gradient.abs().max()) for gradient in later) > 1e-5


# --- who learns when --------------------------------------------------------------------------------------------------


def test_phases():
    run = run_to_end(CONFIG.begin(tiny_tasks(), BACKBONE))
    names = [(report.task, report.phase) for report in run.history]
    later = [[(task, "warm-up"), (task, "training"), (task, "training")] for task in (1, 2)]
    assert names == [(0, "training"), (0, "training"), *later[0], *later[1]]
    assert CONFIG.extra_epochs == 1
    none = replace(CONFIG, warm_up_epochs=0)
    assert {report.phase for report in run_to_end(none.begin(tiny_tasks(2), BACKBONE)).history} == {"training"}


def test_only_the_new_classifier_warms_up():
    run = CONFIG.begin(tiny_tasks(2), VGG)
    stop_after(run, FIRST)
    assert run.task == 1 and run.warming_up
    before, heads = state_of(run), copy.deepcopy(run.heads)
    stop_after(run, STEPS - 1)
    assert run.warming_up
    assert moved(run, before) == {"classifier.weight", "classifier.bias"}  # no statistic either
    assert not differences(run.heads, heads)
    assert all(torch.equal(run._old[0][name], heads[0][name]) for name in heads[0])
    stop_after(run, 3)
    assert not run.warming_up
    assert len(moved(run, before)) > 10
    assert not torch.equal(run._old[0]["classifier.weight"], heads[0]["classifier.weight"])
    assert not differences(run.heads, heads)  # what was answered before stays as it was


def test_the_network_before_stands_still():
    run = CONFIG.begin(tiny_tasks(2), VGG)
    stop_after(run, FIRST)
    before = copy.deepcopy(dict(run._before.state_dict()))
    assert not differences(before, state_of(run))
    run_to_end(run)
    assert not differences(dict(run._before.state_dict()), before)
    assert all(norm.track_running_stats for norm in batch_norms(run._before))


def test_earlier_tasks_are_served_by_classifiers_that_have_learned_on():
    run = CONFIG.begin(tiny_tasks(), BACKBONE)
    stop_after(run, FIRST + LATER)
    old = copy.deepcopy(run.heads)
    run_to_end(run)
    for task in range(2):
        served = run.serving(task).state_dict()
        assert torch.equal(served["classifier.weight"], run._old[task]["classifier.weight"])
        assert not torch.equal(served["classifier.weight"], old[task]["classifier.weight"])


@pytest.mark.parametrize("backbone", [VGG, BACKBONE])
def test_without_weight_and_warm_up_it_is_fine_tuning_to_the_bit(backbone):
    plain = FineTunedConfig(epochs=2, batch_size=12, learning_rate=0.1, later_rate=0.5)
    tuned = run_to_end(plain.begin(tiny_tasks(), backbone))
    run = run_to_end(replace(CONFIG, weight=0.0, warm_up_epochs=0).begin(tiny_tasks(), backbone))
    state = ending(run)
    for name in ("before", "old"):
        del state["method"][name]
    assert not differences(state, ending(tuned))


def test_with_weight_old_answers_change_less():
    """Kullback-Leibler divergence of the first task's answers to the second task's images, before and after it."""
    found = []
    for weight in (0.0, 1.0, 10.0):
        run = replace(CONFIG, weight=weight, epochs=10).begin(tiny_tasks(2), BACKBONE)
        stop_after(run, 10 * STEPS)
        assert run.task == 1
        images, _ = run.loader.batch(0)
        before = run.serving(0)(images).log_softmax(-1).detach()
        after = run_to_end(run).serving(0)(images).log_softmax(-1).detach()
        found.append(float(F.kl_div(after, before, log_target=True, reduction="batchmean")))
    assert found[0] > 10 * found[1] and found[0] > 10 * found[2], found


def test_what_learning_takes():
    run = CONFIG.begin(tiny_tasks(), BACKBONE)
    assert run.training_memory == 0
    stop_after(run, FIRST + LATER)
    body = 64 * 10 + 10 + 10 * 8 + 8
    assert run.task == 2 and run.training_memory == body + 2 * (8 * 2 + 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"weight": -1.0}, "weight and warm_up_epochs must be 0 or more"),
        ({"weight": math.nan}, "weight and warm_up_epochs must be 0 or more"),
        ({"warm_up_epochs": -1}, "weight and warm_up_epochs must be 0 or more"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
def test_wrong_numbers(wrong, message):
    with pytest.raises(InvalidInput, match=f"^{message}"):
        replace(CONFIG, **wrong)
