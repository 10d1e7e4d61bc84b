import json
import warnings

import numpy as np
import pytest

from jaxops.data import Tokenizer
from jaxops.data.tokenizer import BOS, EOS, MASK, PAD, SPECIAL, UNKNOWN
from jaxops.data.vocabulary import KINDS

TEXTS = [
    "Is there a way to know when my card will arrive?",
    "My card has not arrived yet.",
    "i am still waiting on my card",
    "the café refunded  my top-up\nin euros €",
]
TRAINED = {kind: Tokenizer.train(TEXTS, kind=kind, vocabulary=400) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind):
    tokenizer = TRAINED[kind]
    for text in TEXTS:
        found = tokenizer.decode(tokenizer.encode(text))
        if kind in ("wordpiece", "word"):  # blanks are not kept
            assert "".join(found.split()) == "".join(text.split())
        else:
            assert found == text
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again == tokenizer and hash(again) == hash(tokenizer)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    if kind != "wordpiece":  # whose trainer numbers pieces in an order of its own
        assert Tokenizer.train(TEXTS, kind=kind, vocabulary=400) == tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind):
    tokenizer = TRAINED[kind]
    assert [tokenizer.id(name) for name in SPECIAL] == [PAD, UNKNOWN, BOS, EOS, MASK]
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert min(map(min, ids)) >= 0 and max(map(max, ids)) < tokenizer.vocabulary <= 400
    length = max(map(len, ids)) + 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = tokenizer.encode_batch(TEXTS, length, bos=True, eos=True)
    assert rows.tokens.dtype == rows.lengths.dtype == rows.unknown.dtype == np.int32
    for row, count, own in zip(rows.tokens, rows.lengths, ids, strict=True):
        assert row.tolist() == [BOS, *own, EOS] + [PAD] * (length - count)
        assert count == len(own) + 2
    assert rows.unknown.sum() == 0


def test_a_longer_text_is_cut_off_with_one_warning():
    tokenizer = TRAINED["character"]
    texts = ["my card", "card", "my my my"]
    with pytest.warns(UserWarning, match=r"at most 4 tokens, got 2 longer, .* row 0 \(7\)") as seen:
        rows = tokenizer.encode_batch(texts, 5, eos=True)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert rows.tokens[:, 4].tolist() == [EOS] * 3 and rows.lengths.tolist() == [5, 5, 5]
    assert [tokenizer.decode(row) for row in rows.tokens] == ["my c", "card", "my m"]
    with pytest.raises(ValueError, match="length must be at least 2, got 1"):
        tokenizer.encode_batch(texts, 1, eos=True)


def test_what_the_vocabulary_lacks():
    odd, counts = "card Ж💳", {}
    for kind, tokenizer in TRAINED.items():
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            counts[kind] = int(tokenizer.encode_batch([TEXTS[0], odd], 64).unknown[1])
            tokenizer.encode(odd)
        said = [str(one.message) for one in seen]
        if kind not in ("bpe", "character"):  # nothing is unknown, or a new word or two
            assert said == []
            continue
        assert [one.filename for one in seen] == [__file__] * 2
        assert "texts must be of the vocabulary, got 1 with unknown characters" in said[0]
        assert "in row 1: 'card Ж💳'" in said[0] and "in row 0: 'card Ж💳'" in said[1]
    assert counts == {"bpe": 2, "byte": 0, "wordpiece": 1, "character": 2, "word": 2}
    assert TRAINED["byte"].decode(TRAINED["byte"].encode(odd)) == odd
    with pytest.warns(UserWarning, match="got 1 with unknown characters"):
        found = TRAINED["character"].encode(odd)
    assert TRAINED["character"].decode(found) == "card [UNK][UNK]"


