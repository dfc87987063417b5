"""Converters that a runtime needs, there before the first probe."""

from __future__ import annotations

from edgeship.build import routes
from edgeship.build.progress import Progress
from edgeship.build.toolchains import environment
from edgeship_agent.contract.errors import ConfigError


def have_ready(runtime: str, *, install: bool, progress: Progress) -> None:
    """Have every converter of a runtime's first route.

    Raises:
        ConfigError: one is not installed, and nobody agreed to install it.
        ConversionError: it could not be installed.
    """
    for name in routes.toolchains("onnx", [runtime]):
        if environment.status(name).installed:
            continue
        if not install:
            raise ConfigError(f"this search needs the converter {name}, which is not installed yet",
                              next_step=f"edgeship toolchains install {name}   (or add --yes)")  # fmt: skip
        progress.step("toolchain", f"installing {name} in an environment of its own, once", "note")
        environment.install(name)
