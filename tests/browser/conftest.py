"""A server over a filled database and a browser, shared by the tests of this folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from litestar import Litestar

from edgeship.server.app import create_app
from edgeship.server.config import ServerConfig
from edgeship.server.context import ServerContext, open_context
from tests.browser import fleet, fleet_arms
from tests.browser.chromium import Tab, open_browser


@dataclass(frozen=True, kw_only=True)
class Site:
    """A server that answers.

    Attributes:
        address: ``http://127.0.0.1:PORT``.
        context: its database and clock.
    """

    address: str
    context: ServerContext


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The dashboard over the fleet of :mod:`tests.browser.fleet`."""
    config = ServerConfig(data=tmp_path_factory.mktemp("server"))
    with open_context(config, clock=lambda: fleet.NOW_S) as context:
        fleet.fill(context)
        with serve(create_app(context)) as address:
            yield Site(address=address, context=context)


@pytest.fixture(scope="module")
def arms_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same fleet with two versions side by side: labels, business figures, a shadow."""
    config = ServerConfig(data=tmp_path_factory.mktemp("arms"))
    with open_context(config, clock=lambda: fleet.NOW_S) as context:
        profile_hash = fleet.fill(context)
        with context.write() as connection:
            fleet_arms.add_arms(connection, profile_hash)
        with serve(create_app(context)) as address:
            yield Site(address=address, context=context)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A headless Chromium."""
    with open_browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


class serve:  # noqa: N801 - used as a context manager
    """Run an application on a free port, in a thread of its own, for as long as the block lasts."""

    def __init__(self, app: Litestar) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        deadline = time.monotonic() + 60.0
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20.0)


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    return tmp_path_factory.mktemp("screenshots")
