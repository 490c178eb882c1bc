"""A small stochastic grammar of English-like sentences, and the exact probability of every word under it.

    the farmer who some dogs follow feeds a black horse and waits near the barn

Three things are there to be learned, each over a longer distance than the one before:

1. the order of words within a phrase, with "a" before the singular and "some" before the plural;
2. agreement: a verb has the number of its subject, even across a relative clause with a noun of another number, and
   once more after "and";
3. topics: most nouns and verbs come from one of six topics, and a topic stays for six sentences on average.

The first word of a class is the most frequent, the r-th one r times rarer (Zipf's law). The places in a sentence are
the states of a finite automaton, and the topic is hidden: a hidden Markov model. So the probability of the next word
is computed exactly, by the forward recursion: the floor of every language model (:meth:`Grammar.losses`).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from nasbook.errors import InvalidInput

EOS = "<eos>"
"""The token at the end of a sentence."""

UNKNOWN = "<unk>"
"""The token of all words that are not in the vocabulary."""


class Topic(NamedTuple):
    """Stems of a topic's words, the most frequent first. All take an s: nouns in the plural, verbs in the singular."""

    nouns: str
    """Nouns."""
    transitive: str
    """Verbs with an object."""
    intransitive: str
    """Verbs without one."""


TOPICS = (
    Topic("farmer horse dog cow field barn goat hen gate fence tractor shepherd",
          "feed follow own herd milk", "graze work rest plow"),
    Topic("sailor ship boat captain wave harbor whale storm net pilot gull shore",
          "steer board load tow sink", "sail drift swim anchor"),
    Topic("singer song drum band violin dancer concert trumpet choir piano chord stage",
          "play tune record conduct rehearse", "sing dance perform hum"),
    Topic("cook pot soup table cake baker waiter pan plate recipe spoon kettle",
          "stir serve taste fill boil", "bake eat dine simmer"),
    Topic("judge lawyer court trial guard prisoner law verdict clerk crime cell sheriff",
          "accuse defend arrest sentence question", "appeal plead argue confer"),
    Topic("planet star rocket moon comet telescope robot signal scientist satellite crater probe",
          "detect measure launch track repair", "orbit shine explode spin"),
)
"""The words of the topics."""

SHARED = Topic("friend neighbor stranger cousin boy girl teacher king visitor thing",
               "see like need know help fear", "wait sleep smile listen leave")
"""The words that every topic has."""

COMMON: Mapping[str, str] = MappingProxyType({
    "opening": "then today sometimes often meanwhile later",
    "determiner": "the his her our their",
    "determiner singular": "a every this",
    "determiner plural": "some many these two few",
    "adjective": "big small little new young black good strange tall quiet broken famous red brave tired modern local "
                 "green lucky gentle heavy proud simple silent",
    "relative": "who that",
    "preposition": "near with behind by under without beside from",
    "adverb": "quickly again slowly together alone badly well rarely",
    "and": "and or",
    "end": EOS,
})
"""Classes of words that no topic changes."""

State = tuple[str, ...]
"""A place in a sentence: what comes next, and the numbers that later words agree with."""

START: State = ("start",)
"""Before the first word of a sentence."""


class Branch(NamedTuple):
    """One way to go on from a state."""

    share: float
    """Its probability."""
    kind: str
    """The class of the word that comes."""
    target: State
    """The state after it."""


def branches(state: State) -> list[Branch]:
    """All ways to go on from a state; their shares sum to 1. These are the rules of the grammar.

    A phrase is a determiner, perhaps an adjective, and a noun. ``subject`` is the number of the sentence's subject,
    which the main verb agrees with; the role of a phrase says what comes after it.
    """
    match state:
        case ("start",):
            return [Branch(0.2, "opening", ("opened",)), *_phrase(0.8, "subject", "")]
        case ("opened",):
            return _phrase(1, "subject", "")
        case ("phrase", role, subject):
            return _phrase(1, role, subject)
        case ("noun", role, subject, number):
            return [Branch(0.3, "adjective", ("bare noun", role, subject, number)), *_noun(0.7, role, subject, number)]
        case ("bare noun", role, subject, number):
            return _noun(1, role, subject, number)
        case ("subject", subject):
            return [Branch(0.35, "relative", ("relative", subject)), *_verb(0.65, subject)]
        case ("relative", subject):  # "who likes the dogs", or "who the dogs like"
            verb = Branch(0.4, f"transitive {subject}", ("phrase", "relative object", subject))
            return [verb, *_phrase(0.6, "relative subject", subject)]
        case ("relative verb", subject, number):
            return [Branch(1, f"transitive {number}", ("verb", subject))]
        case ("verb", subject):
            return _verb(1, subject)
        case ("said", subject):
            return [Branch(0.25, "adverb", ("placed", subject)), *_place(0.35, subject), *_close(0.4, subject)]
        case ("object", subject):
            return [*_place(0.25, subject), *_close(0.75, subject)]
        case ("placed", subject):
            return _close(1, subject)
    raise ValueError(f"The grammar has no state {state}.")


