"""ImageNet's loaders, and a share of it as one tensor, on a handful of small JPEG files."""

import numpy as np
import pytest
import torch
from PIL import Image

from nasbook.data import Augmentation, image_folder_loaders, load_image_folder
from nasbook.data.imagenet import MEAN, STD
from nasbook.errors import DataError, InvalidInput
from nasbook.genotypes import DARTS_SPACE
from nasbook.methods import stretchable
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


# --- a share as one tensor --------------------------------------------------------------------------------------------


def share_of(root, share=0.6, image_size=28, **options):
    return load_image_folder(root, share, image_size, **{"seed": 0, "test_share": 1.0, "progress": False, **options})


def test_a_share_of_every_class(root):
    data = share_of(root)
    assert data.train_labels.tolist() == [0] * 3 + [1] * 3  # 3 of 5 of each class
    assert data.test_labels.tolist() == [0] * 3 + [1] * 3
    assert (data.train_images.shape, data.train_images.dtype) == ((6, 3, 28, 28), torch.uint8)
    assert (data.classes, data.mean, data.std, data.name) == (2, MEAN, STD, root.name)
    assert data.augmentation == Augmentation(crop_padding=3, flip=True)
    assert data.source == f"folder:{root.name}"
    assert len(share_of(root, 1.0).train_images) == 10


def test_the_seed_chooses_the_images(root):
    one, again, other = (share_of(root, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.train_images, again.train_images)
    assert one.checksum == again.checksum != other.checksum
    whole = share_of(root, 1.0)
    for label in range(2):
        pool = whole.train_images[whole.train_labels == label].flatten(1)
        for image in other.train_images[other.train_labels == label].flatten(1):
            assert (pool == image).all(1).sum() == 1


def test_threads_change_nothing(root, monkeypatch):
    monkeypatch.setattr("nasbook.data.imagenet.CHUNK", 4)
    assert share_of(root, workers=1).checksum == share_of(root, workers=3).checksum


def test_images_are_those_of_the_loaders(root):
    """Resized to 8/7 and cropped in the centre, as validation images are."""
    (images, labels), *_ = image_folder_loaders(root, 6, 1, image_size=28, seed=0)[1]
    data = share_of(root)
    scaled = (data.test_images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(scaled, images)
    assert torch.equal(data.test_labels, labels)


def test_a_larger_centre_by_hand(tmp_path):
    """An image of 64×32 pixels, twice the size that is wanted, whose halves differ: the centre has the border."""
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, 32:] = 255
    folder = tmp_path / "train" / "one"
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "0.png")
    image = share_of(tmp_path, 1.0, 14, test_share=0.0).train_images[0]
    assert (image[:, :, :6] == 0).all() and (image[:, :, 8:] == 255).all()


def test_grey_images_get_three_channels(root):
    for path in (root / "train" / "n01").iterdir():
        Image.fromarray(np.full((40, 50), 100, dtype=np.uint8)).save(path)
    images = share_of(root).train_images[:3]
    assert images.shape == (3, 3, 28, 28)
    assert (images == 100).all()


def test_without_test_images(root):
    for path in sorted((root / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "val").rmdir()
    data = share_of(root, test_share=0.0)
    assert data.test_images.shape == (0, 3, 28, 28)
    assert (data.test_labels.shape, len(data.checksum)) == ((0,), 64)
    with pytest.raises(DataError, match="There is no folder .*val"):
        share_of(root)


def test_the_three_shares_of_a_search(root):
    data = share_of(root, 1.0, 32, test_share=0.0)
    config = stretchable.Config(
        epochs=1, batch_size=3, channels=2, cells=3, stem="imagenet", train_share=1 / 3, topology_share=1 / 3
    )
    search = stretchable.Search(config, data, DARTS_SPACE)
    assert [len(loader.images) for loader in search.loaders] == [3, 4, 3]
    list(search.epochs())
    assert len(search.history) == 1


def test_the_bar_names_folder_and_part(root, capsys):
    share_of(root, progress=True)
    assert f"{root.name}, train" in capsys.readouterr().err
    share_of(root)
    assert capsys.readouterr().err == ""


def why_not(root, error=InvalidInput, **options) -> str:
    with pytest.raises(error) as raised:
        share_of(root, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_shares_that_do_not_work(root):
    folder = root / "train" / "n01"
    assert why_not(root, share=0.03) == f"share=0.03 of the 5 images in {folder} is none; raise it."
    assert why_not(root, test_share=0.1).startswith(f"test_share=0.1 of the 3 images in {root / 'val' / 'n01'} is none")
    assert why_not(root, share=0.0) == "share must be above 0, got 0.0."
    assert why_not(root, share=1.5) == "share must be at least 0 and at most 1, got 1.5."
    assert why_not(root, test_share=-0.1) == "test_share must be at least 0 and at most 1, got -0.1."
    assert why_not(root, workers=0) == "workers must be above 0, got 0."


def test_what_would_take_too_much_memory_is_not_begun(root, monkeypatch):
    monkeypatch.setattr("nasbook.data.imagenet._decode", lambda *_: pytest.fail("decoded"))
    assert why_not(root, share=1.0, image_size=8192, limit_gib=2.5) == (
        "10 training and 6 test images of 8192×8192 take 3.0 GiB, more than limit_gib=2.5. "
        "Lower share or image_size, or raise limit_gib."
    )


def test_folders_and_files_that_do_not_work(root, tmp_path):
    assert why_not(tmp_path / "nowhere", DataError).startswith(f"There is no folder {tmp_path / 'nowhere'}. Expected ")
    damaged = root / "val" / "n02" / "1.jpg"
    content = damaged.read_bytes()
    damaged.write_bytes(b"no image")
    assert why_not(root, DataError) == f"{damaged} is not an image, or is damaged."
    damaged.write_bytes(content[: len(content) // 2])
    assert why_not(root, DataError).startswith(f"Can't read {damaged}: image file is truncated")
    (root / "val" / "n02").rename(root / "val" / "n03")
    assert why_not(root, DataError) == f"{root}: train and val have different classes; only one of them has 'n02'."
