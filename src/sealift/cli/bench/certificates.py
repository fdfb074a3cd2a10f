"""Certificates for a comparison under TLS: an authority that lives for one run, a server and a client of its.

Laid out as QEMU's object `tls-creds-x509` looks for them in its directory (QEMU's manual, "Network TLS"). What each
certificate may be used for is set as GnuTLS checks it for QEMU.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID: Final = datetime.timedelta(days=1)
_LOOPBACK: Final = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def write_certificates(directory: Path) -> None:
    """Make all of them, for an end on 127.0.0.1; the authority's key is kept nowhere."""
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("sealift bench authority")
    usage = _usage(signs_certificates=True)
    extensions = [(x509.BasicConstraints(ca=True, path_length=None), True), (usage, True)]
    certificate = _certificate(issuer, authority, issuer, authority, extensions)
    (directory / "ca-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    for role, purpose in (("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(
            _name(f"sealift bench {role}"),
            key,
            issuer,
            authority,
            [
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_usage(signs_certificates=False), True),
                (x509.ExtendedKeyUsage([purpose]), False),
                (x509.SubjectAlternativeName([_LOOPBACK]), False),
            ],
        )
        (directory / f"{role}-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{role}-key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """An authority signs certificates, an end signs handshakes; neither does anything else."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    """A certificate with extensions, each with whether it is critical."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())
