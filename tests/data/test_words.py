import pytest

from jaxops.data import Tokenizer
from jaxops.data.words import runs, words

# what a reader of the language calls a word; for scripts without blanks the clusters of UAX #29
BY_HAND = {
    "आधुनिक मानक हिन्दी": ["आधुनिक", "मानक", "हिन्दी"],
    "வணக்கம் உலகம்": ["வணக்கம்", "உலகம்"],
    "বাংলা ভাষা": ["বাংলা", "ভাষা"],
    "สวัสดี": ["ส", "วั", "ส", "ดี"],
    "שָׁלוֹם עולם": ["שָׁלוֹם", "עולם"],
    "كِتَابٌ جديد": ["كِتَابٌ", "جديد"],
    "don't 3.14 1,000 u.s. a_b": ["don't", "3.14", "1,000", "u.s", ".", "a_b"],
    "e-mail: a@b.com!!": ["e", "-", "mail", ":", "a", "@", "b.com", "!", "!"],
    "退款2次 card卡": ["退", "款", "2", "次", "card", "卡"],
    "카드가 ひらがな カード": ["카", "드", "가", "ひ", "ら", "が", "な", "カ", "ー", "ド"],
    "👍🏽🇩🇪🇫🇷🙂🙂": ["👍🏽", "🇩🇪", "🇫🇷", "🙂", "🙂"],
}


@pytest.mark.parametrize("text", BY_HAND)
def test_words_of_every_script_are_whole(text):
    assert words(text) == BY_HAND[text]


@pytest.mark.parametrize("text", BY_HAND)
def test_a_tokenizer_of_words_has_the_same(text):
    tokenizer = Tokenizer.train([text], kind="word")
    found = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert found == BY_HAND[text]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("e\u0301t\xe9", "\xe9te\u0301"),  # composed or not
        ("Straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("don’t", "DON'T"),
        ("soft\xadhyphen", "softhyphen"),
        ("❤\ufe0f", "❤"),  # the selector of a picture
        ("ｶﾞ Ｃａｒｄ", "ガ card"),  # of half and of full width
        ("می\u200cخواهم", "میخواهم"),
    ],
)
def test_what_looks_the_same_is_the_same_word(one, other):
    assert words(one) == words(other) and words(one)


def test_signs_are_left_out_and_emoji_are_not():
    text = "Lost, my_card -- «été» ... $5 🙂 👨\u200d👩\u200d👧 ___ 2\ufe0f\u20e3 |"
    wanted = ["lost", "my_card", "été", "5", "🙂", "👨👩👧", "2\u20e3"]
    assert words(text, signs=False) == wanted
    assert words(" \n\u200b") == words("...", signs=False) == []


def test_runs_hold_together_what_is_not_parted():
    assert runs("Don't 卡在哪!! हिन्दी สวัสดี") == [
        "don",
        "'",
        "t",
        "卡在哪",
        "!",
        "!",
        "हिन्दी",
        "สวัสดี",
    ]
