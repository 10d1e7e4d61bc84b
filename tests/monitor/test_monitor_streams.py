"""Detectors on streams: river's alarms on the same streams, and what the papers say of them."""

import numpy as np
import pytest

from jaxops import monitor


@pytest.fixture(scope="module")
def errors():
    """40 streams of 1,500 errors, most with a change of the rate."""
    rng = np.random.default_rng(0)
    rate = np.concatenate([np.full((900, 40), 0.2), np.tile(np.linspace(0.2, 0.6, 40), (600, 1))])
    return (rng.random(rate.shape) < rate).astype(int)


@pytest.fixture(scope="module")
def numbers():
    """30 streams of 1,500 numbers, whose mean rises or falls twice."""
    rng = np.random.default_rng(1)
    steps = np.repeat(rng.normal(0, 0.3, (3, 30)), 500, axis=0)
    return rng.normal(0, 0.5, (1500, 30)) + steps


def told(detector, stream):
    """The indices of river's alarms."""
    found = []
    for i, value in enumerate(stream.tolist()):
        detector.update(value)
        if detector.drift_detected:
            found.append(i)
    return found


def of(alarms):
    return [np.flatnonzero(column).tolist() for column in alarms.T]


def test_page_hinkley_is_river_s(numbers):
    drift = pytest.importorskip("river.drift")
    got = monitor.page_hinkley(numbers, threshold=15.0)
    want = [told(drift.PageHinkley(threshold=15.0), stream) for stream in numbers.T]
    assert of(got.drift) == want and sum(map(len, want)) > 20
    assert not got.warning.any()
    for direction in ("up", "down"):
        one = monitor.page_hinkley(numbers, threshold=15.0, direction=direction)
        ours = [told(drift.PageHinkley(threshold=15.0, mode=direction), s) for s in numbers.T]
        assert of(one.drift) == ours


def test_ddm_is_river_s(errors):
    drift = pytest.importorskip("river.drift")
    got = monitor.ddm(errors)
    want = [told(drift.binary.DDM(), stream) for stream in errors.T]
    assert of(got.drift) == want and sum(map(len, want)) > 20
    detector, near = drift.binary.DDM(), []
    for i, error in enumerate(errors[:, -1].tolist()):
        detector.update(error)
        near += [i] if detector.warning_detected else []
    assert np.flatnonzero(got.warning[:, -1]).tolist() == near and near


def test_adwin_is_river_s(numbers, errors):
    drift = pytest.importorskip("river.drift")
    alarms = 0
    for stream in np.concatenate([numbers, errors], 1).T[::3]:
        theirs = drift.ADWIN()._helper  # which, as the paper has it, keeps the rest of the window
        want = [i for i, value in enumerate(stream.tolist()) if theirs.update(value)]
        got = monitor.adwin(stream)
        assert np.flatnonzero(got.drift).tolist() == want
        assert got.state.width == theirs.get_width()
        assert got.state.squares == pytest.approx(theirs.get_variance(), rel=1e-6)
        alarms += len(want)
    assert alarms > 20


def test_recorded_alarms():
    """What river 0.26.1 says of a stream, by `told`: for where it is not installed."""
    i = np.arange(1200)
    wave = (np.sin(12.9898 * i) * 43758.5453) % 1  # numbers in [0, 1) without a generator
    stream = (wave < np.where(i < 600, 0.2, 0.5)).astype(int)
    assert np.flatnonzero(monitor.ddm(stream).drift).tolist() == [74, 638, 904, 1014]
    hinkley = monitor.page_hinkley(stream, threshold=10.0)
    assert np.flatnonzero(hinkley.drift).tolist() == [241, 615, 743, 948, 1079]
    assert np.flatnonzero(monitor.adwin(stream).drift)[0] == 703


