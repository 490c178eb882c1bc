"""``nasbook continual``: one task after the other; ``nasbook test``: the networks of a master network.

Tasks are counted from 1 here and in pictures, as in the paper; files have lists, and indices from 0.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from nasbook.cli.images import is_folder, load_images_of
from nasbook.cli.options import (
    ContinualOptions,
    FolderOptions,
    ImageRunOptions,
    MasterOptions,
    Usage,
    parse,
    positional,
    scale_in,
    value_of,
)
from nasbook.cli.runs import curves, drive_run, write_json
from nasbook.errors import InvalidInput, unknown_name


def learn_tasks(arguments: list[str]) -> None:
    """Divides the classes of an image set into tasks, and learns one after the other by a method."""
    from nasbook.experiments import continual_config, continual_scale, get_scale
    from nasbook.methods import LEARNERS
    from nasbook.networks import GROWABLE_NETWORKS, STANDARD_WIDTHS, scaled_widths

    name, rest = positional(arguments, "continual", "METHOD", f"One of: {', '.join(LEARNERS)}.", LEARNERS)
    scale = get_scale(scale_in(rest))
    own = continual_scale(scale)
    network = value_of("--network", rest) or own.backbone
    if network not in GROWABLE_NETWORKS:  # the widths depend on it
        raise unknown_name("growable network", network, GROWABLE_NETWORKS)
    defaults: ContinualOptions[Any] = ContinualOptions(
        out=Path("runs") / name,
        data=own.continual_data,
        scale=scale.name,
        tasks=own.tasks,
        seen_tasks=own.seen_tasks if value_of("--tasks", rest) is None else None,
        network=network,
        widths=scaled_widths(network, _share_of_widths(name, own)),
        config=continual_config(name, scale),
    )
    title = (LEARNERS[name].__doc__ or "").splitlines()[0]
    kind: Any = ContinualOptions  # subscripted with a class that is known only now
    options = parse(kind[LEARNERS[name]], defaults, f"nasbook continual {name}", title, rest)
    if not options.widths:
        raise Usage("Give --widths one number, or one for each layer.")
    order = [place - 1 for place in options.order]
    if order and sorted(order) != list(range(options.tasks)):
        raise Usage(f"--order must have each of 1 to {options.tasks} once, got {' '.join(map(str, options.order))}.")
    if options.seen_tasks is not None and not 1 <= options.seen_tasks <= options.tasks:
        raise Usage(f"--seen-tasks must be 1 to {options.tasks}, the number of tasks; got {options.seen_tasks}.")
    _check_test_images(options.data, options.folder)

    from nasbook.continual import Backbone, split_classes

    data = load_images_of(options, _on_tasks(scale))
    tasks = split_classes(data, options.tasks, seed=options.split_seed, order=order or None)
    layers = 1 if len(options.widths) > 1 else len(STANDARD_WIDTHS[options.network])
    backbone = Backbone(options.network, options.widths * layers, data.channels, data.size)
    run = options.config.begin(tasks[: options.seen_tasks], backbone, options.seed)
    drive_run(run, options, f"continual {name}")
    _write(run, options)


def evaluate_tasks(arguments: list[str]) -> None:
    """Evaluates the networks of a saved master network, each on the test images of its own classes."""
    from nasbook.experiments import get_scale

    expected = "The master.safetensors of `nasbook continual firefly-continual`."
    path, rest = positional(arguments, "test", "MASTER", expected)
    scale = _on_tasks(get_scale(None))
    title = "Test the networks of a master network, each on its own classes' test images."
    options = parse(MasterOptions, MasterOptions(data=scale.data), "nasbook test MASTER", title, rest)
    _check_test_images(options.data, options.folder)

    from nasbook.continual import take_classes
    from nasbook.training import evaluate

    master = _read_master(path)
    if options.task is not None and not 1 <= options.task <= len(master):
        raise InvalidInput(f"{path} knows the tasks 1 to {len(master)}; --task is {options.task}.")
    chosen = range(len(master)) if options.task is None else [options.task - 1]
    images = ImageRunOptions(
        out=Path(), data=options.data, scale=scale.name, device=options.device, quiet=options.quiet,
        folder=options.folder,
    )  # fmt: skip
    data = load_images_of(images, scale)
    backbone = master.backbone
    if (data.channels, data.size) != (backbone.in_channels, backbone.size):
        raise InvalidInput(
            f"{path} is for images of {backbone.in_channels} channels and {backbone.size} pixels a side; "
            f"--data {options.data} has {data.channels} and {data.size}."
        )
    correct = []
    for number in chosen:
        task = take_classes(data, master.tasks[number].classes)
        network = master.network(number).to(data.test_images.device)
        correct.append(evaluate(network, task.data.test_images, task.data.test_labels, task.data)[1])
        neurons = sum(network.neurons().values())
        print(
            f"task {number + 1} ({task.name}): test accuracy {correct[-1]:.2%} on {len(task.data.test_labels):,} "
            f"images, {neurons:,} neurons"
        )
    if len(correct) > 1:
        print(f"average accuracy {np.mean(correct):.2%}, {master.parameters():,} parameters")


def figure_of_tasks(name: str, task: int | None) -> Any:
    """The picture of a master network, or of the accuracies in the result.json of a learner that has none.

    Args:
        name: a path.
        task: whose network is shown, from 1; None for all.

    Returns:
        None if the name is of something else, or there is no master network that could have the task.

    Raises:
        InvalidInput: the file is not whole, or it has no such task.
    """
    if name.endswith(".safetensors"):
        return _drawn(_read_master(name).describe(), task)
    from nasbook.methods import LEARNERS

    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        method = content["method"]
    except (OSError, ValueError, KeyError, TypeError):  # read as something else, it is said what is wrong
        return None
    if method not in LEARNERS:
        return None
    try:
        if "master" in content:
            return _drawn(content["master"], task)
        if task is None:
            from nasbook.plots import plot_accuracy_matrices

            return plot_accuracy_matrices({method: content["accuracies"]})
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is not whole: what it has learned can't be read ({error!r}).") from None
    return None


def _read_master(path: str) -> Any:
    """The master network in a file, every network of which can be taken out.

    Raises:
        InvalidInput: there is no such file, it is none of a master network, or its header and tensors don't agree.
    """
    from nasbook.continual import MasterNetwork

    master = MasterNetwork.load(path)  # a checksum stands for header and tensors
    if not len(master):
        raise InvalidInput(f"{path} is a master network that has learned no task.")
    return master


def _drawn(described: dict[str, Any], task: int | None) -> Any:
    from nasbook.plots import draw_master

    known = len(described["chosen"])
    if task is not None and not 1 <= task <= known:
        raise InvalidInput(f"the master network knows the tasks 1 to {known}; --task is {task}.")
    return draw_master(described, None if task is None else task - 1)


def _on_tasks(scale: Any) -> Any:
    """The scale with the set that is divided into tasks, cut as for Table 2."""
    from nasbook.experiments import get_experiment

    return get_experiment("continual-tasks").scaled(scale)


def _share_of_widths(method: str, scale: Any) -> float:
    """The share of the standard widths with which the experiments begin; the full one if they lack the learner."""
    from nasbook.experiments.continual import CONTINUAL_LEARNERS, THIN

    label = next((label for label, (name, _) in CONTINUAL_LEARNERS.items() if name == method), "")
    return scale.thin_share if label in THIN else scale.full_share


def _check_test_images(data: str, folder: FolderOptions) -> None:
    if is_folder(data) and not folder.test_share:
        raise Usage("The networks are evaluated on test images: give a --test-share above 0.")


def _write(run: Any, options: ContinualOptions[Any]) -> None:
    """Writes result.json and, where there is one, the master network; prints what was learned, kept and lost."""
    from nasbook.analysis import average_accuracy, backward_transfer, forgetting
    from nasbook.methods.firefly_continual import FireflyContinual

    matrix, lost = run.accuracies, forgetting(run.accuracies)
    extra = run.epoch / len(run.tasks) - run.config.epochs
    header = run.header()
    content: dict[str, Any] = {
        **header,
        "data": options.data,
        "split_seed": options.split_seed,
        "tasks": [
            {
                "name": task.name,
                "classes": list(task.classes),
                "train_images": len(task.data.train_labels),
                "test_images": len(task.data.test_labels),
                "checksum": checksum,
            }
            for task, checksum in zip(run.tasks, header["tasks"], strict=True)
        ],
        "accuracies": matrix,
        "average_accuracy": average_accuracy(matrix),
        "forgetting": lost.tolist(),
        "backward_transfer": backward_transfer(matrix),
        "memory": run.memory,
        "epochs": run.epoch,
        "extra_epochs": extra,
        "seconds": sum(report.seconds for report in run.history),
    }
    made = []
    if isinstance(run, FireflyContinual):
        content["growths"] = [vars(growth) for growth in run.growths]
        content["master"] = run.master.describe()
        made.append(run.master.save(options.out / "master.safetensors"))
    content["history"] = [
        {**row, "phase": report.phase} for row, report in zip(curves(run.history), run.history, strict=True)
    ]
    write_json(options.out / "result.json", content)
    for number, task in enumerate(run.tasks):
        now = "" if number == len(matrix) - 1 else f", {matrix[-1][number]:.2%} at the end"
        print(
            f"task {number + 1} (classes {', '.join(map(str, task.classes))}): test accuracy "
            f"{matrix[number][number]:.2%}{now}; {run.memory[number]:,} parameters"
        )
    forgotten = f"forgetting {np.mean(lost):.2%}, " if len(lost) else ""
    print(
        f"average accuracy {average_accuracy(matrix):.2%}, {forgotten}{run.memory[-1]:,} parameters, "
        f"{extra:.1f} extra epochs a task"
    )
    for path in made:
        print(f"master network: {path}")
        print(f"test it: {shlex.join(['nasbook', 'test', str(path), *_same_images(options)])}")
        print(f"draw it: {shlex.join(['nasbook', 'draw', str(path), '--out', 'master.png'])}")


def _same_images(options: ContinualOptions[Any]) -> Sequence[str]:
    """The arguments with which another command gets the same images."""
    given = ["--data", options.data]
    if is_folder(options.data):
        usual = FolderOptions()
        for field in fields(FolderOptions):
            value = getattr(options.folder, field.name)
            if value != getattr(usual, field.name):
                given += [f"--{field.name.replace('_', '-')}", str(value)]
    return given
