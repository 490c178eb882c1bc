"""Search methods, one file a paper; each has a ``Config`` and a ``Search`` (Chapter 1 on).

Drive a search with ``for report in search.epochs()``; ask it for ``result()`` at the end.
"""

from types import ModuleType

from nasbook.errors import unknown_name
from nasbook.methods import darts, entrannas, entrannas_dst, milenas, pc_darts, random_search, stretchable
from nasbook.methods.search import GradientSearch, SearchReport, SearchResult

METHODS: dict[str, ModuleType] = {
    "darts": darts,
    "milenas": milenas,
    "stretchable": stretchable,
    "pc-darts": pc_darts,
    "entrannas": entrannas,
    "entrannas-dst": entrannas_dst,
    "random-search": random_search,
}
"""The modules of all methods by the names that the command line takes."""


def get_method(name: str) -> ModuleType:
    """The module of a method, with its ``Config`` and ``Search``.

    Raises:
        InvalidInput: there is no such method; the message has the nearest names.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


__all__ = [
    "METHODS",
    "GradientSearch",
    "SearchReport",
    "SearchResult",
    "darts",
    "entrannas",
    "entrannas_dst",
    "get_method",
    "milenas",
    "pc_darts",
    "random_search",
    "stretchable",
]
