"""Several targets at the same time: each in a process of its own that fills the cache, which the build then reads.

So the result is the one of a single process, whatever becomes of the others. Targets with the same first runtime share
their files and stay together; whoever measures latency does so alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeship.build import target_files
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Agree, Progress
from edgeship.build.survival import turns
from edgeship.build.survival.supervisor import Supervisor, Work


def groups(options: BuildOptions) -> list[tuple[str, ...]]:
    """Targets that are built one after the other, since they share files.

    Raises:
        InputError, ConfigError: a target is unknown, or its file cannot be used.
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(options.targets):
        found.setdefault(target_files.load(name).runtimes[0].name, []).append(name)
    return [tuple(names) for names in found.values()]


def prepare(supervisor: Supervisor, options: BuildOptions, progress: Progress, agree: Agree) -> None:
    """Fill the cache with what a build of several targets will ask for, ``options.jobs`` processes at once.

    Nothing is done where there is one group alone, where nothing is to be kept, or where a device measures.

    Raises:
        InputError, ConfigError: a target is unknown, or its file cannot be used.
    """
    if options.jobs < 2 or not options.cache or options.measure:
        return
    parts = groups(options)
    if len(parts) < 2:
        return
    with tempfile.TemporaryDirectory(prefix="edgeship-turns-") as name:
        folder = Path(name)
        # what the source says comes first and once: every target is compared with it
        if supervisor.prepare([_work(options, (), folder, progress, agree)], 1) == [0]:
            works = [_work(options, part, folder, progress, agree) for part in parts]
            supervisor.prepare(works, options.jobs)


def _work(options: BuildOptions, only: Sequence[str], folder: Path, progress: Progress, agree: Agree) -> Work:
    def work() -> int:
        from edgeship.build import pipeline  # here: the process that watches stays light

        turns.take(folder)
        pipeline.prepare(options, progress, agree, only)
        return 0

    return work
