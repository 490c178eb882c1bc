"""Many tasks packed into the weights of one network: what PackNet and CPG share (Mallya & Lazebnik 2018; Hung et al.
2019a).

Every weight of a convolution or a linear layer belongs to the task that trained it, or is free. A task trains free
weights, gives most of them back by pruning the smallest, and leaves the rest fixed for ever. Its network is made of its
own weights and of those of earlier tasks, of all (PackNet) or of those that it picks (CPG); every other weight is zero.

What is no such weight belongs to each task alone: classifier, biases, batch norms with their statistics. PackNet's
paper keeps batch norms fixed after the first task; CPG's code, for both methods, has one for each task, and so have we.
A task's batch norms begin as the last task's have ended.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int16
from torch import Tensor, nn

from nasbook.continual.backbone import Backbone
from nasbook.continual.ownership import LockedEntries, axes_of, statistics_of
from nasbook.continual.run import ContinualConfig, ContinualRun
from nasbook.continual.tasks import Task
from nasbook.errors import InvalidInput
from nasbook.networks import Growable

FREE = 0
"""The owner of a weight that no task has; task number k, from 0, is owner k + 1."""


@dataclass(frozen=True)
class PackedTask:
    """What a packed network keeps for one task beside its weights."""

    name: str
    """Of the task."""
    classes: tuple[int, ...]
    """Labels that its classes have in the whole set."""
    widths: tuple[int, ...]
    """Neurons of each layer when it was learned; later ones stand behind them, and it does not see them."""
    picked: dict[str, Bool[Tensor, "..."]] | None = field(repr=False)
    """Which weights of earlier tasks it uses, by the names of the parameters; None for all."""
    private: dict[str, Tensor] = field(repr=False)
    """Its own parameters: classifier, biases, scale and shift of batch norms."""
    statistics: dict[str, Tensor] = field(repr=False)
    """Running statistics of its batch norms."""


class PackedNetwork:
    """The weights of all tasks, and which task owns each.

    Take a network with :meth:`begin`, train its free weights, :meth:`record` it, and take it out again with
    :meth:`network`, with the same bits for ever.

    Args:
        backbone: what the tasks' networks have in common.

    Raises:
        InvalidInput: the backbone can't be built, or a grouped convolution divides its channels.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        with torch.device("meta"):  # for its shapes only
            network = backbone.build(2, 0)
        self.widths = tuple(network.neurons().values())
        """Neurons of each layer now."""
        self.tasks: list[PackedTask] = []
        self.weights: dict[str, Float[Tensor, "..."]] = {}
        """Of all tasks, by the names of the parameters; a free one is zero, or fresh after :meth:`expand`. Empty before
        the first task."""
        self.owner: dict[str, Int16[Tensor, "..."]] = {
            name: torch.zeros(shape, dtype=torch.int16) for name, shape in packed_shapes(network).items()
        }
        """For each weight :data:`FREE`, or the number of its task counted from 1."""

    # -- looking ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many tasks it knows."""
        return len(self.tasks)

    def free(self) -> dict[str, Bool[Tensor, "..."]]:
        """Which weights no task owns."""
        return {name: owner == FREE for name, owner in self.owner.items()}

    def used(self) -> int:
        """How many weights some task owns."""
        return sum(int((owner != FREE).sum()) for owner in self.owner.values())

    def parameters(self) -> int:
        """Parameters that are kept: all weights of the network, used or free, and what each task has alone.

        So the paper's Table 2 counts CPG: the size of the network. Masks are not among them; see :meth:`mask_bits`.
        """
        return sum(owner.numel() for owner in self.owner.values()) + sum(
            value.numel() for part in self.tasks for value in part.private.values()
        )

    def mask_bits(self) -> int:
        """Bits that say which weights a task uses: whose each weight is, and one a task for each that it could pick."""
        bits = math.ceil(math.log2(len(self.tasks) + 1))
        return bits * sum(owner.numel() for owner in self.owner.values()) + sum(
            int(self._earlier(owner, number).sum())
            for number, part in enumerate(self.tasks)
            if part.picked is not None
            for owner in self.owner.values()
        )

    def network(self, task: int) -> Growable:
        """The network of a task, in evaluation mode, with the bits that it was recorded with.

        Raises:
            InvalidInput: no such task.
        """
        if not 0 <= task < len(self.tasks):
            raise InvalidInput(f"The packed network knows {len(self.tasks)} tasks, numbered from 0; got {task}.")
        part = self.tasks[task]
        network = self.backbone.build(len(part.classes), 0, part.widths)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in part.private:
                    parameter.copy_(part.private[name])
                    continue
                weight, owner = (_corner(of[name], parameter.shape) for of in (self.weights, self.owner))
                earlier = self._earlier(owner, task)
                if part.picked is not None:
                    earlier &= part.picked[name]
                parameter.copy_(torch.where(earlier | (owner == task + 1), weight, 0))
            for name, values in part.statistics.items():
                network.get_buffer(name).copy_(values)
        return network

    @staticmethod
    def _earlier(owner: Int16[Tensor, "..."], task: int) -> Bool[Tensor, "..."]:
        return (owner != FREE) & (owner <= task)

    # -- learning -----------------------------------------------------------------------------------------------------

    def begin(self, classes: int, seed: int) -> Growable:
        """The network with which a new task begins: all weights, a fresh classifier, the last task's batch norms.

        Free weights are zero, as pruning has left them; fresh where the network was expanded, and in the first task.

        Args:
            classes: of the new task.
            seed: of what is fresh.
        """
        network = self.backbone.build(classes, seed, self.widths)
        if not self.tasks:
            return network
        last = self.tasks[-1]
        with torch.no_grad():
            axes = axes_of(network)
            for name, parameter in network.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
                elif axes[name].writes is not None:
                    _corner(parameter, last.private[name].shape).copy_(last.private[name])
            for name, values in last.statistics.items():
                _corner(network.get_buffer(name), values.shape).copy_(values)
        return network

    def expand(self, widths: Sequence[int], seed: int) -> None:
        """Makes layers wider. New neurons have fresh weights, all of them free; no earlier task sees them.

        Args:
            widths: neurons of each layer, at least as many as now.
            seed: of the new weights.

        Raises:
            InvalidInput: another number of layers, or fewer neurons.
        """
        if len(widths) != len(self.widths) or any(new < old for new, old in zip(widths, self.widths, strict=True)):
            raise InvalidInput(f"A network of widths {list(self.widths)} can't be expanded to {list(widths)}.")
        fresh = dict(self.backbone.build(2, seed, widths).named_parameters())
        for name, owner in self.owner.items():
            self.owner[name] = torch.zeros(fresh[name].shape, dtype=torch.int16)
            _corner(self.owner[name], owner.shape).copy_(owner)
            if self.tasks:
                weight = fresh[name].detach().clone()
                _corner(weight, owner.shape).copy_(self.weights[name])
                self.weights[name] = weight
        self.widths = tuple(widths)

    def record(
        self,
        name: str,
        classes: Sequence[int],
        network: Growable,
        own: Mapping[str, Bool[Tensor, "..."]],
        picked: Mapping[str, Bool[Tensor, "..."]] | None = None,
    ) -> None:
        """Keeps what a task has learned.

        Args:
            name: of the task.
            classes: labels that its classes have in the whole set.
            network: the one that :meth:`begin` gave, after training.
            own: which weights are the task's from now on; those that stay free become zero.
            picked: which weights of earlier tasks it uses; None for all.

        Raises:
            InvalidInput: the network has other widths, or the task owns or has changed a weight of an earlier one.
        """
        if tuple(network.neurons().values()) != self.widths:
            raise InvalidInput(
                f"The packed network has the widths {list(self.widths)}, the task's network "
                f"{list(network.neurons().values())}."
            )
        parameters = {name: _kept(parameter) for name, parameter in network.named_parameters()}
        weights, owner = {}, {}
        for parameter, before in self.owner.items():
            value, mine, fixed = parameters.pop(parameter), own[parameter].cpu(), before != FREE
            if (mine & fixed).any():
                raise InvalidInput(f"{parameter} has weights that an earlier task owns; a task can only own free ones.")
            if self.tasks and not torch.equal(value[fixed], self.weights[parameter][fixed]):
                raise InvalidInput(f"{parameter} differs from the memory in a weight that an earlier task owns.")
            weights[parameter] = torch.where(fixed | mine, value, 0)
            owner[parameter] = torch.where(mine, len(self.tasks) + 1, before).to(torch.int16)
        statistics = {name: _kept(network.get_buffer(name)) for name in statistics_of(network)}
        chosen = None if picked is None else {name: mask.cpu().clone() for name, mask in picked.items()}
        # All at once: an error above leaves the memory as it was.
        self.weights, self.owner = weights, owner
        self.tasks.append(PackedTask(name, tuple(classes), self.widths, chosen, parameters, statistics))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; the inverse of :meth:`from_state`."""
        backbone = asdict(self.backbone)
        return {
            "backbone": {**backbone, "widths": None if backbone["widths"] is None else list(backbone["widths"])},
            "widths": list(self.widths),
            "weights": dict(self.weights),
            "owner": dict(self.owner),
            "tasks": [
                {**vars(part), "classes": list(part.classes), "widths": list(part.widths)} for part in self.tasks
            ],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PackedNetwork:
        """The packed network that :meth:`state_dict` described."""
        backbone, widths = state["backbone"], state["backbone"]["widths"]
        packed = cls(Backbone(**{**backbone, "widths": None if widths is None else tuple(widths)}))
        packed.widths = tuple(state["widths"])
        packed.weights = {name: value.cpu() for name, value in state["weights"].items()}
        packed.owner = {name: value.cpu() for name, value in state["owner"].items()}
        packed.tasks = [
            PackedTask(**{**part, "classes": tuple(part["classes"]), "widths": tuple(part["widths"])})
            for part in state["tasks"]
        ]
        return packed


def packed_shapes(network: Growable) -> dict[str, torch.Size]:
    """The weights that tasks share, with their shapes: those of convolutions and linear layers, but the classifier's.

    Raises:
        InvalidInput: a grouped convolution divides a width.
    """
    axes = axes_of(network)
    return {
        name: parameter.shape
        for name, parameter in network.named_parameters()
        if axes[name].writes is not None and parameter.dim() > 1
    }


def smallest_weights(
    weight: Float[Tensor, "*shape"], among: Bool[Tensor, "*shape"], count: int
) -> Bool[Tensor, "*shape"]:
    """Which ``count`` weights have the least magnitude; of equal ones the first. Fewer if there are not so many.

    Args:
        weight: of a layer.
        among: which of them are looked at.
        count: how many.
    """
    count = min(count, int(among.sum()))
    if count < 1:
        return torch.zeros_like(among)
    magnitudes = weight.detach().abs()
    cutoff = magnitudes[among].kthvalue(count).values
    below, level = among & (magnitudes < cutoff), among & (magnitudes == cutoff)
    first = level.flatten().cumsum(0).view(level.shape) <= count - below.sum()
    return below | (level & first)


class PackingRun(ContinualRun):
    """Learns tasks by weights that are free, and gives many of them back by pruning. A method says when, and how many.

    Args:
        tasks: in the order in which they come.
        config: of the method.
        backbone: of all tasks' networks.
        seed: of initial weights and data order.
    """

    def __init__(
        self, tasks: Sequence[Task], config: ContinualConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        self.packed = PackedNetwork(backbone)
        self.plain: Growable
        """The running task's network. Nothing is masked in it: weights of earlier tasks are all there."""
        self.own: dict[str, Tensor] = {}
        """Which weights are the running task's."""
        self._locked: LockedEntries
        super().__init__(tasks, config, backbone, seed=seed)

    def take_free_weights(self) -> None:
        """Begins with the packed network: all that is free is the task's."""
        self.plain = self.fitted(self.packed.begin(self.tasks[self.task].data.classes, self.task_seed()))
        self.own = {name: free.to(self.device) for name, free in self.packed.free().items()}

    def train_own(self, rate: float = 1.0) -> None:
        """From here on steps move the task's own weights and what it has alone, and nothing else.

        Args:
            rate: share of the configuration's learning rate.
        """
        self._locked = LockedEntries(self.plain, self.own)
        self.optimizer = self.sgd(self.plain.parameters())
        self.optimizer.param_groups[0]["rate"] = rate

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        assert self.optimizer is not None
        self.network.zero_grad()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self._locked.clear_gradients()
        nn.utils.clip_grad_norm_(self.plain.parameters(), self.config.clip)
        self.optimizer.step()
        self._locked.restore()
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Gives weights back, so that this share of those that were free when the task began is free again.

        It holds for each layer by itself. The smallest go; they become zero and stay so.
        """
        free = self.packed.free()
        parameters = dict(self.plain.named_parameters())
        for name, own in self.own.items():
            available = int(free[name].sum())
            count = round(share * available) - (available - int(own.sum()))
            if count > 0:
                given_back = smallest_weights(parameters[name], own, count)
                parameters[name].masked_fill_(given_back, 0)
                self.own[name] = own & ~given_back
        self._locked = LockedEntries(self.plain, self.own)

    def picked(self) -> dict[str, Tensor] | None:
        """Which weights of earlier tasks the running one uses; None for all."""
        return None

    def end_task(self) -> None:
        task = self.tasks[self.task]
        self.packed.record(task.name, task.classes, self.plain, self.own, self.picked())

    def serving(self, task: int) -> nn.Module:
        return self.packed.network(task)

    def parameters(self) -> int:
        return self.packed.parameters()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare_phase(self) -> None:
        """Sets up what the running phase steps with, and leaves all weights as they are."""

    def begin_phase(self) -> None:
        self.prepare_phase()

    def method_state(self) -> dict[str, Any]:
        assert self.optimizer is not None
        return {
            "packed": self.packed.state_dict(),
            "plain": self.plain.state_dict(),
            "own": dict(self.own),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.packed = PackedNetwork.from_state(state["packed"])
        if self.finished:
            return
        plain = self.backbone.build(self.tasks[self.task].data.classes, 0, self.running_widths())
        plain.load_state_dict(state["plain"])
        self.plain = self.fitted(plain)
        self.own = {name: own.to(self.device) for name, own in state["own"].items()}
        self.load_phase_state(state)
        self.prepare_phase()
        assert self.optimizer is not None
        self.optimizer.load_state_dict(state["optimizer"])

    def running_widths(self) -> tuple[int, ...]:
        """Neurons of each layer of the network that is trained now."""
        return self.packed.widths

    def load_phase_state(self, state: dict[str, Any]) -> None:
        """Takes over what a method keeps beside that, before :meth:`prepare_phase`."""


def _corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The entries between neurons that were there when the shape was the whole: a view, which may be written to."""
    return tensor[tuple(slice(0, size) for size in shape)]


def _kept(tensor: Tensor) -> Tensor:
    """A copy for the memory, in the plain order of its entries."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
