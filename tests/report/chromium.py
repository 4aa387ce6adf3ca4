"""Drive a headless Chromium over the DevTools protocol's pipe: no port, no driver, no package."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
PATIENCE = 120
INSTALL = "no Chromium found: apt-get install chromium"


def find() -> str | None:
    """Return the browser's path, or None when there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@dataclass
class Page:
    """One tab: ``requests`` are addresses asked for, ``errors`` the console's complaints."""

    write: int
    read: int
    session: str = ""
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    loaded: bool = False
    _buffer: bytes = b""
    _last: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; what happens meanwhile is recorded."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Go to ``address``, wait until it is loaded and has had half a second to misbehave."""
        self.requests.clear()
        self.errors.clear()
        self.loaded = False
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        while not self.loaded:
            self._receive()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            self.value("0")  # each answer brings the events that came before it
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self.read], [], [], PATIENCE)[0]:
                raise TimeoutError(f"Chromium said nothing for {PATIENCE} s")
            piece = os.read(self.read, 1 << 16)
            if not piece:
                raise RuntimeError("Chromium went away")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert", "warning"):
                self.errors.append(str(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.errors.append(parameters["entry"]["text"])
            case "Page.loadEventFired":
                self.loaded = True
        return message


@contextlib.contextmanager
def browse(profile: Path) -> Iterator[Page]:
    """Start the browser with an empty profile and give one tab; it is ended in any case."""
    commands_out, commands_in = os.pipe()
    events_out, events_in = os.pipe()

    # the protocol wants file descriptors 3 and 4, whatever ours are
    wired = (
        "import os, sys; first, second = map(os.dup, map(int, sys.argv[1:3])); "
        "os.dup2(first, 3); os.dup2(second, 4); "
        "os.set_inheritable(3, True); os.set_inheritable(4, True); "  # dup2(3, 3) would not
        "os.execv(sys.argv[3], sys.argv[3:])"
    )
    ours = [str(commands_out), str(events_in)]
    chromium = [str(find()), *FLAGS, f"--user-data-dir={profile}"]
    browser = subprocess.Popen(
        [sys.executable, "-c", wired, *ours, *chromium],
        pass_fds=(commands_out, events_in),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(commands_out)
    os.close(events_in)
    try:
        page = Page(commands_in, events_out)
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        attached = page.call("Target.attachToTarget", targetId=target, flatten=True)
        page.session = attached["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            page.call(f"{domain}.enable")
        yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)  # with its helper processes
        browser.wait()
        os.close(commands_in)
        os.close(events_out)
