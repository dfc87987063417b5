"""Estimators that no converter knows or that take text, and what to do instead; a part of ``classical_worker.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_MOST_NAMED = 4
_MOST_CATEGORIES = 3
#: An encoder in a pipeline in a column transformer in a pipeline in a search lies ten lists and estimators deep.
_MOST_DEPTH = 12
_ELSEWHERE = "leave it out, do its work in the data or in preprocessing, and save the rest again"
#: How skl2onnx says that it has no converter for a class.
_NAMED = re.compile(r"for type '<class '(?P<name>[^']+)'>'|for type <class '(?P<plain>[^']+)'>")
_ERRORS = {"MissingShapeCalculator", "MissingConverter"}


class NoConverterError(Exception):
    """An estimator that neither skl2onnx nor onnxmltools converts.

    Attributes:
        next_step: what to do instead.
    """

    def __init__(self, message: str, next_step: str) -> None:
        self.next_step = next_step
        super().__init__(message)


class TextFeatureError(Exception):
    """An estimator that was trained on text, where every feature is a number.

    Attributes:
        next_step: what to do instead.
    """

    def __init__(self, message: str) -> None:
        self.next_step = "encode that column as numbers in the data, train on these, and save the model again"
        super().__init__(message)


def check_features(estimator: Any) -> None:
    """Look for encoders whose categories are text: such an estimator cannot be asked about numbers.

    Raises:
        TextFeatureError: there is one.
    """
    for part in _inside(estimator):
        categories = getattr(part, "categories_", None)
        names = list(getattr(part, "feature_names_in_", ()))
        for index, column in enumerate(categories if isinstance(categories, list) else ()):
            told = [each for each in column if isinstance(each, str)]
            if told:
                shown = ", ".join(told[:_MOST_CATEGORIES]) + (" …" if len(told) > _MOST_CATEGORIES else "")
                place = f" in the column {names[index]}" if index < len(names) else ""
                raise TextFeatureError(f"its {type(part).__name__} was trained on text{place} ({shown}), and every "
                                       "feature is a number here")  # fmt: skip


def check(estimator: Any) -> None:
    """Look at an estimator, and at the steps that it is made of, before anything is converted.

    Raises:
        NoConverterError: one of them has no converter.
    """
    from skl2onnx._supported_operators import sklearn_operator_name_map as known

    for step in _steps(estimator):
        kind = type(step)
        if kind.__name__ == "FunctionTransformer" and step.func is not None:
            raise NoConverterError("skl2onnx has no converter for the function of a FunctionTransformer, so there is "
                                   "no way to any runtime", _ELSEWHERE)  # fmt: skip
        if kind.__module__.startswith("sklearn.") and kind not in known:
            raise _refusal(kind, is_whole=step is estimator)


def explained(error: Exception, estimator: Any) -> Exception:
    """A failure of skl2onnx, in words about the kind where it lacks a converter for a part inside."""
    if type(error).__name__ not in _ERRORS:
        return error
    found = _NAMED.search(str(error))
    name = (found["name"] or found["plain"]) if found else type(estimator).__name__
    kind = next((type(part) for part in _inside(estimator) if f"{type(part).__module__}.{type(part).__qualname__}"
                 == name), type(estimator))  # fmt: skip
    return _refusal(kind, is_whole=kind is type(estimator))


def _steps(estimator: Any) -> Iterator[Any]:
    """The estimator and everything that it runs one after the other or side by side."""
    if isinstance(estimator, str) or estimator is None:
        return
    yield estimator
    if hasattr(estimator, "best_estimator_"):
        yield from _steps(estimator.best_estimator_)
    for name in ("steps", "transformer_list", "transformers_"):
        for step in getattr(estimator, name, None) or ():
            yield from _steps(step[1])


def _inside(thing: Any, depth: int = 0) -> Iterator[Any]:
    """Estimators in the fitted attributes of one, and itself."""
    if depth > _MOST_DEPTH:
        return
    if isinstance(thing, (list, tuple)):
        for each in thing:
            yield from _inside(each, depth + 1)
    elif hasattr(thing, "get_params"):
        yield thing
        for value in list(vars(thing).values()):
            yield from _inside(value, depth + 1)


def _refusal(kind: type, *, is_whole: bool) -> NoConverterError:
    place = "" if is_whole else ", which it holds"
    near = _near(kind)
    task = _task(kind)
    instead = _ELSEWHERE
    if near:
        instead = f"train a {task} that has one, such as {', '.join(near)}, and save it again"
    return NoConverterError(f"neither skl2onnx nor onnxmltools has a converter for {kind.__name__}{place}, so there "
                            "is no way to any runtime", instead)  # fmt: skip


def _task(kind: type) -> str:
    from sklearn import base

    tasks = {"classifier": base.ClassifierMixin, "regressor": base.RegressorMixin, "clustering": base.ClusterMixin,
             "outlier detector": base.OutlierMixin, "transformer": base.TransformerMixin}  # fmt: skip
    return next((name for name, mixin in tasks.items() if issubclass(kind, mixin)), "")


def _near(kind: type) -> list[str]:
    """Kinds with a converter that do the same task: of the same package first, then the usual ones."""
    from skl2onnx._supported_operators import sklearn_operator_name_map as known

    task = _task(kind)
    package = ".".join(kind.__module__.split(".")[:2])
    same = [each for each in known if task and _task(each) == task and each.__module__.startswith("sklearn.")]
    near = sorted(each.__name__ for each in same if each.__module__.startswith(package + ".")
                  and not each.__name__.startswith("_"))  # fmt: skip
    names = {each.__name__ for each in same}
    usual = [name for name in _USUAL if name in names]
    return list(dict.fromkeys([*near, *usual]))[:_MOST_NAMED]


#: Kinds that most tasks can be done with, and that convert without loss.
_USUAL = ("LogisticRegression", "SVC", "RandomForestClassifier", "KNeighborsClassifier", "Ridge", "SVR",
          "RandomForestRegressor", "KNeighborsRegressor", "KMeans", "IsolationForest", "LocalOutlierFactor",
          "StandardScaler", "SelectKBest", "PCA")  # fmt: skip
