import gzip
import os
from collections import defaultdict
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxops import recommend

BEAUTY = Path(os.environ.get("JAXOPS_DATA_DIR", "nowhere"), "beauty", "beauty.txt")
CSV = """user,item,time,stars
ann,007,30,5
bob,7,20,1.5
ann,7,10,4
"nan",007,20,2
"""


def random_log(seed, events=600, users=40, items=25, times=50):
    """Rows with ties, repeats and duplicates."""
    rng = np.random.default_rng(seed)
    return {
        "user": [f"u{number}" for number in rng.zipf(1.5, events) % users],
        "item": rng.integers(0, items, events).astype(str).tolist(),
        "time": rng.integers(0, times, events),
        "weight": rng.integers(0, 5, events).astype(float),
    }


def rows_of(log):
    """The events as rows of the ids themselves."""
    columns = (log.users[log.user], log.items[log.item], log.time, log.weight)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def per_user(log):
    histories = defaultdict(list)
    for user, item, time, _ in rows_of(log):
        histories[user].append((item, time))
    return histories


def sorted_rows(rows):
    ids = zip(rows["user"], rows["item"], rows["time"], rows["weight"], strict=True)
    return sorted(ids, key=lambda row: row[2])  # stable, as the log must be


def test_csv_keeps_ids_as_written(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(CSV)
    log = recommend.events(path, weight="stars")
    assert log.users.tolist() == ["ann", "bob", "nan"] and log.items.tolist() == ["007", "7"]
    assert rows_of(log) == [
        ("ann", "7", 10, 4.0),
        ("bob", "7", 20, 1.5),
        ("nan", "007", 20, 2.0),
        ("ann", "007", 30, 5.0),
    ]
    assert (log.user.dtype, log.item.dtype) == (np.int32, np.int32)
    assert (log.time.dtype, log.weight.dtype) == (np.int64, np.float32)
    assert log.report == recommend.Report(4, 0, 0, 0, 0, users=3, items=2)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "frame", "arrays", "tabs", "colons"])
def test_every_source_gives_the_same(tmp_path, kind):
    rows = random_log(0)
    integers = kind in ("parquet", "frame", "arrays")  # others hold only text
    rows["item"] = [int(item) for item in rows["item"]] if integers else rows["item"]
    frame = pd.DataFrame(rows)
    source, options = tmp_path / f"log.{kind}", {}
    if kind == "parquet":
        frame.to_parquet(source)
    elif kind == "frame":
        source = frame.set_index(np.arange(len(frame))[::-1])  # labels that are not places
    elif kind == "arrays":
        source = rows
    else:
        separator = {"tabs": "\t", "colons": "::"}.get(kind, ",")
        header = kind != "colons"
        text = frame.to_csv(index=False, header=header).replace(",", separator)
        source.write_bytes(gzip.compress(text.encode()) if kind == "csv.gz" else text.encode())
        options = {"separator": separator, "header": None if header else list(rows)}
    log = recommend.events(source, weight="weight", **options)
    assert rows_of(log) == sorted_rows(rows)
    assert log.users.tolist() == list(dict.fromkeys(rows["user"]))
    assert log.items.tolist() == list(dict.fromkeys(rows["item"]))


def test_lines_of_blanks_without_times(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("2 5\n1  5\n2\t01\n")
    log = recommend.events(path, header=("user", "item"), separator=" ", time=None)
    assert rows_of(log) == [("2", "5", 0, 1.0), ("1", "5", 1, 1.0), ("2", "01", 2, 1.0)]


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01 00:00:01.5", "2023-12-31T23:00:00", "2024-01-01"],
        ["2024-01-01 09:00:01.5+09:00", "2023-12-31T23:00:00Z", "2023-12-31 19:00:00-05"],
        pd.DatetimeIndex(
            ["2024-01-01T00:00:01.5", "2023-12-31T23:00:00.0", "2024-01-01T00:00:00.0"]
        ),
        pd.DatetimeIndex(
            ["2024-01-01T09:00:01.5", "2024-01-01T08:00:00.0", "2024-01-01T09:00:00.0"],
            tz="Asia/Tokyo",
        ),
    ],
    ids=["text", "offsets", "dates", "zone"],
)
def test_dates_are_seconds(times):
    log = recommend.events(pd.DataFrame({"user": "a", "item": [1, 2, 3], "time": times}))
    # 1,704,067,200 is 2024-01-01 00:00 UTC
    assert (log.time - 1_704_067_200).tolist() == [-3600, 0, 1.5]
    assert log.items[log.item].tolist() == [2, 3, 1]


