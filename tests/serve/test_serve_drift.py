"""The drift that a server tells in its metrics, and the sketches that it leaves in a folder."""

import datetime
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from serve_client import TABLE, churn, get, post

from jaxops import monitor, serve
from jaxops.data.encoders import encode
from jaxops.serve.sketching import Shared, Snapshots, families

PATH = "/models/churn/predict"


RATE = TABLE["rate"] + 0.0002  # on no edge, which are half-way between whole thousandths


def body(rows):
    plans = [*TABLE["plan"][: rows - 1], "silver"]  # the last one is new
    rates = [None if x != x else x for x in RATE[:rows].tolist()]
    return {"rows": {"rate": rates, "plan": plans}}


@pytest.fixture(scope="module")
def service():
    settings = serve.Settings(batch_size=8, delay=0.0)
    return serve.application({"churn": churn()}, settings=settings)


def counted(rows):
    """The sketch of a body, by NumPy."""
    model = churn()
    given = {"rate": RATE[:rows], "plan": np.array(body(rows)["rows"]["plan"], object)}
    columns = encode(model.reader.encoder._replace(label=None), given)
    p = model.outputs(columns)
    return monitor.update(model.reference, None, columns, p, np.ones(rows), np)


def test_metrics_have_the_drift_of_each_column(service):
    model, fresh = churn(), get(service, "/metrics").body.decode()
    assert 'jaxops_observed_rows_total{model="churn",version="1"} 0.0' in fresh
    assert "jaxops_drift_psi{" not in fresh  # of no rows
    assert post(service, PATH, body(40)).status == 200
    told = get(service, "/metrics").body.decode()

    def metric(name, column):
        line = rf'jaxops_{name}{{column="{column}",model="churn",version="1"}} (\S+)'
        return float(re.search(line, told)[1])

    assert 'jaxops_observed_rows_total{model="churn",version="1"} 40.0' in told
    drift = monitor.psi_of(model.reference, counted(40))
    assert drift.keys() == {"rate", "prediction", "plan"}
    for name, value in drift.items():
        assert metric("drift_psi", name) == pytest.approx(value)
    assert metric("out_of_range_rate", "plan") == 1 / 40
    assert metric("missing_rate", "rate") == np.isnan(TABLE["rate"][:40]).mean() > 0


def values(text, name):
    """Column -> value of a metric."""
    line = rf'^jaxops_{name}{{column="(\w+)",model="churn",version="1"}} (\S+)$'
    return {column: float(value) for column, value in re.findall(line, text, re.MULTILINE)}


def test_metrics_have_the_drift_of_the_last_hour(service, monkeypatch):
    service.models.get("churn").model.observer.clear()
    real, rows = time.monotonic, 'jaxops_observed_rows_hour{model="churn",version="1"}'
    post(service, PATH, body(40))
    told = get(service, "/metrics").body.decode()
    assert f"{rows} 40.0" in told
    assert values(told, "drift_psi_hour") == values(told, "drift_psi") != {}
    monkeypatch.setattr(time, "monotonic", lambda: real() + 3700)
    told = get(service, "/metrics").body.decode()
    assert f"{rows} 0.0" in told and len(values(told, "drift_psi")) == 3
    assert values(told, "drift_psi_hour") == {}  # of no rows
    post(service, PATH, body(20))
    told = get(service, "/metrics").body.decode()
    assert f"{rows} 20.0" in told and values(told, "observed_rows_total") == {}
    wanted = monitor.psi_of(churn().reference, counted(20))
    assert values(told, "drift_psi_hour") == pytest.approx(wanted)
    assert values(told, "out_of_range_rate_hour")["plan"] == 1 / 20
    missing = np.isnan(TABLE["rate"][:20]).mean()
    assert values(told, "missing_rate_hour")["rate"] == missing
    wanted = monitor.psi_of(churn().reference, monitor.merge(counted(40), counted(20)))
    assert values(told, "drift_psi") == pytest.approx(wanted)


def test_workers_tell_their_drift_together(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    workers = [serve.Models(batch_size=1) for _ in range(2)]
    for number, (models, rows) in enumerate(zip(workers, (20, 30), strict=True)):
        served = models.add("churn", churn())
        served.predict([served.inputs.read(body(rows), 100)])
        shared = Shared(models)
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda number=number: number)
            shared.write()
            times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npz")}
            shared.write()  # nothing new
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npz")} == times
    total = monitor.merge(counted(20), counted(30))
    wanted = monitor.psi_of(churn().reference, total)
    for models in workers:  # whichever is asked
        found = {one.name: one.samples for one in families(models)}
        assert [one.value for one in found["jaxops_observed_rows"]] == [50]
        assert [one.value for one in found["jaxops_observed_rows_hour"]] == [50]
        for name in ("jaxops_drift_psi", "jaxops_drift_psi_hour"):
            told = {one.labels["column"]: one.value for one in found[name]}
            assert told == pytest.approx(wanted)
    assert len([*tmp_path.rglob("*")]) == 3  # a folder, and a file of each worker


