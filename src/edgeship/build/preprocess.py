"""The preprocessing contract and the documented features, from TOML.

``--preprocess FILE.toml``, one table per model input, steps in order::

    schema_version = 1

    [[input]]
    tensor = "image"        # may be left out where the model has one input
    dtype = "uint8"         # of one raw sample
    shape = [8, 8]          # of one raw sample, without a batch axis; -1 for any size
    steps = [
        { op = "cast", dtype = "float32" },
        { op = "scale", factor = 0.0625 },
        { op = "reshape", shape = [1, 8, 8] },
    ]

``--input-schema FILE.toml``::

    schema_version = 1

    [[feature]]
    tensor = "image"        # may be left out where the model has one input
    name = "pixel"
    unit = "1/16 of full brightness"
    meaning = "ink on paper"
    low = 0
    high = 16
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import UNSET, Struct, field

from edgeship.build.strict import convert, read_table
from edgeship_agent.contract import manifest
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.manifest import Feature, InputContract, Step, TensorSpec

T = TypeVar("T", bound=Struct)
FILE_VERSION: Final = 1
_READ: Final = "compare with the example in docs/guide/build.md"
_STEPS: Final[dict[str, Any]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (manifest.Cast, manifest.Scale, manifest.Offset, manifest.Normalize, manifest.Reshape,
                 manifest.Transpose, manifest.Pad, manifest.Resize, manifest.Crop, manifest.ColourOrder,
                 manifest.LogMel, manifest.Dct, manifest.Impute, manifest.OneHot, manifest.Categories)
}  # fmt: skip


class _Input(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    tensor: str = ""
    steps: tuple[dict[str, Any], ...] = ()
    window: manifest.StreamWindow | None = None


class _PreprocessFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: tuple[_Input, ...]
    schema_version: int = FILE_VERSION


class _FeatureEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    tensor: str = ""
    unit: str = "unknown"
    meaning: str = ""
    low: float | None = None
    high: float | None = None


class _SchemaFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    feature: tuple[_FeatureEntry, ...] = field(default_factory=tuple)
    schema_version: int = FILE_VERSION


def fed_as_is(inputs: Sequence[TensorSpec]) -> tuple[InputContract, ...]:
    """The contract without ``--preprocess``: an array of exactly the model's dtype and shape.

    >>> fed_as_is([TensorSpec(name="x", dtype="float32", shape=(-1, 4))])[0].shape
    (4,)
    """
    return tuple(
        InputContract(tensor=spec.name, dtype=spec.dtype, shape=spec.call_shape[1:] if spec.batched else spec.shape,
                      batched=spec.batched)
        for spec in inputs
    )  # fmt: skip


def read_contracts(path: Path, inputs: Sequence[TensorSpec]) -> tuple[InputContract, ...]:
    """The preprocessing contract of every model input, in the model's order.

    Raises:
        ConfigError: unreadable, an unknown key or step, or an input that is missing or not the model's.
    """
    document = _convert(_table(path, "preprocessing"), _PreprocessFile, path)
    contracts: dict[str, InputContract] = {}
    for entry in document.input:
        tensor = _tensor_of(entry.tensor, inputs, path)
        steps = tuple(_step(step, path) for step in entry.steps)
        batched = next(spec.batched for spec in inputs if spec.name == tensor)
        contracts[tensor] = InputContract(
            tensor=tensor, dtype=entry.dtype, shape=entry.shape, steps=steps, batched=batched,
            window=_window(entry, path) or UNSET,
        )  # fmt: skip
    missing = [spec.name for spec in inputs if spec.name not in contracts]
    if missing:
        raise ConfigError("no contract for a model input", file=path, key="input", expected=", ".join(missing),
                          next_step="add an [[input]] table for it")  # fmt: skip
    return tuple(contracts[spec.name] for spec in inputs)


def read_features(path: Path, contracts: Sequence[InputContract]) -> dict[str, tuple[Feature, ...]]:
    """The documented features of each model input: one for all of a tensor, or one per element of a vector.

    Raises:
        ConfigError: unreadable, an unknown key, or a number of features that fits no tensor.
    """
    document = _convert(_table(path, "input_schema"), _SchemaFile, path)
    features: dict[str, list[Feature]] = {}
    specs = [TensorSpec(name=contract.tensor, dtype=contract.dtype, shape=contract.shape) for contract in contracts]
    for entry in document.feature:
        documented = Feature(
            name=entry.name, unit=entry.unit, meaning=entry.meaning, low=entry.low, high=entry.high, documented=True
        )
        features.setdefault(_tensor_of(entry.tensor, specs, path), []).append(documented)
    for contract in contracts:
        given = features.get(contract.tensor, [])
        fits = {0, 1} | ({contract.shape[0]} if len(contract.shape) == 1 else set())
        if len(given) not in fits:
            raise ConfigError("a number of features that does not fit", file=path, key=contract.tensor,
                              expected=" or ".join(str(n) for n in sorted(fits)), got=len(given),
                              next_step=_READ)  # fmt: skip
    return {name: tuple(entries) for name, entries in features.items()}


def _table(path: Path, section: str) -> Mapping[str, Any]:
    """The file, or the section of that name where it is a project file."""
    table = read_table(path, _READ)
    if table.get("schema_version", FILE_VERSION) != FILE_VERSION:
        raise ConfigError("unknown version", file=path, key="schema_version", expected=FILE_VERSION,
                          got=table["schema_version"], next_step="write schema_version = 1")  # fmt: skip
    if "model" not in table:
        return table
    return {key: value for key, value in table.get(section, {}).items() if key != "file"}


def _convert(table: Mapping[str, Any], kind: type[T], path: Path) -> T:
    return convert(table, kind, path, _READ)


def _step(table: dict[str, Any], path: Path) -> Step:
    name = table.get("op")
    if name not in _STEPS:
        raise ConfigError("unknown step", file=path, key="input.steps.op", expected=" | ".join(_STEPS), got=name,
                          next_step=_READ)  # fmt: skip
    kind = _STEPS[name]
    unknown = set(table) - {"op", *kind.__struct_fields__}
    if unknown:
        raise ConfigError("unknown key", file=path, key=f"input.steps ({name})",
                          expected=" | ".join(kind.__struct_fields__), got=", ".join(sorted(unknown)),
                          next_step=_READ)  # fmt: skip
    step: Step = _convert(table, kind, path)
    return step


def _window(entry: _Input, path: Path) -> manifest.StreamWindow | None:
    window = entry.window
    if window is not None and (entry.shape[:1] != (window.length,) or window.hop < 1):
        raise ConfigError("a window that does not fit", file=path, key="input.window",
                          expected="length = the first size of shape, hop ≥ 1", got=f"{window.length}, {window.hop}",
                          next_step=_READ)  # fmt: skip
    return window


def _tensor_of(name: str, inputs: Sequence[TensorSpec], path: Path) -> str:
    known = [spec.name for spec in inputs]
    if not name and len(known) == 1:
        return known[0]
    if name not in known:
        raise ConfigError("not an input of the model", file=path, key="tensor", expected=" | ".join(known),
                          got=repr(name), next_step=_READ)  # fmt: skip
    return name
