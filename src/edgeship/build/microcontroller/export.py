"""C sources for one target: from a .tflite file, from a bundle, or beside a variant of a build."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgeship.build import partitions
from edgeship.build.backends import Artifact
from edgeship.build.microcontroller.c_source import C_ARRAY, Array, MicroModel
from edgeship.build.microcontroller.emit import golden_inputs, in_file_order, micro_model, write
from edgeship.bundle import Bundle
from edgeship.targets import Target
from edgeship.targets.wording import size_text
from edgeship_agent.contract.errors import BudgetExceeded, ConfigError, ConversionError
from edgeship_agent.runtime.tensors import decode_tensor_file

__all__ = ["C_ARRAY", "export_file", "fits", "models_of", "write_beside", "write_variant"]


def export_file(file: Path, target: Target, folder: Path) -> tuple[Path, ...]:
    """C sources from a .tflite file.

    Args:
        file: full int8.
        target: must ask for C sources.
        folder: must not exist yet, or be empty.

    Returns:
        The files that were written.

    Raises:
        ConfigError: the target wants another format, or the folder is in the way.
        InputError: not a TFLite file, or damaged.
        ConversionError: TensorFlow Lite Micro does not run it, or it is not in integers throughout.
        BudgetExceeded: it does not fit into the target's memory or storage.
    """
    if target.format != C_ARRAY:
        raise ConfigError("takes a bundle, no model file", key="-t", expected="a target for C sources: cortex-m",
                          got=target.id,
                          next_step=f"edgeship build {shlex.quote(str(file))} -t {target.id} …")  # fmt: skip
    data = _read(file)
    answer = partitions.of_model("litert", "", file)
    model = micro_model(data, file.stem, file=file)  # its own reasons come first: they are more exact than LiteRT's
    if answer.refused:
        raise ConversionError(f"LiteRT refuses it: {answer.refused}", target=target.id, file=file)
    fits(model, target)
    return _write_new(model, folder)


def models_of(bundle: Bundle, target_id: str) -> dict[str, MicroModel]:
    """C sources of a bundle's variants for a microcontroller: folder below the export → contents; else nothing.

    Raises:
        VerificationError, ContractError: the bundle is altered or damaged.
        ConversionError: a variant cannot be put into an array.
    """
    found = {}
    for variant in bundle.manifest.variants:
        if variant.target != target_id or variant.arch != "cortex-m":
            continue
        blobs = {
            file.role: bundle.blob(file.digest) for file in variant.files if file.role in {"model", "golden_inputs"}
        }
        samples = decode_tensor_file(blobs["golden_inputs"], file=bundle.directory)
        inputs = golden_inputs(bundle.manifest, variant, samples)
        found[f"{variant.runtime}/{variant.precision}"] = micro_model(
            blobs["model"], bundle.manifest.name, version=bundle.manifest.version, inputs=inputs
        )
    return found


def write_beside(models: dict[str, MicroModel], folder: Path) -> tuple[Path, ...]:
    """Write the sources of :func:`models_of` into an export's folder."""
    return tuple(path for name, model in models.items() for path in write(model, folder / name))


def write_variant(artifact: Artifact, sample: Mapping[str, Array], name: str, folder: Path) -> tuple[Path, ...]:
    """C sources beside a variant of a build.

    Args:
        artifact: full int8.
        sample: prepared inputs of the source, the first of which are the sample.
        name: of the model.
        folder: of the variant.

    Raises:
        ConversionError: it cannot be put into an array.
    """
    inputs = in_file_order(artifact.inputs, sample)
    return write(micro_model(artifact.model.read_bytes(), name, inputs=inputs, file=artifact.model), folder)


def fits(model: MicroModel, target: Target) -> None:
    """Refuse a model that the target has no room for.

    Raises:
        BudgetExceeded: it does not fit.
    """
    for what, needed, limit in (
        ("a tensor arena", model.arena_bytes, target.memory_bytes),
        ("a model", len(model.data), target.storage_bytes),
    ):
        if needed > limit:
            raise BudgetExceeded(f"{what} of {size_text(needed)} does not fit", key=target.id,
                                 expected=f"at most {size_text(limit)}", got=f"{needed} bytes",
                                 next_step="use a smaller model, or a target file with more memory")  # fmt: skip


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file, expected="a .tflite file") from error


def _write_new(model: MicroModel, folder: Path) -> tuple[Path, ...]:
    """Write into a folder that appears whole or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("is in the way", file=folder, expected="a folder that is empty or does not exist",
                          next_step="name another folder with -o DIR")  # fmt: skip
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            draft.chmod(0o755)
            names = [path.name for path in write(model, draft)]
            if folder.exists():
                folder.rmdir()
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=folder,
                          next_step="name another folder with -o DIR") from error  # fmt: skip
    return tuple(folder / name for name in names)
