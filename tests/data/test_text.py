"""Texts: the grammar agrees with itself and its floor is exact; files in their official formats come back exactly."""

import contextlib
import hashlib
import io
import math
import re
import urllib.error
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import PARTS, TEXTS, downloads, load_text, text
from nasbook.data.grammar import COMMON, EOS, SHARED, START, TOPICS, UNKNOWN, Grammar, branches
from nasbook.errors import DataError, InvalidInput


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any download fails as it does without a network, unless a test replaces this."""

    def refuse(url, root, filename=None, md5=None):
        raise urllib.error.URLError("no route to host")

    with contextlib.suppress(ImportError):
        monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    monkeypatch.delenv("NASBOOK_DATA", raising=False)


@pytest.fixture(scope="module")
def data():
    return load_text("grammar")


def message_of(*arguments, **options) -> str:
    with pytest.raises(DataError) as error:
        load_text(*arguments, **{"window": 2, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ the grammar


def test_the_same_words_on_every_machine(data):
    assert data.checksum == "639d2237ec06c0d6505dddd6b0e46364b3b1622ed5680edc443c97c8a3eba782"
    assert repr(data) == (
        "TextData('grammar', 26,586 train + 3,775 validation + 3,805 test tokens in examples of 35, 359 words, "
        "embedded)"
    )
    assert (data.task, data.features, data.unknown("test")) == ("language", 359, 0)
    assert [data.tokens(part).eq(data.vocabulary.index(EOS)).sum() for part in PARTS] == [2800, 400, 400]


FIRST = [
    "some pots see his quiet pots",
    "then the pots help these pots from a friend",
    "his black whales that his sailors tow sail",
]


def test_the_first_sentences():
    assert Grammar().write(3) == FIRST


def test_more_sentences_leave_the_first_as_they_are():
    assert Grammar().write(60)[:40] == Grammar().write(40)
    assert Grammar(seed=2).write(40) != Grammar().write(40)


def test_the_rules_are_probabilities():
    grammar = Grammar()
    assert grammar.states[0] == START and len(set(grammar.states)) == len(grammar.states) == 78
    for state in grammar.states:
        assert sum(way.share for way in branches(state)) == pytest.approx(1, abs=1e-12)
        assert all(way.kind in grammar.kinds and way.target in grammar.states for way in branches(state))
    for topics in grammar.kinds.values():
        assert all(sum(words.values()) == pytest.approx(1, abs=1e-12) for words in topics)
    with pytest.raises(ValueError, match="no state"):
        branches(("nowhere",))


def numbers_of(kind: str) -> dict[str, str]:
    """The number that every form of a class of words shows, from the lists of stems alone."""
    stems = " ".join(getattr(topic, kind) for topic in (*TOPICS, SHARED)).split()
    bare, s = ("singular", "plural") if kind == "nouns" else ("plural", "singular")
    return dict.fromkeys(stems, bare) | {f"{stem}s": s for stem in stems}


NOUNS = numbers_of("nouns")
VERBS = numbers_of("transitive") | numbers_of("intransitive")
KNOWN = {**dict.fromkeys(COMMON["determiner singular"].split(), "singular"),
         **dict.fromkeys(COMMON["determiner plural"].split(), "plural")}
ADJECTIVES = set(COMMON["adjective"].split())


def phrase(words: list[str]) -> str:
    """Takes a determiner, perhaps an adjective, and a noun from the front; returns its number."""
    determiner = words.pop(0)
    if words[0] in ADJECTIVES:
        words.pop(0)
    number = NOUNS[words.pop(0)]
    assert KNOWN.get(determiner, number) == number
    return number


def predicate(words: list[str], subject: str) -> int:
    """Takes verbs of the subject with what belongs to them; returns how many."""
    assert VERBS[words.pop(0)] == subject
    if words and words[0] in COMMON["adverb"].split():
        words.pop(0)
    elif words and words[0] not in ("and", "or"):
        if words[0] not in COMMON["preposition"].split():
            phrase(words)
        if words and words[0] in COMMON["preposition"].split():
            words.pop(0)
            phrase(words)
    if words:
        assert words.pop(0) in ("and", "or")
        return 1 + predicate(words, subject)
    return 1


def test_every_sentence_agrees():
    """A reader of its own, which knows English and not the rules: verbs agree, across clauses and after "and"."""
    across, second = 0, 0
    for sentence in Grammar().write(3000):
        words = sentence.split()
        if words[0] in COMMON["opening"].split():
            words.pop(0)
        subject = phrase(words)
        if words[0] in ("who", "that"):
            words.pop(0)
            if words[0] in VERBS:
                assert VERBS[words.pop(0)] == subject
                rival = phrase(words)
            else:
                rival = phrase(words)
                assert VERBS[words.pop(0)] == rival
            across += rival != subject
        second += predicate(words, subject) > 1
        assert words == []
    assert across > 300 and second > 300  # and there is something to be learned


def test_words_follow_zipfs_law():
    counts = Counter(word for sentence in Grammar().write(8000) for word in sentence.split())
    for words in ("a every this", "the his her our their", "who that", "big small little new"):
        first, *others = (counts[word] for word in words.split())
        for rank, count in enumerate(others, 2):
            assert count == pytest.approx(first / rank, rel=0.1)


def test_topics_stay_for_some_sentences():
    """The topic of a sentence, as its nouns tell: the same as that of the next one more often than by chance."""
    topic_of = {
        form: index for index, topic in enumerate(TOPICS) for stem in topic.nouns.split() for form in (stem, stem + "s")
    }
    for stay in (1 / 6, 5 / 6):
        seen = [
            next((topic_of[word] for word in sentence.split() if word in topic_of), None)
            for sentence in Grammar(stay=stay).write(4000)
        ]
        pairs = [(one, other) for one, other in pairwise(seen) if None not in (one, other)]
        same = np.mean([one == other for one, other in pairs])
        assert same == pytest.approx(stay, abs=0.05)
        assert set(seen) == {None, *range(len(TOPICS))}


# ------------------------------------------------------------------------------------------------ its floor


def by_hand(grammar: Grammar, words: list[str]) -> list[float]:
    """−ln p of every word but the first, one state and topic at a time."""
    states = list(grammar.states)
    moves = np.zeros((len(states), len(states)))
    for state in states:
        for way in branches(state):
            moves[states.index(state), states.index(way.target)] += way.share
    system = np.vstack([moves.T - np.eye(len(states)), np.ones(len(states))])
    stationary = np.linalg.lstsq(system, np.append(np.zeros(len(states)), 1.0), rcond=None)[0]
    belief = {(state, topic): float(share) / 6 for state, share in zip(states, stationary, strict=True)
              for topic in range(6)}
    losses = []
    for word in words:
        after: dict = {}
        for (state, topic), weight in belief.items():
            for way in branches(state):
                probability = weight * way.share * grammar.kinds[way.kind][topic].get(word, 0.0)
                for next_topic in range(6) if way.target == START else [topic]:
                    change = 1.0
                    if way.target == START:
                        change = grammar.stay if next_topic == topic else (1 - grammar.stay) / 5
                    key = (way.target, next_topic)
                    after[key] = after.get(key, 0.0) + probability * change
        total = sum(after.values())
        losses.append(-math.log(total))
        belief = {key: weight / total for key, weight in after.items() if weight}
    return losses[1:]


@pytest.mark.parametrize("grammar", [Grammar(), Grammar(stay=0.4, own=0.9, seed=3)])
def test_losses_are_those_of_the_forward_recursion(grammar):
    stream = " ".join(f"{sentence} {EOS}" for sentence in grammar.write(12)).split()
    vocabulary = tuple(reversed(grammar.words))
    for start in (0, 3, 17):
        words = stream[start : start + 25]
        tokens = torch.tensor([[vocabulary.index(word) for word in words]])
        found = grammar.losses(vocabulary, tokens[:, :-1], tokens[:, 1:])[0]
        assert found.tolist() == pytest.approx(by_hand(grammar, words), rel=1e-10)


def test_the_next_words_are_a_distribution(data):
    """The probabilities of all words after some inputs sum to 1."""
    inputs, targets = (tensor[4:5, :6].expand(data.features, -1).clone() for tensor in data.examples("test"))
    targets[:, -1] = torch.arange(data.features)
    grammar = Grammar()
    possible = []
    for token in range(data.features):
        with contextlib.suppress(InvalidInput):  # a word that can't come
            one = slice(token, token + 1)
            possible.append(grammar.losses(data.vocabulary, inputs[one], targets[one])[0, -1])
    assert torch.stack(possible).neg().exp().sum().item() == pytest.approx(1, rel=1e-12)
    assert 10 < len(possible) < 200


def test_the_text_is_most_probable_under_its_own_grammar(data):
    def floor(**changes) -> float:
        return replace(data, grammar=Grammar(**changes)).irreducible_loss("train")

    truth = data.irreducible_loss("train")
    for changes in ({"stay": 0.7}, {"stay": 0.95}, {"own": 0.65}, {"own": 0.85}):
        assert floor(**changes) > truth + 1e-4


def test_the_floor(data):
    floors = {part: data.irreducible_loss(part) for part in PARTS}
    assert floors == pytest.approx({"train": 2.771, "validation": 2.774, "test": 2.787}, abs=5e-3)
    for part in PARTS:
        inputs, targets = data.examples(part)
        assert floors[part] == pytest.approx(Grammar().losses(data.vocabulary, inputs, targets).mean().item())
        assert data.constant_loss(part) > floors[part] + 2


def test_memory_lowers_the_floor(data):
    """A longer window knows the topic better, and fewer of its words are near its beginning."""
    floors = [replace(data, window=window).irreducible_loss("train") for window in (5, 20, 80)]
    assert floors[0] - floors[1] > 0.1 and floors[1] - floors[2] > 0.05
    # To know the topic beyond the end of a sentence is worth a tenth of a nat.
    long = replace(data, window=80)
    forgets = replace(long, grammar=Grammar(stay=1 / 6))  # all topics are as likely in the next sentence
    assert forgets.irreducible_loss("train") - long.irreducible_loss("train") == pytest.approx(0.1037, abs=1e-3)


def test_words_that_the_vocabulary_lacks_are_one_token():
    """The probability of ``<unk>`` is the sum of theirs; so a cap or a small training part keeps the floor exact."""
    grammar = Grammar()
    rare = ["tractor", "shepherd", "fence"]  # nouns, singular
    whole = (*grammar.words, UNKNOWN)
    capped = tuple(word for word in whole if word not in rare)
    before = ["the", "big"]

    def probability(vocabulary: tuple[str, ...], word: str) -> float:
        tokens = torch.tensor([[vocabulary.index(one) for one in (*before, word)]])
        return math.exp(-grammar.losses(vocabulary, tokens[:, :-1], tokens[:, 1:])[0, -1])

    assert probability(capped, UNKNOWN) == pytest.approx(sum(probability(whole, word) for word in rare), rel=1e-12)
    assert probability(capped, "farmer") == pytest.approx(probability(whole, "farmer"), rel=1e-12)
    small = load_text("grammar", lines=(100, 20, 20))
    assert small.unknown("test") > 0
    assert 2 < small.irreducible_loss("test") < small.constant_loss("test")
    assert load_text("grammar", most_words=50).irreducible_loss("test") < 2.2


def test_what_the_grammar_can_not_say(data):
    tokens = torch.tensor([[data.vocabulary.index(word) for word in ("the", "the", "farmer")]])
    with pytest.raises(InvalidInput, match=r"^The grammar can't say these tokens\. Were they written by it, with this"):
        Grammar().losses(data.vocabulary, tokens[:, :-1], tokens[:, 1:])
    with pytest.raises(InvalidInput, match=r"^The vocabulary has neither '<eos>', a word of the grammar, nor"):
        Grammar().losses(("the", "farmer"), tokens[:, :-1], tokens[:, 1:])


# ------------------------------------------------------------------------------------------------ streams and examples


def write(folder, *parts: str, names=("train.txt", "valid.txt", "test.txt")) -> list:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, parts, strict=True):
        (folder / name).write_bytes(content.encode())
    return [folder / name for name in names]


def test_streams_by_hand(tmp_path):
    write(tmp_path, "b a\n\n  \nc  b\tb\n", "a d\nb a", "\nd e\r\nb\r\n")
    data = load_text(tmp_path, window=2)
    assert data.vocabulary == ("b", "<eos>", "a", "c", "<unk>")  # by frequency, then by the alphabet
    assert data.decode(data.train) == "b a <eos> c b b <eos>"
    assert data.decode(data.validation) == "a <unk> <eos> b a <eos>"
    assert data.decode(data.test) == "<unk> <unk> <eos> b <eos>"
    assert [data.unknown(part) for part in PARTS] == [0, 1, 2]
    inputs, targets = data.examples("train")
    assert inputs.tolist() == [[0, 2], [1, 3], [0, 0]]
    assert targets.tolist() == [[2, 1], [3, 0], [0, 1]]
    assert inputs.dtype == targets.dtype == torch.int64
    assert data.examples("validation")[1].tolist() == [[4, 1], [0, 2]]  # the last token is too many
    assert (data.name, data.source) == (tmp_path.name, f"text:{tmp_path.name}")
    assert data.irreducible_loss("test") is None


@settings(deadline=None, max_examples=50)
@given(tokens=st.integers(2, 60), window=st.integers(1, 60))
def test_windows_are_the_stream_without_overlap(data, tokens, window):
    stream = data.train[:tokens]
    if tokens <= window:
        assert replace(data, train=stream, window=window).size("train") == 0
        return
    cut = replace(data, train=stream, window=window)
    inputs, targets = cut.examples("train")
    assert inputs.shape == targets.shape == (cut.size("train"), window)
    length = inputs.numel()
    assert tokens - 1 - window < length <= tokens - 1
    assert torch.equal(inputs.flatten(), stream[:length])
    assert torch.equal(targets.flatten(), stream[1 : length + 1])


def test_the_loss_of_frequencies_by_hand(tmp_path):
    write(tmp_path, "b a\nc b b\n", "a d\nb a", "d e\nb\n")
    data = load_text(tmp_path, window=2)
    # Counts plus one: b 4, <eos> 3, a 2, c 2, <unk> 1, of 12. Targets of validation: <unk> <eos> b a.
    expected = -sum(math.log(count / 12) for count in (1, 3, 4, 2)) / 4
    assert data.constant_loss("validation") == pytest.approx(expected, rel=1e-12)


def test_the_rarest_words_are_left_out(tmp_path):
    write(tmp_path, "b a\nc b b\na\n", "a c", "c b a")
    data = load_text(tmp_path, window=2, most_words=4)
    assert data.vocabulary == ("<eos>", "b", "a", "<unk>")
    assert data.decode(data.train) == "b a <eos> <unk> b b <eos> a <eos>"
    assert load_text(tmp_path, window=2, most_words=5).vocabulary == ("<eos>", "b", "a", "c", "<unk>")
    with pytest.raises(InvalidInput, match=r"^most_words must be at least 3, for <eos>, <unk> and one word; got 2\.$"):
        load_text(tmp_path, window=2, most_words=2)


def test_a_text_that_has_unknown_words(tmp_path):
    write(tmp_path, "<unk> a <unk>\n<unk> b", "a c", "a b")
    data = load_text(tmp_path, window=2)
    assert data.vocabulary == ("<unk>", "<eos>", "a", "b")
    assert load_text(tmp_path, window=2, most_words=3).vocabulary == ("<unk>", "<eos>", "a")


def numbered(count: int, word: str = "w") -> str:
    return "".join(f"{word} {row}\n\n" for row in range(count))


def test_lines_are_cut_from_the_training_part(tmp_path):
    write(tmp_path, numbered(20), numbered(5, "v"), numbered(5, "t"))
    data = load_text(tmp_path, window=2, lines=(4, 2, 3))
    assert data.decode(data.train) == "w 0 <eos> w 1 <eos> w 2 <eos> w 3 <eos>"
    assert data.decode(data.validation) == "w <unk> <eos> w <unk> <eos>"
    assert data.decode(data.test) == "w <unk> <eos> w <unk> <eos> w <unk> <eos>"
    assert message_of(tmp_path, lines=(15, 3, 3)) == (
        f"{tmp_path.name}: lines=(15, 3, 3) needs 21 lines that are not empty, the training part has 20. Ask for fewer."
    )
    for lines in ((4, 2), (4, 2, 0)):
        with pytest.raises(InvalidInput, match=r"^lines must be three numbers above 0, for train, validation, test; "):
            load_text(tmp_path, lines=lines)


def test_one_file_is_divided_by_its_lines(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text(numbered(20))
    data = load_text(path, window=2)
    assert [len(data.tokens(part)) for part in PARTS] == [48, 6, 6]
    assert data.decode(data.train[-3:]) == "w 15 <eos>"
    assert (data.name, data.source) == ("novel", "text:novel.txt")
    cut = load_text(path, window=2, lines=(12, 4, 4))  # from all of it
    assert [len(cut.tokens(part)) for part in PARTS] == [36, 12, 12]


def test_three_files(tmp_path):
    paths = write(tmp_path, "b a\nc b b\n", "a d\nb a", "d e\nb\n", names=("one.txt", "two.txt", "three.txt"))
    data = load_text(paths, window=2)
    assert (data.name, data.source) == ("one", "text:one.txt,two.txt,three.txt")
    write(tmp_path / "folder", "b a\nc b b\n", "a d\nb a", "d e\nb\n")
    assert load_text(tmp_path / "folder", window=2).checksum == data.checksum
    with pytest.raises(InvalidInput, match=r"^Expected three files, for train, validation, test; got 2\.$"):
        load_text(paths[:2])


def test_wrong_files(tmp_path):
    paths = write(tmp_path, "b a\nc b b\n", "a d\nb a", "d e\n")
    assert message_of(paths, window=3) == (
        "train: the test part has 3 tokens, too few for a window of 3 and the token after it. Give more text or a "
        "smaller window."
    )
    paths[1].write_text(" \n\n")
    assert message_of(tmp_path) == f"{paths[1]} is empty: it has no word."
    paths[1].write_bytes(b"a b\nc \xff\n")
    assert message_of(tmp_path) == f"{paths[1]}, line 2: not UTF-8. Write the text in UTF-8."
    paths[1].unlink()
    assert message_of(tmp_path) == f"There is no file {paths[1]}."
    paths[1].mkdir()
    assert message_of(tmp_path) == f"Can't read {paths[1]}: Is a directory."
    paths[0].unlink()
    assert message_of(tmp_path) == (
        f"{tmp_path} has no training text. Expected one of ptb.train.txt, wiki.train.tokens, train.txt, and the files "
        f"that go with it."
    )
    assert message_of(tmp_path / "none.txt") == f"There is no file {tmp_path / 'none.txt'}."
    (tmp_path / "short.txt").write_text("a b c d\n")
    assert message_of(tmp_path / "short.txt").startswith("short: the validation part has 0 tokens, too few")
    with pytest.raises(InvalidInput, match=r"^window must be above 0, got 0\.$"):
        load_text("grammar", window=0)


def test_unknown_name():
    with pytest.raises(InvalidInput) as error:
        load_text("wikitext2")
    assert str(error.value) == (
        "Unknown text 'wikitext2'. Did you mean 'wikitext-2'? "
        "Valid: grammar, ptb, wikitext-2, the path of a text file or of a folder."
    )


# ------------------------------------------------------------------------------------------------ the official files

PTB = (
    " aer banknote berlitz \n pierre <unk> N years old \n mr. <unk> is chairman of <unk> n.v. \n",
    " consumers may want N years \n",
    " no it was n't black monday \n mr. <unk> is old \n",
)
WIKI = (
    " \n = Robert <unk> = \n \n Robert <unk> is an English film , television and theatre actor . \n \n"
    " = = Career = = \n \n",
    " \n = Tower Building = \n \n Robert is a building . \n",
    " \n = Homarus = \n \n An English lobster @-@ actor – is . \n",
)
"""As the files begin: a space before and after each line, headings between equals signs, lines with a space alone."""


def zipped(parts, prefix: str = "wikitext-2/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(prefix, "")
        for part, content in zip(("test", "valid", "train"), reversed(parts), strict=True):
            archive.writestr(f"{prefix}wiki.{part}.tokens", content)
    return buffer.getvalue()


CONTENTS = {"ptb": [part.encode() for part in PTB], "wikitext-2": [zipped(WIKI)]}
OFFICIAL = list(CONTENTS)


def expect(name: str, contents, monkeypatch) -> None:
    """Makes these contents the published ones."""
    files = tuple(
        replace(file, md5=hashlib.md5(content).hexdigest())
        for file, content in zip(downloads.FILES[name], contents, strict=True)
    )
    monkeypatch.setattr(text, "FILES", {**downloads.FILES, name: files})


def put(name: str, folder, place: int) -> None:
    for file, content in zip(downloads.FILES[name], CONTENTS[name], strict=True):
        path = folder / file.places[place]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_formats(name, place, tmp_path, monkeypatch):
    expect(name, CONTENTS[name], monkeypatch)
    put(name, tmp_path, place)
    data = load_text(name, window=3, folder=tmp_path)
    assert (data.name, data.source) == (name, "official files")
    if name == "ptb":
        assert data.decode(data.train) == (
            "aer banknote berlitz <eos> pierre <unk> N years old <eos> mr. <unk> is chairman of <unk> n.v. <eos>"
        )
        assert data.decode(data.validation) == "<unk> <unk> <unk> N years <eos>"
        assert data.vocabulary[:3] == ("<eos>", "<unk>", "N")
    else:
        assert data.decode(data.train) == (
            "= Robert <unk> = <eos> Robert <unk> is an English film , television and theatre actor . <eos> "
            "= = Career = = <eos>"
        )
        assert data.decode(data.test) == "= <unk> = <eos> <unk> English <unk> <unk> actor <unk> is . <eos>"
    monkeypatch.setenv("NASBOOK_DATA", str(tmp_path))
    assert load_text(name, window=3).checksum == data.checksum


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_folder_that_has_the_files(name, tmp_path, monkeypatch):
    expect(name, CONTENTS[name], monkeypatch)
    put(name, tmp_path / "official", 0)
    parts, names = {
        "ptb": (PTB, ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")),
        "wikitext-2": (WIKI, ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")),
    }[name]
    write(tmp_path / "mine", *parts, names=names)
    data = load_text(tmp_path / "mine", window=3)
    assert data.source == "text:mine"
    assert data.checksum == load_text(name, window=3, folder=tmp_path / "official").checksum


def test_the_published_checksums():
    """As torchtext has them, for PTB also those of the files themselves."""
    assert [file.md5 for file in downloads.FILES["ptb"]] == [
        "f26c4b92c5fdc7b3f8c7cdcb991d8420", "aa0affc06ff7c36e977d7cd49e3839bf", "8b80168b89c18661a38ef683c0dc3721"
    ]
    assert [file.md5 for file in downloads.FILES["wikitext-2"]] == ["542ccefacc6c27f945fb54453812b3cd"]
    assert set(TEXTS) - {"grammar"} == set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_no_network(name, tmp_path):
    pytest.importorskip("torchvision.datasets.utils")
    file = downloads.FILES[name][0]
    target = tmp_path / file.places[0]
    tried = "; ".join(f"{url}: <urlopen error no route to host>" for url in file.urls)
    names = {"ptb": "ptb.train.txt, ptb.valid.txt, ptb.test.txt",
             "wikitext-2": "wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens"}[name]
    assert message_of(name, folder=tmp_path) == (
        f"Can't download {target.name} to {target.parent} ({tried}). Check the network, or put the file there "
        f"yourself, or set NASBOOK_DATA to a folder that has it, or give the path of a folder that has {names} "
        f"instead of the name."
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith(".")] == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_download_is_verified(name, tmp_path, monkeypatch):
    utils = pytest.importorskip("torchvision.datasets.utils")
    expect(name, CONTENTS[name], monkeypatch)
    sent = {file.places[0]: content for file, content in zip(downloads.FILES[name], CONTENTS[name], strict=True)}

    def send(url, root, filename=None, md5=None):
        (content,) = (content for place, content in sent.items() if place.endswith(filename))
        (tmp_path / root / filename).write_bytes(content)

    monkeypatch.setattr(utils, "download_url", send)
    data = load_text(name, window=3, folder=tmp_path / "kept")
    put(name, tmp_path / "there", 0)
    assert load_text(name, window=3, folder=tmp_path / "there").checksum == data.checksum
    stored = tmp_path / "kept" / downloads.FILES[name][0].places[0]
    stored.write_bytes(stored.read_bytes()[:-1])
    message = message_of(name, folder=tmp_path / "kept")
    assert re.match(re.escape(f"{stored} is damaged or cut short (MD5 of the content: expected "), message)


def test_an_archive_that_is_another_one(tmp_path, monkeypatch):
    for content, message in (
        (zipped(WIKI, "wikitext-2-raw/"), "There is no item named 'wikitext-2/wiki.train.tokens' in the archive"),
        (b"no archive", "File is not a zip file"),
    ):
        expect("wikitext-2", [content], monkeypatch)
        (tmp_path / "wikitext-2-v1.zip").write_bytes(content)
        assert message_of("wikitext-2", folder=tmp_path) == (
            f"wikitext-2: not the archive that is expected ({message})."
        )
