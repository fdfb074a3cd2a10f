from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from sealift.errors import SealError, StreamError
from sealift.sev import ca, certificate
from sealift.sev.ca import CaCertificate
from sealift.sev.certificate import Certificate, Signature, Usage
from sealift.sev.chain import PlatformChain
from sealift.sev.keys import Algorithm

from .conftest import Platform, Root, make_platform


def test_layout_of_a_certificate(platform: Platform) -> None:
    """Test that fields lie where the AMD SEV API puts them."""
    cert, point = platform.chain.pek, platform.pek.public_key().public_numbers()
    data = cert.encode()
    assert len(data) == 2084
    assert data[:8] == bytes((1, 0, 0, 0, 1, 55, 0, 0))
    assert data[0x08:0x10] == bytes.fromhex("0210000002000000")
    assert data[0x10:0x14] == bytes((2, 0, 0, 0))
    assert int.from_bytes(data[0x14:0x5C], "little") == point.x
    assert int.from_bytes(data[0x5C:0xA4], "little") == point.y
    assert not any(data[0xA4:0x414])
    assert data[0x414:0x41C] == bytes.fromhex("0110000002000000")
    assert data[0x61C:0x624] == bytes.fromhex("0410000002000000")
    assert cert.body() == data[:0x414]


def test_decoding_and_encoding_give_the_same_bytes(platform: Platform) -> None:
    chain = platform.chain
    for cert in (chain.pdh, chain.pek, chain.oca, chain.cek):
        assert Certificate.decode(cert.encode()) == cert
    for authority in (chain.ask, chain.ark):
        assert CaCertificate.decode(authority.encode()) == authority
        assert len(authority.encode()) == 1600


def test_a_signature_is_little_endian_ecdsa_over_the_body(platform: Platform) -> None:
    """Test a slot against the library's own verification, without this project's decoder."""
    data = platform.chain.pdh.encode()
    r, s = (int.from_bytes(data[start : start + 72], "little") for start in (0x41C, 0x41C + 72))
    der = utils.encode_dss_signature(r, s)
    platform.pek.public_key().verify(der, data[:0x414], ec.ECDSA(hashes.SHA256()))


def test_a_third_signature_has_no_place(platform: Platform) -> None:
    with pytest.raises(ValueError, match="both signature slots of the PEK"):
        platform.chain.pek.signed(Usage.OCA, platform.oca, Algorithm.ECDSA_SHA256)


def test_a_fingerprint_outlives_signatures_and_firmware(platform: Platform) -> None:
    cek = platform.chain.cek
    updated = replace(cek.unsigned(), api=(1, 56))
    assert updated.fingerprint() == cek.fingerprint() == hashlib.sha256(cek.encode()[0x10:0x414]).digest()


@pytest.mark.parametrize("kind", ["naples_root", "rome_root"])
def test_a_genuine_chain_verifies(kind: str, request: pytest.FixtureRequest) -> None:
    root: Root = request.getfixturevalue(kind)
    chain = make_platform(root).chain
    cert_chain = chain.pek.encode() + chain.oca.encode() + chain.cek.encode()
    decoded = PlatformChain.decode(chain.pdh.encode(), cert_chain, root.ask.encode() + root.ark.encode())
    assert decoded == chain
    decoded.verify({root.ark.fingerprint()})


def test_signatures_of_a_pek_may_come_in_either_order(platform: Platform) -> None:
    first, second = platform.chain.pek.signatures
    swapped = replace(platform.chain.pek, signatures=(second, first))
    replace(platform.chain, pek=swapped).verify({platform.chain.ark.fingerprint()})


def test_a_self_consistent_chain_under_another_root_is_refused(platform: Platform, naples_root: Root) -> None:
    other = make_platform(naples_root).chain
    with pytest.raises(SealError, match="not a root this side trusts"):
        other.verify({platform.chain.ark.fingerprint()})


def test_a_root_is_pinned_by_its_key_not_by_its_name(platform: Platform, naples_root: Root) -> None:
    """Test that a forged ARK with the trusted key id does not pass."""
    chain = replace(platform.chain, ark=replace(naples_root.ark, key_id=platform.chain.ark.key_id))
    with pytest.raises(SealError, match="not a root"):
        chain.verify({platform.chain.ark.fingerprint()})


