"""Copying one target's files out of a bundle, for use without the agent."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgeship.bundle.certificate import CERTIFICATE_FILE
from edgeship.bundle.read import Bundle
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.manifest import Variant


def export(bundle: Bundle, target: str, directory: Path) -> tuple[Path, ...]:
    """Write ``edgeship.json``, the files of a target's variants and their documents; the signature is checked first.

    Args:
        bundle: where the files come from.
        target: id of a target that the bundle has variants for.
        directory: must not exist yet, or be empty; gets ``<runtime>/<precision>/<file>``, and at the
            top what the variants share.

    Returns:
        The files that were written.

    Raises:
        VerificationError: the bundle is altered or not signed.
        ConfigError: no variant for that target, or the folder is not empty.
    """
    bundle.verify_signature()
    variants = [each for each in bundle.manifest.variants if each.target == target]
    if not variants:
        present = sorted({each.target for each in bundle.manifest.variants})
        raise ConfigError("the bundle has no variant for this target", file=bundle.directory,
                          expected=" or ".join(present), got=target,
                          next_step=f"edgeship export {bundle.directory} -t {present[0]} -o {directory}")  # fmt: skip
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError("is in the way", file=directory, expected="a folder that is empty or does not exist",
                          next_step="name another folder with -o DIR")  # fmt: skip
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
        try:
            temporary.chmod(0o755)
            names = [name for variant in variants for name in _copy(bundle, variant, temporary)]
            names += _copy_documents(bundle, variants, temporary)
            (temporary / oci.MANIFEST_FILE).write_bytes(bundle.blob(bundle.manifest_digest))
            if directory.exists():
                directory.rmdir()
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=directory,
                          next_step="name another folder with -o DIR") from error  # fmt: skip
    return tuple(directory / name for name in [oci.MANIFEST_FILE, *names])


def _copy(bundle: Bundle, variant: Variant, directory: Path) -> list[str]:
    names = [f"{variant.runtime}/{variant.precision}/{file.path}" for file in variant.files]
    for name, file in zip(names, variant.files, strict=True):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.blob(file.digest))
    return names


def _copy_documents(bundle: Bundle, variants: list[Variant], directory: Path) -> list[str]:
    """A document of one variant goes beside it, one that all of them share to the top."""
    found = {variant.label: bundle.documents(variant.label) for variant in bundle.manifest.variants}
    names = []
    for variant in variants:
        for name, data in found[variant.label].items():
            shared = all(documents.get(name) == data for documents in found.values()) and name != CERTIFICATE_FILE
            place = name if shared else f"{variant.runtime}/{variant.precision}/{name}"
            (directory / place).parent.mkdir(parents=True, exist_ok=True)
            (directory / place).write_bytes(data)
            names.append(place)
    return list(dict.fromkeys(names))
