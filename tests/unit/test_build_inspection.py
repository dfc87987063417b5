"""``inspect``: models, data and bundles are told apart, damaged ones refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from edgeship.build.inspection import inspect_path
from edgeship_agent.contract.errors import ContractError, InputError
from tests import bundles

DIGITS = Path(__file__).resolve().parents[2] / "src/edgeship/demo/models/digits-v1.onnx"


def test_onnx() -> None:
    found = inspect_path(DIGITS)
    assert found.kind == "onnx"
    assert [(each.role, each.name, each.dtype, each.shape) for each in found.tensors] == [
        ("input", "image", "float32", ("batch", 1, 8, 8)),
        ("output", "logits", "float32", ("batch", 10)),
    ]
    assert found.operators["Conv"] == 2
    assert 0 < found.weight_bytes < found.size_bytes


def test_openvino(tmp_path: Path) -> None:
    import openvino

    path = tmp_path / "model.xml"
    openvino.save_model(openvino.convert_model(DIGITS), path, compress_to_fp16=False)
    found = inspect_path(path)
    assert (found.kind, found.operators["Convolution"]) == ("openvino", 2)
    assert found.tensors[0].shape == ("N", 1, 8, 8)
    path.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match="weights are missing"):
        inspect_path(path)


def test_data(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    x[0, 0] = np.nan
    np.savez(tmp_path / "d.npz", x=x, y=np.array([1, 1, 2]))
    found = inspect_path(tmp_path / "d.npz")
    array = found.tensors[0]
    assert (array.name, array.shape, array.low, array.high, array.not_finite) == ("x", (3, 4), 1.0, 11.0, 1)
    assert found.classes == {"1": 2, "2": 1}
    np.save(tmp_path / "d.npy", x)
    assert inspect_path(tmp_path / "d.npy").tensors[0].shape == (3, 4)


def test_images(tmp_path: Path) -> None:
    for name, count in (("cat", 2), ("dog", 1)):
        (tmp_path / name).mkdir()
        for index in range(count):
            (tmp_path / name / f"{index}.png").write_bytes(b"x")
    assert inspect_path(tmp_path).classes == {"cat": 2, "dog": 1}


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [("t.csv", "a,b,kind\n1,0.5,cat\n2,,dog\n3,1.5,cat\n", "kind"),
     ("t.tsv", "a\tb\tlabel\n1\t0.5\tcat\n2\t\tdog\n3\t1.5\tcat\n", "label")],
)  # fmt: skip
def test_tables_are_read_as_a_build_reads_them(tmp_path: Path, name: str, text: str, label: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = inspect_path(tmp_path / name)
    assert (found.kind, found.facts["samples"], found.facts["columns"], found.facts["label"]) == (
        "data",
        "3",
        "3",
        label,
    )
    assert found.classes == {"cat": 2, "dog": 1}
    assert [each.dtype for each in found.tensors] == ["int64", "float64", "text"]
    columns = [(each.role, each.name, each.low, each.high, each.not_finite) for each in found.tensors]
    assert columns == [
        ("column", "a", 1, 3, 0), ("column", "b", 0.5, 1.5, 1), ("column", label, None, None, 0)
    ]  # fmt: skip


def test_a_table_without_names_and_without_a_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,2\n3,4\n", encoding="utf-8")
    found = inspect_path(tmp_path / "t.csv")
    assert found.facts["label"].startswith("none: ")
    assert found.facts["first row"].startswith("a sample")
    (tmp_path / "t.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="empty"):
        inspect_path(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("files", "kind", "samples", "classes"),
    [(("hum/1.wav", "hum/2.wav", "knock/1.wav", "__MACOSX/1.wav"), "data", "3 (.wav)", {"hum": 2, "knock": 1}),
     (("a/1.npy", "b/deep/2.npy"), "data", "2 (.npy)", {"a": 1, "b": 1}),
     (("1.png", "2.jpg"), "images", "2 (.jpg, .png)", {})],
)  # fmt: skip
def test_folders_of_samples(
    tmp_path: Path, files: tuple[str, ...], kind: str, samples: str, classes: dict[str, int]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = inspect_path(tmp_path)
    assert (found.kind, found.facts["samples"], found.classes) == (kind, samples, classes)
    assert bool(found.facts["labels"]) == (not classes)


def test_bundle_and_the_folder_of_a_build(tmp_path: Path) -> None:
    written = bundles.written(tmp_path)
    for path in (tmp_path, written.directory):
        found = inspect_path(path)
        assert (found.kind, found.digest, found.facts["model"]) == ("bundle", written.digest, "digits 1.0")
    (written.directory / "index.json").write_text("{")
    with pytest.raises(ContractError):
        inspect_path(written.directory)


def test_damaged_and_unknown_files(tmp_path: Path) -> None:
    wrong = {
        "empty.onnx": b"",
        "text.onnx": b"hello, world",
        "short.tflite": b"TFL3",
        "bad.tflite": b"\x1c\0\0\0TFL3" + bytes(40),
        "cut.npz": b"PK\x03\x04",
        "objects.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128)
        + pickle.dumps(["x"]),
        "photo.heic": b"x",
    }
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            inspect_path(tmp_path / name)
        assert caught.value.exit_code == 2
    with pytest.raises(InputError, match="no such file"):
        inspect_path(tmp_path / "missing.onnx")
    (tmp_path / "objects.npy").unlink()  # what a folder of samples may hold
    with pytest.raises(InputError, match="neither a bundle") as refusal:
        inspect_path(tmp_path)
    assert refusal.value.next_step


def test_what_may_not_be_read_is_refused_as_a_build_refuses_it(tmp_path: Path) -> None:
    """A kind that is known: the reason is the pickle, not the suffix."""
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04}.")
    with pytest.raises(InputError, match="a pickle can run any code") as refusal:
        inspect_path(tmp_path / "model.pkl")
    assert "edgeship build model.pkl … --allow-pickle" in str(refusal.value.next_step), "inspect has no such option"
