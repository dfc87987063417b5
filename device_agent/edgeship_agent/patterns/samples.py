"""One sample as a program hands it over in text or bytes, where the type and the shape come from the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import BundleManifest, InputContract
from edgeship_agent.processing import check_raw
from edgeship_agent.processing.arrays import Array


def from_json(inputs: Any, manifest: BundleManifest) -> dict[str, Array]:
    """Raw samples from nested lists.

    Args:
        inputs: model input name → nested lists; the lists alone for the only input.
        manifest: says the types.

    Raises:
        InputError: an input is missing or unknown, of the wrong shape, or a value that the type cannot hold.
    """
    contracts = {contract.tensor: contract for contract in manifest.input_contracts}
    if not isinstance(inputs, Mapping) and len(contracts) == 1:
        inputs = {next(iter(contracts)): inputs}
    if not isinstance(inputs, Mapping) or set(inputs) != set(contracts):
        got = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise InputError("wrong inputs", key="inputs", expected=", ".join(contracts), got=got[:80] or "none")
    raw = {name: array_of(inputs[name], contract) for name, contract in contracts.items()}
    for name, contract in contracts.items():
        check_raw(contract, raw[name])
    return raw


def array_of(values: Any, contract: InputContract) -> Array:
    """Nested lists as an array of the contract's type; null is NaN where the type has that.

    Raises:
        InputError: ragged, no numbers, or a value that the type cannot hold; nothing is rounded or wrapped.

    >>> array_of([1, 2], InputContract(tensor="x", dtype="uint8", shape=(2,)))
    array([1, 2], dtype=uint8)
    >>> try:
    ...     array_of([0.5], InputContract(tensor="x", dtype="uint8", shape=(1,)))
    ... except InputError as error:
    ...     print(error)
    x: values that the type cannot hold (expected uint8, got float64)
    """
    dtype = np.dtype(contract.dtype)
    try:
        given = np.array(values)
        if given.dtype == object and dtype.kind == "f":
            given = np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"not an array of numbers: {error}", key=contract.tensor, expected=contract.dtype) from error
    if given.size == 0:
        return given.astype(dtype) if given.dtype.kind in "biuf" else np.zeros(given.shape, dtype)
    held = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}.get(dtype.kind, "")
    if given.dtype.kind not in held:
        raise InputError("values that the type cannot hold", key=contract.tensor, expected=contract.dtype,
                         got=given.dtype.name)  # fmt: skip
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = int(given.min()), int(given.max())
        if low < limits.min or high > limits.max:
            raise InputError("values that the type cannot hold", key=contract.tensor,
                             expected=f"{limits.min} … {limits.max}", got=f"{low} … {high}")  # fmt: skip
    return given.astype(dtype)


def from_bytes(data: bytes, manifest: BundleManifest) -> dict[str, Array]:
    """The only input from its bytes: C order, little-endian, of the contract's type and shape.

    Raises:
        InputError: several inputs, or another number of bytes.
    """
    if len(manifest.input_contracts) != 1:
        names = ", ".join(contract.tensor for contract in manifest.input_contracts)
        raise InputError("bytes are for a model of one input", expected=f"JSON with {names}")
    (contract,) = manifest.input_contracts
    dtype, free = np.dtype(contract.dtype).newbyteorder("<"), sum(size < 0 for size in contract.shape)
    known = int(np.prod([size for size in contract.shape if size >= 0])) * dtype.itemsize
    if free > 1 or (len(data) % known if free and known else len(data) != known):
        expected = f"a multiple of {known} bytes" if free else f"{known} bytes"
        raise InputError("wrong number of bytes", key=contract.tensor, expected=expected, got=len(data))
    return {contract.tensor: np.frombuffer(data, dtype).reshape(contract.shape).astype(contract.dtype, copy=False)}


def parse_json(data: bytes | str, *, place: str) -> Any:
    """A JSON document.

    Raises:
        InputError: it is none.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", file=place) from error
