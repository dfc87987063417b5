"""``edgeship explain``: why something was decided, with rule, value, interval, samples and next step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgeship.cli import console
from edgeship.cli.server_option import server_option
from edgeship_agent.contract.errors import ConfigError

if TYPE_CHECKING:
    from edgeship.build.schema import BuildDocument, GateReport

#: Forms of an ID that the server answers: its first part → the whole.
_ON_SERVER: Final = {"rollout": "rollout/ID[/GATE]", "incident": "incident/ID", "refusal": "refusal/DEVICE/ATTEMPT"}
_FORMS: Final = ("build/GATE[@DIR]", "cache/PASS", *_ON_SERVER.values())
_MARKS: Final = {True: "✔ holds", False: "✖ broken", None: "? undecided"}


@click.command()
@click.argument("subject", metavar="ID")
@server_option
@console.json_option
def explain(subject: str, server: str, as_json: bool) -> None:
    """Explain a verdict.

    \b
    ID is one of
      build/GATE[@DIR]          a gate of a build, from DIR/build.json (default: build)
      cache/PASS                why a build did something again
      rollout/ID[/GATE]         a rollout's newest verdict, or one gate of it
      incident/ID               why an incident was opened
      refusal/DEVICE/ATTEMPT    why a device did not take an update
    """  # noqa: D301 (\b is click's mark for text that is not to be wrapped)
    if subject.startswith("cache/"):
        _explain_cache(subject, as_json=as_json)
        return
    if subject.startswith("build/"):
        document = _explain_build(subject)
    else:
        _check_form(subject)
        from edgeship.cli.api_client import ApiClient

        with ApiClient(server) as client:
            document = client.get(f"explain/{subject.strip('/')}")
    if as_json:
        console.result_json(document)
        return
    _print(document)


def _check_form(subject: str) -> None:
    """Refuse what no server could answer before one is asked.

    Raises:
        ConfigError: the ID has none of the documented forms.
    """
    kind, _, rest = subject.strip("/").partition("/")
    if kind in _ON_SERVER and rest:
        return
    meant = _ON_SERVER.get(kind, f"build/{subject}")
    raise ConfigError("not an ID that can be explained", key="ID", expected=" | ".join(_FORMS),
                      got=subject or "nothing", next_step=f"edgeship explain {meant}")  # fmt: skip


def _explain_cache(subject: str, *, as_json: bool) -> None:
    """What of its key made the newest entry of a pass another one than those before.

    Raises:
        ConfigError: nothing is kept of that pass.
    """
    from edgeship.build.cache.basis import root
    from edgeship.build.cache.store import entries
    from edgeship.build.cache.why import why

    name = subject.removeprefix("cache/")
    found = entries(root())
    answer = why(found, name)
    if answer is None:
        known = ", ".join(sorted({each.entry.name for each in found})) or "none"
        raise ConfigError("nothing is kept of this pass", key=name, expected=known, next_step="edgeship cache list")
    newest, nearest = answer.newest.entry, answer.nearest
    sentence = f"{name} was done at {_moment(newest.made_at_s)} and took {newest.seconds:g} s"
    reason = "; ".join(each.sentence for each in answer.differences)
    sentence += f": {reason}" if nearest is not None else ": nothing of it was known before"
    if as_json:
        console.result_json({
            "schema_version": 1, "id": subject, "sentence": sentence, "made_at_s": newest.made_at_s,
            "nearest_made_at_s": nearest.entry.made_at_s if nearest is not None else None,
            "differences": answer.differences, "key": newest.key,
        })  # fmt: skip
        return
    console.result(sentence)
    console.next_steps("edgeship cache list")


def _print(document: dict[str, Any]) -> None:
    console.result(document["sentence"])
    console.result(f"state     {document['state'].replace('_', ' ')}, {_moment(document['decided_at_s'])}")
    console.result(f"data      {document['window']}")
    for rule in document["rules"]:
        console.result("")
        console.result(f"{_MARKS[rule['holds']]:<12}{rule['id']}: {rule['rule']}")
        console.result(f"{'':<12}{rule['sentence']}")
        console.result(f"{'':<12}{_figures(rule)}")
    if document["history"]:
        console.result("")
        for line in document["history"]:
            console.result(f"history   {line}")
    console.result("")
    console.result(f"replay    {_replay(document['replay'])}")
    if document["advice"]:
        console.result(f"advice    {document['advice']}")
    console.next_steps(*document["next_steps"])


def _figures(rule: dict[str, Any]) -> str:
    parts = [f"{name} {'none' if rule[name] is None else format(rule[name], '.4g')}" for name in ("value", "limit")]
    if rule["low"] is not None and rule["high"] is not None:
        parts.append(f"interval {rule['low']:.4g}…{rule['high']:.4g}")
    elif rule["low"] is not None:
        parts.append(f"at least {rule['low']:.4g}")
    parts.append(f"n {rule['n']}")
    if rule["devices"]:
        shown = ", ".join(rule["devices"][:5])
        parts.append(f"devices {shown}" + (f" and {len(rule['devices']) - 5} more" if len(rule["devices"]) > 5 else ""))
    return " · ".join(parts)


def _replay(outcome: str) -> str:
    words = {
        "identical": "recomputed from the stored evidence: the identical verdict",
        "different": "recomputed from the stored evidence: A DIFFERENT VERDICT; the rules have changed since",
        "not decided yet": "nothing is decided yet: these are the figures of this moment",
        "evidence is gone": "cannot be recomputed: some of the data is not there any more",
    }
    return words.get(outcome, outcome)


def _moment(at_s: float | None) -> str:
    return "at an unknown time" if at_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def _explain_build(subject: str) -> dict[str, Any]:
    """Gates of a build, from its build.json.

    Raises:
        ConfigError: no such file or gate.
    """
    from edgeship.build.schema import BuildDocument
    from edgeship_agent.contract.wire import read_json

    gate, _, folder = subject.removeprefix("build/").partition("@")
    path = Path(folder or "build") / "build.json"
    try:
        data = path.read_bytes()
        written_s = path.stat().st_mtime
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", file=path, next_step=f"edgeship explain build/{gate}@DIR"
        ) from error
    document = read_json(data, BuildDocument, file=path)
    wanted = [each for each in document.gates if gate in (each.id, _label(each), f"{each.id}/{_label(each)}", "")]
    if not wanted:
        known = ", ".join(dict.fromkeys(each.id for each in document.gates)) or "none"
        raise ConfigError(
            "the build has no such gate", file=path, key=gate, expected=known, next_step="name one of these"
        )
    return _build_explanation(subject, document, wanted, written_s)


def _build_explanation(
    subject: str, document: BuildDocument, gates: list[GateReport], written_s: float
) -> dict[str, Any]:
    from edgeship.bundle.rules import follows

    same = all(follows(each) for each in gates)
    hints = list(dict.fromkeys(each.next for each in gates if each.next))
    samples = ", ".join(f"{each.role} {each.samples} samples" for each in document.data) or "no data sets"
    reasons = "; ".join(dict.fromkeys(each.reason for each in document.targets))
    return {
        "schema_version": 1,
        "id": subject,
        "sentence": gates[0].sentence if len(gates) == 1 else f"{document.verdict}: {reasons or document.verdict}",
        "state": document.verdict,
        "decided_at_s": written_s,
        "window": samples,
        "rules": [
            {
                "id": f"{each.id} {_label(each)}",
                "rule": each.rule,
                "value": each.value,
                "limit": each.limit,
                "low": each.low,
                "high": each.high,
                "n": each.n,
                "holds": each.holds,
                "devices": [],
                "sentence": each.sentence,
            }
            for each in gates
        ],
        "advice": "; ".join(hints),
        "replay": "identical" if same else "different",
        "history": [f"{each.target}/{each.runtime} {each.outcome}: {each.reason}" for each in document.tried],
        "next_steps": [f"edgeship inspect {console.word(document.bundle or Path(document.report).parent)}"],
    }


def _label(gate: GateReport) -> str:
    return f"{gate.target}/{gate.runtime}/{gate.precision}"
