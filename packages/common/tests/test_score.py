"""Scoring the label maps of any program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import foreign_files
import numpy as np
import pytest
from PIL import Image

from openvocab.cli import run
from openvocab.compare import Evaluation
from openvocab.datasets import resolve
from openvocab.datasets.coco_stuff import category_ids
from openvocab.datasets.predictions import open_predictions
from openvocab.errors import InputError
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import RESULT_FILE
from openvocab.formats.detectron2 import PredictedClass, write_predictions
from openvocab.formats.run_length import encode_labels
from openvocab.metrics.scores import ConfusionMatrix
from openvocab.score import main

NAMES = ("person", "traffic light", "sky", "dog")
CATEGORIES = ("Person", "traffic-light", "sky", "dog")  # the same, as other programs write them

pytestmark = pytest.mark.filterwarnings("ignore:.*are left out")


@pytest.fixture
def coco(tmp_path, make_image, make_labels, make_blocks) -> Path:
    """Three images of COCO-Stuff in detectron2's layout."""
    root = tmp_path / "data"
    for i in range(3):
        stem = f"{139 + i:012d}"
        make_image(root / f"coco/val2017/{stem}.jpg", (24, 32), i)
        labels = make_blocks([0, 3, 80, 170, 255], (24, 32), i)
        make_labels(root / f"coco/stuffthingmaps_detectron2/val2017/{stem}.png", labels)
    return root


def guesses(root: Path, seed: int = 7) -> dict[str, np.ndarray]:
    """Predictions that are partly right, with pixels of nothing."""
    data, rng = resolve("coco-stuff-171", root), np.random.default_rng(seed)
    found = {}
    for sample in data.samples:
        truth = data.read_label(sample)
        noise = rng.choice([0, 3, 100, 170, -1], truth.shape)
        found[sample.id] = np.where((rng.random(truth.shape) < 0.5) & (truth < 255), truth, noise)
    return found


def expected(root: Path, predictions: dict[str, np.ndarray]) -> np.ndarray:
    data = resolve("coco-stuff-171", root)
    matrix = ConfusionMatrix(171, 255)
    for sample in data.samples:
        if sample.id in predictions:
            matrix.update(predictions[sample.id], data.read_label(sample))
    return matrix.matrix


def as_json(path: Path, predictions, root: Path, ids=None) -> None:
    write_predictions(
        path,
        (
            PredictedClass(
                f"/elsewhere/coco/val2017/{stem}.jpg", ids[label] if ids else label, code
            )
            for stem, labels in predictions.items()
            for label, code in encode_labels(labels).items()
        ),
    )


