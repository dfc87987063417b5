"""scikit-learn, XGBoost and LightGBM: read without trust, converted without loss, refused where there are no trees."""

from __future__ import annotations

import csv
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edgeship.build import oracle, pipeline, routes, sources, toolchains
from edgeship.build.documents.recompute import recompute
from edgeship.build.inputs import read as read_inputs
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.build.toolchains.environment import named
from edgeship.bundle import Bundle
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError
from edgeship_agent.runtime import open_engine

ROOT = Path(__file__).parents[2]
TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", ROOT.parent / "shared" / "data"))
#: Relative RMS of a conversion in float32. Source: measured on 22 models of the three libraries, at most 2.4e-6.
CLOSE = 1e-5
CLASSES = {"forest", "text-classes", "histogram", "logistic", "network", "neighbours", "xgboost-in-a-pipeline",
           "discriminant", "vote"}  # fmt: skip
SCORES = {"vectors", "linear-vectors", "two-classes", "two-vectors", "two-lines", "two-ridges", "outliers"}
VALUES = {"boosted-values", "two-values", "clusters", "lightgbm-in-a-pipeline"}
BOOSTERS = {
    "xgboost-classes.json": "probabilities", "xgboost-two.ubj": "probabilities", "xgboost-values.ubj": "values",
    "xgboost-label.json": "probabilities", "lightgbm-classes.txt": "probabilities",
    "lightgbm-two.txt": "probabilities", "lightgbm-values.txt": "values",
}  # fmt: skip
MODELS = {
    **{f"{name}.skops": "probabilities" for name in CLASSES},
    **{f"{name}.skops": "scores" for name in SCORES},
    **{f"{name}.skops": "values" for name in VALUES},
    "majority.skops": "label",
    "named-trees.skops": "probabilities",
    **BOOSTERS,
}


class _Trained:
    """Models on iris, in a folder, and samples that they have not seen."""

    def __init__(self, folder: Path) -> None:
        from sklearn.datasets import load_iris

        x, y = load_iris(return_X_y=True)
        x = x.astype(np.float32)
        unseen = np.arange(len(x)) % 3 == 0
        np.savez(folder / "train.npz", x=x[~unseen], y=y[~unseen], r=(x @ [1.0, -2.0, 0.5, 3.0])[~unseen])
        self.folder = folder
        self.samples = [{"features": row[None]} for row in x[unseen]]
        train(folder / "train.npz", folder)


def train(data: Path, folder: Path) -> None:
    toolchains.install("classical")
    script = ROOT / "tests" / "classical_training.py"
    subprocess.run([named("classical").python, "-I", script, data, folder], check=True, capture_output=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> _Trained:
    return _Trained(tmp_path_factory.mktemp("classical"))


def _read(path: Path, **options: object) -> sources.SourceModel:
    return sources.load(structs.replace(sources.SourceRequest(text=str(path)), **options))


#: Converted in every run; the others in the long ones.
EVERY_TIME = ("named-trees.skops", "histogram.skops", "two-vectors.skops", "xgboost-label.json")
CASES = [pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.slow) for name in sorted(MODELS)]


@pytest.mark.parametrize("name", CASES)
def test_the_onnx_file_says_what_the_model_says(trained: _Trained, name: str, tmp_path: Path) -> None:
    source = _read(trained.folder / name)
    assert [(spec.name, spec.dtype, spec.shape) for spec in source.inputs] == [("features", "float32", (-1, 4))]
    assert [spec.name for spec in source.outputs] == [MODELS[name]]
    assert source.parameters > 0
    opened = oracle.open_oracle(source, tmp_path / "source")
    truth = oracle.stacked(opened.run(trained.samples, "source", Silence()), "source")
    forms = routes.Forms(source, tmp_path / "forms", lambda _name: None)
    (route,) = routes.plan(source.format, "onnxruntime")
    engine = open_engine("onnxruntime", forms.file(route))
    said = np.concatenate([engine.run([sample["features"]])[0] for sample in trained.samples])
    engine.close()
    wanted = truth[MODELS[name]]
    assert said.shape == wanted.shape
    assert np.linalg.norm(said - wanted) <= CLOSE * np.linalg.norm(wanted)
    assert len(np.unique(wanted.round(5), axis=0)) >= 2
    source.check_unchanged()


