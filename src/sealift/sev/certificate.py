"""The SEV certificate, version 1: CEK, OCA, PEK, PDH and an owner's Diffie-Hellman key (GODH).

2084 bytes, little-endian, packed (AMD SEV API, appendix C)::

    0x000  version 1, api_major u8, api_minor u8, reserved u16, usage, algorithm
    0x010  public key, 1028 bytes
    0x414  ---- signatures cover what is above ----
           usage, algorithm, 512 bytes      first slot
    0x61c  usage, algorithm, 512 bytes      second slot

Signers use either slot: a PEK carries those of OCA and CEK in no fixed order.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from sealift.errors import StreamError
from sealift.sev import keys
from sealift.sev.keys import Algorithm, PrivateKey, PublicKey

SIZE: Final = 2084
BODY_SIZE: Final = 1044
VERSION: Final = 1

_BODY: Final = struct.Struct(f"<IBBHII{keys.PUBLIC_KEY_SIZE}s")
_SLOT: Final = struct.Struct(f"<II{keys.SIGNATURE_SIZE}s")


class Usage(IntEnum):
    """What a key is for (AMD SEV API, "Usage Enumeration")."""

    ARK = 0x0000
    ASK = 0x0013
    NONE = 0x1000
    OCA = 0x1001
    PEK = 0x1002
    PDH = 0x1003
    CEK = 0x1004


_USAGES: Final[frozenset[int]] = frozenset(Usage)
_ALGORITHMS: Final[frozenset[int]] = frozenset(Algorithm)


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature slot.

    `usage` (the signer's) and `algorithm` are plain numbers, because firmware takes certificates whose slots it
    does not look at; a slot with an unknown number just verifies under no key.
    """

    usage: int = Usage.NONE
    algorithm: int = Algorithm.NONE
    data: bytes = bytes(keys.SIGNATURE_SIZE)

    @property
    def empty(self) -> bool:
        """Whether nobody signed here."""
        return self.usage == Usage.NONE and self.algorithm == Algorithm.NONE

    @property
    def half_empty(self) -> bool:
        """Whether usage and algorithm disagree about being empty, which firmware calls a bad signature."""
        return (self.usage == Usage.NONE) != (self.algorithm == Algorithm.NONE)

    def verifies(self, issuer: Usage, key: PublicKey, body: bytes) -> bool:
        """Whether this slot holds the signature of `issuer`, whose public key is `key`, over `body`."""
        if self.usage != issuer or self.algorithm not in _ALGORITHMS:
            return False
        return keys.verify(key, Algorithm(self.algorithm), body, self.data)


@dataclass(frozen=True, slots=True)
class Certificate:
    """One SEV certificate; every field as on the wire, so that decoding and encoding give the same bytes.

    Attributes:
        usage: what the key is for.
        algorithm: what the key is used with.
        public_key: the key's field, 1028 bytes (`key` reads it).
        api: firmware API version (major, minor) of the maker; (0, 0) from owners' tools.
        reserved: offset 6, 0 in every certificate seen.
        signatures: both slots.
    """

    usage: Usage
    algorithm: Algorithm
    public_key: bytes
    api: tuple[int, int] = (0, 0)
    reserved: int = 0
    signatures: tuple[Signature, Signature] = (Signature(), Signature())

    @classmethod
    def of(cls, usage: Usage, algorithm: Algorithm, key: PublicKey, api: tuple[int, int] = (0, 0)) -> Certificate:
        """An unsigned certificate for `key`."""
        return cls(usage, algorithm, keys.encode_public_key(key), api)

    @classmethod
    def decode(cls, data: bytes) -> Certificate:
        """Read 2084 bytes. The public key itself is read, and checked, by `key`.

        Raises:
            StreamError: wrong length or version, or a usage or algorithm that does not exist.
        """
        if len(data) != SIZE:
            raise StreamError(f"an SEV certificate has {SIZE} bytes, not {len(data)}")
        version, major, minor, reserved, usage, algorithm, public_key = _BODY.unpack_from(data)
        if version != VERSION:
            raise StreamError(f"an SEV certificate of version {version} is unknown; version 1 is expected")
        if usage not in _USAGES or algorithm not in _ALGORITHMS:
            raise StreamError(f"usage {usage:#x} with algorithm {algorithm:#x} is no SEV certificate")
        first, second = (Signature(*_SLOT.unpack_from(data, offset)) for offset in (BODY_SIZE, BODY_SIZE + _SLOT.size))
        api = (major, minor)
        return cls(Usage(usage), Algorithm(algorithm), public_key, api, reserved, (first, second))

    def encode(self) -> bytes:
        """The certificate's 2084 bytes."""
        slots = (_SLOT.pack(slot.usage, slot.algorithm, slot.data) for slot in self.signatures)
        return self.body() + b"".join(slots)

    def body(self) -> bytes:
        """What signatures cover: the first 1044 bytes."""
        return _BODY.pack(VERSION, *self.api, self.reserved, self.usage, self.algorithm, self.public_key)

    def key(self) -> PublicKey:
        """The public key.

        Raises:
            StreamError: the field holds no key, or a point off its curve.
        """
        return keys.decode_public_key(self.algorithm, self.public_key)

    def fingerprint(self) -> bytes:
        """SHA-256 of the public key's field: names the key through re-signing and firmware updates."""
        return hashlib.sha256(self.public_key).digest()

    def signed(self, issuer: Usage, key: PrivateKey, algorithm: Algorithm) -> Certificate:
        """This certificate with `issuer`'s signature in its first empty slot.

        Raises:
            ValueError: no slot is empty, or `key` cannot sign with `algorithm`.
        """
        made = Signature(issuer, algorithm, keys.sign(key, algorithm, self.body()))
        first, second = self.signatures
        if first.empty:
            return replace(self, signatures=(made, second))
        if second.empty:
            return replace(self, signatures=(first, made))
        raise ValueError(f"both signature slots of the {self.usage.name} certificate are taken")

    def unsigned(self) -> Certificate:
        """This certificate with both slots empty."""
        return replace(self, signatures=(Signature(), Signature()))

    def verifies(self, issuer: Usage, key: PublicKey) -> bool:
        """Whether either slot holds the signature of `issuer`, whose public key is `key`."""
        return any(slot.verifies(issuer, key, self.body()) for slot in self.signatures)
