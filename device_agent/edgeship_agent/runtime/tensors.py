"""Arrays ↔ the tensors of frames and tensor files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.frames import Tensor, TensorFile
from edgeship_agent.processing.arrays import Array, dtype_name

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    # by its text, which gives numpy's own object of a native type, so that one look tells it from others
    name: np.dtype(np.dtype(name).newbyteorder("<").str)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
}
#: numpy 1 allows no more axes.
_MAX_AXES: Final = 32
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(TensorFile)


def to_tensor(name: str, array: Array) -> Tensor:
    """A named tensor that views the array's bytes, or holds a copy where the array is not contiguous.

    Raises:
        ContractError: a dtype that does not travel.

    >>> to_tensor("x", np.array([1, 2], np.uint8)).shape
    (2,)
    """
    dtype = travelling_dtype(name, array)
    flat = array if array.dtype == dtype and array.flags.c_contiguous else np.ascontiguousarray(array, dtype=dtype)
    data = flat.reshape(-1).view(np.uint8).data if flat.size else b""
    return Tensor(name=name, dtype=dtype_name(array.dtype), shape=array.shape, data=data)


def travelling_dtype(name: str, array: Array) -> np.dtype[Any]:
    """The little-endian type in which an array travels.

    Raises:
        ContractError: a dtype that does not travel.
    """
    dtype = _DTYPES.get(dtype_name(array.dtype))
    if dtype is None:
        raise ContractError("a dtype that does not travel", key=name, expected=" ".join(_DTYPES), got=array.dtype)
    return dtype


def dtype_of(name: str, dtype: str) -> np.dtype[Any]:
    """The type that a tensor names.

    Raises:
        ContractError: an unknown dtype.
    """
    found = _DTYPES.get(dtype)
    if found is None:
        raise _unknown(name, dtype)
    return found


def _unknown(name: str, dtype: str) -> ContractError:
    return ContractError("unknown dtype", key=name, expected=" ".join(_DTYPES), got=dtype[:32])


def is_possible_shape(shape: tuple[int, ...]) -> bool:
    """Whether numpy can have an array of this shape."""
    return len(shape) <= _MAX_AXES and min(shape, default=0) >= 0


def to_array(tensor: Tensor) -> Array:
    """A read-only array over the tensor's bytes.

    Raises:
        ContractError: unknown dtype, negative size, or not exactly as many bytes as the shape needs.

    >>> to_array(to_tensor("x", np.eye(2))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    dtype, shape, data = _DTYPES.get(tensor.dtype), tensor.shape, tensor.data
    if dtype is None or len(shape) > _MAX_AXES:  # numpy takes more axes from version 2 on
        raise _impossible(tensor)
    try:
        array: Array = np.ndarray(shape, dtype, data)
    except (ValueError, TypeError, OverflowError) as error:
        raise _impossible(tensor) from error
    if array.nbytes != len(data) or array.shape != shape:  # numpy takes more bytes, and -1 for any size
        raise _impossible(tensor)
    return array


def _impossible(tensor: Tensor) -> ContractError:
    """What is wrong with a tensor that is no array."""
    if tensor.dtype not in _DTYPES:
        return _unknown(tensor.name, tensor.dtype)
    if not is_possible_shape(tensor.shape):
        return ContractError("impossible shape", key=tensor.name, got=str(tensor.shape)[:80])
    needed = math.prod(tensor.shape) * _DTYPES[tensor.dtype].itemsize
    return ContractError("wrong number of bytes", key=tensor.name, expected=needed, got=len(tensor.data))


def encode_tensor_file(samples: Sequence[Mapping[str, Array]]) -> bytes:
    """Bytes of a tensor file: one mapping name → array per sample."""
    return _encoder.encode(
        TensorFile(samples=tuple(tuple(to_tensor(name, array) for name, array in sample.items()) for sample in samples))
    )


def decode_tensor_file(data: bytes, *, file: object = None) -> TensorFile:
    """The tensor file in some bytes.

    Raises:
        ContractError: the bytes are not such a file.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(f"unreadable: {error}", file=file, expected="TensorFile") from error


def sample_arrays(sample: Sequence[Tensor]) -> dict[str, Array]:
    """Name → array of one sample of a tensor file.

    Raises:
        ContractError: a damaged tensor.
    """
    return {tensor.name: to_array(tensor) for tensor in sample}
