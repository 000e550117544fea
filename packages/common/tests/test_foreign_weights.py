"""Weights from everywhere: what loads, with which heads and activation, and what is refused."""

import functools
import http.server
import io
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tiny_clip import CONFIG, HEADS, Archived, QuickGELU
from torch import Tensor, nn

from openvocab.clip.heads import IMAGE_HEADS, TEXT_HEADS, known_heads
from openvocab.clip.model import CLIP
from openvocab.clip.weights import config_from_state_dict, load_clip, open_clip_config
from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text
from openvocab.reading.checkpoints import read_whole
from openvocab.semantic import MaskGeometry, semantic_labels, semantic_scores
from openvocab.weights import hub
from openvocab.weights.state_dict import read_state_dict, save_state_dict

CASES = Path(__file__).with_name("cases")


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(5)
    model = CLIP(CONFIG).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


# --- heads --------------------------------------------------------------------------------------


def test_heads_of_every_plain_vit_that_open_clip_knows() -> None:
    seen = set()
    for name in open_clip.list_models():
        try:
            config = open_clip_config(name, "gelu")
        except InputError:
            continue
        vision, text = config.vision, config.text
        towers = (vision.width, vision.layers), (text.width, text.layers)
        if name.startswith("coca") or towers[0] not in IMAGE_HEADS or towers[1] not in TEXT_HEADS:
            continue
        assert known_heads(*towers, origin=name) == (vision.heads, text.heads), name
        seen.add(towers[0])
    assert seen == set(IMAGE_HEADS)


@pytest.mark.parametrize("name", ["ViT-H-14", "ViT-g-14", "ViT-bigG-14"])
def test_large_clips_have_the_heads_of_their_architecture(name: str) -> None:
    expected = open_clip_config(name, "gelu")
    with torch.device("meta"):
        shapes = CLIP(expected).state_dict()
    found = config_from_state_dict(shapes, "gelu")
    assert found == expected and found.vision.heads == 16


def test_unknown_heads_are_asked_for(clip: CLIP) -> None:
    with pytest.raises(InputError, match=r"width 64 with 2 layers; pass heads="):
        load_clip(clip.state_dict(), activation="gelu")
    assert load_clip(clip.state_dict(), activation="gelu", heads=(4, 2)).config.vision.heads == 4
    with pytest.raises(InputError, match="cannot have 5 heads"):
        load_clip(clip.state_dict(), activation="gelu", heads=(5, 1))


# --- layouts and wrappers -----------------------------------------------------------------------


