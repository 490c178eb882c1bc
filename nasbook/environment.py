"""What this machine has: versions, accelerator, threads."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import nasbook
from nasbook.errors import InvalidInput

OLDEST = {"torch": (2, 6), "torchvision": (0, 21), "numpy": (1, 26), "scikit-learn": (1, 4), "matplotlib": (3, 8)}
"""Oldest versions that the package supports, as in pyproject.toml."""


def check_environment() -> None:
    """Prints what the book runs on here, and what to do where something is missing or too old."""
    print(f"nasbook {nasbook.__version__}, Python {platform.python_version()}")
    for package, oldest in OLDEST.items():
        needed = ".".join(map(str, oldest))
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            print(f"{package}: missing; install {package}>={needed}")
            continue
        too_old = tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < oldest
        print(f"{package} {version}" + (f": too old; install {package}>={needed}" if too_old else ""))
    if torch.cuda.is_available():
        print(f"accelerator: {torch.cuda.get_device_name()}")
    else:
        print("accelerator: none, which is enough for the scale 'quick'")
    print(f"CPU threads: {torch.get_num_threads()}")


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        InvalidInput: the name is not a device, or the device is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInput(f"Unknown device {name!r}. Valid: auto, cpu, cuda, cuda:0 and so on.") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise InvalidInput(f"Device {name!r} is not here: torch finds {found} CUDA devices. Use --device cpu.")
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"nasbook runs on cpu and cuda, not on {device.type!r}.")
    return device
