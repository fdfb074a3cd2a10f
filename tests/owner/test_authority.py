"""An owner's OCA: the files of other tools are read, and what it signs is a platform's."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sealift.errors import StreamError, UserError, sentence
from sealift.owner.authority import OwnerAuthority
from sealift.owner.files import write
from sealift.sev import keys
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "oca.cert", tmp_path / "oca.key"


def written(pair: tuple[Path, Path]) -> OwnerAuthority:
    authority = OwnerAuthority.generate()
    write(authority.files(*pair), replace=False)
    return authority


def test_what_is_written_is_read_again_and_the_key_is_the_users_alone(pair: tuple[Path, Path]) -> None:
    authority = written(pair)
    again = OwnerAuthority.read(*pair)
    assert again.certificate == authority.certificate
    assert again.key.private_numbers() == authority.key.private_numbers()
    assert stat.S_IMODE(pair[1].stat().st_mode) == 0o600
    assert pair[0].stat().st_size == 2084
    assert repr(authority.key.private_numbers().private_value) not in repr(authority)


def test_a_fresh_authority_looks_like_sevctls(pair: tuple[Path, Path]) -> None:
    cert = written(pair).certificate
    assert (cert.usage, cert.algorithm, cert.api) == (Usage.OCA, Algorithm.ECDSA_SHA256, (0, 0))
    assert cert.verifies(Usage.OCA, cert.key())
    assert cert.signatures[1].empty


@pytest.mark.parametrize("encoding", [serialization.Encoding.DER, serialization.Encoding.PEM])
@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL], ids=str
)
def test_keys_in_every_tools_form_and_certificates_in_base64_are_read(
    pair: tuple[Path, Path], encoding: serialization.Encoding, form: serialization.PrivateFormat
) -> None:
    authority = written(pair)
    pair[0].write_bytes(base64.b64encode(authority.certificate.encode()) + b"\n")
    pair[1].write_bytes(authority.key.private_bytes(encoding, form, serialization.NoEncryption()))
    assert OwnerAuthority.read(*pair).certificate == authority.certificate


def test_a_pek_is_signed_in_its_free_slot(pair: tuple[Path, Path]) -> None:
    authority = written(pair)
    pek = Certificate.of(Usage.PEK, Algorithm.ECDSA_SHA256, keys.generate().public_key(), (1, 55))
    signed = Certificate.decode(authority.signed(pek.encode()))
    assert signed.body() == pek.body()
    assert signed.verifies(Usage.OCA, authority.certificate.key())
    with pytest.raises(StreamError, match="a OCA certificate came where the platform's PEK was expected"):
        authority.signed(authority.certificate.encode())


def test_damaged_files_and_those_of_others_are_refused_by_name(pair: tuple[Path, Path]) -> None:
    authority = written(pair)
    cert, key = pair

    def refused(certificate: bytes | None = None, private: bytes | None = None) -> str:
        before = cert.read_bytes(), key.read_bytes()
        cert.write_bytes(certificate or before[0])
        key.write_bytes(private or before[1])
        with pytest.raises(UserError) as caught:
            OwnerAuthority.read(cert, key)
        cert.write_bytes(before[0])
        key.write_bytes(before[1])
        return sentence(caught.value)

    def der(other: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password)
        return other.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, encryption)

    forged = bytearray(authority.certificate.encode())
    forged[1052] ^= 1
    pek = Certificate.of(Usage.PEK, Algorithm.ECDSA_SHA256, authority.key.public_key())
    assert f"the OCA certificate {cert} does not parse" in refused(certificate=b"certificate")
    assert "its signature is not its own" in refused(certificate=bytes(forged))
    exchanging = Certificate.of(Usage.OCA, Algorithm.ECDH_SHA256, authority.key.public_key())
    exchanging = exchanging.signed(Usage.OCA, authority.key, Algorithm.ECDSA_SHA256)
    assert "its algorithm is ECDH_SHA256, which signs nothing" in refused(certificate=exchanging.encode())
    assert "it is a PEK certificate" in refused(certificate=pek.encode())
    assert f"the OCA's private key {key} does not parse: it holds no private key" in refused(private=b"key")
    assert "under a passphrase" in refused(private=der(authority.key, b"secret"))
    assert "it is no EC key" in refused(private=der(rsa.generate_private_key(65537, 2048)))
    assert "is not that of the OCA certificate" in refused(private=der(keys.generate()))
    key.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        OwnerAuthority.read(cert, key)
