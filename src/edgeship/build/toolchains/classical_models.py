"""What scikit-learn, XGBoost and LightGBM have read, in one shape; a part of ``classical_worker.py``."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Opsets of the ONNX files. Source: what ONNX Runtime, onnx2tf and OpenVINO all read; TreeEnsemble* are of version 3.
OPSETS = {"": 18, "ai.onnx.ml": 3}
#: ai.onnx.ml operators that skl2onnx can write as plain ONNX too, so that runtimes without that domain read them.
AVOIDED = {"LinearClassifier", "LinearRegressor", "Scaler", "Normalizer"}
#: What a .skops file may name besides what skops itself trusts: classes of the libraries, and those functions that
#: estimators keep from their training (how features and searches were scored), which take tables and return numbers.
TRUSTED = re.compile(
    r"(sklearn|xgboost|lightgbm)\.([a-z_][a-z0-9_]*\.)*_?[A-Z]\w*|collections\.OrderedDict|numpy\.dtype"
    r"|sklearn\.feature_selection\.\w+\.(chi2|f_classif|f_oneway|f_regression|r_regression|mutual_info_\w+)"
    r"|sklearn\.metrics\.\w+\.[a-z0-9_]+_(score|error|loss|deviance)"
)
_MOST_DEPTH = 12
#: What precedes the numbers of features without names of their own: with XGBoost, with LightGBM, in pandas' tables.
_NAMELESS = ("f", "Column_", "")


class UnusableError(Exception):
    """The file cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained model of any of the three libraries.

    Attributes:
        features: width of the one input.
        names: what the training called the features, in order; empty where it did not.
        outputs: name → (dtype, width, or 0 for one number a sample without an axis of its own).
        answer: float32 [N, features] → name → array.
        to_onnx: → ONNX model, and its own name of each of ``outputs``.
        operators: steps and trees.
        parameters: numbers that were learnt.
        classes: what the entries of its first output are called; empty where they are 0, 1, … in order.
        estimator: of scikit-learn, whose kind may have no converter; None for boosters.
    """

    features: int
    outputs: Mapping[str, tuple[str, int]]
    answer: Callable[[Any], Mapping[str, Any]]
    to_onnx: Callable[[], tuple[Any, Mapping[str, str]]]
    operators: int
    parameters: int
    notes: tuple[str, ...] = field(default=())
    classes: tuple[str, ...] = field(default=())
    names: tuple[str, ...] = field(default=())
    estimator: Any = None


def read(request: Mapping[str, Any], check: Callable[[Any], None] = lambda _estimator: None) -> Model:
    """The model that a request names.

    Args:
        request: of the worker.
        check: looks at an estimator of scikit-learn before it is asked anything, and raises what it has against it.

    Raises:
        UnusableError: it cannot be read, or may not be.
    """
    path = Path(request["model"])
    if request["format"] == "sklearn":
        return _read_sklearn(path, check, allow_pickle=bool(request["options"].get("allow_pickle")))
    return {"xgboost": _read_xgboost, "lightgbm": _read_lightgbm}[request["format"]](path)


def takes_gaps(model: Model) -> bool:
    """Whether any feature may be missing: the model answers NaN with numbers, as boosted trees do."""
    import numpy as np

    rows = np.zeros((model.features + 1, model.features), np.float32)
    rows[np.arange(model.features), np.arange(model.features)] = np.nan
    rows[-1] = np.nan
    try:
        said = model.answer(rows)
    except Exception:  # noqa: BLE001 (each library refuses in its own way)
        return False
    return all(bool(np.isfinite(np.asarray(each, np.float64)).all()) for each in said.values())


def _read_sklearn(path: Path, check: Callable[[Any], None], *, allow_pickle: bool) -> Model:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = _from_skops if path.suffix == ".skops" else _from_pickle
        estimator = read(path, allow_pickle=allow_pickle)
    notes = tuple(dict.fromkeys(first_line(each.message) for each in caught
                                if "InconsistentVersion" in each.category.__name__))[:1]  # fmt: skip
    kind = f"{type(estimator).__module__}.{type(estimator).__qualname__}"
    if kind == "xgboost.core.Booster":
        return _of_xgboost(estimator)
    if kind == "lightgbm.basic.Booster":
        return _of_lightgbm(estimator)
    if not hasattr(estimator, "get_params"):
        raise UnusableError(f"it holds a {kind}, which is no estimator of scikit-learn, XGBoost or LightGBM")
    check(estimator)
    return _of_sklearn(estimator, notes)


def _from_skops(path: Path, *, allow_pickle: bool) -> Any:
    """Read without running anything that the file names, but for types that are known."""
    from skops import io

    unknown = _reading(".skops file", lambda: io.get_untrusted_types(file=path))
    foreign = [name for name in unknown if not TRUSTED.fullmatch(name)]
    if foreign and not allow_pickle:
        raise UnusableError(f"it holds types that are not known to be safe ({', '.join(foreign[:3])}); "
                            "--allow-pickle reads it all the same")  # fmt: skip
    return _reading(".skops file", lambda: io.load(path, trusted=unknown))


def _from_pickle(path: Path, *, allow_pickle: bool) -> Any:
    import joblib

    if not allow_pickle:
        raise UnusableError("a pickle can run any code when it is read; --allow-pickle reads it all the same")
    return _reading("pickle", lambda: joblib.load(path))


def _reading(kind: str, read: Callable[[], Any]) -> Any:
    """What a reader returns, with every failure of it as a sentence."""
    try:
        return read()
    except ModuleNotFoundError as error:
        raise UnusableError(f"it needs the module {error.name}, which this toolchain does not have; save it as ONNX "
                            "with skl2onnx there") from error  # fmt: skip
    except Exception as error:
        raise UnusableError(f"not a readable {kind}: {type(error).__name__}: {first_line(error)}") from error


def _of_sklearn(estimator: Any, notes: tuple[str, ...]) -> Model:
    features = int(getattr(estimator, "n_features_in_", 0))
    if not features:
        raise UnusableError("it was not fitted, or does not say how many features it takes")
    outputs, answer = _sklearn_outputs(estimator)
    return Model(
        features=features, outputs=outputs, answer=answer, notes=(*notes, *_class_note(estimator)),
        classes=_class_names(estimator, outputs), estimator=estimator,
        names=_feature_names(getattr(estimator, "feature_names_in_", None), features),
        to_onnx=lambda: _sklearn_to_onnx(estimator, features, list(outputs)),
        operators=len(getattr(estimator, "steps", [None])), parameters=_learnt(estimator),
    )  # fmt: skip


def _class_note(estimator: Any) -> tuple[str, ...]:
    classes = _called(estimator)
    shown = ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
    return (f"classes in the order of its output: {shown}",) if classes else ()


def _called(estimator: Any) -> tuple[str, ...]:
    """Its classes as text; whole numbers that are floats as integers are."""
    return tuple(re.sub(r"^(-?\d+)\.0$", r"\1", str(name)) for name in getattr(estimator, "classes_", ()))


def _feature_names(told: Any, count: int) -> tuple[str, ...]:
    """Names of features; none where they only count, as libraries write them for arrays."""
    names = tuple(str(name) for name in (() if told is None else told))
    numbered = any(names == tuple(f"{start}{index}" for index in range(count)) for start in _NAMELESS)
    return () if numbered or len(names) != count else names


def _class_names(estimator: Any, outputs: Mapping[str, tuple[str, int]]) -> tuple[str, ...]:
    """Names of classes; none where they only count."""
    names = _called(estimator)
    counted = names == tuple(str(index) for index in range(len(names)))
    return () if counted or next(iter(outputs.values()))[1] != len(names) else names


def _sklearn_outputs(estimator: Any) -> tuple[dict[str, tuple[str, int]], Callable[[Any], dict[str, Any]]]:
    """What a model of scikit-learn says, the number that a metric reads first."""
    import numpy as np
    from sklearn.base import is_classifier, is_regressor

    def scores(table: Any) -> Any:
        values = np.asarray(estimator.decision_function(table))
        return np.stack([-values, values], axis=1) if values.ndim == 1 else values

    if is_classifier(estimator):
        classes = getattr(estimator, "classes_", None)
        if classes is None or not isinstance(classes, np.ndarray):
            raise UnusableError("a classifier with several answers a sample; give one model an answer")
        if not hasattr(estimator, "predict_proba") and not hasattr(estimator, "decision_function"):
            return _label_alone(estimator)
        name, method = ("probabilities", estimator.predict_proba) if hasattr(estimator, "predict_proba") else (
            "scores", scores)  # fmt: skip
        labelled = {"label": ("int64", 0)} if np.issubdtype(classes.dtype, np.integer) else {}
        return ({name: ("float32", len(classes)), **labelled},
                _sequentially({name: method, **({"label": estimator.predict} if labelled else {})}))  # fmt: skip
    if is_regressor(estimator):
        name, method = "values", estimator.predict
    elif hasattr(estimator, "predict_proba"):  # a mixture: how much each of its parts has of a sample
        name, method = "probabilities", estimator.predict_proba
    elif hasattr(estimator, "transform"):
        name, method = "values", estimator.transform
    elif hasattr(estimator, "decision_function"):
        name, method = "scores", estimator.decision_function
    else:
        raise UnusableError(f"a {type(estimator).__name__} says nothing about a new sample")
    answer = _sequentially({name: method})
    some = np.asarray(answer(np.zeros((1, int(estimator.n_features_in_)), np.float32))[name])
    return {name: ("float32", int(some.size))}, answer


def _label_alone(estimator: Any) -> tuple[dict[str, tuple[str, int]], Callable[[Any], dict[str, Any]]]:
    """Of a classifier that scores nothing, such as a vote by majority."""
    if estimator.classes_.dtype.kind not in "iu":
        kind = type(_last(estimator)).__name__
        raise UnusableError(f"a {kind} without probabilities or scores says nothing but names; train it on class "
                            "numbers")  # fmt: skip
    return {"label": ("int64", 0)}, _sequentially({"label": estimator.predict})


def _sequentially(methods: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], dict[str, Any]]:
    """Every method in one thread: sums in another order end in other last digits."""

    def answer(table: Any) -> dict[str, Any]:
        import joblib

        with joblib.parallel_config(backend="sequential"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # feature names, which an array does not have
            return {name: method(table) for name, method in methods.items()}

    return answer


def _sklearn_to_onnx(estimator: Any, features: int, outputs: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Plain ONNX operators where skl2onnx can write them, in its own spelling otherwise."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    register_boosters()
    _round_thresholds(estimator)
    _answer_as_a_classifier(estimator)
    kind = type(_last(estimator))
    scored = ({kind: {"raw_scores": True, "zipmap": False}}, {kind: {"raw_scores": True}})
    failures: list[Exception] = []
    for avoided in (AVOIDED, set()):
        for options in (*(scored if "scores" in outputs else ()), {"zipmap": False}, {"raw_scores": True}, {}):
            try:
                model = to_onnx(estimator, initial_types=[("features", FloatTensorType([None, features]))],
                                options=options, target_opset=OPSETS, black_op=avoided)  # fmt: skip
            except Exception as error:  # noqa: BLE001 (skl2onnx raises what its converters raise; the next may do)
                failures.append(error)
            else:
                return model, _own_names(model, outputs)
    raise failures[0]


def _last(estimator: Any) -> Any:
    """The estimator that answers: of a search the best, of a pipeline the last step."""
    if hasattr(estimator, "best_estimator_"):
        return _last(estimator.best_estimator_)
    return _last(estimator.steps[-1][1]) if getattr(estimator, "steps", None) else estimator


def _answer_as_a_classifier(estimator: Any) -> None:
    """Change what skl2onnx takes for something else, in a copy that answers nothing itself.

    A vote is refused for ``flatten_transform``, which its probabilities do not depend on. Of the two scores −v and v of
    a discriminant the softmax is taken, σ(2v), where scikit-learn says σ(v). XGBoost's names of features are refused.
    """
    for part in _parts(estimator):
        kind = type(part).__name__
        if kind == "VotingClassifier":
            part.flatten_transform = False
        elif kind == "LinearDiscriminantAnalysis" and len(part.classes_) == 2:
            part.coef_, part.intercept_ = part.coef_ / 2.0, part.intercept_ / 2.0
        elif kind == "Booster" and hasattr(part, "feature_names"):
            part.feature_names = None


def _own_names(model: Any, outputs: Sequence[str]) -> dict[str, str]:
    """Our name → the converter's: labels are integers or text, all else is float."""
    floats = [value.name for value in model.graph.output if value.type.tensor_type.elem_type == 1]
    labels = [value.name for value in model.graph.output if value.type.tensor_type.elem_type == 7]
    return {name: (labels[0] if name == "label" else floats[0]) for name in outputs if name != "label" or labels}


