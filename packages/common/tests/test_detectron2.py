from __future__ import annotations

import importlib.util
import io
import json
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.datasets import ALIASES, CATALOG, resolve
from openvocab.errors import InputError
from openvocab.formats.detectron2 import (
    PredictedClass,
    dataset_dicts,
    dataset_metadata,
    flatten,
    labels_of_predictions,
    merge_overrides,
    read_checkpoint,
    read_predictions,
    read_yaml,
    register_datasets,
    write_predictions,
)
from openvocab.formats.detectron2_model import as_detectron2_model
from openvocab.formats.run_length import encode_labels
from openvocab.metrics.scores import ConfusionMatrix, scores
from openvocab.vocabulary import Vocabulary

HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
needs_detectron2 = pytest.mark.skipif(
    not HAS_DETECTRON2, reason="detectron2 is not installed (it is on no package index)"
)


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# --- configs ------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "MODEL:\n  WEIGHTS: base.pth\n  CLIP_ADAPTER:\n    MASK_THR: 0.4\n"
        "INPUT:\n"
        "  MIN_SIZE_TRAIN: !!python/object/apply:eval "
        '["[int(x * 0.1 * 640) for x in range(5, 8)]"]\n'
        "  MIN_SIZE_TRAIN_SAMPLING: choice\n"
        'DATASETS:\n  TEST: ("ade20k_sem_seg_val",)\nSOLVER:\n  STEPS: !!python/tuple [1, 2]\n'
    )
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text("_BASE_: ../base.yaml\nMODEL:\n  CLIP_ADAPTER:\n    MASK_THR: 0.35\n")
    return child


def test_a_config_with_its_base(config_file):
    assert read_yaml(config_file) == {
        "MODEL": {"WEIGHTS": "base.pth", "CLIP_ADAPTER": {"MASK_THR": 0.35}},
        "INPUT": {"MIN_SIZE_TRAIN": [320, 384, 448], "MIN_SIZE_TRAIN_SAMPLING": "choice"},
        "DATASETS": {"TEST": ("ade20k_sem_seg_val",)},
        "SOLVER": {"STEPS": (1, 2)},
    }


def test_overrides_are_read_as_python_values(config_file):
    config = read_yaml(config_file)
    merged = merge_overrides(
        config,
        ["DATASETS.TEST", "('a', 'b')", "MODEL.CLIP_ADAPTER.MASK_THR", "0.5", "NEW.KEY", "x y"],
    )
    flat = flatten(merged)
    assert flat["DATASETS.TEST"] == ("a", "b")
    assert flat["MODEL.CLIP_ADAPTER.MASK_THR"] == 0.5
    assert flat["NEW.KEY"] == "x y"
    assert flat["MODEL.WEIGHTS"] == "base.pth"
    assert config["MODEL"]["CLIP_ADAPTER"]["MASK_THR"] == 0.35  # the argument is left alone


@pytest.mark.parametrize(
    ("overrides", "message"), [(["A"], "'A' has no value"), (["A.B.C", "1"], "'B' is a value")]
)
def test_wrong_overrides(overrides, message):
    with pytest.raises(InputError, match=message):
        merge_overrides({"A": {"B": 1}}, overrides)


@pytest.mark.parametrize(
    "content",
    [
        'A: !!python/object/apply:os.system ["touch {marker}"]',
        """A: !!python/object/apply:eval ["__import__('os').system('touch {marker}')"]""",
        "A: !!python/object/apply:eval [\"open('{marker}', 'w')\"]",
        'A: !!python/object/new:os.system ["touch {marker}"]',
        "A: !!python/name:os.system",
        "A: !!python/object/apply:eval [1, 2]",
        "A: !!python/tuple 3",
    ],
)
def test_a_config_that_would_run_code_is_refused_and_nothing_ran(tmp_path, content):
    marker = tmp_path / "ran"
    file = tmp_path / "evil.yaml"
    file.write_text(content.replace("{marker}", str(marker)))
    with pytest.raises(InputError, match=r"evil\.yaml"):
        read_yaml(file)
    assert not marker.exists()


