from __future__ import annotations

import json

import pytest
import yaml

from car._convert import clip_source, read_original
from car.config import CaRConfig, available_configs, clips_of, named_config
from openvocab.clip.template_sets import load_templates
from openvocab.config import dump_config, load_config
from openvocab.datasets.catalog import CATALOG
from openvocab.datasets.referring import REFERRING
from openvocab.errors import InputError
from openvocab.vocabulary import Vocabulary

ORIGINAL = {
    "image_path": "demo/pokemon1.jpg",
    "image_caption": ["Charmander", "Bulbasaur"],
    "clip": {
        "semantic_clip_model_name": "ViT-L/14",
        "semantic_pretrained_data": "openai",
        "clip_model_name": "ViT-B/16",
        "pretrained_data": "openai",
    },
    "car": {
        "iom_thres": 0.6,
        "mask_threshold": 0.4,
        "min_area_ratio": 0.2,
        "num_iteration": 1,
        "confidence_threshold": 0,
        "visual_prompt_type": ["gray", "blur"],
        "semantic_templates": ["a clean origami {}."],
        "bg_cls": ["ground"],
    },
    "sam": {"min_pred_threshold": 0.05, "points_per_side": 64, "model_dir": "$YOUR_SAM_MODEL_DIR"},
    "test": {"ds_name": "voc", "seg_mode": "semantic", "use_pseudo": False, "n_class": 21},
}


@pytest.fixture
def write(tmp_path):
    def write(content, name: str = "config.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("name", available_configs())
def test_every_published_configuration_can_be_read(name: str) -> None:
    config = named_config(name)
    assert config.name == name
    if config.dataset in REFERRING:
        assert config.car.mode == "refer" and config.car.semantic_templates is None
    elif config.dataset is not None:
        vocabulary = "world" if name == "world" else CATALOG[config.dataset].vocabulary
        assert config.car.mode == "semantic"
        assert config.vocabulary is not None
        names = Vocabulary.load(config.vocabulary)
        assert len(names) == len(Vocabulary.load(vocabulary))
        assert bool(config.car.two_passes) == (name not in ("voc21", "coco-object", "world"))
    else:
        assert config.image_caption
    assert bool(config.published.scores) == bool(config.published.source)


def test_all_published_rows_are_there() -> None:
    rows = {"voc21", "coco-object", "pc60", "ade150", "ade847", "pc459"}
    assert rows | {"refcoco", "refcoco+", "refcocog", "gres"} <= set(available_configs())


def test_values_of_one_row() -> None:
    voc = named_config("voc21")
    assert voc.car.confidence_threshold == 0.6 and voc.car.mask_threshold == 0.4
    assert voc.car.visual_prompt_type == ("circle", "blur")
    assert voc.car.classifier_clip == "ViT-L-14:openai" and voc.car.clip == "ViT-B-16:openai"
    assert len(voc.car.bg_cls) == 23 and voc.car.classifier_templates == load_templates("car")
    assert len(load_templates("car")) == 15
    assert voc.published.scores == {"mIoU": 67.6}
    assert named_config("refcoco+").car.mask_threshold == 0.2


def test_an_unknown_configuration_is_named() -> None:
    with pytest.raises(InputError, match="no configuration 'voc'"):
        named_config("voc")


def test_a_file_of_the_original(write) -> None:
    found = read_original(write(ORIGINAL))
    config = load_config(CaRConfig, overrides=found.values)
    assert config.clip == "ViT-B-16:openai" and config.classifier_clip == "ViT-L-14:openai"
    assert config.mode == "semantic" and config.confidence_threshold == 0
    assert config.semantic_templates == ("a clean origami {}.",)
    assert config.bg_cls == ("ground",) and config.min_pred_threshold == 0.05
    assert config.clipes_threshold == 0.4  # the original's default
    assert found.named == "voc21"
    assert found.image_caption == ("Charmander", "Bulbasaur")
    assert str(found.image_path) == "demo/pokemon1.jpg"


def test_what_a_file_leaves_out_is_the_originals_default(write) -> None:
    found = read_original(write({"clip": {}, "car": {"visual_prompt_type": "circle"}, "test": {}}))
    config = load_config(CaRConfig, overrides=found.values)
    assert config.mode == "refer" and config.bg_cls == () and config.semantic_templates is None


def test_the_first_releases_section_and_refcocogs_mistake(write) -> None:
    old = {**ORIGINAL, "camcut": ORIGINAL["car"]}
    del old["car"]
    assert read_original(write(old)).values["mask_threshold"] == 0.4
    mistaken = {**ORIGINAL, "test": {"ds_name": "refcoco+", "splitby": "umd", "seg_mode": "refer"}}
    assert read_original(write(mistaken)).named == "refcocog"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cam": {}}, "no section 'car'; rename its section 'cam'"),
        ({"test": {}}, "no section 'car'"),
        ({"car": {"mask_treshold": 1}}, "mask_treshold.*did you mean mask_threshold"),
        ({"car": 3}, "expected keys with values"),
        ({"car": {}, "image_caption": 3}, "expected a list of names"),
        ("car: !!python/object/apply:os.system ['true']", "safe YAML|not a safe|YAML"),
        ("[1, 2]", "no keys with values"),
    ],
)
def test_bad_files_are_explained(write, content, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_original(write(content))


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "panoptic"},
        {"confidence_threshold": 1.5},
        {"mask_threshold": -0.1},
        {"bg_factor": 0.0},
        {"max_side": 8},
        {"classifier_batch": 0},
        {"cam_text_template": "an origami"},
        {"text_template": ("a photo",)},
        {"semantic_templates": ("a photo", "of {}")},
        {"semantic_templates": ("no such set",)},
        {"semantic_templates": ()},
        {"visual_prompt_type": ()},
        {"visual_prompt_type": ("crop",)},
        {"stuff_visual_prompt_type": ("crop",)},
    ],
)
def test_settings_that_make_no_sense_are_refused(values) -> None:
    with pytest.raises(InputError):
        CaRConfig(**values)


def test_names_of_openais_package() -> None:
    assert clip_source("ViT-L/14@336px") == "ViT-L-14-336:openai"
    assert clip_source("weights/clip.safetensors") == "weights/clip.safetensors"


def test_a_configuration_survives_a_file(tmp_path) -> None:
    config = named_config("pc60").car
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(CaRConfig, tmp_path / "config.yaml") == config
    assert json.dumps(config.bg_cls)


def test_weights_are_one_clip_or_two(tmp_path) -> None:
    path = tmp_path / "a,b.safetensors"
    path.touch()
    for weights, clips in (
        ("ViT-B-16:openai", ("ViT-B-16:openai", "ViT-B-16:openai")),
        ("a.pt, b.pt", ("a.pt", "b.pt")),
        ("world", ("world", "world")),
        (str(path), (str(path), str(path))),  # a file's own comma
    ):
        assert tuple(clips_of(weights).values()) == clips
    for weights in ("", ",", "a.pt,", "a,b,c"):
        with pytest.raises(InputError, match="one CLIP, or two with a comma"):
            clips_of(weights)
