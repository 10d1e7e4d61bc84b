"""Texts to tokens: words and characters of a vocabulary, and hashed n-grams, as in `jaxops.text`.

Texts of ASCII are read by Python alone. Others need the package `regex` or `tokenizers`, and so
does each text for a tokenizer of parts of words.
"""

import functools
import importlib
import json
import re
import unicodedata
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxops.model.exported.tables import Columns, by_name, column, of_classes

# words by Unicode's rules (UAX #29), and signs one by one
PARTS = r"(?:\w|(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=\d)[,;.'](?=\d))+|[^\w\t-\r ]"
WORDS = re.compile(PARTS, re.ASCII)
# of versions of `regex` in which an apostrophe belongs to a vowel behind it
QUOTED = re.compile(f"(?:'(?=[AEIOUaeiou]))?{PARTS}", re.ASCII)
TOGETHER = r"\p{Hangul}\p{Katakana}ー"


def read_texts(reader: Columns, raw: Any) -> tuple[np.ndarray, Columns]:
    """The ids and the tokens of texts: a list, or a table that has them in a column."""
    raw = raw.tolist() if hasattr(raw, "tolist") else raw  # an array, or a column of pandas
    if not isinstance(raw, Mapping | list | tuple):
        raise ValueError(f"raw must be texts or columns by name, got {type(raw).__name__}")
    texts, ids = raw, np.arange(len(raw))
    if isinstance(raw, Mapping) or (raw and isinstance(raw[0], Mapping)):
        table, count = by_name(raw)
        texts, ids = column(table, reader["text"]), np.arange(count)
        if reader["id"] is not None:
            ids = np.array([str(one) for one in column(table, reader["id"])], object)
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"texts must be str and not empty, got {text!r} in row {row}")
    texts = [str(text) for text in texts]
    read = {"tokens": _tokens, "ngrams": _grams}
    parts = [read[one["kind"]](one, texts) for one in reader["read"]]
    return ids, {"tokens": np.concatenate(parts, axis=1)}


def of_texts(reader: Columns, ids: np.ndarray, outputs: np.ndarray) -> Columns:
    """The answers for texts: classes, several labels, or vectors."""
    names, least = reader["classes"], reader["threshold"]
    if not names:
        return {"ids": ids, "vectors": outputs}
    p = outputs.astype(np.float64)
    if reader["many"]:
        labels = np.empty(len(p), object)
        for row, told in enumerate(p >= least):
            labels[row] = tuple(c for c, one in zip(names, told, strict=True) if one)
        return {**of_classes(reader, ids, p), "labels": labels, "in_scope": p.max(1) >= least}
    z = np.log(np.maximum(p, 1e-30)) / reader["temperature"]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return {**of_classes(reader, ids, p), "in_scope": p.max(1) >= least}


def _rows(numbers: list[list[int]], context: int, warn: bool) -> np.ndarray:
    """Numbers as rows of one length, int32 (N, context), 0 behind the end."""
    long = [row for row, found in enumerate(numbers) if len(found) > context]
    if long and warn:
        warnings.warn(
            f"texts must have at most {context} tokens, got {len(long):,} longer, the first in row "
            f"{long[0]} ({len(numbers[long[0]])}); truncated at the end",
            stacklevel=2,
        )
    rows = np.zeros((len(numbers), context), np.int32)
    for row, found in zip(rows, numbers, strict=True):
        row[: len(found)] = found[:context]
    return rows


def _asked(package: str, text: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{package} must be installed to read texts such as {text[:20]!r}; pip install "
            f"{package}, or give encoded columns to `apply`"
        ) from error


def _tokens(read: Columns, texts: list[str]) -> np.ndarray:
    """The tokens of a trained tokenizer."""
    kind, context, special = read["plain"], read["context"], read["special"]
    odd = next((text for text in texts if kind is None or not text.isascii()), None)
    if odd is None:
        given = [text.lower() for text in texts] if read["lowercase"] else texts
        vocabulary = _vocabulary(read["tokenizer"])
        parted = [WORDS.findall(text) if kind == "word" else list(text) for text in given]
        numbers = [[vocabulary.get(w, vocabulary["[UNK]"]) for w in words] for words in parted]
        _warn_unknown(read, texts, numbers)
        return _rows(numbers, context, read["warn"])
    rust = _tokenizer(_asked("tokenizers", odd), read["tokenizer"])
    encodings = rust.encode_batch(texts, add_special_tokens=False)
    _warn_unknown(read, texts, [encoding.ids for encoding in encodings])
    room = context - special * rust.num_special_tokens_to_add(False)
    rows = _rows([encoding.ids for encoding in encodings], room, read["warn"])
    if not special:
        return rows
    for encoding in encodings:
        encoding.truncate(room)
    return _rows([rust.post_process(encoding).ids for encoding in encodings], context, False)


