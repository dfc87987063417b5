"""``edgeship push`` and ``pull``: bundles in any OCI registry."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeship.cli import console

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails

_REDRAW_S: Final = 0.1
_PLAIN_HTTP: Final = click.option(
    "--plain-http", is_flag=True, help="Plain HTTP to a registry that is not this machine."
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("reference", metavar="REGISTRY/REPO[:TAG]")
@_PLAIN_HTTP
@console.json_option
def push(bundle: Path, reference: str, plain_http: bool, as_json: bool) -> None:
    """Push BUNDLE with its signature to a registry; what is there already is not sent again.

    BUNDLE is the bundle's folder, or the output folder of a build: then build.json, report.html and report.md go along
    as a referrer. Without TAG the bundle's version is taken. Credentials are those of docker login.
    """
    from msgspec import structs

    from edgeship.bundle import Bundle
    from edgeship.bundle.layout import LAYOUT_FILE
    from edgeship.bundle.registry import Reference, RegistryClient, find_evidence
    from edgeship.bundle.registry import push as push_bundle
    from edgeship.bundle.registry.reference import tag_of_version

    place = Reference.parse(reference)
    inner = bundle / "bundle"
    opened = Bundle.open(inner if (inner / LAYOUT_FILE).is_file() else bundle)
    place = structs.replace(place, tag=place.tag or tag_of_version(opened.manifest.version), digest="")
    with RegistryClient(place, push=True, plain_http=plain_http) as client, _Counter() as counter:
        pushed = push_bundle(opened, client, place.tag, evidence=find_evidence(opened), counting=counter)
    console.step("pushed", f"{pushed.uploaded} blobs and manifests, {pushed.uploaded_bytes:,} bytes; "
                           f"the registry had {pushed.known}")  # fmt: skip
    if pushed.moved_from:
        console.step("moved", f"{place.tag} named {pushed.moved_from[:19]} before", "undecided")
    if pushed.evidence:
        console.step("evidence", ", ".join(pushed.evidence))
    if as_json:
        console.result_json({"schema_version": 1, "reference": str(place), "pushed": pushed})
    else:
        console.result(f"{place}  {pushed.digest}")
    console.next_steps(f"edgeship pull {place} -o {console.word(opened.manifest.name)}")


@click.command()
@click.argument("reference", metavar="REGISTRY/REPO:TAG")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="Folder for the bundle and the build's evidence.")  # fmt: skip
@click.option("--author-key", metavar="HEX", default="", help="The author's public key that must have signed it.")
@_PLAIN_HTTP
@console.json_option
def pull(reference: str, output: Path, author_key: str, plain_http: bool, as_json: bool) -> None:
    """Pull a bundle into OUTPUT/bundle; nothing appears unless signature and digests hold.

    REFERENCE ends in :TAG or @sha256:DIGEST. Blobs that an earlier pull left in OUTPUT are not downloaded again.
    """
    from edgeship.bundle.registry import Reference, RegistryClient
    from edgeship.bundle.registry import pull as pull_bundle
    from edgeship_agent.contract.errors import ConfigError

    place = Reference.parse(reference)
    if not place.name:
        raise ConfigError("which version?", key=reference, expected="REGISTRY/REPO:TAG or REGISTRY/REPO@sha256:DIGEST",
                          next_step=f"edgeship pull {place}:TAG -o {output}")  # fmt: skip
    with RegistryClient(place, plain_http=plain_http) as client, _Counter() as counter:
        pulled = pull_bundle(client, place, output, author_key=author_key.lower(), counting=counter)
    console.step("pulled", f"{pulled.downloaded} blobs, {pulled.downloaded_bytes:,} bytes; {pulled.known} were here")
    console.step(
        "signature", f"by author key {pulled.author_key}" + ("" if author_key else ", not checked against any")
    )
    if pulled.evidence:
        console.step("evidence", ", ".join(pulled.evidence))
    if as_json:
        console.result_json({"schema_version": 1, "reference": str(place), "bundle": str(output.absolute() / "bundle"),
                             "pulled": pulled})  # fmt: skip
    else:
        console.result(f"{output.absolute() / 'bundle'}  {pulled.digest}")
    console.next_steps(f"edgeship verify {console.word(output)}")


class _Counter:
    """The running count of bytes, redrawn in place on a terminal."""

    def __init__(self) -> None:
        self._drawn = 0.0
        self._width = 0

    def __enter__(self) -> _Counter:
        import stamina

        stamina.instrumentation.set_on_retry_hooks([self._again])
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def __call__(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes."""
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        self._clear()
        text = f"… {label} {done / 1e6:.1f} of {total / 1e6:.1f} MB"
        self._width = len(text)
        click.echo(f"\r{text}", nl=False, err=True)

    def _again(self, details: RetryDetails) -> None:
        self._clear()
        console.step("again", f"in {details.wait_for:.1f} s: {details.caused_by}", "undecided")

    def _clear(self) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", nl=False, err=True)
            self._width = 0
