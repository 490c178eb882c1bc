"""The check of the environment, and the choice of a device."""

import pytest
import torch

import nasbook
from nasbook import environment
from nasbook.environment import resolve_device
from nasbook.errors import InvalidInput


def test_check_environment_names_every_package(capsys):
    nasbook.check_environment()
    said = capsys.readouterr().out
    assert f"nasbook {nasbook.__version__}" in said
    for package in environment.OLDEST:
        assert package in said


def test_missing_and_old_packages_are_named_with_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(environment, "OLDEST", {"no-such-package": (1, 0), "torch": (99, 0)})
    nasbook.check_environment()
    said = capsys.readouterr().out
    assert "no-such-package: missing; install no-such-package>=1.0" in said
    assert "too old; install torch>=99.0" in said


def test_auto_takes_what_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "Unknown device 'gpu'"), ("cuda:99", "is not here"), ("meta", "cpu and cuda")]
)
def test_devices_that_are_not_to_be_had(name, message):
    with pytest.raises(InvalidInput, match=message):
        resolve_device(name)


def test_the_package_offers_what_it_says():
    assert all(hasattr(nasbook, name) for name in nasbook.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nasbook.nothing
