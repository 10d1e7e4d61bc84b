"""Runs that are killed at random moments; a process of its own, for it forks.

    python kill_worker.py FOLDER SEED DEVICES KILLS

A run is killed up to four times, during its first save, a step, a restore and a later save, and
then goes on to its end; then another is, until there were KILLS. All is imported once, before the
runs are forked.
"""

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from small import host, train

import jaxops as jo
from jaxops.trust import report

MOMENTS = {"first save": (1, 0.12), "step": (0, 1.0), "restore": (0, 0.15), "save": (2, 0.12)}


def run(folder, cache, devices, mark):
    """What is killed: it tells of its moments by `mark`, and leaves `final.npz`."""
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jo.compilation_cache(cache)
    for name in ("save", "restore"):
        method = getattr(jo.Checkpointer, name)

        def marked(self, *args, _name=name, _method=method):
            mark(_name)
            return _method(self, *args)

        setattr(jo.Checkpointer, name, marked)
    json_lines = report.JsonLines(folder / "metrics.jsonl")

    class Log:
        resume = staticmethod(json_lines.resume)

        def __call__(self, record):
            json_lines(record)
            mark("step")

    plan = jo.devices.data_parallel() if devices > 1 else None
    stopping = jo.EarlyStopping("accuracy", patience=99, mode="max")  # the best state, and no end
    changes = {"steps": 110, "batch_size": 16, "plan": plan, "early_stopping": stopping}
    state = train("resident", folder / "checkpoints", Log(), **changes)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(host(state))]
    np.savez(folder / "final.npz", *leaves)


def started(folder, *arguments):
    """The pid of a run in a process of its own, and a pipe with its marks."""
    folder.mkdir(exist_ok=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    code = 1
    try:
        errors = os.open(folder / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        run(folder, *arguments, lambda name: os.write(write, f"{name}\n".encode()))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def marks(pipe, seconds=60):
    """The run's marks as they come, until it ends."""
    text, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([pipe], [], [], 1.0)[0]:
            piece = os.read(pipe, 4096)
            if not piece:
                return
            text += piece
            *lines, text = text.split(b"\n")
            yield from (line.decode() for line in lines)
    raise TimeoutError(f"no mark within {seconds} s")


def killed(folder, moment, rng, *arguments):
    """Start the run and kill it at such a moment; where it was, or `None` where it had ended."""
    pid, pipe = started(folder, *arguments)
    which = moment.split()[-1]
    after = MOMENTS[moment][0] + (rng.randrange(4) if moment in ("save", "step") else 0)
    seen = 0
    for mark in marks(pipe):
        seen += mark == which
        if seen > after - (moment == "first save") or (moment == "restore" and mark == "save"):
            break
    time.sleep(rng.uniform(0, MOMENTS[moment][1]))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(pipe)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, (folder / "errors.txt").read_text()[-3000:]
        return None
    if list((folder / "checkpoints").glob("*-tmp*")):
        return f"{moment}, half written"
    return moment


def finished(folder, *arguments):
    pid, pipe = started(folder, *arguments)
    for _ in marks(pipe):
        pass
    os.close(pipe)
    _, status = os.waitpid(pid, 0)
    errors = (folder / "errors.txt").read_text()
    assert status == 0, errors[-3000:]
    assert "damaged" not in errors, errors  # what is half written is no checkpoint
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("examples_per_second", None)
        record.pop("first_step_seconds", None)
    with np.load(folder / "final.npz") as file:
        return [file[name] for name in file.files], records


def main(folder, seed, devices, kills):
    folder, rng = Path(folder), random.Random(int(seed))
    arguments = (folder / "cache", int(devices))
    want, want_records = finished(folder / "unbroken", *arguments)
    moments, runs, difference, same_records = Counter(), 0, 0.0, True
    while moments.total() < int(kills):
        directory = folder / f"run-{runs}"
        later = ["step", "restore", "save"]
        rng.shuffle(later)
        for moment in ["first save", *later]:
            if moments.total() == int(kills):
                break
            where = killed(directory, moment, rng, *arguments)
            moments.update([where] if where else [])
        found, records = finished(directory, *arguments)
        for a, b in zip(found, want, strict=True):
            difference = max(difference, float(np.abs(np.float64(a) - np.float64(b)).max()))
        same_records &= records == want_records
        runs += 1
    outcome = {"kills": moments.total(), "runs": runs, "moments": moments}
    outcome |= {"difference": difference, "same_records": same_records}
    print(json.dumps({**outcome, "records": len(want_records)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