def huggingface_layout(clip: CLIP) -> dict[str, Tensor]:
    """Name tensors as transformers' CLIPModel does, after its own source's conversion."""
    state, theirs = clip.state_dict(), {}
    for ours, tower in (("visual.", "vision_model"), ("", "text_model")):
        blocks = {n for n in state if n.startswith(f"{ours}transformer.resblocks.")}
        for name in blocks:
            number, part = name.removeprefix(f"{ours}transformer.resblocks.").split(".", 1)
            layer = f"{tower}.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for which, value in zip("qkv", state[name].chunk(3), strict=True):
                    theirs[f"{layer}.self_attn.{which}_proj.{kind}"] = value
            else:
                for old, new in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    part = part.replace(old, new)
                theirs[f"{layer}.{part}"] = state[name]
    embeddings = "embeddings"
    theirs |= {
        "logit_scale": state["logit_scale"],
        f"text_model.{embeddings}.token_embedding.weight": state["token_embedding.weight"],
        f"text_model.{embeddings}.position_embedding.weight": state["positional_embedding"],
        f"text_model.{embeddings}.position_ids": torch.arange(12)[None],
        f"vision_model.{embeddings}.class_embedding": state["visual.class_embedding"],
        f"vision_model.{embeddings}.patch_embedding.weight": state["visual.conv1.weight"],
        f"vision_model.{embeddings}.position_embedding.weight": state[
            "visual.positional_embedding"
        ],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
    }
    for new, old in (
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
    ):
        theirs |= {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias")}
    return {name: value.clone().contiguous() for name, value in theirs.items()}


def test_hugging_faces_layout_gives_the_same_outputs(clip: CLIP, tmp_path: Path) -> None:
    save_file(huggingface_layout(clip), tmp_path / "model.safetensors")
    towers = {"hidden_act": "quick_gelu", "num_attention_heads": 1}
    config = {"model_type": "clip", "vision_config": towers, "text_config": towers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(1, 90, (2, 12))
    for source in (tmp_path, tmp_path / "model.safetensors", huggingface_layout(clip)):
        told: dict[str, Any] = (
            {"activation": "quick_gelu", "heads": HEADS} if isinstance(source, dict) else {}
        )
        loaded = load_clip(source, **told)
        assert loaded.config == clip.config
        with torch.no_grad():
            # Where weights lie in memory may change the last bit of a product.
            torch.testing.assert_close(
                loaded.encode_image(images), clip.encode_image(images), rtol=1e-6, atol=1e-6
            )
            torch.testing.assert_close(
                loaded.encode_text(tokens), clip.encode_text(tokens), rtol=1e-6, atol=1e-6
            )
    (tmp_path / "config.json").write_text(json.dumps({**config, "vision_config": 7}))
    with pytest.raises(InputError, match="no section vision_config"):
        load_clip(tmp_path)


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_hugging_faces_layout_without_a_part_is_refused(clip: CLIP, part: str) -> None:
    state = huggingface_layout(clip)
    del state[f"vision_model.encoder.layers.0.self_attn.{part}.weight"]
    with pytest.raises(InputError):
        load_clip(state, activation="gelu", heads=HEADS)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod."]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_prefixes_of_training_programs(
    clip: CLIP, tmp_path: Path, prefix: str, legacy: bool
) -> None:
    state = OrderedDict((f"{prefix}{k}", v) for k, v in clip.state_dict().items())
    content = {
        "state_dict": state,
        "loss": np.float32(0.5),
        "args": Namespace(lr=0.1, out=Path("x")),
        "epoch": np.int64(3),
    }
    path = tmp_path / "last.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_state_dict(path)
    assert found.keys() == clip.state_dict().keys()
    assert all(torch.equal(found[k], v) for k, v in clip.state_dict().items())


def test_lightning_checkpoints_leave_the_rest_of_their_module_out(
    clip: CLIP, tmp_path: Path
) -> None:
    state = {f"model.{k}": v for k, v in clip.state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    content = {"state_dict": state, "pytorch-lightning_version": "2.4.0", "callbacks": {}}
    torch.save(content, tmp_path / "last.ckpt")
    assert read_state_dict(tmp_path / "last.ckpt").keys() == clip.state_dict().keys()


def test_names_do_not_decide_what_a_file_is(clip: CLIP, tmp_path: Path) -> None:
    for saved, renamed in (("a.safetensors", "b.pth"), ("c.pth", "d.safetensors")):
        save_state_dict(
            tmp_path / saved, clip.state_dict(), {"heads": [1, 1], "activation": "gelu"}
        )
        (tmp_path / saved).rename(tmp_path / renamed)
        assert load_clip(tmp_path / renamed).config.activation == "gelu"


# --- TorchScript --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "activation"), [(nn.GELU(), "gelu"), (QuickGELU(), "quick_gelu")]
)
def test_the_activation_is_read_from_a_torchscript_archive(
    clip: CLIP, tmp_path: Path, layer: nn.Module, activation: str
) -> None:
    path = tmp_path / "archive.pt"
    module = Archived(clip, torch.float32, layer)
    torch.jit.trace(module, torch.ones(1)).save(str(path))
    assert load_clip(path, heads=HEADS).config.activation == activation
    other = "gelu" if activation == "quick_gelu" else "quick_gelu"
    with pytest.raises(InputError, match=f"trained with {activation}"):
        load_clip(path, heads=HEADS, activation=other)


def test_an_archive_that_does_not_say_its_activation_is_asked_about(
    clip: CLIP, tmp_path: Path
) -> None:
    path = tmp_path / "archive.pt"
    torch.jit.trace(Archived(clip, torch.float32, nn.ReLU()), torch.ones(1)).save(str(path))
    with pytest.raises(InputError, match="does not say which activation"):
        load_clip(path, heads=HEADS)
    assert load_clip(path, heads=HEADS, activation="gelu").config.activation == "gelu"


# --- what is refused ----------------------------------------------------------------------------

STRANGERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n": "Git LFS pointer",
    b"\n<!DOCTYPE html><html>": "web page",
    b"<HTML><head>": "web page",
    b"": "empty",
    b'{"a": 1}': "JSON",
    b"MODEL:\n  A: 1\n": "text, such as YAML",
    b"\x1f\x8b\x08\x00": "gzip",
    b"\x89PNG\r\n\x1a\n": "an image",
    b"\x93NUMPY\x01\x00": "NumPy array",
    b"PK\x03\x04broken": "damaged or cut archive",
    bytes(257) + b"ustar": "tar archive",
    bytes(range(1, 200)): "begins like no kind of weights",
}


