"""Makes report.html and report.md from the JSON files of an output folder, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2 import Environment, FileSystemLoader

from benchmarks.forms import (
    Comparison,
    Costs,
    Curves,
    Latency,
    Structure,
    ThresholdRow,
    Thumbnail,
)
from benchmarks.layout import FORMAT, read_json
from benchmarks.quality.acceptance import threshold_rows
from benchmarks.quality.published import published, reasons_not_comparable
from benchmarks.reporting.classes import class_csv, class_rows
from benchmarks.reporting.figures import (
    diagrams,
    latency_figures,
    own_mib,
    set_figures,
    write_figures,
    write_gallery,
)
from benchmarks.reporting.gallery import RIGHT
from benchmarks.reporting.images import SCRIPT, embedded_json, groups, parts, script_hash
from benchmarks.reporting.structure_table import millions, structure_rows
from benchmarks.reporting.verdicts import ranking, verdict_sentences
from benchmarks.reporting.wording import read_wordings, wording_section
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.evaluation.results import Result
from openvocab.evaluation.stated import STATED
from openvocab.files import write_text
from openvocab.methods import available_methods, title_of
from openvocab.metrics.scores import CONVENTIONS, Convention
from openvocab.vocabulary import WORLD

HERE = Path(__file__).parent
AS_IT_IS = "the method itself"  # the title of the row above a method's diagnoses


def build_report(folder: Path) -> Path:
    """Write figures, report.html and report.md into an output folder.

    Raises:
        InputError: the folder holds no results.
    """
    page = read_page(folder)
    write_figures(page["figures"], folder / "figures")
    for data in page["sets"]:
        write_gallery(data["gallery"], folder / "figures", data["slug"])
        write_text(
            folder / f"{data['slug']}-classes.csv", class_csv(data["per_class"], page["titles"])
        )
        for number, part in enumerate(data["parts"][1:], start=2):
            shown = {**page, "set": data, "part": part}
            write_text(
                folder / f"{data['slug']}-images-{number}.html",
                render("images_page.html.jinja", shown),
            )
    for suffix in ("html", "md"):
        write_text(folder / f"report.{suffix}", render(f"report.{suffix}.jinja", page))
    return folder / "report.html"


def read_page(folder: Path) -> dict[str, Any]:
    """Gather everything that the templates show."""
    results = folder / "results"
    structures: dict[str, Structure] = _by_method(results, "structure")
    latencies: dict[str, Latency] = _by_method(results, "latency")
    found = [read_json(path) for path in sorted(results.glob("*--comparison.json"))]
    comparisons: list[Comparison] = [value for value in found if value.get("format") == FORMAT]
    if not structures and not comparisons:
        raise InputError(f"{results} holds no results; run benchmarks/run_all.py first")
    sets = [read_set(results, value) for value in comparisons]
    curves = read_curves(structures, latencies)
    wording = wording_section(read_wordings(results))
    shown = {key: title_of(key) for key in _in_order(structures, latencies, *_scored(comparisons))}
    for comparison in comparisons:
        shown |= comparison.get("titles", {})
    for data, comparison in zip(sets, comparisons, strict=True):
        data["ranking"] = ranking(data["rows"])
        data["parts"] = parts(data["images"], data["names"], shown)
        data["sentences"] = verdict_sentences(comparison.get("between", []), shown)
    return {
        "structures": structures,
        "titles": shown,
        "script": SCRIPT,
        "script_hash": script_hash(),
        "right_from": RIGHT,
        "heading": f"{_listed(list(shown.values()))}, measured",
        "structure_rows": structure_rows(structures),
        "figures": _figures(structures, curves, sets) | wording["figures"],
        "wording": wording,
        "curves": curves,
        "sets": sets,
        "glance": at_a_glance(sets),
        "missing": (read_json(results / "missing.json") or {"missing": []})["missing"],
    }


def _scored(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [dict(comparison["scores"]) for comparison in comparisons]


def _in_order(*keyed: Mapping[str, Any]) -> list[str]:
    """Return the methods of several tables, the installed ones first, in their order."""
    there = dict.fromkeys(key for table in keyed for key in table)
    installed = [key for key in available_methods() if key in there]
    return [*installed, *(key for key in there if key not in installed)]


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def at_a_glance(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row of mIoU for each data set of photographs; none if there are fewer than two."""
    photographs = [data for data in sets if not data["is_world"]]
    methods = _in_order(*(data["scores"] for data in photographs))
    rows = [
        {
            "name": data["name"],
            "slug": data["slug"],
            "n_images": data["n_images"],
            "miou": {m: data["scores"].get(m, {}).get("all") for m in methods},
        }
        for data in photographs
    ]
    return rows if len(rows) > 1 else []


