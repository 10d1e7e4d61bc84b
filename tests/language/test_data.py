import numpy as np
import pytest

from jaxops.language import pack, padded, windows


def documents(count, longest, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 1000, rng.integers(1, longest + 1)) for _ in range(count)]


def test_packing_keeps_every_document_whole_and_in_order():
    texts = documents(300, 32)
    columns, padding = pack(texts, 32)
    tokens, segments = columns["tokens"], columns["segments"]
    assert tokens.shape == segments.shape and tokens.shape[1] == 32
    found = [
        tuple(row[own == number])
        for row, own in zip(tokens, segments, strict=True)
        for number in range(1, own.max() + 1)
    ]
    assert sorted(found) == sorted(tuple(text) for text in texts)
    for own in segments:  # 1, 2, ..., each in one piece, and padding behind them
        text = own[own > 0]
        assert (own[: len(text)] > 0).all() and text[0] == 1 and set(np.diff(text)) <= {0, 1}
    assert padding == pytest.approx((segments == 0).mean()) and padding < 0.05


def test_little_is_padding():
    texts = documents(2000, 128)
    assert pack(texts, 128).padding < 0.01
    one_each = sum(map(len, texts)) / (2000 * 128)
    assert 1 - one_each > 0.48
    alone = [np.ones(5, int)] * 4
    assert pack(alone, 9).padding == pytest.approx(4 / 9)  # two of five do not share nine


def test_windows_hold_every_token_once_at_their_beginnings():
    for count in (2, 9, 10, 11, 100):
        text = np.arange(1, count + 1, dtype=np.uint8)
        rows = windows(text, 5)
        assert rows["tokens"].shape[1] == 10 and rows["tokens"].dtype == np.uint8
        assert np.array_equal(rows["tokens"][:, :5].reshape(-1)[:count], text)
        assert np.array_equal(rows["segments"], rows["tokens"] > 0)
        assert np.array_equal(rows["tokens"][:-1, 5:], rows["tokens"][1:, :5])


def test_padded_rows():
    assert padded([[3, 4], [5, 6, 7]], 3, padding=9).tolist() == [[3, 4, 9], [5, 6, 7]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack([], 4), "documents must hold at least 1 document, got none"),
        (lambda: pack([[1], []], 4), "document 1 must have at least 1 token, got none"),
        (lambda: pack([[1, 2, 3]], 2), r"document 0 must have at most 2 tokens, got 3; cut it: "),
        (
            lambda: pack([[1.5]], 2),
            r"document 0 must be whole numbers along one axis, got float64\[1\]",
        ),
        (lambda: pack([[[1]]], 2), r"document 0 must be whole .*, got int64\[1, 1\]"),
        (lambda: pack([[1], [2, -1]], 2), "document 1 must be tokens of at least 0, got -1"),
        (lambda: windows([], 4), "tokens must have at least 1 token, got none"),
        (lambda: windows([1], 4), "tokens must have at least 2 elements, got 1"),
        (lambda: windows([1, 2], 0), "context must be at least 1, got 0"),
        (lambda: windows(["a", "b"], 4), "tokens must be whole numbers .*, got <U1"),
        (lambda: padded([], 4), "texts must have at least one text, got 0"),
        (lambda: padded([[1, 0]], 4), "text 0 must not contain the padding token, got 0"),
        (lambda: padded([[1], [2] * 5], 4), "text 1 must have at most 4 tokens, got 5"),
    ],
)
def test_wrong_texts_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
