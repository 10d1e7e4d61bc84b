"""Shares of the requests for new versions, unloading, and several workers."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from serve_client import app, ask, churn, get, post

import jaxops as jo
from jaxops import cli, serve
from jaxops.serve.access import Keys
from jaxops.serve.refused import Refused
from jaxops.serve.rollout import compared
from jaxops.serve.watch import Record
from jaxops.serve.workers import check_quotas, run_workers

PATH, ADMIN, BODY = (
    "/models/churn/predict",
    "/admin/models/churn",
    {"rows": [{"rate": 0.03, "plan": "plus"}]},
)
ROW = {"rate": [0.03], "plan": ["plus"]}
INFER = "/v2/models/churn/infer"


def tensors(model):
    """A body of the columns that a model encodes; other models may encode other columns."""
    value = model.reader.columns(ROW)[1]["features"]
    one = {"name": "features", "shape": [*value.shape], "datatype": "FP32"}
    return {"inputs": [one | {"data": value.ravel().tolist()}]}


@pytest.fixture
def held(tmp_path):
    """An application of one model, the header of an administrator, and a new version's file."""
    key = serve.add_key(tmp_path / "keys", "ann", "admin")
    jo.save(tmp_path / "new.safetensors", churn(seed=1))
    settings = serve.Settings(batch_size=1, delay=0.0)
    service = serve.application(
        {"churn": churn()}, keys=tmp_path / "keys", folder=tmp_path, settings=settings
    )
    return service, {"authorization": f"Bearer {key}"}


def samples(service, name, **labels):
    """The sum of the samples of a metric that have these labels."""
    service.watch.look()
    return sum(
        one.value
        for family in service.watch._registry.collect()
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    )


async def until(is_so, seconds=20):
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.001)


def audited(caplog):
    return [json.loads(one.message) for one in caplog.records if one.name.endswith("audit")]


def test_a_share_of_all_ids_gets_the_canary_and_keeps_it():
    models = serve.Models(batch_size=1)
    models.add("churn", churn())
    models.add("churn", churn(seed=1), canary=0.2)
    ids = [f"id-{i}" for i in range(4000)]

    def new():
        return {id for id in ids if models.get("churn", id=id).version == "2"}

    few = new()
    assert new() == few and binomtest(len(few), len(ids), 0.2).pvalue > 1e-4
    models.canary("churn", "2", 0.5)
    many = new()
    assert few < many and binomtest(len(many), len(ids), 0.5).pvalue > 1e-4
    assert models.get("churn").version == "1"  # what is asked for without an id
    models.canary("churn", "2", 1)
    assert new() == {*ids}
    models.canary("churn", "2", 0)
    assert not new() and models.told("churn") == {"version": "1", "versions": ["1", "2"]}
    models.add("churn", churn(seed=1), canary=0.2)
    other = {id for id in ids if models.get("churn", id=id).version == "3"}
    assert 0 < len(other & few) < 0.5 * len(few), "each version has ids of its own"
    assert models.shadow_of("churn", "id-0") is None


