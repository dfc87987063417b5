"""Runs where scikit-learn, XGBoost and LightGBM are: describes, runs or converts one model, then out.

One JSON object on stdin: ``{"command": "describe" | "run" | "convert", "model": path of a private copy, "format":
"sklearn" | "xgboost" | "lightgbm", "options": {…}, "memory_bytes": limit, …}``. JSON lines on the real stdout, the last
one the answer: ``{"ok": true, …}`` or ``{"ok": false, "error": sentence, "kind": "input" | "conversion"}``. All else
goes to stderr. Standard library and the toolchain's packages only.

Every model has one input ``features``, float32 [N, features]. Options: ``allow_pickle``, ``outputs`` (of
``probabilities``, ``scores``, ``values`` and ``label``; empty for the first of them alone).
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def _load(name: str) -> ModuleType:
    """Another part of this script, which lies beside it and on no import path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = _load("classical_models")
kinds = _load("classical_kinds")


def main() -> None:
    """Answer the one request on stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    limit_bytes = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        answer = {"ok": True, **COMMANDS[request["command"]](request)}
    except models.UnusableError as error:
        answer = {"ok": False, "error": str(error), "kind": "input"}
    except kinds.TextFeatureError as error:
        answer = {"ok": False, "error": str(error), "kind": "input", "next": error.next_step}
    except kinds.NoConverterError as error:
        answer = {"ok": False, "error": str(error), "kind": "conversion", "next": error.next_step}
    except MemoryError:
        answer = {"ok": False, "error": f"more memory than the {limit_bytes / 1024**3:.0f} GiB it may take",
                  "kind": "conversion"}  # fmt: skip
    except Exception as error:  # noqa: BLE001 (the outermost loop of this process)
        traceback.print_exc()
        answer = {"ok": False, "error": f"{type(error).__name__}: {models.first_line(error)}", "kind": "conversion"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def describe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs, outputs and size of a model."""
    model = models.read(request, kinds.check_features)
    if model.estimator is not None:
        models.register_boosters()
        kinds.check(model.estimator)
    names = _wanted(model, request)
    return {
        "inputs": [{"name": "features", "dtype": "float32", "shape": [-1, model.features]}],
        "outputs": [_spec(name, *model.outputs[name]) for name in names],
        "operators": model.operators,
        "parameters": model.parameters,
        "quantized": False,
        "takes_gaps": models.takes_gaps(model),
        "notes": [*model.notes, *_about_the_label(model, names)],
        "features": list(model.names),
        "classes": list(model.classes) if names[0] == next(iter(model.outputs)) else [],
    }


def _spec(name: str, dtype: str, width: int) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": [-1, width] if width else [-1]}


def _about_the_label(model: Any, names: Sequence[str]) -> list[str]:
    if "label" not in model.outputs or "label" in names:
        return []
    place = "class at the position" if model.classes else "position"
    reason = f"its label is left out: it is the {place} of the largest of its {names[0]} (--output-tensor adds it)"
    return [reason]


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own answers to every sample."""
    import numpy as np

    model = models.read(request)
    with np.load(request["inputs"], allow_pickle=False) as archive:
        samples = archive["i0"]
    table = np.ascontiguousarray(samples.reshape(len(samples), model.features), dtype=np.float32)
    found = model.answer(table)
    arrays = {}
    for index, name in enumerate(_wanted(model, request)):
        dtype, width = model.outputs[name]
        shape = (len(samples), 1, width) if width else (len(samples), 1)
        arrays[f"o{index}"] = np.asarray(found[name]).astype(dtype).reshape(shape)
    np.savez(request["outputs"], allow_pickle=False, **arrays)
    return {}


def convert(request: Mapping[str, Any]) -> dict[str, Any]:
    """The model as ONNX, with the outputs that were asked for and nothing that only the others need."""
    if request["to"] != "onnx":
        return {"ok": False, "error": f"there is no way to {request['to']} but through ONNX", "kind": "conversion"}
    import onnx

    model = models.read(request)
    try:
        converted, own_names = model.to_onnx()
    except Exception as error:
        raise kinds.explained(error, model.estimator) from error
    names = _wanted(model, request)
    _cut(converted, {own_names[name]: name for name in names}, [_spec(name, *model.outputs[name]) for name in names])
    onnx.checker.check_model(converted)
    path = Path(request["folder"]) / "model.onnx"
    path.write_bytes(converted.SerializeToString(deterministic=True))
    return {"file": str(path), "notes": []}


def _wanted(model: Any, request: Mapping[str, Any]) -> list[str]:
    asked = [str(name) for name in request["options"].get("outputs", ())]
    unknown = [name for name in asked if name not in model.outputs]
    if unknown:
        raise models.UnusableError(f"it has no output {unknown[0]}; it has: {', '.join(model.outputs)}")
    return asked or [next(iter(model.outputs))]


def _cut(model: Any, names: Mapping[str, str], specs: Sequence[Mapping[str, Any]]) -> None:
    """Keep what the wanted outputs need, and give them and the input their names."""
    from onnx import helper, shape_inference

    graph = model.graph
    needed, kept = set(names), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    kept = [_renamed(node, {graph.input[0].name: "features", **names}) for node in reversed(kept)]
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    types = {"float32": 1, "int64": 7}
    values = [
        helper.make_tensor_value_info(str(spec["name"]), types[str(spec["dtype"])], ["N", *spec["shape"][1:]])
        for spec in specs
    ]
    width = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    inputs = [helper.make_tensor_value_info("features", 1, ["N", width])]
    model.graph.CopyFrom(helper.make_graph(kept, "model", inputs, values, constants))
    # a lone tree ensemble needs no plain operators, other tools do; the converter gives the sets in any order
    opsets = {"": models.OPSETS[""], **{entry.domain: entry.version for entry in model.opset_import}}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items()))
    model.CopyFrom(shape_inference.infer_shapes(model))


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    return node


COMMANDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "describe": describe,
    "run": run,
    "convert": convert,
}

if __name__ == "__main__":
    main()
