"""SARIF 2.1.0, which code-scanning pages read: one result a rule that does not hold. Pure.

Source: OASIS, Static Analysis Results Interchange Format 2.1.0; the sections are named beside what they ask for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from edgeship import __version__
from edgeship.build.ci.findings import Finding, findings, source_path
from edgeship.build.schema import BuildDocument

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
_EXIT_CODES: Final = {"pass": 0, "fail": 3, "inconclusive": 4}
#: Rule → what it is about, in one sentence. A metric's rule is called after the metric.
_RULES: Final = {
    "target": "Every target has a variant that holds to every rule.",
    "distinct": "A variant says as many different answers as its source.",
    "relative_rms": "A variant's outputs lie close to its source's.",
    "differing_values": "Classes, counts and flags are the source's.",
    "group_rms": "No channel group of an output loses half its size.",
    "slowdown": "A quantized variant is smaller, or faster on its target.",
    "size_bytes": "A variant keeps the size budget.",
    "latency_p99_ms": "A variant keeps the latency budget on its target.",
}


def sarif(document: BuildDocument) -> str:
    """The build as a SARIF log."""
    found = findings(document)
    rules = sorted({each.rule for each in found})
    run = {
        "tool": {
            "driver": {
                "name": "edgeship",
                "version": __version__,
                "rules": [_rule(name) for name in rules],
            }
        },
        # §3.20.14: the tool did its work, whatever it found
        "invocations": [{"executionSuccessful": True, "exitCode": _EXIT_CODES[document.verdict]}],
        "columnKind": "unicodeCodePoints",
        "results": [_result(each, rules, document) for each in found],
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=2).decode() + "\n"


def _rule(name: str) -> dict[str, Any]:
    text = _RULES.get(name, f"The loss of {name} against the source is proven to be within the margin.")
    return {"id": name, "shortDescription": {"text": text}}


def _result(finding: Finding, rules: Sequence[str], document: BuildDocument) -> dict[str, Any]:
    text = f"{finding.where}: {finding.text}" if finding.rule != "target" else finding.text
    identity = hashlib.sha256(f"{document.name}\0{finding.rule}\0{finding.where}".encode()).hexdigest()
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "kind": "fail",
        "level": finding.level,
        "message": {"text": f"{text}; {finding.next}" if finding.next else text},
        # §3.27.17: the same finding in the next run is the same alert
        "partialFingerprints": {"edgeship/v1": identity},
    }
    file = source_path(document)
    if file:
        location = {"artifactLocation": {"uri": quote(file)}, "region": {"startLine": 1}}
        result["locations"] = [{"physicalLocation": location}]
    return result
