"""The report's figures on large and on tiny builds: front, ties, sensitivity, confusions, attempts, outliers."""

from __future__ import annotations

import re

import msgspec
import pytest
from msgspec import structs

from edgeship.build.metrics.confusion import WHOLE_CLASSES
from edgeship.build.report import render_report
from edgeship.build.report.front import front, most_accurate, ties
from edgeship.build.schema import BuildDocument, ConfusionCell, MeasuredOn, VariantReport
from edgeship.charts.placing import Spot, offsets
from tests import builds, reports
from tests.unit.test_build_report import Reader


def _variant(latency_ms: float, drop: float, *, verdict: str = "pass", cpu: str = "A") -> VariantReport:
    base = builds.variant("t", "litert", "int8", chosen=False)
    place = MeasuredOn(arch="x86_64", isa="x86_64", cpu=cpu)
    return structs.replace(base, latency_p50_ms=latency_ms, metric=builds.metric(drop, drop, drop), verdict=verdict,
                           measured_on=place)  # fmt: skip


def _time(variant: VariantReport) -> float:
    return variant.latency_p50_ms


def test_the_front_holds_what_nobody_beats() -> None:
    shown = [_variant(1.0, 0.02), _variant(2.0, 0.0), _variant(3.0, 0.01), _variant(1.0, 0.02)]
    assert front(shown, _time, timed=True) == {0, 1, 3}


def test_a_refused_variant_is_not_on_the_front_unless_all_are_refused() -> None:
    shown = [_variant(0.1, 0.5, verdict="fail"), _variant(2.0, 0.0)]
    assert front(shown, _time, timed=True) == {1}
    assert front([structs.replace(each, verdict="fail") for each in shown], _time, timed=True) == {0, 1}


def test_times_of_two_machines_are_not_compared() -> None:
    shown = [_variant(1.0, 0.0), _variant(2.0, 0.0, cpu="B")]
    assert front(shown, _time, timed=True) == {0, 1}
    assert front(shown, _time, timed=False) == {0}


def test_a_tie_is_an_overlap_with_the_most_accurate() -> None:
    shown = [_variant(1.0, 0.0), _variant(1.0, 0.001), _variant(1.0, 0.2)]
    assert most_accurate(shown) == 0
    assert ties(shown) == {1}
    assert ties([]) == set()
    text = Reader(render_report(structs.replace(builds.document(), variants=tuple(shown)))).text
    assert "1 of 2 tie with the most accurate, a: their intervals overlap" in text


@pytest.mark.parametrize("count", [1, 2, 12, 17])
def test_words_never_meet(count: int) -> None:
    spots = [Spot(x=0.5 + 0.001 * (index % 3), y=100.0 + index % 2, text=f"{index}≈") for index in range(count)]
    heights = [spot.y + move for spot, move in zip(spots, offsets(spots, 260, 11), strict=True)]
    for first, second in zip(sorted(heights), sorted(heights)[1:], strict=False):
        assert second - first >= 14
    assert all(0 <= height <= 260 for height in heights)


def test_the_plot_follows_the_quantile_of_the_budget() -> None:
    document = builds.document()
    assert "latency p50 →" in render_report(document)
    budget = structs.replace(document.gates[0], id="latency_p99_ms")
    assert "latency p99 →" in render_report(structs.replace(document, gates=(*document.gates, budget)))


def test_everything_of_a_large_build_is_told() -> None:
    document = reports.crowded()
    text = Reader(render_report(document)).text
    assert "Rounding noise by operator, target-0/onnxruntime" in text
    assert "8 of 11 tie with the most accurate" in text
    assert reports.LONG in text, "the whole name stands in the table"
    assert f"--keep-float '{reports.LONG}' (measured: 34 % of the squared error goes)" in text
    assert "9 more" in text
    assert "35 cells moved" in text
    assert "edgeship bisect model.onnx --runtime litert --inputs calibration.npz" in text
    assert "20 candidates of the search (16 not chosen, 4 failed)" in text
    assert text.count("quantization error: s8s8: NNCF: no statistics 4 ×") == 2, "the same sentence stands once a group"
    assert "conversion error: no LSTM; tried next: onnx → fold → onnx2tf" in text
    assert "conversion error: onnx" not in text, "the stage is not said twice"


