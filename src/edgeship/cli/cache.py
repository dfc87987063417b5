"""``edgeship cache``: what builds have kept."""

from __future__ import annotations

import shutil
import time
from typing import Any

import click

from edgeship.cli import console
from edgeship_agent.contract.errors import ConfigError, VerificationError


@click.group(invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> None:
    """List, check and clear what builds have kept."""
    if context.invoked_subcommand is None:
        context.invoke(list_cache, as_json=False)


@cache.command("list")
@console.json_option
def list_cache(as_json: bool) -> None:
    """What is kept, by pass."""
    from edgeship.build.cache.basis import root
    from edgeship.build.cache.store import entries

    folder = root()
    passes: dict[str, dict[str, Any]] = {}
    for each in entries(folder):
        one = passes.setdefault(each.entry.name, {"entries": 0, "bytes": 0, "seconds": 0.0, "used_at_s": 0.0})
        one["entries"] += 1
        one["bytes"] += each.size_bytes
        one["seconds"] = round(one["seconds"] + each.entry.seconds, 3)
        one["used_at_s"] = max(one["used_at_s"], each.used_at_s)
    total = sum(each["bytes"] for each in passes.values())
    if as_json:
        console.result_json({"schema_version": 1, "folder": str(folder), "bytes": total, "passes": passes})
        return
    rows = [(name, str(each["entries"]), f"{each['bytes'] / 1e6:.1f} MB", f"{each['seconds']:.1f} s",
             time.strftime("%Y-%m-%d %H:%M", time.localtime(each["used_at_s"])))
            for name, each in sorted(passes.items())]  # fmt: skip
    if not rows:
        console.note(f"nothing is kept in {folder}")
        console.next_steps("edgeship build")
        return
    console.table(("PASS", "ENTRIES", "SIZE", "WORK", "LAST USED"), rows)
    console.result(f"{total / 1e6:.1f} MB in {folder}")
    console.next_steps(f"edgeship explain cache/{rows[0][0]}", "edgeship cache check")


@cache.command("check")
@console.json_option
def check_cache(as_json: bool) -> None:
    """Hash everything that is kept, and remove what is damaged; a build does so with what it uses."""
    from edgeship.build.cache.basis import root
    from edgeship.build.cache.store import damaged

    folder = root()
    bad = damaged(folder)
    for each in bad:
        shutil.rmtree(each, ignore_errors=True)
    if as_json:
        console.result_json({"schema_version": 1, "folder": str(folder), "damaged": [str(each) for each in bad]})
    if bad:
        raise VerificationError(f"{len(bad)} damaged entries, removed", file=folder,
                                next_step="look at the disk: smartctl, dmesg")  # fmt: skip
    if not as_json:
        console.result(f"every entry in {folder} is what was written")
        console.next_steps("edgeship cache list")


@cache.command("clear")
@click.argument("passes", nargs=-1, metavar="[PASS]...")
def clear_cache(passes: tuple[str, ...]) -> None:
    """Remove everything that is kept, or what these passes made: `latency` measures anew."""
    from edgeship.build.cache.basis import root
    from edgeship.build.cache.store import entries

    folder = root()
    known = {each.entry.name for each in entries(folder)}
    unknown = [each for each in passes if each not in known]
    if unknown:
        raise ConfigError("nothing is kept of this pass", key=unknown[0], expected=", ".join(sorted(known)) or "none",
                          next_step="edgeship cache list")  # fmt: skip
    for name in passes or known:
        shutil.rmtree(folder / name, ignore_errors=True)
    console.result(f"removed: {', '.join(passes) if passes else 'everything'}")
    console.next_steps("edgeship cache list")
