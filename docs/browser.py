"""A headless Chromium that opens pages of this machine and takes pictures of them (Debian: `chromium`)."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S, ANSWER_S, PAGE_S = 30.0, 30.0, 30.0
INSTALL = "apt-get install --yes --no-install-recommends chromium"
COLOURS = 128


class NoBrowser(Exception):
    """There is no Chromium here; the message says what to do."""


def find_chromium() -> str:
    """Its path. As root on Debian or Ubuntu it is installed when it is missing; else raises NoBrowser."""
    for _ in range(2):
        if found := next(filter(None, map(shutil.which, NAMES)), None):
            return found
        if os.geteuid() or not shutil.which("apt-get"):
            raise NoBrowser(f"the pictures need Chromium. On Debian or Ubuntu, as root: {INSTALL}")
        print(f"{INSTALL} ...", flush=True)
        if subprocess.run(INSTALL.split(), stdout=subprocess.DEVNULL, check=False).returncode:
            break
    raise NoBrowser(f"`{INSTALL}` has failed, see above; `apt-get update` first may help")


class Browser:
    """``with Browser() as browser:`` one tab, driven by the DevTools protocol. Reaches this machine alone."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ferry-chromium-")
        log = Path(self._folder.name, "log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    find_chromium(), "--headless=new", "--no-sandbox", "--remote-debugging-port=0",
                    f"--user-data-dir={self._folder.name}/profile", "--hide-scrollbars",
                    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",  # the graph of a run is drawn by WebGL

                    "--no-first-run", "--disable-background-networking", "--disable-component-update",
                    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank",
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._numbers = itertools.count(1)
        try:
            self._socket: ClientConnection = connect(self._address(log), max_size=None, proxy=None)
            target = self._ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        except BaseException:
            self.close()
            raise

    def _address(self, log: Path) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(r"DevTools listening on (ws://\S+)", log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.05)
        raise NoBrowser(f"Chromium does not start:\n{log.read_text(errors='replace')[-2000:]}")

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while True:
            answer = json.loads(self._socket.recv(ANSWER_S))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """What a JavaScript expression comes to on the page."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", script))
        return answer["result"].get("value")

    def open(self, url: str, shows: str, *, width: int = 1360, height: int = 900, scheme: str = "light") -> None:
        """Opens a page and waits until its text holds ``shows`` (a regular expression). Raises RuntimeError."""
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setEmulatedMedia", features=wanted)
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Page.navigate", url=url)
        self.wait(shows)

    def wait(self, shows: str) -> None:
        deadline = time.monotonic() + PAGE_S
        text = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # the page is being replaced
                text = self.evaluate("document.body ? document.body.innerText : ''") or ""
                if re.search(shows, text):
                    time.sleep(0.7)  # what it draws in steps
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the page does not show {shows!r} but:\n{text[:2000]}")

    def click(self, text: str) -> None:
        """Clicks the first button, tab or link with this text."""
        script = (
            "(() => { const found = [...document.querySelectorAll('button, a, [role=tab], [role=button], li')]"
            f".find(e => e.innerText && e.innerText.trim() === {json.dumps(text)});"
            " if (found) found.click(); return !!found; })()"
        )
        deadline = time.monotonic() + PAGE_S
        while not self.evaluate(script):
            if time.monotonic() > deadline:
                raise RuntimeError(f"there is nothing to click that says {text!r}")
            time.sleep(0.1)

    def picture(self, path: Path, *, height: int | None = None) -> None:
        """Writes what the page shows as a small PNG; ``height``: its first pixels alone."""
        shot = self._ask("Page.captureScreenshot", format="png")
        image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        if height is not None:
            image = image.crop((0, 0, image.width, min(height, image.height)))
        palette = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(path, optimize=True)

    def close(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        with contextlib.suppress(ProcessLookupError):  # its own session: the tab's processes too
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
