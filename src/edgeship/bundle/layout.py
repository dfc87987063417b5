"""The folder of an OCI image layout: names in it, and what may stand in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import Variant

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
LAYOUT_BYTES: Final = b'{"imageLayoutVersion":"1.0.0"}'
#: Longest JSON document that is read (OCI asks registries to take manifests of 4 MiB).
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
#: ``platform.machine()`` → the Go toolchain's name, which OCI uses.
PLATFORMS: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "cortex-m": "arm"}
#: Role of a bundle file → media type of its layer.
LAYER_TYPES: Final = {
    "model": oci.WEIGHT_TYPE,
    "weights": oci.WEIGHT_TYPE,
    "golden_inputs": oci.DATASET_TYPE,
    "golden_outputs": oci.DATASET_TYPE,
    "profile": oci.DATASET_TYPE,
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_PART: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")
_MAX_PATH_LENGTH: Final = 200


def blob_path(directory: Path, digest: str) -> Path:
    """Where a blob lies; the digest is checked, so the path cannot leave the folder."""
    return directory / "blobs" / "sha256" / oci.hex_of(digest)


def check_name(name: str, key: str, file: Path | None = None) -> str:
    """Return a bundle's name or version, or a part of a variant's label, if it stays one part of any path.

    Args:
        name: as the bundle has it.
        key: what it names, such as ``version``.
        file: where it stands.

    Raises:
        ContractError: it is empty or too long, climbs, is hidden, begins as an option does, or has odd characters.

    >>> check_name("raspberry-pi-5", "target")
    'raspberry-pi-5'
    >>> check_name("..", "target")
    Traceback (most recent call last):
    edgeship_agent.contract.errors.ContractError: target: name leaves the bundle or cannot be used (expected ...
    """
    if not _NAME.fullmatch(name):
        raise ContractError(
            "name leaves the bundle or cannot be used",
            file=file,
            key=key,
            expected="letters, digits and . _ + -, at most 128, a letter or digit first",
            got=repr(name[:80]),
            next_step="build it again with plain names; use nothing of such a bundle from elsewhere",
        )
    return name


def check_label(variant: Variant, file: Path | None = None) -> None:
    """Check the three parts of a variant's label, each by itself: a slash in one would shift the others.

    Raises:
        ContractError: as :func:`check_name`.
    """
    for key in ("target", "runtime", "precision"):
        check_name(getattr(variant, key), f"{variant.label[:80]!r} {key}", file)


def check_file_path(path: str) -> str:
    """Return a layer's file name if it stays inside the folder that it is put in.

    Raises:
        ContractError: it is absolute, climbs, is hidden, has odd characters, or takes the manifest's name.

    >>> check_file_path("model.onnx")
    'model.onnx'
    >>> check_file_path("../model.onnx")
    Traceback (most recent call last):
    edgeship_agent.contract.errors.ContractError: file name leaves the bundle or cannot be used (expected relative, ...
    """
    parts = path.split("/")
    if len(path) > _MAX_PATH_LENGTH or not all(_PART.fullmatch(part) for part in parts) or path == oci.MANIFEST_FILE:
        raise ContractError(
            "file name leaves the bundle or cannot be used",
            expected="relative, of letters, digits and . _ + -, no part that starts with a dot",
            got=repr(path[:80]),
        )
    return path
