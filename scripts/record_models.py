"""Build every model of the test data for every shipped target and write docs/reference/models.json.

    python scripts/record_models.py                 what is not recorded yet
    python scripts/record_models.py --fresh         everything again
    python scripts/record_models.py --only silero   names that begin so

One record a model, written as soon as it is there: a run that was stopped goes on where it was. ``make docs`` turns the
records into docs/reference/models.md. The folder of the test data is EDGESHIP_TEST_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from model_matrix.cases import CASES
from model_matrix.record import build

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", ROOT.parent / "shared" / "data"))
RECORD = ROOT / "docs" / "reference" / "models.json"
LIMIT_S = 900.0


def main() -> None:
    """Record what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="build again what is recorded")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="names that begin so; repeatable")
    parser.add_argument("--record", type=Path, default=RECORD, help="file to write")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for one model")
    asked = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no test data in {DATA}; next: set EDGESHIP_TEST_DATA")
    for case in CASES:
        if asked.only and not case.name.startswith(tuple(asked.only)):
            continue
        if case.name in _read(asked.record) and not asked.fresh:
            continue
        made = build(case, DATA, asked.limit_s)
        records = _read(asked.record) | {case.name: made}  # read again: another run may have written meanwhile
        _write(asked.record, records)
        found = records[case.name]
        print(case.name, found["outcome"], found.get("reason", ""), f"{found.get('seconds', 0)} s", flush=True)  # noqa: T201


def _read(path: Path) -> dict[str, dict[str, object]]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _write(path: Path, records: dict[str, dict[str, object]]) -> None:
    order = [case.name for case in CASES]
    known = {name: records[name] for name in order if name in records}
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    main()
