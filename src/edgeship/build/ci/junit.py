"""JUnit XML: a suite a target, a case a rule. Pure.

A rule that a refused candidate breaks is *skipped* where something else ships to the target, and a failure where
nothing does: the file fails exactly where the exit code does.

Source: the schema of Jenkins' xunit plugin, ``junit-10.xsd``, which GitHub, GitLab and Jenkins readers share.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from edgeship.build.ci.findings import chosen_text, label
from edgeship.build.schema import BuildDocument, GateReport, TargetVerdict

#: What XML 1.0 cannot hold.
_FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(document: BuildDocument) -> str:
    """The build as JUnit XML."""
    title = f"edgeship build {document.name} {document.version}".strip()
    root = ElementTree.Element("testsuites", name=_text(title))
    for target in document.targets:
        root.append(_suite(document, target))
    for name in ("tests", "failures", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    root.set("errors", "0")
    root.set("time", f"{document.timings_s.get('total', 0.0):.3f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(document: BuildDocument, target: TargetVerdict) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_text(target.target))
    _add_properties(suite, document, target)
    verdict = _case(suite, document, target.target, f"{target.target} has a variant to ship")
    if target.verdict != "pass":
        _fail(verdict, target.verdict, target.reason)
    for gate in document.gates:
        if gate.target == target.target:
            case = _case(suite, document, target.target, f"{gate.runtime} {gate.precision}: {gate.rule}")
            _answer(case, gate, target)
    text = ElementTree.SubElement(suite, "system-out")
    text.text = _text(f"{chosen_text(document, target)}\nreport: {document.report}")
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("errors", "0")
    suite.set("time", "0.000")
    return suite


def _add_properties(suite: ElementTree.Element, document: BuildDocument, target: TargetVerdict) -> None:
    properties = ElementTree.SubElement(suite, "properties")
    for variant in document.variants:
        if variant.chosen and variant.target == target.target:
            facts = {
                "variant": f"{variant.target}/{variant.runtime}/{variant.precision}",
                "size_bytes": str(variant.size_bytes),
                f"metric.{variant.metric.name}": f"{variant.metric.value:.6g}",
                f"metric.{variant.metric.name}.low": f"{variant.metric.low:.6g}",
                f"metric.{variant.metric.name}.high": f"{variant.metric.high:.6g}",
                "on_target": str(variant.on_target).lower(),
            }
            for name, value in facts.items():
                ElementTree.SubElement(properties, "property", name=_text(name), value=_text(value))


def _case(suite: ElementTree.Element, document: BuildDocument, target: str, name: str) -> ElementTree.Element:
    classname = f"edgeship.{document.name or 'model'}.{target}"
    return ElementTree.SubElement(suite, "testcase", classname=_text(classname), name=_text(name), time="0.000")


def _answer(case: ElementTree.Element, gate: GateReport, target: TargetVerdict) -> None:
    if gate.holds:
        return
    detail = f"{gate.sentence}; {gate.next}" if gate.next else gate.sentence
    if target.verdict == "pass":
        kind = "refused" if gate.holds is False else "not proven"
        instead = "" if label(gate) == target.chosen else f"; {target.chosen} ships instead"
        ElementTree.SubElement(case, "skipped", message=_text(f"{kind}: {detail}{instead}"))
    else:
        _fail(case, "fail" if gate.holds is False else "inconclusive", detail)


def _fail(case: ElementTree.Element, kind: str, detail: str) -> None:
    failure = ElementTree.SubElement(case, "failure", type=kind, message=_text(detail))
    failure.text = _text(detail)


def _text(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
