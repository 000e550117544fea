"""`python -m car.evaluate --config NAME` on each published data set, as its archives unpack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from car import evaluate
from car.config import named_config
from openvocab.cli import run
from openvocab.datasets.referring import REFERRING
from openvocab.evaluation.results import Result
from openvocab.prepare import main as prepare
from openvocab.vocabulary import Vocabulary

SEMANTIC = {
    "voc21": "voc",
    "coco-object": "coco",
    "pc60": "pascal_context",
    "ade150": "ade",
    "ade847": "ade_full",
    "pc459": "pascal_context",
}
REFERRED = {"refcoco": 2, "refcoco+": 2, "refcocog": 2, "gres": 4}


@pytest.fixture
def evaluate_config(archives, clip_files, tmp_path, monkeypatch):
    """Return a function that evaluates tiny CLIPs by a configuration on prepared archives."""
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))

    def start(config: str, build: Callable[[], object]) -> tuple[Path, list[str]]:
        build()
        name, root, output = named_config(config).dataset, tmp_path / "data", tmp_path / "out"
        assert prepare([name, "--source", str(archives.root), "--output", str(root)]) == 0
        return output, [
            *("--config", config, "--data-root", str(root), "--output", str(output)),
            *("--clip", str(clip_files[0]), "--classifier-clip", str(clip_files[1])),
            *("--confidence_threshold", "0"),
        ]

    return start


@pytest.mark.parametrize("config", SEMANTIC)
def test_semantic_sets_are_scored_by_both_mean_ious(
    config: str, archives, evaluate_config, capsys
) -> None:
    def build() -> None:
        full = Vocabulary.load("pascal-context-459").names
        names = (full,) if SEMANTIC[config] == "pascal_context" else ()
        getattr(archives, SEMANTIC[config])(*names)

    output, arguments = evaluate_config(config, build)
    assert run(evaluate.main, [*arguments, "--limit", "1"]) == 0
    named = named_config(config)
    result = Result.load(output / "result.json")
    assert result.card.method == "CaR" and result.card.n_images == 1
    assert result.names == Vocabulary.load(named.vocabulary).names
    summary = json.loads((output / "car.json").read_text())
    which = "mIoU_ignore_background" if named.ignore_background else "mIoU"
    assert summary["original_reports"] == which
    assert f"{summary['mIoU']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize("config", REFERRED)
def test_referring_sets_are_scored(config: str, archives, evaluate_config, capsys) -> None:
    spec = REFERRING[named_config(config).dataset]
    output, arguments = evaluate_config(config, lambda: archives.refer(spec.folder, spec.file))
    assert run(evaluate.main, [*arguments, "--split", "val"]) == 0
    assert f"{REFERRED[config]} items, mIoU" in capsys.readouterr().out
    assert (output / "referring.json").is_file()
