"""The float file of a runtime: the first route that keeps the source's meaning, and of loops the quicker form."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
from msgspec import structs

from edgeship.build import routes, stages
from edgeship.build.backends import Artifact, Backend, Job
from edgeship.build.loop_costs import COSTS, Counts, counted, gain, is_worth
from edgeship.build.progress import Progress
from edgeship.build.stages import at
from edgeship.build.tflite_file import TfliteGraph, read_tflite
from edgeship.build.unroll import NothingToUnroll
from edgeship.build.unroll_loops import LOOPS
from edgeship_agent.contract.errors import ConversionError, EngineError

_OPENVINO_LOOPS: Final = (b'type="Loop"', b'type="TensorIterator"')
_WHILE: Final = frozenset({"WHILE", "STABLEHLO_WHILE"})
_GATHERING: Final = frozenset({"SLICE", "CONCATENATION"})
#: Makes loops of recurrent layers; other converters leave them layers.
_LAYERS_TO_LOOPS: Final = "TFLiteConverter"


class FloatForms:
    """Float files by every route.

    Args:
        forms: the source in other formats.
        progress: told what goes on.
    """

    def __init__(self, forms: routes.Forms, progress: Progress) -> None:
        self._forms = forms
        self._progress = progress

    def best(self, backend: Backend, job: Job, runtime: str) -> Artifact:
        """The float artifact by the first route that keeps the source's meaning.

        Where that one loops, and is held to be slower than the same written out step by step, such a route is taken.

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
            return self._written_out(backend, job, made, route, range(position + 1, len(plan)))
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

    def _written_out(
        self, backend: Backend, job: Job, looping: Artifact, route: routes.Route, positions: range
    ) -> Artifact:
        """The quicker one of a file that loops and the same without loops; the file itself where it does not loop.

        Which one that is follows from counts and from costs that were measured once, so that it is the same each time.
        """
        plan = routes.plan(job.source.format, looping.runtime)
        further = [position for position in positions if "unroll" in plan[position]]
        if not further or not has_loops(looping.model):
            return looping
        for position in further:
            try:
                counts = self._counts(plan[position])
                steps = counts.loop_steps + (counts.layer_steps if _LAYERS_TO_LOOPS in route else 0)
                costs, gathering = COSTS[looping.runtime], gathering_share(looping.model)
                if not is_worth(costs, counts, steps, gathering):
                    return looping
                straight = self._made(backend, job, plan[position], position)
            except (ConversionError, EngineError):
                continue  # the file that loops is there
            times = gain(costs, counts, steps, gathering)
            held = f"{steps:,} steps, {counts.operators:,} operators, held to be {times:.1f} times as fast"
            note = f"loops written out step by step: {held}"
            return structs.replace(straight, notes=(*straight.notes, note))
        return looping

    def _counts(self, route: routes.Route) -> Counts:
        """Of the graph written out on a route, before it is converted further."""
        return counted(onnx.load(str(self._form(route[: route.index("unroll") + 1]))))


def gathering_share(model: Path) -> float:
    """Share of a TFLite file's loops that join what each step gives to what the steps before it gave."""
    if model.suffix != ".tflite":
        return 0.0
    graphs = read_tflite(model).graphs
    bodies = [{each.name for each in graphs[index].operators} for index in _bodies(graphs[0])]
    return sum(kinds >= _GATHERING for kinds in bodies) / len(bodies) if bodies else 0.0


def _bodies(graph: TfliteGraph) -> list[int]:
    """Places of the graphs that a graph's loops run."""
    found = [each.options.get("bodySubgraphIndex") for each in graph.operators if each.name in _WHILE]
    return [int(index) for index in found if index is not None]


def has_loops(model: Path) -> bool:
    """Whether a float file runs a part of itself several times."""
    if model.suffix == ".tflite":
        return any(each.name in _WHILE for each in read_tflite(model).operators)
    if model.suffix == ".xml":
        data = model.read_bytes()
        return any(kind in data for kind in _OPENVINO_LOOPS)
    return any(node.op_type in LOOPS for node in onnx.load(str(model)).graph.node)
