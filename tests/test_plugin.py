"""A method that others wrote and installed is everywhere, without a change in this repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvocab.evaluation.results import Result

ROOT = Path(__file__).parent.parent
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{package}-plugin"
version = "1.0"

[project.entry-points."openvocab.methods"]
{entries}

[tool.hatch.build.targets.wheel]
only-include = ["{package}.py"]
"""
# The smallest method that there can be: every pixel gets the name whose number its redness is.
DUMMY = """
import numpy as np
from openvocab.errors import InputError
from openvocab.methods import Method


def load(weights=None, *, config=None, device="auto", precision="fp32", compile=False):
    if weights not in (None, "world"):
        raise InputError(f"the dummy has no weights {weights!r}; leave them out")
    from openvocab.segmenter import BaseSegmenter, Segmentation

    class Redness(BaseSegmenter):
        def segment_arrays(self, images, vocabulary, options):
            labels = [(image[..., 0].astype(np.int32) * len(vocabulary)) // 256 for image in images]
            return [Segmentation(one, vocabulary) for one in labels]

        def describe(self):
            return {"method": "Redness", "variant": "the dummy", "weights_sha256": "0" * 64}

    return Redness()


METHOD = Method(key="redness", title="Redness", summary="The redder, the later a name.", load=load)
"""
# One that also says how it is built: a CLIP of which nothing but the first convolution is used.
BUILT = """
from dataclasses import replace

from built_of import METHOD as BASE


def architecture():
    import torch
    from openvocab.clip.model import CLIP
    from openvocab.clip.weights import open_clip_config
    from openvocab.segmenter import BaseSegmenter, Segmentation
    from openvocab.stages import Anatomy, Architecture, Part, Stage

    clip = CLIP(open_clip_config("ViT-B-32", "quick_gelu")).eval().requires_grad_(False)

    class Patches(BaseSegmenter):
        def look(self, image):
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
            return clip.visual.conv1(pixels).mean(dim=1)[0]

        def segment_arrays(self, images, vocabulary, options):
            found = []
            for image in images:
                rows, columns = self.look(image).shape
                labels = torch.arange(image.shape[0])[:, None] * rows // image.shape[0]
                labels = labels.expand(image.shape[:2]).clamp(max=len(vocabulary) - 1)
                found.append(Segmentation(labels.int().numpy(), vocabulary))
            return found

        def describe(self):
            return {"method": "Patches"}

    segmenter = Patches()
    stages = (Stage("patches", "patches alone", "frozen", ((segmenter, "look"),), "rows"),)
    parameters = dict(clip.visual.conv1.named_parameters())
    anatomy = Anatomy(stages, (Part("patches", parameters, False),), {"cuts": clip}, ())
    return Architecture(
        title="Patches of ViT-B/32", segmenter=segmenter, anatomy=anatomy, sides=(64,),
        notes=("It knows nothing.",), templates=(),
    )


METHOD = replace(BASE, key="patches", title="Patches", architecture=architecture)
"""
# One that ends with an error that nobody foresaw.
CRASHING = """
from dataclasses import replace

from built_of import METHOD as BASE


def load(*args, **options):
    segmenter = BASE.load(*args, **options)
    segmenter.segment_arrays = lambda *given: 1 / 0
    return segmenter


METHOD = replace(BASE, key="crashing", title="Crashing", load=load)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which wheels of foreign packages are installed."""
    folder = tmp_path_factory.mktemp("plugins")
    site = folder / "site"
    build(folder, site, "dummy_method", DUMMY, {"redness": "dummy_method:METHOD"})
    build(folder, site, "built_of", DUMMY, {})
    build(folder, site, "built_method", BUILT, {"patches": "built_method:METHOD"})
    build(folder, site, "crashing_method", CRASHING, {"crashing": "crashing_method:METHOD"})
    broken = {"broken": "broken_method:METHOD", "misnamed": "dummy_method:METHOD"}
    build(folder, site, "broken_method", "raise OSError('the disk is on fire')\n", broken)
    return site


