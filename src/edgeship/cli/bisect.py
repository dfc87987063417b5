"""``edgeship bisect``: the smallest part of a model that goes wrong."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeship.cli import console

if TYPE_CHECKING:
    from edgeship.build.bisect.written import BisectDocument

_FILE: Final = click.Path(path_type=Path)
_RUNTIMES: Final = ("onnxruntime", "openvino", "litert")


class _Lines:
    """Every step of the search as a line on stderr."""

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        """A line that stays."""
        console.step(label, text, glyph)

    def count(self, label: str, done: int, total: int) -> None:
        """Nothing: every probe is a step."""


@click.command()
@click.argument("model", type=_FILE)
@click.option("--runtime", type=click.Choice(_RUNTIMES), default="onnxruntime", show_default=True,
              help="Where the parts of MODEL are run.")  # fmt: skip
@click.option("--artifact", type=_FILE, help="Another ONNX file with MODEL's tensor names, to compare with instead.")
@click.option("--inputs", type=_FILE, help="Samples (.npz), as for --calibration.  [seeded numbers]")
@click.option("--tolerance", type=click.FloatRange(min=0.0), default=None,
              help="Largest relative RMS that agrees.  [0.001; 0.1 for a quantized artifact]")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=300.0, show_default=True,
              help="Seconds that one probe may take.")  # fmt: skip
@click.option("-o", "--output", type=_FILE, default=Path("bisect"), show_default=True, help="Folder for the results.")
@click.option("--yes", is_flag=True, help="Install a missing converter without asking.")
@console.json_option
def bisect(
    model: Path,
    runtime: str,
    artifact: Path | None,
    inputs: Path | None,
    tolerance: float | None,
    timeout_s: float,
    output: Path,
    yes: bool,
    as_json: bool,
) -> None:
    """Find the smallest part of MODEL that crashes or diverges, against itself in ONNX Runtime fp32.

    Writes that part, what it was fed, and one line that shows the fault again.

    Exit codes: 0 searched, whether something fails or not (verdict in --json), 1 could not be done, 2 unusable input.
    """
    console.step("bisect", f"{model} against {artifact or runtime}", "note")  # before anything heavy is imported
    from edgeship.build.bisect import written
    from edgeship.build.bisect.session import Question, find
    from edgeship.build.bisect.tools import have_ready

    question = Question(model=model, runtime=runtime, artifact=artifact, inputs=inputs, tolerance=tolerance,
                        timeout_s=timeout_s)  # fmt: skip
    written.check_folder(output, question)
    have_ready(runtime, install=yes, progress=_Lines())
    found = find(question, _Lines())
    document = written.write(question, found, output)
    if as_json:
        sys.stdout.buffer.write(written.encode(document))
        sys.stdout.buffer.flush()
    else:
        _print(document)
    again = document.fault.repro if document.fault else shlex.join(["edgeship", "inspect", str(model)])
    console.next_steps(again)


def _print(document: BisectDocument) -> None:
    fault = document.fault
    if fault is None:
        console.result(f"nothing fails: {document.operators} operators agree within {document.tolerance:g}")
        return
    names = ", ".join(f"{each.name} ({each.type})" for each in fault.operators)
    console.result(f"{fault.label} error in {len(fault.operators)} of {document.operators} operators: {names}")
    rows = [
        ("what", f"{fault.kind}: {fault.reason}"),
        ("why", fault.why),
        ("from", ", ".join(fault.inputs)),
        ("to", ", ".join(fault.outputs)),
        ("part", fault.subgraph),
        *([("other", fault.candidate)] if fault.candidate else []),
        ("inputs", fault.fed),
        ("expected", fault.expected),
        ("repro", fault.repro),
    ]
    for name, value in rows:
        console.result(f"  {name:<10}{value}")
