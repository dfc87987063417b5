"""What a library measures of calls that press and of calls that do not; gauges read while a window closes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from benchmarks.agents.made import frame_case
from benchmarks.agents.slots import write_slot

from edgeship_agent.serving.library import LocalModel
from edgeship_agent.telemetry.gauges import ProcessGauges
from edgeship_agent.telemetry.window import WindowLimits

CALLS = 36


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    return write_slot(frame_case(folder, "frames", (96, 96, 3)), folder / "slot")


def measured(slot: Path, pause_s: float) -> tuple[int, int]:
    """Calls of a window, and images that its sketch holds."""
    samples = frame_case(slot.parent, "frames", (96, 96, 3)).samples(4)
    with LocalModel.open(slot, limits=WindowLimits(inferences=CALLS)) as model:
        for index in range(CALLS):
            model.predict(samples[index % 4])
            time.sleep(pause_s)
        window = model.take_window()
    assert window is not None
    sketch = window.signals["input/x/brightness"]
    assert sketch.missing_count == 0
    return window.inferences, sketch.total


def test_calls_that_press_are_judged_by_a_sample_and_others_by_every_image(slot):
    assert measured(slot, pause_s=0.011) == (CALLS, CALLS)
    calls, images = measured(slot, pause_s=0.0)
    assert calls == CALLS
    assert 21 <= images < CALLS  # a busy machine may come late now and then, and such a call does not press


def test_the_hottest_zone_is_told_and_what_cannot_be_read_is_left_out(tmp_path):
    assert "temperature_c" not in ProcessGauges(tmp_path).read()
    for zone, text in {"0": "41500", "1": "63250\n", "2": "none"}.items():
        (tmp_path / f"thermal_zone{zone}").mkdir()
        (tmp_path / f"thermal_zone{zone}" / "temp").write_text(text)
    gauges = ProcessGauges(tmp_path)
    assert gauges.read()["temperature_c"] == 63.25
    assert gauges.read()["memory_bytes"] > 1e6
    (tmp_path / "thermal_zone1" / "temp").unlink()
    assert gauges.read()["temperature_c"] == 41.5
