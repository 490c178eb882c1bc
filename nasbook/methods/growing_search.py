"""What growing searches share: Algorithm 2 of growing DARTS, for any kind of cell.

Chapter 6. A cell grows while it is searched. Differs from DARTS (:mod:`nasbook.methods.darts`) in the loop around it:

1. The search has stages. A stage trains the supernet (Algorithm 1) until the validation loss has not fallen for some
   epochs (the first level of early stopping, §3.2.5).
2. With *prune at each stage*, the cell is then pruned and its weights are tuned; with *prune at the end*, it stays.
3. If the stage has lowered the validation loss, the cell gets one more node by network morphism (§3.2.1, Algorithm 3),
   and the next stage begins. If not, growing is over, and the cell of the stage before is the answer (the second level
   of early stopping); with *prune at the end*, it is pruned and tuned now.
4. Within a stage, operations may be duplicated, split, pruned and replaced (§3.2.2–3.2.4, Algorithm 4).

:mod:`nasbook.methods.growing` has the convolutional form, :mod:`nasbook.methods.growing_recurrent` the recurrent one.

What the paper leaves open, and what we do:

* Algorithm 2 evaluates on the test set; its text says validation (erratum). We use validation data, which α learns from
  too, as in the paper's train(A, D_t, D_v).
* A stage ends with the parameters of its best epoch, and so does tuning. Optimiser states go back with them, and so
  does the cell, where operations have changed since.
* Optimisers keep what they know of all that stays; α of the old edges stays as it is.
* A pruned cell that grows has single candidates on its old edges and all candidates on the new ones.
* "Prune at the end" tunes after pruning, too. Algorithm 2 does not (lines 18–21), and evaluates the pruned cell with
  the weights of the whole one.
* δ = σ = 0.01: the paper only says that both are small and can be equal (§3.2.1).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal

import torch
from torch import Tensor

from nasbook.analysis import count_parameters
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import Space
from nasbook.methods.search import SearchReport, SearchResult
from nasbook.seeding import fold_seed, generator
from nasbook.supernets import (
    OperatorChange,
    OperatorRules,
    add_node,
    carry_states,
    change_operators,
    node_morphism,
    prune,
    remaining_cells,
    split_operators,
)
from nasbook.supernets.cell_changes import Supernet, candidate_weights, morphism_weights
from nasbook.training import (
    Batch,
    BilevelUpdate,
    EpochReport,
    NormalizeBy,
    Run,
    optimizer_form,
)

__all__ = ["MODES", "CellEvent", "CellWeights", "GrowingSearch", "GrowthPlan", "Mode", "Report"]

Mode = Literal["prune-each-stage", "prune-at-end"]
MODES: tuple[Mode, ...] = ("prune-each-stage", "prune-at-end")
"""The two ways of Algorithm 2 (§3.3)."""


@dataclass(frozen=True)
class GrowthPlan:
    """How a cell grows while it is searched (Algorithm 2)."""

    mode: Mode = "prune-each-stage"
    """When the cell is pruned (§3.3)."""
    stages: int = 6
    """Most stages, S: the cell gets one node fewer than that at most."""
    stage_epochs: int = 10
    """Most passes over the training examples in a stage, before pruning."""
    tune_epochs: int = 10
    """Most passes after pruning, in which only weights learn."""
    patience: int = 2
    """A stage ends when the validation loss has not fallen for so many epochs; so does tuning."""
    kept_operations: int = 1
    """Most operations that pruning leaves on an edge: 1 in the paper's experiments, more where operations grow."""
    delta: float = 0.01
    """δ: the weights that are to be 0 on a new node's edges are from U(0, δ) (Eq. 15, 18, 19)."""
    sigma: float = 0.01
    """σ: the weights that are to be 0 behind or in front of a new node are from N(0, σ²) (Eq. 15)."""
    operators: OperatorRules = field(default_factory=OperatorRules)
    """What happens to operations within a stage (Algorithm 4): by default nothing, as in the paper's experiments."""

    def check_plan(self) -> None:
        """Raises :class:`InvalidInput` where a number makes no sense."""
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        require_positive(
            stages=self.stages,
            stage_epochs=self.stage_epochs,
            tune_epochs=self.tune_epochs,
            patience=self.patience,
            kept_operations=self.kept_operations,
        )
        for name in ("delta", "sigma"):
            if not getattr(self, name) > 0:
                raise InvalidInput(
                    f"{name} must be above 0, got {getattr(self, name)}: at 0 the new node's zeros get no gradient."
                )

    @property
    def most_epochs(self) -> int:
        """Epochs if no stage ends early."""
        tunings = self.stages if self.mode == "prune-each-stage" else 1
        return self.stages * self.stage_epochs + tunings * self.tune_epochs


