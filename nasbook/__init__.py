"""nasbook: differentiable and growing neural architecture search, a book and the package under it.

The chapters import from the sub-packages (``from nasbook.supernets import SearchNetwork``). Three functions
that every chapter needs stand here; they are loaded when first used, so that ``import nasbook`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasbook.environment import check_environment
    from nasbook.exercises import check
    from nasbook.seeding import seed_everything

__version__ = "0.1.0"

__all__ = ["__version__", "check", "check_environment", "seed_everything"]

_HOMES = {
    "check": "nasbook.exercises",
    "check_environment": "nasbook.environment",
    "seed_everything": "nasbook.seeding",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nasbook' has no attribute {name!r}")
