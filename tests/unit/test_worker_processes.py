"""The processes in which converters run."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from edgeship.build.toolchains import workers

SCRIPT = """
import json, os, sys
json.load(sys.stdin)
seen = sorted(name for name in os.environ if name.startswith("PYTHON"))
print(json.dumps({"ok": True, "hash": hash("a"), "seen": seen, "path": sys.path, "user": sys.flags.no_user_site}))
"""


def test_every_one_hashes_alike_and_sees_nothing_of_the_callers_python(tmp_path, monkeypatch):
    (tmp_path / "some_worker.py").write_text(SCRIPT)
    monkeypatch.setattr(workers.resources, "files", lambda _package: tmp_path)
    monkeypatch.setattr(workers, "named", lambda _name: SimpleNamespace(python=sys.executable))
    monkeypatch.setattr(workers, "is_installed", lambda _environment: True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    said = [workers.call("some", {}) for _ in range(2)]
    assert said[0] == said[1]
    assert said[0]["seen"] == ["PYTHONHASHSEED"]
    assert str(tmp_path) not in said[0]["path"]
    assert "" not in said[0]["path"]
    assert said[0]["user"]
