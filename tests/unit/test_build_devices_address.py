"""Addresses of devices: what is meant, and nothing that a shell or ssh would take for more than a name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.build.devices.address import Address, parse_address
from edgeship_agent.contract.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("ssh://pi@raspberrypi.local", "pi", "raspberrypi.local", 0),
        ("ssh://pi@10.0.0.7:2222/", "pi", "10.0.0.7", 2222),
        ("ssh://build-bot_1@[fe80::1]:22", "build-bot_1", "fe80::1", 22),
        ("ssh://root@nuc", "root", "nuc", 0),
    ],
)
def test_addresses(text: str, user: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(user=user, host=host, port=port)


@pytest.mark.parametrize(
    "text",
    [
        "", "pi@nuc", "ssh://nuc", "ssh://@nuc", "ssh://pi@", "http://pi@nuc", "ssh://pi@nuc:0", "ssh://pi@nuc:65536",
        "ssh://pi@nuc:port", "ssh://pi:secret@nuc", "ssh://pi@nuc/tmp", "ssh://-oProxyCommand=x@nuc",
        "ssh://pi@-oProxyCommand=touch%20x", "ssh://pi@nuc;reboot", "ssh://pi@$(reboot)", "ssh://p i@nuc",
        "ssh://pi@nuc\n", "ssh://pi@nuc -oProxyCommand=x", "ssh://pi@`x`", "ssh://pi@nuc'", 'ssh://pi@nuc"',
    ],
)  # fmt: skip
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a device") as caught:
        parse_address(text)
    assert caught.value.exit_code == 2
    assert caught.value.key == "--measure"


@settings(derandomize=True, max_examples=500)
@given(st.text(max_size=40), st.text(max_size=40))
def test_what_is_read_holds_no_character_of_a_shell(user: str, host: str) -> None:
    try:
        found = parse_address(f"ssh://{user}@{host}")
    except ConfigError:
        return
    for part in (found.user, found.host):
        assert not set(part) & set(" \t\n'\"`$;&|<>(){}*?!\\#~=%")
        assert part[0] != "-"
