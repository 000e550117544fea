"""A slice of the fuzzing campaign, and that the campaign notices what it is made to notice."""

import mmap
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from benchmarks.experiments import fuzz
from benchmarks.experiments.fuzz_seeds import Reader, Seed

from openvocab.errors import InputError


def test_damaged_and_hostile_files_are_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    tally = fuzz.campaign(400, 7, tmp_path / "a" / "b")
    assert tally.bad() == 0, tally.findings
    kinds = {kind for kind, _ in tally.outcomes}
    assert len(kinds) >= 9 and {outcome for _, outcome in tally.outcomes} == set(fuzz.GOOD)


def test_an_input_is_known_by_its_number() -> None:
    seeds = [Seed("image", ".png", bytes(range(200))), Seed("image", ".gif", b"GIF" * 40)]
    first = [fuzz.plan(number, 3, seeds)[1] for number in range(50)]
    assert first == [fuzz.plan(number, 3, seeds)[1] for number in range(50)]
    assert len(set(first)) > 30
    assert first != [fuzz.plan(number, 4, seeds)[1] for number in range(50)]


def fails(_: Path) -> None:
    raise KeyError("a traceback")


def dies(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(_: Path) -> None:
    time.sleep(60)


def computes(_: Path) -> None:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


def speaks(_: Path) -> None:
    error = InputError("fine")
    error.args = ("two\nlines",)
    raise error


def plants(_: Path) -> None:
    Path(os.environ["OPENVOCAB_FUZZ_CANARY"]).touch()


def grows(_: Path) -> None:
    block = mmap.mmap(-1, 64 << 20)  # never memory that an earlier test has given back
    for start in range(0, len(block), 4096):
        block[start] = 1


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (fails, "traceback"),
        (dies, "crash"),
        (sleeps, "hang"),
        (computes, "hang"),
        (speaks, "unprintable"),
        (plants, "canary"),
        (grows, "memory"),
    ],
)
def test_the_campaign_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: object, outcome: str
) -> None:
    reader = Reader("bad", "bad", read)
    monkeypatch.setattr(fuzz, "READERS", (reader,))
    monkeypatch.setattr(fuzz, "make_seeds", lambda _: [Seed("bad", ".bin", b"data")])
    monkeypatch.setattr(fuzz, "PATIENCE", 0.5 if read is sleeps else 600.0)
    if read is computes:
        monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    if read is grows:
        monkeypatch.setattr(fuzz, "BYTES", 32 << 20)
        monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    (tmp_path / "a" / "b").mkdir(parents=True)
    tally = fuzz.campaign(1, 0, tmp_path / "a" / "b")
    assert outcome in {found["is"] for found in tally.findings} and tally.bad() >= 1
