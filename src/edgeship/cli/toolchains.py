"""``edgeship toolchains``: converters in environments of their own."""

from __future__ import annotations

import click

from edgeship.cli import console


@click.group(invoke_without_command=True)
@click.pass_context
def toolchains(context: click.Context) -> None:
    """List, install, check and remove converters that live in environments of their own."""
    if context.invoked_subcommand is None:
        context.invoke(list_toolchains, as_json=False)


@toolchains.command("list")
@console.json_option
def list_toolchains(as_json: bool) -> None:
    """Which converters there are, and whether they are installed."""
    from edgeship.build.toolchains import TOOLCHAINS, status

    found = [status(name) for name in TOOLCHAINS]
    if as_json:
        console.result_json({"schema_version": 1, "toolchains": found})
        return
    rows = [(each.name, "installed" if each.installed else "not installed", f"{each.size_bytes // 10**6} MB",
             each.purpose, each.folder) for each in found]  # fmt: skip
    console.table(("NAME", "STATE", "SIZE", "PURPOSE", "FOLDER"), rows)
    missing = next((each.name for each in found if not each.installed), None)
    console.next_steps(
        f"edgeship toolchains install {missing}" if missing else f"edgeship toolchains check {found[0].name}"
    )


@toolchains.command("install")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def install_toolchains(names: tuple[str, ...]) -> None:
    """Create converters' environments from their hashed locks."""
    from edgeship.build.toolchains import check, install, status

    found = [status(name) for name in dict.fromkeys(names)]  # an unknown name ends it before anything is installed
    for each in found:
        if each.installed:
            console.step("installed", f"{each.name} is there already", "note")
        else:
            console.note(f"installing {each.name}, about {each.size_bytes // 10**6} MB")
            install(each.name)
        console.step("checked", check(each.name))
        console.result(each.folder)
    console.next_steps("edgeship targets list")


@toolchains.command("check")
@click.argument("name")
def check_toolchain(name: str) -> None:
    """Import a converter in its environment."""
    from edgeship.build.toolchains import check

    console.result(check(name))
    console.next_steps("edgeship targets list")


@toolchains.command("remove")
@click.argument("name")
def remove_toolchain(name: str) -> None:
    """Delete a converter's environment."""
    from edgeship.build.toolchains import remove

    console.result(f"{name} removed" if remove(name) else f"{name} was not installed")
    console.next_steps(f"edgeship toolchains install {name}")
