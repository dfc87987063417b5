"""Everything that a build is told, in one frozen object."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeship.build.sources import SourceOptions, SourceRequest

#: Largest relative RMS of a quantized variant against the source. Source: measurements on eleven nets (ADR 0006), where
#: the best int8 of any quantizer lies at .009–.098 and the clipped, saturated or dead ones at .19–1.0.
MAX_RELATIVE_RMS: Final = 0.1
#: Processes at once: more than any build has runtimes.
MOST_JOBS: Final = 64


class BuildOptions(SourceOptions, frozen=True, kw_only=True):
    """What to build, from what, and within which limits; with what the source leaves open.

    Attributes:
        source: the trained model: a path, or another address that a source reader knows.
        targets: ids or files of hardware targets, in order.
        calibration: data for ranges, scheme selection and the drift baseline.
        evaluation: held-out data for every claim.
        preprocess: TOML with the preprocessing contract, or None to feed arrays as they are.
        input_schema: TOML that documents the features.
        metric: one of :data:`edgeship.build.metrics.NAMES`, or ``auto``: top1 with labels, rmse with targets, else
            agreement for classes and closeness.
        cost_matrix, postprocess, ground_truth: files that some metrics need.
        unlabelled: samples without labels, on whose disagreements the claim is made instead of on the evaluation's.
        max_drop: largest accepted drop of the metric, as a fraction (in dB for snr); None for the target's default.
        max_relative_rms: largest accepted relative RMS of a quantized variant.
        latency_p99_ms: budget, None for the target's default.
        size_bytes: budget, None for the target's default.
        accept_proxy_latency: let a latency measured on another ISA class judge the budget.
        strict: a fallback is a failure.
        effort: how much the search for the best quantized file may try: ``quick``, ``normal`` or ``thorough``.
        precisions: made and judged besides the ladder int8, fp16, fp32, in this order of preference behind int8.
        keep_float: names of operators that int8 leaves in float, as the report's sensitivity gives them.
        task: ``classification``, ``raw`` or ``auto`` (classification where the evaluation data has labels).
        labels: class names in the order of the output.
        output: folder for the results.
        key: author key file, or None for the one in the user's data folder.
        measure: ``ssh://user@host`` of a device that candidates are run on; empty for this machine.
        ssh_config: another configuration of ssh than the user's.
        license: SPDX expression of the model's licence.
        lineage: ``KEY=VALUE`` facts about where the model comes from; they are part of the bundle.
        card: Markdown that goes into the model card.
        base: a former build (its folder or build.json) that ``report.md`` compares with, or None.
        log_mlflow: tell the MLflow run that the source comes from (or a new one) what became of it.
        cache: whether results of earlier builds are used, and this one's are kept.
        fold_normalisation: let the files do the arithmetic between bytes and floats, where that is exact.
        fp32_fallback: let a bundle hold full precision beside a quantized variant, for devices that it fails on.
        jobs: processes that build for different runtimes at the same time.
        install_toolchains: create a missing converter environment without asking.
    """

    source: Path
    targets: tuple[str, ...]
    calibration: Path
    evaluation: Path
    preprocess: Path | None = None
    input_schema: Path | None = None
    metric: str = "auto"
    cost_matrix: Path | None = None
    postprocess: Path | None = None
    ground_truth: Path | None = None
    unlabelled: Path | None = None
    max_drop: float | None = None
    max_relative_rms: float = MAX_RELATIVE_RMS
    latency_p99_ms: float | None = None
    size_bytes: int | None = None
    accept_proxy_latency: bool = False
    strict: bool = False
    effort: str = "normal"
    precisions: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    task: str = "auto"
    labels: tuple[str, ...] = ()
    name: str = ""
    version: str = "1.0.0"
    output: Path = Path("build")
    key: Path | None = None
    measure: str = ""
    ssh_config: Path | None = None
    license: str = ""
    lineage: tuple[str, ...] = ()
    card: Path | None = None
    base: Path | None = None
    log_mlflow: bool = False
    fold_normalisation: bool = True
    fp32_fallback: bool = True
    cache: bool = True
    jobs: int = 1
    install_toolchains: bool = False

    @property
    def request(self) -> SourceRequest:
        """What is to be read."""
        given = {name: getattr(self, name) for name in SourceOptions.__struct_fields__}
        return SourceRequest(text=str(self.source), **given)
