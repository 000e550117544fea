"""Videos in, label maps, an overlay video and a line of JSON for each frame out."""

from __future__ import annotations

import argparse
import builtins
import csv
import json
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openvocab import cli
from openvocab.formats.run_length import decode_rle
from openvocab.image import ImageArray, read_label_map
from openvocab.inference.video import LabelSmoother, read_frames
from openvocab.predict import add_predict_arguments, run_prediction
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import Vocabulary

av = pytest.importorskip("av")

COLORS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200)}
NAMES = ("--class-names", ",".join(COLORS))


class Brightest(BaseSegmenter):
    """Gives each pixel the name whose place is that of its brightest channel."""

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        labels = [image.argmax(axis=2).astype(np.int32) for image in images]
        return [Segmentation(one, vocabulary) for one in labels]

    def describe(self) -> dict[str, Any]:
        return {"method": "brightest"}


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def main(arguments: Sequence[str] | None) -> int:
        parser = argparse.ArgumentParser()
        add_predict_arguments(parser)
        return run_prediction(parser.parse_args(arguments), lambda args: Brightest())

    return lambda *argv: cli.run(main, argv)


def moving(place: int, size: tuple[int, int] = (48, 65)) -> ImageArray:
    """A blue square on red, whose left side is at a place."""
    image = np.full((*size, 3), COLORS["red"], np.uint8)
    image[10:30, place : place + 20] = COLORS["blue"]
    return image


