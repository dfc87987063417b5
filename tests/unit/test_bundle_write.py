"""Writing bundles: equal bytes, whole or not at all, nothing that climbs out."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from edgeship.bundle import AuthorKey, Bundle, VariantDraft, write_bundle
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, ContractError
from tests import bundles


def test_same_draft_gives_the_same_digest_and_bytes(tmp_path: Path) -> None:
    first = bundles.written(tmp_path, name="a")
    second = bundles.written(tmp_path, name="b")
    assert first.digest == second.digest
    trees = [
        {path.relative_to(each.directory): path.read_bytes() for path in each.directory.rglob("*") if path.is_file()}
        for each in (first, second)
    ]
    assert trees[0] == trees[1]


def test_digest_is_of_the_content_not_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert bundles.written(tmp_path).digest == bundles.written(tmp_path / "other").digest


def test_content_comes_back(tmp_path: Path) -> None:
    written = bundles.written(tmp_path)
    bundle = Bundle.open(written.directory)
    assert bundle.digest == written.digest
    assert bundle.size_bytes == written.size_bytes
    assert [each.label for each in bundle.manifest.variants] == [
        "x86-64-server/onnxruntime/int8",
        "intel-nuc/openvino/int8",
        "raspberry-pi-5/litert/fp32",
    ]
    model = bundle.variant("x86-64-server/onnxruntime/int8").file("model")
    assert model is not None
    assert bundle.blob(model.digest) == b"model.onnx" * 40


def test_safest_entry_comes_first_with_its_platform_and_annotations(tmp_path: Path) -> None:
    entries = Bundle.open(bundles.written(tmp_path).directory).index.manifests
    assert [each.annotations[oci.ANNOTATION_PRECISION] for each in entries] == ["fp32", "int8", "int8"]
    assert [each.platform.architecture for each in entries if each.platform] == ["arm64", "amd64", "amd64"]
    assert entries[0].annotations[oci.ANNOTATION_TARGET] == "raspberry-pi-5"
    assert entries[0].annotations[oci.ANNOTATION_MEMORY] == "50000000"


def test_openvino_variant_is_two_weight_layers(tmp_path: Path) -> None:
    manifest = Bundle.open(bundles.written(tmp_path).directory).variant_manifest("intel-nuc/openvino/int8")
    weights = [each for each in manifest.layers if each.media_type == oci.WEIGHT_TYPE]
    assert [each.annotations[oci.ANNOTATION_FILE] for each in weights] == ["model.xml", "model.bin"]
    assert manifest.layers[0].annotations[oci.ANNOTATION_FILE] == oci.MANIFEST_FILE
    assert manifest.artifact_type == oci.MODEL_TYPE


def test_an_older_bundle_is_replaced_and_leaves_nothing(tmp_path: Path) -> None:
    bundles.written(tmp_path)
    newer = bundles.written(tmp_path, content=bundles.draft(version="2.0"))
    assert Bundle.open(newer.directory).manifest.version == "2.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["author.key", "bundle"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds something else"):
        bundles.written(tmp_path)
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "name",
    ["../model.onnx", "/etc/passwd", "a/../../b", "", ".", ".hidden", "a//b", "a\\b", "a\0b", "edgeship.json", "é"],
)
def test_file_names_that_climb_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ContractError, match="leaves the bundle"):
        bundles.written(tmp_path, content=bundles.renamed(bundles.draft(), name))
    assert not (tmp_path / "bundle").exists()


def test_drafts_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    one = VariantDraft(variant=bundles.variant("t", "litert", "int8"), files=bundles.files("model.tflite"))
    key = AuthorKey.load_or_create(tmp_path / "author.key")
    wrong = {
        "needs a variant": msgspec.structs.replace(bundles.draft(), variants=()),
        "two variants of one label": bundles.draft(one, one),
        "two files of one name": bundles.draft(msgspec.structs.replace(one, files=(one.files[0], *one.files))),
        "exactly one model file": bundles.draft(msgspec.structs.replace(one, files=one.files[1:])),
        "unknown role": bundles.draft(
            msgspec.structs.replace(one, files=(msgspec.structs.replace(one.files[0], role="x"),))
        ),
        "unknown architecture": bundles.draft(
            msgspec.structs.replace(one, variant=msgspec.structs.replace(one.variant, arch="vax"))
        ),
    }
    for sentence, draft in wrong.items():
        with pytest.raises(ContractError, match=sentence):
            write_bundle(tmp_path / "bundle", draft, key)
    assert not (tmp_path / "bundle").exists()


def test_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "author.key"
    first = AuthorKey.load_or_create(path)
    assert AuthorKey.load_or_create(path).public_hex == first.public_hex
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["author.key"]


def test_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "author.key"
    AuthorKey.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read") as caught:
        AuthorKey.load_or_create(path)
    assert caught.value.next_step == f"chmod 600 {path}"


def test_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "author.key"
    path.write_text("hunter2")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a key"):
        AuthorKey.load_or_create(path)
