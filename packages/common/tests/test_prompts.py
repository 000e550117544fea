"""Prompt-ensembled embeddings: the recorded values, and a cache that cannot lie."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder, length_batches, text_fingerprint
from openvocab.clip.template_sets import available_templates, load_templates, resolve_templates
from openvocab.clip.tokenizer import tokenize
from openvocab.errors import InputError
from openvocab.files import default_cache_dir
from openvocab.vocabulary import Vocabulary

GOLDEN = Path(__file__).parent / "golden"
VISION = VisionConfig(image_size=8, patch_size=8, width=8, layers=1, heads=1, mlp_width=8)
NAMES = ("cat", "dog", "road, route")


def build_clip(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    text = TextConfig(
        context_length=77, vocab_size=49408, width=16, layers=2, heads=2, mlp_width=32
    )
    return CLIP(CLIPConfig(12, VISION, text, "quick_gelu")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return build_clip()


class Counted:
    """Counts the texts and the token positions that a CLIP's text tower is given."""

    def __init__(self, clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts = self.positions = 0
        encode = clip.encode_text

        def encode_text(tokens: Tensor) -> Tensor:
            self.texts += len(tokens)
            self.positions += len(tokens) * (int(tokens.argmax(dim=-1).max()) + 1)
            return encode(tokens)

        monkeypatch.setattr(clip, "encode_text", encode_text)


@pytest.fixture
def counted(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(clip, monkeypatch)


def full_length(clip: CLIP, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The definition, with every one of the 77 positions computed: (T, K, E)."""
    each = []
    for template in templates:
        tokens = tokenize([template.format(name) for name in names])
        x = clip.token_embedding(tokens) + clip.positional_embedding
        for block in clip.transformer.resblocks:
            x = block(x, causal=True)
        x = clip.ln_final(x[torch.arange(len(x)), tokens.argmax(dim=-1)]) @ clip.text_projection
        each.append(x / x.norm(dim=-1, keepdim=True))
    return torch.stack(each)


def recorded_clip(golden: "np.lib.npyio.NpzFile") -> CLIP:
    config = json.loads(str(golden["text_config"]))
    text = TextConfig(**config, mlp_width=4 * config["width"])
    clip = CLIP(CLIPConfig(int(golden["embed_dim"]), VISION, text, "quick_gelu"))
    state = {
        name.removeprefix("weight/"): torch.from_numpy(golden[name])
        for name in golden.files
        if name.startswith("weight/")
    }
    embedding = torch.zeros(*golden["sparse/shape"].tolist())
    embedding[golden["sparse/rows"]] = torch.from_numpy(golden["sparse/values"])
    keys = clip.load_state_dict(state | {"token_embedding.weight": embedding}, strict=False)
    assert not keys.unexpected_keys
    assert all(name.startswith("visual.") for name in keys.missing_keys)
    return clip.eval()


@pytest.mark.parametrize("case", ["a", "b"])
def test_embeddings_equal_those_recorded_from_san(case: str) -> None:
    golden = np.load(GOLDEN / f"text_san_{case}.npz")
    encoder = TextEncoder(recorded_clip(golden), cache_dir=False)
    names = golden["names"].tolist()
    np.testing.assert_allclose(
        encoder.names_per_template(names), golden["per_template_normalized"], atol=1e-6
    )
    np.testing.assert_allclose(encoder.encode_names(names), golden["text_embed"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("vild", 14, "a photo of a {}."),
        ("imagenet", 80, "a bad photo of a {}."),
        ("car", 15, "a clean origami {}."),
        ("single", 1, "a photo of a {}."),
        ("origami", 1, "a clean origami {}."),
    ],
)
def test_template_sets(name: str, count: int, first: str) -> None:
    templates = load_templates(name)
    assert (len(templates), templates[0]) == (count, first)
    assert resolve_templates(templates) == templates  # each has one place for the name
    assert name in available_templates()


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("VILD", "'VILD' is not known; use one of car, imagenet"),
        ([], "no prompt templates"),
        (["a photo"], "'a photo' must have one '{}'"),
        (["{} and {}"], "must have one"),
    ],
)
def test_bad_templates_are_refused(clip: CLIP, templates: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextEncoder(clip, cache_dir=False).encode_names(["cat"], templates)


def test_a_template_set_is_known_by_its_strings(clip: CLIP) -> None:
    encoder = TextEncoder(clip, cache_dir=False)
    single = encoder.encode_names(["cat"], "single")
    assert torch.equal(single, encoder.encode_names(["cat"], ("a photo of a {}.",)))
    assert not torch.allclose(single, encoder.encode_names(["cat"], "origami"))


def test_truncated_batches_equal_full_length_encoding(clip: CLIP) -> None:
    names = [*Vocabulary.load("ade20k-847").names[:60], "x " * 60, "cat"]
    templates = load_templates("car")
    expected = full_length(clip, names, templates)
    encoder = TextEncoder(clip, cache_dir=False)
    assert (encoder.names_per_template(names, "car") - expected).abs().max() < 1e-6
    ensembled = F.normalize(expected.mean(dim=0), dim=-1)
    assert (encoder.encode_names(names, "car") - ensembled).abs().max() < 1e-6
    single = encoder.encode_texts([templates[3].format(name) for name in names])
    assert (single - expected[3]).abs().max() < 1e-6
    assert single.dtype == torch.float32


def test_padding_is_hardly_computed(clip: CLIP, counted: Counted) -> None:
    names, templates = Vocabulary.load("ade20k-150").names, load_templates("vild")
    TextEncoder(clip, cache_dir=False).encode_names(names, templates)
    tokens = tokenize([t.format(name) for t in templates for name in names])
    needed = int((tokens.argmax(dim=-1) + 1).sum())
    assert counted.texts <= len(tokens)
    assert counted.positions < 1.03 * needed
    assert counted.positions < len(tokens) * 77 / 6


@given(
    st.lists(st.integers(2, 77), max_size=60),
    st.integers(77, 400),
    st.integers(0, 100),
)
def test_batches_hold_every_text_once_within_both_limits(
    lengths: list[int], tokens: int, padding: int
) -> None:
    batches = list(length_batches(lengths, tokens, padding))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert longest * len(batch) <= tokens
        assert sum(longest - lengths[i] for i in batch) <= padding
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(lengths)


def test_braces_in_a_name_are_letters(clip: CLIP) -> None:
    encoder = TextEncoder(clip, cache_dir=False)
    expected = encoder.encode_texts(["a photo of a {0} {x}."])
    assert torch.allclose(encoder.encode_names(["{0} {x}"], "single"), expected, atol=1e-6)


def test_a_name_that_is_too_long_is_refused(clip: CLIP) -> None:
    with pytest.raises(InputError, match=r"has 8\d tokens; CLIP reads 75 at most"):
        TextEncoder(clip, cache_dir=False).encode_names(["cat", "dog " * 80])


def test_no_names_give_no_rows(clip: CLIP) -> None:
    encoder = TextEncoder(clip, cache_dir=False)
    assert encoder.encode_names([]).shape == (0, 12)
    assert encoder.names_per_template([], "car").shape == (15, 0, 12)


def test_names_are_computed_once(clip: CLIP, counted: Counted) -> None:
    encoder = TextEncoder(clip, cache_dir=False)
    first = encoder.encode_names(["cat", "dog", "cat"], "single")
    assert counted.texts == 2
    assert torch.equal(first[0], first[2])
    again = encoder.encode_names(["dog", "bird", "cat"], "single")
    assert counted.texts == 3
    assert torch.equal(again[[2, 0]], first[:2])


def test_a_caller_may_change_what_it_gets(clip: CLIP) -> None:
    encoder = TextEncoder(clip, cache_dir=False)
    first = encoder.encode_names(["cat"])
    expected = first.clone()
    first.zero_()
    assert torch.equal(encoder.encode_names(["cat"]), expected)


def test_a_second_encoder_reads_the_files(clip: CLIP, counted: Counted, tmp_path: Path) -> None:
    expected = TextEncoder(clip, tmp_path).encode_names(NAMES)
    paid = counted.texts
    assert torch.equal(TextEncoder(build_clip(), tmp_path).encode_names(NAMES), expected)
    encoder = TextEncoder(clip, str(tmp_path))
    assert torch.equal(encoder.encode_names(NAMES), expected)
    assert counted.texts == paid
    encoder.encode_names([*NAMES, "bird"])
    assert counted.texts == paid + 14


def test_an_encoder_sees_what_another_writes_later(
    clip: CLIP, counted: Counted, tmp_path: Path
) -> None:
    one, two = TextEncoder(clip, tmp_path), TextEncoder(clip, tmp_path)
    one.encode_texts(["cat"])
    two.encode_texts(["dog"])
    one.encode_texts(["cat", "dog"])
    two.encode_texts(["cat", "dog"])
    assert counted.texts == 2


def test_entries_of_other_templates_are_not_used(clip: CLIP, tmp_path: Path) -> None:
    encoder = TextEncoder(clip, tmp_path)
    by_vild = encoder.encode_names(NAMES, "vild")
    by_single = encoder.encode_names(NAMES, "single")
    assert (by_vild - by_single).abs().max() > 1e-3
    reversed_ = encoder.encode_names(NAMES, ["{} cat", "cat {}"])
    fresh = TextEncoder(clip, cache_dir=False)
    assert torch.allclose(fresh.encode_names(NAMES, ["{} cat", "cat {}"]), reversed_, atol=1e-6)


def load_other_weights(clip: CLIP) -> None:
    clip.load_state_dict(build_clip(1).state_dict())


def step_in_place(clip: CLIP) -> None:
    with torch.no_grad():
        clip.ln_final.weight.mul_(torch.linspace(0.5, 2, 16))


def write_behind_autograd(clip: CLIP) -> None:
    clip.text_projection.data.copy_(torch.randn(16, 12))


def replace_parameter(clip: CLIP) -> None:
    clip.positional_embedding = torch.nn.Parameter(torch.randn(77, 16))


@pytest.mark.parametrize(
    "change", [load_other_weights, step_in_place, write_behind_autograd, replace_parameter]
)
def test_changed_weights_are_never_answered_from_the_cache(change, tmp_path: Path) -> None:
    clip = build_clip()
    encoder = TextEncoder(clip, tmp_path)
    before = encoder.encode_names(NAMES)
    change(clip)
    after = encoder.encode_names(NAMES)
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(after, TextEncoder(clip, cache_dir=False).encode_names(NAMES), atol=1e-6)


def test_the_fingerprint_is_that_of_the_text_tower() -> None:
    clip, other = build_clip(), build_clip()
    with torch.no_grad():
        other.visual.proj.add_(1)  # SAN's fine-tuned image towers share their text with CLIP
        other.logit_scale.add_(1)
    assert text_fingerprint(clip) == text_fingerprint(other)
    with torch.no_grad():
        other.token_embedding.weight[40000, 3] += 1e-6
    assert text_fingerprint(clip) != text_fingerprint(other)
    assert text_fingerprint(clip) != text_fingerprint(build_clip().half())


def cache_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def overwrite(path: Path) -> None:
    path.write_bytes(b"not ours")


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, overwrite])
def test_a_damaged_file_is_rebuilt(clip: CLIP, counted: Counted, tmp_path: Path, damage) -> None:
    expected = TextEncoder(clip, tmp_path).encode_names(NAMES)
    paid = counted.texts
    (file,) = cache_files(tmp_path)
    content = file.read_bytes()
    damage(file)
    assert torch.equal(TextEncoder(clip, tmp_path).encode_names(NAMES), expected)
    assert counted.texts == 2 * paid
    assert cache_files(tmp_path) == [file]
    assert file.read_bytes() == content


def test_a_whole_file_of_another_key_is_not_trusted(
    clip: CLIP, counted: Counted, tmp_path: Path
) -> None:
    TextEncoder(clip, tmp_path).encode_texts(["cat"])
    (file,) = cache_files(tmp_path)
    other = build_clip(1)
    expected = TextEncoder(other, tmp_path / "other").encode_texts(["cat"])
    (folder,) = (tmp_path / "other" / "text").iterdir()
    cache_files(folder)[0].unlink()
    file.rename(folder / file.name)  # a true checksum, and the weights of somebody else
    assert torch.equal(TextEncoder(other, tmp_path / "other").encode_texts(["cat"]), expected)


def test_files_that_another_process_is_writing_are_left_alone(clip: CLIP, tmp_path: Path) -> None:
    TextEncoder(clip, tmp_path).encode_texts(["cat"])
    (file,) = cache_files(tmp_path)
    half = file.parent / f".{file.stem}-abc.safetensors"
    half.write_bytes(b"half")
    TextEncoder(clip, tmp_path).encode_texts(["cat", "dog"])
    assert half.read_bytes() == b"half"


def test_many_small_files_become_one(clip: CLIP, counted: Counted, tmp_path: Path) -> None:
    encoder = TextEncoder(clip, tmp_path)
    words = [f"word {i}" for i in range(40)]
    expected = torch.cat([encoder.encode_texts([word]) for word in words])
    assert len(cache_files(tmp_path)) < 32
    assert torch.equal(TextEncoder(clip, tmp_path).encode_texts(words), expected)
    assert counted.texts == len(words)


def test_a_folder_that_cannot_be_written_costs_a_warning_only(clip: CLIP, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a file where the folder should be")
    encoder = TextEncoder(clip, tmp_path)
    with pytest.warns(UserWarning, match="not kept on disk"):
        rows = encoder.encode_names(NAMES)
    assert torch.equal(encoder.encode_names(NAMES), rows)


@pytest.fixture
def no_cache_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("OPENVOCAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch  # type: ignore[return-value]


def test_a_user_without_a_home_has_no_cache_folder(
    no_cache_variables: pytest.MonkeyPatch,
) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    no_cache_variables.delenv("HOME", raising=False)
    no_cache_variables.setattr("pwd.getpwuid", unknown)
    assert default_cache_dir() is None


def test_the_cache_folder(no_cache_variables: pytest.MonkeyPatch) -> None:
    assert default_cache_dir() == Path.home() / ".cache" / "openvocab"
    no_cache_variables.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/openvocab")
    no_cache_variables.setenv("OPENVOCAB_CACHE", "/mine")
    assert default_cache_dir() == Path("/mine")
    no_cache_variables.setenv("OPENVOCAB_CACHE", "")
    assert default_cache_dir() is None


def test_the_environment_chooses_the_folder(
    clip: CLIP, no_cache_variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_cache_variables.setenv("OPENVOCAB_CACHE", str(tmp_path / "chosen"))
    TextEncoder(clip).encode_texts(["cat"])
    assert len(cache_files(tmp_path / "chosen")) == 1
    TextEncoder(clip, cache_dir=False).encode_texts(["dog"])
    assert len(cache_files(tmp_path)) == 1


SHARING = """
import sys, torch
from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder

torch.manual_seed(0)
text = TextConfig(context_length=77, vocab_size=49408, width=16, layers=2, heads=2, mlp_width=32)
vision = VisionConfig(image_size=8, patch_size=8, width=8, layers=1, heads=1, mlp_width=8)
clip = CLIP(CLIPConfig(12, vision, text, "quick_gelu"))
encoder = TextEncoder(clip, sys.argv[1])
fresh = TextEncoder(clip, cache_dir=False)
offset = int(sys.argv[2])
for i in range(60):
    word = [f"word {(i + offset) % 60}"]
    assert torch.allclose(encoder.encode_texts(word), fresh.encode_texts(word), atol=1e-6)
"""


def test_two_processes_share_the_files(counted: Counted, clip: CLIP, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", SHARING, str(tmp_path)]
    processes = [subprocess.Popen([*command, offset]) for offset in ("0", "30")]
    assert [process.wait(timeout=1200) for process in processes] == [0, 0]
    TextEncoder(clip, tmp_path).encode_texts([f"word {i}" for i in range(60)])
    assert counted.texts == 0


def test_embeddings_made_in_inference_mode_may_meet_gradients(clip: CLIP) -> None:
    encoder = TextEncoder(clip, cache_dir=False)
    with torch.inference_mode():
        encoder.encode_names(NAMES)
    weight = torch.ones(12, requires_grad=True)
    (encoder.encode_names(NAMES) * weight).square().sum().backward()
    assert weight.grad is not None


def test_weights_made_in_inference_mode_are_read(clip: CLIP) -> None:
    with torch.inference_mode():
        made_there = build_clip()
    expected = TextEncoder(clip, cache_dir=False).encode_names(NAMES)
    assert torch.equal(TextEncoder(made_there, cache_dir=False).encode_names(NAMES), expected)


def test_autocast_does_not_reach_the_entries(clip: CLIP) -> None:
    expected = TextEncoder(clip, cache_dir=False).encode_names(NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = TextEncoder(clip, cache_dir=False).encode_names(NAMES)
    assert torch.equal(rows, expected)


def test_half_precision_weights_give_float32_rows() -> None:
    rows = TextEncoder(build_clip().bfloat16(), cache_dir=False).encode_names(NAMES)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows.norm(dim=-1), torch.ones(3), atol=1e-6)
    expected = TextEncoder(build_clip(), cache_dir=False).encode_names(NAMES)
    assert (F.cosine_similarity(rows, expected) > 0.99).all()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    clip = build_clip()
    with torch.no_grad():
        clip.ln_final.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        TextEncoder(clip, tmp_path).encode_names(NAMES)
    assert not cache_files(tmp_path)


def test_many_names_come_from_memory_in_order(clip: CLIP) -> None:
    encoder = TextEncoder(clip, cache_dir=False)
    names = [f"name {i}" for i in range(2000)]
    rows = encoder.encode_texts(names)
    back = encoder.encode_texts(names[::-1])
    assert torch.equal(back.flip(0), rows)
