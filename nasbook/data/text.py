"""Texts as streams of words, cut into windows: a generated one, Penn Treebank, WikiText-2, and your own files.

The task is language modelling: after every word of a window, the next one. A line of a file is a sentence, and ends
with the token ``<eos>``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

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
        if self.grammar is None:
            return None
        return self.grammar.losses(self.vocabulary, *self.examples(part)).mean().item()

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


TEXTS = ("grammar",)
"""The names that :func:`load_text` knows."""


def load_text(
    name_or_path: str | os.PathLike[str],
    *,
    window: int = 35,
    lines: tuple[int, int, int] | None = None,
    most_words: int | None = None,
    device: torch.device | str = "cpu",
) -> TextData:
    """Loads a text whole."""
    name = str(name_or_path)
    if name != "grammar":
        raise unknown_name("text", name, TEXTS)
    grammar = Grammar()
    written = grammar.write(sum(GRAMMAR_LINES))
    first, second, third = accumulate(GRAMMAR_LINES)
    parts = [written[:first], written[first:second], written[second:third]]
    return _text_data(name, "embedded", parts, window, lines, most_words, grammar).to(device)


def _text_data(
    name: str,
    source: str,
    parts: Sequence[Sequence[str]],
    window: int,
    lines: tuple[int, int, int] | None,
    most_words: int | None,
    grammar: Grammar | None = None,
) -> TextData:
    """Cuts the lines, numbers the words and makes streams of them."""
    require_positive(window=window)
    sentences: list[list[list[str]]] = [[words for line in part if (words := line.split())] for part in parts]
    if lines is not None:
        sentences = _cut(name, sentences[0], lines)
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


def _cut(name: str, sentences: list[list[str]], lines: tuple[int, int, int]) -> list[list[list[str]]]:
    """The first lines of the training part as training, the next ones as validation and test."""
    if len(lines) != 3 or min(lines) < 1:
        raise InvalidInput(f"lines must be three numbers above 0, for {', '.join(PARTS)}; got {lines}.")
    if sum(lines) > len(sentences):
        raise DataError(
            f"{name}: lines={tuple(lines)} needs {sum(lines)} lines that are not empty, the training part has "
            f"{len(sentences)}. Ask for fewer."
        )
    first, second, third = accumulate(lines)
    return [sentences[:first], sentences[first:second], sentences[second:third]]


def _vocabulary(counts: Counter[str], most_words: int | None) -> tuple[str, ...]:
    """The words by falling frequency, then in alphabetical order; with the end and the unknown word, capped."""
    words = sorted(counts, key=lambda word: (-counts[word], word))
    if UNKNOWN not in counts:
        words.append(UNKNOWN)
    if most_words is not None and len(words) > most_words:
        if most_words < 3:
            raise InvalidInput(f"most_words must be at least 3, for {EOS}, {UNKNOWN} and one word; got {most_words}.")
        others = [word for word in words if word not in (EOS, UNKNOWN)]
        kept = {EOS, UNKNOWN, *others[: most_words - 2]}
        words = [word for word in words if word in kept]
    return tuple(words)
