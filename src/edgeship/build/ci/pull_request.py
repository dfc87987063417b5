"""The comment on a GitHub pull request: written once, edited from then on.

Source: GitHub REST API, "Issue comments"; the variables of a workflow run: GitHub, "Default environment variables".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct

from edgeship.build.ci.comment import MAX_BYTES, marker
from edgeship_agent.contract.errors import ConfigError, TransferError

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_REFERENCE: Final = re.compile(r"refs/pull/([0-9]+)/(?:merge|head)")
_PAGE: Final = 100
#: A pull request with more comments than this is searched no further.
_MAX_PAGES: Final = 30
_TIMEOUT_S: Final = 30.0
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class PullRequest(Struct, frozen=True, kw_only=True):
    """Where the comment goes."""

    api: str
    repository: str
    number: int
    token: str

    @classmethod
    def of_run(cls, environment: Mapping[str, str], number: int | None = None) -> PullRequest:
        """The pull request that a workflow runs for.

        Args:
            environment: variables of the run.
            number: of the pull request, where the run does not say it.

        Raises:
            ConfigError: this is no run of a pull request, or it has no token.
        """
        repository, token = environment.get("GITHUB_REPOSITORY", ""), environment.get("GITHUB_TOKEN", "")
        found = _REFERENCE.fullmatch(environment.get("GITHUB_REF", ""))
        number = number if number is not None else int(found[1]) if found else None
        if not _REPOSITORY.fullmatch(repository) or number is None:
            raise ConfigError("no pull request to comment on", key="GITHUB_REPOSITORY, GITHUB_REF",
                              expected="OWNER/NAME and refs/pull/N/merge",
                              got=f"{repository or 'nothing'} and {environment.get('GITHUB_REF') or 'nothing'}",
                              next_step="run it in a workflow on: pull_request, or add --pull-request N")  # fmt: skip
        if not token:
            raise ConfigError("no token", key="GITHUB_TOKEN", expected="a token that may write to pull requests",
                              next_step="env: GITHUB_TOKEN: ${{ github.token }}")  # fmt: skip
        api = environment.get("GITHUB_API_URL", "") or "https://api.github.com"
        parts = urlsplit(api)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ConfigError("a token goes over HTTPS only", key="GITHUB_API_URL", expected="https://…", got=api,
                              next_step="correct the address")  # fmt: skip
        return cls(api=api.rstrip("/"), repository=repository, number=number, token=token)


class _Comment(Struct, frozen=True, kw_only=True):
    id: int
    body: str | None = ""
    html_url: str = ""


def put_comment(pull_request: PullRequest, name: str, text: str) -> tuple[str, bool]:
    """Edit the comment of a model, or write it where there is none.

    Args:
        pull_request: where.
        name: of the model, whose hidden marker the comment begins with.
        text: the comment; its first line is the marker.

    Returns:
        Address of the comment, and whether it is a new one.

    Raises:
        TransferError: GitHub does not take it.
    """
    assert text.startswith(marker(name)), "report.md begins with its marker"
    assert len(text.encode()) <= MAX_BYTES, "report.md fits into a comment"
    headers = {"Authorization": f"Bearer {pull_request.token}", "Accept": "application/vnd.github+json",
               "X-GitHub-Api-Version": "2022-11-28"}  # fmt: skip
    root = f"{pull_request.api}/repos/{pull_request.repository}/issues"
    with httpx.Client(headers=headers, timeout=_TIMEOUT_S) as http:
        for known in _known(http, f"{root}/{pull_request.number}/comments", marker(name)):
            answer = _ask(http, "PATCH", f"{root}/comments/{known.id}", {"body": text}, allowed=(403, 404))
            if answer.is_success:  # another one's comment with our marker cannot be edited: it is left alone
                return _comment(answer).html_url, False
        answer = _ask(http, "POST", f"{root}/{pull_request.number}/comments", {"body": text})
        return _comment(answer).html_url, True


def _known(http: httpx.Client, address: str, mark: str) -> list[_Comment]:
    found: list[_Comment] = []
    for page in range(1, _MAX_PAGES + 1):
        answer = _ask(http, "GET", f"{address}?per_page={_PAGE}&page={page}")
        try:
            comments = msgspec.json.decode(answer.content, type=tuple[_Comment, ...])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TransferError("GitHub's answer cannot be read", retryable=False, file=address) from error
        found += [each for each in comments if (each.body or "").startswith(mark)]
        if len(comments) < _PAGE:
            break
    return found


def _ask(
    http: httpx.Client, method: str, address: str, body: dict[str, str] | None = None, allowed: tuple[int, ...] = ()
) -> httpx.Response:
    try:
        answer = http.request(method, address, json=body)
    except httpx.HTTPError as error:
        raise TransferError(f"GitHub does not answer: {str(error) or type(error).__name__}", retryable=True,
                            file=address) from error  # fmt: skip
    if not answer.is_success and answer.status_code not in allowed:
        hint = "permissions: pull-requests: write" if answer.status_code in {401, 403, 404} else None
        raise TransferError(f"GitHub answers {answer.status_code}", retryable=answer.status_code >= 500,
                            file=address.partition("?")[0], next_step=hint)  # fmt: skip
    return answer


def _comment(answer: httpx.Response) -> _Comment:
    try:
        return msgspec.json.decode(answer.content, type=_Comment)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Comment(id=0)
