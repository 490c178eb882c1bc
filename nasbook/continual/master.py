"""The master network: the union of the networks of all tasks so far, f_{1:t} (Firefly §2.4, appendix A).

A task's network is the master network under a binary mask over its neurons. What a task has recorded never changes: a
later task only adds neurons, and no earlier mask has them. So the network of a task is taken out with the same bits for
ever.

Memory is counted in parameters. A neuron that several tasks use is counted once, and so is the weight by which a locked
neuron reads an original and its copies. Classifiers and the statistics of batch norms belong to the tasks.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from nasbook.continual.backbone import Backbone
from nasbook.continual.ownership import NEW, Axes, Slots, axes_of, free_entries, statistics_of, take
from nasbook.errors import InvalidInput
from nasbook.files import whole_file
from nasbook.networks import Growable

FORMAT = "nasbook.master"
VERSION = 1


@dataclass(frozen=True)
class TaskPart:
    """What the master network keeps for one task."""

    name: str
    """Of the task."""
    classes: tuple[int, ...]
    """Labels that its classes have in the whole set."""
    chosen: dict[str, Int64[Tensor, " kept"]]
    """For each width the numbers of the task's neurons, ascending: its mask, as a list."""
    head: dict[str, Tensor] = field(repr=False)
    """Its classifier: the parameters that no neuron owns."""
    statistics: dict[str, Tensor] = field(repr=False)
    """Running statistics of its batch norms, of its neurons only."""
    added: int
    """Parameters that it has added to the memory, its classifier included."""


