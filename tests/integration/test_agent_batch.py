"""``edgeship-agent infer BUNDLE INPUT -o OUT``: every kind of input, bad rows, and runs that are killed."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeship_agent.contract.manifest import Feature
from edgeship_agent.patterns.model import open_model
from edgeship_agent.patterns.rows import columns_of, open_rows
from edgeship_agent.serving.library import LocalModel
from tests.agents import make_bundle
from tests.conformance.slots import classifier_onnx, images, make_slot

PROGRAM = [sys.executable, "-W", "error", "-m", "edgeship_agent.cli", "infer"]


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slot")
    return make_slot(folder / "slot", classifier_onnx(folder / "model.onnx"))


@pytest.fixture(scope="module")
def expected(slot: Path) -> list[np.ndarray]:
    with LocalModel.open(slot) as model:
        return [model.predict(sample).outputs["scores"] for sample in images(40)]


def infer(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def folder_of(where: Path) -> Path:
    where.mkdir()
    for index, sample in enumerate(images(40)):
        np.save(where / f"{index:03d}.npy", sample["image"])
    return where


def csv_of(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *(f"image_{index}" for index in range(64))])
        writer.writerows(
            [f"n{index}", *sample["image"].reshape(-1).tolist()] for index, sample in enumerate(images(40))
        )
    return path


def npz_of(path: Path) -> Path:
    np.savez(path, x=np.stack([sample["image"] for sample in images(40)]))
    return path


@pytest.mark.parametrize(("make", "name"), [(folder_of, "in"), (csv_of, "in.csv"), (npz_of, "in.npz")])
def test_every_input_gives_what_serving_gives(make, name, slot: Path, expected, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = infer(slot, make(tmp_path / name), "-o", out, "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["rows"], summary["bad"]) == (0, 40, 0), done.stderr
    rows = lines(out)
    assert [row["row"] for row in rows] == list(range(40))
    for row, scores in zip(rows, expected, strict=True):
        assert np.array_equal(np.array(row["outputs"]["scores"], np.float32), scores)
        assert row["label"] == str(scores.argmax())
    assert not out.with_name("out.jsonl.part").exists()


def test_a_bundle_is_unpacked_checked_and_run(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "made", "1")
    done = infer(bundle, npz_of(tmp_path / "in.npz"), "-o", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert {"label", "probability", "scores_9", "error"} <= set(rows[0])
    model = max((bundle / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    done = infer(bundle, tmp_path / "in.npz", "-o", tmp_path / "again.csv")
    assert done.returncode == 1
    assert "wrong digest" in done.stderr


def test_outputs_as_arrays(slot: Path, expected, tmp_path: Path) -> None:
    assert infer(slot, npz_of(tmp_path / "in.npz"), "-o", tmp_path / "out.npz").returncode == 0
    with np.load(tmp_path / "out.npz") as made:
        assert np.array_equal(made["scores"], np.concatenate(expected))
        assert made["row"].tolist() == list(range(40)) and made["bad_row"].size == 0


def test_bad_rows_are_reported_and_end_nothing(slot: Path, tmp_path: Path) -> None:
    table = csv_of(tmp_path / "in.csv")
    cells = table.read_text().splitlines()
    cells[3] = cells[3].rsplit(",", 1)[0] + ",ink"
    cells[7] = "n6,1,2"
    table.write_text("\n".join(cells) + "\n")
    done = infer(slot, table, "-o", tmp_path / "out.jsonl", "--key", "name", "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["rows"], summary["bad"], summary["exit_code"]) == (2, 40, 2, 2)
    first, second = summary["bad_rows"]
    assert (first["row"], first["key"], first["error"]["key"], first["error"]["got"]) == (2, "n2", "image_63", "'ink'")
    assert first["error"]["file"] == str(table) and first["error"]["expected"] == "uint8"
    assert (second["key"], second["error"]["expected"]) == ("n6", "65 cells")
    assert [row["key"] for row in lines(tmp_path / "out.jsonl") if "error" in row] == ["n2", "n6"]
    assert "Traceback" not in done.stderr


def test_bad_files_of_a_folder(slot: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in")
    (folder / "001.npy").write_bytes(b"no array")
    np.save(folder / "002.npy", np.zeros((9, 9), np.uint8))
    done = infer(slot, folder, "-o", tmp_path / "out.csv", "--json")
    assert done.returncode == 2
    bad = json.loads(done.stdout)["bad_rows"]
    assert [row["key"] for row in bad] == ["001.npy", "002.npy"]
    assert bad[1]["error"]["got"] == "uint8 [9, 9]"


@pytest.mark.parametrize(
    ("name", "content", "out", "words"),
    [
        ("in.csv", "a,b\n1,2\n", "out.jsonl", "columns are missing"),
        ("in.npz", "", "out.jsonl", "numpy"),
        ("in.txt", "", "out.jsonl", "not an input"),
        ("in.csv", "", "out.jsonl", "columns are missing"),
        ("in.csv", "a\n", "out.xls", "not an output"),
        ("in.csv", "a\n", "none/out.csv", ""),
    ],
)
def test_unusable_input(slot: Path, tmp_path: Path, name: str, content: str, out: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    done = infer(slot, tmp_path / name, "-o", tmp_path / out)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr


def test_no_bundle(tmp_path: Path) -> None:
    done = infer(tmp_path, npz_of(tmp_path / "in.npz"), "-o", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert "not a bundle" in done.stderr


def test_parquet(slot: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.parquet"
    if find_spec("pyarrow") is None:
        table.write_bytes(b"PAR1")
        done = infer(slot, table, "-o", tmp_path / "out.jsonl")
        assert done.returncode == 2
        assert "edgeship-agent[parquet]" in done.stderr
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [sample["image"].tolist() for sample in images(40)]}), table)
    assert infer(slot, table, "-o", tmp_path / "out.parquet").returncode == 0
    made = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["row"] for row in made] == list(range(40)) and len(made[0]["scores"]) == 10


def test_an_output_is_not_overwritten(slot: Path, tmp_path: Path) -> None:
    rows, out = npz_of(tmp_path / "in.npz"), tmp_path / "out.jsonl"
    out.write_text("mine\n")
    assert infer(slot, rows, "-o", out).returncode == 2
    assert out.read_text() == "mine\n"
    assert infer(slot, rows, "-o", out, "--restart").returncode == 0
    assert len(lines(out)) == 40


BEGIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
import edgeship_agent.patterns.batch as batch
from edgeship_agent.cli import main
batch.CHUNK_ROWS = 64
sys.exit(main())
"""


