"""Compiled training: the values of plain training, a way back where compiling fails, one state dict.

The backends here run what torch traced as it stands: fast, and without a C++ compiler.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from nasbook.data import ImageData, load_images
from nasbook.errors import CheckpointError
from nasbook.genotypes import DARTS_V2
from nasbook.networks import DerivedNetwork, DropPath
from nasbook.training import Fit, FitConfig
from nasbook.training.compiling import CompiledTraining

CONFIG = FitConfig(epochs=2, batch_size=16, cutout=3, drop_path=0.0, compile=True)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits").take(48, 16)


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    """Shapes are not checked here: torch would trace the checks. Nothing that another test compiled remains."""
    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def network(auxiliary: bool = False) -> DerivedNetwork:
    torch.manual_seed(5)
    return DerivedNetwork(DARTS_V2, 2, 3, auxiliary=auxiliary, in_channels=1)


def make_run(net: nn.Module, data: ImageData, compiler: Any = "eager", **changes: Any) -> Fit:
    class Compiling(Fit):
        pass

    Compiling.compiler = staticmethod(compiler) if callable(compiler) else compiler
    return Compiling(net, data, replace(CONFIG, **changes), seed=1)


class Counting:
    """A backend that runs what it gets, and counts how often it gets something."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def finish(run: Fit) -> dict[str, Any]:
    """What a run that is driven to its end has come to, wall times left out."""
    for _ in run.epochs():
        pass
    return {
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "history": [{**report.to_state(), "seconds": 0} for report in run.history],
    }


# ---------------------------------------------------------------------------------------------- the same values


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_training_is_plain_training(digits, compiler):
    plain = finish(make_run(network(), digits, compile=False))
    run = make_run(network(), digits, compiler)
    compiled = finish(run)
    assert run._compiled is not None and not run._compiled.failed
    assert compiled["network"].keys() == plain["network"].keys()
    torch.testing.assert_close(compiled["network"], plain["network"], rtol=1e-3, atol=1e-5)
    assert compiled["history"][-1]["train_loss"] == pytest.approx(plain["history"][-1]["train_loss"], rel=1e-4)


def test_an_auxiliary_head_compiles(digits):
    data = replace(digits, train_images=digits.train_images.repeat(1, 1, 4, 4), augmentation=digits.augmentation,
                   test_images=digits.test_images.repeat(1, 1, 4, 4))  # fmt: skip
    ends = [
        finish(make_run(network(auxiliary=True), data, Counting(), epochs=1, compile=compiled))["network"]
        for compiled in (False, True)
    ]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-5)
    start = network(auxiliary=True).state_dict()
    name = "auxiliary_head.classifier.weight"
    assert not torch.equal(ends[1][name], start[name])  # it was trained


def test_channels_last_compiles(digits):
    plain = finish(make_run(network(), digits, compile=False))["network"]
    torch.testing.assert_close(
        finish(make_run(network(), digits, channels_last=True))["network"], plain, rtol=1e-3, atol=1e-5
    )


# ---------------------------------------------------------------------------------------------- drop path


def test_one_graph_serves_all_epochs(digits):
    backend = Counting()
    run = make_run(network(), digits, backend, epochs=12, drop_path=0.5)  # torch compiles anew 8 times at most
    finish(run)
    assert backend.graphs == 1 and not run._compiled.failed


def test_compiled_paths_drop_at_the_rate_of_the_epoch():
    drop = DropPath(0.0)
    backend = Counting()
    compiled = torch.compile(drop, backend=backend, dynamic=False)
    ones = torch.ones(4000, 2, 1, 1)
    for rate in (0.0, 0.2, 0.5):
        drop.rate = rate
        output = compiled(ones)
        assert output.unique().tolist() == pytest.approx([0, 1 / (1 - rate)] if rate else [1])
        assert torch.equal(output[:, 0], output[:, 1])  # whole samples
        assert output[:, 0].bool().float().mean().item() == pytest.approx(1 - rate, abs=0.03)
    assert backend.graphs == 1
    assert compiled(ones.bfloat16()).dtype == torch.bfloat16
    drop.eval()
    assert torch.equal(compiled(ones), ones)


def test_a_rate_that_is_a_number_would_be_compiled_anew_each_time(monkeypatch):
    """The fault that a tensor is there for."""

    def forward(self: DropPath, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(x.shape[0], 1, 1, 1) < 1 - self._rate) / (1 - self._rate)

    monkeypatch.setattr(DropPath, "forward", forward)
    drop = DropPath(0.0)
    backend = Counting()
    compiled = torch.compile(drop, backend=backend, dynamic=False)
    for rate in (0.0, 0.2, 0.5):
        drop.rate = rate
        compiled(torch.ones(2, 1, 1, 1))
    assert backend.graphs == 3


def test_a_rate_is_no_part_of_the_state():
    drop = DropPath(0.25)
    assert not drop.state_dict() and drop.rate == 0.25 and drop.keep == 0.75
    assert copy.deepcopy(drop).rate == 0.25


