"""GitHub's workflow commands: annotations on the run and on the pull request. Pure.

Source: GitHub, "Workflow commands for GitHub Actions"; escapes as in actions/toolkit ``command.ts``.
"""

from __future__ import annotations

from typing import Final

from edgeship.build.ci.findings import chosen_text, findings, source_path
from edgeship.build.schema import BuildDocument

_COMMANDS: Final = {"error": "error", "warning": "warning", "note": "notice"}


def workflow_commands(document: BuildDocument) -> str:
    """One line a finding, and one notice for each target that something ships to."""
    file = source_path(document)
    lines = [
        _command(_COMMANDS[each.level], file, f"edgeship {each.rule} {each.where}",
                 f"{each.text}; {each.next}" if each.next else each.text)
        for each in findings(document)
    ]  # fmt: skip
    lines += [
        _command("notice", file, f"edgeship {each.target}", chosen_text(document, each))
        for each in document.targets
        if each.verdict == "pass"
    ]
    return "".join(f"{line}\n" for line in lines)


def _command(name: str, file: str, title: str, message: str) -> str:
    """One command.

    >>> _command("error", "a,b.onnx", "x: y", "10 %" + chr(10) + "of it")
    '::error file=a%2Cb.onnx,title=x%3A y::10 %25%0Aof it'
    """
    properties = [f"file={_property(file)}"] if file else []
    properties.append(f"title={_property(title)}")
    return f"::{name} {','.join(properties)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