@pytest.mark.parametrize("content", STRANGERS, ids=list(STRANGERS.values()))
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pkl"])
def test_what_is_no_weights_is_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=STRANGERS[content]) as error:
        read_state_dict(path)
    assert "weights_only" not in str(error.value)


def claims(path: Path, *, legacy: bool = False) -> None:
    state = {"a": torch.ones(2), "huge": torch.ones(1).expand(1 << 31)}
    torch.save({"model": state}, path, _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_that_claims_more_than_its_storage_is_never_built(
    tmp_path: Path, legacy: bool
) -> None:
    claims(tmp_path / "w.pth", legacy=legacy)
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    for read in (read_state_dict, read_whole):
        with pytest.raises(InputError, match="huge claims 8589934592 bytes, but its storage holds"):
            read(tmp_path / "w.pth")


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {"a": torch.zeros(1 << 24)}}, path)
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", 8) as deflated:
        for name in archive.namelist():
            deflated.writestr(name, archive.read(name))
    path.write_bytes(packed.getvalue())
    with pytest.raises(InputError, match="unpack to"):
        read_state_dict(path)


def test_tensors_that_share_their_storage_stay_within_bounds(tmp_path: Path) -> None:
    shared = torch.ones(1 << 20)
    torch.save({"model": {f"t{i}": shared for i in range(50)}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="that they share"):
        read_state_dict(tmp_path / "w.pth")
    torch.save({"model": {"a": shared, "tied": shared}}, tmp_path / "w.pth")
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["tied"], shared)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {"a": torch.arange(1000.0)}}, path)
    data = bytearray(path.read_bytes())
    place = data.index(np.arange(100, 110, dtype="<f4").tobytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="damaged"):
        read_state_dict(path)


def test_damaged_and_hostile_are_told_apart(tmp_path: Path) -> None:
    good = pickle.dumps({"model": {"a": np.ones(3)}})
    (tmp_path / "cut.pkl").write_bytes(good[:-20])
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with pytest.raises(InputError, match=r"damaged or not a readable pickle.*fetch it again"):
        read_state_dict(tmp_path / "cut.pkl")
    with pytest.raises(InputError, match=r"refused because loading it would run code.*os.system"):
        read_state_dict(tmp_path / "evil.pkl")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(clip: CLIP, value: float) -> None:
    state = clip.state_dict()
    state["visual.proj"][3, 2] = value
    with pytest.raises(InputError, match=r"1 of 1024 values of its tensor visual\.proj are NaN"):
        load_clip(state, activation="gelu", heads=HEADS)


def test_large_but_finite_weights_are_loaded(clip: CLIP) -> None:
    state = {name: value.half() for name, value in clip.state_dict().items()}
    state["visual.proj"][:] = 65504
    assert load_clip(state, activation="gelu", heads=HEADS).visual.proj.max() == 65504


@pytest.mark.parametrize("which", [0, 1])
def test_scores_that_are_not_finite_are_one_sentence(which: int) -> None:
    parts = [torch.rand(3, 2), torch.randn(3, 4, 4)]
    geometry = MaskGeometry((8, 8), (8, 8), (8, 8))
    semantic_labels(*parts, geometry)  # type: ignore[call-arg]
    parts[which].view(-1)[1] = float("nan")
    for compute in (semantic_labels, semantic_scores):
        with pytest.raises(InputError, match=r"not finite.*fp32"):
            compute(*parts, geometry)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("visual.transformer.resblocks.9999.ln_1.weight", torch.ones(1), "layers"),
        ("visual.conv1.weight", torch.ones(3), "not of 4 axes"),
        ("positional_embedding", torch.ones(100_000, 1), "tokens"),
        ("token_embedding.weight", None, "is missing"),
        ("visual.conv1.weight", torch.ones(200_000, 1, 1, 1), "heads"),
    ],
)
def test_shapes_of_no_clip_are_refused_before_a_model_is_built(
    clip: CLIP, name: str, value: Tensor | None, words: str
) -> None:
    state = dict(clip.state_dict())
    state.pop(name, None)
    if value is not None:
        state[name] = value
    with pytest.raises(InputError, match=words):
        load_clip(state, activation="gelu", heads=None if words == "heads" else HEADS)


