"""The float file of a runtime: the first route that keeps the source's meaning, and of loops the quicker form."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import onnx
from msgspec import structs

from edgeship.build import routes, stages
from edgeship.build.backends import Artifact, Backend, Job
from edgeship.build.measure import measure
from edgeship.build.probing import Prober
from edgeship.build.progress import Progress
from edgeship.build.stages import at
from edgeship.build.tflite_file import read_tflite
from edgeship.build.unroll import NothingToUnroll
from edgeship.build.unroll_loops import LOOPS
from edgeship.build.verify import open_artifact
from edgeship.targets import Measure
from edgeship_agent.contract.errors import ConversionError, EngineError

_PLAN: Final = Measure(warm_up=5, min_queries=100, min_seconds=0.2)
#: A graph written out is larger: it has to be so much faster than the loop. A bidirectional LSTM of 40 steps takes
#: 15.7 ms as a loop and 0.25 ms written out in OpenVINO, 0.55 and 0.23 in LiteRT.
_WORTH: Final = 1.5
_OPENVINO_LOOPS: Final = (b'type="Loop"', b'type="TensorIterator"')


class FloatForms:
    """Float files by every route.

    Args:
        forms: the source in other formats.
        prober: loads files beforehand.
        progress: told what goes on.
    """

    def __init__(self, forms: routes.Forms, prober: Prober, progress: Progress) -> None:
        self._forms = forms
        self._prober = prober
        self._progress = progress

    def best(self, backend: Backend, job: Job, runtime: str) -> Artifact:
        """The float artifact by the first route that keeps the source's meaning.

        Where that one loops, the routes that write loops out step by step are tried too, and theirs is taken if it is
        faster by :data:`_WORTH` on this machine.

        Raises:
            ConversionError: no route leads there; the reason is the last one's.
        """
        gave_up: list[str] = []
        last, passing = "conversion", False
        plan = routes.plan(job.source.format, runtime)
        for position, route in enumerate(plan):
            try:
                made = self._made(backend, job, route, position)
            except NothingToUnroll:
                continue
            except (ConversionError, EngineError) as error:
                gave_up.append(f"{routes.words(job.source.format, route)}: {stages.words(error)}")
                last, passing = error.stage, passing or getattr(error, "passing", False)
                continue
            gave_up += self._forms.fallbacks(route)
            made = structs.replace(made, fallbacks=(*made.fallbacks, *gave_up), notes=(*made.notes, *gave_up))
            return self._written_out(backend, job, made, range(position + 1, len(plan)))
        failure = ConversionError("; tried next: ".join(gave_up), target=runtime)
        failure.stage, failure.passing = last, passing
        raise failure

    def _made(self, backend: Backend, job: Job, route: routes.Route, position: int) -> Artifact:
        attempt = structs.replace(job, folder=job.folder / f"route{position}")
        with at("conversion"):
            artifact = backend.convert(attempt, self._form(route))
        by = routes.words(job.source.format, route)
        return structs.replace(artifact, notes=(*artifact.notes, f"converted by {by}"))

    def _form(self, route: routes.Route) -> Path:
        """The end of a route, step by step: one of a graph of a thousand operators may take half a minute."""
        for done in range(len(route)):
            self._progress.count("convert", done, len(route) + 1)
            self._forms.file(route[: done + 1])
        return self._forms.file(route)

    def _written_out(self, backend: Backend, job: Job, looping: Artifact, positions: range) -> Artifact:
        """The quicker one of a file that loops and the same without loops; the file itself where it does not loop."""
        plan = routes.plan(job.source.format, looping.runtime)
        further = [position for position in positions if "unroll" in plan[position]]
        if not further or not has_loops(looping.model):
            return looping
        for position in further:
            try:
                straight = self._made(backend, job, plan[position], position)
                loop_ms, straight_ms = self._times(job, looping, straight)
            except (ConversionError, EngineError):
                continue  # the file that loops is there
            if is_worth(loop_ms, straight_ms):
                note = f"loops written out step by step: {straight_ms:.3g} ms instead of {loop_ms:.3g}, on this machine"
                return structs.replace(straight, notes=(*straight.notes, note))
        return looping

    def _times(self, job: Job, *artifacts: Artifact) -> list[float]:
        """Medians in ms, taken in turns."""
        with contextlib.ExitStack() as stack:
            bound = [stack.enter_context(contextlib.closing(open_artifact(each, self._prober))) for each in artifacts]
            runs = {str(index): each.run for index, each in enumerate(bound)}
            found = measure(runs, job.samples, _PLAN, self._progress)
        return [found[str(index)].p50_ms for index in range(len(artifacts))]


def is_worth(loop_ms: float, straight_ms: float) -> bool:
    """Whether a graph written out is so much faster than the loop that its size is worth it.

    Args:
        loop_ms: median time of the file that loops.
        straight_ms: of the one that does not.

    >>> is_worth(15.7, 0.25), is_worth(0.31, 0.2), is_worth(0.29, 0.2), is_worth(0.2, 0.9)
    (True, True, False, False)
    """
    return straight_ms * _WORTH <= loop_ms


def has_loops(model: Path) -> bool:
    """Whether a float file runs a part of itself several times."""
    if model.suffix == ".tflite":
        return any(each.name in {"WHILE", "STABLEHLO_WHILE"} for each in read_tflite(model).operators)
    if model.suffix == ".xml":
        data = model.read_bytes()
        return any(kind in data for kind in _OPENVINO_LOOPS)
    return any(node.op_type in LOOPS for node in onnx.load(str(model)).graph.node)
