"""The types of the JSON that the measuring parts write and the reporting parts read."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from openvocab.world.crop_accuracy import CropAccuracy


class Costs(TypedDict):
    """Time and memory of an evaluation.

    `seconds` is the median for an image, `peak_gib` the largest resident memory of the process and
    `libraries_gib` the part of it that was there before the method was loaded.
    """

    seconds: float
    images: int
    peak_gib: float
    libraries_gib: float


class PartScores(TypedDict):
    """mIoU in percent over all classes and, where training saw some of them, over parts."""

    all: float | None
    seen: NotRequired[float | None]
    unseen: NotRequired[float | None]
    harmonic: NotRequired[float | None]


class Control(TypedDict):
    """mIoU of the shuffled-name control, and the ratio of the method's mIoU to it."""

    miou: float | None
    ratio: float | None
    permutations: int
    seed: int


class Paired(TypedDict):
    """A difference of mIoU on the same images with its 95 % interval."""

    difference: float | None
    low: float | None
    high: float | None
    probability_better: float
    images: NotRequired[int]


class MethodPair(TypedDict):
    """The differences between two methods on the same images: protocols, and first minus second."""

    first: str
    second: str
    protocol: list[str]
    conventions: dict[str, Paired]


class Between(TypedDict):
    """A difference of first minus second, with an interval corrected for the number of pairs."""

    first: str
    second: str
    difference: float | None
    low: float | None
    high: float | None


class Seen(TypedDict):
    """The classes that training saw, and the list from which they come."""

    list: str
    classes: int
    ids: list[int]
    methods: NotRequired[dict[str, dict[str, PartScores]]]


class DiagnosisEntry(TypedDict):
    """Scores of one diagnosis, or the reason why there are none."""

    title: str
    note: str
    reason: NotRequired[str]
    images: NotRequired[int]
    all: NotRequired[float | None]
    seen: NotRequired[float | None]
    unseen: NotRequired[float | None]
    harmonic: NotRequired[float | None]
    paired: NotRequired[Paired]


class Panel(TypedDict):
    """One picture of the gallery as a JPEG in base64, and the share that is named right."""

    key: str
    jpeg: str
    right: NotRequired[float]


class Example(TypedDict):
    """A representative image, with the colors of its legend.

    `agreement` is the group of the image, see `reporting.gallery`, and `disagreement` the share of
    its pixels to which not all methods give the same name.
    """

    id: str
    agreement: str
    disagreement: float
    panels: list[Panel]
    legend: list[list[str]]


class MapOfImage(TypedDict):
    """A small label map as PNG in base64, its classes, and the share that is named right."""

    png: str
    classes: list[int]
    right: NotRequired[float]


class Thumbnail(TypedDict):
    """An image of a run, small, as JPEG in base64, and its label maps by method and "truth"."""

    id: str
    agreement: str
    disagreement: float
    jpeg: str
    maps: dict[str, MapOfImage]


class CalibrationCurves(TypedDict):
    """How good the confidences of a method are; shares and confidences in 0..1, None where empty.

    `error` is the expected calibration error with its 95 % interval from `low` to `high`. By bin of
    confidence: `confidence` is the mean, `accuracy` the share of right pixels with its 95 %
    interval from `accuracy_low` to `accuracy_high`, and `pixels` their number. By threshold:
    `coverage` is the share of pixels that is kept, `risk` that of wrong ones among them.
    """

    error: float
    low: float
    high: float
    pixels: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]
    accuracy_low: list[float | None]
    accuracy_high: list[float | None]
    coverage: list[float | None]
    risk: list[float | None]


class Comparison(TypedDict):
    """Everything that the report shows of a data set beyond the single results, by method."""

    format: str
    data_set: str
    title: str
    asked: str
    results: dict[str, str]
    times: dict[str, Costs | None]
    scores: dict[str, PartScores]
    control: dict[str, Control]
    paired: list[MethodPair]
    between: NotRequired[list[Between]]
    titles: NotRequired[dict[str, str]]
    seen: Seen | None
    diagnoses: dict[str, dict[str, DiagnosisEntry]]
    crops: dict[str, CropAccuracy]
    gallery: list[Example]
    calibration: dict[str, CalibrationCurves]


class Announced(TypedDict):
    """The description of a diagnosis; `reason` says why it could not be done, or is ""."""

    title: str
    note: str
    paired: bool
    reason: str


class Point(TypedDict):
    """One point of a latency curve; where `seconds` is None, `reason` says why."""

    names: NotRequired[int]
    side: NotRequired[int]
    seconds: float | None
    reason: NotRequired[str]


Curves = dict[str, list[Point]]


class Latency(TypedDict):
    """The curves of a method with its weights on the embedded world."""

    format: str
    method: str
    weights: str
    torch: str
    threads: int
    side: int
    few_names: int
    curves: Curves


class StageCost(TypedDict):
    """The description and the cost of one stage."""

    key: str
    title: str
    weights: str
    detail: str
    calls: int
    gflop: float
    seconds: float


class PartCount(TypedDict):
    """The number of parameters of one part."""

    title: str
    count: int
    trained: bool


class Parameters(TypedDict):
    """Numbers of parameters."""

    total: int
    trained: int
    frozen: int
    parts: list[PartCount]


class Vision(TypedDict):
    """The part of a CLIP's architecture that the report quotes."""

    layers: int


class TowerUse(TypedDict):
    """The inputs of a CLIP's image tower, and the blocks that ran otherwise than in CLIP."""

    passes: int
    pictures: int
    input_sizes: list[list[int]]
    tokens: list[int]
    replaced_before: list[int]
    attention_recomposed: list[int]
    gradients: list[int]


class Tower(TowerUse):
    """The use of one CLIP of a method."""

    role: str
    vision: Vision


class AddedName(TypedDict):
    """The cost of one more name: once for its text, and on every image."""

    text_gflop_once: float
    clip_gflop_each_image: float


class Structure(TypedDict):
    """The structure of a published architecture and its cost."""

    format: str
    method: str
    title: str
    torch: str
    threads: int
    image: list[int]
    names: int
    notes: list[str]
    parameters: Parameters
    stages: list[StageCost]
    clip: list[Tower]
    pictures_at_most: int | None
    names_enter: list[str]
    ways: list[list[str]]
    image_gib: float
    added_names: AddedName
    training_mib: float | None
    seconds: float
    curves: NotRequired[Curves]


class MissingEntry(TypedDict):
    """A requested result that is missing."""

    what: str
    sentence: str


class ThresholdRow(TypedDict):
    """An acceptance threshold, the score, and whether it is reached; None: not decided."""

    what: str
    path: str
    at_least: NotRequired[float]
    above: NotRequired[float]
    reached: float | None
    holds: bool | None


class PublishedRow(TypedDict):
    """A number that the authors of a method report."""

    method: str
    variant: str
    architecture: str
    data_set: str
    miou: float
    convention: str
    source: str
    certain: bool
    vocabulary: NotRequired[str]
