"""The gate's error, simulated: a short run of what benchmarks/gate_simulation.py runs in full."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeship.statistics import wilson


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "gate_simulation.py"
    spec = importlib.util.spec_from_file_location("gate_simulation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_at_the_margin_labelled_samples_pass_in_five_per_cent_at_most(simulation: ModuleType) -> None:
    rng = np.random.default_rng(11)
    drawn = simulation.cells_of(simulation.MARGIN, 0.03, 0.9, 1_000, rng, 10_000)
    hits = sum(simulation.passes(*map(int, row)) for row in drawn)
    assert wilson(hits, 10_000).high <= 0.05
    assert hits > 100, "a gate that never passes proves nothing"


def test_at_the_margin_labels_of_disagreements_pass_in_five_per_cent_at_most(simulation: ModuleType) -> None:
    rng = np.random.default_rng(12)
    rows = [simulation.outcomes_of(20_000, 0.05, 300, simulation.MARGIN, rng) for _ in range(4_000)]
    hits = sum(simulation.passes_by_disagreements(20_000, found, outcome) for found, outcome in rows)
    assert wilson(hits, 4_000).high <= 0.05
    assert hits > 40


def test_a_ladder_of_four_needs_its_correction(simulation: ModuleType) -> None:
    """All four at the margin: uncorrected, going on after every failure passes one too often; corrected it does not."""
    rng = np.random.default_rng(13)
    draws = [simulation.cells_of(simulation.MARGIN, 0.03, 0.9, 1_000, rng, 5_000) for _ in range(4)]
    rows = [[tuple(map(int, draw[trial])) for draw in draws] for trial in range(5_000)]
    corrected = sum(any(simulation.passes(*row, position=k + 1) for k, row in enumerate(trial)) for trial in rows)
    plain = sum(any(simulation.passes(*row) for row in trial) for trial in rows)
    assert wilson(plain, 5_000).low > 0.05
    assert corrected / 5_000 <= 0.05


def test_labels_of_disagreements_carry_ten_times_as_much(simulation: ModuleType) -> None:
    """At a true drop of .3 points, 340 labels of disagreements decide at least as often as 3,400 labelled samples."""
    rng = np.random.default_rng(14)
    drawn = simulation.cells_of(0.003, 0.035, 0.87, 3_400, rng, 2_000)
    by_labels = sum(simulation.passes(*map(int, row)) for row in drawn)
    rows = [simulation.outcomes_of(20_000, 0.05, 340, 0.003, rng) for _ in range(2_000)]
    by_few = sum(simulation.passes_by_disagreements(20_000, found, outcome) for found, outcome in rows)
    assert by_few > by_labels
