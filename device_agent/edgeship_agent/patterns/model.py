"""A model that a batch or a stream runs in its own process: from a bundle, or from a slot of this device's agent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from edgeship_agent.contract.errors import ConfigError, ContractError, VerificationError
from edgeship_agent.contract.manifest import BundleManifest, Variant
from edgeship_agent.contract.oci import (
    INDEX_TYPE,
    MANIFEST_FILE,
    Descriptor,
    ImageIndex,
    ImageManifest,
    canonical_json,
    digest_of,
    hex_of,
)
from edgeship_agent.contract.wire import read_json
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime import runtime_in_place
from edgeship_agent.runtime.isa import architecture
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.serving.slot import SLOT_FILE, LoadedSlot, SlotFile, file_path, read_slot
from edgeship_agent.update.offer import check_files, entry_of, manifest_layer
from edgeship_agent.update.traffic import MAIN_ARM

_INDEX_FILE: Final = "index.json"
_WANTED: Final = "the folder of a bundle or of a slot"


class OpenModel:
    """A model and its manifest, ready for predictions.

    Args:
        slot: read and verified.
        threads: of the runtime, for one inference.
        unpacked: a folder that is removed when the model is closed; None for none.
    """

    def __init__(self, slot: LoadedSlot, threads: int, unpacked: Path | None = None) -> None:
        self.slot = slot
        self._unpacked = unpacked
        self._predictor = Predictor.open(slot.manifest, slot.variant, slot.model_path, threads=threads)

    @property
    def manifest(self) -> BundleManifest:
        """What the model expects and answers."""
        return self.slot.manifest

    def predict(self, raw: Mapping[str, Array]) -> dict[str, Array]:
        """One prediction; see :meth:`Predictor.run`."""
        return self._predictor.run(raw)

    def close(self) -> None:
        """Release the engine and what was unpacked for it."""
        self._predictor.close()
        if self._unpacked is not None:
            shutil.rmtree(self._unpacked, ignore_errors=True)

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_model(path: Path, *, variant: str = "", threads: int = 1) -> OpenModel:
    """Open what lies at a path.

    Args:
        path: an OCI layout, the folder of a build that holds it as ``bundle``, or a slot's folder.
        variant: label ``target/runtime/precision``; empty for the first one that runs here.
        threads: of the runtime, for one inference.

    Raises:
        ConfigError: neither, or no variant of it runs on this machine.
        ContractError: a document of it is damaged.
        VerificationError: a file is missing or has the wrong digest.
        EngineError: the runtime refused the model.
    """
    if (path / SLOT_FILE).is_file():
        slot = read_slot(path)
        if variant not in {"", slot.variant.label}:
            raise ConfigError("the slot holds another variant", file=path, key="--variant",
                              expected=slot.variant.label, got=variant)  # fmt: skip
        return OpenModel(slot, threads)
    inner = path / "bundle"
    layout = inner if (inner / _INDEX_FILE).is_file() else path
    if not (layout / _INDEX_FILE).is_file():
        raise ConfigError("not a bundle", file=path, expected=_WANTED,
                          next_step="edgeship build SOURCE -t TARGET makes a bundle of a model file")  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="edgeship-"))
    try:
        _unpack(layout, folder, variant)
        return OpenModel(read_slot(folder), threads, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(layout: Path, folder: Path, label: str) -> None:
    """A slot's folder of one variant of a bundle; every byte is one that a digest vouches for."""
    path = layout / _INDEX_FILE
    top = read_json(path.read_bytes(), ImageIndex, file=path)
    if len(top.manifests) != 1 or top.manifests[0].media_type != INDEX_TYPE:
        raise ContractError("not a bundle's index", file=path, expected="one nested image index")
    index = read_json(_blob(layout, top.manifests[0].digest), ImageIndex, file=path)
    if not index.manifests:
        raise ContractError("the bundle has no variant", file=layout)
    manifest = _manifest(layout, index.manifests)
    variant = choose(manifest, label, layout)
    image = read_json(_blob(layout, entry_of(index, variant).digest), ImageManifest, file=path)
    check_files(variant, image)
    for file in variant.files:
        target = file_path(folder, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_blob(layout, file.digest))
    (folder / MANIFEST_FILE).write_bytes(canonical_json(manifest))
    slot = SlotFile(model=manifest.name, version=manifest.version, digest=top.manifests[0].digest,
                    variant=variant.label, arm=MAIN_ARM)  # fmt: skip
    (folder / SLOT_FILE).write_bytes(canonical_json(slot))


def _manifest(layout: Path, entries: tuple[Descriptor, ...]) -> BundleManifest:
    """The bundle manifest, from the first variant that is here: an export may have left others out."""
    here = [entry for entry in entries if _path(layout, entry.digest).is_file()]
    if not here:
        raise VerificationError("the bundle has no variant whose files are here", file=layout)
    image = read_json(_blob(layout, here[0].digest), ImageManifest, file=layout)
    return read_json(_blob(layout, manifest_layer(image).digest), BundleManifest, file=MANIFEST_FILE)


def choose(manifest: BundleManifest, label: str, place: Path) -> Variant:
    """The variant of that label, or the first one whose architecture and runtime this machine has.

    Raises:
        ConfigError: there is none.
    """
    labels = ", ".join(variant.label for variant in manifest.variants)
    if label:
        for variant in manifest.variants:
            if variant.label == label:
                return variant
        raise ConfigError("the bundle has no such variant", file=place, key="--variant", expected=labels, got=label)
    fitting = [variant for variant in manifest.variants if variant.arch == architecture()]
    for variant in fitting:
        if runtime_in_place(variant.runtime)[1]:
            return variant
    if not fitting:
        raise ConfigError("no variant of the bundle is for this machine", file=place, expected=architecture(),
                          got=labels)  # fmt: skip
    raise ConfigError(f"the runtime {fitting[0].runtime} is not installed", file=place,
                      next_step=f"pip install edgeship-agent[{fitting[0].runtime}]")  # fmt: skip


def _blob(layout: Path, digest: str) -> bytes:
    path = _path(layout, digest)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"cannot be read: {error.strerror}", file=path) from error
    if digest_of(data) != digest:
        raise VerificationError("wrong digest", file=path, expected=digest, got=digest_of(data))
    return data


def _path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / hex_of(digest)
