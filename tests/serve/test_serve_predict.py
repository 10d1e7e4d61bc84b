"""The route that takes raw input: what it answers, and what it refuses before a model sees it."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image
from serve_client import TABLE, app, churn, get, post, router

from jaxops import forecast, language, recommend, serve, survival, vision
from jaxops.data import Tokenizer
from jaxops.model.finished import Classes, Model
from jaxops.serve import inputs
from jaxops.serve.answers import as_object, cut, plain
from jaxops.serve.fields import Field, opened_body
from jaxops.serve.readers import inputs_of
from jaxops.serve.refused import Refused
from jaxops.task import Column

ROWS = [{"rate": 0.031, "plan": "plus"}, {"rate": None, "plan": "gold"}]
COLUMNS = {"rate": [0.031, None], "plan": ["plus", "gold"]}


@pytest.mark.parametrize("rows", [ROWS, COLUMNS])
def test_rows_of_a_table_are_answered_as_the_model_does(rows):
    told = post(app(), "/models/churn/predict", {"rows": rows})
    wanted = churn().predict({"rate": [0.031, np.nan], "plan": ["plus", "gold"]})
    assert told.status == 200 and told.headers["content-type"] == "application/json"
    assert (told.json["model"], told.json["version"]) == ("churn", "1")
    answer = told.json["answer"]
    assert answer["ids"] == [0, 1] and answer["classes"] == ["no", "yes"]
    assert answer["labels"] == wanted.labels.tolist()
    np.testing.assert_allclose(answer["probabilities"], wanted.probabilities, atol=1e-6)


def test_texts_are_answered_with_names():
    answer = post(app(), "/models/router/predict", {"texts": ["lost card", "pin"]}).json["answer"]
    wanted = router().predict(["lost card", "pin"])
    assert answer["labels"] == wanted.labels.tolist()
    assert answer["in_scope"] == wanted.in_scope.tolist()
    np.testing.assert_allclose(answer["probabilities"], wanted.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "the body must be JSON in UTF-8, got an error: Expecting value"),
        (b"[1]", 400, "the body must be an object, got a list"),
        (b"\xff", 400, "the body must be JSON in UTF-8"),
        (b'{"rows": [{"rate": NaN, "plan": "a"}]}', 400, "NaN is no number of JSON; null stands"),
        (b'{"rows": [{"rate": 1, "rate": 2, "plan": "a"}]}', 400, "a name stands twice"),
        (b'{"rows": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, ""),
        (b'{"rows": [{"rate": 1e999, "plan": "a"}]}', 400, "a number or null, got inf in row 0"),
        (b'{"rows": [{"rate": 1' + b"0" * 5000 + b', "plan": "a"}]}', 400, "must be JSON"),
        (
            b'{"rows": [{"rate": 1, "plan": "\\ud800"}]}',
            400,
            "plan must be a text or null, got '\\u",
        ),
        ({"rows": []}, 400, "rows must be a list of at least 1 row, got a list"),
        ({"rows": [{"rate": 1}]}, 400, "must have the column 'plan' (null stands for a missing"),
        (
            {"rows": [*ROWS, {"rate": 1, "plan": "a", "city": "x"}]},
            400,
            "rows must have the columns rate, plan, got 'city' in row 2",
        ),
        (
            {"rows": [{"rate": "31", "plan": "a"}]},
            400,
            "rate must be a number or null, got '31' in",
        ),
        (
            {"rows": [{"rate": True, "plan": "a"}]},
            400,
            "rate must be a number or null, got True in",
        ),
        ({"rows": [{"rate": 1e39, "plan": "a"}]}, 400, "got 1e+39 in row 0"),
        (
            {"rows": [*ROWS, {"rate": 1, "plan": 1.5}]},
            400,
            "plan must be a text or null, got 1.5 in",
        ),
        ({"rows": [1]}, 400, "rows must be objects, got 1 in row 0"),
        ({"rows": {"rate": [1], "plan": ["a", "b"]}}, 400, "plan must have 1 rows, as rate, got 2"),
        ({"rows": {"rate": 1, "plan": "a"}}, 400, "rate must be a list of at least 1 row, got 1"),
        ({"rows": ROWS, "options": {"k": 1}}, 400, "the body must have rows alone, got 'options'"),
        ({"texts": ["a"]}, 400, "the body must have rows alone, got 'texts'"),
        ({}, 400, "the body must have 'rows', got none"),
        ({"rows": ROWS * 51}, 413, "rows must have at most 100 rows, got 102"),
        ({"rows": [{"rate": 1, "plan": "a" * 60_000}]}, 413, "at most 50,000 bytes, got more"),
    ],
)
def test_a_wrong_body_is_refused_in_one_sentence(body, status, sentence):
    told = post(app(), "/models/churn/predict", body, parts=3)
    assert told.status == status and sentence in told.error and "\n" not in told.error


def test_an_error_of_the_reader_is_a_sentence_too():
    told = post(app(), "/models/churn/predict", {"rows": [{"rate": 3e38, "plan": "a"}]})
    assert told.status == 400 and "too far from the values of the train rows" in told.error, told
    told = post(app(), "/models/router/predict", {"texts": ["a card", " "]})
    assert told.status == 400 and told.error.endswith("not blank, got ' ' in row 1")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/models/churn/predict", 405),
        ("POST", "/models/none/predict", 404),
        ("POST", "/models/churn/predict/", 404),
    ],
)
def test_paths_that_do_not_exist(method, path, status):
    told = post(app(), path, {"rows": ROWS}) if method == "POST" else get(app(), path)
    assert told.status == status and told.error
    if status == 404 and "none" in path:
        assert told.error == "model must be one of churn, router, got 'none'"


def test_compressed_bodies_and_odd_timeouts_are_refused():
    given = {"rows": ROWS}
    assert post(app(), "/models/churn/predict", given, content_encoding="gzip").status == 415
    told = post(app(), "/models/churn/predict", given, x_request_timeout="soon")
    assert (told.status, told.error) == (400, "X-Request-Timeout must be seconds, got 'soon'")


def test_the_openapi_document_is_of_the_models():
    document = get(app(), "/openapi.json").json
    schema = document["paths"]["/models/churn/predict"]["post"]["requestBody"]["content"]
    row = schema["application/json"]["schema"]["properties"]["rows"]["oneOf"][0]["items"]
    assert row["properties"]["rate"]["type"] == ["number", "null"]
    assert row["required"] == ["rate", "plan"] and row["additionalProperties"] is False
    assert {"/admin/models/churn", "/v2/models/router/versions/1/infer"} <= document["paths"].keys()
    assert document["openapi"] == "3.1.0" and "security" not in document
    listed = get(app(), "/models").json["models"]
    assert [(one["name"], one["versions"]) for one in listed] == [
        ("churn", ["1"]),
        ("router", ["1"]),
    ]


def resolved(operation, status="200"):
    (content,) = operation["responses"][status]["content"].values()
    return content["schema"]


def test_answers_are_as_the_document_says():
    jsonschema = pytest.importorskip("jsonschema")
    document = get(app(), "/openapi.json").json
    assert document["openapi"] == "3.1.0"

    def check(schema, value):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(value, schema, jsonschema.Draft202012Validator)

    paths = document["paths"]
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/models", "/v2/models/churn",
                 "/v2/models/router/ready"):  # fmt: skip
        check(resolved(paths[path]["get"]), get(app(), path).json)
    for name, body in (
        ("churn", {"rows": [{"rate": 0.03, "plan": "plus"}]}),
        ("router", {"texts": ["my card", "a pin"]}),
    ):
        operation = paths[f"/models/{name}/predict"]["post"]
        check(resolved(operation), post(app(), f"/models/{name}/predict", body).json)
        wrong = post(app(), f"/models/{name}/predict", {})
        check(resolved(operation, str(wrong.status)), wrong.json)
        with pytest.raises(jsonschema.ValidationError):
            check(resolved(operation), {"model": name, "version": "1", "answer": {}})
    value = churn().reader.columns({"rate": [0.03], "plan": ["plus"]})[1]["features"]
    tensor = {"name": "features", "shape": [*value.shape], "datatype": "FP32",
              "data": value.ravel().tolist()}  # fmt: skip
    infer = paths["/v2/models/churn/infer"]["post"]
    check(resolved(infer), post(app(), "/v2/models/churn/infer", {"inputs": [tensor]}).json)
    change = paths["/admin/models/churn"]["post"]["requestBody"]["content"]["application/json"]
    for body in ({"path": "a"}, {"version": "1", "canary": 0.5}, {"version": "1"}):
        check(change["schema"], body)
    for body in ({}, {"path": "a", "version": "1"}, {"version": "1", "canary": 1, "shadow": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check(change["schema"], body)


# what other rooms read: the answer of `read` is what their `predict` takes


def read(reader, body, task="a task", most=100):
    return inputs_of(Model(task, None, reader)).read(body, most)


def test_images_are_lists_or_files():
    reader = vision.ImageReader((2, 3), 1)
    pixels = [[0, 128, 255], [1, 2, 3]]
    file = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(file, "png")
    text = base64.b64encode(file.getvalue()).decode()
    given = read(reader, {"images": [pixels, text, [[[x] for x in row] for row in pixels]]})
    assert given.rows == 3 and given.data.dtype == np.uint8
    assert given.data[..., 0].tolist() == [pixels] * 3
    assert reader.images(given.data)[1].shape == (3, 2, 3, 1)
    for wrong, sentence in (
        ([[0, 1], [2, 3]], r"shape \(2, 3, 1\), got \(2, 2\) in row 0"),
        ([[0, 1, 256], [1, 2, 3]], "images must be bytes, 0 to 255, got others in row 0"),
        ([[0, 1, 1.5], [1, 2, 3]], "0 to 255, got others in row 0"),
        ([[0, 1, 2], [1, 2]], "nested lists of equal lengths"),
        ("/etc/hostname", "image files in base64, got neither in row 0"),
        (base64.b64encode(b"no image").decode(), "got neither in row 0"),
    ):
        with pytest.raises(Refused, match=sentence):
            read(reader, {"images": [wrong]})
    large = io.BytesIO()
    Image.new("1", (5000, 5000)).save(large, "png")
    half = io.BytesIO()
    Image.new("1", (3000, 3000)).save(half, "png")
    half = base64.b64encode(half.getvalue()).decode()
    with pytest.raises(Refused, match="pixels in all, got more in row 1"):
        read(reader, {"images": [half, half]})
    with pytest.raises(Refused, match="at most 16,777,216 pixels") as caught:
        read(reader, {"images": [base64.b64encode(large.getvalue()).decode()]})
    assert caught.value.status == 413


def test_histories_count_what_the_catalogue_lacks():
    log = recommend.events({"user": list("aabbc"), "item": list("xyxzx")}, time=None)
    model = Model(recommend.fitted(recommend.Popularity(), log), None, recommend.LogReader())
    app = serve.application({"shop": model}, settings=serve.Settings(batch_size=2))
    told = post(app, "/models/shop/predict", {"histories": [["x", "w"], []], "options": {"k": 2}})
    wanted = model.predict([["x", "w"], []], k=2)
    assert told.json["answer"]["items"] == wanted.ids()
    assert (told.json["answer"]["unknown"], told.json["answer"]["empty"]) == (1, 1)
    for body, sentence in (
        ({"histories": ["xy"]}, "histories must be lists, got 'xy' in row 0"),
        ({"histories": [["x", None]]}, "texts or integers, got null in row 0"),
        ({"histories": [["x"]], "options": {"k": True}}, "k must be of type integer, minimum 1"),
        (
            {"histories": [["x"]], "options": {"k": 4}},
            "k must be at most 3 (the number of all), got 4",
        ),
        ({"histories": [["x"]], "options": {"deny": [1.5]}}, "deny: each must be of type string"),
        ({"histories": [["x"]], "options": {"deny": ["w"]}}, "ids of the catalogue, got 'w'"),
        ({"histories": [["x"]], "options": {"top": 4}}, "options must be among k, exclude_seen"),
        ({"histories": [["x"]], "options": 3}, "options must be an object, got 3"),
    ):
        told = post(app, "/models/shop/predict", body)
        assert told.status == 400 and sentence in told.error, told.error
    assert get(app, "/v2/models/shop").json["inputs"] == []
    assert post(app, "/v2/models/shop/infer", {"inputs": [
        {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    ]}).error == "shop must be asked by /models/shop/predict"  # fmt: skip


def test_series_are_answered_each_request_alone():
    table = {"shop": [1] * 6, "day": [f"2024-01-0{day}" for day in range(1, 7)],
             "sold": [5, 9, 7, 5, 9, 7]}  # fmt: skip
    reader = forecast.SeriesReader(3, "D", id="shop", time="day", value="sold")
    model = Model(forecast.Baseline("seasonal_naive", 3), None, reader)
    app = serve.application({"sales": model}, settings=serve.Settings(batch_size=2))
    told = post(app, "/models/sales/predict", {"rows": table, "options": {"horizon": 2}})
    assert told.status == 200, told.error
    assert np.ravel(told.json["answer"]["mean"]).tolist() == [5, 9]
    assert told.json["answer"]["times"][0] == [f"2024-01-0{day}T00:00:00" for day in (7, 8)]
    told = post(app, "/models/sales/predict", {"rows": table, "options": {"horizon": 301}})
    assert told.status == 400 and "minimum 1, maximum 300, got 301" in told.error
    table["day"][2] = "soon"
    assert post(app, "/models/sales/predict", {"rows": table}).status == 400
    table["shop"][2] = "a"
    sentence = "shop must be all text or all numbers, got both, 1 in row 0"
    assert post(app, "/models/sales/predict", {"rows": table}).error == sentence


def test_a_column_of_the_calendar_may_be_left_out():
    reader = forecast.SeriesReader(1, "D", known=("day_of_week", "price"))
    row = {"id": "a", "time": "2024-01-01", "value": 1, "price": 2}
    given = read(reader, {"rows": [row], "future": {"id": ["a"], "time": [1], "price": [3]}})
    assert [*given.data] == ["id", "time", "value", "price"] and given.bucket is None
    assert given.options["future"]["price"].tolist() == [3.0]


def test_a_model_without_a_reader_takes_its_columns():
    model = churn()
    bare = Model(model.task, model.state)
    columns = Column("x", (None,), "int"), Column("y", (2,), "float"), Column("z", target=True)
    given = inputs.Arrays(columns[:2]).read({"columns": {"x": [[1, 2]], "y": [[0.5, 1]]}}, 10)
    assert given.data["x"].dtype == np.int32 and given.data["y"].tolist() == [[0.5, 1.0]]
    width = model.task.columns[0].shape[0]
    app = serve.application({"bare": bare}, settings=serve.Settings(batch_size=1))
    told = post(app, "/models/bare/predict", {"columns": {"features": [[0.5] * width] * 2}})
    wanted = bare.predict(np.full((2, width), 0.5, np.float32))
    np.testing.assert_allclose(told.json["answer"]["output"], wanted, atol=1e-6)
    told = post(app, "/models/bare/predict", {"columns": {"features": [[0.5]]}})
    assert told.status == 400 and "features must have rows of shape" in told.error


def test_kinds_of_cells():
    assert Field("x", "text").column([True, 7, "a", None]).tolist() == ["True", "7", "a", None]
    assert Field("x", "id", null=False).column([3, 4]).dtype == np.int64
    assert Field("x", "time", null=False).column([3, 4.5]).tolist() == [3, 4.5]
    dates = ["2024-12-31", "2024-12-31T18:30:00Z", None]
    assert Field("x", "date").column(dates).tolist() == dates
    for kind, value in (("date", "soon"), ("date", 3), ("id", 1.5), ("id", True), ("time", False),
                        ("id", 2**63), ("text", [1]), ("time", float("inf"))):  # fmt: skip
        with pytest.raises(Refused, match="x must be "):
            Field("x", kind).column([value])


def test_numbers_among_the_options_are_floats_of_any_size():
    wanted = {"horizon": {"type": "number", "minimum": 0}}
    body = {"rows": [], "options": {"horizon": 2**64}}
    horizon = opened_body(body, ("rows",), wanted)["horizon"]
    assert horizon == 2.0**64 and isinstance(horizon, float)
    with pytest.raises(Refused, match="horizon must be of type number, minimum 0, got -1"):
        opened_body({"rows": [], "options": {"horizon": -1}}, ("rows",), wanted)


def test_a_language_model_never_takes_texts_for_names_of_files():
    reader = language.TokenReader(Tokenizer.train(["my card"], kind="character"), context=4)
    given = read(reader, {"texts": ["/etc/hostname"]})
    assert reader.texts(given.data)[1] == ["/etc/hostname"]


def test_the_texts_of_a_request_have_a_limit_together():
    """They are read where other requests wait, so a long one would hold all of them."""
    half, texts = "a" * (inputs.CHARACTERS // 2), inputs.Texts()
    assert texts.read({"texts": [half, half]}, 9).rows == 2
    with pytest.raises(
        Refused, match="at most 1,048,576 characters together, got 1,048,577"
    ) as one:
        texts.read({"texts": [half, half, "b"]}, 9)
    assert one.value.status == 413


def test_the_bodies_of_all_requests_have_a_limit_together():
    """Else each of hundreds of requests that wait might have the most bytes of one."""
    service, body = app(), {"rows": [{"rate": 0.03, "plan": "plus"}]}
    assert service.held == 0
    service.held = 16 * service.settings.body - 10
    told = post(service, "/models/churn/predict", body)
    assert (told.status, told.headers["retry-after"]) == (429, "1")
    assert "the server must have room, got 800,0" in told.error
    assert service.held == 16 * service.settings.body - 10
    service.held = 0
    assert post(service, "/models/churn/predict", body).status == 200 and service.held == 0


def test_a_long_answer_is_not_written_in_the_thread_of_the_loop(monkeypatch):
    rows, seen = 90, []
    plan = {"rows": [{"rate": 0.03, "plan": "plus"}] * rows}
    short = post(app(), "/models/churn/predict", plan).json["answer"]
    monkeypatch.setattr("jaxops.serve.app.MANY", rows)
    monkeypatch.setattr(
        "jaxops.serve.app.as_object",
        lambda answer: seen.append(threading.current_thread().name) or as_object(answer),
    )
    assert post(app(), "/models/churn/predict", plan).json["answer"] == short
    assert seen[0].startswith("jaxops-reader")


def test_survival_has_times_among_its_options():
    table = {"months": [1, 2, 3, 4.0] * 5, "left": [1, 0, 1, 1] * 5, "age": [20.0, 30, 40, 50] * 5}
    model = survival.fit(table, survival.WeibullAFT(), time="months", event="left")
    app = serve.application({"leave": model}, settings=serve.Settings(batch_size=2))
    body = {"rows": [{"age": 33}], "options": {"times": [1, 2.5]}}
    told = post(app, "/models/leave/predict", body).json["answer"]
    wanted = model.predict({"age": [33.0]}, times=[1, 2.5])
    np.testing.assert_allclose(told["survival"], wanted.survival, atol=1e-6)
    assert told["times"] == [1.0, 2.5] and told["horizon"] == 4.0
    body["options"]["times"] = [1] * 1001
    told = post(app, "/models/leave/predict", body)
    assert (told.status, told.error) == (400, "times must have at most 1000 items, got 1,001")
    body = {"rows": [{"age": 33}] * 2500, "options": {"times": [1] * 1000}}
    told = post(app, "/models/leave/predict", body)
    assert told.status == 413 and "must be at most 2,097,152" in told.error


def test_answers_are_cut_by_rows_and_numbers_that_json_lacks_are_null():
    classes = Classes(
        np.array(["a", "b"], object), np.array(["x", "y"], object), np.eye(2), ("x", "y")
    )
    one = cut(classes, 1, 2, 2, numbered=False)
    assert one.ids.tolist() == ["b"] and one.probabilities.tolist() == [[0, 1]]
    assert one.classes == ("x", "y")
    assert plain({"a": np.array([1.0, np.inf]), "b": float("nan"), "c": np.float32(0.5)}) == {
        "a": [1.0, None], "b": None, "c": 0.5,
    }  # fmt: skip
    assert plain(np.array([("a", "b"), ()], object)) == [["a", "b"], []]
    assert len(TABLE["rate"]) == 60
