"""What travels with a variant so that a device can check itself: golden samples, tolerances, drift baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.backends.base import Samples
from edgeship.build.candidates import Built
from edgeship.build.inputs import Inputs
from edgeship.build.progress import Progress
from edgeship_agent.contract.manifest import Golden
from edgeship_agent.contract.profile import Profile
from edgeship_agent.runtime.engine import Array
from edgeship_agent.runtime.isa import isa_class
from edgeship_agent.runtime.tensors import encode_tensor_file
from edgeship_agent.telemetry.signals import make_profile, measure

GOLDEN_SAMPLES: Final = 12
#: Tolerance of a float variant on the same and on another ISA class: other kernels sum in another order, and ARM may
#: round to half precision on the way. Source: below 1e-6 between AVX2 and AVX-512 on the models of this project.
FLOAT_RMS: Final = 1e-3
FLOAT_OTHER_RMS: Final = 5e-3
#: A quantized variant may differ from its golden outputs by this share of its own quantization error on the same ISA
#: class, and by all of it on another one: a device that saturates differs by several times as much.
SAME_ISA_SHARE: Final = 0.5
_EVERY: Final = 50


class Proof(Struct, frozen=True, kw_only=True):
    """The parts of one variant that are not its model.

    Attributes:
        golden_inputs, golden_outputs: tensor files.
    """

    golden: Golden
    golden_inputs: bytes
    golden_outputs: bytes
    profile: Profile


def make_proof(inputs: Inputs, built: Built, label: str, progress: Progress) -> Proof:
    """Run the calibration data through the very artifact that ships.

    Args:
        inputs: holds the raw and the prepared samples.
        built: the chosen artifact.
        label: for the progress.
        progress: told how far it is.
    """
    memory, prepared = inputs.memory, inputs.calibration_inputs
    key = {"artifact": memory.key_of(built.artifact), "samples": memory.digest(prepared)}
    answers = memory.answers("baseline", key, lambda: _answers(built, prepared, f"baseline {label}", progress))
    raw = inputs.calibration.samples
    signals = [measure(sample, answer, inputs.output) for sample, answer in zip(raw, answers, strict=True)]
    first = next(iter(inputs.truth.outputs.values()))
    classes = int(first[0].size) if inputs.output.kind == "classification" else None
    chosen = spread(len(raw), GOLDEN_SAMPLES)
    return Proof(
        golden=_golden(built, [answers[index] for index in chosen]),
        golden_inputs=encode_tensor_file([raw[index] for index in chosen]),
        golden_outputs=encode_tensor_file([answers[index] for index in chosen]),
        profile=make_profile(signals, class_count=classes),
    )


def _answers(built: Built, prepared: Samples, label: str, progress: Progress) -> list[Mapping[str, Array]]:
    answers: list[Mapping[str, Array]] = []
    for index, sample in enumerate(prepared):
        answers.append(built.bound.run(sample))
        if (index + 1) % _EVERY == 0:
            progress.count(label, index + 1, len(prepared))
    return answers


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` positions at equal distances.

    >>> spread(100, 4), spread(2, 4)
    ([0, 33, 66, 99], [0, 1])
    """
    if count <= wanted:
        return list(range(count))
    return [round(step * (count - 1) / (wanted - 1)) for step in range(wanted)]


def _golden(built: Built, answers: Sequence[Mapping[str, Array]]) -> Golden:
    quantized = built.artifact.precision != "fp32"
    error = built.comparison.relative_rms or 0.0
    same = max(FLOAT_RMS, SAME_ISA_SHARE * error) if quantized else FLOAT_RMS
    other = max(FLOAT_OTHER_RMS, error) if quantized else FLOAT_OTHER_RMS
    first = built.artifact.outputs[0].name
    size = float(np.sqrt(np.mean([np.mean(np.square(answer[first], dtype=np.float64)) for answer in answers])))
    # the difference of two scores may move by their two errors, three standard deviations each way
    return Golden(relative_rms=same, isa_class=isa_class(), other_isa_relative_rms=other, margin=6.0 * other * size)
