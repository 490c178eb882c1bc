"""Texts as streams of words, cut into windows: a generated one, Penn Treebank, WikiText-2, and your own files.

The task is language modelling: after every word of a window, the next one. A line of a file is a sentence, and ends
with the token ``<eos>``.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from nasbook.data.downloads import FILES, data_folder, fetch
from nasbook.data.grammar import EOS, UNKNOWN, Grammar
from nasbook.data.sequences import PARTS, SequenceData, check_part, checksum_of
from nasbook.errors import DataError, InvalidInput, require_positive, unknown_name

GRAMMAR_LINES = (2_800, 400, 400)
"""Sentences of the parts of the embedded text."""


@dataclass(frozen=True, eq=False, repr=False)
class TextData(SequenceData):
    """A text as three streams of tokens. Examples are windows of a stream that do not overlap."""

    vocabulary: tuple[str, ...]
    """The words, each at the place of its number: those of the training part by falling frequency."""
    train: Int64[Tensor, " train"]
    """Training tokens, one after another."""
    validation: Int64[Tensor, " validation"]
    """Validation tokens."""
    test: Int64[Tensor, " test"]
    """Test tokens."""
    grammar: Grammar | None = None
    """What wrote the text, if it is known."""

    task: ClassVar[Literal["language"]] = "language"

    @property
    def features(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def checksum(self) -> str:
        return checksum_of(self.vocabulary, (self.train, self.validation, self.test))

    def __repr__(self) -> str:
        sizes = " + ".join(f"{len(self.tokens(part)):,} {part}" for part in PARTS)
        return (
            f"TextData({self.name!r}, {sizes} tokens in examples of {self.window}, {self.features:,} words, "
            f"{self.source})"
        )

    def tokens(self, part: str) -> Int64[Tensor, " tokens"]:
        """The stream of a part."""
        return (self.train, self.validation, self.test)[check_part(part)]

    def size(self, part: str) -> int:
        return (len(self.tokens(part)) - 1) // self.window

    def examples(self, part: str) -> tuple[Int64[Tensor, "examples window"], Int64[Tensor, "examples window"]]:
        stream, length = self.tokens(part), self.size(part) * self.window
        return stream[:length].view(-1, self.window), stream[1 : length + 1].view(-1, self.window)

    def constant_loss(self, part: str) -> float:
        """As :meth:`SequenceData.constant_loss`; every word counts once more than it occurs (Laplace), so that a word
        of a vocabulary that no training token shows has a probability."""
        counts = self.train.bincount(minlength=self.features).double() + 1
        return -(counts / counts.sum()).log()[self.examples(part)[1]].mean().item()

    def irreducible_loss(self, part: str) -> float | None:
        inputs, targets = self.examples(part)
        return None if self.grammar is None else self.grammar.losses(self.vocabulary, inputs, targets).mean().item()

    def unknown(self, part: str) -> int:
        """How many tokens of a part are ``<unk>``, in the text itself or because the vocabulary lacks the word."""
        return int((self.tokens(part) == self.vocabulary.index(UNKNOWN)).sum())

    def decode(self, tokens: Int64[Tensor, " tokens"]) -> str:
        """The words of some tokens, with a space between them."""
        return " ".join(self.vocabulary[token] for token in tokens.tolist())

    def to(self, device: torch.device | str) -> TextData:
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )

    def _first(self, counts: dict[str, int]) -> TextData:
        cut = {part: self.tokens(part)[: count * self.window + 1] for part, count in counts.items()}
        return replace(self, **cut)  # type: ignore[arg-type]


TEXTS = ("grammar", "ptb", "wikitext-2")
"""The names that :func:`load_text` knows."""

FOLDERS = (
    ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
    ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
    ("train.txt", "valid.txt", "test.txt"),
)
"""Names that the files of a folder may have: Penn Treebank's, WikiText's, and those of most other corpora."""

SHARES = (0.8, 0.1, 0.1)
"""Shares of the lines that train, validation and test get, one after another, where a text is one file."""


def load_text(
    name_or_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    window: int = 35,
    lines: Sequence[int] | None = None,
    most_words: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> TextData:
    """Loads a text whole, as streams of numbered words on ``device`` (WikiText-2 takes 20 MB).

    Words are what stands between spaces. Lines without a word are skipped. The vocabulary is made of the training
    part; other words become ``<unk>``, which is added when the text does not have it.

    Args:
        name_or_path: ``grammar`` (embedded: 27,000 + 4,000 + 4,000 tokens of :mod:`nasbook.data.grammar`); ``ptb``,
            Penn Treebank (Mikolov's preparation), or ``wikitext-2``: the official files, downloaded once and verified
            at every load; the path of a folder that has three files named as in :data:`FOLDERS`; the path of a text
            file, which is divided by its lines as :data:`SHARES` says; or three paths, of train, validation and test.
        window: tokens of an example.
        lines: numbers of lines, of train, validation and test, all cut from the beginning of the training part, one
            after another: growing DARTS (§4.2) has (4000, 500, 500). None keeps the parts as they are.
        most_words: the vocabulary's size at most, with ``<eos>`` and ``<unk>``; the rarest words are left out.
        folder: where downloaded files are kept; by default ``$NASBOOK_DATA``, else ``~/.cache/nasbook``.
        device: where the tensors go.

    Raises:
        InvalidInput: there is no such text, or a number can't be.
        DataError: a file is missing, damaged, not UTF-8 or too short, or there is no network; the message says what
            to do.
    """
    grammar = None
    if not isinstance(name_or_path, (str, os.PathLike)):
        paths = [Path(path).expanduser() for path in name_or_path]
        if len(paths) != 3:
            raise InvalidInput(f"Expected three files, for {', '.join(PARTS)}; got {len(paths)}.")
        name, source = paths[0].stem, f"text:{','.join(path.name for path in paths)}"
        parts = [_lines(_content(path), str(path)) for path in paths]
    elif (name := str(name_or_path)) == "grammar":
        grammar, source = Grammar(), "embedded"
        parts = _divided(grammar.write(sum(GRAMMAR_LINES)), list(accumulate(GRAMMAR_LINES)))
    elif name in TEXTS:
        source = "official files"
        contents = zip(PARTS, _official(name, folder), strict=True)
        parts = [_lines(content, f"{name}, {part}") for part, content in contents]
    else:
        path = Path(name).expanduser()
        if not path.exists() and not path.suffix and len(path.parts) == 1:
            raise unknown_name("text", name, [*TEXTS, "the path of a text file or of a folder"])
        name, source = path.stem, f"text:{path.name}"
        if path.is_dir():
            parts = [_lines(_content(file), str(file)) for file in _files_of(path)]
        else:
            whole = _lines(_content(path), str(path))
            ends = [round(total * len(whole)) for total in accumulate(SHARES)]
            parts = [whole] if lines is not None else _divided(whole, ends)
    return _text_data(name, source, parts, window, lines, most_words, grammar).to(device)


def _divided(lines: list[str], ends: Sequence[int]) -> list[list[str]]:
    return [lines[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _official(name: str, folder: str | os.PathLike[str] | None) -> list[bytes]:
    """The verified contents of the three parts."""
    otherwise = f"the path of a folder that has {', '.join(FOLDERS[TEXTS.index(name) - 1])}"
    contents = [fetch(file, data_folder(folder), otherwise) for file in FILES[name]]
    if name == "ptb":
        return contents
    try:
        with zipfile.ZipFile(io.BytesIO(contents[0])) as archive:
            return [archive.read(f"wikitext-2/{file}") for file in FOLDERS[1]]
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise DataError(f"{name}: not the archive that is expected ({error.args[0]}).") from None


def _files_of(folder: Path) -> list[Path]:
    """The three files of a folder, by the names that they may have."""
    for names in FOLDERS:
        found = [folder / name for name in names]
        if found[0].exists():
            return found
    raise DataError(f"{folder} has no training text. Expected one of {', '.join(names[0] for names in FOLDERS)}, and "
                    f"the files that go with it.")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"Can't read {path}: {error.strerror}.") from None


def _lines(content: bytes, where: str) -> list[str]:
    """The lines that have a word."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{where}, line {line}: not UTF-8. Write the text in UTF-8.") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{where} is empty: it has no word.")
    return lines