def scored(tmp_path: Path, predictions: Path, *more: str) -> Result:
    output = tmp_path / "scored"
    arguments = ["--predictions", str(predictions), "--output", str(output), "--quiet"]
    assert main([*arguments, *more]) == 0
    return Result.load(output / RESULT_FILE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_folder_of_label_maps(coco, tmp_path, make_labels, suffix):
    predictions = guesses(coco)
    for stem, labels in predictions.items():
        stored = np.where(labels < 0, 255, labels)
        make_labels(tmp_path / f"out/{stem}{suffix}", stored)
    result = scored(
        tmp_path, tmp_path / "out", "--dataset", "coco-stuff-171", "--data-root", str(coco)
    )
    np.testing.assert_array_equal(result.matrix, expected(coco, predictions))
    data = resolve("coco-stuff-171", coco)
    assert result.card.label_tree_hash == data.label_tree_hash() and result.card.n_images == 3


@pytest.mark.parametrize("coco_ids", [True, False])
def test_json_with_ids_of_coco_or_labels_is_told_apart(coco, tmp_path, coco_ids):
    predictions = guesses(coco)
    as_json(tmp_path / "p.json", predictions, coco, category_ids() if coco_ids else None)
    result = scored(
        tmp_path, tmp_path / "p.json", "--dataset", "coco-stuff-171", "--data-root", str(coco)
    )
    np.testing.assert_array_equal(result.matrix, expected(coco, predictions))


def test_ids_that_prove_nothing_must_be_said(coco, tmp_path):
    data = resolve("coco-stuff-171", coco)
    predictions = {sample.id: np.full((24, 32), 3) for sample in data.samples}
    as_json(tmp_path / "p.json", predictions, coco)
    arguments = ["--dataset", "coco-stuff-171", "--data-root", str(coco)]
    with pytest.raises(InputError, match="--category-ids"):
        main(["--predictions", str(tmp_path / "p.json"), *arguments])
    for ids, column in (("labels", 3), ("dataset", 2)):
        result = scored(tmp_path, tmp_path / "p.json", *arguments, "--category-ids", ids)
        assert result.matrix[:, column].sum() == result.matrix.sum() > 0


def test_void_is_never_counted_and_nothing_is_a_miss(coco, tmp_path, make_labels):
    data = resolve("coco-stuff-171", coco)
    for sample in data.samples:
        make_labels(tmp_path / f"out/{sample.id}.png", np.full((24, 32), 255))
    result = scored(
        tmp_path, tmp_path / "out", "--dataset", "coco-stuff-171", "--data-root", str(coco)
    )
    valid = sum(int((data.read_label(s) != 255).sum()) for s in data.samples)
    assert result.matrix[:, -1].sum() == result.matrix.sum() == valid


def test_missing_predictions_are_an_error_unless_allowed(coco, tmp_path, make_labels):
    predictions = guesses(coco)
    kept = sorted(predictions)[:2]
    for stem in kept:
        make_labels(
            tmp_path / f"out/{stem}.png", np.where(predictions[stem] < 0, 255, predictions[stem])
        )
    arguments = ["--dataset", "coco-stuff-171", "--data-root", str(coco)]
    with pytest.raises(InputError, match="1 of 3 images have no prediction, such as 000000000141"):
        main(["--predictions", str(tmp_path / "out"), *arguments])
    result = scored(tmp_path, tmp_path / "out", *arguments, "--partial")
    some = {stem: predictions[stem] for stem in kept}
    np.testing.assert_array_equal(result.matrix, expected(coco, some))
    assert result.card.n_images == 2 and result.images == "2 of 3 images"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full((24, 32), 171), "holds the value 171"),
        (np.full((12, 32), 1), "000000000139: the prediction has size 12 x 32"),
    ],
)
def test_bad_predictions_are_named(coco, tmp_path, make_labels, labels, words):
    for i in range(3):
        make_labels(tmp_path / f"out/{139 + i:012d}.png", labels)
    arguments = ["--dataset", "coco-stuff-171", "--data-root", str(coco), "--quiet"]
    with pytest.raises(InputError, match=words):
        main(["--predictions", str(tmp_path / "out"), *arguments])


def test_names_of_the_set_or_of_its_label_files_both_do(tmp_path, archives, make_labels):
    archives.cityscapes()
    for split_image in (archives.root / "gtFine/val").rglob("*_labelIds.png"):
        name = split_image.name.replace("labelIds", "labelTrainIds")
        make_labels(
            split_image.with_name(name), np.zeros(np.asarray(Image.open(split_image)).shape)
        )
    data = resolve("cityscapes-19", archives.root)
    for i, sample in enumerate(data.samples):
        stem = sample.id.split("/")[1] + ("_leftImg8bit" if i % 2 else "")
        make_labels(tmp_path / f"out/{stem}.png", np.zeros(data.read_label(sample).shape))
    found = open_predictions(tmp_path / "out", data)
    assert all(sample in found for sample in data.samples) and len(data.samples) == 4


def test_voc_20b_counts_everything_else_as_background(archives, tmp_path, make_labels):
    from openvocab.prepare import main as prepare

    archives.voc()
    arguments = ["--source", str(archives.root), "--output", str(tmp_path / "data"), "--quiet"]
    assert prepare(["voc-20b", *arguments]) == 0
    data = resolve("voc-20b", tmp_path / "data")
    for i, sample in enumerate(data.samples):
        shape = data.read_label(sample).shape
        make_labels(tmp_path / f"out/{sample.id}.png", np.full(shape, (20, 45, 58, 255)[i]))
    result = scored(
        tmp_path, tmp_path / "out", "--dataset", "voc-20b", "--data-root", str(tmp_path / "data")
    )
    assert result.matrix.shape == (21, 22)
    assert result.matrix[:, 20].sum() == result.matrix.sum() > 0


