"""MLflow: model folders, registered models and runs, each resolved to the model file that it holds."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field, structs

from edgeship.build import sources, tracker
from edgeship.build.sources import mlflow_folder
from edgeship.build.sources.model import SourceModel
from edgeship.build.sources.request import SourceRequest
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import InputError

_MODEL: Final = re.compile(r"models:/(?P<name>[^/@]+)(/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_LOGGED: Final = re.compile(r"models:/(?P<id>m-[0-9a-f]{32})")
_RUN: Final = re.compile(r"runs:/(?P<run>[0-9A-Za-z][0-9A-Za-z_-]*)/(?P<path>[^/].*?)/*")
_FORMS: Final = "models:/NAME/VERSION, models:/NAME@ALIAS or runs:/ID/path"
#: Facts of ``MLmodel`` and what they are called in a bundle's lineage.
_DESCRIBED: Final = {"run_id": "mlflow.run_id", "artifact_path": "mlflow.artifact_path",
                     "model_id": "mlflow.model_id", "model_uuid": "mlflow.model_uuid",
                     "mlflow_version": "mlflow.mlflow_version"}  # fmt: skip
RUN_FACT: Final = "mlflow.run_id"
#: Tags that MLflow sets for itself: user names, paths and the like, which no bundle needs.
_SYSTEM_TAGS: Final = "mlflow."
_MOST_TAGS: Final = 30
#: MLflow's client leaves this beside a registered model that it fetched. Source: mlflow.store.artifact.
_NOTE: Final = "registered_model_meta"
_LONGEST_KEY: Final = 64
_LONGEST_VALUE: Final = 1000


class _Fetched(Struct, frozen=True, kw_only=True):
    """What lies behind an address.

    Attributes:
        path: on this machine.
        facts: what the tracker says.
    """

    path: Path
    facts: dict[str, str] = field(default_factory=dict)


class _Resolved(Struct, frozen=True, kw_only=True):
    """The request for the model itself.

    Attributes:
        original: the file that was copied under another name; None for none.
    """

    request: SourceRequest
    facts: dict[str, str]
    original: Path | None = None


class _Downloads:
    """Each address is fetched once from the first look at a source until it is read, since what it names may change.

    The files stay until the process ends, as a source's files must.
    """

    def __init__(self) -> None:
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        self._fetched: dict[tuple[str, str], _Fetched] = {}

    def get(self, text: str) -> _Fetched:
        key = (tracker.address(), text)
        if key not in self._fetched:
            self._fetched[key] = _fetch(text, self.folder())
        return self._fetched[key]

    def forget(self, text: str) -> None:
        self._fetched.pop((tracker.address(), text), None)

    def folder(self) -> Path:
        """A new private one."""
        self._folders.append(tempfile.TemporaryDirectory(prefix="edgeship-mlflow-", ignore_cleanup_errors=True))
        return Path(self._folders[-1].name)


_downloads: Final = _Downloads()


def resolved(request: SourceRequest) -> SourceRequest:
    """The request for the model in the folder, or behind the address.

    Raises:
        InputError: not an address, nothing there, or nothing that can be built.
        ConfigError: MLflow's client or the tracker's address is missing.
        TransferError: the tracker cannot be reached.
    """
    return _resolve(request).request


def load(request: SourceRequest, ask: workers.Ask = workers.ask) -> SourceModel:
    """Read the model in the folder, or behind the address, with what the tracker says of it.

    Raises:
        InputError, ConfigError, TransferError: see :func:`resolved`; or the model itself cannot be used.
        ConversionError: the model needs what is not there.
    """
    try:
        found = _resolve(request)
    finally:
        _downloads.forget(request.text)
    model = sources.load(found.request, ask)
    return structs.replace(
        model,
        files=(found.original,) if found.original else model.files,
        facts={**model.facts, **found.facts},
        address=request.text if _is_address(request) else "",
    )


def name_of(text: str) -> str:
    """The registered name in an address, else its last part; empty for other texts.

    >>> name_of("models:/fraud/3"), name_of("models:/fraud@champion"), name_of("runs:/0f3a/nets/small")
    ('fraud', 'fraud', 'small')
    """
    if found := _MODEL.fullmatch(text):
        return found["name"]
    found = _RUN.fullmatch(text)
    return Path(found["path"]).stem if found else ""


def _is_address(request: SourceRequest) -> bool:
    return not request.path.exists()


def _resolve(request: SourceRequest) -> _Resolved:
    fetched = _downloads.get(request.text) if _is_address(request) else _Fetched(path=request.path)
    path = fetched.path
    if not (path / mlflow_folder.MARKER).is_file():
        return _Resolved(request=structs.replace(request, text=str(path)), facts=fetched.facts)
    described = mlflow_folder.read(path)
    inner = mlflow_folder.inner(path, described, allow_pickle=request.allow_pickle)
    facts = {**_facts(described), "mlflow.flavor": inner.flavor, **fetched.facts}
    if not inner.suffix:
        return _Resolved(request=structs.replace(request, text=str(inner.path)), facts=facts)
    copy = shutil.copyfile(inner.path, _downloads.folder() / f"{inner.path.stem}{inner.suffix}")
    return _Resolved(request=structs.replace(request, text=str(copy)), facts=facts, original=inner.path)


def _facts(described: Mapping[str, Any]) -> dict[str, str]:
    told = {name: described.get(key) for key, name in _DESCRIBED.items()}
    return {name: _line(value) for name, value in told.items() if isinstance(value, str) and value.strip()}


def _line(value: object) -> str:
    """One line of printable text, at most as long as a fact may be."""
    text = " ".join(str(value).split())
    return "".join(letter for letter in text if letter.isprintable())[:_LONGEST_VALUE]


def _fetch(text: str, folder: Path) -> _Fetched:
    if found := _MODEL.fullmatch(text):
        return _registered(found, text, folder)
    if found := _LOGGED.fullmatch(text):
        return _logged(found["id"], text, folder)
    if found := _RUN.fullmatch(text):
        with tracker.opened(text) as client:
            facts = {RUN_FACT: found["run"], "mlflow.artifact_path": _line(found["path"])}
            facts |= _tags(client.get_run(found["run"]).data.tags)
            return _Fetched(path=tracker.fetch(text, folder), facts=facts)
    raise InputError("not an address of MLflow", file=text, expected=_FORMS, next_step="check the address")


def _registered(found: re.Match[str], text: str, folder: Path) -> _Fetched:
    """A version of a registered model. An alias may move: the version that it names now is what is fetched."""
    name, alias = found["name"], found["alias"]
    with tracker.opened(text) as client:
        version = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, found["version"])
        )
        facts = {"mlflow.model": _line(name), "mlflow.version": str(version.version)}
        if alias:
            facts["mlflow.alias"] = _line(alias)
        tags = dict(version.tags or {})
        if version.run_id:
            facts[RUN_FACT] = str(version.run_id)
            tags = {**tracker.tags_of_run(client, version.run_id), **tags}
        path = tracker.fetch(f"models:/{name}/{version.version}", folder)
        (path / _NOTE).unlink(missing_ok=True)
        if not any(path.iterdir()):
            raise InputError("MLflow has no files of this version", file=text, expected="a version that is a folder",
                             next_step="name a single file by its run: runs:/ID/path")  # fmt: skip
    return _Fetched(path=path, facts={**facts, **_tags(tags)})


def _logged(model_id: str, text: str, folder: Path) -> _Fetched:
    with tracker.opened(text) as client:
        logged = client.get_logged_model(model_id)
        facts = {"mlflow.model_id": model_id, "mlflow.model": _line(logged.name)}
        if logged.source_run_id:
            facts[RUN_FACT] = str(logged.source_run_id)
        return _Fetched(path=tracker.fetch(text, folder), facts={**facts, **_tags(logged.tags or {})})


def _tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """The user's own tags, as facts that a bundle can hold."""
    own = sorted((key, _line(value)) for key, value in tags.items() if not key.startswith(_SYSTEM_TAGS))
    names = ((re.sub(r"[^A-Za-z0-9._/-]+", "_", f"mlflow.tag.{key}")[:_LONGEST_KEY], value) for key, value in own)
    return dict([(name, value) for name, value in names if value][:_MOST_TAGS])
