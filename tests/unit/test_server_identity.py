"""The fleet's authority and its rules."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from edgeship.server.config import DevicesConfig, ServerConfig, devices_config
from edgeship.server.context import ServerContext, open_context
from edgeship.server.identity.authority import Authority, check_renewal, common_name
from edgeship.server.identity.members import Members, Places
from edgeship.server.identity.rules import Invitation, Known, Verdict, decide
from edgeship.server.store import schema
from edgeship_agent.contract.enrolment import EnrolRequest, RenewRequest, Token
from edgeship_agent.contract.errors import ConfigError, InputError, VerificationError
from edgeship_agent.identity.credentials import AUTHORITY_FILE, Credentials, authority_context, client_context
from edgeship_agent.identity.enrol import own_device_id
from edgeship_agent.identity.keys import load_or_make_key, private_pem, sign_renewal, signing_request, write_private
from edgeship_agent.link.address import parse_address

NOW_S = 1_795_000_000.0
YEAR_S = 365 * 86400.0
PLACES = Places(enrol_url="https://h:8444", server_url="https://h:8443", broker_url="mqtts://h:8883")


def invitation(**changes: Any) -> Invitation:
    values: dict[str, Any] = {"id": "e1", "tags": {}, "device_limit": 1, "device_count": 0, "needs_approval": False,
                              "expires_at_s": NOW_S + 1}  # fmt: skip
    return Invitation(**{**values, **changes})


@pytest.mark.parametrize(
    ("given", "known", "verdict", "words"),
    [
        (invitation(), (), Verdict.ISSUE, ""),
        (invitation(needs_approval=True), (), Verdict.WAIT, ""),
        (None, (), Verdict.REFUSE, "unknown enrolment token"),
        (invitation(expires_at_s=NOW_S), (), Verdict.REFUSE, "has expired"),
        (invitation(device_count=1), (), Verdict.REFUSE, "was for 1 device"),
        (invitation(device_limit=3, device_count=3), (), Verdict.REFUSE, "was for 3 devices"),
        (invitation(), (Known(key_sha256="other", state="active"),), Verdict.REFUSE, "with another key"),
        (invitation(), (Known(key_sha256="other", state="pending"),), Verdict.REFUSE, "with another key"),
        # a lost answer: the same key again, whatever became of the invitation since
        (invitation(device_count=1), (Known(key_sha256="k", state="active"),), Verdict.AGAIN, ""),
        (invitation(expires_at_s=0.0), (Known(key_sha256="k", state="pending"),), Verdict.AGAIN, ""),
        # but never without the secret
        (None, (Known(key_sha256="k", state="active"),), Verdict.REFUSE, "unknown enrolment token"),
    ],
)
def test_who_is_let_in(given: Invitation | None, known: tuple[Known, ...], verdict: Verdict, words: str) -> None:
    decision = decide(given, known, "press-1", "k", NOW_S)
    assert decision.verdict is verdict
    assert words in decision.reason
    assert bool(decision.next_step) == (verdict is Verdict.REFUSE)


@pytest.mark.parametrize(
    "text", ["", "hello", "es1.ab.cd", "es2." + "a" * 32 + "." + "a" * 26, "es1." + "g" * 32 + ".aa"]
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Token.parse(text)
    assert caught.value.exit_code == 2
    assert not text or text not in caught.value.sentence()


def test_a_token_comes_back_with_white_space_around_it() -> None:
    token = Token(authority="ab" * 16, secret="a2" * 13)
    assert Token.parse(f" {token.text}\n") == token


def test_the_authority_lasts_and_its_key_is_private(tmp_path: Path) -> None:
    first = Authority.open(tmp_path, lambda: NOW_S)
    assert Authority.open(tmp_path, lambda: NOW_S).fingerprint == first.fingerprint
    key = tmp_path / "keys" / "authority.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o640)
    with pytest.raises(VerificationError, match="others may read"):
        Authority.open(tmp_path, lambda: NOW_S)
    key.chmod(0o600)
    other = Authority.open(tmp_path / "other", lambda: NOW_S)
    (tmp_path / "identity" / "authority.pem").write_bytes(other.pem)
    with pytest.raises(VerificationError, match="not of its key"):
        Authority.open(tmp_path, lambda: NOW_S)


def test_the_servers_certificate_follows_its_names_and_its_age(tmp_path: Path) -> None:
    clock = [NOW_S]
    authority = Authority.open(tmp_path, lambda: clock[0])
    names = ("fleet.example.org", "192.0.2.7")
    _, file = authority.server_files(tmp_path / "identity", names)
    first = file.read_bytes()
    authority.server_files(tmp_path / "identity", names)
    assert file.read_bytes() == first
    clock[0] += 500 * 86400.0
    authority.server_files(tmp_path / "identity", names)
    assert file.read_bytes() != first
    second = file.read_bytes()
    authority.server_files(tmp_path / "identity", (*names, "localhost"))
    assert file.read_bytes() != second
    found = x509.load_pem_x509_certificate(file.read_bytes())
    listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert listed.get_values_for_type(x509.DNSName) == ["fleet.example.org", "localhost"]
    assert [str(each) for each in listed.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]


def test_a_certificate_names_the_device_whatever_the_request_says(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, lambda: NOW_S)
    csr = signing_request(load_or_make_key(tmp_path / "key.pem"), "edgeship-server")
    issued = authority.issue_device("press-1", csr)
    assert common_name(issued) == "press-1"
    constraints = issued.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def test_requests_of_other_keys_and_forged_ones_are_refused(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, lambda: NOW_S)
    strong = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    curve = ec.generate_private_key(ec.SECP384R1())
    from cryptography.hazmat.primitives import hashes

    for key in (strong, curve):
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        with pytest.raises(InputError, match="another kind of key"):
            authority.issue_device("press-1", csr.public_bytes(Encoding.PEM).decode())
    good = signing_request(load_or_make_key(tmp_path / "key.pem"), "a")
    damaged = x509.load_pem_x509_csr(good.encode()).public_bytes(Encoding.DER)
    damaged = damaged[:-1] + bytes([damaged[-1] ^ 1])
    bodies = (base64.b64encode(damaged).decode(), "!")
    frames = [f"-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n" for body in bodies]
    for text in (*frames, "", "hello"):
        with pytest.raises(InputError):
            authority.issue_device("press-1", text)


def test_a_renewal_needs_the_present_key(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, lambda: NOW_S)
    key, other = (load_or_make_key(tmp_path / name) for name in ("a.pem", "b.pem"))
    certificate = authority.issue_device("press-1", signing_request(key, "press-1"))
    csr = signing_request(other, "press-1")
    check_renewal(certificate, csr, sign_renewal(key, csr))
    for signature in (sign_renewal(other, csr), sign_renewal(key, csr + " "), "", "zz"):
        with pytest.raises(InputError, match="not signed by the present key"):
            check_renewal(certificate, csr, signature)
    stranger = Authority.open(tmp_path / "other", lambda: NOW_S)
    foreign = stranger.issue_device("press-1", signing_request(key, "press-1")).public_bytes(Encoding.PEM).decode()
    with pytest.raises(InputError, match="not a certificate of this fleet"):
        authority.check_member(foreign)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServerContext]:
    with open_context(ServerConfig(data=tmp_path / "data"), clock=lambda: NOW_S) as opened:
        yield opened


@pytest.fixture
def members(context: ServerContext) -> Members:
    revoked: list[str] = []
    made = Members(context, Authority.open(context.data, context.clock), PLACES, revoked.append)
    made.revoked_names = revoked  # type: ignore[attr-defined]
    return made


def test_a_secret_is_not_in_the_database(context: ServerContext, members: Members) -> None:
    token = Token.parse(members.invite({"group": "lab"}, 1, 60.0, needs_approval=False).token)
    with context.read() as connection:
        for table in (schema.invitations, schema.events):
            assert token.secret not in str(connection.execute(table.select()).all())
    assert token.authority == members.authority.fingerprint[:32]


def test_a_device_is_let_in_renewed_and_put_out(context: ServerContext, members: Members, tmp_path: Path) -> None:
    token = Token.parse(members.invite({"group": "lab"}, 1, 60.0, needs_approval=False).token)
    key, later = (load_or_make_key(tmp_path / name) for name in ("a.pem", "b.pem"))
    request = EnrolRequest(secret=token.secret, device_id="press-1", csr=signing_request(key, "press-1"))
    answer = members.enrol(request)
    assert (answer.state, answer.broker_url, answer.tags) == ("enrolled", PLACES.broker_url, {"group": "lab"})
    assert members.enrol(request) == answer
    csr = signing_request(later, "press-1")
    renewal = RenewRequest(certificate=answer.certificate, csr=csr, signature=sign_renewal(key, csr))
    renewed = members.renew(renewal)
    assert renewed.certificate != answer.certificate
    assert members.renew(renewal) == renewed
    assert members.revoke("press-1") == 2
    assert members.revoked_names == ["press-1"]  # type: ignore[attr-defined]
    dead = x509.load_pem_x509_crl(members.revocation_list())
    for pem in (answer.certificate, renewed.certificate):
        serial = x509.load_pem_x509_certificate(pem.encode()).serial_number
        assert dead.get_revoked_certificate_by_serial_number(serial) is not None
    with pytest.raises(InputError, match="not in use any more"):
        members.renew(renewal)
    # the token is used up, so the name does not come back by it
    with pytest.raises(InputError, match="they have come"):
        members.enrol(request)


@pytest.mark.parametrize("name", ["edgeship-server", "a/b", "", "+", "x" * 65])
def test_some_names_are_nobodys(members: Members, tmp_path: Path, name: str) -> None:
    token = Token.parse(members.invite({}, 1, 60.0, needs_approval=False).token)
    csr = signing_request(load_or_make_key(tmp_path / "a.pem"), "a")
    with pytest.raises(InputError):
        members.enrol(EnrolRequest(secret=token.secret, device_id=name, csr=csr))


@pytest.mark.parametrize(("count", "valid_s"), [(0, 60.0), (100_001, 60.0), (1, 0.0), (1, float("nan")), (1, 1e9)])
def test_invitations_have_bounds(members: Members, count: int, valid_s: float) -> None:
    with pytest.raises(InputError, match="out of range"):
        members.invite({}, count, valid_s, needs_approval=False)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake over a pair of sockets; raises what the client meets."""
    left, right = socket.socketpair()
    left.settimeout(20)
    right.settimeout(20)

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True):
                pass
        except OSError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(right, server_hostname=name).close()
    finally:
        right.close()
        thread.join(20)


