"""A metric of the user's own: a function named as ``module:function``, run in the build's process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.means import mean_scores
from edgeship.build.metrics.paired import Draws, Outputs, Paired
from edgeship.build.metrics.resampling import SEED, Estimate, paired
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.runtime.engine import Array

#: A scalar is recomputed on so many resampled sets; percentiles of 95 % need no more.
SCALAR_REPLICATES: Final = 1_000
_RETURNS: Final = "one score in [0, 1] per sample, or one number in [0, 1]; higher is better"

#: Outputs by name [N, …] and labels, targets or None → scores.
Function = Callable[[dict[str, Array], Any], Any]


class UserMetric(Struct, frozen=True, kw_only=True):
    """``module:function``.

    Per-sample scores are resampled like any mean of bounded scores. A scalar is recomputed on samples drawn with
    replacement; resampling cannot tell what it has not seen, so its interval reaches at least 3 ÷ n to each side, by
    which a sample of a kind that was not seen could move a mean of scores (the rule of three).

    Attributes:
        labels: what the function gets beside the outputs, [N, …] or None.
    """

    name: str
    function: Function
    labels: Array | None

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`.

        Raises:
            InputError: the function fails, or returns something else.
        """
        before, after = (self._scores(dict(outputs), self.labels) for outputs in (reference, candidate))
        if before.ndim == 1 and after.ndim == 1:
            return mean_scores(self.name, before, after)
        if before.ndim or after.ndim:
            raise InputError("the metric returns scores for one model and a scalar for the other", key=self.name,
                             expected=_RETURNS, next_step="return the same form for all models")  # fmt: skip
        return self._scalar(reference, candidate, float(before), float(after))

    def _scalar(self, reference: Outputs, candidate: Outputs, before: float, after: float) -> Paired:
        generator = np.random.default_rng(SEED)
        count = len(next(iter(reference.values())))
        drawn = np.empty((2, SCALAR_REPLICATES))
        for replicate in range(SCALAR_REPLICATES):
            rows = generator.integers(0, count, count)
            labels = None if self.labels is None else self.labels[rows]
            for row, outputs in enumerate((reference, candidate)):
                drawn[row, replicate] = self._scores({name: array[rows] for name, array in outputs.items()}, labels)
        unseen, drop = 3.0 / count, before - after
        drops, values = np.sort(drawn[0] - drawn[1]), np.sort(drawn[1])
        draws = Draws(
            drop_low=np.minimum(drops, drop - unseen),
            drop_high=np.maximum(drops, drop + unseen),
            value_low=np.minimum(values, after - unseen),
            value_high=np.maximum(values, after + unseen),
        )
        return paired(self.name, Estimate(source=before, value=after, drop=drop, n=count), draws)

    def _scores(self, outputs: dict[str, Array], labels: Array | None) -> Array:
        count = len(next(iter(outputs.values())))
        try:
            scores = np.asarray(self.function(outputs, labels), np.float64)
        except Exception as error:  # a stranger's code: whatever it raises is its own
            raise InputError(f"the metric failed: {type(error).__name__}: {error}", key=self.name,
                             next_step="call the function on its own with the model's outputs") from error  # fmt: skip
        good = scores.shape in ((), (count,)) and bool(np.all((scores >= 0.0) & (scores <= 1.0)))
        if not good:
            raise InputError("the metric returns something else", key=self.name, expected=_RETURNS,
                             got=f"shape {list(scores.shape)} for {count} samples, from "
                                 f"{scores.min(initial=np.inf):g} to {scores.max(initial=-np.inf):g}",
                             next_step="scale the scores to 0 … 1, higher is better")  # fmt: skip
        return scores


def load(name: str) -> Function:
    """Import ``module:function``; the folder that one works in is looked in as well.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs a stranger's code
        raise ConfigError(
            f"cannot be imported: {type(error).__name__}: {error}",
            key="metric",
            got=name,
            expected="module:function",
            next_step="run from the folder of the module, or install it",
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError("is not a function", key="metric", got=name, expected="module:function",
                          next_step="name a function of two arguments, outputs and labels")  # fmt: skip
    checked: Function = found
    return checked
