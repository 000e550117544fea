"""What is measured of a running model is what the model does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from benchmarks.structure import measure as structure
from benchmarks.structure.latency import measure_curves, picture
from benchmarks.structure.measure import NAMES, measure
from benchmarks.structure.stage_costs import Spent, kept_for_training, metered, traced

import car.stages
import ovseg.stages
import san.stages
from openvocab.stages import Architecture, Stage

ANATOMY = {"san": san.stages, "ovseg": ovseg.stages, "car": car.stages}


@pytest.fixture
def subject(segmenters, request) -> Architecture:
    method = request.param
    templates = {"car": (("{}",), "car")}.get(method, ("vild",))
    anatomy = ANATOMY[method].anatomy(segmenters[method])
    return Architecture(method, segmenters[method], anatomy, (48, 64), (), templates)


def every(method):
    return pytest.mark.parametrize("subject", method, indirect=True)


@every(["san", "ovseg", "car"])
def test_parameters_are_all_counted_once(subject) -> None:
    parts = [p for part in subject.anatomy.parts for p in part.parameters.values()]
    assert len({id(p) for p in parts}) == len(parts)
    owners = {"san": "network", "ovseg": "model"}
    counted = structure.parameters_of(subject.anatomy)
    if subject.title in owners:
        model = getattr(subject.segmenter, owners[subject.title])
        assert counted["total"] == sum(p.numel() for p in model.parameters())
    else:
        clips = {id(clip): clip for clip in subject.anatomy.clips.values()}
        total = sum(p.numel() for clip in clips.values() for p in clip.parameters())
        assert counted["total"] == total and counted["trained"] == 0
    assert counted["trained"] + counted["frozen"] == counted["total"]


@every(["san", "ovseg", "car"])
def test_measuring_leaves_the_model_as_it_was(subject, monkeypatch) -> None:
    monkeypatch.setattr(structure, "SIDE", 64)
    image = picture(64)
    before = subject.segmenter.segment(image, NAMES).labels
    owned = [(o, n, n in vars(o)) for s in subject.anatomy.stages for o, n in s.calls]
    found = measure("x", subject=replace(subject))
    assert owned == [(o, n, n in vars(o)) for s in subject.anatomy.stages for o, n in s.calls]
    assert (subject.segmenter.segment(image, NAMES).labels == before).all()
    assert json.loads(json.dumps(found)) == found
    stages = {stage["key"]: stage for stage in found["stages"]}
    assert all(stage["calls"] and stage["seconds"] > 0 for stage in stages.values())
    assert "curves" not in found
    assert set(found["names_enter"]) <= stages.keys()
    assert found["added_names"]["text_gflop_once"] > 0


@every(["san"])
def test_san_shows_clip_one_picture_and_adds_its_queries_late(subject) -> None:
    with traced(subject.segmenter.network.clip) as trace:
        subject.segmenter.segment(picture(64), NAMES)
    assert trace.inputs == [(1, 32, 32)]
    assert trace.tokens == {1: 5, 2: 5, 3: 5 + 7}
    assert trace.recomposed == {3} and not trace.replaced and not trace.gradients


@every(["ovseg"])
def test_ovseg_replaces_tokens_before_the_first_blocks(subject) -> None:
    clip = subject.segmenter.model.clip_adapter.clip_model
    # A part of the image is masked, so that there is background to replace.
    masks = torch.zeros(2, 64, 64)
    masks[:, 16:48, 8:24] = 1
    masks[:, 0, 63] = 1
    with traced(clip) as trace:
        subject.segmenter.model.clip_adapter.embed(picture(64), masks)
    assert trace.inputs == [(2, 64, 64)]
    assert trace.replaced == {1, 2} and not trace.recomposed


@every(["car"])
def test_car_reads_attention_and_differentiates_the_last_block(subject) -> None:
    proposer, judge = subject.anatomy.clips.values()
    with traced(proposer) as first, traced(judge) as second:
        subject.segmenter.segment(picture(64), NAMES)
    assert first.pictures == 1 and first.gradients == {3} and first.recomposed == {1, 2, 3}
    assert second.pictures >= len(NAMES) and set(second.tokens) == {1, 2}


def test_time_and_operations_go_to_the_innermost_stage() -> None:
    class Model:
        def outer(self) -> None:
            torch.randn(4, 4) @ torch.randn(4, 4)
            self.inner()

        def inner(self) -> None:
            torch.randn(8, 8) @ torch.randn(8, 8)

    model = Model()
    stages = tuple(Stage(n, n, "none", ((model, n),)) for n in ("outer", "inner"))
    with metered(stages, flops=True) as meter:
        model.outer()
        torch.randn(2, 2) @ torch.randn(2, 2)
    flops = {key: spent.flops for key, spent in meter.spent.items()}
    assert flops == {"outer": 2 * 4**3, "inner": 2 * 8**3, "rest": 2 * 2**3}
    assert isinstance(meter.spent["inner"], Spent) and not vars(model)


def test_what_training_keeps_is_counted_without_weights() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 4))
    x = torch.randn(16, 8)
    with kept_for_training([weight]) as sizes:
        (x @ weight).relu()
    # The input, and the output of relu; the weight is there anyway.
    assert sorted(sizes) == [16 * 4 * 4, 16 * 8 * 4]


@every(["san", "car"])
def test_curves_have_every_point(subject) -> None:
    found = measure_curves(subject.segmenter, (2, 5), (48, 64), 64, lambda: 1000)
    assert [(p["names"], p["seconds"] > 0) for p in found["names"]] == [(2, True), (5, True)]
    assert [(p["side"], p["seconds"] > 0) for p in found["side"]] == [(48, True), (64, True)]


@every(["san"])
def test_curves_end_when_the_time_is_up(subject) -> None:
    found = measure_curves(subject.segmenter, (2, 50), (48, 64), 64, lambda: 1e-9)
    for points in found.values():
        assert points[0]["seconds"] and points[1]["seconds"] is None
        assert "0 s were left" in points[1]["reason"]
