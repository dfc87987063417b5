"""A converted file that does not agree with its source, looked at again: what does it say, and who says it?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct

from edgeship.build.backends import Job
from edgeship.build.layout import PARITY_RMS
from edgeship.build.metrics import relative_rms
from edgeship_agent.contract.errors import EngineError
from edgeship_agent.contract.manifest import TensorSpec
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.engine import Array, TensorInfo

_MOST_LAYOUTS: Final = 24


class Look(Struct, frozen=True, kw_only=True):
    """What the file computes.

    Attributes:
        outputs: name → ``[samples, …]``, axes put into the order that comes closest to the source.
        plain: the same by the runtime's reference kernels; empty where it has none.
        layout: every output holds the source's numbers, at other places.
    """

    outputs: dict[str, Array]
    plain: dict[str, Array]
    layout: bool


def look(job: Job, runtime: str, model: Path) -> Look | None:
    """Run the file in the first order of axes that it accepts; None where it accepts none.

    Raises:
        EngineError: it does not load.
    """
    engine = open_engine(runtime, model)
    signature = engine.signature
    specs = job.source.inputs
    if len(specs) != len(signature.inputs) or len(job.source.outputs) != len(signature.outputs):
        return None
    choices = [list(_orders(spec.call_shape, info)) for spec, info in zip(specs, signature.inputs, strict=True)]
    best: tuple[float, Look] | None = None
    for orders in islice(product(*choices), _MOST_LAYOUTS):
        fed = [_fed(sample, specs, orders, signature.inputs) for sample in job.checks]
        try:
            rows = [engine.run(arrays) for arrays in fed]
        except EngineError:
            continue
        found = _arranged(job, rows)
        error = _error(found.outputs, job.expected)
        if best is None or error < best[0]:
            plain = _plain(runtime, model, fed)
            best = (error, Look(outputs=found.outputs, layout=found.layout,
                                plain=_arranged(job, plain).outputs if plain else {}))  # fmt: skip
    return best[1] if best else None


def _fed(
    sample: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    orders: Sequence[tuple[int, ...]],
    infos: Sequence[TensorInfo],
) -> list[Array]:
    return [
        np.ascontiguousarray(sample[spec.name].transpose(order), dtype=info.dtype).reshape(info.shape)
        for spec, order, info in zip(specs, orders, infos, strict=True)
    ]


def _orders(shape: Sequence[int], info: TensorInfo) -> Iterator[tuple[int, ...]]:
    rank = len(shape)
    if len(info.shape) != rank:
        if math.prod(info.shape) == math.prod(shape):
            yield tuple(range(rank))
        return
    channels_last = (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))
    for order in dict.fromkeys([channels_last, tuple(range(rank)), *permutations(range(rank))]):
        if tuple(shape[axis] for axis in order) == info.shape:
            yield order


def _arranged(job: Job, rows: Sequence[Sequence[Array]]) -> Look:
    outputs: dict[str, Array] = {}
    layout = True
    for position, spec in enumerate(job.source.outputs):
        wanted = np.stack([sample[spec.name] for sample in job.expected])
        got = np.stack([np.asarray(row[position]) for row in rows])
        outputs[spec.name] = _closest(got, wanted)
        layout = layout and got.size == wanted.size and _same_numbers(got, wanted)
    return Look(outputs=outputs, plain={}, layout=layout)


def _closest(got: Array, wanted: Array) -> Array:
    """The axes after the first in the order that comes closest; as they are where none has the shape."""
    best: tuple[float, Array] = (math.inf, got)
    for order in permutations(range(1, got.ndim)):
        turned = got.transpose((0, *order))
        if turned.shape == wanted.shape:
            error = relative_rms(turned, wanted)
            if error is not None and error < best[0]:
                best = (error, turned)
    return best[1]


def _same_numbers(got: Array, wanted: Array) -> bool:
    error = relative_rms(np.sort(got.reshape(len(got), -1)), np.sort(wanted.reshape(len(wanted), -1)))
    return error is not None and error <= PARITY_RMS


def _error(outputs: Mapping[str, Array], expected: Sequence[Mapping[str, Array]]) -> float:
    worst = 0.0
    for name, array in outputs.items():
        wanted = np.stack([sample[name] for sample in expected])
        error = relative_rms(array, wanted) if array.shape == wanted.shape else None
        worst = max(worst, math.inf if error is None else error)
    return worst


def _plain(runtime: str, model: Path, fed: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """The file by the runtime's reference kernels, which share no code with its fast ones; empty where it has none."""
    try:
        if runtime == "openvino":
            return _by_openvino(model, fed)
        if runtime == "litert":
            return _by_litert(model, fed)
    except Exception:  # noqa: BLE001 (reference kernels lack some operators; then nothing is known)
        return []
    return []


def _by_openvino(model: Path, fed: Sequence[Sequence[Array]]) -> list[list[Array]]:
    import openvino

    network = openvino.Core().read_model(str(model))
    rows = []
    for arrays in fed:
        outputs = [openvino.Tensor(port.get_element_type(), port.get_shape()) for port in network.outputs]
        if not network.evaluate(outputs, [openvino.Tensor(array) for array in arrays]):
            return []
        rows.append([tensor.data.copy() for tensor in outputs])
    return rows


def _by_litert(model: Path, fed: Sequence[Sequence[Array]]) -> list[list[Array]]:
    from ai_edge_litert import interpreter as litert

    kernels = litert.OpResolverType.BUILTIN_REF
    interpreter: Any = litert.Interpreter(model_path=str(model), num_threads=1, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    rows = []
    for arrays in fed:
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        rows.append([interpreter.get_tensor(detail["index"]).copy() for detail in interpreter.get_output_details()])
    return rows
