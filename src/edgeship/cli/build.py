"""``edgeship build``: from a trained model to a signed bundle."""

from __future__ import annotations

import gc
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeship.build.progress import CANDIDATES, SELECT
from edgeship.build.survival import journal, turns
from edgeship.build.survival.supervisor import Stopped, Supervisor, Terms, memory_limit_bytes
from edgeship.cli import console, interrupts
from edgeship.cli.build_options import first_words, options_of
from edgeship.cli.pace import Pace, shown
from edgeship.cli.source_options import source_options
from edgeship.cli.values import Finite, Named
from edgeship.cli.watched import has_own_process
from edgeship_agent.contract.errors import ConfigError

if TYPE_CHECKING:
    from edgeship.build.options import BuildOptions
    from edgeship.build.schema import BuildDocument

EXIT_CODES: Final = {"pass": 0, "fail": 3, "inconclusive": 4}
#: The running count is redrawn at most this often, in seconds.
_REDRAW_S: Final = 0.1
#: Objects after which Python looks for cycles, by generation. A build makes many objects and few cycles; what it has
#: remembered is chosen from again a twentieth sooner (1.00 to .96 s, medians of 12 in turns).
_COLLECT_AFTER: Final = (50_000, 20, 20)
_FILE: Final = Named()


#: Results for a CI: the same options for every command that ends in a verdict.
FORM_OPTION: Final = click.option("--format", "form", type=click.Choice(["junit", "github", "sarif"]),
                                  help="Results for a CI, on stdout.")  # fmt: skip
FORM_FILE_OPTION: Final = click.option("--format-file", type=_FILE, help="Where --format writes instead of stdout.")


@click.command(short_help="Build a model for hardware targets, with proof.")
@click.argument("source", type=_FILE, required=False)
@click.option("--project", type=_FILE, help="Project file.  [edgeship.toml where no SOURCE is named]")
@click.option("-t", "--target", "targets", multiple=True, metavar="TARGET",
              help="Id or TOML file of a hardware target; repeat for several. See: edgeship targets list.")  # fmt: skip
@click.option(
    "--calibration", type=_FILE, help="Data for ranges and the drift baseline: .npz, .npy, .csv, .parquet or folder."
)
@click.option("--evaluation", type=_FILE, help="Held-out data for every claim, with labels y.")
@click.option("--preprocess", type=_FILE, help="TOML: from a raw sample to the model's input.")
@click.option("--input-schema", type=_FILE, help="TOML: name, unit, meaning and valid range of the features.")
@click.option("--metric", metavar="NAME", default="auto", show_default=True,
              help="Task metric: top1, top5, recall:CLASS, worst_recall, cost, f1, f1:CLASS, auc, auc:CLASS, map, "
                   "map50, rmse, mae, snr, agreement, closeness, or MODULE:FUNCTION.")  # fmt: skip
@click.option("--cost-matrix", type=_FILE, help="TOML or CSV: what each confusion costs, for --metric cost.")
@click.option("--postprocess", type=_FILE, help="TOML: from raw outputs to boxes, for --metric map.")
@click.option("--ground-truth", type=_FILE, help="Boxes: COCO JSON or a folder of YOLO text files, for --metric map.")
@click.option("--unlabelled", type=_FILE, help="Samples without labels (.npz or folder): only disagreements need one.")
@click.option("--max-drop", type=Finite(0),
              help="Largest drop that must be proven: a fraction, dB for snr.  [0.01, 0.1 dB]")  # fmt: skip
@click.option("--max-relative-rms", type=Finite(0, min_open=True), help="Largest relative RMS of int8.  [0.1]")
@click.option("--latency-p99-ms", type=Finite(0, min_open=True), help="Latency budget.")
@click.option("--size-bytes", type=click.IntRange(1), help="Size budget of a variant.")
@click.option("--measure", metavar="SSH_ADDRESS", default="",
              help="Run the candidates on this device: ssh://user@host or ssh://user@host:port.")  # fmt: skip
@click.option("--ssh-config", type=_FILE, help="Configuration file for ssh.  [the user's]")
@click.option("--accept-proxy-latency", is_flag=True, help="Let a latency of another ISA class judge the budget.")
@source_options
@click.option("--task", type=click.Choice(["auto", "classification", "raw"]), default="auto", show_default=True,
              help="How the first output is read; auto is classification with labels.")  # fmt: skip
