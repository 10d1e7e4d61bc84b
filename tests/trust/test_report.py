"""What the logs hold when read back, and what the pictures were drawn from."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxops.metrics import Scores
from jaxops.trust import report

RECORDS = [
    {"step": 100, "epoch": 0.5, "split": "train", "loss": 0.9, "accuracy": 0.6},
    {"step": 200, "epoch": 1.0, "split": "train", "loss": 0.5, "accuracy": 0.8},
    {"step": 200, "epoch": 1.0, "split": "validation", "loss": 0.6, "accuracy": 0.7},
    {"step": 300, "epoch": 1.5, "split": "train", "loss": None, "accuracy": 0.9},
]


def log(path, records, **kwargs):
    logger = report.JsonLines(path, **kwargs)
    for record in records:
        logger(record)


def test_json_lines_read_back_equal(tmp_path):
    log(tmp_path / "new" / "log.jsonl", RECORDS)
    assert report.read_json_lines(tmp_path / "new" / "log.jsonl") == RECORDS


def test_json_lines_are_strict_json(tmp_path):
    path = tmp_path / "log.jsonl"
    values = {"a": np.float32("nan"), "b": float("inf"), "c": np.array([[1.0, np.nan]]), "d": "é"}
    log(path, [{"step": np.int64(1), "n": {"x": float("-inf")}, **values}])
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    got = json.loads(path.read_text(), parse_constant=refuse)
    want = {"step": 1, "n": {"x": None}, "a": None, "b": None, "c": [[1.0, None]], "d": "é"}
    assert got == want


def test_each_line_is_there_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import os, sys; from jaxops.trust.report import JsonLines\n"
        "JsonLines(sys.argv[1])({'step': 1}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -9
    assert report.read_json_lines(path) == [{"step": 1}]


@pytest.mark.parametrize("half", ['{"step": 4, "lo', '{"step": 4, "name": "\u00e9'])
def test_a_half_written_last_line_is_cut_off(tmp_path, half):
    path = tmp_path / "log.jsonl"
    log(path, RECORDS)
    with path.open("ab") as file:
        file.write(half.encode()[:-1])  # cuts the é in two as well
    assert report.read_json_lines(path) == RECORDS
    log(path, [{"step": 400}])
    assert report.read_json_lines(path) == [*RECORDS, {"step": 400}]
    assert path.read_bytes().count(b"\n") == 5
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    log(path, [{"step": 3}])
    assert [r["step"] for r in report.read_json_lines(path)] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: not JSON: b'nonsense'"):
        report.read_json_lines(path)


def test_a_resumed_run_leaves_no_duplicate(tmp_path):
    path = tmp_path / "log.jsonl"
    log(path, RECORDS)
    log(path, RECORDS[1:], resume_step=100)
    assert report.read_json_lines(path) == RECORDS


def test_a_new_run_keeps_the_file_of_an_earlier_one(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    for _ in range(2):  # the second time a file is there already
        log(path, RECORDS)
        logger = report.JsonLines(path)
        logger.resume(0)
        logger({"step": 1})
        assert report.read_json_lines(path) == [{"step": 1}]
        assert capsys.readouterr().err == f"{path}: of an earlier run, moved to {path}.old\n"
        kept = report.read_json_lines(tmp_path / "log.jsonl.old")
        assert kept[-4:] == RECORDS
    assert len(kept) == 5  # that run's one record, and what was added


def test_a_new_run_with_nothing_to_drop_moves_nothing(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    log(path, [{"step": 0, "loss": 2.0}])
    report.JsonLines(path).resume(0)
    assert report.read_json_lines(path) == [{"step": 0, "loss": 2.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
    assert not capsys.readouterr().err


def read_events(directory):
    """(tag, step, value) of all event files, and the steps from which they purge."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c

    scalars, purges = [], []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            body, (crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length :][:4])
            assert crc == masked_crc32c(body)
            event = Event.FromString(body)
            data = data[16 + length :]
            scalars += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            if event.session_log.status == SessionLog.START:
                purges.append(event.step)
    return scalars, purges


