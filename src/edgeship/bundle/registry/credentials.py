"""Who we are to a registry: what ``docker login`` left in docker's ``config.json``, or in a credential helper."""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field

from edgeship_agent.contract.errors import ConfigError

_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_TIMEOUT_S: Final = 30.0
_MAX_BYTES: Final = 1 << 20
#: Keys under which docker keeps the credentials of its own registry.
_DOCKER_HUB: Final = "https://index.docker.io/v1/"
#: A helper's word for "none". Source: docker-credential-helpers, ``credentials/error.go``.
_NONE: Final = "credentials not found"


class Credentials(Struct, frozen=True, kw_only=True):
    """A name and a secret; ``identity_token`` instead of a secret where the registry gave one."""

    username: str = ""
    secret: str = ""
    identity_token: str = ""


class _Auth(Struct, frozen=True, kw_only=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = field(default="", name="identitytoken")


class _Config(Struct, frozen=True, kw_only=True, rename="camel"):
    auths: dict[str, _Auth] = field(default_factory=dict)
    creds_store: str = ""
    cred_helpers: dict[str, str] = field(default_factory=dict)


class _HelperAnswer(Struct, frozen=True, kw_only=True, rename="pascal"):
    username: str = ""
    secret: str = ""


def config_path() -> Path:
    """Docker's ``config.json``: in ``$DOCKER_CONFIG``, else in ``~/.docker``."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def find_credentials(registry: str, path: Path | None = None) -> Credentials | None:
    """Credentials of a registry, or None for an anonymous visit.

    Args:
        registry: host and port as the user writes them.
        path: docker's ``config.json``; None for the user's own.

    Raises:
        ConfigError: the file is damaged, or a credential helper fails.
    """
    path = path or config_path()
    config = _read(path)
    keys = [registry, f"https://{registry}", f"https://{registry}/", f"https://{registry}/v1/"]
    if registry == "docker.io":
        keys.append(_DOCKER_HUB)
    helper = next((config.cred_helpers[key] for key in keys if key in config.cred_helpers), config.creds_store)
    if helper:
        found = next((one for key in keys if (one := _ask(helper, key, path))), None)
        if found:
            return found
    entry = next((config.auths[key] for key in keys if key in config.auths), None)
    return None if entry is None else _of_entry(entry, registry, path)


def _read(path: Path) -> _Config:
    try:
        if not path.is_file():
            return _Config()
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError("too long to be docker's configuration", file=path,
                              expected=f"at most {_MAX_BYTES} bytes",
                              next_step="name another folder in DOCKER_CONFIG")  # fmt: skip
        return msgspec.json.decode(path.read_bytes(), type=_Config)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path,
                          next_step="name another folder in DOCKER_CONFIG") from error  # fmt: skip
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError("not docker's configuration", file=path, got=error,
                          next_step="docker login REGISTRY writes it anew") from error  # fmt: skip


def _of_entry(entry: _Auth, registry: str, path: Path) -> Credentials | None:
    if entry.identity_token:
        return Credentials(identity_token=entry.identity_token)
    if not entry.auth:
        return Credentials(username=entry.username, secret=entry.password) if entry.username else None
    try:
        username, colon, secret = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ConfigError(
            "not a name and a password", file=path, key=f"auths.{registry}.auth", expected="base64 of NAME:PASSWORD",
            next_step=f"docker login {registry}",
        ) from error  # fmt: skip
    return Credentials(username=username, secret=secret.rstrip("\0")) if colon else None


def _ask(helper: str, key: str, path: Path) -> Credentials | None:
    """Ask ``docker-credential-<helper>``.

    Source: docker-credential-helpers, ``get``: server on stdin, JSON with ``Username`` and ``Secret`` on stdout;
    ``<token>`` as the name says that the secret is an identity token.
    """
    if not _HELPER_NAME.fullmatch(helper):
        raise ConfigError("not a credential helper", file=path, key="credsStore", got=repr(helper[:80]),
                          next_step="name the part after docker-credential-")  # fmt: skip
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S,
                              check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{program} does not answer", file=path, key="credsStore", got=error,
                          next_step=f"install {program}, or take it out of the file") from error  # fmt: skip
    if done.returncode:
        if _NONE in (done.stdout + done.stderr).decode(errors="replace"):
            return None
        raise ConfigError(f"{program} failed", file=path, key="credsStore", got=f"exit code {done.returncode}",
                          next_step=f"echo {key} | {program} get")  # fmt: skip
    try:
        answer = msgspec.json.decode(done.stdout, type=_HelperAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{program} gave no answer that can be read", file=path, key="credsStore",
                          next_step=f"echo {key} | {program} get") from error  # fmt: skip
    if answer.username == "<token>":
        return Credentials(identity_token=answer.secret)
    return Credentials(username=answer.username, secret=answer.secret) if answer.username else None