def test_folders_with_a_names_file(tmp_path, make_image, make_labels):
    make_image(tmp_path / "images/a.jpg", (24, 32), 0)
    make_labels(tmp_path / "labels/a.png", np.ones((24, 32)))
    make_labels(tmp_path / "out/a.png", np.ones((24, 32)))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    folders = ["--images", "images", "--labels", "labels", "--names", "names.txt"]
    absolute = [str(tmp_path / f) if not f.startswith("--") else f for f in folders]
    result = scored(tmp_path, tmp_path / "out", *absolute)
    assert result.matrix[1, 1] == 24 * 32 == result.matrix.sum()
    with pytest.raises(InputError, match="missing --names; give --dataset"):
        main(["--predictions", str(tmp_path / "out"), *absolute[:4]])


def test_the_command_ends_with_one_sentence(tmp_path):
    command = [
        sys.executable,
        "-m",
        "openvocab.score",
        "--predictions",
        "none",
        "--dataset",
        "voc-20",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "openvocab.prepare voc-20" in done.stderr


@pytest.mark.parametrize("content", ["[]", "{}", "[1]", "not JSON"])
def test_json_without_predictions(coco, tmp_path, content):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError):
        open_predictions(tmp_path / "p.json", resolve("coco-stuff-171", coco))


def test_the_result_says_by_which_convention(coco, tmp_path, capsys, make_labels):
    for sample in resolve("coco-stuff-171", coco).samples:
        make_labels(tmp_path / f"out/{sample.id}.png", np.full((24, 32), 7))
    scored(tmp_path, tmp_path / "out", "--dataset", "coco-stuff-171", "--data-root", str(coco))
    text = capsys.readouterr().out
    assert "detectron2-legacy" in text and "mmseg" in text and "have no ground truth here" in text
    content = json.loads((tmp_path / "scored" / RESULT_FILE).read_text())
    assert content["card"]["method"] == "out"


# --- which prediction belongs to which image ----------------------------------------------------


@pytest.fixture
def namesakes(tmp_path, make_image, make_labels) -> list[str]:
    """Three images a/x.png, b/x.png, c/x.png, whose label maps are 0, 1 and 2 throughout."""
    for label, folder in enumerate("abc"):
        make_image(tmp_path / f"i/{folder}/x.png", (8, 9), label)
        make_labels(tmp_path / f"l/{folder}/x.png", np.full((8, 9), label))
    (tmp_path / "names.txt").write_text("cat\ndog\nsky\n")
    folders = {"--images": "i", "--labels": "l", "--names": "names.txt"}
    return [text for flag, name in folders.items() for text in (flag, str(tmp_path / name))]


def perfect(path: Path, names: dict[str, int]) -> Path:
    code = encode_labels(np.zeros((8, 9), np.int32))[0]
    write_predictions(path, (PredictedClass(name, label, code) for name, label in names.items()))
    return path


@pytest.mark.parametrize(
    "root", ["/elsewhere/i/", "C:\\data\\i\\", "", "./", "\\\\server\\share\\", "i/"]
)
def test_the_longest_common_end_of_the_path_decides(namesakes, tmp_path, root):
    end = "\\x.png" if "\\" in root else "/x.png"
    file = perfect(tmp_path / "p.json", {f"{root}{f}{end}": i for i, f in enumerate("abc")})
    assert scored(tmp_path, file, *namesakes).scores("detectron2").miou == 100


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_namesake_fills_no_gap(namesakes, tmp_path, as_folder, make_labels):
    if as_folder:
        for label, folder in enumerate("ab"):
            make_labels(tmp_path / f"out/run/{folder}/x.png", np.full((8, 9), label))
        found = tmp_path / "out"
    else:
        found = perfect(tmp_path / "p.json", {"q/a/x.png": 0, "q/b/x.png": 1})
    with pytest.raises(InputError, match="1 of 3 images have no prediction, such as c/x;"):
        scored(tmp_path, found, *namesakes)
    with pytest.warns(UserWarning, match="1 of 3 images have no prediction, such as c/x; they"):
        result = scored(tmp_path, found, *namesakes, "--partial")
    assert result.card.n_images == 2 and result.scores("detectron2").miou == 100


