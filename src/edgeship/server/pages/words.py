"""Words, glyphs, times and links that every page uses the same way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from edgeship.charts import Child, Markup, element, fragment

#: State → (glyph, kind). A word always stands beside the glyph; the kind only adds colour.
_STATES: Final = {
    **dict.fromkeys(("completed", "succeeded", "committed", "passed", "available", "online", "ok"), ("✔", "good")),
    **dict.fromkeys(("closed", "already_running", "current"), ("✔", "good")),
    **dict.fromkeys(
        ("halted", "rolled_back", "failed", "rejected", "blocked", "rollback_incomplete", "regressed", "timed_out"),
        ("✖", "bad"),
    ),
    **dict.fromkeys(("lost_after_activate", "inconsistent", "failed_clean", "alert", "open"), ("✖", "bad")),
    **dict.fromkeys(("running", "in_progress", "offered", "offering", "soaking", "judging"), ("●", "run")),
    **dict.fromkeys(("rolling_back", "probation", "activating", "downloading", "verifying", "staged"), ("●", "run")),
    **dict.fromkeys(("paused", "inconclusive", "warn", "fallback", "stale", "waiting_approval"), ("▲", "wait")),
    **dict.fromkeys(("offline", "revoked", "aborted", "canceled", "denied"), ("■", "wait")),
}


def state_word(state: str, *, shown: str = "") -> Markup:
    """Glyph and word of a state.

    >>> state_word("rolled_back")
    '<span class="word word-bad">✖ rolled back</span>'
    """
    glyph, kind = _STATES.get(state, ("○", "wait"))
    return element("span", f"{glyph} {shown or state.replace('_', ' ')}", class_=f"word word-{kind}")


def state_kind(state: str) -> str:
    """``good``, ``bad``, ``run`` or ``wait``.

    >>> state_kind("halted"), state_kind("never heard of")
    ('bad', 'wait')
    """
    return _STATES.get(state, ("○", "wait"))[1]


def clock(at_s: float | None, now_s: float) -> Markup:
    """A time of day (UTC), with the date where it is not today's.

    >>> clock(0.0, 60.0)
    '<time datetime="1970-01-01T00:00:00Z">00:00:00</time>'
    """
    if at_s is None:
        return element("span", "never", class_="muted")
    moment, now = datetime.fromtimestamp(at_s, UTC), datetime.fromtimestamp(now_s, UTC)
    shown = moment.strftime("%H:%M:%S" if moment.date() == now.date() else "%Y-%m-%d %H:%M")
    return element("time", shown, datetime=moment.strftime("%Y-%m-%dT%H:%M:%SZ"))


def clock_text(at_s: float) -> str:
    """A time of day (UTC) as plain text, for charts.

    >>> clock_text(3661.0)
    '01:01:01'
    """
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S")


def duration(seconds: float) -> str:
    """A length of time in its two largest units.

    >>> duration(41), duration(41 * 60 + 5), duration(3 * 3600), duration(90000)
    ('41 s', '41 min 5 s', '3 h', '1 d 1 h')
    """
    parts: list[str] = []
    rest = max(0, round(seconds))
    for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "device"), plural(0, "device")
    ('1 device', '0 devices')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def path(*parts: str) -> str:
    """A path on this server; every part is quoted, so that a name cannot leave its place.

    >>> path("devices", "a/b?<c>")
    '/devices/a%2Fb%3F%3Cc%3E'
    """
    return "/" + "/".join(quote(part, safe="") for part in parts)


def device_link(device_id: str) -> Markup:
    """A device's name, leading to its page."""
    return element("a", device_id, href=path("devices", device_id))


def release_link(model: str, version: str) -> Markup:
    """A release's name, leading to its page."""
    return element("a", f"{model} {version}", href=path("releases", model, version))


def rollout_link(rollout_id: str, text: str = "") -> Markup:
    """A rollout's name, leading to its page."""
    return element("a", text or rollout_id, href=path("rollouts", rollout_id))


def drift_link(device_id: str, model: str, version: str, text: str) -> Markup:
    """The drift of a device and version."""
    return element("a", text, href=path("drift", device_id, model, version))


def subject_link(subject: str) -> Markup:
    """The subject of an event, leading to its page where it has one."""
    kind, _, rest = subject.partition("/")
    pages = {"device": "devices", "rollout": "rollouts", "incident": "incidents"}
    if kind in pages and rest:
        return element("a", rest, href=path(pages[kind], rest))
    model, slash, version = rest.partition("/")
    if kind == "release" and slash:
        return release_link(model, version)
    return fragment(subject)


def short_digest(digest: str) -> Markup:
    """The beginning of a digest; the whole of it is its title."""
    name, _, value = digest.partition(":")
    shown = (value or name)[:12]
    return element("code", shown, title=digest) if shown else element("span", "none", class_="muted")


def command(text: str) -> Markup:
    """The command that does the same."""
    return element("code", text, class_="command")


def rows_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Child]], *, empty: str = "") -> Markup:
    """A table whose first column names the row; on a narrow page every row becomes a block.

    Args:
        caption: what the rows are.
        header: names of the columns.
        rows: cells, as many as there are columns.
        empty: what is said where there are no rows.
    """
    if not rows:
        return element("p", empty or "no data", class_="muted")
    head = element("thead", element("tr", [element("th", name, scope="col") for name in header]))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            [element("td", cell, data_label=name or None) for name, cell in zip(header[1:], row[1:], strict=True)],
        )
        for row in rows
    ]
    table = element("table", element("caption", caption), head, element("tbody", body), class_="rows stack")
    return element("div", table, class_="scroll")


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Names with their values."""
    return element("dl", [fragment(element("dt", name), element("dd", value)) for name, value in pairs], class_="facts")


def section(title: str, *content: Child) -> Markup:
    """A part of a page under its heading."""
    return element("section", element("h2", title), content)
