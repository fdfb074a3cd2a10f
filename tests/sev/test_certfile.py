"""Files of certificates in every layout that tools write, and what is said of damaged ones."""

from __future__ import annotations

import base64
import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import SealiftError, StreamError, UserError
from sealift.sev.certfile import LINKS, CertificateSet, Layout
from sealift.sev.certificate import Usage
from sealift.sev.chain import PlatformChain

from .conftest import Platform, make_platform, make_root

SIZES = {Layout.PDH: 2084, Layout.CERT_CHAIN: 6252, Layout.PLATFORM: 8336, Layout.FULL: 11536, Layout.CA: 3200}


def whole(chain: PlatformChain) -> CertificateSet:
    return CertificateSet.of((chain.pdh, chain.pek, chain.oca, chain.cek, chain.ask, chain.ark))


@pytest.mark.parametrize("layout", Layout)
def test_every_layout_has_its_size_and_reads_back(platform: Platform, layout: Layout) -> None:
    data = whole(platform.chain).encode(layout)
    assert len(data) == SIZES[layout]
    decoded = CertificateSet.decode(data)
    assert decoded.layout is layout
    assert decoded.encode(layout) == data
    assert CertificateSet.decode(base64.encodebytes(data)) == CertificateSet.decode(base64.b64encode(data)) == decoded


def test_certificates_may_come_in_any_order_and_in_several_files(platform: Platform) -> None:
    chain = platform.chain
    first = CertificateSet.decode(chain.ark.encode() + chain.oca.encode() + chain.pdh.encode())
    second = CertificateSet.decode(chain.cek.encode() + chain.ask.encode() + chain.pek.encode() + chain.pdh.encode())
    assert first.layout is None
    assert first.joined(second).platform() == chain


def test_a_genuine_chain_has_every_link(platform: Platform) -> None:
    links = whole(platform.chain).links()
    assert [(link.subject, link.issuer) for link in links] == list(LINKS)
    assert not any(link.fault for link in links)


@pytest.mark.parametrize(("subject", "issuer"), [(a, b) for a, b in LINKS if a is not b])
def test_the_link_that_fails_is_named(platform: Platform, subject: Usage, issuer: Usage) -> None:
    """Test each signature with a signer of the right name and the wrong key."""
    chain, stranger = platform.chain, make_platform(make_root(2048)).chain
    forged = {**whole(chain).certificates, issuer: whole(stranger).certificates[issuer]}
    links = {(link.subject, link.issuer): link.fault for link in CertificateSet(forged).links()}
    assert f"the {subject.name}" in links[subject, issuer]
    untouched = [fault for pair, fault in links.items() if issuer not in pair]
    assert untouched
    assert not any(untouched)


def test_an_unsigned_root_is_read_and_proves_nothing() -> None:
    """Test the form in which AMD once distributed a root (AMDESE/AMDSEV#17): 576 bytes."""
    root = make_root(2048)
    data = root.ask.encode() + root.ark.body()
    assert len(root.ark.body()) == 576
    decoded = CertificateSet.decode(data)
    assert decoded.root == replace(root.ark, signature=b"")
    assert [link.fault for link in decoded.links()] == ["", "the ARK's signature is not its own"]


def test_what_is_no_chain_is_refused_at_its_byte(platform: Platform) -> None:
    pdh = platform.chain.pdh.encode()
    with pytest.raises(StreamError, match="no certificate in it"):
        CertificateSet.decode(b"")
    with pytest.raises(StreamError, match="at byte 2084"):
        CertificateSet.decode(pdh + pdh[:-1])
    with pytest.raises(StreamError, match="two PDH certificates"):
        CertificateSet.decode(pdh + pdh)
    with pytest.raises(StreamError, match="two PDH certificates"):
        CertificateSet.decode(pdh).joined(CertificateSet.of([make_platform(make_root(2048)).chain.pdh]))
    with pytest.raises(StreamError, match="more than any chain"):
        CertificateSet.decode(bytes(1 << 17))
    with pytest.raises(UserError, match="full needs certificates that were not given: PEK, OCA, CEK, ASK, ARK"):
        CertificateSet.decode(pdh).encode(Layout.FULL)


@given(data=st.binary(max_size=3000))
def test_arbitrary_bytes(data: bytes) -> None:
    with contextlib.suppress(SealiftError):
        CertificateSet.decode(data)


@given(
    layout=st.sampled_from(Layout),
    edits=st.lists(st.tuples(st.integers(0, 11535), st.binary(min_size=1, max_size=40)), max_size=4),
    cut=st.integers(0, 40),
)
def test_altered_files_end_with_a_value_or_a_sentence(
    platform: Platform, layout: Layout, edits: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(whole(platform.chain).encode(layout))
    for place, piece in edits:
        start = place % len(data)
        data[start : start + len(piece)] = piece[: len(data) - start]
    with contextlib.suppress(SealiftError):
        decoded = CertificateSet.decode(bytes(data[: len(data) - cut]))
        decoded.links()
        assert b"".join(cert.encode() for cert in decoded.certificates.values())
