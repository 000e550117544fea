"""The page when too much is asked of it, and when it is told to stop."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import start_browser
from PIL import Image
from visit import choose_example, sentence

from openvocab.methods import find_method

if importlib.util.find_spec("gradio") is None:
    assert not os.environ.get("CI")
    pytest.skip('gradio is not installed (pip install ".[app]")', allow_module_level=True)

import uvicorn

from openvocab.app.engine import Engine
from openvocab.app.limits import Limits
from openvocab.app.server import build_application, listen

_PATIENCE = 1800  # seconds that nothing here may need, however busy the machine is
AT_ONCE = 8  # calls of /segment that gradio runs at once; the others wait in its queue


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


PICTURE = {"url": "data:image/png;base64," + base64.b64encode(png()).decode("ascii")}


def post(url: str) -> str:
    """Ask for a segmentation and return its ID."""
    order = urllib.request.Request(
        f"{url}/gradio_api/call/segment",
        json.dumps({"data": [PICTURE, "dog", "san", 0]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(order) as answer:
        return json.load(answer)["event_id"]


def waiting(url: str) -> int:
    """Return how many requests wait in the queue."""
    with urllib.request.urlopen(f"{url}/gradio_api/queue/status") as answer:
        size: int = json.load(answer)["queue_size"]
    return size


def last_event(url: str, number: str) -> tuple[str, Any]:
    """Wait for an answer; return the kind of its last event and the data."""
    with urllib.request.urlopen(f"{url}/gradio_api/call/segment/{number}") as answer:
        kind, content = re.findall(r"event: (\w+)\ndata: (.*)", answer.read().decode())[-1]
    return kind, json.loads(content)


class Busy:
    """SAN that segments nothing before it may."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.san = find_method("san").load("world", device="cpu")

    def segment(self, *given: Any, **options: Any) -> Any:
        """Wait, then segment."""
        assert self.free.wait(_PATIENCE)
        return self.san.segment(*given, **options)


@pytest.fixture
def busy_page(tmp_path, monkeypatch) -> Iterator[Callable[[Limits], tuple[str, Busy]]]:
    """Serve the page from a thread, with limits, and with a SAN that is held up."""
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # the page sets them; this puts them back
    running = []

    def start(limits: Limits) -> tuple[str, Busy]:
        engine, san = Engine({"san": find_method("san")}, {"san": "world"}, limits=limits), Busy()
        monkeypatch.setattr(engine, "segmenter", lambda key: san)
        door = listen("127.0.0.1", 0)
        application = build_application(engine, tmp_path / "page")
        config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        running.append((san, server, thread))
        return f"http://127.0.0.1:{door.getsockname()[1]}", san

    yield start
    for san, server, thread in running:
        san.free.set()
        server.should_exit = True
        thread.join(_PATIENCE)
        assert not thread.is_alive()


def test_a_full_queue_is_a_sentence_and_loses_nothing(busy_page, tmp_path) -> None:
    url, san = busy_page(Limits(queue=2, seconds=_PATIENCE))
    accepted = []
    for _ in range(AT_ONCE):
        accepted.append(post(url))
        end = time.monotonic() + _PATIENCE
        while waiting(url):  # until it has left the queue for one of the places
            assert time.monotonic() < end
            time.sleep(0.02)
    accepted += [post(url), post(url)]
    assert waiting(url) == 2
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(url)
    assert refused.value.code == 503
    said = json.load(refused.value)["detail"]
    assert said == "the page is busy: 2 requests wait already; try again in a minute"

    browser = start_browser(tmp_path / "profile")
    try:
        browser.show(url)
        choose_example(browser)
        browser.click("#segment")
        assert "busy" in sentence(browser)
    finally:
        browser.close()

    san.free.set()
    assert {last_event(url, number)[0] for number in accepted} == {"complete"}


def test_a_request_that_takes_too_long_is_given_up_with_a_sentence(busy_page) -> None:
    url, san = busy_page(Limits(seconds=0.5))
    kind, content = last_event(url, post(url))
    assert kind == "error"
    assert content["error"].startswith("this took more than 0.5 seconds and was given up")
    san.free.set()


def test_it_stops_in_order_and_leaves_nothing_behind(tmp_path) -> None:
    command = [sys.executable, "-m", "san.app", "--weights", "world", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        assert server.stdout is not None
        found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stdout)))
        url = found[0]
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        order = urllib.request.Request(
            f"{url}/gradio_api/upload", body + png() + b"\r\n--x--\r\n", kind
        )
        urllib.request.urlopen(order).close()
        assert [path.read_bytes() for path in tmp_path.rglob("a.png")] == [png()]
        assert post(url)  # is ended or given up, but holds nothing up
        open_page = urllib.request.urlopen(url)
        server.send_signal(signal.SIGTERM)
        rest = server.communicate(timeout=_PATIENCE)[0]
        open_page.close()
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0, rest
    assert "Traceback" not in rest
    assert not [path for path in Path(tmp_path).glob("openvocab-*")]