def test_adwin_by_brute_force():
    """On every prefix: whether some cut at a border of buckets has means that differ too much."""
    rng = np.random.default_rng(3)
    stream = rng.random(400) + np.repeat([0.0, 0.8], 200)
    window, alarms = None, []
    for i, value in enumerate(stream):
        told = monitor.adwin([value], window, clock=1)
        if window is not None:
            kept = stream[i - window.width : i + 1]
            np.testing.assert_allclose(window.total, kept[:-1].sum(), rtol=1e-9)
            spread = ((kept[:-1] - kept[:-1].mean()) ** 2).sum()
            np.testing.assert_allclose(window.squares, spread, rtol=1e-9, atol=1e-9)
        if told.drift[0]:
            alarms.append(i)
        else:  # no cut differs, by the formula on the values themselves
            kept = stream[i + 1 - told.state.width : i + 1]
            n, strict = len(kept), np.log(2 * np.log(max(len(kept), 2)) / 0.002)
            sizes = [2**k for k, some in enumerate(told.state.buckets) for _ in some]
            for first in np.cumsum(np.sort(sizes)[::-1])[:-1]:
                if 5 <= first <= n - 5:
                    share = 1 / (first - 4) + 1 / (n - first - 4)
                    bound = np.sqrt(2 * share * kept.var() * strict) + 2 / 3 * strict * share
                    assert abs(kept[:first].mean() - kept[first:].mean()) <= bound
        window = told.state
    assert alarms and 200 <= alarms[0] < 230
    assert window.width <= 240 and abs(window.total / window.width - 1.3) < 0.1
    assert max(map(len, window.buckets)) <= 5


@pytest.mark.parametrize("detect", [monitor.adwin, monitor.ddm, monitor.page_hinkley])
def test_parts_are_the_whole(detect, errors):
    stream = errors[:, -1]
    whole = detect(stream)
    first = detect(stream[:700])
    again = detect(stream[:700])
    second = detect(stream[700:], first.state)
    np.testing.assert_array_equal(np.concatenate([first.drift, second.drift]), whole.drift)
    np.testing.assert_array_equal(np.concatenate([first.warning, second.warning]), whole.warning)
    np.testing.assert_array_equal(detect(stream[700:], again.state).drift, second.drift)
    np.testing.assert_array_equal(detect(stream[700:], first.state).drift, second.drift)
    assert whole.drift.any()


def test_page_hinkley_on_a_long_stream():
    """In float32 the mean would stand still after some 10 million values; 2e5 show the digits."""
    stream = np.concatenate([np.full(200_000, 1e4), np.full(100, 1e4 + 1)])
    told = monitor.page_hinkley(stream, threshold=50.0, delta=0.005, forget=1.0, direction="up")
    # after the change each value adds 1 - 0.005, less the share of the mean that has moved
    assert np.flatnonzero(told.drift).tolist() == [200_050]


def test_a_perfect_model_gives_no_alarm_and_its_first_error_does():
    told = monitor.ddm(np.repeat([0, 1], [100, 1]))
    assert np.flatnonzero(told.drift).tolist() == [100]


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="must be finite, got nan in row 1"):
        monitor.adwin([0.0, np.nan])
    with pytest.raises(ValueError, match=r"one stream, got shape \(2, 1\)"):
        monitor.adwin([[0.0], [1.0]])
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\)"):
        monitor.adwin([0.0], delta=1.0)
    with pytest.raises(ValueError, match=r"errors must be 0 \(right\) or 1 \(wrong\)"):
        monitor.ddm([0.5])
    with pytest.raises(ValueError, match="drift above warning"):
        monitor.ddm([0], warning=3.0)
    with pytest.raises(ValueError, match="threshold must be above 0"):
        monitor.page_hinkley([0.0], threshold=0.0)
    with pytest.raises(ValueError, match="direction must be one of up, down, both, got 'left'"):
        monitor.page_hinkley([0.0], direction="left")
    with pytest.raises(ValueError, match=r"values must be \(T,\) or \(T, S\)"):
        monitor.ddm(0)
