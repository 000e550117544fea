"""A slice of the kill campaign, and that the campaign notices what it is made to notice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.experiments import kill
from benchmarks.experiments.kill_lives import Moment
from benchmarks.experiments.kill_targets import TARGETS, Target, tree_of

from openvocab.files import write_text

if sys.platform != "linux":
    pytest.skip("the campaign reads /proc", allow_module_level=True)

SLICE = ("openvocab.prepare", "caches", "ovseg.collect_pairs")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))  # is set by the campaign, too


def test_killed_commands_go_on_and_leave_what_an_undisturbed_run_leaves(tmp_path: Path) -> None:
    chosen = [target for target in TARGETS if target.name in SLICE]
    record = kill.campaign(12, 5, tmp_path / "killed", chosen)
    assert record["totals"]["kills"] == 12 and not record["findings"], record["findings"]
    assert set(record["targets"]) == set(SLICE) and record["totals"]["ended"] >= len(SLICE)


def files(output: Path) -> int:
    return sum(path.is_file() for path in output.iterdir())


def writer(work: Callable[[Path], int | None], finished: Callable[[Path], int] = files) -> Target:
    def live(_: Path, output: Path) -> int:
        return int(work(output) or 0)

    return Target("writer", 1, lambda _: None, live, tree_of, finished)


def careful(output: Path) -> None:
    for index in range(3):
        if not (output / f"{index}.txt").exists():
            write_text(output / f"{index}.txt", str(index))


def forgets(output: Path) -> None:
    for path in output.iterdir():
        path.unlink()
    careful(output)


def half_writes(output: Path) -> None:
    if not (output / "0.txt").exists():
        with (output / "0.txt").open("w") as file:
            file.write("half ")
            file.flush()
            (output / "1.txt").touch()
            file.write("and half")


def leaves_behind(output: Path) -> None:
    (output / f".{os.getpid()}").mkdir()  # no file, so that the outcome is the same
    (output / "0.txt").touch()
    (output / f".{os.getpid()}").rmdir()


def leaves_a_process(output: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    (output / "0.txt").touch()
    sleeper.kill()
    sleeper.wait()


def refuses_to_go_on(output: Path) -> int:
    if (output / "lock").exists():
        return 2
    (output / "lock").touch()
    (output / "0.txt").touch()
    (output / "lock").unlink()
    return 0


def moments(monkeypatch: pytest.MonkeyPatch, *operations: int) -> None:
    """Kill before these file operations, one life after the other, and then no more."""
    drawn = [Moment(signal.SIGKILL, operation, 0.0) for operation in operations]
    monkeypatch.setattr(kill, "LONGEST", len(drawn))
    monkeypatch.setattr(kill.Campaign, "_draw", lambda _: drawn.pop(0))


def killed(work: Callable[[Path], int | None], folder: Path, kills: int) -> Any:
    one = kill.Campaign(writer(work), folder / "writer", random.Random(0))
    one.kill(kills)
    return one.toll


@pytest.mark.parametrize(
    ("work", "operation", "what"),
    [
        (careful, 4, ""),
        (half_writes, 2, "differences"),
        (leaves_behind, 2, "leftovers"),
        (leaves_a_process, 1, "orphans"),
        (refuses_to_go_on, 3, "lost"),
    ],
)
def test_the_campaign_notices(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Path], int | None],
    operation: int,
    what: str,
) -> None:
    moments(monkeypatch, operation)
    if work is leaves_a_process:
        monkeypatch.setattr(kill, "STAY", 3.0)
    toll = killed(work, tmp_path, 1)
    assert toll.kills == 1 and toll.by == {"SIGKILL": 1}
    bad = {name for name in kill.BAD if getattr(toll, name)}
    assert bad == ({what} if what else set())


def test_finished_work_that_is_gone_after_the_next_kill_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments(monkeypatch, 8, 4)  # two files are finished, then all are gone
    assert killed(forgets, tmp_path, 2).lost == 1


def test_a_traceback_is_a_complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(output: Path) -> None:
        (output / "0.txt").touch()
        if output.name != "undisturbed":
            raise KeyError("of a mistake")

    moments(monkeypatch, 99)
    monkeypatch.setattr(kill, "LONGEST", 1)
    one = kill.Campaign(writer(fails), tmp_path / "writer", random.Random(0))
    one._kill_in(tmp_path / "writer" / "0001", 1)
    assert one.toll.complaints == 1 and one.toll.lost == 1


def test_kills_by_the_clock_hit_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(output: Path) -> None:
        (output / "0.txt").write_text("written in every life")
        if output.name != "undisturbed":
            time.sleep(30)

    drawn = [
        Moment(signal.SIGTERM, None, 0.3),
        Moment(signal.SIGTERM, 1, 0.001),
    ]
    monkeypatch.setattr(kill.Campaign, "_draw", lambda _: drawn.pop(0))
    one = kill.Campaign(writer(slow), tmp_path / "writer", random.Random(0))
    for moment in list(drawn):
        end = one._live(tmp_path / "writer" / "0001", moment)
        assert end.signaled and end.code == -signal.SIGTERM


def test_the_security_page_quotes_the_record() -> None:
    root = Path(kill.__file__).parents[2]
    record = json.loads((root / "benchmarks/measured/kill.json").read_text("utf-8"))
    assert set(record["targets"]) == {target.name for target in TARGETS}
    assert kill.sentence(record) in (root / "SECURITY.md").read_text("utf-8")