def test_what_answers_missing_values_says_so(trained: _Trained) -> None:
    taken = {name: _read(trained.folder / name).takes_gaps for name in EVERY_TIME}
    assert taken == {
        "named-trees.skops": True,
        "histogram.skops": True,
        "two-vectors.skops": False,
        "xgboost-label.json": True,
    }


def test_probabilities_and_the_label_where_both_are_asked_for(trained: _Trained, tmp_path: Path) -> None:
    source = _read(trained.folder / "forest.skops", output_tensors=("label", "probabilities"))
    assert [(spec.name, spec.dtype, spec.shape) for spec in source.outputs] == [
        ("label", "int64", (-1,)), ("probabilities", "float32", (-1, 3)),
    ]  # fmt: skip
    opened = oracle.open_oracle(source, tmp_path / "source")
    truth = oracle.stacked(opened.run(trained.samples, "source", Silence()), "source")
    engine = open_engine("onnxruntime", routes.Forms(source, tmp_path / "f", lambda _name: None).file(("skl2onnx",)))
    said = [engine.run([sample["features"]]) for sample in trained.samples]
    engine.close()
    assert [int(label.item()) for label, _ in said] == truth["label"].reshape(-1).tolist()
    assert np.allclose(np.concatenate([shares for _, shares in said]), truth["probabilities"], atol=CLOSE)


def test_an_output_that_the_model_does_not_have_is_named(trained: _Trained) -> None:
    with pytest.raises(InputError, match="no output label; it has: values"):
        _read(trained.folder / "boosted-values.skops", output_tensors=("label",))


def test_a_pickle_is_read_only_where_that_is_allowed(trained: _Trained) -> None:
    with pytest.raises(InputError, match="run any code") as refusal:
        _read(trained.folder / "forest.joblib")
    assert "--allow-pickle" in str(refusal.value.next_step)
    allowed = _read(trained.folder / "forest.joblib", allow_pickle=True)
    assert allowed.parameters == _read(trained.folder / "forest.skops").parameters
    with pytest.raises(InputError, match=r"it holds a builtins\.dict"):
        _read(trained.folder / "dictionary.joblib", allow_pickle=True)


