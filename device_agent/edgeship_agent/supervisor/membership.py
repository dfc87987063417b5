"""What membership of a fleet asks of a running agent: TLS for each connection, and the next certificate in time."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Final

from edgeship_agent.config import AgentConfig
from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.identity.credentials import client_context
from edgeship_agent.supervisor.log import Log
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import EARLIEST_S

#: A certificate of a year is due for four months: an hour is early enough to look, a day to try again.
_LOOK_S: Final = 3600.0
_RETRY_S: Final = 6 * 3600.0


def tls_of(config: AgentConfig, state: StateFile) -> Callable[[], ssl.SSLContext]:
    """Makes the TLS context of the next connection: with this device's identity, where it has one."""
    credentials = config.credentials
    if credentials is None:
        return ssl.create_default_context
    return lambda: client_context(credentials, time.time(), max(state.now.time_floor_s, EARLIEST_S))


def keep_renewing(config: AgentConfig, log: Log) -> None:
    """Renew the certificate for as long as the process lives; an error is said and tried again, and ends nothing."""
    credentials, url = config.credentials, config.identity.enrol_url
    if credentials is None or not url:
        return
    # certificates take 2 MB, which a device without one need not pay for
    from edgeship_agent.identity import renewal
    from edgeship_agent.identity.keys import day

    while True:
        pause_s = _LOOK_S
        try:
            if renewal.is_due(credentials, time.time(), EARLIEST_S):
                until_s = renewal.renew(credentials, url, time.time(), EARLIEST_S)
                log("certificate_renewed", until=day(until_s))
        except (EdgeshipError, OSError) as error:
            said = error.sentence() if isinstance(error, EdgeshipError) else str(error)
            log("renewal_failed", detail=said, again_in_s=_RETRY_S)
            pause_s = _RETRY_S
        time.sleep(pause_s)
