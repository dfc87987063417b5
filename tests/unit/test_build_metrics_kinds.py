"""Every metric against an independent reckoning, and its paired drop both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, mean_squared_error, recall_score, roc_auc_score, top_k_accuracy_score

from edgeship.build import metrics
from edgeship.build.metrics import MetricRequest, files
from edgeship.build.metrics.average_precision import THRESHOLDS, Objects, average_precision, curve
from edgeship.build.metrics.means import mean_scores
from edgeship.build.metrics.objects import Asked, read_objects
from edgeship.build.metrics.user import load
from edgeship.statistics import clopper_pearson
from edgeship_agent.contract.errors import ConfigError, EdgeshipError, InputError
from edgeship_agent.processing.detection import Decoding, Detections, corners, detect

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 4
N = 400


def _data(seed: int = 0, *, noise: float = 0.6) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, size=N, p=[0.5, 0.3, 0.15, 0.05])
    source = rng.normal(0, 1, (N, CLASSES)) + 2.0 * np.eye(CLASSES)[labels]
    return tuple(map(int, labels)), source, source + rng.normal(0, noise, source.shape)


def _request(name: str, **changes: object) -> MetricRequest:
    labels, source, _ = _data()
    known = {"labels": labels, "targets": None, "outputs": {"y": source}, "inputs": [{"x": np.zeros((1, 3))}] * N}
    return MetricRequest(name=name, **{**known, **changes})


def _figures(name: str, **changes: object) -> metrics.Paired:
    _, source, variant = _data()
    return metrics.choose(_request(name, **changes)).compare({"y": source}, {"y": variant})


def test_top_k_f1_recall_and_auc_agree_with_scikit_learn() -> None:
    labels, _, variant = _data()
    said = variant.argmax(1)
    softmax = np.exp(variant) / np.exp(variant).sum(1, keepdims=True)
    wanted = {
        "top2": top_k_accuracy_score(labels, variant, k=2),
        "f1": f1_score(labels, said, average="macro"),
        "f1:2": f1_score(labels, said, average=None)[2],
        "recall:3": recall_score(labels, said, average=None)[3],
        "worst_recall": recall_score(labels, said, average=None).min(),
        "auc:1": roc_auc_score(np.asarray(labels) == 1, softmax[:, 1]),
    }
    for name, value in wanted.items():
        found = _figures(name, softmax=True).figures
        assert (found.name, found.value) == (name, pytest.approx(value, abs=1e-12)), name
        assert found.low <= found.value <= found.high
        assert found.drop_low <= found.drop <= found.drop_high
        assert found.drop == pytest.approx((found.source or 0.0) - found.value, abs=1e-12)


def test_errors_are_relative_to_the_sources_and_noise_is_in_decibels() -> None:
    _, source, variant = _data()
    targets = source + np.random.default_rng(3).normal(0, 0.2, source.shape)
    before, after = (mean_squared_error(targets, each) for each in (source, variant))
    found = {name: _figures(name, labels=None, targets=targets).figures for name in ("rmse", "mae", "snr")}
    assert found["rmse"].value == pytest.approx(np.sqrt(after))
    assert found["rmse"].drop == pytest.approx(np.sqrt(after / before) - 1.0)
    assert found["mae"].drop == pytest.approx(np.abs(variant - targets).mean() / np.abs(source - targets).mean() - 1)
    assert found["snr"].value == pytest.approx(10 * np.log10(np.mean(targets**2) / after))
    assert (found["snr"].drop, found["snr"].drop_unit) == (pytest.approx(10 * np.log10(after / before)), "dB")


@pytest.mark.parametrize("name", ["rmse", "mae", "snr"])
def test_the_sources_own_answers_are_no_targets(name: str) -> None:
    _, source, _ = _data()
    for targets in (source, source.astype(np.float32) * np.float32(1 + 1e-6)):
        with pytest.raises(InputError, match="its own answers"):
            _figures(name, labels=None, targets=targets)


def test_cost_counts_each_confusion_and_a_better_variant_has_a_negative_drop(tmp_path: Path) -> None:
    table = tmp_path / "costs.csv"
    table.write_text("right\\said,c,a,b,d\nc,0,2,2,2\na,1,0,1,1\nb,1,1,0,1\nd,9,9,9,0\n", encoding="utf-8")
    labels, source, variant = _data()
    named = {"cost_matrix": table, "class_names": ("a", "b", "c", "d")}
    costs = np.array([[0, 1, 1, 1], [1, 0, 1, 1], [2, 2, 0, 2], [9, 9, 9, 0]], float)
    found = _figures("cost", **named).figures
    assert found.value == pytest.approx(costs[labels, variant.argmax(1)].mean())
    assert found.drop == pytest.approx((costs[labels, variant.argmax(1)] - costs[labels, source.argmax(1)]).mean())
    back = metrics.choose(_request("cost", **named)).compare({"y": variant}, {"y": source}).figures
    assert (back.drop, back.drop_low, back.drop_high) == pytest.approx(
        (-found.drop, -found.drop_high, -found.drop_low), abs=1e-2
    )  # two other draws


@pytest.mark.parametrize(
    "matrix", ["[[0,0,0,0],[0,0,0,0],[0,0,0,0],[0,0,0,0]]", "[[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]"]
)
def test_costs_that_no_error_has_are_refused(matrix: str, tmp_path: Path) -> None:
    table = tmp_path / "costs.toml"
    table.write_text(f"[cost]\nmatrix = {matrix}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no error can cost anything") as refusal:
        _figures("cost", cost_matrix=table)
    assert (refusal.value.exit_code, refusal.value.file) == (2, str(table))


@pytest.mark.parametrize("name", ["f1", "f1:3", "worst_recall", "auc:3", "cost"])
def test_a_variant_that_never_differs_is_not_proven_by_few_samples(name: str, tmp_path: Path) -> None:
    table = tmp_path / "costs.toml"
    table.write_text("[cost]\nmatrix = [[0,1,1,1],[1,0,1,1],[1,1,0,1],[1,1,1,0]]\n", encoding="utf-8")
    labels, source, _ = _data()
    rows = [index for index, label in enumerate(labels) if label == 3][:8]
    rows += [index for index, label in enumerate(labels) if label != 3][:30]
    request = _request(name, labels=tuple(labels[row] for row in rows), outputs={"y": source[rows]}, cost_matrix=table)
    found = metrics.choose(request).compare({"y": source[rows]}, {"y": source[rows]}).figures
    assert found.drop == 0.0
    assert found.drop_high > 0.02


def test_a_mean_of_scores_of_zero_and_one_has_the_exact_interval() -> None:
    right = np.arange(300) >= 21
    found = mean_scores("share", right.astype(float), right.astype(float)).figures
    exact = clopper_pearson(279, 300)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=2e-3)


def test_an_autoencoder_is_judged_by_its_reconstruction_error() -> None:
    rng = np.random.default_rng(4)
    labels = tuple(int(label) for label in rng.random(200) < 0.3)
    inputs = rng.normal(0, 1, (200, 6))
    rebuilt = inputs + rng.normal(0, 0.1, inputs.shape) * (1 + 2 * np.asarray(labels))[:, None]
    metric = metrics.choose(
        _request("auc", labels=labels, outputs={"y": rebuilt}, inputs=[{"x": row[None]} for row in inputs])
    )
    found = metric.compare({"y": rebuilt}, {"y": rebuilt + 0.01}).figures
    assert found.source == pytest.approx(roc_auc_score(labels, ((rebuilt - inputs) ** 2).mean(1)))


def test_nan_is_never_right_and_no_figure_becomes_nan() -> None:
    _, source, _ = _data()
    broken = source.copy()
    broken[:200] = np.nan
    for name in ("top1", "f1", "auc:1", "recall:0"):
        found = metrics.choose(_request(name)).compare({"y": source}, {"y": broken}).figures
        assert found.drop_low > 0.1, name
        assert np.isfinite([found.value, found.low, found.high, found.drop_high]).all()


# Average precision of the same detections by pycocotools 2.0.11: COCOeval, bbox, area all, 100 detections.
COCO = {"map": 0.17918419245770728, "map50": 0.4891926211851954}


def test_average_precision_is_that_of_the_reference_implementation() -> None:
    rows = json.loads((GOLDEN / "coco_detections.json").read_text())
    truth = read_objects(GOLDEN / "coco_truth.json", Asked(decoding=Decoding(boxes="b", scores="s"), count=12)).objects
    frame = Decoding(boxes="", scores="", format="xywh", width=100, height=80)
    found = []
    for image in range(1, 13):
        mine = sorted((row for row in rows if row["image_id"] == image), key=lambda row: -row["score"])
        boxes = np.asarray([row["bbox"] for row in mine], float).reshape(-1, 4)
        found.append(
            Detections(boxes=corners(boxes, frame), scores=np.asarray([row["score"] for row in mine]),
                       classes=np.asarray([row["category_id"] - 1 for row in mine], int))
        )  # fmt: skip
    weights = np.append(np.ones(12), 0.0)[None]
    for name, value in COCO.items():
        curves = [curve(found, truth, index, at) for index in (0, 1) for at in THRESHOLDS[name]]
        mean = np.mean([average_precision(each, weights, seen=False)[0] for each in curves])
        assert mean == pytest.approx(value, abs=1e-12)


def _scene(tmp_path: Path) -> tuple[MetricRequest, np.ndarray]:
    """Eight images with one object each, found by a joined head [N, 6 columns, boxes] in pixels of 100 × 50."""
    rng = np.random.default_rng(1)
    heads = np.zeros((8, 6, 3))
    labels = tmp_path / "labels"
    labels.mkdir(exist_ok=True)
    for image in range(8):
        x, y, kind = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), image % 2
        (labels / f"{image:02}.txt").write_text(f"{kind} {x} {y} 0.2 0.3\n", encoding="utf-8")
        heads[image, :4, 0] = (100 * x, 50 * y, 20, 15)
        heads[image, :4, 1] = (100 * x + 1, 50 * y, 20, 15)  # suppressed
        heads[image, 4 + kind, :2] = (0.9, 0.8)
    toml = tmp_path / "post.toml"
    toml.write_text(
        '[detection]\nboxes = "head"\nscores = "head"\nscore_columns = [4, 6]\nchannels_first = true\n'
        'format = "cxcywh"\nwidth = 100\nheight = 50\n',
        encoding="utf-8",
    )
    return _request("map50", outputs={"head": heads}, postprocess=toml, ground_truth=labels), heads


def test_a_detector_that_loses_its_scores_is_refused_by_map(tmp_path: Path) -> None:
    request, heads = _scene(tmp_path)
    metric = metrics.choose(request)
    same = metric.compare({"head": heads}, {"head": heads}).figures
    assert (same.source, same.value, same.drop) == (1.0, 1.0, 0.0)
    assert same.drop_high > 0.01, "eight images prove nothing"
    dead = heads.copy()
    dead[:, 4:] = 0.0
    lost = metric.compare({"head": heads}, {"head": dead}).figures
    assert (lost.value, lost.drop) == (0.0, 1.0)
    assert lost.drop_low > 0.1


@pytest.mark.parametrize(("right", "wrong"), [("width = 100", "width = 1"), ('"cxcywh"', '"xyxy"')])
def test_a_decoding_with_which_the_source_finds_nothing_is_refused(tmp_path: Path, right: str, wrong: str) -> None:
    """Else nothing could be lost, and every variant would pass."""
    request, _ = _scene(tmp_path)
    assert request.postprocess is not None
    text = request.postprocess.read_text(encoding="utf-8")
    assert right in text
    request.postprocess.write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(InputError, match="finds next to nothing") as refusal:
        metrics.choose(request)
    assert "channels_first" in str(refusal.value.next_step)


def test_suppression_is_within_classes_or_over_all() -> None:
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9], [0.0, 0.0, 0.2, 0.2]]], float)
    scores = np.array([[[0.9, 0.0], [0.0, 0.8], [0.7, 0.0]]])
    decoding = Decoding(boxes="b", scores="s")
    outputs = {"b": boxes, "s": scores}
    assert len(detect(outputs, decoding)[0].scores) == 3
    assert len(detect(outputs, Decoding(boxes="b", scores="s", class_aware=False))[0].scores) == 2
    background = detect(outputs, Decoding(boxes="b", scores="s", background=0))[0]
    assert background.classes.tolist() == [1]


@pytest.mark.parametrize("channels_first", [True, False])
def test_boxes_that_are_passed_over_change_nothing(channels_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    raw = np.concatenate([rng.uniform(0, 90, (3, 2, 400)), rng.uniform(5, 20, (3, 2, 400)),
                          rng.beta(0.3, 6, (3, 5, 400))], axis=1).astype(np.float32)  # fmt: skip
    raw[0, 5, 7], raw[1, 4, 9], raw[2, 4:] = np.nan, 0.2, 0.1  # the last image holds nothing
    head = raw if channels_first else raw.transpose(0, 2, 1)
    decoding = Decoding(boxes="y", scores="y", score_columns=(4, 9), channels_first=channels_first, format="cxcywh",
                        score_threshold=0.2, max_detections=400)  # fmt: skip
    quick = detect({"y": head}, decoding)
    monkeypatch.setattr("edgeship_agent.processing.detection._worth_reading", lambda boxes, scores, _: (boxes, scores))
    for one, other in zip(quick, detect({"y": head}, decoding), strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.classes, other.classes)
    assert [len(each.scores) > 10 for each in quick] == [True, True, False]


def test_an_excused_detection_is_neither_right_nor_wrong() -> None:
    box = np.array([[0.1, 0.1, 0.2, 0.2]])
    crowd = Objects(boxes=np.array([[0.0, 0.0, 0.5, 0.5]]), classes=np.array([0]), crowd=np.array([True]))
    one = Detections(boxes=box, scores=np.array([0.9]), classes=np.array([0]))
    assert curve([one], [crowd], 0, 0.5).right.size == 0


def test_a_users_function_gives_scores_or_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(
        "import numpy as np\n"
        "def scores(outputs, labels):\n    return (outputs['y'].argmax(1) == labels).astype(float)\n"
        "def share(outputs, labels):\n    return float(scores(outputs, labels).mean())\n"
        "def broken(outputs, labels):\n    return outputs['y'][0]\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    labels, _, variant = _data()
    right = float((variant.argmax(1) == labels).mean())
    each, whole = (_figures(f"own_metric:{name}").figures for name in ("scores", "share"))
    assert each.value == whole.value == pytest.approx(right)
    assert (each.drop_low, each.drop_high) == pytest.approx((whole.drop_low, whole.drop_high), abs=0.01)
    with pytest.raises(InputError, match="returns something else"):
        _figures("own_metric:broken")
    with pytest.raises(ConfigError, match="cannot be imported"):
        load("own_metric:missing")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("top1", {"labels": None}, "no labels"),
        ("top4", {}, "among so many classes"),
        ("recall:nobody", {}, "not a class of the model"),
        ("recall:3", {"labels": (0,) * N}, "no sample of this class"),
        ("auc", {"labels": (0,) * N}, "both kinds"),
        ("auc", {}, "two kinds"),
        ("auc", {"labels": (0, 1) * (N // 2)}, "nor a reconstruction"),
        ("rmse", {}, "no targets"),
        ("rmse", {"targets": np.zeros((N, 2))}, "another shape"),
        ("cost", {}, "what does an error cost"),
        ("map", {}, "needs one more file"),
        ("accuracy", {}, "unknown metric"),
    ],
)
def test_what_a_metric_lacks_is_said(name: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(EdgeshipError, match=words) as refusal:
        metrics.choose(_request(name, **changes))
    assert refusal.value.exit_code == 2
    assert refusal.value.next_step


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cost]\nmatrix = [[0, 1], [1, 0]]\n", "not one cost for each pair"),
        ("[cost]\nmatrix = [[0,1,1,1],[1,0,1,1],[1,1,0,1],[1,1,-1,0]]\n", "negative"),
        ("[cost]\nmatrix = 3\n", "Expected `array`"),
        ("[cost\n", "cannot be read"),
        (
            '[cost]\nmatrix = [[0,1,1,1],[1,0,1,1],[1,1,0,1],[1,1,1,0]]\nclasses = ["a","b","c","x"]\n',
            "not the classes",
        ),
    ],
)
def test_a_cost_file_that_cannot_be_followed_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "costs.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        files.read_costs(path, CLASSES, ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('boxes = "nowhere"', "unknown value"),
        ('format = "yxxy"', "unknown value"),
        ("score_columns = [4, 9]", "not columns"),
        ("box_columns = [0, 3]", "not columns"),
        ("iou_threshold = 50", "not a share"),
        ("background = 7", "not in the output"),
        ("nms = true", "unknown field"),
    ],
)
def test_a_decoding_that_does_not_fit_is_refused(tmp_path: Path, change: str, words: str) -> None:
    lines = {"boxes": '"head"', "scores": '"head"', "channels_first": "true"}
    key, _, value = change.partition(" = ")
    path = tmp_path / "post.toml"
    text = "\n".join(f"{name} = {given}" for name, given in {**lines, key: value}.items())
    path.write_text(f"[detection]\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        files.read_decoding(path, {"head": np.zeros((2, 6, 3))})


def _own_numbers(seed: int = 1) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Labels, and a class's own number a sample by source and variant, as a net with its own argmax answers: [N, 1]."""
    labels, source, variant = _data(seed)
    return labels, source.argmax(1)[:, None], variant.argmax(1)[:, None]