def _with_bit_flipped(cert: Certificate, offset: int) -> Certificate:
    data = bytearray(cert.encode())
    data[offset] ^= 1
    return Certificate.decode(bytes(data))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pdh", "the PDH carries no valid signature of the PEK"),
        ("pek", "the PEK carries no valid signature of the OCA"),
        ("oca", "the OCA carries no valid signature of the OCA"),
        ("cek", "the CEK carries no valid signature of the ASK"),
    ],
)
@pytest.mark.parametrize("offset", [0x04, 0x06, 0x41C], ids=["version", "reserved", "signature"])
def test_one_changed_bit_is_named(platform: Platform, name: str, complaint: str, offset: int) -> None:
    altered: Any = _with_bit_flipped(getattr(platform.chain, name), offset)
    with pytest.raises(SealError, match=complaint):
        replace(platform.chain, **{name: altered}).verify({platform.chain.ark.fingerprint()})


def test_a_pek_needs_the_chips_signature_too(platform: Platform) -> None:
    owned, _ = platform.chain.pek.signatures
    chain = replace(platform.chain, pek=replace(platform.chain.pek, signatures=(owned, Signature())))
    chain.verify_owner()
    with pytest.raises(SealError, match="the PEK carries no valid signature of the CEK"):
        chain.verify({chain.ark.fingerprint()})


def test_a_signature_under_the_wrong_name_does_not_count(platform: Platform) -> None:
    owned, endorsed = platform.chain.pek.signatures
    renamed = replace(endorsed, usage=Usage.PDH)
    chain = replace(platform.chain, pek=replace(platform.chain.pek, signatures=(owned, renamed)))
    with pytest.raises(SealError, match="signature of the CEK"):
        chain.verify({chain.ark.fingerprint()})


def test_a_half_empty_slot_is_a_bad_signature(platform: Platform) -> None:
    signed, _ = platform.chain.pdh.signatures
    chain = replace(platform.chain, pdh=replace(platform.chain.pdh, signatures=(signed, Signature(usage=Usage.OCA))))
    with pytest.raises(SealError, match="but not both"):
        chain.verify({chain.ark.fingerprint()})


def test_an_unsigned_cek_is_explained(platform: Platform) -> None:
    chain = replace(platform.chain, cek=platform.chain.cek.unsigned())
    with pytest.raises(SealError, match="unsigned, as firmware exports it"):
        chain.verify({chain.ark.fingerprint()})


@pytest.mark.parametrize("name", ["ask", "ark"])
def test_a_damaged_authority_is_named(platform: Platform, name: str) -> None:
    authority: CaCertificate = getattr(platform.chain, name)
    damaged: Any = replace(authority, signature=bytes(len(authority.signature)))
    with pytest.raises(SealError, match=f"the {name.upper()}'s signature"):
        replace(platform.chain, **{name: damaged}).verify({platform.chain.ark.fingerprint()})


def test_certificates_in_the_wrong_places_are_refused(platform: Platform) -> None:
    chain = platform.chain
    shuffled = chain.oca.encode() + chain.pek.encode() + chain.cek.encode()
    with pytest.raises(StreamError, match="a OCA certificate stands where the PEK belongs"):
        PlatformChain.decode(chain.pdh.encode(), shuffled, chain.ask.encode() + chain.ark.encode())
    with pytest.raises(StreamError, match="ASK then ARK"):
        ca.decode_ca_chain(chain.ark.encode() + chain.ask.encode())


def test_a_truncated_root_is_refused(platform: Platform) -> None:
    """Test the form in which AMD once distributed a root: without its signature."""
    with pytest.raises(StreamError, match="has 1600 bytes, not 1088"):
        CaCertificate.decode(platform.chain.ark.body())


def test_a_point_off_the_curve_is_no_key(platform: Platform) -> None:
    cert = _with_bit_flipped(platform.chain.pdh, 0x14)
    with pytest.raises(StreamError, match="no point of secp384r1"):
        cert.key()


@pytest.mark.parametrize("size", [0, certificate.SIZE - 1, certificate.SIZE + 1])
def test_a_certificate_has_one_size(platform: Platform, size: int) -> None:
    with pytest.raises(StreamError, match="has 2084 bytes"):
        Certificate.decode(platform.chain.pdh.encode().ljust(certificate.SIZE + 1)[:size])
