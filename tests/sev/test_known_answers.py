"""Answers known from outside this project (provenance: the AMD SEV API's algorithms recomputed against other tools)."""

from __future__ import annotations

import hashlib
import hmac

from sealift.sev import kdf, measurement
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.session import Session, TransportKeys

KEK = bytes.fromhex("b6abfbfb75ea1ea74ed8750b8afdb973")
KIK = bytes.fromhex("53b524bf5669a363f365c864acba8572")


def test_key_derivation_of_a_session() -> None:
    master = kdf.master_secret(bytes(16), bytes(16))
    assert master.hex() == "ab4d269fcc62bedb4511d56c386ce706"
    assert kdf.encryption_key(master) == KEK
    assert kdf.integrity_key(master) == KIK


def test_session_blob_of_zero_keys() -> None:
    session = Session.wrap_with(bytes(16), TransportKeys.absent(), Policy(0), (bytes(16), bytes(16)))
    assert session.wrap_tk.hex() == "2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4"
    assert session.wrap_mac.hex() == "3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d"
    assert session.policy_mac.hex() == "aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af"


def test_measurement() -> None:
    output = measurement.measure(
        bytes.fromhex("66320db73158a35a255d051758e95ed4"),
        FirmwareVersion(0, 0x12, 0x0F),
        Policy(0),
        hashlib.sha256(b"").digest(),
        bytes.fromhex("4fbe0bedbad6c86ae8f68971d103e554"),
    )
    assert output.hex() == (
        "6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea4fbe0bedbad6c86ae8f68971d103e554"
    )


def test_firmware_before_api_0_17_binds_no_version() -> None:
    """Test the older message, 52 bytes, written out here (AMDESE/sev-tool ``commands.cpp``)."""
    tik, nonce, digest = bytes(range(16)), bytes(range(16, 32)), bytes(range(32))
    expected = hmac.new(tik, bytes((9, 0, 0, 0)) + digest + nonce, "sha256").digest() + nonce
    for version in (FirmwareVersion(0, 16, 1), FirmwareVersion(0, 12, 200)):
        assert measurement.measure(tik, version, DEFAULT_POLICY, digest, nonce) == expected
    assert measurement.measure(tik, FirmwareVersion(0, 17, 1), DEFAULT_POLICY, digest, nonce) != expected
