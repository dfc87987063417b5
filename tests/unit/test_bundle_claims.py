"""Claims of a certificate: each one that is altered is found, and names itself."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from edgeship.bundle import Bundle, Certificate, export
from edgeship.bundle.certificate import CertifiedFile, CertifiedRule
from edgeship.bundle.claims import check_claims
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ContractError
from tests import bundles, certificates

FIRST = "x86-64-server/onnxruntime/int8"


def test_true_certificates_hold(tmp_path: Path) -> None:
    checks, without = check_claims(Bundle.open(certificates.written(tmp_path).directory))
    assert not [each for each in checks if not each.holds]
    assert not without
    assert {each.variant for each in checks} == {
        FIRST,
        "intel-nuc/openvino/int8",
        "raspberry-pi-5/litert/fp32",
    }
    assert len(checks) > 60


def test_a_bundle_of_an_older_version_has_none(tmp_path: Path) -> None:
    checks, without = check_claims(Bundle.open(bundles.written(tmp_path).directory))
    assert not checks
    assert len(without) == 3


def _metric(certificate: Certificate, **changes: float) -> Certificate:
    return replace(certificate, metric=replace(certificate.metric, **changes))


ALTERED = {
    "it is of this variant": lambda one: replace(one, variant="a/b/c"),
    "it is of these files": lambda one: replace(
        one, files=(CertifiedFile(path="model.onnx", digest="sha256:" + "e" * 64, size_bytes=400),)
    ),
    "its source is the bundle's": lambda one: replace(one, source_digest="sha256:" + "e" * 64),
    "its calibration data is the bundle's": lambda one: replace(
        one, calibration=replace(one.calibration, digest="sha256:" + "e" * 64)
    ),
    "its evaluation data is the bundle's": lambda one: replace(
        one, evaluation=replace(one.evaluation, digest="sha256:" + "e" * 64)
    ),
    "it ran in the manifest's runtime": lambda one: replace(one, ran=replace(one.ran, runtime="litert")),
    "version and ISA are the manifest's": lambda one: replace(one, ran=replace(one.ran, runtime_version="9")),
    "the metric is the manifest's": lambda one: _metric(one, value=0.999),
    "relative_rms is the manifest's": lambda one: replace(one, relative_rms=0.001),
    "sqnr_db follows from relative_rms": lambda one: replace(one, sqnr_db=60.0),
    "cosine is possible at this relative_rms": lambda one: replace(one, cosine=0.9),
    "agreement follows from its counts": lambda one: replace(one, agreement=replace(one.agreement, value=1.0)),
    "agreement's lower end follows from its counts": lambda one: replace(
        one, agreement=replace(one.agreement, low=0.99)
    ),
    "agreement's upper end follows from its counts": lambda one: replace(
        one, agreement=replace(one.agreement, high=0.9999)
    ),
    "the metric follows from its counts": lambda one: replace(one, counts={**one.counts, "both": 871.0}),
    "the metric's lower end follows from its counts": lambda one: _metric(one, low=0.968),
    "the metric's upper end follows from its counts": lambda one: _metric(one, high=0.99),
    "the metric's drop follows from its counts": lambda one: _metric(one, drop=0.0),
    "the metric's drop_low follows from its counts": lambda one: _metric(one, drop_low=0.0),
    "the metric's drop_high follows from its counts": lambda one: _metric(one, drop_high=0.003),
    "the metric lies within its intervals": lambda one: _metric(one, low=0.99),
    "rule top1 holds as it says": lambda one: replace(one, rules=(replace(one.rules[1], high=0.0),)),
    "rule distinct holds as it says": lambda one: replace(one, rules=(replace(one.rules[0], value=8),)),
    "rule relative_rms holds as it says": lambda one: replace(
        one, rules=(CertifiedRule(id="relative_rms", rule="≤ 0.1", value=0.01, limit=0.1, holds=None),)
    ),
    "lineage names the same data": lambda one: replace(one, calibration=replace(one.calibration, samples=1)),
    "the bill of materials names the artifact": lambda one: replace(one, variant="a/b/c"),
    "the bill of materials states the same metric": lambda one: _metric(one, value=0.999),
}  # fmt: skip


@pytest.mark.parametrize("claim", ALTERED)
def test_an_altered_claim_is_found(tmp_path: Path, claim: str) -> None:
    content = certificates.draft(ALTERED[claim])
    checks, _ = check_claims(Bundle.open(certificates.written(tmp_path, content).directory))
    wrong = [each for each in checks if not each.holds]
    assert claim in {each.claim for each in wrong}
    assert {each.variant for each in wrong} == {FIRST}
    assert all(each.detail for each in wrong)


@pytest.mark.parametrize(("name", "samples", "holds"), [
    ("recall:cat", 900, True), ("recall:cat", 5_000, True), ("recall:cat", 899, False),
    ("top1", 900, True), ("top1", 5_000, False), ("agreement", 5_000, False),
])  # fmt: skip
def test_only_a_recall_s_counts_may_leave_samples_out(tmp_path: Path, name: str, samples: int, holds: bool) -> None:
    """A class has as many samples as it has; every other share is one of all samples."""
    counted = certificates.draft(
        lambda one: replace(_named(one, name), evaluation=replace(one.evaluation, samples=samples))
    )
    checks, _ = check_claims(Bundle.open(certificates.written(tmp_path, counted).directory))
    found = {each.claim: each for each in checks if each.variant == FIRST}
    claim = found["the metric follows from its counts"]
    assert claim.holds is holds
    assert holds or f"{samples} in the evaluation data" in claim.detail


def _named(certificate: Certificate, name: str) -> Certificate:
    return replace(certificate, metric=replace(certificate.metric, name=name))


def test_a_variant_that_was_judged_on_a_device_names_the_device_s_runtime(tmp_path: Path) -> None:
    elsewhere = lambda one: replace(one, ran=replace(one.ran, runtime_version="9", isa="aarch64", on_device=True))  # noqa: E731
    checks, _ = check_claims(Bundle.open(certificates.written(tmp_path, certificates.draft(elsewhere)).directory))
    assert all(each.holds for each in checks)


def test_a_document_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    content = certificates.draft(lambda one: replace(one, schema_version=2))
    with pytest.raises(ContractError, match="newer edgeship"):
        check_claims(Bundle.open(certificates.written(tmp_path, content).directory))


@pytest.mark.parametrize("name", ["certificate.json", "bom.cdx.json", "lineage.json"])
@pytest.mark.parametrize("data", [b"{}", b"\xff", b"[]", b'{"components": 3}', b'{"components": [{"hashes": 1}]}'])
def test_a_document_that_is_none_is_an_error_and_no_crash(tmp_path: Path, name: str, data: bytes) -> None:
    content = certificates.draft()
    if name == "certificate.json":
        first = replace(content.variants[0], documents=(certificates.file(name, data),))
        content = replace(content, variants=(first, *content.variants[1:]))
    else:
        kept = tuple(each for each in content.documents if each.path != name)
        content = replace(content, documents=(*kept, certificates.file(name, data)))
    bundle = Bundle.open(certificates.written(tmp_path, content).directory)
    try:
        checks, _ = check_claims(bundle)
    except ContractError as error:
        assert name.partition(".")[0] in str(error) or "bill of materials" in str(error)
    else:
        assert any(not each.holds for each in checks)


def test_documents_are_layers_that_no_device_loads(tmp_path: Path) -> None:
    bundle = Bundle.open(certificates.written(tmp_path).directory)
    layers = bundle.variant_manifest(FIRST).layers
    documents = {each.annotations[oci.ANNOTATION_FILE]: each for each in layers if each.media_type == oci.DOC_TYPE}
    assert sorted(documents) == ["README.md", "bom.cdx.json", "certificate.json", "lineage.json"]
    named = {file.digest for file in bundle.variant(FIRST).files}
    assert not named & {each.digest for each in documents.values()}
    assert bundle.verify_digests() == len({each.digest for each in bundle.descriptors()})
    assert msgspec.json.decode(bundle.documents(FIRST)["lineage.json"])["license"] == "Apache-2.0"


def test_export_takes_the_documents_along(tmp_path: Path) -> None:
    bundle = Bundle.open(certificates.written(tmp_path).directory)
    names = {str(path.relative_to(tmp_path / "out")) for path in export(bundle, "intel-nuc", tmp_path / "out")}
    assert names == {
        "edgeship.json", "README.md", "bom.cdx.json", "lineage.json", "openvino/int8/certificate.json",
        "openvino/int8/model.xml", "openvino/int8/model.bin", "openvino/int8/golden_inputs.msgpack",
        "openvino/int8/golden_outputs.msgpack", "openvino/int8/profile.msgpack",
    }  # fmt: skip
    assert all((tmp_path / "out" / name).is_file() for name in names)


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    content = certificates.draft()
    twice = replace(content, documents=(*content.documents, certificates.file("README.md", b"x")))
    with pytest.raises(ContractError, match="two files of one name"):
        certificates.written(tmp_path, twice)
    outside = replace(content, documents=(certificates.file("../README.md", b"x"),))
    with pytest.raises(ContractError, match="file name leaves"):
        certificates.written(tmp_path, outside)
