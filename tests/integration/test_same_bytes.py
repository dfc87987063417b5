"""The same inputs in two processes, from two empty caches and with other hashes: the same files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeship.build import toolchains
from edgeship.build.toolchains.environment import named
from tests import models
from tests.integration.test_classical_sources import train

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", ROOT.parent / "shared" / "data"))
THREE = ("x86-64-server", "intel-nuc", "x86-64-litert")
Files = dict[tuple[str, str, str, str], tuple[str, ...]]


def onnx_net(folder: Path) -> list[str]:
    samples = models.inputs(60)
    np.savez(folder / "calibration.npz", x=samples[:30])
    np.savez(folder / "evaluation.npz", x=samples[30:])
    return [str(models.classifier(folder / "net.onnx")), "--effort", "quick", "-t", "x86-64-server", "-t", "intel-nuc"]


def keras_net(folder: Path) -> list[str]:
    for name, file, count in (("calibration", "train_2000", 200), ("evaluation", "test_1000", 300)):
        with np.load(DATA / "data" / f"cifar10jpeg_{file}.npz") as given:
            np.savez(folder / f"{name}.npz", x=given["x"][:count].astype(np.float32), y=given["y"][:count])
    model = DATA / "mlperf_tiny" / "ic_resnet8" / "pretrainedResnet.h5"
    return [str(model), *(word for target in THREE for word in ("-t", target))]


def torch_net(folder: Path) -> list[str]:
    toolchains.install("torch")
    toolchains.install("onnx2tf")
    rng = np.random.default_rng(3)
    np.savez(folder / "calibration.npz", x=rng.normal(size=(60, 1, 8, 8)).astype(np.float32))
    np.savez(folder / "evaluation.npz", x=rng.normal(size=(80, 1, 8, 8)).astype(np.float32))
    script = ROOT / "tests" / "factories" / "write_models.py"
    subprocess.run([named("torch").python, "-I", script, folder], check=True, capture_output=True)
    return [str(folder / "program.pt2"), "--effort", "quick", *(word for target in THREE for word in ("-t", target))]


def classical_net(folder: Path) -> list[str]:
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    x, places = np.unique(x.astype(np.float32), axis=0, return_index=True)  # no sample may be in both sets
    y = y[places]
    np.savez(folder / "train.npz", x=x, y=y, r=x @ [1.0, -2.0, 0.5, 3.0])
    np.savez(folder / "calibration.npz", x=x[::2])
    np.savez(folder / "evaluation.npz", x=x[1::2], y=y[1::2])
    train(folder / "train.npz", folder)
    return [str(folder / "logistic.skops"), "-t", "x86-64-server"]


def tflite_net(folder: Path) -> list[str]:
    for name, count, seed in (("calibration", 100, 1), ("evaluation", 150, 2)):
        x = np.random.default_rng(seed).uniform(0.0, 2.0 * np.pi, (count, 1)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x)
    return [str(DATA / "tflite" / "hello_world_float.tflite"), *(word for each in THREE for word in ("-t", each))]


def built(folder: Path, name: str, arguments: Sequence[str], seed: int) -> tuple[Files, str | None]:
    """Every variant's digests by what it is, and the bundle's."""
    environment = os.environ | {"EDGESHIP_CACHE": str(folder / f"cache{seed}"), "PYTHONHASHSEED": str(seed)}
    command = [
        *(sys.executable, "-m", "edgeship", "build", *arguments, "--calibration", "calibration.npz"),
        *("--evaluation", "evaluation.npz", "--key", "author.key", "-o", name, "--json", "--max-drop", "0.5"),
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 4}, done.stderr
    document = json.loads(done.stdout)
    files: Files = {}
    for each in document["variants"]:
        place = Path(each["file"]).parent
        digests = tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(place.iterdir()))
        files[each["target"], each["runtime"], each["precision"], each["scheme"]] = digests
    return files, document["bundle_digest"]


def check(folder: Path, arguments: Sequence[str]) -> None:
    """Same bytes of everything that both builds hold; measured times may turn which int8 file that is, nothing else."""
    (first, bundle), (second, again) = (built(folder, f"out{seed}", arguments, seed) for seed in (1, 4_242))
    shared = first.keys() & second.keys()
    assert {key[:3] for key in first} == {key[:3] for key in second}
    assert {key for key in first if key[2] == "fp32"} <= shared
    assert any(key[2] != "fp32" for key in shared)
    assert {key: first[key] for key in shared} == {key: second[key] for key in shared}
    if first.keys() == second.keys():
        assert bundle == again


def test_a_net_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    check(tmp_path, onnx_net(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "tflite").is_dir(), reason="needs EDGESHIP_TEST_DATA")
@pytest.mark.parametrize("prepare", [keras_net, torch_net, classical_net, tflite_net])
def test_every_kind_of_source_gives_the_same_bytes(tmp_path: Path, prepare: Callable[[Path], list[str]]) -> None:
    check(tmp_path, prepare(tmp_path))