def register_boosters() -> None:
    """Let skl2onnx convert estimators of XGBoost and LightGBM inside pipelines; reading one imported its library."""
    from skl2onnx import update_registered_converter as register
    from skl2onnx.common import shape_calculator

    classes = shape_calculator.calculate_linear_classifier_output_shapes
    values = shape_calculator.calculate_linear_regressor_output_shapes
    options = {"nocl": [True, False], "zipmap": [True, False, "columns"], "raw_scores": [True, False]}
    if "xgboost" in sys.modules:
        import xgboost
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

        register(xgboost.XGBClassifier, "XGBoostXGBClassifier", classes, convert_xgboost, options=options)
        register(xgboost.XGBRegressor, "XGBoostXGBRegressor", values, convert_xgboost)
    if "lightgbm" in sys.modules:
        import lightgbm
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

        register(lightgbm.LGBMClassifier, "LightGbmLGBMClassifier", classes, convert_lightgbm, options=options)
        register(lightgbm.LGBMRegressor, "LightGbmLGBMRegressor", values, convert_lightgbm, options={"split": None})


def _parts(thing: Any, depth: int = 0) -> Iterator[Any]:
    """Arrays, trees, boosters and estimators in the fitted attributes of an estimator."""
    import numpy as np

    if depth > _MOST_DEPTH:
        return
    if isinstance(thing, list | tuple) or (isinstance(thing, np.ndarray) and thing.dtype == object):
        for each in thing.flat if isinstance(thing, np.ndarray) else thing:
            yield from _parts(each, depth + 1)
        return
    yield thing
    if type(thing).__module__.startswith(("sklearn.", "xgboost.", "lightgbm.")) and type(thing).__name__ != "Booster":
        for value in list(getattr(thing, "__dict__", {}).values()):
            yield from _parts(value, depth + 1)


