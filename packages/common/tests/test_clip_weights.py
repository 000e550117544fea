"""Every form in which CLIP weights are passed round, and the forms that are refused."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from tiny_clip import CONFIG, HEADS, Archived
from torch import nn

from openvocab.clip import CLIP, load_clip
from openvocab.clip._torchscript import is_torchscript, read_torchscript
from openvocab.errors import InputError
from openvocab.weights import hub
from openvocab.weights.state_dict import (
    fill,
    load_strict,
    read_state_dict,
    save_state_dict,
    unfilled,
)


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(3)
    return CLIP(CONFIG).eval()


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name].to(a[name])) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torchscript_archive_equals_torch_jit(
    clip: CLIP, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "archive.pt"
    torch.jit.trace(Archived(clip, dtype), torch.ones(1)).save(str(path))
    assert is_torchscript(path)
    expected = torch.jit.load(str(path), map_location="cpu").state_dict()
    tensors = read_torchscript(path)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value), name
    loaded = load_clip(path, heads=HEADS)
    assert loaded.config == CONFIG
    if dtype == torch.float32:
        assert same(loaded, clip)


def test_shared_and_strided_tensors_of_archives(tmp_path: Path) -> None:
    module = nn.Linear(4, 3)
    module.register_buffer("turned", module.weight.detach().T[1:])
    path = tmp_path / "strided.pt"
    torch.jit.script(module).save(str(path))
    tensors = read_torchscript(path)
    assert torch.equal(tensors["turned"], module.weight.detach().T[1:])


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.marker}",))


def test_archive_that_would_run_code_is_refused_and_nothing_ran(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps(Malicious(marker), protocol=2))
        archive.writestr("evil/constants.pkl", pickle.dumps(()))
    with pytest.raises(InputError, match=r"system.*do not use"):
        load_clip(path)
    assert not marker.exists()


def test_checkpoint_that_would_run_code_is_refused_and_nothing_ran(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"state_dict": Malicious(marker)}, path)
    with pytest.raises(InputError, match="would run code"):
        load_clip(path)
    assert not marker.exists()


def test_damaged_archive_is_one_sentence(clip: CLIP, tmp_path: Path) -> None:
    path = tmp_path / "archive.pt"
    torch.jit.trace(Archived(clip, torch.float32), torch.ones(1)).save(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="fetch it again"):
        load_clip(path, activation="quick_gelu")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_checkpoints(clip: CLIP, tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    state = {f"module.{name}": value for name, value in clip.state_dict().items()}
    path = tmp_path / f"checkpoint{suffix}"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    assert same(load_clip(path, activation="quick_gelu", heads=HEADS), clip)


def test_safetensors_carry_activation_and_heads(clip: CLIP, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_state_dict(path, clip.state_dict(), {"activation": "quick_gelu", "heads": [4, 2]})
    loaded = load_clip(path)
    assert loaded.config.activation == "quick_gelu"
    assert (loaded.config.vision.heads, loaded.config.text.heads) == (4, 2)
    with pytest.raises(InputError, match="trained with quick_gelu, not with gelu"):
        load_clip(path, activation="gelu")


def test_the_activation_is_never_guessed(clip: CLIP, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not say which activation"):
        load_clip(clip.state_dict())
    with pytest.raises(InputError, match="'relu' is unknown"):
        load_clip(clip.state_dict(), activation="relu")


def test_model_objects_tell_their_activation() -> None:
    quick = open_clip.create_model("ViT-B-32-quickgelu")
    assert load_clip(quick).config.activation == "quick_gelu"
    with pytest.raises(InputError, match="trained with quick_gelu"):
        load_clip(quick, activation="gelu")


def test_openai_state_dict_with_its_scalars(clip: CLIP) -> None:
    scalars = {"input_resolution": 32, "context_length": 12, "vocab_size": 99}
    state = clip.state_dict() | {name: torch.tensor(value) for name, value in scalars.items()}
    assert same(load_clip(state, activation="quick_gelu", heads=HEADS), clip)
    half = {name: value.half() for name, value in state.items()}
    loaded = load_clip(half, activation="quick_gelu", heads=HEADS)
    assert loaded.visual.proj.dtype == torch.float32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.pt", "neither a file nor a CLIP name"),
        ("ViT-B-16:nonsense", "known tags: openai"),
        (("ViT-Z-99", "openai"), "known tags: none"),
        ({"a": torch.ones(1)}, "no CLIP with a plain ViT"),
        ({}, "no state dict"),
    ],
)
def test_sources_that_cannot_be_used(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_clip(source)


def test_resnet_clips_are_refused() -> None:
    with pytest.raises(InputError, match="ViT"):
        load_clip("RN50:openai")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken"])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError):
            load_clip(path, activation="gelu")


def test_strict_loading_names_what_does_not_fit(clip: CLIP) -> None:
    state = clip.state_dict()
    before = clip.visual.proj.clone()
    broken = {"extra.weight": torch.ones(1), **state, "visual.proj": torch.ones(2, 3)}
    del broken["logit_scale"]
    with pytest.raises(InputError) as error:
        load_strict(clip, broken, source="file.pth")
    message = str(error.value)
    for part in ("file.pth", "logit_scale", "extra.weight", "visual.proj is (2, 3) instead of"):
        assert part in message
    assert torch.equal(clip.visual.proj, before)


def test_saving_and_reading_back(clip: CLIP, tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pth"):
        save_state_dict(tmp_path / name, clip.state_dict())
        state = read_state_dict(tmp_path / name)
        assert all(torch.equal(state[key], value) for key, value in clip.state_dict().items())
    with pytest.raises(InputError, match=r"use \.safetensors"):
        save_state_dict(tmp_path / "w.txt", clip.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]


def test_a_name_loads_through_open_clip(
    clip: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2},
        "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1},
    }
    path = tmp_path / "open_clip_model.safetensors"
    save_state_dict(path, clip.state_dict())
    monkeypatch.setenv("OPENVOCAB_CACHE", "")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(path))
    with pytest.raises(InputError, match=r"ViT-B-16:openai does not fit"):
        load_clip("ViT-B/16:openai")
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: tiny)
    loaded = load_clip("ViT-B/16:openai")
    assert loaded.config == CONFIG and same(loaded, clip)
    assert load_clip(("ViT-B-16", "laion2b_s34b_b88k")).config.activation == "gelu"


def test_models_are_built_for_loading_without_memory_or_torchs_compiler() -> None:
    """The compiler takes longer to import than a CLIP to load."""
    code = (
        "import sys\n"
        "from torch import nn\n"
        "from openvocab.clip import load_clip\n"
        "from openvocab.weights.state_dict import unfilled\n"
        "with unfilled():\n"
        "    made = [nn.Linear(1 << 20, 1 << 20), nn.Embedding(1 << 20, 1 << 20)]\n"
        "assert all(p.is_meta for module in made for p in module.parameters())\n"
        "clip = load_clip('world')\n"
        "assert all(p.isfinite().all() for p in clip.parameters())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.register_buffer("own", torch.ones(2), persistent=False)


def test_a_model_takes_its_weights_over_and_copies_what_is_shared() -> None:
    with unfilled():
        whole, overlapping, half = _Small(), _Small(), _Small()
    one, two = torch.randn(2, 3), torch.randn(2, 3)
    fill(whole, {"two.weight": two, "one.weight": one}, source="here")
    assert whole.one.weight.data_ptr() == one.data_ptr()
    assert whole.two.weight.data_ptr() == two.data_ptr()
    assert whole.one.weight.requires_grad and not whole.own.is_meta
    fill(overlapping, {"one.weight": one, "two.weight": one}, source="here")
    pointers = {overlapping.one.weight.data_ptr(), overlapping.two.weight.data_ptr()}
    assert len(pointers) == 2 and torch.equal(overlapping.two.weight, one)
    fill(half, {"one.weight": one.half(), "two.weight": two.T.contiguous().T}, source="here")
    assert half.one.weight.dtype == torch.float32 and half.two.weight.is_contiguous()
    with unfilled(), pytest.raises(InputError, match="1 missing"):
        fill(_Small(), {"one.weight": one}, source="here")


def test_a_clip_does_not_share_memory_with_the_state_dict_it_was_made_of(clip: CLIP) -> None:
    tensors = clip.state_dict()
    for source in (tensors, {"model": dict(tensors)}):
        loaded = load_clip(source, activation="quick_gelu", heads=HEADS)
        loaded.visual.proj.zero_()
        assert clip.visual.proj.any()


def test_weights_stay_mapped_when_their_file_is_written_anew(clip: CLIP, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_state_dict(path, clip.state_dict())
    loaded = load_clip(path, activation="quick_gelu", heads=HEADS)
    save_state_dict(path, {name: 0 * tensor for name, tensor in loaded.state_dict().items()})
    assert same(clip, loaded)
