"""Compares the installed methods (OVSeg, SAN, CaR and others): one command, one report.

    python benchmarks/run_all.py
    python benchmarks/run_all.py --weights san=FILE ovseg=FILE car=FILE,FILE \
        --datasets ade20k-150 --data-root DIR
    python benchmarks/run_all.py --predictions "CAT-Seg=DIR" "Mine=sem_seg_predictions.json"
    python benchmarks/run_all.py --config benchmarks/configs/published.yaml
    torchrun --nproc-per-node 4 benchmarks/run_all.py --config benchmarks/configs/published.yaml
    python benchmarks/run_all.py diff A.json B.json

Without arguments it needs no network, weights or data: it scores the small methods that the
packages carry on the embedded world, and measures how the published architectures are built and
what they cost. A killed run goes on where it stopped. Processes of torchrun share the images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import torch

import openvocab
from benchmarks.layout import read_json
from benchmarks.measuring import in_fresh_process, start_server
from benchmarks.quality.comparison import seen_classes, write_comparison
from benchmarks.quality.foreign import Foreign, not_stated, read_foreign, score_foreign
from benchmarks.quality.plan import Missing, Plan, check_weights, evaluate_all, find_data
from benchmarks.quality.wording import measure_short
from benchmarks.reporting.report import build_report
from benchmarks.structure import latency
from benchmarks.structure import measure as structure
from openvocab.cli import CommandParser, run
from openvocab.config import near_matches
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError, shorten_value
from openvocab.evaluation.results import Result, diff_cards
from openvocab.files import write_text
from openvocab.methods import available_methods, broken_methods, find_method
from openvocab.metrics.scores import CONVENTIONS
from openvocab.reading.yaml_files import read_yaml_file
from openvocab.training.distributed import join_processes
from openvocab.vocabulary import WORLD

# Seconds after which a method's curves of latency end early, so that a whole run takes minutes.
SHORT, LONG = 18, 3600
PATIENCE = timedelta(days=7)  # of processes that wait for others to finish their images


@dataclass(frozen=True)
class Request:
    """The parsed request of a run.

    Attributes:
        models: methods, in order.
        weights: weights by method.
        datasets: data sets, as names or folders.
        data_root: folder of the known data sets.
        foreign: predictions of other programs.
    """

    models: tuple[str, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    data_root: Path | None = None
    foreign: tuple[Foreign, ...] = ()

    def completed(self) -> Request:
        """Return the request, with the world as the data set if no other is named."""
        weights, datasets = self.weights, self.datasets
        if not datasets and all(source == WORLD for source in weights.values()):
            datasets = (WORLD,)
        if not weights and all(name.partition(":")[0] == WORLD for name in datasets):
            weights = dict.fromkeys(self.models, WORLD)
        return replace(self, weights=weights, datasets=datasets)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", metavar="METHOD",
        help=f"installed: {', '.join(available_methods())}; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--weights", nargs="+", metavar="METHOD=FILE",
        help="where the data are the world, the default is world; "
        + "; ".join(f"{key}: {m.weights}" for key, m in available_methods().items()),
    )  # fmt: skip
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME",
        help="known sets such as ade20k-150, or folders with images/, labels/ and names.txt; "
        "default: world",
    )  # fmt: skip
    parser.add_argument(
        "--predictions", nargs="+", default=[], metavar="NAME=PATH",
        help="rows of other programs: a folder of label maps or arrays, or a JSON, on the one data "
        "set of the run; see openvocab.score",
    )  # fmt: skip
    parser.add_argument(
        "--predictions-card", nargs="+", default=[], metavar="NAME=YAML",
        help="what you state of these programs: weights, resize_rule, vocabulary and others; "
        "default: NAME.yaml or the YAML beside the predictions, if there is one",
    )  # fmt: skip
    parser.add_argument(
        "--prediction-offset", nargs="+", default=[], metavar="N|NAME=N",
        help="added to the labels of all --predictions, or of one row: -1 where they count from 1",
    )  # fmt: skip
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where known sets lie")
    parser.add_argument("--config", type=Path, metavar="YAML", help="weights, datasets, data_root")
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of a set")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1 ... of the scoring (default: cuda if there is one)"
    )
    parser.add_argument(
        "--seen", metavar="NAMES",
        help="file or vocabulary; default: what the weights were trained on, COCO-Stuff's names or "
        "the world's",
    )  # fmt: skip
    parser.add_argument(
        "--diagnoses", action=argparse.BooleanOptionalAction, default=None,
        help="also tell the methods parts of the truth; default: on the world, and what runs "
        "the method again on a part of it",
    )  # fmt: skip
    parser.add_argument(
        "--structure", action=argparse.BooleanOptionalAction, default=True,
        help="measure structure and cost",
    )  # fmt: skip
    parser.add_argument(
        "--wording", action=argparse.BooleanOptionalAction, default=True,
        help="on the world, let more and more names compete; openvocab.wording measures more of it",
    )  # fmt: skip
    parser.add_argument(
        "--full-structure", action="store_true",
        help="also measure latency of the published architectures, up to an hour for each method",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="keep what an earlier run into the same folder has finished",
    )  # fmt: skip
    return parser


def read_request(args: argparse.Namespace) -> Request:
    """Return the request; flags override the configuration.

    Raises:
        InputError: an unknown key, method or form.
    """
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit is {args.limit}; give at least 1 image, or leave it out for all")
    content = _read_config(args.config) if args.config else {}
    weights = content.get("weights", {}) | dict(_split(entry) for entry in args.weights or ())
    models = tuple(args.models or content.get("models", tuple(available_methods())))
    for key in (*weights, *models):
        find_method(key)
    root = args.data_root or (Path(content["data_root"]) if "data_root" in content else None)
    request = Request(
        models,
        {m: weights[m] for m in models if m in weights},
        tuple(args.datasets or content.get("datasets", ())),
        root,
        read_foreign(args.predictions, args.predictions_card, args.prediction_offset),
    ).completed()
    if request.foreign and len(request.datasets) != 1:
        raise InputError(
            f"--predictions are of one data set, but the run has {len(request.datasets)}; give one "
            "with --datasets"
        )
    return request


def _read_config(path: Path) -> dict[str, Any]:
    """Read a configuration and check the form of each of its keys."""
    if not path.is_file():
        raise InputError(f"there is no configuration '{path}'; see benchmarks/configs")
    content = read_yaml_file(path, "configuration")
    forms = {"models": list, "weights": dict, "datasets": list, "data_root": str}
    for key, value in content.items():
        if key not in forms:
            raise InputError(f"{path} has an unknown key {key!r}; {near_matches(str(key), forms)}")
        parts = (*value, *(value.values() if isinstance(value, dict) else ())) if value else ()
        if not isinstance(value, forms[key]) or not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"{path} has {key}: {shorten_value(value)}; see benchmarks/configs/published.yaml "
                "for its form"
            )
    return content


def _split(entry: str) -> tuple[str, str]:
    method, sign, source = entry.partition("=")
    if not sign or not source:
        raise InputError(f"--weights has {entry!r}; give METHOD=FILE, such as san=san_vit_b_16.pth")
    return method, source


def preflight(request: Request) -> tuple[Request, dict[str, SampleSet], list[Missing]]:
    """Check before anything runs whether it can be found; return the plan and what is missing."""
    missing = [
        Missing(f"method {one.key} of {one.distribution}", f"it cannot be used: {one.reason}")
        for one in broken_methods()
    ]
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


def measure_structure(
    models: Sequence[str], results: Path, *, full: bool, resume: bool
) -> list[Missing]:
    """Measure the structure of the published architectures, and their latency if requested.

    Returns:
        Which could not be measured, and why.
    """
    methods = available_methods()
    missing: list[Missing] = []
    for key in (key for key in models if methods[key].architecture is not None):
        words = [key, "--curves", str(LONG)] if full else [key]
        path = results / f"structure-{key}.json"
        missing += _measure(
            "measure", path, words, structure.FORMAT, resume, "curves" if full else None
        )
    return missing


def measure_latency(weights: Mapping[str, str], results: Path, *, resume: bool) -> list[Missing]:
    """Measure the curves of latency with the small weights of the world.

    Returns:
        Which could not be measured, and why.
    """
    missing: list[Missing] = []
    for key in (key for key, source in weights.items() if source == WORLD):
        words = [key, "--weights", WORLD, "--seconds", str(SHORT)]
        path = results / f"latency-{key}.json"
        missing += _measure("latency", path, words, latency.FORMAT, resume)
    return missing


def _measure(
    what: str, path: Path, words: list[str], form: str, resume: bool, needed: str | None = None
) -> list[Missing]:
    """Run a measuring script in its own process, unless the same code and torch already did."""
    found = read_json(path) or {}
    current = (form, openvocab.__version__, torch.__version__)
    before = (found.get("format"), found.get("code_version"), found.get("torch"))
    if resume and before == current and (needed is None or needed in found):
        print(f"{what} of {words[0]}: done before", flush=True)
        return []
    print(f"{what} of {words[0]} ...", flush=True)
    start = time.monotonic()
    try:
        found = in_fresh_process(f"benchmarks.structure.{what}", words)
    except RuntimeError as error:
        titles = {"measure": "structure", "latency": "latency"}
        return [Missing.after(f"{titles[what]} of {words[0]}", error)]
    found["code_version"] = openvocab.__version__
    write_text(path, json.dumps(found, indent=1) + "\n")
    print(f"{what} of {words[0]}: {time.monotonic() - start:.0f} s", flush=True)
    return []


def compare_all(args: argparse.Namespace) -> int:
    """Score, measure and report; of several processes, the first does everything but the scoring.

    Returns:
        0, or 1 if an evaluation or a measurement failed, the others of which still ran, or if
        none of the evaluations that were asked for was done.
    """
    start = time.monotonic()
    asked = read_request(args)
    start_server()
    with join_processes("cpu", PATIENCE) as world:
        request, data, missing = preflight(asked)
        for known in data.values():
            seen_classes(args.seen, known)  # a wrong list is said before anything runs

        def say(text: str) -> None:
            if world.is_main:
                print(text, flush=True)

        for entry in missing:
            say(f"missing: {entry.what}: {entry.sentence}")
        plan = Plan(
            request.weights, data, args.output, request.data_root, args.limit, args.resume,
            args.diagnoses, args.seen, args.device, {f.key: f.title for f in asked.foreign},
        )  # fmt: skip
        not_done = evaluate_all(plan, say)
        if world.is_main:
            for name, foreign in product(plan.data, asked.foreign):
                say(f"scoring {foreign.title} on {name}")
                not_done += score_foreign(plan, name, foreign)
                missing += not_stated(foreign)
        missing += not_done
        world.barrier()
        if world.is_main:
            page = _conclude(plan, request, missing, args)
            say(f"written to {page} after {time.monotonic() - start:.0f} s")
    idle = bool(asked.datasets or asked.weights) and not (plan.rows and plan.data)
    return int(idle or bool(not_done) or any(entry.failed for entry in missing))


def _conclude(
    plan: Plan, request: Request, missing: list[Missing], args: argparse.Namespace
) -> Path:
    """Compare the scored methods, measure structure and latency, and write the report.

    Raises:
        InputError: there is nothing to report.
    """
    results = args.output / "results"
    for name in plan.data:
        write_comparison(plan, name)
    if args.wording:
        missing += measure_short(plan, print)
    if args.structure:
        missing += measure_latency(plan.weights, results, resume=args.resume)
        missing += measure_structure(
            request.models, results, full=args.full_structure, resume=args.resume
        )
    if not _anything(results):
        raise InputError("nothing could be run; see what is missing above")
    entries = [asdict(entry) for entry in missing]
    write_text(results / "missing.json", json.dumps({"missing": entries}, indent=1) + "\n")
    return build_report(args.output)


def _anything(results: Path) -> bool:
    return any(results.glob("structure-*.json")) or any(results.glob("*--comparison.json"))


def diff(first: Path, second: Path) -> str:
    """Print the differences between two results: first the protocols, then the scores.

    The difference is first - second, as in `openvocab.compare` and in the report.

    Raises:
        InputError: a file is missing or holds no result.
    """
    left, right = Result.load(first), Result.load(second)
    lines = diff_cards(left.card, right.card) or ["the protocols are the same"]
    lines.append(f"A: {left.images}; B: {right.images}")
    lines.append(f"{'convention':<20}{'A':>8}{'B':>8}{'A - B':>8}")
    for convention in CONVENTIONS:
        a, b = left.scores(convention).miou, right.scores(convention).miou
        lines.append(f"{convention:<20}{a:>8.2f}{b:>8.2f}{a - b:>+8.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["diff"]:
        parser = CommandParser(prog="run_all.py diff")
        parser.add_argument("first", type=Path, metavar="A.json")
        parser.add_argument("second", type=Path, metavar="B.json")
        args = parser.parse_args(words[1:])
        print(diff(args.first, args.second))
        return 0
    return compare_all(build_parser().parse_args(words))


if __name__ == "__main__":
    sys.exit(run(main))