def _text_data(
    name: str,
    source: str,
    parts: Sequence[list[str]],
    window: int,
    lines: Sequence[int] | None,
    most_words: int | None,
    grammar: Grammar | None = None,
) -> TextData:
    """Cuts the lines, numbers the words and makes streams of them."""
    require_positive(window=window)
    if most_words is not None and most_words < 3:
        raise InvalidInput(f"most_words must be at least 3, for {EOS}, {UNKNOWN} and one word; got {most_words}.")
    if lines is not None:
        parts = _cut(name, parts[0], lines)
    sentences = [[line.split() for line in part] for part in parts]
    counts = Counter(word for words in sentences[0] for word in (*words, EOS))
    vocabulary = _vocabulary(counts, most_words)
    place = {word: number for number, word in enumerate(vocabulary)}
    unknown = place[UNKNOWN]
    streams = [
        torch.tensor([place.get(word, unknown) for words in part for word in (*words, EOS)], dtype=torch.int64)
        for part in sentences
    ]
    for part, stream in zip(PARTS, streams, strict=True):
        if len(stream) <= window:
            raise DataError(
                f"{name}: the {part} part has {len(stream)} tokens, too few for a window of {window} and the token "
                f"after it. Give more text or a smaller window."
            )
    train, validation, test = streams
    return TextData(name, source, window, vocabulary, train, validation, test, grammar)


def _cut(name: str, whole: list[str], lines: Sequence[int]) -> list[list[str]]:
    """The first lines of the training part as training, the next ones as validation and test."""
    if len(lines) != 3 or min(lines) < 1:
        raise InvalidInput(f"lines must be three numbers above 0, for {', '.join(PARTS)}; got {tuple(lines)}.")
    if sum(lines) > len(whole):
        raise DataError(
            f"{name}: lines={tuple(lines)} needs {sum(lines)} lines that are not empty, the training part has "
            f"{len(whole)}. Ask for fewer."
        )
    return _divided(whole, list(accumulate(lines)))


def _vocabulary(counts: Counter[str], most_words: int | None) -> tuple[str, ...]:
    """The words by falling frequency, then in alphabetical order; with the end and the unknown word, capped."""
    words = sorted(counts, key=lambda word: (-counts[word], word))
    if UNKNOWN not in counts:
        words.append(UNKNOWN)
    if most_words is not None and len(words) > most_words:
        others = [word for word in words if word not in (EOS, UNKNOWN)]
        kept = {EOS, UNKNOWN, *others[: most_words - 2]}
        words = [word for word in words if word in kept]
    return tuple(words)