def test_a_net_that_answers_with_a_classs_number_is_judged_like_its_scores() -> None:
    labels, source, variant = _own_numbers()
    wanted = {
        "f1": f1_score(labels, variant[:, 0], average="macro"),
        "f1:2": f1_score(labels, variant[:, 0], average=None)[2],
        "recall:3": recall_score(labels, variant[:, 0], average=None)[3],
        "worst_recall": recall_score(labels, variant[:, 0], average=None).min(),
        "agreement": float((source == variant).mean()),
    }
    for name, value in wanted.items():
        metric = metrics.choose(_request(name, labels=labels, outputs={"y": source}))
        assert metric.compare({"y": source}, {"y": variant}).figures.value == pytest.approx(value, abs=1e-12), name


def test_a_number_of_no_class_is_wrong_and_breaks_nothing(tmp_path: Path) -> None:
    labels, source, _ = _own_numbers()
    right = np.asarray(labels)[:, None]
    wild = np.where(np.arange(N)[:, None] % 2, right, np.where(np.arange(N)[:, None] % 4, 2**40, -3))
    path = tmp_path / "costs.csv"
    path.write_text("right,a,b,c,d\na,0,1,1,1\nb,1,0,1,1\nc,1,1,0,1\nd,1,1,1,0\n")
    for name in ("f1", "worst_recall", "cost"):
        named = {"cost_matrix": path, "class_names": ("a", "b", "c", "d")}
        metric = metrics.choose(_request(name, labels=labels, outputs={"y": source}, **named))
        found = metric.compare({"y": right}, {"y": wild}).figures
        assert found.drop > 0.3, name


