"""load_images on every kind of source, and what ImageData offers. Nothing here needs a network."""

import builtins
import contextlib
import gzip
import hashlib
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import Augmentation, downloads, images, list_images, load_images
from nasbook.errors import DataError, InvalidInput


@pytest.fixture
def downloader():
    """torchvision's downloads; PyPI's torchvision does not import beside every torch."""
    return pytest.importorskip("torchvision.datasets.utils")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any download fails as it does without a network, unless a test replaces this."""

    def refuse(url, root, filename=None, md5=None):
        raise urllib.error.URLError("no route to host")

    with contextlib.suppress(ImportError):
        monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    monkeypatch.delenv("NASBOOK_DATA", raising=False)


def message_of(*arguments, **options) -> str:
    with pytest.raises(DataError) as error:
        load_images(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def random_images(count: int, channels: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, channels, size, size), dtype=np.uint8)


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits():
    data = load_images("digits")
    assert (data.classes, data.channels, data.size, data.source) == (10, 1, 8, "scikit-learn")
    assert data.augmentation == Augmentation()
    assert data.train_images.shape == (1280, 1, 8, 8) and data.test_images.shape == (517, 1, 8, 8)
    assert data.train_images.min() == 0 and data.train_images.max() == 255
    assert data.checksum == "7d608815bb5e0ac5aef6f8ad77231de999f0f59f2f23ea52ca5c02cf3daa1387"
    shares = data.train_labels.bincount() / (data.train_labels.bincount() + data.test_labels.bincount())
    assert (shares - 1280 / 1797).abs().max() < 1 / 170
    assert repr(data) == "ImageData('digits', 1,280 train + 517 test images, 1×8×8, 10 classes, scikit-learn)"


def test_digits_are_all_of_scikit_learns():
    from sklearn.datasets import load_digits

    original, labels = load_digits(return_X_y=True)
    data = load_images("digits")
    ours = torch.cat([data.train_images, data.test_images]).flatten(1)
    rows = torch.cat([ours, torch.cat([data.train_labels, data.test_labels])[:, None]], 1).tolist()
    assert sorted(rows) == sorted(np.column_stack([np.round(original * 255 / 16), labels]).astype(int).tolist())


def test_mean_and_std_are_those_of_the_training_images():
    data = load_images("digits")
    values = data.train_images.double() / 255
    assert data.mean == pytest.approx((values.mean().item(),), rel=1e-12)
    assert data.std == pytest.approx((values.std(correction=0).item(),), rel=1e-12)


# --- the official files, tiny ones in their place -------------------------------------------------------------------


@pytest.fixture
def write_official(monkeypatch, idx, tar_gz, svhn):
    """Writes a tiny set in its official format where the loader looks for it, and makes its MD5s the published ones."""
    return lambda name, folder: _write_official(name, folder, monkeypatch, idx, tar_gz, svhn)


def _write_official(name: str, folder: Path, monkeypatch, idx, tar_gz, svhn) -> dict[str, np.ndarray]:
    size = 28 if "mnist" in name else 32
    train, test = random_images(20, 1 if size == 28 else 3, size, 1), random_images(10, 1 if size == 28 else 3, size, 2)
    train_labels, test_labels = np.arange(20, dtype=np.uint8) % 10, np.arange(10, dtype=np.uint8)

    def records(images, labels, coarse=b""):
        return b"".join(coarse + bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))

    if size == 28:
        contents = [idx(train[:, 0]), idx(train_labels), idx(test[:, 0]), idx(test_labels)]
    elif name == "svhn":
        contents = [
            svhn(X=images.transpose(2, 3, 1, 0), y=np.where(labels == 0, 10, labels)[:, None].astype(np.uint8))
            for images, labels in ((train, train_labels), (test, test_labels))
        ]
    elif name == "cifar10":
        parts = {f"data_batch_{i + 1}": slice(4 * i, 4 * i + 4) for i in range(5)}
        files = {f"cifar-10-batches-bin/{part}.bin": records(train[of], train_labels[of]) for part, of in parts.items()}
        contents = [tar_gz({"cifar-10-batches-bin/readme.html": b"<html>", **files,
                            "cifar-10-batches-bin/test_batch.bin": records(test, test_labels)})]
    else:
        contents = [tar_gz({"cifar-100-binary/test.bin": records(test, test_labels, coarse=b"\x13"),
                            "cifar-100-binary/train.bin": records(train, train_labels, coarse=b"\x13")})]
    files = []
    for file, content in zip(downloads.FILES[name], contents, strict=True):
        path = folder / file.places[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if size == 28 else content)
        files.append(downloads.RemoteFile(file.places, file.urls, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(images, "FILES", {**downloads.FILES, name: tuple(files)})
    return {"train_images": train, "train_labels": train_labels, "test_images": test, "test_labels": test_labels}


DOWNLOADED = [name for name in list_images() if name != "digits"]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_official_formats(name, tmp_path, write_official):
    arrays = write_official(name, tmp_path)
    data = load_images(name, folder=tmp_path)
    for key, array in arrays.items():
        assert getattr(data, key).tolist() == array.tolist()
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert (data.name, data.classes, data.source) == (name, 10, "torchvision")
    assert data.augmentation.flip == (name in ("fashion-mnist", "cifar10", "cifar100"))

    np.savez(tmp_path / f"{name}.npz", **arrays)
    same = load_images(tmp_path / f"{name}.npz")
    assert (same.name, same.source, same.augmentation) == (name, f"npz:{name}.npz", data.augmentation)
    assert same.checksum == data.checksum


def test_the_folder_can_come_from_the_environment(tmp_path, monkeypatch, write_official):
    write_official("mnist", tmp_path)
    monkeypatch.setenv("NASBOOK_DATA", str(tmp_path))
    assert len(load_images("mnist").train_labels) == 20
    monkeypatch.delenv("NASBOOK_DATA")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert downloads.data_folder() == Path("/home/somebody/.cache/nasbook")


@pytest.mark.parametrize("name", DOWNLOADED)
@pytest.mark.usefixtures("downloader")
def test_no_network(name, tmp_path):
    file = downloads.FILES[name][0]
    target = tmp_path / file.places[0]
    tried = "; ".join(f"{url}: <urlopen error no route to host>" for url in file.urls)
    assert message_of(name, folder=tmp_path) == (
        f"Can't download {target.name} to {target.parent} ({tried}). Check the network, or put the file there "
        f"yourself, or set NASBOOK_DATA to a folder that has it, or give an .npz file instead of the name."
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith(".")] == []


@pytest.mark.parametrize("name", DOWNLOADED)
@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_file_is_never_used(name, damage, tmp_path, write_official):
    write_official(name, tmp_path)
    path = tmp_path / downloads.FILES[name][0].places[-1]
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncated": content[:-1],
        "altered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
    }[damage]
    path.write_bytes(damaged)
    message = message_of(name, folder=tmp_path)
    assert message.startswith(f"{path} is damaged or cut short (")
    assert message.endswith("). Delete it, and the next run downloads it again.")
    assert path.read_bytes() == damaged  # it may be the only copy: left alone


def test_a_download_is_verified_before_it_is_put_in_place(downloader, tmp_path, monkeypatch, write_official):
    origin, folder = tmp_path / "origin", tmp_path / "folder"
    arrays = write_official("mnist", origin)
    asked = []

    def first_mirror_sends_half(url, root, filename=None, md5=None):
        asked.append(url)
        content = (origin / "MNIST/raw" / filename).read_bytes()
        Path(root, filename).write_bytes(content[: len(content) // 2] if "ossci" in url else content)

    monkeypatch.setattr(downloader, "download_url", first_mirror_sends_half)
    assert load_images("mnist", folder=folder).test_labels.tolist() == arrays["test_labels"].tolist()
    assert len(asked) == 8
    stored = sorted(path.name for path in (folder / "MNIST/raw").iterdir())
    assert stored == sorted(path.name for path in (origin / "MNIST/raw").iterdir())
    load_images("mnist", folder=folder)
    assert len(asked) == 8  # found, verified, not downloaded again

    def all_send_a_login_page(url, root, filename=None, md5=None):
        Path(root, filename).write_bytes(b"<html>please log in</html>")

    monkeypatch.setattr(downloader, "download_url", all_send_a_login_page)
    message = message_of("mnist", folder=tmp_path / "other")
    assert "sent is damaged or cut short (it can't be decompressed)" in message
    assert [path for path in (tmp_path / "other").rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_nothing_behind(downloader, tmp_path, monkeypatch):
    def full(url, root, filename=None, md5=None):
        Path(root, filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloader, "download_url", full)
    assert "[Errno 28] No space left on device" in message_of("cifar10", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ImportError("No module named 'torchvision'"), RuntimeError("no nms")])
def test_a_torchvision_that_does_not_import(tmp_path, monkeypatch, error):
    def broken(name, *arguments):
        if name.startswith("torchvision"):
            raise error
        return real(name, *arguments)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", broken)
    assert f"torchvision does not import ({error})" in message_of("cifar10", folder=tmp_path)


@pytest.mark.usefixtures("downloader")
def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in message_of("cifar10", folder=tmp_path / "file" / "below")


def test_a_verified_file_that_does_not_parse(tmp_path, monkeypatch, tar_gz):
    content = tar_gz({"unexpected": b""})
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    file = downloads.RemoteFile(("cifar-10-binary.tar.gz",), (), hashlib.md5(content).hexdigest())
    monkeypatch.setattr(images, "FILES", {"cifar10": (file,)})
    assert message_of("cifar10", folder=tmp_path) == (
        "cifar10: the archive has no file cifar-10-batches-bin/data_batch_1.bin."
    )


def test_unknown_name():
    with pytest.raises(InvalidInput) as error:
        load_images("cifar-10")
    assert str(error.value) == (
        "Unknown data set 'cifar-10'. Did you mean 'cifar10' or 'cifar100'? "
        "Valid: digits, mnist, fashion-mnist, svhn, cifar10, cifar100, a path that ends in .npz."
    )


# --- .npz -----------------------------------------------------------------------------------------------------------


def good() -> dict[str, np.ndarray]:
    return {
        "train_images": random_images(12, 3, 8, 0),
        "train_labels": np.arange(12) % 4,
        "test_images": random_images(5, 3, 8, 1),
        "test_labels": np.arange(5) % 4,
    }


def test_npz(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", **good(), extra=np.zeros(3))
    data = load_images(str(tmp_path / "mine.npz"))
    assert (data.name, data.classes, data.channels, data.size, data.source) == ("mine", 4, 3, 8, "npz:mine.npz")
    assert data.augmentation == Augmentation()
    assert np.array_equal(data.test_images.numpy(), good()["test_images"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None, "test_label": np.zeros(5, int)},
         "the array 'test_labels' is missing. Is it 'test_label'? Then rename that."),
        ({"train_images": None, "test_images": None, "x": np.zeros(1)},
         "the array 'train_images' is missing. It has: train_labels, test_labels, x."),
        ({"train_images": np.zeros((12, 3, 8, 8), np.float32)},
         "train_images: expected uint8 (0 to 255), got float32."),
        ({"test_images": np.zeros((5, 8, 8), np.uint8)},
         "test_images: expected the axes image, channel, row, column; got the shape (5, 8, 8)."),
        ({"train_images": np.zeros((12, 8, 8, 3), np.uint8)},
         ("train_images: expected square images as image, channel, row, column; got the shape (12, 8, 8, 3). "
         "Move the channels before the rows.")),
        ({"train_images": np.zeros((12, 3, 8, 6), np.uint8)},
         ("train_images: expected square images as image, channel, row, column; got the shape (12, 3, 8, 6). "
         "Make them square.")),
        ({"test_images": np.zeros((0, 3, 8, 8), np.uint8), "test_labels": np.zeros(0, int)},
         "test_images is empty, its shape is (0, 3, 8, 8)."),
        ({"test_images": random_images(5, 1, 8, 0)}, "train_images are 3×8×8 and test_images 1×8×8."),
        ({"train_labels": np.zeros(12)}, "train_labels: expected whole numbers, got float64."),
        ({"train_labels": np.arange(11) % 4},
         "train_labels: expected one label for each of the 12 images, got the shape (11,)."),
        ({"train_labels": np.zeros((12, 1), int)},
         "train_labels: expected one label for each of the 12 images, got the shape (12, 1)."),
        ({"train_labels": np.arange(12) % 4 - 1}, "train_labels: expected labels from 0, got -1."),
        ({"train_labels": np.arange(12) % 4 + 1},
         "train_labels run to 4 but no image has the label 0. Number the classes from 0 without a gap."),
        ({"train_labels": np.where(np.arange(12) == 5, 2**40, 0)},
         "train_labels run to 1099511627776 but no image has the label 1. Number the classes from 0 without a gap."),
        ({"test_labels": np.arange(5)}, "test_labels: expected 0 to 3 as in train_labels, got 4."),
        ({"train_images": np.where(np.arange(3)[:, None, None] == 1, 7, good()["train_images"]).astype(np.uint8)},
         "channel 1 of train_images has the same value everywhere and can't be normalised. Leave it out."),
    ],
)
def test_npz_refuses(changes, message, tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **{name: array for name, array in (good() | changes).items() if array is not None})
    assert message_of(path) == f"{path}: {message}"


def test_npz_missing_truncated_or_something_else(tmp_path):
    path = tmp_path / "mine.npz"
    assert message_of(path) == f"There is no file {path}."
    how = ("Write it with numpy.savez(path, train_images=…, train_labels=…, test_images=…, test_labels=…).")
    np.savez(path, **good())
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert message_of(path) == f"{path} is not an .npz file, or is cut short. {how}"
    altered = bytearray(content)
    altered[len(content) // 4] ^= 255
    path.write_bytes(altered)
    assert message_of(path) == f"{path} can't be read (Bad CRC-32 for file 'train_images.npy'). {how}"


class Bomb:
    """Leaves a trace if anybody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_no_pickle_is_executed(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "mine.npz"
    np.savez(path, **good() | {"train_labels": np.array([Bomb(trace)] * 12, dtype=object)}, allow_pickle=True)
    assert "can't be read (Object arrays cannot be loaded when allow_pickle=False)" in message_of(path)
    path.write_bytes(pickle.dumps(Bomb(trace)))
    assert "is not an .npz file" in message_of(path)
    assert not trace.exists()


# --- ImageData ------------------------------------------------------------------------------------------------------


def test_take_keeps_classes_equal_and_the_first_of_each():
    data = load_images("digits")
    part = data.take(train=40, test=15)
    assert part.train_labels.bincount().tolist() == [4] * 10
    assert sorted(part.test_labels.bincount().tolist()) == [1] * 5 + [2] * 5
    first = torch.cat([(data.train_labels == label).nonzero()[:4, 0] for label in range(10)]).sort().values
    assert torch.equal(part.train_images, data.train_images[first])
    assert (part.mean, part.std, part.classes) == (data.mean, data.std, data.classes)
    assert part.checksum != data.checksum
    assert data.take().checksum == data.checksum == data.take(1280, 517).checksum
    with pytest.raises(InvalidInput, match="^train must be between 1 and 1280, the images there are; got 1281.$"):
        data.take(train=1281)
    with pytest.raises(InvalidInput, match="^test must be between 1 and 517, the images there are; got 0.$"):
        data.take(test=0)


def test_take_gives_the_rest_to_the_larger_classes(tmp_path):
    labels = {"train_labels": np.array([0] * 7 + [1] * 4 + [2]), "test_labels": np.arange(5) % 3}
    np.savez(tmp_path / "mine.npz", **good() | labels)
    assert load_images(tmp_path / "mine.npz").take(train=8).train_labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]


