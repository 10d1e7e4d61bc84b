"""Several real processes over loopback are one process with their devices."""

import functools
import os
import re
import shutil
import signal
import socket
import time

import hosts_worker as worker
import jax
import numpy as np
import pytest
from small import Batches, assert_close, host

import jaxops as jo
from jaxops import optim
from jaxops.devices import hosts, plans
from jaxops.trust import report

# each of the processes compiles all programs: optimised, but by the emitters that take half of it
PLAIN = {}
if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:  # set in the root's conftest.py
    PLAIN["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )


class Processes:
    """Workers with one device each; each is killed, whatever it does, after `forks.SECONDS`."""

    def __init__(self, forks, count, folder, *jobs, **environment):
        self.forks, self.folder, self.given = forks, folder, (count, jobs, environment)
        folder.mkdir(parents=True, exist_ok=True)
        self.begin()

    def begin(self):
        count, jobs, environment = self.given
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.all = [
            self._start(i, jobs, {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                                  "JAX_NUM_PROCESSES": str(count), **environment})
            for i in range(count)
        ]  # fmt: skip

    def _start(self, number, jobs, environment):
        return self.forks.start(
            "hosts_worker",
            str(self.folder),
            *jobs,
            out=self.folder / f"out.{number}",
            err=self.err(number),
            environment={"NPROC": None, "JAX_PROCESS_ID": str(number), **environment, **PLAIN},
            config={"jax_platforms": "cpu"},
        )

    def err(self, number):
        return self.folder / f"err.{number}"

    def codes(self):
        return [process.wait() for process in self.all]

    def end_well(self):
        if self.all[0].wait() and "Failed to start RPC server" in self.err(0).read_text():
            for process in self.all:
                process.kill()
                process.wait()
            self.begin()  # once: another program took the port after it was found free
        codes = self.codes()
        said = "\n".join(self.err(i).read_text()[-2000:] for i in range(len(codes)))
        assert codes == [0] * len(codes), said
        return self

    def out(self, number):
        """What Python printed; the collectives' library prints as well."""
        lines = (self.folder / f"out.{number}").read_text().splitlines()
        return [line for line in lines if not line.startswith("[Gloo]")]

    def result(self, job, process=0):
        found = np.load(self.folder / f"{job}.{process}.npz")
        return [found[name] for name in found.files]


@pytest.fixture(scope="module")
def start(forks):
    return functools.partial(Processes, forks)


@pytest.fixture(autouse=True)
def no_process_is_left(monkeypatch):
    made = []
    start = Processes.__init__

    def remember(self, *args, **kwargs):
        made.append(self)
        start(self, *args, **kwargs)

    monkeypatch.setattr(Processes, "__init__", remember)
    yield
    for process in (process for processes in made for process in processes.all):
        process.kill()
        process.wait()


def alone(job, folder):
    return jax.tree.leaves(host(getattr(worker, job)(folder)))


def test_two_processes_train_as_one(start, tmp_path):
    worker.write(tmp_path / "shards")
    found = start(2, tmp_path, "mlp", "streamed", "locked", "unwritten").end_well()
    assert_close(found.result("mlp"), alone("mlp", tmp_path), atol=1e-5)
    want = worker.streamed(tmp_path)
    keys = jax.tree.structure(want)
    for process in range(2):
        streamed = jax.tree.unflatten(keys, found.result("streamed", process))
        for name in ("state", "evaluated"):
            assert_close(streamed[name], host(want[name]), atol=1e-5)
        own = np.arange(101) // 8 % 2 == process  # eight rows of each batch; none of the last
        np.testing.assert_allclose(streamed["predicted"], want["predicted"][own], atol=1e-5)
    for job, wanted in (
        ("locked", "BlockingIOError: .*another run is writing"),
        ("unwritten", "OSError: .*could not be written.* step 1 .*: the disk is full"),
    ):
        said = [(tmp_path / f"{job}.{i}").read_text() for i in range(2)]
        assert said[0] == said[1] and re.match(wanted, said[0]), said
    assert found.out(0) == ["2 processes by their addresses, 2 devices (cpu)"]
    assert found.out(1) == []


@pytest.fixture(scope="module")
def half(start, tmp_path_factory):
    """Two processes have made half of a run, and other things."""
    folder = tmp_path_factory.mktemp("half")
    return start(2, folder, "half", "conv", "stream", "fsdp", "evaluated", "refused").end_well()


@pytest.mark.slow
def test_every_plan_over_processes_is_one_device(start, tmp_path):
    found = start(2, tmp_path, "every_plan").end_well().result("every_plan")
    want = jax.tree.leaves([host(end) for end in worker.every_plan(tmp_path)])
    assert len(found) == len(want) > 20
    for process_ends, alone_ends in zip(found, want, strict=True):
        np.testing.assert_allclose(process_ends, alone_ends, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["conv", "stream", "fsdp"])
def test_batch_norm_streams_and_shards_are_those_of_one_process(half, tmp_path, job):
    assert_close(half.result(job), alone(job, tmp_path), atol=1e-5)


@pytest.mark.slow
def test_evaluation_and_prediction(half, tmp_path):
    want = worker.evaluated(tmp_path)
    keys = jax.tree.structure(want)
    both = [jax.tree.unflatten(keys, half.result("evaluated", i)) for i in range(2)]
    for found in both:
        for name in ("columns", "stream", "predicted", "single"):
            assert_close(found[name], want[name], atol=1e-5)
    own = np.concatenate([found["own"] for found in both])
    np.testing.assert_allclose(own, want["predicted"], atol=1e-5)
    model = jo.load(half.folder / "net.model", worker.CONV)
    np.testing.assert_allclose(model.predict(worker.HELD["image"]), want["predicted"], atol=1e-5)


@pytest.mark.slow
def test_only_the_first_process_writes(half):
    assert half.out(1) == []
    assert any("validation loss" in line for line in half.out(0))
    assert "step" not in half.err(1).read_text()  # no progress bar
    assert len(list((half.folder / "events").iterdir())) == 1
    assert (half.folder / "curves.png").exists()
    records = report.read_json_lines(half.folder / "metrics.jsonl")
    splits = [(r["split"], r["step"]) for r in records]
    assert splits == [(split, step) for step in (7, 10) for split in ("train", "validation")]


@pytest.mark.slow
def test_what_differs_between_processes_is_an_error_in_all(half):
    wanted = {
        "batch_size": "ValueError: batch_size must .* got 16 in process 0 and 8 in process 1",
        "seed": "ValueError: seed must .* got 0 in process 0 and 1 in process 1",
        "every": "ValueError: reports.every must .* got 5 in process 0 and 6 in process 1",
        "data": "ValueError: data must .* in process 1",
        "plan": "ValueError: plan must have devices of all 2 processes, got devices of 1",
        "stream": "ValueError: data must have at least one batch, got an empty stream in process 0",
        "split": r"ValueError: plan must split .* got parts \[0\] of 1 in process 0 of 2",
        "split_in_predict": r"ValueError: plan must split .* got parts \[0\] of 1 in process 0",
        "nan": r"FloatingPointError: the loss is \S+ at step",
    }
    for name, message in wanted.items():
        said = [(half.folder / f"{name}.{i}").read_text() for i in range(2)]
        assert said[0].startswith(("ValueError", "FloatingPointError"))
        assert re.match(message, said[1]), said
        if name != "plan":
            assert said[0] == said[1]


@pytest.mark.slow
def test_four_processes_and_one_go_on_from_the_checkpoint_of_two(start, half, tmp_path):
    want = jax.tree.leaves(host(worker.adam(tmp_path / "unbroken")))
    for count in (1, 4):
        folder = tmp_path / str(count)
        shutil.copytree(half.folder / "checkpoints", folder / "checkpoints")
        if count == 1:
            found = jax.tree.leaves(host(worker.adam(folder)))
        else:
            found = start(4, folder, "adam").end_well().result("adam")
        assert_close(found, want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_ends_the_other_and_a_restart_goes_on(start, tmp_path, victim):
    broken = start(2, tmp_path, "killed", VICTIM=str(victim), SILENCE="10")
    other = broken.all[1 - victim].wait()
    seconds = time.time() - float((tmp_path / "died").read_text())
    assert other not in (0, 137, -9) and seconds < 30, (other, seconds)
    assert broken.err(1 - victim).read_text()
    if victim == 0:
        return
    found = start(2, tmp_path, "killed").end_well()
    want = jax.tree.leaves(host(worker.killed(tmp_path / "unbroken")))
    assert_close(found.result("killed"), want, atol=1e-5)
    steps = [r["step"] for r in report.read_json_lines(tmp_path / "metrics.jsonl")]
    assert steps[-1] == 20
    with pytest.raises(ValueError, match="data must be read by 2 processes, got 1"):
        worker.killed(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_both_at_the_same_step(start, tmp_path, what):
    both = start(2, tmp_path, "preempted")
    while not (tmp_path / "checkpoints" / "10").exists():
        assert both.all[0].poll() is None, both.err(0).read_text()
        time.sleep(0.05)
    both.all[1].send_signal(what)
    start = time.time()
    codes = both.codes()
    assert time.time() - start < 10
    assert codes == ([75, 75] if what == signal.SIGTERM else [75, -signal.SIGINT]), codes
    with jo.Checkpointer(tmp_path / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
    assert 10 < step < 3000
    changes = {"data": Batches(worker.DATA, 16), "steps": step + 9}
    want = worker.adam(tmp_path / "unbroken", **changes)
    assert_close(worker.adam(tmp_path, **changes), want, atol=1e-5)


@pytest.fixture
def initialized(monkeypatch):
    """Calls of `jax.distributed.initialize`, with what JAX finds in the environment filled in."""
    from jax._src.clusters import ClusterEnv

    calls = []

    def record(coordinator, processes, process, **settings):
        detect = ClusterEnv.auto_detect_unset_distributed_params
        found = detect(coordinator, processes, process, None, None, 1)
        if found[0] is None:
            raise ValueError("coordinator_address should be defined.")
        if None in found[:3]:
            raise ValueError("Number of processes must be defined.")
        calls.append((*found[:3], settings["heartbeat_timeout_seconds"]))

    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROCESS")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", record)
    return calls


def test_slurm_is_found(initialized, monkeypatch, capsys):
    slurm = {"JOB_ID": "4711", "STEP_NODELIST": "gpu[007-010],big3", "NTASKS": "8", "PROCID": "3",
             "LOCALID": "1"}  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    jo.devices.start(timeout=30)
    port = 65535 - 2**12 + 1 + 4711 % 2**12
    assert initialized == [(f"gpu007:{port}", 8, 3, 30)]
    assert "processes by SLURM" in capsys.readouterr().out


def test_open_mpi_is_found(initialized, monkeypatch):
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", f"{2**12 * 5}.0;tcp://10.96.0.1,10.1.0.1:34911")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    jo.devices.start()
    assert initialized == [(f"10.96.0.1:{65535 - 2**12 + 1 + 5}", 4, 2, 60)]


def test_addresses_are_arguments_or_in_the_environment(initialized, monkeypatch, capsys):
    jo.devices.start("host:1234", 2, 1)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "other:99")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    jo.devices.start(process=2)
    assert initialized == [("host:1234", 2, 1, 60), ("other:99", 3, 2, 60)]
    assert "by their addresses" in capsys.readouterr().out
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be a whole number, got 'two'"):
        jo.devices.start()


def test_alone_nothing_is_done_or_said(initialized, capsys):
    jo.devices.start()
    jo.devices.start("host:1", processes=1)
    assert initialized == [] and capsys.readouterr().out == ""


def test_arguments_that_cannot_be_meant(initialized):
    with pytest.raises(ValueError, match='coordinator must be "host:port"'):
        jo.devices.start("host", 2, 0)
    with pytest.raises(
        ValueError, match=r"must all be given.*got coordinator None, processes 2, process 0 "
    ):
        jo.devices.start(processes=2, process=0)
    with pytest.raises(ValueError, match=r"must all be given.*processes None"):
        jo.devices.start("host:1", process=0)


def test_start_comes_before_anything_else():
    jax.devices()
    with pytest.raises(ValueError, match="make it the first call of the script"):
        jo.devices.start("localhost:1", 2, 0)


def test_in_one_process_there_is_nothing_to_agree_on():
    assert hosts.count() == 1 and hosts.first() and hosts.every("x") == ["x"]
    assert plans.default() == jo.devices.single()
    assert not hosts.preempted(range(9))


def test_processes_that_have_not_met_are_told_to(monkeypatch, tmp_path):
    state = worker.fit(steps=1)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    for call in (
        lambda: worker.fit(steps=1),
        lambda: jo.evaluate(worker.TASK, state, worker.HELD),
        lambda: jo.predict(worker.TASK, state, worker.HELD),
        lambda: jo.Checkpointer(tmp_path),
    ):
        with pytest.raises(
            ValueError, match=r"4 processes must be connected; call devices.start\(\) first"
        ):
            call()


def test_pmap_is_of_one_process(monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 2)
    with pytest.raises(ValueError, match="pmap_train_step must run in one process, got 2"):
        jo.pmap_train_step(worker.TASK, optim.sgd(0.1))


def test_rows_of_a_batch_that_lie_here():
    sharding = jo.devices.data_parallel().batch_sharding()
    assert hosts.rows_here(sharding, 16).tolist() == list(range(16))
