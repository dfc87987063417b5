"""The lines that a build prints."""

from __future__ import annotations

import pytest
from msgspec import structs

from edgeship.build import words
from edgeship.build.metric_gate import FieldEvidence, judge_field
from edgeship.build.schemes import S8S8, U8S7, U8S8, guarded, schemes
from edgeship.build.select import Choice
from edgeship.cli.build import _print_result
from edgeship.statistics.disagreements import Disagreements
from edgeship.targets import RuntimeEntry, Target
from tests import builds


def test_a_measurement_says_where_it_was_made() -> None:
    int8 = builds.variant("x86-64-server", "onnxruntime", "int8", chosen=True)
    fp32 = builds.variant("x86-64-server", "onnxruntime", "fp32", chosen=False)
    lines = [text for _, text, _ in words.int8_lines(int8, fp32, [])]
    assert "on this machine (x86_64), not on x86-64-server" in lines
    at_home = structs.replace(int8, on_target=True)
    assert "on this machine (x86_64), the ISA class of x86-64-server" in [
        text for _, text, _ in words.int8_lines(at_home, fp32, [])
    ]


def test_a_rule_that_does_not_hold_is_printed_with_what_would_decide() -> None:
    int8 = builds.variant("x86-64-server", "onnxruntime", "int8", chosen=False, drop_high=0.013)
    label, text, glyph = words.int8_lines(int8, int8, [builds.gate(int8, None)])[-1]
    assert (label, glyph) == ("int8", "undecided")
    assert text == "the interval crosses the margin; 3,100 more labels would decide"
    assert words.int8_lines(int8, int8, [builds.gate(int8, False)])[-1][2] == "failed"


def test_a_claim_on_unlabelled_samples_is_told_by_the_bound_that_judged(capsys: pytest.CaptureFixture[str]) -> None:
    int8 = builds.variant("box", "litert", "int8", chosen=True, drop_high=0.0543)
    other = builds.variant("box", "litert", "fp32", chosen=False)
    counts = Disagreements(samples=940, found=2, both=0, only_reference=0, only_candidate=0, neither=0)
    answer = judge_field(FieldEvidence(counts=counts), 0.01)
    own = structs.replace(
        builds.gate(int8, answer.holds), high=answer.difference.high, n=answer.n, evidence=answer.evidence,
        sentence=answer.sentence,
    )  # fmt: skip
    assert answer.holds
    assert words.drop_high(int8, [builds.gate(other, True), own]) == "+0.0077 (top1, 940 unlabelled)"
    assert words.drop_high(other, [own]) == f"{other.metric.drop_high:+.4f}"
    assert ("claim", f"on unlabelled samples: {answer.sentence}", "done") in words.int8_lines(int8, other, [own])
    assert not [line for line in words.int8_lines(int8, other, [builds.gate(int8, True)]) if line[0] == "claim"]
    document = structs.replace(builds.document(), variants=(int8, other), gates=(own,), bundle="")
    _print_result(document)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "int8" in line]
    assert "+0.0077 (top1, 940 unlabelled)" in row and "0.0543" not in row


def test_what_ships_and_what_does_not() -> None:
    shipped = builds.variant("box", "litert", "int8", chosen=True)
    choice = Choice(verdict="pass", chosen="box/litert/int8", reason="")
    assert words.chosen_line("box", choice, shipped) == ("chosen", "box · litert int8 · 24.0 kB", "done")
    nothing = Choice(verdict="inconclusive", chosen="", reason="x")
    assert words.chosen_line("box", nothing, None)[2] == "undecided"


def test_what_ships_for_its_size_alone_is_said_to_be_slow() -> None:
    int8 = structs.replace(builds.variant("box", "litert", "int8", chosen=True), on_target=True, speedup=0.25)
    ((label, text, glyph),) = words.slow_lines(int8)
    assert (label, glyph) == ("note", "note")
    assert text.startswith("int8 takes 4× the time of fp32 on box: it ships for its size; --latency-p99-ms")
    assert words.slow_lines(structs.replace(int8, speedup=0.9)) == []  # a tenth slower is no news
    assert words.slow_lines(structs.replace(int8, on_target=False)) == []  # the target may well be another matter
    assert words.slow_lines(None) == []


def test_the_next_commands_lead_on() -> None:
    passed = words.next_commands(builds.document(), "build")
    assert passed[:2] == ["edgeship verify build/bundle", "edgeship releases add build/bundle"]
    assert "edgeship explain build/top1" in passed
    assert words.next_commands(builds.document(verdict="fail"), "out/v1") == ["edgeship explain build/top1@out/v1"]


def _target(arch: str, isa: tuple[str, ...], runtime: str, int8: str) -> Target:
    return Target(
        id="t",
        title="t",
        arch=arch,
        isa=isa,
        runtimes=(RuntimeEntry(name=runtime, int8=int8),),
        memory_bytes=1,
        storage_bytes=1,
    )  # type: ignore[arg-type]


def test_schemes_follow_target_runtime_and_where_they_can_be_seen() -> None:
    vnni = _target("x86_64", ("vnni",), "onnxruntime", "u8s8")
    assert schemes(vnni, "onnxruntime", on_target=False) == (U8S8, S8S8, U8S7)
    plain = _target("x86_64", (), "openvino", "u8s8")
    assert schemes(plain, "openvino", on_target=False) == (U8S8, U8S7)
    assert guarded(U8S8, plain, on_target=False), "saturation cannot be seen here"
    assert not guarded(U8S7, plain, on_target=False)
    assert not guarded(U8S8, plain, on_target=True)
    assert not guarded(U8S8, vnni, on_target=False)
    assert schemes(plain, "openvino", on_target=True) == (U8S8, U8S7)
    arm = _target("aarch64", ("dotprod",), "onnxruntime", "s8s8")
    assert schemes(arm, "onnxruntime", on_target=False) == (S8S8, U8S8)
    assert schemes(_target("aarch64", (), "litert", "u8s8"), "litert", on_target=False)[0] == S8S8