def _phrase(share: float, role: str, subject: str) -> list[Branch]:
    """A determiner, which may fix the number of its noun."""
    return [
        Branch(share * 0.5, "determiner", ("noun", role, subject, "")),
        Branch(share * 0.25, "determiner singular", ("noun", role, subject, "singular")),
        Branch(share * 0.25, "determiner plural", ("noun", role, subject, "plural")),
    ]


def _noun(share: float, role: str, subject: str, number: str) -> list[Branch]:
    """A noun of a number, or of either one, and where its role leads."""
    numbers = [number] if number else ["singular", "plural"]
    after = {
        "subject": lambda number: ("subject", number),
        "relative subject": lambda number: ("relative verb", subject, number),
        "relative object": lambda _: ("verb", subject),
        "object": lambda _: ("object", subject),
        "place": lambda _: ("placed", subject),
    }[role]
    return [Branch(share / len(numbers), f"noun {one}", after(one)) for one in numbers]


def _verb(share: float, subject: str) -> list[Branch]:
    return [
        Branch(share / 2, f"transitive {subject}", ("phrase", "object", subject)),
        Branch(share / 2, f"intransitive {subject}", ("said", subject)),
    ]


def _place(share: float, subject: str) -> list[Branch]:
    return [Branch(share, "preposition", ("phrase", "place", subject))]


def _close(share: float, subject: str) -> list[Branch]:
    """The end, or a second verb of the same subject."""
    return [Branch(share * 0.8, "end", START), Branch(share * 0.2, "and", ("verb", subject))]


