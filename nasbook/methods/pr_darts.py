"""PR-DARTS: prune and replace (Laube & Zell, "Prune and Replace NAS", 2019).

Chapter 5. Differs from DARTS (:mod:`nasbook.methods.darts`) in five places:

1. The search is a sequence of cycles, each a short DARTS search with a warm restart (§3.1, Table 1).
2. Every edge has its own pool of candidates. At a cycle's end the weakest are pruned, and children of the others are
   born by morphisms (§3.2); :mod:`nasbook.supernets.pools` says who, :mod:`nasbook.growth.operation_morphisms` what
   they inherit.
3. α begins every cycle at zero, and is frozen in its grace epochs (§3.1, §3.2.2).
4. The batch grows as far as a memory budget allows, and is small again when a cycle begins (§3.3).
5. The candidates are separable convolutions of any kernel, dilation, depth and width within constraints (Table 2).

What the paper leaves open, and what we do:

* Table 1's morphisms and candidates are those at the end of a cycle, as in the authors' code: the first cycle trains
  the four initial candidates, the last one two, of which one stays. So every edge has a weight to be ranked by when
  its node keeps two.
* α is zero after a reset; the authors' code draws 1e-3·N(0, 1).
* Adam, momentum and the warm restart begin anew with every cycle, as in the code; batch-norm statistics are inherited.
* A configuration stands at most once in a pool. One that was pruned may return only where its edge's pool has no other
  child left; it then gets its new parent's weights. Draws are from the exact distribution; the code tries up to 250
  times instead.
* A child inherits once. The code lets it inherit anew in every cycle in which its parent still stands there.
* The gradient of α is not clipped; the code clips it at 5.
* First order, as in the code. A cell's output is the concatenation of its nodes, as in the code and as the published
  sizes need; the text's mean is ``cell_output="mean"``.
* The batch follows a budget that the configuration names, not the memory that the card has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nasbook import processes
from nasbook.data import ImageData, Walk
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import ZERO, Space
from nasbook.methods import darts
from nasbook.methods.search import EXECUTION, SearchReport
from nasbook.networks import CELL_OUTPUTS, CellOutput
from nasbook.operations import CONSTRAINTS, Configuration, Constraints, get_operation, is_morphable
from nasbook.seeding import fold_seed, generator
from nasbook.supernets import (
    MORPHISM_CHOICES,
    Life,
    Pool,
    PoolSoftmax,
    SearchNetwork,
    inherit,
)
from nasbook.training import BatchGrowth, accuracy, cosine, memory_meter

__all__ = ["GIBIBYTE", "INITIAL_SPACE", "Config", "Report", "Search"]

GIBIBYTE = 2**30
"""Bytes."""

INITIAL_SPACE = Space(("max_pool_3x3", "avg_pool_3x3", "skip_connect", Configuration(3).name))
"""The four candidates that every edge begins with (§4.1). Its convolution is not stacked twice."""

Pools = dict[str, tuple[Pool, ...]]
"""For every kind of cell, one pool an edge."""


@dataclass(frozen=True)
class Config(darts.Config):
    """How PR-DARTS searches. Defaults are the paper's (§4.1, Table 1) or, where it is silent, its code's."""

    # No field any more: what parses or copies a configuration could give it another number.
    epochs: ClassVar[Any] = property(lambda self: sum(self.cycle_epochs))  # type: ignore[misc]
    """Passes over the training share in all: the sum of ``cycle_epochs``."""
    cycle_epochs: tuple[int, ...] = (15, 15, 10, 10, 10, 10, 10, 10, 10)
    """Passes of every cycle."""
    grace_epochs: tuple[int, ...] = (5, 5, 3, 3, 3, 3, 3, 3, 3)
    """The first of them, in which α is frozen."""
    morphisms: tuple[int, ...] = (3, 3, 3, 3, 3, 0, 0, 0, 0)
    """Children that are born on every edge at the end of every cycle."""
    candidates: tuple[int, ...] = (6, 6, 6, 6, 6, 4, 3, 2, 1)
    """Candidates that every edge has after that."""
    constraints: Constraints = CONSTRAINTS["DL"]
    """Where morphisms may lead: Table 2's; ``nasbook.operations.CONSTRAINTS`` has DL, DR and UR."""
    batch_size: int = 24
    """Images a step: the smallest, b_min; or of all steps, where there is no memory budget."""
    batch_multiple: int = 8
    """The batch grows by multiples of so many images, b_mult."""
    largest_batch: int = 128
    """Most images a step, b_max."""
    memory_budget: float | None = 11.0
    """GiB that a step may take; None for a fixed batch. 11 is the paper's card. What a step takes is measured on CUDA
    and counted elsewhere, and depends on the engine and on recompute_cells. So the batches, and with them the results,
    depend on all of these; with None they don't. First order only."""
    order: Literal["first-order", "second-order", "finite-difference"] = "first-order"
    """Form of the architecture gradient."""
    final_learning_rate: float = 0.01
    """Of the weights' SGD at the end of every cycle's cosine."""
    architecture_learning_rate: float = 6e-4
    """Of Adam on α; its β are (0.5, 0.999)."""
    cell_output: CellOutput = "concatenation"
    """How nodes become a supernet's cell's output: concatenation (the code), or mean (the text). A genotype does not
    carry it: give :class:`~nasbook.networks.DerivedNetwork` the same."""
    morphism_choice: Literal["uniform", "performance"] = "uniform"
    """How a parent's morphism is drawn: all alike, or by what became of earlier children in the whole cell (§5)."""
    cycle_cells: tuple[int, ...] = ()
    """Cells of the supernet in every cycle, so that it deepens as pools shrink (proposed in §5); empty for ``cells``
    throughout."""

    def __post_init__(self) -> None:
        if not self.cycle_epochs:
            raise InvalidInput("cycle_epochs must have one cycle at least.")
        super().__post_init__()
        cycles = len(self.cycle_epochs)
        for name in ("grace_epochs", "morphisms", "candidates", *(["cycle_cells"] if self.cycle_cells else [])):
            if len(getattr(self, name)) != cycles:
                raise InvalidInput(
                    f"{name} must have one number a cycle, {cycles} like cycle_epochs; got {getattr(self, name)}."
                )
        for cycle, (epochs, grace) in enumerate(zip(self.cycle_epochs, self.grace_epochs, strict=True), start=1):
            if not 0 <= grace < epochs:
                raise InvalidInput(
                    f"Cycle {cycle} has {epochs} epochs, {grace} of them grace epochs; α needs one at least, "
                    f"so grace_epochs must be from 0 to {max(epochs - 1, 0)}."
                )
        for cycle, (children, left) in enumerate(zip(self.morphisms, self.candidates, strict=True), start=1):
            if not 0 <= children < left:
                raise InvalidInput(
                    f"After cycle {cycle} there are to be {left} candidates, {children} of them new; "
                    f"one parent at least has to stay."
                )
        for cycle in range(1, cycles):
            self.require_parents(cycle + 1, self.candidates[cycle - 1])
        if self.candidates[-1] != 1 or self.morphisms[-1]:
            raise InvalidInput(
                f"After the last cycle one candidate is left on every edge, and none is new; got candidates="
                f"{self.candidates[-1]}, morphisms={self.morphisms[-1]} there."
            )
        require_positive(batch_multiple=self.batch_multiple, cycle_cells=min(self.cycle_cells, default=1))
        if self.cycle_cells and self.recompute_cells > min(self.cycle_cells):
            raise InvalidInput(
                f"recompute_cells={self.recompute_cells} must be at most the cells of every cycle, got cycle_cells="
                f"{self.cycle_cells}."
            )
        if self.memory_budget is not None:
            require_positive(memory_budget=self.memory_budget)
            if self.order != "first-order":
                raise InvalidInput(
                    f"memory_budget: a step of {self.order} takes more than is measured while α is frozen, when the "
                    f"batch grows. Give order='first-order', or no budget."
                )
            if self.largest_batch < self.batch_size:
                raise InvalidInput(
                    f"largest_batch={self.largest_batch} must be at least batch_size={self.batch_size}, the smallest."
                )
        if self.cell_output not in CELL_OUTPUTS:
            raise unknown_name("cell output", self.cell_output, CELL_OUTPUTS)
        if self.morphism_choice not in MORPHISM_CHOICES:
            raise unknown_name("choice of morphisms", self.morphism_choice, MORPHISM_CHOICES)

    def require_parents(self, cycle: int, before: int) -> None:
        """Checks that as many candidates as a cycle (from 1) is to end with are there: those before, and children.

        Raises:
            InvalidInput: they are fewer.
        """
        children, left = self.morphisms[cycle - 1], self.candidates[cycle - 1]
        if before + children < left:
            raise InvalidInput(
                f"After cycle {cycle} there are to be {left} candidates, {children} of them new; "
                f"but it has only {before}. More morphisms, or fewer candidates."
            )


