"""What pools look like: how similar their candidates are, of which kinds, how many were tried (PR-DARTS §4.2).

Names go in, numbers come out; :mod:`nasbook.supernets.pools` has the pools themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from nasbook.errors import InvalidInput, unknown_name
from nasbook.operations import configuration_of, get_operation
from nasbook.supernets.pools import Pool

_PAIRS = ("different", "all")


def similarity(a: str, b: str) -> float:
    """How similar two candidates are, from 0 to 1: (1 + k)/(1 + n) for k of n equal parameters (§4.2).

    0 for candidates of different kinds: identity, pooling, convolution.

    * Poolings have n = 2, their type and their kernel size. All are 3×3 here, so max and average are 2/3 similar.
    * Convolutions have n = 3: kernel, dilation, expansions. Expansions can be partly equal (:func:`_equal_expansions`).
    * The identity has none.

    Raises:
        InvalidInput: there is no such operation, or a convolution is not separable.
    """
    kind = get_operation(a).kind
    if get_operation(b).kind != kind:
        return 0.0
    if kind != "convolution":
        return 1.0 if a == b else 2 / 3
    one, other = configuration_of(a), configuration_of(b)
    equal = (one.kernel == other.kernel) + (one.dilation == other.dilation)
    return (1 + equal + _equal_expansions(one.expansions, other.expansions)) / 4


def _equal_expansions(a: Sequence[int], b: Sequence[int]) -> float:
    """From 0 to 1. The paper says "partly similar"; this is what its code does.

    With m one more than the expansions of the shorter list: 1/m for equal lengths, and 1/m for each place in which
    both have the same expansion.
    """
    places = list(zip(a, b, strict=False))
    equal = (len(a) == len(b)) + sum(one == other for one, other in places)
    return equal / (len(places) + 1)


def pool_similarity(operations: Sequence[str], *, pairs: str = "different") -> float:
    """The mean similarity over the pairs of a pool's candidates (§4.2); 1 for a pool of one.

    Args:
        operations: the names of its m candidates.
        pairs: "different" takes the m(m − 1)/2 pairs of two candidates. "all" takes all m² and so each candidate with
            itself too, as the authors' code does. It is never below 1/m, so it rises when a pool shrinks, however
            different the candidates stay: with s of the different pairs it is (1 + (m − 1)s)/m.

    Raises:
        InvalidInput: there is no candidate, or as for :func:`similarity`.
    """
    if pairs not in _PAIRS:
        raise unknown_name("choice of pairs", pairs, _PAIRS)
    if not operations:
        raise InvalidInput("A pool has at least 1 candidate, got none.")
    values = [similarity(a, b) for a, b in itertools.combinations(operations, 2)]
    mean = sum(values) / len(values) if values else 1.0
    size = len(operations)
    return mean if pairs == "different" else (1 + (size - 1) * mean) / size


def mean_similarity(pools: Sequence[Sequence[str]], *, pairs: str = "different") -> float:
    """The mean of :func:`pool_similarity` over the edges of a cell: "operation similarity" in Fig. 2.

    Raises:
        InvalidInput: there is no edge, or as for :func:`pool_similarity`.
    """
    if not pools:
        raise InvalidInput("A cell has at least 1 edge, got none.")
    return sum(pool_similarity(pool, pairs=pairs) for pool in pools) / len(pools)


def operation_mix(pools: Sequence[Sequence[str]]) -> dict[str, float]:
    """The shares of poolings, identities and convolutions among all candidates of a cell: Fig. 2's distribution.

    Raises:
        InvalidInput: there is no candidate, or no such operation.
    """
    kinds: list[str] = [get_operation(name).kind for pool in pools for name in pool]
    if not kinds:
        raise InvalidInput("A cell has at least 1 candidate, got none.")
    names = ("pool", "identity", "convolution", *(["zero"] if "zero" in kinds else []))
    return {name: kinds.count(name) / len(kinds) for name in names}


def distinct_operations(pools: Sequence[Pool]) -> int:
    """How many different operations ever stood on the edges of a cell: "#ops†" in Table 3."""
    return len(frozenset[str]().union(*(pool.seen for pool in pools)))
