"""``edgeship demo``."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.cli import console

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_PARENT = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--devices", default=6, show_default=True, type=click.IntRange(3, 24), help="Agents to start.")
@click.option("--exit", "exit_at_end", is_flag=True, help="End after the result instead of leaving the dashboard open.")
@click.option("--json", "as_json", is_flag=True, help="Events and result as JSON lines on stdout.")
@click.option("--broker", default="", metavar="URL", help="Use this MQTT broker instead of the embedded one.")
@click.option(
    "--bundles", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of v1–v3 builds."
)
@click.option("--skip-timing", is_flag=True, help="Claim logic only, no latency.")
@click.option("--folder", type=_PARENT, help="Make the demo's folder in here.")
@click.option("--files", type=_PARENT, help="Write the demo's models and data into this folder, and stop.")
@click.option("--keep", is_flag=True, help="Keep the demo's folder (logs, databases, bundles).")
def demo(
    devices: int,
    exit_at_end: bool,
    as_json: bool,
    broker: str,
    bundles: Path | None,
    skip_timing: bool,
    folder: Path | None,
    files: Path | None,
    keep: bool,
) -> None:
    """Watch the whole loop on this machine: build, fleet, staged update, drift, bad update, rollback.

    Starts a server, a broker and agents as real processes on loopback, in a folder of its own, and checks every
    claim that it prints. Exit code 1 if one does not hold.
    """
    if files is not None:
        _write_files(files)
        return
    from edgeship.demo.run import DemoOptions, run_demo

    options = DemoOptions(
        device_count=devices,
        exit_at_end=exit_at_end,
        as_json=as_json,
        broker_url=broker,
        bundles=None if bundles is None else bundles.resolve(),
        timing=not skip_timing,
        parent=folder,
        keep=keep,
    )
    ok = run_demo(options)
    if not ok:
        console.next_steps("edgeship demo --keep", "read the logs in the folder that it names")
        raise click.exceptions.Exit(1)


def _write_files(folder: Path) -> None:
    from edgeship.demo.building import write_files

    for path in write_files(folder):
        console.result(str(path))
    console.next_steps(
        f"edgeship build {folder}/digits-v1.onnx -t x86-64-litert --calibration {folder}/calibration.npz"
        f" --evaluation {folder}/evaluation.npz --preprocess {folder}/preprocess.toml"
    )
