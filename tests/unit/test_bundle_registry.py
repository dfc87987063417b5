"""Places, challenges and credentials, as they are written."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from edgeship.bundle.registry import Reference, RegistryClient
from edgeship.bundle.registry.authorization import parse_challenge
from edgeship.bundle.registry.credentials import Credentials, find_credentials
from edgeship.bundle.registry.reference import is_loopback
from edgeship_agent.contract.errors import ConfigError

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("registry.example.com/a:1", ("registry.example.com", "a", "1", "")),
        ("localhost:5000/a/b-c/d_e__f.g:V1.0_x-2", ("localhost:5000", "a/b-c/d_e__f.g", "V1.0_x-2", "")),
        (f"[::1]:5000/a@sha256:{HEX}", ("[::1]:5000", "a", "", f"sha256:{HEX}")),
        (f"r.example.com/a:1@sha256:{HEX}", ("r.example.com", "a", "", f"sha256:{HEX}")),
        ("r.example.com/a", ("r.example.com", "a", "", "")),
    ],
)
def test_references(text: str, parts: tuple[str, str, str, str]) -> None:
    found = Reference.parse(text)
    assert (found.registry, found.repository, found.tag, found.digest) == parts


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:1", "/a:1", "r.example.com/", "r.example.com/A:1", "r.example.com/a:", "r.example.com/a:-1",
     "r.example.com/a//b:1", "r.example.com/../b:1", "r.example.com/a@sha256:12", "r.example.com/a@",
     "u@r.example.com/a:1", "https://r.example.com/a:1", "r.example.com:port/a:1",
     f"r.example.com/{'a' * 256}:1", "r.example.com/a:1\n",
     "r example.com/a:1", "-r/a:1"],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError, match="not a place in a registry"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("127.0.0.1.example.com", False), ("10.0.0.1", False), ("", False)],
)  # fmt: skip
def test_this_machine(host: str, local: bool) -> None:
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    ("place", "plain", "address", "allowed"),
    [
        ("r.example.com/a:1", False, "https://cdn.example.net/x", True),
        ("r.example.com/a:1", False, "http://r.example.com/v2/", False),
        ("r.example.com/a:1", False, "http://127.0.0.1/", False),
        ("r.example.com/a:1", True, "http://r.example.com/v2/", True),
        ("localhost:5000/a:1", False, "http://127.0.0.1:6000/", True),
        ("localhost:5000/a:1", False, "http://r.example.com/", False),
        ("localhost:5000/a:1", False, "https://r.example.com/", True),
        ("localhost:5000/a:1", False, "ftp://localhost/", False),
        ("localhost:5000/a:1", False, "", False),
    ],
)
def test_whom_a_registry_may_send_us_to(place: str, plain: bool, address: str, allowed: bool) -> None:
    with RegistryClient(Reference.parse(place), plain_http=plain) as client:
        assert client._allowed(address) is allowed


def test_challenges() -> None:
    assert parse_challenge("Basic realm=tests").parameters == {"realm": "tests"}
    found = parse_challenge('Bearer realm="https://a/t",service="s", scope="repository:x:pull,push" , error="x\\"y"')
    assert (found.scheme, found.parameters["scope"]) == ("bearer", "repository:x:pull,push")
    assert parse_challenge("").scheme == ""


def _config(folder: Path, document: object) -> Path:
    path = folder / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_no_file_is_an_anonymous_visit(tmp_path: Path) -> None:
    assert find_credentials("r.example.com", tmp_path / "config.json") is None
    assert find_credentials("r.example.com", _config(tmp_path, {"auths": {"other.example.com": {}}})) is None


@pytest.mark.parametrize("key", ["r.example.com", "https://r.example.com", "https://r.example.com/v1/"])
def test_names_in_dockers_configuration(tmp_path: Path, key: str) -> None:
    pair = base64.b64encode(b"ali:open:sesame").decode()
    path = _config(tmp_path, {"auths": {key: {"auth": pair}}, "HttpHeaders": {"x": "y"}})
    assert find_credentials("r.example.com", path) == Credentials(username="ali", secret="open:sesame")
    assert find_credentials("other.example.com", path) is None


def test_identity_token(tmp_path: Path) -> None:
    path = _config(tmp_path, {"auths": {"r.example.com": {"auth": "eA==", "identitytoken": "long"}}})
    assert find_credentials("r.example.com", path) == Credentials(identity_token="long")


def test_credential_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        "#!/bin/sh\nread -r server\ncase $server in\n"
        'r.example.com) echo \'{"ServerURL":"x","Username":"ali","Secret":"sesame"}\' ;;\n'
        't.example.com) echo \'{"Username":"<token>","Secret":"long"}\' ;;\n'
        "bad.example.com) echo broken ;;\n"
        'fails.example.com) echo "locked" >&2; exit 1 ;;\n'
        '*) echo "credentials not found in native keychain"; exit 1 ;;\nesac\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = _config(tmp_path, {"credsStore": "test"})
    assert find_credentials("r.example.com", path) == Credentials(username="ali", secret="sesame")
    assert find_credentials("t.example.com", path) == Credentials(identity_token="long")
    assert find_credentials("other.example.com", path) is None
    for name, sentence in (("bad.example.com", "no answer that can be read"), ("fails.example.com", "failed")):
        with pytest.raises(ConfigError, match=sentence):
            find_credentials(name, path)
    only = _config(tmp_path, {"credHelpers": {"r.example.com": "test"}})
    assert find_credentials("r.example.com", only) == Credentials(username="ali", secret="sesame")
    assert find_credentials("t.example.com", only) is None


@pytest.mark.parametrize(
    "document",
    ["{", "[]", '{"auths": 3}', '{"auths": {"r.example.com": {"auth": "%%%"}}}', '{"credsStore": "../../bin/sh"}',
     '{"credsStore": "that-is-not-there"}', " " * ((1 << 20) + 1)],
)  # fmt: skip
def test_a_damaged_configuration_is_named(tmp_path: Path, document: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_credentials("r.example.com", _config(tmp_path, document))
    assert caught.value.file == str(tmp_path / "config.json")
    assert caught.value.next_step
