from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from car import evaluate
from car.referring import evaluate_referring, score_records, sentences_of
from openvocab.datasets.referring import DATA, IMAGES, ReferringSample, load_referring
from openvocab.errors import InputError
from openvocab.evaluation.log import ImageRecord
from openvocab.metrics.scores import count_pairs

BOX = [75.0, 20.0, 105.0, 20.0, 105.0, 70.0, 75.0, 70.0]


@pytest.fixture
def data_root(photo, tmp_path):
    images, folder = tmp_path / IMAGES, tmp_path / DATA / "refcoco"
    images.mkdir(parents=True)
    folder.mkdir(parents=True)
    Image.fromarray(photo).save(images / "one.png")
    sentences = [{"sent": "blue box", "raw": 'Blue "Box"/'}, {"sent": "the box", "raw": "the box"}]
    refs = [
        {"ref_id": n, "ann_id": 7, "image_id": 1, "split": "val", "sentences": sentences}
        for n in (1, 2)
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    instances = {
        "images": [{"id": 1, "file_name": "one.png", "height": 90, "width": 120}],
        "annotations": [{"id": 7, "segmentation": [BOX]}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def test_sentences_are_cleaned_as_in_the_original(data_root) -> None:
    sample = load_referring("refcoco", "val", data_root)[0]
    assert sentences_of("refcoco", sample) == ("blue box", "the box")
    assert sentences_of("gres", sample) == ('Blue "Box"/', "the box")


def test_the_command_scores_a_set_and_resumes(
    data_root, clip_files, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("OPENVOCAB_CACHE", "")
    output = tmp_path / "out"
    arguments = [
        *("--config", "refcoco", "--data-root", str(data_root), "--output", str(output)),
        *("--clip", str(clip_files[0]), "--classifier-clip", str(clip_files[1])),
    ]
    assert evaluate.main([*arguments, "--limit", "1"]) == 0
    assert evaluate.main(arguments) == 0
    text = capsys.readouterr().out
    assert "2 items" in text and "published, val mIoU: 33.57" in text
    written = json.loads((output / "referring.json").read_text())
    assert written["scores"]["n"] == 2 and "precision@0.5" in written["scores"]
    assert written["card"]["data_set"] == "refcoco" and written["card"]["method"] == "CaR"
    assert written["card"]["settings"]["mode"] == "refer"


def test_finished_items_are_not_computed_again(tiny, data_root, tmp_path, monkeypatch) -> None:
    segmenter = tiny(mode="refer", semantic_templates=None)
    samples = load_referring("refcoco", "val", data_root)
    options = {"name": "refcoco", "split": "val", "output": tmp_path / "o", "progress": False}
    first = evaluate_referring(segmenter, samples, limit=1, **options)
    assert first.complete and first.scores.n == 1
    calls = []
    find = segmenter.find_object
    monkeypatch.setattr(segmenter, "find_object", lambda *a: calls.append(1) or find(*a))
    assert evaluate_referring(segmenter, samples, **options).scores.n == 2
    assert len(calls) == 1
    with pytest.raises(InputError, match="no items"):
        evaluate_referring(segmenter, samples, limit=0, **options)


def test_scores_equal_the_recorded_overlap(golden) -> None:
    with np.load(golden / "unit_labels_metrics.npz") as file:
        truth, merged = file["ci_gt"][0] > 0, file["mg_out"][0] > 0
        shared, union, iou = file["ci"]
    pairs = count_pairs(merged.astype(np.uint8), truth.astype(np.uint8), 2)
    found = score_records([ImageRecord("a", pairs)])
    assert found.overall_iou == pytest.approx(100 * shared / union)
    assert found.mean_iou == pytest.approx(100 * iou)


def test_an_item_without_pixels_counts_as_a_miss() -> None:
    nothing = np.zeros((4, 4), np.uint8)
    right = count_pairs(nothing + 1, nothing + 1, 2)
    records = [ImageRecord("a", count_pairs(nothing, nothing, 2)), ImageRecord("b", right)]
    found = score_records(records)
    assert found.mean_iou == 50 and found.overall_iou == 100
    assert found.precision[0.5] == 50


def test_an_image_of_another_size_is_named(tiny, picture_of_another_size, tmp_path) -> None:
    with pytest.raises(InputError, match="but its annotation is for 120x90"):
        evaluate_referring(
            tiny(mode="refer"),
            (picture_of_another_size,),
            name="refcoco",
            split="val",
            output=tmp_path / "o",
            progress=False,
        )


@pytest.fixture
def picture_of_another_size(tmp_path) -> ReferringSample:
    path = tmp_path / "small.png"
    Image.new("RGB", (50, 40)).save(path)
    return ReferringSample("1", path, ("a box",), ([BOX],), (90, 120))
