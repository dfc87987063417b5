"""Recomputing what a certificate claims, as far as that takes no data: figures from counts, documents by each other.

Every check is a sentence, whether it holds, and what stands against it. Pure but for reading the bundle's documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from edgeship.bundle.certificate import (
    BOM_FILE,
    CERTIFICATE_FILE,
    CERTIFICATE_VERSION,
    LINEAGE_FILE,
    LINEAGE_VERSION,
    Certificate,
    CertifiedRule,
    LineageDocument,
)
from edgeship.bundle.read import Bundle
from edgeship.bundle.rules import follows
from edgeship.statistics import newcombe_paired, wilson
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import BundleManifest, Variant

T = TypeVar("T", bound=Certificate | LineageDocument)
#: Two computations of one figure from the same counts may differ by rounding.
_ROUNDING: Final = 1e-9
_COUNTS: Final = ("both", "only_source", "only_variant", "neither")
_MODEL_ROLES: Final = frozenset({"model", "weights"})
#: What the name of a share of one class's samples begins with; every other share is one of all samples.
_RECALL: Final = "recall:"


class ClaimCheck(Struct, frozen=True, kw_only=True):
    """One claim of a variant's documents, recomputed.

    Attributes:
        claim: what is claimed, such as ``sqnr_db follows from relative_rms``.
        detail: what was found instead, where it does not hold.
    """

    variant: str
    claim: str
    holds: bool
    detail: str = ""


def check_claims(bundle: Bundle) -> tuple[tuple[ClaimCheck, ...], tuple[str, ...]]:
    """Recompute every claim of a bundle's documents that can be recomputed without data.

    Args:
        bundle: whose signature and digests hold.

    Returns:
        The checks, and the labels of the variants that carry no certificate.

    Raises:
        ContractError: a document is not what its name says, or was made by a newer version.
        VerificationError: a document is missing or altered.
    """
    checks: list[ClaimCheck] = []
    without: list[str] = []
    for variant in bundle.manifest.variants:
        documents = bundle.documents(variant.label)
        certificate = read_certificate(documents, variant.label)
        if certificate is None:
            without.append(variant.label)
            continue
        found = [
            *_against_manifest(certificate, bundle.manifest, variant),
            *_figures(certificate),
            *_rules(certificate),
        ]
        if BOM_FILE in documents:
            found += _against_bom(certificate, documents[BOM_FILE])
        if LINEAGE_FILE in documents:
            found += _against_lineage(certificate, documents[LINEAGE_FILE], bundle.manifest)
        checks += [
            ClaimCheck(variant=variant.label, claim=claim, holds=not wrong, detail=wrong) for claim, wrong in found
        ]
    return tuple(checks), tuple(without)


def read_certificate(documents: dict[str, bytes], label: str) -> Certificate | None:
    """The certificate among a variant's documents, or None.

    Raises:
        ContractError: it is not one, or was made by a newer version.
    """
    data = documents.get(CERTIFICATE_FILE)
    return None if data is None else _read(data, Certificate, f"{label}/{CERTIFICATE_FILE}", CERTIFICATE_VERSION)


def _read(data: bytes, kind: type[T], name: str, newest: int) -> T:
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"not a {kind.__name__}: {error}", file=name, next_step="build the bundle again") from error
    if not 1 <= document.schema_version <= newest:
        raise ContractError("made by a newer edgeship", file=name, key="schema_version", expected=f"at most {newest}",
                            got=document.schema_version, next_step="pip install --upgrade edgeship")  # fmt: skip
    return document


#: A claim, and what is wrong with it (empty where nothing is).
_Found = tuple[str, str]


def _same(claim: str, expected: object, got: object) -> _Found:
    return claim, "" if expected == got else f"expected {expected}, got {got}"


def _near(claim: str, expected: float | None, got: float | None) -> _Found:
    if expected is None or got is None:
        return _same(claim, expected, got)
    close = math.isclose(expected, got, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    return claim, "" if close else f"expected {expected:.12g}, got {got:.12g}"


def _against_manifest(certificate: Certificate, manifest: BundleManifest, variant: Variant) -> Iterator[_Found]:
    lineage, ran = manifest.lineage, certificate.ran
    files = {(file.path, file.digest, file.size_bytes) for file in variant.files if file.role in _MODEL_ROLES}
    certified = {(file.path, file.digest, file.size_bytes) for file in certificate.files}
    yield _same("it is of this variant", variant.label, certificate.variant)
    yield "it is of these files", "" if files == certified else "other digests or sizes than the bundle's"
    yield _same("its source is the bundle's", lineage.source.digest, certificate.source_digest)
    yield _same("its calibration data is the bundle's", lineage.calibration_digest, certificate.calibration.digest)
    yield _same("its evaluation data is the bundle's", lineage.evaluation_digest, certificate.evaluation.digest)
    yield _same("it ran in the manifest's runtime", variant.runtime, ran.runtime)
    if not ran.on_device:
        wanted = (variant.runtime_version, variant.golden.isa_class)
        yield _same("version and ISA are the manifest's", wanted, (ran.runtime_version, ran.isa))
    yield _same("the metric is the manifest's", variant.metric, certificate.metric)
    yield _same("relative_rms is the manifest's", variant.relative_rms, certificate.relative_rms or 0.0)


def _figures(certificate: Certificate) -> Iterator[_Found]:
    rms, cosine, metric = certificate.relative_rms, certificate.cosine, certificate.metric
    expected = None if not rms else -20.0 * math.log10(rms)
    yield _near("sqnr_db follows from relative_rms", expected, certificate.sqnr_db)
    if cosine is not None and rms is not None:
        # a vector off by r·‖f‖ at most makes an angle of asin(r) at most
        least = math.sqrt(1.0 - rms * rms) if rms < 1.0 else -1.0
        within = least - _ROUNDING <= cosine <= 1.0 + _ROUNDING
        yield "cosine is possible at this relative_rms", "" if within else f"expected ≥ {least:.9g}, got {cosine:.9g}"
    if certificate.agreement is not None:
        share = certificate.agreement
        if not 0 <= share.count <= share.n or share.n < 1:
            yield "agreement follows from its counts", f"{share.count} of {share.n} cannot be"
        else:
            interval = wilson(share.count, share.n)
            yield _near("agreement follows from its counts", share.count / share.n, share.value)
            yield _near("agreement's lower end follows from its counts", interval.low, share.low)
            yield _near("agreement's upper end follows from its counts", interval.high, share.high)
    if set(certificate.counts) == set(_COUNTS):
        yield from _metric(certificate, [certificate.counts[name] for name in _COUNTS])
    ordered = metric.low <= metric.value <= metric.high and metric.drop_low <= metric.drop <= metric.drop_high
    yield "the metric lies within its intervals", "" if ordered else "it does not"


def _metric(certificate: Certificate, counts: list[float]) -> Iterator[_Found]:
    metric = certificate.metric
    both, only_source, only_variant, neither = counts
    total = both + only_source + only_variant + neither
    samples = certificate.evaluation.samples
    fits = total <= samples if metric.name.startswith(_RECALL) else total == samples
    if min(counts) < 0 or total < 1 or total != metric.n or not fits:
        found = f"{total:g} samples counted, {metric.n} claimed, {samples} in the evaluation data"
        yield "the metric follows from its counts", found
        return
    interval = wilson(both + only_variant, total)
    difference = newcombe_paired(both, only_source, only_variant, neither)
    pairs = {
        "": ((both + only_variant) / total, metric.value),
        "'s lower end": (interval.low, metric.low),
        "'s upper end": (interval.high, metric.high),
        "'s drop": (difference.drop, metric.drop),
        "'s drop_low": (difference.low, metric.drop_low),
        "'s drop_high": (difference.high, metric.drop_high),
    }
    for name, (expected, got) in pairs.items():
        yield _near(f"the metric{name} follows from its counts", expected, got)


def _rules(certificate: Certificate) -> Iterator[_Found]:
    for rule in certificate.rules:
        yield f"rule {rule.id} holds as it says", _rule(rule)


def _rule(rule: CertifiedRule) -> str:
    """What is wrong with a rule's answer, or nothing."""
    if rule.holds is not True:
        return f"a variant ships that does not hold to {rule.rule}"
    return "" if follows(rule) else f"its evidence does not give {rule.rule}"


