"""What the worker can be asked: describe, run, convert."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import loading, onnx_export
from .calling import Flat, call_twice, fails
from .inputs import examples
from .model import Model, Refused, dtype_name

Tell = Callable[[Mapping[str, Any]], None]
_EVERY = 50


def serve(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Answer one request.

    Args:
        request: see ``torch_worker.py``.
        tell: says something before the answer.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.addaudithook(loading.audit)
    try:
        with torch.no_grad():
            return {"ok": True, **_answer(request, tell)}
    except Refused as refusal:
        return {"ok": False, "error": str(refusal), "kind": refusal.kind, "next": refusal.next_step}


def _answer(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    model = loading.load(request)
    flat = Flat(model)
    if request["command"] == "run":
        return _run(flat, model, request, tell)
    outputs = call_twice(flat, model)
    if request["command"] == "convert":
        return onnx_export.convert(flat, model, [name for name, _ in outputs], request)
    return _describe(flat, model, outputs)


class _Counter(TorchDispatchMode):  # type: ignore[misc]
    """Counts the operators that compute something in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.quantized = False

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = any(each.alias_info is not None for each in function._schema.returns)
        self.operators += not view
        self.quantized |= "quantize" in str(function)
        return function(*args, **(kwargs or {}))


def _describe(flat: Flat, model: Model, outputs: list[tuple[str, Any]]) -> dict[str, Any]:
    counter = _Counter()
    with counter, torch.jit.optimized_execution(False):
        flat(*examples(model))
    inputs = [{"name": each.name, "dtype": each.dtype, "shape": each.shape} for each in model.tensors]
    memory = [{"name": state.name, "dtype": dtype_name(state.value.dtype), "shape": list(state.value.shape)}
              for state in model.memory]  # fmt: skip
    free = any(each.shape and each.shape[0] < 0 for each in model.tensors)
    return {
        "inputs": inputs + memory,
        "outputs": [
            {"name": name, "dtype": dtype_name(value.dtype), "shape": _output_shape(value, free=free)}
            for name, value in outputs
        ],
        "operators": counter.operators,
        "parameters": sum(math.prod(each.shape) for each in model.module.parameters()),
        "quantized": counter.quantized,
        "notes": [*model.notes, *(["its free batch is built as 1"] if free else [])],
        "code": model.code,
        "torch": torch.__version__,
    }


def _output_shape(value: Any, *, free: bool) -> list[int]:
    shape = list(value.shape)
    return [-1, *shape[1:]] if free and shape and shape[0] == 1 else shape


def _run(flat: Flat, model: Model, request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    given = examples(model)
    with np.load(request["inputs"], allow_pickle=False) as held:
        arrays = [held[f"i{index}"] for index in range(len(given))]
    count = len(arrays[0]) if arrays else 0
    collected: list[list[Any]] = []
    for index in range(count):
        tensors = [torch.from_numpy(np.ascontiguousarray(array[index])) for array in arrays]
        try:
            outputs = flat(*(tensor.to(like.dtype) for tensor, like in zip(tensors, given, strict=True)))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise fails(error) from error
        collected.append([_array(value) for value in outputs])
        if (index + 1) % _EVERY == 0 or index + 1 == count:
            tell({"done": index + 1, "total": count})
    try:
        stacked = {f"o{place}": np.stack(values) for place, values in enumerate(zip(*collected, strict=True))}
    except ValueError as error:
        raise Refused("an output changes its size from sample to sample", next_step="pad it to one size") from error
    np.savez(Path(request["outputs"]), allow_pickle=False, **stacked)
    return {"samples": count}


def _array(value: Any) -> Any:
    value = value.detach()
    return np.array((value.float() if value.dtype == torch.bfloat16 else value).numpy())
