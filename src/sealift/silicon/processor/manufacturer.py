"""Who plays AMD: a root and a signing key of our own, and the signature on every chip's endorsement key.

Nothing here is AMD's and nothing claims to be: key ids begin with ``not AMD``, so verifiers that pin AMD's roots
refuse, and owners must pin this root by hand. What `endorse` returns is what AMD's key server (KDS) would serve.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sealift.errors import SealError, StreamError, UserError
from sealift.privatefiles import Access, PrivateDirectory
from sealift.sev.ca import KEY_ID_SIZE, NOT_AMD, CaCertificate, decode_ca_chain
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm

KEY_BITS: Final = 4096
CA_CHAIN_SIZE: Final = 3200
"""Bytes of ASK||ARK with 4096-bit keys."""

_CHAIN_FILE: Final = "ask_ark.cert"
_KEY_FILE: Final = "ask.key"
_KEY_LIMIT: Final = 8192
"""Bytes of a PKCS #8 file: a 4096-bit key takes about 2400."""


class Manufacturer:
    """A manufacturer's directory, with keys made on first use.

    The ARK's private key signs ASK and ARK once and is never kept: a manufacturer has one ASK for life.

    Args:
        path: the directory, private to the user.

    Raises:
        UserError: the directory is open to others, or what it holds is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._directory = PrivateDirectory(path, "manufacturer")
        with self._directory.locked(Access.CHANGE):
            if not self._directory.has(_CHAIN_FILE):
                self._establish()
        self.ca_chain: bytes = self._directory.read(_CHAIN_FILE, CA_CHAIN_SIZE)
        try:
            self.ask, self.ark = decode_ca_chain(self.ca_chain)
            authentic = self.ark.verifies(self.ark.key()) and self.ask.verifies(self.ark.key())
        except (StreamError, SealError) as error:
            raise self._damaged() from error
        self._ask_key = self._load_key()
        if not authentic or self._ask_key.public_key() != self.ask.key():
            raise self._damaged()

    def endorse(self, cek: Certificate) -> Certificate:
        """The chip endorsement key's certificate with the ASK's signature.

        Raises:
            UserError: the private key is damaged.
        """
        try:
            endorsed = cek.unsigned().signed(Usage.ASK, self._ask_key, Algorithm.RSA_SHA384)
            if endorsed.verifies(Usage.ASK, self.ask.key()):
                return endorsed
        except (ValueError, SealError) as error:
            raise self._damaged() from error
        raise self._damaged()

    def _load_key(self) -> rsa.RSAPrivateKey:
        """The key, whose numbers `endorse` proves: to prove them here takes a third of a second of prime numbers."""
        data = self._directory.read(_KEY_FILE, _KEY_LIMIT)
        try:
            key = serialization.load_der_private_key(data, None, unsafe_skip_rsa_key_validation=True)
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise self._damaged()
        return key

    def _establish(self) -> None:
        """Make both keys; the chain is written last, since its presence says that everything is there."""
        ark_key, ask_key = (rsa.generate_private_key(65537, KEY_BITS) for _ in range(2))
        ark_id, ask_id = (_key_id(key.public_key()) for key in (ark_key, ask_key))
        ark = CaCertificate.of(Usage.ARK, ark_key.public_key(), ark_id, ark_id).signed(ark_key)
        ask = CaCertificate.of(Usage.ASK, ask_key.public_key(), ask_id, ark_id).signed(ark_key)
        pkcs8 = ask_key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._directory.write(_KEY_FILE, pkcs8)
        self._directory.write(_CHAIN_FILE, ask.encode() + ark.encode())

    def _damaged(self) -> UserError:
        return UserError(
            f"the manufacturer's keys in {self._directory.path} are damaged; restore them from a copy, or move the "
            "directory away to start a new manufacturer, whose root owners must pin again"
        )


def _key_id(key: rsa.RSAPublicKey) -> bytes:
    """16 bytes that say whose key this is not, and which of ours it is."""
    modulus = key.public_numbers().n.to_bytes(key.key_size // 8, "little")
    return (NOT_AMD + hashlib.sha256(modulus).digest())[:KEY_ID_SIZE]
