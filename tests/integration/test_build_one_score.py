"""A binary classifier with a single score, judged by metrics of classes: built, shipped as a score, and recomputed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import f1_score, recall_score

from edgeship.build import pipeline
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.bundle import Bundle
from tests import models
from tests.integration.test_build_pipeline import TARGET

COUNT = 900


class Listener(Silence):
    """Keeps what is said of the metric."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        if label == "metric":
            self.lines.append(text)


class Work:
    """A model, its data, and what it says to it."""

    def __init__(self, folder: Path, *, logit: bool = False) -> None:
        self.folder = folder
        self.model = models.one_score(folder / "net.onnx", logit=logit)
        self.threshold = 0.0 if logit else 0.5
        self.target = folder / "server.toml"
        self.target.write_text(TARGET.format(name="server", base="x86-64-server", more=""))
        rng = np.random.default_rng(4)
        x = rng.normal(0, 1, (COUNT, 16)).astype(np.float32)
        self.labels = (self.scores(self.model, x) > self.threshold) ^ (rng.random(COUNT) < 0.02)
        np.savez(folder / "calibration.npz", x=rng.normal(0, 1, (120, 16)).astype(np.float32))
        np.savez(folder / "evaluation.npz", x=x, y=self.labels.astype(np.int64))
        self.x = x

    @staticmethod
    def scores(model: Path, x: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(str(model))
        return np.concatenate([session.run(None, {"x": each[None]})[0][:, 0] for each in x])

    def build(self, metric: str, said: Listener | None = None, **more: object) -> dict[str, Any]:
        options = BuildOptions(
            source=self.model, targets=(str(self.target),), calibration=self.folder / "calibration.npz",
            evaluation=self.folder / "evaluation.npz", output=self.folder / "out", key=self.folder / "author.key",
            max_drop=0.1, metric=metric, **more,
        )  # type: ignore[arg-type] # fmt: skip
        pipeline.build(options, said or Silence())
        return json.loads((self.folder / "out" / "build.json").read_text())

    def verify(self, *more: str | Path) -> list[str]:
        command = [sys.executable, "-m", "edgeship", "verify", self.folder / "out", "--json", "--evaluation",
                   self.folder / "evaluation.npz", *more]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return [each["claim"] for each in json.loads(done.stdout)["claims"] if "from the data" in each["claim"]]


@pytest.mark.parametrize("logit", [False, True])
def test_f1_of_the_rare_class_is_that_of_numpy_and_is_recomputed(tmp_path: Path, logit: bool) -> None:
    work, said = Work(tmp_path, logit=logit), Listener()
    build = work.build("f1:1", said, labels=("ok", "fault"))
    rule = f"one score is read as two classes: 1 where it is > {work.threshold:g}, else 0"
    assert [line.startswith(rule) for line in said.lines] == [True]
    assert any(note.startswith(rule) for note in build["notes"])
    assert rule.replace(">", "&gt;") in (tmp_path / "out" / "report.html").read_text()
    source = work.scores(work.model, work.x) > work.threshold
    assert build["source"]["metric"]["value"] == pytest.approx(f1_score(work.labels, source), abs=1e-9)
    int8 = next(each for each in build["variants"] if each["precision"] == "int8")
    answered = work.scores(Path(int8["file"]), work.x) > work.threshold
    assert int8["metric"]["value"] == pytest.approx(f1_score(work.labels, answered), abs=1e-9)
    recalls = {each["label"]: each["value"] for each in int8["class_recalls"]}
    assert recalls["fault"] == pytest.approx(recall_score(work.labels, answered))
    assert "class_recall" in {each["id"] for each in build["gates"] if each["precision"] == "int8"}
    output = Bundle.open(tmp_path / "out" / "bundle").manifest.output
    assert (output.kind, output.labels, output.thresholds) == ("raw", (), {})
    for more in ((), ("--source", work.model)):
        claims = work.verify(*more)
        assert any(each.startswith("f1:1 recomputed") for each in claims)
        assert all(each.endswith("the same") for each in claims)


def test_a_class_by_its_name_is_recomputed(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.build("recall:fault", labels=("ok", "fault"))
    assert any(each.startswith("recall:fault recomputed") and each.endswith("the same") for each in work.verify())


def test_cost_is_that_of_numpy(tmp_path: Path) -> None:
    work = Work(tmp_path)
    (tmp_path / "costs.csv").write_text("0,1\n25,0\n")
    build = work.build("cost", cost_matrix=tmp_path / "costs.csv")
    int8 = next(each for each in build["variants"] if each["precision"] == "int8")
    for model, found in ((work.model, build["source"]["metric"]), (Path(int8["file"]), int8["metric"])):
        said = work.scores(model, work.x) > 0.5
        assert found["value"] == pytest.approx(np.mean(25 * (work.labels & ~said) + 1.0 * (said & ~work.labels)))
