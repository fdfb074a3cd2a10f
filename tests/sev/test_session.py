from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealift.errors import FirmwareError
from sealift.sev import keys, session
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm
from sealift.sev.policy import Policy
from sealift.sev.session import OwnerSession, Session, TransportKeys
from sealift.sev.status import Status

from .conftest import Platform

POLICY = Policy.NODBG | Policy.NOSEND


@pytest.fixture
def offered(platform: Platform) -> OwnerSession:
    return session.offer(platform.chain.pdh, POLICY)


def _refusal(platform: Platform, dh_cert: bytes, blob: bytes, policy: Policy = POLICY) -> Status:
    with pytest.raises(FirmwareError) as caught:
        session.accept(platform.pdh, dh_cert, blob, policy)
    return Status(caught.value.status)


def test_the_platform_it_was_made_for_gets_the_keys(platform: Platform, offered: OwnerSession) -> None:
    assert session.accept(platform.pdh, offered.dh_cert, offered.session, POLICY) == offered.transport


def test_another_platform_gets_nothing(offered: OwnerSession) -> None:
    with pytest.raises(FirmwareError, match="made for this PDH"):
        session.accept(keys.generate(), offered.dh_cert, offered.session, POLICY)


def test_a_session_is_bound_to_its_policy(platform: Platform, offered: OwnerSession) -> None:
    refusal = _refusal(platform, offered.dh_cert, offered.session, Policy(0))
    assert refusal is Status.BAD_MEASUREMENT


@pytest.mark.parametrize("offset", range(0, session.SIZE, 7))
def test_no_bit_of_a_session_can_change(platform: Platform, offered: OwnerSession, offset: int) -> None:
    """Test every field, WRAP_IV included: its MAC is not its own, but the keys it gives fail POLICY_MAC."""
    blob = bytearray(offered.session)
    blob[offset] ^= 0x10
    assert _refusal(platform, offered.dh_cert, bytes(blob)) is Status.BAD_MEASUREMENT


def test_lengths_are_checked_before_anything_else(platform: Platform, offered: OwnerSession) -> None:
    assert _refusal(platform, b"", b"") is Status.INVALID_LENGTH
    assert _refusal(platform, b"", offered.session) is Status.INVALID_LENGTH
    assert _refusal(platform, bytes(2084), offered.session) is Status.INVALID_CERTIFICATE


def test_a_certificate_for_another_use_is_refused(platform: Platform, offered: OwnerSession) -> None:
    godh = Certificate.decode(offered.dh_cert)
    for wrong in (
        replace(godh, usage=Usage.PEK),
        replace(godh, algorithm=Algorithm.ECDH_SHA384),
        Certificate.of(Usage.PDH, Algorithm.ECDH_SHA256, ec.generate_private_key(ec.SECP256R1()).public_key()),
        replace(godh, public_key=bytes(1028)),
    ):
        assert _refusal(platform, wrong.encode(), offered.session) is Status.INVALID_CERTIFICATE


def test_signatures_of_the_owners_certificate_are_not_looked_at(platform: Platform, offered: OwnerSession) -> None:
    """Test that both forms in use are taken: unsigned (sevctl), and self-signed under the name PEK (sev-tool)."""
    private = keys.generate()
    transport = TransportKeys.fresh()
    godh = Certificate.of(Usage.PDH, Algorithm.ECDH_SHA256, private.public_key())
    labelled = godh.signed(Usage.PEK, private, Algorithm.ECDSA_SHA256)
    secret = session.shared_secret(private, platform.pdh.public_key())
    blob = Session.wrap(secret, transport, POLICY).encode()
    assert session.accept(platform.pdh, labelled.encode(), blob, POLICY) == transport
    garbage = offered.dh_cert[:1044] + b"\xff" * 1040
    assert session.accept(platform.pdh, garbage, offered.session, POLICY) == offered.transport


def test_both_sides_compute_the_same_secret_big_endian() -> None:
    """Test Z against the curve's own arithmetic: d = 1 leaves the peer's X coordinate."""
    one = ec.derive_private_key(1, ec.SECP384R1())
    peer = keys.generate().public_key()
    assert session.shared_secret(one, peer) == peer.public_numbers().x.to_bytes(48, "big")


def test_transport_keys_are_never_shown(offered: OwnerSession) -> None:
    shown = repr(offered)
    assert "TransportKeys()" in shown
    for key in (offered.transport.tek, offered.transport.tik):
        assert repr(key) not in shown
        assert key.hex() not in shown
