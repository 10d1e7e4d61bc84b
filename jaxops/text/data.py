"""Texts to columns: tokens of a trained tokenizer, or hashed n-grams of words and characters."""

import functools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxops.data.tokenizer import PAD, Tokenizer, check_texts, warn_cut

WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Tokens:
    """Reads texts as the tokens of a `Tokenizer`, in rows of `length`; 0 is padding.

    >>> read = Tokens(Tokenizer.train(["my card is lost", "my card"], kind="word"), length=3)
    >>> read(["my card"])["tokens"].tolist()
    [[6, 5, 0]]
    """

    tokenizer: Tokenizer
    length: int

    @property
    def vocabulary(self) -> int:
        """Tokens are in [0, vocabulary)."""
        return self.tokenizer.vocabulary

    def __call__(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """`tokens` (N, length) int32; raises and warns as `Tokenizer.encode_batch` does."""
        return {"tokens": self.tokenizer.encode_batch(texts, self.length).tokens}

    def about(self) -> dict[str, Any]:
        """What `reader` makes it of again, as JSON has it."""
        return {"tokenizer": self.tokenizer.to_json(), "length": self.length}


@dataclass(frozen=True)
class NGrams:
    """Reads texts as sets of n-grams, numbered by a hash, so that there is nothing to train.

    The n-grams are of words and, within a word and the blanks around it, of characters; texts are
    lowered. Two that share a number (one in `vocabulary / n` of n) cannot be told apart.

    Attributes:
        length: of a row: at most so many n-grams of a text, those of words first.
        vocabulary: of the hash; numbers are in [1, vocabulary), and 0 is padding.
        words: shortest and longest run of words.
        characters: shortest and longest run of characters; (0, 0) for none.

    References:
        Joulin et al. 2017, arXiv:1607.01759; Bojanowski et al. 2017, arXiv:1607.04606.

    >>> read = NGrams(length=8, vocabulary=100, characters=(0, 0))
    >>> rows = read(["lost my card", "my card"])["tokens"]
    >>> (rows > 0).sum(1).tolist(), set(rows[1]) <= set(rows[0])
    ([5, 3], True)
    """

    length: int = 384
    vocabulary: int = 2**17
    words: tuple[int, int] = (1, 2)
    characters: tuple[int, int] = (2, 5)

    def __call__(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """`tokens` (N, length) int32; a text of more n-grams is cut off, with a warning.

        Raises:
            ValueError: no texts, one that is empty, or not a `str`.
        """
        found = [self._numbers(text) for text in check_texts(texts)]
        long = [row for row, numbers in enumerate(found) if len(numbers) > self.length]
        if long:
            warn_cut(len(long), long[0], len(found[long[0]]), self.length)
        rows = np.full((len(found), self.length), PAD, np.int32)
        for row, numbers in zip(rows, found, strict=True):
            row[: len(numbers)] = numbers[: self.length]
        return {"tokens": rows}

    def _numbers(self, text: str) -> list[int]:
        """Each n-gram of the text once, in the order of its first place."""
        words = WORD.findall(text.lower())
        low, high = self.words
        runs = (
            " ".join(words[i : i + n])
            for n in range(low, high + 1)
            for i in range(len(words) - n + 1)
        )
        numbers = [_number(f"w{run}", self.vocabulary) for run in runs]
        for word in words:
            numbers += _of_word(word, *self.characters, self.vocabulary)
        return list(dict.fromkeys(numbers))

    def about(self) -> dict[str, Any]:
        """What `reader` makes it of again, as JSON has it."""
        return {"ngrams": asdict(self)}


Reader = Tokens | NGrams


def _number(gram: str, vocabulary: int) -> int:
    # Python's own hash of a text is another in each process
    return 1 + zlib.crc32(gram.encode()) % (vocabulary - 1)


@functools.lru_cache(maxsize=2**16)
def _of_word(word: str, low: int, high: int, vocabulary: int) -> tuple[int, ...]:
    padded = f" {word} "
    return tuple(
        _number(f"c{padded[i : i + n]}", vocabulary)
        for n in range(max(low, 1), high + 1)
        for i in range(len(padded) - n + 1)
    )


def reader(about: dict[str, Any]) -> Reader:
    """The reader that a model file tells of; see `Tokens.about` and `NGrams.about`.

    Raises:
        ValueError: there is none.

    >>> read = NGrams(length=8)
    >>> reader(read.about()) == read
    True
    """
    if "ngrams" in about:
        found: dict[str, Any] = about["ngrams"]
        pairs = {name: tuple(found[name]) for name in ("words", "characters")}  # lists in JSON
        return NGrams(**{**found, **pairs})
    if "tokenizer" in about:
        return Tokens(Tokenizer.from_json(about["tokenizer"]), about["length"])
    raise ValueError(f"about: {[*about]} found, 'tokenizer' and 'length', or 'ngrams' wanted")


def labels(names: Sequence[Any], classes: Sequence[str], many: bool = False) -> np.ndarray:
    """Names of classes as the numbers that a task wants.

    Args:
        names: (N,) names; with `many` N lists of names, which may be empty.
        classes: all names in order.
        many: a text may have several labels, or none.

    Returns:
        (N,) int32, or (N, classes) of 0 and 1.

    Raises:
        ValueError: a name that is none of the classes.

    >>> labels(["lost", "found"], ("found", "lost")).tolist()
    [1, 0]
    >>> labels([["lost"], []], ("found", "lost"), many=True).tolist()
    [[0, 1], [0, 0]]
    """
    number = {name: i for i, name in enumerate(classes)}
    rows = [list(row) if many else [row] for row in names]
    for i, row in enumerate(rows):
        odd = next((name for name in row if name not in number), None)
        if odd is not None:
            raise ValueError(
                f"label: {odd!r} found in row {i}, one of {len(number)} classes wanted: "
                f"{', '.join(classes[:5])}{', ...' if len(number) > 5 else ''}"
            )
    if not many:
        return np.array([number[row[0]] for row in rows], np.int32)
    table = np.zeros((len(rows), len(number)), np.int32)
    for i, row in enumerate(rows):
        table[i, [number[name] for name in row]] = 1
    return table
