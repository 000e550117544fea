"""The load on the page in small: every answer is the right one, and the record says so."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
from benchmarks.speed import app


def test_no_answer_is_lost_or_mixed_up(tmp_path, monkeypatch) -> None:
    if importlib.util.find_spec("gradio") is None:
        assert not os.environ.get("CI")
        pytest.skip("gradio is not installed")
    monkeypatch.setattr(app, "PICTURES", 4)
    target = tmp_path / "app.json"
    small = ["--users", "4", "--requests", "12", "--hostile", "5"]
    assert app.main([*small, "--output", str(target)]) == 0
    record = json.loads(target.read_text())
    loaded, hostile = record["loaded"], record["hostile"]
    assert hostile["uploads"] == hostile["read"] + hostile["sentences"] == 3 * (12 + 5)
    assert hostile["sentences"] >= 3 * 12 and hostile["tracebacks"] == hostile["others"] == 0
    assert (loaded["requests"], loaded["right"], loaded["mixed_up"], loaded["lost"]) == (
        12,
        12,
        0,
        0,
    )
    assert record["start_to_first_mask_seconds"] > 0
    assert 0 < loaded["seconds"]["p50"] <= loaded["seconds"]["p95"]


def test_a_wrong_answer_is_counted(monkeypatch) -> None:
    orders = [app.Order("", "", {"dog": "right"})]
    monkeypatch.setattr(app, "resident", lambda pid: 1)
    for answer, kind in (({"dog": "wrong"}, "mixed_up"), (None, "lost")):

        def ask(address, order, answer=answer):
            if answer is None:
                raise ConnectionError
            return answer

        monkeypatch.setattr(app, "ask", ask)
        assert app.load_page("", 0, orders, 2, 2)[kind] == 4


def test_requests_must_be_shared_evenly() -> None:
    with pytest.raises(app.InputError, match="multiple"):  # type: ignore[attr-defined]
        app.main(["--users", "3", "--requests", "10"])