def test_configs_that_cannot_be_read(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.write_text("_BASE_: loop.yaml\n")
    with pytest.raises(InputError, match="inherits from itself"):
        read_yaml(loop)
    loop.write_text("_BASE_: missing.yaml\n")
    with pytest.raises(InputError, match=r"missing\.yaml: No such file"):
        read_yaml(loop)
    loop.write_text("just text")
    with pytest.raises(InputError, match="no keys"):
        read_yaml(loop)


# --- checkpoints --------------------------------------------------------------------------------

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_model_zoo_pickles(tmp_path, protocol):
    file = tmp_path / "R-50.pkl"
    content = {"model": OrderedDict(ARRAYS), "__author__": "third_party"}
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_checkpoint(file)
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name].numpy(), array)


def test_pickles_with_tensors_parameters_and_scalars(tmp_path):
    """What converting Swin's checkpoint for OVSeg leaves behind."""
    file = tmp_path / "swin.pkl"
    weight = torch.arange(6.0).reshape(2, 3)
    content = {
        "model": {"t": weight.T, "p": torch.nn.Parameter(weight), "s": np.float32(3), "n": "text"},
        "matching_heuristics": True,
    }
    file.write_bytes(pickle.dumps(content))
    read = read_checkpoint(file)
    assert read.keys() == {"t", "p", "s"}
    assert torch.equal(read["t"], weight.T)
    assert torch.equal(read["p"], weight) and not read["p"].requires_grad
    assert read["s"].item() == 3


def test_pth_files(tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(2)}, "iteration": 3}, file)
    assert torch.equal(read_checkpoint(file)["a"], torch.ones(2))


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class Evaluates(Runs):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class HidesInStorage(Runs):
    def __reduce__(self):
        inner = io.BytesIO()
        torch.save(Runs(self.marker), inner)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("attack", [Runs, Evaluates, HidesInStorage])
def test_a_checkpoint_that_runs_code_is_refused_and_nothing_ran(tmp_path, suffix, attack):
    marker, file = tmp_path / "ran", tmp_path / f"evil{suffix}"
    content = {"model": {**ARRAYS, "x": attack(marker)}}
    if suffix == ".pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(InputError, match="evil"):
        read_checkpoint(file)
    assert not marker.exists()
    if attack is Runs:  # and it would have run
        pickle.loads(pickle.dumps(content))
        assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable pickle"),
        (pickle.dumps({"model": ARRAYS})[:-40], "not a readable pickle"),
        (b"no pickle at all", "not a readable pickle"),
        (pickle.dumps([1, 2]), "no arrays by name"),
        (pickle.dumps({"model": {"a": "text"}}), "no arrays by name"),
    ],
)
def test_pickles_that_are_no_weights(tmp_path, content, message):
    file = tmp_path / "weights.pkl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_checkpoint(file)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_checkpoint(tmp_path / "no.pkl")


# --- predictions --------------------------------------------------------------------------------


def predictions_of(name, labels):
    return [PredictedClass(name, label, code) for label, code in encode_labels(labels).items()]


def test_predictions_are_read_back(tmp_path):
    random = np.random.default_rng(0)
    maps = {f"{i}.jpg": random.integers(-1, 3, (5, 4 + i)).astype(np.int32) for i in range(3)}
    file = tmp_path / "sem_seg_predictions.json"
    write_predictions(file, (p for name, m in maps.items() for p in predictions_of(name, m)))
    plain = json.loads(file.read_text())
    assert plain[0].keys() == {"file_name", "category_id", "segmentation"}
    assert plain[0]["segmentation"].keys() == {"size", "counts"}
    read = read_predictions(file)
    assert list(read) == list(maps)
    for name, labels in maps.items():
        np.testing.assert_array_equal(labels_of_predictions(read[name]), labels)


