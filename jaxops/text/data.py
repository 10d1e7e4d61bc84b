"""Texts to columns: tokens, hashed n-grams, question-passage pairs, labels and positive pairs.

A reader is a callable that turns texts into the columns a task expects. `Tokens`, `NGrams` and
`WordsAndNGrams` read single texts, `Passages` reads a question together with a passage.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxops.data.tokenizer import PAD, Tokenizer, check_texts, opened, warn_cut
from jaxops.data.words import runs, words
from jaxops.model.exported.texts import character_grams, gram_number
from jaxops.task import recorded

BEFORE = re.compile(r"\w+|[^\w\s]")  # words in model files that were saved without `uax29`


@recorded(before={"special": False})
@dataclass(frozen=True)
class Tokens:
    """A reader that encodes texts with a trained `Tokenizer`, in rows of `context` tokens.

    Attributes:
        tokenizer: encodes a text; token 0 is padding.
        context: number of tokens in a row; longer texts are cut with a warning.
        special: put the special tokens around a text that a Hugging Face file asks for, such as
            [CLS] and [SEP] of BERT; a tokenizer that was trained here asks for none. False in
            readers of earlier versions.

    >>> read = Tokens(Tokenizer.train(["my card is lost", "my card"], kind="word"), context=3)
    >>> read(["my card"])["tokens"].tolist()
    [[6, 5, 0]]
    """

    tokenizer: Tokenizer
    context: int
    special: bool = True

    @property
    def vocabulary(self) -> int:
        """Number of tokens; every token is in [0, vocabulary)."""
        return self.tokenizer.vocabulary

    def __call__(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """`tokens` (N, context) int32; raises and warns as `Tokenizer.encode_batch` does."""
        rows = self.tokenizer.encode_batch(texts, self.context, special=self.special)
        return {"tokens": rows.tokens}

    def exported(self) -> list[dict[str, Any]]:
        """What it knows, as plain data for `jaxops.export`."""
        return [
            {
                "kind": "tokens",
                "tokenizer": self.tokenizer.to_json(),
                **self.tokenizer.plain(),
                "context": self.context,
                "special": self.special,
                "warn": True,
            }
        ]


@recorded(before={"uax29": False})
@dataclass(frozen=True)
class NGrams:
    """A reader that turns a text into the set of its n-grams, numbered by a hash.

    There is no vocabulary to train. There are n-grams of words, without the punctuation between
    them, and n-grams of characters within each run of letters with the spaces around it; a
    punctuation sign is an n-gram by itself. Words follow Unicode's rules (UAX #29), normalised and
    case-folded; in a script without spaces between words, each character is a word. N-grams of
    words have numbers in the lower half of the table, and n-grams of characters in the upper half.
    Different n-grams may get the same number; a model cannot distinguish them.

    Attributes:
        context: number of n-grams in a row; a text's word n-grams come first.
        vocabulary: size of the hash table; numbers are in [1, vocabulary), 0 is padding.
        words: the shortest and the longest length of word n-grams.
        characters: the shortest and the longest length of character n-grams; (0, 0) for none.
        uax29: False in readers of earlier versions, which split words of Indic scripts, Thai and
            vocalised Arabic and Hebrew wrongly. They still do so, because their models were trained
            in this way.

    Raises:
        ValueError: a vocabulary below 4.

    References:
        Joulin et al. 2017, arXiv:1607.01759; Bojanowski et al. 2017, arXiv:1607.04606.

    >>> read = NGrams(context=8, vocabulary=100, characters=(0, 0))
    >>> rows = read(["lost my card", "my card"])["tokens"]
    >>> (rows > 0).sum(1).tolist(), set(rows[1]) <= set(rows[0])
    ([5, 3], True)
    """

    context: int = 384
    vocabulary: int = 2**17
    words: tuple[int, int] = (1, 2)
    characters: tuple[int, int] = (2, 5)
    uax29: bool = True

    def __post_init__(self) -> None:
        if self.vocabulary < 4:  # a padding and a number in each half
            raise ValueError(f"vocabulary must be at least 4, got {self.vocabulary}")

    def __call__(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """`tokens` (N, context) int32; a text with more n-grams is cut, with a warning.

        Raises:
            ValueError: no texts, an empty text, or a text that is not a `str`.
        """
        texts_numbers = [self._numbers(text) for text in check_texts(texts)]
        cut = [row for row, numbers in enumerate(texts_numbers) if len(numbers) > self.context]
        if cut:
            warn_cut(len(cut), cut[0], len(texts_numbers[cut[0]]), self.context)
        rows = np.full((len(texts_numbers), self.context), PAD, np.int32)
        for row, numbers in zip(rows, texts_numbers, strict=True):
            row[: len(numbers)] = numbers[: self.context]
        return {"tokens": rows}

    def exported(self) -> list[dict[str, Any]]:
        """What it knows, as plain data for `jaxops.export`."""
        # versions of regex differ in whether an apostrophe belongs to the vowel behind it
        quoted = self.uax29 and words("'a") == ["'a"]
        return [{"kind": "ngrams", **dataclasses.asdict(self), "quoted": quoted}]

    def _numbers(self, text: str) -> list[int]:
        """The number of each distinct n-gram, in order of first occurrence."""
        if not self.uax29:
            return self._numbers_before(text)
        half, (low, high) = self.vocabulary // 2, self.words
        heard = words(text, signs=False)
        grams = words(text) if low == 1 else []
        for n in range(max(low, 2), high + 1):
            grams += [" ".join(heard[i : i + n]) for i in range(len(heard) - n + 1)]
        numbers = [gram_number(f"w{gram}", half) for gram in grams]
        for run in runs(text):
            numbers += [half + n for n in character_grams(run, *self.characters, half)]
        return list(dict.fromkeys(numbers))

    def _numbers_before(self, text: str) -> list[int]:
        own, (low, high) = BEFORE.findall(text.lower()), self.words
        grams = (
            " ".join(own[i : i + n]) for n in range(low, high + 1) for i in range(len(own) - n + 1)
        )
        numbers = [gram_number(f"w{gram}", self.vocabulary) for gram in grams]
        for run in own:
            numbers += character_grams(run, *self.characters, self.vocabulary)
        return list(dict.fromkeys(numbers))


@recorded
@dataclass(frozen=True)
class WordsAndNGrams:
    """A reader for `BagAndCNN`: in each row the first tokens of a text, then its n-grams.

    Attributes:
        words: encodes the text. Only the first `words.context` tokens are used; there is no
            warning, because the n-grams are those of the whole text.
        grams: finds the n-grams.

    >>> words = Tokens(Tokenizer.train(["my card is lost", "my card"], kind="word"), context=3)
    >>> read = WordsAndNGrams(words, NGrams(context=4, vocabulary=100, characters=(0, 0)))
    >>> read(["my card"])["tokens"].shape, read.context, read.vocabulary
    ((1, 7), 7, 100)
    """

    words: Tokens
    grams: NGrams

    @property
    def context(self) -> int:
        """Number of columns."""
        return self.words.context + self.grams.context

    @property
    def vocabulary(self) -> int:
        """Every number in a row is in [0, vocabulary)."""
        return max(self.words.vocabulary, self.grams.vocabulary)

    def __call__(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """`tokens` (N, context) int32; raises and warns as `grams` does."""
        texts = check_texts(texts)
        first = self.words.tokenizer.first(texts, self.words.context)
        return {"tokens": np.concatenate([first, self.grams(texts)["tokens"]], axis=1)}

    def exported(self) -> list[dict[str, Any]]:
        """What it knows, as plain data for `jaxops.export`."""
        (words,) = self.words.exported()
        return [{**words, "special": False, "warn": False}, *self.grams.exported()]


Reader = Tokens | NGrams | WordsAndNGrams
"""A reader of single texts."""


def labels(names: Sequence[Any], classes: Sequence[str], many: bool = False) -> np.ndarray:
    """Class names as the integer labels that `text.classifier` takes.

    Args:
        names: N class names; with `many`, N lists of names, which may be empty.
        classes: all class names, in the order of the model's logits.
        many: whether a text may have several labels, or none.

    Returns:
        (N,) int32; with `many` (N, classes) int32 of 0 and 1.

    Raises:
        ValueError: a name is not among `classes`; a class is given twice; or with `many` there is a
            single name instead of a list.

    >>> labels(["lost", "found"], ("found", "lost")).tolist()
    [1, 0]
    >>> labels([["lost"], []], ("found", "lost"), many=True).tolist()
    [[0, 1], [0, 0]]
    """
    number = {name: i for i, name in enumerate(classes)}
    if len(number) < len(classes):
        raise ValueError(f"classes must be distinct names, got {len(classes)}: {[*classes][:10]}")
    single = next((i for i, row in enumerate(names) if many and isinstance(row, str)), None)
    if single is not None:
        raise ValueError(
            f"label must be a list of names in each row, got {names[single]!r} in row {single}"
        )
    rows = [list(row) if many else [row] for row in names]
    for i, row in enumerate(rows):
        unknown = [name for name in row if name not in number]
        if unknown:
            some = ", ".join(map(str, [*number][:5]))
            raise ValueError(
                f"label must be one of {len(number)} classes ({some}"
                f"{', ...' if len(number) > 5 else ''}), got {unknown[0]!r} in row {i}"
            )
    if not many:
        return np.array([number[row[0]] for row in rows], np.int32)
    table = np.zeros((len(rows), len(number)), np.int32)
    for i, row in enumerate(rows):
        table[i, [number[name] for name in row]] = 1
    return table


def partners(label: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows with the same label, for `text.contrastive`: `count` random ones for each row.

    Args:
        label: (N,) int.
        count: number of pairs for each row.
        seed: the seed of the random draws.

    Returns:
        Row numbers of anchors and of positives, int (M,) each. M is `count` times the number of
        rows whose label occurs more than once.

    Raises:
        ValueError: no label occurs twice.

    >>> anchors, positives = partners(np.array([0, 1, 0]), count=1, seed=0)
    >>> anchors.tolist(), positives.tolist()
    ([0, 2], [2, 0])
    """
    label = np.asarray(label)
    order = np.argsort(label, kind="stable")
    _, start, size = np.unique(label[order], return_index=True, return_counts=True)
    group = np.repeat(np.arange(len(start)), size)
    place = np.arange(len(label)) - start[group]
    kept = size[group] > 1
    if not kept.any():
        raise ValueError(
            f"label must have two rows of one value, got {len(start)} values in {len(label)} rows"
        )
    group, place, anchors = (np.tile(x[kept], count) for x in (group, place, order))
    # a step of 1 to size - 1 around the group never ends at the row itself
    step = np.random.default_rng(seed).integers(1, size[group])
    positives = order[start[group] + (place + step) % size[group]]
    back = np.argsort(anchors, kind="stable")
    return anchors[back], positives[back]


