"""The file formats of image data sets, parsed into arrays: idx, CIFAR's binary records, SVHN's .mat, .npz.

Nothing here unpickles. Images come out as uint8 with the axes image, channel, row, column.
"""

from __future__ import annotations

import difflib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from numpy import ndarray
from numpy.typing import NDArray

from nasbook.errors import DataError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
"""The four arrays of a data set, under the names that they have in an ``.npz`` file."""


def parse_idx(content: bytes) -> UInt8[ndarray, "*shape"]:
    """Reads the idx format of MNIST for unsigned bytes.

    The format: two zero bytes, the type (8 is an unsigned byte), the number of axes, the length of each axis
    as a big-endian 32-bit integer, then the values, the last axis running fastest.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        begin = content[:3].hex(" ") or "nothing"
        raise DataError(f"not an idx file of unsigned bytes: expected it to begin with 00 00 08, got {begin}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"an idx file with {content[3]} axes has {start} bytes before the values, got {len(content)}")
    shape = np.frombuffer(content, ">u4", content[3], 4).astype(int)
    if len(content) - start != shape.prod():
        raise DataError(f"an idx file of shape {' × '.join(map(str, shape))} has {shape.prod()} values, "
                        f"got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_members(content: bytes, names: Sequence[str]) -> list[bytes]:
    """The named files of a ``.tar.gz``, read in one pass in memory: nothing is unpacked on the disk."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r|gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name in names else None
                if file is not None:
                    found[member.name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"not a readable .tar.gz ({error})") from None
    for name in names:
        if name not in found:
            raise DataError(f"the archive has no file {name}")
    return [found[name] for name in names]


def parse_cifar(
    content: bytes, label_bytes: int
) -> tuple[UInt8[ndarray, "images 3 32 32"], UInt8[ndarray, " images"]]:
    """Reads CIFAR's binary records: the label, then 1,024 red, 1,024 green and 1,024 blue values, row by row.

    CIFAR-10 has one label byte. CIFAR-100 has two, coarse before fine; the last one counts.
    """
    length = label_bytes + 3 * 32 * 32
    if len(content) % length:
        raise DataError(f"expected records of {length} bytes, got {len(content)} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def parse_svhn(content: bytes) -> tuple[UInt8[ndarray, "images 3 32 32"], Integer[ndarray, " images"]]:
    """Reads SVHN's cropped digits: ``X`` with the axes row, column, channel, image; ``y`` with 10 for the digit 0."""
    from scipy.io import loadmat

    try:
        arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        return arrays["X"].transpose(3, 2, 0, 1), arrays["y"].reshape(-1) % 10
    except KeyError as error:
        raise DataError(f"the .mat file has no {error}") from None
    except Exception as error:
        raise DataError(f"not a readable .mat file of SVHN ({' '.join(str(error).split())})") from None


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the four arrays of an ``.npz`` file; never unpickles."""
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz file, or is cut short. {_HOW_TO_WRITE}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            for name in ARRAYS:
                if name not in names:
                    others = [other for other in names if other not in ARRAYS]
                    nearest = difflib.get_close_matches(name, others, n=1, cutoff=0.5)
                    hint = f"Is it {nearest[0]!r}? Then rename that" if nearest else f"It has: {', '.join(names)}"
                    raise DataError(f"{path}: the array {name!r} is missing. {hint}.")
            return {name: archive[name] for name in ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{path} can't be read ({' '.join(str(error).split())}). {_HOW_TO_WRITE}") from None


_HOW_TO_WRITE = f"Write it with numpy.savez(path, {', '.join(f'{name}=…' for name in ARRAYS)})."
