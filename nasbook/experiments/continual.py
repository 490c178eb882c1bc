"""Chapter 7: learning one task after the other (Firefly, Fig. 5, Table 2).

All learners in one run: the same tasks, images and epochs; a seed is a division of the classes into tasks. Firefly
begins thin and grows; every other learner has the full backbone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from nasbook.analysis import average_accuracy, forgetting
from nasbook.continual import Backbone, ContinualConfig, ContinualRun, Task, progressive_parameters, split_classes
from nasbook.data import ImageData
from nasbook.experiments.continual_scale import ContinualScale, continual_scale
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import Scale
from nasbook.experiments.verdicts import LEVEL, Verdict, mean_and_error, one_sided_p, trend
from nasbook.methods import LEARNERS
from nasbook.methods.firefly_continual import FireflyContinual
from nasbook.networks import scaled_widths
from nasbook.seeding import fold_seed

__all__ = [
    "CONTINUAL_LEARNERS",
    "PAPER_TABLE_2",
    "average_over_tasks",
    "backbone_of",
    "continual_config",
    "sizes",
    "tasks_of",
    "with_baselines",
]

CHAPTER = "07-firefly-cells-and-continual-learning"

CONTINUAL_LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Firefly": ("firefly-continual", {}),
    "random growth": ("firefly-continual", {"selection": "random"}),
    "mask only": ("firefly-continual", {"growths": 0}),
    "individual": ("individual", {}),
    "individual, thin": ("individual", {}),
    "fine-tuned": ("fine-tuned", {}),
    "fine-tuned, slowly": ("fine-tuned", {"later_rate": 0.1}),
    "EWC": ("ewc", {}),
    "LwF": ("lwf", {}),
    "PackNet": ("packnet", {}),
    "CPG": ("cpg", {}),
}
"""What stands in Fig. 5 and Table 2, by the words of figures: the name in :data:`nasbook.methods.LEARNERS`, and what is
set otherwise. Controls of ours: random growth chooses among the same candidates at random, mask only does not grow,
thin individual networks are as small as Firefly's first one, and slow fine-tuning has LwF's rate after the first task.
"""

THIN = ("Firefly", "random growth", "mask only", "individual, thin")
"""Those that begin with the thin backbone; all others have the full one."""

PAPER_TABLE_2 = {
    "individual": (2565, None, 88.85),
    "CPG": (289, 420, 90.75),
    "CPG without fully connected layers": (28, 420, 90.58),
    "Firefly": (26, 80, 91.03),
}
"""The paper's Table 2: "Param (M)" (megabytes, by our reckoning), extra growing epochs, average accuracy in %."""


def backbone_of(scale: Scale, data: ImageData, *, thin: bool) -> Backbone:
    """The network that learners begin with: the thin one of Firefly, or the full one of all others."""
    own = continual_scale(scale)
    share = own.thin_share if thin else own.full_share
    return Backbone(own.backbone, scaled_widths(own.backbone, share), data.channels, data.size)


def continual_config(method: str, scale: Scale, **changed: Any) -> ContinualConfig:
    """A learner at a scale.

    Args:
        method: as in :data:`nasbook.methods.LEARNERS`.
        scale: any; Chapter 7's numbers are looked up.
        changed: fields to set otherwise.
    """
    own = continual_scale(scale)
    common = {"epochs": own.task_epochs, "batch_size": own.task_batch}
    numbers: dict[str, dict[str, Any]] = {
        "firefly-continual": {
            "neurons": own.chosen,
            "new_neurons": own.candidates,
            "mask_epochs": own.mask_epochs,
            "mask_rate": own.mask_rate,
            "direction_epochs": own.direction_epochs,
        },
        "ewc": {"images": own.fisher_images},
        "lwf": {"warm_up_epochs": max(1, round(0.1 * own.task_epochs))},
        # Shares of the epochs as in CPG's code for CIFAR-100, which has 100, 20 and 30.
        "packnet": {"pruned": None, "retraining_epochs": max(1, round(0.3 * own.task_epochs))},
        "cpg": {
            "pruning_epochs": max(1, round(0.2 * own.task_epochs)),
            "retraining_epochs": max(1, round(0.3 * own.task_epochs)),
            "pruning_every": own.pruning_every,
            "validation_share": own.held_out,
        },
    }
    return LEARNERS[method](**{**common, **numbers.get(method, {}), **changed})


def tasks_of(scale: Scale, data: ImageData, seed: int, *, few: bool = False) -> tuple[Task, ...]:
    """The tasks of one division: those of Table 2, or the fewer ones of Fig. 5a."""
    own = continual_scale(scale)
    seed = fold_seed(seed, "division")
    if few:
        return split_classes(data, own.few_tasks, seed=seed)
    return split_classes(data, own.tasks, seed=seed)[: own.seen_tasks]


def _learn(workplace: Workplace, label: str, tasks: tuple[Task, ...], **changed: Any) -> dict[str, Any]:
    """One learner on all tasks, and what came out."""
    method, own = CONTINUAL_LEARNERS[label]
    config = continual_config(method, workplace.scale, **{**own, **changed})
    backbone = backbone_of(workplace.scale, tasks[0].data, thin=label in THIN)
    run = config.begin(tasks, backbone, fold_seed(workplace.seed, "learner"))
    workplace.drive(run, " ".join([label, *(f"{name} {value}" for name, value in changed.items())]))
    return _found(run, workplace.seed)


