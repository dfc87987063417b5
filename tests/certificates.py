"""Bundles with consistent documents for tests: certificates whose figures follow from their counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeship.build.documents.bom import bill_of_materials
from edgeship.build.documents.card import CardAddition, model_card
from edgeship.bundle import BundleDraft, DraftFile, VariantDraft, WrittenBundle, manifest_of
from edgeship.bundle.certificate import (
    Certificate,
    CertifiedFile,
    CertifiedRule,
    LineageDocument,
    Ran,
    Share,
    UsedData,
)
from edgeship.statistics import newcombe_paired, wilson
from edgeship_agent.contract import oci
from edgeship_agent.contract.manifest import BundleManifest, MetricClaim, Variant
from tests import bundles

COUNTS = {"both": 870.0, "only_source": 4.0, "only_variant": 2.0, "neither": 24.0}
N = 900


def claim() -> MetricClaim:
    """Top-1 on 900 samples, from ``COUNTS``."""
    both, lost, won, neither = COUNTS.values()
    share, drop = wilson(both + won, N), newcombe_paired(both, lost, won, neither)
    return MetricClaim(name="top1", value=(both + won) / N, low=share.low, high=share.high, n=N, drop=drop.drop,
                       drop_low=drop.low, drop_high=drop.high)  # fmt: skip


def certificate(variant: Variant, manifest: BundleManifest) -> Certificate:
    """A certificate that holds."""
    lineage, metric, share = manifest.lineage, variant.metric, wilson(890, N)
    return Certificate(
        variant=variant.label,
        files=tuple(
            CertifiedFile(path=file.path, digest=file.digest, size_bytes=file.size_bytes)
            for file in variant.files
            if file.role in {"model", "weights"}
        ),
        scheme="u8s8 per channel, min–max" if variant.precision == "int8" else "",
        source_digest=lineage.source.digest,
        ran=Ran(runtime=variant.runtime, runtime_version=variant.runtime_version, isa=variant.golden.isa_class),
        calibration=UsedData(digest=lineage.calibration_digest, samples=200),
        evaluation=UsedData(digest=lineage.evaluation_digest, samples=N),
        relative_rms=variant.relative_rms,
        sqnr_db=-20 * math.log10(variant.relative_rms),
        cosine=0.99996,
        worst_group_rms=0.02,
        agreement=Share(count=890, n=N, value=890 / N, low=share.low, high=share.high),
        metric=metric,
        counts=COUNTS,
        rules=(
            CertifiedRule(id="distinct", rule="different classes ≥ 9", value=10, limit=9, holds=True),
            CertifiedRule(
                id="top1",
                rule="top1 drop_high ≤ 0.05",
                value=metric.drop,
                limit=0.05,
                low=metric.drop_low,
                high=metric.drop_high,
                n=N,
                holds=True,
                evidence={**COUNTS, "confidence": 0.95},
            ),
        ),
    )


def lineage(manifest: BundleManifest) -> LineageDocument:
    """Lineage that fits the manifest."""
    return LineageDocument(
        source=manifest.lineage.source,
        data={
            "calibration": UsedData(digest=manifest.lineage.calibration_digest, samples=200),
            "evaluation": UsedData(digest=manifest.lineage.evaluation_digest, samples=N),
        },
        tools=manifest.lineage.tools,
        license="Apache-2.0",
        given={"run": "7"},
    )


def draft(change: Callable[[Certificate], Certificate] = lambda same: same) -> BundleDraft:
    """A bundle of three variants with documents; ``change`` alters the first certificate before it is written."""
    plain = bundles.draft()
    variants = tuple(
        VariantDraft(variant=msgspec.structs.replace(each.variant, metric=claim()), files=each.files)
        for each in plain.variants
    )
    plain = msgspec.structs.replace(plain, variants=variants)
    manifest = manifest_of(plain)
    true = [certificate(variant, manifest) for variant in manifest.variants]
    written = [change(true[0]), *true[1:]]
    documents = {
        "README.md": model_card(manifest, lineage(manifest), true, CardAddition()).encode(),
        "bom.cdx.json": oci.canonical_json(bill_of_materials(manifest, lineage(manifest), true)),
        "lineage.json": oci.canonical_json(lineage(manifest)),
    }
    return msgspec.structs.replace(
        plain,
        variants=tuple(
            msgspec.structs.replace(each, documents=(file("certificate.json", oci.canonical_json(one)),))
            for each, one in zip(variants, written, strict=True)
        ),
        documents=tuple(file(name, data) for name, data in documents.items()),
    )


def file(path: str, data: bytes) -> DraftFile:
    """A document."""
    return DraftFile(path=path, role="document", data=data)


def written(folder: Path, content: BundleDraft | None = None) -> WrittenBundle:
    """Write such a bundle."""
    return bundles.written(folder, content=content or draft())
