"""Certificates for TLS, made for tests: authorities, and the two sides' directories in QEMU's file names."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)
_NOW = datetime.datetime.now(datetime.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A certificate authority."""

    def __init__(self, name: str = "tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateBuilder().subject_name(_name(name)).issuer_name(_name(name))
        builder = builder.public_key(self._key.public_key()).serial_number(1)
        builder = builder.not_valid_before(_NOW - _DAY).not_valid_after(_NOW + _DAY)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # noqa: FBT003  # X.509's order
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage, critical=True)
        self._name = _name(name)
        self.certificate = builder.sign(self._key, hashes.SHA256())

    def issue(self, path: Path, side: str, host: str = "127.0.0.1", *, expired: bool = False) -> None:
        """Write `side`'s (server or client) certificate and key for an IP address or host name, and our own."""
        path.mkdir(mode=0o700, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        end = _NOW - _DAY / 2 if expired else _NOW + _DAY
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        builder = x509.CertificateBuilder().subject_name(_name(side)).issuer_name(self._name)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(_NOW - _DAY).not_valid_after(end)
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        (path / "ca-cert.pem").write_bytes(self.certificate.public_bytes(pem))
        (path / f"{side}-cert.pem").write_bytes(certificate.public_bytes(pem))
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (path / f"{side}-key.pem").write_bytes(secret)
