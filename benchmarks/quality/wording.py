"""How much the methods' scores on the embedded world depend on the list of names.

    python -m benchmarks.quality.wording --output benchmarks/measured/wording.json

For each method with weights of the world: mIoU of 20 names while others compete, with paraphrases
and with prompt templates, and how often names are found that a scene does not show; see
`openvocab.wording`, whose logs let a killed run go on. `run_all.py` measures a small part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks.measuring import add_measuring_arguments, in_fresh_process, report
from benchmarks.quality.plan import Missing, Plan, is_world
from openvocab.cli import CommandParser, run
from openvocab.clip.template_sets import available_templates
from openvocab.compare import Evaluation
from openvocab.errors import InputError
from openvocab.evaluation.variations import Part
from openvocab.evaluation.wording import FORMAT, PARTS, Wording, absent_names, vary_wording
from openvocab.files import write_text
from openvocab.methods import available_methods, load
from openvocab.vocabulary import WORLD
from openvocab.world import open_world

SHORT_PARTS: tuple[Part, ...] = ("distractors",)
SHORT_SCENES, SHORT_COUNTS = 6, (0, 10, 40)  # of run_all
SCENES = 64  # of the documentation


class MeasuredWording(TypedDict):
    """What is measured of one method, with the versions that it depends on."""

    format: str
    torch: str
    wording: Wording


def measure(
    key: str, logs: Path, *, scenes: int, short: bool, resume: bool = True
) -> MeasuredWording:
    """Measure a method with its weights of the world.

    Args:
        key: of the method.
        logs: folder for the logs of the evaluations.
        scenes: how many of world:val.
        short: only the part of it that `run_all.py` measures.
        resume: keep what an earlier run has finished.
    """
    found = vary_wording(
        load(key, WORLD, device="cpu"),
        open_world("val", scenes),
        logs / key,
        parts=SHORT_PARTS if short else PARTS,
        counts=SHORT_COUNTS if short else None,
        templates=available_templates(),
        resume=resume,
        progress=not short,
    )
    return {"format": FORMAT, "torch": torch.__version__, "wording": found}


def measure_short(plan: Plan, say: Callable[[str], None]) -> list[Missing]:
    """Measure what a run of `run_all.py` shows of the methods with weights of the world.

    Where the world is not among the data, nothing is measured. Absent names are counted in all
    images that the run has scored.

    Returns:
        Which could not be measured, and why.
    """
    name = next((name for name, data in plan.data.items() if is_world(data)), None)
    methods = [key for key, source in plan.weights.items() if source == WORLD]
    missing: list[Missing] = []
    for key in methods if name is not None else ():
        say(f"wording of {key} ...")
        try:
            measured = in_fresh_process("benchmarks.quality.wording", _arguments(plan, key))
            evaluation = Evaluation.read(plan.folder(str(name), key))
        except (RuntimeError, InputError) as error:
            missing.append(Missing.after(f"wording of {key}", error))
            continue
        records, classes = list(evaluation.records.values()), len(evaluation.result.names)
        measured["wording"]["absent"] = absent_names(records, classes)
        path = plan.output / "results" / f"wording-{key}.json"
        write_text(path, json.dumps(measured, indent=1) + "\n")
    return missing


def _arguments(plan: Plan, key: str) -> list[str]:
    scenes = min(SHORT_SCENES, plan.limit or SHORT_SCENES)
    words = [key, "--short", "--scenes", str(scenes), "--logs", str(plan.output / "runs/wording")]
    return words if plan.resume else [*words, "--no-resume"]


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="benchmarks.quality.wording",
        description="Measure how much mIoU on the embedded world depends on the list of names.",
    )
    parser.add_argument("method", nargs="*", metavar="KEY", help="default: all methods")
    parser.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help=f"number of scenes of world:val (default: {SCENES}, with --short {SHORT_SCENES})",
    )
    parser.add_argument(
        "--short", action="store_true", help="measure only what run_all.py measures"
    )
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="keep what an earlier run has finished",
    )  # fmt: skip
    parser.add_argument("--logs", type=Path, default=Path("output/wording"), metavar="DIR")
    add_measuring_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report.

    Raises:
        InputError: there is no such method, or it has no weights of the world.
    """
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    scenes = args.scenes or (SHORT_SCENES if args.short else SCENES)
    found = {
        key: measure(key, args.logs, scenes=scenes, short=args.short, resume=args.resume)
        for key in args.method or available_methods()
    }
    if args.short:
        print(json.dumps(next(iter(found.values()))))  # one line, for run_all.py
    else:
        report({"data_set": f"{WORLD}:val", "methods": found}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