@click.option("--labels", metavar="A,B,C", default="", help="Class names in the order of the output.")
@click.option("--name", default="", help="Name of the model.  [the file's name]")
@click.option("--version", default="1.0.0", show_default=True, help="Version of the model.")
@click.option("--license", metavar="SPDX", default="", help="Licence of the model, such as Apache-2.0.")
@click.option("--lineage", metavar="KEY=VALUE", multiple=True, help="A fact about the model's origin; repeatable.")
@click.option("--card", type=_FILE, help="Markdown for the model card: intended use, training data, limits.")
@click.option("--base", type=_FILE, help="A former build (folder or build.json) that report.md compares with.")
@FORM_OPTION
@FORM_FILE_OPTION
@click.option("--key", type=_FILE, help="Author key; made on first use.  [in the user's data folder]")
@click.option("-o", "--output", type=_FILE, default=Path("build"), show_default=True, help="Folder for the results.")
@click.option("--effort", type=click.Choice(["quick", "normal", "thorough"]), default="normal", show_default=True,
              help="How much the search for the best int8 may try.")  # fmt: skip
@click.option("--precision", "precisions", multiple=True,
              type=click.Choice(["fp16", "dynamic", "int4", "int16x8", "int8io"]),
              help="Make and judge this one too; repeat for several.")  # fmt: skip
@click.option("--keep-float", multiple=True, metavar="OPERATOR",
              help="Leave this operator in float; names stand in the report's sensitivity; repeatable.")  # fmt: skip
@click.option("--fold-normalisation/--no-fold-normalisation", "fold_normalisation", default=True, show_default=True,
              help="Let the files take bytes and normalise them, where that is exact.")  # fmt: skip
@click.option("--fp32-fallback/--no-fp32-fallback", default=True, show_default=True,
              help="Ship fp32 beside a quantized variant, for devices that it fails on.")  # fmt: skip
@click.option("--cache/--no-cache", default=True, show_default=True, help="Use and keep results of builds.")
@click.option("--log-mlflow", is_flag=True, help="Log results to the source's MLflow run, or to a new one.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Processes that build for different runtimes at the same time; each measures alone.")  # fmt: skip
@click.option("--step-timeout-s", type=Finite(1), default=900.0, show_default=True,
              help="A step that says nothing for so long is ended, and the next way tried.")  # fmt: skip
@click.option("--strict", is_flag=True, help="A fallback is a failure.")
@click.option("--yes", is_flag=True, help="Install a missing converter without asking.")
@console.json_option
@click.pass_context
def build(
    context: click.Context,
    /,
    as_json: bool,
    yes: bool,
    form: str | None,
    format_file: Path | None,
    step_timeout_s: float,
    **given: object,
) -> None:
    """Build SOURCE for hardware targets: convert, quantize, verify on each runtime, measure, choose, sign.

    Without SOURCE, edgeship.toml in this folder says what to build; options win over it. See: edgeship init.

    Exit codes: 0 pass, 1 could not be done, 2 unusable input, 3 fail, 4 inconclusive.
    """
    console.step("build", first_words(given), "note")  # before anything heavy is imported
    gc.set_threshold(*_COLLECT_AFTER)
    check_form(form, format_file, as_json=as_json)
    options = options_of(context, given, yes=yes)
    from edgeship.build import jobs

    live = _Live()
    terms = Terms(silence_s=step_timeout_s, memory_bytes=memory_limit_bytes(), may_copy=has_own_process())
    supervisor = Supervisor(live.tell, terms, live.show)
    try:
        try:
            jobs.prepare(supervisor, options, live, _agree)
        except Stopped:
            console.note("interrupted: nothing that was finished is lost")
            raise
        finally:
            live.clear()
        code = supervisor.run(lambda: _build(options, live, form, format_file, as_json=as_json))
    except Stopped as stopped:
        code = 128 + stopped.number
    sys.exit(code)


def _build(options: BuildOptions, live: _Live, form: str | None, format_file: Path | None, *, as_json: bool) -> int:
    """The build itself, and what is said of it at the end; the exit code."""
    from edgeship.build import pipeline

    with interrupts.remembered() as live.check:
        try:
            result = pipeline.build(options, live, _agree)
        finally:
            live.clear()
    folder = str(options.output)
    _print_end(result.document, folder)
    if form:
        write_form(result.document, form, format_file)
    if as_json:
        sys.stdout.buffer.write(pipeline.encode(result.document))
        sys.stdout.buffer.flush()
    elif not form or format_file:
        _print_result(result.document)
    _print_next(result.document, folder)
    return EXIT_CODES[result.verdict]


def check_form(form: str | None, file: Path | None, *, as_json: bool = False) -> None:
    """Refuse two results on one stdout, and a file without a form, before any work is done.

    Raises:
        ConfigError: as said.
    """
    if file is not None and not form:
        raise ConfigError("in which form?", key="--format-file", got=file, expected="--format junit, github or sarif",
                          next_step=f"add --format junit --format-file {file}")  # fmt: skip
    if form and as_json and file is None:
        raise ConfigError("two results on one stdout", key="--format", expected="--json or --format",
                          next_step=f"add --format-file FILE to --format {form}")  # fmt: skip


