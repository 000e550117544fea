"""Measures the page's API under load: many users at once against the world's SAN.

`python -m benchmarks.speed.app --output benchmarks/measured/app.json` starts the page as a user
does, on the loopback. Each user sends one picture after another, with other names each time; every
answer is compared with what SAN gives for that picture and these names alone.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.experiments.fuzz import mutate
from benchmarks.experiments.fuzz_seeds import make_seeds
from benchmarks.measuring import report
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.formats.run_length import encode_labels
from openvocab.image import ImageArray
from openvocab.methods import find_method
from openvocab.reading.json_files import parse_json
from openvocab.world.names import world_names
from openvocab.world.scenes import scene

PICTURES = 50
_NAMES = 8
_PERCENTILES = (50, 95, 100)


@dataclass(frozen=True)
class Order:
    """A picture as a data address, names, and the segments that SAN finds alone, by name."""

    picture: str
    names: str
    expected: dict[str, Any]


def make_orders(count: int) -> list[Order]:
    """Segment pictures one after the other, each with names of its own."""
    san = find_method("san").load("world", device="cpu")
    words = [name.name for name in world_names()]
    orders = []
    for index in range(count):
        image = scene(index, "val").image
        names = ",".join(words[(7 * index + k) % len(words)] for k in range(_NAMES))
        found = san.segment(image, names)
        codes = encode_labels(found.labels)
        expected = {found.vocabulary.names[label]: code for label, code in codes.items()}
        orders.append(Order(data_address(png(image)), names, expected))
    return orders


def png(image: ImageArray) -> bytes:
    """Return a picture (H, W, 3) as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def data_address(data: bytes) -> str:
    """Return bytes as the address of a picture."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def crafted_uploads() -> dict[str, bytes]:
    """Return uploads that break careless readers, none of which is a picture."""
    whole = png(scene(0, "val").image)
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + whole[24:]
    generator = np.random.default_rng(0)
    found = {
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "no image": b"GIF89a" + bytes(20),
        "a page": b"<!doctype html><script>alert(1)</script>",
        "a vector": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
        "a bomb": bomb,
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    }
    for number in range(5):
        noisy = bytearray(whole)
        for place in generator.integers(8, len(whole), 60):
            noisy[place] = generator.integers(256)
        found[f"noise {number}"] = bytes(noisy)
    return found


def fuzzed_uploads(count: int) -> Iterator[bytes]:
    """Yield damaged pictures from the images of the fuzzing campaign; some can still be read."""
    seeds = [seed for seed in make_seeds(Path("canary")) if seed.kind == "image"]
    others = [seed.data for seed in seeds]
    for number in range(count):
        rng = random.Random(f"page {number}")
        yield mutate(rng.choice(seeds).data, rng, others)


def try_hostile(address: str, log: Path, count: int) -> dict[str, int]:
    """Send hostile pictures, each in a request, as an upload, and as the page's own button does.

    Returns:
        How many were sent, and of these how many were read as pictures, were answered with one
        sentence about an image, or with anything else; and the tracebacks in the server's log.
    """
    counts: Counter[str] = Counter()
    for data in (*crafted_uploads().values(), *fuzzed_uploads(count)):
        answers = [
            answer_to(address, {"url": data_address(data)}, "dog"),
            answer_to(address, {"path": upload(address, data)}, "dog"),
            press_segment(address, upload(address, data), "dog"),
        ]
        for kind, content in answers:
            said = content.get("error") if kind == "error" else None
            sentence = isinstance(said, str) and "image" in said and said.isprintable()
            counts["read" if kind == "complete" else "sentences" if sentence else "others"] += 1
    tracebacks = log.read_text("utf-8").count("Traceback")
    kinds = {kind: counts[kind] for kind in ("read", "sentences", "others")}
    return {"uploads": counts.total(), **kinds, "tracebacks": tracebacks}


def press_segment(address: str, path: str, names: str) -> tuple[str, Any]:
    """Do with an upload what the page's script does when a visitor presses Segment.

    Returns:
        "complete" or "error", and what the page is given to show.
    """
    with urllib.request.urlopen(f"{address}/config", timeout=600) as answer:
        layout = parse_json(answer.read().decode(), "/config", "the page's layout")
    (number,) = (o["id"] for o in layout["dependencies"] if o["api_name"] == "page_segment")
    visitor = uuid.uuid4().hex
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    order = {
        "data": [picture, names, "", "", ["san"]],
        "fn_index": number,
        "session_hash": visitor,
    }
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join",
        json.dumps(order).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=600).close()
    link = f"{address}/gradio_api/queue/data?session_hash={visitor}"
    with urllib.request.urlopen(link, timeout=600) as answer:
        for line in answer:
            if not line.strip():
                continue
            said = line.decode().removeprefix("data:")
            event = parse_json(said, "/queue/data", "an event of the page")
            if event.get("msg") == "process_completed":
                return "complete" if event["success"] else "error", event["output"]
    raise ValueError("the page gave no answer")


def upload(address: str, data: bytes) -> str:
    """Upload a file as a browser does, and return where the server has it."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="photo.png"\r\n\r\n'
    request = urllib.request.Request(
        f"{address}/gradio_api/upload",
        head + data + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        path: str = parse_json(answer.read().decode(), address, "an answer")[0]
    return path


@contextmanager
def page(log: Path) -> Iterator[tuple[str, int]]:
    """Start the page with the world's SAN; give its address and process, and stop it at the end.

    Args:
        log: for what the server says of errors.

    Raises:
        InputError: the page does not start, for example without gradio.
    """
    command = [sys.executable, "-m", "san.app", "--weights", "world", "--port", "0"]
    with log.open("w") as said:
        server = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=said, text=True
        )
    try:
        assert server.stdout is not None
        found = next(filter(None, (re.search(r"http://\S+", x) for x in server.stdout)), None)
        if found is None:
            raise InputError(f"the page did not start: {log.read_text('utf-8').strip()}")
        yield found[0], server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def ask(address: str, order: Order) -> dict[str, Any]:
    """Send one picture and return the segments of the answer by name.

    Raises:
        OSError: the server does not answer.
        ValueError: the answer is not a list of segments.
    """
    kind, content = answer_to(address, {"url": order.picture}, order.names)
    if kind != "complete":
        raise ValueError(f"the answer is {kind}")
    return {one["name"]: one["rle"] for one in content[0]["segments"]}


