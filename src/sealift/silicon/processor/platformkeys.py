"""What a platform keeps in its non-volatile memory: OCA, PEK and PDH certificates with the private keys in use.

An OCA made by the platform itself signs one PEK and its private key is forgotten: a new PEK comes with a new OCA.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from sealift.errors import StreamError
from sealift.sev import certificate, keys
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm

VERSION: Final = 1

_SCALAR_SIZE: Final = 48
_LAYOUT: Final = struct.Struct(f"<II{_SCALAR_SIZE}s{_SCALAR_SIZE}s" + 3 * f"{certificate.SIZE}s")
_EXTERNALLY_OWNED: Final = 1

SIZE: Final = _LAYOUT.size
"""Bytes of `PlatformKeys.encode`."""


@dataclass(frozen=True, slots=True)
class PlatformKeys:
    """One generation of platform keys; private keys are never shown.

    Attributes:
        oca: the owner's certificate; the platform's own unless `externally_owned`.
        pek: signed by OCA and CEK.
        pdh: signed by PEK.
        pek_key: private key of `pek`.
        pdh_key: private key of `pdh`.
        externally_owned: whether an owner has brought its OCA in.
    """

    oca: Certificate
    pek: Certificate
    pdh: Certificate
    pek_key: ec.EllipticCurvePrivateKey = field(repr=False)
    pdh_key: ec.EllipticCurvePrivateKey = field(repr=False)
    externally_owned: bool = False

    @classmethod
    def generate(cls, cek_key: ec.EllipticCurvePrivateKey, api: tuple[int, int]) -> PlatformKeys:
        """Fresh keys of a self-owned platform.

        Args:
            cek_key: the chip's endorsement key, which signs the PEK after the OCA.
            api: the firmware's API version, which certificates carry.
        """
        ecdsa = Algorithm.ECDSA_SHA256
        oca_key, pek_key = keys.generate(), keys.generate()
        oca = Certificate.of(Usage.OCA, ecdsa, oca_key.public_key(), api)
        pek = Certificate.of(Usage.PEK, ecdsa, pek_key.public_key(), api)
        pdh, pdh_key = _new_pdh(pek_key, api)
        return cls(
            oca.signed(Usage.OCA, oca_key, ecdsa),
            pek.signed(Usage.OCA, oca_key, ecdsa).signed(Usage.CEK, cek_key, ecdsa),
            pdh,
            pek_key,
            pdh_key,
        )

    def with_new_pdh(self, api: tuple[int, int]) -> PlatformKeys:
        """The same platform with a fresh PDH."""
        pdh, pdh_key = _new_pdh(self.pek_key, api)
        return replace(self, pdh=pdh, pdh_key=pdh_key)

    def encode(self) -> bytes:
        """The keys as the platform stores them; secret."""
        scalars = (
            key.private_numbers().private_value.to_bytes(_SCALAR_SIZE, "big") for key in (self.pek_key, self.pdh_key)
        )
        flags = _EXTERNALLY_OWNED if self.externally_owned else 0
        certs = (cert.encode() for cert in (self.oca, self.pek, self.pdh))
        return _LAYOUT.pack(VERSION, flags, *scalars, *certs)

    @classmethod
    def decode(cls, data: bytes) -> PlatformKeys:
        """Read `encode`; whether signatures hold is for the caller to check.

        Raises:
            StreamError: it does not parse, or a private key is not its certificate's.
        """
        if len(data) != SIZE:
            raise StreamError(f"platform keys have {SIZE} bytes, not {len(data)}")
        version, flags, pek_scalar, pdh_scalar, *certs = _LAYOUT.unpack(data)
        if version != VERSION or flags & ~_EXTERNALLY_OWNED:
            raise StreamError(f"platform keys of version {version} with flags {flags:#x} are unknown here")
        oca, pek, pdh = (Certificate.decode(cert) for cert in certs)
        return cls(oca, pek, pdh, _key(pek_scalar, pek), _key(pdh_scalar, pdh), bool(flags))


def _new_pdh(
    pek_key: ec.EllipticCurvePrivateKey, api: tuple[int, int]
) -> tuple[Certificate, ec.EllipticCurvePrivateKey]:
    key = keys.generate()
    pdh = Certificate.of(Usage.PDH, Algorithm.ECDH_SHA256, key.public_key(), api)
    return pdh.signed(Usage.PEK, pek_key, Algorithm.ECDSA_SHA256), key


def _key(scalar: bytes, cert: Certificate) -> ec.EllipticCurvePrivateKey:
    try:
        key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP384R1())
    except ValueError as error:
        raise StreamError(f"the {cert.usage.name}'s private key is no key") from error
    if key.public_key() != cert.key():
        raise StreamError(f"the {cert.usage.name}'s private key is not its certificate's")
    return key
