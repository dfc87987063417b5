"""The command line's way to a fleet server: a thin client that turns every failure into a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import httpx

from edgeship_agent.contract.errors import ConfigError, EdgeshipError, TransferError

_TIMEOUT_S: Final = 30.0


class ServerError(EdgeshipError):
    """The server refused a request, in its own words and with the exit code that it gave."""

    def __init__(self, message: str, *, next_step: str | None, exit_code: int) -> None:
        super().__init__(message, next_step=next_step)
        self.exit_code = exit_code


class ApiClient:
    """Requests to one fleet server; use it as a context manager.

    Args:
        server: ``http://host:port``.
        timeout_s: per request.

    Raises:
        ConfigError: not such an address.
    """

    def __init__(self, server: str, timeout_s: float = _TIMEOUT_S) -> None:
        if not server.startswith(("http://", "https://")):
            raise ConfigError("not a server address", key="--server", expected="http://HOST:PORT", got=server)
        self.server = server.rstrip("/")
        self._http = httpx.Client(base_url=self.server, timeout=timeout_s, follow_redirects=False)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """The document at ``/api/v1/<path>``.

        Raises:
            TransferError: the server cannot be reached.
            ServerError: it refused, or there is no such thing.
        """
        return self.request("GET", path, params=dict(params or {})).json()

    def post(self, path: str, body: object) -> Any:
        """Send a JSON body to ``/api/v1/<path>``; raises as :meth:`get`."""
        return self.request("POST", path, json=body).json()

    def patch(self, path: str, body: object) -> Any:
        """Change what lies at ``/api/v1/<path>``; raises as :meth:`get`."""
        return self.request("PATCH", path, json=body).json()

    def request(self, method: str, path: str, *, allowed: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        """Any request under ``/api/v1/``.

        Args:
            method: HTTP method.
            path: below ``/api/v1/``.
            allowed: status codes beside 2xx that are an answer, not an error (404 of a HEAD, for instance).
            options: httpx's: ``json``, ``params``, ``content``, ``headers``, ``files``, ``timeout``.

        Raises:
            TransferError: the server cannot be reached.
            ServerError: it refused.
        """
        try:
            answer = self._http.request(method, f"/api/v1/{path}", **options)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TransferError(
                "the server cannot be reached",
                retryable=True,
                file=self.server,
                next_step="edgeship server run --data DIR   (or name another with --server)",
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransferError(f"the request failed: {error}", retryable=True, file=self.server) from error
        if answer.is_success or answer.status_code in allowed:
            return answer
        raise _refusal(answer)


def _refusal(answer: httpx.Response) -> ServerError:
    try:
        body = answer.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    sentence = body.get("error") or body.get("detail") or f"the server answered {answer.status_code}"
    exit_code = body.get("exit_code", 1)
    return ServerError(
        str(sentence),
        next_step=body.get("next_step"),
        exit_code=exit_code if isinstance(exit_code, int) and 1 <= exit_code <= 4 else 1,
    )
