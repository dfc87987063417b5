"""A trained model as the build sees it: bytes that never change, and a signature."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field

from edgeship_agent.contract.errors import InputError, VerificationError
from edgeship_agent.contract.manifest import Source, TensorSpec

#: Of one file. Source: Protocol Buffers, "Proto Limits": a message is smaller than 2 GiB; FlatBuffers has signed 32-bit
#: offsets.
LARGEST_BYTES: Final = 2**31 - 1
#: What to do with models of CatBoost, whose own files nothing here reads.
FROM_CATBOOST: Final = 'write it as ONNX with CatBoost itself: model.save_model("model.onnx", format="onnx")'


class SourceModel(Struct, frozen=True, kw_only=True):
    """The model that everything is compared with.

    Attributes:
        path: the file or folder as the user named it; only ever read.
        format: such as ``onnx``; decides how it is run and which routes lead to a runtime.
        data: the model as one self-contained file, weights included; empty for a folder, which is copied whole.
        digest: of the file (and of the weight files beside it) as ``sha256:…``.
        files: the file and every other file that belongs to it.
        opset: of ONNX's default operator domain; 0 for other formats.
        quantized: whether it already holds quantized operators.
        state: what the file hides from one step to the next: ``variables``, ``resources``, or empty for nothing.
        toolchain: the converter environment that runs and converts it; empty where nothing but the runtimes is needed.
        options: what that toolchain must be told besides the file.
        tools: name → version of what read it, besides the runtimes.
        notes: what a reader found worth saying.
        facts: lineage that the source's own tracker tells, such as a run id.
        address: of the tracker that it was fetched from; empty for a file of the user's.
        takes_gaps: whether a sample may lack values: the model itself answers NaN with numbers.
        classes: what the model itself calls the entries of its first output; empty where it does not say, or where they
            are 0, 1, … in order.
        features: what the model itself calls the values of its only input, in its order; empty where it does not say.
    """

    path: Path
    format: str
    data: bytes
    digest: str
    files: tuple[Path, ...]
    size_bytes: int
    opset: int = 0
    operators: int
    parameters: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quantized: bool = False
    state: str = ""
    toolchain: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    address: str = ""
    takes_gaps: bool = False
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def is_lasting(self) -> bool:
        """Whether the files say all; see :func:`runs_own_code`."""
        return not runs_own_code(self.options)

    @property
    def rounds_elsewhere(self) -> bool:
        """Whether every artifact rounds in other places than what the source is compared by.

        A quantized source that is run in float has each value rounded once it is summed: kernels that sum integers, or
        in another order, round some of them to the next step. A quantized TFLite file goes to LiteRT alone, which runs
        it as it is on both sides.
        """
        return self.quantized and self.format != "tflite"

    @property
    def key(self) -> dict[str, Any]:
        """What is computed: the content as it is run, shapes pinned and all."""
        content = _digest(self.data) if self.data else self.digest
        names = {"inputs": [each.name for each in self.inputs], "outputs": [each.name for each in self.outputs]}
        return {"content": content, "format": self.format, "options": self.options, **names}

    def copy_to(self, folder: Path) -> Path:
        """A private copy for one tool, since converters rewrite their input files (onnx2tf's simplification does)."""
        folder.mkdir(parents=True, exist_ok=True)
        if not self.data:
            path = folder / "model"
            shutil.copytree(self.path, path)
            return path
        path = folder / f"model{self.suffix}"
        path.write_bytes(self.data)
        return path

    @property
    def suffix(self) -> str:
        """Of the private copy: the file's own, or the format's name."""
        return self.path.suffix.lower() or f".{self.format}"

    def check_unchanged(self) -> None:
        """Prove that nothing wrote to the user's file.

        Raises:
            VerificationError: its digest is not what was read.
        """
        now = digest_of_files(self.files)
        if now != self.digest:
            raise VerificationError("the source file changed during the build", file=self.path,
                                    expected=self.digest, got=now, next_step="restore it and build again")  # fmt: skip

    def lineage(self) -> Source:
        """What the bundle records of it."""
        return Source(file=self.path.name, format=self.format, digest=self.digest, size_bytes=self.size_bytes)


def runs_own_code(options: Mapping[str, Any]) -> bool:
    """Whether a model is code of the user's, a factory or a class that a pickle names: its imports may change unseen.

    >>> runs_own_code({"kind": "pickled-module"}), runs_own_code({"kind": "torchscript"})
    (True, False)
    """
    return "factory" in options or options.get("kind") == "pickled-module"


@lru_cache(maxsize=1)
def _digest(data: bytes) -> str:
    """sha256, hexadecimal; asked for with every question to the cache, of the one model of a build."""
    return hashlib.sha256(data).hexdigest()


def check_size(path: Path, size_bytes: int, next_step: str = "export a smaller model") -> None:
    """Refuse, by a look at the folder alone, what no format that a build writes could hold.

    Raises:
        InputError: it is larger than 2 GiB.
    """
    if size_bytes > LARGEST_BYTES:
        raise InputError("too large to convert", file=path, expected="at most 2.1 GB, weights included",
                         got=f"{size_bytes / 1e9:.1f} GB", next_step=next_step)  # fmt: skip


def digest_of_files(files: tuple[Path, ...]) -> str:
    """sha256 over the files' contents in order; of a single file it is the plain sha256 of it."""
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                state.update(chunk)
    return "sha256:" + state.hexdigest()
