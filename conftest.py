"""Strict JAX on eight CPU devices for all tests and doctests, and the budget of their time."""

import ctypes
import gc
import importlib.metadata
import itertools
import os
import resource
import sys
import threading
import time
from pathlib import Path

# With fewer threads than twice the devices, collectives of several CPU devices can deadlock.
os.environ.setdefault("NPROC", "16")
# PyArrow's own allocator keeps what it was given; the system's returns it.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# Most of the time goes into compiling. Unoptimised code takes a quarter less of it, and the plain
# emitters of XLA's CPU compiler take half of what those take that users have.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("XLA_FLAGS", "")
# newer versions do not have these flags, and XLA ends the process at an unknown one
os.environ["XLA_FLAGS"] += (
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10.")
    else ""
)

import jax
import pytest
from jax._src import compiler
from jax._src.interpreters import mlir

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# CPU seconds, which depend less than minutes do on what else the machine does. A folder's budget is
# at most 1.4 times what its tests that are not slow were measured to take, and that of everything,
# the slow tests too, 1.3 times (3,026 seconds).
TOTAL = 3900
BUDGET = {
    "README.md": 10,
    "docs": 165,
    "jaxops": 215,
    "tests": 106,
    "tests/anonymity": 3,
    "tests/benchmarks": 20,
    "tests/compress": 34,
    "tests/customers": 40,
    "tests/data": 80,
    "tests/decide": 70,
    "tests/devices": 190,  # also the processes of its slow tests, which end with the file
    "tests/docs": 10,
    "tests/experiments": 20,
    "tests/explain": 39,
    "tests/fairness": 18,
    "tests/federation": 25,
    "tests/forecast": 147,
    "tests/language": 130,
    "tests/model": 80,
    "tests/monitor": 37,
    "tests/nn": 86,
    "tests/privacy": 50,
    "tests/recommend": 133,
    "tests/robustness": 24,
    "tests/serve": 76,
    "tests/survival": 57,
    "tests/tabular": 80,
    "tests/text": 100,
    "tests/train": 160,
    "tests/trust": 34,
    "tests/uncertainty": 10,
    "tests/vision": 52,
}
# Where slow tests run the code that users run: exact resume, runs that are killed, the article's
# network against a plain loop. Others are marked `optimized`.
OPTIMIZED = ("train/test_resume.py", "train/test_survival.py", "vision/test_c03.py")
EMITTERS = "xla_cpu_use_fusion_emitters"
MEMORY = 2.5  # GB that a test process may take; 2.2 were measured
CLEAR = 1.0  # GB from which compiled programs are dropped

ROOT = Path(__file__).parent
FOLDERS: dict[str, list[float]] = {}  # of this process: folder -> tests, seconds, CPU seconds
PROCESSES: dict[str, dict] = {}  # of all processes: name -> folders, CPU seconds, GB
CONTEXTS: dict[int, object] = {}  # thread -> the MLIR context of its programs
TESTS = itertools.count(1)  # that have ended
clear_at = CLEAR


def pytest_addoption(parser):
    """The option `--budget`."""
    text = "fail if tests take more CPU time, or a process more memory, than is set"
    parser.addoption("--budget", action="store_true", help=f"{text} in conftest.py")


def pytest_collection_modifyitems(items):
    """Skip a test marked `data(name, ...)` unless JAXOPS_DATA_DIR has the folders it names.

    What is optimised comes last in its file, for what else is compiled is dropped before it.
    """
    files = {}
    items.sort(key=lambda item: (files.setdefault(item.path, len(files)), is_optimized(item)))
    directory = Path(os.environ.get("JAXOPS_DATA_DIR") or "/nowhere")
    for item in items:
        for mark in item.iter_markers("data"):
            for name in mark.args:
                if not (directory / name).exists():
                    item.add_marker(pytest.mark.skip(reason=f"no {name} in JAXOPS_DATA_DIR"))


def pytest_collection_finish(session):
    """Spare the garbage collector all that importing has made: it took 6 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Drop compiled programs when they fill the memory, or nearly use up the memory maps.

    XLA's CPU compiler ends the process with a segmentation fault at 65,530 maps. What remains
    after dropping is no reason to drop again before the process has grown by a seventh. The
    maps are counted after every tenth test, as this takes 27 ms.
    """
    yield
    global clear_at
    statm, maps = Path("/proc/self/statm"), Path("/proc/self/maps")
    if not statm.exists():
        return

    def resident():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**30

    tenth = next(TESTS) % 10 == 0
    if resident() > clear_at or (tenth and maps.read_bytes().count(b"\n") > 20_000):
        jax.clear_caches()
        CONTEXTS.clear()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        clear_at = max(CLEAR, 1.15 * resident())


@pytest.fixture(scope="module")
def forks():
    """Starts processes that need not import JAX anew; it ends with the file's last test."""
    from forks import Forks

    with Forks() as started:
        yield started


