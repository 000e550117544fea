"""The exported SAN: the same labels as ours for any size and number of names, and no torch."""

from __future__ import annotations

import json
import subprocess
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import openvocab
from openvocab.cli import run
from openvocab.clip.plain_tokenizer import PlainTokenizer
from openvocab.clip.tokenizer import merges, tokenize
from openvocab.errors import InputError
from openvocab.onnx_predict import DESCRIPTION, OnnxSegmenter
from san.export import main
from san.recognition import pool_bias
from san.segmenter import SANSegmenter
from san.weights import save_network

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="exporting to ONNX needs the extra onnx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports a recorded network once: (segmenter, folder)."""
    made = {}

    def export(recording):
        if recording.path.name not in made:
            folder = tmp_path_factory.mktemp(recording.path.name)
            network = recording.network()
            save_network(network, folder / "san.safetensors", recording.inference)
            command = ["--weights", str(folder / "san.safetensors"), "--output", str(folder)]
            assert run(main, command) == 0
            segmenter = SANSegmenter(network, recording.inference, cache_dir=False)
            made[recording.path.name] = (segmenter, folder)
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


def distributions(*names: str) -> dict[str, Distribution]:
    """Return installed distributions and all that they need."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = distribution(name)
        needed = map(Requirement, found[name].requires or ())
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """Return the Python of an environment with onnxruntime, NumPy, Pillow and our source only."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for one in distributions("onnxruntime", "numpy", "pillow").values():
        for top in {file.parts[0] for file in one.files or () if file.parts[0] != ".."}:
            place = Path(str(one.locate_file(top)))
            if place.exists() and not (site / top).exists():
                (site / top).symlink_to(place)
    (site / "openvocab").symlink_to(Path(openvocab.__file__).parent)
    return folder / "bin" / "python"


def test_an_environment_without_torch_segments_a_photo(
    recording, bare_python, exported, tmp_path
) -> None:
    ours, model = exported(recording)
    words = [word.partition(",")[0] for word in recording.meta["vocabulary"]]
    output, file = tmp_path / "out", tmp_path / "photo.png"
    Image.fromarray(photo(80, 120)).save(file)
    arguments = [str(model), str(file), "--class-names", *words, "--output", str(output)]

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        # Isolated: no variable of ours adds a path on which torch would be found.
        command = (str(bare_python), "-I", *command)
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    for library in ("torch", "san", "yaml"):
        assert "ModuleNotFoundError" in call("-c", f"import {library}").stderr
    done = call("-m", "openvocab.onnx_predict", *arguments)
    assert done.returncode == 0, done.stderr
    expected = ours.segment(file, words).labels
    with Image.open(output / "photo_labels.png") as picture:
        assert (np.asarray(picture) == expected).mean() >= 0.9999
    content = json.loads((output / "photo.json").read_text())
    assert content["size"] == [80, 120] and content["names"] == list(words)
    assert sum(segment["area"] for segment in content["segments"]) == pytest.approx(1)
    missing = call("-m", "openvocab.onnx_predict", *arguments[:1], "none.png", *arguments[2:])
    assert missing.returncode == 2 and "Traceback" not in missing.stderr


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
