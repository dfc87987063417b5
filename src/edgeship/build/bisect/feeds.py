"""What the model is fed: the user's samples, or seeded ones where there are none."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import TensorSpec
from edgeship_agent.runtime.engine import Array

#: Every sample is run in every probe, and a fault rarely hides from four.
MOST_SAMPLES: Final = 4
_SEED: Final = 20_270_203
_DESCRIBE: Final = "save the samples with numpy.savez, one array per input name (or x), samples first"


def made(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Seeded samples: standard normal floats, integers 0 and 1, truth values.

    Returns:
        Name → ``[samples, *shape of one call]``.

    >>> made([TensorSpec(name="x", dtype="int64", shape=(-1, 3))])["x"].shape
    (4, 1, 3)
    """
    rng = np.random.default_rng(_SEED)
    arrays = {}
    for spec in specs:
        shape = (MOST_SAMPLES, *spec.call_shape)
        kind = np.dtype(spec.dtype).kind
        drawn = rng.standard_normal(shape) if kind == "f" else rng.integers(0, 2, shape)
        arrays[spec.name] = drawn.astype(spec.dtype)
    return arrays


def read(path: Path, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The first samples of an ``.npz`` file.

    Args:
        path: one array per input, or ``x`` for a single one: samples first, then the shape of one call with or without
            its batch axis of 1.
        specs: the model's inputs.

    Returns:
        Name → ``[samples, *shape of one call]``, at most :data:`MOST_SAMPLES` samples.

    Raises:
        InputError: it cannot be read, an array is missing or of another shape or dtype, holds NaN, or is empty.
    """
    if not path.is_file():
        raise InputError("no such file of inputs", file=path, next_step=_DESCRIBE)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise InputError("not a readable .npz file", file=path, next_step=_DESCRIBE) from error
    found = {spec.name: _samples(spec, _named(arrays, spec, len(specs), path), path) for spec in specs}
    counts = {len(array) for array in found.values()}
    if len(counts) != 1 or not counts - {0}:
        raise InputError("not the same number of samples for every input, at least one", file=path,
                         got=", ".join(f"{name}: {len(array)}" for name, array in found.items()),
                         next_step=_DESCRIBE)  # fmt: skip
    return {name: array[:MOST_SAMPLES] for name, array in found.items()}


def _named(arrays: Mapping[str, Array], spec: TensorSpec, count: int, path: Path) -> Array:
    name = spec.name if spec.name in arrays or count > 1 else "x"
    if name not in arrays:
        raise InputError("missing array", file=path, key=name, got=", ".join(arrays) or "an empty file",
                         next_step=_DESCRIBE)  # fmt: skip
    return arrays[name]


def _samples(spec: TensorSpec, array: Array, path: Path) -> Array:
    call = spec.call_shape
    one = call[1:] if spec.batched else call
    wanted = f"{spec.dtype} [{', '.join(map(str, ('N', *one)))}]"
    if array.dtype.name != spec.dtype:
        raise InputError("not what the model takes", file=path, key=spec.name, expected=wanted,
                         got=f"{array.dtype} {list(array.shape)}", next_step=_DESCRIBE)  # fmt: skip
    if array.ndim == len(call) + 1 and array.shape[1:] == call:
        found = array
    elif spec.batched and array.ndim == len(call) and array.shape[1:] == one:
        found = array[:, None]
    else:
        raise InputError("not what the model takes", file=path, key=spec.name, expected=wanted,
                         got=f"{array.dtype} {list(array.shape)}", next_step=_DESCRIBE)  # fmt: skip
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError("NaN or infinity in the inputs", file=path, key=spec.name, expected="finite numbers",
                         next_step="take such samples out")  # fmt: skip
    return found
