"""Bundles: a signed OCI image layout with one manifest per variant; written, read, verified and exported here."""

from edgeship.bundle.carriers import CARRIERS, export_carrier
from edgeship.bundle.certificate import Certificate, LineageDocument
from edgeship.bundle.claims import ClaimCheck
from edgeship.bundle.export import export
from edgeship.bundle.keys import AuthorKey, verify_author_signature
from edgeship.bundle.layout import check_file_path
from edgeship.bundle.read import Bundle
from edgeship.bundle.verify import GoldenCheck, NotRun, VerifyReport, verify
from edgeship.bundle.write import BundleDraft, DraftFile, VariantDraft, WrittenBundle, manifest_of, write_bundle

__all__ = [
    "CARRIERS",
    "AuthorKey",
    "Bundle",
    "BundleDraft",
    "Certificate",
    "ClaimCheck",
    "DraftFile",
    "GoldenCheck",
    "LineageDocument",
    "NotRun",
    "VariantDraft",
    "VerifyReport",
    "WrittenBundle",
    "check_file_path",
    "export",
    "export_carrier",
    "manifest_of",
    "verify",
    "verify_author_signature",
    "write_bundle",
]
