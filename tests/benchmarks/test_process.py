import sys

import pytest

from benchmarks.process import Others, Worker, WorkerError

HONEST = """
import os, sys
from benchmarks import worker
answers = worker.private_stdout()

class Side:
    def add(self, a, b):
        print("a stray print")
        os.system("echo and one of a child")
        return a + b
    def fail(self):
        raise ZeroDivisionError("by hand")
    def die(self):
        print("last words", flush=True)
        os._exit(3)
    def odd(self):
        return {1, 2}

worker.serve(Side, sys.stdin, answers)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    script = tmp_path / "side.py"
    script.write_text(HONEST)
    real = __import__("subprocess").Popen

    def popen(command, **kwargs):
        return real([sys.executable, str(script)], **kwargs)

    monkeypatch.setattr("benchmarks.process.subprocess.Popen", popen)
    with Worker("jaxops", "float32", tmp_path, sys.executable) as running:
        yield running


def test_stray_prints_do_not_break_the_protocol(worker):
    assert [worker("add", a=1, b=2), worker("add", a="x", b="y")] == [3, "xy"]
    log = worker.log.read_text()
    assert log.count("a stray print") == 2 and "and one of a child" in log


def test_an_error_comes_back_with_its_traceback_and_the_worker_lives_on(worker):
    with pytest.raises(WorkerError, match=r"(?s)jaxops float32: 'fail'.*in fail.*by hand"):
        worker("fail")
    with pytest.raises(WorkerError, match="not JSON serializable"):
        worker("odd")
    assert worker("add", a=1, b=1) == 2


def test_a_worker_that_dies_is_reported_with_the_end_of_its_log(worker):
    with pytest.raises(WorkerError, match=r"(?s)died of 'die'.*last words"):
        worker("die")
    with pytest.raises(WorkerError, match="died"):
        worker("add", a=1, b=1)


def test_close_ends_the_process(worker):
    worker("add", a=1, b=1)
    worker.close()
    assert worker.process.poll() == 0


def test_the_share_of_others(worker):
    share = Others(worker.process.pid).share()
    assert share is None or 0 <= share <= 1
    assert Others(-1).share() is None  # no such process
