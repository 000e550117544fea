"""Label Studio's backend answers what Label Studio's own SDK accepts and decodes."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

if not os.environ.get("OPENVOCAB_TEST_TOOLS"):
    pytest.importorskip("label_studio_sdk", reason="label_studio_sdk is of the extra 'tools'")

CONFIG = """<View><Image name="img" value="$photo"/><BrushLabels name="paint" toName="img">
<Label value="red"/><Label value="green"/><Label value="blue"/></BrushLabels></View>"""


class Brightest:
    """Gives each pixel the name whose place is that of its brightest channel."""

    def segment(self, image: str, names: list[str]) -> Any:
        from openvocab.image import read_image
        from openvocab.segmenter import Segmentation
        from openvocab.vocabulary import Vocabulary

        labels = read_image(image).argmax(axis=2).astype(np.int32)
        confidence = np.full(labels.shape, 0.5, np.float32)
        return Segmentation(labels, Vocabulary.from_names(names), confidence=confidence)


@pytest.fixture
def server() -> Iterator[str]:
    path = Path(__file__).parents[1] / "backend.py"
    spec = importlib.util.spec_from_file_location("label_studio_backend", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    backend = module.Backend(Brightest(), "brightest", lambda address, task: address)
    running = module.make_server(backend, "127.0.0.1", 0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def ask(address: str, content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data)) as answer:
        return json.load(answer)


def test_predictions_are_valid_and_have_our_pixels(server: str, tmp_path: Path) -> None:
    from label_studio_sdk.converter import brush
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import PredictionValue

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tasks = [{"id": 1, "data": {"photo": str(tmp_path / "a.png")}}]
    answer = ask(f"{server}/predict", {"tasks": tasks, "label_config": CONFIG})
    (prediction,) = answer["results"]
    assert answer["model_version"] == "brightest" and prediction["score"] == 0.5
    assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
    assert PredictionValue(**prediction).model_version == "brightest"
    names = ("red", "green", "blue")
    assert {one["value"]["brushlabels"][0] for one in prediction["result"]} == set(names)
    for one in prediction["result"]:
        mask = np.reshape(brush.decode_rle(one["value"]["rle"]), (20, 30, 4))[..., 3] > 0
        index = names.index(one["value"]["brushlabels"][0])
        np.testing.assert_array_equal(mask, pixels.argmax(axis=2) == index)


def test_the_other_addresses(server: str) -> None:
    assert ask(f"{server}/health")["status"] == "UP"
    assert ask(f"{server}/setup", {"project": "1"}) == {"model_version": "brightest"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tasks": [{"data": {"photo": "none.png"}}], "label_config": CONFIG}, "none.png"),
        ({"tasks": [], "label_config": "<View/>"}, "no BrushLabels"),
        ({"tasks": []}, "label_config"),
        ([], "TypeError"),
    ],
)
def test_bad_requests_are_answered(server: str, content: Any, message: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(f"{server}/predict", content)
    assert caught.value.code == 400 and message in json.load(caught.value)["error"]
