"""CPG: Compacting, Picking and Growing (Hung et al. 2019a), the strongest baseline of Firefly's Fig. 5 and Table 2.

A task trains the weights that are free, and picks weights of earlier tasks by a binary mask that it learns with them (a
Piggyback mask; Mallya et al. 2018). While it misses its accuracy goal, the network is made wider and the task begins
again. Then its weights are pruned step by step, as long as the goal holds, so that much is free for the next task.

Numbers and order are those of the authors' code for CIFAR-100 in 20 tasks. Three things differ, and the first two can
matter: decisions are made on training images that are held out (theirs look at the test images); pruning ends with the
first step that misses the goal (theirs goes through all steps and takes the last one that reaches it); and there is no
condition on the training accuracy (theirs asks for 95 %). There are no hidden fully connected layers: this is Table 2's
"CPG w/o FC".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.func import functional_call

from nasbook.continual.backbone import Backbone
from nasbook.continual.masks import INITIAL_SCORE, THRESHOLD
from nasbook.continual.packing import PackingRun
from nasbook.continual.run import ContinualConfig, Phase
from nasbook.continual.tasks import Task, hold_out
from nasbook.errors import InvalidInput, require_positive
from nasbook.networks import Growable
from nasbook.seeding import fold_seed
from nasbook.training import evaluate

__all__ = ["CPG", "CPGConfig", "PickingNetwork", "TaskCompaction", "gradual_sparsity"]

INDIVIDUAL, PICKING, PRUNING, RETRAINING = "individual", "picking", "pruning", "retraining"

SLACK = 1e-9
"""Accuracies that differ by less are equal."""


@dataclass(frozen=True)
class CPGConfig(ContinualConfig):
    """How CPG learns. Defaults are those of the authors' code for CIFAR-100."""

    method: ClassVar[str] = "cpg"

    goal: float | None = None
    """Accuracy on the held-out images that each task has to reach. None for that of an individual network of the first
    widths, which is trained for ``epochs`` before and then thrown away."""
    allowed_loss: float = 0.0
    """By how much a task may miss the goal."""
    validation_share: float = 0.1
    """Training images of each task that are held out to compare with the goal. The code takes test images instead."""
    mask_rate: float = 5e-4
    """Learning rate of the scores of earlier tasks' weights, by Adam."""
    mask_share: float = 0.7
    """Part of the epochs in which the scores move; then the picked weights stay picked."""
    sparsities: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """Goals of the steps of pruning: share of the weights that were free before the task which are free after it."""
    pruning_epochs: int = 20
    """Passes over the images in each step of pruning."""
    pruning_share: float = 0.2
    """Part of them in which weights are pruned, more and more slowly; in the rest they are retrained."""
    pruning_every: int = 10
    """Training steps between two prunings."""
    pruning_rate: float = 0.1
    """Learning rate while pruning and retraining, as a share of the one before."""
    retraining_epochs: int = 30
    """Passes over the images, after pruning, in which later tasks pick anew; 0 for none. What does not gain by it stays
    as it was."""
    retraining_mask_rate: float = 1e-4
    """Learning rate of the scores then."""
    expansion: float = 0.5
    """By how much a layer grows when a goal is missed, as a share of its first width."""
    largest: float = 1.5
    """Widest network, in first widths; 1 for no expansion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sparsities", tuple(self.sparsities))  # a checkpoint or JSON has a list
        require_positive(
            mask_rate=self.mask_rate,
            mask_share=self.mask_share,
            pruning_epochs=self.pruning_epochs,
            pruning_share=self.pruning_share,
            pruning_every=self.pruning_every,
            pruning_rate=self.pruning_rate,
            retraining_mask_rate=self.retraining_mask_rate,
            expansion=self.expansion,
        )
        if self.goal is not None and not 0 <= self.goal <= 1:
            raise InvalidInput(f"goal must be an accuracy of 0..1, or None to measure it; got {self.goal}.")
        if not 0 < self.validation_share < 1:
            raise InvalidInput(f"validation_share must be above 0 and below 1, got {self.validation_share}.")
        if max(self.mask_share, self.pruning_share) > 1:
            raise InvalidInput("mask_share and pruning_share must be at most 1.")
        if any(not start < end for start, end in pairwise((0.0, *self.sparsities, 1.0))):
            raise InvalidInput(f"sparsities must ascend between 0 and 1, got {list(self.sparsities)}.")
        if self.allowed_loss < 0 or self.retraining_epochs < 0:
            raise InvalidInput("allowed_loss and retraining_epochs must be 0 or more.")
        if self.largest < 1:
            raise InvalidInput(f"largest must be 1 or more, got {self.largest}: networks don't get narrower.")

    @property
    def expansions(self) -> int:
        """How many times a network can be made wider."""
        return math.floor((self.largest - 1) / self.expansion + SLACK)

    @property
    def extra_epochs(self) -> int:
        """Most epochs of pruning and retraining of a task; not those of beginning again in a wider network."""
        return len(self.sparsities) * self.pruning_epochs + self.retraining_epochs

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> CPG:
        return CPG(tasks, self, backbone, seed=seed)


class PickingNetwork(nn.Module):
    """A network in which weights of earlier tasks are switched on and off by a mask that can be learned.

    Each has a real score and is in where that is above a threshold; the gradient passes through that step unchanged. At
    first all are in.

    Args:
        network: taken over, not copied.
        earlier: which weights are those of earlier tasks, by the names of parameters; on the network's device.
    """

    def __init__(self, network: Growable, earlier: Mapping[str, Bool[Tensor, "..."]]) -> None:
        super().__init__()
        self.network = network
        self._earlier = dict(earlier)
        self._names = [name for name, mask in earlier.items() if mask.any()]
        self.scores = nn.ParameterList([
            nn.Parameter(torch.full_like(network.get_parameter(name), INITIAL_SCORE)) for name in self._names
        ])

    def picked(self) -> dict[str, Bool[Tensor, "..."]]:
        """Which weights of earlier tasks are in."""
        scores = dict(zip(self._names, self.scores, strict=True))
        return {
            name: mask & (scores[name] > THRESHOLD) if name in scores else torch.zeros_like(mask)
            for name, mask in self._earlier.items()
        }

    def forward(self, images: Tensor) -> Tensor:
        """The masked network's logits."""
        masked = {}
        for name, scores in zip(self._names, self.scores, strict=True):
            weight = self.network.get_parameter(name)
            switches = (scores > THRESHOLD).to(weight.dtype) + (scores - scores.detach())
            masked[name] = weight * torch.where(self._earlier[name], switches, 1)
        return functional_call(self.network, masked, (images,))


