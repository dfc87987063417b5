"""The page of the quality benchmark says what its rows say, of each cell's last finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from build_quality_page import latest, page

_ABOUT: dict[str, Any] = {
    "unit": "", "n": 100, "goal": None, "met": None, "commit": "abc", "at": "2026-11-26T03:00:00+00:00",
    "machine": {"cpu": "a cpu", "isa": "x86_64", "cores": 2, "python": "3.11"}, "cell": "resnet-20:litert",
}  # fmt: skip


def _run(run: str, low: float, high: float, *, whole: bool = True) -> list[dict[str, Any]]:
    def row(kind: str, against: str, value: float, **more: Any) -> dict[str, Any]:
        return {**_ABOUT, "name": f"build.resnet-20.litert.{kind}", "against": against, "value": value, "low": None,
                "high": None, "run": run, **more}  # fmt: skip

    rows = [row("latency_p50_ms", "float", 0.9), row("size", "float", 1000)]
    for who, rms in (("ours", 0.03), ("aeq default", 0.04)):
        rows += [row("relative_rms", who, rms, scheme="s8s8"), row("top1_drop", who, 0.0),
                 row("latency_over_float", who, 0.34), row("latency_p50_ms", who, 0.3),
                 row("size", who, 280)]  # fmt: skip
    rows[2] |= {"goal": "≤ 0.045", "met": True}
    met = low <= 1.0
    rows.append(row("error_over_peer", "aeq default", 0.75, low=low, high=high, rival=True, goal="low ≤ 1", met=met))
    if whole:
        rows.append(row("error_over_closest_peer", "aeq default", 0.75, low=low, high=high, goal="low ≤ 1", met=met,
                        size_over_peer=1.0))  # fmt: skip
    return rows


def test_proven_differences_ties_and_defeats_are_told_apart() -> None:
    assert "| ours, by a fifth |" in page(_run("1", 0.6, 0.79))
    assert "| ours is closer |" in page(_run("1", 0.7, 0.95))
    assert "| tie |" in page(_run("1", 0.7, 1.01))
    beaten = page(_run("1", 1.05, 1.2))
    assert "**theirs is closer**" in beaten
    assert "**missed**: ResNet-20 on LiteRT (aeq default)" in beaten


def test_a_later_run_takes_the_place_of_an_earlier_one_unless_it_was_cut_off() -> None:
    rows = [*_run("1", 0.7, 1.01), *_run("2", 0.6, 0.79)]
    assert "| ours, by a fifth |" in page(rows)
    assert "| ours, by a fifth |" in page([*rows, *_run("3", 0.7, 1.01, whole=False)])
    assert set(latest(rows)) == {"resnet-20:litert"}


def test_stated_limits_stand_among_the_goals() -> None:
    assert "| ResNet-20 on LiteRT: relative RMS ≤ 0.045 | met: 0.0300 |" in page(_run("1", 0.6, 0.79))


def test_cells_that_were_to_be_shown_and_have_no_figures_are_named() -> None:
    text = page(_run("1", 0.6, 0.79))
    assert "**Without figures**: ResNet-8 on ONNX Runtime, " in text
    assert "ResNet-20 on LiteRT" not in text.split("**Without figures**")[1].split("\n")[0]


def test_each_kind_of_processor_has_its_own_part() -> None:
    newer = [{**row, "machine": {**row["machine"], "isa": "x86_64+vnni"}} for row in _run("1", 0.6, 0.79)]
    text = page([*newer, *_run("2", 1.05, 1.2)])
    with_vnni, without = text.split("## On x86_64+vnni")[1].split("## On x86_64\n")
    assert "| ours, by a fifth |" in with_vnni
    assert "theirs is closer" not in with_vnni
    assert "**theirs is closer**" in without
    for isa, anchor in (("x86_64+vnni", "x86_64vnni"), ("x86_64", "x86_64")):
        assert f"(#resnet-20-on-litert-{anchor})" in text
        assert f"## ResNet-20 on LiteRT, {isa}\n" in text
