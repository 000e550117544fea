"""Debian's Chromium without a window, driven through its own protocol; for every browser test."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

# Chromium takes commands from descriptor 3 and answers on 4.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
_SECONDS = 3600  # after which it is ended, whatever it does; a busy machine may need many of them
_EMPTY = "about:blank"
_PATIENCE = 300  # seconds that a wait lasts at most; they cost nothing when all is well


class Browser:
    """Chromium with one empty page.

    Attributes:
        events: what it has said without being asked, oldest first.
    """

    def __init__(self, command: str, profile: Path) -> None:
        theirs, mine = os.pipe(), os.pipe()
        ends = (theirs[0], mine[1])
        words = [sys.executable, "-c", _START, *map(str, ends), command, *_FLAGS]
        self._process = subprocess.Popen(
            [*words, f"--user-data-dir={profile}"], pass_fds=ends, stderr=subprocess.DEVNULL
        )
        for end in ends:
            os.close(end)
        self._to, self._from = os.fdopen(theirs[1], "wb"), os.fdopen(mine[0], "rb")
        self._timer = threading.Timer(_SECONDS, self._process.kill)
        self._timer.start()
        self._said, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url=_EMPTY)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command and return its result."""
        self._number += 1
        order = {"id": self._number, "method": method, "params": params}
        order |= {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps(order).encode() + b"\0")
        self._to.flush()
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._said:
            new = os.read(self._from.fileno(), 1 << 20)
            assert new, "Chromium has ended"
            self._said += new
        message, _, self._said = self._said.partition(b"\0")
        return json.loads(message)

    def show(self, page: Path | str, width: int = 1200, scheme: str = "light") -> None:
        """Open a file or an address on a screen of a width, and wait until all of it is there."""
        phone = width < 600
        size = {"width": width, "height": 900, "deviceScaleFactor": 2 if phone else 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **size)
        prefers = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media="", features=[prefers])
        self.events.clear()
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.wait(f"document.readyState === 'complete' && location.href !== {_EMPTY!r}")
        self.look("document.fonts.ready.then(() => 1)")

    def look(self, script: str) -> Any:
        """Return the value of JavaScript."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until JavaScript has a value that counts as true, and return it."""
        if found := self.patient(script):
            return found
        said = self.look("document.body.innerText")
        raise AssertionError(f"{script} never came true; the page says:\n{said[-2000:]}")

    def patient(self, script: str) -> Any:
        """Return the first value of JavaScript that counts as true, or in the end its last one."""
        end = time.monotonic() + _PATIENCE
        while not (found := self.look(script)) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def settle(self) -> None:
        """Wait until the page has drawn twice, so that what was pressed has been taken in."""
        self.look("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def click(self, selector: str) -> None:
        """Press an element, once it is there."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        self.look(f"document.querySelector({json.dumps(selector)}).click()")

    def enter(self, selector: str, value: str) -> None:
        """Give a field a value, as typing or dragging would."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{field}")
        self.look(
            f"(() => {{ const e = {field}; e.value = {json.dumps(value)}; "
            "for (const kind of ['input', 'change']) "
            "e.dispatchEvent(new Event(kind, {bubbles: true})) })()"
        )

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file for an input."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        found = self.call(
            "Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})"
        )
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    def point(self, x: float, y: float) -> None:
        """Move the mouse over the page."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press a key with a name, such as "Tab"."""
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Escape": 27}[
            key
        ]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key.strip() or "Space",
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )

    def grant(self, *permissions: str) -> None:
        """Allow pages what a person would be asked for, such as "videoCapture"."""
        session, self._session = self._session, ""
        self.call("Browser.grantPermissions", permissions=list(permissions))
        self._session = session

    def hears(self, words: str) -> bool:
        """Wait until the page complains of something, and return whether it did."""
        end = time.monotonic() + _PATIENCE
        while not (found := any(words in said for said in self.complaints())):
            if time.monotonic() > end:
                break
            self.settle()  # reads what has been said meanwhile
        return found

    def complaints(self) -> list[str]:
        """Return what the page logged, and every address that it asked for but its own.

        A page of a server may ask for everything of its own host.
        """
        found = []
        for event in self.events:
            name, said = event.get("method"), event.get("params", {})
            if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(f"{name}: {json.dumps(said)[:300]}")
            if name == "Network.requestWillBeSent":
                address = said["request"]["url"]
                page = said["documentURL"]
                own = address == page or (_host(page) and _host(address) == _host(page))
                if not own and not address.startswith(("data:", "blob:")):
                    found.append(f"asks for {address[:100]}")
        return found

    def picture(self, path: Path) -> None:
        """Save all of the page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Print the page."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    def close(self) -> None:
        """End it."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        self._to.close()
        self._from.close()


def start_browser(profile: Path) -> Browser:
    """Start Chromium with an empty profile; the test is skipped where there is none."""
    command = shutil.which("chromium") or shutil.which("chromium-browser")
    if command is None:
        reason = "no chromium is installed (Debian: apt-get install chromium)"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return Browser(command, profile)


def _host(address: str) -> str:
    return urlsplit(address).netloc


# How many pixels a page is wider than its screen.
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Texts with a contrast below 4.5 to 1; `data-on` names a ground that is drawn and not styled.
FAINT = """(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number)
  const over = (c, g) => [0, 1, 2].map(i => c[i] * (c[3] ?? 1) + g[i] * (1 - (c[3] ?? 1)))
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
  const light = c => [.2126, .7152, .0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0)
  const ground = e => {
    const drawn = e.closest("[data-on]")
    if (drawn) return rgb(drawn.dataset.on)
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor)
      if ((c[3] ?? 1) == 1) return c
    }
    return [255, 255, 255]
  }
  const faint = []
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue
    if (!e.getClientRects().length) continue
    const style = getComputedStyle(e), svg = e.ownerSVGElement
    const ink = rgb(svg ? style.fill : style.color)
    if (svg) ink[3] = (ink[3] ?? 1) * style.fillOpacity
    const [a, b] = [over(ink, ground(e)), ground(e)].map(light).sort((x, y) => y - x)
    const contrast = (a + .05) / (b + .05)
    if (contrast < 4.5) faint.push(e.textContent.trim() + " " + contrast.toFixed(1))
  }
  return faint
})()"""
