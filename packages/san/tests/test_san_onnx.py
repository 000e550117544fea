"""The exported SAN: the same labels as ours for any size and number of names, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.clip.plain_tokenizer import PlainTokenizer
from openvocab.clip.tokenizer import merges, tokenize
from openvocab.errors import InputError
from openvocab.onnx_predict import DESCRIPTION, OnnxSegmenter
from san.export import export_san
from san.recognition import pool_bias
from san.segmenter import SANSegmenter

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="exporting to ONNX needs the extra onnx")

GOLDEN = Path(__file__).parent / "golden"
# A command with every library forbidden that the exported SAN must do without.
FORBIDDING = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "cv2", "scipy", "open_clip", "san", "tqdm", "yaml"}:
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Forbidden())
from openvocab.cli import run
from openvocab.onnx_predict import main
sys.exit(run(main))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports a recorded network once: (segmenter, exported segmenter)."""
    made = {}

    def export(recording):
        if recording.path.name not in made:
            folder = tmp_path_factory.mktemp(recording.path.name)
            network = recording.network()
            export_san(network, recording.configs[1], folder)
            made[recording.path.name] = (
                SANSegmenter(network, recording.configs[1], cache_dir=False),
                folder,
            )
        return made[recording.path.name]

    return export


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return blobs of color (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(64, 96), (90, 50), (61, 200)])
def test_labels_are_those_of_torch(recording, exported, size) -> None:
    ours, folder = exported(recording)
    words = recording.meta["vocabulary"]
    image = photo(*size)
    theirs = OnnxSegmenter(folder)
    for names in (words[:1], words, words[::-1]):
        same = (theirs.segment(image, names) == ours.segment(image, names).labels).mean()
        assert same >= 0.9999, (names, same)


def test_class_embeddings_are_those_of_torch(recording, exported) -> None:
    ours, folder = exported(recording)
    words = recording.meta["vocabulary"]
    expected = ours.network.classifier(ours.text.encode_names(words, ours.templates)).numpy()
    found = OnnxSegmenter(folder).class_embeddings(words)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("wanted", [1, 3, 7, 8])
def test_pooling_by_windows_is_adaptive_pooling(wanted) -> None:
    from san.onnx_graphs import _pool_last

    bias = torch.randn(1, 2, 3, 1, 8)
    expected = pool_bias(bias, (1, wanted))
    assert torch.equal(_pool_last(bias, wanted, 8).flatten(3), expected)


@pytest.mark.parametrize("grid", [(3, 5), (7, 7), (14, 2), (1, 9)])
def test_positions_by_matrices_are_torch_s(grid) -> None:
    from openvocab.clip.model import resize_patch_positions
    from san.onnx_graphs import resized_positions

    table = torch.randn(49, 6)
    expected = resize_patch_positions(table, (7, 7), grid)
    torch.testing.assert_close(resized_positions(table, 7, grid), expected, rtol=0, atol=5e-6)


def test_a_process_without_torch_segments_a_photo(tiny_san, tmp_path) -> None:
    weights, words = tiny_san
    model, output = tmp_path / "model", tmp_path / "out"
    command = ["-m", "san.export", "--weights", str(weights), "--output", str(model)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    file = tmp_path / "photo.png"
    Image.fromarray(photo(80, 120)).save(file)
    arguments = [str(model), str(file), "--class-names", *words, "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDING, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    from san.segmenter import load_san

    expected = load_san(weights, device="cpu").segment(file, words).labels
    with Image.open(output / "photo_labels.png") as picture:
        assert (np.asarray(picture) == expected).mean() >= 0.9999
    content = json.loads((output / "photo.json").read_text())
    assert content["size"] == [80, 120] and content["names"] == list(words)
    assert sum(segment["area"] for segment in content["segments"]) == pytest.approx(1)


def test_bad_folders_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="holds no"):
        OnnxSegmenter(tmp_path)
    (tmp_path / DESCRIPTION).write_text('{"format": "another"}')
    with pytest.raises(InputError, match="export the SAN anew"):
        OnnxSegmenter(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a photo of the dog's tail, it isn't 1984!",
        "crème brûlée",
        "cafe\u0301",
        "“quoted” it’s",
        "&amp;lt;b&gt;",
        "日本語  in\ttokyo",
        "½ ² 🐶🐱 naïve—dash",
        "_under_score DON'T've",
    ],
)
def test_the_plain_tokenizer_gives_clip_s_ids(text) -> None:
    found = PlainTokenizer(merges()).encode([text], 77)
    np.testing.assert_array_equal(found, tokenize([text]).numpy())


@pytest.mark.parametrize("text", ["ﬁne", "ＷＩＤＥ", "word " * 90])
def test_the_plain_tokenizer_refuses_what_it_would_get_wrong(text) -> None:
    with pytest.raises(InputError, match=r"unusual character|tokens"):
        PlainTokenizer(merges()).encode([text], 77)
