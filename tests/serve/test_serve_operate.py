"""Keys, roles and quotas; versions that are swapped; metrics and logs; the program itself."""

import asyncio
import contextlib
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

import numpy as np
import pytest
from serve_client import app, ask, churn, get, post

import jaxops as jo
from jaxops import cli, serve
from jaxops.serve import server
from jaxops.serve.access import Keys, is_loopback
from jaxops.serve.refused import Refused

PATH, BODY = "/models/churn/predict", {"rows": [{"rate": 0.03, "plan": "plus"}]}
SETTINGS = serve.Settings(batch_size=1, delay=0.0)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """An application with keys of each role and a folder of models."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        role: serve.add_key(folder / "keys", role, role) for role in ("predict", "metrics", "admin")
    }
    jo.save(folder / "new.safetensors", churn(seed=1))
    service = serve.application(
        {"churn": churn()}, keys=folder / "keys", folder=folder, settings=SETTINGS
    )
    return service, made, folder


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_without_a_right_key_nothing_is_answered(held):
    service, made, _ = held
    wrong = made["predict"][:-1] + ("a" if made["predict"][-1] != "a" else "b")
    for path in ("/v2", "/v2/health/live", "/v2/models/churn", "/metrics", "/models", "/none"):
        for headers in ({}, bearer(wrong), bearer("predict."), {"authorization": made["predict"]},
                        bearer("nobody.x"), bearer("."), bearer("")):  # fmt: skip
            told = get(service, path, **headers)
            assert told.status == 401 and told.headers["www-authenticate"] == "Bearer"
    assert (
        post(service, PATH, BODY).status == post(service, PATH, BODY, **bearer(wrong)).status == 401
    )


@pytest.mark.parametrize(
    ("role", "statuses"),
    [
        ("predict", (200, 403, 403, 200)),
        ("metrics", (403, 200, 403, 200)),
        ("admin", (200, 200, 404, 200)),
    ],
)
def test_a_role_opens_its_routes(held, role, statuses):
    service, made, _ = held
    key = bearer(made[role])
    told = (
        post(service, PATH, BODY, **key),
        get(service, "/metrics", **key),
        post(service, "/admin/models/churn", {"path": "none"}, **key),
        get(service, "/v2/health/ready", **key),
    )
    assert tuple(one.status for one in told) == statuses


def test_a_role_opens_its_routes_wherever_the_application_is_mounted(held, caplog):
    service, made, _ = held
    key = bearer(made["predict"])
    change = ("POST", "/ml/admin/models/churn", {"path": "new.safetensors"})
    with caplog.at_level(logging.INFO, "jaxops.serve"):
        told = asyncio.run(ask(service, *change, root_path="/ml", **key))
        wrong = asyncio.run(ask(service, *change, root_path="/ml", **bearer("admin.wrong")))
    assert (told.status, told.error) == (403, "the key must have the role admin, got predict")
    assert wrong.status == 401
    audit = [json.loads(r.message) for r in caplog.records if r.name.endswith("audit")]
    assert [(one["key"], one["act"]) for one in audit] == [("predict", "refused"), ("", "refused")]
    lines = [json.loads(r.message) for r in caplog.records if r.name == "jaxops.serve"]
    assert [(one["route"], one["status"]) for one in lines] == [("change", 403), ("change", 401)]
    assert asyncio.run(ask(service, "GET", "/ml/metrics", root_path="/ml", **key)).status == 403
    assert (
        asyncio.run(ask(service, "POST", f"/ml{PATH}", BODY, root_path="/ml", **key)).status == 200
    )


def test_few_unknown_keys_are_hashed_at_once(held, monkeypatch):
    service, _, _ = held
    event, holder = threading.Event(), service.keys.holder

    def slow(header):
        assert event.wait(20)
        return holder(header)

    monkeypatch.setattr(service.keys, "holder", slow)

    async def run():
        wrong = [asyncio.create_task(ask(service, "GET", "/v2", **bearer("a.b"))) for _ in range(9)]
        first = await asyncio.wait(wrong, return_when=asyncio.FIRST_COMPLETED)
        event.set()
        return len(first[1]), [one.status for one in await asyncio.gather(*wrong)]

    waiting, statuses = asyncio.run(run())
    assert waiting >= 4 and statuses == [401] * 4 + [429] * 5


def test_a_key_after_a_line_without_an_end_has_a_line_of_its_own(tmp_path):
    serve.add_key(tmp_path / "keys", "a", "predict")
    (tmp_path / "keys").write_text((tmp_path / "keys").read_text().rstrip())
    key = serve.add_key(tmp_path / "keys", "b", "admin")
    assert Keys(tmp_path / "keys").holder(f"Bearer {key}").name == "b"


def test_keys_are_kept_hashed_and_readable_by_the_owner_alone(held):
    _, made, folder = held
    file = folder / "keys"
    text = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600 and len(text.splitlines()) == 3
    for key in made.values():
        assert key not in text and key.partition(".")[2] not in text
    with pytest.raises(ValueError, match=r"name must be new in .*, got 'admin'"):
        serve.add_key(file, "admin", "admin")
    for arguments, sentence in (
        (("a b", "predict"), "name must be of letters"),
        (("a", "all"), "role must be one of predict, metrics, admin, got 'all'"),
        (("a", "predict", -1), "quota must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            serve.add_key(file, *arguments)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [("", "keys must have at least 1 line"), ("a predict 0 00 00", "got another in line 1")],
)
def test_a_file_of_other_lines_is_refused(tmp_path, lines, sentence):
    (tmp_path / "keys").write_text(lines)
    with pytest.raises(ValueError, match=sentence):
        Keys(tmp_path / "keys")


def test_a_quota_counts_the_uses_of_a_minute(tmp_path, monkeypatch):
    key = serve.add_key(tmp_path / "keys", "shop", "predict", quota=2)
    keys = Keys(tmp_path / "keys")
    holder = keys.holder(f"bearer {key}")
    assert keys.known(f"Bearer {key}") == holder and keys.known("Bearer x") is None
    now = [100.0]
    monkeypatch.setattr("jaxops.serve.access.time.monotonic", lambda: now[0])
    keys.admit(holder, "predict")
    keys.admit(holder, "predict")
    keys.admit(holder, "")
    now[0] += 20
    with pytest.raises(Refused, match="at most 2 times a minute") as caught:
        keys.admit(holder, "predict")
    assert caught.value.status == 429 and caught.value.headers == {"retry-after": "41"}
    now[0] += 41
    keys.admit(holder, "predict")


def test_without_keys_only_this_machine_is_answered_and_nothing_is_changed():
    for host, status in (("localhost:8000", 200), ("[::1]:8000", 200), ("127.0.0.1", 200),
                         ("shop.example", 403), ("10.0.0.1:8000", 403), ("", 403)):  # fmt: skip
        assert get(app(), "/v2", host=host).status == status
    for client, status in (("10.0.0.1", 403), ("::1", 200)):
        told = asyncio.run(ask(app(), "GET", "/v2", client=client, host="localhost"))
        assert told.status == status
    told = post(app(), "/admin/models/churn", {"path": "x"})
    assert told.status == 403 and "key of an administrator" in told.error
    with pytest.raises(ValueError, match=r"keys must be given to listen on 0\.0\.0\.0, got none"):
        serve.run(app(), host="0.0.0.0")
    assert not is_loopback("shop.example") and is_loopback("localhost")


def test_versions_are_swapped_and_taken_back_without_a_dropped_request(held, caplog):
    service, made, _ = held
    key = bearer(made["admin"])
    event, begun = threading.Event(), threading.Event()
    first = service.models.get("churn")
    predict = first.predict

    def slow(parts):
        begun.set()
        assert event.wait(20)
        return predict(parts)

    first.predict = slow
    admin = "/admin/models/churn"

    async def run():
        running = asyncio.create_task(ask(service, "POST", PATH, BODY, **key))
        await asyncio.to_thread(begun.wait)
        loaded = await ask(service, "POST", admin, {"path": "new.safetensors"}, **key)
        later = asyncio.create_task(ask(service, "POST", PATH, BODY, **key))
        await asyncio.sleep(0.01)
        event.set()
        return await running, loaded, await later

    with caplog.at_level(logging.INFO, "jaxops.serve"):
        running, loaded, later = asyncio.run(run())
        first.predict = predict
        assert loaded.json == {"model": "churn", "version": "2", "versions": ["1", "2"]}
        assert (running.json["version"], later.json["version"]) == ("1", "2")
        row = {"rate": [0.03], "plan": ["plus"]}
        for told, model in ((running, churn()), (later, churn(seed=1))):
            found = told.json["answer"]["probabilities"]
            np.testing.assert_allclose(found, model.predict(row).probabilities, atol=1e-6)
        back = post(service, admin, {"version": "1"}, **key)
        assert back.json["version"] == "1" and get(service, "/models", **key).json == {
            "models": [{"name": "churn", "version": "1", "versions": ["1", "2"]}]
        }
        assert post(service, admin, {"version": "9"}, **key).status == 404
    audit = [json.loads(one.message) for one in caplog.records if one.name.endswith("audit")]
    told = [(one["key"], one["act"], one["model"], one["outcome"]) for one in audit]
    assert told == [
        ("admin", "load", "churn", "version 2"),
        ("admin", "roll back", "churn", "version 1"),
        ("admin", "roll back", "churn", "Refused"),
    ]
    assert audit[0]["path"] == "new.safetensors"
    third = service.models.add("churn", churn(seed=1))
    assert third.version == "3" and service.models.versions("churn") == ["1", "2", "3"]
    service.models.use("churn", "1")
    service.models.add("churn", churn(seed=1))
    assert service.models.versions("churn") == ["1", "3", "4"]
    service.models.use("churn", "1")


@pytest.mark.parametrize(
    "path", ["../new.safetensors", "/etc/hostname", "link", "a\0b", "x" * 5000, ""]
)
def test_models_come_from_below_the_folder_alone(held, tmp_path, path):
    service, made, folder = held
    if path == "link":
        (tmp_path / "outside").write_text("x")
        (folder / "link").symlink_to(tmp_path / "outside")
    told = post(service, "/admin/models/churn", {"path": path}, **bearer(made["admin"]))
    assert told.status == 404 and "path must be a file below the folder" in told.error


def test_a_file_that_is_no_model_changes_nothing(held):
    service, made, _ = held
    before = service.models.get("churn")
    for body, status in (({"path": "keys"}, 400), ({"path": 3}, 400), ({}, 400), ([], 400)):
        told = post(service, "/admin/models/churn", body, **bearer(made["admin"]))
        assert told.status == status and told.error
    assert service.models.get("churn") is before


def test_a_log_line_is_json_and_holds_nothing_of_the_request(caplog):
    row = {"rows": [{"rate": 0.03, "plan": "ann@example.com"}]}
    with caplog.at_level(logging.INFO, "jaxops.serve"):
        told = post(app(), PATH, row, x_request_id="abc-1")
        wrong = post(
            app(), PATH, {"rows": [{"rate": "ann@example.com", "plan": "a"}]}, x_request_id="a b"
        )
    assert told.headers["x-request-id"] == "abc-1"
    first, second = [json.loads(one.message) for one in caplog.records]
    assert first.pop("milliseconds") > 0 and first.pop("time").endswith("+00:00")
    assert first == {"id": "abc-1", "method": "POST", "route": "predict", "model": "churn",
                     "version": "1", "rows": 1, "status": 200,
                     "bytes": len(json.dumps(row))}  # fmt: skip
    assert (
        re.fullmatch("[0-9a-f]{32}", second["id"]) and second["id"] == wrong.headers["x-request-id"]
    )
    assert "ann" not in caplog.text and wrong.status == second["status"] == 400


@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_a_failure_is_a_500_whose_message_stays_here(error, monkeypatch, caplog):
    served = app().models.get("churn")

    def fails(*_):
        raise error("ann@example.com must not be told")

    monkeypatch.setattr(type(served.model), "outputs", fails)
    with caplog.at_level(logging.INFO, "jaxops.serve"):
        told = post(app(), PATH, BODY)
    assert (told.status, told.error) == (500, "the server failed; its log has the request id")
    failure = json.loads(next(one.message for one in caplog.records if one.levelname == "ERROR"))
    assert failure["error"] == error.__name__
    assert re.search(r"test_serve_operate\.py:\d+$", failure["place"])
    assert "ann" not in caplog.text


def test_metrics_are_what_prometheus_reads():
    parser = pytest.importorskip("prometheus_client.parser")
    for _ in range(3):
        post(app(), PATH, BODY)
    told = get(app(), "/metrics")
    families = {one.name: one for one in parser.text_string_to_metric_families(told.body.decode())}
    assert families["jaxops_requests"].type == "counter"
    assert families["jaxops_request_seconds"].type == "histogram"
    counts = {
        s.value
        for s in families["jaxops_request_seconds"].samples
        if s.name.endswith("_count")
        and s.labels == {"model": "churn", "version": "1", "route": "predict"}
    }
    assert len(counts) == 1 and counts.pop() >= 3
    assert {"jaxops_batch_rows", "jaxops_queue", "jaxops_compilations"} <= families.keys()


def test_the_program_makes_keys(tmp_path, capsys):
    command = ["key", "shop", "--file", f"{tmp_path}/keys", "--role", "metrics", "--quota", "9"]
    assert cli.main(command) == 0
    holder = Keys(tmp_path / "keys").holder(f"Bearer {capsys.readouterr().out.strip()}")
    assert (holder.name, holder.role, holder.quota) == ("shop", "metrics", 9)
    assert cli.main(["serve", f"{tmp_path}/none", "--host", "0.0.0.0"]) == 1
    assert "keys must be given to listen on 0.0.0.0, got none" in capsys.readouterr().err
    for words, got in (
        (["--certificate-key", "k.pem"], "certificate must be given with certificate_key, k.pem"),
        (["--certificate", "c.pem"], "must be files of PEM that belong together, got c.pem and"),
    ):
        assert cli.main(["serve", f"{tmp_path}/none", *words]) == 1
        assert got in capsys.readouterr().err
    assert cli.main(["serve", f"{tmp_path}/a.x", f"{tmp_path}/b/a.x"]) == 1
    assert "models must be files of different names, got 'a' twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_the_program_answers_what_runs_refuses_the_rest_and_ends_with_0(tmp_path, number):
    jo.save(tmp_path / "churn.safetensors", churn())
    command = [sys.executable, "-m", "jaxops", "serve", f"{tmp_path}/churn.safetensors"]
    command += ["--port", "0", "--batch-size", "1"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    body = json.dumps(BODY).encode()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            said = server.stdout.readline()
            match = re.fullmatch(r"serving on 127\.0\.0\.1 port (\d+)\n", said)
            assert match, said + server.stderr.read()
            first, later = (HTTPConnection("127.0.0.1", int(match[1]), timeout=20) for _ in "ab")
            first.putrequest("POST", PATH)
            first.putheader("Content-Length", str(len(body)))
            first.putheader("Expect", "100-continue")
            first.endheaders()
            assert b" 100 " in first.sock.recv(1000)  # this request runs, as its body is wanted
            server.send_signal(number)
            ready = 200
            while ready == 200:
                later.request("GET", "/v2/health/ready")
                with later.getresponse() as told:
                    ready = told.status
                    told.read()
            later.request("POST", PATH, body)
            refused = later.getresponse()
            assert refused.status == 503, refused.read()
            first.send(body)
            told = first.getresponse()
            answer = json.load(told)["answer"]
            for part in (refused, told, first, later):
                part.close()
            _, errors = server.communicate(timeout=30)
        finally:
            server.kill()
    wanted = churn().predict({"rate": [0.03], "plan": ["plus"]})
    np.testing.assert_allclose(answer["probabilities"], wanted.probabilities, atol=1e-5)
    assert server.returncode == 0, errors
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [one["status"] for one in lines if one["route"] == "predict"] == [503, 200]


def test_a_device_that_does_not_answer_does_not_keep_the_process(monkeypatch):
    service = serve.application({"churn": churn()}, settings=SETTINGS)
    event, ended, begun = threading.Event(), [], threading.Event()
    served = service.models.get("churn")

    def held(parts):
        begun.set()
        assert event.wait(60)
        return []

    def client():
        while not port:
            time.sleep(0.01)
        connection = HTTPConnection("127.0.0.1", port[0], timeout=60)
        connection.request("POST", PATH, json.dumps(BODY))
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(OSError, HTTPException):
            connection.getresponse()
        connection.close()

    def end(code):
        ended.append(code)
        event.set()

    port, tell = [], server.tell
    monkeypatch.setattr(served, "predict", held)
    monkeypatch.setattr(
        server, "tell", lambda listening: port.append(listening.getsockname()[1]) or tell(listening)
    )
    monkeypatch.setattr(server, "GRACE", 0.1)
    monkeypatch.setattr(server, "LAST", 0.2)
    monkeypatch.setattr(server.os, "_exit", end)
    thread = threading.Thread(target=client)
    thread.start()
    serve.run(service, port=0)
    assert event.wait(60) and ended == [1]
    thread.join()
