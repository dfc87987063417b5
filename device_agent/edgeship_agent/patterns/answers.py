"""Outputs of a model as a document: what a batch writes and a stream publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.processing.arrays import Array
from edgeship_agent.processing.detection import Decoding, detect
from edgeship_agent.processing.outputs import probabilities, top_class


class Reader:
    """Reads outputs as the output contract says, after its postprocessing.

    Args:
        output: of the manifest.
    """

    def __init__(self, output: OutputContract) -> None:
        self._output = output
        self._decoding: Decoding | None = None
        if output.postprocessing:
            try:
                self._decoding = Decoding.from_steps(output.postprocessing)
            except ContractError:
                self._decoding = None  # steps of another kind are the application's

    def read(self, outputs: Mapping[str, Array]) -> dict[str, Any]:
        """``outputs`` in nested lists, with ``label`` and ``probability`` of a classifier, or ``detections``.

        Args:
            outputs: name → array, batch axis of 1 included; the first output first.

        >>> import numpy as np
        >>> Reader(OutputContract(labels=("cat", "dog"))).read({"y": np.array([[0.25, 0.75]], np.float32)})
        {'outputs': {'y': [[0.25, 0.75]]}, 'index': 1, 'label': 'dog', 'probability': 0.75}
        """
        if self._decoding is not None:
            return {"detections": self._detections(outputs)}
        document: dict[str, Any] = {"outputs": {name: values.tolist() for name, values in outputs.items()}}
        first = next(iter(outputs.values()))
        if self._output.kind == "classification" and first.size > 1 and first.size == first.shape[-1]:
            scores = probabilities(self._output, first)
            best = top_class(scores)
            document["index"] = best
            if best < len(self._output.labels):
                document["label"] = self._output.labels[best]
            document["probability"] = float(scores[best])
        return document

    def _detections(self, outputs: Mapping[str, Array]) -> list[dict[str, Any]]:
        assert self._decoding is not None
        found = detect(outputs, self._decoding)[0]
        labels = self._output.labels
        return [
            {"box": box.tolist(), "score": float(score), "class": int(kind)}
            | ({"label": labels[kind]} if kind < len(labels) else {})
            for box, score, kind in zip(found.boxes, found.scores, found.classes, strict=True)
        ]


def fault(error: EdgeshipError) -> dict[str, str]:
    """An error in the form that a person and a program read: message, and file, key, expected, got where known.

    >>> fault(EdgeshipError("wrong input", key="x", got="float64 [3]"))
    {'message': 'wrong input', 'key': 'x', 'got': 'float64 [3]'}
    """
    facts = {"message": error.message, "file": error.file, "key": error.key, "expected": error.expected,
             "got": error.got}  # fmt: skip
    return {name: value for name, value in facts.items() if value is not None}