def test_tensorboard_events_read_back(tmp_path):
    logger = report.TensorBoard(tmp_path)
    logger({"step": 3, "epoch": 0.5, "split": "train", "loss": np.float32(0.5)})
    logger({"step": 4, "split": "test", "auc": np.array(0.75), "n": 7, "confusion": np.eye(2)})
    logger({"step": 5, "seconds": 1.5, "best": None, "note": "text", "curve": [1, 2]})
    logger.close()
    want = [("loss/train", 3, 0.5), ("auc/test", 4, 0.75), ("n/test", 4, 7), ("seconds", 5, 1.5)]
    assert read_events(tmp_path) == (want, [])


def test_tensorboard_resumes_within_a_second_and_purges_later_steps(tmp_path):
    for resume_step in (None, 10):
        logger = report.TensorBoard(tmp_path, resume_step)
        logger({"step": 11, "loss": 1.0})
        logger.close()
    assert len(list(tmp_path.iterdir())) == 2
    scalars, purges = read_events(tmp_path)
    # TensorBoard drops the events at this step and after it, of earlier files
    assert len(scalars) == 2 and purges == [11]


def assert_picture(path, figure):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == tuple(np.round(figure.get_size_inches() * figure.dpi).astype(int))
        low, high = image.convert("L").getextrema()
    assert low < 100 and high == 255 and path.stat().st_size > 3_000


def test_curves_draw_each_split(tmp_path):
    path = tmp_path / "new" / "curves.png"
    figure = report.plot_curves(RECORDS, path)
    assert_picture(path, figure)
    loss, accuracy = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    np.testing.assert_equal(loss.lines[0].get_xydata(), [[0.5, 0.9], [1, 0.5], [1.5, np.nan]])
    np.testing.assert_equal(accuracy.lines[1].get_xydata(), [[1.0, 0.7]])
    assert loss.get_xlabel() == "epoch"


def test_curves_of_other_metrics(tmp_path):
    records = [{"step": i, "auc": i / 10} for i in range(5)]
    figure = report.plot_curves(records, tmp_path / "a.png", ("loss", "auc"))
    (axes,) = figure.axes
    np.testing.assert_equal(axes.lines[0].get_xydata(), [[i, i / 10] for i in range(5)])
    assert axes.get_xlabel() == "step"
    with pytest.raises(ValueError, match=r"records must have one of \['loss', 'accuracy'\], got 5"):
        report.plot_curves(records, tmp_path / "b.png")


def test_confusion_shades_are_shares_and_numbers_are_counts(tmp_path):
    matrix = np.array([[30, 10, 0], [0, 0, 0], [5, 0, 15]])
    figure = report.plot_confusion(matrix, ("cat", "dog", "cow"), tmp_path / "c.png")
    assert_picture(tmp_path / "c.png", figure)
    axes = figure.axes[0]
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]]
    )
    numbers = {t.get_position(): t.get_text() for t in axes.texts}  # (column, row)
    assert numbers == {(0, 0): "30", (1, 0): "10", (0, 2): "5", (2, 2): "15"}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "dog", "cow"]
    assert axes.get_title() == "45 of 60 right (75.0%)"


def test_confusion_of_many_classes_has_no_numbers(tmp_path):
    figure = report.plot_confusion(np.eye(40), (), tmp_path / "c.png")
    assert not figure.axes[0].texts
    with pytest.raises(ValueError, match=r"matrix must have shape \(2, 2\), got \(3, 3\)"):
        report.plot_confusion(np.eye(3), ("a", "b"), tmp_path / "d.png")


