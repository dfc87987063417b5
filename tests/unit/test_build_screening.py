"""How often finalists are asked before one is chosen by speed: a slow net is not asked more often than that takes."""

from __future__ import annotations

import numpy as np
import pytest

from edgeship.build import candidates
from edgeship.build.measure import measure
from edgeship.build.progress import Silence


@pytest.mark.parametrize(("takes_ms", "fewest", "most"), [(30.0, 100, 150), (1.0, 400, 450), (0.1, 4000, 4050)])
def test_queries_follow_what_one_takes(takes_ms: float, fewest: int, most: int) -> None:
    now_s, asked = 0.0, {"a": 0, "b": 0}

    def run(name: str) -> dict[str, np.ndarray]:
        nonlocal now_s
        now_s += takes_ms / 1000.0
        asked[name] += 1
        return {}

    runs = {name: lambda _, name=name: run(name) for name in asked}
    times = measure(runs, [{}], candidates._SCREEN, Silence(), clock=lambda: now_s)
    for name, count in asked.items():
        assert fewest <= count <= most
        assert times[name].p50_ms == pytest.approx(takes_ms)
