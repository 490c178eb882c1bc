"""The master network as a drawing, a film and a control."""

from __future__ import annotations

import copy
import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from film_stage import needs_node, of_class, play, shown, still
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from nasbook.continual import Backbone, MasterNetwork
from nasbook.continual.ownership import Slots, all_owned
from nasbook.errors import InvalidInput
from nasbook.plots import (
    animate_tasks,
    draw_master,
    explore_master,
    master_in_words,
    show_animation,
    tasks_in_words,
)
from nasbook.plots.master_network import (
    ABSENT,
    COPIED,
    NEW,
    REUSED,
    UNUSED,
    copy_lines,
    labelled_tasks,
    master_table,
    plan_strata,
)

# Three tasks. In "b" task 2 copies neuron 1, task 3 copies that copy (number 3).
SMALL: dict[str, Any] = {
    "widths": ["a", "b"],
    "made_by": {"a": [0, 0, 1], "b": [0, 0, 0, 1, 2, 2]},
    "copy_of": {"a": [-1, -1, -1], "b": [-1, -1, -1, 1, 3, -1]},
    "chosen": [{"a": [0, 1], "b": [0, 1, 2]}, {"a": [1, 2], "b": [0, 2, 3]}, {"a": [0, 2], "b": [1, 4, 5]}],
    "classes": [[3, 7], [0, 1], [2, 9]],
    "parameters": [100, 130, 1234],
}
ACCURACIES = [[0.9], [0.9, 0.8], [0.9, 0.8, 1.0]]
OTHER = [[0.9], [0.6, 0.8], [0.3, 0.5, 1.0]]


def described(layers: int, first: int, tasks: int, each: int, seed: int = 0) -> dict[str, Any]:
    """A master network in which each task makes about ``each`` neurons a layer, a part of them copies."""
    draw = np.random.default_rng(seed)
    names = [f"layer {number}" for number in range(layers)]
    made = {name: [0] * first for name in names}
    copies = {name: [-1] * first for name in names}
    chosen = [{name: list(range(first)) for name in names}]
    for task in range(1, tasks):
        part = {}
        for name in names:
            count = len(made[name])
            unlocked = np.flatnonzero(draw.random(count) < 0.3 * each / count).tolist()
            kept = [number for number in np.flatnonzero(draw.random(count) < 0.7).tolist() if number not in unlocked]
            new = int(draw.integers(0, each + 1))
            own = len(unlocked) + new
            part[name] = [*kept, *range(count, count + own)]
            made[name] += [task] * own
            copies[name] += [*unlocked, *[-1] * new]
        chosen.append(part)
    return {"widths": names, "made_by": made, "copy_of": copies, "chosen": chosen, "parameters": [9] * tasks}


def marks(figure: Figure, kind: str) -> int:
    """How many marks of a kind a drawing has."""
    found = [artist for artist in figure.axes[0].collections if artist.get_gid() == kind]
    assert len(found) < 2
    return len(found[0].get_paths()) if found else 0


def words(figure: Figure, name: str) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_gid() == name]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_what_neurons_are_to_a_task() -> None:
    table = master_table(SMALL)
    assert (table.tasks, table.neurons) == (3, 9)
    assert [states.tolist() for states in table.states(0)] == [[NEW, NEW, ABSENT], [NEW] * 3 + [ABSENT] * 3]
    assert [states.tolist() for states in table.states(1)] == [
        [UNUSED, REUSED, NEW], [REUSED, UNUSED, REUSED, COPIED, ABSENT, ABSENT]
    ]  # fmt: skip
    assert [states.tolist() for states in table.states(2)] == [
        [REUSED, UNUSED, REUSED], [UNUSED, REUSED, UNUSED, UNUSED, COPIED, NEW]
    ]  # fmt: skip
    assert [table.counts(task) for task in range(3)] == [(0, 0, 5, 0), (3, 1, 1, 2), (3, 1, 1, 4)]


def test_a_mask_has_the_originals_of_the_copies() -> None:
    table = master_table(SMALL)
    assert [states.tolist() for states in table.masked(1)] == [
        [UNUSED, REUSED, ABSENT], [REUSED, REUSED, REUSED, ABSENT, ABSENT, ABSENT]
    ]  # fmt: skip
    assert [states.tolist() for states in table.masked(2)][1] == [UNUSED, REUSED, UNUSED, REUSED, ABSENT, ABSENT]


