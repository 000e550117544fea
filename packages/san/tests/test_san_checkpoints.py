"""Checkpoints in the layout of the released ones, in full size and with random values."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import openvocab.weights.hub
from openvocab.errors import InputError
from openvocab.weights.state_dict import read_state_dict, save_state_dict
from san import SAN, SANSegmenter, _convert, load_san
from san.config import VARIANTS, SANInference, from_detectron2, load_published
from san.weights import find_checkpoint, load_network, load_network_state, save_network


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_published_state_dicts_load_strictly_and_are_written_back(variant, published_keys) -> None:
    config = VARIANTS[variant]()
    shapes = published_keys[variant]
    with torch.device("meta"):
        network = SAN(config)
    network = network.to_empty(device="cpu")
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}  # no memory
    state |= _convert.to_official({}, config)
    marked = "clip_rec_head.resblocks.1.ln_2.weight"
    state[marked] = torch.arange(float(shapes[marked][0]))
    load_network_state(network, state, source=variant)
    block = network.clip.visual.blocks[config.split + 1]
    assert torch.equal(block.ln_2.weight, state[marked])

    back = _convert.to_official(network.state_dict(), config)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == shapes
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_trainable_parameters_are_the_published_number(published_keys) -> None:
    with torch.device("meta"):
        network = SAN(VARIANTS["san_vit_b_16"]())
    count = sum(p.numel() for p in network.trainable_parameters().values())
    assert count == 8_370_866


def test_recorded_state_dict_round_trips(recording, tmp_path: Path) -> None:
    network = recording.network()
    for name in ("san.pth", "san.safetensors"):
        save_network(network, tmp_path / name, recording.inference)
        written = read_state_dict(tmp_path / name)
        assert written.keys() == recording.state_dict.keys()
        for key, value in recording.state_dict.items():
            assert torch.equal(written[key], value.float()), key
        again, inference = load_network(tmp_path / name)  # tells its configuration itself
        assert (again.config, inference) == (network.config, recording.inference)
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key
    torch.save({"model": written}, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match="does not store its configuration"):
        load_network(tmp_path / "theirs.pth")
    again, inference = load_network(tmp_path / "theirs.pth", network.config)
    assert (again.config, inference) == (network.config, SANInference())


def test_checkpoints_that_do_not_fit_are_named(recording) -> None:
    network = SAN(recording.config)
    state = dict(recording.state_dict)
    missing, reshaped = "side_adapter_network.query_embed", "ov_classifier.bg_embed"
    network_name = "side_adapter.query_embed"
    del state[missing]
    state[reshaped] = torch.zeros(2, 2)
    state["criterion.surprise"] = torch.zeros(1)
    with pytest.raises(InputError) as error:
        load_network_state(network, state, source="some.pth")
    for part in ("some.pth", network_name, "bg_embed is (2, 2)", "criterion.surprise"):
        assert part in str(error.value)


def test_a_training_checkpoint_of_detectron2_loads(recording, tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    torch.save({"model": recording.state_dict, "iteration": 59999, "trainer": {}}, path)
    assert load_network(path, recording.config)[0].config == recording.config


def test_a_checkpoint_that_stores_both_parts_in_one_place_is_understood(
    recording, tmp_path: Path
) -> None:
    """As all were written before the configuration was split; the shipped world is one, too."""
    network, run = recording.network(), SANInference("imagenet", False, 96, 320)
    together = {"san_config": asdict(network.config) | asdict(run)}
    state = _convert.to_official(network.state_dict(), network.config)
    save_state_dict(tmp_path / "earlier.safetensors", state, together)
    loaded, inference = load_network(tmp_path / "earlier.safetensors")
    assert (loaded.config, inference) == (network.config, run)
    save_network(loaded, tmp_path / "now.safetensors", inference)
    again, inference = load_network(tmp_path / "now.safetensors")
    assert (again.config, inference) == (network.config, run)
    other = load_network(tmp_path / "now.safetensors", inference=SANInference(short_side=64))[1]
    assert other == SANInference(short_side=64)
    save_state_dict(tmp_path / "damaged.safetensors", state, {**together, "san_inference": [3]})
    with pytest.raises(InputError, match="damaged or of another version"):
        load_network(tmp_path / "damaged.safetensors")


def test_the_world_is_run_as_it_was_trained() -> None:
    network, inference = load_network(find_checkpoint("world"))
    config, published = load_published("world")
    assert network.config == replace(config, num_classes=network.config.num_classes)
    assert inference == published == SANInference(short_side=192, max_side=1024)
    rule = SANSegmenter(network, inference, cache_dir=False).describe()["resize_rule"]
    assert rule.startswith("short side 192, long side <= 1024, Pillow bilinear on uint8")


def test_sizes_that_no_image_has_are_refused() -> None:
    with pytest.raises(InputError, match="short_side is 0"):
        from_detectron2({"INPUT": {"MIN_SIZE_TEST": 0}})


class TestFinding:
    def test_a_missing_file(self) -> None:
        with pytest.raises(InputError, match=r"no SAN weights at 'nowhere\.pth'"):
            load_san("nowhere.pth")

    def test_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*_: object, **__: object) -> str:
            raise OSError("no network")

        monkeypatch.setattr(openvocab.weights.hub, "hf_hub_download", offline)
        with pytest.raises(InputError, match=r"download it from .* Mendel192/san"):
            load_san("san_vit_b_16")
        with pytest.raises(InputError, match=r"other\.pth is not in the cache"):
            load_san("huggingface:other.pth")

    def test_the_hash_of_a_fetched_file_is_recorded_and_checked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
        file = tmp_path / "san_vit_b_16.pth"
        monkeypatch.setattr(openvocab.weights.hub, "hf_hub_download", lambda *_, **__: str(file))
        save_state_dict(file, {"a": torch.zeros(3)})
        assert find_checkpoint("san_vit_b_16") == file
        record = json.loads((tmp_path / "cache" / "weights.json").read_text())
        assert list(record) == ["Mendel192/san/san_vit_b_16.pth"]
        assert find_checkpoint("huggingface:san_vit_b_16.pth") == file
        save_state_dict(file, {"a": torch.ones(3)})
        with pytest.raises(InputError, match="when it was first fetched"):
            find_checkpoint("san_vit_b_16")


class TestConfig:
    def test_published_defaults(self) -> None:
        base = VARIANTS["san_vit_b_16"]()
        assert from_detectron2({}) == (base, SANInference())
        large = from_detectron2(
            {
                "MODEL": {
                    "SAN": {
                        "CLIP_MODEL_NAME": "ViT-L-14-336",
                        "CLIP_RESOLUTION": 0.7,
                        "FEATURE_LAST_LAYER_IDX": 18,
                    },
                    "SIDE_ADAPTER": {
                        "FUSION_MAP": ["0->0", "6->1", "12->2", "18->3"],
                        "ATTN_BIAS": {"NUM_HEADS": 16},
                    },
                }
            }
        )
        assert large == (VARIANTS["san_vit_large_14"](), SANInference())

    def test_every_switch_is_understood(self) -> None:
        config, inference = from_detectron2(
            {
                "MODEL": {
                    "SAN": {
                        "ASYMETRIC_INPUT": False,
                        "SEM_SEG_POSTPROCESS_BEFORE_INFERENCE": False,
                        "CLIP_TEMPLATE_SET": "imagenet",
                        "SIZE_DIVISIBILITY": 64,
                        "NO_OBJECT_WEIGHT": 0.2,
                    },
                    "SIDE_ADAPTER": {
                        "VIT_NAME": "vit_w144n6d8_patch16",
                        "DEEP_SUPERVISION_IDXS": [6, 7, 8],
                        "ATTN_BIAS": {
                            "NUM_HEADS": 1,
                            "NUM_LAYERS": 3,
                            "MLP_NUM_LAYERS": 2,
                            "RESCALE_ATTN_BIAS": False,
                        },
                    },
                },
                "INPUT": {"MIN_SIZE_TEST": 512, "MAX_SIZE_TEST": 2048},
            }
        )
        assert (config.asymmetric_input, inference.resize_masks_first) == (False, False)
        assert (inference.templates, config.size_divisibility) == ("imagenet", 64)
        assert (config.side_width, config.supervised) == (144, (6, 7, 8))
        assert (config.bias_heads, config.bias_layers, config.mlp_layers) == (1, 3, 2)
        assert not config.rescale_bias and config.no_object_weight == 0.2
        assert (inference.short_side, inference.max_side) == (512, 2048)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"MODEL": {"SAN": {"FEATURE_LAST_LAYER_IDX": 12}}}, "blocks 1..12"),
            ({"MODEL": {"SIDE_ADAPTER": {"ATTN_BIAS": {"NUM_HEADS": 5}}}}, "needs 12, or 1"),
            ({"MODEL": {"SIDE_ADAPTER": {"FUSION_MAP": ["a->b"]}}}, "clip block->side block"),
            ({"MODEL": {"SIDE_ADAPTER": {"FUSION_MAP": ["11->0"]}}}, "do not have"),
            ({"MODEL": {"SIDE_ADAPTER": {"VIT_NAME": "resnet"}}}, "vit_w240n6d8_patch16"),
            ({"MODEL": {"SAN": {"REC_DOWNSAMPLE_METHOD": "mean"}}}, "use 'max'"),
            ({"MODEL": {"SAN": {"CLIP_MODEL_NAME": "RN50"}}}, "use a ViT"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, config: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            from_detectron2(config)
