"""Typing errors in texts."""

import re
from collections.abc import Callable, Sequence

import numpy as np

WORDS = (0.05, 0.1, 0.2, 0.3, 0.5)  # the share of words with an error at each level
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _near() -> dict[str, str]:
    """letter -> the letters beside, above and below it on a keyboard."""
    at = {
        letter: (row, place) for row, keys in enumerate(KEYS) for place, letter in enumerate(keys)
    }
    found = {}
    for letter, (row, place) in at.items():
        steps = [(0, -1), (0, 1), (-1, 0), (-1, 1), (1, 0), (1, -1)]
        near = {(row + down, place + right) for down, right in steps}
        found[letter] = "".join(other for other, own in at.items() if own in near)
    return found


NEAR = _near()


def _neighbour(word: str, place: int, draw: float) -> str:
    letter = word[place]
    near = NEAR.get(letter.lower(), letter)
    other = near[int(draw * len(near))]
    return word[:place] + (other.upper() if letter.isupper() else other) + word[place + 1 :]


def _swap(word: str, place: int, draw: float) -> str:
    place = min(place, len(word) - 2)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


TYPOS: dict[str, Callable[[str, int, float], str]] = {
    "swap": _swap,
    "drop": lambda word, i, _: word[:i] + word[i + 1 :],
    "double": lambda word, i, _: word[: i + 1] + word[i:],
    "neighbour": _neighbour,
}


def mistyped(texts: Sequence[str], kind: str, level: int, seed: int = 0) -> list[str]:
    """Texts with typing errors; see `jaxops.robustness.corrupt`.

    Args:
        texts: N texts.
        kind: "swap" of two letters, "drop" of one, one "double", or the key of a "neighbour".
        level: 1 to 5; a word that changes at one level changes alike at higher ones.
        seed: of the draws; text number i has its own.

    >>> mistyped(["please cancel my transfer"], "double", 5)
    ['please canceel my transfer']
    """
    change, share, found = TYPOS[kind], WORDS[level - 1], []
    for row, text in enumerate(texts):
        rng = np.random.default_rng([seed, row])
        parts = re.split(r"(\s+)", text)
        for number, word in enumerate(parts):
            if len(word) > 1 and not word.isspace():
                chance, place, draw = rng.random(3)
                if chance < share:
                    parts[number] = change(word, int(place * len(word)), draw)
        found.append("".join(parts))
    return found
