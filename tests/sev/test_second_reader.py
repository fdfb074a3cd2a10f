"""Certificates in the eyes of somebody else: a second reader with OpenSSL judges ours, and ours judges OpenSSL's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealift.errors import SealError
from sealift.owner.authority import OwnerAuthority
from sealift.sev import session
from sealift.sev.certificate import Certificate
from sealift.sev.chain import PlatformChain
from sealift.sev.policy import DEFAULT_POLICY
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity

from . import independent, reader
from .conftest import Root, make_platform
from .reader import CaCertificate, SevCertificate

NAMES = ("pdh", "pek", "oca", "cek", "ask", "ark")


@dataclass(frozen=True)
class Files:
    """A platform's certificates as bytes, one after the other (`NAMES`)."""

    pdh: bytes
    pek: bytes
    oca: bytes
    cek: bytes
    ask: bytes
    ark: bytes

    @classmethod
    def of_platform(cls, processor: SecureProcessor) -> Files:
        """Cut what a platform exports, in the layouts that tools know."""
        exported = processor.endorsed_certificates()
        pek, oca, cek = (exported.cert_chain[at : at + 2084] for at in (0, 2084, 4168))
        return cls(exported.pdh, pek, oca, cek, processor.ca_chain[:1600], processor.ca_chain[1600:])

    def changed(self, name: str, place: int) -> Files:
        """With one bit flipped."""
        parts = {each: bytearray(getattr(self, each)) for each in NAMES}
        parts[name][place] ^= 1
        return Files(**{each: bytes(part) for each, part in parts.items()})


def valid_links(files: Files, directory: Path) -> set[str]:
    """The signatures that the second reader finds valid."""
    pdh, pek, oca, cek = (SevCertificate.read(data) for data in (files.pdh, files.pek, files.oca, files.cek))
    ask, ark = CaCertificate.read(files.ask), CaCertificate.read(files.ark)
    found = {
        "PDH by PEK": reader.ec_signed(pdh, reader.PEK, pek.pem, directory),
        "PEK by OCA": reader.ec_signed(pek, reader.OCA, oca.pem, directory),
        "PEK by CEK": reader.ec_signed(pek, reader.CEK, cek.pem, directory),
        "OCA by OCA": reader.ec_signed(oca, reader.OCA, oca.pem, directory),
        "CEK by ASK": reader.cek_signed(cek, ask, directory),
        "ASK by ARK": reader.rsa_signed(ask.signed, ask.signature, ark.bits, ark.pem, directory),
        "ARK by ARK": reader.rsa_signed(ark.signed, ark.signature, ark.bits, ark.pem, directory),
    }
    return {link for link, valid in found.items() if valid}


ALL = {"PDH by PEK", "PEK by OCA", "PEK by CEK", "OCA by OCA", "CEK by ASK", "ASK by ARK", "ARK by ARK"}


@pytest.fixture
def processor(tmp_path: Path, manufacturer: Path) -> Iterator[SecureProcessor]:
    made = SecureProcessor(PlatformIdentity(tmp_path / "identity", manufacturer))
    made.init(INIT_ES)
    yield made
    made.close()


def test_a_platforms_whole_chain_is_valid(processor: SecureProcessor, tmp_path: Path) -> None:
    assert valid_links(Files.of_platform(processor), tmp_path) == ALL


def test_so_is_that_of_an_owned_platform(processor: SecureProcessor, tmp_path: Path) -> None:
    """Test PEK_CSR and PEK_CERT_IMPORT, and the OCA that `sealift platform provision --generate` makes."""
    authority = OwnerAuthority.generate()
    request = SevCertificate.read(processor.pek_csr())
    assert (request.usage, request.empty_slots()) == (reader.PEK, 2)
    processor.pek_cert_import(authority.signed(processor.pek_csr()), authority.certificate.encode())
    files = Files.of_platform(processor)
    assert valid_links(files, tmp_path) == ALL
    assert files.oca == authority.certificate.encode()
    assert SevCertificate.read(files.pek).signed == request.signed


