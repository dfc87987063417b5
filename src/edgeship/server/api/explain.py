"""Explanations over REST."""

from __future__ import annotations

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from edgeship.server.context import ServerContext
from edgeship.server.explain import explain
from edgeship.server.explanation import Explanation


@get("/api/v1/explain/{subject:path}", sync_to_thread=True)
def explain_subject(subject: FromPath[str], context: NamedDependency[ServerContext]) -> Explanation:
    """Why: ``rollout/<id>[/<gate>]``, ``incident/<id>`` or ``refusal/<device>/<attempt>``."""
    return explain(context, subject)


router = [explain_subject]
