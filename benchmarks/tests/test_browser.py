"""The report in Debian's Chromium: as on a desk, on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.layout import read_json
from benchmarks.reporting import three_methods
from benchmarks.reporting.report import build_report
from benchmarks.structure.latency import NAME_COUNTS, SIDES

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
)  # fmt: skip
_SECONDS = 300  # after which it is ended, whatever it does


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
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
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

    def show(self, page: Path, width: int = 1200, scheme: str = "light") -> None:
        """Open a page on a screen of a width, and wait until all of it is there."""
        phone = width < 600
        size = {"width": width, "height": 900, "deviceScaleFactor": 2 if phone else 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **size)
        prefers = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media="", features=[prefers])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.look("document.fonts.ready.then(() => 1)")

    def look(self, script: str) -> Any:
        """Return the value of JavaScript."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Return what the page logged, and every address that it asked for but its own."""
        found = []
        for event in self.events:
            name, said = event.get("method"), event.get("params", {})
            if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(f"{name}: {json.dumps(said)[:300]}")
            if name == "Network.requestWillBeSent":
                address = said["request"]["url"]
                if address != said["documentURL"] and not address.startswith("data:"):
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    command = shutil.which("chromium") or shutil.which("chromium-browser")
    if command is None:
        reason = "no chromium is installed (Debian: apt-get install chromium)"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    found = Browser(command, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def report(world_run, tmp_path_factory) -> Path:
    """A report with everything: scores of the world, the published structures, all curves."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(world_run / "results", folder / "results")
    structures = read_json(three_methods.DOCS / three_methods.DATA)
    axes = {"names": NAME_COUNTS, "side": SIDES}
    for number, method in enumerate(structures, start=1):
        curves: dict[str, list[dict[str, Any]]] = {
            axis: [{axis: value, "seconds": number * value / 1000} for value in values]
            for axis, values in axes.items()
        }
        curves["names"][-1] |= {"seconds": None, "reason": "could take 90 s"}
        timed = {"side": SIDES[1], "few_names": 4, "curves": curves}
        for name, content in (("latency", timed), ("structure", structures[method])):
            path = folder / "results" / f"{name}-{method}.json"
            path.write_text(json.dumps(content))
    return build_report(folder)


_TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_LOADED = "[...document.images].every(i => i.naturalWidth > 0)"
# Texts with a contrast below 4.5 to 1; `data-on` names a ground that is drawn and not styled.
_FAINT = """(() => {
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
# Texts of a figure that cover each other, or leave it.
_CROWDED = """[...document.querySelectorAll("svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect(), slack = 1.5
  const texts = [...svg.querySelectorAll("text")]
    .map(t => [t.textContent, t.getBoundingClientRect()])
  const covers = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > slack &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > .3 * Math.min(a.height, b.height)
  return texts.flatMap(([said, a], i) => [
    ...(a.left < box.left - slack || a.right > box.right + slack ? [said + " leaves"] : []),
    ...texts.slice(i + 1).filter(([_, b]) => covers(a, b))
      .map(([other]) => said + " covers " + other)
  ])
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_is_whole_and_readable(browser, report, width, scheme) -> None:
    browser.show(report, width, scheme)
    assert browser.complaints() == []
    assert browser.look(_LOADED) and browser.look("document.images.length") == 4 * 5
    assert browser.look(_TOO_WIDE) == 0
    assert browser.look(_FAINT) == []
    assert browser.look(_CROWDED) == []


def test_the_report_prints(browser, report) -> None:
    browser.show(report)
    found = browser.pdf()
    assert found.startswith(b"%PDF") and 4 <= found.count(b"/Type /Page\n") <= 20


@pytest.mark.parametrize(
    ("body", "script", "said"),
    [
        ("<script>console.error('no')</script>", "0", "consoleAPICalled"),
        ("<script>throw 1</script>", "0", "exceptionThrown"),
        ("<img src='https://example.invalid/a.png'>", "0", "asks for https://example.invalid"),
        ("<script src='gone.js'></script>", "0", "asks for file:"),
        ("<p style='width: 900px'>wide</p>", _TOO_WIDE, 518),
        ("<p style='color: #999'>faint</p>", _FAINT, ["faint 2.8"]),
        ("<svg><text y='20'>one</text><text y='22'>two</text></svg>", _CROWDED, ["one covers two"]),
    ],
)
def test_these_tests_can_fail(browser, tmp_path, body, script, said) -> None:
    page = tmp_path / "page.html"
    viewport = '<meta name="viewport" content="width=device-width">'
    page.write_text(f"<!doctype html>{viewport}<body style='margin: 8px'>{body}</body>")
    browser.show(page, 390)
    found = browser.look(script)
    assert found == said or (isinstance(said, str) and said in " ".join(browser.complaints()))


def test_a_policy_in_the_report_forbids_all_requests(browser, report, tmp_path) -> None:
    page = tmp_path / "page.html"
    image = "<img src='https://example.invalid/a.png'>"
    page.write_text(report.read_text().replace("</body>", f"{image}</body>"))
    browser.show(page)
    assert any("Content Security Policy" in said for said in browser.complaints())