def clip(path: str, images: Sequence[ImageArray], times: Sequence[float]) -> Path:
    """Write a video without loss of position: frames with timestamps of any distance."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "5"})
        stream.height, stream.width = images[0].shape[0] // 2 * 2, images[0].shape[1] // 2 * 2
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for image, seconds in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(image[: stream.height, : stream.width]), format="rgb24"
            )
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


TIMES = [0, 0.1, 0.15, 0.6, 1.4, 1.5]  # as of a phone, which keeps no rate


def test_a_video_gives_labels_overlay_and_lines_of_json(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [moving(4 * index) for index in range(6)]
    clip("clip.mp4", images, TIMES)
    assert predict("clip.mp4", *NAMES, "--output", "out") == 0
    assert "'clip.mp4' is done" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("out/clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    np.testing.assert_allclose([line["seconds"] for line in lines], TIMES, atol=2e-3)
    for index, line in enumerate(lines):
        labels = read_label_map(f"out/clip/{index:06}_labels.png")
        truth = images[index][:, :64].argmax(axis=2)
        assert (labels == truth).mean() > 0.97  # the codec blurs edges
        masks = {one["name"]: decode_rle(one["rle"]) for one in line["segments"]}
        np.testing.assert_array_equal(masks["blue"], labels == 2)
    with av.open("out/clip_overlay.mp4") as container:
        size = container.streams.video[0].height, container.streams.video[0].width
        times = [float(frame.time) for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, TIMES, atol=2e-3)
    assert size == (48, 64)  # that of the video
    assert sorted(path.name for path in Path("out").iterdir()) == [
        ".predict.jsonl",
        "clip",
        "clip.jsonl",
        "clip_overlay.mp4",
        "names.txt",
        "summary.csv",
        "summary.json",
    ]
    assert Path("out/names.txt").read_text().split() == list(COLORS)


def test_frames_are_chosen_by_time(predict: Callable[..., int]) -> None:
    clip("clip.mp4", [moving(4 * index) for index in range(6)], TIMES)
    assert predict("clip.mp4", *NAMES, "--every", "0.5", "--save", "json") == 0
    lines = [json.loads(line) for line in Path("output/clip.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([one["seconds"] for one in lines], [0, 0.6, 1.4], atol=2e-3)
    assert not Path("output/clip").exists()


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    path = clip(str(tmp_path / "a.mp4"), [moving(0)], [0])
    upright = next(read_frames(path)).image
    turned = tmp_path / "turned.mp4"
    with av.open(str(path)) as source, av.open(str(turned), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    data = bytearray(turned.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # the matrix of the track
    quarter = (0, 0x10000, 0, -0x10000 & 0xFFFFFFFF, 0, 0, 0, 0, 0x40000000)
    data[place : place + 36] = b"".join(value.to_bytes(4, "big") for value in quarter)
    turned.write_bytes(data)
    image = next(read_frames(turned)).image
    assert image.shape[:2] == upright.shape[1::-1]
    assert np.abs(image.astype(int) - np.rot90(upright, -1)).mean() < 3


def test_a_folder_of_images_and_videos(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in/trip").mkdir(parents=True)
    Image.fromarray(moving(0)).save("in/a.png")
    clip("in/b.mp4", [moving(0)], [0])
    clip("in/trip/b.mov", [moving(0), moving(5)], [0, 0.1])
    assert predict("in", *NAMES) == 0
    assert Path("output/a_labels.png").exists() and Path("output/b/000000_labels.png").exists()
    assert len(Path("output/trip/b.jsonl").read_text().splitlines()) == 2
    assert Path("output/trip/b_overlay.mp4").exists()
    assert "1 of 1 images done" in capsys.readouterr().out
    Path("output/b.jsonl").unlink()
    before = Path("output/trip/b.jsonl").stat().st_mtime_ns
    assert predict("in", *NAMES, "--skip-existing") == 0
    assert Path("output/b.jsonl").exists()
    assert Path("output/trip/b.jsonl").stat().st_mtime_ns == before
    assert predict("in", *NAMES, "--skip-existing", "--glob", "*.mov", "--every", "9") == 0
    assert len(Path("output/trip/b.jsonl").read_text().splitlines()) == 1  # made anew
    kept = {path.name for path in Path("output/trip/b").iterdir()}
    assert kept == {"000000_labels.png", ".predict.json"}  # none of the frames of the older result


def rows() -> list[dict[str, str]]:
    with open("output/summary.csv", newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_the_summary_lists_videos_with_images(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    Image.fromarray(moving(0)).save("in/a.png")
    clip("in/b.mp4", [moving(0), moving(40)], [0, 0.1])
    Path("in/c.mp4").write_bytes(b"no video" * 100)
    assert predict("in", *NAMES, "--smooth", "0.1") == 1
    out, err = capsys.readouterr()
    assert "1 of 1 images done" in out and err.count("in/c.mp4") == 2  # at once and at the end
    listed = {row["file"] for row in rows()}
    assert listed == {"in/a.png", "in/b.mp4", "in/c.mp4"}
    (bad,) = (row for row in rows() if row["file"] == "in/c.mp4")
    assert "cannot be read as a video" in bad["failure"] and bad["name"] == ""
    shares = {row["name"]: float(row["share"]) for row in rows() if row["file"] == "in/b.mp4"}
    assert shares["red"] + shares["blue"] == pytest.approx(1, abs=1e-5)
    frames = [read_label_map(f"output/b/{index:06}_labels.png") for index in (0, 1)]
    assert shares["blue"] == pytest.approx(np.mean([one == 2 for one in frames]), abs=1e-5)
    before = rows()
    assert predict("in", *NAMES, "--smooth", "0.1", "--skip-existing", "--glob", "[ab]*") == 0
    assert rows() == [row for row in before if row["file"] != "in/c.mp4"]
    found = json.loads(Path("output/summary.json").read_text())
    assert (found["total"], found["done"], found["failed"]) == (2, 2, 0)


def test_what_a_video_does_not_get_is_said_in_one_sentence(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    clip("clip.mp4", [moving(0)], [0])
    Image.fromarray(moving(0)).save("a.png")
    save = ("--save", "label,scores,coco")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Brightest, "segment_arrays", with_scores)
        assert predict("clip.mp4", "a.png", *NAMES, *save) == 0
    err = capsys.readouterr().err
    assert err == "of a video, --save writes only label, overlay, json, and not scores, coco\n"
    assert json.loads(Path("output/coco.json").read_text())["images"][0]["file_name"] == "a.png"
    assert Path("output/clip/000000_labels.png").exists()
    assert predict("clip.mp4", *NAMES, "--save", "label,coco", "--quiet", "--output", "quiet") == 0
    assert capsys.readouterr().err == "" and not Path("quiet/coco.json").exists()


def with_scores(
    self: Brightest, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
) -> list[Segmentation]:
    scores = [image.transpose(2, 0, 1).astype(np.float32) / 255 for image in images]
    return [Segmentation(one.argmax(axis=0).astype(np.int32), vocabulary, one) for one in scores]


def test_formats_that_videos_do_not_have(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    clip("clip.mp4", [moving(0)], [0])
    assert predict("clip.mp4", *NAMES, "--save", "coco") == 2
    assert "writes only label, overlay, json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "cannot be read"), (b"no video" * 100, "cannot be read")]
)
def test_what_is_no_video_does_not_stop_the_rest(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    Path("bad.mp4").write_bytes(content)
    clip("clip.mp4", [moving(0)], [0])
    assert predict("bad.mp4", "clip.mp4", *NAMES) == 1
    err = capsys.readouterr().err
    assert message in err and "bad.mp4" in err and err.count("\n") == 1
    assert Path("output/clip.jsonl").exists() and not Path("output/bad.jsonl").exists()


def test_a_video_that_was_cut_off_gives_what_it_holds(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    clip("clip.mkv", list(noise), [index / 10 for index in range(40)])
    data = Path("clip.mkv").read_bytes()
    Path("clip.mkv").write_bytes(data[: len(data) // 2])
    assert predict("clip.mkv", *NAMES, "--save", "json") in (0, 1)
    lines = Path("output/clip.jsonl").read_text().splitlines()
    assert 5 < len(lines) < 40
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--every", "-1"), "--every is -1"),
        (("--smooth", "nan"), "--smooth is nan"),
        (("--output", "one.png"), "go to a folder"),
        (("other/clip.mp4",), "same name"),
        (("--max-pixels", "100"), "limit of 100"),
    ],
)
def test_what_makes_no_sense(
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    argv: tuple[str, ...],
    message: str,
) -> None:
    Path("other").mkdir()
    for path in ("clip.mp4", "other/clip.mp4"):
        clip(path, [moving(0)], [0])
    assert predict(*NAMES, "--input", "clip.mp4", *argv) in (1, 2)
    assert message in capsys.readouterr().err


def test_without_the_library_one_sentence_names_the_extra(
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip("clip.mp4", [moving(0)], [0])

    def without(name: str, *more: Any) -> Any:
        if name == "av":
            raise ModuleNotFoundError(name)
        return builtins.__import__(name, *more)

    monkeypatch.setattr("openvocab.errors.import_module", without)
    assert predict("clip.mp4", *NAMES) == 1
    assert "[video]" in capsys.readouterr().err


# --- smoothing


def noisy(time: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of a moving square, and what a method that errs at a tenth of pixels says."""
    truth = (moving(time // 4)[..., 2] > 100).astype(np.int32)
    wrong = rng.random(truth.shape) < 0.1
    return truth, np.where(wrong, rng.integers(-1, 3, truth.shape), truth).astype(np.int32)


def miou(truth: np.ndarray, labels: np.ndarray) -> float:
    values = [
        ((truth == k) & (labels == k)).sum() / ((truth == k) | (labels == k)).sum() for k in (0, 1)
    ]
    return float(np.mean(values))


def test_smoothing_flickers_less_and_is_no_less_right() -> None:
    rng, smoother = np.random.default_rng(0), LabelSmoother(0.15)
    flicker, quality = {"raw": 0.0, "smooth": 0.0}, {"raw": 0.0, "smooth": 0.0}
    before: dict[str, np.ndarray] = {}
    for time in range(60):
        truth, raw = noisy(time, rng)
        found = {"raw": raw, "smooth": smoother.smooth(raw, time / 25)}
        for name, labels in found.items():
            if name in before:
                flicker[name] += float((labels != before[name]).mean())
            quality[name] += miou(truth, labels) / 60
            before[name] = labels
    assert flicker["smooth"] < 0.2 * flicker["raw"]
    assert quality["smooth"] > quality["raw"] + 0.1


def test_a_lasting_change_is_shown_in_time() -> None:
    smoother = LabelSmoother(0.2)
    for time in range(20):
        smoother.smooth(np.zeros((1, 1), np.int32), time / 20)
    shown = [int(smoother.smooth(np.ones((1, 1), np.int32), 1 + t / 20)[0, 0]) for t in range(10)]
    assert shown[0] == 0 and shown[-1] == 1 and shown == sorted(shown)
    assert shown.index(1) / 20 == pytest.approx(0.2 * np.log(2), abs=0.06)


def test_memory_is_flat(predict: Callable[..., int]) -> None:
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("the system does not tell how much memory a process has")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    images = [moving(index % 40, (200, 260)) for index in range(300)]
    clip("clip.mp4", images, [index / 25 for index in range(300)])
    del images
    assert predict("clip.mp4", *NAMES, "--every", "0.5", "--output", "a") == 0
    before = resident()
    assert predict("clip.mp4", *NAMES, "--output", "b", "--save", "json,overlay") == 0
    assert resident() - before < 60 * 2**20  # 300 decoded frames would be 47 MB, labels 62 MB