def test_date_objects_and_exact_large_integers():
    log = recommend.events({"user": [1, 1], "item": [1, 2], "time": [date(1970, 1, 2)] * 2})
    assert log.time.tolist() == [86400, 86400] and log.report.ties == 1
    large = 2**53 + np.arange(2)  # float64 cannot tell them apart
    log = recommend.events({"user": [1, 1], "item": [1, 2], "time": large[::-1]})
    assert log.time.tolist() == large.tolist() and log.report.ties == 0


@pytest.mark.parametrize("repeats", ["keep", "distinct", "first", "last"])
def test_repeats_and_report(repeats):
    rows = random_log(1, events=900, times=20)
    log = recommend.events(rows, weight="weight", repeats=repeats)
    ordered = sorted_rows(rows)
    frame = pd.DataFrame(ordered, columns=["user", "item", "time", "weight"])
    kept = {
        "keep": frame,
        "distinct": frame.drop_duplicates(["user", "item", "time"]),
        "first": frame.drop_duplicates(["user", "item"]),
        "last": frame.drop_duplicates(["user", "item"], keep="last"),
    }[repeats]
    assert rows_of(log) == list(kept.itertuples(index=False, name=None))
    seen, pairs, duplicates, again = set(), set(), 0, 0
    for user, item, time, _ in ordered:
        duplicates += (user, item, time) in seen
        again += (user, item) in pairs and (user, item, time) not in seen
        seen.add((user, item, time))
        pairs.add((user, item))
    ties = sum(
        before[1] == after[1]
        for history in per_user(log).values()
        for before, after in pairwise(history)
    )
    assert duplicates > 0 and again > 0 and (ties > 0)
    assert log.report == recommend.Report(
        rows=900,
        duplicates=duplicates,
        repeats=again,
        dropped=900 - len(kept),
        ties=ties,
        users=len(set(rows["user"])),
        items=len(set(rows["item"])),
    )


def test_histories_of_everyone():
    rows = random_log(2)
    log = recommend.events(rows, user_features={"user": [*{*rows["user"]}, "x"]})
    histories, expected = log.histories(), per_user(log)
    assert log.users[-1] == "x" and histories.lengths[-1] == 0
    for number, user in enumerate(log.users):
        mine = histories.items[histories.starts[number] : histories.starts[number + 1]]
        assert log.items[mine].tolist() == [item for item, _ in expected[user]]
    some = np.array([len(log.users) - 1, 0, 3])
    block = histories.rows(some, 4, padding=99)
    for row, user in zip(block, log.users[some], strict=True):
        last = [item for item, _ in expected[user]][-4:]
        assert log.items[row[: len(last)]].tolist() == last
        assert (row[len(last) :] == 99).all()


def test_features_are_aligned_and_bring_new_items(tmp_path):
    table = tmp_path / "items.csv"
    table.write_text("item,price,kind\n9,1.5,NaN\n02,,shoe\n7,3,hat\n")
    ages = pd.DataFrame({"user": ["b", "a"], "age": [30, 40]})
    log = recommend.events(
        {"user": ["a", "b"], "item": ["7", "02"], "time": [0, 0]},
        item_features=table,
        user_features=ages,
    )
    assert log.items.tolist() == ["7", "02", "9"] and log.users.tolist() == ["a", "b"]
    np.testing.assert_array_equal(log.item_features["price"], np.float32([3, np.nan, 1.5]))
    assert log.item_features["kind"].tolist() == ["hat", "shoe", ""]
    assert log.user_features["age"].tolist() == [40, 30]
    assert log.user_features["age"].dtype == np.int64


