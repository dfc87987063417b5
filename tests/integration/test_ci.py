"""The commands for continuous integration, and the comment on a GitHub that speaks its API on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import junitparser
import pytest
import yaml

from edgeship.build import pipeline
from edgeship.build.ci import comment
from tests import builds
from tests.integration.test_build_pipeline import Workspace


def edgeship(*arguments: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    return subprocess.run([sys.executable, "-m", "edgeship", *map(str, arguments)], capture_output=True, text=True,
                          timeout=200, check=False, cwd=cwd, env={**kept, **variables})  # fmt: skip


class GitHub:
    """Comments of one repository, as the REST API shows them.

    Attributes:
        comments: id → body, author.
    """

    def __init__(self) -> None:
        self.comments: dict[int, dict[str, str]] = {}
        self.asked: list[str] = []
        github = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, document: object) -> None:
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_it(self) -> None:
                github.asked.append(f"{self.command} {self.path}")
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                parts = urlsplit(self.path)
                if self.headers.get("Authorization") != "Bearer ghs-sesame":
                    self.answer(401, {"message": "Bad credentials"})
                elif self.command == "GET":
                    query = parse_qs(parts.query)
                    size, page = int(query["per_page"][0]), int(query["page"][0])
                    listed = [{"id": number, "body": each["body"]} for number, each in github.comments.items()]
                    self.answer(200, listed[size * (page - 1) : size * page])
                elif self.command == "POST":
                    self.answer(201, github.add(body["body"], "us"))
                else:
                    number = int(parts.path.rpartition("/")[2])
                    if github.comments[number]["author"] != "us":
                        self.answer(403, {"message": "Must have admin rights"})
                    else:
                        github.comments[number]["body"] = body["body"]
                        self.answer(200, {"id": number, "html_url": f"https://github.example/c{number}"})

            do_GET = do_POST = do_PATCH = handle_it  # noqa: N815 (http.server's names)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.variables = {
            "GITHUB_API_URL": f"http://127.0.0.1:{self._server.server_address[1]}",
            "GITHUB_REPOSITORY": "acme/gauge",
            "GITHUB_REF": "refs/pull/7/merge",
            "GITHUB_TOKEN": "ghs-sesame",
        }

    def add(self, body: str, author: str) -> dict[str, object]:
        number = len(self.comments) + 1
        self.comments[number] = {"body": body, "author": author}
        return {"id": number, "body": body, "html_url": f"https://github.example/c{number}"}

    def __enter__(self) -> GitHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub() as found:
        yield found


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The output folder of a build, as far as these commands read it."""
    folder = tmp_path / "build"
    folder.mkdir()
    document = builds.document()
    (folder / "build.json").write_bytes(pipeline.encode(document))
    (folder / "report.md").write_text(comment(document, None))
    return folder


def test_a_comment_is_written_once_and_then_edited(github: GitHub, built: Path) -> None:
    for number in range(120):
        github.add(f"comment {number}", "someone")
    first = edgeship("ci", "comment", built, **github.variables)
    assert first.returncode == 0, first.stderr
    assert "written on acme/gauge#7" in first.stderr
    assert first.stdout == "https://github.example/c121\n"
    assert github.comments[121]["body"] == (built / "report.md").read_text()
    (built / "report.md").write_text(comment(builds.document(verdict="fail"), None))
    second = edgeship("ci", "comment", built, **github.variables)
    assert "edited on acme/gauge#7" in second.stderr
    assert len(github.comments) == 121
    assert "✖ fail" in github.comments[121]["body"]


def test_a_strangers_comment_with_our_marker_is_left_alone(github: GitHub, built: Path) -> None:
    github.add("<!-- edgeship-report: digits -->\nmine", "stranger")
    assert edgeship("ci", "comment", built, **github.variables).returncode == 0
    assert github.comments[1]["body"].endswith("mine")
    assert len(github.comments) == 2
    assert edgeship("ci", "comment", built, **github.variables).returncode == 0
    assert len(github.comments) == 2


