"""Tiny sequences of tasks, what a learner of them has come to, and a learner that is interrupted at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from running import draw, run_to_end, stop_after

from nasbook.continual import Backbone, ContinualRun, Task, split_classes
from nasbook.data import load_images

BACKBONE = Backbone("perceptron", (10, 8), 1, 8)
VGG = Backbone("vgg11", (4,) * 8, 1, 8)


def tiny_tasks(tasks: int = 3, train: int = 36, seed: int = 0, side: int = 8) -> tuple[Task, ...]:
    """The first of five tasks of two digits each: ``train`` + 12 images a task."""
    data = load_images("digits").take(5 * train, 60)
    if side > 8:
        larger = {
            name: getattr(data, name).repeat_interleave(side // 8, 2).repeat_interleave(side // 8, 3)
            for name in ("train_images", "test_images")
        }
        data = replace(data, **larger)
    return split_classes(data, 5, seed=seed)[:tasks]


def ending(run: ContinualRun) -> dict[str, Any]:
    """What a run has come to, but for wall times and the global generators, which each epoch begins anew."""
    state = copy.deepcopy(run.state_dict())
    for name in ("seconds", "random"):
        del state[name]
    for report in state["history"]:
        del report["seconds"]
    return state


def handed_over(make: Callable[[], ContinualRun], folder: Path, steps: int = 1) -> ContinualRun:
    """A run that is saved every few steps, each time to go on in a fresh object; the global generators are drawn from
    in between."""
    run = make()
    while not run.finished:
        stop_after(run, steps)
        run.save(folder / "checkpoint.pt")
        draw()
        run = make()
        run.load(folder / "checkpoint.pt")
        draw()
    return run


def remembered(run: ContinualRun, images: torch.Tensor) -> list[list[torch.Tensor]]:
    """Learns all tasks; after each one, the logits of every task so far by the network that serves it."""
    rows = []
    for report in run.epochs():
        if report.accuracies:
            with torch.no_grad():
                rows.append([run.serving(task).eval()(images) for task in range(report.task + 1)])
    return rows


__all__ = ["BACKBONE", "VGG", "ending", "handed_over", "remembered", "run_to_end", "tiny_tasks"]
