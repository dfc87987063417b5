"""What a search leaves behind: the part that fails, what it was fed, and one line that shows it again."""

from __future__ import annotations

import shlex
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from edgeship.build.bisect.feeds import MOST_SAMPLES
from edgeship.build.bisect.session import Fault, Found, Question
from edgeship.bundle.disk import replacing, write_file
from edgeship_agent.contract.errors import ConfigError

REPORT: Final = "bisect.json"


class OperatorReport(Struct, frozen=True, kw_only=True):
    """One operator of the source."""

    name: str
    type: str


class FaultReport(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The smallest part that still fails; see docs/guide/bisect.md."""

    label: str
    why: str
    operators: tuple[OperatorReport, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: str
    stage: str
    tensor: str
    relative_rms: float | None
    reason: str
    subgraph: str
    candidate: str | None
    fed: str
    expected: str
    repro: str


class BisectDocument(Struct, frozen=True, kw_only=True):
    """``bisect.json``, and what ``--json`` prints. Paths are absolute."""

    schema_version: int = 1
    model: str
    runtime: str
    artifact: str | None
    verdict: str
    reason: str
    relative_rms: float | None
    tolerance: float
    operators: int
    probes: int
    samples: int
    notes: tuple[str, ...]
    fault: FaultReport | None


def check_folder(folder: Path, question: Question) -> None:
    """Refuse a folder whose content would be lost.

    Raises:
        ConfigError: it holds something else than a former search, or the files that are searched.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / REPORT).is_file())):
        raise ConfigError("is there already and is not a former search", file=folder,
                          next_step="name another folder with -o DIR")  # fmt: skip
    used = [question.model, question.artifact, question.inputs]
    for file in [each.resolve() for each in used if each is not None]:
        if folder.resolve() in file.parents:
            raise ConfigError("holds a file that is searched and would be replaced", file=folder, got=file.name,
                              next_step="name another folder with -o DIR")  # fmt: skip


def write(question: Question, found: Found, folder: Path) -> BisectDocument:
    """Write the folder, whole or not at all.

    Args:
        question: what was searched.
        found: the answer.
        folder: takes the place of a former search.

    Raises:
        ConfigError: it cannot be written.
    """
    document = _document(question, found, folder.absolute())
    with replacing(folder.absolute()) as draft:
        if found.fault is not None:
            for name, data in _files(found.fault).items():
                write_file(draft / name, data)
        write_file(draft / REPORT, encode(document))
    return document


def encode(document: BisectDocument) -> bytes:
    """The document as JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _files(fault: Fault) -> dict[str, bytes]:
    files = {
        "subgraph.onnx": fault.source.SerializeToString(deterministic=True),
        "inputs.npz": _archive(fault.fed),
        "expected.npz": _archive(fault.expected),
    }
    if fault.candidate is not None:
        files["candidate.onnx"] = fault.candidate.SerializeToString(deterministic=True)
    return files


def _archive(arrays: dict[str, Any]) -> bytes:
    stream = BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _document(question: Question, found: Found, folder: Path) -> BisectDocument:
    fault = found.fault
    return BisectDocument(
        model=str(question.model.absolute()),
        runtime=question.runtime,
        artifact=str(question.artifact.absolute()) if question.artifact else None,
        verdict=found.whole.kind,
        reason=found.whole.reason,
        relative_rms=found.whole.relative_rms,
        tolerance=found.tolerance,
        operators=found.operators,
        probes=found.probes,
        samples=min(found.samples, MOST_SAMPLES),
        notes=found.notes,
        fault=None if fault is None else _fault(question, found, fault, folder),
    )


def _fault(question: Question, found: Found, fault: Fault, folder: Path) -> FaultReport:
    candidate = folder / "candidate.onnx" if fault.candidate is not None else None
    other = ["--artifact", str(candidate)] if candidate else ["--runtime", question.runtime]
    command = [
        "edgeship", "bisect", str(folder / "subgraph.onnx"), *other, "--inputs", str(folder / "inputs.npz"),
        "--tolerance", f"{found.tolerance:g}", "-o", f"{folder}-repro",
    ]  # fmt: skip
    return FaultReport(
        label=fault.label,
        why=fault.why,
        operators=tuple(OperatorReport(name=name, type=kind) for name, kind in fault.operators),
        inputs=fault.inputs,
        outputs=fault.outputs,
        kind=fault.outcome.kind,
        stage=fault.outcome.stage,
        tensor=fault.outcome.tensor,
        relative_rms=fault.outcome.relative_rms,
        reason=fault.outcome.reason,
        subgraph=str(folder / "subgraph.onnx"),
        candidate=str(candidate) if candidate else None,
        fed=str(folder / "inputs.npz"),
        expected=str(folder / "expected.npz"),
        repro=shlex.join(command),
    )
