"""Channels for a number of parameters, against every width one by one."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.analysis import count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_V1, DARTS_V2, CellGenotype, Edge, Genotype, Space, random_genotype
from nasbook.networks import DerivedNetwork, channels_for, parameters_of
from nasbook.networks.sizing import MOST_CHANNELS

few = settings(derandomize=True, deadline=None, max_examples=20)

SMALL = random_genotype(Space(nodes=2), torch.Generator().manual_seed(1))
PRUNED = Genotype(
    {
        "normal": CellGenotype((Edge(0, 2, "sep_conv_3x3"), Edge(2, 5, "skip_connect")), nodes=4),
        "reduction": CellGenotype((Edge(1, 4, "dil_conv_3x3"),), nodes=4),
    }
)
"""Cells with removed nodes: their output is narrower."""
GENOTYPES = {"darts": DARTS_V2, "small": SMALL, "pruned": PRUNED}
STEMS = {"cifar": 1, "imagenet": 2}
"""Each stem and the fewest channels it can have."""


@functools.cache
def counts(name: str, cells: int, stem: str = "cifar", widest: int = 12) -> dict[int, int]:
    """Parameters by channels, odd and even."""
    return {
        channels: parameters_of(GENOTYPES[name], channels, cells, stem=stem)
        for channels in range(STEMS[stem], widest + 1)
    }


@few
@given(st.sampled_from(sorted(GENOTYPES)), st.sampled_from([1, 3]), st.sampled_from(sorted(STEMS)), st.data())
def test_the_nearest_width_by_brute_force(name, cells, stem, data):
    table = counts(name, cells, stem)
    target = data.draw(st.integers(min(table.values()) // 2 + 1, table[11]))
    distances = {channels: abs(value - target) for channels, value in table.items()}
    nearest = min(distances, key=lambda channels: (distances[channels], channels))
    assert channels_for(target, GENOTYPES[name], cells, stem=stem) == nearest


@pytest.mark.parametrize("name", GENOTYPES)
def test_a_number_that_some_width_has(name):
    table = counts(name, 3)
    assert list(table.values()) == sorted(set(table.values()))  # more channels, more parameters
    for channels in (1, 2, 3, 8, 12):
        assert channels_for(table[channels], GENOTYPES[name], 3) == channels


@pytest.mark.parametrize("in_channels", [2, 4])  # with 3, neighbouring numbers are never both even or both odd
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_of_two_equally_near_the_smaller(channels, in_channels):
    counts = [parameters_of(PRUNED, c, 3, in_channels=in_channels) for c in (channels, channels + 1)]
    halfway, odd = divmod(sum(counts), 2)
    assert not odd
    for target, expected in ((halfway - 1, channels), (halfway, channels), (halfway + 1, channels + 1)):
        assert channels_for(target, PRUNED, 3, in_channels=in_channels) == expected


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", GENOTYPES)
def test_odd_numbers_of_channels_work(name, stem):
    for channels in (3, 5):
        network = DerivedNetwork(GENOTYPES[name], channels, 4, 10, stem=stem)
        assert parameters_of(GENOTYPES[name], channels, 4, stem=stem) == count_parameters(network)
        network(torch.rand(2, 3, 64, 64)).sum().backward()


def test_the_published_networks():
    assert parameters_of(DARTS_V2, 36, 20) == 3_349_342
    assert parameters_of(DARTS_V1, 36, 20, auxiliary=True) == 3_645_840
    assert channels_for(parameters_of(DARTS_V1, 36, 8), DARTS_V1, 8) == 36


@pytest.mark.parametrize(
    "options",
    [{"in_channels": 1}, {"stem": "imagenet"}, {"auxiliary": True}, {"stem": "imagenet", "in_channels": 4}],
    ids=str,
)
def test_options_are_those_of_the_network(options):
    channels = channels_for(500_000, DARTS_V2, 5, 7, **options)
    distances = {
        c: abs(count_parameters(DerivedNetwork(DARTS_V2, c, 5, 7, **options)) - 500_000)
        for c in range(channels - 1, channels + 2)
    }
    assert min(distances, key=distances.__getitem__) == channels
    if "auxiliary" in options:
        assert channels < channels_for(500_000, DARTS_V2, 5, 7)


def test_nothing_is_drawn_and_nothing_changes():
    state = torch.get_rng_state()
    channels_for(10_000, SMALL, 3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("parameters", [0, -5])
def test_a_number_of_parameters_is_positive(parameters):
    with pytest.raises(InvalidInput, match=rf"^parameters must be above 0, got {parameters}\.$"):
        channels_for(parameters, SMALL, 3)


@pytest.mark.parametrize(("stem", "least"), STEMS.items())
def test_too_few_parameters(stem, least):
    smallest = parameters_of(DARTS_V2, least, 3, stem=stem)
    assert channels_for(smallest // 2 + 1, DARTS_V2, 3, stem=stem) == least
    message = (
        rf"^A network of 3 such cells has {smallest:,} parameters with C = {least}; {smallest // 2 - 1:,} is too few\. "
        rf"Ask for {-(-smallest // 2):,} or more, or for fewer cells\.$"
    )
    with pytest.raises(InvalidInput, match=message):
        channels_for(smallest // 2 - 1, DARTS_V2, 3, stem=stem)


def test_too_many_parameters():
    assert MOST_CHANNELS == 4096
    most = parameters_of(PRUNED, MOST_CHANNELS, 1)
    assert channels_for(most, PRUNED, 1) == MOST_CHANNELS
    with pytest.raises(InvalidInput, match=r"^parameters=1,000,000,000,000 would take more than 4096 channels\.$"):
        channels_for(10**12, PRUNED, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": 0}, r"^cells must be above 0, got 0\.$"),
        ({"classes": 0}, r"^classes must be above 0, got 0\.$"),
        ({"stem": "cifr"}, r"^Unknown stem 'cifr'\. Did you mean 'cifar'\? Valid: cifar, imagenet\.$"),
    ],
)
def test_what_the_network_refuses_is_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        channels_for(10_000, SMALL, **{"cells": 3, **options})
