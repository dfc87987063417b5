"""Checks of sources that cannot be looked into as they are: of what the build's own routes make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeship.build import output, routes, sources, toolchains
from edgeship.build.cache.basis import open_cache
from edgeship.build.cache.memory import Memory, remembering
from edgeship.build.checks import READABLE
from edgeship.build.model_facts import facts_of
from edgeship.build.progress import Progress
from edgeship.build.sources import SourceRequest
from edgeship.targets import CheckResult, ModelFacts, Target, check
from edgeship_agent.contract.errors import ConfigError, ConversionError, EdgeshipError


def check_all(
    asked: SourceRequest | Path, targets: Sequence[Target], progress: Progress
) -> dict[str, tuple[CheckResult, ...]]:
    """Everything about a model and some targets that needs no data.

    Args:
        asked: a source of any format.
        targets: what it is to be built for.
        progress: told by which route a file was made that is checked in the model's place.

    Returns:
        Target's id → its results.

    Raises:
        InputError: the file cannot be used.
        ConfigError: a converter is not installed, or an option does not fit the source.
        ConversionError: it cannot be read.
    """
    request = sources.resolved(asked if isinstance(asked, SourceRequest) else SourceRequest(text=str(asked)))
    with output.scratch() as folder:
        file = sources.file_to_check(request, folder / "pinned")
        if file.suffix.lower() in READABLE and file.is_file():
            facts = facts_of(file, {entry.name for each in targets for entry in each.runtimes})
            return {each.id: check(each, facts) for each in targets}
        looking = _Looking(request, folder, progress)
        return {each.id: looking.results(each) for each in targets}


class _Looking:
    """One source, converted once for each runtime.

    Args:
        request: as the user named it.
        folder: private.
        progress: told by which route.
    """

    def __init__(self, request: SourceRequest, folder: Path, progress: Progress) -> None:
        self._memory = Memory(open_cache(progress), folder / "memory", _ready)
        self._source = sources.load(request, remembering(self._memory))
        self._forms = routes.Forms(self._source, folder / "forms", _ready)
        self._progress = progress
        self._told: set[routes.Route] = set()

    def results(self, target: Target) -> tuple[CheckResult, ...]:
        """Of each runtime the file that the first way to it makes; of the target itself the first of those files."""
        reasons: list[str] = []
        found = {entry.name: self._first(entry.name, target, reasons) for entry in target.runtimes}
        reached = {name: check(target, facts) for name, facts in found.items() if facts is not None}
        if not reached:
            name = target.runtimes[0].name
            sentence = "; ".join(reasons) or f"there is no way from {self._source.format} to {name}"
            return (CheckResult(id="operators", runtime=name, holds=False, sentence=sentence, sure=True,
                                next_step="choose a target with another runtime: edgeship targets list"),)  # fmt: skip
        first = next(iter(reached.values()))
        by_runtime = ((entry.name, reached.get(entry.name, first)) for entry in target.runtimes)
        lines = [each for name, results in by_runtime for each in results if each.runtime == name]
        return (*lines, *(each for each in first if not each.runtime))

    def _first(self, runtime: str, target: Target, reasons: list[str]) -> ModelFacts | None:
        """Facts of what the first way to a runtime makes; why others do not work is added to the reasons."""
        for route in routes.ROUTES.get((self._source.format, runtime), ()):
            words = routes.words(self._source.format, route)
            try:
                facts = self._facts(route, target)
            except ConversionError as error:
                reasons.append(f"{words}: {error.message}")
                continue
            if route not in self._told:
                self._progress.step("checked", f"what {words} makes of it", "note")
                self._told.add(route)
            return facts
        return None

    def _facts(self, route: routes.Route, target: Target) -> ModelFacts:
        runtimes = sorted(entry.name for entry in target.runtimes)

        def looked() -> ModelFacts:
            file = self._forms.file(route)
            try:
                return facts_of(file, runtimes)
            except EdgeshipError as error:
                raise ConversionError(f"what it makes cannot be looked into: {error.message}") from error

        key = {"source": self._source.key, "route": list(route), "runtimes": runtimes}
        return self._memory.figures("facts", key, ModelFacts, looked) if self._source.is_lasting else looked()


def _ready(name: str) -> None:
    """Refuse to go on without a converter; nothing is installed for a look.

    Raises:
        ConfigError: it is not installed.
    """
    if not toolchains.status(name).installed:
        raise ConfigError(f"this check needs the converter {name}, which is not installed yet",
                          next_step=f"edgeship toolchains install {name}")  # fmt: skip
