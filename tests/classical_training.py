"""Run by the toolchain ``classical``: trains small models on the arrays of an .npz file and saves them in a folder.

``python classical_training.py DATA.npz FOLDER``: DATA holds ``x`` [N, features], ``y`` class indices, ``r`` values.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import joblib
import lightgbm
import numpy as np
import skops.io
import xgboost
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC, LinearSVC


def voters() -> list[tuple[str, object]]:
    """Names and estimators that have one voice each."""
    return [
        ("line", LogisticRegression(max_iter=500)),
        ("near", KNeighborsClassifier(3)),
        ("ridge", LogisticRegression(C=0.1)),
    ]


def estimators(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> dict[str, object]:
    """Name → fitted estimator."""
    boosted = {"n_estimators": 12, "max_depth": 3}
    pairs = {
        "forest": (RandomForestClassifier(15, random_state=0), y),
        "text-classes": (RandomForestClassifier(5, random_state=0), np.array(["low", "mid", "top"])[y]),
        "histogram": (HistGradientBoostingClassifier(max_iter=8, random_state=0), y),
        "boosted-values": (GradientBoostingRegressor(n_estimators=12, random_state=0), r),
        "logistic": (make_pipeline(StandardScaler(), LogisticRegression()), y),
        "network": (make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=300, random_state=0)), y),
        "vectors": (SVC(), y),
        "linear-vectors": (LinearSVC(), y),
        "two-classes": (LinearSVC(), np.minimum(y, 1)),
        "two-vectors": (make_pipeline(StandardScaler(), SVC()), np.minimum(y, 1)),
        "two-lines": (make_pipeline(StandardScaler(), LinearSVC()), np.minimum(y, 1)),
        "two-ridges": (make_pipeline(StandardScaler(), RidgeClassifier()), np.minimum(y, 1)),
        "discriminant": (LinearDiscriminantAnalysis(), np.minimum(y, 1)),
        "vote": (VotingClassifier(voters(), voting="soft"), y),
        "majority": (VotingClassifier(voters()), y),
        "neighbours": (KNeighborsClassifier(3), y),
        "two-values": (make_pipeline(StandardScaler(), Ridge()), np.stack([r, -r], axis=1)),
        "spread": (make_pipeline(StandardScaler(), LabelSpreading()), y),
        "clusters": (KMeans(3, n_init=2, random_state=0), None),
        "outliers": (IsolationForest(n_estimators=10, random_state=0), None),
        "xgboost-in-a-pipeline": (make_pipeline(StandardScaler(), xgboost.XGBClassifier(**boosted)), y),
        "lightgbm-in-a-pipeline": (make_pipeline(StandardScaler(), lightgbm.LGBMRegressor(**boosted, verbose=-1)), r),
    }
    return {name: estimator.fit(x, wanted) for name, (estimator, wanted) in pairs.items()}


def boosters(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> dict[str, object]:
    """File name → booster."""
    some = {"n_estimators": 12, "max_depth": 3}
    return {
        "xgboost-classes.json": xgboost.XGBClassifier(**some).fit(x, y).get_booster(),
        "xgboost-two.ubj": xgboost.XGBClassifier(**some).fit(x, np.minimum(y, 1)).get_booster(),
        "xgboost-values.ubj": xgboost.XGBRegressor(**some).fit(x, r).get_booster(),
        "xgboost-label.json": xgboost.train({"objective": "multi:softmax", "num_class": 3}, xgboost.DMatrix(x, y), 5),
        "lightgbm-classes.txt": lightgbm.LGBMClassifier(**some, verbose=-1).fit(x, y).booster_,
        "lightgbm-two.txt": lightgbm.LGBMClassifier(**some, verbose=-1).fit(x, np.minimum(y, 1)).booster_,
        "lightgbm-values.txt": lightgbm.LGBMRegressor(**some, verbose=-1).fit(x, r).booster_,
    }


def named(x: np.ndarray, y: np.ndarray, names: list[str]) -> dict[str, object]:
    """File name → model that knows the names of its features, as those of a data frame; classes 1.0, 2.0, 3.0."""
    line = LogisticRegression(max_iter=500).fit(x, y + 1.0)
    line.feature_names_in_ = np.array(names, dtype=object)
    trees = xgboost.XGBClassifier(n_estimators=4, max_depth=3).fit(x, y)
    trees.get_booster().feature_names = names
    return {
        "named.skops": line,
        "named-trees.skops": trees,
        "named.ubj": xgboost.train({"objective": "multi:softprob", "num_class": 3},
                                   xgboost.DMatrix(x, y, feature_names=names), 5),
        "named.txt": lightgbm.train({"objective": "multiclass", "num_class": 3, "verbose": -1},
                                    lightgbm.Dataset(x, y, feature_name=names), 5),
    }  # fmt: skip


def on_text(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """Name → estimator of a table whose first column is text; the second one knows what the column is called."""
    table = np.concatenate([np.array(["H", "L", "M", "K"], dtype=object)[y + (x[:, :1] > 6).ravel()][:, None], x], 1)
    encoder = make_column_transformer((make_pipeline(OneHotEncoder()), [0]), (StandardScaler(), [1, 2, 3, 4]))
    line = make_pipeline(encoder, LogisticRegression())
    search = GridSearchCV(clone(line), {"logisticregression__C": [1.0]}, cv=2).fit(table, y)
    ordinal = OrdinalEncoder().fit(table[:, :1])
    ordinal.feature_names_in_ = np.array(["Type"], dtype=object)
    return {"text": line.fit(table, y), "text-in-a-search": search, "text-alone": ordinal}


def main() -> None:
    """Train and save everything."""
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[2])
    with np.load(sys.argv[1]) as archive:
        x, y, r = (archive[name] for name in "xyr")
    trained = estimators(x, y, r)
    for name, estimator in {**trained, **on_text(x, y)}.items():
        skops.io.dump(estimator, folder / f"{name}.skops")
    joblib.dump(trained["forest"], folder / "forest.joblib")
    joblib.dump({"not": "an estimator"}, folder / "dictionary.joblib")
    models = named(x, y, ["sepal length", "sepal width", "petal length", "petal width"])
    for name in ("named.skops", "named-trees.skops"):
        skops.io.dump(models.pop(name), folder / name)
    for name, booster in {**boosters(x, y, r), **models}.items():
        booster.save_model(folder / name)


if __name__ == "__main__":
    main()
