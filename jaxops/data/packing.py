"""Documents of different lengths packed into rows of one length."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Documents packed into rows; see `pack`.

    Attributes:
        columns: `tokens` and `segments`, int32 (N, length). The documents of a row are numbered
            1, 2, ... in `segments`, where 0 is padding.
        padding: fraction of all tokens that is padding.
    """

    columns: dict[str, np.ndarray]
    padding: float


def pack(documents: Sequence[Any], length: int) -> Packed:
    """Pack documents into rows of `length` tokens, with little padding.

    The method is best fit decreasing: the documents are sorted by falling length, and each goes to
    the row with the least free space in which it fits. No document is cut.

    Args:
        documents: the token ids of each document, integers (n,) with 1 <= n <= `length`.
        length: tokens of a row: the model's context, and one more for `next_token`, because
            nothing is predicted from a row's last token.

    Returns:
        `Packed`.

    Raises:
        ValueError: there are no documents, or one is empty, too long or does not consist of token
            ids; the message names the first such document.

    References:
        Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination",
        arXiv:2107.02027.

    >>> pack([[5, 6], [7, 8, 9], [4]], length=4)
    Packed(columns={'tokens': array([[7, 8, 9, 4],
                                     [5, 6, 0, 0]], dtype=int32),
                    'segments': array([[1, 1, 1, 2],
                                       [1, 1, 0, 0]], dtype=int32)}, padding=0.25)
    """
    if len(documents) == 0:
        raise ValueError("documents must hold at least 1 document, got none")
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
    """The documents of each row, by their numbers."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # numbers of rows
    rooms = 0  # bit r is set if `by_room[r]` has a row, to find the least free space at once
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
    """Check the token ids of one text, and return them as an array.

    Args:
        name: the name of the text in messages.
        text: integers (n,).
        length: the largest n that is allowed; any by default.

    Raises:
        ValueError: there are no tokens or too many, or they are not integers of at least 0 along
            one axis.

    >>> token_ids("document 0", [5, -1])
    Traceback (most recent call last):
    ValueError: document 0 must be tokens of at least 0, got -1
    """
    ids = np.asarray(text)
    if ids.size == 0:
        raise ValueError(f"{name} must have at least 1 token, got none; leave it out")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        given = f"{ids.dtype}{list(ids.shape)}"
        raise ValueError(f"{name} must be whole numbers along one axis, got {given}")
    if ids.min() < 0:
        raise ValueError(f"{name} must be tokens of at least 0, got {ids.min()}")
    if length is not None and len(ids) > length:
        raise ValueError(
            f"{name} must have at most {length:,} tokens, got {len(ids):,}; cut it: "
            f"[text[i : i + {length}] for i in range(0, len(text), {length})]"
        )
    return ids
