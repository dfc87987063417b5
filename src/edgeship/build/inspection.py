"""What a file is: models, data files, bundles; nothing is run but the framework that alone reads a format."""

from __future__ import annotations

import hashlib
import shlex
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field, structs

from edgeship.build import sources
from edgeship.build.data import UNREADABLE, check_unpacked
from edgeship.build.model_facts import nodes_of, read_onnx, weight_bytes
from edgeship.build.reading.folders import SAMPLES, classes_in, samples_in
from edgeship.build.reading.tables import TABLES, Heading, answers_in, likely_label, open_table
from edgeship.build.sources import BY_MARKER, BY_SUFFIX
from edgeship.build.tflite_file import TfliteTensor, read_tflite
from edgeship.bundle import Bundle
from edgeship.bundle.layout import LAYOUT_FILE
from edgeship_agent.contract.errors import EdgeshipError, InputError
from edgeship_agent.contract.manifest import output_contract_hash
from edgeship_agent.patterns.pictures import IMAGES

INSPECTION_VERSION: Final = 1
#: Columns of a table that are shown, each with its range.
_MOST_COLUMNS: Final = 64
_MAX_CLASSES: Final = 1000
#: The option of builds that reads what may run code, which an inspection has not.
_TRUST: Final = "--allow-pickle"


class InspectedTensor(Struct, frozen=True, kw_only=True):
    """An input, an output, or an array or column of a data file.

    Attributes:
        shape: numbers, or names where a size varies.
        scale, zero_point: of an integer tensor in a model; scale 0 for none.
        low, high: range of a data array, None where it has no number in it.
        not_finite: NaN and infinite values of a data array.
    """

    role: str
    name: str
    dtype: str
    shape: tuple[int | str, ...]
    scale: float = 0.0
    zero_point: int = 0
    low: float | None = None
    high: float | None = None
    not_finite: int = 0