# ---------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("first", [True, False])
def test_checkpoints_move_between_compiled_and_plain(digits, tmp_path, first):
    path = tmp_path / "checkpoint.pt"
    run = make_run(network(), digits, compile=first)
    next(run.epochs())
    run.save(path)
    other = make_run(network(), digits, compile=not first)
    other.load(path)
    finish(other)
    assert other.epoch == 2
    torch.testing.assert_close(
        other.network.state_dict(), finish(make_run(network(), digits, compile=False))["network"], rtol=1e-3, atol=1e-5
    )
    with pytest.raises(CheckpointError, match=r"its config\.momentum is 0\.9, this run's is 0\.8"):  # all else matters
        make_run(network(), digits, momentum=0.8).load(path)


def test_a_compiled_run_resumes_to_the_same_bits(digits, same):
    whole = finish(make_run(network(), digits, drop_path=0.5, epochs=3))
    run = make_run(network(), digits, drop_path=0.5, epochs=3)
    run.on_step = lambda r: r.stop() if (r.epoch, r.step) == (1, 2) else None
    list(run.epochs())
    other = make_run(network(), digits, drop_path=0.5, epochs=3)
    other.load_state_dict(copy.deepcopy(run.state_dict()))
    same(finish(other), whole)


# ---------------------------------------------------------------------------------------------- the way back


class NoCompilerError(Exception):
    pass


def fails_at_once(graph: Any, inputs: Any) -> Any:
    raise NoCompilerError("no compiler on this machine\nand more lines")


def fails_when_it_runs(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    def forward(*inputs: Any) -> Any:
        graph.forward(*inputs)  # batch norms have moved, paths have been drawn
        raise NoCompilerError("no memory")

    return forward


def _no_backward(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    def backward(*inputs: Any) -> Any:
        raise NoCompilerError("no kernel")

    return make_boxed_func(backward)


def _as_it_is(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    return make_boxed_func(graph.forward)


fails_in_the_backward_pass = aot_autograd(fw_compiler=_as_it_is, bw_compiler=_no_backward)

FAILURES = {
    "at once": (fails_at_once, "no compiler on this machine"),
    "when it runs": (fails_when_it_runs, "no memory"),
    "in the backward pass": (fails_in_the_backward_pass, "no kernel"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_where_compiling_fails_training_is_plain_training(digits, same, failure):
    compiler, reason = FAILURES[failure]
    settings = {"drop_path": 0.5, "epochs": 3}
    plain = finish(make_run(network(), digits, compile=False, **settings))
    run = make_run(network(), digits, compiler, **settings)
    with pytest.warns(UserWarning, match=r"^torch\.compile failed") as caught:
        ending = finish(run)
    (warning,) = caught
    assert str(warning.message) == (
        f"torch.compile failed; training goes on without it. First cause: NoCompilerError: {reason}"
    )
    assert run._compiled.failed
    same(ending, plain)  # to the last bit: statistics and generators were put back


def test_what_python_refuses_is_a_failure_too(digits, same, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99")

    plain = finish(make_run(network(), digits, compile=False))
    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match=r"RuntimeError: torch\.compile is not supported on Python 3\.99$"):
        same(finish(make_run(network(), digits)), plain)


def test_a_mistake_of_the_caller_is_raised_as_in_plain_training(digits):
    wrong = replace(digits, train_labels=torch.full_like(digits.train_labels, 99))
    with pytest.warns(UserWarning, match="torch.compile failed"), pytest.raises(IndexError, match="out of bounds"):
        finish(make_run(network(), wrong))


def test_a_failure_long_after_compiling_is_raised():
    """Only the steps in which torch may compile are watched: what fails later is no failure of the compiler."""
    net = nn.Linear(2, 2)
    training = CompiledTraining(net, "eager")

    def step(forward: Callable[..., Any]) -> torch.Tensor:
        return forward(torch.ones(1, 2))

    def broken(forward: Callable[..., Any]) -> torch.Tensor:
        raise ValueError("broken")

    for _ in range(4):
        step_result = training.run(step)
    assert torch.equal(step_result, net(torch.ones(1, 2)))
    with pytest.raises(ValueError, match="^broken$"):
        training.run(broken)
    assert not training.failed
    training.watch()
    with pytest.warns(UserWarning, match="ValueError: broken"), pytest.raises(ValueError, match="^broken$"):
        training.run(broken)
    assert training.failed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(training.run(step), step_result)  # said once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda_the_passes_are_captured(digits):
    data = digits.to("cuda")
    settings = {"mixed_precision": False, "epochs": 4}
    plain = finish(make_run(network(), data, compile=False, **settings))
    run = make_run(network(), data, "inductor", **settings)
    compiled = finish(run)
    assert not run._compiled.failed
    assert compiled["history"][-1]["train_loss"] == pytest.approx(plain["history"][-1]["train_loss"], rel=1e-2)