# --- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(hub.constants, "ENDPOINT", address)  # type: ignore[attr-defined]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)  # type: ignore[attr-defined]
    monkeypatch.setattr(hub, "_cached", lambda *_: None)
    hub.answers.cache_clear()
    yield server
    server.close()
    hub.answers.cache_clear()


def test_offline_by_choice_asks_nobody_and_names_what_works(
    silent_hub: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)  # type: ignore[attr-defined]
    nobody = functools.cache(lambda _: pytest.fail("the network was asked"))
    monkeypatch.setattr(hub, "answers", nobody)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("it was tried"))
    for source in (("ViT-B-16", "openai"), ("ViT-H-14", "laion2b_s32b_b79k")):
        with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set.*--weights world works now"):
            load_clip(source)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set.*--weights world works now"):
        hub.fetch("owner/repository", "weights.pth")


def test_a_hub_that_does_not_answer_is_found_out_once(
    silent_hub: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    urlopen = hub.urllib.request.urlopen  # type: ignore[attr-defined]

    def counted(request: Any, **more: Any) -> Any:
        asked.append(request.full_url)
        return urlopen(request, **more)

    monkeypatch.setattr(hub.urllib.request, "urlopen", counted)  # type: ignore[attr-defined]
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("it was retried"))
    for source in (("ViT-B-16", "openai"), ("ViT-H-14", "laion2b_s32b_b79k")):
        with pytest.raises(InputError, match=r"--weights world works now.*file's path"):
            load_clip(source)
    with pytest.raises(InputError, match=r"could not be fetched.*does not answer"):
        hub.fetch("someone/something", "a.pth")
    assert len(asked) == 1


def test_a_hub_that_refuses_is_found_out(
    silent_hub: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent_hub.close()
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("it was retried"))
    with pytest.raises(InputError, match="--weights world"):
        hub.fetch("someone/something", "a.pth")


def test_any_answer_means_that_there_is_a_network() -> None:
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    assert hub.answers(f"http://127.0.0.1:{server.server_port}")
    server.server_close()


def test_local_files_are_used_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"weights")
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "answers", lambda _: pytest.fail("somebody was asked"))
    monkeypatch.setattr(hub, "_cached", lambda *_: file)
    assert hub.fetch("someone/something", "a.pth") == file


def test_files_with_a_published_hash_are_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(hub, "_cached", lambda *_: None)
    kept = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"something else")
    known = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    with pytest.raises(InputError, match=r"not the published file.*5806e77c"):
        hub.fetch_open_clip(known, "ViT-B-16:openai")


# --- what killed writers leave ------------------------------------------------------------------


def test_the_next_writer_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from openvocab.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "result.json"
    write_text(target, "whole")
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 2
    assert target.read_text() == "whole"
    write_text(target, "new")
    assert list(tmp_path.iterdir()) == [target] and target.read_text() == "new"


def test_files_of_living_writers_and_of_users_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / ".result-notes-of-mine.json"
    mine.touch()
    with atomic_path(tmp_path / "result.json") as first:
        first.write_text("1")
        child = os.fork()
        if child == 0:
            write_text(tmp_path / "result.json", "2")
            os._exit(0)
        os.waitpid(child, 0)
        with atomic_path(tmp_path / "result.json") as second:
            second.write_text("3")
        assert first.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [mine.name, "result.json"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_writer_that_dies_leaves_nothing_that_the_next_one_does_not_remove(
    tmp_path: Path, name: str
) -> None:
    child = os.fork()
    if child == 0:  # the system ends it in the middle of the file
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        save_state_dict(tmp_path / name, {"w": torch.zeros(100_000)})
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGXFSZ
    assert len(list(tmp_path.iterdir())) == 1
    save_state_dict(tmp_path / name, {"w": torch.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == [name]
