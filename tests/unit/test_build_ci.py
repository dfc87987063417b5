"""A build's results in the forms of continuous integration, read by others than those who wrote them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import junitparser
import pytest
import yaml
from msgspec.structs import replace

from edgeship.build import ci, pipeline
from edgeship.build.ci.comment import MAX_BYTES, marker
from edgeship.build.ci.workflow import github_workflow
from edgeship.build.schema import BuildDocument, GateReport, TargetVerdict
from edgeship_agent.contract.errors import ConfigError
from tests import builds

HOSTILE = "a|b`c\n# <script>alert(1)</script> @ali ]]> & \x00 ::error:: %0A --> \ud7ff"


def _failing() -> BuildDocument:
    """One target fails, one passes after a refusal, one passes at once."""
    document = builds.document(verdict="fail")
    gates = tuple(
        replace(gate, holds=False) if (gate.target, gate.precision) == ("intel-nuc", "int8") else gate
        for gate in document.gates
    )
    return replace(document, gates=gates)


def _junit(document: BuildDocument, tmp_path: Path) -> junitparser.JUnitXml:
    path = tmp_path / "junit.xml"
    path.write_text(ci.render(document, "junit"), encoding="utf-8")
    return junitparser.JUnitXml.fromfile(str(path))


def test_junit_passes_where_the_build_passes_and_a_refusal_is_skipped(tmp_path: Path) -> None:
    found = _junit(builds.document(), tmp_path)
    assert [suite.name for suite in found] == ["x86-64-server", "intel-nuc", "x86-64-litert"]
    assert (found.tests, found.failures, found.errors, found.skipped) == (9, 0, 0, 1)
    cases = [case for suite in found for case in suite]
    skipped = [case for case in cases if case.is_skipped]
    assert len(skipped) == 1
    assert "not proven" in skipped[0].result[0].message
    assert "intel-nuc/openvino/fp32 ships instead" in skipped[0].result[0].message
    assert all(case.classname.startswith("edgeship.digits.") for case in cases)


@pytest.mark.parametrize(("verdict", "kind"), [("fail", "fail"), ("inconclusive", "inconclusive")])
def test_junit_fails_where_the_build_does(tmp_path: Path, verdict: str, kind: str) -> None:
    found = _junit(builds.document(verdict=verdict), tmp_path)
    failed = [case for suite in found for case in suite if case.result and not case.is_skipped]
    assert found.failures == len(failed) == 2
    assert failed[0].name == "intel-nuc has a variant to ship"
    assert failed[0].result[0].type == kind
    assert failed[0].result[0].message == "size 88 kB exceeds 50 kB"


def test_junit_holds_whatever_it_is_given(tmp_path: Path) -> None:
    document = _hostile()
    root = ElementTree.fromstring(ci.render(document, "junit"))
    assert int(root.get("tests", "0")) == len(root.findall("testsuite/testcase"))
    assert _junit(document, tmp_path).failures == root.findall("testsuite/testcase/failure").__len__()


def _hostile() -> BuildDocument:
    document = _failing()
    gates = tuple(replace(gate, sentence=HOSTILE, next=HOSTILE) for gate in document.gates)
    targets = tuple(replace(each, reason=HOSTILE) for each in document.targets)
    variants = tuple(replace(each, reason=HOSTILE) for each in document.variants)
    assert document.source is not None
    source = replace(document.source, file=str(Path.cwd() / "models, 100 %" / "a:b.onnx"))
    return replace(document, name=HOSTILE, gates=gates, targets=targets, variants=variants, source=source)


_COMMAND = re.compile(r"::(error|warning|notice) (?:file=([^,:\n]+),)?title=([^,:\n]+)::(.*)")


def test_github_commands() -> None:
    lines = ci.render(_failing(), "github").splitlines()
    assert [_COMMAND.fullmatch(line)[1] for line in lines] == ["error", "error", "notice", "notice"]
    assert lines[0].endswith("::intel-nuc: size 88 kB exceeds 50 kB")
    assert "latency not measured on x86-64-server" in lines[2]
    assert "p99 0.09 ms" in lines[3]
    passed = ci.render(builds.document(), "github").splitlines()
    assert [_COMMAND.fullmatch(line)[1] for line in passed] == ["notice"] * 4
    undecided = ci.render(builds.document(verdict="inconclusive"), "github").splitlines()
    assert _COMMAND.fullmatch(undecided[0])[1] == "warning"


def test_github_commands_cannot_be_forged() -> None:
    lines = ci.render(_hostile(), "github").splitlines()
    assert all(_COMMAND.fullmatch(line) for line in lines)
    assert _COMMAND.fullmatch(lines[0])[2] == "models%2C 100 %25/a%3Ab.onnx"


def test_sarif_has_what_the_standard_asks_for() -> None:
    log = json.loads(ci.render(_failing(), "sarif"))
    assert log["version"] == "2.1.0"
    assert set(log) == {"$schema", "version", "runs"}
    run = log["runs"][0]
    driver = run["tool"]["driver"]
    assert driver["name"] == "edgeship"
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 3}]
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    assert run["results"]
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert re.fullmatch(r"[\w.%/~-]+", place["artifactLocation"]["uri"])
        assert place["region"]["startLine"] == 1
    prints = [result["partialFingerprints"]["edgeship/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)
    again = json.loads(ci.render(replace(_failing(), version="2.0"), "sarif"))["runs"][0]["results"]
    assert [result["partialFingerprints"]["edgeship/v1"] for result in again] == prints


def test_sarif_of_a_pass_notes_what_was_refused() -> None:
    results = json.loads(ci.render(builds.document(), "sarif"))["runs"][0]["results"]
    assert [result["level"] for result in results] == ["note"]
    json.loads(ci.render(_hostile(), "sarif"))


def test_comment_without_a_base() -> None:
    text = ci.comment(builds.document(), None)
    assert text.splitlines()[0] == "<!-- edgeship-report: digits -->"
    assert "There is no base build to compare with." in text
    assert "not measured on x86-64-server" in text
    row = next(line for line in text.splitlines() if line.startswith("| **x86-64-litert/litert/int8**"))
    assert "0.04 / 0.09 ms |" in row
    assert "not measured" not in row


def test_comment_against_a_base() -> None:
    new = builds.document()
    old = _older(new)
    text = ci.comment(new, old)
    row = next(line for line in text.splitlines() if line.startswith("| **x86-64-server/onnxruntime/int8**"))
    assert "98.90 % → 96.90 % (-2.00 points, 95 %: -3.44 to -0.68)" in row
    assert "30.0 kB → 24.0 kB (-20.0 %)" in row
    assert "0.08 / 0.2 → 0.04 / 0.09 ms; not measured on x86-64-server" in row
    assert "Old → new, against the base build 0.9" in text
    assert "evaluation data changed" not in text


def _older(document: BuildDocument) -> BuildDocument:
    """The build before: larger, slower, 2 points better."""
    variants = tuple(
        replace(each, size_bytes=each.size_bytes * 5 // 4, latency_p50_ms=0.08, latency_p99_ms=0.2,
                metric=replace(each.metric, value=each.metric.value + 0.02))
        for each in document.variants
    )  # fmt: skip
    return replace(document, variants=variants, version="0.9")


def test_comment_does_not_compare_what_cannot_be_compared() -> None:
    new = builds.document()
    elsewhere = tuple(replace(each, measured_on=replace(each.measured_on, cpu="another")) for each in new.variants)
    data = (replace(new.data[0], digest="sha256:" + "d" * 64),)
    text = ci.comment(new, replace(new, variants=elsewhere[1:], data=data))
    assert "The evaluation data changed" in text
    assert "the base build was measured on another processor" in text
    first = next(line for line in text.splitlines() if line.startswith("| **x86-64-server/onnxruntime/int8**"))
    assert "→" not in first
    gone = replace(new, variants=new.variants[1:])
    assert "Only in the base build: x86-64-server/onnxruntime/int8." in ci.comment(gone, new)


def test_comment_keeps_its_form_and_its_size() -> None:
    text = ci.comment(_hostile(), builds.document())
    assert "<script" not in text.replace("\\<script", "")
    assert not re.search(r"@(?!<!-- -->)\w", text)
    assert text.count("<!-- edgeship-report:") == 1
    document = _hostile()
    many = tuple(replace(each, target=f"t{number}", reason="x" * 2000) for number in range(300)
                 for each in document.variants)  # fmt: skip
    targets = tuple(TargetVerdict(target=f"t{number}", verdict="fail", chosen="", reason="ü" * 3000)
                    for number in range(300))  # fmt: skip
    gates: tuple[GateReport, ...] = tuple(replace(gate, target=f"t{number}", sentence="ü" * 3000)
                                          for number in range(300) for gate in document.gates)  # fmt: skip
    big = ci.comment(replace(document, variants=many, targets=targets, gates=gates), None)
    assert len(big.encode()) <= MAX_BYTES
    assert "more variants: see report.html" in big
    assert "more targets" in big


def test_marker_survives_every_name() -> None:
    assert marker("a--b>c") == "<!-- edgeship-report: a-b-c -->"
    assert marker("") == marker("-->") == "<!-- edgeship-report: model -->"


def test_base_build(tmp_path: Path) -> None:
    document = builds.document()
    (tmp_path / "build.json").write_bytes(pipeline.encode(document))
    assert ci.read_base(tmp_path) == ci.read_base(tmp_path / "build.json") == document
    assert ci.read_base(None) is None
    for text in ("{", "[]", '{"schema_version": 1}', "\0"):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ConfigError, match=r"not a build\.json"):
            ci.read_base(tmp_path / "broken.json")
    (tmp_path / "newer.json").write_bytes(pipeline.encode(replace(document, schema_version=99)))
    with pytest.raises(ConfigError, match="newer edgeship"):
        ci.read_base(tmp_path / "newer.json")
    with pytest.raises(ConfigError, match="no build to compare with"):
        ci.read_base(tmp_path / "missing")


ARGUMENTS = ("models/net v1.onnx", "-t", "x86-64-server", "--calibration", "c.npz", "--evaluation", "$(id).npz")


def test_workflow_is_yaml_whose_scripts_are_shell(tmp_path: Path) -> None:
    text = github_workflow(ARGUMENTS, "release/1.x", "0.1.0")
    document = yaml.safe_load(text)
    assert document[True] == {"pull_request": None, "push": {"branches": ["release/1.x"]}}
    assert document["permissions"] == {"contents": "read", "pull-requests": "write"}
    steps = document["jobs"]["build"]["steps"]
    scripts = [step["run"] for step in steps if "run" in step]
    assert all("make " not in script for script in scripts)
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    build = next(step["run"] for step in steps if step.get("name") == "build")
    # the very script, with a program that prints its arguments in edgeship's place
    (tmp_path / "edgeship").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "edgeship").chmod(0o755)

    def said() -> list[str]:
        done = subprocess.run(["bash", "-e", "-c", build], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
                              capture_output=True, text=True, check=True)  # fmt: skip
        return done.stdout.splitlines()

    wanted = ["build", *ARGUMENTS, "--yes", "-o", "build", "--format", "github"]
    assert said() == wanted
    (tmp_path / ".edgeship-base").mkdir()
    (tmp_path / ".edgeship-base" / "build.json").touch()
    assert said() == [*wanted, "--base", ".edgeship-base/build.json"]


@pytest.mark.parametrize(
    ("arguments", "branch"),
    [(("a\nb",), "main"), (("${{ github.token }}",), "main"), (("-o", "x"), "main"), (("--base=x",), "main"),
     ((), "a b"), ((), "]"), ((), "")],
)  # fmt: skip
def test_what_cannot_stand_in_a_workflow(arguments: tuple[str, ...], branch: str) -> None:
    with pytest.raises(ConfigError) as caught:
        github_workflow(arguments, branch, "0.1.0")
    assert caught.value.next_step
