"""``edgeship drift`` and ``edgeship incidents``: what the fleet sees that it did not see before."""

from __future__ import annotations

import time
from typing import Any

import click

from edgeship.cli import console
from edgeship.cli.server_option import server_option
from edgeship.cli.version_lines import observed

_STATES = {"alert": "✖ alert", "warn": "? warn", "ok": "✔ ok", "no_data": "· no data"}


@click.group()
def drift() -> None:
    """Show drift per device and signal."""


@drift.command(name="show")
@click.option("--device", help="Only this device, with every signal.")
@click.option("--model", help="Only this model.")
@server_option
@console.json_option
def show_drift(device: str | None, model: str | None, server: str, as_json: bool) -> None:
    """Show the newest distances: each device against the baseline and against its own first windows."""
    params = {name: value for name, value in (("device", device), ("model", model)) if value}
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        document = client.get("drift", params)
    if as_json:
        console.result_json(document)
        return
    rows = document["devices"]
    if not rows:
        console.note("nothing to compare yet: drift is judged once a device has sent windows of a released version")
        console.next_steps("edgeship devices list")
        return
    console.table(
        ("device", "model", "state", "worst signal", "distance", "samples"), [_drift_row(row) for row in rows]
    )
    if device:
        for row in rows:
            console.result(f"\n{row['model']} {row['version']}   accuracy by labels: {observed(row['observed'])}")
            console.table(("signal", "against", "state", "distance", "99 % interval", "limit", "n"), _signal_rows(row))
    console.next_steps("edgeship incidents list", f"edgeship drift show --device {rows[0]['device_id']}")


@click.group()
def incidents() -> None:
    """List and show incidents."""


@incidents.command(name="list")
@click.option("--state", type=click.Choice(["open", "closed"]), help="Only these.")
@click.option("--device", help="Only of this device.")
@server_option
@console.json_option
def list_incidents(state: str | None, device: str | None, server: str, as_json: bool) -> None:
    """List incidents, newest first."""
    params = {name: value for name, value in (("state", state), ("device", device)) if value}
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        document = client.get("incidents", params)
    if as_json:
        console.result_json(document)
        return
    rows = document["incidents"]
    if not rows:
        console.note("no incident")
        console.next_steps("edgeship drift show")
        return
    console.table(
        ("incident", "state", "kind", "opened", "what"),
        [
            (str(row["id"]), _incident_state(row), row["kind"], _clock(row["opened_at_s"]), row["sentence"])
            for row in rows
        ],
    )
    console.next_steps(f"edgeship explain incident/{rows[0]['id']}")


@incidents.command(name="show")
@click.argument("number", type=int)
@server_option
@console.json_option
def show_incident(number: int, server: str, as_json: bool) -> None:
    """Show one incident with what it was decided from."""
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        incident = client.get(f"incidents/{number}")
    if as_json:
        console.result_json(incident)
        return
    console.result(f"incident {incident['id']}   {_incident_state(incident)}   {incident['kind']}")
    console.result(f"{'device':<10}{incident['device_id']}, {incident['model']} {incident['version']}")
    console.result(f"{'what':<10}{incident['sentence']}")
    for decision in incident["decisions"]:
        console.result(f"{_clock(decision['at_s']):<10}{decision['kind'].replace('_', ' ')}: {decision['sentence']}")
    distances = incident["evidence"].get("distances", [])
    if distances:
        console.table(
            ("signal", "against", "state", "distance", "99 % interval", "limit", "n"),
            [_signal_row(line) for line in distances],
        )
    if incident["evidence"].get("next_step"):
        console.note(f"what to do: {incident['evidence']['next_step']}")
    console.next_steps(f"edgeship explain incident/{number}", f"edgeship drift show --device {incident['device_id']}")


def _drift_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["device_id"],
        f"{row['model']} {row['version']}",
        _STATES[row["state"]],
        row["worst_signal"] or "-",
        f"{row['worst_value']:.3f}" if row["worst_signal"] else "-",
        str(row["sample_count"]),
    )


def _signal_rows(row: dict[str, Any]) -> list[tuple[str, ...]]:
    return [_signal_row(figure) for figure in row["figures"]]


def _signal_row(figure: dict[str, Any]) -> tuple[str, ...]:
    return (
        figure["signal"],
        "own first windows" if figure["reference"] == "device" else "baseline",
        _STATES[figure["state"]],
        f"{figure['value']:.3f}",
        f"{figure['low']:.3f}…{figure['high']:.3f}",
        f"{figure['alert']:.2f}",
        str(figure["n"]),
    )


def _incident_state(incident: dict[str, Any]) -> str:
    return "✖ open" if incident["state"] == "open" else "✔ closed"


def _clock(at_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_s))
