"""What a .skops file may name without being trusted as a whole."""

from __future__ import annotations

import pytest

from edgeship.build.toolchains.classical_models import TRUSTED


@pytest.mark.parametrize(
    ("name", "trusted"),
    [
        ("sklearn.linear_model._logistic.LogisticRegression", True),
        ("sklearn.calibration._CalibratedClassifier", True),
        ("sklearn.metrics._scorer._PassthroughScorer", True),
        ("sklearn.metrics._classification.accuracy_score", True),
        ("sklearn.feature_selection._univariate_selection.f_classif", True),
        ("sklearn.datasets._base.load_files", False),
        ("sklearn.utils._joblib.load", False),
        ("os.system", False),
        ("sklearn.metrics._classification.os.system", False),
        ("numpy.load", False),
    ],
)
def test_classes_and_what_scored_the_training_are_trusted(name: str, trusted: bool) -> None:
    assert bool(TRUSTED.fullmatch(name)) == trusted
