"""Pascal VOC 2012 from files as the official archive has them, a few pixels large."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nasbook.data import VOC_CLASSES, load_voc
from nasbook.data.imagenet import MEAN, STD
from nasbook.data.voc import read_sample
from nasbook.errors import DataError, NasbookError

NAMES = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"], "trainaug": ["2007_000032", "2008_000002"]}


def palette() -> list[int]:
    """VOC's colours: the bits of a class's number are dealt out to red, green and blue, the highest bits first."""
    colours = []
    for number in range(256):
        colour = [0, 0, 0]
        for position, channel in itertools.product(range(8), range(3)):
            colour[channel] |= (number >> (3 * position + channel) & 1) << (7 - position)
        colours += colour
    return colours


def write_labels(path: Path, labels: np.ndarray, mode: str = "P") -> None:
    image = Image.fromarray(labels.astype(np.uint8))
    if mode == "P":
        image.putpalette(palette())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def labels_of(name: str) -> np.ndarray:
    return np.random.default_rng(int(name[-3:])).choice([0, 1, 15, 20, 255], size=(5, 7))


def write_voc(root: Path) -> Path:
    """The layout of VOCdevkit/VOC2012, and the other labels that people put beside it. Aug labels are grey PNGs."""
    for part, names in NAMES.items():
        path = root / "ImageSets" / "Segmentation" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
        for name in names:
            pixels = np.random.default_rng(int(name[-3:])).integers(256, size=(5, 7, 3), dtype=np.uint8)
            (root / "JPEGImages").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            aug = part == "trainaug"
            folder = "SegmentationClassAug" if aug else "SegmentationClass"
            write_labels(root / folder / f"{name}.png", labels_of(name), "L" if aug else "P")
    return root


@pytest.fixture
def folder(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2012")
    return tmp_path


def test_the_official_layout(folder):
    data = load_voc(folder)
    assert (data.name, data.classes, data.class_names, data.source) == ("voc", 21, VOC_CLASSES, "VOC2012:train/val")
    assert (data.mean, data.std) == (MEAN, STD)
    assert (len(data.train), len(data.test)) == (2, 1)
    for name, index in (("2007_000032", 0), ("2007_000039", 1)):
        image, labels = data.train[index]
        assert image.dtype == labels.dtype == torch.uint8
        assert torch.equal(labels, torch.from_numpy(labels_of(name).astype(np.uint8)))  # numbers, not colours
        with Image.open(folder / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg") as file:
            assert torch.equal(image, torch.from_numpy(np.array(file)).permute(2, 0, 1))
    assert torch.equal(data.test[0][1], torch.from_numpy(labels_of("2007_000033").astype(np.uint8)))


def test_classes():
    assert len(VOC_CLASSES) == 21
    assert [VOC_CLASSES[number] for number in (0, 1, 15, 20)] == ["background", "aeroplane", "person", "tvmonitor"]
    assert palette()[3 * 15 : 3 * 15 + 3] == [192, 128, 128]  # a person's colour, so that the files are as VOC's
    assert palette()[3 * 255 :] == [224, 224, 192]  # the borders'


def test_the_augmented_list(folder):
    root = folder / "VOCdevkit" / "VOC2012"
    data = load_voc(root, "trainaug", "val")  # the folder itself will do
    assert len(data.train) == 2
    assert data.train.files[1][1] == root / "SegmentationClassAug" / "2008_000002.png"
    assert torch.equal(data.train[1][1], torch.from_numpy(labels_of("2008_000002").astype(np.uint8)))
    listed = root / "ImageSets" / "Segmentation" / "trainaug.txt"
    paths = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in NAMES["trainaug"]]
    listed.write_text("\n".join(paths) + "\n\n")
    assert load_voc(root, "trainaug").train.files == data.train.files  # lists of paths go round, too


def test_the_folder_of_all_data_sets(folder, monkeypatch):
    monkeypatch.setenv("NASBOOK_DATA", str(folder))
    assert len(load_voc().train) == 2


def test_a_checksum_tells_lists_and_files_apart(folder):
    def checksum() -> str:
        return load_voc(folder).checksum

    first = checksum()
    assert first == checksum() != load_voc(folder, "val", "val").checksum
    path = folder / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000032.png"
    write_labels(path, np.zeros((5, 7)))
    assert checksum() != first


# ---------------------------------------------------------------------------------------------- what is wrong


def message_of(folder: Path, *arguments) -> str:
    with pytest.raises(DataError) as error:
        load_voc(folder, *arguments, download=False).train[0]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_voc(tmp_path):
    assert message_of(tmp_path) == (
        f"There is no VOC 2012 in {tmp_path}: expected it, or {tmp_path / 'VOCdevkit' / 'VOC2012'}, "
        f"to hold JPEGImages, SegmentationClass and ImageSets/Segmentation."
    )


def test_missing_lists_and_files(folder):
    root = folder / "VOCdevkit" / "VOC2012"
    listed = root / "ImageSets" / "Segmentation"
    assert message_of(folder, "test") == f"There is no list {listed / 'test.txt'}; there are: train, trainaug, val."
    (listed / "trainaug.txt").unlink()
    assert message_of(folder, "trainaug") == (
        f"There is no list {listed / 'trainaug.txt'}; there are: train, val. The official archive has no such list and "
        f"labels; see nasbook.data.voc."
    )
    (listed / "empty.txt").write_text("\n")
    assert message_of(folder, "empty") == f"The list {listed / 'empty.txt'} is empty."
    (listed / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert message_of(folder, "binary").startswith(f"Can't read the list {listed / 'binary.txt'}: ")
    (root / "SegmentationClass" / "2007_000039.png").unlink()
    assert message_of(folder) == (
        f"1 of the 2 files that train.txt names are missing, the first is "
        f"{root / 'SegmentationClass' / '2007_000039.png'}. Unpack the archive again, or shorten the list."
    )
    shutil.rmtree(root / "SegmentationClass")
    assert message_of(folder) == f"There is no folder {root / 'SegmentationClass'}."


def test_damaged_files(folder):
    root = folder / "VOCdevkit" / "VOC2012"
    image, labels = root / "JPEGImages" / "2007_000032.jpg", root / "SegmentationClass" / "2007_000032.png"
    whole = labels.read_bytes()
    cases = {"cut short": whole[:-30], "empty": b"", "another byte": whole[:60] + b"\x00\x01\x02" + whole[63:]}
    for content in cases.values():
        labels.write_bytes(content)
        assert message_of(folder).startswith(f"{labels} is damaged, or no image (")
    labels.write_bytes(whole)
    image.write_bytes(image.read_bytes()[:200])
    assert message_of(folder).startswith(f"{image} is damaged, or no image (")
    data = load_voc(folder, download=False)
    image.unlink()
    with pytest.raises(DataError, match=r"^There is no file .*2007_000032.jpg\.$"):
        data.train[0]


def test_labels_that_are_not_classes(folder):
    labels = folder / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000032.png"
    write_labels(labels, np.full((5, 7), 21))
    assert message_of(folder) == f"{labels}: expected labels from 0 to 20, and 255 for none; got 21."
    Image.new("RGB", (7, 5)).save(labels)
    assert message_of(folder) == (
        f"{labels}: expected a PNG with a palette, or grey, whose values are numbers of classes; got mode RGB."
    )
    write_labels(labels, np.zeros((7, 5)))
    image = folder / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000032.jpg"
    assert message_of(folder) == f"{labels} has 7 rows and 5 columns, but {image} has 5 rows and 7 columns."


def test_grey_photographs_get_three_channels(tmp_path):
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "a.png")
    write_labels(tmp_path / "b.png", np.zeros((2, 3)))
    image, labels = read_sample(tmp_path / "a.png", tmp_path / "b.png", 21)
    assert image.tolist() == [[[7] * 3] * 2] * 3 and labels.tolist() == [[0] * 3] * 2


# ---------------------------------------------------------------------------------------------- downloads


def test_download(tmp_path, monkeypatch):
    """torchvision fetches, verifies and unpacks; the folder appears at the end, whole."""
    torchvision = pytest.importorskip("torchvision.datasets")
    asked = []

    def fetch(root, year, image_set, download):
        asked.append((year, image_set, download))
        assert not (tmp_path / "data" / "VOCdevkit").exists()  # somewhere else first
        write_voc(Path(root) / "VOCdevkit" / "VOC2012")

    monkeypatch.setattr(torchvision, "VOCSegmentation", fetch)
    assert len(load_voc(tmp_path / "data").train) == 2
    assert asked == [("2012", "train", True)]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["VOCdevkit"]
    load_voc(tmp_path / "data")
    assert len(asked) == 1  # what is there is not fetched again


def test_a_download_that_fails(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision.datasets")

    def refuse(root, **options):
        (Path(root) / "VOCdevkit").mkdir()
        raise RuntimeError("File not found or\ncorrupted.")

    monkeypatch.setattr(torchvision, "VOCSegmentation", refuse)
    with pytest.raises(DataError) as error:
        load_voc(tmp_path)
    assert str(error.value) == (
        f"Can't download VOC 2012 to {tmp_path} (File not found or corrupted.). Check the network, or unpack "
        f"VOCtrainval_11-May-2012.tar there yourself, or set NASBOOK_DATA to a folder that has it."
    )
    assert list(tmp_path.iterdir()) == []
    assert isinstance(error.value, NasbookError)


def test_a_download_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match="^Can't download VOC 2012 to .*: torchvision does not import"):
        load_voc(tmp_path)
