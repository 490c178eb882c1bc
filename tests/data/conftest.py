"""Writers of the official file formats, byte by byte, as fixtures that are functions."""

import io
import struct
import tarfile

import numpy as np
import pytest
from scipy.io import savemat


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _svhn(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays, do_compression=True)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def idx():
    return _idx


@pytest.fixture(scope="session")
def tar_gz():
    return _tar_gz


@pytest.fixture(scope="session")
def svhn():
    return _svhn
