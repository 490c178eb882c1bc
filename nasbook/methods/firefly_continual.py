"""Firefly descent for continual learning (Wu, Liu, Stone & Liu, NeurIPS 2020; §2.4, appendix A, Algorithm 2).

Chapter 7. All networks of all tasks live in one master network. A new task

1. learns a binary mask over the locked master network, f_t = f_{1:t−1}[m_t], with a classifier of its own;
2. grows: locked neurons may be unlocked, which copies them, and new neurons may be added; step one and step two of
   firefly descent (Eq. 4, 5) choose a number of them; then what is its own trains. Again, while it can't solve the
   task;
3. is recorded: its mask, and f_{1:t} = f_{1:t−1} ∪ f_t.

The first task trains the backbone, which is all its own, and grows by splits and new neurons.

What the paper leaves open, and what we do:

* How a mask is learned: see :mod:`nasbook.continual.masks`. How locked neurons read new ones and copies:
  :mod:`nasbook.continual.ownership`.
* A batch norm's scale and shift belong to the neuron and are locked with it; its running statistics are the task's.
* Algorithm 2 grows "while f_t can not solve task t sufficiently well". The paper's experiments grow once a task (B.4);
  here a task grows at most ``growths`` times, and not any more once it is ``sufficient`` on held-out training images.
* Step one moves gates and directions only, as in the rest of the paper; the epochs after the selection train all that
  the task owns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor, nn

from nasbook.continual import (
    Backbone,
    ContinualConfig,
    ContinualRun,
    LockedEntries,
    MaskedNetwork,
    MasterNetwork,
    Phase,
    Slots,
    Task,
    all_owned,
    free_entries,
    hold_out,
)
from nasbook.data import evaluation_batches
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.growth import (
    Budget,
    CandidateDescent,
    OvergrownNetwork,
    integrated_gradients,
    select,
    start,
    step_one,
    step_two,
)
from nasbook.growth.firefly import MIDPOINTS
from nasbook.growth.overgrown import CandidateKind
from nasbook.networks import Growable
from nasbook.seeding import fold_seed, generator
from nasbook.training import Batch, evaluate

__all__ = ["Config", "FireflyContinual", "TaskGrowth"]

MASK, DIRECTIONS, TRAINING = "mask", "directions", "training"


@dataclass(frozen=True)
class Config(ContinualConfig):
    """Firefly descent on a sequence of tasks. Defaults are the paper's for 20 tasks (B.4); what it leaves open is said.

    For 10 tasks the paper chooses 32, 128, 196, 256, 320, 384, 448 or 512 neurons (Fig. 5a).
    """

    method: ClassVar[str] = "firefly-continual"

    neurons: int = 256
    """Copies and new neurons that a growth adds, over all layers."""
    new_neurons: int = 15
    """m': new neurons that each layer may choose from."""
    growths: int = 1
    """Most growths of a task."""
    first_growths: int = 0
    """Most growths of the first task, whose backbone is all its own. The paper gives no number."""
    sufficient: float = 1.0
    """Accuracy on the held-out images from which a task does not grow any more: "sufficiently well" (Algorithm 2)."""
    validation_share: float = 0.0
    """Training images of each task that decide what is sufficient; 0 for none, and then all growths take place."""
    mask_epochs: int = 30
    """Passes over the images while the mask is learned. "Several epochs until convergence" (Algorithm 2); 30 and the 50
    of the over-grown network are the 80 of Table 2."""
    mask_rate: float = 1e-4
    """Learning rate of the scores, by Adam (Piggyback). Not in the paper."""
    direction_epochs: int = 50
    """Passes over the images in step one."""
    direction_rate: float = 0.1
    """Length of a direction's first step in step one; see :class:`~nasbook.growth.CandidateDescent`."""
    radius: float = 0.01
    """ϵ, the largest gate. Not in the paper."""
    points: int = MIDPOINTS
    """n: points of the integrated gradient."""
    selection: Literal["firefly", "random"] = "firefly"
    """How candidates are chosen: by Eq. 5, or at random among the same trained candidates (a control of ours)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            neurons=self.neurons,
            mask_epochs=self.mask_epochs,
            mask_rate=self.mask_rate,
            direction_epochs=self.direction_epochs,
            direction_rate=self.direction_rate,
            radius=self.radius,
            points=self.points,
        )
        if min(self.new_neurons, self.growths, self.first_growths) < 0:
            raise InvalidInput("new_neurons, growths and first_growths must be 0 or more.")
        if self.selection not in ("firefly", "random"):
            raise unknown_name("selection", self.selection, ("firefly", "random"))
        if not 0 <= self.validation_share < 1:
            raise InvalidInput(f"validation_share must be at least 0 and below 1, got {self.validation_share}.")
        if not 0 < self.sufficient <= 1:
            raise InvalidInput(f"sufficient must be above 0 and at most 1, got {self.sufficient}.")

    @property
    def extra_epochs(self) -> int:
        return self.mask_epochs + self.growths * self.direction_epochs

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> FireflyContinual:
        return FireflyContinual(tasks, self, backbone, seed=seed)


@dataclass(frozen=True)
class TaskGrowth:
    """What one growth of a task did."""

    task: int
    """Index of the task."""
    unlocked: dict[str, int]
    """Locked neurons of each width that were copied."""
    new: dict[str, int]
    """New neurons of each width."""
    splits: dict[str, int]
    """Splits of each width; only the first task splits."""
    predicted: float
    """Change of the training loss that Eq. 5 predicts."""
    loss_before: float
    """Training loss before, in evaluation mode."""
    loss_after: float
    """Training loss of the grown network, in evaluation mode, before it trains."""


class FireflyContinual(ContinualRun):
    """Learns a sequence of tasks by firefly descent; :attr:`master` is what it has learned.

    Args:
        tasks: in the order in which they come.
        config: of the method.
        backbone: the first task's network, a thin one.
        seed: of initial weights, data order, directions and masks.
    """

    config: Config

    def __init__(self, tasks: Sequence[Task], config: Config, backbone: Backbone, *, seed: int = 0) -> None:
        self.master = MasterNetwork(backbone)
        self.growths: list[TaskGrowth] = []
        self.enough = False
        """Whether the running task does not grow any more."""
        self.slots: dict[str, Slots] = {}
        """Where the neurons of the running task's network come from."""
        self.plain: Growable
        """The running task's network, without what a phase puts around it."""
        self._masked: MaskedNetwork | None = None
        self._scores: torch.optim.Optimizer | None = None
        self._overgrown: OvergrownNetwork | None = None
        self._descent: CandidateDescent | None = None
        self._locked: LockedEntries | None = None
        self._deciding: list[Task] | None = None  # the images that decide whether a task is solved
        if config.validation_share:
            divided = [
                hold_out(task, config.validation_share, fold_seed(seed, "sufficient", number))
                for number, task in enumerate(tasks)
            ]
            tasks, self._deciding = [trained for trained, _ in divided], [held_out for _, held_out in divided]
        super().__init__(tasks, config, backbone, seed=seed)

    # -- the phases of a task -----------------------------------------------------------------------------------------

    def most_phases(self, task: int) -> Sequence[Phase]:
        config = self.config
        growth = [Phase(DIRECTIONS, config.direction_epochs), Phase(TRAINING, config.epochs)]
        if task == 0:
            return [Phase(TRAINING, config.epochs), *growth * config.first_growths]
        if not config.growths:
            return [Phase(MASK, config.mask_epochs)]
        return [Phase(MASK, config.mask_epochs), *growth * config.growths]

    def phases(self) -> Sequence[Phase]:
        whole = self.most_phases(self.task)
        return whole[: self.phase] if self.enough and self.phase < len(whole) else whole

    def begin_task(self) -> None:
        self.enough = False
        classes = self.tasks[self.task].data.classes
        if self.task == 0:
            self.plain = self.backbone.build(classes, self.task_seed())
            self.slots = all_owned(self.plain)
        else:
            self.plain = self.master.whole(classes, self.task_seed())
            self.slots = {name: Slots(tuple(range(count))) for name, count in self.master.neurons().items()}

    def begin_phase(self) -> None:
        self.plain = self.fitted(self.plain)
        self.optimizer = self._scores = self._descent = None
        self._masked = self._overgrown = self._locked = None
        name = self.phases()[self.phase].name
        if name == MASK:
            self.network = self._masked = MaskedNetwork(self.plain)
            self.optimizer = self.sgd(self._masked.head())
            self._scores = torch.optim.Adam(self._masked.scores.parameters(), self.config.mask_rate)
        elif name == DIRECTIONS:
            self.network = self._overgrown = self._with_candidates()
            start(self._overgrown, self.config.radius)
            self._descent = CandidateDescent(self._overgrown, self.config.radius, self.config.direction_rate)
        else:
            self.network = self.plain
            self._locked = LockedEntries(self.plain, free_entries(self.plain, self.slots))
            self.optimizer = self.sgd(self.plain.parameters())

    def _with_candidates(self) -> OvergrownNetwork:
        first = self.task == 0
        return OvergrownNetwork(
            self.plain,
            new=self.config.new_neurons,
            splits=first,
            unlocks={} if first else {name: range(len(slots.locked)) for name, slots in self.slots.items()},
            generator=generator(self.task_seed("directions", self.phase)),
        ).to(self.device)

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        if self._overgrown is not None and self._descent is not None:
            batch = images, labels
            return step_one(self._overgrown, self._descent, batch, F.cross_entropy, self.config.radius)
        assert self.optimizer is not None
        self.network.zero_grad()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        if self._scores is not None:
            self._scores.step()
        if self._locked is not None:
            self._locked.clear_gradients()
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], self.config.clip)
        self.optimizer.step()
        if self._locked is not None:
            self._locked.restore()
        return loss.detach(), logits.detach()

    def end_phase(self) -> None:
        if self._masked is not None:
            self.plain, chosen = self._masked.chosen()
            self.slots = {width: Slots(tuple(numbers.tolist())) for width, numbers in chosen.items()}
        if self._overgrown is not None:
            self._grow(self._overgrown)
        else:
            self.enough = self._solves()

    def _solves(self) -> bool:
        """Whether the task is solved sufficiently well by the images that were held out for that."""
        if self._deciding is None:
            return False
        data = self._deciding[self.task].data
        network = self.fitted(self.plain)
        held_out = data.train_images, data.train_labels
        return evaluate(network, *held_out, data, channels_last=self._channels_last)[1] >= self.config.sufficient

    def _grow(self, overgrown: OvergrownNetwork) -> None:
        before = self.plain
        scores = integrated_gradients(overgrown, self._batches(), F.cross_entropy, self.config.points)
        choose = select if self.config.selection == "firefly" else self._at_random
        descent = step_two(overgrown, scores, Budget(self.config.neurons), self.config.radius, choose)
        chosen = [overgrown.candidates[number] for number in descent.chosen]

        def taken(kind: CandidateKind) -> dict[str, list[int]]:
            return {name: [c.index for c in chosen if (c.kind, c.width) == (kind, name)] for name in self.slots}

        unlocked, new, splits = taken("unlock"), taken("new"), taken("split")
        after = self.fitted(descent.grown.network)
        growth = TaskGrowth(
            self.task,
            unlocked={name: len(found) for name, found in unlocked.items()},
            new={name: len(found) for name, found in new.items()},
            splits={name: len(found) for name, found in splits.items()},
            predicted=descent.predicted,
            loss_before=self._loss(before),
            loss_after=self._loss(after),
        )
        self.growths.append(growth)
        self.plain = after
        if self.task == 0:
            self.slots = all_owned(after)
        else:
            self.slots = {
                name: slots.grown(unlocked[name], len(new[name])) for name, slots in self.slots.items()
            }

    def _at_random(
        self, changes: Float64[ndarray, " candidates"], widths: Sequence[str], budget: Budget, empty: Sequence[str]
    ) -> list[int]:
        """As many candidates as Eq. 5 may choose, any of them."""
        drawn = torch.randperm(len(changes), generator=generator(self.task_seed("random selection", self.phase)))
        return sorted(drawn[: budget.neurons].tolist())

    def _batches(self) -> Iterator[Batch]:
        data = self.tasks[self.task].data
        return evaluation_batches(data.train_images, data.train_labels, 512, data.mean, data.std)

    def _loss(self, network: Growable) -> float:
        data = self.tasks[self.task].data
        return evaluate(network, data.train_images, data.train_labels, data, channels_last=self._channels_last)[0]

    # -- what is learned ----------------------------------------------------------------------------------------------

    def end_task(self) -> None:
        task = self.tasks[self.task]
        self.master.record(task.name, task.classes, self.plain, self.slots)

    def serving(self, task: int) -> nn.Module:
        return self.master.network(task)

    def parameters(self) -> int:
        return self.master.parameters()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Any]:
        learned = {"master": self.master.state_dict(), "growths": [vars(growth) for growth in self.growths]}
        if self.finished:  # no task is running
            return learned
        parts = (self.optimizer, self._scores, self._descent)
        return {
            **learned,
            "enough": self.enough,
            "slots": {name: [list(slots.locked), list(slots.copies)] for name, slots in self.slots.items()},
            "plain": self.plain.state_dict(),
            "network": self.network.state_dict(),
            "optimizers": [None if part is None else part.state_dict() for part in parts],
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.master = MasterNetwork.from_state(state["master"])
        self.growths = [TaskGrowth(**growth) for growth in state["growths"]]
        if self.finished:
            return
        self.enough = state["enough"]
        self.slots = {
            name: Slots(tuple(locked), tuple(copies)) for name, (locked, copies) in state["slots"].items()
        }
        classes = self.tasks[self.task].data.classes
        self.plain = self.backbone.build(classes, 0, [len(slots) for slots in self.slots.values()])
        self.plain.load_state_dict(state["plain"])
        self.begin_phase()
        self.network.load_state_dict(state["network"])
        parts = (self.optimizer, self._scores, self._descent)
        for part, kept in zip(parts, state["optimizers"], strict=True):
            if part is not None:
                part.load_state_dict(kept)
