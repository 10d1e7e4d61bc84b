"""What the root conftest.py reports and enforces."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def conftest(pytestconfig):
    """The root's; by its name a folder's own might be imported."""
    return pytestconfig.pluginmanager.get_plugin(str(ROOT / "conftest.py"))


@pytest.fixture
def processes(conftest, monkeypatch):
    first = {"tests/vision": [3, 9.0, 30.0], "docs": [1, 2.0, 4.0]}
    found = {
        "gw0": {"folders": first, "cpu": 40.0, "memory": 1.5},
        "gw1": {"folders": {"tests/vision": [2, 1.0, 25.0]}, "cpu": 30.0, "memory": 3.0},
    }
    monkeypatch.setattr(conftest, "PROCESSES", found)
    monkeypatch.setattr(conftest, "BUDGET", {"tests/vision": 50, "docs": 5, "tests/nn": 1})
    monkeypatch.setattr(conftest, "TOTAL", 60)


def test_time_of_all_processes_is_added_up_by_folder(conftest, processes):
    assert conftest.taken() == {"docs": [1, 2.0, 4.0], "tests/vision": [5, 10.0, 55.0]}
    assert conftest.total() == 70


def test_what_exceeds_its_budget_is_named(conftest, processes):
    memory = "process gw1 must take at most 2.5 GB, got 3.00"
    vision = "tests/vision must take at most 50 CPU seconds, got 55"
    total = "all must take at most 60 CPU seconds, got 70"
    assert conftest.exceeded() == [memory, vision, total]


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("tests/test_step.py", "tests"),
        ("tests/vision/test_tasks.py", "tests/vision"),
        ("jaxops/nn/layers.py", "jaxops"),
        ("docs/start.md", "docs"),
        ("README.md", "README.md"),
    ],
)
def test_the_row_of_a_file(conftest, path, row):
    assert conftest.folder(ROOT / path) == row


@pytest.mark.slow
def test_slow_tests_compile_without_optimisation():
    assert jax.config.read("jax_disable_most_optimizations")


@pytest.mark.optimized
def test_tests_marked_optimized_compile_with_it():
    assert not jax.config.read("jax_disable_most_optimizations")


def test_processor_time_counts_this_process_and_its_children(conftest):
    before = conftest.cpu_seconds()
    loop = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", loop], check=True)
    assert conftest.cpu_seconds() - before >= 0.3


class Item:
    """A test of a file, with marks."""

    def __init__(self, file="test_a.py", **marks):
        self.path, self.marks, self.skipped = ROOT / file, marks, []

    def iter_markers(self, name):
        return [pytest.mark.data(*self.marks[name]).mark] if name in self.marks else []

    def get_closest_marker(self, name):
        return self.marks.get(name)

    def add_marker(self, marker):
        self.skipped.append(marker.mark.kwargs["reason"])


def test_a_test_that_needs_absent_data_is_skipped(conftest, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXOPS_DATA_DIR", str(tmp_path))
    (tmp_path / "adult").mkdir()
    items = [Item(data=["adult"]), Item(data=["adult", "mnist"]), Item()]
    conftest.pytest_collection_modifyitems(items)
    assert [item.skipped for item in items] == [[], ["no mnist in JAXOPS_DATA_DIR"], []]


def test_what_is_optimised_comes_last_in_its_file(conftest):
    first, last, plain = Item(optimized=True), Item(slow=True), Item()
    killed = Item("tests/train/test_survival.py", slow=True)
    signalled = Item("tests/train/test_survival.py")
    items = [first, last, plain, killed, signalled]
    conftest.pytest_collection_modifyitems(items)
    assert items == [last, plain, first, signalled, killed]
