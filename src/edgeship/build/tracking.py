"""What became of a model, told to the MLflow run that it comes from."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from edgeship.build import tracker
from edgeship.build.progress import Progress
from edgeship.build.schema import BuildDocument, VariantReport
from edgeship.build.sources.mlflow import RUN_FACT
from edgeship_agent.contract.errors import EdgeshipError

#: Files of a build's folder that become artifacts of the run, below :data:`ARTIFACT_FOLDER`.
LOGGED_FILES: Final = ("report.html", "build.json")
ARTIFACT_FOLDER: Final = "edgeship"
#: What MLflow takes in the name of a metric or tag. Source: mlflow.utils.validation.
_NOT_IN_NAMES: Final = re.compile(r"[^\w\-. /]")
_LONGEST_NAME: Final = 250
#: Source: mlflow.utils.validation, MAX_METRICS_PER_BATCH and MAX_TAGS_PER_BATCH.
_METRICS_AT_ONCE: Final = 500
_TAGS_AT_ONCE: Final = 100
_DEFAULT_EXPERIMENT: Final = "0"


class Record(Struct, frozen=True, kw_only=True):
    """What a run is told, besides files."""

    metrics: dict[str, float]
    tags: dict[str, str]


def record_of(document: BuildDocument) -> Record:
    """Figures of every variant with their intervals, the verdict, what was chosen, and the bundle's digest.

    Names are ``edgeship/<target>/<runtime>/<precision>/<figure>``; a figure that is not finite is left out.
    """
    figures = {
        _name(f"edgeship/{each.target}/{each.runtime}/{each.precision}/{key}"): float(value)
        for each in document.variants
        for key, value in _figures(each).items()
        if value is not None and math.isfinite(value)
    }
    tags = {
        "edgeship.verdict": document.verdict,
        "edgeship.bundle_digest": document.bundle_digest or "none",
        "edgeship.model": f"{document.name} {document.version}",
        **{_name(f"edgeship.chosen.{each.target}"): each.chosen or "none" for each in document.targets},
    }
    return Record(metrics=figures, tags=tags)


def log(document: BuildDocument, run_id: str, folder: Path, progress: Progress) -> str:
    """Tell the tracker what a finished build found; a tracker that cannot be told takes nothing from the build.

    Args:
        document: build.json.
        run_id: of the source; empty to make a new run.
        folder: of the build.
        progress: told where it was logged, or why it was not.

    Returns:
        Id of the run; empty where nothing, or not everything, was logged.
    """
    try:
        with tracker.opened(f"run {run_id}" if run_id else "a new run") as client:
            logged = _log_new(client, document, folder) if not run_id else _log(client, run_id, document, folder)
    except EdgeshipError as error:
        progress.step("mlflow", f"not logged: {error}; the build itself is complete", "failed")
        return ""
    progress.step("mlflow", f"logged to {'run' if run_id else 'the new run'} {logged}")
    return logged


def run_of(facts: dict[str, str]) -> str:
    """The run that a source comes from, as its facts say; empty for none."""
    return facts.get(RUN_FACT, "")


def _log_new(client: Any, document: BuildDocument, folder: Path) -> str:
    """In the experiment that the user's environment names; a run that was not told everything is marked as failed."""
    run = client.create_run(_experiment(client), run_name=f"edgeship {document.name} {document.version}")
    run_id = str(run.info.run_id)
    status = "FAILED"
    try:
        _log(client, run_id, document, folder)
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status=status)
    return run_id


def _experiment(client: Any) -> str:
    """Source: mlflow.environment_variables, MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME."""
    if known := os.environ.get("MLFLOW_EXPERIMENT_ID", ""):
        return known
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
    if not name:
        return _DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _log(client: Any, run_id: str, document: BuildDocument, folder: Path) -> str:
    from mlflow.entities import Metric, RunTag

    record = record_of(document)
    now_ms = int(time.time() * 1000)
    metrics = [Metric(name, value, now_ms, 0) for name, value in record.metrics.items()]
    tags = [RunTag(name, value) for name, value in record.tags.items()]
    for start in range(0, len(metrics), _METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])
    for file in LOGGED_FILES:
        client.log_artifact(run_id, str(folder / file), ARTIFACT_FOLDER)
    for start in range(0, len(tags), _TAGS_AT_ONCE):  # last: who reads the verdict finds the rest there
        client.log_batch(run_id, tags=tags[start : start + _TAGS_AT_ONCE])
    return run_id


def _figures(variant: VariantReport) -> dict[str, float | None]:
    metric = variant.metric
    return {
        metric.name: metric.value,
        f"{metric.name}_low": metric.low,
        f"{metric.name}_high": metric.high,
        f"{metric.name}_drop": metric.drop,
        f"{metric.name}_drop_low": metric.drop_low,
        f"{metric.name}_drop_high": metric.drop_high,
        "n": metric.n,
        "relative_rms": variant.relative_rms,
        "sqnr_db": variant.sqnr_db,
        "latency_p50_ms": variant.latency_p50_ms,
        "latency_p99_ms": variant.latency_p99_ms,
        "size_bytes": variant.size_bytes,
    }


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub("_", text)[:_LONGEST_NAME]