def _warn_unknown(read: Columns, texts: list[str], numbers: list[list[int]]) -> None:
    """Warn of unknown characters, and of texts with only unknown words."""
    counts = [ids.count(read["unknown"]) for ids in numbers]
    odd = [
        row
        for row, (count, ids) in enumerate(zip(counts, numbers, strict=True))
        if count and (read["by_character"] or count == len(ids))
    ]
    if odd and read["warn"]:
        warnings.warn(
            f"texts must be of the vocabulary, got {len(odd):,} with unknown characters, or with "
            f"only unknown words, the first in row {odd[0]}: {texts[odd[0]][:40]!r}",
            stacklevel=2,
        )


@functools.cache
def _vocabulary(text: str) -> dict[str, int]:
    return dict(json.loads(text)["model"]["vocab"])


@functools.cache
def _tokenizer(package: Any, text: str) -> Any:
    rust = package.Tokenizer.from_str(text)
    rust.encode_special_tokens = True  # "[MASK]" in a text is six characters, not the mask
    rust.no_padding()
    rust.no_truncation()
    return rust


def _grams(read: Columns, texts: list[str]) -> np.ndarray:
    """The numbers of the n-grams of words and of characters, each once."""
    (low, high), vocabulary, rows = read["words"], read["vocabulary"], []
    half = vocabulary // 2 if read["uax29"] else 0
    size = half or vocabulary
    for text in texts:
        words, heard, runs = _parted(text, read["uax29"], read["quoted"])
        grams = words if low == 1 else []
        for n in range(max(low, 2), high + 1):
            grams = grams + [" ".join(heard[i : i + n]) for i in range(len(heard) - n + 1)]
        numbers = [gram_number(f"w{gram}", size) for gram in grams]
        for run in runs:
            numbers += [half + n for n in character_grams(run, *read["characters"], size)]
        rows.append(list(dict.fromkeys(numbers)))
    return _rows(rows, read["context"], True)


def _parted(text: str, uax29: bool, quoted: bool) -> tuple[list[str], list[str], list[str]]:
    """Words and signs, words alone, and runs of letters and digits; see `jaxops.data.words`."""
    if not uax29 or text.isascii():
        text = text.lower()
        runs = re.findall(r"\w+|[^\w\s]", text)
        if not uax29:
            return runs, runs, runs
        words = [w for w in (QUOTED if quoted else WORDS).findall(text) if not w.isspace()]
        return words, [word for word in words if re.search("[a-z0-9]", word)], runs
    regex = _asked("regex", text)
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")

    def compiled(pattern: str) -> Any:
        return regex.compile(pattern, regex.V1 | regex.WORD)

    def parts(edges: str) -> list[str]:
        unseen = compiled(r"\p{Default_Ignorable_Code_Point}+")
        found = [unseen.sub("", part) for part in compiled(edges).split(text)]
        return [part for part in found if part and not part.isspace()]

    words = parts(rf"\b|(?<=[{TOGETHER}])(?!\p{{M}})|(?=[{TOGETHER}])")
    letters = compiled(r"[\p{L}\p{N}\p{Extended_Pictographic}\p{Regional_Indicator}]")
    return words, [word for word in words if letters.search(word)], parts(r"(\w+|[^\w\s])")


def gram_number(gram: str, size: int) -> int:
    """The number of an n-gram, 1 to `size - 1`; Python's own hash differs between processes."""
    return 1 + zlib.crc32(gram.encode()) % (size - 1)


@functools.lru_cache(maxsize=2**16)
def character_grams(word: str, low: int, high: int, size: int) -> tuple[int, ...]:
    """The numbers of the n-grams of the characters of a word between two blanks."""
    padded = f" {word} "
    return tuple(
        gram_number(f"c{padded[i : i + n]}", size)
        for n in range(max(low, 1), high + 1)
        for i in range(len(padded) - n + 1)
    )
