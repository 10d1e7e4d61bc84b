"""Pseudonyms against RFC test vectors, and masks against numbers that standards print."""

import hashlib
import hmac

import numpy as np
import pandas as pd
import pytest

from jaxops import anonymity
from jaxops.anonymity import Pseudonyms, masked

OLD, NEW = b"an old secret of 24 bytes", b"a new secret of 24 bytes!"


def test_pseudonyms_are_hmac_sha256():
    # RFC 4231, test case 7: the first half of the code
    key = b"\xaa" * 131
    data = (
        "This is a test using a larger than block-size key and a larger than block-size data. The "
        "key needs to be hashed before being used by the HMAC algorithm."
    )
    of = Pseudonyms({"k": key}, current="k")
    assert of([data]).tolist() == ["k:9b09ffa71b942fcb27635fbcd5b0e944"]
    text = hmac.new(NEW, "ü7".encode(), hashlib.sha256).hexdigest()[:32]
    assert Pseudonyms({"a": NEW}, "a")(["ü7"])[0] == f"a:{text}"


def test_pseudonyms_join_as_their_ids_do():
    of = Pseudonyms({"a": NEW}, "a")
    ids = pd.Series([7, 8, 7, None], dtype="Int64")
    told = of(ids)
    assert told[0] == told[2] != told[1] and told[3] is None and told.dtype == object
    assert of(["7", " 8"]).tolist() == told[:2].tolist()
    assert of(np.array([7.0])).tolist() == [told[0]]
    many = of(np.arange(20_000))
    assert len(set(many.tolist())) == 20_000 and len(of([])) == 0
    assert "secret" not in repr(of)


def test_keys_rotate():
    before = Pseudonyms({"2024": OLD}, "2024")
    now = Pseudonyms({"2024": OLD, "2025": NEW}, "2025")
    ids = ["anna", "ben", "carl", None]
    mixed = np.concatenate([before(["ben", "anna"]), now(["carl"]), [None]])
    renewed = now.renewed(mixed, ids)
    assert renewed.tolist() == [*now(["ben", "anna", "carl"]), None]
    assert now(["anna"], key="2024").tolist() == before(["anna"]).tolist()
    with pytest.raises(ValueError, match=r"ids must have the one behind every pseudonym, got none"):
        now.renewed(before(["dora"]), ids)
    with pytest.raises(ValueError, match=r"must be of the keys 2024, got '2025' in row 1"):
        before.renewed([*before(["ben"]), *now(["ben"])], ids)
    with pytest.raises(ValueError, match=r"must be of the keys 2024, got '' in row 1"):
        before.renewed([*before(["ben"]), ""], ids)


@pytest.mark.parametrize(
    ("keys", "current", "message"),
    [
        ({"a": b"short"}, "a", "key 'a' must be bytes, at least 16 of them, got 5"),
        ({"a": "text of more than 16"}, "a", "key 'a' must be bytes, at least 16 of them, got str"),
        ({"a:b": NEW}, "a:b", "keys must have names without a colon, got 'a:b'"),
        ({"a": NEW}, "b", "current must be one of a, got 'b'"),
    ],
)
def test_wrong_keys(keys, current, message):
    with pytest.raises(ValueError, match=message):
        Pseudonyms(keys, current)
    with pytest.raises(ValueError, match="key must be one of a, got 'c'"):
        Pseudonyms({"a": NEW}, "a")(["x"], key="c")


# test numbers that card networks publish
CARDS = ["4111111111111111", "5555 5555 5555 4444", "3782 822463 10005", "6011-1111-1111-1117"]


@pytest.mark.parametrize("card", CARDS)
def test_cards(card):
    assert masked(f"paid by {card}.") == "paid by [CARD]."
    assert not anonymity.luhn_is_valid("") and not anonymity.luhn_is_valid(card + " ")
    digit = "7" if card[-1] != "7" else "6"
    assert "[CARD]" not in masked(f"paid by {card[:-1]}{digit}.")


@pytest.mark.parametrize("card", CARDS[:3])
def test_cards_beside_other_numbers(card):
    for text in ("{} 12/27", "{} 123", "2 {} or", "{} {}"):
        assert masked(text.format(card, card)) == text.format("[CARD]", "[CARD]")


# examples of SWIFT's registry
IBANS = [
    "DE89 3704 0044 0532 0130 00",
    "GB29NWBK60161331926819",
    "FR14 2004 1010 0505 0001 3M02 606",
    "NO93 8601 1117 947",
    "MT84MALT011000012345MTLCAST001S",
    "ch93 0076 2011 6238 5295 7",
]


@pytest.mark.parametrize("iban", IBANS)
def test_ibans(iban):
    assert anonymity.iban_is_valid(iban)
    assert masked(f"to {iban} please") == "to [IBAN] please"
    assert masked(f"{iban} {iban},") == "[IBAN] [IBAN],"
    swapped = iban[:2] + f"{(int(iban[2:4]) + 1) % 100:02}" + iban[4:]
    assert not anonymity.iban_is_valid(swapped) and "[IBAN]" not in masked(f"to {swapped} please")
    assert not anonymity.iban_is_valid(iban[:-1]) and not anonymity.iban_is_valid("XX" + iban[2:])


@pytest.mark.parametrize(
    "phone",
    ["+49 30 901820", "+1 (555) 010-4477", "(555) 010-4477", "555-010-4477", "030/901820",
     "0049 170 1234567", "06 12 34 56 78", "01.23.45.67.89", "+442079460958"],
)  # fmt: skip
def test_phones(phone):
    assert masked(f"call {phone}, or write") == "call [PHONE], or write"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("+49 30 901820 2024-12-31", "[PHONE] 2024-12-31"),
        ("0301234567 0307654321", "[PHONE] [PHONE]"),
        ("01.02.2024 030 901820", "01.02.2024 [PHONE]"),
    ],
)
def test_phones_beside_other_numbers(text, wanted):
    assert masked(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["on 2024-12-31 at 08:30", "from 01.02.2024 on", "a rate of 0.1234567", "order 1234567 of 12",
     "version 1.2.3", "at 20 % of 1,000,000", "me@home", "a @ b.org", "1000-2000 pieces",
     "ISBN 978-3-16-148410-1", ""],
)  # fmt: skip
def test_what_is_not_personal_stays(text):
    assert masked(text) == text


@pytest.mark.parametrize(
    "address", ["a.b+c@mail.example.org", "x_1@example.co.uk", "jörg@müller.example", "A@B.DE"]
)
def test_addresses(address):
    assert masked(f"<{address}>, or ({address})") == "<[EMAIL]>, or ([EMAIL])"


def test_names_and_order():
    def names(text):
        start = text.find("Anna Berg")
        return [(start, start + 9)] if start >= 0 else []

    text = "Anna Berg <anna@berg.example> pays by 4111111111111111, phone +49 30 901820"
    found = anonymity.personal(text, names=names)
    assert [one.kind for one in found] == ["name", "email", "card", "phone"]
    assert [text[one.start : one.end] for one in found][:2] == ["Anna Berg", "anna@berg.example"]
    assert masked(text, kinds=["card"]).endswith("by [CARD], phone +49 30 901820")
    inside = anonymity.personal("anna@berg.example", names=lambda text: [(0, 4)])
    assert [one.kind for one in inside] == ["email"]  # a name within it is masked with it
    with pytest.raises(ValueError, match="kinds must be among email, iban, card, phone, got"):
        masked(text, kinds=["zip"])
    with pytest.raises(ValueError, match=r"names must give places in \[0, 2\] .*, got \(0, 3\)"):
        masked("ab", names=lambda text: [(0, 3)])
