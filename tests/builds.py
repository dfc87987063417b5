"""Build documents for tests: three targets, int8 and fp32 each, with the cases that a report must show."""

from __future__ import annotations

from edgeship.build.schema import (
    Attempt,
    BuildDocument,
    DataReport,
    GateReport,
    MeasuredOn,
    MetricFigures,
    SourceReport,
    TargetVerdict,
    VariantReport,
)

HERE = MeasuredOn(arch="x86_64", isa="x86_64", cpu="Example CPU 9000")


def metric(drop: float, low: float, high: float) -> MetricFigures:
    """Top-1 figures on 900 samples with a drop and its interval."""
    return MetricFigures(
        name="top1",
        value=0.97 - drop,
        low=0.957 - drop,
        high=0.98 - drop,
        n=900,
        drop=drop,
        drop_low=low,
        drop_high=high,
    )


def variant(target: str, runtime: str, precision: str, *, chosen: bool, drop_high: float = 0.004) -> VariantReport:
    """One candidate; it passes where its ``drop_high`` lies within one point."""
    proven = drop_high <= 0.01
    return VariantReport(
        target=target,
        runtime=runtime,
        precision=precision,
        file=f"/tmp/build/variants/{target}/{runtime}/{precision}/model",
        size_bytes=24_000 if precision == "int8" else 88_000,
        latency_p50_ms=0.04 if precision == "int8" else 0.07,
        latency_p99_ms=0.09 if precision == "int8" else 0.12,
        measured_on=HERE,
        on_target=target == "x86-64-litert",
        metric=metric(0.001, -0.002, drop_high) if precision == "int8" else metric(0.0, 0.0, 0.0),
        relative_rms=0.012 if precision == "int8" else 1e-6,
        sqnr_db=38.4 if precision == "int8" else None,
        verdict="pass" if proven else "inconclusive",
        chosen=chosen,
        reason="smallest within the budgets" if chosen else "top1 drop is not proven to be within 1 point",
        distinct_predictions=10,
        distinct_reference=10,
        scheme="u8s8 per channel, min–max" if precision == "int8" else "",
        runtime_version="1.2.3",
    )


def gate(of: VariantReport, holds: bool | None) -> GateReport:
    """The accuracy gate of a variant."""
    figures = of.metric
    return GateReport(
        id="top1",
        target=of.target,
        runtime=of.runtime,
        precision=of.precision,
        rule="top1 drop_high ≤ 0.01",
        value=figures.drop,
        limit=0.01,
        low=figures.drop_low,
        high=figures.drop_high,
        n=900,
        holds=holds,
        sentence="the drop lies within the margin" if holds else "the interval crosses the margin",
        next="" if holds else "3,100 more labels would decide",
    )


def document(*, verdict: str = "pass", name: str = "digits") -> BuildDocument:
    """A finished build: two targets take int8, one falls back to fp32."""
    variants = (
        variant("x86-64-server", "onnxruntime", "int8", chosen=True),
        variant("x86-64-server", "onnxruntime", "fp32", chosen=False),
        variant("intel-nuc", "openvino", "int8", chosen=False, drop_high=0.013),
        variant("intel-nuc", "openvino", "fp32", chosen=True),
        variant("x86-64-litert", "litert", "int8", chosen=True),
        variant("x86-64-litert", "litert", "fp32", chosen=False),
    )
    targets = [
        TargetVerdict(
            target=each.target,
            verdict="pass",
            reason=each.reason,
            chosen=f"{each.target}/{each.runtime}/{each.precision}",
        )
        for each in variants
        if each.chosen
    ]
    if verdict != "pass":
        targets[1] = TargetVerdict(target="intel-nuc", verdict=verdict, chosen="", reason="size 88 kB exceeds 50 kB")
    return BuildDocument(
        verdict=verdict,
        bundle="/tmp/build/bundle" if verdict == "pass" else None,
        variants=variants,
        name=name,
        version="1.0",
        bundle_digest="sha256:" + "a" * 64,
        targets=tuple(targets),
        gates=tuple(gate(each, None if each.verdict == "inconclusive" else True) for each in variants),
        tried=(
            Attempt(
                target="x86-64-litert",
                runtime="litert",
                precision="int8",
                outcome="fallback",
                reason="the first route left an operator that XNNPACK refused",
            ),
        ),
        source=SourceReport(
            file="/tmp/digits.onnx",
            format="onnx",
            digest="sha256:" + "b" * 64,
            size_bytes=90_000,
            opset=17,
            operators=12,
            parameters=22_000,
            metric=metric(0.0, 0.0, 0.0),
        ),
        data=(DataReport(file="/tmp/evaluation.npz", role="evaluation", samples=900, digest="sha256:" + "c" * 64),),
        tools={"onnxruntime": "1.32.0", "edgeship": "0.1.0"},
        timings_s={"read": 0.1, "quantize": 2.5},
    )
