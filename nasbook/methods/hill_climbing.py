"""Hill climbing: grow several children at random, train each for a while, go on with the best.

Chapter 4. Two baselines of the Firefly paper: NASH (Elsken, Metzen & Hutter 2017), with 8 children of 17 epochs each
that are compared on validation images; and random search over the candidates that firefly descent has, with k = 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.growth import Cut, Grown, OvergrownNetwork, net2deeper, regrow, remap_optimizer
from nasbook.methods.growth import GrowthConfig, Result, Situation, SteppedGrowth
from nasbook.training import Batch, cosine


@dataclass(frozen=True)
class Config(GrowthConfig):
    """NASH, as the Firefly paper runs it (B.2): children split random neurons."""

    method: ClassVar[str] = "nash"

    children: int = 8
    """How many networks are grown and compared."""
    child_epochs: int = 17
    """Passes over the training images that each child trains."""
    child_learning_rate: float = 0.05
    """Of SGD at a child's start; it falls to 0 by a cosine (NASH, §4)."""
    radius: float = 0.03
    """How far the halves of a split neuron move apart, each way, and the outgoing scale of a new neuron. NASH's own
    morphisms preserve the function exactly; equal halves would stay equal."""
    new_neurons: int = 0
    """New neurons of each width among which children also choose: 0 for splits only."""
    new_layers: int = 0
    """Identity layers that a child gets at a random position of each place (NASH's morphism of type I)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            children=self.children,
            child_epochs=self.child_epochs,
            child_learning_rate=self.child_learning_rate,
            radius=self.radius,
        )
        if self.new_neurons < 0 or self.new_layers < 0:
            raise InvalidInput("new_neurons and new_layers must be 0 or more.")
        if not self.validation_share:
            raise InvalidInput("Children are compared on validation images; give a validation_share above 0.")

    @property
    def growth_epochs(self) -> int:
        return self.children * self.child_epochs

    def begin(self, situation: Situation) -> HillClimbing:
        return HillClimbing(self, situation)


@dataclass(frozen=True)
class RandomConfig(Config):
    """Random search: as many random choices among firefly's candidates as take its time, k = 3 (§3)."""

    method: ClassVar[str] = "random"

    children: int = 3
    """k."""
    child_epochs: int = 1
    """As long as step one of firefly descent."""
    radius: float = 0.01
    """As in firefly descent."""
    new_neurons: int = 50
    """As in firefly descent."""


class HillClimbing(SteppedGrowth):
    """One growth by hill climbing."""

    def __init__(self, config: Config, situation: Situation) -> None:
        super().__init__(situation)
        self.config = config
        self.steps_per_child = situation.steps // config.children
        self.scores: list[float] = []
        self._child: Result | None = None
        self._best: Result | None = None

    def propose(self, number: int) -> Grown:
        """A child: random candidates, as many as the budget has, and identity layers at random positions."""
        network, config = self.situation.network, self.config
        generator = self.situation.generator("child", number)
        overgrown = OvergrownNetwork(network, new=config.new_neurons, generator=generator)
        order = torch.randperm(len(overgrown.candidates), generator=generator)
        chosen = order[: config.budget(network)].tolist()
        grown = overgrown.grow(chosen, torch.full((len(overgrown.candidates),), config.radius))
        for place in network.declare().places:
            for _ in range(config.new_layers):
                there = len(grown.network.get_submodule(place.name))  # type: ignore[arg-type]
                index = int(torch.randint(there + 1, (), generator=generator))
                inputs = next(self.situation.batches())[0]  # whose statistics the batch norms undo
                grown = grown.then(net2deeper(grown.network, place.name, index, inputs=inputs))
        return grown

    def run_step(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        number, step = divmod(index, self.steps_per_child)
        if step == 0:
            grown = self.propose(number)
            optimizer = remap_optimizer(self.situation.optimizer, self.situation.network, grown)
            self._child = Result(grown.network, optimizer, grown.cuts)
        child = self._child
        assert child is not None
        for group in child.optimizer.param_groups:
            group["lr"] = cosine(self.config.child_learning_rate, 0.0, step / self.steps_per_child)
        child.network.train()
        child.optimizer.zero_grad()
        logits = child.network(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        loss.backward()
        nn.utils.clip_grad_norm_(child.network.parameters(), self.config.fit().clip)
        child.optimizer.step()
        if step + 1 == self.steps_per_child:
            score = self.situation.validate(child.network)
            if not self.scores or score > max(self.scores):
                self._best = child  # the best one; the paper's code keeps the last
            self.scores.append(score)
            self._child = None
        return loss.detach(), logits.detach()

    def finish(self) -> Result:
        assert self._best is not None
        return self._best

    def state_dict(self) -> dict[str, Any]:
        return {"scores": list(self.scores), "child": _state_of(self._child), "best": _state_of(self._best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scores = list(state["scores"])
        self._child, self._best = (
            None if state[name] is None else self._restored(state[name]) for name in ("child", "best")
        )

    def _restored(self, state: dict[str, Any]) -> Result:
        cuts: tuple[Cut, ...] = tuple(tuple(cut) for cut in state["cuts"])
        grown = regrow(self.situation.network, cuts)
        grown.network.load_state_dict(state["network"])
        optimizer = remap_optimizer(self.situation.optimizer, self.situation.network, grown)
        optimizer.load_state_dict(state["optimizer"])
        return Result(grown.network, optimizer, cuts)


def _state_of(result: Result | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {
        "cuts": [list(cut) for cut in result.cuts],
        "network": result.network.state_dict(),
        "optimizer": result.optimizer.state_dict(),
    }
