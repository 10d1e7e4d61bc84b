"""Words of every script in search and in n-grams, and readers that were saved before."""

import json
from pathlib import Path

import numpy as np
import pytest

import jaxops as jo
from jaxops import text

BEFORE = Path(__file__).parents[1] / "fixtures" / "before_uax29"
ANSWERS = json.loads((BEFORE / "answers.json").read_text())


def test_vowels_tell_documents_apart():
    documents = ["का समय", "की समय", "कि समय", "कु समय", "के समय"]
    found = text.search(["की", "कु"], text.index(documents), k=2)
    assert found.documents.tolist() == [[1, -1], [3, -1]]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [("🙂", 0), ("❤", 1), ("카드", 2), ("カード", 3), ("ครับ", 4), ("CAFÉ", 5), ("don't", 6)],
)
def test_a_word_is_found_in_any_script(query, wanted):
    documents = [
        "thanks 🙂🙂",
        "I ❤\ufe0f it",
        "카드가 없어요",
        "クレジットカード",
        "สวัสดีครับ",
        "a cafe\u0301",
        "I don’t",
    ]
    assert text.search(query, text.index(documents), k=1).documents.tolist() == [[wanted]]


def test_n_grams_are_of_whole_words_and_their_letters():
    read = text.NGrams(64, 2**20, words=(1, 1), characters=(0, 0))
    rows = read(["हिन्दी मानक", "हिन्दी", "ह न द"])["tokens"]
    assert (rows > 0).sum(1).tolist() == [2, 1, 3]
    assert set(rows[1]) <= set(rows[0]) and not {*rows[1]} & {*rows[2]} - {0}
    # of a script without blanks: 3 words, 2 pairs of them; 4 pairs of letters and of blanks
    both = text.NGrams(64, 2**20, characters=(2, 2))
    assert (both(["卡在哪"])["tokens"] > 0).sum() == 3 + 2 + 4


@pytest.mark.parametrize("name", ["bag", "words"])
def test_a_classifier_of_before_reads_as_before(name, tmp_path):
    model = jo.load(BEFORE / f"{name}.model")
    for one in (model, _again(model, tmp_path)):
        found = one.predict(ANSWERS["texts"]).probabilities
        np.testing.assert_allclose(found, ANSWERS[name], rtol=1e-5)
    assert not getattr(model.reader.read, "special", False)  # nor are special tokens added
    if name == "bag":  # and not as a new reader does
        new = text.NGrams(model.reader.read.context, 64, characters=(2, 3))
        assert new != model.reader.read
        old = model.reader.read(ANSWERS["texts"])["tokens"]
        assert (new(ANSWERS["texts"])["tokens"] != old).any(1).all()


def test_an_index_of_before_is_searched_and_extended_as_before(tmp_path):
    model = jo.load(BEFORE / "index.model")
    for one in (model, _again(model, tmp_path)):
        found = one.predict(ANSWERS["texts"], k=4)
        assert found.documents.tolist() == ANSWERS["documents"]
        scores = np.where(np.isfinite(found.scores), found.scores, 0)
        np.testing.assert_allclose(scores, ANSWERS["scores"], rtol=1e-6)
    more = text.add(model.task, ["don't"])
    assert "don" in more.words.vocabulary and "don't" not in more.words.vocabulary


def test_tokens_have_the_special_tokens_of_their_file():
    """As transformers gives them to a BERT: [CLS] 6 7 [SEP]."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["[PAD]", "[unused]", "[UNK]", "[CLS]", "[SEP]", "lost", "my", "card"]
    numbers = {name: number for number, name in enumerate(names)}
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[UNK]"))
    rust.add_special_tokens(names[:5])
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    rust.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    tokenizer = jo.data.Tokenizer.from_json(rust.to_str())
    assert text.Tokens(tokenizer, 6)(["my card"])["tokens"].tolist() == [[3, 6, 7, 4, 0, 0]]
    plain = text.Tokens(tokenizer, 6, special=False)
    assert plain(["my card"])["tokens"].tolist() == [[6, 7, 0, 0, 0, 0]]


def _again(model, folder):
    jo.save(folder / "again.model", model)
    return jo.load(folder / "again.model")


def test_a_table_without_a_number_for_each_half_is_refused():
    assert set(text.NGrams(8, 4)(["a card"])["tokens"][0]) == {0, 1, 3}
    with pytest.raises(ValueError, match="vocabulary must be at least 4, got 3"):
        text.NGrams(vocabulary=3)