def build(folder: Path, site: Path, package: str, code: str, entries: dict[str, str]) -> None:
    """Build a wheel of one module and install it into a folder of its own."""
    source = folder / package
    source.mkdir()
    lines = "\n".join(f'{key} = "{value}"' for key, value in entries.items())
    text = PROJECT.format(package=package, entries=lines)
    (source / "pyproject.toml").write_text(text)
    (source / f"{package}.py").write_text(code)
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(words, check=True, cwd=source, capture_output=True)
    (wheel,) = (folder / "dist").glob(f"{package}*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


@pytest.fixture(scope="module")
def command(plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """Run a command as a user does who has installed the plugins."""
    cache = tmp_path_factory.mktemp("cache")  # also where it runs: its folder "world" is no data

    def start(*words: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(plugins), "OPENVOCAB_CACHE": str(cache)}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache)

    return start


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images whose left half is black and whose right half is red, labelled so."""
    folder = tmp_path_factory.mktemp("data") / "halves"
    truth = np.zeros((32, 48), np.uint8)
    truth[:, 24:] = 1
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index in range(2):
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[..., 0] = 250 * truth
        picture[:4, :, 1] = 50 * index
        Image.fromarray(picture).save(folder / "images" / f"{index}.png")
        Image.fromarray(truth).save(folder / "labels" / f"{index}.png")
    (folder / "names.txt").write_text("night\npoppy\n")
    return folder


def test_it_predicts(command, data, tmp_path) -> None:
    words = ["--method", "redness", "--class-names", "night,poppy", "--output", tmp_path / "out"]
    done = command("-m", "openvocab.predict", data / "images" / "0.png", *words)
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "out" / "0_labels.png"))
    assert (labels == np.asarray(Image.open(data / "labels" / "0.png"))).all()
    found = json.loads((tmp_path / "out" / "0.json").read_text())
    assert found["method"]["method"] == "Redness"


def test_it_is_evaluated_and_compared(command, data, tmp_path) -> None:
    words = ["--images", data / "images", "--labels", data / "labels"]
    words += ["--names", data / "names.txt"]
    words += ["--method", "redness", "--output", tmp_path]
    done = command("-m", "openvocab.evaluate", *words)
    assert done.returncode == 0, done.stderr
    result = Result.load(tmp_path / "result.json")
    assert result.card.method == "Redness" and result.card.n_images == 2
    assert result.matrix.trace() == 2 * 32 * 48
    done = command("-m", "openvocab.compare", tmp_path, tmp_path)
    assert done.returncode == 0 and done.stdout.count("100.00") >= 2


def test_an_unknown_method_is_one_sentence_that_lists_the_installed_ones(command) -> None:
    words = ["image.png", "--class-names", "a"]
    for start in (
        ("-m", "openvocab.predict", "--method", "nonesuch", *words),
        (ROOT / "benchmarks" / "run_all.py", "--models", "nonesuch"),
    ):
        done = command(*start)
        said, _, installed = done.stderr.strip().partition("; installed are ")
        assert done.returncode == 2 and said == "error: there is no method 'nonesuch'"
        keys = ["san", "ovseg", "car", "crashing", "patches", "redness"]
        assert [key for key in installed.split(", ") if key in keys] == keys
    done = command("-m", "openvocab.predict", "--method", "broken", *words)
    assert done.returncode == 2 and done.stderr == (
        "error: the method 'broken' of the package broken_method-plugin cannot be used: OSError: "
        "the disk is on fire\n"
    )


@pytest.fixture(scope="module")
def report(command, tmp_path_factory) -> Path:
    """The output of a comparison of two methods of others and one of ours, on the world."""
    output = tmp_path_factory.mktemp("report") / "out"
    words = ["--models", "crashing", "redness", "patches", "san", "--limit", "2", "--no-diagnoses"]
    script = ROOT / "benchmarks" / "run_all.py"
    done = command(script, *words, "--no-structure", "--output", output)
    assert done.returncode == 1, done.stderr  # since one crashed
    assert "crashing_method.py" in done.stderr
    structure = command(ROOT / "benchmarks" / "structure" / "measure.py", "patches")
    assert structure.returncode == 0, structure.stderr
    (output / "results" / "structure-patches.json").write_text(structure.stdout)
    done = command(ROOT / "benchmarks" / "reporting" / "report.py", output)
    assert done.returncode == 0, done.stderr
    return output


def test_the_report_shows_it_everywhere(report) -> None:
    page, text = ((report / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<h1>SAN, Patches and Redness, measured</h1>" in page
    for said in (page, text):
        for title in ("Redness", "Patches", "SAN"):
            assert said.count(title) > 5
    found = json.loads((report / "results" / "world--comparison.json").read_text())
    assert found["scores"].keys() == found["times"].keys() == {"redness", "patches", "san"}
    assert len(found["paired"]) == 3 and found["gallery"]
    assert (report / "figures" / "world-classes-redness-patches.png").is_file()


def test_what_a_method_does_not_offer_is_left_out(report) -> None:
    page = (report / "report.html").read_text()
    table = page[page.index('id="cost"') : page.index("Stages and parameters")]
    assert "Patches of ViT-B/32" in table and "Redness" not in table
    assert "figures/diagram-patches.svg" in (report / "report.md").read_text()
    assert not (report / "figures" / "diagram-redness.svg").exists()
    thresholds = page[page.index("Acceptance thresholds") :]
    assert "SAN, seen names" in thresholds and "Redness, seen names" not in thresholds


def test_a_broken_plugin_is_named_and_stops_nobody(report) -> None:
    missing = json.loads((report / "results" / "missing.json").read_text())["missing"]
    said = {entry["what"]: entry["sentence"] for entry in missing}
    assert "the disk is on fire" in said["method broken of broken_method-plugin"]
    assert "its key is 'redness'" in said["method misnamed of broken_method-plugin"]
    assert said["crashing on world"] == "it failed with ZeroDivisionError: division by zero"
    assert said["wording of crashing"].startswith("it failed with ZeroDivisionError")
    assert sum(what.startswith("method ") for what in said) == 2 and len(said) == 4
    assert "the disk is on fire" in (report / "report.html").read_text()
