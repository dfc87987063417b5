"""Releases in lines: state and date of each, and what a joint release holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from edgeship.cli import console


def state(release: dict[str, Any]) -> str:
    """Glyph and word of a release's state.

    >>> state({"state": "blocked"})
    '✖ blocked'
    """
    return "✖ blocked" if release["state"] == "blocked" else "✔ available"


def state_and_day(release: dict[str, Any]) -> tuple[str, str, str]:
    """State, digest and date of a release, as cells of a table."""
    added = time.strftime("%Y-%m-%d %H:%M", time.localtime(release["added_at_s"]))
    return state(release), release["digest"][:19], added


def parts_words(parts: Sequence[dict[str, Any]]) -> str:
    """The models of a release with their versions.

    >>> parts_words([{"model": "detector", "version": "3"}, {"model": "classifier", "version": "1"}])
    'detector 3 + classifier 1'
    """
    return " + ".join(f"{part['model']} {part['version']}" for part in parts)


def print_joint_list(found: Sequence[dict[str, Any]]) -> None:
    """Joint releases as a table; nothing where there are none."""
    if not found:
        return
    rows = [(each["name"], each["version"], *state_and_day(each), parts_words(each["parts"])) for each in found]
    console.result("")
    console.table(("switches together", "version", "state", "digest", "added", "members"), rows)


def print_joint(document: dict[str, Any]) -> None:
    """A joint release: what it holds, its versions, and what to do next."""
    name, version = document["name"], document["version"]
    console.result(f"{name} {version}   {state(document)}   {document['digest']}")
    if document["blocked_reason"]:
        console.result(f"blocked     {document['blocked_reason']}")
    rows = [(each["model"], each["version"], *state_and_day(each)) for each in document["members"]]
    console.table(("member", "version", "state", "digest", "added"), rows)
    print_joint_list(document["versions"])
    steps = [f"edgeship rollouts create {name} {version} --stages 20%,100%"]
    if document["rollouts"]:
        steps = [f"edgeship rollouts status {document['rollouts'][0]}"]
    if document["blocked_by"]:
        steps = [f"edgeship explain rollout/{document['blocked_by']}"]
    console.next_steps(*steps)
