"""The owner's certificate authority (OCA): who has signed a platform's PEK owns the platform.

::

    platform ── PEK_CSR ──► PEK, unsigned ──► OCA signs ── PEK_CERT_IMPORT (PEK, OCA's certificate) ──► platform

The files are those of ``sevctl generate`` and ``sevctl provision``: a self-signed SEV certificate and a private key,
in DER there and in PEM with sev-tool; both are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealift.errors import StreamError, UserError
from sealift.owner.files import OutputFile, parsed
from sealift.sev import certificate, keys
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm
from sealift.sev.text import raw_or_base64

_FILE_LIMIT: Final = 4096
"""Bytes of a certificate in base64 (2780) or of a private key in any form (under 400)."""


@dataclass(frozen=True, slots=True)
class OwnerAuthority:
    """An OCA; its key is never shown."""

    certificate: Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> OwnerAuthority:
        """A fresh one, as sevctl makes it."""
        key = keys.generate()
        unsigned = Certificate.of(Usage.OCA, Algorithm.ECDSA_SHA256, key.public_key())
        return cls(unsigned.signed(Usage.OCA, key, Algorithm.ECDSA_SHA256), key)

    @classmethod
    def read(cls, certificate_path: Path, key_path: Path) -> OwnerAuthority:
        """From two files.

        Raises:
            UserError: one cannot be read or holds something else, or they do not belong together.
        """
        cert = parsed("OCA certificate", certificate_path, _FILE_LIMIT, _certificate)
        key = parsed("OCA's private key", key_path, _FILE_LIMIT, _private_key)
        if cert.key() != key.public_key():
            raise UserError(f"the private key {key_path} is not that of the OCA certificate {certificate_path}")
        return cls(cert, key)

    def files(self, certificate_path: Path, key_path: Path) -> list[OutputFile]:
        """Both as files: the certificate raw, the key in DER (PKCS #8)."""
        pkcs8 = self.key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return [OutputFile(key_path, pkcs8, secret=True), OutputFile(certificate_path, self.certificate.encode())]

    def signed(self, request: bytes) -> bytes:
        """The certificate of PEK_CSR under this authority's signature, for PEK_CERT_IMPORT.

        Raises:
            StreamError: it is no certificate of a PEK, or was signed already.
        """
        pek = Certificate.decode(request)
        if pek.usage is not Usage.PEK:
            raise StreamError(f"a {pek.usage.name} certificate came where the platform's PEK was expected")
        if pek != pek.unsigned():
            raise StreamError("the PEK certificate has signatures, and a request has none")
        return pek.signed(Usage.OCA, self.key, self.certificate.algorithm).encode()


def read_certificate(usage: Usage, path: Path) -> Certificate:
    """One SEV certificate out of a file, raw or base64; its signatures are not looked at.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    return parsed(f"{usage.name} certificate", path, _FILE_LIMIT, lambda data: _decode(usage, data))


def _decode(usage: Usage, data: bytes) -> Certificate:
    cert = Certificate.decode(raw_or_base64(data, {certificate.SIZE}))
    if cert.usage is not usage:
        raise StreamError(f"it is a {cert.usage.name} certificate")
    return cert


def _certificate(data: bytes) -> Certificate:
    cert = _decode(Usage.OCA, data)
    if not cert.algorithm.signs:
        raise StreamError(f"its algorithm is {cert.algorithm.name}, which signs nothing")
    if not cert.verifies(Usage.OCA, cert.key()):
        raise StreamError("its signature is not its own")
    return cert


def _private_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    load = serialization.load_pem_private_key if data.startswith(b"-----") else serialization.load_der_private_key
    try:
        key = load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StreamError("it holds no private key in DER or PEM, or one under a passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StreamError("it is no EC key")
    return key
