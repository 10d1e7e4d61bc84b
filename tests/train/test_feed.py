"""How batches reach a step."""

import re

import jax
import numpy as np
import pytest
from small import images

from jaxops.devices import hosts
from jaxops.devices.plans import data_parallel, plan, single
from jaxops.train.feed import Stream, check_split
from jaxops.train.resident import Resident, Take, pad


def resident(rows=23, size=5, seed=0, plan=None):
    columns = {
        "x": np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3),
        "id": np.arange(rows),
    }
    return columns, Resident(columns, size, seed, plan or single())


def test_gathered_rows_are_the_columns_rows():
    columns, source = resident()
    index = np.asarray(source.feed(0, 5, 7))
    assert index.shape == (7, 5) and (index[5:] == -1).all()
    order = np.random.default_rng((0, 0)).permutation(23)
    np.testing.assert_array_equal(index[:5].ravel()[:23], order)
    for row in index:
        batch = source.take(source.fixed, row)
        real = row >= 0
        np.testing.assert_array_equal(batch["mask"], real)
        np.testing.assert_array_equal(batch["x"][real], columns["x"][row[real]])
        assert batch["x"].shape == (5, 2, 3)


def test_a_batch_is_a_function_of_the_step():
    _, source = resident()
    whole = np.asarray(source.feed(0, 12, 12))
    for step in (11, 3, 7, 0):
        _, other = resident()
        np.testing.assert_array_equal(other.feed(step, 1, 1)[0], whole[step])
    assert not np.array_equal(whole[:5], whole[5:10])
    assert sorted(whole[5:10].ravel()) == [-1, -1, *range(23)]
    assert not np.array_equal(resident(seed=1)[1].feed(0, 5, 5), whole[:5])


def test_rows_lie_on_their_devices():
    _, source = resident(rows=40, size=16, plan=data_parallel())
    index = source.feed(0, 3, 4)
    assert index.addressable_shards[0].data.shape == (4, 2)
    assert len(source.fixed["x"].devices()) == 8
    assert source.fixed["x"].addressable_shards[0].data.shape == (40, 6)  # whole, and flat


def test_a_mask_column_is_kept():
    take = Take((("x", ()), ("mask", ())))
    columns = {"x": np.arange(3.0, dtype=np.float32), "mask": np.float32([1, 0, 0.5])}
    batch = take(jax.device_put(columns), np.int32([2, 1, 0, -1]))
    np.testing.assert_array_equal(batch["mask"], [0.5, 0, 1, 0])


def test_pad():
    batch = {"x": np.ones((2, 3), np.uint8), "mask": np.array([True, False])}
    found = pad(batch, 4)
    assert found["x"].dtype == np.uint8 and found["x"].shape == (4, 3)
    np.testing.assert_array_equal(found["mask"], np.float32([1, 0, 0, 0]))
    assert pad({"x": batch["x"]}, 2)["x"] is batch["x"]
    with pytest.raises(ValueError, match=r"at most 1 rows .batch_size. in a batch, got 2"):
        pad(batch, 1)


def test_a_stream_starts_over_and_pads():
    data = images(7)
    batches = [{k: v[i : i + 4] for k, v in data.items()} for i in (0, 4)]
    source = Stream(batches, 4, single(), lambda b: {k: v for k, v in b.items() if k != "image"})
    assert source.steps_per_epoch == 2
    found = [source.feed(i, 1, 1) for i in range(4)]
    assert set(found[0]) == {"label", "mask"}
    masks = [np.asarray(batch["mask"])[0].sum() for batch in found]
    assert masks == [4, 3, 4, 3]
    np.testing.assert_array_equal(found[3]["label"], found[1]["label"])
    other = Stream(batches, 4, single(), dict)
    other.restore(None, 3)
    np.testing.assert_array_equal(other.feed(3, 1, 1)["label"], found[3]["label"])


def test_no_batch_of_a_stream_is_read_before_its_step_but_the_first():
    data, read = images(7), []

    class Counted:
        def __iter__(self):
            for i in (0, 4):
                read.append(i)
                yield {k: v[i : i + 4] for k, v in data.items()}

    source = Stream(Counted(), 4, single(), dict)
    assert source.example["label"].tolist() == data["label"][:1].tolist() and read == [0]
    for step, want in enumerate(([0], [0, 4], [0, 4, 0])):
        source.feed(step, 1, 1)
        assert read == want
    other = Stream(Counted(), 4, single(), dict)
    other.restore(None, 1)
    np.testing.assert_array_equal(other.feed(1, 1, 1)["label"][0, :3], data["label"][4:])


class Device:
    """A device of one of two processes."""

    def __init__(self, process):
        self.process_index = process


@pytest.mark.parametrize(
    ("shape", "processes", "found"),
    [
        ({"data": 4, "tensor": 2}, "00001111", None),
        ({"data": 2, "fsdp": 4}, "00001111", None),
        ({"data": 4, "tensor": 2}, "01010101", "[0, 1, 2, 3] of 4"),  # the same rows in both
        ({"tensor": 8}, "00001111", "[0] of 1"),
        ({"data": 8}, "11110000", "[4, 5, 6, 7] of 8"),  # in another order
        ({"data": 8}, "00000011", "[0, 1, 2, 3, 4, 5] of 8"),  # not as many
    ],
)
def test_a_stream_wants_equal_parts_in_the_order_of_processes(monkeypatch, shape, processes, found):
    made, numbers = plan(**shape), iter(processes)
    sharding = made.batch_sharding()
    where = sharding.devices_indices_map((made.batch_shards,))
    parts = {Device(int(next(numbers))): rows for rows in where.values()}
    monkeypatch.setattr(type(sharding), "devices_indices_map", lambda self, shape: parts)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    if found is None:
        return check_split(made)
    message = f"got parts {found} in process 0 of 2"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_split(made)
    with pytest.raises(ValueError, match=re.escape(message)):
        Stream([], 16, made, dict)
