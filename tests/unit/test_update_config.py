"""The agent's configuration: every mistake names file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship_agent.config import read_config
from edgeship_agent.contract.errors import ConfigError

GOOD = """
device_id = "press-07"
target = "raspberry-pi-5"
state_dir = "state"
server_url = "http://127.0.0.1:8080"
root = "root.json"
goal_key = "/etc/edgeship/goal.pub"
[accepts]
digits = "abc"
faces = ["a", "b"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))
    assert config.state_dir == tmp_path / "state"
    assert config.goal_key == Path("/etc/edgeship/goal.pub")
    assert config.broker_url == "mqtt://127.0.0.1:1883"
    assert config.telemetry.window_s == 60.0
    assert config.accepted() == {"digits": ("abc",), "faces": ("a", "b")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("target =", "tarket ="), "tarket"),
        (('target = "raspberry-pi-5"', ""), "missing key"),
        (("[accepts]", "[telemetry]\nwindow = 3\n[accepts]"), "unknown key"),
        (("[accepts]", "[telemetry]\nwindow_s = 0.0\n[accepts]"), "telemetry.window_s"),
        (("press-07", "press/07"), "device_id"),
        (("http://127", "ftp://127"), "server_url"),
        (('target = "', 'broker_url = "http://x"\ntarget = "'), "broker_url"),
        (('target = "', 'broker_url = "mqtt://x:99999"\ntarget = "'), "broker_url"),
        (("device_id =", "schema_version = 2\ndevice_id ="), "schema_version"),
        (("device_id =", "device_id"), "not a TOML file"),
        (('root = "root.json"', "root = 3"), "root"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ConfigError) as error:
        read_config(path)
    assert words in error.value.sentence()
    assert str(path) in error.value.sentence() or words == "broker_url"
    assert error.value.exit_code == 2


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as error:
        read_config(tmp_path / "none.toml")
    assert error.value.next_step


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('window = "25:00-26:00"', "update.window"),
        ('window = "02:00-02:00"', "update.window"),
        ('mirror = "cache.local"', "update.mirror"),
        ("max_bytes_per_s = 100", "update.max_bytes_per_s"),
    ],
)
def test_update_conditions_that_cannot_be_meant(tmp_path: Path, line: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(write(tmp_path, f"{GOOD}\n[update]\n{line}\n"))
    assert error.value.key == key
