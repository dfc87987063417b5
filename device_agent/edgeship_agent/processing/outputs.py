"""Reading a model's first output as probabilities."""

from __future__ import annotations

import numpy as np

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.processing.arrays import Array


def probabilities(output: OutputContract, first_output: Array) -> Array:
    """Class probabilities of one sample.

    Args:
        output: says whether the device applies a softmax or the model did.
        first_output: [1, K] (or [K]).

    Returns:
        [K] of float32; NaN where the output is NaN.

    Raises:
        ContractError: an activation that is not known.

    >>> probabilities(OutputContract(activation="softmax"), np.zeros((1, 4))).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return probabilities_of_rows(output, first_output.reshape(1, -1)).reshape(-1)


def probabilities_of_rows(output: OutputContract, rows: Array) -> Array:
    """Class probabilities of several samples, each as :func:`probabilities` gives them.

    Args:
        output: as there.
        rows: [n, K], each row contiguous.

    Raises:
        ContractError: an activation that is not known.
    """
    scores = rows.astype(np.float32, copy=False)
    if output.activation == "none":
        return scores
    if output.activation != "softmax":
        raise ContractError("unknown activation", expected="none | softmax", got=output.activation)
    if not scores.size:
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def top_class(scores: Array) -> int:
    """Index of the highest of [K] scores; the first one where several are equal.

    >>> top_class(np.array([0.1, 0.7, 0.2]))
    1
    """
    return int(scores.argmax())
