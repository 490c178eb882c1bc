"""Steps that never wait for the device: nothing that a step computes is read before its epoch ends.

On a CPU there is nothing to wait for, so the calls that would wait on CUDA are caught as they are made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasbook.data import Augmentation, ImageData, load_images
from nasbook.genotypes import DARTS_SPACE, DARTS_V2
from nasbook.methods import darts
from nasbook.networks import DerivedNetwork
from nasbook.training import Fit, FitConfig, Run, accuracy

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.allclose,  # a tensor becomes a number
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive,  # values become sizes
}  # fmt: skip


class WaitedError(Exception):
    """A step read what the device had not computed yet."""


class Reading(TorchDispatchMode):
    """Calls back when a value is read of a tensor that would lie on the device."""

    def __init__(self, on_read: Callable[[str], None], on_host: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.on_read = on_read
        self.on_host = on_host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if (func.overloadpacket in READING and not self.on_host(args[0])) or masks:
            self.on_read(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def reads(run: Run, on_read: Callable[[str], None]) -> Iterator[None]:
    """Within the block, ``on_read`` hears of all that would wait, what goes around torch's dispatcher included."""
    update = getattr(run, "update", None)
    optimizers = [run.optimizer] if update is None else [update.weight_optimizer, update.architecture_optimizer]

    def on_host(tensor: torch.Tensor) -> bool:  # Adam counts its steps on the CPU, wherever its parameters are
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        return any(tensor is state.get("step") for state in states)

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def method(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            on_read(name)
            return original(tensor, *args, **kwargs)

        return method

    with pytest.MonkeyPatch.context() as patch, Reading(on_read, on_host):
        for name in ("tolist", "numpy", "cpu"):
            patch.setattr(torch.Tensor, name, watched(name))
        yield


def refuse(call: str) -> None:
    raise WaitedError(call)


@pytest.fixture(scope="module")
def data() -> ImageData:
    digits = load_images("digits").take(64, 16)
    return ImageData(**{**vars(digits), "augmentation": Augmentation(crop_padding=1, flip=True)})


def make_run(kind: str, data: ImageData) -> Run:
    torch.manual_seed(0)
    if kind == "fit":
        network = DerivedNetwork(DARTS_V2, 4, 3, in_channels=1)
        return Fit(network, data, FitConfig(epochs=2, batch_size=16, cutout=3, drop_path=0.4))
    config = darts.Config(epochs=2, batch_size=8, channels=2, cells=3, order=kind)
    return darts.Search(config, data, DARTS_SPACE)


KINDS = ["fit", "first-order", "second-order", "finite-difference"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits(kind, data):
    run = make_run(kind, data)
    run.epoch = 1  # paths are dropped
    run.begin_epoch()
    with reads(run, refuse):
        for index in range(run.steps_per_epoch - 1, run.steps_per_epoch + 2):  # from one pass into the next
            run.run_step(index)


@pytest.mark.parametrize("kind", ["fit", "first-order"])
def test_an_epoch_is_read_at_its_end(kind, data):
    run = make_run(kind, data)
    calls: list[str] = []
    while_stepping: list[int] = []
    run.on_step = lambda _: while_stepping.append(len(calls))
    with reads(run, calls.append):
        next(run.epochs())
        assert while_stepping == [0] * run.steps_per_epoch
        assert calls


def _norm_as_a_number(parameters: Any, limit: float, **_: Any) -> None:
    parameters = [p for p in parameters if p.grad is not None]
    norm = sum(float(p.grad.square().sum()) for p in parameters) ** 0.5
    for p in parameters:
        p.grad.mul_(min(1.0, limit / norm))


def _chosen(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits[logits.argmax(-1) == labels].sum()


def _finite_only(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    assert logits.isfinite().all()
    return accuracy(logits, labels)


FIT = sys.modules["nasbook.training.fit"]  # the package's attribute of that name is the function

FAULTS = {
    "a norm that is a number": (nn.utils, "clip_grad_norm_", _norm_as_a_number),
    "a mask": (FIT, "accuracy", _chosen),
    "a check": (FIT, "accuracy", _finite_only),
    "a look": (FIT, "accuracy", lambda logits, labels: torch.tensor(logits.tolist()).mean()),
    "a copy": (FIT, "accuracy", lambda logits, labels: logits.detach().cpu().mean()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_waits_is_caught(fault, data, monkeypatch):
    where, name, function = FAULTS[fault]
    monkeypatch.setattr(where, name, function)
    run = make_run("fit", data)
    run.begin_epoch()
    with reads(run, refuse), pytest.raises(WaitedError):
        run.run_step(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_on_cuda(kind, data):
    run = make_run(kind, data.to("cuda"))
    run.epoch = 1
    run.begin_epoch()
    run.run_step(0)  # libraries are loaded and kernels chosen
    run.run_step(1)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for index in range(run.steps_per_epoch - 1, run.steps_per_epoch + 2):
            run.run_step(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
