"""The server process: database, broker, ingest, evaluator and web server, started and stopped in order."""

from __future__ import annotations

import uvicorn

from edgeship.server.app import create_app
from edgeship.server.config import ServerConfig, check_host
from edgeship.server.context import open_context


def run_server(config: ServerConfig) -> None:
    """Run until interrupted.

    Raises:
        ConfigError: the address is not loopback, or the data folder cannot be used.
    """
    check_host(config.host)
    with open_context(config) as context:
        uvicorn.run(create_app(context), host=config.host, port=config.port, log_level="warning")
