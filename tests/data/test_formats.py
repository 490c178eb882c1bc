"""Tiny files in each official format, written here byte by byte, come back exactly; broken ones are refused."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nasbook.data.formats import parse_cifar, parse_idx, parse_svhn, read_members
from nasbook.errors import DataError


@settings(deadline=None)
@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)))
def test_idx_round_trip(array, idx):
    assert np.array_equal(parse_idx(idx(array)), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file of unsigned bytes: expected it to begin with 00 00 08, got nothing"),
        (b"\x00\x00\x0d\x01", "not an idx file of unsigned bytes: expected it to begin with 00 00 08, got 00 00 0d"),
        (b"\x00\x00\x08\x03\x00\x00", "an idx file with 3 axes has 16 bytes before the values, got 6"),
        (b"\0\0\x08\x03" + b"\0\0\0\x02" + 2 * b"\0\0\0\x03" + bytes(17),
         "an idx file of shape 2 × 3 × 3 has 18 values, got 17"),
        (b"\0\0\x08\x01" + b"\0\0\0\x04" + bytes(5), "an idx file of shape 4 has 4 values, got 5"),
    ],
)
def test_idx_refuses(content, message):
    with pytest.raises(DataError) as error:
        parse_idx(content)
    assert str(error.value) == message


@settings(deadline=None, max_examples=30)
@given(
    images=hnp.arrays(np.uint8, st.tuples(st.integers(0, 3), st.just(3), st.just(32), st.just(32))),
    label_bytes=st.sampled_from([1, 2]),
)
def test_cifar_round_trip(images, label_bytes):
    labels = np.arange(len(images), dtype=np.uint8) + 7
    coarse = [99] * (label_bytes - 1)
    records = [bytes([*coarse, label]) + image.tobytes() for label, image in zip(labels, images, strict=True)]
    parsed, classes = parse_cifar(b"".join(records), label_bytes)
    assert np.array_equal(parsed, images) and np.array_equal(classes, labels)


def test_cifar_refuses_half_a_record():
    with pytest.raises(DataError, match="^expected records of 3073 bytes, got 3000 bytes$"):
        parse_cifar(bytes(3000), 1)


def test_members_are_read_in_the_order_asked_for(tar_gz):
    content = tar_gz({"a": b"1", "b": b"22", "c": b""})
    assert read_members(content, ["c", "b", "a"]) == [b"", b"22", b"1"]


def test_members_refuse(tar_gz):
    content = tar_gz({"a": bytes(100_000)})
    with pytest.raises(DataError, match="^the archive has no file b$"):
        read_members(content, ["a", "b"])
    with pytest.raises(DataError, match="^not a readable .tar.gz "):
        read_members(content[: len(content) // 2], ["a"])
    with pytest.raises(DataError, match="^not a readable .tar.gz "):
        read_members(gzip.compress(b"no tar"), ["a"])


def test_members_never_follow_a_path_out_of_the_archive(tmp_path, monkeypatch, tar_gz):
    monkeypatch.chdir(tmp_path)
    assert read_members(tar_gz({"../outside": b"1", "/etc/inside": b"2", "a": b"3"}), ["a"]) == [b"3"]
    assert list(tmp_path.iterdir()) == [] and not (tmp_path.parent / "outside").exists()


def test_svhn_axes_and_labels(svhn):
    images = np.random.default_rng(0).integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    content = svhn(X=images.transpose(2, 3, 1, 0), y=np.array([[10], [1], [9], [10]], np.uint8))
    parsed, labels = parse_svhn(content)
    assert np.array_equal(parsed, images)
    assert labels.tolist() == [0, 1, 9, 0]


def test_svhn_refuses(svhn):
    with pytest.raises(DataError, match="^the .mat file has no 'y'$"):
        parse_svhn(svhn(X=np.zeros((32, 32, 3, 1), np.uint8)))
    with pytest.raises(DataError, match="^not a readable .mat file of SVHN "):
        parse_svhn(svhn(X=np.zeros((32, 32, 3), np.uint8), y=np.zeros((1, 1), np.uint8)))
    whole = svhn(X=np.zeros((32, 32, 3, 1), np.uint8), y=np.zeros((1, 1), np.uint8))
    for length in (0, 4, 60, 130, 150, len(whole) - 3):
        with pytest.raises(DataError):
            parse_svhn(whole[:length])