def answer_to(address: str, picture: dict[str, str], names: str) -> tuple[str, Any]:
    """Send one picture; return the kind of the last event, such as "complete", and its data."""
    data = [picture, names, "san", 0]
    request = urllib.request.Request(
        f"{address}/gradio_api/call/segment",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        number = parse_json(answer.read().decode(), address, "an answer")["event_id"]
    link = f"{address}/gradio_api/call/segment/{number}"
    with urllib.request.urlopen(link, timeout=600) as answer:
        events = re.findall(r"event: (\w+)\ndata: (.*)", answer.read().decode())
    kind, content = events[-1]
    return kind, parse_json(content, link, "an answer")


def load_page(address: str, pid: int, orders: Sequence[Order], users: int, each: int) -> Any:
    """Let users send their pictures at once; count the answers and time them."""
    counts: Counter[str] = Counter()
    seconds: list[float] = []
    memory: list[int] = []
    lock = threading.Lock()
    start = threading.Barrier(users)

    def user(number: int) -> None:
        start.wait()
        for turn in range(each):
            order = orders[(number + 13 * turn) % len(orders)]
            began = time.perf_counter()
            try:
                kind = "right" if ask(address, order) == order.expected else "mixed up"
            except (OSError, ValueError, KeyError):
                kind = "lost"
            with lock:
                counts[kind] += 1
                seconds.append(time.perf_counter() - began)
                memory.append(resident(pid))

    threads = [threading.Thread(target=user, args=(number,)) for number in range(users)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    half = len(memory) // 2
    return {
        "users": users,
        "requests": len(seconds),
        **{kind.replace(" ", "_"): counts[kind] for kind in ("right", "mixed up", "lost")},
        "seconds": {f"p{p}": float(np.percentile(seconds, p)) for p in _PERCENTILES},
        "wall_seconds": wall,
        "requests_per_second": len(seconds) / wall,
        "memory_mb": {
            "most_in_first_half": max(memory[:half]) / 2**20,
            "most_in_second_half": max(memory[half:]) / 2**20,
        },
    }


def resident(pid: int) -> int:
    """Return the bytes that a process holds (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return 1 if an answer was lost or mixed up, or an error was no sentence."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    parser.add_argument("--users", type=int, default=100, help="at once (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=1000, help="in all (default: %(default)s)")
    parser.add_argument(
        "--hostile", type=int, default=200, help="damaged pictures (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.users < 1 or args.requests < 2 * args.users or args.requests % args.users:
        raise InputError("--requests must be a multiple of --users, and at least twice as many")
    orders = make_orders(PICTURES)
    with TemporaryDirectory() as folder:
        log, began = Path(folder, "log"), time.perf_counter()
        with page(log) as (address, pid):
            ask(address, orders[0])
            first = time.perf_counter() - began
            alone = load_page(address, pid, orders, 1, 20)
            loaded = load_page(address, pid, orders, args.users, args.requests // args.users)
            hostile = try_hostile(address, log, args.hostile)
    found = {
        "cpus": os.cpu_count(),
        "start_to_first_mask_seconds": first,
        "alone": alone,
        "loaded": loaded,
        "hostile": hostile,
    }
    report(found, args.output)
    lost = loaded["right"] < loaded["requests"]
    return int(lost or hostile["others"] > 0 or hostile["tracebacks"] > 0)


if __name__ == "__main__":
    sys.exit(run(main))
