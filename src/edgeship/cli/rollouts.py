"""``edgeship rollouts``: create, watch and control staged rollouts."""

from __future__ import annotations

import getpass
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from edgeship.cli import console, rollout_lines, version_lines
from edgeship.cli.server_option import server_option
from edgeship_agent.contract.errors import ConfigError, TransferError

_POLL_S: Final = 1.0
#: How long ``--watch`` bears a server that does not answer.
_PATIENCE_S: Final = 60.0
_UP_AND_CLEAR: Final = "\x1b[{lines}F\x1b[J"

F = TypeVar("F", bound=Callable[..., Any])


class _Share(click.ParamType[float]):
    """``10%`` or ``0.1``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share as a fraction; whether it is one is the server's to say."""
        text = str(value).strip()
        try:
            return float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{text!r} is no share; write 10% or 0.1", param, ctx)


_SHARE: Final = _Share()


@click.group()
def rollouts() -> None:
    """Create, watch and control staged rollouts."""


def _limit_options(command: F) -> F:
    """One option for each limit that is set most often; ``--policy`` knows all of them."""
    options = (
        ("--max-drift", float, "Largest distance of the predictions from the bundle's baseline, 0–1."),
        ("--max-failed-ratio", float, "Largest share of failed calls on any device, 0–1."),
        ("--max-crashes", int, "Worker crashes over all devices of a stage."),
        ("--latency-p99-ms", float, "p99 limit on any device."),
        ("--max-latency-ratio", float, "p99 against the same device before the update."),
        ("--min-windows", int, "Telemetry windows that each device must have sent."),
        ("--min-calls", int, "Calls that each device must have answered."),
        ("--soak-s", float, "Shortest time of a stage, in seconds."),
        ("--offer-timeout-s", float, "From the offer to an end on the device, in seconds."),
        ("--shadow-cpu-ratio", float, "Part of a processor's time that a shadow may take, 0–1."),
        ("--shadow-memory-bytes", int, "Most memory of a shadow; a device stops it above that."),
    )
    for name, kind, text in reversed(options):
        command = click.option(name, type=kind, default=None, help=text)(command)
    return command


