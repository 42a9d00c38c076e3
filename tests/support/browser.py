"""A real browser, driven over the WebDriver protocol: Debian's chromium with its own driver."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

PATIENCE = 30.0
"""Seconds until the page must show what a test waits for."""
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Control": "\ue009"}


class Browser:
    """One window. Elements are named by CSS selectors; what is not there yet is waited for."""

    def __init__(self, address: str) -> None:
        self._http = requests.Session()
        self._http.trust_env = False
        self._driver = address
        options = {
            "binary": shutil.which("chromium"),
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
        }
        asked = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        self._at = f"/session/{made['sessionId']}"
        self.resize(1400)

    def close(self) -> None:
        self._send("DELETE", self._at)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._call("GET", "/url"))

    @property
    def title(self) -> str:
        return str(self._call("GET", "/title"))

    def resize(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Show pages as a screen of this size does."""
        phone = width < 500
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self._devtools("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", features=[scheme])

    def script(self, code: str, *arguments: object) -> Any:
        """Run JavaScript and return its value. It is the driver's, so no policy of the page keeps it from running."""
        return self._call("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def wait(self, code: str, *arguments: object) -> Any:
        """Return the value of a JavaScript expression as soon as it is true."""
        until = time.monotonic() + PATIENCE
        while not (found := self.script(f"return {code}", *arguments)):
            if time.monotonic() > until:
                raise AssertionError(f"{code} {arguments} is not true at {self.url}:\n{self.text('body')}")
            time.sleep(0.05)
        return found

    def see(self, words: str, within: str = "body") -> None:
        """Wait until an element shows a text."""
        code = "[...document.querySelectorAll(arguments[0])].some(one => one.innerText.includes(arguments[1]))"
        self.wait(code, within, words)

    def text(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def count(self, selector: str) -> int:
        return int(self.script("return document.querySelectorAll(arguments[0]).length", selector))

    def click(self, selector: str) -> None:
        """Click an element as soon as it can be seen."""
        self.wait(
            "(() => { const e = document.querySelector(arguments[0]); return e && e.offsetParent && !e.disabled })()",
            selector,
        )
        self.script("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def fill(self, selector: str, text: str) -> None:
        """Type into a field that is empty."""
        self.click(selector)
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, the first ones held: `press("Control", "Enter")`."""
        words = [_KEYS.get(key, key) for key in keys]
        actions = [{"type": "keyDown", "value": key} for key in words]
        actions += [{"type": "keyUp", "value": key} for key in reversed(words)]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def log(self) -> list[str]:
        """Return what the console said since the last call: errors of scripts, refused requests, broken policies."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def picture(self, file: Path, *, full: bool = False) -> None:
        """Write a screenshot."""
        found = self._devtools("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        file.write_bytes(base64.b64decode(found["data"]))

    def _find(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def _devtools(self, command: str, **parameters: object) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, body: object = None) -> Any:
        return self._send(method, self._at + path, body)

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, self._driver + path, json=body, timeout=120)
        value = answer.json()["value"]
        if answer.status_code != 200:
            raise AssertionError(f"{value['error']}: {value['message']}")
        return value


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser for as long as the block lasts."""
    program = shutil.which("chromedriver")
    assert program is not None, "apt-get install chromium chromium-driver"
    with subprocess.Popen(
        [program, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            window = Browser(f"http://127.0.0.1:{_port(driver)}")
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()


def _port(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if "started successfully on port" in line:
            return int(line.split()[-1].rstrip("."))
    raise AssertionError("chromedriver ended")
