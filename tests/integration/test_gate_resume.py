"""From unlabelled samples to a verdict: a build that waits for labels, and ``edgeship gate resume``."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeship.build import pipeline
from edgeship.bundle import Bundle, verify
from edgeship.demo.building import models_folder, write_data
from edgeship.demo.digits import load_digits
from tests import builds

TARGET = """
id = "box"
extends = "x86-64-server"
title = "test"
[measure]
warm_up = 2
min_queries = 50
min_seconds = 0.0
"""


class Site:
    """The digits model, a small labelled set and many noisy images whose labels only the test knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_data(folder)
        (folder / "box.toml").write_text(TARGET)
        digits = load_digits().evaluation
        rng = np.random.default_rng(0)
        images = np.concatenate([digits.images[200:]] * 4).astype(float)
        noisy = np.clip(images + rng.normal(0, 3.0, images.shape), 0, 16).astype(np.uint8)
        self.labels = np.concatenate([digits.labels[200:]] * 4)
        np.savez(folder / "unlabelled.npz", x=noisy)
        np.savez(folder / "few.npz", x=digits.images[:120], y=digits.labels[:120])

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """An edgeship command in this folder."""
        command = [sys.executable, "-m", "edgeship", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=180, check=False)

    def build(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Build int8 and fp32 for one target."""
        model = str(models_folder() / "digits-v1.onnx")
        data = ("--calibration", "calibration.npz", "--evaluation", "few.npz", "--preprocess", "preprocess.toml")
        return self.run("build", model, "-t", "box.toml", *data, "--unlabelled", "unlabelled.npz",
                        "--key", "author.key", "-o", "out", *more)  # fmt: skip

    def document(self) -> dict:
        return json.loads((self.folder / "out" / "build.json").read_text())

    def fill(self, count: int, label: str | None = None) -> int:
        """Label the first rows: with the truth, or with one word. Returns how many rows there are."""
        path = self.folder / "out" / "to_label.csv"
        with path.open(newline="") as stream:
            rows = list(csv.reader(stream))
        for row in rows[1 : 1 + count]:
            row[3] = label or str(self.labels[int(row[1])])
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
        return len(rows) - 1


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def _int8(document: dict) -> dict:
    return next(each for each in document["variants"] if each["precision"] == "int8")


def test_few_disagreements_prove_without_any_label(site: Site) -> None:
    done = site.build("--max-drop", "0.05")
    assert done.returncode == 0, done.stderr
    assert _int8(site.document())["chosen"]
    assert "0 of" in next(each for each in site.document()["gates"] if each["id"] == "top1")["sentence"]
    assert not (site.folder / "out" / "to_label.csv").exists()


def test_labels_of_disagreements_decide_without_a_rebuild(site: Site) -> None:
    (site.folder / "base.json").write_bytes(pipeline.encode(builds.document()))
    done = site.build("--max-drop", "0.004", "--base", "base.json")
    assert done.returncode == 0, done.stderr
    before = site.document()
    assert (before["verdict"], _int8(before)["verdict"], _int8(before)["chosen"]) == ("pass", "inconclusive", False)
    assert done.stderr.rstrip().splitlines()[-1].endswith("edgeship gate resume @out")
    assert "more labels of disagreements" in done.stderr

    unlabelled = site.run("gate", "resume", "@out")
    assert unlabelled.returncode == 0
    assert site.document()["bundle_digest"] == before["bundle_digest"], "nothing labelled, nothing changed"

    rows = site.fill(10_000)
    resumed = site.run("gate", "resume", "out", "--json")
    assert resumed.returncode == 0, resumed.stderr
    after = site.document()
    assert json.loads(resumed.stdout) == after
    assert "against the base build 1.0" in (site.folder / "out" / "report.md").read_text()
    field = _int8(after)["field"]
    assert (field["samples"], field["labelled"], field["look"]) == (2800, rows, 1)
    assert field["only_source"] + field["only_variant"] + field["neither"] == rows
    gate = next(each for each in after["gates"] if each["id"] == "top1")
    assert (gate["holds"], gate["high"] <= 0.004) == (True, True)
    assert _int8(after)["chosen"]
    bundle = Bundle.open(site.folder / "out" / "bundle")
    assert [each.precision for each in bundle.manifest.variants] == ["int8", "fp32"]
    assert any("disagreements labelled" in note for note in bundle.manifest.lineage.notes.values())
    verified = verify(bundle)
    assert verified.passed
    assert not verified.without_certificate
    certificate = json.loads(bundle.documents(bundle.manifest.variants[0].label)["certificate.json"])
    rule = next(each for each in certificate["rules"] if each["id"] == "top1")
    assert (rule["holds"], rule["evidence"]["unlabelled"]) == (True, 2800)
    explained = site.run("explain", "build/top1@out", "--json")
    assert json.loads(explained.stdout)["replay"] == "identical"

    again = site.run("gate", "resume", "out")
    assert again.returncode == 0
    assert site.document()["bundle_digest"] == after["bundle_digest"], "the same labels are the same look"


def test_labels_that_say_the_variant_lost_refuse_it(site: Site) -> None:
    """The labeller says '?' throughout: nobody was right, so nothing is lost; then that the source always was."""
    assert site.build("--max-drop", "0.0004").returncode == 0
    state = json.loads((site.folder / "out" / "few_labels.json").read_text())
    path = site.folder / "out" / "to_label.csv"
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))
    for row, answer in zip(rows[1:], state["source"], strict=True):
        row[3] = str(answer[0])
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    resumed = site.run("gate", "resume", "@out")
    document = site.document()
    assert _int8(document)["verdict"] == "fail", resumed.stderr
    assert next(each for each in document["variants"] if each["chosen"])["precision"] == "fp32"
    # half precision never disagrees here, and so many samples prove no drop as small as that
    half = next(each for each in document["variants"] if each["precision"] == "fp16")
    assert (half["verdict"], half["field"]["disagreements"]) == ("inconclusive", 0)


def test_bad_labels_and_no_build_are_clear_errors(site: Site) -> None:
    assert site.run("gate", "resume", "@nowhere").returncode == 2
    assert site.build("--max-drop", "0.004").returncode == 0
    site.fill(2, "eleven")
    spoiled = site.run("gate", "resume", "@out")
    assert (spoiled.returncode, spoiled.stdout) == (2, "")
    assert "row 1: not a class of the model" in spoiled.stderr
    assert "Traceback" not in spoiled.stderr
    assert site.document()["verdict"] == "pass"


def test_a_variant_that_was_changed_since_is_not_shipped(site: Site) -> None:
    assert site.build("--max-drop", "0.004").returncode == 0
    site.fill(10_000)
    model = next((site.folder / "out" / "variants").rglob("int8/model.onnx"))
    model.write_bytes(model.read_bytes() + b"\0")
    refused = site.run("gate", "resume", "@out")
    assert refused.returncode == 1
    assert "not the file that was judged" in refused.stderr


def test_unlabelled_samples_that_the_calibration_has_seen_are_refused(site: Site) -> None:
    with np.load(site.folder / "calibration.npz") as data:
        np.savez(site.folder / "unlabelled.npz", x=data["x"][:5])
    refused = site.build()
    assert refused.returncode == 2
    assert "5 of 5 unlabelled samples are also in the calibration data" in refused.stderr
