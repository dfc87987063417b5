"""How far each channel group of one output lies from the source's. Pure functions over arrays.

A tensor that joins ranges of different size (pixel boxes and scores) loses the small one in int8 while relative RMS and
cosine of the whole look perfect. Source: build.md, trap 12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.fidelity import in_pieces, is_exact
from edgeship_agent.processing.detection import Decoding
from edgeship_agent.runtime.channels import channel_axis
from edgeship_agent.runtime.engine import Array

#: Columns of an output without other axes that are taken as quantities of their own; an embedding has more.
_MOST_QUANTITIES: Final = 64
#: How far a sum of shares may lie off 1.
_SHARES: Final = 1e-3


class Group(Struct, frozen=True, kw_only=True):
    """Neighbouring columns of an output that mean the same kind of thing.

    Attributes:
        name: what they are: ``boxes``, ``scores``.
        axis: of the columns, counted from the end.
        first, end: the columns.
    """

    name: str
    axis: int
    first: int
    end: int


class GroupErrors(Struct, frozen=True, kw_only=True):
    """The groups of one output, against the source.

    Attributes:
        errors: group → relative RMS, None where it is not finite; groups that are zero in the source are left out.
    """

    errors: Mapping[str, float | None]

    @property
    def worst(self) -> tuple[str, float | None]:
        """Name and relative RMS of the group that lies furthest off; one that is not finite before all others."""
        if not self.errors:
            return "", 0.0
        return max(self.errors.items(), key=lambda item: math.inf if item[1] is None else item[1])

    @property
    def balanced(self) -> float | None:
        """Root of the mean square over groups, each measured by its own size: no group hides behind a larger one."""
        known = [error for error in self.errors.values() if error is not None]
        if len(known) < len(self.errors):
            return None
        return math.sqrt(sum(error**2 for error in known) / len(known)) if known else 0.0


def has_groups(reference: Array) -> bool:
    """Whether the entries of one axis are quantities of their own: of several axes, and of a few numbers side by side.

    Not shares of one whole: one that is hardly ever given is next to nothing, and may be next to nothing else. Nor
    classes or counts, which are compared one by one.

    Args:
        reference: [N, …] of the source.

    >>> has_groups(np.array([[1e5, 20.0], [9e4, 21.0]])), has_groups(np.array([[0.9, 0.1], [0.5, 0.5]]))
    (True, False)
    """
    if is_exact(reference):
        return False
    if reference.ndim != 2:
        return reference.ndim > 2
    shares = bool((reference >= 0).all() and (np.abs(reference.sum(axis=1) - 1.0) <= _SHARES).all())
    return 1 < reference.shape[1] <= _MOST_QUANTITIES and not shares


def group_errors(candidate: Array, reference: Array, groups: Sequence[Group] = ()) -> GroupErrors:
    """Relative RMS of every group over all samples.

    Args:
        candidate: [N, …].
        reference: likewise.
        groups: where they are known; without them every entry of the channel axis is one.

    >>> f = np.array([[100.0, 0.1], [200.0, 0.2]])
    >>> group_errors(np.array([[100.0, 0.0], [200.0, 0.0]]), f).worst
    ('channel 1', 1.0)

    Of an output that is one number a sample, all samples are the group:

    >>> group_errors(np.array([1.0, 3.0]), np.array([1.0, 2.0])).worst
    ('channel 0', 0.4472135954999579)
    """
    if reference.ndim == 1:
        candidate, reference = candidate[:, None], reference[:, None]
    axis = groups[0].axis if groups else channel_axis(reference.shape)
    others = tuple(index for index in range(reference.ndim) if index != axis % reference.ndim)
    errors, scales = np.zeros((2, reference.shape[axis]))
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the result
        for q, f in in_pieces(candidate, reference):
            errors += ((q - f) ** 2).sum(axis=others)
            scales += (f**2).sum(axis=others)
    spans = {group.name: slice(group.first, group.end) for group in groups} or {
        f"channel {index}": slice(index, index + 1) for index in range(len(scales))
    }
    sums = {name: (float(errors[span].sum()), float(scales[span].sum())) for name, span in spans.items()}
    return GroupErrors(errors={name: _ratio(*pair) for name, pair in sums.items() if pair[1] != 0.0})


def decoded_groups(decoding: Decoding, output: str, shape: Sequence[int]) -> tuple[Group, ...]:
    """The channel groups of one output of a detector: all scores are one, so a class that no image shows is no loss.

    Args:
        decoding: which columns are what.
        output: its name.
        shape: [N, …].

    >>> joined = Decoding(boxes="y", scores="y", score_columns=(4, 84), channels_first=True)
    >>> [(each.name, each.axis, each.first, each.end) for each in decoded_groups(joined, "y", (1, 84, 8400))]
    [('boxes', -2, 0, 4), ('scores', -2, 4, 84)]
    """
    if len(shape) < 3:
        return ()
    axis, column = (-2 if decoding.channels_first else -1), decoding.objectness_column
    spans = [("boxes", decoding.boxes, decoding.box_columns)]
    if column is not None:
        spans.append(("objectness", decoding.scores, (column, column + 1)))
    spans.append(("scores", decoding.scores, decoding.score_columns or (0, shape[axis])))
    if decoding.class_column is not None:
        spans.append(("classes", decoding.scores, (decoding.class_column, decoding.class_column + 1)))
    return tuple(
        Group(name=name, axis=axis, first=span[0], end=span[1]) for name, owner, span in spans if owner == output
    )


def _ratio(error: float, scale: float) -> float | None:
    return math.sqrt(error / scale) if math.isfinite(error) and math.isfinite(scale) else None
