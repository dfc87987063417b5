"""A backend whose files take bytes: whatever it makes gets the folded arithmetic in front, as its last step.

Quantizers never see it, so ranges and weights are those of the plain files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from edgeship.build import folding
from edgeship.build.backends import heads
from edgeship.build.backends.base import Artifact, Backend, Job, Scheme
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.contract.manifest import Binding, InputContract
from edgeship_agent.runtime import open_engine

if TYPE_CHECKING:
    from edgeship.build.backends.calibration import Calibration

_FLOATS: Final = frozenset({"float32", "float16"})
_WRITERS: Final[dict[str, Callable[[Path, Path, Sequence[heads.Head]], Path]]] = {
    "onnxruntime": heads.onnx_head, "openvino": heads.openvino_head, "litert": heads.tflite_head,
}  # fmt: skip


class FoldedBackend:
    """Another backend, and the contracts' folded steps."""

    def __init__(self, inner: Backend, contracts: Sequence[InputContract]) -> None:
        self._inner = inner
        self._contracts = {each.tensor: each for each in contracts if each.folded}

    def convert(self, job: Job, model: Path) -> Artifact:
        """The float file, which takes bytes."""
        return self._headed(self._inner.convert(job, model))

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """Another precision of the float file; it takes bytes unless its inputs are to be int8."""
        return self._headed(self._inner.quantize(job, float_artifact.plain or float_artifact, scheme))

    def calibration(self, job: Job, float_artifact: Artifact) -> Calibration:
        """Operators and ranges of the float file as it is without the arithmetic."""
        return self._inner.calibration(job, float_artifact.plain or float_artifact)

    def _headed(self, plain: Artifact) -> Artifact:
        """The artifact with the arithmetic in its file, or else in its bindings, and a note that says which."""
        wanted = [self._head(each) for each in plain.inputs if each.name in self._contracts]
        found = [each for each in wanted if isinstance(each, heads.Head)]
        steps = "; ".join(folding.words(each.folded) for each in self._contracts.values())
        reason = next((each for each in wanted if isinstance(each, str)), "")
        if not reason:
            try:
                headed = self._written(plain, found)
                notes = (*plain.notes, f"takes bytes; in the file: {steps}")
                return structs.replace(headed, plain=plain, notes=notes)
            except (ConversionError, EngineError) as error:
                reason = error.message
        inputs = tuple(
            structs.replace(each, steps=self._contracts[each.name].folded) if each.name in self._contracts else each
            for each in plain.inputs
        )
        notes = (*plain.notes, f"on the device: {steps}, since {reason}")
        return structs.replace(plain, plain=plain, inputs=inputs, notes=notes)

    def _head(self, binding: Binding) -> heads.Head | str:
        if binding.dtype not in _FLOATS:
            return f"the file's input is {binding.dtype}"
        steps = self._contracts[binding.name].folded
        if len(binding.shape) != len(binding.transpose or binding.shape):
            return "the file's input has other axes than the source's"
        return heads.head_of(binding, steps)

    def _written(self, plain: Artifact, found: Sequence[heads.Head]) -> Artifact:
        folder = plain.model.parent / "bytes"
        folder.mkdir()
        model = _WRITERS[plain.runtime](plain.model, folder, found)
        engine = open_engine(plain.runtime, model)
        try:
            infos = engine.signature.inputs
        finally:
            engine.close()
        places = {each.position for each in found}
        inputs = []
        for each in plain.inputs:
            info = infos[each.artifact_index]
            if each.artifact_index not in places:
                inputs.append(each)
                continue
            if info.dtype != folding.RAW or info.shape != each.shape:
                raise ConversionError(f"the file's input came out as {info.dtype} {list(info.shape)}",
                                      target=plain.runtime)  # fmt: skip
            # the scale of bytes is for the file alone: they are handed over as they are
            inputs.append(structs.replace(each, artifact_name=info.name, dtype=info.dtype, scale=0.0, zero_point=0))
        weights = model.with_suffix(".bin") if plain.weights is not None else None
        return structs.replace(plain, model=model, weights=weights, inputs=tuple(inputs))
