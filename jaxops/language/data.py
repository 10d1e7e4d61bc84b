"""Texts as rows of equal length: windows of one long text, or padded short texts; the reader.

`jaxops.data.packing.pack`, also called `language.pack`, packs documents of different lengths.
"""

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxops.data.packing import token_ids
from jaxops.data.tables import csv_frame, source_frame
from jaxops.data.tokenizer import Tokenizer, check_texts, opened
from jaxops.language.decoder import Decoder
from jaxops.model.finished import Model, frame
from jaxops.task import recorded
from jaxops.train.evaluation import predict

TABLES = (".csv", ".gz", ".parquet", ".pq")
AT_ONCE = 64  # number of windows in one call, because their logits may be large
Texts = Any
"""Text files by a pattern, a folder or a list of paths; a list of texts; or a table of texts."""


def windows(tokens: Any, context: int) -> dict[str, np.ndarray]:
    """One long text as rows, from which each step draws windows of `context` tokens at random.

    Row r holds 2 * context tokens, from position r * context on. In training a task reads one
    window from each row. It begins at a random position among the first `context`, drawn anew in
    each step, on the device. So all positions of the text are equally likely, as in nanoGPT, and
    every part of the text is read once in an epoch. An evaluation reads the window at the beginning
    of each row, so every token of the text counts once, except the first, which has no context.

    Args:
        tokens: (M,) integers, the whole text; a narrow dtype such as uint8 is kept.
        context: number of tokens in a window, as in the task: by default the module's context.

    Returns:
        `tokens` (N, 2 * context), and `segments` of the same shape: 1 where there is text, 0 after
        its end. Both are views, which need no additional memory.

    Raises:
        ValueError: a context below 1, fewer than two tokens, or values that are not token ids.

    >>> windows(np.arange(1, 8), context=3)["tokens"].tolist()
    [[1, 2, 3, 4, 5, 6], [4, 5, 6, 7, 0, 0], [7, 0, 0, 0, 0, 0]]
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    text = token_ids("tokens", tokens)
    if len(text) < 2:
        raise ValueError("tokens must have at least 2 elements, got 1")
    rows = -(-len(text) // context)
    padded_text = np.zeros((rows + 1) * context, text.dtype)
    padded_text[: len(text)] = text
    is_text = (np.arange(len(padded_text)) < len(text)).astype(np.uint8)
    return {
        name: np.lib.stride_tricks.sliding_window_view(column, 2 * context)[::context]
        for name, column in (("tokens", padded_text), ("segments", is_text))
    }


def padded(texts: Sequence[Any], length: int, padding: int = 0) -> np.ndarray:
    """Texts as rows of `length` tokens, with padding after each, int32 (N, length).

    Args:
        texts: the token ids of each text, at least one and at most `length`.
        length: number of tokens in a row.
        padding: a token that occurs in no text.

    Raises:
        ValueError: no texts, or a text that is empty, too long, or contains `padding`.

    >>> padded([[5, 6], [7]], length=3).tolist()
    [[5, 6, 0], [7, 0, 0]]
    """
    if len(texts) == 0:
        raise ValueError("texts must have at least one text, got 0")
    rows = np.full((len(texts), length), padding, np.int32)
    for i, text in enumerate(texts):
        ids = token_ids(f"text {i}", text, length)
        if (ids == padding).any():
            raise ValueError(f"text {i} must not contain the padding token, got {padding} in it")
        rows[i, : len(ids)] = ids
    return rows


class Likelihoods(NamedTuple):
    """The log-probabilities of N texts.

    Attributes:
        ids: (N,), the paths as `str` objects, or the numbers of the texts.
        log_probabilities: float64 (N,), in nats, of all tokens of a text and of its end.
        tokens: int (N,), the number of these tokens.
        characters: int (N,), the number of characters, without the end.

    >>> Likelihoods(*[np.arange(1)] * 4).frame().columns.tolist()
    ['id', 'log_probability', 'tokens', 'characters']
    """

    ids: np.ndarray
    log_probabilities: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray

    def frame(self) -> Any:
        """A pandas frame with one row for each text."""
        names = ("id", "log_probability", "tokens", "characters")
        return frame(dict(zip(names, self, strict=True)))


class Windows(NamedTuple):
    """R windows of texts, with the text of each and its numbers of predicted tokens, characters."""

    columns: dict[str, np.ndarray]
    text: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray


@recorded(before={"special": False})
@dataclass(frozen=True)
class TokenReader:
    """The reader of a finished language model.

    Attributes:
        tokenizer: texts to tokens and back.
        context: number of tokens in a window.
        text: the column of the texts, if they are in a table.
        special: whether prompts get the special tokens that a Hugging Face file asks for, see
            `generate`. It is False in models of `language.fit`, which are trained on texts without
            them, and in readers of earlier versions.

    >>> reader = TokenReader(Tokenizer.train(["my card"], kind="character"), context=4)
    >>> ids, texts = reader.texts(["my card", "a"])
    >>> ids.tolist(), texts
    ([0, 1], ['my card', 'a'])
    """

    room: ClassVar[str] = "language"
    tokenizer: Tokenizer
    context: int
    text: str = "text"
    special: bool = True

    def texts(self, source: Texts) -> tuple[np.ndarray, list[str]]:
        """The ids (N,) and the texts; see `texts_of`."""
        return texts_of(source, self.text)

    def stream(self, texts: Sequence[str]) -> np.ndarray:
        """All tokens of the texts one after another, with an end token before and after each."""
        end = [self.tokenizer.eos]
        kind = np.min_scalar_type(self.tokenizer.vocabulary - 1)
        parts = [np.array([*self.tokenizer.encode(text), *end], kind) for text in texts]
        return np.concatenate([np.array(end, kind), *parts])

    def exported(self, model: Model) -> dict[str, Any]:
        """For `jaxops.export`: the program takes encoded columns."""
        return {"kind": "columns"}

    def decoder(self, model: Model, rows: int) -> Decoder:
        """What makes up to `rows` texts together, for `jaxops serve`."""
        return Decoder(model, rows, self.tokenizer, self.special)

    def windows(self, texts: Sequence[str]) -> Windows:
        """The windows of each text, in which every token is predicted once."""
        found = []
        for number, text in enumerate(texts):
            tokens = self.stream([text])
            columns = windows(tokens, self.context)
            rows = -(-(len(tokens) - 1) // self.context)
            ends = opened(self.tokenizer.text).encode(text, add_special_tokens=False).offsets
            reached = np.maximum.accumulate([0, *(end for _, end in ends)])
            reached[-1] = len(text)
            count = np.zeros((2, rows), int)  # window (i - 1) // context predicts token i > 0
            place = np.arange(len(tokens) - 1) // self.context
            np.add.at(count[0], place, 1)
            np.add.at(count[1], place, np.append(np.diff(reached), 0))
            own = (columns[name][:rows] for name in ("tokens", "segments"))
            found.append((*own, np.full(rows, number), *count))
        rows_of = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        return Windows(dict(zip(("tokens", "segments"), rows_of[:2], strict=True)), *rows_of[2:])

    def predict(self, model: Model, data: Texts) -> Likelihoods:
        """The log-probability of each text, by a model of the next token.

        Args:
            model: the model.
            data: see `texts_of`.
        """
        ids, texts = self.texts(data)
        rows = self.windows(texts)
        nats = nats_of(model, rows)
        sums = [
            np.bincount(rows.text, x, len(texts)) for x in (-nats, rows.tokens, rows.characters)
        ]
        return Likelihoods(ids, sums[0], sums[1].astype(int), sums[2].astype(int))


def nats_of(model: Model, rows: Windows) -> np.ndarray:
    """The sum of the losses of each window, (R,), in nats."""
    log_p = predict(*model.trained(), rows.columns, batch_size=AT_ONCE)
    nats: np.ndarray = -np.asarray(log_p, np.float64).sum(1)
    return nats


def texts_of(source: Texts, text: str = "text") -> tuple[np.ndarray, list[str]]:
    """The ids (N,) and the texts.

    Args:
        source: a pattern such as "letters/*.txt", a file, a folder with .txt files, or a list of
            paths (then the ids are the paths); a list of texts; or a CSV or Parquet file, a frame
            or arrays by name, with a column of texts.
        text: the name of the column.

    Raises:
        ValueError: no texts, an empty text, or a file that is not UTF-8.
        FileNotFoundError: no such file.
    """
    if isinstance(source, str | Path) and not str(source).endswith(TABLES):
        folder = Path(source).is_dir()
        pattern = str(Path(glob.escape(str(source))) / "**" / "*.txt") if folder else str(source)
        paths = sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not paths:
            raise FileNotFoundError(f"{source}: no such text files")
        source = paths
    if isinstance(source, str | Path | Mapping) or hasattr(source, "columns"):
        _, table = source_frame(source, [text], (), _csv)
        cells = table[text].where(table[text].notna(), "")
        texts = check_texts(cells.tolist())
        return np.arange(len(texts)), texts
    items = list(source) if hasattr(source, "__iter__") else check_texts(source)
    if items and all(isinstance(item, Path) for item in items):
        ids = np.array([str(path) for path in items], object)
        texts = [_read(Path(path)) for path in items]
        empty = next(
            (path for path, text in zip(items, texts, strict=True) if not text.strip()), ""
        )
        if empty:
            raise ValueError(f"{empty} must hold text, got an empty file")
        return ids, check_texts(texts)
    texts = check_texts(items)
    named = all(re.fullmatch(r"\S+\.txt", text) for text in texts)
    if named or all(len(t) < 250 and "\n" not in t and Path(t).is_file() for t in texts):
        raise ValueError(
            "data must be paths (pathlib.Path), or texts, got the name of a file as text: "
            f"{texts[0]!r}"
        )
    return np.arange(len(texts)), texts


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        given = f"0x{error.object[error.start]:02x} at byte {error.start}"
        raise ValueError(f"{path} must be UTF-8, got {given}") from None


def _csv(path: Any) -> Any:
    return csv_frame(path, None, "utf-8", (), text=None)