def _against_lineage(certificate: Certificate, data: bytes, manifest: BundleManifest) -> Iterator[_Found]:
    lineage = _read(data, LineageDocument, LINEAGE_FILE, LINEAGE_VERSION)
    yield _same("lineage names the same source", manifest.lineage.source, lineage.source)
    yield _same("lineage names the same tools", manifest.lineage.tools, lineage.tools)
    used = {"calibration": certificate.calibration, "evaluation": certificate.evaluation}
    yield _same("lineage names the same data", used, {role: lineage.data.get(role) for role in used})


def _against_bom(certificate: Certificate, data: bytes) -> Iterator[_Found]:
    """The bill of materials must name the artifact by its digest, and its figures."""
    try:
        document = msgspec.json.decode(data, type=_Bom)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"not a bill of materials: {error}", file=BOM_FILE,
                            next_step="build the bundle again") from error  # fmt: skip
    component = next((part for part in document.components if part.bom_ref == f"variant:{certificate.variant}"), None)
    if component is None:
        yield "the bill of materials names the artifact", "no component of that bom-ref"
        return
    hashes = {entry.content for part in (component, *component.components) for entry in part.hashes}
    missing = [file.path for file in certificate.files if file.digest.removeprefix("sha256:") not in hashes]
    yield "the bill of materials names the artifact", f"no hash of {', '.join(missing)}" if missing else ""
    metric = certificate.metric
    figures = component.model_card.quantitative_analysis.performance_metrics
    stated = next((each for each in figures if each.type == metric.name), _Metric())
    got = (stated.value, stated.confidence_interval.lower_bound, stated.confidence_interval.upper_bound)
    wanted = tuple(repr(value) for value in (metric.value, metric.low, metric.high))
    yield _same("the bill of materials states the same metric", wanted, got)


class _Ends(Struct, frozen=True, kw_only=True, rename="camel"):
    lower_bound: str = ""
    upper_bound: str = ""


class _Metric(Struct, frozen=True, kw_only=True, rename="camel"):
    type: str = ""
    value: str = ""
    confidence_interval: _Ends = _Ends()


class _Analysis(Struct, frozen=True, kw_only=True, rename="camel"):
    performance_metrics: tuple[_Metric, ...] = ()


class _Card(Struct, frozen=True, kw_only=True, rename="camel"):
    quantitative_analysis: _Analysis = _Analysis()


class _Hash(Struct, frozen=True, kw_only=True):
    content: str = ""


class _Part(Struct, frozen=True, kw_only=True, rename={"bom_ref": "bom-ref", "model_card": "modelCard"}):
    bom_ref: str = ""
    hashes: tuple[_Hash, ...] = ()
    components: tuple[_Part, ...] = ()
    model_card: _Card = _Card()


class _Bom(Struct, frozen=True, kw_only=True):
    components: tuple[_Part, ...] = ()
