"""The recurrent cells in fewer, larger steps; see :mod:`nasbook.networks.recurrent_cells` for what they compute.

The readable cells run one module a candidate, node and time step. Here

* what the candidates of all nodes make of the input is one matrix product for all time steps;
* what the candidates that leave one node make of its value is one matrix product a time step, one activation for
  sigmoid and tanh, one for ReLU, and one product with the coefficients, whatever the number of targets;
* all sums of a Two-to-One node fold into one map of the input, and so do its products;
* the backward pass is written out (:mod:`nasbook.networks.fused_recurrent_function`), and the gradient of a matrix is
  one product after the loop over time.

Parameters and state dict are those of the readable cells. They are read and stacked anew in every pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.networks.fused_recurrent_plans import Plan, plan_darts, plan_highway, plan_two_to_one
from nasbook.networks.fused_recurrent_workspaces import run_sequence
from nasbook.networks.recurrent_cells import DartsCell, HighwayCell, RecurrentCell, TwoToOneCell
from nasbook.operations.recurrent import ActivatedMap, Gate


def _modules(edges: nn.ModuleDict, plan: Plan) -> list[Any] | None:
    """The candidates of ``plan.places``, if calling them would do what their classes say, and nothing else."""
    found = []
    for place in plan.places:
        module: Any = edges[place.edge][place.name]  # type: ignore[index]
        if (
            type(module) is not place.kind
            or (place.kind in (Gate, ActivatedMap) and module.activation != place.operation)
            or "forward" in vars(module)
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            return None
        found.append(module)
    return found


def _fits(
    cell: RecurrentCell, inputs: Tensor, coefficients: Tensor, state: Tensor | None, weights: Iterable[Tensor]
) -> bool:
    """Whether all tensors are of the shapes and of the one type that the fused pass takes.

    What does not fit is left to the readable cell, which computes it or says what is wrong. So are subclasses of
    tensors, which may have no numbers, as workspaces stay for later passes.
    """
    dtype, device = inputs.dtype, inputs.device
    space = cell.space
    return (
        type(inputs) in (Tensor, nn.Parameter)
        and inputs.dim() == 3
        and inputs.shape[2] == cell.inputs
        and inputs.numel() > 0
        and dtype.is_floating_point
        and coefficients.shape == (len(space.edges), len(space.operations))
        and (state is None or state.shape == (inputs.shape[1], cell.hidden))
        and all(
            tensor.dtype == dtype and tensor.device == device
            for tensor in (coefficients, *(() if state is None else (state,)), *weights)
        )
        and torch.amp.autocast_mode.is_autocast_available(device.type)  # not on the meta device
        and not torch.is_autocast_enabled(device.type)
        and not torch._C._are_functorch_transforms_active()
    )


class FusedTwoToOneCell(TwoToOneCell):
    """A :class:`~nasbook.networks.TwoToOneCell` with the same parameters, computed node by node.

    The fused pass reads the candidates' parameters and does not call the candidates. Where one is not what the cell was
    built from, or has hooks, a pass takes the readable way; and so under autocast and torch.func's transforms.
    """

    def build(self) -> None:
        super().build()
        self._plan = plan_two_to_one(self.space, self.needed, self.hidden)

    def forward(
        self,
        inputs: Float[Tensor, "time batch inputs"],
        coefficients: Float[Tensor, "edges operations"],
        state: Float[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "time batch hidden"]:
        plan = self._plan
        modules = _modules(self.edges, plan)
        if modules is None:
            return super().forward(inputs, coefficients, state)
        gates = modules[: len(plan.activated)]
        linear = [module.input_weight for module in modules[len(gates) :]]
        of_inputs = [gate.input_weight for gate in gates]
        of_state = [gate.state_weight for gate in gates]
        biases = [gate.bias for gate in gates]
        if not _fits(self, inputs, coefficients, state, (*linear, *of_inputs, *of_state, *biases)):
            return super().forward(inputs, coefficients, state)
        return run_sequence(
            plan.workspaces,
            inputs,
            inputs.new_zeros(inputs.shape[1], self.hidden) if state is None else state,
            _below_each_other(of_inputs, inputs, self.inputs),
            torch.cat(biases) if biases else None,
            _below_each_other(linear, inputs, self.inputs),
            _below_each_other(of_state, inputs, self.hidden),
            plan.mixing(coefficients),
        )


class FusedDartsCell(DartsCell):
    """A :class:`~nasbook.networks.DartsCell` with the same parameters, computed node by node.

    It takes the readable way where :class:`FusedTwoToOneCell` does.
    """

    def build(self) -> None:
        super().build()
        self._plan = plan_darts(self.space, self.needed, self.hidden)

    def forward(
        self,
        inputs: Float[Tensor, "time batch inputs"],
        coefficients: Float[Tensor, "edges operations"],
        state: Float[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "time batch hidden"]:
        plan = self._plan
        modules = _modules(self.edges, plan)
        if modules is None:
            return super().forward(inputs, coefficients, state)
        weights = [module.weight for module in modules[: len(plan.activated)]]
        if not _fits(self, inputs, coefficients, state, weights):
            return super().forward(inputs, coefficients, state)
        fed = plan.fed
        first, others = weights[:fed], weights[fed:]
        # Node 0 is [x; h]: its maps have columns for x, then for h.
        of_both = _below_each_other(first, inputs, self.inputs + self.hidden)
        of_inputs, of_state = of_both.split([self.inputs, self.hidden], dim=1)
        return run_sequence(
            plan.workspaces,
            inputs,
            inputs.new_zeros(inputs.shape[1], self.hidden) if state is None else state,
            of_inputs,
            None,
            inputs.new_empty(0, self.inputs),
            _below_each_other([of_state, *others], inputs, self.hidden),
            plan.mixing(coefficients),
        )


class FusedHighwayCell(HighwayCell):
    """A :class:`~nasbook.networks.HighwayCell` with the same parameters, computed node by node.

    With batch norms it takes the readable way, and else where the others do.
    """

    def build(self) -> None:
        super().build()
        self._plan = plan_highway(self.space, self.needed, self.output, self.hidden)

    def forward(
        self,
        inputs: Float[Tensor, "time batch inputs"],
        coefficients: Float[Tensor, "edges operations"],
        state: Float[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "time batch hidden"]:
        maps = [self.nodes[str(node)] for node in self.needed]
        if type(self.norm) is not nn.Identity or not _fits(self, inputs, coefficients, state, (self.initial, *maps)):
            return super().forward(inputs, coefficients, state)
        of_inputs, of_state = self.initial.split([self.inputs, self.hidden], dim=1)
        return run_sequence(
            self._plan.workspaces,
            inputs,
            inputs.new_zeros(inputs.shape[1], self.hidden) if state is None else state,
            of_inputs,
            of_state,
            torch.cat(maps),
            self._plan.mixing(coefficients),
        )


def _below_each_other(maps: Sequence[Tensor], like: Tensor, width: int) -> Float[Tensor, "rows width"]:
    return torch.cat(list(maps)) if maps else like.new_empty(0, width)


FUSED_CELLS: dict[str, type[RecurrentCell]] = {
    "two-to-one": FusedTwoToOneCell,
    "darts": FusedDartsCell,
    "highway": FusedHighwayCell,
}
"""The fused form of each backbone that has one, by name; parameters, state and values are those of the readable one."""
