"""The attestation report: what firmware says about a guest at any later time, signed by the platform's PEK.

208 bytes, little-endian (AMD SEV API, "ATTESTATION"; AMDESE/sev-tool)::

    0x00  mnonce 16, the asker's | launch digest 32 | policy u32
    0x34  ---- the signature covers what is above ----
          signer's usage u32 (PEK) | algorithm u32 | reserved u32 | signature 144

The signature is r || s, 72 bytes each, little-endian, as in certificates. virtee/sev (sevctl) takes these 144 bytes
for a DER structure instead; `Encoding` tells the two apart, and reports can be converted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from cryptography.hazmat.primitives.asymmetric import utils

from sealift.errors import StreamError
from sealift.sev import keys
from sealift.sev.certificate import Usage
from sealift.sev.keys import NUMBER_SIZE, SIGNATURE_SIZE, Algorithm, PrivateKey, PublicKey
from sealift.sev.policy import Policy

SIZE: Final = 208
MNONCE_SIZE: Final = 16
DIGEST_SIZE: Final = 32

_SIGNED: Final = struct.Struct(f"<{MNONCE_SIZE}s{DIGEST_SIZE}sI")
_SIGNER: Final = struct.Struct("<III144s")
_DER_SEQUENCE: Final = 0x30
_SHORT_LENGTH_LIMIT: Final = 0x80
"""DER lengths below this are one byte; two P-384 numbers take at most 102."""


class Encoding(Enum):
    """How a report writes its signature."""

    RAW = "r || s, little-endian"
    DER = "DER, as virtee/sev reads it"


@dataclass(frozen=True, slots=True)
class AttestationReport:
    """One report.

    Attributes:
        mnonce: the asker's, 16 bytes: the report is newer than it.
        launch_digest: what was launched, 32 bytes.
        policy: the guest's.
        signer: the usage of the key that signed, `Usage.PEK`; a plain number, as in a certificate's slot.
        algorithm: the signature's.
        signature: 144 bytes, in either encoding.
        reserved: offset 0x3c, 0 in genuine reports.
    """

    mnonce: bytes
    launch_digest: bytes
    policy: Policy
    signer: int = Usage.PEK
    algorithm: int = Algorithm.ECDSA_SHA256
    signature: bytes = bytes(2 * NUMBER_SIZE)
    reserved: int = 0

    @classmethod
    def decode(cls, data: bytes) -> AttestationReport:
        """Read 208 bytes.

        Raises:
            StreamError: wrong length.
        """
        if len(data) != SIZE:
            raise StreamError(f"an attestation report has {SIZE} bytes, not {len(data)}")
        mnonce, digest, policy = _SIGNED.unpack_from(data)
        signer, algorithm, reserved, signature = _SIGNER.unpack_from(data, _SIGNED.size)
        return cls(mnonce, digest, Policy(policy), signer, algorithm, signature, reserved)

    def encode(self) -> bytes:
        """The report's 208 bytes."""
        return self.body() + _SIGNER.pack(self.signer, self.algorithm, self.reserved, self.signature)

    def body(self) -> bytes:
        """What the signature covers: the first 52 bytes."""
        return _SIGNED.pack(self.mnonce, self.launch_digest, self.policy)

    def signed(self, pek: PrivateKey) -> AttestationReport:
        """This report signed as firmware signs it."""
        signature = keys.sign(pek, Algorithm.ECDSA_SHA256, self.body())[: 2 * NUMBER_SIZE]
        return replace(self, signer=Usage.PEK, algorithm=Algorithm.ECDSA_SHA256, signature=signature)

    @property
    def encoding(self) -> Encoding:
        """How the signature is written: a DER sequence that ends in the field, with zeros behind it, or raw."""
        return Encoding.RAW if _der_numbers(self.signature) is None else Encoding.DER

    def written_as(self, encoding: Encoding) -> AttestationReport:
        """The same report with its signature in this encoding."""
        if encoding is self.encoding:
            return self
        r, s = self._numbers()
        if encoding is Encoding.DER:
            signature = utils.encode_dss_signature(r, s).ljust(2 * NUMBER_SIZE, b"\0")
        else:
            signature = _raw(r, s)
        return replace(self, signature=signature)

    def verifies(self, pek: PublicKey) -> bool:
        """Whether the signature, in either encoding, is `pek`'s."""
        if self.signer != Usage.PEK or self.algorithm not in frozenset(Algorithm):
            return False
        field = _raw(*self._numbers()).ljust(SIGNATURE_SIZE, b"\0")
        return keys.verify(pek, Algorithm(self.algorithm), self.body(), field)

    def _numbers(self) -> tuple[int, int]:
        found = _der_numbers(self.signature)
        if found is not None:
            return found
        r, s = self.signature[:NUMBER_SIZE], self.signature[NUMBER_SIZE:]
        return int.from_bytes(r, "little"), int.from_bytes(s, "little")


def _raw(r: int, s: int) -> bytes:
    return r.to_bytes(NUMBER_SIZE, "little") + s.to_bytes(NUMBER_SIZE, "little")


def _der_numbers(field: bytes) -> tuple[int, int] | None:
    """The numbers r and s, if the field begins with a DER signature and ends in zeros."""
    end = 2 + field[1]
    if field[0] != _DER_SEQUENCE or field[1] >= _SHORT_LENGTH_LIMIT or any(field[end:]):
        return None
    try:
        r, s = utils.decode_dss_signature(field[:end])
    except ValueError:
        return None
    # Numbers that no raw field holds cannot come from a signature of ours; r and s are positive.
    limit = 1 << 8 * NUMBER_SIZE
    return (r, s) if 0 <= r < limit and 0 <= s < limit else None
