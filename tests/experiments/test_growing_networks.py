"""Chapter 4's growing networks at a scale of seconds, and their verdicts on records made by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasbook.analysis import count_parameters
from nasbook.data import load_images
from nasbook.errors import InvalidInput
from nasbook.experiments import (
    GROWTH_SCALES,
    SCALES,
    Workplace,
    from_scratch,
    get_experiment,
    growing_networks,
    growth_config,
    growth_costs,
    growth_scale,
    read_record,
    reproduce,
    starting_network,
)
from nasbook.experiments.growing_networks import METHODS, accuracy_at, size_advantage
from nasbook.experiments.growth_costs import PASSES, exponents
from nasbook.growth import rewire
from nasbook.methods import GROWTH_METHODS, GrowthRun
from nasbook.networks.vgg import vgg_widths
from nasbook.training import Fit

NOT = "does not hold at this scale"
GROWN = {
    "parameters",
    "test_accuracy",
    "train_loss",
    "neurons",
    "growth_seconds",
    "loss_before",
    "loss_after",
    "predicted",
    "epochs",
}


@pytest.fixture(scope="module")
def tiny():
    return replace(
        GROWTH_SCALES["quick"],
        name="tiny",
        train_images=80,
        test_images=20,
        vgg_channels=3,
        vgg_full=0.03,
        growths=2,
        growth_epochs=1,
        growth_batch=36,
        new_neurons=2,
        split_images=8,
        mobile_channels=2,
        mobile_growths=1,
        mobile_epochs=1,
        depth_growths=2,
        depth_epochs=1,
        depth_places=1,
        depth_neurons=2,
        retrain_epochs=1,
        timed_widths=(2, 3),
    )


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def width(tiny, tmp_path_factory):
    """The values of one measurement of firefly-width, as they are read back."""
    folder = tmp_path_factory.mktemp("width")
    made = reproduce("firefly-width", tiny, seed=1, folder=folder)
    record = read_record(folder / "firefly-width.tiny.json")
    assert record.measurements == (made,) and record.scale["vgg_full"] == 0.03
    return made.values


def verdict(record_of, experiment, claim, *values):
    return get_experiment(experiment).judges[claim](record_of(experiment, *values, of=GROWTH_SCALES["quick"]))


def check_curve(values, growths):
    """One entry a phase, one less a growth; sizes rise, and are those of the neurons."""
    assert set(values) >= GROWN
    for name in ("parameters", "test_accuracy", "train_loss", "neurons"):
        assert len(values[name]) == growths + 1, name
    for name in ("growth_seconds", "loss_before", "loss_after", "predicted"):
        assert len(values[name]) == growths, name
    assert values["parameters"] == sorted(values["parameters"])
    assert all(0 <= accuracy <= 1 for accuracy in values["test_accuracy"])
    assert all(np.isfinite(values["train_loss"])) and min(values["train_loss"]) > 0


# --- scales -----------------------------------------------------------------------------------------------------------


def test_the_numbers_of_every_scale():
    for name, scale in GROWTH_SCALES.items():
        assert growth_scale(SCALES[name]) is scale and growth_scale(scale) is scale
    with pytest.raises(InvalidInput, match="Chapter 4 needs numbers of its own .*vgg_channels"):
        growth_scale(replace(SCALES["quick"], name="mine"))


@pytest.mark.parametrize(
    "name", ["firefly-width", "firefly-mobile", "firefly-depth", "firefly-depth-svhn", "firefly-time"]
)
def test_a_scale_without_numbers_of_its_own_is_refused(name):
    with pytest.raises(InvalidInput, match="Chapter 4 needs numbers of its own"):
        reproduce(name, replace(SCALES["quick"], name="mine"))


def test_the_experiments_have_their_own_data():
    for name, scale in GROWTH_SCALES.items():
        data = {
            experiment: get_experiment(f"firefly-{experiment}").scaled(SCALES[name])
            for experiment in ("width", "time", "mobile", "depth", "depth-mnist", "depth-fashion-mnist", "depth-svhn")
        }
        assert data["width"] is data["time"] is scale
        assert data["mobile"] == replace(scale, data=scale.mobile_data)
        assert data["depth"] == replace(scale, data=scale.depth_data)
        for other in ("mnist", "fashion-mnist", "svhn"):
            assert data[f"depth-{other}"] == replace(scale, data=other)
    assert get_experiment("firefly-mobile").scaled(SCALES["paper"]).data == "cifar100"
    assert get_experiment("firefly-depth").scaled(SCALES["quick"]).data == "digits"


@pytest.mark.parametrize("name", GROWTH_SCALES)
def test_the_growths_of_fig_4(name):
    scale = GROWTH_SCALES[name]
    configs = {label: growth_config(method, SCALES[name]) for label, method in METHODS.items()}
    for label, config in configs.items():
        assert type(config) is GROWTH_METHODS[METHODS[label]]
        assert (config.growths, config.epochs, config.batch_size, config.rate, config.cutout) == (
            scale.growths,
            scale.growth_epochs,
            scale.growth_batch,
            0.3,
            scale.cutout,
        )
    assert configs["Firefly"].new_neurons == configs["random"].new_neurons == scale.new_neurons
    assert (configs["splitting"].scored_images, configs["splitting"].direction_epochs) == (
        scale.split_images,
        scale.split_epochs,
    )
    assert configs["NASH"].child_epochs == scale.child_epochs
    # Random search takes three epochs a growth; Firefly descent one, and three gradients of every image.
    assert configs["random"].growth_epochs == 3
    assert configs["Firefly"].growth_epochs == 1 and configs["Firefly"].points == 3


def test_the_paper_scale_is_the_papers():
    for method in ("firefly", "splitting", "net2net", "nash", "random"):
        expected = GROWTH_METHODS[method](cutout=SCALES["paper"].cutout)  # whose defaults are the paper's
        assert growth_config(method, SCALES["paper"]) == expected
    firefly, nash = (growth_config(method, SCALES["paper"]) for method in ("firefly", "nash"))
    assert (firefly.epochs, firefly.rate, firefly.new_neurons) == (160, 0.3, 50)
    assert (nash.children, nash.child_epochs, nash.growth_epochs) == (8, 17, 136)
    assert growth_config("firefly", SCALES["paper"], rate=0.5, new_neurons=1).new_neurons == 1
    start = starting_network(SCALES["paper"], load_images("digits"), 0)
    assert list(start.neurons().values()) == [16] * len(vgg_widths("vgg19"))


@pytest.fixture
def planned(monkeypatch, digits):
    """The growths that an experiment would run at a scale, and the networks that they begin with, by label."""

    def plan(experiment, scale):
        found = {}

        def grow(workplace, name, network, config):
            found[name.removeprefix("grow ")] = (network, config)
            return SimpleNamespace(network=network), {"parameters": [1], "epochs": 1}

        monkeypatch.setattr(growing_networks, "_grow", grow)
        monkeypatch.setattr(growing_networks, "_train", lambda *_: {"parameters": 1, "test_accuracy": 0.5})
        experiment(Workplace(GROWTH_SCALES[scale], 0, "digits", loaded=digits))
        return found

    return plan


@pytest.mark.parametrize(
    ("scale", "growths", "epochs", "places", "new"), [("paper", 11, 40, 11, 20), ("quick", 3, 5, 3, 10)]
)
def test_table_3_grows_in_depth_and_width(planned, scale, growths, epochs, places, new):
    found = planned(growing_networks.depth, scale)
    assert list(found) == ["Firefly", "NASH"]
    for network, config in found.values():
        assert network.structure() == (1, 1, 1, 1)
        assert set(network.neurons().values()) == {16}
        assert (config.growths, config.epochs, config.rate) == (growths, epochs, 0.25)
    firefly, nash = (config for _, config in found.values())
    assert (firefly.new_layers, firefly.new_neurons, firefly.layer_neurons) == (places, new, new)
    assert (firefly.layer_budget, firefly.least_neurons) == (4, 2)
    assert (nash.new_layers, nash.new_neurons) == (1, 0)
    (one, _), (other, _) = found.values()
    assert one is not other and same_weights(one, other)


@pytest.mark.parametrize(
    ("scale", "growths", "epochs", "channels", "child"), [("paper", 6, 160, 32, 17), ("quick", 3, 25, 16, 3)]
)
def test_fig_6_grows_mobilenet(planned, scale, growths, epochs, channels, child):
    found = planned(growing_networks.mobile, scale)
    assert list(found) == ["Firefly", "splitting", "Net2Net", "NASH"]
    for label, (network, config) in found.items():
        assert set(network.neurons().values()) == {channels}
        assert type(config) is GROWTH_METHODS[METHODS[label]]
        assert (config.growths, config.epochs, config.rate) == (growths, epochs, 0.35)
    assert found["NASH"][1].child_epochs == child


def test_net2net_begins_with_an_eighth_of_the_full_network(planned):
    found = planned(growing_networks.width, "paper")
    assert list(found) == list(METHODS)
    full = vgg_widths("vgg19")
    for label, (network, _) in found.items():
        expected = [width // 8 for width in full] if label == "Net2Net" else [16] * len(full)
        assert list(network.neurons().values()) == expected


# --- networks from scratch --------------------------------------------------------------------------------------------


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_one_seed_gives_the_same_start(tiny, digits):
    state = torch.random.get_rng_state()
    first = starting_network(tiny, digits, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    assert same_weights(first, starting_network(tiny, digits, 3))
    assert not same_weights(first, starting_network(tiny, digits, 4))
    assert set(first.neurons().values()) == {3}
    wider = starting_network(tiny, digits, 3, "mobilenet-v1", 5)
    assert set(wider.neurons().values()) == {5} and type(wider) is not type(first)


def test_from_scratch_has_the_structure_and_no_weight_of_the_grown(tiny, digits):
    start = starting_network(tiny, digits, 0)
    grown = rewire(start, {"layers.0.convolution": [0, 1, 2, 2, 1], "layers.3.convolution": [0, 1, 2, -1]}).network
    start.train()(torch.randn(8, 1, 8, 8))  # moves the running statistics
    grown.train()(torch.randn(8, 1, 8, 8))
    before = {name: value.clone() for name, value in grown.state_dict().items()}
    state = torch.random.get_rng_state()
    fresh = from_scratch(grown, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fresh.neurons() == grown.neurons() and count_parameters(fresh) == count_parameters(grown)
    assert all(torch.equal(value, before[name]) for name, value in grown.state_dict().items())
    for name, value in fresh.state_dict().items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            assert not value.any()
        elif value.dim() > 1:
            assert not (value == before[name]).any()
    # What the grown network had learned does not matter, and neither do random numbers drawn before.
    torch.rand(3)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.fill_(7.0)
    assert same_weights(from_scratch(grown, 5), fresh)
    assert not same_weights(from_scratch(grown, 6), fresh)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_from_scratch_gives_the_same_weights_on_every_device(tiny, digits):
    network = starting_network(tiny, digits, 0)
    fresh = from_scratch(network, 5)
    there = from_scratch(network.to("cuda"), 5)
    assert {parameter.device.type for parameter in there.parameters()} == {"cuda"}
    assert same_weights(fresh, there.to("cpu"))


def test_from_scratch_draws_as_a_new_network_does(tiny, digits):
    network = starting_network(tiny, digits, 0, widths=64)
    fresh = from_scratch(network, 0)
    assert not same_weights(network, fresh)
    for (name, one), (_, other) in zip(network.named_parameters(), fresh.named_parameters(), strict=True):
        if one.dim() == 4 and one.numel() > 1000:
            assert other.std().item() == pytest.approx(one.std().item(), rel=0.05), name
            assert other.abs().max().item() == pytest.approx(one.abs().max().item(), rel=0.05), name


# --- runs -------------------------------------------------------------------------------------------------------------


def test_fig_4_runs(width, tiny, digits):
    assert list(width) == [*METHODS, "from scratch", "full"]
    data = digits.take(tiny.train_images, tiny.test_images)
    start = count_parameters(starting_network(tiny, data, 1))
    for label in METHODS:
        check_curve(width[label], tiny.growths)
        assert len(width[label]["neurons"][0]) == 8
        assert (width[label]["parameters"][0] == start) == (label != "Net2Net")
        foresees = label in ("Firefly", "splitting")
        assert all((predicted is not None) == foresees for predicted in width[label]["predicted"])
    assert all(predicted < 0 for predicted in width["Firefly"]["predicted"])
    train = tiny.growth_epochs * (tiny.growths + 1)
    took = {"Firefly": 1, "splitting": 0, "Net2Net": 0, "NASH": 8, "random": 3}
    assert {label: width[label]["epochs"] - train for label in METHODS} == {
        label: tiny.growths * epochs for label, epochs in took.items()
    }
    # A growth of the whole network by 30 %: 24 neurons, 31, 40.
    for label in ("Firefly", "NASH", "random"):
        assert [sum(neurons.values()) for neurons in width[label]["neurons"]] == [24, 31, 40]
    scratch, full = width["from scratch"], width["full"]
    assert scratch["parameters"] == width["Firefly"]["parameters"][-1]
    assert scratch["epochs"] == width["Firefly"]["epochs"]
    assert full["epochs"] == train
    widths = growing_networks.scaled_widths("vgg11", 0.03)
    assert full["parameters"] == count_parameters(starting_network(tiny, data, 0, widths=tuple(widths)))
    assert all(0 <= value["test_accuracy"] <= 1 and value["train_loss"] > 0 for value in (scratch, full))


def test_all_train_on_the_same_images(tiny, monkeypatch):
    """Growth runs hold a tenth out for NASH, and the networks from scratch do without the same images."""
    seen = {}

    def drive(self, run, name):
        seen[name] = run.loader.images
        # Nothing is trained: the timetable runs to its end with the start.
        run.epoch = run.total_epochs
        run.history = [SimpleNamespace(validation_accuracy=0.5, parameters=1, train_loss=1.0, neurons={})]

    monkeypatch.setattr(Workplace, "drive", drive)
    reproduce("firefly-width", tiny, seed=2)
    assert list(seen) == [*(f"grow {label}" for label in METHODS), "from scratch", "full network"]
    first, *others = seen.values()
    assert len(first) == 72 and all(torch.equal(first, other) for other in others)


class PowerCut(BaseException):
    """Ends a measurement in the middle, as nothing in the package expects."""


def cut_after(monkeypatch, steps):
    """The power fails when so many steps of all runs have been made."""
    made = []
    for kind in (Fit, GrowthRun):

        def run_step(self, index, kind=kind, original=kind.run_step):
            if type(self) is kind:  # once a step: that of a growth run may call the other
                made.append(index)
                if len(made) > steps:
                    raise PowerCut
            return original(self, index)

        monkeypatch.setattr(kind, "run_step", run_step)
    return made


def without_times(values):
    return {
        label: {name: value for name, value in part.items() if name != "growth_seconds"}
        for label, part in values.items()
    }


@pytest.mark.parametrize("steps", [3, 23, 89])
def test_a_measurement_goes_on_after_a_power_cut(tiny, width, tmp_path, monkeypatch, steps):
    """In the first growth of Firefly's 10 steps; among NASH's children; in the training from scratch."""
    with monkeypatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCut):
            reproduce("firefly-width", tiny, seed=1, folder=tmp_path)
    assert not list(tmp_path.glob("*.json"))
    with monkeypatch.context() as patch:
        left = cut_after(patch, 10**6)
        made = reproduce("firefly-width", tiny, seed=1, folder=tmp_path, resume=True)
    total = 2 * sum(part["epochs"] for part in width.values())
    assert total - steps <= len(left) < total  # finished epochs are not done again
    assert without_times(made.values) == without_times(width)
    assert not list(tmp_path.rglob("*.pt"))


def test_fig_6_runs(tiny, tmp_path):
    values = reproduce("firefly-mobile", tiny, seed=0, folder=tmp_path).values
    assert list(values) == ["Firefly", "splitting", "Net2Net", "NASH"]
    for curve in values.values():
        check_curve(curve, tiny.mobile_growths)
    assert len({curve["parameters"][0] for curve in values.values()}) == 1
    sizes = {label: [sum(neurons.values()) for neurons in curve["neurons"]] for label, curve in values.items()}
    budget = round(0.35 * sizes["NASH"][0])
    assert sizes["NASH"][1] - sizes["NASH"][0] == budget
    for label in ("Firefly", "splitting"):  # which don't take what is predicted to raise the loss
        assert 0 < sizes[label][1] - sizes[label][0] <= budget
    assert read_record(tmp_path / "firefly-mobile.tiny.json").measurements[0].values == values
    assert not get_experiment("firefly-mobile").judges


def test_table_3_runs(tiny, tmp_path):
    made = reproduce("firefly-depth", tiny, seed=0, folder=tmp_path)
    assert list(made.values) == ["Firefly", "NASH"]
    for values in made.values.values():
        check_curve(values, tiny.depth_growths)
        assert set(values) == GROWN | {"structure", "final_parameters", "final_accuracy"}
        assert values["final_parameters"] == values["parameters"][-1]
        assert 0 <= values["final_accuracy"] <= 1
        assert len(values["structure"]) == 4 and min(values["structure"]) >= 1
    # NASH inserts a layer into each block at each growth; Firefly at most four in all.
    assert made.values["NASH"]["structure"] == [1 + tiny.depth_growths] * 4
    assert 4 <= sum(made.values["Firefly"]["structure"]) <= 4 + 4 * tiny.depth_growths
    assert read_record(tmp_path / "firefly-depth.tiny.json").measurements == (made,)


def test_one_growth_is_timed_at_every_width(tiny, monkeypatch):
    monkeypatch.setattr(growth_costs, "ROUNDS", 1)
    values = reproduce("firefly-time", tiny).values
    assert list(values) == ["2", "3"]
    for seconds in values.values():
        assert tuple(seconds) == PASSES
        assert min(seconds.values()) > 0
        assert seconds["NASH"] > seconds["Rayleigh splitting"] > 0  # 136 epochs against 4 products a batch
    assert set(exponents(values)) == set(PASSES)
    assert get_experiment("firefly-time").seeds(SCALES["quick"]) == 1


def test_a_growths_time_counts_every_pass_in_full(tiny, monkeypatch):
    """With a clock that ticks once a reading, every part takes a second, and the rest is arithmetic."""
    readings = iter(range(10**6))
    monkeypatch.setattr(growth_costs, "time", SimpleNamespace(perf_counter=lambda: float(next(readings))))
    monkeypatch.setattr(growth_costs, "ROUNDS", 1)
    found = growth_costs.growth_seconds(Workplace(tiny, 0, "digits"), 2)
    steps = 80 // tiny.growth_batch
    assert steps == 2
    # No product takes longer than another, so that a first product is all that exact splitting pays for.
    assert found == {
        "Firefly": steps * 2.0,
        "exact splitting": steps * 1.0,
        "Rayleigh splitting": steps * 4.0,
        "NASH": 8 * (17 * steps + 1.0),
    }


# --- accuracy at equal size -------------------------------------------------------------------------------------------


def curve(parameters, accuracy):
    return {"parameters": list(parameters), "test_accuracy": list(accuracy)}


def test_accuracy_between_two_sizes_is_that_of_their_logarithms():
    grown = curve([100, 10_000, 1_000_000], [0.2, 0.6, 0.8])
    sizes = np.array([100, 1000, 10_000, 100_000, 1_000_000])
    assert accuracy_at(grown, sizes) == pytest.approx([0.2, 0.4, 0.6, 0.7, 0.8])


def test_the_advantage_is_exact_on_straight_lines(record_of):
    """Lines in log size: one constant above the other, then one that rises twice as fast from the same start."""
    parallel = {
        "Firefly": curve([100, 1000, 10_000], [0.5, 0.6, 0.7]),
        "NASH": curve([100, 10_000], [0.47, 0.67]),
    }
    steeper = {"Firefly": curve([100, 10_000], [0.5, 0.9]), "NASH": curve([100, 10_000], [0.5, 0.7])}
    record = record_of("firefly-width", parallel, steeper)
    # 20 sizes after the start: at the k-th of them the steeper one is k/20 of 0.2 above, in the mean 10.5/20.
    assert size_advantage(record, "NASH") == pytest.approx([0.03, 0.2 * 10.5 / 20])
    assert size_advantage(record, "Firefly", best="NASH") == pytest.approx([-0.03, -0.2 * 10.5 / 20])


def test_only_sizes_that_both_reach_count(record_of):
    ours = curve([10, 1000, 100_000, 10_000_000], [0.9, 0.5, 0.7, 0.0])
    theirs = curve([1000, 100_000], [0.4, 0.6])
    assert size_advantage(record_of("firefly-width", {"Firefly": ours, "NASH": theirs}), "NASH") == pytest.approx([0.1])


@given(st.floats(-0.2, 0.2), st.lists(st.floats(0.2, 0.8), min_size=3, max_size=3), st.integers(2, 50))
def test_the_advantage_of_a_shifted_curve_is_the_shift(record_of, shift, accuracy, factor):
    theirs = curve([100, 300, 500], accuracy)
    ours = curve(theirs["parameters"], [a + shift for a in accuracy])
    record = record_of("firefly-width", {"Firefly": ours, "NASH": theirs})
    assert size_advantage(record, "NASH") == pytest.approx([shift], abs=1e-12)
    # The unit of size does not matter.
    for values in (ours, theirs):
        values["parameters"] = [factor * size for size in values["parameters"]]
    assert size_advantage(record, "NASH") == pytest.approx([shift], abs=1e-12)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def widths_of(*advantages):
    """A seed each: how far Firefly is above splitting, Net2Net and NASH at every size."""
    return [
        {"Firefly": curve([100, 1000], [0.7, 0.8])}
        | {
            name: curve([100, 1000], [0.7 - above, 0.8 - above])
            for name, above in zip(("splitting", "Net2Net", "NASH"), seed, strict=True)
        }
        for seed in advantages
    ]


@pytest.mark.parametrize(
    ("advantages", "status"),
    [
        ([(0.1, 0.1, 0.02), (0.11, 0.12, 0.03), (0.12, 0.1, 0.02)], "holds"),
        ([(0.1, 0.1, 0.05), (0.11, 0.12, -0.02), (0.12, 0.1, 0.01)], "partly"),  # above NASH by chance
        ([(0.1, 0.1, -0.02), (0.11, 0.12, -0.03), (0.12, 0.1, -0.02)], NOT),  # NASH is above
        ([(-0.02, 0.1, 0.1), (-0.03, 0.12, 0.1), (-0.02, 0.1, 0.11)], NOT),
        ([(0.1, -0.02, 0.1), (0.12, -0.03, 0.1), (0.1, -0.02, 0.11)], NOT),
        ([(0.0, 0.0, 0.0)] * 3, NOT),  # all alike
    ],
)
def test_the_verdict_on_width(record_of, advantages, status):
    found = verdict(record_of, "firefly-width", "firefly.width", *widths_of(*advantages))
    assert found.status == status
    assert f"{np.mean([seed[2] for seed in advantages]):.2%} ±" in found.numbers and "3 seeds" in found.numbers


def depths_of(*seeds):
    """A seed each: how many points Firefly is above NASH, and its share of NASH's parameters."""

    def row(accuracy, parameters, structure):
        return {"final_accuracy": accuracy, "final_parameters": parameters, "structure": structure}

    return [
        {"Firefly": row(0.9 + above / 100, round(1000 * share), [2, 1, 1, 2]), "NASH": row(0.9, 1000, [4, 4, 4, 4])}
        for above, share in seeds
    ]


