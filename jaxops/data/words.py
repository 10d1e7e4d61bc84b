"""The words of a text in any script, by Unicode's rules (UAX #29), with one tailoring.

Marks belong to the letter before them, "don't" and "3.14" are words, an emoji is one, and so is
each sign. Where a script has no blanks between words, each character is one, as UAX #29 has it for
Han, Hiragana, Thai, Lao and Khmer. So is each of Katakana and Hangul, the tailoring: particles and
compounds are written without blanks, and a search for the bare word has to find it.
"""

import functools
import unicodedata
from typing import Any

from jaxops._optional import require

TOGETHER = r"\p{Hangul}\p{Katakana}ー"
"""The scripts whose characters are words, although UAX #29 has them in runs."""


def words(text: str, signs: bool = True) -> list[str]:
    """The words and signs of a text, without blanks, as equal texts where a reader sees the same.

    They are normalised (NFKC) and case-folded, with straight apostrophes; what is invisible, such
    as soft hyphens and the selectors behind emoji, is left out.

    Args:
        text: any text.
        signs: whether signs count; without them words have a letter, a digit or an emoji.

    >>> words("Don't you? हिन्दी 卡在哪 👍🏽")
    ["don't", 'you', '?', 'हिन्दी', '卡', '在', '哪', '👍🏽']
    >>> words("e\\u0301té, été!", signs=False)
    ['été', 'été']
    """
    found = _parts(rf"\b|(?<=[{TOGETHER}])(?!\p{{M}})|(?=[{TOGETHER}])", text)
    if signs:
        return found
    heard = _compiled(r"[\p{L}\p{N}\p{Extended_Pictographic}\p{Regional_Indicator}]").search
    return [word for word in found if heard(word)]


def runs(text: str) -> list[str]:
    """The runs of letters, marks and digits of a text, and its signs, normalised as `words` are.

    >>> runs("don't 卡在哪")
    ['don', "'", 't', '卡在哪']
    """
    return _parts(r"(\w+|[^\w\s])", text)


def _parts(edges: str, text: str) -> list[str]:
    """What a split of the normalised text leaves, without blanks."""
    if text.isascii():
        parts = _compiled(edges).split(text.lower())
    else:
        text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
        unseen = _compiled(r"\p{Default_Ignorable_Code_Point}+")
        parts = [unseen.sub("", part) for part in _compiled(edges).split(text)]
    return [part for part in parts if part and not part.isspace()]


@functools.cache
def _compiled(pattern: str) -> Any:
    regex = require("regex", extra="text")
    return regex.compile(pattern, regex.V1 | regex.WORD)
