"""Key derivation: NIST SP800-108 in counter mode with HMAC-SHA256, as the SEV API uses it.

Block i (from 1) is ``HMAC(key, LE32(i) || label || 0x00 || context || LE32(bits))``. Counter and length are
little-endian, which the standard leaves open.
"""

from __future__ import annotations

import hmac
from typing import Final

KEY_SIZE: Final = 16
"""Bytes of every AES and HMAC key in the SEV protocols."""

P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
"""Order of the P-384 group (FIPS 186-4, D.1.2.4)."""

SECP256K1_ORDER: Final = int("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
"""Order of the secp256k1 group (SEC 2, 2.4.1)."""

_EXTRA_BITS: Final = 56
"""Bytes for a P-384 scalar by the "extra random bits" method: 48 plus the 64 bits that hide the bias."""

_ID_EXTRA_BITS: Final = 40
"""Bytes for a secp256k1 scalar likewise: 32 plus 64 bits."""


def derive(key: bytes, label: str, context: bytes, length: int) -> bytes:
    """Derive `length` bytes from `key` for the purpose `label`."""
    suffix = label.encode() + b"\0" + context + (8 * length).to_bytes(4, "little")
    blocks = -(-length // 32)
    output = b"".join(
        hmac.digest(key, index.to_bytes(4, "little") + suffix, "sha256") for index in range(1, blocks + 1)
    )
    return output[:length]


def master_secret(shared_secret: bytes, nonce: bytes) -> bytes:
    """Master secret of a session, from the ECDH secret Z and the session's nonce."""
    return derive(shared_secret, "sev-master-secret", nonce, KEY_SIZE)


def encryption_key(master: bytes) -> bytes:
    """KEK: the key that encrypts a session's transport keys."""
    return derive(master, "sev-kek", b"", KEY_SIZE)


def integrity_key(master: bytes) -> bytes:
    """KIK: the key that authenticates a session's wrapped transport keys."""
    return derive(master, "sev-kik", b"", KEY_SIZE)


def stream_key(tik: bytes) -> bytes:
    """Key of the MAC over what travels beside a session's packets (`sealift.sev.packet.stream_mac`).

    AMD's API has no such thing; the label is ours, and keeps it apart from the packets' MACs.
    """
    return derive(tik, "sealift-stream", b"", 32)


def endorsement_scalar(seed: bytes) -> int:
    """Private scalar of the chip endorsement key; `seed` is the SHA-256 of the chip-unique secret.

    Reduces the derived number into [1, n-1] (FIPS 186-4, B.4.1), so the same chip always has the same key.
    """
    number = int.from_bytes(derive(seed, "sev-chip-endorsement-key", b"", _EXTRA_BITS), "big")
    return number % (P384_ORDER - 1) + 1


def identity_scalar(seed: bytes) -> int:
    """Private scalar of the chip's id (GET_ID), from the same seed.

    How silicon comes by it is not published; the label is ours.
    """
    number = int.from_bytes(derive(seed, "sev-chip-id", b"", _ID_EXTRA_BITS), "big")
    return number % (SECP256K1_ORDER - 1) + 1
