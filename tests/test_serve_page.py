"""The page in a real browser: a text in, an answer out, by keyboard alone, light and dark, wide and narrow."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bert_miniatures.exporting import export
from deploy import LABELS, classifier, written
from serving import running

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ENTER, TAB, CONTROL = "\ue007", "\ue004", "\ue009"


class Browser:
    """Headless Chromium, driven over WebDriver's own HTTP."""

    def __init__(self, profile: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        nowhere = subprocess.DEVNULL
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=nowhere, stderr=nowhere)
        self.url = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        for _ in range(100):
            try:
                session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
                break
            except urllib.error.URLError as error:
                if isinstance(error, urllib.error.HTTPError):
                    raise
                time.sleep(0.1)
        self.url += f"/session/{session['sessionId']}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, sent, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())["value"]

    def chrome(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def run(self, code: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": f"return {code}", "args": []})

    def wait_for(self, code: str) -> None:
        for _ in range(100):
            if self.run(code):
                return
            time.sleep(0.05)
        raise AssertionError(f"never: {code}; problem: {self.run(TEXT_OF % 'problem')}")

    def keys(self, *keys: str) -> None:
        """Press keys one after the other; a key of several characters is typed, or held together after CONTROL."""
        steps: list[dict[str, str]] = []
        for key in keys:
            if key.startswith(CONTROL):
                steps += [{"type": "keyDown", "value": letter} for letter in key]
                steps += [{"type": "keyUp", "value": letter} for letter in reversed(key)]
                continue
            for letter in key:
                steps += [{"type": "keyDown", "value": letter}, {"type": "keyUp", "value": letter}]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": steps}]})

    def complaints(self) -> list[Any]:
        found: list[Any] = self.call("POST", "/se/log", {"type": "browser"})
        return found

    def close(self) -> None:
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(20)


TEXT_OF = "document.getElementById('%s').textContent"
DONE = "!document.getElementById('result').hidden || !document.getElementById('problem').hidden"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not shutil.which("chromedriver") or not shutil.which("chromium"):
        pytest.skip("chromium and chromedriver are not installed")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paged")
    found = {}
    for kind in ("single", "paired", "regression"):
        export(written(classifier(tiny, LABELS[kind]), folder / f"{kind}-model"), folder / kind)
        found[kind] = folder / kind
    return found


def test_by_keyboard_alone(browser, folders):
    with running(folders) as server:
        browser.open(f"{server.url}/")
        browser.wait_for("document.querySelectorAll('option').length == 3")
        browser.keys(TAB, TAB, "a good film <b>, not bad", CONTROL + ENTER)
        browser.wait_for(DONE)
        assert browser.run(TEXT_OF % "problem") == ""
        (answer,) = server.post("/predict", {"inputs": "a good film <b>, not bad"}).json
        rows = [f"{one['label']}{100 * one['score']:.1f} %" for one in answer]
        assert browser.run("[...document.querySelectorAll('#labels li')].map(li => li.textContent)") == rows
        assert browser.run(TEXT_OF % "said").startswith(f"Answer: {answer[0]['label']}")
        assert browser.run(TEXT_OF % "words") == "a good film <b>, not bad"
        pieces = browser.run("[...document.querySelectorAll('#pieces li')].map(li => li.textContent)")
        assert pieces == server.post("/explain", {"inputs": "a good film <b>, not bad"}).json["pieces"][0]
        assert browser.run("document.querySelectorAll('#words mark').length") == 6
        assert browser.run("document.querySelectorAll('#rows tr').length") == 6
        assert "occlusion" in browser.run(TEXT_OF % "method")
        assert " ms" in browser.run(TEXT_OF % "latency")
        assert browser.run("document.activeElement.id") == "result-title"
        loaded = browser.run("performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)")
        assert set(loaded) == {server.url}
    assert browser.complaints() == []


def test_pairs_numbers_the_key_and_a_server_that_is_gone(browser, folders):
    with running(folders, key="swordfish") as server:
        browser.open(f"{server.url}/")
        browser.wait_for("!document.getElementById('key-row').hidden")
        browser.run("(document.getElementById('key').value = 'swordfish', begin())")
        browser.wait_for("document.querySelectorAll('option').length == 3")
        for name, texts, marks in (("paired", ("a film", "the film"), 4), ("regression", ("bad film", ""), 2)):
            browser.run(f"(document.getElementById('model').value = '{name}', describe())")
            assert browser.run("document.getElementById('pair-row').hidden") == (name == "regression")
            for field, text in zip(("text", "pair"), texts, strict=True):
                browser.run(f"document.getElementById('{field}').value = '{text}'")
            browser.run("document.getElementById('go').click()")
            browser.wait_for(f"document.querySelectorAll('#words mark').length == {marks}")
    browser.run("document.getElementById('go').click()")
    browser.wait_for("document.getElementById('problem').textContent.includes('does not answer')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_narrow_screens_and_can_be_read(browser, folders, scheme, tmp_path):
    with running({"single": folders["single"]}) as server:
        browser.chrome("Emulation.setDeviceMetricsOverride", width=320, height=700, deviceScaleFactor=1, mobile=False)
        browser.chrome("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(f"{server.url}/")
        browser.wait_for("models.length == 1")
        browser.run(f"document.getElementById('text').value = 'good {'x' * 90} film'")
        browser.run("document.getElementById('go').click()")
        browser.wait_for(DONE)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        ground, ink = (browser.run(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        assert contrast(ground, ink) > 7
        assert contrast(ground, browser.run("getComputedStyle(document.getElementById('latency')).color")) > 4.5
        assert (luminance(ground) > 0.5) == (scheme == "light")
        picture = tmp_path / "page.png"
        picture.write_bytes(base64.b64decode(browser.call("GET", "/screenshot")))
        assert picture.stat().st_size > 5000
        names = {
            (node["role"]["value"], node.get("name", {}).get("value"))
            for node in browser.chrome("Accessibility.getFullAXTree")["nodes"]
            if "role" in node
        }
        assert {("textbox", "Text"), ("button", "Classify"), ("heading", "Answer")} <= names


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)`. Source: WCAG 2.2."""
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
