"""Compares OVSeg, SAN and CaR: one command, one folder of JSON, one report.

    python benchmarks/run_all.py
    python benchmarks/run_all.py --weights san=FILE ovseg=FILE car=FILE,FILE \
        --datasets ade20k-150 --data-root DIR
    python benchmarks/run_all.py --config benchmarks/configs/published.yaml
    python benchmarks/run_all.py diff A.json B.json

Without arguments it needs no network, weights or data, and measures what is true without training:
how the three methods are built and what they cost. With weights and data it also scores them. A
killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import yaml
from measuring import in_fresh_process
from quality import Missing, Plan, check_weights, evaluate_all, find_data
from report import METHODS, build_report
from structure import FORMAT

import openvocab
from openvocab.cli import run
from openvocab.config import near_matches
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.metrics import CONVENTIONS
from openvocab.results import Result, diff_cards
from openvocab.samples import SampleSet

# Seconds after which a method's curves end early; the whole run stays below five minutes.
SHARE = {"san": 65, "ovseg": 95, "car": 95}


@dataclass(frozen=True)
class Request:
    """What a run is asked to do.

    Attributes:
        models: methods, in order.
        weights: by method; empty: nothing is scored.
        datasets: names or folders.
        data_root: where known sets lie.
    """

    models: tuple[str, ...] = METHODS
    weights: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    data_root: Path | None = None


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=METHODS, metavar="METHOD", help="default: all"
    )
    parser.add_argument(
        "--weights", nargs="+", metavar="METHOD=FILE", help="checkpoints; CaR takes one CLIP or two"
    )
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME",
        help="known sets such as ade20k-150, or folders with images/, labels/ and names.txt",
    )  # fmt: skip
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where known sets lie")
    parser.add_argument("--config", type=Path, metavar="YAML", help="weights, datasets, data_root")
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of a set")
    parser.add_argument("--seen", metavar="NAMES", help="file or vocabulary; default: COCO-Stuff's")
    parser.add_argument(
        "--structure", action=argparse.BooleanOptionalAction, default=True,
        help="measure structure and cost",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="keep what an earlier run into the same folder has finished",
    )  # fmt: skip
    return parser


def read_request(args: argparse.Namespace) -> Request:
    """Combine flags over the configuration.

    Raises:
        InputError: an unknown key, method or form.
    """
    content = _read_config(args.config) if args.config else {}
    weights = dict(content.get("weights") or {})
    weights |= dict(_split(entry) for entry in args.weights or ())
    for method in weights:
        if method not in METHODS:
            raise InputError(f"--weights names {method!r}; {near_matches(method, METHODS)}")
    root = args.data_root or (Path(content["data_root"]) if "data_root" in content else None)
    models = tuple(args.models or content.get("models") or METHODS)
    return Request(
        models,
        {m: str(weights[m]) for m in models if m in weights},
        tuple(args.datasets or content.get("datasets") or ()),
        root,
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no configuration '{path}'; see benchmarks/configs")
    content = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no mapping; see benchmarks/configs/published.yaml")
    known = ("models", "weights", "datasets", "data_root")
    for key in content:
        if key not in known:
            raise InputError(f"{path} has an unknown key {key!r}; {near_matches(str(key), known)}")
    return content


def _split(entry: str) -> tuple[str, str]:
    method, sign, source = entry.partition("=")
    if not sign or not source:
        raise InputError(f"--weights has {entry!r}; give METHOD=FILE, such as san=san_vit_b_16.pth")
    return method, source


def preflight(request: Request) -> tuple[Request, dict[str, SampleSet], list[Missing]]:
    """Find everything before anything runs; return what can be done, and what is missing."""
    missing: list[Missing] = []
    if not request.weights and not request.datasets:
        return request, {}, missing
    for method in request.models:
        if method not in request.weights:
            sentence = f"no weights were given; add --weights {method}=FILE, or leave it out"
            missing.append(Missing(f"weights of {method}", f"{sentence} with --models"))
    if not request.datasets:
        missing.append(Missing("data", "no data set was given; add --datasets NAME or FOLDER"))
    lost = check_weights(request.weights)
    missing += lost
    gone = {entry.what.rpartition(" ")[2] for entry in lost}
    data: dict[str, SampleSet] = {}
    for name in request.datasets:
        try:
            data[name] = find_data(name, request.data_root)
        except InputError as error:
            missing.append(Missing(f"data set {name}", str(error)))
    usable = {m: w for m, w in request.weights.items() if m not in gone}
    return replace(request, weights=usable), data, missing


def measure_structure(models: Sequence[str], results: Path, resume: bool) -> None:
    """Measure every method in a process of its own, unless it is done."""
    for method in models:
        path = results / f"structure-{method}.json"
        if resume and _is_current(path):
            print(f"structure of {method}: done before", flush=True)
            continue
        print(f"structure of {method} ...", flush=True)
        start = time.monotonic()
        script = Path(__file__).resolve().parent / "structure.py"
        found = in_fresh_process(script, [method, "--seconds", str(SHARE[method])])
        found["code_version"] = openvocab.__version__
        write_text(path, json.dumps(found, indent=1) + "\n")
        print(f"structure of {method}: {time.monotonic() - start:.0f} s", flush=True)


def _is_current(path: Path) -> bool:
    """Whether a measurement is of this code and this torch."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    mine = (FORMAT, openvocab.__version__, torch.__version__)
    return (found.get("format"), found.get("code_version"), found.get("torch")) == mine


def shard() -> tuple[int, int]:
    """Return (rank, world) as torchrun sets them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def compare_all(args: argparse.Namespace) -> int:
    """Measure, score, and report."""
    request, data, missing = preflight(read_request(args))
    for entry in missing:
        print(f"missing: {entry.what}: {entry.sentence}", flush=True)
    rank, world = shard()
    results = args.output / "results"
    if args.structure and rank == 0:
        measure_structure(request.models, results, args.resume)
    if request.weights and data:
        plan = Plan(
            request.weights, data, args.output, args.limit, (rank, world), args.resume, args.seen
        )
        missing += evaluate_all(plan, lambda text: print(text, flush=True))
    if rank == 0 or not args.structure:
        entries = [asdict(entry) for entry in missing]
        write_text(results / "missing.json", json.dumps({"missing": entries}, indent=1) + "\n")
    if not any(results.glob("*.json")) or not _anything(results):
        raise InputError("nothing could be run; see what is missing above")
    print(f"written to {build_report(args.output)}")
    return 0


def _anything(results: Path) -> bool:
    return any(results.glob("structure-*.json")) or any(results.glob("*--comparison.json"))


def diff(first: Path, second: Path) -> str:
    """Say what differs between two results: the protocols in words, then the numbers.

    Raises:
        InputError: a file is missing or holds no result.
    """
    left, right = Result.load(first), Result.load(second)
    lines = diff_cards(left.card, right.card) or ["the protocols are the same"]
    lines.append(f"{'convention':<20}{'A':>8}{'B':>8}{'B - A':>8}")
    for convention in CONVENTIONS:
        a, b = left.scores(convention).miou, right.scores(convention).miou
        lines.append(f"{convention:<20}{a:>8.2f}{b:>8.2f}{b - a:>+8.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["diff"]:
        parser = argparse.ArgumentParser(prog="run_all.py diff")
        parser.add_argument("first", type=Path, metavar="A.json")
        parser.add_argument("second", type=Path, metavar="B.json")
        args = parser.parse_args(words[1:])
        print(diff(args.first, args.second))
        return 0
    return compare_all(make_parser().parse_args(words))


if __name__ == "__main__":
    sys.exit(run(main))
