"""Every page in a real browser: nothing fails, nothing comes from elsewhere, nothing is cut off, light and dark."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from edgeship.server.store import schema
from tests.browser import fleet
from tests.browser.chromium import Tab
from tests.browser.conftest import Site
from tests.browser.fleet_arms import AB_ROLLOUT, SHADOW_ROLLOUT

pytestmark = pytest.mark.browser

PAGES = (
    "/",
    "/rollouts",
    "/rollouts/r3",
    "/rollouts/r2",
    "/devices",
    "/devices/gate-south",
    "/devices/%3Cscript%3Ealert%281%29%3Cscript%3E",
    "/releases",
    "/releases/digits/v3",
    "/drift",
    "/drift/gate-south/digits/v2",
    "/drift/gate-north/digits/v3?signal=output%2Fclass",
    "/incidents",
    "/incidents/1",
    "/events",
)

#: Elements that reach beyond the window and are not inside something that scrolls by itself.
_WIDER = """
[...document.querySelectorAll('body *')].filter((part) =>
  part.getBoundingClientRect().right > window.innerWidth + 1 && part.getBoundingClientRect().width > 0
  && !part.closest('.scroll, .es-scroll, .skip, svg')).map((part) => part.outerHTML.slice(0, 120))
"""
_SMALL_TARGETS = """
[...document.querySelectorAll('button, summary, nav a')].filter((part) =>
  part.getBoundingClientRect().height > 0 && part.getBoundingClientRect().height < 24).length
"""
_UNNAMED_CHARTS = """
[...document.querySelectorAll('svg[role=img]')].filter((part) =>
  part.children[0].tagName !== 'title' || part.children[1].tagName !== 'desc' || !part.children[1].textContent).length
