"""Which way round a converted file wants its tensors: never guessed, found by running it against the source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations, product
from pathlib import Path
from typing import Final

import numpy as np

from edgeship.build.backends.base import Artifact, Bindings, Job, Samples, bind
from edgeship.build.metrics import relative_rms
from edgeship.build.quiet import quiet
from edgeship.build.stages import at
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.contract.manifest import Binding, TensorSpec
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import from_artifact, to_artifact
from edgeship_agent.runtime.engine import Array, Engine, Signature, TensorInfo

#: A float file whose outputs lie further from the source than this computes something else. Source: converters that
#: keep the meaning stay below 1e-5 on every model measured for this project.
PARITY_RMS: Final = 1e-3
#: A file of a source that was quantized before: no kernels round alike, and some saturate. The closest layout is taken
#: up to here, and whether it is close enough is for the gates to say. Source: a ResNet-20 in int8 lies at .001–.012
#: from itself between runtimes, and at .20–.28 where products saturate.
QUANTIZED_RMS: Final = 0.5
#: Layouts that are tried before the converter's file is refused.
_MOST_LAYOUTS: Final = 64


@at("layout")
def find_bindings(job: Job, engine: Engine, runtime: str) -> Bindings:
    """Bindings under which the file computes what the source computes.

    Args:
        job: the source, a few samples and what it says for them.
        engine: the float file.
        runtime: for the message.

    Raises:
        ConversionError: no assignment of axes makes the file agree with the source.
    """
    signature = engine.signature
    expected, samples = job.expected, job.checks
    pairs = _pair(job.source.inputs, signature.inputs, "input", runtime)
    targets = _pair(job.source.outputs, signature.outputs, "output", runtime)
    choices = [list(_orders(spec, info)) for spec, info in pairs]
    for (spec, info), orders in zip(pairs, choices, strict=True):
        if not orders:
            raise ConversionError(
                f"the converted file's input {spec.name} is {list(info.shape)}, the source's {list(spec.shape)}",
                target=runtime,
            )
    best: tuple[float, Bindings | None] | None = None
    limit = QUANTIZED_RMS if job.source.rounds_elsewhere else PARITY_RMS
    refused = "it does not run"
    for combination in islice(product(*choices), _MOST_LAYOUTS):
        inputs = tuple(bind(spec.name, info, order) for (spec, info), order in zip(pairs, combination, strict=True))
        try:
            results = _run(engine, inputs, samples)
        except EngineError as error:
            refused = error.message
            continue
        outputs, worst = _bind_outputs(targets, results, expected)
        if outputs is not None and worst <= PARITY_RMS:
            return inputs, outputs
        if best is None or worst < best[0]:
            best = (worst, None if outputs is None else (inputs, outputs))
    if best is not None and best[1] is not None and best[0] <= limit:
        return best[1]
    failure = ConversionError(
        "the converted file does not compute what the source computes"
        + (f" (relative RMS {best[0]:.3g}, limit {limit:g})" if best is not None else f": {refused}"),
        target=runtime,
    )
    # every order of axes was tried: where numbers differ all the same, no layout is to blame
    failure.stage = "runtime" if best is None else "conversion" if math.isfinite(best[0]) else "layout"
    raise failure


def rebound(float_artifact: Artifact, model: Path, runtime: str, signature: Signature | None = None) -> Bindings:
    """The float file's layout for a quantized file.

    Args:
        float_artifact: with its layout.
        model: the quantized file.
        runtime: that reads it.
        signature: its inputs and outputs, where they are known without loading it.

    Raises:
        ConversionError: it does not load, or has other inputs or outputs.
    """
    signature = signature or _signature(model, runtime)
    return (rebind(float_artifact.inputs, signature.inputs, runtime),
            rebind(float_artifact.outputs, signature.outputs, runtime))  # fmt: skip


def _signature(model: Path, runtime: str) -> Signature:
    try:
        with quiet():
            engine = open_engine(runtime, model)
    except EngineError as error:
        raise ConversionError(f"the quantized file does not load: {error.message}", target=runtime) from error
    try:
        return engine.signature
    finally:
        engine.close()


def rebind(bindings: Sequence[Binding], infos: Sequence[TensorInfo], runtime: str) -> tuple[Binding, ...]:
    """The same layout for another file with the same inputs or outputs in the same order, such as the quantized one.

    Raises:
        ConversionError: it has others.
    """
    if len(bindings) != len(infos):
        raise ConversionError("the quantized file has other inputs or outputs than the float one", target=runtime)
    return tuple(bind(each.name, infos[each.artifact_index], each.transpose) for each in bindings)


def _pair(
    specs: Sequence[TensorSpec], infos: Sequence[TensorInfo], kind: str, runtime: str
) -> list[tuple[TensorSpec, TensorInfo]]:
    """By name where every name is there, else by position."""
    if len(specs) != len(infos):
        raise ConversionError(f"the converted file has {len(infos)} {kind}s, the source {len(specs)}", target=runtime)
    by_name = {_plain(info.name): info for info in infos}
    names = [_plain(spec.name) for spec in specs]
    if len(by_name) == len(infos) and all(name in by_name for name in names):
        return [(spec, by_name[name]) for spec, name in zip(specs, names, strict=True)]
    return list(zip(specs, infos, strict=True))


def _plain(name: str) -> str:
    """A name without what exporters add to it.

    >>> _plain("serving_default_x:0"), _plain("x")
    ('x', 'x')
    """
    return name.removeprefix("serving_default_").split(":", 1)[0]


def _orders(spec: TensorSpec, info: TensorInfo) -> Iterator[tuple[int, ...]]:
    """Orders of the axes that give the file's shape, channels-last first, as converters to TFLite prefer it."""
    shape = spec.call_shape
    rank = len(shape)
    if len(info.shape) != rank:
        if math.prod(info.shape) == math.prod(shape) == 1:
            yield ()  # a scalar, which some formats write as a vector of one
        return
    channels_last = (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))
    candidates = dict.fromkeys([channels_last, tuple(range(rank)), *permutations(range(rank))])
    for order in candidates:
        if tuple(shape[axis] for axis in order) == info.shape:
            yield order


