"""Fetches update metadata over TLS with this device's certificate; imported by the short-lived trust child alone."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import urllib3
from tuf.api.exceptions import DownloadHTTPError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface

_CHUNK_BYTES = 256 * 1024


class MemberFetcher(FetcherInterface):
    """What The Update Framework's client downloads with.

    Args:
        context: knows the fleet's authority and shows our certificate.
        timeout_s: for connecting and for each read.
    """

    def __init__(self, context: ssl.SSLContext, timeout_s: float) -> None:
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False)
        self._timeout = urllib3.Timeout(timeout_s)

    def _fetch(self, url: str) -> Iterator[bytes]:
        response = self._pool.request("GET", url, preload_content=False, timeout=self._timeout)
        try:
            if response.status >= 400:
                raise DownloadHTTPError(f"{url}: the server answered {response.status}", response.status)
            yield from response.stream(_CHUNK_BYTES)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise SlowRetrievalError(f"{url}: too slow") from error
        finally:
            response.release_conn()