def test_no_predictions(tmp_path):
    write_predictions(tmp_path / "empty.json", [])
    assert read_predictions(tmp_path / "empty.json") == {}


def test_category_ids_of_a_data_set():
    predictions = predictions_of("a.jpg", np.array([[92, 1]], dtype=np.int32))
    assert labels_of_predictions(predictions, {1: 0, 92: 80}).tolist() == [[80, 0]]
    with pytest.raises(InputError, match="category 92"):
        labels_of_predictions(predictions, {1: 0})


def test_masks_of_different_sizes():
    both = predictions_of("a", np.zeros((2, 2), int)) + predictions_of("a", np.zeros((2, 3), int))
    with pytest.raises(InputError, match="differ in size"):
        labels_of_predictions(both)
    with pytest.raises(InputError, match="no predictions"):
        labels_of_predictions([])


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"file_name": "a"}]'])
def test_files_that_are_no_predictions(tmp_path, content):
    file = tmp_path / "p.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"sem_seg_predictions\.json"):
        read_predictions(file)


# --- dict formats -------------------------------------------------------------------------------


class Channels:
    """Scores words by the colour channels: red, green, blue."""

    def scores_at(self, image, vocabulary, output_size):
        assert image.dtype == np.uint8
        scores = torch.from_numpy(image).permute(2, 0, 1).float()[: len(vocabulary.words)]
        return torch.nn.functional.interpolate(scores[None], size=output_size)[0]


def test_a_model_takes_and_gives_detectron2_dicts():
    model = as_detectron2_model(Channels(), Vocabulary(("red", "green", "blue")))
    image = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    whole, sized, own = model(
        [
            {"image": image, "file_name": "a.jpg"},
            {"image": image.float(), "height": 8, "width": 12},
            {"image": image, "vocabulary": ["red", "green"]},
        ]
    )
    assert torch.equal(whole["sem_seg"], image.float())
    assert sized["sem_seg"].shape == (3, 8, 12)
    assert sized["sem_seg"].dtype == torch.float32
    assert torch.equal(own["sem_seg"], image[:2].float())
    with pytest.raises(InputError, match="'image'"):
        model([{"image": image[0]}])


@pytest.fixture
def ade(tmp_path):
    """Two images of ADE20K in detectron2's layout."""
    root = tmp_path / "ADEChallengeData2016"
    random = np.random.default_rng(0)
    for name in ("ADE_val_2", "ADE_val_1"):
        truth = random.choice([0, 3, 149, 255], (6, 6)).astype(np.uint8)
        write_png(root / "images" / "validation" / f"{name}.jpg", np.zeros((6, 6, 3), np.uint8))
        write_png(root / "annotations_detectron2" / "validation" / f"{name}.png", truth)
    return tmp_path


def test_a_data_set_in_detectron2_dicts(ade):
    listed = dataset_dicts(resolve("ade20k_sem_seg_val", ade))
    assert [Path(entry["file_name"]).name for entry in listed] == ["ADE_val_1.jpg", "ADE_val_2.jpg"]
    labels = Path(listed[0]["sem_seg_file_name"])
    assert labels.relative_to(ade).parts[1:] == (
        *("annotations_detectron2", "validation"),
        "ADE_val_1.png",
    )


def test_label_maps_in_another_code_are_not_handed_to_detectron2(ade):
    root = ade / "ADEChallengeData2016"
    (root / "annotations_detectron2").rename(root / "annotations")  # values 1..150 are the classes
    with pytest.raises(InputError, match="another code"):
        dataset_dicts(resolve("ade20k-150", ade))


@pytest.mark.parametrize(
    ("vocabulary", "ignore", "label"),
    [("ade20k-150", None, 255), ("ade20k-847", None, 65535), ("ade20k-150", (459, 65535), 65535)],
)
def test_metadata(vocabulary, ignore, label):
    names = Vocabulary.load(vocabulary)
    metadata = dataset_metadata(names, ignore)
    assert metadata["stuff_classes"] == list(names.names)
    assert metadata["ignore_label"] == label
    assert metadata["evaluator_type"] == "sem_seg"


