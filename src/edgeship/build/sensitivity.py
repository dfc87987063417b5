"""Which operators a quantized net loses most in: an estimate for each, and what the search measured of its suspects.

The estimate looks at one operator alone: its weights to nearest on their grid, its output on the 8-bit grid of its
range, everything before it in float. Noise of operators adds up to first order, so shares of the sum say where the
error of the whole comes from; what happens to it on the way to the output is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgeship.build.backends.base import Scheme
from edgeship.build.backends.calibration import Calibration
from edgeship.build.candidates import Workshop
from edgeship.build.schema import OperatorSensitivity, SensitivityReport
from edgeship.build.search import rounding
from edgeship.build.search.engine import Outcome
from edgeship.build.search.graph import Layer, Operator
from edgeship_agent.runtime.engine import Array

#: Kinds that only move numbers about, in the three formats' words, without case and underscores.
_MOVES: Final = frozenset(
    {
        *("reshape", "transpose", "flatten", "squeeze", "unsqueeze", "expanddims", "maxpool", "maxpool2d", "slice"),
        *("stridedslice", "gather", "split", "identity", "cast", "convert", "quantize", "dequantize", "shape"),
        *("shapeof", "depthtospace", "spacetodepth", "dropout", "constant", "gathernd", "tile", "pad", "padv2"),
    }
)
#: Kinds that every runtime computes together with what stands before them: only their result is held in 8 bits.
_FUSED: Final = frozenset({"relu", "relu6", "clip", "clamp", "add", "batchnormalization"})


def report(key: str, scheme: Scheme, layers: Mapping[str, float], calibration: Calibration) -> SensitivityReport:
    """The operators of one int8 file.

    Args:
        key: ``target/runtime``.
        scheme: that was chosen.
        layers: operator → what the search measured.
        calibration: of the float file that it was made from.
    """
    target, runtime = key.rsplit("/", 1)
    operators = calibration.operators
    activations = activation_noise(operators, calibration, scheme)
    weights = weight_noise(calibration, scheme)
    noise = {each.name: activations.get(each.name, 0.0) + weights.get(each.name, 0.0)
             for each in operators if each.inputs and _word(each.kind) not in _MOVES}  # fmt: skip
    kinds = {each.name: each.kind for each in operators}
    return SensitivityReport(
        target=target, runtime=runtime, precision=scheme.precision, samples=calibration.sample_count,
        operators=ranked(noise, kinds, scheme.floats, layers),
    )  # fmt: skip


def reports(workshop: Workshop) -> tuple[SensitivityReport, ...]:
    """Of every search that found an int8."""
    return tuple(_remembered(workshop, key, outcome) for key, outcome in workshop.searches.items())


def _remembered(workshop: Workshop, key: str, outcome: Outcome) -> SensitivityReport:
    runtime = key.rsplit("/", 1)[1]
    basis = {"of": key, **workshop.key(runtime, outcome.chosen), "layers": outcome.layers}
    return workshop.inputs.memory.figures(
        "sensitivity", basis, SensitivityReport,
        lambda: report(key, outcome.chosen, outcome.layers, workshop.calibration(runtime)),
    )  # fmt: skip


def ranked(
    noise: Mapping[str, float], kinds: Mapping[str, str], floats: Sequence[str], layers: Mapping[str, float]
) -> tuple[OperatorSensitivity, ...]:
    """Operators, the noisiest first; those in float last.

    Args:
        noise: operator → noise ÷ signal, not negative.
        kinds: operator → kind.
        floats: what stays in float: it adds nothing.
        layers: operator → measured share.

    >>> [(each.name, each.noise_share, each.sqnr_db) for each in ranked({"a": 0.01, "b": 0.03}, {}, (), {})]
    [('b', 0.75, 15.23), ('a', 0.25, 20.0)]
    """
    rounded = {name: value for name, value in noise.items() if name not in floats}
    total = sum(rounded.values()) or 1.0
    found = [
        OperatorSensitivity(
            name=name,
            kind=kinds.get(name, ""),
            in_float=name in floats,
            sqnr_db=round(-10.0 * math.log10(value), 2) if value > 0.0 else None,
            noise_share=rounded.get(name, 0.0) / total,
            removed_share=layers.get(name),
        )
        for name, value in noise.items()
    ]
    return tuple(sorted(found, key=lambda each: (each.in_float, -each.noise_share)))


def activation_noise(operators: Sequence[Operator], calibration: Calibration, scheme: Scheme) -> dict[str, float]:
    """Operator → noise ÷ signal of its first output on its 8-bit grid; only of those whose output is held so."""
    statistics, ranges = calibration.statistics.tensors, calibration.ranges(scheme.estimator)
    held, found = held_in_8_bits(operators), {}
    for each in operators:
        name = next((output for output in each.outputs if output in statistics), None)
        if name is None or each.name not in held:
            continue
        decibel = statistics[name].sqnr_db(ranges[name])
        found[each.name] = 0.0 if decibel is None else float(10.0 ** (-decibel / 10.0))
    return found


def held_in_8_bits(operators: Sequence[Operator]) -> set[str]:
    """Operators whose result is put on a grid, and not handed straight to what is computed together with them.

    >>> conv = Operator(name="c", kind="Conv", inputs=("x",), outputs=("a",))
    >>> relu = Operator(name="r", kind="Relu", inputs=("a",), outputs=("y",))
    >>> held_in_8_bits([conv, relu])
    {'r'}
    """
    readers: dict[str, list[Operator]] = {}
    for each in operators:
        for tensor in dict.fromkeys(each.inputs):
            readers.setdefault(tensor, []).append(each)
    held = set()
    for each in operators:
        found = [reader for tensor in each.outputs for reader in readers.get(tensor, ())]
        alone = len(found) == 1 and len(found[0].inputs) == 1
        if not (alone and _word(found[0].kind) in _FUSED):
            held.add(each.name)
    return held


def weight_noise(calibration: Calibration, scheme: Scheme) -> dict[str, float]:
    """Layer → noise ÷ signal of its products where its weights are rounded to nearest."""
    found = {}
    for name, (layer, inputs) in calibration.layers.items():
        if inputs.moments is not None:
            steps = rounding.steps_of(layer.weight, bits=scheme.weight_bits, per_channel=scheme.per_channel)
            found[name] = relative_noise(layer, rounding.nearest(layer.weight, steps), inputs.moments)
    return found


def relative_noise(layer: Layer, rounded: Array, moments: Array) -> float:
    """``tr(E·M·Eᵀ) ÷ tr(W·M·Wᵀ)``: squared error of a layer's products over their square.

    Args:
        layer: with float weights W.
        rounded: the weights W + E that are used.
        moments: second moments M of its inputs, [groups, inputs of one output, the same].

    >>> layer = Layer(weight=np.array([[1.0, 2.0]]), convolution=False)
    >>> relative_noise(layer, np.array([[1.0, 2.5]]), np.eye(2)[None])
    0.05
    """
    shape = (layer.groups, len(layer.weight) // layer.groups, -1)
    weight = layer.weight.astype(np.float64).reshape(shape)
    error = rounded.astype(np.float64).reshape(shape) - weight
    noise, signal = (float(np.einsum("goi,gij,goj->", each, moments, each, optimize=True)) for each in (error, weight))
    return max(noise, 0.0) / signal if signal > 0.0 else 0.0


def _word(kind: str) -> str:
    return kind.replace("_", "").lower()
