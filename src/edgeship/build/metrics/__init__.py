"""Task metrics: each says what source and variant reach, and what is lost, with an interval. Pure but for what is read.

A new metric is one class with a name and :meth:`Metric.compare`, and one line in :mod:`edgeship.build.metrics.choose`.
"""

from edgeship.build.metrics.choose import ERRORS, LEAST_FOUND, NAMES, MetricRequest, check_name, choose, of_classes
from edgeship.build.metrics.class_recalls import class_recalls, found_classes, lost_classes
from edgeship.build.metrics.confusion import confusion
from edgeship.build.metrics.fidelity import (
    cosine,
    differing_share,
    is_exact,
    names_class,
    output_error,
    predictions,
    relative_rms,
    sample_rms,
    sqnr_db,
)
from edgeship.build.metrics.one_score import OneScore, is_one_score
from edgeship.build.metrics.paired import Cells, Metric, Outputs, Paired, cells, figures
from edgeship.build.metrics.shares import Agreement, Closeness, Top, answers

__all__ = [
    "ERRORS",
    "LEAST_FOUND",
    "NAMES",
    "Agreement",
    "Cells",
    "Closeness",
    "Metric",
    "MetricRequest",
    "OneScore",
    "Outputs",
    "Paired",
    "Top",
    "answers",
    "cells",
    "check_name",
    "choose",
    "class_recalls",
    "confusion",
    "cosine",
    "differing_share",
    "figures",
    "found_classes",
    "is_exact",
    "is_one_score",
    "lost_classes",
    "names_class",
    "of_classes",
    "output_error",
    "predictions",
    "relative_rms",
    "sample_rms",
    "sqnr_db",
]