def test_attempts_of_a_search_are_folded() -> None:
    page = render_report(reports.crowded())
    section = page[page.index("Tried and not shipped") :]
    before, _, folded = section.partition("<details>")
    assert "no LSTM" in before
    assert "no statistics" not in before
    assert "no statistics" in folded


def test_a_build_of_one_variant_without_latency() -> None:
    text = Reader(render_report(reports.alone())).text
    assert "Latency was not measured." in text
    assert "FULLY_CONNECTED fc makes 0 %" in text
    assert "No cell moved." in text


@pytest.mark.parametrize("classes", [2, 10, WHOLE_CLASSES])
def test_a_matrix_shows_every_cell(classes: int) -> None:
    page = render_report(reports.crowded(classes=classes, count=4))
    table = page[page.index('class="es-confusion"') :]
    table = table[: table.index("</table>")]
    assert table.count("<td") == classes * classes + 1
    numbers = [int(each) for each in re.findall(r"(\d+)</td>", table)]
    assert sum(numbers) == 600, "the variant's counts are those of all samples"


def test_many_classes_are_shown_by_what_moved() -> None:
    document = reports.crowded(classes=120, count=4)
    page = render_report(document)
    assert 'class="es-confusion"' not in page
    assert "Of 120 classes, only what changed is listed." in Reader(page).text
    found = document.variants[0].confusion
    assert found is not None
    assert not found.whole
    assert all(each.source != each.variant for each in found.cells)


def test_counts_are_stored_without_samples() -> None:
    found = reports.confusion_of(3)
    sent = msgspec.json.encode(found)
    assert b'"cells":[[0,0,' in sent
    assert msgspec.json.decode(sent, type=type(found)) == found
    assert sum(each.source for each in found.cells) == sum(each.variant for each in found.cells) == 600
    assert ConfusionCell(1, 2, 3, 4) == msgspec.json.decode(b"[1,2,3,4]", type=ConfusionCell)


def _latency_page(document: BuildDocument, times_ms: list[float]) -> str:
    return render_report(document, latencies_ms={"x86-64-server/onnxruntime/int8": times_ms})


def test_outliers_lie_beyond_the_axis_and_are_counted() -> None:
    steady = [0.04 + index * 1e-6 for index in range(1000)]
    assert "beyond, up to" not in _latency_page(builds.document(), steady)
    page = _latency_page(builds.document(), [*steady, 5.0, 7.0, 9.0])
    assert "» 3 of 1,003 beyond, up to 9 ms" in page
    labels = re.findall(r'y="186"[^>]*>([\d.]+) ms<', page)
    assert float(labels[-1]) < 0.07, labels
    assert "9 ms" in Reader(page).text


def test_a_former_build_without_the_new_fields_still_gives_a_page() -> None:
    old = msgspec.json.decode(msgspec.json.encode(builds.document()))
    for key in ("sensitivity", "next"):
        del old[key]
    for each in old["variants"]:
        del each["confusion"]
    for each in old["tried"]:
        del each["stage"]
    document = msgspec.convert(old, BuildDocument)
    assert "Sensitivity" not in render_report(document)


def test_what_was_tried_in_vain_is_said() -> None:
    document = reports.crowded()
    first = document.sensitivity[0]
    worst = structs.replace(first.operators[0], removed_share=-0.6)
    tried = structs.replace(first, operators=(worst, *first.operators[1:]))
    text = Reader(render_report(structs.replace(document, sensitivity=(tried,)))).text
    assert "In float by itself it did not help: the squared error grew by 60 %." in text