@pytest.mark.parametrize("kind", ["word", "wordpiece"])
def test_a_text_of_nothing_but_new_words_is_told(kind):
    with pytest.warns(
        UserWarning, match=r"got 2 with .* or with only unknown words, the first in row 1: 'Ж"
    ):
        rows = TRAINED[kind].encode_batch(["my Ж", "Ж Ж", "Ж"], 4)
    assert rows.unknown.tolist() == [1, 2, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_in_a_text_mean_nothing(kind):
    # with their letters in the vocabulary
    tokenizer = Tokenizer.train([*TEXTS, "[MASK] [PAD] [BOS]"], kind=kind, vocabulary=400)
    found = tokenizer.encode("my [MASK] [PAD][BOS] card")
    assert not {PAD, MASK, BOS, EOS} & set(found)


def test_lowercase_and_more_special_tokens():
    tokenizer = Tokenizer.train(TEXTS, kind="word", lowercase=True, special=("<x0>", "<x1>"))
    assert tokenizer.encode("MY Card") == tokenizer.encode("my card")
    assert (tokenizer.id("<x0>"), tokenizer.id("<x1>")) == (5, 6)
    assert tokenizer.decode([BOS, 5, *tokenizer.encode("my card"), EOS, PAD]) == "my card"
    with pytest.raises(ValueError, match=r"token must be one of the .*, got '<x9>'"):
        tokenizer.id("<x9>")


def test_vocabulary_is_a_limit_and_the_frequent_stay():
    texts = ["a a a b b c"]
    tokenizer = Tokenizer.train(texts, kind="word", vocabulary=7)
    assert tokenizer.vocabulary == 7
    assert tokenizer.encode("a b c") == [5, 6, UNKNOWN]
    with pytest.raises(ValueError, match="vocabulary must be at least 261, and whole, got 200"):
        Tokenizer.train(texts, kind="byte", vocabulary=200)
    with pytest.raises(ValueError, match=r"kind must be one of bpe, byte, .*, got 'sentence'"):
        Tokenizer.train(texts, kind="sentence")


@pytest.mark.parametrize("vocabulary", [7, 15, 30])
@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "character", "word"])
def test_no_kind_exceeds_the_vocabulary(kind, vocabulary):
    tokenizer = Tokenizer.train(TEXTS, kind=kind, vocabulary=vocabulary)
    assert tokenizer.vocabulary == vocabulary


def test_a_vocabulary_of_many_characters_keeps_the_frequent_ones():
    rare = ["".join(chr(0x4E00 + 40 * row + i) for i in range(40)) for row in range(30)]
    texts = [*rare, "丁七" * 20]
    for kind, most in (("bpe", 100), ("wordpiece", 101)):
        tokenizer = Tokenizer.train(texts, kind=kind, vocabulary=most)
        assert tokenizer.vocabulary <= most
        assert UNKNOWN not in tokenizer.encode("丁七")
    again = Tokenizer.train(texts, kind="bpe", vocabulary=100)
    assert again == Tokenizer.train(texts, kind="bpe", vocabulary=100)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts must hold at least one text, got none"),
        ("my card", "texts must be a list of texts, got one str"),
        (["card", ""], "texts must not be empty, got an empty text in row 1"),
        (["card", " \n"], "texts must not be empty, got an empty text in row 1"),
        (["card", "café".encode()], r"must be str, got bytes in row 1; decode them: text.decode"),
        (["card", float("nan")], "texts must be str, got float in row 1"),
        (["card", None], "texts must be str, got NoneType in row 1"),
        (
            [b"caf\xe9".decode("utf-8", "surrogateescape")],
            r"texts must be Unicode, got U\+DCE9 in row 0 at character 3; its file was read",
        ),
    ],
)
def test_bad_texts(texts, message):
    tokenizer = TRAINED["bpe"]
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(texts)
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_batch(texts, 8)


def test_bad_tokens_and_bad_json():
    with pytest.raises(ValueError, match=r"tokens must be in \[0, \d+\), got 9999"):
        TRAINED["bpe"].decode([5, 9999])
    for text in ("", "{}", '{"model": 1}'):
        with pytest.raises(ValueError, match="text must be the JSON of a tokenizer"):
            Tokenizer.from_json(text)


def test_white_space_is_a_text_to_go_on_from():
    """As a prompt; in rows of texts it is a mistake."""
    for kind in ("character", "byte"):
        found = TRAINED[kind].encode("\n")
        assert len(found) == 1 and TRAINED[kind].decode(found) == "\n"
    with pytest.raises(ValueError, match="got an empty text"):
        TRAINED["character"].encode("")
    with pytest.raises(ValueError, match="got an empty text"):
        TRAINED["character"].encode_batch(["\n"], 4)