def test_a_master_network_says_what_its_drawing_needs() -> None:
    backbone = Backbone("vgg11", (2,) * 8, 1, 8)
    master = MasterNetwork(backbone)
    first = backbone.build(2, 0)
    master.record("first", (3, 7), first, all_owned(first))
    # The second task keeps both neurons of every layer; in the first layer it copies neuron 1 and makes one more.
    names = list(first.neurons())
    second = master.backbone.build(2, 1, [3] + [2] * 7)
    slots = {name: Slots((0,), (1, -1)) if name == names[0] else Slots((0, 1)) for name in names}
    with torch.no_grad():
        new, old = dict(second.named_parameters()), dict(first.named_parameters())
        for name, parameter in old.items():
            if name.startswith("classifier"):
                continue
            if parameter.shape == new[name].shape:
                new[name].copy_(parameter)
            elif parameter.shape[0] != new[name].shape[0]:
                new[name][:2] = parameter
            else:
                new[name][:, :2] = parameter
    master.record("second", (0, 1), second, slots)
    found = master.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["widths"] == names and found["classes"] == [[3, 7], [0, 1]]
    assert found["made_by"] == {name: [0, 0, 1, 1] if name == names[0] else [0, 0] for name in names}
    assert found["copy_of"] == {name: [-1, -1, 1, -1] if name == names[0] else [-1, -1] for name in names}
    assert found["chosen"][0] == {name: [0, 1] for name in names}
    assert found["chosen"][1] == {name: [0, 2, 3] if name == names[0] else [0, 1] for name in names}
    assert found["parameters"] == [master.parameters(1), master.parameters()]
    assert master_table(master).counts(1)[:3] == master.composition(1) == (15, 1, 1)
    assert words(draw_master(master, 1), "title") == [
        "task 2 (classes 0, 1): 15 neurons reused, 1 unlocked copy, 1 new"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": []}, "empty; record at least one task"),
        ({"widths": []}, "empty; record at least one task"),
        ({"made_by": {"a": [0, 0, 1]}}, "the original of each neuron of 'b'; got 0 makers and 6 originals"),
        ({"made_by": {"a": [0, 0, 3], "b": [0, 0, 0, 1, 2, 2]}}, r"made_by\['a'\]: expected numbers of 0..2, got 0..3"),
        ({"made_by": {"a": [1, 0, 0], "b": [0, 0, 0, 1, 2, 2]}}, "'a' in the order in which tasks made them"),
        ({"copy_of": {"a": [-1, 2, -1], "b": [-1] * 6}}, "'a' in the order in which tasks made them"),
        ({"copy_of": {"a": [-2, -1, -1], "b": [-1] * 6}}, r"copy_of\['a'\]: expected numbers of -1..2, got -2..-1"),
        ({"chosen": [{"a": [0, 1], "b": [0, 1, 6]}, *SMALL["chosen"][1:]]}, r"chosen\[0\]\['b'\].*0..5, got 0..6"),
        ({"chosen": [{"a": [0, 1, 2], "b": [0, 1, 2]}] * 3}, "none of a later task"),
        ({"chosen": [{"a": [0], "b": [0, 1, 2]}] * 3}, "all neurons that the task has made"),
        ({"classes": [[1, 2]]}, "classes: expected one entry for each of 3 tasks, got 1"),
        ({"parameters": [1, 2]}, "parameters: expected one entry for each of 3 tasks, got 2"),
    ],
)
def test_what_is_no_master_network_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        draw_master({**SMALL, **change})


def test_missing_parts_and_tasks_are_named() -> None:
    with pytest.raises(InvalidInput, match="'copy_of' is missing"):
        draw_master({name: value for name, value in SMALL.items() if name != "copy_of"})
    for task in (-1, 3):
        with pytest.raises(InvalidInput, match=rf"task: expected an index of 0\.\.2, got {task}"):
            draw_master(SMALL, task)
        with pytest.raises(InvalidInput, match="task: expected"):
            master_in_words(SMALL, task)
    with pytest.raises(InvalidInput, match="empty; record"):
        draw_master(MasterNetwork(Backbone("vgg11", (2,) * 8, 1, 8)))


