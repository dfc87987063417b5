"""What looks into a failure: ``edgeship bisect`` with the right arguments, and layers that may stay in float."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from msgspec import structs

from edgeship.build.options import BuildOptions
from edgeship.build.progress import Progress
from edgeship.build.schema import Attempt, BuildDocument, GateReport
from edgeship.build.words import worst_layer

#: Runtimes and stages of a failure that can be cut down to a part of the model.
_RUNTIMES: Final = frozenset({"onnxruntime", "openvino", "litert"})
_STAGES: Final = frozenset({"conversion", "layout", "runtime"})
#: Rules by which a variant computes something else than its source.
_FIDELITY: Final = frozenset({"relative_rms", "group_rms", "differing_values", "distinct"})


def commands(options: BuildOptions, document: BuildDocument) -> tuple[str, ...]:
    """Searches for the smallest part that fails: of float files that cannot be made or diverge, of int8 that diverges.

    Args:
        options: of the build.
        document: what became of it.
    """
    source_format = document.source.format if document.source else ""
    found = list(of_attempts(options, source_format, document.tried))
    if source_format == "onnx":
        for gate in document.gates:
            if gate.holds is False and gate.id in _FIDELITY:
                found += _of_gate(options, document, gate)
    return tuple(dict.fromkeys(found))


def of_attempts(options: BuildOptions, source_format: str, tried: Sequence[Attempt]) -> tuple[str, ...]:
    """For float files that could not be had; nothing where the source is no ONNX file, which alone can be cut.

    >>> from pathlib import Path
    >>> options = BuildOptions(source=Path("m.onnx"), targets=(), calibration=Path("c.npz"), evaluation=Path("e.npz"))
    >>> lost = Attempt(target="t", runtime="litert", precision="fp32", outcome="refused", reason="", stage="conversion")
    >>> of_attempts(options, "onnx", [lost]), of_attempts(options, "keras", [lost])
    (('edgeship bisect m.onnx --runtime litert --inputs c.npz',), ())
    """
    if source_format != "onnx":
        return ()
    lost = [each for each in tried if each.outcome == "refused" and each.precision == "fp32" and each.stage in _STAGES]
    return tuple(dict.fromkeys(_bisect(options, "--runtime", each.runtime) for each in lost
                               if each.runtime in _RUNTIMES))  # fmt: skip


def _of_gate(options: BuildOptions, document: BuildDocument, gate: GateReport) -> list[str]:
    if gate.precision == "fp32":
        return [_bisect(options, "--runtime", gate.runtime)] if gate.runtime in _RUNTIMES else []
    if gate.runtime != "onnxruntime":
        return []  # only an ONNX file can be laid beside its source
    label = (gate.target, gate.runtime, gate.precision)
    files = [each.file for each in document.variants if (each.target, each.runtime, each.precision) == label]
    return [_bisect(options, "--artifact", file) for file in files]


def _bisect(options: BuildOptions, *words: str) -> str:
    """The calibration data is what it is fed, where that is a file that goes into the model as it is."""
    as_it_is = options.preprocess is None and options.calibration.suffix == ".npz"
    inputs = ("--inputs", str(options.calibration)) if as_it_is else ()
    return shlex.join(["edgeship", "bisect", str(options.source), *words, *inputs])


def added(document: BuildDocument, options: BuildOptions, progress: Progress) -> BuildDocument:
    """The document with its next commands; where int8 is not proven, it is said where it loses most."""
    open_ = {(each.target, each.runtime) for each in document.variants
             if each.precision == "int8" and each.verdict != "pass"}  # fmt: skip
    for one in document.sensitivity:
        if (one.target, one.runtime) in open_ and (text := worst_layer(one)):
            progress.step("sensitive", text, "note")
    return structs.replace(document, next=commands(options, document))
