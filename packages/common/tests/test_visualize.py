"""Pictures [image | prediction | ground truth] for predictions of any program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvocab.datasets import resolve
from openvocab.datasets.coco_stuff import category_ids
from openvocab.datasets.predictions import open_predictions
from openvocab.errors import InputError
from openvocab.formats.detectron2 import PredictedClass, write_predictions
from openvocab.formats.run_length import encode_labels
from openvocab.visualize import draw_row, main


@pytest.fixture
def coco(tmp_path, make_image, make_labels) -> Path:
    root = tmp_path / "data"
    for i in range(2):
        make_image(root / f"coco/val2017/{i:012d}.jpg", (24, 32), i)
        labels = np.zeros((24, 32))
        labels[12:] = 11  # stop sign: its COCO id is 13
        labels[20:] = 170  # wood: 182, which tells ids from labels
        make_labels(root / f"coco/stuffthingmaps_detectron2/val2017/{i:012d}.png", labels)
    return root


def predictions_file(path: Path, root: Path, ids) -> Path:
    data = resolve("coco-stuff-171", root)
    write_predictions(
        path,
        (
            PredictedClass(str(sample.image), ids[label], code)
            for sample in data.samples
            for label, code in encode_labels(data.read_label(sample)).items()
        ),
    )
    return path


@pytest.mark.parametrize("ids", [category_ids(), list(range(171))], ids=["COCO's", "labels"])
def test_perfect_predictions_look_like_the_ground_truth(coco, tmp_path, ids):
    """The original drew COCO's ids as if they were labels; here both panels are the same."""
    data = resolve("coco-stuff-171", coco)
    found = open_predictions(predictions_file(tmp_path / "p.json", coco, ids), data)
    picture = draw_row(data.samples[0], found, data)
    height = 512
    panels = picture[-height:]
    image_width = round(32 * height / 24)
    rest = (panels.shape[1] - image_width - 20) // 2
    prediction = panels[:, image_width + 10 : image_width + 10 + rest]
    truth = panels[:, -rest:]
    np.testing.assert_array_equal(prediction, truth)
    assert (panels[:, image_width : image_width + 10] == 255).all()  # the gap
    assert not np.array_equal(truth[: height // 4], truth[height // 2 : 3 * height // 4])


def test_the_command_writes_a_picture_for_each_image(coco, tmp_path, capsys):
    path = predictions_file(tmp_path / "p.json", coco, category_ids())
    arguments = ["--dataset", "coco_2017_test_stuff_sem_seg", "--data-root", str(coco), "--quiet"]
    output = tmp_path / "pictures"
    assert main(["--input", str(path), "--output", str(output), *arguments]) == 0
    assert sorted(p.name for p in output.iterdir()) == ["000000000000.png", "000000000001.png"]
    assert "2 pictures" in capsys.readouterr().out
    with Image.open(output / "000000000000.png") as picture:
        assert picture.width > 2 * picture.height > 1000
    limited = tmp_path / "limited"
    assert main(["--input", str(path), "--output", str(limited), *arguments, "--limit", "1"]) == 0
    assert len(list(limited.iterdir())) == 1


def test_folders_of_label_maps_are_drawn_too(coco, tmp_path, make_labels):
    make_labels(tmp_path / "out/000000000001.png", np.full((24, 32), 170))
    arguments = ["--dataset", "coco-stuff-171", "--data-root", str(coco), "--quiet"]
    assert (
        main(["--input", str(tmp_path / "out"), "--output", str(tmp_path / "x"), *arguments]) == 0
    )
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["000000000001.png"]


def test_predictions_of_the_wrong_size_are_named(coco, tmp_path, make_labels):
    make_labels(tmp_path / "out/000000000001.png", np.full((12, 16), 170))
    arguments = ["--dataset", "coco-stuff-171", "--data-root", str(coco), "--quiet"]
    with pytest.raises(InputError, match="prediction of 000000000001 has the size"):
        main(["--input", str(tmp_path / "out"), "--output", str(tmp_path / "x"), *arguments])


@pytest.mark.parametrize(("limit", "words"), [("0", "at least 1"), ("-3", "at least 1")])
def test_the_limit_is_checked(coco, tmp_path, limit, words):
    arguments = ["--dataset", "coco-stuff-171", "--data-root", str(coco), "--limit", limit]
    with pytest.raises(InputError, match=words):
        main(["--input", str(tmp_path), "--output", str(tmp_path / "x"), *arguments])


def test_labels_without_a_name_are_not_drawn_as_nothing(tmp_path, make_image, make_labels):
    make_image(tmp_path / "i/a.png", (24, 32), 0)
    make_labels(tmp_path / "l/a.png", np.full((24, 32), 2))
    make_labels(tmp_path / "out/a.png", np.full((24, 32), 1))
    (tmp_path / "names.txt").write_text("cat\nsky\n")
    arguments = ["--images", str(tmp_path / "i"), "--labels", str(tmp_path / "l"), "--quiet"]
    arguments += ["--names", str(tmp_path / "names.txt"), "--input", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"holds 2 .*--label-offset -1"):
        main([*arguments, "--output", str(tmp_path / "x")])
    assert main([*arguments, "--output", str(tmp_path / "x"), "--label-offset", "-1"]) == 0