def test_a_canary_is_loaded_given_a_share_promoted_and_taken_back(held, caplog):
    service, key = held

    def change(**body):
        return post(service, ADMIN, body, **key)

    with caplog.at_level(logging.INFO, "jaxops.serve.audit"):
        told = change(path="new.safetensors", canary=0.3).json
        assert told == {"model": "churn", "version": "1", "versions": ["1", "2"],
                        "canary": {"version": "2", "share": 0.3}}  # fmt: skip
        seen = {}
        for id in (f"r{i}" for i in range(40)):
            answer = post(service, PATH, BODY, x_request_id=id, **key).json
            seen[id] = answer["version"]
            model = churn(seed=int(answer["version"]) - 1)
            found = answer["answer"]["probabilities"]
            np.testing.assert_allclose(found, model.predict(ROW).probabilities, atol=1e-6)
        assert {*seen.values()} == {"1", "2"}
        for id in ("r0", "r1", "r2", "r3"):
            again = post(service, PATH, BODY, x_request_id=id, **key)
            assert again.json["version"] == seen[id]
        assert get(service, "/models", **key).json["models"][0]["canary"]["share"] == 0.3
        assert get(service, "/v2/models/churn", **key).status == 200
        for version in ("1", "2"):
            labels = {"model": "churn", "version": version, "route": "predict", "status": "200"}
            count = [*seen.values()].count(version)
            first = sum(seen[id] == version for id in ("r0", "r1", "r2", "r3"))
            assert samples(service, "jaxops_requests_total", **labels) == count + first
            path = INFER.replace("/infer", f"/versions/{version}/infer")
            body = tensors(churn(seed=int(version) - 1))
            assert post(service, path, body, **key).json["model_version"] == version
        assert change(version="2", canary=0.6).json["canary"] == {"version": "2", "share": 0.6}
        promoted = change(version="2").json
        assert promoted == {"model": "churn", "version": "2", "versions": ["1", "2"]}
        assert post(service, PATH, BODY, **key).json["version"] == "2"
        assert change(version="1").json["version"] == "1"
        assert post(service, PATH, BODY, **key).json["version"] == "1"
        for body, sentence in (
            ({"version": "1", "canary": 0.5}, "must not be the one that answers by default, got 1"),
            ({"version": "2", "canary": 1.5}, "canary must be a share above 0 and at most 1"),
            ({"version": "2", "canary": True}, "canary must be a share above 0 and at most 1"),
            ({"version": "2", "canary": 0}, "version must have a share as canary to end, got 2"),
            ({"version": "2", "canary": "x"}, "the body must be"),
            ({"version": "2", "canary": 0.1, "shadow": 0.1}, "the body must be"),
            ({"version": "2", "path": "x"}, "the body must be"),
            ({"canary": 0.1}, "the body must be"),
        ):
            told = post(service, ADMIN, body, **key)
            assert told.status == 400 and sentence in told.error, told.error
        other = post(
            service, "/admin/models/none", {"path": "new.safetensors", "canary": 0.1}, **key
        )
        assert other.status == 404 and "model must be one of churn" in other.error
    acts = [(one["key"], one["act"], one["outcome"]) for one in audited(caplog)]
    assert acts[:4] == [
        ("ann", "load", "version 2"),
        ("ann", "canary", "version 2"),
        ("ann", "promote", "version 2"),
        ("ann", "roll back", "version 1"),
    ]
    assert audited(caplog)[0]["canary"] == 0.3 and audited(caplog)[1]["version"] == "2"
    assert {one["outcome"] for one in audited(caplog)[4:]} == {"ValueError", "Refused"}


def test_no_request_is_dropped_while_versions_and_shares_change(held):
    service, key = held
    wanted = {seed: churn(seed).predict(ROW).probabilities for seed in (0, 1)}

    async def run():
        changing, told = True, []

        async def client(name):
            number = 0
            while changing:
                number += 1
                told.append(
                    await ask(service, "POST", PATH, BODY, x_request_id=f"{name}-{number}", **key)
                )

        await ask(service, "GET", "/v2", **key)  # a key that is new is hashed
        clients = [asyncio.create_task(client(name)) for name in "abcd"]
        acts = (
            ("POST", ADMIN, {"path": "new.safetensors", "canary": 0.5}),
            ("POST", ADMIN, {"version": "2", "canary": 0.9}),
            ("POST", ADMIN, {"version": "2"}),
            ("DELETE", f"{ADMIN}/versions/1", None),
            ("POST", ADMIN, {"path": "new.safetensors", "shadow": 1.0}),
            ("POST", ADMIN, {"version": "3"}),
            ("DELETE", f"{ADMIN}/versions/2", None),
        )
        for method, path, body in acts:
            before = len(told)
            changed = await ask(service, method, path, body, **key)
            assert changed.status == 200, changed.error
            await until(lambda before=before: len(told) > before + 20)
        changing = False
        await asyncio.gather(*clients)
        return told

    told = asyncio.run(run())
    assert {one.status for one in told} == {200}
    assert {one.json["version"] for one in told} == {"1", "2", "3"}
    for one in told:
        right = wanted[0 if one.json["version"] == "1" else 1]
        np.testing.assert_allclose(one.json["answer"]["probabilities"], right, atol=1e-6)
    assert service.models.versions("churn") == ["3"]


