"""A workflow for GitHub Actions that builds on every pull request and says what changed. Pure.

Source: GitHub, "Workflow syntax for GitHub Actions"; cache scope: a pull request reads the caches of its base branch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

from edgeship_agent.contract.errors import ConfigError

_BRANCH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_TEMPLATE: Final = """\
# Builds the model on every pull request, fails where a gate does, and says in one comment what changed.
# Written by `edgeship ci init github`; yours to change.
name: edgeship
on:
  pull_request:
  push:
    branches: [{branch}]
permissions:
  contents: read
  pull-requests: write
concurrency:
  group: edgeship-${{{{ github.ref }}}}
  cancel-in-progress: true
jobs:
  build:
    runs-on: ubuntu-latest
    timeout-minutes: 60
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - name: install
        run: python -m pip install "edgeship=={version}"
      - name: converters of earlier runs
        uses: actions/cache@v4
        with:
          path: ~/.cache/edgeship
          key: edgeship-converters-${{{{ runner.os }}}}-{version}
      - name: build of the base branch
        if: github.event_name == 'pull_request'
        uses: actions/cache/restore@v4
        with:
          path: .edgeship-base
          key: edgeship-base-${{{{ github.event.pull_request.base.sha }}}}
          restore-keys: edgeship-base-
      - name: build
        shell: bash
        run: |
          base=()
          if [ -f .edgeship-base/build.json ]; then base=(--base .edgeship-base/build.json); fi
          {command} --yes -o build --format github "${{base[@]}}"
      - name: summary and comment
        if: ${{{{ !cancelled() }}}}
        shell: bash
        env:
          GITHUB_TOKEN: ${{{{ github.token }}}}
        run: |
          if [ ! -f build/report.md ]; then exit 0; fi
          cat build/report.md >> "$GITHUB_STEP_SUMMARY"
          # a pull request from a fork may not write: its summary says the same
          if [ "$GITHUB_EVENT_NAME" = pull_request ]; then edgeship ci comment build || true; fi
      - name: results
        if: ${{{{ !cancelled() }}}}
        uses: actions/upload-artifact@v4
        with:
          name: edgeship
          path: build
          if-no-files-found: ignore
      - name: remember this build
        if: github.event_name == 'push'
        run: mkdir -p .edgeship-base && cp build/build.json .edgeship-base/
      - if: github.event_name == 'push'
        uses: actions/cache/save@v4
        with:
          path: .edgeship-base
          key: edgeship-base-${{{{ github.sha }}}}
"""


def github_workflow(arguments: Sequence[str], branch: str, version: str) -> str:
    """The workflow file.

    Args:
        arguments: of ``edgeship build``, without ``-o`` and ``--format``.
        branch: whose builds later ones are compared with.
        version: of edgeship.

    Raises:
        ConfigError: a branch or an argument that cannot stand in the file, or one that the workflow gives itself.
    """
    if not _BRANCH.fullmatch(branch):
        raise ConfigError("not the name of a branch", key="--branch", got=repr(branch[:80]), next_step="--branch main")
    for argument in arguments:
        if not argument.isprintable() or "${{" in argument:
            raise ConfigError("cannot stand in a workflow file", key="argument", got=repr(argument[:80]),
                              next_step="put it into a file that the build reads")  # fmt: skip
        if argument.split("=")[0] in {"-o", "--output", "--format", "--format-file", "--base", "--json"}:
            raise ConfigError("the workflow gives this option itself", key=argument, next_step="leave it out")
    command = shlex.join(["edgeship", "build", *arguments])
    return _TEMPLATE.format(branch=branch, version=version, command=command)
