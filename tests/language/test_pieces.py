"""The text of tokens one by one is the text of all, and never has half a character."""

import random

import pytest

from jaxops.data import Tokenizer
from jaxops.language.pieces import KEPT, Pieces

TEXTS = [
    "Zoë paid 3 € – 很好 😀 to be or not to be",
    "the cat's mat, on the mat; ok.",
    "añ€😀b " * 9,
]


def pieces_of(tokenizer, tokens):
    pieces = Pieces(tokenizer.decode)
    return [pieces.added(token) for token in tokens], pieces.rest()


@pytest.mark.parametrize("kind", ["byte", "bpe", "character", "word", "wordpiece"])
def test_pieces_together_are_the_text_of_all_tokens(kind):
    tokenizer = Tokenizer.train(TEXTS, kind=kind, vocabulary=300)
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        each, rest = pieces_of(tokenizer, tokens)
        assert "".join(each) == tokenizer.decode(tokens) and rest == ""
        assert "\ufffd" not in "".join(each)


def test_a_character_comes_with_its_last_byte():
    tokenizer = Tokenizer.train(["a"], kind="byte", vocabulary=261)
    each, rest = pieces_of(tokenizer, tokenizer.encode("añ€😀b"))
    assert each == ["a", "", "ñ", "", "", "€", "", "", "", "😀", "b"] and rest == ""
    each, rest = pieces_of(tokenizer, tokenizer.encode("a😀")[:-1])
    assert each == ["a", "", "", ""] and rest == "\ufffd"


def test_any_bytes_are_told_as_they_are_decoded_together():
    tokenizer = Tokenizer.train(["a"], kind="byte", vocabulary=261)
    rng = random.Random(0)
    for _ in range(20):
        tokens = [rng.randrange(261) for _ in range(90)]
        each, rest = pieces_of(tokenizer, tokens)
        assert "".join(each) + rest == tokenizer.decode(tokens)


def test_a_token_of_a_long_text_takes_no_longer():
    seen = []

    def decode(tokens):
        seen.append(len(tokens))
        return "".join(map(chr, tokens))

    pieces = Pieces(decode)
    assert "".join(pieces.added(97) for _ in range(1000)) == "a" * 1000
    assert max(seen) == 2 * KEPT
