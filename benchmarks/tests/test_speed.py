"""The measuring itself: what is counted, and that the scripts run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks import measuring
from benchmarks.speed import san_image as speed
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from san import SAN, san_vit_b_16

# As torch's counter takes formulas: of shapes.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    )
}


def test_flops_of_a_product_are_known() -> None:
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert measuring.count_flops(lambda: a @ b) == 2 * 8 * 16 * 4


def test_flops_of_an_attention_are_those_of_its_two_products() -> None:
    q, k, v = torch.randn(3, 2, 4, 50, 8)
    count = measuring.count_flops(lambda: F.scaled_dot_product_attention(q, k, v))
    assert count == 2 * (2 * 2 * 4 * 50 * 50 * 8)


def test_the_processor_is_named_with_its_cores() -> None:
    assert measuring.processor_name().endswith(f", {os.cpu_count()} cores")


def test_best_times_runs_everything_in_turn() -> None:
    calls: list[str] = []
    times = measuring.best_times(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2
    )
    assert calls == ["a", "b"] * 3 and set(times) == {"a", "b"}


def test_peak_memory_is_that_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    script = tmp_path / "measured_module.py"
    script.write_text("def main(argv):\n    x = b'1' * int(argv[0])\n    print('{\"n\": 3}')\n")
    small, large = (measuring.in_fresh_process("measured_module", [n]) for n in ("1", "1500000000"))
    assert large["n"] == 3 and small["peak_gib"] < 1
    assert 1.39 < large["peak_gib"] - small["peak_gib"] < 1.41
    script.write_text("raise ValueError('what went wrong')")
    with pytest.raises(RuntimeError, match="what went wrong"):
        measuring.in_fresh_process("measured_module", [])


def test_the_decided_san_segments_with_many_names() -> None:
    found = speed.segment_large(200, 64, 96)
    assert found["names_found"] > 3


@pytest.mark.parametrize("inference", [True, False])
def test_operations_are_those_that_torchs_counter_counts(inference: bool) -> None:
    network = SAN(san_vit_b_16()).eval()
    image, classes = torch.randn(1, 3, 96, 128), torch.randn(5, network.config.clip.embed_dim)

    def work() -> None:
        network(image, classes)
        F.interpolate(image, scale_factor=2, mode="bilinear")

    with torch.inference_mode(inference):
        # torch's own formulas, and the one for the attention of CPUs that some versions lack
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as torchs:
            work()
        with measuring.FlopCounter() as ours:
            work()
    assert ours.total == torchs.get_total_flops() > 1e9