# --- where things stand -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 14), st.integers(1, 64), st.integers(1, 20), st.integers(0, 20), st.floats(150, 600))
def test_marks_lie_apart_and_inside(layers: int, first: int, tasks: int, each: int, wide: float) -> None:
    table = master_table(described(layers, first, tasks, each))
    strata = plan_strata(table, wide, 300.0)
    spots = np.concatenate(strata.spots)
    makers = np.concatenate(table.made_by)
    half = strata.pitch / 2
    assert strata.height <= 300.0001 and 0 < strata.side < strata.pitch
    assert (spots[:, 0] >= half - 1e-6).all() and (spots[:, 0] <= wide - half + 1e-6).all()
    tops, heights = np.array(strata.tops), np.array(strata.heights)
    assert (spots[:, 1] >= tops[makers] + half - 1e-6).all()
    assert (spots[:, 1] <= (tops + heights)[makers] - half + 1e-6).all()
    assert (tops[1:] >= (tops + heights)[:-1]).all()  # strata don't overlap
    order = np.lexsort((spots[:, 0], spots[:, 1].round(3)))
    same = np.diff(spots[order, 1].round(3)) == 0
    assert (np.diff(spots[order, 0])[same] >= strata.pitch - 1e-6).all()
    rows = np.unique(spots[:, 1].round(4))
    assert (np.diff(rows) >= strata.pitch - 1e-3).all()
    for one, two in zip(strata.lefts, strata.lefts[1:], strict=False):
        assert two - one > strata.wide  # columns neither


def test_few_neurons_are_large_and_many_small() -> None:
    few, many = (
        plan_strata(master_table(described(8, first, 5, each)), 500.0, 300.0) for first, each in ((4, 2), (60, 20))
    )
    assert few.pitch == 11 and few.wide == 11  # one abreast
    assert 3 < many.pitch < 11 and many.wide > 2 * many.pitch


def test_numbers_of_tasks_stand_apart() -> None:
    strata = plan_strata(master_table(described(3, 8, 40, 3)), 500.0, 200.0)
    middles = np.array([strata.tops[task] + strata.heights[task] / 2 for task in labelled_tasks(strata, 9.0)])
    assert (np.diff(middles) >= 9).all() and len(middles) > 10


# --- the drawing ------------------------------------------------------------------------------------------------------


def test_the_drawing_has_a_mark_for_each_neuron() -> None:
    figure = draw_master(SMALL, 1)
    assert {kind: marks(figure, kind) for kind in ("reused, locked", "unlocked copy", "new", "not used", "lines")} == {
        "reused, locked": 3, "unlocked copy": 1, "new": 1, "not used": 2, "lines": 1,
    }  # fmt: skip
    assert marks(figure, "middle of a copy") == 1
    assert words(figure, "title") == ["task 2 (classes 0, 1): 3 neurons reused, 1 unlocked copy, 1 new"]
    assert words(figure, "used") == ["2", "3"] and words(figure, "made") == ["3", "4"]
    assert words(figure, "task") == ["task 1", "2"]  # the third has made nothing yet
    assert words(figure, "layer") == ["1", "2"]
    (band,) = figure.axes[0].patches
    strata = plan_strata(master_table(SMALL), 564.0, 300.0)
    assert band.get_gid() == "band" and band.get_y() == strata.tops[1] - 2


def test_the_drawing_of_all_tasks() -> None:
    figure = draw_master(SMALL, title="All of it")
    assert (marks(figure, "new"), marks(figure, "unlocked copy"), marks(figure, "not used")) == (7, 2, 0)
    assert marks(figure, "lines") == 2
    assert words(figure, "used") == ["3", "6"] and words(figure, "made") == []
    assert words(figure, "title") == ["All of it"] and not figure.axes[0].patches


def test_colours_are_those_of_the_makers() -> None:
    figure = draw_master(SMALL, 2)
    (reused,) = [artist for artist in figure.axes[0].collections if artist.get_gid() == "reused, locked"]
    fills = np.asarray(reused.get_facecolor())
    assert len({tuple(fill) for fill in fills.round(4).tolist()}) == 2  # of tasks 1 and 2
    assert tuple(fills[0]) == tuple(fills[2]) != tuple(fills[1])


def test_lines_lead_from_originals_to_copies() -> None:
    table = master_table(SMALL)
    strata = plan_strata(table, 500.0, 300.0)
    (line,) = copy_lines(table, strata, table.states(2), 1)
    assert line[0].tolist() == strata.spots[1][3].tolist() and line[2].tolist() == strata.spots[1][4].tolist()
    assert line[1][0] < min(line[0][0], line[2][0])  # bends to the left
    assert copy_lines(table, strata, table.states(0), 1).shape == (0, 3, 2)


def test_many_neurons_are_drawn_within_the_page() -> None:
    figure = draw_master(described(13, 64, 20, 15), 19)
    table = master_table(described(13, 64, 20, 15))
    reused, copied, new, unused = table.counts(19)
    assert [marks(figure, kind) for kind in ("reused, locked", "unlocked copy", "new", "not used")] == [
        reused, copied, new, unused,
    ]  # fmt: skip
    assert figure.get_figheight() < 4.6


