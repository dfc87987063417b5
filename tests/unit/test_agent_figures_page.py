"""The page of the agent's figures shows the last run of each, and what was missed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from agent_figures_page import page


def _row(name: str, value: float, *, goal: str | None = "≤ 10", met: bool | None = True) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "us", "low": 1.0, "high": 2.0, "n": 4096, "goal": goal, "met": met,
            "commit": "abcdef012345", "at": "2026-11-26T03:00:00+00:00", "command": "python benchmarks/x.py",
            "machine": {"cpu": "a cpu", "isa": "x86_64", "cores": 2, "python": "3.11"}}  # fmt: skip


def test_the_last_run_of_a_figure_counts_and_a_missed_goal_says_so() -> None:
    text = page([_row("agent/in process/a: p50", 5.0), _row("agent/in process/a: p50", 12.5, met=False)])
    assert "| a: p50 | 12.5 µs | 1 … 2 | 4,096 | ≤ 10 | **missed** |" in text
    assert "| a: p50 | 5 µs" not in text


def test_what_has_no_goal_any_more_is_left_out() -> None:
    text = page([_row("agent/in process/a: p50", 5.0), _row("agent/in process/a: p50", 5.0, goal=None, met=None)])
    assert "a: p50" not in text


def test_of_long_runs_the_last_one_alone_is_shown() -> None:
    rows = [_row("soak/memory, growth in 60 minutes", 0.1), _row("soak/memory, growth in 34 minutes", 0.2)]
    assert "60 minutes" not in page(rows)
    again = page([*rows, _row("soak/memory, growth in 60 minutes", 0.01)])
    assert "| memory, growth in 60 minutes | 0.01" in again
    assert "34 minutes" not in again


def test_where_and_when_it_was_measured_is_said() -> None:
    text = page([_row("telemetry/bytes", 1255.0)])
    assert "a cpu (x86_64, 2 cores), Python 3.11, commit `abcdef0`, 2026-11-26: `python benchmarks/x.py`" in text


def test_a_run_on_another_kind_of_processor_takes_nothing_away() -> None:
    slow = _row("agent/in process/a: p50", 12.5, met=False)
    quick = {**_row("agent/in process/a: p50", 5.0), "machine": {**slow["machine"], "isa": "x86_64+vnni"}}
    text = page([quick, slow])
    assert "| a: p50 | 12.5 µs" in text
    assert "| a: p50 | 5 µs" in text
    assert text.index("(x86_64+vnni, 2 cores)") < text.index("(x86_64, 2 cores)")
