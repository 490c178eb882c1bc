"""A scale that takes a second, and records made of given numbers."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from nasbook.experiments import POOL_SCALES, Measurement, PoolScale, Provenance, Record, Scale, get_scale


@pytest.fixture(scope="session")
def scale() -> Scale:
    return replace(
        get_scale("quick"),
        name="tiny",
        train_images=96,
        test_images=40,
        operations=("none", "skip_connect", "sep_conv_3x3"),
        nodes=2,
        search_epochs=1,
        long_search_epochs=2,
        search_batch=16,
        search_channels=2,
        epochs=2,
        batch=32,
        channels=2,
    )


@pytest.fixture(scope="session")
def nine_cycles() -> PoolScale:
    """Nine cycles of one epoch of one step: pools change as in the paper, and little is learned."""
    return replace(
        POOL_SCALES["quick"],
        name="tiny",
        train_images=16,
        test_images=10,
        nodes=1,
        search_batch=8,
        search_channels=2,
        search_cells=2,
        epochs=1,
        batch=16,
        channels=2,
        cells=2,
        cycle_epochs=(1,) * 9,
        grace_epochs=(0,) * 9,
        smallest_batch=8,
        largest_batch=16,
        memory_mib=0.5,
        deep_cells=3,
        cycle_cells=(2, 2, 2, 2, 2, 2, 2, 2, 3),
    )


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return Provenance("0.1.0", "", "2.11.0", "3.11", "a processor", 1, 1.0, 10, "digits", "scikit-learn", "d0")


@pytest.fixture(scope="session")
def record_of(scale, provenance):
    """A record of an experiment from one dictionary of values a seed."""

    def make(experiment: str, *values: dict, of: Scale = scale) -> Record:
        measurements = tuple(Measurement(seed, v, provenance) for seed, v in enumerate(values))
        return Record(experiment, {**asdict(of), "operations": list(of.operations)}, measurements)

    return make
