"""Every document of a bundle, from its draft and from what the build found. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import structs

from edgeship.build.assemble import Shipped
from edgeship.build.documents.bom import bill_of_materials
from edgeship.build.documents.card import CardAddition, model_card
from edgeship.build.documents.certificate import Used, certified_rules, certify, ran_on
from edgeship.build.documents.statement import Statement
from edgeship.build.inputs import Inputs
from edgeship.build.schema import GateReport
from edgeship.bundle import BundleDraft, DraftFile, VariantDraft, manifest_of
from edgeship.bundle.certificate import (
    BOM_FILE,
    CARD_FILE,
    CERTIFICATE_FILE,
    LINEAGE_FILE,
    Certificate,
    LineageDocument,
    UsedData,
)
from edgeship_agent.contract import oci

_ROLE = "document"


def attach(draft: BundleDraft, inputs: Inputs, shipped: Sequence[Shipped], statement: Statement) -> BundleDraft:
    """A draft with its documents: a certificate for each variant; model card, bill of materials and lineage for all.

    Args:
        draft: whose files are complete.
        inputs: source and data.
        shipped: in the order of the draft's variants.
        statement: what the user states.
    """
    return share(certify_all(draft, inputs, shipped), lineage_of(draft, inputs, statement), statement.addition)


def lineage_of(draft: BundleDraft, inputs: Inputs, statement: Statement) -> LineageDocument:
    """Where a bundle comes from: what was read, what the source's tracker says, and what the user states."""
    used = _used(draft, inputs)
    return LineageDocument(
        source=draft.lineage.source,
        data={"calibration": used.calibration, "evaluation": used.evaluation},
        tools=draft.lineage.tools,
        license=statement.license,
        given=dict(sorted({**inputs.source.facts, **statement.given}.items())),
    )


def certify_all(draft: BundleDraft, inputs: Inputs, shipped: Sequence[Shipped]) -> BundleDraft:
    """A draft with a certificate for each variant."""
    used = _used(draft, inputs)
    certificates = [
        certify(
            variant,
            each.built.comparison,
            each.gates,
            used,
            scheme=each.built.artifact.scheme,
            ran=ran_on(variant, each.place),
        )
        for variant, each in zip(manifest_of(draft).variants, shipped, strict=True)
    ]
    variants = tuple(
        structs.replace(variant, documents=(_document(CERTIFICATE_FILE, oci.canonical_json(certificate)),))
        for variant, certificate in zip(draft.variants, certificates, strict=True)
    )
    return structs.replace(draft, variants=variants)


def share(draft: BundleDraft, lineage: LineageDocument, addition: CardAddition) -> BundleDraft:
    """A draft whose variants have their certificates, with the documents that all of them share."""
    manifest = manifest_of(draft)
    certificates = [_certificate(each) for each in draft.variants]
    documents = (
        _document(CARD_FILE, model_card(manifest, lineage, certificates, addition).encode()),
        _document(BOM_FILE, oci.canonical_json(bill_of_materials(manifest, lineage, certificates))),
        _document(LINEAGE_FILE, oci.canonical_json(lineage)),
    )
    return structs.replace(draft, documents=documents)


def judged_again(draft: BundleDraft, gates: Sequence[GateReport]) -> BundleDraft:
    """A draft whose certificates say what the gates say now, such as after labels came in."""
    variants = []
    for each in draft.variants:
        own = [gate for gate in gates if f"{gate.target}/{gate.runtime}/{gate.precision}" == each.variant.label]
        certificate = structs.replace(_certificate(each), rules=certified_rules(own))
        variants.append(
            structs.replace(each, documents=(_document(CERTIFICATE_FILE, oci.canonical_json(certificate)),))
        )
    return structs.replace(draft, variants=tuple(variants))


def _certificate(variant: VariantDraft) -> Certificate:
    data = next(each.data for each in variant.documents if each.path == CERTIFICATE_FILE)
    return msgspec.json.decode(data, type=Certificate)


def _used(draft: BundleDraft, inputs: Inputs) -> Used:
    return Used(
        source_digest=draft.lineage.source.digest,
        calibration=UsedData(digest=inputs.calibration.digest, samples=len(inputs.calibration)),
        evaluation=UsedData(digest=inputs.evaluation.digest, samples=len(inputs.evaluation)),
    )


def _document(name: str, data: bytes) -> DraftFile:
    return DraftFile(path=name, role=_ROLE, data=data)