"""


ARM_PAGES = (
    f"/rollouts/{AB_ROLLOUT}",
    f"/rollouts/{SHADOW_ROLLOUT}",
    "/releases/digits/v3",
    "/devices/line-1",
    "/devices/gate-south",
    "/drift",
)


#: What is wanted of every page, whatever its width.
FAULTLESS = {
    "requests elsewhere": [],
    "problems": [],
    "scrolls sideways": False,
    "wider than the window": [],
    "small targets": 0,
    "unnamed charts": 0,
    "first headings": 1,
}


def looked_at(address: str, browser: Tab, path: str, shots: Path, name: str) -> dict[str, dict[str, object]]:
    """Open a page at every width, light and dark: what was found there of what is held against every page."""
    found: dict[str, dict[str, object]] = {}
    for width in (1280, 320):
        for dark in (False, True):
            browser.look(width=width, dark=dark)
            browser.open(address + path)
            browser.screenshot(shots / f"{name}-{width}-{dark}.png"[-100:])
            found[f"{width} {'dark' if dark else 'light'}"] = {
                "requests elsewhere": [url for url in browser.requests if not url.startswith((address, "data:"))],
                "problems": list(browser.problems),
                "scrolls sideways": browser.evaluate("document.documentElement.scrollWidth") > width,
                "wider than the window": browser.evaluate(_WIDER),
                "small targets": browser.evaluate(_SMALL_TARGETS),
                "unnamed charts": browser.evaluate(_UNNAMED_CHARTS),
                "first headings": browser.evaluate("document.querySelectorAll('h1').length"),
            }
    return found


@pytest.mark.parametrize("path", PAGES)
def test_every_page_loads_cleanly_at_every_width_light_and_dark(
    site: Site, browser: Tab, shots: Path, path: str
) -> None:
    found = looked_at(site.address, browser, path, shots, path.strip("/").replace("/", "-") or "fleet")
    assert found == dict.fromkeys(("1280 light", "1280 dark", "320 light", "320 dark"), FAULTLESS)


@pytest.mark.parametrize("path", ARM_PAGES)
def test_pages_of_two_versions_side_by_side(arms_site: Site, browser: Tab, shots: Path, path: str) -> None:
    found = looked_at(arms_site.address, browser, path, shots, "arms-" + path.strip("/").replace("/", "-"))
    assert found == dict.fromkeys(("1280 light", "1280 dark", "320 light", "320 dark"), FAULTLESS)


def test_pages_say_what_two_versions_did(arms_site: Site) -> None:
    with httpx.Client(base_url=arms_site.address, trust_env=False) as client:
        device = client.get("/devices/line-1").text
        for said in ("80 % of traffic", "20 % of traffic", "digits, beside it", "accuracy 92 %", "died with a worker",
                     "rework minutes per hundred parts: mean 2 (95 %", "91.2 MB", "7.3 %", "54.5 °C"):  # fmt: skip
            assert said in device, said
        assert "Delay of a stream" in device
        assert "digits v2 p50 12" in device
        assert "shall run" not in device
        assert "never ended by a power cut or a kill" in device
        assert "ended by a power cut or a kill 2 times" in client.get("/devices/line-2").text
        shadow = client.get("/devices/gate-south").text
        assert "copies of 10 % of inputs" in shadow
        assert "Delay of a stream" not in shadow
        release = client.get("/releases/digits/v3").text
        assert "relative RMS" in release
        assert "inputs over its budget" in release
        split = client.get(f"/rollouts/{AB_ROLLOUT}").text
        assert "150 and 150" in split
        beside = client.get(f"/rollouts/{SHADOW_ROLLOUT}").text
        assert "what the shadow answers reaches nobody" in beside
        assert "no data" in beside, "nobody labels what a shadow says, and other devices do not count"
        assert "150 and 150" not in beside


def test_dark_and_light_differ(site: Site, browser: Tab) -> None:
    grounds = []
    for dark in (False, True):
        browser.look(width=1280, dark=dark)
        browser.open(site.address)
        grounds.append(browser.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(18, 24, 31)"]


def test_the_first_sentence_of_the_halted_rollout_says_what_why_number_and_limit(site: Site, browser: Tab) -> None:
    browser.open(f"{site.address}/rollouts/r3")
    first = browser.evaluate("document.querySelector('main p').textContent")
    assert first == (
        "digits v3 was halted at stage 1 of 2 (50 %): prediction drift 0.43 (99 % 0.37…0.49, n = 500) on gate-north "
        "exceeds the limit 0.1 (3 of 3 devices)."
    )
    second = browser.evaluate("document.querySelectorAll('main p')[1].textContent")
    assert "every one of them is back on v2" in second
    assert "digits v3 is blocked" in second


def test_a_name_that_is_a_script_is_text(site: Site, browser: Tab) -> None:
    browser.open(f"{site.address}/devices")
    assert browser.evaluate(f"document.body.textContent.includes({fleet.EVIL!r})")
    assert browser.evaluate("document.querySelectorAll('main script').length") == 0


def test_every_link_of_the_pages_leads_somewhere(site: Site, browser: Tab) -> None:
    links: set[str] = set()
    for path in PAGES:
        browser.open(site.address + path)
        links |= set(browser.evaluate("[...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))"))
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        broken = {link: client.get(link).status_code for link in links if link.startswith("/")}
    assert {link: code for link, code in broken.items() if code != 200} == {}
    assert {link for link in links if not link.startswith(("/", "#"))} == set()


def test_a_page_follows_the_database_and_keeps_what_was_opened(site: Site, browser: Tab) -> None:
    browser.look(width=1280)
    browser.open(f"{site.address}/rollouts/r3")
    browser.evaluate("document.querySelector('#live details').open = true")
    with site.context.write() as connection:
        changed = update(schema.rollout_devices).where(schema.rollout_devices.c.device_id == "line-2")
        connection.execute(changed.values(reason="seen by the test"))
    browser.wait_for("document.body.textContent.includes('seen by the test')")
    assert browser.evaluate("document.querySelector('#live details').open")
    assert browser.problems == []


def test_an_unchanged_page_is_not_sent_again(site: Site) -> None:
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        whole = client.get("/rollouts/r2")
        poll = whole.text.split('hx-get="')[1].split('"')[0].replace("&amp;", "&")
        assert client.get(poll).status_code == 204
        assert client.get(poll.replace("seen=", "seen=0")).text.startswith('<div id="live"')


def test_the_pages_work_without_scripts(site: Site, browser: Tab) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(f"{site.address}/rollouts/r3")
        assert browser.problems == []
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    with httpx.Client(trust_env=False) as client:
        assert "was halted at" in client.get(f"{site.address}/rollouts/r3").text


def test_what_is_not_there_is_said_on_a_page(site: Site) -> None:
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        for path in ("/rollouts/r99", "/devices/nobody", "/releases/a/b", "/incidents/99", "/drift/a/b/c"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert "There " in answer.text
            assert "<nav" in answer.text


def test_nothing_inline_and_nothing_foreign_is_allowed(site: Site) -> None:
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in answer.text


def test_a_button_changes_the_rollout_and_leads_back_to_its_page(site: Site, browser: Tab) -> None:
    with site.context.write() as connection:
        running = update(schema.rollouts).where(schema.rollouts.c.id == "r2")
        connection.execute(running.values(state="running", stage_states=["passed", "soaking"], ended_at_s=None))
    browser.look(width=1280)
    browser.open(f"{site.address}/rollouts/r2")
    assert browser.evaluate("document.querySelector('button.primary').textContent") == "Pause"
    browser.act("document.querySelector('button.primary').click()")
    assert browser.evaluate("document.querySelector('h1').textContent").endswith("paused")
    assert browser.evaluate("document.querySelector('button.primary').textContent") == "Resume"
    assert browser.problems == []


def test_a_page_of_another_site_cannot_press_a_button(site: Site) -> None:
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        answer = client.post("/rollouts/r2/abort", headers={"origin": "http://elsewhere.example"})
    assert answer.status_code == 403
