"""Which images stand in the gallery, and how small they become."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from benchmarks.reporting import images as embedding
from benchmarks.reporting.gallery import AGREEMENTS, agreement_group, representative, thumbnails
from PIL import Image

from openvocab.drawing.overlay import palette
from openvocab.evaluation.log import ImageRecord
from openvocab.evaluation.run import FolderDataset
from openvocab.formats.run_length import encode_labels
from openvocab.metrics.scores import PairCounts


@pytest.mark.parametrize(
    ("right", "group"),
    [
        ([0.5, 0.9], "all right"),
        ([0.4, 0.9], "one wrong"),
        ([0.4, 0.9, 0.1], "several wrong"),
        ([0.4, 0.1], "all wrong"),
        ([0.1], "all wrong"),
        ([], "no ground truth"),
    ],
)
def test_images_fall_into_groups(right, group) -> None:
    assert agreement_group(right) == group


def test_examples_come_from_every_group_in_proportion() -> None:
    groups = ["all wrong"] * 2 + ["all right"] * 90 + ["one wrong"] * 30
    chosen = representative(groups, 8)
    assert [groups[i] for i in chosen] == ["all right"] * 5 + ["one wrong"] * 2 + ["all wrong"]
    assert len(set(chosen)) == 8 and chosen == representative(groups, 8)
    assert chosen != representative(groups, 8, seed=1)
    assert sorted(representative(groups, 1000)) == list(range(len(groups)))
    assert representative(list(AGREEMENTS), 2) == [0, 1] and representative([], 6) == []


def test_thumbnails_hold_the_maps_in_the_colors_of_their_classes(pictures) -> None:
    data = FolderDataset(pictures / "images", pictures / "labels", pictures / "names.txt")
    truth = {s.id: np.asarray(Image.open(s.label)) for s in data.samples}
    nothing = PairCounts(*(np.zeros(0, np.int64) for _ in range(3)))
    some = {i: np.where(labels == 255, 0, labels) for i, labels in truth.items()}
    found = {
        "a": {i: ImageRecord(i, nothing, None, dict(encode_labels(m))) for i, m in some.items()},
        "b": {i: ImageRecord(i, nothing, None, {}) for i in some},  # finds nothing at all
    }
    entries = thumbnails(data, found, None)
    assert [entry["id"] for entry in entries] == [sample.id for sample in data.samples]
    for entry in entries:
        assert entry["agreement"] == "one wrong" and entry["disagreement"] == 1
        assert entry["maps"]["a"]["right"] == 1 and entry["maps"]["b"]["right"] == 0
        png = io.BytesIO(base64.b64decode(entry["maps"]["a"]["png"]))
        painted = np.asarray(Image.open(png).convert("RGB"))
        np.testing.assert_array_equal(painted, palette(4)[some[entry["id"]]])
        black = io.BytesIO(base64.b64decode(entry["maps"]["b"]["png"]))
        assert not np.asarray(Image.open(black).convert("RGB")).any()
        assert entry["maps"]["b"]["classes"] == []


def test_many_images_are_divided_into_pages(monkeypatch) -> None:
    monkeypatch.setattr(embedding, "EACH", 4)
    image = {"id": "", "agreement": "all right", "disagreement": 0.0, "jpeg": "", "maps": {}}
    entries = [{**image, "id": str(i)} for i in range(10)]
    found = embedding.parts(entries, ["</script>"], {})
    assert [(part["first"], part["last"]) for part in found] == [(1, 4), (5, 8), (9, 10)]
    assert [i["id"] for part in found for i in part["content"]["images"]] == list("0123456789")
    assert "<" not in embedding.embedded_json(found[0]["content"])