def begin(slot: Path, rows: Path, out: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", BEGIN, "infer", str(slot), str(rows), "-o", str(out)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)


def wait_for_chunks(part: Path, count: int, process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s and process.poll() is None and len(list(part.glob("*.jsonl"))) < count:
        time.sleep(0.005)


def test_killed_runs_go_on(slot: Path, tmp_path: Path) -> None:
    count = 6000
    samples = np.random.default_rng(3).integers(0, 17, size=(count, 8, 8), dtype=np.uint8)
    samples[100:200] = samples[100]
    np.savez(tmp_path / "in.npz", x=samples)
    out, rng = tmp_path / "out.jsonl", random.Random(5)
    kills = 0
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = begin(slot, tmp_path / "in.npz", out)
        before = len(list((tmp_path / "out.jsonl.part").glob("*.jsonl")))
        wait_for_chunks(tmp_path / "out.jsonl.part", before + 3, process)
        time.sleep(rng.random() * 0.01)
        process.send_signal(number)
        code = process.wait(30)
        kills += code in (-signal.SIGKILL, 130)
    assert kills >= 1
    if not out.exists():
        done = infer(slot, tmp_path / "in.npz", "-o", out, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["resumed_at"] >= 64
    assert [row["row"] for row in lines(out)] == list(range(count))
    assert infer(slot, tmp_path / "in.npz", "-o", tmp_path / "whole.jsonl").returncode == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_an_unfinished_run_of_other_rows_is_not_continued(slot: Path, tmp_path: Path) -> None:
    rows, out = npz_of(tmp_path / "in.npz"), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    part.mkdir()
    (part / "run.json").write_text('{"digest": "d", "variant": "v", "input": "i", "output": ".jsonl"}')
    done = infer(slot, rows, "-o", out)
    assert done.returncode == 2
    assert "--restart" in done.stderr
    assert infer(slot, rows, "-o", out, "--restart").returncode == 0


def test_columns_by_documented_features(slot: Path) -> None:
    with open_model(slot) as model:
        contract = msgspec.structs.replace(model.manifest.input_contracts[0], tensor="t", dtype="float32", shape=(2,))
        features = {"t": (Feature(name="temperature"), Feature(name="pressure"))}
        manifest = msgspec.structs.replace(model.manifest, input_contracts=(contract,), input_schema=features)
    assert columns_of(manifest, ["pressure", "id", "temperature"], Path("t"))["t"] == ("temperature", "pressure")


@pytest.mark.parametrize("text", ["a,b,id\n0.5,-2,x\n", "a;b;id\n0,5;-2,0;x,y\n", "\ufeffa\tb\tid\n0.5\t-2\tx\n"])
def test_tables_as_spreadsheets_write_them(slot: Path, tmp_path: Path, text: str) -> None:
    with open_model(slot) as model:
        contract = msgspec.structs.replace(model.manifest.input_contracts[0], tensor="t", dtype="float32", shape=(2,))
        features = {"t": (Feature(name="a"), Feature(name="b"))}
        manifest = msgspec.structs.replace(model.manifest, input_contracts=(contract,), input_schema=features)
    path = tmp_path / "in.csv"
    path.write_text(text, encoding="utf-8")
    (row,) = open_rows(path, manifest, "id").begin(0)
    assert row.error is None
    assert row.raw is not None
    assert row.raw["t"].tolist() == [0.5, -2.0]
    assert row.key in {"x", "x,y"}
