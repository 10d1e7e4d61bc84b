"""Documents of different lengths as rows of one length."""

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
    texts = [token_ids(f"document {i}", text, length) for i, text in enumerate(documents)]
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


def token_ids(name: str, text: Any, length: int | None = None) -> np.ndarray:
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
