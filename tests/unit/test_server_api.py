"""The API's guards and its answers about devices, drift and incidents, over a real database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar.testing import TestClient

from edgeship.server.app import create_app
from edgeship.server.config import LOOPBACK, ServerConfig
from edgeship.server.context import ServerContext, open_context
from edgeship.server.store import devices, windows
from tests.device_link import batch, birth, running_arm, window


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServerContext]:
    with open_context(ServerConfig(data=tmp_path / "data")) as opened:
        with opened.write() as connection:
            devices.save_birth(connection, birth("press-1", running=(running_arm(),)), 5.0)
            devices.save_birth(connection, birth("press-2", tags={"site": "plant"}), 6.0)
            windows.store_batch(connection, batch("press-1", window(1), window(2), window(2)), 7.0)
            opened.record(connection, "device_registered", "device/press-1", "press-1 is new", {})
        yield opened


@pytest.fixture
def client(context: ServerContext) -> Iterator[TestClient]:  # type: ignore[type-arg]
    with TestClient(create_app(context, allowed_hosts=LOOPBACK), base_url="http://127.0.0.1:8080") as opened:
        yield opened


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:  # type: ignore[type-arg]
    for path in ("/", "/api/v1/health", "/api/v1/devices", "/api/openapi.json", "/tuf/metadata/1.root.json"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY", path


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::2]:8080", ""])
def test_a_name_that_a_stranger_points_at_loopback_is_refused(client: TestClient, host: str) -> None:  # type: ignore[type-arg]
    assert client.get("/api/v1/devices", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "[::1]:8080", "127.0.0.1:1"])
def test_loopback_is_known_on_any_port(client: TestClient, host: str) -> None:  # type: ignore[type-arg]
    assert client.get("/api/v1/devices", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
def test_another_sites_page_changes_nothing(
    client: TestClient,  # type: ignore[type-arg]
    headers: dict[str, str],
) -> None:
    body = {"set": {"site": "mine"}}
    assert client.patch("/api/v1/devices/press-1/tags", json=body, headers=headers).status_code == 403
    assert client.get("/api/v1/devices/press-1").json()["tags"] == {"site": "lab"}


def test_our_own_page_may(client: TestClient) -> None:  # type: ignore[type-arg]
    headers = {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
    assert client.patch("/api/v1/devices/press-1/tags", json={}, headers=headers).status_code == 200


def test_devices_are_listed_with_what_they_run(client: TestClient) -> None:  # type: ignore[type-arg]
    document = client.get("/api/v1/devices").json()
    assert [device["id"] for device in document["devices"]] == ["press-1", "press-2"]
    assert document["devices"][0]["running"][0]["version"] == "v1"
    assert [device["id"] for device in client.get("/api/v1/devices?tag=site=plant").json()["devices"]] == ["press-2"]


def test_a_device_is_shown_with_its_books(client: TestClient) -> None:  # type: ignore[type-arg]
    device = client.get("/api/v1/devices/press-1").json()
    assert (device["windows_stored"], device["windows_duplicate"], device["windows_evicted"]) == (2, 1, 0)
    assert device["totals"][0]["inferences"] == 200
    missing = client.get("/api/v1/devices/nobody")
    assert (missing.status_code, "no device nobody" in missing.json()["detail"]) == (404, True)


def test_an_operators_tags_win_and_can_be_taken_back(client: TestClient) -> None:  # type: ignore[type-arg]
    path = "/api/v1/devices/press-1/tags"
    assert client.patch(path, json={"set": {"site": "roof", "ring": "0"}}).json()["tags"] == {
        "site": "roof",
        "ring": "0",
    }
    assert client.patch(path, json={"remove": ["site"]}).json()["tags"] == {"site": "lab", "ring": "0"}
    assert client.get("/api/v1/events?subject=device/press-1").json()["events"][0]["kind"] == "device_tagged"


@pytest.mark.parametrize(
    "body", [{"set": {"": "x"}}, {"set": {"a=b": "x"}}, {"set": {"a": "x" * 300}}, {"colour": 1}, {"set": 3}, []]
)
def test_tags_that_are_none_are_refused(client: TestClient, body: object) -> None:  # type: ignore[type-arg]
    assert client.patch("/api/v1/devices/press-1/tags", json=body).status_code == 400


def test_a_body_beyond_the_limit_is_refused(client: TestClient) -> None:  # type: ignore[type-arg]
    body = b'{"set": {"a": "' + b"x" * (17 * 1024 * 1024) + b'"}}'
    assert client.patch("/api/v1/devices/press-1/tags", content=body).status_code == 413


def test_events_are_read_forward_from_an_id(client: TestClient, context: ServerContext) -> None:  # type: ignore[type-arg]
    for number in range(3):
        with context.write() as connection:
            context.record(connection, "step", "server", f"step {number}", {})
    newest = client.get("/api/v1/events").json()["events"]
    assert [event["sentence"] for event in newest[:2]] == ["step 2", "step 1"]
    after = client.get(f"/api/v1/events?after={newest[2]['id']}").json()["events"]
    assert [event["sentence"] for event in after] == ["step 1", "step 2"]
    assert client.get("/api/v1/events?limit=100000").status_code == 400


def test_the_openapi_document_names_every_path(client: TestClient) -> None:  # type: ignore[type-arg]
    paths = client.get("/api/openapi.json").json()["paths"]
    for path in ("devices", "devices/{device_id}", "drift", "incidents", "incidents/{number}", "events", "health"):
        assert f"/api/v1/{path}" in paths


def test_empty_lists_are_documents_too(client: TestClient) -> None:  # type: ignore[type-arg]
    assert client.get("/api/v1/drift").json() == {"schema_version": 1, "devices": []}
    assert client.get("/api/v1/incidents?state=open").json() == {"schema_version": 1, "incidents": []}
    assert client.get("/api/v1/incidents/1").status_code == 404
