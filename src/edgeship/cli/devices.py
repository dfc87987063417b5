"""``edgeship devices``: let devices in, list, show and tag them, put them out."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from edgeship.cli import console
from edgeship.cli.server_option import server_option
from edgeship.cli.version_lines import observed
from edgeship_agent.contract.errors import ConfigError

#: How long an invitation is good for, unless asked otherwise.
_ONE_DEVICE_S: Final = 3600.0
_BATCH_S: Final = 30 * 86400.0


@click.group()
def devices() -> None:
    """Let devices in, list, show and tag them, put them out."""


@devices.command(name="list")
@click.option("--tag", help="Only devices with NAME=VALUE.")
@server_option
@console.json_option
def list_devices(tag: str | None, server: str, as_json: bool) -> None:
    """List every device: presence, target, what it runs."""
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        document = client.get("devices", {"tag": tag} if tag else None)
    if as_json:
        console.result_json(document)
        return
    found = document["devices"]
    if not found:
        console.note("no device yet: a device appears when its agent connects to the broker")
        console.next_steps("edgeship-agent run --config agent.toml")
        return
    console.table(("device", "presence", "target", "running", "incidents", "last heard"), [_row(d) for d in found])
    console.next_steps(f"edgeship devices show {found[0]['id']}", "edgeship drift show")


@devices.command()
@click.argument("device_id")
@server_option
@console.json_option
def show(device_id: str, server: str, as_json: bool) -> None:
    """Show one device: identity, models, books of its windows."""
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        device = client.get(f"devices/{device_id}")
    if as_json:
        console.result_json(device)
        return
    outbox = device["outbox"]
    lines = {
        "device": device["id"],
        "presence": f"{_presence(device)}, last heard {_ago(device['last_seen_s'])}",
        "target": f"{device['target']} ({device['arch']}{''.join(f' {name}' for name in device['isa'])})",
        "runtimes": ", ".join(f"{name} {version}" for name, version in sorted(device["runtimes"].items())) or "none",
        "tags": ", ".join(f"{name}={value}" for name, value in sorted(device["tags"].items())) or "none",
        "goal": f"generation {device['goal_generation']} accepted",
        "windows": f"{device['windows_stored']} stored, {device['windows_duplicate']} repeats dropped, "
        f"{device['windows_evicted']} given up by the device; the device counts {outbox.get('created', 0)} created, "
        f"{outbox.get('waiting', 0)} waiting",
        "agent": f"{device['agent_version']}, ended by a power cut or a kill {outbox.get('unclean_ends', 0)} times",
        "incidents": f"{device['open_incidents']} open",
    }
    for label, text in lines.items():
        console.result(f"{label:<12}{text}")
    for arm in device["running"]:
        why = f", stands in for the variant of the build: {arm['fallback']}" if arm.get("fallback") else ""
        console.result(f"{'running':<12}{arm['model']} {arm['version']} {arm['variant']} ({arm['state']}{why})")
    for total in device["totals"]:
        console.result(
            f"{'calls':<12}{total['model']} {total['version']}: {total['inferences']} answered, "
            f"{total['failures']} failed, {total['crashes']} worker deaths in {total['windows']} windows"
        )
        if total["observed"] is not None:
            console.result(f"{'labels':<12}{total['model']} {total['version']}: {observed(total['observed'])}")
    console.next_steps(
        f"edgeship drift show --device {device['id']}", f"edgeship devices tag {device['id']} NAME=VALUE"
    )


@devices.command()
@click.argument("device_id")
@click.argument("tags", nargs=-1, metavar="NAME=VALUE...")
@click.option("--remove", multiple=True, metavar="NAME", help="Take a tag of the operator's back.")
@server_option
@console.json_option
def tag(device_id: str, tags: tuple[str, ...], remove: tuple[str, ...], server: str, as_json: bool) -> None:
    """Tag a device; an operator's tags win over the device's own."""
    wanted = dict(_parse_tag(text) for text in tags)
    if not wanted and not remove:
        raise ConfigError("nothing to change", expected="NAME=VALUE or --remove NAME")
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        device = client.patch(f"devices/{device_id}/tags", {"set": wanted, "remove": list(remove)})
    if as_json:
        console.result_json(device)
        return
    shown = ", ".join(f"{name}={value}" for name, value in sorted(device["tags"].items())) or "no tags"
    console.result(f"{device_id}: {shown}")
    console.next_steps(*(f"edgeship devices list --tag {name}={value}" for name, value in list(wanted.items())[:1]))


@devices.command()
@click.option(
    "--group", default="", metavar="NAME", help="The devices' group: the tag group=NAME, which they cannot change."
)
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Another tag of theirs; repeatable.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="How many devices may come by it.")
@click.option(
    "--expires",
    "days",
    type=click.FloatRange(0, min_open=True),
    metavar="DAYS",
    help="For how long.  [default: an hour for one device, 30 days for more]",
)
@click.option("--approve", is_flag=True, help="Each waits until you approve it: for keys in golden images.")
@server_option
@console.json_option
def enroll(
    group: str, tags: tuple[str, ...], count: int, days: float | None, approve: bool, server: str, as_json: bool
) -> None:  # fmt: skip
    """Invite a device, or --count of them: prints the one line to run there."""
    wanted = dict(_parse_tag(text) for text in tags) | ({"group": group} if group else {})
    default_s = _ONE_DEVICE_S if count == 1 else _BATCH_S
    body = {"tags": wanted, "count": count, "valid_s": days * 86400.0 if days else default_s, "needs_approval": approve}
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        made = client.post("invitations", body)
    if as_json:
        console.result_json(made)
        return
    devices_word = "one device" if count == 1 else f"{count} devices"
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(made["expires_at_s"]))
    console.step("invited", f"{made['id']}: {devices_word}, until {until}; the token is shown this once")
    console.result(f"edgeship-agent enroll {made['enrol_url']} --token {made['token']} --target TARGET")
    console.next_steps("edgeship devices identities")


@devices.command(name="identities")
@server_option
@console.json_option
def list_identities(server: str, as_json: bool) -> None:
    """List who is in the fleet, and who waits to be let in."""
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        document = client.get("identities")
    if as_json:
        console.result_json(document)
        return
    found = document["identities"]
    if not found:
        console.note("nobody yet: a device is here when it has run the line that the next command prints")
        console.next_steps("edgeship devices enroll")
        return
    console.table(("device", "state", "key", "target", "group", "until"), [_identity_row(each) for each in found])
    waiting = [each["device_id"] for each in found if each["state"] == "pending"]
    console.next_steps(f"edgeship devices approve {waiting[0]}" if waiting else "edgeship devices list")


@devices.command()
@click.argument("device_id")
@server_option
@console.json_option
def approve(device_id: str, server: str, as_json: bool) -> None:
    """Let in a device that waits; compare its key with what the device shows."""
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        identity = client.post(f"devices/{device_id}/approve", {})
    if as_json:
        console.result_json(identity)
        return
    console.result(f"{device_id} is in the fleet (key {identity['key_sha256'][:16]})")
    console.next_steps("edgeship devices list")


@devices.command()
@click.argument("device_id")
@server_option
@console.json_option
def revoke(device_id: str, server: str, as_json: bool) -> None:
    """Put a device out: its certificates count no more and its connection ends."""
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        done = client.post(f"devices/{device_id}/revoke", {})
    if as_json:
        console.result_json(done)
        return
    console.result(f"{device_id} was put out of the fleet")
    console.next_steps("edgeship devices enroll")


def _identity_row(identity: dict[str, Any]) -> tuple[str, ...]:
    until_s = identity["expires_at_s"]
    group = ", ".join(f"{name}={value}" for name, value in sorted(identity["tags"].items())) or "-"
    until = time.strftime("%Y-%m-%d", time.localtime(until_s)) if until_s else "-"
    state = "✔ in" if identity["state"] == "active" else "! waits"
    return (identity["device_id"], state, identity["key_sha256"][:16], identity["target"] or "-", group, until)


def _parse_tag(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError("not a tag", expected="NAME=VALUE", got=text)
    return name, value


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    running = ", ".join(
        f"{arm['model']} {arm['version']}"
        + ("" if arm["state"] == "committed" else f" ({arm['state']})")
        + (" (fallback)" if arm.get("fallback") else "")
        for arm in device["running"]
    )
    return (
        device["id"],
        _presence(device),
        device["target"],
        running or "nothing",
        str(device["open_incidents"]),
        _ago(device["last_seen_s"]),
    )


def _presence(device: dict[str, Any]) -> str:
    if device["revoked"]:
        return "✖ revoked"
    return "✔ online" if device["online"] else "✖ offline"


def _ago(at_s: float) -> str:
    elapsed_s = max(0.0, time.time() - at_s)
    for limit_s, unit_s, unit in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if elapsed_s < limit_s:
            return f"{elapsed_s / unit_s:.0f} {unit} ago"
    return f"{elapsed_s / 86400.0:.0f} days ago"