def _by_method(results: Path, kind: str) -> dict[str, Any]:
    """Read what was measured of each method, in the order of the methods."""
    paths = {path.stem.removeprefix(f"{kind}-"): path for path in results.glob(f"{kind}-*.json")}
    return {key: read_json(paths[key]) for key in _in_order(dict(sorted(paths.items())))}


def render(template: str, page: Mapping[str, Any]) -> str:
    """Fill in a template of the folder `templates` with what its page shows."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape="html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "millions": millions, "bound": bound, "verdict": verdict}
    environment.filters["share"] = percentage
    environment.filters["embedded_json"] = embedded_json
    environment.filters["markdown"] = in_markdown
    shown = dict(page)
    if "html" not in template:
        shown["titles"] = {key: in_markdown(title) for key, title in page["titles"].items()}
    return environment.get_template(template).render(**shown)


def in_markdown(text: str) -> str:
    """Return a text that cannot become HTML or break a table of Markdown."""
    return escape(text, quote=False).replace("|", "\\|")


def cell(value: float | None, digits: int = 2) -> str:
    """Show points of mIoU."""
    return "–" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def percentage(value: float) -> str:
    """Show a share in 0..1 as a percentage."""
    return "< 1 %" if 0 < value < 0.01 else f"{100 * value:.0f} %"


def bound(threshold: ThresholdRow) -> str:
    """Show what an acceptance threshold asks for."""
    if "above" in threshold:
        return f"> {threshold['above']}"
    return f"≥ {threshold['at_least']}"


def verdict(holds: bool | None) -> str:
    """Say whether an acceptance threshold holds."""
    return {True: "yes", False: "no", None: "not measured on enough images"}[holds]


def read_curves(
    structures: Mapping[str, Structure], latencies: Mapping[str, Latency]
) -> list[dict[str, Any]]:
    """Return the groups of curves of latency, each with its title and what was left out."""
    published = {m: s["curves"] for m, s in structures.items() if "curves" in s}
    groups = []
    if latencies:
        first = next(iter(latencies.values()))
        title = (
            "The world's small networks, which are none of the published ones; "
            f"names at {first['side']} × {first['side']} pixels, sizes with "
            f"{first['few_names']} names."
        )
        groups.append(_group("world", title, {m: s["curves"] for m, s in latencies.items()}))
    if published:
        side = next(iter(structures.values()))["image"][0]
        title = (
            f"The published architectures, with random weights; names at {side} × {side} pixels."
        )
        groups.append(_group("published", title, published))
    return groups


def _group(key: str, title: str, curves: Mapping[str, Curves]) -> dict[str, Any]:
    left_out = [
        f"{title_of(method)} with {value:,} {'names' if axis == 'names' else 'pixels'} "
        f"({point['reason']})"
        for method, axes in curves.items()
        for axis, points in axes.items()
        for point in points
        if point["seconds"] is None
        for value in [point["names"] if axis == "names" else point["side"]]
    ]
    return {"key": key, "title": title, "curves": curves, "left_out": left_out}


def _figures(
    structures: Mapping[str, Structure], curves: Sequence[Any], sets: Sequence[Any]
) -> dict[str, str]:
    """Return all figures as SVG, by file name without its ending."""
    figures = {f"diagram-{m}": svg for m, svg in diagrams(structures).items()}
    for group in curves:
        drawn = latency_figures(group["curves"])
        figures |= {f"latency-{group['key']}-{axis}": svg for axis, svg in drawn.items()}
    for data in sets:
        figures |= {f"{data['slug']}-{name}": svg for name, svg in data["charts"].items()}
    return figures


def read_set(results: Path, comparison: Comparison) -> dict[str, Any]:
    """Gather what is shown of one data set."""
    found = {m: Result.load(results / name) for m, name in comparison["results"].items()}
    first = next(iter(found.values()))
    images, is_world = first.card.n_images, comparison["data_set"] == WORLD
    slug = next(iter(comparison["results"].values())).partition("--")[0]
    shown: list[Thumbnail] = read_json(results / f"{slug}--images.json") or []
    return {
        "name": comparison["title"],
        "is_world": is_world,
        "slug": slug,
        "names": first.names,
        "methods": list(found),
        "per_class": class_rows(found),
        "images": shown,
        "groups": groups(shown),
        "n_images": images,
        "classes": len(first.names),
        "present": first.scores().n_present,
        "rows": [_row(m, c, r, comparison) for m, r in found.items() for c in CONVENTIONS],
        "published_apart": _apart(found, comparison["data_set"]),
        "scores": comparison["scores"],
        "control": comparison["control"],
        "paired": comparison["paired"],
        "seen": comparison["seen"],
        "same": _same_everywhere(found),
        "stated": {m: _stated(result) for m, result in found.items() if _stated(result)},
        "diagnoses": _diagnoses(comparison, images),
        "paired_diagnoses": _paired_diagnoses(comparison),
        "notes": _notes(comparison),
        "crops": comparison["crops"],
        "thresholds": threshold_rows(comparison, images) if is_world else [],
        "gallery": comparison["gallery"],
        "calibration": comparison.get("calibration", {}),
        "charts": set_figures(found, comparison),
    }


def _same_everywhere(found: Mapping[str, Result]) -> bool:
    """Return whether all conventions give every method the same mIoU."""
    return all(
        len({f"{result.scores(c).miou:.2f}" for c in CONVENTIONS}) == 1 for result in found.values()
    )


def _stated(result: Result) -> dict[str, str]:
    """Return what the user stated of a method that is known by its predictions only."""
    lines = result.card.settings.items()
    return {key.removeprefix(STATED): value for key, value in lines if key.startswith(STATED)}


def _diagnoses(comparison: Comparison, images: int) -> list[dict[str, Any]]:
    """Return a row for each method itself, and below it one for each of its diagnoses."""
    rows = []
    for method, found in comparison["diagnoses"].items():
        if not found:
            continue
        itself = {**comparison["scores"][method], "images": images, "title": AS_IT_IS}
        for number, entry in enumerate([itself, *map(dict, found.values())]):
            rows.append(
                {
                    "method": method,
                    "first": number == 0,
                    "title": entry["title"],
                    "scores": {key: entry.get(key) for key in ("all", "seen", "unseen")},
                    "images": entry.get("images"),
                    "reason": entry.get("reason"),
                }
            )
    return rows


def _paired_diagnoses(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the differences between a method and those diagnoses that are paired with it."""
    return [
        {"method": method, "title": entry["title"], **entry["paired"]}
        for method, found in comparison["diagnoses"].items()
        for entry in found.values()
        if "paired" in entry
    ]