@pytest.mark.parametrize("bits", [2048, 4096])
def test_so_is_a_chain_of_either_generation(bits: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Test RSA-2048 with SHA-256 (Naples) and RSA-4096 with SHA-384 (Rome and later)."""
    root: Root = request.getfixturevalue({2048: "naples_root", 4096: "rome_root"}[bits])
    chain = make_platform(root).chain
    assert valid_links(Files(*(getattr(chain, name).encode() for name in NAMES)), tmp_path) == ALL
    assert CaCertificate.read(chain.ark.encode()).bits == bits


def test_every_field_says_what_it_must(processor: SecureProcessor) -> None:
    files = Files.of_platform(processor)
    pdh, pek, oca, cek = (SevCertificate.read(data) for data in (files.pdh, files.pek, files.oca, files.cek))
    ask, ark = CaCertificate.read(files.ask), CaCertificate.read(files.ark)
    assert [each.usage for each in (pdh, pek, oca, cek)] == [reader.PDH, reader.PEK, reader.OCA, reader.CEK]
    assert [each.algorithm for each in (pdh, pek, oca, cek)] == [reader.ECDH_SHA256] + 3 * [reader.ECDSA_SHA256]
    assert [each.empty_slots() for each in (pdh, pek, oca, cek)] == [1, 0, 1, 1]
    assert {each.api for each in (pdh, pek, oca)} == {(1, 55)}
    assert cek.api == (0, 14)
    assert (ask.usage, ark.usage) == (reader.ASK, reader.ARK)
    assert ask.certifying_id == ark.certifying_id == ark.key_id != ask.key_id


def test_firmware_exports_the_cek_without_a_signature(processor: SecureProcessor) -> None:
    exported, endorsed = processor.pdh_cert_export(), processor.endorsed_certificates()
    cek = SevCertificate.read(exported.cert_chain[4168:])
    assert cek.empty_slots() == 2
    assert cek.signed == endorsed.cert_chain[4168:5212]


LINKS_OF = {
    "pdh": {"PDH by PEK"},
    "pek": {"PEK by OCA", "PEK by CEK"},
    "oca": {"OCA by OCA"},
    "cek": {"CEK by ASK"},
    "ask": {"ASK by ARK"},
    "ark": {"ARK by ARK"},
}
"""What a changed bit makes invalid: the signatures over it (its key is left alone)."""


@pytest.mark.parametrize("name", NAMES)
def test_both_readers_refuse_the_same_change(processor: SecureProcessor, tmp_path: Path, name: str) -> None:
    """Test a bit that is signed and not looked at otherwise: the API version, or a key id."""
    files = Files.of_platform(processor).changed(name, 5)
    assert valid_links(files, tmp_path) == ALL - LINKS_OF[name]
    chain = PlatformChain.decode(files.pdh, files.pek + files.oca + files.cek, files.ask + files.ark)
    with pytest.raises(SealError, match=name.upper()):
        chain.verify({chain.ark.fingerprint()})


def test_the_owners_key_has_the_same_format(processor: SecureProcessor) -> None:
    """Test the GODH as firmware looks at it: a PDH for ECDH, signed by nobody, as sevctl makes it."""
    pdh = Certificate.decode(processor.pdh_cert_export().pdh)
    godh = SevCertificate.read(session.offer(pdh, DEFAULT_POLICY).dh_cert)
    assert (godh.usage, godh.algorithm, godh.api) == (reader.PDH, reader.ECDH_SHA256, (0, 0))
    assert godh.empty_slots() == 2


def test_firmware_takes_an_owner_whom_openssl_made(processor: SecureProcessor, tmp_path: Path) -> None:
    """Test certificates put together from the tables, whose key and signatures are OpenSSL's."""
    private = tmp_path / "oca.pem"
    independent.openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", private)
    point = independent.openssl("ec", "-in", private, "-pubout", "-outform", "DER")[-96:]
    key = b"\2\0\0\0" + b"".join(half[::-1].ljust(72, b"\0") for half in (point[:48], point[48:]))
    body = b"\1\0\0\0" + bytes(4) + (0x1001).to_bytes(4, "little") + (2).to_bytes(4, "little") + key.ljust(1028, b"\0")
    empty = (0x1000).to_bytes(4, "little") + bytes(516)

    def signed(message: bytes) -> bytes:
        file = tmp_path / os.urandom(8).hex()
        file.write_bytes(message)
        numbers = independent.der_signature(independent.openssl("dgst", "-sha256", "-sign", private, file))
        field = b"".join(each.to_bytes(72, "little") for each in numbers).ljust(512, b"\0")
        return message + (0x1001).to_bytes(4, "little") + (2).to_bytes(4, "little") + field + empty

    oca, pek = signed(body), signed(processor.pek_csr()[:1044])
    processor.pek_cert_import(pek, oca)
    assert processor.platform_status().owned
    assert Files.of_platform(processor).oca == oca
    assert valid_links(Files.of_platform(processor), tmp_path) == ALL
