"""Hostile files: bombs, weights elsewhere, files too large, files that kill a runtime, a full disk, odd names."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgeship.build import data, inspection, preprocess, sources
from edgeship.build.sources import SourceRequest
from edgeship_agent.contract.errors import ConversionError, InputError
from edgeship_agent.contract.manifest import InputContract, TensorSpec
from edgeship_agent.runtime import open_engine
from tests import models
from tests.tflite_files import int8_net

HUGE_BYTES = 3_100_000_000
CONTRACTS = preprocess.fed_as_is([TensorSpec(name="x", dtype="float32", shape=(-1, 1, models.SIDE, models.SIDE))])
IMAGES = (InputContract(tensor="x", dtype="uint8", shape=(8, 8, 3), batched=True),)


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _declares_too_much(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _header((10**9, 1, 8, 8)) + bytes(64))


def _unpacks_to_too_much(path: Path) -> None:
    """An archive whose directory says that its one member is 1 TB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", _header((4, 1, 8, 8)) + bytes(1024))
        archive.filelist[0].file_size = 10**12


def _encrypted(path: Path) -> None:
    np.savez(path, x=np.zeros((4, 1, 8, 8), np.float32))
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)


def _broken_stream(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)


def _infinite(path: Path) -> None:
    x = np.zeros((4, 1, 8, 8), np.float32)
    x[2, 0, 1, 1] = np.inf
    np.savez(path, x=x)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_declares_too_much, "not a readable"),
        (_unpacks_to_too_much, "more than the memory that is free"),
        (_encrypted, "not a readable"),
        (_broken_stream, "not a readable"),
        (_infinite, "NaN or infinity"),
    ],
)
def test_a_hostile_archive_is_refused_in_words(tmp_path: Path, write: Callable[[Path], None], words: str) -> None:
    write(tmp_path / "bad.npz")
    with pytest.raises(InputError, match=words):
        data.load(tmp_path / "bad.npz", CONTRACTS)
    if write is not _infinite:  # which inspect shows
        with pytest.raises(InputError, match=words):
            inspection.inspect_path(tmp_path / "bad.npz")


