"""What is refused as it is typed: limits that nothing keeps to, empty paths, and IDs of no form."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from edgeship.cli.build import build
from edgeship.cli.explain import explain
from edgeship_agent.contract.errors import ConfigError

SETS = ["net.onnx", "-t", "intel-nuc", "--calibration", "c.npz", "--evaluation", "e.npz"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-drop", "nan"), ("--max-drop", "inf"), ("--latency-p99-ms", "inf"), ("--latency-p99-ms", "nan"),
     ("--max-relative-rms", "inf"), ("--max-relative-rms", "nan"), ("--step-timeout-s", "nan")],
)  # fmt: skip
def test_a_limit_is_a_finite_number(option: str, value: str) -> None:
    done = CliRunner().invoke(build, [*SETS, option, value])
    assert done.exit_code == 2
    assert f"'{option}': {value} is no limit" in done.output


@pytest.mark.parametrize("option", ["--calibration", "--evaluation", "--unlabelled"])
def test_an_empty_path_is_not_the_current_folder(option: str) -> None:
    done = CliRunner().invoke(build, [*SETS, option, ""])
    assert isinstance(done.exception, ConfigError)
    assert (done.exception.exit_code, done.exception.key) == (2, option)


@pytest.mark.parametrize(
    ("subject", "next_step"),
    [("top1", "edgeship explain build/top1"), ("gate/top1", "edgeship explain build/gate/top1"),
     ("rollout/", "edgeship explain rollout/ID[/GATE]"), ("refusal", "edgeship explain refusal/DEVICE/ATTEMPT")],
)  # fmt: skip
def test_an_id_of_no_form_is_refused_before_any_server_is_asked(subject: str, next_step: str) -> None:
    done = CliRunner().invoke(explain, [subject, "--server", "http://127.0.0.1:9"])
    assert isinstance(done.exception, ConfigError)
    assert (done.exception.exit_code, done.exception.next_step) == (2, next_step)
    for form in ("build/GATE[@DIR]", "cache/PASS", "rollout/ID[/GATE]", "incident/ID", "refusal/DEVICE/ATTEMPT"):
        assert form in str(done.exception.expected)
