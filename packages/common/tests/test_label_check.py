"""Label maps that cannot mean what they say are refused before the work, with the remedy."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from openvocab import score
from openvocab.cli import run
from openvocab.datasets.label_check import check_labels, survey_labels
from openvocab.datasets.samples import FolderDataset
from openvocab.errors import InputError
from openvocab.evaluation.run import evaluate_set
from openvocab.image import read_image, read_label_map
from openvocab.segmenter import Segmentation

NAMES = ("wood", "crab", "pig")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_set(root: Path, *maps: object, names: tuple[str, ...] = NAMES) -> FolderDataset:
    (root / "i").mkdir()
    (root / "l").mkdir()
    (root / "n.txt").write_text("\n".join(names))
    for index, one in enumerate(maps):
        labels = np.asarray(one, np.uint8)
        Image.fromarray(labels).save(root / "l" / f"{index}.png")
        Image.new("RGB", labels.shape[::-1]).save(root / "i" / f"{index}.png")
    return FolderDataset(root / "i", root / "l", root / "n.txt")


class Zeros:
    def segment(self, image: NDArray[np.uint8], vocabulary: object, **_: object) -> Segmentation:
        return Segmentation(np.zeros(image.shape[:2], np.int32), vocabulary)

    def describe(self) -> dict[str, str]:
        return {"method": "zeros"}


def evaluate(data: FolderDataset) -> object:
    return evaluate_set(Zeros(), data, progress=False)


def scored(data: FolderDataset) -> object:
    argv = ["--images", str(data.images), "--labels", str(data.labels), "--quiet"]
    argv += ["--names", str(data.names_file), "--predictions", str(data.labels)]
    return score.main(argv)


@pytest.mark.parametrize("check", [check_labels, evaluate, scored])
@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([[[0, 1]], [[2, 77]]], r"1\.png: .*77 \(1 pixel\).*0\.\.2.*ignore value$"),
        ([[[0, 3]], [[0, 1]]], r"0\.png: .*3 \(1 pixel\).*count from 1.*--label-offset -1"),
        ([[[1, 2]], [[255, 3]]], r"1\.png: .*3 \(1 pixel\).*--label-offset -1"),
        ([[[0, 255]], [[0, 0]]], "only 0 and 255, like masks .* 255 is void: write .* as 1"),
        ([[[0, 128]], [[0, 0]]], r"0\.png: .*128 \(1 pixel\).* masks of one class, write .* as 1"),
        ([[[255, 255]], [[255, 255]]], r"every pixel of the 2 label maps is void \(255\)"),
    ],
)
def test_values_that_cannot_be_meant(
    tmp_path: Path, check: object, maps: list[list[list[int]]], message: str
) -> None:
    data = make_set(tmp_path, *maps)
    with pytest.raises(InputError, match=message):
        check(data)  # type: ignore[operator]


def test_one_stray_value_is_no_rule(tmp_path: Path) -> None:
    data = make_set(tmp_path, *[[[0, 1]]], *[[[1, 2]]] * 8, [[1, 3]])
    with pytest.raises(InputError, match=r"ignore value$"):
        check_labels(data)


def test_what_is_right_passes_without_a_word(tmp_path: Path) -> None:
    data = make_set(tmp_path, [[0, 1]], [[2, 255]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = check_labels(data)
    assert seen.pixels == {0: 1, 1: 1, 2: 1, 255: 1} and seen.files[255] == 1


def test_a_declared_void_value_is_believed(tmp_path: Path) -> None:
    made = make_set(tmp_path, [[0, 255]])
    declared = FolderDataset(made.images, made.labels, made.names_file, ignore_index=(255,))
    assert check_labels(declared).pixels == {0: 1, 255: 1}


@pytest.mark.parametrize("check", [check_labels, evaluate])
def test_void_values_that_leave_nothing_are_refused_also_where_they_are_declared(
    tmp_path: Path, check: object
) -> None:
    made = make_set(tmp_path, [[0, 1]], [[1, 1]])
    data = FolderDataset(made.images, made.labels, made.names_file, ignore_index=(0, 1))
    with pytest.raises(InputError, match=r"every pixel of the 2 label maps is void \(0, 1\)"):
        check(data)  # type: ignore[operator]


def test_masks_of_a_single_name_are_warned_of(tmp_path: Path) -> None:
    data = make_set(tmp_path, [[0, 255]], names=("crab",))
    with pytest.warns(UserWarning, match="255 is void: only pixels of 0 count"):
        check_labels(data)


def test_labels_that_count_from_one_are_shifted(tmp_path: Path) -> None:
    made = make_set(tmp_path, [[0, 1, 3, 255]])
    data = FolderDataset(made.images, made.labels, made.names_file, label_offset=-1)
    check_labels(data)
    assert data.read_label(data.samples[0]).tolist() == [[255, 0, 2, 255]]
    assert data.label_tree_hash() != made.label_tree_hash()
    argv = ["--images", str(made.images), "--labels", str(made.labels), "--quiet"]
    argv += ["--names", str(made.names_file), "--label-offset", "-1"]
    right = tmp_path / "right"
    right.mkdir()
    Image.fromarray(np.array([[0, 0, 2, 0]], np.uint8)).save(right / "0.png")
    assert (
        score.main([*argv, "--predictions", str(right), "--output", str(tmp_path / "scored")]) == 0
    )
    assert (
        '"label_tree_hash": "' + data.label_tree_hash()
        in (tmp_path / "scored" / "result.json").read_text()
    )


def test_the_offset_is_for_folders_only(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--predictions", "x", "--dataset", "voc-20", "--label-offset", "-1"]
    assert run(score.main, argv) == 2
    assert "the label values of voc-20 are known" in capsys.readouterr().err


def test_a_tree_is_read_once_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    data = make_set(tmp_path, [[0, 1]], [[2, 255]])
    first = survey_labels(data, data.samples, 3, (255,))
    with monkeypatch.context() as nothing_is_read:
        nothing_is_read.setattr(FolderDataset, "read_label", None)
        assert survey_labels(data, data.samples, 3, (255,)) == first
    Image.fromarray(np.array([[7, 7], [7, 7]], np.uint8)).save(data.samples[0].label)
    with pytest.raises(InputError, match="7 "):
        check_labels(data)
    for damage in ('{"pixels": 3', '{"pixels": {"1": Infinity}, "files": {}}', "[" * 5000, "\0"):
        for file in (cache / "labels").iterdir():
            file.write_text(damage)
        with pytest.raises(InputError, match="7 "):
            check_labels(data)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options", "name"),
    [
        (".jpg", {"quality": 95}, "JPEG"),
        (".webp", {}, "WEBP"),
        (".jp2", {}, "JPEG 2000"),
        (".tif", {"compression": "jpeg"}, "JPEG"),
    ],
)
def test_label_maps_compressed_with_loss_are_refused(
    tmp_path: Path, suffix: str, options: dict[str, object], name: str
) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(path, **options)
    with pytest.raises(InputError, match=f"is {name}, which changes .* PNG or TIFF"):
        read_label_map(path)


def test_label_maps_in_colors_are_told_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    colors = np.zeros((4, 4, 3), np.uint8)
    colors[0] = (128, 0, 0)
    Image.fromarray(colors).save(path)
    with pytest.raises(InputError, match=r"'RGB', .* 2 colors, such as \(0, 0, 0\), \(128, 0, 0\)"):
        read_label_map(path)
    Image.fromarray(np.repeat(np.eye(4, dtype=np.uint8)[..., None], 3, axis=2)).save(path)
    with pytest.raises(InputError, match="channels are equal, so keep one"):
        read_label_map(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    with pytest.raises(InputError, match="photograph, or was compressed"):
        read_label_map(path)


def turn(path: Path, orientation: int) -> None:
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("check", [check_labels, evaluate])
def test_an_image_that_exif_turns_beside_a_label_map_that_is_not(
    tmp_path: Path, check: object, orientation: int
) -> None:
    data = make_set(tmp_path, np.arange(6).reshape(2, 3) % 3)
    turn(data.samples[0].image, orientation)
    message = rf"3 x 2 pixels .* 2 x 3: EXIF turns the image \(orientation {orientation}\) and the"
    with pytest.raises(InputError, match=message):
        check(data)  # type: ignore[operator]


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_turn_that_sizes_do_not_show_is_warned_of(tmp_path: Path, orientation: int) -> None:
    data = make_set(tmp_path, np.arange(6).reshape(2, 3) % 3)
    turn(data.samples[0].image, orientation)
    with pytest.warns(UserWarning, match=r"EXIF turns 1 images, such as .*0\.png"):
        check_labels(data)


def test_an_upright_label_map_of_a_turned_image_is_right(tmp_path: Path) -> None:
    data = make_set(tmp_path, np.arange(6).reshape(2, 3) % 3)
    turn(data.samples[0].image, 6)
    upright = np.arange(6).reshape(3, 2) % 3
    Image.fromarray(upright.astype(np.uint8)).save(data.samples[0].label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_labels(data)


def test_sizes_are_compared_before_the_work(tmp_path: Path) -> None:
    data = make_set(tmp_path, [[0, 1, 2]], [[0, 1]])
    Image.new("RGB", (5, 4)).save(data.samples[1].image)
    with pytest.raises(InputError, match=r"1\.png has 4 x 5 .*1\.png 1 x 2; they must be the same"):
        check_labels(data)


def test_twelve_bits_in_sixteen_are_recognized_or_named(tmp_path: Path) -> None:
    grey = np.array([[0, 2048, 4095]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match=r"a\.tif': .* up to 4095 only and is read as 12 bits"):
        assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(grey).save(tmp_path / "a.png")
    for source, name in ((tmp_path / "a.png", r"a\.png'"), (grey, "the image array")):
        with pytest.warns(UserWarning, match=f"{name}: .* up to 4095 of 65535 only, nearly black"):
            assert read_image(source).max() == 16
    Image.fromarray(grey * 4).save(tmp_path / "b.tif")
    with pytest.warns(UserWarning, match="up to 16380 of 65535"):
        read_image(tmp_path / "b.tif")
    Image.fromarray(grey * 16).save(tmp_path / "c.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "c.tif").max() == 255


def test_known_sets_can_be_checked_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from openvocab.datasets import label_check
    from openvocab.world import open_world

    data = open_world("val")
    alone = label_check.survey_labels(data, data.samples, 60, (255,))
    monkeypatch.setattr(label_check, "_MANY", 1)
    monkeypatch.setattr(label_check, "_remembered_in", lambda *_: None)
    monkeypatch.setattr(label_check, "default_workers", lambda: 2)
    assert label_check.survey_labels(data, data.samples, 60, (255,)) == alone
