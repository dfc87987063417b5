"""The commands of ``edgeship-agent``. Results to stdout, all else to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeship_agent.cli_patterns import add_infer, add_stream
from edgeship_agent.contract.errors import ConfigError, EdgeshipError

if TYPE_CHECKING:
    from edgeship_agent.identity.enrol import Wish

_GLYPHS: Final = {"ok": "✔", "warn": "!", "fail": "✖"}
_COLOURS: Final = {"ok": "32", "warn": "33", "fail": "31"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 done, 1 could not be done, 2 usage or configuration, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except EdgeshipError as error:
        sys.stderr.write(f"✖ {error.sentence()}\n")
        if error.next_step:
            sys.stderr.write(f"next: {error.next_step}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def build_parser() -> argparse.ArgumentParser:
    """Commands and options; the documentation is checked against it."""
    parser = argparse.ArgumentParser(
        prog="edgeship-agent",
        description="Runs models on this device, reports telemetry, installs updates that can always be undone.",
        epilog="next: edgeship-agent doctor --config agent.toml",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the agent until it is stopped")
    run.set_defaults(command=_run)
    install = commands.add_parser("install", help="install bundles that lie on this device; no server takes part")
    install.set_defaults(command=_install)
    install.add_argument(
        "bundles", type=Path, nargs="+", metavar="BUNDLE", help="folder of a bundle; several are one release"
    )
    install.add_argument(
        "--author-key", type=Path, metavar="FILE", help="whose bundles are taken (default: author_key)"
    )
    install.add_argument("--force", action="store_true", help="try a bundle again that failed on this device")
    status = commands.add_parser("status", help="what the running agent says of itself")
    status.set_defaults(command=_status)
    add_infer(commands)
    add_stream(commands)
    doctor = commands.add_parser("doctor", help="what is wrong with this device, and the command that mends it")
    doctor.set_defaults(command=_doctor)
    enroll = commands.add_parser("enroll", help="become a device of a fleet, with a token of its operator")
    enroll.set_defaults(command=_enroll)
    enroll.add_argument("url", metavar="URL", help="of the fleet's enrolment service: https://HOST:8444")
    enroll.add_argument("--token", required=True, help="from: edgeship devices enroll; @FILE reads it from a file")
    enroll.add_argument("--target", required=True, help="id of the hardware target, such as raspberry-pi-5")
    enroll.add_argument("--device-id", default="", help="name in the fleet (default: the host's; auto: of machine-id)")
    enroll.add_argument(
        "--state-dir", type=Path, default=Path("/var/lib/edgeship"), help="(default: /var/lib/edgeship)"
    )
    enroll.add_argument("--wait-s", type=float, default=600.0, help="for an operator's approval (default: 600)")
    enroll.add_argument("--config", type=Path, default=Path("agent.toml"), help="to write (default: agent.toml)")
    enroll.add_argument("--json", action="store_true", help="one JSON document on stdout")
    unit = commands.add_parser("unit", help="print a systemd unit for this device")
    unit.set_defaults(command=_unit)
    unit.add_argument("--user", default="edgeship", help="who runs the agent (default: edgeship)")
    for command in (run, install, status, doctor, unit):
        command.add_argument("--config", required=True, type=Path, help="agent.toml")
    for command in (install, status, doctor):
        command.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _enroll(options: argparse.Namespace) -> int:
    import time

    from edgeship_agent.contract.enrolment import Token
    from edgeship_agent.identity.enrol import Wish, enrol, enrolled_already, own_device_id
    from edgeship_agent.update.trust import EARLIEST_S

    device_id = own_device_id(options.device_id)
    wish = Wish(url=options.url, token=Token.parse(_token_text(options.token)), device_id=device_id,
                target=options.target, state_dir=options.state_dir.absolute(), config=options.config.absolute(),
                wait_s=options.wait_s)  # fmt: skip
    before = enrolled_already(wish)
    if before is not None:
        _say_what_stays(wish)
    done = before or enrol(wish, time.time(), EARLIEST_S, _say)
    if options.json:
        _write_json({"schema_version": 1, "state": done.state, "device_id": done.device_id, "key": done.key,
                     "tags": done.tags, "config": str(wish.config)})  # fmt: skip
    elif done.state == "enrolled":
        _line("ok", "enrolled", f"{done.device_id} (key {done.key[:16]}), configuration in {wish.config}")
        sys.stdout.write(f"next: edgeship-agent run --config {wish.config}\n")
    else:
        _line("warn", "pending", f"{done.device_id} (key {done.key[:16]}) waits for an operator's approval")
        sys.stdout.write(
            f"next: edgeship devices approve {done.device_id}   (on the server), then this command again\n"
        )
    return 0 if done.state == "enrolled" else 1


def _say_what_stays(wish: Wish) -> None:
    """A second enrolment changes nothing; who meant to mend the target with it must hear that."""
    from edgeship_agent.config import read_config

    target = read_config(wish.config).target
    if target != wish.target:
        _say(f"enrolled before: the target stays {target}; to change it, edit target in {wish.config}")


def _say(text: str) -> None:
    sys.stderr.write(f"… {text}\n")


def _token_text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=given[1:], key="--token") from error


def _run(options: argparse.Namespace) -> int:
    from edgeship_agent.config import read_config
    from edgeship_agent.supervisor.run import run_agent

    return run_agent(read_config(options.config))


def _unit(options: argparse.Namespace) -> int:
    from edgeship_agent.config import read_config
    from edgeship_agent.service_unit import unit_file

    config = read_config(options.config)
    program = Path(sys.executable).with_name("edgeship-agent")
    sys.stdout.write(unit_file(program, options.config.absolute(), config.state_dir, options.user))
    sys.stderr.write("next: sudo systemctl daemon-reload && sudo systemctl enable --now edgeship-agent\n")
    return 0


def _install(options: argparse.Namespace) -> int:
    import msgspec

    from edgeship_agent.config import read_config
    from edgeship_agent.supervisor.install import exit_code_of, install_bundles

    config = read_config(options.config)
    ends = install_bundles(config, options.bundles, options.author_key, force=options.force)
    code = exit_code_of(ends)
    if options.json:
        attempts = [msgspec.to_builtins(end) for end in ends]
        _write_json({"schema_version": 1, "exit_code": code, "attempt": attempts[0], "attempts": attempts})
        return code
    for ended in ends:
        why = ended.detail or ended.reason
        said = f"{ended.model} {ended.version} {ended.state.value}{': ' + why if why else ''}"
        _line("ok" if code == 0 else "fail", "install", said)
    for ended in ends if code else ():
        if ended.previous_version:
            _line("ok", "model", f"{ended.model} {ended.previous_version} is kept")
    sys.stdout.write(f"next: edgeship-agent run --config {options.config}\n")
    return code


def _status(options: argparse.Namespace) -> int:
    from edgeship_agent.config import read_config
    from edgeship_agent.supervisor.places import Places
    from edgeship_agent.supervisor.status import is_alive, read_status

    config = read_config(options.config)
    document = read_status(Places(config.state_dir).status)
    if document is None:
        raise EdgeshipError(
            "no agent has run with this state directory",
            file=config.state_dir,
            next_step=f"edgeship-agent run --config {options.config}",
        )
    document["alive"] = is_alive(int(document["pid"]))
    if options.json:
        _write_json(document)
    else:
        _print_status(document, options.config)
    return 0 if document["alive"] else 1


def _print_status(document: dict[str, Any], config: Path) -> None:
    alive = document["alive"]
    link = "connected" if document["connected"] else "no broker"
    said = f"running, process {document['pid']}, {link}" if alive else "not running"
    _line("ok" if alive else "fail", document["device_id"], said)
    for arm in document["running"] if alive else []:
        retained = f", {arm['retained_version']} retained" if arm["retained_version"] else ", nothing to roll back to"
        _line("ok", "model", f"{arm['model']} {arm['version']} ({arm['variant']}), {arm['state']}{retained}")
        if arm["fallback"]:
            _line("warn", "fallback", f"the variant that the build chose failed on this device: {arm['fallback']}")
    if alive and not document["running"]:
        _line("warn", "model", "none")
    for attempt in document["attempts"][-3:]:
        why = f": {attempt['detail'] or attempt['reason']}" if attempt["reason"] or attempt["detail"] else ""
        state = "ok" if attempt["state"] == "committed" else "warn"
        _line(state, "update", f"{attempt['model']} {attempt['version']} {attempt['state']}{why}")
    outbox = document["outbox"]
    counts = " · ".join(f"{outbox[name]} {name}" for name in ("created", "acknowledged", "evicted", "waiting"))
    _line("ok", "windows", counts)
    _line("ok", "socket", document["socket"])
    follow = "infer --input x.npy" if document["running"] and alive else ("doctor" if alive else "run")
    command, _, rest = follow.partition(" ")
    sys.stdout.write(f"next: edgeship-agent {command} --config {config}{' ' + rest if rest else ''}\n")


def _doctor(options: argparse.Namespace) -> int:
    import msgspec

    from edgeship_agent.doctor import examine

    checks = examine(options.config)
    failed = [check for check in checks if check.state == "fail"]
    if options.json:
        _write_json({"schema_version": 1, "ok": not failed, "checks": [msgspec.structs.asdict(c) for c in checks]})
    else:
        for check in checks:
            _line(check.state, check.name, check.detail)
            if check.mend:
                sys.stdout.write(f"    mend: {check.mend}\n")
    if not failed:
        return 0
    return ConfigError.exit_code if failed[0].name == "configuration" else EdgeshipError.exit_code


def _line(state: str, name: str, text: str) -> None:
    glyph, word = _GLYPHS[state], f"{state:<4}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        glyph = f"\x1b[{_COLOURS[state]}m{glyph}\x1b[0m"
    sys.stdout.write(f"{glyph} {word} {name:<16} {text}\n")


def _write_json(document: object) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


if __name__ == "__main__":
    sys.exit(main())
