"""Asking the running agent for predictions from a file: what ``edgeship-agent infer`` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeship_agent.contract.errors import InputError, TransferError
from edgeship_agent.processing import check_raw
from edgeship_agent.serving.client import Client
from edgeship_agent.update.slots import Slots

Array = np.ndarray[Any, np.dtype[Any]]


def read_samples(path: Path) -> dict[str, Array]:
    """Arrays by input name; ``x`` alone stands for the model's only input.

    Raises:
        InputError: the file cannot be read as numpy arrays.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot be read as numpy arrays: {error}", file=path, expected=".npy or .npz") from error
    if isinstance(loaded, np.ndarray):
        return {"x": loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def ask(state_dir: Path, socket_path: Path, arrays: Mapping[str, Array], timeout_s: float) -> list[dict[str, Any]]:
    """One answer per sample.

    Args:
        state_dir: of the agent, to see what its model expects.
        socket_path: where it listens.
        arrays: one sample, or a batch along the first axis, per input.
        timeout_s: per prediction.

    Raises:
        InputError: the arrays are not what the model expects.
        TransferError: the agent cannot be reached.
    """
    answers = []
    for sample in _samples(state_dir, arrays):
        with Client(socket_path, timeout_s) as client:
            prediction = client.infer(sample)
        outputs = {name: values.tolist() for name, values in prediction.outputs.items()}
        answers.append(
            {
                "prediction_id": prediction.prediction_id,
                "model": prediction.model,
                "version": prediction.version,
                "release_digest": prediction.release_digest,
                "latency_us": prediction.latency_us,
                "outputs": outputs,
            }
        )
    return answers


def _samples(state_dir: Path, arrays: Mapping[str, Array]) -> list[dict[str, Array]]:
    slots = Slots(state_dir / "slots")
    active = [slot for model, arm in slots.arms() if (slot := slots.active(model, arm)) is not None]
    if not active:
        raise TransferError(
            "this device serves no model yet",
            retryable=True,
            file=state_dir,
            next_step="edgeship-agent status --config FILE",
        )
    contracts = {contract.tensor: contract for contract in active[0].manifest().input_contracts}
    named = dict(arrays)
    if set(named) == {"x"} and len(contracts) == 1:
        named = {next(iter(contracts)): named["x"]}
    if set(named) != set(contracts):
        raise InputError("wrong inputs", expected=", ".join(contracts), got=", ".join(named))
    counts = set()
    for name, array in named.items():
        ranks = (len(contracts[name].shape), len(contracts[name].shape) + 1)
        if array.ndim not in ranks:
            raise InputError("wrong shape", key=name, expected=f"{list(contracts[name].shape)}", got=list(array.shape))
        counts.add(array.shape[0] if array.ndim == ranks[1] else None)
    if len(counts) != 1:
        raise InputError("the inputs have different numbers of samples", got=sorted(map(str, counts)))
    count = counts.pop()
    samples = [named]
    if count is not None:
        samples = [{name: array[index] for name, array in named.items()} for index in range(count)]
    for sample in samples:
        for name, array in sample.items():
            check_raw(contracts[name], array)
    return samples
