"""The server's configuration file and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship.server.config import DriftConfig, check_host, read_config_file
from edgeship_agent.contract.errors import ConfigError


def test_missing_keys_keep_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("schema_version = 1\ntick_s = 0.5\n[drift]\nalarm_of = 9\n")
    config = read_config_file(path)
    assert (config.tick_s, config.silence_s, config.drift) == (0.5, 90.0, DriftConfig(alarm_of=9))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("colour = 3", "colour"),
        ("[drift]\nwindows = 3", "windows"),
        ("tick_s = 0", "tick_s"),
        ("tick_s = -1.0", "tick_s"),
        ("tick_s = nan", "tick_s"),
        ('tick_s = "fast"', "tick_s"),
        ("schema_version = 2", "schema_version"),
        ("[drift]\nalarm_hot = 5\nalarm_of = 3", "drift.alarm_hot"),
        ("[drift]\nrecent_windows = 0", "drift.recent_windows"),
        ("tick_s = = 1", "server.toml"),
        ("\xff", "server.toml"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "server.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"server\.toml") as caught:
        read_config_file(path)
    assert key in caught.value.sentence()
    assert caught.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config_file(tmp_path / "missing.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org", ""])
def test_other_addresses_than_loopback_are_refused_with_the_reason(host: str) -> None:
    with pytest.raises(ConfigError, match="the dashboard has no login yet") as caught:
        check_host(host)
    assert caught.value.next_step
