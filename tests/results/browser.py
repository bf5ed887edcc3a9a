"""Chromium without a window, spoken to over a pipe in its DevTools protocol."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from filelock import FileLock

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")
APT = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "-y", "-qq"]
PACKAGES = ["--no-install-recommends", "chromium", "fonts-dejavu-core"]


def find():
    """Path of a browser; installs one where VPEFT_TEST_INSTALL=1, and skips the test with the reason otherwise."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    if os.environ.get("VPEFT_TEST_INSTALL") != "1":
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH, and VPEFT_TEST_INSTALL=1 is not set")
    if os.geteuid() != 0:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH, and only root may install one")
    with FileLock(Path(tempfile.gettempdir()) / "vpeft-browser.lock"):  # tests run in several processes
        if not shutil.which("chromium"):
            quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            for command in ([*APT, "update"], [*APT, "install", *PACKAGES]):
                subprocess.run(command, check=True, timeout=1200, env=quiet)
    return shutil.which("chromium")


class Browser:
    """One page; `said` are the errors and messages of its console.

    Args:
        folder: For its profile.
    """

    def __init__(self, folder):
        program, self.said, self._id, self._rest = find(), [], 0, b""
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        inside = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read, write)]
        with (folder / "stderr").open("wb") as log:
            self._pid = os.posix_spawn(
                program,
                [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank"],
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, inside[0], 3),
                    (os.POSIX_SPAWN_DUP2, inside[1], 4),
                    (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
                ],
            )
        for end in (read, write, *inside):
            os.close(end)
        self._session = None
        targets = self("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """Send a command and wait for its answer."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, file, width, dark=False):
        """Load a file in a window of this width, and wait for it."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=file.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def ask(self, script):
        """Value of a JavaScript expression on the page; the page's own policy does not hold for it."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def shoot(self, file):
        """Write a picture of the whole page."""
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        """End the browser."""
        self._session = None
        self("Browser.close")
        os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)

    def _read(self):
        end = time.monotonic() + 180
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser has not answered for three minutes"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        if found.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.said.append(found["params"])
        return found