@recorded
@dataclass(frozen=True)
class Passages:
    """A reader of pairs. Each row is: begin, question, end, passage, end, padding.

    The first token, `tokenizer.bos`, stands for "no answer"; `tokenizer.eos` ends the question and
    the passage. For BERT's tokenizer these are [CLS] and [SEP].

    A passage that is too long for one row is read in several rows, each of which begins in the
    middle of the row before.

    Attributes:
        tokenizer: encodes questions and passages.
        context: number of tokens in a row.

    >>> read = Passages(Tokenizer.train(["who is it", "it is Ada"], kind="word"), context=10)
    >>> rows = read(["who is it"], ["it is Ada"], [(6, 9)])
    >>> rows["tokens"].tolist()
    [[2, 8, 5, 6, 3, 6, 5, 7, 3, 0]]
    >>> rows["start"].tolist(), rows["end"].tolist()
    ([7], [7])
    """

    tokenizer: Tokenizer
    context: int

    def __call__(
        self,
        questions: Sequence[str],
        passages: Sequence[str],
        answers: Sequence[tuple[int, int] | None] | None = None,
    ) -> dict[str, np.ndarray]:
        """The columns of `text.spans`, R rows for N pairs.

        Args:
            questions: N texts.
            passages: N texts.
            answers: for each pair the characters `(start, end)` of the answer, which is
                `passage[start:end]`, or `None` if the passage has no answer. A row of a long
                passage that does not contain the whole answer counts as one without an answer.

        Returns:
            `tokens` and `types` (R, context) int32; with answers also `start` and `end` (R,) int32.
            To turn tokens back into text there are also `pair` (R,), the pair that a row belongs
            to, and `characters` (R, context, 2), where each token begins and ends in its passage.

        Raises:
            ValueError: unequal numbers of questions, passages and answers; an empty text; a
                question so long that the passage does not fit; an answer that is empty or outside
                its passage; or a tokenizer without the special tokens.
        """
        questions, passages = check_texts(questions), check_texts(passages)
        places = [None] * len(questions) if answers is None else answers
        if not len(questions) == len(passages) == len(places):
            raise ValueError(
                "questions, passages and answers must have equal lengths, got "
                f"{len(questions)}, {len(passages)} and {len(places)}"
            )
        self.tokenizer.check_padding()
        encoder = opened(self.tokenizer.to_json())
        question_tokens, passage_tokens = (
            encoder.encode_batch(texts, add_special_tokens=False) for texts in (questions, passages)
        )
        rows: list[tuple[Any, ...]] = []
        for pair, (question, passage) in enumerate(
            zip(question_tokens, passage_tokens, strict=True)
        ):
            _check_place(pair, places[pair], passages[pair])
            rows += self._rows(pair, question.ids, passage, places[pair])
        tokens, types, characters, pairs, start, end = map(np.stack, zip(*rows, strict=True))
        columns = {"tokens": tokens, "types": types, "pair": pairs, "characters": characters}
        return columns if answers is None else {**columns, "start": start, "end": end}

    def _rows(
        self, pair: int, question: list[int], passage: Any, place: tuple[int, int] | None
    ) -> list[tuple[Any, ...]]:
        end = self.tokenizer.eos
        head = [self.tokenizer.bos, *question, end]
        room = self.context - len(head) - 1
        if room < 1:
            raise ValueError(
                f"questions must have at most {self.context - 4} tokens (context "
                f"{self.context} less 3 special tokens and one of the passage), got "
                f"{len(question)} in row {pair}"
            )
        rows = []
        for first in range(0, len(passage.ids), max(room // 2, 1)):
            ids = passage.ids[first : first + room]
            inside = slice(len(head), len(head) + len(ids))
            tokens, types = np.full(self.context, PAD), np.zeros(self.context)
            tokens[: inside.stop + 1] = [*head, *ids, end]
            types[inside] = 1
            characters = np.zeros((self.context, 2))
            characters[inside] = passage.offsets[first : first + room]
            span = _span(characters[inside], place, len(head))
            row = (tokens, types, characters, np.array(pair), *span)
            rows.append(tuple(np.asarray(x, np.int32) for x in row))
            if first + room >= len(passage.ids):
                break
        return rows


def _check_place(pair: int, place: tuple[int, int] | None, passage: str) -> None:
    if place is not None and not 0 <= place[0] < place[1] <= len(passage):
        raise ValueError(
            f"answers must be (start, end) with 0 <= start < end <= {len(passage)} (the length of "
            f"the passage), got {tuple(place)} in row {pair}"
        )


def _span(characters: np.ndarray, place: tuple[int, int] | None, head: int) -> tuple[int, int]:
    """First and last token of the answer; both 0 unless the row holds the whole answer."""
    if place is None or place[0] < characters[0, 0] or place[1] > characters[-1, 1]:
        return 0, 0
    inside = np.flatnonzero((characters[:, 1] > place[0]) & (characters[:, 0] < place[1]))
    return (head + inside[0], head + inside[-1]) if len(inside) else (0, 0)
