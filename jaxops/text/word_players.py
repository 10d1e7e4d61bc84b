"""The words of texts as the players of an explanation, whatever tokens or n-grams they became."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.tokenizer import PAD, opened
from jaxops.model.finished import Model
from jaxops.model.players import Columns, Players, likeliest, program_of
from jaxops.text.data import Reader, Tokens, WordsAndNGrams
from jaxops.trust.calibration import scaled


def words_of(
    read: Reader, model: Model, ids: np.ndarray, texts: list[str], many: bool, temperature: float
) -> Players:
    """The players of texts: their words, as spaces part them. An absent word is left out.

    Args:
        read: turns texts into tokens.
        model: a task of texts.
        ids: (N,).
        texts: N texts.
        many: whether a text may have several labels.
        temperature: of the probabilities; see `TextReader`.
    """
    task, _ = model.trained()
    words = [text.split() for text in texts]
    most = max(map(len, words))
    names = np.full((len(texts), most), "", object)
    for row, own in enumerate(words):
        names[row, : len(own)] = own
    columns, program = read(texts), program_of(model)
    tempered = temperature != 1 and not many
    assert program is not None  # of a task
    if tempered:
        program = program._replace(function=_Tempered(program.function, temperature))

    def predict(some: Any) -> np.ndarray:
        outputs = model.outputs(some)
        return scaled(outputs, temperature) if tempered else outputs

    def without(rows: np.ndarray, present: np.ndarray) -> Columns:
        kept = [
            texts[row] if there[: len(words[row])].all()
            else " ".join(word for word, stays in zip(words[row], there, strict=False) if stays)
            for row, there in zip(rows.tolist(), present, strict=True)
        ]  # fmt: skip
        return {"tokens": _read(read, kept)}

    outputs = predict(columns)
    classes = ("each" if many else "one") if task.classes else ""
    return Players(
        "words",
        ids,
        names,
        None,
        names != "",
        columns,
        {"tokens": shares(read, texts, words, most)},
        {"tokens": np.full((1, columns["tokens"].shape[1]), PAD, np.int32)},
        task.classes or tuple(f"vector {i}" for i in range(outputs.shape[1])),
        likeliest(outputs, classes),
        predict,
        program,
        classes,
        without,
    )


@dataclass(frozen=True)
class _Tempered:
    """Probabilities at a temperature, see `jaxops.trust.calibration.scaled`, for JAX."""

    function: Any
    temperature: float

    def __call__(self, params: Any, columns: Any) -> Any:
        p = self.function(params, columns)
        return jax.nn.softmax(jnp.log(jnp.maximum(p, 1e-30)) / self.temperature)


def _read(read: Reader, texts: Sequence[str]) -> np.ndarray:
    """The tokens of texts, some of which may be empty; without the warnings of the whole texts."""
    tokens = np.full((len(texts), read.context), PAD, np.int32)
    some = [row for row, text in enumerate(texts) if text]
    if some:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            tokens[some] = read([texts[row] for row in some])["tokens"]
    return tokens


def shares(
    read: Reader, texts: Sequence[str], words: Sequence[Sequence[str]], most: int
) -> np.ndarray:
    """The share that each word has in each token of a text, float32 (N, context, most).

    A token belongs to the word in which it ends. An n-gram belongs, in equal shares, to the words
    that have it by themselves or without which the text lacks it.

    Args:
        read: turns texts into tokens.
        texts: N texts.
        words: the words of each.
        most: the largest number of words.

    >>> from jaxops.text.data import NGrams
    >>> read = NGrams(context=4, vocabulary=100, characters=(0, 0))
    >>> shares(read, ["my card"], [["my", "card"]], 2)[0].tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]]
    """
    if isinstance(read, WordsAndNGrams):
        both = (shares(part, texts, words, most) for part in (read.words, read.grams))
        return np.concatenate([*both], 1)
    found = np.zeros((len(texts), read.context, most), np.float32)
    if isinstance(read, Tokens):
        rust = opened(read.tokenizer.to_json())
        encoded = rust.encode_batch([*texts], add_special_tokens=read.special)
        for share, text, own, one in zip(found, texts, words, encoded, strict=True):
            ends = _ends(text, own)
            marks = zip(one.offsets, one.special_tokens_mask, strict=True)
            for token, ((start, end), special) in enumerate([*marks][: read.context]):
                if not special and end > start:
                    word = min(int(np.searchsorted(ends, end)), len(own) - 1)
                    share[token, word] = 1
        return found
    tokens = _read(read, texts)
    for row, own in enumerate(words):
        rest = [" ".join([*own[:i], *own[i + 1 :]]) for i in range(len(own))]
        alone, others = _read(read, own), _read(read, rest)
        for token, number in enumerate(tokens[row]):
            if number != PAD:
                mine = (alone == number).any(1) | ~(others == number).any(1)
                found[row, token, : len(own)] = mine / max(mine.sum(), 1)
    return found


def _ends(text: str, words: Sequence[str]) -> np.ndarray:
    """The character after each word."""
    ends, place = [], 0
    for word in words:
        place = text.index(word, place) + len(word)
        ends.append(place)
    return np.array(ends)
