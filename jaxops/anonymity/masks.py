"""Personal data in texts found and masked: e-mail addresses, phone, card and account numbers.

What has a check digit is only found where it is right, so that order numbers stay. Names need a
model: give a function that finds them.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

KINDS = ("email", "iban", "card", "phone")
MOST_DIGITS = 19  # of a card
# the length of an account number by its country, ISO 13616 (SWIFT's registry)
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22,
    "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,}(?![\w@-])")
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}")
DIGITS = re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,}(?![\w-])")  # of cards, and what is beside them
PHONE = re.compile(r"(?<![\w.+-])(?:\+|00|\(?0|\(?\d{3}\)?[ .-]\d{3}[ .-])[\d ()/.-]*\d(?![\w-])")
# what begins like a phone number and is none: a date, or a number with a decimal point
DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}(?![\d./-])|\d+\.\d+$")

Spans = Iterable[tuple[int, int]]


class Found(NamedTuple):
    """A piece of personal data in a text.

    Attributes:
        kind: "email", "iban", "card", "phone" or "name".
        start: place of its first character.
        end: place after its last one.

    >>> personal("Write to a.b@example.org!") == [Found("email", start=9, end=24)]
    True
    """

    kind: str
    start: int
    end: int


def personal(
    text: str,
    kinds: Sequence[str] = KINDS,
    names: Callable[[str], Spans] | None = None,
) -> list[Found]:
    """Where personal data is in a text.

    - email: letters, digits and `._+-` before an @, and a domain with a dot after it.
    - iban: an account number of its country's length whose remainder by 97 is 1 (ISO 13616).
    - card: 13 to 19 digits, in groups or not, whose last one is right (Luhn, ISO/IEC 7812), also
      where other groups of digits, such as a date, are beside it.
    - phone: 7 to 15 digits that begin with +, 00 or 0, or in groups as in (555) 010-4477, and that
      are no date. Numbers without any of these marks are not found.

    Args:
        text: any text.
        kinds: what to find.
        names: `text -> (start, end) of each name`, such as a sequence labeller. Without it no name
            is found.

    Returns:
        Sorted by place. Where two overlap, only the first of email, iban, card, phone and name.

    Raises:
        ValueError: an unknown kind, or `names` gives places outside the text.

    >>> [found.kind for found in personal("4111 1111 1111 1111 or 4111 1111 1111 1112")]
    ['card']
    """
    unknown = next((kind for kind in kinds if kind not in KINDS), None)
    if unknown is not None:
        raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {unknown!r}")
    found: list[Found] = []
    places = {"email": _emails, "iban": _ibans, "card": _cards, "phone": _phones}
    for kind in (kind for kind in KINDS if kind in kinds):
        found += _free(kind, places[kind](text), found)
    for start, end in names(text) if names is not None else ():
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"names must give places in [0, {len(text)}] (the text's length), got "
                f"({start}, {end})"
            )
        found += _free("name", [(start, end)], found)
    return sorted(found, key=lambda one: one.start)


def masked(
    text: str,
    kinds: Sequence[str] = KINDS,
    names: Callable[[str], Spans] | None = None,
) -> str:
    """A text with what `personal` finds replaced by its kind.

    Args:
        text: any text.
        kinds: see `personal`.
        names: see `personal`.

    Raises:
        ValueError: see `personal`.

    >>> masked("Anna, +49 30 901820, pays DE89 3704 0044 0532 0130 00 from 2024-12-31 on.")
    'Anna, [PHONE], pays [IBAN] from 2024-12-31 on.'
    >>> masked("Anna pays.", names=lambda text: [(0, 4)])
    '[NAME] pays.'
    """
    parts, place = [], 0
    for kind, start, end in personal(text, kinds, names):
        parts += [text[place:start], f"[{kind.upper()}]"]
        place = end
    return "".join([*parts, text[place:]])


def _free(kind: str, spans: Spans, taken: list[Found]) -> list[Found]:
    """The places that overlap with none before them."""
    return [
        Found(kind, start, end)
        for start, end in spans
        if all(end <= other.start or other.end <= start for other in taken)
    ]


def _emails(text: str) -> Spans:
    return [match.span() for match in EMAIL.finditer(text)]


def _ibans(text: str) -> Spans:
    """The country's length decides where a number ends, as the next word may be letters too."""
    spans = []
    for start in IBAN.finditer(text):
        rest = IBAN_LENGTHS.get(start[0][:2].upper(), 4) - 4
        whole = re.compile(rf"(?: ?[A-Za-z0-9]){{{rest}}}(?![A-Za-z0-9])").match(text, start.end())
        if rest and whole and iban_is_valid(text[start.start() : whole.end()]):
            spans.append((start.start(), whole.end()))
    return spans


def _cards(text: str) -> Spans:
    spans = []
    for found in DIGITS.finditer(text):
        groups = [m.span() for m in re.finditer(r"\d+", found[0])]
        place = 0
        for i, (start, _) in enumerate(groups):
            if start < place:
                continue
            for _, end in reversed(groups[i : i + MOST_DIGITS]):
                digits = re.sub("[ -]", "", found[0][start:end])
                if 13 <= len(digits) <= MOST_DIGITS and luhn_is_valid(digits):
                    spans.append((found.start() + start, found.start() + end))
                    place = end
                    break
    return spans


def _phones(text: str) -> Spans:
    spans, place = [], 0
    while match := PHONE.search(text, place):
        start, place = match.span()
        if date := DATE.match(match[0]):
            place = start + date.end()
            continue
        # what follows may be another number: the longest part at whose end a word ends
        for end in reversed([start + m.end() for m in re.finditer(r"\d+", match[0])]):
            digits = sum(c.isdigit() for c in text[start:end])
            if 7 <= digits <= 15 and text[end : end + 1] != "-":
                spans.append((start, end))
                place = end
                break
    return spans


def luhn_is_valid(digits: str) -> bool:
    """Whether the last digit is the check digit of the others, by Luhn's formula (ISO/IEC 7812).

    Of a text that is not digits alone it is not.

    >>> luhn_is_valid("79927398713"), luhn_is_valid("79927398710")
    (True, False)
    """
    if not digits.isdecimal():
        return False
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


def iban_is_valid(number: str) -> bool:
    """Whether an account number has its country's length and the right check digits (ISO 7064).

    Spaces do not count.

    >>> iban_is_valid("GB82 WEST 1234 5698 7654 32"), iban_is_valid("GB82 WEST 1234 5698 7654 23")
    (True, False)
    """
    plain = number.replace(" ", "").upper()
    if IBAN_LENGTHS.get(plain[:2]) != len(plain) or not (plain.isascii() and plain.isalnum()):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1
