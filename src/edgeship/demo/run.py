"""The demo from the first process to the last: start, play, show, clean up."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from msgspec import Struct

from edgeship.demo.fleet import Fleet, demo_folder, name_devices
from edgeship.demo.story import Story, StoryOptions
from edgeship.demo.timeline import Timeline
from edgeship_agent.contract.errors import EdgeshipError


class DemoOptions(Struct, frozen=True, kw_only=True):
    """What the command line says.

    Attributes:
        parent: where the demo makes its folder; None for the system's temporary folder.
        keep: leave the folder behind.
    """

    device_count: int = 6
    exit_at_end: bool = False
    as_json: bool = False
    broker_url: str = ""
    bundles: Path | None = None
    timing: bool = True
    parent: Path | None = None
    keep: bool = False


def run_demo(options: DemoOptions) -> bool:
    """Run the demo.

    Returns:
        Whether every claim held.

    Raises:
        KeyboardInterrupt: interrupted before the result; every process has ended by then.
    """
    folder = demo_folder(options.parent)
    timeline = Timeline(as_json=options.as_json)
    fleet = Fleet(folder, name_devices(folder, options.device_count), options.broker_url, timeline)
    story = Story(fleet, timeline, StoryOptions(bundles=options.bundles, timing=options.timing))
    try:
        with _ended_by_signal():
            ok = _play(story, timeline, folder)
            if not options.exit_at_end:
                _leave_open(fleet, timeline)
    finally:
        story.end_streams()
        fleet.stop()
        if options.keep:
            timeline.line(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return ok


def _play(story: Story, timeline: Timeline, folder: Path) -> bool:
    try:
        claims = story.play()
    except EdgeshipError as error:
        timeline.line(error.sentence(), "✖")
        timeline.line(f"logs: {folder} (kept with --keep)")
        timeline.result(story.claims, ok=False)
        return False
    ok = all(claim.holds for claim in claims)
    timeline.result(claims, ok=ok)
    return ok


def _leave_open(fleet: Fleet, timeline: Timeline) -> None:
    """Keep the fleet running until somebody presses Ctrl-C, which is a good end."""
    timeline.act(f"open {fleet.url} in a browser; Ctrl-C ends the demo")
    try:
        while True:
            fleet.wait(lambda: True, 5.0, "the fleet")
            time.sleep(0.5)
    except KeyboardInterrupt:
        timeline.line("ended")


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: in order, with no process left."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
