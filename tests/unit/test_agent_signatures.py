"""Signatures are checked by Python's own OpenSSL, and by the package where that cannot be: both say the same."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeship_agent.identity import signatures
from edgeship_agent.identity.signatures import is_signed
from tests.conformance.slots import python

#: Source: RFC 8032, section 7.1, tests 1 to 3: public key, message, signature.
KNOWN = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.fixture(params=["Python's OpenSSL", "cryptography"])
def way(request, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cryptography":
        monkeypatch.setattr(signatures, "_pythons_openssl", lambda: None)
    return request.param


@pytest.mark.parametrize(("key", "message", "signature"), KNOWN)
def test_known_signatures(way, key, message, signature):
    assert is_signed(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message))
    assert not is_signed(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message) + b"\0")


def test_one_changed_bit_is_no_signature(way):
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    key, data = private.public_key().public_bytes_raw(), b"\0goal\0" * 100
    signature = private.sign(data)
    assert is_signed(key, signature, data)
    for place in range(0, 64, 7):
        changed = bytearray(signature)
        changed[place] ^= 1
        assert not is_signed(key, bytes(changed), data)
    assert not is_signed(key, signature, data[:-1])
    assert not is_signed(bytes(32), signature, data)
    assert is_signed(key, signature, data)  # what went wrong before is forgotten


@pytest.mark.parametrize(("key", "signature"), [(b"", bytes(64)), (bytes(31), bytes(64)), (bytes(32), b"")])
def test_what_has_another_length_is_none(way, key, signature):
    assert not is_signed(key, signature, b"")


def test_where_the_algorithm_is_missing_the_package_checks(monkeypatch):
    """As under a policy that forbids it in the system's OpenSSL."""
    monkeypatch.setattr(signatures, "_ED25519", 0)
    key, message, signature = KNOWN[2]
    assert is_signed(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message))
    assert not is_signed(bytes.fromhex(key), bytes.fromhex(signature), b"")


def test_a_supervisor_does_not_bring_a_second_openssl():
    code = """
import sys
import edgeship_agent.supervisor.run, edgeship_agent.profiling.desk
from edgeship_agent.identity.signatures import is_signed
is_signed(bytes(32), bytes(64), b"")
print(sorted(name for name in sys.modules if name.startswith("cryptography")))
"""
    assert python(code).strip() == "[]"
