"""Every command in the documentation is one that works.

`bash` blocks hold two kinds of lines: those that `.ci/run` runs in fresh environments, and
`python -m ...` commands, whose arguments are parsed here by the commands' own parsers.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("packages/*/README.md")]
)
# A block behind `<!-- run by FILE -->` is run by that test.
_BLOCK = re.compile(
    r"^(?:<!-- run by (?P<test>\S+) -->\n+)?```bash\n(?P<lines>.*?)^```", re.MULTILINE | re.DOTALL
)


def commands() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for block in _BLOCK.finditer(document.read_text(encoding="utf-8")):
            if block["test"]:
                assert (ROOT / block["test"]).is_file(), f"{document}: {block['test']}"
                continue
            joined = block["lines"].replace("\\\n", " ")
            lines = (line.split(" #")[0].strip() for line in joined.splitlines())
            found += [(str(document.relative_to(ROOT)), x) for x in lines if x and x[0] != "#"]
    return found


COMMANDS = commands()
MODELS = sorted(path.name for path in ROOT.glob("packages/*") if path.name != "common")
RUN_BY_CI = {
    "pip install . && python benchmarks/run_all.py",
    'pip install -e ".[test]" && pytest',
    "hatch run test",
    "uv pip install --torch-backend cpu .",  # the requirements are those of pip
    "pip install pre-commit && pre-commit install",
    *(f"pip install ./packages/{member}" for member in MODELS),
}


def test_the_two_commands_are_in_the_readme_and_run_by_ci() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for mark in ("run", "test"):
        assert f"<!-- ci: {mark} -->" in readme and f"readme_command {mark}" in script
    assert "for folder in packages/*/" in script and './packages/$member"' in script


@pytest.mark.parametrize(("document", "command"), COMMANDS, ids=[c for _, c in COMMANDS])
def test_documented_command(document: str, command: str) -> None:
    if command in RUN_BY_CI:
        return
    words = shlex.split(command)
    while "=" in words[0]:  # VARIABLE=value in front
        words = words[1:]
    if words[0] == "docker":
        recipe = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
        assert words[1] != "run" or ("EXPOSE 7860" in recipe and "/cache" in recipe)
        assert words[1] != "build" or words[words.index("-f") + 1] == "docker/Dockerfile"
        return
    if extra := re.fullmatch(r"(?:\.|openvocab-seg)\[(\w+)\]", words[-1]):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        assert words[:2] == ["pip", "install"] and extra[1] in project["optional-dependencies"]
        return
    if words[0] == "pytest" or words[:3] == ["python", "-m", "build"]:
        folder = next(word for word in words[1:] if (ROOT / word).is_dir())
        assert (ROOT / folder / "pyproject.toml").is_file()
        return
    if words[0] == "torchrun":
        start = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        words = ["python", *words[start:]]
    if words[:2] == ["python", "-m"]:
        module = importlib.import_module(words[2])
        if not hasattr(module, "build_parser"):  # a package whose command is a module of its own
            module = importlib.import_module(f"{words[2]}.command")
        arguments = words[3:]
    elif words[0] == "python":
        module = _load_script(ROOT / words[1])
        arguments = words[2:]
    else:
        pytest.fail(f"{document}: no test knows how to check {command!r}")
    try:
        module.build_parser().parse_args(arguments)
    except SystemExit as stop:
        assert stop.code in (0, None), f"{document}: {command!r} is refused"


def _load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_pictures_and_links_of_the_documents_exist() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (document.parent / target).exists(), f"{document}: {target}"
