"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nasbook.errors import InvalidInput

__all__ = [
    "whole_file",
]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` and moves it there when the block ends without an error.

    A crash, a full disk or a kill in the middle leaves what stood at ``path`` before. The content reaches
    the disk before the name does.

    Raises:
        InvalidInput: the file system refuses (no space, no permission, a folder in the way); the message
            says what stands there now.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        with partial.open("xb") as file:  # not mkstemp: others may read what is written
            temporary = partial
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        earlier = os.path.isfile(path)  # noqa: PTH113 -- Path's raises on a name that is too long
        kept = "the earlier file is unchanged" if earlier else "no file was left there"
        raise InvalidInput(f"Can't write {path}: {error.strerror or error}; {kept}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
