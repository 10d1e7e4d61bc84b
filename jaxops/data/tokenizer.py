"""Tokenizers: texts to tokens and back, trained on a user's texts, stored as one JSON text."""

import functools
import itertools
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data.vocabulary import BYTES, KINDS, trained
from jaxops.task import recorded

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]")
PAD, UNKNOWN, BOS, EOS, MASK = range(len(SPECIAL))
# names in files of BERT, T5 and Llama, GPT-2; the first that is in the vocabulary is used
OTHER_NAMES = {
    "[PAD]": ("[PAD]", "<pad>"),
    "[UNK]": ("[UNK]", "<unk>"),
    "[BOS]": ("[BOS]", "[CLS]", "<s>", "<|endoftext|>"),
    "[EOS]": ("[EOS]", "[SEP]", "</s>", "<|endoftext|>"),
}


class Encoded(NamedTuple):
    """Texts as rows of one length.

    Attributes:
        tokens: (N, length) int32, `PAD` (0) after the end.
        lengths: (N,) int32, number of tokens that are not padding.
        unknown: (N,) int32, number of unknown tokens among them.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    unknown: np.ndarray


@recorded
@dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer: texts to tokens and back. Equal `text` means equal tokenizers.

    The first tokens of every vocabulary that is trained here are special: 0 is padding, 1 is
    unknown, 2 and 3 are the beginning and the end of a text, and 4 is a mask; then follow those of
    `special`. In a Hugging Face file they are found by name: [UNK] or <unk>; [CLS], <s> or
    <|endoftext|> for the beginning; [SEP], </s> or <|endoftext|> for the end. `encode_batch`
    requires that token 0 is padding, [PAD] or <pad>, because models ignore it. If the name of a
    special token occurs in a text, it is read as plain text.

    Attributes:
        text: the JSON of the `tokenizers` library, which `to_json` returns.

    >>> tokenizer = Tokenizer.train(["my card is lost", "my card arrived"], kind="word")
    >>> tokenizer.encode_batch(["my card", "lost it"], length=3)
    Encoded(tokens=array([[6, 5, 0],
                          [9, 1, 0]], dtype=int32),
            lengths=array([2, 2], dtype=int32), unknown=array([0, 1], dtype=int32))
    >>> tokenizer.decode([6, 5, 9])
    'my card lost'
    """

    text: str

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: str = "bpe",
        vocabulary: int = 8192,
        lowercase: bool = False,
        special: Sequence[str] = (),
    ) -> "Tokenizer":
        """Learn a vocabulary. Equal texts give equal tokenizers, except of kind "wordpiece".

        Args:
            texts: training texts, without those of validation and test.
            kind: "bpe" merges frequent pairs of characters within words (Sennrich et al. 2016,
                arXiv:1508.07909). "byte" merges bytes, so that nothing is unknown and `decode`
                restores every text exactly (GPT-2). "wordpiece" is BERT's kind. "character" and
                "word" take characters and words as tokens. Words follow Unicode's rules (UAX #29);
                in scripts without spaces between words, each character is a word. "wordpiece" and
                "word" separate words from punctuation, so `decode` does not restore all spaces;
                "bpe" loses a leading space.
            vocabulary: largest number of tokens, with the special ones; the most frequent are kept.
                If it is too small for all characters, rare characters are unknown; "wordpiece" may
                leave out more of them than necessary.
            lowercase: convert texts to lower case, also those that are encoded later.
            special: additional special tokens, numbered from 5, such as the sentinels of T5.

        Raises:
            ValueError: another kind, no texts, a text that is empty or not a `str`, or a vocabulary
                smaller than the special tokens and a character (for "byte" the 256 bytes) need.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        least = len(SPECIAL) + len(special) + {"byte": BYTES, "wordpiece": 2}.get(kind, 1)
        if vocabulary < least or vocabulary != int(vocabulary):
            raise ValueError(f"vocabulary must be at least {least}, and whole, got {vocabulary}")
        texts = check_texts(texts)
        rust = trained(texts, kind, int(vocabulary), lowercase, [*SPECIAL, *special])
        return cls.from_json(rust.to_str())

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Make a tokenizer from the result of `to_json`, or from a Hugging Face `tokenizer.json`.

        Settings of the file that add tokens, pad or truncate are ignored.

        Raises:
            ValueError: the text is not the JSON of a tokenizer.
        """
        Rust = require("tokenizers", extra="text").Tokenizer

        try:
            # written again by the library, so that equal tokenizers have equal texts
            return cls(json.dumps(json.loads(Rust.from_str(text).to_str()), sort_keys=True))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(
                f"text must be the JSON of a tokenizer, got an error: {error}"
            ) from None

    def to_json(self) -> str:
        """Return the tokenizer as JSON."""
        return self.text

    def plain(self) -> dict[str, Any]:
        """What `jaxops.export` has to know of it beside its JSON.

        Returns:
            `plain`: "word" or "character", where Python alone can part texts of ASCII so, or None
            of other kinds and of a Hugging Face file; `lowercase`, whether it reads lower case;
            `unknown`, the number of the unknown token or None; `by_character`, whether tokens are
            characters or runs of them.

        >>> Tokenizer.train(["my card"], kind="word", lowercase=True).plain()
        {'unknown': 1, 'by_character': False, 'plain': 'word', 'lowercase': True}
        """
        told = {"unknown": self.unknown, "by_character": self._by_character}
        return told | dict(zip(("plain", "lowercase"), self._parted(), strict=True))

    def _parted(self) -> tuple[str | None, bool]:
        parts = ("normalizer", "pre_tokenizer", "post_processor")
        own = json.loads(self.text)
        if own["model"].get("type") != "WordLevel" or own["model"]["unk_token"] != SPECIAL[UNKNOWN]:
            return None, False
        for kind, lowercase in itertools.product(("word", "character"), (False, True)):
            other = json.loads(Tokenizer.train(["a"], kind, lowercase=lowercase).text)
            if all(own[part] == other[part] for part in parts):
                return kind, lowercase
        return None, False

    @cached_property
    def _rust(self) -> "Rust":
        return opened(self.text)

    def _special(self, name: str) -> int | None:
        numbers = map(self._rust.token_to_id, OTHER_NAMES[name])
        return next((number for number in numbers if number is not None), None)

    def check_padding(self) -> None:
        """Raise `ValueError` if token 0 is not padding."""
        if self._special("[PAD]") != PAD:
            raise ValueError(
                "tokenizer must have padding ([PAD] or <pad>) as token 0, got "
                f"{self._rust.id_to_token(0)!r}, and padding as {self._special('[PAD]')}; `encode` "
                "works without padding"
            )

    @cached_property
    def unknown(self) -> int | None:
        """The token for texts that are not in the vocabulary, if there is one."""
        return self._special("[UNK]")

    @cached_property
    def bos(self) -> int:
        """The token that begins a text.

        Raises:
            ValueError: there is none.
        """
        return self._edge("[BOS]")

    @cached_property
    def eos(self) -> int:
        """The token that ends a text.

        Raises:
            ValueError: there is none.
        """
        return self._edge("[EOS]")

    def _edge(self, name: str) -> int:
        number = self._special(name)
        if number is None:
            raise ValueError(f"tokenizer must have one of {', '.join(OTHER_NAMES[name])}, got none")
        return number

    @cached_property
    def _by_character(self) -> bool:
        """Whether tokens are characters or runs of them, as in "character", "bpe" and "byte"."""
        about = json.loads(self.text)
        before = about["pre_tokenizer"] or {}
        return about["model"].get("type") == "BPE" or before.get("type") == "Split"

    def _unknown(self, ids: list[int]) -> int:
        return 0 if self.unknown is None else ids.count(self.unknown)

    def _says_little(self, ids: list[int]) -> bool:
        count = self._unknown(ids)
        return count > 0 and (self._by_character or count == len(ids))

    @property
    def vocabulary(self) -> int:
        """Number of tokens; each is in [0, vocabulary)."""
        return self._rust.get_vocab_size()

    def id(self, token: str) -> int:
        """The number of one token, special or not.

        Raises:
            ValueError: there is no token of that name.
        """
        number = self._rust.token_to_id(token)
        if number is None:
            raise ValueError(
                f"token must be one of the {self.vocabulary:,} in the vocabulary, got {token!r}"
            )
        return number

    def encode(self, text: str, special: bool = False, row: int = 0) -> list[int]:
        """Encode one text, and return all of its tokens.

        Warns of unknown tokens as `encode_batch` does.

        Args:
            text: the text.
            special: put the special tokens around it that a Hugging Face file asks for, such as
                [CLS] and [SEP], or <s>. A tokenizer that was trained here asks for none.
            row: the number of the text in messages.

        Raises:
            ValueError: the text is empty (white space is not empty), or not a `str`.
        """
        (text,) = check_texts([text], blank=True, first=row)
        encoding = self._rust.encode(text, add_special_tokens=False)
        if self._says_little(encoding.ids):
            warn_unknown(1, row, text)
        ids: list[int] = (self._rust.post_process(encoding) if special else encoding).ids
        return ids

    def encode_batch(
        self,
        texts: Iterable[str],
        length: int,
        bos: bool = False,
        eos: bool = False,
        special: bool = False,
    ) -> Encoded:
        """Encode texts as rows of `length` tokens. A longer text is truncated, with a warning.

        There is also a warning if all tokens of a text are unknown. If tokens are characters or
        runs of them, there is a warning for a single unknown token. New words are common, so they
        are only counted in `Encoded.unknown`.

        Args:
            texts: N texts.
            length: tokens of a row, the model's context.
            bos: begin each row with the token `bos`.
            eos: end each text with the token `eos`, also if it was truncated.
            special: put the special tokens of a Hugging Face file around each text, as `encode`
                does, also if it was truncated. Use this instead of `bos` and `eos`.

        Raises:
            ValueError: no texts; a text that is empty or not a `str`; a `length` too small for one
                token; a vocabulary in which 0 is not padding, or without the wanted `bos` or `eos`;
                or `special` together with either.
        """
        self.check_padding()
        if special and (bos or eos):
            raise ValueError(f"bos and eos must be False with special=True, got {bos} and {eos}")
        more = self._rust.num_special_tokens_to_add(False) if special else bos + eos
        room = length - more
        if room < 1:
            raise ValueError(f"length must be at least {1 + more}, got {length}")
        texts = check_texts(texts)
        encodings = self._rust.encode_batch_fast(texts, add_special_tokens=False)
        begin, end = [self.bos] if bos else [], [self.eos] if eos else []
        long = [row for row, e in enumerate(encodings) if len(e.ids) > room]
        if long:
            warn_cut(len(long), long[0], len(encodings[long[0]].ids), room)
        odd = [row for row, e in enumerate(encodings) if self._says_little(e.ids)]
        if odd:
            warn_unknown(len(odd), odd[0], texts[odd[0]])
        tokens = np.full((len(texts), length), PAD, np.int32)
        lengths, unknown = np.zeros((2, len(texts)), np.int32)
        for row, encoding in enumerate(encodings):
            encoding.truncate(room)
            ids = [*begin, *(self._rust.post_process(encoding) if special else encoding).ids, *end]
            tokens[row, : len(ids)] = ids
            lengths[row], unknown[row] = len(ids), self._unknown(ids)
        return Encoded(tokens, lengths, unknown)

    def first(self, texts: Iterable[str], length: int) -> np.ndarray:
        """The first tokens of each text, (N, length) int32; cut texts cause no warning.

        Args:
            texts: N texts.
            length: tokens of a row; 0 is padding.

        Raises:
            ValueError: no texts; a text that is empty or not a `str`; or a vocabulary in which 0
                is not padding.
        """
        self.check_padding()
        encodings = self._rust.encode_batch_fast(check_texts(texts), add_special_tokens=False)
        tokens = np.full((len(encodings), length), PAD, np.int32)
        for row, encoding in zip(tokens, encodings, strict=True):
            ids = encoding.ids[:length]
            row[: len(ids)] = ids
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens back into text. Special tokens are left out, except the unknown token.

        Raises:
            ValueError: a number outside the vocabulary.
        """
        ids = [int(t) for t in tokens]
        odd = next((t for t in ids if not 0 <= t < self.vocabulary), None)
        if odd is not None:
            raise ValueError(f"tokens must be in [0, {self.vocabulary}), got {odd}")
        silent = {i for i, t in self._rust.get_added_tokens_decoder().items() if t.special}
        silent -= {self.unknown}
        return self._rust.decode([t for t in ids if t not in silent], skip_special_tokens=False)


@functools.lru_cache(maxsize=16)
def opened(text: str) -> "Rust":
    """The tokenizer of the `tokenizers` library, set so that it neither pads nor truncates."""
    Rust = require("tokenizers", extra="text").Tokenizer

    rust = Rust.from_str(text)
    rust.encode_special_tokens = True  # "[MASK]" in a text is six characters, not the mask
    rust.no_padding()  # a file may ask for padding
    rust.no_truncation()
    return rust


def check_texts(texts: Any, blank: bool = False, first: int = 0) -> list[str]:
    """Check texts, and return them as a list.

    Args:
        texts: an iterable of `str`.
        blank: allow texts that are only white space.
        first: the number of the first text.

    Raises:
        ValueError: one `str` instead of several texts; no texts; a text that is empty or blank,
            not a `str` (such as bytes, or NaN for a missing value), or not Unicode (lone
            surrogates).

    >>> check_texts(["a", b"b"])
    Traceback (most recent call last):
    ValueError: texts must be str, got bytes in row 1; decode them: text.decode("utf-8")
    """
    if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
        raise ValueError(f"texts must be a list of texts, got one {type(texts).__name__}")
    texts = list(texts)
    if not texts:
        raise ValueError("texts must hold at least one text, got none")
    for row, text in enumerate(texts, first):
        if not isinstance(text, str):
            hint = '; decode them: text.decode("utf-8")' if isinstance(text, bytes) else ""
            raise ValueError(f"texts must be str, got {type(text).__name__} in row {row}{hint}")
        if not (text if blank else text.strip()):
            raise ValueError(f"texts must not be empty, got an empty text in row {row}")
        if not text.isascii():
            _check_unicode(text, row)
    return [str(text) for text in texts]  # np.str_ as well


def _check_unicode(text: str, row: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"texts must be Unicode, got U+{ord(text[error.start]):04X} in row {row} at character "
            f"{error.start}; its file was read with a wrong encoding"
        ) from None


def warn_cut(count: int, row: int, tokens: int, length: int) -> None:
    """Warn once for all texts that are truncated."""
    warnings.warn(
        f"texts must have at most {length} tokens, got {count:,} longer, the first in row {row} "
        f"({tokens}); truncated at the end",
        stacklevel=3,
    )


def warn_unknown(count: int, row: int, text: str) -> None:
    """Warn once for all texts with too many unknown tokens."""
    warnings.warn(
        f"texts must be of the vocabulary, got {count:,} with unknown characters, or with only "
        f"unknown words, the first in row {row}: {text[:40]!r}",
        stacklevel=3,
    )
