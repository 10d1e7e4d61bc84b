"""Texts as rows of one length: short ones packed together, a long one in windows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Documents in rows.

    Attributes:
        columns: `tokens` and `segments`, int32 (N, length); a row's documents are its segments
            1, 2, ..., and 0 is padding.
        padding: the share of all places that is padding.
    """

    columns: dict[str, np.ndarray]
    padding: float


def pack(documents: Sequence[Any], length: int) -> Packed:
    """Put documents into rows of `length` tokens, so that few steps go into padding.

    The longest document comes first, and each goes to the row with the least room that suffices
    (best fit decreasing; Krell et al. 2021, arXiv:2107.02027). No document is cut. All rows have
    one length, so one program serves them all.

    Args:
        documents: token ids of each, one axis, at least one and at most `length`.
        length: of a row. For `next_token` the context of the model and 1, for of its last token
            nothing is predicted; else the context.

    Raises:
        ValueError: no documents, or one that is empty, too long, or not made of token ids; it
            names the first such.

    >>> packed = pack([[5, 6], [7, 8, 9], [4]], length=4)
    >>> packed.columns["tokens"].tolist()
    [[7, 8, 9, 4], [5, 6, 0, 0]]
    >>> packed.columns["segments"].tolist(), packed.padding
    ([[1, 1, 1, 2], [1, 1, 0, 0]], 0.25)
    """
    if len(documents) == 0:
        raise ValueError("documents: 0 found, at least 1 wanted")
    texts = [_ids(f"document {i}", text, length) for i, text in enumerate(documents)]
    sizes = [len(text) for text in texts]
    filled = _best_fit(sizes, length)
    tokens, segments = np.zeros((2, len(filled), length), np.int32)
    for row, members in enumerate(filled):
        counts = [sizes[i] for i in members]
        tokens[row, : sum(counts)] = np.concatenate([texts[i] for i in members])
        segments[row, : sum(counts)] = np.repeat(np.arange(1, len(members) + 1), counts)
    return Packed({"tokens": tokens, "segments": segments}, 1 - sum(sizes) / tokens.size)


def _best_fit(sizes: list[int], length: int) -> list[list[int]]:
    """Which documents each row holds."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # numbers of rows
    rooms = 0  # bit r is set where `by_room[r]` has a row, to find the least room at once
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[i]
        if fitting := rooms >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(i)
        if room > size:
            by_room[room - size].append(row)
            rooms |= 1 << room - size
    return rows


def windows(tokens: Any, length: int) -> dict[str, np.ndarray]:
    """One long text as rows, from which a step draws windows of `length` at random places.

    Row r holds the 2 * length tokens from place r * length on. In training a task sees of each row
    a window of `length` that begins at a random one of its first `length` places, drawn anew in
    each step, on the device: all places are as likely, as in nanoGPT, and each stretch of the text
    is visited once an epoch. In evaluation it sees the window at the row's beginning; so every
    token of the text counts once, but for the first, before which there is nothing.

    Args:
        tokens: (M,) integers, the whole text; a narrow dtype, such as uint8, stays as it is.
        length: of a window: as the task has it, which is by default the model's context.

    Returns:
        `tokens` (N, 2 * length) and `segments`, 1 where there is text and 0 behind its end; views,
        which take no memory here.

    Raises:
        ValueError: fewer than two tokens, or what are not token ids.

    >>> windows(np.arange(1, 8), length=3)["tokens"].tolist()
    [[1, 2, 3, 4, 5, 6], [4, 5, 6, 7, 0, 0], [7, 0, 0, 0, 0, 0]]
    """
    if length < 1:
        raise ValueError(f"length: {length} found, at least 1 wanted")
    text = _ids("tokens", tokens)
    if len(text) < 2:
        raise ValueError("tokens: 1 found, at least 2 wanted")
    rows = -(-len(text) // length)
    whole = np.zeros((rows + 1) * length, text.dtype)
    whole[: len(text)] = text
    there = (np.arange(len(whole)) < len(text)).astype(np.uint8)
    cut = {"tokens": whole, "segments": there}
    return {
        name: np.lib.stride_tricks.sliding_window_view(column, 2 * length)[::length]
        for name, column in cut.items()
    }


def padded(texts: Sequence[Any], length: int, padding: int = 0) -> np.ndarray:
    """Texts as rows of `length` tokens, with padding behind each: int32 (N, length).

    Args:
        texts: token ids of each, at least one and at most `length`.
        length: of a row.
        padding: a token that no text has.

    Raises:
        ValueError: no texts, or one that is empty, too long, or has `padding` in it.

    >>> padded([[5, 6], [7]], length=3).tolist()
    [[5, 6, 0], [7, 0, 0]]
    """
    if len(texts) == 0:
        raise ValueError("texts: 0 found, at least 1 wanted")
    rows = np.full((len(texts), length), padding, np.int32)
    for i, text in enumerate(texts):
        ids = _ids(f"text {i}", text, length)
        if (ids == padding).any():
            raise ValueError(f"text {i}: token {padding} found, which is the padding")
        rows[i, : len(ids)] = ids
    return rows


def _ids(name: str, text: Any, length: int | None = None) -> np.ndarray:
    """The token ids of one text, checked."""
    ids = np.asarray(text)
    if ids.size == 0:
        raise ValueError(f"{name}: empty; at least 1 token wanted, or leave it out")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        found = f"{ids.dtype}{list(ids.shape)}"
        raise ValueError(f"{name}: {found} found, whole numbers along one axis wanted")
    if ids.min() < 0:
        raise ValueError(f"{name}: token {ids.min()} found, 0 or more wanted")
    if length is not None and len(ids) > length:
        raise ValueError(
            f"{name}: {len(ids):,} tokens found, at most {length:,} wanted; cut it: "
            f"[text[i : i + {length}] for i in range(0, len(text), {length})]"
        )
    return ids
