"""A bundle in the packages of other updaters: a Mender artifact, a Debian package.

Both carry the same folder, the bundle with one target's files in it, and hand it to ``edgeship-agent install``, whose
exit code says whether the model was committed. Archives hold no dates and no names of this machine: the same bundle
gives the same bytes.

Sources: Mender artifact format, version 3 (mender-artifact, Documentation/artifact-format.md); deb(5), ar(5).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edgeship.bundle.layout import INDEX_FILE, LAYOUT_FILE
from edgeship.bundle.read import Bundle
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError

CARRIERS: Final = ("mender", "deb")
#: Name of Mender's update module, of the file with which it is installed, and of the payload's type.
MODULE: Final = "edgeship-model"
_PAYLOAD: Final = "bundle.tar"
_INSTALLED: Final = "usr/share/edgeship/bundles"
_CONFIG: Final = "/etc/edgeship/agent.toml"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}

#: Installs the bundle while no agent has the state directory, and starts the agent again whatever came of it.
_INSTALL: Final = """\
config="${EDGESHIP_CONFIG:-@CONFIG@}"
install_model() {
    was_active=no
    if command -v systemctl >/dev/null 2>&1 && systemctl is-active --quiet edgeship-agent; then
        was_active=yes
        systemctl stop edgeship-agent
    fi
    code=0
    edgeship-agent install "$1" --config "$config" || code=$?
    if [ "$was_active" = yes ]; then
        systemctl start edgeship-agent
    fi
    return "$code"
}
""".replace("@CONFIG@", _CONFIG)

_POSTINST: Final = """\
#!/bin/sh
# Fails where the model was not committed; the model before it is kept.
set -e
@INSTALL@
case "$1" in
    configure) install_model "${DPKG_ROOT:-}/@FOLDER@" ;;
esac
"""

_UPDATE_MODULE: Final = """\
#!/bin/sh
# Mender update module: /usr/share/mender/modules/v3/@MODULE@
set -e
@INSTALL@
case "$1" in
    NeedsArtifactReboot) echo No ;;
    SupportsRollback) echo No ;; # the agent rolls back by itself, before ArtifactInstall fails
    ArtifactInstall)
        # not in Mender's own folder: the agent's user may not be able to read there
        folder="$(mktemp -d -p "${TMPDIR:-/var/tmp}")"
        trap 'rm -rf "$folder"' EXIT
        chmod 755 "$folder"
        tar -xf "$2/files/@PAYLOAD@" -C "$folder"
        install_model "$folder"
        ;;
