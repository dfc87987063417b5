"""Asking the enrolment service: a few JSON documents over HTTPS."""

from __future__ import annotations

import hashlib
import http.client
import ssl
from typing import Final
from urllib.parse import urlsplit

import msgspec

from edgeship_agent.contract.enrolment import (
    AUTHORITY_PATH,
    ENROL_PATH,
    RENEW_PATH,
    EnrolAnswer,
    EnrolRequest,
    RenewRequest,
    short_fingerprint,
)
from edgeship_agent.contract.errors import ConfigError, TransferError, VerificationError
from edgeship_agent.identity.credentials import authority_context

_TIMEOUT_S: Final = 20.0
_MAX_ANSWER_BYTES: Final = 1024 * 1024


class _Refusal(msgspec.Struct):
    error: str
    next_step: str | None = None


class EnrolmentService:
    """One fleet's service.

    Args:
        url: ``https://HOST:PORT``.
        now_s: the device's clock.
        floor_s: no right clock shows less; see :func:`~edgeship_agent.identity.credentials.client_context`.

    Raises:
        ConfigError: not such a URL.
    """

    def __init__(self, url: str, now_s: float, floor_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ConfigError("not an enrolment service", key="URL", expected="https://HOST:PORT", got=url)
        self._url = url
        self._host, self._port = parts.hostname, parts.port or 443
        self._times = now_s, floor_s

    def authority(self, fingerprint: str) -> str:
        """The fleet's authority, PEM; believed for its fingerprint alone, so that nobody in between can be it.

        Args:
            fingerprint: of the token.

        Raises:
            TransferError: not reached.
            VerificationError: another authority answers at that address.
        """
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        pem = self._ask("GET", AUTHORITY_PATH, b"", context).decode("ascii", errors="replace")
        try:
            got = short_fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest())
        except ValueError as error:
            raise VerificationError("what answers there is no enrolment service", file=self._url) from error
        if got != fingerprint:
            raise VerificationError("the server is not the one that the token was made by", file=self._url,
                                    expected=f"authority {fingerprint[:16]}…", got=f"{got[:16]}…",
                                    next_step="check the address; take a new token of that server")  # fmt: skip
        return pem

    def enrol(self, authority_pem: str, request: EnrolRequest) -> EnrolAnswer:
        """Ask to be let in.

        Raises:
            TransferError: not reached, or refused; not retryable where the service said no.
        """
        return self._post(ENROL_PATH, msgspec.json.encode(request), authority_pem)

    def renew(self, authority_pem: str, request: RenewRequest) -> EnrolAnswer:
        """Ask for the next certificate.

        Raises:
            TransferError: not reached, or refused; not retryable where the service said no.
        """
        return self._post(RENEW_PATH, msgspec.json.encode(request), authority_pem)

    def _post(self, path: str, body: bytes, authority_pem: str) -> EnrolAnswer:
        answer = self._ask("POST", path, body, authority_context(authority_pem, *self._times))
        try:
            return msgspec.json.decode(answer, type=EnrolAnswer)
        except msgspec.MsgspecError as error:
            raise TransferError(f"the enrolment service answers something else: {error}", retryable=False,
                                file=self._url) from error  # fmt: skip

    def _ask(self, method: str, path: str, body: bytes, context: ssl.SSLContext) -> bytes:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=context)
        try:
            connection.request(method, path, body or None, {"content-type": "application/json"} if body else {})
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise TransferError(f"not reached: {str(error) or type(error).__name__}", retryable=True,
                                file=self._url) from error  # fmt: skip
        finally:
            connection.close()
        if response.status == 200:
            return answer
        raise _refused(response.status, answer, self._url)


def _refused(status: int, answer: bytes, url: str) -> TransferError:
    try:
        said = msgspec.json.decode(answer, type=_Refusal)
    except msgspec.MsgspecError:
        return TransferError(f"the server answered {status}", retryable=status >= 500, file=url)
    return TransferError(said.error, retryable=status >= 500, file=url, next_step=said.next_step)
