"""The build report: it says what was decided, asks nobody for anything, and escapes every name."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from edgeship.build.report import render_report, write_report
from tests import builds


class Reader(HTMLParser):
    """Collects text and what a browser might fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_first_sentence_is_the_verdict_with_its_numbers() -> None:
    text = Reader(render_report(builds.document())).text
    assert "✔ pass A bundle for 3 targets: x86-64-server gets int8 in onnxruntime (top1 96.9 %" in text
    assert "drop +0.1 % (95 % −0.2…+0.4, n = 900)" in text


@pytest.mark.parametrize(("verdict", "sentence"), [
    ("fail", "No bundle for 1 of 3 targets. intel-nuc: size 88 kB exceeds 50 kB."),
    ("inconclusive", "No bundle yet: not decided for 1 of 3 targets. intel-nuc: size 88 kB exceeds 50 kB."),
])  # fmt: skip
def test_other_verdicts_say_why(verdict: str, sentence: str) -> None:
    assert sentence in Reader(render_report(builds.document(verdict=verdict))).text


def test_everything_is_there() -> None:
    document = builds.document()
    text = Reader(render_report(document)).text
    for variant in document.variants:
        assert f"{variant.target}/{variant.runtime}/{variant.precision}" in text
    for part in (
        "not measured on intel-nuc", "top1 drop is not proven", "XNNPACK refused", "3,100 more labels would decide",
        "sha256:" + "b" * 64, "1 not decided", "SQNR 38.4 dB", "edgeship verify /tmp/build/bundle",
    ):  # fmt: skip
        assert part in text, part


def test_latency_curves_need_measurements() -> None:
    label = "x86-64-server/onnxruntime/int8"
    times = [0.04 + index * 1e-5 for index in range(1000)]
    with_curve = render_report(builds.document(), latencies_ms={label: times})
    assert "Latency of one inference, x86-64-server" in with_curve
    assert "Latency of one inference" not in render_report(builds.document())


def test_page_fetches_nothing_and_runs_nothing() -> None:
    page = render_report(builds.document())
    reader = Reader(page)
    assert reader.fetched == ["data:,"]
    assert not {"script", "iframe", "img", "object"} & set(reader.tags)
    assert " style=" not in page
    assert "default-src &#x27;none&#x27;" in page
    assert "http://" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    document = builds.document(name=evil)
    variants = tuple(msgspec.structs.replace(each, reason=evil) for each in document.variants)
    page = render_report(msgspec.structs.replace(document, variants=variants, notes=(evil,)))
    assert "script" not in Reader(page).tags
    assert evil not in page


def test_build_without_variants_still_gives_a_page() -> None:
    document = builds.document(verdict="fail")
    empty = msgspec.structs.replace(document, variants=(), gates=(), targets=(), source=None, data=(), tried=())
    text = Reader(render_report(empty)).text
    assert "no target was built" in text
    assert "No variant could be built" in text


def test_file_appears_whole(tmp_path: Path) -> None:
    path = write_report(builds.document(), tmp_path / "out" / "report.html")
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