def test_a_report_that_is_gone_is_written_anew_and_may_compare(github: GitHub, built: Path, tmp_path: Path) -> None:
    (built / "report.md").unlink()
    assert edgeship("ci", "comment", built, **github.variables).returncode == 0
    assert "no base build" in github.comments[1]["body"]
    assert edgeship("ci", "comment", built, "--base", built, **github.variables).returncode == 0
    assert "against the base build 1.0" in github.comments[1]["body"]


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({"GITHUB_TOKEN": ""}, 2, "no token"),
        ({"GITHUB_TOKEN": "wrong"}, 1, "GitHub answers 401"),
        ({"GITHUB_REF": "refs/heads/main"}, 2, "no pull request"),
        ({"GITHUB_REPOSITORY": "../../etc"}, 2, "no pull request"),
        ({"GITHUB_API_URL": "http://192.0.2.1"}, 2, "HTTPS only"),
        ({"GITHUB_API_URL": "http://127.0.0.1:1"}, 1, "does not answer"),
    ],
)
def test_runs_that_cannot_comment(
    github: GitHub, built: Path, changes: dict[str, str], code: int, sentence: str
) -> None:
    done = edgeship("ci", "comment", built, **{**github.variables, **changes})
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert "ghs-sesame" not in done.stderr


def test_results_of_a_finished_build(built: Path, tmp_path: Path) -> None:
    markdown = edgeship("ci", "report", built, "--base", built)
    assert markdown.returncode == 0, markdown.stderr
    assert markdown.stdout.startswith("<!-- edgeship-report: digits -->")
    file = tmp_path / "new" / "junit.xml"
    assert edgeship("ci", "report", built, "--format", "junit", "--format-file", file).returncode == 0
    assert junitparser.JUnitXml.fromfile(str(file)).failures == 0
    assert json.loads(edgeship("ci", "report", built, "--format", "sarif").stdout)["version"] == "2.1.0"
    for words in (
        ("ci", "report", tmp_path / "nothing"),
        ("ci", "report", built, "--format", "sarif", "--base", built),
    ):
        done = edgeship(*words)
        assert done.returncode == 2
        assert "next: " in done.stderr


def test_a_build_says_its_results_in_a_cis_form(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    on_stdout = work.run("--format", "github", "--max-drop", "0.05")
    assert on_stdout.returncode == 0, on_stdout.stderr
    assert on_stdout.stdout.startswith("::notice ")
    assert len(on_stdout.stdout.splitlines()) == 1
    report = (tmp_path / "out" / "report.md").read_text()
    assert "no base build" in report
    file = tmp_path / "junit.xml"
    again = work.run("--format", "junit", "--format-file", str(file), "--base", "out", "--json", "--max-drop", "0.05")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["verdict"] == "pass"
    assert junitparser.JUnitXml.fromfile(str(file)).failures == 0
    assert "against the base build 1.0.0" in (tmp_path / "out" / "report.md").read_text()
    failed = work.run("--format", "junit", "--size-bytes", "10")
    assert failed.returncode == 3
    (tmp_path / "failed.xml").write_text(failed.stdout)
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "failed.xml")).failures > 0
    for words in (("--format-file", "x"), ("--format", "sarif", "--json"), ("--base", "missing")):
        done = work.run(*words)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


def test_the_workflow_is_written_once(tmp_path: Path) -> None:
    words = ("ci", "init", "github", "--branch", "trunk", "--", "net.onnx", "-t", "x86-64-server",
             "--calibration", "c.npz", "--evaluation", "e.npz")  # fmt: skip
    done = edgeship(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / ".github" / "workflows" / "edgeship.yml"
    assert yaml.safe_load(file.read_text())[True]["push"]["branches"] == ["trunk"]
    assert edgeship(*words, cwd=tmp_path).returncode == 2
    assert edgeship(*words[:3], "--force", *words[3:], cwd=tmp_path).returncode == 0
    wrong = edgeship("ci", "init", "github", "--", "net.onnx", "--no-such-option", cwd=tmp_path / ".github")
    assert wrong.returncode == 2
    assert "no-such-option" in wrong.stderr
    empty = edgeship("ci", "init", "github", cwd=tmp_path / ".github")
    assert empty.returncode == 2
    assert "what is to be built?" in empty.stderr
    (tmp_path / ".github" / "edgeship.toml").touch()
    assert edgeship("ci", "init", "github", cwd=tmp_path / ".github").returncode == 0
