"""A rollout in a few lines: what, how far, why, what next. Pure: a document and a clock in, lines out."""

from __future__ import annotations

import time
from typing import Any, Final

#: State → glyph and words. A word always stands beside the glyph.
STATES: Final[dict[str, tuple[str, str]]] = {
    "draft": ("·", "DRAFT"),
    "validated": ("·", "VALIDATED"),
    "waiting_approval": ("?", "WAITING FOR APPROVAL"),
    "denied": ("✖", "DENIED"),
    "scheduled": ("·", "SCHEDULED"),
    "running": ("·", "RUNNING"),
    "paused": ("?", "PAUSED"),
    "completed": ("✔", "COMPLETED"),
    "halted": ("✖", "HALTED"),
    "rolling_back": ("✖", "ROLLING BACK"),
    "rolled_back": ("✖", "ROLLED BACK"),
    "rollback_incomplete": ("✖", "ROLLBACK INCOMPLETE"),
    "aborted": ("✖", "ABORTED"),
}
_STAGES: Final = {"passed": " ✔", "failed": " ✖", "inconclusive": " ?", "pending": ""}
#: States after which nothing changes without a person, with the exit code of ``--watch``.
ENDED: Final[dict[str, int]] = {
    "completed": 0,
    "rolled_back": 3,
    "rollback_incomplete": 3,
    "aborted": 3,
    "denied": 3,
    "paused": 4,
}


def status_lines(rollout: dict[str, Any], now_s: float) -> list[str]:
    """The rollout as four lines.

    Args:
        rollout: document of ``GET /api/v1/rollouts/{id}``.
        now_s: seconds since the epoch.
    """
    return [
        _headline(rollout),
        f"{_rail(rollout)}      {_exposure(rollout, now_s)}",
        f"why   {rollout['reason']}",
        f"next  {next_command(rollout)}",
    ]


def next_command(rollout: dict[str, Any]) -> str:
    """The command that follows from a rollout's state."""
    name = rollout["id"]
    commands = {
        "running": f"edgeship rollouts status {name} --watch",
        "rolling_back": f"edgeship rollouts status {name} --watch",
        "paused": f"edgeship explain rollout/{name}   ·   edgeship rollouts resume {name}",
        "completed": f"edgeship releases show {rollout['model']} {rollout['version']}",
        "aborted": f"edgeship rollouts rollback {name}",
    }
    return commands.get(rollout["state"], f"edgeship explain rollout/{name}")


def change_label(rollout: dict[str, Any]) -> str:
    """What the rollout changes.

    >>> change_label({"model": "digits", "version": "v2", "previous_versions": ["v1"]})
    'digits v1→v2'
    """
    before = "/".join(rollout.get("previous_versions", []))
    return f"{rollout['model']} {before}→{rollout['version']}" if before else f"{rollout['model']} {rollout['version']}"


def state_words(rollout: dict[str, Any]) -> str:
    """Glyph and words of a state.

    >>> state_words({"state": "rolled_back"})
    '✖ ROLLED BACK'
    """
    return " ".join(STATES.get(rollout["state"], ("?", rollout["state"].upper())))


def reason(device: dict[str, Any]) -> str:
    """Why a device stands as it does; the name of a model before the reason stays as it is.

    >>> reason({"reason": "wake_word: golden_mismatch"})
    'wake_word: golden mismatch'
    """
    model, colon, code = device["reason"].rpartition(": ")
    return f"{model}{colon}{code.replace('_', ' ')}"


def model_rows(rollout: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of a joint release: each model, from which versions to which, and how it stands on how many devices."""
    if len(rollout["parts"]) < 2:
        return []
    rows = []
    for part in rollout["parts"]:
        stands = [each for device in rollout["devices"] for each in device["parts"] if each["model"] == part["model"]]
        before = "/".join(sorted({each["previous_version"] for each in stands if each["previous_version"]}))
        states = [each["state"].replace("_", " ") for each in stands]
        words = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        change = f"{before}→{part['version']}" if before and before != part["version"] else part["version"]
        rows.append((part["model"], change + (" (unchanged)" if before == part["version"] else ""), words))
    return rows


def _headline(rollout: dict[str, Any]) -> str:
    words = state_words(rollout)
    if rollout["ended_at_s"] is not None:
        words += time.strftime(" %H:%M", time.localtime(rollout["ended_at_s"]))
    if rollout["state"] in {"rolled_back", "rollback_incomplete", "rolling_back"}:
        words += " (automatic)" if rollout["reason"].startswith("Halted") else " (by an operator)"
    healthy = ""
    if rollout["state"] == "rolled_back":
        versions = " and ".join(rollout["previous_versions"])
        healthy = f"   fleet healthy on {versions}" if versions else "   no device has the model any more"
    return f"{rollout['id']} {change_label(rollout)}   {words}{healthy}"


def _rail(rollout: dict[str, Any]) -> str:
    stages = zip(rollout["stages"], rollout["stage_states"], strict=True)
    return " ── ".join(f"{share * 100:.4g} %{_STAGES.get(state, f' · {state}')}" for share, state in stages)


def _exposure(rollout: dict[str, Any], now_s: float) -> str:
    had = [device for device in rollout["devices"] if device["activated_at_s"] is not None]
    if not had:
        return "no device has had it yet"
    first_s = min(device["activated_at_s"] for device in had)
    until_s = rollout["ended_at_s"] or now_s
    waiting = sum(device["state"] in {"queued", "offered", "in_progress"} for device in rollout["devices"])
    words = f"{len(had)} device{'' if len(had) == 1 else 's'} had it for {_duration(until_s - first_s)}"
    if rollout["state"] in {"running", "paused", "completed"}:
        words = (
            f"{len(had)} of {len(rollout['devices'])} devices have had it, the first for {_duration(now_s - first_s)}"
        )
    return words + (f"; {waiting} waiting" if waiting else "")


def _duration(seconds: float) -> str:
    """A duration for people.

    >>> _duration(42.4), _duration(2500.0), _duration(10000.0)
    ('42 s', '42 min', '2.8 h')
    """
    if seconds < 120.0:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"