def test_a_bare_name_counts_only_where_it_is_the_only_one(namesakes, tmp_path, make_image):
    with pytest.raises(InputError, match=r"no prediction .*1 predictions, such as x\.png, fit no"):
        scored(tmp_path, perfect(tmp_path / "p.json", {"x.png": 0}), *namesakes)
    for folder in "ab":
        (tmp_path / f"i/{folder}/x.png").unlink()
    with pytest.raises(InputError, match="no prediction has the name"):
        scored(tmp_path, perfect(tmp_path / "p.json", {"d/x.png": 2, "e/x.png": 2}), *namesakes)
    with pytest.warns(UserWarning, match=r"belong to no image of the set, such as y\.png"):
        file = perfect(tmp_path / "p.json", {"other/x.jpg": 2, "y.png": 1})
        assert scored(tmp_path, file, *namesakes).matrix[2, 2] == 72


def test_two_predictions_of_one_name_are_refused(namesakes, tmp_path, make_labels):
    for suffix in (".png", ".tif"):
        make_labels(tmp_path / f"out/a/x{suffix}", np.zeros((8, 9)))
    with pytest.raises(InputError, match=r"a/x\.png and .*a/x\.tif differ in their suffix only"):
        scored(tmp_path, tmp_path / "out", *namesakes)


# --- what other programs write ------------------------------------------------------------------


@pytest.fixture
def shapes(tmp_path, make_image, make_labels) -> tuple[list[str], dict[str, np.ndarray]]:
    """A set of three images with four classes and void, and label maps that are partly right."""
    rng, guessed = np.random.default_rng(3), {}
    for i in range(3):
        truth = rng.integers(0, 4, (12, 10))
        guessed[f"{i}"] = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4))
        truth[0] = 255
        make_image(tmp_path / f"images/{i}.jpg", (12, 10), i)
        make_labels(tmp_path / f"labels/{i}.png", truth)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    flags = ("images", "labels", "names")
    files = ("images", "labels", "names.txt")
    words = [w for f, n in zip(flags, files, strict=True) for w in (f"--{f}", str(tmp_path / n))]
    return words, guessed


@pytest.mark.parametrize("write", foreign_files.FORMATS)
def test_all_formats_give_the_same_matrix(shapes, tmp_path, write):
    words, guessed = shapes
    path = write(tmp_path / "out", guessed, CATEGORIES)
    offset = ["--prediction-offset", "-1"] if write is foreign_files.from_one else []
    result = scored(tmp_path, path, *words, *offset)
    matrix = ConfusionMatrix(4, 255)
    for stem, labels in guessed.items():
        matrix.update(labels, np.asarray(Image.open(tmp_path / f"labels/{stem}.png")))
    np.testing.assert_array_equal(result.matrix, matrix.matrix)


def test_a_panoptic_json_without_categories_has_labels_as_ids(shapes, tmp_path):
    words, guessed = shapes
    expected = scored(tmp_path, foreign_files.plain(tmp_path / "out", guessed, NAMES), *words)
    path = foreign_files.panoptic(tmp_path / "p", guessed, NAMES, listed=False)
    np.testing.assert_array_equal(scored(tmp_path, path, *words).matrix, expected.matrix)


def test_panoptic_predictions_that_cannot_be_meant(shapes, tmp_path):
    words, guessed = shapes
    foreign_files.panoptic(tmp_path / "p", guessed, [*CATEGORIES[:3], "hydrant"])
    with pytest.raises(InputError, match=r"no class of the data set, such as 'hydrant' \(1 in"):
        main(["--predictions", str(tmp_path / "p.json"), *words])
    foreign_files.panoptic(tmp_path / "q", guessed, CATEGORIES)
    Image.new("RGB", (10, 12), (9, 9, 9)).save(tmp_path / "q/0.png")
    with pytest.raises(InputError, match="pixels of the segment 592137, which its JSON lacks"):
        main(["--predictions", str(tmp_path / "q.json"), *words])