def _found(run: ContinualRun, seed: int) -> dict[str, Any]:
    """Plain values of a learner that has seen all tasks. The first seed also keeps what its film shows."""
    found: dict[str, Any] = {
        "accuracies": [[round(value, 4) for value in row] for row in run.accuracies],
        "memory": list(run.memory),
        "seconds": round(sum(report.seconds for report in run.history), 1),
        "epochs": run.epoch,
        "extra_epochs": round(run.epoch / len(run.tasks) - run.config.epochs, 2),
    }
    if isinstance(run, FireflyContinual):
        master = run.master
        found["neurons"] = sum(master.neurons().values())
        found["growths"] = [
            {
                "task": growth.task,
                "unlocked": list(growth.unlocked.values()),
                "new": list(growth.new.values()),
                "predicted": growth.predicted,
                "change": growth.loss_after - growth.loss_before,
            }
            for growth in run.growths
        ]
        found["composition"] = [list(master.composition(task)) for task in range(len(master))]
        if seed == 0:
            found["master"] = master.describe()
    return found


def with_baselines(workplace: Workplace) -> dict[str, Any]:
    """All learners on all tasks: Table 2 and Fig. 5b."""
    tasks = tasks_of(workplace.scale, workplace.data, workplace.seed)
    values: dict[str, Any] = _about(workplace, tasks)
    for label in CONTINUAL_LEARNERS:
        values[label] = _learn(workplace, label, tasks)
    return values


def sizes(workplace: Workplace) -> dict[str, Any]:
    """Fig. 5a: Firefly by the number of neurons that a growth adds, and the baselines, on fewer tasks."""
    scale = continual_scale(workplace.scale)
    tasks = tasks_of(scale, workplace.data, workplace.seed, few=True)
    values: dict[str, Any] = _about(workplace, tasks)
    values["Firefly"] = [
        {"chosen": number, **_learn(workplace, "Firefly", tasks, neurons=number)} for number in scale.chosen_numbers
    ]
    for label in CONTINUAL_LEARNERS:
        if label not in THIN:
            values[label] = _learn(workplace, label, tasks)
    return values


def _about(workplace: Workplace, tasks: tuple[Task, ...]) -> dict[str, Any]:
    data = workplace.data
    full = backbone_of(workplace.scale, data, thin=False)
    return {
        "images": [len(data.train_labels), len(data.test_labels)],
        "classes": [list(task.classes) for task in tasks],
        "progressive": progressive_parameters(full, [task.data.classes for task in tasks]),
    }


def average_over_tasks(record: Record, label: str) -> np.ndarray:
    """Average accuracy over all tasks at the end, one number a seed."""
    return np.array([average_accuracy(value["accuracies"]) for value in record.values(label)])


def _sizes_at_end(record: Record, label: str) -> np.ndarray:
    return np.array([value["memory"][-1] for value in record.values(label)], dtype=float)


BASELINES = ("individual", "CPG")
"""What the paper's Table 2 has beside Firefly; the claim is judged against them."""


def _judge_continual(record: Record) -> Verdict:
    ours, size = average_over_tasks(record, "Firefly"), _sizes_at_end(record, "Firefly")
    right, significant, parts = True, True, []
    for label in BASELINES:
        theirs, their_size = average_over_tasks(record, label), _sizes_at_end(record, label)
        p_accuracy, p_size = one_sided_p(ours - theirs), one_sided_p(their_size - size)
        right &= bool((ours - theirs).mean() > 0 and (their_size - size).mean() > 0)
        significant &= p_accuracy < LEVEL and p_size < LEVEL
        parts.append(
            f"{label} {mean_and_error(theirs)} with {their_size.mean():,.0f} (p = {p_accuracy:.2f} for the accuracy, "
            f"{p_size:.2f} for the size)"
        )
    lost = max(float(np.max(forgetting(value["accuracies"]))) for value in record.values("Firefly"))
    numbers = (
        f"Firefly {mean_and_error(ours)} with {size.mean():,.0f} parameters; {'; '.join(parts)}; most forgotten by "
        f"Firefly: {lost:.2%}; {len(record.measurements)} divisions"
    )
    return trend(right, significant, numbers)


def _on_tasks(scale: Scale) -> ContinualScale:
    """Chapter 7's numbers with the set that is divided into tasks."""
    own = continual_scale(scale)
    return replace(own, data=own.continual_data, train_images=own.continual_images, test_images=None)


def _register(name: str, title: str, run: Callable[[Workplace], dict[str, Any]], judges: Any) -> None:
    register(Experiment(name, title, CHAPTER, run, judges, scaled=_on_tasks))


_register(
    "continual-tasks",
    "Fig. 5b, Table 2: all learners, task after task",
    with_baselines,
    {"firefly.continual": _judge_continual},
)
_register("continual-sizes", "Fig. 5a: accuracy against size, by the number of neurons that a growth adds", sizes, {})
