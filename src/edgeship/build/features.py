"""Names and ranges of the features: as documented, else as the calibration data has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edgeship.build import preprocess
from edgeship.build.data import Dataset
from edgeship.build.options import BuildOptions
from edgeship_agent.contract.manifest import Feature, InputContract
from edgeship_agent.runtime.engine import Array

#: A vector of at most so many elements is documented element by element.
_MOST_FEATURES: Final = 64


def features_of(
    options: BuildOptions, contracts: Sequence[InputContract], calibration: Dataset
) -> dict[str, tuple[Feature, ...]]:
    """Documented features, and for the rest names from the graph with the observed range."""
    documented = preprocess.read_features(options.input_schema, contracts) if options.input_schema else {}
    features = {}
    for contract in contracts:
        name = contract.tensor
        values = np.stack([np.asarray(sample[name]).reshape(-1) for sample in calibration.samples]) if _one_size(
            calibration, name) else None  # fmt: skip
        columns = calibration.columns.get(name, ())
        features[name] = documented.get(name) or _observed(name, contract, values, columns)
    return features


def _one_size(calibration: Dataset, name: str) -> bool:
    return len({sample[name].size for sample in calibration.samples}) == 1


def _observed(
    name: str, contract: InputContract, values: Array | None, columns: Sequence[str] = ()
) -> tuple[Feature, ...]:
    """Ranges of what was there; columns of a table keep their names, by which devices find them."""
    if values is None or not values.size:
        return (Feature(name=name),)
    if len(contract.shape) == 1 and values.shape[1] <= _MOST_FEATURES:
        names = columns or tuple(f"{name}[{index}]" for index in range(values.shape[1]))
        return tuple(_feature(one, column) for one, column in zip(names, values.T, strict=True))
    return (_feature(name, values),)


def _feature(name: str, values: Array) -> Feature:
    low, high = _range(values)
    return Feature(name=name, low=low, high=high)


def _range(values: Array) -> tuple[float | None, float | None]:
    """Bounds of what is not missing; none where all is."""
    present = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    return (float(present.min()), float(present.max())) if present.size else (None, None)
