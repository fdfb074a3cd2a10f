"""The attestation report: what ATTESTATION says of a guest, signed by the platform's PEK.

208 bytes, little-endian (AMD SEV API, "ATTESTATION")::

    0x00  mnonce 16, launch digest 32, policy u32
    0x34  ---- the signature covers what is above ----
          usage of the signer, algorithm, reserved; r and s of 72 bytes each

The form is that of AMD's firmware and sev-tool. virtee/sev (sevctl) takes the 144 bytes for a DER structure instead;
`Encoding` tells the two apart, and a report can be written as either.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, utils

from sealift.errors import StreamError
from sealift.sev import keys
from sealift.sev.certificate import Usage
from sealift.sev.keys import Algorithm, PublicKey
from sealift.sev.policy import Policy

MNONCE_SIZE: Final = 16
DIGEST_SIZE: Final = 32

_SIGNATURE_SIZE: Final = 2 * keys.NUMBER_SIZE
_BODY: Final = struct.Struct(f"<{MNONCE_SIZE}s{DIGEST_SIZE}sI")
_SIGNED: Final = struct.Struct(f"<III{_SIGNATURE_SIZE}s")

SIZE: Final = _BODY.size + _SIGNED.size

_DER_SEQUENCE: Final = 0x30
_SHORT_LENGTH_LIMIT: Final = 0x80
"""DER lengths below this are one byte; a structure of two P-384 numbers has at most 104."""


class Encoding(Enum):
    """How a report writes its signature."""

    RAW = "r || s, little-endian"
    DER = "DER, as virtee/sev reads it"


@dataclass(frozen=True, slots=True)
class AttestationReport:
    """One report; fields as on the wire.

    Attributes:
        mnonce: the asker's 16 bytes, which make the report fresh.
        launch_digest: SHA-256 over what was measured; zeros for a guest that was received from elsewhere.
        policy: the guest's.
        usage: the signer's, a plain number as in certificates.
        algorithm: of the signature.
        reserved: offset 0x3C, 0.
        signature: r and s, 144 bytes.
    """

    mnonce: bytes
    launch_digest: bytes
    policy: Policy
    usage: int = Usage.PEK
    algorithm: int = Algorithm.ECDSA_SHA256
    reserved: int = 0
    signature: bytes = bytes(_SIGNATURE_SIZE)

    @classmethod
    def decode(cls, data: bytes) -> AttestationReport:
        """Read 208 bytes.

        Raises:
            StreamError: wrong length.
        """
        if len(data) != SIZE:
            raise StreamError(f"an attestation report has {SIZE} bytes, not {len(data)}")
        mnonce, digest, policy = _BODY.unpack_from(data)
        return cls(mnonce, digest, Policy(policy), *_SIGNED.unpack_from(data, _BODY.size))

    def encode(self) -> bytes:
        """The report's 208 bytes."""
        return self.body() + _SIGNED.pack(self.usage, self.algorithm, self.reserved, self.signature)

    def body(self) -> bytes:
        """What the signature covers: the first 52 bytes."""
        return _BODY.pack(self.mnonce, self.launch_digest, self.policy)

    def signed(self, pek: ec.EllipticCurvePrivateKey) -> AttestationReport:
        """This report with the PEK's signature."""
        field = keys.sign(pek, Algorithm.ECDSA_SHA256, self.body())
        return replace(self, signature=field[:_SIGNATURE_SIZE])

    def verifies(self, pek: PublicKey) -> bool:
        """Whether the signature, which must be `Encoding.RAW`, is that of the PEK whose public key is given."""
        if (self.usage, self.algorithm) != (Usage.PEK, Algorithm.ECDSA_SHA256):
            return False
        field = self.signature.ljust(keys.SIGNATURE_SIZE, b"\0")
        return keys.verify(pek, Algorithm.ECDSA_SHA256, self.body(), field)

    @property
    def encoding(self) -> Encoding:
        """How the signature is written: as a DER structure with zeros behind it, or raw."""
        return Encoding.RAW if _der_numbers(self.signature) is None else Encoding.DER

    def written_as(self, encoding: Encoding) -> AttestationReport:
        """The same report with its signature in this encoding.

        Raises:
            StreamError: the signature does not fit: its numbers are no signature's.
        """
        if encoding is self.encoding:
            return self
        if encoding is Encoding.RAW:
            numbers = _der_numbers(self.signature) or (0, 0)
            signature = b"".join(number.to_bytes(keys.NUMBER_SIZE, "little") for number in numbers)
        else:
            r, s = (self.signature[start : start + keys.NUMBER_SIZE] for start in (0, keys.NUMBER_SIZE))
            der = utils.encode_dss_signature(int.from_bytes(r, "little"), int.from_bytes(s, "little"))
            signature = der.ljust(_SIGNATURE_SIZE, b"\0")
        if len(signature) != _SIGNATURE_SIZE:
            raise StreamError("the report's signature has numbers that are too large for P-384")
        return replace(self, signature=signature)


def _der_numbers(field: bytes) -> tuple[int, int] | None:
    """The numbers r and s, if the field holds a DER signature and zeros behind it."""
    end = 2 + field[1]
    if field[0] != _DER_SEQUENCE or field[1] >= _SHORT_LENGTH_LIMIT or any(field[end:]):
        return None
    try:
        r, s = utils.decode_dss_signature(field[:end])
    except ValueError:
        return None
    limit = 1 << 8 * keys.NUMBER_SIZE  # what the other encoding has room for
    return (r, s) if 0 <= r < limit and 0 <= s < limit else None