def test_a_pickle_that_runs_code_does_not_run_it(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pkl"
    ran = tmp_path / "ran"
    bomb.write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    with pytest.raises(InputError, match="run any code"):
        _read(bomb)
    assert not ran.exists()


def test_a_skops_file_that_names_a_function_is_refused(trained: _Trained, tmp_path: Path) -> None:
    changed = tmp_path / "changed.skops"
    with zipfile.ZipFile(trained.folder / "forest.skops") as before, zipfile.ZipFile(changed, "w") as after:
        for entry in before.infolist():
            data = before.read(entry)
            if entry.filename == "schema.json":
                assert b'"RandomForestClassifier"' in data
                data = data.replace(b'"RandomForestClassifier"', b'"system"')
                data = data.replace(b'"sklearn.ensemble._forest"', b'"os"')
            after.writestr(entry, data)
    with pytest.raises(InputError, match="not known to be safe"):
        _read(changed)


@pytest.mark.parametrize(
    ("name", "share"),
    [("forest.skops", 0.95), ("xgboost-classes.json", 0.95), ("xgboost-two.ubj", 0.4), ("lightgbm-two.txt", 0.4),
     ("xgboost-two.ubj", 0.0), ("lightgbm-two.txt", 0.95)],
)  # fmt: skip
def test_a_truncated_file_is_refused_in_one_sentence(
    trained: _Trained, name: str, share: float, tmp_path: Path
) -> None:
    whole = (trained.folder / name).read_bytes()
    short = tmp_path / name
    short.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((InputError, ConversionError)) as refusal:
        _read(short)
    assert "\n" not in str(refusal.value)
    assert short.read_bytes() == whole[: int(share * len(whole))]


@pytest.mark.parametrize("suffix", [".json", ".ubj", ".txt", ".skops"])
def test_a_file_of_another_kind_is_told_by_its_contents(tmp_path: Path, suffix: str) -> None:
    other = tmp_path / f"other{suffix}"
    other.write_bytes(b'{"name": "a package"}')
    with pytest.raises(InputError) as refusal:
        _read(other)
    assert refusal.value.exit_code == 2


def test_a_shape_is_not_asked_for(trained: _Trained) -> None:
    with pytest.raises(ConfigError, match="how many features"):
        _read(trained.folder / "forest.skops", input_shapes=(sources.InputShape(shape=(1, 4)),))


@pytest.mark.parametrize(
    ("runtime", "words"),
    [pytest.param("litert", "TREEENSEMBLE", marks=pytest.mark.slow), ("openvino", "TreeEnsemble")],
)
def test_trees_are_refused_where_the_runtime_has_none(trained: _Trained, runtime: str, words: str) -> None:
    target = {"litert": "x86-64-litert", "openvino": "intel-nuc"}[runtime]
    options = _options(trained.folder / "xgboost-classes.json", trained.folder, target)
    _write_sets(trained)
    with pytest.raises(ConversionError, match=words):
        pipeline.build(options, Silence())


def test_a_kind_without_a_converter_is_named_with_kinds_that_have_one(trained: _Trained) -> None:
    with pytest.raises(ConversionError, match="converter for LabelSpreading, which it holds") as refusal:
        _read(trained.folder / "spread.skops")
    assert refusal.value.file == str(trained.folder / "spread.skops")
    assert "train a classifier that has one, such as LogisticRegression" in str(refusal.value.next_step)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text", r"its OneHotEncoder was trained on text \(H, K, L …\), and every feature is a number here"),
        ("text-in-a-search", r"its OneHotEncoder was trained on text \(H, K, L …\)"),
        ("text-alone", r"its OrdinalEncoder was trained on text in the column Type \("),
    ],
)
def test_an_encoder_of_text_is_told_when_the_model_is_read(trained: _Trained, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        _read(trained.folder / f"{name}.skops")
    assert refusal.value.exit_code == 2
    assert "encode that column as numbers" in str(refusal.value.next_step)


def test_features_are_called_as_in_the_training(trained: _Trained) -> None:
    names = ("sepal length", "sepal width", "petal length", "petal width")
    for file, wanted in (
        ("named.skops", names),
        ("named-trees.skops", names),
        ("named.ubj", names),
        ("named.txt", tuple(name.replace(" ", "_") for name in names)),
        ("forest.skops", ()),  # trained with arrays: whatever the libraries write then is no name
        ("xgboost-classes.json", ()),
        ("lightgbm-classes.txt", ()),
        ("lightgbm-in-a-pipeline.skops", ()),
    ):
        assert _read(trained.folder / file).features == wanted
    assert _read(trained.folder / "named.skops").classes == ("1", "2", "3")


@pytest.mark.parametrize("y", ["{:.0f}", "{:.1f}"])
def test_columns_in_another_order_than_in_the_training_are_fed_in_its_order(
    trained: _Trained, tmp_path: Path, y: str
) -> None:
    """Whatever else the table holds; classes 1, 2, 3 by name, whether they are saved as integers or floats."""
    options = _tables(trained, tmp_path, y)
    inputs = read_inputs(options, tmp_path, Silence())
    assert [each.name for each in inputs.features["features"]][:2] == ["sepal length", "sepal width"]
    assert inputs.output.labels == ("1", "2", "3")
    assert inputs.source_metric.value > 0.9


def test_a_bundle_is_verified_with_the_table_that_it_was_built_with(trained: _Trained, tmp_path: Path) -> None:
    options = _tables(trained, tmp_path, "{:.1f}")
    pipeline.build(options, Silence())
    bundle = Bundle.open(options.output / "bundle")
    found = recompute(bundle, {each.label for each in bundle.manifest.variants}, options.evaluation, None, Silence())
    assert found.checks and all(each.holds for each in found.checks)


def _tables(trained: _Trained, folder: Path, y: str) -> BuildOptions:
    """A model that knows its features' names, and tables whose columns stand otherwise and are not all features."""
    x = np.concatenate([sample["features"] for sample in trained.samples])
    labels = np.repeat([1, 2, 3], [17, 17, 16])  # every third of iris, which is sorted
    x, first = np.unique(x, axis=0, return_index=True)
    labels = labels[first]
    for name, part in (("calibration", slice(0, None, 2)), ("evaluation", slice(1, None, 2))):
        lines = [f"{row[2]},7,{row[0]},{row[3]},{row[1]},{y.format(label)}"
                 for row, label in zip(x[part], labels[part], strict=True)]  # fmt: skip
        header = "petal length,plot,sepal length,petal width,sepal width,target"
        (folder / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    return structs.replace(_options(trained.folder / "named.skops", folder, "x86-64-server"),
                           calibration=folder / "calibration.csv", evaluation=folder / "evaluation.csv")  # fmt: skip


def _write_sets(trained: _Trained) -> None:
    x = np.concatenate([sample["features"] for sample in trained.samples])
    np.savez(trained.folder / "calibration.npz", x=x[::2] + np.float32(0.01))
    np.savez(trained.folder / "evaluation.npz", x=x[1::2])


def _options(model: Path, folder: Path, target: str) -> BuildOptions:
    return BuildOptions(source=model, targets=(target,), calibration=folder / "calibration.npz",
                        evaluation=folder / "evaluation.npz", output=folder / f"{model.stem}-{target}",
                        key=folder / "author.pem", install_toolchains=True)  # fmt: skip


def _machine_failures(folder: Path) -> None:
    """ai4i 2020: five readings and the product's grade, without repeats; disjoint thirds by position."""
    path = TEST_DATA / "data" / "ai4i2020_train5000.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there: not tried")
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name.endswith("]")]
    x = np.array([[*(float(row[name]) for name in names), "LMH".index(row["Type"])] for row in rows], np.float32)
    y = np.array([int(row["Machine failure"]) for row in rows])
    first = np.sort(np.unique(x, axis=0, return_index=True)[1])
    x, y = x[first], y[first]
    part = np.arange(len(x)) % 3
    np.savez(folder / "train.npz", x=x[part == 0], y=y[part == 0], r=x[part == 0][:, 3])
    np.savez(folder / "calibration.npz", x=x[part == 1][:300])
    np.savez(folder / "evaluation.npz", x=x[part == 2], y=y[part == 2])


def test_a_forest_on_machine_failures_is_built_and_ships_in_float(tmp_path: Path) -> None:
    _machine_failures(tmp_path)
    toolchains.install("classical")
    code = (
        "import sys, numpy as np, lightgbm; d = np.load(sys.argv[1]);"
        "lightgbm.LGBMClassifier(n_estimators=30, verbose=-1).fit(d['x'], d['y']).booster_.save_model(sys.argv[2])"
    )
    model = tmp_path / "failures.txt"
    subprocess.run([named("classical").python, "-I", "-c", code, tmp_path / "train.npz", model], check=True)
    result = pipeline.build(_options(model, tmp_path, "x86-64-server"), Silence())
    assert result.verdict == "pass"
    (shipped,) = result.document.variants
    assert (shipped.precision, shipped.runtime, shipped.chosen) == ("fp32", "onnxruntime", True)
    assert shipped.metric.name == "top1"
    assert shipped.metric.value > 0.95
    assert shipped.relative_rms is not None
    assert shipped.relative_rms < CLOSE
    reasons = [each.reason for each in result.document.tried]
    assert any("no lower precision applies to it: TreeEnsembleClassifier" in reason for reason in reasons)
