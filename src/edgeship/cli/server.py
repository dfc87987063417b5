"""``edgeship server``: run the fleet server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import msgspec

from edgeship.cli import console
from edgeship_agent.contract.errors import ConfigError


@click.group()
def server() -> None:
    """Run the fleet server."""


@server.command()
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), required=True, help="The server's folder.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Of dashboard and API: loopback only, for they have no login.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--broker", "broker_url", default="", help="An external MQTT 5 broker: mqtt://HOST[:PORT].")
@click.option(
    "--broker-port",
    type=click.IntRange(0, 65535),
    default=None,
    help="Of the embedded broker (1883; 0 takes a free one), or of the one for other machines (8883).",
)
@click.option("--devices-host", default="", metavar="ADDRESS", help="Let in devices of other machines, over TLS, here.")
@click.option(
    "--devices-name", multiple=True, metavar="NAME", help="Host name or address that devices call; repeatable."
)
@click.option("--devices-port", type=click.IntRange(1, 65535), default=8443, show_default=True, help="Of updates.")
@click.option("--enrol-port", type=click.IntRange(1, 65535), default=8444, show_default=True, help="Of enrolment.")
@click.option(
    "--websockets-port", type=click.IntRange(0, 65535), default=0, help="Of MQTT over WebSockets for devices; 0: none."
)
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="TOML with more knobs.")
@click.option("--accept-baseline", is_flag=True, help="Drift from the bundle's baseline opens incidents too.")
def run(
    data: Path,
    host: str,
    port: int,
    broker_url: str,
    broker_port: int | None,
    devices_host: str,
    devices_name: tuple[str, ...],
    devices_port: int,
    enrol_port: int,
    websockets_port: int,
    config_file: Path | None,
    accept_baseline: bool,
) -> None:
    """Run the server until Ctrl-C: registry, rollouts, drift, API, dashboard and an embedded MQTT broker."""
    from edgeship.server.config import ConfigFile, ServerConfig, check_host, devices_config, read_config_file

    check_host(host)
    ports = (devices_port, enrol_port, 8883 if broker_port is None else broker_port, websockets_port)
    devices = devices_config(devices_host, devices_name, ports)
    if devices is not None and broker_url:
        raise ConfigError("cannot be used with --devices-host, which brings a broker along", key="--broker")
    knobs = read_config_file(config_file) if config_file else ConfigFile()
    from edgeship.server.process import ServerInfo, run_server

    config = ServerConfig(
        data=data.absolute(),
        host=host,
        port=port,
        broker_url=broker_url,
        broker_port=1883 if broker_port is None else broker_port,
        devices=devices,
        tick_s=knobs.tick_s,
        silence_s=knobs.silence_s,
        accept_baseline=knobs.accept_baseline or accept_baseline,
        drift=knobs.drift,
    )
    _log_to_stderr()
    announced: list[ServerInfo] = []

    def ready(info: ServerInfo) -> None:
        if announced:
            console.step("broker", f"started again at {info.broker_url}")
            return
        announced.append(info)
        console.step("ready", f"dashboard {info.url}   ·   broker {info.broker_url}")
        console.step("open", "no password: only programs on this machine can reach it", "note")
        if info.enrol_url:
            console.step("devices", f"enrol at {info.enrol_url}, each with a token of yours")
            console.next_steps(f"EDGESHIP_SERVER={info.url} edgeship devices enroll")
            return
        console.step("devices", f"need {config.data / 'trust' / 'root.json'} and {config.data / 'trust' / 'goal.pub'}")
        console.next_steps(f"EDGESHIP_SERVER={info.url} edgeship devices list")

    console.step("starting", f"data in {config.data}", "note")
    run_server(config, ready)
    console.step("stopped", "everything is on disk; start it again with the same --data")


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    for noisy in ("alembic", "httpx", "tuf", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@server.command()
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), required=True, help="The server's folder.")
@console.json_option
def info(data: Path, as_json: bool) -> None:
    """Show where the newest server over a folder was started."""
    from edgeship.server.process import read_server_info

    found = read_server_info(data)
    if found is None:
        raise ConfigError(
            "no server was started over this folder", file=data, next_step="edgeship server run --data DIR"
        )
    if as_json:
        console.result_json(found)
        return
    for name, value in msgspec.structs.asdict(found).items():
        console.result(f"{name:<16}{value}")
