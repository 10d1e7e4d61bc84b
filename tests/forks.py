"""Processes that are forked from one that has imported everything, which takes seconds.

The fixture `forks` of the root's `conftest.py` starts that one, `python forks.py`, for a file of
tests.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

HERE = Path(__file__).parent
SECONDS = 300  # after which a process is killed: a hang fails the test and never blocks
MODULES = ("small", "plans", "hosts_worker", "grain", "orbax.checkpoint", "tensorboardX")


class Forks:
    """Starts processes that have imported `MODULES`, and compile a program once for all of them."""

    def __enter__(self):
        self.programs = tempfile.TemporaryDirectory()
        path = os.pathsep.join([str(HERE.parent), str(HERE)])
        self.parent = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self

    def __exit__(self, *_):
        self.parent.communicate()
        self.programs.cleanup()

    def ask(self, **request):
        print(json.dumps(request), file=self.parent.stdin, flush=True)
        return json.loads(self.parent.stdout.readline())

    def start(self, module, *arguments, out, err, environment=None, config=None):
        """Call `module.main(*arguments)` in a process of its own.

        Args:
            module: name of a module in the path of the tests.
            arguments: of its `main`; what JSON can hold.
            out: file for what it prints.
            err: file for its errors.
            environment: variables to set, or to delete where `None`.
            config: settings of `jax.config`, which variables set no longer.
        """
        settings = {
            "jax_compilation_cache_dir": self.programs.name,
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_disable_most_optimizations": os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1",
        }
        pid = self.ask(
            module=module,
            arguments=arguments,
            files=[str(out), str(err)],
            environment={"XLA_FLAGS": os.environ["XLA_FLAGS"], **(environment or {})},
            config={**settings, **(config or {})},
        )
        return Fork(self, pid)


class Fork:
    """One process, as `subprocess.Popen` has it."""

    def __init__(self, forks, pid):
        self.forks, self.pid, self.code = forks, pid, None

    def poll(self):
        if self.code is None:
            self.code = self.forks.ask(poll=self.pid)
        return self.code

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return self.code

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def serve():
    """Fork for every request, and tell how a process ended; in such a process, its request."""
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return request
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def run(module, arguments, files, environment, config):
    """What a new process does; it ends as one that Python has just started would."""
    signal.alarm(SECONDS)
    for target, name in zip((0, 1, 2), (os.devnull, *files), strict=True):
        source = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (name != os.devnull))
        os.dup2(source, target)
        os.close(source)
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for name, value in config.items():
        jax.config.update(name, value)
    importlib.import_module(module).main(*arguments)


if __name__ == "__main__":
    for each in MODULES:
        importlib.import_module(each)
    gc.freeze()
    request = serve()
    if request:
        run(**request)
