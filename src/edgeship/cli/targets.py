"""``edgeship targets``: list, show, check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgeship.cli import console
from edgeship.cli.source_options import request_of, source_options, words_of
from edgeship.cli.watched import watched

if TYPE_CHECKING:
    from edgeship.targets import CheckResult, Target

_GLYPHS: Final = {True: "done", False: "failed", None: "undecided"}
#: What a check that does not hold means for the exit code: an operator has no route, anything else is a budget.
_COULD_NOT, _MISSED, _INCONCLUSIVE = 1, 3, 4


class _Lines:
    """Progress as lines on stderr."""

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        """A line."""
        console.step(label, text, glyph)

    def count(self, label: str, done: int, total: int) -> None:
        """Dropped: conversions are not counted."""


@click.group()
def targets() -> None:
    """Hardware targets: what a device has, and what a model needs."""


@targets.command("list")
@console.json_option
def list_targets(as_json: bool) -> None:
    """List the shipped targets."""
    from edgeship.build import target_files

    known = target_files.list_all()
    if as_json:
        console.result_json({"schema_version": 1, "targets": known})
    else:
        rows = [
            [each.id, " + ".join([each.arch, *each.isa]), ", ".join(entry.name for entry in each.runtimes),
             "yes" if each.agent else "build only", ", ".join(each.verified_on) or "not yet", each.title]
            for each in known
        ]  # fmt: skip
        console.table(["target", "processor", "runtime", "agent", "verified on", "what it is"], rows)
    console.next_steps(f"edgeship targets show {known[0].id}", f"edgeship targets check MODEL -t {known[0].id}")


@targets.command()
@click.argument("target")
@console.json_option
def show(target: str, as_json: bool) -> None:
    """Show one target: TARGET is an id or a .toml file."""
    from edgeship.build import target_files

    found = target_files.load(target)
    if as_json:
        console.result_json({"schema_version": 1, "target": found})
    else:
        _show(found, target_files.path_of(target))
    console.next_steps(f"edgeship targets check MODEL -t {console.word(target)}")


def _show(target: Target, path: Path) -> None:
    console.result(f"{target.id}  {target.title}")
    if target.notes:
        console.result(target.notes)
    runtimes = [
        f"{each.name} {each.version} ({each.provider or 'its own provider'}, {each.threads} thread"
        f"{'s' if each.threads > 1 else ''}, int8 {each.int8})"
        for each in target.runtimes
    ]
    budgets = target.defaults
    limits = [
        f"{budgets.metric.max_drop:g} metric drop ({100 * budgets.metric.confidence:g} % confidence)",
        *([f"{budgets.latency_p99_ms:g} ms p99"] if budgets.latency_p99_ms else []),
        *([f"{budgets.size_bytes:,} bytes"] if budgets.size_bytes else []),
        *([f"{budgets.peak_ram_bytes:,} bytes of memory at most"] if budgets.peak_ram_bytes else []),
    ]
    rows = [
        ["processor", " + ".join([target.arch, *target.isa])],
        ["system", f"{target.os}" + (f", glibc {target.glibc} or newer" if target.glibc else "")],
        ["runtimes", "; ".join(runtimes)],
        ["agent", "runs there" if target.agent else "does not run there: build only"],
        ["memory", f"{target.memory_bytes:,} bytes for the worker"],
        ["storage", f"{target.storage_bytes:,} bytes for models"],
        ["budgets", ", ".join(limits)],
        ["operators", f"denied: {', '.join(target.ops.deny) or 'none'}; unsupported: {target.ops.on_unsupported}"],
        ["verified on", ", ".join(target.verified_on) or "no real device yet"],
        ["extends", target.extends or "nothing"],
        ["file", str(path)],
    ]
    for name, value in rows:
        console.result(f"{name:<12}{value}")


@targets.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-t", "--target", "names", multiple=True, required=True, help="Target id or .toml file; may be repeated.")
@source_options
@console.json_option
@watched
def check(model: Path, names: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Check a model against targets before anything is built; what is neither ONNX nor TFLite is converted first.

    Operators, how the delegate splits them, memory, storage, C library, Python, agent, shapes, types. Exit code 1 for
    an operator without a route, 3 for a limit that is missed, 4 where something could not be told.
    """
    from edgeship.build import target_files
    from edgeship.build.check_routes import check_all

    results = check_all(request_of(model, given), [target_files.load(name) for name in names], _Lines())
    if as_json:
        console.result_json(
            {"schema_version": 1, "model": str(model.absolute() if model.exists() else model), "targets": results}
        )
    else:
        for name, found in results.items():
            _show_checks(name, found)
    code = _exit_code([each for found in results.values() for each in found])
    asked = "".join(f" -t {console.word(name)}" for name in names)
    ready = f"edgeship build {console.word(model)}{words_of(given)}{asked} --calibration FILE --evaluation FILE"
    console.next_steps("edgeship targets list" if code in {_COULD_NOT, _MISSED} else ready)
    sys.exit(code)


def _show_checks(name: str, found: tuple[CheckResult, ...]) -> None:
    console.result(name)
    for each in found:
        label = f"{each.id} ({each.runtime})" if each.runtime else each.id
        word = {True: "holds", False: "fails", None: "unknown"}[each.holds]
        console.result(f"  {console.GLYPHS[_GLYPHS[each.holds]]} {word:<8}{label:<26}{each.sentence}")
        if each.next_step:
            console.result(f"    → {each.next_step}")


def _exit_code(found: list[CheckResult]) -> int:
    if any(each.holds is False and each.id == "operators" for each in found):
        return _COULD_NOT
    if any(each.holds is False for each in found):
        return _MISSED
    return _INCONCLUSIVE if any(each.holds is None for each in found) else 0
