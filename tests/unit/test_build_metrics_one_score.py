"""One score a sample that is judged as two classes: the rule, what a lost class does, and what is still refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from edgeship.build import gate, inputs, metrics, unlabelled, verify
from edgeship.build.gate import Candidate, Limits
from edgeship.build.measure import Latency
from edgeship.build.metrics import MetricRequest, OneScore, is_one_score
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.build.verify import Truth
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import InputContract
from tests import models

N = 400


def _scores(seed: int = 0) -> tuple[tuple[int, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(N) < 0.2).astype(np.int64)
    logits = rng.normal(0, 1.5, N) + np.where(labels, 2.0, -2.0)
    return tuple(labels.tolist()), (1 / (1 + np.exp(-logits)))[:, None].astype(np.float32)


def test_a_probability_is_cut_at_a_half_and_a_logit_at_zero() -> None:
    share = np.array([[0.0], [0.5], [0.500001], [1.0]], np.float32)
    rule = OneScore.of(share)
    assert (rule.threshold, rule.columns(share).argmax(1).tolist()) == (0.5, [0, 0, 1, 1])
    assert "> 0.5" in rule.sentence
    logit = np.array([-3.0, 0.0, 0.2, 5.0], np.float32)
    rule = OneScore.of(logit)
    assert (rule.threshold, rule.columns(logit).argmax(1).tolist()) == (0.0, [0, 0, 1, 1])
    assert "> 0, else 0 (logits" in rule.sentence


def test_the_source_decides_for_its_variants() -> None:
    """A variant of a probability that overshoots is no logit, and one of a logit that stays within 0 … 1 is one."""
    labels, scores = _scores()
    rule = OneScore.of(scores)
    truth = Truth(outputs={"y": scores}, labels=labels, classes=False, metric="top1", closeness_limit=0.1,
                  task=metrics.Top(labels=labels), one_score=rule)  # fmt: skip
    found = verify.compare(truth, {"y": scores * np.float32(1.01)})
    said = scores[:, 0] * np.float32(1.01) > 0.5
    assert found.metric.value == np.mean(said == np.asarray(labels))
    assert found.confusion is not None and found.confusion.classes == 2
    assert found.differing == int((said != (scores[:, 0] > 0.5)).sum())


def test_no_number_is_never_right() -> None:
    truth = Truth(outputs={"y": np.array([[0.1], [0.9]])}, labels=(0, 1), classes=False, metric="top1",
                  closeness_limit=0.1, task=metrics.Top(labels=(0, 1)), one_score=OneScore(threshold=0.5))  # fmt: skip
    assert verify.compare(truth, {"y": np.array([[0.1], [0.9]])}).metric.value == 1.0
    assert verify.compare(truth, {"y": np.array([[np.nan], [np.nan]])}).metric.value == 0.0


def test_figures_agree_with_scikit_learn(tmp_path: Path) -> None:
    labels, scores = _scores()
    variant = np.clip(scores + np.random.default_rng(1).normal(0, 0.2, scores.shape), 0, 1)
    said, actual = variant[:, 0] > 0.5, np.asarray(labels)
    (tmp_path / "costs.csv").write_text("0,1\n25,0\n")
    rule = OneScore.of(scores, ("ok", "fault"))
    wanted = {
        "top1": np.mean(said == actual),
        "f1:1": f1_score(actual, said),
        "f1": f1_score(actual, said, average="macro"),
        "recall:fault": recall_score(actual, said),
        "worst_recall": recall_score(actual, said, average=None).min(),
        "cost": np.mean(25 * (actual & ~said) + (said & ~actual.astype(bool))),
    }
    for name, value in wanted.items():
        assert is_one_score(name, labels, scores), name
        request = MetricRequest(name=name, labels=labels, targets=None, outputs=rule.read({"y": scores}), inputs=[],
                                class_names=rule.names, cost_matrix=tmp_path / "costs.csv")  # fmt: skip
        found = metrics.choose(request).compare(rule.read({"y": scores}), rule.read({"y": variant}))
        assert found.figures.value == pytest.approx(value, abs=1e-12), name


def test_only_zeros_and_ones_beside_a_score_are_read_so() -> None:
    labels, scores = _scores()
    assert not is_one_score("f1", (0, 1, 2), scores)
    assert not is_one_score("f1", None, scores)
    assert not is_one_score("f1", labels, np.concatenate([scores, scores], axis=1))
    assert not is_one_score("f1", labels, (scores > 0.5).astype(np.int64)), "it answers with the class itself"
    assert not is_one_score("f1", labels, (scores * 255).astype(np.uint8)), "its half is not known"
    for name in ("auto", "auc", "auc:1", "top2", "agreement", "closeness", "rmse", "mine:dice"):
        assert not is_one_score(name, labels, scores), name


def test_the_rule_is_read_back_from_the_lineage_and_nothing_else_is() -> None:
    for rule in (OneScore(threshold=0.5), OneScore(threshold=0.0, names=("ok", "fault"))):
        assert OneScore.from_notes({"source_opset": "17", **rule.notes}) == rule
    assert OneScore.from_notes({"one_score_threshold": "0.7"}) is None


def test_a_variant_that_loses_the_rare_class_is_refused() -> None:
    labels, scores = _scores()
    weak = np.where(scores > 0.5, np.float32(0.49), scores)
    rule = OneScore.of(scores, ("ok", "fault"))
    truth = Truth(outputs={"y": scores}, labels=labels, classes=False, metric="top1", closeness_limit=0.1,
                  task=metrics.Top(labels=labels), class_names=rule.names, one_score=rule)  # fmt: skip
    held = {}
    for name, outputs in (("same", scores), ("weak", weak)):
        candidate = Candidate(
            target="box", runtime="onnxruntime", precision="int8", size_bytes=1, on_target=True, classes=False,
            comparison=verify.compare(truth, {"y": outputs}), latency=Latency(times_ms=(1.0,)), fp32_size_bytes=4,
            fp32_latency=Latency(times_ms=(1.0,)),
        )  # fmt: skip
        held[name] = {each.id: each for each in gate.judge(candidate, Limits(max_drop=0.05, max_relative_rms=1.0))}
    assert held["same"]["class_recall"].holds is True
    assert held["weak"]["class_recall"].holds is False
    assert "class fault is lost" in held["weak"]["class_recall"].sentence


class _Oracle:
    """Says its only input."""

    def run(self, samples: Sequence[Mapping[str, np.ndarray]], *_: object) -> list[Mapping[str, np.ndarray]]:
        return [{"y": each["x"]} for each in samples]


class _Variant:
    """Says two thirds of it."""

    def run(self, sample: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"y": sample["x"] / np.float32(1.5)}


def test_unlabelled_samples_disagree_by_class(tmp_path: Path) -> None:
    _, scores = _scores()
    np.savez(tmp_path / "field.npz", x=scores)
    np.savez(tmp_path / "calibration.npz", x=scores[:4] + np.float32(3))
    contract = InputContract(tensor="x", dtype="float32", shape=(1,), steps=())
    samples = unlabelled.open_samples(tmp_path / "field.npz", (contract,))
    calibration = inputs.data.load(tmp_path / "calibration.npz", (contract,))
    rule = OneScore.of(scores)
    field = unlabelled.read_field(samples, _Oracle(), 1, calibration, Silence(), rule)  # type: ignore[arg-type]
    assert field.source == tuple((int(score > 0.5),) for score in scores[:, 0])
    wanted = np.flatnonzero((scores[:, 0] > 0.5) != (scores[:, 0] / np.float32(1.5) > 0.5))
    assert len(wanted) > 3
    assert field.variant(_Variant(), "v", Silence()) == {int(index): (0,) for index in wanted}


def _options(folder: Path, y: np.ndarray, **more: object) -> BuildOptions:
    rng = np.random.default_rng(3)
    for name, count in (("c", 20), ("e", len(y))):
        np.savez(folder / f"{name}.npz", x=rng.normal(0, 1, (count, 16)).astype(np.float32), y=y[:count])
    return BuildOptions(source=models.one_score(folder / "net.onnx"), targets=("x86-64-server",),
                        calibration=folder / "c.npz", evaluation=folder / "e.npz", **more)  # type: ignore[arg-type] # fmt: skip


@pytest.mark.parametrize(("classes", "task"), [(3, "auto"), (2, "classification")])
def test_what_cannot_be_read_as_two_classes_is_refused_with_the_ways_out(
    tmp_path: Path, classes: int, task: str
) -> None:
    options = _options(tmp_path, np.arange(60) % classes, metric="f1:1", task=task)
    with pytest.raises(InputError, match="one entry per class") as caught:
        inputs.read(options, tmp_path / "oracle", Silence())
    for way in ("--metric auc", "--metric rmse", "MODULE:FUNCTION", "recall:1"):
        assert way in caught.value.next_step


def test_names_must_be_two(tmp_path: Path) -> None:
    options = _options(tmp_path, np.arange(60) % 2, metric="recall:b", labels=("a", "b", "c"))
    with pytest.raises(ConfigError, match="tells two classes apart"):
        inputs.read(options, tmp_path / "oracle", Silence())


def test_labels_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    found = inputs.read(
        _options(tmp_path, np.arange(60) % 2, metric="closeness", task="raw"), tmp_path / "o", Silence()
    )
    right = (found.truth.outputs["score"][:, 0] > 0.5).astype(np.int64)
    assert inputs.read(_options(tmp_path, right, metric="f1"), tmp_path / "o", Silence()).source_metric.value == 1.0
    with pytest.raises(InputError, match="not numbered as the model numbers its classes"):
        inputs.read(_options(tmp_path, 1 - right, metric="f1"), tmp_path / "o", Silence())


def test_a_metric_of_ones_own_needs_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_of_one_score.py").write_text("def near(outputs, labels):\n    return (labels < 3) * 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = inputs.read(
        _options(tmp_path, np.arange(60) % 3, metric="own_of_one_score:near"), tmp_path / "oracle", Silence()
    )
    assert (found.output.kind, found.truth.one_score, found.source_metric.value) == ("raw", None, 1.0)