class FakeCatalog(dict):
    """detectron2's `DatasetCatalog`: functions by name, no name twice."""

    def register(self, name, function):
        assert name not in self
        self[name] = function

    def list(self):
        return list(self)

    def get(self, name):  # type: ignore[override]
        return self[name]()


class FakeMetadata(SimpleNamespace):
    def set(self, **values):
        for key, value in values.items():
            assert getattr(self, key, value) == value  # as detectron2: never another value
            setattr(self, key, value)


class FakeMetadataCatalog(dict):
    """detectron2's `MetadataCatalog`: made on the first `get`."""

    def get(self, name):  # type: ignore[override]
        return self.setdefault(name, FakeMetadata())


@pytest.fixture
def catalogs(monkeypatch):
    """The documented interface of detectron2's catalogs, for machines without it."""
    data: Any = ModuleType("detectron2.data")
    data.DatasetCatalog, data.MetadataCatalog = FakeCatalog(), FakeMetadataCatalog()
    monkeypatch.setitem(sys.modules, "detectron2", ModuleType("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2.data", data)
    return data


def test_all_names_are_registered_without_touching_a_file(catalogs, tmp_path):
    new = register_datasets(tmp_path / "nothing here")
    assert {*CATALOG, *ALIASES} == set(new) == set(catalogs.DatasetCatalog.list())
    assert len(catalogs.MetadataCatalog.get("pascal_context_459_sem_seg_val").stuff_classes) == 459
    assert register_datasets() == ()
    with pytest.raises(InputError, match="nothing here"):
        catalogs.DatasetCatalog.get("ade20k_full_sem_seg_val")


def test_names_of_detectron2_itself_are_left_alone(catalogs, ade):
    catalogs.DatasetCatalog.register("ade20k_sem_seg_val", lambda: "its own")
    assert "ade20k_sem_seg_val" not in register_datasets(ade)
    assert catalogs.DatasetCatalog.get("ade20k_sem_seg_val") == "its own"
    assert len(catalogs.DatasetCatalog.get("ade20k-150")) == 2


def test_a_layout_with_its_own_order_corrects_the_metadata(catalogs, ade):
    register_datasets(ade)
    wrong = catalogs.MetadataCatalog.get("ade20k-150")
    wrong.stuff_classes = ["other", "order"]
    catalogs.DatasetCatalog.get("ade20k-150")
    corrected = catalogs.MetadataCatalog.get("ade20k-150").stuff_classes
    assert corrected == list(Vocabulary.load("ade20k-150").names)


@pytest.mark.skipif(HAS_DETECTRON2, reason="detectron2 is installed")
def test_registering_without_detectron2_says_so():
    with pytest.raises(InputError, match="detectron2 is not installed"):
        register_datasets()


@needs_detectron2
def test_registered_sets_are_in_its_catalogs(ade):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    register_datasets(ade)
    assert DatasetCatalog.get("ade20k-150") == dataset_dicts(resolve("ade20k-150", ade))
    assert len(MetadataCatalog.get("ade20k-150").stuff_classes) == 150


@needs_detectron2
def test_metrics_equal_its_evaluator(ade):
    from detectron2.evaluation import SemSegEvaluator

    register_datasets(ade)
    evaluator = SemSegEvaluator("ade20k-150", distributed=False)
    evaluator.reset()
    data = resolve("ade20k-150", ade)
    ours = ConfusionMatrix(150)
    for sample, entry in zip(data.samples, dataset_dicts(data), strict=True):
        score = torch.rand(150, 6, 6)
        evaluator.process([entry], [{"sem_seg": score}])
        ours.update(score.argmax(0).numpy(), data.read_label(sample))
    theirs = evaluator.evaluate()["sem_seg"]
    assert scores(ours.matrix).miou == pytest.approx(theirs["mIoU"])
    assert scores(ours.matrix).fwiou == pytest.approx(theirs["fwIoU"])