@pytest.mark.parametrize("name", ["agreement", "top1"])
def test_one_score_a_sample_is_no_class_that_could_agree(name: str) -> None:
    scores = np.linspace(0.0, 1.0, N)[:, None]
    with pytest.raises(ConfigError, match="one score a sample names no class"):
        metrics.choose(_request(name, labels=(0,) * N, outputs={"y": scores}))


@pytest.mark.parametrize("name", ["rmse", "mae", "snr"])
def test_targets_whose_axes_lie_otherwise_are_refused(name: str) -> None:
    images = np.random.default_rng(0).normal(0, 1, (N, 2, 5, 7))
    for fits in (images, images.reshape(N, -1), images[:, None]):
        assert metrics.choose(_request(name, labels=None, targets=fits, outputs={"y": images + 0.1}))
    with pytest.raises(InputError, match="another shape"):
        metrics.choose(_request(name, labels=None, targets=np.moveaxis(images, 1, 3), outputs={"y": images + 0.1}))


@pytest.mark.parametrize("features", [1, 2])
def test_few_features_do_not_make_a_classifier_an_autoencoder(features: int) -> None:
    labels = tuple(int(each) for each in np.arange(N) % 2)
    scores = np.stack([1.0 - np.asarray(labels), np.asarray(labels)], axis=1)[:, -features:]
    inputs = [{"x": np.full((1, features), value)} for value in np.random.default_rng(0).normal(0, 1, N)]
    metric = metrics.choose(_request("auc", labels=labels, outputs={"y": scores}, inputs=inputs))
    assert metric.compare({"y": scores}, {"y": scores}).figures.value == 1.0


def test_a_class_number_has_no_area_under_a_curve() -> None:
    labels, source, _ = _own_numbers()
    with pytest.raises(ConfigError, match="not with scores"):
        metrics.choose(_request("auc:1", labels=labels, outputs={"y": source}))
