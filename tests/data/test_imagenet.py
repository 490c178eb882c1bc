"""The ImageNet loaders on a handful of small JPEG files."""

import numpy as np
import pytest
import torch
from PIL import Image

from nasbook.data import image_folder_loaders
from nasbook.errors import DataError, InvalidInput
from nasbook.seeding import fold_seed

pytest.importorskip("torchvision", reason="the folder loaders are torchvision's")


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 3)):
        for label in ("n01", "n02"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(256, size=(40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{number}.jpg")
    return tmp_path


def test_batches(root):
    train, val = image_folder_loaders(root, 4, 1, image_size=32, seed=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches = list(train)
    assert [images.shape for images, _ in batches] == [(4, 3, 32, 32)] * 2  # 10 images: the last 2 are dropped
    assert torch.cat([labels for _, labels in val]).tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(torch.get_rng_state(), before)  # every draw comes from the seed


def test_an_epoch_can_be_drawn_again(root):
    def epoch(loader, number):
        loader.generator.manual_seed(fold_seed(0, "order", number))
        return torch.cat([images for images, _ in loader])

    loader, _ = image_folder_loaders(root, 5, 1, image_size=16, seed=0)
    first = next(iter(loader))[0]
    second = epoch(loader, 1)
    again, _ = image_folder_loaders(root, 5, 1, image_size=16, seed=0)
    assert torch.equal(epoch(again, 1), second)
    assert torch.equal(epoch(again, 0)[:5], first)
    assert not torch.equal(epoch(again, 0), second)


def message_of(root, *arguments) -> str:
    with pytest.raises(DataError) as error:
        image_folder_loaders(root, *arguments, seed=0)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_folders(root, tmp_path):
    expected = "Expected {0} to hold train and val, with one folder of images a class."
    nowhere = tmp_path / "nowhere"
    assert message_of(nowhere, 4, 1) == f"There is no folder {nowhere}. {expected.format(nowhere)}"
    (root / "val").rename(root / "validation")
    assert message_of(root, 4, 1) == f"There is no folder {root / 'val'}. {expected.format(root)}"


def test_classes_must_agree_and_have_images(root):
    (root / "val" / "n02").rename(root / "val" / "n03")
    assert message_of(root, 4, 1) == f"{root}: train and val have different classes; only one of them has 'n02'."
    (root / "train" / "n00").mkdir()
    assert message_of(root, 4, 1).startswith(f"{root / 'train'}: Found no valid file for the classes n00.")


def test_sizes(root):
    with pytest.raises(InvalidInput, match="^A batch of 11 needs at least as many images, got 10.$"):
        image_folder_loaders(root, 11, 1, seed=0)
    with pytest.raises(InvalidInput, match="^workers must be above 0, got 0.$"):
        image_folder_loaders(root, 4, 0, seed=0)
