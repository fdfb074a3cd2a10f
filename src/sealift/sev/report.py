"""The attestation report: what ATTESTATION says of a guest, signed by the platform's PEK.

208 bytes, little-endian (AMD SEV API, "ATTESTATION")::

    0x00  mnonce 16, launch digest 32, policy u32
    0x34  ---- the signature covers what is above ----
          usage of the signer, algorithm, reserved; r and s of 72 bytes each

The form is that of AMD's firmware and sev-tool; there are tools that expect the signature in DER and refuse it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

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
        """Whether the signature is that of the PEK whose public key is given."""
        if (self.usage, self.algorithm) != (Usage.PEK, Algorithm.ECDSA_SHA256):
            return False
        field = self.signature.ljust(keys.SIGNATURE_SIZE, b"\0")
        return keys.verify(pek, Algorithm.ECDSA_SHA256, self.body(), field)