@at("runtime")
def _run(engine: Engine, inputs: Sequence[Binding], samples: Samples) -> list[list[Array]]:
    results = []
    for sample in samples:
        arrays: list[Array] = [np.empty(0)] * len(inputs)
        for binding in inputs:
            arrays[binding.artifact_index] = to_artifact(binding, sample[binding.name])
        results.append(engine.run(arrays))
    return results


def _bind_outputs(
    targets: Sequence[tuple[TensorSpec, TensorInfo]],
    results: Sequence[Sequence[Array]],
    expected: Sequence[Mapping[str, Array]],
) -> tuple[tuple[Binding, ...] | None, float]:
    bindings: list[Binding] = []
    worst = 0.0
    for spec, info in targets:
        wanted = [np.asarray(sample[spec.name]) for sample in expected]
        found = [result[info.index] for result in results]
        error, chosen = _best_order(spec, info, found, wanted)
        if chosen is None:
            return None, float("inf")
        bindings.append(chosen)
        worst = max(worst, error)
    return tuple(bindings), worst


def _best_order(
    spec: TensorSpec, info: TensorInfo, found: Sequence[Array], wanted: Sequence[Array]
) -> tuple[float, Binding | None]:
    """The first order of the source's axes that reproduces the output, else the one with the least error."""
    best: tuple[float, Binding | None] = (float("inf"), None)
    if found[0].ndim != wanted[0].ndim:
        return best
    flexible = TensorInfo(name=info.name, index=info.index, dtype=info.dtype,
                          shape=(-1,) * found[0].ndim, scale=info.scale, zero_point=info.zero_point)  # fmt: skip
    known = info if info.shape == found[0].shape else flexible
    for order in permutations(range(found[0].ndim)):
        if tuple(wanted[0].shape[axis] for axis in order) != found[0].shape:
            continue
        binding = bind(spec.name, known, order)
        back = np.stack([from_artifact(binding, array) for array in found])
        error = relative_rms(back, np.stack(wanted))
        if error is not None and error < best[0]:
            best = (error, binding)
        if best[0] <= PARITY_RMS:
            break
    return best