def _learnt(estimator: Any) -> int:
    """Numbers in the fitted attributes of an estimator, those of its parts included."""
    import numpy as np

    count = 0
    for part in _parts(estimator):
        if isinstance(part, np.ndarray) and part.dtype.kind in "fiuV":
            count += int(part.size) * len(part.dtype.names or (0,))
        elif type(part).__name__ == "Tree" and hasattr(part, "threshold"):
            count += int(part.threshold.size + part.value.size)
        elif type(part).__name__ == "Booster":
            count += _learnt_by_booster(part)
    return count


def _round_thresholds(estimator: Any) -> None:
    """Make thresholds of 64 bits the next smaller ones of 32, which tell the same samples of 32 bits apart.

    The converters round to the nearest, and a sample that lies between the two thresholds changes its branch.
    """
    for part in _parts(estimator):
        if type(part).__name__ == "TreePredictor":
            part.nodes = part.nodes.copy()
            part.nodes["num_threshold"] = _rounded_down(part.nodes["num_threshold"])
        elif hasattr(part, "_Booster") and type(part).__module__.startswith("lightgbm."):
            part._Booster = _with_rounded_thresholds(part._Booster)


def _rounded_down(thresholds: Any) -> Any:
    import numpy as np

    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _with_rounded_thresholds(booster: Any) -> Any:
    """A copy of a LightGBM model, by way of its text."""
    import lightgbm
    import numpy as np

    def line(found: re.Match[str]) -> str:
        thresholds = np.array([float(number) for number in found[1].split()])
        return "threshold=" + " ".join(repr(float(number)) for number in _rounded_down(thresholds))

    text = re.sub(r"^threshold=(.+)$", line, booster.model_to_string(), flags=re.MULTILINE)
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)  # lengths of texts that have changed
    return lightgbm.Booster(model_str=text)


