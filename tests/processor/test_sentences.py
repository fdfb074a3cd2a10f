"""Whatever is malformed ends with the firmware's own status code and a sentence that names the field."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sealift.sev.policy import Policy
from sealift.sev.status import Status
from sealift.silicon.processor.send import PACKET_LIMIT
from sealift.silicon.processor.states import Command, GuestState, PlatformState

from .bench import Bench
from .spoils import Arguments, Spoil, cut, flip, overwrite, put

HEADER_IV, HEADER_MAC = 4, 20
"""Offsets in a packet's header."""
NONCE, WRAP_TK, WRAP_MAC, POLICY_MAC = 0, 16, 64, 96
"""Offsets in a session."""
VERSION, API, USAGE, ALGORITHM, CURVE, QX, SLOT, SIGNATURE = 0, 5, 8, 0xC, 0x10, 0x14, 0x414, 0x41C
"""Offsets in a certificate."""


def policy(bits: int) -> Spoil:
    """Have the guest another policy."""

    def spoil(bench: Bench, _: Arguments) -> None:
        bench.guest.policy = Policy(bits)

    return spoil


def both(first: Spoil, second: Spoil) -> Spoil:
    """One after the other."""

    def spoil(bench: Bench, arguments: Arguments) -> None:
        first(bench, arguments)
        second(bench, arguments)

    return spoil


