"""Digests, signatures' bytes, identities and errors: small functions that much hangs on."""

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship_agent.contract import errors
from edgeship_agent.contract.errors import ConfigError, ContractError, ConversionError, EdgeshipError, TransferError
from edgeship_agent.contract.manifest import OutputContract, output_contract_hash
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.oci import (
    Descriptor,
    ImageIndex,
    canonical_json,
    check_digest,
    digest_of,
    hex_of,
    signed_bytes,
)
from edgeship_agent.contract.topics import Kind


def test_the_known_digest_of_abc():
    assert digest_of(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hex_of(digest_of(b"abc")) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "A" * 64,
        "sha512:" + "0" * 64,
        "sha256:" + "0" * 63,
        "../" * 20,
        "sha256:" + "0" * 64 + "\n",
    ],
)
def test_texts_that_are_no_digest_never_become_a_path(text):
    with pytest.raises(ContractError):
        check_digest(text)
    with pytest.raises(ContractError):
        hex_of(text)


@settings(derandomize=True, max_examples=100)
@given(st.tuples(st.text(max_size=10), st.binary(max_size=20)), st.tuples(st.text(max_size=10), st.binary(max_size=20)))
def test_what_is_signed_names_type_and_payload_without_ambiguity(first, second):
    assert (signed_bytes(*first) == signed_bytes(*second)) == (first == second)


def test_dsse_example():
    """The example of the DSSE protocol's specification."""
    assert signed_bytes("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@settings(derandomize=True, max_examples=100)
@given(
    st.dictionaries(st.text(max_size=5), st.integers().filter(lambda n: -(2**63) <= n < 2**63), max_size=6),
    st.randoms(use_true_random=False),
)
def test_canonical_json_depends_on_the_value_alone(value, order):
    items = list(value.items())
    order.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)
    assert msgspec.json.decode(canonical_json(value)) == value


def test_oci_documents_use_ocis_names():
    descriptor = Descriptor(media_type="a/b", digest=digest_of(b""), size=0)
    index = msgspec.json.decode(canonical_json(ImageIndex(manifests=(descriptor,))))
    assert index["schemaVersion"] == 2
    assert index["manifests"] == [{"mediaType": "a/b", "digest": digest_of(b""), "size": 0}]


def test_an_output_contract_is_all_that_an_application_relies_on():
    base = OutputContract(labels=("cat", "dog"), thresholds={"accept": 0.5}, postprocessing=("top1",))
    others = [
        msgspec.structs.replace(base, labels=("dog", "cat")),
        msgspec.structs.replace(base, labels=("cat", "dog", "bird")),
        msgspec.structs.replace(base, thresholds={"accept": 0.6}),
        msgspec.structs.replace(base, units="°C"),
        msgspec.structs.replace(base, postprocessing=()),
        msgspec.structs.replace(base, kind="raw"),
        msgspec.structs.replace(base, activation="softmax"),
    ]
    hashes = {output_contract_hash(contract) for contract in (base, *others)}
    assert len(hashes) == len(others) + 1
    assert output_contract_hash(msgspec.structs.replace(base)) == output_contract_hash(base)


def test_terminal_states_of_an_update():
    terminal = {state.value for state in UpdateState if state.is_terminal}
    assert terminal == {
        "committed",
        "rolled_back",
        "inconsistent",
        "rejected",
        "failed_clean",
        "canceled",
        "superseded",
    }


def test_who_may_publish_what():
    assert {kind.value for kind in Kind if not kind.from_device} == {"goal", "ack", "job"}


def test_errors_say_where_what_and_how_on():
    error = ConfigError(
        "unknown target", file="a.toml", key="target", expected="x, y", got="z", next_step="edgeship targets list"
    )
    assert str(error) == "a.toml: target: unknown target (expected x, y, got z)"
    assert (error.exit_code, error.next_step) == (2, "edgeship targets list")
    assert TransferError("gone", retryable=True).retryable
    assert ConversionError("no such operator", op="Foo").key == "Foo"


def test_the_tree_of_errors_and_its_exit_codes():
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert all(issubclass(getattr(errors, name), EdgeshipError) for name in errors.__all__)
    assert {name for name, code in codes.items() if code != 1} == {
        "ConfigError",
        "InputError",
        "BudgetExceeded",
        "Inconclusive",
    }
    assert (codes["ConfigError"], codes["InputError"], codes["BudgetExceeded"], codes["Inconclusive"]) == (2, 2, 3, 4)
