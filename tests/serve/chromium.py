"""Chromium by its driver: the few calls of the W3C's WebDriver protocol that the tests need.

Selenium speaks the same protocol. It installs trio, whose plugin makes hypothesis warn wherever it
is imported, and warnings are errors here.
"""

import http.client
import json
import re
import subprocess
import time

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the protocol
WORDS = (
    *("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"),
    *("disable-background-networking", "disable-component-update", "no-first-run"),
)


class Chromium:
    """A browser without a screen, with one page.

    Args:
        program: the browser.
        driver: its driver.
    """

    def __init__(self, program, driver):
        self._process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said = iter(self._process.stdout.readline, "")
        found = (re.search(r"successfully on port (\d+)", line) for line in said)
        port = next(one[1] for one in found if one)
        self._driver = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
        options = {"binary": program, "args": [f"--{word}" for word in WORDS]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._ask("", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/{made['sessionId']}"

    def _ask(self, path, body=None, method="POST"):
        data = None if body is None else json.dumps(body)
        self._driver.request(method, f"/session{path}", data, {"Content-Type": "application/json"})
        with self._driver.getresponse() as response:
            value = json.load(response)["value"]
            assert response.status == 200, value["message"]
        return value

    def close(self):
        """End the browser and its driver."""
        try:
            self._ask(self._session, method="DELETE")
        finally:
            self._driver.close()
            self._process.terminate()
            self._process.wait(30)
            self._process.stdout.close()

    def open(self, address):
        """Show a page."""
        self._ask(f"{self._session}/url", {"url": address})

    def run(self, script, *arguments):
        """What the body of a function of JavaScript returns."""
        body = {"script": script, "args": arguments}
        return self._ask(f"{self._session}/execute/sync", body)

    def until(self, condition, seconds=60):
        """What `condition()` returns as soon as it is true."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.02)
        return found

    def count(self, css):
        """How many elements there are."""
        return self.run("return document.querySelectorAll(arguments[0]).length", css)

    def shown(self, css):
        """Whether the first of the elements is there to be seen."""
        script = "const one = document.querySelector(arguments[0]);"
        return self.run(f"{script} return one !== null && one.checkVisibility()", css)

    def text(self, css):
        """The text of all elements that is to be seen, one a line."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        return "\n".join(self.run(script, css))

    def attributes(self, css, name):
        """An attribute of all elements."""
        each = "return [...document.querySelectorAll(arguments[0])]"
        return self.run(f"{each}.map((one) => one.getAttribute(arguments[1]))", css, name)

    def source(self):
        """The page as it is now."""
        return self.run("return document.documentElement.outerHTML")

    def click(self, css):
        """Click as a person would: on what is there to be seen."""
        self._ask(f"{self._element(css)}/click", {})

    def type(self, css, text):
        """Type a text in place of what a field has; or the path of a file."""
        element = self._element(css)
        if self.run("return document.querySelector(arguments[0]).type !== 'file'", css):
            self._ask(f"{element}/clear", {})
        self._ask(f"{element}/value", {"text": text})

    def _element(self, css):
        found = self._ask(f"{self._session}/element", {"using": "css selector", "value": css})
        return f"{self._session}/element/{found[ELEMENT]}"

    def said(self):
        """The messages of the console since the last time."""
        found = self._ask(f"{self._session}/se/log", {"type": "browser"})
        return [one["message"] for one in found]

    def width(self, pixels, height=740, mobile=True):
        """Show the page as a device of so many pixels does; 0 for that of a desktop."""
        sized = {"width": pixels, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        name = "setDeviceMetricsOverride" if pixels else "clearDeviceMetricsOverride"
        self.command(f"Emulation.{name}", sized if pixels else {})

    def command(self, name, parameters):
        """What a command of Chromium's own protocol returns."""
        body = {"cmd": name, "params": parameters}
        return self._ask(f"{self._session}/goog/cdp/execute", body)
