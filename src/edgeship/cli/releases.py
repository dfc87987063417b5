"""``edgeship releases``: add a bundle to the fleet server, list and show what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgeship.cli import console, release_lines, version_lines
from edgeship.cli.server_option import server_option
from edgeship_agent.contract.errors import ContractError

if TYPE_CHECKING:
    from edgeship.bundle import Bundle
    from edgeship.cli.api_client import ApiClient

_UPLOAD_TIMEOUT_S: Final = 600.0


@click.group()
def releases() -> None:
    """Add, join, list and show releases."""


@releases.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@server_option
@console.json_option
def add(bundle: Path, server: str, as_json: bool) -> None:
    """Verify BUNDLE, upload what the server lacks, and register it as a release.

    BUNDLE is the bundle's folder, or the output folder of a build. build.json and report.html beside the bundle go
    along.
    """
    from edgeship.bundle import Bundle
    from edgeship.cli.api_client import ApiClient

    opened = Bundle.open(_bundle_folder(bundle))
    author = opened.verify_signature()
    count = opened.verify_digests()
    manifest = opened.manifest
    console.step("verified", f"{manifest.name} {manifest.version} · {count} blobs · signed by {author[:16]}…")
    with ApiClient(server, timeout_s=_UPLOAD_TIMEOUT_S) as client:
        sent, sent_bytes = _upload_missing(client, opened)
        console.step("uploaded", f"{sent} of {count} blobs, {_size(sent_bytes)}; the server had the others")
        added = client.post("releases", _request(opened))
    word = "registered" if added["created"] else "known"
    console.step(word, f"{manifest.name} {manifest.version} · {opened.digest}")
    if as_json:
        console.result_json({"schema_version": 1, "created": added["created"], **added["release"]})
    console.next_steps(f"edgeship rollouts create {manifest.name} {manifest.version} --stages 20%,100%")


@releases.command()
@click.argument("name")
@click.argument("version")
@click.argument("members", nargs=-1, required=True, metavar="MODEL@VERSION...")
@server_option
@console.json_option
def join(name: str, version: str, members: tuple[str, ...], server: str, as_json: bool) -> None:
    """Make releases of several models one release, NAME VERSION, that devices switch to as one.

    For a detector and the classifier behind it, or a denoiser and the model that was trained on its output: all of
    them are staged, proven and committed together, or all of them are taken back.
    """
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        document = client.post("releases/join", {"name": name, "version": version, "members": list(members)})
    release = document["release"]
    if as_json:
        console.result_json({"schema_version": 1, "created": document["created"], **release})
        return
    word = "joined" if document["created"] else "known"
    console.step(word, f"{name} {version} · {release_lines.parts_words(release['parts'])}")
    console.next_steps(f"edgeship rollouts create {name} {version} --stages 20%,100%")


@releases.command(name="list")
@click.option("--model", default="", help="Only releases of this model.")
@server_option
@console.json_option
def list_releases(model: str, server: str, as_json: bool) -> None:
    """List every release, newest first."""
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        document = client.get("releases", {"model": model} if model else None)
    if as_json:
        console.result_json(document)
        return
    found = document["releases"]
    if not found:
        console.note("no release yet")
        console.next_steps("edgeship releases add BUNDLE")
        return
    rows = [(each["model"], each["version"], *release_lines.state_and_day(each)) for each in found]
    console.table(("model", "version", "state", "digest", "added"), rows)
    release_lines.print_joint_list(document["joint"])
    console.next_steps(f"edgeship releases show {found[0]['model']} {found[0]['version']}")


@releases.command()
@click.argument("model")
@click.argument("version")
@server_option
@console.json_option
def show(model: str, version: str, server: str, as_json: bool) -> None:
    """Show one release: the claims of its variants, and its model's versions side by side.

    Of a joint release: the releases that it holds.
    """
    from edgeship.cli.api_client import ApiClient

    with ApiClient(server) as client:
        document = client.get(f"releases/{model}/{version}")
    if as_json:
        console.result_json(document)
        return
    if "members" in document:
        release_lines.print_joint(document)
        return
    console.result(f"{model} {version}   {release_lines.state(document)}   {document['digest']}")
    if document["blocked_reason"]:
        console.result(f"blocked     {document['blocked_reason']}")
    console.table(("variant", "size", "metric", "drop (95 %)", "relative RMS"), map(_variant, document["variants"]))
    console.result("")
    header = ("version", "status", "accuracy", "in the field (95 %)", "p99", "devices", "traffic")
    console.table(header, map(_version, document["versions"]))
    version_lines.print_field(document["versions"])
    release_lines.print_joint_list(document["joined_in"])
    steps = [f"edgeship rollouts create {model} {version} --stages 20%,100%"]
    if document["blocked_by"]:
        steps = [f"edgeship explain rollout/{document['blocked_by']}"]
    console.next_steps(*steps)


def _bundle_folder(path: Path) -> Path:
    """The bundle itself, where the output folder of a build was named."""
    inner = path / "bundle"
    return inner if not (path / "oci-layout").exists() and (inner / "oci-layout").exists() else path


def _upload_missing(client: ApiClient, opened: Bundle) -> tuple[int, int]:
    sent = sent_bytes = 0
    for digest in dict.fromkeys(descriptor.digest for descriptor in opened.descriptors()):
        if client.request("HEAD", f"blobs/{digest}", allowed=(404,)).status_code != 404:
            continue
        data = opened.blob(digest)
        client.request("PUT", f"blobs/{digest}", content=data)
        sent, sent_bytes = sent + 1, sent_bytes + len(data)
    return sent, sent_bytes


def _request(opened: Bundle) -> dict[str, str]:
    from edgeship_agent.contract.oci import ANNOTATION_SIGNATURE

    beside = opened.directory.resolve().parent
    return {
        "digest": opened.digest,
        "author_key": opened.author_key,
        "signature": opened.entry.annotations[ANNOTATION_SIGNATURE],
        "build": _read_text(beside / "build.json"),
        "report": _read_text(beside / "report.html"),
    }


def _read_text(path: Path) -> str:
    """The file's text, or nothing where it is not there.

    Raises:
        ContractError: it is there and cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"cannot be read: {error}", file=path, next_step=f"move {path} away") from error


def _variant(row: dict[str, Any]) -> tuple[str, ...]:
    metric = row["metric"]
    return (
        row["label"],
        _size(row["size_bytes"]),
        f"{metric['name']} {metric['value']:.1%} ({metric['low']:.1%}…{metric['high']:.1%}, n={metric['n']})",
        f"{metric['drop']:+.2%} ({metric['drop_low']:+.2%}…{metric['drop_high']:+.2%})",
        f"{row['relative_rms']:.3g}",
    )


def _size(size_bytes: int) -> str:
    """A size for people.

    >>> _size(21_100), _size(4_200_000)
    ('21.1 kB', '4.2 MB')
    """
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1_000_000 else f"{size_bytes / 1e6:.1f} MB"


def _version(row: dict[str, Any]) -> tuple[str, ...]:
    metric = row["metric"]
    return (
        row["version"],
        row["status"] + (f" ({row['rollout']})" if row["rollout"] else ""),
        "not known" if metric is None else f"{metric['value']:.1%}",
        version_lines.observed(row["observed"]),
        "no calls" if row["latency_p99_ms"] is None else f"{row['latency_p99_ms']:.2f} ms",
        str(row["devices"]),
        "no calls" if row["traffic_share"] is None else f"{row['traffic_share']:.0%} of {row['calls']} calls",
    )
