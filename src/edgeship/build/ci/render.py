"""One function for every form. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgeship.build.ci.comment import comment
from edgeship.build.ci.github import workflow_commands
from edgeship.build.ci.sarif import sarif
from edgeship.build.schema import BuildDocument


def _junit(document: BuildDocument) -> str:
    from edgeship.build.ci.junit import junit  # an XML library, which no other form needs

    return junit(document)


#: What ``--format`` takes → how it is written.
_WRITERS: Final[dict[str, Callable[[BuildDocument], str]]] = {
    "github": workflow_commands,
    "junit": _junit,
    "sarif": sarif,
}
FORMATS: Final = tuple(_WRITERS)

__all__ = ["FORMATS", "comment", "render"]


def render(document: BuildDocument, form: str) -> str:
    """A build's results as text, ending in a line break.

    Args:
        document: the build.
        form: one of :data:`FORMATS`.
    """
    return _WRITERS[form](document)
