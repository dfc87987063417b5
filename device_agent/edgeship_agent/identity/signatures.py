"""Ed25519 signatures, checked by the OpenSSL that Python itself brings.

A supervisor checks the signature under a goal state a few times a day, and has OpenSSL in memory already: for TLS, and
for digests. The package ``cryptography`` brings an OpenSSL of its own, 6 MB of a device's memory for that one call; it
is what checks where Python's cannot be called: linked into the interpreter, without these functions, or without this
algorithm. Whatever goes wrong is no signature.

Source: OpenSSL 1.1.1 and later, EVP_PKEY_new_raw_public_key(3), EVP_DigestVerify(3), Ed25519(7).
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from functools import lru_cache
from typing import Final

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
#: Source: OpenSSL, obj_mac.h, NID_ED25519.
_ED25519: Final = 1087
#: Source: EVP_DigestVerify(3): 1 for a signature that is right, anything else for one that is not.
_RIGHT: Final = 1


def is_signed(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the owner of a key signed some bytes.

    Args:
        public_key: raw Ed25519 public key, 32 bytes.
        signature: 64 bytes; of any other length it is none.
        data: what was signed.

    >>> is_signed(bytes(32), bytes(64), b"goal")
    False
    """
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    answer = _by_pythons_openssl(public_key, signature, data)
    return _by_cryptography(public_key, signature, data) if answer is None else answer


def _by_pythons_openssl(public_key: bytes, signature: bytes, data: bytes) -> bool | None:
    """As :func:`is_signed`; None where it cannot tell."""
    library = _pythons_openssl()
    if library is None:
        return None
    key = library.EVP_PKEY_new_raw_public_key(_ED25519, None, public_key, len(public_key))
    context = library.EVP_MD_CTX_new()
    try:
        if not key or not context or library.EVP_DigestVerifyInit(context, None, None, None, key) != _RIGHT:
            return None
        return bool(library.EVP_DigestVerify(context, signature, len(signature), data, len(data)) == _RIGHT)
    finally:
        library.EVP_MD_CTX_free(context)
        library.EVP_PKEY_free(key)
        library.ERR_clear_error()  # what is left would be taken for an error of the next TLS call


@lru_cache(maxsize=1)
def _pythons_openssl() -> ctypes.CDLL | None:
    """The library that Python's own digests are made with, or None where it cannot be called."""
    try:
        import _hashlib

        library = ctypes.CDLL(_hashlib.__file__)  # a symbol is looked for in what this depends on, too
        library.EVP_PKEY_new_raw_public_key.argtypes = (c_int, c_void_p, c_char_p, c_size_t)
        library.EVP_PKEY_new_raw_public_key.restype = c_void_p
        library.EVP_MD_CTX_new.argtypes = ()
        library.EVP_MD_CTX_new.restype = c_void_p
        library.EVP_DigestVerifyInit.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
        library.EVP_DigestVerifyInit.restype = c_int
        library.EVP_DigestVerify.argtypes = (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)
        library.EVP_DigestVerify.restype = c_int
        library.EVP_MD_CTX_free.argtypes = library.EVP_PKEY_free.argtypes = (c_void_p,)
        library.EVP_MD_CTX_free.restype = library.EVP_PKEY_free.restype = None
        library.ERR_clear_error.argtypes = ()
        library.ERR_clear_error.restype = None
    except (ImportError, AttributeError, OSError):
        return None
    return library


def _by_cryptography(public_key: bytes, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True
