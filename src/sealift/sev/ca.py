"""AMD's CA certificates: the signing key (ASK) and the root key (ARK), version 1.

Little-endian (AMD SEV API, appendix B): a header of 64 bytes, then exponent and modulus as long as the header says
and the signature over everything before it. 832 bytes with RSA-2048, 1600 with RSA-4096; a file of both is
ASK||ARK. The digest follows the size: SHA-256 with 2048 bits, SHA-384 with 4096.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from sealift.errors import StreamError
from sealift.sev import keys
from sealift.sev.certificate import Usage

VERSION: Final = 1
KEY_ID_SIZE: Final = 16

_HEADER: Final = struct.Struct("<I16s16sI16sII")
NOT_AMD: Final = b"not AMD "
"""How the key ids of roots begin that are ours and not AMD's."""

AMD_KEY_IDS: Final = MappingProxyType(
    {
        bytes.fromhex("1bb987c359494606b174945601c9ea5b"): "Naples",
        bytes.fromhex("e6002122fb58419399d15fee7b131351"): "Rome",
        bytes.fromhex("94c38e4177d0479292a7ae671d083fb6"): "Milan",
    }
)
"""Key ids of AMD's roots by generation (AMDESE/sev-tool ``amdcert.h``). Anybody can write one into a certificate."""

KEY_SIZES: Final = frozenset({256, 512})
"""Bytes of the keys there are: RSA-2048 and RSA-4096."""


@dataclass(frozen=True, slots=True)
class CaCertificate:
    """One ASK or ARK certificate; every field as on the wire.

    Attributes:
        usage: ASK or ARK.
        key_id: name of this key, 16 bytes.
        certifying_id: name of the key that signed; the ARK's own for itself.
        exponent: public exponent, little-endian, as long as the modulus.
        modulus: little-endian, 256 or 512 bytes.
        signature: little-endian, as long as the modulus; empty while unsigned.
        reserved: offset 40, zero in every certificate seen.
    """

    usage: Usage
    key_id: bytes
    certifying_id: bytes
    exponent: bytes
    modulus: bytes
    signature: bytes = b""
    reserved: bytes = bytes(16)

    @classmethod
    def of(cls, usage: Usage, key: rsa.RSAPublicKey, key_id: bytes, certifying_id: bytes) -> CaCertificate:
        """An unsigned certificate for an RSA key of 2048 or 4096 bits."""
        numbers, size = key.public_numbers(), key.key_size // 8
        exponent, modulus = numbers.e.to_bytes(size, "little"), numbers.n.to_bytes(size, "little")
        return cls(usage, key_id, certifying_id, exponent, modulus)

    @classmethod
    def decode(cls, data: bytes) -> CaCertificate:
        """Read one certificate.

        Raises:
            StreamError: wrong length, version, usage or key size.
        """
        if len(data) < _HEADER.size:
            raise StreamError(f"{len(data)} bytes are too few for an ASK or ARK certificate")
        version, key_id, certifying_id, usage, reserved, exponent_bits, bits = _HEADER.unpack_from(data)
        if version != VERSION or usage not in {Usage.ASK, Usage.ARK}:
            raise StreamError(f"version {version} with usage {usage:#x} is no ASK or ARK certificate")
        if bits % 8 or bits // 8 not in KEY_SIZES or exponent_bits != bits:
            raise StreamError(f"an ASK or ARK has 2048 or 4096 bits, not {bits} ({exponent_bits} for its exponent)")
        size = bits // 8
        if len(data) != _HEADER.size + 3 * size:
            raise StreamError(f"a {bits}-bit {Usage(usage).name} has {_HEADER.size + 3 * size} bytes, not {len(data)}")
        exponent, modulus, signature = (data[start : start + size] for start in range(_HEADER.size, len(data), size))
        return cls(Usage(usage), key_id, certifying_id, exponent, modulus, signature, reserved)

    def encode(self) -> bytes:
        """The certificate's bytes; without a signature, what the signature covers."""
        return self.body() + self.signature

    def body(self) -> bytes:
        """What the signature covers."""
        bits = 8 * len(self.modulus)
        header = _HEADER.pack(VERSION, self.key_id, self.certifying_id, self.usage, self.reserved, bits, bits)
        return header + self.exponent + self.modulus

    def key(self) -> rsa.RSAPublicKey:
        """The public key.

        Raises:
            StreamError: the numbers make no RSA key.
        """
        exponent, modulus = (int.from_bytes(number, "little") for number in (self.exponent, self.modulus))
        return keys.rsa_public_key(8 * len(self.modulus), exponent, modulus)

    def fingerprint(self) -> bytes:
        """SHA-256 of what the signature covers: names the certificate however often it is signed again."""
        return hashlib.sha256(self.body()).digest()

    def signed(self, key: rsa.RSAPrivateKey) -> CaCertificate:
        """This certificate signed by `key`, which has as many bits as the certified key."""
        signature = keys.sign_rsa(key, _digest(key.key_size), self.body())
        return replace(self, signature=signature)

    def verifies(self, key: rsa.RSAPublicKey) -> bool:
        """Whether the signature is `key`'s."""
        return keys.verify_rsa(key, _digest(key.key_size), self.body(), self.signature)


def decode_ca_chain(data: bytes) -> tuple[CaCertificate, CaCertificate]:
    """Read ASK||ARK, as AMD distributes them.

    Raises:
        StreamError: the bytes are not two CA certificates of one size in that order.
    """
    half = len(data) // 2
    ask, ark = CaCertificate.decode(data[:half]), CaCertificate.decode(data[half:])
    if (ask.usage, ark.usage) != (Usage.ASK, Usage.ARK):
        raise StreamError(f"a CA chain is ASK then ARK, not {ask.usage.name} then {ark.usage.name}")
    return ask, ark


def _digest(bits: int) -> hashes.HashAlgorithm:
    return hashes.SHA256() if bits == 2048 else hashes.SHA384()
