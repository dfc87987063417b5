"""``edgeship``: the command line. Commands are imported when they are called, so that ``--help`` stays instant."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from edgeship import __version__
from edgeship.cli import console
from edgeship.cli.watched import OWN_PROCESS
from edgeship_agent.contract.errors import EdgeshipError

#: A variable that lets an error that nobody foresaw end with its traceback.
_DEBUG: Final = "EDGESHIP_DEBUG"
#: A full disk, a quota, a limit on file sizes.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

#: command → (module, function, one-line help). Help stands here so that listing the commands imports none of them.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "init": ("edgeship.cli.init", "init", "Write a project file by looking at a model."),
    "build": ("edgeship.cli.build", "build", "Build a model for hardware targets, with proof."),
    "gate": ("edgeship.cli.gate", "gate", "Decide builds that wait for labels."),
    "bisect": ("edgeship.cli.bisect", "bisect", "Find the smallest part of a model that goes wrong."),
    "targets": ("edgeship.cli.targets", "targets", "List, show and check hardware targets."),
    "inspect": ("edgeship.cli.bundles", "inspect", "Show what a model file, data file or bundle is."),
    "verify": ("edgeship.cli.bundles", "verify", "Verify a bundle: signature, digests, golden outputs."),
    "export": ("edgeship.cli.bundles", "export", "Copy one target's files out of a bundle."),
    "ci": ("edgeship.cli.ci", "ci", "Set up continuous integration, and tell it a build's results."),
    "push": ("edgeship.cli.registry", "push", "Push a bundle to an OCI registry."),
    "pull": ("edgeship.cli.registry", "pull", "Pull a bundle from an OCI registry, verified."),
    "cache": ("edgeship.cli.cache", "cache", "List, check and clear what builds have kept."),
    "toolchains": ("edgeship.cli.toolchains", "toolchains", "List, install, check and remove converters."),
    "server": ("edgeship.cli.server", "server", "Run the fleet server."),
    "releases": ("edgeship.cli.releases", "releases", "Add, list and show releases."),
    "rollouts": ("edgeship.cli.rollouts", "rollouts", "Create, watch and control staged rollouts."),
    "devices": ("edgeship.cli.devices", "devices", "List, show and tag devices."),
    "profile": ("edgeship.cli.profile", "profile", "Measure a model on a device of the fleet."),
    "drift": ("edgeship.cli.drift", "drift", "Show drift per device and signal."),
    "incidents": ("edgeship.cli.drift", "incidents", "List and show incidents."),
    "explain": ("edgeship.cli.explain", "explain", "Explain a verdict: rule, value, limit, evidence, next step."),
    "demo": ("edgeship.cli.demo", "demo", "Watch the whole loop on this machine."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Names in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command."""
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgeship")
@click.option("--no-color", is_flag=True, help="Plain text. NO_COLOR and TERM=dumb say the same.")
def edgeship(no_color: bool) -> None:
    """Take a trained model to a fleet of edge devices and keep it healthy there."""
    if no_color:
        console.disable_color()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    try:
        # click turns ``Exit`` into a return value where it does not stand alone
        code = edgeship.main(args=arguments, prog_name="edgeship", standalone_mode=False, obj=OWN_PROCESS)
        sys.exit(code if isinstance(code, int) else 0)
    except EdgeshipError as error:
        console.print_error(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        console.note("interrupted: nothing that was finished is lost")
        # an interrupt that crossed code made from text would have Python end by the signal, not with 130: the flag is
        # cleared where such code begins. Source: CPython 3.11, pythonrun.c, unhandled_keyboard_interrupt
        exec("")  # noqa: S102
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (OSError, MemoryError) as error:
        console.print_error(_of_the_system(error))
        sys.exit(1)
    except Exception as error:  # the process's outermost place: a person is told in words, whatever it was
        if os.environ.get(_DEBUG):
            raise
        console.print_error(EdgeshipError(f"a defect of edgeship, or a file that it does not foresee: "
                                          f"{type(error).__name__}: {_first_line(error)}",
                                          next_step=f"report it with what {_DEBUG}=1 shows"))  # fmt: skip
        sys.exit(1)


def _of_the_system(error: OSError | MemoryError) -> EdgeshipError:
    """What the system refused, in one sentence: a full disk, a folder that cannot be written, no memory left."""
    if isinstance(error, MemoryError):
        return EdgeshipError("not enough memory", got=_first_line(error) or None,
                             next_step="give fewer or smaller samples, or build on a larger machine")  # fmt: skip
    reason = error.strerror or _first_line(error) or type(error).__name__
    place = error.filename2 or error.filename
    if error.errno in _FULL:
        room = "free space there, or set TMPDIR and -o to folders on a larger disk; nothing half-written was left"
        return EdgeshipError(f"cannot be written: {reason}", file=place, next_step=room)
    return EdgeshipError(f"cannot be read or written: {reason}", file=place, next_step="check the path and its rights")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