SECRETS = [
    (put("gpa", 8), Status.INVALID_ADDRESS, "guest address 0x8 is not a multiple of 16"),
    (put("header", b""), Status.INVALID_LENGTH, "header has 52 bytes, not 0"),
    (cut("header"), Status.INVALID_LENGTH, "header has 52 bytes, not 51"),
    (put("header", bytes(53)), Status.INVALID_LENGTH, "header has 52 bytes, not 53"),
    (put("length", 0), Status.INVALID_LENGTH, "guest length of 0 bytes"),
    (put("length", 8), Status.INVALID_LENGTH, "guest length of 8 bytes is not a whole number of 16-byte blocks"),
    (put("length", 16 * 1024 + 16), Status.INVALID_LENGTH, "guest length of 16400 bytes is over the 16384"),
    (cut("payload"), Status.INVALID_LENGTH, "payload has 63 bytes for a guest length of 64"),
    (put("payload", b""), Status.INVALID_LENGTH, "payload has 0 bytes"),
    (flip("payload", 0), Status.BAD_MEASUREMENT, "packet's MAC"),
    (flip("header", 0), Status.BAD_MEASUREMENT, "packet's MAC"),
    (flip("header", HEADER_IV), Status.BAD_MEASUREMENT, "packet's MAC"),
    (flip("header", HEADER_MAC), Status.BAD_MEASUREMENT, "packet's MAC"),
]
PACKETS = [
    (put("gpa", 8), Status.INVALID_ADDRESS, "guest address 0x8 is not a multiple of 16"),
    (cut("header"), Status.INVALID_LENGTH, "header has at least 52 bytes, not 51"),
    (put("length", 8), Status.INVALID_LENGTH, "guest length of 8 bytes"),
    (put("length", PACKET_LIMIT + 16), Status.INVALID_LENGTH, "guest length of 1048592 bytes is over the 1048576"),
    (cut("payload"), Status.INVALID_LENGTH, "payload has 4095 bytes for a guest length of 4096"),
    (flip("header", 0), Status.UNSUPPORTED, "packet's flags say that it is compressed"),
    (flip("header", HEADER_MAC), Status.BAD_MEASUREMENT, "packet's MAC"),
    (flip("payload", 9), Status.BAD_MEASUREMENT, "packet's MAC"),
]
SESSIONS = [
    (cut("send_session"), Status.INVALID_LENGTH, "session has 128 bytes, not 127"),
    (cut("pdh"), Status.INVALID_LENGTH, "Diffie-Hellman certificate has 2084 bytes, not 2083"),
    (overwrite("pdh", VERSION, b"\x02"), Status.INVALID_CERTIFICATE, "Diffie-Hellman certificate .*version 2"),
    (overwrite("pdh", USAGE, b"\x77"), Status.INVALID_CERTIFICATE, "Diffie-Hellman certificate .*usage 0x1077"),
    (overwrite("pdh", USAGE, b"\x02"), Status.INVALID_CERTIFICATE, "a PEK key for ECDH_SHA256"),
    (overwrite("pdh", ALGORITHM, b"\x02"), Status.INVALID_CERTIFICATE, "a PDH key for ECDSA_SHA256"),
    (overwrite("pdh", CURVE, b"\x01"), Status.INVALID_CERTIFICATE, "Diffie-Hellman key .*(secp256r1|P-384)"),
    (overwrite("pdh", CURVE, b"\x03"), Status.INVALID_CERTIFICATE, "Diffie-Hellman key .*curve 3"),
    (flip("pdh", QX), Status.INVALID_CERTIFICATE, "Diffie-Hellman key .*no point of secp384r1"),
    (flip("send_session", NONCE), Status.BAD_MEASUREMENT, "session's WRAP_MAC"),
    (flip("send_session", WRAP_TK), Status.BAD_MEASUREMENT, "session's WRAP_MAC"),
    (flip("send_session", WRAP_MAC), Status.BAD_MEASUREMENT, "session's WRAP_MAC"),
    (flip("send_session", POLICY_MAC), Status.BAD_MEASUREMENT, "session's POLICY_MAC .*policy 0x4"),
    (put("policy", 5), Status.BAD_MEASUREMENT, "session's POLICY_MAC .*policy 0x5"),
]
OWNERS = [
    (cut("pek"), Status.INVALID_LENGTH, "PEK certificate has 2084 bytes, not 2083"),
    (cut("oca"), Status.INVALID_LENGTH, "OCA certificate has 2084 bytes, not 2083"),
    (overwrite("oca", VERSION, b"\x02"), Status.INVALID_CERTIFICATE, "OCA certificate .*version 2"),
    (overwrite("pek", USAGE, b"\x03"), Status.INVALID_CERTIFICATE, "a PDH certificate stands where the PEK belongs"),
    (flip("oca", QX), Status.INVALID_CERTIFICATE, "OCA certificate is malformed: .*no point of secp384r1"),
    (overwrite("oca", SLOT + 4, bytes(4)), Status.BAD_SIGNATURE, "OCA has a signature slot"),
    (flip("oca", SIGNATURE), Status.BAD_SIGNATURE, "OCA carries no valid signature of the OCA"),
    (flip("pek", SIGNATURE), Status.BAD_SIGNATURE, "PEK carries no valid signature of the OCA"),
]
TARGETS = [
    (policy(Policy.NOSEND), Status.POLICY_FAILURE, "policy has NOSEND"),
    (both(policy(Policy.SEV), cut("plat_certs")), Status.POLICY_FAILURE, "SEV.*6252 bytes, not 6251"),
    (both(policy(Policy.SEV), cut("amd_certs")), Status.POLICY_FAILURE, "SEV.*(ASK|ARK)"),
    (both(policy(Policy.SEV), flip("plat_certs", API)), Status.POLICY_FAILURE, "SEV.*PEK carries no valid"),
    (both(policy(Policy.DOMAIN), cut("plat_certs")), Status.POLICY_FAILURE, "DOMAIN.*6252 bytes, not 6251"),
    (policy(Policy.DOMAIN), Status.POLICY_FAILURE, "DOMAIN, and the target's OCA is not this platform's"),
    (cut("pdh"), Status.INVALID_LENGTH, "Diffie-Hellman certificate has 2084 bytes, not 2083"),
    (overwrite("pdh", CURVE, b"\x07"), Status.INVALID_CERTIFICATE, "Diffie-Hellman key .*curve 7"),
]

CASES = [
    *((Command.LAUNCH_SECRET, GuestState.LSECRET, *case) for case in SECRETS),
    *((Command.RECEIVE_UPDATE_DATA, GuestState.RUPDATE, *case) for case in PACKETS),
    *((Command.RECEIVE_START, None, *case) for case in SESSIONS),
    *((Command.PEK_CERT_IMPORT, None, *case) for case in OWNERS),
    *((Command.SEND_START, GuestState.RUNNING, *case) for case in TARGETS),
]


@pytest.mark.parametrize(
    ("command", "state", "spoil", "status", "words"), CASES, ids=[f"{case[0].name}-{case[-1]}" for case in CASES]
)
def test_the_field_is_named(
    make: Callable[[], Bench],
    command: Command,
    state: GuestState | None,
    spoil: Spoil,
    status: Status,
    words: str,
) -> None:
    bench = make()
    bench.put(PlatformState.INIT if command is Command.PEK_CERT_IMPORT else PlatformState.WORKING, state)
    arguments = bench.arguments(command)
    spoil(bench, arguments)
    assert bench.call(command, arguments) is status, bench.said
    assert bench.said.startswith(f"{status.sentence} (status {status:#x}): ")
    assert re.search(words, bench.said), bench.said