class Inspection(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        kind: ``onnx``, ``tflite``, ``openvino``, ``data``, ``images``, ``bundle``, or the format of a framework.
        digest: sha256 of the file (OpenVINO: of .xml and .bin, one after the other); of a bundle its identity.
        weight_bytes: of all constants in a model.
        operators: operator → how often it occurs.
        classes: label → how many samples.
        facts: everything else, by name.
    """

    schema_version: int = INSPECTION_VERSION
    kind: str
    path: str
    digest: str = ""
    size_bytes: int
    tensors: tuple[InspectedTensor, ...] = ()
    operators: dict[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def inspect_path(path: Path) -> Inspection:
    """Look at a model, a data file, a folder of samples or a bundle.

    Raises:
        InputError: missing, damaged, or of a kind that is not known.
        ConversionError: the framework that reads it is not installed, or cannot.
        ConfigError: something must be known besides the file.
        ContractError: a bundle whose documents are damaged.
    """
    path = path.absolute()
    if not path.exists():
        raise InputError("no such file or folder", file=path)
    if path.is_dir():
        return _trained(path) if any((path / name).is_file() for name in BY_MARKER) else _folder(path)
    if path.stat().st_size == 0:
        raise InputError("is empty", file=path)
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix, _trained if suffix in BY_SUFFIX else None)
    if reader is None:
        known = ", ".join(dict.fromkeys([*_READERS, *BY_SUFFIX]))
        raise InputError("a kind of file that is not known", file=path, expected=known,
                         got=path.suffix or "no suffix", next_step="edgeship inspect MODEL.onnx")  # fmt: skip
    return reader(path)


def _trained(path: Path) -> Inspection:
    """A model that a framework reads, in its own environment, as a build would."""
    request = sources.SourceRequest(text=str(path))
    try:
        sources.toolchain_of(request)  # refuses what may not be read, before any framework is asked
        model = sources.load(request)
    except EdgeshipError as error:
        if _TRUST in error.message or _TRUST in (error.next_step or ""):
            trusting = f"to look inside there is edgeship build {shlex.quote(path.name)} … {_TRUST}"
            error.next_step = f"{error.next_step}; {trusting}" if error.next_step else trusting
        raise
    tensors = [_spec("input", each.name, each.dtype, each.shape) for each in model.inputs]
    tensors += [_spec("output", each.name, each.dtype, each.shape) for each in model.outputs]
    return Inspection(
        kind=model.format,
        path=str(path),
        digest=model.digest,
        size_bytes=model.size_bytes,
        tensors=tuple(tensors),
        facts={"parameters": f"{model.parameters:,}", "operators": f"{model.operators:,}",
               "notes": "; ".join(model.notes)},
    )  # fmt: skip


def _folder(path: Path) -> Inspection:
    for candidate in (path, path / "bundle"):
        if (candidate / LAYOUT_FILE).is_file():
            return _bundle(candidate)
    found = classes_in(path)
    classes = {name: len(files) for name, files in found.items() if files}
    files = [file for each in found.values() for file in each] or samples_in(path)
    if not files:
        raise InputError("neither a bundle nor a folder of samples", file=path,
                         expected=f"{LAYOUT_FILE}, or {', '.join(sorted(SAMPLES))}, in one sub-folder per class",
                         next_step="name a model, a data file, or the folder of the samples itself")  # fmt: skip
    kinds = ", ".join(sorted({file.suffix.lower() for file in files}))
    labels = "" if classes else "none: there are no sub-folders of classes; a table in the folder may name them"
    return Inspection(
        kind="images" if all(file.suffix.lower() in IMAGES for file in files) else "data",
        path=str(path), size_bytes=sum(file.stat().st_size for file in files), classes=classes,
        facts={"samples": f"{len(files):,} ({kinds})", "labels": labels},
    )  # fmt: skip


def _bundle(path: Path) -> Inspection:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    variants = {
        each.label: f"{each.relative_rms:.3g} relative RMS · {each.metric.name} {100 * each.metric.value:.1f} % · "
        f"{sum(file.size_bytes for file in each.files if file.role in {'model', 'weights'}):,} bytes"
        for each in manifest.variants
    }
    tensors = [_spec("input", each.name, each.dtype, each.shape) for each in manifest.inputs]
    tensors += [_spec("output", each.name, each.dtype, each.shape) for each in manifest.outputs]
    return Inspection(
        kind="bundle",
        path=str(path),
        digest=bundle.digest,
        size_bytes=bundle.size_bytes,
        tensors=tuple(tensors),
        facts={
            "model": f"{manifest.name} {manifest.version}",
            "author": bundle.author_key or "not signed",
            "source": f"{manifest.lineage.source.file} {manifest.lineage.source.digest}",
            "labels": ", ".join(manifest.output.labels),
            "postprocessing": "; ".join(manifest.output.postprocessing),
            "output contract": output_contract_hash(manifest.output),
            **variants,
        },
    )


def _spec(role: str, name: str, dtype: str, shape: tuple[int, ...]) -> InspectedTensor:
    return InspectedTensor(role=role, name=name, dtype=dtype, shape=tuple("N" if size < 0 else size for size in shape))


def _onnx(path: Path) -> Inspection:
    import onnx

    model = read_onnx(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [("input", value) for value in model.graph.input if value.name not in constants]
    values += [("output", value) for value in model.graph.output]
    operators: Counter[str] = Counter()
    for node in nodes_of(model.graph):
        operators["::".join(part for part in (node.domain, node.op_type) if part)] += 1
    opsets = ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import)
    tensors = []
    for role, value in values:
        kind = value.type.tensor_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else "unknown"
        shape = tuple(
            size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in kind.shape.dim
        )
        tensors.append(InspectedTensor(role=role, name=value.name, dtype=dtype, shape=shape))
    return Inspection(
        kind="onnx",
        path=str(path),
        digest=_digest(path),
        size_bytes=path.stat().st_size,
        tensors=tuple(tensors),
        operators=dict(operators.most_common()),
        weight_bytes=weight_bytes(model),
        facts={"opset": opsets, "made by": f"{model.producer_name} {model.producer_version}".strip() or "unknown"},
    )


def _tflite(path: Path) -> Inspection:
    model = read_tflite(path)
    main = model.main
    tensors = [
        _tflite_tensor(role, main.tensors[index])
        for role, indices in (("input", main.inputs), ("output", main.outputs))
        for index in indices
    ]
    return Inspection(
        kind="tflite",
        path=str(path),
        digest=_digest(path),
        size_bytes=path.stat().st_size,
        tensors=tuple(tensors),
        operators=dict(Counter(operator.name for operator in model.operators).most_common()),
        weight_bytes=model.weight_bytes,
    )


def _tflite_tensor(role: str, tensor: TfliteTensor) -> InspectedTensor:
    scaled = len(tensor.scales) == 1
    return InspectedTensor(
        role=role,
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tuple("N" if axis in tensor.free_axes else size for axis, size in enumerate(tensor.shape)),
        scale=tensor.scales[0] if scaled else 0.0,
        zero_point=tensor.zero_points[0] if scaled and tensor.zero_points else 0,
    )


def _openvino(path: Path) -> Inspection:
    import openvino

    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise InputError("the weights are missing", file=weights, expected=f"the .bin beside {path.name}")
    try:
        model = openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise InputError("not an OpenVINO model", file=path, got=str(error).strip().splitlines()[-1][:160],
                         next_step="export the model again") from error  # fmt: skip
    tensors = []
    for role, ports in (("input", model.inputs), ("output", model.outputs)):
        for port in ports:
            shape = tuple("N" if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
            dtype = str(port.get_element_type().to_dtype())
            tensors.append(InspectedTensor(role=role, name=port.get_any_name(), dtype=dtype, shape=shape))
    operators = Counter(operator.get_type_name() for operator in model.get_ops())
    return Inspection(
        kind="openvino",
        path=str(path),
        digest=_digest(path, weights),
        size_bytes=path.stat().st_size + weights.stat().st_size,
        tensors=tuple(tensors),
        operators=dict(operators.most_common()),
        weight_bytes=weights.stat().st_size,
    )


def _arrays(path: Path) -> Inspection:
    import numpy as np

    try:
        if zipfile.is_zipfile(path):
            check_unpacked(path)
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except UNREADABLE as error:
        raise InputError(f"not a readable array file: {error}", file=path,
                         next_step="write it with numpy.savez(FILE, x=…, y=…)") from error  # fmt: skip
    tensors = tuple(_array(name, array) for name, array in arrays.items())
    samples = {len(array) for name, array in arrays.items() if array.ndim}
    return Inspection(
        kind="data",
        path=str(path),
        digest=_digest(path),
        size_bytes=path.stat().st_size,
        tensors=tensors,
        classes=_classes(arrays.get("y")),
        facts={"samples": " or ".join(f"{count:,}" for count in sorted(samples)) or "none"},
    )


def _classes(labels: Any) -> dict[str, int]:
    """How many samples each class has, where these are labels of classes."""
    import numpy as np

    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iubU":
        return {}
    values, counts = np.unique(labels, return_counts=True)
    if values.size > _MAX_CLASSES:
        return {}
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _columns(path: Path) -> Inspection:
    """A table, as a build reads it where no model says which columns are its own."""
    table = open_table(path)
    label = likely_label(table)
    columns = [answers_in([line[index] for line in table.lines], comma=table.decimal_comma)
               for index in range(len(table.header))]  # fmt: skip
    shown = list(zip(table.header, columns, strict=True))[:_MOST_COLUMNS]
    first = {
        Heading.SAMPLE: "a sample: the columns have no names",
        Heading.UNCLEAR: "a header or a sample, which a build refuses: put a row of names at the top",
    }
    return Inspection(
        kind="data",
        path=str(path),
        digest=_digest(path),
        size_bytes=path.stat().st_size,
        tensors=tuple(structs.replace(_array(name, column), role="column") for name, column in shown),
        classes={} if label is None else _classes(columns[label]),
        facts={
            "samples": f"{len(table.lines):,}",
            "columns": f"{len(columns):,}" + (f", the first {len(shown)} shown" if len(shown) < len(columns) else ""),
            "label": "none: call the column of right answers label" if label is None else table.header[label],
            "first row": first.get(table.heading, ""),
        },
    )


def _array(name: str, array: Any) -> InspectedTensor:
    import numpy as np

    low = high = None
    not_finite = 0
    if array.dtype.kind in "iufb" and array.size:
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
        not_finite = int(array.size - finite.size)
        if finite.size:
            low, high = float(finite.min()), float(finite.max())
    dtype = "text" if array.dtype.kind == "U" else str(array.dtype)
    return InspectedTensor(role="array", name=name, dtype=dtype, shape=array.shape, low=low, high=high,
                           not_finite=not_finite)  # fmt: skip


def _digest(*paths: Path) -> str:
    state = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                state.update(chunk)
    return "sha256:" + state.hexdigest()


_READERS: Final[dict[str, Callable[[Path], Inspection]]] = {
    ".onnx": _onnx,
    ".tflite": _tflite,
    ".xml": _openvino,
    ".npz": _arrays,
    ".npy": _arrays,
    **dict.fromkeys(sorted(TABLES), _columns),
}