def test_a_clock_that_was_never_set_does_not_lock_a_device_out(tmp_path: Path) -> None:
    """The authority lives in 2040 here: for today's clock its certificates are not valid yet, as all are in 1970."""
    authority = Authority.open(tmp_path, lambda: time.time() + 15 * YEAR_S)
    key_file, file = authority.server_files(tmp_path / "identity", ("fleet.example.org",))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file, key_file)
    pem = authority.pem.decode()
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        handshake(server, authority_context(pem, now_s=NOW_S, floor_s=NOW_S), "fleet.example.org")
    handshake(server, authority_context(pem, now_s=0.0, floor_s=NOW_S), "fleet.example.org")
    # name and authority are judged all the same
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, authority_context(pem, now_s=0.0, floor_s=NOW_S), "other.example.org")
    stranger = Authority.open(tmp_path / "other", time.time).pem.decode()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, authority_context(stranger, now_s=0.0, floor_s=NOW_S), "fleet.example.org")


def test_a_damaged_identity_is_told_in_words(tmp_path: Path) -> None:
    who = Credentials.inside(tmp_path)
    with pytest.raises(ConfigError, match="cannot be used: No such file") as caught:
        client_context(who, NOW_S, 0.0)
    assert caught.value.next_step == "edgeship-agent enroll URL --token TOKEN"
    authority = Authority.open(tmp_path / "data", time.time)
    write_private(tmp_path / AUTHORITY_FILE, authority.pem)
    write_private(who.identity, private_pem(load_or_make_key(tmp_path / "k.pem")))
    with pytest.raises(ConfigError, match="cannot be used"):
        client_context(who, NOW_S, 0.0)
    assert who.identity.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "path"),
    [
        ("mqtt://127.0.0.1", "127.0.0.1", 1883, False, ""),
        ("mqtts://fleet.example.org", "fleet.example.org", 8883, True, ""),
        ("mqtts://[2001:db8::7]:99", "2001:db8::7", 99, True, ""),
        ("wss://fleet.example.org", "fleet.example.org", 443, True, "/mqtt"),
        ("wss://fleet.example.org:8081/broker/", "fleet.example.org", 8081, True, "/broker"),
    ],
)
def test_addresses_of_brokers(url: str, host: str, port: int, tls: bool, path: str) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.tls, address.path) == (host, port, tls, path)


