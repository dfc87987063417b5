"""``edgeship-agent infer``: a question to the running agent, or a model over many rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgeship_agent.contract.errors import ConfigError, InputError


def add_infer(commands: Any) -> None:
    """Add ``infer`` to the commands."""
    infer = commands.add_parser(
        "infer",
        help="run a model over a folder, a table or an array file; or ask the running agent",
        description="BUNDLE INPUT -o OUT runs a model over many rows, in this process: killed anywhere, the same "
        "command goes on where it stopped. --config FILE --input FILE asks the running agent. Exit codes: 0 done, "
        "1 could not be done, 2 usage, or done with bad rows, 130 interrupted.",
    )
    infer.set_defaults(command=_infer)
    infer.add_argument("model", nargs="?", metavar="BUNDLE", help="folder of a bundle or slot; or, with --config, "
                       "a model that this device serves")  # fmt: skip
    infer.add_argument("rows", nargs="?", type=Path, metavar="INPUT", help="a folder, .csv, .parquet or .npz")
    infer.add_argument("-o", "--output", type=Path, metavar="OUT", help=".jsonl, .csv, .npz or .parquet")
    infer.add_argument("--key", default="", metavar="COLUMN", help="column that names a table's rows")
    infer.add_argument(
        "--variant", default="", metavar="LABEL", help="of the bundle (default: the first that runs here)"
    )
    infer.add_argument("--threads", type=int, default=1, help="of the runtime, for one row (default: 1)")
    infer.add_argument("--restart", action="store_true", help="forget an unfinished run, replace its output")
    infer.add_argument("--input", type=Path, help="x.npy, or x.npz with one array per model input: for the agent")
    infer.add_argument("--timeout-s", type=float, default=5.0, help="per prediction of the agent (default: 5)")
    infer.add_argument("--config", type=Path, help="agent.toml")
    infer.add_argument("--json", action="store_true", help="one JSON document on stdout")


def add_stream(commands: Any) -> None:
    """Add ``stream`` to the commands."""
    stream = commands.add_parser(
        "stream",
        help="run a model over a stream: stdin, a watched folder or an MQTT topic",
        description="Predictions go to stdout or to a topic, one JSON document each; the summary, with the delay from "
        "end to end, to stderr (or with --json, as its last line), and with --config into the agent's telemetry too. "
        "Exit codes: 0 the source ended, 1 could not be done, 2 usage, or ended with bad messages, 130 interrupted.",
    )
    stream.set_defaults(command=_stream)
    stream.add_argument("model", metavar="BUNDLE", help="folder of a bundle or slot; or, with --config, a model that "
                        "this device serves")  # fmt: skip
    stream.add_argument("source", metavar="SOURCE", help="- for stdin, a folder, or mqtt://HOST:PORT/TOPIC")
    stream.add_argument("sink", nargs="?", default="-", metavar="SINK", help="- for stdout, or mqtt://HOST:PORT/TOPIC")
    stream.add_argument("--bytes", action="store_true", help="a message is the bytes of the input; on stdin, behind "
                        "its length in four bytes")  # fmt: skip
    stream.add_argument("--queue", type=int, default=64, help="messages that may wait (default: 64)")
    stream.add_argument("--drop", action="store_true", help="drop the oldest where stdin or a folder is too fast")
    stream.add_argument("--count", type=int, default=0, help="end after so many predictions (default: never)")
    stream.add_argument("--report-s", type=float, default=10.0, help="between two reports (default: 10)")
    stream.add_argument("--variant", default="", metavar="LABEL", help="of the bundle (default: first that runs here)")
    stream.add_argument("--threads", type=int, default=1, help="of the runtime, for one sample (default: 1)")
    stream.add_argument("--config", type=Path, help="agent.toml")
    stream.add_argument("--json", action="store_true", help="the summary as a line of JSON on stdout, the last one")


def _stream(options: argparse.Namespace) -> int:
    from edgeship_agent.patterns.command import run_stream

    if options.queue < 1 or options.threads < 1:
        raise ConfigError("too few", key="--queue, --threads", expected="≥ 1")
    place = model_place(options)
    if options.config is None:
        return run_stream(options, place, say)
    from edgeship_agent.config import read_config
    from edgeship_agent.supervisor.places import find_socket

    return run_stream(options, place, say, find_socket(read_config(options.config).state_dir))


def _infer(options: argparse.Namespace) -> int:
    if options.model is None:
        return _ask(options)
    if options.rows is None or options.output is None:
        raise ConfigError("a batch needs an input and an output", key="infer", expected="BUNDLE INPUT -o OUT")
    if options.threads < 1:
        raise ConfigError("too few", key="--threads", expected="≥ 1", got=options.threads)
    return _batch(options)


def _ask(options: argparse.Namespace) -> int:
    if options.config is None or options.input is None:
        raise ConfigError("nothing to run", key="infer", expected="BUNDLE INPUT -o OUT, or --config FILE --input FILE")
    from edgeship_agent.config import read_config
    from edgeship_agent.supervisor.asking import ask, read_samples
    from edgeship_agent.supervisor.places import find_socket

    config = read_config(options.config)
    samples = read_samples(options.input)
    answers = ask(config.state_dir, find_socket(config.state_dir), samples, options.timeout_s)
    if options.json:
        write_json({"schema_version": 1, "answers": answers})
        return 0
    for answer in answers:
        outputs = "  ".join(f"{name}={_short(values)}" for name, values in answer["outputs"].items())
        sys.stdout.write(f"{answer['model']} {answer['version']}  {answer['latency_us']} µs  {outputs}\n")
    return 0


def _batch(options: argparse.Namespace) -> int:
    import time

    import msgspec

    from edgeship_agent.patterns.batch import Batch
    from edgeship_agent.patterns.model import open_model
    from edgeship_agent.patterns.outcome import check_kind
    from edgeship_agent.patterns.rows import open_rows

    check_kind(options.output)
    if options.rows.is_dir() and options.output.resolve().is_relative_to(options.rows.resolve()):
        raise ConfigError("the output would lie in the input folder", file=options.output, key="--output")
    with open_model(model_place(options), variant=options.variant, threads=options.threads) as model:
        rows = open_rows(options.rows, model.manifest, options.key)
        summary = Batch(model, rows, options.output, time.monotonic, say).run(restart=options.restart)
    code = InputError.exit_code if summary.bad else 0
    if options.json:
        write_json(msgspec.to_builtins(summary) | {"exit_code": code})
    else:
        sys.stdout.write(f"{summary.model} {summary.version}  {summary.rows} rows, {summary.bad} bad  "
                         f"{summary.seconds:.1f} s  {summary.output}\n")  # fmt: skip
    return code


def model_place(options: argparse.Namespace) -> Path:
    """Where the model lies: a path, or with ``--config`` the slot of a model that this device serves.

    Raises:
        ConfigError: this device serves no such model.
    """
    if options.config is None:
        return Path(options.model)
    from edgeship_agent.config import read_config
    from edgeship_agent.supervisor.places import Places
    from edgeship_agent.update.slots import Slots
    from edgeship_agent.update.traffic import MAIN_ARM

    slots = Slots(Places(read_config(options.config).state_dir).slots)
    arms = slots.arms()
    for model, arm in sorted(arms, key=lambda each: each[1] != MAIN_ARM):
        slot = slots.active(model, arm) if model == options.model else None
        if slot is not None:
            return slot.directory
    known = ", ".join(sorted({model for model, _ in arms})) or "none"
    raise ConfigError("this device serves no such model", key="BUNDLE", expected=known, got=options.model)


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"… {text}\n")
    sys.stderr.flush()


def write_json(document: object) -> None:
    """The result as one JSON document on stdout."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def _short(values: Any) -> str:
    text = str(values)
    return text if len(text) <= 100 else text[:97] + "..."
