"""Which operators lose most, operators kept in float, stages of failures, and what looks into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edgeship.build import hints, sensitivity, words
from edgeship.build.backends.base import Samples, Scheme
from edgeship.build.backends.calibration import Calibration
from edgeship.build.keep_float import KeepFloat, kept
from edgeship.build.options import BuildOptions
from edgeship.build.search.engine import Search, Terms
from edgeship.build.search.expected import most_candidates
from edgeship.build.search.graph import Layer, Operator
from edgeship.build.search.halving import Trial
from edgeship.build.search.space import EFFORT
from edgeship.build.stages import at
from edgeship.cli.pace import Pace
from edgeship_agent.contract.errors import ConfigError, ConversionError, EngineError
from edgeship_agent.runtime.engine import Array
from tests import builds, reports


class Graph:
    """x → a (good weights) → b (weights of which one is huge, and an output of two sizes) → reshaped."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.good = Layer(weight=rng.uniform(0.5, 1.0, (4, 4)), convolution=False)
        bad = rng.uniform(-0.01, 0.01, (4, 4))
        bad[:, 0] = 1.0
        self.bad = Layer(weight=bad, convolution=False)

    def operators(self) -> tuple[Operator, ...]:
        return (
            Operator(name="a", kind="Gemm", inputs=("x",), outputs=("p",), layer=self.good),
            Operator(name="relu", kind="Relu", inputs=("p",), outputs=("r",)),
            Operator(name="b", kind="Gemm", inputs=("r",), outputs=("y",), layer=self.bad),
            Operator(name="shape", kind="Reshape", inputs=("y",), outputs=("z",)),
        )

    def watch(self, samples: Samples) -> Iterator[dict[str, Array]]:
        for sample in samples:
            p = sample["x"] @ self.good.weight.T
            # the first input of b is small, so that its huge weights do not carry the product
            r = np.maximum(p, 0.0) * np.array([0.001, 1.0, 1.0, 1.0])
            y = r @ self.bad.weight.T
            found = {"x": sample["x"], "p": p, "r": r, "y": y, "z": y}
            yield {name: array.astype(np.float32) for name, array in found.items()}

    def write(self, weights: Mapping[str, Array], biases: Mapping[str, Array], file: Path) -> None:
        raise AssertionError("nothing is written here")


def _report() -> sensitivity.SensitivityReport:
    rng = np.random.default_rng(1)
    samples = [{"x": rng.uniform(0, 1, (1, 4)).astype(np.float32)} for _ in range(20)]
    calibration = Calibration(Graph(), samples, Path, Path("net.onnx"))
    return sensitivity.report("box/onnxruntime", Scheme(), {"b": 0.7}, calibration)


def test_the_operator_with_the_coarse_grid_comes_first() -> None:
    found = _report()
    assert (found.target, found.runtime, found.samples) == ("box", "onnxruntime", 20)
    assert found.operators[0].name == "b"
    assert found.operators[0].removed_share == 0.7
    assert found.operators[0].noise_share > 0.5
    assert sum(each.noise_share for each in found.operators) == pytest.approx(1.0)


def test_what_only_moves_numbers_is_left_out_and_what_is_fused_has_no_grid() -> None:
    names = {each.name for each in _report().operators}
    assert names == {"a", "relu", "b"}


def test_noise_of_weights_is_that_of_their_products() -> None:
    rng = np.random.default_rng(3)
    layer = Layer(weight=rng.normal(size=(5, 6)), convolution=False)
    rows = rng.normal(size=(400, 6))
    rounded = np.round(layer.weight, 1)
    expected = ((rows @ (rounded - layer.weight).T) ** 2).sum() / ((rows @ layer.weight.T) ** 2).sum()
    assert sensitivity.relative_noise(layer, rounded, (rows.T @ rows)[None]) == pytest.approx(expected)


def test_a_kept_operator_is_in_float_whatever_the_search_tries() -> None:
    scheme = Scheme(floats=("pool",), part="head")
    assert kept(scheme, ["conv"]).floats == ("pool", "conv")
    assert kept(scheme, ["conv"]).name != scheme.name
    assert kept(scheme, ["pool"]) == scheme


def test_a_name_that_no_file_has_is_refused_with_near_ones() -> None:
    keep = KeepFloat(["conv_1", "fc"])
    operators = [Operator(name=name, kind="Conv", inputs=("x",), outputs=("y",)) for name in ("conv1", "pool")]
    assert keep.among(operators, "litert", allowed=True) == ()
    assert keep.among([*operators, structs.replace(operators[0], name="fc")], "openvino", allowed=True) == ("fc",)
    with pytest.raises(ConfigError) as refusal:
        keep.check()
    assert refusal.value.got == "conv_1"
    assert "conv1" in str(refusal.value.expected)


def test_a_name_that_no_file_has_is_refused_before_the_last_runtime_is_searched() -> None:
    keep = KeepFloat(["conv_1"], ["onnxruntime", "litert", "onnxruntime"])
    operators = [Operator(name=name, kind="Conv", inputs=("x",), outputs=("y",)) for name in ("conv1", "pool")]
    assert keep.among(operators, "onnxruntime", allowed=True) == ()
    with pytest.raises(ConfigError, match="expected conv1"):
        keep.among(operators, "litert", allowed=True)


def test_names_are_no_matter_where_nothing_was_searched() -> None:
    KeepFloat(["conv"]).check()


