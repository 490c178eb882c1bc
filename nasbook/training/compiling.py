"""Compiling a network's training step with torch.compile, and going on without where that fails.

Compiling needs what a machine may lack: a C++ compiler on a CPU, Triton on CUDA, a version of Python that torch can
trace. None of it is needed for the result. So a step that fails while it is compiled is undone, made again eagerly,
and one warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from nasbook.training.checkpoints import random_state, restore_random_state

Result = TypeVar("Result")
Forward = Callable[..., Any]

WATCHED = 3
"""Steps in which a new graph may fail: it is built in the first; on CUDA the second records it, the third replays."""


class CompiledTraining:
    """Runs training steps with a compiled forward and backward pass, until compiling fails.

    The network itself is not wrapped: names of parameters, state dict and modes are its own, so that a checkpoint
    moves between compiled and plain training. Call the network itself to evaluate it.

    Args:
        network: what the steps call; on its device.
        backend: of torch.compile. On CUDA, "inductor" also captures the passes as graphs ("reduce-overhead").
    """

    def __init__(self, network: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
        self.network = network
        self.backend = backend
        self.failed = False
        self._forward: Forward | None = None
        self._watched = WATCHED

    def watch(self) -> None:
        """Says that something has changed for which torch may compile anew, as at the start of an epoch."""
        self._watched = WATCHED

    def run(self, step: Callable[[Forward], Result]) -> Result:
        """``step(forward)``, where ``forward`` is the compiled network, or the network itself after a failure.

        Args:
            step: may be called twice: it must begin by clearing the gradients, and change nothing but gradients,
                buffers and the global generators.
        """
        if self.failed:
            return step(self.network)
        if not self._watched:
            return step(self._compiled())
        self._watched -= 1
        buffers = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        random = random_state()
        try:
            return step(self._compiled())
        except Exception as error:  # each part of torch.compile fails with its own type
            cause = _first_cause(error)  # not the error itself, which keeps the step's tensors alive
        self.failed, self._forward = True, None
        warnings.warn(f"torch.compile failed; training goes on without it. First cause: {cause}", stacklevel=2)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        restore_random_state(random)
        return step(self.network)

    def _compiled(self) -> Forward:
        captured = self.backend == "inductor" and any(parameter.is_cuda for parameter in self.network.parameters())
        if self._forward is None:
            network = self.network

            def forward(images: torch.Tensor) -> Any:
                return network(images)

            # Batches have one size: with dynamic shapes, a second one would make all graphs general and slow.
            mode = "reduce-overhead" if captured else None
            self._forward = torch.compile(forward, backend=self.backend, mode=mode, dynamic=False)
        if captured:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        return self._forward


def _first_cause(error: Exception) -> str:
    """Type and first line of what went wrong, without the frames that torch puts around it."""
    inner = getattr(error, "inner_exception", None) or error
    line = next((line.strip() for line in str(inner).splitlines() if line.strip()), "")
    return f"{type(inner).__name__}: {line}"[:200]
