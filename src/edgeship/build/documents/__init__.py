"""The documents of a bundle: parity certificates, model card, bill of materials, lineage. Pure but for what is read."""

from edgeship.build.documents.bundled import attach, certify_all, judged_again, lineage_of, share
from edgeship.build.documents.card import CardAddition
from edgeship.build.documents.statement import Statement, lineage_report, read_statement

__all__ = [
    "CardAddition",
    "Statement",
    "attach",
    "certify_all",
    "judged_again",
    "lineage_of",
    "lineage_report",
    "read_statement",
    "share",
]
