"""Texts as rows of equal length: windows of one long text, or short texts with padding.

Documents of different lengths go into rows with `jaxops.data.packing.pack`, also `language.pack`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxops.data.packing import token_ids


def windows(tokens: Any, context: int) -> dict[str, np.ndarray]:
    """One long text as rows, from which each step draws windows of `context` tokens at random.

    Row r holds the 2 * context tokens from place r * context on. In training a task reads from each
    row one window that begins at a random place among the first `context`, drawn anew in each step,
    on the device. So all places of the text are equally likely, as in nanoGPT, and every part of it
    is visited once an epoch. An evaluation reads the window at the beginning of each row, so every
    token of the text counts once, except the first, which has no context.

    Args:
        tokens: (M,) integers, the whole text; a narrow dtype such as uint8 is kept.
        context: number of tokens in a window, as in the task: by default the module's context.

    Returns:
        `tokens` (N, 2 * context), and `segments` of the same shape: 1 where there is text, 0 behind
        its end. Both are views that take no memory of their own.

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
    """Texts as rows of `length` tokens with padding behind each, int32 (N, length).

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
