"""Master networks without any training: made of given slots, with numbers for weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st

from nasbook.continual import Backbone, MasterNetwork, Slots, all_owned, free_entries, statistics_of
from nasbook.continual.ownership import NEW
from nasbook.growth.surgery import rewire
from nasbook.networks import Growable


def proposed(master: MasterNetwork, slots: Mapping[str, Slots] | None, classes: int, seed: int = 0) -> Growable:
    """A task's network before it trains: locked neurons and copies as the memory has them, new ones of zeros.

    None gives the first task's.
    """
    if slots is None:
        return master.backbone.build(classes, seed)
    sources = {name: [*part.locked, *part.copies] for name, part in slots.items()}
    return rewire(master.whole(classes, seed), sources).network


def train(network: Growable, slots: Mapping[str, Slots], seed: int = 0) -> None:
    """Moves all that a task may change: its free entries, and the statistics of its batch norms."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, entries in free_entries(network, slots).items():
            parameter = network.get_parameter(name)
            parameter[entries] = torch.randn(int(entries.sum()), generator=draws)
        for name in statistics_of(network):
            buffer = network.get_buffer(name)
            buffer.copy_(torch.rand(buffer.shape, generator=draws) + 0.5)


def learn(
    master: MasterNetwork, slots: Mapping[str, Slots] | None, classes: Sequence[int] = (0, 1), seed: int = 0
) -> Growable:
    """Records one more task and returns its network."""
    network = proposed(master, slots, len(classes), seed)
    given = all_owned(network) if slots is None else slots
    train(network, given, seed)
    master.record(f"task {len(master)}", classes, network, given)
    return network


def slots_of(master: MasterNetwork, task: int) -> dict[str, Slots]:
    """Where the neurons of a recorded task came from."""
    found = {}
    for name, numbers in master.tasks[task].chosen.items():
        own = master.made_by[name][numbers] == task
        found[name] = Slots(tuple(numbers[~own].tolist()), tuple(master.copy_of[name][numbers[own]].tolist()))
    return found


def distinct_numbers(master: MasterNetwork) -> int:
    """Parameters that the tasks' networks have together, counted without the master network's own reckoning.

    The same tasks are recorded again, and every entry that a task may change gets a number that no other has. What is
    stored once then has one number in all networks, and an entry between neurons that never met is zero.
    """
    again, last = MasterNetwork(master.backbone), 0
    for task, part in enumerate(master.tasks):
        slots = slots_of(master, task)
        network = proposed(again, slots if task else None, len(part.classes))
        for name, entries in free_entries(network, slots).items():
            count = int(entries.sum())
            network.get_parameter(name).detach()[entries] = torch.arange(last + 1, last + count + 1).float()
            last += count
        again.record(part.name, part.classes, network, slots)
    assert last < 2**24  # whole numbers that float32 has
    networks = [again.network(task) for task in range(len(again))]
    values = torch.cat([p.detach().flatten() for network in networks for p in network.parameters()])
    return len(set(values.tolist()) - {0.0})


def later_slots(data: st.DataObject, master: MasterNetwork) -> dict[str, Slots]:
    """Any slots of a next task: each old neuron left out, taken, copied or both; up to two new ones; one at least."""
    slots = {}
    for name, count in master.neurons().items():
        use = st.sampled_from(["out", "locked", "copy", "both"])
        uses = data.draw(st.lists(use, min_size=count, max_size=count), label=name)
        locked = tuple(n for n, use in enumerate(uses) if use in ("locked", "both"))
        copies = [n for n, use in enumerate(uses) if use in ("copy", "both")]
        copies += [NEW] * data.draw(st.integers(0 if locked or copies else 1, 2))
        slots[name] = Slots(locked, tuple(data.draw(st.permutations(copies))))
    return slots


def state_of(network: Growable) -> dict[str, torch.Tensor]:
    """What a task keeps of its network."""
    return {name: value.clone() for name, value in network.state_dict().items() if "batches_tracked" not in name}


THIN = Backbone("perceptron", (2, 2), 1, 2)


__all__ = ["THIN", "distinct_numbers", "later_slots", "learn", "proposed", "slots_of", "state_of", "train"]