def test_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    Image.new("1", (15_000, 15_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"bomb\.png: not a readable image"):
        data.load(tmp_path, IMAGES)


def _external(path: Path, location: str, columns: int = 16) -> Path:
    """A product with a matrix that lies in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, columns],
                          data_location=TensorProto.EXTERNAL)  # fmt: skip
    for key, value in (("location", location), ("offset", "0"), ("length", str(256 * columns))):
        weights.external_data.add(key=key, value=value)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 64), ("y", columns))
    ]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "down/../../secret"])
def test_weights_outside_of_the_folder_are_never_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(4096))
    (tmp_path / "model" / "down").mkdir(parents=True)
    with pytest.raises(InputError, match="outside of its folder"):
        sources.load(_external(tmp_path / "model" / "m.onnx", location))


def test_weights_that_end_too_early_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(100))
    with pytest.raises(InputError):
        sources.load(_external(tmp_path / "m.onnx", "w"))


def _weights_of_3_gb(folder: Path) -> Path:
    with (folder / "w").open("wb") as file:
        file.truncate(256 * 12_000_000)
    return _external(folder / "m.onnx", "w", columns=12_000_000)


def _one_file_of_3_gb(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(b"\x1c\0\0\0TFL3")
        os.truncate(path, HUGE_BYTES)
        return path

    return write


#: One of each reader, and each of TensorFlow's.
HUGE_SUFFIXES = (".onnx", ".tflite", ".pb", ".h5", ".keras", ".pt2", ".json")


@pytest.mark.parametrize(
    "write",
    [_weights_of_3_gb, *(_one_file_of_3_gb(f"m{suffix}") for suffix in HUGE_SUFFIXES)],
    ids=["beside", *HUGE_SUFFIXES],
)
def test_a_model_of_3_gb_is_refused_before_it_is_read(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"too large.*3\.1 GB") as caught:
        sources.toolchain_of(SourceRequest(text=str(path)))
    assert caught.value.exit_code == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_every_cut_and_every_flip_is_refused_or_read_and_nothing_else(tmp_path: Path, name: str) -> None:
    """Whatever the bytes are, a reader says so in its own words, or reads them."""
    writer = models.classifier if name.endswith("onnx") else int8_net
    whole = writer(tmp_path / "whole").read_bytes()
    rng = np.random.default_rng(7)
    path = tmp_path / name
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(content), 3000), 6):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.5 else content)
        try:
            sources.load(path)
        except (InputError, ConversionError):
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(("name", "real"), [("a.onnx", "a.tflite"), ("a.tflite", "a.onnx"), ("a.onnx", "a.npz")])
def test_a_renamed_file_is_told_by_its_contents(tmp_path: Path, name: str, real: str) -> None:
    if real.endswith("npz"):
        np.savez(tmp_path / real, x=np.zeros(4))
    else:
        (models.classifier if real.endswith("onnx") else int8_net)(tmp_path / real)
    shutil.copy(tmp_path / real, tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / name)
    with pytest.raises(InputError):
        sources.load(tmp_path / name)


def _build(folder: Path, model: str, out: str, **limits: int) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    command = [sys.executable, "-m", "edgeship", "build", model, "-t", "x86-64-server", "--effort", "quick"]
    command += ["--calibration", "daten é.npz", "--evaluation", "prüfung.npz", "--key", "author.key", "-o", out]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
                          preexec_fn=limit)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A model and its data under names of every kind; nothing of them may change."""
    models.classifier(tmp_path / "mödel 模型.onnx")
    (tmp_path / "link.onnx").symlink_to("mödel 模型.onnx")
    rng = np.random.default_rng(1)
    engine = open_engine("onnxruntime", tmp_path / "mödel 模型.onnx")
    for name, count in (("daten é.npz", 60), ("prüfung.npz", 120)):
        x = rng.normal(0, 1, (count, 1, models.SIDE, models.SIDE)).astype(np.float32)
        said = [int(engine.run([each[None]])[0].argmax()) for each in x]
        commonest = max(set(said), key=said.count)
        np.savez(tmp_path / name, x=x, y=np.full(count, commonest))  # one class: a data set may be so
    engine.close()
    before = _digests(tmp_path)
    yield tmp_path
    after = _digests(tmp_path)
    assert {name: after[name] for name in before} == before


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_names_with_spaces_and_letters_of_every_kind(folder: Path) -> None:
    done = _build(folder, "link.onnx", "aus gabe é")
    assert done.returncode == 0, done.stderr
    assert (folder / "aus gabe é" / "bundle" / "index.json").is_file()
    assert "edgeship verify 'aus gabe é/bundle'" in done.stderr


@pytest.mark.parametrize("limit_bytes", [10_000, 60_000])
def test_a_limit_on_file_sizes_ends_in_a_sentence(folder: Path, limit_bytes: int) -> None:
    done = _build(folder, "mödel 模型.onnx", "out", RLIMIT_FSIZE=limit_bytes)
    assert "error: cannot be written: File too large" in done.stderr
    assert_refused_whole(done, folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted as root only: a full disk was not tried")
@pytest.mark.parametrize("size_kb", [40, 400])
def test_a_full_disk_ends_in_a_sentence(folder: Path, size_kb: int) -> None:
    (folder / "small").mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder / "small")]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here: a full disk was not tried")
    try:
        done = _build(folder, "mödel 模型.onnx", "small/out")
        assert "no space is left on this disk" in done.stderr
        assert_refused_whole(done, folder / "small")
    finally:
        subprocess.run(["umount", str(folder / "small")], check=True)


def assert_refused_whole(done: subprocess.CompletedProcess[str], place: Path) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert "next:" in done.stderr
    assert not done.stdout
    left = [path.name for path in place.iterdir() if path.name.startswith((".out", "out"))]
    assert not left, "nothing half-written"


def test_a_folder_that_is_a_file_is_said(folder: Path) -> None:
    (folder / "taken").write_text("mine")
    done = _build(folder, "mödel 模型.onnx", "taken/out")
    assert done.returncode == 2, done.stderr
    assert "taken/out: cannot be written" in done.stderr
    assert (folder / "taken").read_text() == "mine"