def test_numpy_strings_are_texts():
    found = TRAINED["bpe"].encode_batch(np.array(TEXTS), 64).tokens
    np.testing.assert_array_equal(found, TRAINED["bpe"].encode_batch(TEXTS, 64).tokens)


def hugging_face(names, **padding):
    """The JSON of a tokenizer as BERT's is: special tokens added, rows padded and cut off."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, processors

    words = ("my", "card", "is", "lost")
    vocabulary = {name: number for number, name in enumerate((*names, *words))}
    rust = Rust(
        models.WordLevel(vocabulary, unk_token=next(n for n in names if "unk" in n.lower()))
    )
    rust.add_special_tokens(list(names))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    first, last = names[-2:]
    numbers = [(name, vocabulary[name]) for name in (first, last)]
    rust.post_processor = processors.TemplateProcessing(f"{first} $A {last}", None, numbers)
    rust.enable_padding(length=12)
    rust.enable_truncation(4)
    return rust.to_str()


BERTS = ("[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]")  # 0, 3, 4, 5


def test_a_file_of_hugging_face():
    """Nothing is added, padded or cut off; special tokens are where the file has them."""
    tokenizer = Tokenizer.from_json(hugging_face(BERTS))
    assert tokenizer.encode("my card is lost") == [6, 7, 8, 9]
    assert (tokenizer.unknown, tokenizer.bos, tokenizer.eos) == (3, 4, 5)
    rows = tokenizer.encode_batch(["my card is lost", "my cat"], 6, bos=True, eos=True)
    assert rows.tokens.tolist() == [[4, 6, 7, 8, 9, 5], [4, 6, 3, 5, 0, 0]]
    assert rows.lengths.tolist() == [6, 4] and rows.unknown.tolist() == [0, 1]
    assert tokenizer.decode([4, 6, 3, 5, 0]) == "my [UNK]"
    assert not {0, 4, 5} & set(tokenizer.encode("my [CLS] [PAD]"))


def test_the_special_tokens_that_a_file_asks_for():
    """As transformers adds them, also around a text that is truncated; none of a tokenizer here."""
    tokenizer = Tokenizer.from_json(hugging_face(BERTS))
    assert tokenizer.encode("my card", special=True) == [4, 6, 7, 5]
    with pytest.warns(UserWarning, match=r"at most 3 tokens, got 1 longer, the first in row 1"):
        rows = tokenizer.encode_batch(["my cat", "my card is lost"], 5, special=True)
    assert rows.tokens.tolist() == [[4, 6, 3, 5, 0], [4, 6, 7, 8, 5]]
    assert rows.lengths.tolist() == [4, 5] and rows.unknown.tolist() == [1, 0]
    with pytest.raises(ValueError, match="length must be at least 3, got 2"):
        tokenizer.encode_batch(["my"], 2, special=True)
    with pytest.raises(ValueError, match="bos and eos must be False with special=True, got True"):
        tokenizer.encode_batch(["my"], 5, bos=True, special=True)
    for own in TRAINED.values():
        assert own.encode(TEXTS[1], special=True) == own.encode(TEXTS[1])


def test_a_file_whose_padding_is_not_0():
    """As Llama's and GPT-2's: texts can be read, rows of one length cannot."""
    tokenizer = Tokenizer.from_json(hugging_face(("<unk>", "<s>", "</s>")))
    assert tokenizer.encode("my cat") == [3, 0]
    assert (tokenizer.unknown, tokenizer.bos, tokenizer.eos) == (0, 1, 2)
    with pytest.raises(ValueError, match=r"token 0, got '<unk>', and padding as None; "):
        tokenizer.encode_batch(["my card"], 4)
    tokenizer = Tokenizer.from_json(hugging_face(("<unk>", "<pad>", "</s>")))
    with pytest.raises(ValueError, match=r"token 0, got '<unk>', and padding as 1; "):
        tokenizer.encode_batch(["my card"], 4)
    with pytest.raises(ValueError, match=r"must have one of \[BOS\], \[CLS\], <s>, .*, got none"):
        _ = tokenizer.bos
