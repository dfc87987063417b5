"""Small facts about arrays that are asked for on every call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Numpy's name of a type; ``dtype.name`` itself puts the text together anew, which costs microseconds.

    >>> dtype_name(np.dtype("<f4"))
    'float32'
    """
    return dtype.name