DIGITS = load_images("digits")


@settings(deadline=None, max_examples=40)
@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=5), whole=st.booleans(), seed=st.integers(0, 2**40))
def test_split_is_disjoint_and_stratified(weights, whole, seed):
    total = sum(weights) + (0 if whole else 7)
    fractions = [weight / total for weight in weights]
    parts = DIGITS.split(fractions, seed)
    together = torch.cat(parts)
    assert len(together.unique()) == len(together)
    if whole:
        assert len(together) == 1280
    counts = DIGITS.train_labels.bincount(minlength=10)
    for fraction, part in zip(fractions, parts, strict=True):
        assert abs(len(part) - 1280 * fraction) <= 1
        assert torch.equal(part, part.sort().values)
        assert (DIGITS.train_labels[part].bincount(minlength=10) - counts * fraction).abs().max() <= len(parts) + 1


def test_split_depends_on_the_seed_only():
    first, second = DIGITS.split([0.5, 0.5], 0)
    assert len(first) == len(second) == 640
    torch.manual_seed(5)
    assert torch.equal(first, DIGITS.split([0.5, 0.5], 0)[0])
    assert not torch.equal(first, DIGITS.split([0.5, 0.5], 1)[0])


@pytest.mark.parametrize("fractions", [[], [0.5, 0.6], [0.5, -0.1], [1.0, 0.0]])
def test_split_refuses_fractions(fractions):
    with pytest.raises(InvalidInput, match="^fractions must be above 0 and sum to at most 1, got "):
        DIGITS.split(fractions, 0)


def test_split_refuses_an_empty_part():
    message = r"^The fractions \[0.0001, 0.5\] of 1280 training images leave a part empty.$"
    with pytest.raises(InvalidInput, match=message):
        DIGITS.split([0.0001, 0.5], 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda_everything_is_the_same():
    data = load_images("digits", device="cuda")
    assert data.train_images.device.type == "cuda"
    assert data.take(100).checksum == DIGITS.take(100).checksum
    assert torch.equal(data.split([0.5], 3)[0].cpu(), DIGITS.split([0.5], 3)[0])