def test_sketches_in_a_folder_are_those_of_the_rows_since_the_last(service, tmp_path):
    reference, failures = churn().reference, []
    served = service.models.get("churn")
    served.model.observer.clear()
    begin = datetime.datetime.now(datetime.UTC)
    first = Snapshots(service.models, tmp_path / "all", 60.0, failures.append)
    assert post(service, PATH, body(20)).status == 200
    first.write()
    assert post(service, PATH, body(30)).status == 200
    first.start()
    first.close()
    first.write()  # no rows since, and so no file
    two = monitor.read_snapshots(tmp_path / "all", reference)
    assert [int(one.sketch.counts[0]) for one in two] == [20, 30] and not failures
    assert two[0].start <= begin <= two[0].end <= two[1].start <= two[1].end
    [merged] = monitor.read_snapshots(tmp_path / "all", reference, model="churn", whole=True)
    wanted = monitor.merge(counted(20), counted(30))
    np.testing.assert_array_equal(merged.sketch.counts, wanted.counts)
    other = churn(seed=1).reference
    assert monitor.read_snapshots(tmp_path / "all", other) == []
    (tmp_path / "all" / "odd.sketch").write_bytes(b"no sketch")
    with pytest.raises(ValueError, match=r"odd\.sketch must be a sketch of jaxops, got another"):
        monitor.read_snapshots(tmp_path / "all", reference)
    assert post(service, PATH, body(2)).status == 200
    full = Snapshots(service.models, tmp_path / "gone", 60.0, failures.append)
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_text("a file where the folder was")
    full.write()  # is told, and the server goes on
    assert len(failures) == 1 and isinstance(failures[0], OSError)
    (tmp_path / "gone").unlink()
    assert post(service, PATH, body(3)).status == 200
    full.write()  # has what could not be written then
    [late] = monitor.read_snapshots(tmp_path / "gone", reference)
    assert late.sketch.counts[0] == 5 and late.start < late.end


def test_a_version_that_is_unloaded_is_written_once_more(service, tmp_path):
    served = service.models.get("churn")
    served.model.observer.clear()

    models = SimpleNamespace(loaded=lambda: [served])
    writer = Snapshots(models, tmp_path, 60.0, lambda error: None)
    writer.write()
    served.predict([served.inputs.read(body(4), 100)])
    models.loaded = list
    writer.write()
    [one] = monitor.read_snapshots(tmp_path, churn().reference)
    assert one.sketch.counts[0] == 4
    assert not writer._before  # and is let go


def observed(models):
    """Version -> rows counted, as the metrics tell."""
    *_, rows = families(models)
    return {one.labels["version"]: one.value for one in rows.samples}


def test_the_rows_of_a_version_that_is_unloaded_are_written_too(tmp_path):
    models, failures = serve.Models(batch_size=1), []
    old = models.add("churn", churn())
    writer = Snapshots(models, tmp_path, 60.0, failures.append)
    models.add("churn", churn(), canary=0.5)
    old.predict([old.inputs.read(body(3), 100)])
    assert observed(models) == {"1": 3, "2": 0}
    models.use("churn", "2")
    assert observed(models) == {"2": 0}, "a version that has no requests has no drift"
    models.unload("churn", "1")
    writer.write()
    writer.write()
    [one] = monitor.read_snapshots(tmp_path, churn().reference)
    assert (one.version, one.sketch.counts[0], failures) == ("1", 3, [])


def test_a_warned_batch_that_is_asked_again_is_counted_once(service):
    """Texts that the reader warns of make it answer joined requests apart."""
    served = service.models.get("churn")
    served.model.observer.clear()
    new = {"rows": {"rate": [0.03] * 20, "plan": ["silver"] * 20}}
    parts = [served.inputs.read(new, 100) for _ in range(2)]
    with pytest.raises(ValueError, match="requests must be asked apart"):
        served.predict(parts)
    for part in parts:
        [told] = served.predict([part])
        assert "plan" in told.warnings[0]
    assert served.model.observer.sketch().counts[0] == 40


def test_a_server_with_a_folder_writes_at_the_end(service, tmp_path, monkeypatch):
    from jaxops.serve import server

    served = service.models.get("churn")
    served.model.observer.clear()
    with pytest.raises(ValueError, match="interval must be above 0 seconds, got 0"):
        serve.run(service, sketches=tmp_path, interval=0.0)

    class Once:
        """What uvicorn gives to `run`, that ends at once."""

        started, servers, should_exit = False, (), False

        def __init__(self, config):
            pass

        async def serve(self, sockets=None):
            served.predict([served.inputs.read(body(3), 100)])

    import uvicorn

    monkeypatch.setattr(uvicorn, "Server", Once)
    for _ in range(2):
        server.run(service, sketches=tmp_path / "s", interval=60.0)
    assert len(server.LOG.handlers) == 1
    both = monitor.read_snapshots(tmp_path / "s", churn().reference)
    assert [(one.sketch.counts[0], one.version) for one in both] == [(3, "1")] * 2
