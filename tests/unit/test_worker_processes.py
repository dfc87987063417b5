"""The processes in which converters run."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeship.build.toolchains import workers

SCRIPT = """
import json, os, sys
json.load(sys.stdin)
seen = sorted(name for name in os.environ if name.startswith("PYTHON"))
print(json.dumps({"ok": True, "hash": hash("a"), "seen": seen, "path": sys.path, "user": sys.flags.no_user_site}))
"""

#: A library that leaves a temporary file, in a process that ends without tidying up.
LITTER = """
import json, os, sys, tempfile
json.load(sys.stdin)
handle, path = tempfile.mkstemp()
os.write(1, json.dumps({"ok": True, "path": path}).encode())
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def some_worker(tmp_path, monkeypatch):
    """Makes a script the worker of a toolchain named ``some``."""

    def install(script: str) -> None:
        (tmp_path / "some_worker.py").write_text(script)
        monkeypatch.setattr(workers.resources, "files", lambda _package: tmp_path)
        monkeypatch.setattr(workers, "named", lambda _name: SimpleNamespace(python=sys.executable))
        monkeypatch.setattr(workers, "is_installed", lambda _environment: True)

    return install


def test_what_one_leaves_behind_goes_with_it(some_worker, tmp_path, monkeypatch):
    some_worker(LITTER)
    home = tmp_path / "tmp"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    left = Path(workers.call("some", {})["path"])
    assert home in left.parents
    assert list(home.iterdir()) == []


def test_every_one_hashes_alike_and_sees_nothing_of_the_callers_python(some_worker, tmp_path, monkeypatch):
    some_worker(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    said = [workers.call("some", {}) for _ in range(2)]
    assert said[0] == said[1]
    assert said[0]["seen"] == ["PYTHONHASHSEED"]
    assert str(tmp_path) not in said[0]["path"]
    assert "" not in said[0]["path"]
    assert said[0]["user"]
