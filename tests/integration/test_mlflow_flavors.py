"""Models that each library has written, in folders as MLflow lays them out, read through that library's toolchain."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgeship.build import sources, toolchains
from edgeship.build.sources import InputShape, SourceRequest
from edgeship.build.toolchains.environment import named

CLASSICAL = """
import pickle, sys
import lightgbm, numpy, skops.io, xgboost
from sklearn.linear_model import LogisticRegression

rng = numpy.random.default_rng(3)
x = rng.normal(size=(200, 4)).astype("float32")
y = (x[:, 0] + x[:, 1] > 0).astype(int)
linear = LogisticRegression().fit(x, y)
skops.io.dump(linear, "model.skops")
pickle.dump(linear, open("model.pkl", "wb"))
booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(x, y), 3)
booster.save_model("model.ubj")
booster.save_model("other.json")
import os
os.rename("other.json", "model.xgb")
lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(x, y), 3).save_model("model.lgb")
"""
KERAS = """
import os
import keras

os.mkdir("data")
keras.Sequential([keras.Input((4,), batch_size=1), keras.layers.Dense(3)]).save("data/model.keras")
"""
TORCH = """
import os
import torch

os.mkdir("data")
net = torch.nn.Linear(4, 3).eval()
torch.export.save(torch.export.export(net, (torch.ones(1, 4),)), "data/model.pt2")
torch.jit.save(torch.jit.script(net), "data/model.pth")
"""


def _written(toolchain: str, script: str, folder: Path) -> Path:
    toolchains.install(toolchain)
    ended = subprocess.run([named(toolchain).python, "-c", script], cwd=folder, capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    return folder


def _read(folder: Path, flavors: str, **options: object) -> sources.SourceModel:
    (folder / "MLmodel").write_text(f"flavors: {flavors}\nrun_id: '7'\n", encoding="utf-8")
    source = sources.load(SourceRequest(text=str(folder), **options))  # type: ignore[arg-type]
    source.check_unchanged()
    assert source.facts["mlflow.run_id"] == "7"
    return source


def test_classical_models(tmp_path: Path) -> None:
    folder = _written("classical", CLASSICAL, tmp_path)
    cases = [
        ("{sklearn: {pickled_model: model.skops}}", "sklearn", "model.skops"),
        ("{xgboost: {data: model.ubj}}", "xgboost", "model.ubj"),
        ("{xgboost: {data: model.xgb}}", "xgboost", "model.xgb"),
        ("{lightgbm: {data: model.lgb}}", "lightgbm", "model.lgb"),
    ]
    for flavors, kind, name in cases:
        source = _read(folder, flavors)
        assert (source.format, source.toolchain) == (kind, "classical")
        assert source.files == (folder / name,)
        assert [each.shape for each in source.inputs] == [(-1, 4)]
    assert _read(folder, "{sklearn: {pickled_model: model.pkl}}", allow_pickle=True).format == "sklearn"


def test_keras_models(tmp_path: Path) -> None:
    source = _read(_written("tensorflow", KERAS, tmp_path), "{keras: {data: data}}")
    assert (source.format, source.parameters) == ("keras", 15)


@pytest.mark.parametrize("name", ["model.pt2", "model.pth"])
def test_pytorch_models(tmp_path: Path, name: str) -> None:
    folder = _written("torch", TORCH, tmp_path)
    (folder / "data" / {"model.pt2": "model.pth", "model.pth": "model.pt2"}[name]).unlink()
    shapes = () if name == "model.pt2" else (InputShape(shape=(1, 4)),)
    source = _read(folder, "{pytorch: {model_data: data}}", input_shapes=shapes)
    assert (source.format, source.parameters, source.path.name) == ("torch", 15, name)
