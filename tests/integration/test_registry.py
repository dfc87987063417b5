"""``edgeship push`` and ``pull`` against Debian's docker-registry, with skopeo as the independent client."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship.bundle import AuthorKey, Bundle, write_bundle
from edgeship.bundle.registry import Pulled, Pushed, Reference, RegistryClient, find_evidence, pull, push
from edgeship.bundle.registry.credentials import Credentials
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, ContractError, EdgeshipError, TransferError, VerificationError
from tests import bundles, certificates, registries
from tests.programs import require_program
from tests.registries import PASSWORD, USER, Proxy, Request, TokenServer


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registries.registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with documents, and the evidence of its build beside it."""
    written = certificates.written(tmp_path / "built")
    (tmp_path / "built" / "build.json").write_text(json.dumps({"bundle_digest": written.digest}))
    (tmp_path / "built" / "report.html").write_text("<!doctype html>")
    return Bundle.open(written.directory)


def _nobody(_: str) -> Credentials | None:
    return None


def _push(bundle: Bundle, place: str, find=_nobody) -> Pushed:
    reference = Reference.parse(place)
    with RegistryClient(reference, push=True, find=find) as client:
        return push(bundle, client, reference.tag, evidence=find_evidence(bundle), counting=lambda *_: None)


def _pull(place: str, folder: Path, *, author_key: str = "", find=_nobody) -> Pulled:
    reference = Reference.parse(place)
    with RegistryClient(reference, find=find) as client:
        return pull(client, reference, folder, author_key=author_key, counting=lambda *_: None)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _refusal(place: str, folder: Path, kind: type[EdgeshipError], **more) -> str:
    """What is said of a pull that is refused, which leaves nothing."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(kind) as caught:
        _pull(place, folder, **more)
    assert sorted(folder.parent.iterdir()) == before
    return str(caught.value)


def test_what_is_pulled_is_what_was_pushed_and_a_second_time_nothing_moves(
    registry: str, bundle: Bundle, tmp_path: Path
) -> None:
    with Proxy(registry) as proxy:
        place = f"{proxy.address}/team/gauge:1.0"
        first = _push(bundle, place)
        assert first.digest == bundle.digest
        assert first.uploaded > 10
        assert first.evidence == ("build.json", "report.html")
        proxy.requests.clear()
        second = _push(bundle, place)
        assert (second.uploaded, second.uploaded_bytes, second.moved_from) == (0, 0, "")
        assert {each.method for each in proxy.requests} <= {"HEAD", "GET"}
        pulled = _pull(place, tmp_path / "out")
        assert _files(tmp_path / "out" / "bundle") == _files(bundle.directory)
        assert (tmp_path / "out" / "report.html").read_text() == "<!doctype html>"
        assert pulled.evidence == ("build.json", "report.html")
        proxy.requests.clear()
        again = _pull(f"{proxy.address}/team/gauge@{bundle.digest}", tmp_path / "out")
        assert (again.downloaded, again.downloaded_bytes) == (0, 0)
        assert again.known == pulled.downloaded
        assert _files(tmp_path / "out" / "bundle") == _files(bundle.directory)


def test_a_tag_that_moves_says_so(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    place = f"{registry}/team/moving:latest"
    _push(bundle, place)
    other = Bundle.open(bundles.written(tmp_path / "other", content=bundles.draft(version="2.0")).directory)
    assert _push(other, place).moved_from == bundle.digest
    _pull(place, tmp_path / "out")
    assert Bundle.open(tmp_path / "out" / "bundle").manifest.version == "2.0"
    assert not (tmp_path / "out" / "build.json").exists()


def _skopeo(*arguments: str) -> str:
    command = [require_program("skopeo"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_reads_the_same_bundle(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    _push(bundle, f"{registry}/team/skopeo:1.0")
    source = f"docker://{registry}/team/skopeo:1.0"
    raw = _skopeo("inspect", "--raw", "--tls-verify=false", source)
    assert oci.digest_of(raw.encode()) == bundle.digest
    _skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path / 'copy'}")
    copied = Bundle.open(tmp_path / "copy")
    assert copied.digest == bundle.digest
    assert copied.verify_digests() == bundle.verify_digests()


def test_the_signature_survives_skopeo_where_it_is_copied_along(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    _push(bundle, f"{registry}/team/here:1.0")
    plain = ("--all", "--src-tls-verify=false", "--dest-tls-verify=false")
    _skopeo("copy", *plain, f"docker://{registry}/team/here:1.0", f"docker://{registry}/team/there:1.0")
    assert "not signed" in _refusal(f"{registry}/team/there:1.0", tmp_path / "out", VerificationError)
    tag = bundle.digest.replace(":", "-")
    _skopeo("copy", *plain, f"docker://{registry}/team/here:{tag}", f"docker://{registry}/team/there:{tag}")
    pulled = _pull(f"{registry}/team/there:1.0", tmp_path / "out", author_key=bundle.author_key)
    assert pulled.author_key == bundle.author_key
    assert _files(tmp_path / "out" / "bundle") == _files(bundle.directory)


def test_a_registry_that_lists_referrers_needs_no_tag_for_them(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    with Proxy(registry) as proxy:
        proxy.referrers_api = True
        _push(bundle, f"{proxy.address}/team/lists:1.0")
        assert not [each for each in proxy.requests if each.method == "PUT" and "/manifests/sha256-" in each.path]
        assert _pull(f"{proxy.address}/team/lists:1.0", tmp_path / "out").author_key == bundle.author_key
    tags = json.loads(_skopeo("list-tags", "--tls-verify=false", f"docker://{registry}/team/lists"))["Tags"]
    assert tags == ["1.0"]


def test_the_wanted_author_key(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    place = f"{registry}/team/key:1.0"
    _push(bundle, place)
    assert "another author key" in _refusal(place, tmp_path / "out", VerificationError, author_key="0" * 64)
    # the same content, signed by someone else too: both signatures are there, each is found by its key
    other = AuthorKey.load_or_create(tmp_path / "other.key")
    second = Bundle.open(write_bundle(tmp_path / "second", certificates.draft(), other).directory)
    assert second.digest == bundle.digest
    _push(second, place)
    for number, key in enumerate((bundle.author_key, other.public_hex)):
        assert _pull(place, tmp_path / f"out{number}", author_key=key).author_key == key


def test_bytes_that_were_altered_in_the_registry_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with registries.registry(tmp_path / "altered") as address:
        _push(bundle, f"{address}/team/gauge:1.0")
        model = bundle.manifest.variants[0].file("model")
        assert model is not None
        name = oci.hex_of(model.digest)
        stored = next((tmp_path / "altered" / "data").rglob(f"sha256/{name[:2]}/{name}/data"))
        data = bytearray(stored.read_bytes())
        data[10] ^= 1
        stored.write_bytes(data)
        assert "other bytes" in _refusal(f"{address}/team/gauge:1.0", tmp_path / "out", VerificationError)
        stored.write_bytes(data + b"more")
        said = _refusal(f"{address}/team/gauge:1.0", tmp_path / "out", VerificationError)
        assert "more bytes" in said or "other bytes" in said


def _big(tmp_path: Path) -> Bundle:
    """A bundle with a model of 3 MB."""
    content = bundles.draft()
    from msgspec.structs import replace

    first = content.variants[0]
    big = replace(first.files[0], data=os.urandom(3_000_000))
    content = replace(content, variants=(replace(first, files=(big, *first.files[1:])), *content.variants[1:]))
    return Bundle.open(bundles.written(tmp_path / "big", content=content).directory)


def test_a_broken_download_is_taken_up_where_it_broke(registry: str, tmp_path: Path) -> None:
    bundle = _big(tmp_path)
    model = bundle.manifest.variants[0].file("model")
    assert model is not None
    with Proxy(registry) as proxy:
        _push(bundle, f"{proxy.address}/team/big:1.0")
        cuts = [2_000_000, 500_000]
        proxy.cut_after = lambda asked: cuts.pop() if cuts and asked.path.endswith(model.digest) else None
        proxy.requests.clear()
        _pull(f"{proxy.address}/team/big:1.0", tmp_path / "out")
        asked = [each for each in proxy.requests if each.path.endswith(model.digest)]
        assert [each.headers.get("Range") for each in asked] == [None, "bytes=500000-", "bytes=2500000-"]
    assert _files(tmp_path / "out" / "bundle") == _files(bundle.directory)


def test_a_registry_without_ranges_is_asked_from_the_beginning(registry: str, tmp_path: Path) -> None:
    bundle = _big(tmp_path)
    model = bundle.manifest.variants[0].file("model")
    assert model is not None
    data = bundle.blob(model.digest)
    with Proxy(registry) as proxy:
        _push(bundle, f"{proxy.address}/team/whole:1.0")
        cuts = [500_000]
        proxy.cut_after = lambda asked: cuts.pop() if cuts and asked.path.endswith(model.digest) else None
        proxy.answer_instead = lambda asked: (200, {}, data) if asked.path.endswith(model.digest) else None
        _pull(f"{proxy.address}/team/whole:1.0", tmp_path / "out")
    assert _files(tmp_path / "out" / "bundle") == _files(bundle.directory)


def test_a_push_that_broke_is_finished_by_the_next_one(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    with Proxy(registry) as proxy:
        place = f"{proxy.address}/team/broken:1.0"
        refused: list[str] = []

        def full(asked: Request) -> tuple[int, dict[str, str], bytes] | None:
            uploads = [each for each in proxy.requests if each.method == "PUT" and "/blobs/" in each.path]
            if asked.method == "PUT" and len(uploads) > 4:
                refused.append(asked.path)
                return 413, {}, b'{"errors": [{"code": "TOOBIG", "message": "no room"}]}'
            return None

        proxy.answer_instead = full
        with pytest.raises(TransferError, match="takes no blob of that size: TOOBIG no room"):
            _push(bundle, place)
        assert len(refused) == 1
        with pytest.raises(ConfigError, match="not in the registry"):
            _pull(place, tmp_path / "out")
        proxy.answer_instead = lambda _: None
        proxy.requests.clear()
        pushed = _push(bundle, place)
        assert pushed.known >= 4
        sent = [each for each in proxy.requests if each.method == "PUT" and "/blobs/" in each.path]
        assert 0 < len(sent) < len({each.digest for each in bundle.descriptors()})
        _pull(place, tmp_path / "out")


def test_a_registry_that_is_busy_is_asked_again(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    with Proxy(registry) as proxy:
        answers = [(503, {}, b""), (429, {}, b""), (500, {}, b"not json")]
        proxy.answer_instead = lambda asked: answers.pop() if answers and asked.method == "PUT" else None
        _push(bundle, f"{proxy.address}/team/busy:1.0")
        assert not answers
        _pull(f"{proxy.address}/team/busy:1.0", tmp_path / "out")


def test_a_registry_that_is_not_there(bundle: Bundle, tmp_path: Path) -> None:
    place = f"127.0.0.1:{registries.free_port()}/team/gauge:1.0"
    with pytest.raises(TransferError, match="does not answer"):
        _push(bundle, place)
    assert "does not answer" in _refusal(place, tmp_path / "out", TransferError)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that asks for a name and a password."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "htpasswd").write_text(registries.HTPASSWD + "\n")
    with registries.registry(folder, auth=f"{{htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}}}") as address:
        yield address


def _docker_config(folder: Path, registry: str, pair: str) -> Path:
    folder.mkdir(exist_ok=True)
    encoded = base64.b64encode(pair.encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry: {"auth": encoded}}}))
    return folder


def test_a_name_and_a_password_from_dockers_configuration(locked: str, bundle: Bundle, tmp_path: Path) -> None:
    place = f"{locked}/team/gauge:1.0"
    command = [sys.executable, "-m", "edgeship", "push", str(tmp_path / "built"), place]
    wrong = {"": "asks for a name", "ali:guess": "refuses these credentials"}
    for number, (pair, sentence) in enumerate(wrong.items()):
        folder = _docker_config(tmp_path / f"docker{number}", locked, pair) if pair else tmp_path / "none"
        done = subprocess.run(command, env={**os.environ, "DOCKER_CONFIG": str(folder)}, capture_output=True, text=True,
                              timeout=60, check=False)  # fmt: skip
        assert done.returncode == 1
        assert sentence in done.stderr
        assert f"docker login {locked}" in done.stderr
    folder = _docker_config(tmp_path / "right", locked, f"{USER}:{PASSWORD}")
    environment = {**os.environ, "DOCKER_CONFIG": str(folder)}
    for words in (command, [*command[:3], "pull", place, "-o", str(tmp_path / "out")]):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert PASSWORD not in done.stderr + done.stdout
    assert _files(tmp_path / "out" / "bundle") == _files(bundle.directory)


def test_a_token_server(bundle: Bundle, tmp_path: Path) -> None:
    with TokenServer("tests-registry") as tokens:
        (tmp_path / "bundle.pem").write_bytes(tokens.certificate)
        auth = (f"{{token: {{realm: '{tokens.realm}', service: tests-registry, issuer: tests, "
                f"rootcertbundle: {tmp_path / 'bundle.pem'}}}}}")  # fmt: skip
        with registries.registry(tmp_path / "registry", auth=auth) as address:
            place = f"{address}/team/gauge:1.0"
            with pytest.raises(TransferError, match="gives no token"):
                _push(bundle, place)
            known = Credentials(username=USER, secret=PASSWORD)
            _push(bundle, place, find=lambda _: known)
            assert tokens.scopes[-1] == "repository:team/gauge:pull,push"
            _pull(place, tmp_path / "out", find=lambda _: known)
            assert tokens.scopes[-1] == "repository:team/gauge:pull"
            tokens.identity_token = "an identity token"
            _pull(place, tmp_path / "more", find=lambda _: Credentials(identity_token=tokens.identity_token))
            assert tokens.grants == ["refresh_token"]
    assert _files(tmp_path / "more" / "bundle") == _files(bundle.directory)


def test_credentials_go_to_the_registry_and_to_nobody_else(locked: str, bundle: Bundle, tmp_path: Path) -> None:
    known = Credentials(username=USER, secret=PASSWORD)
    model = bundle.manifest.variants[0].file("model")
    assert model is not None
    with Proxy(locked) as proxy, Proxy(locked) as elsewhere:
        place = f"{proxy.address}/team/moved:1.0"
        _push(bundle, place, find=lambda _: known)
        target = f"http://{elsewhere.address}/blob"
        proxy.answer_instead = lambda asked: (
            (307, {"Location": target}, b"") if asked.method == "GET" and asked.path.endswith(model.digest) else None
        )
        elsewhere.answer_instead = lambda _: (200, {}, bundle.blob(model.digest))
        _pull(place, tmp_path / "out", find=lambda _: known)
        assert [each.path for each in elsewhere.requests] == ["/blob"]
        assert "authorization" not in {name.lower() for name in elsewhere.requests[0].headers}
        assert any(name.lower() == "authorization" for each in proxy.requests for name in each.headers)


@pytest.mark.parametrize("target", ["http://192.0.2.1/blob", "ftp://127.0.0.1/blob", "file:///etc/passwd"])
def test_a_redirect_to_an_unsafe_address_is_not_followed(
    registry: str, bundle: Bundle, tmp_path: Path, target: str
) -> None:
    with Proxy(registry) as proxy:
        place = f"{proxy.address}/team/redirected:1.0"
        _push(bundle, place)
        proxy.answer_instead = lambda asked: (
            (307, {"Location": target}, b"") if asked.method == "GET" and "/blobs/" in asked.path else None
        )
        with pytest.raises(EdgeshipError):
            _pull(place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_challenge_that_names_an_unsafe_token_server(registry: str, bundle: Bundle) -> None:
    with Proxy(registry) as proxy:
        challenge = {"WWW-Authenticate": 'Bearer realm="http://192.0.2.1/token",service="x"'}
        proxy.answer_instead = lambda _: (401, challenge, b"")
        asked: list[str] = []

        def find(name: str) -> Credentials | None:
            asked.append(name)
            return Credentials(username=USER, secret=PASSWORD)

        with pytest.raises(TransferError, match="no safe address"):
            _push(bundle, f"{proxy.address}/team/gauge:1.0", find=find)
        assert not asked, "no secret was looked up for it"


#: Answer → what is said of it; nothing that is not signed is looked into.
HOSTILE = {
    "not JSON": (b"\xff\xfe{", "not a bundle"),
    "an image": (
        json.dumps({"schemaVersion": 2, "mediaType": oci.MANIFEST_TYPE, "config": {}, "layers": []}).encode(),
        "not a bundle",
    ),
    "a list of nothing": (
        json.dumps({"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": []}).encode(),
        "the bundle is not signed",
    ),
    "a path for a digest": (
        json.dumps({
            "schemaVersion": 2, "mediaType": oci.INDEX_TYPE,
            "manifests": [{"mediaType": oci.MANIFEST_TYPE, "digest": "sha256:../../etc/passwd", "size": 3}],
        }).encode(),
        "the bundle is not signed",
    ),
    "more than a document": (b" " * (4 * 1024 * 1024 + 1), "the registry's answer is too long"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_answers_that_are_no_bundle(registry: str, bundle: Bundle, tmp_path: Path, what: str) -> None:
    with Proxy(registry) as proxy:
        place = f"{proxy.address}/team/hostile:1.0"
        _push(bundle, place)
        proxy.answer_instead = lambda asked: (
            (200, {"Content-Type": oci.INDEX_TYPE}, HOSTILE[what][0]) if asked.path.endswith("/manifests/1.0") else None
        )
        assert HOSTILE[what][1] in _refusal(place, tmp_path / "out", EdgeshipError)


def test_a_signature_of_something_else_is_none(registry: str, tmp_path: Path) -> None:
    one = Bundle.open(bundles.written(tmp_path / "one").directory)
    two = Bundle.open(bundles.written(tmp_path / "two", content=bundles.draft(version="2.0")).directory)
    _push(one, f"{registry}/team/swapped:1.0")
    _push(two, f"{registry}/team/swapped:2.0")
    with Proxy(registry) as proxy:
        tags = [each.digest.replace(":", "-") for each in (one, two)]

        def swapped(asked: Request) -> tuple[int, dict[str, str], bytes] | None:
            if asked.path.endswith(tags[1]):
                asked.path = asked.path.replace(tags[1], tags[0])
            return None

        proxy.answer_instead = swapped
        assert "signature does not fit" in _refusal(
            f"{proxy.address}/team/swapped:2.0", tmp_path / "out", VerificationError
        )


def test_places_that_hold_something_else(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    place = f"{registry}/team/places:1.0"
    _push(bundle, place)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    assert "no pull wrote" in _refusal(place, tmp_path / "mine", ConfigError)
    assert "in the way" in _refusal(place, tmp_path / "mine" / "thesis.txt", ConfigError)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"
    assert "not in the registry" in _refusal(f"{registry}/team/places:missing", tmp_path / "out", ConfigError)


def test_an_unsigned_or_altered_bundle_is_not_pushed(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    place = f"{registry}/team/unsigned:1.0"
    index = json.loads((bundle.directory / "index.json").read_text())
    kept = index["manifests"][0].pop("annotations")
    (bundle.directory / "index.json").write_text(json.dumps(index))
    with pytest.raises(VerificationError, match="not signed"):
        _push(Bundle.open(bundle.directory), place)
    index["manifests"][0]["annotations"] = kept
    (bundle.directory / "index.json").write_text(json.dumps(index))
    model = bundle.manifest.variants[0].file("model")
    assert model is not None
    (bundle.directory / "blobs" / "sha256" / oci.hex_of(model.digest)).write_bytes(b"x")
    with pytest.raises((VerificationError, ContractError)):
        _push(Bundle.open(bundle.directory), place)
    with RegistryClient(Reference.parse(place)) as client:
        assert client.manifest("1.0") is None


def test_evidence_of_another_build_stays_at_home(bundle: Bundle) -> None:
    beside = bundle.directory.parent
    assert find_evidence(bundle) == beside
    (beside / "build.json").write_text(json.dumps({"bundle_digest": "sha256:" + "0" * 64}))
    assert find_evidence(bundle) is None
    (beside / "build.json").write_text("[]")
    assert find_evidence(bundle) is None


def test_the_newest_evidence_comes_along(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    place, beside = f"{registry}/team/evidence:1.0", bundle.directory.parent
    for second, text in ((1_700_000_000, "old"), (1_800_000_000, "new"), (1_750_000_000, "middle")):
        (beside / "report.html").write_text(text)
        os.utime(beside / "build.json", (second, second))
        _push(bundle, place)
    _pull(place, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text() == "new"


def test_the_commands(registry: str, bundle: Bundle, tmp_path: Path) -> None:
    def edgeship(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeship", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    pushed = edgeship("push", bundle.directory, f"{registry}/team/commands", "--json")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["reference"] == f"{registry}/team/commands:1.0"
    pulled = edgeship("pull", f"{registry}/team/commands:1.0", "-o", tmp_path / "out", "--json")
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout)["bundle"] == str(tmp_path / "out" / "bundle")
    assert pulled.stderr.splitlines()[-1] == f"next: edgeship verify {tmp_path / 'out'}"
    for words, code in (
        (("pull", f"{registry}/team/commands", "-o", tmp_path / "x"), 2),
        (("pull", "Registry/UPPER:1", "-o", tmp_path / "x"), 2),
        (("pull", f"{registry}/team/commands:9", "-o", tmp_path / "x"), 2),
        (("push", tmp_path, f"{registry}/team/commands"), 2),
        (("push", bundle.directory, "gauge:1.0"), 2),
    ):
        done = edgeship(*words)
        assert done.returncode == code, done.stderr
        assert "next: " in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
