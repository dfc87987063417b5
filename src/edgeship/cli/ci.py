"""``edgeship ci``: continuous integration set up, and told a build's results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeship.cli import console
from edgeship_agent.contract.errors import ConfigError

if TYPE_CHECKING:
    from edgeship.build.schema import BuildDocument

_FILE: Final = click.Path(path_type=Path)
_WORKFLOW: Final = Path(".github/workflows/edgeship.yml")
_PROJECT_FILE: Final = "edgeship.toml"


@click.group()
def ci() -> None:
    """Set up continuous integration, and tell it a build's results."""


@ci.command(short_help="Results of a finished build for a CI.")
@click.argument("folder", type=_FILE, default=Path("build"))
@click.option("--format", "form", type=click.Choice(["markdown", "junit", "github", "sarif"]), default="markdown",
              show_default=True, help="Form of the results; markdown is report.md.")  # fmt: skip
@click.option("--format-file", type=_FILE, help="Where to write instead of stdout.")
@click.option("--base", type=_FILE, help="A former build (folder or build.json) to compare with, in markdown.")
def report(folder: Path, form: str, format_file: Path | None, base: Path | None) -> None:
    """Write the results of the build in FOLDER again, without building.

    Ends with 0 whatever the verdict: edgeship build is what fails.
    """
    from edgeship.cli.build import write_text

    write_text(_text(_read(folder), form, base), form, format_file)
    console.next_steps(
        "edgeship ci comment" if str(folder) == "build" else f"edgeship ci comment {console.word(folder)}"
    )


def _text(document: BuildDocument, form: str, base: Path | None) -> str:
    from edgeship.build import ci as forms

    former = forms.read_base(base)
    if form == "markdown":
        return forms.comment(document, former)
    if former is not None:
        raise ConfigError("only markdown compares", key="--base", expected="--format markdown", got=form,
                          next_step="leave --base out")  # fmt: skip
    return forms.render(document, form)


def _read(folder: Path) -> BuildDocument:
    from edgeship.build.ci import read_base

    document = read_base(folder)
    assert document is not None, "a folder was named"
    return document


@ci.command(short_help="Write or edit the comment of a pull request.")
@click.argument("folder", type=_FILE, default=Path("build"))
@click.option("--base", type=_FILE, help="A former build to compare with; without it report.md is taken as it is.")
@click.option("--pull-request", type=click.IntRange(1), metavar="N", help="Where the workflow run does not say it.")
def comment(folder: Path, base: Path | None, pull_request: int | None) -> None:
    """Put report.md of the build in FOLDER on the pull request: one comment, edited by every later run.

    Reads GITHUB_REPOSITORY, GITHUB_REF, GITHUB_TOKEN and GITHUB_API_URL, which a workflow has.
    """
    from edgeship.build.ci.pull_request import PullRequest, put_comment

    place = PullRequest.of_run(os.environ, pull_request)
    document = _read(folder)
    text = _text(document, "markdown", base) if base else _written(folder, document)
    address, new = put_comment(place, document.name, text)
    console.step("comment", ("written" if new else "edited") + f" on {place.repository}#{place.number}")
    console.result(address or f"{place.repository}#{place.number}")


def _written(folder: Path, document: BuildDocument) -> str:
    """``report.md`` as the build wrote it, where it is whole; else written anew."""
    from edgeship.build.ci.comment import MAX_BYTES, marker

    try:
        data = (folder / "report.md").read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError):
        return _text(document, "markdown", None)
    fits = len(data) <= MAX_BYTES and text.startswith(marker(document.name))
    return text if fits else _text(document, "markdown", None)


@ci.group()
def init() -> None:
    """Write the configuration of a CI service."""


@init.command(context_settings={"ignore_unknown_options": True}, short_help="A workflow for GitHub Actions.")
@click.argument("build_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- BUILD OPTIONS]")
@click.option("--branch", default="main", show_default=True, help="Branch that pull requests are compared with.")
@click.option("--workflow", type=_FILE, default=_WORKFLOW, show_default=True, help="File to write.")
@click.option("--force", is_flag=True, help="Replace the file.")
def github(build_arguments: tuple[str, ...], branch: str, workflow: Path, force: bool) -> None:
    """Write a workflow that builds on every pull request and comments what changed.

    BUILD OPTIONS are those of edgeship build, after two dashes: SOURCE, targets, data, budgets. Without them
    edgeship.toml says what to build.
    """
    from edgeship import __version__
    from edgeship.build.ci.workflow import github_workflow

    arguments = list(build_arguments)
    _check_arguments(arguments)
    text = github_workflow(arguments, branch, __version__)
    if workflow.exists() and not force:
        raise ConfigError("is there already", file=workflow,
                          next_step="add --force to replace it, or name another file with --workflow")  # fmt: skip
    try:
        workflow.parent.mkdir(parents=True, exist_ok=True)
        workflow.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=workflow,
                          next_step="name another file with --workflow") from error  # fmt: skip
    console.result(str(workflow))
    console.next_steps(f"git add {workflow}")


def _check_arguments(arguments: list[str]) -> None:
    """Let the build command read its own options, without running it."""
    from edgeship.cli.build import build

    if arguments:
        build.make_context("edgeship build", list(arguments))
    elif not Path(_PROJECT_FILE).is_file():
        raise ConfigError(
            "what is to be built?", expected=f"build options after two dashes, or {_PROJECT_FILE}",
            next_step="edgeship ci init github -- MODEL.onnx -t TARGET --calibration F --evaluation F",
        )  # fmt: skip
