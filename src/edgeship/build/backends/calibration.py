"""What one float file and its calibration samples say, worked out once for all candidates made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from edgeship.build.backends.base import Samples, Scheme
from edgeship.build.quiet import quiet
from edgeship.build.search import masks, rounding, saturation
from edgeship.build.search.graph import Layer, Operator, patches, sized
from edgeship.build.search.ranges import Range, Statistics
from edgeship_agent.runtime.engine import Array

#: Samples from which the second moments of the layers' inputs are gathered: with some hundred patches of each, they
#: are many more than a layer has inputs.
_MOMENT_SAMPLES: Final = 48
#: Samples on which saturation is looked for.
_SATURATION_SAMPLES: Final = 8


def _nobody(_done: int, _total: int) -> None:
    """Listens to no count."""


class FloatGraph(Protocol):
    """A float file's operators, weights and tensors."""

    def operators(self) -> tuple[Operator, ...]:
        """In the order of their execution."""

    def watch(self, samples: Samples) -> Iterator[dict[str, Array]]:
        """Every float tensor of every sample."""

    def write(self, weights: Mapping[str, Array], biases: Mapping[str, Array], file: Path) -> None:
        """The same file with other weights and with something added to biases."""


class Calibration:
    """Lazily: nothing is gathered before a candidate asks for it.

    Args:
        graph: of the float file.
        samples: that set ranges.
        place: name of a variant → where its file goes.
        original: the float file.

    ``told`` hears how many samples of how many were looked at.
    """

    def __init__(self, graph: FloatGraph, samples: Samples, place: Callable[[str], Path], original: Path) -> None:
        self._graph = graph
        self._samples = samples
        self._place = place
        self._rounded: dict[tuple[str, int, bool], Path] = {}
        self.original = original
        self.told: Callable[[int, int], None] = _nobody

    @cached_property
    def statistics(self) -> Statistics:
        """Of every tensor, over all samples."""
        seen = Statistics(dict.fromkeys(self.logits.scores | self.logits.terms, masks.MASKED))
        with quiet():
            for tensors in self._watched(self._samples):
                seen.add(tensors)
        return seen

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """With sizes, which one sample tells: ranges are for those who quantize."""
        with quiet():
            tensors = next(self._graph.watch(self._samples[:1]), {})
        return sized(self._plain, {name: array.shape for name, array in tensors.items()})

    @cached_property
    def _plain(self) -> tuple[Operator, ...]:
        """Without sizes; a file of a thousand operators takes a while to be read."""
        return self._graph.operators()

    @property
    def sample_count(self) -> int:
        """How many samples set ranges."""
        return len(self._samples)

    @property
    def layers(self) -> dict[str, tuple[Layer, rounding.LayerInputs]]:
        """Operator → its weights, and what they are multiplied with."""
        found = {each.name: each.layer for each in self._plain if each.layer is not None}
        return {name: (found[name], inputs) for name, inputs in self._layer_inputs.items()}

    def ranges(self, estimator: str) -> dict[str, Range]:
        """Tensor → range, by one of the estimators; worked out once."""
        if estimator not in self._ranges:
            found = self.statistics.ranges(estimator)
            self._ranges[estimator] = masks.with_room(found, self.statistics.lowest_masked, self.logits)
        return self._ranges[estimator]

    @cached_property
    def pure_masks(self) -> frozenset[str]:
        """Tensors on the way to a softmax that say no more than which scores count."""
        return masks.pure(self.statistics.ranges("minmax"), self.statistics.lowest_masked)

    @cached_property
    def logits(self) -> masks.Logits:
        """Tensors on the way to a softmax."""
        return masks.logits_of(self._plain)

    @cached_property
    def _ranges(self) -> dict[str, dict[str, Range]]:
        return {}

    @cached_property
    def _layer_inputs(self) -> dict[str, rounding.LayerInputs]:
        """Operator → what its weights are multiplied with."""
        layers = {each.name: (each.layer, each.inputs[0]) for each in self._plain
                  if each.layer is not None and each.inputs}  # fmt: skip
        seen = {name: rounding.LayerInputs(layer) for name, (layer, _) in layers.items()}
        with quiet():
            for tensors in self._watched(self._samples[:_MOMENT_SAMPLES]):
                for name, (_, source) in layers.items():
                    if source in tensors:
                        seen[name].add(tensors[source])
        return {name: each for name, each in seen.items() if each.rows}

    def file(self, scheme: Scheme) -> Path:
        """The float file as the scheme's quantizer shall read it.

        Where the scheme rounds weights otherwise than to nearest, they lie on the quantizer's own grid already.
        """
        if scheme.rounding == "nearest":
            return self.original
        key = (scheme.rounding, scheme.weight_bits, scheme.per_channel)
        if key not in self._rounded:
            file = self._place("-".join(map(str, key)))
            self._graph.write(*self._values(*key), file)
            self._rounded[key] = file
        return self._rounded[key]

    def saturating(self, scheme: Scheme) -> tuple[str, ...]:
        """Layers of which two 8-bit products could exceed 16 bits, as x86 without VNNI adds them, on a few samples."""
        ranges = self.ranges(scheme.estimator)
        found: dict[str, None] = {}
        layers = [each for each in self._plain
                  if each.layer is not None and each.name not in scheme.floats and each.inputs]  # fmt: skip
        grids = {each.name: self._integers(each.layer, scheme) for each in layers if each.layer is not None}
        with quiet():
            for tensors in self._watched(self._samples[:_SATURATION_SAMPLES]):
                for each in layers:
                    if each.layer is None or each.name in found or each.inputs[0] not in tensors:
                        continue
                    rows = saturation.unsigned(patches(each.layer, tensors[each.inputs[0]]), ranges[each.inputs[0]])
                    groups = zip(grids[each.name], rows, strict=True)
                    if any(saturation.could_saturate(weights, group) for weights, group in groups):
                        found[each.name] = None
        return tuple(found)

    def _watched(self, samples: Samples) -> Iterator[dict[str, Array]]:
        """Every tensor of every sample; of a graph of a thousand tensors each sample takes a while."""
        for done, tensors in enumerate(self._graph.watch(samples)):
            self.told(done, len(samples))
            yield tensors

    def _integers(self, layer: Layer, scheme: Scheme) -> Array:
        """Weights as integers of their grid: [groups, outputs of a group, inputs of one output]."""
        steps = rounding.steps_of(layer.weight, bits=scheme.weight_bits, per_channel=scheme.per_channel)
        flat = np.rint(layer.weight.reshape(len(layer.weight), -1) / steps[:, None]).astype(np.int32)
        return flat.reshape(layer.groups, len(layer.weight) // layer.groups, -1)

    def _values(self, how: str, bits: int, per_channel: bool) -> tuple[dict[str, Array], dict[str, Array]]:
        weights: dict[str, Array] = {}
        biases: dict[str, Array] = {}
        for operator in self._plain:
            layer, inputs = operator.layer, self._layer_inputs.get(operator.name)
            if layer is None or inputs is None:
                continue
            steps = rounding.steps_of(layer.weight, bits=bits, per_channel=per_channel)
            rounded = rounding.nearest(layer.weight, steps)
            if how == "compensated":
                rounded = rounding.compensated(layer, inputs, steps)
            weights[operator.name] = rounded
            if layer.bias:
                biases[operator.name] = rounding.bias_correction(layer, inputs, rounded)
        return weights, biases