def test_roc_of_scores_and_of_a_curve_agree(tmp_path):
    scores = Scores(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]), np.ones(4))
    fpr, tpr, _ = scores.roc_curve()
    for form in (scores, (fpr, tpr, scores.auc())):
        figure = report.plot_roc(form, tmp_path / "roc.png")
        assert_picture(tmp_path / "roc.png", figure)
        chance, curve = figure.axes[0].lines
        np.testing.assert_allclose(
            curve.get_xydata(), [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
        )
        assert curve.get_label() == "area 0.7500" and "0.5" in chance.get_label()


def shown(figure):
    """(title, top left pixel) of each picture."""
    drawn = [axes for axes in figure.axes if axes.images]
    return [(axes.get_title(), axes.images[0].get_array()[0, 0]) for axes in drawn]


IMAGES = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((5, 8, 8), np.uint8)
PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.05, 0.95]])
LABELS = np.array([0, 1, 0, 1, 0])


def test_mistakes_are_sorted_worst_first(tmp_path):
    args = IMAGES, LABELS, PROBABILITIES, ("no", "yes"), tmp_path / "m.png"
    figure = report.plot_mistakes(*args)
    assert_picture(tmp_path / "m.png", figure)
    worst = [("no → yes\n95.0%", 4), ("no → yes\n80.0%", 2), ("yes → no\n60.0%", 1)]
    assert shown(figure) == worst
    assert shown(report.plot_mistakes(*args, count=2)) == worst[:2]
    assert "3 mistakes in 5" in figure.get_suptitle()


def test_no_mistakes(tmp_path):
    figure = report.plot_mistakes(
        IMAGES, PROBABILITIES.argmax(1), PROBABILITIES, (), tmp_path / "m.png"
    )
    assert shown(figure) == [] and "0 mistakes in 5" in figure.get_suptitle()
    assert (tmp_path / "m.png").exists()


def test_predictions_show_the_likeliest_classes(tmp_path):
    figure = report.plot_predictions(
        IMAGES, LABELS, PROBABILITIES, ("no", "yes"), tmp_path / "p.png", count=4
    )
    assert_picture(tmp_path / "p.png", figure)
    titles = [title for title, _ in shown(figure)]
    assert titles == ["no\ntrue: no", "no\ntrue: yes", "yes\ntrue: no", "yes\ntrue: yes"]
    bars = [axes for axes in figure.axes if axes.patches]
    assert [t.get_text() for t in bars[2].texts] == ["yes", "80.0%", "no", "20.0%"]
    assert [bar.get_width() for bar in bars[2].patches] == [1, 1, 0.8, 0.2]


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (np.full((4, 4, 1), 0.25), 0.25),
        (np.full((4, 4, 3), 200, np.uint8), [200, 200, 200]),
        (np.linspace(-1, 1, 48).reshape(4, 4, 3), np.arange(3) / 47),  # was normalised
        (np.full((4, 4), 3.0), 0),  # constant, beyond 1
    ],
)
def test_pictures_of_every_kind(tmp_path, image, pixel):
    figure = report.plot_predictions(
        image[None], np.array([0]), np.array([[0.5, 0.5]]), (), tmp_path / "p.png"
    )
    np.testing.assert_allclose(shown(figure)[0][1], pixel, atol=1e-12)


def test_swapped_arguments_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"must have shapes .* got \(5, 8, 8\), \(5, 2\) and \(5,\)"
    ):
        report.plot_mistakes(IMAGES, PROBABILITIES, LABELS, (), tmp_path / "m.png")


def test_table_by_hand():
    rows = [{"model": "a|b", "n": np.int64(12), "auc": np.float32(0.84567)}, {"model": "c"}]
    assert report.table(rows) == (
        "| model |   n |    auc |\n"
        "|-------|----:|-------:|\n"
        "| a\\|b  |  12 | 0.8457 |\n"
        "| c     |     |        |"
    )
    assert report.table(rows, ["n"]).splitlines()[0] == "|   n |"


def test_pyplot_is_never_loaded(tmp_path):
    code = (
        "import sys; from jaxops import report; assert 'matplotlib' not in sys.modules\n"
        "report.plot_roc(([0, 1], [0, 1], .5), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "r.png"], check=True)
