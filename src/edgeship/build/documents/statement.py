"""What the user states about the model, read and checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from edgeship.build.documents.card import CardAddition, check_one_license, read_card
from edgeship.build.documents.origin import check_license, parse_lineage, read_code
from edgeship.build.options import BuildOptions
from edgeship.build.schema import LineageReport


class Statement(Struct, frozen=True, kw_only=True):
    """What is stated.

    Attributes:
        license: SPDX expression, empty where none was given.
        given: ``--lineage KEY=VALUE``.
        addition: ``--card FILE``.
    """

    license: str = ""
    given: dict[str, str] = field(default_factory=dict)
    addition: CardAddition = CardAddition()


def read_statement(options: BuildOptions) -> Statement:
    """Read ``--license``, ``--lineage`` and ``--card``.

    Raises:
        ConfigError: one of them cannot be followed.
    """
    expression = check_license(options.license)
    addition = read_card(options.card)
    check_one_license(expression, addition)
    return Statement(license=expression, given=parse_lineage(options.lineage), addition=addition)


def lineage_report(facts: Mapping[str, str], statement: Statement) -> LineageReport:
    """What build.json says of where a build comes from, the commit of the working folder included.

    Args:
        facts: what the source's tracker says.
        statement: what the user states.
    """
    return LineageReport(code=read_code(Path.cwd()), given={**facts, **statement.given}, license=statement.license)
