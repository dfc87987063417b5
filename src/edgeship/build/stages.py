"""Where something went wrong: conversion, layout, quantization or runtime; told apart where it happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from edgeship.build.survival import journal
from edgeship_agent.contract.errors import ConversionError, EdgeshipError, EngineError

Stage = Literal["check", "conversion", "layout", "quantization", "runtime"]
#: A file in the folder of a build in the making, or in one of the system's for such.
_OWN_FILE: Final = re.compile(r"/[^\s:'\"]*?/(?:\.[^/\s]+-[0-9a-f]{8}/scratch|edgeship-build-\w+)/[^\s:,;'\")]*")
STAGES: Final[tuple[Stage, ...]] = ("check", "conversion", "layout", "quantization", "runtime")


@contextmanager
def at(stage: Stage) -> Iterator[None]:
    """Errors that come from here carry this stage, unless one further in has said better.

    >>> try:
    ...     with at("quantization"), at("runtime"):
    ...         raise ConversionError("refused")
    ... except ConversionError as error:
    ...     error.stage
    'runtime'
    """
    try:
        with journal.at(stage):
            yield
    except (ConversionError, EngineError) as error:
        error.stage = error.stage or _caused(error) or stage
        raise


def words(error: EdgeshipError) -> str:
    """What went wrong, with its stage before it.

    >>> error = ConversionError("no such operator"); error.stage = "conversion"
    >>> words(error), words(ConversionError("why"))
    ('conversion error: no such operator', 'why')
    """
    return said(error.stage, error.message)


def said(stage: str, reason: str) -> str:
    """The same from its parts.

    >>> said("layout", "axes moved"), said("check", "too large")
    ('layout error: axes moved', 'too large')
    """
    return reason if stage in ("", "check") or named_in(reason) else f"{stage} error: {reason}"


def named(reason: str, source: str) -> str:
    """A reason with the source's name in the place of files of the build's own, which nobody will find.

    Args:
        reason: in the words of a tool.
        source: the name of the user's file.

    >>> named("Load model from /data/.out-0a1b2c3d/scratch/onnxruntime/fp16/model.onnx failed", "forest.pkl")
    'Load model from forest.pkl failed'
    >>> named("/tmp/edgeship-build-x7_k/memory/m.onnx: refused", "net.keras")
    'net.keras: refused'
    """
    return _OWN_FILE.sub(lambda _: source, reason)


def named_in(reason: str) -> str:
    """The first stage that a sentence of :func:`words` names, empty where it names none.

    >>> named_in("onnx → onnx2tf: layout error: axes moved"), named_in("too large")
    ('layout', '')
    """
    places = {reason.find(f"{each} error: "): each for each in STAGES if f"{each} error: " in reason}
    return places[min(places)] if places else ""


def _caused(error: EdgeshipError) -> str:
    """The stage of the error that this one was made from."""
    cause = error.__cause__
    return cause.stage if isinstance(cause, EdgeshipError) else ""