@dataclass(frozen=True)
class CellEvent:
    """One change of the cell."""

    epoch: int
    """Finished epochs before it."""
    stage: int
    """The stage that it ends, or stands in; 1 for the first."""
    what: str
    """``node``, ``prune``, ``stop``, or what happened to an operation."""
    loss_before: float
    """Validation loss of the network before."""
    loss_after: float
    """Validation loss of the changed network."""
    parameters: int
    """Parameters of the changed network, α included."""
    operations: tuple[dict[str, Any], ...] = ()
    """What happened to operations, as plain values of :class:`~nasbook.supernets.OperatorChange`."""


CellWeights = list[tuple[int, int, dict[str, float]]]
"""For every edge of a cell, source, target and the softmax weight of each candidate."""


@dataclass(frozen=True)
class Report(SearchReport):
    """One epoch of a growing search."""

    stage: int
    """1 for the first."""
    tuning: bool
    """Whether the cell was pruned and only weights learned."""
    nodes: int
    """Intermediate nodes of a cell."""
    parameters: int
    """Parameters of the network, α included."""
    weights: dict[str, CellWeights]
    """For every kind of cell the candidates on its edges, with their softmax weights."""

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Report:
        weights = {
            kind: [(source, target, dict(names)) for source, target, names in edges]
            for kind, edges in state["weights"].items()
        }
        report = super().from_state({**state, "weights": weights})
        assert isinstance(report, cls)
        return report