esac
"""


def export_carrier(bundle: Bundle, target: str, carrier: str, directory: Path) -> tuple[Path, ...]:
    """Write a package that carries a bundle to devices of one target; the signature is checked first.

    Args:
        bundle: what is carried.
        target: id of a target that the bundle has variants for; the others' files are left out.
        carrier: ``mender`` or ``deb``.
        directory: made where it is not there.

    Returns:
        The files that were written: the package, and for Mender the update module that its devices need once.

    Raises:
        VerificationError: the bundle is altered or not signed.
        ConfigError: no variant for that target, or the folder cannot be written.
    """
    bundle.verify_signature()
    files = _carried_files(bundle, target)
    manifest = bundle.manifest
    name = f"{_package_name(manifest.name)}_{_package_version(manifest.version)}"
    arch = next(_ARCHITECTURES.get(v.arch, "all") for v in manifest.variants if v.target == target)
    if carrier == "deb":
        written = {f"{name}_{arch}.deb": _deb(bundle, arch, files)}
    else:
        module = _UPDATE_MODULE.replace("@INSTALL@", _INSTALL).replace("@MODULE@", MODULE)
        written = {
            f"{name}_{target}.mender": _mender(bundle, target, files),
            MODULE: module.replace("@PAYLOAD@", _PAYLOAD).encode(),
        }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file_name, data in written.items():
            (directory / file_name).write_bytes(data)
        if MODULE in written:
            (directory / MODULE).chmod(0o755)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=directory,
                          next_step="name another folder with -o DIR") from error  # fmt: skip
    return tuple(directory / file_name for file_name in written)


def _carried_files(bundle: Bundle, target: str) -> dict[str, bytes]:
    """The layout with the documents and files of one target: path → content."""
    entries = [each for each in bundle.index.manifests if each.annotations.get(oci.ANNOTATION_TARGET) == target]
    if not entries:
        present = sorted({each.target for each in bundle.manifest.variants})
        raise ConfigError("the bundle has no variant for this target", file=bundle.directory,
                          expected=" or ".join(present), got=target,
                          next_step=f"edgeship export {bundle.directory} -t {present[0]} -o DIR --as deb")  # fmt: skip
    digests = [bundle.digest, bundle.manifest_digest, *(each.digest for each in entries)]
    digests += [file.digest for v in bundle.manifest.variants if v.target == target for file in v.files]
    top = {name: (bundle.directory / name).read_bytes() for name in (INDEX_FILE, LAYOUT_FILE)}
    blobs = {f"blobs/sha256/{oci.hex_of(digest)}": bundle.blob(digest) for digest in digests}
    return {**top, **blobs}


def _deb(bundle: Bundle, arch: str, files: dict[str, bytes]) -> bytes:
    name, version = bundle.manifest.name, bundle.manifest.version
    folder = f"{_INSTALLED}/{_package_name(name)}"
    size_kib = -(-sum(len(data) for data in files.values()) // 1024)
    control = (
        f"Package: {_package_name(name)}\nVersion: {_package_version(version)}\nArchitecture: {arch}\n"
        f"Maintainer: {name} <{bundle.author_key[:16]}@author.key.invalid>\nInstalled-Size: {size_kib}\n"
        f"Section: misc\nPriority: optional\nDescription: model {name} {version} for edgeship-agent\n"
        f" Digest {bundle.digest}.\n"
    )
    sums = "".join(f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}  {folder}/{path}\n"
                   for path, data in sorted(files.items()))  # fmt: skip
    postinst = _POSTINST.replace("@INSTALL@", _INSTALL).replace("@FOLDER@", folder)
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", _tar_gz({"./control": control.encode(), "./md5sums": sums.encode(),
                                    "./postinst": postinst.encode()}, programs=("./postinst",))),
        ("data.tar.gz", _tar_gz({f"./{folder}/{path}": data for path, data in files.items()})),
    )  # fmt: skip
    return b"!<arch>\n" + b"".join(_ar_member(name, data) for name, data in members)


def _ar_member(name: str, data: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def _mender(bundle: Bundle, target: str, files: dict[str, bytes]) -> bytes:
    """Order matters: version, manifest, header, data."""
    name = f"{bundle.manifest.name}-{bundle.manifest.version}"
    provides = {f"rootfs-image.{MODULE}.{bundle.manifest.name}.version": bundle.manifest.version}
    payload = _tar(files)
    header = _tar_gz(
        {
            "header-info": _json(
                {
                    "payloads": [{"type": MODULE}],
                    "artifact_provides": {"artifact_name": name},
                    "artifact_depends": {"device_type": [target]},
                }
            ),
            "headers/0000/type-info": _json(
                {
                    "type": MODULE,
                    "artifact_provides": provides,
                    "clears_artifact_provides": [f"rootfs-image.{MODULE}.{bundle.manifest.name}.*"],
                }
            ),
            "headers/0000/meta-data": _json({"digest": bundle.digest, "target": target}),
        }
    )
    version = _json({"format": "mender", "version": 3})
    summed = {f"data/0000/{_PAYLOAD}": payload, "header.tar.gz": header, "version": version}
    manifest = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in summed.items())
    return _tar(
        {
            "version": version,
            "manifest": manifest.encode(),
            "header.tar.gz": header,
            "data/0000.tar.gz": _tar_gz({_PAYLOAD: payload}),
        }
    )


def _tar(files: dict[str, bytes], programs: Iterable[str] = ()) -> bytes:
    """An archive of files, in their order, each folder before what is in it; no dates, no owners."""
    buffer = io.BytesIO()
    known: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, data in files.items():
            if path.startswith("./"):  # a package's folders belong to it; the other archives hold files alone
                parents = [str(parent) for parent in reversed(Path(path[2:]).parents) if str(parent) != "."]
                for parent in [parent for parent in parents if parent not in known]:
                    known.add(parent)
                    folder = tarfile.TarInfo(f"./{parent}/")
                    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(folder)
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o755 if path in programs else 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _tar_gz(files: dict[str, bytes], programs: Iterable[str] = ()) -> bytes:
    return gzip.compress(_tar(files, programs), mtime=0)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _package_name(model: str) -> str:
    """A name that Debian takes (policy 5.6.7).

    >>> _package_name("Résumé_Net 2")
    'edgeship-model-r-sum-net-2'
    """
    return "edgeship-model-" + (re.sub(r"[^a-z0-9+.]+", "-", model.lower()).strip("-.+") or "model")


def _package_version(version: str) -> str:
    """A version that Debian takes (policy 5.6.12): it begins with a digit.

    >>> _package_version("1.4.0"), _package_version("v1_rc/2")
    ('1.4.0', '0v1.rc.2')
    """
    cleaned = re.sub(r"[^A-Za-z0-9.+~]+", ".", version).strip(".") or "0"
    return cleaned if cleaned[0].isdigit() else f"0{cleaned}"
