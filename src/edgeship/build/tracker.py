"""MLflow, the user's tracker of runs and models: asked and told through its own client, an optional extra."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConfigError, EdgeshipError, InputError, TransferError

#: What MLflow's client is told unless the user says otherwise: report to nobody, draw nothing, and give an unreachable
#: server up after some 15 seconds instead of four minutes; and open a store of files, as older versions made by default
#: and this one refuses. Source: mlflow.environment_variables of 3.17.
SETTINGS: Final[Mapping[str, str]] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
ADDRESS_VARIABLE: Final = "MLFLOW_TRACKING_URI"
#: What MLflow takes in the working folder without an address. Source: mlflow.tracking, _get_default_tracking_uri.
_LOCAL_STORES: Final = ("mlruns", "mlflow.db")
_NOT_THERE: Final = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"})
_LONGEST_REASON: Final = 600


def check() -> None:
    """Refuse what cannot work before anything is asked.

    Raises:
        ConfigError: MLflow's client is not installed, or nobody says which tracker is meant.
    """
    _client_class()
    if not address() and not any(Path(name).exists() for name in _LOCAL_STORES):
        raise ConfigError("which tracker?", key=ADDRESS_VARIABLE, expected="the address of an MLflow tracking server",
                          got="not set", next_step=f"export {ADDRESS_VARIABLE}=ADDRESS")  # fmt: skip


def address() -> str:
    """The tracker's address as the user's environment names it; empty for none."""
    return os.environ.get(ADDRESS_VARIABLE, "").strip()


@contextmanager
def opened(about: str) -> Iterator[Any]:
    """MLflow's client, quiet, and with its errors in our words.

    Args:
        about: what it is asked about, for errors.

    Raises:
        ConfigError: see :func:`check`.
        InputError: the tracker does not know what it is asked about.
        TransferError: the tracker or its store of files cannot be reached, or refuses.
    """
    check()
    with quiet():
        try:
            yield _client_class()()
        except EdgeshipError:
            raise
        except Exception as error:  # stores of files raise what their own clients raise: boto3's, Azure's, Google's
            raise _in_our_words(error, about) from error


def fetch(at: str, folder: Path) -> Path:
    """Download what an address names; to be called while :func:`opened`.

    Returns:
        The file or folder, below ``folder``.
    """
    from mlflow import artifacts

    return Path(artifacts.download_artifacts(artifact_uri=at, dst_path=str(folder)))


def tags_of_run(client: Any, run_id: str) -> dict[str, str]:
    """Tags of a run; none where the tracker no longer has it, since models outlive their runs."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_run(run_id).data.tags)
    except MlflowException as error:
        if error.error_code in _NOT_THERE:
            return {}
        raise


def _client_class() -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        with quiet():
            from mlflow import MlflowClient
    except ImportError as error:
        raise ConfigError("MLflow's client is not installed", expected="the package mlflow-skinny or mlflow",
                          got=str(error), next_step="pip install 'edgeship[mlflow]'") from error  # fmt: skip
    return MlflowClient


def _in_our_words(error: Exception, about: str) -> EdgeshipError:
    reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
    if getattr(error, "error_code", "") in _NOT_THERE:
        return InputError(f"MLflow: {reason}", file=about, next_step=f"check the name, and {ADDRESS_VARIABLE}")
    if isinstance(error, ImportError):
        return TransferError(f"MLflow's store of files needs a package that is not installed: {reason}", file=about,
                             retryable=False, next_step="pip install that package")  # fmt: skip
    return TransferError(f"MLflow: {reason}", file=about, retryable=True,
                         next_step=f"check {ADDRESS_VARIABLE}, and whether the server runs")  # fmt: skip
