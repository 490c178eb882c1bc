"""What passes of fused recurrent cells over sequences of one shape share, and the pass as one differentiable function.

A cell with few units is through with a call of torch sooner than Python has made its arguments. So the tensors of a
pass, the views of them and the calls of its loops are made once, in a :class:`Workspace`. Its forward pass hands a copy
of the states out, and keeps the workspace until the graph of these states is gone; passes that wait for their backward
pass at the same time have a workspace each.

When the backward pass is itself to be differentiated (``create_graph``), a plain forward pass runs under autograd, and
autograd differentiates that.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Call = Callable[[], object]
"""A call with all its arguments."""


class Kind(NamedTuple):
    """What passes have to agree in to share a workspace."""

    steps: int
    batch: int
    dtype: torch.dtype
    device: torch.device
    stream: int
    """On CUDA: work of another stream may not have finished yet."""

    @classmethod
    def of(cls, inputs: Float[Tensor, "time batch inputs"]) -> Kind:
        """That of some inputs."""
        stream = torch.cuda.current_stream(inputs.device).cuda_stream if inputs.is_cuda else 0
        return cls(inputs.shape[0], inputs.shape[1], inputs.dtype, inputs.device, stream)


class Workspace(ABC):
    """The tensors of a pass over sequences of one shape, and the calls of its loops."""

    kind: Kind
    kept: Sequence[Tensor]
    """What the backward pass needs of the forward pass."""

    @abstractmethod
    def forward(self, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
        """The states, in memory of their own. The first tensor is the inputs; any may be None."""

    @abstractmethod
    def backward(self, tensors: Sequence[Any], gradient: Tensor, needed: Sequence[bool]) -> Sequence[Tensor | None]:
        """Gradients of the tensors of the last forward pass, each in memory of its own, where they are needed."""


class Computation(ABC):
    """What a cell computes, apart from its tensors."""

    @abstractmethod
    def workspace(self, kind: Kind) -> Workspace:
        """A new workspace."""

    @abstractmethod
    def plain(self, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
        """What a workspace's forward pass computes, by differentiable calls."""


class Loan:
    """A workspace in use. It goes back when nothing refers to the loan any more."""

    def __init__(self, workspaces: Workspaces, workspace: Workspace) -> None:
        self.workspaces = workspaces
        self.workspace = workspace

    def __del__(self) -> None:
        self.workspaces.give_back(self.workspace)


class Workspaces:
    """What a cell computes, and the last workspaces that its passes have left. A copy begins without any.

    Args:
        computation: what the cell computes.
    """

    most = 4
    """How many are kept."""
    most_numbers = 2**24
    """How many numbers they may have from forward passes, all together; the backward pass has about as many again."""

    def __init__(self, computation: Computation) -> None:
        self.computation = computation
        self.free: deque[Workspace] = deque(maxlen=self.most)

    def __reduce__(self) -> tuple[type[Workspaces], tuple[Computation]]:
        return Workspaces, (self.computation,)

    def lend(self, inputs: Float[Tensor, "time batch inputs"]) -> Loan:
        """A free workspace for these inputs, or a new one."""
        kind = Kind.of(inputs)
        for workspace in list(self.free):
            if workspace.kind == kind:
                with contextlib.suppress(ValueError):  # another thread has it
                    self.free.remove(workspace)
                    return Loan(self, workspace)
        with ordinary_tensors():
            return Loan(self, self.computation.workspace(kind))

    def give_back(self, workspace: Workspace) -> None:
        """Keeps a workspace for later passes, and lets the oldest ones go where there is too much."""
        self.free.append(workspace)
        numbers = [sum(tensor.numel() for tensor in each.kept) for each in list(self.free)]
        while sum(numbers) > self.most_numbers:
            with contextlib.suppress(IndexError):  # another thread has it
                self.free.popleft()
            del numbers[0]


def run_sequence(workspaces: Workspaces, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
    """The states after every time step, as the workspaces' computation has them; the first tensor is the inputs."""
    if torch.is_grad_enabled():
        return _Sequence.apply(workspaces, *tensors)
    loan = workspaces.lend(tensors[0])
    return loan.workspace.forward(*tensors)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, workspaces: Workspaces, *tensors: Any) -> Tensor:
        ctx.loan = workspaces.lend(tensors[0])
        states = ctx.loan.workspace.forward(*tensors)
        ctx.inputs = len(tensors)
        ctx.set_materialize_grads(False)
        # What the workspace keeps is there anyhow; but who asks autograd what is kept should hear of it.
        ctx.save_for_backward(*tensors, *ctx.loan.workspace.kept)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * (1 + ctx.inputs)
        tensors = ctx.saved_tensors[: ctx.inputs]
        needed = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *ctx.loan.workspace.backward(tensors, gradient, needed)
        # Views, so that a tensor that comes in twice counts once in each place.
        views = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        states = ctx.loan.workspaces.computation.plain(*views)
        wanted = [view for view, need in zip(views, needed, strict=True) if need and view is not None]
        found = iter(torch.autograd.grad(states, wanted, gradient, create_graph=True, materialize_grads=True))
        return None, *(next(found) if need else None for need in needed)


@contextlib.contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made here may be used in passes of every mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield
