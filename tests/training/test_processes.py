"""Several processes make the step of one, stay alike to the bit, and stop, fail and resume together."""

import importlib.util
import signal
from pathlib import Path

import pytest
import torch

from nasbook import processes
from nasbook.errors import InvalidInput
from nasbook.methods import METHODS, SEQUENCE_METHODS

HERE = Path(__file__).parent
FORMS = ("first-order", "second-order", "finite-difference")
GROWN = ("growing, convolutional", "growing-recurrent, series", "growing-recurrent, text")
KINDS = (
    *FORMS, *(f"milenas, {form}" for form in FORMS), "stretchable", "pc-darts", "entrannas", "entrannas-dst", "fit",
    *GROWN,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """How every case of ``process_cases.py`` ended."""
    specification = importlib.util.spec_from_file_location("worlds", HERE.parent / "worlds.py")
    worlds = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(worlds)
    return worlds.outcomes(HERE / "process_cases.py", tmp_path_factory.mktemp("worlds"))


def values(found, case):
    """What the processes of a case returned."""
    assert [outcome.error for outcome in found[case]] == [None] * len(found[case])
    return [outcome.value for outcome in found[case]]


def errors(found, case):
    """What the processes of a case raised."""
    assert all(outcome.error for outcome in found[case])
    return [outcome.error for outcome in found[case]]


def furthest(got, expected, where="state"):
    """The largest difference between two states, absolute or relative where values are large, and where it is."""
    assert type(got) is type(expected), where
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        return max((furthest(got[key], expected[key], f"{where}.{key}") for key in expected), default=(0.0, where))
    if isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        pairs = enumerate(zip(got, expected, strict=True))
        return max((furthest(g, e, f"{where}[{i}]") for i, (g, e) in pairs), default=(0.0, where))
    if isinstance(expected, torch.Tensor | float):
        got, expected = (torch.as_tensor(value).double() for value in (got, expected))
        assert got.shape == expected.shape and torch.equal(got.isnan(), expected.isnan()), where
        difference = ((got - expected).abs() / expected.abs().clamp(min=1)).nan_to_num()
        return (float(difference.max()) if difference.numel() else 0.0), where
    assert got == expected, where
    return 0.0, where


SINGLE = 2e-6
"""What single precision leaves of measurements and evaluations, which are kept in it."""
EVALUATED = ("history", "measured", "events", "losses")


def compare(got, expected):
    """Two endings: the same up to rounding in double precision, and reports up to that in single precision."""
    for part in expected:
        allowed = SINGLE if part in EVALUATED else 1e-10
        difference, where = furthest(got[part], expected[part], part)
        assert difference < allowed, where


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_steps_of_one(found, kind, same):
    [alone], [first, second] = values(found, f"{kind}, 1"), values(found, f"{kind}, 2")
    same(second, first)  # replicas, to the bit
    compare(first, alone)
    if kind in GROWN:
        return  # what happened in their stages is below
    assert (alone["epoch"], len(alone["history"])) == (1, 1)
    moved = first["network"]["classifier.weight"]
    assert moved.dtype == torch.float64 and moved.abs().max() > 0.01


NO_GRADIENT = {"random-search", "regularized-evolution", "local-search"}
"""They train what they draw, sample by sample; one of them is below."""
ALONE = {"firefly-cells"}
"""They run in one process, and say so."""


def test_every_differentiable_method_is_compared():
    compared = {"darts" if kind in FORMS else kind.split(",")[0] for kind in KINDS} - {"fit"} | {"pr-darts"}
    assert compared == {*METHODS, *SEQUENCE_METHODS} - NO_GRADIENT - ALONE


CHANGES = {
    "growing, convolutional": ["prune", "node", "prune"],
    "growing-recurrent, series": ["split", "node", "split", "stop", "prune"],
    "growing-recurrent, text": ["operations", "prune", "node", "operations", "prune"],
}


@pytest.mark.parametrize("kind", GROWN)
def test_cells_grow_alike_in_two_processes(found, kind):
    """The same changes after the same epochs; that the networks are the same, the comparison above says."""
    [alone], [first, _] = values(found, f"{kind}, 1"), values(found, f"{kind}, 2")
    for state in (alone, first):
        assert [event["what"] for event in state["events"]] == CHANGES[kind]
        for event in state["events"]:
            assert bool(event["operations"]) == (event["what"] in ("split", "operations"))
    changes = [[(event["epoch"], event["stage"], event["operations"]) for event in s["events"]] for s in (first, alone)]
    assert furthest(*changes)[0] < 1e-10
    assert all(value.dtype == torch.float64 for name, value in first["now"]["network"].items() if "weight" in name)


def test_a_growing_search_goes_on_in_two_processes_to_the_same_bits(found, same):
    """After the first pruning: from a checkpoint of a cell that is no longer the one at the start."""
    assert values(found, "growing, interrupted") == [("interrupted", 1, 2)] * 2
    undisturbed = values(found, "growing, convolutional, 2")[0]
    for resumed in values(found, "growing, after the interrupt"):
        same(resumed, undisturbed)
    assert found["growing, killed"][1].signal == signal.SIGKILL
    [alone] = values(found, "growing, after the kill, alone")
    compare(alone, undisturbed)


def test_a_growing_search_by_parts_is_another_with_equal_replicas(found, same):
    first, second = values(found, "growing, by parts")
    same(second, first)
    got, expected = (state["history"][0]["coefficients"] for state in (first, values(found, GROWN[0] + ", 2")[0]))
    assert furthest(got, expected)[0] > 1e-4
    [(kind, message)] = errors(found, "growing, parts, alone")
    assert kind == "CheckpointError" and "its parts is 2, this run's is None" in message


def test_pools_change_alike_in_two_processes(found, same):
    """Over the end of a cycle: the same are pruned, the same are born, with the same weights."""
    [alone], [first, second] = values(found, "pr-darts, 1"), values(found, "pr-darts, 2")
    same(second, first)
    assert [life["born"] for life in alone["pools"]["normal"][0]] == [1, 1, 2, 2]
    assert [life["died"] for life in alone["pools"]["normal"][0]].count(1) == 1
    compare(first, alone)
    first, second = values(found, "pr-darts, by parts")
    same(second, first)
    assert furthest(first["history"][0]["coefficients"], alone["history"][0]["coefficients"])[0] > 1e-4


def test_a_batch_grows_alike_in_two_processes(found, same):
    first, second = values(found, "pr-darts, growing")
    same(second, first)
    sizes = first["measured"][:, 3].tolist()
    assert sizes[:6] == [4, 4, 4, 4, 4, 16] and first["memory"] > 0
    assert values(found, "pr-darts, interrupted") == [("interrupted", 0, 5)] * 2
    for resumed in values(found, "pr-darts, resumed"):
        same(resumed, first)
    assert errors(found, "pr-darts, odd steps") == [
        ("InvalidInput", "batch_multiple must be a multiple of the 2 processes.")
    ] * 2


def test_four_processes_make_the_steps_of_one(found, same):
    [alone], replicas = values(found, "fit, 1"), values(found, "fit, 4")
    for replica in replicas[1:]:
        same(replica, replicas[0])
    compare(replicas[0], alone)


@pytest.mark.parametrize(("kind", "alone"), [("first-order", "first-order, 1"), ("fit", "fit, undisturbed")])
def test_norms_of_the_own_part_are_another_run_with_equal_replicas(found, kind, alone, same):
    alone, [first, second] = values(found, alone)[0], values(found, f"{kind}, by parts")
    same(second, first)
    assert furthest(first["network"], alone["network"])[0] > 1e-3  # which the comparisons above would notice


def test_random_search_in_two_processes(found, same):
    first, second = values(found, "random-search")
    same(second, first)
    assert len(first["history"]) == 4


@pytest.mark.parametrize("kind", ["first-order", "fit"])
def test_ctrl_c_in_one_process_ends_the_same_step_in_all(found, kind, same):
    assert values(found, f"{kind}, interrupted") == [("interrupted", 1, 2)] * 2
    undisturbed = values(found, f"{kind}, undisturbed")[0]
    for resumed in values(found, f"{kind}, after the interrupt"):
        same(resumed, undisturbed)


@pytest.mark.parametrize("kind", ["first-order", "fit"])
def test_a_run_that_lost_a_process_goes_on_in_one(found, kind):
    first, second = found[f"{kind}, killed"]
    assert second.signal == signal.SIGKILL
    assert first.error is not None and first.signal == 0  # it does not wait for the dead
    [alone] = values(found, f"{kind}, after the kill, alone")
    compare(alone, values(found, f"{kind}, undisturbed")[0])


def test_norms_of_the_own_part_resume_with_as_many_processes_only(found, same):
    assert values(found, "parts, interrupted") == [("interrupted", 1, 2)] * 2
    [(kind, message)] = errors(found, "parts, alone")
    assert kind == "CheckpointError" and "its parts is 2, this run's is None" in message
    undisturbed = values(found, "fit, by parts")[0]
    for resumed in values(found, "parts, resumed"):
        same(resumed, undisturbed)


def test_divergence_in_one_process_raises_in_all(found):
    for kind, message in errors(found, "diverged"):
        assert kind == "TrainingDiverged"
        assert message.startswith("The train loss became nan at epoch 2, step 2 of 3.")


@pytest.mark.parametrize("what", ["41", "1", "text, 41", "text, 1"])  # with 1, there are more processes than examples
def test_an_evaluation_is_divided(found, what):
    [(loss, correct)] = values(found, f"evaluated, {what}, 1")
    for count in (2, 3):
        results = values(found, f"evaluated, {what}, {count}")
        assert len(set(results)) == 1
        assert results[0][0] == pytest.approx(loss, rel=1e-6)
        assert results[0][1] == pytest.approx(correct, rel=1e-6)


@pytest.mark.parametrize("what", ["other seeds", "other weights"])
def test_processes_that_are_not_alike_are_refused(found, what):
    first, second = errors(found, what)
    start = "The processes of a run must have the same run and the same network; "
    assert first[0] == second[0] == "InvalidInput"
    assert first[1].startswith(start + "another process differs from process 0. Give all of them the same seed")
    assert second[1].startswith(start + "process 1 differs from process 0. ")


def test_what_can_not_be_shared(found):
    assert errors(found, "odd batch") == [
        ("InvalidInput", "A batch of 33 images can't be divided equally among 2 processes. "
                         "Make batch_size a multiple of 2.")] * 2
    assert errors(found, "growing, odd batch") == [
        ("InvalidInput", "A batch of 15 images can't be divided equally among 2 processes. "
                         "Make batch_size a multiple of 2.")] * 2
    assert errors(found, "growing-recurrent, odd batch") == [
        ("InvalidInput", "A batch of 15 examples can't be divided equally among 2 processes. "
                         "Make batch_size a multiple of 2.")] * 2
    assert errors(found, "compiled") == [
        ("InvalidInput", "A compiled step knows of no other processes: leave compile out, or run in one process.")] * 2
    assert errors(found, "rows") == [("InvalidInput", "2 processes can't share 5 rows equally.")] * 2
    assert errors(found, "join again") == [
        ("InvalidInput", "These processes work together already; joined() is for the outermost block of a program.")
    ] * 2


def test_a_failure_of_the_first_reaches_the_others(found):
    first, second = errors(found, "fail to write")
    assert first[0] == "FileNotFoundError"
    assert second == ("ProcessFailed", "The first process failed; its error says why.")


def test_messages(found):
    first, second = values(found, "messages")
    assert [one["who"] for one in (first, second)] == [(0, 2, True, "cpu"), (1, 2, False, "cpu")]
    for one in (first, second):
        assert [tensor.tolist() for tensor in one["mean"]] == [[[0.5] * 3] * 2, 1.5, [5.0]]
        assert [tensor.tolist() for tensor in one["total"]] == [[[1.0] * 3] * 2, 3.0, [10.0]]
        assert [tensor.dtype for tensor in one["mean"]] == [torch.float32, torch.float64, torch.float32]
        assert torch.equal(one["last"], torch.arange(24.0).view(1, 2, 3, 4) + 0.5)
        assert one["last"].is_contiguous(memory_format=torch.channels_last)
        assert one["any"] == [False, True, True]
    assert first["inputs"][0].tolist() == [[0.0] * 3] * 2  # as they were
    assert (first["part"].tolist(), second["part"].tolist()) == ([0, 1, 2], [3, 4, 5])
    assert (first["ahead"], second["ahead"]) == ([], ["0"])
    assert (first["wrote"], second["wrote"]) == ([0], [])


def test_alone_everything_is_as_given(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensors = [torch.ones(2, requires_grad=True) * 2, torch.zeros(3)]
    assert not processes.launched()
    with processes.joined(torch.device("cpu")) as device:
        assert device == torch.device("cpu") and not torch.distributed.is_initialized()
    assert (processes.count(), processes.rank(), processes.is_first()) == (1, 0, True)
    assert processes.device_of_run() is None
    for function in (processes.mean, processes.total):
        assert all(got is given for got, given in zip(function(tensors), tensors, strict=True))
    assert processes.sum_over_processes(tensors[0]) is tensors[0]
    assert torch.equal(processes.own_part(tensors[1]), tensors[1])
    assert (processes.any_process(True), processes.any_process(False)) == (True, False)
    processes.require_same("text", "a", [tensors[1]])
    with pytest.raises(OSError):
        processes.in_first(lambda: Path("/not there/file").touch())


def test_torchrun_with_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes.joined(torch.device("cpu")):
        assert processes.count() == 1 and not torch.distributed.is_initialized()


@pytest.fixture
def two_launched(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


def join(device):
    with processes.joined(torch.device(device)):
        raise AssertionError


@pytest.mark.usefixtures("two_launched")
def test_each_process_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidInput, match=r"^2 processes need as many GPUs, torch finds 1\. Lower"):
        join("cuda")
    with pytest.raises(InvalidInput, match=r"^Each process takes a GPU of its own: give the device as cuda,"):
        join("cuda:0")
    assert processes.count() == 1


@pytest.mark.usefixtures("two_launched")
def test_without_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match=r"^This build of torch has no torch\.distributed\. Run in one process"):
        join("cpu")
