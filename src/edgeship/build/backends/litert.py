"""LiteRT: onnx2tf in its own environment, then ai-edge-quantizer with ranges and weights of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeship.build import layout
from edgeship.build.backends import tflite_quantizer
from edgeship.build.backends.base import Artifact, Job, Samples, Scheme
from edgeship.build.backends.calibration import Calibration
from edgeship.build.backends.tflite_constants import with_shared_constants
from edgeship.build.backends.tflite_dead_outputs import with_typed_dead_outputs
from edgeship.build.backends.tflite_graph import TfliteGraph
from edgeship.build.backends.tflite_plain import with_builtin_operators, with_plain_operators
from edgeship.build.backends.tflite_signature import with_signature
from edgeship.build.backends.tflite_transposes import with_fewer_transposes
from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.engine import Engine, state_of

RUNTIME: Final = "litert"


class LiteRtBackend:
    """Float as a route delivers it; int8 by ai-edge-quantizer."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int], tuple[Calibration, Samples]] = {}

    def convert(self, job: Job, model: Path) -> Artifact:
        """The float32 ``.tflite``, with the layout found by running it against the source."""
        folder = job.folder / "fp32"
        folder.mkdir(parents=True)
        file = folder / "model.tflite"
        plain = with_fewer_transposes(with_builtin_operators(model.read_bytes()))
        file.write_bytes(with_signature(with_shared_constants(plain)))
        engine = _open(file)
        try:
            inputs, outputs = layout.find_bindings(job, engine, RUNTIME)
            state = state_of(engine)
        finally:
            engine.close()
        return Artifact(runtime=RUNTIME, precision="fp32", model=file, inputs=inputs, outputs=outputs, state=state)

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """Another precision; int8 is int8 throughout but for float inputs and outputs, and what the scheme leaves."""
        folder = job.folder / scheme.name
        folder.mkdir(parents=True)
        model = folder / "model.tflite"
        calibration = self.calibration(job, float_artifact)
        try:
            with quiet():
                data = tflite_quantizer.quantize(calibration, scheme)
        except ConversionError:
            raise
        except Exception as error:
            raise ConversionError(f"ai-edge-quantizer: {_first_line(error)}", target=RUNTIME) from error
        model.write_bytes(with_shared_constants(with_typed_dead_outputs(data)))
        inputs, outputs = layout.rebound(float_artifact, model, RUNTIME)
        return Artifact(
            runtime=RUNTIME, precision=scheme.precision, model=model, inputs=inputs, outputs=outputs,
            scheme=scheme.text, state=float_artifact.state,
        )  # fmt: skip

    def calibration(self, job: Job, float_artifact: Artifact) -> Calibration:
        """Operators and ranges of the float file."""
        key = (float_artifact.model, id(job.samples))
        if key not in self._known:
            folder = job.folder / "ready"
            folder.mkdir(parents=True, exist_ok=True)
            plain = folder / "plain.tflite"
            plain.write_bytes(with_plain_operators(float_artifact.model.read_bytes()))
            graph = TfliteGraph(plain, float_artifact.inputs)
            calibration = Calibration(graph, job.samples, lambda name: folder / f"{name}.tflite", plain)
            self._known[key] = (calibration, job.samples)
        return self._known[key][0]


def _open(model: Path) -> Engine:
    try:
        with quiet():
            return open_engine(RUNTIME, model)
    except EngineError as error:
        raise ConversionError(f"the converted file does not load: {error.message}", target=RUNTIME) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
