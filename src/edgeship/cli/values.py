"""Kinds of values that options take, beyond what click refuses by itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from edgeship_agent.contract.errors import ConfigError


class Finite(click.FloatRange):
    """A number within a range: NaN compares with nothing, and no limit is infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        Raises:
            click.BadParameter: it is none, or outside of the range.
        """
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no limit that anything could keep to: give a number.", param, ctx)
        return number


class Named(click.Path):
    """A path that was named: an empty text, as of a variable that is not set, would be the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            ConfigError: the text is empty.
        """
        if value == "":
            key = param.opts[0] if param is not None else None
            raise ConfigError("is empty", key=key, expected="a path", got="an empty text",
                              next_step="name the file or folder; . is the current folder")  # fmt: skip
        return super().convert(value, param, ctx)
