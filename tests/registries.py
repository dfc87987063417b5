"""A real registry on loopback (Debian's docker-registry), its token server, and a proxy that breaks what it is told."""

from __future__ import annotations

import base64
import datetime
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from edgeship_agent.contract import oci
from tests.programs import require_program

#: bcrypt of "open sesame", cost 5.
HTPASSWD = "ali:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW"
USER, PASSWORD = "ali", "open sesame"
_START_TIMEOUT_S = 20


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def registry(folder: Path, *, auth: str = "") -> Iterator[str]:
    """A docker-registry with its storage in ``folder``; gives its host and port.

    Args:
        folder: for configuration, log and storage.
        auth: the ``auth`` section of its configuration, as YAML in one line; empty for none.
    """
    program = require_program("docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lines = [
        "version: 0.1",
        "log: {level: error, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}",
        f"http: {{addr: '127.0.0.1:{port}', secret: x}}",
        *([f"auth: {auth}"] if auth else []),
    ]
    (folder / "config.yml").write_text("\n".join(lines) + "\n")
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        _wait(port, child, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(timeout=20)


def _wait(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(_START_TIMEOUT_S * 20):
        assert child.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(log.read_text())


class Request:
    """One request that went through the proxy."""

    def __init__(self, method: str, path: str, headers: dict[str, str]) -> None:
        self.method = method
        self.path = path
        self.headers = headers

    def __repr__(self) -> str:
        return f"{self.method} {self.path}"


class Proxy:
    """Passes requests on to a registry, and does to some of them what a test wants.

    Attributes:
        requests: everything that was asked.
        answer_instead: request → status, headers and body that are answered instead, or None to pass it on.
        cut_after: request → bytes of the answer's body after which the connection is dropped, or None.
        referrers_api: list referrers as registries of the specification's version 1.1 do.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.requests: list[Request] = []
        self.answer_instead: Callable[[Request], tuple[int, dict[str, str], bytes] | None] = lambda _: None
        self.cut_after: Callable[[Request], int | None] = lambda _: None
        self.referrers_api = False
        self.referrers: dict[str, list[dict[str, object]]] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                request = Request(self.command, self.path, dict(self.headers))
                proxy.requests.append(request)
                status, headers, answer = proxy.answer_instead(request) or proxy.pass_on(request, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                cut = proxy.cut_after(request)
                if cut is not None and cut < len(answer):
                    self.wfile.write(answer[:cut])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                else:
                    self.wfile.write(answer)

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_one  # noqa: N815 (http.server's names)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pass_on(self, request: Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Ask the registry, and list referrers where it does not."""
        if self.referrers_api and "/referrers/" in request.path:
            found = self.referrers.get(request.path.rpartition("/")[2], [])
            index = {"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": found}
            return 200, {"Content-Type": oci.INDEX_TYPE}, json.dumps(index).encode()
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        kept = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        connection.request(request.method, request.path, body=body or None, headers=kept)
        answer = connection.getresponse()
        data = answer.read()
        dropped = {"content-length", "transfer-encoding", "connection", "date"}
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
        if request.method == "HEAD" and (size := answer.getheader("Content-Length")):
            headers["Content-Length"] = size
        connection.close()
        if self.referrers_api and request.method == "PUT" and "/manifests/" in request.path and answer.status == 201:
            self._list(body, headers)
        return answer.status, headers, data

    def _list(self, body: bytes, headers: dict[str, str]) -> None:
        document = json.loads(body)
        if "subject" in document:
            subject = document["subject"]["digest"]
            entry = {"mediaType": document["mediaType"], "digest": oci.digest_of(body), "size": len(body),
                     "artifactType": document["artifactType"]}  # fmt: skip
            self.referrers.setdefault(subject, []).append(entry)
            headers["OCI-Subject"] = subject


class TokenServer:
    """Gives tokens to those who know the password, as the distribution project's specification says.

    Attributes:
        scopes: what was asked for.
        certificate: PEM, which the registry trusts.
    """

    def __init__(self, service: str) -> None:
        self.scopes: list[str] = []
        self.grants: list[str] = []
        self.identity_token = ""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _certificate(self._key)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                self.reply(self.headers.get("Authorization") == f"Basic {pair}", query["scope"][0])

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                server.grants.append(form["grant_type"][0])
                self.reply(form["refresh_token"][0] == server.identity_token, form["scope"][0])

            def reply(self, known: bool, scope: str) -> None:
                server.scopes.append(scope)
                body = json.dumps({"token": server.token(service, scope)} if known else {}).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> TokenServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, service: str, scope: str) -> str:
        """A token (JWT, ES256) that allows what was asked for."""
        kind, name, actions = scope.split(":")
        now = int(time.time())
        der = x509.load_pem_x509_certificate(self.certificate).public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": "tests", "sub": USER, "aud": service, "exp": now + 300, "nbf": now - 60, "iat": now, "jti": str(now),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        r, s = utils.decode_dss_signature(self._key.sign(text, ec.ECDSA(hashes.SHA256())))
        return (text + b"." + _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)