@dataclass(frozen=True)
class Grammar:
    """A writer of sentences, who knows how probable each of their words was."""

    stay: float = 5 / 6
    """Probability that the next sentence has the same topic; else every other one is as likely."""
    own: float = 0.75
    """Probability that a noun or a verb is one of the topic's and not one of those that every topic has."""
    seed: int = 1
    """Of all draws."""

    @cached_property
    def states(self) -> tuple[State, ...]:
        """All states that a sentence can be in, the start first."""
        found = [START]
        for state in found:  # grows on the way
            found += dict.fromkeys(branch.target for branch in branches(state) if branch.target not in found)
        return tuple(found)

    @cached_property
    def kinds(self) -> Mapping[str, tuple[Mapping[str, float], ...]]:
        """For every class of words and every topic the probability of each word."""
        kinds = {kind: (_zipf(words.split()),) * len(TOPICS) for kind, words in COMMON.items()}
        for kind in Topic._fields:
            name = kind.removesuffix("s")
            for number in ("singular", "plural"):
                ending = "s" if (name == "noun") == (number == "plural") else ""
                shared = _zipf([stem + ending for stem in getattr(SHARED, kind).split()])
                kinds[f"{name} {number}"] = tuple(
                    {word: self.own * share for word, share in
                     _zipf([stem + ending for stem in getattr(topic, kind).split()]).items()}
                    | {word: (1 - self.own) * share for word, share in shared.items()}
                    for topic in TOPICS
                )
        return kinds

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words there are, in alphabetical order, the end of a sentence included."""
        return tuple(sorted({word for topics in self.kinds.values() for words in topics for word in words}))

    def write(self, sentences: int) -> list[str]:
        """The first sentences, without their ends: words with a space between them.

        They are the same on every machine and with every NumPy: draws are made of the bits of PCG64, which are fixed,
        and compared by the four operations of float64 alone.
        """
        bits = np.random.PCG64(self.seed)

        def draw(shares: Sequence[float]) -> int:
            uniform = (int(bits.random_raw()) >> 11) * 2.0**-53
            sums = list(accumulate(shares))
            return min(bisect(sums, uniform * sums[-1]), len(sums) - 1)

        written = []
        topic = draw([1.0] * len(TOPICS))
        for _ in range(sentences):
            words: list[str] = []
            state = START
            while state != START or not words:
                ways = branches(state)
                _, kind, state = ways[draw([way.share for way in ways])]
                choices = self.kinds[kind][topic]
                words.append(list(choices)[draw(list(choices.values()))])
            written.append(" ".join(words[:-1]))
            topic = draw([self.stay if other == topic else self._leave for other in range(len(TOPICS))])
        return written

    def losses(
        self,
        vocabulary: Sequence[str],
        inputs: Int64[Tensor, "examples window"],
        targets: Int64[Tensor, "examples window"],
    ) -> Float64[Tensor, "examples window"]:
        """−ln p of every target given the inputs up to its place, and nothing before the window.

        The forward recursion over the pairs of a state and a topic, from their stationary distribution. A word that
        the vocabulary lacks counts as :data:`UNKNOWN`. Cost: about 0.3 s for 1,000 examples of 35 tokens.

        Raises:
            InvalidInput: the vocabulary lacks words and has no :data:`UNKNOWN`, or the grammar can't say these tokens.
        """
        place = {word: number for number, word in enumerate(vocabulary)}
        missing = [word for word in self.words if word not in place]
        if missing and UNKNOWN not in place:
            raise InvalidInput(f"The vocabulary has neither {missing[0]!r}, a word of the grammar, nor {UNKNOWN!r}.")
        number = {state: index for index, state in enumerate(self.states)}
        ways = [(source, way) for source in self.states for way in branches(source)]
        start = torch.tensor([number[source] for source, _ in ways])
        end = torch.tensor([number[way.target] for _, way in ways])
        share = torch.tensor([way.share for _, way in ways], dtype=torch.float64)
        kind = torch.tensor([list(self.kinds).index(way.kind) for _, way in ways])
        said = torch.zeros(len(self.kinds), len(TOPICS), len(vocabulary), dtype=torch.float64)
        for index, topics in enumerate(self.kinds.values()):
            for topic, words in enumerate(topics):
                for word, probability in words.items():
                    said[index, topic, place.get(word, place.get(UNKNOWN, 0))] += probability
        change = torch.full((len(TOPICS),) * 2, self._leave, dtype=torch.float64).fill_diagonal_(self.stay)

        moves = torch.zeros(len(number), len(number), dtype=torch.float64).index_put_((start, end), share, True)
        stationary = torch.linalg.matrix_power(moves, 4096)[0]
        belief = (stationary[:, None] / len(TOPICS)).expand(len(inputs), -1, len(TOPICS))

        def step(tokens: Int64[Tensor, " examples"]) -> Float64[Tensor, "examples ways topics"]:
            """Probability of each way and topic together with this token."""
            return belief[:, start] * share[:, None] * said[:, :, tokens].permute(2, 0, 1)[:, kind]

        inputs, targets = inputs.cpu(), targets.cpu()
        result = torch.empty(inputs.shape, dtype=torch.float64)
        for index in range(inputs.shape[1]):
            joint = step(inputs[:, index])
            belief = torch.zeros(len(inputs), len(number), len(TOPICS), dtype=torch.float64).index_add_(1, end, joint)
            belief[:, 0] = belief[:, 0] @ change  # the topic may change where a sentence ends
            belief = belief / belief.sum((1, 2), keepdim=True)
            result[:, index] = -step(targets[:, index]).sum((1, 2)).log()
        if not result.isfinite().all():
            raise InvalidInput("The grammar can't say these tokens. Were they written by it, with this vocabulary?")
        return result

    @property
    def _leave(self) -> float:
        """Probability of each other topic in the next sentence."""
        return (1 - self.stay) / (len(TOPICS) - 1)


def _zipf(words: Sequence[str]) -> dict[str, float]:
    """Zipf's law: the r-th word has a probability in proportion to 1/r."""
    total = sum(1 / rank for rank in range(1, len(words) + 1))
    return {word: 1 / rank / total for rank, word in enumerate(words, 1)}
