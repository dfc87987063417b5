"""A build's documents on a real model: reproducible, recomputed from the data, and altered ones found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import force_setattr

from edgeship.build import data, pipeline
from edgeship.build.documents.recompute import recompute
from edgeship.build.progress import Silence
from edgeship.bundle import Bundle, verify
from edgeship_agent.contract.errors import InputError
from tests.integration.test_build_pipeline import Workspace


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with one build for two runtimes."""
    work = Workspace(tmp_path_factory.mktemp("documents"))
    (work.folder / "card.md").write_text("## Intended use\n\nTelling six shapes apart.\n")
    options = work.options("ort", "ov", license="mit", lineage=("base_model=acme/net",), card=work.folder / "card.md")
    assert pipeline.build(options, Silence()).verdict == "pass"
    return work


def edgeship(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeship", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def _documents(folder: Path) -> dict[str, bytes]:
    bundle = Bundle.open(folder / "bundle")
    return bundle.documents(bundle.manifest.variants[0].label)


def test_certificate_card_and_lineage_say_what_was_built(work: Workspace) -> None:
    documents = _documents(work.folder / "out")
    assert sorted(documents) == ["README.md", "bom.cdx.json", "certificate.json", "lineage.json"]
    card = documents["README.md"].decode()
    assert "base_model: acme/net" in card
    assert "Telling six shapes apart." in card
    assert "latency_p" not in card
    lineage = json.loads(documents["lineage.json"])
    assert lineage["license"] == "MIT"
    assert lineage["given"] == {"base_model": "acme/net"}
    build = json.loads((work.folder / "out" / "build.json").read_text())
    assert build["lineage"]["license"] == "MIT"
    assert set(build["lineage"]) == {"code", "given", "license"}


def test_the_commit_of_the_folder_is_no_part_of_the_bundle(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads((work.folder / "out" / "build.json").read_text())
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "-q", str(tmp_path)], check=True, capture_output=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    options = work.options("ort", "ov", license="MIT", lineage=("base_model=acme/net",),
                           card=work.folder / "card.md", output=tmp_path / "again")  # fmt: skip
    document = pipeline.build(options, Silence()).document
    assert document.lineage is not None
    assert document.lineage.code is not None
    assert document.lineage.code.commit not in json.dumps(first)
    assert document.bundle_digest == first["bundle_digest"]
    told = pipeline.build(
        work.options("ort", "ov", license="MIT", card=work.folder / "card.md", output=tmp_path / "told",
                     lineage=("base_model=acme/net", f"commit={document.lineage.code.commit}")),
        Silence(),
    )  # fmt: skip
    assert told.document.bundle_digest != first["bundle_digest"]


def test_verify_recomputes_from_counts_from_data_and_from_the_source(work: Workspace) -> None:
    out = work.folder / "out"
    plain = edgeship("verify", out, "--json")
    assert plain.returncode == 0, plain.stderr
    counted = json.loads(plain.stdout)["claims"]
    assert not any("from the data" in each["claim"] for each in counted)
    with_data = edgeship("verify", out, "--evaluation", work.folder / "evaluation.npz", "--json")
    assert with_data.returncode == 0, with_data.stderr
    found = [each["claim"] for each in json.loads(with_data.stdout)["claims"] if "from the data" in each["claim"]]
    assert len(found) == 4  # two targets, what was chosen and its full precision
    assert all(each.startswith("top1 recomputed") and each.endswith("the same") for each in found)
    everything = edgeship(
        "verify", out, "--evaluation", work.folder / "evaluation.npz", "--source", work.model, "--json"
    )
    assert everything.returncode == 0, everything.stderr
    found = [each["claim"] for each in json.loads(everything.stdout)["claims"] if "from the data" in each["claim"]]
    assert len(found) == 20
    assert all(each.endswith("the same") for each in found)


def test_other_data_or_another_source_is_refused(work: Workspace, tmp_path: Path) -> None:
    out, evaluation = work.folder / "out", work.folder / "evaluation.npz"
    other = edgeship("verify", out, "--evaluation", work.folder / "few.npz")
    assert other.returncode == 2
    assert "not the evaluation data that the bundle names" in other.stderr
    changed = tmp_path / "net.onnx"
    changed.write_bytes(work.model.read_bytes() + b"\x72\x00")
    for source, sentence in ((changed, "source"), (tmp_path / "missing.onnx", "missing.onnx")):
        done = edgeship("verify", out, "--evaluation", evaluation, "--source", source)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    alone = edgeship("verify", out, "--source", work.model)
    assert alone.returncode == 2
    assert "--evaluation F" in alone.stderr


def test_figures_that_the_data_does_not_give_are_found(work: Workspace, tmp_path: Path) -> None:
    """Labels changed after the build, in a bundle that names the changed data: digests hold, figures do not."""
    arrays = dict(np.load(work.folder / "evaluation.npz"))
    arrays["y"] = (arrays["y"] + 1) % 6
    np.savez(tmp_path / "wrong.npz", **arrays)
    bundle = Bundle.open(work.folder / "out" / "bundle")
    digest = data.load(tmp_path / "wrong.npz", bundle.manifest.input_contracts).digest
    lineage = bundle.manifest.lineage
    force_setattr(lineage, "evaluation_digest", digest)
    sound = {each.label for each in bundle.manifest.variants}
    found = recompute(bundle, sound, tmp_path / "wrong.npz", work.model, Silence())
    assert {each.claim.split(" ")[0] for each in found.checks if not each.holds} >= {"top1"}


def test_a_build_that_is_judged_by_one_class_verifies(work: Workspace) -> None:
    """Its counts are of that class's samples alone."""
    out = work.folder / "recall"
    assert pipeline.build(work.options("ort", metric="recall:3", output=out), Silence()).verdict == "pass"
    done = edgeship("verify", out, "--evaluation", work.folder / "evaluation.npz", "--source", work.model, "--json")
    assert done.returncode == 0, done.stderr
    claims = [each["claim"] for each in json.loads(done.stdout)["claims"]]
    assert "the metric's drop_high follows from its counts" in claims
    assert any(each.startswith("recall:3 recomputed from the data") and each.endswith("the same") for each in claims)


def test_data_with_gaps_is_taken_as_the_build_took_it(work: Workspace, tmp_path: Path) -> None:
    """The digest alone says whether it is the build's data, and no longer whether the model answers NaN."""
    arrays = dict(np.load(work.folder / "evaluation.npz"))
    arrays["x"] = arrays["x"].astype(np.float32)
    arrays["x"].reshape(len(arrays["x"]), -1)[::50, 0] = np.nan
    np.savez(tmp_path / "gaps.npz", **arrays)
    bundle = Bundle.open(work.folder / "out" / "bundle")
    sound = {each.label for each in bundle.manifest.variants}
    with pytest.raises(InputError, match="not the evaluation data that the bundle names"):
        recompute(bundle, sound, tmp_path / "gaps.npz", None, Silence())
    digest = data.load(tmp_path / "gaps.npz", bundle.manifest.input_contracts, gaps=True).digest
    force_setattr(bundle.manifest.lineage, "evaluation_digest", digest)
    found = recompute(bundle, sound, tmp_path / "gaps.npz", None, Silence())
    assert {each.variant for each in found.checks} == sound
    assert all(each.claim.startswith("top1 recomputed from the data") for each in found.checks)


def test_statements_that_cannot_be_followed_stop_before_any_work(work: Workspace, tmp_path: Path) -> None:
    for more in (("--license", "nonsense"), ("--lineage", "run"), ("--card", str(tmp_path / "missing.md"))):
        done = work.run(*more)
        assert done.returncode == 2, done.stderr
        assert "next: " in done.stderr
        assert "Traceback" not in done.stderr
        assert "read      ONNX" not in done.stderr


def test_a_bundle_with_documents_verifies_in_process(work: Workspace) -> None:
    report = verify(Bundle.open(work.folder / "out" / "bundle"))
    assert report.passed
    assert not report.without_certificate