@dataclass(frozen=True)
class Report(SearchReport):
    """One epoch of PR-DARTS: what Fig. 2 shows."""

    cycle: int
    """1 for the first."""
    grace: bool
    """Whether α was frozen."""
    batch_size: float
    """Images a step, the mean over the epoch's steps."""
    memory: int
    """Bytes that a step took when it was last looked at; 0 where the batch is fixed."""
    pools: dict[str, tuple[tuple[str, ...], ...]]
    """For every kind of cell, the candidates of every edge."""

    def weights(self, kind: str) -> list[dict[str, float]]:
        """For every edge of a kind of cell the softmax weight of each of its candidates."""
        columns = list(dict.fromkeys(name for pool in self.pools[kind] for name in pool))
        rows = zip(self.pools[kind], self.coefficients[kind].tolist(), strict=True)
        return [{name: row[columns.index(name)] for name in pool} for pool, row in rows]

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Report:
        pools = {kind: tuple(tuple(pool) for pool in pools) for kind, pools in state["pools"].items()}
        report = super().from_state({**state, "pools": pools})
        assert isinstance(report, cls)
        return report


class Search(darts.Search):
    """PR-DARTS on one data set; see :class:`~nasbook.methods.GradientSearch` for the arguments.

    The space's operations are the candidates that every edge begins with.

    Raises:
        InvalidInput: the zero operation or no convolution among them, none that has children, fewer than the first
            cycle is to end with, or several processes that can't share the batches.
    """

    method: ClassVar[str] = "pr-darts"
    report_type: ClassVar[type[Report]] = Report
    measurements: ClassVar[tuple[str, ...]] = (*darts.Search.measurements, "batch_size")
    config: Config

    def __init__(self, config: Config, data: ImageData, space: Space = INITIAL_SPACE, seed: int = 0) -> None:
        if ZERO in space.operations:
            raise InvalidInput(f"PR-DARTS has no zero operation (§4.1): leave {ZERO!r} out of the candidates.")
        if not any(get_operation(name).kind == "convolution" for name in space.operations):
            raise InvalidInput("Every pool keeps a convolution (§3.2.2): give one among the candidates.")
        if any(config.morphisms) and not any(is_morphable(name) for name in space.operations):
            raise InvalidInput(
                f"Children are morphed from convolutions like {Configuration(3).name!r}: give one among the candidates."
            )
        config.require_parents(1, len(space.operations))
        if config.memory_budget is not None and config.batch_multiple % processes.count():
            raise InvalidInput(f"batch_multiple must be a multiple of the {processes.count()} processes.")
        self.cycle = 0  # the current one, from 0; before the network is built
        self.pools: Pools = {kind: tuple(Pool.of(space.operations) for _ in space.edges) for kind in space.kinds}
        super().__init__(config, data, space, seed)
        self.walks = tuple(Walk(loader) for loader in self.loaders)
        self.batch_size = config.batch_size
        self.cycle_step = 0  # finished steps of the current cycle
        self.memory = 0
        self._meter = memory_meter(self.device)
        self._growth = None
        if config.memory_budget is not None:
            images = min(len(loader.images) for loader in self.loaders)
            self._growth = BatchGrowth(
                config.batch_size,
                config.batch_multiple,
                max(config.batch_size, min(config.largest_batch, images)),
                int(config.memory_budget * GIBIBYTE),
            )

    # --- cycles (§3.1, Table 1) ---

    def cycle_of(self, epoch: int) -> tuple[int, int]:
        """The cycle that an epoch belongs to, and its place there; both from 0."""
        for cycle, epochs in enumerate(self.config.cycle_epochs):
            if epoch < epochs:
                return cycle, epoch
            epoch -= epochs
        raise InvalidInput(f"The search has {self.total_epochs} epochs, there is no epoch {epoch + self.total_epochs}.")

    @property
    def grace(self) -> bool:
        """Whether α is frozen in the current epoch."""
        cycle, place = self.cycle_of(self.epoch)
        return place < self.config.grace_epochs[cycle]

    def begin_epoch(self) -> None:
        cycle, place = self.cycle_of(self.epoch)
        if cycle != self.cycle:
            self._next_cycle()
        if self.step == 0:
            self.walks[0].begin_pass()
            self._meter.reset()  # of the evaluation between the epochs
        progress = place / self.config.cycle_epochs[cycle]
        rate = cosine(self.config.learning_rate, self.config.final_learning_rate, progress)  # a warm restart each cycle
        for group in self.update.weight_optimizer.param_groups:
            group["lr"] = rate
        self.network.train()

    def _next_cycle(self) -> None:
        """Prunes and replaces candidates, and goes on with what is left of the supernet (§3.2.2)."""
        self.pools = self._pruned_and_replaced()
        self.cycle += 1
        earlier = self.network
        self._rebuild()
        draws = generator(fold_seed(self.seed, "inherited", self.cycle))
        inherit(self.network, earlier, self.pools, draws)
        self.batch_size = self.config.batch_size
        self.cycle_step = 0

    def _rebuild(self) -> None:
        """A new supernet for the pools as they are, with new optimisers; α is zero."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold_seed(self.seed, "initial parameters", self.cycle))
            self.network = self.build_network().to(self.device)
        self.share_norms(self.config.normalize_by)
        self.update = self.build_update()
        self._meter.reset()

    def _pruned_and_replaced(self) -> Pools:
        children, left = self.config.morphisms[self.cycle], self.config.candidates[self.cycle]
        last = self.cycle == len(self.config.cycle_epochs) - 1
        cycle = self.cycle + 1  # pools count from 1
        found: Pools = {}
        for kind, pools in self._weighed_pools().items():
            earlier = [some for pool in pools for past in range(1, cycle + 1) for some in pool.first_weights(past)]
            likelihoods = MORPHISM_CHOICES[self.config.morphism_choice](earlier)
            found[kind] = tuple(
                pool.pruned(left - children, cycle, keep_convolution=not last).replaced(
                    children,
                    cycle,
                    self.config.constraints,
                    generator(fold_seed(self.seed, "children", cycle, kind, edge)),
                    likelihoods,
                )
                for edge, pool in enumerate(pools)
            )
        return found

    def _weighed_pools(self) -> Pools:
        """The pools with the softmax weights of now."""
        with torch.no_grad():
            weights = {kind: value.tolist() for kind, value in self.network.coefficients().items()}
        found: Pools = {}
        for kind, pools in self.pools.items():
            columns = {name: place for place, name in enumerate(self.network.spaces[kind].operations)}
            found[kind] = tuple(
                pool.weighed({name: row[columns[name]] for name in pool.operations})
                for pool, row in zip(pools, weights[kind], strict=True)
            )
        return found

    def families(self) -> Pools:
        """For every kind of cell and edge, all candidates that ever stood there: who was born from whom, and died when.

        After the last epoch, with the last pruning.
        """
        return self._pruned_and_replaced() if self.finished else self.pools

    # --- the network and the update ---

    def build_network(self) -> SearchNetwork:
        config = self.config
        spaces = {
            kind: self.space.with_pools([pool.operations for pool in pools]) for kind, pools in self.pools.items()
        }
        cells = config.cycle_cells[self.cycle] if config.cycle_cells else config.cells
        return SearchNetwork(spaces, config.channels, cells, self.data.classes, **self.network_options())

    def build_relaxation(self, space: Space) -> PoolSoftmax:
        return PoolSoftmax(space, scale=0.0)  # all candidates equally weighted (§3.2.2)

    def network_options(self) -> dict[str, Any]:
        return {**super().network_options(), "cell_output": self.config.cell_output}

    # --- steps, with a batch that grows (§3.3) ---

    def epoch_is_over(self) -> bool:
        return self.step > 0 and not self.walks[0].fits(self.batch_size)

    def step_weights(self) -> Float[Tensor, " steps"]:
        return self._measured[: self.step, self.measurements.index("batch_size")].cpu()

    def run_step(self, index: int) -> Sequence[Tensor]:
        train_walk, validation_walk = self.walks
        size = self.batch_size
        train = train_walk.take(size)
        if self.grace:
            loss, outputs = self.update.weight_step(train)
            architecture_loss = torch.full_like(loss, torch.nan)
        else:
            result = self.update.step(train, validation_walk.take(size))
            loss, outputs, architecture_loss = result.train_loss, result.train_outputs, result.validation_loss
        self.cycle_step += 1
        if self._growth is not None and self._growth.due(self.cycle_step):
            fixed, self.memory = self._meter.measure(self.update, train)
            self.batch_size = self._growth.grown(size, fixed, self.memory)
        return loss, accuracy(outputs, train[1]), architecture_loss, torch.full_like(loss, size)

    # --- reports and state ---

    def report(self, means: dict[str, float]) -> Report:
        common = super().report(means)
        return Report(
            **{f.name: getattr(common, f.name) for f in fields(common)},
            cycle=self.cycle + 1,
            grace=self.grace,
            batch_size=float(self.step_weights().mean()),
            memory=self.memory,
            pools={kind: tuple(pool.operations for pool in pools) for kind, pools in self.pools.items()},
        )

    def header(self) -> dict[str, Any]:
        header = super().header()
        if self.config.memory_budget is not None:  # then they change the batches, and are more than execution
            header["config"].update({name: getattr(self.config, name) for name in sorted(EXECUTION)})
        return header

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "cycle": self.cycle,
            "pools": {kind: [[asdict(life) for life in p.lives] for p in ps] for kind, ps in self.pools.items()},
            "walks": [list(walk.position) for walk in self.walks],
            "batch_size": self.batch_size,
            "cycle_step": self.cycle_step,
            "memory": self.memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cycle = state["cycle"]
        self.pools = {
            kind: tuple(Pool(tuple(Life(**{**life, "weights": tuple(life["weights"])}) for life in p)) for p in ps)
            for kind, ps in state["pools"].items()
        }
        self._rebuild()  # before its weights are loaded
        super().load_state_dict(state)
        for walk, (number, start) in zip(self.walks, state["walks"], strict=True):
            walk.position = (number, start)
        self.batch_size, self.cycle_step, self.memory = state["batch_size"], state["cycle_step"], state["memory"]