def _learnt_by_booster(booster: Any) -> int:
    if hasattr(booster, "save_raw"):
        trees = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
        return sum(len(tree["split_conditions"]) for tree in _trees(trees))
    return sum(2 * int(tree["num_leaves"]) - 1 for tree in booster.dump_model()["tree_info"])


def _trees(booster: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    inner = booster.get("gbtree", booster)
    yield from inner.get("model", {}).get("trees", ())


def _read_xgboost(path: Path) -> Model:
    import xgboost

    try:
        booster = xgboost.Booster(model_file=str(path))
    except xgboost.core.XGBoostError as error:
        raise UnusableError("not a readable XGBoost model: the file is damaged or of another format") from error
    return _of_xgboost(booster)


def _of_xgboost(booster: Any) -> Model:
    import numpy as np
    import xgboost

    if "c" in (booster.feature_types or ()):
        raise UnusableError("it splits on categories; train it on numbers (one-hot encoded) instead")
    names = booster.feature_names
    booster.feature_names = booster.feature_types = None  # onnxmltools takes none but f0, f1, …
    settings = json.loads(booster.save_config())["learner"]
    objective = settings["objective"]["name"]
    classes = _class_count(objective, int(settings["learner_model_param"]["num_class"]))

    if objective == "multi:softmax":  # the same model, which keeps its probabilities to itself
        booster.set_param({"objective": "multi:softprob"})

    def answer(table: Any) -> dict[str, Any]:
        booster.set_param({"nthread": 1})
        said = booster.predict(xgboost.DMatrix(table, nthread=1))
        return _class_or_value(np.asarray(said), classes)

    return Model(
        features=int(booster.num_features()), outputs=_booster_outputs(classes, booster, answer), answer=answer,
        to_onnx=lambda: _booster_to_onnx("convert_xgboost", booster, int(booster.num_features()), classes),
        operators=int(booster.num_boosted_rounds()), parameters=_learnt_by_booster(booster),
        notes=(f"XGBoost, objective {objective}",), names=_feature_names(names, int(booster.num_features())),
    )  # fmt: skip


def _class_count(objective: str, declared: int) -> int:
    """Classes of a booster; 0 where its answer is a value. Another objective's answer is read as it is."""
    if objective.split(" ", 1)[0] in {"binary:logistic", "binary"}:
        return 2
    return declared if objective.split(" ", 1)[0] in {"multi:softprob", "multi:softmax", "multiclass",
                                                      "multiclassova"} else 0  # fmt: skip


def _class_or_value(said: Any, classes: int) -> dict[str, Any]:
    import numpy as np

    if not classes:
        return {"values": said}
    shares = np.stack([1.0 - said, said], axis=1) if said.ndim == 1 else said
    return {"probabilities": shares, "label": shares.argmax(axis=1)}


def _booster_outputs(classes: int, booster: Any, answer: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    import numpy as np

    if classes:
        return {"probabilities": ("float32", classes), "label": ("int64", 0)}
    features = booster.num_features() if hasattr(booster, "num_features") else booster.num_feature()
    return {"values": ("float32", int(np.asarray(answer(np.zeros((1, features), np.float32))["values"]).size))}


def _booster_to_onnx(converter: str, booster: Any, features: int, classes: int) -> tuple[Any, dict[str, str]]:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    more = {"zipmap": False} if converter == "convert_lightgbm" else {}
    model = getattr(onnxmltools, converter)(
        booster, initial_types=[("features", FloatTensorType([None, features]))], target_opset=15, **more
    )
    return model, _own_names(model, ["probabilities", "label"] if classes else ["values"])


def _read_lightgbm(path: Path) -> Model:
    import lightgbm

    try:
        booster = lightgbm.Booster(model_file=str(path))
    except lightgbm.basic.LightGBMError as error:
        raise UnusableError("not a readable LightGBM model: the file is damaged or of another format") from error
    return _of_lightgbm(booster)


def _of_lightgbm(booster: Any) -> Model:
    import numpy as np

    document = booster.dump_model()
    objective = str(document.get("objective", "")) or "none"
    classes = _class_count(objective, int(document["num_class"]))

    def answer(table: Any) -> dict[str, Any]:
        return _class_or_value(np.asarray(booster.predict(table, num_threads=1)), classes)

    return Model(
        features=int(booster.num_feature()), outputs=_booster_outputs(classes, booster, answer), answer=answer,
        to_onnx=lambda: _booster_to_onnx(
            "convert_lightgbm", _with_rounded_thresholds(booster), int(booster.num_feature()), classes
        ),
        operators=int(booster.num_trees()), parameters=_learnt_by_booster(booster),
        notes=(f"LightGBM, objective {objective}",),
        names=_feature_names(booster.feature_name(), int(booster.num_feature())),
    )  # fmt: skip


def first_line(error: object) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