def test_the_drawing_in_words() -> None:
    assert master_in_words(SMALL, 2) == (
        "The network of task 3 (classes 2, 9) has 5 neurons in 2 layers: 3 reused, 1 unlocked copy and 1 new. It "
        "reuses 2 of task 1, 1 of task 2, and leaves out 4, the originals of its copies among them."
    )
    assert master_in_words(SMALL, 0) == (
        "The network of task 1 (classes 3, 7) has 5 neurons in 2 layers: 0 reused, 0 unlocked copies and 5 new."
    )
    assert master_in_words(SMALL).startswith(
        "The master network of 3 tasks has 9 neurons in 2 layers: 5 by task 1, 2 by task 2, 2 by task 3. 2 of them"
    )


# --- the film ---------------------------------------------------------------------------------------------------------


def squares(elements: list[dict[str, Any]]) -> list[int]:
    return [len(re.findall("M", element.get("d", ""))) for element in elements]


def test_the_film_has_two_frames_a_task() -> None:
    film = animate_tasks(SMALL, ACCURACIES, beside={"fine-tuned": OTHER})
    data = json.loads(film.data)
    assert film.frames == len(data["headings"]) == 5 and film.still == 4
    assert data["headings"] == [
        "task 1 of 3 (classes 3, 7) is learned",
        "task 2 of 3 (classes 0, 1) arrives",
        "task 2 of 3 (classes 0, 1) is learned",
        "task 3 of 3 (classes 2, 9) arrives",
        "task 3 of 3 (classes 2, 9) is learned",
    ]
    assert data["details"] == [
        "5 neurons",
        "its mask keeps 4 of 5 neurons",
        "3 neurons reused, 1 unlocked copy, 1 new",
        "its mask keeps 4 of 7 neurons",
        "3 neurons reused, 1 unlocked copy, 1 new",
    ]
    assert data["means"] == [["90.0 %", "85.0 %", "90.0 %"], ["90.0 %", "70.0 %", "60.0 %"]]
    assert data["sizes"] == ["100", "130", "1.23k"]
    assert (one := animate_tasks({**SMALL, "accuracies": ACCURACIES})).data == animate_tasks(SMALL, ACCURACIES).data
    assert "1.23k" in one.picture


@needs_node
def test_the_film_shows_what_the_tables_say() -> None:
    film = animate_tasks(SMALL, ACCURACIES, beside={"fine-tuned": OTHER})
    table = master_table(SMALL)
    order = [4, 0, 1, 2, 3]
    for frame, seen in zip(order, play(film, order), strict=True):
        task, learned = (frame + 1) // 2, frame % 2 == 0
        states = table.states(task) if learned else table.masked(task)
        found = np.concatenate(states)
        makers = np.concatenate(table.made_by)
        picture = seen["picture"]
        assert squares(of_class(picture, "lit")) == [int(((found > UNUSED) & (makers == n)).sum()) for n in range(3)]
        assert squares(of_class(picture, "pale")) == [int(((found == UNUSED) & (makers == n)).sum()) for n in range(3)]
        own, copied = int((found >= COPIED).sum()), int((found == COPIED).sum())
        assert squares(of_class(picture, "edges")) == [own]
        assert squares(of_class(picture, "whites")) == squares(of_class(picture, "lines")) == [copied]
        assert [e["textContent"] for e in of_class(picture, "used")] == [int((one > UNUSED).sum()) for one in states]
        assert [e["textContent"] for e in of_class(picture, "made")] == [int((one != ABSENT).sum()) for one in states]
        rows = task + learned
        for matrix, values in zip(of_class(picture, "matrix"), (ACCURACIES, OTHER), strict=True):
            assert [shown(row) for row in of_class(matrix, "row")] == [number < rows for number in range(3)]
            assert of_class(matrix, "mean")[0]["textContent"] == f"{100 * np.mean(values[rows - 1]):.1f} %"
        assert [shown(number) for number in of_class(picture, "task")] == [n <= task for n in range(3)]
        assert of_class(picture, "size")[0]["textContent"] == ("100", "130", "1.23k")[rows - 1]
        assert seen["spoken"].endswith(f"fine-tuned: {100 * np.mean(OTHER[rows - 1]):.1f} %")