@pytest.mark.parametrize("url", ["", "http://a", "mqtt://", "mqtts://a:0", "wss://a:99999", "ws://a"])
def test_what_is_no_address_of_a_broker(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(url)


def test_where_devices_come_in() -> None:
    assert devices_config("", ()) is None
    assert devices_config("192.0.2.7", ()) == DevicesConfig(host="192.0.2.7", names=("192.0.2.7",))
    assert devices_config("0.0.0.0", ("a", "b"), (1, 2, 3, 4)) == DevicesConfig(
        host="0.0.0.0", names=("a", "b"), port=1, enrol_port=2, broker_port=3, websockets_port=4
    )  # fmt: skip
    for host, names, ports in (
        ("0.0.0.0", (), (1, 2, 3, 0)),
        ("", ("a",), (1, 2, 3, 0)),
        ("192.0.2.7", (), (1, 2, 0, 0)),
    ):
        with pytest.raises(ConfigError):
            devices_config(host, names, ports)


def test_a_device_may_be_named_by_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = tmp_path / "machine-id"
    monkeypatch.setattr("edgeship_agent.identity.enrol._MACHINE_ID", machine)
    with pytest.raises(ConfigError, match="no id"):
        own_device_id("auto")
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    made = own_device_id("auto")
    assert made == own_device_id("auto")
    assert "0123456789" not in made
    assert own_device_id("press-1") == "press-1"
    monkeypatch.setattr("socket.gethostname", lambda: "häuschen 7.local")
    assert own_device_id("") == "h-uschen-7.local"


def test_answers_of_a_later_version_are_read_as_far_as_they_are_known() -> None:
    from edgeship_agent.contract.enrolment import EnrolAnswer

    assert msgspec.json.decode(b'{"state": "pending", "new": 1}', type=EnrolAnswer).state == "pending"
