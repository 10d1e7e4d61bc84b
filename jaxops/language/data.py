"""Texts as rows of one length: one long text in windows, short texts padded."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxops.data.packing import token_ids


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
    text = token_ids("tokens", tokens)
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
        ids = token_ids(f"text {i}", text, length)
        if (ids == padding).any():
            raise ValueError(f"text {i}: token {padding} found, which is the padding")
        rows[i, : len(ids)] = ids
    return rows