@rollouts.command()
@click.argument("model")
@click.argument("version")
@click.option("--stages", default="20%,100%", show_default=True, help="Cumulative shares of the fleet.")
@click.option("--filter", "filters", multiple=True, metavar="TAG=VALUE", help="Only devices with this tag.")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), help="TOML file of limits.")
@click.option("--seed", type=int, default=None, help="Of the draw of canaries; drawn and kept where it is not given.")
@click.option("--ab", "ab_share", type=_SHARE, metavar="SHARE", help="Give it this share of each device's traffic.")
@click.option("--shadow", "shadow_share", type=_SHARE, metavar="SHARE", help="Run it unseen on this share of inputs.")
@click.option("--dry-run", is_flag=True, help="List who would get what, and change nothing.")
@_limit_options
@server_option
@console.json_option
def create(
    model: str,
    version: str,
    stages: str,
    filters: tuple[str, ...],
    policy_file: Path | None,
    seed: int | None,
    ab_share: float | None,
    shadow_share: float | None,
    dry_run: bool,
    server: str,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Roll VERSION of MODEL out in stages; canaries are drawn at random within target and runtime.

    MODEL may be the name of a joint release: its models switch as one, and one verdict holds for all of them.

    With --ab each device goes on with the version that it runs and gives VERSION a share of its traffic; with --shadow
    VERSION runs beside it and its answers are thrown away.
    """
    policy = _read_policy(policy_file) | {name: value for name, value in limits.items() if value is not None}
    body = {
        "model": model,
        "version": version,
        "stages": stages,
        "filter": dict(_tag(text) for text in filters),
        "policy": policy,
        "seed": seed,
        **({} if ab_share is None else {"ab_share": ab_share}),
        **({} if shadow_share is None else {"shadow_share": shadow_share}),
    }
    document = _call(server, "POST", "rollouts/preview" if dry_run else "rollouts", body)
    if as_json:
        console.result_json(document)
        return
    if dry_run:
        _print_plan(document)
        console.next_steps(f"edgeship rollouts create {model} {version} --stages {stages}")
        return
    console.result(f"{document['id']} {rollout_lines.change_label(document)}   {document['reason']}")
    console.next_steps(f"edgeship rollouts status {document['id']} --watch")


@rollouts.command(name="list")
@server_option
@console.json_option
def list_rollouts(server: str, as_json: bool) -> None:
    """List every rollout, newest first."""
    document = _call(server, "GET", "rollouts")
    if as_json:
        console.result_json(document)
        return
    found = document["rollouts"]
    if not found:
        console.note("no rollout yet")
        console.next_steps("edgeship releases list")
        return
    header = ("id", "model", "version", "state", "stage", "why")
    console.table(header, [_row(each) for each in found])
    console.next_steps(f"edgeship rollouts status {found[0]['id']}")


@rollouts.command()
@click.argument("rollout_id")
@click.option("--watch", is_flag=True, help="Follow it to its end: 0 completed, 3 taken back or aborted, 4 paused.")
@server_option
@console.json_option
def status(rollout_id: str, watch: bool, server: str, as_json: bool) -> None:
    """Show how far a rollout is, why, and what to do next."""
    if watch:
        sys.exit(_watch(rollout_id, server, as_json))
    document = _call(server, "GET", f"rollouts/{rollout_id}")
    if as_json:
        console.result_json(document)
        return
    _print_status(document)
    rows = [
        (each["id"], str(each["stage_index"] + 1), each["state"].replace("_", " "), rollout_lines.reason(each))
        for each in document["devices"]
    ]
    console.result("")
    console.table(("device", "stage", "state", "reason"), rows)
    models = rollout_lines.model_rows(document)
    if models:
        console.result("")
        console.table(("model", "changes", "stands"), models)
    console.next_steps(rollout_lines.next_command(document))


def _action(name: str, text: str) -> None:
    @rollouts.command(name=name, help=text)
    @click.argument("rollout_id")
    @click.option("--reason", default="", help="In words; kept with the decision.")
    @click.option("--revision", type=int, default=None, help="Refuse if the rollout was changed since this revision.")
    @server_option
    @console.json_option
    def act(rollout_id: str, reason: str, revision: int | None, server: str, as_json: bool) -> None:
        body = {"by": _user(), "reason": reason, "revision": revision}
        document = _call(server, "POST", f"rollouts/{rollout_id}/{name}", body)
        if as_json:
            console.result_json(document)
            return
        _print_status(document)
        console.next_steps(rollout_lines.next_command(document))


_action("pause", "Offer it to nobody else for now; a broken gate still halts it.")
_action("resume", "Go on; the soak of the current stage starts anew.")
_action("abort", "End it: devices that committed the release keep it.")
_action("rollback", "Take it back everywhere it went, and block the release.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "operator"


def _call(server: str, method: str, path: str, body: object = None) -> Any:
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        return client.get(path) if method == "GET" else client.post(path, body)


def _watch(rollout_id: str, server: str, as_json: bool) -> int:
    """Follow a rollout to its end; redrawn in place on a terminal, else a block for every change."""
    shown: list[str] = []
    last_seen_s = time.monotonic()
    while True:
        try:
            document = _call(server, "GET", f"rollouts/{rollout_id}")
        except TransferError:
            if time.monotonic() - last_seen_s > _PATIENCE_S:
                raise
            time.sleep(_POLL_S)
            continue
        last_seen_s = time.monotonic()
        ended = document["state"] in rollout_lines.ENDED
        if not as_json:
            shown = _redraw(document, shown)
        if ended:
            if as_json:
                console.result_json(document)
            return rollout_lines.ENDED[document["state"]]
        time.sleep(_POLL_S)


def _redraw(document: dict[str, Any], shown: list[str]) -> list[str]:
    lines = rollout_lines.status_lines(document, time.time())
    in_place = sys.stdout.isatty() and console.color_wanted(sys.stdout)
    if shown and in_place:
        click.echo(_UP_AND_CLEAR.format(lines=len(shown)), nl=False)
    steady = [lines[0], lines[2]]
    if not shown or in_place or steady != [shown[0], shown[2]]:
        for line in lines:
            console.result(line)
        return lines
    return shown


def _print_status(document: dict[str, Any]) -> None:
    for line in rollout_lines.status_lines(document, time.time())[:-1]:
        console.result(line)
    for compared in document["comparison"]:
        console.result(f"compared    {version_lines.comparison_words(compared)}")


def _print_plan(document: dict[str, Any]) -> None:
    rows = [
        (
            each["device_id"],
            str(each["stage_index"] + 1) if each["state"] == "queued" else "–",
            part["variant"] or "–",
            part["model_digest"][:19] or "–",
            each["reason"] or each["state"].replace("_", " "),
        )
        for each in document["devices"]
        for part in each["parts"]
    ]
    console.table(("device", "stage", "variant", "digest", "note"), rows)


def _row(rollout: dict[str, Any]) -> tuple[str, ...]:
    stage = f"{rollout['stage_index'] + 1} of {len(rollout['stages'])}"
    words = rollout_lines.state_words(rollout)
    return (rollout["id"], rollout["model"], rollout["version"], words, stage, rollout["reason"])


def _tag(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError("not a tag", key="--filter", expected="TAG=VALUE", got=text)
    return name, value


def _read_policy(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path, key="--policy") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a TOML file: {error}", file=path, key="--policy") from error
