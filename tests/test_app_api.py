"""The API of the page: its documented examples, what it answers, and what it refuses."""

from __future__ import annotations

import ast
import asyncio
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.speed.app import crafted_uploads
from PIL import Image

from openvocab.formats.run_length import decode_labels
from openvocab.methods import available_methods, find_method
from openvocab.world.scenes import scene

DOCUMENT = (Path(__file__).parent.parent / "docs" / "app.md").read_text("utf-8")
IMAGE = scene(0, "val").image
NAMES = "duck, wood, tiles"


def data_address(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def png(image: np.ndarray = IMAGE) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def request_of(url: str, name: str, body: bytes) -> urllib.request.Request:
    """Return a call of the API."""
    kind = {"Content-Type": "application/json"}
    return urllib.request.Request(f"{url}/gradio_api/call/{name}", body, kind)


def upload(url: str, data: bytes) -> str:
    """Upload a picture, and return where it lies."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="photo.png"\r\n\r\n'
    body += data + b"\r\n--x--\r\n"
    order = urllib.request.Request(
        f"{url}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with urllib.request.urlopen(order) as answer:
        (path,) = json.load(answer)
    return path


def call(url: str, name: str, *data: Any) -> tuple[str, Any]:
    """Call the API; return the kind of the last event, such as "complete", and its data."""
    order = request_of(url, name, json.dumps({"data": data}).encode())
    with urllib.request.urlopen(order) as answer:
        number = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/{name}/{number}") as answer:
        events = re.findall(r"event: (\w+)\ndata: (.*)", answer.read().decode())
    kind, content = events[-1]
    return kind, json.loads(content)


def refusal(url: str, *data: Any) -> str:
    """Return the sentence with which a call is refused."""
    kind, content = call(url, "segment", *data)
    assert kind == "error"
    return content["error"]


@pytest.mark.parametrize("method", list(available_methods()))
def test_segment_answers_what_the_method_finds(app_url, method) -> None:
    found = find_method(method).load("world").segment(IMAGE, NAMES, return_scores=True)
    kind, (answer,) = call(app_url, "segment", {"url": data_address(png())}, NAMES, method, 0)
    assert kind == "complete"
    assert answer["names"] == list(found.vocabulary.names)
    codes = {one["index"]: one["rle"] for one in answer["segments"]}
    assert np.array_equal(decode_labels(codes, tuple(answer["size"])), found.labels)
    head, _, code = answer["label_png"].partition(",")
    stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    assert head == "data:image/png;base64"
    assert np.array_equal(stored, np.where(found.labels < 0, 255, found.labels))
    assert {one["name"]: one["area"] for one in answer["segments"]} == found.areas()
    for name, score in found.mean_certainty().items():
        (told,) = (one["score"] for one in answer["segments"] if one["name"] == name)
        assert told == pytest.approx(score, abs=1e-4)


def test_a_threshold_takes_pixels_back(app_url) -> None:
    found = find_method("san").load("world").segment(IMAGE, NAMES, return_scores=True)
    _, (answer,) = call(app_url, "segment", {"url": data_address(png())}, NAMES, "san", 0.98)
    codes = {one["index"]: one["rle"] for one in answer["segments"]}
    expected = found.with_threshold(none_of_these=0.98).labels
    assert 0.05 < (expected < 0).mean() < 0.95
    assert np.array_equal(decode_labels(codes, expected.shape), expected)


def test_the_documented_curl_command(app_url, tmp_path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl is installed")
    (tmp_path / "photo.png").write_bytes(png())
    (script,) = (b for b in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.S) if "curl" in b)
    script = script.replace("http://127.0.0.1:7860", app_url)
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, check=True)
    said = re.search(r"event: complete\ndata: (.*)", done.stdout.decode())
    assert said, done.stdout.decode() + done.stderr.decode()
    (answer,) = json.loads(said[1])
    assert answer["names"] == ["duck", "wood", "tiles"]
    assert answer["segments"]


def test_the_documented_python_script(app_url, tmp_path) -> None:
    (tmp_path / "photo.png").write_bytes(png())
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
    script = script.replace("http://127.0.0.1:7860", app_url)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"^wood 0\.\d+ \d\.\d+$", done.stdout, re.M)
    assert done.stdout.splitlines()[-1] == str(list(available_methods()))


def test_what_cannot_be_used_gets_a_sentence(app_url) -> None:
    good = {"url": data_address(png())}
    assert "there is no picture" in refusal(app_url, None, NAMES, "san", 0)
    assert "no name to look for" in refusal(app_url, good, " , ", "san", 0)
    assert "no method 'sam' on this page" in refusal(app_url, good, NAMES, "sam", 0)
    assert "use a number from 0 to" in refusal(app_url, good, NAMES, "san", "much")
    assert "use a number from 0 to" in refusal(app_url, good, NAMES, "san", -1)
    assert "never learned ('pingwin')" in refusal(app_url, good, "pingwin", "san", 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "takes 4 values (image, names, method, threshold), but got 0"),
        ([None, NAMES, "san"], "but got 3"),
        ([None, NAMES, "san", 0, 1], "but got 5"),
        (["photo.png", NAMES, "san", 0], "one of the values cannot be read"),
        ([5, NAMES, "san", 0], "one of the values cannot be read"),
        ([{"url": 5}, NAMES, "san", 0], "one of the values cannot be read"),
        ([{"path": [1]}, NAMES, "san", 0], "one of the values cannot be read"),
        ([{}, NAMES, "san", 0], "neither an upload nor a base64 data address"),
        ([None, ["duck"], "san", 0], "'names' is no text"),
        ([None, NAMES, {"key": "san"}, 0], "'method' is no text"),
        ([{"url": data_address(png())}, None, "san", 0], "names and method are texts"),
        ([{"url": data_address(png())}, NAMES, "san", [1]], "use a number from 0 to"),
    ],
)
def test_malformed_values_get_a_sentence(app_url, data, said) -> None:
    assert said in refusal(app_url, *data)


@pytest.mark.parametrize(
    ("name", "body", "code", "said"),
    [
        ("segment", b"{", 422, "the request cannot be read"),
        ("segment", b"{}", 422, "the request cannot be read"),
        ("segment", b'{"data": {"image": null}}', 422, "the request cannot be read"),
        ("segment", b"", 422, "the request cannot be read"),
        ("segments", b'{"data": []}', 404, "the page offers /segment and /methods"),
        ("segment", b'{"data": ["' + b"a" * (46 << 20) + b'"]}', 413, "at most 32 MB"),
    ],
)
def test_malformed_requests_get_a_sentence(app_url, name, body, code, said) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request_of(app_url, name, body))
    assert refused.value.code == code
    assert said in json.load(refused.value)["detail"]


def test_answers_hold_no_path_of_the_server(app_url) -> None:
    found = upload(app_url, png())
    assert Path(found).name == "photo.png"
    answers = [found.encode()]
    for page in ("", "config", "gradio_api/info", "gradio_api/mcp/schema", "health"):
        with urllib.request.urlopen(f"{app_url}/{page}") as answer:
            answers.append(answer.read())
    sent = {"path": found, "meta": {"_type": "gradio.FileData"}}
    kind, content = call(app_url, "segment", sent, NAMES, "san", 0)
    assert kind == "complete"  # the alias leads to the upload
    with urllib.request.urlopen(f"{app_url}/gradio_api/file={found}") as answer:
        assert answer.read() == png()
    _, missing = call(app_url, "segment", {"path": f"{found}x"}, NAMES, "san", 0)
    answers += [json.dumps(said).encode() for said in (content, missing)]
    places = {tempfile.gettempdir(), sys.prefix, str(Path(__file__).parents[1]), str(Path.home())}
    for answer in answers:
        assert [place for place in places if f"{place}/".encode() in answer] == []


@pytest.mark.parametrize("what", crafted_uploads())
def test_crafted_uploads_get_sentences(app_url, what) -> None:
    said = refusal(app_url, {"url": data_address(crafted_uploads()[what])}, NAMES, "san", 0)
    assert re.fullmatch(r"[^\n]*image[^\n]*", said) and "/" not in said.replace("150x150", "")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "picture",
    [
        {"path": "/etc/passwd"},
        {"path": __file__},
        {"path": "../../../../../../etc/passwd"},
        {"url": "file:///etc/passwd"},
        {"url": "http://127.0.0.1:1/photo.png"},
        {"path": "http://127.0.0.1:1/photo.png"},
    ],
)
def test_no_file_of_the_server_and_no_other_address_is_read(app_url, picture) -> None:
    tagged = picture | {"meta": {"_type": "gradio.FileData"}}
    for sent in (picture, tagged):
        kind, content = call(app_url, "segment", sent, NAMES, "san", 0)
        assert kind == "error"
        assert "image data" not in str(content["error"])  # would mean that it was read


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../etc/passwd",
        "gradio_api/file=%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        f"gradio_api/file={__file__}",
        "gradio_api/file=http://127.0.0.1:1/",
        "static/..%2f..%2f..%2fetc/passwd",
        "assets/../../../../../../etc/passwd",
        "docs",
    ],
)
def test_files_of_the_server_are_not_served(app_url, path) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{app_url}/{path}")
    assert refused.value.code in (400, 403, 404)


def test_an_upload_that_is_too_large_is_refused(app_url) -> None:
    with pytest.raises((urllib.error.URLError, ConnectionError)) as refused:
        upload(app_url, bytes(33 << 20))
    assert getattr(refused.value, "code", 413) == 413


def test_a_language_model_calls_the_tools(app_url) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    given = {"image": data_address(png()), "names": NAMES, "method": "san", "threshold": 0}

    async def converse() -> list[Any]:
        address = f"{app_url}/gradio_api/mcp/"
        async with (
            streamablehttp_client(address) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            listed = await session.list_tools()
            return [
                {tool.name for tool in listed.tools},
                await session.call_tool("methods", {}),
                await session.call_tool("segment", given),
                await session.call_tool("segment", given | {"names": " , "}),
                await session.call_tool("segment", given | {"image": "http://127.0.0.1:1/a.png"}),
                await session.call_tool("segment", given | {"image": "/etc/passwd"}),
            ]

    tools, methods, found, unnamed, elsewhere, local = asyncio.run(converse())
    assert tools == {"segment", "methods"}
    assert [one["key"] for one in ast.literal_eval(methods.content[0].text)] == [
        *available_methods()
    ]
    answer = ast.literal_eval(found.content[0].text)
    expected = find_method("san").load("world").segment(IMAGE, NAMES)
    codes = {one["index"]: one["rle"] for one in answer["segments"]}
    assert np.array_equal(decode_labels(codes, expected.labels.shape), expected.labels)
    for refused, said in (
        (unnamed, "no name to look for"),
        (elsewhere, "fetches no pictures from others"),
        (local, "/etc/passwd"),
    ):
        assert refused.isError and said in refused.content[0].text
    assert "root:" not in local.content[0].text


def test_health_and_the_tools_for_language_models(app_url) -> None:
    with urllib.request.urlopen(f"{app_url}/health") as answer:
        assert json.load(answer)["status"] == "ok"
    with urllib.request.urlopen(f"{app_url}/gradio_api/mcp/schema") as answer:
        tools = {tool["name"]: tool for tool in json.load(answer)}
    assert set(tools) == {"segment", "methods"}
    assert "any names" in tools["segment"]["description"]