def without_an_id(content):
    del content["annotations"][1]["segments_info"][0]["id"]


def with_an_image_twice(content):
    content["annotations"].append(content["annotations"][0])


def with_a_category_as_text(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_an_id, "segments_info with id and category_id"),
        (with_a_category_as_text, "segments_info with id and category_id"),
        (with_an_image_twice, "two annotations of one file_name"),
    ],
)
def test_damaged_panoptic_jsons(shapes, tmp_path, capsys, damage, said):
    words, guessed = shapes
    path = foreign_files.panoptic(tmp_path / "p", guessed, CATEGORIES)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    assert run(main, ["--predictions", str(path), *words, "--workers", "1"]) == 2
    assert said in capsys.readouterr().err


def test_ids_that_are_no_labels_are_not_said_to_count_from_one(shapes, tmp_path, capsys):
    words, guessed = shapes
    shifted = {stem: labels + 1 for stem, labels in guessed.items()}
    path = foreign_files.detectron2(tmp_path / "p", shifted, NAMES)
    assert run(main, ["--predictions", str(path), *words, "--workers", "1"]) == 2
    assert "as category ids" in (said := capsys.readouterr().err) and "offset" not in said


def test_masks_of_two_categories_do_not_overlap(shapes, tmp_path):
    words, guessed = shapes
    path = foreign_files.detectron2(tmp_path / "p", guessed, NAMES)
    content = json.loads(path.read_text())
    path.write_text(json.dumps([*content, {**content[0], "category_id": 2}]))
    with pytest.raises(InputError, match="pixels in the masks of two categories, such as 2"):
        main(["--predictions", str(path), *words, "--workers", "1"])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((5, 12, 10)), "with K = 4"),
        (np.zeros((12, 10)), "expected integer labels"),
        (np.full((4, 12, 10), np.nan), "nan"),
        (np.array([{}], dtype=object), "no array of NumPy"),
    ],
)
def test_arrays_that_are_no_predictions(shapes, tmp_path, array, said):
    words, guessed = shapes
    (tmp_path / "out").mkdir()
    for stem in guessed:
        np.save(tmp_path / f"out/{stem}.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=said):
        main(["--predictions", str(tmp_path / "out"), *words, "--workers", "1"])


def test_labels_that_count_from_one_are_suspected(shapes, tmp_path):
    words, guessed = shapes
    guessed = {stem: np.minimum(labels + 1, 3) for stem, labels in guessed.items()}
    foreign_files.plain(tmp_path / "out", guessed, NAMES)
    with pytest.warns(UserWarning, match="would be right if the predictions counted from 1"):
        scored(tmp_path, tmp_path / "out", *words)


def test_the_output_is_that_of_an_evaluation(shapes, tmp_path, capsys):
    words, guessed = shapes
    foreign_files.plain(tmp_path / "out", guessed, NAMES)
    (tmp_path / "card.yaml").write_text("weights: ours, epoch 12\nresize_rule: short side 512\n")
    result = scored(tmp_path, tmp_path / "out", *words, "--card", str(tmp_path / "card.yaml"))
    found = Evaluation.read(tmp_path / "scored")
    assert sorted(found.records) == ["0", "1", "2"]
    stated = {k: v for k, v in result.card.settings.items() if k.startswith("stated by the user")}
    assert stated["stated by the user: weights"] == "ours, epoch 12"
    assert stated["stated by the user: templates"] == "not stated"
    (tmp_path / "card.yaml").write_text("weight: x\n")
    more = [*words, "--output", str(tmp_path / "again"), "--card", str(tmp_path / "card.yaml")]
    assert run(main, ["--predictions", str(tmp_path / "out"), *more]) == 2
    assert "did you mean weights?" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    with pytest.raises(InputError, match="give the name of a folder"):
        main(["--predictions", str(tmp_path / "out"), *words, "--output", "result.json"])
