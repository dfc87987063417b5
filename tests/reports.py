"""Build documents with everything that the report draws: sensitivity, confusions, many attempts, edge cases."""

from __future__ import annotations

import numpy as np
from msgspec import structs

from edgeship.build.metrics import confusion
from edgeship.build.schema import (
    Attempt,
    BuildDocument,
    ConfusionReport,
    OperatorSensitivity,
    SensitivityReport,
    VariantReport,
)
from edgeship.build.sensitivity import ranked
from tests import builds

LONG = "functional_1/stage3/block2/residual/separable_conv2d/depthwise;StatefulPartitionedCall/with/no/space/at/all"


def confusion_of(classes: int, *, samples: int = 600, names: bool = True, seed: int = 0) -> ConfusionReport:
    """Answers of a source that is right nine times in ten, and of a variant that moves a few."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    source = np.eye(classes)[labels] + rng.normal(0, 0.3, (samples, classes))
    variant = source + rng.normal(0, 0.08, (samples, classes))
    return confusion(labels.tolist(), source, variant, [f"class {k}" for k in range(classes)] if names else ())


def sensitivity_of(target: str, runtime: str, count: int) -> SensitivityReport:
    """Noise that halves from operator to operator; the second was tried in float, the last stays there."""
    noise = {f"conv{index}" if index != 1 else LONG: 0.01 / (index + 1) for index in range(count)}
    kinds = {name: "CONV_2D" if index % 3 else "FULLY_CONNECTED" for index, name in enumerate(noise)}
    floats = list(noise)[-1:] if count > 2 else []
    return SensitivityReport(target=target, runtime=runtime, precision="int8", samples=48,
                             operators=ranked(noise, kinds, floats, {LONG: 0.34, "conv2": -0.02}))  # fmt: skip


def attempts(count: int) -> tuple[Attempt, ...]:
    """Candidates of two searches, some of which failed alike, and a precision that could not be had."""
    found = [
        Attempt(target="x86-64-litert" if index % 2 else "intel-nuc", runtime="litert" if index % 2 else "openvino",
                precision="int8", outcome="failed" if index % 5 == 0 else "not chosen",
                stage="quantization" if index % 5 == 0 else "",
                reason="s8s8: NNCF: no statistics" if index % 5 == 0 else f"s8s8, p{index}: relative RMS 0.0{index}")
        for index in range(count)
    ]  # fmt: skip
    reason = "onnx → onnx2tf: conversion error: no LSTM; tried next: onnx → fold → onnx2tf: the same"
    lost = Attempt(target="x86-64-litert", runtime="litert", precision="fp32", outcome="refused", reason=reason,
                   stage="conversion")  # fmt: skip
    return (*found, lost)


def variants(count: int) -> tuple[VariantReport, ...]:
    """Variants that lie close together in both, as those of one net do."""
    found = []
    for index in range(count):
        base = builds.variant(f"target-{index // 4}", ("onnxruntime", "openvino", "litert")[index % 3],
                              ("int8", "fp32", "fp16", "int16x8")[index % 4], chosen=index % 4 == 0)  # fmt: skip
        drop = (0.001, 0.0, 0.0, 0.04)[index % 4] + 0.0005 * (index // 4)
        found.append(
            structs.replace(
                base, metric=builds.metric(drop, drop - 0.003, drop + 0.004),
                latency_p50_ms=(0.040, 0.070, 0.069, 0.9)[index % 4] * (1 + 0.01 * (index // 4)),
                size_bytes=(24_000, 88_000, 44_000, 30_000)[index % 4],
                verdict="fail" if index % 4 == 3 else "pass",
                reason="top1 drop is proven to exceed 1 point" if index % 4 == 3 else "holds to every rule",
            )
        )  # fmt: skip
    return tuple(found)


def crowded(*, classes: int = 10, count: int = 12) -> BuildDocument:
    """A large build."""
    document = builds.document()
    many = [structs.replace(each, confusion=confusion_of(classes)) if each.precision == "int8" else each
            for each in variants(count)]  # fmt: skip
    return structs.replace(
        document, variants=tuple(many), gates=tuple(builds.gate(each, each.verdict == "pass") for each in many),
        targets=(), tried=attempts(40),
        sensitivity=(sensitivity_of("target-0", "onnxruntime", 24), sensitivity_of("target-1", "openvino", 3)),
        next=("edgeship bisect model.onnx --runtime litert --inputs calibration.npz",),
    )  # fmt: skip


def alone() -> BuildDocument:
    """One variant, one operator, no latency, one class in the evaluation set."""
    only = structs.replace(builds.variant("box", "litert", "int8", chosen=True), latency_p50_ms=0.0, latency_p99_ms=0.0,
                           confusion=confusion([0] * 5, np.eye(2)[[0] * 5], np.eye(2)[[0] * 5]))  # fmt: skip
    exact = OperatorSensitivity(name="fc", kind="FULLY_CONNECTED", in_float=False, sqnr_db=None, noise_share=0.0)
    bare = SensitivityReport(target="box", runtime="litert", precision="int8", samples=3, operators=(exact,))
    return structs.replace(builds.document(), variants=(only,), gates=(), targets=(), tried=(), sensitivity=(bare,))
