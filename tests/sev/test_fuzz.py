"""Whatever bytes come in, decoders end with a value or with a declared error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import SealiftError
from sealift.sev import keys, secret, session
from sealift.sev.ca import CaCertificate, decode_ca_chain
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.chain import OwnerChain, PlatformChain
from sealift.sev.keys import Algorithm
from sealift.sev.packet import Header
from sealift.sev.policy import DEFAULT_POLICY, parse_policy
from sealift.sev.report import AttestationReport
from sealift.sev.session import Session

from .conftest import Platform

Edits = list[tuple[int, bytes]]
EDITS = st.lists(st.tuples(st.integers(0, 11000), st.binary(min_size=1, max_size=80)), max_size=4)


def _edited(data: bytes, edits: Edits) -> bytes:
    """`data` with pieces overwritten; places wrap around, so that every field is hit."""
    edited = bytearray(data)
    for place, piece in edits:
        start = place % len(data)
        edited[start : start + len(piece)] = piece[: len(data) - start]
    return bytes(edited)


@pytest.mark.parametrize(
    "decode",
    [
        Certificate.decode,
        CaCertificate.decode,
        decode_ca_chain,
        Session.decode,
        Header.decode,
        AttestationReport.decode,
        secret.parse_table,
        lambda data: parse_policy(data.decode("latin-1")),
    ],
)
@given(data=st.binary(max_size=4096))
def test_arbitrary_bytes(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(SealiftError):
        decode(data)


@given(edits=EDITS)
def test_altered_certificates(platform: Platform, edits: Edits) -> None:
    """Test decoding, key and verification of a damaged certificate, and that what decodes encodes the same."""
    data = _edited(platform.chain.pek.encode(), edits)
    with contextlib.suppress(SealiftError):
        cert = Certificate.decode(data)
        assert cert.encode() == data
        cert.verifies(Usage.OCA, platform.oca.public_key())
        cert.key()


@given(algorithm=st.sampled_from(Algorithm), field=st.binary(min_size=1028, max_size=1028))
def test_arbitrary_public_keys(algorithm: Algorithm, field: bytes) -> None:
    with contextlib.suppress(SealiftError):
        keys.decode_public_key(algorithm, field)


@given(bits=st.sampled_from([2048, 4096]), edits=EDITS)
def test_altered_rsa_keys(platform: Platform, bits: int, edits: Edits) -> None:
    field = keys.encode_public_key(platform.chain.ask.key())
    with contextlib.suppress(SealiftError):
        keys.decode_public_key(Algorithm.RSA_SHA384, _edited(bits.to_bytes(4, "little") + field[4:], edits))


@given(edits=EDITS)
def test_altered_chains_never_verify(platform: Platform, edits: Edits) -> None:
    """Test that what verifies has every signed byte as it was; only a slot nobody looks at may differ."""
    chain = platform.chain
    certs = (chain.pdh, chain.pek, chain.oca, chain.cek)
    whole = b"".join(cert.encode() for cert in certs) + chain.ask.encode() + chain.ark.encode()
    altered = _edited(whole, edits)
    with contextlib.suppress(SealiftError):
        decoded = PlatformChain.decode(altered[:2084], altered[2084:8336], altered[8336:])
        decoded.verify({chain.ark.fingerprint()})
        assert (decoded.ask, decoded.ark) == (chain.ask, chain.ark)
        verified = (decoded.pdh, decoded.pek, decoded.oca, decoded.cek)
        assert [cert.body() for cert in verified] == [cert.body() for cert in certs]


@given(edits=EDITS)
def test_altered_owner_chains_never_verify(platform: Platform, edits: Edits) -> None:
    """Test the branch that DOMAIN asks for, likewise."""
    certs = (platform.chain.pdh, platform.chain.pek, platform.chain.oca)
    altered = _edited(b"".join(cert.encode() for cert in certs), edits)
    with contextlib.suppress(SealiftError):
        decoded = OwnerChain.decode(altered[:2084], altered[2084:] + bytes(2084))
        decoded.verify()
        assert [cert.body() for cert in (decoded.pdh, decoded.pek, decoded.oca)] == [cert.body() for cert in certs]


@given(edits=EDITS)
def test_altered_reports_never_verify(platform: Platform, edits: Edits) -> None:
    report = AttestationReport(bytes(16), bytes(range(32)), DEFAULT_POLICY).signed(platform.pek).encode()
    decoded = AttestationReport.decode(_edited(report, edits))
    if decoded.verifies(platform.pek.public_key()):
        assert decoded.body() == report[:52]


@given(edits=EDITS)
def test_altered_sessions_never_open(platform: Platform, edits: Edits) -> None:
    offered = session.offer(platform.chain.pdh, DEFAULT_POLICY)
    altered = _edited(offered.session, edits)
    with contextlib.suppress(SealiftError):
        session.accept(platform.pdh, offered.dh_cert, altered, DEFAULT_POLICY)
        assert altered == offered.session


@given(edits=EDITS, entries=st.lists(st.binary(max_size=40), max_size=4))
def test_altered_secret_tables(edits: Edits, entries: list[bytes]) -> None:
    table = secret.build_table(secret.SecretEntry(secret.LUKS_KEY_GUID, data) for data in entries)
    with contextlib.suppress(SealiftError):
        for place in secret.find_entries(_edited(table, edits)) or ():
            assert 20 <= place.start <= place.end <= len(table)
