"""The web page: its files, who may see what, and what a person does with it in Chromium."""

import contextlib
import functools
import re
import shutil
import threading
import time

import numpy as np
import pytest
from chromium import Chromium
from serve_client import SETTINGS, TABLE, churn, get, router
from test_serve_generate import CYCLE, cycle

import jaxops as jo
from jaxops import forecast, recommend, serve, tabular, vision
from jaxops.model.finished import Model
from jaxops.serve import site
from jaxops.serve.access import Keys

HIT = "window.hit = 1"
NAMES = (f"<script>{HIT}</script>", f'<img src="x" onerror="{HIT}">')  # of classes
RATE = f"rate <svg onload='{HIT}'>"  # a column


@functools.cache
def app():
    """An application of one model without keys."""
    return serve.application({"churn": churn()}, settings=serve.Settings(batch_size=1, delay=0.0))


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """The same with keys of each role."""
    file = tmp_path_factory.mktemp("held") / "keys"
    made = {role: serve.add_key(file, role, role) for role in ("predict", "metrics", "admin")}
    service = serve.Service(SETTINGS, Keys(file), None)
    service.models = app().models
    return service, made


def test_the_page_is_the_same_on_every_server_and_needs_no_key(held):
    service, _ = held
    for path in ("/", *(f"/page/{name}" for name in site.FILES)):
        told = get(service, path)
        assert told.status == 200 and told.body == get(app(), path).body
        assert b"churn" not in told.body
        policy = told.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= {*policy}
        assert "unsafe" not in " ".join(policy)
        assert told.headers["x-content-type-options"] == "nosniff"
    assert get(service, "/").headers["content-type"] == "text/html; charset=utf-8"
    assert get(service, "/page/script.js").headers["content-type"].startswith("text/javascript")
    assert get(service, "/page/../app.py").status == 401
    assert get(service, "/page/x").error.startswith("file must be one of index.html, style.css, ")
    for path in ("/models", "/openapi.json", "/metrics", "/v2"):
        assert get(service, path).status == 401
    assert get(app(), "/", host="shop.example").status == 403


def test_the_files_load_nothing_from_elsewhere_and_make_no_code_of_text():
    names = {path.name for path in site.FOLDER.iterdir()}
    assert names == site.FILES.keys()
    for name in names:
        text = (site.FOLDER / name).read_text()
        found = set(re.findall(r"https?://[^\"'\s]+", text))
        assert found <= {"http://www.w3.org/2000/svg"}, name  # a name, which nobody loads
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"Storage|document\.cookie", text)
    page = (site.FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?! src=)| style=| on\w+=", page)
    for field in re.findall(r"<(?:input|select|textarea) id=\"([\w-]+)\"", page):
        assert f'<label for="{field}">' in page


def test_a_column_has_an_example_for_the_form():
    paths = get(app(), "/openapi.json").json["paths"]
    body = paths["/models/churn/predict"]["post"]["requestBody"]["content"]["application/json"]
    cells = body["schema"]["properties"]["rows"]["oneOf"][0]["items"]["properties"]
    mean = np.nanmean(TABLE["rate"][: len(TABLE["rate"])])
    assert cells["rate"]["examples"][0] == pytest.approx(mean, rel=0.05)
    assert cells["plan"]["examples"] == ["basic"]


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    made = Chromium(program, driver)
    yield made
    made.close()


