"""The build report in a real browser: large and tiny builds, wide and narrow, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship.build.report import write_report
from tests import builds, reports
from tests.browser.chromium import Tab
from tests.browser.test_dashboard import _SMALL_TARGETS, _UNNAMED_CHARTS

pytestmark = pytest.mark.browser

PAGES = {
    "plain": builds.document,
    "crowded": reports.crowded,
    "thirty classes": lambda: reports.crowded(classes=30, count=4),
    "many classes": lambda: reports.crowded(classes=120, count=8),
    "alone": reports.alone,
}
#: Elements that reach beyond the window and lie in nothing that scrolls by itself or that draws.
_WIDER = """
[...document.querySelectorAll('body *')].filter((part) =>
  part.getBoundingClientRect().right > window.innerWidth + 1 && part.getBoundingClientRect().width > 0
  && !part.closest('.scroll, .es-scroll, .hidden, svg')).map((part) => part.outerHTML.slice(0, 120))
"""
#: Letters of variants in the Pareto plots that cover one another.
_COVERED = """
[...document.querySelectorAll('svg[role=img]')].flatMap((plot) => {
  const words = [...plot.querySelectorAll('.es-halo.es-strong')];
  const boxes = words.map((word) => word.getBoundingClientRect());
  const meet = (one, other) => one.left < other.right - 1 && other.left < one.right - 1
    && one.top + 3 < other.bottom - 3 && other.top + 3 < one.bottom - 3;
  return words.flatMap((word, index) => words.slice(index + 1)
    .filter((_, after) => meet(boxes[index], boxes[index + 1 + after]))
    .map((other) => word.textContent + other.textContent));
})
"""


@pytest.mark.parametrize("name", PAGES)
def test_the_report_reads_at_every_width_light_and_dark(browser: Tab, tmp_path: Path, name: str) -> None:
    times = {"target-0/onnxruntime/int8": [0.04] * 500 + [9.0], "x86-64-server/onnxruntime/int8": [0.05] * 500}
    page = write_report(PAGES[name](), tmp_path / "report.html", latencies_ms=times)
    for width in (1280, 320):
        for dark in (False, True):
            browser.look(width=width, dark=dark)
            browser.open(page.as_uri())
            assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
            assert browser.problems == []
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, browser.evaluate(_WIDER)
            assert browser.evaluate(_WIDER) == []
            assert browser.evaluate(_SMALL_TARGETS) == 0
            assert browser.evaluate(_UNNAMED_CHARTS) == 0
            assert browser.evaluate(_COVERED) == []