@pytest.fixture(scope="module")
def one_thread():
    """More threads of scikit-learn than cores that are free take many times as long."""
    pytest.importorskip("sklearn.ensemble")  # what is loaded later has its own number of threads
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        yield


def options_of(make):
    """JAX's options of a program; XLA reads its flags once, so each program names its emitters."""

    def options(*args, env_options_overrides=None, **settings):
        optimized = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0"
        own = {EMITTERS: optimized, **(env_options_overrides or {})}
        return make(*args, env_options_overrides=own, **settings)

    return options


def context_of(make):
    """One MLIR context for the programs of a thread, as newer versions of JAX keep it.

    Of its own a program has 1.1 MB, which takes 4 ms to make and to drop.
    """

    def context():
        thread = threading.get_ident()
        if thread not in CONTEXTS:
            CONTEXTS[thread] = make()
        return CONTEXTS[thread]

    return context


if EMITTERS in os.environ["XLA_FLAGS"]:
    mlir.make_ir_context = context_of(mlir.make_ir_context)
    compiler.get_compile_options = options_of(compiler.get_compile_options)


def is_optimized(item):
    """Whether a test needs the optimised code that users run."""
    slow = item.get_closest_marker("slow") and item.path.as_posix().endswith(OPTIMIZED)
    return bool(item.get_closest_marker("optimized") or slow)


def compile_for(item):
    """Without optimisation, unless marked `optimized`, or slow and of a file in OPTIMIZED.

    It holds for the processes that a test starts, too.
    """
    disable = str(int(not is_optimized(item)))
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != disable:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = disable
        values = [f"{EMITTERS}={value}" for value in ("true", "false")]
        change = values if disable == "1" else reversed(values)
        os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(*change)
        jax.config.update("jax_disable_most_optimizations", disable == "1")
        jax.clear_caches()


def cpu_seconds():
    """CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_memory():
    """The most memory that this process has held, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def folder(path):
    """The row of the table that a test file belongs to: `tests/vision`, `jaxops`, `docs`."""
    top, *rest = path.relative_to(ROOT).parts
    return f"{top}/{rest[0]}" if top == "tests" and len(rest) > 1 else top


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Choose how one test compiles; count its time and that of its fixtures."""
    start, cpu = time.perf_counter(), cpu_seconds()
    compile_for(item)
    result = yield
    slow = ", slow" if item.get_closest_marker("slow") else ""
    row = FOLDERS.setdefault(folder(item.path) + slow, [0, 0.0, 0.0])
    for i, value in enumerate((1, time.perf_counter() - start, cpu_seconds() - cpu)):
        row[i] += value
    return result


def pytest_sessionfinish(session):
    """Hand what this process took to the first process; there, judge it."""
    if FOLDERS:
        taken = {"folders": FOLDERS, "cpu": cpu_seconds(), "memory": peak_memory()}
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["taken"] = taken
        else:
            PROCESSES["one"] = taken
    if session.config.option.budget and exceeded() and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Keep what a process of pytest-xdist handed over."""
    if "taken" in getattr(node, "workeroutput", {}):
        PROCESSES[node.gateway.id] = node.workeroutput["taken"]


def taken():
    """folder -> tests, seconds, CPU seconds of all processes, sorted by folder."""
    rows = {}
    for process in PROCESSES.values():
        for name, row in process["folders"].items():
            rows[name] = [a + b for a, b in zip(row, rows.get(name, (0, 0, 0)), strict=True)]
    return dict(sorted(rows.items()))


def total():
    """CPU seconds of all processes: tests, imports and collection."""
    return sum(process["cpu"] for process in PROCESSES.values())


def exceeded():
    """One sentence for each budget that was exceeded."""
    lines = [
        f"process {name} must take at most {MEMORY:g} GB, got {process['memory']:.2f}"
        for name, process in PROCESSES.items()
        if process["memory"] > MEMORY
    ]
    seconds = {name: row[2] for name, row in taken().items()} | {"all": total()}
    return lines + [
        f"{name} must take at most {limit} CPU seconds, got {seconds[name]:.0f}"
        for name, limit in (BUDGET | {"all": TOTAL}).items()
        if seconds.get(name, 0) > limit
    ]


def pytest_terminal_summary(terminalreporter):
    """Print the table, and below it what was exceeded."""
    if not PROCESSES:
        return
    terminalreporter.section("time and memory")
    write = terminalreporter.write_line
    limits = BUDGET | {"all": TOTAL}
    write(f"{'folder':24}{'tests':>7}{'seconds':>9}{'CPU s':>8}{'budget':>8}")
    rows = taken()
    tests, seconds = (sum(row[i] for row in rows.values()) for i in (0, 1))
    for name, (count, wall, cpu) in (rows | {"all": (tests, seconds, total())}).items():
        write(f"{name:24}{count:7}{wall:9.1f}{cpu:8.1f}{limits.get(name, ''):>8}")
    for name, process in PROCESSES.items():
        write(f"process {name}: at most {process['memory']:.2f} GB")
    for line in exceeded():
        write(line, red=True)