class GrowingSearch(Run, ABC, Generic[Supernet]):
    """Algorithm 2: train, prune and tune, evaluate, grow, until growing no longer helps.

    A subclass says what the network, the update and the data are.

    Within :func:`nasbook.processes.joined` several processes make each step together, and change the cell alike: what
    decides is the same to the bit in all of them, and so are the seeds of what is drawn. Matrices of splitting are not
    shared out: each process computes them whole.

    Args:
        plan: how the cell grows; the configuration of the search.
        spaces: for every kind of cell the space that it begins with.
        steps: steps of an epoch.
        seed: of all that is random.
        device: of the data.

    Raises:
        InvalidInput: the cells can't grow: the candidates lack what a new node needs to repeat the last one, or δ is
            too large for so many.
    """

    method: ClassVar[str]
    report_type: ClassVar[type[EpochReport]] = Report
    measurements: ClassVar[tuple[str, ...]] = ("train_loss", "train_accuracy", "architecture_loss")
    evaluates_as_deep: ClassVar[bool] = False
    """Whether the found cells are meant for a network of as many cells as the search had."""
    normalize_by: NormalizeBy = "batch"
    """What batch norms normalise by where several processes search."""
    network: Supernet

    def __init__(
        self, plan: GrowthPlan, spaces: dict[str, Space], steps: int, seed: int, device: torch.device
    ) -> None:
        self.plan = plan
        self.candidates = next(iter(spaces.values())).operations
        with torch.random.fork_rng(devices=[]):  # the caller's generator is left where it was
            torch.default_generator.manual_seed(fold_seed(seed, "initial parameters"))
            network = self.build_network(spaces).to(device)
        if plan.stages > 1:
            for kind in network.spaces:  # what can't grow is refused now, not after a stage
                morphism_weights(node_morphism(network, kind, self.candidates), plan.delta, torch.Generator())
        super().__init__(plan.most_epochs, steps, seed, device)
        self._take(network)
        self.events: list[CellEvent] = []
        self.stage = 0
        self.tuning = False
        self.ended = False
        self._phase_epochs = 0  # finished epochs of the stage's training or tuning
        self._waited = 0  # of them, those since the validation loss last fell
        self._split_from: float | None = None  # the least loss of the stage when operations were last split
        self._best_of_phase: dict[str, Any] | None = None
        self._best: dict[str, Any] | None = None  # of the stages so far: A_best of Algorithm 2

    # --- what a kind of cell brings ---

    @abstractmethod
    def build_network(self, spaces: dict[str, Space]) -> Supernet:
        """A fresh supernet for some spaces."""

    @abstractmethod
    def build_update(self) -> BilevelUpdate:
        """The update of the current network, with fresh optimisers."""

    @abstractmethod
    def batches(self, index: int) -> tuple[Batch, Batch]:
        """The training and the validation batch of a step; of several processes, this one's part of both."""

    @abstractmethod
    def measure_accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The accuracy of a batch."""

    @abstractmethod
    def evaluate(self, network: Supernet) -> tuple[float, float]:
        """Loss and accuracy on validation data; of several processes, each must call this and gets the same."""

    def validation_batches(self) -> list[Batch]:
        """Batches over which splitting matrices are averaged: whole ones, in every process."""
        raise InvalidInput("The operations of these cells can't be split.")

    # --- epochs and stages ---

    @property
    def finished(self) -> bool:
        """Whether growing has stopped."""
        return self.ended

    def begin_epoch(self) -> None:
        self.network.train()

    def run_step(self, index: int) -> Sequence[Tensor]:
        train, validation = self.batches(index)
        if self.tuning:
            loss, outputs = self.update.weight_step(train)
            architecture_loss = torch.full_like(loss, torch.nan)
        else:
            result = self.update.step(train, validation)
            loss, outputs, architecture_loss = result.train_loss, result.train_outputs, result.validation_loss
        return loss, self.measure_accuracy(outputs, train[1]), architecture_loss

    def report(self, means: dict[str, float]) -> Report:
        loss, correct = self.evaluate(self.network)
        if not math.isfinite(loss):  # NaN compares as neither better nor worse
            raise self._diverged("The validation loss", loss, self.step)
        with torch.no_grad():
            coefficients = {kind: value.cpu() for kind, value in self.network.coefficients().items()}
        report = Report(
            self.epoch + 1,
            means["train_loss"],
            means["train_accuracy"],
            loss,
            correct,
            learning_rate=self.update.weight_optimizer.param_groups[0]["lr"],
            seconds=0.0,
            genotype=self.network.genotype(),
            coefficients=coefficients,
            stage=self.stage + 1,
            tuning=self.tuning,
            nodes=next(iter(self.network.spaces.values())).nodes,
            parameters=count_parameters(self.network),
            weights=cell_weights(self.network),
        )
        self._stepping = True  # an interrupt from here on leaves a search that is neither before nor after the change
        self._after_epoch(loss)
        self._stepping = False
        return replace(report, seconds=self.elapsed())  # with the change that followed it

    def _after_epoch(self, loss: float) -> None:
        """The two levels of early stopping (§3.2.5, Algorithm 2)."""
        self._phase_epochs += 1
        if self._best_of_phase is None or loss < self._best_of_phase["loss"]:
            self._best_of_phase = self._snapshot(loss)
            self._waited = 0
        else:
            self._waited += 1
        most = self.plan.tune_epochs if self.tuning else self.plan.stage_epochs
        if self._phase_epochs < most and self._waited < self.plan.patience:
            if not self.tuning:
                self._change_operations(loss)
            return
        self._restore(self._best_of_phase)
        if not self.tuning and self._split_operations():
            return
        if self.plan.mode == "prune-each-stage" and not self.tuning:
            self._prune()
        elif self.plan.mode == "prune-at-end" and self.tuning:
            self.ended = True
        else:
            self._end_stage(self._best_of_phase["loss"])

    def _prune(self) -> None:
        """Lines 6 and 7 of Algorithm 2, or 19: only weights learn from here on."""
        self._replace_network(self._pruned(), "prune")
        self.tuning = True
        self._begin_phase()

    def _end_stage(self, loss: float) -> None:
        """Lines 9 to 16 of Algorithm 2."""
        better = self._best is None or loss < self._best["loss"]
        if better:
            self._best = self._snapshot(loss)
        if better and self.stage + 1 < self.plan.stages:
            self._grow()
            return
        if not better:
            self._go_back(loss)
        if self.plan.mode == "prune-at-end":
            self._prune()
        else:
            self.ended = True

    def _grow(self) -> None:
        """Algorithm 3."""
        self.stage += 1
        grown = add_node(
            self.network,
            self.build_network,
            self.candidates,
            delta=self.plan.delta,
            sigma=self.plan.sigma,
            generator=self._draws("node"),
        )
        self._replace_network(grown, "node")
        self.tuning = False
        self._begin_phase()

    def _go_back(self, loss: float) -> None:
        """To the cell before the last growth, which has not helped."""
        assert self._best is not None
        self.events.append(
            CellEvent(self.epoch + 1, self.stage + 1, "stop", loss, self._best["loss"], self._best["parameters"])
        )
        self._restore(self._best)

    def _change_operations(self, loss: float) -> None:
        network, changes = change_operators(
            self.network, self.build_network, self.plan.operators, self._draws("operations")
        )
        if changes:
            self._replace_network(network, "operations", changes, loss)

    def _split_operations(self) -> bool:
        """Splits operations where the stage has converged (§3.2.5); then the stage goes on.

        Not again where the last split has lowered nothing since.
        """
        assert self._best_of_phase is not None
        best = self._best_of_phase["loss"]
        if self.plan.operators.strategy != "splitting" or self._phase_epochs >= self.plan.stage_epochs:
            return False
        if self._split_from is not None and best >= self._split_from:
            return False
        network, changes = split_operators(
            self.network,
            self.build_network,
            self.plan.operators,
            self.validation_batches(),
            self.update.loss,
            self._draws("split"),
        )
        if changes:
            self._replace_network(network, "split", changes)
            self._split_from, self._waited = best, 0
        return bool(changes)

    def _begin_phase(self) -> None:
        self._phase_epochs, self._waited, self._best_of_phase, self._split_from = 0, 0, None, None

    def _draws(self, *stream: str) -> torch.Generator:
        return generator(fold_seed(self.seed, "change", self.epoch, *stream))

    def _replace_network(
        self, network: Supernet, what: str, changes: Sequence[OperatorChange] = (), loss: float | None = None
    ) -> None:
        """Goes on with a changed network; its optimisers keep what they know of all that stays."""
        before, update = self.network, self.update
        loss_before = self.evaluate(before)[0] if loss is None else loss
        self._take(network)
        carry_states(before, update.weight_optimizer, network, self.update.weight_optimizer)
        carry_states(before, update.architecture_optimizer, network, self.update.architecture_optimizer)
        self.events.append(
            CellEvent(
                self.epoch + 1,
                self.stage + (what != "node"),
                what,
                loss_before,
                self.evaluate(network)[0],
                count_parameters(network),
                tuple(asdict(change) for change in changes),
            )
        )

    # --- states to go back to ---

    def _snapshot(self, loss: float) -> dict[str, Any]:
        """All that a network and its optimisers are, as plain values."""
        return {
            "loss": loss,
            "spaces": spaces_state(self.network.spaces),
            "parameters": count_parameters(self.network),
            "network": copy.deepcopy(self.network.state_dict()),
            "weight_optimizer": copy.deepcopy(self.update.weight_optimizer.state_dict()),
            "architecture_optimizer": copy.deepcopy(self.update.architecture_optimizer.state_dict()),
        }

    def _restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a snapshot, and to the structure that it is of."""
        if snapshot["spaces"] != spaces_state(self.network.spaces):
            self._rebuild(snapshot["spaces"])
        self.network.load_state_dict(snapshot["network"])
        for name in ("weight_optimizer", "architecture_optimizer"):
            state = copy.deepcopy(snapshot[name])
            for group in state["param_groups"]:
                group.update(optimizer_form(self.device))  # this run's own, wherever the checkpoint was written
            getattr(self.update, name).load_state_dict(state)

    def _rebuild(self, spaces: dict[str, Any]) -> None:
        """A fresh network and update for spaces as :func:`spaces_state` has them."""
        with torch.random.fork_rng(devices=[]):
            network = self.build_network(spaces_from_state(spaces)).to(self.device)
        self._take(network)

    def _take(self, network: Supernet) -> None:
        """Goes on with a network, and with a fresh update of it."""
        self.network = network
        self.share_norms(self.normalize_by)  # of the new network: before its update, which holds the norms
        self.update = self.build_update()

    # --- the answer ---

    def final_network(self) -> Supernet:
        """A copy of the network, pruned if it is not."""
        return copy.deepcopy(self.network) if self.tuning else self._pruned()

    def _pruned(self) -> Supernet:
        keep = self.plan.kept_operations
        return prune(self.network, self.build_network, keep=keep, generator=self._draws("prune"))

    def result(self) -> SearchResult:
        """The cells as they are now, pruned, and the history; the accuracy is the pruned supernet's on validation.

        Several processes divide the validation data; each must call this.
        """
        network = self.final_network()
        return SearchResult(remaining_cells(network), tuple(self.history), self.evaluate(network)[1])

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "now": self._snapshot(0.0),
            "stage": self.stage,
            "tuning": self.tuning,
            "ended": self.ended,
            "phase": [self._phase_epochs, self._waited, self._split_from],
            "best_of_phase": copy.deepcopy(self._best_of_phase),
            "best": copy.deepcopy(self._best),
            "events": [asdict(event) for event in self.events],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rebuild(state["now"]["spaces"])
        super().load_state_dict(state)
        self._restore(state["now"])
        self.stage, self.tuning, self.ended = state["stage"], state["tuning"], state["ended"]
        self._phase_epochs, self._waited, self._split_from = state["phase"]
        self._best_of_phase = copy.deepcopy(state["best_of_phase"])
        self._best = copy.deepcopy(state["best"])
        self.events = [CellEvent(**{**event, "operations": tuple(event["operations"])}) for event in state["events"]]


def cell_weights(network: Supernet) -> dict[str, CellWeights]:
    """For every kind of cell the candidates on its edges with their softmax weights."""
    return {
        kind: [(source, target, weights) for (source, target), weights in candidate_weights(network, kind).items()]
        for kind in network.spaces
    }


def spaces_state(spaces: dict[str, Space]) -> dict[str, dict[str, Any]]:
    """Spaces as plain values that survive a checkpoint."""
    return {
        kind: {
            **asdict(space),
            **{name: [list(row) for row in getattr(space, name)] for name in ("left_out", "pools")},
            "operations": list(space.operations),
            "kinds": list(space.kinds),
        }
        for kind, space in spaces.items()
    }


def spaces_from_state(state: dict[str, dict[str, Any]]) -> dict[str, Space]:
    """The inverse of :func:`spaces_state`."""
    return {
        kind: Space(
            **{
                **values,
                **{name: tuple(tuple(row) for row in values[name]) for name in ("left_out", "pools")},
                "operations": tuple(values["operations"]),
                "kinds": tuple(values["kinds"]),
            }
        )
        for kind, values in state.items()
    }
