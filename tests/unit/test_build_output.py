"""The output folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship.build import output
from edgeship_agent.contract.errors import ConfigError


def _write(final: Path, text: str) -> None:
    with output.staging(final) as staging:
        output.write_synced(staging.draft / "build.json", text.encode())


def test_a_finished_build_is_in_its_place_and_replaces_the_former(tmp_path: Path) -> None:
    final = tmp_path / "out"
    _write(final, "one")
    _write(final, "two")
    assert (final / "build.json").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_an_interrupted_build_leaves_the_former_one_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    final = tmp_path / "out"
    _write(final, "one")
    with pytest.raises(failure), output.staging(final) as staging:
        (staging.draft / "build.json").write_text("half")
        raise failure
    assert (final / "build.json").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holiday\.jpg"):
        output.check(tmp_path / "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="in the way"):
        output.check(tmp_path / "file")


def test_a_folder_that_no_build_wrote_is_left_alone_whatever_its_files_are_called(tmp_path: Path) -> None:
    kept = tmp_path / "own" / "bundle" / "app.js"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    (tmp_path / "own" / "report.html").write_text("mine too")
    with pytest.raises(ConfigError, match=r"no build wrote.*bundle, report\.html"):
        _write(tmp_path / "own", "one")
    assert kept.read_text() == "mine"
    kept.unlink()
    (tmp_path / "own" / "bundle" / "oci-layout").write_text("{}")  # as pulled: a build may take its place
    _write(tmp_path / "own", "two")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["build.json"]