def test_a_known_catalogue_comes_first():
    old = recommend.events({"user": ["a", "b"], "item": ["x", "y"]}, time=None)
    new = recommend.events({"user": ["c", "c"], "item": ["z", "y"]}, time=None, items=old.items)
    assert new.items.tolist() == ["x", "y", "z"] and new.item.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": None}, "arrays must have a column 'item', got user, time"),
        (
            {"time": [1, np.nan, 2]},
            "column 'time' must have .*, got 1 missing, the first in row 1 ",
        ),
        ({"time": [1, np.inf, 2]}, "column 'time' must be finite, got inf in row 1"),
        (
            {"time": ["1", "2", "no"]},
            "column 'time' must be numbers or dates in ISO 8601, got 'no'",
        ),
        (
            {"time": ["2024-01-01", "2024", "x"]},
            "column 'time' must be numbers or dates in ISO 8601, got 'x'",
        ),
        (
            {"time": ["1", "2", "3"]},
            "column 'time' must be numbers or dates .*, got '1'; convert the text",
        ),
        (
            {"time": [True, False, True]},
            "column 'time' must be numbers or dates in ISO 8601, got .*True",
        ),
        (
            {"user": ["a", None, "b"]},
            "column 'user' must have .*, got 1 missing, the first in row 1",
        ),
        ({"user": [1.0, 2.5, 3.0]}, "column 'user' must be text or integers, got float64"),
        (
            {"user": np.array(["a", 1, "b"], object)},
            "column 'user' must be all text or all integers, got both",
        ),
        ({"user": [True, False, True]}, "column 'user' must be text or integers, got bool"),
        ({"item": [1, 2]}, r"column 'item' must have shape \(3,\), got \(2,\)"),
        (
            {"weight": [1, -2, 3]},
            r"column 'weight' must be finite and at least 0, got -2.0 in row 1 \(1 such rows\)",
        ),
        (
            {"weight": [1, np.nan, 3]},
            "column 'weight' must have a number of at least 0, got 1 missing",
        ),
        ({"weight": ["1", "many", "3"]}, "column 'weight' must be numbers, got 'many'"),
        (
            {"user": [], "item": [], "time": [], "weight": []},
            "arrays must have at least 1 row, got 0",
        ),
    ],
)
def test_bad_columns_are_named(change, message):
    good = {"user": ["a", "b", "c"], "item": [1, 2, 3], "time": [1, 2, 3], "weight": [1, 1, 1]}
    rows = {name: value for name, value in (good | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        recommend.events(rows, weight="weight")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("user,item\na,1\n", {}, r"log.csv must have a column 'time', got user, item"),
        ("user,item,time\na,1\n", {}, "log.csv: line 2 must have 3 fields, as the header, got 2"),
        (
            "user,item,time\n,1,2\n",
            {},
            "column 'user' must have .*, got 1 missing, the first in row 0",
        ),
        (
            "a 1\nb\n",
            {"header": ("user", "item"), "separator": " "},
            "line 2 must have 2 fields, as the header, got 1",
        ),
        ("a 1\nb 1 2\n", {"header": ("user", "item"), "separator": " "}, "line 2 must .* 3"),
        (
            "a\n",
            {"header": ("user", "item"), "separator": " "},
            "line 1 must have 2 fields, as the header, got 1, separated by ' '",
        ),
        ("user;item\na;1;2\n", {"separator": ";"}, "log.csv: "),
        ("", {"header": ("user", "item")}, "log.csv must have at least 1 row, got 0"),
    ],
)
def test_bad_files_are_named(tmp_path, text, options, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        recommend.events(path, **({"time": None} if options else {}), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"item_features": {"item": ["1"], "x": [1]}},
            "column 'item' must have a row for every id, got none for '2'",
        ),
        (
            {"item_features": {"item": ["1", "2", "1"]}},
            "column 'item' must be distinct, got '1' twice",
        ),
        ({"item_features": {"x": [1]}}, "must have a column 'item'"),
        (
            {"user_features": {"user": ["b"]}},
            "column 'user' must have a row for every id, got none for 'a'",
        ),
        ({"items": ["1", "1"]}, "items must be distinct, got '1' twice"),
        ({"item": "user"}, "must be distinct, got user, user"),
        ({"repeats": "all"}, "repeats must be .*, got 'all'"),
        (
            {"header": ("user", "item")},
            "header must be None for a source other than a CSV file, got user, item",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        recommend.events({"user": ["a", "a"], "item": [1, 2]}, time=None, **options)


def test_bad_source():
    with pytest.raises(ValueError, match="source must be a path, a frame or arrays, got list"):
        recommend.events([("a", 1)])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_k_core(k):
    rows = random_log(3, items=150)
    log = recommend.events(
        rows, weight="weight", item_features={"item": np.arange(160).astype(str)}
    )
    core = recommend.k_core(log, k)
    frame = pd.DataFrame(rows_of(log), columns=["user", "item", "time", "weight"])
    rounds = 0
    while True:
        enough = frame.groupby("user").item.transform("size") >= k
        enough &= frame.groupby("item").user.transform("size") >= k
        if enough.all():
            break
        frame, rounds = frame[enough], rounds + 1
    assert rounds > 1 or k < 5
    assert rows_of(core) == list(frame.itertuples(index=False, name=None))
    assert sorted(core.users) == sorted(set(frame.user))
    assert core.items.tolist() == [item for item in log.items if item in set(frame.item)]
    assert core.user.dtype == np.int32
    with pytest.raises(ValueError, match="k must leave at least 1 event, got 500"):
        recommend.k_core(log, 500)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recommend.k_core(log, 0)


def test_leave_one_out():
    log = recommend.events(random_log(4), weight="weight")
    split = recommend.leave_one_out(log)
    parts = [per_user(part) for part in (split.train, split.validation, split.test)]
    for user, history in per_user(log).items():
        short = len(history) < 3
        assert parts[0][user] == (history if short else history[:-2])
        assert parts[1][user] == ([] if short else history[-2:-1])
        assert parts[2][user] == ([] if short else history[-1:])
    assert per_user(split.before_validation()) == per_user(split.train)
    known = per_user(split.before_test())
    assert all(known[user] + parts[2][user] == all_ for user, all_ in per_user(log).items())
    assert per_user(recommend.joined(*split)) == per_user(log)
    assert len(split.known) == 0 and split.train.report is None


def test_split_by_time():
    log = recommend.events(random_log(5), weight="weight")
    split = recommend.split_by_time(log, share=0.2)
    assert rows_of(split.train) + rows_of(split.validation) + rows_of(split.test) == rows_of(log)
    assert split.train.time.max() < split.validation.time.min()
    assert split.validation.time.max() < split.test.time.min()
    assert 120 <= len(split.test) < 150 and 90 < len(split.validation) < 150  # 12 events a time
    at = recommend.split_by_time(log, at=(10, 30.5))
    assert [len(part) for part in at] == [
        (log.time < 10).sum(),
        ((log.time >= 10) & (log.time < 30.5)).sum(),
        (log.time >= 30.5).sum(),
        0,
    ]
    for times, name in [((-1, 3), "train"), ((5, 5), "validation"), ((5, 99), "test")]:
        with pytest.raises(
            ValueError, match=f"{name} must hold at least 1 event, got none; validation begins"
        ):
            recommend.split_by_time(log, at=times)
    with pytest.raises(ValueError, match=r"share must be in \(0, 0.5\), got 0.5"):
        recommend.split_by_time(log, share=0.5)


def test_split_by_user():
    log = recommend.events(random_log(6), weight="weight")
    split = recommend.split_by_user(log, share=0.25, target=0.3, seed=1)
    whole = per_user(log)
    train, validation, test, known = map(per_user, split)
    assert len(validation) == len(test) == round(0.25 * len(whole))
    assert not (train.keys() & validation.keys() or train.keys() & test.keys())
    assert not validation.keys() & test.keys() and known.keys() == validation.keys() | test.keys()
    for user, history in whole.items():
        if user in train:
            assert train[user] == history
            continue
        cut = len(history) - min(max(1, round(0.3 * len(history))), len(history) - 1)
        assert known[user] == history[:cut]
        assert validation[user] + test[user] == history[cut:]
        assert per_user(split.before_test())[user][:cut] == history[:cut]
    other = recommend.split_by_user(log, share=0.25, seed=2)
    assert set(other.test.user.tolist()) != set(split.test.user.tolist())
    one = recommend.events({"user": ["a"] * 5, "item": [1] * 5}, time=None)
    with pytest.raises(ValueError, match="at least 3 users with at least 2 events, got 1"):
        recommend.split_by_user(one)
    with pytest.raises(ValueError, match=r"target must be in \(0, 1\), got 1"):
        recommend.split_by_user(log, target=1)


def test_a_log_with_one_user():
    log = recommend.events({"user": ["a"] * 4, "item": [1, 2, 3, 1]}, time=None)
    split = recommend.leave_one_out(log)
    assert [part.item.tolist() for part in split] == [[0, 1], [2], [0], []]
    assert [len(part) for part in recommend.split_by_time(log)] == [2, 1, 1, 0]
    two = log.part(np.arange(2))
    with pytest.raises(ValueError, match="a user with at least 3 events, got at most 2"):
        recommend.leave_one_out(two)
    with pytest.raises(ValueError, match="events must hold at least 3 events, got 2"):
        recommend.split_by_time(two)


def test_leakage():
    log = recommend.events(random_log(7), weight="weight", repeats="distinct")
    split = recommend.leave_one_out(log)
    recommend.check_leakage(split.train, split.validation, "leave_one_out")
    recommend.check_leakage(split.before_test(), split.test, "leave_one_out")
    with pytest.raises(
        ValueError, match=r"got user 'u\d+' item '\d+' at time \d+ \(\d+ such events\)"
    ):
        recommend.check_leakage(split.train, split.test, "by_time")
    with pytest.raises(ValueError, match="train must hold no event of a user of test"):
        recommend.check_leakage(split.train, split.test, "by_user")

    by_time = recommend.split_by_time(log)
    recommend.check_leakage(by_time.before_test(), by_time.test, "by_time")
    with pytest.raises(ValueError, match="such events"):
        recommend.check_leakage(log, by_time.test, "by_time")

    by_user = recommend.split_by_user(log)
    recommend.check_leakage(by_user.train, by_user.test, "by_user")
    with pytest.raises(ValueError, match="such events"):
        recommend.check_leakage(by_user.before_test(), by_user.test, "by_user")
    with pytest.raises(ValueError, match=r"protocol must be .*, got 'random'"):
        recommend.check_leakage(by_user.train, by_user.test, "random")
    with pytest.raises(ValueError, match=r"at least 1 event each, got \d+ and 0"):
        recommend.check_leakage(by_time.train, by_time.known, "by_time")


def test_leakage_finds_every_wrong_event():
    log = recommend.events(random_log(8), weight="weight", repeats="distinct")
    split = recommend.leave_one_out(log)
    firsts = {user: history[0] for user, history in per_user(split.test).items()}
    rng = np.random.default_rng(0)
    for _ in range(40):
        # right events and one or two of any kind, which may be a leak
        drawn = rng.choice(len(log), 2)
        train = recommend.joined(split.before_test(), log.part(np.unique(drawn)))
        leaks = [
            (user, item, time)
            for user, item, time, _ in rows_of(train)
            if user in firsts and (time > firsts[user][1] or (item, time) == firsts[user])
        ]
        if leaks:
            user, item, time = leaks[-1]
            found = rf"got user '{user}' item '{item}' at time {time} \({len(leaks)} such events\)"
            with pytest.raises(ValueError, match=found):
                recommend.check_leakage(train, split.test, "leave_one_out")
        else:
            recommend.check_leakage(train, split.test, "leave_one_out")


def test_joined_wants_parts_of_one_log():
    one = recommend.events({"user": ["a"], "item": [1]}, time=None)
    other = recommend.events({"user": ["a"], "item": [2]}, time=None)
    with pytest.raises(ValueError, match="items must be the same in all parts of a log"):
        recommend.joined(one, other)


@pytest.mark.data("beauty")
def test_beauty():
    log = recommend.events(BEAUTY, header=("user", "item"), separator=" ", time=None)
    assert log.report == recommend.Report(353_962, 0, 0, 0, 0, users=40_226, items=54_542)
    lines = [line.split() for line in BEAUTY.read_text().splitlines()]
    histories = defaultdict(list)
    for user, item in lines:
        histories[user].append(item)
    split = recommend.leave_one_out(log)
    assert len(split.test) == len(split.validation) == 40_226
    last = {user: items[-1] for user, items in histories.items()}
    assert dict(zip(log.users[split.test.user], log.items[split.test.item], strict=True)) == last
    before = split.before_test().histories()
    for user in (0, 17, 40_225):
        mine = before.items[before.starts[user] : before.starts[user + 1]]
        assert log.items[mine].tolist() == histories[str(log.users[user])][:-1]
    recommend.check_leakage(split.train, split.validation, "leave_one_out")
    recommend.check_leakage(split.before_test(), split.test, "leave_one_out")
