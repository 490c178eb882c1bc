"""Search and growth methods, one file a paper.

A search method has a ``Config`` and a ``Search`` (Chapter 1 on). Drive a search with ``for report in search.epochs()``;
ask it for ``result()`` at the end. A growth method has a ``Config`` (Chapter 4); a :class:`GrowthRun` takes it.
"""

from types import ModuleType

from nasbook.continual import (
    ContinualConfig,
    CPGConfig,
    EWCConfig,
    FineTunedConfig,
    IndividualConfig,
    LwFConfig,
    PackNetConfig,
)
from nasbook.errors import unknown_name
from nasbook.methods import (
    darts,
    entrannas,
    entrannas_dst,
    firefly,
    firefly_cells,
    firefly_continual,
    growing,
    growing_recurrent,
    hill_climbing,
    local_search,
    milenas,
    net2net,
    pc_darts,
    pr_darts,
    random_search,
    regularized_evolution,
    splitting_descent,
    stretchable,
)
from nasbook.methods.growth import GrowthConfig, GrowthReport, GrowthRun
from nasbook.methods.search import GradientSearch, SearchReport, SearchResult

METHODS: dict[str, ModuleType] = {
    "darts": darts,
    "milenas": milenas,
    "stretchable": stretchable,
    "pc-darts": pc_darts,
    "entrannas": entrannas,
    "entrannas-dst": entrannas_dst,
    "pr-darts": pr_darts,
    "growing": growing,
    "firefly-cells": firefly_cells,
    "random-search": random_search,
    "regularized-evolution": regularized_evolution,
    "local-search": local_search,
}
"""The modules of all methods on images by the names that the command line takes."""

SEQUENCE_METHODS: dict[str, ModuleType] = {"growing-recurrent": growing_recurrent}
"""The modules of the methods on series and text."""

GROWTH_METHODS: dict[str, type[GrowthConfig]] = {
    "firefly": firefly.Config,
    "splitting": splitting_descent.Config,
    "net2net": net2net.Config,
    "nash": hill_climbing.Config,
    "random": hill_climbing.RandomConfig,
}
"""The configurations of all growth methods by the names that the command line takes."""

LEARNERS: dict[str, type[ContinualConfig]] = {
    "firefly-continual": firefly_continual.Config,
    "individual": IndividualConfig,
    "fine-tuned": FineTunedConfig,
    "ewc": EWCConfig,
    "lwf": LwFConfig,
    "packnet": PackNetConfig,
    "cpg": CPGConfig,
}
"""The configurations of all learners of task sequences by the names that the command line takes."""


def get_method(name: str) -> ModuleType:
    """The module of a method, with its ``Config`` and ``Search``.

    Raises:
        InvalidInput: there is no such method; the message has the nearest names.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


__all__ = [
    "GROWTH_METHODS",
    "LEARNERS",
    "METHODS",
    "SEQUENCE_METHODS",
    "GradientSearch",
    "GrowthConfig",
    "GrowthReport",
    "GrowthRun",
    "SearchReport",
    "SearchResult",
    "darts",
    "entrannas",
    "entrannas_dst",
    "firefly",
    "firefly_cells",
    "firefly_continual",
    "get_method",
    "growing",
    "growing_recurrent",
    "hill_climbing",
    "local_search",
    "milenas",
    "net2net",
    "pc_darts",
    "pr_darts",
    "random_search",
    "regularized_evolution",
    "splitting_descent",
    "stretchable",
]
