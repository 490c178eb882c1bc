"""The loop over tasks: phases, rates, the accuracy matrix, checkpoints and refusals; and the backbone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from running import differences, run_to_end, stop_after
from tiny_tasks import BACKBONE, VGG, ending, handed_over, tiny_tasks
from torch import Tensor, nn

from nasbook import processes
from nasbook.continual import Backbone, ContinualConfig, ContinualReport, ContinualRun, Phase, Task, take_classes
from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput, TrainingDiverged
from nasbook.training import evaluate


@dataclass(frozen=True)
class PlainConfig(ContinualConfig):
    """Two phases a task; a network for each."""

    method: ClassVar[str] = "plain"
    shape: tuple[int, ...] = (1, 2)

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> Plain:
        return Plain(tasks, self, backbone, seed=seed)


class Plain(ContinualRun):
    """A network for each task, trained in two phases, the second of which has a lower rate."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.kept: list[dict[str, Tensor]] = []
        self.steps: list[tuple[int, int, int]] = []
        super().__init__(*arguments, **options)

    def most_phases(self, task: int) -> Sequence[Phase]:
        return Phase("first", self.config.epochs), Phase("second", 1)

    def begin_task(self) -> None:
        self.network = self.fitted(self.backbone.build(self.tasks[self.task].data.classes, self.task_seed()))

    def begin_phase(self) -> None:
        self.optimizer = self.sgd(self.network.parameters())
        self.optimizer.param_groups[0]["rate"] = 0.5 if self.phase else 1.0

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        self.steps.append((self.task, self.phase, index))
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss, logits

    def end_task(self) -> None:
        self.kept.append({name: value.clone() for name, value in self.network.state_dict().items()})

    def serving(self, task: int) -> nn.Module:
        network = self.backbone.build(self.tasks[task].data.classes, 0)
        network.load_state_dict(self.kept[task])
        return network

    def parameters(self) -> int:
        return 100 * len(self.kept)

    def method_state(self) -> dict[str, Any]:
        if self.finished:
            return {"kept": self.kept}
        return {"kept": self.kept, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.kept = list(state["kept"])
        if not self.finished:
            self.begin_task()
            self.network.load_state_dict(state["network"])
            self.begin_phase()
            self.optimizer.load_state_dict(state["optimizer"])


CONFIG = PlainConfig(epochs=2, batch_size=12, learning_rate=0.1)


def uneven_tasks() -> list[Task]:
    """Two, three and two classes; 31, 47 and 35 images: 2, 3 and 2 steps an epoch."""
    data = load_images("digits").take(160, 60)
    tasks = [take_classes(data, classes) for classes in ([0, 5], [1, 2, 3], [6, 7])]
    return [task.only(torch.arange(count)) for task, count in zip(tasks, (25, 40, 30), strict=True)]


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_tasks_of_several_sizes():
    run = CONFIG.begin(uneven_tasks(), BACKBONE)
    lengths = [len(loader) for loader in run.loaders]
    assert lengths == [2, 3, 2]
    assert (run.total_epochs, run.steps_per_epoch) == (9, 3)
    reports = list(run.epochs())
    assert [(report.epoch, report.task, report.phase) for report in reports] == [
        (3 * task + place + 1, task, phase)
        for task in range(3)
        for place, phase in enumerate(("first", "first", "second"))
    ]
    assert run.steps == [
        (task, phase, index)
        for task, steps in enumerate(lengths)
        for phase, epochs in enumerate((2, 1))
        for index in range(epochs * steps)
    ]
    assert run.finished
    assert (run.task, run.phase, run.phase_epoch, run.step) == (3, 0, 0, 0)


def test_rates_fall_to_zero_in_each_phase():
    run = run_to_end(replace(CONFIG, epochs=4).begin(tiny_tasks(2), BACKBONE))
    first = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [report.learning_rate for report in run.history] == pytest.approx([*first, 0.05] * 2)


def test_rows_of_the_matrix_are_what_the_serving_networks_reach():
    run = CONFIG.begin(uneven_tasks(), BACKBONE)
    rows = []
    for report in run.epochs():
        ends = report.phase == "second"
        assert bool(report.accuracies) == ends
        assert (report.parameters > 0) == ends
        assert math.isnan(report.validation_loss) != ends
        if not ends:
            continue
        found = []
        for task in range(report.task + 1):
            data = run.tasks[task].data
            found.append(evaluate(run.serving(task), data.test_images, data.test_labels, data))
        rows.append([accuracy for _, accuracy in found])
        assert list(report.accuracies) == rows[-1] == run.accuracies[-1]
        assert (report.validation_loss, report.validation_accuracy) == found[-1]
        assert report.parameters == 100 * len(rows) == run.memory[-1]
    assert [len(row) for row in run.accuracies] == [1, 2, 3]
    assert run.memory == [100, 200, 300]


def test_every_image_once_an_epoch_and_anew_in_each_phase():
    run, seen = CONFIG.begin(tiny_tasks(2), BACKBONE), []
    batch = run.loaders[1].batch
    run.loaders[1].batch = lambda index: (seen.append(index), batch(index))[1]
    run_to_end(run)
    assert seen == list(range(9))  # no batch of the first phase comes again in the second


def test_a_seed_is_a_run():
    states = [ending(run_to_end(CONFIG.begin(tiny_tasks(2), BACKBONE, seed))) for seed in (0, 0, 1)]
    assert not differences(states[0], states[1])
    assert differences(states[0], states[2])


def test_streams_of_a_task():
    run = CONFIG.begin(tiny_tasks(3), BACKBONE, 7)
    seeds = [run.task_seed(), run.task_seed("directions", 1), run.task_seed("directions", 2)]
    run.task = 1
    seeds += [run.task_seed(), run.task_seed("directions", 1)]
    assert len(set(seeds)) == 5


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_handed_over_at_every_step_of_uneven_tasks(tmp_path):
    def make() -> Plain:
        return CONFIG.begin(uneven_tasks(), BACKBONE, 2)

    assert not differences(ending(handed_over(make, tmp_path)), ending(run_to_end(make())))


@pytest.mark.parametrize(
    ("config", "backbone"),
    [
        ({"growths": 2, "first_growths": 1, "neurons": 12, "new_neurons": 1}, VGG),
        ({"growths": 1, "validation_share": 0.3, "sufficient": 0.7, "mask_rate": 0.01}, BACKBONE),
    ],
    ids=["two growths", "deciding"],
)
def test_firefly_handed_over_at_every_step_of_uneven_tasks(config, backbone, tmp_path):
    """Mask, directions and training, in the first task and in later ones; the files are read by fresh objects."""
    from nasbook.methods.firefly_continual import Config

    whole = {"epochs": 1, "mask_epochs": 1, "direction_epochs": 1, "neurons": 6, "new_neurons": 2, "batch_size": 16}
    learner = Config(**{**whole, "mask_rate": 3e-3, **config})

    def make() -> ContinualRun:
        return learner.begin(uneven_tasks(), backbone, 4)

    expected = run_to_end(make())
    assert not differences(ending(handed_over(make, tmp_path)), ending(expected))
    if "growths" in config and config["growths"] == 2:
        assert {(report.task, report.phase) for report in expected.history} == {
            (0, "training"), (0, "directions"), *((task, phase) for task in (1, 2) for phase in
            ("mask", "directions", "training")),
        }  # fmt: skip
        assert any(sum(growth.unlocked.values()) for growth in expected.growths)
        assert any(sum(growth.splits.values()) for growth in expected.growths)


def test_a_finished_run_is_finished_in_its_file_too(tmp_path):
    run = run_to_end(CONFIG.begin(tiny_tasks(2), BACKBONE))
    run.save(tmp_path / "checkpoint.pt")
    again = CONFIG.begin(tiny_tasks(2), BACKBONE)
    again.load(tmp_path / "checkpoint.pt")
    assert again.finished
    assert list(again.epochs()) == []
    assert not differences(ending(again), ending(run))


def test_a_run_can_go_back(tmp_path):
    run = CONFIG.begin(tiny_tasks(2), BACKBONE)
    stop_after(run, 4)
    run.save(tmp_path / "checkpoint.pt")
    expected = ending(run_to_end(run))
    run.load(tmp_path / "checkpoint.pt")
    assert (run.task, run.phase, run.phase_epoch, run.step, len(run.history)) == (0, 0, 1, 1, 1)
    assert not differences(ending(run_to_end(run)), expected)


@pytest.mark.parametrize("where", ["end_phase", "end_task", "serving", "begin_task", "train_step"])
def test_interrupted_within_a_change_it_has_no_state(where, monkeypatch):
    """A run that is neither before nor after a task refuses to be saved or to go on."""
    run = CONFIG.begin(tiny_tasks(2), BACKBONE)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(run)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="interrupted inside a step"):
        run.state_dict()
    with pytest.raises(CheckpointError, match="interrupted inside a step"):
        run_to_end(run)


