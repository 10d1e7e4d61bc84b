import re
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxops.data import check, rows
from jaxops.task import Column

IMAGE = Column("image", (28, 28, 1), "uint8")
LABEL = Column("label", (), "int", classes=10, target=True)
X = Column("x", (3,), "float")


def images(n=4):
    return np.zeros((n, 28, 28, 1), np.uint8)


def table(n=4):
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3)


def assert_fails(columns, wanted, *parts):
    with pytest.raises(ValueError) as caught:
        check(columns, (wanted,))
    for part in parts:
        assert part in str(caught.value)


def test_rows_counts_the_leading_axis():
    assert rows({"a": np.zeros((5, 2)), "b": [1, 2, 3, 4, 5]}) == 5


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "columns must hold at least one column, got none"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "equal numbers of rows, got 3 of a, 4 of b"),
        ({"a": np.float32(3)}, "a must be an array of rows, got one value"),
    ],
)
def test_rows_refuses(columns, message):
    with pytest.raises(ValueError, match=message):
        rows(columns)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (IMAGE, images()),
        (LABEL, np.array([0, 9, 3])),
        (LABEL, np.array([0, 9], np.uint8)),
        (LABEL, jnp.array([0, 9])),
        (X, table()),
        (X, table().astype(np.float64)),
        (X, jnp.ones((2, 3), jnp.bfloat16)),
        (Column("ids", (None,), "int", classes=5), np.array([[0, 4], [3, 2]])),
        (Column("count", (), "int"), np.array([-7, 1000])),
        (Column("grey", (None, None), "uint8"), images()[..., 0]),
    ],
)
def test_good_columns_pass(column, value):
    check({column.name: value}, (column,))


def test_columns_that_are_not_wanted_are_ignored():
    check({"x": table(), "note": np.array(["a", None], object), "z": np.array([np.nan])}, (X,))
    check({"anything": np.zeros(0)}, ())


def test_prediction_does_without_targets():
    check({"image": images()}, (IMAGE, LABEL), targets=False)
    with pytest.raises(ValueError, match="columns must include 'label', got image"):
        check({"image": images()}, (IMAGE, LABEL))


def test_unequal_lengths_name_the_columns():
    with pytest.raises(ValueError, match="equal numbers of rows, got 4 of image, 3 of label"):
        check({"image": images(4), "label": np.zeros(3, int)}, (IMAGE, LABEL))


def test_no_rows():
    with pytest.raises(ValueError, match="image must have at least 1 row, got 0"):
        check({"image": images(0)}, (IMAGE,))


@pytest.mark.parametrize(
    ("column", "value", "parts"),
    [
        (IMAGE, images()[..., 0], ("shape (28, 28, 1), got (28, 28);", "image[..., None]")),
        (Column("grey", (28, 28), "uint8"), images(), ("got (28, 28, 1);", "grey[..., 0]")),
        (IMAGE, images().reshape(4, 784), ("got (784,);", "image.reshape(-1, 28, 28, 1)")),
        (
            Column("image", (32, 30, 3), "uint8"),
            np.zeros((2, 3, 32, 30), np.uint8),
            ("got (3, 32, 30);", "np.moveaxis(image, 1, -1)"),
        ),
        (LABEL, np.eye(4, 10, dtype=int), ("shape (), got (10,);", "label.argmax(-1)")),
        (X, np.zeros((4, 5), np.float32), ("shape (3,), got (5,)",)),
        (Column("ids", (None,), "int"), np.zeros((2, 3, 4), int), ("(None,), got (3, 4)",)),
    ],
)
def test_wrong_shape(column, value, parts):
    assert_fails({column.name: value}, column, column.name, *parts)
    if len(parts) == 2:  # the hint is code that mends it
        check({column.name: eval(parts[1], {column.name: value, "np": np})}, (column,))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (IMAGE, np.linspace(0, 1, 4 * 784, dtype=np.float32).reshape(4, 28, 28, 1)),
        (IMAGE, images().astype(np.float64)),
        (IMAGE, images().astype(np.int64)),
        (X, np.zeros((4, 3), np.int64)),
        (X, np.zeros((4, 3), bool)),
        (LABEL, np.array([0.0, 3.0])),
        (LABEL, np.array(["cat", "dog"])),
        (Column("x", (3,), "float32"), table().astype(np.float64)),
    ],
)
def test_the_hint_mends_the_dtype(column, value):
    with pytest.raises(
        ValueError, match=f"must (be|have dtype) .*, got {value.dtype}[ ;]"
    ) as caught:
        check({column.name: value}, (column,))
    hint = re.search(r": ([^:]*)$", str(caught.value))[1]
    check({column.name: eval(hint, {column.name: value, "np": np})}, (column,))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float64])
def test_images_of_16_bits_keep_their_order(dtype):
    value = np.zeros((1, 28, 28, 1), dtype)
    value[0, :5, 0, 0] = [0, 255, 256, 511, 65535]
    with pytest.raises(ValueError, match=r"0(\.0)? to 65535(\.0)? does not fit") as caught:
        check({"image": value}, (IMAGE,))
    hint = re.search(r": ([^:]*)$", str(caught.value))[1]
    mended = eval(hint, {"image": value, "np": np})
    check({"image": mended}, (IMAGE,))
    assert mended[0, :5, 0, 0].tolist() == [0, 0, 0, 1, 255]


def test_labels_that_are_fractions():
    assert_fails(
        {"label": np.array([0.0, 0.5])}, LABEL, "got float64", "0.5 in row 1", "whole number"
    )


def test_text_for_numbers():
    value = np.array([["a", "b", "c"]], object)
    assert_fails({"x": value}, X, "x must be float, got object ('a' in row 0)")


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_not_finite(bad, word, dtype):
    value = table(6).astype(dtype)
    value[2, 1] = value[5, 0] = value[5, 2] = bad
    assert_fails({"x": value}, X, f"x must be finite, got {word}", "row 2", "2 such rows")


@pytest.mark.parametrize("bad", [-2, 10, 300])
def test_labels_out_of_range(bad):
    value = np.array([1, 2, bad, 4, bad])
    assert_fails(
        {"label": value}, LABEL, "label must be in [0, 10)", f"got {bad} in row 2 (2 such rows)"
    )


def test_unlabelled_rows_have_to_be_dropped():
    value = np.array([1, -1, -1, 4])
    assert_fails({"label": value}, LABEL, "got -1 in row 1 (2 such rows)", "unlabelled", "drop")
    check({"label": value[value != -1]}, (LABEL,))


def test_token_ids_out_of_range():
    ids = np.array([[1, 2], [3, 5]])
    assert_fails(
        {"ids": ids},
        Column("ids", (2,), "int", classes=5),
        "ids must be in [0, 5), got 5 in row 1 (1 such row)",
    )


def test_fast_on_mnist_sized_data():
    columns = {"image": np.zeros((60_000, 28, 28, 1), np.uint8), "label": np.zeros(60_000, int)}
    start = time.perf_counter()
    check(columns, (IMAGE, LABEL))
    assert time.perf_counter() - start < 0.1