class MasterNetwork:
    """All neurons of all tasks, and a mask for each task.

    Begin with a backbone, :meth:`record` a network a task, and take each out again with :meth:`network`.

    Args:
        backbone: what the tasks' networks have in common.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.tasks: list[TaskPart] = []
        self.weights: dict[str, Tensor] = {}
        """Of every parameter that neurons own, by its name in a task's network: the entries of all neurons. An entry
        between two neurons that no task has together is zero."""
        self.made_by: dict[str, Int64[Tensor, " neurons"]] = {}
        """For each width the index of the task that made each neuron."""
        self.copy_of: dict[str, Int64[Tensor, " neurons"]] = {}
        """For each width the number of the neuron that each was copied from, or -1."""

    # -- looking ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many tasks it knows."""
        return len(self.tasks)

    @property
    def widths(self) -> tuple[str, ...]:
        """Names of the widths, in the order of the data."""
        return tuple(self.made_by)

    def neurons(self) -> dict[str, int]:
        """How many neurons each width has, all tasks together."""
        return {name: len(makers) for name, makers in self.made_by.items()}

    def mask(self, task: int) -> dict[str, Bool[Tensor, " neurons"]]:
        """m_t: for each width, which of all neurons the task's network has.

        Raises:
            InvalidInput: no such task.
        """
        part = self._part(task)
        masks = {}
        for name, makers in self.made_by.items():
            masks[name] = torch.zeros(len(makers), dtype=torch.bool)
            masks[name][part.chosen[name]] = True
        return masks

    def composition(self, task: int) -> tuple[int, int, int]:
        """How many neurons of a task's network were there before, how many it copied, and how many it made anew.

        Raises:
            InvalidInput: no such task.
        """
        part, counts = self._part(task), [0, 0, 0]
        for name, numbers in part.chosen.items():
            own = numbers[self.made_by[name][numbers] == task]
            copies = int((self.copy_of[name][own] != NEW).sum())
            for place, count in enumerate((len(numbers) - len(own), copies, len(own) - copies)):
                counts[place] += count
        return counts[0], counts[1], counts[2]

    def describe(self) -> dict[str, Any]:
        """What it is made of as plain values, without the weights: what records keep and drawings show.

        Returns:
            ``widths``, their names in the order of the data; ``made_by`` and ``copy_of`` by width, a number for each
            neuron; for each task, in lists, its ``classes``, its neurons' numbers by width (``chosen``), and the
            ``parameters`` in the memory after it.
        """
        return {
            "widths": list(self.widths),
            "made_by": {name: makers.tolist() for name, makers in self.made_by.items()},
            "copy_of": {name: sources.tolist() for name, sources in self.copy_of.items()},
            "classes": [list(part.classes) for part in self.tasks],
            "chosen": [{name: part.chosen[name].tolist() for name in self.widths} for part in self.tasks],
            "parameters": [self.parameters(tasks) for tasks in range(1, len(self.tasks) + 1)],
        }

    def parameters(self, tasks: int | None = None) -> int:
        """Parameters in the memory after the first ``tasks`` tasks; None for all. Shared neurons count once."""
        return sum(part.added for part in self.tasks[:tasks])

    def network(self, task: int) -> Growable:
        """f_t: the network of a task, in evaluation mode, with the bits that it was recorded with.

        Raises:
            InvalidInput: no such task.
        """
        part = self._part(task)
        network = self.backbone.build(len(part.classes), 0, [len(part.chosen[name]) for name in self.widths])
        with torch.no_grad():
            axes = axes_of(network)
            for name, parameter in network.named_parameters():
                parameter.copy_(part.head[name] if name in part.head else self._taken(name, axes[name], part.chosen))
            for name, values in part.statistics.items():
                network.get_buffer(name).copy_(values)
        return network

    def whole(self, classes: int, seed: int) -> Growable:
        """f_{1:t}: all neurons at once, with a fresh classifier and fresh statistics: where a new task begins.

        Args:
            classes: of the new task.
            seed: of its classifier.

        Raises:
            InvalidInput: no task is recorded yet.
        """
        if not self.tasks:
            raise InvalidInput("The master network is empty: the first task begins with the backbone.")
        network = self.backbone.build(classes, seed, list(self.neurons().values()))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
        return network

    # -- recording ----------------------------------------------------------------------------------------------------

    def record(self, name: str, classes: Sequence[int], network: Growable, slots: Mapping[str, Slots]) -> None:
        """Takes a task's network in: f_{1:t} = f_{1:t−1} ∪ f_t, and its mask.

        Args:
            name: of the task.
            classes: labels that its classes have in the whole set.
            network: the task's, which is left as it is.
            slots: for each width, where its neurons come from.

        Raises:
            InvalidInput: the network is not the backbone with other widths and these classes, the slots are not its
                own, or it differs from the memory in an entry that belongs to earlier tasks; the memory is then as it
                was.
        """
        neurons = network.neurons()
        self._require_backbone(network, len(classes))
        if {width: len(part) for width, part in slots.items()} != neurons:
            raise InvalidInput(f"The slots are those of another network; it has the neurons {neurons}.")
        free = free_entries(network, slots)
        first = not self.tasks
        old = dict.fromkeys(neurons, 0) if first else self.neurons()
        made_by, copy_of = self._with_own(slots, old)
        chosen = {
            width: torch.cat([
                torch.tensor(part.locked, dtype=torch.int64), old[width] + torch.arange(len(part.copies))
            ])
            for width, part in slots.items()
        }
        axes = axes_of(network)
        weights, head = {}, {}
        for parameter, value in ((n, p.detach().cpu()) for n, p in network.named_parameters()):
            here = axes[parameter]
            if here.writes is None:
                head[parameter] = value.clone(memory_format=torch.contiguous_format)
                continue
            before = self.weights.get(parameter)
            whole = self._enlarged(value, before, here, {width: len(made) for width, made in made_by.items()})
            if here.reads is not None:
                _alias_copies(whole, here.positions, old[here.writes], old[here.reads], copy_of[here.reads])
            self._write(parameter, whole, value, here, chosen, free[parameter])
            weights[parameter] = whole
        statistics = {
            buffer: network.get_buffer(buffer).cpu().clone() for buffer in statistics_of(network)
        }
        added = sum(int(entries.sum()) for entries in free.values())
        # All at once: an error above leaves the memory as it was.
        self.weights, self.made_by, self.copy_of = weights, made_by, copy_of
        self.tasks.append(TaskPart(name, tuple(classes), chosen, head, statistics, added))

    def _require_backbone(self, network: Growable, classes: int) -> None:
        """Refuses what :meth:`network` could not give back as it was."""
        expected = self.backbone.build(classes, 0, list(network.neurons().values()))
        wanted, given = (
            {name: (tuple(value.shape), value.dtype) for name, value in one.state_dict().items()}
            for one in (expected, network)
        )
        for name in {**wanted, **given}:
            if wanted.get(name) != given.get(name):
                have, want = (
                    "none" if found is None else f"{found[1]} of shape {found[0]}"
                    for found in (given.get(name), wanted.get(name))
                )
                raise InvalidInput(
                    f"The network is no {self.backbone.name} for {classes} classes: for {name} it has {have}, "
                    f"expected {want}."
                )

    def _with_own(
        self, slots: Mapping[str, Slots], old: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Makers and originals with the neurons of a new task."""
        made_by, copy_of = {}, {}
        for width, part in slots.items():
            numbers = [*part.locked, *(source for source in part.copies if source != NEW)]
            if list(part.locked) != sorted(set(part.locked)) or any(not 0 <= n < old[width] for n in numbers):
                raise InvalidInput(f"The slots of {width} name neurons that the master network does not have.")
            fresh = torch.tensor(part.copies, dtype=torch.int64)
            nothing = torch.empty(0, dtype=torch.int64)
            made_by[width] = torch.cat([self.made_by.get(width, nothing), torch.full_like(fresh, len(self.tasks))])
            copy_of[width] = torch.cat([self.copy_of.get(width, nothing), fresh])
        return made_by, copy_of

    @staticmethod
    def _enlarged(value: Tensor, before: Tensor | None, axes: Axes, neurons: Mapping[str, int]) -> Tensor:
        """The stored entries, with zeros for those of the neurons to come."""
        assert axes.writes is not None
        shape = list(value.shape)
        shape[0] = neurons[axes.writes]
        if axes.reads is not None:
            shape[1] = neurons[axes.reads] * axes.positions
        whole = value.new_zeros(shape)
        if before is not None:
            whole[tuple(slice(0, size) for size in before.shape)] = before
        return whole

    @staticmethod
    def _write(
        name: str, whole: Tensor, value: Tensor, axes: Axes, chosen: Mapping[str, Tensor], free: Tensor
    ) -> None:
        """Writes a task's own entries into the memory, and compares all others with it."""
        assert axes.writes is not None
        rows = chosen[axes.writes]
        there = take(whole, 0, rows)
        if axes.reads is not None:
            there = take(there, 1, chosen[axes.reads], axes.positions)
        if not torch.equal(there[~free], value[~free]):
            raise InvalidInput(f"{name} differs from the memory in an entry that belongs to earlier tasks.")
        if axes.reads is None:
            whole[rows] = torch.where(free, value, there)
            return
        spread = (chosen[axes.reads][:, None] * axes.positions + torch.arange(axes.positions)).flatten()
        whole[rows[:, None], spread[None, :]] = torch.where(free, value, there)

    def _taken(self, name: str, axes: Axes, chosen: Mapping[str, Tensor]) -> Tensor:
        assert axes.writes is not None
        taken = take(self.weights[name], 0, chosen[axes.writes])
        return taken if axes.reads is None else take(taken, 1, chosen[axes.reads], axes.positions)

    def _part(self, task: int) -> TaskPart:
        if not 0 <= task < len(self.tasks):
            raise InvalidInput(f"The master network knows {len(self.tasks)} tasks, numbered from 0; got {task}.")
        return self.tasks[task]

    # -- files --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All tensors by name, and all else as plain values; the inverse of :meth:`from_state`."""
        tensors = {f"weights/{name}": value for name, value in self.weights.items()}
        for width in self.widths:
            tensors[f"made_by/{width}"] = self.made_by[width]
            tensors[f"copy_of/{width}"] = self.copy_of[width]
        for number, part in enumerate(self.tasks):
            for group in ("chosen", "head", "statistics"):
                tensors |= {f"{number}/{group}/{name}": value for name, value in getattr(part, group).items()}
        return {
            "backbone": {**asdict(self.backbone), "widths": _listed(self.backbone.widths)},
            "tasks": [
                {"name": part.name, "classes": list(part.classes), "added": part.added} for part in self.tasks
            ],
            "tensors": {name: value.clone() for name, value in tensors.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MasterNetwork:
        """The master network that :meth:`state_dict` described."""
        widths = state["backbone"]["widths"]
        master = cls(Backbone(**{**state["backbone"], "widths": None if widths is None else tuple(widths)}))
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in state["tensors"].items():
            group, _, rest = name.rpartition("/")
            groups.setdefault(group, {})[rest] = value.cpu().clone()
        master.weights, master.made_by, master.copy_of = (
            groups.get(group, {}) for group in ("weights", "made_by", "copy_of")
        )
        for number, part in enumerate(state["tasks"]):
            tensors = {group: groups.get(f"{number}/{group}", {}) for group in ("chosen", "head", "statistics")}
            master.tasks.append(TaskPart(part["name"], tuple(part["classes"]), added=part["added"], **tensors))
        return master

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one ``.safetensors`` file, whole or not at all, and returns its path.

        Raises:
            InvalidInput: the file system refuses.
        """
        from safetensors.torch import save

        state = self.state_dict()
        plain = {
            "format": FORMAT,
            "version": VERSION,
            "backbone": state["backbone"],
            "tasks": state["tasks"],
            "widths": list(self.widths),
        }
        checksum = _checksum(plain, state["tensors"])
        metadata = {"nasbook": json.dumps({**plain, "checksum": checksum})}
        content = save(state["tensors"], metadata=metadata)
        with whole_file(path) as file:
            file.write(content)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MasterNetwork:
        """Reads what :meth:`save` wrote.

        Raises:
            InvalidInput: the file can't be read, is no master network, or is not as it was written.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise InvalidInput(f"There is no master network at {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                plain = json.loads((file.metadata() or {}).get("nasbook", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidInput(f"{path} is not a readable .safetensors file ({error}).") from None
        if not isinstance(plain, dict) or (plain.get("format"), plain.get("version")) != (FORMAT, VERSION):
            raise InvalidInput(f"{path} is no master network of nasbook (expected {FORMAT} of version {VERSION}).")
        if plain.pop("checksum", None) != _checksum(plain, tensors):
            raise InvalidInput(f"{path} is damaged: it is not what was written. Take another copy of it.")
        master = cls.from_state({**plain, "tensors": tensors})
        for group in ("made_by", "copy_of"):  # the file sorts its tensors
            setattr(master, group, {width: getattr(master, group)[width] for width in plain["widths"]})
        return master

    def copy(self) -> MasterNetwork:
        """A master network of its own with the same content."""
        return copy.deepcopy(self)


def _alias_copies(whole: Tensor, positions: int, old_rows: int, old_columns: int, copy_of: Tensor) -> None:
    """Lets all neurons that were there before read a new copy by the weight by which they read its original."""
    for column in range(old_columns, len(copy_of)):
        original = int(copy_of[column])
        if original != NEW:
            here, there = (slice(n * positions, (n + 1) * positions) for n in (column, original))
            whole[:old_rows, here] = whole[:old_rows, there]


def _checksum(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a file says: the plain values, and every tensor's name, type, shape and bits."""
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)};".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _listed(widths: Sequence[int] | None) -> list[int] | None:
    return None if widths is None else list(widths)
