"""``edgeship init``: a project file, written by looking at the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from edgeship.cli import console
from edgeship.cli.watched import watched
from edgeship_agent.contract.errors import ConfigError

#: Suffixes of PyTorch's files: weights alone, a whole model or a program, which only looking inside can tell.
_PYTORCH: Final = (".pt", ".pth")
#: Suffixes that no other kind of file has; a model of another kind is named.
_CERTAIN: Final = (".onnx", ".tflite", ".keras", ".h5", ".pt2", ".skops", ".ubj")
_FILE: Final = click.Path(path_type=Path)


@click.command(short_help="Write a project file by looking at a model.")
@click.argument("model", required=False)
@click.option("-t", "--target", "targets", multiple=True, metavar="TARGET",
              help="Id or TOML file of a hardware target; repeat for several.  [one like this machine]")  # fmt: skip
@click.option("--input-shape", "input_shapes", multiple=True, metavar="[NAME=]1,3,224,224[:DTYPE]",
              help="Shape of an input that the source leaves open; repeat for several.")  # fmt: skip
@click.option("--weights", default="", help="State dict for a package.module:factory source.")
@click.option("--allow-pickle", is_flag=True, help="Read files that can run code when they are read.")
@click.option("-o", "--output", type=_FILE, default=Path("edgeship.toml"), show_default=True, help="The new file.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@click.option("--yes", is_flag=True, help="Install a missing converter without asking.")
@watched
def init(
    model: str | None,
    targets: tuple[str, ...],
    input_shapes: tuple[str, ...],
    weights: str,
    allow_pickle: bool,
    output: Path,
    force: bool,
    yes: bool,
) -> None:
    """Look at MODEL and write edgeship.toml, with a comment for each key.

    Without MODEL, the one model file of this folder is taken. Nothing is asked where there is no terminal.
    """
    if output.exists() and not force:
        raise ConfigError("is there already, and is not overwritten", file=output, next_step="add --force")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise ConfigError("no such folder", file=folder, next_step="name another file with -o FILE")
    source = model or _only_model()
    from edgeship.build import project_template, sources

    request = sources.SourceRequest(
        text=source, input_shapes=tuple(sources.InputShape.parse(text) for text in input_shapes),
        weights=Path(weights) if weights else None, allow_pickle=allow_pickle,
    )  # fmt: skip
    _have_toolchain(request, yes=yes)
    looked_at = sources.load(request)
    for note in looked_at.notes:
        console.step("note", note, "note")
    _check_targets(targets)
    found = project_template.find_data(folder)
    values = _values(source, targets, found, output)
    given = {"input_shapes": list(input_shapes), "weights": weights, "allow_pickle": allow_pickle}
    values |= {f"model.{key}": value for key, value in given.items() if value}
    answers = project_template.Answers(values=values, found=tuple(found))
    _write(output, project_template.render(looked_at, answers), force=force)
    ends = [(len(looked_at.inputs), "input"), (len(looked_at.outputs), "output")]
    said = ", ".join(f"{count} {word}" + ("" if count == 1 else "s") for count, word in ends)
    console.step("init", f"{output} · {said}")
    console.result(str(output))
    name = "" if output.name == "edgeship.toml" and folder == Path.cwd() else f" --project {console.word(output)}"
    console.next_steps(f"edgeship build{name}")


def _values(source: str, targets: tuple[str, ...], found: dict[str, str], output: Path) -> dict[str, Any]:
    from edgeship.build.project import SCHEMA_VERSION
    from edgeship.build.project_template import first_target
    from edgeship_agent.runtime.isa import isa_class

    return {
        "schema_version": SCHEMA_VERSION,
        "targets": list(targets) or [first_target(isa_class())],
        "model.source": _beside(source, output),
        "data.calibration": found.get("calibration", "calibration.npz"),
        "data.evaluation": found.get("evaluation", "evaluation.npz"),
    }


def _beside(source: str, output: Path) -> str:
    """A path relative to the new file where it lies below its folder; an address stays what it is."""
    path = Path(source)
    if not path.exists():
        return source
    folder = output.absolute().parent
    whole = path.absolute()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


def _only_model() -> str:
    """The model of this folder.

    Raises:
        ConfigError: there is none, or there are several and nobody to ask.
    """
    from edgeship.build import project_template

    found = project_template.candidates(Path(), _CERTAIN)
    if len(found) == 1:
        return found[0]
    if found and sys.stdin.isatty():
        answer = click.prompt("Which model?", type=click.Choice(found), err=True)
        return str(answer)
    if not found and (weights := project_template.candidates(Path(), _PYTORCH)):
        name = console.word(weights[0])
        raise ConfigError("which model?", key="MODEL", expected="one model file in this folder",
                          got=f"{', '.join(weights[:5])}, which may hold weights alone",
                          next_step=f"edgeship init {name}; where it holds weights: edgeship init FILE.py:FUNCTION "
                                    f"--weights {name}")  # fmt: skip
    raise ConfigError("which model?", key="MODEL", expected="one model file in this folder",
                      got=", ".join(found[:5]) or "none", next_step="edgeship init MODEL")  # fmt: skip


def _check_targets(targets: tuple[str, ...]) -> None:
    """Refuse unknown targets before anything is written."""
    from edgeship.build import target_files

    for name in targets:
        target_files.load(name)


def _have_toolchain(request: Any, *, yes: bool) -> None:
    """Have the converter that reads this source, where somebody agrees.

    Raises:
        ConfigError: it is not installed, and nobody agreed to install it.
    """
    from edgeship.build import sources, toolchains

    name = sources.toolchain_of(request)
    if not name or toolchains.status(name).installed:
        return
    size = f"{toolchains.TOOLCHAINS[name].size_bytes // 10**6} MB"
    ask = f"The converter {name} is not installed yet ({size}). Install it?"
    if not yes and not (sys.stdin.isatty() and click.confirm(ask, err=True)):
        raise ConfigError(f"reading this model needs the converter {name}, which is not installed yet",
                          next_step=f"edgeship toolchains install {name}   (or add --yes)")  # fmt: skip
    toolchains.install(name)


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write the file whole or not at all.

    Raises:
        ConfigError: it cannot be written, or it has come into being in the meantime.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        if force:
            draft.replace(path)
        else:
            path.hardlink_to(draft)  # fails where there is a file by now
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=path,
                          next_step="name another file with -o FILE") from error  # fmt: skip
    finally:
        draft.unlink(missing_ok=True)