@contextlib.contextmanager
def running(service):
    """The address of an application on uvicorn, in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(service, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(60)


def hostile():
    """A model of tables whose names are code, if a page takes them for that."""
    table = {RATE: TABLE["rate"], "plan": TABLE["plan"]}
    table["left"] = np.where(TABLE["left"] == "yes", *NAMES).astype(object)
    return tabular.fit(table, tabular.MLP((4,)), label="left", epochs=2, progress=False)


def untrained(task, reader=None):
    row = {c.name: np.zeros((1, *c.shape), np.uint8 if c.dtype == "uint8" else np.float32)
           for c in task.columns if not c.target}  # fmt: skip
    return Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=row), reader)


@pytest.fixture(scope="module")
def models():
    log = recommend.events({"user": list("aabbc"), "item": list("xyxzx")}, time=None)
    popular = recommend.fitted(recommend.Popularity(), log)
    series = forecast.SeriesReader(3, "D", id="shop", time="day", value="sold")
    pictures = vision.classifier(vision.MLP((4,), classes=2), (2, 3, 1), NAMES)
    return {
        "churn": hostile(),
        "router": router(),
        "shop": Model(popular, None, recommend.LogReader()),
        "sales": Model(forecast.Baseline("seasonal_naive", 3), None, series),
        "digits": untrained(pictures, vision.ImageReader((2, 3), 1)),
        "poet": cycle(),
        "bare": untrained(tabular.classifier(tabular.MLP((2,)), features=3)),
    }


@pytest.fixture(scope="module")
def page(browser, models):
    """The browser at the page of a server without keys."""
    settings = serve.Settings(batch_size=1, delay=0.0, slots=1, timeout=60.0)
    with running(serve.application(models, settings=settings)) as address:
        browser.open(address)
        browser.until(lambda: browser.shown("#try"))
        yield browser
        browser.open("about:blank")


def choose(page, name, verb="predict"):
    page.click(f'#choice option[value="{name} {verb}"]')


def fill(page, name, value):
    page.type(f'#fields [name="{name}"]', value)


def asked(page):
    """The answer to what the form has, or why there is none."""
    page.click("#ask")
    page.until(
        lambda: (
            page.count("#ask:enabled")
            and (page.count("#answer details") or page.text("#form-error"))
        )
    )
    return page.text("#form-error") or page.text("#answer")


def numbers(found):
    return [float(one) for one in re.findall(r"-?\d+\.?\d*", found)]


def unharmed(page):
    """Whether no name of a model was run as code."""
    return (
        page.run("return window.hit === undefined") and page.count("main script, main svg g") == 0
    )


@pytest.mark.slow
def test_a_row_is_asked_and_hostile_names_stay_text(page, models):
    choose(page, "churn")
    first, plan = ("#fields div:nth-child(1) input", "#fields div:nth-child(2) input")
    assert page.attributes("#fields input", "name") == [RATE, "plan"]
    page.type(first, "0.03")
    page.type(plan, "plus")
    told = asked(page)
    wanted = models["churn"].predict({RATE: [0.03], "plan": ["plus"]})
    assert page.text("#answer h3") == wanted.labels[0]
    shares = numbers(page.text("#answer .share"))
    np.testing.assert_allclose(shares, 100 * np.sort(wanted.probabilities[0])[::-1], atol=0.06)
    assert NAMES[0] in told and NAMES[1] in told and unharmed(page)
    assert page.count("#answer script, #answer img, #fields svg") == 0
    page.type(first, "")  # a missing value
    page.type(plan, "gold")
    asked(page)
    wanted = models["churn"].predict({RATE: [np.nan], "plan": ["gold"]})
    shares = numbers(page.text("#answer .share"))
    np.testing.assert_allclose(shares, 100 * np.sort(wanted.probabilities[0])[::-1], atol=0.06)
    page.type(first, "three")
    assert asked(page).endswith("must be a number or null, got 'three' in row 0")
    assert unharmed(page)


@pytest.mark.slow
def test_texts_histories_series_and_arrays_are_asked(page, models):
    choose(page, "router")
    fill(page, "texts", "the card is lost\na new pin")
    asked(page)
    wanted = models["router"].predict(["the card is lost", "a new pin"]).labels
    assert page.text("#answer h3").split("\n") == [f"Row {i}: {x}" for i, x in enumerate(wanted)]
    choose(page, "shop")
    fill(page, "histories", "y")
    page.click("#fields summary")
    fill(page, "k", "2")
    asked(page)
    items = models["shop"].predict([["y"]], k=2).ids()[0]
    assert page.text("#answer tbody td:first-child").split("\n") == items
    choose(page, "sales")
    days = [f"1,2024-01-0{day},{sold}" for day, sold in enumerate([5, 9, 7, 5, 9, 7], 1)]
    fill(page, "rows", "\n".join(["shop,day,sold", *days]))
    asked(page)
    found = [row.split()[:2] for row in page.text("#answer tbody tr").split("\n")]
    assert found == [
        [f"2024-01-{day:02d}T00:00:00", mean] for day, mean in ((7, "5"), (8, "9"), (9, "7"))
    ]
    fill(page, "rows", "shop,day,sold\n1,2024-01-01")
    assert asked(page) == "rows must have 3 cells in a row, got 2 in row 0"
    choose(page, "bare")
    fill(page, "features", "[[1, 2, 3]]")
    output = models["bare"].predict(np.array([[1, 2, 3]], np.float32))
    asked(page)
    np.testing.assert_allclose(numbers(page.text("#answer tbody")), output, rtol=1e-4)
    fill(page, "features", "[1, 2")
    assert asked(page).startswith("features must be nested lists of JSON")


@pytest.mark.slow
def test_an_image_file_is_asked(page, models, tmp_path):
    from PIL import Image

    pixels = np.array([[0, 128, 255], [1, 2, 3]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    choose(page, "digits")
    assert asked(page) == "images must have a file, got none"
    fill(page, "images", str(tmp_path / "digit.png"))
    asked(page)
    wanted = models["digits"].predict(pixels[None, :, :, None])
    assert page.text("#answer h3") == wanted.labels[0]
    assert page.run("return document.querySelector('#fields img').naturalWidth") == 3
    assert unharmed(page)


@pytest.mark.slow
def test_a_prompt_is_continued_token_by_token(page):
    choose(page, "poet", "generate")
    fill(page, "prompt", "a")
    page.click("#fields summary")
    fill(page, "new_tokens", "10")
    fill(page, "temperature", "0")
    page.run("""
        window.seen = [];
        new MutationObserver(() => {
          const text = document.querySelector("#answer .text");
          window.seen.push(text ? text.textContent : "");
        }).observe(document.getElementById("answer"), {childList: true, subtree: true});
    """)
    assert "10 tokens; the end: length" in asked(page)
    assert page.text("#answer .text") == CYCLE[1:]
    seen = page.run("return window.seen")
    assert {*seen} <= {CYCLE[1:end] for end in range(1, len(CYCLE) + 1)}  # no half of a character
    fill(page, "new_tokens", "1000")
    assert "must" in asked(page) and page.count("#answer .text") == 0


@pytest.mark.slow
def test_the_charts_get_points_of_what_was_asked(page, models):
    choose(page, "churn")
    for _ in range(3):
        asked(page)

    def points(figure):
        return [int(one) for one in page.attributes(f"{figure} path[data-points]", "data-points")]

    page.until(lambda: points("#rate") and min(points("#rate")) >= 2 and points("#latency")[0] > 0)
    assert "200" in page.text("#rate .legend") and "p99" in page.text("#latency .legend")
    (label,) = page.attributes("#rate > svg", "aria-label")
    assert label.startswith("Requests a second by status") and "200" in label
    page.until(lambda: points("#psi"))
    assert RATE in page.text("#drift-table td")
    assert re.search(r"churn version 1, [1-9]", page.text("#drift-state"))
    told = page.text("#models-table td")
    assert all(name in told for name in models) and "version 1" in told
    assert unharmed(page)
    said = [one for one in page.said() if "status of 400" not in one]
    assert said == []  # neither of a script nor of the content security policy


@pytest.mark.slow
def test_a_page_as_narrow_as_a_telephone_has_no_scrolling_aside(page):
    page.width(360)
    for name, verb in (("churn", "predict"), ("sales", "predict"), ("poet", "generate")):
        choose(page, name, verb)
        assert page.run("return document.documentElement.scrollWidth") <= 360
    page.width(0)


@pytest.mark.slow
def test_a_key_opens_what_its_role_may_and_is_kept_nowhere(browser, held):
    service, made = held

    def enter(value):
        browser.type("#key", value)
        browser.click("#key-form button")

    with running(service) as address:
        browser.open(address)
        browser.until(lambda: browser.shown("#access"))
        assert browser.run("return document.activeElement.id") == "key"
        assert "churn" not in browser.source() and not browser.shown("#traffic")
        enter(made["predict"][:-2] + "xx")
        browser.until(lambda: browser.text("#key-error"))
        assert browser.text("#key-error") == "The server does not know this key."
        assert "churn" not in browser.source()
        enter(made["admin"])
        browser.until(lambda: browser.shown("#models"))
        assert "churn" in browser.text("#models-table") and browser.shown("#traffic")
        assert not browser.shown("#access")
        kept = "return [localStorage.length, sessionStorage.length, document.cookie, location.href]"
        assert browser.run(kept) == [0, 0, "", address]
        assert made["admin"] not in browser.source()
        browser.run("""
            const real = window.fetch;
            window.ended = 0;
            window.fetch = async (...given) => {
              await new Promise((go) => setTimeout(go, 200));
              try { return await real(...given); } finally { window.ended += 1; }
            };
            ticks = 4;  // with the next one the models are looked at too
            tick();
        """)
        browser.click("#forget")
        browser.until(lambda: browser.shown("#access"))
        browser.until(lambda: browser.run("return window.ended") >= 2)
        time.sleep(0.1)
        assert "churn" not in browser.source()  # also by what was asked before
        assert browser.text("#state") == ""
        enter(made["metrics"])
        browser.until(lambda: browser.shown("#traffic"))
        assert browser.text("#state") == "This key may not ask models."
        assert not browser.shown("#models") and not browser.shown("#try")
        browser.open(address)
        browser.until(lambda: browser.shown("#access"))
        enter(made["predict"])
        browser.until(lambda: browser.shown("#try"))
        assert not browser.shown("#traffic")
        assert browser.text("#state") == "This key may not read metrics."
        asked(browser)
        assert browser.text("#answer h3") in ("yes", "no")
        browser.open("about:blank")


@pytest.mark.slow
def test_a_version_with_other_columns_renews_the_form(browser):
    service = serve.application({"churn": churn()}, settings=serve.Settings(batch_size=1))

    def take(columns, version):
        """The fields and the new model, once the page has seen the version."""
        table = {**columns, "plan": TABLE["plan"], "left": TABLE["left"]}
        model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
        service.models.add("churn", model)
        browser.run("ticks = 4; tick();")  # with this one the models are looked at
        browser.until(lambda: f"version {version}" in browser.text("#models-table"))
        return browser.attributes("#fields input", "name"), model

    with running(service) as address:
        browser.open(address)
        browser.until(lambda: browser.shown("#try"))
        fill(browser, "rate", "0.25")
        asked(browser)
        # the same columns with other examples: what was typed and answered stays
        fields, _ = take({"rate": 2 * TABLE["rate"]}, 2)
        assert fields == ["rate", "plan"] and browser.shown("#answer h3")
        assert browser.run("return document.querySelector('[name=\"rate\"]').value") == "0.25"
        assert browser.text("#form-error") == ""
        fields, model = take({"age": np.arange(60.0)}, 3)
        assert fields == ["age", "plan"] and not browser.shown("#answer h3")
        assert browser.text("#form-error").startswith("A new version of the model reads other")
        fill(browser, "age", "41")
        fill(browser, "plan", "gold")
        assert "Version 3 answered" in asked(browser)
        wanted = model.predict({"age": [41.0], "plan": ["gold"]}).probabilities[0]
        shares = numbers(browser.text("#answer .share"))
        np.testing.assert_allclose(shares, 100 * np.sort(wanted)[::-1], atol=0.06)
        browser.open("about:blank")
