"""Checkpoints: the published models' tensors fit, are written back, and errors name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openvocab.errors import InputError
from openvocab.weights.state_dict import save_state_dict
from ovseg._convert import load_backbone
from ovseg.config import available_configs, from_dict, load_published, to_dict
from ovseg.model import OVSeg
from ovseg.weights import load_model, load_ovseg, save_model

KEYS = Path(__file__).parent / "golden" / "keys"
PUBLISHED = {
    "swinB_vitL": "ovseg_swinB_vitL_bs32_120k",
    "R101c_vitB": "ovseg_R101c_vitB_bs32_120k",
}


@pytest.fixture(params=PUBLISHED)
def published(request):
    """The recorded keys of a published model, and the model, without memory for its weights."""
    keys = json.loads((KEYS / f"{request.param}.json").read_text())
    with torch.device("meta"):
        return keys, OVSeg(load_published(PUBLISHED[request.param])[0])


def test_published_models_have_exactly_the_recorded_tensors(published):
    keys, model = published
    own = {
        k: [list(v.shape), str(v.dtype).removeprefix("torch.")]
        for k, v in model.state_dict().items()
    }
    assert own == {k: v[:2] for k, v in keys.items()}


def test_published_models_train_exactly_the_recorded_parameters(published):
    keys, model = published
    own = {k: p.requires_grad for k, p in model.named_parameters()}
    assert own == {k: v[3] for k, v in keys.items() if v[2] == "param"}


def test_a_published_state_dict_loads_strictly(published):
    keys, model = published
    tensors = {
        k: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for k, (shape, dtype, *_) in keys.items()
    }
    model.load_state_dict(tensors, strict=True)


def test_a_plain_dict_loads_the_pixel_decoder_too(tiny):
    plain = tiny.state_dict()  # no _metadata: the original would leave the pixel decoder random
    assert not hasattr(plain, "_metadata")
    model = load_model(tiny.configs()[0], plain, source="test")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_written_checkpoints_are_read_back(tiny, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    config, inference = tiny.configs()
    save_model(tiny.model(), path, inference)
    yaml_file = tmp_path / "config.yaml"
    yaml_file.write_text(tiny.json("config.json")["cfg_yaml"])
    read = load_ovseg(path, config=yaml_file if suffix == ".pth" else None)
    assert read.model.config == config and read.inference == inference
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor), name


def test_a_checkpoint_without_class_weights_loads(tiny):
    tensors = tiny.state_dict()
    del tensors["criterion.empty_weight"]
    model = load_model(tiny.configs()[0], tensors, source="test")
    assert model.criterion.empty_weight.tolist() == pytest.approx([1] * 6 + [0.1])


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_errors_name_the_tensor(tiny, change):
    tensors = tiny.state_dict()
    name = "sem_seg_head.pixel_decoder.layer_1.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        name = "sem_seg_head.pixel_decoder.pixel_decoder.layer_1.weight"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(3, 3)
    with pytest.raises(InputError, match=name):
        load_model(tiny.configs()[0], tensors, source="test")


def test_a_foreign_checkpoint_is_refused(tmp_path):
    save_state_dict(tmp_path / "other.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(InputError, match="config-file"):
        load_ovseg(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no OVSeg weights"):
        load_ovseg(tmp_path / "missing.pth")


def test_unknown_configuration(tiny, tmp_path):
    save_model(tiny.model(), tmp_path / "m.pth")
    with pytest.raises(InputError, match="ovseg_swinB_vitL_demo"):
        load_ovseg(tmp_path / "m.pth", config="no_such_config.yaml")


def test_published_configurations_read_back_what_they_write():
    assert set(PUBLISHED.values()) < set(available_configs())
    for name in available_configs():
        config, inference = load_published(name)
        assert from_dict(json.loads(json.dumps(to_dict(config, inference)))) == (config, inference)
    demo = load_published("ovseg_swinB_vitL_demo")[1]
    assert (demo.mode, demo.ensemble_weight, demo.region.mask_threshold) == ("demo", 0.0, 0.35)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"modle": {}}, "model"),
        ({"model": {"hidden_dims": 1}}, "hidden_dim"),
        ({"model": {"backbone": {"name": "vgg"}}}, "backbone.name"),
        ({"model": {"clip": "ViT-Z"}}, "ViT-L/14"),
        ({"inference": {"region": {"mask_threshold": -1}}}, "probability"),
        ({"inference": {"ensemble_weight": 2}}, "ensemble_weight"),
        ({"inference": {"region": {"expand_ratio": 0.5}}}, "expand_ratio"),
        ({"inference": {"region": {"mask_fill": "red"}}}, "mask_fill"),
        ({"inference": {"region": {"max_regions": 0}}}, "max_regions"),
        ({"inference": {"mode": "train"}}, "mode"),
    ],
)
def test_bad_configurations_say_what_is_wrong(data, word):
    with pytest.raises(InputError, match=word):
        from_dict(data)


def test_a_pretrained_backbone(tiny, tmp_path):
    model = OVSeg(tiny.configs()[0])
    recorded = tiny.state_dict()
    tensors = {
        k.removeprefix("backbone."): v
        for k, v in recorded.items()
        if k.startswith("backbone.") and not k.startswith("backbone.norm")
    }
    tensors["head.weight"] = torch.zeros(3, 3)  # ImageNet's classifier has no place
    torch.save({"model": tensors}, tmp_path / "swin.pth")
    missing = load_backbone(model.backbone, tmp_path / "swin.pth")
    assert missing == [f"norm{i}.{part}" for i in range(4) for part in ("weight", "bias")]
    own = model.backbone.state_dict()["layers.2.blocks.1.attn.qkv.weight"]
    assert torch.equal(own, recorded["backbone.layers.2.blocks.1.attn.qkv.weight"])
    torch.save({"model": {"fc.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="missing"):
        load_backbone(model.backbone, tmp_path / "other.pth")