@dataclass(frozen=True)
class TaskCompaction:
    """What became of one task. Accuracies are those on the held-out images."""

    task: int
    """Index of the task."""
    goal: float
    """Accuracy that was to be reached."""
    trained: float
    """Accuracy before pruning, in the last network."""
    kept: float
    """Accuracy of what is kept."""
    sparsity: float
    """Share of the weights that were free before the task which are free after it: the last step of pruning kept."""
    expansions: int
    """How many times the network has been made wider, by this task and all before."""


class CPG(PackingRun):
    """Learns a sequence of tasks by CPG; :attr:`packed` is what it has learned.

    Args:
        tasks: in the order in which they come.
        config: of the method.
        backbone: the first network; it can get wider.
        seed: of initial weights, data order and the images that are held out.
    """

    config: CPGConfig

    def __init__(self, tasks: Sequence[Task], config: CPGConfig, backbone: Backbone, *, seed: int = 0) -> None:
        divided = [
            hold_out(task, config.validation_share, fold_seed(seed, "held out", number))
            for number, task in enumerate(tasks)
        ]
        self.held_out = tuple(held_out for _, held_out in divided)
        """The images of each task that decide."""
        self.compactions: list[TaskCompaction] = []
        """What became of each task."""
        self.expansions = 0
        """How many times the network was made wider."""
        self.goal = 0.0
        """Of the running task."""
        self.trained = 0.0
        """Its accuracy before pruning."""
        self.kept = 0.0
        """Its accuracy as it would be kept now."""
        self.pruned = 0
        """Steps of pruning that are kept."""
        self.picking: PickingNetwork
        """The running task's network, with the mask over earlier tasks' weights."""
        self._course: list[str] = []  # names of the running task's phases, those to come as far as they are decided
        self._best: dict[str, Any] = {}  # the state that would be kept now
        self._scores: torch.optim.Optimizer | None = None
        super().__init__([trained for trained, _ in divided], config, backbone, seed=seed)

    # -- the phases of a task -----------------------------------------------------------------------------------------

    def most_phases(self, task: int) -> Sequence[Phase]:
        config = self.config
        names = [
            *[INDIVIDUAL] * (config.goal is None),
            *[PICKING] * (1 + config.expansions),
            *[PRUNING] * len(config.sparsities),
            *[RETRAINING] * (task > 0 and config.retraining_epochs > 0),
        ]
        return [self._phase(name) for name in names]

    def phases(self) -> Sequence[Phase]:
        return [self._phase(name) for name in self._course]

    def _phase(self, name: str) -> Phase:
        epochs = {PRUNING: self.config.pruning_epochs, RETRAINING: self.config.retraining_epochs}
        return Phase(name, epochs.get(name, self.config.epochs))

    def begin_task(self) -> None:
        goal = self.config.goal
        self._course = [INDIVIDUAL if goal is None else PICKING]
        self.goal, self.pruned, self._best = goal or 0.0, 0, {}

    def begin_phase(self) -> None:
        name = self._course[self.phase]
        if name == INDIVIDUAL:
            classes = self.tasks[self.task].data.classes
            self.plain = self.fitted(self.backbone.build(classes, self.task_seed(INDIVIDUAL)))
            self.own = {}
        elif name == PICKING:
            self.take_free_weights()
        if name != PRUNING:
            self.picking = self._all_picked()
        self.prepare_phase()

    def prepare_phase(self) -> None:
        name, config = self._course[self.phase], self.config
        self.network = self.picking
        self.train_own(config.pruning_rate if name in (PRUNING, RETRAINING) else 1.0)
        rates = {PICKING: config.mask_rate, RETRAINING: config.retraining_mask_rate}
        scores = list(self.picking.scores)
        self._scores = torch.optim.Adam(scores, rates[name]) if scores and name in rates else None

    def _all_picked(self) -> PickingNetwork:
        alone = self._course[self.phase] == INDIVIDUAL
        free = {} if alone else self.packed.free()
        return PickingNetwork(self.plain, {name: ~mask.to(self.device) for name, mask in free.items()})

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        measured = super().train_step(images, labels, index)
        phase, steps = self.phases()[self.phase], len(self.loader)
        if self._scores is not None and index < self.config.mask_share * phase.epochs * steps:
            self._scores.step()
        if phase.name == PRUNING:
            last = max(1, round(self.config.pruning_share * phase.epochs * steps))
            made = index + 1
            if made == last or (made < last and made % self.config.pruning_every == 0):
                start, end = ((0.0, *self.config.sparsities)[self.pruned + n] for n in (0, 1))
                self.prune(gradual_sparsity(start, end, made / last))
        return measured

    def end_phase(self) -> None:
        name, accuracy = self._course[self.phase], self._accuracy()
        if name == INDIVIDUAL:
            self.goal = accuracy
            self._course.append(PICKING)
        elif name == PICKING:
            if not self._reached(accuracy) and self.expansions < self.config.expansions:
                self._expand()
                self._course.append(PICKING)
                return
            self.trained = accuracy
            self._keep(accuracy)
            if any(own.any() for own in self.own.values()):
                self._go_on_pruning()
        elif name == PRUNING:
            if self._reached(accuracy) or not self._reached(self.trained):
                self.pruned += 1
                self._keep(accuracy)
                self._go_on_pruning()
            else:
                self._go_back()
                self._retrain()
        elif accuracy > self.kept:
            self._keep(accuracy)
        else:
            self._go_back()

    def _go_on_pruning(self) -> None:
        """One more step, if there is one.

        A task that has missed its goal in the widest network has none to hold. As in the authors' code, it is pruned
        until it has left the later tasks their fair share.
        """
        if self.pruned < len(self.config.sparsities) and (self._reached(self.trained) or not self._fair()):
            self._course.append(PRUNING)
        else:
            self._retrain()

    def _fair(self) -> bool:
        """Whether what is free would give each later task as much as this one keeps."""
        later = len(self.tasks) - self.task - 1
        return (0.0, *self.config.sparsities)[self.pruned] >= later / (later + 1) - SLACK

    def _retrain(self) -> None:
        if self.task > 0 and self.config.retraining_epochs:
            self._course.append(RETRAINING)

    def _reached(self, accuracy: float) -> bool:
        return accuracy + self.config.allowed_loss >= self.goal - SLACK

    def _expand(self) -> None:
        self.expansions += 1
        factor = 1 + self.expansions * self.config.expansion
        wider = [max(1, round(factor * width)) for width in self._first_widths()]
        self.packed.expand(
            [max(new, old) for new, old in zip(wider, self.packed.widths, strict=True)],
            fold_seed(self.seed, "expansion", self.expansions),
        )

    def _accuracy(self) -> float:
        """Of the running network, on the images that are held out."""
        held_out, data = self.held_out[self.task].data, self.tasks[self.task].data
        return evaluate(
            self.network, held_out.train_images, held_out.train_labels, data, channels_last=self._channels_last
        )[1]

    # -- what would be kept -------------------------------------------------------------------------------------------

    def _keep(self, accuracy: float) -> None:
        self.kept = accuracy
        self._best = {
            "plain": {name: value.clone() for name, value in self.plain.state_dict().items()},
            "own": dict(self.own),
            "scores": [scores.detach().clone() for scores in self.picking.scores],
        }

    @torch.no_grad()
    def _go_back(self) -> None:
        self.plain.load_state_dict(self._best["plain"])
        self.own = {name: own.to(self.device) for name, own in self._best["own"].items()}
        for scores, kept in zip(self.picking.scores, self._best["scores"], strict=True):
            scores.copy_(kept)

    def picked(self) -> dict[str, Tensor] | None:
        return self.picking.picked()

    def end_task(self) -> None:
        super().end_task()
        sparsity = (0.0, *self.config.sparsities)[self.pruned]
        self.compactions.append(
            TaskCompaction(self.task, self.goal, self.trained, self.kept, sparsity, self.expansions)
        )

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def running_widths(self) -> tuple[int, ...]:
        return self._first_widths() if self._course[self.phase] == INDIVIDUAL else self.packed.widths

    def method_state(self) -> dict[str, Any]:
        return {
            **super().method_state(),
            "course": list(self._course),
            "compactions": [vars(compaction) for compaction in self.compactions],
            "expansions": self.expansions,
            "accuracies": [self.goal, self.trained, self.kept],
            "pruned": self.pruned,
            "best": dict(self._best),
            "scores": [scores.detach() for scores in self.picking.scores],
            "scores optimizer": None if self._scores is None else self._scores.state_dict(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self._course = list(state["course"])
        self.compactions = [TaskCompaction(**compaction) for compaction in state["compactions"]]
        self.expansions, self.pruned, self._best = state["expansions"], state["pruned"], dict(state["best"])
        self.goal, self.trained, self.kept = state["accuracies"]
        super().load_method_state(state)
        if not self.finished and self._scores is not None:
            self._scores.load_state_dict(state["scores optimizer"])

    @torch.no_grad()
    def load_phase_state(self, state: dict[str, Any]) -> None:
        self.picking = self._all_picked()
        for scores, kept in zip(self.picking.scores, state["scores"], strict=True):
            scores.copy_(kept)

    def _first_widths(self) -> tuple[int, ...]:
        with torch.device("meta"):  # for its shapes only
            return tuple(self.backbone.build(2, 0).neurons().values())


def gradual_sparsity(start: float, end: float, progress: float) -> float:
    """Sparsity while a network is pruned, more and more slowly (Zhu & Gupta 2017, Eq. 1).

    Args:
        start: at progress 0.
        end: at progress 1.
        progress: 0..1.
    """
    return end + (start - end) * (1 - progress) ** 3
