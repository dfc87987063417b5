"""Ways from a source to a float file that a runtime reads: a table, tried in order, each step made once.

Quantizing comes later, from that float file, in the runtime's own quantizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from edgeship.build.sources import SourceModel
from edgeship.build.survival.journal import step as survive
from edgeship.build.toolchains import workers
from edgeship.build.toolchains.converters import convert_onnx
from edgeship_agent.contract.errors import ConversionError


class Made(Struct, frozen=True, kw_only=True):
    """What a step made.

    Attributes:
        fallbacks: ways that it gave up before this one worked, a sentence each.
    """

    file: Path
    fallbacks: tuple[str, ...] = ()


class Step(Struct, frozen=True, kw_only=True):
    """One conversion.

    Attributes:
        name: for reports.
        toolchain: the environment that it needs, empty for none.
        run: (source, private copy of the step's input, folder to write in) → the new file, or what was made.
    """

    name: str
    toolchain: str
    run: Callable[[SourceModel, Path, Path], Path | Made]


Route = tuple[str, ...]


def convert_by(toolchain: str, to: str) -> Callable[[SourceModel, Path, Path], Made]:
    """A step by a toolchain's ``convert`` command."""

    def run(source: SourceModel, model: Path, folder: Path) -> Made:
        request = {"command": "convert", "model": str(model), "format": source.format, "options": source.options,
                   "to": to, "folder": str(folder)}  # fmt: skip
        answer = workers.call(toolchain, request)
        return Made(file=Path(str(answer["file"])), fallbacks=tuple(answer.get("fallbacks", ())))

    return run


def _fold(source: SourceModel, model: Path, folder: Path) -> Path:
    from edgeship.build.fold import fold  # here and below: a build that finds everything remembered converts nothing

    return fold(source, model, folder)


def _unroll(source: SourceModel, model: Path, folder: Path) -> Path:
    from edgeship.build.unroll import unroll

    return unroll(source, model, folder)


def _plain(_source: SourceModel, model: Path, folder: Path) -> Made:
    from edgeship.build.plain_tables import written_out

    file, notes = written_out(model, folder)
    return Made(file=file, fallbacks=notes)


def _onnx2tf(_source: SourceModel, model: Path, folder: Path) -> Path:
    from edgeship.build.backends.onnx_ends import with_float_ends, with_recent_operators
    from edgeship.build.backends.onnx_lowered import with_lowered_forms

    model.write_bytes(with_lowered_forms(with_recent_operators(with_float_ends(model.read_bytes()))))  # a private copy
    return convert_onnx(model, folder)


def _tf2onnx(source: SourceModel, model: Path, folder: Path) -> Made:
    if source.format == "tflite":
        from edgeship.build.backends.tflite_plain import with_plain_operators, with_separate_biases

        model.write_bytes(with_separate_biases(with_plain_operators(model.read_bytes())))  # a private copy
    return convert_by("tensorflow", "onnx")(source, model, folder)


#: Every conversion there is.
STEPS: Final[dict[str, Step]] = {
    step.name: step
    for step in (
        Step(name="fold", toolchain="", run=_fold),
        Step(name="unroll", toolchain="", run=_unroll),
        Step(name="plain", toolchain="", run=_plain),
        Step(name="onnx2tf", toolchain="onnx2tf", run=_onnx2tf),
        Step(name="torch.onnx", toolchain="torch", run=convert_by("torch", "onnx")),
        Step(name="tf2onnx", toolchain="tensorflow", run=_tf2onnx),
        Step(name="TFLiteConverter", toolchain="tensorflow", run=convert_by("tensorflow", "tflite")),
        Step(name="skl2onnx", toolchain="classical", run=convert_by("classical", "onnx")),
        Step(name="onnxmltools", toolchain="classical", run=convert_by("classical", "onnx")),
    )
}
#: TensorFlow's formats all go the same ways. On one thread, OpenVINO 2026.4 computes int8 chains of matrix products
#: wrongly where they come from ONNX, each time differently, and right where they come from TFLite (measured on an
#: autoencoder: relative RMS .18 to .94 against .008).
_FROM_TENSORFLOW: Final[dict[str, tuple[Route, ...]]] = {
    "onnxruntime": (("tf2onnx",),),
    "openvino": (("TFLiteConverter",), ("tf2onnx",), ("tf2onnx", "fold", "unroll")),
    "litert": (("TFLiteConverter",), ("tf2onnx", "onnx2tf"), ("tf2onnx", "fold", "unroll", "onnx2tf")),
}
#: (source format, runtime) → routes in the order in which they are tried; the empty route is the source's own file.
ROUTES: Final[dict[tuple[str, str], tuple[Route, ...]]] = {
    ("onnx", "onnxruntime"): ((),),
    ("onnx", "openvino"): ((), ("fold", "unroll")),
    ("onnx", "litert"): (("onnx2tf",), ("fold", "onnx2tf"), ("fold", "unroll", "onnx2tf")),
    ("tflite", "litert"): ((),),
    ("tflite", "openvino"): ((), ("tf2onnx",)),
    ("tflite", "onnxruntime"): (("tf2onnx",),),
    ("torch", "onnxruntime"): (("torch.onnx",),),
    ("torch", "openvino"): (("torch.onnx",), ("torch.onnx", "fold", "unroll")),
    ("torch", "litert"): (("torch.onnx", "onnx2tf"), ("torch.onnx", "fold", "onnx2tf"),
                          ("torch.onnx", "fold", "unroll", "onnx2tf")),
    ("sklearn", "onnxruntime"): (("skl2onnx",),),
    ("sklearn", "openvino"): (("skl2onnx",), ("skl2onnx", "plain")),
    ("sklearn", "litert"): (("skl2onnx", "onnx2tf"), ("skl2onnx", "plain", "onnx2tf")),
    ("xgboost", "onnxruntime"): (("onnxmltools",),),
    ("xgboost", "openvino"): (("onnxmltools",),),
    ("xgboost", "litert"): (("onnxmltools", "onnx2tf"),),
    ("lightgbm", "onnxruntime"): (("onnxmltools",),),
    ("lightgbm", "openvino"): (("onnxmltools",),),
    ("lightgbm", "litert"): (("onnxmltools", "onnx2tf"),),
    **{(name, runtime): ways for name in ("keras", "saved_model", "frozen_graph")
       for runtime, ways in _FROM_TENSORFLOW.items()},
}  # fmt: skip


def plan(source_format: str, runtime: str) -> tuple[Route, ...]:
    """The routes to a runtime, in order.

    Raises:
        ConversionError: there is none.

    >>> plan("onnx", "litert")
    (('onnx2tf',), ('fold', 'onnx2tf'), ('fold', 'unroll', 'onnx2tf'))
    """
    found = ROUTES.get((source_format, runtime), ())
    if not found:
        raise ConversionError(f"there is no way from {source_format} to {runtime}", target=runtime)
    return found


def words(source_format: str, route: Route) -> str:
    """A route for people.

    >>> words("onnx", ("onnx2tf",)), words("tflite", ())
    ('onnx → onnx2tf', 'tflite as it is')
    """
    return " → ".join((source_format, *route)) if route else f"{source_format} as it is"


def toolchains(source_format: str, runtimes: Sequence[str]) -> tuple[str, ...]:
    """Converter environments that the first routes to these runtimes need.

    >>> toolchains("onnx", ["onnxruntime", "litert"])
    ('onnx2tf',)
    """
    routes = [ROUTES[source_format, runtime][0] for runtime in runtimes if (source_format, runtime) in ROUTES]
    needed = (STEPS[name].toolchain for route in routes for name in route)
    return tuple(dict.fromkeys(name for name in needed if name))


class Forms:
    """The source in other formats, each made once.

    Args:
        source: the trained model.
        folder: private, for copies and results.
        ready: called with a toolchain's name before a step needs it; raises ConversionError where it cannot be had.
    """

    def __init__(self, source: SourceModel, folder: Path, ready: Callable[[str], None]) -> None:
        self._source = source
        self._folder = folder
        self._ready = ready
        self._made: dict[Route, Path | ConversionError] = {}
        self._fallbacks: dict[Route, tuple[str, ...]] = {}

    def file(self, route: Route) -> Path:
        """The source at the end of a route; read it, or copy it, but never write to it.

        Raises:
            ConversionError: a step of the route failed, now or the first time that it was tried.
        """
        if route not in self._made:
            try:
                self._made[route] = self._make(route)
            except ConversionError as error:
                self._made[route] = error
        made = self._made[route]
        if isinstance(made, ConversionError):
            raise made
        return made

    def fallbacks(self, route: Route) -> tuple[str, ...]:
        """What the steps of a route gave up before they worked."""
        return tuple(each for length in range(len(route)) for each in self._fallbacks.get(route[: length + 1], ()))

    def _make(self, route: Route) -> Path:
        folder = self._folder / ("-".join(route) or "source")
        if not route:
            return self._source.copy_to(folder)
        before = self.file(route[:-1])
        step = STEPS[route[-1]]
        if step.toolchain:
            self._ready(step.toolchain)
        # a copy: converters rewrite their input files
        copy = folder / "input" / before.name
        copy.parent.mkdir(parents=True)
        if before.is_dir():
            shutil.copytree(before, copy)
        else:
            shutil.copyfile(before, copy)
        result = folder / "output"
        result.mkdir()
        with survive(f"form {'-'.join(route)}", "conversion"):
            made = step.run(self._source, copy, result)
        if isinstance(made, Path):
            return made
        self._fallbacks[route] = made.fallbacks
        return made.file