@pytest.mark.parametrize(
    ("seeds", "status"),
    [
        ([(0.2, 0.9), (0.3, 0.91), (0.2, 0.92)], "holds"),
        ([(0.2, 0.9), (-0.1, 0.91), (0.2, 0.92)], "partly"),  # smaller, and above by chance
        ([(0.2, 0.9), (0.3, 1.05), (0.2, 0.92)], "partly"),  # above, and smaller by chance
        ([(0.0, 0.9)] * 3, "partly"),  # smaller and equal
        ([(-0.2, 0.9), (-0.3, 0.91), (-0.2, 0.92)], NOT),  # below
        ([(0.2, 1.1), (0.3, 1.11), (0.2, 1.12)], NOT),  # larger
        ([(0.2, 1.0), (0.3, 1.0), (0.2, 1.0)], NOT),  # as large
    ],
)
def test_the_verdict_on_depth(record_of, seeds, status):
    found = verdict(record_of, "firefly-depth", "firefly.depth", *depths_of(*seeds))
    assert found.status == status
    for text in ("in 6.0 layers", "1,000 in 16.0", "3 seeds", "AutoGrow is cited, not run"):
        assert text in found.numbers


def times_of(*rows):
    """Seconds of all passes at the widths 4, 8 and 16, Firefly's first."""
    return {str(4 * 2**n): dict(zip(PASSES, row, strict=True)) for n, row in enumerate(rows)}


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([(1, 2, 0.5, 9), (2, 5, 0.5, 18), (4, 20, 0.5, 36)], "holds"),  # the Rayleigh quotient is not compared
        ([(1, 0.9, 3, 9), (2, 5, 3, 18), (4, 20, 3, 36)], "partly"),  # exact matrices are faster when small
        ([(1, 2, 3, 0.9), (2, 5, 3, 18), (4, 20, 3, 36)], "partly"),
        ([(1, 2, 3, 9), (2, 5, 3, 18), (4, 3.9, 3, 36)], NOT),  # slower at the largest width
        ([(1, 2, 3, 9), (2, 5, 3, 18), (4, 20, 3, 3.9)], NOT),
    ],
)
def test_the_verdict_on_time(record_of, rows, status):
    found = verdict(record_of, "firefly-time", "firefly.time", times_of(*rows))
    assert found.status == status
    assert "widths 4, 8, 16" in found.numbers and "Firefly 1.0" in found.numbers


def test_the_exponents_of_powers():
    powers = dict(zip(PASSES, (1.0, 3.0, 0.0, 2.5), strict=True))
    values = {str(width): {name: 7e-3 * width**power for name, power in powers.items()} for width in (4, 8, 16, 64)}
    assert exponents(values) == pytest.approx(powers)