def test_a_shadow_is_asked_and_counted_and_never_answers(held, monkeypatch):
    service, key = held
    threads = set()

    def seen(*answers):
        threads.add(threading.current_thread().name.rpartition("_")[0])
        return compared(*answers)

    monkeypatch.setattr("jaxops.serve.rollout.compared", seen)
    count = {"model": "churn", "version": "1", "shadow": "2"}

    def answers(outcome):
        return samples(service, "jaxops_shadow_answers_total", outcome=outcome, **count)

    body = tensors(churn())

    async def run(wanted):
        told = [await ask(service, "POST", PATH, BODY, **key) for _ in range(3)]
        told.append(await ask(service, "POST", INFER, body, **key))
        direct = INFER.replace("/infer", "/versions/1/infer")
        assert (await ask(service, "POST", direct, body, **key)).status == 200
        await until(lambda: sum(map(answers, wanted)) == 4)
        return told

    service.models.add("churn", churn(), shadow=1.0)  # the same model: it tells the same
    assert service.models.told("churn")["shadow"] == {"version": "2", "share": 1.0}
    told = asyncio.run(run(["equal"]))
    assert [one.json.get("version", "1") for one in told] == ["1"] * 4
    assert answers("equal") == 4 and answers("other") == 0
    service.models.add("churn", churn(seed=1), shadow=1.0)
    count["shadow"] = "3"
    asyncio.run(run(["fractions", "other", "failed"]))
    assert answers("failed") == 1  # the other model has other columns than the tensors
    largest = samples(service, "jaxops_shadow_difference_sum", **count)
    old, new = (churn(seed).predict(ROW).probabilities for seed in (0, 1))
    assert largest == pytest.approx(3 * np.abs(old - new).max(), abs=1e-5)
    assert threads == {"asyncio"}, "a comparison takes no time of the device"
    large, asked = np.zeros(service.settings.body // 8 + 1), Record("id", "POST")
    asked.model, asked.version = "churn", "1"
    service.shadows.ask(asked, "predict", None, large, 0)
    assert answers("dropped") == 1, "a large answer is not kept"
    service.models.shadow("churn", "3", 0)
    asyncio.run(ask(service, "POST", PATH, BODY, **key))
    assert service.models.shadow_of("churn", "any") is None


def test_a_shadow_neither_fails_nor_holds_a_request(held, caplog):
    service, key = held
    service.models.add("churn", churn(seed=1), shadow=1.0)
    shadow, event = service.models.get("churn", "2"), threading.Event()

    def fails(parts):
        assert event.wait(20)
        raise KeyError("ann@example.com")

    shadow.predict = fails

    def answers(outcome):
        return samples(service, "jaxops_shadow_answers_total", outcome=outcome)

    async def run():
        told = await ask(service, "POST", PATH, BODY, **key)  # answered while the shadow is held
        await until(lambda: service.batcher.busy)
        event.set()
        await until(lambda: answers("failed") == 1)
        event.clear()
        service.batcher.busy += 1  # a device that has no time for shadows
        many = [await ask(service, "POST", PATH, BODY, **key) for _ in range(70)]
        await until(lambda: answers("dropped") > 0)
        service.batcher.busy -= 1
        event.set()
        await until(lambda: answers("failed") + answers("dropped") == 71)
        return [told, *many]

    with caplog.at_level(logging.INFO, "jaxops.serve"):
        told = asyncio.run(run())
    assert {(one.status, one.json["version"]) for one in told} == {(200, "1")}
    assert 1 <= answers("dropped") <= 6 and "ann@" not in caplog.text
    failure = json.loads(next(one.message for one in caplog.records if one.levelname == "ERROR"))
    assert failure["error"] == "KeyError"


def test_answers_are_compared():
    one = {"labels": ["a", "b"], "p": np.array([0.5, np.nan]), "k": np.array([1, 2])}
    assert compared(one, one) == ("equal", 0.0)
    assert compared(one, {**one, "p": np.array([0.5 + 1e-9, np.nan])})[0] == "equal"
    assert compared(one, {**one, "p": np.array([0.75, np.nan])}) == ("fractions", 0.25)
    assert compared(one, {**one, "p": np.array([0.5, 0.5])})[0] == "other"
    assert compared(one, {**one, "k": np.array([1, 3])}) == ("other", 0.0)
    assert compared(one, {**one, "labels": ["a", "c"]})[0] == "other"
    assert compared(one, {**one, "labels": ["a"]}) == ("other", None)


def test_a_version_is_unloaded_and_the_last_one_only_when_it_is_said(held, caplog):
    service, key = held
    event, begun = threading.Event(), threading.Event()
    service.models.add("churn", churn(seed=1), canary=1.0)
    second = service.models.get("churn", "2")
    predict = second.predict

    def slow(parts):
        begun.set()
        assert event.wait(20)
        return predict(parts)

    second.predict = slow

    async def unload(path, **headers):
        return await ask(service, "DELETE", path, **key, **headers)

    async def run():
        running = asyncio.create_task(ask(service, "POST", PATH, BODY, **key))
        await asyncio.to_thread(begun.wait)
        gone = await unload(f"{ADMIN}/versions/2")
        event.set()
        return gone, await running

    with caplog.at_level(logging.INFO, "jaxops.serve.audit"):
        gone, running = asyncio.run(run())
        assert gone.json == {"model": "churn", "unloaded": ["2"], "version": "1", "versions": ["1"]}
        assert running.status == 200 and running.json["version"] == "2"
        assert asyncio.run(unload(f"{ADMIN}/versions/2")).status == 404
        last = asyncio.run(unload(f"{ADMIN}/versions/1"))
        assert last.status == 409 and "last must be true to unload all of churn" in last.error
    assert [(one["act"], one["version"], one["outcome"]) for one in audited(caplog)] == [
        ("unload", "2", "version 2"), ("unload", "2", "Refused"), ("unload", "1", "Refused"),
    ]  # fmt: skip
    service.models.add("churn", churn(seed=1))
    assert service.models.versions("churn") == ["1", "3"]  # no number is used again
    with pytest.raises(Refused, match="one that answers by default, got 3; let another one"):
        service.models.unload("churn", "3")
    assert service.models.unload("churn", last=True) == ["1", "3"]
    missing = post(service, PATH, BODY, **key)
    assert missing.status == 404 and "model must be one of none, got 'churn'" in missing.error
    assert get(service, "/models", **key).json == {"models": []}
    assert post(service, ADMIN, {"path": "new.safetensors"}, **key).json["version"] == "4"


def test_the_query_of_unloading_is_checked(held):
    service, key = held
    told = asyncio.run(ask(service, "DELETE", f"{ADMIN}?last=yes", **key))
    assert told.status == 400 and "the query must be last=true" in told.error
    told = asyncio.run(ask(service, "DELETE", f"{ADMIN}?last=true", **key))
    assert told.json == {"model": "churn", "unloaded": ["1"], "versions": []}


def test_an_encrypted_version_is_loaded_by_the_key_of_the_server(tmp_path, capsys):
    pytest.importorskip("cryptography")
    key, admin = "ab" * 32, serve.add_key(tmp_path / "keys", "ann", "admin")
    jo.save(tmp_path / "new.safetensors", churn(seed=1), key=key)
    jo.save(tmp_path / "plain.safetensors", churn(seed=1))
    settings = serve.Settings(batch_size=1)
    made = {"keys": tmp_path / "keys", "folder": tmp_path, "settings": settings}
    service = serve.application({"churn": churn()}, **made, model_key=key)
    head = {"authorization": f"Bearer {admin}"}
    assert post(service, ADMIN, {"path": "new.safetensors"}, **head).json["version"] == "2"
    plain = post(service, ADMIN, {"path": "plain.safetensors"}, **head)
    assert plain.status == 400 and "path must be an encrypted file" in plain.error
    other = serve.application({"churn": churn()}, **made)
    told = post(other, ADMIN, {"path": "new.safetensors"}, **head)
    assert told.status == 400 and "key must be given for" in told.error
    (tmp_path / "raw").write_bytes(b"\xff" * 32)
    command = ["serve", f"{tmp_path}/new.safetensors", "--model-key", f"{tmp_path}/raw"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "key must be 32 bytes or 64 hexadecimal digits" in said and "ff" not in said


def test_with_several_workers_nothing_is_changed_and_quotas_are_refused(held, tmp_path, capsys):
    service, key = held
    service.workers = 2
    for told in (
        post(service, ADMIN, {"version": "1"}, **key),
        asyncio.run(ask(service, "DELETE", ADMIN, **key)),
    ):
        assert told.status == 409 and "in a server of one worker, got one of 2" in told.error
    command = ["serve", f"{tmp_path}/new.safetensors", "--workers"]
    assert cli.main([*command, "0"]) == 1
    assert "workers must be at least 1, got 0" in capsys.readouterr().err
    assert cli.main([*command, "2", "--folder", f"{tmp_path}"]) == 1
    assert "folder must be left out with several workers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="workers must be at least 2, got 1"):
        run_workers(app, workers=1)
    check_quotas(service.keys)
    serve.add_key(tmp_path / "keys", "shop", "predict", quota=5)
    with pytest.raises(ValueError, match=r"keys must have no quota .*, got that of shop"):
        check_quotas(Keys(tmp_path / "keys"))


def test_a_limit_that_cannot_be_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "churn.safetensors", "--batch-size", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "jaxops: error: batch_size must be above 0, got 0\n"


def workers_of(pid):
    """The processes that another one has spawned to serve."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_a_killed_worker_comes_back_and_costs_its_own_requests_alone(tmp_path):
    jo.save(tmp_path / "churn.safetensors", churn())
    command = [sys.executable, "-m", "jaxops", "serve", f"{tmp_path}/churn.safetensors"]
    command += ["--port", "0", "--batch-size", "1", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    told, failed, stop, log = [], [], threading.Event(), tmp_path / "log"

    def client(port):
        while not stop.is_set():
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("POST", PATH, json.dumps(BODY))
                with connection.getresponse() as answer:
                    told.append((answer.status, answer.read()))
            except (OSError, HTTPException) as error:
                failed.append(error)
            connection.close()
            time.sleep(0.03)

    def wait_for(is_so):
        end = time.monotonic() + 120
        while not is_so():
            assert time.monotonic() < end and server.poll() is None, log.read_text()
            time.sleep(0.02)

    with (
        open(log, "w") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server,
    ):
        try:
            said = re.fullmatch(r"serving on 127\.0\.0\.1 port (\d+)\n", server.stdout.readline())
            assert said, log.read_text()
            port, before = int(said[1]), workers_of(server.pid)
            assert len(before) == 2
            threads = [threading.Thread(target=client, args=(port,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(told) > 50)
            killed = min(before)
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: log.read_text().count("a worker serves") == 3)
            after, count = workers_of(server.pid), len(told)
            wait_for(lambda: len(told) > count + 50)
            stop.set()
            for thread in threads:
                thread.join()
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/metrics")
            with connection.getresponse() as answer:
                metrics = answer.read().decode()
            connection.close()
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        finally:
            stop.set()
            server.kill()  # the workers end with it
    assert server.returncode == 0, log.read_text()
    assert len(after) == 2 and killed not in after and before - {killed} < after
    assert len(failed) <= len(threads) and {status for status, _ in told} == {200}
    answers = {answer for _, answer in told}
    assert len(answers) == 1 and json.loads(answers.pop())["version"] == "1"
    found = re.search(r'^jaxops_requests_total\{.*"predict".*"200".*\} (\S+)$', metrics, re.M)
    assert len(told) - len(threads) <= float(found[1]) <= len(told) + len(failed)
    lines = [json.loads(one) for one in log.read_text().splitlines()]
    again = [one for one in lines if one.get("act") == "start a worker again"]
    assert [(one["worker"], one["exit_code"]) for one in again] == [(killed, -signal.SIGKILL)]
