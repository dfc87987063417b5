"""The demo's bundles: built from the shipped ONNX files by the same command that a user types."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgeship.demo.digits import Split, inverted, load_digits, write_split
from edgeship_agent.contract.errors import ConfigError, EdgeshipError

MODEL: Final = "digits"
VERSIONS: Final = ("v1", "v2", "v3")
#: Target and the runtime that it prefers: two devices of the demo fleet are made of each.
TARGETS: Final = {"x86-64-server": "onnxruntime", "intel-nuc": "openvino", "x86-64-litert": "litert"}
BUILD_TIMEOUT_S: Final = 600.0

_PREPROCESS: Final = """\
# Images of 8 × 8 pixels, 0–16, to the model's [1, 8, 8] in 0–1. The model was trained on exactly this.
schema_version = 1

[[input]]
tensor = "image"
dtype = "uint8"
shape = [8, 8]
steps = [
    { op = "cast", dtype = "float32" },
    { op = "scale", factor = 0.0625 },
    { op = "reshape", shape = [1, 8, 8] },
]
"""

_INPUT_SCHEMA: Final = """\
schema_version = 1

[[feature]]
tensor = "image"
name = "pixel"
unit = "ink, 0-16"
meaning = "how much ink lies in the pixel; 0 is paper"
low = 0.0
high = 16.0
"""


class Built(Struct, frozen=True, kw_only=True):
    """A finished build.

    Attributes:
        document: build.json.
        bundle: folder of the bundle.
    """

    version: str
    bundle: Path
    document: dict[str, Any]

    @property
    def chosen(self) -> list[dict[str, Any]]:
        """The variants that devices will run, one a target."""
        return [variant for variant in self.document["variants"] if variant["chosen"]]


def write_data(folder: Path) -> None:
    """Write what the builds read: data, preprocessing contract, input schema."""
    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    reference = (digits.calibration, digits.rest)
    write_split(folder / "calibration.npz", *reference)
    write_split(folder / "evaluation.npz", digits.evaluation)
    # the third model's mistake: its files were made by a script that inverts, its contract says nothing of it
    write_split(folder / "calibration-v3.npz", *(_inverted(split) for split in reference))
    write_split(folder / "evaluation-v3.npz", _inverted(digits.evaluation))
    (folder / "preprocess.toml").write_text(_PREPROCESS, encoding="utf-8")
    (folder / "input-schema.toml").write_text(_INPUT_SCHEMA, encoding="utf-8")


def _inverted(split: Split) -> Split:
    return Split(images=inverted(split.images), labels=split.labels)


def models_folder() -> Path:
    """Where the package keeps ``digits-v1.onnx`` to ``digits-v3.onnx``."""
    return Path(__file__).parent / "models"


def write_files(folder: Path) -> list[Path]:
    """Write everything that the demo's builds read, models included, for a build by hand.

    Returns:
        The files, by name.

    Raises:
        ConfigError: the folder holds one of the models already.
        EdgeshipError: it cannot be written.
    """
    names = [f"{MODEL}-{version}.onnx" for version in VERSIONS]
    known = [folder / name for name in names if (folder / name).exists()]
    if known:
        raise ConfigError("is there already", file=known[0], key="--files", next_step="name another folder")
    try:
        write_data(folder)
        for name in names:
            shutil.copyfile(models_folder() / name, folder / name)
    except OSError as error:
        raise EdgeshipError(f"cannot be written: {error.strerror}", file=folder) from error
    return sorted(path for path in folder.iterdir() if path.is_file())


def build_command(version: str, data: Path, output: Path, model: Path) -> list[str]:
    """The command line that builds one version for every target of the demo."""
    suffix = "-v3" if version == "v3" else ""
    targets = [word for target in TARGETS for word in ("-t", target)]
    return [
        *(sys.executable, "-m", "edgeship", "build", str(model), *targets),
        *("--calibration", str(data / f"calibration{suffix}.npz")),
        *("--evaluation", str(data / f"evaluation{suffix}.npz")),
        *("--preprocess", str(data / "preprocess.toml"), "--input-schema", str(data / "input-schema.toml")),
        *("--name", MODEL, "--version", version, "--key", str(data / "author.key")),
        *("-o", str(output), "--json", "--yes"),
    ]


def build(version: str, data: Path, output: Path, log: Path) -> Built:
    """Build one version.

    Raises:
        EdgeshipError: the build did not pass; names the log.
    """
    model = models_folder() / f"digits-{version}.onnx"
    with log.open("ab") as stderr:
        outcome = subprocess.run(
            build_command(version, data, output, model),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    if outcome.returncode != 0:
        raise EdgeshipError(
            f"building {MODEL} {version} ended with exit code {outcome.returncode}",
            file=log,
            next_step=f"read {log} and {output / 'report.html'}",
        )
    return Built(version=version, bundle=output / "bundle", document=msgspec.json.decode(outcome.stdout))


def prebuilt(version: str, folder: Path) -> Built:
    """A build that was made before: ``folder/<version>`` is an output folder of ``edgeship build``.

    Raises:
        EdgeshipError: it is not there.
    """
    output = folder / version
    if not (output / "build.json").is_file():
        raise EdgeshipError("no build here", file=output, next_step="run the demo without --bundles, or with --keep")
    document = msgspec.json.decode((output / "build.json").read_bytes())
    return Built(version=version, bundle=output / "bundle", document=document)
