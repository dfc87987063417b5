"""``edgeship gate``: verdicts that wait for labels."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgeship.cli import console
from edgeship.cli.build import EXIT_CODES, FORM_FILE_OPTION, FORM_OPTION, check_form, write_form


@click.group()
def gate() -> None:
    """Decide builds that wait for labels."""


@gate.command(short_help="Read labels of disagreements back and decide again.")
@click.argument("folder", metavar="[@DIR | DIR]", default="build")
@FORM_OPTION
@FORM_FILE_OPTION
@console.json_option
def resume(folder: str, as_json: bool, form: str | None, format_file: Path | None) -> None:
    """Read DIR/to_label.csv back and decide the build in DIR again, without a rebuild.

    Exit codes: 0 pass, 1 could not be done, 2 unusable labels, 3 fail, 4 inconclusive.
    """
    check_form(form, format_file, as_json=as_json)
    from edgeship.build import pipeline
    from edgeship.build.resume import resume as decide_again
    from edgeship.build.words import next_commands

    folder = folder.removeprefix("@") or "build"
    resumed = decide_again(Path(folder))
    document = resumed.document
    console.step("labels", resumed.labelled, "note")
    verdict_of = {f"{each.target}/{each.runtime}/{each.precision}": each.verdict for each in document.variants}
    glyphs = {"pass": "done", "fail": "failed", "inconclusive": "undecided"}
    for sentence in resumed.sentences:
        label = sentence.partition(":")[0]
        console.step("gate", sentence, glyphs[verdict_of[label]])
    for each in document.targets:
        console.step("chosen", f"{each.chosen or each.target + ' · nothing'} · {each.reason}", glyphs[each.verdict])
    if form:
        write_form(document, form, format_file)
    if as_json:
        sys.stdout.buffer.write(pipeline.encode(document))
        sys.stdout.buffer.flush()
    elif document.bundle and (not form or format_file):
        console.result(f"{document.bundle}  {document.bundle_digest}")
    console.next_steps(*next_commands(document, folder))
    sys.exit(EXIT_CODES[document.verdict])
