"""The distribution API: blobs, manifests, referrers. Everything that comes in is checked against its digest.

Source: OCI distribution specification 1.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec
import stamina
from msgspec import Struct

from edgeship.bundle.layout import MAX_DOCUMENT_BYTES
from edgeship.bundle.registry.authorization import Authorizer, parse_challenge
from edgeship.bundle.registry.credentials import Credentials, find_credentials
from edgeship.bundle.registry.reference import Reference, fallback_tag, is_loopback
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, ContractError, TransferError, VerificationError

T = TypeVar("T")
_CHUNK_BYTES: Final = 1 << 20
_TIMEOUT: Final = httpx.Timeout(30.0, read=120.0, write=120.0)
_ATTEMPTS: Final = 5
_ACCEPT: Final = f"{oci.INDEX_TYPE}, {oci.MANIFEST_TYPE}"
_RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})
_WORDS: Final = {
    401: "the registry refuses these credentials",
    403: "the registry does not allow it",
    404: "not in the registry",
    405: "the registry does not do that",
    413: "the registry takes no blob of that size",
    429: "the registry has had too many requests",
}


class Manifest(Struct, frozen=True, kw_only=True):
    """A manifest or index as a registry gave it."""

    data: bytes
    media_type: str
    digest: str


class _Error(Struct, frozen=True, kw_only=True):
    code: str = ""
    message: str = ""


class _Errors(Struct, frozen=True, kw_only=True):
    errors: tuple[_Error, ...] = ()


class RegistryClient:
    """One repository of a registry.

    Args:
        reference: names registry and repository.
        push: whether something is to be written.
        plain_http: speak plain HTTP to a registry that is not this machine.
        find: gives the credentials; docker's ``config.json`` where nothing is named.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        push: bool = False,
        plain_http: bool = False,
        find: Callable[[str], Credentials | None] = find_credentials,
    ) -> None:
        self._local = local = is_loopback(reference.host)
        self._asked_plain = plain_http
        self._registry = reference.registry
        scheme = "http" if plain_http or local else "https"
        self._base = f"{scheme}://{reference.address}/v2/{reference.repository}/"
        self._origin = urlsplit(self._base)[:2]
        # a proxy of the environment has no business between this machine and itself
        self._http = httpx.Client(timeout=_TIMEOUT, trust_env=not local, event_hooks={"request": [self._check_request]})
        actions = "pull,push" if push else "pull"
        self._authorizer = Authorizer(
            self._http, lambda: find(reference.registry), reference.registry,
            f"repository:{reference.repository}:{actions}", self._allowed,
        )  # fmt: skip

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def has_blob(self, digest: str) -> bool:
        """Whether the repository holds a blob.

        Raises:
            TransferError: the registry cannot be asked.
        """
        return self._send("HEAD", f"blobs/{oci.check_digest(digest)}", allowed=(404,)).status != 404

    def push_blob(self, digest: str, size: int, open_chunks: Callable[[], Iterator[bytes]]) -> bool:
        """Upload a blob, unless the repository holds it.

        Args:
            digest: of the blob.
            size: in bytes.
            open_chunks: gives the content from its beginning; called again for another attempt.

        Returns:
            Whether it had to be uploaded.

        Raises:
            TransferError: it could not be uploaded.
        """

        def attempt() -> bool:
            if self._once("HEAD", f"blobs/{oci.check_digest(digest)}", allowed=(404,)).status != 404:
                return False
            started = self._once("POST", "blobs/uploads/").response
            place = urljoin(str(started.url), started.headers.get("Location", ""))
            joint = "&" if urlsplit(place).query else "?"
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            self._once("PUT", f"{place}{joint}digest={digest}", headers=headers, content=open_chunks())
            return True

        return _again(attempt)

    def pull_blob(self, descriptor: oci.Descriptor, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Download a blob; a broken connection is taken up where it broke.

        Args:
            descriptor: digest and size that the blob must have.
            path: where it is written; on an error there may be part of it.
            on_bytes: told how many bytes came with each piece.

        Raises:
            TransferError: it could not be downloaded.
            VerificationError: what came is not what the digest vouches for.
        """
        path.unlink(missing_ok=True)

        def attempt() -> None:
            with path.open("ab") as file:
                if file.tell() < descriptor.size:
                    self._receive(descriptor, file, on_bytes)

        _again(attempt)
        found, size = _digest_of(path), path.stat().st_size
        if found != descriptor.digest or size != descriptor.size:
            raise VerificationError("the registry gave other bytes than the bundle names", file=self._base,
                                    expected=f"{descriptor.digest}, {descriptor.size} bytes",
                                    got=f"{found}, {size} bytes",
                                    next_step="push the bundle again from where it is whole")  # fmt: skip

    def document(self, descriptor: oci.Descriptor) -> bytes:
        """A small blob, in memory.

        Raises:
            TransferError: it could not be downloaded.
            VerificationError: what came is not what the digest vouches for.
        """
        data = self._send("GET", f"blobs/{oci.check_digest(descriptor.digest)}").content
        if oci.digest_of(data) != descriptor.digest:
            raise VerificationError("the registry gave other bytes than were asked for", file=self._base,
                                    expected=descriptor.digest, got=oci.digest_of(data))  # fmt: skip
        return data

    def manifest(self, name: str) -> Manifest | None:
        """A manifest or index by tag or digest; None where there is none.

        Raises:
            TransferError: the registry cannot be asked.
            VerificationError: it does not have the digest that was asked for.
            ContractError: it is too long.
        """
        answer = self._send("GET", f"manifests/{name}", allowed=(404,), headers={"Accept": _ACCEPT})
        if answer.status == 404:
            return None
        data = answer.content
        digest = oci.digest_of(data)
        if name.startswith("sha256:") and digest != name:
            raise VerificationError("the registry gave another manifest than was asked for", file=self._base,
                                    expected=name, got=digest)  # fmt: skip
        return Manifest(data=data, media_type=_media_type(answer), digest=digest)

    def put_manifest(self, name: str, data: bytes, media_type: str) -> bool:
        """Write a manifest or index under a tag or its digest.

        Returns:
            Whether the registry lists it as a referrer of its subject by itself.

        Raises:
            TransferError: the registry does not take it.
        """
        answer = self._send("PUT", f"manifests/{name}", headers={"Content-Type": media_type}, content=data)
        return "OCI-Subject" in answer.response.headers

    def has_manifest(self, name: str) -> bool:
        """Whether there is a manifest of that tag or digest."""
        return self._send("HEAD", f"manifests/{name}", allowed=(404,), headers={"Accept": _ACCEPT}).status != 404

    def referrers(self, digest: str) -> tuple[oci.Descriptor, ...]:
        """What refers to a manifest: by the registry's own list, and by the tag that stands in for it.

        Raises:
            TransferError: the registry cannot be asked.
            ContractError: a list cannot be read.
        """
        listed: list[oci.Descriptor] = []
        answer = self._send("GET", f"referrers/{digest}", allowed=(400, 404, 405), headers={"Accept": oci.INDEX_TYPE})
        if answer.status == 200:
            listed += _index(answer.content, f"{self._base}referrers/{digest}").manifests
        fallback = self.manifest(fallback_tag(digest))
        if fallback is not None:
            listed += _index(fallback.data, fallback_tag(digest)).manifests
        return tuple({each.digest: each for each in listed}.values())

    def add_referrer(self, subject: str, entry: oci.Descriptor) -> None:
        """Name a referrer under the fallback tag, for a registry that does not list referrers itself.

        Raises:
            TransferError: the registry does not take it.
        """
        tag = fallback_tag(subject)
        known = self.manifest(tag)
        entries = _index(known.data, tag).manifests if known else ()
        if entry.digest not in {each.digest for each in entries}:
            index = oci.ImageIndex(manifests=(*entries, entry))
            self.put_manifest(tag, oci.canonical_json(index), oci.INDEX_TYPE)

    def _receive(self, descriptor: oci.Descriptor, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        """Append what is missing of a blob."""
        there = file.tell()
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
        response = self._open("GET", f"blobs/{oci.check_digest(descriptor.digest)}", headers=headers)
        try:
            if there and response.status_code != 206:
                file.truncate(0)
                on_bytes(-there)
                there = 0
            for chunk in response.iter_raw():  # as it comes: a piece that waits to be full is lost with the line
                there += len(chunk)
                if there > descriptor.size:
                    raise VerificationError("the registry gave more bytes than the bundle names", file=self._base,
                                            expected=f"{descriptor.size} bytes")  # fmt: skip
                file.write(chunk)
                on_bytes(len(chunk))
        except httpx.HTTPError as error:
            raise TransferError(f"the connection broke: {_said(error)}", retryable=True, file=self._base) from error
        finally:
            response.close()
        if there < descriptor.size:
            raise TransferError(f"the registry stopped after {there} of {descriptor.size} bytes", retryable=True,
                                file=self._base)  # fmt: skip

    def _send(self, method: str, path: str, **more: Any) -> _Answer:
        return _again(lambda: self._once(method, path, **more))

    def _once(self, method: str, path: str, **more: Any) -> _Answer:
        """One request and its whole answer, which is a document and no blob."""
        response = self._open(method, path, **more)
        try:
            return _Answer(response, _bounded(response))
        except httpx.HTTPError as error:
            raise TransferError(f"the connection broke: {_said(error)}", retryable=True, file=self._base) from error
        finally:
            response.close()

    def _open(
        self,
        method: str,
        path: str,
        *,
        allowed: tuple[int, ...] = (),
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
    ) -> httpx.Response:
        """Send a request; a challenge is answered and the request sent again, unless its content is read only once."""
        url = urljoin(self._base, path)
        for final in (False, True):
            try:
                request = self._http.build_request(method, url, headers={**(headers or {}), **self._signed(url)},
                                                   content=content)  # fmt: skip
                response = self._http.send(request, stream=True, follow_redirects=method in {"GET", "HEAD"})
            except httpx.HTTPError as error:
                raise TransferError(f"the registry does not answer: {_said(error)}", retryable=True, file=self._base,
                                    next_step="check the address and the network") from error  # fmt: skip
            if response.is_success or response.status_code in allowed:
                return response
            try:
                if response.status_code != 401 or final:
                    self._refuse(response, url)
            finally:
                response.close()
            self._authorizer.answer(parse_challenge(response.headers.get("WWW-Authenticate", "")))
            if isinstance(content, Iterator):
                raise TransferError("the registry asked for credentials again", retryable=True, file=self._base)
        raise AssertionError("the second answer is final")

    def _signed(self, url: str) -> dict[str, str]:
        """Our credentials, for the registry itself and nobody that it sends us to."""
        ours = urlsplit(url)[:2] == self._origin
        return {"Authorization": self._authorizer.header} if self._authorizer.header and ours else {}

    def _allowed(self, address: str) -> bool:
        """HTTPS to anyone; plain HTTP from this machine to itself, or where the user said so."""
        parts = urlsplit(address)
        host = parts.hostname or ""
        plain = parts.scheme == "http" and (self._asked_plain or (self._local and is_loopback(host)))
        return bool(host) and (parts.scheme == "https" or plain)

    def _check_request(self, request: httpx.Request) -> None:
        """Hold every request, redirects too, to addresses that may be spoken to."""
        if not self._allowed(str(request.url)):
            raise ConfigError("plain HTTP to another machine", file=str(request.url).partition("?")[0],
                              expected="HTTPS", next_step="add --plain-http if that network is yours")  # fmt: skip

    def _refuse(self, response: httpx.Response, url: str) -> NoReturn:
        status = response.status_code
        try:
            told = msgspec.json.decode(_bounded(response), type=_Errors).errors
        except (msgspec.DecodeError, UnicodeDecodeError, httpx.HTTPError, ContractError):
            told = ()
        detail = "; ".join(" ".join(f"{each.code} {each.message}".split()) for each in told)[:200]
        sentence = _WORDS.get(status, f"the registry answers {status}")
        login = f"docker login {self._registry}, then the same command again" if status in {401, 403} else None
        raise TransferError(sentence + (f": {detail}" if detail.isprintable() and detail else ""),
                            retryable=status in _RETRYABLE, file=url.partition("?")[0], next_step=login)  # fmt: skip


class _Answer(Struct, frozen=True):
    """A response and its content."""

    response: httpx.Response
    content: bytes

    @property
    def status(self) -> int:
        """HTTP's number."""
        return self.response.status_code


def _bounded(response: httpx.Response) -> bytes:
    """The content of a response, which must not be longer than a document may be."""
    parts = bytearray()
    for chunk in response.iter_bytes(_CHUNK_BYTES):
        parts += chunk
        if len(parts) > MAX_DOCUMENT_BYTES:
            raise ContractError("the registry's answer is too long", file=str(response.url).partition("?")[0],
                                expected=f"≤ {MAX_DOCUMENT_BYTES} bytes")  # fmt: skip
    return bytes(parts)


def _again(attempt: Callable[[], T]) -> T:
    """Try again what may succeed later."""
    for one in stamina.retry_context(on=_worth_another, attempts=_ATTEMPTS, timeout=None, wait_initial=0.2, wait_max=5):
        with one:
            return attempt()
    raise AssertionError("the last attempt returns or raises")


def _worth_another(error: Exception) -> bool:
    return isinstance(error, TransferError) and error.retryable


def _digest_of(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return "sha256:" + state.hexdigest()


def _media_type(answer: _Answer) -> str:
    """The type in the document itself, which its digest vouches for; else the registry's word."""
    try:
        stated = msgspec.json.decode(answer.content, type=_Typed).media_type
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return stated or str(answer.response.headers.get("Content-Type", ""))


class _Typed(Struct, frozen=True, kw_only=True, rename="camel"):
    media_type: str = ""


def _index(data: bytes, name: str) -> oci.ImageIndex:
    try:
        return msgspec.json.decode(data, type=oci.ImageIndex)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"not a list of referrers: {error}", file=name) from error


def _said(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