def test_a_target_without_floats_cannot_keep_one() -> None:
    operators = [Operator(name="conv", kind="Conv", inputs=("x",), outputs=("y",))]
    with pytest.raises(ConversionError, match="computes nothing in float"):
        KeepFloat(["conv"]).among(operators, "litert", allowed=False)


@at("runtime")
def _crash() -> None:
    raise EngineError("crash")


def test_the_innermost_stage_is_told() -> None:
    with pytest.raises(ConversionError) as wrapped, at("conversion"):
        try:
            _crash()
        except EngineError as error:
            raise ConversionError("it crashes", target="litert") from error
    assert wrapped.value.stage == "runtime"
    with pytest.raises(ConversionError) as plain, at("layout"):
        raise ConversionError("moved")
    assert plain.value.stage == "layout"


OPTIONS = BuildOptions(source=Path("my net.onnx"), targets=(), calibration=Path("cal.npz"), evaluation=Path("e.npz"))


def test_a_diverging_int8_is_laid_beside_its_source() -> None:
    document = builds.document()
    gate = structs.replace(document.gates[0], id="relative_rms", holds=False)
    file = document.variants[0].file
    found = hints.commands(OPTIONS, structs.replace(document, gates=(gate,)))
    assert found == (f"edgeship bisect 'my net.onnx' --artifact {file} --inputs cal.npz",)
    prepared = structs.replace(OPTIONS, preprocess=Path("p.toml"))
    assert hints.commands(prepared, structs.replace(document, gates=(gate,))) == (
        f"edgeship bisect 'my net.onnx' --artifact {file}",
    )


def test_where_bisect_does_not_apply_nothing_is_offered() -> None:
    document = builds.document()
    missed = structs.replace(document.gates[0], id="size_bytes", holds=False)
    other = structs.replace(document.gates[0], id="relative_rms", holds=False, runtime="openvino")
    assert hints.commands(OPTIONS, structs.replace(document, gates=(missed, other), tried=())) == ()
    assert document.source is not None
    keras = structs.replace(
        document, source=structs.replace(document.source, format="keras"), tried=reports.attempts(3)
    )
    assert hints.commands(OPTIONS, keras) == ()


def test_a_lost_float_file_is_looked_into_in_its_runtime() -> None:
    document = structs.replace(builds.document(), tried=reports.attempts(3))
    assert hints.commands(OPTIONS, document) == ("edgeship bisect 'my net.onnx' --runtime litert --inputs cal.npz",)


class Bench:
    """Tries everything, each a little closer than the last."""

    def __init__(self) -> None:
        self.attempts = 0

    def attempt(self, scheme: Scheme, _samples: int) -> Trial:
        self.attempts += 1
        return Trial(name=scheme.name, speed_class=scheme.types, error=1.0 / self.attempts)

    def times_ms(self, _schemes: object) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("effort", ["quick", "normal", "thorough"])
@pytest.mark.parametrize("layers", [0, 6])
def test_a_search_tries_about_as_many_as_was_said(effort: str, layers: int) -> None:
    layer = Layer(weight=np.ones((2, 2)), convolution=False)
    operators = [Operator(name=f"l{k}", kind="Gemm", inputs=(f"t{k}",), outputs=(f"t{k + 1}",), layer=layer, elements=9,
                          multiplications=1) for k in range(layers)]  # fmt: skip
    bases, bench = [Scheme(activation="uint8"), Scheme()], Bench()
    Search(bases, operators, bench, Terms(effort=EFFORT[effort], limit=1.0)).run()
    most = most_candidates(bases, operators, EFFORT[effort])
    assert most / 2 <= bench.attempts <= most


def test_a_new_count_has_a_pace_of_its_own() -> None:
    pace = Pace()
    assert [pace.left_s("a", done, 10, 2.0 * done) for done in range(6)][-1] == pytest.approx(10.0)
    assert pace.left_s("b", 5, 10, 12.0) is None
    assert pace.left_s("b", 9, 10, 20.0) == pytest.approx(2.0)
    assert pace.left_s("b", 1, 10, 30.0) is None, "it began again"


def test_a_measurement_is_believed_before_an_estimate() -> None:
    one = reports.sensitivity_of("box", "litert", 5)
    assert one.operators[0].name == "conv0", "the noisiest"
    helped = words.to_keep(one)
    assert helped is not None
    assert helped.name == reports.LONG, "what took a third off the error when it was tried"
    assert "in float takes 34 % off the squared error" in words.worst_layer(one)


def test_an_operator_that_was_tried_in_vain_is_not_named() -> None:
    one = reports.sensitivity_of("box", "litert", 3)
    tried = structs.replace(
        one,
        operators=tuple(structs.replace(each, removed_share=-0.6) for each in one.operators[:1]) + one.operators[2:],
    )
    assert words.to_keep(tried) is None
    untried = structs.replace(one, operators=tuple(structs.replace(each, removed_share=None) for each in one.operators))
    found = words.to_keep(untried)
    assert found is not None
    assert found.name == "conv0"


def test_every_look_at_the_samples_is_counted() -> None:
    samples = [{"x": np.ones((1, 4), np.float32)} for _ in range(20)]
    calibration, told = Calibration(Graph(), samples, Path, Path("net.onnx")), []
    calibration.told = lambda done, total: told.append((done, total))
    assert len(calibration.operators) == 4
    assert told == [], "one sample tells sizes"
    assert calibration.statistics.shapes
    assert told == [(index, 20) for index in range(20)]