def test_divergence_is_named():
    run = replace(CONFIG, learning_rate=1e30).begin(tiny_tasks(2), BACKBONE)
    with pytest.raises(TrainingDiverged, match="epoch 1, step"):
        run_to_end(run)


CHANGES = {
    "config": lambda tasks, backbone: (tasks, backbone, replace(CONFIG, momentum=0.5), 0),
    "seed": lambda tasks, backbone: (tasks, backbone, CONFIG, 1),
    "tasks": lambda tasks, backbone: (tasks[::-1], backbone, CONFIG, 0),
    "fewer tasks": lambda tasks, backbone: (tasks[:1], backbone, CONFIG, 0),
    "backbone": lambda tasks, backbone: (tasks, replace(backbone, widths=(10, 7)), CONFIG, 0),
    "images": lambda tasks, backbone: ((tasks[0].only(torch.arange(30)), tasks[1]), backbone, CONFIG, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoints_of_other_runs_are_refused(change, tmp_path):
    CONFIG.begin(tiny_tasks(2), BACKBONE).save(tmp_path / "checkpoint.pt")
    tasks, backbone, config, seed = CHANGES[change](tiny_tasks(2), BACKBONE)
    other = config.begin(tasks, backbone, seed)
    with pytest.raises(CheckpointError):
        other.load(tmp_path / "checkpoint.pt")


def test_the_header_is_plain():
    header = CONFIG.begin(tiny_tasks(2), BACKBONE).header()
    assert json.loads(json.dumps(header)) == header
    assert header["method"] == "plain"
    assert header["backbone"] == {"name": "perceptron", "widths": [10, 8], "in_channels": 1, "size": 8}


def test_reports_are_plain():
    run = run_to_end(CONFIG.begin(tiny_tasks(2), BACKBONE))
    for report in run.history[2::3]:
        assert ContinualReport.from_state(json.loads(json.dumps(report.to_state()))) == report


# --- refused ----------------------------------------------------------------------------------------------------------


def test_no_task():
    with pytest.raises(InvalidInput, match="tasks is empty"):
        CONFIG.begin([], BACKBONE)


@pytest.mark.parametrize("backbone", [replace(BACKBONE, size=16), replace(VGG, in_channels=3)])
def test_images_of_another_shape(backbone):
    with pytest.raises(InvalidInput, match="The backbone is for images of . channels and .* the tasks have 1 and 8"):
        CONFIG.begin(tiny_tasks(2), backbone)


def test_tasks_that_differ_in_shape():
    with pytest.raises(InvalidInput, match="the tasks have 1 and 8, 1 and 16"):
        CONFIG.begin([*tiny_tasks(1), *tiny_tasks(2, side=16)[1:]], BACKBONE)


def test_several_processes(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InvalidInput, match="learned in one process"):
        CONFIG.begin(tiny_tasks(2), BACKBONE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0"),
        ({"clip": -1.0}, "clip must be above 0"),
        ({"momentum": -0.1}, "momentum and weight_decay must be at least 0"),
        ({"weight_decay": math.nan}, "momentum and weight_decay must be at least 0"),
    ],
)
def test_wrong_numbers(wrong, message):
    with pytest.raises(InvalidInput, match=message):
        replace(CONFIG, **wrong)


# --- backbones --------------------------------------------------------------------------------------------------------


def test_a_backbone_is_its_name_widths_and_seed():
    one, same, other = (BACKBONE.build(3, seed) for seed in (5, 5, 6))
    weights = [network.layers[0].linear.weight for network in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not one.training
    assert list(one.neurons().values()) == [10, 8]
    assert list(BACKBONE.build(3, 5, [4, 9]).neurons().values()) == [4, 9]
    assert list(Backbone("perceptron", None, 1, 8).build(2, 0).neurons().values()) == [64, 64]


def test_building_draws_from_no_global_stream():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    VGG.build(2, 1)
    assert torch.equal(torch.rand(3), expected)


def test_unknown_backbones():
    with pytest.raises(InvalidInput, match="Unknown growable network 'vgg12'. Did you mean"):
        Backbone("vgg12").build(2, 0)
    with pytest.raises(InvalidInput):
        Backbone("vgg11", (3, 3)).build(2, 0)
