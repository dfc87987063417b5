"""NNCF on OpenVINO networks, and the ranges of what it puts in."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino

from edgeship.build.backends import nncf_settings
from edgeship.build.backends.base import Samples, Scheme
from edgeship.build.backends.calibration import Calibration
from edgeship.build.backends.openvino_graph import tensor_name
from edgeship.build.search.masks import LOWEST
from edgeship.build.search.ranges import Range, with_zero
from edgeship.build.search.rounding import LARGEST
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime.bound import to_artifact

#: A range whose lower end is closer to the mirror of its upper end than this has no zero point.
_MIRRORED: Final = 0.02
_PRODUCTS: Final = frozenset({"Convolution", "ConvolutionBackpropData", "GroupConvolution",
                              "GroupConvolutionBackpropData", "MatMul"})  # fmt: skip
#: Operators by which a constant masks scores: a product where it makes the mask.
_MASKING: Final = frozenset({"Add", "Multiply", "Select"})
#: Operators that leave numbers as they are.
_MOVES: Final = frozenset({"Reshape", "Transpose"})


def quantize(network: Any, bindings: Sequence[Binding], samples: Samples, scheme: Scheme) -> Any:
    """Int8 by NNCF.

    Args:
        network: float, changed in place by nobody: NNCF works on a copy.
        bindings: of the inputs.
        samples: that set its ranges.
        scheme: bits, ranges, bias correction, what stays in float.
    """
    import nncf

    order = sorted(bindings, key=lambda each: each.artifact_index)
    dataset = nncf.Dataset([[to_artifact(each, sample[each.name]) for each in order] for sample in samples])

    def ignored(library: Any) -> Any:
        return library.IgnoredScope(names=list(scheme.floats)) if scheme.floats else None

    return nncf_settings.quantize(network, dataset, len(samples), scheme, ignored)


def bound_masks(network: Any, calibration: Calibration) -> None:
    """Make constants that mask scores :data:`edgeship.build.search.masks.LOWEST` at least, in place.

    Args:
        network: float.
        calibration: says which tensors lead to a softmax.
    """
    if not calibration.statistics.lowest_masked:
        return
    for node in network.get_ordered_ops():
        kind = node.get_type_name()
        where: Container[str] = calibration.pure_masks if kind == "Multiply" else calibration.logits
        if kind not in _MASKING or tensor_name(node.output(0)) not in where:
            continue
        for port in node.inputs():
            constant = port.get_source_output().get_node()
            if constant.get_type_name() == "Constant" and constant.get_element_type() == openvino.Type.f32:
                values = np.asarray(constant.data)
                if values.size and values.min() < LOWEST:
                    bounded = openvino.opset13.constant(np.maximum(values, np.float32(LOWEST)))
                    port.replace_source_output(bounded.output(0))


def narrow_weights(network: Any) -> None:
    """Bring the 8-bit weights of all products to 7 bits, in place; their scales grow to match.

    Weights that lay on our 7-bit grid before they were quantized come back to it exactly: 8 bits moved them by half a
    step of the finer grid at most, which is a quarter of a step of this one. NNCF's own ``OverflowFix`` has another
    grid, of 63.5 steps, on which they would be rounded a second time.

    Args:
        network: quantized by NNCF.
    """
    scales = {scale.get_friendly_name(): scale for node in network.get_ordered_ops() for scale in _weight_scales(node)}
    for scale in scales.values():
        widened, constant = (scale.input_value(place).get_node() for place in (0, 1))
        stored = widened.input_value(0).get_node()
        narrow = np.rint(np.asarray(stored.data) * (LARGEST[7] / LARGEST[8])).astype(np.int8)
        wider = (np.asarray(constant.data) * (LARGEST[8] / LARGEST[7])).astype(np.float32)
        widened.input(0).replace_source_output(openvino.opset13.constant(narrow).output(0))
        scale.input(1).replace_source_output(openvino.opset13.constant(wider).output(0))


def _weight_scales(node: Any) -> Iterator[Any]:
    """The multiplications by a scale behind which a product's 8-bit weights lie; none for anything else."""
    if node.get_type_name() not in _PRODUCTS:
        return
    for port in node.inputs():
        scale = port.get_source_output().get_node()
        while scale.get_type_name() in _MOVES:
            scale = scale.input_value(0).get_node()
        widened = scale.input_value(0).get_node() if scale.get_type_name() == "Multiply" else scale
        stored = widened.input_value(0).get_node() if widened.get_type_name() == "Convert" else widened
        if stored is not widened is not scale and stored.get_element_type() == openvino.Type.i8:
            yield scale


def set_ranges(network: Any, ranges: Mapping[str, Range]) -> None:
    """Give every quantizer of an activation another range.

    Quantizers that NNCF gave one common range (tensors that are joined) keep one: it holds all of theirs.

    Args:
        network: with ``FakeQuantize`` operators, changed in place.
        ranges: tensor of the float network → its range.
    """
    groups: dict[tuple[float, float], list[tuple[Any, Range]]] = {}
    for node in network.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        source = node.input_value(0)
        name = tensor_name(source)
        if source.get_node().get_type_name() != "Constant" and name in ranges:
            before = (_value(node, 1), _value(node, 2))
            groups.setdefault(before, []).append((node, ranges[name]))
    for before, members in groups.items():
        low = min(bounds[0] for _, bounds in members)
        high = max(bounds[1] for _, bounds in members)
        for node, _ in members:
            _set(node, _on_grid(before, (low, high), int(node.get_attributes()["levels"])))


def _on_grid(before: Range, wanted: Range, levels: int) -> Range:
    """The wanted range in the form of the one before: from zero, mirrored, or with zero on the grid."""
    low, high = with_zero(wanted)
    if high - low == 0.0:
        return before
    if before[0] == 0.0 and low == 0.0:
        return (0.0, high)
    mirror = -before[1] * levels / (levels - 2)
    if before[0] < 0.0 and abs(before[0] - mirror) <= _MIRRORED * abs(mirror):
        reach = max(-low * (levels - 2) / levels, high)
        return (-reach * levels / (levels - 2), reach)
    step = (high - low) / (levels - 1)
    zero = round(-low / step)
    # the end that moves is the one that makes the range wider
    if zero in {0, levels - 1}:
        return (0.0, high) if zero == 0 else (low, 0.0)
    step = max(-low / zero, high / (levels - 1 - zero))
    return (-zero * step, (levels - 1 - zero) * step)


def _value(node: Any, side: int) -> float:
    return float(np.asarray(node.input_value(side).get_node().data).reshape(-1)[0])


def _set(node: Any, bounds: Range) -> None:
    for side, value in zip((1, 2, 3, 4), (*bounds, *bounds), strict=True):
        former = node.input_value(side).get_node()
        constant = openvino.opset13.constant(np.full(former.data.shape, value, np.float32))
        node.input(side).replace_source_output(constant.output(0))


def lower(model: Path, precision: str) -> Any:
    """A float network in another precision of its weights.

    Args:
        model: the float file.
        precision: ``fp16`` (the weights are narrowed when the file is written) or ``int4``.

    Raises:
        ConversionError: another precision, or nothing would change.
    """
    network = openvino.Core().read_model(str(model))
    if precision == "fp16":
        return network
    if precision != "int4":
        raise ConversionError(f"{precision} is no precision of OpenVINO", target="openvino")
    import nncf

    return nncf.compress_weights(network, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=-1, all_layers=True)