def write_form(document: BuildDocument, form: str, file: Path | None) -> None:
    """Results in a CI's form, to a file or stdout.

    Raises:
        ConfigError: the file cannot be written.
    """
    from edgeship.build import ci

    write_text(ci.render(document, form), form, file)


def write_text(text: str, form: str, file: Path | None) -> None:
    """Text to a file or stdout, byte for byte.

    Raises:
        ConfigError: the file cannot be written.
    """
    data = text.encode()
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_bytes(data)
        temporary.replace(file)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=file,
                          next_step="name another file with --format-file") from error  # fmt: skip
    console.step(form, str(file), "note")


def _agree(name: str, size_bytes: int) -> bool:
    """Ask before a converter is installed; without a terminal nobody agrees, and the build says how to."""
    if not sys.stdin.isatty():
        return False
    return click.confirm(f"The converter {name} is not installed yet ({size_bytes // 10**6} MB). Install it?", err=True)


class _Live:
    """Progress on stderr: finished steps as lines, the current count redrawn in place on a terminal.

    Attributes:
        check: raises KeyboardInterrupt where the user interrupted and the work went on.
    """

    def __init__(self) -> None:
        self.check: Callable[[], None] = lambda: None
        self._drawn = 0.0
        self._width = 0
        self._terminal = sys.stderr.isatty()
        self._pace, self._search_pace = Pace(), Pace()
        self._search = ""

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        """A line that stays; not again where a process before this one has shown it."""
        self.check()
        self.clear()
        self._search = ""
        if journal.is_news(f"{label} {text}"):
            console.step(label, text, glyph)

    def tell(self, sentence: str) -> None:
        """What the process that watches has to say."""
        self.clear()
        console.step("crash", sentence, "failed")

    def show(self, texts: Sequence[str]) -> None:
        """How far several processes are."""
        if self._terminal and time.monotonic() - self._drawn >= _REDRAW_S:
            self._draw(" | ".join(text for text in texts if text), time.monotonic())

    def count(self, label: str, done: int, total: int) -> None:
        """The running count."""
        self.check()
        now = time.monotonic()
        if now - self._drawn < _REDRAW_S:
            return
        text = self._text(label, done, total, now)
        journal.alive(text)
        if self._terminal and not turns.are_taken():  # of several processes, the one that watches draws
            self._draw(text, now)
        self._drawn = now

    def _draw(self, text: str, now: float) -> None:
        self._drawn = now
        self.clear()
        text = f"… {text}"[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be taken away
        self._width = len(text)
        click.echo(f"\r{text}", nl=False, err=True)

    def _text(self, label: str, done: int, total: int, now_s: float) -> str:
        """The count; within a search, behind that search's own."""
        if label.endswith(CANDIDATES):
            left_s = self._search_pace.left_s(label, done, total, now_s)
            self._search = shown(label, done, total, left_s, about=True)
            return self._search
        left_s = self._pace.left_s(label, done, total, now_s)
        if self._search and label.startswith(SELECT):
            return f"{self._search} · {label} {done} of {total}"
        self._search = ""
        return shown(label, done, total, left_s)

    def clear(self) -> None:
        """Take the running count away."""
        if self._width:
            click.echo("\r" + " " * self._width + "\r", nl=False, err=True)
            self._width = 0


def _print_result(document: BuildDocument) -> None:
    from edgeship.build.words import drop_high

    rows = [
        (
            each.target, each.runtime, each.precision, str(each.size_bytes), f"{each.latency_p99_ms:.3g}",
            "yes" if each.on_target else "no", f"{each.metric.value:.4f}", drop_high(each, document.gates),
            "none" if each.relative_rms is None else f"{each.relative_rms:.4f}",
            "chosen" if each.chosen else each.verdict,
        )
        for each in document.variants
    ]  # fmt: skip
    metric = document.variants[0].metric.name
    header = ("TARGET", "RUNTIME", "PRECISION", "SIZE_BYTES", "LATENCY_P99_MS", "ON_TARGET", metric.upper(),
              "DROP_HIGH", "RELATIVE_RMS", "VERDICT")  # fmt: skip
    console.table(header, rows)
    if document.bundle:
        console.result(f"{document.bundle}  {document.bundle_digest}")


def _print_end(document: BuildDocument, folder: str) -> None:
    if document.bundle:
        console.step("bundle", f"{folder}/bundle · {document.bundle_digest[:19]}")
    else:
        glyph = "failed" if document.verdict == "fail" else "undecided"
        console.step("bundle", f"none · {document.verdict}", glyph)
    console.step("report", f"{folder}/report.html", "note")


def _print_next(document: BuildDocument, folder: str) -> None:
    from edgeship.build.words import next_commands

    console.next_steps(*next_commands(document, folder))
