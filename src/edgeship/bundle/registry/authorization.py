"""Answering a registry's challenge: nothing, basic, or a bearer token.

Sources: RFC 7235 (challenges), RFC 7617 (basic), Distribution project, "Token Authentication Specification" and
"OAuth2 Token Authentication".
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct

from edgeship.bundle.registry.credentials import Credentials
from edgeship_agent.contract.errors import TransferError

_PARAMETER: Final = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_CLIENT_ID: Final = "edgeship"


class Challenge(Struct, frozen=True, kw_only=True):
    """What ``WWW-Authenticate`` asks for."""

    scheme: str
    parameters: dict[str, str]


class _Token(Struct, frozen=True, kw_only=True):
    token: str = ""
    access_token: str = ""


def parse_challenge(header: str) -> Challenge:
    """Read one challenge.

    >>> parse_challenge('Bearer realm="https://auth.example.com/token",service="r",scope="repository:a:pull,push"')
    Challenge(scheme='bearer', parameters={'realm': 'https://auth.example.com/token', 'service': 'r', \
'scope': 'repository:a:pull,push'})
    """
    scheme, _, rest = header.strip().partition(" ")
    parameters = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
    return Challenge(scheme=scheme.lower(), parameters=parameters)


class Authorizer:
    """Gets and keeps the ``Authorization`` header of one registry.

    Args:
        http: sends the request for a token.
        find: gives the credentials, None for an anonymous visit; asked when a challenge comes.
        registry: its name, for the person at the terminal.
        scope: what the token must allow, such as ``repository:team/gauge:pull,push``.
        allowed: whether an address may be spoken to.
    """

    def __init__(
        self,
        http: httpx.Client,
        find: Callable[[], Credentials | None],
        registry: str,
        scope: str,
        allowed: Callable[[str], bool],
    ) -> None:
        self._http = http
        self._find = find
        self._registry = registry
        self._scope = scope
        self._allowed = allowed
        self.header = ""

    def answer(self, challenge: Challenge) -> None:
        """Set ``header`` so that it answers a challenge.

        Raises:
            TransferError: there is nothing to answer with, or the token server refuses.
        """
        if challenge.scheme == "basic":
            found = self._find()
            if found is None or not found.username:
                raise self._needs_login("the registry asks for a name and a password")
            self.header = _basic(found)
        elif challenge.scheme == "bearer":
            self.header = f"Bearer {self._token(challenge)}"
        else:
            raise self._needs_login(f"the registry asks for {challenge.scheme or 'an unknown'} authentication, "
                               "which is not known here")  # fmt: skip

    def _token(self, challenge: Challenge) -> str:
        realm = challenge.parameters.get("realm", "")
        if not self._allowed(realm):
            raise TransferError(f"the registry sends us to {realm[:120]!r} for a token, which is no safe address",
                                retryable=False, file=self._registry,
                                next_step="use a registry whose token server speaks HTTPS")  # fmt: skip
        service = challenge.parameters.get("service", "")
        found = self._find()
        try:
            response = self._ask(realm, service, found)
        except httpx.HTTPError as error:
            raise TransferError(f"the token server does not answer: {error}", retryable=True, file=realm) from error
        if response.status_code in {400, 401, 403}:
            raise self._needs_login(f"{urlsplit(realm).netloc} gives no token ({response.status_code})")
        if response.status_code != 200:
            raise TransferError(f"the token server answers {response.status_code}",
                                retryable=response.status_code >= 500, file=realm)  # fmt: skip
        try:
            token = msgspec.json.decode(response.content, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TransferError("the token server gives no token", retryable=False, file=realm) from error
        value = token.token or token.access_token
        if not value or not value.isascii() or not value.isprintable():
            raise TransferError("the token server gives no token", retryable=False, file=realm)
        return value

    def _needs_login(self, sentence: str) -> TransferError:
        return TransferError(sentence, retryable=False, file=self._registry,
                             next_step=f"docker login {self._registry}, then the same command again")  # fmt: skip

    def _ask(self, realm: str, service: str, found: Credentials | None) -> httpx.Response:
        if found and found.identity_token:
            form = {"grant_type": "refresh_token", "service": service, "client_id": _CLIENT_ID, "scope": self._scope,
                    "refresh_token": found.identity_token}  # fmt: skip
            return self._http.post(realm, data=form, follow_redirects=False)
        headers = {"Authorization": _basic(found)} if found and found.username else {}
        query = {"scope": self._scope, **({"service": service} if service else {})}
        return self._http.get(realm, params=query, headers=headers, follow_redirects=False)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.secret}".encode()
    return "Basic " + base64.b64encode(pair).decode()
