"""An attestation report's signature: as firmware writes it, and as virtee/sev reads it."""

from __future__ import annotations

import contextlib
import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import SealiftError
from sealift.sev import keys, report
from sealift.sev.policy import DEFAULT_POLICY
from sealift.sev.report import AttestationReport, Encoding


@pytest.fixture(scope="module")
def pek() -> ec.EllipticCurvePrivateKey:
    return keys.generate()


def made(pek: ec.EllipticCurvePrivateKey) -> AttestationReport:
    return AttestationReport(os.urandom(16), os.urandom(32), DEFAULT_POLICY).signed(pek)


def test_both_encodings_are_recognised_and_carry_the_same_signature(pek: ec.EllipticCurvePrivateKey) -> None:
    genuine = made(pek)
    der = genuine.written_as(Encoding.DER)
    assert (genuine.encoding, der.encoding) == (Encoding.RAW, Encoding.DER)
    assert len(der.encode()) == len(genuine.encode()) == 208
    assert der.written_as(Encoding.RAW) == genuine
    assert AttestationReport.decode(der.encode()) == der


def test_the_der_form_is_one_openssl_verifies(pek: ec.EllipticCurvePrivateKey) -> None:
    """Test against the library's own verification of a DER signature over the first 52 bytes."""
    data = made(pek).written_as(Encoding.DER).encode()
    field = data[0x40:]
    signature = field[: 2 + field[1]]
    assert not any(field[len(signature) :])
    pek.public_key().verify(signature, data[:52], ec.ECDSA(hashes.SHA256()))


@given(data=st.binary(min_size=report.SIZE, max_size=report.SIZE))
def test_arbitrary_bytes(pek: ec.EllipticCurvePrivateKey, data: bytes) -> None:
    decoded = AttestationReport.decode(data)
    assert decoded.encode() == data
    with contextlib.suppress(SealiftError):
        for encoding in Encoding:
            assert not decoded.written_as(encoding).verifies(pek.public_key())


@given(field=st.binary(max_size=142))
def test_anything_that_looks_like_der(pek: ec.EllipticCurvePrivateKey, field: bytes) -> None:
    genuine = made(pek).encode()
    data = genuine[:0x40] + (b"\x30" + bytes((len(field),)) + field).ljust(144, b"\0")
    decoded = AttestationReport.decode(data)
    with contextlib.suppress(SealiftError):
        assert not decoded.written_as(Encoding.RAW).verifies(pek.public_key())