def _notes(comparison: Comparison) -> list[str]:
    """Return the sentences that say what the numbers of diagnoses depend on."""
    entries = [entry for found in comparison["diagnoses"].values() for entry in found.values()]
    return [entry["note"] for entry in entries if entry["note"]]


def _row(
    method: str, convention: Convention, result: Result, comparison: Comparison
) -> dict[str, Any]:
    interval = result.intervals.get(convention)
    times: Costs | None = comparison["times"].get(method)
    miou = result.scores(convention).miou
    return {
        "method": method,
        "variant": result.card.variant,
        "convention": convention,
        "miou": miou,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "published": [
            {**row, "difference": miou - row["miou"]}
            for row in published(method, comparison["data_set"])
            if row["convention"] == convention and not reasons_not_comparable(row, result.card)
        ],
        "seconds": times["seconds"] if times else None,
        "mib": own_mib(times) if times else None,
    }


def _apart(found: Mapping[str, Result], data_set: str) -> list[dict[str, Any]]:
    """Return the published numbers that were measured under other conditions than ours, and why."""
    return [
        {**row, "reasons": reasons}
        for method, result in found.items()
        for row in published(method, data_set)
        if (reasons := reasons_not_comparable(row, result.card))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report of an output folder anew."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("output"))
    print(build_report(parser.parse_args(argv).folder))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