@needs_node
@pytest.mark.parametrize("layers", [2, 13])
def test_the_script_at_the_last_frame_changes_nothing(layers: int) -> None:
    master = described(layers, 30 if layers > 2 else 5, 9, 8)
    film = animate_tasks(master, [[0.5] * (row + 1) for row in range(9)])
    (seen,) = play(film, [film.still])
    before = still(film)
    for name in ("lit", "pale", "edges", "whites", "lines"):
        for one, two in zip(of_class(before, name), of_class(seen["picture"], name), strict=True):
            first, second = (np.array(re.findall(r"-?[\d.]+", e["d"]), dtype=float) for e in (one, two))
            assert first.shape == second.shape
            assert np.abs(first - second).max(initial=0) < 0.16, name
            assert re.sub(r"[-\d. ]", "", one["d"]) == re.sub(r"[-\d. ]", "", two["d"])
    for name in ("heading", "detail", "used", "made", "mean", "size"):
        assert [e["textContent"] for e in of_class(before, name)] == [
            str(e["textContent"]) for e in of_class(seen["picture"], name)
        ]
    for name in ("band", "frame", "veil"):
        for one, two in zip(of_class(before, name), of_class(seen["picture"], name), strict=True):
            for attribute in ("y", "width", "height"):
                assert float(two[attribute]) == pytest.approx(float(one[attribute]), abs=0.1), (name, attribute)


def test_a_long_film_is_small() -> None:
    master = described(13, 64, 20, 12)
    matrix = [[0.9] * (row + 1) for row in range(20)]
    shown_film = show_animation(animate_tasks(master, matrix, beside={"EWC": matrix}), "Tasks arrive.")
    assert len(shown_film.data) < 150_000
    assert "{alt}" not in shown_film.data and 'aria-label="Tasks arrive."' in shown_film.data


def test_one_task_is_a_film_too() -> None:
    alone = {"widths": ["a"], "made_by": {"a": [0]}, "copy_of": {"a": [-1]}, "chosen": [{"a": [0]}], "parameters": [7]}
    film = animate_tasks(alone, [[0.25]])
    assert film.frames == 1 and json.loads(film.data)["headings"] == ["task 1 of 1 is learned"]
    assert "the others make none" in tasks_in_words(alone, [[0.25]])


def test_the_film_in_words() -> None:
    said = tasks_in_words(SMALL, ACCURACIES, beside={"EWC": OTHER})
    assert said.startswith("3 tasks arrive at a network of 2 layers. Task 1 makes 5 neurons, the others make 2, 2;")
    assert "1.23k parameters" in said and said.endswith("at the end, Firefly: 90.0 %; EWC: 60.0 %.")


@pytest.mark.parametrize(
    ("accuracies", "beside", "message"),
    [
        (None, None, "accuracies: expected a row for each task"),
        ([[0.9], [0.9]], None, r"accuracies of Firefly: expected one accuracy in the first row.*\[1, 1\]"),
        ([[0.9], [0.9, 0.8]], None, "expected the accuracies of 3 tasks, got 2 rows"),
        ([[90.0], [90, 80], [90, 80, 70]], None, r"shares of 0\.\.1"),
        (ACCURACIES, {"a": OTHER, "b": OTHER}, "one learner of another label"),
        (ACCURACIES, {"Firefly": OTHER}, "one learner of another label"),
        (ACCURACIES, {"EWC": OTHER[:2]}, "accuracies of EWC: expected the accuracies of 3 tasks"),
    ],
)
def test_other_tasks_are_refused(accuracies: Any, beside: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        animate_tasks(SMALL, accuracies, beside=beside)


def test_a_film_needs_parameters() -> None:
    with pytest.raises(InvalidInput, match="expected the parameters after each task"):
        animate_tasks({**SMALL, "parameters": []}, ACCURACIES)


# --- the control ------------------------------------------------------------------------------------------------------


def test_the_control_redraws_the_chosen_task() -> None:
    pytest.importorskip("ipywidgets")
    before = copy.deepcopy(SMALL)
    box = explore_master(SimpleNamespace(master=SMALL))
    choice, counts, picture = box.children
    assert [label for label, _ in choice.options] == [
        "all tasks", "task 1 (classes 3, 7)", "task 2 (classes 0, 1)", "task 3 (classes 2, 9)"
    ]  # fmt: skip
    assert choice.value == 2 and counts.value == master_in_words(SMALL, 2)
    choice.value = 0
    assert counts.value == master_in_words(SMALL, 0) and "network of task 1 " in picture.value
    choice.value = None
    assert counts.value == master_in_words(SMALL) and before == SMALL


def test_without_ipywidgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InvalidInput, match="needs ipywidgets"):
        explore_master(SMALL)
