"""The whole page: one file, no script, no request to anywhere, light and dark."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgeship.build.report import closer, sections
from edgeship.build.schema import BuildDocument
from edgeship.charts import STYLESHEET, Markup, element, fragment

_LAYOUT: Final = """\
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--es-ground); color: var(--es-ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--es-rule); }
p { margin: 0 0 .75rem; }
.verdict { display: inline-block; padding: 0 .5rem; border: 2px solid currentColor; border-radius: .25rem; }
.note { color: var(--es-muted); }
dl {
  display: grid; grid-template-columns: minmax(5rem, max-content) minmax(0, 1fr); gap: .25rem 1rem; margin: 0 0 1rem;
}
dt { color: var(--es-muted); }
dd { margin: 0; }
code { font: .9em ui-monospace, monospace; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
.scroll table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
.scroll th, .scroll td {
  text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--es-rule);
  font-variant-numeric: tabular-nums;
}
.scroll .words td:last-child { min-width: 16rem; }
main details { margin: 0 0 .5rem; } main summary { cursor: pointer; min-height: 24px; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin: 0 0 .5rem; } .es-text { font-size: 11px; }
  .scroll td:nth-child(2) { min-width: 9rem; } .scroll td:last-child { min-width: 14rem; }
}
"""


def write_report(
    document: BuildDocument, path: Path, *, latencies_ms: Mapping[str, Sequence[float]] | None = None
) -> Path:
    """Write the report; the file appears whole or not at all.

    Args:
        document: the build.
        path: the ``.html`` file.
        latencies_ms: variant label (``target/runtime/precision``) → time of every measured inference, in ms.

    Raises:
        OSError: the file cannot be written.
    """
    page = render_report(document, latencies_ms=latencies_ms)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary = Path(name)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def render_report(document: BuildDocument, *, latencies_ms: Mapping[str, Sequence[float]] | None = None) -> str:
    """The page as text; see :func:`write_report`."""
    style = STYLESHEET + _LAYOUT
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{document.name} {document.version}: {document.verdict} – Edgeship build report".strip()),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        sections.header(document),
        element(
            "main",
            sections.targets(document, latencies_ms or {}),
            sections.trade_offs(document),
            closer.sensitivity(document),
            closer.confusions(document),
            sections.class_recalls(document),
            sections.refused(document),
            sections.gates(document),
            sections.lineage(document),
        ),
    )
    return "<!doctype html>\n" + fragment(element("html", head, body, lang="en")) + "\n"
